//! Transactions that outgrow the cache and are partly taken back, in WAL mode, beside the same work
//! on plain SQLite of the same version.
//!
//! SQLite overwrites the frames that a transaction has in the log already, and chains the checksums
//! of its frames anew when it commits. Before 3.50 it forgets to where it has to go back for that
//! once `ROLLBACK TO` took back the first frame that it had overwritten: it commits frames without
//! salts and without checksums. It reads and checkpoints them by the wal-index, and loses them only
//! in a crash. `scripts/on-sqlite.sh` runs this over such a version.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::Value;
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::process;
use sqlite_tde_testkit::random::Random;
use sqlite_tde_testkit::{Home, reserve};

type Answer = Result<Vec<String>, String>;

/// All rows that the statements of `sql` give, or the error.
fn answer(db: &Connection, sql: &str) -> Answer {
    let mut out = Vec::new();
    let mut batch = rusqlite::Batch::new(db, sql);
    let text = |error: rusqlite::Error| error.to_string();
    while let Some(mut statement) = batch.next().map_err(text)? {
        let columns = statement.column_count();
        let mut rows = statement.query([]).map_err(text)?;
        while let Some(row) = rows.next().map_err(text)? {
            let values: Result<Vec<Value>, _> = (0..columns).map(|i| row.get(i)).collect();
            out.push(format!("{:?}", values.map_err(text)?));
        }
    }
    Ok(out)
}

const DUMP: &str = "SELECT * FROM t ORDER BY a;
    SELECT a FROM t INDEXED BY i ORDER BY substr(b, 1, 9), a;
    SELECT name, sql FROM sqlite_schema; PRAGMA page_count; PRAGMA integrity_check";

/// Of a long answer, what tells it from another.
fn brief(answer: &Answer) -> String {
    match answer {
        Err(error) => format!("error: {error}"),
        Ok(rows) => {
            let start = |row: &String| row.chars().take(60).collect::<String>();
            format!("{} rows: {:?}", rows.len(), rows.iter().map(start).collect::<Vec<_>>())
        }
    }
}

#[track_caller]
fn assert_alike(what: &str, [ours, plain]: [Answer; 2]) -> Answer {
    let first =
        ours.as_ref().ok().zip(plain.as_ref().ok()).and_then(|(ours, plain)| {
            ours.iter().zip(plain).position(|(ours, plain)| ours != plain)
        });
    assert!(
        ours == plain,
        "{what}: row {first:?}\n ours  {}\n plain {}",
        brief(&ours),
        brief(&plain)
    );
    ours
}

/// The files of a database that have something in them, but for the wal-index.
fn files(path: &Path) -> Vec<(PathBuf, &'static str)> {
    let name = |ending: &str| PathBuf::from(format!("{}{ending}", path.display()));
    let endings = ["", "-wal", "-tdewal"];
    endings
        .map(|ending| (name(ending), ending))
        .into_iter()
        .filter(|(path, _)| path.exists())
        .collect()
}

/// The same database twice, encrypted and plain, page for page alike.
struct Pair {
    home: Home,
    paths: [PathBuf; 2],
    setup: String,
    exclusive: bool,
    /// The first connection to each; none while they are closed.
    first: Option<[Connection; 2]>,
    /// Another connection, unless the first one has the database for itself.
    second: Option<[Connection; 2]>,
    copies: usize,
}

impl Pair {
    /// `setup` is run in each connection as soon as it is open.
    fn new(home: Home, page_size: u32, setup: &str, exclusive: bool, create: &str) -> Self {
        let paths = [home.path("ours.db"), home.path("plain.db")];
        let mut pair = Self {
            home,
            paths,
            setup: setup.into(),
            exclusive,
            first: None,
            second: None,
            copies: 0,
        };
        let dbs = pair.connect(&pair.paths);
        reserve(&dbs[1], c"main");
        for db in &dbs {
            answer(db, &format!("PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; {create}"))
                .unwrap_or_else(|error| panic!("{create}: {error}"));
        }
        drop(dbs);
        pair.open();
        pair
    }

    fn connect(&self, [ours, plain]: &[PathBuf; 2]) -> [Connection; 2] {
        let dbs = [self.home.open(ours), sqlite_tde_testkit::plain(plain)];
        for db in &dbs {
            answer(db, &self.setup).unwrap_or_else(|error| panic!("{}: {error}", self.setup));
        }
        dbs
    }

    fn open(&mut self) {
        let first = self.connect(&self.paths);
        if self.exclusive {
            // Before the first access, so that the wal-index is in the heap.
            for db in &first {
                answer(db, "PRAGMA locking_mode=EXCLUSIVE").unwrap();
            }
        } else {
            self.second = Some(self.connect(&self.paths));
        }
        self.first = Some(first);
    }

    fn close(&mut self) {
        (self.first, self.second) = (None, None);
    }

    fn first(&self) -> &[Connection; 2] {
        self.first.as_ref().expect("it is open")
    }

    /// Runs `sql` in the first connections; both answer alike.
    #[track_caller]
    fn run(&self, what: &str, sql: &str) -> Answer {
        assert_alike(&format!("{what}: {sql}"), self.first().each_ref().map(|db| answer(db, sql)))
    }

    /// Runs `sql` in the second connections, where there are some.
    #[track_caller]
    fn run_in_second(&self, what: &str, sql: &str) {
        if let Some(second) = &self.second {
            let what = format!("{what}, second connection: {sql}");
            _ = assert_alike(&what, second.each_ref().map(|db| answer(db, sql)));
        }
    }

    /// Every connection shows what the plain one shows, and nothing fails authentication.
    #[track_caller]
    fn check(&self, what: &str) {
        let seen = self.run(what, DUMP);
        assert!(seen.is_ok(), "{what}: {seen:?}");
        self.run_in_second(what, DUMP);
        let ours = &self.first()[0];
        if ours.is_autocommit() {
            let found = ours.tde_verify("main", |_, _| ()).unwrap();
            assert!(found.is_clean(), "{what}: {found:?}");
        }
    }

    /// What a process finds after those that have the database open were killed.
    #[track_caller]
    fn check_killed(&mut self, what: &str) {
        self.copies += 1;
        let copies = ["ours", "plain"]
            .map(|name| self.home.path(&format!("{name}-killed-{}.db", self.copies)));
        for (from, to) in self.paths.iter().zip(&copies) {
            for (path, ending) in files(from) {
                fs::copy(&path, format!("{}{ending}", to.display())).unwrap();
            }
        }
        let dbs = self.connect(&copies);
        let what = format!("{what}, after a kill");
        let both = |sql: &str| dbs.each_ref().map(|db| answer(db, sql));
        _ = assert_alike(&what, both(DUMP));
        let found = dbs[0].tde_verify("main", |_, _| ()).unwrap();
        assert!(found.is_clean(), "{what}: {found:?}");
        for sql in ["INSERT INTO t(b) VALUES('later')", "PRAGMA wal_checkpoint(TRUNCATE)", DUMP] {
            _ = assert_alike(&format!("{what}: {sql}"), both(sql));
        }
        drop(dbs);
        for (path, _) in copies.iter().flat_map(|path| files(path)) {
            fs::remove_file(path).unwrap();
        }
    }
}

/// `rows` rows of 3000 bytes.
fn create(rows: u32) -> String {
    format!(
        "PRAGMA auto_vacuum=INCREMENTAL;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); CREATE INDEX i ON t(substr(b, 1, 9));
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO t SELECT i, printf('%.3000c', 'a') FROM n;"
    )
}

/// Gives each row of `rows` 3000 bytes that tell who wrote it.
fn set(word: &str, rows: &str) -> String {
    format!("UPDATE t SET b = printf('{word} %d %.2980c', a, '{word}') WHERE {rows};")
}

/// What is done within one transaction or several, and what it does to plain SQLite before 3.50.
/// `word: rows;` stands for an update of those rows.
const SHAPES: &[(&str, &str)] = &[
    (
        "the first overwritten frame is one of those that are committed",
        "BEGIN IMMEDIATE; SAVEPOINT s; b: 1; c: a >= 3; ROLLBACK TO s; d: a > 55; COMMIT",
    ),
    (
        "it is far behind them",
        "BEGIN; SAVEPOINT s; b: 1; c: a >= 40; ROLLBACK TO s; d: a = 60; COMMIT",
    ),
    (
        "it is the one after the last",
        "BEGIN; b: a < 20; SAVEPOINT s; c: a > 20; d: a > 30; ROLLBACK TO s; COMMIT",
    ),
    ("nothing follows", "BEGIN; SAVEPOINT s; b: 1; c: 1; ROLLBACK TO s; COMMIT"),
    (
        "more is written than was taken back",
        "BEGIN; SAVEPOINT s; b: a < 30; c: a < 30; ROLLBACK TO s; d: 1; COMMIT",
    ),
    (
        "frames are overwritten before and after",
        "BEGIN; b: a < 40; c: a BETWEEN 10 AND 20; SAVEPOINT s; d: 1; e: a > 30; ROLLBACK TO s;
         f: a > 20; g: a > 40; COMMIT",
    ),
    (
        "savepoints in savepoints",
        "BEGIN; SAVEPOINT s; b: 1; SAVEPOINT u; c: a > 10; SAVEPOINT v; d: a > 5; ROLLBACK TO v;
         e: a < 30; ROLLBACK TO u; f: a > 50; RELEASE u; ROLLBACK TO s; g: a BETWEEN 20 AND 25;
         COMMIT",
    ),
    (
        "taken back twice",
        "BEGIN; SAVEPOINT s; b: 1; c: 1; ROLLBACK TO s; d: a < 50; e: a > 9; ROLLBACK TO s;
         f: a > 50; COMMIT",
    ),
    ("nothing is taken back", "BEGIN; SAVEPOINT s; b: 1; c: a > 3; RELEASE s; d: a > 55; COMMIT"),
    (
        "all of it is taken back",
        "BEGIN; SAVEPOINT s; b: 1; c: a >= 3; ROLLBACK TO s; d: a > 55; ROLLBACK",
    ),
    (
        "a statement that fails",
        "BEGIN; b: a < 50; c: a > 5; INSERT OR ABORT INTO t SELECT a - 30, b FROM t WHERE a > 20;
         d: a > 50; COMMIT",
    ),
    (
        "others follow it",
        "BEGIN; SAVEPOINT s; b: 1; c: a >= 3; ROLLBACK TO s; d: a > 55; COMMIT;
         BEGIN; e: a < 9; COMMIT;
         BEGIN; SAVEPOINT s; b: 1; c: a >= 3; ROLLBACK TO s; f: a BETWEEN 20 AND 25; COMMIT;
         g: a = 60",
    ),
    (
        "the database shrinks",
        "BEGIN; SAVEPOINT s; b: 1; c: a >= 3; ROLLBACK TO s; DELETE FROM t WHERE a > 10;
         PRAGMA incremental_vacuum; COMMIT",
    ),
    (
        "and grows again",
        "BEGIN; SAVEPOINT s; b: 1; c: a >= 3; ROLLBACK TO s; DELETE FROM t WHERE a > 10;
         PRAGMA incremental_vacuum; COMMIT; BEGIN; SAVEPOINT s; b: 1; c: 1; ROLLBACK TO s;
         INSERT INTO t(b) SELECT b FROM t; INSERT INTO t(b) SELECT b FROM t; COMMIT",
    ),
];

/// `word: rows` as an update.
fn statement(short: &str) -> String {
    match short.trim().split_once(": ") {
        Some((word, rows)) => set(word, rows),
        None => format!("{};", short.trim()),
    }
}

fn homes() -> [(&'static str, Home); 2] {
    [("gathered", Home::new()), ("each write at once", Home::ungathered())]
}

#[test]
fn what_a_transaction_kept_after_rollback_to_is_read_checkpointed_and_kept() {
    const THEN: [&str; 7] = [
        "INSERT INTO t(b) VALUES('one more')",
        "PRAGMA wal_checkpoint(PASSIVE)",
        "UPDATE t SET b = 'short' WHERE a = 7",
        "PRAGMA wal_checkpoint(RESTART)",
        "DELETE FROM t WHERE a < 3",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "UPDATE t SET b = 'last' WHERE a = 8",
    ];
    for (shape, steps) in SHAPES {
        for exclusive in [false, true] {
            // In a log that has frames already, and as the first transaction in one.
            for before in ["SELECT 1", "PRAGMA wal_checkpoint(RESTART)"] {
                for (tuning, home) in homes() {
                    let what = format!("{shape}, exclusive {exclusive}, {before}, {tuning}");
                    let setup = "PRAGMA cache_size=10; PRAGMA wal_autocheckpoint=0;
                        PRAGMA synchronous=NORMAL";
                    let mut pair = Pair::new(home, 4096, setup, exclusive, &create(60));
                    _ = pair.run(&what, &set("first", "a % 2"));
                    _ = pair.run(&what, before);
                    for step in steps.split(';').map(statement) {
                        _ = pair.run(&what, &step);
                    }
                    pair.check(&what);
                    pair.check_killed(&what);
                    for then in THEN {
                        let what = format!("{what}, then {then}");
                        _ = pair.run(&what, then);
                        pair.check(&what);
                        pair.check_killed(&what);
                    }
                    pair.close();
                    pair.open();
                    pair.check(&format!("{what}, opened again"));
                }
            }
        }
    }
}

/// The default cache, and pages of all sizes.
#[test]
fn so_it_is_with_large_caches_and_pages() {
    for (page_size, cache, rows) in [(1024, "200", 400), (4096, "-2000", 1500), (65536, "10", 400)]
    {
        let what = format!("pages of {page_size}, cache {cache}");
        let setup = format!("PRAGMA cache_size={cache}; PRAGMA wal_autocheckpoint=0");
        let mut pair = Pair::new(Home::new(), page_size, &setup, false, &create(rows));
        for step in SHAPES[0].1.replace("55", &format!("{}", rows - 5)).split(';').map(statement) {
            _ = pair.run(&what, &step);
        }
        pair.check(&what);
        pair.check_killed(&what);
        _ = pair.run(&what, "PRAGMA wal_checkpoint(TRUNCATE)");
        pair.check(&what);
    }
}

/// What a transaction may do, with the savepoints that it has.
fn any_step(random: &mut Random, savepoints: &mut Vec<u64>, step: usize) -> String {
    let from = random.below(60);
    let word = format!("w{step}");
    match random.below(16) {
        0..=5 => set(&word, &format!("a BETWEEN {from} AND {}", from + random.below(60))),
        6 => format!("DELETE FROM t WHERE a BETWEEN {from} AND {}", from + random.below(4)),
        7 => format!("INSERT INTO t(b) VALUES(printf('{word} %.2000c', 'n'))"),
        8 => "PRAGMA incremental_vacuum(5)".into(),
        9 | 10 => {
            savepoints.push(step as u64);
            format!("SAVEPOINT s{step}")
        }
        11 if !savepoints.is_empty() => {
            let at = random.below(savepoints.len() as u64) as usize;
            let name = savepoints[at];
            savepoints.truncate(at);
            format!("RELEASE s{name}")
        }
        _ if !savepoints.is_empty() => {
            let at = random.below(savepoints.len() as u64) as usize;
            savepoints.truncate(at + 1);
            format!("ROLLBACK TO s{}", savepoints[at])
        }
        _ => set(&word, "1"),
    }
}

/// What is done between two transactions.
fn between(random: &mut Random, pair: &mut Pair, what: &str) {
    match random.below(8) {
        0 => _ = pair.run(what, "PRAGMA wal_checkpoint(PASSIVE)"),
        1 => _ = pair.run(what, "PRAGMA wal_checkpoint(RESTART)"),
        2 => _ = pair.run(what, "PRAGMA wal_checkpoint(TRUNCATE)"),
        3 => {
            pair.close();
            pair.open();
        }
        4 => pair.run_in_second(what, &set("second", "a % 3 = 0")),
        5 => {
            pair.run_in_second(what, "BEGIN; SELECT count(*) FROM t");
            _ = pair.run(what, "PRAGMA wal_checkpoint(PASSIVE); INSERT INTO t(b) VALUES('x')");
            pair.run_in_second(what, "SELECT sum(length(b)) FROM t; COMMIT");
        }
        _ => {}
    }
}

#[test]
fn random_transactions_with_savepoints_are_those_of_plain_sqlite() {
    let rounds = if process::full() { 400 } else { 24 };
    for seed in 0..rounds {
        let mut random = Random::mixed(seed, &[]);
        let exclusive = random.below(4) == 0;
        let home = if random.below(2) == 0 { Home::new() } else { Home::ungathered() };
        let page_size = [1024, 4096][random.below(2) as usize];
        let setup = format!(
            "PRAGMA cache_size={}; PRAGMA wal_autocheckpoint={}; PRAGMA synchronous=NORMAL",
            5 + random.below(10),
            [0, 100][random.below(2) as usize],
        );
        let mut pair = Pair::new(home, page_size, &setup, exclusive, &create(60));
        for transaction in 0..10 {
            let what = format!("seed {seed}, exclusive {exclusive}, transaction {transaction}");
            let mut savepoints = Vec::new();
            _ = pair.run(&what, "BEGIN");
            for step in 0..3 + random.below(12) as usize {
                let sql = any_step(&mut random, &mut savepoints, step);
                _ = pair.run(&format!("{what}, step {step}"), &sql);
            }
            if random.below(4) == 0 {
                pair.check(&format!("{what}, before its end"));
            }
            let end = if random.below(5) == 0 { "ROLLBACK" } else { "COMMIT" };
            _ = pair.run(&what, end);
            pair.check(&what);
            if random.below(3) == 0 {
                pair.check_killed(&what);
            }
            between(&mut random, &mut pair, &what);
        }
        pair.check(&format!("seed {seed}, at the end"));
    }
}
