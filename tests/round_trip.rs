//! Work done through `tde` must leave what the same work leaves on plain SQLite.

use proptest::prelude::*;
use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::{Home, assert_sound, dump, one, plain, rows};

const PAGE_SIZES: [u32; 7] = [1024, 2048, 4096, 8192, 16384, 32768, 65536];
const JOURNAL_MODES: [&str; 6] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"];

/// Work that creates, grows, shrinks, spills and rolls back.
const WORK: &[&str] = &[
    "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c BLOB)",
    "CREATE TABLE parent(id PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE child(id REFERENCES parent)",
    "INSERT INTO parent VALUES('x'), ('y')",
    "INSERT INTO child VALUES('x'), ('y'), ('x')",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
     INSERT INTO t SELECT i, 'row ' || i, zeroblob(i * 7) FROM n",
    "CREATE INDEX tb ON t(b)",
    "UPDATE t SET c = NULL WHERE a % 3 = 0",
    "DELETE FROM t WHERE a % 5 = 0",
    "BEGIN; UPDATE t SET b = b || '!'; ROLLBACK",
    "BEGIN; INSERT INTO t(b) VALUES('kept'); SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT",
    "INSERT INTO t(b, c) VALUES('long', hex(zeroblob(100000)))",
    "CREATE VIRTUAL TABLE words USING fts5(w); INSERT INTO words SELECT b FROM t",
    "CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1); INSERT INTO boxes SELECT a, a, a + 1 FROM t",
    "DROP INDEX tb",
    "VACUUM",
    "CREATE VIEW v AS SELECT b, count(*) AS n FROM t GROUP BY b ORDER BY b DESC",
];

fn work(db: &Connection, what: &str) {
    for sql in WORK {
        // Without a journal a rollback leaves the database undefined, by SQLite's documentation.
        if what.contains("OFF") && sql.contains("ROLLBACK") {
            continue;
        }
        db.execute_batch(sql).unwrap_or_else(|error| panic!("{what}: {sql}: {error}"));
    }
}

#[test]
fn journal_modes_and_page_sizes_equal_plain() {
    let home = Home::new();
    for page_size in PAGE_SIZES {
        for mode in JOURNAL_MODES {
            let what = format!("page size {page_size}, journal mode {mode}");
            let setup = format!(
                "PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}; PRAGMA cache_size=10;"
            );
            let path = home.path(&format!("{page_size}-{mode}.db"));
            let ours = home.open(&path);
            let theirs = plain(&home.path(&format!("{page_size}-{mode}.plain")));
            for db in [&ours, &theirs] {
                db.execute_batch(&setup).unwrap();
                work(db, &what);
            }
            assert_sound(&ours, &what);
            assert_eq!(dump(&ours, "main"), dump(&theirs, "main"), "{what}");
            drop(ours);
            let ours = home.open(&path);
            assert_eq!(one(&ours, "PRAGMA page_size"), Value::Integer(page_size.into()), "{what}");
            assert_eq!(dump(&ours, "main"), dump(&theirs, "main"), "{what}, reopened");
        }
    }
}

#[test]
fn every_suite_and_auto_vacuum_equal_plain() {
    let home = Home::new();
    for cipher in sqlite_tde::Cipher::ALL {
        for auto_vacuum in ["NONE", "FULL", "INCREMENTAL"] {
            let what = format!("{}, auto_vacuum {auto_vacuum}", cipher.name());
            let path = home.path(&what.replace([' ', ','], "-"));
            let ours = sqlite_tde::open_with(&path, &home.options().cipher(cipher)).unwrap();
            let theirs = plain(&path.with_extension("plain"));
            for db in [&ours, &theirs] {
                db.execute_batch(&format!("PRAGMA auto_vacuum={auto_vacuum}")).unwrap();
                work(db, &what);
                db.execute_batch("DELETE FROM t WHERE a < 300; PRAGMA incremental_vacuum").unwrap();
            }
            assert_sound(&ours, &what);
            assert_eq!(dump(&ours, "main"), dump(&theirs, "main"), "{what}");
            assert_eq!(one(&ours, "PRAGMA tde_cipher"), Value::Text(cipher.name().into()));
        }
    }
}

/// Every road by which a database is created must leave room for the trailer.
#[test]
fn every_road_to_a_new_database_reserves_its_bytes() {
    let home = Home::new();
    let source = home.open(&home.path("source.db"));
    work(&source, "source");
    let plain_source = plain(&home.path("source.plain"));
    work(&plain_source, "plain source");

    let small_pages = |options: &sqlite_tde::OpenOptions| {
        let db = sqlite_tde::open_with(home.path("small.db"), options).unwrap();
        db.execute_batch("PRAGMA page_size=1024; CREATE TABLE IF NOT EXISTS t(a)").unwrap();
        db.execute_batch("INSERT INTO t VALUES(1)").unwrap();
        db
    };
    type Create<'a> = &'a dyn Fn(&std::path::Path);
    let roads: [(&str, Create<'_>); 8] = [
        ("open", &|path| work(&home.open(path), "open")),
        ("open without locks", &|path| {
            let options = home.options().parameter("nolock", "1");
            work(&sqlite_tde::open_with(path, &options).unwrap(), "nolock");
        }),
        ("attach", &|path| {
            let attach = format!("ATTACH '{}' AS aux", home.uri(path));
            let db = plain(&home.path("host.plain"));
            db.execute_batch(&attach).unwrap();
            db.execute_batch("CREATE TABLE aux.t(a); INSERT INTO aux.t VALUES(1)").unwrap();
        }),
        ("vacuum into from encrypted", &|path| {
            source.execute_batch(&format!("VACUUM INTO '{}'", home.uri(path))).unwrap();
        }),
        ("vacuum into another page size, locked throughout", &|path| {
            let source = small_pages(&home.options());
            source.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
            source.execute_batch(&format!("VACUUM INTO '{}'", home.uri(path))).unwrap();
        }),
        ("vacuum into another page size, without locks", &|path| {
            let options = home.options().parameter("nolock", "1");
            let source = small_pages(&options);
            source.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
            source.execute_batch(&format!("VACUUM INTO '{}'", options.uri(path).unwrap())).unwrap();
        }),
        ("vacuum into from plain", &|path| {
            plain_source.execute_batch(&format!("VACUUM INTO '{}'", home.uri(path))).unwrap();
        }),
        ("backup from encrypted", &|path| {
            let mut destination = home.open(path);
            let backup = rusqlite::backup::Backup::new(&source, &mut destination).unwrap();
            backup.run_to_completion(7, std::time::Duration::ZERO, None).unwrap();
        }),
    ];
    for (road, create) in roads {
        let path = home.path(&format!("{road}.db"));
        create(&path);
        let db = home.open(&path);
        assert_sound(&db, road);
        assert!(!rows(&db, "SELECT * FROM t").is_empty(), "{road}");
    }
}

/// SQLite ends the backup of an empty database by cutting the other one to a page of its size.
#[test]
fn a_backup_of_an_empty_database_cuts_no_page() {
    for (from, to) in [(1024, 4096), (1024, 65536), (4096, 1024), (4096, 4096), (512, 1024)] {
        for mode in ["DELETE", "WAL"] {
            let home = Home::new();
            let path = home.path("to.db");
            let mut filled = home.open(&path);
            filled.execute_batch(&format!("PRAGMA page_size={to}")).unwrap();
            one(&filled, &format!("PRAGMA journal_mode={mode}"));
            filled
                .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(hex(zeroblob(9000)))")
                .unwrap();
            let empty = home.open(&home.path("from.db"));
            empty.execute_batch(&format!("PRAGMA page_size={from}")).unwrap();
            let done = rusqlite::backup::Backup::new(&empty, &mut filled)
                .and_then(|backup| backup.run_to_completion(7, std::time::Duration::ZERO, None));
            // SQLite does not change the size of pages in WAL. Less than 1024 it does not take.
            let is_done = mode == "DELETE" || from.max(1024) == to;
            let name = format!("{mode}, {from} into {to}: {done:?}");
            assert_eq!(done.is_ok(), is_done, "{name}");
            let count = i64::from(!is_done);
            drop(filled);
            let again = home.open(&path);
            let tables = one(&again, "SELECT count(*) FROM sqlite_schema");
            assert_eq!(tables, rusqlite::types::Value::Integer(count), "{name}");
            assert_eq!(one(&again, "PRAGMA integrity_check"), "ok".to_owned().into(), "{name}");
        }
    }
}

#[test]
fn a_backup_into_plain_is_readable_by_anyone() {
    let home = Home::new();
    let source = home.open(&home.path("source.db"));
    work(&source, "source");
    let path = home.path("copy.plain");
    let mut copy = plain(&path);
    rusqlite::backup::Backup::new(&source, &mut copy)
        .unwrap()
        .run_to_completion(100, std::time::Duration::ZERO, None)
        .unwrap();
    assert_eq!(one(&copy, "PRAGMA integrity_check"), Value::Text("ok".into()));
    assert_eq!(dump(&copy, "main"), dump(&source, "main"));
}

/// SQLite needs 480 usable bytes a page: told of the trailer, it makes the next larger size of 512.
#[test]
fn a_new_database_of_512_byte_pages_gets_1024() {
    let home = Home::new();
    let db = home.open(&home.path("a.db"));
    db.execute_batch(&format!("ATTACH '{}' AS aux", home.uri(&home.path("aux.db")))).unwrap();
    for schema in ["main", "aux"] {
        db.execute_batch(&format!("PRAGMA {schema}.page_size=512; CREATE TABLE {schema}.t(a)"))
            .unwrap();
        let size = one(&db, &format!("PRAGMA {schema}.page_size"));
        assert_eq!(size, Value::Integer(1024), "{schema}");
        assert!(db.tde_verify(schema, |_, _| ()).unwrap().is_clean(), "{schema}");
    }
}

/// What cannot be encrypted in place is refused, says what to do, and leaves the database as it
/// was.
#[test]
fn what_cannot_be_is_refused_with_a_way_out() {
    let home = Home::new();
    let db = home.open(&home.path("a.db"));
    work(&db, "a.db");
    let before = dump(&db, "main");
    for (sql, want) in [
        ("PRAGMA page_size=8192; VACUUM", "VACUUM INTO"),
        ("PRAGMA page_size=512", "1024 to 65536"),
        ("PRAGMA tde_nonsense", "no PRAGMA tde_nonsense"),
    ] {
        let error = db.execute_batch(sql).unwrap_err().to_string();
        assert!(error.contains(want), "{sql}: {error}");
        assert_eq!(dump(&db, "main"), before, "{sql}");
        assert_sound(&db, sql);
    }
    let theirs = plain(&home.path("b.plain"));
    work(&theirs, "b.plain");
    let mut fresh = home.open(&home.path("fresh.db"));
    let error = rusqlite::backup::Backup::new(&theirs, &mut fresh)
        .unwrap()
        .run_to_completion(100, std::time::Duration::ZERO, None)
        .unwrap_err();
    let error = sqlite_tde::Error::from(error).to_string();
    assert!(error.contains("sqlite-tde encrypt"), "{error}");
    assert_eq!(std::fs::metadata(home.path("fresh.db")).unwrap().len(), 0, "nothing was written");
}

#[test]
fn a_transaction_over_two_databases_is_one() {
    let home = Home::new();
    let db = home.open(&home.path("main.db"));
    db.execute_batch(&format!("ATTACH '{}' AS aux", home.uri(&home.path("aux.db")))).unwrap();
    db.execute_batch(
        "CREATE TABLE main.t(a); CREATE TABLE aux.t(a);
         BEGIN; INSERT INTO main.t VALUES(1); INSERT INTO aux.t VALUES(1); COMMIT;
         BEGIN; INSERT INTO main.t VALUES(2); INSERT INTO aux.t VALUES(2); ROLLBACK;",
    )
    .unwrap();
    assert_eq!(rows(&db, "SELECT a FROM main.t"), rows(&db, "SELECT a FROM aux.t"));
    for schema in ["main", "aux"] {
        assert!(db.tde_verify(schema, |_, _| ()).unwrap().is_clean());
    }
    let ids = ["main", "aux"].map(|schema| db.tde_status(schema).unwrap().file_id);
    assert_ne!(ids[0], ids[1], "each database has its own keys");
}

#[derive(Debug, Clone)]
enum Step {
    Insert(i64, Vec<u8>),
    Update(i64, Vec<u8>),
    Delete(i64, i64),
    Begin,
    Commit,
    Rollback,
    Vacuum,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..6000);
    prop_oneof![
        6 => (0..200_i64, bytes.clone()).prop_map(|(key, value)| Step::Insert(key, value)),
        4 => (0..200_i64, bytes).prop_map(|(key, value)| Step::Update(key, value)),
        3 => (0..200_i64, 0..60_i64).prop_map(|(from, len)| Step::Delete(from, from + len)),
        2 => Just(Step::Begin),
        2 => Just(Step::Commit),
        2 => Just(Step::Rollback),
        1 => Just(Step::Vacuum),
        1 => Just(Step::Reopen),
    ]
}

/// Whether the step went well; it must go the same way on both sides.
fn apply(db: &Connection, step: &Step) -> bool {
    match step {
        Step::Insert(key, value) => {
            db.execute("INSERT OR REPLACE INTO t VALUES(?1, ?2)", (key, value)).is_ok()
        }
        Step::Update(key, value) => {
            db.execute("UPDATE t SET v = ?2 WHERE k >= ?1", (key, value)).is_ok()
        }
        Step::Delete(from, to) => {
            db.execute("DELETE FROM t WHERE k BETWEEN ?1 AND ?2", (from, to)).is_ok()
        }
        Step::Begin => db.execute_batch("BEGIN").is_ok(),
        Step::Commit => db.execute_batch("COMMIT").is_ok(),
        Step::Rollback => db.execute_batch("ROLLBACK").is_ok(),
        Step::Vacuum => db.execute_batch("VACUUM").is_ok(),
        Step::Reopen => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_work_equals_plain(
        steps in proptest::collection::vec(step(), 1..40),
        mode in proptest::sample::select(&JOURNAL_MODES[..4]),
        page_size in proptest::sample::select(&PAGE_SIZES[..4]),
    ) {
        let home = Home::new();
        let setup = format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}; PRAGMA cache_size=5;"
        );
        let (path, plain_path) = (home.path("a.db"), home.path("a.plain"));
        let mut ours = home.open(&path);
        let mut theirs = plain(&plain_path);
        for db in [&ours, &theirs] {
            db.execute_batch(&setup).unwrap();
            db.execute_batch("CREATE TABLE t(k INTEGER PRIMARY KEY, v BLOB)").unwrap();
        }
        for step in &steps {
            if matches!(step, Step::Reopen) {
                drop((ours, theirs));
                ours = home.open(&path);
                theirs = plain(&plain_path);
                for db in [&ours, &theirs] {
                    db.execute_batch(&setup).unwrap();
                }
            }
            prop_assert_eq!(apply(&ours, step), apply(&theirs, step), "{:?}", step);
        }
        prop_assert_eq!(dump(&ours, "main"), dump(&theirs, "main"));
        let _ = ours.execute_batch("COMMIT");
        assert_sound(&ours, "at the end");
    }
}
