//! What a provider, a prompt or an error of theirs may do to the connection that waits for it: in
//! safe code nothing reaches it. Providers that panic, hang, or ask to be left alone.
//!
//! A thread-local is the only road by which safe code hands a connection to a function that it does
//! not call itself, since a connection is not `Sync`.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::panic::panic_any;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use sqlite_tde::audit::{AuditLog, AuditOptions, EventKind, entries};
use sqlite_tde::provider::{
    Answer, Cost, KeyProvider, Passphrase, ProviderError, Reason, SecretSource, UnwrapRequest,
    VersionRequest, WaitsFor, WrapRequest, Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{
    AccessPolicy, AuditPolicy, Error, NewProtector, Options, RotateProtector, TdeConnection,
};
use sqlite_tde_testkit::Home;
use sqlite_tde_testkit::process::in_time;
use zeroize::Zeroizing;

thread_local! {
    static CONNECTION: Cell<Option<&'static Connection>> = const { Cell::new(None) };
}

/// How often foreign code ran, and how often it found a connection.
#[derive(Default)]
struct Seen {
    runs: AtomicUsize,
    reached: AtomicUsize,
}

impl Seen {
    /// What foreign code does: all that would pull a file from under the call that waits.
    fn intrude(&self) {
        self.runs.fetch_add(1, Ordering::SeqCst);
        if let Ok(Some(db)) = CONNECTION.try_with(Cell::get) {
            self.reached.fetch_add(1, Ordering::SeqCst);
            for sql in ["DETACH aux", "ATTACH ':memory:' AS aux", "SELECT * FROM t", "VACUUM"] {
                let _ = db.execute_batch(sql);
            }
        }
    }
}

const WORKS: u8 = 0;
const DENIES: u8 = 1;
const PANICS: u8 = 2;

/// Keeps what it is given, and intrudes wherever it runs.
#[derive(Default)]
struct Intruder {
    seen: Arc<Seen>,
    deks: Mutex<Vec<Vec<u8>>>,
    state: AtomicU8,
    newest: AtomicU8,
    requests: Mutex<Vec<String>>,
    patience: Mutex<Option<Duration>>,
}

/// Intrudes when it is dropped.
struct Intruding(Arc<Seen>);

impl Drop for Intruding {
    fn drop(&mut self) {
        self.0.intrude();
    }
}

impl fmt::Debug for Intruding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an error of the service")
    }
}

impl fmt::Display for Intruding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Intruding {}

/// Panics when it is dropped, with another of its kind.
struct Bomb(u8);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 > 0 && !std::thread::panicking() {
            panic_any(Bomb(self.0 - 1));
        }
    }
}

impl Intruder {
    fn ask(&self) -> Result<(), ProviderError> {
        self.seen.intrude();
        match self.state.load(Ordering::SeqCst) {
            PANICS => panic_any(Bomb(2)),
            DENIES => {
                let source = Intruding(Arc::clone(&self.seen));
                let reason = Reason::new("no").caused_by(source).request_id("theirs-2");
                Err(ProviderError::denied(reason))
            }
            _ => Ok(()),
        }
    }
}

impl KeyProvider for Intruder {
    fn kind(&self) -> &str {
        self.seen.intrude();
        "intruder"
    }

    fn waits_for(&self) -> WaitsFor {
        self.seen.intrude();
        WaitsFor::Nothing
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        self.ask()?;
        self.requests.lock().unwrap().push(request.request_id.to_string());
        *self.patience.lock().unwrap() = request.deadline.time_left();
        let mut deks = self.deks.lock().unwrap();
        deks.push(request.dek.expose().to_vec());
        let version = self.newest.load(Ordering::SeqCst).to_string();
        Ok(Answer::with_id(Wrapped::new(version, "kept", vec![deks.len() as u8 - 1]), "theirs-1"))
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        self.ask()?;
        let deks = self.deks.lock().unwrap();
        let dek = deks.get(usize::from(request.wrapped.blob[0]));
        let dek = dek.and_then(|dek| Secret::from_slice(dek));
        dek.map(Answer::from).ok_or_else(|| ProviderError::wrong_key("not kept"))
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        self.ask()?;
        Ok(self.newest.load(Ordering::SeqCst).to_string().into())
    }

    fn derivation(&self, _: &str, _: &Wrapped) -> Option<Cost> {
        self.seen.intrude();
        None
    }

    fn forget(&self) {
        let _ = self.ask();
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        self.seen.intrude();
    }
}

fn policy() -> AccessPolicy {
    let mut policy = AccessPolicy::default();
    policy.revalidate = Some(Duration::ZERO);
    (policy.attempts, policy.retry_delay) = (1, Duration::ZERO);
    policy
}

fn home(intruder: &Arc<Intruder>, change: impl FnOnce(Options) -> Options) -> Home {
    let provider = Arc::clone(intruder);
    Home::with(|options| {
        let seen = Arc::clone(&intruder.seen);
        let ask = move |_: &str| {
            seen.intrude();
            Ok(Zeroizing::new("correct horse".to_owned()))
        };
        let cheap = Cost { memory_kib: 64, iterations: 1, parallelism: 1 };
        let prompt = Passphrase::new(SecretSource::prompt(ask)).cost(cheap);
        change(
            options
                .access(policy())
                .provider("intruder", provider)
                .provider("person", Arc::new(prompt))
                .default_protector("intruder:key"),
        )
    })
}

/// A connection with an encrypted `aux`, which foreign code may find.
fn connect(home: &Home, name: &str) -> &'static Connection {
    let db: &'static Connection = Box::leak(Box::new(home.open(&home.path(name))));
    CONNECTION.set(Some(db));
    let aux = home.uri(&home.path(&format!("{name}.aux")));
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    db.execute("ATTACH ?1 AS aux", [aux]).unwrap();
    db.execute_batch("CREATE TABLE aux.u(a); INSERT INTO aux.u VALUES(1)").unwrap();
    db
}

fn read(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT count(*) FROM aux.u", [], |row| row.get(0))
}

#[test]
fn foreign_code_does_not_reach_the_connection_that_waits_for_it() {
    let words = |answer: Result<(), Error>| answer.map_err(|error| error.to_string());
    type Deed = fn(&Home, &Connection, &Intruder) -> Result<(), Error>;
    let rows: [(&str, Deed); 12] = [
        ("add", |_, db, _| db.tde_add_protector("aux", NewProtector::new("intruder:b")).map(drop)),
        ("add, asking a person", |_, db, _| {
            db.tde_add_protector("aux", NewProtector::new("person:b")).map(drop)
        }),
        ("add in SQL", |_, db, _| {
            let sql = "SELECT tde_add_protector('intruder:c', 'aux')";
            db.query_row(sql, [], |_| Ok(())).map_err(Error::from)
        }),
        ("rotate", |_, db, intruder| {
            intruder.newest.fetch_add(1, Ordering::SeqCst);
            db.tde_rotate_protector("aux", RotateProtector::all()).map(drop)
        }),
        ("status", |_, db, _| db.tde_status("aux").map(drop)),
        ("check", |_, db, _| db.tde_check_protectors("aux").map(drop)),
        ("check again beside a read", |_, db, _| read(db).map(drop).map_err(Error::from)),
        ("lock, and ask in xLock", |_, db, _| {
            db.tde_lock("aux")?;
            read(db).map(drop).map_err(Error::from)
        }),
        ("refuse in xLock", |_, db, intruder| {
            db.tde_lock("aux")?;
            intruder.state.store(DENIES, Ordering::SeqCst);
            let refused = read(db).expect_err("it denies");
            intruder.state.store(WORKS, Ordering::SeqCst);
            Err(refused.into())
        }),
        ("attach", |home, db, _| {
            let other = home.open(&home.path("other.db"));
            other.execute_batch("CREATE TABLE v(a)")?;
            drop(other);
            db.execute("ATTACH ?1 AS other", [home.uri(&home.path("other.db"))])?;
            Ok(db.execute_batch("SELECT * FROM other.v; DETACH other")?)
        }),
        ("create", |home, db, _| {
            db.execute("ATTACH ?1 AS fresh", [home.uri(&home.path("fresh.db"))])?;
            Ok(db.execute_batch("CREATE TABLE fresh.v(a); DETACH fresh")?)
        }),
        ("copy", |home, db, _| {
            Ok(db.execute("VACUUM main INTO ?1", [home.uri(&home.path("copy.db"))]).map(drop)?)
        }),
    ];
    for (what, deed) in rows {
        let intruder = Arc::new(Intruder::default());
        let home = home(&intruder, |options| options);
        let db = connect(&home, "a.db");
        let before = intruder.seen.runs.load(Ordering::SeqCst);
        let answer = words(deed(&home, db, &intruder));
        assert_eq!(answer.is_err(), what.starts_with("refuse"), "{what}: {answer:?}");
        in_time(what, || read(db).ok());
        assert_eq!(intruder.seen.reached.load(Ordering::SeqCst), 0, "{what}: it was reached");
        in_time(what, || {
            read(db).unwrap();
            (intruder.seen.runs.load(Ordering::SeqCst) > before).then_some(())
        });
        CONNECTION.set(None);
    }
}

/// The last one who has a provider may be a file that SQLite closes.
#[test]
fn a_provider_is_dropped_where_it_reaches_no_connection() {
    let intruder = Arc::new(Intruder::default());
    let (seen, weak) = (Arc::clone(&intruder.seen), Arc::downgrade(&intruder));
    let (own, theirs) = (Home::new(), home(&intruder, |options| options));
    drop(intruder);
    let db: &'static Connection = Box::leak(Box::new(own.open(&own.path("a.db"))));
    db.execute("ATTACH ?1 AS aux", [theirs.uri(&theirs.path("aux.db"))]).unwrap();
    db.execute_batch("CREATE TABLE t(a); CREATE TABLE aux.u(a)").unwrap();
    sqlite_tde::register(sqlite_tde_testkit::options(&theirs.vfs).replace(true)).unwrap();
    let before = seen.runs.load(Ordering::SeqCst);
    assert!(weak.upgrade().is_some(), "the open file has it");
    CONNECTION.set(Some(db));
    db.execute_batch("DETACH aux").unwrap();
    in_time("dropped", || weak.upgrade().is_none().then_some(()));
    in_time("ran", || (seen.runs.load(Ordering::SeqCst) > before).then_some(()));
    assert_eq!(seen.reached.load(Ordering::SeqCst), 0);
    CONNECTION.set(None);
}

#[test]
fn a_panic_is_an_error_that_names_the_provider() {
    let intruder = Arc::new(Intruder::default());
    let home = home(&intruder, |options| options);
    let db = connect(&home, "a.db");
    CONNECTION.set(None);
    intruder.state.store(PANICS, Ordering::SeqCst);
    type Deed = fn(&Home, &Connection) -> Result<(), Error>;
    let rows: [(&str, Deed); 6] = [
        ("Rust", |_, db| db.tde_add_protector("aux", NewProtector::new("intruder:b")).map(drop)),
        ("SQL function", |_, db| {
            let sql = "SELECT tde_add_protector('intruder:c', 'aux')";
            db.query_row(sql, [], |_| Ok(())).map_err(Error::from)
        }),
        ("PRAGMA", |_, db| {
            let sql = "PRAGMA aux.tde_add_protector='intruder:d'";
            db.query_row(sql, [], |_| Ok(())).map_err(Error::from)
        }),
        ("newest version", |_, db| {
            db.tde_rotate_protector("aux", RotateProtector::all()).map(drop)
        }),
        ("open", |home, _| {
            home.try_open(&home.path("new.db"))?
                .execute_batch("CREATE TABLE t(a)")
                .map_err(Error::from)
        }),
        ("forget", |_, db| db.tde_lock("aux")),
    ];
    for (what, deed) in rows {
        let error = deed(&home, db).expect_err(what).to_string();
        assert!(error.contains("provider intruder panicked"), "{what}: {error}");
    }
    intruder.state.store(WORKS, Ordering::SeqCst);
    in_time("serves again", || read(db).ok());
}

/// Keeps one key, and may panic when it is asked what unwrapping costs.
#[derive(Default)]
struct CostUnknown {
    dek: Mutex<Vec<u8>>,
    panics: AtomicU8,
    unwrapped: AtomicUsize,
}

impl KeyProvider for CostUnknown {
    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        *self.dek.lock().unwrap() = request.dek.expose().to_vec();
        Ok(Wrapped::new("1", "kept", vec![1]).into())
    }

    fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        self.unwrapped.fetch_add(1, Ordering::SeqCst);
        Ok(Secret::from_slice(&self.dek.lock().unwrap()).unwrap().into())
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        Ok(String::from("1").into())
    }

    fn derivation(&self, _: &str, _: &Wrapped) -> Option<Cost> {
        assert_eq!(self.panics.load(Ordering::SeqCst), 0, "no cost");
        None
    }
}

/// While a database is locked, nothing authenticates its protectors: one whose cost is unknown is
/// not tried, neither to open the database nor to check it.
#[test]
fn a_protector_of_unknown_cost_is_not_tried_while_nothing_authenticates_it() {
    let provider = Arc::new(CostUnknown::default());
    let home = Home::with(|options| {
        options.provider("costly", provider.clone()).default_protector("costly:key")
    });
    let db = home.open(&home.path("a.db"));
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    db.tde_lock("main").unwrap();
    for (panics, tried) in [(1, false), (0, true)] {
        provider.panics.store(panics, Ordering::SeqCst);
        provider.unwrapped.store(0, Ordering::SeqCst);
        let checks = db.tde_check_protectors("main").unwrap();
        assert_eq!(checks.len(), 1, "{checks:?}");
        assert_eq!(provider.unwrapped.load(Ordering::SeqCst) > 0, tried, "panics {panics}");
        let words = checks[0].error.clone().unwrap_or_default();
        assert_eq!(words.contains("provider costly panicked"), !tried, "{words}");
    }
}

#[test]
fn a_panic_in_a_check_is_an_outage_that_counts() {
    for (grace, serves) in [(Duration::ZERO, false), (Duration::MAX, true)] {
        let intruder = Arc::new(Intruder::default());
        let home = home(&intruder, |options| {
            let mut policy = policy();
            policy.grace = grace;
            options.access(policy)
        });
        let db = connect(&home, "a.db");
        CONNECTION.set(None);
        intruder.state.store(PANICS, Ordering::SeqCst);
        if serves {
            let outage = || db.tde_status("aux").unwrap().outage;
            let words = in_time("noted", || {
                read(db).unwrap();
                outage()
            });
            assert!(words.contains("provider intruder panicked"), "{words}");
            // A denial ends the longest grace period, too.
            intruder.state.store(DENIES, Ordering::SeqCst);
        }
        let error = in_time("locked", || read(db).err());
        let words = Error::from(error).to_string();
        let why = if serves { "no" } else { "provider intruder panicked" };
        assert!(words.contains("inaccessible") && words.contains(why), "{words}");
    }
}

/// Holds its calls until it is let go.
#[derive(Default)]
struct Hanging {
    inner: Intruder,
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl Hanging {
    fn set(&self, hangs: bool) {
        *self.hangs.lock().unwrap() = hangs;
        self.changed.notify_all();
    }
}

impl KeyProvider for Hanging {
    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        drop(self.changed.wait_while(self.hangs.lock().unwrap(), |hangs| *hangs).unwrap());
        self.inner.wrap(request)
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        drop(self.changed.wait_while(self.hangs.lock().unwrap(), |hangs| *hangs).unwrap());
        self.inner.unwrap(request)
    }

    fn newest_version(
        &self,
        request: &VersionRequest<'_>,
    ) -> Result<Answer<String>, ProviderError> {
        self.inner.newest_version(request)
    }
}

#[test]
fn calls_that_do_not_return_are_counted_and_harm_no_other_provider() {
    let (hanging, intruder) = (Arc::new(Hanging::default()), Arc::new(Intruder::default()));
    let provider = Arc::clone(&hanging);
    let home = home(&intruder, |options| {
        let mut policy = policy();
        policy.time_out = Duration::from_millis(100);
        policy.revalidate = None;
        options.access(policy).provider("hanging", provider)
    });
    let db = home.open(&home.path("a.db"));
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    hanging.set(true);
    let add = |name: &str| {
        let begun = Instant::now();
        let added = db.tde_add_protector("main", NewProtector::new(name));
        (added.map_err(|error| error.to_string()), begun.elapsed())
    };
    for call in 0..8 {
        let (answer, _) = add("hanging:key");
        let words = answer.expect_err("it hangs");
        assert!(words.contains("did not answer within 100ms"), "call {call}: {words}");
    }
    for _ in 0..20 {
        let (answer, took) = add("hanging:key");
        let words = answer.expect_err("it hangs");
        assert!(words.contains("8 calls to this provider have not returned"), "{words}");
        assert!(took < Duration::from_millis(90), "it waited {took:?}");
    }
    add("intruder:other").0.unwrap();
    hanging.set(false);
    in_time("serves again", || add("hanging:key").0.ok());
}

/// More callers than one provider has places take turns.
#[test]
fn many_callers_of_a_slow_provider_are_all_served() {
    struct Slow(Intruder);
    impl KeyProvider for Slow {
        fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            self.0.wrap(request)
        }
        fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            std::thread::sleep(Duration::from_millis(50));
            self.0.unwrap(request)
        }
        fn newest_version(
            &self,
            request: &VersionRequest<'_>,
        ) -> Result<Answer<String>, ProviderError> {
            self.0.newest_version(request)
        }
    }
    let intruder = Arc::new(Intruder::default());
    let home = home(&intruder, |options| {
        options
            .access(AccessPolicy::default())
            .provider("slow", Arc::new(Slow(Intruder::default())))
            .default_protector("slow:key")
    });
    for n in 0..40 {
        home.open(&home.path(&format!("{n}.db"))).execute_batch("CREATE TABLE t(a)").unwrap();
    }
    std::thread::scope(|scope| {
        for n in 0..40 {
            let home = &home;
            scope.spawn(move || {
                home.open(&home.path(&format!("{n}.db"))).execute_batch("SELECT * FROM t").unwrap();
            });
        }
    });
}

#[test]
fn the_longest_times_are_no_overflow() {
    let intruder = Arc::new(Intruder::default());
    let home = home(&intruder, |options| {
        let mut policy = policy();
        (policy.time_out, policy.open_time_out) = (Duration::MAX, Duration::MAX);
        (policy.retry_delay, policy.grace) = (Duration::MAX, Duration::MAX);
        policy.revalidate = Some(Duration::MAX);
        options.access(policy).auto_rotate(Some(Duration::MAX))
    });
    let db = connect(&home, "a.db");
    assert_eq!(read(db).unwrap(), 1);
    db.tde_add_protector("aux", NewProtector::new("intruder:b")).unwrap();
    assert_eq!(*intruder.patience.lock().unwrap(), None, "no clock gets so far");
    CONNECTION.set(None);
}

#[test]
fn a_request_has_a_deadline_and_a_name_that_the_audit_log_has_too() {
    let intruder = Arc::new(Intruder::default());
    let dir = tempfile::tempdir().unwrap();
    let log = AuditOptions::at(dir.path());
    let opened = Arc::new(AuditLog::open(log.clone()).unwrap());
    let home = home(&intruder, |options| options.audit(opened, AuditPolicy::default()));
    let db = connect(&home, "a.db");
    CONNECTION.set(None);
    let patience = intruder.patience.lock().unwrap().unwrap();
    let limit = AccessPolicy::default().time_out;
    assert!(patience <= limit && patience > limit / 2, "{patience:?}");

    let entries: Vec<_> = entries(&log).unwrap().map(Result::unwrap).collect();
    let wraps = entries.iter().filter(|entry| entry.kind == EventKind::Wrap.name());
    let ids: Vec<_> = wraps
        .map(|entry| (entry.request_id.clone().unwrap(), entry.service_request_id.clone().unwrap()))
        .collect();
    let asked = intruder.requests.lock().unwrap().clone();
    assert!(asked.len() >= 2 && asked[0] != asked[1], "{asked:?}");
    let expected: Vec<_> = asked.into_iter().map(|id| (id, "theirs-1".to_owned())).collect();
    assert_eq!(ids, expected);

    // A refusal has them, too, and the service's own error behind it.
    intruder.state.store(DENIES, Ordering::SeqCst);
    let refused = db.tde_add_protector("main", NewProtector::new("intruder:b"));
    let Err(Error::KeyDisabled(error)) = refused else { panic!("{refused:?}") };
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "an error of the service");
    assert!(source.is::<Intruding>());
    let refusal = sqlite_tde::audit::entries(&log)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.kind == EventKind::Refusal.name());
    let theirs = refusal.map(|entry| entry.service_request_id).last().flatten();
    assert_eq!(theirs.as_deref(), Some("theirs-2"));
}

/// A service that says how long it wants to be left alone is left alone so long, and not waited for
/// where that is long.
#[test]
fn a_service_that_asks_for_a_pause_gets_it() {
    struct Busy(AtomicUsize, Duration);
    impl KeyProvider for Busy {
        fn wrap(&self, _: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Err(ProviderError::unreachable(Reason::new("too many requests").retry_after(self.1)))
        }
        fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            Err(ProviderError::not_here("nothing"))
        }
        fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
            Err(ProviderError::not_here("nothing"))
        }
    }
    for (pause, calls) in [(Duration::from_millis(200), 3), (Duration::from_secs(3600), 1)] {
        let busy = Arc::new(Busy(AtomicUsize::new(0), pause));
        let provider = Arc::clone(&busy);
        let intruder = Arc::new(Intruder::default());
        let home = home(&intruder, |options| {
            let mut policy = AccessPolicy::default();
            policy.retry_delay = Duration::ZERO;
            options.access(policy).provider("busy", provider)
        });
        let db = home.open(&home.path("a.db"));
        db.execute_batch("CREATE TABLE t(a)").unwrap();
        let begun = Instant::now();
        let added = db.tde_add_protector("main", NewProtector::new("busy:key"));
        assert!(matches!(added, Err(Error::ProviderUnreachable(_))), "{added:?}");
        assert_eq!(busy.0.load(Ordering::SeqCst), calls, "{pause:?}");
        assert!(begun.elapsed() >= pause * 2 || calls == 1, "{:?}", begun.elapsed());
    }
}

/// No handler of the host's runs on a thread that a provider is asked on.
#[cfg(target_os = "linux")]
#[test]
fn threads_of_providers_block_all_signals() {
    struct Blocked(Mutex<String>);
    impl KeyProvider for Blocked {
        fn wrap(&self, _: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
            *self.0.lock().unwrap() = mask();
            Err(ProviderError::not_here("nothing"))
        }
        fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
            Err(ProviderError::not_here("nothing"))
        }
        fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
            Err(ProviderError::not_here("nothing"))
        }
    }
    fn mask() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        line.unwrap().trim().to_owned()
    }
    let blocked = Arc::new(Blocked(Mutex::default()));
    let provider = Arc::clone(&blocked);
    let intruder = Arc::new(Intruder::default());
    let home = home(&intruder, |options| options.provider("blocked", provider));
    let before = mask();
    let db = home.open(&home.path("a.db"));
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    db.tde_add_protector("main", NewProtector::new("blocked:key")).unwrap_err();
    assert_eq!(mask(), before, "the host's own thread");
    let found = u64::from_str_radix(&blocked.0.lock().unwrap(), 16).unwrap();
    for signal in [1, 2, 10, 14, 15, 17, 18, 20, 23, 29] {
        assert!(found >> (signal - 1) & 1 == 1, "signal {signal}: {found:x}");
    }
}
