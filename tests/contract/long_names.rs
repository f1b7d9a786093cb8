//! Database names for whose log the file system has just room: what plain SQLite can do, `tde` can.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde_testkit::{Home, one, rows};

/// What a database answers in WAL mode, also after a kill and after a close.
fn works(connect: &dyn Fn() -> rusqlite::Result<Connection>, path: &Path) -> Result<(), String> {
    let text = |error: rusqlite::Error| error.to_string();
    let db = connect().map_err(text)?;
    // There is no room for `-journal`.
    db.execute_batch("PRAGMA journal_mode=MEMORY; CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        .map_err(text)?;
    db.execute_batch("PRAGMA journal_mode=WAL; INSERT INTO t VALUES(2)").map_err(text)?;
    assert_eq!(one(&db, "PRAGMA journal_mode"), Value::Text("wal".into()));
    let dir = path.parent().unwrap();
    let killed: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.display().to_string().ends_with("-shm"))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    drop(db);
    for (path, bytes) in killed {
        fs::write(path, bytes).unwrap();
    }
    let db = connect().map_err(text)?;
    assert_eq!(rows(&db, "SELECT a FROM t").len(), 2);
    db.execute_batch("PRAGMA wal_checkpoint; INSERT INTO t VALUES(3); PRAGMA journal_mode=MEMORY")
        .map_err(text)?;
    db.close().unwrap();
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "nothing is left beside it");
    let db = connect().map_err(text)?;
    assert_eq!(rows(&db, "SELECT a FROM t").len(), 3);
    Ok(())
}

#[test]
fn wal_mode_works_wherever_plain_sqlite_has_it() {
    let home = Home::new();
    for len in 245..=256 {
        let name = "n".repeat(len);
        let path = |dir: &str| {
            fs::create_dir_all(home.path(dir)).unwrap();
            home.path(dir).join(&name)
        };
        let (sealed, clear) = (path(&format!("sealed{len}")), path(&format!("clear{len}")));
        let uri = home.uri(&sealed);
        let sealed = works(
            &|| {
                let flags = rusqlite::OpenFlags::default() | rusqlite::OpenFlags::SQLITE_OPEN_URI;
                Connection::open_with_flags(&uri, flags)
            },
            &sealed,
        );
        let clear = works(
            &|| {
                Connection::open_with_flags(
                    format!("file:{}", clear.display()),
                    rusqlite::OpenFlags::default() | rusqlite::OpenFlags::SQLITE_OPEN_URI,
                )
            },
            &clear,
        );
        assert_eq!(sealed.is_ok(), clear.is_ok(), "{len} bytes: {sealed:?}, plain {clear:?}");
        assert_eq!(sealed.is_ok(), len <= 251, "{len} bytes: {sealed:?}");
    }
}
