//! After a rollback a database holds what it held at BEGIN, wherever that is so with plain SQLite
//! over the same disk: one that is full, that fails once, or for good, in all journal and locking
//! modes.
//!
//! SQLite's rollback begins with a look at the file's size and a truncation, and ignores the errors
//! of both. With `journal_mode=MEMORY` there is no second chance.
//!
//! `SQLITE_TDE_FULL=1` runs more histories, `SQLITE_TDE_SEED=N` the one of a failure.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, ffi};
use sqlite_tde_testkit::process;
use sqlite_tde_testkit::vfs::{FaultyVfs, Kind};
use sqlite_tde_testkit::{Home, try_rows};

const MODES: [&str; 5] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];
const FAULTS: [Kind; 6] =
    [Kind::NoRoom, Kind::FullOnce, Kind::FullFrom, Kind::Once, Kind::From, Kind::ShortWrite];

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// One transaction and what goes wrong in it.
#[derive(Debug)]
struct History {
    mode: &'static str,
    settings: String,
    gather: &'static str,
    steps: Vec<String>,
    file: &'static str,
    fault: Kind,
    at: usize,
}

impl History {
    fn new(seed: u64) -> Self {
        let random = &mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let settings = format!(
            "PRAGMA locking_mode={}; PRAGMA synchronous={}; PRAGMA cache_size={};
             PRAGMA temp_store={}; PRAGMA cache_spill={};",
            random.of(&["NORMAL", "EXCLUSIVE"]),
            random.of(&["OFF", "NORMAL", "FULL"]),
            random.of(&[2, 5, 5, 20]),
            random.of(&["FILE", "MEMORY"]),
            random.of(&["ON", "ON", "ON", "OFF"]),
        );
        let mut steps = Vec::new();
        let mut open = 0;
        for number in 0..2 + random.below(8) {
            let (from, count) = (random.below(120), 1 + random.below(120));
            let step = match random.below(10) {
                0 | 1 => format!("UPDATE t SET b = b || '{number}' WHERE a >= {from} LIMIT {count}")
                    .replace(&format!(" LIMIT {count}"), &format!(" AND a < {}", from + count)),
                2 | 3 => format!(
                    "WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {count})
                     INSERT INTO t(b, c) SELECT i, printf('%0{}d', i) FROM i",
                    1 + random.below(3000)
                ),
                4 => format!("DELETE FROM t WHERE a BETWEEN {from} AND {}", from + count),
                5 => "INSERT INTO t(b, c) SELECT c, b FROM t".into(),
                6 => format!("CREATE TABLE u{number} AS SELECT * FROM t; DROP TABLE u{number}"),
                7 => format!("CREATE INDEX i{number} ON t(c)"),
                8 => {
                    open += 1;
                    format!("SAVEPOINT s{open}")
                }
                _ if open > 0 => format!("ROLLBACK TO s{}", 1 + random.below(open)),
                _ => "UPDATE t SET c = c || 'x'".into(),
            };
            steps.push(step);
        }
        let mut history = Self {
            mode: random.of(&[MODES, ["MEMORY"; 5]].concat()),
            settings,
            gather: random.of(&["on", "off"]),
            steps,
            file: random.of(&["database", "database", "database", "journal", "statement journal"]),
            fault: random.of(&FAULTS),
            at: random.of(&[0, 0, 0, 1, 2, 5, 10, 20]),
        };
        if history.is_on_disk() && random.below(4) == 0 {
            // The journal does not reach the disk, and what the rollback writes is torn, too.
            (history.file, history.fault) = ("database or journal", Kind::ShortWrites);
        }
        history
    }

    /// Whether its journal is a file.
    fn is_on_disk(&self) -> bool {
        ["DELETE", "TRUNCATE", "PERSIST"].contains(&self.mode)
    }
}

/// The rows, and the schema; or how the database fails.
type State = Result<Vec<String>, String>;

fn state(db: &Connection) -> State {
    let mut all = Vec::new();
    for sql in ["SELECT name, sql FROM sqlite_schema ORDER BY name", "SELECT * FROM t ORDER BY a"] {
        all.extend(try_rows(db, sql).map_err(|error| error.to_string())?);
    }
    let sound: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .map_err(|error| error.to_string())?;
    if sound == "ok" { Ok(all) } else { Err(sound) }
}

struct Site {
    plain: bool,
    below: FaultyVfs,
    home: Home,
}

impl Site {
    fn new(plain: bool) -> Self {
        let below = FaultyVfs::new();
        let site = Self { plain, below, home: Home::with(|options| options.base(below.name)) };
        let db = site.connect(&site.home.path("template"), "on");
        // Pages of the same content on both sides.
        let mut bytes = sqlite_tde::RESERVE as std::os::raw::c_int;
        // SAFETY: the connection is open, and this control takes a pointer to an int.
        let code = unsafe {
            let op = ffi::SQLITE_FCNTL_RESERVE_BYTES;
            ffi::sqlite3_file_control(db.handle(), c"main".as_ptr(), op, (&raw mut bytes).cast())
        };
        assert_eq!(code, ffi::SQLITE_OK);
        db.execute_batch(
            "PRAGMA page_size=1024; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c TEXT);
                 WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 100)
                 INSERT INTO t SELECT i, 'row ' || i, printf('%0300d', i) FROM i;
                 CREATE INDEX tb ON t(b)",
        )
        .unwrap();
        site
    }

    fn connect(&self, path: &Path, gather: &str) -> Connection {
        let vfs = if self.plain { self.below.name } else { &self.home.vfs };
        let uri = format!("file:{}?vfs={vfs}&tde_gather_writes={gather}", path.display());
        Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI).unwrap()
    }

    /// What the same connection and the next one see, whether both are as at BEGIN, and whether
    /// anything went wrong at all.
    fn run(&self, history: &History) -> (State, State, bool, usize) {
        let path = self.home.path("history.db");
        for end in ["", "-journal"] {
            let mut name = path.clone().into_os_string();
            name.push(end);
            let _ = std::fs::remove_file(name);
        }
        std::fs::copy(self.home.path("template"), &path).unwrap();
        let db = self.connect(&path, history.gather);
        db.execute_batch(&history.settings).unwrap();
        db.execute_batch(&format!("PRAGMA journal_mode={}", history.mode)).unwrap();
        let before = state(&db);
        db.execute_batch("BEGIN").unwrap();
        self.below.fail_on(history.file, history.at, history.fault);
        for step in &history.steps {
            if db.execute_batch(step).is_err() {
                break;
            }
        }
        if !db.is_autocommit() {
            let _ = db.execute_batch("ROLLBACK");
        }
        let hits = self.below.clear();
        let same = state(&db);
        drop(db);
        let next = state(&self.connect(&path, "on"));
        let restored = same == before && next == before;
        (same, next, restored, hits)
    }
}

#[test]
fn a_rollback_restores_what_plain_sqlite_restores() {
    let full = process::full();
    let only = std::env::var("SQLITE_TDE_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = only.map_or(0..if full { 20_000 } else { 1_500 }, |seed| seed..seed + 1);
    let (plain, tde) = (Site::new(true), Site::new(false));
    let (mut runs, mut met, mut restored, mut failures) = (0, 0, [0, 0], Vec::new());
    for seed in seeds {
        let history = History::new(seed);
        let (_, _, by_plain, hits) = plain.run(&history);
        let (same, next, by_tde, _) = tde.run(&history);
        runs += 1;
        met += usize::from(hits > 0);
        restored[0] += usize::from(by_plain);
        restored[1] += usize::from(by_tde);
        // A journal on the disk is played back once the disk is well, whatever came before.
        if !by_tde && (by_plain || history.is_on_disk()) {
            let short = |state: &State| match state {
                Ok(rows) => format!("{} rows", rows.len()),
                Err(error) => error.clone(),
            };
            failures.push(format!(
                "seed {seed}: {history:?}: same connection {}, next {}",
                short(&same),
                short(&next)
            ));
        }
    }
    eprintln!(
        "{runs} histories, {met} met a fault; restored: plain {}, tde {}",
        restored[0], restored[1]
    );
    assert!(only.is_some() || met * 4 > runs, "{met} of {runs} met a fault");
    assert!(
        failures.is_empty(),
        "{} of {runs} did not restore, such as\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n")
    );
}
