//! A change of the protectors that was cut off between the two copies of the envelope: who opens,
//! who finishes it, and who must not touch it.

use std::path::Path;
use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::{Error, NewProtector, OpenOptions, RotateProtector, TdeConnection};
use sqlite_tde_testkit::service::{self, Service};
use sqlite_tde_testkit::{Home, one};

/// A copy of the envelope, and where the second one begins.
const COPY: usize = 7680;
const REGION: usize = 8192;
const MODES: [&str; 2] = ["DELETE", "WAL"];

fn home() -> (Home, Service) {
    let (first, second) = (Service::default(), Service::default());
    let (a, b) = (first.clone(), second);
    let home = Home::with(|options| {
        options
            .provider("first", Arc::new(a))
            .provider("second", Arc::new(b))
            .default_protector("first:key")
    });
    (home, first)
}

type Change = fn(&Connection);

/// What is done, and the party that is out afterwards, if there is one.
const CHANGES: [(&str, Change, Option<&str>); 4] = [
    ("remove", |db| _ = db.tde_remove_protector("main", "second:b").unwrap(), Some("second:b")),
    (
        "replace",
        |db| {
            _ = db
                .tde_rotate_protector(
                    "main",
                    RotateProtector::to("second:c").in_place_of("second:b"),
                )
                .unwrap();
        },
        Some("second:b"),
    ),
    ("rotate", |db| _ = db.tde_rotate_protector("main", RotateProtector::all()).unwrap(), None),
    ("add", |db| _ = db.tde_add_protector("main", NewProtector::new("second:c")).unwrap(), None),
];

/// A database, and the bytes of it where `change` was cut off after the first copy was synced.
/// Number `n` says how many changes came before, hence which copy is the old one.
fn cut_off(home: &Home, service: &Service, mode: &str, n: usize, change: Change) -> Vec<u8> {
    let path = home.path("a.db");
    let _ = std::fs::remove_file(&path);
    let db = home.open(&path);
    one(&db, &format!("PRAGMA journal_mode={mode}"));
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    db.tde_add_protector("main", NewProtector::new("second:b")).unwrap();
    for _ in 0..n {
        db.tde_set_auto_rotate("main", false).unwrap();
    }
    service.rotate("key");
    db.close().unwrap();
    let before = std::fs::read(&path).unwrap();
    let db = home.open(&path);
    change(&db);
    db.close().unwrap();
    let mut after = std::fs::read(&path).unwrap();
    // The copy that is written first is the one that is not in use: generation 2 is in copy B.
    let old = if n.is_multiple_of(2) { REGION } else { 0 };
    after[old..old + COPY].copy_from_slice(&before[old..old + COPY]);
    assert_ne!(after[..COPY], after[REGION..REGION + COPY]);
    std::fs::write(&path, &after).unwrap();
    after
}

fn are_equal(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap();
    bytes[..COPY] == bytes[REGION..REGION + COPY]
}

fn as_party(home: &Home, party: &str) -> Result<Connection, Error> {
    let options = home.options().protector(party).flags(OpenFlags::SQLITE_OPEN_READ_ONLY);
    sqlite_tde::open_with(home.path("a.db"), &options)
}

fn stale(db: &Connection) -> Vec<char> {
    let found = db.tde_verify("main", |_, _| ()).unwrap();
    assert!(found.bad_envelope_copies.is_empty() && found.bad_pages.is_empty(), "{found:?}");
    assert_eq!(found.is_clean(), found.stale_envelope_copies.is_empty());
    found.stale_envelope_copies
}

#[test]
fn a_removed_party_is_out_and_the_next_writer_finishes() {
    for mode in MODES {
        for (what, change, out) in CHANGES {
            for n in 0..2 {
                let (home, service) = home();
                let at = format!("{mode}, {what}, {n}");
                let bytes = cut_off(&home, &service, mode, n, change);
                let path = home.path("a.db");
                // Whoever only reads is told, and writes nothing.
                let names = if n == 0 { ['B'] } else { ['A'] };
                for extra in ["", "immutable"] {
                    let mut options = home.options().flags(OpenFlags::SQLITE_OPEN_READ_ONLY);
                    if extra == "immutable" {
                        options = home.options().parameter(extra, "1");
                    }
                    let db = sqlite_tde::open_with(&path, &options).unwrap();
                    assert_eq!(stale(&db), names, "{at}");
                    let status = db.tde_status("main").unwrap();
                    assert_eq!(status.faulty_envelope_copies, names, "{at}");
                    if let Some(party) = out {
                        let Value::Text(checks) = one(&db, "PRAGMA tde_check_protectors") else {
                            panic!()
                        };
                        let words = format!("\"name\":\"{party}\"");
                        assert!(
                            checks.contains(&words) && checks.contains("interrupted"),
                            "{at}: {checks}"
                        );
                    }
                    for sql in
                        ["PRAGMA tde_auto_rotate=ON", "SELECT tde_remove_protector('first:key')"]
                    {
                        let refused = db.query_row(sql, [], |_| Ok(())).unwrap_err().to_string();
                        assert!(refused.contains("read-only"), "{at}: {refused}");
                    }
                }
                if let Some(party) = out {
                    let refused = as_party(&home, party).map(|_| ());
                    assert!(matches!(refused, Err(Error::WrongKey(_))), "{at}: {refused:?}");
                }
                as_party(&home, "first:key").unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes, "{at}: a reader has written");

                // An open for writing is enough. The removed party is not the one to do it.
                if let Some(party) = out {
                    assert!(
                        sqlite_tde::open_with(&path, &home.options().protector(party)).is_err()
                    );
                    assert!(std::fs::read(&path).unwrap() == bytes, "{at}");
                }
                let db = home.open(&path);
                assert!(are_equal(&path), "{at}");
                assert!(stale(&db).is_empty(), "{at}");
                assert!(db.tde_status("main").unwrap().faulty_envelope_copies.is_empty());
                assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1), "{at}");
                let in_file = std::fs::read(&path).unwrap();
                let left = in_file.windows(8).any(|window| window == b"second:b");
                assert_eq!(left, out.is_none(), "{at}: the name of the removed party");
            }
        }
    }
}

#[test]
fn a_removal_that_is_said_again_is_finished() {
    for mode in MODES {
        let (home, service) = home();
        let path = home.path("a.db");
        let (_, remove, _) = CHANGES[0];
        // By the next process.
        cut_off(&home, &service, mode, 0, remove);
        let db = home.open(&path);
        for _ in 0..2 {
            let change = db.tde_remove_protector("main", "second:b").unwrap();
            assert!(change.warnings[0].contains("finished an interrupted removal"), "{change:?}");
        }
        let unknown = db.tde_remove_protector("main", "second:x").unwrap_err();
        assert!(unknown.to_string().contains("there is no protector second:x"), "{unknown}");
        let Value::Text(answer) = one(&db, "PRAGMA tde_remove_protector='second:b'") else {
            panic!()
        };
        assert!(answer.contains("finished an interrupted removal"), "{answer}");
        drop(db);
        // By a connection that was open meanwhile, whose process did not make the change.
        let after = cut_off(&home, &service, mode, 0, remove);
        let mut before = after.clone();
        before.copy_within(REGION..REGION + COPY, 0);
        std::fs::write(&path, &before).unwrap();
        let db = home.open(&path);
        assert_eq!(db.tde_protectors("main").unwrap().len(), 2);
        std::fs::write(&path, &after).unwrap();
        let change = db.tde_remove_protector("main", "second:b").unwrap();
        assert!(
            change.warnings[0].contains("finished an interrupted removal"),
            "{mode}: {change:?}"
        );
        assert!(are_equal(&path), "{mode}");
    }
}

/// At the time of opening others write; the first write of the connection itself mends the copies
/// then.
#[test]
fn what_could_not_be_mended_at_once_is_mended_by_the_first_write() {
    for mode in MODES {
        let (home, service) = home();
        let path = home.path("a.db");
        let bytes = cut_off(&home, &service, mode, 0, CHANGES[0].1);
        let mut whole = bytes.clone();
        whole.copy_within(..COPY, REGION);
        std::fs::write(&path, &whole).unwrap();
        let busy = home.open(&path);
        if mode == "DELETE" {
            busy.execute_batch("BEGIN IMMEDIATE").unwrap();
        } else {
            busy.execute_batch("PRAGMA locking_mode=EXCLUSIVE; BEGIN IMMEDIATE").unwrap();
        }
        // The two copies alone: pages and log are in use.
        let overwrite = |from: usize, bytes: &[u8]| {
            use std::os::unix::fs::FileExt;
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&bytes[from..from + COPY], from as u64).unwrap();
            // Closing it would drop the locks of this process.
            std::mem::forget(file);
        };
        overwrite(REGION, &bytes);
        let db = match mode {
            "DELETE" => home.open(&path),
            _ => {
                busy.execute_batch("COMMIT").unwrap();
                drop(busy);
                let db = home.open(&path);
                assert!(are_equal(&path), "{mode}");
                continue_with(&db);
                continue;
            }
        };
        assert!(!are_equal(&path), "{mode}: mended beside a writer");
        assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(1));
        busy.execute_batch("COMMIT").unwrap();
        assert!(!are_equal(&path), "{mode}: mended by a reader");
        continue_with(&db);
        assert!(are_equal(&path), "{mode}");
    }
}

fn continue_with(db: &Connection) {
    db.execute("INSERT INTO t VALUES(2)", []).unwrap();
    assert_eq!(one(db, "PRAGMA integrity_check"), Value::Text("ok".into()));
}

/// Equal copies cost nothing: opening reads as much, writes nothing and syncs nothing.
#[test]
fn a_damaged_copy_is_mended_too() {
    let (home, service) = home();
    let path = home.path("a.db");
    cut_off(&home, &service, "DELETE", 0, CHANGES[0].1);
    drop(home.open(&path));
    let good = std::fs::read(&path).unwrap();
    for at in [0, 100, 4000, REGION, REGION + 100, REGION + COPY - 1, 2 * REGION - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let name = if at < REGION { 'A' } else { 'B' };
        let options = home.options().flags(OpenFlags::SQLITE_OPEN_READ_ONLY);
        let reader = sqlite_tde::open_with(&path, &options).unwrap();
        let found = reader.tde_verify("main", |_, _| ()).unwrap();
        assert_eq!(found.bad_envelope_copies, [name], "byte {at}");
        drop(reader);
        drop(home.open(&path));
        assert!(std::fs::read(&path).unwrap() == good, "byte {at}");
    }
    // A copy of a later format is somebody else's.
    let mut later = good.clone();
    later[REGION + 19] = 2;
    std::fs::write(&path, &later).unwrap();
    drop(home.open(&path));
    assert!(std::fs::read(&path).unwrap() == later);
}

/// A copy of the file whose protector is disabled stays shut, also while the file itself is open.
#[test]
fn a_copy_opens_through_its_own_protector_alone() {
    let (home, service) = home();
    let path = home.path("a.db");
    let db = home.open(&path);
    db.execute_batch("CREATE TABLE t(a)").unwrap();
    drop(db);
    std::fs::copy(&path, home.path("copy.db")).unwrap();
    let db = home.open(&path);
    for (what, change) in [
        ("under another key", "PRAGMA tde_rotate_protector='second:b'"),
        ("under the same one's next version", "PRAGMA tde_rotate_protector='first:key'"),
    ] {
        one(&db, change);
        service.switch(service::State::Denies);
        let refused = home.try_open(&home.path("copy.db")).map(|_| ());
        assert!(matches!(refused, Err(Error::KeyDisabled(_))), "{what}: {refused:?}");
        // The file itself is open, and opens again without a question.
        let calls = service.calls();
        drop(home.open(&path));
        assert_eq!(service.calls(), calls, "{what}");
        service.switch(service::State::Works);
        service.rotate("key");
    }
    drop(sqlite_tde::open_with(home.path("copy.db"), &OpenOptions::new().vfs(&home.vfs)).unwrap());
}
