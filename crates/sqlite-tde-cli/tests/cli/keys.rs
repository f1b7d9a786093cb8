//! The verbs of `sqlite-tde key`, as a shell sees them. A row says what was done, and which exit
//! code and words must follow. Keys that come and go are compared with what OpenSSL makes of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

mod passphrase;
mod terminal;

const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// A directory with a keystore home, removed at the end.
struct Place {
    dir: tempfile::TempDir,
    /// Variables of the environment beside `SQLITE_TDE_HOME`.
    variables: Vec<(&'static str, String)>,
}

struct Answer {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    /// With a database that key `payroll` protects.
    fn filled() -> Self {
        let place = Self::new();
        place.ok("key create payroll");
        rusqlite::Connection::open(place.path("plain.db"))
            .and_then(|db| db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES('hush')"))
            .unwrap();
        place.ok("encrypt plain.db enc.db --protector payroll");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file that only its owner may read.
    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
        self.set_mode(name, 0o600);
    }

    fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn keystore(&self) -> Vec<u8> {
        fs::read(self.path("keys/keystore.json")).unwrap()
    }

    /// The names in the keystore's directory.
    fn keystore_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("keys")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn prepare(&self, mut command: Command) -> Command {
        command.current_dir(self.dir.path()).env("SQLITE_TDE_HOME", self.path("keys"));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    fn command(&self) -> Command {
        self.prepare(Command::new(env!("CARGO_BIN_EXE_sqlite-tde")))
    }

    /// Runs arguments that have no spaces.
    fn line(&self, line: &str) -> Answer {
        self.command().args(line.split_whitespace()).output().unwrap().into()
    }

    fn ok(&self, line: &str) -> String {
        let answer = self.line(line);
        assert_eq!(answer.code, 0, "{line}: {}", answer.err);
        String::from_utf8(answer.out).unwrap()
    }

    /// The output of a line of the shell; `$tde` is the command.
    fn shell(&self, line: &str) -> Vec<u8> {
        let mut shell = self.prepare(Command::new("sh"));
        shell.arg("-ec").arg(line).env("tde", env!("CARGO_BIN_EXE_sqlite-tde"));
        let answer = Answer::from(shell.output().unwrap());
        assert_eq!(answer.code, 0, "{line}: {}", answer.err);
        answer.out
    }

    /// Runs `line`, which must end with `code`, say `words`, and leave the keystore alone.
    fn fails(&self, line: &str, code: i32, words: &str) {
        let before = self.keystore();
        let answer = self.line(line);
        assert_eq!(answer.code, code, "{line}: {}", answer.err);
        assert!(answer.err.starts_with("error: "), "{line}: {}", answer.err);
        assert!(answer.err.contains(words), "{line}: {words:?} is not in {}", answer.err);
        assert_eq!(answer.out, b"", "{line}");
        assert!(self.keystore() == before, "{line}: the keystore changed");
    }

    fn list(&self) -> Value {
        serde_json::from_str(&self.ok("key list --json")).unwrap()
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: output.stdout,
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

#[test]
fn each_verb_does_what_it_says() {
    let place = Place::new();
    let all = ["wrap", "unwrap"].as_slice();
    // Arguments, words of the answer, and then: key enabled, its operations, the newest version's
    // number, whether it is enabled, its limits.
    for (line, words, enabled, operations, version, version_enabled, limits) in [
        ("create k", "created key k in ", true, all, 1, true, [None, None]),
        ("rotate k", "newest version is 2", true, all, 2, true, [None, None]),
        ("disable k", "disabled key k", false, all, 2, true, [None, None]),
        ("disable k --version 2", "disabled version 2", false, all, 2, false, [None, None]),
        ("enable k", "enabled key k", true, all, 2, false, [None, None]),
        ("enable k --version 2", "enabled version 2", true, all, 2, true, [None, None]),
        ("set k --ops unwrap", "| unwrap ", true, &["unwrap"], 2, true, [None, None]),
        ("set k --ops wrap,unwrap", "| wrap, unwrap |", true, all, 2, true, [None, None]),
        (
            "set k --not-after 2031-05-06",
            "| 2031-05-06T00:00:00Z |",
            true,
            all,
            2,
            true,
            [None, Some(1_935_792_000_u64)],
        ),
        (
            "set k --not-before 2030-01-31T13:00:00+01:00",
            "| 2030-01-31T12:00:00Z | 2031-05-06T00:00:00Z | wrap, unwrap | not yet |",
            true,
            all,
            2,
            true,
            [Some(1_896_091_200), Some(1_935_792_000)],
        ),
        (
            "set k --not-before none --not-after 2020-02-29T23:59:59.9Z",
            "| 2020-02-29T23:59:59Z | wrap, unwrap | ended ",
            true,
            all,
            2,
            true,
            [None, Some(1_583_020_799)],
        ),
        ("set k --not-after none", "| enabled ", true, all, 2, true, [None, None]),
        ("delete k", "gone for good at 20", true, all, 2, true, [None, None]),
        ("undelete k", "key k is back", true, all, 2, true, [None, None]),
    ] {
        let answer = place.ok(&format!("key {line}"));
        assert!(answer.contains(words), "{line}: {answer}");
        let key = &place.list()[0];
        assert_eq!(key["enabled"], enabled, "{line}");
        assert_eq!(key["operations"], serde_json::json!(operations), "{line}");
        let newest = key["versions"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&newest["version"], &newest["enabled"]),
            (&version.into(), &version_enabled.into())
        );
        let limits = limits.map(|limit| serde_json::json!(limit));
        assert_eq!([&newest["not_before"], &newest["not_after"]], limits.each_ref(), "{line}");
        assert_eq!(key["purged_at"].is_null(), !line.starts_with("delete"), "{line}");
    }
    place.ok("key create other --not-before 2030-01-31 --not-after 2031-05-06 --ops wrap");
    let table = place.ok("key list");
    let row = "| 2030-01-31T00:00:00Z | 2031-05-06T00:00:00Z | wrap         | not yet |";
    assert!(table.contains(row), "{table}");
    place.ok("key delete other --days 3650");
    assert!(place.ok("key list").contains("| deleted, gone at 20"));
    assert!(place.ok("key purge other --force").contains("gone for good"));
    assert!(place.ok("key purge k --force").contains("gone for good"));
    assert_eq!(place.list(), serde_json::json!([]));
}

#[test]
fn refusals_change_nothing() {
    let place = Place::new();
    place.ok("key create k");
    place.ok("key create gone");
    place.ok("key delete gone");
    for (line, code, words) in [
        ("create k", 5, "key k already exists"),
        ("create gone", 5, "already exists"),
        ("create a/b", 2, "not a key name"),
        ("create new --not-before 2030-02-30", 2, "expected 2027-01-31"),
        ("create new --not-before 1969-12-31", 2, "from 1970 on"),
        ("create new --not-before 2030-01-01T00:00:00", 2, "expected 2027-01-31"),
        ("create new --not-before tomorrow", 2, "expected 2027-01-31"),
        ("create new --ops sign", 2, "unwrap"),
        ("create new --not-before 2030-01-01 --not-after 2030-01-01", 2, "end before it begins"),
        ("rotate absent", 3, "no key \"absent\""),
        ("rotate gone", 3, "is scheduled for deletion: until 20"),
        ("enable absent", 3, "no key \"absent\""),
        ("disable k --version 2", 3, "no version \"2\""),
        ("disable gone", 3, "key undelete"),
        ("set k", 2, "nothing to set"),
        ("set k --version 1 --ops wrap", 2, "operations are of a whole key"),
        ("set k --version 7 --not-after none", 3, "no version \"7\""),
        ("set absent --not-after none", 3, "no key \"absent\""),
        ("import k --file missing", 5, "missing"),
        ("import k --fd 77", 5, "descriptor 77 is not open"),
        ("import k --env UNSET_VARIABLE", 3, "UNSET_VARIABLE is not set"),
        ("import k --env HOME --fd 3", 2, "cannot be used with"),
        ("import k", 2, "0 bytes that are no 256-bit key"),
        ("export k", 2, "reveals it: whoever sees it opens every database"),
        ("export k --out key.pem", 2, "hint: --reveal"),
        ("export k --reveal --version 2", 3, "no version \"2\""),
        ("export k --reveal --out nowhere/key.pem", 5, "nowhere/key.pem"),
        ("export absent --reveal", 3, "no key \"absent\""),
        ("export gone --reveal", 3, "scheduled for deletion"),
        ("delete k --days 0", 2, "1 to 3650 days, not 0"),
        ("delete k --days 3651", 2, "1 to 3650 days"),
        ("delete k --days -1", 2, "unexpected argument"),
        ("delete absent", 3, "no key \"absent\""),
        ("delete gone", 3, "scheduled for deletion"),
        ("undelete k", 2, "is not scheduled for deletion"),
        ("undelete absent", 3, "no key \"absent\""),
        ("purge k", 2, "is irreversible"),
        ("purge k", 2, "hint: `sqlite-tde key delete k`, or --force"),
        ("purge absent --force", 3, "no key \"absent\""),
        ("passphrase change --env HOME", 2, "has no passphrase"),
        ("passphrase remove", 2, "has no passphrase"),
        ("passphrase set --env UNSET_VARIABLE", 3, "UNSET_VARIABLE is not set"),
        ("passphrase set --file missing", 3, "there is no file missing"),
    ] {
        place.fails(&format!("key {line}"), code, words);
    }
    assert!(!place.path("key.pem").exists());
}

#[test]
fn rules_hold_for_databases() {
    let place = Place::filled();
    let open = "sql enc.db SELECT(a)FROM(t)";
    let protect = "encrypt plain.db new.db --force --protector payroll";
    for (line, opens, protects) in [
        ("key set payroll --ops unwrap", Ok(()), Err("may only unwrap")),
        // The new database is opened again, to be checked.
        ("key set payroll --ops wrap", Err("may only wrap"), Err("may only wrap")),
        ("key set payroll --ops wrap,unwrap", Ok(()), Ok(())),
        (
            "key set payroll --not-after 2020-01-01",
            Err("version 1 of key \"payroll\" in"),
            Err("has no version to wrap with: version 1 ended at 2020-01-01T00:00:00Z"),
        ),
        (
            "key set payroll --not-after none --not-before 9000-01-01",
            Err("begins at 9000-01-01T00:00:00Z, and it is 20"),
            Err("begins at 9000-01-01T00:00:00Z, and it is 20"),
        ),
        ("key set payroll --not-before none", Ok(()), Ok(())),
        ("key disable payroll", Err("is disabled"), Err("is disabled")),
        ("key enable payroll", Ok(()), Ok(())),
        ("key disable payroll --version 1", Err("version 1 of key"), Err("version 1 is disabled")),
        ("key rotate payroll", Err("version 1 of key"), Ok(())),
        ("key enable payroll --version 1", Ok(()), Ok(())),
        ("key delete payroll", Err("scheduled for deletion"), Err("scheduled for deletion")),
        ("key undelete payroll", Ok(()), Ok(())),
        ("key purge payroll --force", Err("no key \"payroll\""), Err("no key \"payroll\"")),
    ] {
        place.ok(line);
        for (command, expected) in [(open, opens), (protect, protects)] {
            match expected {
                Ok(()) => drop(place.ok(command)),
                Err(words) => place.fails(command, 3, words),
            }
        }
    }
}

#[test]
fn keys_of_openssl_come_in_and_go_out() {
    let place = Place::new();
    let shell = |line: &str| String::from_utf8(place.shell(line)).unwrap();
    shell("umask 077; openssl rand -out raw 32; od -An -v -tx1 raw | tr -d ' \\n' > hex");
    shell(
        "umask 077; (echo -----BEGIN AES KEY-----; openssl base64 -in raw;
         echo -----END AES KEY-----) > pem",
    );
    let hex = shell("cat hex").trim().to_owned();
    // The same key from everywhere, in every format, found out or said.
    for (n, line) in [
        "$tde key import k0 --file raw",
        "$tde key import k1 --file hex",
        "$tde key import k2 --file pem",
        "$tde key import k3 --file raw --format raw",
        "$tde key import k4 --file hex --format hex",
        "$tde key import k5 --file pem --format pem",
        "$tde key import k6 < raw",
        "cat pem | $tde key import k7",
        "$tde key import k8 --fd 3 3< raw",
        "KEY=$(cat hex) $tde key import k9 --env KEY",
        "$tde key create k10; $tde key import k10 --new-version < hex",
    ]
    .iter()
    .enumerate()
    {
        let answer = shell(line);
        assert!(answer.contains(&format!("imported key k{n}: ")), "{line}: {answer}");
        let again = shell(&format!("$tde key export k{n} --reveal --format hex"));
        assert_eq!(again, format!("{hex}\n"), "{line}");
    }
    assert_eq!(place.list()[10]["versions"].as_array().unwrap().len(), 2);
    // And out again, for OpenSSL to read.
    let raw = fs::read(place.path("raw")).unwrap();
    assert_eq!(place.shell("$tde key export k0 --reveal --format raw"), raw);
    assert_eq!(place.shell("$tde key export k0 --reveal | sed 1d\\;3d | openssl base64 -d"), raw);
    assert_eq!(place.shell("$tde key export k10 --reveal --version 2 --format raw"), raw);
    assert_ne!(place.shell("$tde key export k10 --reveal --version 1 --format raw"), raw);
    // A key may end like a line does.
    place.write("line", [[7; 31].as_slice(), b"\n"].concat());
    place.ok("key import line --file line");
    let line = place.shell("$tde key export line --reveal --format raw");
    assert_eq!(line, fs::read(place.path("line")).unwrap());
}

#[test]
fn what_is_no_key_is_not_imported() {
    let place = Place::new();
    place.ok("key create k");
    place.shell(
        "umask 077; openssl genpkey -algorithm ed25519 -out private
         openssl pkey -in private -pubout -out public
         openssl pkey -in private -aes256 -passout pass:x -out encrypted
         openssl genrsa -traditional -aes256 -passout pass:x -out older 2>/dev/null
         openssl rand -out short 31; openssl rand -out long 33; : > empty
         openssl rand -out loose 32; chmod 644 loose
         openssl rand -base64 32 > base64; openssl rand -out huge 5000
         head -c 32 /dev/zero > zero",
    );
    for (line, code, words) in [
        ("--file private", 2, "\"PRIVATE KEY\" holds no plain 256-bit key"),
        ("--file public", 2, "\"PUBLIC KEY\" holds no plain"),
        ("--file encrypted", 2, "\"ENCRYPTED PRIVATE KEY\" holds no plain"),
        ("--file older", 2, "holds no plain 256-bit key"),
        ("--file short", 2, "31 bytes that are no 256-bit key"),
        ("--file long", 2, "33 bytes that are no 256-bit key"),
        ("--file empty", 2, "file empty is empty"),
        ("--file base64", 2, "hint: give 32 bytes, 64 hexadecimal digits or a PEM block"),
        ("--file huge", 2, "has over 4096 bytes"),
        ("--file zero", 2, "32 zero bytes are no key"),
        ("--file short --format raw", 2, "a raw key has 32 bytes, and this has 31"),
        ("--file short --format hex", 2, "a key in hexadecimal has 64 digits"),
        ("--file short --format pem", 2, "not one PEM block"),
        ("--file short --format der", 2, "possible values: raw, hex, pem"),
        ("--file loose", 3, "loose has mode 644"),
        ("--file loose", 3, "chmod 600"),
        ("--file keys", 5, "a directory, not a regular file"),
    ] {
        if !line.contains("loose") {
            place.shell("chmod 600 private public encrypted older short long base64 huge zero");
        }
        for new_version in ["", "--new-version"] {
            let name = if new_version.is_empty() { "new" } else { "k" };
            place.fails(&format!("key import {name} {line} {new_version}"), code, words);
        }
    }
    place.write("hex", HEX);
    place.fails("key import k --file hex", 5, "already exists");
    place.fails("key import absent --file hex --new-version", 3, "no key \"absent\"");
    place.ok("key import k --file hex --new-version");
    place.fails("key import k --file hex --new-version", 2, "version 2 of key \"k\" is this key");
}

#[test]
fn exports_go_to_new_files_that_nobody_else_reads() {
    let place = Place::new();
    place.write("hex", HEX);
    place.ok("key import k --file hex");
    place.ok("key disable k");
    assert_eq!(place.ok("key export k --reveal --format hex --out out"), "");
    assert_eq!(fs::read_to_string(place.path("out")).unwrap(), format!("{HEX}\n"));
    let mode = fs::metadata(place.path("out")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    place.ok("key export k --reveal --out pem");
    let pem = fs::read_to_string(place.path("pem")).unwrap();
    let want = "-----BEGIN SQLITE-TDE KEY-----\n\
                AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\
                -----END SQLITE-TDE KEY-----\n";
    assert_eq!(pem, want);
    place.write("taken", "mine");
    place.fails("key export k --reveal --out taken", 5, "taken: ");
    assert_eq!(fs::read(place.path("taken")).unwrap(), b"mine");
    // A full disk is told, and leaves no part of a key.
    let full = place.shell("$tde key export k --reveal > /dev/full 2> err || echo $?; cat err");
    let full = String::from_utf8(full).unwrap();
    assert!(full.starts_with("5\nerror: output: No space left"), "{full}");
}

/// A database moves with its key to a machine that has neither.
#[test]
fn a_database_opens_where_its_key_was_imported() {
    let (here, there) = (Place::filled(), Place::new());
    here.ok("key export payroll --reveal --out payroll.pem");
    for name in ["enc.db", "payroll.pem"] {
        fs::copy(here.path(name), there.path(name)).unwrap();
    }
    there.ok("key create payroll");
    there.fails("sql enc.db VACUUM", 3, "wrong key");
    there.ok("key purge payroll --force");
    there.ok("key import payroll --file payroll.pem");
    assert!(there.ok("sql enc.db SELECT(a)FROM(t)").contains("hush"));
}

#[test]
fn writers_in_many_processes_lose_nothing() {
    const WRITERS: usize = 6;
    const KEYS: usize = 5;
    let place = Place::new();
    place.ok("key create shared");
    let script = format!(
        "for n in $(seq {KEYS}); do $tde key create $w-$n >&2; $tde key rotate shared >&2; done"
    );
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let mut shell = place.prepare(Command::new("sh"));
            shell.args(["-ec", &script]).env("tde", env!("CARGO_BIN_EXE_sqlite-tde"));
            shell.env("w", format!("w{writer}")).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for writer in writers {
        let answer = Answer::from(writer.wait_with_output().unwrap());
        assert_eq!(answer.code, 0, "{}", answer.err);
    }
    let list = place.list();
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 1 + WRITERS * KEYS);
    assert_eq!(list[0]["versions"].as_array().unwrap().len(), 1 + WRITERS * KEYS);
    assert_eq!(place.keystore_names(), ["keystore.json", "keystore.lock"]);
}

/// Remains of a killed writer: before its new file was whole, and before it was renamed.
#[test]
fn what_killed_writers_left_is_no_keystore() {
    let place = Place::new();
    place.ok("key create k");
    let before = place.keystore();
    place.ok("key rotate k");
    let after = place.keystore();
    for (what, left) in [
        ("nothing of it", &b""[..]),
        ("half of it", &after[..after.len() / 2]),
        ("all of it", &after),
        ("something else", b"{\"format\": 1}"),
    ] {
        place.write("keys/keystore.json", &before);
        place.write("keys/keystore.json.new", left);
        assert_eq!(place.list()[0]["versions"].as_array().unwrap().len(), 1, "{what}");
        place.ok("key create other");
        assert_eq!(place.list().as_array().unwrap().len(), 2, "{what}");
        assert_eq!(place.keystore_names(), ["keystore.json", "keystore.lock"], "{what}");
        place.ok("key purge other --force");
    }
    // Killed before its first file was there.
    fs::remove_file(place.path("keys/keystore.json")).unwrap();
    place.write("keys/keystore.json.new", &after);
    assert_eq!(place.list(), serde_json::json!([]));
    place.ok("key create k");
    assert_eq!(place.list()[0]["versions"].as_array().unwrap().len(), 1);
}
