//! Small pieces of work for callgrind to count: scripts/bench-instructions.sh.
//!
//! Each is done twice, plain and encrypted, and each time through `measured`; callgrind counts
//! within that function alone, and writes what it counted whenever it returns. The first time warms
//! up. Lines on the standard output say what each was, in the same order.

mod work;

use std::time::Duration;

use work::{Place, Shape, Site};

const ROWS: u64 = 10_000;

struct Workload {
    name: &'static str,
    units: u64,
    work: fn(&mut Site, u64) -> Duration,
}

const WORKLOADS: [Workload; 7] = [
    Workload { name: "load", units: ROWS, work: |site, _| site.load() },
    Workload { name: "point", units: 5_000, work: Site::point },
    Workload { name: "point_mmap", units: 5_000, work: Site::point_mmap },
    Workload { name: "scan", units: ROWS, work: |site, _| site.scan(1) },
    Workload { name: "commit", units: 500, work: |site, n| site.commits("WAL", "NORMAL", n) },
    Workload { name: "update", units: 2_500, work: |site, n| site.update("WAL", n) },
    Workload { name: "update_delete", units: 2_500, work: |site, n| site.update("DELETE", n) },
];

fn main() {
    let place = Place::new();
    let mut filled = place.pair("filled", Shape::of(ROWS));
    filled.each(Site::fill);
    for Workload { name, units, work } in WORKLOADS {
        let mut load = place.pair("load", Shape::of(ROWS));
        let pair = if name == "load" { &mut load } else { &mut filled };
        for round in ["warm", "count"] {
            pair.each(|site| {
                work(site, units);
                println!("{round} {name} {:?} {units}", site.kind);
            });
        }
    }
}
