//! `sqlite-tde protector`, from a shell: arguments, expected exit code and words.

use std::time::Duration;

use sqlite_tde::TdeConnection;
use sqlite_tde_testkit::{Home, one, one_attempt};

use super::place::Place;

fn place() -> Place {
    let place = Place::empty();
    place.create();
    place.ok("key create spare");
    place
}

/// Names and key versions are these.
fn assert_protectors(place: &Place, expected: &[(&str, &str)]) {
    let all = place.json("protector list app.db --json");
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let pair = |p: &serde_json::Value| (text(&p["name"]), text(&p["key_version"]));
    let seen: Vec<(String, String)> = all.as_array().unwrap().iter().map(pair).collect();
    let expected: Vec<(String, String)> =
        expected.iter().map(|&(name, version)| (name.into(), version.into())).collect();
    assert_eq!(seen, expected);
}

#[test]
fn protectors_come_and_go() {
    let place = place();
    assert_protectors(&place, &[("default", "1")]);
    assert!(place.ok("protector add app.db spare").contains("spare"));
    assert_protectors(&place, &[("default", "1"), ("spare", "1")]);
    assert_eq!(place.json("protector add app.db spare --json")["changed"], false);

    place.ok("key rotate default");
    assert_eq!(place.json("protector rotate app.db --json")["changed"], true);
    assert_protectors(&place, &[("default", "2"), ("spare", "1")]);
    place.ok("key create other");
    place.ok("protector rotate app.db --to other --replace spare");
    assert_protectors(&place, &[("default", "2"), ("other", "1")]);
    place.ok("protector remove app.db default");
    assert_protectors(&place, &[("other", "1")]);
    place.ok("sql app.db SELECT\u{a0}*\u{a0}FROM\u{a0}t");
    place.ok("verify app.db");

    place.ok("protector auto-rotate app.db off");
    assert_eq!(place.json("status app.db --json")["auto_rotate"], false);
    place.ok("protector auto-rotate app.db on");
    assert_eq!(place.json("status app.db --json")["auto_rotate"], true);
}

#[test]
fn a_protector_for_another_party() {
    let place = place();
    place.ok("protector add app.db spare --read-only --not-after 2100-01-01T12:00:00Z");
    let listed = place.ok("protector list app.db");
    assert!(listed.contains("2100-01-01T12:00:00Z") && listed.contains("| read"), "{listed}");
    place.fails("protector rotate app.db --through spare", 5, "read-only protector");
    place.fails("protector remove app.db default", 2, "the last protector that may write");
    place.ok("protector list app.db --through spare");
    place.ok("protector remove app.db spare");
    place.fails("protector list app.db --through spare", 3, "does not protect this database");
}

#[test]
fn what_goes_wrong_is_said_and_changes_nothing() {
    let place = place();
    let before = std::fs::read(place.path("app.db")).unwrap();
    for (line, code, words) in [
        ("protector remove app.db default", 2, "the last protector"),
        ("protector remove app.db nobody", 2, "there is no protector nobody; there is default"),
        ("protector add app.db nobody", 3, "no key \"nobody\""),
        ("protector add app.db vault:key", 3, "key provider vault is not set up"),
        ("protector add app.db spare --not-after tomorrow", 2, "expected 2027-01-31"),
        ("protector rotate app.db --to nobody", 3, "no key \"nobody\""),
        ("protector rotate app.db --to spare --replace nobody", 2, "there is no protector nobody"),
        ("protector rotate app.db --replace default", 2, "--to"),
        ("protector auto-rotate app.db perhaps", 2, "possible values: on, off"),
        ("protector list missing.db", 5, "missing.db"),
    ] {
        place.fails(line, code, words);
    }
    assert!(std::fs::read(place.path("app.db")).unwrap() == before);
}

#[test]
fn a_check_tells_by_its_exit_code() {
    let place = place();
    place.ok("protector add app.db spare");
    let checks = place.json("protector check app.db --json");
    assert!(checks.as_array().unwrap().iter().all(|check| check["matches"] == true), "{checks}");
    place.ok("key disable spare");
    let checked = place.run("protector check app.db");
    let table = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(3), "{table}");
    assert!(table.contains("disabled"), "{table}");
    place.ok("key enable spare");
    place.ok("protector check app.db");
}

/// The command line, as another process with the keystore in `keys` of `home`.
pub fn command(home: &Home, keys: &str, line: &str) {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_sqlite-tde"))
        .current_dir(home.dir.path())
        .env("SQLITE_TDE_HOME", home.path(keys))
        .args(line.split(' '))
        .output()
        .unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Another process takes away the protector that a connection came through, or its right to write.
#[test]
fn what_a_protector_gave_goes_with_it() {
    let remove = "protector remove a.db k1";
    let limit = "protector add a.db k1 --read-only";
    let rows: [(&str, &[&str], &[&str], bool, bool); 4] = [
        ("nothing", &["default", "ro"], &[], true, true),
        ("it is removed", &["default", "ro"], &[remove], false, false),
        ("another one reads", &["default"], &[remove], true, false),
        ("it is limited", &["default", "ro"], &[remove, limit], true, false),
    ];
    for mode in ["DELETE", "WAL"] {
        for (what, not_here, done, reads, writes) in rows {
            let mut policy = one_attempt();
            policy.revalidate = Some(Duration::ZERO);
            let home = Home::with(|options| options.access(policy));
            for line in ["key create k1", "key create ro"] {
                command(&home, "keys", line);
            }
            let db = home.create("a.db");
            one(&db, &format!("PRAGMA journal_mode={mode}"));
            drop(db);
            command(&home, "keys", "protector add a.db k1");
            command(&home, "keys", "protector add a.db ro --read-only");
            let keys = home.path("operator");
            let mut copy = std::process::Command::new("cp");
            assert!(copy.arg("-a").arg(home.path("keys")).arg(keys).status().unwrap().success());
            for name in not_here {
                command(&home, "keys", &format!("key disable {name}"));
            }
            let db = home.open(&home.path("a.db"));
            let through = || db.tde_status("main").unwrap().opened_through;
            let write = || db.execute("INSERT INTO t VALUES(2)", []);
            write().unwrap();
            assert_eq!(through(), "k1", "{mode}, {what}");
            for line in done {
                command(&home, "operator", line);
            }
            let until =
                std::time::Instant::now() + Duration::from_secs(if writes { 1 } else { 30 });
            while write().is_ok() && std::time::Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(write().is_ok(), writes, "{mode}, {what}");
            let read = db.query_row("SELECT count(*) FROM t", [], |_| Ok(()));
            assert_eq!(read.is_ok(), reads, "{mode}, {what}: {read:?}");
        }
    }
}
