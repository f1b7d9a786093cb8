//! The protector keys on a token: objects with one label are the versions of one key, told apart by
//! CKA_ID.
//!
//! The newest version is the one whose CKA_ID is the greatest number. CKA_START_DATE would not do:
//! it is a day, few tools set it, and the standard says that it means nothing to a token.

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::failure::Failure;
use super::session::{Call, is_gone};
use crate::provider::ProviderError;

/// AES keys of other lengths do not count.
pub(super) const AES_LEN: usize = 32;
/// Shorter RSA keys do not count: 2048 bits.
const RSA_MIN_LEN: usize = 256;
/// The name of a version with an empty CKA_ID.
const NO_ID: &str = "-";

/// The kind of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Algorithm {
    Rsa,
    Aes,
}

/// One version of a key, as it is found on a token.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) label: Vec<u8>,
    pub(super) id: Vec<u8>,
    pub(super) algorithm: Algorithm,
    /// The encrypting object: the secret key, or the public key if the token has it.
    pub(super) encrypts: Option<ObjectHandle>,
    /// The decrypting object: the secret key, or the private one.
    pub(super) decrypts: Option<ObjectHandle>,
    pub(super) extractable: bool,
}

impl Version {
    /// Its CKA_ID in hex, which a protector record keeps.
    pub(super) fn name(&self) -> String {
        match self.id.is_empty() {
            true => NO_ID.to_owned(),
            false => self.id.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// The encrypting and the decrypting object. A DEK wrapped under a key that could not unwrap it
    /// is lost, so both must be there.
    pub(super) fn both(&self) -> Option<(ObjectHandle, ObjectHandle)> {
        self.encrypts.zip(self.decrypts)
    }

    /// As a number: by length without leading zeros, then by bytes. Of one CKA_ID, AES comes last.
    fn order(&self) -> (usize, &[u8], usize, Algorithm) {
        let number = number(&self.id);
        (number.len(), number, self.id.len(), self.algorithm)
    }
}

fn number(id: &[u8]) -> &[u8] {
    let zeros = id.iter().take_while(|&&byte| byte == 0).count();
    &id[zeros..]
}

/// The CKA_ID that comes after `id`.
pub(super) fn next_id(id: &[u8]) -> Vec<u8> {
    let mut next = id.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return next;
        }
    }
    next.insert(0, 1);
    next
}

/// Every version of every key, or of the key `label`; oldest first.
pub(super) fn versions(session: &Session, label: Option<&str>) -> Result<Vec<Version>, Failure> {
    let class = |class, kind| {
        let mut template =
            vec![Attribute::Class(class), Attribute::KeyType(kind), Attribute::Token(true)];
        template.extend(label.map(|label| Attribute::Label(label.as_bytes().to_vec())));
        template
    };
    let mut versions = Vec::new();
    let mut aes = class(ObjectClass::SECRET_KEY, KeyType::AES);
    aes.push(Attribute::ValueLen(AES_LEN.try_into()?));
    for found in objects(session, &aes)? {
        versions.push(found.secret());
    }
    let public = objects(session, &class(ObjectClass::PUBLIC_KEY, KeyType::RSA))?;
    for found in objects(session, &class(ObjectClass::PRIVATE_KEY, KeyType::RSA))? {
        if found.modulus_len >= RSA_MIN_LEN {
            versions.push(found.private(&public));
        }
    }
    versions.sort_by(|a, b| a.order().cmp(&b.order()));
    Ok(versions)
}

/// The versions of a key, of which there is at least one.
///
/// # Errors
/// [`ProviderError::NotHere`] if there is none.
pub(super) fn some_versions(call: &Call, label: &str) -> Result<Vec<Version>, Failure> {
    let found = versions(&call.session, Some(label))?;
    if !found.is_empty() {
        return Ok(found);
    }
    call.is_in()?;
    Err(ProviderError::not_here(format!(
        "no AES-256 key and no RSA key pair of 2048 bits or more is labelled {label:?} on {}: \
         create it, as `pkcs11-tool --keygen --key-type AES:32 --label {label} --id 01` does",
        call.place
    ))
    .into())
}

/// The version that a protector record names.
///
/// # Errors
/// [`ProviderError::NotHere`] if it is missing, [`ProviderError::Damaged`] if it exists more than
/// once.
pub(super) fn version(
    call: &Call,
    label: &str,
    algorithm: Algorithm,
    name: &str,
) -> Result<Version, Failure> {
    let mut found = some_versions(call, label)?;
    found.retain(|version| version.algorithm == algorithm && version.name() == name);
    match (found.pop(), found.len()) {
        (Some(version), 0) => Ok(version),
        (Some(_), _) => Err(twins(call, label, name).into()),
        (None, _) => Err(ProviderError::not_here(format!(
            "no version {name} of key {label:?} on {}: bring back the object with that CKA_ID",
            call.place
        ))
        .into()),
    }
}

/// The newest version that may encrypt and decrypt.
///
/// # Errors
/// [`ProviderError::NotHere`] for an unknown key, [`ProviderError::Denied`] if no version of it may
/// do both, [`ProviderError::Damaged`] if it exists more than once.
pub(super) fn newest(call: &Call, label: &str) -> Result<Version, Failure> {
    let mut found = some_versions(call, label)?;
    found.retain(|version| version.both().is_some());
    let Some(newest) = found.pop() else {
        return Err(ProviderError::denied(format!(
            "no version of key {label:?} on {} may both encrypt and decrypt: set CKA_ENCRYPT and \
             CKA_DECRYPT, and for RSA put the public key beside the private one",
            call.place
        ))
        .into());
    };
    match found.last() {
        Some(other) if other.id == newest.id && other.algorithm == newest.algorithm => {
            Err(twins(call, label, &newest.name()).into())
        }
        _ => Ok(newest),
    }
}

fn twins(call: &Call, label: &str, name: &str) -> ProviderError {
    ProviderError::damaged(format!(
        "version {name} of key {label:?} is there more than once on {}: give each its own CKA_ID",
        call.place
    ))
}

/// The attributes read from an object.
struct Found {
    handle: ObjectHandle,
    label: Vec<u8>,
    id: Vec<u8>,
    encrypt: bool,
    decrypt: bool,
    extractable: bool,
    modulus_len: usize,
}

impl Found {
    fn secret(self) -> Version {
        let encrypts = self.encrypt.then_some(self.handle);
        self.version(Algorithm::Aes, encrypts)
    }

    fn private(self, public: &[Self]) -> Version {
        let pair = public.iter().find(|key| key.id == self.id && key.label == self.label);
        self.version(Algorithm::Rsa, pair.filter(|key| key.encrypt).map(|key| key.handle))
    }

    fn version(self, algorithm: Algorithm, encrypts: Option<ObjectHandle>) -> Version {
        let Self { handle, label, id, decrypt, extractable, .. } = self;
        let decrypts = decrypt.then_some(handle);
        Version { label, id, algorithm, encrypts, decrypts, extractable }
    }
}

fn objects(session: &Session, template: &[Attribute]) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for handle in session.find_objects(template)? {
        match look(session, handle) {
            Ok(object) => found.push(object),
            // Destroyed since it was found.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn look(session: &Session, handle: ObjectHandle) -> cryptoki::error::Result<Found> {
    const ASKED: [AttributeType; 6] = [
        AttributeType::Label,
        AttributeType::Id,
        AttributeType::Encrypt,
        AttributeType::Decrypt,
        AttributeType::Extractable,
        AttributeType::Modulus,
    ];
    let mut found = Found {
        handle,
        label: Vec::new(),
        id: Vec::new(),
        encrypt: false,
        decrypt: false,
        extractable: false,
        modulus_len: 0,
    };
    for attribute in session.get_attributes(handle, &ASKED)? {
        match attribute {
            Attribute::Label(label) => found.label = label,
            Attribute::Id(id) => found.id = id,
            Attribute::Encrypt(may) => found.encrypt = may,
            Attribute::Decrypt(may) => found.decrypt = may,
            Attribute::Extractable(may) => found.extractable = may,
            Attribute::Modulus(modulus) => found.modulus_len = number(&modulus).len(),
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_numbers() {
        let version = |id: &[u8], algorithm| Version {
            label: Vec::new(),
            id: id.to_vec(),
            algorithm,
            encrypts: None,
            decrypts: None,
            extractable: false,
        };
        let (aes, rsa) = (Algorithm::Aes, Algorithm::Rsa);
        let rows: [(&[u8], Algorithm, &str); 8] = [
            (b"", aes, "-"),
            (&[0], aes, "00"),
            (&[1], rsa, "01"),
            (&[1], aes, "01"),
            (&[0, 1], aes, "0001"),
            (&[9], aes, "09"),
            (&[0, 0xff], aes, "00ff"),
            (&[1, 0], aes, "0100"),
        ];
        for pair in rows.windows(2) {
            let [older, newer] = [0, 1].map(|at| version(pair[at].0, pair[at].1));
            assert!(older.order() < newer.order(), "{} and {}", pair[0].2, pair[1].2);
        }
        for (id, algorithm, name) in rows {
            assert_eq!(version(id, algorithm).name(), name);
        }
    }

    #[test]
    fn the_next_id_is_one_more() {
        let rows: [(&[u8], &[u8]); 6] = [
            (&[], &[1]),
            (&[1], &[2]),
            (&[0xff], &[1, 0]),
            (&[0, 0xff], &[1, 0]),
            (&[0, 9], &[0, 10]),
            (&[0xff, 0xff], &[1, 0, 0]),
        ];
        for (id, next) in rows {
            assert_eq!(next_id(id), next, "{id:?}");
        }
    }
}
