//! SQLite's contract with a VFS, asked through the raw pointers that SQLite itself uses.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, ffi};
use sqlite_tde::TdeConnection;
use sqlite_tde::provider::{
    Answer, KeyProvider, ProviderError, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde_testkit::{Home, one, plain, rows};

/// The open file behind `main`.
fn file(db: &Connection) -> *mut ffi::sqlite3_file {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    control(db, ffi::SQLITE_FCNTL_FILE_POINTER, (&raw mut file).cast());
    file
}

fn control(db: &Connection, op: c_int, arg: *mut c_void) -> c_int {
    unsafe { ffi::sqlite3_file_control(db.handle(), c"main".as_ptr(), op, arg) }
}

fn filled(home: &Home) -> Connection {
    let db = home.open(&home.path("a.db"));
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1), (2)").unwrap();
    db
}

/// Only what holds is claimed.
#[test]
fn no_atomic_write_is_claimed() {
    let home = Home::new();
    let db = filled(&home);
    let characteristics = unsafe {
        let file = file(&db);
        ((*(*file).pMethods).xDeviceCharacteristics.unwrap())(file)
    };
    let atomic = ffi::SQLITE_IOCAP_ATOMIC
        | ffi::SQLITE_IOCAP_ATOMIC512
        | ffi::SQLITE_IOCAP_ATOMIC4K
        | ffi::SQLITE_IOCAP_ATOMIC64K
        | ffi::SQLITE_IOCAP_BATCH_ATOMIC
        | ffi::SQLITE_IOCAP_SAFE_APPEND;
    assert_eq!(characteristics & atomic, 0);
    assert_ne!(characteristics & ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE, 0, "the base's own");
}

/// A page of ours is in no mapping, and SQLite copes.
#[test]
fn memory_mapping_answers_null_and_reads_go_on() {
    let home = Home::new();
    let db = filled(&home);
    db.execute_batch("PRAGMA mmap_size=1000000").unwrap();
    let mut page: *mut c_void = ptr::dangling_mut();
    let code = unsafe {
        let file = file(&db);
        ((*(*file).pMethods).xFetch.unwrap())(file, 0, 4096, &mut page)
    };
    assert_eq!((code, page), (ffi::SQLITE_OK, ptr::null_mut()));
    assert_eq!(one(&db, "SELECT sum(a) FROM t"), Value::Integer(3));
}

/// xWrite never changes SQLite's buffer.
#[test]
fn what_sqlite_writes_stays_as_it_was() {
    let home = Home::new();
    let db = filled(&home);
    db.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let page = vec![0xa5_u8; 4096];
    let code = unsafe {
        let file = file(&db);
        ((*(*file).pMethods).xWrite.unwrap())(file, page.as_ptr().cast(), 4096, 4096 * 9)
    };
    assert_eq!(code, ffi::SQLITE_OK);
    assert!(page.iter().all(|&byte| byte == 0xa5));
    // Pages 3 to 9 were skipped, and are pages all the same.
    assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean());
}

/// Hints must not grow the file by bytes that are no pages.
#[test]
fn size_hints_do_not_grow_the_file() {
    let home = Home::new();
    let db = filled(&home);
    let len = || std::fs::metadata(home.path("a.db")).unwrap().len();
    let before = len();
    let mut chunk: c_int = 1 << 20;
    control(&db, ffi::SQLITE_FCNTL_CHUNK_SIZE, (&raw mut chunk).cast());
    let mut hint: i64 = 1 << 20;
    control(&db, ffi::SQLITE_FCNTL_SIZE_HINT, (&raw mut hint).cast());
    db.execute_batch("INSERT INTO t VALUES(3)").unwrap();
    assert_eq!(len(), before);
}

#[test]
fn the_name_of_the_vfs_shows_what_is_below() {
    let home = Home::new();
    let db = filled(&home);
    let mut name: *mut c_char = ptr::null_mut();
    control(&db, ffi::SQLITE_FCNTL_VFSNAME, (&raw mut name).cast());
    let text = unsafe { CStr::from_ptr(name) }.to_str().unwrap().to_owned();
    unsafe { ffi::sqlite3_free(name.cast()) };
    assert!(text.starts_with("tde/"), "{text}");
}

/// Nonsense that no SQLite sends is an error, not the end of the process.
#[test]
fn bad_arguments_are_errors() {
    let home = Home::new();
    let db = filled(&home);
    let mut buf = [0_u8; 8];
    unsafe {
        let file = file(&db);
        let methods = &*(*file).pMethods;
        for (len, at) in [(-1, 0), (8, -1)] {
            let code = (methods.xRead.unwrap())(file, buf.as_mut_ptr().cast(), len, at);
            assert_eq!(code & 0xff, ffi::SQLITE_IOERR, "read {len} at {at}");
            let code = (methods.xWrite.unwrap())(file, buf.as_ptr().cast(), len, at);
            assert_eq!(code & 0xff, ffi::SQLITE_IOERR, "write {len} at {at}");
        }
        let code = (methods.xWrite.unwrap())(file, buf.as_ptr().cast(), 8, 3);
        assert_eq!(code & 0xff, ffi::SQLITE_IOERR, "part of a page");
    }
    assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()));
}

/// A panic inside a callback is an I/O error to SQLite, and the process goes on.
#[test]
fn a_panic_does_not_cross_into_sqlite() {
    struct Panics;
    impl KeyProvider for Panics {
        fn wrap(&self, _: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            panic!("a provider's fault, on purpose")
        }
        fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            panic!("a provider's fault, on purpose")
        }
        fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
            panic!("a provider's fault, on purpose")
        }
    }
    let home = Home::with(|options| {
        options.provider("panics", Arc::new(Panics)).default_protector("panics:key")
    });
    let db = home.open(&home.path("a.db"));
    let error = db.execute_batch("CREATE TABLE t(a)").unwrap_err();
    let code = error.sqlite_error().unwrap().extended_code & 0xff;
    assert!(matches!(code, ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN), "{error}");
    assert_eq!(one(&db, "SELECT 1"), Value::Integer(1), "the connection goes on");
    assert_eq!(std::fs::metadata(home.path("a.db")).unwrap().len(), 0);
}

/// A PRAGMA arrives at prepare; preparing one changes nothing.
#[test]
fn preparing_a_pragma_changes_nothing() {
    let home = Home::new();
    let db = filled(&home);
    let before = std::fs::read(home.path("a.db")).unwrap();
    for sql in ["PRAGMA tde_status", "PRAGMA tde_cipher", "PRAGMA main.tde_status"] {
        drop(db.prepare(sql).unwrap());
        assert!(!rows(&db, sql).is_empty(), "{sql}");
    }
    assert_eq!(std::fs::read(home.path("a.db")).unwrap(), before);
}

/// The change counter that SQLite reads is the real one, so an unchanged cache is kept.
#[test]
fn an_unchanged_database_is_not_read_again() {
    let home = Home::new();
    let db = filled(&home);
    let misses = || {
        let (mut now, mut high) = (0, 0);
        let op = ffi::SQLITE_DBSTATUS_CACHE_MISS;
        unsafe { ffi::sqlite3_db_status(db.handle(), op, &mut now, &mut high, 0) };
        now
    };
    rows(&db, "SELECT * FROM t");
    let before = misses();
    for _ in 0..10 {
        rows(&db, "SELECT * FROM t");
    }
    assert_eq!(misses(), before);
}

/// Closing one connection must not drop the locks of another of the same process.
#[test]
fn closing_a_second_connection_keeps_the_first_ones_lock() {
    let home = Home::new();
    let first = filled(&home);
    first.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES(9)").unwrap();
    let second = home.open(&home.path("a.db"));
    second.tde_status("main").unwrap();
    assert!(second.tde_verify("main", |_, _| ()).unwrap().is_clean());
    drop(second);
    let third = home.open(&home.path("a.db"));
    third.busy_timeout(std::time::Duration::ZERO).unwrap();
    let error = third.execute_batch("BEGIN IMMEDIATE").unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
    first.execute_batch("COMMIT").unwrap();
}

/// Through the same VFS, a plaintext database is passed through where that was allowed.
#[test]
fn plaintext_passes_through_where_it_is_allowed() {
    let home = Home::with(|options| options.allow_plaintext(true));
    let path = home.path("b.plain");
    plain(&path).execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(7)").unwrap();
    let db = home.open(&path);
    db.execute_batch("PRAGMA journal_mode=WAL; INSERT INTO t VALUES(8)").unwrap();
    assert_eq!(one(&db, "SELECT sum(a) FROM t"), Value::Integer(15));
    assert!(matches!(db.tde_status("main"), Err(sqlite_tde::Error::NotEncrypted)));
    drop(db);
    assert_eq!(one(&plain(&path), "SELECT sum(a) FROM t"), Value::Integer(15));
}

/// `sqlite3_db_cacheflush` puts dirty pages into the file, in the middle of a transaction: whoever
/// copies or watches the file finds them there.
#[test]
fn a_cache_flush_reaches_the_file() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
        let home = Home::new();
        let db = filled(&home);
        db.execute_batch(&format!("PRAGMA journal_mode={mode}; BEGIN")).unwrap();
        let on_disk = || std::fs::read(home.path("a.db")).unwrap();
        for round in 0..3 {
            let before = on_disk();
            db.execute_batch("INSERT INTO t VALUES(randomblob(9000))").unwrap();
            assert!(on_disk() == before, "{mode}, {round}: the cache has it");
            db.cache_flush().unwrap();
            assert!(on_disk().len() > before.len(), "{mode}, {round}: pages are in the file");
        }
        db.execute_batch("COMMIT").unwrap();
        assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{mode}");
    }
}
