//! Which state of a database a hot journal belongs to: none is begun where that cannot be told, and
//! an old one that is put beside a newer database changes nothing.

#[allow(dead_code)] // no call is looked at but by its name
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use rusqlite::ffi;
use rusqlite::types::Value;
use sqlite_tde::{Error, TdeConnection};
use sqlite_tde_testkit::between::{self, Call, Method, Watch};
use sqlite_tde_testkit::{Home, beside, code, one, read_dir};

/// Names as the VFS that watches tells them by.
const JOURNAL: &str = "-journal";
const MODES: [&str; 3] = ["DELETE", "TRUNCATE", "PERSIST"];
const PAGES_AT: u64 = 16384;
const PAGE: u64 = 1024;

fn journal(path: &Path) -> PathBuf {
    beside(path, JOURNAL)
}

fn damage(path: &Path, page: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, PAGES_AT + (page - 1) * PAGE + 300).unwrap();
}

const BUILD: &str = "PRAGMA page_size=1024; PRAGMA cache_size=3;
    CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20)
    INSERT INTO t SELECT i, printf('%03d %.600c', i, 'x') FROM n;
    CREATE TABLE gone(x); INSERT INTO gone VALUES(printf('%.6000c', 'g')); DROP TABLE gone;";
const CHANGE: &str = "UPDATE t SET b = b || '.'";

/// What SQLite has in its cache, it goes on with. A journal that is begun beside a damaged page 1
/// would be played back over any state.
#[test]
fn no_journal_is_begun_beside_a_damaged_page_1() {
    for mode in MODES {
        for exclusive in [false, true] {
            for way in ["flipped", "zeroed"] {
                let what = format!("{mode}, exclusive: {exclusive}, page 1 {way}");
                let home = Home::new();
                let path = home.path("a.db");
                let db = home.open(&path);
                let locking = if exclusive { "EXCLUSIVE" } else { "NORMAL" };
                db.execute_batch(&format!(
                    "PRAGMA locking_mode={locking}; PRAGMA journal_mode={mode}; {BUILD}"
                ))
                .unwrap();
                db.execute_batch(CHANGE).unwrap();
                // Page 1 is read, and the lock is held from here on.
                db.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
                let good = fs::read(&path).unwrap();
                match way {
                    "flipped" => damage(&path, 1, &[0xa5; 9]),
                    _ => damage(&path, 1, &[0; 700]),
                }
                let bad = fs::read(&path).unwrap();
                let error = db.execute_batch(CHANGE).expect_err(&what);
                assert_eq!(code(&error), ffi::SQLITE_IOERR_DATA, "{what}: {error}");
                let error = Error::from(error);
                assert!(matches!(error, Error::PageAuthentication { page: 1 }), "{what}: {error}");
                let _ = db.execute_batch("ROLLBACK");
                assert!(fs::read(&path).unwrap() == bad, "{what}: the file was changed");
                let len = fs::metadata(journal(&path)).map_or(0, |file| file.len());
                let stays = mode == "PERSIST" || exclusive;
                assert!(len == 0 || stays, "{what}: a journal of {len} bytes");
                fs::write(&path, &good).unwrap();
                db.execute_batch(CHANGE).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{what}");
            }
        }
    }
}

/// Where page 1 is torn, missing or made up for a good reason, a journal is begun as before.
#[test]
fn journals_are_begun_where_page_1_is_as_it_may_be() {
    for mode in MODES {
        let home = Home::new();
        let path = home.path("a.db");
        let db = home.open(&path);
        db.execute_batch(&format!("PRAGMA journal_mode={mode}; {BUILD}")).unwrap();
        // A killed process, whose power loss tore page 1: the journal has it.
        db.execute_batch(&format!("BEGIN; CREATE TABLE more(x); {CHANGE}")).unwrap();
        let copy = home.path("copy.db");
        for suffix in ["", "-journal"] {
            fs::copy(beside(&path, suffix), beside(&copy, suffix)).unwrap();
        }
        drop(db);
        damage(&copy, 1, &[0xa5; 9]);
        let db = home.open(&copy);
        db.execute_batch(CHANGE).unwrap();
        assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{mode}");
        for sql in [
            "PRAGMA writable_schema=ON; UPDATE sqlite_schema SET sql = sql; PRAGMA writable_schema=OFF",
            "VACUUM",
            "PRAGMA journal_mode=WAL; UPDATE t SET b = b; PRAGMA journal_mode=DELETE",
            "BEGIN; DELETE FROM t; ROLLBACK",
            "PRAGMA user_version=7",
        ] {
            db.execute_batch(sql).unwrap_or_else(|error| panic!("{mode}, {sql}: {error}"));
            db.execute_batch(CHANGE).unwrap_or_else(|error| panic!("{mode}, after {sql}: {error}"));
        }
        drop(db);
        let options = home.options().parameter("nolock", "1");
        let db = sqlite_tde::open_with(&copy, &options).unwrap();
        db.execute_batch(CHANGE).unwrap();
        drop(db);
        // The pages of a creation that outgrows the cache come in any order.
        let db = home.open(&home.path("new.db"));
        db.execute_batch(&format!("PRAGMA journal_mode={mode}; BEGIN; {BUILD} ROLLBACK; {BUILD}"))
            .unwrap();
        let mut from = home.open(&copy);
        rusqlite::backup::Backup::new(&db, &mut from)
            .and_then(|backup| backup.run_to_completion(9, std::time::Duration::ZERO, None))
            .unwrap();
        from.execute_batch(CHANGE).unwrap();
    }
}

/// The files of a moment in the middle of a commit, when SQLite is about to delete the
/// super-journal.
#[derive(Default)]
struct Snapshot {
    dir: Mutex<PathBuf>,
    files: Mutex<Vec<(PathBuf, Vec<u8>)>>,
}

impl Watch for Snapshot {
    fn before(&self, call: &Call<'_>) {
        let dir = self.dir.lock().unwrap().clone();
        if call.method == Method::Delete
            && call.name.contains("-mj")
            && call.name.starts_with(dir.to_str().unwrap())
        {
            *self.files.lock().unwrap() = read_dir(&dir);
        }
    }
}

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(Snapshot::default);

/// A journal, with its super-journal where it has one, from before pages that were free then, or
/// not there yet, got content. Whatever page is damaged, that journal makes nothing of it.
#[test]
fn an_old_journal_beside_a_newer_database_seals_nothing() {
    let base = between::register("unix", &*SNAPSHOT);
    for mode in MODES {
        for with_super in [false, true] {
            let home = Home::with(|options| options.base(base));
            let dir = home.path("files");
            fs::create_dir(&dir).unwrap();
            *SNAPSHOT.dir.lock().unwrap() = dir.clone();
            let (path, other) = (dir.join("a.db"), dir.join("b.db"));
            let db = home.open(&path);
            db.execute_batch(&format!("PRAGMA journal_mode={mode}; {BUILD}")).unwrap();
            let aux = home.uri(&other);
            db.execute_batch(&format!(
                "ATTACH '{aux}' AS aux; PRAGMA aux.journal_mode={mode}; CREATE TABLE aux.u(x)"
            ))
            .unwrap();
            let mut old = if with_super {
                db.execute_batch(&format!("BEGIN; {CHANGE}; INSERT INTO aux.u VALUES(1); COMMIT"))
                    .unwrap();
                std::mem::take(&mut *SNAPSHOT.files.lock().unwrap())
            } else {
                db.execute_batch(&format!("BEGIN; {CHANGE}")).unwrap();
                let files = read_dir(&dir);
                db.execute_batch("COMMIT").unwrap();
                files
            };
            old.retain(|(path, _)| {
                let name = path.to_str().unwrap();
                name.ends_with("a.db-journal") || name.contains("-mj")
            });
            assert_eq!(old.len(), 1 + usize::from(with_super), "{mode}: {old:.0?}");
            let had = (fs::metadata(&path).unwrap().len() - PAGES_AT) / PAGE;
            // What was free gets content, and the file grows.
            for _ in 0..3 {
                db.execute_batch("INSERT INTO t SELECT max(a) + 1, printf('%.3000c', 'n') FROM t")
                    .unwrap();
            }
            drop(db);
            let _ = fs::remove_file(journal(&path));
            let now = fs::read(&path).unwrap();
            let pages = (now.len() as u64 - PAGES_AT) / PAGE;
            assert!(pages > had, "{mode}: {pages} pages");
            let mut refused = 0;
            for page in 1..=pages {
                for opened in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "EXCLUSIVE"] {
                    let what =
                        format!("{mode}, super-journal: {with_super}, page {page}, {opened}");
                    fs::write(&path, &now).unwrap();
                    damage(&path, page, &[0xa5; 9]);
                    for (path, bytes) in &old {
                        fs::write(path, bytes).unwrap();
                    }
                    let before = read_dir(&dir);
                    let db = home.open(&path);
                    let setting = match opened {
                        "EXCLUSIVE" => "PRAGMA locking_mode=EXCLUSIVE".into(),
                        mode => format!("PRAGMA journal_mode={mode}"),
                    };
                    let _ = db.execute_batch(&setting);
                    let read = db
                        .query_row("SELECT sum(length(b)) FROM t", [], |row| row.get::<_, i64>(0));
                    // Without a journal SQLite does not look for one, and would write beside it.
                    if opened != "OFF" {
                        let _ = db.execute_batch(CHANGE);
                    }
                    match read.map_err(Error::from) {
                        Err(Error::JournalOutdated { .. }) => refused += 1,
                        // It tells nothing of the state, for a torn one is what a journal restores.
                        _ if page == 1 => {}
                        other => assert!(opened == "OFF", "{what}: {other:?}"),
                    }
                    let found = db.tde_verify("main", |_, _| ()).unwrap();
                    assert!(page == 1 || found.bad_pages == [page as u32], "{what}: {found:?}");
                    drop(db);
                    let same = before == read_dir(&dir);
                    assert!(same || page == 1, "{what}: files were changed");
                }
            }
            assert!(refused > 0, "{mode}");
        }
    }
}
