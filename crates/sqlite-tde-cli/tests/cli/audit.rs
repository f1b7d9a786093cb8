//! `sqlite-tde audit`.

use std::fs;
use std::path::Path;

use sqlite_tde::audit::{AuditLog, AuditOptions, Entry, Event, EventKind};

/// Four entries with a path of 40 characters.
const SMALL: u64 = 1400;
const LOG: &str = "audit.jsonl";

/// Runs the command on a log in the home directory. Exit code, output and errors.
fn cli(home: &Path, line: &str) -> (i32, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_sqlite-tde"))
        .args(line.split(' '))
        .env("SQLITE_TDE_HOME", home)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_shows_and_verifies() {
    let home = tempfile::tempdir().unwrap();
    let options = AuditOptions { max_bytes: SMALL, ..AuditOptions::at(home.path().join("audit")) };
    let log = AuditLog::open(options.clone()).unwrap();
    for (kind, protector) in
        [(EventKind::Create, "first"), (EventKind::Unwrap, "first"), (EventKind::Rotate, "second")]
    {
        let path = Some(Path::new("/a/\u{1b}[31m one.db"));
        let protector = Some(protector);
        log.record(&Event { path, protector, ..Event::new(kind) }).unwrap();
    }
    log.record(&Event { outcome: Err("key disabled"), ..Event::new(EventKind::Unwrap) }).unwrap();
    let seqs = |out: &str| -> Vec<u64> {
        out.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
    };
    for (line, expected) in [
        ("audit show", vec![1, 2, 3, 4]),
        ("audit show --last 2", vec![3, 4]),
        ("audit show --last 0", vec![]),
        ("audit show --kind unwrap", vec![2, 4]),
        ("audit show --kind unwrap --last 1 --protector first", vec![2]),
        ("audit show --protector second", vec![3]),
        ("audit show --db nothing", vec![]),
        ("audit show --since 1h", vec![1, 2, 3, 4]),
        ("audit show --until 1h", vec![]),
        ("audit show --since 2000-01-01T00:00:00Z --until 2001-01-01T00:00:00Z", vec![]),
    ] {
        let (code, out, err) = cli(home.path(), line);
        assert_eq!((code, seqs(&out), &*err), (0, expected, ""), "{line}");
        assert!(!out.contains('\u{1b}'), "{line}: {out:?}");
    }
    let (_, out, _) = cli(home.path(), "audit show --last 1");
    assert!(out.contains("  unwrap  failed  error='key disabled'  "), "{out}");
    let (_, out, _) = cli(home.path(), "audit show --json --last 1");
    let entry: Entry = serde_json::from_str(&out).unwrap();
    assert_eq!((entry.seq, entry.error.as_deref()), (4, Some("key disabled")));
    for line in ["audit show --since yesterday", "audit show --kind opening", "audit"] {
        assert_eq!(cli(home.path(), line).0, 2, "{line}");
    }

    let answer = cli(home.path(), "audit verify");
    assert_eq!(answer, (0, "1 files, 4 entries: ok\n".into(), String::new()));
    let dir = home.path().join("audit");
    let path = dir.join(LOG);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("rotate", "create", 1)).unwrap();
    let (code, out, _) = cli(home.path(), "audit verify");
    let words = "audit.jsonl, line 3: entry 3 was changed, or the line before it was\n\
                 1 files, 2 entries, then not as they were recorded\n";
    assert_eq!((code, &*out), (1, words));
    let (code, out, _) = cli(home.path(), "audit verify --json");
    assert!(code == 1 && out.contains("\"line\": 3"), "{out}");
    // A log and a key elsewhere.
    fs::write(&path, &text).unwrap();
    let elsewhere = home.path().join("elsewhere");
    fs::rename(&dir, &elsewhere).unwrap();
    let key = home.path().join("key");
    fs::rename(elsewhere.join("audit.key"), &key).unwrap();
    let line = format!("audit verify --dir {}", elsewhere.display());
    assert_eq!(cli(home.path(), &line).0, 5, "without the key");
    let line = format!("{line} --key {}", key.display());
    assert_eq!(cli(home.path(), &line).0, 0, "with the key");
    let config = format!("[audit]\ndir = {elsewhere:?}\nkey = {{ file = {key:?} }}\n");
    fs::write(home.path().join("config.toml"), config).unwrap();
    assert_eq!(cli(home.path(), "audit verify").0, 0, "as configured");
    // A line that is no entry is named, and the rest is shown.
    fs::write(elsewhere.join(LOG), format!("{text}hello\n")).unwrap();
    let (code, out, err) = cli(home.path(), "audit show");
    assert_eq!((code, seqs(&out)), (1, vec![1, 2, 3, 4]));
    assert!(err.contains("audit.jsonl, line 5: this is not an entry"), "{err}");
}
