//! Write-back policy: a page is deferred only if a later call can still report its failure. Every
//! other write is in the base when SQLite's call returns.
//!
//! Invariants; builds with debug assertions check the first two at each return to SQLite
//! 1. A page of a database file waits only in a checkpoint, before the write of the last page that
//!    the wal-index has for it. That write brings all to the base and reports an error. The log has
//!    each page meanwhile. If the wal-index promised a page that never comes, the truncation and
//!    the sync that follow the checkpoint report it.
//! 2. In a transaction with a rollback journal no page waits: SQLite's rollback begins with a look
//!    at the size and a truncation, whose errors it ignores, and `sqlite3_db_cacheflush` promises
//!    that pages are in the file. Records of the journal wait until its sync or the first write to
//!    the database file after them, which fails if they cannot be written: after a write to the
//!    database that succeeded, the base has the journal, or SQLite was told that it has not.
//! 3. Frames of a log wait for the frame that commits, or for that one of them which SQLite
//!    rewrites last; see [`crate::file::wal`].
//! 4. Blocks of a scratch file wait in memory, and are read from there: no other handle reads them.

use super::Database;
use super::host::Host;
use crate::error::{Error, Result};
use crate::page::PageNo;

impl<H: Host> Database<H> {
    /// SQLite asks for all writes to be handed to the operating system. It does so before each
    /// commit that wrote to the main file, whatever `synchronous` says.
    pub(crate) fn before_commit(&mut self) -> Result<()> {
        self.main.check_commit(&self.host)?;
        self.main.before_commit(&self.host)
    }

    /// The main file is about to change: its journal is flushed first, and a failed flush fails the
    /// change. Returns whether the base has all of the journal; it has not if SQLite was told so
    /// and rolls back.
    pub(super) fn flush_journals(&mut self) -> Result<bool> {
        let mut whole = true;
        for part in &mut self.journals {
            part.file.require(&part.host)?;
            whole &= !part.file.is_given_up();
        }
        Ok(whole)
    }

    /// Reports a failure that no call has reported yet.
    pub(super) fn report_owed(&mut self) -> Result<()> {
        self.owed.take().map_or(Ok(()), |code| Err(Error::Base(code)))
    }

    /// Whether the page at `at` may wait to be written together with those that follow it: in a
    /// checkpoint that takes the whole log, in the order of pages, up to its last one.
    pub(super) fn may_wait(&self, at: u64, len: usize) -> bool {
        let last = self.main.phase.in_checkpoint().last_page;
        self.main.tuning().gather_writes
            && last.is_some_and(|last| PageNo::at(at, len.max(1)) < last)
    }

    /// The invariants above, as far as the main file can see them.
    pub(super) fn assert_nothing_is_lost(&self) {
        let waits = self.main.has_outgoing();
        let expected = self.main.phase.in_checkpoint().last_page.is_some();
        debug_assert!(!waits || expected, "a page waits outside a checkpoint");
    }

    /// After a write to the main file that succeeded.
    pub(super) fn assert_journal_is_there(&self) {
        let owes = self.journals.iter().any(|part| part.file.owes());
        debug_assert!(!owes, "the database is ahead of its journal");
    }
}
