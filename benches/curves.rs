//! How the cost of encryption moves as the work grows: the size of the database and of its pages,
//! readers and writers at once, rows in a transaction, databases that are open at once, cipher
//! suites.
//!
//!     cargo bench --bench curves -- [--short] [--only CURVE,...] [--cipher NAME] [--rounds N]
//!         [--out FILE.jsonl]
//!
//! Without `--out` it is short, too.
//! Plain and encrypted take turns, which goes first alternates, and every round is written down as
//! it is: the first line of FILE names the machine, each other one is a point.
//! `scripts/bench-plots.py` draws them. Databases lie in `SQLITE_TDE_BENCH_DIR`. For what is called
//! cold, the system is asked before each measurement to drop what it caches of the file
//! (`POSIX_FADV_DONTNEED`), as memory that is short would; on a file system in memory there is
//! nothing to drop.

mod work;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sqlite_tde::Cipher;
use work::machine::Machine;
use work::{Kind, Place, Shape, Site, quartiles};

struct Settings {
    place: Place,
    short: bool,
    test: bool,
    cipher: Cipher,
    rounds: usize,
    out: Option<BufWriter<File>>,
}

/// A point of a curve.
struct Point<'a> {
    curve: &'static str,
    workload: &'a str,
    x: Value,
    /// Of which the time of one is shown.
    unit: &'static str,
    units: u64,
}

impl Settings {
    /// Rows of a database whose size is not what a curve is about.
    fn rows(&self) -> u64 {
        match (self.test, self.short) {
            (true, _) => 1_000,
            (false, true) => 20_000,
            (false, false) => 100_000,
        }
    }

    fn shape(&self, rows: u64) -> Shape {
        Shape { cipher: self.cipher, ..Shape::of(rows) }
    }

    /// Measures one point. The first round warms up, and is not written down.
    fn point(
        &mut self,
        pair: &mut work::Pair,
        point: &Point,
        mut work: impl FnMut(&mut Site) -> Duration,
    ) {
        let mut sides = [Vec::new(), Vec::new()];
        for number in 0..=self.rounds {
            let times = pair.round(number, &mut work);
            if number > 0 {
                for (side, time) in sides.iter_mut().zip(times) {
                    let ns = time.as_nanos() as f64 / point.units as f64;
                    side.push((ns * 10.0).round() / 10.0);
                }
            }
        }
        let Point { curve, workload, x, unit, .. } = point;
        self.note((curve, workload, x, unit), sides);
    }

    /// Writes down what was measured: what it is of, and the values, plain first.
    fn note(&mut self, of: (&str, &str, &Value, &str), [plain, encrypted]: [Vec<f64>; 2]) {
        let (curve, workload, x, unit) = of;
        let ratios: Vec<f64> = plain.iter().zip(&encrypted).map(|(a, b)| b / a).collect();
        let [low, median, high] = quartiles(&ratios);
        println!(
            "{curve:12} {workload:15} {x:>9}  plain {:10.0} of {unit}, \
             ratio {median:.2} ({low:.2} - {high:.2})",
            quartiles(&plain)[1],
        );
        self.write(&json!({
            "curve": curve, "workload": workload, "x": x, "unit": unit,
            "plain": plain, "encrypted": encrypted,
        }));
    }

    fn write(&mut self, line: &Value) {
        if let Some(out) = &mut self.out {
            writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
        }
    }
}

/// Drops what the system caches of the file.
#[cfg(target_os = "linux")]
fn drop_cache(path: &Path) {
    use std::os::fd::AsRawFd;
    let file = File::open(path).unwrap();
    // What is not yet on disk stays.
    file.sync_all().unwrap();
    // SAFETY: the descriptor is open, and no memory is passed.
    let code = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(code, 0, "posix_fadvise");
}

#[cfg(not(target_os = "linux"))]
fn drop_cache(_: &Path) {}

/// A row of the table is this long with what belongs to it, index included.
const BYTES_PER_ROW: u64 = 165;

/// (a) The size of the database.
fn size(settings: &mut Settings) {
    const MB: u64 = 1_000_000;
    let sizes: &[u64] = match (settings.test, settings.short) {
        (true, _) => &[1],
        (false, true) => &[10, 40, 160],
        (false, false) => &[10, 40, 160, 640, 2_500, 4_000],
    };
    for &size in sizes {
        let rows = size * MB / BYTES_PER_ROW;
        let mut pair = settings.place.pair("size", settings.shape(rows));
        pair.each(Site::fill);
        let reads = if settings.test { 100 } else { 5_000 };
        let mut point = |workload, unit, units, work: &mut dyn FnMut(&mut Site) -> Duration| {
            let point = Point { curve: "size", workload, x: json!(size), unit, units };
            settings.point(&mut pair, &point, work);
        };
        let cold = |site: &mut Site| drop_cache(&site.path);
        point("scan, cold", "row", rows, &mut |site| {
            cold(site);
            site.scan(1)
        });
        point("scan, warm", "row", rows, &mut |site| site.scan(1));
        point("point, cold", "read", reads, &mut |site| {
            cold(site);
            site.point(reads)
        });
        // Long enough to meet every page.
        let many = rows.min(10 * reads);
        point("point, warm", "read", many, &mut |site| site.point(many));
        pair.each(|site| site.remove());
    }
}

/// What is measured where the shape of the database is what changes.
fn four(settings: &mut Settings, curve: &'static str, x: &Value, shape: Shape) {
    let mut pair = settings.place.pair(curve, shape);
    let rows = shape.rows;
    let mut point = |workload, unit, units, work: &mut dyn FnMut(&mut Site) -> Duration| {
        let point = Point { curve, workload, x: x.clone(), unit, units };
        settings.point(&mut pair, &point, work);
    };
    point("load", "row", rows, &mut Site::load);
    point("scan", "row", 3 * rows, &mut |site| site.scan(3));
    point("point", "read", rows / 2, &mut |site| site.point(rows / 2));
    point("update", "row", rows / 4, &mut |site| site.update("WAL", rows / 4));
    pair.each(|site| site.remove());
}

/// (b) The size of pages.
fn pages(settings: &mut Settings) {
    for page_size in [1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let shape = Shape { page_size, ..settings.shape(settings.rows()) };
        four(settings, "pages", &json!(page_size), shape);
    }
}

/// (c) Readers at once, each with a connection of its own.
fn threads(settings: &mut Settings) {
    let rows = settings.rows();
    let mut pair = settings.place.pair("threads", settings.shape(rows));
    pair.each(Site::fill);
    for readers in 1..=4 {
        let mut point = |workload, unit, units, work: &mut dyn FnMut(&mut Site) -> Duration| {
            let point = Point { curve: "threads", workload, x: json!(readers), unit, units };
            settings.point(&mut pair, &point, work);
        };
        point("scan", "row", readers * rows, &mut |site| site.scan_at_once(readers));
        let reads = rows / 2;
        point("point", "read", readers * reads, &mut |site| site.point_at_once(readers, reads));
    }
    pair.each(|site| site.remove());
}

/// (d) Writers at once, and readers beside one. They wait for each other in SQLite's busy handler.
fn writers(settings: &mut Settings) {
    let rows = settings.rows();
    let mut pair = settings.place.pair("writers", settings.shape(rows));
    pair.each(Site::fill);
    let each = if settings.test { 20 } else { rows / 20 };
    for many in [1, 2, 4] {
        let mut point = |workload, unit, units, work: &mut dyn FnMut(&mut Site) -> Duration| {
            let point = Point { curve: "writers", workload, x: json!(many), unit, units };
            settings.point(&mut pair, &point, work);
        };
        let units = many * each;
        point("threads", "commit", units, &mut |site| site.commits_at_once(many, each));
        point("processes", "commit", units, &mut |site| site.commits_of_processes(many, each));
        point("beside a writer", "read", units, &mut |site| {
            site.points_beside_a_writer(many, each)
        });
    }
    pair.each(|site| site.remove());
}

/// (e) Databases that are open at once: time, memory and descriptors of one.
fn many(settings: &mut Settings) {
    for count in [1, 100, 1_000].into_iter().take(if settings.test { 2 } else { 3 }) {
        let mut sides = [Vec::new(), Vec::new()];
        for number in 0..=settings.rounds.min(5) {
            for side in [number % 2, 1 - number % 2] {
                let kind = [Kind::Plain, Kind::Encrypted][side];
                let held = Held::of(&settings.place, kind, settings.cipher, count);
                if number > 0 {
                    sides[side].push(held);
                }
            }
        }
        let mut note = |workload, unit, of: fn(&Held) -> f64| {
            let sides = sides.each_ref().map(|held| held.iter().map(of).collect());
            settings.note(("many", workload, &json!(count), unit), sides);
        };
        note("creation", "ns", |held| held.creation);
        note("open", "ns", |held| held.open);
        note("memory", "bytes", |held| held.bytes);
        note("descriptors", "descriptors", |held| held.descriptors);
    }
}

/// What each of some open databases takes.
struct Held {
    creation: f64,
    open: f64,
    bytes: f64,
    descriptors: f64,
}

impl Held {
    /// In a process of its own: what another measurement has freed would be used again.
    fn of(place: &Place, kind: Kind, cipher: Cipher, count: u32) -> Self {
        let told = Command::new(std::env::current_exe().unwrap())
            .args([HELD.as_ref(), place.path()])
            .args([format!("{kind:?}"), cipher.name().to_owned(), count.to_string()])
            .output()
            .unwrap();
        assert!(told.status.success(), "{told:?}");
        let told: Vec<f64> = serde_json::from_slice(&told.stdout).unwrap();
        let [creation, open, bytes, descriptors] = told[..] else { panic!("{told:?}") };
        Self { creation, open, bytes, descriptors }
    }

    fn measure(place: &Place, kind: Kind, cipher: Cipher, count: u32) -> Self {
        let shape = Shape { cipher, ..Shape::of(1) };
        let sites: Vec<Site> =
            (0..count).map(|number| place.site(kind, &format!("many-{number}"), shape)).collect();
        // What the first one of a process does once is not of each.
        let first = place.site(kind, "many-first", shape);
        first.create_small();
        drop(first.open_and_read());
        let creation = work::timed(|| sites.iter().for_each(Site::create_small));
        let before = occupied();
        let mut open = Vec::with_capacity(sites.len());
        let time = work::timed(|| open.extend(sites.iter().map(Site::open_and_read)));
        let after = occupied();
        drop(open);
        sites.iter().chain([&first]).for_each(Site::remove);
        let each = |all: f64| all / f64::from(count);
        let [bytes, descriptors] = [0, 1].map(|at| each((after[at] - before[at]) as f64));
        let [creation, open] = [creation, time].map(|time| each(time.as_nanos() as f64));
        Self { creation, open, bytes, descriptors }
    }
}

/// The first argument of a process that [`Held::of`] starts.
const HELD: &str = "--held";

/// Whether this is such a process. It prints what it measured.
fn is_held() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, dir, kind, cipher, count] = &arguments[..] else { return false };
    if part != HELD {
        return false;
    }
    let kind = if kind == "Plain" { Kind::Plain } else { Kind::Encrypted };
    let place = Place::at(dir.as_ref());
    let Held { creation, open, bytes, descriptors } =
        Held::measure(&place, kind, cipher.parse().unwrap(), count.parse().unwrap());
    println!("{}", json!([creation, open, bytes, descriptors]));
    true
}

/// Memory that is not shared, in bytes, and descriptors of this process.
#[cfg(target_os = "linux")]
fn occupied() -> [i64; 2] {
    // Anonymous memory in KiB: what files are mapped is none of a database's.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib: i64 = line.trim().trim_end_matches(" kB").trim().parse().unwrap();
    [kib * 1024, std::fs::read_dir("/proc/self/fd").unwrap().count() as i64]
}

#[cfg(not(target_os = "linux"))]
fn occupied() -> [i64; 2] {
    [0; 2]
}

/// (f) Rows in a transaction.
fn transactions(settings: &mut Settings) {
    let rows = settings.rows();
    let mut pair = settings.place.pair("transactions", settings.shape(rows));
    for mode in ["WAL", "DELETE"] {
        for each in [1, 10, 100, 1_000, 10_000, 100_000].into_iter().filter(|&each| each <= rows) {
            // Small transactions cost much a row, large ones little: some tenths of a second each.
            let count = (rows / each).min(2_000).min(2 * rows / each.min(50)).max(1);
            let count = if settings.test { count.min(20) } else { count };
            let units = each * count;
            let unit = "row";
            let point =
                Point { curve: "transactions", workload: mode, x: json!(each), unit, units };
            settings.point(&mut pair, &point, |site| site.insert_in_parts(mode, each, count));
        }
    }
    pair.each(|site| site.remove());
}

/// (g) The cipher suites.
fn suites(settings: &mut Settings) {
    for cipher in Cipher::ALL {
        let shape = Shape { cipher, ..Shape::of(settings.rows()) };
        four(settings, "suites", &json!(cipher.name()), shape);
    }
}

type Curve = (&'static str, fn(&mut Settings));
const CURVES: [Curve; 7] = [
    ("size", size),
    ("pages", pages),
    ("threads", threads),
    ("writers", writers),
    ("many", many),
    ("transactions", transactions),
    ("suites", suites),
];

fn main() {
    if work::take_part() || is_held() {
        return;
    }
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| arguments.iter().any(|argument| argument == name);
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).clone())
    };
    let test = given("--test");
    let rounds = value("--rounds").map(|n| n.parse().expect("a number of rounds"));
    let out = value("--out").map(PathBuf::from);
    let short = given("--short") || out.is_none();
    let mut settings = Settings {
        place: Place::new(),
        short,
        test,
        cipher: value("--cipher").map_or(Cipher::default(), |name| name.parse().expect("a cipher")),
        rounds: rounds.unwrap_or(if test { 1 } else { 7 }),
        out: out.map(|path| BufWriter::new(File::create(path).expect("the file for --out"))),
    };
    let machine = Machine::of(settings.place.path());
    println!("{machine}");
    settings.write(&machine.json());
    let only = value("--only");
    for (name, curve) in CURVES {
        if only.as_deref().is_none_or(|only| only.split(',').any(|one| one == name)) {
            curve(&mut settings);
        }
    }
}
