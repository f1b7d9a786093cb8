//! What applications do with a connection works as it does on plain SQLite.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags};
use sqlite_tde::{Error, OpenOptions, TdeConnection};
use sqlite_tde_testkit::{Home, one, rows};

/// What an application writes to have a pool of encrypted connections.
struct Manager {
    path: PathBuf,
    options: OpenOptions,
}

impl r2d2::ManageConnection for Manager {
    type Connection = Connection;
    type Error = Error;

    fn connect(&self) -> Result<Connection, Error> {
        let db = sqlite_tde::open_with(&self.path, &self.options)?;
        db.busy_timeout(Duration::from_secs(60))?;
        Ok(db)
    }

    fn is_valid(&self, db: &mut Connection) -> Result<(), Error> {
        Ok(db.execute_batch("SELECT 1")?)
    }

    fn has_broken(&self, _: &mut Connection) -> bool {
        false
    }
}

#[test]
fn a_pool_serves_eight_threads() {
    const THREADS: i64 = 8;
    const EACH: i64 = 20;
    let home = Home::new();
    let path = home.path("a.db");
    home.open(&path).execute_batch("CREATE TABLE t(thread, i, UNIQUE(thread, i))").unwrap();
    let manager = Manager { path: path.clone(), options: home.options() };
    let pool = r2d2::Pool::builder().max_size(4).build(manager).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let pool = pool.clone();
            scope.spawn(move || {
                for i in 0..EACH {
                    let mut db = pool.get().unwrap();
                    let work = db
                        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
                        .unwrap();
                    work.execute("INSERT INTO t VALUES(?1, ?2)", (thread, i)).unwrap();
                    work.commit().unwrap();
                }
            });
        }
    });
    let db = pool.get().unwrap();
    assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(THREADS * EACH));
    assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()));
    assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean());
}

#[test]
fn prepared_statements_and_transactions() {
    let home = Home::new();
    let mut db = home.open(&home.path("a.db"));
    db.set_prepared_statement_cache_capacity(2);
    db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)").unwrap();
    for i in 0..50 {
        for sql in [
            "INSERT INTO t(b) VALUES(?1)",
            "UPDATE t SET b = b + ?1",
            "DELETE FROM t WHERE b < ?1 - 1000000",
        ] {
            db.prepare_cached(sql).unwrap().execute([i]).unwrap();
        }
    }
    let before = rows(&db, "SELECT * FROM t");
    assert_eq!(before.len(), 50);

    // Rolled back by dropping, by asking, and by an error inside.
    let work = db.transaction().unwrap();
    work.execute("DELETE FROM t", []).unwrap();
    drop(work);
    assert_eq!(rows(&db, "SELECT * FROM t"), before, "dropped");
    let work = db.transaction().unwrap();
    work.execute("UPDATE t SET b = zeroblob(5000)", []).unwrap();
    work.rollback().unwrap();
    assert_eq!(rows(&db, "SELECT * FROM t"), before, "rolled back");
    let work = db.transaction().unwrap();
    work.execute("UPDATE t SET b = 0", []).unwrap();
    work.execute("INSERT INTO t(a) VALUES(1)", []).unwrap_err();
    drop(work);
    assert_eq!(rows(&db, "SELECT * FROM t"), before, "after an error");

    let mut work = db.transaction().unwrap();
    let inner = work.savepoint().unwrap();
    inner.execute("DELETE FROM t", []).unwrap();
    drop(inner);
    work.execute("INSERT INTO t(b) VALUES('kept')", []).unwrap();
    work.commit().unwrap();
    assert_eq!(rows(&db, "SELECT * FROM t").len(), 51, "savepoint back, transaction kept");
}

#[test]
fn reading_only() {
    let home = Home::new();
    let path = home.path("a.db");
    home.open(&path).execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&path, permissions).unwrap();
    let before = std::fs::read(&path).unwrap();

    let read_only = home.options().flags(OpenFlags::SQLITE_OPEN_READ_ONLY);
    for (what, options) in [
        ("read only", read_only.clone()),
        ("read only and immutable", read_only.parameter("immutable", "1")),
        ("mode=ro", home.options().parameter("mode", "ro")),
    ] {
        let db = sqlite_tde::open_with(&path, &options).unwrap();
        assert!(db.is_readonly(MAIN_DB).unwrap(), "{what}");
        assert_eq!(one(&db, "SELECT a FROM t"), Value::Integer(1), "{what}");
        assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{what}");
        assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{what}");
        let error = db.execute("INSERT INTO t VALUES(2)", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly), "{what}: {error}");
        // Sorting and temporary tables need no permission to write.
        db.execute_batch("CREATE TEMP TABLE s AS SELECT a FROM t ORDER BY a DESC").unwrap();
        assert_eq!(one(&db, "SELECT a FROM s"), Value::Integer(1), "{what}");
    }
    assert!(std::fs::read(&path).unwrap() == before, "altered by reading");
    assert!(!home.path("a.db-journal").exists());
}

#[test]
fn databases_in_memory_stay_there() {
    let home = Home::new();
    let db = home.open(&home.path("a.db"));
    db.execute_batch(
        "CREATE TABLE t(a); INSERT INTO t VALUES(1), (2);
         ATTACH ':memory:' AS m; CREATE TABLE m.t AS SELECT * FROM t;
         DELETE FROM main.t;
         BEGIN; DELETE FROM m.t; ROLLBACK;",
    )
    .unwrap();
    assert_eq!(one(&db, "SELECT count(*) FROM m.t"), Value::Integer(2));
    assert_eq!(one(&db, "SELECT count(*) FROM main.t"), Value::Integer(0));
    let memory = sqlite_tde::open_with(":memory:", &home.options()).unwrap();
    memory.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    assert_eq!(one(&memory, "SELECT a FROM t"), Value::Integer(1));
    assert!(!Path::new(":memory:").exists());
    for (db, schema) in [(&db, "m"), (&memory, "main")] {
        let error = db.tde_status(schema).unwrap_err();
        assert!(matches!(error, Error::NotEncrypted), "{schema}: {error:?}");
    }
    let error = db.tde_status("nobody").unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error:?}");
}

#[test]
fn blobs_are_read_and_written_in_place() {
    const LEN: usize = 300_000;
    let home = Home::new();
    let path = home.path("a.db");
    let want: Vec<u8> = (0..LEN).map(|i| (i / 7) as u8).collect();
    let db = home.open(&path);
    db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)").unwrap();
    db.execute("INSERT INTO t VALUES(1, zeroblob(?1))", [LEN as i64]).unwrap();
    let mut blob = db.blob_open(MAIN_DB, "t", "b", 1, false).unwrap();
    for piece in want.chunks(7_001) {
        blob.write_all(piece).unwrap();
    }
    drop(blob);
    drop(db);

    let db = home.open(&path);
    let mut blob = db.blob_open(MAIN_DB, "t", "b", 1, true).unwrap();
    let mut found = Vec::new();
    blob.read_to_end(&mut found).unwrap();
    assert!(found == want);
    for at in [0, 4047, 4048, 150_000, LEN - 100] {
        let mut piece = [0; 100];
        blob.seek(SeekFrom::Start(at as u64)).unwrap();
        blob.read_exact(&mut piece).unwrap();
        assert_eq!(piece[..], want[at..at + 100], "at {at}");
    }
}

#[test]
fn any_name_is_a_file() {
    let home = Home::new();
    for name in [
        "with a space",
        "100% sure%41%",
        "what?vfs=unix",
        "a#fragment",
        "a&tde_plaintext=allow",
        "a=b;c+d",
        "'quoted' \"twice\"",
        "back\\slash",
        "ünïcode-データ-🗝",
        "-journal",
        "file:a",
    ] {
        if cfg!(windows) && name.contains(['?', '"', '\\', ':']) {
            continue;
        }
        let path = home.path(name);
        let db = home.open(&path);
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
        drop(db);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(bytes.starts_with(b"sqlite-tde file\0"), "{name}");
        assert_eq!(one(&home.open(&path), "SELECT a FROM t"), Value::Integer(1), "{name}");

        let host = Connection::open_in_memory().unwrap();
        host.execute("ATTACH ?1 AS aux", [home.uri(&path)]).unwrap();
        assert_eq!(one(&host, "SELECT a FROM aux.t"), Value::Integer(1), "{name}, attached");
    }
}

#[cfg(unix)]
#[test]
fn a_name_that_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let home = Home::new();
    let path = home.dir.path().join(std::ffi::OsStr::from_bytes(b"a\xff.db"));
    let error = home.try_open(&path).map(drop).unwrap_err();
    assert!(matches!(&error, Error::Usage(text) if text.contains("UTF-8")), "{error:?}");
    assert!(matches!(home.options().uri(&path), Err(Error::Usage(_))));
    assert!(std::fs::read_dir(home.dir.path()).unwrap().next().is_none(), "nothing was created");
}

/// A NUL would end the name for SQLite: another file than the one that was named.
#[test]
fn a_name_with_a_nul_is_refused() {
    let home = Home::new();
    let path = home.path("a.db\0b");
    assert!(home.try_open(&path).is_err());
    assert!(std::fs::read_dir(home.dir.path()).unwrap().next().is_none(), "nothing was created");
}
