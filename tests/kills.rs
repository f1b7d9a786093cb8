//! Processes that write are killed at any moment, beside programs without the library that open the
//! same files, look, stay and are killed or end at any moment, too. What they reported as committed
//! is there afterwards, of what was in flight all or nothing, and the next process goes on with the
//! files.
//!
//! `SQLITE_TDE_FULL=1` kills 500 times, otherwise 30.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, params};
use sqlite_tde::provider::Keystore;
use sqlite_tde::{Cipher, OpenOptions, TdeConnection};
use sqlite_tde_testkit::process::{Process, TOO_LONG, full, report};
use sqlite_tde_testkit::random::Random;
use sqlite_tde_testkit::stranger::Stranger;
use sqlite_tde_testkit::{found_in_files, one};

const TASK: &str = "SQLITE_TDE_TEST_KILLED";
const MODES: &[&str] = &["DELETE", "TRUNCATE", "PERSIST", "WAL"];
const MARKER: &str = "zqxjkvwmarker7395canaryhpbfgy";

/// Writers of one process; the second process has as many.
const WRITERS: u64 = 3;
/// Transactions of a writer whose rows are kept.
const KEPT: i64 = 30;
const ACCOUNTS: i64 = 50;
/// Every so many rounds new databases are made.
const GENERATION: u64 = 8;

/// What one round does; the same seed is the same round in parent and child.
struct Round {
    seed: u64,
    mode: &'static str,
    synchronous: &'static str,
    cache_size: i64,
    autocheckpoint: i64,
    exclusive: bool,
    writers: u64,
    processes: u64,
}

impl Round {
    fn new(seed: u64, modes: &[&'static str]) -> Self {
        let mut random = Random::new(seed);
        let exclusive = random.one_in(6);
        Self {
            seed,
            mode: random.pick(modes),
            synchronous: random.pick(&["OFF", "OFF", "NORMAL", "FULL"]),
            cache_size: random.pick(&[5, 20, -2000]),
            autocheckpoint: random.pick(&[1, 10, 1000]),
            exclusive,
            writers: if exclusive { 1 } else { 1 + random.below(WRITERS) },
            processes: if exclusive { 1 } else { 1 + random.below(2) },
        }
    }
}

impl Round {
    /// Whether a commit over two databases is one: SQLite has a super-journal neither for logs nor
    /// where it does not sync.
    fn both_at_once(&self) -> bool {
        self.mode != "WAL" && self.synchronous != "OFF"
    }
}

/// Two databases in a directory, attached to each other; under `tde` or, as a control, plain.
struct Site {
    dir: PathBuf,
    plain: bool,
}

impl Site {
    fn new(dir: &Path, plain: bool) -> Self {
        if !plain {
            let keystore = Keystore::at(dir.join("keys"));
            let options = sqlite_tde_testkit::options("killed").keystore(keystore);
            sqlite_tde::register(options.replace(true)).unwrap();
        }
        Self { dir: dir.to_owned(), plain }
    }

    /// Not every database has the same pages.
    fn random(&self) -> Random {
        let name = self.dir.file_name().unwrap().to_str().unwrap();
        Random::new(name.parse().unwrap())
    }

    fn uri(&self, file: &str) -> String {
        let cipher = self.random().pick(&Cipher::ALL);
        let path = self.dir.join(file);
        if self.plain {
            return format!("file:{}?vfs=unix", path.display());
        }
        OpenOptions::new().vfs("killed").cipher(cipher).uri(path).unwrap()
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(self.uri("main.db"), flags)?;
        db.busy_timeout(Duration::from_secs(5))?;
        let mut random = self.random();
        let page_size = random.pick(&[1024, 4096]);
        let auto_vacuum = random.pick(&["NONE", "FULL", "INCREMENTAL"]);
        db.execute_batch(&format!("ATTACH '{}' AS aux", self.uri("aux.db")))?;
        for schema in ["main", "aux"] {
            db.execute_batch(&format!(
                "PRAGMA {schema}.page_size={page_size}; PRAGMA {schema}.auto_vacuum={auto_vacuum}"
            ))?;
        }
        db.execute_batch("PRAGMA temp_store=FILE")?;
        Ok(db)
    }
}

/// A worker's connection, with the settings of the round.
fn connect(site: &Site, round: &Round) -> rusqlite::Result<Connection> {
    let db = site.open()?;
    if round.exclusive {
        db.execute_batch("PRAGMA locking_mode=EXCLUSIVE")?;
    }
    db.execute_batch(&format!(
        "PRAGMA journal_mode={}; PRAGMA synchronous={}; PRAGMA main.cache_size={};
         PRAGMA wal_autocheckpoint={}",
        round.mode, round.synchronous, round.cache_size, round.autocheckpoint
    ))?;
    Ok(db)
}

fn create(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    if one(db, "SELECT count(*) FROM main.sqlite_schema") == Value::Integer(0) {
        db.execute_batch(&format!(
            "CREATE TABLE log(w INTEGER, n INTEGER, part INTEGER, pad TEXT, PRIMARY KEY(w, n, part));
             CREATE INDEX log_pad ON log(pad);
             CREATE TABLE head(w INTEGER PRIMARY KEY, n INTEGER);
             CREATE TABLE aux.other(w INTEGER PRIMARY KEY, n INTEGER);
             CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER);
             WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {ACCOUNTS})
             INSERT INTO account SELECT i, 100 FROM i;
             WITH RECURSIVE i(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM i WHERE i < {})
             INSERT INTO head SELECT i, 0 FROM i;
             INSERT INTO aux.other SELECT * FROM head",
            2 * WRITERS - 1
        ))?;
    }
    db.execute_batch("COMMIT")
}

/// How many rows transaction `n` of writer `w` writes, and what is in them.
fn parts(w: i64, n: i64) -> i64 {
    1 + (n * 7 + w) % 4
}

fn pad(w: i64, n: i64, part: i64) -> String {
    format!("{w} {n} {part} {}", MARKER.repeat(1 + (n as usize * 5 + part as usize) % 17))
}

/// Every tenth transaction makes a table and drops the one made before.
fn table(w: i64, n: i64) -> Option<(String, String)> {
    (n % 10 == w % 10).then(|| (format!("x_{w}_{n}"), format!("x_{w}_{}", n - 10)))
}

/// Whether a savepoint that is rolled back may cost later commits: before 3.50 SQLite then commits
/// frames to a log without their checksums, at which a recovery ends (tests/wal_savepoints.rs).
fn loses_commits(db: &Connection) -> rusqlite::Result<bool> {
    let is_log = || db.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0));
    Ok(rusqlite::version_number() < 3_050_000 && is_log()? == "wal")
}

fn transaction(db: &Connection, random: &mut Random, w: i64, n: i64) -> rusqlite::Result<()> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    for part in 0..parts(w, n) {
        let row = params![w, n, part, pad(w, n, part)];
        db.execute("INSERT INTO log VALUES(?, ?, ?, ?)", row)?;
    }
    if random.one_in(5) && !loses_commits(db)? {
        db.execute_batch(
            "SAVEPOINT s; UPDATE log SET pad = 'never'; DELETE FROM head; ROLLBACK TO s; RELEASE s",
        )?;
    }
    db.execute("DELETE FROM log WHERE w = ? AND n <= ?", [w, n - KEPT])?;
    db.execute("UPDATE head SET n = ?2 WHERE w = ?1", [w, n])?;
    db.execute("UPDATE aux.other SET n = ?2 WHERE w = ?1", [w, n])?;
    let mut account = || random.below(ACCOUNTS as u64) as i64 + 1;
    let (from, to) = (account(), account());
    db.execute("UPDATE account SET balance = balance - 7 WHERE id = ?", [from])?;
    db.execute("UPDATE account SET balance = balance + 7 WHERE id = ?", [to])?;
    if let Some((new, last)) = table(w, n) {
        db.execute_batch(&format!(
            "CREATE TABLE {new} AS SELECT * FROM log ORDER BY pad DESC LIMIT 20;
             CREATE INDEX i{new} ON {new}(pad); DROP TABLE IF EXISTS \"{last}\""
        ))?;
    }
    db.execute_batch("COMMIT")
}

/// What a writer does besides.
fn aside(db: &Connection, random: &mut Random) -> rusqlite::Result<()> {
    match random.below(60) {
        0 => db.execute_batch("VACUUM"),
        1..4 => db.execute_batch("PRAGMA incremental_vacuum(3)"),
        4..10 => db.execute_batch(
            "BEGIN IMMEDIATE; UPDATE log SET pad = 'never' || pad; DROP TABLE account; ROLLBACK",
        ),
        10..16 => {
            let mode = random.pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
            db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
        }
        _ => Ok(()),
    }
}

/// Tries `work` again for as long as others are in the way.
fn insist<T>(what: &str, mut work: impl FnMut() -> rusqlite::Result<T>) -> T {
    loop {
        match work() {
            Ok(value) => return value,
            Err(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {}
                _ => {
                    report(&format!("error {what}: {error:?}"));
                    std::process::exit(1);
                }
            },
        }
    }
}

/// Leaves no transaction behind where `work` failed.
fn or_back(
    db: &Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let result = work(db);
    if result.is_err() && !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    result
}

fn write(site: &Site, round: &Round, w: u64) {
    let mut random = Random::new(round.seed ^ (w << 32));
    let w = w as i64;
    loop {
        let db = insist("connect", || connect(site, round));
        let read = |db: &Connection| {
            db.query_row("SELECT n FROM head WHERE w = ?", [w], |row| row.get::<_, i64>(0))
        };
        let mut n = insist("read", || read(&db));
        for _ in 0..1 + random.below(40) {
            n += 1;
            insist("transaction", || or_back(&db, |db| transaction(db, &mut random, w, n)));
            report(&format!("commit {w} {n}"));
            insist("aside", || or_back(&db, |db| aside(db, &mut random)));
        }
    }
}

/// The task of a process: to write until it is killed.
#[test]
fn writes_until_it_is_killed() {
    let Ok(task) = std::env::var(TASK) else { return };
    let parts: Vec<&str> = task.split('|').collect();
    let [dir, seed, process, plain, modes] = parts[..] else { panic!("{task}") };
    let modes: Vec<&'static str> = MODES.iter().copied().filter(|m| modes.contains(m)).collect();
    let round = Round::new(seed.parse().unwrap(), &modes);
    let site = Site::new(Path::new(dir), plain == "true");
    {
        let db = insist("connect", || connect(&site, &round));
        insist("create", || or_back(&db, create));
    }
    report("ready");
    let first = process.parse::<u64>().unwrap() * WRITERS;
    std::thread::scope(|scope| {
        for w in first..first + round.writers {
            let (site, round) = (&site, &round);
            scope.spawn(move || write(site, round, w));
        }
    });
}

/// What the parent knows of one pair of databases.
#[derive(Default)]
struct Known {
    ready: bool,
    commits: BTreeMap<i64, i64>,
}

impl Known {
    fn hear(&mut self, lines: &[String]) -> Result<(), String> {
        for line in lines {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["ready"] => self.ready = true,
                ["commit", w, n] => {
                    let n = n.parse().unwrap();
                    let last = self.commits.insert(w.parse().unwrap(), n).unwrap_or(0);
                    if n != last + 1 {
                        return Err(format!("writer {w} went on from {last} with {n}"));
                    }
                }
                _ => return Err(line.clone()),
            }
        }
        Ok(())
    }

    /// Opens what the killed left, and compares. Answers what is now known.
    fn check(&mut self, site: &Site, round: &Round) -> rusqlite::Result<Result<(), String>> {
        let db = site.open()?;
        let count = one(&db, "SELECT count(*) FROM main.sqlite_schema");
        if count == Value::Integer(0) {
            let clean = !self.ready && sound(site, &db, true);
            return Ok(clean.then_some(()).ok_or_else(|| "the tables are gone".to_owned()));
        }
        self.ready = true;
        for w in 0..2 * WRITERS as i64 {
            let reported = *self.commits.entry(w).or_default();
            let head = "SELECT n FROM head WHERE w = ?";
            let n: i64 = db.query_row(head, [w], |row| row.get(0))?;
            if n != reported && n != reported + 1 {
                return Ok(Err(format!("writer {w} reported {reported}, found {n}")));
            }
            let other = "SELECT n FROM aux.other WHERE w = ?";
            let other: i64 = db.query_row(other, [w], |row| row.get(0))?;
            if other != n && (round.both_at_once() || (other - n).abs() > 1) {
                return Ok(Err(format!("writer {w}: {n} in one database, {other} in the other")));
            }
            if let Err(wrong) = rows_of(&db, w, n)? {
                return Ok(Err(wrong));
            }
            self.commits.insert(w, n);
        }
        db.execute_batch("UPDATE aux.other SET n = (SELECT n FROM head WHERE w = other.w)")?;
        let sum: i64 = db.query_row("SELECT sum(balance) FROM account", [], |row| row.get(0))?;
        if sum != 100 * ACCOUNTS {
            return Ok(Err(format!("the accounts hold {sum}")));
        }
        Ok(sound(site, &db, false).then_some(()).ok_or_else(|| "unsound".to_owned()))
    }
}

/// Whether the rows and tables of writer `w` are those of its transactions up to `n`.
fn rows_of(db: &Connection, w: i64, n: i64) -> rusqlite::Result<Result<(), String>> {
    let mut query = db.prepare("SELECT n, part, pad FROM log WHERE w = ? ORDER BY n, part")?;
    let found: Vec<(i64, i64, String)> = query
        .query_map([w], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let kept = (n - KEPT + 1).max(1)..=n;
    let row = |n| (0..parts(w, n)).map(move |part| (n, part, pad(w, n, part)));
    if !found.iter().cloned().eq(kept.clone().flat_map(row)) {
        return Ok(Err(format!("writer {w}: other rows than those of {kept:?}")));
    }
    let tables = format!("SELECT name FROM sqlite_schema WHERE name GLOB 'x_{w}_*'");
    let mut query = db.prepare(&tables)?;
    let found: Vec<String> =
        query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let last = (1..=n).rev().find_map(|n| table(w, n)).map(|(new, _)| new);
    if found != last.clone().into_iter().collect::<Vec<_>>() {
        return Ok(Err(format!("writer {w}: tables {found:?}, not {last:?}")));
    }
    Ok(Ok(()))
}

/// A killed creation may leave one copy of the envelope, or none.
fn sound(site: &Site, db: &Connection, created: bool) -> bool {
    ["main", "aux"].iter().all(|schema| {
        let checked = one(db, &format!("PRAGMA {schema}.integrity_check"));
        let clean = || match db.tde_verify(schema, |_, _| ()) {
            Ok(found) => found.is_clean() || created && found.bad_pages.is_empty(),
            Err(sqlite_tde::Error::NotEncrypted) => created,
            Err(_) => false,
        };
        checked == Value::Text("ok".into()) && (site.plain || clean())
    })
}

/// One round: processes are started and killed. Answers what they said.
fn kill(site: &Site, round: &Round, modes: &[&str]) -> Result<Vec<String>, String> {
    let mut random = Random::new(!round.seed);
    let (dir, modes) = (site.dir.display(), modes.join(","));
    let start = |process: u64| {
        let task = format!("{dir}|{}|{process}|{}|{modes}", round.seed, site.plain);
        Process::start("writes_until_it_is_killed", TASK, &task)
    };
    let mut wait = |process: &mut Process| {
        let micros = Duration::from_micros(random.below(20_000));
        match random.below(4) {
            // While it starts, recovers, creates.
            0 => std::thread::sleep(micros * 4),
            _ => {
                process.wait_for("commit", 1 + random.below(60), Duration::from_secs(1));
                std::thread::sleep(micros);
            }
        }
    };
    let mut first = start(0);
    if round.processes == 1 {
        wait(&mut first);
        return Ok(first.kill());
    }
    first.wait_for("ready", 1, TOO_LONG);
    let mut second = start(1);
    wait(&mut first);
    let mut lines = first.kill();
    // The other goes on over what the first left.
    let goes_on = second.wait_for("commit", 3, TOO_LONG);
    wait(&mut second);
    lines.extend(second.kill());
    if goes_on { Ok(lines) } else { Err(format!("the other process stopped too: {lines:?}")) }
}

fn survives(plain: bool, rounds: u64, modes: &[&'static str]) {
    let home = tempfile::tempdir().unwrap();
    let (mut commits, mut hot, mut looked, mut known) = (0, 0, 0, Known::default());
    for seed in 0..rounds {
        let round = Round::new(seed, modes);
        let dir = home.path().join((seed / GENERATION).to_string());
        if seed % GENERATION == 0 {
            std::fs::create_dir(&dir).unwrap();
            known = Known::default();
        }
        let site = Site::new(&dir, plain);
        let what = format!(
            "seed {seed}, plain {plain}, {}, synchronous {}, {} processes of {} writers",
            round.mode, round.synchronous, round.processes, round.writers
        );
        // In exclusive mode a reader that comes first is waited for.
        let stranger = (!plain && !round.exclusive && seed % 2 == 0)
            .then(|| Stranger::start([dir.join("main.db"), dir.join("aux.db")], seed));
        let lines = kill(&site, &round, modes).unwrap_or_else(|error| panic!("{what}: {error}"));
        if let Some(stranger) = stranger {
            looked += stranger.end().unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        known.hear(&lines).unwrap_or_else(|error| panic!("{what}: {error}"));
        commits += lines.iter().filter(|line| line.starts_with("commit")).count();
        let left = |name| dir.join(name).metadata().is_ok_and(|file| file.len() > 512);
        hot += u32::from(left("main.db-journal") || left("main.db-wal") || left("main.db-tdewal"));
        if !plain {
            let shown = found_in_files(&dir, MARKER.as_bytes());
            assert!(shown.is_none(), "{what}: {shown:?} shows the marker");
        }
        match known.check(&site, &round) {
            Ok(Ok(())) => {}
            Ok(Err(wrong)) => panic!("{what}: {wrong}; {:?}", home.keep()),
            Err(error) => panic!("{what}: {error:?}; {:?}", home.keep()),
        }
    }
    eprintln!(
        "plain {plain}: {rounds} rounds survived, {commits} commits, {hot} logs left behind, \
         {looked} looks of strangers"
    );
    assert!(plain || looked > rounds, "{looked} looks");
    assert!(commits > rounds as usize && hot > 0, "{commits} commits, {hot} logs left behind");
}

#[test]
fn a_kill_loses_nothing_and_leaves_nothing_in_part() {
    survives(false, if full() { 500 } else { 30 }, MODES);
}

/// The same of SQLite alone: the test asks for no more than it gives. Before 3.51.3 it loses
/// commits to a log that is begun anew while somebody checkpoints it (tests/wal_reset.rs).
#[test]
fn nor_on_plain_sqlite() {
    let modes = if rusqlite::version_number() < 3_051_003 { &MODES[..3] } else { MODES };
    survives(true, if full() { 100 } else { 10 }, modes);
}
