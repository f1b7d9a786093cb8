//! A VFS above `tde` that hands down copies of names, and several connections to one database in a
//! thread: the journal is that of the connection that writes, whoever looked at the database last.

use std::fs;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde_testkit::platform::{self, PlatformVfs};
use sqlite_tde_testkit::{Home, beside, one};

const ROWS: &str = "SELECT group_concat(substr(b, 1, 9)) FROM t";

#[test]
fn a_killed_transaction_is_taken_back_whole() {
    for (above, name) in [(true, "copied names"), (false, "unix")] {
        for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
            for synchronous in ["OFF", "NORMAL", "FULL"] {
                for begin in ["BEGIN IMMEDIATE", "BEGIN"] {
                    let what = format!("{name}, {mode}, synchronous={synchronous}, {begin}");
                    let home = Home::new();
                    let vfs = match above {
                        true => {
                            PlatformVfs::new(platform::platform(name), &home.vfs).name.to_owned()
                        }
                        false => home.vfs.clone(),
                    };
                    // Where no disk slows down what is synced.
                    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
                    let dir = dir.unwrap();
                    let path = dir.path().join("a.db");
                    let open = || {
                        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
                        let uri = format!("file:{}?vfs={vfs}", path.display());
                        let db = Connection::open_with_flags(uri, flags).unwrap();
                        db.execute_batch(&format!(
                            "PRAGMA page_size=1024; PRAGMA journal_mode={mode};
                             PRAGMA synchronous={synchronous}; PRAGMA cache_size=3"
                        ))
                        .unwrap();
                        db
                    };
                    let (writer, reader) = (open(), open());
                    writer
                        .execute_batch(
                            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
                             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 90)
                             INSERT INTO t SELECT i, printf('%09d %.700c', i, 'x') FROM n",
                        )
                        .unwrap();
                    let before = one(&reader, ROWS);
                    // The writer takes its lock, the reader locks after it, and then the journal is
                    // made.
                    writer.execute_batch(&format!("{begin}; SELECT 1 FROM t")).unwrap();
                    assert_eq!(one(&reader, ROWS), before, "{what}");
                    let mut images = Vec::new();
                    for row in 1..=90 {
                        let sql = format!("UPDATE t SET b = 'changed' WHERE a = {row}");
                        // A page spills only where the reader does not hold its lock.
                        writer
                            .execute_batch(&sql)
                            .unwrap_or_else(|error| panic!("{what}: {error}"));
                        if row % 7 == 0 {
                            let file = |suffix| fs::read(beside(&path, suffix)).ok();
                            images.push((row, file(""), file("-journal")));
                        }
                    }
                    for (row, db, journal) in images {
                        let copy = dir.path().join("copy.db");
                        for (suffix, bytes) in [("", db), ("-journal", journal)] {
                            match bytes {
                                Some(bytes) => fs::write(beside(&copy, suffix), bytes).unwrap(),
                                None => _ = fs::remove_file(beside(&copy, suffix)),
                            }
                        }
                        let killed = home.open(&copy);
                        assert_eq!(one(&killed, ROWS), before, "{what}, killed after row {row}");
                        let checked = one(&killed, "PRAGMA integrity_check");
                        assert_eq!(checked, Value::Text("ok".into()), "{what}, row {row}");
                    }
                    writer.execute_batch("COMMIT").unwrap();
                    assert_ne!(one(&reader, ROWS), before, "{what}");
                }
            }
        }
    }
}
