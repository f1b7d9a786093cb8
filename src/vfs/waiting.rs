//! Which bytes wait, and which later call reports that they could not be written. No others do:
//! what SQLite wrote is in the base when its call returns.
//!
//! Invariants; the first two are checked at the returns to SQLite where debug assertions are on
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
//! 4. Blocks of a scratch file wait in memory, and are read from there: nobody else reads them.

use crate::ffi;

use super::api;
use super::content::Content;
use super::open::{OpenFile, enter};
use crate::error::{Error, Result};

impl OpenFile {
    /// SQLite asks for what was written to be with the operating system, in each transaction that
    /// wrote to the database file and before it commits, whatever `synchronous` says.
    pub(super) fn before_commit(&mut self) -> Result<()> {
        match &mut self.content {
            Content::Db(db) => {
                db.check_commit(&self.base)?;
                db.before_commit(&self.base)
            }
            _ => Ok(()),
        }
    }

    /// The database file is about to change: what its journal gathered is brought to the base, or
    /// the error is that of the change. Answers whether the base has all of the journal; it has not
    /// where SQLite was told so and rolls back.
    pub(super) fn flush_journal(&self) -> Result<bool> {
        match enter(&self.journal)?.as_deref_mut() {
            Some(OpenFile { base, content: Content::Journal(journal), .. }) => {
                journal.require(base)?;
                Ok(!journal.is_given_up())
            }
            _ => Ok(true),
        }
    }

    /// A checkpoint begins.
    pub(super) fn checkpoint_starts(&mut self) {
        self.owed = None;
        self.checkpoint_is_void = self.shm.is_begun_anew();
        self.checkpoint_end = self.shm.checkpoint_end();
        if let Content::Db(db) = &mut self.content {
            db.checkpoint_begins();
        }
    }

    /// Stops a checkpoint during which another connection may have begun the log anew, after SQLite
    /// read the wal-index. Before 3.51.3 SQLite does not notice: it would bring frames of the new
    /// log to the places of the old one's, and later commits would count as checkpointed already.
    /// A checkpoint asks for the size of the database file before it writes, and SQLite takes this
    /// answer for a reader in the way.
    pub(super) fn check_checkpoint(&self) -> Result<()> {
        if self.checkpoint_is_void { Err(Error::Base(ffi::SQLITE_BUSY)) } else { Ok(()) }
    }

    /// A checkpoint has written what it will write, or was given up. In the first case nothing
    /// waits, unless the wal-index has more pages than SQLite wrote; in the second the log has it
    /// all.
    pub(super) fn checkpoint_ends(&mut self) {
        self.checkpoint_end = None;
        self.checkpoint_is_void = false;
        let Content::Db(db) = &mut self.content else { return };
        if let Err(error) = db.flush(&self.base) {
            api::log(error.sqlite_code(), &format!("sqlite-tde: {error}"));
            self.owed = Some(error.sqlite_code());
        }
        self.assert_nothing_is_lost();
    }

    /// Reports what no call has reported yet.
    pub(super) fn pay(&mut self) -> Result<()> {
        self.owed.take().map_or(Ok(()), |code| Err(Error::Base(code)))
    }

    /// Whether the page at `at` may wait to be written together with those that follow it: in a
    /// checkpoint that takes the whole log, in the order of pages, up to its last one.
    pub(super) fn may_wait(&self, at: u64, len: usize) -> bool {
        let Content::Db(db) = &self.content else { return false };
        let page = at / len.max(1) as u64 + 1;
        db.tuning().gather_writes && self.checkpoint_end.is_some_and(|last| page < u64::from(last))
    }

    /// The invariants above, as far as this file can see them.
    pub(super) fn assert_nothing_is_lost(&self) {
        let waits = matches!(&self.content, Content::Db(db) if db.has_outgoing());
        debug_assert!(!waits || self.checkpoint_end.is_some(), "a page waits outside a checkpoint");
    }

    /// After a write to the database file that succeeded.
    pub(super) fn assert_journal_is_there(&self) {
        if let Ok(Some(open)) = enter(&self.journal)
            && let Content::Journal(journal) = &open.content
        {
            debug_assert!(!journal.owes(), "the database is ahead of its journal");
        }
    }
}
