//! The work that `scripts/leaks.sh` traces: it makes SQLite write every kind of file it has. The
//! same seed makes SQLite write the same bytes, so that what plain SQLite wrote, checksums
//! included, can be searched for in what the encrypted run wrote.

use std::path::{Path, PathBuf};

use rusqlite::ffi;
use rusqlite::types::Value;
use sqlite_tde::OpenOptions;
use sqlite_tde::provider::Keystore;
use sqlite_tde_testkit::{dump, one, plain, reserve, spill_at_once};

const TASK: &str = "SQLITE_TDE_TEST_TRACED";
const MODES: [&str; 6] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"];
/// scripts/leaks.py has the same.
const MARKER: &str = "zqxjkvwmarker7395canaryhpbfgy";
const SEED: i32 = 7395;

/// `M` stands for the marker.
const WORK: &[&str] = &[
    "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c TEXT);
     WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 60)
     INSERT INTO t SELECT i, 'M' || (i * 7919 % 211), printf('%0100d', i) || 'M' FROM i",
    "CREATE INDEX tb ON t(b, c)",
    "CREATE TABLE aux.u AS SELECT * FROM t ORDER BY c DESC",
    "CREATE TEMP TABLE x AS SELECT * FROM t ORDER BY c || b DESC; CREATE INDEX temp.xb ON x(b);
     BEGIN; UPDATE x SET b = b || 'M'; ROLLBACK",
    "CREATE VIRTUAL TABLE f USING fts5(w); INSERT INTO f SELECT b FROM t",
    "BEGIN; UPDATE t SET b = b || 'M'; SAVEPOINT s; UPDATE t SET c = 'M' || c;
     UPDATE OR REPLACE t SET a = a + 1000; RELEASE s; UPDATE aux.u SET b = c; COMMIT",
    "BEGIN; UPDATE t SET c = b || c; UPDATE aux.u SET c = 'M' || b; DELETE FROM f; COMMIT",
    "UPDATE t SET b = substr(c || b, 1, 300)",
    "DELETE FROM t WHERE a % 3 = 0",
    "VACUUM",
    "INSERT INTO t(b, c) SELECT b, 'M' || a FROM aux.u",
];
/// Without a journal SQLite cannot roll back.
const ROLLED_BACK: &str = "BEGIN; UPDATE t SET b = 'M' || b || b; SAVEPOINT s; DELETE FROM aux.u;
     ROLLBACK TO s; DELETE FROM t; ROLLBACK";

/// What SQLite draws at random from now on, salts above all, it draws again in the next run.
#[allow(unsafe_code)]
fn draw_again() {
    let none = std::ptr::null_mut::<ffi::sqlite3>();
    // SAFETY: the arguments are those of this control.
    unsafe { ffi::sqlite3_test_control(ffi::SQLITE_TESTCTRL_PRNG_SEED, SEED, none) };
}

fn uri(path: &Path, encrypted: bool) -> String {
    let vfs = if encrypted { "traced" } else { "unix" };
    OpenOptions::new().vfs(vfs).uri(path).unwrap()
}

/// SQLite's checksum over the log so far, from the wal-index, as it stands in the last frame.
fn frame_checksum(main: &Path) -> String {
    let index = std::fs::read(PathBuf::from(format!("{}-shm", main.display()))).unwrap();
    let word = |at: usize| u32::from_ne_bytes(index[at..at + 4].try_into().unwrap());
    format!("{:08x}{:08x}", word(24), word(28))
}

/// Works in `dir`. Answers what the databases hold at the end, and the checksums of the logs.
fn work(dir: &Path, encrypted: bool, rounds: u64) -> (Vec<String>, Vec<String>) {
    spill_at_once();
    if encrypted {
        let keystore = Keystore::at(dir.join("keys"));
        sqlite_tde::register(sqlite_tde_testkit::options("traced").keystore(keystore)).unwrap();
    }
    let (mut dumps, mut checksums) = (Vec::new(), Vec::new());
    for mode in MODES {
        let (main, aux) = (dir.join(format!("{mode}.db")), dir.join(format!("{mode}-aux.db")));
        let db = plain(Path::new(&uri(&main, encrypted)));
        draw_again();
        db.execute_batch(&format!("ATTACH '{}' AS aux", uri(&aux, encrypted))).unwrap();
        if !encrypted {
            reserve(&db, c"main");
            reserve(&db, c"aux");
        }
        db.execute_batch(&format!(
            "PRAGMA main.page_size=1024; PRAGMA aux.page_size=1024; PRAGMA cache_size=5;
             PRAGMA aux.cache_size=5; PRAGMA temp_store=FILE; PRAGMA journal_mode={mode};
             PRAGMA main.synchronous=NORMAL; PRAGMA aux.synchronous=NORMAL;
             PRAGMA wal_autocheckpoint=50"
        ))
        .unwrap();
        let rolled_back = (mode != "OFF").then_some(ROLLED_BACK);
        for sql in WORK.iter().copied().chain(rolled_back) {
            db.execute_batch(&sql.replace("'M'", &format!("'{MARKER}'")))
                .unwrap_or_else(|error| panic!("{mode}: {sql}: {error}"));
            if mode == "WAL" {
                checksums.push(frame_checksum(&main));
            }
        }
        for round in 0..rounds {
            let sql = format!(
                "BEGIN; UPDATE t SET b = substr('M' || b, 1, 200) WHERE a % 7 = {round} % 7;
                 INSERT INTO aux.u SELECT a + 10000, b, c FROM t LIMIT 50; COMMIT;
                 DELETE FROM aux.u WHERE a > 10000"
            );
            db.execute_batch(&sql.replace("'M'", &format!("'{MARKER}'"))).unwrap();
        }
        assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{mode}");
        dumps.extend(dump(&db, "main"));
        dumps.extend(dump(&db, "aux"));
    }
    (dumps, checksums)
}

/// Where nothing traces it, the work must do the same encrypted and plain, checksums included.
/// `dir|encrypted|rounds` in the environment is one traced run.
#[test]
fn writes_every_kind_of_file() {
    let Ok(task) = std::env::var(TASK) else {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (work(one.path(), true, 2), work(other.path(), false, 2));
        assert_eq!(ours.0, theirs.0, "what the databases hold");
        assert_eq!(ours.1, theirs.1, "SQLite's checksums over its logs");
        assert!(ours.1.len() > 5);
        return;
    };
    let parts: Vec<&str> = task.split('|').collect();
    let [dir, encrypted, rounds] = parts[..] else { panic!("{task}") };
    let (_, checksums) = work(Path::new(dir), encrypted == "true", rounds.parse().unwrap());
    std::fs::write(Path::new(dir).join("../checksums"), checksums.join("\n")).unwrap();
}
