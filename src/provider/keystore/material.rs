//! Keys as the file has them: base64, in the clear or sealed under a passphrase.

use std::fmt;

use base64ct::{Base64, Encoding};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::secret::{BASE64_LEN, Secret};

/// A sealed key, as `wrap` seals: nonce, ciphertext, tag.
pub(super) const BLOB_LEN: usize = 72;

/// A key as the file has it.
pub(super) enum Material {
    /// As it is.
    Clear(Secret),
    /// Under the passphrase.
    Sealed([u8; BLOB_LEN]),
}

const SEALED_TEXT_LEN: usize = BLOB_LEN.div_ceil(3) * 4;
const _: () = assert!(BASE64_LEN != SEALED_TEXT_LEN, "the length tells them apart");

/// Base64, straight between the file's text and a [`Secret`].
impl Serialize for Material {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Zeroizing::new([0; SEALED_TEXT_LEN]);
        let bytes = match self {
            Self::Clear(key) => key.expose().as_slice(),
            Self::Sealed(blob) => blob,
        };
        let text = Base64::encode(bytes, text.as_mut_slice()).map_err(S::Error::custom)?;
        serializer.serialize_str(text)
    }
}

/// The length of the text distinguishes them.
impl<'de> Deserialize<'de> for Material {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Borrowed, not copied: base64 has no escapes that serde_json would have to undo elsewhere.
        let text = <&str>::deserialize(deserializer)?;
        if text.len() != BASE64_LEN {
            return from_base64(text).map(Self::Sealed);
        }
        let key = Secret::from_base64(text.as_bytes()).map(Self::Clear);
        key.ok_or_else(|| D::Error::custom("a key is not 32 bytes of base64"))
    }
}

/// Bytes that are base64 in the file, and no secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Text<const N: usize>(pub(super) [u8; N]);

fn from_base64<const N: usize, E: serde::de::Error>(text: &str) -> Result<[u8; N], E> {
    let mut bytes = [0; N];
    match Base64::decode(text, &mut bytes) {
        Ok(decoded) if decoded.len() == N => Ok(bytes),
        _ => Err(E::custom("a field is not base64 of the right length")),
    }
}

impl<const N: usize> Serialize for Text<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Base64::encode_string(&self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Text<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_base64(<&str>::deserialize(deserializer)?).map(Self)
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Base64::encode_string(&self.0))
    }
}
