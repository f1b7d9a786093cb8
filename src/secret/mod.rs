//! Key bytes as a type: wiped when dropped, never printed, never copied, never compared, locked
//! into memory and left out of core dumps if the platform supports it (see [`memory`]).
//!
//! Every access to the bytes goes through [`Secret::expose`], so a reviewer can grep for it.

mod arena;
mod random;
pub(crate) mod stack;

use std::fmt;

use base64ct::{Base64, Encoding};
use subtle::ConstantTimeEq;

use arena::Slot;
pub use arena::{Memory, memory};

pub(crate) use random::{fill_random, find_generator};

use crate::error::Result;

/// Bytes of every key in the hierarchy: AES-256 keys, and HMAC keys of the same strength.
pub const KEY_LEN: usize = 32;

/// Characters of a key in hexadecimal and in base64.
pub(crate) const HEX_LEN: usize = 2 * KEY_LEN;
pub(crate) const BASE64_LEN: usize = KEY_LEN.div_ceil(3) * 4;

/// A 256-bit key. It lies in one place from birth to wiping, so moving it leaves no copy.
pub struct Secret(Slot);

impl Secret {
    /// A key from the operating system's random source, with others mixed in.
    ///
    /// # Errors
    /// [`crate::Error::Random`] if the operating system has none to give.
    pub fn random() -> Result<Self> {
        let mut key = Self(Slot::new());
        fill_random(key.0.get_mut())?;
        Ok(key)
    }

    /// Lets `fill` write the key in place, so that no copy outlives it.
    ///
    /// # Errors
    /// Those of `fill`; its partial output is wiped.
    pub fn fill_with<E>(
        fill: impl FnOnce(&mut [u8; KEY_LEN]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        let mut key = Self(Slot::new());
        fill(key.0.get_mut())?;
        Ok(key)
    }

    /// A key copied from `bytes`; `None` unless there are exactly [`KEY_LEN`] of them.
    /// Wiping `bytes` stays with the caller.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != KEY_LEN {
            return None;
        }
        let mut key = Self(Slot::new());
        key.0.get_mut().copy_from_slice(bytes);
        Some(key)
    }

    /// The key in hexadecimal digits of either case; `None` unless they are [`KEY_LEN`] bytes.
    pub(crate) fn from_hex(digits: &[u8]) -> Option<Self> {
        Self::decoded(|key| base16ct::mixed::decode(digits, key).ok().map(<[u8]>::len))
    }

    /// The key in base64; `None` unless that is [`KEY_LEN`] bytes.
    pub(crate) fn from_base64(text: &[u8]) -> Option<Self> {
        Self::decoded(|key| Base64::decode(text, key).ok().map(<[u8]>::len))
    }

    /// The key that `decode` writes, if it writes all of it.
    fn decoded(decode: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<Self> {
        let mut key = Self(Slot::new());
        (decode(key.0.get_mut())? == KEY_LEN).then_some(key)
    }

    /// Another holder of the same key: a provider may be asked while this one is wiped.
    #[must_use]
    pub(crate) fn duplicate(&self) -> Self {
        let mut key = Self(Slot::new());
        key.0.get_mut().copy_from_slice(self.expose());
        key
    }

    /// Whether both are the same key, in a time that does not depend on where they differ.
    pub(crate) fn is(&self, other: &Self) -> bool {
        bool::from(self.expose().ct_eq(other.expose()))
    }

    /// The key itself, for the one call that needs it.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        self.0.get()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_byte() {
        let key = Secret::from_slice(&[0x41; KEY_LEN]).unwrap();
        assert_eq!(format!("{key:?}"), "Secret(..)");
    }

    #[test]
    fn only_the_right_length_is_a_key() {
        for len in [0, 1, 16, 31, 33, 64] {
            assert!(Secret::from_slice(&vec![7; len]).is_none(), "length {len}");
        }
    }

    #[test]
    fn random_keys_differ() {
        let (a, b) = (Secret::random().unwrap(), Secret::random().unwrap());
        assert_ne!(a.expose(), b.expose());
    }
}
