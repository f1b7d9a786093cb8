//! A process that dies in the middle of a transaction leaves a hot journal; the next one to open the
//! database rolls it back. The process is this test binary, started again with a task.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Home, one, rows};
use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::provider::Keystore;
use sqlite_tde::{OpenOptions, Options};

const TASK: &str = "SQLITE_TDE_TEST_DIES_IN";
const MODES: [&str; 3] = ["DELETE", "TRUNCATE", "PERSIST"];

fn connect(dir: &Path, mode: &str) -> Connection {
    sqlite_tde::register(Options::new().name("r").keystore(Keystore::at(dir.join("keys"))))
        .unwrap();
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
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["dies_with_a_transaction_open", "--exact", "--quiet"])
        .env(TASK, format!("{}|{mode}", dir.display()))
        .output()
        .unwrap()
        .status;
    assert!(!status.success(), "{mode}: the child had to die");
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
            assert!(sqlite_tde::verify(&db, "main", |_, _| ()).unwrap().is_clean(), "{mode}");
        }
    }
}

/// T1: page 1 is torn when the power fails, and the journal still holds it.
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
        assert!(sqlite_tde::verify(&db, "main", |_, _| ()).unwrap().is_clean(), "{mode}");
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
