//! Forged envelopes and the bounds of their cost; which copy and which record are in force.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::envelope::Envelope;
use super::*;
use crate::provider::{
    Answer, KeyProvider, UnwrapRequest, VersionRequest, WaitsFor, WrapRequest, Wrapped,
};
use crate::suite::SuiteId;

/// Gives the DEKs that it was given, for a cost that the blob says as [`cost_of`] reads it.
#[derive(Default)]
struct Vault {
    deks: Mutex<Vec<Secret>>,
    calls: AtomicUsize,
    refuses: Mutex<Option<ProviderError>>,
    takes: Duration,
    service: bool,
}

/// Blob: which DEK, memory in MiB, iterations, and a byte that tells blobs apart.
fn blob(dek: u8, memory_mib: u16, iterations: u8, salt: u8) -> Vec<u8> {
    [&[dek][..], &memory_mib.to_be_bytes(), &[iterations, salt]].concat()
}

fn cost_of(blob: &[u8]) -> Option<Cost> {
    let memory_kib = u32::from(u16::from_be_bytes([blob[1], blob[2]])) << 10;
    (memory_kib > 0).then(|| Cost { memory_kib, iterations: blob[3].into(), parallelism: 1 })
}

impl Vault {
    fn calls(&self) -> usize {
        self.calls.swap(0, Ordering::SeqCst)
    }

    fn refuse(&self, error: Option<ProviderError>) {
        *self.refuses.lock().unwrap() = error;
    }
}

impl KeyProvider for Vault {
    fn waits_for(&self) -> WaitsFor {
        if self.service { WaitsFor::Service } else { WaitsFor::Nothing }
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { dek, .. } = *request;
        let mut deks = self.deks.lock().unwrap();
        deks.push(dek.duplicate());
        Ok(wrapped(blob(deks.len() as u8, 0, 0, 0)).into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { wrapped, .. } = *request;
        self.calls.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.takes);
        if let Some(error) = &*self.refuses.lock().unwrap() {
            return Err(error.clone());
        }
        let deks = self.deks.lock().unwrap();
        let dek = deks.get(usize::from(wrapped.blob[0]).wrapping_sub(1));
        dek.map(|dek| dek.duplicate().into())
            .ok_or_else(|| ProviderError::WrongKey("not mine".into()))
    }

    fn derivation(&self, _: &str, wrapped: &Wrapped) -> Option<Cost> {
        cost_of(&wrapped.blob)
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.refuses.lock().unwrap().clone().map_or_else(|| Ok("1".into()), Err)
    }
}

fn wrapped(blob: Vec<u8>) -> Wrapped {
    Wrapped::new("1", "vault", blob)
}

fn record(provider: &str, key: &str, name: &str, blob: Vec<u8>) -> ProtectorRecord {
    ProtectorRecord {
        name: name.into(),
        provider: provider.into(),
        key_id: key.into(),
        wrapped: wrapped(blob),
        not_after: 0,
        read_only: false,
    }
}

/// Providers `v0` to `v7`, one vault behind all.
fn place(vault: Vault) -> (Protectors, Arc<Vault>) {
    let (mut protectors, vault) = (Protectors::default(), Arc::new(vault));
    for number in 0..8 {
        protectors.add(&format!("v{number}"), vault.clone());
    }
    (protectors, vault)
}

fn database(protectors: &Protectors) -> (Arc<Keyring>, Envelope) {
    Keyring::create(protectors, Some("v0:key"), SuiteId::Aes256Gcm, 1).unwrap()
}

fn copy(
    keyring: &Keyring,
    envelope: &Envelope,
    generation: u64,
    change: &[ProtectorRecord],
) -> Unverified {
    let envelope = Envelope { generation, protectors: change.to_vec(), ..envelope.clone() };
    Unverified::decode(&keyring.encode(&envelope).unwrap()).unwrap()
}

fn open(
    protectors: &Protectors,
    wanted: Option<&str>,
    copies: &[Unverified],
) -> Result<Opened, Error> {
    Opening::new(protectors, wanted, None).open(copies)
}

/// Each opening ends after a number of calls that the budget bounds, and says what it did not try.
#[test]
fn made_up_envelopes_cost_a_bounded_time() {
    type Records = fn(u8) -> Vec<ProtectorRecord>;
    const GIB: u16 = 1024;
    // The records of the file, the protector that the caller names, calls, and words of the error.
    let rows: [(&str, Records, Option<&str>, usize, &str); 9] = [
        (
            "eight of one provider at the highest cost, others in the other copy",
            |copy| {
                (0..8)
                    .map(|n| record("v0", "k", &n.to_string(), blob(99, GIB, 4, n + 8 * copy)))
                    .collect()
            },
            None,
            1,
            "not tried: 1 (one of a provider is), 2 (one",
        ),
        (
            "eight of one provider, cheap",
            |copy| {
                (0..8)
                    .map(|n| record("v0", "k", &n.to_string(), blob(99, 64, 3, n + 8 * copy)))
                    .collect()
            },
            None,
            2,
            "not tried: 1 (one of a provider is)",
        ),
        (
            "the same in both copies",
            |_| (0..8).map(|n| record("v0", "k", &n.to_string(), blob(99, 64, 3, n))).collect(),
            None,
            1,
            "names the one to try",
        ),
        (
            "one of each of eight providers",
            |copy| {
                let one =
                    |n: u8| record(&format!("v{n}"), "k", &n.to_string(), blob(99, GIB, 1, copy));
                (0..8).map(one).collect()
            },
            None,
            4,
            "not tried: 4 (needs 1048576 KiB, 1 iterations, 1 lanes; raise [access] derivation",
        ),
        (
            "eight of one name's key, and it is named",
            |copy| {
                (0..8)
                    .map(|n| record("v0", "k", &n.to_string(), blob(99, GIB, 1, n + 8 * copy)))
                    .collect()
            },
            Some("v0:k"),
            4,
            "raise [access] derivation in config.toml",
        ),
        (
            "one of them is named",
            |_| (0..8).map(|n| record("v0", "k", &n.to_string(), blob(99, GIB, 1, n))).collect(),
            Some("5"),
            1,
            "not mine",
        ),
        (
            "more memory than is allowed",
            |_| vec![record("v0", "k", "0", blob(99, GIB + 1, 1, 0))],
            None,
            0,
            "every protector exceeds the derivation budget; not tried: 0",
        ),
        (
            "the most that can be said",
            |copy| {
                (0..8)
                    .map(|n| record("v0", "k", &n.to_string(), blob(99, u16::MAX, 255, n + copy)))
                    .collect()
            },
            None,
            0,
            "not tried: 0 (needs",
        ),
        (
            "names that a terminal would obey",
            |_| vec![record("v0", "k", "\u{1b}[2J", blob(99, u16::MAX, 255, 0))],
            None,
            0,
            "not tried: \\u{1b}[2J",
        ),
    ];
    for (what, records, wanted, calls, words) in rows {
        let (protectors, vault) = place(Vault::default());
        let (keyring, envelope) = database(&protectors);
        vault.calls();
        let copies = [1_u8, 0].map(|n| copy(&keyring, &envelope, 2 + u64::from(n), &records(n)));
        drop(keyring);
        let error = open(&protectors, wanted, &copies).map(|_| ()).unwrap_err().to_string();
        assert_eq!(vault.calls(), calls, "{what}: {error}");
        assert!(error.contains(words), "{what}: {error}");
    }
}

/// A smaller budget forbids what the default allows, and a larger one allows what it forbids.
#[test]
fn the_budget_is_the_callers() {
    for (memory_kib, work_kib, cost, opens) in [
        (1 << 20, 4 << 20, (1024, 4), true),
        (1 << 20, (4 << 20) - 1, (1024, 4), false),
        ((1 << 20) - 1, 4 << 20, (1024, 4), false),
        (64 << 10, 192 << 10, (64, 3), true),
        (64 << 10, (192 << 10) - 1, (64, 3), false),
        (8, 8, (0, 0), true),
    ] {
        let (mut protectors, _) = place(Vault::default());
        let (keyring, envelope) = database(&protectors);
        let records = [record("v0", "key", "a", blob(1, cost.0, cost.1, 0))];
        let copies = [copy(&keyring, &envelope, 2, &records)];
        drop(keyring);
        protectors.settings_mut().access.derivation =
            crate::settings::Derivation { memory_kib, work_kib };
        let found = open(&protectors, None, &copies);
        assert_eq!(found.is_ok(), opens, "{memory_kib} KiB, {work_kib} KiB: {cost:?}");
    }
}

/// Services that do not answer, in both copies: they are waited for as long as is allowed.
#[test]
fn services_are_waited_for_within_the_limit() {
    let vault = Vault { service: true, takes: Duration::from_millis(20), ..Vault::default() };
    let (mut protectors, vault) = place(vault);
    let (keyring, envelope) = database(&protectors);
    vault.calls();
    vault.refuse(Some(ProviderError::Unreachable("down".into())));
    protectors.settings_mut().access.open_time_out = Duration::from_millis(50);
    protectors.settings_mut().access.retry_delay = Duration::ZERO;
    let records = |copy: u8| -> Vec<ProtectorRecord> {
        (0..8).map(|n| record("v0", "k", &n.to_string(), blob(1, 0, 0, n + 8 * copy))).collect()
    };
    let copies = [1_u8, 0].map(|n| copy(&keyring, &envelope, 2 + u64::from(n), &records(n)));
    drop(keyring);
    let started = Instant::now();
    let error = open(&protectors, None, &copies).map(|_| ()).unwrap_err().to_string();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!((1..=3).contains(&vault.calls()), "{error}");
    assert!(error.contains("(no time was left of 50ms)"), "{error}");
}

/// A pause that would last longer than what is left of an opening is not begun; nor is one of any
/// other call.
#[test]
fn pauses_count_as_waiting() {
    for (pause, calls) in [(Duration::ZERO, 3), (Duration::from_secs(3600), 1)] {
        let (mut protectors, vault) = place(Vault { service: true, ..Vault::default() });
        let (keyring, envelope) = database(&protectors);
        let records = [record("v0", "k", "a", blob(1, 0, 0, 0))];
        let copies = [copy(&keyring, &envelope, 2, &records)];
        drop(keyring);
        protectors.settings_mut().access.retry_delay = pause;
        protectors.settings_mut().access.open_time_out = Duration::from_secs(4);
        vault.refuse(Some(ProviderError::Unreachable("down".into())));
        vault.calls();
        assert!(open(&protectors, None, &copies).is_err());
        assert_eq!(vault.calls(), calls, "opening, {pause:?}");
        assert!(protectors.newest_version(&records[0]).is_err());
        assert_eq!(vault.calls(), calls, "the newest version, {pause:?}");
    }
}

/// Keys that are in the process serve the record that gave them, and no other.
#[test]
fn keys_serve_the_very_record_that_gave_them() {
    let given = || record("v0", "key", "a", blob(1, 0, 0, 0));
    type Change = fn(ProtectorRecord) -> ProtectorRecord;
    let rows: [(&str, Change, bool); 8] = [
        ("the same", |r| r, false),
        ("under another name", |r| ProtectorRecord { name: "b".into(), ..r }, false),
        ("with an end", |r| ProtectorRecord { not_after: u64::MAX, ..r }, false),
        ("of another provider", |r| ProtectorRecord { provider: "v1".into(), ..r }, true),
        ("of another key", |r| ProtectorRecord { key_id: "k2".into(), ..r }, true),
        (
            "of another version",
            |mut r| {
                r.wrapped.key_version = "2".into();
                r
            },
            true,
        ),
        (
            "of another mechanism",
            |mut r| {
                r.wrapped.mechanism = "safe".into();
                r
            },
            true,
        ),
        (
            "of other bytes",
            |mut r| {
                r.wrapped.blob = blob(1, 0, 0, 1);
                r
            },
            true,
        ),
    ];
    for (what, change, asks) in rows {
        let (protectors, vault) = place(Vault::default());
        let (keyring, envelope) = database(&protectors);
        let first = open(&protectors, None, &[copy(&keyring, &envelope, 2, &[given()])]).unwrap();
        vault.calls();
        let other = copy(&keyring, &envelope, 2, &[change(given())]);
        drop(keyring);
        let found = open(&protectors, None, std::slice::from_ref(&other)).unwrap();
        assert!(Arc::ptr_eq(&found.keyring, &first.keyring), "{what}");
        assert_eq!(vault.calls(), usize::from(asks), "{what}");
        drop(found);
        // A copy of the file whose protector is disabled stays shut while the database is open.
        vault.refuse(Some(ProviderError::Denied("disabled".into())));
        let known = change(given()).is_same_wrap(&given());
        first.keyring.took_back(&change(given()));
        let refused = open(&protectors, None, std::slice::from_ref(&other));
        assert!(matches!(refused, Err(Error::KeyDisabled(_))), "{what}, {known}");
    }
}

/// The newest copy that the key authenticates is in force; damage to it leaves the older one.
#[test]
fn the_newer_copy_decides_who_opens() {
    let (old, new) = (
        record("v0", "old", "old", blob(1, 0, 0, 0)),
        record("v0", "new", "new", blob(1, 0, 0, 1)),
    );
    let both = [old.clone(), new.clone()];
    // Newer copy, older copy, through whom, whether it opens.
    let rows: [(&str, &[ProtectorRecord], &[ProtectorRecord], &str, bool); 7] = [
        ("removed, as the rest", &both[1..], &both, "new", true),
        ("removed, as the removed", &both[1..], &both, "old", false),
        ("added, as the added", &both, &both[..1], "new", true),
        ("added, as the first", &both, &both[..1], "old", true),
        ("replaced, as the new", &both[1..], &both[..1], "new", true),
        ("replaced, as the old", &both[1..], &both[..1], "old", false),
        ("the same", &both, &both, "old", true),
    ];
    for (what, newer, older, wanted, opens) in rows {
        for cached in [false, true] {
            let (protectors, _) = place(Vault::default());
            let (keyring, envelope) = database(&protectors);
            let copies = [copy(&keyring, &envelope, 3, newer), copy(&keyring, &envelope, 2, older)];
            let held = cached.then(|| open(&protectors, Some(wanted), &copies[1..]));
            drop(keyring);
            let found = open(&protectors, Some(wanted), &copies);
            assert_eq!(found.is_ok(), opens, "{what}: cached {cached}: {:?}", found.err());
            // The write of the newer copy was torn: the older one is all there is.
            let torn = [torn(&envelope, newer), copies[1].clone()];
            let found = open(&protectors, Some(wanted), &torn);
            let there = older.iter().any(|record| record.name == wanted);
            assert_eq!(found.is_ok(), there, "{what}, torn: {:?}", found.err());
            drop(held);
        }
    }
}

/// A copy of generation 3 whose MAC does not fit.
fn torn(envelope: &Envelope, protectors: &[ProtectorRecord]) -> Unverified {
    let other = Envelope { generation: 3, protectors: protectors.to_vec(), ..envelope.clone() };
    Unverified::decode(&other.encode(&Secret::random().unwrap()).unwrap()).unwrap()
}

/// An attacker who can wrap any key, as with a public key, cannot take another database's file id.
#[test]
fn another_key_does_not_pass_for_a_database() {
    let (protectors, vault) = place(Vault::default());
    let (keyring, envelope) = database(&protectors);
    let genuine = copy(&keyring, &envelope, 1, &envelope.protectors);
    let id = FileId(envelope.file_id);
    let opened = Opening::new(&protectors, None, Some(id)).open(std::slice::from_ref(&genuine));
    assert!(opened.is_ok());
    drop((opened, keyring));

    for (what, version, same_id) in
        [("own id", 1, false), ("the id taken over", 1, true), ("and a later version", 2, true)]
    {
        let dek = Secret::random().unwrap();
        vault.deks.lock().unwrap().push(dek.duplicate());
        let own = vault.deks.lock().unwrap().len() as u8;
        let file_id = if same_id { id.0 } else { FileId::of(&dek).0 };
        let attacker =
            Keyring::new(file_id, Dek { version, suite: SuiteId::Aes256Gcm, key: dek }, Vec::new());
        let mut made_up = Envelope { file_id, ..envelope.clone() };
        made_up.current.version = version;
        let made_up = copy(&attacker, &made_up, 9, &[record("v0", "key", "a", blob(own, 0, 0, 0))]);
        drop(attacker);
        let pinned = Opening::new(&protectors, None, Some(id)).open(std::slice::from_ref(&made_up));
        match pinned.map(|_| ()) {
            Err(Error::WrongFile { found, expected }) => {
                assert!(!same_id && expected == id.to_string(), "{what}: {found}");
            }
            Err(Error::EnvelopeDamaged(words)) => {
                assert!(same_id && version == 1, "{what}: {words}")
            }
            Err(Error::Unsupported(words)) => assert_eq!(version, 2, "{what}: {words}"),
            other => panic!("{what}: {other:?}"),
        }
        // A pin of the protector says as much as one of the file.
        let mut pins = crate::settings::identity::Pins::default();
        pins.protectors.insert("v0:key".into(), vec![id]);
        let mut pinned = protectors.clone();
        pinned.settings_mut().pins = pins;
        assert!(open(&pinned, None, std::slice::from_ref(&made_up)).is_err(), "{what}, pinned");
        // Without a pin, a database of the attacker's own is a genuine one: documented. One with
        // the id of another database is none, and does not shut that one out.
        let without = open(&protectors, None, std::slice::from_ref(&made_up));
        assert_eq!(without.is_ok(), !same_id, "{what}, without a pin");
        let beside = open(&protectors, None, std::slice::from_ref(&genuine)).map(|_| ());
        assert!(beside.is_ok(), "{what}: shut out by what came first: {beside:?}");
        drop(without);
        let held = open(&protectors, None, std::slice::from_ref(&genuine)).unwrap();
        for locked in [false, true] {
            if locked {
                held.keyring.lock(super::super::access::RevokeReason::Request);
            }
            let refused = open(&protectors, None, std::slice::from_ref(&made_up)).map(|_| ());
            assert_eq!(refused.is_err(), same_id, "{what}, locked: {locked}");
        }
        let again = open(&protectors, None, std::slice::from_ref(&genuine)).unwrap();
        assert!(Arc::ptr_eq(&again.keyring, &held.keyring), "{what}");
    }
}

#[test]
fn a_policy_and_pins_hold_on_opening() {
    let (mut protectors, vault) = place(Vault::default());
    let (keyring, envelope) = database(&protectors);
    let id = FileId(envelope.file_id);
    let records =
        [record("v0", "key", "a", blob(1, 0, 0, 0)), record("v1", "key", "b", blob(1, 0, 0, 1))];
    let copies = [copy(&keyring, &envelope, 2, &records)];
    let only_first = [copy(&keyring, &envelope, 2, &records[..1])];
    drop(keyring);
    // Also where another registration of the process has it open.
    for held in [None, open(&protectors, Some("a"), &copies).ok()] {
        let mut strict = protectors.clone();
        strict.settings_mut().policy.allowed_providers = Some(vec!["v1".to_owned()]);
        assert_eq!(open(&strict, None, &copies).unwrap().protector_name, "b");
        vault.calls();
        let refused = open(&strict, None, &only_first).map(|_| ()).unwrap_err();
        assert!(matches!(&refused, Error::KeyDisabled(_)), "{refused}");
        assert!(
            refused.to_string().contains("no protectors of provider v0, only of v1"),
            "{refused}"
        );
        assert_eq!(vault.calls(), 0, "a forbidden provider was asked");
        drop(held);
    }
    let pins = |name: &str, ids: &[FileId]| {
        let mut pins = crate::settings::identity::Pins::default();
        pins.protectors.insert(name.into(), ids.to_vec());
        pins
    };
    let other = FileId([9; 16]);
    for (name, ids, opens) in [
        ("v0:key", &[id][..], true),
        ("v0:key", &[other, id], true),
        ("v0:other", &[other], true),
        ("v0:key", &[other], false),
        ("v0:*", &[other], false),
        ("v0:*", &[id], true),
        ("v1:*", &[other], true),
        ("v0:key", &[], false),
    ] {
        protectors.settings_mut().pins = pins(name, ids);
        match open(&protectors, None, &only_first) {
            Ok(_) => assert!(opens, "{name}: {ids:?}"),
            Err(Error::WrongFile { found, .. }) => {
                assert!(!opens && found == id.to_string(), "{name}: {ids:?}");
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
    protectors.settings_mut().pins = pins("v0:key", &[other]);
    assert_eq!(
        open(&protectors, None, &copies).unwrap().protector_name,
        "b",
        "the other one is free"
    );
    let new = Keyring::create(&protectors, Some("v0:key"), SuiteId::Aes256Gcm, 1).map(|_| ());
    assert!(matches!(new, Err(Error::WrongFile { .. })), "{new:?}");
}

/// The rights of a connection are those that the first record gives which answers, whatever others
/// of the process were opened through.
#[test]
fn what_is_open_already_does_not_change_the_rights() {
    let records = |rights: &[bool]| -> Vec<ProtectorRecord> {
        let one = |(n, read_only): (usize, &bool)| {
            let (provider, name) = (format!("v{n}"), n.to_string());
            let wrap = record(&provider, "key", &name, blob(1, 0, 0, n as u8));
            ProtectorRecord { read_only: *read_only, ..wrap }
        };
        rights.iter().enumerate().map(one).collect()
    };
    // Which records may only read, through which another connection is open, calls.
    let rows: [(&[bool], &str, usize); 6] = [
        (&[false, true], "1", 1),
        (&[false, true], "0", 0),
        (&[true, false], "1", 1),
        (&[false, false], "1", 0),
        (&[true, true], "1", 0),
        (&[false, true, false], "2", 1),
    ];
    for (rights, held, calls) in rows {
        let (protectors, vault) = place(Vault::default());
        let (keyring, envelope) = database(&protectors);
        let copies = [copy(&keyring, &envelope, 2, &records(rights))];
        drop(keyring);
        let may_only_read = |opened: &Opened| {
            let mut all = opened.envelope.protectors.iter();
            all.any(|record| record.name == opened.protector_name && record.read_only)
        };
        let alone = may_only_read(&open(&protectors, None, &copies).unwrap());
        let _other = open(&protectors, Some(held), &copies).unwrap();
        vault.calls();
        let beside = open(&protectors, None, &copies).unwrap();
        assert_eq!(may_only_read(&beside), alone, "{rights:?} beside {held}");
        assert_eq!(vault.calls(), calls, "{rights:?} beside {held}");
    }
    // While the first one is out of reach, the one that is known serves, and no longer than that.
    let (protectors, vault) = place(Vault::default());
    let (keyring, envelope) = database(&protectors);
    let copies = [copy(&keyring, &envelope, 2, &records(&[false, true]))];
    drop(keyring);
    let _other = open(&protectors, Some("1"), &copies).unwrap();
    vault.refuse(Some(ProviderError::Unreachable("down".into())));
    assert_eq!(open(&protectors, None, &copies).unwrap().protector_name, "1");
    vault.refuse(None);
    assert_eq!(open(&protectors, None, &copies).unwrap().protector_name, "0");
}

/// An attacker may have chosen the names: a terminal must not obey them.
#[test]
fn names_are_escaped() {
    const NAME: &str = "\u{1b}[2J";
    let (protectors, vault) = place(Vault::default());
    let (keyring, envelope) = database(&protectors);
    let named = |name: &str, salt| record("v0", "key", name, blob(1, 0, 0, salt));
    let ended = ProtectorRecord { not_after: 1, ..named(NAME, 0) };
    let other = record("v0", "key", NAME, blob(2, 0, 0, 0));
    vault.deks.lock().unwrap().push(Secret::random().unwrap());
    let one = |change: &[ProtectorRecord]| copy(&keyring, &envelope, 2, change);
    let newer = copy(&keyring, &envelope, 3, &[named(NAME, 1)]);
    let older = record("v1", "key", "\u{7}", blob(1, 0, 0, 2));
    let rows = [
        ("not wrapped for", Some("v7:x"), vec![one(&[named(NAME, 0)])]),
        ("ended", None, vec![one(&[ended])]),
        ("replaced", Some("v1:key"), vec![newer, one(&[older])]),
        ("another key", None, vec![one(&[other])]),
    ];
    for (what, wanted, copies) in rows {
        let error = open(&protectors, wanted, &copies).map(|_| ()).unwrap_err().to_string();
        assert!(!error.chars().any(char::is_control), "{what}: {error:?}");
    }
}
