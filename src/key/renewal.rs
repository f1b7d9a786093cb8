//! Calls to the providers while a database is open: whether they still give its keys, and whether
//! they have newer key versions. The caller waits for them, so transactions leave it to a thread.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::access::{Refusal, RevokeReason};
use super::cipher::lock;
use super::envelope::{Envelope, ProtectorRecord};
use super::keyring::Keyring;
use super::protector::{Protectors, check_time};
use crate::audit::{Event, EventKind};
use crate::error::Error;
use crate::process::time::now;
use crate::provider::{ProviderError, WaitsFor};

impl Keyring {
    /// Asks the providers of the protectors in `envelope`, the one in force, whether they still
    /// give these keys, and locks the keyring if they deny it or have not answered for too long.
    /// Those that gave the keys are asked first. A person is never asked: a record of such a
    /// provider counts only if it gave the keys in this process.
    pub(crate) fn revalidate(&self, protectors: &Protectors, envelope: &Envelope) {
        let Ok((current, context)) = self.dek() else { return };
        let mut order: Vec<&ProtectorRecord> = envelope.protectors.iter().collect();
        order.sort_by_key(|record| !self.was_given_by(record));
        let ended = order.iter().find_map(|record| check_time(record).err());
        order.retain(|record| check_time(record).is_ok());
        let personal = |record: &&ProtectorRecord| {
            let provider = protectors.provider_of(record);
            provider.is_some_and(|provider| provider.waits_for() == WaitsFor::Person)
        };
        if order.first().is_some_and(|record| personal(record) && self.was_given_by(record)) {
            return self.confirm();
        }
        order.retain(|record| !personal(record));
        let answer = if order.is_empty() {
            Err(ended.unwrap_or_else(nobody_left))
        } else {
            protectors.unwrap(&order, &context)
        };
        match answer {
            Ok((dek, record)) if dek.is(&current) => {
                self.gave(record);
                self.confirm();
                self.look_for_newer(protectors, envelope);
            }
            Ok((_, record)) => {
                let name = record.name.escape_debug();
                let words = format!("protector {name} returned a different key");
                self.lose(protectors, words.into());
            }
            Err(error) => {
                let silent = !matches!(
                    error,
                    ProviderError::NotHere(_)
                        | ProviderError::Denied(_)
                        | ProviderError::WrongKey(_)
                );
                let reason = Refusal::from(&Error::from(error));
                match silent {
                    true => self.unanswered(protectors, reason),
                    false => self.lose(protectors, reason),
                }
            }
        }
    }

    /// A check without an answer, for `reason`; after the grace period the keys are revoked.
    pub(crate) fn unanswered(&self, protectors: &Protectors, reason: Refusal) {
        if self.access.outage(reason.clone()) {
            self.lose(protectors, reason);
        }
    }

    pub(super) fn lose(&self, protectors: &Protectors, reason: Refusal) {
        protectors.auditor.note(&Event {
            file_id: Some(self.file_id()),
            outcome: Err(reason.words()),
            ..Event::new(EventKind::AccessLost)
        });
        self.lock(RevokeReason::Provider(reason));
    }

    /// Wraps the DEK under newer versions of the protectors' keys, at most once per interval. A
    /// connection writes the records later.
    pub(crate) fn look_for_newer(&self, protectors: &Protectors, envelope: &Envelope) {
        let Some(interval) = protectors.settings.rotation.filter(|_| !envelope.manual_rotation)
        else {
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
            self.gave(&new);
            Some((record.clone(), new))
        });
        self.set_pending(newer.collect());
    }

    /// Leaves records for a connection to put into the envelope.
    pub(crate) fn set_pending(&self, pending: Vec<(ProtectorRecord, ProtectorRecord)>) {
        let mut slot = lock(&self.pending);
        self.is_pending.store(!pending.is_empty(), Ordering::Release);
        *slot = pending;
    }

    /// Takes the records to be put into the envelope.
    pub(crate) fn take_pending(&self) -> Vec<(ProtectorRecord, ProtectorRecord)> {
        if !self.is_pending.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut slot = lock(&self.pending);
        self.is_pending.store(false, Ordering::Release);
        std::mem::take(&mut *slot)
    }
}

/// The error: no protector is left that gave the keys or can be asked in the background.
fn nobody_left() -> ProviderError {
    ProviderError::NotHere("the protector in use was removed; the others require a person".into())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::key::access::LeaseState;
    use crate::provider::{
        Answer, KeyProvider, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
    };
    use crate::secret::Secret;
    use crate::suite::SuiteId;

    /// Hook that runs while the provider is asked.
    type Meanwhile = Box<dyn Fn() -> Result<(), ProviderError> + Send>;

    /// Keeps the one DEK that it was given.
    #[derive(Default)]
    struct Keeper {
        dek: Mutex<Option<Secret>>,
        meanwhile: Mutex<Option<Meanwhile>>,
        asks_person: bool,
    }

    impl KeyProvider for Keeper {
        fn waits_for(&self) -> WaitsFor {
            if self.asks_person { WaitsFor::Person } else { WaitsFor::Nothing }
        }

        fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            let WrapRequest { dek, .. } = *request;
            *lock(&self.dek) = Some(dek.duplicate());
            Ok(Wrapped::new("1", "kept", vec![1]).into())
        }

        fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            if let Some(meanwhile) = &*lock(&self.meanwhile) {
                meanwhile()?;
            }
            let dek = lock(&self.dek);
            dek.as_ref()
                .map(|dek| dek.duplicate().into())
                .ok_or(ProviderError::NotHere("none".into()))
        }

        fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
            Ok("1".into())
        }
    }

    fn database() -> (Arc<Keyring>, Envelope, Protectors, Arc<Keeper>) {
        let (mut protectors, keeper) = (Protectors::default(), Arc::new(Keeper::default()));
        protectors.add("keeper", keeper.clone());
        protectors.settings_mut().access.revalidate = Some(std::time::Duration::ZERO);
        let (keyring, envelope) =
            Keyring::create(&protectors, Some("keeper:key"), SuiteId::Aes256Gcm, 1).unwrap();
        keyring.hold_to(&protectors);
        (keyring, envelope, protectors, keeper)
    }

    #[test]
    fn an_answer_after_a_lock_does_not_hide_it() {
        let (keyring, envelope, protectors, keeper) = database();
        assert_eq!(keyring.lease_state(&protectors, None).unwrap(), LeaseState::Due);
        let locker = Arc::clone(&keyring);
        *lock(&keeper.meanwhile) = Some(Box::new(move || {
            locker.lock(RevokeReason::Request);
            Ok(())
        }));
        keyring.revalidate(&protectors, &envelope);
        assert_eq!(keyring.lease_state(&protectors, None).unwrap(), LeaseState::Locked);
        assert!(matches!(keyring.dek(), Err(Error::Inaccessible { .. })));
    }

    /// Another thread locks between the check for the keys and the note of the consent.
    #[test]
    fn a_lock_beside_a_consent_is_not_forgotten() {
        let (keyring, envelope, protectors, _) = database();
        assert_eq!(keyring.lease_state(&protectors, None).unwrap(), LeaseState::Due);
        let (locker, (done, is_done)) = (Arc::clone(&keyring), std::sync::mpsc::channel());
        *lock(&keyring.access.before_granted) = Some(Box::new(move || {
            std::thread::spawn(move || {
                locker.lock(RevokeReason::Request);
                done.send(()).unwrap();
            });
            // The lock waits for the consent to be noted; without that wait it would be done by
            // now.
            _ = is_done.recv_timeout(std::time::Duration::from_millis(300));
        }));
        keyring.revalidate(&protectors, &envelope);
        while keyring.dek().is_ok() {
            std::thread::yield_now();
        }
        assert_eq!(keyring.lease_state(&protectors, None).unwrap(), LeaseState::Locked);
    }

    /// A provider that is down is no reason to put off asking for keys that were locked meanwhile.
    #[test]
    fn an_outage_after_a_lock_does_not_hide_it() {
        let (keyring, envelope, protectors, keeper) = database();
        assert_eq!(keyring.lease_state(&protectors, None).unwrap(), LeaseState::Due);
        let locker = Arc::clone(&keyring);
        *lock(&keeper.meanwhile) = Some(Box::new(move || {
            locker.lock(RevokeReason::Request);
            Err(ProviderError::Unreachable("down".into()))
        }));
        keyring.revalidate(&protectors, &envelope);
        assert_eq!(keyring.lease_state(&protectors, None).unwrap(), LeaseState::Locked);
    }

    /// Of the policies of connections to one database, the strictest holds, whoever looks.
    #[test]
    fn a_lax_connection_does_not_free_the_others() {
        use std::time::Duration;
        let (now, never) = (Some(Duration::ZERO), None);
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
        for first_strict in [true, false] {
            for (interval, grace) in [(never, day), (Some(hour), day), (now, hour)] {
                let (keyring, envelope, mut protectors, keeper) = database();
                let mut strict = protectors.clone();
                strict.settings_mut().access.grace = Duration::ZERO;
                protectors.settings_mut().access.revalidate = interval;
                protectors.settings_mut().access.grace = grace;
                let both = [&strict, &protectors];
                let order = if first_strict { [0, 1] } else { [1, 0] };
                order.into_iter().for_each(|at| keyring.hold_to(both[at]));
                let what = format!("{interval:?}, {grace:?}, strict first: {first_strict}");
                assert_eq!(
                    keyring.lease_state(&protectors, None).unwrap(),
                    LeaseState::Due,
                    "{what}"
                );
                *lock(&keeper.meanwhile) =
                    Some(Box::new(|| Err(ProviderError::Unreachable("down".into()))));
                keyring.revalidate(&protectors, &envelope);
                assert!(keyring.dek().is_err(), "{what}");
            }
        }
    }

    /// A check that never ends is an outage like another.
    #[test]
    fn a_check_without_an_answer_does_not_keep_the_keys() {
        let (no_time, long) = (std::time::Duration::ZERO, std::time::Duration::from_secs(3600));
        for (grace, time_out, serves) in
            [(no_time, no_time, false), (no_time, long, true), (long, no_time, true)]
        {
            let (keyring, _, mut protectors, _) = database();
            protectors.settings_mut().access.grace = grace;
            protectors.settings_mut().access.open_time_out = time_out;
            keyring.hold_to(&protectors);
            assert_eq!(keyring.lease_state(&protectors, None).unwrap(), LeaseState::Due);
            // Nobody answers; each look is put off a little.
            let end = Instant::now() + std::time::Duration::from_millis(400);
            let mut state = Ok(LeaseState::Good);
            while state.is_ok() && Instant::now() < end {
                std::thread::yield_now();
                state = keyring.lease_state(&protectors, None);
            }
            let what = format!("grace {grace:?}, time {time_out:?}: {state:?}");
            assert_eq!(state.is_ok(), serves, "{what}");
            assert_eq!(keyring.dek().is_ok(), serves, "{what}");
        }
    }

    #[test]
    fn what_the_provider_answers_decides() {
        type Answer = fn() -> ProviderError;
        let rows: [(&str, Answer, bool); 5] = [
            ("denied", || ProviderError::Denied("no".into()), true),
            ("gone", || ProviderError::NotHere("no".into()), true),
            ("another key", || ProviderError::WrongKey("no".into()), true),
            ("down", || ProviderError::Unreachable("no".into()), false),
            ("damaged", || ProviderError::Damaged("no".into()), false),
        ];
        for (what, answer, locks) in rows {
            for grace in [std::time::Duration::ZERO, std::time::Duration::from_secs(3600)] {
                let (keyring, envelope, mut protectors, keeper) = database();
                protectors.settings_mut().access.grace = grace;
                keyring.hold_to(&protectors);
                *lock(&keeper.meanwhile) = Some(Box::new(move || Err(answer())));
                keyring.revalidate(&protectors, &envelope);
                let locked = locks || grace.is_zero();
                assert_eq!(keyring.dek().is_err(), locked, "{what}, grace {grace:?}");
                let outage = keyring.access.outage_reason();
                assert_eq!(outage.is_some(), !locks, "{what}, grace {grace:?}");
            }
        }
    }

    /// Only a protector of the envelope in force counts, and only if it gave the keys in this
    /// process or gives them now. No person is asked.
    #[test]
    fn a_removed_protector_confirms_nothing() {
        type Change = fn(&mut Vec<ProtectorRecord>);
        let rows: [(&str, &str, Change, bool); 9] = [
            ("nothing", "keeper:key", |_| (), true),
            ("nothing", "person:key", |_| (), true),
            ("it was removed", "keeper:key", |all| _ = all.remove(0), false),
            ("it was removed, an other serves", "person:key", |all| _ = all.remove(1), true),
            ("it was removed, none is left", "person:key", |all| all.clear(), false),
            ("it ended", "person:key", |all| all[1].not_after = 1, true),
            ("it ended alone", "person:key", |all| *all = vec![ended(&all[1])], false),
            ("it was wrapped anew", "person:key", |all| *all = vec![anew(&all[1])], false),
            ("it was wrapped anew", "keeper:key", |all| all[0] = anew(&all[0]), true),
        ];
        for (what, through, change, serves) in rows {
            let (keyring, mut envelope, mut protectors, keeper) = database();
            let person = Arc::new(Keeper { asks_person: true, ..Keeper::default() });
            protectors.add("person", person.clone());
            let (dek, context) = keyring.dek().unwrap();
            let record = protectors.wrap(Some("person:key"), &dek, &context).unwrap();
            if through == "person:key" {
                keyring.gave(&record);
                keyring.took_back(&envelope.protectors[0]);
            }
            envelope.protectors.push(record);
            change(&mut envelope.protectors);
            let was_asked = || Err(ProviderError::NotHere("a person was asked".into()));
            *lock(&person.meanwhile) = Some(Box::new(was_asked));
            let before = keyring.confirmations();
            keyring.revalidate(&protectors, &envelope);
            let reason = keyring.access.loss();
            assert_eq!(reason.is_none(), serves, "{through}, {what}: {reason:?}");
            assert_eq!(keyring.confirmations() > before, serves, "{through}, {what}");
            assert!(
                !reason.is_some_and(|reason| reason.words().contains("was asked")),
                "{through}, {what}"
            );
            drop(keeper);
        }
    }

    fn ended(record: &ProtectorRecord) -> ProtectorRecord {
        ProtectorRecord { not_after: 1, ..record.clone() }
    }

    fn anew(record: &ProtectorRecord) -> ProtectorRecord {
        let mut new = record.clone();
        new.wrapped.blob.push(2);
        new
    }
}
