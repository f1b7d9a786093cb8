//! What the wal-index in shared memory says of the log's frames.
//!
//! ```text
//! region 0      | header 48 | header again 48 | checkpoint info 40 | pages of frames 1.. | hash |
//! region n > 0  | pages of 4096 frames, 4 bytes each                                     | hash |
//! ```
//! The layout is SQLite's (<https://www.sqlite.org/walformat.html>, section 2), in native byte
//! order.
//! The base VFS owns the memory, and every process that has the database open writes to it.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::base::WAL_INDEX_REGION;
use crate::file::wal::Salts;

/// Bytes of a region: page numbers, and a hash table of 8192 entries.
const REGION: c_int = WAL_INDEX_REGION;
const PAGE_NUMBERS: u32 = 4096;
/// Words before the page numbers in region 0.
const HEADER_WORDS: u32 = 136 / 4;
/// Page numbers in region 0.
const FIRST: u32 = PAGE_NUMBERS - HEADER_WORDS;
/// Words of the header: one whose first byte says whether it was ever written, the frame of the
/// last commit, the pages of the database after it, and two of salts.
const INIT_WORD: usize = 3;
const FRAMES_WORD: usize = 4;
const PAGES_WORD: usize = 5;
const SALT_WORD: usize = 8;
const HEADER_LEN_WORDS: usize = 12;
/// Of the checkpoint info: frames that are in the database file, and those that the last checkpoint
/// set out to bring there.
const BACKFILL_WORD: usize = 24;
/// The frames up to which readers see the log, by the number of their lock.
const MARKS_WORD: usize = 25;
const ATTEMPTED_WORD: usize = 32;

/// The regions that SQLite mapped through one database file.
#[derive(Default)]
pub(super) struct Shm {
    regions: Vec<*mut c_void>,
    /// Counts the locks taken.
    pub(super) locks: u64,
    /// How many of them are held.
    pub(super) held: u32,
    /// The number of the reader's lock that is held.
    pub(super) reader: Option<u32>,
    /// The salts of the log when a checkpoint took its lock, before SQLite read the header.
    at_checkpoint: Option<Salts>,
}

impl Shm {
    /// Region `number` is mapped at `region`, or not at all where that is null.
    ///
    /// # Safety
    /// A non-null `region` has `size` bytes, aligned for words, until [`Shm::unmapped`].
    pub(super) unsafe fn mapped(&mut self, number: c_int, size: c_int, region: *mut c_void) {
        let Ok(number) = usize::try_from(number) else { return };
        let region = if size == REGION { region } else { std::ptr::null_mut() };
        if number < self.regions.len() {
            self.regions[number] = region;
        } else if number == self.regions.len() {
            self.regions.push(region);
        }
    }

    pub(super) fn unmapped(&mut self) {
        self.regions.clear();
        (self.held, self.reader, self.at_checkpoint) = (0, None, None);
    }

    /// A checkpoint has taken its lock, or has recovered the log since.
    pub(super) fn checkpoint_locked(&mut self) {
        self.at_checkpoint = self.salts();
    }

    pub(super) fn checkpoint_unlocked(&mut self) {
        self.at_checkpoint = None;
    }

    /// Whether the log was begun anew since a checkpoint took its lock. SQLite may have read the
    /// header before that.
    pub(super) fn is_begun_anew(&self) -> bool {
        self.at_checkpoint.is_some_and(|salts| self.salts() != Some(salts))
    }

    pub(super) fn is_mapped(&self) -> bool {
        !self.regions.is_empty()
    }

    /// The salts of the log that the wal-index describes.
    pub(super) fn salts(&self) -> Option<Salts> {
        let is_init = self.word(0, INIT_WORD)?.to_ne_bytes()[0] != 0;
        let salts = [self.word(0, SALT_WORD)?, self.word(0, SALT_WORD + 1)?];
        let mut bytes = Salts::default();
        bytes[..4].copy_from_slice(&salts[0].to_ne_bytes());
        bytes[4..].copy_from_slice(&salts[1].to_ne_bytes());
        is_init.then_some(bytes)
    }

    /// The frame of the last commit in the log.
    pub(super) fn last_frame(&self) -> Option<u32> {
        self.word(0, FRAMES_WORD)
    }

    /// Pages of the database after the last commit in the log; 0 where it has none.
    pub(super) fn pages(&self) -> Option<u32> {
        self.word(0, PAGES_WORD)
    }

    /// Frames that checkpoints have brought to the database file.
    pub(super) fn frames_in_file(&self) -> Option<u32> {
        self.word(0, BACKFILL_WORD)
    }

    /// Frames that the last checkpoint set out to bring to the database file.
    pub(super) fn frames_attempted(&self) -> Option<u32> {
        Some(self.word(0, ATTEMPTED_WORD)?.min(self.last_frame()?))
    }

    /// The frame up to which the reader at hand sees the log at least; 0 where it sees none of it.
    pub(super) fn mark(&self) -> Option<u32> {
        match self.reader? {
            0 => Some(0),
            number => self.word(0, MARKS_WORD + number as usize),
        }
    }

    /// Pages of the database, where all frames of the log are in the database file: a checkpoint
    /// that takes the whole log gives the file that size before it says so.
    pub(super) fn pages_if_all_in_file(&self) -> Option<u32> {
        let (frames, pages) = self.last_commit()?;
        (self.frames_in_file()? == frames).then_some(pages)
    }

    /// The frame of the last commit and the pages after it, unless another commit is just under
    /// way.
    pub(super) fn last_commit(&self) -> Option<(u32, u32)> {
        let [frames, pages] = [FRAMES_WORD, PAGES_WORD].map(|word| self.word(0, word));
        // A writer changes the second copy of the header before the first.
        fence(Ordering::Acquire);
        let again = [FRAMES_WORD, PAGES_WORD].map(|word| self.word(0, HEADER_LEN_WORDS + word));
        if again == [frames, pages] { frames.zip(pages) } else { None }
    }

    /// The last page that the checkpoint which just began will write, where it takes the whole log.
    /// `None` where it does not, or a commit got in between, or no wal-index is in shared memory.
    ///
    /// SQLite writes, in the order of pages, each page of the frames that are not in the database
    /// yet, except those beyond the end of the database (`walCheckpoint`).
    pub(super) fn checkpoint_end(&self) -> Option<u32> {
        let (frames, pages) = self.last_commit()?;
        if self.word(0, ATTEMPTED_WORD)? != frames {
            return None;
        }
        let first = self.word(0, BACKFILL_WORD)?.checked_add(1)?;
        (first..=frames).filter_map(|frame| self.page_of(frame)).filter(|page| *page <= pages).max()
    }

    /// The page whose content `frame`, from 1, holds.
    pub(super) fn page_of(&self, frame: u32) -> Option<u32> {
        let index = frame.checked_sub(1)?;
        match index.checked_sub(FIRST) {
            None => self.word(0, (index + HEADER_WORDS) as usize),
            Some(rest) => {
                let region = 1 + (rest / PAGE_NUMBERS) as usize;
                self.word(region, (rest % PAGE_NUMBERS) as usize)
            }
        }
    }

    /// A word of the page numbers or of what stands before them.
    fn word(&self, region: usize, word: usize) -> Option<u32> {
        let region = *self.regions.get(region)?;
        if region.is_null() || word >= PAGE_NUMBERS as usize {
            return None;
        }
        // SAFETY: `mapped` was promised a region of 32768 bytes, of which this is among the first
        // 16384, and others write to it while we read.
        Some(unsafe { AtomicU32::from_ptr(region.cast::<u32>().add(word)) }.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_where_sqlite_keeps_them() {
        let mut memory: Vec<Vec<u32>> = (0..3).map(|_| vec![0; REGION as usize / 4]).collect();
        // Frame, region, word: the ends of what SQLite's sources call walFramePage's ranges.
        let places = [(1, 0, 34), (4062, 0, 4095), (4063, 1, 0), (8158, 1, 4095), (8159, 2, 0)];
        for (frame, region, word) in places {
            memory[region][word] = 1000 + frame;
        }
        memory[0][INIT_WORD] = u32::from_ne_bytes([1, 0, 0, 0]);
        memory[0][SALT_WORD] = u32::from_ne_bytes(*b"salt");
        memory[0][SALT_WORD + 1] = u32::from_ne_bytes(*b"pair");
        let mut shm = Shm::default();
        assert_eq!((shm.salts(), shm.page_of(1)), (None, None));
        for (number, region) in memory.iter_mut().enumerate() {
            // SAFETY: `memory` outlives `shm`.
            unsafe { shm.mapped(number as c_int, REGION, region.as_mut_ptr().cast()) };
        }
        for (frame, ..) in places {
            assert_eq!(shm.page_of(frame), Some(1000 + frame));
        }
        assert_eq!(shm.salts(), Some(*b"saltpair"));
        assert_eq!(shm.page_of(0), None);
        assert_eq!(shm.page_of(8159 + 4096), None);
        shm.unmapped();
        assert_eq!(shm.page_of(1), None);
    }

    /// What the wal-index says, and the last page of the checkpoint that begins.
    #[test]
    fn the_end_of_a_checkpoint_is_told_where_it_is_certain() {
        // Frames 1 to 5 hold these pages; two frames are in the database already.
        let pages = [3, 90, 7, 2, 8];
        type Change = fn(&mut Vec<u32>);
        let rows: [(&str, Change, Option<u32>); 7] = [
            ("the whole log", |_| (), Some(8)),
            ("page 8 is beyond the end", |words| [5, 17].map(|at| words[at] = 7).fill(()), Some(7)),
            ("not all of it", |words| words[ATTEMPTED_WORD] = 4, None),
            ("a commit has begun", |words| words[HEADER_LEN_WORDS + FRAMES_WORD] = 6, None),
            ("a commit came between", |words| [4, 16].map(|at| words[at] = 6).fill(()), None),
            ("another size is on its way", |words| words[HEADER_LEN_WORDS + PAGES_WORD] = 7, None),
            ("nothing is left", |words| words[BACKFILL_WORD] = 5, None),
        ];
        for (what, change, expected) in rows {
            let mut memory = vec![0_u32; REGION as usize / 4];
            for header in [0, HEADER_LEN_WORDS] {
                memory[header + FRAMES_WORD] = 5;
                memory[header + PAGES_WORD] = 20;
            }
            memory[BACKFILL_WORD] = 2;
            memory[ATTEMPTED_WORD] = 5;
            memory[HEADER_WORDS as usize..][..5].copy_from_slice(&pages);
            change(&mut memory);
            let mut shm = Shm::default();
            assert_eq!(shm.checkpoint_end(), None);
            // SAFETY: `memory` outlives `shm`.
            unsafe { shm.mapped(0, REGION, memory.as_mut_ptr().cast()) };
            assert_eq!(shm.checkpoint_end(), expected, "{what}");
        }
    }
}
