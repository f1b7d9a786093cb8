//! Code of the application that runs within a call: progress functions, SQL functions in statements
//! that write, providers that panic, and prompts that use the library again.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::types::Value;
use sqlite_tde::audit::{AuditLog, AuditOptions};
use sqlite_tde::provider::{
    Answer, Cost, KeyProvider, Keystore, Passphrase, ProviderError, SecretSource, UnwrapRequest,
    VersionRequest, WaitsFor, WrapRequest, Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{Error, TdeConnection};
use sqlite_tde_testkit::{Home, one};
use zeroize::Zeroizing;

/// What verifies slice by slice holds nothing between two slices but a read transaction.
#[test]
fn the_progress_of_a_verification_may_use_the_connection() {
    for mode in ["DELETE", "WAL"] {
        let home = Home::new();
        let db = home.open(&home.path("main.db"));
        db.execute("ATTACH ?1 AS aux", [home.uri(&home.path("aux.db"))]).unwrap();
        for schema in ["main", "aux"] {
            db.execute_batch(&format!(
                "PRAGMA {schema}.journal_mode={mode}; CREATE TABLE {schema}.t(a, b);
                 WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 600)
                 INSERT INTO {schema}.t SELECT i, randomblob(3000) FROM i;
                 PRAGMA {schema}.wal_checkpoint(TRUNCATE)"
            ))
            .unwrap();
        }
        let mut calls = 0;
        let found = db.tde_verify("aux", |done, all| {
            assert!(done <= all, "{done} of {all}");
            calls += 1;
            let detached = db.execute_batch("DETACH aux").unwrap_err().to_string();
            assert!(detached.contains("locked"), "{mode}: {detached}");
            db.execute("UPDATE aux.t SET b = randomblob(3000) WHERE a % 50 = ?1", [calls]).unwrap();
            assert_eq!(one(&db, "SELECT count(*) FROM aux.t"), Value::Integer(600));
            db.tde_status("aux").unwrap();
        });
        assert!(found.unwrap().is_clean() && calls > 5, "{mode}: {calls}");
        // A panic in it leaves no lock behind.
        let other = home.open(&home.path("main.db"));
        let stopped =
            catch_unwind(AssertUnwindSafe(|| db.tde_verify("main", |_, _| panic!("enough"))));
        assert!(stopped.is_err());
        other.execute_batch("BEGIN EXCLUSIVE; UPDATE t SET b = 1 WHERE a = 1; COMMIT").unwrap();
        if mode == "WAL" {
            assert_eq!(one(&other, "PRAGMA wal_checkpoint(TRUNCATE)"), Value::Integer(0));
        }
        // Where damage keeps the transaction from beginning, the database may be detached. In WAL
        // mode page 1 is in SQLite's cache.
        if mode == "WAL" {
            continue;
        }
        let path = home.path("aux.db");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[16384 + 200] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut again = false;
        let gone = db.tde_verify("aux", |_, _| {
            if !again {
                again = true;
                db.execute_batch("DETACH aux").unwrap();
                db.execute("ATTACH ?1 AS aux", [home.uri(&home.path("main.db"))]).unwrap();
            }
        });
        assert!(
            matches!(&gone, Err(Error::Usage(words)) if words.contains("detached")),
            "{gone:?}"
        );
    }
}

/// A key provider may take its time: nobody waits for the lock of a statement that asks it.
#[test]
fn protectors_are_not_changed_while_a_statement_writes() {
    for mode in ["DELETE", "WAL"] {
        let home = Home::new();
        Keystore::at(home.path("keys")).create("second").unwrap();
        let db = home.open(&home.path("a.db"));
        one(&db, &format!("PRAGMA journal_mode={mode}"));
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
        for sql in [
            "INSERT INTO t SELECT tde_add_protector('second')",
            "UPDATE t SET a = tde_add_protector('second')",
            "CREATE TABLE u AS SELECT tde_add_protector('second')",
            "BEGIN; SELECT tde_add_protector('second'); COMMIT",
        ] {
            let refused = db.execute_batch(sql);
            let _ = db.execute_batch("ROLLBACK");
            let words = refused.expect_err(sql).to_string();
            assert!(words.contains("within a transaction"), "{mode}, {sql}: {words}");
        }
        assert_eq!(db.tde_protectors("main").unwrap().len(), 1, "{mode}");
        one(&db, "SELECT tde_add_protector('second')");
        assert_eq!(db.tde_protectors("main").unwrap().len(), 2, "{mode}");
    }
}

/// A provider that panics is a provider that failed, whoever asks it.
#[test]
fn a_provider_that_panics_is_an_error_that_names_it() {
    struct Panics;
    impl KeyProvider for Panics {
        fn wrap(&self, _: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            panic!("out of order")
        }
        fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            panic!("out of order")
        }
        fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
            panic!("out of order")
        }
    }
    let home = Home::with(|options| options.provider("broken", Arc::new(Panics)));
    let db = home.open(&home.path("a.db"));
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    for sql in ["SELECT tde_add_protector('broken:key')", "PRAGMA tde_add_protector='broken:key'"] {
        let words = db.query_row(sql, [], |_| Ok(())).unwrap_err().to_string();
        assert!(words.contains("broken"), "{sql}: {words}");
    }
    let new = sqlite_tde::NewProtector::new("broken:key");
    let words = db.tde_add_protector("main", new).unwrap_err().to_string();
    assert!(words.contains("broken"), "{words}");
}

const CHEAP: Cost = Cost { memory_kib: 8 << 10, iterations: 1, parallelism: 1 };

/// What a prompt does once, and the words that came of it.
#[derive(Default)]
struct Deed {
    armed: Mutex<Option<Box<dyn FnOnce() -> String + Send>>>,
    told: Mutex<String>,
}

impl Deed {
    fn arm(&self, deed: impl FnOnce() -> String + Send + 'static) {
        *self.armed.lock().unwrap() = Some(Box::new(deed));
    }

    fn told(&self) -> String {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    /// A prompt that does it.
    fn prompt(self: &Arc<Self>, answer: &'static str) -> SecretSource {
        let deed = Arc::clone(self);
        SecretSource::prompt(move |_| {
            // Nothing is held while the deed is done.
            let armed = deed.armed.lock().unwrap().take();
            if let Some(armed) = armed {
                *deed.told.lock().unwrap() = armed();
            }
            Ok(Zeroizing::new(answer.to_owned()))
        })
    }
}

fn words<T>(answer: Result<T, Error>) -> String {
    answer.map_or_else(|error| error.to_string(), |_| "it worked".into())
}

/// A prompt that needs the passphrase that it is asked for is refused; what it was asked for works.
#[test]
fn a_prompt_that_needs_itself_is_refused() {
    let deed = Arc::new(Deed::default());
    let passphrase = Arc::new(Passphrase::new(deed.prompt("secret")).cost(CHEAP));
    let provider = Arc::clone(&passphrase);
    let home =
        Home::with(|options| options.provider("person", provider).default_protector("person:key"));
    let (path, open) = (home.path("a.db"), home.options());
    home.create("a.db");
    passphrase.forget();
    deed.arm(move || words(sqlite_tde::open_with(path, &open)));
    assert_eq!(one(&home.open(&home.path("a.db")), "SELECT a FROM t"), Value::Integer(1));
    let told = deed.told();
    assert!(told.contains("by this very thread"), "{told}");

    let keys = Keystore::at(home.path("others")).cost(CHEAP).passphrase(deed.prompt("secret"));
    keys.create("one").unwrap();
    KeyProvider::forget(&keys);
    let within = keys.clone();
    deed.arm(move || words(within.list()));
    assert_eq!(keys.list().unwrap().len(), 1);
    let told = deed.told();
    assert!(told.contains("by this very thread"), "{told}");
}

/// A provider of the application's that opens a database which needs it, and so on.
#[test]
fn a_provider_that_needs_itself_is_refused() {
    #[derive(Default)]
    struct Recursive {
        dek: Mutex<Option<Secret>>,
        database: Mutex<Option<(PathBuf, sqlite_tde::OpenOptions)>>,
        calls: AtomicUsize,
        told: Mutex<String>,
    }
    impl KeyProvider for Recursive {
        fn waits_for(&self) -> WaitsFor {
            WaitsFor::Person
        }
        fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            *self.dek.lock().unwrap() = Secret::from_slice(request.dek.expose());
            Ok(Wrapped::new("1", "kept", vec![1]).into())
        }
        fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            let calls = self.calls.fetch_add(1, Ordering::SeqCst);
            assert!(calls < 100, "it is asked without end");
            let database = self.database.lock().unwrap().clone();
            if let Some((path, options)) = database
                && let Err(error) = sqlite_tde::open_with(path, &options)
            {
                let mut told = self.told.lock().unwrap();
                if told.is_empty() {
                    *told = error.to_string();
                }
                return Err(ProviderError::NotHere("it needs itself".into()));
            }
            let dek = self.dek.lock().unwrap();
            Ok(Secret::from_slice(dek.as_ref().unwrap().expose()).unwrap().into())
        }
        fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
            Ok("1".into())
        }
    }
    let recursive = Arc::new(Recursive::default());
    let provider = Arc::clone(&recursive);
    let home = Home::with(|options| options.provider("own", provider).default_protector("own:key"));
    home.create("a.db");
    *recursive.database.lock().unwrap() = Some((home.path("a.db"), home.options()));
    let error = home.try_open(&home.path("a.db")).map(drop).unwrap_err().to_string();
    assert!(error.contains("it needs itself"), "{error}");
    let told = recursive.told.lock().unwrap();
    assert!(told.contains("nested 3 deep"), "{told}");
}

fn is_free(lock: &Path) -> String {
    let free = File::open(lock).map(|file| file.try_lock().is_ok());
    format!("{free:?}")
}

/// A person may take long: nobody else waits for a lock meanwhile.
#[test]
fn no_lock_of_a_file_is_held_while_someone_is_asked() {
    let home = Home::new();
    let deed = Arc::new(Deed::default());

    // The first use of a log makes all its files.
    let options = AuditOptions::at(home.path("log"));
    drop(AuditLog::open(options.clone()).unwrap());
    let mut options = options;
    let key = std::fs::read_to_string(home.path("log/audit.key")).unwrap();
    options.key = Some(deed.prompt(Box::leak(key.into_boxed_str())));
    let lock = home.path("log/audit.lock");
    deed.arm(move || is_free(&lock));
    AuditLog::open(options).unwrap();
    assert_eq!(deed.told(), "Ok(true)", "the audit log");

    // Another process changes the passphrase between the question and the lock.
    type Change = fn(&Keystore, &SecretSource) -> Result<(), Error>;
    let changes: [(&str, Change); 3] = [
        ("create", |keys, _| keys.create("two").map(drop)),
        ("change_passphrase", |keys, new| keys.change_passphrase(new)),
        ("remove_passphrase", |keys, _| keys.remove_passphrase()),
    ];
    for (what, change) in changes {
        let dir = home.path(what);
        let keys = |source| Keystore::at(&dir).cost(CHEAP).passphrase(source);
        let (old, new) = (home.path("old"), home.path("new"));
        for (file, text) in [(&old, "old"), (&new, "new")] {
            std::fs::write(file, text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(file, mode).unwrap();
        }
        keys(SecretSource::File(old.clone())).create("one").unwrap();
        let (asked, lock) = (Arc::new(AtomicUsize::new(0)), dir.join("keystore.lock"));
        let (count, other) = (Arc::clone(&asked), keys(SecretSource::File(old)));
        let prompt = SecretSource::prompt(move |_| {
            assert_eq!(is_free(&lock), "Ok(true)");
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            if first {
                other.change_passphrase(&SecretSource::File(new.clone())).unwrap();
            }
            Ok(Zeroizing::new(if first { "old" } else { "new" }.to_owned()))
        });
        let asking = keys(prompt);
        let next = home.path("next");
        std::fs::write(&next, "next").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&next, mode).unwrap();
        change(&asking, &SecretSource::File(next)).unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2, "{what}: asked once for each passphrase");
    }
}
