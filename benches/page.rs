//! One page sealed and opened, by suite and size, beside the bare aws-lc calls on the same bytes.

use std::hint::black_box;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sqlite_tde::Cipher;
use sqlite_tde::internals::Pages;

const RESERVE: usize = sqlite_tde::RESERVE;

fn bare(c: &mut Criterion, page_size: usize) {
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map(LessSafeKey::new).unwrap();
    let nonce = || Nonce::assume_unique_for_key([3; 12]);
    let (plain, mut cipher) = (vec![1; page_size - RESERVE], vec![0; page_size - RESERVE]);
    let (mut tag, mut out) = ([0; 16], vec![0; page_size - RESERVE]);
    let mut group = c.benchmark_group("seal");
    group.throughput(Throughput::Bytes(page_size as u64));
    group.bench_function(BenchmarkId::new("bare aws-lc", page_size), |b| {
        b.iter(|| {
            let aad = Aad::from(&[9; 33]);
            let (plain, cipher) = (black_box(&plain), cipher.as_mut_slice());
            key.seal_out_of_place_scatter(nonce(), aad, plain, cipher, &[], &mut tag).unwrap();
        });
    });
    group.finish();
    let mut group = c.benchmark_group("open");
    group.throughput(Throughput::Bytes(page_size as u64));
    group.bench_function(BenchmarkId::new("bare aws-lc", page_size), |b| {
        b.iter(|| {
            let aad = Aad::from(&[9; 33]);
            key.open_separate_gather(nonce(), aad, black_box(&cipher), &tag, &mut out).unwrap();
        });
    });
    group.finish();
}

fn pages(c: &mut Criterion) {
    for page_size in [1024, 4096, 16384, 65536] {
        bare(c, page_size);
        for suite in Cipher::ALL {
            let mut pages = Pages::new(suite, page_size).unwrap();
            let mut page = vec![1; page_size];
            let mut group = c.benchmark_group("seal");
            group.throughput(Throughput::Bytes(page_size as u64));
            group.bench_function(BenchmarkId::new(suite.name(), page_size), |b| {
                b.iter(|| pages.seal(7, black_box(&page)).unwrap());
            });
            group.finish();
            let mut group = c.benchmark_group("open");
            group.throughput(Throughput::Bytes(page_size as u64));
            group.bench_function(BenchmarkId::new(suite.name(), page_size), |b| {
                b.iter(|| assert!(pages.open(7, black_box(&mut page))));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, pages);
criterion_main!(benches);
