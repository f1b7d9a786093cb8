//! The database file is emptied, or cut within its envelope or page 1, under a connection that has
//! it open. It never becomes an empty database for that connection, no commit succeeds that nobody
//! could read later, and nothing is written to what is left. What the connection has in its cache
//! or finds in the log it may still answer.

use std::fs::OpenOptions;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, ffi};
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::{Home, run};

const ROWS: i64 = 40;
const CUTS: [u64; 5] = [0, 100, 8192, 16384, 16384 + 300];

/// The journal mode, and what is in the log.
const MODES: [(&str, &str); 6] = [
    ("DELETE", ""),
    ("PERSIST", ""),
    ("MEMORY", ""),
    ("WAL", ""),
    ("WAL", "PRAGMA wal_checkpoint(TRUNCATE)"),
    ("WAL", "INSERT INTO t(b) VALUES('in the log')"),
];

/// What the connection did before, and holds.
const STATES: [(&str, &str); 7] = [
    ("opened", ""),
    ("has read", "SELECT count(*) FROM t"),
    ("has committed", "UPDATE t SET b = b WHERE a = 1"),
    ("reading", "BEGIN; SELECT count(*) FROM t"),
    ("writing", "BEGIN; UPDATE t SET b = 'not committed' WHERE a > 30"),
    ("exclusive", "PRAGMA locking_mode=EXCLUSIVE; SELECT count(*) FROM t"),
    (
        "exclusive, writing",
        "PRAGMA locking_mode=EXCLUSIVE; BEGIN; UPDATE t SET b = 'not' WHERE a > 30",
    ),
];

const ROADS: [&str; 3] = ["main", "read-only", "attached"];

fn value(a: i64) -> String {
    format!("{a:03} ").repeat(200)
}

/// The code of an error that tells of damage.
fn is_telling(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map_or(0, |error| error.extended_code & 0xff);
    [ffi::SQLITE_IOERR, ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB].contains(&code)
}

/// Each row is the right one, or an error that tells of damage.
fn check(db: &Connection, schema: &str, what: &str) {
    for a in [1, 2, ROWS / 2, 30] {
        let sql = format!("SELECT b FROM {schema}.t WHERE a = ?1");
        match db.query_row(&sql, [a], |row| row.get::<_, String>(0)) {
            Ok(found) => assert!(found == value(a), "{what}: row {a}: {found:.20}"),
            Err(error) => assert!(is_telling(&error), "{what}: row {a}: {error}"),
        }
    }
}

fn prepare(home: &Home, path: &Path, mode: &str) {
    let db = home.open(path);
    db.execute_batch(&format!(
        "PRAGMA page_size=1024; PRAGMA journal_mode={mode}; PRAGMA synchronous=OFF;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)"
    ))
    .unwrap();
    for a in 1..=ROWS {
        db.execute("INSERT INTO t VALUES(?1, ?2)", (a, value(a))).unwrap();
    }
}

fn connect(home: &Home, path: &Path, road: &str) -> Connection {
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    let uri = home.uri(path);
    match road {
        "attached" => {
            let db = Connection::open_with_flags(home.uri(&home.path("main.db")), flags).unwrap();
            db.execute_batch("CREATE TABLE IF NOT EXISTS own(a)").unwrap();
            db.execute("ATTACH ?1 AS other", [uri]).unwrap();
            db
        }
        "read-only" => Connection::open_with_flags(format!("{uri}&mode=ro"), flags).unwrap(),
        _ => Connection::open_with_flags(uri, flags).unwrap(),
    }
}

#[test]
fn an_emptied_file_is_no_empty_database_and_takes_no_commit() {
    let mut cases = 0;
    for (mode, log) in MODES {
        let home = Home::new();
        let path = home.path("emptied.db");
        prepare(&home, &path, mode);
        let original = std::fs::read(&path).unwrap();
        for (state, before) in STATES {
            for road in ROADS {
                let writes = before.contains("UPDATE");
                let exclusive = state.starts_with("exclusive");
                if road == "read-only" && (writes || !log.is_empty())
                    || exclusive && !log.is_empty() && road != "main"
                {
                    continue;
                }
                for cut in CUTS {
                    cases += 1;
                    let what = format!("{mode}, {log}, {road}, {state}, cut to {cut}");
                    for end in ["-journal", "-tdewal", "-shm"] {
                        let _ =
                            std::fs::remove_file(path.with_file_name(format!("emptied.db{end}")));
                    }
                    std::fs::write(&path, &original).unwrap();
                    // It keeps the log, where it is not the connection itself that does.
                    let keeper = (!log.is_empty() && !exclusive).then(|| {
                        let keeper = home.open(&path);
                        run(&keeper, &format!("PRAGMA wal_autocheckpoint=0; {log}")).unwrap();
                        keeper
                    });
                    let db = connect(&home, &path, road);
                    let schema = if road == "attached" { "other" } else { "main" };
                    let sql = |sql: &str| {
                        sql.replace("FROM t", &format!("FROM {schema}.t"))
                            .replace("UPDATE t", &format!("UPDATE {schema}.t"))
                            .replace("INTO t", &format!("INTO {schema}.t"))
                    };
                    // Settings ask for nothing of the file, so that `opened` stays so.
                    run(&db, "PRAGMA cache_size=2").unwrap();
                    if exclusive && !log.is_empty() {
                        run(
                            &db,
                            &format!(
                                "PRAGMA locking_mode=EXCLUSIVE; PRAGMA wal_autocheckpoint=0; {log}"
                            ),
                        )
                        .unwrap();
                    }
                    run(&db, &sql(before)).unwrap_or_else(|error| panic!("{what}: {error}"));
                    OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
                    let left = std::fs::read(&path).unwrap();
                    check(&db, schema, &what);
                    for more in [
                        "COMMIT",
                        "INSERT INTO t(b) VALUES('later')",
                        "BEGIN; INSERT INTO t(b) SELECT b FROM t; COMMIT",
                    ] {
                        if more == "COMMIT" && db.is_autocommit() {
                            continue;
                        }
                        let wrote = more != "COMMIT" || writes;
                        match run(&db, &sql(more)) {
                            Ok(()) => assert!(!wrote || cut > 16384, "{what}: {more} succeeded"),
                            Err(error) => {
                                assert!(
                                    is_telling(&error) || road == "read-only",
                                    "{what}: {more}: {error}"
                                );
                            }
                        }
                        if !db.is_autocommit() {
                            let _ = run(&db, "ROLLBACK");
                        }
                    }
                    let _ = run(&db, &format!("PRAGMA {schema}.wal_checkpoint(TRUNCATE)"));
                    check(&db, schema, &what);
                    drop(db);
                    drop(keeper);
                    // A transaction that has written before goes on to write until it would commit.
                    if cut <= 16384 && !(before.contains("BEGIN") && writes) {
                        assert!(std::fs::read(&path).unwrap() == left, "{what}: written to");
                    }
                }
            }
        }
    }
    eprintln!("{cases} cases");
}

/// Under a registration that allows plaintext: a file that was being created by one is created by
/// the other after a rollback. A connection that saw the first goes by what the file is now.
#[test]
fn a_creation_that_was_rolled_back_decides_nothing() {
    const BEGIN: &str = "PRAGMA cache_size=1; BEGIN; CREATE TABLE gone(a); \
                         INSERT INTO gone VALUES(zeroblob(100000))";
    let open = |uri: &str| {
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(uri, flags).unwrap()
    };
    for first_is_plain in [true, false] {
        for then in ["the other kind", "this connection"] {
            let what = format!("plaintext first: {first_is_plain}, then {then}");
            let home = Home::with(|options| options.allow_plaintext(true));
            let path = home.path("anew.db");
            let (tde, plain) = (home.uri(&path), format!("file:{}?vfs=unix", path.display()));
            let (one, other) = if first_is_plain { (&plain, &tde) } else { (&tde, &plain) };
            let first = open(one);
            run(&first, BEGIN).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() > 50_000, "{what}: nothing spilled");
            if first_is_plain {
                // SQLite writes page 1 when it commits, and a commit may fail after that.
                run(&first, "COMMIT").unwrap();
            }
            let seen = open(&tde);
            if first_is_plain {
                OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
            } else {
                run(&first, "ROLLBACK").unwrap();
            }
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "{what}");
            drop(first);
            let creator = if then == "this connection" { &seen } else { &open(other) };
            let created = run(creator, "CREATE TABLE t(a); INSERT INTO t VALUES(7)");
            if first_is_plain && then == "this connection" {
                // SQLite has fixed the layout of its pages when it was opened: there is no room for
                // trailers. It says so, and a new connection is at liberty.
                let error = created.unwrap_err().to_string();
                assert!(error.contains("disk I/O error"), "{what}: {error}");
                let last = sqlite_tde::last_error().map(|error| error.to_string());
                assert!(last.is_some_and(|last| last.contains("reserve")), "{what}");
                drop(seen);
                run(&open(&tde), "CREATE TABLE t(a); INSERT INTO t VALUES(7)").unwrap();
                continue;
            }
            created.unwrap();
            let read = seen.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0));
            assert_eq!(read, Ok(7), "{what}");
            run(&seen, "INSERT INTO t VALUES(8)").unwrap();
            let is_plain = std::fs::read(&path).unwrap().starts_with(b"SQLite format 3");
            assert_eq!(is_plain, then != "this connection" && !first_is_plain, "{what}");
            let count = |uri: &str| {
                open(uri).query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
            };
            assert_eq!(count(if is_plain { &plain } else { &tde }), Ok(2), "{what}");
        }
    }
}

/// One copy of the envelope is damaged under open connections: the other one is enough to go on,
/// and is what the next opening mends from.
#[test]
fn one_damaged_copy_of_the_envelope_stops_nothing() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL"] {
        for locking in ["NORMAL", "EXCLUSIVE"] {
            for copy in [0, 8192] {
                let what = format!("{mode}, {locking}, copy at {copy}");
                let home = Home::new();
                let path = home.path("damaged.db");
                let db = home.open(&path);
                db.execute_batch(&format!(
                    "PRAGMA locking_mode={locking}; PRAGMA journal_mode={mode};
                     PRAGMA cache_size=2; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
                ))
                .unwrap();
                // Closing it would drop the locks of this process.
                let file = std::mem::ManuallyDrop::new(
                    OpenOptions::new().read(true).write(true).open(&path).unwrap(),
                );
                std::os::unix::fs::FileExt::write_all_at(&*file, &[0x5a; 4096], copy).unwrap();
                for sql in [
                    "INSERT INTO t(b) VALUES(zeroblob(50000))",
                    "BEGIN; INSERT INTO t(b) VALUES(zeroblob(50000)); ROLLBACK",
                    "BEGIN; INSERT INTO t(b) VALUES(zeroblob(50000)); COMMIT",
                    "PRAGMA wal_checkpoint(FULL)",
                    "UPDATE t SET b = zeroblob(60000)",
                ] {
                    db.execute_batch(sql).unwrap_or_else(|error| panic!("{what}: {sql}: {error}"));
                }
                drop(db);
                let db = home.open(&path);
                let sum = "SELECT sum(length(b)) FROM t";
                let sum = db.query_row(sum, [], |row| row.get::<_, i64>(0));
                assert_eq!(sum, Ok(120_000), "{what}");
                let found = db.tde_verify("main", |_, _| ()).unwrap();
                assert!(found.is_clean(), "{what}: {found:?}");
            }
        }
    }
}
