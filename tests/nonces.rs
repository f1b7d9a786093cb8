//! A subkey and a nonce come together once. Everything that is written to the disk is read there,
//! with what is overwritten later: in all journal and locking modes, on every road by which a byte
//! is written, after crashes, in copies, and in clones of the process that no handler of the C
//! library notices, made at each step and inside transactions. The clones share nothing, not even
//! the disk, so that what a clone does is what the first one would have done from the same state.

#[path = "nonces/seals.rs"]
mod seals;
#[path = "nonces/work.rs"]
mod work;

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use rusqlite::backup::Backup;
use rusqlite::{Connection, ffi};
use seals::{Ledger, Reader, Written};
use sqlite_tde::provider::Keystore;
use sqlite_tde_testkit::Home;
use sqlite_tde_testkit::power::{Disk, Files, PowerVfs};
use sqlite_tde_testkit::process::{Process, TOO_LONG, report};
use work::{Mode, STATEMENTS, TABLES};

const TASK: &str = "SQLITE_TDE_TEST_NONCES";

/// A database in memory, and who reads what is written to it.
struct Place<'m> {
    mode: &'m Mode,
    home: Home,
    vfs: PowerVfs,
    reader: Reader,
}

impl<'m> Place<'m> {
    fn new(mode: &'m Mode) -> Self {
        static CONFIGURE: Once = Once::new();
        CONFIGURE.call_once(|| {
            // Statement journals go to a file at once, and a sorter after one page, not 250.
            // SAFETY: where SQLite is already in use, these answer SQLITE_MISUSE and do nothing.
            unsafe {
                ffi::sqlite3_config(ffi::SQLITE_CONFIG_STMTJRNL_SPILL, 0 as c_int);
                ffi::sqlite3_config(ffi::SQLITE_CONFIG_PMASZ, 1 as c_int);
            }
        });
        let vfs = PowerVfs::new(true);
        let home = Home::with(|options| options.base(vfs.name).cipher(mode.cipher));
        let reader = Reader::new(mode.cipher, &Files::new());
        let mut place = Self { mode, home, vfs, reader };
        place.insert(Files::new());
        place
    }

    /// The same keys over another disk.
    fn beside(&self) -> Self {
        let vfs = PowerVfs::new(true);
        let mut home = Home::with(|options| options);
        home.vfs = format!("beside-{}", vfs.name);
        let keystore = Keystore::at(self.home.dir.path().join("keys"));
        let options =
            sqlite_tde_testkit::options(&home.vfs).base(vfs.name).cipher(self.mode.cipher);
        sqlite_tde::register(options.keystore(keystore)).unwrap();
        Self { mode: self.mode, home, vfs, reader: self.reader.clone() }
    }

    /// Another disk, for what is opened from now on.
    fn insert(&mut self, files: Files) {
        self.reader = Reader::new(self.mode.cipher, &files);
        let mut disk = Disk::new(files, None);
        disk.logs_unnamed = true;
        self.vfs.insert(disk);
    }

    fn files(&self) -> Files {
        self.vfs.with(|disk| disk.files())
    }

    fn open(&self, path: &str) -> Connection {
        let mut options = self.home.options();
        if self.mode.nolock {
            options = options.parameter("nolock", "1");
        }
        let db = sqlite_tde::open_with(PathBuf::from(path), &options).unwrap();
        db.execute_batch(&self.mode.settings()).unwrap();
        db
    }

    fn run(&self, db: &Connection, sql: &str, number: usize, what: &str) {
        let sql = self.mode.statement(sql, number);
        db.execute_batch(&sql).unwrap_or_else(|error| panic!("{what}: {sql}: {error}"));
    }

    /// What was written since the last call.
    fn written(&mut self) -> Written {
        let reader = &mut self.reader;
        self.vfs.with(|disk| reader.read(&disk.log))
    }
}

/// Runs every statement, with `after` each of them.
fn statements(
    place: &mut Place,
    db: &Connection,
    number: usize,
    mut after: impl FnMut(&mut Place, &str),
) {
    for (step, sql) in STATEMENTS.iter().enumerate() {
        place.run(db, sql, number + step, &format!("{} step {step}", place.mode.name()));
        after(place, &format!("step {step} {sql}"));
    }
}

#[test]
fn no_nonce_comes_twice_in_a_file() {
    for mode in Mode::all() {
        let mut place = Place::new(&mode);
        let mut ledger = Ledger::default();
        let db = place.open("/main.db");
        db.execute_batch(TABLES).unwrap();
        ledger.add("creation", place.written());
        statements(&mut place, &db, 100, |place, step| ledger.add(step, place.written()));

        // A backup comes in, and what was there goes on.
        let mut other = place.open("/other.db");
        other.execute_batch(TABLES).unwrap();
        ledger.add("another database", place.written());
        Backup::new(&db, &mut other).unwrap().step(-1).unwrap();
        ledger.add("backup", place.written());
        statements(&mut place, &other, 300, |place, step| {
            ledger.add(&format!("after a backup, {step}"), place.written());
        });
        drop(other);

        // A copy of the file goes its own way, on the same disk.
        drop(db);
        ledger.add("closed", place.written());
        let mut files = place.files();
        let copy = files["/main.db"].clone();
        files.insert("/copy.db".into(), copy);
        place.insert(files);
        for name in ["/main.db", "/copy.db", "/main.db"] {
            let db = place.open(name);
            statements(&mut place, &db, 500, |place, step| {
                ledger.add(&format!("{name} beside its copy, {step}"), place.written());
            });
            place.vfs.with(|disk| {
                let into: Vec<_> = disk.files().into_keys().collect();
                into.iter().filter(|name| name.contains("into")).for_each(|name| {
                    disk.delete(name, false);
                });
            });
        }
        let (pairs, pieces) = ledger.seen();
        eprintln!("{}: {pairs} nonces, {pieces} pieces of scratch files", mode.name());
        assert!(pairs > 1000 && pieces > 1000, "{}: {pairs} {pieces}", mode.name());
        ledger.check(&mode.name());
    }
}

/// The machine stops after each step, and another process finds the files, rolls back and goes on,
/// as if it had happened, while the first one goes on as if it had not: a copy of all files, hot
/// journals included.
#[test]
fn no_nonce_comes_twice_after_a_crash() {
    for mode in Mode::all() {
        let mut ledger = Ledger::default();
        let mut place = Place::new(&mode);
        let mut beside = place.beside();
        let db = place.open("/main.db");
        db.execute_batch(TABLES).unwrap();
        statements(&mut place, &db, 100, |place, step| {
            ledger.add(step, place.written());
            beside.insert(place.files());
            let db = beside.open("/main.db");
            for sql in ["UPDATE t SET b = printf('%0900d', 7) WHERE a < 9", "PRAGMA user_version=9"]
            {
                let done = db.execute_batch(sql);
                // Without a journal on the disk a crash may leave anything.
                let may_fail = ["MEMORY", "OFF"].contains(&mode.journal);
                assert!(done.is_ok() || may_fail, "{} crash after {step}: {done:?}", mode.name());
            }
            drop(db);
            ledger.add(&format!("crash after {step}"), beside.written());
        });
        ledger.check(&mode.name());
    }
}

/// Ends a process that was cloned off, whatever it holds.
#[allow(unsafe_code)]
fn end(code: c_int) -> ! {
    // SAFETY: without the clean-up that is the first process's.
    unsafe { libc::_exit(code) }
}

/// Clones this process, of one thread, by a system call that runs no handler of the C library's.
/// Answers the child's id, or 0 in the child.
#[allow(unsafe_code)]
fn clone_process() -> libc::pid_t {
    // SAFETY: without CLONE_VM the child has memory of its own, and this process has one thread, so
    // that no lock is held in it.
    let id = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    assert!(id >= 0, "clone");
    id as libc::pid_t
}

/// How the clone `id` ended, or any of them for -1.
#[allow(unsafe_code)]
fn wait(id: libc::pid_t) -> c_int {
    let mut status = 0;
    // SAFETY: `status` is valid for writing.
    let ended = unsafe { libc::waitpid(id, &raw mut status, 0) };
    assert!(ended > 0 && (id == -1 || ended == id), "waitpid {id}");
    status
}

/// Statements that a clone does.
const TAIL: usize = 4;

/// Does the next statements in a clone; what it wrote is in `file`, and what its own clone wrote.
fn live_on(
    place: &mut Place,
    db: &Connection,
    spare: &Connection,
    step: usize,
    file: &Path,
    depth: u32,
) {
    let number = 10_000 * (depth as usize + 1) + step;
    if depth > 0 && clone_process() == 0 {
        live_on(place, db, spare, step, &file.with_extension("again"), depth - 1);
        end(0);
    }
    for (step, sql) in STATEMENTS.iter().enumerate().skip(step).take(TAIL) {
        place.run(db, sql, number, &format!("{} clone, step {step}", place.mode.name()));
    }
    // What was opened before the clone, and is used here first.
    let sql = format!("UPDATE t SET b = printf('%0900d', {number}) WHERE a < 9");
    spare.execute_batch(&sql).unwrap();
    std::fs::write(file, place.written().encode()).unwrap();
    if depth > 0 {
        assert_eq!(wait(-1), 0, "the clone of a clone");
    }
}

/// The task of a process.
#[test]
fn clones() {
    let Ok(task) = std::env::var(TASK) else { return };
    let mode = Mode::all().into_iter().find(|mode| mode.name() == task).unwrap();
    let mut place = Place::new(&mode);
    let mut ledger = Ledger::default();
    let spare = place.open("/spare.db");
    spare.execute_batch(TABLES).unwrap();
    let db = place.open("/main.db");
    db.execute_batch(TABLES).unwrap();
    let mut children = Vec::new();
    for (step, sql) in STATEMENTS.iter().enumerate() {
        ledger.add(&format!("parent before step {step}"), place.written());
        let file = place.home.path(&format!("clone-{step}"));
        match clone_process() {
            0 => {
                let depth = u32::from(step % 5 == 0);
                let done = catch_unwind(AssertUnwindSafe(|| {
                    live_on(&mut place, &db, &spare, step, &file, depth);
                }));
                end(c_int::from(done.is_err()));
            }
            id => children.push((step, id, file)),
        }
        place.run(&db, sql, 100 + step, &format!("{} step {step}", mode.name()));
        if step % 4 == 0 && !STATEMENTS[..=step].ends_with(&["BEGIN"]) {
            let sql = format!("UPDATE t SET b = printf('%0900d', {step}) WHERE a < 9");
            spare.execute_batch(&sql).unwrap();
        }
    }
    ledger.add("parent at the end", place.written());
    for (step, id, file) in children {
        assert_eq!(wait(id), 0, "the clone at step {step}");
        for (file, name) in [(file.clone(), "clone"), (file.with_extension("again"), "its clone")] {
            if let Ok(text) = std::fs::read_to_string(file) {
                ledger.add(&format!("{name} at step {step}"), Written::decode(&text));
            }
        }
    }
    let (pairs, pieces) = ledger.seen();
    assert!(pairs > 1000 && pieces > 1000, "{pairs} {pieces}");
    ledger.check(&mode.name());
    report("done");
}

#[test]
fn no_nonce_comes_twice_in_clones() {
    let mut failed = Vec::new();
    for mode in Mode::all() {
        let process = Process::start("clones", TASK, &mode.name());
        match process.finish(TOO_LONG) {
            Ok(lines) if lines == ["done"] => {}
            other => failed.push(format!("{}: {other:?}", mode.name())),
        }
    }
    assert!(failed.is_empty(), "{} modes:\n{}", failed.len(), failed.join("\n"));
}
