//! What an application says when it registers the VFS.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::AuditLog;
use crate::config::{Config, Pins, Policy};
use crate::error::{Error, Result};
use crate::io::tuning::Tuning;
use crate::key::access::AccessPolicy;
use crate::key::auditor::AuditPolicy;
use crate::key::protector::{KEYSTORE, Rotation};
use crate::key::session::Wishes;
use crate::provider::{KeyProvider, Keystore};
use crate::suite::SuiteId;
use crate::vfs::{self, Registration};

/// Settings of a registration. The default is a VFS called `tde` over the platform's, not SQLite's
/// default one, with the local keystore as provider, and refusing plaintext databases.
#[derive(Clone, Default)]
#[must_use]
pub struct Options {
    name: Option<String>,
    base: Option<String>,
    default: bool,
    keystore: Option<Keystore>,
    /// The names that [`Options::provider`] has given.
    named: BTreeSet<String>,
    /// What cannot be followed; [`register`] says so.
    wrong: Option<String>,
    wishes: Wishes,
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// What `config` says, over what was said before. An audit log that it asks for is opened.
    ///
    /// # Errors
    /// [`crate::Error::Config`], [`crate::Error::Audit`], or [`crate::Error::Usage`] where there is
    /// no home directory.
    pub fn config(mut self, config: &Config) -> Result<Self> {
        let protectors = &mut self.wishes.protectors;
        for (name, provider) in config.providers()? {
            check_name(&name).map_err(Error::Usage)?;
            // What the application says itself holds.
            if !self.named.contains(&name) {
                protectors.add(&name, provider);
            }
        }
        if let Some(name) = &config.default_protector {
            protectors.set_default(name);
        }
        protectors.access = config.access.clone();
        protectors.rotation = Rotation(config.rotation);
        protectors.policy = Arc::new(config.policy.clone());
        protectors.pins = Arc::new(config.pins.clone());
        protectors.auditor.log = config.open_audit()?;
        self.wishes.suite = config.cipher.unwrap_or(self.wishes.suite);
        self.wishes.plaintext |= config.allow_plaintext;
        self.wishes.tuning = config.tuning;
        Ok(self)
    }

    /// What an operator forbids.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.wishes.protectors.policy = Arc::new(policy);
        self
    }

    /// Which databases are expected at which paths and under which protectors: any other is
    /// refused.
    pub fn pins(mut self, pins: Pins) -> Self {
        self.wishes.protectors.pins = Arc::new(pins);
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

    /// Passes existing unencrypted databases through as they are, instead of refusing them.
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.wishes.plaintext = allow;
        self
    }

    /// The protector of new databases: `provider:key`, or the name of a key in the local keystore.
    pub fn default_protector(mut self, name: &str) -> Self {
        self.wishes.protectors.set_default(name);
        self
    }

    /// How the loss of a key provider, or of its consent, is met.
    pub fn access(mut self, policy: AccessPolicy) -> Self {
        self.wishes.protectors.access = policy;
        self
    }

    /// How often a newer version of a protector's key is looked for, to re-wrap under it: when a
    /// database is opened, and while it is open, at most once per this time. 24 hours unless said;
    /// `None` for never.
    pub fn auto_rotate(mut self, interval: Option<Duration>) -> Self {
        self.wishes.protectors.rotation = Rotation(interval);
        self
    }

    /// Records what is done with keys and databases, and says what follows where that fails.
    pub fn audit(mut self, log: Arc<AuditLog>, policy: AuditPolicy) -> Self {
        self.wishes.protectors.auditor.log = Some((log, policy));
        self
    }

    /// The cipher suite of new databases.
    pub fn cipher(mut self, cipher: SuiteId) -> Self {
        self.wishes.suite = cipher;
        self
    }

    /// Which short cuts files take; all unless said. Where a VFS below cannot bear larger reads and
    /// writes than SQLite makes, or to compare.
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.wishes.tuning = tuning;
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
            Ok(()) => self.wishes.protectors.add(name, provider),
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

/// Registers the VFS. A second call with the same name gives it new settings, which hold for the
/// files opened from then on; its base stays.
///
/// # Errors
/// [`crate::Error::Usage`] where the base VFS does not exist, no home directory is known, or a
/// provider cannot have its name.
pub fn register(options: Options) -> Result<()> {
    let Options { name, base, default, keystore, named, wrong, mut wishes } = options;
    let twice = keystore.is_some() && named.contains(KEYSTORE);
    if let Some(words) = wrong.or_else(|| twice.then(|| two(KEYSTORE))) {
        return Err(Error::Usage(words));
    }
    if keystore.is_some() || !wishes.protectors.has(KEYSTORE) {
        let keystore = keystore.map_or_else(Keystore::open_default, Ok)?;
        wishes.protectors.add(KEYSTORE, Arc::new(keystore));
    }
    wishes.protectors.pins.check(|provider| wishes.protectors.has(provider))?;
    vfs::register(Registration {
        name: name.as_deref().unwrap_or("tde"),
        base: base.as_deref(),
        default,
        wishes,
    })
}
