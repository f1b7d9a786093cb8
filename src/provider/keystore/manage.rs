//! Changes of the keystore: each call replaces its file completely or not at all.

use std::sync::Arc;
use std::time::SystemTime;

use subtle::ConstantTimeEq;

use super::file;
use super::info::{KeyInfo, KeyRules};
use super::passphrase::Unlocked;
use super::store::{Store, StoredKey, StoredVersion};
use super::{Keystore, now};
use crate::error::{Error, Result};
use crate::process::files::Lock;
use crate::process::time::system_time;
use crate::provider::{Deadline, ProviderError, SecretSource, is_name};
use crate::secret::Secret;

/// Default recovery period of a deleted key, in days.
pub const RECOVERY_DAYS: u32 = 30;

const DAYS: std::ops::RangeInclusive<u32> = 1..=3650;
const DAY: u64 = 24 * 60 * 60;

/// How often the passphrase may change while one change waits.
const LOCK_TRIES: u32 = 5;

impl Keystore {
    /// Adds a key with one version, and the directory (mode 0700) and file (0600) if need be.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is not 1 to 64 of `[A-Za-z0-9._-]`, [`Error::KeyExists`],
    /// [`Error::Random`], and those of reading and replacing the file: [`Error::LoosePermissions`],
    /// [`Error::ProviderDamaged`], [`Error::ProviderUnreachable`], and of its passphrase:
    /// [`Error::NoKey`] if none is given, [`Error::WrongKey`]. No key has changed then; only if the
    /// last sync failed may the new one exist.
    pub fn create(&self, name: &str) -> Result<KeyInfo> {
        self.create_with(name, &KeyRules::new())
    }

    /// [`Keystore::create`] with rules from the start.
    ///
    /// # Errors
    /// As [`Keystore::create`]; [`Error::Usage`] for rules that no key can follow.
    pub fn create_with(&self, name: &str, rules: &KeyRules) -> Result<KeyInfo> {
        self.add(name, Secret::random()?, rules)
    }

    /// Adds a key whose first version is the imported `key`.
    ///
    /// # Errors
    /// As [`Keystore::create`]; [`Error::Usage`] for 32 zero bytes, which are no key.
    pub fn import(&self, name: &str, key: Secret) -> Result<KeyInfo> {
        check_imported(&key)?;
        self.add(name, key, &KeyRules::new())
    }

    fn add(&self, name: &str, key: Secret, rules: &KeyRules) -> Result<KeyInfo> {
        if !is_name(name) {
            let text = format!("{name:?} is not a key name: use 1 to 64 of A-Z a-z 0-9 . _ -");
            return Err(Error::Usage(text));
        }
        rules.check()?;
        self.update(Deadline::NEVER, |store| {
            if store.find(name).is_some() {
                return Err(Error::KeyExists { name: name.to_owned() });
            }
            let added = store.add(name, key, now())?;
            apply(added, None, rules, |_| Error::KeyExists { name: name.to_owned() })?;
            Ok(added.info())
        })
    }

    /// Adds a random version to a key, which wraps from then on. Older versions go on unwrapping.
    ///
    /// # Errors
    /// [`Error::NoKey`] for an unknown key, [`Error::KeyDisabled`] if it is scheduled for deletion;
    /// else as [`Keystore::create`].
    pub fn rotate(&self, name: &str) -> Result<KeyInfo> {
        self.add_version(name, Secret::random()?)
    }

    /// Adds the imported `key` as a version of an existing key.
    ///
    /// # Errors
    /// As [`Keystore::rotate`]; [`Error::Usage`] for 32 zero bytes, and if `key` is a version of it
    /// already.
    pub fn import_version(&self, name: &str, key: Secret) -> Result<KeyInfo> {
        check_imported(&key)?;
        self.add_version(name, key)
    }

    fn add_version(&self, name: &str, secret: Secret) -> Result<KeyInfo> {
        self.change(|store| {
            let key = self.live(store, name)?;
            for version in &key.versions {
                if store.open(name, version)?.expose().ct_eq(secret.expose()).into() {
                    let number = version.version;
                    let text = format!("version {number} of key {name:?} is this key already");
                    return Err(Error::Usage(text));
                }
            }
            let last = key.versions.last().map_or(0, |version| version.version);
            let full = || Error::Usage(format!("key {name:?} has no version number left"));
            let number = last.checked_add(1).ok_or_else(full)?;
            let material = store.material(name, number, secret)?;
            let key = self.live_mut(store, name)?;
            key.versions.push(StoredVersion::new(number, material, now()));
            Ok(key.info())
        })
    }

    /// Allows or refuses the use of one version of a key. A refused one is kept, and can be allowed
    /// again.
    ///
    /// # Errors
    /// [`Error::NoKey`] for an unknown key or version; else as [`Keystore::rotate`].
    pub fn set_enabled(&self, name: &str, version: u32, enabled: bool) -> Result<()> {
        self.change(|store| {
            let found = self.live_mut(store, name)?.version_mut(Some(version));
            found.ok_or_else(|| self.no_version(name, &version.to_string()))?.enabled = enabled;
            Ok(())
        })
    }

    /// Allows or refuses the use of a whole key; the settings of its versions stay.
    ///
    /// # Errors
    /// As [`Keystore::rotate`].
    pub fn set_key_enabled(&self, name: &str, enabled: bool) -> Result<()> {
        self.change(|store| {
            self.live_mut(store, name)?.enabled = enabled;
            Ok(())
        })
    }

    /// Gives `rules` to a key: limits in time to `version`, or to the newest one, and operations to
    /// the whole key.
    ///
    /// # Errors
    /// As [`Keystore::set_enabled`]; [`Error::Usage`] for rules that no key can follow, and for
    /// operations together with a version, which has none of its own.
    pub fn set_rules(&self, name: &str, version: Option<u32>, rules: &KeyRules) -> Result<KeyInfo> {
        rules.check()?;
        if version.is_some() && rules.operations.is_some() {
            let text = "operations are of a whole key: name no version with them";
            return Err(Error::Usage(text.into()));
        }
        self.change(|store| {
            let key = self.live_mut(store, name)?;
            apply(key, version, rules, |number| self.no_version(name, &number.to_string()).into())?;
            Ok(key.info())
        })
    }

    /// The bytes of a version, or of the newest one, even if its use is refused. They open every
    /// database that they protect, so `reveal` must confirm the call.
    ///
    /// # Errors
    /// [`Error::Usage`] if `reveal` is false; else as [`Keystore::set_enabled`].
    pub fn export(&self, name: &str, version: Option<u32>, reveal: bool) -> Result<Secret> {
        if !reveal {
            return Err(Error::Usage(format!(
                "exporting key {name:?} reveals it: whoever sees it opens every database that it \
                 protects"
            )));
        }
        let store = self.read()?;
        let found = self.live(&store, name)?.version(version);
        let number = || version.unwrap_or_default().to_string();
        let found = found.ok_or_else(|| self.no_version(name, &number()))?;
        Ok(store.open(name, found)?)
    }

    /// Schedules a key for deletion: its use is refused, and after `days` it is gone for good.
    /// Returns the time of that.
    ///
    /// # Errors
    /// [`Error::Usage`] for days that are not 1 to 3650; else as [`Keystore::rotate`].
    pub fn delete(&self, name: &str, days: u32) -> Result<SystemTime> {
        if !DAYS.contains(&days) {
            let text = format!("a key can be brought back for 1 to 3650 days, not {days}");
            return Err(Error::Usage(text));
        }
        let end = now() + u64::from(days) * DAY;
        self.change(|store| {
            self.live_mut(store, name)?.purged_at = Some(end);
            Ok(system_time(end))
        })
    }

    /// Brings back a key that is scheduled for deletion, as it was.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not scheduled; else as [`Keystore::rotate`].
    pub fn undelete(&self, name: &str) -> Result<()> {
        self.change(|store| {
            let key = store.find_mut(name).ok_or_else(|| self.no_key(name))?;
            let scheduled = key.purged_at.take();
            let not = || Error::Usage(format!("key {name:?} is not scheduled for deletion"));
            scheduled.map(drop).ok_or_else(not)
        })
    }

    /// Deletes a key irreversibly, at once. Data protected only by it is lost, so `force` must
    /// confirm the call.
    ///
    /// # Errors
    /// [`Error::Usage`] if `force` is false; else as [`Keystore::create`], and [`Error::NoKey`].
    pub fn purge(&self, name: &str, force: bool) -> Result<()> {
        if !force {
            return Err(Error::Usage(format!(
                "purging key {name:?} is irreversible; data protected only by it is lost. delete \
                 keeps a recovery period"
            )));
        }
        self.change(|store| {
            store.find(name).ok_or_else(|| self.no_key(name))?;
            store.keys.retain(|key| key.name != name);
            Ok(())
        })
    }

    /// Seals a keystore that has no passphrase under the one of `source`; it need not be there yet.
    /// This value and its clones go on with it; later ones need [`Keystore::passphrase`].
    ///
    /// # Errors
    /// [`Error::Usage`] if it has a passphrase; those of [`SecretSource::read`]; else as
    /// [`Keystore::create`].
    pub fn set_passphrase(&self, source: &SecretSource) -> Result<()> {
        let unlocked = self.derive(source)?;
        let _lock = file::lock(&self.dir, Deadline::NEVER)?;
        let store = match self.decode_file()? {
            Some((_, found)) if found.passphrase().is_some() => {
                let text = "the keystore has a passphrase already: change that one";
                return Err(Error::Usage(text.into()));
            }
            Some((text, found)) => found.verify(&self.path(), &text, None)?,
            None => Store::default(),
        };
        self.reseal(&store, Some(unlocked))
    }

    /// Seals a keystore that has a passphrase under another one, that of `source`.
    ///
    /// # Errors
    /// [`Error::Usage`] if it has no passphrase; else as [`Keystore::set_passphrase`].
    pub fn change_passphrase(&self, source: &SecretSource) -> Result<()> {
        self.check_protected()?;
        self.read()?;
        let unlocked = self.derive(source)?;
        let (_lock, store) = self.lock(Deadline::NEVER)?;
        self.check_protected()?;
        self.reseal(&store.unwrap_or_default(), Some(unlocked))
    }

    /// Writes the keys of a keystore that has a passphrase in the clear.
    ///
    /// # Errors
    /// [`Error::Usage`] if it has no passphrase; else as [`Keystore::create`].
    pub fn remove_passphrase(&self) -> Result<()> {
        self.check_protected()?;
        let (_lock, store) = self.lock(Deadline::NEVER)?;
        self.check_protected()?;
        self.reseal(&store.unwrap_or_default(), None)
    }

    fn check_protected(&self) -> Result<()> {
        if !self.has_passphrase()? {
            return Err(Error::Usage(format!("{} has no passphrase", self.path().display())));
        }
        Ok(())
    }

    /// The lock for a change, and the content under it. The passphrase is read and derived before
    /// the lock is taken, so that others do not wait for a person: again, if another process set
    /// another one meanwhile.
    fn lock(&self, deadline: Deadline) -> Result<(Lock, Option<Store>), ProviderError> {
        for _ in 0..LOCK_TRIES {
            let unlocked = self.load()?.and_then(|store| store.unlocked);
            let lock = file::lock(&self.dir, deadline)?;
            let Some((text, found)) = self.decode_file()? else { return Ok((lock, None)) };
            if found.passphrase() == unlocked.as_ref().map(|unlocked| &unlocked.params) {
                let mut store = found.verify(&self.path(), &text, unlocked)?;
                store.purge(now());
                return Ok((lock, Some(store)));
            }
        }
        let path = self.path();
        let text = format!("the passphrase of {} is being changed: retry", path.display());
        Err(ProviderError::unreachable(text))
    }

    /// The caller holds the lock.
    fn reseal(&self, store: &Store, unlocked: Option<Arc<Unlocked>>) -> Result<()> {
        file::write(&self.dir, &store.sealed_under(unlocked.clone())?)?;
        self.remember(unlocked);
        Ok(())
    }

    /// One change to an existing keystore; none is created.
    fn change<T>(&self, change: impl FnOnce(&mut Store) -> Result<T>) -> Result<T> {
        self.read()?;
        self.update(Deadline::NEVER, change)
    }

    /// One change to the file: all of it, or none if `change` fails.
    pub(super) fn update<T, E: From<ProviderError>>(
        &self,
        deadline: Deadline,
        change: impl FnOnce(&mut Store) -> Result<T, E>,
    ) -> Result<T, E> {
        // Read before the lock is taken, as for a file that is there.
        let new = match self.load()? {
            Some(_) => None,
            None => Some(self.empty()?),
        };
        let (_lock, store) = self.lock(deadline)?;
        let mut store = store.or(new).ok_or_else(|| {
            let text = format!("{} was removed during the change", self.path().display());
            ProviderError::not_here(text)
        })?;
        let answer = change(&mut store)?;
        file::write(&self.dir, &store)?;
        if store.unlocked.is_some() {
            self.remember(store.unlocked);
        }
        Ok(answer)
    }

    /// Keys for a file that is to have the passphrase from `source`.
    fn derive(&self, source: &SecretSource) -> Result<Arc<Unlocked>, ProviderError> {
        let passphrase = source.read(super::PASSPHRASE)?;
        Unlocked::create(&passphrase, self.cost).map(Arc::new)
    }

    /// A keystore without keys, under the passphrase if there is one.
    fn empty(&self) -> Result<Store, ProviderError> {
        let unlocked = self.source.as_ref().map(|source| self.derive(source)).transpose()?;
        Ok(Store { unlocked, ..Store::default() })
    }

    /// A key that is not scheduled for deletion.
    fn live<'s>(&self, store: &'s Store, name: &str) -> Result<&'s StoredKey, ProviderError> {
        let key = store.find(name).ok_or_else(|| self.no_key(name))?;
        key.scheduled().map_or(Ok(key), |why| Err(self.refused(name, &why)))
    }

    fn live_mut<'s>(
        &self,
        store: &'s mut Store,
        name: &str,
    ) -> Result<&'s mut StoredKey, ProviderError> {
        self.live(store, name)?;
        store.find_mut(name).ok_or_else(|| self.no_key(name))
    }
}

fn check_imported(key: &Secret) -> Result<()> {
    match key.expose().ct_eq(&[0; 32]).into() {
        true => Err(Error::Usage("32 zero bytes are no key".into())),
        false => Ok(()),
    }
}

/// Gives the rules to the key, and their window to the version called `number`, or the newest.
fn apply(
    key: &mut StoredKey,
    number: Option<u32>,
    rules: &KeyRules,
    missing: impl FnOnce(u32) -> Error,
) -> Result<()> {
    let version = key.version_mut(number);
    version.ok_or_else(|| missing(number.unwrap_or_default()))?.apply(rules)?;
    if let Some(operations) = &rules.operations {
        key.operations.clone_from(operations);
    }
    Ok(())
}
