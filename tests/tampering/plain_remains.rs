//! What a power loss may leave of a plaintext database beside its journal or log, where `tde` opens
//! it. Its first pages may be zeros, as those of an encrypted database whose creation was cut off;
//! its journal or log can still restore them.
//!
//! The table: what is in the file x what lies beside it x whether plaintext is allowed. Plain
//! SQLite over the same files, at the same path, says what must come.

#[allow(dead_code)] // no call is looked at but by its name
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::Error;
use sqlite_tde_testkit::between::{self, Call, Method, Watch};
use sqlite_tde_testkit::{Home, beside, one, plain};

const PAGE: usize = 1024;
/// Bytes of an envelope, and of what a sector of a disk loses.
const ENVELOPE: usize = 16384;
const SECTOR: usize = 512;

/// The files of a database by suffix; those of its super-journal by their names.
type Files = Vec<(String, Vec<u8>)>;

fn files(path: &Path) -> Files {
    let (dir, name) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
    let mut files = Files::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let found = entry.file_name().into_string().unwrap();
        if let Some(suffix) = found.strip_prefix(name)
            && suffix != "-shm"
        {
            files.push((suffix.into(), fs::read(entry.path()).unwrap()));
        }
    }
    files.sort();
    files
}

fn put(path: &Path, wanted: &[(String, Vec<u8>)]) {
    for (suffix, _) in files(path) {
        fs::remove_file(beside(path, &suffix)).unwrap();
    }
    let _ = fs::remove_file(beside(path, "-shm"));
    for (suffix, bytes) in wanted {
        fs::write(beside(path, suffix), bytes).unwrap();
    }
}

fn of<'a>(files: &'a [(String, Vec<u8>)], wanted: &str) -> &'a [u8] {
    let found = files.iter().find(|(suffix, _)| suffix == wanted);
    found.map(|(_, bytes)| bytes.as_slice()).unwrap_or_default()
}

/// Takes the files of the database right before the super-journal is deleted.
#[derive(Default)]
struct Snapshot(Mutex<(PathBuf, Files)>);

impl Watch for Snapshot {
    fn before(&self, call: &Call<'_>) {
        let mut held = self.0.lock().unwrap();
        if call.method == Method::Delete && call.name.contains("-mj") {
            let found = files(&held.0);
            held.1 = found;
        }
    }
}

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(Snapshot::default);

const BUILD: &str =
    "PRAGMA page_size=1024; PRAGMA cache_size=3; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9)
    INSERT INTO t SELECT i, printf('%03d %.700c', i, 'x') FROM n;";
/// Changes every page.
const CHANGE: &str =
    "UPDATE t SET b = b || 'changed'; INSERT INTO t(b) VALUES(printf('%.700c', 'n'));
    PRAGMA user_version=5;";

/// What may lie beside the file, with the file that it belongs to.
struct Beside {
    name: &'static str,
    db: Vec<u8>,
    files: Files,
    /// It may restore a plaintext database, or cannot be told from what may.
    is_foreign: bool,
    /// It is a plaintext database's for sure.
    is_plain: bool,
}

fn table(home: &Home, path: &Path) -> Vec<Beside> {
    let mut table = Vec::new();
    let mut add = |name, db: &[u8], files: Files, is_foreign, is_plain| {
        table.push(Beside { name, db: db.to_vec(), files, is_foreign, is_plain });
    };
    let journal = |bytes: &[u8]| vec![("-journal".to_owned(), bytes.to_vec())];
    // As a killed process leaves it, whose transaction has changed each page.
    let db = plain(path);
    db.execute_batch(BUILD).unwrap();
    db.execute_batch(&format!("BEGIN; {CHANGE} {CHANGE} {CHANGE}")).unwrap();
    let killed = files(path);
    drop(db);
    let (main, hot) = (of(&killed, "").to_vec(), of(&killed, "-journal").to_vec());
    assert!(hot.len() > 10 * PAGE && main.len() < ENVELOPE);
    let mut void = hot.clone();
    void[..28].fill(0);
    add("nothing", &main, Files::new(), false, false);
    add("a hot journal", &main, journal(&hot), true, true);
    add("a hot journal that was cut", &main, journal(&hot[..hot.len() / 2]), true, true);
    add("an empty journal", &main, journal(&[]), false, false);
    add("a journal whose header is zeros", &main, journal(&void), true, false);
    add("a journal of zeros", &main, journal(&[0; 4096]), true, false);
    add("a journal of garbage", &main, journal(&[7; 4096]), true, false);
    // One transaction over two databases.
    put(path, &Files::new());
    let watch = between::register("unix", &*SNAPSHOT);
    SNAPSHOT.0.lock().unwrap().0 = path.into();
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    let uri = |path: &Path| format!("file:{}?vfs={watch}", path.display());
    let db = Connection::open_with_flags(uri(path), flags).unwrap();
    let other = path.with_file_name("other");
    db.execute_batch(&format!(
        "{BUILD} ATTACH '{}' AS other; CREATE TABLE other.u(x)",
        uri(&other)
    ))
    .unwrap();
    db.execute_batch(&format!("BEGIN; {CHANGE} INSERT INTO other.u VALUES(1); COMMIT")).unwrap();
    drop(db);
    let mut child = std::mem::take(&mut SNAPSHOT.0.lock().unwrap().1);
    let main = of(&child, "").to_vec();
    child.retain(|(suffix, _)| !suffix.is_empty());
    assert_eq!(child.len(), 2, "a journal and a super-journal");
    add("the journal of a transaction over two databases", &main, child.clone(), true, true);
    child.retain(|(suffix, _)| suffix == "-journal");
    add("the same, committed", &main, child, true, true);
    // A log.
    put(path, &Files::new());
    let db = plain(path);
    db.execute_batch(&format!("{BUILD} PRAGMA journal_mode=WAL; {CHANGE}")).unwrap();
    let mut logged = files(path);
    drop(db);
    let main = of(&logged, "").to_vec();
    logged.retain(|(suffix, _)| suffix == "-wal");
    add("a log", &main, logged, true, true);
    // Those of encrypted databases.
    put(path, &Files::new());
    let db = home.open(path);
    db.execute_batch(&format!("{BUILD} BEGIN; {CHANGE}")).unwrap();
    let mut ours = files(path);
    drop(db);
    ours.retain(|(suffix, _)| suffix == "-journal");
    add("a journal of an encrypted database", &[], ours, false, false);
    put(path, &Files::new());
    table
}

/// What the file holds: its name, and the bytes.
fn contents(beside: &Beside) -> Vec<(String, Vec<u8>)> {
    let mut contents: Vec<_> = (0..=ENVELOPE / SECTOR)
        .chain([ENVELOPE / SECTOR + 1, ENVELOPE / SECTOR + 2, 100])
        .map(|sectors| (format!("{sectors} sectors of zeros"), vec![0; sectors * SECTOR]))
        .collect();
    contents.push(("1000 bytes of zeros".into(), vec![0; 1000]));
    if !beside.db.is_empty() {
        for lost in [SECTOR, PAGE, 4 * PAGE, beside.db.len()] {
            for byte in [0, 0xa5] {
                let mut torn = beside.db.clone();
                torn[..lost].fill(byte);
                contents.push((format!("the first {lost} bytes are {byte}"), torn));
            }
        }
        let mut torn = beside.db.clone();
        torn[SECTOR..PAGE].fill(0xa5);
        contents.push(("the second sector is lost".into(), torn));
        contents.push(("whole".into(), beside.db.clone()));
    }
    contents
}

fn all_rows(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare("SELECT a || ' ' || b FROM t ORDER BY a")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    rows.collect()
}

/// What a connection finds: rows, or an error.
fn found(db: rusqlite::Result<Connection>) -> Result<Vec<String>, i32> {
    let rows = db.and_then(|db| {
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let mut rows = all_rows(&db)?;
        rows.push(version.to_string());
        rows.push(db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?);
        Ok(rows)
    });
    rows.map_err(|error| error.sqlite_error().map_or(-1, |error| error.extended_code & 0xff))
}

#[test]
fn what_may_be_restored_is_left_alone_or_restored_as_plain_sqlite_does() {
    let home = Home::new();
    let dir = home.path("files");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("x");
    let allowing = home.options().parameter("tde_plaintext", "allow");
    let (mut restored, mut refused, mut unfinished) = (0, 0, 0);
    for beside in table(&home, &path) {
        for (name, bytes) in contents(&beside) {
            let what = format!("{}, with {} beside it", name, beside.name);
            let mut before = beside.files.clone();
            before.push((String::new(), bytes.clone()));
            before.sort();
            put(&path, &before);
            let wanted = found(Connection::open(&path));
            let left = files(&path);

            let zeros = bytes.iter().all(|&byte| byte == 0);
            let cut_off = zeros && bytes.len() <= ENVELOPE && bytes.len() % SECTOR == 0;
            let is_empty = bytes.is_empty() || cut_off && !beside.is_foreign;
            put(&path, &before);
            let opened = sqlite_tde::open_with(&path, &allowing);
            match opened {
                // As after a creation that was cut off.
                Ok(db) if is_empty => {
                    unfinished += 1;
                    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(7)")
                        .unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(one(&db, "SELECT a FROM t"), Value::Integer(7), "{what}");
                }
                Ok(db) => {
                    restored += usize::from(wanted.is_ok());
                    assert_eq!(found(Ok(db)), wanted, "{what}");
                    assert!(files(&path) == left, "{what}: other files than plain SQLite leaves");
                }
                Err(error) => {
                    assert!(matches!(error, Error::NotADatabase(_)), "{what}: {error}");
                    assert!(!beside.is_plain && wanted.is_err(), "{what}: {error}, not {wanted:?}");
                    assert!(files(&path) == before, "{what}: files were changed");
                }
            }

            put(&path, &before);
            match home.try_open(&path) {
                Ok(db) => {
                    assert!(is_empty, "{what}: opened");
                    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(7)")
                        .unwrap_or_else(|error| panic!("{what}: {error}"));
                }
                Err(error) => {
                    assert!(!is_empty, "{what}: {error}");
                    let is_plain = bytes.starts_with(b"SQLite format 3\0");
                    match error {
                        Error::PlaintextRefused => assert!(is_plain, "{what}"),
                        Error::NotADatabase(words) => {
                            refused += 1;
                            let told = words.contains("NAME-journal");
                            assert!(!is_plain && told == beside.is_foreign, "{what}: {words}");
                        }
                        error => panic!("{what}: {error}"),
                    }
                    assert!(files(&path) == before, "{what}: files were changed");
                }
            }
        }
    }
    put(&path, &Files::new());
    println!("{restored} restored, {refused} refused, {unfinished} of creations");
    assert!(restored > 50 && refused > 50 && unfinished > 50);
}
