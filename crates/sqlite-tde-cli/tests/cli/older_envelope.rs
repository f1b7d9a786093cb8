//! An older envelope put back under open connections: no operation on keys starts from it, so no
//! protector that was removed comes back. Reading and writing rows goes on.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::protectors::command;
use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::{Error, NewProtector, RotateProtector, TdeConnection};
use sqlite_tde_testkit::{Home, one};

const COPY: usize = 8192;
/// Bytes of a copy. A slot for the log follows it.
const COPY_LEN: usize = 7680;
const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];

/// The two copies of the envelope.
fn envelope(path: &Path) -> Vec<u8> {
    let file = std::fs::File::open(path).unwrap();
    let mut bytes = vec![0; 2 * COPY];
    file.read_exact_at(&mut bytes, 0).unwrap();
    // Closing it would drop the locks of this process.
    std::mem::forget(file);
    bytes
}

fn put(path: &Path, bytes: &[u8], at: usize) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
    std::mem::forget(file);
}

/// Who removes the protector `b`, so that `db` or its process knows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Remover {
    Itself,
    /// A connection of this process that is open beside it.
    Neighbour,
    /// A connection of this process that is closed afterwards.
    Gone,
    /// Another process. The connection looks at the envelope afterwards.
    Process,
}
const REMOVERS: [Remover; 4] =
    [Remover::Itself, Remover::Neighbour, Remover::Gone, Remover::Process];

type Operation = fn(&Connection) -> Result<(), Error>;

fn sql(db: &Connection, sql: &str) -> Result<(), Error> {
    Ok(db.query_row(sql, [], |_| Ok(()))?)
}

/// Commands that change the envelope, then commands that only read it.
const OPERATIONS: [(&str, Operation); 15] = [
    ("add", |db| db.tde_add_protector("main", NewProtector::new("c")).map(drop)),
    ("remove", |db| db.tde_remove_protector("main", "d").map(drop)),
    ("remove once more", |db| db.tde_remove_protector("main", "b").map(drop)),
    ("rotate", |db| db.tde_rotate_protector("main", RotateProtector::all()).map(drop)),
    ("replace", |db| {
        db.tde_rotate_protector("main", RotateProtector::to("c").in_place_of("d")).map(drop)
    }),
    ("rules", |db| db.tde_set_auto_rotate("main", false).map(drop)),
    ("PRAGMA add", |db| sql(db, "PRAGMA tde_add_protector='c'")),
    ("PRAGMA remove", |db| sql(db, "PRAGMA tde_remove_protector='d'")),
    ("PRAGMA rules", |db| sql(db, "PRAGMA tde_auto_rotate=OFF")),
    ("function add", |db| sql(db, "SELECT tde_add_protector('c')")),
    ("function rotate", |db| sql(db, "SELECT tde_rotate_protector('c')")),
    ("status", |db| db.tde_status("main").map(drop)),
    ("protectors", |db| db.tde_protectors("main").map(drop)),
    ("PRAGMA status", |db| sql(db, "PRAGMA tde_status")),
    ("check", |db| sql(db, "PRAGMA tde_check_protectors")),
];

struct Case {
    home: Home,
    db: Connection,
    /// Open for as long as the case.
    _neighbour: Option<Connection>,
    /// The envelope while `b` was a protector, and without it.
    old: Vec<u8>,
    new: Vec<u8>,
}

fn case(mode: &str, remover: Remover) -> Case {
    let home = Home::new();
    let path = home.path("a.db");
    let first = home.open(&path);
    one(&first, &format!("PRAGMA journal_mode={mode}"));
    first.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    drop(first);
    for key in ["b", "c", "d"] {
        command(&home, "keys", &format!("key create {key}"));
    }
    command(&home, "keys", "protector add a.db b");
    command(&home, "keys", "protector add a.db d");
    let old = envelope(&path);
    let db = home.open(&path);
    assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1));
    let mut neighbour = None;
    match remover {
        Remover::Itself => drop(db.tde_remove_protector("main", "b").unwrap()),
        Remover::Neighbour | Remover::Gone => {
            let other = home.open(&path);
            other.tde_remove_protector("main", "b").unwrap();
            neighbour = (remover == Remover::Neighbour).then_some(other);
        }
        Remover::Process => {
            command(&home, "keys", "protector remove a.db b");
            assert_eq!(db.tde_protectors("main").unwrap().len(), 2);
        }
    }
    let new = envelope(&path);
    assert_ne!(old, new);
    Case { home, db, _neighbour: neighbour, old, new }
}

fn has_b(home: &Home) -> bool {
    let db = sqlite_tde::open_with(home.path("a.db"), &home.options().protector("b"));
    db.is_ok()
}

#[test]
fn both_copies_put_back_are_refused() {
    for (number, (what, operation)) in OPERATIONS.into_iter().enumerate() {
        for (turn, remover) in REMOVERS.into_iter().enumerate() {
            let mode = MODES[(number + turn) % MODES.len()];
            let at = format!("{what}, {remover:?}, {mode}");
            let Case { home, db, _neighbour, old, new } = case(mode, remover);
            let path = home.path("a.db");
            put(&path, &old, 0);
            let refused = operation(&db).expect_err(&at).to_string();
            assert!(refused.contains("older envelope restored"), "{at}: {refused}");
            assert!(envelope(&path) == old, "{at}: something was written");
            // The rows are none of its business.
            db.execute_batch("INSERT INTO t VALUES(2); SELECT * FROM t").unwrap();
            let copies =
                |bytes: &[u8]| [&bytes[..COPY_LEN], &bytes[COPY..COPY + COPY_LEN]].concat();
            let now = envelope(&path);
            assert!(copies(&now) == copies(&old), "{at}: something was written with a row");
            // Nor does this process open the file through it, as long as it knows better.
            let opened = sqlite_tde::open_with(&path, &home.options().protector("b")).map(drop);
            let opened = opened.expect_err(&at).to_string();
            assert!(opened.contains("older envelope restored"), "{at}: {opened}");
            let found = db.tde_verify("main", |_, _| ()).unwrap();
            assert_eq!(found.stale_envelope_copies, ['A', 'B'], "{at}");

            put(&path, &new, 0);
            let done = operation(&db);
            let gone = matches!(&done, Err(error) if error.to_string().contains("no protector b"));
            assert!(done.is_ok() || gone, "{at}: {done:?}");
            assert!(!has_b(&home), "{at}");
        }
    }
}

/// The same state as after a crash in the middle of a change: the newer copy is in force.
#[test]
fn one_copy_put_back_is_overwritten() {
    for (number, (what, operation)) in OPERATIONS.into_iter().enumerate() {
        for (turn, at) in [0, COPY].into_iter().enumerate() {
            let (mode, remover) = (MODES[(number + turn) % 4], REMOVERS[number % 4]);
            let label = format!("{what}, {remover:?}, {mode}, {at}");
            let Case { home, db, _neighbour, old, .. } = case(mode, remover);
            put(&home.path("a.db"), &old[at..at + COPY], at);
            let done = operation(&db);
            let gone = matches!(&done, Err(error) if error.to_string().contains("no protector b"));
            assert!(done.is_ok() || gone, "{label}: {done:?}");
            db.execute_batch("INSERT INTO t VALUES(2)").unwrap();
            let now = envelope(&home.path("a.db"));
            assert!(now[..COPY_LEN] == now[COPY..][..COPY_LEN], "{label}");
            assert!(!has_b(&home), "{label}");
        }
    }
}

/// Two changes from the same start have one number. That of another process does not pass for the
/// one that is known here.
#[test]
fn another_envelope_of_the_same_generation_is_refused() {
    for mode in MODES {
        let Case { home, db, _neighbour, old, new } = case(mode, Remover::Itself);
        let path = home.path("a.db");
        put(&path, &old, 0);
        command(&home, "keys", "protector add a.db c");
        let other = envelope(&path);
        for (what, operation) in OPERATIONS {
            let refused = operation(&db).expect_err(what).to_string();
            assert!(refused.contains("older envelope restored"), "{mode}, {what}: {refused}");
            assert!(envelope(&path) == other, "{mode}, {what}");
        }
        put(&path, &new, 0);
        db.tde_set_auto_rotate("main", false).unwrap();
    }
}

/// A locked database gets its keys from the envelope in force, or not at all.
#[test]
fn a_locked_database_does_not_unlock_through_an_older_envelope() {
    for mode in MODES {
        let Case { home, db, _neighbour, old, new } = case(mode, Remover::Itself);
        let path = home.path("a.db");
        put(&path, &old, 0);
        db.tde_lock("main").unwrap();
        let read = |db: &Connection| db.query_row("SELECT count(*) FROM t", [], |_| Ok(()));
        let refused = Error::from(read(&db).unwrap_err()).to_string();
        assert!(refused.contains("older envelope restored"), "{mode}: {refused}");
        put(&path, &new, 0);
        read(&db).unwrap();
    }
}

/// A whole file from a backup is accepted once nothing in the process has it open, and at once
/// where it takes the place of the open file under its name.
#[test]
fn a_restored_file_opens() {
    for mode in MODES {
        for renamed in [false, true] {
            let at = format!("{mode}, {renamed}");
            let home = Home::new();
            let path = home.path("a.db");
            let db = home.open(&path);
            one(&db, &format!("PRAGMA journal_mode={mode}"));
            db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
            command(&home, "keys", "key create b");
            db.tde_add_protector("main", NewProtector::new("b")).unwrap();
            drop(db);
            std::fs::copy(&path, home.path("backup.db")).unwrap();
            // A connection to a copy keeps what the process knows of the database's keys.
            std::fs::copy(&path, home.path("copy.db")).unwrap();
            let copy = home.open(&home.path("copy.db"));
            let db = home.open(&path);
            db.tde_remove_protector("main", "b").unwrap();
            let old = if renamed {
                std::fs::rename(home.path("backup.db"), &path).unwrap();
                Some(db)
            } else {
                db.close().unwrap();
                std::fs::copy(home.path("backup.db"), &path).unwrap();
                None
            };
            let db = home.open(&path);
            assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1), "{at}");
            assert_eq!(db.tde_protectors("main").unwrap().len(), 2, "{at}");
            db.tde_set_auto_rotate("main", false).expect(&at);
            assert_eq!(copy.tde_protectors("main").unwrap().len(), 2, "{at}");
            drop(old);
        }
    }
}

/// A creation that is rolled back begins anew at the first generation, whatever this process saw.
#[test]
fn a_creation_that_is_given_up_is_forgotten() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        let home = Home::new();
        let path = home.path("a.db");
        let db = home.open(&path);
        one(&db, &format!("PRAGMA journal_mode={mode}"));
        for turn in 0..3 {
            db.execute_batch("PRAGMA cache_size=1; BEGIN; CREATE TABLE t(a)").unwrap();
            db.execute_batch(
                "WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 300)
                 INSERT INTO t SELECT zeroblob(900) FROM i",
            )
            .unwrap();
            let other = home.open(&path);
            db.execute_batch(if turn < 2 { "ROLLBACK" } else { "COMMIT" }).unwrap();
            let tables = one(&other, "SELECT count(*) FROM sqlite_schema");
            assert_eq!(tables, Value::Integer(i64::from(turn == 2)), "{mode}, {turn}");
        }
        for on in [false, true] {
            db.tde_set_auto_rotate("main", on).unwrap();
        }
        assert_eq!(db.tde_protectors("main").unwrap().len(), 1, "{mode}");
    }
}

/// An older envelope gives no consent: the keys are lost when the grace period is over.
#[test]
fn an_older_envelope_is_no_answer_of_a_provider() {
    let mut policy = sqlite_tde::AccessPolicy::default();
    (policy.revalidate, policy.grace) =
        (Some(std::time::Duration::ZERO), std::time::Duration::ZERO);
    for mode in MODES {
        let home = Home::with(|options| options.access(policy.clone()));
        sqlite_tde::provider::Keystore::at(home.path("keys")).create("b").unwrap();
        let path = home.path("a.db");
        let db = home.open(&path);
        one(&db, &format!("PRAGMA journal_mode={mode}"));
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
        db.tde_add_protector("main", NewProtector::new("b")).unwrap();
        let old = envelope(&path);
        db.tde_remove_protector("main", "b").unwrap();
        let new = envelope(&path);
        put(&path, &old, 0);
        let read = || db.query_row("SELECT count(*) FROM t", [], |_| Ok(()));
        let refused = (0..1000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            read().err()
        });
        let refused = Error::from(refused.expect(mode)).to_string();
        assert!(refused.contains("older envelope restored"), "{mode}: {refused}");
        put(&path, &new, 0);
        let healed = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            read().is_ok()
        });
        assert!(healed, "{mode}");
    }
}
