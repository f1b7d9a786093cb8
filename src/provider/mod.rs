//! The interface between the envelope and the holders of protector keys.
//!
//! A provider wraps and unwraps; it never hands out its key, because an HSM cannot. The meaning of
//! a provider *name* comes from the application or the user's configuration, never from a database
//! file.
//!
//! | provider | where the protector key is |
//! |---|---|
//! | [`Keystore`] | in a file of the user's, with versions and rules; the default |
//! | [`Passphrase`] | derived from a passphrase |
//! | [`RawKey`] | 256 bits that the application has |
//! | `Command` | behind a command that wraps and unwraps, such as `age` or a cloud's tool (Unix) |
//! | `Pkcs11` | on a token (feature `pkcs11`) |
//! | your own | behind a [`KeyProvider`], which [`conformance`] tests |

#[cfg(unix)]
mod command;
pub mod conformance;
mod derived;
mod keystore;
mod passphrase;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod raw;
mod registered;
pub(crate) mod registry;
mod request;
mod runs;
mod source;
mod wrap;

pub use crate::error::provider::{ProviderError, Reason};
pub use crate::process::Deadline;
#[cfg(unix)]
pub use command::Command;
pub use keystore::{
    DEFAULT_KEY, KeyFormat, KeyInfo, KeyRules, KeyVersionInfo, Keystore, KeystoreTable, Operation,
    RECOVERY_DAYS,
};
pub use passphrase::{Cost, Passphrase, PassphraseTable};
pub(crate) use passphrase::{MEMORY_MAX_KIB, WORK_MAX_KIB};
#[cfg(feature = "pkcs11")]
pub use pkcs11::{Mechanism, Pkcs11, Pkcs11Table, Token, TokenKey};
pub use raw::{RawKey, RawKeyTable};
pub(crate) use registered::{Call, Registered};
pub use request::{
    Answer, Context, RequestId, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
};
pub(crate) use source::origin_of;
pub use source::{Ask, Descriptor, SecretSource, Source};

use self::runs::{Ours, Runs};
use crate::secret::{Secret, fill_random};

/// The version of keys without versions: always the first.
const ONLY_VERSION: &str = "1";

/// Random bytes, such as a nonce or a salt.
fn random<const N: usize>() -> Result<[u8; N], ProviderError> {
    let mut bytes = [0; N];
    fill_random(&mut bytes).map_err(|error| ProviderError::unreachable(error.to_string()))?;
    Ok(bytes)
}

/// Whether `text` can be the name of a provider or of a key in the keystore: 1 to 64 of
/// `[A-Za-z0-9._-]`.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// The kind of wait for a provider's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitsFor {
    /// Nothing but this machine's processor and files: a failed call is not repeated.
    Nothing,
    /// A device, a network or another process: calls are repeated while it is unreachable.
    Service,
    /// A person: calls have no deadline, are not repeated, and are made only while a caller waits.
    Person,
}

/// A holder of protector keys that wraps DEKs with them.
///
/// Calls may take as long as a network does; none is made on the page path. They come from threads
/// of this library, several at once, never from one that is inside SQLite, and so do those of
/// `derivation`, `forget` and `drop`. Such a thread blocks all signals. Until its deadline the call
/// is waited for; a later answer is dropped. A provider that does not return keeps its thread, and
/// where eight calls have not returned, the others fail at once. A panic is an error that names the
/// provider. A provider that uses SQLite opens its own connection: the one that waits for it is in
/// use.
pub trait KeyProvider: Send + Sync {
    /// The kind of the provider, in a word or two; shown as a protector's encryptor type. Asked
    /// once, when it is registered.
    fn kind(&self) -> &str {
        "custom"
    }

    /// The kind of wait for an answer. It determines deadlines and repeated calls. Asked once, when
    /// it is registered.
    fn waits_for(&self) -> WaitsFor {
        WaitsFor::Service
    }

    /// Wraps a DEK under the newest enabled version of the key, bound to the context.
    ///
    /// # Errors
    /// A [`ProviderError`]; nothing has changed then.
    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError>;

    /// Undoes [`KeyProvider::wrap`] under the version that the wrapped key names.
    ///
    /// # Errors
    /// A [`ProviderError`]; [`ProviderError::WrongKey`] if key and blob do not match.
    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError>;

    /// The newest enabled version of the key.
    ///
    /// # Errors
    /// A [`ProviderError`].
    fn newest_version(&self, request: &VersionRequest<'_>)
    -> Result<Answer<String>, ProviderError>;

    /// The cost of unwrapping `wrapped` before it is authenticated: memory and time of the key
    /// derivation that the blob asks for. `None` if the blob does not determine the cost, or if the
    /// derived key is cached. A database accepts no more than
    /// [`AccessPolicy::derivation`](crate::AccessPolicy::derivation) allows.
    fn derivation(&self, key_id: &str, wrapped: &Wrapped) -> Option<Cost> {
        let _ = (key_id, wrapped);
        None
    }

    /// Wipes the provider's caches, such as a key derived from a passphrase. Later calls work, and
    /// ask again if they must.
    fn forget(&self) {}

    /// The thread for its methods; only this crate can override it.
    #[doc(hidden)]
    fn runs(&self, _: Ours) -> Runs {
        Runs::Apart
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../docs/providers.md")]
mod documentation {}
