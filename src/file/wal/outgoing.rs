//! Write buffer of the log: adjacent records leave in one write.
//!
//! The gap between two adjacent records is filled with zeros. That is harmless: no other record
//! lies within the reach of a torn write.

use super::layout::Layout;
use crate::error::{Error, Result};
use crate::page::FrameNo;

/// Capacity in bytes, unless one record is longer.
const LIMIT: usize = 65536;

/// Adjacent sealed records. Allocates as it is filled.
#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    /// The first and the last frame in it.
    frames: Option<(FrameNo, FrameNo)>,
}

impl Outgoing {
    /// The first frame in it.
    pub(super) fn first(&self) -> Option<FrameNo> {
        Some(self.frames?.0)
    }

    /// The last frame in it.
    pub(super) fn last(&self) -> Option<FrameNo> {
        Some(self.frames?.1)
    }

    fn count(&self) -> usize {
        self.frames.and_then(|(first, last)| last.since(first)).map_or(0, |index| index + 1)
    }

    pub(super) fn is_full(&self, layout: Layout) -> bool {
        (self.count() + 1) * layout.stride() > LIMIT
    }

    /// Whether `frame` is in it or comes next.
    pub(super) fn takes(&self, frame: FrameNo) -> bool {
        self.frames.is_none_or(|(first, last)| first <= frame && frame <= last.next())
    }

    /// The record of `frame`, if it is in it.
    pub(super) fn record(&self, layout: Layout, frame: FrameNo) -> Option<&[u8]> {
        let (first, _) = self.frames.filter(|(_, last)| frame <= *last)?;
        let at = frame.since(first)? * layout.stride();
        Some(&self.bytes[at..at + layout.record()])
    }

    /// Room to seal the record of `frame`; the record counts once [`Outgoing::took`] is called.
    pub(super) fn place(&mut self, layout: Layout, frame: FrameNo) -> Result<&mut [u8]> {
        let index = self.first().and_then(|first| frame.since(first));
        let at = index.unwrap_or(0) * layout.stride();
        if self.bytes.len() < at + layout.stride() {
            let more = at + layout.stride() - self.bytes.len();
            self.bytes.try_reserve(more).map_err(|_| Error::NO_MEMORY)?;
            self.bytes.resize(at + layout.stride(), 0);
        }
        Ok(&mut self.bytes[at..at + layout.record()])
    }

    /// The record of `frame` is sealed where it belongs.
    pub(super) fn took(&mut self, frame: FrameNo) {
        let (first, last) = self.frames.unwrap_or((frame, frame));
        self.frames = Some((first, last.max(frame)));
    }

    /// The bytes to write, from the first record to the end of the last.
    pub(super) fn records(&self, layout: Layout) -> &[u8] {
        match self.count().checked_sub(1) {
            None => &[],
            Some(last) => &self.bytes[..last * layout.stride() + layout.record()],
        }
    }

    /// Minimum end of the file after the flush.
    pub(super) fn end(&self, layout: Layout) -> Option<u64> {
        Some(layout.position(self.first()?) + self.records(layout).len() as u64)
    }

    pub(super) fn clear(&mut self) {
        self.frames = None;
    }

    /// As [`Outgoing::clear`], before records of another length come.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}
