//! Which logs the file admits, whatever a crash leaves of the slots.

use std::cell::RefCell;

use super::faulty::{Call, Faults, Faulty};
use super::*;
use crate::file::wal::Origin;
use crate::key::envelope::COPY_LEN;
use crate::key::envelope::slot::{Fit, StateId};
use crate::page::RESERVE;
use crate::page::{FrameNo, LogId};

const SLOT_LEN: usize = 512;
const PLACES: [usize; 2] = [COPY_LEN, REGION_LEN + COPY_LEN];

/// Keeps the file as of its last sync, and the writes since then.
#[derive(Default)]
struct Unsynced {
    synced: RefCell<Vec<u8>>,
    unsynced: RefCell<Vec<(u64, Vec<u8>)>>,
    syncs: std::cell::Cell<usize>,
}

type Disk = Faulty<Unsynced>;

impl Faults for Unsynced {
    fn after(&self, base: &Memory, call: Call<'_>) {
        match call {
            Call::Write(bytes, at) => self.unsynced.borrow_mut().push((at, bytes.to_vec())),
            Call::Sync => {
                self.syncs.set(self.syncs.get() + 1);
                self.synced.replace(base.0.borrow().clone());
                self.unsynced.borrow_mut().clear();
            }
            _ => {}
        }
    }
}

impl Disk {
    /// A database that was just committed.
    fn new() -> (Self, Main) {
        let (memory, mut db) = created(1024);
        db.before_commit(&memory).unwrap();
        let disk = Self { base: memory, faults: Unsynced::default() };
        disk.sync().unwrap();
        (disk, db)
    }

    /// The effects of a power loss: each write since the sync is complete, missing, or garbage.
    fn images(&self) -> Vec<Vec<u8>> {
        let unsynced = self.unsynced.borrow();
        (0..3_usize.pow(unsynced.len() as u32))
            .map(|choice| {
                let mut image = self.synced.borrow().clone();
                for (number, (at, bytes)) in unsynced.iter().enumerate() {
                    let place = *at as usize..*at as usize + bytes.len();
                    match choice / 3_usize.pow(number as u32) % 3 {
                        0 => {}
                        1 => image[place].copy_from_slice(bytes),
                        _ => image[place].fill(0xa5),
                    }
                }
                image
            })
            .collect()
    }
}

fn admits(db: &Main, image: &[u8], (log, origin): &(LogId, Origin)) -> bool {
    let base = Memory(image.to_vec().into());
    let counters = db.counters_on_disk(&base).unwrap();
    db.fit(&base, log, &origin.state).unwrap() != Fit::No && counters == Some(origin.counters)
}

fn begin(db: &Main, disk: &Disk, number: u8) -> (LogId, Origin) {
    ([number; 16], db.log_origin(disk, None).unwrap())
}

/// The writes of checkpoints of a log, `S` for SQLite's sync: a page, the end, or both again.
const LIVES: [&str; 8] = ["pES", "EpES", "pppES", "pEpES", "ESpES", "pESES", "pESpESpES", "ES"];

#[test]
fn the_log_in_use_is_admitted_whatever_power_loss_leaves() {
    for first in LIVES {
        for second in LIVES {
            let (disk, mut db) = Disk::new();
            let syncs = disk.syncs.get();
            let mut before: Vec<(LogId, Origin)> = Vec::new();
            for (number, life) in [first, second, first, second].into_iter().enumerate() {
                let log = begin(&db, &disk, 1 + number as u8);
                for (step, does) in life.chars().enumerate() {
                    let id = (log.0, log.1.state);
                    match does {
                        'p' => db.checkpoint_writes(&disk, id, FrameNo::FIRST).unwrap(),
                        'E' => db.checkpoint_ends(&disk, id, None).unwrap(),
                        _ => {
                            // SQLite's, after which nothing is unsynced.
                            disk.sync().unwrap();
                            disk.syncs.set(disk.syncs.get() - 1);
                        }
                    }
                    let what = format!("{first}, {second}: log {number}, step {step}");
                    for damaged in PLACES {
                        let mut image = disk.bytes();
                        image[damaged + 20] ^= 1;
                        assert!(admits(&db, &image, &log), "{what}: slot at {damaged} damaged");
                    }
                    for image in disk.images() {
                        assert!(admits(&db, &image, &log), "{what}");
                        // The last one before it is all in the file.
                        let mut older = before.iter().rev().skip(1);
                        assert!(older.all(|old| !admits(&db, &image, old)), "{what}: older");
                        let opened = Main::open(&Memory(image.into()), setup());
                        assert!(opened.is_ok(), "{what}: {:?}", opened.err());
                    }
                }
                before.push(log);
            }
            assert_eq!(disk.syncs.get(), syncs, "{first}, {second}: syncs of our own");
        }
    }
}

#[test]
fn a_backup_admits_no_log_of_a_later_state() {
    let (disk, mut db) = Disk::new();
    let mut backups = vec![(0, disk.bytes())];
    let mut logs = Vec::new();
    for number in 1..5_u8 {
        let log = begin(&db, &disk, number);
        logs.push(log);
        for step in ["page", "end"] {
            let id = (log.0, log.1.state);
            match step {
                "page" => db.checkpoint_writes(&disk, id, FrameNo::FIRST).unwrap(),
                _ => db.checkpoint_ends(&disk, id, None).unwrap(),
            }
            backups.push((number, disk.bytes()));
        }
    }
    for (place, (last, image)) in backups.iter().enumerate() {
        for (log, number) in logs.iter().zip(1..) {
            // Odd places are beside pages of a log that is not all in the file.
            let partly = place % 2 == 1;
            let fits = number == *last || !partly && number == last + 1;
            assert_eq!(admits(&db, image, log), fits, "backup {place}, log {number}");
        }
    }
}

/// Logs are brought to a copy of the file one after another, in other steps than to the file
/// itself.
#[test]
fn the_same_logs_lead_a_copy_to_the_same_states() {
    let (disk, mut db) = Disk::new();
    let copy = Disk::holding(disk.bytes());
    let mut other = Main::open(&copy, setup()).unwrap();
    for number in 1..5_u8 {
        let log = begin(&db, &disk, number);
        let id = (log.0, log.1.state);
        assert!(admits(&other, &copy.base.0.borrow(), &log), "log {number}");
        db.checkpoint_writes(&disk, id, FrameNo::FIRST).unwrap();
        // It goes on after it was brought whole.
        db.checkpoint_ends(&disk, id, Some((FrameNo(3), [number; RESERVE]))).unwrap();
        disk.sync().unwrap();
        db.checkpoint_begins(None, false);
        db.checkpoint_writes(&disk, id, FrameNo(5)).unwrap();
        let last = Some((FrameNo(5), [number; RESERVE]));
        db.checkpoint_ends(&disk, id, last).unwrap();
        disk.sync().unwrap();
        if number % 2 == 0 {
            other.checkpoint_writes(&copy, id, FrameNo::FIRST).unwrap();
        }
        other.checkpoint_ends(&copy, id, last).unwrap();
        copy.sync().unwrap();
    }
    assert!(!admits(&other, &copy.base.0.borrow(), &([9; 16], Origin::default())));
}

/// The newer slot is damaged, and the other one names an older state.
#[test]
fn no_log_begins_on_a_state_that_may_be_an_older_one() {
    let (disk, mut db) = Disk::new();
    let before = begin(&db, &disk, 1);
    db.checkpoint_ends(&disk, (before.0, before.1.state), None).unwrap();
    disk.sync().unwrap();
    let good = disk.bytes();
    let newer = PLACES.into_iter().find(|&place| {
        let mut image = good.clone();
        image[place + 20] ^= 1;
        !admits(&db, &image, &begin(&db, &disk, 2))
    });
    disk.base.0.replace(good);
    disk.base.0.borrow_mut()[newer.expect("one names the new state") + 20] ^= 1;
    disk.sync().unwrap();
    let next = begin(&db, &disk, 3);
    assert_ne!(next.1.state, before.1.state);
    assert!(disk.images().iter().all(|image| admits(&db, image, &next)));
}

/// The wal-index says that there is less to bring than was brought.
#[test]
fn no_checkpoint_brings_less_than_the_one_before() {
    let (disk, mut db) = Disk::new();
    let log = begin(&db, &disk, 1);
    let id = (log.0, log.1.state);
    let cut = |done: Result<()>| match done {
        Ok(()) => None,
        Err(Error::LogCut { frame }) => Some(frame),
        Err(error) => panic!("{error:?}"),
    };
    for (brought, lacks) in [(3, None), (5, None), (4, Some(5)), (5, None), (7, None), (1, Some(2))]
    {
        db.checkpoint_begins(None, false);
        assert_eq!(cut(db.checkpoint_writes(&disk, id, FrameNo(brought))), lacks, "{brought}");
        let last = Some((FrameNo(brought), [1; RESERVE]));
        assert_eq!(cut(db.checkpoint_ends(&disk, id, last)), lacks, "{brought}: the end");
    }
}

/// A recovery has ended a log before the last frame that was brought of it.
#[test]
fn a_recovery_says_where_the_log_ends() {
    let (disk, mut db) = Disk::new();
    let log = begin(&db, &disk, 1);
    let id = (log.0, log.1.state);
    db.checkpoint_writes(&disk, id, FrameNo(7)).unwrap();
    for (what, log, end, brought) in [
        ("all is there", id.0, 9, 7),
        ("another log", [9; 16], 3, 7),
        ("the last ones are gone", id.0, 5, 5),
        ("again", id.0, 5, 5),
    ] {
        db.log_ends(&disk, (log, id.1), FrameNo(end)).unwrap();
        assert!(disk.unsynced.borrow().is_empty() || brought == 7, "{what}: not synced");
        let fit = db.fit(&disk, &id.0, &id.1).unwrap();
        assert_eq!(fit, Fit::Brought { frames: FrameNo(brought), partly: true }, "{what}");
    }
}

#[test]
fn slots_that_somebody_changed() {
    let (disk, mut db) = Disk::new();
    let first = begin(&db, &disk, 1);
    let young = disk.bytes();
    db.checkpoint_ends(&disk, (first.0, first.1.state), None).unwrap();
    let second = begin(&db, &disk, 2);
    db.checkpoint_writes(&disk, (second.0, second.1.state), FrameNo::FIRST).unwrap();
    let now = disk.bytes();
    let slot = |image: &[u8], number: usize| image[PLACES[number]..][..SLOT_LEN].to_vec();
    let with = |number: usize, bytes: &[u8]| {
        let mut image = now.clone();
        image[PLACES[number]..][..SLOT_LEN].copy_from_slice(bytes);
        image
    };
    let (other, mut other_db) = Disk::new();
    other_db.checkpoint_ends(&other, ([9; 16], begin(&other_db, &other, 9).1.state), None).unwrap();
    let other = other.bytes();
    let newest = usize::from(slot(&now, 0) == slot(&young, 0));
    for (what, image, admitted) in [
        ("as they are", now.clone(), [false, true]),
        ("the newest emptied", with(newest, &[0; SLOT_LEN]), [true, true]),
        ("the newest torn", with(newest, &[7; SLOT_LEN]), [true, true]),
        ("the newest of another database", with(newest, &slot(&other, newest)), [true, true]),
        ("the other one in its place", with(newest, &slot(&now, 1 - newest)), [true, true]),
        ("it in the other one's place", with(1 - newest, &slot(&now, newest)), [false, true]),
        // Replay.
        ("an older one in its place", young, [true, false]),
    ] {
        assert_eq!([&first, &second].map(|log| admits(&db, &image, log)), admitted, "{what}");
    }
    let mut none = now.clone();
    for at in PLACES {
        none[at] ^= 1;
    }
    assert!(!admits(&db, &none, &first) && !admits(&db, &none, &second), "none left");
    // The one in use goes on, and a log that begins is admitted after power loss.
    disk.base.0.replace(none.clone());
    db.checkpoint_begins(None, false);
    db.checkpoint_writes(&disk, (second.0, second.1.state), FrameNo::FIRST).unwrap();
    assert!(admits(&db, &disk.base.0.borrow(), &second));
    disk.base.0.replace(none);
    disk.sync().unwrap();
    let third = begin(&db, &disk, 3);
    assert!(disk.images().iter().all(|image| admits(&db, image, &third)));
}

/// Another file was copied over the database while it was open.
#[test]
fn a_checkpoint_of_a_log_of_another_state_is_refused() {
    let (disk, mut db) = Disk::new();
    let backup = disk.bytes();
    let first = begin(&db, &disk, 1);
    db.checkpoint_ends(&disk, (first.0, first.1.state), None).unwrap();
    let second = begin(&db, &disk, 2);
    disk.base.0.replace(backup.clone());
    let id = (second.0, second.1.state);
    assert!(matches!(db.checkpoint_writes(&disk, id, FrameNo::FIRST), Err(Error::LogOutdated)));
    assert!(matches!(db.checkpoint_ends(&disk, id, None), Err(Error::LogOutdated)));
    assert_eq!(*disk.base.0.borrow(), backup);
}

#[test]
fn a_log_begins_on_a_good_page_1() {
    let (disk, db) = Disk::new();
    let log = begin(&db, &disk, 1);
    let image = disk.bytes();
    assert_ne!(log.1.state, StateId::default());
    assert_eq!(begin(&db, &Disk::holding(image.clone()), 2).1, log.1);
    let mut bad = image;
    bad[ENVELOPE_LEN + 30] ^= 1;
    let base = Memory(bad.into());
    assert_eq!(db.counters_on_disk(&base).unwrap(), None);
    assert!(matches!(db.log_origin(&base, None), Err(Error::PageAuthentication { page: 1 })));
}

/// A log that was brought whole goes on, and a part of what came is brought: a log that a copy of
/// the file began in between does not belong to the file any more.
#[test]
fn a_log_that_goes_on_shuts_out_what_a_copy_began() {
    for by in ["the same handle", "another"] {
        let (disk, mut db) = Disk::new();
        let (id, origin) = begin(&db, &disk, 1);
        let id = (id, origin.state);
        db.checkpoint_begins(None, false);
        db.checkpoint_writes(&disk, id, FrameNo::FIRST).unwrap();
        let mut other = Main::open(&disk, setup()).unwrap();
        other.checkpoint_ends(&disk, id, None).unwrap();
        disk.sync().unwrap();
        let copy = disk.bytes();
        let copied = ([2; 16], db.log_origin(&Memory(copy.clone().into()), None).unwrap());
        assert!(admits(&db, &copy, &copied), "{by}");
        let handle = if by == "another" { &mut other } else { &mut db };
        handle.checkpoint_begins(None, false);
        handle.checkpoint_writes(&disk, id, FrameNo::FIRST).unwrap();
        let image = disk.bytes();
        assert!(!admits(&db, &image, &copied), "{by}");
        assert!(admits(&db, &image, &(id.0, origin)), "{by}: its own");
    }
}

/// A damaged slot is noticed by the next handle that may mend it, whatever those before it saw.
#[test]
fn each_handle_looks_at_slots_that_are_new_to_it() {
    let shared = |read_only| Setup { file: Some((1, 2)), read_only, ..setup() };
    for read_only in [false, true] {
        for damaged_first in [false, true] {
            for at in PLACES {
                let base = Memory::default();
                let mut db = Main::open(&base, shared(false)).unwrap();
                write(&mut db, &base, &page_1(4096, 48), 0).unwrap();
                db.before_commit(&base).unwrap();
                db.log_origin(&base, None).unwrap();
                drop(db);
                let damage = || base.0.borrow_mut()[at + 30] ^= 1;
                if damaged_first {
                    damage();
                }
                let first = Main::open(&base, shared(read_only)).unwrap();
                if !damaged_first {
                    damage();
                }
                let mut second = Main::open(&base, shared(false)).unwrap();
                assert!(
                    second.session().unwrap().wants_mending(),
                    "{read_only}, {damaged_first}, {at}"
                );
                second.mend(&base).unwrap();
                let third = Main::open(&base, shared(false)).unwrap();
                assert!(
                    !third.session().unwrap().wants_mending(),
                    "{read_only}, {damaged_first}, {at}"
                );
                drop(first);
            }
        }
    }
}
