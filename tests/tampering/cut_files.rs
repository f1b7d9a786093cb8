//! The database file is cut, or grown, or both, while it is in use. What follows is an error or
//! right data, never zeros or another page, and nothing that was missing is sealed anew.
//!
//! `SQLITE_TDE_FULL=1` runs every case of the table, otherwise one in eleven.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::Home;
use sqlite_tde_testkit::process;

const PAGE: u64 = 1024;
const PAGES_AT: u64 = 16384;
const ROWS: i64 = 90;

/// One overflow page: if that reads as zeros, nothing else of the row is wrong.
fn value(a: i64) -> String {
    format!("{a:03} ").repeat(265)
}

/// What the connection holds when the file is changed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Holding {
    /// No transaction: the file is changed between two.
    Nothing,
    /// A read transaction.
    Reading,
    /// A write transaction that has written to the file, if there is no log.
    Writing,
    /// `locking_mode=EXCLUSIVE`, and no transaction.
    Exclusive,
    /// As `Exclusive`, in a write transaction.
    ExclusiveWriting,
}

const HOLDING: [Holding; 5] = [
    Holding::Nothing,
    Holding::Reading,
    Holding::Writing,
    Holding::Exclusive,
    Holding::ExclusiveWriting,
];

/// The journal mode, and for a log what is in it; parameters of the URI.
const MODES: [(&str, &str, &str); 8] = [
    ("DELETE", "", ""),
    ("PERSIST", "", ""),
    ("MEMORY", "", ""),
    ("DELETE", "", "&nolock=1"),
    // All frames are in the file, and the log is gone, empty, or full of them.
    ("WAL", "", ""),
    ("WAL", "PRAGMA wal_checkpoint(TRUNCATE)", ""),
    ("WAL", "PRAGMA wal_checkpoint(PASSIVE)", ""),
    // Frames that are in the file, and one that is not.
    ("WAL", "PRAGMA wal_checkpoint(PASSIVE); -- and a commit", ""),
];

type Change = fn(&File, u64);
const CHANGES: [(&str, Change); 5] = [
    ("cut", |file, size| file.set_len(size).unwrap()),
    ("cut within a page", |file, size| file.set_len(size + 300).unwrap()),
    ("cut, and as long as before with zeros", |file, size| {
        let len = file.metadata().unwrap().len();
        file.set_len(size).unwrap();
        file.set_len(len).unwrap();
    }),
    ("grown by zeros", |file, _| {
        file.set_len(file.metadata().unwrap().len() + 20 * PAGE).unwrap();
    }),
    ("grown by a copy of its pages", |file, size| {
        let len = file.metadata().unwrap().len();
        let mut pages = vec![0; (len - size) as usize];
        file.read_exact_at(&mut pages, size).unwrap();
        file.write_all_at(&pages, len).unwrap();
    }),
];

/// What SQLite does next.
const NEXT: [(&str, &str); 7] = [
    ("reads", ""),
    ("commits to a page that is there", "INSERT INTO u VALUES(1); COMMIT"),
    ("commits", "INSERT INTO t(b) VALUES('later'); COMMIT"),
    ("writes much, and commits", "INSERT INTO t(b) SELECT 'later ' || b FROM t LIMIT 12; COMMIT"),
    ("rolls back", "UPDATE t SET b = 'never' WHERE a < 8; ROLLBACK"),
    ("checkpoints", "PRAGMA wal_checkpoint(TRUNCATE)"),
    (
        "frees and fills pages",
        "DELETE FROM t WHERE a BETWEEN 10 AND 14; INSERT INTO t(b) VALUES(printf('%09000d', 1)); COMMIT",
    ),
];

/// Rows 1 to `ROWS` that are there are right. How many cannot be read.
fn check(db: &Connection, what: &str) -> usize {
    let mut failed = 0;
    for a in 1..=ROWS {
        match db.query_row("SELECT b FROM t WHERE a = ?1", [a], |row| row.get::<_, String>(0)) {
            Ok(found) => assert!(found == value(a), "{what}: row {a}: {:.40}", found),
            // One of those that were deleted; a page of zeros would look like that, too.
            Err(rusqlite::Error::QueryReturnedNoRows) => {
                assert!(
                    (10..=14).contains(&a) && what.contains("frees"),
                    "{what}: row {a} is gone"
                );
            }
            Err(_) => failed += 1,
        }
    }
    failed
}

/// What a backup reads of each page, whatever it is of: many hosts take a page that is not there
/// for zeros, and where those lie behind a row, nothing tells SQLite.
fn check_backup(db: &Connection, what: &str) {
    let mut copy = Connection::open_in_memory().unwrap();
    let done = Backup::new(db, &mut copy).and_then(|backup| backup.step(-1));
    if matches!(done, Ok(StepResult::Done)) {
        check(&copy, &format!("{what}, backup"));
    }
}

fn open(home: &Home, path: &Path, parameters: &str) -> Connection {
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    let uri = format!("{}{parameters}", home.uri(path));
    Connection::open_with_flags(uri, flags).unwrap()
}

#[test]
fn what_is_cut_off_is_an_error_and_never_zeros() {
    let full = process::full();
    let (mut all, mut cases, mut seen) = (0, 0, 0);
    for (mode, log, parameters) in MODES {
        for (how, change) in CHANGES {
            for holding in HOLDING {
                for (next, sql) in NEXT {
                    all += 1;
                    // 11 divides none of the table's dimensions.
                    if !full && all % 11 != 0 {
                        continue;
                    }
                    let what = format!("{mode} {log} {parameters}, {how}, {holding:?}, {next}");
                    let home = Home::new();
                    let path = home.path("cut.db");
                    let logged = mode == "WAL" && !log.is_empty();
                    prepare(&home, &path, mode, if logged { ROWS / 3 } else { ROWS });
                    let exclusive = format!("{holding:?}").starts_with("Exclusive");
                    if exclusive && logged {
                        continue;
                    }
                    let keeper = logged.then(|| {
                        // Most rows go through the log, and the file grows in a checkpoint.
                        let keeper = open(&home, &path, "");
                        keeper.execute_batch("PRAGMA wal_autocheckpoint=0").unwrap();
                        fill(&keeper, ROWS / 3 + 1..=ROWS);
                        let reader = open(&home, &path, "");
                        if log.ends_with("commit") {
                            // It keeps the log from being begun anew.
                            reader.execute_batch("BEGIN; SELECT count(*) FROM u").unwrap();
                        }
                        let checkpoint = log.split(';').next().unwrap();
                        keeper.query_row(checkpoint, [], |_| Ok(())).unwrap();
                        if log.ends_with("commit") {
                            keeper.execute("INSERT INTO u VALUES(0)", []).unwrap();
                        }
                        (keeper, reader)
                    });
                    let original = std::fs::read(&path).unwrap();
                    let db = open(&home, &path, parameters);
                    db.execute_batch("PRAGMA cache_size=2; PRAGMA wal_autocheckpoint=0").unwrap();
                    if exclusive {
                        db.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
                    }
                    db.execute_batch(&format!("PRAGMA journal_mode={mode}")).unwrap();
                    let first = "SELECT count(*) FROM sqlite_schema";
                    db.query_row(first, [], |_| Ok(())).unwrap();
                    match holding {
                        Holding::Nothing | Holding::Exclusive => {}
                        Holding::Reading => {
                            db.execute_batch("BEGIN").unwrap();
                            db.query_row(first, [], |_| Ok(())).unwrap();
                        }
                        Holding::Writing | Holding::ExclusiveWriting => db
                            .execute_batch("BEGIN; INSERT INTO t(b) SELECT b FROM t WHERE a < 10")
                            .unwrap(),
                    }
                    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
                    let len = file.metadata().unwrap().len();
                    let half = (len - PAGES_AT) / PAGE / 2 * PAGE;
                    change(&file, PAGES_AT + half);
                    cases += 1;
                    let mut failed = check(&db, &what);
                    check_backup(&db, &what);
                    if !sql.is_empty() {
                        if db.is_autocommit()
                            && (sql.contains("COMMIT") || sql.contains("ROLLBACK"))
                        {
                            let _ = db.execute_batch("BEGIN");
                        }
                        for step in sql.split("; ") {
                            let _ = db.execute_batch(step);
                        }
                    }
                    failed += check(&db, &what);
                    check_backup(&db, &what);
                    let sound =
                        db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
                    if how.starts_with("cut") {
                        seen += usize::from(failed > 0);
                        assert!(
                            failed > 0 || sound.as_deref() != Ok("ok"),
                            "{what}: nothing was noticed"
                        );
                    }
                    drop(db);
                    // Nobody who comes later takes anything of it for a page.
                    if let Ok(later) = home.try_open(&path) {
                        check(&later, &format!("{what}, opened anew"));
                        check_backup(&later, &format!("{what}, opened anew"));
                    }
                    drop(keeper);
                    // What was cut off is put back.
                    for end in ["-wal", "-shm", "-journal", "-tdewal"] {
                        let _ = std::fs::remove_file(path.with_file_name(format!("cut.db{end}")));
                    }
                    std::fs::write(&path, &original).unwrap();
                    let db = home.open(&path);
                    assert_eq!(check(&db, &format!("{what}, put back")), 0, "{what}, put back");
                    let found = db.tde_verify("main", |_, _| ()).unwrap();
                    assert!(found.is_clean(), "{what}, put back: {found:?}");
                }
            }
        }
    }
    eprintln!("{cases} of {all} cases; reads failed in {seen}");
    assert!(seen > cases / 3, "{seen} of {cases}");
}

/// A database of rows that take a page each. Answers the file.
fn prepare(home: &Home, path: &Path, mode: &str, rows: i64) -> Vec<u8> {
    let db = home.open(path);
    db.execute_batch(&format!(
        "PRAGMA page_size={PAGE}; PRAGMA journal_mode={mode}; PRAGMA synchronous=OFF;
         CREATE TABLE u(a); CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)"
    ))
    .unwrap();
    fill(&db, 1..=rows);
    drop(db);
    std::fs::read(path).unwrap()
}

fn fill(db: &Connection, rows: std::ops::RangeInclusive<i64>) {
    for a in rows {
        db.execute("INSERT INTO t VALUES(?1, ?2)", (a, value(a))).unwrap();
    }
}

/// `immutable=1` takes no lock: what the file had when it was opened must stay.
#[test]
fn a_file_that_is_said_not_to_change_and_does_is_noticed() {
    let home = Home::new();
    let path = home.path("cut.db");
    prepare(&home, &path, "DELETE", ROWS);
    let db = open(&home, &path, "&immutable=1");
    db.execute_batch("PRAGMA cache_size=2").unwrap();
    assert_eq!(check(&db, "whole"), 0);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(PAGES_AT + (len - PAGES_AT) / PAGE / 2 * PAGE).unwrap();
    assert!(check(&db, "cut") > 0);
}

/// The size of the file, in copies cut at each sector of the envelope, at the first page, and
/// within it: each is damage to whoever opens it, also for reading, and stays as it is.
#[test]
fn a_file_cut_within_its_envelope_is_damaged() {
    let home = Home::new();
    let path = home.path("cut.db");
    let whole = prepare(&home, &path, "DELETE", ROWS);
    let lengths = (1..=32).map(|sector| sector * 512).chain([16, 100, 8191, 8193, 16383]);
    for len in lengths {
        for parameters in ["", "&mode=ro", "&immutable=1"] {
            let what = format!("{len} bytes, {parameters}");
            std::fs::write(&path, &whole[..len]).unwrap();
            let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
            let uri = format!("{}{parameters}", home.uri(&path));
            let opened = Connection::open_with_flags(uri, flags).and_then(|db| {
                db.execute_batch("CREATE TABLE u(a)")?;
                db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
            });
            assert!(opened.is_err(), "{what}: {opened:?}");
            assert_eq!(std::fs::read(&path).unwrap(), whole[..len], "{what}");
        }
    }
}
