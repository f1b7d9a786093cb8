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
//! before it, so a change of any byte is noticed. It is no MAC: without a passphrase a writer of
//! the file owns its keys.
//!
//! Format 2 has additional fields. It is written only if one of them is set, so that software that
//! knows only format 1 refuses rules that it would not obey:
//!
//! ```text
//! +-------------------------------------+---------------------------------+-------------+
//! | {                                   | ,                               | seal,       |
//! |   "format": 2,                      |   "hmac_sha256": "<64 hex>"     | as above    |
//! |   "passphrase": passphrase,         |                                 |             |
//! |   "keys": [ key, .. ]               |                                 |             |
//! +-------------------------------------+---------------------------------+-------------+
//! passphrase = { "kdf": "argon2id", "memory_kib", "iterations", "lanes", "salt", "check" }
//! key        = { "name", "created", "enabled", "operations", "purged_at", "versions" }
//! version    = { "version", "created", "enabled", "not_before", "not_after", "key" }
//! ```
//!
//! All of that may be absent: a key is enabled, may `"wrap"` and `"unwrap"`, is not scheduled for
//! deletion, its versions have no limits in time, and there is no passphrase. With one, the MAC
//! covers every byte before it, and each `key` is 72 bytes in base64: the key sealed with
//! XAES-256-GCM as in `wrap.rs`, bound to a label, its name's length and name, and its version. See
//! `passphrase.rs` for the derivation.
//!
//! Key text is only ever in buffers that are wiped and never grow, since growing leaves a copy.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::passphrase::{Params, Unlocked};
use super::store::{Store, StoredKey};
use crate::provider::ProviderError;

/// The first format, and the newest.
const FORMAT: u32 = 1;
const FORMAT_WITH_RULES: u32 = 2;

const DIGEST_LEN: usize = 32;
const SEAL_START: &str = ",\n  \"sha256\": \"";
const SEAL_END: &str = "\"\n}\n";
const SEAL_LEN: usize = SEAL_START.len() + 2 * DIGEST_LEN + SEAL_END.len();
const MAC_START: &str = ",\n  \"hmac_sha256\": \"";
const MAC_END: &str = "\"";
const MAC_LEN: usize = MAC_START.len() + 2 * DIGEST_LEN + MAC_END.len();

#[derive(Serialize)]
struct Body<'s> {
    format: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    passphrase: Option<&'s Params>,
    keys: &'s [StoredKey],
}

/// Text whose seal is intact; its keys must not be used before [`Unverified::verify`].
#[derive(Deserialize)]
pub(super) struct Unverified {
    format: u32,
    passphrase: Option<Params>,
    keys: Vec<StoredKey>,
}

fn format_of(keys: &[StoredKey], has_passphrase: bool) -> u32 {
    if has_passphrase || keys.iter().any(StoredKey::has_rules) { FORMAT_WITH_RULES } else { FORMAT }
}

/// The whole text of the file.
pub(super) fn encode(store: &Store) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let body = Body {
        format: format_of(&store.keys, store.unlocked.is_some()),
        passphrase: store.unlocked.as_ref().map(|unlocked| &unlocked.params),
        keys: &store.keys,
    };
    let mut size = Size(0);
    serde_json::to_writer_pretty(&mut size, &body)?;
    let mut text = Zeroizing::new(Vec::with_capacity(size.0 + MAC_LEN + SEAL_LEN));
    serde_json::to_writer_pretty(&mut *text, &body)?;
    // The seal brings its own end of the object.
    let body_len = text.len().saturating_sub("\n}".len());
    text.truncate(body_len);
    if let Some(unlocked) = &store.unlocked {
        let mac = mac(unlocked, &text);
        text.extend_from_slice(mac.as_bytes());
    }
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
    push_hex(&mut seal, &Sha256::digest(body));
    seal.push_str(SEAL_END);
    seal
}

fn mac(unlocked: &Unlocked, body: &[u8]) -> String {
    let mut mac = String::with_capacity(MAC_LEN);
    mac.push_str(MAC_START);
    push_hex(&mut mac, &unlocked.tag(body));
    mac.push_str(MAC_END);
    mac
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    text.push_str(&base16ct::lower::encode_string(bytes));
}

/// The keys in `text`, which was read from `path`. The text of serde's errors is dropped: it may
/// quote the file.
pub(super) fn decode(path: &Path, text: &[u8]) -> Result<Unverified, ProviderError> {
    let found = if is_sealed(text) { serde_json::from_slice(text).ok() } else { None };
    found.filter(Unverified::is_sound).ok_or_else(|| refusal(path, text))
}

/// The reason why `text` does not parse. A later format may have other fields and another seal.
fn refusal(path: &Path, text: &[u8]) -> ProviderError {
    #[derive(Deserialize)]
    struct Probe {
        format: u32,
    }
    match serde_json::from_slice(text) {
        Ok(Probe { format }) if format > FORMAT_WITH_RULES => too_new(path, format),
        _ => damaged(path),
    }
}

fn is_sealed(text: &[u8]) -> bool {
    let parts = split_end(text, SEAL_LEN);
    parts.is_some_and(|(body, found)| found == seal(body).as_bytes())
}

fn split_end(text: &[u8], len: usize) -> Option<(&[u8], &[u8])> {
    text.len().checked_sub(len).map(|at| text.split_at(at))
}

impl Unverified {
    /// The parameters to derive the file's keys, if it has a passphrase.
    pub(super) fn passphrase(&self) -> Option<&Params> {
        self.passphrase.as_ref()
    }

    fn is_sound(&self) -> bool {
        let has_passphrase = self.passphrase.is_some();
        self.format == format_of(&self.keys, has_passphrase)
            && self.passphrase.as_ref().is_none_or(Params::is_sound)
            && Store::is_sound(&self.keys, has_passphrase)
    }

    /// The keys of `text`, which this was decoded from, if `unlocked` has its passphrase and its
    /// MAC matches.
    pub(super) fn verify(
        self,
        path: &Path,
        text: &[u8],
        unlocked: Option<Arc<Unlocked>>,
    ) -> Result<Store, ProviderError> {
        let authentic = match (&self.passphrase, &unlocked) {
            (None, None) => true,
            (Some(params), Some(unlocked)) => {
                *params == unlocked.params && is_authentic(unlocked, text)
            }
            _ => false,
        };
        if authentic { Ok(Store { keys: self.keys, unlocked }) } else { Err(forged(path)) }
    }
}

fn is_authentic(unlocked: &Unlocked, text: &[u8]) -> bool {
    let parts = split_end(text, SEAL_LEN).and_then(|(text, _)| split_end(text, MAC_LEN));
    parts.is_some_and(|(body, found)| mac(unlocked, body).as_bytes().ct_eq(found).into())
}

pub(super) fn damaged(path: &Path) -> ProviderError {
    ProviderError::damaged(format!(
        "keystore {} was altered or cut short: put back its backup, and keep this file until then",
        path.display()
    ))
}

fn forged(path: &Path) -> ProviderError {
    ProviderError::damaged(format!(
        "keystore {} was altered by someone without its passphrase: put back its backup, and keep \
         this file until then",
        path.display()
    ))
}

fn too_new(path: &Path, format: u32) -> ProviderError {
    ProviderError::damaged(format!(
        "keystore {} has format {format}, from a newer version of sqlite-tde: use that \
         one, as this one reads up to format {FORMAT_WITH_RULES}",
        path.display()
    ))
}

#[cfg(test)]
pub(super) mod tests;
