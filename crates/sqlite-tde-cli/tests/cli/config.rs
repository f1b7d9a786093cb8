//! The effect of `config.toml` on the command: providers, policy and audit log.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::place::Place;

fn place(config: &str) -> Place {
    let place = Place::empty();
    fs::create_dir(place.path("home")).unwrap();
    fs::set_permissions(place.path("home"), fs::Permissions::from_mode(0o700)).unwrap();
    private(&place, "home/config.toml", config);
    place
}

/// A file that only its owner may read.
fn private(place: &Place, name: &str, content: &str) {
    fs::write(place.path(name), content).unwrap();
    fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o600)).unwrap();
}

const PROVIDERS: &str = r#"
default_protector = "paper:recovery"
[providers.paper]
type = "passphrase"
passphrase = { file = "phrase" }
cost = { memory_kib = 8192, iterations = 1, parallelism = 1 }
[providers.env]
type = "raw"
key = { env = "RAW_KEY" }
[providers.tool]
type = "command"
wrap = ["/bin/sh", "-c", "tr '\\000-\\377' '\\200-\\377\\000-\\177'"]
unwrap = ["/bin/sh", "-c", "tr '\\000-\\377' '\\200-\\377\\000-\\177'"]
"#;

#[test]
fn providers_are_what_the_configuration_says() {
    let phrase = "correct horse battery staple";
    let place = place("");
    private(&place, "phrase", phrase);
    let config = PROVIDERS.replace("\"phrase\"", &format!("{:?}", place.path("phrase")));
    private(&place, "home/config.toml", &config);
    place.ok("config check");
    place.create();
    place.ok("protector add app.db env:key");
    place.ok("protector add app.db tool:key");
    place.ok("protector check app.db");
    for through in ["paper:recovery", "env:key", "tool:key"] {
        place.ok(&format!("protector list app.db --through {through}"));
    }
    // Moved elsewhere, without wrapping anything anew.
    fs::rename(place.path("phrase"), place.path("moved")).unwrap();
    place.ok("protector list app.db --through env:key");
    place.fails("protector list app.db --through paper:recovery", 3, "there is no file");
    private(&place, "home/config.toml", &config.replace("/phrase", "/moved"));
    place.ok("protector list app.db --through paper:recovery");
    private(&place, "moved", "another phrase");
    place.fails("protector list app.db --through paper:recovery", 3, "wrong key");
    // The name that the file has means nothing by itself.
    private(&place, "home/config.toml", "");
    place.fails("status app.db", 3, "provider paper, which is not set up here");
}

#[test]
fn the_policy_forbids() {
    let place = place(
        "[providers.env]\ntype = \"raw\"\nkey = { env = \"RAW_KEY\" }\n\
         [policy]\nmin_protectors = 2\nallowed_providers = [\"keystore\"]\n",
    );
    place.create();
    place.ok("key create spare");
    place.ok("key create third");
    place.fails("protector add app.db env:key", 2, "allows no protectors of provider env");
    place.fails("protector rotate app.db --to env:key", 2, "allows no protectors of provider env");
    place.ok("protector add app.db spare");
    place.ok("protector add app.db third");
    place.ok("protector remove app.db third");
    place.fails("protector remove app.db spare", 2, "asks for 2 protectors, and 1 would be left");
    private(&place, "home/config.toml", "[policy]\nmin_protectors = 2\nbelow_min = \"warn\"\n");
    let warned = place.run("protector remove app.db spare");
    let said = String::from_utf8(warned.stderr).unwrap();
    assert!(warned.status.success() && said.contains("warning: the policy asks for 2"), "{said}");
}

#[test]
fn the_audit_log_has_what_was_done() {
    let place = place("[audit]\nenabled = true\n");
    place.create();
    place.ok("key create spare");
    place.ok("key export spare --reveal");
    place.fails("key disable nobody", 3, "no key");
    place.ok("protector add app.db spare");
    place.ok("decrypt app.db plain.db");
    let text = place.ok("audit show --json");
    for (kind, outcome) in [
        ("create", "ok"),
        ("open", "ok"),
        ("wrap", "ok"),
        ("unwrap", "ok"),
        ("key_change", "ok"),
        ("key_change", "failed"),
        ("add_protector", "ok"),
        ("export", "ok"),
    ] {
        let found = text.lines().any(|line| {
            line.contains(&format!("\"kind\":\"{kind}\""))
                && line.contains(&format!("\"outcome\":\"{outcome}\""))
        });
        assert!(found, "{kind} {outcome} in {text}");
    }
    place.ok("audit verify");

    // A log that cannot be written: keys stay as they are.
    let lock = place.path("home/audit/audit.lock");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    let keys = fs::read(place.path("home/keystore.json")).unwrap();
    place.fails("key rotate spare", 5, "audit");
    place.fails("protector remove app.db spare", 5, "audit");
    assert!(fs::read(place.path("home/keystore.json")).unwrap() == keys);
}

#[test]
fn a_mistake_in_the_configuration_stops_everything() {
    let place = place("[access]\ngrace = \"soon\"\n");
    for line in ["sql --create app.db SELECT\u{a0}1", "key list", "config check", "status app.db"] {
        place.fails(line, 2, "line 2");
    }
    assert!(!place.path("app.db").exists());
}

fn home_with(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let path = dir.path().join("config.toml");
    fs::write(&path, config).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    dir
}

#[test]
fn the_command_checks_the_configuration_and_says_where_it_is() {
    let run = |home: &Path, verb: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_sqlite-tde"))
            .args(["config", verb])
            .env("SQLITE_TDE_HOME", home)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().join("config.toml").display().to_string();
    assert_eq!(run(empty.path(), "path"), (0, format!("{path}\n"), String::new()));
    let (code, out, _) = run(empty.path(), "check");
    assert!(code == 0 && out.starts_with(&format!("{path} (not there")), "{out}");
    assert!(out.contains("\nrevalidate   600s\n") && out.contains("\naudit log    not kept\n"));

    let good = home_with(
        "default_protector = \"hsm:a\"\n[audit]\nenabled = true\n[providers.a]\n\
         type = \"command\"\nwrap = [\"w\", \"hunter2\"]\nunwrap = [\"u\"]",
    );
    let (code, out, _) = run(good.path(), "check");
    assert_eq!(code, 0, "{out}");
    for line in [
        "protector    hsm:a",
        "provider     a: command w",
        "note: \"hsm\" is no provider here; an application has to bring it",
        &format!("audit log    {}", good.path().join("audit").display()),
    ] {
        assert!(out.lines().any(|found| found == line), "{line}:\n{out}");
    }
    let wrong = home_with("\n[access]\ngrace = 3\n");
    let (code, out, err) = run(wrong.path(), "check");
    assert_eq!((code, &*out), (2, ""));
    assert!(err.contains("config.toml, line 3, access.grace: expected a span of time"), "{err}");
}
