//! Making protector keys on a token. Keys made with a token's own tools work as well.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;

use super::Pkcs11;
use super::failure::Failure;
use super::keys::{self, AES_LEN, Algorithm, Version, next_id};
use super::session::Call;
use crate::error::{Error, Result};
use crate::provider::ProviderError;

/// Public properties of one version of a key on a token.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TokenKey {
    /// Its CKA_LABEL, which is the key's id.
    pub label: String,
    /// Its CKA_ID in hex.
    pub version: String,
    /// `aes-256` or `rsa`.
    pub algorithm: String,
    /// Whether it may wrap: it encrypts, and decrypts again.
    pub wraps: bool,
    /// Whether it may unwrap.
    pub unwraps: bool,
    /// Whether the token reveals it to a logged-in user. A protector key should not be extractable.
    pub extractable: bool,
}

impl Pkcs11 {
    /// Makes an AES-256 key on the token: it stays there, cannot be read, and encrypts and
    /// decrypts.
    ///
    /// It may not wrap or unwrap other keys. A key that may decrypt and wrap reveals every
    /// extractable key on the token to a logged-in user.
    ///
    /// # Errors
    /// [`Error::KeyExists`] if the token has a key of that label, and those of a [`ProviderError`].
    /// Nothing has changed then.
    pub fn create(&self, label: &str) -> Result<TokenKey> {
        match self.access.read(|call| keys::some_versions(call, label).map(drop)) {
            Err(ProviderError::NotHere(_)) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => return Err(Error::KeyExists { name: label.to_owned() }),
        }
        Ok(self.access.write(|call| self.generate(call, label, &[1]))?)
    }

    /// Adds a version to a key: an AES-256 key with the same label and the next CKA_ID, which wraps
    /// from then on. Older versions go on unwrapping, as long as they are on the token.
    ///
    /// # Errors
    /// [`Error::NoKey`] for an unknown key, and those of another [`ProviderError`]. Nothing has
    /// changed then.
    pub fn rotate(&self, label: &str) -> Result<TokenKey> {
        Ok(self.access.write(|call| {
            let versions = keys::some_versions(call, label)?;
            let newest = versions.last().map(|version| next_id(&version.id));
            self.generate(call, label, &newest.unwrap_or_default())
        })?)
    }

    /// Every version of every key on the token that could be a protector; those of a key in the
    /// order of their age.
    ///
    /// # Errors
    /// Those of a [`ProviderError`].
    pub fn list(&self) -> Result<Vec<TokenKey>> {
        let mut versions = self.access.read(|call| keys::versions(&call.session, None))?;
        versions.sort_by(|a, b| a.label.cmp(&b.label));
        Ok(versions.iter().map(shown).collect())
    }

    fn generate(
        &self,
        call: &Call,
        label: &str,
        id: &[u8],
    ) -> std::result::Result<TokenKey, Failure> {
        let template = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
            Attribute::ValueLen(AES_LEN.try_into()?),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
        ];
        let made = call.session.generate_key(&Mechanism::AesKeyGen, &template)?;
        let mut versions = keys::versions(&call.session, Some(label))?;
        versions.retain(|version| version.id == id && version.algorithm == Algorithm::Aes);
        let is_made = |version: &&Version| version.decrypts == Some(made);
        match versions.iter().find(is_made) {
            Some(version) if versions.len() == 1 => Ok(shown(version)),
            _ => {
                // A token has no lock for this, and two keys of one name would be unusable.
                call.session.destroy_object(made)?;
                Err(ProviderError::denied(format!(
                    "key {label:?} on {} was created concurrently; retry",
                    self.access
                ))
                .into())
            }
        }
    }
}

fn shown(version: &Version) -> TokenKey {
    let algorithm = match version.algorithm {
        Algorithm::Aes => "aes-256",
        Algorithm::Rsa => "rsa",
    };
    TokenKey {
        label: String::from_utf8_lossy(&version.label).into_owned(),
        version: version.name(),
        algorithm: algorithm.to_owned(),
        wraps: version.both().is_some(),
        unwraps: version.decrypts.is_some(),
        extractable: version.extractable,
    }
}
