//! The same SQL on a plain and on an encrypted database. Throughput is in rows.
//!
//! Databases lie in memory (`/dev/shm`) where there is such a place: what is measured is the work
//! per page, not the disk.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
};
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::{OpenOptions, Options, provider::Keystore};

const ROWS: u64 = 20_000;
const POINTS: u64 = 1_000;
const VFS: &str = "bench";

/// How a database is opened.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Encrypted,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Plain, Self::Encrypted];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Encrypted => "encrypted",
        }
    }

    /// A cache of 1 MiB, so that most pages of the table come from the file each time.
    fn open(self, path: &Path) -> Connection {
        let db = match self {
            Self::Plain => Connection::open_with_flags(path, OpenFlags::default()).unwrap(),
            Self::Encrypted => sqlite_tde::open_with(path, &OpenOptions::new().vfs(VFS)).unwrap(),
        };
        db.execute_batch("PRAGMA cache_size=-1024; PRAGMA temp_store=MEMORY").unwrap();
        db
    }
}

/// A directory for the databases of one benchmark.
fn home() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let home = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let home = home.unwrap();
    let keystore = Keystore::at(home.path().join("keys"));
    sqlite_tde::register(Options::new().name(VFS).keystore(keystore)).unwrap();
    home
}

/// A table of [`ROWS`] rows of some 200 bytes.
fn fill(kind: Kind, home: &Path) -> PathBuf {
    let path = home.join(kind.name());
    let db = kind.open(&path);
    db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b INTEGER, c TEXT)").unwrap();
    insert(&db, ROWS);
    path
}

fn insert(db: &Connection, rows: u64) {
    let work = db.unchecked_transaction().unwrap();
    let mut statement = db.prepare_cached("INSERT INTO t(b, c) VALUES(?1, ?2)").unwrap();
    let text = "x".repeat(200);
    for i in 0..rows {
        statement.execute((i as i64, &text)).unwrap();
    }
    work.commit().unwrap();
}

/// Row numbers all over the table, the same ones each time.
fn scattered() -> impl Iterator<Item = i64> {
    (0..POINTS).map(|i| (i * 7_919 % ROWS + 1) as i64)
}

fn group<'c>(c: &'c mut Criterion, name: &str, elements: u64) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(elements));
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(2));
    group
}

fn inserting(c: &mut Criterion) {
    const EACH: u64 = 5_000;
    let home = home();
    let mut group = group(c, "insert", EACH);
    for kind in Kind::ALL {
        let path = home.path().join(kind.name());
        group.bench_function(kind.name(), |b| {
            b.iter_batched(
                || {
                    let _ = std::fs::remove_file(&path);
                    let db = kind.open(&path);
                    db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b, c)").unwrap();
                    db
                },
                |db| insert(&db, EACH),
                BatchSize::PerIteration,
            );
        });
    }
}

fn reading_points(c: &mut Criterion) {
    let home = home();
    let mut group = group(c, "point read", POINTS);
    for kind in Kind::ALL {
        let db = kind.open(&fill(kind, home.path()));
        let mut statement = db.prepare("SELECT b FROM t WHERE a = ?1").unwrap();
        group.bench_function(kind.name(), |b| {
            b.iter(|| {
                scattered()
                    .map(|a| statement.query_row([a], |row| row.get::<_, i64>(0)).unwrap())
                    .sum::<i64>()
            });
        });
    }
}

fn scanning(c: &mut Criterion) {
    let home = home();
    let mut group = group(c, "scan", ROWS);
    for kind in Kind::ALL {
        let db = kind.open(&fill(kind, home.path()));
        let mut statement = db.prepare("SELECT sum(b), max(length(c)) FROM t").unwrap();
        group.bench_function(kind.name(), |b| {
            b.iter(|| statement.query_row([], |row| row.get::<_, i64>(0)).unwrap());
        });
    }
}

fn updating(c: &mut Criterion) {
    let home = home();
    let mut group = group(c, "update", POINTS);
    for kind in Kind::ALL {
        let db = kind.open(&fill(kind, home.path()));
        let mut statement = db.prepare("UPDATE t SET b = b + 1 WHERE a = ?1").unwrap();
        group.bench_function(kind.name(), |b| {
            b.iter(|| {
                let work = db.unchecked_transaction().unwrap();
                scattered().for_each(|a| assert_eq!(statement.execute([a]).unwrap(), 1));
                work.commit().unwrap();
            });
        });
    }
}

/// Opening and reading one row while another connection has the database open, so that no key
/// provider is asked.
fn opening_warm(c: &mut Criterion) {
    let home = home();
    let mut group = group(c, "open_warm", 1);
    for kind in Kind::ALL {
        let path = fill(kind, home.path());
        let _holder = kind.open(&path);
        group.bench_function(kind.name(), |b| {
            b.iter(|| {
                let db = kind.open(black_box(&path));
                db.query_row("SELECT b FROM t WHERE a = 1", [], |row| row.get::<_, i64>(0)).unwrap()
            });
        });
    }
}

criterion_group!(benches, inserting, reading_points, scanning, updating, opening_warm);
criterion_main!(benches);
