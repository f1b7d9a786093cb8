//! HKDF-SHA-256 (RFC 5869), the one derivation of subkeys.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroize;

use crate::secret::stack::{HASHES, without_trace};
use crate::secret::{KEY_LEN, Secret};

/// The subkey of `key` for `salt` and the concatenated parts of `info`.
pub(crate) fn derive(key: &Secret, salt: &[u8], info: &[&[u8]]) -> Secret {
    Extracted::new(key, salt).expand(info)
}

/// A pseudorandom key, from which all subkeys of one key and salt are expanded.
pub(crate) struct Extracted(Secret);

impl Extracted {
    pub(crate) fn new(key: &Secret, salt: &[u8]) -> Self {
        without_trace::<HASHES, _>(|| Self::from(key.expose(), salt))
    }

    /// [`Extracted::new`] for input of any length, which the RFC's vectors need.
    fn from(input: &[u8], salt: &[u8]) -> Self {
        let (mut prk, _) = Hkdf::<Sha256>::extract(Some(salt), input);
        let extracted = Secret::from_slice(&prk);
        // The library wipes its own state, not this copy, from which every subkey follows.
        prk.as_mut_slice().zeroize();
        match extracted {
            Some(extracted) => Self(extracted),
            None => unreachable!("a SHA-256 hash has the length of a key"),
        }
    }

    /// The subkey for the concatenated parts of `info`.
    pub(crate) fn expand(&self, info: &[&[u8]]) -> Secret {
        without_trace::<HASHES, _>(|| self.to(info))
    }

    fn to(&self, info: &[&[u8]]) -> Secret {
        let filled = Secret::fill_with(|subkey: &mut [u8; KEY_LEN]| {
            let hkdf = Hkdf::<Sha256>::from_prk(self.0.expose()).map_err(|_| ())?;
            hkdf.expand_multi_info(info, subkey.as_mut_slice()).map_err(|_| ())
        });
        match filled {
            Ok(subkey) => subkey,
            Err(()) => unreachable!("HKDF-SHA-256 takes a hash and expands to 8,160 bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::tests::hex;

    /// RFC 5869, A.1 to A.3, as far as our 32 bytes reach; more output would begin with the same.
    #[test]
    fn rfc_5869_vectors() {
        let bytes = |range: std::ops::RangeInclusive<u8>| range.collect::<Vec<u8>>();
        for (name, input, salt, info, want) in [
            (
                "A.1",
                vec![0x0b; 22],
                bytes(0x00..=0x0c),
                bytes(0xf0..=0xf9),
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
            ),
            (
                "A.2",
                bytes(0x00..=0x4f),
                bytes(0x60..=0xaf),
                bytes(0xb0..=0xff),
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c",
            ),
            (
                "A.3",
                vec![0x0b; 22],
                vec![],
                vec![],
                "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d",
            ),
        ] {
            let (start, end) = info.split_at(info.len() / 2);
            let got = Extracted::from(&input, &salt).expand(&[start, end]);
            assert_eq!(got.expose().to_vec(), hex(want), "{name}");
        }
    }

    #[test]
    fn labels_and_salts_separate_keys() {
        let key = Secret::from_slice(&[1; 32]).unwrap();
        let subkeys = [
            derive(&key, b"a", &[b"page"]),
            derive(&key, b"a", &[b"journal"]),
            derive(&key, b"b", &[b"page"]),
        ];
        for (i, a) in subkeys.iter().enumerate() {
            for b in &subkeys[i + 1..] {
                assert_ne!(a.expose(), b.expose());
            }
        }
    }
    #[cfg(target_os = "linux")]
    #[test]
    fn the_stack_is_wiped_to_its_depth() {
        use crate::secret::stack::tests::depth_of;
        let key = Secret::from_slice(&[1; 32]).unwrap();
        let extracted = Extracted::from(key.expose(), &[2; 16]);
        let extract = depth_of(|| drop(Extracted::from(key.expose(), &[2; 16])));
        let expand = depth_of(|| drop(extracted.to(&[b"label", &[3; 16]])));
        for deep in [extract, expand] {
            assert!((1..HASHES).contains(&deep), "{deep}");
        }
    }
}
