//! What somebody without the key can do to a closed database file, and what must follow.
//!
//! A read gives the data that was written or an error, never anything else, and reading alters
//! nothing. Replay is the documented limit; its rows are here too.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use sqlite_tde::{Error, TdeConnection};
use sqlite_tde_testkit::{Home, one, plain, rows};

const COPY: usize = 8192;
/// Where the slot begins behind a copy of the envelope.
const SLOT: usize = 7680;
const PAGES_AT: usize = 2 * COPY;
const PAGE: usize = 1024;

/// Where page `number` lies in the file.
fn page(number: usize) -> std::ops::Range<usize> {
    let at = PAGES_AT + (number - 1) * PAGE;
    at..at + PAGE
}

/// A database with a table, an index, an overflow page and a free page.
fn build(home: &Home, name: &str, word: &str) -> (PathBuf, Vec<u8>) {
    let path = home.path(name);
    let db = home.open(&path);
    db.execute_batch(&format!(
        "PRAGMA page_size={PAGE};
         CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
         CREATE INDEX i ON t(b);
         INSERT INTO t VALUES(1, '{word}'), (2, 'second'), (3, hex(zeroblob(600)));
         CREATE TABLE gone(a);
         DROP TABLE gone;"
    ))
    .unwrap();
    assert!(number(&db, "PRAGMA freelist_count") > 0);
    drop(db);
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

/// The only number that `sql` answers.
fn number(db: &Connection, sql: &str) -> i64 {
    match one(db, sql) {
        Value::Integer(number) => number,
        other => panic!("{sql}: {other:?}"),
    }
}

fn open_to_read(home: &Home, path: &Path) -> sqlite_tde::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    sqlite_tde::open_with(path, &home.options().flags(flags))
}

/// Everything that can be read, table first and then through the index.
fn scan(db: &Connection) -> sqlite_tde::Result<Vec<String>> {
    let mut found = Vec::new();
    for sql in [
        "SELECT a, b FROM t ORDER BY a",
        "SELECT b FROM t INDEXED BY i ORDER BY b",
        "SELECT name, sql FROM sqlite_schema",
    ] {
        let mut statement = db.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values: Result<Vec<Value>, _> = (0..columns).map(|i| row.get(i)).collect();
            found.push(format!("{:?}", values?));
        }
    }
    Ok(found)
}

/// Page `number` is bad and nothing else: a read meets it, or verification alone does.
fn assert_bad_pages(home: &Home, path: &Path, want: &[u32], good: &[String], what: &str) {
    let db = open_to_read(home, path).unwrap_or_else(|error| panic!("{what}: {error}"));
    match scan(&db) {
        Ok(found) => assert_eq!(found, good, "{what}"),
        Err(Error::PageAuthentication { page }) => assert!(want.contains(&page), "{what}: {page}"),
        Err(error) => panic!("{what}: {error:?}"),
    }
    let found = db.tde_verify("main", |_, _| ()).unwrap();
    assert_eq!(found.bad_pages, want, "{what}");
    assert!(found.bad_envelope_copies.is_empty(), "{what}");
}

#[test]
fn every_flipped_byte_of_every_page_is_found() {
    let home = Home::new();
    let (path, bytes) = build(&home, "a.db", "first");
    let holder = home.open(&path); // spares the others the key provider
    let good = scan(&holder).unwrap();
    let victim = home.path("victim.db");
    fs::write(&victim, &bytes).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&victim).unwrap();
    let mut read_without_meeting_it = 0;
    for at in PAGES_AT..bytes.len() {
        let bad = bytes[at] ^ 1 << (at % 8);
        file.write_all_at(&[bad], at as u64).unwrap();
        let number = ((at - PAGES_AT) / PAGE + 1) as u32;
        let what = format!("byte {} of page {number}", (at - PAGES_AT) % PAGE);
        assert_bad_pages(&home, &victim, &[number], &good, &what);
        read_without_meeting_it += u32::from(scan(&open_to_read(&home, &victim).unwrap()).is_ok());
        let mut after = fs::read(&victim).unwrap();
        assert_eq!(after[at], bad, "{what}: repaired by reading");
        after[at] = bytes[at];
        assert!(after == bytes, "{what}: altered by reading");
        file.write_all_at(&[bytes[at]], at as u64).unwrap();
    }
    let free = number(&holder, "PRAGMA freelist_count") as u32;
    assert_eq!(read_without_meeting_it, free * PAGE as u32, "only free pages go unread");
}

#[test]
fn one_bad_envelope_copy_is_reported_and_the_other_opens() {
    let home = Home::new();
    let (path, bytes) = build(&home, "a.db", "first");
    let holder = home.open(&path);
    let good = scan(&holder).unwrap();
    let victim = home.path("victim.db");
    fs::write(&victim, &bytes).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&victim).unwrap();
    for (at, &byte) in bytes[..PAGES_AT].iter().enumerate() {
        file.write_all_at(&[byte ^ (1 << (at % 8))], at as u64).unwrap();
        let db = open_to_read(&home, &victim).unwrap_or_else(|error| panic!("byte {at}: {error}"));
        assert_eq!(scan(&db).unwrap(), good, "byte {at}");
        let found = db.tde_verify("main", |_, _| ()).unwrap();
        let copy = if at < COPY { 'A' } else { 'B' };
        assert_eq!(found.bad_envelope_copies, [copy], "byte {at}");
        assert!(found.bad_pages.is_empty(), "byte {at}");
        drop(db);
        file.write_all_at(&[byte], at as u64).unwrap();
    }
    assert!(fs::read(&victim).unwrap() == bytes, "reading altered the file");
}

/// With a keyring at hand, nothing a bad envelope says is asked of a provider: its MAC refuses it.
/// Without one, a name or a wrapped key that was altered first leads to the wrong key or to none.
#[test]
fn both_envelope_copies_bad_never_open() {
    let home = Home::new();
    let (path, bytes) = build(&home, "a.db", "first");
    for cached in [true, false] {
        let _holder = cached.then(|| home.open(&path));
        let victim = home.path(&format!("victim-{cached}.db"));
        fs::write(&victim, &bytes).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&victim).unwrap();
        for at in 0..SLOT {
            // Past the content all bytes are the same padding: a sample does.
            if at > 600 && at % 61 != 0 && at != SLOT - 1 {
                continue;
            }
            for copy in [0, COPY] {
                let bad = bytes[copy + at] ^ 1 << (at % 8);
                file.write_all_at(&[bad], (copy + at) as u64).unwrap();
            }
            let what = format!("byte {at} of both copies, keyring at hand: {cached}");
            let error = open_to_read(&home, &victim).map(drop).expect_err(&what);
            let allowed = match at {
                0..16 => matches!(error, Error::NotADatabase(_)),
                16..20 => {
                    matches!(error, Error::FormatTooNew { .. } | Error::EnvelopeDamaged(_))
                }
                _ if cached && !(32..48).contains(&at) => {
                    matches!(error, Error::EnvelopeDamaged(_))
                }
                _ => matches!(
                    error,
                    Error::EnvelopeDamaged(_)
                        | Error::WrongKey(_)
                        | Error::NoKey(_)
                        | Error::ProviderDamaged(_)
                ),
            };
            assert!(allowed, "{what}: {error:?}");
            for copy in [0, COPY] {
                file.write_all_at(&[bytes[copy + at]], (copy + at) as u64).unwrap();
            }
        }
        assert!(fs::read(&victim).unwrap() == bytes, "opening altered the file");
    }
}

/// What must follow an attack.
enum Expect {
    /// These pages are bad, no others, and the database opens.
    Pages(Vec<u32>),
    /// Refused on open with an error of this class.
    Refused(fn(&Error) -> bool),
    /// SQLite's own sense of a database shorter than it says.
    Corrupt,
    /// Nothing is there: to SQLite, a database without a table.
    Nothing,
    /// The same data, and verification names this copy of the envelope.
    Copy(char),
    /// Accepted, and what was written at another time is read. A documented limit.
    Replay(&'static str),
}

#[test]
fn named_attacks() {
    let home = Home::new();
    let (path, yesterday) = build(&home, "a.db", "first");
    let (_, other) = build(&home, "other.db", "first");
    let db = home.open(&path);
    db.execute("UPDATE t SET b = 'today' WHERE a = 1", []).unwrap();
    let good = scan(&db).unwrap();
    drop(db);
    let today = fs::read(&path).unwrap();
    let count = (today.len() - PAGES_AT) / PAGE;
    let all: Vec<u32> = (1..=count as u32).collect();
    let plain_bytes = {
        let db = plain(&home.path("a.plain"));
        db.execute_batch(&format!("PRAGMA page_size={PAGE}; CREATE TABLE t(a, b)")).unwrap();
        drop(db);
        fs::read(home.path("a.plain")).unwrap()
    };

    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = today.clone();
        change(&mut bytes);
        bytes
    };
    let cut = |len: usize| today[..len].to_vec();
    let from = |source: &[u8], number: usize, to: usize| {
        let mut bytes = today.clone();
        bytes[page(to)].copy_from_slice(&source[page(number)]);
        bytes
    };
    let spliced = |head: &[u8], tail: &[u8]| [head, tail].concat();
    let damaged: fn(&Error) -> bool = |error| matches!(error, Error::EnvelopeDamaged(_));
    let no_database: fn(&Error) -> bool = |error| matches!(error, Error::NotADatabase(_));
    let plaintext: fn(&Error) -> bool = |error| matches!(error, Error::PlaintextRefused);
    let last = count as u32;

    #[rustfmt::skip]
    let table: Vec<(&str, Vec<u8>, Expect)> = vec![
        ("pages 2 and 3 exchanged", changed(&|bytes| {
            let second = bytes[page(2)].to_vec();
            bytes.copy_within(page(3), page(2).start);
            bytes[page(3)].copy_from_slice(&second);
        }), Expect::Pages(vec![2, 3])),
        ("page 2 from another database", from(&other, 2, 2), Expect::Pages(vec![2])),
        ("page 1 from another database", from(&other, 1, 1), Expect::Pages(vec![1])),
        ("page 2 again as page 3", from(&today, 2, 3), Expect::Pages(vec![3])),
        ("page 2 again as page 1", from(&today, 2, 1), Expect::Pages(vec![1])),
        ("page 2 zeroed", changed(&|bytes| bytes[page(2)].fill(0)), Expect::Pages(vec![2])),
        ("page 1 zeroed", changed(&|bytes| bytes[page(1)].fill(0)), Expect::Pages(vec![1])),
        ("every page zeroed", changed(&|bytes| bytes[PAGES_AT..].fill(0)), Expect::Pages(all.clone())),
        ("the trailer's zeros set", changed(&|bytes| bytes[page(3).end - 1] = 1), Expect::Pages(vec![3])),
        ("page 2 marked with key version 2", changed(&|bytes| bytes[page(2).end - 45] = 2), Expect::Pages(vec![2])),
        ("page 2 marked with key version 0", changed(&|bytes| bytes[page(2).end - 45] = 0), Expect::Pages(vec![2])),
        ("plaintext pages behind the envelope", spliced(&today[..PAGES_AT], &plain_bytes), Expect::Pages((1..=(plain_bytes.len() / PAGE) as u32).collect())),
        ("a plaintext database in its place", plain_bytes.clone(), Expect::Refused(plaintext)),
        ("rubbish in its place", vec![0xA5; today.len()], Expect::Refused(no_database)),
        ("both envelope copies zeroed", changed(&|bytes| bytes[..PAGES_AT].fill(0)), Expect::Refused(no_database)),
        ("both envelope copies cut to their first sector", changed(&|bytes| {
            bytes[100..COPY].fill(0);
            bytes[COPY + 100..PAGES_AT].fill(0);
        }), Expect::Refused(damaged)),
        ("envelope copy A zeroed", changed(&|bytes| bytes[..COPY].fill(0)), Expect::Copy('A')),
        ("envelope copy B of another database", changed(&|bytes| bytes[COPY..PAGES_AT].copy_from_slice(&other[COPY..PAGES_AT])), Expect::Copy('B')),
        ("the envelope of another database", spliced(&other[..PAGES_AT], &today[PAGES_AT..]), Expect::Pages(all.clone())),
        ("the pages of another database", spliced(&today[..PAGES_AT], &other[PAGES_AT..]), Expect::Pages(all)),
        ("cut by its last page", cut(today.len() - PAGE), Expect::Corrupt),
        ("cut to page 1", cut(PAGES_AT + PAGE), Expect::Corrupt),
        ("cut in the middle of its last page", cut(today.len() - PAGE / 2), Expect::Pages(vec![last])),
        ("cut by one byte", cut(today.len() - 1), Expect::Pages(vec![last])),
        ("cut in the middle of page 1", cut(PAGES_AT + PAGE / 2), Expect::Pages(vec![1])),
        ("cut to its envelope", cut(PAGES_AT), Expect::Refused(damaged)),
        ("cut in the middle of copy B", cut(COPY + COPY / 2), Expect::Refused(damaged)),
        ("cut to copy A", cut(COPY), Expect::Refused(damaged)),
        ("cut in the middle of copy A", cut(COPY / 2), Expect::Refused(damaged)),
        // As good as deleted: an empty file is a database that nobody has written to yet.
        ("cut to nothing", cut(0), Expect::Nothing),
        ("cut inside the magic bytes", cut(8), Expect::Refused(no_database)),
        ("the whole file of yesterday", yesterday.clone(), Expect::Replay("first")),
        ("all pages of yesterday", spliced(&today[..PAGES_AT], &yesterday[PAGES_AT..]), Expect::Replay("first")),
        ("page 2 of yesterday", from(&yesterday, 2, 2), Expect::Replay("first")),
    ];
    for (attack, bytes, expect) in table {
        let victim = home.path("victim.db");
        fs::write(&victim, &bytes).unwrap();
        check(&home, &victim, attack, expect, &good);
        assert!(fs::read(&victim).unwrap() == bytes, "{attack}: altered by reading");
    }
}

fn check(home: &Home, victim: &Path, attack: &str, expect: Expect, good: &[String]) {
    let opened = open_to_read(home, victim);
    let db = match (opened, &expect) {
        (Err(error), Expect::Refused(class)) => {
            return assert!(class(&error), "{attack}: {error:?}");
        }
        (opened, _) => opened.unwrap_or_else(|error| panic!("{attack}: {error:?}")),
    };
    match (expect, scan(&db)) {
        (Expect::Pages(want), _) => assert_bad_pages(home, victim, &want, good, attack),
        (Expect::Corrupt, Err(Error::Sqlite(error))) => {
            assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt), "{attack}");
        }
        (Expect::Nothing, Err(Error::Sqlite(error))) => {
            assert!(error.to_string().contains("no such table"), "{attack}: {error}");
        }
        (Expect::Copy(copy), Ok(found)) => {
            assert_eq!(found, good, "{attack}");
            let found = db.tde_verify("main", |_, _| ()).unwrap();
            assert_eq!(found.bad_envelope_copies, [copy], "{attack}");
            assert!(found.bad_pages.is_empty(), "{attack}");
        }
        (Expect::Replay(word), Ok(_)) => {
            let found = rows(&db, "SELECT b FROM t NOT INDEXED WHERE a = 1");
            assert_eq!(found, [format!("[Text({word:?})]")], "{attack}");
            assert!(db.tde_verify("main", |_, _| ()).unwrap().is_clean(), "{attack}");
        }
        (_, found) => panic!("{attack}: {found:?}"),
    }
}

/// A writer meets a bad page as a reader does, and leaves the file as it found it.
#[test]
fn writing_to_a_bad_page_fails_and_changes_nothing() {
    let home = Home::new();
    let (path, bytes) = build(&home, "a.db", "first");
    for number in [1, 2, 3] {
        let mut bad = bytes.clone();
        bad[page(number).start + 500] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        let db = home.open(&path);
        let error = db.execute("UPDATE t SET b = b || '!'", []).map_err(Error::from).unwrap_err();
        let is_it = matches!(error, Error::PageAuthentication { page } if page == number as u32);
        assert!(is_it, "page {number}: {error:?}");
        drop(db);
        assert!(fs::read(&path).unwrap() == bad, "page {number}: altered");
    }
}
