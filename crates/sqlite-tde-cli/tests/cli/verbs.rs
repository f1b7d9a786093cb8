//! The command `sqlite-tde`, as a shell sees it. A row says what was done, and which exit code and
//! words must follow.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rusqlite::Connection;
use rusqlite::types::Value;

/// Where page 1 begins in an encrypted file.
const PAGES_AT: u64 = 16384;
const PAGE: u64 = 4096;
const MARKER: &str = "nobody-else-reads-this";

/// A directory with a keystore home, removed at the end.
struct Place {
    dir: tempfile::TempDir,
    home: &'static str,
}

struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), home: "keys" }
    }

    /// With `plain.db`, and `enc.db` made of it.
    fn filled() -> Self {
        let place = Self::new();
        make_plain(&place.path("plain.db"), 4096);
        place.ok("encrypt plain.db enc.db");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The names in the directory, without the keystore's.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<String> =
            entries.map(|entry| name(entry).into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with("keys"));
        names.sort();
        names
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sqlite-tde"));
        command.current_dir(self.dir.path()).env("SQLITE_TDE_HOME", self.path(self.home));
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Answer {
        self.command().args(arguments).output().unwrap().into()
    }

    /// Runs arguments that have no spaces.
    fn line(&self, line: &str) -> Answer {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }

    fn ok(&self, line: &str) -> String {
        let answer = self.line(line);
        assert_eq!(answer.code, 0, "{line}: {}", answer.err);
        answer.out
    }

    /// Runs `line`, which must end with `code` and say `words`.
    fn fails(&self, line: &str, code: i32, words: &str) {
        let answer = self.line(line);
        assert_eq!(answer.code, code, "{line}: {}{}", answer.out, answer.err);
        assert!(answer.err.starts_with("error: "), "{line}: {}", answer.err);
        assert!(answer.err.contains(words), "{line}: {words:?} is not in {}", answer.err);
    }

    fn sql(&self, arguments: &[&str]) -> String {
        let answer = self.run(&[&["sql"], arguments].concat());
        assert_eq!(answer.code, 0, "{arguments:?}: {}", answer.err);
        answer.out
    }

    /// Flips a bit of `name` at `at`.
    fn flip(&self, name: &str, at: u64) {
        let mut bytes = self.bytes(name);
        bytes[at as usize] ^= 1;
        fs::write(self.path(name), bytes).unwrap();
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

fn make_plain(path: &Path, page_size: u32) {
    let db = Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "PRAGMA page_size={page_size}; PRAGMA user_version=77; PRAGMA application_id=78;
         CREATE TABLE t(id INTEGER PRIMARY KEY, text, number, bytes);
         CREATE TABLE w(a, b, PRIMARY KEY(b, a)) WITHOUT ROWID;
         CREATE INDEX by_text ON t(text);
         CREATE VIEW v AS SELECT text FROM t;
         CREATE TRIGGER g AFTER DELETE ON t BEGIN DELETE FROM w WHERE a = old.id; END;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
         INSERT INTO t SELECT i, '{MARKER} ' || i, iif(i % 3, i / 7.0, NULL), randomblob(i) FROM n;
         INSERT INTO w SELECT id, text FROM t;"
    ))
    .unwrap();
}

/// Everything that SQL can see in a database.
fn dump(path: &Path) -> Vec<Vec<Value>> {
    let db = Connection::open(path).unwrap();
    let rows = |sql: &str| {
        let mut statement = db.prepare(sql).unwrap();
        let width = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..width).map(|i| row.get(i)).collect();
        statement.query_map([], row).unwrap().collect::<Result<Vec<Vec<Value>>, _>>().unwrap()
    };
    [
        "PRAGMA integrity_check",
        "PRAGMA user_version",
        "PRAGMA application_id",
        "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name",
        "SELECT * FROM t ORDER BY id",
        "SELECT * FROM w ORDER BY b, a",
        "SELECT * FROM v ORDER BY text",
    ]
    .into_iter()
    .flat_map(rows)
    .collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn round_trip() {
    for (source_page, arguments, page_size, cipher) in [
        (4096, "", 4096, "aes-256-gcm"),
        (512, "", 1024, "aes-256-gcm"),
        (512, "--page-size 8192", 8192, "aes-256-gcm"),
        (4096, "--page-size 1024", 1024, "aes-256-gcm"),
        (65536, "", 65536, "aes-256-gcm"),
        (1024, "--cipher aes-256-ctr-hmac-sha256", 1024, "aes-256-ctr-hmac-sha256"),
    ] {
        let row = format!("{source_page} {arguments}");
        let place = Place::new();
        make_plain(&place.path("plain.db"), source_page);
        let before = place.bytes("plain.db");

        place.ok(&format!("encrypt plain.db enc.db {arguments}"));
        assert_eq!(place.bytes("plain.db"), before, "{row}: the source changed");
        let encrypted = place.bytes("enc.db");
        assert!(contains(&before, MARKER) && !contains(&encrypted, MARKER), "{row}");
        assert!(!contains(&encrypted, "CREATE"), "{row}");
        assert!(place.ok("verify enc.db").ends_with(": ok\n"), "{row}");

        let status: serde_json::Value =
            serde_json::from_str(&place.ok("status enc.db --json")).unwrap();
        assert_eq!(status["page_size"], page_size, "{row}");
        assert_eq!(status["cipher"], cipher, "{row}");
        assert_eq!(status["encryption_state"], 3, "{row}");
        assert_eq!(status["protectors"][0]["name"], "default", "{row}");

        place.ok("decrypt enc.db back.db");
        assert_eq!(place.bytes("enc.db"), encrypted, "{row}: the encrypted source changed");
        assert_eq!(dump(&place.path("back.db")), dump(&place.path("plain.db")), "{row}");
        assert_eq!(place.bytes("back.db")[20], 0, "{row}: no bytes stay reserved");
        assert_eq!(place.names(), ["back.db", "enc.db", "plain.db"], "{row}");
    }
}

#[test]
fn a_source_in_wal_mode_is_copied_with_its_log() {
    let place = Place::new();
    make_plain(&place.path("plain.db"), 4096);
    let writer = Connection::open(place.path("plain.db")).unwrap();
    writer.pragma_update(None, "journal_mode", "wal").unwrap();
    writer.execute("INSERT INTO t VALUES(1000, 'in the log', 1, NULL)", []).unwrap();
    let before = place.bytes("plain.db");
    place.ok("encrypt plain.db enc.db");
    assert_eq!(place.bytes("plain.db"), before);
    place.ok("decrypt enc.db back.db");
    assert_eq!(dump(&place.path("back.db")), dump(&place.path("plain.db")));
}

#[test]
fn destinations() {
    let place = Place::filled();
    let before = place.bytes("enc.db");
    fs::write(place.path("taken.db"), "mine").unwrap();
    fs::write(place.path("crashed.db-journal"), "").unwrap();
    for (line, code, words) in [
        ("encrypt plain.db taken.db", 5, "hint: --force"),
        ("decrypt enc.db taken.db", 5, "hint: --force"),
        ("encrypt plain.db plain.db", 2, "same file"),
        ("encrypt plain.db ./plain.db --force", 2, "same file"),
        ("decrypt enc.db enc.db --force", 2, "same file"),
        ("encrypt plain.db nowhere/new.db", 5, "nowhere"),
        ("decrypt enc.db nowhere/new.db", 5, "nowhere"),
        ("encrypt plain.db keys --force", 5, "keys"),
        ("encrypt plain.db crashed.db", 5, "crashed.db-journal"),
        ("encrypt plain.db new.db --protector nokey", 3, "nokey"),
        ("encrypt plain.db new.db --page-size 512", 2, "1024"),
        ("encrypt plain.db new.db --cipher rot13", 2, "aes-256-gcm"),
    ] {
        place.fails(line, code, words);
    }
    assert_eq!(place.bytes("taken.db"), b"mine");
    assert_eq!(place.bytes("enc.db"), before);
    assert_eq!(place.names(), ["crashed.db-journal", "enc.db", "plain.db", "taken.db"]);

    place.ok("encrypt plain.db taken.db --force");
    place.ok("verify taken.db");
    place.ok("decrypt enc.db taken.db --force");
    assert_eq!(dump(&place.path("taken.db")), dump(&place.path("plain.db")));
}

/// Each kind of file that a command did not expect; none of them makes or changes a file.
#[test]
fn sources() {
    let place = Place::filled();
    let encrypted = place.bytes("enc.db");
    let at_page_3 = (PAGES_AT + 2 * PAGE) as usize;
    fs::write(place.path("empty"), "").unwrap();
    fs::write(place.path("random"), [0xa5; 9000]).unwrap();
    fs::write(place.path("cut-plain"), &place.bytes("plain.db")[..9000]).unwrap();
    fs::write(place.path("cut-pages"), &encrypted[..at_page_3]).unwrap();
    fs::write(place.path("cut-all"), &encrypted[..PAGES_AT as usize]).unwrap();
    fs::write(place.path("cut-envelope"), &encrypted[..100]).unwrap();
    fs::copy(place.path("enc.db"), place.path("bad-page")).unwrap();
    place.flip("bad-page", PAGES_AT + PAGE + 9);
    let names = place.names();
    for (command, source, code, words) in [
        ("encrypt", "missing", 5, "missing: "),
        ("encrypt", "random", 4, "not a database"),
        ("encrypt", "cut-plain", 4, "malformed"),
        ("encrypt", "cut-envelope", 4, "cut-envelope"),
        ("encrypt", "enc.db", 4, "already encrypted"),
        ("encrypt", "keys", 5, "not a file"),
        ("decrypt", "missing", 5, "missing: "),
        ("decrypt", "empty", 4, "empty: "),
        ("decrypt", "random", 4, "not a database"),
        ("decrypt", "plain.db", 4, "not encrypted"),
        ("decrypt", "cut-pages", 4, "malformed"),
        ("decrypt", "cut-all", 4, "ends before its first page"),
        ("decrypt", "cut-envelope", 4, "cut-envelope"),
        ("decrypt", "bad-page", 4, "page 2 failed authentication"),
        ("status", "missing", 5, "missing: "),
        ("status", "empty", 4, "not encrypted"),
        ("status", "random", 4, "not a database"),
        ("status", "plain.db", 4, "plaintext refused"),
        ("status", "cut-all", 4, "ends before its first page"),
        ("status", "cut-envelope", 4, "cut-envelope"),
        ("verify", "missing", 5, "missing: "),
        ("verify", "empty", 4, "not encrypted"),
        ("verify", "random", 4, "not a database"),
        ("verify", "plain.db", 4, "plaintext refused"),
        ("verify", "cut-all", 4, "ends before its first page"),
        ("verify", "cut-envelope", 4, "cut-envelope"),
        ("sql", "missing", 5, "hint: --create"),
        ("sql", "random", 4, "not a database"),
        ("sql", "plain.db", 4, "plaintext refused"),
    ] {
        let rest = match command {
            "encrypt" | "decrypt" => "new.db",
            "sql" => "VACUUM",
            _ => "",
        };
        place.fails(&format!("{command} {source} {rest}"), code, words);
        assert_eq!(place.names(), names, "{command} {source}");
    }
    let answer = place.line("verify cut-pages");
    assert_eq!((answer.code, answer.out.contains("truncated")), (1, true));
    assert_eq!(place.bytes("random"), [0xa5; 9000]);
}

#[test]
fn verify_names_what_is_damaged() {
    let place = Place::filled();
    let last = (place.bytes("enc.db").len() as u64 - PAGES_AT) / PAGE;
    let page = |number: u64| PAGES_AT + (number - 1) * PAGE;
    for (at, words) in [
        (page(1), "page 1 failed"),
        (page(3) + 77, "page 3 failed"),
        (page(last + 1) - 1, &*format!("page {last} failed")),
        (40, "envelope copy A failed"),
        (PAGES_AT / 2 + 40, "envelope copy B failed"),
    ] {
        place.flip("enc.db", at);
        let answer = place.line("verify enc.db");
        assert_eq!(answer.code, 1, "{words}: {}", answer.err);
        assert!(answer.out.contains(words), "{words}: {}", answer.out);
        place.flip("enc.db", at);
    }
    place.flip("enc.db", page(2));
    place.flip("enc.db", page(4));
    let answer = place.line("verify --json enc.db");
    let report: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(answer.code, 1);
    assert_eq!(report["bad_pages"], serde_json::json!([2, 4]));
    assert_eq!(report["clean"], false);
}

#[test]
fn sql_formats() {
    const QUERY: &str =
        r#"SELECT 1 AS n, NULL AS empty, 'a,"b"' AS text, x'00ff' AS blob, 1.5 AS n"#;
    let place = Place::filled();
    for (format, expected) in [
        ("csv", "n,empty,text,blob,n\n1,,\"a,\"\"b\"\"\",x'00ff',1.5\n"),
        (
            "json",
            "[{\"n\":1,\"empty\":null,\"text\":\"a,\\\"b\\\"\",\"blob\":\"x'00ff'\",\"n\":1.5}]\n",
        ),
        (
            "table",
            "+---+-------+-------+---------+-----+\n\
             | n | empty | text  | blob    | n   |\n\
             +===================================+\n\
             | 1 | NULL  | a,\"b\" | x'00ff' | 1.5 |\n\
             +---+-------+-------+---------+-----+\n",
        ),
    ] {
        assert_eq!(place.sql(&["enc.db", "--format", format, QUERY]), expected, "{format}");
    }
    let two = "CREATE TABLE n(a); INSERT INTO n VALUES(1),(2); SELECT a FROM n; -- ;\n";
    let none = "SELECT a FROM n WHERE 0";
    assert_eq!(
        place.sql(&["enc.db", "--format", "json", two, none]),
        "[{\"a\":1},\n{\"a\":2}]\n[]\n"
    );
    assert_eq!(place.sql(&["enc.db", "--format=csv", "SELECT a FROM n; ", none]), "a\n1\n2\n\na\n");
}

#[test]
fn sql_reads_standard_input() {
    use std::io::Write;
    let place = Place::filled();
    let mut command = place.command();
    command.args(["sql", "enc.db", "--format", "csv"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let text = "CREATE TRIGGER h AFTER INSERT ON w BEGIN SELECT 1; SELECT 2; END;\n\
                SELECT ';' AS semicolon; -- the end";
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let answer = Answer::from(child.wait_with_output().unwrap());
    assert_eq!((answer.code, &*answer.out), (0, "semicolon\n;\n"));
}

#[test]
fn sql_refusals() {
    let place = Place::filled();
    for (arguments, words) in [
        (&["enc.db", "SELECT 1; SELEC 2"][..], "SELEC"),
        (&["enc.db", "--read-only", "DELETE FROM w"], "readonly"),
        (&["enc.db", "BEGIN; DELETE FROM w"], "transaction"),
        (&["enc.db", "SELECT ?"], "parameter"),
        (&["enc.db", "ATTACH 'plain.db' AS p; SELECT * FROM p.t"], "plain"),
    ] {
        let answer = place.run(&[&["sql"], arguments].concat());
        assert!(answer.code >= 4, "{arguments:?}: {}", answer.code);
        assert!(answer.err.contains(words), "{arguments:?}: {}", answer.err);
    }
    assert_eq!(place.sql(&["enc.db", "--format=csv", "SELECT count(*) AS n FROM w"]), "n\n300\n");
    place.sql(&["new.db", "--create", "CREATE TABLE t(a)"]);
    place.ok("verify new.db");
}

#[test]
fn keys() {
    let mut place = Place::filled();
    let created = place.ok("key create second");
    assert!(created.contains("second"), "{created}");
    place.fails("key create second", 5, "already exists");
    place.fails("key create a/b", 2, "not a key name");
    let keys: serde_json::Value = serde_json::from_str(&place.ok("key list --json")).unwrap();
    assert_eq!((&keys[0]["name"], &keys[1]["name"]), (&"default".into(), &"second".into()));
    assert!(place.ok("key list").contains("| second "));
    place.ok("encrypt plain.db other.db --protector second");
    place.ok("decrypt other.db other-back.db --protector second");
    place.fails("decrypt other.db no.db --protector default", 3, "wrong key");

    place.home = "keys-missing";
    for line in ["verify enc.db", "status enc.db", "sql enc.db VACUUM", "decrypt enc.db no.db"] {
        place.fails(line, 3, "hint: keys are read from");
    }
    place.fails("encrypt enc.db no.db", 4, "already encrypted");
    assert!(!place.path("keys-missing").exists(), "reading creates no keystore");

    place.home = "keys-other";
    place.ok("key create default");
    place.fails("verify enc.db", 3, "wrong key");

    fs::write(place.path("keys-other/keystore.json"), "{").unwrap();
    place.fails("verify enc.db", 3, "damaged");
    assert!(!place.path("no.db").exists());
}

#[cfg(unix)]
#[test]
fn a_keystore_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::filled();
    for (name, loose, right) in [("keys", 0o755, 0o700), ("keys/keystore.json", 0o644, 0o600)] {
        let set = |mode| fs::set_permissions(place.path(name), PermissionsExt::from_mode(mode));
        set(loose).unwrap();
        for line in ["verify enc.db", "encrypt plain.db no.db", "decrypt enc.db no.db", "key list"]
        {
            place.fails(line, 3, "hint: chmod 700");
        }
        set(right).unwrap();
    }
    place.ok("verify enc.db");
    assert_eq!(place.names(), ["enc.db", "plain.db"]);
}

#[cfg(unix)]
#[test]
fn a_copy_may_be_read_by_whom_the_source_may() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::filled();
    fs::set_permissions(place.path("enc.db"), PermissionsExt::from_mode(0o600)).unwrap();
    place.ok("decrypt enc.db back.db");
    assert_eq!(fs::metadata(place.path("back.db")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[cfg(unix)]
#[test]
fn paths_that_a_uri_would_misread() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::filled();
    for name in ["a?b#c%20&vfs=x.db", "with space.db", "ünï.db"] {
        for arguments in [["encrypt", "plain.db", name], ["decrypt", name, "back.db"]] {
            let answer = place.run(&[&arguments[..], &["--force"]].concat());
            assert_eq!(answer.code, 0, "{arguments:?}: {}", answer.err);
        }
        assert!(place.path(name).exists(), "{name}");
        assert_eq!(dump(&place.path("back.db")), dump(&place.path("plain.db")), "{name}");
    }
    let mut command = place.command();
    let answer = command.args(["encrypt", "plain.db"]).arg(OsStr::from_bytes(b"a\xff")).output();
    let answer = Answer::from(answer.unwrap());
    assert_eq!(answer.code, 2);
    assert!(answer.err.contains("UTF-8"), "{}", answer.err);
}

#[test]
fn help_completions_and_manual() {
    let place = Place::new();
    for (line, words) in [
        ("--help", "Exit codes:"),
        ("encrypt --help", "--page-size"),
        ("completions bash", "complete"),
        ("completions fish", "encrypt"),
        ("man", ".TH sqlite-tde-key-create"),
    ] {
        let out = place.ok(line);
        assert!(out.contains(words), "{line}: {out}");
    }
    assert_eq!(place.line("").code, 2);
    assert_eq!(place.line("verify").code, 2);
    assert!(place.names().is_empty());
}

/// Every script under sql/ prints what stands in the `.expected` beside it, after the commands that
/// its head says, on `app.db`.
#[test]
fn sql_scripts_print_what_they_promise() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sql");
    let mut run = 0;
    for entry in fs::read_dir(scripts).unwrap() {
        let script = entry.unwrap().path();
        if script.extension().is_none_or(|extension| extension != "sql") {
            continue;
        }
        let name = script.display();
        let place = Place::new();
        place.run(&["sql", "--create", "app.db", "CREATE TABLE note(text)"]);
        let text = fs::read_to_string(&script).unwrap();
        let commands = text.lines().filter_map(|line| line.strip_prefix("--     sqlite-tde "));
        let mut printed = None;
        for line in commands {
            assert!(printed.is_none(), "{name}: {line} comes after the script");
            let Some((line, _)) = line.split_once(" < sql/") else {
                place.ok(line);
                continue;
            };
            let input = fs::File::open(&script).unwrap();
            let output = place.command().args(line.split(' ')).stdin(input).output().unwrap();
            let answer = Answer::from(output);
            assert_eq!(answer.err, "", "{name}");
            printed = Some(answer.out);
        }
        let want = fs::read_to_string(script.with_extension("expected")).unwrap();
        assert_eq!(printed, Some(want), "{name}");
        run += 1;
    }
    assert!(run > 3, "{run} scripts");
}
