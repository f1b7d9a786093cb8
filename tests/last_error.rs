//! Why SQLite says no more than a code: the words are reachable in every state of a connection.

mod common;

use std::os::unix::fs::FileExt;

use common::{Home, one};
use rusqlite::Connection;
use rusqlite::types::Value;

fn damage(path: &std::path::Path, page: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (16384 + (page - 1) * 4096 + 2000, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

const WORDS: &str = "page 1 failed authentication";

#[test]
fn the_words_are_there_where_the_schema_cannot_be_read() {
    for mode in ["DELETE", "WAL"] {
        let home = Home::new();
        let path = home.path("a.db");
        let db = home.open(&path);
        one(&db, &format!("PRAGMA journal_mode={mode}"));
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
        drop(db);
        damage(&path, 1);
        let db = home.open(&path);
        let host = Connection::open_in_memory().unwrap();
        for turn in 0..2 {
            db.query_row("SELECT * FROM t", [], |_| Ok(())).unwrap_err();
            let words = Value::Text(WORDS.into());
            for sql in ["PRAGMA tde_last_error", "PRAGMA main.TDE_LAST_ERROR"] {
                assert_eq!(one(&db, sql), words, "{mode}, {turn}, {sql}");
            }
            // A connection to another database has the function, as long as it can be read.
            assert_eq!(one(&host, "SELECT tde_last_error()"), words, "{mode}, {turn}");
            // SQLite says whether the function can be called here; its version decides.
            let called = db.query_row("SELECT tde_last_error()", [], |row| row.get::<_, Value>(0));
            println!("{}, {mode}: {called:?}", rusqlite::version());
        }
    }
}

#[test]
fn without_an_error_the_pragma_says_nothing() {
    let home = Home::new();
    std::thread::spawn(move || {
        let db = home.open(&home.path("a.db"));
        db.execute_batch("CREATE TABLE t(a)").unwrap();
        let answer = db.query_row("PRAGMA tde_last_error", [], |row| row.get::<_, String>(0));
        assert!(matches!(answer, Err(rusqlite::Error::QueryReturnedNoRows)), "{answer:?}");
        assert_eq!(one(&db, "SELECT tde_last_error()"), Value::Null);
    })
    .join()
    .unwrap();
}
