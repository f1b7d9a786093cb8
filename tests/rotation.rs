//! Protectors rotate while processes read and write: nobody meets an error, and nothing is lost.
//!
//! `SQLITE_TDE_FULL=1` rotates 1,000 times in each mode, and more processes quarrel over rotating.

use std::time::{Duration, Instant};

use rusqlite::OpenFlags;
use sqlite_tde::provider::Keystore;
use sqlite_tde::{Change, NewProtector, RotateProtector, TdeConnection};
use sqlite_tde_testkit::bank::{Bank, Role};
use sqlite_tde_testkit::process::{Process, TOO_LONG, full, report};

const WORK: &str = "SQLITE_TDE_TEST_WORK";
const ROTATE: &str = "SQLITE_TDE_TEST_ROTATE";
const MODES: [&str; 4] = ["WAL", "DELETE", "TRUNCATE", "PERSIST"];
const ROLES: [Role; 4] = [Role::Write, Role::Read, Role::ReadLong, Role::Reopen];

fn bank_of(task: &str) -> (Bank, u64) {
    let parts: Vec<&str> = task.split('|').collect();
    let [dir, mode, number] = parts[..] else { panic!("{task}") };
    let mode = MODES.into_iter().find(|name| *name == mode).unwrap();
    (Bank::at(dir.into(), mode, false), number.parse().unwrap())
}

/// The task of a process: it works until a file called `end` is there.
#[test]
fn works_at_the_bank() {
    let Ok(task) = std::env::var(WORK) else { return };
    let (bank, seed) = bank_of(&task);
    let end = bank.dir.join("end");
    std::thread::scope(|scope| {
        for (role, seed) in ROLES.into_iter().zip(seed * 100..) {
            let (bank, end) = (&bank, &end);
            scope.spawn(move || {
                let mut done = 0;
                while !end.exists() {
                    let until = Instant::now() + Duration::from_millis(100);
                    let count =
                        bank.work(role, seed + done, until).unwrap_or_else(|e| panic!("{e}"));
                    done += count.done;
                }
                report(&format!("{role:?} {done}"));
            });
        }
    });
}

/// The task of a process: it adds and removes a protector that no other touches, and rotates the
/// one that all rotate. Whatever one process did, it must find done, however many others write.
#[test]
fn rotates() {
    let Ok(task) = std::env::var(ROTATE) else { return };
    let (bank, number) = bank_of(&task);
    let times = if full() { 200 } else { 40 };
    let db = bank.open(OpenFlags::default()).unwrap();
    let keystore = Keystore::at(bank.dir.join("keys"));
    let own = format!("own-{number}");
    keystore.create(&own).unwrap();
    for time in 0..times {
        let what = format!("process {number}, time {time}");
        let must = |change: sqlite_tde::Result<Change>| {
            change.unwrap_or_else(|error| panic!("{what}: {error}"))
        };
        let has_own = || {
            let all = db.tde_protectors("main").unwrap();
            all.iter().any(|protector| protector.name == own)
        };
        must(db.tde_add_protector("main", NewProtector::new(&own)));
        assert!(has_own(), "{what}: what was added is gone");

        let newest = keystore.rotate("default").unwrap().versions.len() as u64;
        must(db.tde_rotate_protector("main", RotateProtector::to("default")));
        let all = db.tde_protectors("main").unwrap();
        let default = all.iter().find(|protector| protector.name == "default").unwrap();
        let version: u64 = default.key_version.parse().unwrap();
        assert!(version >= newest, "{what}: version {version}, and {newest} was made before");
        assert!(has_own(), "{what}: what was added is gone after a rotation");

        must(db.tde_remove_protector("main", &own));
        assert!(!has_own(), "{what}: what was removed is back");
    }
    report(&format!("rotated {times}"));
}

fn start(test: &str, variable: &str, bank: &Bank, number: u64) -> Process {
    Process::start(test, variable, &format!("{}|{}|{number}", bank.dir.display(), bank.mode))
}

#[test]
fn others_go_on_while_a_protector_rotates() {
    let rotations = if full() { 1000 } else { 60 };
    let modes = if full() { &MODES[..] } else { &MODES[..2] };
    for mode in modes {
        let home = tempfile::tempdir().unwrap();
        let bank = Bank::at(home.path().to_owned(), mode, false);
        bank.create();
        let db = bank.open(OpenFlags::default()).unwrap();
        let workers: Vec<Process> =
            (1..=4).map(|seed| start("works_at_the_bank", WORK, &bank, seed)).collect();
        let keystore = Keystore::at(bank.dir.join("keys"));
        let started = Instant::now();
        for number in 0..rotations {
            keystore.rotate("default").unwrap();
            let change = db
                .tde_rotate_protector("main", RotateProtector::all())
                .unwrap_or_else(|error| panic!("{mode}, rotation {number}: {error}"));
            assert!(change.changed, "{mode}, rotation {number}");
        }
        let took = started.elapsed();
        std::fs::write(bank.dir.join("end"), b"").unwrap();
        let mut done = 0;
        for (worker, number) in workers.into_iter().zip(1..) {
            let lines = worker
                .finish(TOO_LONG * 2)
                .unwrap_or_else(|error| panic!("{mode}, process {number}: {error}"));
            done += lines
                .iter()
                .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .sum::<u64>();
        }
        bank.check().unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{mode}");
        let status = db.tde_status("main").unwrap();
        assert_eq!(status.protectors[0].key_version, (rotations + 1).to_string(), "{mode}");
        eprintln!("{mode}: {rotations} rotations in {took:.1?}, {done} operations beside them");
    }
}

#[test]
fn two_who_rotate_at_once_both_get_their_way() {
    for mode in MODES {
        let home = tempfile::tempdir().unwrap();
        let bank = Bank::at(home.path().to_owned(), mode, false);
        bank.create();
        let processes: Vec<Process> =
            (1..=4).map(|number| start("rotates", ROTATE, &bank, number)).collect();
        for (process, number) in processes.into_iter().zip(1..) {
            process
                .finish(TOO_LONG)
                .unwrap_or_else(|error| panic!("{mode}, process {number}: {error}"));
        }
        let db = bank.open(OpenFlags::default()).unwrap();
        bank.check().unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{mode}");
        for check in db.tde_check_protectors("main").unwrap() {
            assert!(check.matches, "{mode}: {check:?}");
        }
    }
}
