//! AES-256-CTR, then HMAC-SHA-256 over what was encrypted.
//!
//! The composition is Tink's `AES256_CTR_HMAC_SHA256`: the MAC covers associated data, nonce and
//! ciphertext, and closes with the associated data's length in bits (8 bytes, big-endian). The nonce
//! is the first counter block; the tag is truncated to 28 bytes (RFC 2104, section 5).

use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::{InnerIvInit, KeyInit, StreamCipher};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::{Suite, Unauthentic, hkdf};
use crate::secret::Secret;

pub(crate) const NONCE_LEN: usize = 16;
pub(crate) const TAG_LEN: usize = 28;

const CTR: &[u8] = b"sqlite-tde v1 ctr";
const HMAC: &[u8] = b"sqlite-tde v1 hmac";

/// A key for each half, expanded.
pub(crate) struct Key {
    aes: Aes256,
    hmac: Hmac<Sha256>,
}

impl Key {
    pub(crate) fn new(subkey: &Secret) -> Self {
        let mac = hkdf::derive(subkey, &[], &[HMAC]);
        Self {
            aes: Aes256::new(hkdf::derive(subkey, &[], &[CTR]).expose().into()),
            // A 32-byte key is shorter than the 64-byte block that this constructor takes.
            hmac: Hmac::new((&*block(mac.expose())).into()),
        }
    }

    fn apply(&self, nonce: &[u8], from: &[u8], to: &mut [u8]) -> Result<(), Unauthentic> {
        let nonce = nonce.try_into().map_err(|_| Unauthentic)?;
        let core = ctr::CtrCore::inner_iv_init(self.aes.clone(), nonce);
        Ctr128BE::<Aes256>::from_core(core).apply_keystream_b2b(from, to);
        Ok(())
    }

    fn tag(&self, nonce: &[u8], aad: &[u8], cipher: &[u8]) -> [u8; TAG_LEN] {
        let mut mac = self.hmac.clone();
        mac.update(aad);
        mac.update(nonce);
        mac.update(cipher);
        mac.update(&(aad.len() as u64 * 8).to_be_bytes());
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&mac.finalize().into_bytes()[..TAG_LEN]);
        tag
    }
}

/// A short HMAC key is filled up with zeros to the hash's block (RFC 2104, section 2).
fn block(key: &[u8; 32]) -> zeroize::Zeroizing<[u8; 64]> {
    let mut block = zeroize::Zeroizing::new([0; 64]);
    block[..32].copy_from_slice(key);
    block
}

impl Suite for Key {
    fn seal(
        &self,
        nonce: &[u8],
        aad: &[u8],
        plain: &[u8],
        cipher: &mut [u8],
        tag: &mut [u8],
    ) -> Result<(), Unauthentic> {
        if tag.len() != TAG_LEN || cipher.len() != plain.len() {
            return Err(Unauthentic);
        }
        self.apply(nonce, plain, cipher)?;
        tag.copy_from_slice(&self.tag(nonce, aad, cipher));
        Ok(())
    }

    fn open(
        &self,
        nonce: &[u8],
        aad: &[u8],
        cipher: &[u8],
        tag: &[u8],
        plain: &mut [u8],
    ) -> Result<(), Unauthentic> {
        if nonce.len() != NONCE_LEN || cipher.len() != plain.len() {
            return Err(Unauthentic);
        }
        if !bool::from(self.tag(nonce, aad, cipher)[..].ct_eq(tag)) {
            return Err(Unauthentic);
        }
        self.apply(nonce, cipher, plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::tests::hex;

    /// NIST SP 800-38A, F.5.5, CTR-AES256.Encrypt.
    #[test]
    fn nist_ctr_vector() {
        let key = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        let plain = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
             30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710");
        let want = hex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5\
             2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6");
        let mut key_of_ours = Key::new(&Secret::from_slice(&[0; 32]).unwrap());
        key_of_ours.aes = Aes256::new_from_slice(&key).unwrap();
        let mut got = vec![0; plain.len()];
        key_of_ours.apply(&hex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), &plain, &mut got).unwrap();
        assert_eq!(got, want);
    }

    /// RFC 4231, test cases 1 and 2.
    #[test]
    fn rfc_4231_vectors() {
        for (key, data, want) in [
            (
                hex("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"),
                &b"Hi There"[..],
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe".to_vec(),
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
        ] {
            let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
            mac.update(data);
            assert_eq!(mac.finalize().into_bytes().to_vec(), hex(want));
        }
    }

    #[test]
    fn the_tag_covers_the_boundary_between_aad_and_nonce() {
        let key = Key::new(&Secret::from_slice(&[1; 32]).unwrap());
        assert_ne!(key.tag(b"b", b"a", b"c"), key.tag(b"", b"ab", b"c"));
    }
}
