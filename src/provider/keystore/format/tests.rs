//! The text: reads back as it was written, or not at all.

use super::super::info::Operation;
use super::super::material::Material;
use super::super::passphrase::tests::{PASSPHRASE, unlocked};
use super::super::store::StoredVersion;
use super::*;
use crate::secret::{BASE64_LEN, KEY_LEN, Secret};

const PATH: &str = "/home/keystore.json";

/// As the first format's software wrote it; its seal is from `sha256sum`.
const FIRST: &str = include_str!("first.json");

/// [`protected`] as `second.py` makes it by the words of this module alone: argon2-cffi for
/// Argon2id; Python's `cryptography` for HKDF and AES-GCM, and for XAES by its specification.
const SECOND: &str = include_str!("second.json");

/// Two keys of two versions, the second of which is disabled.
pub(in super::super) fn sample() -> Store {
    let version = |version| StoredVersion {
        enabled: version == 1,
        ..StoredVersion::new(
            version,
            Material::Clear(Secret::from_slice(&[version as u8; KEY_LEN]).unwrap()),
            1_700_000_000,
        )
    };
    let key = |name: &str| StoredKey {
        name: name.to_owned(),
        created: 1_700_000_000,
        enabled: true,
        operations: Operation::all(),
        purged_at: None,
        versions: vec![version(1), version(2)],
    };
    Store { keys: vec![key("default"), key("other")], unlocked: None }
}

/// The same with every rule that a key can have.
fn ruled() -> Store {
    let mut store = sample();
    let key = &mut store.keys[1];
    key.enabled = false;
    key.operations.remove(&Operation::Wrap);
    key.purged_at = Some(1_800_000_000);
    key.versions[0].not_before = Some(1_600_000_000);
    key.versions[0].not_after = Some(1_900_000_000);
    store
}

/// The same under a passphrase.
fn protected() -> Store {
    ruled().sealed_under(Some(unlocked())).unwrap()
}

fn read(text: &[u8], unlocked: Option<Arc<Unlocked>>) -> Result<Store, ProviderError> {
    let path = Path::new(PATH);
    decode(path, text)?.verify(path, text, unlocked)
}

fn is_damaged<T>(result: Result<T, ProviderError>) -> bool {
    matches!(result, Err(ProviderError::Damaged(text)) if text.text().contains(PATH))
}

fn secrets(store: &Store) -> Vec<[u8; KEY_LEN]> {
    let of = |key: &StoredKey| {
        let open = |version| *store.open(&key.name, version).unwrap().expose();
        key.versions.iter().map(open).collect::<Vec<_>>()
    };
    store.keys.iter().flat_map(of).collect()
}

#[test]
fn text_is_json_and_reads_back() {
    for (what, store, format, key_len) in [
        ("the first format", sample(), 1, BASE64_LEN),
        ("rules", ruled(), 2, BASE64_LEN),
        ("a passphrase", protected(), 2, 96),
        ("a passphrase and no rules", sample().sealed_under(Some(unlocked())).unwrap(), 2, 96),
    ] {
        let text = encode(&store).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["format"], format, "{what}");
        let key = json["keys"][1]["versions"][0]["key"].as_str().unwrap();
        assert_eq!(key.len(), key_len, "{what}");
        assert_eq!(json["sha256"].as_str().unwrap().len(), 2 * DIGEST_LEN, "{what}");
        assert_eq!(json.get("hmac_sha256").is_some(), store.unlocked.is_some(), "{what}");
        let again = read(&text, store.unlocked.clone()).unwrap();
        assert_eq!(secrets(&again), secrets(&sample()), "{what}");
        assert_eq!(encode(&again).unwrap(), text, "{what}");
        let size = text.capacity() - text.len();
        let unused = if store.unlocked.is_some() { 0 } else { MAC_LEN };
        assert_eq!(size, "\n}".len() + unused, "{what}: the buffer did not grow");
    }
}

#[test]
fn the_first_format_is_read_and_written_as_ever() {
    let store = read(FIRST.as_bytes(), None).unwrap();
    assert_eq!(secrets(&store), secrets(&sample()));
    assert_eq!(*encode(&store).unwrap(), FIRST.as_bytes());
    assert_eq!(*encode(&sample()).unwrap(), FIRST.as_bytes());
}

#[test]
fn the_second_format_is_what_its_words_say() {
    let path = Path::new(PATH);
    let params = decode(path, SECOND.as_bytes()).unwrap().passphrase().cloned().unwrap();
    let unlocked = Arc::new(Unlocked::unlock(PASSPHRASE, &params).unwrap().unwrap());
    let store = read(SECOND.as_bytes(), Some(unlocked)).unwrap();
    assert_eq!(secrets(&store), secrets(&sample()));
    let info = |store: &Store| store.keys.iter().map(StoredKey::info).collect::<Vec<_>>();
    assert_eq!(info(&store), info(&ruled()));
    assert_eq!(*encode(&store).unwrap(), SECOND.as_bytes());
}

/// The result of each altered byte of `text`, with its seal unchanged.
fn alter_all(text: &[u8], unlocked: Option<Arc<Unlocked>>) {
    for at in 0..text.len() {
        assert!(is_damaged(read(&text[..at], unlocked.clone())), "cut to {at} bytes");
        for bit in 0..8 {
            let mut altered = text.to_vec();
            altered[at] ^= 1 << bit;
            assert!(is_damaged(read(&altered, unlocked.clone())), "byte {at}, bit {bit}");
        }
    }
    assert!(is_damaged(read(&[text, b"\n"].concat(), unlocked)), "a byte longer");
}

#[test]
fn every_altered_byte_and_every_length_is_damage() {
    alter_all(&encode(&sample()).unwrap(), None);
    alter_all(&encode(&protected()).unwrap(), Some(unlocked()));
}

/// An attacker can repair a file's seal, but not its MAC.
#[test]
fn no_byte_under_a_passphrase_can_be_altered_without_it() {
    let text = encode(&protected()).unwrap();
    let (body, _) = split_end(&text, SEAL_LEN).unwrap();
    let read_with = |text: &[u8], passphrase: &[u8]| {
        let found = decode(Path::new(PATH), text)?;
        // As the keystore does: a passphrase that does not fit ends it before the MAC.
        let params = found.passphrase().cloned();
        let unlocked = match params {
            Some(params) if params == unlocked().params => Some(unlocked()),
            Some(params) => Some(
                Unlocked::unlock(passphrase, &params)?
                    .map(Arc::new)
                    .ok_or(ProviderError::WrongKey("the passphrase does not fit".into()))?,
            ),
            None => None,
        };
        found.verify(Path::new(PATH), text, unlocked)
    };
    assert!(read_with(&text, PASSPHRASE).is_ok());
    for at in 0..body.len() {
        let mut altered = body.to_vec();
        altered[at] ^= 1;
        let seal = seal(&altered);
        altered.extend_from_slice(seal.as_bytes());
        let answer = read_with(&altered, PASSPHRASE);
        let refused = matches!(answer, Err(ProviderError::Damaged(_) | ProviderError::WrongKey(_)));
        assert!(refused, "byte {at}");
    }
}

/// Attacks without the passphrase.
#[test]
fn forgeries_are_refused() {
    let text = encode(&protected()).unwrap();
    let text = std::str::from_utf8(&text).unwrap();
    let resealed = |text: String| {
        let body = &text[..text.len() - SEAL_LEN];
        [body, &seal(body.as_bytes())].concat()
    };
    let replaced = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        resealed(text.replacen(from, to, 1))
    };
    let key = |at: usize| {
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        json["keys"][at]["versions"][0]["key"].as_str().unwrap().to_owned()
    };
    for (what, forgery) in [
        ("a disabled version enabled", replaced("\"enabled\": false", "\"enabled\": true")),
        ("a retired key made to wrap", replaced("\"unwrap\"", "\"wrap\"")),
        ("a longer life", replaced("1900000000", "1999999999")),
        ("a deletion put off", replaced("1800000000", "1999999999")),
        ("a key renamed", replaced("\"name\": \"other\"", "\"name\": \"payroll\"")),
        ("one key for another", replaced(&key(1), &key(0))),
    ] {
        let answer = read(forgery.as_bytes(), Some(unlocked())).map(drop);
        let Err(ProviderError::Damaged(words)) = answer else { panic!("{what}: {answer:?}") };
        assert!(words.text().contains("without its passphrase"), "{what}: {words}");
    }
    let mut own = protected();
    own.keys[0].versions.swap(0, 1);
    own.keys[0].versions[0].version = 1;
    own.keys[0].versions[1].version = 2;
    let version = &own.keys[0].versions[0];
    assert!(own.open("default", version).is_err(), "a key that was sealed as another version");
    assert!(own.open("other", &own.keys[0].versions[1]).is_err(), "as another key");
}

#[test]
fn a_passphrase_must_be_the_one_of_the_file() {
    let text = encode(&protected()).unwrap();
    let other = Unlocked::create(PASSPHRASE, super::super::passphrase::tests::CHEAP).unwrap();
    for (what, unlocked) in [("none", None), ("another salt", Some(Arc::new(other)))] {
        assert!(is_damaged(read(&text, unlocked)), "{what}");
    }
    assert!(is_damaged(read(&encode(&sample()).unwrap(), Some(unlocked()))), "none in the file");
}

#[test]
fn sealed_text_that_breaks_a_rule_is_damage() {
    type Change = fn(&mut Store);
    let rules: [(&str, Change); 9] = [
        ("two keys of one name", |store| store.keys[1].name = "default".into()),
        ("a name that is none", |store| store.keys[0].name = "../x".into()),
        ("no version", |store| store.keys[0].versions.clear()),
        ("version 0", |store| store.keys[0].versions[0].version = 0),
        ("versions out of order", |store| store.keys[0].versions.reverse()),
        ("no operation", |store| store.keys[0].operations.clear()),
        ("an empty window", |store| {
            store.keys[0].versions[0].not_before = Some(7);
            store.keys[0].versions[0].not_after = Some(7);
        }),
        ("a sealed key without a passphrase", |store| {
            store.keys[0].versions[0].key = Material::Sealed([7; 72]);
        }),
        ("a clear key under a passphrase", |store| store.unlocked = Some(unlocked())),
    ];
    for (what, change) in rules {
        let mut store = sample();
        change(&mut store);
        let text = encode(&store).unwrap();
        assert!(is_damaged(read(&text, store.unlocked.clone())), "{what}");
    }
    let text = String::from_utf8(encode(&sample()).unwrap().to_vec()).unwrap();
    let ruled = String::from_utf8(encode(&ruled()).unwrap().to_vec()).unwrap();
    let guarded = String::from_utf8(encode(&protected()).unwrap().to_vec()).unwrap();
    for (what, text, from, to) in [
        ("format 0", &text, "\"format\": 1", "\"format\": 0"),
        ("format 2 with nothing of it", &text, "\"format\": 1", "\"format\": 2"),
        ("format 1 with rules", &ruled, "\"format\": 2", "\"format\": 1"),
        ("a field of nobody's", &text, "\"version\"", "\"comment\": 1, \"version\""),
        ("another operation", &ruled, "\"unwrap\"", "\"sign\""),
        ("a key twice", &text, "\"keys\"", "\"keys\": [], \"keys\""),
        ("another derivation", &guarded, "argon2id", "argon2d"),
        ("too little memory", &guarded, "\"memory_kib\": 8192", "\"memory_kib\": 8191"),
        ("too much memory", &guarded, "\"memory_kib\": 8192", "\"memory_kib\": 1048577"),
        ("too much work", &guarded, "8192,\n    \"iterations\": 1", "1048576, \"iterations\": 5"),
        ("no iteration", &guarded, "\"iterations\": 1", "\"iterations\": 0"),
        ("too many iterations", &guarded, "\"iterations\": 1", "\"iterations\": 65"),
        ("no lane", &guarded, "\"lanes\": 1", "\"lanes\": 0"),
        ("too many lanes", &guarded, "\"lanes\": 1", "\"lanes\": 17"),
    ] {
        assert!(text.contains(from), "{what}");
        let altered = text.replacen(from, to, 1);
        let body = &altered[..altered.len() - SEAL_LEN];
        let altered = [body, &seal(body.as_bytes())].concat();
        assert!(is_damaged(decode(Path::new(PATH), altered.as_bytes())), "{what}");
    }
}

#[test]
fn a_later_format_is_told_apart() {
    let later = br#"{"format": 3, "vaults": {"seal": "blake3"}}"#;
    let Err(ProviderError::Damaged(text)) = decode(Path::new("k"), later) else {
        panic!("read a later format")
    };
    assert!(text.text().contains("newer version"), "{text}");
}
