//! AES-256-CTR, then HMAC-SHA-256 over the ciphertext.
//!
//! The composition is Tink's `AES256_CTR_HMAC_SHA256`: the MAC covers associated data, nonce and
//! ciphertext, and closes with the associated data's length in bits (8 bytes, big-endian). The
//! nonce is the first counter block; the tag is truncated to 28 bytes (RFC 2104, section 5).

use std::sync::Arc;

use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::{InnerIvInit, KeyInit, StreamCipher};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::hkdf::Extracted;
use super::{Fault, Suite, Unauthentic};
use crate::secret::Secret;
use crate::secret::stack::{BLOCKS, STREAMS, without_trace};

/// The first counter block, AES's block in length.
pub(crate) const NONCE_LEN: usize = 16;
pub(crate) const TAG_LEN: usize = 28;

const _: () = assert!(TAG_LEN >= 32 / 2, "RFC 2104, section 5: half the hash at least");

const CTR: &[u8] = b"sqlite-tde v1 ctr";
const HMAC: &[u8] = b"sqlite-tde v1 hmac";

/// A key for each half, expanded.
pub(crate) struct Key {
    aes: Aes256,
    hmac: Hmac<Sha256>,
}

impl Key {
    /// Built in place on the heap, and wiped from there when dropped.
    pub(crate) fn new(subkey: &Secret) -> Arc<Self> {
        without_trace::<BLOCKS, _>(|| Arc::new(Self::expand(subkey)))
    }

    fn expand(subkey: &Secret) -> Self {
        let extracted = Extracted::new(subkey, &[]);
        let mac = extracted.expand(&[HMAC]);
        Self {
            aes: Aes256::new(extracted.expand(&[CTR]).expose().into()),
            // A 32-byte key is shorter than the 64-byte block that this constructor takes.
            hmac: Hmac::new((&*block(mac.expose())).into()),
        }
    }

    fn apply(&self, nonce: &[u8], from: &[u8], to: &mut [u8]) -> Result<(), Fault> {
        let mut keystream = self.keystream(nonce)?;
        keystream.try_apply_keystream_b2b(from, to).map_err(|_| Unauthentic)
    }

    /// It borrows the expanded key, of which no copy is made here.
    fn keystream(&self, nonce: &[u8]) -> Result<Ctr128BE<&Aes256>, Fault> {
        let nonce = nonce.try_into().map_err(|_| Unauthentic)?;
        Ok(Ctr128BE::from_core(ctr::CtrCore::inner_iv_init(&self.aes, nonce)))
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

    fn verify(&self, nonce: &[u8], aad: &[u8], cipher: &[u8], tag: &[u8]) -> Result<(), Fault> {
        let same = bool::from(self.tag(nonce, aad, cipher)[..].ct_eq(tag));
        if same { Ok(()) } else { Err(Unauthentic) }
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
    ) -> Result<(), Fault> {
        if tag.len() != TAG_LEN || cipher.len() != plain.len() {
            return Err(Unauthentic);
        }
        without_trace::<STREAMS, _>(|| {
            self.apply(nonce, plain, cipher)?;
            tag.copy_from_slice(&self.tag(nonce, aad, cipher));
            Ok(())
        })
    }

    fn open(
        &self,
        nonce: &[u8],
        aad: &[u8],
        cipher: &[u8],
        tag: &[u8],
        plain: &mut [u8],
    ) -> Result<(), Fault> {
        if nonce.len() != NONCE_LEN || cipher.len() != plain.len() {
            return Err(Unauthentic);
        }
        without_trace::<STREAMS, _>(|| {
            self.verify(nonce, aad, cipher, tag)?;
            self.apply(nonce, cipher, plain)
        })
    }

    fn open_in_place(
        &self,
        nonce: &[u8],
        aad: &[u8],
        tag: &[u8],
        block: &mut [u8],
        len: usize,
    ) -> Result<(), Fault> {
        let cipher = block.get_mut(..len).ok_or(Unauthentic)?;
        without_trace::<STREAMS, _>(|| {
            self.verify(nonce, aad, cipher, tag)?;
            self.keystream(nonce)?.try_apply_keystream(cipher).map_err(|_| Unauthentic)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::tests::hex;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_stack_is_wiped_to_its_depth() {
        use crate::secret::stack::tests::depth_of;
        let subkey = Secret::from_slice(&[1; 32]).unwrap();
        let key = Key::expand(&subkey);
        let deep = depth_of(|| drop(Arc::new(Key::expand(&subkey))));
        assert!((1..BLOCKS).contains(&deep), "expanding: {deep}");
        for len in [16, 1000, 4048, 65536 + 24] {
            let (from, mut to) = (vec![1; len], vec![0; len]);
            let apply = depth_of(|| key.apply(&[9; NONCE_LEN], &from, &mut to).unwrap());
            let tag = depth_of(|| _ = key.tag(&[9; NONCE_LEN], b"aad", &from));
            for deep in [apply, tag] {
                assert!((1..STREAMS).contains(&deep), "{len} bytes: {deep}");
            }
        }
    }

    /// NIST SP 800-38A, F.5.5, CTR-AES256.Encrypt.
    #[test]
    fn nist_ctr_vector() {
        let key = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        let plain = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
             30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710");
        let want = hex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5\
             2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6");
        let mut key_of_ours = Key::expand(&Secret::from_slice(&[0; 32]).unwrap());
        key_of_ours.aes = Aes256::new_from_slice(&key).unwrap();
        let mut got = vec![0; plain.len()];
        key_of_ours.apply(&hex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), &plain, &mut got).unwrap();
        assert_eq!(got, want);
    }

    /// RFC 4231, section 4; test case 5 is the one of a truncated tag.
    #[test]
    fn rfc_4231_vectors() {
        for (case, key, data, want) in [
            (
                1,
                vec![0x0b; 20],
                b"Hi There".to_vec(),
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                2,
                b"Jefe".to_vec(),
                b"what do ya want for nothing?".to_vec(),
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                3,
                vec![0xaa; 20],
                vec![0xdd; 50],
                "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
            ),
            (
                4,
                (0x01..=0x19).collect(),
                vec![0xcd; 50],
                "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
            ),
            (
                5,
                vec![0x0c; 20],
                b"Test With Truncation".to_vec(),
                "a3b6167473100ee06e0c796c2955552b",
            ),
            (
                6,
                vec![0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First".to_vec(),
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
            (
                7,
                vec![0xaa; 131],
                b"This is a test using a larger than block-size key and a larger than block-size \
                  data. The key needs to be hashed before being used by the HMAC algorithm."
                    .to_vec(),
                "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
            ),
        ] {
            let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
            mac.update(&data);
            let want = hex(want);
            assert_eq!(mac.finalize().into_bytes()[..want.len()], want, "case {case}");
        }
    }

    /// The whole composition, computed apart with Python's `hmac` and `openssl enc -aes-256-ctr`:
    /// it fixes labels, MAC input and truncation. The counter wraps after the second block.
    #[test]
    fn known_answer_of_the_composition() {
        let subkey: Vec<u8> = (0..32).collect();
        let key = Key::new(&Secret::from_slice(&subkey).unwrap());
        let (nonce, aad) = (hex("fffffffffffffffffffffffffffffffe"), b"file 1 page 7");
        let plain = b"SQLite format 3\0 and forty bytes after..";
        let (mut cipher, mut tag) = (vec![0; plain.len()], [0; TAG_LEN]);
        key.seal(&nonce, aad, plain, &mut cipher, &mut tag).unwrap();
        assert_eq!(
            cipher,
            hex("d49456b6886fa70d1a85ae47972cf4ebc5e6df7aac4d2d5d7ae115dd992e28ff \
             95c61b427d858911")
        );
        assert_eq!(tag.to_vec(), hex("0685d89226c73fd9c4b89238ee88172783fc6b519438b94649bbb606"));
        let mut back = vec![0; plain.len()];
        key.open(&nonce, aad, &cipher, &tag, &mut back).unwrap();
        assert_eq!(back, plain);
    }

    #[test]
    fn the_tag_covers_the_boundary_between_aad_and_nonce() {
        let key = Key::new(&Secret::from_slice(&[1; 32]).unwrap());
        assert_ne!(key.tag(b"b", b"a", b"c"), key.tag(b"", b"ab", b"c"));
    }
}
