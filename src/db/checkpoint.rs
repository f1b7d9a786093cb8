//! From the log to the main file: checkpoints, and the work after a recovery.

use crate::ffi;
use crate::page::PageNo;

use super::host::Host;
use super::wal_index::{self, WalIndex, Words};
use super::{Database, Part};
use crate::error::{Error, Result, log};
use crate::file::wal::{Demand, Frames, Recovered, View, Wal};

/// The wal-index's values for `wal`.
fn view_of(words: &impl Words, index: &WalIndex, wal: &Wal) -> View {
    View {
        in_file: wal_index::frames_in_file(words).unwrap_or_default(),
        end: wal.end_or(wal_index::last_commit(words)),
        mark: index.mark(words),
        salts: wal_index::salts(words),
    }
}

/// The log's requirements on the main file in `host`; `None` without a log.
pub(super) fn demand<H: Host>(
    host: &H,
    index: &WalIndex,
    logs: &mut [Part<H, Wal>],
) -> Result<Option<Demand>> {
    let Some(Part { host: base, file: wal, .. }) = logs.last_mut() else { return Ok(None) };
    let mut demand = wal.demand(base, view_of(host, index, wal))?;
    demand.pages = demand.pages.max(wal_index::pages_if_all_in_file(host).unwrap_or(0));
    Ok(Some(demand))
}

impl<H: Host> Database<H> {
    /// A checkpoint begins.
    pub(crate) fn checkpoint_starts(&mut self) {
        self.owed = None;
        let void = self.index.is_begun_anew(&self.host);
        self.main.checkpoint_begins(wal_index::checkpoint_end(&self.host), void);
    }

    /// Stops a checkpoint during which another connection may have begun the log anew, after SQLite
    /// read the wal-index. Before 3.51.3 SQLite does not notice: it would bring frames of the new
    /// log to the places of the old one's, and later commits would count as checkpointed already.
    /// A checkpoint asks for the size of the database file before it writes, and SQLite takes this
    /// answer for a reader in the way.
    pub(super) fn check_checkpoint(&self) -> Result<()> {
        if self.main.phase.in_checkpoint().void {
            return Err(Error::Base(ffi::SQLITE_BUSY));
        }
        Ok(())
    }

    /// The lock of checkpoints was given back: sizes may be asked for again.
    pub(super) fn allow_checkpoint(&mut self) {
        if let Some(checkpoint) = self.main.phase.checkpoint() {
            checkpoint.void = false;
        }
    }

    /// A checkpoint has ended or was given up. If it ended, the write buffer is empty, unless the
    /// wal-index has more pages than SQLite wrote; if it was given up, the log has every page.
    pub(crate) fn checkpoint_ends(&mut self) {
        if let Err(error) = self.main.flush(&self.host) {
            log(error.sqlite_code(), &format!("sqlite-tde: {error}"));
            self.owed = Some(error.sqlite_code());
        }
        self.main.phase.checkpoint_ends();
        self.assert_nothing_is_lost();
    }

    /// A page is about to be written; with a log, a checkpoint writes it.
    pub(super) fn note_checkpointed_page(&mut self) -> Result<()> {
        if self.main.is_checkpoint_noted() {
            return Ok(());
        }
        let attempted = wal_index::frames_attempted(&self.host);
        let Some((log, rest)) = self.log_and_rest() else { return Ok(()) };
        let id = log.file.identity(&log.host, &rest)?;
        let id = id.ok_or(Error::FrameAuthentication { frame: 0 })?;
        // The frames chosen when the checkpoint began: others may have committed more since.
        let brought = log.file.brought(attempted);
        self.main.checkpoint_writes(&self.host, id, brought)
    }

    /// The main file is about to be cut. If the database has a log, that is the end of a checkpoint
    /// that brought all of it; SQLite syncs the file next.
    pub(super) fn note_checkpoint_end(&mut self) -> Result<()> {
        let attempted = wal_index::frames_attempted(&self.host);
        let Some((log, rest)) = self.log_and_rest() else { return Ok(()) };
        let id = log.file.identity(&log.host, &rest)?;
        let id = id.ok_or(Error::FrameAuthentication { frame: 0 })?;
        let last = log.file.last_frame(&log.host, log.file.brought(attempted))?;
        self.main.checkpoint_ends(&self.host, id, last)
    }

    /// The lock under which a log is recovered is about to be given back.
    pub(super) fn end_recovery(&mut self) {
        self.index.checkpoint_locked(&self.host);
        if let Err(error) = self.seal_holes() {
            // SQLite asks for no result here. `verify` tells which pages are bad.
            log(error.sqlite_code(), &format!("sqlite-tde: {error}"));
        }
    }

    /// After a recovery, seals the holes and torn pages of an interrupted checkpoint that the log
    /// does not cover.
    pub(super) fn seal_holes(&mut self) -> Result<()> {
        let Self { host, main, logs, .. } = self;
        let Some(Part { host: base, file: wal, .. }) = logs.last_mut() else { return Ok(()) };
        let Some(Recovered { least, last }) = wal.recovered else { return Ok(()) };
        let view = View { end: wal.end_or(wal_index::last_commit(host)), ..View::default() };
        let logged = wal.demand(base, view)?.logged;
        let last = wal_index::pages(host).unwrap_or(last);
        main.seal_holes(host, PageNo::after(least)..=PageNo(last), &logged)?;
        if let Some((log, end)) = wal.recovered_end(wal_index::last_frame(host)) {
            main.log_ends(host, log, end)?;
        }
        wal.recovered = None;
        Ok(())
    }

    /// Authenticates the committed frames of the log, if there is one.
    pub(crate) fn log_frames(&mut self) -> Result<Frames> {
        let salts = wal_index::salts(&self.host);
        let last = wal_index::last_frame(&self.host);
        let Some((log, rest)) = self.log_and_rest() else { return Ok(Frames::default()) };
        let last = last.map_or_else(|| log.file.last_commit(&log.host), Ok)?;
        let frames = log.file.frames(&log.host, &rest, last)?;
        // Once all was in the database, another process may have begun a log meanwhile.
        let same = wal_index::salts(&self.host) == salts;
        Ok(if same { frames } else { Frames::default() })
    }
}
