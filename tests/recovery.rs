//! A process that dies in the middle of a transaction leaves a hot journal; the next one to open
//! the database rolls it back. The process is this test binary, started again with a task.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::provider::Keystore;
use sqlite_tde::{OpenOptions, TdeConnection};
use sqlite_tde_testkit::process::{self, Process, TOO_LONG};
use sqlite_tde_testkit::vfs::{FaultyVfs, Kind, Method};
use sqlite_tde_testkit::{Home, one, read_dir, rows};

const TASK: &str = "SQLITE_TDE_TEST_DIES_IN";
const MODES: [&str; 3] = ["DELETE", "TRUNCATE", "PERSIST"];

fn connect(dir: &Path, mode: &str) -> Connection {
    let options = sqlite_tde_testkit::options("r").keystore(Keystore::at(dir.join("keys")));
    sqlite_tde::register(options.replace(true)).unwrap();
    let options = OpenOptions::new().vfs("r");
    let db = sqlite_tde::open_with(dir.join(format!("{mode}.db")), &options).unwrap();
    db.execute_batch(&format!(
        "PRAGMA page_size=1024; PRAGMA journal_mode={mode}; PRAGMA cache_size=4;"
    ))
    .unwrap();
    db
}

/// Leaves a transaction open whose pages have spilled into the database, and dies.
#[test]
fn dies_with_a_transaction_open() {
    let Ok(dir) = std::env::var(TASK) else { return };
    let (dir, mode) = dir.split_once('|').unwrap();
    let db = connect(Path::new(dir), mode);
    db.execute_batch(
        "BEGIN; CREATE TABLE extra(x); UPDATE t SET b = zeroblob(700); DELETE FROM t WHERE a % 2",
    )
    .unwrap();
    std::process::abort();
}

fn create(dir: &Path, mode: &str) -> Vec<String> {
    let db = connect(dir, mode);
    db.execute_batch(
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
         INSERT INTO t SELECT i, zeroblob(i) FROM n;",
    )
    .unwrap();
    rows(&db, "SELECT a, hex(b) FROM t")
}

fn die(dir: &Path, mode: &str) {
    let task = format!("{}|{mode}", dir.display());
    let child = Process::start("dies_with_a_transaction_open", TASK, &task);
    child.finish(TOO_LONG).expect_err("the child has to die");
}

fn journal(dir: &Path, mode: &str) -> PathBuf {
    dir.join(format!("{mode}.db-journal"))
}

#[test]
fn a_hot_journal_is_rolled_back() {
    for mode in MODES {
        let home = Home::new();
        let before = create(home.dir.path(), mode);
        for round in 0..3 {
            die(home.dir.path(), mode);
            assert!(journal(home.dir.path(), mode).metadata().unwrap().len() > 1000, "{mode}: hot");
            let db = connect(home.dir.path(), mode);
            assert_eq!(rows(&db, "SELECT a, hex(b) FROM t"), before, "{mode} round {round}");
            assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{mode}");
            assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{mode}");
        }
    }
}

/// Page 1 is torn when the power fails, and the journal still holds it.
#[test]
fn a_torn_first_page_is_restored_from_the_journal() {
    for mode in MODES {
        let home = Home::new();
        let before = create(home.dir.path(), mode);
        die(home.dir.path(), mode);
        let path = home.path(&format!("{mode}.db"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[16384..16384 + 512].fill(0x5a);
        std::fs::write(&path, &bytes).unwrap();
        let db = connect(home.dir.path(), mode);
        assert_eq!(rows(&db, "SELECT a, hex(b) FROM t"), before, "{mode}");
        assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{mode}");
    }
}

/// A journal beside a database that it does not belong to must not be applied.
#[test]
fn the_journal_of_another_database_is_ignored() {
    let (one_home, other_home) = (Home::new(), Home::new());
    let before = create(one_home.dir.path(), "DELETE");
    create(other_home.dir.path(), "DELETE");
    die(other_home.dir.path(), "DELETE");
    std::fs::copy(journal(other_home.dir.path(), "DELETE"), journal(one_home.dir.path(), "DELETE"))
        .unwrap();
    let db = connect(one_home.dir.path(), "DELETE");
    assert_eq!(rows(&db, "SELECT a, hex(b) FROM t"), before);
    assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()));
}

/// A transaction over two databases stops where its super-journal should be deleted. Each is opened
/// by itself, so the other's journal cannot be read, and must keep the super-journal alive.
#[test]
fn two_databases_of_one_transaction_are_rolled_back_one_by_one() {
    for mode in MODES {
        for first in ["main.db", "aux.db"] {
            let what = format!("{mode}, {first} first");
            let vfs = FaultyVfs::new();
            let home = Home::with(|options| options.base(vfs.name));
            let open = || {
                let db = home.open(&home.path("main.db"));
                let uri = home.uri(&home.path("aux.db"));
                db.execute_batch(&format!("ATTACH '{uri}' AS aux; PRAGMA journal_mode={mode};"))
                    .unwrap();
                db
            };
            let db = open();
            db.execute_batch("CREATE TABLE main.t(a); CREATE TABLE aux.t(a)").unwrap();
            let work = "BEGIN; INSERT INTO main.t VALUES(1); INSERT INTO aux.t VALUES(1); COMMIT";
            // The same calls each time, once there are journals to reuse.
            let mut delete = 0;
            for _ in 0..2 {
                vfs.clear();
                db.execute_batch(work).unwrap();
                let calls = vfs.calls();
                delete = calls.iter().position(|call| call.0 == Method::Delete).unwrap();
                db.execute_batch("DELETE FROM main.t; DELETE FROM aux.t").unwrap();
            }
            vfs.fail(delete, Kind::From);
            assert!(db.execute_batch(work).is_err(), "{what}");
            drop(db);
            vfs.clear();
            let super_journals = || {
                let names = std::fs::read_dir(home.dir.path())
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap());
                names.filter(|name| name.contains("-mj")).count()
            };
            assert_eq!(super_journals(), 1, "{what}");
            let second = if first == "main.db" { "aux.db" } else { "main.db" };
            for (name, left) in [(first, 1), (second, 0)] {
                let db = home.open(&home.path(name));
                assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(0), "{what}: {name}");
                assert_eq!(one(&db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{what}");
                drop(db);
                assert_eq!(super_journals(), left, "{what}: after {name}");
            }
            open().execute_batch(work).unwrap();
        }
    }
}

/// The same with an unencrypted database among three. Its journal, persistent and already used, is
/// looked at before the one that cannot be read.
#[test]
fn a_plain_database_of_the_same_transaction_comes_first() {
    let vfs = FaultyVfs::new();
    let home = Home::with(|options| options.base(vfs.name).allow_plaintext(true));
    let names = ["plain.db", "second.db", "third.db"];
    sqlite_tde_testkit::plain(&home.path(names[0])).execute_batch("CREATE TABLE t(a)").unwrap();
    let open = || {
        let db = home.open(&home.path(names[0]));
        for (schema, name) in [("second", names[1]), ("third", names[2])] {
            let uri = home.uri(&home.path(name));
            db.execute_batch(&format!("ATTACH '{uri}' AS {schema}")).unwrap();
        }
        db.execute_batch("PRAGMA journal_mode=PERSIST").unwrap();
        db
    };
    let work = "BEGIN; INSERT INTO main.t VALUES(1); INSERT INTO second.t VALUES(1);
                INSERT INTO third.t VALUES(1); COMMIT";
    let db = open();
    db.execute_batch("CREATE TABLE second.t(a); CREATE TABLE third.t(a)").unwrap();
    db.execute_batch(work).unwrap();
    vfs.clear();
    db.execute_batch(work).unwrap();
    let delete = vfs.calls().iter().position(|(method, _)| *method == Method::Delete).unwrap();
    vfs.fail(delete, Kind::From);
    assert!(db.execute_batch(work).is_err());
    drop(db);
    vfs.clear();
    // The third before the second: the second's keys are not there when the third's journal goes.
    for name in [names[0], names[2], names[1]] {
        let db = home.open(&home.path(name));
        assert_eq!(one(&db, "SELECT count(*) FROM t"), Value::Integer(2), "{name}");
        // Another transaction leaves a journal that names nothing.
        db.execute_batch("PRAGMA journal_mode=PERSIST; INSERT INTO t VALUES(2)").unwrap();
    }
}

/// Databases of one transaction, main first: whether each is encrypted.
const MIXES: [&[bool]; 5] =
    [&[false, true], &[true, false], &[true, true], &[false, true, true], &[true, false, true]];

/// The orders of `n` things.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let with_last = |order: Vec<usize>| {
        (0..n).map(move |at| {
            let mut order = order.clone();
            order.insert(at, n - 1);
            order
        })
    };
    orders(n - 1).into_iter().flat_map(with_last).collect()
}

/// One transaction over plain and encrypted databases is cut off at any call. Each database is then
/// opened by itself, the plain ones by a VFS that knows nothing of the others, in every order, also
/// after that VFS has looked at all of them: the transaction is done in all or in none.
#[test]
fn one_transaction_over_plain_and_encrypted_databases_is_one() {
    let every = if process::full() { 1 } else { 7 };
    let (mut points, mut counts) = (0, [0, 0, 0]);
    for mode in MODES {
        for (number, mix) in MIXES.into_iter().enumerate() {
            let vfs = FaultyVfs::new();
            let home = Home::with(|options| options.base(vfs.name));
            let dir = home.path("files");
            std::fs::create_dir(&dir).unwrap();
            let path = |i: usize| dir.join(format!("{i}.db"));
            let plain_uri = |i: usize| format!("file:{}?vfs={}", path(i).display(), vfs.name);
            let uri = |i: usize| if mix[i] { home.uri(&path(i)) } else { plain_uri(i) };
            let connect = |uri: String| sqlite_tde_testkit::plain(Path::new(&uri));
            let open = || {
                let db = connect(uri(0));
                for i in 1..mix.len() {
                    db.execute_batch(&format!("ATTACH '{}' AS d{i}", uri(i))).unwrap();
                }
                db.execute_batch(&format!("PRAGMA journal_mode={mode}")).unwrap();
                for i in 0..mix.len() {
                    let name = if i == 0 { "main".to_owned() } else { format!("d{i}") };
                    db.execute_batch(&format!(
                        "PRAGMA {name}.cache_size=3; PRAGMA {name}.synchronous=FULL"
                    ))
                    .unwrap();
                }
                db
            };
            let schema = |i: usize| if i == 0 { "main".to_owned() } else { format!("d{i}") };
            let all = |sql: &str| -> String {
                (0..mix.len()).map(|i| sql.replace("schema", &schema(i))).collect()
            };
            let work =
                format!("BEGIN; {} COMMIT", all("UPDATE schema.t SET n = n + 1, b = b || 'y';"));
            let fill = "CREATE TABLE schema.t(a INTEGER PRIMARY KEY, n, b);
                WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 40)
                INSERT INTO schema.t SELECT i, 0, printf('%0400d', i) FROM i;";
            let db = open();
            db.execute_batch(&all(fill)).unwrap();
            // Journals that are reused were used before.
            db.execute_batch(&work).unwrap();
            let start = read_dir(&dir);
            vfs.clear();
            db.execute_batch(&work).unwrap();
            let calls = vfs.calls().len();
            drop(db);
            for point in (number % every..=calls).step_by(every) {
                points += 1;
                put_back(&dir, &start);
                let db = open();
                // As many calls as in the connection that went on are behind it.
                let _: i64 =
                    db.query_row("SELECT count(*) FROM main.t", [], |row| row.get(0)).unwrap();
                vfs.fail(point, Kind::From);
                let _ = db.execute_batch(&work);
                drop(db);
                vfs.clear();
                let left = read_dir(&dir);
                // What was written last of an encrypted journal may be lost with the power: its
                // end.
                let mut lost = left.clone();
                let names = lost.iter_mut().map(lose_name).filter(|lost| *lost).count();
                let pending = left.iter().any(|(path, _)| path.to_str().unwrap().contains("-mj"));
                let images = if names > 0 && pending { vec![&left, &lost] } else { vec![&left] };
                for (image, files) in images.into_iter().enumerate() {
                    for (turn, order) in orders(mix.len()).into_iter().enumerate() {
                        put_back(&dir, files);
                        let what = format!(
                            "{mode}, {mix:?}, point {point} of {calls}, image {image}, order {order:?}"
                        );
                        if turn % 2 == 0 {
                            for i in (0..mix.len()).filter(|&i| mix[i]) {
                                let db = connect(plain_uri(i));
                                let told =
                                    db.query_row("SELECT * FROM sqlite_schema", [], |_| Ok(()));
                                let told = told.unwrap_err().to_string();
                                assert!(told.contains("not a database"), "{what}: {told}");
                            }
                        }
                        let mut seen = Vec::new();
                        for &i in &order {
                            let db = connect(uri(i));
                            seen.push(sqlite_tde_testkit::rows(
                                &db,
                                "SELECT DISTINCT n, length(b) FROM t",
                            ));
                            let sound = one(&db, "PRAGMA integrity_check");
                            assert_eq!(sound, Value::Text("ok".into()), "{what}: {i}");
                        }
                        let same = seen.iter().all(|rows| rows.len() == 1 && *rows == seen[0]);
                        assert!(same, "{what}: {seen:?}");
                        let done = seen[0][0].contains("Integer(2)");
                        assert!(image == 0 || !done, "{what}: done before its commit");
                        counts[if image == 1 { 2 } else { usize::from(done) }] += 1;
                    }
                }
            }
        }
    }
    eprintln!("{points} points: none, all, none after power loss: {counts:?}");
    assert!(counts[0] > 50 && counts[1] > 5 && counts[2] > 20, "{counts:?}");
}

/// Cuts the name of a super-journal off an encrypted journal.
fn lose_name((_, bytes): &mut (PathBuf, Vec<u8>)) -> bool {
    let named = bytes.starts_with(b"\0sqlite-tde jrnl")
        && bytes.ends_with(&[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]);
    if named {
        let at = bytes.len() - 16;
        let name = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        bytes.truncate(at - name);
    }
    named
}

fn put_back(dir: &Path, files: &[(PathBuf, Vec<u8>)]) {
    for entry in std::fs::read_dir(dir).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (path, bytes) in files {
        std::fs::write(path, bytes).unwrap();
    }
}
