//! The text of `keystore.json`.
//!
//! JSON that starts like this and ends with a seal of fixed length:
//!
//! ```text
//! 0                                                       len - SEAL_LEN              len
//! +-------------------------------------------------------+---------------------------+
//! | {                                                     | ,                         |
//! |   "format": 1,                                        |   "sha256": "<64 hex>"    |
//! |   "keys": [ key, .. ]                                 | }                         |
//! +-------------------------------------------------------+---------------------------+
//! key     = { "name", "created", "versions": [ version, .. ] }
//! version = { "version", "created", "enabled", "key" }
//! ```
//!
//! `name` is 1 to 64 of `[A-Za-z0-9._-]` and unique; `version` counts 1, 2, 3 ..; `created` is in
//! seconds since 1970 (UTC); `key` is 32 bytes in base64. The seal holds the SHA-256 of every byte
//! before it, so a change of any byte is noticed. It is no MAC: who can write the file owns its
//! keys.
//!
//! Key text is only ever in buffers that are wiped and never grow, since growing leaves a copy.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use base64ct::{Base64, Encoding};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::provider::ProviderError;
use crate::secret::{KEY_LEN, Secret};

const FORMAT: u32 = 1;
const NAME_MAX_LEN: usize = 64;
const KEY_TEXT_LEN: usize = KEY_LEN.div_ceil(3) * 4;
const DIGEST_LEN: usize = 32;
const SEAL_START: &str = ",\n  \"sha256\": \"";
const SEAL_END: &str = "\"\n}\n";
const SEAL_LEN: usize = SEAL_START.len() + 2 * DIGEST_LEN + SEAL_END.len();

/// What the file holds.
#[derive(Serialize, Deserialize)]
pub(super) struct Store {
    format: u32,
    pub(super) keys: Vec<StoredKey>,
}

/// A key: its versions in ascending order, from 1, without a gap.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredKey {
    pub(super) name: String,
    pub(super) created: u64,
    pub(super) versions: Vec<StoredVersion>,
}

/// One version of a key.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredVersion {
    pub(super) version: u32,
    pub(super) created: u64,
    pub(super) enabled: bool,
    #[serde(with = "key_text")]
    pub(super) key: Secret,
}

impl Default for Store {
    fn default() -> Self {
        Self { format: FORMAT, keys: Vec::new() }
    }
}

impl Store {
    pub(super) fn find(&self, name: &str) -> Option<&StoredKey> {
        self.keys.iter().find(|key| key.name == name)
    }

    pub(super) fn find_mut(&mut self, name: &str) -> Option<&mut StoredKey> {
        self.keys.iter_mut().find(|key| key.name == name)
    }

    /// Whether it keeps the rules of the format.
    fn is_sound(&self) -> bool {
        let names: BTreeSet<&str> = self.keys.iter().map(|key| key.name.as_str()).collect();
        self.format == FORMAT
            && names.len() == self.keys.len()
            && self.keys.iter().all(|key| is_name(&key.name) && key.is_sound())
    }
}

impl StoredKey {
    pub(super) fn newest_enabled(&self) -> Option<&StoredVersion> {
        self.versions.iter().rev().find(|version| version.enabled)
    }

    fn is_sound(&self) -> bool {
        !self.versions.is_empty() && (1..).zip(&self.versions).all(|(n, v)| v.version == n)
    }
}

/// 1 to 64 of `[A-Za-z0-9._-]`.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_MAX_LEN).contains(&name.len()) && name.bytes().all(allowed)
}

/// A key as base64, straight between the file's text and a [`Secret`].
mod key_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(key: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Zeroizing::new([0; KEY_TEXT_LEN]);
        let text = Base64::encode(key.expose(), text.as_mut_slice()).map_err(S::Error::custom)?;
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Secret, D::Error> {
        // Borrowed, not copied: base64 has no escapes that serde_json would have to undo elsewhere.
        let text = <&str>::deserialize(deserializer)?;
        Secret::fill_with(|key| match Base64::decode(text, key) {
            Ok(bytes) if bytes.len() == KEY_LEN => Ok(()),
            _ => Err(D::Error::custom("a key is not 32 bytes of base64")),
        })
    }
}

/// The whole text of the file.
pub(super) fn encode(store: &Store) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let mut size = Size(0);
    serde_json::to_writer_pretty(&mut size, store)?;
    let mut text = Zeroizing::new(Vec::with_capacity(size.0 + SEAL_LEN));
    serde_json::to_writer_pretty(&mut *text, store)?;
    // The seal brings its own end of the object.
    let body_len = text.len().saturating_sub("\n}".len());
    text.truncate(body_len);
    let seal = seal(&text);
    text.extend_from_slice(seal.as_bytes());
    Ok(text)
}

/// A writer that only counts, so that [`encode`] allocates once.
struct Size(usize);

impl Write for Size {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn seal(body: &[u8]) -> String {
    let mut seal = String::with_capacity(SEAL_LEN);
    seal.push_str(SEAL_START);
    for byte in Sha256::digest(body) {
        seal.push_str(&format!("{byte:02x}"));
    }
    seal.push_str(SEAL_END);
    seal
}

/// The keys in `text`, which was read from `path`. What serde says of an error stays unsaid: it
/// may quote the text.
pub(super) fn decode(path: &Path, text: &[u8]) -> Result<Store, ProviderError> {
    #[derive(Deserialize)]
    struct Probe {
        format: u32,
    }
    // Before the seal, because a later format may have another.
    let probe: Probe = serde_json::from_slice(text).map_err(|_| damaged(path))?;
    if probe.format > FORMAT {
        return Err(too_new(path, probe.format));
    }
    if !is_sealed(text) {
        return Err(damaged(path));
    }
    let store: Store = serde_json::from_slice(text).map_err(|_| damaged(path))?;
    if store.is_sound() { Ok(store) } else { Err(damaged(path)) }
}

fn is_sealed(text: &[u8]) -> bool {
    let parts = text.len().checked_sub(SEAL_LEN).map(|body_len| text.split_at(body_len));
    parts.is_some_and(|(body, found)| found == seal(body).as_bytes())
}

pub(super) fn damaged(path: &Path) -> ProviderError {
    ProviderError::Damaged(format!(
        "keystore {} was altered or cut short: put back its backup, and keep this file until then",
        path.display()
    ))
}

fn too_new(path: &Path, format: u32) -> ProviderError {
    ProviderError::Damaged(format!(
        "keystore {} has format {format}, from a newer version of sqlite-tde: use that \
         one, as this one reads format {FORMAT}",
        path.display()
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two keys of two versions, the second of which is disabled.
    pub(in super::super) fn sample() -> Store {
        let version = |version| StoredVersion {
            version,
            created: 1_700_000_000,
            enabled: version == 1,
            key: Secret::from_slice(&[version as u8; KEY_LEN]).unwrap(),
        };
        let key = |name: &str| StoredKey {
            name: name.to_owned(),
            created: 1_700_000_000,
            versions: vec![version(1), version(2)],
        };
        Store { format: FORMAT, keys: vec![key("default"), key("other")] }
    }

    fn is_damaged<T>(result: Result<T, ProviderError>) -> bool {
        matches!(result, Err(ProviderError::Damaged(text)) if text.contains("/home/keystore.json"))
    }

    #[test]
    fn text_is_json_and_reads_back() {
        let text = encode(&sample()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["format"], 1);
        assert_eq!(json["keys"][1]["versions"][0]["key"].as_str().unwrap().len(), KEY_TEXT_LEN);
        assert_eq!(json["sha256"].as_str().unwrap().len(), 2 * DIGEST_LEN);
        let again = encode(&decode(Path::new("/home/keystore.json"), &text).unwrap()).unwrap();
        assert_eq!(again, text);
        assert_eq!(text.capacity(), text.len() + "\n}".len(), "the buffer did not grow");
    }

    #[test]
    fn every_altered_byte_and_every_length_is_damage() {
        let path = Path::new("/home/keystore.json");
        let text = encode(&sample()).unwrap();
        for at in 0..text.len() {
            assert!(is_damaged(decode(path, &text[..at])), "cut to {at} bytes");
            for bit in 0..8 {
                let mut altered = text.to_vec();
                altered[at] ^= 1 << bit;
                assert!(is_damaged(decode(path, &altered)), "byte {at}, bit {bit}");
            }
        }
        assert!(is_damaged(decode(path, &[&text[..], b"\n"].concat())), "a byte longer");
    }

    #[test]
    fn sealed_text_that_breaks_a_rule_is_damage() {
        type Change = fn(&mut Store);
        let rules: [(&str, Change); 6] = [
            ("another format", |store| store.format = 0),
            ("two keys of one name", |store| store.keys[1].name = "default".into()),
            ("a name that is none", |store| store.keys[0].name = "../x".into()),
            ("no version", |store| store.keys[0].versions.clear()),
            ("version 0", |store| store.keys[0].versions[0].version = 0),
            ("versions out of order", |store| store.keys[0].versions.reverse()),
        ];
        for (what, change) in rules {
            let mut store = sample();
            change(&mut store);
            let text = encode(&store).unwrap();
            assert!(is_damaged(decode(Path::new("/home/keystore.json"), &text)), "{what}");
        }
    }

    #[test]
    fn a_later_format_is_told_apart() {
        let later = br#"{"format": 2, "vaults": {"seal": "blake3"}}"#;
        let Err(ProviderError::Damaged(text)) = decode(Path::new("k"), later) else {
            panic!("read a later format")
        };
        assert!(text.contains("newer version"), "{text}");
    }
}
