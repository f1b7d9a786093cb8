//! Nothing on the page path allocates: reading and rewriting pages costs no call to Rust's
//! allocator. SQLite's own memory comes from C and is not counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rusqlite::Connection;
use rusqlite::ffi::{self, SQLITE_DBSTATUS_CACHE_MISS, SQLITE_DBSTATUS_CACHE_WRITE};
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::Home;

/// Counts the allocations of threads that ask for it.
struct Counting;

thread_local! {
    static COUNT: Cell<Option<usize>> = const { Cell::new(None) };
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ = COUNT.try_with(|count| count.set(count.get().map(|n| n + 1)));
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, len) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The allocations that `work` makes on this thread.
fn allocations(work: impl FnOnce()) -> usize {
    COUNT.set(Some(0));
    work();
    COUNT.take().unwrap()
}

const ROWS: i64 = 1_000;

/// A table of one row a page, and a cache that holds hardly any.
fn build(home: &Home, cipher: sqlite_tde::Cipher) -> Connection {
    let path = home.path(cipher.name());
    let db = sqlite_tde::open_with(&path, &home.options().cipher(cipher)).unwrap();
    db.execute_batch(
        "PRAGMA page_size=4096; PRAGMA cache_size=10;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
         INSERT INTO t SELECT i, randomblob(3500) FROM n",
    )
    .unwrap();
    db
}

/// How often the cache did not have a page (`CACHE_MISS`) or wrote one out (`CACHE_WRITE`), since
/// the connection was opened.
fn cache(db: &Connection, what: i32) -> i64 {
    let (mut now, mut high) = (0, 0);
    // SAFETY: the connection is open, and both pointers are to integers.
    let code = unsafe { ffi::sqlite3_db_status(db.handle(), what, &mut now, &mut high, 0) };
    assert_eq!(code, ffi::SQLITE_OK);
    now.into()
}

const CIPHERS: [sqlite_tde::Cipher; 3] = sqlite_tde::Cipher::ALL;

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn reading_a_page_allocates_nothing() {
    let home = Home::new();
    for cipher in CIPHERS {
        let db = build(&home, cipher);
        let mut point = db.prepare("SELECT length(b) FROM t WHERE a = ?1").unwrap();
        let mut read = |a: i64| {
            let len: i64 = point.query_row([a], |row| row.get(0)).unwrap();
            assert_eq!(len, 3500);
        };
        // What is read ahead gets its room once.
        (1..=ROWS).for_each(&mut read);
        let before = cache(&db, SQLITE_DBSTATUS_CACHE_MISS);
        let counted = allocations(|| (1..=ROWS).for_each(&mut read));
        assert!(cache(&db, SQLITE_DBSTATUS_CACHE_MISS) - before >= ROWS, "the cache served them");
        assert_eq!(counted, 0, "{}: {ROWS} reads by rowid", cipher.name());

        let mut all = db.prepare("SELECT a, b FROM t").unwrap();
        let mut scan = || {
            let mut rows = all.query([]).unwrap();
            let mut found = 0;
            while let Some(row) = rows.next().unwrap() {
                found += 1;
                assert_eq!(row.get_ref(1).unwrap().as_blob().unwrap().len(), 3500);
            }
            assert_eq!(found, ROWS);
        };
        scan();
        let before = cache(&db, SQLITE_DBSTATUS_CACHE_MISS);
        let counted = allocations(scan);
        assert!(cache(&db, SQLITE_DBSTATUS_CACHE_MISS) - before >= ROWS, "the cache served them");
        assert_eq!(counted, 0, "{}: one scan", cipher.name());
    }
}

/// Inside one transaction, whose journal has every page by then: a page is read, changed, and
/// written when the cache is full.
#[test]
fn rewriting_a_page_allocates_nothing() {
    let home = Home::new();
    for cipher in CIPHERS {
        let db = build(&home, cipher);
        let mut point = db.prepare("UPDATE t SET b = randomblob(3500) WHERE a = ?1").unwrap();
        db.execute_batch("BEGIN").unwrap();
        let mut rewrite = || (1..=ROWS).for_each(|a| assert_eq!(point.execute([a]).unwrap(), 1));
        rewrite();
        // Reading back what this transaction wrote keeps its key schedule: one allocation for all.
        db.query_row("SELECT length(b) FROM t WHERE a = 1", [], |_| Ok(())).unwrap();
        let before = cache(&db, SQLITE_DBSTATUS_CACHE_WRITE);
        let counted = allocations(&mut rewrite);
        let written = cache(&db, SQLITE_DBSTATUS_CACHE_WRITE) - before;
        assert!(written >= ROWS * 9 / 10, "only {written} were written");
        assert_eq!(counted, 0, "{}: {ROWS} pages rewritten", cipher.name());
        db.execute_batch("COMMIT").unwrap();
        assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean());
    }
}

/// The first write of each page in a transaction goes into the journal as well.
#[test]
fn journalling_a_page_allocates_nothing() {
    let home = Home::new();
    for cipher in CIPHERS {
        let db = build(&home, cipher);
        let mut point = db.prepare("UPDATE t SET b = randomblob(3500) WHERE a = ?1").unwrap();
        db.execute_batch("BEGIN").unwrap();
        let mut rewrite = |from: i64, to: i64| {
            (from..=to).for_each(|a| assert_eq!(point.execute([a]).unwrap(), 1));
        };
        rewrite(1, ROWS / 2);
        let counted = allocations(|| rewrite(ROWS / 2 + 1, ROWS));
        assert_eq!(counted, 0, "{}: {} pages journalled", cipher.name(), ROWS / 2);
        db.execute_batch("COMMIT").unwrap();
    }
}
