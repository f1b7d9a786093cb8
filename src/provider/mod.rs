//! The joint between the envelope and whatever holds protector keys.
//!
//! A provider wraps and unwraps; it never hands out its key, because an HSM cannot. What a provider
//! *name* means comes from the application or the user's configuration, never from a database file.
//! One file per provider stands beside this one.

#[cfg(unix)]
mod command;
pub mod conformance;
mod derived;
mod keystore;
mod passphrase;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod raw;
mod source;
mod wrap;

use std::path::PathBuf;

#[cfg(unix)]
pub use command::Command;
pub use keystore::{
    DEFAULT_KEY, KeyFormat, KeyInfo, KeyRules, KeyVersionInfo, Keystore, Operation, RECOVERY_DAYS,
};
pub use passphrase::{Cost, Passphrase};
pub(crate) use passphrase::{MEMORY_MAX_KIB, WORK_MAX_KIB};
#[cfg(feature = "pkcs11")]
pub use pkcs11::{Mechanism, Pkcs11, Token, TokenKey};
pub use raw::RawKey;
pub use source::{Descriptor, SecretSource};

use crate::secret::Secret;

/// The version of keys that have none: of all time the first.
const ONLY_VERSION: &str = "1";

/// What a wrapped key is bound to. Providers with associated data pass [`Context::encode`] as that;
/// for the others the envelope's own MAC binds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The database's 16-byte file id.
    pub file_id: [u8; 16],
    /// Which DEK of that database: its key version, counted from 1.
    pub dek_version: u32,
}

impl Context {
    /// Purpose label, then file id (16 bytes), then DEK version (4 bytes, big-endian).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        const PURPOSE: &[u8] = b"sqlite-tde v1 dek wrap";
        let mut bytes = PURPOSE.to_vec();
        bytes.extend_from_slice(&self.file_id);
        bytes.extend_from_slice(&self.dek_version.to_be_bytes());
        bytes
    }
}

/// A wrapped DEK, as it is kept in a protector record of the envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The version of the protector key that wrapped it, in the provider's own words.
    pub key_version: String,
    /// How it was wrapped, in the provider's own words.
    pub mechanism: String,
    /// The wrapped key, at most 2 KiB.
    pub blob: Vec<u8>,
}

/// What a provider's answer may have to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitsFor {
    /// Nothing but this machine's processor and files: calls are not timed.
    Nothing,
    /// A device, a network or another process: calls are timed, and tried again while unreachable.
    Service,
    /// A person: calls are neither timed nor tried again, and never made without somebody waiting.
    Person,
}

impl Wrapped {
    /// # Errors
    /// [`ProviderError::Damaged`] unless it was wrapped by `mechanism`.
    fn expect(&self, mechanism: &str) -> Result<(), ProviderError> {
        if self.mechanism == mechanism {
            return Ok(());
        }
        Err(ProviderError::Damaged(format!(
            "wrapped key of mechanism {:?}, where this provider reads {mechanism}: it is another \
             provider's, or from a newer version of sqlite-tde",
            self.mechanism
        )))
    }
}

/// Something that holds protector keys and wraps DEKs with them.
///
/// Calls may take as long as a network does; none is made on the page path.
pub trait KeyProvider: Send + Sync {
    /// What kind of provider it is, in a word or two; it is shown as a protector's encryptor type.
    fn kind(&self) -> &str {
        "custom"
    }

    /// What an answer may have to wait for. It decides on time-outs and on who is asked again.
    fn waits_for(&self) -> WaitsFor {
        WaitsFor::Service
    }

    /// Wraps `dek` under the newest enabled version of `key_id`, bound to `context`.
    ///
    /// # Errors
    /// A [`ProviderError`]; nothing has changed then.
    fn wrap(&self, key_id: &str, dek: &Secret, context: &Context)
    -> Result<Wrapped, ProviderError>;

    /// Undoes [`KeyProvider::wrap`] under the version that `wrapped` names.
    ///
    /// # Errors
    /// A [`ProviderError`]; [`ProviderError::WrongKey`] where key and blob do not belong together.
    fn unwrap(
        &self,
        key_id: &str,
        wrapped: &Wrapped,
        context: &Context,
    ) -> Result<Secret, ProviderError>;

    /// The newest enabled version of `key_id`.
    ///
    /// # Errors
    /// A [`ProviderError`].
    fn newest_version(&self, key_id: &str) -> Result<String, ProviderError>;

    /// What unwrapping `wrapped` costs before anything tells whether it is genuine: the memory and
    /// the time that a key derivation takes, as the blob asks for them. `None` where the blob has
    /// no say in it, or the derived key is at hand. A database decides on nothing dearer than
    /// [`AccessPolicy::derivation`](crate::AccessPolicy::derivation) allows.
    fn derivation(&self, key_id: &str, wrapped: &Wrapped) -> Option<Cost> {
        let _ = (key_id, wrapped);
        None
    }

    /// Wipes whatever the provider keeps in memory to save a later call some work, such as a key
    /// derived from a passphrase. It serves on, and asks again where it has to.
    fn forget(&self) {}
}

/// Why a provider did not do it. The kinds are kept apart because each asks for another remedy:
/// configure the key, restore access, wait, restore a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The provider works and has no such key.
    #[error("{0}")]
    NotHere(String),
    /// The key is there and its use is refused: disabled, revoked, forbidden.
    #[error("{0}")]
    Denied(String),
    /// The provider did not answer; it may later.
    #[error("{0}")]
    Unreachable(String),
    /// The provider's own data is damaged or of a format this version does not read.
    #[error("{0}")]
    Damaged(String),
    /// The provider's files can be read by others than their owner.
    #[error("{path} has mode {mode:03o}, which lets others read keys; expected {expected:03o}")]
    LoosePermissions {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The loosest that is accepted.
        expected: u32,
    },
    /// The key is there and does not unwrap this blob.
    #[error("{0}")]
    WrongKey(String),
}

impl ProviderError {
    /// The same with more to say.
    pub(crate) fn and(self, more: &str) -> Self {
        match self {
            Self::NotHere(text) => Self::NotHere(format!("{text}; {more}")),
            Self::Denied(text) => Self::Denied(format!("{text}; {more}")),
            Self::Unreachable(text) => Self::Unreachable(format!("{text}; {more}")),
            Self::Damaged(text) => Self::Damaged(format!("{text}; {more}")),
            Self::WrongKey(text) => Self::WrongKey(format!("{text}; {more}")),
            loose @ Self::LoosePermissions { .. } => loose,
        }
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../docs/providers.md")]
mod documentation {}
