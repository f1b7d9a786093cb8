//! WAL mode through `tde`, beside the same work on plain SQLite.

use std::fs;
use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde_testkit::{Home, assert_sound, dump, one, plain, rows};

const FILL: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
    INSERT INTO t SELECT i, hex(zeroblob(i * 3)) FROM n;";

fn ok(db: &Connection, sql: &str) {
    db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// What a process that is killed leaves: the files as they are while connections are open.
fn copy_files(from: &Path, to: &Path, endings: &[&str]) {
    for ending in endings {
        let path = |path: &Path| format!("{}{ending}", path.display());
        fs::copy(path(from), path(to)).unwrap_or_else(|error| panic!("{ending}: {error}"));
    }
}

/// Each step on both, and the same answers from both: row counts, checkpoints, data.
#[test]
fn checkpoints_limits_and_modes_answer_as_plain_sqlite_does() {
    const STEPS: &[&str] = &[
        "PRAGMA journal_mode=WAL",
        "PRAGMA wal_autocheckpoint=0",
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
        "INSERT INTO t VALUES(1, zeroblob(5000))",
        "PRAGMA wal_checkpoint",
        "INSERT INTO t VALUES(2, zeroblob(5000))",
        "PRAGMA wal_checkpoint(FULL)",
        "UPDATE t SET b = 'x' WHERE a = 1",
        "PRAGMA wal_checkpoint(RESTART)",
        "INSERT INTO t VALUES(3, hex(zeroblob(20000)))",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "DELETE FROM t WHERE a = 3",
        "PRAGMA wal_checkpoint(NOOP)",
        "PRAGMA wal_autocheckpoint=3",
        "INSERT INTO t VALUES(4, zeroblob(50000))",
        "INSERT INTO t VALUES(5, 1)",
        "PRAGMA journal_size_limit=2000",
        "PRAGMA wal_checkpoint(RESTART)",
        "INSERT INTO t VALUES(6, 2)",
        "PRAGMA journal_mode=DELETE",
        "INSERT INTO t VALUES(7, 3)",
        "PRAGMA journal_mode=WAL",
        "INSERT INTO t VALUES(8, 4)",
        "PRAGMA journal_mode=TRUNCATE",
        "VACUUM",
        "PRAGMA journal_mode=WAL",
        "PRAGMA auto_vacuum=FULL",
        "VACUUM",
        "DELETE FROM t WHERE a < 5",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA page_count",
        "SELECT * FROM t",
    ];
    for page_size in [1024, 4096, 65536] {
        let home = Home::new();
        let dbs = [home.open(&home.path("a.db")), plain(&home.path("a.plain"))];
        for db in &dbs {
            ok(db, &format!("PRAGMA page_size={page_size}"));
        }
        for step in STEPS {
            // The same pages need the same room: plain SQLite reserves as many bytes.
            let [tde, sqlite] = dbs.each_ref().map(|db| rows(db, step));
            if !step.contains("checkpoint") && !step.contains("page_count") {
                assert_eq!(tde, sqlite, "{page_size}: {step}");
            }
            // Busy, frames in the log, frames checkpointed: 48 bytes a page may change the counts.
            let busy = |rows: &[String]| rows.first().map(|row| row.contains("[Integer(0)"));
            assert_eq!(busy(&tde), busy(&sqlite), "{page_size}: {step}");
            assert_sound(&dbs[0], &format!("{page_size}: {step}"));
        }
        let [tde, sqlite] = dbs.each_ref().map(|db| dump(db, "main"));
        assert_eq!(tde, sqlite, "{page_size}");
    }
}

/// A reader keeps a checkpoint from taking the whole log. It then skips a page of which a later
/// frame is in the log, and may write one behind it, past the end of the file.
#[test]
fn checkpoints_that_readers_hold_back_answer_as_plain_sqlite_does() {
    let home = Home::new();
    // Two rounds: new rows, a snapshot, changes of the last rows, a checkpoint, the end of the
    // snapshot.
    for rounds in 0..16 * 16 {
        let [path, plain_path] = [".db", ".plain"].map(|end| home.path(&format!("{rounds}{end}")));
        let (writers, readers) =
            ([home.open(&path), plain(&plain_path)], [home.open(&path), plain(&plain_path)]);
        let answer = |db: &Connection, sql: &str| -> rusqlite::Result<Vec<Vec<Value>>> {
            let mut statement = db.prepare(sql)?;
            let columns = statement.column_count();
            let row = |row: &rusqlite::Row<'_>| (0..columns).map(|i| row.get(i)).collect();
            statement.query_map([], row)?.collect()
        };
        let run = |dbs: &[Connection; 2], sql: &str| {
            let [tde, sqlite] = dbs.each_ref().map(|db| answer(db, sql));
            assert_eq!(tde, sqlite, "rounds {rounds:#04x}: {sql}");
        };
        for db in &writers {
            ok(db, "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF");
            ok(db, "PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
            ok(
                db,
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8)
                INSERT INTO t SELECT i, zeroblob(900) FROM n; PRAGMA wal_checkpoint(TRUNCATE)",
            );
        }
        let mut count = 8;
        for (length, round) in [(901, rounds / 16), (902, rounds % 16)] {
            for _ in 0..=round / 8 {
                count += 1;
                run(&writers, &format!("INSERT INTO t VALUES({count}, zeroblob(900))"));
            }
            run(&readers, "BEGIN");
            run(&readers, "SELECT count(*), sum(length(b)) FROM t");
            for late in (0..3).filter(|bit| round >> bit & 1 == 1) {
                let row = count - late;
                run(&writers, &format!("UPDATE t SET b = zeroblob({length}) WHERE a = {row}"));
            }
            run(&writers, "PRAGMA wal_checkpoint");
            run(&readers, "SELECT count(*), sum(length(b)) FROM t");
            run(&readers, "COMMIT");
        }
        run(&writers, "PRAGMA wal_checkpoint(TRUNCATE)");
        assert_sound(&writers[0], &format!("rounds {rounds:#04x}"));
        let [tde, sqlite] = writers.each_ref().map(|db| dump(db, "main"));
        assert_eq!(tde, sqlite, "rounds {rounds:#04x}");
    }
}

#[test]
fn the_log_stays_within_its_limit_and_is_gone_at_the_end() {
    let home = Home::new();
    let path = home.path("a.db");
    let log = home.path("a.db-tdewal");
    let db = home.open(&path);
    ok(&db, "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA journal_size_limit=20000");
    ok(&db, FILL);
    assert!(fs::metadata(&log).unwrap().len() > 40_000);
    ok(&db, "PRAGMA wal_checkpoint(RESTART); INSERT INTO t VALUES(1000, 1)");
    // 20,000 bytes of SQLite's log in records of 1120 bytes for 1048, and two sectors before.
    let limit = 1024 + 20_000 * 1120 / 1048 + 1120;
    assert!(fs::metadata(&log).unwrap().len() <= limit as u64);
    ok(&db, "PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(fs::metadata(&log).unwrap().len(), 0);
    ok(&db, "INSERT INTO t VALUES(1001, 1)");
    drop(db);
    assert!(!log.exists(), "the last connection deletes it");
    assert_sound(&home.open(&path), "reopened");
}

/// The files of a killed process are recovered by the next one, whatever the log had come to.
#[test]
fn a_log_left_behind_is_recovered() {
    let home = Home::new();
    let writer = home.open(&home.path("a.db"));
    ok(&writer, "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
    ok(&writer, FILL);
    let stages: [(&str, &str); 5] = [
        ("one transaction", "SELECT 1"),
        ("partly checkpointed", "PRAGMA wal_checkpoint; UPDATE t SET b = 'later' WHERE a % 7 = 0"),
        ("restarted", "PRAGMA wal_checkpoint(RESTART); DELETE FROM t WHERE a % 2"),
        ("grown by holes", "BEGIN; CREATE TABLE h AS SELECT * FROM t; DROP TABLE h; COMMIT"),
        ("uncommitted frames", "PRAGMA cache_size=2; BEGIN; UPDATE t SET b = hex(zeroblob(900))"),
    ];
    let mut want = Vec::new();
    for (number, (stage, sql)) in stages.into_iter().enumerate() {
        ok(&writer, sql);
        if writer.is_autocommit() {
            want = dump(&writer, "main");
        }
        for exclusive in [false, true] {
            let copy = home.path(&format!("{number}-{exclusive}.db"));
            copy_files(&home.path("a.db"), &copy, &["", "-tdewal"]);
            let db = home.open(&copy);
            if exclusive {
                ok(&db, "PRAGMA locking_mode=EXCLUSIVE"); // the wal-index is in the heap then
            }
            assert_eq!(dump(&db, "main"), want, "{stage}, exclusive {exclusive}");
            assert_sound(&db, stage);
            ok(&db, "INSERT INTO t VALUES(5000, 'more'); PRAGMA wal_checkpoint(TRUNCATE)");
            assert_sound(&db, stage);
        }
    }
}

#[test]
fn a_reader_needs_no_right_to_write() {
    let home = Home::new();
    let path = home.path("a.db");
    let writer = home.open(&path);
    ok(&writer, "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
    ok(&writer, FILL);
    let want = dump(&writer, "main");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = |options: sqlite_tde::OpenOptions, path: &Path| {
        sqlite_tde::open_with(path, &options.flags(flags)).unwrap()
    };
    // Beside a writer, over the files of a killed one, and on media that never change.
    assert_eq!(dump(&open(home.options(), &path), "main"), want);
    let killed = home.path("killed.db");
    copy_files(&path, &killed, &["", "-tdewal"]);
    let reader = open(home.options(), &killed);
    assert_eq!(dump(&reader, "main"), want);
    assert!(reader.execute_batch("DELETE FROM t").is_err());
    drop(reader);
    ok(&writer, "PRAGMA wal_checkpoint(TRUNCATE)");
    let still = home.path("still.db");
    copy_files(&path, &still, &[""]);
    let reader = open(home.options().parameter("immutable", "1"), &still);
    assert_eq!(dump(&reader, "main"), want);
}

#[test]
fn a_log_of_another_database_is_ignored() {
    for same_pages in [true, false] {
        let home = Home::new();
        let (one_db, other) = (home.path("one.db"), home.path("other.db"));
        for (path, word) in [(&one_db, "one"), (&other, "other")] {
            let db = home.open(path);
            let size = if same_pages || word == "one" { 4096 } else { 1024 };
            ok(&db, &format!("PRAGMA page_size={size}; PRAGMA journal_mode=WAL"));
            ok(&db, &format!("CREATE TABLE t(a); INSERT INTO t VALUES('{word}')"));
        }
        let writer = home.open(&other);
        ok(&writer, "PRAGMA wal_autocheckpoint=0; UPDATE t SET a = 'from the log'");
        fs::copy(home.path("other.db-tdewal"), home.path("one.db-tdewal")).unwrap();
        let db = home.open(&one_db);
        assert_eq!(one(&db, "SELECT a FROM t"), Value::Text("one".into()));
        assert_sound(&db, "beside the log of another");
        ok(&db, "UPDATE t SET a = 'two'");
        drop(db);
        assert_eq!(one(&home.open(&one_db), "SELECT a FROM t"), Value::Text("two".into()));
    }
}

/// A transaction that spills overwrites its own frames, and SQLite then rewrites their headers.
#[test]
fn a_transaction_larger_than_the_cache_commits_and_rolls_back() {
    let home = Home::new();
    for suite in ["aes-256-gcm", "aes-256-ctr-hmac-sha256", "aegis-256x4"] {
        let path = home.path(suite);
        let cipher = suite.parse().unwrap();
        let db = sqlite_tde::open_with(&path, &home.options().cipher(cipher)).unwrap();
        ok(&db, "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA cache_size=3");
        ok(&db, FILL);
        for round in 0..5 {
            let before = dump(&db, "main");
            let work = "UPDATE t SET b = b || 'x'; UPDATE t SET b = b || 'y' WHERE a % 3 = 0;
                SAVEPOINT s; DELETE FROM t WHERE a % 2; ROLLBACK TO s; UPDATE t SET b = b || 'z'";
            ok(&db, &format!("BEGIN; {work}; ROLLBACK"));
            assert_eq!(dump(&db, "main"), before, "{suite} round {round}: rolled back");
            ok(&db, &format!("BEGIN; {work}; COMMIT"));
            let after = dump(&db, "main");
            assert_ne!(after, before);
            let other = home.open(&path);
            assert_eq!(dump(&other, "main"), after, "{suite} round {round}: committed");
            let copy = home.path(&format!("{suite}-{round}"));
            copy_files(&path, &copy, &["", "-tdewal"]);
            let recovered = home.open(&copy);
            assert_eq!(dump(&recovered, "main"), after, "{suite} round {round}: recovered");
            assert_sound(&recovered, suite);
        }
    }
}

/// A reader keeps what it saw while others write, checkpoint and begin the log anew.
#[test]
fn snapshots_hold() {
    let home = Home::new();
    let path = home.path("a.db");
    let (reader, writer) = (home.open(&path), home.open(&path));
    ok(&writer, "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
    ok(&writer, FILL);
    ok(&reader, "PRAGMA cache_size=2");
    for round in 0..20 {
        ok(&reader, "BEGIN");
        let seen = rows(&reader, "SELECT a, b FROM t");
        for sql in [
            "UPDATE t SET b = b || 'u' WHERE a % 5 = 1",
            "PRAGMA wal_checkpoint(PASSIVE)",
            "DELETE FROM t WHERE a = (SELECT max(a) FROM t)",
        ] {
            ok(&writer, sql);
            assert_eq!(rows(&reader, "SELECT a, b FROM t"), seen, "round {round}: {sql}");
        }
        ok(&reader, "COMMIT");
        ok(&writer, if round % 2 == 0 { "PRAGMA wal_checkpoint(TRUNCATE)" } else { "SELECT 1" });
        assert_eq!(rows(&reader, "SELECT * FROM t"), rows(&writer, "SELECT * FROM t"));
    }
    assert_sound(&reader, "at the end");
}

/// Each connection counts the checkpoints that it knows of, and writes that into the header of a
/// log that it begins. Where one transaction begins a log, spills and is rolled back, the next
/// connection begins the same log once more, with the same salts and a count of its own; the first
/// one goes on in it.
#[test]
fn a_log_that_two_connections_begin_is_one() {
    let home = Home::new();
    let checkpoints = ["PASSIVE", "RESTART", "TRUNCATE"];
    // One that counts on powersafe overwriting beside one that does not.
    for (of_a, of_b, powersafe) in [
        (2, 6, [1, 1]),
        (6, 2, [1, 1]),
        (0, 1, [1, 1]),
        (3, 3, [1, 1]),
        (2, 6, [1, 0]),
        (6, 2, [0, 1]),
    ] {
        for checkpoint in checkpoints {
            let what = format!("A {of_a}, B {of_b}, {checkpoint}, psow {powersafe:?}");
            let [a, b] = powersafe;
            let name = format!("{of_a}-{of_b}-{checkpoint}-{a}{b}");
            let (path, other) =
                (home.path(&format!("{name}.db")), home.path(&format!("{name}.plain")));
            let sealed = powersafe.map(|psow| {
                let uri = format!("{}&psow={psow}", home.uri(&path));
                let db = plain(Path::new(&uri));
                db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).unwrap();
                db
            });
            let clear = [plain(&other), plain(&other)];
            let run = |who: usize, sql: &str| {
                for db in [&sealed[who], &clear[who]] {
                    db.execute_batch(sql).unwrap_or_else(|e| panic!("{what}: {sql}: {e}"));
                }
            };
            run(0, "PRAGMA page_size=1024; PRAGMA journal_mode=WAL;");
            for who in [0, 1] {
                run(who, "PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=3;");
            }
            run(0, FILL);
            let mut row = 1000;
            let mut commit = |who: usize| {
                row += 1;
                run(who, &format!("INSERT INTO t VALUES({row}, zeroblob(3000))"));
            };
            for (who, times) in [(0, of_a), (1, of_b)] {
                for _ in 0..times {
                    run(who, "PRAGMA wal_checkpoint(RESTART)");
                    commit(who);
                }
            }
            run(0, &format!("PRAGMA wal_checkpoint({checkpoint})"));
            run(0, "BEGIN; UPDATE t SET b = hex(zeroblob(400)); ROLLBACK");
            for who in [1, 0, 1] {
                commit(who);
            }
            let wanted = dump(&clear[0], "main");
            for db in &sealed {
                assert!(dump(db, "main") == wanted, "{what}");
                assert_sound(db, &what);
            }
            // And after a kill.
            let copy = home.path(&format!("{name}-copy.db"));
            copy_files(&path, &copy, &["", "-tdewal"]);
            let db = home.open(&copy);
            assert!(dump(&db, "main") == wanted, "{what}: killed");
            assert_sound(&db, &what);
        }
    }
}

/// A connection that writes no more is the last to close a log, or to leave WAL mode, and another
/// one has begun the log anew meanwhile: all of it goes into the database, and no file stays.
#[test]
fn the_last_connection_closes_a_log_that_another_began() {
    let home = Home::new();
    let mut number = 0;
    for first in ["INSERT INTO t VALUES(1, 1)", "SELECT * FROM t"] {
        for checkpoint in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
            for commits in [1, 2, 30] {
                for end in ["", "PRAGMA journal_mode=DELETE", "PRAGMA wal_checkpoint(TRUNCATE)"] {
                    let what = format!("{first}; {checkpoint}; {commits} commits; {end}");
                    number += 1;
                    let path = home.path(&format!("closes-{number}.db"));
                    let last = home.open(&path);
                    ok(&last, "PRAGMA journal_mode=WAL");
                    ok(&last, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
                    ok(&last, first);
                    let other = home.open(&path);
                    ok(&other, &format!("PRAGMA wal_checkpoint({checkpoint})"));
                    for row in 0..commits {
                        ok(&other, &format!("INSERT INTO t VALUES({}, zeroblob(3000))", row + 10));
                    }
                    let rows_there = rows(&other, "SELECT a FROM t");
                    drop(other);
                    if !end.is_empty() {
                        let answer = rows(&last, end);
                        assert!(!answer.is_empty(), "{what}");
                    }
                    drop(last);
                    for suffix in ["-tdewal", "-shm", "-journal"] {
                        let beside = home.path(&format!("closes-{number}.db{suffix}"));
                        assert!(!beside.exists(), "{what}: {suffix} stays");
                    }
                    let copy = home.path("closes-copy.db");
                    fs::copy(&path, &copy).unwrap();
                    let found = rows(&home.open(&copy), "SELECT a FROM t");
                    assert_eq!(found, rows_there, "{what}");
                }
            }
        }
    }
}

/// A connection that wants the database for itself is refused once, and keeps SHARED. Then another
/// one cuts the file in a checkpoint, and closes. The first one's next lock goes from SHARED to
/// EXCLUSIVE: the size that it knew is no longer the file's.
#[test]
fn a_file_that_shrank_before_an_exclusive_lock_has_its_new_size() {
    let fill = |from: i64| {
        format!(
            "INSERT INTO u WITH RECURSIVE c(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM c
             WHERE i < {from} + 69) SELECT i, hex(zeroblob(500)) FROM c"
        )
    };
    for auto_vacuum in ["NONE", "FULL", "INCREMENTAL"] {
        for exclusive in [true, false] {
            let home = Home::new();
            let on = |encrypted: bool| {
                let path = home.path(if encrypted { "sealed.db" } else { "plain.db" });
                let open = || if encrypted { home.open(&path) } else { plain(&path) };
                let a = open();
                ok(&a, &format!("PRAGMA page_size=1024; PRAGMA auto_vacuum={auto_vacuum}"));
                one(&a, "PRAGMA journal_mode=WAL");
                ok(&a, "CREATE TABLE u(k INTEGER PRIMARY KEY, v)");
                ok(&a, &fill(1));
                drop(a);
                let b = open();
                ok(&b, "DELETE FROM u WHERE k > 5");
                let c = open();
                if exclusive {
                    one(&c, "PRAGMA locking_mode=EXCLUSIVE");
                }
                c.busy_timeout(std::time::Duration::ZERO).unwrap();
                let first = c.execute_batch("SELECT count(*) FROM u").is_ok();
                one(&b, "PRAGMA wal_checkpoint(TRUNCATE)");
                drop(b);
                let written = c.execute_batch(&fill(200)).is_ok();
                (first, written, rows(&c, "SELECT k, v FROM u"), one(&c, "PRAGMA integrity_check"))
            };
            let (sealed, plain) = (on(true), on(false));
            assert_eq!(sealed, plain, "{auto_vacuum}, exclusive: {exclusive}");
        }
    }
}
