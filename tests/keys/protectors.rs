//! Who may open a database: protectors added, rotated and removed by every road that there is, and
//! what must not be possible.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::config::Policy;
use sqlite_tde::provider::{
    Answer, KeyProvider, Keystore, ProviderError, UnwrapRequest, VersionRequest, WrapRequest,
    Wrapped,
};
use sqlite_tde::secret::Secret;
use sqlite_tde::{Error, NewProtector, OpenOptions, RotateProtector, TdeConnection};
use sqlite_tde_testkit::service::{Service, State};
use sqlite_tde_testkit::{Home, one, one_attempt, rows};

/// A home with a keystore and two services.
fn home() -> (Home, Service, Service) {
    let (first, second) = (Service::default(), Service::default());
    let (a, b) = (first.clone(), second.clone());
    let home = Home::with(|options| {
        options
            .provider("first", Arc::new(a))
            .provider("second", Arc::new(b))
            .default_protector("first:key")
            .access(one_attempt())
    });
    (home, first, second)
}

fn names(db: &Connection) -> Vec<String> {
    db.tde_protectors("main").unwrap().into_iter().map(|p| p.name).collect()
}

fn text(db: &Connection, sql: &str) -> String {
    match one(db, sql) {
        Value::Text(text) => text,
        other => panic!("{sql}: {other:?}"),
    }
}

fn fails(db: &Connection, sql: &str) -> String {
    db.query_row(sql, [], |_| Ok(())).expect_err(sql).to_string()
}

/// Opens the file anew through one protector alone, without anything that this process still knows.
fn opens_through(home: &Home, name: &str, protector: &str) -> Result<i64, Error> {
    let db = sqlite_tde::open_with(home.path(name), &home.options().protector(protector))?;
    Ok(db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?)
}

#[test]
fn every_command_by_every_road() {
    let (home, first, _) = home();
    drop(home.create("aux.db"));
    let db = home.create("main.db");
    db.execute_batch(&format!("ATTACH '{}' AS aux", home.uri(&home.path("aux.db")))).unwrap();
    for (schema, argument) in [("main", ""), ("aux", ", 'aux'")] {
        let pragma = |rest: &str| format!("PRAGMA {schema}.{rest}");
        let state = || -> Vec<(String, String)> {
            let all = db.tde_protectors(schema).unwrap();
            all.into_iter().map(|p| (p.name, p.key_version)).collect()
        };
        let is = |expected: &[(&str, &str)], what: &str| {
            let expected: Vec<(String, String)> =
                expected.iter().map(|&(name, version)| (name.into(), version.into())).collect();
            assert_eq!(state(), expected, "{schema}: {what}");
        };
        let (old, new) = (state()[0].1.clone(), (first.newest() + 1).to_string());
        let now = |name: &'static str| (name, old.as_str());

        text(&db, &pragma("tde_add_protector='second:a'"));
        is(&[now("first:key"), ("second:a", "1")], "PRAGMA add");
        text(&db, &format!("SELECT tde_add_protector('second:b'{argument})"));
        is(&[now("first:key"), ("second:a", "1"), ("second:b", "1")], "function add");
        db.tde_add_protector(schema, NewProtector::new("second:c")).unwrap();
        is(&[now("first:key"), ("second:a", "1"), ("second:b", "1"), ("second:c", "1")], "API add");

        text(&db, &pragma("tde_remove_protector='second:a'"));
        text(&db, &format!("SELECT tde_remove_protector('second:b'{argument})"));
        db.tde_remove_protector(schema, "second:c").unwrap();
        is(&[now("first:key")], "all removed");

        first.rotate("key");
        text(&db, &pragma("tde_rotate_protector"));
        is(&[("first:key", &new)], "PRAGMA rotate");
        text(&db, &format!("SELECT tde_rotate_protector('second:d'{argument})"));
        is(&[("second:d", "1")], "function rotate to another key");
        db.tde_rotate_protector(schema, RotateProtector::to("first:key").in_place_of("second:d"))
            .unwrap();
        is(&[("first:key", &new)], "API rotate back");

        assert_eq!(text(&db, &pragma("tde_auto_rotate")), "on");
        text(&db, &pragma("tde_auto_rotate=OFF"));
        assert_eq!(text(&db, &pragma("tde_auto_rotate")), "off");
        text(&db, &format!("SELECT tde_auto_rotate('on'{argument})"));
        assert!(db.tde_status(schema).unwrap().auto_rotate);

        let argument = argument.trim_start_matches(", ");
        for command in ["tde_status", "tde_protectors", "tde_cipher", "tde_check_protectors"] {
            let by_pragma = text(&db, &pragma(command));
            let by_function = text(&db, &format!("SELECT {command}({argument})"));
            assert_eq!(by_pragma, by_function, "{command}");
        }
        assert!(text(&db, &pragma("tde_check_protectors")).contains("\"matches\":true"));
        text(&db, &pragma("tde_lock"));
        assert_eq!(one(&db, &format!("SELECT count(*) FROM {schema}.t")), Value::Integer(1));
    }
    // What was done to one did not touch the other, and both open anew.
    drop(db);
    for name in ["main.db", "aux.db"] {
        assert_eq!(opens_through(&home, name, "first:key").unwrap(), 1, "{name}");
        assert!(matches!(opens_through(&home, name, "second:d"), Err(Error::WrongKey(_))));
    }
}

/// SQLite prepares a PRAGMA, and may do it again, also where nobody ever steps it.
#[test]
fn prepared_twice_is_done_once() {
    let (home, first, _) = home();
    let db = home.create("a.db");
    let generation = || db.tde_status("main").unwrap().generation;
    first.rotate("key");
    for sql in [
        "PRAGMA tde_rotate_protector",
        "PRAGMA tde_add_protector='second:a'",
        "PRAGMA tde_rotate_protector='second:a'",
        "PRAGMA tde_auto_rotate=OFF",
        "PRAGMA tde_remove_protector='second:a'",
        "EXPLAIN PRAGMA tde_auto_rotate=ON",
    ] {
        drop(db.prepare(sql).unwrap());
        let once = generation();
        for _ in 0..2 {
            drop(db.prepare(sql).unwrap_or_else(|error| panic!("{sql} again: {error}")));
        }
        assert_eq!(generation(), once, "{sql}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (home, first, _) = home();
    let db = home.create("a.db");
    let hex = "0123456789abcdef".repeat(4);
    let before = std::fs::read(home.path("a.db")).unwrap();
    for (sql, words) in [
        ("PRAGMA tde_remove_protector='first:key'", "the last protector"),
        (
            "PRAGMA tde_remove_protector='second:x'",
            "there is no protector second:x; there is first:key",
        ),
        ("PRAGMA tde_remove_protector", "needs the name"),
        ("PRAGMA tde_add_protector", "needs the name"),
        ("PRAGMA tde_add_protector='nobody:key'", "key provider nobody is not set up"),
        ("PRAGMA tde_rotate_protector='nobody:key'", "key provider nobody is not set up"),
        ("PRAGMA tde_auto_rotate=maybe", "expected ON or OFF"),
        ("PRAGMA tde_status=1", "no PRAGMA tde_status that takes a value"),
        ("PRAGMA tde_nonsense", "no PRAGMA tde_nonsense"),
        ("PRAGMA key='correct horse'", "not taken from SQL"),
        ("PRAGMA hexkey='00'", "not taken from SQL"),
        ("PRAGMA rekey='x'", "not taken from SQL"),
        ("PRAGMA tde_key='x'", "not taken from SQL"),
        (&format!("PRAGMA tde_add_protector='{hex}'"), "not taken from SQL"),
        (&format!("PRAGMA tde_rotate_protector=\"x'{hex}'\""), "not taken from SQL"),
        ("SELECT tde_status('nowhere')", "no database is attached as nowhere"),
        ("SELECT tde_status('main', 2)", "too many arguments"),
        ("SELECT tde_add_protector('second:a', 'main', 0, 'soon')", "no time in Unix seconds"),
        ("SELECT tde_remove_protector(NULL)", "needs the name"),
    ] {
        let said = fails(&db, sql);
        assert!(said.contains(words), "{sql}: {said}");
        assert!(!said.contains(&hex) && !said.contains("horse"), "{sql}: {said}");
    }
    for state in [State::Denies, State::IsDown] {
        first.switch(state);
        for sql in ["PRAGMA tde_rotate_protector", "PRAGMA tde_add_protector='first:other'"] {
            fails(&db, sql);
        }
    }
    first.switch(State::Lies);
    first.rotate("key");
    for sql in [
        "PRAGMA tde_rotate_protector",
        "PRAGMA tde_rotate_protector='first:other'",
        "PRAGMA tde_add_protector='first:other'",
    ] {
        assert!(fails(&db, sql).contains("does not give back"), "{sql}");
    }
    assert!(std::fs::read(home.path("a.db")).unwrap() == before, "something changed");
    // A schema that somebody made up must not be able to call them.
    first.switch(State::Works);
    db.execute_batch("CREATE VIEW v AS SELECT tde_rotate_protector()").unwrap();
    assert!(fails(&db, "SELECT * FROM v").contains("unsafe use of tde_rotate_protector"));
    // Nor does a transaction hold its locks while a provider is asked.
    for begin in ["BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT s"] {
        db.execute_batch(begin).unwrap();
        for sql in [
            "PRAGMA tde_rotate_protector",
            "PRAGMA tde_check_protectors",
            "PRAGMA tde_lock",
            "SELECT tde_remove_protector('first:key')",
        ] {
            assert!(fails(&db, sql).contains("within a transaction"), "{begin}: {sql}");
        }
        text(&db, "PRAGMA tde_status");
        db.execute_batch("ROLLBACK").unwrap();
    }
}

#[test]
fn there_are_at_most_eight() {
    let (home, ..) = home();
    let db = home.create("a.db");
    for n in 1..8 {
        db.tde_add_protector("main", NewProtector::new(format!("second:{n}"))).unwrap();
    }
    let error = db.tde_add_protector("main", NewProtector::new("second:8")).unwrap_err();
    assert!(error.to_string().contains("8 protectors"), "{error}");
    for n in 1..8 {
        assert_eq!(opens_through(&home, "a.db", &format!("second:{n}")).unwrap(), 1);
        db.tde_remove_protector("main", &format!("second:{n}")).unwrap();
    }
    assert_eq!(names(&db), ["first:key"]);
}

#[test]
fn a_removed_protector_is_gone_from_the_file() {
    let (home, ..) = home();
    let path = home.path("a.db");
    let db = home.create("a.db");
    let blob = |bytes: &[u8]| bytes.windows(8).filter(|window| window == b"second:a").count();
    db.tde_add_protector("main", NewProtector::new("second:a")).unwrap();
    assert_eq!(blob(&std::fs::read(&path).unwrap()), 2, "a name in each copy");
    assert_eq!(opens_through(&home, "a.db", "second:a").unwrap(), 1);
    db.tde_remove_protector("main", "second:a").unwrap();
    assert_eq!(blob(&std::fs::read(&path).unwrap()), 0);
    drop(db);
    assert!(matches!(opens_through(&home, "a.db", "second:a"), Err(Error::WrongKey(_))));
}

#[test]
fn a_protector_may_only_read_or_end() {
    let (home, ..) = home();
    for mode in ["DELETE", "WAL"] {
        let name = format!("{mode}.db");
        let db = home.create(&name);
        one(&db, &format!("PRAGMA journal_mode={mode}"));
        let auditor = NewProtector::new("second:auditor").read_only(true);
        db.tde_add_protector("main", auditor.clone()).unwrap();
        assert!(!db.tde_add_protector("main", auditor).unwrap().changed, "again");
        let error = db.tde_add_protector("main", NewProtector::new("second:auditor"));
        assert!(error.unwrap_err().to_string().contains("other rights"));
        let last = db.tde_remove_protector("main", "first:key").unwrap_err();
        assert!(last.to_string().contains("last protector that may write"), "{last}");
        let past = NewProtector::new("second:ended")
            .not_after(UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        let past = db.tde_add_protector("main", past).unwrap_err();
        assert!(past.to_string().contains("end is in the past"), "{past}");
        add_ended(&db, "second:ended");
        assert!(matches!(
            opens_through(&home, &name, "second:ended"),
            Err(Error::KeyDisabled(words)) if words.to_string().contains("ended")
        ));

        // Also beside a connection of this process that may do all.
        for beside in [Some(db), None] {
            let options = home.options().protector("second:auditor");
            let reader = sqlite_tde::open_with(home.path(&name), &options).unwrap();
            assert_eq!(one(&reader, "SELECT count(*) FROM t"), Value::Integer(1));
            let write = reader.execute("INSERT INTO t VALUES(2)", []).unwrap_err();
            assert_eq!(write.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly), "{mode}");
            for sql in [
                "PRAGMA tde_rotate_protector",
                "PRAGMA tde_add_protector='second:more'",
                "PRAGMA tde_remove_protector='first:key'",
                "PRAGMA tde_auto_rotate=OFF",
            ] {
                assert!(fails(&reader, sql).contains("read-only protector"), "{mode}: {sql}");
            }
            // What it keeps others from is nothing.
            if let Some(db) = beside {
                db.execute("INSERT INTO t VALUES(2)", []).unwrap();
                db.execute("DELETE FROM t WHERE a = 2", []).unwrap();
            }
        }
    }
}

/// Adds a protector, and waits until its time is over.
fn add_ended(db: &Connection, name: &str) {
    let end = SystemTime::now() + Duration::from_secs(2);
    db.tde_add_protector("main", NewProtector::new(name).not_after(end)).unwrap();
    while SystemTime::now() <= end {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What has ended counts for nothing, by whichever road the last writer is to go.
#[test]
fn a_protector_that_has_ended_is_no_writer() {
    let (home, ..) = home();
    let db = home.create("a.db");
    add_ended(&db, "second:ended");
    let ended = || {
        let all = db.tde_protectors("main").unwrap();
        let end = all.iter().find(|p| p.name == "second:ended").unwrap().not_after;
        NewProtector::new("second:ended").not_after(end)
    };
    let before = names(&db);
    for beside in ["", "second:auditor"] {
        if !beside.is_empty() {
            let auditor = NewProtector::new(beside).read_only(true);
            db.tde_add_protector("main", auditor).unwrap();
        }
        let auditor = NewProtector::new("second:auditor").read_only(true);
        for (what, refused) in [
            ("remove", db.tde_remove_protector("main", "first:key")),
            ("set", db.tde_set_protectors("main", vec![ended(), auditor])),
            ("set one", db.tde_set_protectors("main", vec![ended()])),
        ] {
            let error = refused.expect_err(what).to_string();
            assert!(error.contains("may write"), "{what} beside {beside:?}: {error}");
        }
        let to = db.tde_rotate_protector(
            "main",
            RotateProtector::to("second:new").in_place_of("second:ended"),
        );
        assert!(to.unwrap_err().to_string().contains("ended"), "rotated in the place of one");
    }
    assert_eq!(names(&db)[..2], before);
    // To take away what has ended is no loss.
    db.tde_remove_protector("main", "second:ended").unwrap();
    assert_eq!(names(&db), ["first:key", "second:auditor"]);
}

#[test]
fn the_least_number_of_protectors_is_of_those_that_serve() {
    let mut least = Policy::default();
    least.min_protectors = 2;
    let service = Service::default();
    let home = Home::with(move |options| {
        options.provider("first", Arc::new(service)).default_protector("first:key").policy(least)
    });
    let db = home.create("a.db");
    db.tde_add_protector("main", NewProtector::new("first:b")).unwrap();
    add_ended(&db, "first:ended");
    let refused = db.tde_remove_protector("main", "first:b").unwrap_err().to_string();
    assert!(refused.contains("asks for 2 protectors, and 1 would be left"), "{refused}");
    db.tde_remove_protector("main", "first:ended").unwrap();
    assert_eq!(names(&db), ["first:key", "first:b"]);
}

/// Two who remove at once, each of which would leave enough alone.
#[test]
fn the_least_number_of_protectors_is_kept_by_two_at_once() {
    let mut least = Policy::default();
    least.min_protectors = 2;
    let service = Service::default();
    let home = Home::with(move |options| {
        options.provider("first", Arc::new(service)).default_protector("first:key").policy(least)
    });
    let db = home.create("a.db");
    for round in 0..30 {
        for name in ["first:b", "first:c"] {
            db.tde_add_protector("main", NewProtector::new(name)).unwrap();
        }
        let barrier = std::sync::Barrier::new(2);
        let remove = |name: &str| {
            let db = home.open(&home.path("a.db"));
            db.tde_status("main").unwrap();
            barrier.wait();
            db.tde_remove_protector("main", name)
        };
        let done = std::thread::scope(|scope| {
            let [b, c] = ["first:b", "first:c"].map(|name| scope.spawn(move || remove(name)));
            [b.join().unwrap(), c.join().unwrap()]
        });
        let left = names(&db);
        assert_eq!(left.len(), 2, "round {round}: {left:?} after {done:?}");
        let words = "asks for 2 protectors, and 1 would be left";
        let refused = done.iter().find_map(|done| done.as_ref().err()).unwrap().to_string();
        assert!(refused.contains(words), "round {round}: {refused}");
    }
    // Nor does another road lead below it.
    let set = |names: &[&str]| {
        let all = names.iter().copied().map(NewProtector::new).collect();
        db.tde_set_protectors("main", all)
    };
    let refused = set(&["first:key"]).unwrap_err().to_string();
    assert!(refused.contains("asks for 2 protectors, and 1 would be left"), "{refused}");
    set(&["first:key", "first:d"]).unwrap();
}

/// Wraps and does not unwrap, as with the public key of another party.
struct Party;

impl KeyProvider for Party {
    fn wrap(&self, _: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        Ok(Wrapped::new("1", "sealed", vec![1]).into())
    }

    fn unwrap(&self, _: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        Err(ProviderError::NotHere("the identity is with the party".into()))
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        Ok("1".into())
    }
}

/// What was not unwrapped here is added with a warning, and the last protector that opens the
/// database here stays.
#[test]
fn a_protector_that_was_not_proven_does_not_stand_alone() {
    let (service, spare) = (Service::default(), Service::default());
    let (a, b) = (service.clone(), spare.clone());
    let home = Home::with(|options| {
        options
            .provider("first", Arc::new(a))
            .provider("second", Arc::new(b))
            .provider("party", Arc::new(Party))
            .default_protector("first:key")
            .access(one_attempt())
    });
    let db = home.create("a.db");
    let add = |new: NewProtector| db.tde_add_protector("main", new).unwrap();
    let remove = |name: &str| db.tde_remove_protector("main", name);
    let change = add(NewProtector::new("party:key"));
    let [warning] = &change.warnings[..] else { panic!("{:?}", change.warnings) };
    assert!(warning.contains("the identity is with the party"), "{warning}");
    let refused = |name: &str| {
        let error = remove(name).unwrap_err().to_string();
        assert!(error.contains("opens the database here"), "{error}");
        assert!(error.contains("the identity is with the party"), "{error}");
    };
    refused("first:key");
    let set = ["party:key", "second:reader"].map(NewProtector::new);
    let set = [set[0].clone(), set[1].clone().read_only(true)];
    let error = db.tde_set_protectors("main", set.to_vec()).unwrap_err().to_string();
    assert!(error.contains("opens the database here"), "{error}");
    // Another one that gave the key in this process serves, whether or not it would do so now.
    assert_eq!(add(NewProtector::new("second:spare")).warnings, [""; 0]);
    assert_eq!(add(NewProtector::new("second:reader").read_only(true)).warnings, [""; 0]);
    spare.switch(State::IsDown);
    remove("first:key").unwrap();
    refused("second:spare");
    drop(db);
    spare.switch(State::Works);
    service.switch(State::Works);

    // In a new process it has to give the key when the other one is to go.
    let db = home.open(&home.path("a.db"));
    db.tde_add_protector("main", NewProtector::new("first:key")).unwrap();
    drop(db);
    let through = home.options().protector("second:spare");
    let db = sqlite_tde::open_with(home.path("a.db"), &through).unwrap();
    let remove = |name: &str| db.tde_remove_protector("main", name);
    service.switch(State::Denies);
    let error = remove("second:spare").unwrap_err().to_string();
    assert!(error.contains("opens the database here"), "{error}");
    service.switch(State::Works);
    remove("second:spare").unwrap();
    assert_eq!(opens_through(&home, "a.db", "first:key").unwrap(), 1);
}

/// Rotating to another key takes the old one away, or says that it does not.
#[test]
fn what_is_to_be_replaced_does_not_stay_without_a_word() {
    let (home, ..) = home();
    let db = home.create("a.db");
    db.tde_add_protector("main", NewProtector::new("second:new")).unwrap();
    for (replace, words) in [
        ("first:key", "cannot replace first:key; remove first:key first"),
        ("nosuch", "there is no protector nosuch; there is first:key, second:new"),
    ] {
        let by_api =
            db.tde_rotate_protector("main", RotateProtector::to("second:new").in_place_of(replace));
        let by_api = by_api.expect_err(replace).to_string();
        let by_sql =
            fails(&db, &format!("SELECT tde_rotate_protector('second:new','main','{replace}')"));
        for said in [by_api, by_sql] {
            assert!(said.contains(words), "{replace}: {said}");
        }
    }
    assert_eq!(names(&db), ["first:key", "second:new"]);
    let same = db
        .tde_rotate_protector("main", RotateProtector::to("second:new").in_place_of("second:new"));
    assert!(!same.unwrap().changed);
}

/// Rotating gives nobody more rights than there were.
#[test]
fn rotating_to_another_key_keeps_the_limits() {
    let end = Some(UNIX_EPOCH + Duration::from_secs(4_000_000_000));
    let (home, ..) = home();
    let db = home.create("a.db");
    for (read_only, not_after) in [(true, None), (false, end), (true, end)] {
        let delegate = NewProtector::new("second:a").read_only(read_only).not_after(not_after);
        db.tde_add_protector("main", delegate).unwrap();
        db.tde_rotate_protector("main", RotateProtector::to("second:b").in_place_of("second:a"))
            .unwrap();
        let all = db.tde_protectors("main").unwrap();
        let new = all.iter().find(|p| p.name == "second:b").unwrap();
        assert_eq!((new.read_only, new.not_after), (read_only, not_after));
        db.tde_remove_protector("main", "second:b").unwrap();
    }
}

/// A connection that could write, and gets its keys back through a protector that may only read.
#[test]
fn rights_are_those_of_the_protector_that_gave_the_keys() {
    for mode in ["DELETE", "WAL"] {
        let (home, first, _) = home();
        let db = home.create("a.db");
        one(&db, &format!("PRAGMA journal_mode={mode}"));
        let auditor = NewProtector::new("second:auditor").read_only(true);
        db.tde_add_protector("main", auditor).unwrap();
        first.switch(State::IsDown);
        db.tde_lock("main").unwrap();
        assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1), "{mode}");
        let write = Error::from(db.execute("INSERT INTO t VALUES(2)", []).unwrap_err());
        assert_eq!(write.sqlite_code(), rusqlite::ffi::SQLITE_READONLY, "{mode}: {write:?}");
        let words = sqlite_tde::last_error().unwrap();
        assert!(words.starts_with("read-only: "), "{mode}: {words}");
        assert!(
            fails(&db, "PRAGMA tde_auto_rotate=OFF").contains("opened through read-only protector"),
            "{mode}"
        );
        first.switch(State::Works);
        db.tde_lock("main").unwrap();
        db.execute("INSERT INTO t VALUES(2)", []).unwrap();
        assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{mode}");
    }
}

#[test]
fn a_name_is_no_key_to_what_another_protector_opened() {
    let (home, first, second) = home();
    let db = home.create("a.db");
    db.tde_add_protector("main", NewProtector::new("second:a")).unwrap();
    drop(db);
    first.switch(State::Denies);
    let holder = sqlite_tde::open_with(home.path("a.db"), &home.options().protector("second:a"));
    let _holder = holder.unwrap();
    let refused = opens_through(&home, "a.db", "first:key");
    assert!(matches!(refused, Err(Error::KeyDisabled(_))), "{refused:?}");
    let calls = second.calls();
    assert_eq!(opens_through(&home, "a.db", "second:a").unwrap(), 1);
    assert_eq!(second.calls(), calls, "asked again for keys that are here");
}

#[test]
fn views_have_a_row_for_each() {
    let (home, ..) = home();
    drop(home.create("aux.db"));
    let db = home.create("main.db");
    db.execute_batch(&format!(
        "ATTACH '{}' AS aux; ATTACH ':memory:' AS plain; SELECT tde_add_protector('second:a', 'aux', 1, 4102444800)",
        home.uri(&home.path("aux.db"))
    ))
    .unwrap();
    let keys = rows(
        &db,
        "SELECT database_name, encryption_state, encryption_state_desc, key_algorithm, key_length,
                encryptor_type, percent_complete, encryption_scan_state_desc,
                create_date > '2020-01-01' AND create_date = set_date AND opened_date >= create_date,
                length(encryptor_thumbprint), length(file_id), error
         FROM tde_database_encryption_keys ORDER BY database_id",
    );
    let encrypted = |name: &str| {
        format!(
            "[Text({name:?}), Integer(3), Text(\"ENCRYPTED\"), Text(\"AES\"), Integer(256), \
             Text(\"service\"), Integer(0), Text(\"NONE\"), Integer(1), Integer(40), Integer(32), Null]"
        )
    };
    let plain = "[Text(\"plain\"), Integer(0), Text(\"NONE\"), Null, Null, Null, Null, Null, Null, \
                 Null, Null, Null]";
    assert_eq!(keys, [encrypted("main"), encrypted("aux"), plain.into()]);
    let protectors = rows(
        &db,
        "SELECT database_name, position, name, provider, key_id, key_version, mechanism, not_after,
                read_only, opened_through FROM tde_key_protectors ORDER BY database_id, position",
    );
    let row = |schema: &str, rest: &str| format!("[Text({schema:?}), {rest}]");
    let first = "Integer(1), Text(\"first:key\"), Text(\"first\"), Text(\"key\"), Text(\"1\"), \
                 Text(\"handle\"), Null, Integer(0), Integer(1)";
    let second = "Integer(2), Text(\"second:a\"), Text(\"second\"), Text(\"a\"), Text(\"1\"), \
                  Text(\"handle\"), Text(\"2100-01-01 00:00:00\"), Integer(1), Integer(0)";
    assert_eq!(protectors, [row("main", first), row("aux", first), row("aux", second)]);
}

#[test]
fn verification_says_how_far_a_protector_goes() {
    let (home, first, second) = home();
    let db = home.create("a.db");
    for name in ["second:a", "keystore:k"] {
        if name == "keystore:k" {
            Keystore::at(home.path("keys")).create("k").unwrap();
        }
        db.tde_add_protector("main", NewProtector::new(name)).unwrap();
    }
    let check = |db: &Connection| {
        let checks = db.tde_check_protectors("main").unwrap();
        let line = |c: &sqlite_tde::ProtectorCheck| {
            [c.configured, c.reachable, c.present, c.unwraps, c.matches]
                .map(|yes| if yes { 'y' } else { '-' })
                .iter()
                .collect::<String>()
        };
        checks.iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(check(&db), ["yyyyy", "yyyyy", "yyyyy"]);
    for (state, expected) in
        [(State::IsDown, "y----"), (State::Denies, "yyy--"), (State::Lies, "yyyy-")]
    {
        second.switch(state);
        assert_eq!(check(&db), ["yyyyy", expected, "yyyyy"], "{state:?}");
    }
    second.switch(State::Works);
    let other = Home::with(|options| {
        options.provider("first", Arc::new(first.clone())).access(one_attempt())
    });
    let elsewhere = other.open(&home.path("a.db"));
    // Another keystore, which is empty, and no second service.
    assert_eq!(check(&elsewhere), ["yyyyy", "-----", "yy---"]);
}

/// Nobody may take the lock beside a journal that a crash left: readers would leave it there.
#[test]
fn a_hot_journal_comes_first() {
    let (home, ..) = home();
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        let (name, copy) = (format!("{mode}.db"), format!("{mode}-copy.db"));
        let db = home.create(&name);
        db.execute_batch(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA cache_size=1;
             WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 200)
             INSERT INTO t SELECT zeroblob(500) FROM i;
             BEGIN; UPDATE t SET a = randomblob(500)"
        ))
        .unwrap();
        for suffix in ["", "-journal"] {
            let from = home.path(&format!("{name}{suffix}"));
            std::fs::copy(from, home.path(&format!("{copy}{suffix}"))).unwrap();
        }
        let crashed = home.open(&home.path(&copy));
        let sql = "PRAGMA tde_add_protector='second:a'";
        assert!(fails(&crashed, sql).contains("rolled back first"), "{mode}");
        // Through the API reading comes first, and so it does here.
        crashed.tde_add_protector("main", NewProtector::new("second:b")).unwrap();
        text(&crashed, sql);
        assert_eq!(names(&crashed), ["first:key", "second:b", "second:a"], "{mode}");
        assert_eq!(one(&crashed, "PRAGMA integrity_check"), Value::Text("ok".into()), "{mode}");
    }
}

/// A read-only file keeps its protectors.
#[test]
fn a_database_that_cannot_be_written_says_so() {
    let (home, first, _) = home();
    drop(home.create("a.db"));
    let uri = OpenOptions::new().vfs(&home.vfs).parameter("immutable", "1");
    let db = sqlite_tde::open_with(home.path("a.db"), &uri).unwrap();
    first.rotate("key");
    let before = std::fs::read(home.path("a.db")).unwrap();
    fails(&db, "PRAGMA tde_rotate_protector");
    assert!(std::fs::read(home.path("a.db")).unwrap() == before);
    assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1));
}

#[test]
fn a_message_escapes_the_names_in_a_file() {
    let (home, ..) = home();
    let db = home.create("a.db");
    db.tde_add_protector("main", NewProtector::new("second:\u{1b}[2J")).unwrap();
    let refused = db.tde_remove_protector("main", "nosuch\u{7}").unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("nosuch\\u{7}; there is first:key, second:\\u{1b}[2J"), "{refused}");
    drop(db);
    let refused = opens_through(&home, "a.db", "second:other").unwrap_err().to_string();
    assert!(refused.contains("second:\\u{1b}[2J does"), "{refused}");
}
