//! HKDF-SHA-256 (RFC 5869), the one derivation of subkeys.

use hkdf::Hkdf;
use sha2::Sha256;

use crate::secret::{KEY_LEN, Secret};

/// The subkey of `key` for `salt` and the concatenated parts of `info`.
pub(crate) fn derive(key: &Secret, salt: &[u8], info: &[&[u8]]) -> Secret {
    let hkdf = Hkdf::<Sha256>::new(Some(salt), key.expose());
    let filled = Secret::fill_with(|subkey: &mut [u8; KEY_LEN]| {
        hkdf.expand_multi_info(info, subkey.as_mut_slice())
    });
    match filled {
        Ok(subkey) => subkey,
        Err(_) => unreachable!("HKDF-SHA-256 expands to up to 8,160 bytes; 32 were asked for"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::tests::hex;

    /// RFC 5869, A.1, as far as our 32 bytes reach; its 22-byte key enters through the library.
    #[test]
    fn rfc_5869_vector() {
        let salt = hex("000102030405060708090a0b0c");
        let hkdf = Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22]);
        let mut got = [0; 42];
        hkdf.expand_multi_info(&[&hex("f0f1f2f3"), &hex("f4f5f6f7f8f9")], &mut got).unwrap();
        let want = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf\
                    34007208d5b887185865";
        assert_eq!(got.to_vec(), hex(want));
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
}
