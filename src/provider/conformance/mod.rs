//! The contract of a [`KeyProvider`], as a test suite for any provider.
//!
//! ```
//! # use sqlite_tde::provider::Keystore;
//! use sqlite_tde::provider::conformance::{Conformance, assert_conforms};
//!
//! # let home = tempfile::tempdir()?;
//! # let keystore = Keystore::at(home.path().join("keys"));
//! # keystore.create("app")?;
//! assert_conforms(
//!     Conformance::of(&keystore, "app")
//!         .missing_key("nobody")
//!         .rotate(|| drop(keystore.rotate("app").unwrap())),
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It wraps random keys of its own and touches no database. A check without its prerequisite, such
//! as a way to disable the key, is reported as not run. Do not use a key whose use costs money or
//! counts failures: the suite makes some hundred calls, most of which are refused.

mod checks;

use std::fmt;

use zeroize::Zeroizing;

use super::{
    Context, KeyProvider, ProviderError, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
};
use crate::secret::Secret;

/// Calls a provider as tests do: on the caller's thread, without a deadline, for the answer alone.
pub trait Direct: KeyProvider {
    /// [`KeyProvider::wrap`].
    ///
    /// # Errors
    /// The provider's.
    fn wrap_key(
        &self,
        key_id: &str,
        dek: &Secret,
        context: &Context,
    ) -> Result<Wrapped, ProviderError> {
        self.wrap(&WrapRequest::new(key_id, dek, context)).map(|answer| answer.value)
    }

    /// [`KeyProvider::unwrap`].
    ///
    /// # Errors
    /// The provider's.
    fn unwrap_key(
        &self,
        key_id: &str,
        wrapped: &Wrapped,
        context: &Context,
    ) -> Result<Secret, ProviderError> {
        self.unwrap(&UnwrapRequest::new(key_id, wrapped, context)).map(|answer| answer.value)
    }

    /// [`KeyProvider::newest_version`].
    ///
    /// # Errors
    /// The provider's.
    fn newest_of(&self, key_id: &str) -> Result<String, ProviderError> {
        self.newest_version(&VersionRequest::new(key_id)).map(|answer| answer.value)
    }
}

impl<P: KeyProvider + ?Sized> Direct for P {}

/// Changes the outside world between two checks.
type Hook<'a> = Box<dyn Fn() + 'a>;

/// A provider, one of its working keys, and optional hooks and properties.
#[must_use]
pub struct Conformance<'a> {
    provider: &'a dyn KeyProvider,
    key_id: String,
    missing_key: Option<String>,
    other_key: Option<String>,
    rotate: Option<Hook<'a>>,
    switch: Option<[Hook<'a>; 2]>,
    outage: Option<[Hook<'a>; 2]>,
    secrets: Vec<Zeroizing<Vec<u8>>>,
    envelope_binds: bool,
    malleable: bool,
    vague: bool,
    deterministic: bool,
}

impl fmt::Debug for Conformance<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conformance").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl<'a> Conformance<'a> {
    /// `key_id` must wrap and unwrap.
    pub fn of(provider: &'a dyn KeyProvider, key_id: &str) -> Self {
        Self {
            provider,
            key_id: key_id.to_owned(),
            missing_key: None,
            other_key: None,
            rotate: None,
            switch: None,
            outage: None,
            secrets: Vec::new(),
            envelope_binds: false,
            malleable: false,
            vague: false,
            deterministic: false,
        }
    }

    /// The id of a key that does not exist.
    pub fn missing_key(self, key_id: &str) -> Self {
        Self { missing_key: Some(key_id.to_owned()), ..self }
    }

    /// The id of another key, which exists.
    pub fn other_key(self, key_id: &str) -> Self {
        Self { other_key: Some(key_id.to_owned()), ..self }
    }

    /// Gives the key a newer version.
    pub fn rotate(self, rotate: impl Fn() + 'a) -> Self {
        Self { rotate: Some(Box::new(rotate)), ..self }
    }

    /// Forbids the use of the key, and allows it again.
    pub fn switch(self, disable: impl Fn() + 'a, enable: impl Fn() + 'a) -> Self {
        Self { switch: Some([Box::new(disable), Box::new(enable)]), ..self }
    }

    /// Takes the provider out of reach, and brings it back.
    pub fn outage(self, cut: impl Fn() + 'a, restore: impl Fn() + 'a) -> Self {
        Self { outage: Some([Box::new(cut), Box::new(restore)]), ..self }
    }

    /// A passphrase, PIN, token or key that no error may show, besides the wrapped keys.
    pub fn secret(mut self, secret: &[u8]) -> Self {
        self.secrets.push(Zeroizing::new(secret.to_vec()));
        self
    }

    /// The provider has no associated data: only the envelope's MAC binds context, key id and key
    /// version. With others it may unwrap, but never to another key.
    pub fn envelope_binds(self) -> Self {
        Self { envelope_binds: true, ..self }
    }

    /// The blob has bytes that mean nothing, as line ends in base64: it may be unwrapped when it
    /// was altered or cut, but never to another key. The envelope's MAC covers the blob, too.
    pub fn malleable(self) -> Self {
        Self { malleable: true, ..self }
    }

    /// The mechanism refuses a blob without a reason, so any kind of error is accepted there.
    pub fn vague(self) -> Self {
        Self { vague: true, ..self }
    }

    /// The mechanism wraps one key twice to the same blob, as AES key wrap does.
    pub fn deterministic(self) -> Self {
        Self { deterministic: true, ..self }
    }

    /// Runs every check, also after one has failed.
    pub fn run(&self) -> Report {
        Report { checks: checks::run(self) }
    }
}

/// Results of a suite.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct Report {
    /// One entry for each check, in the order of running.
    pub checks: Vec<Check>,
}

/// One check of the suite.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Check {
    /// The requirement, in a few words.
    pub name: &'static str,
    /// The outcome.
    pub outcome: Outcome,
}

/// Outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The provider meets the requirement.
    Passed,
    /// The provider fails the requirement; with its behaviour.
    Failed(String),
    /// The suite lacks a prerequisite, named here.
    NotRun(&'static str),
}

impl Report {
    /// Whether no check failed.
    #[must_use]
    pub fn conforms(&self) -> bool {
        !self.checks.iter().any(|check| matches!(check.outcome, Outcome::Failed(_)))
    }
}

/// One line for each check.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { name, outcome } in &self.checks {
            match outcome {
                Outcome::Passed => writeln!(f, "passed   {name}")?,
                Outcome::Failed(words) => writeln!(f, "FAILED   {name}: {words}")?,
                Outcome::NotRun(need) => writeln!(f, "not run  {name}: needs {need}")?,
            }
        }
        Ok(())
    }
}

/// Runs the suite, for tests. Returns the report, which lists the checks that were not run.
///
/// # Panics
/// With the report, if a check failed.
#[allow(clippy::needless_pass_by_value)] // it reads as one sentence in a test
pub fn assert_conforms(conformance: Conformance<'_>) -> Report {
    let report = conformance.run();
    assert!(report.conforms(), "provider {}:\n{report}", conformance.provider.kind());
    report
}

#[cfg(test)]
mod tests;
