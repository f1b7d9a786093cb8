//! Tampering at moments that a sample of calls seldom meets, or in two places at once.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::{Connection, ffi};
use sqlite_tde::provider::Keystore;
use sqlite_tde::{Error, TdeConnection};

use super::{COPY, INDEX, JOURNAL, PAGE, PAGES_AT};
use sqlite_tde_testkit::{Home, beside};

/// Rows of one overflow page each, without a zero byte.
fn build(db: &Connection, mode: &str) {
    db.execute_batch(&format!(
        "PRAGMA page_size={PAGE}; PRAGMA journal_mode={mode}; PRAGMA wal_autocheckpoint=0;
         PRAGMA synchronous=OFF; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12)
         INSERT INTO t SELECT i, printf('%03d %.1200c', i, 'x') FROM n;"
    ))
    .unwrap();
}

fn read(db: &Connection, rows: i64) -> Vec<rusqlite::Result<String>> {
    let read = |a: i64| db.query_row("SELECT b FROM t WHERE a = ?1", [a], |row| row.get(0));
    (1..=rows).map(read).collect()
}

/// Each row is right or an error. How many are errors.
fn assert_right_or_error(db: &Connection, what: &str) -> usize {
    assert_all_right_or_error(db, 12, what)
}

fn assert_all_right_or_error(db: &Connection, rows: i64, what: &str) -> usize {
    let mut failed = 0;
    for (a, found) in (1..).zip(read(db, rows)) {
        match found {
            Ok(found) => {
                let right = found == format!("{a:03} {}", "x".repeat(1200));
                assert!(right, "{what}: row {a}: {found:.20}");
            }
            Err(error) => {
                let code = error.sqlite_error().map(|error| error.extended_code & 0xff);
                let telling = [ffi::SQLITE_IOERR, ffi::SQLITE_CORRUPT].map(Some);
                assert!(telling.contains(&code), "{what}: row {a}: {error}");
                failed += 1;
            }
        }
    }
    failed
}

fn change(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// The wal-index says that all frames are in the database. SQLite then looks there for pages that
/// only the log has, past the end of the file, and begins the log anew over them. An older database
/// is replay; zeros are not.
#[test]
fn a_page_that_only_the_log_has_is_not_one_of_zeros() {
    /// Of the wal-index: the last frame, and how many are said to be in the database.
    const FRAMES_AT: u64 = 16;
    const BACKFILL_AT: u64 = 96;
    let home = Home::new();
    let path = home.path("a.db");
    let db = home.open(&path);
    build(&db, "WAL");
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let before = pages_in(&path);
    db.execute("INSERT INTO t SELECT a + 12, replace(b, 'x', 'y') FROM t", []).unwrap();
    let index = OpenOptions::new().read(true).write(true).open(beside(&path, INDEX)).unwrap();
    let mut frames = [0; 4];
    index.read_exact_at(&mut frames, FRAMES_AT).unwrap();
    index.write_all_at(&frames, BACKFILL_AT).unwrap();
    let committed = db.execute("UPDATE t SET b = b WHERE a = 24", []);
    let more = |what: &str| {
        let db = home.open(&path);
        for a in 13..=24_i64 {
            let read = db.query_row("SELECT b FROM t WHERE a = ?1", [a], |row| row.get(0));
            let zeros = read.is_ok_and(|found: String| found.contains('\0'));
            assert!(
                !zeros,
                "{what}, after a commit that answered {committed:?}: row {a} has zeros"
            );
        }
    };
    more("read");
    let _ = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    more("copied into the database");
    let found = db.tde_verify("main", |_, _| ()).unwrap();
    let there = pages_in(&path);
    assert!(
        there <= before || !found.bad_pages.is_empty(),
        "{there} pages for {before}, all of them authentic: {found:?}"
    );
}

/// A record of the journal is changed, and its own transaction is rolled back. SQLite says nothing
/// of it when it rolls back; so whoever reads afterwards must get the rows as they were, or an
/// error.
#[test]
fn a_rollback_from_a_damaged_journal_is_no_half_of_one() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        for part in [4, 2] {
            let home = Home::ungathered();
            let path = home.path("a.db");
            let db = home.open(&path);
            build(&db, mode);
            // More than a journal keeps in memory of what it wrote.
            db.execute_batch(
                "WITH RECURSIVE n(i) AS (SELECT 13 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
                 INSERT INTO t SELECT i, printf('%03d %.1200c', i, 'x') FROM n;
                 PRAGMA cache_size=3; BEGIN; UPDATE t SET b = upper(b)",
            )
            .unwrap();
            let journal = beside(&path, JOURNAL);
            let len = std::fs::metadata(&journal).unwrap().len();
            change(&journal, len / part, &[0xa5; 16]);
            let done = db.execute_batch("ROLLBACK");
            let what = format!("{mode}: changed at {} of {len}, rolled back: {done:?}", len / part);
            let failed = assert_all_right_or_error(&db, 300, &what);
            assert!(failed > 0, "{what}: the record was of no use");
        }
    }
}

fn pages_in(path: &Path) -> u64 {
    (std::fs::metadata(path).unwrap().len() - PAGES_AT) / PAGE as u64
}

/// With both copies of its envelope damaged under an open database, no command on its keys makes it
/// good again: what is written is never taken from memory alone.
#[test]
fn a_damaged_envelope_is_not_written_anew() {
    let home = Home::with(|options| options.auto_rotate(None));
    let keystore = Keystore::at(home.path("keys"));
    for mode in ["DELETE", "WAL"] {
        let path = home.path(&format!("{mode}.db"));
        let db = home.open(&path);
        build(&db, mode);
        for at in [100, COPY + 100] {
            change(&path, at, &[0xa5; 16]);
        }
        keystore.rotate("default").unwrap();
        let rotated = db.query_row("PRAGMA tde_rotate_protector", [], |_| Ok(()));
        assert!(rotated.is_err(), "{mode}");
        db.execute("UPDATE t SET b = b WHERE a = 1", []).unwrap();
        assert_eq!(assert_right_or_error(&db, mode), 0);
        drop(db);
        let error = home.try_open(&path).map(drop).unwrap_err();
        assert!(matches!(error, Error::EnvelopeDamaged(_)), "{mode}: {error}");
    }
}

/// One copy damaged, while the other is the only one: it is written anew from the good one alone.
#[test]
fn a_damaged_copy_is_mended_from_the_other() {
    let home = Home::with(|options| options.auto_rotate(None));
    let keystore = Keystore::at(home.path("keys"));
    for (mode, damaged) in [("DELETE", 0), ("DELETE", COPY), ("WAL", 0), ("WAL", COPY)] {
        let path = home.path(&format!("{mode}-{damaged}.db"));
        let db = home.open(&path);
        build(&db, mode);
        change(&path, damaged + 100, &[0xa5; 16]);
        keystore.rotate("default").unwrap();
        db.query_row("PRAGMA tde_rotate_protector", [], |_| Ok(())).unwrap();
        drop(db);
        let db = home.open(&path);
        assert_eq!(assert_right_or_error(&db, mode), 0);
        let found = db.tde_verify("main", |_, _| ()).unwrap();
        assert!(found.is_clean(), "{mode}, {damaged}: {found:?}");
    }
}

/// The file ends earlier when a log is begun, and is as long as before, with other bytes, when that
/// log is recovered: what the log does not have is bad, and nothing is sealed over it.
#[test]
fn a_log_begun_beside_a_cut_file_covers_nothing() {
    for cut in [1, 3, 8] {
        let home = Home::new();
        let path = home.path("a.db");
        let db = home.open(&path);
        build(&db, "WAL");
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let len = std::fs::metadata(&path).unwrap().len();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(len - cut * PAGE as u64).unwrap();
        let committed = db.execute("UPDATE t SET b = b WHERE a = 1", []);
        file.set_len(len).unwrap();
        // As a killed process leaves it.
        let copy = home.path("copy.db");
        for suffix in ["", super::LOG] {
            let _ = std::fs::copy(beside(&path, suffix), beside(&copy, suffix));
        }
        let what = format!("cut by {cut} pages when the log was begun: {committed:?}");
        let db = home.open(&copy);
        assert_right_or_error(&db, &what);
        let _ = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        assert_right_or_error(&db, &what);
        let pages = (len - PAGES_AT) / PAGE as u64;
        let found = db.tde_verify("main", |_, _| ()).unwrap();
        let first = (pages - cut + 1) as u32;
        let missing = (first..=pages as u32).all(|page| found.bad_pages.contains(&page));
        assert!(missing, "{what}: pages from {first} are sealed: {found:?}");
    }
}
