//! What the audit log is told while databases are used, and what follows where it cannot be
//! written.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlite_tde::audit::{AuditLog, AuditOptions, entries, verify};
use sqlite_tde::{AccessPolicy, AuditPolicy, Error, NewProtector, RotateProtector, TdeConnection};
use sqlite_tde_testkit::Home;
use sqlite_tde_testkit::service::{Service, State};

struct Place {
    home: Home,
    service: Service,
    log: AuditOptions,
}

fn place(revalidate: Option<Duration>, policy: AuditPolicy) -> Place {
    let service = Service::default();
    let provider = Arc::new(service.clone());
    let dir = tempfile::tempdir().unwrap().keep();
    let log = AuditOptions::at(&dir);
    let mut access = AccessPolicy::default();
    (access.revalidate, access.attempts) = (revalidate, 1);
    let audit = Arc::new(AuditLog::open(log.clone()).unwrap());
    let home = Home::with(|options| {
        options
            .provider("service", provider)
            .default_protector("service:key")
            .access(access)
            .audit(audit, policy)
    });
    Place { home, service, log }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.log.dir);
    }
}

impl Place {
    fn db(&self) -> PathBuf {
        self.home.path("app.db")
    }

    /// Kind, outcome, protector and key version of each entry.
    fn told(&self) -> Vec<String> {
        let line = |entry: sqlite_tde::audit::Entry| {
            let or = |text: Option<String>| text.unwrap_or_else(|| "-".into());
            format!(
                "{} {} {} {}",
                entry.kind,
                entry.outcome,
                or(entry.protector),
                or(entry.key_version)
            )
        };
        entries(&self.log).unwrap().map(|entry| line(entry.unwrap())).collect()
    }

    /// What was told since `since` entries.
    fn since(&self, since: &mut usize) -> Vec<String> {
        let all = self.told();
        let new = all[*since..].to_vec();
        *since = all.len();
        new
    }
}

#[test]
fn everything_done_with_keys_is_told() {
    let place = place(None, AuditPolicy::default());
    let mut seen = 0;
    let db = place.home.open(&place.db());
    assert!(place.since(&mut seen).is_empty(), "a file that is not there yet");
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    let made = ["wrap ok service:key -", "unwrap ok service:key 1", "create ok service:key 1"];
    assert_eq!(place.since(&mut seen), made);

    db.tde_add_protector("main", NewProtector::new("service:spare")).unwrap();
    let added = ["wrap ok service:spare -", "unwrap ok service:spare 1"];
    let both = ["add_protector ok service:spare 1"; 2];
    assert_eq!(place.since(&mut seen), [added, both].concat());

    place.service.rotate("key");
    db.tde_rotate_protector("main", RotateProtector::all()).unwrap();
    let rotated = ["rotate ok service:key 2"; 2];
    let wrapped = ["wrap ok service:key 1", "unwrap ok service:key 2"];
    assert_eq!(place.since(&mut seen), [wrapped, rotated].concat());

    db.tde_remove_protector("main", "service:spare").unwrap();
    assert_eq!(place.since(&mut seen), ["remove_protector ok service:spare 1"; 2]);
    db.tde_remove_protector("main", "service:key").unwrap_err();
    assert_eq!(place.since(&mut seen), ["refusal failed - -"]);

    db.tde_lock("main").unwrap();
    db.query_row("SELECT * FROM t", [], |_| Ok(())).unwrap();
    let again = ["lock ok - -", "unwrap ok service:key 2", "access_restored ok service:key -"];
    assert_eq!(place.since(&mut seen), again);

    let second = place.home.open(&place.db());
    assert_eq!(place.since(&mut seen), ["open ok service:key -"]);
    drop((db, second));
    drop(place.home.open(&place.db()));
    assert_eq!(place.since(&mut seen), ["unwrap ok service:key 2", "open ok service:key -"]);

    for (state, kind) in [(State::Denies, "refusal"), (State::IsDown, "provider_error")] {
        place.service.switch(state);
        place.home.try_open(&place.db()).map(drop).unwrap_err();
        let told = [format!("{kind} failed service:key 2"), "open failed - -".into()];
        assert_eq!(place.since(&mut seen), told);
    }
    place.service.switch(State::Works);

    // What is not authentic, once for each handle.
    let mut bytes = std::fs::read(place.db()).unwrap();
    bytes[16384 + 4096 + 7] ^= 1;
    std::fs::write(place.db(), &bytes).unwrap();
    let db = place.home.open(&place.db());
    for _ in 0..3 {
        db.query_row("SELECT * FROM t", [], |_| Ok(())).unwrap_err();
    }
    drop(db);
    let told = ["unwrap ok service:key 2", "open ok service:key -", "tamper failed - -"];
    assert_eq!(place.since(&mut seen), told);
    bytes[8192 + 100] ^= 1;
    bytes[100] ^= 1;
    std::fs::write(place.db(), &bytes).unwrap();
    place.home.try_open(&place.db()).map(drop).unwrap_err();
    assert_eq!(place.since(&mut seen).last().unwrap(), "tamper failed - -");

    // Who, what and when; and no key.
    assert!(verify(&place.log).unwrap().problem.is_none());
    let all: Vec<_> = entries(&place.log).unwrap().map(Result::unwrap).collect();
    let path = place.db().display().to_string();
    for entry in &all {
        assert_eq!(entry.path.as_ref(), Some(&path), "{entry:?}");
        assert_eq!(entry.pid, std::process::id());
        assert!(entry.program.starts_with("keys") && entry.uid.is_some(), "{entry:?}");
    }
    assert!(all.iter().filter(|entry| entry.kind == "unwrap").all(|e| e.duration.is_some()));
    let text = std::fs::read(place.log.dir.join("audit.jsonl")).unwrap();
    for dek in place.service.deks() {
        let hex: String = dek.iter().map(|byte| format!("{byte:02x}")).collect();
        for needle in [&dek[..], hex.as_bytes()] {
            assert!(!text.windows(needle.len()).any(|window| window == needle), "a key is told");
        }
    }
}

#[test]
fn access_that_is_lost_and_comes_back_is_told() {
    let place = place(Some(Duration::ZERO), AuditPolicy::default());
    let db = place.home.open(&place.db());
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    let until = |kind: &str| {
        let limit = Instant::now() + Duration::from_secs(60);
        while !place.told().iter().any(|line| line.starts_with(kind)) {
            let _ = db.query_row("SELECT count(*) FROM t", [], |_| Ok(()));
            assert!(Instant::now() < limit, "{kind}: {:?}", place.told());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    place.service.switch(State::Denies);
    until("access_lost failed");
    place.service.switch(State::Works);
    until("access_restored ok");
    assert!(verify(&place.log).unwrap().problem.is_none());
}

/// A log that cannot be written keeps keys as they are, and lets databases open, or not.
#[test]
fn what_cannot_be_told_is_not_done() {
    let mut strict = AuditPolicy::default();
    strict.fail_opens = true;
    let mut careless = AuditPolicy::default();
    careless.fail_key_changes = false;
    for (policy, changes, opens) in
        [(AuditPolicy::default(), false, true), (strict, false, false), (careless, true, true)]
    {
        let place = place(None, policy);
        let db = place.home.open(&place.db());
        db.execute_batch("CREATE TABLE t(a)").unwrap();
        let before = std::fs::read(place.db()).unwrap();
        // A directory in the place of the lock file: also the superuser cannot open that.
        let lock = place.log.dir.join("audit.lock");
        let _ = std::fs::remove_file(&lock);
        std::fs::create_dir(&lock).unwrap();
        let what = format!("{policy:?}");

        let new = NewProtector::new("service:spare");
        let added = db.tde_add_protector("main", new);
        place.service.rotate("key");
        let rotated = db.tde_rotate_protector("main", RotateProtector::all());
        let created =
            place.home.open(&place.home.path("new.db")).execute_batch("CREATE TABLE t(a)");
        if changes {
            assert!(added.is_ok() && rotated.is_ok() && created.is_ok(), "{what}");
        } else {
            assert!(matches!(added, Err(Error::Audit(_))), "{what}: {added:?}");
            assert!(matches!(rotated, Err(Error::Audit(_))), "{what}: {rotated:?}");
            assert!(matches!(Error::from(created.unwrap_err()), Error::Audit(_)), "{what}");
            assert!(std::fs::read(place.db()).unwrap() == before, "{what}: something changed");
        }
        let opened = place.home.try_open(&place.db());
        match opens {
            true => assert!(opened.is_ok(), "{what}: {opened:?}"),
            false => assert!(opened.is_err(), "{what}"),
        }
        drop((db, opened));
        assert_eq!(place.home.try_open(&place.db()).is_ok(), opens, "{what}: opened anew");

        std::fs::remove_dir(&lock).unwrap();
        let db = place.home.open(&place.db());
        db.tde_add_protector("main", NewProtector::new("service:last")).unwrap();
        assert!(verify(&place.log).unwrap().problem.is_none(), "{what}");
    }
}
