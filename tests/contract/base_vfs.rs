//! Base VFSs that are not SQLite's for Unix: other platforms, shims, VFSs of other versions.
//! Through each of them `tde` must do what plain SQLite does through the same.

use std::os::raw::c_int;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, ffi};
use sqlite_tde_testkit::platform::{self, Methods, PLATFORMS, Platform, PlatformVfs};
use sqlite_tde_testkit::process::{full, in_time};
use sqlite_tde_testkit::vfs::{
    Below, Call, FaultyVfs, File, Method, Properties, TestVfs, kind_of_file,
};
use sqlite_tde_testkit::{Home, dump, one};

/// A step of a workload; connections are opened where they are first used.
enum Step {
    /// What this answers, in that connection.
    Sql(usize, &'static str),
    /// All connections are closed.
    Close,
    /// That connection is closed.
    CloseOne(usize),
    /// The machine stops: the next process finds a copy of the files as they are.
    Stop,
}
use Step::{Close, CloseOne, Sql, Stop};
use sqlite_tde::TdeConnection;

struct Workload {
    name: &'static str,
    steps: &'static [Step],
}

const FILL: &str = "WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 300)
     INSERT INTO t SELECT i, printf('%0300d', i * 7919 % 101) FROM i";
const TABLE: &str = "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b TEXT)";
const SUM: &str = "SELECT count(*), sum(a), sum(length(b)), max(b) FROM t";
/// Reaches the database file before it ends: there is not room for it in memory.
const SPILL: &str = "BEGIN; UPDATE t SET b = 'spilt' || b";
const CHECK: &str = "PRAGMA integrity_check";

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "transactions",
        steps: &[
            Sql(0, TABLE),
            Sql(0, FILL),
            Sql(
                0,
                "BEGIN; DELETE FROM t WHERE a > 100; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT",
            ),
            Sql(0, SPILL),
            Sql(0, "ROLLBACK"),
            Sql(0, SUM),
            Sql(0, FILL),
            Sql(0, "INSERT OR REPLACE INTO t SELECT a + 1000, b || b FROM t"),
            Sql(0, SUM),
            Sql(0, "PRAGMA wal_checkpoint"),
            Sql(0, "DELETE FROM t WHERE a % 3 = 0"),
            Sql(0, "VACUUM"),
            Sql(0, CHECK),
            Close,
            Sql(0, SUM),
            Sql(0, CHECK),
        ],
    },
    Workload {
        name: "two connections",
        steps: &[
            Sql(0, TABLE),
            Sql(1, SUM),
            Sql(0, FILL),
            Sql(1, SUM),
            Sql(1, "UPDATE t SET b = b || 'from another' WHERE a < 50"),
            Sql(0, SUM),
            Sql(0, SPILL),
            Sql(1, SUM),
            Sql(1, "UPDATE t SET b = 'refused'"),
            Sql(0, "COMMIT"),
            Sql(1, SUM),
            Sql(1, "PRAGMA wal_checkpoint(TRUNCATE)"),
            Sql(0, "DELETE FROM t WHERE a > 200"),
            CloseOne(0),
            Sql(1, SUM),
            Sql(0, CHECK),
        ],
    },
    // SQLite's journal2.test: the first connection keeps its journal open where the platform does
    // not let open files be deleted, and finds what the second one left in it.
    Workload {
        name: "a journal that another connection leaves",
        steps: &[
            Sql(0, TABLE),
            Sql(0, FILL),
            Sql(0, "UPDATE t SET b = 'first' || b WHERE a < 20"),
            Sql(1, "PRAGMA journal_mode=DELETE"),
            Sql(1, "PRAGMA cache_size=5"),
            Sql(1, "UPDATE t SET b = 'second' || b"),
            CloseOne(1),
            Sql(0, SUM),
            Sql(0, CHECK),
            Sql(0, "UPDATE t SET b = 'third' || b WHERE a > 250"),
            Sql(1, "PRAGMA journal_mode=PERSIST"),
            Sql(1, "UPDATE t SET b = 'fourth' || b WHERE a > 150"),
            Sql(0, SPILL),
            Sql(0, "ROLLBACK"),
            Sql(1, SUM),
            Sql(1, "UPDATE t SET b = 'fifth' || b"),
            Sql(0, SUM),
            Sql(0, CHECK),
        ],
    },
    Workload {
        name: "hot journal or log",
        steps: &[
            Sql(0, TABLE),
            Sql(0, FILL),
            Sql(0, SUM),
            Sql(0, SPILL),
            Sql(0, "INSERT INTO t SELECT a + 5000, b || b FROM t"),
            Stop,
            Sql(0, SUM),
            Sql(1, CHECK),
            Sql(1, "UPDATE t SET b = 'after' || b"),
            Sql(0, SUM),
        ],
    },
    Workload {
        name: "exclusive",
        steps: &[
            Sql(0, "PRAGMA locking_mode=EXCLUSIVE"),
            Sql(0, "PRAGMA journal_mode=WAL"),
            Sql(0, TABLE),
            Sql(0, FILL),
            Sql(0, SPILL),
            Sql(0, "ROLLBACK"),
            Sql(0, "INSERT INTO t VALUES(9000, 'more')"),
            Sql(0, "PRAGMA wal_checkpoint"),
            Sql(0, "INSERT INTO t VALUES(9001, 'and more')"),
            Close,
            // Without shared memory a log is only for a connection that has the file for itself.
            Sql(0, SUM),
            Close,
            Sql(0, "PRAGMA locking_mode=EXCLUSIVE"),
            Sql(0, SUM),
            Sql(0, "PRAGMA journal_mode=DELETE"),
            Sql(0, CHECK),
        ],
    },
    Workload {
        name: "mapped, sorted and copied",
        steps: &[
            Sql(0, "PRAGMA mmap_size=10000000"),
            Sql(0, "PRAGMA temp_store=FILE"),
            Sql(0, TABLE),
            Sql(0, FILL),
            Sql(0, "CREATE INDEX tb ON t(b)"),
            Sql(0, "SELECT count(*) FROM (SELECT DISTINCT b, a FROM t ORDER BY b DESC, a)"),
            Sql(0, "CREATE TEMP TABLE x AS SELECT * FROM t; UPDATE x SET b = b || b"),
            Sql(0, SUM),
            Sql(1, "PRAGMA mmap_size=10000000"),
            Sql(1, SUM),
            Sql(0, "INSERT INTO t SELECT a + 9000, b FROM x"),
            Sql(1, SUM),
            Sql(1, CHECK),
        ],
    },
];

const MODES: [&str; 6] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"];

/// A database in one mode on one platform.
struct Subject {
    /// Encrypted, or plain through the VFS of this name.
    vfs: String,
    dir: PathBuf,
    stops: usize,
    settings: String,
    connections: [Option<Connection>; 2],
}

impl Subject {
    fn connection(&mut self, number: usize) -> &Connection {
        if self.connections[number].is_none() {
            let name = self.dir.join("main.db");
            let uri = format!("file:{}?vfs={}", name.display(), self.vfs);
            let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
            let db = Connection::open_with_flags(uri, flags).unwrap();
            db.busy_timeout(std::time::Duration::ZERO).unwrap();
            // What it answers is a step of its own below.
            let _ = all(&db, &self.settings);
            self.connections[number] = Some(db);
        }
        self.connections[number].as_ref().unwrap()
    }

    fn step(&mut self, step: &Step) -> Result<Vec<String>, i32> {
        match step {
            Sql(number, sql) => return all(self.connection(*number), sql),
            Close => self.connections = [None, None],
            CloseOne(number) => self.connections[*number] = None,
            Stop => {
                self.stops += 1;
                let copy = self.dir.with_extension(self.stops.to_string());
                std::fs::create_dir(&copy).unwrap();
                for entry in std::fs::read_dir(&self.dir).unwrap() {
                    let entry = entry.unwrap();
                    if !entry.file_name().to_string_lossy().ends_with("-shm") {
                        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
                    }
                }
                self.connections = [None, None];
                self.dir = copy;
            }
        }
        Ok(Vec::new())
    }
}

/// The rows of all statements in `sql`, or the primary code of the error.
fn all(db: &Connection, sql: &str) -> Result<Vec<String>, i32> {
    let mut rows = Vec::new();
    let mut batch = rusqlite::Batch::new(db, sql);
    let run = |statement: &mut rusqlite::Statement<'_>, rows: &mut Vec<String>| {
        let columns = statement.column_count();
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            let values: Result<Vec<Value>, _> = (0..columns).map(|i| row.get(i)).collect();
            rows.push(format!("{:?}", values?));
        }
        Ok(())
    };
    loop {
        let next = batch.next().and_then(|next| match next {
            Some(mut statement) => run(&mut statement, &mut rows).map(|()| true),
            None => Ok(false),
        });
        match next {
            Ok(true) => {}
            Ok(false) => return Ok(rows),
            Err(error) => {
                return Err(error.sqlite_error().map_or(1, |error| error.extended_code & 0xff));
            }
        }
    }
}

/// Plain SQLite calls xFetch of a VFS of version 3 without asking whether it is there.
fn for_plain(platform: &Platform) -> Platform {
    match platform.methods {
        Methods::ThreeWithoutFetch => Platform { methods: Methods::Two, ..*platform },
        _ => *platform,
    }
}

fn compare(
    home: &Home,
    plain: &str,
    platform: &Platform,
    mode: &str,
    page_size: u32,
    workload: &Workload,
) {
    let root = home.dir.path().join(
        format!("{}-{mode}-{page_size}-{}", platform.name, workload.name).replace([' ', ','], "_"),
    );
    let subject = |name: &str, vfs: &str| {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Subject {
            vfs: vfs.to_owned(),
            dir,
            stops: 0,
            settings: format!(
                "PRAGMA page_size={page_size}; PRAGMA cache_size=5; PRAGMA journal_mode={mode}"
            ),
            connections: [None, None],
        }
    };
    let (mut sealed, mut plain) = (subject("sealed", &home.vfs), subject("plain", plain));
    let what = format!("{}, {mode}, pages of {page_size}, {}", platform.name, workload.name);
    for (number, step) in workload.steps.iter().enumerate() {
        // Without a journal a rollback, and a crash, leave a database undefined.
        if ["OFF", "MEMORY"].contains(&mode) && matches!(step, Stop)
            || mode == "OFF" && matches!(step, Sql(_, sql) if sql.contains("ROLLBACK"))
        {
            break;
        }
        let sql = if let Sql(_, sql) = step { sql } else { "" };
        let (found, expected) = (sealed.step(step), plain.step(step));
        assert_eq!(found, expected, "{what}, step {number}: {sql}");
        for number in [0, 1] {
            let mode = |subject: &Subject| {
                subject.connections[number].as_ref().map(|db| all(db, "PRAGMA journal_mode"))
            };
            assert_eq!(mode(&sealed), mode(&plain), "{what}, step {number}: {sql}");
        }
    }
    if !["OFF", "MEMORY"].contains(&mode) {
        for subject in [&mut sealed, &mut plain] {
            let _ = subject.step(&Close);
            let _ = all(subject.connection(0), "PRAGMA locking_mode=EXCLUSIVE");
        }
        let (found, expected) = (sealed.connection(0), plain.connection(0));
        assert_eq!(dump(found, "main"), dump(expected, "main"), "{what}");
        let findings = found.tde_verify("main", |_, _| ()).unwrap();
        assert!(findings.is_clean(), "{what}: {findings:?}");
    }
}

/// A transaction that was given up wrote to pages that were free, and a crash tore them: SQLite
/// does not restore what had no content, and the rollback seals it. So it does where SQLite kept
/// the journal open.
#[test]
fn torn_free_pages_are_sealed_by_a_rollback_through_an_open_journal() {
    const PAGE: usize = 1024;
    for mode in ["TRUNCATE", "PERSIST"] {
        let base = PlatformVfs::new(platform::platform("undeletable"), "unix");
        let home = Home::with(|options| options.base(base.name));
        let path = home.path("main.db");
        let first = home.open(&path);
        all(&first, &format!("PRAGMA page_size={PAGE}; PRAGMA journal_mode={mode}; {TABLE}"))
            .unwrap();
        all(&first, FILL).unwrap();
        all(&first, "CREATE TABLE u AS SELECT * FROM t; UPDATE t SET b = b || '!'; DROP TABLE u")
            .unwrap();
        let before = std::fs::read(&path).unwrap();
        let sum = all(&first, SUM).unwrap();
        let second = home.open(&path);
        all(&second, "PRAGMA journal_mode=DELETE; PRAGMA cache_size=5").unwrap();
        let filled = "CREATE TABLE v AS SELECT a, 'from another' || b AS b FROM t";
        // The journal cannot be deleted.
        assert!(all(&second, filled).is_err(), "{mode}");
        drop(second);
        let mut bytes = std::fs::read(&path).unwrap();
        let pages = (16384..before.len()).step_by(PAGE);
        let changed: Vec<usize> =
            pages.filter(|&at| before[at..at + PAGE] != bytes[at..at + PAGE]).skip(1).collect();
        for at in &changed {
            bytes[at + 100..at + 200].fill(0);
        }
        assert!(changed.len() > 20, "{mode}: {} pages", changed.len());
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(all(&first, SUM).unwrap(), sum, "{mode}");
        assert_eq!(all(&first, CHECK).unwrap(), ["[Text(\"ok\")]"], "{mode}");
        let found = first.tde_verify("main", |_, _| ()).unwrap();
        assert!(found.is_clean(), "{mode}: {found:?}");
    }
}

/// Platforms, journal modes, page sizes and workloads; all of them in the full mode, else each pair
/// of platform and workload in two modes.
#[test]
fn every_base_does_what_plain_sqlite_does_through_it() {
    const PAGE_SIZES: [u32; 3] = [4096, 1024, 65536];
    let mut turn = 0;
    for platform in PLATFORMS {
        // Syncs take their time, and a VFS that counts them maps no file.
        let below = if platform.name == "unix" { "unix" } else { FaultyVfs::new().name };
        let base = PlatformVfs::new(platform, below);
        let plain = PlatformVfs::new(&for_plain(platform), below);
        let home = Home::with(|options| options.base(base.name));
        for workload in WORKLOADS {
            turn += 1;
            for (number, mode) in MODES.iter().enumerate() {
                // What a platform does to a journal it does to one that stays open.
                let wanted = [turn % MODES.len(), (turn + 1 + turn / 6) % MODES.len()];
                let stays_open = platform.undeletable && ["TRUNCATE", "PERSIST"].contains(mode);
                if full() || wanted.contains(&number) || stays_open {
                    let page_size = PAGE_SIZES[(turn + number) % PAGE_SIZES.len()];
                    compare(&home, plain.name, platform, mode, page_size, workload);
                }
            }
        }
    }
}

/// A VFS above `tde` that hands down copies of names.
#[test]
fn a_vfs_above_may_copy_names() {
    let home = Home::new();
    let above = PlatformVfs::new(platform::platform("copied names"), &home.vfs);
    for mode in MODES {
        let path = home.path(&format!("{mode}.db"));
        let open = |vfs: &str| {
            let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(format!("file:{}?vfs={vfs}", path.display()), flags)
                .unwrap()
        };
        for round in 0..2 {
            let db = open(above.name);
            let sql =
                format!("PRAGMA journal_mode={mode}; PRAGMA cache_size=5; {TABLE}; DELETE FROM t;");
            all(&db, &sql).unwrap_or_else(|code| panic!("{mode}, {round}: {code}"));
            all(&db, FILL).unwrap();
            let through = all(&db, SUM).unwrap();
            assert_eq!(all(&db, CHECK).unwrap(), ["[Text(\"ok\")]"], "{mode}");
            drop(db);
            assert_eq!(all(&open(&home.vfs), SUM).unwrap(), through, "{mode}");
        }
    }
}

/// The lock bytes, beyond 1 GiB, are never among those that are read or written.
#[test]
fn a_database_of_more_than_a_gigabyte_leaves_the_lock_bytes_alone() {
    let pages = if full() { 16_390 } else { 0 };
    let base = PlatformVfs::new(platform::platform("windows"), "unix");
    let home = Home::with(|options| options.base(base.name));
    let db = home.open(&home.path("main.db"));
    all(&db, "PRAGMA page_size=65536; PRAGMA journal_mode=OFF; CREATE TABLE t(b)").unwrap();
    for _ in 0..pages / 15 {
        all(&db, "INSERT INTO t VALUES(zeroblob(980000))").unwrap();
    }
    assert_eq!(all(&db, CHECK).unwrap(), ["[Text(\"ok\")]"]);
}

/// `psow=0` is said of the database alone; its journal and log lie on the same disk. The sector is
/// what SQLite asks the database file for.
#[test]
fn no_two_records_share_a_sector_without_powersafe_overwrite() {
    let rows: &[(&str, &str, i64)] = &[
        ("unix", "&psow=0", 4096),
        ("not powersafe", "", 4096),
        ("sector 512", "", 512),
        ("sector 8192", "", 8192),
        ("sector 65536", "", 65536),
        // The base says so of every file; the parameter, of the database, is stronger.
        ("not powersafe", "&psow=1", 4096),
    ];
    for &(name, parameter, sector) in rows {
        for mode in ["DELETE", "PERSIST", "WAL"] {
            let what = format!("{name}{parameter}, {mode}");
            let below = FaultyVfs::new();
            let base = PlatformVfs::new(platform::platform(name), below.name);
            let home = Home::with(|options| options.base(base.name));
            let path = home.path("main.db");
            let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
            let uri = format!("file:{}?vfs={}{parameter}", path.display(), home.vfs);
            let db = Connection::open_with_flags(uri, flags).unwrap();
            all(&db, &format!("PRAGMA page_size=1024; PRAGMA journal_mode={mode}; PRAGMA cache_size=5; {TABLE}"))
                .unwrap();
            all(&db, FILL).unwrap();
            below.record();
            all(&db, SPILL).unwrap();
            all(&db, "COMMIT; DELETE FROM t WHERE a < 200").unwrap();
            let written = below.take_written();
            let mut records = written
                .iter()
                .filter(|write| ["journal", "log"].contains(&kind_of_file(write.flags)))
                .peekable();
            assert!(records.peek().is_some(), "{what}");
            for write in records {
                assert_eq!(write.offset % sector, 0, "{what}: {} bytes", write.data.len());
            }
        }
    }
}

/// The files that stay behind where a platform cannot delete what is open are those of plain
/// SQLite.
#[test]
fn a_log_of_a_stronger_connection_takes_the_place_of_a_weaker_one() {
    let below = FaultyVfs::new();
    let home = Home::with(|options| options.base(below.name));
    let path = home.path("main.db");
    let open = |parameter: &str| {
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        let uri = format!("file:{}?vfs={}{parameter}", path.display(), home.vfs);
        Connection::open_with_flags(uri, flags).unwrap()
    };
    let (weak, strong) = (open(""), open("&psow=0"));
    all(&weak, &format!("PRAGMA journal_mode=WAL; {TABLE}")).unwrap();
    all(&weak, FILL).unwrap();
    all(&strong, "PRAGMA wal_checkpoint(RESTART)").unwrap();
    below.record();
    all(&strong, "UPDATE t SET b = 'again'").unwrap();
    for write in below.take_written().iter().filter(|write| kind_of_file(write.flags) == "log") {
        assert_eq!(write.offset % 4096, 0);
    }
    assert_eq!(all(&weak, SUM).unwrap(), all(&strong, SUM).unwrap());
    all(&weak, "PRAGMA wal_checkpoint(RESTART); UPDATE t SET b = 'and again'").unwrap();
    assert_eq!(all(&strong, SUM).unwrap(), all(&weak, SUM).unwrap());
    assert_eq!(all(&strong, CHECK).unwrap(), ["[Text(\"ok\")]"]);
}

/// The file of a database with a log is there, and the platform has no shared memory.
#[test]
fn a_log_without_shared_memory_is_refused_as_plain_sqlite_refuses_it() {
    for name in ["unix-none", "version 1", "version 2 without shm"] {
        let base = PlatformVfs::new(platform::platform(name), "unix");
        let home = Home::with(|options| options);
        let less = Home::with(|options| {
            let keys = sqlite_tde::provider::Keystore::at(home.path("keys"));
            options.base(base.name).keystore(keys)
        });
        let make = |db: &Connection| {
            all(db, &format!("PRAGMA journal_mode=WAL; {TABLE}")).unwrap();
            all(db, FILL).unwrap();
        };
        make(&home.open(&home.path("sealed.db")));
        make(&sqlite_tde_testkit::plain(&home.path("plain.db")));
        let open = |path: &Path, vfs: &str| {
            let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(format!("file:{}?vfs={vfs}", path.display()), flags)
                .unwrap()
        };
        let sealed = open(&home.path("sealed.db"), &less.vfs);
        let plain = open(&home.path("plain.db"), base.name);
        for sql in [SUM, "PRAGMA locking_mode=EXCLUSIVE", SUM, "PRAGMA journal_mode=DELETE", SUM] {
            assert_eq!(all(&sealed, sql), all(&plain, sql), "{name}: {sql}");
        }
        // The envelope can be written all the same.
        all(&sealed, "PRAGMA tde_rotate_protector").unwrap();
    }
}

/// Counts the locks that are taken while another file is being closed.
#[derive(Default)]
struct Overlaps {
    closing: AtomicBool,
    locks: AtomicU32,
    beside_a_close: AtomicU32,
}

impl Properties for Overlaps {
    fn call(&self, file: &File, call: &mut Call<'_>, below: &Below) -> c_int {
        match call.method() {
            Method::Close if file.flags & ffi::SQLITE_OPEN_MAIN_DB != 0 => {
                self.closing.store(true, Ordering::SeqCst);
                // Long enough for the other thread to come by many times.
                std::thread::sleep(Duration::from_millis(3));
                let code = below.call(call);
                self.closing.store(false, Ordering::SeqCst);
                code
            }
            Method::Lock => {
                self.locks.fetch_add(1, Ordering::SeqCst);
                let beside = u32::from(self.closing.load(Ordering::SeqCst));
                self.beside_a_close.fetch_add(beside, Ordering::SeqCst);
                below.call(call)
            }
            _ => below.call(call),
        }
    }
}

/// SQLite's unix VFS closes a descriptor, and so drops all locks of the process on the file, after
/// it looked whether any is held. In between another thread must not take one.
#[test]
fn no_lock_is_taken_while_a_file_is_closed() {
    let overlaps = TestVfs::register(Some("unix"), Overlaps::default());
    let home = Home::with(|options| options.base(overlaps.name));
    let path = home.path("a.db");
    let held = home.open(&path);
    held.execute_batch("CREATE TABLE t(a)").unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let db = home.open(&path);
            while !over.load(Ordering::SeqCst) {
                assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(0));
            }
        });
        for _ in 0..50 {
            drop(home.open(&path));
        }
        over.store(true, Ordering::SeqCst);
    });
    assert!(overlaps.locks.load(Ordering::SeqCst) > 50, "the other thread took no locks");
    assert_eq!(overlaps.beside_a_close.load(Ordering::SeqCst), 0);
}

/// Locks of one file wait until they are let go.
#[derive(Default)]
struct Waits {
    /// A file's name ends so.
    of: Mutex<String>,
    waiting: AtomicBool,
    go_on: AtomicBool,
}

impl Properties for Waits {
    fn call(&self, file: &File, call: &mut Call<'_>, below: &Below) -> c_int {
        let of = self.of.lock().unwrap().clone();
        if call.method() == Method::Lock
            && !of.is_empty()
            && file.name.as_ref().is_some_and(|name| name.ends_with(&of))
        {
            self.waiting.store(true, Ordering::SeqCst);
            while !self.go_on.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        below.call(call)
    }
}

/// A lock waits, as for a file server that is away: who uses other databases is not kept waiting.
#[test]
fn a_lock_that_waits_keeps_no_other_database_waiting() {
    let waits = TestVfs::register(Some("unix"), Waits::default());
    let home = Home::with(|options| options.base(waits.name));
    for name in ["a.db", "b.db"] {
        home.create(name);
    }
    let stuck = home.open(&home.path("a.db"));
    *waits.of.lock().unwrap() = "a.db".into();
    std::thread::scope(|scope| {
        scope.spawn(move || assert_eq!(one(&stuck, "SELECT a FROM t"), Value::Integer(1)));
        in_time("the lock", || waits.waiting.load(Ordering::SeqCst).then_some(()));
        // Before and behind a close that would wait for the lock.
        let (done, is_done) = std::sync::mpsc::channel();
        let home = &home;
        scope.spawn(move || {
            for _ in 0..3 {
                let other = home.open(&home.path("b.db"));
                other.execute_batch("UPDATE t SET a = a").unwrap();
            }
            done.send(()).unwrap();
        });
        let in_time = is_done.recv_timeout(Duration::from_secs(60)).is_ok();
        waits.go_on.store(true, Ordering::SeqCst);
        assert!(in_time, "another database waits");
    });
}
