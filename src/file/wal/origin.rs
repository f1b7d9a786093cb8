//! Whether a log belongs to the database file that it lies beside.

use super::chain::Chain;
use super::{COMMIT_AT, FRAME_HEADER, Origin, Owner, SALTS_AT, Wal, number};
use crate::error::{Error, Result};
use crate::file::journal::Counters;
use crate::io::Storage;
use crate::key::envelope::slot::{Fit, LastFrame, StateId};
use crate::page::{FrameNo, LogId, PageNo, RESERVE};

/// Attempts at a log that others may begin anew meanwhile: SQLite recovers without locks if it may
/// not write the wal-index.
const ATTEMPTS: usize = 5;
/// Number of frames of page 1 to try, from the last one on, before every frame is tried.
const TOLD: usize = 64;
/// Range of SQLite's bytes 24 to 39 of a page within its frame.
const COUNTERS: std::ops::Range<usize> =
    FRAME_HEADER + 24..FRAME_HEADER + 24 + size_of::<Counters>();

/// Depth of a check.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    AtAll,
    /// The log is in use. During its checkpoint, page 1 in the file may be any of its versions, and
    /// finding out which takes as long as a recovery.
    InUse,
}

impl Wal {
    /// Before SQLite recovers the log: refuses one that was written for another state of the
    /// database. Without a commit there is nothing to recover in it, and it counts as empty.
    ///
    /// # Errors
    /// [`Error::LogOutdated`], [`Error::LogCut`].
    pub(super) fn check_origin(&mut self, base: &impl Storage, owner: &impl Owner) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let (Some(layout), Some(start)) = (self.layout, self.start) else { return Ok(()) };
            if self.is_of(base, owner, layout.log, &start.origin(), Look::AtAll)? {
                return Ok(());
            }
            self.load_layout(base)?;
            if self.layout.is_none_or(|now| now.log != layout.log) {
                continue;
            }
            if self.has_commit(base)? {
                break;
            }
            (self.void, self.start) = (Some(layout.log), None);
            return Ok(());
        }
        Err(Error::LogOutdated)
    }

    /// Before a frame of the log is read or written: the same check, unless this handle has made it
    /// and no commit has followed. SQLite may have trusted the wal-index, and recovered nothing.
    ///
    /// # Errors
    /// [`Error::LogOutdated`], [`Error::LogCut`]; [`Error::FrameAuthentication`] if the
    /// wal-index is about another log.
    pub(super) fn check_new(&mut self, base: &impl Storage, owner: &impl Owner) -> Result<()> {
        let (Some(layout), Some(start)) = (self.layout, self.start) else { return Ok(()) };
        if self.fits == Some(layout.log) {
            return Ok(());
        }
        if owner.salts().is_some_and(|salts| salts != start.salts()) {
            return Err(Error::FrameAuthentication { frame: 0 });
        }
        if self.is_of(base, owner, layout.log, &start.origin(), Look::InUse)? {
            return Ok(());
        }
        Err(Error::LogOutdated)
    }

    /// Whether the log `log`, begun on `origin`, belongs to the database file as it is.
    fn is_of(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        log: LogId,
        origin: &Origin,
        look: Look,
    ) -> Result<bool> {
        let fit = owner.fit(&log, &origin.state)?;
        if let Fit::Brought { frames, partly } = fit {
            self.require_brought(base, owner, (frames, partly), look)?;
        }
        let fits = match fit {
            Fit::No => false,
            Fit::Brought { partly: true, .. } if look == Look::InUse => true,
            Fit::Brought { .. } | Fit::Begun => match owner.counters()? {
                Some(counters) if counters == origin.counters => true,
                // A checkpoint may have brought page 1 from the log.
                Some(counters) => self.has_page_1(base, owner, Some(counters))?,
                // The checkpoint may have been interrupted while it wrote page 1.
                None if self.has_page_1(base, owner, None)? => true,
                None => return Err(Error::PageAuthentication { page: 1 }),
            },
        };
        if fits {
            self.fits = Some(log);
        }
        Ok(fits)
    }

    /// Refuses a log, or a wal-index, that lacks one of the frames up to `brought`: pages of them
    /// may be in the file.
    ///
    /// SQLite before 3.50 commits frames without checksums. A checkpoint brings them to the file,
    /// but a recovery drops them. They stay in the log until others are written over them, and the
    /// recovery lowers `brought` in the slot (`db::main::Main::log_ends`).
    ///
    /// # Errors
    /// [`Error::LogCut`].
    fn require_brought(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        (brought, partly): (FrameNo, bool),
        look: Look,
    ) -> Result<()> {
        let in_index = self.last_in_index(owner).filter(|_| look == Look::InUse);
        let enough = in_index.is_some_and(|last| last >= brought);
        // If the index is not about this log, another one was begun meanwhile, and will be looked
        // at with the next lock.
        if enough || look == Look::InUse && in_index.is_none() {
            return Ok(());
        }
        let (mut there, mut chain) = (FrameNo::NONE, self.start.as_ref().map(Chain::new));
        self.survey(base, FrameNo::NONE, brought, |wal, frame, good| {
            let mut goes_on = || chain.as_mut().is_some_and(|chain| chain.goes_on(wal.frame()));
            // Others may have overwritten the frames that a recovery dropped.
            if good && (look == Look::InUse || goes_on()) {
                there = frame;
            }
        })?;
        // A log without frames is harmless if the file has all of it, for nothing is played back.
        // A power loss with synchronous=OFF leaves that, when the next log was begun.
        if there < brought && (partly || there > FrameNo::NONE) {
            return Err(Error::LogCut { frame: there.next().0 });
        }
        if let Some(last) = in_index
            && self.last_in_chain(base)? > last
        {
            return Err(Error::LogCut { frame: last.next().0 });
        }
        Ok(())
    }

    /// The id of the log and the state of the database file on which it was begun.
    ///
    /// # Errors
    /// As [`Wal::check_new`].
    pub(crate) fn identity(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
    ) -> Result<Option<(LogId, StateId)>> {
        self.refresh(base, owner)?;
        self.check_new(base, owner)?;
        Ok(self.layout.zip(self.start).map(|(layout, start)| (layout.log, start.origin().state)))
    }

    /// After a recovery: the log, the state on which it was begun and the last frame that counts,
    /// by the wal-index if it is in shared memory.
    pub(crate) fn recovered_end(
        &self,
        in_index: Option<FrameNo>,
    ) -> Option<((LogId, StateId), FrameNo)> {
        let (layout, start) = self.layout.zip(self.start)?;
        Some(((layout.log, start.origin().state), in_index.or(self.end)?))
    }

    /// The frames that the current checkpoint may copy to the file, by the wal-index or by this
    /// handle's own knowledge.
    pub(crate) fn brought(&self, attempted: Option<FrameNo>) -> FrameNo {
        attempted.or(self.end).unwrap_or_default()
    }

    /// The last one of those frames, if known.
    pub(crate) fn last_frame(
        &self,
        base: &impl Storage,
        brought: FrameNo,
    ) -> Result<Option<LastFrame>> {
        let Some(layout) = self.layout.filter(|_| brought > FrameNo::NONE) else { return Ok(None) };
        let mut trailer = [0; RESERVE];
        let at = layout.position(brought) + layout.frame() as u64;
        Ok(base.read_whole(&mut trailer, at)?.then_some((brought, trailer)))
    }

    /// Whether page 1 is in the log, with these counters or with any. Tries the wal-index's frame
    /// of page 1 first: reading every frame takes as long as a recovery.
    fn has_page_1(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        counters: Option<Counters>,
    ) -> Result<bool> {
        let is_it = |frame: &[u8]| {
            number(frame) == 1 && counters.is_none_or(|counters| frame[COUNTERS] == counters)
        };
        let last = self.last_in_index(owner).unwrap_or_default();
        let of_page_1 = |frame: &FrameNo| owner.page_of(*frame) == Some(PageNo::FIRST);
        let told = FrameNo::FIRST.to(last).rev().filter(of_page_1).take(TOLD);
        for frame in told {
            if self.find(base, frame..=frame, is_it)? {
                return Ok(true);
            }
        }
        self.find(base, FrameNo::FIRST..=FrameNo::MAX, is_it)
    }

    /// Whether a transaction was committed to the log.
    fn has_commit(&mut self, base: &impl Storage) -> Result<bool> {
        let Some(salts) = self.salts() else { return Ok(false) };
        self.find(base, FrameNo::FIRST..=FrameNo::MAX, |frame| {
            number(&frame[COMMIT_AT..]) > 0 && frame[SALTS_AT..].starts_with(&salts)
        })
    }
}
