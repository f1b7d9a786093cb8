//! A database that is restored from a backup while the log of its later life lies beside it: what
//! comes of it is the backup, or what the log was written for, or a refusal that changes no file.
//!
//! A history is random work on a database in WAL mode, with checkpoints, changes of the journal
//! mode and closes in between. Backups are taken on the way; then the process is killed. Each
//! backup is put in place as by somebody who has never heard of `NAME-tdewal`.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use sqlite_tde::{Error, TdeConnection};
use sqlite_tde_testkit::process;
use sqlite_tde_testkit::random::Random;
use sqlite_tde_testkit::vfs::{FaultyVfs, Method};
use sqlite_tde_testkit::{Home, assert_sound, one, rows};

const PAGE: usize = 1024;
/// Where the id of a log is in its header.
const LOG_ID: std::ops::Range<usize> = 44..60;

/// The database and its log, as bytes.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    db: Vec<u8>,
    log: Option<Vec<u8>>,
}

fn log_of(path: &Path) -> PathBuf {
    path.with_extension("db-tdewal")
}

impl Files {
    /// What a kill leaves of the database at `path`.
    fn read(path: &Path) -> Self {
        Self { db: fs::read(path).unwrap(), log: fs::read(log_of(path)).ok() }
    }

    /// Puts them in place as the usual recipe does: `log` stays where it is not given.
    fn restore(&self, path: &Path) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(path.with_extension(format!("db{suffix}")));
        }
        fs::write(path, &self.db).unwrap();
        if let Some(log) = &self.log {
            fs::write(log_of(path), log).unwrap();
        }
    }

    fn log_id(&self) -> Option<&[u8]> {
        self.log.as_ref()?.get(LOG_ID)
    }
}

/// What SQL shows, or the error.
fn seen(db: &Connection) -> Result<Vec<String>, Error> {
    let dump = || -> rusqlite::Result<Vec<String>> {
        let mut statement = db.prepare("SELECT name FROM sqlite_schema ORDER BY name")?;
        let names = statement.query_map([], |row| row.get::<_, String>(0))?;
        let mut out = names.collect::<Result<Vec<_>, _>>()?;
        let mut statement = db.prepare("SELECT a, b FROM t ORDER BY a")?;
        let rows = statement.query_map([], |row| {
            Ok(format!("{} {}", row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        out.extend(rows.collect::<Result<Vec<_>, _>>()?);
        Ok(out)
    };
    dump().map_err(Error::from)
}

fn assert_refused(error: &Error, what: &str) {
    assert!(matches!(error, Error::LogOutdated), "{what}: {error:?}");
    let words = error.to_string();
    for part in ["belongs to another state", "restored from a backup", "move NAME-tdewal away"] {
        assert!(words.contains(part), "{what}: {words}");
    }
}

/// A copy of the database at some moment.
struct Backup {
    what: String,
    files: Files,
    /// How many times the file had taken a new state by then.
    states: u32,
    shown: Vec<String>,
    /// The file alone has all of that.
    alone: bool,
    /// How many states the file had had when the log was begun, and whether it has a commit.
    log_began: u32,
    log_committed: bool,
}

/// One database at work.
struct Life<'h> {
    home: &'h Home,
    path: PathBuf,
    db: Option<Connection>,
    exclusive: bool,
    synchronous: &'static str,
    reader: Option<Connection>,
    /// Completed checkpoints and changes of the journal mode.
    states: u32,
    /// There are commits that no checkpoint has brought to the file.
    dirty: bool,
    log_id: Option<Vec<u8>>,
    log_began: u32,
    log_committed: bool,
    done: Vec<String>,
}

impl<'h> Life<'h> {
    fn new(home: &'h Home, random: &mut Random) -> Self {
        let path = home.path("live").join("a.db");
        let _ = fs::remove_dir_all(home.path("live"));
        fs::create_dir(home.path("live")).unwrap();
        let exclusive = random.one_in(3);
        let mut life = Self {
            home,
            path,
            db: None,
            exclusive,
            synchronous: random.pick(&["OFF", "NORMAL", "FULL"]),
            reader: None,
            states: 0,
            dirty: false,
            log_id: None,
            log_began: 0,
            log_committed: false,
            done: Vec::new(),
        };
        life.open();
        life.run(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
             INSERT INTO t SELECT i, printf('%.150c', 'x') FROM n;",
        );
        life.note_log(true);
        life
    }

    /// After a step, which may have begun a log and have committed.
    fn note_log(&mut self, committed: bool) {
        let files = Files::read(&self.path);
        if files.log_id() != self.log_id.as_deref() {
            self.log_id = files.log_id().map(<[u8]>::to_vec);
            (self.log_began, self.log_committed) = (self.states, false);
        }
        self.log_committed |= committed;
        self.dirty |= committed;
    }

    fn open(&mut self) {
        let db = self.home.open(&self.path);
        // A checkpoint waits for no reader.
        db.busy_timeout(std::time::Duration::ZERO).unwrap();
        let locking = if self.exclusive { "EXCLUSIVE" } else { "NORMAL" };
        db.execute_batch(&format!(
            "PRAGMA page_size={PAGE}; PRAGMA locking_mode={locking};
             PRAGMA synchronous={}; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=8;",
            self.synchronous
        ))
        .unwrap();
        one(&db, "PRAGMA journal_mode=WAL");
        self.db = Some(db);
    }

    fn close(&mut self) {
        self.reader = None;
        self.db.take().unwrap().close().unwrap();
        self.complete(true);
    }

    fn complete(&mut self, did: bool) {
        if did && self.dirty {
            self.dirty = false;
            self.states += 1;
        }
    }

    fn run(&self, sql: &str) {
        self.db.as_ref().unwrap().execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    fn checkpoint(&mut self, mode: &str) {
        let db = self.db.as_ref().unwrap();
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        let all = db
            .query_row(&sql, [], |row| Ok(row.get::<_, i64>(1)? == row.get::<_, i64>(2)?))
            .unwrap_or(false);
        self.complete(all);
    }

    fn step(&mut self, random: &mut Random) {
        let (row, fill) = (1 + random.below(40), char::from(b'a' + random.below(26) as u8));
        let mut commits = false;
        let what = match random.below(20) {
            0..=6 => {
                self.run(&format!("UPDATE t SET b = printf('%.150c', '{fill}') WHERE a = {row}"));
                commits = true;
                format!("update {row}")
            }
            7..=9 => {
                self.run(&format!("INSERT INTO t(b) VALUES(printf('%.1500c', '{fill}'))"));
                commits = true;
                "insert".into()
            }
            10 => {
                self.run(&format!("CREATE TABLE x{}(y)", self.done.len()));
                commits = true;
                "create".into()
            }
            11 => {
                self.run("BEGIN; DELETE FROM t WHERE a < 40; UPDATE t SET b = 'z'; ROLLBACK");
                "roll back".into()
            }
            12..=15 => {
                let mode = random.pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
                self.checkpoint(mode);
                format!("checkpoint {mode}")
            }
            16 if !self.exclusive => {
                if self.reader.take().is_none() {
                    let reader = self.home.open(&self.path);
                    reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
                    self.reader = Some(reader);
                }
                "reader".into()
            }
            17 => {
                self.reader = None;
                self.run("PRAGMA journal_mode=DELETE");
                for _ in 0..random.below(3) {
                    let row = 1 + random.below(40);
                    self.run(&format!("UPDATE t SET b = 'rollback mode' WHERE a = {row}"));
                }
                self.run("PRAGMA journal_mode=WAL");
                (self.states, self.dirty) = (self.states + 1, false);
                "change the journal mode".into()
            }
            18 => {
                self.close();
                self.open();
                "reopen".into()
            }
            19 => {
                self.reader = None;
                self.run("VACUUM");
                commits = true;
                "vacuum".into()
            }
            _ => return,
        };
        self.note_log(commits);
        self.done.push(what);
    }

    fn backup(&self) -> Backup {
        Backup {
            what: format!("backup after {} steps", self.done.len()),
            files: Files::read(&self.path),
            states: self.states,
            shown: seen(self.db.as_ref().unwrap()).unwrap(),
            alone: !self.dirty,
            log_began: self.log_began,
            log_committed: self.log_committed,
        }
    }
}

/// Opens the database in a way of its own.
fn open_again(home: &Home, path: &Path, way: u64) -> Result<Connection, Error> {
    match way {
        0 => home.try_open(path),
        1 => {
            let db = home.try_open(path)?;
            db.execute_batch("PRAGMA locking_mode=EXCLUSIVE").map_err(Error::from)?;
            Ok(db)
        }
        _ => {
            let options = home.options().flags(OpenFlags::SQLITE_OPEN_READ_ONLY);
            sqlite_tde::open_with(path, &options)
        }
    }
}

#[test]
fn a_restored_file_is_the_backup_or_what_the_log_was_written_for_or_refused() {
    let (first, count) = match std::env::var("SQLITE_TDE_SEED") {
        Ok(seed) => (seed.parse().unwrap(), 1),
        Err(_) => (0, if process::full() { 3000 } else { 60 }),
    };
    let home = Home::new();
    let (mut backups, mut newest, mut refused) = (0, 0, 0);
    for seed in first..first + count {
        let mut random = Random::new(seed);
        let mut life = Life::new(&home, &mut random);
        let mut taken = Vec::new();
        for _ in 0..6 + random.below(20) {
            life.step(&mut random);
            if random.one_in(3) {
                taken.push(life.backup());
            }
        }
        let last = life.backup();
        let history = format!("seed {seed}: {:?}", life.done);
        for backup in &taken {
            let what = format!("{history}, {}", backup.what);
            let way = random.below(3);
            let path = home.path("restored").join("a.db");
            let fresh = || {
                let _ = fs::remove_dir_all(home.path("restored"));
                fs::create_dir(home.path("restored")).unwrap();
            };
            // All files together.
            fresh();
            backup.files.restore(&path);
            let db = open_again(&home, &path, way).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(seen(&db).unwrap(), backup.shown, "{what}: all files, way {way}");
            drop(db);
            // The file alone, over what the kill has left.
            fresh();
            last.files.restore(&path);
            let alone = Files { log: None, ..backup.files.clone() };
            alone.restore(&path);
            let before = Files::read(&path);
            let has_log = before.log_id().is_some() && last.log_committed;
            let same = before.log_id().is_some() && before.log_id() == backup.files.log_id();
            let fits = same || backup.states == last.log_began;
            if !has_log && !backup.alone {
                // What a copy of the file lacks is nowhere.
                continue;
            }
            let shown = open_again(&home, &path, way).and_then(|db| {
                let shown = seen(&db)?;
                assert_sound(&db, &what);
                Ok(shown)
            });
            match shown {
                Ok(shown) if !has_log => {
                    backups += 1;
                    assert!(shown == backup.shown, "{what}: without a log");
                }
                Ok(shown) => {
                    assert!(fits, "{what}: played back over another state");
                    assert!(shown == last.shown, "{what}: not the newest state");
                    newest += 1;
                }
                Err(error) => {
                    assert!(!fits, "{what}: refused falsely: {error}");
                    assert_refused(&error, &what);
                    assert!(Files::read(&path) == before, "{what}: a file was changed");
                    fs::remove_file(log_of(&path)).unwrap();
                    if backup.alone {
                        let db = open_again(&home, &path, way).unwrap();
                        assert_eq!(seen(&db).unwrap(), backup.shown, "{what}: log moved away");
                        assert_sound(&db, &what);
                        backups += 1;
                    }
                    refused += 1;
                }
            }
        }
        // What a kill leaves is recovered, twice.
        let path = home.path("restored").join("a.db");
        let _ = fs::remove_dir_all(home.path("restored"));
        fs::create_dir(home.path("restored")).unwrap();
        last.files.restore(&path);
        for way in [2, 1, 0] {
            let db = open_again(&home, &path, way).unwrap_or_else(|e| panic!("{history}: {e}"));
            assert_eq!(seen(&db).unwrap(), last.shown, "{history}: killed, way {way}");
            assert_sound(&db, &history);
            if way == 2 {
                let left = Files::read(&path);
                drop(db);
                last.files.restore(&path);
                assert!(left.db == last.files.db, "{history}: altered by reading");
            }
        }
        drop(life.db.take());
    }
    eprintln!("backup {backups}, newest {newest}, refused {refused}");
    let wanted = if count > 1 { 20 } else { 0 };
    assert!(newest >= wanted && refused >= wanted && backups >= wanted);
}

/// The experiment that began this: transactions that write no page 1, a backup in between.
#[test]
fn a_backup_before_a_checkpoint_is_not_mixed_with_a_later_log() {
    let home = Home::new();
    let path = home.path("a.db");
    let db = home.open(&path);
    db.execute_batch(
        "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
         INSERT INTO t SELECT i, printf('%.150c', 'x') FROM n;
         PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
    let backup = Files { log: None, ..Files::read(&path) };
    let shown = seen(&db).unwrap();
    db.execute_batch(
        "UPDATE t SET b = 'first'; PRAGMA wal_checkpoint(RESTART);
         UPDATE t SET b = 'second' WHERE a = 1;",
    )
    .unwrap();
    let killed = Files::read(&path);
    let page_1 = 16384..16384 + PAGE;
    assert_eq!(killed.db[page_1.clone()], backup.db[page_1], "page 1 tells nothing");
    drop(db);
    killed.restore(&path);
    backup.restore(&path);
    let before = Files::read(&path);
    for way in 0..3 {
        let error = open_again(&home, &path, way).and_then(|db| seen(&db)).unwrap_err();
        assert_refused(&error, &format!("way {way}"));
        assert!(Files::read(&path) == before, "way {way}");
    }
    fs::remove_file(log_of(&path)).unwrap();
    assert_eq!(seen(&home.open(&path)).unwrap(), shown);
}

/// Where the log has no commit there is nothing to play back, and nothing to refuse.
#[test]
fn a_log_without_a_commit_is_no_obstacle() {
    let home = Home::new();
    let path = home.path("a.db");
    let db = home.open(&path);
    db.execute_batch(
        "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
         PRAGMA cache_size=5; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
         INSERT INTO t SELECT i, printf('%.150c', 'x') FROM n;
         PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
    let backup = Files { log: None, ..Files::read(&path) };
    let shown = seen(&db).unwrap();
    db.execute_batch(
        "UPDATE t SET b = 'first'; INSERT INTO t(b) VALUES(printf('%.9999c', 'y'));
         PRAGMA wal_checkpoint(TRUNCATE); BEGIN; UPDATE t SET b = printf('%.150c', 'z');",
    )
    .unwrap();
    let killed = Files::read(&path);
    assert!(killed.log.as_ref().unwrap().len() > 10_000, "frames that nobody committed");
    drop(db);
    killed.restore(&path);
    backup.restore(&path);
    let (a, b) = (home.open(&path), home.open(&path));
    assert_eq!(seen(&a).unwrap(), shown);
    assert_eq!(seen(&b).unwrap(), shown);
    // What is committed now must be there after a kill.
    a.execute_batch("UPDATE t SET b = 'new' WHERE a = 1").unwrap();
    b.execute_batch("UPDATE t SET b = 'newer' WHERE a = 2").unwrap();
    let (shown, files) = (seen(&a).unwrap(), Files::read(&path));
    drop((a, b));
    files.restore(&path);
    let db = home.open(&path);
    assert_eq!(seen(&db).unwrap(), shown);
    assert_sound(&db, "killed again");
}

/// A page that the log's transactions made and never wrote gets content later. It is damaged, and
/// the old log is put back beside the closed database.
#[test]
fn an_old_log_makes_no_page_of_zeros_of_a_bad_one() {
    let home = Home::new();
    let path = home.path("a.db");
    let open = || {
        let db = home.open(&path);
        db.execute_batch(
            "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;",
        )
        .unwrap();
        db
    };
    let db = open();
    db.execute_batch(
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); INSERT INTO t VALUES(1, 'one');
         PRAGMA wal_checkpoint(TRUNCATE);
         BEGIN; CREATE TABLE big(x); INSERT INTO big VALUES(printf('%.30000c', 'x'));
         DROP TABLE big; COMMIT;",
    )
    .unwrap();
    let old = Files::read(&path);
    db.close().unwrap();
    let small = fs::metadata(&path).unwrap().len();
    let db = open();
    db.execute_batch("INSERT INTO t(b) VALUES(printf('%.25000c', 'content'));").unwrap();
    db.close().unwrap();
    let closed = Files::read(&path);
    assert_eq!(closed.db.len() as u64, small, "pages that were free are used");
    for page in 4..(closed.db.len() - 16384) / PAGE {
        let mut bad = Files { log: old.log.clone(), ..closed.clone() };
        bad.db[16384 + (page - 1) * PAGE + 100] ^= 1;
        bad.restore(&path);
        let error = open_again(&home, &path, 0).and_then(|db| seen(&db)).unwrap_err();
        assert_refused(&error, &format!("page {page}"));
        assert!(Files::read(&path) == bad, "page {page}");
        fs::remove_file(log_of(&path)).unwrap();
        let db = open_again(&home, &path, 2).unwrap();
        let found = db.tde_verify("main", |_, _| ()).unwrap();
        assert_eq!(found.bad_pages, [page as u32], "page {page}");
    }
}

/// A log was lost while a checkpoint of it was under way. The next one is begun on a file of which
/// the slots say that the lost one belongs to it; and it must be there after a kill.
#[test]
fn after_a_lost_log_the_next_one_counts() {
    let home = Home::new();
    let path = home.path("a.db");
    let db = home.open(&path);
    let reader = home.open(&path);
    db.execute_batch(
        "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); INSERT INTO t VALUES(1, 'one');
         CREATE TABLE u(b); INSERT INTO u VALUES('one');
         PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET b = 'two';",
    )
    .unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    db.execute_batch("UPDATE u SET b = 'two'").unwrap();
    let [frames, brought] = db
        .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok([row.get(1)?, row.get(2)?]))
        .map(|row: [i64; 2]| row)
        .unwrap();
    assert!(0 < brought && brought < frames, "{brought} of {frames} frames");
    let rest = rows(&reader, "SELECT * FROM t");
    let (killed, all) = (Files::read(&path), seen(&db).unwrap());
    drop((db, reader));
    // In the slot that the checkpoint wrote, and in the other one.
    const NEWEST: usize = 7680 + 5;
    for damaged in [None, Some(NEWEST), Some(15872 + 5)] {
        let _ = fs::remove_file(log_of(&path));
        let mut files = Files { log: None, ..killed.clone() };
        if let Some(at) = damaged {
            files.db[at] ^= 1;
        }
        files.restore(&path);
        let db = home.open(&path);
        assert_eq!(rows(&db, "SELECT * FROM t"), rest, "damaged: {damaged:?}");
        db.execute_batch("PRAGMA wal_autocheckpoint=0; UPDATE t SET b = 'four'").unwrap();
        let (shown, left) = (seen(&db).unwrap(), Files::read(&path));
        drop(db);
        left.restore(&path);
        let db = home.open(&path);
        assert_eq!(seen(&db).unwrap(), shown, "damaged: {damaged:?}");
        drop(db);
        // The lost one, put back beside what came after it.
        let mixed = Files { log: killed.log.clone(), db: left.db.clone() };
        mixed.restore(&path);
        let answer = open_again(&home, &path, 0).and_then(|db| seen(&db));
        if damaged == Some(NEWEST) {
            // Nothing told of the lost one any more, and the file is as that one left it.
            assert_eq!(answer.unwrap(), all);
        } else {
            assert_refused(&answer.unwrap_err(), &format!("damaged: {damaged:?}"));
        }
    }
    // Without a slot that can be read nothing tells whether the log belongs to the file.
    let mut both = killed.clone();
    (both.db[7680], both.db[15872]) = (both.db[7680] ^ 1, both.db[15872] ^ 1);
    both.restore(&path);
    let error = open_again(&home, &path, 0).and_then(|db| seen(&db)).unwrap_err();
    assert_refused(&error, "both slots damaged");
    assert!(Files::read(&path) == both);
}

/// Logs are copied to another machine one after another, and replayed there over an older copy.
#[test]
fn shipped_logs_are_replayed_one_after_another() {
    let home = Home::new();
    let path = home.path("a.db");
    for way in ["close", "PASSIVE", "TRUNCATE", "EXCLUSIVE"] {
        let (db, reader) = (home.open(&path), home.open(&path));
        db.execute_batch(
            "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
             DROP TABLE IF EXISTS t; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
             INSERT INTO t VALUES(1, 'one'); PRAGMA wal_checkpoint(TRUNCATE);",
        )
        .unwrap();
        let start = Files { log: None, ..Files::read(&path) };
        let mut shipped = Vec::new();
        for number in 0..4 {
            db.execute_batch(&format!(
                "INSERT INTO t(b) VALUES('{number}'); CREATE TABLE x{number}(y);"
            ))
            .unwrap();
            // A log that was brought whole goes on where somebody reads it.
            reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
            db.execute_batch(&format!(
                "PRAGMA wal_checkpoint(PASSIVE);
                 INSERT INTO t(b) VALUES(printf('%.3000c', 'x')); DROP TABLE x{number};"
            ))
            .unwrap();
            reader.execute_batch("COMMIT").unwrap();
            shipped.push((Files::read(&path).log.unwrap(), seen(&db).unwrap()));
            db.execute_batch("PRAGMA wal_checkpoint(RESTART)").unwrap();
        }
        drop((db, reader));
        let _ = fs::remove_file(log_of(&path));
        start.restore(&path);
        for (number, (log, shown)) in shipped.iter().enumerate() {
            fs::write(log_of(&path), log).unwrap();
            let db = home.open(&path);
            if way == "EXCLUSIVE" {
                db.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
            }
            let got = seen(&db).unwrap_or_else(|e| panic!("{way}: log {number}: {e}"));
            assert!(&got == shown, "{way}: log {number}");
            if ["PASSIVE", "TRUNCATE"].contains(&way) {
                db.execute_batch(&format!("PRAGMA wal_checkpoint({way})")).unwrap();
            }
            db.close().unwrap();
        }
        // One that was left out is missed.
        let _ = fs::remove_file(log_of(&path));
        start.restore(&path);
        fs::write(log_of(&path), &shipped[1].0).unwrap();
        let error = open_again(&home, &path, 0).and_then(|db| seen(&db)).unwrap_err();
        assert_refused(&error, way);
        fs::remove_file(log_of(&path)).unwrap();
    }
}

/// Another connection commits when a checkpoint that took the whole log is about to end. Power is
/// lost: that commit was not synced, and nothing was brought of it.
#[test]
fn what_is_committed_beside_the_end_of_a_checkpoint_was_not_brought() {
    let home = Home::new();
    let above = FaultyVfs::over(&home.vfs);
    let path = home.path("a.db");
    let uri = format!("file:{}?vfs={}", path.display(), above.name);
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    let db = Connection::open_with_flags(uri, flags).unwrap();
    db.execute_batch(
        "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); INSERT INTO t VALUES(1, 'one');
         PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t VALUES(2, 'two');",
    )
    .unwrap();
    let (synced, shown) = (Files::read(&path).log.unwrap().len(), seen(&db).unwrap());
    let (other, done) = (home.open(&path), std::sync::mpsc::channel());
    above.before("database", Method::Truncate, move || {
        other.execute_batch("INSERT INTO t VALUES(3, 'three')").unwrap();
        done.0.send(()).unwrap();
    });
    db.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").unwrap();
    done.1.recv().unwrap();
    let mut lost = Files::read(&path);
    assert!(lost.log.as_ref().unwrap().len() > synced);
    lost.log.as_mut().unwrap().truncate(synced);
    let copy = home.path("b.db");
    lost.restore(&copy);
    let db = home.open(&copy);
    assert_eq!(seen(&db).unwrap(), shown);
    assert_sound(&db, "after the loss");
}

/// `verify` does not call a database sound of which the log is refused.
#[test]
fn verify_says_why_a_log_is_refused() {
    let home = Home::new();
    let path = home.path("a.db");
    let (db, reader) = (home.open(&path), home.open(&path));
    db.execute_batch(
        "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); INSERT INTO t VALUES(1, 'one');
         CREATE TABLE u(b); PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
    let backup = Files { log: None, ..Files::read(&path) };
    db.execute_batch("UPDATE t SET b = 'two'; PRAGMA wal_checkpoint(RESTART)").unwrap();
    db.execute_batch("UPDATE t SET b = 'three'; INSERT INTO u VALUES('four')").unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    db.execute_batch("UPDATE t SET b = 'five'; PRAGMA wal_checkpoint(PASSIVE)").unwrap();
    let killed = Files::read(&path);
    drop((db, reader));
    let mut cut = killed.clone();
    cut.log.as_mut().unwrap().truncate(1024 + PAGE + 24 + 48 + 10);
    let restored = Files { db: backup.db, ..killed.clone() };
    for (what, files, words) in [
        ("as it was", &killed, None),
        ("cut", &cut, Some("lacks frame 2")),
        ("restored", &restored, Some("belongs to another state")),
    ] {
        let _ = fs::remove_file(log_of(&path));
        files.restore(&path);
        let db = open_again(&home, &path, 2).unwrap();
        let found = db.tde_verify("main", |_, _| ()).unwrap();
        assert_eq!(found.is_clean(), words.is_none(), "{what}: {found:?}");
        let refused = found.refused.as_deref().unwrap_or_default();
        assert!(refused.contains(words.unwrap_or_default()), "{what}: {refused}");
        // What a repair needs to know of the file alone.
        assert_eq!((found.bad_page_count, found.pages > 1), (0, true), "{what}");
    }
}

/// One sector of a slot rots while a log with commits lies beside the file.
#[test]
fn one_rotten_slot_parts_no_log_from_its_file() {
    let home = Home::new();
    let path = home.path("a.db");
    let db = home.open(&path);
    db.execute_batch(
        "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);",
    )
    .unwrap();
    for number in 0..6 {
        db.execute_batch(&format!("INSERT INTO t(b) VALUES('{number}')")).unwrap();
        let (files, shown) = (Files::read(&path), seen(&db).unwrap());
        for at in [7680 + 5, 15872 + 5] {
            let mut bad = files.clone();
            bad.db[at] ^= 1;
            let other = home.path("b.db");
            let _ = fs::remove_file(log_of(&other));
            bad.restore(&other);
            let db = open_again(&home, &other, number % 2).unwrap();
            assert_eq!(seen(&db).unwrap(), shown, "log {number}, slot at {at}");
            db.execute_batch("INSERT INTO t(b) VALUES('more')").unwrap();
            db.close().unwrap();
            let db = home.open(&other);
            assert_eq!(seen(&db).unwrap().len(), shown.len() + 1, "log {number}, slot at {at}");
            drop(db);
        }
        let mode = ["RESTART", "TRUNCATE", "PASSIVE"][number as usize % 3];
        db.execute_batch(&format!("PRAGMA wal_checkpoint({mode})")).unwrap();
    }
}

/// Bytes into a file that stays the one that others have open.
fn put_in_place(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    // A wal-index is mapped, and never gets shorter.
    if !path.to_string_lossy().ends_with("-shm") {
        file.set_len(bytes.len() as u64).unwrap();
    }
}

/// An older log comes back together with its wal-index, under open connections: SQLite believes it
/// and recovers nothing. What is shown is a state that there was, and what is committed then stays.
#[test]
fn an_old_log_with_its_index_mixes_no_states() {
    let home = Home::new();
    let (mut replayed, mut refused) = (0, 0);
    let only = std::env::var("SQLITE_TDE_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    for seed in 0..if process::full() || only.is_some() { 200 } else { 24 } {
        if only.is_some_and(|only| only != seed) {
            continue;
        }
        let mut done = Vec::new();
        let mut random = Random::new(seed);
        let path = home.path(&format!("{seed}.db"));
        let shm = path.with_extension("db-shm");
        let open = || {
            let db = home.open(&path);
            db.execute_batch("PRAGMA busy_timeout=0; PRAGMA wal_autocheckpoint=0").unwrap();
            db
        };
        let (mut db, mut reader) = (open(), open());
        db.execute_batch(
            "PRAGMA page_size=1024; PRAGMA journal_mode=WAL;
             CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
             INSERT INTO t SELECT i, printf('%.150c', 'x') FROM n;
             PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .unwrap();
        let mut saved: Vec<(Vec<u8>, Vec<u8>, Vec<String>)> = Vec::new();
        for step in 0..12 {
            let sql = match random.below(6) {
                0 => "PRAGMA wal_checkpoint(PASSIVE)".into(),
                1 => "PRAGMA wal_checkpoint(RESTART)".into(),
                2 => "INSERT INTO t(b) VALUES(printf('%.1500c', 's'))".into(),
                3 => "BEGIN; SELECT count(*) FROM t".into(),
                _ => format!("UPDATE t SET b = 'step {step}' WHERE a % 7 = {}", random.below(7)),
            };
            let on = if sql.starts_with("BEGIN") {
                if reader.is_autocommit() { &reader } else { &db }
            } else {
                &db
            };
            if sql.starts_with("BEGIN") && !reader.is_autocommit() {
                reader.execute_batch("COMMIT").unwrap();
            } else {
                on.execute_batch(&sql).unwrap();
            }
            done.push(sql);
            let log = fs::read(log_of(&path)).unwrap();
            saved.push((log, fs::read(&shm).unwrap(), seen(&db).unwrap()));
        }
        if !reader.is_autocommit() {
            reader.execute_batch("COMMIT").unwrap();
        }
        let last = fs::read(&path).unwrap();
        let (log, index, newest) = saved.last().unwrap().clone();
        for (step, (old_log, old_index, _)) in saved.iter().enumerate() {
            if old_log.is_empty() {
                // A log that is gone is missed as little as on plain SQLite.
                continue;
            }
            let what = format!("seed {seed}, step {step} of {done:?}");
            assert_eq!(seen(&reader).unwrap(), newest, "{what}: before");
            put_in_place(&log_of(&path), old_log);
            put_in_place(&shm, old_index);
            let new = home.try_open(&path).map_err(|error| format!("{error}"));
            for db in [Some(&db), Some(&reader), new.as_ref().ok()].into_iter().flatten() {
                match seen(db) {
                    Ok(shown) => {
                        let known = saved.iter().any(|(_, _, state)| *state == shown);
                        assert!(known, "{what}: a state that there never was");
                        replayed += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
            let wrote = db.execute_batch("INSERT INTO t(b) VALUES('committed beside it')");
            if wrote.is_ok() {
                let shown = seen(&db).unwrap();
                let files = Files::read(&path);
                let copy = home.path("copy.db");
                let _ = fs::remove_file(log_of(&copy));
                files.restore(&copy);
                let again = home.open(&copy);
                assert_eq!(seen(&again).unwrap(), shown, "{what}: a commit was lost");
                assert_sound(&again, &what);
            }
            drop(new);
            let put_right = || {
                put_in_place(&path, &last);
                put_in_place(&log_of(&path), &log);
                put_in_place(&shm, &index);
            };
            if wrote.is_ok() {
                // To who has committed since, the last state is an older one, too.
                drop((db, reader));
                put_right();
                (db, reader) = (open(), open());
            } else {
                put_right();
            }
            assert_eq!(seen(&db).unwrap(), newest, "{what}: put right");
        }
    }
    eprintln!("replayed {replayed}, refused {refused}");
    let wanted = if only.is_some() { 0 } else { 20 };
    assert!(replayed >= wanted && refused >= wanted, "{replayed}, {refused}");
}
