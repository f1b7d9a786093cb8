//! The identity of a database: its file id, and the ids that are pinned.
//!
//! ```text
//! file id = the first 16 bytes of
//!           HKDF-SHA-256(key = DEK of key version 1, no salt, "sqlite-tde v1 file id")
//! ```
//! So the id stands for the DEK. A key provider whose wrapping takes a public key alone, such as
//! `age`, `gpg` or RSA-OAEP, unwraps every key that was wrapped for it: an attacker can make a
//! database with a DEK of his own. He cannot give it the file id of another database, so a pin of
//! that id detects the exchange.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::split;
use crate::error::{Error, FileError, Result};
use crate::secret::Secret;
use crate::suite::hkdf;

const FILE_ID: &[u8] = b"sqlite-tde v1 file id";

/// The expected form of a pinned path.
pub(crate) const FULL_PATH: &str = "expected a full path, without `~`";
/// The expected form of a pinned protector.
pub(crate) const PROTECTOR: &str = "expected PROVIDER:KEY or PROVIDER:*";

/// Bytes of a file id.
const LEN: usize = 16;

/// Which database a file is: 16 bytes that are derived from its encryption key and reveal nothing
/// of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub [u8; LEN]);

impl FileId {
    /// The id of the database whose first encryption key is `dek`.
    pub(crate) fn of(dek: &Secret) -> Self {
        let mut id = [0; LEN];
        id.copy_from_slice(&hkdf::derive(dek, &[], &[FILE_ID]).expose()[..LEN]);
        Self(id)
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileId({self})")
    }
}

impl FromStr for FileId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut id = [0; LEN];
        base16ct::mixed::decode(text, &mut id)
            .ok()
            .filter(|decoded| decoded.len() == LEN)
            .ok_or_else(|| {
                let shown = text.escape_debug();
                Error::Usage(format!("{shown} is no file id: expected 32 hexadecimal digits"))
            })?;
        Ok(Self(id))
    }
}

/// The pinned databases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pins {
    /// The one database that is expected at a path.
    pub paths: BTreeMap<PathBuf, FileId>,
    /// The databases that a protector may open: `PROVIDER:KEY`, or `PROVIDER:*` for every key of a
    /// provider.
    pub protectors: BTreeMap<String, Vec<FileId>>,
}

impl Pins {
    /// Refuses pins without effect; `is_set_up` knows the configured providers.
    pub(crate) fn check(&self, is_set_up: impl Fn(&str) -> bool) -> Result<()> {
        for path in self.paths.keys() {
            if !path.is_absolute() {
                return Err(wrong(format!("pins.paths.{}", path.display()), FULL_PATH));
            }
        }
        for name in self.protectors.keys() {
            let fault = match name.split_once(':') {
                Some((provider, key)) if !provider.is_empty() && !key.is_empty() => {
                    (!is_set_up(provider)).then_some("no such provider is set up")
                }
                _ => Some(PROTECTOR),
            };
            if let Some(fault) = fault {
                return Err(wrong(format!("pins.protectors.{name}"), fault));
            }
        }
        Ok(())
    }

    /// The database that is expected at `path`, a full one. SQLite before 3.39 resolves no link to
    /// a directory in it, and a configuration may name links, so both are resolved here.
    pub(crate) fn at(&self, path: &Path) -> Option<FileId> {
        if self.paths.is_empty() {
            return None;
        }
        if let Some(id) = self.paths.get(path) {
            return Some(*id);
        }
        let path = resolved(path, LINKS);
        self.paths.iter().find(|(pin, _)| resolved(pin, LINKS) == path).map(|found| *found.1)
    }

    /// The databases that the key `key_id` of `provider` is for, where the database `id` is none
    /// of them.
    pub(crate) fn others(&self, provider: &str, key_id: &str, id: FileId) -> Option<&[FileId]> {
        let is_for = |name: &str| {
            let (pinned, key) = split(name);
            provider == pinned && (key == "*" || key_id == key)
        };
        let mut pins = self.protectors.iter().filter(|(name, _)| is_for(name));
        pins.find(|(_, expected)| !expected.contains(&id)).map(|(_, expected)| &**expected)
    }
}

/// Links that are followed one after the other, as many as Linux does.
const LINKS: u32 = 40;

/// `path` without links, even if the file does not exist yet.
fn resolved(path: &Path, links: u32) -> PathBuf {
    if let Ok(path) = std::fs::canonicalize(path) {
        return path;
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.into() };
    match std::fs::read_link(path) {
        Ok(target) if links > 0 => resolved(&parent.join(target), links - 1),
        _ => resolved(parent, links).join(name),
    }
}

/// The error: a pin of the configuration is wrong.
fn wrong(pin: String, fault: &str) -> Error {
    Error::Config(FileError::from(fault.to_owned()).setting(pin))
}

/// The error: the file is the database `found`, and not one of those expected.
pub(crate) fn wrong_file(found: &str, expected: &[FileId]) -> Error {
    let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
    Error::WrongFile { found: found.to_owned(), expected: expected.join(" or ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As SQLite before 3.39 passes a path: with the links to directories in it.
    #[cfg(unix)]
    #[test]
    fn a_pin_holds_through_links_on_either_side() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(at("real/inner")).unwrap();
        symlink(at("real"), at("link")).unwrap();
        symlink("link", at("second")).unwrap();
        symlink("../real/inner/a.db", at("real/file.db")).unwrap();
        symlink("loop.db", at("loop.db")).unwrap();
        let names = [
            "real/inner/a.db",
            "link/inner/a.db",
            "second/inner/a.db",
            "second/inner/../inner/a.db",
            "real/file.db",
            "link/file.db",
        ];
        let id = FileId([7; LEN]);
        for exists in [false, true] {
            if exists {
                std::fs::write(at("real/inner/a.db"), "").unwrap();
            }
            for pin in names {
                let paths = [(at(pin), id)].into();
                let pins = Pins { paths, ..Pins::default() };
                for path in names {
                    assert_eq!(pins.at(&at(path)), Some(id), "{pin}, {path}, {exists}");
                }
                for other in ["real/inner/b.db", "link/a.db", "loop.db", "none/a.db"] {
                    assert_eq!(pins.at(&at(other)), None, "{pin}, {other}, {exists}");
                }
            }
        }
    }

    #[test]
    fn an_id_is_32_digits() {
        let id = FileId([0xa5; LEN]);
        assert_eq!(id.to_string(), "a5".repeat(16));
        for (text, good) in [
            ("a5".repeat(16), true),
            ("A5".repeat(16), true),
            ("a5".repeat(15), false),
            ("a5".repeat(17), false),
            ("g5".repeat(16), false),
            (String::new(), false),
        ] {
            assert_eq!(text.parse::<FileId>().ok(), good.then_some(id), "{text}");
        }
    }

    /// HMAC-SHA-256 by hand, as RFC 5869 puts it together.
    #[test]
    fn an_id_follows_from_the_key_alone() {
        use hmac::{Hmac, KeyInit, Mac};
        let hmac = |key: &[u8], text: &[u8]| -> Vec<u8> {
            let mac = Hmac::<sha2::Sha256>::new_from_slice(key).unwrap();
            mac.chain_update(text).finalize().into_bytes().to_vec()
        };
        let dek = Secret::from_slice(&[7; 32]).unwrap();
        let prk = hmac(&[0; 32], dek.expose());
        let okm = hmac(&prk, &[FILE_ID, &[1]].concat());
        assert_eq!(FileId::of(&dek).0, okm[..LEN]);
        assert_ne!(FileId::of(&Secret::from_slice(&[8; 32]).unwrap()), FileId::of(&dek));
    }
}
