//! AEGIS-256X4, as draft-irtf-cfrg-aegis-aead specifies it, with tags of 128 bits. Its nonce of 32
//! bytes is the beginning of a block's trailer:
//!
//! ```text
//! 0                4                                     32
//! | key version    | the nonce that is drawn              |
//! ```
//! A cipher of AES rounds on four states side by side, by the author of libaegis. It is a document
//! of the IRTF's CFRG and no standard of NIST's.

use std::sync::Arc;

use ::aegis::aegis256x4::Aegis256X4;

use super::{Fault, Suite, Unauthentic};
use crate::secret::Secret;
use crate::secret::stack::{HASHES, without_trace};

/// What is drawn of the nonce.
pub(crate) const NONCE_LEN: usize = 28;
pub(crate) const TAG_LEN: usize = 16;
const VERSION_LEN: usize = size_of::<u32>();

type Cipher = Aegis256X4<TAG_LEN>;

/// A 256-bit key, and the key version that begins each of its nonces. Nothing is derived ahead: a
/// state begins with key and nonce together.
pub(crate) struct Key {
    key: Secret,
    version: [u8; VERSION_LEN],
}

impl Key {
    pub(crate) fn new(key: &Secret, version: u32) -> Arc<Self> {
        Arc::new(Self { key: key.duplicate(), version: version.to_be_bytes() })
    }

    /// Does `work` with the cipher for `nonce`. Key and state lie on the stack meanwhile.
    #[inline]
    fn with<T>(&self, nonce: &[u8], work: impl FnOnce(Cipher) -> T) -> Result<T, Fault> {
        let drawn: &[u8; NONCE_LEN] = nonce.try_into().map_err(|_| Unauthentic)?;
        let mut whole = [0; VERSION_LEN + NONCE_LEN];
        whole[..VERSION_LEN].copy_from_slice(&self.version);
        whole[VERSION_LEN..].copy_from_slice(drawn);
        Ok(without_trace::<HASHES, _>(|| work(Cipher::new(self.key.expose(), &whole))))
    }
}

impl Suite for Key {
    #[inline]
    fn seal(
        &self,
        nonce: &[u8],
        aad: &[u8],
        plain: &[u8],
        cipher: &mut [u8],
        tag: &mut [u8],
    ) -> Result<(), Fault> {
        let tag: &mut [u8; TAG_LEN] = tag.try_into().map_err(|_| Unauthentic)?;
        if nonce.len() != NONCE_LEN || cipher.len() != plain.len() {
            return Err(Unauthentic);
        }
        cipher.copy_from_slice(plain);
        *tag = self.with(nonce, |aegis| aegis.encrypt_in_place(cipher, aad))?;
        Ok(())
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
        if (nonce.len(), tag.len()) != (NONCE_LEN, TAG_LEN) || cipher.len() != plain.len() {
            return Err(Unauthentic);
        }
        plain.copy_from_slice(cipher);
        self.open_in_place(nonce, aad, tag, plain, cipher.len())
    }

    #[inline]
    fn open_in_place(
        &self,
        nonce: &[u8],
        aad: &[u8],
        tag: &[u8],
        block: &mut [u8],
        len: usize,
    ) -> Result<(), Fault> {
        let tag: &[u8; TAG_LEN] = tag.try_into().map_err(|_| Unauthentic)?;
        let block = block.get_mut(..len).ok_or(Unauthentic)?;
        self.with(nonce, |aegis| aegis.decrypt_in_place(block, tag, aad))?.map_err(|_| {
            block.fill(0);
            Unauthentic
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
        let key = Key::new(&Secret::from_slice(&[1; 32]).unwrap(), 1);
        let mut block = vec![0; 65536];
        let mut tag = [0; TAG_LEN];
        let cipher = || Cipher::new(key.key.expose(), &[2; 32]);
        let seal = depth_of(|| tag = cipher().encrypt_in_place(&mut block, &[3; 49]));
        let open = depth_of(|| _ = cipher().decrypt_in_place(&mut block, &tag, &[3; 49]));
        for deep in [seal, open] {
            assert!((1..HASHES).contains(&deep), "{deep}");
        }
    }

    /// The vectors of draft-irtf-cfrg-aegis-aead-18 for AEGIS-256X4, with tags of 128 bits.
    #[test]
    fn vectors_of_the_draft() {
        let bytes: Vec<u8> = (0..=0x2f).collect();
        let (secret, nonce) = (Secret::from_slice(&bytes[..32]).unwrap(), &bytes[0x10..]);
        let version = u32::from_be_bytes(nonce[..4].try_into().unwrap());
        let key = Key::new(&secret, version);
        let long: Vec<u8> = [4, 5, 6, 7].repeat(30);
        for (aad, plain, cipher, tag) in [
            ("", &[][..], "", "3b7fee6cee7bf17888ad11ed2397beb4"),
            (
                "0102030401020304",
                &long,
                "bfc2085b7e8017da99b0b6d646ae4d01f4ba8f2e7dfca1d759ae48a135139b9aaac6b4f5db810d426b\
                 e1fdaff4e1454153a34b11da78ed7e418ee2ee9853042e95536aecbb694cea1b16a478eb0d4d1bf650\
                 9b1ce652a45af58e0e46ffccfa2d0426e702391d2ff5813808b81748a490dd656465fed61f09",
                "b63b611b13975e2f3dc3cb6c2397bfcd",
            ),
        ] {
            let (mut got, mut got_tag) = (vec![0; plain.len()], [0; TAG_LEN]);
            key.seal(&nonce[4..], &hex(aad), plain, &mut got, &mut got_tag).unwrap();
            assert_eq!((got.clone(), got_tag.to_vec()), (hex(cipher), hex(tag)), "{aad}");
            let mut back = vec![0; plain.len()];
            key.open(&nonce[4..], &hex(aad), &got, &got_tag, &mut back).unwrap();
            assert_eq!(back, plain, "{aad}");
        }
    }
}
