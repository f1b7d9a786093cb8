//! Read-ahead: sequential reads are served from one larger read.
//!
//! A window holds a part of the file as it was on disk when it was read. Its owner ends its
//! validity with [`Ahead::forget`] and [`Ahead::clear`], and authenticates all bytes that it takes
//! from it. Each window of a run takes twice as many pieces as the one before, so that random reads
//! cost no more than before.

use std::ops::Range;

use super::Storage;

/// Bytes of the largest window.
const LIMIT: usize = 65536;
/// Reads in a row that make a run. Opening a database takes fewer.
const RUN: usize = 4;

/// A read-ahead window. Its buffer is allocated when it is first filled.
#[derive(Default)]
pub(crate) struct Ahead {
    bytes: Vec<u8>,
    /// Where in the file `bytes` begins.
    start: u64,
    /// The range of the file that `bytes` covers.
    valid: Range<u64>,
    /// Offset of the next read if it continues the run.
    next: Option<u64>,
    /// Reads in a row so far.
    run: usize,
    /// Pieces of the last window of the run.
    pieces: usize,
}

impl Ahead {
    /// The `len` bytes at `at`, from a window, which is filled while a run of reads continues, one
    /// each `stride` bytes. `None` if the caller must read them itself: outside of runs, and if the
    /// window could not be read or the file ends before.
    pub(crate) fn read(
        &mut self,
        base: &impl Storage,
        at: u64,
        len: usize,
        stride: usize,
    ) -> Option<&[u8]> {
        self.run = if self.goes_on(at, stride) { self.run + 1 } else { 1 };
        self.next = Some(at + stride as u64);
        if !self.holds(at, len) {
            self.pieces = match self.run {
                ..RUN => 1,
                _ => (2 * self.pieces.max(1)).min((LIMIT / stride).max(1)),
            };
            if self.pieces == 1 {
                return None;
            }
            self.fill(base, at, (self.pieces - 1) * stride + len);
        }
        if !self.holds(at, len) {
            return None;
        }
        let from = (at - self.start) as usize;
        Some(&self.bytes[from..from + len])
    }

    /// Whether a read at `at` continues the run: the next one, or one that skips at most a window.
    fn goes_on(&self, at: u64, stride: usize) -> bool {
        let ahead = self.pieces.saturating_sub(1) * stride;
        let skipped = self.next.and_then(|next| at.checked_sub(next));
        skipped.is_some_and(|skipped| skipped <= ahead as u64)
    }

    fn holds(&self, at: u64, len: usize) -> bool {
        self.valid.start <= at && at + len as u64 <= self.valid.end
    }

    /// No caller asked for the whole window, so an error is ignored: the bytes in demand are read
    /// again by themselves.
    fn fill(&mut self, base: &impl Storage, at: u64, len: usize) {
        self.clear_window();
        if self.bytes.len() < len {
            // Without memory nothing is read ahead.
            if self.bytes.try_reserve_exact(len - self.bytes.len()).is_err() {
                return;
            }
            self.bytes.resize(len, 0);
        }
        // Bytes past the end of the file read as zeros, and would pass for the end of a record.
        let there = match base.read(&mut self.bytes[..len], at) {
            Ok(true) => len as u64,
            Ok(false) => base.size().unwrap_or(0).saturating_sub(at).min(len as u64),
            Err(_) => 0,
        };
        (self.start, self.valid) = (at, at..at + there);
    }

    /// The bytes at `written` are about to change; the window up to there is dropped, too.
    pub(crate) fn forget(&mut self, written: Range<u64>) {
        if written.start < self.valid.end {
            self.valid.start = self.valid.start.max(written.end).min(self.valid.end);
        }
    }

    /// Anything may have changed.
    pub(crate) fn clear(&mut self) {
        self.clear_window();
        self.pieces = 0;
    }

    fn clear_window(&mut self) {
        self.valid = 0..0;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::error::{Error, Result};
    use crate::io::memory::Memory;

    /// Counts reads, and fails those it is told to.
    #[derive(Default)]
    struct Counting {
        base: Memory,
        reads: RefCell<Vec<(u64, usize)>>,
        fails: Cell<bool>,
    }

    impl Storage for Counting {
        fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
            self.reads.borrow_mut().push((at, buf.len()));
            if self.fails.get() { Err(Error::Base(1)) } else { self.base.read(buf, at) }
        }
        fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
            self.base.write(bytes, at)
        }
        fn truncate(&self, size: u64) -> Result<()> {
            self.base.truncate(size)
        }
        fn size(&self) -> Result<u64> {
            self.base.size()
        }
        fn sync(&self) -> Result<()> {
            Ok(())
        }
    }

    /// 64 pieces of 4096 bytes of which 4000 are asked for; byte 0 of a piece is its number.
    const STRIDE: usize = 4096;
    const LEN: usize = 4000;

    fn base() -> Counting {
        let base = Counting::default();
        for piece in 0..64 {
            base.write(&[piece; STRIDE], u64::from(piece) * STRIDE as u64).unwrap();
        }
        base
    }

    fn piece(ahead: &mut Ahead, base: &Counting, number: u64) -> Option<u8> {
        let got = ahead.read(base, number * STRIDE as u64, LEN, STRIDE)?;
        assert_eq!(got.len(), LEN);
        Some(got[0])
    }

    #[test]
    fn windows_grow_with_a_run_and_nothing_is_read_twice() {
        let (base, mut ahead) = (base(), Ahead::default());
        for number in 0..3 {
            assert_eq!(piece(&mut ahead, &base, number), None, "some reads are no run");
        }
        assert!(ahead.bytes.is_empty());
        for number in 3..64 {
            assert_eq!(piece(&mut ahead, &base, number), Some(number as u8));
        }
        let reads = base.reads.borrow();
        let pieces: Vec<_> = reads.iter().map(|(_, len)| len.div_ceil(STRIDE)).collect();
        assert_eq!(pieces, [2, 4, 8, 16, 16, 16], "{reads:?}");
        let mut ends = reads.iter().map(|(at, len)| at + (len - LEN + STRIDE) as u64);
        assert!(reads.iter().skip(1).all(|(at, _)| Some(*at) == ends.next()), "{reads:?}");
    }

    #[test]
    fn reads_here_and_there_are_not_ahead() {
        // The piece, and the number of pieces read for it.
        let before = [(5, 0), (3, 0), (4, 0), (5, 0), (6, 2), (7, 0), (20, 0), (7, 0)];
        let rows = before.into_iter().chain([(8, 0), (9, 0), (10, 2), (11, 0), (1, 0), (4, 0)]);
        let (base, mut ahead) = (base(), Ahead::default());
        for (number, read) in rows {
            base.reads.borrow_mut().clear();
            let got = piece(&mut ahead, &base, number);
            assert!(got.is_none_or(|got| got == number as u8), "piece {number}");
            let reads = base.reads.borrow();
            let pieces: usize = reads.iter().map(|(_, len)| len.div_ceil(STRIDE)).sum();
            assert_eq!(pieces, read, "piece {number}");
        }
    }

    #[test]
    fn a_run_may_skip_what_comes_ahead() {
        let (base, mut ahead) = (base(), Ahead::default());
        // Windows of 2, 4, 8 and twice 16 pieces; then a skip too long.
        let run = [3, 4, 6, 10, 14, 15, 22, 38, 39].map(|number| (number, true));
        let before = [0, 1, 2].map(|number| (number, false));
        for (number, there) in before.into_iter().chain(run).chain([(62, false)]) {
            let got = piece(&mut ahead, &base, number);
            assert_eq!(got.is_some(), there, "piece {number}");
        }
    }

    #[test]
    fn what_is_written_is_not_in_the_window_any_more() {
        for (what, written, gone) in [
            ("before the window", 0..4, 0..0),
            ("its start", 5..9, 7..9),
            ("within", 9..10, 7..10),
            ("its end", 10..20, 7..11),
            ("all of it", 0..64, 7..11),
            ("after it", 11..20, 0..0),
        ] {
            let (base, mut ahead) = (base(), Ahead::default());
            // Windows of pieces 5 and 6, and of 7 to 10.
            (2..=7).for_each(|number| _ = piece(&mut ahead, &base, number));
            ahead.forget(written.start * STRIDE as u64..written.end * STRIDE as u64);
            for number in 7..11 {
                let there = ahead.holds(number * STRIDE as u64, LEN);
                assert_eq!(there, !gone.contains(&number), "{what}: piece {number}");
            }
            ahead.clear();
            assert!((0..64).all(|n| !ahead.holds(n * STRIDE as u64, LEN)), "{what}: cleared");
        }
    }

    #[test]
    fn a_window_that_cannot_be_read_is_nobodys_error() {
        let (base, mut ahead) = (base(), Ahead::default());
        (1..=3).for_each(|number| assert_eq!(piece(&mut ahead, &base, number), None));
        base.fails.set(true);
        assert_eq!(piece(&mut ahead, &base, 4), None);
        base.fails.set(false);
        assert_eq!(piece(&mut ahead, &base, 5), Some(5));
    }

    #[test]
    fn a_piece_longer_than_the_window_is_read_by_itself() {
        let (base, mut ahead) = (base(), Ahead::default());
        for number in 0..3 {
            let stride = LIMIT - 1000;
            assert!(ahead.read(&base, number * stride as u64, stride, stride).is_none());
        }
        assert!(ahead.bytes.is_empty() && base.reads.borrow().is_empty());
    }
}
