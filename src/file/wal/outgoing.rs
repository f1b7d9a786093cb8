//! Write buffer of the log: adjacent records leave in one write.
//!
//! The gap between two adjacent records is filled with zeros. That is harmless: no other record
//! lies within the reach of a torn write.

use super::layout::Layout;

/// Capacity in bytes, unless one record is longer.
const LIMIT: usize = 65536;

/// Adjacent sealed records. Allocates as it is filled.
#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    first: u32,
    count: u32,
}

impl Outgoing {
    /// The first frame in it.
    pub(super) fn first(&self) -> Option<u32> {
        (self.count > 0).then_some(self.first)
    }

    /// The last frame in it.
    pub(super) fn last(&self) -> Option<u32> {
        Some(self.first()? + self.count - 1)
    }

    pub(super) fn is_full(&self, layout: Layout) -> bool {
        (self.count as usize + 1) * layout.stride() > LIMIT
    }

    /// Whether `frame` is in it or comes next.
    pub(super) fn takes(&self, frame: u32) -> bool {
        self.count == 0 || frame.checked_sub(self.first).is_some_and(|index| index <= self.count)
    }

    /// The record of `frame`, if it is in it.
    pub(super) fn record(&self, layout: Layout, frame: u32) -> Option<&[u8]> {
        let index = frame.checked_sub(self.first).filter(|&index| index < self.count)?;
        let at = index as usize * layout.stride();
        Some(&self.bytes[at..at + layout.record()])
    }

    /// Room to seal the record of `frame`; the record counts once [`Outgoing::took`] is called.
    pub(super) fn place(&mut self, layout: Layout, frame: u32) -> &mut [u8] {
        let index = if self.count == 0 { 0 } else { (frame - self.first) as usize };
        let at = index * layout.stride();
        if self.bytes.len() < at + layout.stride() {
            self.bytes.resize(at + layout.stride(), 0);
        }
        &mut self.bytes[at..at + layout.record()]
    }

    /// The record of `frame` is sealed where it belongs.
    pub(super) fn took(&mut self, frame: u32) {
        if self.count == 0 {
            self.first = frame;
        }
        self.count = self.count.max(frame - self.first + 1);
    }

    /// The bytes to write, from the first record to the end of the last.
    pub(super) fn records(&self, layout: Layout) -> &[u8] {
        match (self.count as usize).checked_sub(1) {
            None => &[],
            Some(last) => &self.bytes[..last * layout.stride() + layout.record()],
        }
    }

    /// Minimum end of the file after the flush.
    pub(super) fn end(&self, layout: Layout) -> Option<u64> {
        Some(layout.position(self.first()?) + self.records(layout).len() as u64)
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// As [`Outgoing::clear`], before records of another length come.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}
