//! Every call of the base VFS may fail while protectors change. A change that fails has changed
//! nothing; one that succeeds is in both copies of the envelope. Where the disk dies in between, so
//! that a change can be neither completed nor taken back, it says that it is unfinished, and the
//! next connection finishes it.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use sqlite_tde::{AccessPolicy, Change, Error, NewProtector, RotateProtector, TdeConnection};
use sqlite_tde_testkit::Home;
use sqlite_tde_testkit::service::Service;
use sqlite_tde_testkit::vfs::{FaultyVfs, Kind};

/// Bytes of one copy of the envelope.
/// A copy of the envelope, and where the second one begins.
const COPY: usize = 7680;
const REGION: usize = 8192;

type Operation = (&'static str, fn(&Connection) -> sqlite_tde::Result<Change>);

const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];
const OPERATIONS: [Operation; 5] = [
    ("add", |db| db.tde_add_protector("main", NewProtector::new("service:new"))),
    ("rotate", |db| db.tde_rotate_protector("main", RotateProtector::all())),
    ("rotate to another", |db| {
        db.tde_rotate_protector(
            "main",
            RotateProtector::to("service:new").in_place_of("service:key"),
        )
    }),
    ("remove", |db| db.tde_remove_protector("main", "service:spare")),
    ("by hand from now on", |db| db.tde_set_auto_rotate("main", false)),
];

fn seen(db: &Connection) -> sqlite_tde::Result<(Vec<(String, String)>, bool)> {
    let status = db.tde_status("main")?;
    let pairs = status.protectors.into_iter().map(|p| (p.name, p.key_version)).collect();
    Ok((pairs, status.auto_rotate))
}

/// One fault in one operation on a copy of `template`. Answers how many calls were made to fail.
fn one(
    home: &Home,
    vfs: &FaultyVfs,
    path: &Path,
    operation: Operation,
    fault: Option<(usize, Kind)>,
) -> Result<usize, String> {
    let dies = matches!(fault, Some((_, Kind::From | Kind::FullFrom)));
    let db = home.open(path);
    let rows = |db: &Connection| {
        db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
            .map_err(|error| error.to_string())
    };
    rows(&db)?;
    let before = seen(&db).map_err(|error| error.to_string())?;
    vfs.clear();
    if let Some((at, kind)) = fault {
        vfs.fail(at, kind);
    }
    let done = operation.1(&db);
    let hits = if fault.is_some() { vfs.clear() } else { 0 };
    match &done {
        Ok(change) if change.changed => {}
        Ok(_) => return Err("nothing was changed".into()),
        Err(Error::Base(_) | Error::Sqlite(_) | Error::Busy(_)) => {}
        Err(Error::EnvelopeDamaged(_) | Error::PageAuthentication { .. }) if hits > 0 => {}
        // The disk died after the first copy was written: it may stand, and is not called done.
        Err(Error::Unfinished { .. }) if dies => {}
        Err(error) => return Err(format!("it failed with {error:?}")),
    }
    if fault.is_none() {
        return Ok(hits);
    }
    // What removes a key is not done while one of the copies still has it.
    let removes = operation.0.contains("rotate") || operation.0 == "remove";
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    if removes && done.is_ok() && bytes[..COPY] != bytes[REGION..REGION + COPY] {
        return Err("it is said to be done, and the copies of the envelope differ".into());
    }
    let (unfinished, stands) = match &done {
        Err(Error::Unfinished { reason: words, .. }) => {
            (true, words.contains("changed, but one envelope copy"))
        }
        _ => (false, false),
    };
    // The same connection, another one, and a process that knows nothing.
    let same = seen(&db).map_err(|error| format!("same connection: {error}"))?;
    let other = seen(&home.open(path)).map_err(|error| format!("other connection: {error}"))?;
    drop(db);
    let db = home.open(path);
    let after = seen(&db).map_err(|error| format!("reopened: {error}"))?;
    if same != after || other != after {
        return Err(format!("{same:?}, {other:?} and {after:?} are seen"));
    }
    if stands && after == before {
        return Err("it is said to stand, and nothing has changed".into());
    }
    if done.is_err() != (after == before) && !unfinished {
        return Err(format!("it answered {done:?}, and the protectors are {after:?}"));
    }
    let found = db.tde_verify("main", |_, _| ()).map_err(|error| error.to_string())?;
    if !found.is_clean() {
        return Err(format!("{found:?}"));
    }
    for check in db.tde_check_protectors("main").map_err(|error| error.to_string())? {
        if !check.matches {
            return Err(format!("{check:?}"));
        }
    }
    rows(&db)?;
    db.execute("INSERT INTO t VALUES(2)", []).map_err(|error| format!("write: {error}"))?;
    Ok(hits)
}

#[test]
fn a_change_that_fails_has_changed_nothing() {
    let service = Service::default();
    let (mut points, mut hit, mut failures) = (0, 0, Vec::new());
    for mode in MODES {
        for operation in OPERATIONS {
            let vfs = FaultyVfs::new();
            let provider = Arc::new(service.clone());
            let mut policy = AccessPolicy::default();
            policy.revalidate = None;
            let home = Home::with(|options| {
                options
                    .base(vfs.name)
                    .provider("service", provider)
                    .default_protector("service:key")
                    .access(policy)
            });
            let template = home.path("template.db");
            let db = home.open(&template);
            db.execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a)")).unwrap();
            db.tde_add_protector("main", NewProtector::new("service:spare")).unwrap();
            drop(db);
            service.rotate("key");
            let path = home.path("copy.db");
            std::fs::copy(&template, &path).unwrap();
            one(&home, &vfs, &path, operation, None).unwrap();
            let calls = vfs.calls();
            for (at, call) in calls.iter().enumerate() {
                for &kind in call.0.kinds() {
                    for suffix in ["", "-tdewal", "-shm", "-journal"] {
                        let _ = std::fs::remove_file(home.path(&format!("copy.db{suffix}")));
                    }
                    std::fs::copy(&template, &path).unwrap();
                    points += 1;
                    match one(&home, &vfs, &path, operation, Some((at, kind))) {
                        Ok(hits) => hit += usize::from(hits > 0),
                        Err(error) => failures.push(format!(
                            "{mode}, {}, call {at} of {}, {call:?}, {kind:?}: {error}",
                            operation.0,
                            calls.len()
                        )),
                    }
                }
            }
        }
    }
    eprintln!("{points} faults, {hit} of them met");
    assert!(hit * 4 >= points * 3, "faults are met: {hit} of {points}");
    assert!(failures.is_empty(), "{} of {points}:\n{}", failures.len(), failures.join("\n"));
}
