//! What others ask of the whole log. They do so under any lock or none, so nothing that was read
//! ahead for SQLite counts, and only frames that are in the file. A frame of this log counts also
//! without SQLite's salts: those that it commits without them are read and checkpointed as others.

use std::collections::BTreeSet;

use super::layout::Layout;
use super::{COMMIT_AT, Frames, Parent, Wal, number};
use crate::error::{Error, Result};
use crate::file::Storage;

/// What a log demands of the file of its database.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// The smallest size in pages that the file may have: what it had when the log was begun, or
    /// what a checkpoint cut it to since; and each page that checkpoints have brought there, unless
    /// a later commit made the database smaller. A checkpoint that a reader holds back skips a page
    /// of which a later frame is in the log, though it counts the earlier one as brought.
    pub(crate) pages: u32,
    /// Pages that committed frames have, as far as no later commit made the database smaller. A
    /// checkpoint brings them to the file, or has done so: none of them is one that nobody wrote.
    pub(crate) logged: BTreeSet<u32>,
}

impl Wal {
    /// Checkpoints have brought the frames up to `in_file` to the database file. `end` is the frame of
    /// the last commit, as far as known, and by the wal-index the pages of the database after it.
    ///
    /// # Errors
    /// [`Error::FrameAuthentication`] where that frame is no such commit.
    pub(crate) fn demand(
        &mut self,
        base: &impl Storage,
        in_file: u32,
        end: Option<(u32, Option<u32>)>,
    ) -> Result<Demand> {
        self.load_layout(base)?;
        let mut least = self.pages();
        let last = end.map_or(0, |(frame, _)| frame);
        let (mut written, mut logged, mut wrong_end) = (BTreeSet::new(), BTreeSet::new(), false);
        self.survey(base, last, u32::MAX, |wal, frame, good| {
            if !good {
                return;
            }
            let (page, size) = (number(&wal.plain), number(&wal.plain[COMMIT_AT..]));
            if frame <= in_file {
                written.insert(page);
            } else if frame <= last {
                written.remove(&page);
            }
            if let Some(pages) = wal.commit() {
                least = least.min(pages);
                written.split_off(&pages.saturating_add(1));
            }
            if frame <= last {
                logged.insert(page);
                if size > 0 {
                    logged.split_off(&size.saturating_add(1));
                }
            }
            wrong_end |=
                end.is_some_and(|end| end.0 == frame && end.1.is_some_and(|end| end != size));
        })?;
        if wrong_end {
            return Err(Error::FrameAuthentication { frame: last });
        }
        let pages = written.last().map_or(least, |&last| last.max(least));
        Ok(Demand { pages, logged })
    }

    /// Authenticates the frames up to `last`, that of the last commit, and compares them with the
    /// wal-index.
    pub(crate) fn frames(
        &mut self,
        base: &impl Storage,
        parent: &impl Parent,
        last: u32,
    ) -> Result<Frames> {
        let mut frames = Frames::default();
        self.load_layout(base)?;
        let there = self.frames_in(base)?;
        self.survey(base, last, last, |wal, frame, good| {
            let page = number(&wal.plain);
            if good && parent.page_of(frame).is_none_or(|expected| expected == page) {
                frames.pages.insert(page);
            } else {
                frames.bad.push(frame);
            }
        })?;
        // The wal-index may say anything: a log that is shorter lacks one frame, whatever it says.
        if self.layout.is_some() && there < last {
            frames.bad.push(there + 1);
        }
        Ok(frames)
    }

    /// The frame of the last commit, where no wal-index is in shared memory: the one that this
    /// handle recovered or wrote, or else the last one in the file.
    pub(crate) fn last_commit(&mut self, base: &impl Storage) -> Result<u32> {
        self.load_layout(base)?;
        if let Some(end) = self.end {
            return Ok(end);
        }
        let mut last = 0;
        self.survey(base, 0, u32::MAX, |wal, frame, good| {
            if good && wal.commit().is_some() {
                last = frame;
            }
        })?;
        Ok(last)
    }

    fn frames_in(&self, base: &impl Storage) -> Result<u32> {
        self.layout.map_or(Ok(0), |layout| Ok(layout.frames_in(base.size()?)))
    }

    /// The frame of the last commit and the pages after it, by the wal-index; without one, the frame
    /// that this handle has recovered or written.
    pub(crate) fn end_or(&self, index: Option<(u32, u32)>) -> Option<(u32, Option<u32>)> {
        index.map(|(frame, pages)| (frame, Some(pages))).or(self.end.map(|frame| (frame, None)))
    }

    /// Shows `see` each frame in the file up to `last`: whether it authenticates, and then it is in
    /// `plain`. Past frame `sure` it stops at one that does not, for the file may be of any size.
    pub(super) fn survey(
        &mut self,
        base: &impl Storage,
        sure: u32,
        last: u32,
        mut see: impl FnMut(&mut Self, u32, bool),
    ) -> Result<()> {
        let Some(layout) = self.layout else { return Ok(()) };
        let there = self.frames_in(base)?;
        self.ahead.clear();
        let seen = self.see_each(base, layout, (sure, last.min(there)), &mut see);
        self.ahead.clear();
        self.held = None;
        seen
    }

    fn see_each(
        &mut self,
        base: &impl Storage,
        layout: Layout,
        (sure, last): (u32, u32),
        see: &mut impl FnMut(&mut Self, u32, bool),
    ) -> Result<()> {
        for frame in 1..=last {
            let good = self.start.is_some() && self.load_written(base, layout, frame)?;
            see(self, frame, good);
            if !good && frame >= sure {
                break;
            }
        }
        Ok(())
    }
}
