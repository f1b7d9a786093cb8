//! A handle's record of the frames that it writes before they are committed.

use super::FRAME_HEADER;
use crate::page::FrameNo;

/// Frame headers that are kept, of 24 bytes each: however many frames a transaction has, they take
/// 192 KiB. A frame past them is read where its page is overwritten.
const HEADERS: usize = 1 << 13;
/// Capacity in headers that is kept between transactions.
const KEPT: usize = 1 << 8;

/// The transaction that this handle writes.
#[derive(Default)]
pub(super) struct Transaction {
    /// The first frame of it.
    first: Option<FrameNo>,
    /// The frame that SQLite put at the end of its log last.
    end: FrameNo,
    /// Its last frame is written. SQLite may go on to rewrite the headers of the others.
    committed: bool,
    /// The headers of its frames, from `first` on.
    headers: Vec<[u8; FRAME_HEADER]>,
    /// From this frame on, frames failed to be written. SQLite has been told, or is about to be,
    /// and takes them back.
    lost: Option<FrameNo>,
}

impl Transaction {
    /// Whether `frame` is of this transaction.
    pub(super) fn has(&self, frame: FrameNo) -> bool {
        self.first.is_some_and(|first| frame >= first)
    }

    /// Whether SQLite has taken `frame` back: it was of this transaction, and the log ends before
    /// it.
    pub(super) fn took_back(&self, frame: FrameNo) -> bool {
        self.has(frame) && frame > self.end
    }

    /// Whether `frame` may be one that failed to be written.
    pub(super) fn has_lost(&self, frame: FrameNo) -> bool {
        self.lost.is_some_and(|lost| frame >= lost)
    }

    /// The header of `frame`, if it is known.
    pub(super) fn header(&self, frame: FrameNo) -> Option<&[u8; FRAME_HEADER]> {
        self.headers.get(frame.since(self.first?)?)
    }

    /// SQLite puts `frame` at the end of its log: later frames are taken back. Returns whether an
    /// earlier transaction was committed and this one begins.
    pub(super) fn append(&mut self, frame: FrameNo) -> bool {
        let begins = std::mem::take(&mut self.committed);
        if begins {
            self.first = None;
        }
        self.begin_at(frame);
        self.end = frame;
        self.lost = self.lost.filter(|&lost| lost < frame);
        begins
    }

    /// The record of `frame` was taken, with this header.
    pub(super) fn store(&mut self, frame: FrameNo, header: &[u8; FRAME_HEADER]) {
        self.begin_at(frame);
        let Some(index) = self.first.and_then(|first| frame.since(first)) else { return };
        if let Some(have) = self.headers.get_mut(index) {
            *have = *header;
        } else if index == self.headers.len() && index < HEADERS {
            self.headers.push(*header);
        }
    }

    fn begin_at(&mut self, frame: FrameNo) {
        if !self.has(frame) {
            self.first = Some(frame);
            self.headers.clear();
            self.headers.shrink_to(KEPT);
        }
    }

    /// Its last frame is written. SQLite may still compute its checksums anew: the headers stay
    /// until it lets the log go.
    pub(super) fn commit(&mut self) {
        self.committed = true;
    }

    /// SQLite recovers the log: nothing of a transaction is under way, and others may have written
    /// where a VFS above keeps the locks.
    pub(super) fn recovers(&mut self) {
        self.headers.clear();
    }

    /// From `frame` on, no frame is known to be written.
    pub(super) fn lose(&mut self, frame: FrameNo) {
        self.lost = Some(self.lost.map_or(frame, |lost| lost.min(frame)));
    }

    /// It is over, or was taken back.
    pub(super) fn end(&mut self) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        headers.shrink_to(KEPT);
        *self = Self { headers, ..Self::default() };
    }
}
