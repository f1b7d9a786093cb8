//! Serialises envelope writers with SQLite's RESERVED or checkpoint lock; readers never wait.
//!
//! | journal mode | lock | who waits for it |
//! |---|---|---|
//! | rollback | RESERVED | writers, as for any other writer |
//! | WAL | the wal-index's lock of checkpoints | checkpoints |
//!
//! SQLite refuses RESERVED in WAL mode if several processes use the log. Page 1, read under a
//! SHARED lock, tells the journal mode; no connection can change it while SHARED is held.
//!
//! A RESERVED lock tells readers that a journal is in use. Held beside the journal of a crashed
//! process, it would keep them from rolling that back. So a hot journal is looked for first; while
//! SHARED is held, no new one can appear over a changed database.

use std::time::{Duration, Instant};

use super::Database;
use super::host::{Host, LockLevel, is_taken};
use super::main::Main;
use super::wal_index::CHECKPOINT;
use crate::error::{Error, Result};
use crate::file::journal::Journal;
use crate::io::Filled;
use crate::settings::Tuning;

/// Pause between two attempts, so that other connections get their turn.
const PAUSE: Duration = Duration::from_micros(100);

/// Consecutive checks that must find a journal hot: one check alone may fall between two steps of a
/// writer that begins or ends.
const HOT: usize = 20;

/// Outcome of one attempt.
enum Attempt {
    Taken(Taken),
    /// Another connection holds a conflicting lock.
    Busy,
    /// A hot journal lies beside the database.
    HotJournal,
}

/// Locks taken in addition to SQLite's own.
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

impl<H: Host> Database<H> {
    /// Runs `work` while no other connection can change the envelope; waits up to `patience` for
    /// it.
    ///
    /// # Errors
    /// [`Error::Busy`] if other connections hold the locks for longer; the errors of `work`.
    pub(crate) fn exclusively<T>(
        &mut self,
        patience: Duration,
        work: impl FnOnce(&mut Main, &H) -> Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let mut hot = 0;
        let taken = loop {
            match self.try_take()? {
                Attempt::Taken(taken) => break taken,
                Attempt::HotJournal => hot += 1,
                Attempt::Busy => hot = 0,
            }
            if hot == HOT {
                return Err(Error::Busy(
                    "an interrupted transaction must be rolled back first: run a read, then retry"
                        .into(),
                ));
            }
            if begun.elapsed() >= patience {
                return Err(Error::Busy("others are writing to it: try again".into()));
            }
            std::thread::sleep(PAUSE);
        };
        let result = work(&mut self.main, &self.host);
        self.release(taken);
        result
    }

    /// Whether the connection is in a transaction, in which others may wait for its locks.
    pub(crate) fn is_in_transaction(&self) -> bool {
        self.host.is_in_transaction().unwrap_or(self.lock >= LockLevel::Reserved)
    }

    /// Whether this call is the only sign of a transaction, and no transaction is being written.
    pub(crate) fn is_idle(&self) -> bool {
        self.host.is_idle() && !self.is_in_transaction()
    }

    /// Finishes a change of the protectors that was cut off between the two copies of the envelope,
    /// if there is one. If other connections hold the locks for longer than `patience`, a later
    /// call finishes it.
    pub(crate) fn mend(&mut self, patience: Duration) -> Result<()> {
        if !self.main.session().is_ok_and(|session| session.wants_mending()) {
            return Ok(());
        }
        match self.exclusively(patience, |main, host| main.mend(host)) {
            Err(Error::Busy(_)) => Ok(()),
            done => done,
        }
    }

    /// Writes what a background check wrapped in advance, if the envelope is free at the moment.
    pub(crate) fn apply_pending(&mut self) -> Result<()> {
        let Self { host, main, .. } = self;
        let Ok(session) = main.session_mut() else { return Ok(()) };
        let Some(pending) = session.take_pending(host)? else { return Ok(()) };
        let done = self.exclusively(Duration::ZERO, |main, host| {
            main.session_mut()?.commit(host, &pending.steps)
        });
        match self.main.session() {
            Ok(session) => session.pending_done(pending, done),
            Err(error) => Err(error),
        }
    }

    fn try_take(&mut self) -> Result<Attempt> {
        if self.lock >= LockLevel::Reserved {
            return Ok(Attempt::Taken(Taken::Nothing));
        }
        if self.lock == LockLevel::None && !is_taken(self.host.lock(LockLevel::Shared))? {
            return Ok(Attempt::Busy);
        }
        let taken = match self.is_in_wal_mode() {
            Ok(true) => self.try_checkpoint(),
            Ok(false) => self.try_reserved(),
            Err(error) => Err(error),
        };
        if !matches!(taken, Ok(Attempt::Taken(_))) {
            let _ = self.host.unlock(self.lock);
        }
        taken
    }

    fn is_in_wal_mode(&mut self) -> Result<bool> {
        // Without shared memory SQLite uses a log only if it has the file for itself.
        if !self.host.has_shared_memory() {
            return Ok(false);
        }
        if self.logs.is_empty() { self.main.is_in_wal_mode(&self.host) } else { Ok(true) }
    }

    fn try_reserved(&self) -> Result<Attempt> {
        if self.lock == LockLevel::None && self.has_hot_journal()? {
            return Ok(Attempt::HotJournal);
        }
        let taken = is_taken(self.host.lock(LockLevel::Reserved))?;
        Ok(if taken { Attempt::Taken(Taken::Reserved) } else { Attempt::Busy })
    }

    fn try_checkpoint(&self) -> Result<Attempt> {
        let mapped = !self.host.is_index_mapped();
        if mapped && !is_taken(self.host.map_wal_index())? {
            return Ok(Attempt::Busy);
        }
        let taken = is_taken(self.host.lock_wal_index(CHECKPOINT));
        if mapped && !matches!(taken, Ok(true)) {
            self.host.unmap_wal_index();
        }
        Ok(if taken? { Attempt::Taken(Taken::Checkpoint { mapped }) } else { Attempt::Busy })
    }

    fn release(&self, taken: Taken) {
        if let Taken::Checkpoint { mapped } = taken {
            self.host.unlock_wal_index(CHECKPOINT);
            if mapped {
                self.host.unmap_wal_index();
            }
        }
        if taken != Taken::Nothing {
            let _ = self.host.unlock(self.lock);
        }
    }

    /// Whether no writer is active and no hot journal exists.
    pub(super) fn is_at_rest(&self) -> Result<bool> {
        // In this order: a writer that ends between the two leaves no journal that is hot.
        let host = &self.host;
        Ok(!host.is_reserved()? && !self.has_journal_to_play()? && !host.is_reserved()?)
    }

    /// Whether a journal exists that no writer uses. As for SQLite, its first byte decides.
    fn has_hot_journal(&self) -> Result<bool> {
        if self.host.is_reserved()? { Ok(false) } else { self.has_journal_to_play() }
    }

    fn has_journal_to_play(&self) -> Result<bool> {
        let is_hot = self.host.with_journal(|base| {
            let (keyring, grain) = (self.main.keyring().cloned(), self.journal_grain());
            let mut first = [0];
            let mut journal = Journal::open(base, keyring, grain, Tuning::OFF)?;
            let filled = journal.read(base, &mut first, 0)?;
            Ok(filled == Filled::Full && first != [0])
        })?;
        Ok(is_hot.unwrap_or(false))
    }
}
