//! Many threads of many processes work on one database at once. No reader ever sees a sum that no
//! transaction left, and nobody meets another error than that others are in the way.
//!
//! `SQLITE_TDE_SOAK_SECONDS` says how long the soak lasts (10 seconds unless said; 600 for a
//! release).

use std::time::{Duration, Instant};

use sqlite_tde_testkit::bank::{self, Bank, Count, ROLES, Role};
use sqlite_tde_testkit::process::{Process, TOO_LONG, full, report};
use sqlite_tde_testkit::random::Random;
use sqlite_tde_testkit::stranger::Stranger;

const TASK: &str = "SQLITE_TDE_TEST_BANK";
const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];

/// Runs `roles` in threads of this process. Answers how much each did.
fn threads(bank: &Bank, roles: &[Role], seed: u64, lasts: Duration) -> Vec<(Role, Count)> {
    let until = Instant::now() + lasts;
    std::thread::scope(|scope| {
        let workers: Vec<_> = roles
            .iter()
            .zip(seed..)
            .map(|(&role, seed)| (role, scope.spawn(move || bank.work(role, seed, until))))
            .collect();
        let done = workers.into_iter().map(|(role, worker)| {
            let count = worker.join().unwrap_or_else(|_| panic!("{role:?}, from seed {seed}"));
            (role, count.unwrap_or_else(|error| panic!("{error}")))
        });
        done.collect()
    })
}

/// What the system says this process holds: descriptors, and KiB of memory.
fn holds() -> (usize, u64) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let memory = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = memory.split(' ').nth(1).unwrap().parse().unwrap();
    (descriptors, pages * 4)
}

/// The task of a process: `dir|mode|plain|seed|milliseconds`. It works in two parts: after the
/// first it knows what it needs, and the second must not need more.
#[test]
fn works_at_the_bank() {
    let Ok(task) = std::env::var(TASK) else { return };
    let parts: Vec<&str> = task.split('|').collect();
    let [dir, mode, plain, seed, millis] = parts[..] else { panic!("{task}") };
    let mode = MODES.into_iter().find(|name| *name == mode).unwrap();
    let bank = Bank::at(dir.into(), mode, plain == "true");
    let (seed, millis): (u64, u64) = (seed.parse().unwrap(), millis.parse().unwrap());
    let roles = if seed == 0 {
        ROLES.to_vec()
    } else {
        let mut random = Random::new(seed);
        (0..3).map(|_| random.pick(&ROLES)).collect()
    };
    let mut before = None;
    for part in [1, 3] {
        for (role, Count { done, busy }) in
            threads(&bank, &roles, seed * 1000 + part, Duration::from_millis(millis * part / 4))
        {
            report(&format!("{role:?} {done} {busy}"));
        }
        let (descriptors, memory) = holds();
        if let Some((first_descriptors, first_memory)) = before {
            assert_eq!(descriptors, first_descriptors, "seed {seed}: open descriptors");
            report(&format!("memory {first_memory} {memory}"));
            let most = first_memory + first_memory / 4 + 4096;
            assert!(memory <= most, "seed {seed}: {first_memory} KiB became {memory} KiB");
        }
        before = Some((descriptors, memory));
    }
}

/// Runs `processes` of them.
fn processes(mode: &'static str, plain: bool, processes: u64, lasts: Duration) {
    let home = tempfile::tempdir().unwrap();
    let bank = Bank::at(home.path().to_owned(), mode, plain);
    bank.create();
    let started: Vec<_> = (0..processes)
        .map(|seed| {
            let (dir, millis) = (bank.dir.display(), lasts.as_millis());
            let task = format!("{dir}|{mode}|{plain}|{seed}|{millis}");
            (seed, Process::start("works_at_the_bank", TASK, &task))
        })
        .collect();
    let what = format!("{mode}, plain {plain}");
    // Programs without the library look on meanwhile.
    let stranger = (!plain).then(|| Stranger::start([bank.dir.join(bank::FILE)], processes));
    let (mut done, mut busy, mut memory) = (0, 0, Vec::new());
    for (seed, process) in started {
        let lines = process.finish(lasts + TOO_LONG * 2);
        for line in lines.unwrap_or_else(|error| panic!("{what}, process {seed}: {error}")) {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            if words[0] == "memory" {
                memory.push((number(1), number(2)));
            } else {
                done += number(1);
                busy += number(2);
            }
        }
    }
    let looked = stranger.map_or(Ok(0), Stranger::end);
    let looked = looked.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(plain || looked > 0, "{what}: no stranger looked");
    bank.check().unwrap_or_else(|error| panic!("{what}: {error}"));
    eprintln!(
        "{what}: {looked} looks of strangers, {processes} processes, {done} done, {busy} busy, KiB of memory {memory:?}"
    );
}

#[test]
fn threads_of_one_process() {
    for mode in MODES {
        let home = tempfile::tempdir().unwrap();
        let bank = Bank::at(home.path().to_owned(), mode, false);
        bank.create();
        let seconds = if full() { 30 } else { 1 };
        let done = threads(&bank, &ROLES, 7, Duration::from_secs(seconds));
        bank.check().unwrap_or_else(|error| panic!("{mode}: {error}"));
        eprintln!("{mode}: one process, {done:?}");
    }
}

#[test]
fn processes_at_the_same_bank() {
    for mode in MODES {
        let lasts = Duration::from_secs(if full() { 30 } else { 1 });
        processes(mode, false, 4, lasts);
    }
}

/// The same of SQLite alone: the test asks for no more than it gives.
#[test]
fn and_on_plain_sqlite() {
    for mode in MODES {
        processes(mode, true, 4, Duration::from_millis(1000));
    }
}

#[test]
fn soak() {
    let seconds = std::env::var("SQLITE_TDE_SOAK_SECONDS").map_or(10, |text| text.parse().unwrap());
    processes("WAL", false, 8, Duration::from_secs(seconds));
}
