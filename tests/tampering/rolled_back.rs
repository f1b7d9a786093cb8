//! Records of a transaction that was rolled back are put in the place of those that were committed
//! over them. Each is the frame that it says, of this very log, but holds another page. Nobody
//! takes it for a page that it is not: neither a connection that opens the database later, nor the
//! writer, nor one without a wal-index in shared memory, nor a checkpoint.

use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::Connection;
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::{Home, beside, one};

const PAGE: usize = 1024;
const FRAMES_AT: usize = 1024;
const RECORD: usize = 24 + PAGE + 48;
const ROWS: i64 = 9000;

/// How the log is read afterwards.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reader {
    Later,
    Writer,
    /// The writer has the database for itself, and its wal-index in memory of its own.
    Alone,
    Checkpoint,
}

/// The frames of SQLite's wal-index that lie in its first, second, third and fourth region.
const PLACES: [usize; 6] = [10, 4062, 4063, 8150, 8158, 8200];

fn fill(db: &Connection, table: &str) {
    db.execute_batch(&format!(
        "CREATE TABLE {table}(a INTEGER PRIMARY KEY, b);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO {table} SELECT i, '{table}' || hex(zeroblob(400)) FROM n"
    ))
    .unwrap();
}

/// The records of both logs from `place` on that differ, taken from `old`.
fn put_back(log: &Path, old: &[u8], place: usize) -> usize {
    let file = std::fs::File::options().read(true).write(true).open(log).unwrap();
    let mut changed = 0;
    for frame in place..place + 5 {
        let at = FRAMES_AT + (frame - 1) * RECORD;
        let Some(old) = old.get(at..at + RECORD) else { continue };
        let mut now = [0; RECORD];
        file.read_exact_at(&mut now, at as u64).unwrap();
        if now != old {
            file.write_all_at(old, at as u64).unwrap();
            changed += 1;
        }
    }
    changed
}

fn others_pages(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT count(*) FROM pub WHERE b LIKE 'sec%'", [], |row| row.get(0))
}

#[test]
fn a_record_that_was_overwritten_is_not_another_page() {
    for reader in [Reader::Later, Reader::Writer, Reader::Alone, Reader::Checkpoint] {
        for place in PLACES {
            let what = format!("{reader:?}, frame {place}");
            let home = Home::ungathered();
            let (path, log) = (home.path("a.db"), beside(&home.path("a.db"), "-tdewal"));
            let db = home.open(&path);
            db.execute_batch("PRAGMA page_size=1024; PRAGMA cache_size=50").unwrap();
            if reader == Reader::Alone {
                one(&db, "PRAGMA locking_mode=EXCLUSIVE");
            }
            one(&db, "PRAGMA journal_mode=WAL");
            one(&db, "PRAGMA wal_autocheckpoint=0");
            fill(&db, "pub");
            fill(&db, "sec");
            one(&db, "PRAGMA wal_checkpoint(TRUNCATE)");
            db.execute_batch("BEGIN; UPDATE sec SET b = 'secret' || substr(b, 7)").unwrap();
            let old = std::fs::read(&log).unwrap();
            db.execute_batch("ROLLBACK; UPDATE pub SET b = 'public' || substr(b, 7)").unwrap();
            assert!(put_back(&log, &old, place) > 0, "{what}: nothing was changed");

            let answer = match reader {
                Reader::Later => others_pages(&home.open(&path)),
                Reader::Writer | Reader::Alone => others_pages(&db),
                Reader::Checkpoint => {
                    let busy =
                        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
                    busy.map(|busy: i64| 1 - busy)
                }
            };
            assert!(answer.is_err(), "{what}: {answer:?}");
            if reader != Reader::Alone {
                let other = home.open(&path);
                assert!(!other.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{what}: clean");
                assert!(others_pages(&other).is_err(), "{what}: read by another one");
            }
        }
    }
}

/// SQLite computes the checksums of a transaction anew, from its frames as they are in the file, if
/// it wrote over one of them. A record that was exchanged meanwhile does not become part of it.
#[test]
fn a_record_exchanged_before_a_commit_does_not_become_part_of_it() {
    for alone in [false, true] {
        for exchanged in [false, true] {
            let what = format!("alone: {alone}, exchanged: {exchanged}");
            let home = Home::ungathered();
            let (path, log) = (home.path("a.db"), beside(&home.path("a.db"), "-tdewal"));
            let db = home.open(&path);
            db.execute_batch("PRAGMA page_size=1024; PRAGMA cache_size=10").unwrap();
            if alone {
                one(&db, "PRAGMA locking_mode=EXCLUSIVE");
            }
            one(&db, "PRAGMA journal_mode=WAL");
            one(&db, "PRAGMA wal_autocheckpoint=0");
            for table in ["pub", "sec"] {
                db.execute_batch(&format!(
                    "CREATE TABLE {table}(a INTEGER PRIMARY KEY, b);
                     WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
                     INSERT INTO {table} SELECT i, '{table}' || hex(zeroblob(400)) FROM n"
                ))
                .unwrap();
            }
            let before = (std::fs::metadata(&log).unwrap().len() as usize - FRAMES_AT) / RECORD;
            db.execute_batch("BEGIN; UPDATE sec SET b = 'secret' || substr(b, 7)").unwrap();
            let old = std::fs::read(&log).unwrap();
            let sql = "ROLLBACK; BEGIN; UPDATE pub SET b = 'public' || substr(b, 7) WHERE a <= 120;
                       UPDATE pub SET b = 'pxblic' || substr(b, 7) WHERE a <= 60";
            db.execute_batch(sql).unwrap();
            if exchanged {
                assert!(put_back(&log, &old, before + 70) > 0, "{what}: nothing was changed");
            }
            let committed = db.execute_batch("COMMIT");
            assert_eq!(committed.is_err(), exchanged, "{what}: {committed:?}");
            if exchanged {
                let _ = db.execute_batch("ROLLBACK");
            }
            let own = one(&db, "SELECT count(*) FROM pub WHERE b LIKE 'pxblic%'");
            drop(db);
            let again = home.open(&path);
            let new = one(&again, "SELECT count(*) FROM pub WHERE b LIKE 'pxblic%'");
            assert_eq!(new, (if exchanged { 0 } else { 60 }).into(), "{what}");
            assert_eq!(own, new, "{what}");
            assert_eq!(one(&again, "SELECT count(*) FROM sec WHERE b LIKE 'secret%'"), 0.into());
            assert_eq!(one(&again, "PRAGMA integrity_check"), "ok".to_owned().into(), "{what}");
        }
    }
}
