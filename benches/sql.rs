//! The same SQL on a plain and on an encrypted database, in turns, in one run.
//!
//! `cargo bench --bench sql`, or `-- NAME` for one workload. What criterion measures is the *ratio*
//! of encrypted to plain within a round, so what slows the machine for a while slows both. The
//! summary at the end has medians and quartiles over the rounds. Databases lie in
//! `SQLITE_TDE_BENCH_DIR`, by default among the temporary files; `/dev/shm` leaves the disk out.

mod work;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, SamplingMode, Throughput};
use work::machine::Machine;
use work::{Kind, Pair, Place, Shape, Site, quartiles};

struct Workload {
    /// Whether it is one of those that other engines are compared by, and counts in the mean.
    compared: bool,
    name: &'static str,
    /// How many units one round has, of so many rows.
    units: fn(u64) -> u64,
    work: fn(&mut Site, u64) -> Duration,
}

/// Those of the comparison with other engines, and small and large updates with a rollback journal.
/// `point_mmap` sets `mmap_size` on both sides, `point_mmap_plain` leaves it out on the plain one.
const WORKLOADS: [Workload; 17] = [
    Workload { compared: true, name: "load", units: |rows| rows, work: |site, _| site.load() },
    Workload {
        compared: true,
        name: "load_delete",
        units: |rows| rows,
        work: |site, _| site.load_delete(),
    },
    Workload { compared: true, name: "index", units: |rows| rows, work: |site, _| site.index() },
    Workload { compared: true, name: "point", units: |rows| rows, work: Site::point },
    Workload { compared: false, name: "point_mmap", units: |rows| rows, work: Site::point_mmap },
    Workload {
        compared: false,
        name: "point_mmap_plain",
        units: |rows| rows,
        work: |site, n| match site.kind {
            Kind::Plain => site.point(n),
            Kind::Encrypted => site.point_mmap(n),
        },
    },
    Workload { compared: true, name: "point_auto", units: |rows| rows, work: Site::point_auto },
    Workload { compared: true, name: "scan", units: |rows| rows * 5, work: |site, _| site.scan(5) },
    Workload {
        compared: true,
        name: "scan2",
        units: |rows| rows * 2,
        work: |site, _| site.scan_at_once(2),
    },
    Workload {
        compared: true,
        name: "commit_normal",
        units: |rows| rows / 10,
        work: |site, n| site.commits("WAL", "NORMAL", n),
    },
    Workload {
        compared: true,
        name: "commit_full",
        units: |rows| rows / 100,
        work: |site, n| site.commits("WAL", "FULL", n),
    },
    Workload {
        compared: false,
        name: "commit_delete",
        units: |rows| rows / 100,
        work: |site, n| site.commits("DELETE", "FULL", n),
    },
    Workload {
        compared: true,
        name: "update",
        units: |rows| rows / 4,
        work: |site, n| site.update("WAL", n),
    },
    Workload {
        compared: false,
        name: "update_delete",
        units: |rows| rows / 4,
        work: |site, n| site.update("DELETE", n),
    },
    Workload { compared: true, name: "open", units: |_| 20, work: Site::opens },
    Workload { compared: true, name: "open_warm", units: |_| 20, work: Site::opens_warm },
    Workload { compared: true, name: "vacuum", units: |rows| rows, work: |site, _| site.vacuum() },
];

/// A ratio is measured, not a time.
struct Ratio;

impl Measurement for Ratio {
    type Intermediate = ();
    type Value = f64;

    fn start(&self) {}

    fn end(&self, (): ()) -> f64 {
        unreachable!("each routine measures by itself")
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for Ratio {
    fn scale_values(&self, _: f64, _: &mut [f64]) -> &'static str {
        "x plain"
    }

    fn scale_throughputs(&self, _: f64, _: &Throughput, _: &mut [f64]) -> &'static str {
        "x plain"
    }

    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "x plain"
    }
}

type Rounds = BTreeMap<&'static str, Vec<[Duration; 2]>>;

fn bench(c: &mut Criterion<Ratio>, rows: u64, place: &Place) -> Rounds {
    let rounds = RefCell::new(Rounds::new());
    // Filled with the first workload that needs it: a filter may leave none.
    let mut pair: Option<Pair> = None;
    let mut group = c.benchmark_group("sql");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(5));
    for Workload { name, units, work, .. } in WORKLOADS {
        group.bench_function(name, |b| {
            let mut load = place.pair("load", Shape::of(rows));
            let filled = match name {
                "load" => &mut load,
                _ => pair.get_or_insert_with(|| {
                    let mut pair = place.pair("filled", Shape::of(rows));
                    pair.each(Site::fill);
                    pair
                }),
            };
            b.iter_custom(|times| {
                let mut rounds = rounds.borrow_mut();
                let done = rounds.entry(name).or_default();
                let mut sum = 0.0;
                for _ in 0..times {
                    let [plain, encrypted] =
                        filled.round(done.len(), &mut |site| work(site, units(rows)));
                    done.push([plain, encrypted]);
                    sum += encrypted.as_secs_f64() / plain.as_secs_f64();
                }
                sum
            });
        });
    }
    group.finish();
    rounds.into_inner()
}

fn summarize(rounds: &Rounds, rows: u64, place: &Place) {
    println!("\n{}", Machine::of(place.path()));
    println!("{rows} rows; ns of one unit, and encrypted to plain within a round");
    println!("workload             plain  encrypted   median  quartiles    rounds");
    let mut compared = Vec::new();
    for Workload { name, units, compared: counts, .. } in WORKLOADS {
        // The first round warms up.
        let Some(done) = rounds.get(name).map(|done| &done[done.len().min(2) - 1..]) else {
            continue;
        };
        let unit = units(rows) as f64;
        let side = |side: usize| {
            let times: Vec<f64> =
                done.iter().map(|round| round[side].as_nanos() as f64 / unit).collect();
            quartiles(&times)[1]
        };
        let ratios: Vec<f64> =
            done.iter().map(|[plain, other]| other.as_secs_f64() / plain.as_secs_f64()).collect();
        let [low, median, high] = quartiles(&ratios);
        if counts {
            compared.push(median.ln());
        }
        println!(
            "{name:16} {:9.0}  {:9.0}   {median:6.2}  {low:.2} - {high:.2}  {:5}",
            side(0),
            side(1),
            done.len()
        );
    }
    if !compared.is_empty() {
        let mean = (compared.iter().sum::<f64>() / compared.len() as f64).exp();
        println!("geometric mean of {:2}                         {mean:6.2}", compared.len());
    }
    let dir =
        std::env::var("SQLITE_TDE_BENCH_DIR").map(|dir| format!("SQLITE_TDE_BENCH_DIR={dir} "));
    println!("again: {}cargo bench --bench sql", dir.unwrap_or_default());
}

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    let rows = if test { 2_000 } else { 100_000 };
    let place = Place::new();
    let mut criterion = Criterion::default().with_measurement(Ratio).configure_from_args();
    let rounds = bench(&mut criterion, rows, &place);
    criterion.final_summary();
    if !rounds.is_empty() {
        summarize(&rounds, rows, &place);
    }
}
