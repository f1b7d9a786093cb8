//! The provider's answers, as tables; the file and the blob have their own.

use std::fs;
use std::path::Path;

use super::passphrase::tests::CHEAP;
use super::*;
use crate::process::time::system_time;
use crate::provider::Context;
use crate::provider::conformance::Direct;

mod passphrases;
mod rules;

const CONTEXT: Context = Context { file_id: [7; 16], dek_version: 1 };

fn keystore() -> (tempfile::TempDir, Keystore) {
    let dir = tempfile::tempdir().unwrap();
    let store = Keystore { cost: CHEAP, ..Keystore::at(dir.path().join("home")) };
    (dir, store)
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

/// "ok" for the right key, else the kind of error; a wrong key given out ends the test.
fn outcome(answer: Result<Secret, ProviderError>, dek: &Secret) -> &'static str {
    match answer {
        Ok(key) if key.expose() == dek.expose() => "ok",
        Ok(_) => panic!("another key was given out"),
        Err(error) => kind(&error),
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn unwraps_only_what_it_wrapped_under_a_version_that_is_allowed() {
    let (_dir, store) = keystore();
    let dek = Secret::random().unwrap();
    let first = store.wrap_key(DEFAULT_KEY, &dek, &CONTEXT).unwrap();
    store.rotate(DEFAULT_KEY).unwrap();
    let second = store.wrap_key(DEFAULT_KEY, &dek, &CONTEXT).unwrap();
    store.create("other").unwrap();
    store.rotate(DEFAULT_KEY).unwrap();
    store.set_enabled(DEFAULT_KEY, 3, false).unwrap();
    assert_eq!((&*first.key_version, &*second.key_version), ("1", "2"));

    let named = |version: &str| Wrapped { key_version: version.into(), ..first.clone() };
    let mut flipped = first.clone();
    flipped.blob[30] ^= 1;
    let foreign = Wrapped { mechanism: "aes-kw".into(), ..first.clone() };
    for (what, key, wrapped, expected) in [
        ("first version", DEFAULT_KEY, first.clone(), "ok"),
        ("second version", DEFAULT_KEY, second, "ok"),
        ("flipped bit", DEFAULT_KEY, flipped, "wrong key"),
        ("relabelled as another version", DEFAULT_KEY, named("2"), "wrong key"),
        ("relabelled as another key", "other", first.clone(), "wrong key"),
        ("disabled version", DEFAULT_KEY, named("3"), "denied"),
        ("version that never was", DEFAULT_KEY, named("4"), "not here"),
        ("version spelled otherwise", DEFAULT_KEY, named("01"), "not here"),
        ("unknown key", "absent", first.clone(), "not here"),
        ("another mechanism", DEFAULT_KEY, foreign, "damaged"),
    ] {
        assert_eq!(outcome(store.unwrap_key(key, &wrapped, &CONTEXT), &dek), expected, "{what}");
    }
    let elsewhere = Context { file_id: [8; 16], ..CONTEXT };
    let answer = store.unwrap_key(DEFAULT_KEY, &first, &elsewhere);
    assert_eq!(outcome(answer, &dek), "wrong key", "blob moved to another database");
}

#[test]
fn a_disabled_version_is_denied_until_it_is_enabled() {
    let (_dir, store) = keystore();
    let dek = Secret::random().unwrap();
    let wrapped = store.wrap_key(DEFAULT_KEY, &dek, &CONTEXT).unwrap();
    for (enabled, expected) in [(false, "denied"), (true, "ok")] {
        store.set_enabled(DEFAULT_KEY, 1, enabled).unwrap();
        let unwrapped = outcome(store.unwrap_key(DEFAULT_KEY, &wrapped, &CONTEXT), &dek);
        let newest = store.newest_of(DEFAULT_KEY).map_or_else(|e| kind(&e), |_| "ok");
        let again = store.wrap_key(DEFAULT_KEY, &dek, &CONTEXT).map_or_else(|e| kind(&e), |_| "ok");
        assert_eq!([unwrapped, newest, again], [expected; 3], "enabled: {enabled}");
    }
    assert!(matches!(store.set_enabled(DEFAULT_KEY, 2, true), Err(Error::NoKey(_))));
}

#[test]
fn reading_and_failing_create_nothing() {
    let (dir, store) = keystore();
    let dek = Secret::random().unwrap();
    let wrapped =
        Wrapped { key_version: "1".into(), mechanism: MECHANISM.into(), blob: vec![0; 72] };
    assert_eq!(store.list().unwrap(), []);
    let answer = store.unwrap_key(DEFAULT_KEY, &wrapped, &CONTEXT);
    assert_eq!(outcome(answer, &dek), "not here");
    assert_eq!(kind(&store.newest_of(DEFAULT_KEY).unwrap_err()), "not here");
    assert_eq!(kind(&store.wrap_key("named", &dek, &CONTEXT).unwrap_err()), "not here");
    assert!(matches!(store.rotate(DEFAULT_KEY), Err(Error::NoKey(_))));
    assert!(matches!(store.set_enabled(DEFAULT_KEY, 1, true), Err(Error::NoKey(_))));
    for name in ["", "a b", "a/b", "é", "a\n", &"x".repeat(65)] {
        assert!(matches!(store.create(name), Err(Error::Usage(_))), "{name:?}");
    }
    assert!(is_empty(dir.path()));
}

#[test]
fn keys_keep_their_order_names_and_versions() {
    let (_dir, store) = keystore();
    let names = ["zeta", "alpha", "A.b_c-9", &"x".repeat(64)];
    for name in names {
        assert_eq!(store.create(name).unwrap().name, name);
        assert!(matches!(store.create(name), Err(Error::KeyExists { .. })), "{name}");
    }
    let rotated = store.rotate("alpha").unwrap();
    let list = store.list().unwrap();
    assert_eq!(list.iter().map(|key| &*key.name).collect::<Vec<_>>(), names);
    assert_eq!(list[1], rotated);
    assert_eq!(rotated.versions.iter().map(|v| v.version).collect::<Vec<_>>(), [1, 2]);
    assert!(
        rotated.created > system_time(1_700_000_000) && rotated.versions.iter().all(|v| v.enabled)
    );
    assert_eq!(store.newest_of("alpha").unwrap(), "2");
}

#[test]
fn eight_creators_at_once_end_with_one_key_each() {
    let (_dir, store) = keystore();
    let dek = Secret::random().unwrap();
    let wrapped: Vec<Wrapped> = std::thread::scope(|scope| {
        let work = |n: u32| {
            let (store, dek) = (&store, &dek);
            move || {
                store.create(&format!("key-{n}")).unwrap();
                store.wrap_key(DEFAULT_KEY, dek, &CONTEXT).unwrap()
            }
        };
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(work(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let list = store.list().unwrap();
    assert_eq!(list.len(), 9);
    assert!(list.iter().all(|key| key.versions.len() == 1));
    for (n, wrapped) in wrapped.iter().enumerate() {
        let answer = store.unwrap_key(DEFAULT_KEY, wrapped, &CONTEXT);
        assert_eq!(outcome(answer, &dek), "ok", "thread {n}");
    }
}

#[test]
fn the_variable_wins_unless_it_is_empty() {
    let set = Keystore::home(Some("/somewhere".into())).unwrap();
    assert_eq!(set.path(), Path::new("/somewhere/keystore.json"));
    for unset in [None, Some(OsString::new())] {
        let path = Keystore::home(unset).unwrap().path();
        assert!(path.is_absolute() && path.ends_with("sqlite-tde/keystore.json"));
    }
}
