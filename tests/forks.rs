//! A forked child and its parent do the same work with the same keys and the same counters. If a
//! nonce came twice, the same plaintext would give the same ciphertext: no piece of what they write
//! may be equal. Each case runs in a process of its own, with one thread.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::provider::{
    Answer, KeyProvider, ProviderError, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{Cipher, TdeConnection};
use sqlite_tde_testkit::process::{Process, TOO_LONG, report};
use sqlite_tde_testkit::vfs::FaultyVfs;
use sqlite_tde_testkit::{Home, one};

const TASK: &str = "SQLITE_TDE_TEST_FORKS";
const PROVIDER_TASK: &str = "SQLITE_TDE_TEST_FORKED_PROVIDER";
const MODES: [&str; 3] = ["DELETE", "PERSIST", "WAL"];
const CIPHERS: [Cipher; 3] = Cipher::ALL;
/// Long enough that no two pieces of ciphertext are equal by chance.
const PIECE: usize = 32;

type Pieces = BTreeSet<Vec<u8>>;

const SETTINGS: &str =
    "PRAGMA page_size=1024; PRAGMA cache_size=5; PRAGMA temp_store=FILE; PRAGMA synchronous=OFF";
const TABLES: &str = "
    CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
    WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 200)
    INSERT INTO t SELECT i, printf('%0300d', i) FROM i;
    CREATE TEMP TABLE x AS SELECT * FROM t";

/// What both do: pages, journal records or frames, statement journals, temporary files.
const WORK: [&str; 6] = [
    "UPDATE t SET b = b || 'y'",
    "SAVEPOINT s",
    "UPDATE t SET b = a || b",
    "UPDATE temp.x SET b = b || a",
    "DELETE FROM t WHERE a % 2",
    "INSERT INTO temp.x SELECT a + 1000, b FROM t",
];

/// What was written since the last call, cut up. Zeros are no ciphertext.
fn pieces(vfs: FaultyVfs) -> Pieces {
    vfs.take_written()
        .iter()
        .flat_map(|write| write.data.chunks_exact(PIECE))
        .filter(|piece| piece.iter().any(|&byte| byte != 0))
        .map(<[u8]>::to_vec)
        .collect()
}

/// Runs `child` in a forked process and `parent` in this one. Answers what each wrote.
#[allow(unsafe_code)]
fn fork(vfs: FaultyVfs, dir: &Path, child: impl FnOnce(), parent: impl FnOnce()) -> [Pieces; 2] {
    let file = dir.join("child");
    vfs.take_written();
    // SAFETY: this process has one thread, so the child finds every lock free.
    match unsafe { libc::fork() } {
        -1 => panic!("fork"),
        0 => {
            child();
            std::fs::write(&file, pieces(vfs).into_iter().flatten().collect::<Vec<_>>()).unwrap();
            // SAFETY: ends the child without the parent's clean-up.
            unsafe { libc::_exit(0) }
        }
        id => {
            parent();
            let mut status = 0;
            // SAFETY: `status` is valid for writing.
            assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
            assert_eq!(status, 0, "the child");
            let child = std::fs::read(&file).unwrap();
            let child: Pieces = child.chunks_exact(PIECE).map(<[u8]>::to_vec).collect();
            [pieces(vfs), child]
        }
    }
}

fn differ(what: &str, [parent, child]: [Pieces; 2]) {
    let wrote = (parent.len(), child.len());
    assert!(wrote.0 > 1000 && wrote.1 > 1000, "{what}: both wrote: {wrote:?}");
    let both = parent.intersection(&child).count();
    assert_eq!(both, 0, "{what}: pieces that both wrote, of {}", parent.len());
}

/// SQLite forbids to use a connection that was inherited. Whoever does so gets errors and a broken
/// database, but must not show what two ciphertexts of one nonce show.
fn inherited(vfs: FaultyVfs, home: &Home, db: &Connection) {
    // After an error the child asks for a lock that the parent keeps until the child has ended.
    db.busy_timeout(Duration::ZERO).unwrap();
    db.execute_batch(&format!("BEGIN; {}", WORK.join(";"))).unwrap();
    let work = || {
        for sql in WORK {
            let _ = db.execute_batch(sql);
        }
    };
    differ("inherited connection", fork(vfs, home.dir.path(), work, work));
}

/// As SQLite wants it: the child opens a connection of its own.
fn own(vfs: FaultyVfs, home: &Home, db: &Connection, path: &Path) {
    let count = |db: &Connection| one(db, "SELECT a FROM counter");
    db.execute_batch("CREATE TABLE counter(a); INSERT INTO counter VALUES(0)").unwrap();
    let work = |db: &Connection| {
        db.busy_timeout(Duration::from_secs(60)).unwrap();
        for step in 0..5 {
            let change = format!(
                "UPDATE counter SET a = a + 1; UPDATE t SET b = printf('%0300d', a + {step})"
            );
            db.execute_batch(&format!("BEGIN IMMEDIATE; {change}; COMMIT")).unwrap();
        }
    };
    let child = || {
        let db = home.open(path);
        db.execute_batch(SETTINGS).unwrap();
        work(&db);
    };
    differ("own connection", fork(vfs, home.dir.path(), child, || work(db)));
    assert_eq!(count(db), Value::Integer(10));
}

/// The task of a process.
#[test]
fn forks() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (mode, cipher) = task.split_once('|').unwrap();
    let vfs = FaultyVfs::new();
    let home = Home::with(|options| options.base(vfs.name).cipher(cipher.parse().unwrap()));
    let path = home.path("main.db");
    let db = home.open(&path);
    vfs.record();
    db.execute_batch(&format!("{SETTINGS}; {TABLES}; PRAGMA journal_mode={mode}")).unwrap();
    own(vfs, &home, &db, &path);
    assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()));
    assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean());
    inherited(vfs, &home, &db);
    report("done");
}

#[test]
fn no_nonce_comes_twice_after_a_fork() {
    for mode in MODES {
        for cipher in CIPHERS {
            let process = Process::start("forks", TASK, &format!("{mode}|{}", cipher.name()));
            let lines =
                process.finish(TOO_LONG).unwrap_or_else(|e| panic!("{mode}, {cipher:?}: {e}"));
            assert_eq!(lines, ["done"], "{mode}, {cipher:?}");
        }
    }
}

/// Keeps what it is given. It runs on threads that a child does not have.
#[derive(Default)]
struct Vault(Mutex<Vec<Vec<u8>>>);

impl KeyProvider for Vault {
    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let mut deks = self.0.lock().unwrap();
        deks.push(request.dek.expose().to_vec());
        Ok(Wrapped::new("1", "kept", vec![deks.len() as u8 - 1]).into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let deks = self.0.lock().unwrap();
        Ok(Secret::from_slice(&deks[usize::from(request.wrapped.blob[0])]).unwrap().into())
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        Ok("1".into())
    }
}

/// The task of a process: providers are asked before a fork, and on both sides after it.
#[test]
#[allow(unsafe_code)]
fn forked_provider() {
    if std::env::var_os(PROVIDER_TASK).is_none() {
        return;
    }
    let home = Home::with(|options| {
        options.provider("vault", Arc::new(Vault::default())).default_protector("vault:key")
    });
    let path = home.path("main.db");
    home.open(&path).execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    // Without a panic: it would end the child's only thread, and that well.
    let read = || home.try_open(&path).is_ok_and(|db| one(&db, "SELECT a FROM t") == 1.into());
    // A job for a thread that is not there is given up after the provider's 10 seconds.
    let asked = || {
        let begun = Instant::now();
        read() && begun.elapsed() < Duration::from_secs(9)
    };
    assert!(asked());
    // SAFETY: the other threads of this process wait for work, and hold no lock meanwhile.
    match unsafe { libc::fork() } {
        -1 => panic!("fork"),
        // SAFETY: ends the child without the parent's clean-up.
        0 => unsafe { libc::_exit(i32::from(!(asked() && asked()))) },
        id => {
            assert!(asked());
            let mut status = 0;
            // SAFETY: `status` is valid for writing.
            assert_eq!(unsafe { libc::waitpid(id, &raw mut status, 0) }, id);
            assert_eq!(status, 0, "the child");
            report("done");
        }
    }
}

#[test]
fn a_child_asks_providers_on_threads_of_its_own() {
    let process = Process::start("forked_provider", PROVIDER_TASK, "1");
    assert_eq!(process.finish(TOO_LONG).unwrap(), ["done"]);
}
