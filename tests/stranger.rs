//! A program without the library beside an application that has the database open: it may look,
//! stay, try to write, checkpoint, end or be killed, before, between and after whatever the
//! application does. It is told that the file is no database, no file changes under it, and nothing
//! is lost.
//!
//! `SQLITE_TDE_FULL=1` tries every order; otherwise a sample. `SQLITE_TDE_ONLY` names the one to
//! repeat.

#![cfg(unix)]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::BufRead;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, ffi};
use sqlite_tde::provider::Keystore;
use sqlite_tde::{OpenOptions, TdeConnection};
use sqlite_tde_testkit::process::full;
use sqlite_tde_testkit::stranger::{ACTIONS, END, Peer};
use sqlite_tde_testkit::{beside, one, plain, rows};

const TASK: &str = "SQLITE_TDE_TEST_APPLICATION";
const MODES: [&str; 6] = ["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];
const VFS: &str = "beside-strangers";

fn register(dir: &Path) {
    let keystore = Keystore::at(dir.join("keys"));
    let options = sqlite_tde_testkit::options(VFS).keystore(keystore);
    sqlite_tde::register(options.replace(true)).unwrap();
}

fn open(path: &Path) -> Connection {
    sqlite_tde::open_with(path, &OpenOptions::new().vfs(VFS)).unwrap()
}

fn run(db: &Connection, sql: &str) -> String {
    let mut said = String::new();
    let mut statement = match db.prepare(sql) {
        Ok(statement) => statement,
        Err(error) => return format!("error: {error}\n"),
    };
    let mut found = match statement.query([]) {
        Ok(found) => found,
        Err(error) => return format!("error: {error}\n"),
    };
    loop {
        match found.next() {
            Ok(Some(row)) => said.push_str(&format!("{:?}\n", row.get_ref(0))),
            Ok(None) => return said,
            Err(error) => return said + &format!("error: {error}\n"),
        }
    }
}

/// The task of the application's process: it does one line after the other. Lines that begin with
/// `plain` are for a connection of the same process that forgot to name the VFS.
#[test]
fn application() {
    let Ok(path) = std::env::var(TASK) else { return };
    let path = PathBuf::from(path);
    register(path.parent().unwrap().parent().unwrap());
    let (mut ours, mut theirs) = (None, None);
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let said = match line.as_str() {
            "open" => {
                ours = Some(open(&path));
                String::new()
            }
            "close" => {
                ours = None;
                String::new()
            }
            "plain close" => {
                theirs = None;
                String::new()
            }
            "plain CHECKPOINT" => {
                let db = theirs.get_or_insert_with(|| plain(&path));
                // SAFETY: the connection is open; no counts are asked for.
                let code = unsafe {
                    ffi::sqlite3_wal_checkpoint_v2(
                        db.handle(),
                        std::ptr::null(),
                        ffi::SQLITE_CHECKPOINT_TRUNCATE,
                        std::ptr::null_mut(),
                        std::ptr::null_mut(),
                    )
                };
                format!("{code}\n")
            }
            line => match line.strip_prefix("plain ") {
                Some(sql) => run(theirs.get_or_insert_with(|| plain(&path)), sql),
                None => run(ours.as_ref().unwrap(), line),
            },
        };
        print!("\n{said}{END}\n");
        use std::io::Write;
        std::io::stdout().flush().unwrap();
    }
}

/// A program beside the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Shell,
    Python,
    /// A connection of the application's own process.
    Inside,
}
const PROGRAMS: [Program; 3] = [Program::Shell, Program::Python, Program::Inside];

/// What the application does, a step each.
const STEPS: [(&str, &[&str]); 6] = [
    (
        "open",
        &[
            "open",
            "PRAGMA busy_timeout=10000",
            "PRAGMA cache_size=5",
            "PRAGMA wal_autocheckpoint=0",
            "SELECT count(*) FROM t",
        ],
    ),
    ("commit", &["PRAGMA journal_mode=MODE", "INSERT INTO t SELECT NULL, 'two', b FROM t"]),
    (
        "write",
        &[
            "BEGIN IMMEDIATE",
            "UPDATE t SET b = b || b",
            "INSERT INTO t SELECT NULL, 'three', b FROM t",
        ],
    ),
    ("commit again", &["COMMIT"]),
    ("checkpoint", &["PRAGMA wal_checkpoint(PASSIVE)"]),
    ("close", &["close"]),
];

/// One order of events.
#[derive(Debug, Clone, Copy)]
struct Case {
    mode: &'static str,
    program: Program,
    action: usize,
    /// Steps that the application does.
    steps: usize,
    /// It is killed then.
    killed: bool,
    /// Steps of the application, and its end as one more, after which the stranger comes and goes.
    /// It goes after the next process has used the database where that is one more still.
    comes: usize,
    goes: usize,
    /// It is killed, too.
    goes_killed: bool,
}

impl Case {
    fn name(&self) -> String {
        let Self { mode, program, action, steps, killed, comes, goes, goes_killed } = self;
        format!(
            "{mode}: {program:?}, {}, comes at {comes}, goes at {goes}{}, application {} after {}",
            ACTIONS[*action].0,
            if *goes_killed { " killed" } else { "" },
            if *killed { "killed" } else { "ends" },
            STEPS[..*steps].last().map_or("nothing", |step| step.0),
        )
    }
}

/// The files of a directory.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        })
        .collect()
}

/// Names of the files that are not the same in both.
fn changed(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let names = before.keys().chain(after.keys());
    names.filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

struct Site {
    home: tempfile::TempDir,
    /// Databases as they were created, by journal mode.
    created: HashMap<&'static str, Vec<u8>>,
    /// What an application leaves beside which no stranger was.
    alone: HashMap<(&'static str, usize, bool), Vec<String>>,
}

const TABLE: &str =
    "CREATE TABLE t(a INTEGER PRIMARY KEY, tag TEXT, b TEXT); CREATE INDEX tb ON t(b);
    WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 30)
    INSERT INTO t SELECT i, 'one', printf('%0300d', i) FROM i;";

impl Site {
    fn new() -> Self {
        // Processes are killed, no power is lost: a sync costs time and finds nothing.
        let memory = Path::new("/dev/shm");
        let home = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let home = home.unwrap();
        fs::create_dir(home.path().join("files")).unwrap();
        register(home.path());
        let mut created = HashMap::new();
        for mode in MODES {
            let path = home.path().join(format!("{mode}.db"));
            let db = open(&path);
            db.execute_batch("PRAGMA page_size=1024").unwrap();
            let _: String =
                db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |row| row.get(0)).unwrap();
            db.execute_batch(TABLE).unwrap();
            drop(db);
            created.insert(mode, fs::read(&path).unwrap());
        }
        Self { home, created, alone: HashMap::new() }
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("files")
    }

    fn path(&self) -> PathBuf {
        self.dir().join("app.db")
    }

    fn reset(&self, mode: &str) {
        fs::remove_dir_all(self.dir()).unwrap();
        fs::create_dir(self.dir()).unwrap();
        fs::write(self.path(), &self.created[mode]).unwrap();
    }

    /// What is in the database; it must be sound.
    fn state(&self, name: &str) -> Vec<String> {
        let db = open(&self.path());
        let state = rows(&db, "SELECT tag, count(*), sum(length(b)) FROM t GROUP BY tag");
        assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{name}");
        assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{name}");
        db.execute_batch("CREATE TABLE IF NOT EXISTS later(a); INSERT INTO later VALUES(1)")
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        state
    }

    fn wanted(&mut self, case: &Case) -> Vec<String> {
        let key = (case.mode, case.steps, case.killed);
        if !self.alone.contains_key(&key) {
            self.reset(case.mode);
            let mut application = Peer::again("application", TASK, self.path().to_str().unwrap());
            for step in &STEPS[..case.steps] {
                self.step(&mut application, step, case.mode, "alone");
            }
            if case.killed {
                application.kill()
            } else {
                application.close()
            }
            let state = self.state("alone");
            self.alone.insert(key, state);
        }
        self.alone[&key].clone()
    }

    fn step(&self, application: &mut Peer, step: &(&str, &[&str]), mode: &str, name: &str) {
        for line in step.1 {
            let said = application.ask(&line.replace("MODE", mode));
            assert!(!said.contains("error"), "{name}: {line}: {said}");
        }
    }

    /// The stranger does what it does. No file changes meanwhile.
    fn look(&self, case: &Case, program: Program, ask: &mut dyn FnMut(&str) -> String) {
        let before = files(&self.dir());
        let (mut told, out) = (String::new(), self.home.path().join("out.db"));
        for line in ACTIONS[case.action].1 {
            let line = line
                .replace("DB", self.path().to_str().unwrap())
                .replace("OUT", out.to_str().unwrap());
            let line = match (program, line.as_str()) {
                (Program::Inside, line) if line.starts_with('.') => "SELECT 1 FROM sqlite_schema",
                (Program::Inside, line) => line,
                (Program::Python, line) if line.starts_with('.') => "SELECT 1 FROM sqlite_schema",
                (_, "CHECKPOINT") => "PRAGMA wal_checkpoint(RESTART);",
                (_, line) => line,
            };
            told.push_str(&ask(line));
        }
        let _ = fs::remove_file(out);
        let refused = told.contains("not a database") || told.contains("locked");
        assert!(refused, "{}: it was told {told}", case.name());
        assert_eq!(changed(&before, &files(&self.dir())), [""; 0], "{}: looking", case.name());
    }

    fn run(&mut self, case: &Case) {
        let name = case.name();
        let wanted = self.wanted(case);
        self.reset(case.mode);
        let path = self.path();
        let mut application = Some(Peer::again("application", TASK, path.to_str().unwrap()));
        let mut stranger = None;
        for moment in 0..=case.steps + 2 {
            match moment {
                0 => {}
                moment if moment <= case.steps => {
                    let application = application.as_mut().unwrap();
                    self.step(application, &STEPS[moment - 1], case.mode, &name);
                }
                moment if moment == case.steps + 1 => {
                    let application = application.take().unwrap();
                    if case.killed { application.kill() } else { application.close() }
                }
                _ => assert_eq!(self.state(&name), wanted, "{name}"),
            }
            if moment == case.comes {
                match (case.program, application.as_mut()) {
                    (Program::Inside, Some(application)) => {
                        self.look(case, Program::Inside, &mut |line| {
                            application.ask(&format!("plain {line}"))
                        });
                    }
                    (program, _) => {
                        let (program, mut peer) = match program {
                            Program::Python => (program, Peer::python(&path)),
                            _ => (Program::Shell, Peer::shell(&path)),
                        };
                        self.look(case, program, &mut |line| peer.ask(line));
                        stranger = Some(peer);
                    }
                }
            }
            if moment == case.goes {
                let before = files(&self.dir());
                match (stranger.take(), application.as_mut()) {
                    (Some(stranger), _) if case.goes_killed => stranger.kill(),
                    (Some(stranger), _) => stranger.close(),
                    (None, Some(application)) => {
                        application.ask("plain close");
                    }
                    (None, None) => {}
                }
                assert_eq!(changed(&before, &files(&self.dir())), [""; 0], "{name}: going");
            }
        }
        assert_eq!(self.state(&name), wanted, "{name}: after the stranger went");
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in MODES {
        let ends = (1..STEPS.len()).map(|steps| (steps, true)).chain([(STEPS.len(), false)]);
        for (steps, killed) in ends {
            // SQLite itself cannot roll back then.
            if killed && steps == 3 && matches!(mode, "MEMORY" | "OFF") {
                continue;
            }
            for comes in 0..=steps + 2 {
                for goes in comes..=steps + 2 {
                    for goes_killed in [false, true] {
                        let number = cases.len();
                        let program = PROGRAMS[number % PROGRAMS.len()];
                        let action = number / PROGRAMS.len() % ACTIONS.len();
                        cases.push(Case {
                            mode,
                            program,
                            action,
                            steps,
                            killed,
                            comes,
                            goes,
                            goes_killed,
                        });
                    }
                }
            }
        }
    }
    cases
}

#[test]
fn nothing_is_lost_beside_a_stranger() {
    let mut site = Site::new();
    let only = std::env::var("SQLITE_TDE_ONLY").ok();
    let every = if full() || only.is_some() { 1 } else { 29 };
    let (mut done, mut bad) = (0, Vec::new());
    for case in cases().iter().skip(3 % every).step_by(every) {
        if only.as_ref().is_none_or(|only| case.name() == *only) {
            done += 1;
            let ran = catch_unwind(AssertUnwindSafe(|| site.run(case)));
            bad.extend(ran.is_err().then(|| case.name()));
        }
    }
    eprintln!("{done} orders");
    assert!(bad.is_empty(), "{} of {done} orders are bad:\n{}", bad.len(), bad.join("\n"));
}

/// A stale log of a plain database beside an encrypted one, and the reverse: neither is used, and
/// neither is touched. The encrypted database is not written while the former lies there: a plain
/// program that opens it would copy that log over the pages.
#[test]
fn logs_of_the_other_kind_are_left_alone() {
    let home = sqlite_tde_testkit::Home::with(|options| options.allow_plaintext(true));
    let (sealed, open_text) = (home.path("sealed.db"), home.path("plain.db"));
    let wal = |db: &Connection| {
        let _: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).unwrap();
    };
    let (ours, theirs) = (home.open(&sealed), plain(&open_text));
    for (db, path, suffix, other) in
        [(&ours, &sealed, "-tdewal", "-wal"), (&theirs, &open_text, "-wal", "-tdewal")]
    {
        wal(db);
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
        let there = |suffix: &str| beside(path, suffix).exists();
        assert!(there(suffix) && !there(other), "{suffix}");
    }
    // Each gets the log of the other beside it.
    let stale_plain = (beside(&sealed, "-wal"), fs::read(beside(&open_text, "-wal")).unwrap());
    let stale_ours = (beside(&open_text, "-tdewal"), fs::read(beside(&sealed, "-tdewal")).unwrap());
    drop((ours, theirs));
    for (path, bytes) in [&stale_plain, &stale_ours] {
        fs::write(path, bytes).unwrap();
    }
    for round in 1..4 {
        let db = home.open(&open_text);
        assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(round));
        db.execute_batch("INSERT INTO t VALUES(2)").unwrap();
        assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()));
        assert!(fs::read(&stale_ours.0).unwrap() == stale_ours.1, "round {round}: was changed");
    }
    let before = fs::read(&sealed).unwrap();
    for mode in ["WAL", "DELETE"] {
        let refused = home.try_open(&sealed).map(drop).unwrap_err();
        let words = refused.to_string();
        assert!(matches!(refused, sqlite_tde::Error::PlainLog { .. }), "{mode}: {words}");
        assert!(words.contains("sealed.db-wal"), "{words}");
        assert!(fs::read(&stale_plain.0).unwrap() == stale_plain.1, "{mode}: was changed");
        assert!(mode == "DELETE" || fs::read(&sealed).unwrap() == before, "{mode}: was changed");
        let reading = home.options().flags(rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY);
        let db = sqlite_tde::open_with(&sealed, &reading).unwrap();
        assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1), "{mode}");
        drop(db);
        // Moved away, or empty: that is all that it takes.
        for way in ["moved", "emptied"] {
            match way {
                "moved" => fs::rename(&stale_plain.0, home.path("moved")).unwrap(),
                _ => fs::write(&stale_plain.0, b"").unwrap(),
            }
            let db = home.open(&sealed);
            db.execute_batch("INSERT INTO t VALUES(2); DELETE FROM t WHERE a = 2").unwrap();
            one(&db, "PRAGMA journal_mode=DELETE");
            drop(db);
            fs::write(&stale_plain.0, &stale_plain.1).unwrap();
        }
    }
}

/// A log that a plain database left, whose name an encrypted one gets on each road: it is deleted,
/// as plain SQLite deletes it where it finds an empty database. A plain program then finds nothing
/// to copy.
#[test]
fn a_new_database_deletes_the_log_of_a_plain_one() {
    let home = sqlite_tde_testkit::Home::new();
    let source = home.path("source.db");
    let donor = plain(&home.path("donor.db"));
    donor
        .execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE stale(a);
             INSERT INTO stale VALUES(zeroblob(20000))",
        )
        .unwrap();
    let stale = fs::read(home.path("donor.db-wal")).unwrap();
    assert!(!stale.is_empty());
    home.open(&source).execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"] {
        for road in ["open", "an empty file", "attach", "vacuum into", "given up"] {
            let path = home.path(&format!("{mode}-{road}.db"));
            let log = beside(&path, "-wal");
            fs::write(&log, &stale).unwrap();
            if road == "an empty file" {
                fs::write(&path, b"").unwrap();
            }
            let what = format!("{mode}, {road}");
            if matches!(road, "attach" | "vacuum into") {
                let db = home.open(&source);
                let uri = home.uri(&path);
                match road {
                    "attach" => db
                        .execute_batch(&format!(
                            "ATTACH '{uri}' AS aux; CREATE TABLE aux.t(a); INSERT INTO aux.t VALUES(1)"
                        ))
                        .unwrap(),
                    _ => db.execute_batch(&format!("VACUUM INTO '{uri}'")).unwrap(),
                }
            } else {
                let db = home.open(&path);
                one(&db, &format!("PRAGMA journal_mode={mode}"));
                // Without a journal nothing is taken back.
                if road == "given up" && mode != "OFF" {
                    db.execute_batch("PRAGMA cache_size=2; BEGIN; CREATE TABLE t(a)").unwrap();
                    db.execute_batch("INSERT INTO t VALUES(zeroblob(50000)); ROLLBACK").unwrap();
                }
                db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
            }
            assert!(!log.exists(), "{what}: the log is there");
            let stranger = plain(&path);
            assert!(stranger.query_row("SELECT 1 FROM sqlite_schema", [], |_| Ok(())).is_err());
            drop(stranger);
            let db = home.open(&path);
            assert_eq!(one(&db, "SELECT a FROM t"), Value::Integer(1), "{what}");
        }
    }
}

/// The log has the mode of its database, as SQLite gives it to one.
#[test]
fn the_log_has_the_mode_of_its_database() {
    use std::os::unix::fs::PermissionsExt;
    let home = sqlite_tde_testkit::Home::new();
    for mode in [0o600, 0o640, 0o664] {
        let path = home.path(&format!("with.dots-and-dashes.{mode:o}"));
        drop(home.open(&path).execute_batch("CREATE TABLE t(a)"));
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let db = home.open(&path);
        let _: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).unwrap();
        db.execute_batch("INSERT INTO t VALUES(1)").unwrap();
        let log = PathBuf::from(format!("{}-tdewal", path.display()));
        let found = fs::metadata(&log).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{found:o}");
    }
}

/// Where plaintext is allowed, a file that is neither plain nor whole is refused, and what lies
/// beside it is left alone: the keys may still be found.
#[test]
fn a_damaged_file_does_not_pass_as_a_plain_one() {
    let home = sqlite_tde_testkit::Home::with(|options| options.allow_plaintext(true));
    let work = home.path("work.db");
    for mode in ["WAL", "DELETE"] {
        let db = home.open(&work);
        let _: String =
            db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |row| row.get(0)).unwrap();
        db.execute_batch("PRAGMA cache_size=3; DROP TABLE IF EXISTS t; CREATE TABLE t(a)").unwrap();
        db.execute_batch("INSERT INTO t VALUES(zeroblob(9000))").unwrap();
        db.execute_batch("BEGIN; INSERT INTO t SELECT zeroblob(30000) FROM t").unwrap();
        let killed: Vec<(PathBuf, Vec<u8>)> = ["", "-tdewal", "-journal"]
            .iter()
            .map(|suffix| (PathBuf::from(format!("{}{suffix}", work.display())), suffix))
            .filter(|(path, _)| path.exists())
            .map(|(path, suffix)| (home.path(&format!("copy.db{suffix}")), fs::read(path).unwrap()))
            .collect();
        assert_eq!(killed.len(), 2, "{mode}");
        for (what, bytes) in [("zeros", [0_u8; 16]), ("garbage", [7; 16])] {
            for (path, bytes) in &killed {
                fs::write(path, bytes).unwrap();
            }
            let copy = home.path("copy.db");
            let mut damaged = fs::read(&copy).unwrap();
            damaged[..16].copy_from_slice(&bytes);
            damaged[8192..8192 + 16].copy_from_slice(&bytes);
            fs::write(&copy, damaged).unwrap();
            let refused = home.try_open(&copy);
            assert!(
                matches!(refused, Err(sqlite_tde::Error::NotADatabase(_))),
                "{mode}, {what}: {refused:?}"
            );
            fs::write(&copy, &killed[0].1).unwrap();
            for (path, bytes) in &killed {
                assert!(fs::read(path).unwrap() == *bytes, "{mode}, {what}: {path:?}");
            }
            let db = home.open(&copy);
            assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1), "{mode}, {what}");
            drop(db);
            for suffix in ["", "-tdewal", "-journal", "-shm"] {
                let _ = fs::remove_file(home.path(&format!("copy.db{suffix}")));
            }
        }
        drop(db);
    }
    // What is empty, or begins as SQLite's, is plain or becomes what it is created as.
    let path = home.path("plain.db");
    plain(&path).execute_batch("CREATE TABLE t(a)").unwrap();
    assert_eq!(one(&home.open(&path), "SELECT count(*) FROM t"), Value::Integer(0));
    fs::write(home.path("empty.db"), b"").unwrap();
    assert!(home.open(&home.path("empty.db")).execute_batch("CREATE TABLE t(a)").is_ok());
}
