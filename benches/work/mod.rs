//! What the benches share: databases of the same rows, plain and encrypted, and the work on them.
//!
//! The workloads are those of the comparison with other engines (docs/performance.md).
#![allow(dead_code)] // each bench uses its part

pub mod machine;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use sqlite_tde::provider::Keystore;
use sqlite_tde::{Cipher, OpenOptions, Options};

const VFS: &str = "bench";
/// As the other engines are measured: what the caches of SQLite hold.
const FEW_PAGES: &str = "PRAGMA cache_size=-200";
const SOME_PAGES: &str = "PRAGMA cache_size=-400";
const MANY_PAGES: &str = "PRAGMA cache_size=-2000";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Encrypted,
}

/// A directory for databases, and keys; it goes away.
pub struct Place(Dir);

enum Dir {
    Own(tempfile::TempDir),
    Other(PathBuf),
}

/// The first argument of a process that takes part in a measurement of another one.
const PART: &str = "--part";
const KEYS: &str = "keys";

fn register(dir: &Path) {
    let keystore = Keystore::at(dir.join(KEYS));
    sqlite_tde::register(Options::new().name(VFS).replace(true).keystore(keystore)).unwrap();
}

impl Place {
    /// In `SQLITE_TDE_BENCH_DIR`, or else among the temporary files.
    pub fn new() -> Self {
        let dir = std::env::var_os("SQLITE_TDE_BENCH_DIR").map(PathBuf::from);
        let dir = dir.unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("sqlite-tde-bench-").tempdir_in(dir).unwrap();
        register(dir.path());
        Self(Dir::Own(dir))
    }

    /// The one of another process, which removes it.
    pub fn at(dir: &Path) -> Self {
        register(dir);
        Self(Dir::Other(dir.to_owned()))
    }

    pub fn path(&self) -> &Path {
        match &self.0 {
            Dir::Own(dir) => dir.path(),
            Dir::Other(dir) => dir,
        }
    }

    /// The same database twice, without rows.
    pub fn pair(&self, name: &str, shape: Shape) -> Pair {
        Pair([Kind::Plain, Kind::Encrypted].map(|kind| self.site(kind, name, shape)))
    }

    pub fn site(&self, kind: Kind, name: &str, shape: Shape) -> Site {
        let path = self.path().join(format!("{name}-{kind:?}.db"));
        Site { kind, path, shape, random: Random::new() }
    }
}

/// What a database is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub rows: u64,
    pub page_size: u32,
    pub cipher: Cipher,
}

impl Shape {
    pub fn of(rows: u64) -> Self {
        Self { rows, page_size: 4096, cipher: Cipher::Aes256Gcm }
    }
}

/// A plain and an encrypted database on which the same is done.
pub struct Pair([Site; 2]);

impl Pair {
    /// One round: the work on both, which go first in turns. Answers the times, plain first.
    pub fn round(
        &mut self,
        number: usize,
        work: &mut dyn FnMut(&mut Site) -> Duration,
    ) -> [Duration; 2] {
        let mut times = [Duration::ZERO; 2];
        for side in [number % 2, 1 - number % 2] {
            times[side] = work(&mut self.0[side]);
        }
        times
    }

    pub fn each(&mut self, work: impl FnMut(&mut Site)) {
        self.0.iter_mut().for_each(work);
    }
}

/// Calls `work`, and answers how long it took. Whatever a bench measures goes through here: under
/// callgrind, this is the function that counts.
pub fn timed(mut work: impl FnMut()) -> Duration {
    let start = Instant::now();
    measured(&mut work);
    start.elapsed()
}

#[inline(never)]
// SAFETY: no other function has this name.
#[unsafe(no_mangle)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

/// xorshift: the same numbers on both sides.
pub struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(88_172_645_463_325_252)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn text(&mut self) -> String {
        let len = 80 + self.below(120);
        (0..len).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }
}

/// One database.
pub struct Site {
    pub kind: Kind,
    pub path: PathBuf,
    pub shape: Shape,
    random: Random,
}

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, k INT, v TEXT)";
const INSERT: &str = "INSERT INTO t(k, v) VALUES(?1, ?2)";

impl Site {
    pub fn open(&self) -> Connection {
        let uri = match self.kind {
            Kind::Plain => format!("file:{}?vfs=unix", self.path.display()),
            Kind::Encrypted => {
                OpenOptions::new().vfs(VFS).cipher(self.shape.cipher).uri(&self.path).unwrap()
            }
        };
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(uri, flags).unwrap();
        db.busy_timeout(Duration::from_secs(60)).unwrap();
        db
    }

    fn with(&self, settings: &str) -> Connection {
        let db = self.open();
        db.execute_batch(settings).unwrap();
        db
    }

    pub fn remove(&self) {
        for end in ["", "-wal", "-tdewal", "-shm", "-journal"] {
            let mut name = self.path.clone().into_os_string();
            name.push(end);
            let _ = std::fs::remove_file(name);
        }
    }

    /// A new database in the place of this one, with the table and nothing in it.
    fn create(&mut self, mode: &str) -> Connection {
        self.remove();
        self.random = Random::new();
        self.with(&format!(
            "PRAGMA page_size={}; PRAGMA journal_mode={mode}; PRAGMA synchronous=NORMAL; {TABLE}",
            self.shape.page_size
        ))
    }

    /// Rows and an index, as the other workloads expect them.
    pub fn fill(&mut self) {
        let db = self.create("WAL");
        let mut left = self.shape.rows;
        while left > 0 {
            let part = left.min(100_000);
            insert(&db, &mut self.random, part);
            left -= part;
        }
        db.execute_batch("CREATE INDEX tk ON t(k); PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    }

    /// A new database with one row, and closed.
    pub fn create_small(&self) {
        self.with(&format!("{TABLE}; INSERT INTO t(k, v) VALUES(1, 'a')"));
    }

    pub fn open_and_read(&self) -> Connection {
        let db = self.open();
        one_row(&db);
        db
    }

    fn id(&mut self) -> i64 {
        self.random.below(self.shape.rows) as i64 + 1
    }

    /// Bulk load, one transaction, WAL, with the checkpoint.
    pub fn load(&mut self) -> Duration {
        let db = self.create("WAL");
        timed(|| {
            insert(&db, &mut self.random, self.shape.rows);
            db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        })
    }

    /// The same in rollback-journal mode, from the other table.
    pub fn load_delete(&mut self) -> Duration {
        let db = self.with(
            "PRAGMA journal_mode=DELETE; DROP TABLE IF EXISTS u;
             CREATE TABLE u(id INTEGER PRIMARY KEY, k INT, v TEXT)",
        );
        let time = timed(|| db.execute_batch("INSERT INTO u SELECT * FROM t").unwrap());
        db.execute_batch("DROP TABLE u; PRAGMA journal_mode=WAL").unwrap();
        time
    }

    /// Inserts in transactions of `each` rows, `transactions` of them.
    pub fn insert_in_parts(&mut self, mode: &str, each: u64, transactions: u64) -> Duration {
        let db = self.create(mode);
        timed(|| (0..transactions).for_each(|_| insert(&db, &mut self.random, each)))
    }

    /// `CREATE INDEX` with the sorter's files on disk.
    pub fn index(&mut self) -> Duration {
        let db = self.with(MANY_PAGES);
        db.execute_batch("PRAGMA temp_store=FILE; DROP INDEX IF EXISTS tv").unwrap();
        let time = timed(|| db.execute_batch("CREATE INDEX tv ON t(v)").unwrap());
        db.execute_batch("DROP INDEX tv; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        time
    }

    /// Random reads that miss SQLite's cache, in one transaction.
    pub fn point(&mut self, reads: u64) -> Duration {
        self.points(reads, "BEGIN")
    }

    /// The same with `PRAGMA mmap_size` set.
    pub fn point_mmap(&mut self, reads: u64) -> Duration {
        self.points(reads, "PRAGMA mmap_size=1073741824; BEGIN")
    }

    /// The same, each its own read transaction.
    pub fn point_auto(&mut self, reads: u64) -> Duration {
        self.points(reads, "")
    }

    fn points(&mut self, reads: u64, settings: &str) -> Duration {
        let db = self.with(FEW_PAGES);
        db.execute_batch(settings).unwrap();
        let mut point = db.prepare("SELECT length(v) FROM t WHERE id = ?1").unwrap();
        timed(|| {
            for _ in 0..reads {
                let len: i64 = point.query_row([self.id()], |row| row.get(0)).unwrap();
                assert!(len >= 80);
            }
        })
    }

    /// Whole-table scans that miss SQLite's cache.
    pub fn scan(&mut self, times: u64) -> Duration {
        let db = self.with(SOME_PAGES);
        timed(|| (0..times).for_each(|_| scan(&db)))
    }

    /// As many readers at once, each with a connection of its own.
    pub fn scan_at_once(&mut self, readers: u64) -> Duration {
        let site = &*self;
        timed(|| {
            std::thread::scope(|scope| {
                for _ in 0..readers {
                    scope.spawn(|| scan(&site.with(SOME_PAGES)));
                }
            });
        })
    }

    /// As many readers at once, `reads` random reads each.
    pub fn point_at_once(&mut self, readers: u64, reads: u64) -> Duration {
        self.at_once(readers, |site| _ = site.point(reads))
    }

    /// As many writers at once, `commits` of one row each.
    pub fn commits_at_once(&mut self, writers: u64, commits: u64) -> Duration {
        drop(self.with("PRAGMA journal_mode=WAL"));
        self.at_once(writers, |site| site.writes(commits))
    }

    fn at_once(&mut self, threads: u64, work: impl Fn(&mut Site) + Sync) -> Duration {
        let sites = Mutex::new((1..=threads).map(|number| self.another(number)).collect());
        timed(|| {
            let sites: Vec<Site> = std::mem::take(&mut *sites.lock().unwrap());
            std::thread::scope(|scope| {
                for site in sites {
                    scope.spawn(|| work(&mut { site }));
                }
            });
        })
    }

    /// The same of processes: they have it open before the clock starts.
    pub fn commits_of_processes(&mut self, writers: u64, commits: u64) -> Duration {
        drop(self.with("PRAGMA journal_mode=WAL"));
        let dir = self.path.parent().unwrap();
        let mut parts: Vec<Child> = (1..=writers)
            .map(|number| {
                let Shape { rows, .. } = self.shape;
                let numbers = [number, rows, commits].map(|number| number.to_string());
                Command::new(std::env::current_exe().unwrap())
                    .args([PART.as_ref(), dir, self.path.as_path()])
                    .arg(format!("{:?}", self.kind))
                    .args(numbers)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for part in &mut parts {
            let mut ready = String::new();
            BufReader::new(part.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        }
        timed(|| {
            for part in &mut parts {
                writeln!(part.stdin.as_mut().unwrap()).unwrap();
            }
            for part in &mut parts {
                assert!(part.wait().unwrap().success());
            }
        })
    }

    /// As many readers, `reads` random reads each in transactions of their own, beside a writer.
    pub fn points_beside_a_writer(&mut self, readers: u64, reads: u64) -> Duration {
        drop(self.with("PRAGMA journal_mode=WAL"));
        let (mut writer, done) = (self.another(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    writer.writes(20);
                }
            });
            let time = self.at_once(readers, |site| _ = site.point_auto(reads));
            done.store(true, Ordering::Relaxed);
            time
        })
    }

    /// One-row write transactions that wait for others.
    fn writes(&mut self, count: u64) {
        let db = self.with("PRAGMA synchronous=NORMAL");
        let mut update = db.prepare("UPDATE t SET k = k + 1 WHERE id = ?1").unwrap();
        for _ in 0..count {
            assert_eq!(update.execute([self.id()]).unwrap(), 1);
        }
    }

    /// The same database for another thread, which reads other rows.
    fn another(&self, number: u64) -> Self {
        let Self { kind, shape, .. } = *self;
        let random = Random(self.random.0 ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { kind, path: self.path.clone(), shape, random }
    }

    /// One-row write transactions.
    pub fn commits(&mut self, mode: &str, synchronous: &str, count: u64) -> Duration {
        let db =
            self.with(&format!("PRAGMA journal_mode={mode}; PRAGMA synchronous={synchronous}"));
        let mut update = db.prepare("UPDATE t SET k = k + 1 WHERE id = ?1").unwrap();
        let time = timed(|| {
            for _ in 0..count {
                assert_eq!(update.execute([self.id()]).unwrap(), 1);
            }
        });
        drop(update);
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=WAL").unwrap();
        time
    }

    /// Random updates in one large transaction, with the checkpoint.
    pub fn update(&mut self, mode: &str, count: u64) -> Duration {
        let db = self.with(&format!("PRAGMA journal_mode={mode}; PRAGMA synchronous=NORMAL"));
        db.execute_batch(MANY_PAGES).unwrap();
        let mut update = db.prepare("UPDATE t SET v = v || 'x' WHERE id = ?1").unwrap();
        db.execute_batch("BEGIN").unwrap();
        let time = timed(|| {
            for _ in 0..count {
                assert_eq!(update.execute([self.id()]).unwrap(), 1);
            }
            db.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        });
        drop(update);
        db.execute_batch("PRAGMA journal_mode=WAL").unwrap();
        time
    }

    /// Open, read one row, close.
    pub fn opens(&mut self, count: u64) -> Duration {
        timed(|| (0..count).for_each(|_| one_row(&self.open())))
    }

    /// The same as a pool does it: a connection stays open meanwhile.
    pub fn opens_warm(&mut self, count: u64) -> Duration {
        let holder = self.open();
        one_row(&holder);
        self.opens(count)
    }

    pub fn vacuum(&mut self) -> Duration {
        let db = self.open();
        timed(|| db.execute_batch("VACUUM").unwrap())
    }
}

/// Does its part, if this is a process that [`Site::commits_of_processes`] has started.
pub fn take_part() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, dir, path, kind, numbers @ ..] = &arguments[..] else { return false };
    if part != PART {
        return false;
    }
    register(dir.as_ref());
    let numbers: Vec<u64> = numbers.iter().map(|number| number.parse().unwrap()).collect();
    let [number, rows, commits] = numbers[..] else { panic!("three numbers") };
    let kind = if kind == "Plain" { Kind::Plain } else { Kind::Encrypted };
    let (path, shape) = (path.into(), Shape::of(rows));
    let mut site = Site { kind, path, shape, random: Random::new() }.another(number);
    one_row(&site.open());
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    site.writes(commits);
    true
}

fn insert(db: &Connection, random: &mut Random, rows: u64) {
    db.execute_batch("BEGIN").unwrap();
    let mut statement = db.prepare_cached(INSERT).unwrap();
    for _ in 0..rows {
        let text = random.text();
        statement.execute((random.below(1_000_000) as i64, text)).unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
}

fn scan(db: &Connection) {
    db.query_row("SELECT sum(length(v)) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
}

fn one_row(db: &Connection) {
    db.query_row("SELECT k FROM t WHERE id = 1", [], |row| row.get::<_, i64>(0)).unwrap();
}

/// Quartiles: the lower one, the median, the upper one.
pub fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|part| {
        let at = part * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    })
}
