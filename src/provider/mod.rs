//! The joint between the envelope and whatever holds protector keys.
//!
//! A provider wraps and unwraps; it never hands out its key, because an HSM cannot. What a provider
//! *name* means comes from the application or the user's configuration, never from a database file.
//! One file per provider stands beside this one.

#[cfg(unix)]
mod command;
pub mod conformance;
mod derived;
mod error;
mod keystore;
mod passphrase;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod pool;
mod raw;
mod registered;
mod request;
mod runs;
mod source;
mod wrap;

#[cfg(unix)]
pub use command::Command;
pub use error::{ProviderError, Reason};
pub use keystore::{
    DEFAULT_KEY, KeyFormat, KeyInfo, KeyRules, KeyVersionInfo, Keystore, Operation, RECOVERY_DAYS,
};
pub use passphrase::{Cost, Passphrase};
pub(crate) use passphrase::{MEMORY_MAX_KIB, WORK_MAX_KIB};
#[cfg(feature = "pkcs11")]
pub use pkcs11::{Mechanism, Pkcs11, Token, TokenKey};
pub use raw::RawKey;
pub(crate) use registered::{Call, Registered};
pub use request::{
    Answer, Context, Deadline, RequestId, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
};
pub use source::{Descriptor, SecretSource};

use self::runs::{Ours, Runs};
use crate::secret::Secret;

/// The version of keys that have none: of all time the first.
const ONLY_VERSION: &str = "1";

/// What a provider's answer may have to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitsFor {
    /// Nothing but this machine's processor and files: a call that fails is not made again.
    Nothing,
    /// A device, a network or another process: calls are made again while it is unreachable.
    Service,
    /// A person: calls have no deadline, are not made again, and never without somebody waiting.
    Person,
}

/// Something that holds protector keys and wraps DEKs with them.
///
/// Calls may take as long as a network does; none is made on the page path. They come from threads
/// of this library, several at once, never from one that is inside SQLite, and so do those of
/// `derivation`, `forget` and `drop`. Such a thread blocks all signals. Until its deadline the call
/// is waited for; a later answer is dropped. A provider that does not return keeps its thread, and
/// where eight calls have not returned, the others fail at once. A panic is an error that names the
/// provider. What a provider needs of SQLite it opens for itself: the connection that waits for it
/// is in use.
pub trait KeyProvider: Send + Sync {
    /// What kind of provider it is, in a word or two; it is shown as a protector's encryptor type.
    /// Asked once, when it is registered.
    fn kind(&self) -> &str {
        "custom"
    }

    /// What an answer may have to wait for. It decides on deadlines and on who is asked again.
    /// Asked once, when it is registered.
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
    /// A [`ProviderError`]; [`ProviderError::WrongKey`] where key and blob do not belong together.
    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError>;

    /// The newest enabled version of the key.
    ///
    /// # Errors
    /// A [`ProviderError`].
    fn newest_version(&self, request: &VersionRequest<'_>)
    -> Result<Answer<String>, ProviderError>;

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

    /// Where its methods may run: not for others to say.
    #[doc(hidden)]
    fn runs(&self, _: Ours) -> Runs {
        Runs::Apart
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../docs/providers.md")]
mod documentation {}
