//! Databases, journals and logs read by `docs/format.md` alone: by a program in Python that was
//! written from that page and has nothing of the library in it.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use rusqlite::Connection;
use rusqlite::types::Value;
use sqlite_tde::provider::{Cost, Keystore, Passphrase, RawKey, SecretSource};
use sqlite_tde_testkit::{Home, dump, one, plain};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/format/decrypt.py");
const PASSPHRASE: &str = "correct horse";
const CHEAP: Cost = Cost { memory_kib: 16, iterations: 2, parallelism: 2 };
const SUITES: [&str; 3] = ["aes-256-gcm", "aes-256-ctr-hmac-sha256", "aegis-256x4"];
const PROTECTORS: [&str; 3] = ["keystore:app", "raw:label", "passphrase:label"];

/// The journal mode of a database, and what is under way when its files are copied.
const MOMENTS: [(&str, &str, &str); 6] = [
    ("nothing under way", "DELETE", ""),
    ("a hot journal", "DELETE", "BEGIN; UPDATE t SET b = zeroblob(900); DELETE FROM t WHERE a > 5"),
    (
        "a hot journal of several parts over an older one",
        "PERSIST",
        "UPDATE t SET b = b || 1; BEGIN; UPDATE t SET b = hex(a) || b;
         INSERT INTO t SELECT a + 100, b FROM t; UPDATE t SET b = zeroblob(1200)",
    ),
    ("a journal that is done with", "TRUNCATE", "DELETE FROM t WHERE a % 2"),
    ("a log", "WAL", "UPDATE t SET b = b || 'more' WHERE a % 3 = 0; INSERT INTO t VALUES(60, 1)"),
    (
        "a log with frames of a transaction that is not committed",
        "WAL",
        "INSERT INTO t VALUES(50, 'it is committed'); BEGIN; UPDATE t SET b = zeroblob(1000)",
    ),
];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn secret(path: PathBuf, content: &str) -> SecretSource {
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    SecretSource::File(path)
}

/// A VFS with a protector of each kind.
fn home() -> (Home, tempfile::TempDir) {
    let secrets = tempfile::tempdir().unwrap();
    let raw = RawKey::new(secret(secrets.path().join("raw"), &"0123456789abcdef".repeat(4)));
    let typed = Passphrase::new(secret(secrets.path().join("typed"), &format!("{PASSPHRASE}\n")));
    let home = Home::with(|options| {
        let options = options.provider("raw", Arc::new(raw));
        options.provider("passphrase", Arc::new(typed.cost(CHEAP)))
    });
    Keystore::at(home.path("keys")).create("app").unwrap();
    (home, secrets)
}

fn copy(from: &Path, to: &Path) {
    for suffix in ["", "-journal", "-tdewal"] {
        let name = |path: &Path| format!("{}{suffix}", path.display());
        if Path::new(&name(from)).exists() {
            fs::copy(name(from), name(to)).unwrap();
        }
    }
}

fn decrypt(from: &Path, to: &Path, home: &Home, secrets: &Path) -> Output {
    let mut command = Command::new("python3");
    command.arg(PROGRAM).args([from, to]);
    command.args(["--keystore", text(&home.path("keys/keystore.json"))]);
    command.args(["--raw", text(&secrets.join("raw"))]).args(["--passphrase", PASSPHRASE]);
    command.output().unwrap()
}

fn assert_reads(found: &Output, what: &str) {
    let said = String::from_utf8_lossy(&found.stderr);
    assert!(found.status.success(), "{what}: {said}");
}

fn assert_same(by_document: &Path, by_library: &Connection, what: &str) {
    let read = plain(by_document);
    assert_eq!(one(&read, "PRAGMA integrity_check"), Value::Text("ok".into()), "{what}");
    assert_eq!(dump(&read, "main"), dump(by_library, "main"), "{what}");
}

#[test]
fn a_program_written_from_the_document_reads_what_the_library_wrote() {
    let (home, secrets) = home();
    let mut number = 0;
    for (row, page_size) in [1024, 4096, 65536].into_iter().enumerate() {
        for (column, (moment, mode, work)) in MOMENTS.into_iter().enumerate() {
            // Larger pages under one suite each: Python takes its time.
            let turn = (row + column) % SUITES.len();
            let suites = if page_size == 1024 { &SUITES[..] } else { &SUITES[turn..=turn] };
            for &suite in suites {
                number += 1;
                let protector = PROTECTORS[number % PROTECTORS.len()];
                let what = format!("{page_size}, {moment}, {suite}, {protector}");
                let paths =
                    ["db", "copy", "same", "out"].map(|n| home.path(&format!("{number}.{n}")));
                let [path, copied, same, out] = &paths;
                let options = home.options().protector(protector).parameter("tde_cipher", suite);
                let db = sqlite_tde::open_with(path, &options).unwrap();
                let begin = format!(
                    "PRAGMA page_size={page_size}; PRAGMA cache_size=1; PRAGMA journal_mode={mode};
                     PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
                     CREATE TABLE u(c); INSERT INTO u VALUES('café');
                     WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12)
                     INSERT INTO t SELECT i, hex(zeroblob(i * 40)) FROM n; {work}"
                );
                db.execute_batch(&begin).unwrap_or_else(|error| panic!("{what}: {error}"));
                db.cache_flush().unwrap_or_else(|error| panic!("{what}: {error}"));
                copy(path, copied);
                copy(path, same);
                let journal = fs::metadata(format!("{}-journal", copied.display()));
                let is_hot = journal.is_ok_and(|journal| journal.len() > 0);
                assert!(!moment.contains("hot") || is_hot, "{what}: no journal");
                assert_reads(&decrypt(copied, out, &home, secrets.path()), &what);
                assert_same(out, &home.open(same), &what);
            }
        }
    }
}

/// The program refuses what it has no key for, and what was changed.
#[test]
fn the_program_refuses_other_keys_and_changed_pages() {
    let (home, secrets) = home();
    let (path, out) = (home.path("db"), home.path("out"));
    home.open(&path)
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(9000))")
        .unwrap();
    let foreign = Home::new();
    Keystore::at(foreign.path("keys")).create("app").unwrap();
    let good = fs::read(&path).unwrap();
    let refused = |home: &Home, words: &str| {
        let found = decrypt(&path, &out, home, secrets.path());
        let said = String::from_utf8_lossy(&found.stderr).into_owned();
        assert!(said.contains(words) && !found.status.success(), "{words}: {said}");
    };
    refused(&foreign, "no key opens the envelope");
    for (at, words) in [(40, "no key opens the envelope"), (good.len() - 60, "pages fail: [")] {
        let mut bad = good.clone();
        for at in [at, at + 8192].into_iter().filter(|&at| at < good.len()) {
            bad[at] ^= 1;
        }
        fs::write(&path, bad).unwrap();
        refused(&home, words);
    }
}
