//! SQLite's locks on the main file and the wal-index, and the transactions that begin and end with
//! them.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Database;
use super::host::{Host, LockLevel};
use super::wal_index::{CHECKPOINT, READ, RECOVER, WRITE};
use crate::error::{Error, Result, log};

impl<H: Host> Database<H> {
    /// Takes a lock on the main file.
    ///
    /// # Errors
    /// [`Error::Base`] with the base VFS's code, `SQLITE_BUSY` among them. After an error SQLite
    /// assumes that it holds what it held before, and nothing more is held.
    pub(crate) fn lock(&mut self, level: LockLevel) -> Result<()> {
        self.before_lock(level)?;
        let held = self.lock;
        let first = held == LockLevel::None;
        let closes = self.closes_log(level);
        let begins_writing = held < LockLevel::Reserved && level >= LockLevel::Reserved;
        if first {
            self.lock_first(level)?;
        } else {
            self.host.lock(level)?;
        }
        self.set_lock(level);
        if begins_writing {
            self.forget_journals();
            // A rollback after a crash goes straight to EXCLUSIVE. If SQLite kept the journal open,
            // this lock is its only sign.
            if level == LockLevel::Exclusive && !self.journals.is_empty() {
                self.main.phase.hot_journal();
            }
        }
        if closes {
            self.index.others_may_have_written();
        }
        // From SHARED straight to EXCLUSIVE: beside a log, SHARED lets others change the size.
        self.main.lock_changed(first || begins_writing && level == LockLevel::Exclusive);
        if first {
            self.main.probe(&self.host).inspect_err(|_| self.give_back(held))?;
        }
        self.check_kind().inspect_err(|_| self.give_back(held))?;
        if first {
            self.settle_creation();
        }
        if begins_writing {
            self.mend_envelope();
        }
        Ok(())
    }

    /// After an error SQLite assumes that it does not hold the lock, so it is released.
    fn give_back(&mut self, held: LockLevel) {
        let _ = self.unlock(held);
    }

    /// Refuses a database that was recreated, encrypted for plaintext or the reverse, while the
    /// journal or log of the former one is open.
    fn check_kind(&mut self) -> Result<()> {
        let plain = self.main.is_plain();
        let was_plain = self.outside.plain.load(Ordering::Acquire);
        let keeps_other = match (was_plain, plain) {
            (true, false) => self.plain_parts > 0,
            (false, true) => !self.journals.is_empty() || !self.logs.is_empty(),
            _ => false,
        };
        if keeps_other {
            return Err(Error::Unsupported(
                "database was recreated while its old journal or log is open: reconnect".into(),
            ));
        }
        self.outside.plain.store(plain, Ordering::Release);
        Ok(())
    }

    /// Whether this lock is for the last checkpoint, when a connection to a log is closed or its
    /// journal mode changed. No lock on the wal-index tells of it.
    fn closes_log(&self, level: LockLevel) -> bool {
        self.lock == LockLevel::Shared
            && level == LockLevel::Exclusive
            && !self.logs.is_empty()
            && !self.index.is_locked()
    }

    /// Calls that may wait for a provider are made before other connections can wait for this lock.
    fn before_lock(&mut self, level: LockLevel) -> Result<()> {
        let held = self.lock;
        if held == LockLevel::None {
            self.begin()?;
        }
        // Without keys the lock itself fails.
        if self.closes_log(level) {
            let _ = self.begin();
        }
        if held == LockLevel::None && self.main.is_unmade() {
            // A fault of the envelope is reported under the lock; before it, the file may just be
            // in creation.
            let _ = self.main.probe(&self.host);
            // A statement that will write makes the keys now, while no lock is held. Between SHARED
            // and EXCLUSIVE others would be kept from their own creation of the database, and two
            // that came so far together, as with `PRAGMA journal_mode=WAL`, could not wait for each
            // other: one gets SQLITE_BUSY at once.
            if self.writable && self.main.is_unmade() && self.host.is_writing() {
                self.main.prepare()?;
            }
        }
        // A transaction that has begun by reading has nothing but its SHARED.
        if held < LockLevel::Reserved && level >= LockLevel::Reserved {
            self.main.prepare()?;
        }
        // A rollback of what a crash left goes straight to EXCLUSIVE.
        if level == LockLevel::Reserved
            && let Ok(session) = self.main.session()
        {
            session.check_transaction()?;
            session.check_rights()?;
        }
        Ok(())
    }

    /// Takes the first lock, which SQLite has as SHARED. If another connection has created the
    /// database since this one last looked, the provider is asked for its keys, and others must not
    /// wait for it meanwhile.
    fn lock_first(&mut self, level: LockLevel) -> Result<()> {
        self.host.lock(level)?;
        if !self.main.is_unmade() || matches!(self.main.is_still_empty(&self.host), Ok(true)) {
            return Ok(());
        }
        let _ = self.host.unlock(LockLevel::None);
        // A fault of the file is reported under the lock.
        let _ = self.main.probe(&self.host);
        self.host.lock(level)
    }

    /// A transaction begins.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.main.begin(&self.host)?;
        self.main.transaction_begins();
        self.rotate_by_itself();
        Ok(())
    }

    /// A journal handle's knowledge of the file is valid under one lock only: SQLite may keep it
    /// open between transactions (`SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN`), while others write the
    /// file.
    fn forget_journals(&mut self) {
        self.journals.iter_mut().for_each(|part| part.file.take_anew());
    }

    /// Gives locks back down to `level`.
    pub(crate) fn unlock(&mut self, level: LockLevel) -> Result<()> {
        if level < LockLevel::Reserved {
            self.forget_journals();
        }
        let unlocked = self.host.unlock(level);
        // Also after an error: a lock that may be gone must not be relied on.
        self.set_lock(level);
        self.main.unlocked(level == LockLevel::None);
        self.main.lock_changed(level == LockLevel::None);
        self.assert_nothing_is_lost();
        unlocked
    }

    /// Finds out whether the creation of the database may still be rolled back. If that is unknown,
    /// it is assumed; the read of a page decides.
    pub(crate) fn settle_creation(&mut self) {
        if self.main.may_be_undone() && matches!(self.is_at_rest(), Ok(true)) {
            let _ = self.main.nobody_is_creating(&self.host);
        }
    }

    /// A lock on the wal-index is about to be taken. The first one begins a transaction. With a
    /// lock held already, another connection may wait for it, so no provider is called.
    pub(crate) fn before_index_lock(&mut self) -> Result<()> {
        if self.index.is_locked() { self.main.watch(&self.host) } else { self.begin() }
    }

    /// The locks `numbers` of the wal-index were taken. No checkpoint of another connection makes
    /// the file shorter than this one knows it while it reads or checkpoints; when it begins a
    /// checkpoint, SQLite asks for the size once more.
    pub(crate) fn index_locked(&mut self, numbers: Range<u32>, exclusive: bool) {
        let first = !self.index.is_locked();
        let resized = first || WRITE < numbers.start && numbers.start < READ;
        self.index.locked(&self.host, numbers.clone(), exclusive);
        if first && let Some((log, rest)) = self.log_and_rest() {
            log.file.transaction_begins(&rest);
        }
        self.main.lock_changed(resized);
        if exclusive && numbers.contains(&WRITE) {
            self.mend_envelope();
        }
    }

    /// The locks `numbers` of the wal-index are about to be given back.
    pub(crate) fn before_index_unlock(&mut self, numbers: Range<u32>, exclusive: bool) {
        if exclusive && numbers.contains(&RECOVER) {
            self.end_recovery();
        }
    }

    /// The locks `numbers` of the wal-index were given back.
    pub(crate) fn index_unlocked(&mut self, numbers: Range<u32>, exclusive: bool) {
        if numbers.contains(&CHECKPOINT) {
            self.allow_checkpoint();
        }
        self.index.unlocked(numbers.clone());
        if exclusive
            && numbers.contains(&WRITE)
            && let Some((log, rest)) = self.log_and_rest()
        {
            log.file.lock_given_back(&rest);
        }
    }

    pub(crate) fn index_unmapped(&mut self) {
        self.index.unmapped();
    }

    /// Runs `work` on the main file under at least a shared lock, so that no connection writes
    /// meanwhile.
    pub(crate) fn with_shared_lock<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        if self.lock > LockLevel::None {
            return work(self);
        }
        self.lock(LockLevel::Shared)?;
        let result = work(self);
        self.give_back(LockLevel::None);
        result
    }

    /// Writes the records that a background check wrapped under newer keys. No caller asked for it,
    /// so an error goes to the log.
    pub(crate) fn rotate_by_itself(&mut self) {
        if let Err(error) = self.apply_pending() {
            log(error.sqlite_code(), &format!("sqlite-tde: automatic rotation: {error}"));
        }
    }

    /// Finishes a change of the protectors that was cut off, if this file may be written. The
    /// caller asked for something else, so an error goes to the log.
    pub(crate) fn mend_envelope(&mut self) {
        if let Err(error) = self.mend(std::time::Duration::ZERO) {
            log(error.sqlite_code(), &format!("sqlite-tde: the envelope: {error}"));
        }
    }
}
