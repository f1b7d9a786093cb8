//! A bank whose accounts always hold the same in all: whoever sees another sum has read what was
//! never committed, or half of it. Many workers, each with its own way of getting in others' way.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use sqlite_tde::provider::Keystore;
use sqlite_tde::{OpenOptions, TdeConnection};

use crate::random::Random;

/// The name of the database.
pub const FILE: &str = "bank.db";
pub const ACCOUNTS: u64 = 200;
pub const SUM: i64 = ACCOUNTS as i64 * 100;

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Moves money, with savepoints and roll-backs.
    Write,
    /// Looks at the sum, again and again.
    Read,
    /// Looks at it many times in one transaction, in which nothing may change.
    ReadLong,
    /// Looks at it with a connection that cannot write.
    ReadOnly,
    /// Opens a new connection each time.
    Reopen,
    /// Makes and drops tables and indexes.
    Schema,
    /// Checkpoints in every mode, vacuums, checks.
    Maintain,
    /// Takes the file for itself, and gives it back; a log that others have open lets nobody.
    Exclusive,
}

pub const ROLES: [Role; 8] = [
    Role::Write,
    Role::Read,
    Role::ReadLong,
    Role::Reopen,
    Role::Schema,
    Role::ReadOnly,
    Role::Maintain,
    Role::Exclusive,
];

/// Where the bank is, and how it is worked on.
#[derive(Clone)]
pub struct Bank {
    pub dir: PathBuf,
    pub mode: &'static str,
    pub plain: bool,
}

/// How often a worker did its work, and how often others were in the way.
#[derive(Debug, Default, Clone, Copy)]
pub struct Count {
    pub done: u64,
    pub busy: u64,
}

type Work = rusqlite::Result<()>;

impl Bank {
    /// One for this process to use. The first use registers its VFS, named for its directory.
    pub fn at(dir: PathBuf, mode: &'static str, plain: bool) -> Self {
        let bank = Self { dir, mode, plain };
        if !plain {
            let keystore = Keystore::at(bank.dir.join("keys"));
            sqlite_tde::register(crate::options(&bank.vfs()).keystore(keystore)).unwrap();
        }
        bank
    }

    fn vfs(&self) -> String {
        if self.plain { "unix".into() } else { self.dir.display().to_string() }
    }

    pub fn open(&self, flags: OpenFlags) -> rusqlite::Result<Connection> {
        let uri = OpenOptions::new().vfs(self.vfs()).uri(self.dir.join(FILE)).unwrap();
        let mut db = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?;
        db.busy_handler(Some(wait_for_others))?;
        db.execute_batch("PRAGMA cache_size=20; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE")?;
        Ok(db)
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let db = self.open(OpenFlags::default())?;
        if self.mode == "WAL" {
            db.execute_batch("PRAGMA wal_autocheckpoint=20")?;
        } else {
            db.execute_batch(&format!("PRAGMA journal_mode={}", self.mode))?;
        }
        Ok(db)
    }

    pub fn create(&self) {
        let db = self.open(OpenFlags::default()).unwrap();
        db.execute_batch(&format!(
            "PRAGMA page_size=1024; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode={};
             BEGIN;
             CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, note TEXT);
             CREATE INDEX note ON account(note);
             WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {ACCOUNTS})
             INSERT INTO account SELECT i, 100, printf('%0150d', i) FROM i;
             COMMIT",
            self.mode
        ))
        .unwrap();
    }

    /// Works until `until` has passed and the work was done at least twice.
    pub fn work(&self, role: Role, seed: u64, until: Instant) -> Result<Count, String> {
        let mut random = Random::new(seed);
        let mut count = Count::default();
        let mut db = None;
        let least = if role == Role::Exclusive && self.mode == "WAL" { 0 } else { 2 };
        let limit = until + Duration::from_secs(90);
        while Instant::now() < until || count.done < least {
            if Instant::now() > limit {
                return Err(format!("{role:?}, seed {seed}: no progress: {count:?}"));
            }
            let result = self.step(role, &mut db, &mut random);
            if let Some(db) = db.as_ref().filter(|db| result.is_err() && !db.is_autocommit()) {
                db.execute_batch("ROLLBACK").map_err(|error| format!("roll back: {error:?}"))?;
            }
            match result {
                Ok(()) => count.done += 1,
                Err(error) if in_the_way(role, &error) => count.busy += 1,
                Err(error) => return Err(format!("{role:?}, seed {seed}: {error:?}")),
            }
        }
        Ok(count)
    }

    fn step(&self, role: Role, db: &mut Option<Connection>, random: &mut Random) -> Work {
        if role == Role::Reopen || random.one_in(50) {
            *db = None;
        }
        if db.is_none() {
            *db = Some(match role {
                Role::ReadOnly => self.open(OpenFlags::SQLITE_OPEN_READ_ONLY)?,
                _ => self.connect()?,
            });
        }
        let Some(db) = db else { return Ok(()) };
        match role {
            Role::Write | Role::Reopen => transfer(db, random),
            Role::Read | Role::ReadOnly => look(db),
            Role::ReadLong => look_long(db, random),
            Role::Schema => schema(db, random),
            Role::Maintain => maintain(db, random),
            Role::Exclusive => exclusive(db, random),
        }
    }

    /// Nobody works any more: everything must be in order.
    pub fn check(&self) -> Result<(), String> {
        let db = self.open(OpenFlags::default()).map_err(|error| error.to_string())?;
        look(&db).map_err(|error| format!("{error:?}"))?;
        let sound = db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
        if sound.as_deref() != Ok("ok") {
            return Err(format!("integrity_check: {sound:?}"));
        }
        if self.plain {
            return Ok(());
        }
        match db.tde_verify("main", |_, _| ()) {
            Ok(found) if found.is_clean() => Ok(()),
            other => Err(format!("verify: {other:?}")),
        }
    }
}

/// Whether others are in the way. A connection that cannot write may take a journal for hot that a
/// writer begins between two looks of SQLite's at it; so it does on plain SQLite.
fn in_the_way(role: Role, error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| (error.code, error.extended_code));
    match code {
        Some((ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _)) => true,
        Some((_, ffi::SQLITE_READONLY_ROLLBACK)) => role == Role::ReadOnly,
        _ => false,
    }
}

/// Shorter naps than those of SQLite's own handler, so that nobody waits long for a turn.
fn wait_for_others(tries: i32) -> bool {
    std::thread::sleep(Duration::from_micros(200));
    tries < 300
}

fn transfer(db: &Connection, random: &mut Random) -> Work {
    let begin = random.pick(&["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"]);
    db.execute_batch(begin)?;
    look(db)?;
    for _ in 0..1 + random.below(10) {
        let mut account = || random.below(ACCOUNTS) as i64 + 1;
        let (from, to) = (account(), account());
        let (some, text) = (random.below(50) as i64, random.word().to_string());
        db.execute_batch("SAVEPOINT s")?;
        db.execute("UPDATE account SET balance = balance - ?2 WHERE id = ?1", [from, some])?;
        if random.one_in(6) {
            db.execute_batch("UPDATE account SET balance = 0, note = note || 'x'; ROLLBACK TO s")?;
        } else {
            let note = "UPDATE account SET balance = balance + ?2, note = ?3 || id WHERE id = ?1";
            db.execute(note, rusqlite::params![to, some, text.repeat(8)])?;
        }
        db.execute_batch("RELEASE s")?;
    }
    look(db)?;
    db.execute_batch(if random.one_in(5) { "ROLLBACK" } else { "COMMIT" })
}

fn sum(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    let query = "SELECT count(*), sum(balance) FROM account";
    db.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)))
}

fn look(db: &Connection) -> Work {
    let seen = sum(db)?;
    assert_eq!(seen, (ACCOUNTS as i64, SUM), "accounts and what they hold");
    Ok(())
}

fn look_long(db: &Connection, random: &mut Random) -> Work {
    let digest = || {
        db.query_row("SELECT group_concat(balance || note) FROM account", [], |row| {
            row.get::<_, String>(0)
        })
    };
    db.execute_batch("BEGIN")?;
    let first = digest()?;
    for _ in 0..1 + random.below(5) {
        std::thread::sleep(Duration::from_micros(random.below(3000)));
        look(db)?;
        assert!(digest()? == first, "something changed within a read transaction");
    }
    db.execute_batch("COMMIT")
}

fn schema(db: &Connection, random: &mut Random) -> Work {
    std::thread::sleep(Duration::from_millis(random.below(5)));
    let name = format!("extra_{}", random.below(3));
    db.execute_batch(&match random.below(4) {
        0 => format!("CREATE TABLE IF NOT EXISTS {name} AS SELECT * FROM account ORDER BY note"),
        1 => format!(
            "BEGIN IMMEDIATE; DROP TABLE IF EXISTS {name}; CREATE TABLE {name}(a, b);
             INSERT INTO {name} SELECT id, note FROM account; CREATE INDEX i{name} ON {name}(b);
             COMMIT"
        ),
        2 => format!("DROP TABLE IF EXISTS {name}"),
        _ => {
            "BEGIN IMMEDIATE; DROP INDEX note; CREATE INDEX note ON account(note, balance); COMMIT"
                .into()
        }
    })
}

fn maintain(db: &Connection, random: &mut Random) -> Work {
    std::thread::sleep(Duration::from_millis(random.below(10)));
    let checkpoint = random.pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
    match random.below(12) {
        0 => db.execute_batch("VACUUM"),
        1 | 2 => db.execute_batch("PRAGMA incremental_vacuum(5)"),
        3 => {
            let sound =
                db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))?;
            assert_eq!(sound, "ok");
            Ok(())
        }
        _ => db.query_row(&format!("PRAGMA wal_checkpoint({checkpoint})"), [], |_| Ok(())),
    }
}

/// `NORMAL` gives the locks back with the next read.
fn exclusive(db: &Connection, random: &mut Random) -> Work {
    std::thread::sleep(Duration::from_millis(random.below(5)));
    let locking = |mode: &str| db.query_row(&format!("PRAGMA locking_mode={mode}"), [], |_| Ok(()));
    locking("EXCLUSIVE")?;
    let result = transfer(db, random).and_then(|()| transfer(db, random));
    if result.is_err() && !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    locking("NORMAL")?;
    look(db)?;
    result
}
