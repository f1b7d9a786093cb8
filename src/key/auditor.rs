//! What is told to the audit log of the things done with a database's keys, and what follows where
//! the log cannot take it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::envelope::ProtectorRecord;
use crate::audit::{AuditLog, Event, EventKind};
use crate::error::{Error, Result, log};
use crate::provider::{Answer, ProviderError, RequestId};
use crate::settings::AuditPolicy;

/// The audit log of one registration, if it has one, and the file that events are about.
#[derive(Clone, Default)]
pub(crate) struct Auditor {
    pub(crate) log: Option<(Arc<AuditLog>, AuditPolicy)>,
    pub(crate) path: Option<Arc<Path>>,
}

impl Auditor {
    /// Records an event.
    ///
    /// # Errors
    /// [`Error::Audit`] where the policy says that what is recorded must not happen unrecorded.
    pub(crate) fn record(&self, event: &Event<'_>) -> Result<()> {
        let Some((log_file, policy)) = &self.log else { return Ok(()) };
        let event = Event { path: self.path.as_deref(), ..*event };
        let Err(error) = log_file.record(&event) else { return Ok(()) };
        let fails = match event.kind {
            EventKind::Create
            | EventKind::Wrap
            | EventKind::Rotate
            | EventKind::AddProtector
            | EventKind::RemoveProtector => policy.fail_key_changes,
            EventKind::Open | EventKind::Unwrap => policy.fail_opens,
            _ => false,
        };
        if fails {
            return Err(error);
        }
        log(
            error.sqlite_code(),
            &format!("sqlite-tde: not recorded: {}: {error}", event.kind.name()),
        );
        Ok(())
    }

    /// Records what cannot be kept from happening any more.
    pub(crate) fn note(&self, event: &Event<'_>) {
        if let Err(error) = self.record(event) {
            log(error.sqlite_code(), &format!("sqlite-tde: not recorded: {error}"));
        }
    }

    /// Records what a provider did with the key of a record, for a database, or why not.
    pub(crate) fn provider_call<T>(
        &self,
        (kind, record, file_id): (EventKind, &ProtectorRecord, &[u8; 16]),
        request_id: RequestId,
        took: Duration,
        answer: &Result<Answer<T>, ProviderError>,
    ) -> Result<()> {
        if self.log.is_none() {
            return Ok(());
        }
        let words = answer.as_ref().err().map(ToString::to_string);
        let kind = match answer {
            Ok(_) | Err(ProviderError::NotHere(_) | ProviderError::WrongKey(_)) => kind,
            Err(ProviderError::Denied(_)) => EventKind::Refusal,
            Err(_) => EventKind::ProviderError,
        };
        let service_request_id = match answer {
            Ok(answer) => answer.service_request_id.as_deref(),
            Err(error) => error.service_request_id(),
        };
        self.record(&Event {
            file_id: Some(file_id),
            outcome: words.as_deref().map_or(Ok(()), Err),
            duration: Some(took),
            request_id: Some(&request_id.to_string()),
            service_request_id,
            ..about(kind, record)
        })
    }

    /// Records an event about a database that went well or not.
    pub(crate) fn outcome<T>(
        &self,
        kind: EventKind,
        file_id: Option<&[u8; 16]>,
        protector: Option<&str>,
        answer: &Result<T>,
    ) -> Result<()> {
        if self.log.is_none() {
            return Ok(());
        }
        let words = answer.as_ref().err().map(ToString::to_string);
        let kind = match answer {
            Err(error) if is_tampering(error) => EventKind::Tamper,
            _ => kind,
        };
        let outcome = words.as_deref().map_or(Ok(()), Err);
        self.record(&Event { file_id, protector, outcome, ..Event::new(kind) })
    }
}

/// An event about the key of `record`, in which all went well.
pub(crate) fn about(kind: EventKind, record: &ProtectorRecord) -> Event<'_> {
    let version = &record.wrapped.key_version;
    Event {
        protector: Some(&record.name),
        provider: Some(&record.provider),
        key: Some(&record.key_id),
        key_version: (!version.is_empty()).then_some(version),
        ..Event::new(kind)
    }
}

/// Whether something on disk is not what the holder of the key wrote there.
pub(crate) fn is_tampering(error: &Error) -> bool {
    matches!(
        error,
        Error::EnvelopeDamaged(_)
            | Error::EnvelopeOutdated { .. }
            | Error::DamagedInUse(_)
            | Error::PageAuthentication { .. }
            | Error::FrameAuthentication { .. }
            | Error::JournalAuthentication { .. }
            | Error::JournalOutdated { .. }
            | Error::LogOutdated
            | Error::LogCut { .. }
    )
}
