//! Every setting once: its name, its default, and what a later source may make of it.
//!
//! ```text
//! default < configuration < application < URI
//! ```
//! Each source is a [`Layer`], in which a setting is said or not. Layers are merged setting by
//! setting: a source that says nothing of one leaves it. Where a later source would weaken what an
//! earlier one demanded, that is an error that names both. [`Settings`] are what came of it.

pub(crate) mod identity;
mod rules;
pub(crate) mod uri;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::AuditLog;
use crate::error::{Error, Result};
use crate::provider::{DEFAULT_KEY, MEMORY_MAX_KIB, WORK_MAX_KIB};
use crate::suite::SuiteId;
use identity::{FileId, Pins};
use rules::{both, exactly, no_longer, no_rarer, no_smaller, replace, stays, subset, within};

/// Name of the embedded provider, the local keystore.
pub(crate) const KEYSTORE: &str = "keystore";

/// Provider and key of the protector called `name`.
pub(crate) fn split(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or((KEYSTORE, name))
}

/// Defines a group of settings: the values that hold, and what one source says of them. A rule gets
/// what was demanded and what is said now, and answers with what holds; `None` where that would be
/// weaker.
macro_rules! settings {
    (
        $(#[$meta:meta])* $name:ident, $layer:ident;
        $($(#[$doc:meta])* $field:ident: $type:ty = $default:expr, $rule:expr;)*
        $(@groups { $($(#[$group_doc:meta])* $group:ident: $group_type:ident, $group_layer:ident;)* })?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
            $($($(#[$group_doc])* pub $group: $group_type,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                $layer::default().values()
            }
        }

        #[doc = concat!("What one source says of [`", stringify!($name), "`]: `None` for nothing.")]
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $layer {
            $($(#[$doc])* pub $field: Option<$type>,)*
            $($($(#[$group_doc])* pub $group: $group_layer,)*)?
        }

        impl $layer {
            /// The values that hold where no other source says anything.
            #[must_use]
            pub fn values(&self) -> $name {
                $name {
                    $($field: self.$field.clone().unwrap_or_else(|| $default),)*
                    $($($group: self.$group.values(),)*)?
                }
            }

            /// Merges what the source `after` says over this of the source `before`.
            fn merge(&mut self, later: Self, sources: (&str, &str), prefix: &str) -> Result<()> {
                $(merged(
                    &mut self.$field, later.$field, $rule, sources, prefix, stringify!($field),
                )?;)*
                $($(self.$group.merge(later.$group, sources, concat!(stringify!($group), "."))?;)*)?
                let _ = prefix;
                Ok(())
            }
        }

        impl From<$name> for $layer {
            fn from(values: $name) -> Self {
                Self {
                    $($field: Some(values.$field),)*
                    $($($group: values.$group.into(),)*)?
                }
            }
        }

        impl $name {
            /// Adds the settings in which `other` differs to `out`, with both values.
            fn compare(&self, other: &Self, prefix: &str, out: &mut Vec<String>) {
                $(if self.$field != other.$field {
                    let (name, one, other) = (stringify!($field), &self.$field, &other.$field);
                    out.push(format!("{prefix}{name} ({one:?}, not {other:?})"));
                })*
                $($(self.$group.compare(&other.$group, concat!(stringify!($group), "."), out);)*)?
                let _ = prefix;
            }
        }
    };
}

settings! {
    /// What holds for the databases of a registration, or for one of them.
    Settings, Layer;
    /// The protector of new databases: `PROVIDER:KEY`, or `KEY` of the keystore.
    default_protector: String = DEFAULT_KEY.to_owned(), replace;
    /// The cipher suite of new databases.
    cipher: SuiteId = SuiteId::default(), replace;
    /// Whether existing unencrypted databases are opened as they are, instead of refused.
    allow_plaintext: bool = false, stays(false);
    /// How often a newer version of a protector's key is looked for, to re-wrap under it: when a
    /// database is opened, and while it is open, at most once per this time. `None` for never.
    /// Default: 24 hours.
    rotation: Option<Duration> = Some(Duration::from_secs(24 * 3600)), replace;
    /// Which databases are expected at which paths and under which protectors. Others are refused.
    pins: Pins = Pins::default(), both;
    /// The log that records what is done with keys and databases.
    audit_log: Option<Arc<AuditLog>> = None, exactly;
    /// The protector of one database, if it is new, or the only one to try.
    protector: Option<String> = None, replace;
    /// The database that one file must be.
    file_id: Option<FileId> = None, exactly;
    @groups {
        /// How the loss of a key provider, or of its consent, is met.
        access: AccessPolicy, AccessLayer;
        /// What is forbidden.
        policy: Policy, PolicyLayer;
        /// What follows where the audit log cannot be written.
        audit: AuditPolicy, AuditLayer;
        /// The short cuts that files take.
        tuning: Tuning, TuningLayer;
    }
}

settings! {
    /// How the loss of a key provider, or of its consent, is met.
    AccessPolicy, AccessLayer;
    /// How often the provider of an open database is asked whether it still consents; `None` for
    /// never. It is asked when a transaction begins, beside it. Default: 10 minutes.
    revalidate: Option<Duration> = Some(Duration::from_secs(600)), no_rarer;
    /// How long an open database stays usable after that where the provider does not answer; after
    /// zero it is locked at the first outage. Default: 24 hours.
    grace: Duration = Duration::from_secs(24 * 3600), no_longer;
    /// How often a provider that does not answer is tried before the answer is "unreachable".
    attempts: u32 = 3, replace;
    /// The pause before the second attempt, give or take a half; each later one is twice as long.
    retry_delay: Duration = Duration::from_millis(200), replace;
    /// How long one call may take. Providers that wait for a person have their own time.
    time_out: Duration = Duration::from_secs(10), replace;
    /// How long the opening of one database waits for services, over all its protectors. Default: 1
    /// minute.
    open_time_out: Duration = Duration::from_secs(60), replace;
    /// What the opening of one database may spend on deriving keys from passphrases. Whoever can
    /// write the file says what a derivation costs.
    derivation: Derivation = Derivation::default(), within;
}

settings! {
    /// What an operator forbids.
    Policy, PolicyLayer;
    /// How many protectors a database must keep.
    min_protectors: u32 = 1, no_smaller;
    /// What happens to the removal of one below that.
    below_min: BelowMin = BelowMin::Refuse, stays(BelowMin::Refuse);
    /// The providers whose keys may become protectors, and through which databases are opened; any
    /// where there is no list.
    allowed_providers: Option<Vec<String>> = None, subset;
    /// The cipher suites of databases, new or existing; any where there is no list.
    allowed_ciphers: Option<Vec<SuiteId>> = None, subset;
}

settings! {
    /// What follows where the audit log cannot be written.
    #[derive(Copy)]
    AuditPolicy, AuditLayer;
    /// A change to keys fails, and has changed nothing: creating a database; wrapping; adding,
    /// rotating and removing a protector. Default: true.
    fail_key_changes: bool = true, stays(true);
    /// Opening a database fails. Default: it goes on, and SQLite's error log says so.
    fail_opens: bool = false, stays(true);
}

settings! {
    /// Which short cuts the files of a database take. Each can be switched off, which changes speed
    /// alone.
    #[derive(Copy)]
    Tuning, TuningLayer;
    /// Whether what is read in sequence is read from the disk in large pieces, ahead of being asked
    /// for.
    read_ahead: bool = true, replace;
    /// Whether neighbouring writes reach the disk as one, where SQLite can still be told of an
    /// error.
    gather_writes: bool = true, replace;
}

impl Tuning {
    /// No short cut at all: one call on the base VFS for each of SQLite's.
    pub const OFF: Self = Self { read_ahead: false, gather_writes: false };
}

/// What deriving keys may cost before it is known whether a database is genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Derivation {
    /// The memory of one derivation, in KiB. Default: 1 GiB, the most that a passphrase can ask
    /// for.
    pub memory_kib: u32,
    /// The memory filled by all of them, each iteration counted, in KiB. Default: 4 GiB, the most
    /// that one passphrase can ask for, which takes some seconds.
    pub work_kib: u64,
}

impl Default for Derivation {
    fn default() -> Self {
        Self { memory_kib: MEMORY_MAX_KIB, work_kib: WORK_MAX_KIB }
    }
}

/// What happens to the removal of a protector that would leave too few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BelowMin {
    /// It is refused.
    Refuse,
    /// It is done, with a warning.
    Warn,
}

impl Layer {
    /// What holds where the source called `before` said this and the source called `after` says
    /// `later`.
    ///
    /// # Errors
    /// [`Error::Usage`] where that would weaken what `before` demanded.
    pub(crate) fn then(mut self, later: Self, before: &str, after: &str) -> Result<Self> {
        self.merge(later, (before, after), "")?;
        Ok(self)
    }
}

impl Settings {
    /// The settings in which `other` differs, with both values.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut out = Vec::new();
        self.compare(other, "", &mut out);
        out
    }
}

fn merged<T: Debug>(
    demanded: &mut Option<T>,
    said: Option<T>,
    rule: impl FnOnce(&T, &T) -> Option<T>,
    (before, after): (&str, &str),
    prefix: &str,
    name: &str,
) -> Result<()> {
    *demanded = match (demanded.take(), said) {
        (demanded, None) => demanded,
        (None, said) => said,
        (Some(demanded), Some(said)) => Some(rule(&demanded, &said).ok_or_else(|| {
            Error::Usage(format!(
                "{prefix}{name}: {after} says {said:?}, and {before} demands {demanded:?}: a later \
                 setting must not weaken an earlier one"
            ))
        })?),
    };
    Ok(())
}
