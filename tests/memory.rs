//! No key is left in a process that gave its keys up. One process works with a database; another,
//! which knows the keys, searches the first one's memory for them through `/proc`.
//!
//! What SQLite caches of the pages is plaintext, and out of scope.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, Write};

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, fs};

use rusqlite::Connection;
use sqlite_tde::provider::{
    Answer, KeyProvider, Keystore, ProviderError, UnwrapRequest, VersionRequest, WrapRequest,
    Wrapped,
};
use sqlite_tde::secret::{Secret, memory};
use sqlite_tde::{AccessPolicy, Cipher, OpenOptions, Options, TdeConnection};
use sqlite_tde_testkit::one;
use sqlite_tde_testkit::process::{as_nobody, only};
use sqlite_tde_testkit::scan::{Found, Needles, scan};

const TASK: &str = "SQLITE_TDE_TEST_MEMORY";
const CASES: [(&str, Cipher); 6] = [
    ("DELETE", Cipher::Aes256Gcm),
    ("WAL", Cipher::Aes256Gcm),
    ("DELETE", Cipher::Aes256CtrHmacSha256),
    ("WAL", Cipher::Aes256CtrHmacSha256),
    ("DELETE", Cipher::Aegis256X4),
    ("WAL", Cipher::Aegis256X4),
];

/// A keystore that tells what it was given.
struct Spy {
    keystore: Keystore,
    seen: Mutex<Vec<([u8; 16], Vec<u8>)>>,
}

impl KeyProvider for Spy {
    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { dek, context, .. } = *request;
        self.seen.lock().unwrap().push((context.file_id, dek.expose().to_vec()));
        self.keystore.wrap(request)
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        self.keystore.unwrap(request)
    }

    fn newest_version(
        &self,
        request: &VersionRequest<'_>,
    ) -> Result<Answer<String>, ProviderError> {
        self.keystore.newest_version(request)
    }
}

fn register(dir: &Path, cipher: Cipher, provider: Arc<dyn KeyProvider>) -> OpenOptions {
    let mut policy = AccessPolicy::default();
    policy.revalidate = Some(Duration::ZERO);
    let name = dir.to_string_lossy();
    let keystore = Keystore::at(dir.join("keys"));
    let options = Options::new().name(&*name).keystore(keystore).provider("spied", provider);
    sqlite_tde::register(options.default_protector("spied:key").cipher(cipher).access(policy))
        .unwrap();
    OpenOptions::new().vfs(&*name)
}

fn file(dir: &Path) -> PathBuf {
    dir.join("a.db")
}

/// A database, the keystore it needs, and its keys.
fn create(dir: &Path, mode: &str, cipher: Cipher) -> Needles {
    let keystore = Keystore::at(dir.join("keys"));
    keystore.create("key").unwrap();
    let spy = Arc::new(Spy { keystore, seen: Mutex::default() });
    let options = register(dir, cipher, spy.clone());
    let db = sqlite_tde::open_with(file(dir), &options).unwrap();
    one(&db, &format!("PRAGMA journal_mode={mode}"));
    db.execute_batch("CREATE TABLE t(a, b); INSERT INTO t VALUES(0, 'x')").unwrap();
    drop(db);
    let (file_id, dek) = spy.seen.lock().unwrap()[0].clone();
    let page = fs::read(file(dir)).unwrap()[16384..][..4096].to_vec();
    Needles::new(&file_id, &dek, cipher, &page)
}

/// This test binary, running [`work`] step by step.
struct Worker {
    child: Child,
    steps: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(mut command: Command, dir: &Path) -> Self {
        command.args(only("work"));
        command.env(TASK, dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let steps = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, steps, answers }
    }

    fn this_binary(dir: &Path) -> Self {
        Self::start(Command::new(env::current_exe().unwrap()), dir)
    }

    /// Has it done, and answers what came of it.
    fn step(&mut self, step: &str) -> String {
        writeln!(self.steps, "{step}").unwrap();
        let mut line = String::new();
        while !line.starts_with("@ ") {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "it died at {step}");
        }
        line[2..].trim_end().to_owned()
    }

    fn scan(&self, needles: &Needles) -> Vec<Found> {
        scan(self.child.id(), needles)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// What the worker does: nothing, unless another process asks for it.
#[test]
fn work() {
    let Some(dir) = env::var_os(TASK).map(PathBuf::from) else { return };
    let keystore = Arc::new(Keystore::at(dir.join("keys")));
    let options = register(&dir, Cipher::default(), keystore);
    let mut open: Vec<Connection> = Vec::new();
    for step in std::io::stdin().lines() {
        let answer = match step.unwrap().as_str() {
            "open" => {
                let new = || sqlite_tde::open_with(file(&dir), &options).unwrap();
                open.extend((0..3).map(|_| new()));
                open[0].execute_batch("UPDATE t SET a = a + 1").unwrap();
                open[1].execute_batch("BEGIN; UPDATE t SET a = 7; ROLLBACK").unwrap();
                open.iter().for_each(|db| drop(one(db, "SELECT count(b) FROM t")));
                format!("{:?}", memory())
            }
            "lock" => format!("{:?}", open[1].tde_lock("main")),
            "is denied" => loop {
                match open[1].execute_batch("SELECT count(*) FROM t") {
                    Ok(()) => std::thread::sleep(Duration::from_millis(5)),
                    Err(error) => break sqlite_tde::Error::from(error).to_string(),
                }
            },
            "close" => {
                open.clear();
                String::new()
            }
            step => panic!("{step}?"),
        };
        println!("@ {answer}");
    }
}

#[test]
fn keys_that_were_given_up_are_nowhere_in_memory() {
    for (mode, cipher) in CASES {
        for last in ["lock", "close", "denial"] {
            let dir = tempfile::tempdir().unwrap();
            let needles = create(dir.path(), mode, cipher);
            let mut worker = Worker::this_binary(dir.path());
            worker.step("open");
            let there = worker.scan(&needles);
            for key in needles.in_use(mode) {
                assert!(there.iter().any(|found| found.key == key), "{mode}: {key}: {there:?}");
            }
            match last {
                "denial" => {
                    let keystore = Keystore::at(dir.path().join("keys"));
                    keystore.set_enabled("key", 1, false).unwrap();
                    let answer = worker.step("is denied");
                    assert!(answer.contains("inaccessible"), "{answer}");
                }
                step => drop(worker.step(step)),
            }
            let left = worker.scan(&needles);
            assert!(left.is_empty(), "{mode}, {cipher:?}, {last}: {left:#?}");
        }
    }
}

/// In the locked blocks that no core dump has, and nowhere else: not on the stack, not on the heap.
#[test]
fn keys_in_use_lie_where_neither_swap_nor_core_dumps_get_them() {
    for (mode, cipher) in CASES {
        let dir = tempfile::tempdir().unwrap();
        let needles = create(dir.path(), mode, cipher);
        let mut worker = Worker::this_binary(dir.path());
        let answer = worker.step("open");
        assert!(answer.contains("swappable: 0, dumpable: 0"), "{answer}");
        let mut elsewhere = worker.scan(&needles);
        elsewhere.retain(|found| !found.is_guarded() && !needles.on_heap(found.key));
        assert!(elsewhere.is_empty(), "{mode}, {cipher:?}: {elsewhere:#?}");
    }
}

#[test]
fn a_refused_lock_is_told_and_hinders_nobody() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path(), "DELETE", Cipher::default());
    let program = env::current_exe().unwrap();
    let mut worker = Worker::start(as_nobody(&program, dir.path()), dir.path());
    let answer = worker.step("open");
    assert!(answer.contains("bytes: 4096, swappable: 4096, dumpable: 0"), "{answer}");
}
