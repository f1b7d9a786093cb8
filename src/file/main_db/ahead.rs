//! Pages read before SQLite asks for them: one call on the base for several that follow each other.
//!
//! Invariants
//! 1. What is in the window belongs to the read transaction at hand. It is dropped whenever a lock is
//!    taken or given back, at each write, and where SQLite looks whether its own cache still holds.
//! 2. Within a read transaction no page that SQLite reads from this file changes. Others write here
//!    under a lock that shuts readers out, or as a checkpoint: of pages that this reader finds in the
//!    log, or of frames that were all in the file before it began.
//! 3. It is ciphertext. A page of it that does not authenticate is read again before it counts as bad.

use super::super::Storage;
use super::layout::physical;

/// The largest window: beyond it a system call costs little against copying.
const WINDOW: usize = 64 * 1024;
/// How far apart pages may lie that count as following each other: an inner page of a tree, or one of
/// another, lies between its leaves here and there.
const APART: u64 = 4;

#[derive(Default)]
pub(super) struct Ahead {
    bytes: Vec<u8>,
    /// The first page in `bytes`, and how many there are.
    first: u64,
    count: u64,
    /// The page that was asked for last.
    last: u64,
    /// How many pages are read at once; it doubles while a run goes on.
    run: u64,
}

impl Ahead {
    /// The ciphertext of `page`, if it is in the window, or pages are asked for in sequence and it
    /// can be read with those that follow. Errors are left to a read of the page alone.
    pub(super) fn page(
        &mut self,
        base: &impl Storage,
        page: u64,
        page_size: usize,
    ) -> Option<&[u8]> {
        let follows = page > self.last && page - self.last <= APART;
        self.last = page;
        if !(self.first..self.first + self.count).contains(&page) {
            let most = (WINDOW / page_size) as u64;
            self.run = if follows { (self.run * 2).clamp(1, most.max(1)) } else { 1 };
            if self.run < 2 {
                return None;
            }
            self.fill(base, page, page_size);
        }
        let at = page.checked_sub(self.first).filter(|at| *at < self.count)? as usize * page_size;
        self.bytes.get(at..at + page_size)
    }

    fn fill(&mut self, base: &impl Storage, page: u64, page_size: usize) {
        (self.first, self.count) = (page, 0);
        let at = physical((page - 1) * page_size as u64);
        let len = self.run as usize * page_size;
        let end = physical((page - 1 + self.run) * page_size as u64);
        if end - at != len as u64 {
            // SQLite's lock bytes lie between.
            return;
        }
        self.bytes.resize(len, 0);
        let there = match base.read(&mut self.bytes, at) {
            Ok(true) => len as u64,
            Ok(false) => base.size().unwrap_or(0).saturating_sub(at).min(len as u64),
            Err(_) => 0,
        };
        self.count = there / page_size as u64;
    }

    /// Forgets what was read; a run may go on.
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::memory::Memory;

    const PAGE: usize = 4096;

    fn file(pages: u64) -> Memory {
        let base = Memory::default();
        for page in 1..=pages {
            base.write(&[page as u8; PAGE], physical((page - 1) * PAGE as u64)).unwrap();
        }
        base
    }

    /// Pages asked for in turn, and which of them come from a window.
    #[test]
    fn the_window_grows_with_the_run() {
        let base = file(40);
        let mut ahead = Ahead::default();
        let came: Vec<bool> =
            (1..=40).map(|page| ahead.page(&base, page, PAGE).is_some()).collect();
        assert_eq!(came.iter().filter(|came| !**came).count(), 1, "{came:?}");
        assert_eq!(ahead.bytes.len(), WINDOW);
        for (page, expected) in [(7, false), (30, false), (31, true), (32, true), (9, false)] {
            assert_eq!(ahead.page(&base, page, PAGE).is_some(), expected, "{page}");
        }
    }

    #[test]
    fn pages_are_those_of_the_file_up_to_its_end() {
        for pages in 1..40 {
            let base = file(pages);
            let mut ahead = Ahead::default();
            for page in 1..pages + 5 {
                match ahead.page(&base, page, PAGE) {
                    Some(bytes) => assert_eq!(bytes, [page as u8; PAGE], "{page} of {pages}"),
                    None => assert!(page == 1 || page > pages, "{page} of {pages}"),
                }
            }
        }
    }

    #[test]
    fn nothing_is_kept_after_it_was_cleared() {
        let base = file(9);
        let mut ahead = Ahead::default();
        (1..=5).for_each(|page| {
            ahead.page(&base, page, PAGE);
        });
        base.write(&[77; PAGE], physical(5 * PAGE as u64)).unwrap();
        ahead.clear();
        assert_eq!(ahead.page(&base, 6, PAGE), Some(&[77; PAGE][..]));
    }

    #[test]
    fn a_window_ends_before_the_lock_bytes() {
        for page_size in [1024, 4096, 32768] {
            let gap = super::super::layout::GAP_AT / page_size as u64;
            let base = Memory::default();
            let mut ahead = Ahead::default();
            for page in gap - 3..=gap + 3 {
                ahead.page(&base, page, page_size);
                assert!(ahead.bytes.len() <= WINDOW);
            }
            assert_eq!(ahead.count, 0, "an empty file has no pages");
        }
    }

    #[test]
    fn the_largest_pages_are_read_one_by_one() {
        let base = file(80);
        let mut ahead = Ahead::default();
        (1..4).for_each(|page| assert!(ahead.page(&base, page, 65536).is_none()));
    }
}
