//! Questions about the whole log. They come under any lock or none, so they use only frames in the
//! file, and no window that was read ahead for SQLite. A frame of this log counts even without
//! SQLite's salts: such frames are read and checkpointed like others.

use std::collections::BTreeSet;

use super::chain::Chain;
use super::layout::Layout;
use super::{COMMIT_AT, FRAME_HEADER, Frames, Owner, Salts, Wal, number};
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::page::{FrameNo, PageNo};

/// A log's requirements on the file of its database.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// Minimum valid size in pages: the size at the begin of the log, or the size that a checkpoint
    /// cut it to since; and each page that checkpoints have copied there, unless a later commit
    /// made the database smaller. A checkpoint that a reader holds back skips a page of which a
    /// later frame is in the log, though it counts the earlier one as brought.
    pub(crate) pages: u32,
    /// Pages that committed frames have, as far as no later commit made the database smaller. A
    /// checkpoint copies them to the file, or has done so: each of them was written by SQLite.
    pub(crate) logged: BTreeSet<PageNo>,
    /// Those of them that the reader at hand finds in the log, unless they are in the file.
    pub(crate) visible: BTreeSet<PageNo>,
}

/// Values from the wal-index, or from this handle's own knowledge. They are not authenticated, and
/// serve only to require more.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct View {
    /// Checkpoints have brought the frames up to this one to the database file.
    pub(crate) in_file: FrameNo,
    /// The frame of the last commit, and the pages of the database after it by the wal-index.
    pub(crate) end: Option<(FrameNo, Option<u32>)>,
    /// The reader at hand sees the frames up to this one.
    pub(crate) mark: FrameNo,
    /// The salts of the log that the wal-index describes.
    pub(crate) salts: Option<Salts>,
}

impl Wal {
    /// The requirements of the log, from its own records and from `known`.
    ///
    /// # Errors
    /// [`Error::FrameAuthentication`] if the frame of the last commit is no such commit.
    pub(crate) fn demand(&mut self, base: &impl Storage, view: View) -> Result<Demand> {
        self.load_layout(base)?;
        let mut least = self.pages();
        // SQLite begins a log once all of the one before is in the database, and marks that in the
        // wal-index before it writes the first frame.
        let is_over = view.salts.is_some() && self.salts().is_some() && view.salts != self.salts();
        let View { in_file, end, mark, .. } = if is_over { View::default() } else { view };
        let last = end.map_or(FrameNo::NONE, |(frame, _)| frame);
        let mut chain = self.start.as_ref().map(Chain::new);
        let (mut demand, mut written) = (Demand::default(), BTreeSet::new());
        let (mut pending, mut wrong_end) = (Vec::new(), false);
        self.survey(base, last, FrameNo::MAX, |wal, frame, good| {
            if !good {
                chain = None;
                return;
            }
            let (page, size) = (PageNo(number(&wal.plain)), number(&wal.plain[COMMIT_AT..]));
            let goes_on = chain.as_mut().is_some_and(|chain| chain.goes_on(wal.frame()));
            for (bound, pages) in [
                (in_file, &mut written),
                (last, &mut demand.logged),
                (mark.min(last), &mut demand.visible),
            ] {
                if frame <= bound {
                    pages.insert(page);
                    if size > 0 {
                        pages.split_off(&PageNo::after(size));
                    }
                }
            }
            if frame > in_file && frame <= last {
                // A checkpoint that a reader holds back leaves out a page that has a later frame.
                written.remove(&page);
            }
            if let Some(pages) = wal.commit() {
                least = least.min(pages);
                written.split_off(&PageNo::after(pages));
            }
            // The wal-index may hide commits: the log proves them by itself.
            if frame > last && goes_on {
                pending.push(page);
                if size > 0 {
                    if is_over {
                        written.extend(pending.iter().filter(|page| page.0 <= size));
                    }
                    demand.logged.extend(pending.drain(..));
                }
            }
            wrong_end |=
                end.is_some_and(|end| end.0 == frame && end.1.is_some_and(|end| end != size));
        })?;
        if wrong_end {
            return Err(Error::FrameAuthentication { frame: last.0 });
        }
        demand.pages = written.last().map_or(least, |last| last.0.max(least));
        Ok(demand)
    }

    /// The frame of the last commit that SQLite's checksums confirm.
    pub(super) fn last_in_chain(&mut self, base: &impl Storage) -> Result<FrameNo> {
        let (mut last, mut chain) = (FrameNo::NONE, self.start.as_ref().map(Chain::new));
        self.survey(base, FrameNo::NONE, FrameNo::MAX, |wal, frame, good| {
            let goes_on = good && chain.as_mut().is_some_and(|chain| chain.is_sure(wal.frame()));
            if goes_on && wal.commit().is_some() {
                last = frame;
            }
        })?;
        Ok(last)
    }

    /// Authenticates the frames up to `last`, that of the last commit, and compares them with the
    /// wal-index.
    pub(crate) fn frames(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        last: FrameNo,
    ) -> Result<Frames> {
        let mut frames = Frames::default();
        self.load_layout(base)?;
        let there = self.last_in(base)?;
        self.survey(base, last, last, |wal, frame, good| {
            let page = PageNo(number(&wal.plain));
            if good && wal.expected(owner, frame).is_none_or(|expected| expected == page) {
                frames.pages.insert(page);
            } else {
                frames.bad.push(frame);
            }
        })?;
        // The wal-index is not trusted: a shorter log counts as lacking one frame, whatever its
        // numbers.
        if self.layout.is_some() && there < last {
            frames.bad.push(there.next());
        }
        Ok(frames)
    }

    /// The frame of the last commit without a wal-index in shared memory: the one that this handle
    /// recovered or wrote, or else the last one in the file.
    pub(crate) fn last_commit(&mut self, base: &impl Storage) -> Result<FrameNo> {
        self.load_layout(base)?;
        if let Some(end) = self.end {
            return Ok(end);
        }
        let mut last = FrameNo::NONE;
        self.survey(base, FrameNo::NONE, FrameNo::MAX, |wal, frame, good| {
            if good && wal.commit().is_some() {
                last = frame;
            }
        })?;
        Ok(last)
    }

    /// The frame in `plain`, header and page.
    pub(super) fn frame(&self) -> &[u8] {
        &self.plain[..self.layout.map_or(FRAME_HEADER, Layout::frame)]
    }

    /// The last whole frame in the file.
    fn last_in(&self, base: &impl Storage) -> Result<FrameNo> {
        self.layout.map_or(Ok(FrameNo::NONE), |layout| Ok(layout.last_in(base.size()?)))
    }

    /// The frame of the last commit and the pages after it, by the wal-index; without one, the
    /// frame that this handle has recovered or written.
    pub(crate) fn end_or(&self, index: Option<(FrameNo, u32)>) -> Option<(FrameNo, Option<u32>)> {
        index.map(|(frame, pages)| (frame, Some(pages))).or(self.end.map(|frame| (frame, None)))
    }

    /// Shows `see` each frame in the file up to `last`: whether it authenticates, and then it is in
    /// `plain`. Past frame `sure` it stops at one that does not, for the file may be of any size.
    pub(super) fn survey(
        &mut self,
        base: &impl Storage,
        sure: FrameNo,
        last: FrameNo,
        mut see: impl FnMut(&mut Self, FrameNo, bool),
    ) -> Result<()> {
        self.survey_while(base, sure, FrameNo::FIRST..=last, |wal, frame, good| {
            see(wal, frame, good);
            true
        })
    }

    /// As [`Wal::survey`], until `see` returns `false`.
    fn survey_while(
        &mut self,
        base: &impl Storage,
        sure: FrameNo,
        frames: std::ops::RangeInclusive<FrameNo>,
        mut see: impl FnMut(&mut Self, FrameNo, bool) -> bool,
    ) -> Result<()> {
        let Some(layout) = self.layout else { return Ok(()) };
        let last = self.last_in(base)?.min(*frames.end());
        self.ahead.clear();
        let goes_on = |frame| {
            let good = self.start.is_some() && self.load_written(base, layout, frame)?;
            Ok(see(self, frame, good) && (good || frame < sure))
        };
        let end = frames.start().to(last).map(goes_on).find(|goes_on| !matches!(goes_on, Ok(true)));
        self.ahead.clear();
        self.held = None;
        end.transpose().map(|_| ())
    }

    /// Whether `is` holds for one of these frames.
    pub(super) fn find(
        &mut self,
        base: &impl Storage,
        frames: std::ops::RangeInclusive<FrameNo>,
        is: impl Fn(&[u8]) -> bool,
    ) -> Result<bool> {
        let mut found = false;
        self.survey_while(base, FrameNo::NONE, frames, |wal, _, good| {
            found |= good && is(&wal.plain);
            !found
        })?;
        Ok(found)
    }
}
