//! When and for what a key may be used, as tables; keys that come, go, and are brought back.

use std::time::Duration;

use super::*;
use crate::process::time::{seconds, system_time};

const HOUR: u64 = 60 * 60;

fn ended() -> KeyRules {
    KeyRules::new().not_after(system_time(now() - HOUR))
}

fn not_yet() -> KeyRules {
    KeyRules::new().not_before(system_time(now() + HOUR))
}

fn words<T>(answer: Result<T, ProviderError>) -> String {
    answer.err().map_or_else(|| "ok".into(), |error| format!("{}: {error}", super::kind(&error)))
}

fn key(byte: u8) -> Secret {
    Secret::from_slice(&[byte; 32]).unwrap()
}

#[test]
fn rules_decide_who_wraps_and_who_unwraps() {
    type Change = fn(&Keystore) -> Result<()>;
    const BOTH: [&str; 2] = ["ok", "ok"];
    // A change of a key with two versions, the version that wraps then, and the results of
    // unwrapping earlier blobs of versions 1 and 2.
    let rows: [(&str, Change, &str, [&str; 2]); 13] = [
        ("nothing", |_| Ok(()), "2", BOTH),
        ("newest disabled", |s| s.set_enabled("k", 2, false), "1", ["ok", "is disabled"]),
        (
            "key disabled",
            |s| s.set_key_enabled("k", false),
            "denied: key \"k\" in",
            ["is disabled"; 2],
        ),
        (
            "newest not yet",
            |s| s.set_rules("k", None, &not_yet()).map(drop),
            "1",
            ["ok", "version 2 of key"],
        ),
        (
            "newest ended",
            |s| s.set_rules("k", Some(2), &ended()).map(drop),
            "1",
            ["ok", " ended at "],
        ),
        (
            "first ended",
            |s| s.set_rules("k", Some(1), &ended()).map(drop),
            "2",
            ["ended at ", "ok"],
        ),
        (
            "both out of time",
            |s| {
                s.set_rules("k", Some(1), &ended())?;
                s.set_rules("k", Some(2), &not_yet()).map(drop)
            },
            "has no version to wrap with: version 2 begins at ",
            [" ended at ", " begins at "],
        ),
        (
            "within its time",
            |s| {
                let (begin, end) = (system_time(now() - HOUR), system_time(now() + HOUR));
                let rules = KeyRules::new().not_before(begin).not_after(end);
                s.set_rules("k", None, &rules).map(drop)
            },
            "2",
            BOTH,
        ),
        (
            "limits lifted",
            |s| {
                s.set_rules("k", None, &ended())?;
                let rules = KeyRules::new().not_after(None).not_before(None);
                s.set_rules("k", None, &rules).map(drop)
            },
            "2",
            BOTH,
        ),
        (
            "retired",
            |s| s.set_rules("k", None, &KeyRules::new().operations([Operation::Unwrap])).map(drop),
            "may only unwrap",
            BOTH,
        ),
        (
            "write only",
            |s| s.set_rules("k", None, &KeyRules::new().operations([Operation::Wrap])).map(drop),
            "2",
            ["may only wrap"; 2],
        ),
        (
            "deleted",
            |s| s.delete("k", 7).map(drop),
            "is scheduled for deletion: until ",
            ["key undelete"; 2],
        ),
        (
            "deleted and brought back",
            |s| {
                s.delete("k", 7)?;
                s.undelete("k")
            },
            "2",
            BOTH,
        ),
    ];
    for (what, change, wraps, unwraps) in rows {
        let (_dir, store) = keystore();
        let dek = Secret::random().unwrap();
        store.create("k").unwrap();
        let first = store.wrap_key("k", &dek, &CONTEXT).unwrap();
        store.rotate("k").unwrap();
        let second = store.wrap_key("k", &dek, &CONTEXT).unwrap();
        change(&store).unwrap();

        let newest = store.newest_of("k");
        let wrapped = store.wrap_key("k", &dek, &CONTEXT).map(|wrapped| wrapped.key_version);
        assert_eq!(newest, wrapped, "{what}");
        match newest {
            Ok(version) => assert_eq!(version, wraps, "{what}"),
            newest => {
                let words = words(newest);
                assert!(words.starts_with("denied: ") && words.contains(wraps), "{what}: {words}");
            }
        }
        for (wrapped, expected) in [first, second].iter().zip(unwraps) {
            let words = words(store.unwrap_key("k", wrapped, &CONTEXT).map(|found| {
                assert_eq!(found.expose(), dek.expose(), "{what}");
            }));
            let denied = words.starts_with("denied: ") || words == "ok";
            assert!(denied && words.contains(expected), "{what}: {words}");
        }
    }
}

#[test]
fn windows_include_their_beginning_and_exclude_their_end() {
    let version = |not_before, not_after| StoredVersion {
        not_before,
        not_after,
        ..StoredVersion::new(1, material::Material::Clear(key(1)), 0)
    };
    for (not_before, not_after, now, expected) in [
        (None, None, 0, None),
        (Some(1000), None, 999, Some("begins at 1970-01-01T00:16:40Z, and it is 1970-01-01T00:16")),
        (Some(1000), None, 1000, None),
        (None, Some(1000), 999, None),
        (None, Some(1000), 1000, Some("ended at 1970-01-01T00:16:40Z")),
        (Some(1000), Some(1001), 1000, None),
        (Some(1000), Some(1001), 1001, Some("ended at")),
    ] {
        let found = version(not_before, not_after).refusal(now);
        let row = format!("{not_before:?} to {not_after:?} at {now}: {found:?}");
        match (found, expected) {
            (Some(words), Some(expected)) => assert!(words.starts_with(expected), "{row}"),
            (found, expected) => assert_eq!(found.is_some(), expected.is_some(), "{row}"),
        }
    }
}

#[test]
fn rules_that_cannot_be_followed_change_nothing() {
    let (_dir, store) = keystore();
    store.create_with("k", &ended()).unwrap();
    let before = fs::read(store.path()).unwrap();
    let usage = |answer: Result<()>, what: &str| {
        assert!(matches!(answer, Err(Error::Usage(_))), "{what}: {answer:?}");
        assert_eq!(fs::read(store.path()).unwrap(), before, "{what}");
    };
    let none = KeyRules::new().operations([]);
    let window =
        |begin, end| KeyRules::new().not_before(system_time(begin)).not_after(system_time(end));
    let forever = KeyRules::new().not_after(system_time(u64::MAX) + Duration::from_secs(1));
    for (what, rules) in [
        ("no operation", &none),
        ("an end before the beginning", &window(7, 6)),
        ("an end at the beginning", &window(7, 7)),
        ("a time past all calendars", &forever),
        ("a beginning after the end that is there", &not_yet()),
    ] {
        usage(store.set_rules("k", None, rules).map(drop), what);
        if what != "a beginning after the end that is there" {
            usage(store.create_with("new", rules).map(drop), what);
        }
    }
    let operations = KeyRules::new().operations([Operation::Wrap]);
    usage(store.set_rules("k", Some(1), &operations).map(drop), "operations of a version");
    for days in [0, 3651, u32::MAX] {
        usage(store.delete("k", days).map(drop), "days");
    }
    usage(store.undelete("k"), "not deleted");
    usage(store.purge("k", false), "without force");
    usage(store.export("k", None, false).map(drop), "without reveal");
    usage(store.import("new", key(0)).map(drop), "no key");
    usage(store.import_version("k", key(0)).map(drop), "no key");
    for answer in [
        store.set_rules("k", Some(9), &ended()).map(drop),
        store.set_rules("absent", None, &ended()).map(drop),
        store.set_key_enabled("absent", false),
        store.export("k", Some(9), true).map(drop),
        store.export("absent", None, true).map(drop),
        store.import_version("absent", key(1)).map(drop),
        store.delete("absent", 7).map(drop),
        store.undelete("absent"),
        store.purge("absent", true),
    ] {
        assert!(matches!(answer, Err(Error::NoKey(_))), "{answer:?}");
    }
    assert_eq!(fs::read(store.path()).unwrap(), before);
}

#[test]
fn imported_keys_wrap_and_come_out_again() {
    let (_dir, store) = keystore();
    let dek = Secret::random().unwrap();
    store.import("k", key(1)).unwrap();
    assert!(matches!(store.import("k", key(2)), Err(Error::KeyExists { .. })));
    assert!(matches!(store.import_version("k", key(1)), Err(Error::Usage(_))), "the same again");
    store.import_version("k", key(2)).unwrap();
    store.rotate("k").unwrap();
    for (version, byte) in [(Some(1), 1), (Some(2), 2)] {
        let found = store.export("k", version, true).unwrap();
        assert_eq!(found.expose(), key(byte).expose());
    }
    let newest = store.export("k", None, true).unwrap();
    assert_eq!(newest.expose(), store.export("k", Some(3), true).unwrap().expose());

    // A blob of one keystore unwraps in another with the same key under the same name.
    let wrapped = store.wrap_key("k", &dek, &CONTEXT).unwrap();
    let (_other_dir, other) = super::keystore();
    for version in 1..=3 {
        let key = store.export("k", Some(version), true).unwrap();
        match version {
            1 => other.import("k", key).unwrap(),
            _ => other.import_version("k", key).unwrap(),
        };
    }
    assert_eq!(outcome(other.unwrap_key("k", &wrapped, &CONTEXT), &dek), "ok");

    // A key that may not be used may be saved.
    store.set_key_enabled("k", false).unwrap();
    assert_eq!(store.export("k", Some(1), true).unwrap().expose(), key(1).expose());
}

#[test]
fn a_deleted_key_can_be_brought_back_until_it_is_purged() {
    let (_dir, store) = keystore();
    let dek = Secret::random().unwrap();
    store.create("k").unwrap();
    let wrapped = store.wrap_key("k", &dek, &CONTEXT).unwrap();
    let before = store.list().unwrap();
    let end = store.delete("k", 30).unwrap();
    assert!(seconds(end).abs_diff(now() + 30 * 24 * HOUR) < HOUR);
    assert_eq!(store.list().unwrap()[0].purged_at, Some(end));
    let denied: [(&str, Result<()>); 7] = [
        ("rotate", store.rotate("k").map(drop)),
        ("enable", store.set_key_enabled("k", true)),
        ("enable a version", store.set_enabled("k", 1, true)),
        ("set", store.set_rules("k", None, &ended()).map(drop)),
        ("import", store.import_version("k", key(1)).map(drop)),
        ("export", store.export("k", None, true).map(drop)),
        ("delete", store.delete("k", 1).map(drop)),
    ];
    for (what, answer) in denied {
        assert!(matches!(answer, Err(Error::KeyDisabled(_))), "{what}: {answer:?}");
    }
    assert!(matches!(store.create("k"), Err(Error::KeyExists { .. })));
    store.undelete("k").unwrap();
    assert_eq!(store.list().unwrap(), before);
    assert_eq!(outcome(store.unwrap_key("k", &wrapped, &CONTEXT), &dek), "ok");

    // The end of its time has come.
    store.create("other").unwrap();
    store.delete("k", 1).unwrap();
    let over = |store: &mut Store| {
        store.find_mut("k").unwrap().purged_at = Some(now());
        Ok::<_, ProviderError>(())
    };
    store.update(Deadline::NEVER, over).unwrap();
    let secret = |text: &[u8]| text.windows(3).any(|part| part == b"\"k\"");
    assert!(secret(&fs::read(store.path()).unwrap()), "still in the file");
    assert_eq!(outcome(store.unwrap_key("k", &wrapped, &CONTEXT), &dek), "not here");
    assert_eq!(store.list().unwrap().len(), 1);
    assert!(matches!(store.undelete("k"), Err(Error::NoKey(_))));
    store.rotate("other").unwrap();
    assert!(!secret(&fs::read(store.path()).unwrap()), "gone with the next write");
    store.create("k").unwrap();
    assert_eq!(outcome(store.unwrap_key("k", &wrapped, &CONTEXT), &dek), "wrong key");

    store.delete("k", 1).unwrap();
    store.purge("k", true).unwrap();
    store.purge("other", true).unwrap();
    assert_eq!(store.list().unwrap(), []);
}

/// A default key that is refused is not replaced by a new one behind its owner's back.
#[test]
fn the_default_key_is_made_anew_only_when_it_is_gone() {
    let (_dir, store) = keystore();
    let dek = Secret::random().unwrap();
    store.wrap_key(DEFAULT_KEY, &dek, &CONTEXT).unwrap();
    store.delete(DEFAULT_KEY, 1).unwrap();
    assert!(words(store.wrap_key(DEFAULT_KEY, &dek, &CONTEXT)).starts_with("denied: "));
    store.purge(DEFAULT_KEY, true).unwrap();
    assert_eq!(store.wrap_key(DEFAULT_KEY, &dek, &CONTEXT).unwrap().key_version, "1");
}
