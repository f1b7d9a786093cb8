//! Tampering between any two calls of a running history.
//!
//! A history is a script of transactions of two connections: reads that stay open, spilled pages,
//! savepoints, rollbacks, checkpoints, VACUUM, a kill with its recovery, reopening. It runs once to
//! count the calls below `tde`. Then it runs anew for each call and each row of a table, and right
//! before that call the row is done to the files: they are cut, grown, zeroed, flipped, exchanged,
//! put back.
//!
//! Each statement must answer what plain SQLite answers or an error, and each page that is
//! authentic afterwards must have content that SQLite wrote there. What else is accepted is the
//! table in `tampering_running/judge.rs`; all of it is in `docs/threat-model.md`.
//!
//! `SQLITE_TDE_FULL=1` takes every call and row, with the pages and records of a file in turn;
//! otherwise a sample. `SQLITE_TDE_ROWS='Database: Cut'` takes every call of the rows that begin
//! so, `SQLITE_TDE_ONLY='NAME AS IN THE FAILURE'` repeats one run, and `SQLITE_TDE_TRACE=1` prints
//! the calls.

#![cfg(unix)]

#[path = "tampering_running/changes.rs"]
mod changes;
#[path = "tampering_running/history.rs"]
mod history;
#[path = "tampering_running/judge.rs"]
mod judge;
#[path = "tampering_running/stage.rs"]
mod stage;
#[path = "tampering_running/targeted.rs"]
mod targeted;
#[path = "tampering_running/watch.rs"]
mod watch;

use std::collections::BTreeMap;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use history::Config;
use sqlite_tde::Cipher;
use sqlite_tde_testkit::between::File;
pub use sqlite_tde_testkit::between::{DATABASE, JOURNAL, LOG};
use sqlite_tde_testkit::process::full;
use sqlite_tde_testkit::random::Random;
use stage::Stage;

/// Names and layouts of the files, as docs/format.md has them.
pub const INDEX: &str = "-shm";
pub const PAGE: usize = 1024;
pub const TRAILER: usize = 48;
/// One copy of the envelope, and where the pages begin.
pub const COPY: u64 = 8192;
pub const PAGES_AT: u64 = 2 * COPY;
/// Records of the log, from where frames begin.
pub const FRAMES_AT: u64 = 1024;
pub const STRIDE: u64 = (FRAME_HEADER + PAGE + TRAILER) as u64;
/// Records of the journal.
pub const RECORDS_AT: u64 = 512;
pub const RECORD: u64 = 512 + TRAILER as u64;
/// SQLite's log.
pub const LOG_HEADER: usize = 32;
pub const FRAME_HEADER: usize = 24;

/// A directory that no disk slows down, where there is one.
pub fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Panics so far: the VFS stops them, and SQLite sees an I/O error.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            usual(info);
        }));
    });
}

const CIPHERS: [Cipher; 3] = Cipher::ALL;

fn configs(mode: &'static str) -> Vec<Config> {
    let mut configs = Vec::new();
    for exclusive in [false, true] {
        for cipher in CIPHERS {
            for shortcuts in [true, false] {
                configs.push(Config { mode, exclusive, cipher, shortcuts });
            }
        }
    }
    configs
}

const UNITS_IN_TURN: usize = 6;

/// What docs/threat-model.md lists under "Known gaps", and nothing else: these are faults.
fn known_gap(file: File, mode: &str, how: &str) -> Option<&'static str> {
    match file {
        File::Database if mode == "OFF" && how.contains(", 0 of them zeros\" for") => {
            Some("GAP: without a journal an error leaves half of a statement")
        }
        _ => None,
    }
}

/// Does all rows for `file` in databases of `mode`.
fn campaign(file: File, mode: &'static str) {
    count_panics();
    let only = std::env::var("SQLITE_TDE_ONLY").ok();
    let slice = std::env::var("SQLITE_TDE_ROWS").ok();
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut runs = 0;
    for (seed, config) in (1..).zip(configs(mode)) {
        if only.as_ref().is_some_and(|only| !only.starts_with(&config.to_string())) {
            continue;
        }
        let mut random = Random::mixed(seed, &[]);
        let stage = Stage::new(config);
        // What another file's call does not see may as well be done before the next of this one's.
        let seen_by =
            |call: &watch::Seen| call.file == file || file == File::Index && call.file == File::Log;
        let calls: Vec<usize> =
            (0..stage.trace.len()).filter(|&at| seen_by(&stage.trace[at])).collect();
        if calls.is_empty() {
            continue;
        }
        let sample = !full() && only.is_none() && slice.is_none();
        for (turn, row) in changes::rows(file, &mut random, !sample).into_iter().enumerate() {
            if slice.as_ref().is_some_and(|slice| !row.to_string().starts_with(slice)) {
                continue;
            }
            let mut chosen = calls.clone();
            if sample {
                // Each row in every other configuration.
                if (turn + seed as usize).is_multiple_of(2) && file != File::Index {
                    continue;
                }
                let pick = |_| calls[random.below(calls.len() as u64) as usize];
                let tries = if file == File::Index { 18 } else { 4 };
                chosen = (0..tries).map(pick).collect();
            } else if let (Some(unit), None) = (row.unit_of_all(), &only) {
                // All units before all calls would take days: each call has some, in turn.
                let in_turn = |(turn, at): (usize, &usize)| {
                    (turn % UNITS_IN_TURN == unit as usize % UNITS_IN_TURN).then_some(*at)
                };
                chosen = calls.iter().enumerate().filter_map(in_turn).collect();
            }
            let most = match row.change {
                changes::Change::Cut(_) => 2,
                changes::Change::Index(_) => 6,
                _ => 1,
            };
            let mut done = 0;
            for at in chosen {
                let name = format!("{config}: call {at}: {row}");
                if only.as_ref().is_some_and(|only| !only.starts_with(&name))
                    || sample && done == most
                {
                    continue;
                }
                let panics = PANICS.load(Ordering::SeqCst);
                let Some(ran) = stage.run(Some((at, row))) else { continue };
                (done, runs) = (done + 1, runs + 1);
                if std::env::var_os("SQLITE_TDE_TRACE").is_some() {
                    println!("tampered with in step {}", ran.step);
                    for (number, answer) in ran.answers.iter().enumerate() {
                        println!("step {number}: {:?}: {answer:?}", stage.steps[number]);
                    }
                }
                let mut outcome = judge::judge(&stage, &ran, row);
                if PANICS.load(Ordering::SeqCst) > panics {
                    outcome = Err("a panic".into());
                }
                match outcome {
                    Ok(outcome) => *outcomes.entry(outcome).or_default() += 1,
                    Err(how) => {
                        if let Some(gap) = known_gap(file, mode, &how) {
                            *outcomes.entry(gap).or_default() += 1;
                            continue;
                        }
                        let call = stage.trace[at];
                        let line = format!("{name}, {:?} of {:?}: {how}", call.method, call.file);
                        found.entry(row.to_string()).or_default().push(line);
                    }
                }
            }
        }
    }
    println!("{file:?} tampered with, {mode}: {runs} runs: {outcomes:?}");
    let count: usize = found.values().map(Vec::len).sum();
    for (row, lines) in &found {
        println!("{row}: {}; the first: {}", lines.len(), lines[0]);
    }
    assert!(found.is_empty(), "{mode}: {count} of {runs} runs of {} rows", found.len());
}

macro_rules! campaigns {
    ($($name:ident: $file:ident, $mode:literal;)*) => {
        $(
            #[test]
            fn $name() {
                campaign(File::$file, $mode);
            }
        )*
    };
}

campaigns! {
    the_database_beside_a_journal_that_is_deleted: Database, "DELETE";
    the_database_beside_a_journal_that_is_cut: Database, "TRUNCATE";
    the_database_beside_a_journal_that_stays: Database, "PERSIST";
    the_database_beside_a_journal_in_memory: Database, "MEMORY";
    the_database_without_a_journal: Database, "OFF";
    the_database_beside_its_log: Database, "WAL";
    a_journal_that_is_deleted: Journal, "DELETE";
    a_journal_that_is_cut: Journal, "TRUNCATE";
    a_journal_that_stays: Journal, "PERSIST";
    the_log: Log, "WAL";
    the_wal_index: Index, "WAL";
}
