//! Why SQLite says no more than a code: the words are reachable in every state of a connection.

use std::os::unix::fs::FileExt;

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde_testkit::{Home, one};

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
        assert_eq!(db.prepare("PRAGMA tde_last_error").unwrap().column_count(), 0);
        assert_eq!(one(&db, "SELECT tde_last_error()"), Value::Null);
    })
    .join()
    .unwrap();
}

/// A connection that its thread keeps to its very end, and that has an error when it is closed.
#[test]
fn a_connection_may_outlive_the_words_of_its_thread() {
    struct Held(Option<Connection>, std::sync::mpsc::Sender<bool>);
    impl Drop for Held {
        fn drop(&mut self) {
            let read = |db: &Connection| db.query_row("SELECT * FROM t", [], |_| Ok(()));
            let refused = self.0.as_ref().is_some_and(|db| read(db).is_err());
            self.0 = None;
            self.1.send(refused).unwrap();
        }
    }
    thread_local! {
        static HELD: std::cell::RefCell<Option<Held>> = const { std::cell::RefCell::new(None) };
    }
    let home = Home::new();
    let path = home.path("a.db");
    home.open(&path).execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    let (send, ended) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Made before what the library keeps for the thread, so it goes after that.
            HELD.with_borrow_mut(|held| {
                let db = home.open(&path);
                damage(&path, 1);
                *held = Some(Held(Some(db), send));
            });
            assert_eq!(sqlite_tde::last_error(), None);
        });
    });
    assert!(ended.recv().unwrap(), "the error");
}

/// As above, with what a destructor may call: opening, and converting an error.
#[test]
fn a_thread_that_ends_may_open_databases_and_convert_errors() {
    struct Opens(std::path::PathBuf, String, std::sync::mpsc::Sender<bool>);
    impl Drop for Opens {
        fn drop(&mut self) {
            let options = sqlite_tde::OpenOptions::new().vfs(&self.1);
            let opened = sqlite_tde::open_with(&self.0, &options).is_err();
            let error = Connection::open("/no/such/directory/a.db").unwrap_err();
            let converted = sqlite_tde::Error::from(error).sqlite_code();
            let _ = self.2.send(opened && converted == rusqlite::ffi::SQLITE_CANTOPEN);
        }
    }
    thread_local! {
        static OPENS: std::cell::RefCell<Option<Opens>> = const { std::cell::RefCell::new(None) };
    }
    let home = Home::new();
    let path = home.path("a.db");
    home.open(&path).execute_batch("CREATE TABLE t(a)").unwrap();
    damage_envelope(&path);
    let (send, ended) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Made before what the library keeps for the thread, so it goes after that.
            OPENS.set(Some(Opens(path.clone(), home.vfs.clone(), send)));
            assert!(sqlite_tde::open_with(&path, &home.options()).is_err());
        });
    });
    assert!(ended.recv().unwrap(), "the errors");
}

fn damage_envelope(path: &std::path::Path) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    [0, 8192].iter().for_each(|&at| file.write_all_at(&[0xff; 512], at).unwrap());
}
