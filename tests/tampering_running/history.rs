//! What is done to a database while somebody tampers with it, and what plain SQLite makes of that.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use sqlite_tde::Cipher;

use super::{DATABASE, JOURNAL, LOG, PAGE, TRAILER};
use sqlite_tde_testkit::beside;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    pub mode: &'static str,
    pub exclusive: bool,
    pub cipher: Cipher,
    pub shortcuts: bool,
}

impl std::fmt::Display for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let locking = if self.exclusive { "exclusive" } else { "normal" };
        let shortcuts = if self.shortcuts { "short cuts" } else { "no short cuts" };
        write!(f, "{}, {locking}, {}, {shortcuts}", self.mode, self.cipher.name())
    }
}

impl Config {
    pub fn has_log(&self) -> bool {
        self.mode == "WAL"
    }

    /// Whether what a failed transaction wrote is taken back. Without a journal it stays.
    pub fn rolls_back(&self) -> bool {
        self.mode != "OFF"
    }

    /// Whether a killed process leaves what the next one needs to roll back.
    pub fn survives_kills(&self) -> bool {
        !matches!(self.mode, "OFF" | "MEMORY")
    }
}

/// Which of two connections does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Writer,
    Reader,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// Its rows are those of plain SQLite.
    Sql(String),
    /// Its rows do not matter: what a checkpoint did.
    Quiet(String),
    /// The files are copied, as a killed process leaves them, and the copy is used from here on.
    Kill,
    /// All connections are closed; the next step opens them again.
    Reopen,
    /// The files are kept, to be put back later.
    Mark,
}

#[derive(Debug, Clone)]
pub struct Step {
    pub who: Who,
    pub what: Do,
    /// The transaction that it belongs to.
    pub tx: usize,
    /// The transaction changes rows, and this step commits it.
    pub commits: bool,
}

/// The steps of a history, in transactions that may overlap.
#[derive(Default)]
struct Script {
    steps: Vec<Step>,
    txs: usize,
    /// Transactions of the reader, which an exclusive writer does not let in.
    left_out: BTreeSet<usize>,
    exclusive: bool,
}

impl Script {
    fn begin(&mut self, who: Who) -> usize {
        self.txs += 1;
        if who == Who::Reader && self.exclusive {
            self.left_out.insert(self.txs);
        }
        self.txs
    }

    fn add(&mut self, who: Who, tx: usize, what: Do, commits: bool) {
        if !self.left_out.contains(&tx) {
            self.steps.push(Step { who, what, tx, commits });
        }
    }

    fn sql(&mut self, who: Who, tx: usize, sql: &str) {
        self.add(who, tx, Do::Sql(sql.into()), sql == "COMMIT" && who == Who::Writer);
    }

    /// A transaction of one statement that changes rows.
    fn write(&mut self, sql: &str) {
        let tx = self.begin(Who::Writer);
        self.add(Who::Writer, tx, Do::Sql(sql.into()), true);
    }

    /// A transaction of several statements.
    fn transaction(&mut self, all: &[&str]) {
        let tx = self.begin(Who::Writer);
        for sql in all {
            match *sql {
                "-- mark" => self.add(Who::Writer, tx, Do::Mark, false),
                sql => self.sql(Who::Writer, tx, sql),
            }
        }
    }

    /// What changes no row.
    fn quiet(&mut self, sql: &str) {
        let tx = self.begin(Who::Writer);
        self.add(Who::Writer, tx, Do::Quiet(sql.into()), false);
    }

    fn read(&mut self, who: Who) {
        for sql in [ALL, INDEXED, KEPT] {
            let tx = self.begin(who);
            self.sql(who, tx, sql);
        }
    }

    fn event(&mut self, what: Do) {
        let tx = self.begin(Who::Writer);
        self.add(Who::Writer, tx, what, false);
    }
}

const ALL: &str = "SELECT a, b, c FROM t NOT INDEXED ORDER BY a";
const INDEXED: &str = "SELECT c, count(*) FROM t INDEXED BY i GROUP BY c ORDER BY c";
const KEPT: &str = "SELECT x FROM kept ORDER BY rowid";

/// The database before the history: rows, overflow pages, an index, free pages.
pub const SETUP: [&str; 8] = [
    "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c INTEGER)",
    "CREATE INDEX i ON t(c)",
    "CREATE TABLE kept(x)",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12)
     INSERT INTO t SELECT i, printf('%03d v0 %.380c', i, 'x'), i FROM n",
    "INSERT INTO t VALUES(100, printf('100 v0 %.2900c', 'o'), 100)",
    "CREATE TABLE gone(x)",
    "INSERT INTO gone VALUES(printf('%.3500c', 'g'))",
    "DROP TABLE gone",
];

/// Between the two versions of the database that can be put back.
pub const CHANGE: &str = "UPDATE t SET b = replace(b, 'v0', 'v1'), c = c + 1000";

pub fn steps(config: Config) -> Vec<Step> {
    use Who::{Reader, Writer};
    let mut script = Script { exclusive: config.exclusive, ..Script::default() };
    script.read(Writer);
    let seen = script.begin(Reader);
    script.sql(Reader, seen, "BEGIN");
    script.sql(Reader, seen, "SELECT a, b FROM t WHERE a < 5");
    script.quiet(ROTATING);
    let small = script.begin(Writer);
    script.sql(Writer, small, "BEGIN IMMEDIATE");
    script.sql(Writer, small, "UPDATE t SET b = replace(b, 'v1', 'v2') WHERE a IN (2, 7)");
    script.sql(Reader, seen, ALL);
    script.sql(Reader, seen, "COMMIT");
    script.sql(Writer, small, "UPDATE t SET b = replace(b, 'v1', 'v3'), c = c + 100 WHERE a >= 5");
    if config.rolls_back() {
        script.sql(Writer, small, "SAVEPOINT s");
        script.sql(Writer, small, "UPDATE t SET b = replace(b, 'v', 'taken back')");
        script.sql(Writer, small, "INSERT INTO t SELECT a + 200, b, c FROM t WHERE a < 7");
        script.sql(Writer, small, "ROLLBACK TO s");
        script.sql(Writer, small, "RELEASE s");
    }
    script.add(Writer, small, Do::Mark, false);
    script.sql(Writer, small, ALL);
    script.sql(Writer, small, "COMMIT");
    script.read(Reader);
    if config.rolls_back() {
        script.transaction(&[
            "BEGIN",
            "UPDATE t SET b = b || 'rolled back', c = -c",
            "DELETE FROM t WHERE a = 100",
            "INSERT INTO t VALUES(150, printf('%.2500c', 'r'), 1)",
            "-- mark",
            ALL,
            "ROLLBACK",
        ]);
        script.read(Writer);
    }
    // Pages that are freed in the transaction that made them are never written.
    script.transaction(&[
        "BEGIN",
        "CREATE TABLE big(x)",
        "INSERT INTO big VALUES(printf('%.6000c', 'h'))",
        "INSERT INTO kept VALUES(printf('kept %.1500c', 'k'))",
        "DROP TABLE big",
        "COMMIT",
    ]);
    script.write("INSERT INTO kept VALUES(printf('kept too %.4000c', 'l'))");
    script.read(Reader);
    if config.has_log() {
        let seen = script.begin(Reader);
        script.sql(Reader, seen, "BEGIN");
        script.sql(Reader, seen, ALL);
        script.write("UPDATE t SET b = replace(b, 'v', 'w'), c = c + 1 WHERE a < 4");
        script.quiet("PRAGMA wal_checkpoint(PASSIVE)");
        script.sql(Reader, seen, ALL);
        script.sql(Reader, seen, "COMMIT");
        script.quiet("PRAGMA wal_checkpoint(RESTART)");
        script.write("UPDATE t SET b = replace(b, 'w', 'v'), c = c + 1 WHERE a BETWEEN 3 AND 6");
        script.read(Reader);
        script.quiet(TRUNCATING);
        script.read(Writer);
    }
    script.quiet("PRAGMA incremental_vacuum(2)");
    script.transaction(&[
        "BEGIN",
        "DELETE FROM t WHERE a IN (6, 9)",
        "INSERT INTO t VALUES(300, printf('300 v4 %.3000c', 'n'), 7)",
        "COMMIT",
    ]);
    script.read(Reader);
    script.event(Do::Reopen);
    script.read(Writer);
    script.quiet("VACUUM");
    script.read(Writer);
    if config.has_log() {
        script.quiet(TRUNCATING);
    }
    script.write("UPDATE t SET c = c + 3 WHERE a IN (1, 8)");
    script.write("INSERT INTO t VALUES(301, printf('301 v5 %.1200c', 'm'), 8)");
    if config.survives_kills() {
        script.transaction(&["BEGIN", "UPDATE t SET b = b || 'not committed', c = -c", ALL]);
    }
    script.event(Do::Kill);
    script.read(Writer);
    script.write("UPDATE t SET b = replace(b, 'v', 'u'), c = c + 5 WHERE a IN (3, 100)");
    script.read(Writer);
    script.write("INSERT INTO t VALUES(302, printf('302 v6 %.1700c', 'p'), 9)");
    script.event(Do::Reopen);
    script.read(Writer);
    script.steps
}

/// Writes the envelope, once in each history. To plain SQLite it means nothing.
pub const ROTATING: &str = "PRAGMA tde_rotate_protector";
pub const TRUNCATING: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// What a step answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Rows(Vec<String>),
    /// The error's code and words.
    Failed(i32, String),
    /// Of a transaction that has failed.
    Skipped,
}

/// The transactions that fail in the model, each before this step. Number 0 is [`CHANGE`].
pub type Plan = BTreeMap<usize, usize>;

/// The files of a database.
#[derive(Clone, Default)]
pub struct Files {
    pub db: Vec<u8>,
    pub journal: Option<Vec<u8>>,
    pub log: Option<Vec<u8>>,
}

impl Files {
    pub fn of(dir: &Path) -> Self {
        let path = dir.join(DATABASE);
        let db = fs::read(&path).unwrap_or_default();
        Self {
            journal: fs::read(beside(&path, JOURNAL)).ok(),
            log: fs::read(beside(&path, log_of(&db))).ok(),
            db,
        }
    }

    pub fn put(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        let path = dir.join(DATABASE);
        let log = (log_of(&self.db), self.log.as_ref());
        for (suffix, bytes) in [("", Some(&self.db)), (JOURNAL, self.journal.as_ref()), log] {
            if let Some(bytes) = bytes {
                fs::write(beside(&path, suffix), bytes).unwrap();
            }
        }
    }
}

/// What the log of a database of these bytes is called: the model's is a plain one.
fn log_of(db: &[u8]) -> &'static str {
    if db.starts_with(b"SQLite format 3\0") { "-wal" } else { LOG }
}

/// Where a history runs.
pub struct World<'a> {
    /// Opens a connection to the database at a path.
    pub open: &'a dyn Fn(&Path) -> Result<Connection, (i32, String)>,
    /// The directory in use; the one after a kill lies in it.
    pub dir: PathBuf,
    /// Is told of the directory after a kill, before anything happens there.
    pub moved: &'a dyn Fn(&Path),
    /// The step at hand.
    pub step: &'a AtomicUsize,
    pub synchronous: &'static str,
    /// Ends the history before its next step.
    pub stop: &'a AtomicBool,
    /// The files at the last mark.
    pub marked: &'a Mutex<Option<Files>>,
}

pub fn run(world: &mut World<'_>, config: Config, steps: &[Step], plan: &Plan) -> Vec<Answer> {
    let mut conns: [Option<Connection>; 2] = [None, None];
    // A killed process's, whose files nobody looks at any more.
    let mut left = Vec::new();
    let mut failed = BTreeSet::new();
    let mut answers = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        if world.stop.load(Ordering::SeqCst) {
            break;
        }
        world.step.store(number, Ordering::SeqCst);
        let slot = &mut conns[step.who as usize];
        let answer = match &step.what {
            _ if failed.contains(&step.tx) => Answer::Skipped,
            _ if plan.get(&step.tx) == Some(&number) => {
                take_back(slot);
                failed.insert(step.tx);
                Answer::Skipped
            }
            Do::Mark => {
                *world.marked.lock().unwrap() = Some(Files::of(&world.dir));
                Answer::Skipped
            }
            Do::Reopen => {
                let [writer, reader] = &mut conns;
                drop(reader.take());
                drop(writer.take());
                Answer::Skipped
            }
            Do::Kill => {
                left.extend(conns.iter_mut().map(Option::take));
                let next = world.dir.join("killed");
                Files::of(&world.dir).put(&next);
                (world.moved)(&next);
                world.dir = next;
                Answer::Skipped
            }
            Do::Sql(sql) | Do::Quiet(sql) => {
                let done = match slot {
                    Some(db) => query(db, sql),
                    None => open(world, config).and_then(|db| query(slot.insert(db), sql)),
                };
                match done {
                    Ok(rows) => Answer::Rows(rows),
                    Err((code, words)) => {
                        take_back(slot);
                        failed.insert(step.tx);
                        Answer::Failed(code, words)
                    }
                }
            }
        };
        answers.push(answer);
    }
    drop(conns);
    (world.moved)(Path::new("/nowhere"));
    drop(left);
    answers
}

fn take_back(db: &Option<Connection>) {
    if let Some(db) = db
        && !db.is_autocommit()
    {
        let _ = db.execute_batch("ROLLBACK");
    }
}

fn open(world: &World<'_>, config: Config) -> Result<Connection, (i32, String)> {
    let db = (world.open)(&world.dir.join(DATABASE))?;
    settings(&db, config, world.synchronous).map_err(code)?;
    Ok(db)
}

pub fn settings(db: &Connection, config: Config, synchronous: &str) -> rusqlite::Result<()> {
    db.busy_timeout(std::time::Duration::ZERO)?;
    let locking = if config.exclusive { "EXCLUSIVE" } else { "NORMAL" };
    db.execute_batch(&format!(
        "PRAGMA locking_mode={locking}; PRAGMA journal_mode={}; PRAGMA cache_size=5;
         PRAGMA synchronous={synchronous}; PRAGMA wal_autocheckpoint=0;",
        config.mode
    ))
}

fn code(error: rusqlite::Error) -> (i32, String) {
    let code = error.sqlite_error().map_or(rusqlite::ffi::SQLITE_ERROR, |e| e.extended_code);
    (code, error.to_string())
}

fn query(db: &Connection, sql: &str) -> Result<Vec<String>, (i32, String)> {
    let run = || {
        let mut statement = db.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let mut line = String::new();
            for column in 0..columns {
                line.push('|');
                match row.get_ref(column)? {
                    ValueRef::Null => line.push_str("NULL"),
                    ValueRef::Integer(number) => line.push_str(&number.to_string()),
                    ValueRef::Real(number) => line.push_str(&number.to_string()),
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                        line.push_str(&String::from_utf8_lossy(bytes));
                    }
                }
            }
            found.push(line);
        }
        Ok(found)
    };
    run().map_err(code)
}

/// Plain SQLite over the same history.
pub struct Model {
    config: Config,
    steps: Vec<Step>,
    /// The files without [`CHANGE`], and with it.
    starts: [Files; 2],
    dir: tempfile::TempDir,
    known: RefCell<HashMap<Plan, Rc<Vec<Answer>>>>,
}

impl Model {
    pub fn new(config: Config, steps: &[Step]) -> Self {
        let dir = super::in_memory();
        let path = dir.path().join(DATABASE);
        let db = open_plain(&path).unwrap();
        db.execute_batch(&format!("PRAGMA page_size={PAGE}; PRAGMA auto_vacuum=INCREMENTAL"))
            .unwrap();
        settings(&db, config, "OFF").unwrap();
        for sql in SETUP {
            db.execute_batch(sql).unwrap();
        }
        drop(db);
        let unchanged = Files::of(dir.path());
        let db = open_plain(&path).unwrap();
        settings(&db, config, "OFF").unwrap();
        db.execute_batch(CHANGE).unwrap();
        drop(db);
        let starts = [unchanged, Files::of(dir.path())];
        Self { config, steps: steps.to_vec(), starts, dir, known: RefCell::default() }
    }

    /// What each step answers where the transactions of `plan` fail.
    pub fn answers(&self, plan: &Plan) -> Rc<Vec<Answer>> {
        if let Some(known) = self.known.borrow().get(plan) {
            return Rc::clone(known);
        }
        let dir = self.dir.path().join("run");
        let _ = fs::remove_dir_all(&dir);
        self.starts[usize::from(!plan.contains_key(&0))].put(&dir);
        let mut world = World {
            open: &|path| open_plain(path).map_err(code),
            dir,
            moved: &|_| (),
            step: &AtomicUsize::new(0),
            synchronous: "OFF",
            stop: &AtomicBool::new(false),
            marked: &Mutex::default(),
        };
        let answers = run(&mut world, self.config, &self.steps, plan);
        for (number, answer) in answers.iter().enumerate() {
            let fails = matches!(answer, Answer::Failed(..));
            assert!(!fails, "plain: {:?}: {answer:?}", self.steps[number]);
        }
        let answers = Rc::new(answers);
        self.known.borrow_mut().insert(plan.clone(), Rc::clone(&answers));
        answers
    }
}

fn open_plain(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    let mut bytes = TRAILER as std::ffi::c_int;
    // SAFETY: the connection is open, and this file control takes a pointer to an int.
    unsafe {
        rusqlite::ffi::sqlite3_file_control(
            db.handle(),
            c"main".as_ptr(),
            rusqlite::ffi::SQLITE_FCNTL_RESERVE_BYTES,
            (&raw mut bytes).cast(),
        );
    }
    Ok(db)
}
