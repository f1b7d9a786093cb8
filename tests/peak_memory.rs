//! An encrypted database costs at most 4 MiB of resident memory per open connection more than a
//! plain one: what was highest in processes that do the same work on both. Linux tells it as
//! `VmHWM`. What grows with a transaction is counted in the allocator: `VmHWM` counts how much of
//! the program's own file is mapped, too, and that differs by hundreds of KiB from run to run.
#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rusqlite::{Connection, OpenFlags, Statement};
use sqlite_tde::provider::Keystore;
use sqlite_tde::{OpenOptions, Options};
use sqlite_tde_testkit::process::{Process, TOO_LONG, report};

const TASK: &str = "SQLITE_TDE_TEST_PEAK_MEMORY";
const PER_CONNECTION_KIB: u64 = 4 * 1024;
const ROWS: u64 = 60_000;

/// Frames in the log of a small and of a large transaction.
const FRAMES: [u64; 2] = [2_000, 70_000];
/// What the large one may cost the library more than the small one: less than four bytes a frame.
const GROWTH_KIB: u64 = 256;

/// What the Rust code has allocated, SQLite's own memory not among it, and the most it had.
struct Counting {
    now: AtomicUsize,
    peak: AtomicUsize,
}

#[global_allocator]
static HEAP: Counting = Counting { now: AtomicUsize::new(0), peak: AtomicUsize::new(0) };

// SAFETY: the system's allocator does the work, with what the caller promised.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = self.now.fetch_add(layout.size(), Relaxed) + layout.size();
        self.peak.fetch_max(now, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What one process does.
#[derive(Debug, Clone, Copy)]
struct Work {
    mode: &'static str,
    page_size: u32,
    connections: usize,
}

/// The longest one with the most connections comes last.
const WORK: [Work; 8] = [
    Work { mode: "WAL", page_size: 4096, connections: 1 },
    Work { mode: "DELETE", page_size: 4096, connections: 1 },
    Work { mode: "WAL", page_size: 4096, connections: 4 },
    Work { mode: "DELETE", page_size: 4096, connections: 4 },
    Work { mode: "WAL", page_size: 65536, connections: 4 },
    Work { mode: "DELETE", page_size: 65536, connections: 4 },
    Work { mode: "WAL", page_size: 4096, connections: 16 },
    Work { mode: "DELETE", page_size: 4096, connections: 16 },
];

fn connect(path: &Path, plain: bool) -> Connection {
    let uri = match plain {
        true => format!("file:{}", path.display()),
        false => OpenOptions::new().vfs("peak").uri(path).unwrap(),
    };
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    let db = Connection::open_with_flags(uri, flags).unwrap();
    db.execute_batch("PRAGMA cache_size=-500; PRAGMA temp_store=FILE; PRAGMA synchronous=OFF")
        .unwrap();
    db
}

/// Every connection reads the whole table, a row in turns, so that all of them read at once.
fn scan_at_once(connections: &[Connection]) {
    let mut statements: Vec<Statement> =
        connections.iter().map(|db| db.prepare("SELECT c FROM t").unwrap()).collect();
    let mut scans: Vec<_> = statements.iter_mut().map(|s| s.query([]).unwrap()).collect();
    let mut rows = 0;
    while !scans.iter_mut().map(|scan| scan.next().unwrap().is_none()).fold(true, |a, b| a & b) {
        rows += 1;
    }
    assert_eq!(rows, ROWS);
}

/// Bulk load, an index through a sorter on disk, scans, updates of everything, points, vacuum.
fn work(path: &Path, plain: bool, work: Work) {
    let first = connect(path, plain);
    let Work { mode, page_size, connections } = work;
    first
        .execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode={mode};
             CREATE TABLE t(a INTEGER PRIMARY KEY, b INTEGER, c TEXT);
             WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {ROWS})
             INSERT INTO t SELECT i, i * 7919 % 10007, printf('%0150d', i * 7919 % 10007) FROM i;
             CREATE INDEX tc ON t(c)"
        ))
        .unwrap();
    let mut all = vec![first];
    all.extend((1..connections).map(|_| connect(path, plain)));
    scan_at_once(&all);
    for db in &all {
        db.execute_batch("BEGIN; UPDATE t SET b = b + 1; COMMIT").unwrap();
        let mut point = db.prepare("SELECT b FROM t WHERE a = ?").unwrap();
        for i in 0..2_000_u64 {
            let a = i * 7_919 % ROWS + 1;
            point.query_row([a as i64], |_| Ok(())).unwrap();
        }
    }
    all[0].execute_batch("VACUUM; UPDATE t SET c = c || 'x' WHERE a % 3 = 0").unwrap();
    scan_at_once(&all);
}

/// One transaction of so many frames, which are in the log long before its end.
fn transaction(path: &Path, frames: u64, end: &str) {
    let db = connect(path, false);
    db.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(b);
         BEGIN;
         WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {frames})
         INSERT INTO t SELECT zeroblob(3900) FROM i; {end}"
    ))
    .unwrap();
    let rows: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows as u64, if end == "COMMIT" { frames } else { 0 });
}

/// The most memory that this process had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The task of a process: works, and tells its peak.
#[test]
fn works_and_tells_its_peak() {
    let Ok(task) = std::env::var(TASK) else { return };
    let [dir, plain, number] = task.split('|').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let (dir, plain) = (Path::new(dir), plain == "plain");
    if !plain {
        let keystore = Keystore::at(dir.join("keys"));
        sqlite_tde::register(Options::new().name("peak").keystore(keystore)).unwrap();
    }
    let path = dir.join("t.db");
    let peak = match number.split_once('-') {
        None => {
            work(&path, plain, WORK[number.parse::<usize>().unwrap()]);
            peak()
        }
        Some((frames, end)) => {
            transaction(&path, frames.parse().unwrap(), end);
            HEAP.peak.load(Relaxed) as u64 / 1024
        }
    };
    report(&peak.to_string());
}

fn peak_of(kind: &str, work: &str) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let task = format!("{}|{kind}|{work}", dir.path().display());
    let lines = Process::start("works_and_tells_its_peak", TASK, &task).finish(TOO_LONG);
    let lines = lines.unwrap_or_else(|error| panic!("{work}, {kind}: {error}"));
    lines.last().expect("a peak").parse().unwrap()
}

#[test]
fn peak_memory_is_bounded() {
    for (number, work) in WORK.iter().enumerate() {
        let number = number.to_string();
        let (plain, tde) = (peak_of("plain", &number), peak_of("tde", &number));
        let limit = plain + PER_CONNECTION_KIB * work.connections as u64;
        let each = tde.saturating_sub(plain) / work.connections as u64;
        eprintln!("{work:?}: plain {plain} KiB, tde {tde}, {each} a connection more");
        assert!(tde <= limit, "{work:?}: plain {plain} KiB, tde {tde}, which may have {limit}");
    }
}

/// However many frames a transaction has in the log, and whatever becomes of it.
#[test]
fn a_transaction_needs_no_more_memory_for_more_frames() {
    for end in ["COMMIT", "ROLLBACK"] {
        let [small, large] = FRAMES.map(|frames| peak_of("tde", &format!("{frames}-{end}")));
        eprintln!("{end}: {small} KiB, then {large}");
        let more = large.saturating_sub(small);
        assert!(more <= GROWTH_KIB, "{end}: {more} KiB more for {FRAMES:?} frames");
    }
}
