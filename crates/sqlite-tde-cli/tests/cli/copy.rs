//! `sqlite-tde copy`: a copy with an identity of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::place::Place;

fn mode(place: &Place, name: &str) -> u32 {
    fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777
}

fn rows(place: &Place, name: &str) -> String {
    place.ok(&format!("sql {name} --format csv SELECT\u{a0}a\u{a0}FROM\u{a0}t"))
}

fn place() -> Place {
    let place = Place::empty();
    place.create();
    place.ok("sql app.db INSERT\u{a0}INTO\u{a0}t\u{a0}VALUES('one'),('two')");
    place
}

#[test]
fn a_copy_has_keys_of_its_own_and_the_same_protectors() {
    for journal in ["delete", "wal"] {
        let place = place();
        place.ok("sql app.db PRAGMA\u{a0}user_version=7");
        place.ok(&format!("sql app.db PRAGMA\u{a0}journal_mode={journal}"));
        place.ok("key create spare");
        place.ok("key create auditor");
        place.ok("protector add app.db spare");
        place.ok("protector add app.db auditor --read-only --not-after 2100-01-01");
        place.ok("protector auto-rotate app.db off");
        let before = fs::read(place.path("app.db")).unwrap();
        fs::set_permissions(place.path("app.db"), fs::Permissions::from_mode(0o640)).unwrap();
        place.ok("copy app.db copy.db");
        assert!(fs::read(place.path("app.db")).unwrap() == before, "the source");
        let only_readers = "copy app.db ro.db --without default --without spare";
        place.fails(only_readers, 2, "no protector is left for the copy that may write");

        let (one, two) = (place.json("status app.db --json"), place.json("status copy.db --json"));
        assert_ne!(one["file_id"], two["file_id"]);
        for same in ["cipher", "page_size", "pages", "auto_rotate", "format"] {
            assert_eq!(one[same], two[same], "{same}");
        }
        let protectors = |status: &serde_json::Value| -> Vec<(String, u64, bool)> {
            let all = status["protectors"].as_array().unwrap().iter();
            all.map(|p| {
                let name = p["name"].as_str().unwrap().to_owned();
                (name, p["not_after"].as_u64().unwrap(), p["read_only"].as_bool().unwrap())
            })
            .collect()
        };
        assert_eq!(protectors(&one), protectors(&two));
        for through in ["default", "spare", "auditor"] {
            place.ok(&format!("protector list copy.db --through {through}"));
        }
        assert_eq!(rows(&place, "copy.db"), "a\none\ntwo\n");
        let said = |sql: &str| place.ok(&format!("sql copy.db --format csv PRAGMA\u{a0}{sql}"));
        assert_eq!(said("journal_mode"), format!("journal_mode\n{journal}\n"));
        assert_eq!(said("user_version"), "user_version\n7\n");
        place.ok("verify copy.db");
        assert_eq!(mode(&place, "copy.db") & !0o640, 0, "mode {:o}", mode(&place, "copy.db"));
        let left: Vec<String> = fs::read_dir(place.path("."))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{left:?}");

        // No page of one authenticates in the other: page 2 of the source in the copy's place.
        let (from, to) = (fs::read(place.path("app.db")).unwrap(), place.path("copy.db"));
        let page = usize::try_from(one["page_size"].as_u64().unwrap()).unwrap();
        let mut mixed = fs::read(&to).unwrap();
        let at = 16384 + page;
        mixed[at..at + page].copy_from_slice(&from[at..at + page]);
        fs::write(&to, mixed).unwrap();
        place.fails("verify copy.db", 1, "");
        // A copy made by `cp` has nothing that tells it from its source: a documented limit.
        fs::copy(place.path("app.db"), place.path("cp.db")).unwrap();
        place.ok("verify cp.db");
        assert_eq!(place.json("status cp.db --json")["file_id"], one["file_id"]);
    }
}

#[test]
fn a_copy_keeps_cipher_and_page_size() {
    let place = Place::empty();
    place.ok("key create k");
    rusqlite::Connection::open(place.path("plain.db"))
        .unwrap()
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES('one')")
        .unwrap();
    let options = "--cipher aes-256-ctr-hmac-sha256 --page-size 8192 --protector k";
    place.ok(&format!("encrypt plain.db app.db {options}"));
    place.ok("copy app.db copy.db");
    let status = place.json("status copy.db --json");
    assert_eq!(
        (&status["cipher"], &status["page_size"]),
        (&"aes-256-ctr-hmac-sha256".into(), &8192.into())
    );
    assert_eq!(status["protectors"][0]["name"], "k");
    assert_eq!(rows(&place, "copy.db"), "a\none\n");
}

#[test]
fn what_cannot_be_copied_is_said_before_anything_is_made() {
    let place = place();
    let config = place.path("home/config.toml");
    fs::write(
        &config,
        "[providers.paper]\ntype = \"passphrase\"\npassphrase = { file = \"phrase\" }\n\
         cost = { memory_kib = 8192, iterations = 1 }\n[providers.env]\ntype = \"raw\"\n\
         key = { env = \"RAW_KEY\" }\n",
    )
    .unwrap();
    fs::write(place.path("home/phrase"), "correct horse").unwrap();
    for name in ["home/config.toml", "home/phrase"] {
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    place.ok("protector add app.db paper:recovery");
    place.ok("protector add app.db env:key");
    // A passphrase from a file needs no prompt.
    place.ok("copy app.db all.db");
    place.ok("protector list all.db --through paper:recovery");
    // Nor is a copy made under another passphrase than the one that its source is known by.
    fs::write(place.path("home/phrase"), "battery staple").unwrap();
    for line in ["copy app.db copy.db", "copy app.db copy.db --without default"] {
        place.fails(line, 3, "protector paper:recovery was created with a different secret");
        place.fails(line, 3, "--without 'paper:recovery' leaves it out");
        assert!(!place.path("copy.db").exists(), "{line}");
    }
    fs::write(place.path("home/phrase"), "correct horse").unwrap();
    let asks =
        fs::read_to_string(&config).unwrap().replace("{ file = \"phrase\" }", "{ prompt = true }");
    fs::write(&config, asks).unwrap();
    fs::write(place.path("taken.db"), "taken").unwrap();
    for (line, code, words) in [
        (
            "copy app.db copy.db",
            3,
            "protector paper:recovery cannot wrap the key of the copy: it asks",
        ),
        ("copy app.db copy.db", 3, "--without 'paper:recovery' leaves it out"),
        ("copy app.db copy.db --without nobody", 2, "there is no protector nobody to leave out"),
        (
            "copy app.db copy.db --without default --without paper:recovery --without env:key",
            2,
            "no protector is left",
        ),
        ("copy app.db app.db", 2, "the same file"),
        ("copy app.db taken.db --without paper:recovery", 5, "--force replaces it"),
        ("copy missing.db copy.db", 5, "missing.db"),
        ("copy taken.db copy.db", 4, "taken.db"),
    ] {
        place.fails(line, code, words);
        assert!(!place.path("copy.db").exists(), "{line}");
    }
    assert_eq!(fs::read(place.path("taken.db")).unwrap(), b"taken");
    place.ok("copy app.db taken.db --force --without paper:recovery");
    let names = place.json("protector list taken.db --json");
    let names: Vec<&str> =
        names.as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["default", "env:key"]);
    // A provider that is not here at all is named.
    fs::write(&config, "").unwrap();
    place.fails("copy app.db copy.db", 3, "provider paper, which is not set up here");
}

/// Removes a database. A command that only reads leaves the log behind.
fn remove(place: &Place, name: &str) {
    for suffix in sqlite_tde::FILES_BESIDE.iter().chain(&[""]) {
        let _ = fs::remove_file(place.path(&format!("{name}{suffix}")));
    }
}

/// Names, ends and rights of a database's protectors, in their order.
fn rights(place: &Place, name: &str) -> Vec<(String, u64, bool)> {
    let status = place.json(&format!("status {name} --json"));
    let all = status["protectors"].as_array().unwrap().iter();
    all.map(|p| {
        let name = p["name"].as_str().unwrap().to_owned();
        (name, p["not_after"].as_u64().unwrap(), p["read_only"].as_bool().unwrap())
    })
    .collect()
}

/// Which protector comes first, and through which one the source is opened, makes no difference.
#[test]
fn the_order_of_protectors_does_not_matter() {
    let orders: [&[&str]; 4] = [
        &["reader", "spare"],
        &["spare", "reader"],
        &["reader", "second --read-only", "spare"],
        &["reader", "spare", "second --not-after 2100-01-01"],
    ];
    for journal in ["delete", "wal"] {
        for order in orders {
            for auto in ["on", "off"] {
                let at = format!("{journal}, {order:?}, {auto}");
                let place = place();
                place.ok(&format!("sql app.db PRAGMA\u{a0}journal_mode={journal}"));
                for key in ["reader", "spare", "second"] {
                    place.ok(&format!("key create {key}"));
                }
                for name in order {
                    let flag = if *name == "reader" { " --read-only" } else { "" };
                    place.ok(&format!("protector add app.db {name}{flag}"));
                }
                place.ok(&format!("protector auto-rotate app.db {auto}"));
                place.ok("protector remove app.db default --through default");
                for through in ["", " --through reader", " --through spare"] {
                    remove(&place, "copy.db");
                    place.ok(&format!("copy app.db copy.db{through}"));
                    assert_eq!(
                        rights(&place, "copy.db"),
                        rights(&place, "app.db"),
                        "{at}, {through}"
                    );
                    assert_eq!(rows(&place, "copy.db"), "a\none\ntwo\n", "{at}, {through}");
                    let status = place.json("status copy.db --json");
                    assert_eq!(status["auto_rotate"], auto == "on", "{at}, {through}");
                    let mode = place.ok("sql copy.db --format csv PRAGMA\u{a0}journal_mode");
                    assert_eq!(mode, format!("journal_mode\n{journal}\n"), "{at}, {through}");
                    place.ok("protector auto-rotate copy.db on --through spare");
                    place.ok("verify copy.db");
                }
                let writes = order.iter().any(|name| name.contains("--not-after"));
                if writes {
                    place.ok("copy app.db rest.db --without spare");
                } else {
                    place.fails("copy app.db rest.db --without spare", 2, "no protector is left");
                }
            }
        }
    }
}

/// The ways to another page size that the README names.
#[test]
fn a_copy_may_have_pages_of_another_size() {
    for journal in ["delete", "wal"] {
        let place = place();
        place.ok(&format!("sql app.db PRAGMA\u{a0}journal_mode={journal}"));
        for size in [1024, 8192, 65536, 4096] {
            remove(&place, "copy.db");
            place.ok(&format!("copy app.db copy.db --page-size {size}"));
            assert_eq!(place.json("status copy.db --json")["page_size"], size, "{journal}");
            assert_eq!(rows(&place, "copy.db"), "a\none\ntwo\n", "{journal}, {size}");
            place.ok("verify copy.db");
        }
        let into = "PRAGMA\u{a0}page_size=8192 VACUUM\u{a0}INTO\u{a0}'file:into.db?vfs=tde'";
        place.ok(&format!("sql --read-only app.db {into}"));
        assert_eq!(place.json("status into.db --json")["page_size"], 8192, "{journal}");
        assert_eq!(rows(&place, "into.db"), "a\none\ntwo\n", "{journal}");
        place.fails("copy app.db other.db --page-size 512", 2, "from 1024 to 65536");
        let words = "`sqlite-tde copy --page-size`";
        place.fails("sql app.db PRAGMA\u{a0}page_size=8192", 5, words);
    }
}

/// A copy keeps as many protectors as the policy asks for, where its source does.
#[test]
fn a_copy_keeps_the_least_number_of_protectors() {
    for (below_min, refuses) in [("refuse", true), ("warn", false)] {
        let place = place();
        for name in ["spare", "third"] {
            place.ok(&format!("key create {name}"));
            place.ok(&format!("protector add app.db {name}"));
        }
        let config = place.path("home/config.toml");
        let policy = format!("[policy]\nmin_protectors = 2\nbelow_min = \"{below_min}\"\n");
        fs::write(&config, policy).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        place.ok("copy app.db two.db --without third");
        let line = "copy app.db one.db --without spare --without third";
        let words = "the policy asks for 2 protectors, and 1 would be left";
        if refuses {
            place.fails(line, 2, words);
            assert!(!place.path("one.db").exists());
            continue;
        }
        let copied = place.run(line);
        let told = String::from_utf8_lossy(&copied.stderr).into_owned();
        assert!(copied.status.success() && told.contains(words), "{told}");
        // One that has fewer already is copied as it is.
        let copied = place.run("copy one.db again.db");
        let told = String::from_utf8_lossy(&copied.stderr).into_owned();
        assert!(copied.status.success() && !told.contains(words), "{told}");
    }
}
