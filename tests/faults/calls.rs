//! Every call of the base VFS may fail. The error must reach the SQLite call that caused it, what
//! was committed must be there afterwards, and what was not must be gone.
//!
//! `SQLITE_TDE_FULL=1` fails every call; otherwise some of each run. `SQLITE_TDE_PLATFORM` puts a
//! platform of that name between the calls that fail and `tde`.

use std::collections::BTreeSet;
use std::os::raw::c_int;
use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, OpenFlags};
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::platform::over_base;
use sqlite_tde_testkit::process;
use sqlite_tde_testkit::vfs::{FaultyVfs, Kind, Method, kind_of_file};
use sqlite_tde_testkit::{Home, copy_dir, try_rows};

const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];
/// Where the workload itself is about logs.
const LOG: [&str; 1] = ["WAL"];
const POINTS: usize = 12;
const WRITES: usize = 6;

/// Tables `t` and, with a counter that each transaction moves on, `n`.
const TABLES: &str = "
    PRAGMA page_size=1024;
    CREATE TABLE n(k INTEGER); INSERT INTO n VALUES(0);
    CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c TEXT);
    WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 100)
    INSERT INTO t SELECT i, 'row ' || i, printf('%0200d', i * 7919 % 101) FROM i;
    CREATE INDEX tb ON t(b);";

struct Workload {
    name: &'static str,
    /// What the database holds before; nothing for one that is created.
    setup: &'static str,
    settings: &'static str,
    attached: bool,
    /// One transaction each.
    steps: &'static [&'static str],
}

const CREATE: Workload = Workload {
    name: "create and insert",
    setup: "",
    settings: "PRAGMA page_size=1024",
    attached: false,
    steps: &[
        "CREATE TABLE n(k INTEGER)",
        "INSERT INTO n VALUES(1)",
        "BEGIN; UPDATE n SET k = 2; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
         WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 40)
         INSERT INTO t SELECT i, printf('%0300d', i) FROM i; COMMIT",
    ],
};

const UPDATE: Workload = Workload {
    name: "update, spill and roll back",
    setup: TABLES,
    settings: "PRAGMA cache_size=5",
    attached: false,
    steps: &[
        "BEGIN; UPDATE n SET k = k + 1; UPDATE t SET b = b || '!'; COMMIT",
        "BEGIN; UPDATE n SET k = k + 1; DELETE FROM t WHERE a % 2; ROLLBACK",
        "BEGIN; UPDATE n SET k = k + 1; INSERT INTO t(b, c) SELECT b, c FROM t; COMMIT",
        "BEGIN; UPDATE n SET k = k + 1; DELETE FROM t WHERE a > 20; COMMIT",
    ],
};

/// Nothing is synced: the order of the calls alone is what a process that dies leaves.
const UNSYNCED: Workload = Workload {
    name: "without syncs",
    settings: "PRAGMA cache_size=5; PRAGMA synchronous=OFF",
    ..UPDATE
};

const VACUUM: Workload = Workload {
    name: "vacuum",
    setup: TABLES,
    settings: "PRAGMA cache_size=5; PRAGMA temp_store=FILE",
    attached: false,
    steps: &[
        "BEGIN; UPDATE n SET k = k + 1; DELETE FROM t WHERE a > 50; COMMIT",
        "VACUUM",
        "UPDATE n SET k = k + 1",
    ],
};

const ATTACH: Workload = Workload {
    name: "two databases",
    setup: TABLES,
    settings: "PRAGMA cache_size=10",
    attached: true,
    steps: &[
        "BEGIN; UPDATE main.n SET k = k + 1; UPDATE aux.n SET k = k + 1;
         UPDATE aux.t SET b = 'x' || b; DELETE FROM main.t WHERE a % 3 = 0; COMMIT",
        "BEGIN; UPDATE main.n SET k = 9; UPDATE aux.n SET k = 9; ROLLBACK",
        "BEGIN; UPDATE main.n SET k = k + 1; UPDATE aux.n SET k = k + 1; COMMIT",
    ],
};

const SAVEPOINTS: Workload = Workload {
    name: "savepoints",
    setup: TABLES,
    settings: "PRAGMA cache_size=5; PRAGMA temp_store=FILE",
    attached: false,
    steps: &[
        "BEGIN; UPDATE n SET k = k + 1; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT",
        "BEGIN; UPDATE n SET k = k + 1; SAVEPOINT s; UPDATE t SET b = a; SAVEPOINT u;
         UPDATE t SET c = b; ROLLBACK TO u; RELEASE s; COMMIT",
        "BEGIN; UPDATE n SET k = k + 1;
         INSERT OR REPLACE INTO t SELECT a + 50, b, c FROM t ORDER BY c; COMMIT",
    ],
};

const INDEX: Workload = Workload {
    name: "index through a sorter on disk",
    setup: TABLES,
    settings: "PRAGMA cache_size=5; PRAGMA temp_store=FILE",
    attached: false,
    steps: &[
        "CREATE INDEX tc ON t(c, b)",
        "UPDATE n SET k = k + 1",
        "BEGIN; UPDATE n SET k = k + 1; REINDEX; COMMIT",
        "BEGIN; UPDATE n SET k = k + 1; CREATE TEMP TABLE x AS SELECT * FROM t ORDER BY c DESC;
         UPDATE t SET b = (SELECT x.b FROM temp.x WHERE x.a = 101 - t.a); COMMIT",
    ],
};

const CHECKPOINTS: Workload = Workload {
    name: "checkpoints, and a log that starts again",
    setup: TABLES,
    settings: "PRAGMA cache_size=10; PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=20000",
    attached: false,
    steps: &[
        "BEGIN; UPDATE n SET k = k + 1; UPDATE t SET b = b || '!'; COMMIT",
        "PRAGMA wal_checkpoint(PASSIVE)",
        "BEGIN; UPDATE n SET k = k + 1; UPDATE t SET b = 'restarted' || a; COMMIT",
        "PRAGMA wal_checkpoint(FULL); UPDATE n SET k = k + 1",
        "BEGIN; UPDATE n SET k = k + 1; INSERT INTO t(b, c) SELECT c, b FROM t; COMMIT",
        "PRAGMA wal_checkpoint(RESTART)",
        "BEGIN; UPDATE n SET k = k + 1; DELETE FROM t WHERE a % 2; COMMIT",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "UPDATE n SET k = k + 1",
    ],
};

const AUTOCHECKPOINT: Workload = Workload {
    name: "checkpoints after each commit",
    setup: TABLES,
    settings: "PRAGMA cache_size=5; PRAGMA wal_autocheckpoint=1",
    attached: false,
    steps: &[
        "BEGIN; UPDATE n SET k = k + 1; UPDATE t SET b = b || '!'; COMMIT",
        "BEGIN; UPDATE n SET k = k + 1; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT",
        "UPDATE n SET k = k + 1",
    ],
};

const SWITCH: Workload = Workload {
    name: "to the journal and back",
    setup: TABLES,
    settings: "PRAGMA cache_size=10",
    attached: false,
    steps: &[
        "UPDATE n SET k = k + 1",
        "PRAGMA journal_mode=DELETE",
        "BEGIN; UPDATE n SET k = k + 1; UPDATE t SET b = b || '!'; COMMIT",
        "PRAGMA journal_mode=WAL",
        "BEGIN; UPDATE n SET k = k + 1; DELETE FROM t WHERE a % 2; COMMIT",
    ],
};

const EXCLUSIVE: Workload = Workload {
    name: "a log without shared memory",
    setup: TABLES,
    settings: "PRAGMA cache_size=5; PRAGMA locking_mode=EXCLUSIVE",
    attached: false,
    steps: &[
        "BEGIN; UPDATE n SET k = k + 1; UPDATE t SET b = b || '!'; COMMIT",
        "BEGIN; UPDATE n SET k = k + 1; DELETE FROM t WHERE a % 2; ROLLBACK",
        "PRAGMA wal_checkpoint(TRUNCATE); UPDATE n SET k = k + 1",
        "UPDATE n SET k = k + 1",
    ],
};

/// What databases hold, as texts.
type State = Vec<Vec<String>>;

/// One workload in one journal mode, in files of its own.
struct Run<'a> {
    home: &'a Home,
    workload: &'a Workload,
    mode: &'a str,
    /// Plain SQLite, straight over this VFS, to see that the test asks for no more than it gives.
    plain: Option<&'a str>,
}

impl Run<'_> {
    fn connect(&self, path: &Path) -> Result<Connection, String> {
        if self.plain.is_none() {
            return self.home.try_open(path).map_err(|error| error.to_string());
        }
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(self.uri(path), flags).map_err(|error| error.to_string())
    }

    fn uri(&self, path: &Path) -> String {
        match self.plain {
            Some(vfs) => format!("file:{}?vfs={vfs}", path.display()),
            None => self.home.uri(path),
        }
    }

    fn open(&self, dir: &Path) -> Result<Connection, String> {
        let db = self.connect(&dir.join("main.db"))?;
        let attach = |db: &Connection| {
            db.busy_timeout(std::time::Duration::ZERO)?;
            db.execute_batch(self.workload.settings)?;
            if self.workload.attached {
                let uri = self.uri(&dir.join("aux.db"));
                db.execute_batch(&format!("ATTACH '{uri}' AS aux"))?;
            }
            db.execute_batch(&format!("PRAGMA journal_mode={}", self.mode))
        };
        attach(&db).map_err(|error: rusqlite::Error| error.to_string())?;
        Ok(db)
    }

    fn schemas(&self) -> &[&str] {
        if self.workload.attached { &["main", "aux"] } else { &["main"] }
    }

    /// What each database holds.
    fn state(&self, db: &Connection) -> rusqlite::Result<State> {
        let mut state = State::new();
        for schema in self.schemas() {
            let mut out = Vec::new();
            let query = format!("SELECT name, sql FROM {schema}.sqlite_schema ORDER BY name");
            let schema_rows = try_rows(db, &query)?;
            for (name, table) in [("\"n\"", "n"), ("\"t\"", "t")] {
                if schema_rows.iter().any(|row| row.contains(&format!("Text({name})"))) {
                    out.extend(try_rows(db, &format!("SELECT * FROM {schema}.{table}"))?);
                }
            }
            out.extend(schema_rows);
            state.push(out);
        }
        Ok(state)
    }

    /// After `done` transactions and perhaps an error in the next, either it happened or it did
    /// not. SQLite commits to two logs one after the other.
    fn allows(&self, states: &[State], done: usize, seen: &State) -> bool {
        let next = states.get(done + 1);
        if self.mode != "WAL" {
            return states[done] == *seen || next == Some(seen);
        }
        let same = |of: &State, at: usize| of[at] == seen[at];
        (0..seen.len()).all(|at| same(&states[done], at) || next.is_some_and(|of| same(of, at)))
    }

    /// Runs the steps up to the first error. Answers how many were done.
    fn steps(&self, db: &Connection, mut after: impl FnMut()) -> (usize, Option<rusqlite::Error>) {
        for (done, step) in self.workload.steps.iter().enumerate() {
            if let Err(error) = db.execute_batch(step) {
                return (done, Some(error));
            }
            after();
        }
        (self.workload.steps.len(), None)
    }
}

/// Whether this is how a failing disk may be reported. Anything else would blame the database, and
/// so does `SQLITE_IOERR_DATA`, the code of what fails authentication.
/// A file that is cut off may be called damaged.
fn is_io(error: &rusqlite::Error, kind: Kind) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, DiskFull, SystemIoFailure};
    let code = error.sqlite_error().map(|error| (error.code, error.extended_code));
    let damaged =
        matches!(code, Some((DatabaseCorrupt, _) | (_, rusqlite::ffi::SQLITE_IOERR_DATA)));
    match kind {
        Kind::ShortRead if damaged => true,
        _ => !damaged && matches!(code, Some((SystemIoFailure | DiskFull | CannotOpen, _))),
    }
}

/// Some calls of all, and of the writes to each kind of file; others in each mode.
fn sample(calls: &[(Method, c_int)], mode: usize) -> BTreeSet<usize> {
    let all: Vec<usize> = (0..calls.len()).collect();
    let writes = ["database", "journal", "log"].map(|kind| {
        let wanted = |at: &usize| {
            let (method, flags) = calls[*at];
            method == Method::Write && kind_of_file(flags) == kind
        };
        all.iter().copied().filter(wanted).collect::<Vec<_>>()
    });
    let mut points = BTreeSet::new();
    for (from, most) in std::iter::once((&all, POINTS)).chain(writes.iter().zip([WRITES; 3])) {
        let stride = from.len().div_ceil(most).max(1);
        points.extend(from.iter().skip(mode * stride / 4).step_by(stride));
    }
    points
}

fn survives(workload: &Workload, modes: &[&str], plain: bool) {
    let full = process::full();
    let started = Instant::now();
    let (mut points, mut hit, mut failures) = (0, 0, Vec::new());
    for (index, &mode) in modes.iter().enumerate() {
        let vfs = FaultyVfs::new();
        let home = Home::with(|options| options.base(over_base(vfs.name)));
        let run = Run { home: &home, workload, mode, plain: plain.then(|| over_base(vfs.name)) };
        let template = home.path("template");
        std::fs::create_dir(&template).unwrap();
        if !workload.setup.is_empty() {
            for (file, used) in [("main.db", true), ("aux.db", workload.attached)] {
                if used {
                    let db = run.connect(&template.join(file)).unwrap();
                    db.execute_batch(workload.setup).unwrap();
                }
            }
        }

        // Once without faults: the calls there are, and what the database holds after each step.
        let dir = home.path("good");
        copy_dir(&template, &dir);
        let mut states = {
            let db = run.open(&dir).unwrap();
            vec![run.state(&db).unwrap()]
        };
        for step in workload.steps {
            let db = run.open(&dir).unwrap();
            db.execute_batch(step).unwrap();
            states.push(run.state(&db).unwrap());
        }
        let dir = home.path("count");
        copy_dir(&template, &dir);
        vfs.clear();
        let db = run.open(&dir).unwrap();
        assert!(run.steps(&db, || ()).1.is_none());
        drop(db);
        let calls = vfs.calls();
        let points_here = if full { (0..calls.len()).collect() } else { sample(&calls, index) };
        for at in points_here {
            for &kind in calls[at].0.kinds() {
                // SQLite alone takes what is missing for zeros.
                if plain && kind == Kind::ShortRead {
                    continue;
                }
                let what = format!(
                    "{}, journal mode {mode}, call {at} of {} ({:?} of {}), {kind:?}",
                    workload.name,
                    calls.len(),
                    calls[at].0,
                    kind_of_file(calls[at].1)
                );
                points += 1;
                let dir = home.path(&format!("{at}-{kind:?}"));
                copy_dir(&template, &dir);
                // SQLite that cannot read back to a savepoint in a log keeps what it has in memory.
                let forgets = mode == "WAL" && kind_of_file(calls[at].1) == "statement journal";
                match one_fault(&run, &vfs, &dir, &states, at, kind, forgets) {
                    Ok(hits) => hit += usize::from(hits > 0),
                    Err(error) => failures.push(format!("{what}: {error}")),
                }
                std::fs::remove_dir_all(&dir).unwrap();
            }
        }
    }
    eprintln!(
        "{}: {points} faults, {hit} of them met, {:.1} s",
        workload.name,
        started.elapsed().as_secs_f64()
    );
    assert!(hit * 4 >= points * 3 || !failures.is_empty(), "faults are met: {hit} of {points}");
    assert!(
        failures.is_empty(),
        "{} of {points} faults did harm:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Answers how many calls failed, or what was wrong.
fn one_fault(
    run: &Run<'_>,
    vfs: &FaultyVfs,
    dir: &Path,
    states: &[State],
    at: usize,
    kind: Kind,
    forgets: bool,
) -> Result<usize, String> {
    let started = Instant::now();
    let mut wrong = Vec::new();
    let mut ignored = false;
    vfs.fail(at, kind);
    let (done, hits) = match run.open(dir) {
        Err(_) => (0, vfs.clear()),
        Ok(db) => {
            let (done, error) = run.steps(&db, || ());
            if let Some(error) = &error {
                if !is_io(error, kind) {
                    return Err(format!("step {done} failed with {error:?}"));
                }
                if !db.is_autocommit() {
                    let _ = db.execute_batch("ROLLBACK");
                }
            }
            let hits = vfs.clear();
            // SQLite ignores errors in the second phase of a commit over several databases, and may
            // then roll one of them back by itself: plain SQLite does so too, see below.
            ignored = run.workload.attached && error.is_none() && hits > 0;
            // The connection that met the fault goes on to see what is there.
            if !(ignored || forgets && error.is_some()) {
                match run.state(&db) {
                    Ok(seen) if run.allows(states, done, &seen) => {}
                    Ok(_) => wrong.push(format!("same connection: other data after {done} steps")),
                    Err(error) => wrong.push(format!("same connection: {error:?}")),
                }
            }
            (done, hits)
        }
    };
    let db = run.open(dir).map_err(|error| format!("reopened: {error}"))?;
    let seen = run.state(&db).map_err(|error| format!("reopened: {error:?}"))?;
    if !ignored && !run.allows(states, done, &seen) {
        let place = states.iter().position(|state| *state == seen);
        wrong.push(format!("reopened: the data after {done} steps is that of step {place:?}"));
    }
    for schema in run.schemas() {
        let sound = try_rows(&db, &format!("PRAGMA {schema}.integrity_check"))
            .map_err(|error| format!("{schema}: integrity_check: {error:?}"))?;
        if sound != ["[Text(\"ok\")]"] {
            return Err(format!("{schema}: {sound:?}"));
        }
        if run.plain.is_some() {
            continue;
        }
        match db.tde_verify(schema, |_, _| ()) {
            Ok(found) if found.is_clean() => {}
            // Creation stopped between the copies of the envelope, or before the first.
            Ok(found) if run.workload.setup.is_empty() && found.bad_pages.is_empty() => {}
            Err(sqlite_tde::Error::NotEncrypted) if seen == [Vec::<String>::new()] => {}
            other => return Err(format!("{schema}: verify: {other:?}")),
        }
    }
    // And it can be written.
    db.execute_batch("CREATE TABLE later(a); INSERT INTO later VALUES(1); DROP TABLE later")
        .map_err(|error| format!("write afterwards: {error:?}"))?;
    if started.elapsed().as_secs() > 20 {
        return Err("it took more than 20 seconds".into());
    }
    if wrong.is_empty() { Ok(hits) } else { Err(wrong.join("; ")) }
}

#[test]
fn create_and_insert() {
    survives(&CREATE, &MODES, false);
}

#[test]
fn update_spill_and_roll_back() {
    survives(&UPDATE, &MODES, false);
}

#[test]
fn without_syncs() {
    survives(&UNSYNCED, &MODES, false);
}

#[test]
fn vacuum() {
    survives(&VACUUM, &MODES, false);
}

#[test]
fn two_databases_in_one_transaction() {
    survives(&ATTACH, &MODES, false);
}

#[test]
fn savepoints() {
    survives(&SAVEPOINTS, &MODES, false);
}

#[test]
fn index_through_a_sorter_on_disk() {
    survives(&INDEX, &MODES, false);
}

#[test]
fn checkpoints() {
    survives(&CHECKPOINTS, &LOG, false);
    survives(&AUTOCHECKPOINT, &LOG, false);
}

#[test]
fn switching_between_journal_and_log() {
    survives(&SWITCH, &LOG, false);
}

#[test]
fn a_log_without_shared_memory() {
    survives(&EXCLUSIVE, &LOG, false);
}

/// The same of SQLite alone: what it cannot do, `tde` need not.
#[test]
fn plain_sqlite_survives_too() {
    for workload in [&CREATE, &UPDATE, &ATTACH] {
        survives(workload, &MODES, true);
    }
    for workload in [&CHECKPOINTS, &AUTOCHECKPOINT, &SWITCH, &EXCLUSIVE] {
        survives(workload, &LOG, true);
    }
}

/// A disk that is full and stays so: the transaction is rolled back, and the connection goes on
/// with what was committed, without any room.
#[test]
fn a_disk_that_stays_full_loses_nothing_but_the_transaction() {
    for (mode, locking) in
        MODES.iter().flat_map(|mode| ["NORMAL", "EXCLUSIVE"].map(|locking| (*mode, locking)))
    {
        for plain in [false, true] {
            let vfs = FaultyVfs::new();
            let home = Home::with(|options| options.base(over_base(vfs.name)));
            let workload = &UPDATE;
            let run =
                Run { home: &home, workload, mode, plain: plain.then(|| over_base(vfs.name)) };
            let template = home.path("template");
            std::fs::create_dir(&template).unwrap();
            run.connect(&template.join("main.db")).unwrap().execute_batch(TABLES).unwrap();
            let open = |name: &str| {
                let dir = home.path(name);
                copy_dir(&template, &dir);
                let db = run.open(&dir).unwrap();
                db.execute_batch(&format!("PRAGMA locking_mode={locking}")).unwrap();
                db
            };
            let spills =
                "BEGIN; UPDATE n SET k = k + 1; UPDATE t SET b = b || '!', c = c || b; COMMIT";
            let db = open("count");
            let before = run.state(&db).unwrap();
            vfs.clear();
            db.execute_batch(spills).unwrap();
            let after = run.state(&db).unwrap();
            let count = vfs.calls().len();
            drop(db);
            let mut met = 0;
            for at in 0..count {
                let what = format!("{mode}, {locking}, plain {plain}, call {at} of {count}");
                let db = open(&format!("{at}"));
                run.state(&db).unwrap();
                vfs.fail(at, Kind::NoRoom);
                let done = db.execute_batch(spills);
                if done.is_err() && !db.is_autocommit() {
                    let _ = db.execute_batch("ROLLBACK");
                }
                let seen = run.state(&db).unwrap_or_else(|error| panic!("{what}: {error:?}"));
                met += usize::from(vfs.clear() > 0);
                assert!(
                    seen == if done.is_ok() { &after } else { &before }[..],
                    "{what}: {done:?}"
                );
                drop(db);
                std::fs::remove_dir_all(home.path(&format!("{at}"))).unwrap();
            }
            assert!(met > 5, "{mode}, {locking}, plain {plain}: only {met} met it");
        }
    }
}
