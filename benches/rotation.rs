//! Rotating a protector of the local keystore: it takes as long on any database.
//!
//! `cargo bench --bench rotation`; with `SQLITE_TDE_FULL=1` also on one of 2 GB. `TMPDIR` says on
//! which disk: a rotation is little but the syncs of 8 KiB.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use rusqlite::Connection;
use sqlite_tde::provider::Keystore;
use sqlite_tde::{Error, Options, RotateProtector, TdeConnection};

const MB: u64 = 1_000_000;

fn database(dir: &std::path::Path, bytes: u64) -> Result<Connection, Error> {
    let path = dir.join(format!("{bytes}.db"));
    let db = sqlite_tde::open(&path)?;
    db.execute_batch("PRAGMA synchronous=OFF; PRAGMA journal_mode=OFF; CREATE TABLE t(a)")?;
    db.execute(
        "WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < ?1)
         INSERT INTO t SELECT zeroblob(100000) FROM i",
        [(bytes / 100_000) as i64],
    )?;
    db.close().map_err(|(_, error)| error)?;
    // What the system has yet to write is none of a rotation's.
    std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("synced");
    sqlite_tde::open(path)
}

fn rotations(c: &mut Criterion) {
    let home = tempfile::tempdir().expect("a directory");
    let keystore = Keystore::at(home.path().join("keys"));
    for key in ["a", "b"] {
        keystore.create(key).expect("a key");
    }
    sqlite_tde::register(Options::new().keystore(keystore).default_protector("a")).expect("tde");
    let full = std::env::var_os("SQLITE_TDE_FULL").is_some_and(|value| value == "1");
    let sizes = if full { &[MB, 100 * MB, 2000 * MB][..] } else { &[MB, 100 * MB] };
    let mut group = c.benchmark_group("rotation");
    for &bytes in sizes {
        let db = database(home.path(), bytes).expect("a database");
        let mut keys = ["b", "a"].into_iter().cycle();
        group.bench_function(format!("{} MB", bytes / MB), |bencher| {
            bencher.iter(|| {
                let change = db.tde_rotate_protector(
                    "main",
                    RotateProtector::to(keys.next().expect("a cycle")),
                );
                assert!(black_box(change).expect("a rotation").changed);
            });
        });
    }
}

criterion_group!(benches, rotations);
criterion_main!(benches);
