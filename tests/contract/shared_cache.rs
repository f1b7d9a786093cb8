//! Connections of one shared cache have one open file, and SQLite's mutex over it.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::process;
use sqlite_tde_testkit::vfs::{Below, Call, File, Properties, TestVfs};
use sqlite_tde_testkit::{Home, rows};

/// One thread reads and writes, others ask for keys by every road. None is in the file beside
/// another.
#[test]
fn asking_for_keys_waits_for_whoever_is_in_the_file() {
    let full = process::full();
    let seconds = if full { 30 } else { 2 };
    for mode in ["WAL", "DELETE"] {
        let home = Home::new();
        let uri = format!("{}&cache=shared", home.uri(&home.path("main.db")));
        let open = || {
            let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
            let db = Connection::open_with_flags(&uri, flags).unwrap();
            db.busy_timeout(Duration::from_secs(5)).unwrap();
            db
        };
        let first = open();
        first
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; PRAGMA cache_size=5; PRAGMA synchronous=OFF;
                 CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
            ))
            .unwrap();
        let over = AtomicBool::new(false);
        let asked = |sql: &str| {
            let db = open();
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                let done = db.prepare(sql).and_then(|mut statement| {
                    let mut rows = statement.query([])?;
                    while rows.next()?.is_some() {}
                    Ok(())
                });
                match done {
                    Ok(()) => count += 1,
                    // Another connection of the cache writes to the table.
                    Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseLocked) => {}
                    Err(error) => panic!("{mode}, {sql}: {error}"),
                }
            }
            assert!(count > 0, "{mode}, {sql}");
        };
        std::thread::scope(|scope| {
            for sql in [
                "SELECT tde_status()",
                "SELECT * FROM tde_database_encryption_keys",
                "SELECT * FROM tde_key_protectors",
                "SELECT tde_rotate_protector()",
            ] {
                let asked = &asked;
                scope.spawn(move || asked(sql));
            }
            let end = Instant::now() + Duration::from_secs(seconds);
            let mut turn = 0;
            while Instant::now() < end {
                turn += 1;
                let sql = format!(
                    "BEGIN; REPLACE INTO t VALUES({}, hex(randomblob(3000))); COMMIT;
                     SELECT count(*) FROM t",
                    turn % 200
                );
                if let Err(error) = first.execute_batch(&sql) {
                    over.store(true, Ordering::Relaxed);
                    panic!("{mode}, turn {turn}: {error}");
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(rows(&first, "PRAGMA integrity_check"), ["[Text(\"ok\")]"]);
        assert!(first.tde_verify("main", |_, _| ()).unwrap().is_clean());
    }
}

/// A progress function may use the connection that it serves.
#[test]
fn a_callback_may_use_the_connection() {
    let home = Home::new();
    let db = home.open(&home.path("main.db"));
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(50000))").unwrap();
    let mut calls = 0;
    let found = db.tde_verify("main", |_, _| {
        calls += 1;
        for sql in
            ["SELECT count(*) FROM sqlite_schema", "INSERT INTO t VALUES(1)", "SELECT tde_status()"]
        {
            db.execute_batch(sql).unwrap();
        }
    });
    assert!(found.unwrap().is_clean());
    assert!(calls > 0);
    assert_eq!(rows(&db, "SELECT count(*) FROM t"), [format!("[Integer({})]", calls + 1)]);
}

/// A VFS that takes its time when SQLite passes the connection that uses a file.
#[derive(Default)]
struct Slow {
    passed: AtomicUsize,
}

impl Properties for Slow {
    fn call(&self, _: &File, call: &mut Call<'_>, below: &Below) -> c_int {
        if let Call::FileControl(ffi::SQLITE_FCNTL_PDB, _) = call {
            self.passed.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(30));
        }
        below.call(call)
    }
}

/// Opening a connection to a shared cache tells its open file of it (`SQLITE_FCNTL_PDB`), without
/// the mutex that the others hold in their calls on it. Here that takes longer than many of those.
#[test]
fn opening_in_a_shared_cache_disturbs_nobody() {
    let slow = TestVfs::register(Some("unix"), Slow::default());
    for mode in ["WAL", "DELETE"] {
        let home = Home::with(|options| options.base(slow.name));
        let uri = format!("{}&cache=shared", home.uri(&home.path("main.db")));
        let open = || {
            let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(&uri, flags).unwrap()
        };
        let first = open();
        first
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; PRAGMA cache_size=5; PRAGMA synchronous=OFF;
                 CREATE TABLE t(a INTEGER PRIMARY KEY, b);
                 WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 200)
                 INSERT INTO t SELECT i, hex(randomblob(2000)) FROM i"
            ))
            .unwrap();
        let before = slow.passed.load(Ordering::Relaxed);
        let over = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..10).for_each(|_| drop(open()));
                over.store(true, Ordering::Relaxed);
            });
            let mut done = Ok(());
            while done.is_ok() && !over.load(Ordering::Relaxed) {
                done = first.execute_batch(
                    "SELECT sum(length(b)) FROM t;
                     BEGIN; UPDATE t SET b = b || '' WHERE a % 7 = 0; COMMIT",
                );
            }
            done
        });
        assert!(done.is_ok(), "{mode}: {done:?}");
        assert!(slow.passed.load(Ordering::Relaxed) >= before + 10, "{mode}");
    }
}
