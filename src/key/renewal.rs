//! What the providers are asked while a database is open: whether they still give its keys, and
//! whether they have newer versions of their own. Whoever asks waits for them, so transactions leave it to
//! a thread.

use std::time::Instant;

use super::access::Loss;
use super::cipher::lock;
use super::envelope::{Envelope, ProtectorRecord};
use super::keyring::Keyring;
use super::protector::{Protectors, check_time, now};
use crate::audit::{Event, EventKind};
use crate::error::Error;
use crate::provider::{ProviderError, WaitsFor};

impl Keyring {
    /// Asks the providers of the protectors whether they still give these keys, and locks the keyring
    /// where they deny it, or have not answered for too long. Those that gave the keys are asked
    /// first; who waits for a person is not asked.
    pub(crate) fn revalidate(&self, protectors: &Protectors, envelope: &Envelope) {
        let Ok((current, context)) = self.dek() else { return };
        let mut order: Vec<&ProtectorRecord> = envelope.protectors.iter().collect();
        order.sort_by_key(|record| !self.was_given_by(&record.name));
        let personal = |record: &&ProtectorRecord| {
            let provider = protectors.provider_of(record);
            provider.is_some_and(|provider| provider.waits_for() == WaitsFor::Person)
        };
        if order.first().is_some_and(personal) {
            return self.access.granted();
        }
        order.retain(|record| !personal(record));
        let ended = order.iter().find_map(|record| check_time(record).err());
        order.retain(|record| check_time(record).is_ok());
        let answer = match ended {
            Some(error) if order.is_empty() => Err(error),
            _ => protectors.unwrap(&order, &context),
        };
        match answer {
            Ok((dek, record)) if dek.is(&current) => {
                self.gave(&record.name);
                self.access.granted();
                self.look_for_newer(protectors, envelope);
            }
            Ok((_, record)) => {
                let reason = format!("protector {} gives another key than it did", record.name);
                self.lose(protectors, reason);
            }
            Err(error) => {
                let silent = !matches!(
                    error,
                    ProviderError::NotHere(_)
                        | ProviderError::Denied(_)
                        | ProviderError::WrongKey(_)
                );
                let reason = Error::from(error).to_string();
                if !silent || self.access.outage(reason.clone(), &protectors.access) {
                    self.lose(protectors, reason);
                }
            }
        }
    }

    fn lose(&self, protectors: &Protectors, reason: String) {
        protectors.auditor.note(&Event {
            file_id: Some(self.file_id()),
            outcome: Err(&reason),
            ..Event::new(EventKind::AccessLost)
        });
        self.lock(Loss::Provider(reason));
    }

    /// Wraps the DEK under newer versions of the protectors' keys where there are any, at most once
    /// per interval. A connection writes what came of it when it gets to it.
    pub(crate) fn look_for_newer(&self, protectors: &Protectors, envelope: &Envelope) {
        let Some(interval) = protectors.rotation.0.filter(|_| !envelope.manual_rotation) else {
            return;
        };
        let changed = now().saturating_sub(envelope.created.max(envelope.rotated));
        let mut looked = lock(&self.looked);
        if changed < interval.as_secs() || looked.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        *looked = Some(Instant::now());
        drop(looked);
        let Ok((dek, context)) = self.dek() else { return };
        let newer = envelope.protectors.iter().filter(|record| {
            let provider = protectors.provider_of(record);
            provider.is_some_and(|provider| provider.waits_for() != WaitsFor::Person)
        });
        let newer = newer.filter_map(|record| {
            let new = protectors.rewrap(record, &dek, &context).ok().flatten()?;
            Some((record.clone(), new))
        });
        self.set_pending(newer.collect());
    }

    /// Leaves records for a connection to put into the envelope.
    pub(crate) fn set_pending(&self, pending: Vec<(ProtectorRecord, ProtectorRecord)>) {
        *lock(&self.pending) = pending;
    }

    /// Takes what is left to be put into the envelope.
    pub(crate) fn take_pending(&self) -> Vec<(ProtectorRecord, ProtectorRecord)> {
        std::mem::take(&mut *lock(&self.pending))
    }
}
