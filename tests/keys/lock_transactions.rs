//! A transaction that began before the keys were locked does not go on with keys that somebody got
//! back: it fails with the error of access, and the database has the state before it. And what
//! takes no locks, or keeps them, notices that the keys are gone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::{AccessPolicy, Error, TdeConnection};
use sqlite_tde_testkit::process::{self, in_time};
use sqlite_tde_testkit::service::{Service, State};
use sqlite_tde_testkit::{Home, code, one, run};

const INACCESSIBLE: i32 = 10 | 0x75 << 8;
const MODES: [&str; 5] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL"];

fn home(revalidate: Option<Duration>) -> (Home, Service) {
    let service = Service::default();
    let provider = Arc::new(service.clone());
    let mut policy = AccessPolicy::default();
    (policy.revalidate, policy.attempts) = (revalidate, 1);
    policy.time_out = Duration::from_secs(5);
    let home = Home::with(|options| {
        options.provider("first", provider).default_protector("first:key").access(policy)
    });
    (home, service)
}

const ROWS: i64 = 300;

/// `SQLITE_TDE_FULL=1` tries every case of the tables, otherwise one in seven.
fn is_tried(number: usize) -> bool {
    number.is_multiple_of(7) || process::full()
}

fn create(home: &Home, path: &Path, mode: &str) {
    let db = home.open(path);
    one(&db, &format!("PRAGMA journal_mode={mode}"));
    db.execute_batch(
        "CREATE TABLE t(i INTEGER PRIMARY KEY, a);
         WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 300)
         INSERT INTO t SELECT i, zeroblob(900) FROM i",
    )
    .unwrap();
}

/// What the transaction has done when the keys are locked.
const MOMENTS: [(&str, &str); 4] = [
    ("read", "SELECT i FROM t WHERE i = 1"),
    ("written", "UPDATE t SET a = 'new' WHERE i = 1"),
    ("spilled", "UPDATE t SET a = zeroblob(901); UPDATE t SET a = zeroblob(902)"),
    ("in a savepoint", "SAVEPOINT s; UPDATE t SET a = zeroblob(901); UPDATE t SET i = -i"),
];

/// What it does next.
const NEXT: [(&str, &str); 5] = [
    ("commits", ""),
    ("writes", "UPDATE t SET a = 'later' WHERE i = 200"),
    ("writes all", "UPDATE t SET a = zeroblob(903)"),
    ("reads", "SELECT sum(length(a)) FROM t"),
    ("checks", "PRAGMA integrity_check"),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Unlocks {
    Nobody,
    Neighbour,
    New,
    Itself,
}
const UNLOCKS: [Unlocks; 4] = [Unlocks::Nobody, Unlocks::Neighbour, Unlocks::New, Unlocks::Itself];

fn assert_old(db: &Connection, at: &str) {
    let sums = "SELECT count(*) || ' ' || sum(length(a)) || ' ' || min(i) FROM t";
    let sums = db.query_row(sums, [], |row| row.get::<_, String>(0)).expect(at);
    assert_eq!(sums, format!("{ROWS} {} 1", ROWS * 900), "{at}");
    assert_eq!(one(db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{at}");
    assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{at}");
}

#[test]
fn a_transaction_that_began_before_a_lock_fails_whole() {
    let mut number = 0;
    for mode in MODES {
        for locking in ["NORMAL", "EXCLUSIVE"] {
            for (moment, before) in MOMENTS {
                for (what, next) in NEXT {
                    for unlocks in UNLOCKS {
                        // A read transaction has nothing to lose by its end.
                        if moment == "read" && !what.starts_with("writes") {
                            continue;
                        }
                        number += 1;
                        if !is_tried(number) {
                            continue;
                        }
                        let at = format!(
                            "{number}: {mode}, {locking}, {moment}, {unlocks:?} unlocks, {what}"
                        );
                        let (home, _) = home(None);
                        fails_whole(&home, mode, locking, before, next, unlocks, &at);
                    }
                }
            }
        }
    }
}

fn fails_whole(
    home: &Home,
    mode: &str,
    locking: &str,
    before: &str,
    next: &str,
    unlocks: Unlocks,
    at: &str,
) {
    let path = home.path("a.db");
    create(home, &path, mode);
    // A copy has the same keys, and what locks one locks both: SQLite's locks are not in the way.
    let beside = if locking == "EXCLUSIVE" { home.path("copy.db") } else { path.clone() };
    if beside != path {
        std::fs::copy(&path, &beside).unwrap();
    }
    let (neighbour, db) = (home.open(&beside), home.open(&path));
    one(&neighbour, "PRAGMA journal_mode");
    one(&db, &format!("PRAGMA journal_mode={mode}"));
    let set = format!("PRAGMA locking_mode={locking}; PRAGMA cache_size=5");
    run(&db, &set).unwrap();
    run(&db, "BEGIN").unwrap();
    run(&db, before).expect(at);

    neighbour.tde_lock("main").unwrap();
    let mut newer = None;
    match unlocks {
        Unlocks::Nobody => {}
        Unlocks::Neighbour => drop(neighbour.tde_status("main").expect(at)),
        Unlocks::New => newer = Some(home.open(&path)),
        Unlocks::Itself => drop(one(&db, "SELECT tde_status()")),
    }
    // `integrity_check` says errors as rows, and the transaction is still there.
    let error = run(&db, next).and_then(|()| run(&db, "COMMIT")).expect_err(at);
    assert_eq!(code(&error), INACCESSIBLE, "{at}: {error}");
    if !db.is_autocommit() {
        let _ = run(&db, "ROLLBACK");
    }
    assert!(db.is_autocommit(), "{at}");
    drop(newer);
    // An exclusive connection says nothing of its next transaction; being asked, it looks.
    db.tde_status("main").expect(at);
    assert_old(&db, at);
    run(&db, "UPDATE t SET a = 'x' WHERE i = 1").expect(at);
    run(&db, REWRITE).expect(at);
    assert_old(&db, at);
    drop(db);
    assert_old(&home.open(&path), at);
}

/// A transaction that begins after the lock is none of that.
#[test]
fn a_transaction_that_begins_after_a_lock_works() {
    for mode in MODES {
        let (home, _) = home(None);
        let path = home.path("a.db");
        create(&home, &path, mode);
        let (neighbour, db) = (home.open(&path), home.open(&path));
        one(&db, &format!("PRAGMA journal_mode={mode}"));
        for turn in 0..3 {
            assert_old(&db, mode);
            neighbour.tde_lock("main").unwrap();
            if turn > 0 {
                neighbour.tde_status("main").unwrap();
            }
            run(&db, &format!("BEGIN; {REWRITE}; COMMIT")).unwrap();
        }
        assert_old(&db, mode);
    }
}

/// Closing the last connection to a log checkpoints, whoever got the keys back since it last read.
#[test]
fn the_last_close_after_a_lock_takes_the_log_along() {
    for unlocked in [false, true] {
        let (home, _) = home(None);
        let path = home.path("a.db");
        create(&home, &path, "WAL");
        let (neighbour, db) = (home.open(&path), home.open(&path));
        run(&db, REWRITE).unwrap();
        neighbour.tde_lock("main").unwrap();
        if unlocked {
            neighbour.tde_status("main").unwrap();
        }
        neighbour.close().unwrap();
        db.close().unwrap();
        assert!(!home.path("a.db-tdewal").exists(), "{unlocked}");
        assert_old(&home.open(&path), "reopened");
    }
}

/// Writes every page, and leaves the rows as they were. SQLite writes none where nothing changes.
const REWRITE: &str = "UPDATE t SET a = zeroblob(901); UPDATE t SET a = zeroblob(900)";

/// Reads every page anew.
const READ: &str = "SELECT sum(length(a)) FROM t";

/// SQLite takes no lock there, so the reads are all that can notice a denial, and that it is over.
#[test]
fn a_denial_is_noticed_without_locks() {
    for (what, parameter) in [("nolock", "nolock"), ("immutable", "immutable")] {
        let (home, service) = home(Some(Duration::ZERO));
        let path = home.path("a.db");
        create(&home, &path, "DELETE");
        let options = home.options().parameter(parameter, "1");
        let db = sqlite_tde::open_with(&path, &options).unwrap();
        run(&db, "PRAGMA cache_size=5").unwrap();
        let read = |db: &Connection| run(db, READ);
        read(&db).unwrap();
        for turn in 0..3 {
            service.switch(State::Denies);
            let error = in_time(what, || read(&db).err());
            assert_eq!(code(&error), INACCESSIBLE, "{what}, {turn}: {error}");
            let words = Error::from(error).to_string();
            assert!(words.contains("access was revoked"), "{what}, {turn}: {words}");
            service.switch(State::Works);
            in_time("healed", || read(&db).ok());
            // A lock by another connection of the process: the next read asks.
            let other = home.open(&path);
            let before = service.calls();
            other.tde_lock("main").unwrap();
            drop(other);
            in_time("unlocked", || read(&db).ok());
            assert!(service.calls() > before, "{what}, {turn}");
            assert_old(&home.open(&path), what);
        }
    }
}

/// A write transaction without locks fails as one with locks does.
#[test]
fn a_transaction_without_locks_that_began_before_a_lock_fails_whole() {
    let mut number = 0;
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        for (moment, before) in &MOMENTS[1..] {
            for (what, next) in NEXT {
                for unlocks in UNLOCKS {
                    number += 1;
                    if !is_tried(number) {
                        continue;
                    }
                    let at = format!("{number}: {mode}, {moment}, {unlocks:?} unlocks, {what}");
                    let (home, _) = home(None);
                    let path = home.path("a.db");
                    create(&home, &path, "DELETE");
                    let neighbour = home.open(&path);
                    let options = home.options().parameter("nolock", "1");
                    let db = sqlite_tde::open_with(&path, &options).unwrap();
                    one(&db, &format!("PRAGMA journal_mode={mode}"));
                    run(&db, "PRAGMA cache_size=5; BEGIN").unwrap();
                    run(&db, before).expect(&at);
                    neighbour.tde_lock("main").unwrap();
                    let mut newer = None;
                    match unlocks {
                        Unlocks::Nobody => {}
                        Unlocks::Neighbour => drop(neighbour.tde_status("main")),
                        Unlocks::New => newer = Some(home.open(&path)),
                        Unlocks::Itself => drop(one(&db, "SELECT tde_status()")),
                    }
                    let error = run(&db, next).and_then(|()| run(&db, "COMMIT")).expect_err(&at);
                    assert_eq!(code(&error), INACCESSIBLE, "{at}: {error}");
                    if !db.is_autocommit() {
                        let _ = run(&db, "ROLLBACK");
                    }
                    drop(newer);
                    assert_old(&db, &at);
                    run(&db, REWRITE).expect(&at);
                    drop(db);
                    assert_old(&neighbour, &at);
                }
            }
        }
    }
}
