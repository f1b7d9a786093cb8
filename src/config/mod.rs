//! The configuration: `config.toml` beside the keystore, or the same said in Rust.
//!
//! A provider's name in a database means what this says it means, and nothing else. As it can name
//! commands to run and libraries to load, a file that others may write is refused. It holds no
//! secret: where a passphrase, a PIN or a key is needed, it says where to find it.
//!
//! docs/config.md has every field with an example.

mod file;
mod read;
mod span;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

pub use span::duration;

pub use crate::settings::identity::Pins;
pub use crate::settings::{
    AccessLayer, AuditLayer, BelowMin, Layer, Policy, PolicyLayer, Settings, TuningLayer,
};

use crate::audit::{AuditLog, AuditOptions};
use crate::error::{Error, Result};
#[cfg(unix)]
use crate::provider::Command;
use crate::provider::{Cost, KeyProvider, Keystore, Passphrase, RawKey, SecretSource};
use crate::settings::{AuditPolicy, KEYSTORE};

/// Name of the file.
pub const FILE_NAME: &str = "config.toml";

/// Asks a person; gets what to ask for.
pub type Ask = Arc<dyn Fn(&str) -> io::Result<Zeroizing<String>> + Send + Sync>;

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

/// A key provider and what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// Keys in a local file.
    Keystore {
        /// The directory of the file; where there is none, the embedded keystore's.
        dir: Option<PathBuf>,
        /// The passphrase that the file stands under, if it does.
        passphrase: Option<Source>,
    },
    /// Keys derived from passphrases.
    Passphrase {
        /// The passphrase.
        passphrase: Source,
        /// What deriving costs.
        cost: Cost,
    },
    /// A 256-bit key.
    Raw {
        /// The key.
        key: Source,
    },
    /// Commands that wrap and unwrap.
    Command {
        /// Program and arguments.
        wrap: Vec<String>,
        /// Program and arguments.
        unwrap: Vec<String>,
        /// Program and arguments, where keys have versions.
        newest: Option<Vec<String>>,
        /// How long one may run; 10 seconds unless said.
        time_out: Option<Duration>,
    },
    /// Keys on a token.
    Pkcs11 {
        /// The token's library.
        module: PathBuf,
        /// Which token of it.
        token: Token,
        /// The user's PIN.
        pin: Source,
        /// The mechanisms to wrap with, the preferred one first; those of the provider if empty.
        mechanisms: Vec<String>,
        /// Whether nothing else in the process uses the library.
        only_user: bool,
    },
}

/// Which token of a PKCS#11 library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// The one with this label.
    Label(String),
    /// The one in the slot of this number.
    Slot(u64),
}

/// Where a secret is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A file that nobody but its owner may read.
    File(PathBuf),
    /// An open descriptor of the process.
    Descriptor(i32),
    /// A variable of the environment.
    Environment(String),
    /// A question to a person; see [`Config::prompt`].
    Prompt,
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
            let built = self.provider(name, provider)?;
            let origin = match provider {
                Provider::Keystore { dir, .. } => self.keystore_in(dir.as_deref(), None)?.origin(),
                other => format!("{other:?}"),
            };
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
            Some(Provider::Keystore { dir, passphrase }) => {
                self.keystore_in(dir.as_deref(), passphrase.as_ref())
            }
            _ => Keystore::open_default(),
        }
    }

    fn keystore_in(&self, dir: Option<&Path>, passphrase: Option<&Source>) -> Result<Keystore> {
        // Where it is the embedded one, the environment may say its passphrase.
        let keystore = match (dir, Keystore::open_default()) {
            (None, embedded) => embedded?,
            (Some(dir), Ok(embedded)) if embedded.path().parent() == Some(dir) => embedded,
            (Some(dir), _) => Keystore::at(dir),
        };
        Ok(match passphrase {
            Some(source) => keystore.passphrase(self.secret(source)),
            None => keystore,
        })
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
        let key = key.as_ref().map(|key| self.secret(key));
        Ok(AuditOptions { dir, key, max_bytes: *max_bytes, keep: *keep })
    }

    /// Whether `other` says anything else, whoever is asked for secrets.
    #[cfg(feature = "extension")]
    pub(crate) fn differs_from(&self, other: &Self) -> bool {
        (&self.settings, &self.providers, &self.audit)
            != (&other.settings, &other.providers, &other.audit)
    }

    fn provider(&self, name: &str, provider: &Provider) -> Result<Arc<dyn KeyProvider>> {
        Ok(match provider {
            Provider::Keystore { dir, passphrase } => {
                Arc::new(self.keystore_in(dir.as_deref(), passphrase.as_ref())?)
            }
            Provider::Passphrase { passphrase, cost } => {
                Arc::new(Passphrase::new(self.secret(passphrase)).cost(*cost))
            }
            Provider::Raw { key } => Arc::new(RawKey::new(self.secret(key))),
            Provider::Command { wrap, unwrap, newest, time_out } => {
                command(wrap, unwrap, newest.as_ref(), *time_out)?
            }
            Provider::Pkcs11 { .. } => self.pkcs11(name, provider)?,
        })
    }

    fn secret(&self, source: &Source) -> SecretSource {
        match source {
            Source::File(path) => SecretSource::File(path.clone()),
            Source::Descriptor(number) => SecretSource::descriptor(*number),
            Source::Environment(name) => SecretSource::Environment(name.clone()),
            Source::Prompt => match self.prompt.clone() {
                Some(ask) => SecretSource::prompt(move |what| ask(what)),
                None => SecretSource::prompt(|what| {
                    let text = format!("{what} is to be asked for, and this program cannot ask");
                    Err(io::Error::new(io::ErrorKind::Unsupported, text))
                }),
            },
        }
    }

    #[cfg(feature = "pkcs11")]
    fn pkcs11(&self, name: &str, provider: &Provider) -> Result<Arc<dyn KeyProvider>> {
        use crate::provider::{Pkcs11, Token as TokenOf};
        let Provider::Pkcs11 { module, token, pin, mechanisms, only_user } = provider else {
            unreachable!("only such a provider comes here")
        };
        let token = match token {
            Token::Label(label) => TokenOf::Label(label.clone()),
            Token::Slot(number) => TokenOf::Slot(*number),
        };
        let pkcs11 = Pkcs11::new(module, token, self.secret(pin)).only_user(*only_user);
        if mechanisms.is_empty() {
            return Ok(Arc::new(pkcs11));
        }
        let found = mechanisms.iter().map(|name| mechanism(name)).collect::<Option<Vec<_>>>();
        let found = found.ok_or_else(|| {
            let words = format!("provider {name:?}: there is no such mechanism in {mechanisms:?}");
            Error::Config(words.into())
        })?;
        Ok(Arc::new(pkcs11.mechanisms(&found)))
    }

    #[cfg(not(feature = "pkcs11"))]
    fn pkcs11(&self, name: &str, _: &Provider) -> Result<Arc<dyn KeyProvider>> {
        Err(Error::Config(format!("provider {name:?}: {NO_PKCS11}").into()))
    }
}

#[cfg(not(feature = "pkcs11"))]
const NO_PKCS11: &str = "this build knows no tokens: build it with the feature pkcs11";

/// What a token may wrap with.
const MECHANISMS: [&str; 4] = ["aes-gcm", "aes-key-wrap", "rsa-oaep-sha256", "rsa-oaep-sha1"];

#[cfg(feature = "pkcs11")]
fn mechanism(name: &str) -> Option<crate::provider::Mechanism> {
    use crate::provider::Mechanism::{AesGcm, AesKeyWrap, RsaOaepSha1, RsaOaepSha256};
    let all = [AesGcm, AesKeyWrap, RsaOaepSha256, RsaOaepSha1];
    all.into_iter().find(|mechanism| mechanism.name() == name)
}

#[cfg(unix)]
fn command(
    wrap: &[String],
    unwrap: &[String],
    newest: Option<&Vec<String>>,
    time_out: Option<Duration>,
) -> Result<Arc<dyn KeyProvider>> {
    let words = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let mut command = Command::new(words(wrap), words(unwrap));
    if let Some(newest) = newest {
        command = command.newest(words(newest));
    }
    if let Some(time_out) = time_out {
        command = command.timeout(time_out);
    }
    Ok(Arc::new(command))
}

#[cfg(not(unix))]
fn command(
    _: &[String],
    _: &[String],
    _: Option<&Vec<String>>,
    _: Option<Duration>,
) -> Result<Arc<dyn KeyProvider>> {
    Err(Error::Config("commands are run on Unix alone".to_owned().into()))
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
