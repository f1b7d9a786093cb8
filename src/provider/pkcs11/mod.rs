//! Protector keys on a token that speaks PKCS#11: a hardware security module, a smart card, or one
//! in software such as SoftHSM2. Keys never leave it; it encrypts and decrypts DEKs.
//!
//! ```no_run
//! use std::sync::Arc;
//! use sqlite_tde::Options;
//! use sqlite_tde::provider::{Pkcs11, SecretSource, Token};
//!
//! let hsm = Pkcs11::new(
//!     "/usr/lib/softhsm/libsofthsm2.so",
//!     Token::Label("tde".into()),
//!     SecretSource::File("/run/credentials/app/pin".into()),
//! );
//! sqlite_tde::register(
//!     Options::new().provider("hsm", Arc::new(hsm)).default_protector("hsm:payroll"),
//! )?;
//! # Ok::<(), sqlite_tde::Error>(())
//! ```
//!
//! `module` loads libraries and logs in, `session` finds the token, `keys` the key; `mechanism`
//! wraps, `blob` is the record's format, `failure` interprets a token's errors, `admin` makes keys.

mod admin;
mod blob;
mod failure;
mod keys;
mod mechanism;
mod module;
mod session;
mod table;

use std::fmt;
use std::path::PathBuf;

pub use admin::TokenKey;
pub use mechanism::Mechanism;
pub use table::Pkcs11Table;

use self::blob::Binding;
use self::failure::{Cause, Failure, cause, words};
use self::keys::Version;
use self::session::{Access, Call};
use super::runs::{Ours, Runs};
use super::{
    Answer, Context, KeyProvider, ProviderError, SecretSource, UnwrapRequest, VersionRequest,
    WaitsFor, WrapRequest, Wrapped, random,
};
use crate::secret::Secret;

/// One of a module's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// The one with this label.
    Label(String),
    /// The one in the slot of this number. For modules whose tokens cannot be told apart by label.
    Slot(u64),
}

/// A token that holds protector keys. A key's id is the label of its objects.
///
/// The module is loaded, and the login made, at the first use.
pub struct Pkcs11 {
    access: Access,
    mechanisms: Vec<Mechanism>,
}

impl Pkcs11 {
    /// The token `token` of the library `module_path`, entered with `pin`.
    ///
    /// The PIN is read when the process first logs in, and at each later login: after a fork, or
    /// after the token was away.
    #[must_use]
    pub fn new(module_path: impl Into<PathBuf>, token: Token, pin: SecretSource) -> Self {
        let mechanisms = vec![Mechanism::AesGcm, Mechanism::AesKeyWrap, Mechanism::RsaOaepSha256];
        Self { access: Access::new(module_path.into(), token, pin), mechanisms }
    }

    /// The mechanisms to wrap with, the preferred one first, instead of `aes-gcm`, `aes-key-wrap`,
    /// `rsa-oaep-sha256`. A DEK is always unwrapped by the mechanism that wrapped it.
    #[must_use]
    pub fn mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        self.mechanisms = mechanisms.to_vec();
        self
    }

    /// Declares that this process uses the module only through this crate. A token that went away
    /// is then looked for by finalizing the module and initialising it again, which some modules
    /// need to find it once it is back: SoftHSM2 is one. Not so by default, since it would pull the
    /// module from under another user's feet.
    #[must_use]
    pub fn only_user(mut self, is_only_user: bool) -> Self {
        self.access.set_only_ours(is_only_user);
        self
    }

    /// The mechanisms to try with a version of a key: those that the token claims to have.
    fn offered(&self, call: &Call, version: &Version) -> Result<Vec<Mechanism>, Failure> {
        let library = call.module.library()?;
        let listed = library.get_mechanism_list(call.slot)?;
        let serves = |mechanism: &Mechanism| {
            let info = library.get_mechanism_info(call.slot, mechanism.kind());
            mechanism.algorithm() == version.algorithm
                && listed.contains(&mechanism.kind())
                // A mechanism without stated uses is tried.
                && info.map_or(true, |info| info.encrypt() && info.decrypt())
        };
        Ok(self.mechanisms.iter().copied().filter(serves).collect())
    }

    /// Wraps with the first mechanism that the token really has.
    fn wrap_in(
        &self,
        call: &Call,
        key_id: &str,
        dek: &Secret,
        context: &Context,
    ) -> Result<Wrapped, Failure> {
        let version = keys::newest(call, key_id)?;
        let key_version = version.name();
        let mut said = String::from("the token has none of the mechanisms that are allowed");
        for mechanism in self.offered(call, &version)? {
            match seal(call, &version, mechanism, dek, &context.encode()) {
                Ok(sealed) => {
                    let binding = Binding { mechanism, key_id, key_version: &key_version, context };
                    let blob = binding.close(dek, sealed);
                    let mechanism = mechanism.name().to_owned();
                    return Ok(Wrapped { key_version, mechanism, blob });
                }
                Err(Failure::Token(error)) if cause(&error) == Cause::NotOffered => {
                    said = format!("{}: {}", mechanism.name(), words(&error));
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(ProviderError::denied(format!(
            "key {key_id:?} on {} cannot wrap: {said}. Allow another mechanism, or use an AES key",
            self.access
        ))
        .into())
    }

    fn unwrap_in(
        &self,
        call: &Call,
        key_id: &str,
        mechanism: Mechanism,
        wrapped: &Wrapped,
        context: &Context,
    ) -> Result<Secret, Failure> {
        let Wrapped { key_version, blob, .. } = wrapped;
        let version = keys::version(call, key_id, mechanism.algorithm(), key_version)?;
        if version.decrypts.is_none() {
            return Err(ProviderError::denied(format!(
                "version {key_version} of key {key_id:?} on {} is disabled: CKA_DECRYPT is false",
                self.access
            ))
            .into());
        }
        let binding = Binding { mechanism, key_id, key_version, context };
        let dek = match blob::split(blob) {
            Some((sealed, check)) => open(call, &version, mechanism, sealed, &context.encode())?
                .filter(|dek| binding.fits(dek, sealed, check)),
            None => None,
        };
        dek.ok_or_else(|| {
            ProviderError::wrong_key(format!(
                "version {key_version} of key {key_id:?} on {} did not wrap this database's key",
                self.access
            ))
            .into()
        })
    }
}

/// `dek` sealed by the token, and opened again: a DEK that the token cannot unwrap would be lost.
fn seal(
    call: &Call,
    version: &Version,
    mechanism: Mechanism,
    dek: &Secret,
    aad: &[u8],
) -> Result<Vec<u8>, Failure> {
    let nonce = random()?;
    let Some((encrypts, decrypts)) = version.both() else {
        let text = format!("version {} has only one half of a key", version.name());
        return Err(ProviderError::denied(text).into());
    };
    let sealed = mechanism.encrypt(&call.session, encrypts, dek, aad, nonce)?;
    match mechanism.decrypt(&call.session, decrypts, &sealed, aad) {
        Ok(Some(opened)) if is_same(&opened, dek) => Ok(sealed),
        Err(error) if cause(&error) != Cause::Blob => Err(error.into()),
        _ => Err(ProviderError::denied(format!(
            "version {} does not decrypt what it encrypted: are its objects of one key?",
            version.name()
        ))
        .into()),
    }
}

fn is_same(a: &Secret, b: &Secret) -> bool {
    subtle::ConstantTimeEq::ct_eq(a.expose().as_slice(), b.expose()).into()
}

/// The token's plaintext; `None` if `sealed` is not of this key.
///
/// Codes do not tell a changed blob from a token in trouble: SoftHSM2 answers CKR_GENERAL_ERROR for
/// other associated data, and others CKR_DEVICE_ERROR. Either confusion is harmful: a database
/// would be given up for an outage, or waited for in vain. So the token is asked to wrap and unwrap
/// a random value with the same key and mechanism. If that works, and the blob fails again after
/// it, then it is the blob.
fn open(
    call: &Call,
    version: &Version,
    mechanism: Mechanism,
    sealed: &[u8],
    aad: &[u8],
) -> Result<Option<Secret>, Failure> {
    let Some(key) = version.decrypts else { return Ok(None) };
    let decrypt = || mechanism.decrypt(&call.session, key, sealed, aad);
    let first = match decrypt() {
        Ok(dek) => return Ok(dek),
        Err(error) => error,
    };
    match cause(&first) {
        Cause::Blob => Ok(None),
        Cause::Unclear => {
            let probe =
                Secret::random().map_err(|error| ProviderError::unreachable(error.to_string()))?;
            if seal(call, version, mechanism, &probe, aad).is_err() {
                return Err(first.into());
            }
            match decrypt() {
                Err(error) if matches!(cause(&error), Cause::Blob | Cause::Unclear) => Ok(None),
                result => Ok(result?),
            }
        }
        Cause::Refused | Cause::NotOffered | Cause::Lost => Err(first.into()),
    }
}

impl KeyProvider for Pkcs11 {
    fn kind(&self) -> &str {
        "pkcs11"
    }

    /// A token is a device, even a token in software; a prompt for its PIN is a person.
    fn waits_for(&self) -> WaitsFor {
        match self.access.waits_for() {
            WaitsFor::Nothing => WaitsFor::Service,
            other => other,
        }
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { key_id, dek, context, .. } = *request;
        self.access.read(|call| self.wrap_in(call, key_id, dek, context)).map(Answer::from)
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { key_id, wrapped, context, .. } = *request;
        let Some(mechanism) = Mechanism::from_name(&wrapped.mechanism) else {
            return Err(ProviderError::damaged(format!(
                "wrapped key of mechanism {:?}: it is none of those that are used with tokens",
                wrapped.mechanism
            )));
        };
        let unwrap = |call: &Call| self.unwrap_in(call, key_id, mechanism, wrapped, context);
        self.access.read(unwrap).map(Answer::from)
    }

    fn newest_version(
        &self,
        request: &VersionRequest<'_>,
    ) -> Result<Answer<String>, ProviderError> {
        let newest = |call: &Call| Ok(keys::newest(call, request.key_id)?.name());
        self.access.read(newest).map(Answer::from)
    }

    /// Logs out; the next use reads the PIN again. A refused PIN stays recorded.
    fn forget(&self) {
        self.access.leave();
    }

    fn runs(&self, _: Ours) -> Runs {
        Runs::CallsApart
    }
}

impl fmt::Debug for Pkcs11 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pkcs11({})", self.access)
    }
}
