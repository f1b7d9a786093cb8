//! XAES-256-GCM as C2SP specifies it (<https://c2sp.org/XAES-256-GCM>): AES-256-GCM under a key
//! derived from the first half of a 24-byte nonce, long enough to be drawn at random.
//!
//! ```text
//! nonce:  0                      12                 24
//!         | chooses the GCM key  | GCM's own nonce  |
//! ```
//! The derivation is NIST SP 800-108's counter mode with CMAC-AES-256, two blocks for 256 bits.

use std::sync::Arc;

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use super::{Fault, Suite, Unauthentic};
use crate::secret::stack::{BLOCKS, without_trace};
use crate::secret::{KEY_LEN, Secret};

/// The whole nonce: C2SP's N.
pub(crate) const NONCE_LEN: usize = 24;
/// The half of it that chooses the GCM key: N[:12].
pub(crate) const PREFIX_LEN: usize = 12;
pub(crate) const TAG_LEN: usize = 16;
const BLOCK: usize = 16;

const _: () = assert!(2 * BLOCK == KEY_LEN);
const _: () = assert!(NONCE_LEN - PREFIX_LEN == 12, "GCM's nonce");

/// A 256-bit key, with CMAC's first subkey. It is expanded for each use: an expanded key begins
/// with the key itself, which may lie only in a [`Secret`].
pub(crate) struct Key {
    key: Secret,
    k1: [u8; BLOCK],
}

impl Key {
    pub(crate) fn new(key: &Secret) -> Self {
        without_trace::<BLOCKS, _>(|| Self::expand(key))
    }

    fn expand(key: &Secret) -> Self {
        let aes = Aes256::new(key.expose().into());
        let mut block = [0; BLOCK];
        aes.encrypt_block((&mut block).into());
        let carry = block[0] >> 7;
        let mut k1 = (u128::from_be_bytes(block) << 1).to_be_bytes();
        // CMAC's constant for 128-bit blocks (NIST SP 800-38B, 5.3), without a branch on the key.
        k1[BLOCK - 1] ^= 0x87 & carry.wrapping_neg();
        block.zeroize();
        Self { key: key.duplicate(), k1 }
    }

    /// The GCM key for nonces that begin with `prefix`. It is made on the heap and stays there:
    /// moving it would leave a copy.
    ///
    /// # Errors
    /// [`Fault::NoMemory`].
    pub(crate) fn schedule(&self, prefix: &[u8; PREFIX_LEN]) -> Result<Arc<Schedule>, Fault> {
        without_trace::<BLOCKS, _>(|| self.derive(prefix).map(Arc::new))
    }

    fn derive(&self, prefix: &[u8; PREFIX_LEN]) -> Result<Schedule, Fault> {
        let aes = Aes256::new(self.key.expose().into());
        let mut derived = Zeroizing::new([0; KEY_LEN]);
        for (counter, half) in (1..=2_u8).zip(derived.chunks_exact_mut(BLOCK)) {
            let mut block = [0; BLOCK];
            block[..4].copy_from_slice(&[0, counter, b'X', 0]);
            block[4..].copy_from_slice(prefix);
            block.iter_mut().zip(&self.k1).for_each(|(byte, k1)| *byte ^= k1);
            aes.encrypt_block((&mut block).into());
            half.copy_from_slice(&block);
            block.zeroize();
        }
        // The key has the right length, so that only memory can be missing.
        let key = UnboundKey::new(&AES_256_GCM, derived.as_slice()).map_err(|_| Fault::NoMemory)?;
        Ok(Schedule(LessSafeKey::new(key)))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.k1.zeroize();
    }
}

/// An expanded GCM key.
pub(crate) struct Schedule(LessSafeKey);

impl Suite for Schedule {
    #[inline]
    fn seal(
        &self,
        nonce: &[u8],
        aad: &[u8],
        plain: &[u8],
        cipher: &mut [u8],
        tag: &mut [u8],
    ) -> Result<(), Fault> {
        let key = &self.0;
        key.seal_out_of_place_scatter(gcm_nonce(nonce)?, Aad::from(aad), plain, cipher, &[], tag)
            .map_err(|_| Unauthentic)
    }

    #[inline]
    fn open(
        &self,
        nonce: &[u8],
        aad: &[u8],
        cipher: &[u8],
        tag: &[u8],
        plain: &mut [u8],
    ) -> Result<(), Fault> {
        if tag.len() != TAG_LEN || cipher.len() != plain.len() {
            return Err(Unauthentic);
        }
        let key = &self.0;
        let opened =
            key.open_separate_gather(gcm_nonce(nonce)?, Aad::from(aad), cipher, tag, plain);
        opened.map_err(|_| {
            plain.fill(0);
            Unauthentic
        })
    }

    /// aws-lc takes the tag right behind the ciphertext.
    #[inline]
    fn open_in_place(
        &self,
        nonce: &[u8],
        aad: &[u8],
        tag: &[u8],
        block: &mut [u8],
        len: usize,
    ) -> Result<(), Fault> {
        let sealed = block.get_mut(..len + TAG_LEN).ok_or(Unauthentic)?;
        if tag.len() != TAG_LEN {
            return Err(Unauthentic);
        }
        sealed[len..].copy_from_slice(tag);
        let key = &self.0;
        let opened = key.open_in_place(gcm_nonce(nonce)?, Aad::from(aad), sealed).map(|_| ());
        opened.map_err(|_| {
            sealed[..len].fill(0);
            Unauthentic
        })
    }
}

fn gcm_nonce(nonce: &[u8]) -> Result<Nonce, Fault> {
    if nonce.len() != NONCE_LEN {
        return Err(Unauthentic);
    }
    Nonce::try_assume_unique_for_key(&nonce[PREFIX_LEN..]).map_err(|_| Unauthentic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::tests::hex;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_stack_is_wiped_to_its_depth() {
        use crate::secret::stack::tests::depth_of;
        let secret = Secret::from_slice(&[1; 32]).unwrap();
        let key = Key::expand(&secret);
        let expand = depth_of(|| drop(Key::expand(&secret)));
        let derive = depth_of(|| drop(Arc::new(key.derive(&[2; PREFIX_LEN]))));
        for deep in [expand, derive] {
            assert!((1..BLOCKS).contains(&deep), "{deep}");
        }
    }

    /// The vectors of C2SP's specification.
    #[test]
    fn c2sp_vectors() {
        for (key, k1, aad, want) in [
            (
                1,
                "e531954aca063d5b8d9c47a47d4cc6f0",
                "",
                "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271",
            ),
            (
                3,
                "23810ec50edb99f374409466ed1f4b7b",
                "c2sp.org/XAES-256-GCM",
                "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
            ),
        ] {
            let key = Key::new(&Secret::from_slice(&[key; 32]).unwrap());
            assert_eq!(key.k1.to_vec(), hex(k1), "{aad:?}");
            let (nonce, plain) = (b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM");
            let mut got = [0; 12 + TAG_LEN];
            let (cipher, tag) = got.split_at_mut(12);
            let schedule = key.schedule(b"ABCDEFGHIJKL").unwrap();
            schedule.seal(nonce, aad.as_bytes(), plain, cipher, tag).unwrap();
            let mut back = [0; 12];
            schedule.open(nonce, aad.as_bytes(), cipher, tag, &mut back).unwrap();
            assert_eq!(&back, plain);
            assert_eq!(got.to_vec(), hex(want), "{aad:?}");
        }
    }
}
