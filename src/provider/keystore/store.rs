//! The content of the keystore, and the rules for the use of its keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::info::{KeyInfo, KeyRules, KeyVersionInfo, Operation, utc};
use super::material::Material;
use super::passphrase::Unlocked;
use crate::error::{Error, Result};
use crate::process::time::system_time;
use crate::provider::{ProviderError, is_name};
use crate::secret::Secret;

/// The content of the file.
#[derive(Default)]
pub(super) struct Store {
    pub(super) keys: Vec<StoredKey>,
    /// The passphrase's parameters, if one protects the keys.
    pub(super) unlocked: Option<Arc<Unlocked>>,
}

/// A key: its versions in ascending order, from 1, without a gap.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredKey {
    pub(super) name: String,
    pub(super) created: u64,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub(super) enabled: bool,
    #[serde(default = "Operation::all", skip_serializing_if = "is_all")]
    pub(super) operations: BTreeSet<Operation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) purged_at: Option<u64>,
    pub(super) versions: Vec<StoredVersion>,
}

/// One version of a key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredVersion {
    pub(super) version: u32,
    pub(super) created: u64,
    pub(super) enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) not_before: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) not_after: Option<u64>,
    pub(super) key: Material,
}

fn yes() -> bool {
    true
}

fn is_yes(flag: &bool) -> bool {
    *flag
}

fn is_all(operations: &BTreeSet<Operation>) -> bool {
    *operations == Operation::all()
}

impl Store {
    pub(super) fn find(&self, name: &str) -> Option<&StoredKey> {
        self.keys.iter().find(|key| key.name == name)
    }

    pub(super) fn find_mut(&mut self, name: &str) -> Option<&mut StoredKey> {
        self.keys.iter_mut().find(|key| key.name == name)
    }

    /// Forgets the keys whose time to be brought back is over.
    pub(super) fn purge(&mut self, now: u64) {
        self.keys.retain(|key| key.purged_at.is_none_or(|end| now < end));
    }

    /// Adds a key with one version.
    pub(super) fn add(
        &mut self,
        name: &str,
        secret: Secret,
        now: u64,
    ) -> Result<&mut StoredKey, ProviderError> {
        let version = StoredVersion::new(1, self.material(name, 1, secret)?, now);
        let key = StoredKey {
            name: name.to_owned(),
            created: now,
            enabled: true,
            operations: Operation::all(),
            purged_at: None,
            versions: vec![version],
        };
        let at = self.keys.len();
        self.keys.push(key);
        Ok(&mut self.keys[at])
    }

    /// `secret` in the form of the file.
    pub(super) fn material(
        &self,
        name: &str,
        version: u32,
        secret: Secret,
    ) -> Result<Material, ProviderError> {
        match &self.unlocked {
            Some(unlocked) => unlocked.seal(name, version, &secret),
            None => Ok(Material::Clear(secret)),
        }
    }

    /// The key behind `version` of `name`.
    pub(super) fn open(
        &self,
        name: &str,
        version: &StoredVersion,
    ) -> Result<Secret, ProviderError> {
        let opened = match (&version.key, &self.unlocked) {
            (Material::Clear(key), None) => Secret::from_slice(key.expose()),
            (Material::Sealed(blob), Some(unlocked)) => {
                unlocked.open(name, version.version, blob)?
            }
            _ => None,
        };
        opened.ok_or_else(|| {
            ProviderError::damaged(format!(
                "version {} of key {name:?} is not what the keystore sealed there: put back a \
                 backup of the keystore",
                version.version
            ))
        })
    }

    /// The same keys under `unlocked`, or in the clear.
    pub(super) fn sealed_under(
        &self,
        unlocked: Option<Arc<Unlocked>>,
    ) -> Result<Self, ProviderError> {
        let mut store = Self { keys: Vec::with_capacity(self.keys.len()), unlocked };
        for key in &self.keys {
            let name = key.name.clone();
            let reseal = |version: &StoredVersion| {
                let secret = self.open(&name, version)?;
                let key = store.material(&name, version.version, secret)?;
                Ok(StoredVersion { key, ..*version })
            };
            let versions = key.versions.iter().map(reseal).collect::<Result<_, ProviderError>>()?;
            let operations = key.operations.clone();
            store.keys.push(StoredKey { name, operations, versions, ..*key });
        }
        Ok(store)
    }

    /// Whether its keys keep the rules of the format, and are sealed if there is a passphrase.
    pub(super) fn is_sound(keys: &[StoredKey], sealed: bool) -> bool {
        let names: BTreeSet<&str> = keys.iter().map(|key| key.name.as_str()).collect();
        names.len() == keys.len()
            && keys.iter().all(|key| is_name(&key.name) && key.is_sound(sealed))
    }
}

impl StoredKey {
    /// Whether it needs the second format.
    pub(super) fn has_rules(&self) -> bool {
        let windowed = |v: &StoredVersion| v.not_before.is_some() || v.not_after.is_some();
        !self.enabled
            || !is_all(&self.operations)
            || self.purged_at.is_some()
            || self.versions.iter().any(windowed)
    }

    fn is_sound(&self, sealed: bool) -> bool {
        !self.versions.is_empty()
            && !self.operations.is_empty()
            && (1..).zip(&self.versions).all(|(number, version)| {
                version.version == number
                    && version.window_is_sound()
                    && matches!(version.key, Material::Sealed(_)) == sealed
            })
    }

    /// Words for a key that is scheduled for deletion.
    pub(super) fn scheduled(&self) -> Option<String> {
        let time = utc(self.purged_at?);
        Some(format!(
            "is scheduled for deletion: until {time} `sqlite-tde key undelete` brings it back"
        ))
    }

    /// The reason why no version of this key may be used for `operation`; `None` if one might be.
    pub(super) fn refusal(&self, operation: Operation) -> Option<String> {
        if self.purged_at.is_some() {
            return self.scheduled();
        }
        if !self.enabled {
            return Some("is disabled".into());
        }
        let other = self.operations.iter().find(|allowed| **allowed != operation)?;
        let allowed = self.operations.contains(&operation);
        (!allowed).then(|| format!("may only {}", other.name()))
    }

    /// The newest version that may be used at `now`.
    pub(super) fn newest(&self, now: u64) -> Option<&StoredVersion> {
        self.versions.iter().rev().find(|version| version.refusal(now).is_none())
    }

    /// The version called `number`, or the newest.
    pub(super) fn version(&self, number: Option<u32>) -> Option<&StoredVersion> {
        match number {
            Some(number) => self.versions.iter().find(|v| v.version == number),
            None => self.versions.last(),
        }
    }

    /// [`StoredKey::version`], to be changed.
    pub(super) fn version_mut(&mut self, number: Option<u32>) -> Option<&mut StoredVersion> {
        match number {
            Some(number) => self.versions.iter_mut().find(|v| v.version == number),
            None => self.versions.last_mut(),
        }
    }

    pub(super) fn info(&self) -> KeyInfo {
        KeyInfo {
            name: self.name.clone(),
            created: system_time(self.created),
            enabled: self.enabled,
            operations: self.operations.clone(),
            purged_at: self.purged_at.map(system_time),
            versions: self.versions.iter().map(StoredVersion::info).collect(),
        }
    }
}

impl StoredVersion {
    pub(super) fn new(version: u32, key: Material, now: u64) -> Self {
        Self { version, created: now, enabled: true, not_before: None, not_after: None, key }
    }

    /// Sets the window of `rules`.
    pub(super) fn apply(&mut self, rules: &KeyRules) -> Result<()> {
        self.not_before = rules.not_before.unwrap_or(self.not_before);
        self.not_after = rules.not_after.unwrap_or(self.not_after);
        if self.window_is_sound() {
            return Ok(());
        }
        Err(Error::Usage(format!("version {} would end before it begins", self.version)))
    }

    fn window_is_sound(&self) -> bool {
        match (self.not_before, self.not_after) {
            (Some(begin), Some(end)) => begin < end,
            _ => true,
        }
    }

    /// The reason why this version may not be used at `now`; `None` if it may.
    pub(super) fn refusal(&self, now: u64) -> Option<String> {
        if !self.enabled {
            return Some("is disabled".into());
        }
        if let Some(begin) = self.not_before.filter(|begin| now < *begin) {
            return Some(format!("begins at {}, and it is {} now", utc(begin), utc(now)));
        }
        let end = self.not_after.filter(|end| *end <= now)?;
        Some(format!("ended at {}, and it is {} now", utc(end), utc(now)))
    }

    fn info(&self) -> KeyVersionInfo {
        KeyVersionInfo {
            version: self.version,
            created: system_time(self.created),
            enabled: self.enabled,
            not_before: self.not_before.map(system_time),
            not_after: self.not_after.map(system_time),
        }
    }
}
