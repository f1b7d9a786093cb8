//! Settings that contradict each other are refused when they are said, and errors belong to calls.

use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::{Error, Options};
use sqlite_tde_testkit::{Home, one, plain};

fn usage<T: std::fmt::Debug>(what: &str, result: sqlite_tde::Result<T>, words: &[&str]) {
    match result {
        Err(Error::Usage(text) | Error::Config(text)) => {
            for words in words {
                assert!(text.contains(words), "{what}: {text}");
            }
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn names_and_parameters_that_would_be_passed_over_are_refused() {
    let home = Home::new();
    let path = home.path("a.db");
    usage("another VFS", sqlite_tde::register(Options::new().name("unix")), &["unix"]);
    usage("no name", sqlite_tde::register(Options::new().name("")), &["it needs one"]);
    usage(
        "opened in another VFS",
        sqlite_tde::open_with(&path, &home.options().vfs("unix")),
        &["unix"],
    );
    let twice = [
        ("vfs", home.options().parameter("vfs", "unix")),
        ("tde_protector", home.options().protector("a").parameter("tde_protector", "b")),
        (
            "tde_plaintext",
            home.options().allow_plaintext(false).parameter("tde_plaintext", "allow"),
        ),
        ("immutable", home.options().parameter("immutable", "0").parameter("immutable", "1")),
        ("", home.options().parameter("", "1")),
    ];
    for (name, options) in twice {
        usage(name, options.uri(&path), &[name]);
        usage(name, sqlite_tde::open_with(&path, &options), &[name]);
    }
    assert!(!path.exists());
}

#[test]
fn the_path_that_is_given_is_opened() {
    let home = Home::new();
    for (number, start) in ["/", "//localhost", "///"].into_iter().enumerate() {
        let path = home.path(&format!("{number}.db"));
        let text = format!("{start}{}", path.display());
        let opened = home.try_open(Path::new(&text));
        if start.contains("localhost") {
            assert!(opened.is_err() && !path.exists(), "{text}");
            continue;
        }
        opened.unwrap().execute_batch("CREATE TABLE t(a)").unwrap();
        assert!(path.exists(), "{text}");
    }
}

/// An error that a connection of rusqlite had is no other connection's.
#[test]
fn an_error_belongs_to_one_call() {
    let home = Home::new();
    let (secret, open) = (home.path("secret.db"), home.path("open.db"));
    let db = home.open(&secret);
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
    let writer = home.open(&secret);
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let busy = |db: &Connection, sql| {
        db.busy_timeout(std::time::Duration::ZERO).unwrap();
        db.query_row(sql, [], |_| Ok(())).unwrap_err()
    };
    // A provider's call, a protector's name and a file id would be somebody else's business.
    let ours = busy(&db, "SELECT tde_auto_rotate('off')");
    let (code, ours) = (ours.sqlite_error_code(), Error::from(ours));
    assert!(matches!(ours, Error::Busy(_)), "{code:?}, {ours:?}");
    let dropped = busy(&db, "SELECT tde_auto_rotate('off')");
    let others = [plain(&open), plain(&open)];
    others[0].execute_batch("CREATE TABLE p(a); BEGIN EXCLUSIVE").unwrap();
    let theirs = Error::from(busy(&others[1], "SELECT * FROM p"));
    assert!(matches!(theirs, Error::Sqlite(_)), "{theirs}, after {dropped}");
    let read_only = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let reader = sqlite_tde::open_with(&secret, &home.options().flags(read_only)).unwrap();
    let dropped = busy(&reader, "SELECT tde_auto_rotate('off')");
    let viewer = Connection::open_with_flags(&open, read_only).unwrap();
    others[0].execute_batch("COMMIT").unwrap();
    let theirs = Error::from(viewer.execute("INSERT INTO p VALUES(1)", []).unwrap_err());
    assert!(matches!(theirs, Error::Sqlite(_)), "{theirs}, after {dropped}");
    assert_eq!(one(&db, "SELECT a FROM t"), Value::Integer(1));
}
