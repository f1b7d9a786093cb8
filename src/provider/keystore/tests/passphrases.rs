//! A keystore under a passphrase: who gets in, and what becomes of the file.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A prompt that counts how often it is asked, and always answers `text`.
fn prompt(text: &'static str) -> (SecretSource, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let ask = move |what: &str| {
        assert_eq!(what, PASSPHRASE);
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(Zeroizing::new(text.to_owned()))
    };
    (SecretSource::Prompt(Arc::new(ask)), asked)
}

fn source(text: &'static str) -> SecretSource {
    prompt(text).0
}

/// The same directory, seen by a process that has `text`.
fn with(store: &Keystore, text: &'static str) -> Keystore {
    Keystore { cost: CHEAP, ..Keystore::at(&store.dir).passphrase(source(text)) }
}

fn without(store: &Keystore) -> Keystore {
    Keystore { cost: CHEAP, ..Keystore::at(&store.dir) }
}

fn is_wrong<T>(answer: &Result<T>) -> bool {
    matches!(answer, Err(Error::WrongKey(_)))
}

#[test]
fn a_passphrase_comes_changes_and_goes_and_keys_stay() {
    let (_dir, store) = keystore();
    let dek = Secret::random().unwrap();
    let wrapped = store.wrap_key(DEFAULT_KEY, &dek, &CONTEXT).unwrap();
    let secret = store.export(DEFAULT_KEY, None, true).unwrap();
    let text = KeyFormat::Pem.encode(&secret).unwrap();
    let base64 = std::str::from_utf8(&text).unwrap().lines().nth(1).unwrap();
    let has_key = || fs::read_to_string(store.path()).unwrap().contains(base64);
    assert!(has_key());

    store.set_passphrase(&source("one")).unwrap();
    assert!(!has_key());
    assert!(store.has_passphrase().unwrap() && without(&store).needs_passphrase().unwrap());
    assert!(matches!(store.set_passphrase(&source("two")), Err(Error::Usage(_))));
    let rows = |right: &'static str, wrong: &'static str| {
        let (right, wrong) = (with(&store, right), with(&store, wrong));
        assert!(!right.needs_passphrase().unwrap());
        assert_eq!(outcome(right.unwrap_key(DEFAULT_KEY, &wrapped, &CONTEXT), &dek), "ok");
        assert_eq!(outcome(wrong.unwrap_key(DEFAULT_KEY, &wrapped, &CONTEXT), &dek), "wrong key");
        let none = without(&store);
        assert_eq!(outcome(none.unwrap_key(DEFAULT_KEY, &wrapped, &CONTEXT), &dek), "not here");
        let before = fs::read(store.path()).unwrap();
        assert!(is_wrong(&wrong.create("k")) && is_wrong(&wrong.list()));
        assert!(is_wrong(&wrong.change_passphrase(&source("mine"))));
        assert!(is_wrong(&wrong.remove_passphrase()));
        assert!(matches!(none.create("k"), Err(Error::NoKey(_))));
        assert!(matches!(none.remove_passphrase(), Err(Error::NoKey(_))));
        assert_eq!(fs::read(store.path()).unwrap(), before);
    };
    rows("one", "two");
    with(&store, "one").change_passphrase(&source("two")).unwrap();
    rows("two", "one");
    // Salts are never used again, not even for the same passphrase.
    let salted = fs::read(store.path()).unwrap();
    with(&store, "two").change_passphrase(&source("two")).unwrap();
    assert_ne!(fs::read(store.path()).unwrap()[..200], salted[..200]);
    rows("two", "one");

    with(&store, "two").remove_passphrase().unwrap();
    assert!(has_key() && !store.has_passphrase().unwrap());
    let open = without(&store);
    assert_eq!(outcome(open.unwrap_key(DEFAULT_KEY, &wrapped, &CONTEXT), &dek), "ok");
    assert!(matches!(open.change_passphrase(&source("x")), Err(Error::Usage(_))));
    assert!(matches!(open.remove_passphrase(), Err(Error::Usage(_))));
}

#[test]
fn every_change_keeps_the_passphrase() {
    let (_dir, store) = keystore();
    let store = with(&store, "one");
    let (a, b) = (Secret::random().unwrap(), Secret::random().unwrap());
    let known = Secret::from_slice(a.expose()).unwrap();
    store.import("k", a).unwrap();
    store.import_version("k", b).unwrap();
    store.rotate("k").unwrap();
    store.create("other").unwrap();
    store.set_enabled("k", 1, false).unwrap();
    store.set_rules("k", None, &KeyRules::new().operations([Operation::Unwrap])).unwrap();
    store.delete("other", 7).unwrap();
    store.undelete("other").unwrap();
    store.purge("other", true).unwrap();
    assert!(store.has_passphrase().unwrap(), "a new keystore begins under it");
    assert!(matches!(store.import_version("k", known), Err(Error::Usage(_))), "the same again");
    let list = with(&store, "one").list().unwrap();
    assert_eq!(list, store.list().unwrap());
    assert_eq!((list.len(), list[0].versions.len()), (1, 3));
}

#[test]
fn a_passphrase_is_asked_for_once_and_again_when_it_has_changed() {
    let (_dir, first) = keystore();
    first.create("k").unwrap();
    first.set_passphrase(&source("one")).unwrap();
    let (ask, asked) = prompt("one");
    let store = Keystore { cost: CHEAP, ..Keystore::at(&first.dir).passphrase(ask) };
    let clone = store.clone();
    assert_eq!(store.waits_for(), WaitsFor::Person);
    assert_eq!(first.waits_for(), WaitsFor::Nothing);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let store = if n % 2 == 0 { &store } else { &clone };
            scope.spawn(move || {
                store.list().unwrap();
                store.rotate("k").unwrap();
                store.newest_of("k").unwrap();
            });
        }
    });
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(store.waits_for(), WaitsFor::Nothing);
    first.list().unwrap();
    first.change_passphrase(&source("one")).unwrap();
    assert_eq!(store.list().unwrap()[0].versions.len(), 5);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    clone.forget();
    assert_eq!(store.waits_for(), WaitsFor::Person);
    store.list().unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[test]
fn a_wrong_passphrase_is_asked_for_once_a_call_and_not_kept() {
    let (_dir, first) = keystore();
    first.create("k").unwrap();
    first.set_passphrase(&source("one")).unwrap();
    let (ask, asked) = prompt("two");
    let store = Keystore::at(&first.dir).passphrase(ask);
    for calls in 1..=2 {
        assert!(is_wrong(&store.rotate("k")));
        assert_eq!(asked.load(Ordering::SeqCst), calls);
    }
}

/// An attacker who can write the directory could plant a keystore whose keys he knows.
#[test]
fn a_keystore_put_in_place_is_refused() {
    let (_dir, mine) = keystore();
    mine.create("k").unwrap();
    mine.set_passphrase(&source("one")).unwrap();
    let put = |bytes: &[u8]| fs::write(mine.path(), bytes).unwrap();
    let (_other_dir, other) = keystore();
    other.create("k").unwrap();
    let dek = Secret::random().unwrap();
    let refused = |what: &str| {
        let store = with(&mine, "one");
        for answer in [
            store.wrap_key("k", &dek, &CONTEXT).map(drop),
            store.wrap_key(DEFAULT_KEY, &dek, &CONTEXT).map(drop),
            store.newest_of("k").map(drop),
        ] {
            assert_eq!(answer.map_err(|error| kind(&error)), Err("wrong key"), "{what}");
        }
        assert!(is_wrong(&store.create("new")), "{what}");
    };
    put(&fs::read(other.path()).unwrap());
    refused("one without a passphrase");
    other.set_passphrase(&source("two")).unwrap();
    put(&fs::read(other.path()).unwrap());
    refused("one under another passphrase");
    fs::remove_file(mine.path()).unwrap();
    let (_third_dir, third) = keystore();
    third.set_passphrase(&source("one")).unwrap();
    assert_eq!(third.list().unwrap(), [], "a passphrase before the first key");
}

#[test]
fn a_passphrase_that_cannot_be_had_changes_nothing() {
    let (dir, store) = keystore();
    let fails = SecretSource::Prompt(Arc::new(|_| Err(io::Error::other("no terminal"))));
    let missing = SecretSource::File(dir.path().join("missing"));
    for (what, source) in [("no answer", &fails), ("no file", &missing), ("empty", &source(""))] {
        let given = Keystore::at(&store.dir).passphrase(source.clone());
        let refused = |answer: Result<()>| match answer {
            Err(Error::ProviderUnreachable(_) | Error::NoKey(_) | Error::ProviderDamaged(_)) => {}
            answer => panic!("{what}: {answer:?}"),
        };
        refused(given.create("k").map(drop));
        refused(store.set_passphrase(source));
        assert!(is_empty(dir.path()), "{what}");
    }
    store.create("k").unwrap();
    let before = fs::read(store.path()).unwrap();
    assert!(store.set_passphrase(&fails).is_err());
    assert_eq!(fs::read(store.path()).unwrap(), before);
}

#[test]
fn the_environment_says_where_the_passphrase_is() {
    let os = |text: &str| Some(OsString::from(text));
    for (file, descriptor, expected) in [
        (None, None, "none"),
        (os("/run/pass"), None, "file /run/pass"),
        (None, os("3"), "descriptor 3"),
        (None, os("three"), "usage"),
        (None, os(""), "usage"),
        (os("/run/pass"), os("3"), "usage"),
    ] {
        let found = match super::super::source(file, descriptor) {
            Ok(source) => source.map_or_else(|| "none".into(), |source| source.to_string()),
            Err(Error::Usage(_)) => "usage".into(),
            Err(error) => panic!("{error:?}"),
        };
        assert_eq!(found, expected);
    }
}
