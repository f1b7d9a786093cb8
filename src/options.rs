//! What an application says when it registers the VFS.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::AuditLog;
use crate::config::{Config, Pins, Policy};
use crate::error::{Error, Result};
use crate::key::protector::Protectors;
use crate::process;
use crate::provider::{KeyProvider, Keystore};
use crate::settings::{AccessPolicy, AuditPolicy, KEYSTORE, Layer, Tuning};
use crate::suite::SuiteId;
use crate::vfs::{self, Registration};

/// Settings of a registration. The default is a VFS called `tde` over the platform's, not SQLite's
/// default one, with the local keystore as provider, and refusing plaintext databases.
///
/// What an application says here holds over what a configuration says, whichever comes first. Where
/// it would weaken what the configuration demands, [`register`] refuses it: it names both. The
/// methods are one source: of one that is called twice, the last call holds.
#[derive(Clone, Default)]
#[must_use]
pub struct Options {
    name: Option<String>,
    base: Option<String>,
    default: bool,
    replace: bool,
    keystore: Option<Keystore>,
    /// The names that [`Options::provider`] has given.
    named: BTreeSet<String>,
    /// A setting that cannot be followed; [`register`] says so.
    wrong: Option<String>,
    providers: Protectors,
    plaintext_by_default: bool,
    configuration: Layer,
    application: Layer,
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The settings and providers of `config`. An audit log that it asks for is opened.
    ///
    /// # Errors
    /// [`crate::Error::Config`], [`crate::Error::Audit`], or [`crate::Error::Usage`] where there is
    /// no home directory, or this configuration weakens an earlier one.
    pub fn config(mut self, config: &Config) -> Result<Self> {
        for (name, origin, provider) in config.described_providers()? {
            check_name(&name).map_err(Error::Usage)?;
            // The application's own holds.
            if !self.named.contains(&name) {
                self.providers.add_of(&name, origin, provider);
            }
        }
        let mut said = config.settings.clone();
        if let Some((log, _)) = config.open_audit()? {
            said.audit_log = Some(Some(log));
        }
        self.configuration =
            self.configuration.then(said, "the first configuration", "the second one")?;
        Ok(self)
    }

    /// What an operator forbids.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.application.policy = policy.into();
        self
    }

    /// Which databases are expected at which paths and under which protectors: any other is
    /// refused. Those of a configuration hold, too.
    pub fn pins(mut self, pins: Pins) -> Self {
        self.application.pins = Some(pins);
        self
    }

    /// The name to register under; `tde` unless said.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The VFS to put the files in; SQLite's default one unless said.
    pub fn base(mut self, base: impl Into<String>) -> Self {
        self.base = Some(base.into());
        self
    }

    /// Makes this SQLite's default VFS. A connection to an unencrypted main database sorts in
    /// temporary files of *its* VFS: where such a connection attaches an encrypted database, only
    /// the default VFS keeps those encrypted too. Combine it with [`Options::allow_plaintext`].
    pub fn as_default(mut self, default: bool) -> Self {
        self.default = default;
        self
    }

    /// Whether a VFS that is registered under this name already gets these settings, instead of an
    /// error that names the differences. They hold for the files that are opened from then on; the
    /// base stays, and so does SQLite's default VFS.
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    /// Passes existing unencrypted databases through as they are, instead of refusing them. Once it
    /// is said, either way, the URI of a database cannot allow more.
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.application.allow_plaintext = Some(allow);
        self
    }

    /// As [`Options::allow_plaintext`], where nothing else says.
    #[cfg(feature = "extension")]
    pub(crate) fn plaintext_by_default(mut self, allow: bool) -> Self {
        self.plaintext_by_default = allow;
        self
    }

    /// The protector of new databases: `provider:key`, or the name of a key in the local keystore.
    pub fn default_protector(mut self, name: &str) -> Self {
        self.application.default_protector = Some(name.to_owned());
        self
    }

    /// How the loss of a key provider, or of its consent, is met.
    pub fn access(mut self, policy: AccessPolicy) -> Self {
        self.application.access = policy.into();
        self
    }

    /// How often a newer version of a protector's key is looked for; see
    /// [`crate::config::Layer::rotation`].
    pub fn auto_rotate(mut self, interval: Option<Duration>) -> Self {
        self.application.rotation = Some(interval);
        self
    }

    /// Records what is done with keys and databases, and says what follows where that fails.
    pub fn audit(mut self, log: Arc<AuditLog>, policy: AuditPolicy) -> Self {
        self.application.audit_log = Some(Some(log));
        self.application.audit = policy.into();
        self
    }

    /// The cipher suite of new databases.
    pub fn cipher(mut self, cipher: SuiteId) -> Self {
        self.application.cipher = Some(cipher);
        self
    }

    /// Which short cuts files take. Default: all. Where a VFS below cannot bear larger reads and
    /// writes than SQLite makes, or to compare.
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.application.tuning = tuning.into();
        self
    }

    /// Makes `provider` known under `name`, which is all that a database file says of it: 1 to 64
    /// characters, no `:` and no control character. [`register`] refuses others, and a name that is
    /// given twice. One of the configuration gives way.
    pub fn provider(mut self, name: &str, provider: Arc<dyn KeyProvider>) -> Self {
        let checked = match self.named.insert(name.to_owned()) {
            true => check_name(name),
            false => Err(two(name)),
        };
        match checked {
            Ok(()) => self.providers.add(name, provider),
            Err(words) => _ = self.wrong.get_or_insert(words),
        }
        self
    }

    /// The local keystore to use, instead of the one in `$SQLITE_TDE_HOME` or the platform's data
    /// directory.
    pub fn keystore(mut self, keystore: Keystore) -> Self {
        self.keystore = Some(keystore);
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Options");
        shown.field("name", &self.name).field("base", &self.base);
        shown.field("configuration", &self.configuration).field("application", &self.application);
        shown.finish_non_exhaustive()
    }
}

fn two(name: &str) -> String {
    format!("two providers are called {name:?}: give each its own name")
}

/// What separates a provider from its key in a protector's name can be in neither.
fn check_name(name: &str) -> Result<(), String> {
    let sound = (1..=64).contains(&name.chars().count())
        && !name.contains(|c: char| c == ':' || c.is_control());
    if sound {
        return Ok(());
    }
    Err(format!(
        "no provider can be called {name:?}: use 1 to 64 characters without `:` and control \
         characters"
    ))
}

/// Registers the VFS. A second call with the same name and the same settings changes nothing: two
/// parts of a program may both make it. One with other settings is refused, unless
/// [`Options::replace`] says so.
///
/// # Errors
/// [`crate::Error::Usage`] where the base VFS does not exist, another VFS has the name, no home
/// directory is known, a provider cannot have its name, the application would weaken what the
/// configuration demands, or the name is registered with other settings.
pub fn register(options: Options) -> Result<()> {
    process::read_environment();
    let Options { name, base, default, replace, keystore, named, wrong, .. } = options;
    let twice = keystore.is_some() && named.contains(KEYSTORE);
    if let Some(words) = wrong.or_else(|| twice.then(|| two(KEYSTORE))) {
        return Err(Error::Usage(words));
    }
    let mut providers = options.providers;
    if keystore.is_some() || !providers.has(KEYSTORE) {
        let keystore = keystore.map_or_else(Keystore::open_default, Ok)?;
        providers.add_of(KEYSTORE, keystore.origin(), Arc::new(keystore));
    }
    let said =
        options.configuration.then(options.application, "the configuration", "the application")?;
    let mut settings = said.values();
    settings.allow_plaintext = said.allow_plaintext.unwrap_or(options.plaintext_by_default);
    settings.pins.check(|provider| providers.has(provider))?;
    providers.set(settings);
    vfs::register(Registration {
        name: name.as_deref().unwrap_or("tde"),
        base: base.as_deref(),
        default,
        replace,
        said,
        protectors: providers,
    })
}
