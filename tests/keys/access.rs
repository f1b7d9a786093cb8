//! A key provider that is down, denies, hangs or comes back while a database is open.
//!
//! Answers come from a thread of their own, so a test waits for what must happen, and only that it
//! does not happen at all makes it fail.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::provider::ProviderError;
use sqlite_tde::{AccessPolicy, Error, NewProtector, OpenOptions, RotateProtector, TdeConnection};
use sqlite_tde_testkit::process::in_time;
use sqlite_tde_testkit::service::{Service, State};
use sqlite_tde_testkit::{Home, code, one};

const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];
const INACCESSIBLE: i32 = 10 | 0x75 << 8;
const HOUR: Duration = Duration::from_secs(3600);

fn policy(revalidate: Option<Duration>, grace: Duration) -> AccessPolicy {
    let mut policy = AccessPolicy::default();
    (policy.revalidate, policy.grace) = (revalidate, grace);
    (policy.attempts, policy.retry_delay) = (2, Duration::from_millis(1));
    policy.time_out = Duration::from_millis(300);
    policy
}

fn home(policy: AccessPolicy) -> (Home, Service, Service) {
    let (first, second) = (Service::default(), Service::default());
    let (a, b) = (first.clone(), second.clone());
    let home = Home::with(|options| {
        options
            .provider("first", Arc::new(a))
            .provider("second", Arc::new(b))
            .default_protector("first:key")
            .access(policy)
    });
    (home, first, second)
}

fn create(home: &Home, path: &Path, mode: &str) -> Connection {
    let db = home.open(path);
    one(&db, &format!("PRAGMA journal_mode={mode}"));
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    db
}

fn read(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
}

fn write(db: &Connection) -> rusqlite::Result<usize> {
    db.execute("INSERT INTO t VALUES(2)", [])
}

#[test]
fn a_denial_ends_access_and_consent_heals_it() {
    for mode in MODES {
        let (home, service, _) = home(policy(Some(Duration::ZERO), HOUR));
        let path = home.path("a.db");
        // One that works, one that does nothing meanwhile, and one whose cache has all pages.
        let db = create(&home, &path, mode);
        let (idle, cached) = (home.open(&path), home.open(&path));
        assert_eq!((read(&idle).unwrap(), read(&cached).unwrap()), (1, 1), "{mode}");

        service.switch(State::Denies);
        let error = in_time("denied", || read(&db).err());
        assert_eq!(code(&error), INACCESSIBLE, "{mode}: {error}");
        let typed = Error::from(error);
        let words = "database inaccessible: key disabled: access was revoked";
        assert!(
            matches!(&typed, Error::Inaccessible { source: Some(ProviderError::Denied(_)), .. })
                && typed.to_string() == words,
            "{typed:?}"
        );
        for (who, db) in [("worker", &db), ("idle", &idle), ("cached", &cached)] {
            assert_eq!(code(&read(db).unwrap_err()), INACCESSIBLE, "{mode}: {who} reads");
            assert_eq!(code(&write(db).unwrap_err()), INACCESSIBLE, "{mode}: {who} writes");
        }
        let new = home.try_open(&path).map(drop).unwrap_err();
        assert!(matches!(new, Error::KeyDisabled(_)), "{mode}: {new:?}");

        service.switch(State::Works);
        in_time("healed", || write(&db).ok());
        for db in [&db, &idle, &cached] {
            assert_eq!(in_time("healed for all", || read(db).ok()), 2, "{mode}");
        }
        assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{mode}");
        assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{mode}");
    }
}

/// A connection that was idle while the keys were locked reads again once another one has got them
/// back, also if each of its transactions comes later than the check that is due.
#[test]
fn an_idle_connection_has_the_keys_that_another_one_got_back() {
    for mode in MODES {
        let (home, ..) = home(policy(Some(Duration::ZERO), HOUR));
        let path = home.path("a.db");
        let (db, idle) = (create(&home, &path, mode), home.open(&path));
        for round in 0..5 {
            read(&idle).unwrap();
            db.tde_lock("main").unwrap();
            read(&db).unwrap();
            // The check that this read began is over then, and the next one is due.
            std::thread::sleep(Duration::from_millis(100));
            let answer = read(&idle);
            assert!(answer.is_ok(), "{mode}, round {round}: {:?}", sqlite_tde::last_error());
        }
    }
}

/// A key that is not the one in use any more is as bad as none.
#[test]
fn another_key_is_a_denial() {
    let (home, service, _) = home(policy(Some(Duration::ZERO), HOUR));
    let db = create(&home, &home.path("a.db"), "DELETE");
    service.switch(State::Lies);
    let error = Error::from(in_time("noticed", || read(&db).err()));
    assert!(error.to_string().contains("returned a different key"), "{error}");
    service.switch(State::Works);
    in_time("healed", || read(&db).ok());
}

#[test]
fn an_outage_is_survived_for_the_grace_period() {
    for state in [State::IsDown, State::Hangs] {
        let (home, service, _) = home(policy(Some(Duration::ZERO), HOUR));
        let db = create(&home, &home.path("a.db"), "WAL");
        service.switch(state);
        let calls = service.calls();
        in_time("it was noticed", || {
            write(&db).unwrap();
            db.tde_status("main").unwrap().outage
        });
        assert!(service.calls() > calls);
        for _ in 0..20 {
            read(&db).unwrap();
            write(&db).unwrap();
        }
        service.switch(State::Works);
        in_time("it is over", || {
            read(&db).unwrap();
            db.tde_status("main").unwrap().outage.is_none().then_some(())
        });
    }
}

/// The longest one that can be said. An answer counts at once all the same.
#[test]
fn a_denial_ends_the_longest_grace_period() {
    // With an interval: their sum is longer than can be said.
    let (home, service, _) = home(policy(Some(Duration::from_millis(20)), Duration::MAX));
    let db = create(&home, &home.path("a.db"), "WAL");
    service.switch(State::IsDown);
    in_time("it was noticed", || {
        write(&db).unwrap();
        db.tde_status("main").unwrap().outage
    });
    service.switch(State::Denies);
    let error = in_time("denied", || read(&db).err());
    assert_eq!(code(&error), INACCESSIBLE);
}

#[test]
fn without_grace_an_outage_ends_access() {
    for (grace, revalidate) in
        [(Duration::ZERO, Duration::ZERO), (Duration::from_millis(50), Duration::ZERO)]
    {
        let (home, service, _) = home(policy(Some(revalidate), grace));
        let db = create(&home, &home.path("a.db"), "DELETE");
        service.switch(State::IsDown);
        let error = in_time("no grace", || read(&db).err());
        assert_eq!(code(&error), INACCESSIBLE);
        assert!(Error::from(error).to_string().contains("connection refused"));
        service.switch(State::Works);
        in_time("healed", || read(&db).ok());
    }
}

#[test]
fn the_next_protector_serves_where_the_first_does_not() {
    for state in [State::IsDown, State::Denies, State::Hangs] {
        let (home, first, second) = home(policy(None, HOUR));
        let path = home.path("a.db");
        let db = create(&home, &path, "DELETE");
        db.tde_add_protector("main", NewProtector::new("second:spare")).unwrap();
        drop(db);
        first.switch(state);
        let db = home.open(&path);
        assert_eq!(read(&db).unwrap(), 1, "{state:?}");
        assert_eq!(db.tde_status("main").unwrap().opened_through, "second:spare");
        drop(db);
        second.switch(State::IsDown);
        let error = home.try_open(&path).map(drop).unwrap_err();
        let expected = match state {
            State::Denies => matches!(error, Error::KeyDisabled(_)),
            _ => matches!(error, Error::ProviderUnreachable(_)),
        };
        assert!(expected, "{state:?}: {error:?}");
        first.switch(State::Works);
        second.switch(State::Works);
    }
}

/// A connection that insists on a protector which is gone is refused, and nobody else because of
/// it.
#[test]
fn a_refusal_of_one_connection_is_not_that_of_others() {
    let (home, ..) = home(policy(None, HOUR));
    let path = home.path("a.db");
    let db = create(&home, &path, "DELETE");
    for name in ["second:spare", "second:gone"] {
        db.tde_add_protector("main", NewProtector::new(name)).unwrap();
    }
    let through =
        |name: &str| sqlite_tde::open_with(&path, &home.options().protector(name)).unwrap();
    let (gone, spare) = (through("second:gone"), through("second:spare"));
    db.tde_remove_protector("main", "second:gone").unwrap();
    for turn in 0..3 {
        db.tde_lock("main").unwrap();
        for again in 0..3 {
            let error = Error::from(read(&gone).unwrap_err());
            assert!(matches!(error, Error::Inaccessible { .. }), "{turn}, {again}: {error:?}");
        }
        for (other, what) in [(&spare, "spare"), (&db, "the first")] {
            let found = read(other);
            assert_eq!(found.as_ref().ok(), Some(&1), "{turn}, {what}: {found:?}");
        }
    }
}

/// Only what may be different the next time is tried again.
#[test]
fn outages_are_tried_again_and_refusals_are_not() {
    for (state, attempts) in [(State::Denies, 1), (State::IsDown, 3)] {
        let mut policy = policy(None, HOUR);
        policy.attempts = 3;
        let (home, service, _) = home(policy);
        let path = home.path("a.db");
        drop(create(&home, &path, "DELETE"));
        service.switch(state);
        let before = service.calls();
        home.try_open(&path).map(drop).unwrap_err();
        assert_eq!(service.calls() - before, attempts, "{state:?}");
    }
}

#[test]
fn a_locked_database_asks_again() {
    for mode in MODES {
        let (home, service, _) = home(policy(None, HOUR));
        let path = home.path("a.db");
        let db = create(&home, &path, mode);
        let other = home.open(&path);
        read(&other).unwrap();
        for locker in [&db, &other] {
            let before = service.calls();
            locker.tde_lock("main").unwrap();
            assert_eq!(service.calls(), before, "locking needs nobody");
            assert_eq!((read(&db).unwrap(), read(&other).unwrap()), (1, 1), "{mode}");
            assert_eq!(service.calls(), before + 1, "{mode}: asked once for all");
        }
        service.switch(State::IsDown);
        db.tde_lock("main").unwrap();
        assert_eq!(code(&write(&other).unwrap_err()), INACCESSIBLE, "{mode}");
        service.switch(State::Works);
        in_time("unlocked", || write(&other).ok());
    }
}

/// What was begun before ends in an error, and is rolled back by whoever comes next.
#[test]
fn a_lock_in_the_middle_of_a_transaction_loses_it_whole() {
    for mode in MODES {
        let (home, ..) = home(policy(None, HOUR));
        let path = home.path("a.db");
        let db = create(&home, &path, mode);
        let other = home.open(&path);
        db.execute_batch(
            "PRAGMA cache_size=1; BEGIN;
             WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 300)
             INSERT INTO t SELECT zeroblob(900) FROM i",
        )
        .unwrap();
        other.tde_lock("main").unwrap();
        let commit = db.execute_batch("UPDATE t SET a = randomblob(900); COMMIT").unwrap_err();
        assert_eq!(code(&commit), INACCESSIBLE, "{mode}: {commit}");
        let _ = db.execute_batch("ROLLBACK");
        assert_eq!(read(&other).unwrap(), 1, "{mode}");
        assert_eq!(read(&db).unwrap(), 1, "{mode}");
        write(&db).unwrap();
        assert_eq!(one(&other, "PRAGMA integrity_check"), Value::Text("ok".into()), "{mode}");
        assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{mode}");
    }
}

/// A provider that takes its time keeps nobody else waiting: it is asked while no lock is held.
#[test]
fn nobody_waits_for_anothers_provider() {
    let mut patient = policy(None, HOUR);
    patient.time_out = HOUR;
    let (home, service, slow) = home(patient);
    for mode in ["", "DELETE", "WAL"] {
        let path = home.path(&format!("{mode}.db"));
        if !mode.is_empty() {
            drop(create(&home, &path, mode));
        }
        service.rotate("key");
        let before = slow.calls();
        slow.switch(State::Hangs);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| match mode {
                "" => {
                    let options = home.options().protector("second:key");
                    let db = sqlite_tde::open_with(&path, &options).unwrap();
                    db.execute_batch("CREATE TABLE t(a)").unwrap();
                }
                _ => {
                    let db = home.open(&path);
                    db.tde_rotate_protector("main", RotateProtector::to("second:key")).unwrap();
                }
            });
            in_time("it was asked", || (slow.calls() > before).then_some(()));
            // Without waiting for anybody.
            let uri = match mode {
                "" => format!("file:{}?vfs=unix", path.display()),
                _ => home.uri(&path),
            };
            let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
            let other = Connection::open_with_flags(uri, flags).unwrap();
            other.busy_timeout(Duration::ZERO).unwrap();
            match mode {
                "" => other.execute_batch("BEGIN IMMEDIATE; ROLLBACK").unwrap(),
                _ => drop(write(&other).unwrap()),
            }
            slow.switch(State::Works);
            asking.join().unwrap();
        });
        let db = sqlite_tde::open_with(&path, &home.options().protector("second:key")).unwrap();
        assert_eq!(read(&db).unwrap(), if mode.is_empty() { 0 } else { 2 }, "{mode}");
    }
}

/// In exclusive mode nothing tells of a transaction, and a denial is still noticed.
#[test]
fn exclusive_connections_are_denied_too() {
    for mode in ["DELETE", "WAL"] {
        let (home, service, _) = home(policy(Some(Duration::ZERO), HOUR));
        let path = home.path("a.db");
        drop(create(&home, &path, mode));
        let db = home.open(&path);
        db.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA cache_size=1").unwrap();
        write(&db).unwrap();
        db.execute_batch("INSERT INTO t SELECT zeroblob(90000)").unwrap();
        service.switch(State::Denies);
        let error = in_time("denied", || {
            db.query_row("SELECT sum(instr(a, x'01')) FROM t", [], |row| row.get::<_, i64>(0)).err()
        });
        assert_eq!(code(&error), INACCESSIBLE, "{mode}: {error}");
        drop(db);
        service.switch(State::Works);
        assert_eq!(read(&home.open(&path)).unwrap(), 3, "{mode}");
    }
}

/// A transaction that stays open is denied, too, at its next read of the file.
#[test]
fn a_denial_is_noticed_within_a_transaction() {
    for mode in MODES {
        for begin in ["", "BEGIN; SELECT count(*) FROM t", "BEGIN IMMEDIATE; DELETE FROM t"] {
            let (home, service, _) = home(policy(Some(Duration::ZERO), HOUR));
            let db = create(&home, &home.path("a.db"), mode);
            db.execute_batch(
                "CREATE TABLE big(a); PRAGMA cache_size=2;
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
                 INSERT INTO big SELECT zeroblob(3000) FROM n",
            )
            .unwrap();
            db.execute_batch(begin).unwrap();
            // Without BEGIN, the statement is the transaction.
            let mut statement = db.prepare("SELECT a FROM big").unwrap();
            let mut rows = statement.query([]).unwrap();
            rows.next().unwrap();
            // What was asked when it began is answered by now.
            std::thread::sleep(Duration::from_millis(100));
            service.switch(State::Denies);
            let mut read = 0;
            let error = loop {
                match rows.next() {
                    Ok(Some(_)) => read += 1,
                    Ok(None) => panic!("{mode}, {begin:?}: {read} rows were read, and no denial"),
                    Err(error) => break error,
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            assert_eq!(code(&error), INACCESSIBLE, "{mode}, {begin:?}: {error}");
            drop(rows);
            drop(statement);
            let _ = db.execute_batch("ROLLBACK");
            service.switch(State::Works);
            assert_eq!(in_time("healed", || self::read(&db).ok()), 1, "{mode}, {begin:?}");
        }
    }
}

#[test]
fn a_newer_key_version_is_taken_up_when_a_database_is_opened() {
    for automatic in [true, false] {
        let service = Service::default();
        let provider = Arc::new(service.clone());
        let home = Home::with(|options| {
            options
                .provider("first", provider)
                .default_protector("first:key")
                .access(policy(None, HOUR))
                .auto_rotate(Some(Duration::ZERO))
        });
        let path = home.path("a.db");
        let db = create(&home, &path, "WAL");
        db.tde_set_auto_rotate("main", automatic).unwrap();
        drop(db);
        service.rotate("key");
        let version = |db: &Connection| db.tde_protectors("main").unwrap()[0].key_version.clone();
        let db = home.open(&path);
        assert_eq!(version(&db), if automatic { "2" } else { "1" });
        // A provider that is down after it gave the keys does not keep the database from opening.
        drop(db);
        service.rotate("key");
        service.switch(State::IsDown);
        let holder = home.try_open(&path);
        assert!(matches!(holder, Err(Error::ProviderUnreachable(_))));
        service.switch(State::Works);
        let read_only = OpenOptions::new().vfs(&home.vfs).flags(OpenFlags::SQLITE_OPEN_READ_ONLY);
        let db = sqlite_tde::open_with(&path, &read_only).unwrap();
        assert_eq!(read(&db).unwrap(), 1);
    }
}

#[test]
fn a_newer_key_version_is_taken_up_while_a_database_is_open() {
    for mode in MODES {
        let service = Service::default();
        let provider = Arc::new(service.clone());
        let home = Home::with(|options| {
            options
                .provider("first", provider)
                .default_protector("first:key")
                .access(policy(Some(Duration::ZERO), HOUR))
                .auto_rotate(Some(Duration::ZERO))
        });
        let db = create(&home, &home.path("a.db"), mode);
        service.rotate("key");
        in_time("taken up", || {
            write(&db).unwrap();
            let all = db.tde_protectors("main").unwrap();
            (all[0].key_version == "2").then_some(())
        });
    }
}
