//! A record of a journal in an older version, put back while the transaction that wrote it runs.
//!
//! The header of each part of a journal is written several times, and so is a record in which a
//! part of what SQLite wrote was brought to the disk. Each of their versions is authentic. A
//! history of statements runs once to collect them; then anew for each version and each later
//! statement, before which it is put back. The transaction is then rolled back, or committed:
//! whoever reads afterwards gets all rows as they were before, all as they are after the commit, or
//! an error.

use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rusqlite::{Connection, ffi};
use sqlite_tde::Tuning;
use sqlite_tde_testkit::Home;
use sqlite_tde_testkit::platform::{self, PlatformVfs};
use sqlite_tde_testkit::process::full;

const HEADER: usize = 512;
const TRAILER: usize = 48;

#[derive(Debug, Clone, Copy)]
struct Setting {
    mode: &'static str,
    synchronous: &'static str,
    exclusive: bool,
    sector: usize,
    gathered: bool,
}

impl Setting {
    /// The place of each whole record in a journal of `len` bytes.
    fn records(self, len: usize) -> impl Iterator<Item = Range<usize>> {
        let (first, record) = (self.sector, self.sector + TRAILER);
        let stride =
            if self.sector == HEADER { record } else { record.next_multiple_of(self.sector) };
        (0..)
            .map(move |number| first + number * stride)
            .map(move |at| at..at + record)
            .take_while(move |place| place.end <= len)
    }
}

fn settings() -> Vec<Setting> {
    let mut settings = Vec::new();
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        for synchronous in ["OFF", "NORMAL", "FULL"] {
            for exclusive in [false, true] {
                for sector in [512, 4096] {
                    for gathered in [true, false] {
                        settings.push(Setting { mode, synchronous, exclusive, sector, gathered });
                    }
                }
            }
        }
    }
    settings
}

const BUILD: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c INTEGER UNIQUE);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
    INSERT INTO t SELECT i, printf('%03d before %.700c', i, 'x'), i FROM n;";

/// A transaction whose pages outgrow the cache, and whose journal is longer than what is kept of it
/// in plaintext. It is taken back in part.
const HISTORY: [&str; 10] = [
    "BEGIN",
    "UPDATE t SET b = replace(b, 'before', 'first') WHERE a <= 50",
    "UPDATE t SET b = replace(b, 'before', 'second') WHERE a BETWEEN 51 AND 100",
    "SAVEPOINT s",
    "UPDATE t SET b = replace(b, 'x', 'y') WHERE a BETWEEN 90 AND 180",
    // Fails after some rows: SQLite takes the statement back.
    "UPDATE t SET b = replace(b, 'before', 'third'), c = iif(a = 300, 1, c)
     WHERE a BETWEEN 170 AND 310",
    "UPDATE t SET b = replace(b, 'before', 'fourth') WHERE a BETWEEN 250 AND 350",
    "ROLLBACK TO s",
    "INSERT INTO t SELECT a + 1000, b, c + 1000 FROM t WHERE a < 20",
    "UPDATE t SET b = 'short' WHERE a > 340",
];

type Rows = Vec<(i64, String)>;

fn rows(db: &Connection) -> rusqlite::Result<Rows> {
    let mut statement = db.prepare("SELECT a, b FROM t ORDER BY a")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

struct Stage {
    setting: Setting,
    home: Home,
    /// Where no disk slows down what is synced.
    _dir: tempfile::TempDir,
    path: PathBuf,
    /// The database before the transaction.
    start: Vec<u8>,
    before: Rows,
}

/// A record as it is after one statement, which is put back before a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Replay {
    place: Range<usize>,
    taken_after: usize,
    put_before: usize,
}

impl Stage {
    fn new(setting: Setting, base: &str) -> Self {
        let mut tuning = Tuning::default();
        tuning.gather_writes = setting.gathered;
        let home = Home::with(|options| options.base(base).tuning(tuning));
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = dir.path().join("a.db");
        let (start, before) = (Vec::new(), Rows::new());
        let mut stage = Self { setting, home, _dir: dir, path, start, before };
        let db = stage.open();
        db.execute_batch(BUILD).unwrap();
        stage.before = rows(&db).unwrap();
        drop(db);
        stage.start = fs::read(&stage.path).unwrap();
        stage
    }

    fn open(&self) -> Connection {
        let Setting { mode, synchronous, exclusive, .. } = self.setting;
        let db = self.home.open(&self.path);
        let locking = if exclusive { "EXCLUSIVE" } else { "NORMAL" };
        db.execute_batch(&format!(
            "PRAGMA page_size=1024; PRAGMA locking_mode={locking}; PRAGMA journal_mode={mode};
             PRAGMA synchronous={synchronous}; PRAGMA cache_size=4;"
        ))
        .unwrap();
        db
    }

    fn journal(&self) -> PathBuf {
        PathBuf::from(format!("{}-journal", self.path.display()))
    }

    fn restart(&self) -> Connection {
        let _ = fs::remove_file(self.journal());
        fs::write(&self.path, &self.start).unwrap();
        self.open()
    }

    /// Runs the history, with `replay` in its midst. Whether anything failed.
    fn run(&self, replay: Option<&Replay>, end: &str) -> Result<bool, String> {
        let db = self.restart();
        let (mut failed, mut taken) = (false, Vec::new());
        for (number, sql) in HISTORY.iter().chain([&end]).enumerate() {
            if let Some(replay) = replay.filter(|replay| replay.put_before == number) {
                let file = OpenOptions::new().write(true).open(self.journal()).unwrap();
                file.write_all_at(&taken, replay.place.start as u64).unwrap();
            }
            failed |= db.execute_batch(sql).is_err_and(|error| {
                let code = error.sqlite_error().map_or(0, |error| error.extended_code);
                code & 0xff != ffi::SQLITE_CONSTRAINT
            });
            if let Some(replay) = replay.filter(|replay| replay.taken_after == number) {
                taken = fs::read(self.journal()).unwrap()[replay.place.clone()].to_vec();
            }
        }
        if !db.is_autocommit() {
            let _ = db.execute_batch("ROLLBACK");
        }
        for _ in 0..2 {
            let Ok(found) = rows(&db) else { return Ok(true) };
            if found != self.before && (end == "ROLLBACK" || failed) {
                let (all, had) = (found.len(), self.before.len());
                let stayed = found.iter().filter(|row| !self.before.contains(row)).count();
                return Err(format!("{all} rows for {had}, {stayed} of them of the transaction"));
            }
        }
        match db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)) {
            Ok(checked) if checked != "ok" => Err(checked),
            checked => Ok(failed || checked.is_err()),
        }
    }

    /// Each record that two statements leave in different versions.
    fn replays(&self) -> Vec<Replay> {
        let db = self.restart();
        let mut images = Vec::new();
        for sql in HISTORY {
            let _ = db.execute_batch(sql);
            images.push(fs::read(self.journal()).unwrap_or_default());
        }
        let mut replays = Vec::new();
        for place in self.setting.records(images.iter().map(Vec::len).max().unwrap_or_default()) {
            let versions: Vec<_> = images.iter().map(|image| image.get(place.clone())).collect();
            for (old, new) in (0..HISTORY.len()).flat_map(|new| (0..new).map(move |old| (old, new)))
            {
                let (older, newer) = (versions[old], versions[new]);
                // Each version once: as the last statement leaves it, right after it was replaced.
                let is_last = versions[old + 1] != older && versions[new - 1] != newer;
                if older.is_some() && newer.is_some() && older != newer && is_last {
                    let place = place.clone();
                    replays.push(Replay { place, taken_after: old, put_before: new + 1 });
                }
            }
        }
        replays
    }
}

#[test]
fn no_transaction_is_rolled_back_in_part() {
    let base = PlatformVfs::new(platform::platform("sector 4096"), "unix").name;
    let (mut runs, mut refused) = (0, 0);
    let mut wrong = Vec::new();
    for (number, setting) in settings().into_iter().enumerate() {
        let stage = Stage::new(setting, if setting.sector == 4096 { base } else { "unix" });
        let done = stage.run(None, "COMMIT");
        assert_eq!(done, Ok(false), "{setting:?}: untouched");
        assert_eq!(stage.run(None, "ROLLBACK"), Ok(false), "{setting:?}: untouched");
        let replays = stage.replays();
        assert!(!replays.is_empty(), "{setting:?}: no record has two versions");
        // Without SQLITE_TDE_FULL=1 a sample, of other records in each setting.
        let every = if full() { 1 } else { replays.len().div_ceil(9) };
        for replay in replays.iter().skip(number % every).step_by(every) {
            for end in ["ROLLBACK", "COMMIT"] {
                runs += 1;
                match stage.run(Some(replay), end) {
                    Ok(failed) => refused += usize::from(failed),
                    Err(how) => wrong.push(format!("{setting:?}, {replay:?}, {end}: {how}")),
                }
            }
        }
    }
    println!("{runs} runs, {refused} refused");
    assert!(wrong.is_empty(), "{} of {runs} runs; the first: {}", wrong.len(), wrong[0]);
    assert!(refused > 0, "nothing was ever refused");
}
