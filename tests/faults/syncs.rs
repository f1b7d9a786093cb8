//! Encryption adds no sync and takes none away: the base VFS is asked to sync the same files, with
//! the same flags, in the same order as by plain SQLite, with and without the short cuts to the
//! disk.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use sqlite_tde_testkit::vfs::FaultyVfs;
use sqlite_tde_testkit::{Home, reserve};

const MODES: [&str; 6] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"];
const SYNCHRONOUS: [&str; 4] = ["OFF", "NORMAL", "FULL", "EXTRA"];

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    /// `tde`, with the URI parameter `tde_read_ahead` and `tde_gather_writes` set to this.
    Tde(&'static str),
}

#[derive(Debug, Clone, Copy)]
struct Setting {
    mode: &'static str,
    synchronous: &'static str,
    locking: &'static str,
    /// Whether the disk overwrites powersafely, as SQLite's URI parameter says it.
    psow: u8,
}

impl Setting {
    fn all() -> impl Iterator<Item = Self> {
        let each = |mode, synchronous| {
            [("NORMAL", 1), ("EXCLUSIVE", 1), ("NORMAL", 0)].map(|(locking, psow)| Self {
                mode,
                synchronous,
                locking,
                psow,
            })
        };
        MODES.into_iter().flat_map(move |mode| {
            SYNCHRONOUS.into_iter().flat_map(move |synchronous| each(mode, synchronous))
        })
    }

    fn sql(self) -> String {
        let Self { mode, synchronous, locking, .. } = self;
        format!(
            "PRAGMA locking_mode={locking}; PRAGMA journal_mode={mode};
             PRAGMA main.synchronous={synchronous}; PRAGMA aux.synchronous={synchronous};
             PRAGMA main.cache_size=8; PRAGMA aux.cache_size=8; PRAGMA temp_store=FILE"
        )
    }
}

/// Without a journal, what SQLite has written cannot be taken back: these need one.
const NEEDS_JOURNAL: [&str; 3] = ["roll back", "roll back what spilled", "savepoint rolled back"];

/// Done one after the other on `main` and `aux`.
const STEPS: [(&str, &str); 19] = [
    ("one row", "UPDATE t SET b = 'one' WHERE a = 7"),
    ("one row again", "UPDATE t SET b = 'two' WHERE a = 150"),
    ("a commit that spills", "BEGIN; UPDATE t SET b = 'spilt' || a; COMMIT"),
    ("roll back", "BEGIN; UPDATE t SET b = 'x' WHERE a = 3; ROLLBACK"),
    ("roll back what spilled", "BEGIN; UPDATE t SET b = 'never' || a; ROLLBACK"),
    (
        "savepoint rolled back",
        "BEGIN; UPDATE t SET b = 'y' WHERE a < 60; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s;
         RELEASE s; COMMIT",
    ),
    ("checkpoint, passive", "PRAGMA wal_checkpoint(PASSIVE)"),
    ("one row after a checkpoint", "UPDATE t SET b = 'three' WHERE a = 8"),
    ("checkpoint, full", "PRAGMA wal_checkpoint(FULL)"),
    ("a log that restarts", "BEGIN; UPDATE t SET b = 'restarted' || a; COMMIT"),
    ("checkpoint, restart", "PRAGMA wal_checkpoint(RESTART)"),
    ("the file grows", "INSERT INTO t(b, c) SELECT b, c FROM t"),
    ("checkpoint, truncate", "PRAGMA wal_checkpoint(TRUNCATE)"),
    ("an index through a sorter", "CREATE INDEX tc ON t(c, b)"),
    ("two databases", "BEGIN; UPDATE main.t SET b = 4 WHERE a = 1; UPDATE aux.t SET b = 4; COMMIT"),
    ("the file shrinks", "DELETE FROM t WHERE a > 20; PRAGMA incremental_vacuum"),
    ("vacuum", "VACUUM"),
    ("vacuum of the other", "VACUUM aux"),
    (
        "automatic checkpoints",
        "PRAGMA wal_autocheckpoint=2; UPDATE t SET b = 5 WHERE a = 1; UPDATE t SET b = b || c;
         UPDATE t SET b = 6 WHERE a = 2",
    ),
];

fn uri(path: &Path, vfs: &str, way: Way, setting: Setting) -> String {
    let tuning = match way {
        Way::Plain => String::new(),
        Way::Tde(switch) => format!("&tde_read_ahead={switch}&tde_gather_writes={switch}"),
    };
    format!("file:{}?vfs={vfs}&psow={}{tuning}", path.display(), setting.psow)
}

fn create(db: &Connection) {
    for schema in ["main", "aux"] {
        db.execute_batch(&format!(
            "PRAGMA {schema}.page_size=1024; PRAGMA {schema}.auto_vacuum=INCREMENTAL;
             CREATE TABLE {schema}.t(a INTEGER PRIMARY KEY, b TEXT, c TEXT);
             WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 200)
             INSERT INTO {schema}.t SELECT i, 'row ' || i, printf('%0200d', i * 7919 % 101) FROM i"
        ))
        .unwrap();
    }
}

/// Where a way's databases are made.
struct Site {
    way: Way,
    below: FaultyVfs,
    home: Home,
}

impl Site {
    fn new(way: Way) -> Self {
        let below = FaultyVfs::new();
        Self { way, below, home: Home::with(|options| options.base(below.name)) }
    }

    /// What is synced by each step.
    fn syncs(&self, setting: Setting) -> Vec<(&'static str, Vec<String>)> {
        let dir = tempfile::tempdir_in(self.home.dir.path()).unwrap();
        let vfs = if self.way == Way::Plain { self.below.name } else { &self.home.vfs };
        let uri = |name: &str| uri(&dir.path().join(name), vfs, self.way, setting);
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(uri("main.db"), flags).unwrap();
        db.execute_batch(&format!("ATTACH '{}' AS aux", uri("aux.db"))).unwrap();
        if self.way == Way::Plain {
            reserve(&db, c"main");
            reserve(&db, c"aux");
        }
        create(&db);
        // The creation of a database is allowed its envelope.
        self.below.clear();
        let mut all = Vec::new();
        let mut step = |name, sql: &str| {
            db.execute_batch(sql).unwrap_or_else(|error| {
                panic!("{setting:?}, {:?}, {name}: {error}", self.way);
            });
            all.push((name, self.below.take_synced()));
        };
        step("settings", &setting.sql());
        for (name, sql) in STEPS {
            if setting.mode != "OFF" || !NEEDS_JOURNAL.contains(&name) {
                step(name, sql);
            }
        }
        drop(db);
        all.push(("close", self.below.take_synced()));
        all
    }
}

#[test]
fn syncs_are_those_of_plain_sqlite() {
    let plain = Site::new(Way::Plain);
    let others = [Site::new(Way::Tde("on")), Site::new(Way::Tde("off"))];
    let (mut seen, mut wrong) = (0, Vec::new());
    for setting in Setting::all() {
        let expected = plain.syncs(setting);
        seen += expected.iter().map(|(_, synced)| synced.len()).sum::<usize>();
        for site in &others {
            for ((step, plain), (_, tde)) in expected.iter().zip(site.syncs(setting)) {
                // The log of an encrypted database is called otherwise.
                let log = |line: &String| line.replace("-wal", "-tdewal");
                let plain: Vec<String> = plain.iter().map(log).collect();
                if plain != tde {
                    let way = site.way;
                    wrong.push(format!("{setting:?}, {way:?}, {step}:\n{}", beside(&plain, &tde)));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ, such as\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
    assert!(seen > 1_000, "plain SQLite synced {seen} times only");
}

/// Both lists from where they part.
fn beside(plain: &[String], tde: &[String]) -> String {
    let same = plain.iter().zip(tde).take_while(|(plain, tde)| plain == tde).count();
    let rest = |list: &[String]| match list.len() - same {
        0 => "nothing".to_owned(),
        n => format!(
            "{} ({n} more)",
            list[same..].iter().take(4).cloned().collect::<Vec<_>>().join("; ")
        ),
    };
    format!("  after {same} that agree\n  plain: {}\n  tde:   {}", rest(plain), rest(tde))
}

/// The table asks for something: where SQLite must sync, the lists are not empty.
#[test]
fn the_counter_sees_what_sqlite_promises() {
    let site = Site::new(Way::Plain);
    let of = |mode, synchronous, step| {
        let setting = Setting { mode, synchronous, locking: "NORMAL", psow: 1 };
        let all = site.syncs(setting);
        all.into_iter().find(|(name, _)| *name == step).unwrap().1.join("; ")
    };
    for (mode, synchronous, step, expected) in [
        ("DELETE", "OFF", "one row", "delete main.db-journal, sync_dir 0"),
        (
            "DELETE",
            "FULL",
            "one row",
            "sync main.db-journal, flags 0x2; sync main.db-journal, flags 0x2; sync main.db, flags 0x2; \
             delete main.db-journal, sync_dir 0",
        ),
        ("WAL", "NORMAL", "one row again", ""),
        ("WAL", "FULL", "one row again", "sync main.db-wal, flags 0x2"),
    ] {
        assert_eq!(of(mode, synchronous, step), expected, "{mode}, {synchronous}, {step}");
    }
}

/// A new database is synced twice more than a plain one: its envelope before the first page, and
/// the second copy of that before the first commit.
#[test]
fn a_new_database_is_synced_twice_more() {
    let (plain, tde) = (Site::new(Way::Plain), Site::new(Way::Tde("on")));
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL"] {
        for synchronous in ["OFF", "FULL"] {
            let setting = Setting { mode, synchronous, locking: "NORMAL", psow: 1 };
            let created = |site: &Site| {
                let dir = tempfile::tempdir_in(site.home.dir.path()).unwrap();
                let vfs = if site.way == Way::Plain { site.below.name } else { &site.home.vfs };
                let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
                let uri = uri(&dir.path().join("main.db"), vfs, site.way, setting);
                let db = Connection::open_with_flags(uri, flags).unwrap();
                site.below.clear();
                let sql = format!(
                    "PRAGMA synchronous={synchronous}; PRAGMA journal_mode={mode}; CREATE TABLE t(a)"
                );
                db.execute_batch(&sql).unwrap();
                let synced = site.below.take_synced();
                let database =
                    synced.iter().filter(|line| line.starts_with("sync main.db,")).count();
                (database, synced.len())
            };
            let (expected, found) = (created(&plain), created(&tde));
            assert_eq!(found, (expected.0 + 2, expected.1 + 2), "{mode}, {synchronous}");
        }
    }
}
