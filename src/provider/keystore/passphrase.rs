//! A passphrase over the keystore: the keys that seal and authenticate the file.
//!
//! ```text
//! passphrase --Argon2id(salt, cost)--> 32 bytes
//!            --HKDF-SHA256(salt, label)--> seal key | MAC key | check
//! ```
//! The seal key seals each stored key by itself, bound to its name and version. The MAC key
//! authenticates the whole file. The check stands in the file and tells a wrong passphrase from an
//! altered file; it helps a guesser no more than the MAC does.
//!
//! Argon2id (RFC 9106) is made to be slow and to need memory. [`Unlocked`] is its result, which is
//! cached; the passphrase itself is not.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::material::{BLOB_LEN, Material, Text};
use crate::provider::{Cost, ProviderError, random, wrap};
use crate::secret::{KEY_LEN, Secret};
use crate::suite::hkdf;

const SEAL: &[u8] = b"sqlite-tde v1 keystore seal";
const KEY: &[u8] = b"sqlite-tde v1 keystore key";
const MAC: &[u8] = b"sqlite-tde v1 keystore mac";
const CHECK: &[u8] = b"sqlite-tde v1 keystore check";

const SALT_LEN: usize = 16;
const TAG_LEN: usize = 32;

/// The least memory of a file's cost. The other bounds are those of [`Cost`]: without them an
/// altered file could take all memory, or minutes.
const MEMORY_MIN_KIB: u32 = 8 << 10;

/// The passphrase's parameters in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    kdf: String,
    memory_kib: u32,
    iterations: u32,
    lanes: u32,
    salt: Text<SALT_LEN>,
    check: Text<KEY_LEN>,
}

const KDF: &str = "argon2id";

impl Params {
    /// Whether this software supports these parameters, within bounds.
    pub(super) fn is_sound(&self) -> bool {
        self.kdf == KDF && is_bounded(self.cost())
    }

    fn cost(&self) -> Cost {
        let Self { memory_kib, iterations, lanes: parallelism, .. } = *self;
        Cost { memory_kib, iterations, parallelism }
    }
}

fn is_bounded(cost: Cost) -> bool {
    cost.is_bounded() && cost.memory_kib >= MEMORY_MIN_KIB
}

/// The keys that a passphrase leads to.
#[derive(Debug)]
pub(super) struct Unlocked {
    pub(super) params: Params,
    seal: Secret,
    mac: Secret,
}

impl Unlocked {
    /// Keys for a file that gets this passphrase, with a salt of their own.
    ///
    /// # Errors
    /// [`ProviderError::Denied`] for a cost out of bounds, and [`ProviderError::Unreachable`] if
    /// the system has no random bytes or too little memory.
    pub(super) fn create(passphrase: &[u8], cost: Cost) -> Result<Self, ProviderError> {
        if !is_bounded(cost) {
            let text = format!("keystore: a cost of {cost} is out of bounds: set another");
            return Err(ProviderError::denied(text));
        }
        let salt = random()?;
        let [seal, mac, check] = derive(passphrase, &salt, cost)?;
        let Cost { memory_kib, iterations, parallelism: lanes } = cost;
        let (salt, check) = (Text(salt), Text(*check.expose()));
        let params = Params { kdf: KDF.into(), memory_kib, iterations, lanes, salt, check };
        Ok(Self { params, seal, mac })
    }

    /// The keys of a file with `params`; `None` if it has another passphrase.
    ///
    /// # Errors
    /// [`ProviderError::Unreachable`] if the system has too little memory.
    pub(super) fn unlock(
        passphrase: &[u8],
        params: &Params,
    ) -> Result<Option<Self>, ProviderError> {
        let [seal, mac, check] = derive(passphrase, &params.salt.0, params.cost())?;
        let fits: bool = check.expose().ct_eq(&params.check.0).into();
        Ok(fits.then(|| Self { params: params.clone(), seal, mac }))
    }

    /// `key` sealed as `version` of `name`.
    pub(super) fn seal(
        &self,
        name: &str,
        version: u32,
        key: &Secret,
    ) -> Result<Material, ProviderError> {
        let blob = wrap::seal(&self.seal, &binding(name, version), key)?;
        let text = "a sealed key has another length than this version reads";
        let blob = blob.try_into().map_err(|_| ProviderError::damaged(text))?;
        Ok(Material::Sealed(blob))
    }

    /// The key that was sealed as `version` of `name`.
    pub(super) fn open(
        &self,
        name: &str,
        version: u32,
        blob: &[u8; BLOB_LEN],
    ) -> Result<Option<Secret>, ProviderError> {
        wrap::open(&self.seal, &binding(name, version), blob)
    }

    /// HMAC-SHA-256 of `text`.
    pub(super) fn tag(&self, text: &[u8]) -> [u8; TAG_LEN] {
        let mut block = Zeroizing::new([0; 64]);
        // A short HMAC key is filled up with zeros to the hash's block (RFC 2104, section 2).
        block[..KEY_LEN].copy_from_slice(self.mac.expose());
        let mut mac = Hmac::<Sha256>::new((&*block).into());
        mac.update(text);
        mac.finalize().into_bytes().into()
    }
}

/// The seal key, the MAC key and the check.
fn derive(
    passphrase: &[u8],
    salt: &[u8; SALT_LEN],
    cost: Cost,
) -> Result<[Secret; 3], ProviderError> {
    let key = cost.derive(passphrase, salt)?;
    Ok([SEAL, MAC, CHECK].map(|label| hkdf::derive(&key, salt, &[label])))
}

/// The associated data of a sealed key. A name's length comes first, so that no name runs into a
/// version.
fn binding(name: &str, version: u32) -> Vec<u8> {
    [KEY, &[name.len() as u8], name.as_bytes(), &version.to_be_bytes()].concat()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, LazyLock};

    use argon2::{Algorithm, Argon2, Version};

    use super::*;
    use crate::provider::passphrase::hash;
    use crate::suite::tests::hex;

    pub(in super::super) const PASSPHRASE: &[u8] = b"correct horse";
    /// The least that a file may ask for.
    pub(in super::super) const CHEAP: Cost =
        Cost { memory_kib: 8 << 10, iterations: 1, parallelism: 1 };

    /// The keys of [`PASSPHRASE`], derived once.
    pub(in super::super) fn unlocked() -> Arc<Unlocked> {
        static UNLOCKED: LazyLock<Arc<Unlocked>> =
            LazyLock::new(|| Arc::new(Unlocked::create(PASSPHRASE, CHEAP).unwrap()));
        Arc::clone(&UNLOCKED)
    }

    /// RFC 9106, section 5.3.
    #[test]
    fn rfc_9106_vector() {
        let params = argon2::ParamsBuilder::new()
            .m_cost(32)
            .t_cost(3)
            .p_cost(4)
            .data(argon2::AssociatedData::new(&[4; 12]).unwrap())
            .output_len(32)
            .build()
            .unwrap();
        let argon2 =
            Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params).unwrap();
        let tag = hash(&argon2, &[1; 32], &[2; 16]).unwrap();
        let want = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659";
        assert_eq!(tag.expose().to_vec(), hex(want));
    }

    /// The reference implementation's own test: 64 MiB, 2 iterations, 1 lane.
    #[test]
    fn reference_vector() {
        let cost = Cost { memory_kib: 64 << 10, iterations: 2, parallelism: 1 };
        let key = cost.derive(b"password", b"somesalt").unwrap();
        let want = "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7";
        assert_eq!(key.expose().to_vec(), hex(want));
    }

    #[test]
    fn only_the_same_passphrase_salt_and_cost_fit() {
        let params = &unlocked().params;
        let salted = Params { salt: Text([7; SALT_LEN]), ..params.clone() };
        let dearer = Params { iterations: 2, ..params.clone() };
        let wider = Params { lanes: 2, ..params.clone() };
        for (what, passphrase, params, fits) in [
            ("the same", PASSPHRASE, params, true),
            ("another passphrase", b"correct horsf", params, false),
            ("a longer one", b"correct horse ", params, false),
            ("none", b"", params, false),
            ("another salt", PASSPHRASE, &salted, false),
            ("more iterations", PASSPHRASE, &dearer, false),
            ("more lanes", PASSPHRASE, &wider, false),
        ] {
            let found = Unlocked::unlock(passphrase, params).unwrap();
            assert_eq!(found.is_some(), fits, "{what}");
            let same = |found: &Unlocked| found.tag(b"text") == unlocked().tag(b"text");
            assert!(found.is_none_or(|found| same(&found)), "{what}");
        }
        let other = Unlocked::create(PASSPHRASE, CHEAP).unwrap();
        assert_ne!(other.params.salt, params.salt, "each file has its own salt");
        assert_ne!(other.tag(b"text"), unlocked().tag(b"text"));
    }

    #[test]
    fn a_cost_out_of_bounds_is_refused() {
        for (memory_kib, iterations, parallelism) in
            [(8191, 1, 1), ((1 << 20) + 1, 1, 1), (8192, 0, 1), (8192, 65, 1), (8192, 1, 17)]
        {
            let cost = Cost { memory_kib, iterations, parallelism };
            let refused = Unlocked::create(PASSPHRASE, cost).map(drop);
            assert!(matches!(refused, Err(ProviderError::Denied(_))), "{cost}: {refused:?}");
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!("{:?}", unlocked());
        assert!(text.contains("seal: Secret(..), mac: Secret(..)"), "{text}");
    }
}
