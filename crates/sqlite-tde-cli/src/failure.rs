//! Errors as a shell sees them: an exit code, a message, and advice if there is a remedy.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use rusqlite::ErrorCode;
use sqlite_tde::Error;
use sqlite_tde::provider::{Keystore, ProviderError};

/// Exit code: done.
pub const DONE: u8 = 0;
/// Exit code: `verify` found damage.
pub const DAMAGED: u8 = 1;
/// Exit code: arguments that make no sense. clap uses the same.
pub const USAGE: u8 = 2;
/// Exit code: a key or its provider.
pub const KEY: u8 = 3;
/// Exit code: an unexpected file.
pub const UNEXPECTED: u8 = 4;
/// Exit code: anything else.
pub const OTHER: u8 = 5;

/// The failure of a command.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// Not printed if empty.
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure without advice.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds or replaces the advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error of the file system at `path`.
    pub fn at(path: &Path, error: &io::Error) -> Self {
        Self::new(OTHER, format!("{}: {error}", path.display()))
    }

    /// Prefixes the message with its file.
    pub fn about(mut self, path: &Path) -> Self {
        let path = path.display().to_string();
        if !self.message.is_empty() && !self.message.starts_with(&path) {
            self.message = format!("{path}: {}", self.message);
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.message.is_empty() {
            writeln!(f, "error: {}", self.message)?;
        }
        match &self.hint {
            Some(hint) => writeln!(f, "hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = match &error {
            // Not with the whole of the SQL behind it.
            Error::Sqlite(rusqlite::Error::SqlInputError { msg, .. }) => msg.clone(),
            error => error.to_string(),
        };
        Self { code: code(&error), message, hint: hint(&error) }
    }
}

/// Must run at once, on the thread that got the error: the typed error behind it is kept there.
impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Error::from(error).into()
    }
}

/// An error of writing the answer. A closed pipe is not reported.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(OTHER, ""),
            _ => Self::new(OTHER, format!("output: {error}")),
        }
    }
}

impl From<csv::Error> for Failure {
    fn from(error: csv::Error) -> Self {
        match error.into_kind() {
            csv::ErrorKind::Io(error) => error.into(),
            kind => Self::new(OTHER, format!("output: {kind:?}")),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(OTHER, format!("output: {error}"))
    }
}

/// Writes to stderr and ignores errors.
pub fn say(what: impl fmt::Display) {
    let _ = write!(io::stderr().lock(), "{what}");
}

fn code(error: &Error) -> u8 {
    match error {
        Error::Usage(_) | Error::Config(_) => USAGE,
        Error::NoKey(_)
        | Error::WrongKey(_)
        | Error::KeyDisabled(_)
        | Error::Inaccessible { .. }
        | Error::ProviderUnreachable(_)
        | Error::ProviderDamaged(_)
        | Error::LoosePermissions(_) => KEY,
        Error::NotADatabase(_)
        | Error::NotEncrypted
        | Error::PlaintextRefused
        | Error::EnvelopeDamaged(_)
        | Error::EnvelopeOutdated { .. }
        | Error::DamagedInUse(_)
        | Error::FormatTooNew { .. }
        | Error::WrongFile { .. }
        | Error::PageAuthentication { .. }
        | Error::FrameAuthentication { .. }
        | Error::JournalAuthentication { .. }
        | Error::JournalOutdated { .. }
        | Error::LogOutdated
        | Error::LogCut { .. } => UNEXPECTED,
        Error::Sqlite(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => UNEXPECTED,
            _ => OTHER,
        },
        _ => OTHER,
    }
}

fn hint(error: &Error) -> Option<String> {
    let home = keystore();
    Some(match error {
        Error::NoKey(_) => {
            format!("keys are read from {home}; SQLITE_TDE_HOME sets another directory")
        }
        Error::WrongKey(_) => format!(
            "give the right passphrase, name a protector that the database has, or set \
             SQLITE_TDE_HOME to the keystore that it was encrypted with; keys are now looked for in \
             {home}"
        ),
        Error::Audit(_) => {
            "`sqlite-tde audit verify` finds the fault of the log; [audit] in config.toml sets \
             what may go on without it"
                .into()
        }
        Error::ReadOnly { protector: Some(_), .. } => {
            "open it through another protector: --through NAME".into()
        }
        Error::KeyDisabled(_) | Error::Inaccessible { .. } => {
            "enable the key at its provider, or use another protector".into()
        }
        Error::ProviderUnreachable(_) => {
            "check that the key provider is reachable, then retry".into()
        }
        Error::ProviderDamaged(_) => format!("put back {home} from a backup"),
        Error::LoosePermissions(ProviderError::OtherOwner { .. }) => {
            "run this as that user, or give the file to yourself if you trust what it says".into()
        }
        Error::LoosePermissions(text) => loose(&text.to_string()),
        Error::PageAuthentication { .. } => {
            "`sqlite-tde verify DB` lists every damaged page; put back a backup".into()
        }
        Error::EnvelopeDamaged(_) | Error::DamagedInUse(_) => {
            "without its envelope the file cannot be read: put back a \
             backup"
                .into()
        }
        Error::WrongFile { .. } => {
            "the file was replaced by another one, or [pins] in config.toml must be changed".into()
        }
        Error::FormatTooNew { .. } => "use a newer sqlite-tde".into(),
        Error::NotEncrypted => "`sqlite-tde encrypt SRC DST` makes an encrypted copy".into(),
        _ => return None,
    })
}

fn keystore() -> String {
    match Keystore::open_default() {
        Ok(keystore) => keystore.path().display().to_string(),
        Err(_) => "the keystore".into(),
    }
}

/// `text` names the file or directory that others may read.
fn loose(text: &str) -> String {
    let home = Keystore::open_default().map(|keystore| keystore.path()).ok();
    match home.as_deref().and_then(|file| Some((file, file.parent()?))) {
        Some((file, dir)) if text.contains(&dir.display().to_string()) => {
            format!("chmod 700 '{}' && chmod 600 '{}'", dir.display(), file.display())
        }
        _ => "restrict access to the owner: chmod 600 a file, 700 a directory".into(),
    }
}
