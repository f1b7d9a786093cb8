//! The two copies of the envelope: changes that are cut off between them, and looks that meet a
//! change.

use std::cell::{Cell, RefCell};

use super::faulty::{Call, Fault, Faults, Faulty};
use super::*;
use crate::error::Error;
use crate::io::memory::Memory;
use crate::key::envelope::{self, COPY_LEN, ENVELOPE_LEN, REGION_LEN};
use crate::key::protector::Protectors;

const SECTOR: usize = 512;

/// Counts writes and syncs; from number `dies` on nothing reaches the disk, and `torn` says how
/// many sectors of the write at that number do. Then all calls fail.
struct Dies {
    dies: Option<usize>,
    torn: usize,
    calls: Cell<usize>,
}

type Failing = Faulty<Dies>;

impl Failing {
    fn new(bytes: Vec<u8>, dies: Option<usize>, torn: usize) -> Self {
        let faults = Dies { dies, torn, calls: Cell::new(0) };
        Self { base: Memory(RefCell::new(bytes)), faults }
    }
}

impl Faults for Dies {
    fn before(&self, _: &Memory, call: Call<'_>) -> Option<Fault> {
        if !matches!(call, Call::Write(..) | Call::Sync) {
            return None;
        }
        let number = self.calls.replace(self.calls.get() + 1);
        let dies = self.dies.filter(|dies| number >= *dies)?;
        let sectors = if number == dies { self.torn } else { 0 };
        Some(Fault { written: sectors * SECTOR, ..Fault::IO })
    }
}

fn as_party(key: &str) -> Setup {
    let mut setup = setup();
    setup.protectors.settings_mut().protector = Some(format!("open:{key}"));
    setup
}

fn open(base: &impl Storage, key: &str) -> Result<Main> {
    Main::open(base, as_party(key))
}

/// The protector `open:key` as another one.
fn renamed(record: &ProtectorRecord, key: &str) -> ProtectorRecord {
    let mut new = record.clone();
    (new.name, new.key_id) = (format!("open:{key}"), key.into());
    new
}

/// A database with the protectors `open:key` and `open:two`.
fn with_two() -> Vec<u8> {
    let (base, mut db) = created(1024);
    db.before_commit(&base).unwrap();
    db.session_mut()
        .unwrap()
        .change_envelope(&base, |envelope| {
            let new = renamed(&envelope.protectors[0], "two");
            envelope.protectors.push(new);
            Ok(())
        })
        .unwrap();
    drop(db);
    base.0.into_inner()
}

type Change = fn(&mut Vec<ProtectorRecord>);

/// A change of the protectors `key` and `two`, and the keys that open afterwards.
const CHANGES: [(&str, Change, [&str; 2]); 3] = [
    ("add", |all| all.push(renamed(&all[0], "three")), ["key", "three"]),
    ("remove", |all| _ = all.remove(1), ["key", "key"]),
    ("replace", |all| all[1] = renamed(&all[0], "three"), ["key", "three"]),
];

fn names(db: &Main) -> Vec<String> {
    db.envelope().unwrap().protectors.iter().map(|record| record.key_id.clone()).collect()
}

fn has(bytes: &[u8], key: &str) -> bool {
    let name = format!("open:{key}");
    bytes[..ENVELOPE_LEN].windows(name.len()).any(|window| window == name.as_bytes())
}

fn are_equal(bytes: &[u8]) -> bool {
    envelope::copies_are_equal(bytes)
}

fn change(db: &mut Main, base: &impl Storage, change: Change) -> Result<()> {
    db.session_mut().unwrap().change_envelope(base, |envelope| {
        change(&mut envelope.protectors);
        Ok(())
    })
}

/// A change is interrupted at each write and sync, each write torn behind each sector. Then either
/// the old or the new set of keys opens the database; an opening for writing makes the copies
/// equal, and may be interrupted, too; one for reading changes nothing.
#[test]
fn a_change_that_is_cut_off_is_old_or_new_and_mended() {
    let before = with_two();
    let mut images = 0;
    for (what, work, after) in CHANGES {
        let old = ["key", "two"];
        for call in 0..4 {
            for torn in 0..=COPY_LEN / SECTOR {
                let at = format!("{what}, call {call}, {torn} sectors");
                let base = Failing::new(before.clone(), Some(call), torn);
                let mut db = open(&base, "key").unwrap();
                let done = change(&mut db, &base, work);
                assert!(call > 1 || done.is_err(), "{at}");
                assert!(done.is_err() || db.session().unwrap().copies_differ(), "{at}");
                drop(db);
                let image = base.bytes();
                let owner = open(&Memory(RefCell::new(image.clone())), "key").unwrap();
                let seen = names(&owner);
                drop(owner);
                let in_force = if seen == old { old } else { after };
                assert!(
                    seen == old || after.iter().all(|key| seen.contains(&(*key).into())),
                    "{at}"
                );
                for party in ["key", "two", "three"] {
                    let base = Failing::new(image.clone(), None, 0);
                    let setup = Setup { read_only: true, ..as_party(party) };
                    let opened = Main::open(&base, setup);
                    let expected = in_force.contains(&party) || seen.contains(&party.to_owned());
                    assert_eq!(opened.is_ok(), expected, "{at}: {party}: {:?}", opened.err());
                    if let Ok(db) = opened {
                        assert!(!db.session().unwrap().wants_mending(), "{at}: {party} only reads");
                        assert!(matches!(
                            db.session().unwrap().check_writable(),
                            Err(Error::ReadOnly { .. })
                        ));
                    }
                    assert_eq!(base.calls.get(), 0, "{at}: {party}");
                }
                // The mending is cut off in its turn, then done.
                for again in 0..3 {
                    images += 1;
                    let dies = [Some(0), Some(1), None][again];
                    let base = Failing::new(image.clone(), dies, torn);
                    let mut db = open(&base, "key").unwrap();
                    assert_eq!(db.session().unwrap().wants_mending(), !are_equal(&image), "{at}");
                    let differed = db.session().unwrap().wants_mending();
                    let mended = if differed { db.mend(&base) } else { Ok(()) };
                    assert_eq!(mended.is_err(), differed && dies.is_some(), "{at}: {mended:?}");
                    drop(db);
                    let base = Memory(RefCell::new(base.bytes()));
                    let mut db = open(&base, "key").unwrap();
                    assert_eq!(names(&db), seen, "{at}, then {dies:?}");
                    db.mend(&base).unwrap();
                    assert!(
                        are_equal(&base.0.borrow()) && !db.session().unwrap().wants_mending(),
                        "{at}"
                    );
                    for party in ["key", "two", "three"] {
                        let listed = seen.contains(&party.to_owned());
                        assert_eq!(has(&base.0.borrow(), party), listed, "{at}: {party}");
                    }
                    assert_eq!(db.verify_all(&base).unwrap().bad_count, 0);
                }
            }
        }
        // Uncut, nothing of what was removed is left.
        let base = Memory(RefCell::new(before.clone()));
        let mut db = open(&base, "key").unwrap();
        change(&mut db, &base, work).unwrap();
        assert!(are_equal(&base.0.borrow()), "{what}");
        assert_eq!(has(&base.0.borrow(), "two"), what == "add", "{what}");
    }
    assert_eq!(images, 3 * 4 * (COPY_LEN / SECTOR + 1) * 3);
}

/// A change is cut off, and the next one is made by who has not mended anything: nothing of the
/// first is left.
#[test]
fn a_change_after_one_that_was_cut_off_leaves_nothing_of_it() {
    for (what, work, _) in CHANGES {
        for call in 0..4 {
            let base = Failing::new(with_two(), Some(call), 0);
            let mut db = open(&base, "key").unwrap();
            let _ = change(&mut db, &base, work);
            drop(db);
            let base = Memory(RefCell::new(base.bytes()));
            let mut db = open(&base, "key").unwrap();
            db.session_mut()
                .unwrap()
                .change_envelope(&base, |envelope| {
                    envelope.protectors.truncate(1);
                    Ok(())
                })
                .unwrap();
            let bytes = base.0.borrow();
            assert!(are_equal(&bytes) && !db.session().unwrap().copies_differ(), "{what}, {call}");
            assert!(!has(&bytes, "two") && !has(&bytes, "three"), "{what}, {call}");
        }
    }
}

/// The findings of `verify` about the copies: which is damaged, and which is older.
#[test]
fn verify_names_the_copy_that_is_older() {
    let before = with_two();
    let (mut cut, base) = (Vec::new(), Failing::new(before.clone(), Some(2), 0));
    for (_, work, _) in CHANGES {
        let base = Failing::new(before.clone(), Some(2), 0);
        let mut db = open(&base, "key").unwrap();
        let _ = change(&mut db, &base, work);
        cut.push(base.bytes());
    }
    drop(base);
    let verified = |bytes: Vec<u8>| {
        let base = Memory(RefCell::new(bytes));
        let mut db = open(&base, "key").unwrap();
        let found = db.verify_all(&base).unwrap();
        (found.bad_copies, found.stale_copies)
    };
    assert_eq!(verified(before.clone()), (vec![], vec![]));
    for mut bytes in cut {
        let (bad, stale) = verified(bytes.clone());
        assert!(bad.is_empty() && stale.len() == 1, "{stale:?}");
        // The other way round, too.
        let (a, b) = bytes.split_at_mut(REGION_LEN);
        a[..COPY_LEN].swap_with_slice(&mut b[..COPY_LEN]);
        let other = if stale == ['A'] { 'B' } else { 'A' };
        assert_eq!(verified(bytes), (vec![], vec![other]));
    }
    for (at, name) in [(100, 'A'), (REGION_LEN + 100, 'B')] {
        let mut bytes = before.clone();
        bytes[at] ^= 1;
        assert_eq!(verified(bytes), (vec![name], vec![]));
    }
}

/// Reads of the beginning of the file get one of these after the other, the last one for good.
struct Changing {
    states: Vec<Vec<u8>>,
    reads: Cell<usize>,
}

impl Storage for Changing {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
        let number = if at == 0 { self.reads.replace(self.reads.get() + 1) } else { usize::MAX };
        let state = &self.states[number.min(self.states.len() - 1)];
        Memory(RefCell::new(state.clone())).read(buf, at)
    }

    fn write(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Error::Base(8))
    }

    fn truncate(&self, _: u64) -> Result<()> {
        Err(Error::Base(8))
    }

    fn size(&self) -> Result<u64> {
        Ok(self.states[0].len() as u64)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// Another process changes the protectors while this one reads the copies.
#[test]
fn a_look_that_meets_a_change_looks_again() {
    let before = with_two();
    let base = Memory(RefCell::new(before.clone()));
    let mut db = open(&base, "key").unwrap();
    change(&mut db, &base, |all| all[0] = renamed(&all[0], "new")).unwrap();
    change(&mut db, &base, |all| all[1] = renamed(&all[1], "newer")).unwrap();
    drop(db);
    let after = base.0.into_inner();
    let mix = |a: &[u8], b: &[u8], from: usize| {
        let mut mixed = a.to_vec();
        mixed[from..COPY_LEN].copy_from_slice(&b[from..COPY_LEN]);
        let second = REGION_LEN + from..REGION_LEN + COPY_LEN;
        mixed[second.clone()].copy_from_slice(&b[second]);
        mixed
    };
    let key = |key: &str| key.to_owned();
    for from in [32, 88, 150, 256] {
        let (torn, other) = (mix(&before, &after, from), mix(&after, &before, from));
        for (what, states, party, opens) in [
            ("both torn", vec![torn.clone(), after.clone()], "new", true),
            ("twice", vec![torn.clone(), other.clone(), after.clone()], "new", true),
            ("without the one who asks", vec![before.clone(), after.clone()], "new", true),
            ("and it is gone", vec![torn.clone(), after.clone()], "key", false),
            ("for good", vec![torn.clone()], "new", false),
        ] {
            let base = Changing { states, reads: Cell::new(0) };
            let opened = open(&base, party);
            assert_eq!(opened.is_ok(), opens, "{what}, from {from}: {:?}", opened.err());
            assert!(base.reads.get() <= 5, "{what}: {} reads", base.reads.get());
            if let Ok(db) = opened {
                assert_eq!(names(&db), [key("new"), key("newer")], "{what}, from {from}");
            }
        }
        // The keys were locked, and are asked for again in the middle of a change.
        let genuine = Changing { states: vec![after.clone()], reads: Cell::new(0) };
        let mut db = open(&genuine, "new").unwrap();
        db.keyring().unwrap().lock(crate::key::access::RevokeReason::Request);
        let base = Changing { states: vec![torn, after.clone()], reads: Cell::new(0) };
        db.begin(&base).unwrap_or_else(|error| panic!("from {from}: {error}"));
    }
}

/// Two copies of one file, whose protectors differ by now, are open in one process and share its
/// keys. When these were locked, the protector of one does not give them back to the other.
#[test]
fn keys_come_back_through_a_protector_of_the_same_envelope() {
    let bytes = with_two();
    let (a, b) = (Memory(RefCell::new(bytes.clone())), Memory(RefCell::new(bytes)));
    let (mut first, mut second) = (open(&a, "key").unwrap(), open(&b, "two").unwrap());
    for (db, base, keep) in [(&mut first, &a, 0), (&mut second, &b, 1)] {
        db.session_mut()
            .unwrap()
            .change_envelope(base, |envelope| {
                envelope.protectors = vec![envelope.protectors[keep].clone()];
                Ok(())
            })
            .unwrap();
    }
    let keyring = Arc::clone(first.keyring().unwrap());
    for round in 0..2 {
        keyring.lock(crate::key::access::RevokeReason::Request);
        first.begin(&a).unwrap();
        // The provider of the other one is asked for its own record.
        second.session_mut().unwrap().set_providers(Protectors::default());
        let refused = second.begin(&b);
        assert!(matches!(refused, Err(Error::Inaccessible { .. })), "round {round}: {refused:?}");
        assert!(second.watch(&b).is_err(), "round {round}");
        first.begin(&a).unwrap();
        second.session_mut().unwrap().set_providers(setup().protectors);
        second.begin(&b).unwrap();
        // The transaction at hand began before they were locked.
        assert!(second.watch(&b).is_err(), "round {round}");
        second.transaction_begins();
        second.watch(&b).unwrap();
    }
}

/// Writes `protectors` into both copies, as another process does.
fn write_as_another(db: &Main, base: &Memory, protectors: &[ProtectorRecord]) -> Envelope {
    let protectors = protectors.to_vec();
    let before = db.envelope().unwrap();
    let envelope = Envelope { protectors, generation: before.generation + 1, ..before.clone() };
    let copy = db.keyring().unwrap().encode(&envelope).unwrap();
    base.write(&copy, 0).unwrap();
    base.write(&copy, REGION_LEN as u64).unwrap();
    envelope
}

/// The protector that a connection came through is removed, limited or ends, and the keys are
/// confirmed: from then on it has the rights that the envelope gives it.
#[test]
fn rights_are_those_of_the_protectors_in_force() {
    fn rewrap(record: &mut ProtectorRecord) {
        record.wrapped.key_version.push('a');
    }
    let rows: [(&str, Change, &str, bool); 9] = [
        ("nothing", |_| (), "key", false),
        ("removed", |all| _ = all.remove(0), "two", false),
        ("removed, the rest may read", |all| limit(all, 0, |all| _ = all.remove(0)), "two", true),
        ("removed and added to read", |all| limit(all, 0, |all| rewrap(&mut all[0])), "key", true),
        ("limited", |all| all[0].read_only = true, "key", true),
        ("ended", |all| all[0].not_after = 1, "two", false),
        ("ended, the rest may read", |all| limit(all, 1, |all| all[0].not_after = 1), "two", true),
        ("wrapped anew", |all| rewrap(&mut all[0]), "key", false),
        ("another one limited", |all| all[1].read_only = true, "key", false),
    ];
    fn limit(all: &mut Vec<ProtectorRecord>, number: usize, change: Change) {
        change(all);
        all[number].read_only = true;
    }
    for (what, change, through, read_only) in rows {
        let base = Memory(RefCell::new(with_two()));
        let mut db = open(&base, "key").unwrap();
        let mut protectors = db.envelope().unwrap().protectors.clone();
        change(&mut protectors);
        let envelope = write_as_another(&db, &base, &protectors);
        db.begin(&base).unwrap();
        assert_eq!(
            (db.session().unwrap().protector_name(), db.session().unwrap().is_read_only()),
            ("open:key", false),
            "{what}: before"
        );
        db.keyring().unwrap().revalidate(&db.setup.protectors, &envelope);
        db.begin(&base).unwrap();
        let through = format!("open:{through}");
        assert_eq!(
            (db.session().unwrap().protector_name(), db.session().unwrap().is_read_only()),
            (&*through, read_only),
            "{what}"
        );
        assert_eq!(db.session().unwrap().check_writable().is_err(), read_only, "{what}");
    }
    // Rows are still read beside an envelope of which neither copy is whole.
    let base = Memory(RefCell::new(with_two()));
    let mut db = open(&base, "key").unwrap();
    let envelope = db.envelope().unwrap().clone();
    db.keyring().unwrap().revalidate(&db.setup.protectors, &envelope);
    base.0.borrow_mut()[..ENVELOPE_LEN].fill(1);
    db.begin(&base).unwrap();
}

/// One sync fails, when `seen` is what others can read.
struct OneSyncFails {
    at: usize,
    syncs: Cell<usize>,
    seen: RefCell<Vec<u8>>,
}

impl Faults for OneSyncFails {
    fn before(&self, base: &Memory, call: Call<'_>) -> Option<Fault> {
        let number = match call {
            Call::Sync => self.syncs.replace(self.syncs.get() + 1),
            _ => return None,
        };
        (number == self.at).then(|| {
            self.seen.replace(base.0.borrow().clone());
            Fault::IO
        })
    }
}

/// Others may have seen a change that could not be synced and was undone. Neither then nor after
/// the next change do they take the envelope for a replay.
#[test]
fn an_undone_change_is_not_taken_for_an_older_envelope() {
    for at in [0, 1] {
        for (what, change, _) in CHANGES {
            let faults = OneSyncFails { at, syncs: Cell::default(), seen: RefCell::default() };
            let base = Faulty { base: Memory(RefCell::new(with_two())), faults };
            let (mut db, mut reader) = (open(&base, "key").unwrap(), open(&base, "key").unwrap());
            reader.read(&base, &mut [0; 1024], 0).unwrap();
            let before = names(&db);
            let mut change_with = |base: &Faulty<OneSyncFails>| {
                db.session_mut().unwrap().change_envelope(base, |envelope| {
                    change(&mut envelope.protectors);
                    Ok(())
                })
            };
            let failed = change_with(&base);
            assert!(matches!(failed, Err(Error::Base(10))), "{what}, sync {at}: {failed:?}");
            let seen = Memory(RefCell::new(base.seen.borrow().clone()));
            reader.session_mut().unwrap().refresh_envelope(&seen).unwrap();
            assert_ne!(names(&reader), before, "{what}, sync {at}: it was seen");
            let look = |reader: &mut Main, then: &str| {
                let found = reader.session_mut().unwrap().refresh_envelope(&base).map(|_| ());
                found.unwrap_or_else(|error| panic!("{what}, sync {at}, {then}: {error}"));
                assert!(are_equal(&base.base.0.borrow()), "{what}, sync {at}, {then}");
            };
            look(&mut reader, "undone");
            assert_eq!(names(&reader), before, "{what}, sync {at}");
            change_with(&base).unwrap();
            look(&mut reader, "changed");
        }
    }
}
