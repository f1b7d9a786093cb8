//! SQLite's own allocations fail, one after the other. The answer is that there is no memory, or
//! success; what was committed stays. SQLite must be told of the allocator before its first use, so
//! this file is one test in a process of its own.
//!
//! `SQLITE_TDE_FULL=1` fails every allocation, otherwise a sample.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::types::Value;
use rusqlite::{Connection, ffi};
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::process::full;
use sqlite_tde_testkit::{Home, one, rows};

/// The allocations still to come before the one that fails; below zero, none does.
static LEFT: AtomicI64 = AtomicI64::new(-1);
static BASE: OnceLock<Base> = OnceLock::new();

struct Base {
    malloc: unsafe extern "C" fn(c_int) -> *mut c_void,
    realloc: unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void,
}

fn fails() -> bool {
    LEFT.load(Ordering::SeqCst) >= 0 && LEFT.fetch_sub(1, Ordering::SeqCst) == 0
}

unsafe extern "C" fn malloc(len: c_int) -> *mut c_void {
    let base = BASE.get().unwrap();
    // SAFETY: the base's own function, with SQLite's argument.
    if fails() { std::ptr::null_mut() } else { unsafe { (base.malloc)(len) } }
}

unsafe extern "C" fn realloc(at: *mut c_void, len: c_int) -> *mut c_void {
    let base = BASE.get().unwrap();
    // SAFETY: as above.
    if fails() { std::ptr::null_mut() } else { unsafe { (base.realloc)(at, len) } }
}

fn install() {
    let mut base = MaybeUninit::<ffi::sqlite3_mem_methods>::uninit();
    // SAFETY: SQLite is not in use yet; it fills what it is given, and copies what it gets.
    unsafe {
        let code = ffi::sqlite3_config(ffi::SQLITE_CONFIG_GETMALLOC, base.as_mut_ptr());
        assert_eq!(code, ffi::SQLITE_OK);
        let base = base.assume_init();
        let (malloc_of, realloc_of) = (base.xMalloc.unwrap(), base.xRealloc.unwrap());
        BASE.get_or_init(|| Base { malloc: malloc_of, realloc: realloc_of });
        let ours =
            ffi::sqlite3_mem_methods { xMalloc: Some(malloc), xRealloc: Some(realloc), ..base };
        let code = ffi::sqlite3_config(ffi::SQLITE_CONFIG_MALLOC, &raw const ours);
        assert_eq!(code, ffi::SQLITE_OK);
        // No small memory of its own for each connection: that would hide most allocations.
        let code = ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOOKASIDE, 0 as c_int, 0 as c_int);
        assert_eq!(code, ffi::SQLITE_OK);
    }
}

const SETTINGS: &str = "PRAGMA page_size=1024; PRAGMA cache_size=5; PRAGMA temp_store=FILE;
    PRAGMA synchronous=OFF; PRAGMA journal_mode=";
/// One transaction each; each leaves another number in `n`.
const STEPS: [&str; 5] = [
    "BEGIN; CREATE TABLE n(k); INSERT INTO n VALUES(1); CREATE TABLE t(a INTEGER PRIMARY KEY, b);
     WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 60)
     INSERT INTO t SELECT i, printf('%0200d', i) FROM i; COMMIT",
    "BEGIN; UPDATE n SET k = 2; UPDATE t SET b = b || '!'; SAVEPOINT s; DELETE FROM t;
     ROLLBACK TO s; COMMIT",
    "BEGIN; UPDATE n SET k = 3; CREATE TEMP TABLE x AS SELECT * FROM t ORDER BY b DESC;
     DELETE FROM t WHERE a % 2; COMMIT",
    "PRAGMA wal_checkpoint(RESTART); VACUUM; UPDATE n SET k = 4",
    "BEGIN; UPDATE n SET k = 5; INSERT INTO t(b) SELECT b FROM t; COMMIT",
];

fn is_no_memory(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(ffi::SQLITE_NOMEM | ffi::SQLITE_IOERR_NOMEM))
}

fn state(db: &Connection) -> Vec<String> {
    match one(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'n'") {
        Value::Integer(0) => Vec::new(),
        _ => [rows(db, "SELECT k FROM n"), rows(db, "SELECT * FROM t")].concat(),
    }
}

/// Works up to the first error. Answers how many steps were done.
fn work(home: &Home, name: &str, mode: &str) -> Result<(), (usize, String)> {
    let bad = |error: &rusqlite::Error| !is_no_memory(error);
    let db = match home.try_open(&home.path(name)) {
        Ok(db) => db,
        Err(sqlite_tde::Error::Sqlite(error)) if !bad(&error) => return Err((0, String::new())),
        Err(error) => return Err((0, format!("opening: {error:?}"))),
    };
    let settings = format!("{SETTINGS}{mode}");
    for (done, step) in std::iter::once(settings.as_str()).chain(STEPS).enumerate() {
        if let Err(error) = db.execute_batch(step) {
            let wrong = if bad(&error) { format!("{step}: {error:?}") } else { String::new() };
            return Err((done.saturating_sub(1), wrong));
        }
    }
    Ok(())
}

#[test]
fn without_memory_nothing_is_damaged() {
    install();
    let home = Home::new();
    for mode in ["DELETE", "WAL"] {
        let mut states = vec![Vec::new()];
        let good = format!("good-{mode}.db");
        {
            let db = home.open(&home.path(&good));
            db.execute_batch(&format!("{SETTINGS}{mode}")).unwrap();
            for step in STEPS {
                db.execute_batch(step).unwrap();
                states.push(state(&db));
            }
        }
        LEFT.store(i64::MAX, Ordering::SeqCst);
        work(&home, &format!("count-{mode}.db"), mode).unwrap();
        let calls = i64::MAX - LEFT.swap(-1, Ordering::SeqCst);
        let stride = if full() { 1 } else { calls as usize / 150 };
        let mut failed = 0;
        for at in (0..calls).step_by(stride) {
            let (what, name) = (format!("{mode}, allocation {at} of {calls}"), format!("{at}.db"));
            LEFT.store(at, Ordering::SeqCst);
            let result = work(&home, &name, mode);
            LEFT.store(-1, Ordering::SeqCst);
            let done = match result {
                Ok(()) => STEPS.len(),
                Err((done, wrong)) if wrong.is_empty() => done,
                Err((_, wrong)) => panic!("{what}: {wrong}"),
            };
            failed += usize::from(done < STEPS.len());
            let db = home.open(&home.path(&name));
            let seen = state(&db);
            let next = states.get(done + 1);
            assert!(states[done] == seen || next == Some(&seen), "{what}: after {done} steps");
            assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{what}");
            match db.tde_verify("main", |_, _| ()) {
                Ok(found) if found.bad_pages.is_empty() => {}
                Err(sqlite_tde::Error::NotEncrypted) if seen.is_empty() => {}
                other => panic!("{what}: {other:?}"),
            }
            drop(db);
            for end in ["", "-journal", "-tdewal", "-shm"] {
                let _ = std::fs::remove_file(home.path(&format!("{name}{end}")));
            }
        }
        eprintln!("{mode}: {calls} allocations, every {stride}th failed, {failed} with an error");
        assert!(failed > 50, "{mode}: {failed}");
    }
}
