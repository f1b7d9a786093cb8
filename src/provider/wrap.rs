//! A DEK wrapped with a 256-bit key in this process: the mechanism of the keystore and of the
//! providers without a service of their own.
//!
//! XAES-256-GCM as specified by C2SP (<https://c2sp.org/XAES-256-GCM>), with a random nonce:
//!
//! ```text
//! 0          24                  56       72
//! +----------+-------------------+--------+
//! | nonce    | encrypted DEK     | tag    |
//! +----------+-------------------+--------+
//! AAD = context length 4 | context | name length 4 | key name | key version 4, all big-endian
//! ```

use std::sync::Arc;

use super::{Context, ProviderError, random};
use crate::secret::{KEY_LEN, Secret};
use crate::suite::Suite;
use crate::suite::xaes::{Key, NONCE_LEN, Schedule, TAG_LEN};

const CIPHER_AT: usize = NONCE_LEN;
const TAG_AT: usize = CIPHER_AT + KEY_LEN;
const BLOB_LEN: usize = TAG_AT + TAG_LEN;
const _: () = assert!(BLOB_LEN == 72, "databases have blobs of this length in their envelopes");

/// The name of this mechanism in a protector record.
pub(super) const MECHANISM: &str = "xaes-256-gcm";

/// The data that a blob is bound to: the context, and the key and version that wrapped it.
pub(super) fn aad(context: &Context, name: &str, version: u32) -> Vec<u8> {
    let mut aad = Vec::new();
    for part in [context.encode().as_slice(), name.as_bytes()] {
        // Far below 4 GiB both: one has a fixed length, the other is a key's name in the envelope.
        aad.extend_from_slice(&(part.len() as u32).to_be_bytes());
        aad.extend_from_slice(part);
    }
    aad.extend_from_slice(&version.to_be_bytes());
    aad
}

/// `dek` sealed with `kek`: a blob of 72 bytes.
///
/// # Errors
/// [`ProviderError::Unreachable`] if the operating system has no random bytes.
pub(super) fn seal(kek: &Secret, aad: &[u8], dek: &Secret) -> Result<Vec<u8>, ProviderError> {
    let nonce = random()?;
    let mut blob = vec![0; BLOB_LEN];
    let (head, tag) = blob.split_at_mut(TAG_AT);
    let (start, cipher) = head.split_at_mut(CIPHER_AT);
    start.copy_from_slice(&nonce);
    let sealed = schedule(kek, &nonce)?.seal(&nonce, aad, dek.expose(), cipher, tag);
    sealed.map_err(|_| ProviderError::unreachable("the cipher refused to wrap a key"))?;
    Ok(blob)
}

/// The DEK in `blob`; `None` if it was not sealed with this key and associated data.
///
/// # Errors
/// [`ProviderError::Unreachable`] if there is no memory.
pub(super) fn open(kek: &Secret, aad: &[u8], blob: &[u8]) -> Result<Option<Secret>, ProviderError> {
    let nonce: &[u8; NONCE_LEN] = match blob.first_chunk() {
        Some(nonce) if blob.len() == BLOB_LEN => nonce,
        _ => return Ok(None),
    };
    let (cipher, tag) = (&blob[CIPHER_AT..TAG_AT], &blob[TAG_AT..]);
    let schedule = schedule(kek, nonce)?;
    Ok(Secret::fill_with(|dek| schedule.open(nonce, aad, cipher, tag, dek)).ok())
}

/// The AES-GCM key that the first half of the nonce chooses.
fn schedule(kek: &Secret, nonce: &[u8; NONCE_LEN]) -> Result<Arc<Schedule>, ProviderError> {
    let schedule = Key::new(kek).schedule(&std::array::from_fn(|at| nonce[at]));
    schedule.map_err(|_| ProviderError::unreachable("there is no memory for a key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Context = Context { file_id: [7; 16], dek_version: 1 };

    #[test]
    fn only_the_same_key_and_binding_open_a_blob() {
        let (kek, other_kek, dek) =
            (Secret::random().unwrap(), Secret::random().unwrap(), Secret::random().unwrap());
        let blob = seal(&kek, &aad(&CONTEXT, "k", 1), &dek).unwrap();
        let other_file = Context { file_id: [8; 16], ..CONTEXT };
        let other_dek = Context { dek_version: 2, ..CONTEXT };
        for (what, key, aad, opens) in [
            ("the same", &kek, aad(&CONTEXT, "k", 1), true),
            ("another key", &other_kek, aad(&CONTEXT, "k", 1), false),
            ("another database", &kek, aad(&other_file, "k", 1), false),
            ("another DEK version", &kek, aad(&other_dek, "k", 1), false),
            ("another key name", &kek, aad(&CONTEXT, "j", 1), false),
            ("a longer key name", &kek, aad(&CONTEXT, "k\0", 1), false),
            ("another key version", &kek, aad(&CONTEXT, "k", 2), false),
        ] {
            let opened = open(key, &aad, &blob).unwrap();
            assert_eq!(opened.is_some(), opens, "{what}");
            assert!(opened.is_none_or(|key| key.expose() == dek.expose()), "{what}");
        }
    }

    #[test]
    fn altered_blobs_do_not_open() {
        let (kek, dek) = (Secret::random().unwrap(), Secret::random().unwrap());
        let aad = aad(&CONTEXT, "k", 1);
        let blob = seal(&kek, &aad, &dek).unwrap();
        for bit in 0..blob.len() * 8 {
            let mut flipped = blob.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&kek, &aad, &flipped).unwrap().is_none(), "bit {bit}");
        }
        for len in 0..blob.len() {
            assert!(open(&kek, &aad, &blob[..len]).unwrap().is_none(), "length {len}");
        }
        assert!(open(&kek, &aad, &[blob, vec![0]].concat()).unwrap().is_none(), "a byte longer");
    }
}
