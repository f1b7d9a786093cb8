//! A keystore under a passphrase, on the command line.

use super::*;

const FILE: &str = "SQLITE_TDE_KEYSTORE_PASSPHRASE_FILE";
const DESCRIPTOR: &str = "SQLITE_TDE_KEYSTORE_PASSPHRASE_FD";

/// With a database, and a keystore under the passphrase in the file `pass`.
fn protected() -> Place {
    let place = Place::filled();
    place.write("pass", "correct horse\n");
    place.write("other", "correct horsf\n");
    let answer = place.ok("key passphrase set --file pass");
    assert!(answer.contains("has a passphrase now"), "{answer}");
    place
}

fn given(mut place: Place, variable: &'static str, value: &str) -> Place {
    place.variables = vec![(variable, value.to_owned())];
    place
}

#[test]
fn a_passphrase_opens_what_it_protects() {
    let place = protected();
    let json: Value = serde_json::from_slice(&place.keystore()).unwrap();
    assert_eq!((&json["format"], &json["passphrase"]["kdf"]), (&2.into(), &"argon2id".into()));
    let every = ["key list", "key rotate payroll", "status enc.db", "sql enc.db VACUUM"];
    for line in every {
        place.fails(line, 3, "has a passphrase, and none was given: set SQLITE_TDE_KEYSTORE");
    }
    let place = given(place, FILE, "other");
    for line in every {
        place.fails(line, 3, "the passphrase from file other is not the one of keystore");
    }
    let place = given(place, FILE, "missing");
    place.fails("key list", 3, "there is no file missing");
    place.set_mode("pass", 0o604);
    let place = given(place, FILE, "pass");
    place.fails("key list", 3, "mode 604");
    place.set_mode("pass", 0o600);
    for line in every {
        place.ok(line);
    }
    assert_eq!(place.list()[0]["versions"].as_array().unwrap().len(), 2);
    let place = given(place, FILE, "");
    place.fails("key list", 3, "none was given");

    // From a descriptor, which is open in the command.
    place.shell(&format!("{DESCRIPTOR}=3 $tde sql enc.db 'SELECT a FROM t' 3< pass"));
    let place = given(place, DESCRIPTOR, "three");
    place.fails("key list", 2, "SQLITE_TDE_KEYSTORE_PASSPHRASE_FD is not a number");
    let mut place = given(place, DESCRIPTOR, "3");
    place.variables.push((FILE, "pass".into()));
    place.fails("key list", 2, "set only one of");
}

#[test]
fn it_is_changed_and_removed_by_who_has_it() {
    let place = given(protected(), FILE, "other");
    for line in ["change --file other", "remove"] {
        place.fails(&format!("key passphrase {line}"), 3, "is not the one of keystore");
    }
    let place = given(place, FILE, "pass");
    place.fails("key passphrase set --file other", 2, "has a passphrase already");
    place.shell(": > empty; chmod 600 empty");
    place.fails("key passphrase change --file empty", 3, "is empty");
    let shell = "NEW=$(cat other) $tde key passphrase change --env NEW";
    assert!(String::from_utf8(place.shell(shell)).unwrap().contains("another passphrase now"));
    place.fails("sql enc.db VACUUM", 3, "is not the one of keystore");
    let place = given(place, FILE, "other");
    place.ok("sql enc.db VACUUM");
    place.shell("$tde key passphrase change --fd 3 3< pass");
    let place = given(place, FILE, "pass");
    assert!(place.ok("key passphrase remove").contains("its keys in the clear"));
    place.fails("sql enc.db VACUUM", 3, "has no passphrase, but one was given");
    let mut place = place;
    place.variables.clear();
    place.ok("sql enc.db VACUUM");
    let json: Value = serde_json::from_slice(&place.keystore()).unwrap();
    assert_eq!(json["format"], 1, "what the first format can say is said in it");
}

#[test]
fn a_new_keystore_begins_under_the_passphrase() {
    let place = given(Place::new(), FILE, "pass");
    place.write("pass", "correct horse");
    place.write("hex", HEX);
    place.ok("key import k --file hex");
    let text = String::from_utf8(place.keystore()).unwrap();
    assert!(text.contains("\"passphrase\"") && !text.contains("AAECAwQF"), "{text}");
    assert_eq!(place.ok("key export k --reveal --format hex"), format!("{HEX}\n"));
}

/// Each byte; with the seal repaired they are all tried next to the code of the format.
#[test]
fn every_altered_byte_is_refused() {
    let place = given(protected(), FILE, "pass");
    let good = place.keystore();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(place.path("keys/keystore.json"), &bad).unwrap();
        let answer = place.line("key list");
        let damaged = answer.err.contains("damaged") || answer.err.contains("newer version");
        assert!(answer.code == 3 && damaged, "byte {at}: {}", answer.err);
    }
    fs::write(place.path("keys/keystore.json"), &good).unwrap();
    place.ok("sql enc.db VACUUM");
}

#[test]
fn rules_cannot_be_lifted_without_it() {
    use sha2::{Digest, Sha256};
    let place = given(protected(), FILE, "pass");
    place.ok("key disable payroll --version 1");
    place.ok("key set payroll --ops unwrap --not-after 2020-01-01");
    let good = String::from_utf8(place.keystore()).unwrap();
    let (body, _) = good.rsplit_once(",\n  \"sha256\"").unwrap();
    for (what, from, to) in [
        ("an end put off", "1577836800", "1999999999"),
        ("a version enabled", "\"enabled\": false", "\"enabled\": true"),
        ("a key renamed", "\"payroll\"", "\"default\""),
        ("a retired key that wraps", "\"unwrap\"", "\"wrap\""),
    ] {
        assert!(body.contains(from), "{what}");
        let body = body.replacen(from, to, 1);
        let digest: String =
            Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
        let forged = format!("{body},\n  \"sha256\": \"{digest}\"\n}}\n");
        fs::write(place.path("keys/keystore.json"), forged).unwrap();
        place.fails("sql enc.db VACUUM", 3, "was altered by someone without its passphrase");
    }
}

#[test]
fn writers_in_many_processes_share_it() {
    let place = given(protected(), FILE, "pass");
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let mut command = place.command();
            command.args(["key", "create", &format!("k{n}")]).stdout(Stdio::null());
            command.stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for writer in writers {
        let answer = Answer::from(writer.wait_with_output().unwrap());
        assert_eq!(answer.code, 0, "{}", answer.err);
    }
    assert_eq!(place.list().as_array().unwrap().len(), 5);
}
