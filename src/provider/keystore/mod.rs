//! The embedded key provider: versioned 256-bit keys in a local file, for want of a key service.
//!
//! The file is `keystore.json` in `$SQLITE_TDE_HOME`, or else in `sqlite-tde` under the platform's
//! data directory. It protects a database whose files travel without it: backups, disks, copies.
//! It does not protect against whoever can read the user's files, since it holds its keys in the
//! clear; nothing but its permissions guards it. Those are checked at each use.

mod file;
mod format;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use etcetera::BaseStrategy;

use self::format::{Store, StoredKey, StoredVersion};
use super::wrap::{self, MECHANISM};
use super::{Context, KeyProvider, ProviderError, WaitsFor, Wrapped};
use crate::error::{Error, Result};
use crate::secret::Secret;

/// The service-managed key: the one that [`Keystore`] creates by itself when it first wraps.
pub const DEFAULT_KEY: &str = "default";

const HOME_VARIABLE: &str = "SQLITE_TDE_HOME";

/// A directory with a keystore file, which need not be there yet.
///
/// Nothing is kept in memory between calls; any number of processes and threads may use one
/// directory at once. Reading never creates anything.
#[derive(Debug, Clone)]
pub struct Keystore {
    dir: PathBuf,
}

/// What may be shown of a key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KeyInfo {
    /// 1 to 64 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// Seconds since 1970, UTC.
    pub created: u64,
    /// Oldest first, at least one.
    pub versions: Vec<KeyVersionInfo>,
}

/// What may be shown of one version of a key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KeyVersionInfo {
    /// Counted from 1.
    pub version: u32,
    /// Seconds since 1970, UTC.
    pub created: u64,
    /// Whether it wraps and unwraps.
    pub enabled: bool,
}

impl Keystore {
    /// The keystore in `$SQLITE_TDE_HOME`, or where that is unset or empty, in `sqlite-tde` under
    /// the platform's data directory. Creates nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] where the variable is unset and the user has no home directory.
    pub fn open_default() -> Result<Self> {
        Self::home(std::env::var_os(HOME_VARIABLE))
    }

    fn home(variable: Option<OsString>) -> Result<Self> {
        if let Some(dir) = variable.filter(|dir| !dir.is_empty()) {
            return Ok(Self::at(dir));
        }
        let platform = etcetera::base_strategy::choose_native_strategy().map_err(|error| {
            Error::Usage(format!("no place for a keystore ({error}): set {HOME_VARIABLE}"))
        })?;
        Ok(Self::at(platform.data_dir().join("sqlite-tde")))
    }

    /// The keystore in `dir`. Creates nothing; a relative path is taken from the present directory.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self { dir: std::path::absolute(&dir).unwrap_or(dir) }
    }

    /// The file that holds the keys.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        file::path(&self.dir)
    }

    /// Adds a key with one version, and the directory (mode 0700) and file (0600) if need be.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is not 1 to 64 of `[A-Za-z0-9._-]`, [`Error::KeyExists`],
    /// [`Error::Random`], and those of reading and replacing the file:
    /// [`Error::LoosePermissions`], [`Error::ProviderDamaged`], [`Error::ProviderUnreachable`].
    /// No key has changed then; only where the last sync is what failed may the new one be there.
    pub fn create(&self, name: &str) -> Result<KeyInfo> {
        if !format::is_name(name) {
            let text = format!("{name:?} is not a key name: use 1 to 64 of A-Z a-z 0-9 . _ -");
            return Err(Error::Usage(text));
        }
        let key = Secret::random()?;
        self.update(|store| match store.find(name) {
            Some(_) => Err(Error::KeyExists(name.to_owned())),
            None => Ok(add_key(store, name, key)),
        })
    }

    /// Every key, in the order of creation; none where there is no file yet.
    ///
    /// # Errors
    /// [`Error::LoosePermissions`], [`Error::ProviderDamaged`], [`Error::ProviderUnreachable`].
    pub fn list(&self) -> Result<Vec<KeyInfo>> {
        let store = file::read(&self.dir)?.unwrap_or_default();
        Ok(store.keys.iter().map(info).collect())
    }

    /// Adds a version to a key, which wraps from then on. Older versions go on unwrapping.
    ///
    /// # Errors
    /// [`Error::NoKey`] where there is no such key; else as [`Keystore::create`].
    pub fn rotate(&self, name: &str) -> Result<KeyInfo> {
        let secret = Secret::random()?;
        self.change_key(name, |key| {
            let last = key.versions.last().map_or(0, |version| version.version);
            let full = || Error::Usage(format!("key {name:?} has no version number left"));
            key.versions.push(new_version(last.checked_add(1).ok_or_else(full)?, secret));
            Ok(info(key))
        })
    }

    /// Allows or refuses the use of one version of a key. A refused one is kept, and can be allowed
    /// again.
    ///
    /// # Errors
    /// [`Error::NoKey`] where there is no such key or version; else as [`Keystore::create`].
    pub fn set_enabled(&self, name: &str, version: u32, enabled: bool) -> Result<()> {
        self.change_key(name, |key| {
            let found = key.versions.iter_mut().find(|v| v.version == version);
            found.ok_or_else(|| self.no_version(name, &version.to_string()))?.enabled = enabled;
            Ok(())
        })
    }

    /// One change to a key that is there. Where there is no keystore, none is created.
    fn change_key<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut StoredKey) -> Result<T>,
    ) -> Result<T> {
        self.read()?;
        self.update(|store| change(store.find_mut(name).ok_or_else(|| self.no_key(name))?))
    }

    /// One change to the file: all of it, or none if `change` fails.
    fn update<T, E: From<ProviderError>>(
        &self,
        change: impl FnOnce(&mut Store) -> Result<T, E>,
    ) -> Result<T, E> {
        let _lock = file::lock(&self.dir)?;
        let mut store = file::read(&self.dir)?.unwrap_or_default();
        let answer = change(&mut store)?;
        file::write(&self.dir, &store)?;
        Ok(answer)
    }

    /// Creates [`DEFAULT_KEY`] unless it is there.
    fn ensure_default(&self) -> Result<(), ProviderError> {
        if file::read(&self.dir)?.is_some_and(|store| store.find(DEFAULT_KEY).is_some()) {
            return Ok(());
        }
        let key = Secret::random().map_err(not_done)?;
        self.update(|store| {
            // Another process may have been faster.
            if store.find(DEFAULT_KEY).is_none() {
                add_key(store, DEFAULT_KEY, key);
            }
            Ok(())
        })
    }

    fn read(&self) -> Result<Store, ProviderError> {
        file::read(&self.dir)?.ok_or_else(|| {
            ProviderError::NotHere(format!(
                "no keystore at {}: put it back there, or set {HOME_VARIABLE} to its directory",
                self.path().display()
            ))
        })
    }

    fn newest<'s>(&self, store: &'s Store, name: &str) -> Result<&'s StoredVersion, ProviderError> {
        let key = store.find(name).ok_or_else(|| self.no_key(name))?;
        key.newest_enabled().ok_or_else(|| {
            let path = self.path();
            let path = path.display();
            ProviderError::Denied(format!("every version of key {name:?} in {path} is disabled"))
        })
    }

    /// The version called `number`, if its use is allowed.
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
        if version.enabled { Ok(version) } else { Err(self.disabled(name, number)) }
    }

    fn no_key(&self, name: &str) -> ProviderError {
        ProviderError::NotHere(format!(
            "no key {name:?} in {}: create it with `sqlite-tde key create NAME`, or put back the \
             keystore that has it",
            self.path().display()
        ))
    }

    fn no_version(&self, name: &str, number: &str) -> ProviderError {
        ProviderError::NotHere(format!(
            "no version {number:?} of key {name:?} in {}: put back a newer copy of this keystore",
            self.path().display()
        ))
    }

    fn disabled(&self, name: &str, number: &str) -> ProviderError {
        let path = self.path();
        let path = path.display();
        ProviderError::Denied(format!("version {number} of key {name:?} in {path} is disabled"))
    }
}

impl KeyProvider for Keystore {
    fn kind(&self) -> &str {
        "keystore"
    }

    fn waits_for(&self) -> WaitsFor {
        WaitsFor::Nothing
    }

    fn wrap(
        &self,
        key_id: &str,
        dek: &Secret,
        context: &Context,
    ) -> Result<Wrapped, ProviderError> {
        if key_id == DEFAULT_KEY {
            self.ensure_default()?;
        }
        let store = self.read()?;
        let version = self.newest(&store, key_id)?;
        // Whoever wrote this version may have died before its last sync. It must outlive the DEK.
        file::sync_dir(&self.dir)?;
        let aad = wrap::aad(context, key_id, version.version);
        let blob = wrap::seal(&version.key, &aad, dek)?;
        let key_version = version.version.to_string();
        Ok(Wrapped { key_version, mechanism: MECHANISM.to_owned(), blob })
    }

    fn unwrap(
        &self,
        key_id: &str,
        wrapped: &Wrapped,
        context: &Context,
    ) -> Result<Secret, ProviderError> {
        let Wrapped { key_version, mechanism, blob } = wrapped;
        if mechanism != MECHANISM {
            let text =
                format!("wrapped key of mechanism {mechanism:?}: the keystore reads {MECHANISM}");
            return Err(ProviderError::Damaged(text));
        }
        let store = self.read()?;
        let version = self.version(&store, key_id, key_version)?;
        let aad = wrap::aad(context, key_id, version.version);
        wrap::open(&version.key, &aad, blob).ok_or_else(|| {
            let path = self.path();
            let path = path.display();
            ProviderError::WrongKey(format!(
                "version {key_version} of key {key_id:?} in {path} did not wrap this database's key"
            ))
        })
    }

    fn newest_version(&self, key_id: &str) -> Result<String, ProviderError> {
        Ok(self.newest(&self.read()?, key_id)?.version.to_string())
    }
}

fn add_key(store: &mut Store, name: &str, key: Secret) -> KeyInfo {
    let first = new_version(1, key);
    let key = StoredKey { name: name.to_owned(), created: first.created, versions: vec![first] };
    let info = info(&key);
    store.keys.push(key);
    info
}

fn new_version(version: u32, key: Secret) -> StoredVersion {
    StoredVersion { version, created: now(), enabled: true, key }
}

/// Seconds since 1970; 0 for a clock that is set before.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn info(key: &StoredKey) -> KeyInfo {
    let version = |v: &StoredVersion| KeyVersionInfo {
        version: v.version,
        created: v.created,
        enabled: v.enabled,
    };
    KeyInfo {
        name: key.name.clone(),
        created: key.created,
        versions: key.versions.iter().map(version).collect(),
    }
}

fn not_done(error: Error) -> ProviderError {
    ProviderError::Unreachable(error.to_string())
}

#[cfg(test)]
mod tests;
