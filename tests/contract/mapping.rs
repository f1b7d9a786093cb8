//! `PRAGMA mmap_size`: pages are read from the base VFS's mapping of the file, which others may
//! outgrow or shorten, and whose bytes are verified like any other.

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde_testkit::{Home, one, rows};

const MODES: [&str; 3] = ["DELETE", "PERSIST", "WAL"];

fn mapped(home: &Home) -> Connection {
    let db = home.open(&home.path("d"));
    assert_eq!(one(&db, "PRAGMA mmap_size=50000000"), Value::Integer(50_000_000));
    db.execute_batch("PRAGMA cache_size=5").unwrap();
    db
}

fn fill(db: &Connection, mode: &str, count: u32) {
    one(db, &format!("PRAGMA journal_mode={mode}"));
    db.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b TEXT);
         WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {count})
         INSERT INTO t(b) SELECT printf('%0500d', i) FROM i"
    ))
    .unwrap();
}

/// System calls that read, as the kernel counts them for this thread: other tests read meanwhile.
#[cfg(target_os = "linux")]
fn reads() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap();
    line.parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn pages_come_from_the_mapping() {
    let home = Home::new();
    fill(&home.open(&home.path("d")), "DELETE", 2000);
    let count = |db: &Connection| {
        one(db, "SELECT sum(length(b)) FROM t");
        let before = reads();
        assert_eq!(one(db, "SELECT sum(length(b)) FROM t"), Value::Integer(1_000_000));
        reads() - before
    };
    let db = mapped(&home);
    let with = count(&db);
    one(&db, "PRAGMA mmap_size=0");
    let without = count(&db);
    assert!(with < 10 && without > 10, "{with} reads with a mapping, {without} without");
}

#[test]
fn the_file_grows_and_shrinks_under_a_mapping() {
    for mode in MODES {
        let home = Home::new();
        let other = home.open(&home.path("d"));
        fill(&other, mode, 300);
        let db = mapped(&home);
        let steps = [
            ("it grows", "INSERT INTO t(b) SELECT b FROM t"),
            ("it is changed", "UPDATE t SET b = b || 'x' WHERE a % 3 = 0"),
            ("it shrinks", "DELETE FROM t WHERE a > 20; VACUUM"),
            ("it grows again", "INSERT INTO t(b) SELECT b FROM t, (SELECT 1 UNION ALL SELECT 2)"),
            ("all of it is in the file", "PRAGMA wal_checkpoint(TRUNCATE)"),
        ];
        for (what, sql) in steps {
            let all = "SELECT a, b FROM t ORDER BY a";
            assert_eq!(rows(&db, all), rows(&other, all), "{mode}, before {what}");
            other.execute_batch(sql).unwrap();
            assert_eq!(rows(&db, all), rows(&other, all), "{mode}: {what}");
            db.execute_batch("INSERT INTO t(b) VALUES('by the reader')").unwrap();
            assert_eq!(one(&other, "PRAGMA integrity_check"), "ok".to_owned().into(), "{what}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_change_to_a_mapped_page_is_found() {
    use std::os::unix::fs::FileExt;
    let home = Home::new();
    fill(&home.open(&home.path("d")), "DELETE", 300);
    let db = mapped(&home);
    let count = "SELECT count(*) FROM t WHERE length(b) > 1";
    assert_eq!(one(&db, count), Value::Integer(300));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(home.path("d")).unwrap();
    let place = 16384 + 10 * 4096 + 99;
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 1], place).unwrap();
    let error = db.query_row(count, [], |_| Ok(())).unwrap_err();
    let error = sqlite_tde::Error::from(error);
    assert!(matches!(error, sqlite_tde::Error::PageAuthentication { page: 11 }), "{error}");
}
