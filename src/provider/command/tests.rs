//! Real processes: their input, the meaning of their exit, and that none is left.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::provider::conformance::Direct;

const CONTEXT: Context = Context { file_id: [7; 16], dek_version: 1 };
/// For commands that never end by themselves; how long it is does not change what follows.
const SHORT: Duration = Duration::from_millis(200);
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(120);

fn sh(script: &str) -> [&str; 3] {
    ["/bin/sh", "-c", script]
}

fn kind(error: &ProviderError) -> &'static str {
    match error {
        ProviderError::NotHere(_) => "not here",
        ProviderError::Denied(_) => "denied",
        ProviderError::Unreachable(_) => "unreachable",
        ProviderError::Damaged(_) => "damaged",
        ProviderError::LoosePermissions { .. } | ProviderError::OtherOwner { .. } => "loose",
        ProviderError::WrongKey(_) => "wrong key",
    }
}

fn wrapped(blob: &[u8]) -> Wrapped {
    Wrapped { key_version: "1".into(), mechanism: MECHANISM.into(), blob: blob.to_vec() }
}

/// The process called `pid` is gone, or dead and not yet reaped by its parent.
fn wait_for_the_end_of(pid: &str, what: &str) {
    let until = Instant::now() + LONG;
    let stat = PathBuf::from(format!("/proc/{pid}/stat"));
    loop {
        // "pid (name) state ..", and gone is gone between the look and the read.
        let text = fs::read_to_string(&stat).unwrap_or_default();
        let state = text.rsplit(") ").next().and_then(|rest| rest.chars().next());
        if matches!(state, None | Some('Z' | 'X')) {
            return;
        }
        assert!(Instant::now() < until, "{what}: process {pid} is left: {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn gives_input_takes_output_and_says_which_key() {
    let dir = tempfile::tempdir().unwrap();
    let heard = dir.path().join("heard");
    let script = "{ echo $SQLITE_TDE_KEY_ID $SQLITE_TDE_KEY_VERSION $SQLITE_TDE_CONTEXT; \
                  echo \"$@\"; } >> \"$0\"; cat";
    let argv = |what| {
        let file = heard.to_str().unwrap();
        ["/bin/sh", "-c", script, file, what, "{key_id}/{key_version}/{context}", "{other}"]
    };
    let provider = Command::new(argv("wrap"), argv("unwrap"));
    let dek = Secret::random().unwrap();
    let wrapped = provider.wrap_key("a.key-1@x", &dek, &CONTEXT).unwrap();
    assert_eq!(wrapped.blob, dek.expose(), "cat wraps nothing");
    assert_eq!((&*wrapped.key_version, &*wrapped.mechanism), ("1", "command"));
    let key = provider.unwrap_key("a.key-1@x", &wrapped, &CONTEXT).unwrap();
    assert_eq!(key.expose(), dek.expose());

    let context: String = CONTEXT.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = ["wrap", "unwrap"]
        .map(|what| format!("a.key-1@x 1 {context}\n{what} a.key-1@x/1/{context} {{other}}\n"));
    assert_eq!(fs::read_to_string(heard).unwrap(), expected.concat());
}

#[test]
fn a_version_is_asked_for_where_a_command_tells_it() {
    let echo = sh("cat >/dev/null; printf %s \"$SQLITE_TDE_KEY_VERSION\"");
    let dek = Secret::random().unwrap();
    for (what, newest, expected) in [
        ("text", "printf v7", Ok("v7")),
        ("a line", "echo v7", Ok("v7")),
        ("of the key", "echo $SQLITE_TDE_KEY_ID-2", Ok("app-2")),
        ("nothing", "true", Err("damaged")),
        ("two words", "echo a b", Err("damaged")),
        ("a path", "echo ../x", Err("damaged")),
        ("an option", "echo -v", Err("damaged")),
        ("no text", "printf '\\377'", Err("damaged")),
        ("much", "yes | head -c 200", Err("damaged")),
        ("no key", "exit 66", Err("not here")),
    ] {
        let provider = Command::new(echo, echo).newest(sh(newest));
        let answer = provider.newest_of("app");
        assert_eq!(answer.as_deref().map_err(kind), expected, "{what}");
        let wrap = provider.wrap_key("app", &dek, &CONTEXT);
        let answer = wrap.as_ref().map(|w| (&*w.key_version, &*w.blob)).map_err(kind);
        assert_eq!(answer, expected.map(|v| (v, v.as_bytes())), "{what}: told to wrap");
    }
    let versioned = Command::new(echo, sh("cat")).newest(sh("echo v7"));
    let old = Wrapped { key_version: "v6".into(), ..wrapped(dek.expose()) };
    assert!(versioned.unwrap_key("app", &old, &CONTEXT).is_ok());
    let unversioned = Command::new(echo, sh("cat")).unwrap_key("app", &old, &CONTEXT);
    assert_eq!(unversioned.map(drop).map_err(|e| kind(&e)), Err("not here"));
}

#[test]
fn how_it_ends_says_what_is_the_matter() {
    let key = "printf 0123456789abcdef0123456789abcdef";
    let rows: [(&str, &str, Result<(), (&str, &str)>); 19] = [
        ("done", key, Ok(())),
        ("done, and something was said", &format!("echo fine >&2; {key}"), Ok(())),
        ("done with its streams closed", &format!("{key}; exec >&- 2>&- <&-; exit 0"), Ok(())),
        ("wrong key", "exit 65", Err(("wrong key", "ended with exit code 65"))),
        ("not here", "echo no key >&2; exit 66", Err(("not here", "exit code 66: no key"))),
        ("denied", "exit 77", Err(("denied", "exit code 77"))),
        ("a key and a refusal", &format!("{key}; exit 77"), Err(("denied", "exit code 77"))),
        ("any other", "exit 1", Err(("unreachable", "exit code 1"))),
        ("as shells end", "no-such-command", Err(("unreachable", "exit code 127: "))),
        ("a signal", "kill -9 $$", Err(("unreachable", "was ended by signal 9"))),
        ("nothing", "true", Err(("damaged", "printed 0 bytes, where a key of 32"))),
        ("short", "printf %31s", Err(("damaged", "printed 31 bytes"))),
        ("a line end", &format!("{key}; echo"), Err(("damaged", "printed over 32 bytes"))),
        ("a flood", "exec yes", Err(("damaged", "printed over 32 bytes"))),
        (
            "a flood of complaints",
            "yes >&2",
            Err(("unreachable", "killed after 200ms without an end")),
        ),
        ("no end", "sleep 1000", Err(("unreachable", "killed after 200ms"))),
        ("no end, streams closed", "exec >&- 2>&-; sleep 1000", Err(("unreachable", "killed"))),
        ("stopped", "kill -STOP $$", Err(("unreachable", "killed after 200ms"))),
        (
            "colours and bells",
            "printf 'no \\033[31mk\\303\\251y\\a\\n\\r\\377here' >&2; exit 66",
            Err(("not here", "66: no [31mk\u{e9}y here")),
        ),
    ];
    for (what, script, expected) in rows {
        let time = if script.contains("sleep") || script.contains("STOP") || script == "yes >&2" {
            SHORT
        } else {
            LONG
        };
        let provider = Command::new(sh("cat"), sh(script)).timeout(time);
        let answer = provider.unwrap_key("app", &wrapped(b"blob"), &CONTEXT);
        match (answer, expected) {
            (Ok(key), Ok(())) => {
                assert_eq!(key.expose(), b"0123456789abcdef0123456789abcdef", "{what}");
            }
            (Err(error), Err((expected, words))) => {
                assert_eq!(kind(&error), expected, "{what}: {error}");
                let text = error.to_string();
                assert!(text.starts_with("unwrap command /bin/sh "), "{what}: {text}");
                assert!(text.contains(words), "{what}: {text}");
                assert!(text.len() < 600, "{what}: {text}");
            }
            (answer, expected) => panic!("{what}: {answer:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn commands_that_cannot_be_run() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    let missing = dir.path().join("missing");
    let rows: [(&str, Vec<OsString>, &str, &str); 5] = [
        ("none", Vec::new(), "not here", "wrap command (none) cannot run: no command was set"),
        ("by name", vec!["no-such-command".into()], "not here", "was not found: install it"),
        ("by path", vec![missing.into()], "not here", "was not found: install it"),
        ("not executable", vec![plain.into()], "unreachable", "was not run to its end: "),
        ("a zero byte", vec!["cat".into(), "a\0b".into()], "not here", "cannot run: "),
    ];
    let dek = Secret::random().unwrap();
    for (what, argv, expected, words) in rows {
        let provider = Command::new(argv.clone(), argv);
        let error = provider.wrap_key("app", &dek, &CONTEXT).unwrap_err();
        assert_eq!(kind(&error), expected, "{what}: {error}");
        assert!(error.to_string().contains(words), "{what}: {error}");
    }
}

#[test]
fn blobs_are_bounded() {
    let make = |len| Command::new(sh(&format!("head -c {len} /dev/zero")), sh("exit 1"));
    let dek = Secret::random().unwrap();
    for (len, fits) in [(0, false), (1, true), (2048, true), (2049, false), (100_000, false)] {
        let answer = make(len).wrap_key("app", &dek, &CONTEXT);
        let expected = if fits { Ok(len) } else { Err("damaged") };
        assert_eq!(answer.map(|w| w.blob.len()).map_err(|e| kind(&e)), expected, "{len} bytes");
    }
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("marker");
    let provider = Command::new(sh("cat"), ["touch".as_ref(), marker.as_os_str()]);
    for len in [0, 2049, 100_000] {
        let answer = provider.unwrap_key("app", &wrapped(&vec![1; len]), &CONTEXT);
        assert_eq!(answer.map(drop).map_err(|e| kind(&e)), Err("damaged"), "{len} bytes");
    }
    assert!(!marker.exists(), "nothing was run");
}

/// Names from a database file reach a command only in harmless letters.
#[test]
fn nothing_runs_for_names_that_could_mean_more() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("marker");
    let touch = ["touch".as_ref(), marker.as_os_str()];
    let provider = Command::new(touch, touch).newest(touch);
    let dek = Secret::random().unwrap();
    let long = "x".repeat(129);
    let hostile = [
        "",
        "-o",
        ".",
        ".hidden",
        "@file",
        "a/b",
        "/etc/passwd",
        "../x",
        "a..b",
        "a b",
        "a\nb",
        "a\0b",
        "$(touch x)",
        "`x`",
        "a;b",
        "a|b",
        "a'b",
        "a\"b",
        "a=b",
        "{key_id}",
        "é",
        "a:b",
        "a*",
        "~",
        "%s",
        "\\",
        &long,
    ];
    for name in hostile {
        let blob = wrapped(dek.expose());
        let version = Wrapped { key_version: name.into(), ..blob.clone() };
        for (what, answer) in [
            ("wrap", provider.wrap_key(name, &dek, &CONTEXT).map(drop)),
            ("unwrap", provider.unwrap_key(name, &blob, &CONTEXT).map(drop)),
            ("newest", provider.newest_of(name).map(drop)),
            ("version", provider.unwrap_key("app", &version, &CONTEXT).map(drop)),
        ] {
            assert_eq!(answer.map_err(|e| kind(&e)), Err("not here"), "{what}: {name:?}");
        }
        let foreign = Wrapped { mechanism: name.into(), ..blob };
        let answer = provider.unwrap_key("app", &foreign, &CONTEXT);
        assert_eq!(answer.map(drop).map_err(|e| kind(&e)), Err("damaged"), "{name:?}");
    }
    assert!(!marker.exists(), "something ran");
    // And that it would have been seen.
    assert!(provider.newest_of("app").is_err());
    assert!(marker.exists());
}

/// A name never becomes the program, even where the configuration has a placeholder there.
#[test]
fn the_program_is_the_configurations_alone() {
    let argv = ["{key_id}", "x"];
    let answer = Command::new(argv, argv).wrap_key("true", &Secret::random().unwrap(), &CONTEXT);
    let text = answer.unwrap_err().to_string();
    assert!(text.contains("command {key_id} was not found"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn no_process_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let start = format!("sleep 1000 & echo $! > {}", pids.display());
    for (what, then, time, expected) in [
        ("done", "cat", LONG, Ok(())),
        ("refused", "exit 77", LONG, Err("denied")),
        ("time is up", "wait", SHORT, Err("unreachable")),
        ("too much", "exec yes", LONG, Err("damaged")),
    ] {
        let provider = Command::new(sh("cat"), sh(&format!("{start}; {then}"))).timeout(time);
        // Until the process is there: time may be up before its shell has written anything.
        let mut answer = Ok(());
        while !pids.exists() {
            let unwrapped = provider.unwrap_key("app", &wrapped(&[5; 32]), &CONTEXT);
            answer = unwrapped.map(drop).map_err(|e| kind(&e));
        }
        assert_eq!(answer, expected, "{what}");
        wait_for_the_end_of(fs::read_to_string(&pids).unwrap().trim(), what);
        fs::remove_file(&pids).unwrap();
    }
}

/// A process that left the group and holds the pipes open is not waited for.
#[cfg(target_os = "linux")]
#[test]
fn a_daemon_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script = format!(
        "setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' & \
         while ! test -e {0}; do sleep 0.01; done; cat",
        pid.display()
    );
    let provider = Command::new(sh("cat"), sh(&script)).timeout(LONG);
    let began = Instant::now();
    provider.unwrap_key("app", &wrapped(&[5; 32]), &CONTEXT).unwrap();
    let pid = fs::read_to_string(&pid).unwrap();
    let killed = std::process::Command::new("kill").args(["-9", pid.trim()]).status().unwrap();
    assert!(killed.success(), "it was killed with the group, or it ended");
    assert!(began.elapsed() < LONG);
}
