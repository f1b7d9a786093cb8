//! What the audit log costs: one entry, which is two syncs of the disk, and checking 10,000.

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sqlite_tde::audit::{AuditLog, AuditOptions, Event, EventKind, verify};

const ENTRIES: u64 = 10_000;

fn event() -> Event<'static> {
    Event {
        file_id: Some(&[7; 16]),
        path: Some(Path::new("/var/lib/app/app.db")),
        protector: Some("primary"),
        provider: Some("keystore"),
        key: Some("default"),
        key_version: Some("1"),
        ..Event::new(EventKind::Unwrap)
    }
}

/// In a temporary directory: `TMPDIR` says on which disk.
fn audit(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let log = AuditLog::open(AuditOptions::at(dir.path())).expect("a log");
    let mut group = c.benchmark_group("audit");
    group.bench_function("record", |b| b.iter(|| log.record(&event()).expect("an entry")));
    let options = AuditOptions::at(dir.path().join("many"));
    let log = AuditLog::open(options.clone()).expect("a log");
    (0..ENTRIES).for_each(|_| log.record(&event()).expect("an entry"));
    group.throughput(Throughput::Elements(ENTRIES)).sample_size(20);
    group.bench_function("verify", |b| b.iter(|| verify(&options).expect("a verdict")));
    group.finish();
}

criterion_group!(benches, audit);
criterion_main!(benches);
