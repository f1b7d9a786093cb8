//! The configuration: `config.toml` beside the keystore, or the same said in Rust.
//!
//! A provider's name in a database means what this says it means, and nothing else. As it can name
//! commands to run and libraries to load, a file that others may write is refused. It holds no
//! secret: where a passphrase, a PIN or a key is needed, it says where to find it.
//!
//! docs/config.md has every field with an example.

mod file;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::provider::registry::Provider;
pub use crate::provider::{Ask, Source};
pub use crate::table::duration;

pub use crate::settings::identity::Pins;
pub use crate::settings::{
    AccessLayer, AuditLayer, BelowMin, Layer, Policy, PolicyLayer, Settings, TuningLayer,
};

use crate::audit::{AuditLog, AuditOptions};
use crate::error::{Error, Result};
use crate::provider::registry::Kind;
use crate::provider::{KeyProvider, Keystore, WaitsFor, origin_of};
use crate::settings::{AuditPolicy, KEYSTORE};

/// Name of the file.
pub const FILE_NAME: &str = "config.toml";

/// What an operator decides for all databases of an application or a user.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Config {
    /// The settings that are said. An application may say others, but none that weakens them.
    pub settings: Layer,
    /// The key providers by name. One called `keystore` takes the place of the embedded one.
    pub providers: BTreeMap<String, Provider>,
    /// The audit log.
    pub audit: Audit,
    /// Whom [`Source::Prompt`] asks; nobody unless said.
    pub prompt: Option<Ask>,
}

/// Settings of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audit {
    /// Whether anything is recorded.
    pub enabled: bool,
    /// The directory of the log; `audit` in the home directory where there is none.
    pub dir: Option<PathBuf>,
    /// Where its key is; in the directory of the log where there is none.
    pub key: Option<Source>,
    /// A file that would grow beyond this is rotated.
    pub max_bytes: u64,
    /// How many rotated files are kept.
    pub keep: u32,
}

impl Default for Audit {
    fn default() -> Self {
        let AuditOptions { max_bytes, keep, .. } = AuditOptions::at("");
        Self { enabled: false, dir: None, key: None, max_bytes, keep }
    }
}

/// The directory of the configuration, the keystore and the audit log: `$SQLITE_TDE_HOME`, or where
/// that is unset or empty, `sqlite-tde` under the platform's data directory.
///
/// # Errors
/// [`Error::Usage`] where the variable is unset and the user has no home directory.
pub fn home() -> Result<PathBuf> {
    let keystore = Keystore::open_default()?.path();
    Ok(keystore.parent().map_or_else(PathBuf::new, Path::to_owned))
}

impl Config {
    /// What [`FILE_NAME`] in `dir` says, and the defaults for what it does not. Without a file, the
    /// defaults. What they leave open is in `dir`: the keystore, and `audit` for the log.
    ///
    /// # Errors
    /// [`Error::Config`], which names file, line and field; or that others may write the file.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        file::load(dir.as_ref())
    }

    /// [`Config::load`] of [`home`].
    ///
    /// # Errors
    /// Those of both.
    pub fn load_default() -> Result<Self> {
        Self::load(home()?)
    }

    /// Every configured provider, ready to be asked, and its name. Nothing is read, run or loaded
    /// for it yet.
    ///
    /// # Errors
    /// [`Error::Config`] for one that this build does not have; [`Error::Usage`] where there is no
    /// home directory for a keystore.
    pub fn providers(&self) -> Result<Vec<(String, Arc<dyn KeyProvider>)>> {
        let described = self.described_providers()?;
        Ok(described.into_iter().map(|(name, _, provider)| (name, provider)).collect())
    }

    /// As [`Config::providers`], each with what it is made of.
    pub(crate) fn described_providers(
        &self,
    ) -> Result<Vec<(String, String, Arc<dyn KeyProvider>)>> {
        let build = |(name, provider): (&String, &Provider)| {
            let (mut origin, built) = (provider.origin()?, provider.build(self.prompt.as_ref())?);
            if let (WaitsFor::Person, Some(ask)) = (built.waits_for(), &self.prompt) {
                origin = format!("{origin}, asked for by {}", origin_of(ask));
            }
            Ok((name.clone(), origin, built))
        };
        self.providers.iter().map(build).collect()
    }

    /// The keystore that `KEY` without a provider means: the one called `keystore` here, else the
    /// embedded one.
    ///
    /// # Errors
    /// [`Error::Usage`] where there is no home directory for it.
    pub fn keystore(&self) -> Result<Keystore> {
        match self.providers.get(KEYSTORE) {
            Some(Provider::Keystore(table)) => table.build(self.prompt.as_ref()),
            _ => Keystore::open_default(),
        }
    }

    /// The audit log, opened, if one is kept, and what follows where it cannot be written.
    ///
    /// # Errors
    /// [`Error::Audit`]; [`Error::Usage`] where there is no home directory for it.
    pub fn open_audit(&self) -> Result<Option<(Arc<AuditLog>, AuditPolicy)>> {
        if !self.audit.enabled {
            return Ok(None);
        }
        let log = AuditLog::open(self.audit_options()?)?;
        Ok(Some((Arc::new(log), self.settings.audit.values())))
    }

    /// The settings of the audit log, whether it is enabled or not.
    ///
    /// # Errors
    /// [`Error::Usage`] where it has no directory and there is no home directory.
    pub fn audit_options(&self) -> Result<AuditOptions> {
        let Audit { dir, key, max_bytes, keep, .. } = &self.audit;
        let dir = dir.clone().map_or_else(|| Ok(home()?.join(file::AUDIT_DIR)), Ok::<_, Error>)?;
        let key = key.as_ref().map(|key| key.secret(self.prompt.as_ref()));
        let time_out = self.settings.access.values().time_out;
        Ok(AuditOptions { dir, key, max_bytes: *max_bytes, keep: *keep, time_out })
    }

    /// Whether `other` says anything else, whoever is asked for secrets.
    #[cfg(feature = "extension")]
    pub(crate) fn differs_from(&self, other: &Self) -> bool {
        (&self.settings, &self.providers, &self.audit)
            != (&other.settings, &other.providers, &other.audit)
    }
}

/// Says whether somebody can be asked, not what with.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("settings", &self.settings)
            .field("providers", &self.providers)
            .field("audit", &self.audit)
            .field("prompt", &self.prompt.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests;
