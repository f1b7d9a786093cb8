//! Work done through `tde` must leave what the same work leaves on plain SQLite.

mod common;

use common::{Home, dump};
use rusqlite::Connection;

#[test]
fn a_database_is_created_written_and_reopened() {
    let home = Home::new();
    let path = home.path("a.db");
    let db = home.open(&path);
    db.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); INSERT INTO t VALUES(1,'one')").unwrap();
    drop(db);
    let db = home.open(&path);
    let b: String = db.query_row("SELECT b FROM t WHERE a = 1", [], |row| row.get(0)).unwrap();
    assert_eq!(b, "one");
    let ok: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(ok, "ok");
}
