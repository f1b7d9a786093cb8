//! What is stored is in no file, at no time. Looked at from below, where every write
//! passes, and in the directory after each step.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use sqlite_tde_testkit::process::{Process, TOO_LONG};
use sqlite_tde_testkit::vfs::{FaultyVfs, Written, kind_of_file};
use sqlite_tde_testkit::{Home, plain};

/// In every row; any eight bytes of it in a row are too much.
const MARKER: &[u8] = b"zqxjkvwmarker7395canaryhpbfgy";
const SQLITE_MAGIC: &[u8] = b"SQLite format 3";
const JOURNAL_MAGIC: &[u8] = &[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
const WINDOW: usize = 8;
const MODES: [&str; 5] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];
const SETTINGS: &str = "PRAGMA page_size=1024; PRAGMA temp_store=FILE; PRAGMA cache_size=5;";

/// `M` stands for the marker.
const WORK: &[(&str, &str)] = &[
    (
        "table",
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c TEXT);
         WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 200)
         INSERT INTO t SELECT i, 'M' || (i * 7919 % 211), printf('%0100d', i) || 'M' FROM i",
    ),
    ("index", "CREATE INDEX tb ON t(b, c)"),
    ("overflow pages", "INSERT INTO t(b) SELECT group_concat(b) FROM t"),
    ("full text", "CREATE VIRTUAL TABLE f USING fts5(w); INSERT INTO f SELECT b FROM t"),
    (
        "temporary table",
        "CREATE TEMP TABLE x AS SELECT * FROM t; CREATE INDEX temp.xb ON x(b);
         BEGIN; UPDATE x SET b = b || 'M'; ROLLBACK",
    ),
    ("sorter", "CREATE TEMP TABLE y AS SELECT b, c FROM t ORDER BY c || b DESC"),
    (
        "materialised view",
        "CREATE VIEW v AS SELECT DISTINCT b, c FROM t;
         CREATE TEMP TABLE z AS WITH w AS MATERIALIZED (SELECT * FROM v ORDER BY c)
         SELECT w1.b FROM w AS w1 JOIN w AS w2 ON w1.b = w2.b",
    ),
    (
        "statement journal",
        "BEGIN; UPDATE t SET b = b || 'M'; SAVEPOINT s; UPDATE t SET c = 'M' || c;
         UPDATE OR REPLACE t SET a = a + 1000; RELEASE s; COMMIT",
    ),
    ("update", "UPDATE t SET b = c || b"),
    ("delete", "DELETE FROM t WHERE a % 3 = 0"),
    ("vacuum", "VACUUM"),
];
/// Without a journal SQLite cannot roll back.
const ROLLED_BACK: &str = "BEGIN; UPDATE t SET b = 'M' || b || b; DELETE FROM t; ROLLBACK";

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .iter()
        .enumerate()
        .any(|(at, &byte)| byte == needle[0] && haystack[at..].starts_with(needle))
}

/// Whether eight bytes of the marker in a row are in `bytes`.
fn shows_marker(bytes: &[u8]) -> bool {
    let wanted: BTreeSet<&[u8]> = MARKER.windows(WINDOW).collect();
    let mut first = [false; 256];
    for window in &wanted {
        first[usize::from(window[0])] = true;
    }
    bytes.windows(WINDOW).any(|window| first[usize::from(window[0])] && wanted.contains(window))
}

/// `bytes` without the magic behind the name of a super-journal, which stands at the end of a
/// journal.
fn without_name(bytes: &[u8]) -> &[u8] {
    let Some(rest) = bytes.strip_suffix(JOURNAL_MAGIC) else { return bytes };
    let name = rest.len().checked_sub(8).map(|end| &rest[..end]);
    let named =
        name.is_some_and(|name| name.len() > 12 && name[name.len() - 12..].starts_with(b"-mj"));
    if named { rest } else { bytes }
}

/// What of SQLite's or of the user's `bytes` show.
fn shown(bytes: &[u8]) -> Vec<&'static str> {
    let mut out = Vec::new();
    if shows_marker(bytes) {
        out.push("marker");
    }
    if contains(bytes, SQLITE_MAGIC) {
        out.push("header");
    }
    if contains(without_name(bytes), JOURNAL_MAGIC) {
        out.push("journal header");
    }
    out
}

/// What the writes showed: kind of file and what.
fn shown_in(written: &[Written]) -> BTreeSet<(&'static str, &'static str)> {
    written
        .iter()
        .flat_map(|write| {
            shown(&write.data).into_iter().map(|what| (kind_of_file(write.flags), what))
        })
        .collect()
}

fn kinds(written: &[Written]) -> BTreeSet<&'static str> {
    written.iter().map(|write| kind_of_file(write.flags)).collect()
}

fn files_show_nothing(dir: &Path, what: &str) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let found = shown(&std::fs::read(&path).unwrap());
            assert!(found.is_empty(), "{what}: {} shows {found:?}", path.display());
        }
    }
}

fn run(db: &Connection, mode: &str, mut after: impl FnMut(&str)) {
    db.execute_batch(&format!("{SETTINGS} PRAGMA journal_mode={mode}")).unwrap();
    let marker = std::str::from_utf8(MARKER).unwrap();
    let rolled_back = (mode != "OFF").then_some(("rolled back", ROLLED_BACK));
    for (name, sql) in WORK.iter().copied().chain(rolled_back) {
        let sql = sql.replace("'M'", &format!("'{marker}'"));
        db.execute_batch(&sql).unwrap_or_else(|error| panic!("{mode}, {name}: {error}"));
        after(name);
    }
}

#[test]
fn nothing_written_shows_what_is_stored() {
    let vfs = FaultyVfs::new();
    let home = Home::with(|options| options.base(vfs.name));
    let mut seen = BTreeSet::new();
    for mode in MODES {
        vfs.clear();
        vfs.record();
        let db = home.open(&home.path(&format!("{mode}.db")));
        let mut journal = false;
        run(&db, mode, |step| {
            let what = format!("{mode}, {step}");
            let written = vfs.take_written();
            assert!(shown_in(&written).is_empty(), "{what}: {:?}", shown_in(&written));
            seen.extend(kinds(&written));
            journal |= kinds(&written).contains("journal");
            files_show_nothing(home.dir.path(), &what);
        });
        assert_eq!(journal, !["MEMORY", "OFF"].contains(&mode), "{mode}: a journal was written");
        // What an open transaction leaves while it lasts.
        let marker = std::str::from_utf8(MARKER).unwrap();
        db.execute_batch(&format!("BEGIN; UPDATE t SET c = b || '{marker}'")).unwrap();
        files_show_nothing(home.dir.path(), &format!("{mode}, open transaction"));
        db.execute_batch("COMMIT").unwrap();
        drop(db);
        assert!(shown_in(&vfs.take_written()).is_empty(), "{mode}, closing");
        files_show_nothing(home.dir.path(), &format!("{mode}, closed"));
    }
    for kind in ["database", "journal", "temporary database", "temporary journal or sorter"] {
        assert!(seen.contains(kind), "a {kind} was written: {seen:?}");
    }
}

/// The same work on plain SQLite shows the marker in every kind of file: the test above can fail.
#[test]
fn plain_sqlite_shows_it_everywhere() {
    let vfs = FaultyVfs::new();
    let dir = tempfile::tempdir().unwrap();
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        vfs.clear();
        vfs.record();
        let path = dir.path().join(mode);
        let db =
            Connection::open_with_flags_and_vfs(&path, OpenFlags::default(), vfs.name).unwrap();
        let mut all = BTreeSet::new();
        run(&db, mode, |_| all.extend(shown_in(&vfs.take_written())));
        for wanted in [
            ("database", "marker"),
            ("database", "header"),
            ("journal", "marker"),
            ("journal", "journal header"),
            ("temporary database", "marker"),
            ("temporary journal or sorter", "marker"),
        ] {
            assert!(all.contains(&wanted), "{mode}: {wanted:?} is not in {all:?}");
        }
    }
}

const TASK: &str = "SQLITE_TDE_TEST_DEFAULT_VFS";

/// An unencrypted main database sorts what it reads from an encrypted one that is attached.
/// Answers what its writes showed.
fn sort_from_attached(as_default: bool) -> BTreeSet<(&'static str, &'static str)> {
    let vfs = FaultyVfs::new();
    let home =
        Home::with(|options| options.base(vfs.name).as_default(as_default).allow_plaintext(true));
    let secret = home.path("secret.db");
    run(&home.open(&secret), "DELETE", |_| ());
    let main = home.path("main.db");
    Connection::open_with_flags_and_vfs(&main, OpenFlags::default(), "unix")
        .unwrap()
        .execute_batch("CREATE TABLE mine(a); INSERT INTO mine VALUES(1)")
        .unwrap();
    vfs.clear();
    vfs.record();
    let db = if as_default {
        plain(&main)
    } else {
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags_and_vfs(&main, flags, vfs.name).unwrap()
    };
    db.execute_batch(&format!(
        "PRAGMA temp_store=FILE; PRAGMA cache_size=5; ATTACH '{}' AS secret;
         CREATE TEMP TABLE sorted AS SELECT b, c FROM secret.t ORDER BY c || b;
         CREATE INDEX temp.sb ON sorted(b);
         BEGIN; INSERT INTO mine VALUES(2); UPDATE secret.t SET b = b || b; COMMIT",
        home.uri(&secret)
    ))
    .unwrap();
    let written = vfs.take_written();
    assert!(kinds(&written).contains("temporary journal or sorter"), "{:?}", kinds(&written));
    shown_in(&written)
}

/// The task of the process below: the default VFS is the whole process's.
#[test]
fn as_default_vfs_in_a_process_of_its_own() {
    if std::env::var_os(TASK).is_none() {
        return;
    }
    let shown = sort_from_attached(true);
    assert!(shown.contains(&("database", "header")), "main is plaintext: {shown:?}");
    assert!(shown.iter().all(|(_, what)| *what != "marker"), "{shown:?}");
}

#[test]
fn temporary_files_of_a_plain_main_database_are_encrypted_under_a_default_vfs() {
    let test = "as_default_vfs_in_a_process_of_its_own";
    Process::start(test, TASK, "1").finish(TOO_LONG).unwrap();
    // And this is why: without it, the sorter writes what it sorts.
    let shown = sort_from_attached(false);
    assert!(shown.contains(&("temporary journal or sorter", "marker")), "{shown:?}");
}
