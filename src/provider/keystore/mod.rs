//! The embedded key provider: versioned 256-bit keys in a local file, for use without a key
//! service.
//!
//! The file is `keystore.json` in `$SQLITE_TDE_HOME`, or else in `sqlite-tde` under the platform's
//! data directory. It protects a database whose files travel without it: backups, disks, copies.
//! Without a passphrase it holds its keys in the clear, protected only by its permissions, which
//! are checked at each use. With one it is as strong as the passphrase.
//!
//! `store`: content; `format`: text; `file`: the file on disk; `passphrase`: sealing; `manage`:
//! changes; `exchange`: import and export.

mod exchange;
mod file;
mod format;
mod info;
mod manage;
mod material;
mod passphrase;
mod store;
mod table;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zeroize::Zeroizing;

pub use self::exchange::KeyFormat;
use self::format::Unverified;
pub use self::info::{KeyInfo, KeyRules, KeyVersionInfo, Operation};
pub use self::manage::RECOVERY_DAYS;
use self::passphrase::{Params, Unlocked};
use self::store::{Store, StoredVersion};
pub use self::table::KeystoreTable;
use super::derived::Derived;
use super::runs::{Ours, Runs};
use super::wrap::{self, MECHANISM};
use super::{
    Answer, Cost, Deadline, KeyProvider, ProviderError, SecretSource, UnwrapRequest,
    VersionRequest, WaitsFor, WrapRequest, Wrapped,
};
use crate::error::{Error, Result};
use crate::process;
use crate::process::time::now;
use crate::secret::Secret;

/// The service-managed key: the one that [`Keystore`] creates by itself when it first wraps.
pub const DEFAULT_KEY: &str = "default";

const HOME_VARIABLE: &str = "SQLITE_TDE_HOME";
const FILE_VARIABLE: &str = "SQLITE_TDE_KEYSTORE_PASSPHRASE_FILE";
const DESCRIPTOR_VARIABLE: &str = "SQLITE_TDE_KEYSTORE_PASSPHRASE_FD";

/// The name of the secret in a prompt.
const PASSPHRASE: &str = "passphrase of the keystore";

/// A directory with a keystore file, which need not be there yet.
///
/// Any number of processes and threads may use one directory at once. Each call reads the file;
/// between calls only the keys derived from a passphrase stay in memory; this value and its clones
/// share them. Reading never creates anything.
#[derive(Debug, Clone)]
pub struct Keystore {
    dir: PathBuf,
    source: Option<SecretSource>,
    cost: Cost,
    unlocked: Arc<Derived<Params, Unlocked>>,
    /// Whether the file was there once.
    seen: Arc<AtomicBool>,
}

impl Keystore {
    /// The keystore in `$SQLITE_TDE_HOME`, or where that is unset or empty, in `sqlite-tde` under
    /// the platform's data directory. A relative path is taken as by [`Keystore::at`]. Its
    /// passphrase is read from the file that `$SQLITE_TDE_KEYSTORE_PASSPHRASE_FILE` names, or from
    /// the open descriptor whose number is in `$SQLITE_TDE_KEYSTORE_PASSPHRASE_FD`, if one of them
    /// is set. Creates and reads nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] if the variable is unset and the user has no home directory, and for a
    /// descriptor that is no number.
    pub fn open_default() -> Result<Self> {
        process::read_environment();
        let variable = |name| process::variable(name).filter(|value| !value.is_empty());
        let keystore = Self::home(variable(HOME_VARIABLE))?;
        let source = source(variable(FILE_VARIABLE), variable(DESCRIPTOR_VARIABLE))?;
        Ok(Self { source, ..keystore })
    }

    fn home(variable: Option<OsString>) -> Result<Self> {
        if let Some(dir) = variable.filter(|dir| !dir.is_empty()) {
            return Ok(Self::at(dir));
        }
        process::data_dir().map(Self::at).map_err(|error| {
            Error::Usage(format!("no place for a keystore ({error}): set {HOME_VARIABLE}"))
        })
    }

    /// The keystore in `dir`. Creates nothing; a relative path is taken from the directory in
    /// which the process first used the library.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let dir = process::absolute(&dir.into());
        let (unlocked, seen) = (Arc::default(), Arc::default());
        Self { dir, source: None, cost: Cost::default(), unlocked, seen }
    }

    /// Reads the passphrase from `source` when it is first needed, and again when it has changed. A
    /// missing keystore is created under it; one without a passphrase is refused, since an attacker
    /// could have planted it with keys of his choice.
    #[must_use]
    pub fn passphrase(self, source: SecretSource) -> Self {
        Self { source: Some(source), unlocked: Arc::default(), ..self }
    }

    /// The derivation cost of passphrases set from now on: 8 MiB to 1 GiB, 1 to 64 iterations, 1 to
    /// 16 lanes, and memory times iterations up to 4 GiB.
    #[must_use]
    pub fn cost(self, cost: Cost) -> Self {
        Self { cost, ..self }
    }

    /// The file that holds the keys.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        file::path(&self.dir)
    }

    /// What tells this keystore from another.
    pub(crate) fn origin(&self) -> String {
        let mut text = format!("the keystore {}", self.path().display());
        if let Some(source) = &self.source {
            text.push_str(&format!(", its passphrase from {}", source.origin()));
        }
        if self.cost != Cost::default() {
            text.push_str(&format!(", new passphrases of cost {}", self.cost));
        }
        text
    }

    /// Whether the file is there and has a passphrase, which need not be given for that. Nothing
    /// vouches for the answer.
    ///
    /// # Errors
    /// [`Error::LoosePermissions`], [`Error::ProviderDamaged`], [`Error::ProviderUnreachable`].
    pub fn has_passphrase(&self) -> Result<bool> {
        Ok(self.decode_file()?.is_some_and(|(_, found)| found.passphrase().is_some()))
    }

    /// Whether the file has a passphrase that this value has no source for.
    ///
    /// # Errors
    /// As [`Keystore::has_passphrase`].
    pub fn needs_passphrase(&self) -> Result<bool> {
        Ok(self.source.is_none() && self.has_passphrase()?)
    }

    /// The keys, in the order in which they were created; none without a file.
    ///
    /// # Errors
    /// [`Error::LoosePermissions`], [`Error::ProviderDamaged`], [`Error::ProviderUnreachable`];
    /// [`Error::NoKey`] if the passphrase is missing, [`Error::WrongKey`] if it is wrong.
    pub fn list(&self) -> Result<Vec<KeyInfo>> {
        let store = self.load()?.unwrap_or_default();
        Ok(store.keys.iter().map(store::StoredKey::info).collect())
    }

    /// The file as it is; its MAC is not checked.
    fn decode_file(&self) -> Result<Option<(Zeroizing<Vec<u8>>, Unverified)>, ProviderError> {
        let Some(text) = file::read(&self.dir)? else { return Ok(None) };
        self.seen.store(true, Ordering::Relaxed);
        let found = format::decode(&self.path(), &text)?;
        Ok(Some((text, found)))
    }

    /// The current content of the keystore; `None` before its creation.
    fn load(&self) -> Result<Option<Store>, ProviderError> {
        let Some((text, found)) = self.decode_file()? else { return Ok(None) };
        let unlocked = match found.passphrase() {
            Some(params) => Some(self.unlock(params)?),
            None if self.source.is_some() => return Err(self.unprotected()),
            None => None,
        };
        let mut store = found.verify(&self.path(), &text, unlocked)?;
        store.purge(now());
        Ok(Some(store))
    }

    /// The keys of a file with a passphrase, derived once.
    fn unlock(&self, params: &Params) -> Result<Arc<Unlocked>, ProviderError> {
        self.unlocked.get(params, || {
            let source = self.source.as_ref().ok_or_else(|| self.no_passphrase())?;
            let unlocked = Unlocked::unlock(&source.read(PASSPHRASE)?, params)?;
            unlocked.ok_or_else(|| self.wrong_passphrase(source))
        })
    }

    fn remember(&self, unlocked: Option<Arc<Unlocked>>) {
        match unlocked {
            Some(unlocked) => self.unlocked.keep(unlocked.params.clone(), unlocked),
            None => self.unlocked.forget(),
        }
    }

    /// Creates [`DEFAULT_KEY`] unless it is there.
    fn ensure_default(&self, deadline: Deadline) -> Result<(), ProviderError> {
        if self.load()?.is_some_and(|store| store.find(DEFAULT_KEY).is_some()) {
            return Ok(());
        }
        let key = Secret::random().map_err(not_done)?;
        self.update(deadline, |store| {
            // Another process may have been faster.
            if store.find(DEFAULT_KEY).is_none() {
                store.add(DEFAULT_KEY, key, now())?;
            }
            Ok(())
        })
    }

    fn read(&self) -> Result<Store, ProviderError> {
        self.load()?.ok_or_else(|| {
            let path = self.path();
            // Of a place that is gone, such as a mount, nothing says that the keys are.
            if self.seen.load(Ordering::Relaxed) {
                let text = format!(
                    "the keystore {} was there and is gone: put it back, or mount its file system",
                    path.display()
                );
                return ProviderError::unreachable(text);
            }
            ProviderError::not_here(format!(
                "no keystore at {}: put it back there, or set {HOME_VARIABLE} to its directory",
                path.display()
            ))
        })
    }

    /// The version that wraps now.
    fn newest<'s>(&self, store: &'s Store, name: &str) -> Result<&'s StoredVersion, ProviderError> {
        let key = store.find(name).ok_or_else(|| self.no_key(name))?;
        if let Some(why) = key.refusal(Operation::Wrap) {
            return Err(self.refused(name, &why));
        }
        let now = now();
        key.newest(now).ok_or_else(|| {
            let why = key.versions.iter().rev().filter_map(|version| {
                Some(format!("version {} {}", version.version, version.refusal(now)?))
            });
            let why: Vec<String> = why.take(3).collect();
            self.refused(name, &format!("has no version to wrap with: {}", why.join("; ")))
        })
    }

    /// The version called `number`, if it may unwrap now.
    fn version<'s>(
        &self,
        store: &'s Store,
        name: &str,
        number: &str,
    ) -> Result<&'s StoredVersion, ProviderError> {
        let key = store.find(name).ok_or_else(|| self.no_key(name))?;
        // Compared as text: "01" or "+1" is not a version that this provider ever named.
        let found = key.versions.iter().find(|version| version.version.to_string() == number);
        let version = found.ok_or_else(|| self.no_version(name, number))?;
        if let Some(why) = key.refusal(Operation::Unwrap) {
            return Err(self.refused(name, &why));
        }
        version.refusal(now()).map_or(Ok(version), |why| {
            let path = self.path();
            let text = format!("version {number} of key {name:?} in {} {why}", path.display());
            Err(ProviderError::denied(text))
        })
    }

    fn refused(&self, name: &str, why: &str) -> ProviderError {
        ProviderError::denied(format!("key {name:?} in {} {why}", self.path().display()))
    }

    fn no_key(&self, name: &str) -> ProviderError {
        ProviderError::not_here(format!(
            "no key {name:?} in {}: create it with `sqlite-tde key create NAME`, or put back the \
             keystore that has it",
            self.path().display()
        ))
    }

    fn no_version(&self, name: &str, number: &str) -> ProviderError {
        ProviderError::not_here(format!(
            "no version {number:?} of key {name:?} in {}: put back a newer copy of this keystore",
            self.path().display()
        ))
    }

    fn no_passphrase(&self) -> ProviderError {
        ProviderError::not_here(format!(
            "keystore {} has a passphrase, and none was given: set {FILE_VARIABLE} to a file that \
             has it",
            self.path().display()
        ))
    }

    fn wrong_passphrase(&self, source: &SecretSource) -> ProviderError {
        ProviderError::wrong_key(format!(
            "the passphrase from {source} is not the one of keystore {}",
            self.path().display()
        ))
    }

    fn unprotected(&self) -> ProviderError {
        ProviderError::wrong_key(format!(
            "keystore {} has no passphrase, but one was given: check its origin, then set it with \
             `sqlite-tde key passphrase set`, or give none",
            self.path().display()
        ))
    }
}

/// The passphrase source named by the environment.
fn source(file: Option<OsString>, descriptor: Option<OsString>) -> Result<Option<SecretSource>> {
    match (file, descriptor) {
        (Some(_), Some(_)) => {
            Err(Error::Usage(format!("set only one of {FILE_VARIABLE} and {DESCRIPTOR_VARIABLE}")))
        }
        (Some(file), None) => Ok(Some(SecretSource::File(file.into()))),
        (None, Some(text)) => {
            let number = text.to_str().and_then(|text| text.parse().ok());
            let not = || Error::Usage(format!("{DESCRIPTOR_VARIABLE} is not a number"));
            Ok(Some(SecretSource::descriptor_of_process(number.ok_or_else(not)?)))
        }
        (None, None) => Ok(None),
    }
}

impl KeyProvider for Keystore {
    fn kind(&self) -> &str {
        "keystore"
    }

    /// For the passphrase, until it has been given once.
    fn waits_for(&self) -> WaitsFor {
        let source = self.source.as_ref().filter(|_| self.unlocked.is_empty());
        source.map_or(WaitsFor::Nothing, SecretSource::waits_for)
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { key_id, dek, context, .. } = *request;
        if key_id == DEFAULT_KEY {
            self.ensure_default(request.deadline)?;
        }
        let store = self.read()?;
        let version = self.newest(&store, key_id)?;
        // The writer of this version may have died before its last sync. It must outlive the DEK.
        file::sync_dir(&self.dir)?;
        let aad = wrap::aad(context, key_id, version.version);
        let blob = wrap::seal(&store.open(key_id, version)?, &aad, dek)?;
        Ok(Wrapped::new(version.version.to_string(), MECHANISM, blob).into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { key_id, wrapped, context, .. } = *request;
        wrapped.expect(MECHANISM)?;
        let Wrapped { key_version, blob, .. } = wrapped;
        let store = self.read()?;
        let version = self.version(&store, key_id, key_version)?;
        let aad = wrap::aad(context, key_id, version.version);
        let dek = wrap::open(&store.open(key_id, version)?, &aad, blob)?;
        dek.map(Answer::from).ok_or_else(|| {
            ProviderError::wrong_key(format!(
                "version {key_version} of key {key_id:?} in {} did not wrap this database's key",
                self.path().display()
            ))
        })
    }

    fn newest_version(
        &self,
        request: &VersionRequest<'_>,
    ) -> Result<Answer<String>, ProviderError> {
        Ok(self.newest(&self.read()?, request.key_id)?.version.to_string().into())
    }

    fn forget(&self) {
        self.remember(None);
    }

    /// Whether or not the passphrase was given: another thread may forget it.
    fn runs(&self, _: Ours) -> Runs {
        self.source.as_ref().map_or(Runs::Here, SecretSource::runs)
    }
}

fn not_done(error: Error) -> ProviderError {
    ProviderError::unreachable(error.to_string())
}

#[cfg(test)]
mod tests;
