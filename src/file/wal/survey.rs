//! What others ask of the whole log. They do so under any lock or none, so nothing that was read ahead
//! for SQLite counts, and only frames that are in the file.

use std::collections::BTreeSet;

use super::layout::Layout;
use super::{Frames, SALTS_AT, Wal, number};
use crate::error::Result;
use crate::file::Storage;

impl Wal {
    /// The smallest size in pages that the database file may have: what it had when the log was
    /// begun, or what a checkpoint cut it to since; and each page of the frames up to `in_file`,
    /// which checkpoints have brought there, unless a later commit made the database smaller.
    pub(crate) fn least_pages(&mut self, base: &impl Storage, in_file: u32) -> Result<u32> {
        self.load_layout(base)?;
        let mut least = if self.layout.is_some() { self.pages } else { 0 };
        let mut written = BTreeSet::new();
        self.survey(base, u32::MAX, |wal, frame, good| {
            if good && wal.plain[SALTS_AT..].starts_with(&wal.salts) {
                if frame <= in_file {
                    written.insert(number(&wal.plain));
                }
                if let Some(pages) = wal.commit() {
                    least = least.min(pages);
                    written.split_off(&pages.saturating_add(1));
                }
            }
        })?;
        Ok(written.last().map_or(least, |&last| last.max(least)))
    }

    /// Authenticates the frames up to `last`, that of the last commit.
    pub(crate) fn frames(&mut self, base: &impl Storage, last: u32) -> Result<Frames> {
        let mut frames = Frames::default();
        self.load_layout(base)?;
        let there = self.frames_in(base)?;
        self.survey(base, last, |wal, frame, good| {
            if good && wal.plain[SALTS_AT..].starts_with(&wal.salts) {
                frames.pages.insert(number(&wal.plain));
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

    /// The frame of the last commit in the file, for who has no wal-index.
    pub(crate) fn last_commit(&mut self, base: &impl Storage) -> Result<u32> {
        self.load_layout(base)?;
        let mut last = 0;
        self.survey(base, u32::MAX, |wal, frame, good| {
            if good && wal.commit().is_some() {
                last = frame;
            }
        })?;
        Ok(last)
    }

    fn frames_in(&self, base: &impl Storage) -> Result<u32> {
        self.layout.map_or(Ok(0), |layout| Ok(layout.frames_in(base.size()?)))
    }

    /// Shows `see` each frame in the file up to `last`: whether it authenticates, and then it is in
    /// `plain`.
    fn survey(
        &mut self,
        base: &impl Storage,
        last: u32,
        mut see: impl FnMut(&mut Self, u32, bool),
    ) -> Result<()> {
        let Some(layout) = self.layout else { return Ok(()) };
        let there = self.frames_in(base)?;
        self.ahead.clear();
        let seen = self.see_each(base, layout, last.min(there), &mut see);
        self.ahead.clear();
        self.held = None;
        seen
    }

    fn see_each(
        &mut self,
        base: &impl Storage,
        layout: Layout,
        last: u32,
        see: &mut impl FnMut(&mut Self, u32, bool),
    ) -> Result<()> {
        for frame in 1..=last {
            let good = self.load_written(base, layout, frame)?;
            see(self, frame, good);
        }
        Ok(())
    }
}
