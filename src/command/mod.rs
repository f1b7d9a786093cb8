//! What can be asked of an open database: the PRAGMAs, and the answers behind them.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::file::Storage;
use crate::file::main_db::MainDb;
use crate::file::wal::Frames;
use crate::key::envelope::FORMAT;

/// What is known about the keys of an encrypted database; it holds nothing secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Version of the file format.
    pub format: u32,
    /// The database's file id, 32 hexadecimal digits.
    pub file_id: String,
    /// The cipher suite of new pages.
    pub cipher: &'static str,
    /// Bytes per page.
    pub page_size: u32,
    /// Pages in the file.
    pub pages: u64,
    /// Version of the database encryption key, from 1.
    pub key_version: u32,
    /// How often the envelope was written.
    pub generation: u64,
    /// When the database was encrypted, in Unix seconds.
    pub created: u64,
    /// When a protector was last changed, in Unix seconds; 0 for never.
    pub rotated: u64,
    /// When the database encryption key was last changed, in Unix seconds; 0 for never.
    pub regenerated: u64,
    /// State in the words of SQL Server's `sys.dm_database_encryption_keys`: 3 is encrypted.
    pub encryption_state: u8,
    /// The protectors, each of which opens the database.
    pub protectors: Vec<ProtectorStatus>,
}

/// One protector of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProtectorStatus {
    /// Its name.
    pub name: String,
    /// The provider that holds the key.
    pub provider: String,
    /// The key's id there.
    pub key: String,
    /// The version of the key that wrapped the database encryption key.
    pub key_version: String,
    /// How it was wrapped.
    pub mechanism: String,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// Pages in the file.
    pub pages: u64,
    /// Numbers of the pages that failed authentication, at most the first 65,536.
    pub bad_pages: Vec<u32>,
    /// How many pages failed authentication.
    pub bad_page_count: u64,
    /// Numbers of the frames of the write-ahead log that failed authentication.
    pub bad_frames: Vec<u32>,
    /// Copies of the envelope, `A` or `B`, that failed authentication. One good copy is enough to
    /// open the database.
    pub bad_envelope_copies: Vec<char>,
}

impl Verification {
    /// Whether everything authenticated.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bad_page_count == 0
            && self.bad_frames.is_empty()
            && self.bad_envelope_copies.is_empty()
    }
}

pub(crate) fn status(db: &MainDb, base: &impl Storage) -> Result<Status> {
    let envelope = db.envelope().ok_or(Error::NotEncrypted)?;
    let protectors = envelope.protectors.iter().map(|record| ProtectorStatus {
        name: record.name.clone(),
        provider: record.provider.clone(),
        key: record.key_id.clone(),
        key_version: record.wrapped.key_version.clone(),
        mechanism: record.wrapped.mechanism.clone(),
    });
    Ok(Status {
        format: FORMAT,
        file_id: envelope.file_id.iter().map(|byte| format!("{byte:02x}")).collect(),
        cipher: envelope.current.suite.name(),
        page_size: envelope.page_size,
        pages: db.size(base)? / u64::from(envelope.page_size),
        key_version: envelope.current.version,
        generation: envelope.generation,
        created: envelope.created,
        rotated: envelope.rotated,
        regenerated: envelope.regenerated,
        encryption_state: 3,
        protectors: protectors.collect(),
    })
}

/// `log` is what the write-ahead log holds, where there is one.
pub(crate) fn verify(
    db: &mut MainDb,
    base: &impl Storage,
    log: Frames,
    progress: impl FnMut(u64, u64),
) -> Result<Verification> {
    let found = db.verify(base, &log.pages, progress)?;
    Ok(Verification {
        bad_frames: log.bad,
        pages: found.pages,
        bad_pages: found.bad_pages,
        bad_page_count: found.bad_count,
        bad_envelope_copies: found.bad_copies,
    })
}

/// Answers `PRAGMA name = value`: `None` where it is SQLite's, an error where it must not run.
///
/// SQLite asks at each *prepare*, so nothing here changes anything.
pub(crate) fn pragma(
    db: &mut MainDb,
    base: &impl Storage,
    name: &str,
    value: Option<&str>,
) -> Result<Option<String>> {
    let name = name.to_ascii_lowercase();
    match (name.as_str(), value) {
        _ if db.is_plain() && !name.starts_with("tde_") => Ok(None),
        ("page_size", Some(size)) => page_size(db, base, size).map(|()| None),
        ("tde_status", None) => {
            let status = status(db, base)?;
            serde_json::to_string(&status).map(Some).map_err(|e| Error::Usage(e.to_string()))
        }
        ("tde_cipher", None) => {
            Ok(Some(db.envelope().ok_or(Error::NotEncrypted)?.current.suite.name().into()))
        }
        _ if name.starts_with("tde_") => Err(Error::Usage(format!(
            "there is no PRAGMA {name}{}",
            if value.is_some() { " that takes a value" } else { "" }
        ))),
        _ => Ok(None),
    }
}

/// Refuses a page size that cannot be: SQLite would cut the new pages up in units of the old ones.
fn page_size(db: &MainDb, base: &impl Storage, size: &str) -> Result<()> {
    let Ok(size) = size.trim().parse::<u32>() else { return Ok(()) };
    let known = (512..=65536).contains(&size) && size.is_power_of_two();
    let has_content = db.size(base)? > 0;
    match db.envelope() {
        // Knowing of the trailer, SQLite takes it for 1024.
        Some(envelope) if size == 512 && envelope.page_size == 1024 => Ok(()),
        Some(_) if size == 512 && has_content => Err(Error::PageSize(size)),
        Some(envelope) if known && has_content && envelope.page_size != size => {
            Err(Error::PageSizeChange)
        }
        _ => Ok(()),
    }
}
