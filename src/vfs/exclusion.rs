//! Shutting out whoever else may write the envelope, with locks of SQLite's that disturb nobody.
//!
//! | journal mode | lock | who waits for it |
//! |---|---|---|
//! | rollback | RESERVED | writers, as for any other writer |
//! | WAL | the wal-index's lock of checkpoints | checkpoints |
//!
//! SQLite refuses RESERVED in WAL mode where several processes have the log. Which mode it is says
//! page 1, read under a SHARED lock: while somebody holds that, nobody changes the mode.
//!
//! A RESERVED lock tells readers that a journal is in use. Held beside one that a crash left, it
//! would keep them from rolling that back. So a hot journal is looked for first; while SHARED is
//! held, none comes into being over a changed database.

use std::ffi::c_int;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::ffi;

use super::api;
use super::base::{BaseFile, Neighbour};
use super::content::Content;
use super::open::OpenFile;
use crate::command;
use crate::error::{Error, Result};
use crate::file::Filled;
use crate::file::journal::Journal;
use crate::file::main_db::MainDb;
use crate::file::tuning::Tuning;

/// SQLite's lock of checkpoints in the wal-index.
const CHECKPOINT: c_int = 1;
/// How long to wait between two attempts: others wait for turns of their own.
const PAUSE: Duration = Duration::from_micros(100);

/// A journal may only look hot, where a writer begins or ends between two looks. It is where it
/// looks so this many times in a row.
const HOT: usize = 20;

/// What became of one attempt.
enum Attempt {
    Taken(Taken),
    /// Others are in the way.
    Busy,
    /// A journal is there that nobody uses.
    HotJournal,
}

/// What was taken, on top of what SQLite holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// SQLite holds enough for itself.
    Nothing,
    Reserved,
    Checkpoint {
        /// The wal-index was mapped for it.
        mapped: bool,
    },
}

impl command::Target for OpenFile {
    type Base = BaseFile;

    fn parts(&mut self) -> Result<(&mut MainDb, &BaseFile)> {
        match &mut self.content {
            Content::Db(db) => Ok((db, &self.base)),
            _ => Err(Error::NotEncrypted),
        }
    }

    fn exclusively<T>(
        &mut self,
        patience: Duration,
        work: impl FnOnce(&mut MainDb, &BaseFile) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        let mut hot = 0;
        let taken = loop {
            match self.try_take()? {
                Attempt::Taken(taken) => break taken,
                Attempt::HotJournal => hot += 1,
                Attempt::Busy => hot = 0,
            }
            if hot == HOT {
                return Err(Error::Busy(
                    "a transaction that a crash cut off has to be rolled back first: read from the \
                     database, then try again"
                        .into(),
                ));
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy("others are writing to it: try again".into()));
            }
            std::thread::sleep(PAUSE);
        };
        let (db, base) = self.parts()?;
        let result = work(db, base);
        self.give_back(taken);
        result
    }

    fn is_in_transaction(&self) -> bool {
        // SAFETY: SQLITE_FCNTL_PDB gave the place, which lives as long as the open file.
        let connection = unsafe { self.connection.load(Ordering::Acquire).as_ref() };
        match connection {
            // SAFETY: the connection is open while its file is.
            Some(&db) if !db.is_null() => unsafe { api::is_in_transaction(db) },
            _ => self.lock >= ffi::SQLITE_LOCK_RESERVED,
        }
    }

    fn is_idle(&self) -> bool {
        let place = self.connection.load(Ordering::Acquire);
        // SAFETY: SQLITE_FCNTL_PDB gave the place, which lives as long as the open file, and so
        // does the connection.
        let idle = unsafe { place.as_ref().is_some_and(|&db| !db.is_null() && api::is_idle(db)) };
        idle && !self.is_in_transaction()
    }
}

impl OpenFile {
    fn try_take(&mut self) -> Result<Attempt> {
        if self.lock >= ffi::SQLITE_LOCK_RESERVED {
            return Ok(Attempt::Taken(Taken::Nothing));
        }
        if self.lock == ffi::SQLITE_LOCK_NONE && !is_taken(self.base.lock(ffi::SQLITE_LOCK_SHARED))?
        {
            return Ok(Attempt::Busy);
        }
        let taken = match self.is_in_wal_mode() {
            Ok(true) => self.try_checkpoint(),
            Ok(false) => self.try_reserved(),
            Err(error) => Err(error),
        };
        if !matches!(taken, Ok(Attempt::Taken(_))) {
            self.base.unlock(self.lock);
        }
        taken
    }

    fn is_in_wal_mode(&mut self) -> Result<bool> {
        match &mut self.content {
            // Without shared memory SQLite uses a log only where it has the file for itself.
            _ if !self.base.has_shared_memory() => Ok(false),
            Content::Db(db) if self.log.is_none() => db.is_in_wal_mode(&self.base),
            _ => Ok(true),
        }
    }

    fn try_reserved(&self) -> Result<Attempt> {
        if self.lock == ffi::SQLITE_LOCK_NONE && self.has_hot_journal()? {
            return Ok(Attempt::HotJournal);
        }
        let taken = is_taken(self.base.lock(ffi::SQLITE_LOCK_RESERVED))?;
        Ok(if taken { Attempt::Taken(Taken::Reserved) } else { Attempt::Busy })
    }

    fn try_checkpoint(&self) -> Result<Attempt> {
        let mapped = !self.shm.is_mapped();
        if mapped && !is_taken(self.base.map_wal_index())? {
            return Ok(Attempt::Busy);
        }
        let taken = is_taken(self.base.lock_wal_index(CHECKPOINT, ffi::SQLITE_SHM_LOCK));
        if mapped && !matches!(taken, Ok(true)) {
            self.base.unmap_wal_index();
        }
        Ok(if taken? { Attempt::Taken(Taken::Checkpoint { mapped }) } else { Attempt::Busy })
    }

    fn give_back(&self, taken: Taken) {
        if let Taken::Checkpoint { mapped } = taken {
            self.base.lock_wal_index(CHECKPOINT, ffi::SQLITE_SHM_UNLOCK);
            if mapped {
                self.base.unmap_wal_index();
            }
        }
        if taken != Taken::Nothing {
            self.base.unlock(self.lock);
        }
    }

    /// Whether no writer is at work, and none was cut off: no journal is there to be played back.
    pub(super) fn is_at_rest(&self) -> Result<bool> {
        // In this order: a writer that ends between the two leaves no journal that is hot.
        Ok(!self.is_reserved()? && !self.has_journal_to_play()? && !self.is_reserved()?)
    }

    /// Whether a journal is there that no writer is using, as SQLite tells it: its first byte
    /// counts.
    fn has_hot_journal(&self) -> Result<bool> {
        if self.is_reserved()? { Ok(false) } else { self.has_journal_to_play() }
    }

    fn is_reserved(&self) -> Result<bool> {
        let mut reserved = 0;
        // SAFETY: `reserved` is an int.
        let code = unsafe { self.base.check_reserved_lock(&mut reserved) };
        if code == ffi::SQLITE_OK { Ok(reserved != 0) } else { Err(Error::Base(code)) }
    }

    fn has_journal_to_play(&self) -> Result<bool> {
        let Content::Db(db) = &self.content else { return Ok(false) };
        let is_hot = |base: &BaseFile| {
            let mut first = [0];
            let grain = self.journal_grain();
            let mut journal = Journal::open(base, db.keyring(), grain, Tuning::OFF)?;
            let filled = journal.read(base, &mut first, 0)?;
            Ok(filled == Filled::Full && first != [0])
        };
        // SAFETY: the database is open, so its place holds.
        let is_hot = unsafe { self.place.with_neighbour(Neighbour::Journal, is_hot)? };
        Ok(is_hot.unwrap_or(false))
    }
}

/// Whether a lock was taken; `false` where another holds it.
fn is_taken(code: c_int) -> Result<bool> {
    match code {
        ffi::SQLITE_OK => Ok(true),
        code if code & 0xff == ffi::SQLITE_BUSY => Ok(false),
        code => Err(Error::Base(code)),
    }
}
