//! SQLite's unix VFS masks the length of a call with 0x1ffff: 128 KiB write nothing. So no call on
//! the base is longer than 64 KiB, whatever is gathered, whatever pages and sectors are.

use rusqlite::types::Value;
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::vfs::FaultyVfs;
use sqlite_tde_testkit::{Home, one};

const MOST: i32 = 65536;

#[test]
fn no_call_on_the_base_is_longer_than_64_kib() {
    for sector in [0, 512, 4096, 32768, 65536] {
        for page in [1024, 2048, 4096, 8192, 16384, 32768, 65536] {
            for mode in ["DELETE", "PERSIST", "WAL"] {
                let below = FaultyVfs::new();
                below.refuse_longer_than(MOST);
                below.set_sector(sector);
                let home = Home::with(|options| options.base(below.name));
                let what = format!("sector {sector}, page {page}, {mode}");
                let path = home.path("long.db");
                let run = |sql: &str| {
                    let db = home.open(&path);
                    db.execute_batch("PRAGMA cache_size=5; PRAGMA temp_store=FILE").unwrap();
                    db.execute_batch(sql).unwrap_or_else(|error| panic!("{what}: {sql}: {error}"));
                };
                run(&format!("PRAGMA page_size={page}; PRAGMA journal_mode={mode}"));
                run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
                     WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 60)
                     INSERT INTO t SELECT i, printf('%020000d', i) FROM i");
                run(&format!(
                    "PRAGMA journal_mode={mode}; BEGIN; UPDATE t SET b = b || 'x';
                     SAVEPOINT s; UPDATE t SET b = 'never'; ROLLBACK TO s; COMMIT;
                     CREATE INDEX tb ON t(b); BEGIN; DELETE FROM t WHERE a % 2; ROLLBACK"
                ));
                run("PRAGMA wal_checkpoint(TRUNCATE); VACUUM");
                let db = home.open(&path);
                let sum = one(&db, "SELECT sum(length(b)) FROM t NOT INDEXED");
                assert_eq!(sum, Value::Integer(60 * 20_001), "{what}");
                let found = db.tde_verify("main", |_, _| ()).unwrap();
                assert!(found.is_clean(), "{what}: {found:?}");
            }
        }
    }
}
