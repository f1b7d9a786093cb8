//! Which writes to a database file may wait for those that follow them, and when they must not wait any
//! longer: what a later call can still report is known here alone.

use libsqlite3_sys as ffi;

use super::api;
use super::content::Content;
use super::open::{OpenFile, enter};
use crate::error::Result;

impl OpenFile {
    /// A transaction that wrote is over. SQLite has asked for what waited to be written before it
    /// committed (`SQLITE_FCNTL_SYNC`); if it is still there, that failed, and the journal tells whoever
    /// comes next what to put back.
    pub(super) fn end_writing(&mut self) {
        if let Content::Db(db) = &mut self.content {
            if let Err(error) = db.flush(&self.base) {
                api::log(error.sqlite_code(), &format!("sqlite-tde: {error}"));
            }
            db.drop_outgoing();
        }
    }

    /// SQLite asks for what was written to be with the operating system, in each transaction that wrote
    /// to the database file and before it commits, whatever `synchronous` says.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.asked = true;
        match &mut self.content {
            Content::Db(db) => db.flush(&self.base),
            _ => Ok(()),
        }
    }

    /// The database file is about to change: what its journal gathered is brought to the base, or the
    /// error is that of the change.
    pub(super) fn flush_journal(&self) -> Result<()> {
        match enter(&self.journal)?.as_deref_mut() {
            Some(OpenFile { base, content: Content::Journal(journal), .. }) => {
                journal.require(base)
            }
            _ => Ok(()),
        }
    }

    /// A checkpoint begins.
    pub(super) fn checkpoint_starts(&mut self) {
        self.checkpoint_end = self.shm.checkpoint_end();
    }

    /// A checkpoint has written what it will write, or was given up. In the first case nothing waits;
    /// in the second the log has it all.
    pub(super) fn checkpoint_ends(&mut self) {
        self.checkpoint_end = None;
        self.end_writing();
    }

    /// Whether the page at `at` may wait to be written together with those that follow it. It may where
    /// a later call is certain to come that can report an error before anybody counts on the page.
    ///
    /// | what writes | that call | told by |
    /// |---|---|---|
    /// | a transaction with a rollback journal | `SQLITE_FCNTL_SYNC`, before it commits | its lock |
    /// | a checkpoint, in the order of pages | the write of its last page | [`Shm::checkpoint_end`] |
    pub(super) fn may_wait(&self, at: u64, len: usize) -> bool {
        let Content::Db(db) = &self.content else { return false };
        if !db.tuning().gather_writes {
            return false;
        }
        if self.log.is_none() {
            return self.lock == ffi::SQLITE_LOCK_EXCLUSIVE && !self.asked;
        }
        let page = at / len.max(1) as u64 + 1;
        self.checkpoint_end.is_some_and(|last| page < u64::from(last))
    }
}
