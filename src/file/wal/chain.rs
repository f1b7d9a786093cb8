//! SQLite's own checksums, which run through its log from the header on.
//!
//! They are public, so they authenticate nothing: each record does that for itself. But a record
//! may be one of a transaction that was rolled back, and later writes over its beginning break the
//! chain. So the chain shows which authentic frames were committed, without the wal-index, which is
//! not authenticated.

use super::{FRAME_HEADER, SALTS_AT, Start, WAL_HEADER};

/// In SQLite's WAL header and frame header.
const SUM_AT: usize = 24;
const FRAME_SUM_AT: usize = 16;
/// Of the frame header, the checksum covers this and the page.
const SUMMED: usize = SALTS_AT;

const _: () = assert!(SUM_AT + 8 == WAL_HEADER && FRAME_SUM_AT + 8 == FRAME_HEADER);

/// Follows the checksums from frame to frame.
pub(super) struct Chain {
    /// Words are big-endian.
    big: bool,
    salts: super::Salts,
    sum: [u32; 2],
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// SQLite before 3.50 commits frames without checksums, so the frames after them do not
    /// continue the chain: each commit counts.
    Unsure,
    /// Frames of transactions that were rolled back follow.
    Broken,
}

impl Chain {
    pub(super) fn new(start: &Start) -> Self {
        let header = start.header();
        Self {
            big: header[3] & 1 != 0,
            salts: start.salts(),
            sum: words(&header[SUM_AT..]),
            state: State::Whole,
        }
    }

    /// Whether `frame`, header and page, was written right after the previous one, as far as that
    /// is known.
    pub(super) fn goes_on(&mut self, frame: &[u8]) -> bool {
        if self.state == State::Whole {
            let (header, page) = frame.split_at(FRAME_HEADER);
            let salts = &header[SALTS_AT..FRAME_SUM_AT];
            self.add(&header[..SUMMED]);
            self.add(page);
            if salts == [0; 8] {
                self.state = State::Unsure;
            } else if *salts != self.salts || self.sum != words(&header[FRAME_SUM_AT..]) {
                self.state = State::Broken;
            }
        }
        self.state != State::Broken
    }

    /// As [`Chain::goes_on`], for a log whose checksums continue.
    pub(super) fn is_sure(&mut self, frame: &[u8]) -> bool {
        self.goes_on(frame) && self.state == State::Whole
    }

    fn add(&mut self, bytes: &[u8]) {
        let [mut first, mut second] = self.sum;
        for pair in bytes.chunks_exact(8) {
            let [one, two] = words(pair);
            // `words` reads big-endian numbers.
            let [one, two] = if self.big { [one, two] } else { [one, two].map(u32::swap_bytes) };
            first = first.wrapping_add(one).wrapping_add(second);
            second = second.wrapping_add(two).wrapping_add(first);
        }
        self.sum = [first, second];
    }
}

/// The two big-endian numbers that `bytes` start with.
fn words(bytes: &[u8]) -> [u32; 2] {
    [super::number(bytes), super::number(&bytes[4..])]
}
