//! Arguments of `key`, and their meaning to the library.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use sqlite_tde::audit::EventKind;
use sqlite_tde::provider::{KeyFormat, KeyRules, Operation, RECOVERY_DAYS, SecretSource};

#[derive(Subcommand)]
pub enum Key {
    /// Add a key
    Create {
        /// 1 to 64 of A-Z a-z 0-9 . _ -
        name: String,
        #[command(flatten)]
        rules: Rules,
    },
    /// List the keys
    List {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a version to a key, which wraps from then on; older ones go on unwrapping
    Rotate { name: String },
    /// Allow the use of a key, or of one version of it
    Enable(Which),
    /// Refuse the use of a key, or of one version of it
    Disable(Which),
    /// Change when and for what a key may be used
    Set {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        rules: Rules,
    },
    /// Take over a 256-bit key from a file, a descriptor, the environment or standard input
    Import(Import),
    /// Reveal a key
    Export(Export),
    /// Schedule a key for deletion: its use is refused at once, and for some days it can be brought
    /// back
    Delete {
        name: String,
        /// Days until the deletion, 1 to 3650
        #[arg(long, value_name = "N", default_value_t = RECOVERY_DAYS)]
        days: u32,
    },
    /// Bring back a key that is scheduled for deletion
    Undelete { name: String },
    /// Delete a key permanently; data protected only by it is lost
    Purge {
        name: String,
        /// Do it
        #[arg(long)]
        force: bool,
    },
    /// A passphrase over the keystore
    #[command(subcommand)]
    Passphrase(Passphrase),
}

impl Key {
    /// The audit event: its kind, key and verb.
    pub fn describe(&self) -> (EventKind, Option<&str>, &'static str) {
        let (name, verb) = match self {
            Self::Create { name, .. } => (name, "create"),
            Self::Rotate { name } => (name, "rotate"),
            Self::Enable(which) => (&which.name, "enable"),
            Self::Disable(which) => (&which.name, "disable"),
            Self::Set { which, .. } => (&which.name, "set"),
            Self::Import(import) => (&import.name, "import"),
            Self::Export(export) => return (EventKind::Export, Some(&export.which.name), "export"),
            Self::Delete { name, .. } => (name, "delete"),
            Self::Undelete { name } => (name, "undelete"),
            Self::Purge { name, .. } => (name, "purge"),
            Self::List { .. } => return (EventKind::KeyChange, None, "list"),
            Self::Passphrase(_) => return (EventKind::KeyChange, None, "passphrase"),
        };
        (EventKind::KeyChange, Some(name), verb)
    }
}

#[derive(Subcommand)]
pub enum Passphrase {
    /// Seal the keystore under a passphrase
    Set(Place),
    /// Seal it under another one
    Change(Place),
    /// Write its keys in the clear again
    Remove,
}

#[derive(Args)]
pub struct Which {
    pub name: String,
    /// Only this version (times: the newest by default)
    #[arg(long, value_name = "N")]
    pub version: Option<u32>,
}

#[derive(Args)]
pub struct Rules {
    /// First time at which the version may be used: 2027-01-31, or 2027-01-31T12:00:00Z, or `none`
    #[arg(long, value_name = "TIME", value_parser = limit)]
    not_before: Option<Limit>,
    /// Time from which it may no longer be used; a date is its first second, in UTC
    #[arg(long, value_name = "TIME", value_parser = limit)]
    not_after: Option<Limit>,
    /// Allowed operations of the key
    #[arg(long, value_name = "OPS", value_delimiter = ',')]
    ops: Option<Vec<Op>>,
}

/// A time, or `None`.
#[derive(Clone, Copy)]
pub struct Limit(Option<SystemTime>);

#[derive(Clone, Copy, ValueEnum)]
pub enum Op {
    Wrap,
    Unwrap,
}

/// The source of a secret.
#[derive(Args)]
#[group(multiple = false)]
pub struct Place {
    /// A file that only its owner may read
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// An open descriptor
    #[arg(long, value_name = "N")]
    pub fd: Option<i32>,
    /// A variable of the environment
    #[arg(long, value_name = "VAR")]
    pub env: Option<String>,
}

#[derive(Args)]
pub struct Import {
    pub name: String,
    #[command(flatten)]
    pub place: Place,
    /// Key format [default: detected]
    #[arg(long)]
    pub format: Option<Format>,
    /// Add it as a version of an existing key
    #[arg(long)]
    pub new_version: bool,
}

#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    pub which: Which,
    /// Confirm that the key is shown in the output
    #[arg(long)]
    pub reveal: bool,
    /// Output format
    #[arg(long, default_value = "pem")]
    pub format: Format,
    /// A new file, with mode 0600, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    /// 32 bytes
    Raw,
    /// 64 hexadecimal digits
    Hex,
    /// PEM: base64 between lines with a label
    Pem,
}

impl Rules {
    pub fn is_empty(&self) -> bool {
        self.not_before.is_none() && self.not_after.is_none() && self.ops.is_none()
    }

    pub fn rules(&self) -> KeyRules {
        let mut rules = KeyRules::new();
        if let Some(Limit(time)) = self.not_before {
            rules = rules.not_before(time);
        }
        if let Some(Limit(time)) = self.not_after {
            rules = rules.not_after(time);
        }
        match &self.ops {
            Some(ops) => rules.operations(ops.iter().map(|op| match op {
                Op::Wrap => Operation::Wrap,
                Op::Unwrap => Operation::Unwrap,
            })),
            None => rules,
        }
    }
}

/// A date, a time with its offset, or `none`.
fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    time(text).map(|time| Limit(Some(time))).map_err(|words| format!("{words}, or `none`"))
}

/// A date, or a time with its offset.
pub fn time(text: &str) -> Result<SystemTime, String> {
    const DATE_LEN: usize = "2027-01-31".len();
    let time = match text.len() {
        DATE_LEN => format!("{text}T00:00:00Z").parse::<Timestamp>(),
        _ => text.parse::<Timestamp>(),
    };
    let time = time.ok().filter(|time| time.as_second() >= 0);
    time.and_then(|time| SystemTime::try_from(time).ok())
        .ok_or_else(|| "expected 2027-01-31, or 2027-01-31T12:00:00Z, from 1970 on".into())
}

impl Format {
    pub fn key_format(self) -> KeyFormat {
        match self {
            Self::Raw => KeyFormat::Raw,
            Self::Hex => KeyFormat::Hex,
            Self::Pem => KeyFormat::Pem,
        }
    }
}

impl Place {
    /// The source of the secret, if given.
    pub fn source(&self) -> Option<SecretSource> {
        let Self { file, fd, env } = self;
        let file = file.clone().map(SecretSource::File);
        let fd = || fd.map(SecretSource::descriptor);
        let env = || env.clone().map(SecretSource::Environment);
        file.or_else(fd).or_else(env)
    }
}
