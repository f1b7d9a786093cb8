//! What is read ahead, or from a mapping, is what the database holds: readers scan while other
//! processes write and checkpoint all the time. Every transaction of the writer leaves the same
//! number in each row, so a reader that sees two numbers has seen pages of two times.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use sqlite_tde::OpenOptions;
use sqlite_tde::provider::Keystore;
use sqlite_tde_testkit::process::{Process, TOO_LONG, full, report};
use sqlite_tde_testkit::random::Random;

const TASK: &str = "SQLITE_TDE_TEST_COHERENCE";
/// A row fills a page, so that a scan reads pages in their order.
const ROWS: i64 = 300;
const ROW_BYTES: usize = 3000;

fn lasts() -> Duration {
    Duration::from_secs(if full() { 60 } else { 2 })
}

/// Who works, in a process of its own.
const ROLES: [&str; 5] = ["writer", "checkpointer", "reader", "reader", "mapped"];
const MODES: [&str; 3] = ["WAL", "DELETE", "PERSIST"];

fn connect(dir: &Path) -> Connection {
    let keystore = Keystore::at(dir.join("keys"));
    let options = sqlite_tde_testkit::options("coherent").keystore(keystore);
    sqlite_tde::register(options.replace(true)).unwrap();
    let db = sqlite_tde::open_with(dir.join("d"), &OpenOptions::new().vfs("coherent")).unwrap();
    db.busy_timeout(TOO_LONG).unwrap();
    db.execute_batch("PRAGMA cache_size=10; PRAGMA synchronous=OFF").unwrap();
    db
}

fn create(dir: &Path, mode: &str) {
    let db = connect(dir);
    db.execute_batch(&format!(
        "PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, b BLOB);
         WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {ROWS})
         INSERT INTO t SELECT i, 0, zeroblob({ROW_BYTES}) FROM i"
    ))
    .unwrap();
}

/// Whether it was only that others were in the way, as happens where a reader meets a hot journal.
fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// The least and the greatest number in some rows, and how many rows there are.
fn scan(db: &Connection, first: i64, count: i64) -> rusqlite::Result<(i64, i64, i64)> {
    let sql = "SELECT min(v), max(v), count(*) FROM t WHERE id >= ? AND id < ? AND length(b) > 0";
    db.prepare_cached(sql)?
        .query_row([first, first + count], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
}

/// Some rows and a far one, or all rows twice, in one transaction. The next one goes on where this
/// one ended, which is where something was read ahead.
fn read(db: &Connection, random: &mut Random, next: &mut i64) -> rusqlite::Result<i64> {
    let transaction = db.unchecked_transaction()?;
    let (first, count) = match random.one_in(4) {
        true => (1, ROWS),
        false => (*next, 1 + random.below(30) as i64),
    };
    let count = count.min(ROWS + 1 - first);
    let (least, most, found) = scan(db, first, count)?;
    assert_eq!((least, found), (most, count), "rows of two times in one scan");
    assert_eq!(scan(db, first, count)?, (least, most, count), "two times in one transaction");
    assert_eq!(scan(db, (first + ROWS / 2) % ROWS + 1, 1)?, (least, most, 1), "a far row");
    transaction.commit()?;
    *next = (first + count) % ROWS + 1;
    Ok(most)
}

fn write(db: &Connection, random: &mut Random) -> rusqlite::Result<()> {
    let transaction = db.unchecked_transaction()?;
    db.execute("UPDATE t SET v = v + 1", [])?;
    if random.one_in(4) {
        // Pages move to other places.
        let from = random.below(ROWS as u64 - 20) as i64;
        db.execute("UPDATE t SET b = zeroblob(10) WHERE id BETWEEN ?1 AND ?1 + 20", [from])?;
        db.execute(
            "UPDATE t SET b = zeroblob(?2) WHERE id BETWEEN ?1 AND ?1 + 20",
            [from, ROW_BYTES as i64],
        )?;
    }
    if random.one_in(5) { transaction.rollback() } else { transaction.commit() }
}

fn checkpoint(db: &Connection, random: &mut Random) -> rusqlite::Result<()> {
    let how = random.pick(&["PASSIVE", "PASSIVE", "FULL", "TRUNCATE"]);
    db.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(()))
}

/// The task of a process: `dir|role|seed`.
#[test]
fn works_on_the_database() {
    let Ok(task) = std::env::var(TASK) else { return };
    let parts: Vec<&str> = task.split('|').collect();
    let [dir, role, seed] = parts[..] else { panic!("{task}") };
    let mut random = Random::new(seed.parse().unwrap());
    let db = connect(Path::new(dir));
    if role == "mapped" {
        db.query_row("PRAGMA mmap_size=100000000", [], |_| Ok(())).unwrap();
    }
    let until = Instant::now() + lasts();
    let (mut done, mut last, mut next) = (0_u64, 0, 1);
    if role == "checkpointer" {
        db.busy_timeout(Duration::from_millis(20)).unwrap();
    }
    while Instant::now() < until {
        let worked = match role {
            "writer" => write(&db, &mut random),
            "checkpointer" => checkpoint(&db, &mut random),
            _ => read(&db, &mut random, &mut next).map(|seen| {
                assert!(seen >= last, "{seen} after {last}");
                last = seen;
            }),
        };
        match worked {
            Ok(()) => done += 1,
            Err(error) if is_busy(&error) => {}
            Err(error) => panic!("{role}, seed {seed}: {error}"),
        }
        if role == "checkpointer" {
            std::thread::sleep(Duration::from_millis(random.below(5)));
        }
    }
    report(&format!("{role} {done}"));
}

#[test]
fn readers_see_one_time_while_others_write_and_checkpoint() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), mode);
        let at = PathBuf::from(dir.path());
        let started: Vec<_> = ROLES
            .iter()
            .zip(1_u64..)
            .filter(|(role, _)| mode == "WAL" || **role != "checkpointer")
            .map(|(role, seed)| {
                let task = format!("{}|{role}|{seed}", at.display());
                (role, Process::start("works_on_the_database", TASK, &task))
            })
            .collect();
        for (role, process) in started {
            let lines = process.finish(lasts() + TOO_LONG * 2);
            let lines = lines.unwrap_or_else(|error| panic!("{mode}, {role}: {error}"));
            let done: u64 =
                lines.last().and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap();
            assert!(done > 0, "{mode}: no {role} ever got to work");
            eprintln!("{mode}: {lines:?}");
        }
        assert_eq!(
            sqlite_tde_testkit::one(&connect(dir.path()), "PRAGMA integrity_check"),
            "ok".to_owned().into()
        );
    }
}
