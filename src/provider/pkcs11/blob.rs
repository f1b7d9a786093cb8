//! The blob in a protector record of a DEK that a token wrapped.
//!
//! ```text
//! 0                                   len - 32   len
//! +-----------------------------------+----------+
//! | sealed                            | check    |
//! +-----------------------------------+----------+
//! sealed  = nonce 12 | encrypted DEK 32 | tag 16      aes-gcm
//!         | encrypted DEK 40                          aes-key-wrap, as in RFC 3394
//!         | encrypted DEK, as long as the modulus     rsa-oaep-sha256, rsa-oaep-sha1
//! check   = HMAC-SHA-256(HKDF(DEK, salt = file id, "sqlite-tde v1 pkcs11 check"),
//!                        mechanism, key id, key version, context, sealed)
//! ```
//! Each of the five goes after its length in 4 bytes, big-endian.
//!
//! Only one of the mechanisms has associated data, and tokens answer a tampered blob with any code,
//! even that of an outage. So the check binds it all, by a key that only a holder of the DEK can
//! derive: a DEK that passes is the one that was wrapped for this place.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::mechanism::Mechanism;
use crate::provider::Context;
use crate::secret::Secret;
use crate::suite::hkdf;

const CHECK: &[u8] = b"sqlite-tde v1 pkcs11 check";
const CHECK_LEN: usize = 32;

/// The data that a blob is bound to.
pub(super) struct Binding<'a> {
    pub(super) mechanism: Mechanism,
    pub(super) key_id: &'a str,
    pub(super) key_version: &'a str,
    pub(super) context: &'a Context,
}

impl Binding<'_> {
    /// The blob for the token's output `sealed`.
    pub(super) fn close(&self, dek: &Secret, mut sealed: Vec<u8>) -> Vec<u8> {
        if let Some(mac) = self.mac(dek, &sealed) {
            sealed.extend_from_slice(&mac.finalize().into_bytes());
        }
        sealed
    }

    /// Whether `dek` is the one that [`Binding::close`] made a check for.
    pub(super) fn fits(&self, dek: &Secret, sealed: &[u8], check: &[u8]) -> bool {
        self.mac(dek, sealed).is_some_and(|mac| mac.verify_slice(check).is_ok())
    }

    /// HMAC takes keys of any length, so this is never `None`.
    fn mac(&self, dek: &Secret, sealed: &[u8]) -> Option<Hmac<Sha256>> {
        let key = hkdf::derive(dek, &self.context.file_id, &[CHECK]);
        let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).ok()?;
        for part in [
            self.mechanism.name().as_bytes(),
            self.key_id.as_bytes(),
            self.key_version.as_bytes(),
            &self.context.encode(),
            sealed,
        ] {
            // Far below 4 GiB all: each is in an envelope of 8 KiB.
            mac.update(&(part.len() as u32).to_be_bytes());
            mac.update(part);
        }
        Some(mac)
    }
}

/// The token's output, and the check; `None` for a blob too short to have both.
pub(super) fn split(blob: &[u8]) -> Option<(&[u8], &[u8])> {
    blob.split_at_checked(blob.len().checked_sub(CHECK_LEN)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Context = Context { file_id: [7; 16], dek_version: 1 };
    const BINDING: Binding = Binding {
        mechanism: Mechanism::RsaOaepSha256,
        key_id: "k",
        key_version: "01",
        context: &CONTEXT,
    };

    #[test]
    fn the_check_fits_only_what_it_was_made_for() {
        let (dek, other) = (Secret::random().unwrap(), Secret::random().unwrap());
        let blob = BINDING.close(&dek, b"sealed".to_vec());
        let (sealed, check) = split(&blob).unwrap();
        let other_file = Context { file_id: [8; 16], ..CONTEXT };
        let other_dek = Context { dek_version: 2, ..CONTEXT };
        let sha1 = Mechanism::RsaOaepSha1;
        for (what, binding, dek, sealed, fits) in [
            ("the same", BINDING, &dek, sealed, true),
            ("another DEK", BINDING, &other, sealed, false),
            ("another blob", BINDING, &dek, b"Sealed", false),
            ("mechanism", Binding { mechanism: sha1, ..BINDING }, &dek, sealed, false),
            ("key", Binding { key_id: "j", ..BINDING }, &dek, sealed, false),
            ("version", Binding { key_version: "02", ..BINDING }, &dek, sealed, false),
            ("moved", Binding { key_id: "k0", key_version: "1", ..BINDING }, &dek, sealed, false),
            ("database", Binding { context: &other_file, ..BINDING }, &dek, sealed, false),
            ("DEK version", Binding { context: &other_dek, ..BINDING }, &dek, sealed, false),
        ] {
            assert_eq!(binding.fits(dek, sealed, check), fits, "{what}");
        }
        assert!(!BINDING.fits(&dek, sealed, &check[1..]), "a check cut short");
        assert!(split(&[0; CHECK_LEN - 1]).is_none());
    }
}
