//! The power may fail at every write and every sync. On whatever it leaves, the next process must
//! find exactly the committed transactions, sound and authentic, and be able to go on.
//!
//! `SQLITE_TDE_PLATFORM` puts a platform of that name between the disk and its user.
//!
//! `SQLITE_TDE_FULL=1` tries thirty times as many points of each workload and mode, and
//! `SQLITE_TDE_IMAGES` so many images as it says, or every point for 0. `SQLITE_TDE_SEED` chooses
//! the images, and `SQLITE_TDE_ONLY` names the one to repeat, by the beginning of its name.

#[path = "crash/check.rs"]
mod check;
#[path = "crash/workloads.rs"]
mod workloads;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use check::{Recording, Span, Subject};
use sqlite_tde_testkit::platform::{PLATFORMS, Platform, platform};
use sqlite_tde_testkit::power::{Entry, Files, History, Image, Lie, Op};
use sqlite_tde_testkit::process::full;
use sqlite_tde_testkit::random::Random;
use workloads::{Fits, MODES, Mode, WORKLOADS, Workload};

/// How much is tried.
struct Plan {
    seed: u64,
    /// Images of one workload in one mode, about; no limit where 0.
    images: usize,
    /// Random images at each point, beside the three that are not.
    mixed: usize,
    encrypted: bool,
    lie: Option<Lie>,
    only: Option<String>,
    /// What lies between the disk and its user.
    platform: Option<&'static Platform>,
}

impl Plan {
    fn new() -> Self {
        let seed = std::env::var("SQLITE_TDE_SEED").ok().and_then(|text| text.parse().ok());
        let (images, mixed) = if full() { (1000, 5) } else { (22, 2) };
        let wanted = std::env::var("SQLITE_TDE_IMAGES").ok().and_then(|text| text.parse().ok());
        let images = wanted.unwrap_or(images);
        let only = std::env::var("SQLITE_TDE_ONLY").ok();
        // The one to repeat may be between the points that are tried otherwise.
        let images = if only.is_some() { 0 } else { images };
        let platform = std::env::var("SQLITE_TDE_PLATFORM").ok().map(|name| platform(&name));
        Self {
            seed: seed.unwrap_or(20_261_124),
            images,
            mixed,
            encrypted: true,
            lie: None,
            only,
            platform,
        }
    }
}

#[derive(Default)]
struct Tally {
    images: usize,
    second: usize,
    torn: usize,
    /// Images that a program without the library looked at first.
    looked: usize,
    failures: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.images += other.images;
        self.second += other.second;
        self.torn += other.torn;
        self.looked += other.looked;
        self.failures.extend(other.failures);
    }
}

/// One workload in one mode: runs it, then loses the power at points of it.
struct Campaign<'a> {
    plan: &'a Plan,
    subject: Subject<'a>,
    recording: Recording,
    tally: Tally,
    seen: HashSet<(u64, Vec<Span>)>,
}

impl<'a> Campaign<'a> {
    fn run(plan: &'a Plan, workload: &'a Workload, mode: &'a Mode) -> Tally {
        let subject = Subject::new(workload, mode, plan.encrypted, plan.platform);
        let name = subject.name();
        let other = |only: &String| !only.starts_with(&name) && !name.starts_with(only.as_str());
        if plan.only.as_ref().is_some_and(other) {
            return Tally::default();
        }
        let recording = subject.record(plan.lie);
        if sqlite_loses(workload, mode) {
            return Tally::default();
        }
        let (tally, seen) = (Tally::default(), HashSet::new());
        let mut campaign = Self { plan, subject, recording, tally, seen };
        let points = campaign.points();
        let start = std::mem::take(&mut campaign.recording.start);
        let log = std::mem::take(&mut campaign.recording.log);
        let mut history = History::new(&start, &log);
        for point in points {
            history.advance(point);
            let images = if history.is_settled() { 1 } else { 3 + plan.mixed };
            for number in 0..images {
                campaign.lose_power(&history, &log, point, number);
            }
        }
        campaign.tally
    }

    /// After how many operations the power fails.
    fn points(&self) -> Vec<usize> {
        let Recording { log, marks, .. } = &self.recording;
        if self.subject.workload.fits == Fits::Volatile {
            return marks.clone();
        }
        let stride = match self.plan.images {
            0 => 1,
            // About half of the images are the same as others.
            images => ((log.len() + 1) * (3 + self.plan.mixed)).div_ceil(2 * images).max(1),
        };
        let first = self.random(&[0]).index(stride);
        (first..=log.len()).step_by(stride).collect()
    }

    fn random(&self, words: &[u64]) -> Random {
        let row = self
            .subject
            .name()
            .bytes()
            .fold(0_u64, |hash, byte| hash.rotate_left(5) ^ u64::from(byte));
        let mut all = vec![row];
        all.extend_from_slice(words);
        Random::mixed(self.plan.seed, &all)
    }

    fn lose_power(&mut self, history: &History<'_>, log: &[Entry], point: usize, number: usize) {
        let name = self.name(point, number, log.len());
        if self.plan.only.as_ref().is_some_and(|only| !name.starts_with(only.as_str())) {
            return;
        }
        let mut random = self.random(&[1, point as u64, number as u64]);
        let image = history.image(number, &mut random);
        let spans = self.spans(log, point, &image);
        if !self.seen.insert((image.fingerprint(), spans.clone())) {
            return;
        }
        self.tally.images += 1;
        self.tally.torn += usize::from(image.torn > 0);
        let creating = self.subject.workload.setup.is_empty() && self.done(point) == 0;
        match self.check(&image, &spans, &spans, creating) {
            Err(error) => self.fail(&name, &error),
            Ok(found) => {
                self.tally.looked += usize::from(found.looked);
                if self.plan.lie.is_none() && random.index(5) == 0 {
                    let found = (found, &spans[..]);
                    self.lose_power_again(&image.files, found, creating, &name, &mut random);
                }
            }
        }
    }

    /// The power fails again while the next process recovers, or goes on from there. `before` is
    /// what the first loss allowed: a key that it left may still be there.
    fn lose_power_again(
        &mut self,
        files: &Files,
        (found, before): (check::Found, &[Span]),
        creating: bool,
        name: &str,
        random: &mut Random,
    ) {
        let mut points: Vec<usize> = (0..3).map(|_| random.index(found.log.len() + 1)).collect();
        points.sort_unstable();
        let mut history = History::new(files, &found.log);
        for point in points {
            history.advance(point);
            let number = 1 + random.index(4);
            let image = history.image(number, random);
            self.tally.second += 1;
            self.tally.torn += usize::from(image.torn > 0);
            if let Err(error) = self.check(&image, &found.spans, before, creating) {
                let what = format!("{name}, again at {point} of {}", found.log.len());
                self.fail(&what, &error);
            }
        }
    }

    /// `before` are the spans in which keys may still be in the file.
    fn check(
        &self,
        image: &Image,
        spans: &[Span],
        before: &[Span],
        creating: bool,
    ) -> Result<check::Found, String> {
        let states = &self.recording.states;
        catch_unwind(AssertUnwindSafe(|| {
            if let (true, Some(keys)) = (self.subject.has_keys(), before.last()) {
                self.subject.parties(image, states, *keys)?;
            }
            let looked = self.subject.stranger_looks(image)?;
            let mut found = self.subject.check(image, states, spans, creating)?;
            found.looked = looked;
            Ok(found)
        }))
        .unwrap_or_else(|_| Err("a panic".into()))
    }

    fn fail(&mut self, name: &str, error: &str) {
        self.tally.failures.push(format!("{name}, seed {}: {error}", self.plan.seed));
    }

    fn name(&self, point: usize, number: usize, points: usize) -> String {
        format!("{}, point {point} of {points}, image {number}", self.subject.name())
    }

    /// How many steps had returned after `point` operations.
    fn done(&self, point: usize) -> usize {
        self.recording.marks.iter().filter(|&&mark| mark <= point).count().saturating_sub(1)
    }

    /// In which state each database may be: no later than the step in flight, no earlier than what
    /// SQLite promises.
    fn spans(&self, log: &[Entry], point: usize, image: &Image) -> Vec<Span> {
        let Recording { marks, wal, states, .. } = &self.recording;
        let done = self.done(point);
        let in_flight = usize::from(point > marks[done] && done + 1 < states.len());
        let span = |(_, path): &(&str, &str)| {
            let name = format!("{path}{}", self.subject.log_suffix(path));
            let is_sync = |entry: &Entry| entry.op == Op::Sync && *entry.name == name;
            let synced = log[..point].iter().rposition(is_sync).unwrap_or(0);
            // With synchronous=NORMAL a log is synced by checkpoints only.
            let lazy = self.subject.mode.sync == "NORMAL";
            let durable = |&step: &usize| !wal[step] || !lazy || marks[step] <= synced;
            let durable = (0..=done).rev().find(durable).unwrap_or(0);
            (image.taken_back.map_or(durable, |at| durable.min(self.done(at))), done + in_flight)
        };
        let mut spans: Vec<Span> = self.subject.databases().iter().map(span).collect();
        if self.subject.has_keys() {
            // No mode of SQLite's lets an answered change to the protectors be lost.
            spans.push((done, done + in_flight));
        }
        spans
    }
}

/// Before 3.50 SQLite forgets to write the checksums of frames after ROLLBACK TO has gone back
/// behind a frame that was overwritten. Recovery ends there, below what a checkpoint may have
/// copied: plain SQLite loses commits and pages. While nothing fails, the data must be right there,
/// too.
fn sqlite_loses(workload: &Workload, mode: &Mode) -> bool {
    let rolls_back = workload.steps.iter().any(|(_, sql)| sql.contains("ROLLBACK TO"));
    rusqlite::version_number() < 3_050_000 && rolls_back && mode.journal == "WAL"
}

/// Runs `plan` for all `rows`, on all processors.
fn all(plan: &Plan, rows: &[(&Workload, &Mode)]) -> Vec<Tally> {
    let next = AtomicUsize::new(0);
    let tallies: Vec<Mutex<Tally>> = rows.iter().map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let row = next.fetch_add(1, Ordering::SeqCst);
                    let Some((workload, mode)) = rows.get(row) else { return };
                    let tally = Campaign::run(plan, workload, mode);
                    *tallies[row].lock().unwrap_or_else(PoisonError::into_inner) = tally;
                }
            });
        }
    });
    tallies.into_iter().map(|tally| tally.into_inner().unwrap()).collect()
}

/// The rows that make sense, and that `wanted` picks.
fn rows(wanted: impl Fn(&Workload, &Mode) -> bool) -> Vec<(&'static Workload, &'static Mode)> {
    let pairs =
        WORKLOADS.iter().flat_map(|workload| MODES.iter().map(move |mode| (workload, mode)));
    pairs.filter(|(workload, mode)| workload.fits.allows(mode) && wanted(workload, mode)).collect()
}

/// Prints what was done, and answers the sum.
fn report(title: &str, rows: &[(&Workload, &Mode)], tallies: Vec<Tally>) -> Tally {
    let mut total = Tally::default();
    let mut lines: Vec<(String, usize, usize)> = Vec::new();
    for ((workload, mode), tally) in rows.iter().zip(tallies) {
        for name in [workload.name.to_owned(), format!("  {} {}", mode.journal, mode.sync)] {
            match lines.iter_mut().find(|line| line.0 == name) {
                Some(line) => (line.1, line.2) = (line.1 + tally.images, line.2 + tally.second),
                None => lines.push((name, tally.images, tally.second)),
            }
        }
        total.add(tally);
    }
    lines.sort_by_key(|line| line.0.starts_with(' '));
    for (name, images, second) in lines {
        eprintln!("{title}: {name}: {images} images, {second} second crashes");
    }
    eprintln!(
        "{title}: {} images, {} seen by a stranger, {} second crashes, {} with torn writes, {} failures",
        total.images,
        total.looked,
        total.second,
        total.torn,
        total.failures.len()
    );
    total
}

fn assert_none(failures: &[String], of: usize) {
    let shown = failures.iter().take(60).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {of} images are bad:\n{shown}", failures.len());
}

#[test]
fn committed_transactions_survive_power_loss() {
    let started = Instant::now();
    let plan = Plan::new();
    let rows = rows(|_, _| true);
    let tallies = all(&plan, &rows);
    let total = report("encrypted", &rows, tallies);
    eprintln!("seed {}, {:.1} s", plan.seed, started.elapsed().as_secs_f64());
    assert_none(&total.failures, total.images + total.second);
    assert!(plan.only.is_some() || total.looked * 3 > total.images, "{} looked at", total.looked);
    let wanted = if full() { 100_000 } else { 5_500 };
    assert!(plan.only.is_some() || total.images >= wanted, "{} images", total.images);
}

/// The same over what other platforms make of the disk: all of them in the full mode.
#[test]
fn committed_transactions_survive_on_other_platforms() {
    for platform in PLATFORMS {
        let some = ["windows", "sector 8192", "unix-none"].contains(&platform.name);
        if platform.name == "unix" || !(some || full()) {
            continue;
        }
        let mut plan = Plan { platform: Some(platform), ..Plan::new() };
        if plan.only.is_none() {
            plan.images = if full() { 60 } else { 2 };
        }
        let rows = rows(|_, mode| platform.methods.has_shm() || !mode.is_wal());
        let total = report(platform.name, &rows, all(&plan, &rows));
        assert_none(&total.failures, total.images + total.second);
    }
}

/// The same of SQLite alone: what it cannot do, `tde` need not. It cannot survive everything in a
/// rollback journal with synchronous=NORMAL, where the number of records is synced together with
/// them: its checksum looks at one byte in 200 of a page, so a torn record may pass for a whole
/// one. That holds for a database that leaves WAL mode for a while, too.
#[test]
fn plain_sqlite_survives_too() {
    let mut plan = Plan { encrypted: false, ..Plan::new() };
    if plan.only.is_none() {
        plan.images = if full() { 100 } else { 6 };
    }
    let stays_in_wal = |workload: &Workload| workload.name != "modes switched";
    let rows =
        rows(|workload, mode| mode.sync != "NORMAL" || mode.is_wal() && stays_in_wal(workload));
    let tallies = all(&plan, &rows);
    let total = report("plain", &rows, tallies);
    assert_none(&total.failures, total.images + total.second);
}

/// Disks that say they synced and did not: no database can stand that, and it must be noticed.
#[test]
fn a_disk_that_lies_is_noticed() {
    let (spills, restarts) = ("update, spill and roll back", "small commits, log restarted");
    for (file, journal, name) in [
        ("/main.db", "DELETE", spills),
        ("/main.db", "WAL", restarts),
        ("/main.db-journal", "DELETE", spills),
        ("/main.db-journal", "PERSIST", spills),
        ("/main.db-tdewal", "WAL", spills),
        ("/main.db-tdewal", "WAL", restarts),
    ] {
        let plan = Plan { images: 40, lie: Some(Lie(file)), only: None, ..Plan::new() };
        let rows = rows(|workload, mode| {
            workload.name == name && mode.journal == journal && mode.sync == "FULL"
        });
        let total = report(&format!("no sync of {file}"), &rows, all(&plan, &rows));
        let failures = total.failures.len();
        assert!(failures * 10 > total.images, "{file}, {journal}: {failures} of {}", total.images);
    }
}
