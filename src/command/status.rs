//! Answers about a database: its keys, its protectors, and whether all of it authenticates.

#[cfg(feature = "rusqlite")]
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::db::Database;
#[cfg(feature = "rusqlite")]
use crate::db::Outside;
use crate::db::host::Host;
#[cfg(feature = "rusqlite")]
use crate::db::main::Findings;
use crate::db::main::Main;
use crate::error::{Error, Result};
#[cfg(feature = "rusqlite")]
use crate::file::wal::Frames;
use crate::key::envelope::{Envelope, FORMAT, ProtectorRecord};
use crate::key::session::Session;
use crate::process::time::{self, system_time, unless_never};
use crate::provider::WaitsFor;

/// State of the encryption of a database; holds no secrets.
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
    /// Number of writes of the envelope.
    pub generation: u64,
    /// When the database was encrypted.
    #[serde(serialize_with = "time::or_zero")]
    pub created: SystemTime,
    /// When a protector was last changed; `None` for never.
    #[serde(serialize_with = "time::or_zero")]
    pub rotated: Option<SystemTime>,
    /// When the database encryption key was last changed; `None` for never.
    #[serde(serialize_with = "time::or_zero")]
    pub regenerated: Option<SystemTime>,
    /// Whether protectors are re-wrapped by themselves when their provider has a newer key version.
    pub auto_rotate: bool,
    /// When this connection opened the database.
    #[serde(serialize_with = "time::or_zero")]
    pub opened: SystemTime,
    /// State in the words of SQL Server's `sys.dm_database_encryption_keys`: 3 is encrypted.
    pub encryption_state: u8,
    /// The protector through which this connection was opened.
    pub opened_through: String,
    /// The error of the last check with the key provider, if it failed and the keys are still
    /// usable.
    pub outage: Option<String>,
    /// The copies of the envelope, `A` or `B`, that fail authentication or are older than the other
    /// one: a change of the protectors was interrupted. The next opening for writing repairs them.
    pub faulty_envelope_copies: Vec<char>,
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
    /// The mechanism that wrapped it.
    pub mechanism: String,
    /// The kind of the provider, if one of that name is configured here.
    pub kind: Option<String>,
    /// Whether its provider asks a person, if one of that name is configured here.
    pub asks_person: Option<bool>,
    /// When it ends; `None` for never.
    #[serde(serialize_with = "time::or_zero")]
    pub not_after: Option<SystemTime>,
    /// Whether an opening through it allows only reads.
    pub read_only: bool,
    /// SHA-256 of provider, key and key version, the first 20 bytes in hexadecimal digits.
    pub thumbprint: String,
}

/// Result of a verification.
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
    /// Copies of the envelope, `A` or `B`, that are authentic and older than the other one: a
    /// change of the protectors was interrupted, and a protector that it removed still opens the
    /// database in other software. The next opening for writing repairs them.
    pub stale_envelope_copies: Vec<char>,
    /// The reason why the journal or log beside the file is refused; the other fields then describe
    /// the file alone.
    pub refused: Option<String>,
}

impl Verification {
    /// Whether everything authenticated.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bad_page_count == 0
            && self.bad_frames.is_empty()
            && self.bad_envelope_copies.is_empty()
            && self.stale_envelope_copies.is_empty()
            && self.refused.is_none()
    }
}

pub(crate) fn status(db: &mut Database<impl Host>) -> Result<Status> {
    let (size, opened) = (db.main.size(&db.host)?, db.main.opened_at());
    let (session, host) = db.keys()?;
    let envelope = session.refresh_envelope(host)?.clone();
    let mut faulty = Vec::new();
    if session.copies_differ() {
        let (bad, stale) = session.faulty_copies(host)?;
        faulty = [bad, stale].concat();
    }
    Ok(Status {
        format: FORMAT,
        file_id: envelope.file_id.iter().map(|byte| format!("{byte:02x}")).collect(),
        cipher: envelope.current.suite.name(),
        page_size: envelope.page_size,
        pages: size / u64::from(envelope.page_size.max(1)),
        key_version: envelope.current.version,
        generation: envelope.generation,
        created: system_time(envelope.created),
        rotated: unless_never(envelope.rotated),
        regenerated: unless_never(envelope.regenerated),
        auto_rotate: !envelope.manual_rotation,
        opened,
        encryption_state: 3,
        opened_through: session.protector_name().to_owned(),
        faulty_envelope_copies: faulty,
        outage: session.keyring().access.outage_reason(),
        protectors: protectors(session, &envelope),
    })
}

/// The protectors in `envelope`, in the order of trying.
pub(crate) fn protectors(session: &Session, envelope: &Envelope) -> Vec<ProtectorStatus> {
    let describe = |record: &ProtectorRecord| ProtectorStatus {
        name: record.name.clone(),
        provider: record.provider.clone(),
        key: record.key_id.clone(),
        key_version: record.wrapped.key_version.clone(),
        mechanism: record.wrapped.mechanism.clone(),
        kind: session.protectors().provider_of(record).map(|provider| provider.kind().to_owned()),
        asks_person: session.protectors().waits_for(record).map(|waits| waits == WaitsFor::Person),
        not_after: unless_never(record.not_after),
        read_only: record.read_only,
        thumbprint: thumbprint(record),
    };
    envelope.protectors.iter().map(describe).collect()
}

fn thumbprint(record: &ProtectorRecord) -> String {
    let mut digest = Sha256::new();
    for part in [&record.provider, &record.key_id, &record.wrapped.key_version] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    digest.finalize().iter().take(20).map(|byte| format!("{byte:02x}")).collect()
}

/// A verification in slices, between which nothing of the database is held.
#[cfg(feature = "rusqlite")]
#[derive(Default)]
pub(crate) struct Verifier {
    /// The database that the first slice was of, and what its write-ahead log held.
    begun: Option<(Arc<Outside>, Frames)>,
    findings: Findings,
}

#[cfg(feature = "rusqlite")]
impl Verifier {
    /// Pages of a slice.
    const SLICE: u64 = 64;

    /// Verifies the next pages of `db`, under a shared lock; answers whether they were the last.
    ///
    /// # Errors
    /// [`Error::Usage`] where the slice before was of another database.
    pub(crate) fn step(&mut self, db: &mut Database<impl Host>) -> Result<bool> {
        if self.begun.is_none() {
            self.begun = Some((Arc::clone(db.outside()), db.log_frames()?));
        }
        let Self { begun: Some((outside, log)), findings } = self else { return Ok(true) };
        if !Arc::ptr_eq(outside, db.outside()) {
            return Err(Error::Usage("the database was detached while it was verified".into()));
        }
        db.with_shared_lock(|db| db.main.verify(&db.host, &log.pages, findings, Self::SLICE))
    }

    /// The pages done, and those there are.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.findings.done, self.findings.pages)
    }

    pub(crate) fn finish(self, refused: Option<String>) -> Verification {
        let Findings { pages, bad_pages, bad_count, bad_copies, stale_copies, .. } = self.findings;
        let bad_frames = self.begun.map(|(_, log)| log.bad).unwrap_or_default();
        Verification {
            pages,
            bad_pages: bad_pages.into_iter().map(|page| page.0).collect(),
            bad_page_count: bad_count,
            bad_frames: bad_frames.into_iter().map(|frame| frame.0).collect(),
            bad_envelope_copies: bad_copies,
            stale_envelope_copies: stale_copies,
            refused,
        }
    }
}

/// Refuses a page size that cannot be: SQLite would cut the new pages up in units of the old ones.
pub(crate) fn page_size(db: &Main, size: &str) -> Result<()> {
    let Ok(size) = size.trim().parse::<u32>() else { return Ok(()) };
    let known = (512..=65536).contains(&size) && size.is_power_of_two();
    match db.envelope() {
        // Knowing of the trailer, SQLite takes it for 1024.
        Some(envelope) if size == 512 && envelope.page_size == 1024 => Ok(()),
        Some(_) if size == 512 => Err(Error::PageSize(size)),
        // It is that of the copies which VACUUM INTO makes: nothing is ever written here.
        Some(_) if db.is_never_written() => Ok(()),
        Some(envelope) if known && envelope.page_size != size => Err(Error::PageSizeChange),
        _ => Ok(()),
    }
}
