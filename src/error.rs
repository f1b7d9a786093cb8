//! One error type, and one table from it to the codes that hosts see.
//!
//! Messages are lower case, without a full stop, and never hold key bytes or page content.
//! [`last_error`] keeps the newest one of each thread, because a host that only sees SQLite's codes
//! can ask for the words afterwards (`SELECT tde_last_error()`).

mod last;
pub(crate) mod provider;

use std::os::raw::c_int;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::ffi;
pub use last::last_error;
#[cfg(feature = "rusqlite")]
pub(crate) use last::{clear_last, take_last};
pub(crate) use last::{forget_last, set_last};
use provider::ProviderError;

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any foreign error behind one of ours.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// Every error of this crate; a variant for each kind of remedy.
///
/// The message of a variant with a source contains that of the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No protector of the database can be tried here.
    #[error("no key given: {0}")]
    NoKey(#[source] ProviderError),
    /// A protector key exists but is not the one that wrapped this database's key.
    #[error("wrong key: {0}")]
    WrongKey(#[source] ProviderError),
    /// The key provider did not answer.
    #[error("key provider unreachable: {0}")]
    ProviderUnreachable(#[source] ProviderError),
    /// The protector key exists and its use is refused.
    #[error("key disabled: {0}")]
    KeyDisabled(#[source] ProviderError),
    /// The key provider's own data is damaged.
    #[error("key provider damaged: {0}")]
    ProviderDamaged(#[source] ProviderError),
    /// A key file or directory that others may read.
    #[error("key provider refused: {0}")]
    LoosePermissions(#[source] ProviderError),
    /// The keys of an open database are gone: its provider denied them, did not answer for longer
    /// than the grace period, or they were locked. It heals when the provider gives them again.
    #[error("database inaccessible: {reason}")]
    #[non_exhaustive]
    Inaccessible {
        /// Why.
        reason: String,
        /// The provider's answer, if one was the reason.
        source: Option<ProviderError>,
    },
    /// Another connection was writing for longer than a key operation waits.
    #[error("database busy: {0}")]
    Busy(String),
    /// A change to a database that may only be read.
    #[error("read-only: {reason}")]
    #[non_exhaustive]
    ReadOnly {
        /// Why.
        reason: String,
        /// The protector whose limit it is, if it is one's.
        protector: Option<String>,
    },
    /// A key of that name already exists.
    #[error("key {name} already exists")]
    KeyExists {
        /// The name at its provider.
        name: String,
    },
    /// Neither copy of the envelope is intact.
    #[error("envelope damaged: {0}")]
    EnvelopeDamaged(String),
    /// The envelope in force is older than one that this process has seen in the file.
    #[error(
        "older envelope restored: generation {found}, this process has seen {known}; a removed \
         protector may open the database again. If the file was restored from a backup, close all \
         its connections in this process and reopen it; if not, put the newer envelope back (the \
         first 16 KiB of the file), or restore the file"
    )]
    EnvelopeOutdated {
        /// The generation of the envelope that was seen.
        known: u64,
        /// The generation in the file now. If it is the same, the content differs.
        found: u64,
    },
    /// The file of an open database has lost its pages or its envelope: it was cut, or another file
    /// was written over it.
    #[error("database file damaged while open: {0}")]
    DamagedInUse(String),
    /// A page was not written there by the holder of the key.
    #[error("page {page} failed authentication")]
    PageAuthentication {
        /// SQLite's page number, from 1.
        page: u32,
    },
    /// A frame of the write-ahead log was not written there by the holder of the key.
    #[error("write-ahead log frame {frame} failed authentication")]
    FrameAuthentication {
        /// SQLite's frame number, from 1; 0 is the log's header.
        frame: u32,
    },
    /// A record of a rollback journal was not written there by the holder of the key.
    #[error("journal record {record} failed authentication")]
    JournalAuthentication {
        /// Record number, from 0.
        record: u64,
    },
    /// A rollback journal was begun on an earlier state of the database beside it.
    #[error(
        "rollback journal belongs to an earlier state of the database (change counter {begun}, now \
         {found}); not played back. First copy the database and NAME-journal to another place. \
         Then, if the database is correct, move NAME-journal away; if not, put back the file that \
         the journal belongs to"
    )]
    JournalOutdated {
        /// SQLite's change counter when the journal was begun; 0 for a database without pages.
        begun: u32,
        /// The current change counter of the database.
        found: u32,
    },
    /// The write-ahead log was written for another state of the database beside it.
    #[error(
        "write-ahead log NAME-tdewal belongs to another state of NAME; not played back. Copy all \
         files first. If NAME was restored from a backup, move NAME-tdewal away; if NAME-tdewal \
         was separated from its database, put them together again. Keep the log if `sqlite-tde \
         verify` finds a damaged envelope copy"
    )]
    LogOutdated,
    /// The write-ahead log lacks frames that a checkpoint has copied to the database file.
    #[error(
        "write-ahead log NAME-tdewal lacks frame {frame}, which a checkpoint has copied, or a \
         later one: the log was cut or replaced by an older one. Copy all files first. Put the \
         whole log back, or restore a backup of NAME; without the log NAME may hold a part of a \
         transaction"
    )]
    LogCut {
        /// The first frame that is missing, from 1.
        frame: u32,
    },
    /// A block of a scratch file changed under the process that wrote it.
    #[error("scratch block {block} failed authentication")]
    ScratchAuthentication {
        /// Block number, from 0.
        block: u64,
    },
    /// The file is not the expected database.
    #[error("wrong database: file id {found}, expected {expected}")]
    WrongFile {
        /// The file id of the file, or a description of a file without one.
        found: String,
        /// The expected file id, or several with "or" between them.
        expected: String,
    },
    /// A change to the protectors is in one copy of the envelope only; or the disk failed so that
    /// its effect is unknown.
    #[error("unfinished: {reason}")]
    #[non_exhaustive]
    Unfinished {
        /// What is unfinished, and what to do.
        reason: String,
        /// The error of the disk, if there was one.
        source: Option<Box<Error>>,
    },
    /// The file was written by a later version of this software.
    #[error("format {found} is too new: this version reads up to {supported}")]
    FormatTooNew {
        /// The file's format version.
        found: u32,
        /// The newest that this version reads.
        supported: u32,
    },
    /// A key operation was asked of a database that is not encrypted.
    #[error("the database is not encrypted")]
    NotEncrypted,
    /// The file is a plaintext database and plaintext was not allowed.
    #[error(
        "plaintext refused: the file is an unencrypted SQLite database; encrypt it with \
         `sqlite-tde encrypt`, or open it with tde_plaintext=allow"
    )]
    PlaintextRefused,
    /// The file is neither an encrypted nor a plaintext database.
    #[error("not a database: {0}")]
    NotADatabase(String),
    /// A log of plain SQLite lies beside an encrypted database.
    #[error(
        "{path} is the log of an unencrypted database; a program without sqlite-tde would copy it \
         over the pages of this encrypted one, so writing is refused. Move it away, or remove it \
         if nothing in it is needed; mode=ro can still read"
    )]
    PlainLog {
        /// That log.
        path: PathBuf,
    },
    /// A page size that leaves SQLite too few usable bytes, or none that SQLite knows.
    #[error(
        "page size {0} is not possible: an encrypted page reserves 48 bytes and SQLite needs 480 \
         usable ones, so use 1024 to 65536"
    )]
    PageSize(u32),
    /// A change of page size on a database that has content.
    #[error(
        "the page size of an encrypted database with content cannot be changed in place; copy it: \
         `sqlite-tde copy --page-size`, or PRAGMA page_size and VACUUM INTO on a read-only \
         connection; a backup into it needs an empty database, or one of the same page size"
    )]
    PageSizeChange,
    /// Page 1 of another layout was about to be written.
    #[error(
        "the new content reserves {0} bytes a page where an encrypted database needs 48: copy a \
         plaintext database with `sqlite-tde encrypt` or VACUUM INTO, not with the backup API"
    )]
    ReserveBytes(u8),
    /// SQLite made a call with an offset or a length that no page has.
    #[error("a write of {len} bytes at offset {offset} is not one page")]
    NotAPage {
        /// Byte offset in the database as SQLite sees it.
        offset: u64,
        /// Length in bytes.
        len: usize,
    },
    /// A feature whose bytes this version does not encrypt.
    #[error("{0}")]
    Unsupported(String),
    /// An invalid setting or argument.
    #[error("{0}")]
    Usage(String),
    /// The configuration cannot be read, or is invalid.
    #[error("configuration: {0}")]
    Config(#[source] FileError),
    /// The audit log cannot be written, read or trusted.
    #[error("audit log: {0}")]
    Audit(#[source] FileError),
    /// The operating system's random source failed.
    #[error("no random bytes from the operating system: {0}")]
    Random(#[source] Source),
    /// An error of the file system, outside SQLite's VFS.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The base VFS returned this SQLite code; it is passed on unchanged.
    #[error("the base VFS returned SQLite code {0}")]
    Base(c_int),
    /// An error of SQLite's own.
    #[cfg(feature = "rusqlite")]
    #[error(transparent)]
    Sqlite(rusqlite::Error),
}

/// A fault of the configuration or of the audit log: where it is, and what.
#[derive(Debug, thiserror::Error)]
#[error("{}{reason}", self.place())]
#[non_exhaustive]
pub struct FileError {
    /// The file at fault.
    pub path: Option<PathBuf>,
    /// The line, from 1.
    pub line: Option<u64>,
    /// The setting, such as `access.grace`.
    pub setting: Option<String>,
    /// The fault, in words.
    pub reason: String,
    /// The error behind it.
    pub source: Option<Source>,
}

impl FileError {
    pub(crate) fn at(path: &Path, reason: impl Into<String>) -> Self {
        Self { path: Some(path.to_owned()), ..reason.into().into() }
    }

    pub(crate) fn of(path: &Path, source: std::io::Error) -> Self {
        Self::at(path, source.to_string()).caused_by(source)
    }

    pub(crate) fn line(self, line: u64) -> Self {
        Self { line: Some(line), ..self }
    }

    pub(crate) fn setting(self, name: impl Into<String>) -> Self {
        Self { setting: Some(name.into()).filter(|name| !name.is_empty()), ..self }
    }

    pub(crate) fn caused_by(self, source: impl Into<Source>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    fn place(&self) -> String {
        let path = self.path.as_ref().map(|path| path.display().to_string());
        let line = self.line.map(|line| format!("line {line}"));
        let place = path.into_iter().chain(line).chain(self.setting.clone());
        let place = place.reduce(|place, next| format!("{place}, {next}"));
        place.map_or_else(String::new, |place| place + ": ")
    }
}

impl From<String> for FileError {
    fn from(reason: String) -> Self {
        Self { path: None, line: None, setting: None, reason, source: None }
    }
}

/// The sink of errors that no call can return: SQLite's error log.
static LOG: OnceLock<fn(c_int, &str)> = OnceLock::new();

/// Sets that sink.
pub(crate) fn set_log(log: fn(c_int, &str)) {
    let _ = LOG.set(log);
}

/// Logs an error that no call can return.
pub(crate) fn log(code: c_int, text: &str) {
    if let Some(log) = LOG.get() {
        log(code, text);
    }
}

/// Result codes of our own: a primary code of SQLite's with an extension from 0x71 up, a range that
/// SQLite does not use.
const fn extended(primary: c_int, number: c_int) -> c_int {
    primary | ((0x70 + number) << 8)
}

impl Error {
    /// The extended SQLite result code that hosts see; the low byte is one of SQLite's own.
    ///
    /// | error | code |
    /// |---|---|
    /// | no key given | `SQLITE_AUTH` + 1 |
    /// | wrong key | `SQLITE_AUTH` + 2 |
    /// | key disabled | `SQLITE_AUTH` + 3 |
    /// | key provider unreachable | `SQLITE_CANTOPEN` + 1 |
    /// | key provider damaged, loose permissions, no random bytes | `SQLITE_CANTOPEN` + 2, 3, 4 |
    /// | envelope damaged, an older envelope put back | `SQLITE_CORRUPT` + 1, 2 |
    /// | page, frame, journal or scratch authentication, damaged in use | `SQLITE_IOERR_DATA` |
    /// | format too new, plaintext refused, no database, not encrypted | `SQLITE_NOTADB` + 1 to 4 |
    /// | wrong database | `SQLITE_NOTADB` + 5 |
    /// | page size, reserve bytes, not one page | `SQLITE_IOERR` + 1 to 4 |
    /// | inaccessible, unfinished | `SQLITE_IOERR` + 5, 6 |
    /// | busy, read-only | `SQLITE_BUSY`, `SQLITE_READONLY` |
    /// | unsupported, usage | `SQLITE_CANTOPEN` + 5, 6 |
    /// | audit log, configuration, a plain log beside the database | `SQLITE_CANTOPEN` + 7, 8, 9 |
    ///
    /// "+ n" means extension byte 0x70 + n. Refusals met while writing are in the `SQLITE_IOERR`
    /// family, the only one after which SQLite's pager rolls back by itself.
    #[must_use]
    pub fn sqlite_code(&self) -> c_int {
        match self {
            Self::NoKey(_) => extended(ffi::SQLITE_AUTH, 1),
            Self::WrongKey(_) => extended(ffi::SQLITE_AUTH, 2),
            Self::KeyDisabled(_) => extended(ffi::SQLITE_AUTH, 3),
            Self::ProviderUnreachable(_) => extended(ffi::SQLITE_CANTOPEN, 1),
            Self::ProviderDamaged(_) => extended(ffi::SQLITE_CANTOPEN, 2),
            Self::LoosePermissions(_) => extended(ffi::SQLITE_CANTOPEN, 3),
            Self::Random(_) => extended(ffi::SQLITE_CANTOPEN, 4),
            Self::Unsupported(_) => extended(ffi::SQLITE_CANTOPEN, 5),
            Self::Usage(_) | Self::KeyExists { .. } => extended(ffi::SQLITE_CANTOPEN, 6),
            Self::Audit(_) => extended(ffi::SQLITE_CANTOPEN, 7),
            Self::Config(_) => extended(ffi::SQLITE_CANTOPEN, 8),
            Self::PlainLog { .. } => extended(ffi::SQLITE_CANTOPEN, 9),
            Self::EnvelopeDamaged(_) => extended(ffi::SQLITE_CORRUPT, 1),
            Self::EnvelopeOutdated { .. } => extended(ffi::SQLITE_CORRUPT, 2),
            Self::DamagedInUse(_)
            | Self::PageAuthentication { .. }
            | Self::FrameAuthentication { .. }
            | Self::JournalAuthentication { .. }
            | Self::JournalOutdated { .. }
            | Self::LogOutdated
            | Self::LogCut { .. }
            | Self::ScratchAuthentication { .. } => ffi::SQLITE_IOERR_DATA,
            Self::FormatTooNew { .. } => extended(ffi::SQLITE_NOTADB, 1),
            Self::PlaintextRefused => extended(ffi::SQLITE_NOTADB, 2),
            Self::NotADatabase(_) => extended(ffi::SQLITE_NOTADB, 3),
            Self::NotEncrypted => extended(ffi::SQLITE_NOTADB, 4),
            Self::WrongFile { .. } => extended(ffi::SQLITE_NOTADB, 5),
            Self::PageSize(_) => extended(ffi::SQLITE_IOERR, 1),
            Self::PageSizeChange => extended(ffi::SQLITE_IOERR, 2),
            Self::ReserveBytes(_) => extended(ffi::SQLITE_IOERR, 3),
            Self::NotAPage { .. } => extended(ffi::SQLITE_IOERR, 4),
            Self::Inaccessible { .. } => extended(ffi::SQLITE_IOERR, 5),
            Self::Unfinished { .. } => extended(ffi::SQLITE_IOERR, 6),
            Self::Busy(_) => ffi::SQLITE_BUSY,
            Self::ReadOnly { .. } => ffi::SQLITE_READONLY,
            Self::Io { .. } => ffi::SQLITE_IOERR,
            Self::Base(code) => *code,
            #[cfg(feature = "rusqlite")]
            Self::Sqlite(error) => {
                error.sqlite_error().map_or(ffi::SQLITE_ERROR, |e| e.extended_code)
            }
        }
    }
}

impl Error {
    /// SQLITE_IOERR_NOMEM, which SQLite tells as SQLITE_NOMEM after it gave its cache up.
    pub(crate) const NO_MEMORY: Self = Self::Base(ffi::SQLITE_IOERR | 12 << 8);
}

impl From<ProviderError> for Error {
    fn from(error: ProviderError) -> Self {
        match error {
            ProviderError::NotHere(_) => Self::NoKey(error),
            ProviderError::Denied(_) => Self::KeyDisabled(error),
            ProviderError::Unreachable(_) => Self::ProviderUnreachable(error),
            ProviderError::Damaged(_) => Self::ProviderDamaged(error),
            ProviderError::LoosePermissions { .. } | ProviderError::OtherOwner { .. } => {
                Self::LoosePermissions(error)
            }
            ProviderError::WrongKey(_) => Self::WrongKey(error),
        }
    }
}

/// Whether nothing but this library answers with `code`.
#[cfg(feature = "rusqlite")]
fn is_ours_alone(code: c_int) -> bool {
    code >> 8 > 0x70 || code == ffi::SQLITE_IOERR_DATA
}

#[cfg(feature = "rusqlite")]
impl From<rusqlite::Error> for Error {
    /// The typed error behind SQLite's code where this crate raised it on this thread. A code that
    /// other databases have, too, such as `SQLITE_BUSY`, is taken for this crate's only where
    /// SQLite says its words. Convert an error before the next call on any connection: SQLite's
    /// error does not tell which connection it came from.
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(failure, message) = &error else {
            return Self::Sqlite(error);
        };
        let code = failure.extended_code;
        let is_it = |last: &Error, text: &str| {
            last.sqlite_code() == code && (is_ours_alone(code) || message.as_deref() == Some(text))
        };
        take_last(is_it).unwrap_or(Self::Sqlite(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_a_file_names_its_place() {
        let fault = || FileError::at("c.toml".as_ref(), "wrong");
        for (fault, words) in [
            (FileError::from("wrong".to_owned()), "wrong"),
            (fault(), "c.toml: wrong"),
            (fault().line(3), "c.toml, line 3: wrong"),
            (fault().line(3).setting("access.grace"), "c.toml, line 3, access.grace: wrong"),
            (fault().line(3).setting(""), "c.toml, line 3: wrong"),
            (FileError::from("wrong".to_owned()).setting("audit key"), "audit key: wrong"),
        ] {
            assert_eq!(fault.to_string(), words);
        }
    }

    #[test]
    fn an_error_behind_another_is_its_source() {
        let io = || std::io::Error::other("no disk");
        let file = || FileError::of("audit.jsonl".as_ref(), io());
        let cause = |error: &dyn std::error::Error| error.source().map(ToString::to_string);
        for (error, source) in [
            (Error::from(ProviderError::denied("revoked")), Some("revoked")),
            (Error::Audit(file()), Some("audit.jsonl: no disk")),
            (Error::Random(Box::new(io())), Some("no disk")),
            (Error::Io { path: "a".into(), source: io() }, Some("no disk")),
            (Error::LogOutdated, None),
        ] {
            assert_eq!(cause(&error).as_deref(), source, "{error}");
            let repeats = source.map_or(0, |source| error.to_string().matches(source).count());
            assert_eq!(repeats, usize::from(source.is_some()), "{error}");
        }
        assert_eq!(cause(&file()).as_deref(), Some("no disk"));
    }
}
