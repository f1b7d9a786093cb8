//! One open database: the main file, its journals and logs, its wal-index, its locks and its keys.
//!
//! | file | what |
//! |---|---|
//! | this one | [`Database`], which owns all of it, and the opening and closing of its files |
//! | `phase.rs` | the phase of its transaction, rollback or checkpoint |
//! | `main.rs` | the main file: SQLite's reads and writes of pages under their keys |
//! | `creation.rs` | creation of a database, and the rollback of a creation |
//! | `origin.rs` | which log belongs to the main file |
//! | `calls.rs` | SQLite's calls on each of its files |
//! | `locks.rs` | SQLite's locks, and the transactions that begin and end with them |
//! | `checkpoint.rs` | checkpoints and recovery: from the log to the main file |
//! | `write_back.rs` | write-back policy: which writes may be deferred |
//! | `exclusion.rs` | one envelope writer at a time |
//! | `wal_index.rs` | reads of the wal-index |
//! | `host.rs` | the file, locks and connection around a database |
//!
//! Invariants
//! 1. Every file of an encrypted database is reached through its [`Database`], by one call at a
//!    time: the VFS has a single way in. So calls never overlap.
//! 2. A journal or log belongs to one [`Database`] until its handle is closed.

mod calls;
mod checkpoint;
mod creation;
mod exclusion;
pub(crate) mod host;
mod locks;
pub(crate) mod main;
mod origin;
pub(crate) mod phase;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod wal_index;
mod write_back;

use std::os::raw::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ffi;

use self::host::{Host, LockLevel};
use self::main::Main;
use self::wal_index::WalIndex;
use crate::error::{Error, Result};
use crate::file::FileKind;
use crate::file::journal::{Counters, Journal};
use crate::file::wal::{Origin, Owner, Salts, Wal};
use crate::key::envelope::slot::{Fit, StateId};
use crate::key::session::{Session, Setup};
use crate::page::{FrameNo, LogId, PageNo};

/// State of a database that is readable without entering it; it decides which database a journal or
/// log belongs to.
#[derive(Default)]
pub(crate) struct Outside {
    /// It is a plaintext database, as last seen under a lock.
    pub(crate) plain: AtomicBool,
    /// Its connection holds the lock of the one that may write a journal.
    pub(crate) writing: AtomicBool,
}

/// A journal or log of a database.
struct Part<H, T> {
    id: PartId,
    host: H,
    file: T,
}

/// Index of one of a database's open journals or logs. SQLite has one of each; a VFS above may cut
/// them up into several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartId(u32);

/// An open database.
pub(crate) struct Database<H> {
    pub(crate) host: H,
    pub(crate) main: Main,
    journals: Vec<Part<H, Journal>>,
    logs: Vec<Part<H, Wal>>,
    /// Journals and logs opened so far.
    parts: u32,
    /// Open journals and logs of a plaintext database, which pass through.
    plain_parts: u32,
    lock: LockLevel,
    /// The file was opened for writing.
    writable: bool,
    index: WalIndex,
    /// SQLite's code of a failure that no call has reported yet.
    owed: Option<c_int>,
    /// The base's answer when the main file was opened. SQLite asks only then, and applies it to
    /// the journal, too.
    sector: usize,
    powersafe: bool,
    outside: Arc<Outside>,
}

/// The rest of a database, as its log sees it.
struct Around<'a, H> {
    host: &'a H,
    main: &'a Main,
    index: &'a WalIndex,
    lock: LockLevel,
}

impl<H: Host> Owner for Around<'_, H> {
    fn locks(&self) -> u64 {
        self.index.locks()
    }

    fn salts(&self) -> Option<Salts> {
        wal_index::salts(self.host)
    }

    fn last_frame(&self) -> Option<FrameNo> {
        wal_index::last_frame(self.host)
    }

    fn page_of(&self, frame: FrameNo) -> Option<PageNo> {
        wal_index::page_of(self.host, frame)
    }

    fn is_alone(&self) -> bool {
        self.lock == LockLevel::Exclusive
    }

    fn origin(&self) -> Result<Origin> {
        let in_index = wal_index::pages(self.host).filter(|&pages| pages > 0);
        self.main.log_origin(self.host, in_index)
    }

    fn check_envelope(&self) -> Result<()> {
        self.main.check_envelope(self.host)
    }

    fn fit(&self, log: &LogId, state: &StateId) -> Result<Fit> {
        self.main.fit(self.host, log, state)
    }

    fn counters(&self) -> Result<Option<Counters>> {
        self.main.counters_on_disk(self.host)
    }
}

impl<H: Host> Database<H> {
    /// Opens the main file in `host` and finds its keys.
    pub(crate) fn open(host: H, writable: bool, setup: Setup) -> Result<Self> {
        let main = Main::open(&host, setup)?;
        Ok(Self {
            sector: host.sector(),
            powersafe: host.is_powersafe(),
            host,
            outside: Arc::new(Outside {
                plain: AtomicBool::new(main.is_plain()),
                writing: AtomicBool::new(false),
            }),
            main,
            journals: Vec::new(),
            logs: Vec::new(),
            parts: 0,
            plain_parts: 0,
            lock: LockLevel::None,
            writable,
            index: WalIndex::default(),
            owed: None,
        })
    }

    /// The keys of the database, and the file in which their envelope is.
    ///
    /// # Errors
    /// [`Error::NotEncrypted`].
    pub(crate) fn keys(&mut self) -> Result<(&mut Session, &H)> {
        Ok((self.main.session_mut()?, &self.host))
    }

    /// The state that is readable at any time.
    pub(crate) fn outside(&self) -> &Arc<Outside> {
        &self.outside
    }

    /// Whether this is an encrypted database that something was committed to.
    pub(crate) fn has_pages(&self) -> bool {
        self.main.envelope().is_some_and(|envelope| envelope.has_pages)
    }

    /// Before a journal or log of this database is opened with `flags`, so that a refusal comes
    /// before the file is created. Without locks (`nolock=1`) the look for a journal that a crash
    /// left is how a transaction begins.
    pub(crate) fn before_part(&mut self, kind: FileKind, flags: c_int) -> Result<()> {
        if kind != FileKind::MainJournal {
            return Ok(());
        }
        let creates = flags & ffi::SQLITE_OPEN_CREATE != 0;
        if !creates && self.lock == LockLevel::None {
            self.begin()?;
        }
        match (creates, flags & ffi::SQLITE_OPEN_READWRITE != 0) {
            (true, _) => self.main.prepare(),
            (false, true) => {
                self.main.phase.hot_journal();
                Ok(())
            }
            (false, false) => Ok(()),
        }
    }

    /// A journal of this encrypted database was opened in `host`.
    pub(crate) fn add_journal(&mut self, host: H) -> Result<PartId> {
        let keyring = self.main.keyring().cloned();
        let file = Journal::open(&host, keyring, self.journal_grain(), self.main.tuning())?;
        let id = self.next_part();
        self.journals.push(Part { id, host, file });
        Ok(id)
    }

    /// A log of this encrypted database was opened in `host`.
    pub(crate) fn add_log(&mut self, host: H) -> Result<PartId> {
        // SQLite asks the main file whether a torn write spoils a sector, and the log how long one
        // is.
        let grain = if self.host.is_powersafe() { 1 } else { host.sector().max(self.sector) };
        let file = Wal::new(self.main.keyring().cloned(), grain, self.main.tuning());
        let id = self.next_part();
        self.logs.push(Part { id, host, file });
        Ok(id)
    }

    /// A journal or log of this plaintext database was opened.
    pub(crate) fn add_plain_part(&mut self) {
        self.plain_parts += 1;
    }

    pub(crate) fn close_plain_part(&mut self) {
        self.plain_parts = self.plain_parts.saturating_sub(1);
    }

    /// A journal is closed; returns its storage.
    pub(crate) fn close_journal(&mut self, id: PartId) -> Option<H> {
        self.main.phase.journal_changed();
        let at = self.journals.iter().position(|part| part.id == id)?;
        Some(self.journals.remove(at).host)
    }

    /// A log is closed; returns its storage.
    pub(crate) fn close_log(&mut self, id: PartId) -> Option<H> {
        let at = self.logs.iter().position(|part| part.id == id)?;
        Some(self.logs.remove(at).host)
    }

    fn next_part(&mut self) -> PartId {
        self.parts += 1;
        PartId(self.parts)
    }

    /// Bytes of the journal that a torn write may spoil.
    fn journal_grain(&self) -> usize {
        if self.powersafe { 1 } else { self.sector }
    }

    /// The open log, and the rest of the database as it sees it.
    fn log_and_rest(&mut self) -> Option<(&mut Part<H, Wal>, Around<'_, H>)> {
        let Self { host, main, index, logs, lock, .. } = self;
        Some((logs.last_mut()?, Around { host, main, index, lock: *lock }))
    }

    fn set_lock(&mut self, level: LockLevel) {
        self.lock = level;
        self.outside.writing.store(level >= LockLevel::Reserved, Ordering::Release);
    }
}

/// The part called `id`.
///
/// # Errors
/// [`Error::Usage`] if it was closed.
fn part<H, T>(parts: &mut [Part<H, T>], id: PartId) -> Result<&mut Part<H, T>> {
    parts
        .iter_mut()
        .find(|part| part.id == id)
        .ok_or_else(|| Error::Usage("the journal or log is closed already".into()))
}
