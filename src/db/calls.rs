//! SQLite's calls on the main file, a journal and a log, and their effect on the whole database.

use std::os::raw::c_int;
use std::sync::atomic::Ordering;

use crate::ffi;

use super::host::{Host, LockLevel};
use super::{Around, Database, Part, PartId, part};
use crate::error::{Error, Result, log};
use crate::file::main::SQLITE_HEADER;
use crate::io::Filled;

/// The bytes of a journal's header that SQLite reads to play the journal back.
const JOURNAL_HEADER: u64 = 28;

/// The main file.
impl<H: Host> Database<H> {
    pub(crate) fn read(&mut self, buf: &mut [u8], at: u64) -> Result<Filled> {
        let answer = self.read_main(buf, at);
        self.note_tampering(answer)
    }

    fn read_main(&mut self, buf: &mut [u8], at: u64) -> Result<Filled> {
        if self.lock == LockLevel::None {
            self.before_read_without_lock(at, buf.len())?;
        } else {
            self.main.watch(&self.host)?;
        }
        let filled = self.main.read(&self.host, buf, at)?;
        if filled == Filled::Short && !self.logs.is_empty() {
            self.check_missing(at)?;
        }
        Ok(filled)
    }

    /// Before a read of `len` bytes at `at` while SQLite holds no lock.
    fn before_read_without_lock(&mut self, at: u64, len: usize) -> Result<()> {
        // A new pager reads the header before it takes any lock.
        if (at, len) == (0, SQLITE_HEADER) {
            return Ok(());
        }
        if !self.main.begins_without_lock(at, len) {
            return self.main.watch(&self.host);
        }
        self.main.begin(&self.host)?;
        self.main.transaction_begins();
        Ok(())
    }

    pub(crate) fn write(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        // A page that the transaction did not reach is written as it was, and its journal is not in
        // the base: sealed anew and torn, it would be lost.
        if !self.flush_journals()? && self.main.has_page(&self.host, bytes, at)? {
            return Ok(());
        }
        // Without a wal-index in shared memory, this is the only sign that a recovery is over.
        if !self.logs.is_empty() && super::wal_index::pages(&self.host).is_none() {
            self.seal_holes()?;
        }
        self.note_checkpointed_page()?;
        if self.main.is_unmade() {
            self.host.delete_plain_log()?;
        }
        let may_wait = self.may_wait(at, bytes.len());
        match self.write_main(bytes, at, may_wait) {
            // With `journal_mode=MEMORY` the old pages exist only in SQLite's memory. The rollback
            // needs the keys to write them, and so does a page written before the refusal.
            Err(Error::Inaccessible { .. }) if self.journals.is_empty() && self.logs.is_empty() => {
                self.main.begin(&self.host)?;
                self.write_main(bytes, at, may_wait)?;
            }
            written => written?,
        }
        self.assert_journal_is_there();
        self.assert_nothing_is_lost();
        Ok(())
    }

    fn write_main(&mut self, bytes: &[u8], at: u64, may_wait: bool) -> Result<()> {
        let Self { host, main, index, logs, .. } = self;
        main.write(host, bytes, at, may_wait, &mut || super::checkpoint::demand(host, index, logs))
    }

    /// A truncation needs none of the buffered journal: either a rollback cuts the file to the size
    /// in the journal's header, or it comes after the commit.
    pub(crate) fn truncate(&mut self, size: u64) -> Result<()> {
        self.report_owed()?;
        // With a log, only a checkpoint that took all of it sets the size.
        self.note_checkpoint_end()?;
        let Self { host, main, index, logs, .. } = self;
        main.truncate(host, size, &mut || super::checkpoint::demand(host, index, logs))?;
        self.assert_nothing_is_lost();
        Ok(())
    }

    pub(crate) fn sync(&mut self, flags: c_int) -> Result<()> {
        self.report_owed()?;
        self.main.before_sync(&self.host)?;
        self.host.sync_as(flags)
    }

    pub(crate) fn size(&mut self) -> Result<u64> {
        self.check_checkpoint()?;
        let size = self.main.size(&self.host)?;
        self.outside.plain.store(self.main.is_plain(), Ordering::Release);
        Ok(size)
    }

    /// Records an audit event if `answer` is an error that shows tampering with the files.
    fn note_tampering<T>(&mut self, answer: Result<T>) -> Result<T> {
        answer.inspect_err(|error| self.main.note_tampering(error))
    }

    /// Refuses a main file that is shorter than its log allows, and a missing page at `at` that
    /// must exist.
    fn check_missing(&mut self, at: u64) -> Result<()> {
        let Self { host, main, index, logs, .. } = self;
        main.check_missing(host, at, &mut || super::checkpoint::demand(host, index, logs))
    }
}

/// A journal.
impl<H: Host> Database<H> {
    pub(crate) fn read_journal(&mut self, id: PartId, buf: &mut [u8], at: u64) -> Result<Filled> {
        let answer = self.read_journal_part(id, buf, at);
        self.note_tampering(answer)
    }

    fn read_journal_part(&mut self, id: PartId, buf: &mut [u8], at: u64) -> Result<Filled> {
        if at < JOURNAL_HEADER {
            self.main.phase.journal_read();
        }
        let Self { host, main, journals, .. } = self;
        let Part { host: base, file: journal, .. } = part(journals, id)?;
        let starts = journal.starts_playback(base, buf.len(), at)?;
        if starts {
            main.check_journal()?;
        }
        let filled = journal.read(base, buf, at)?;
        // SQLite reads zeros from the header of an invalidated journal, and plays nothing back.
        if starts && buf.iter().any(|&byte| byte != 0) {
            journal.check_begun(main.state_for_journal(host)?)?;
        }
        Ok(filled)
    }

    pub(crate) fn write_journal(&mut self, id: PartId, bytes: &[u8], at: u64) -> Result<()> {
        self.main.phase.journal_changed();
        let Self { host, main, journals, .. } = self;
        let Part { host: base, file: journal, .. } = part(journals, id)?;
        journal.write(base, bytes, at, || main.journal_begins(host))
    }

    pub(crate) fn truncate_journal(&mut self, id: PartId, size: u64) -> Result<()> {
        self.main.phase.journal_changed();
        let Part { host: base, file: journal, .. } = part(&mut self.journals, id)?;
        journal.truncate(base, size)
    }

    pub(crate) fn sync_journal(&mut self, id: PartId, flags: c_int) -> Result<()> {
        let Part { host: base, file: journal, .. } = part(&mut self.journals, id)?;
        journal.require(base)?;
        base.sync_as(flags)
    }

    pub(crate) fn journal_size(&mut self, id: PartId) -> Result<u64> {
        let Part { host: base, file: journal, .. } = part(&mut self.journals, id)?;
        journal.size(base)
    }

    pub(crate) fn journal_host(&mut self, id: PartId) -> Result<&mut H> {
        Ok(&mut part(&mut self.journals, id)?.host)
    }
}

/// A log.
impl<H: Host> Database<H> {
    pub(crate) fn read_log(&mut self, id: PartId, buf: &mut [u8], at: u64) -> Result<Filled> {
        let answer = self.read_log_part(id, buf, at);
        self.note_tampering(answer)
    }

    fn read_log_part(&mut self, id: PartId, buf: &mut [u8], at: u64) -> Result<Filled> {
        let Self { host, main, index, logs, lock, .. } = self;
        main.watch(host)?;
        let Part { host: base, file: wal, .. } = part(logs, id)?;
        wal.read(base, &Around { host, main, index, lock: *lock }, buf, at)
    }

    pub(crate) fn write_log(&mut self, id: PartId, bytes: &[u8], at: u64) -> Result<()> {
        let Self { host, main, index, logs, lock, .. } = self;
        if let Ok(session) = main.session() {
            session.check_rights()?;
            session.watch(host)?;
        }
        let Part { host: base, file: wal, .. } = part(logs, id)?;
        wal.write(base, &Around { host, main, index, lock: *lock }, bytes, at)
    }

    pub(crate) fn truncate_log(&mut self, id: PartId, size: u64) -> Result<()> {
        let Self { host, main, index, logs, lock, .. } = self;
        let Part { host: base, file: wal, .. } = part(logs, id)?;
        wal.truncate(base, &Around { host, main, index, lock: *lock }, size)
    }

    pub(crate) fn sync_log(&mut self, id: PartId, flags: c_int) -> Result<()> {
        let Self { host, main, index, logs, lock, .. } = self;
        let Part { host: base, file: wal, .. } = part(logs, id)?;
        wal.before_sync(base, &Around { host, main, index, lock: *lock })?;
        base.sync_as(flags)
    }

    /// Size of the log; SQLite asks for it when it begins to recover one.
    pub(crate) fn log_size(&mut self, id: PartId) -> Result<u64> {
        let Self { host, main, index, logs, lock, .. } = self;
        let Part { host: base, file: wal, .. } = part(logs, id)?;
        if wal.is_foreign(base)? {
            log(
                ffi::SQLITE_WARNING,
                "sqlite-tde: the write-ahead log beside the database is another one's and counts \
                 as empty",
            );
        }
        wal.size(base, &Around { host, main, index, lock: *lock })
    }

    pub(crate) fn log_host(&mut self, id: PartId) -> Result<&mut H> {
        Ok(&mut part(&mut self.logs, id)?.host)
    }
}
