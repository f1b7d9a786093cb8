//! Reads of the wal-index in shared memory.
//!
//! ```text
//! region 0      | header 48 | header again 48 | checkpoint info 40 | pages of frames 1.. | hash |
//! region n > 0  | pages of 4096 frames, 4 bytes each                                     | hash |
//! ```
//! The layout is SQLite's (<https://www.sqlite.org/walformat.html>, section 2), in native byte
//! order. The base VFS owns the memory, and every process that has the database open writes to it.

use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

use crate::file::wal::Salts;
use crate::page::{FrameNo, PageNo};

/// The memory of a wal-index, as the base VFS has mapped it.
pub(crate) trait Words {
    /// Whether any of it is mapped.
    fn is_index_mapped(&self) -> bool;
    /// Word `word` of region `region`, read at once; `None` beyond [`PAGE_NUMBERS`], and of a
    /// region that is not mapped.
    fn word(&self, region: usize, word: usize) -> Option<u32>;
}

/// SQLite's locks in the wal-index, by number. Those from [`READ`] on are the readers'.
pub(crate) const WRITE: u32 = 0;
pub(crate) const CHECKPOINT: u32 = 1;
pub(crate) const RECOVER: u32 = 2;
pub(crate) const READ: u32 = 3;

/// Page numbers in a region, which has a hash table of 8192 entries behind them.
pub(crate) const PAGE_NUMBERS: usize = 4096;
/// Words before the page numbers in region 0.
const HEADER_WORDS: usize = 136 / 4;
/// Page numbers in region 0.
const FIRST: usize = PAGE_NUMBERS - HEADER_WORDS;
/// Words of the header: one whose first byte marks it as written, the frame of the last commit, the
/// pages of the database after it, and two of salts.
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

/// The locks that one connection holds in the wal-index, and the values it has read there.
#[derive(Default)]
pub(crate) struct WalIndex {
    /// Counts the locks taken.
    taken: u64,
    /// How many of them are held.
    held: u32,
    /// The number of the reader's lock that is held.
    reader: Option<u32>,
    /// The salts of the log when a checkpoint took its lock, before SQLite read the header.
    at_checkpoint: Option<Salts>,
}

impl WalIndex {
    pub(super) fn is_locked(&self) -> bool {
        self.held > 0
    }

    /// Counts the locks taken: others may have written in between.
    pub(super) fn locks(&self) -> u64 {
        self.taken
    }

    /// The locks `numbers` were taken.
    pub(super) fn locked(&mut self, words: &impl Words, numbers: Range<u32>, exclusive: bool) {
        if !exclusive {
            self.reader = numbers.start.checked_sub(READ).or(self.reader);
        } else if numbers.contains(&CHECKPOINT) {
            self.checkpoint_locked(words);
        }
        self.taken += 1;
        self.held += numbers.end - numbers.start;
    }

    /// The locks `numbers` were given back.
    pub(super) fn unlocked(&mut self, numbers: Range<u32>) {
        if numbers.contains(&CHECKPOINT) {
            self.at_checkpoint = None;
        }
        self.held = self.held.saturating_sub(numbers.end - numbers.start);
        if self.reader.is_some() && self.reader == numbers.start.checked_sub(READ) {
            self.reader = None;
        }
    }

    /// Other connections may have written without a lock on the wal-index.
    pub(super) fn others_may_have_written(&mut self) {
        self.taken += 1;
    }

    pub(super) fn unmapped(&mut self) {
        (self.held, self.reader, self.at_checkpoint) = (0, None, None);
    }

    /// A checkpoint has taken its lock, or has recovered the log since.
    pub(super) fn checkpoint_locked(&mut self, words: &impl Words) {
        self.at_checkpoint = salts(words);
    }

    /// Whether the log was begun anew since a checkpoint took its lock. SQLite may have read the
    /// header before that.
    pub(super) fn is_begun_anew(&self, words: &impl Words) -> bool {
        self.at_checkpoint.is_some_and(|at_lock| salts(words) != Some(at_lock))
    }

    /// The frame up to which the current reader sees the log at least. Without shared memory only
    /// this connection has the log open, and it sees all of it.
    pub(super) fn mark(&self, words: &impl Words) -> FrameNo {
        match self.reader {
            _ if !words.is_index_mapped() => FrameNo::MAX,
            None | Some(0) => FrameNo::NONE,
            Some(number) => FrameNo(words.word(0, MARKS_WORD + number as usize).unwrap_or(0)),
        }
    }
}

/// The salts of the log that the wal-index describes.
pub(crate) fn salts(words: &impl Words) -> Option<Salts> {
    let is_init = words.word(0, INIT_WORD)?.to_ne_bytes()[0] != 0;
    let salts = [words.word(0, SALT_WORD)?, words.word(0, SALT_WORD + 1)?];
    let mut bytes = Salts::default();
    bytes[..4].copy_from_slice(&salts[0].to_ne_bytes());
    bytes[4..].copy_from_slice(&salts[1].to_ne_bytes());
    is_init.then_some(bytes)
}

/// The frame of the last commit in the log.
pub(super) fn last_frame(words: &impl Words) -> Option<FrameNo> {
    words.word(0, FRAMES_WORD).map(FrameNo)
}

/// Pages of the database after the last commit in the log; 0 without a commit.
pub(super) fn pages(words: &impl Words) -> Option<u32> {
    words.word(0, PAGES_WORD)
}

/// The frame up to which checkpoints have brought the log to the database file.
pub(super) fn frames_in_file(words: &impl Words) -> Option<FrameNo> {
    words.word(0, BACKFILL_WORD).map(FrameNo)
}

/// The frame up to which the last checkpoint set out to bring the log to the database file.
pub(super) fn frames_attempted(words: &impl Words) -> Option<FrameNo> {
    Some(FrameNo(words.word(0, ATTEMPTED_WORD)?).min(last_frame(words)?))
}

/// Pages of the database, if all frames of the log are in the database file: a checkpoint that
/// takes the whole log gives the file that size before it says so.
pub(super) fn pages_if_all_in_file(words: &impl Words) -> Option<u32> {
    let (frames, pages) = last_commit(words)?;
    (frames_in_file(words)? == frames).then_some(pages)
}

/// The frame of the last commit and the pages after it, unless another commit is in progress.
pub(super) fn last_commit(words: &impl Words) -> Option<(FrameNo, u32)> {
    let [frames, pages] = [FRAMES_WORD, PAGES_WORD].map(|word| words.word(0, word));
    // A writer changes the second copy of the header before the first.
    fence(Ordering::Acquire);
    let again = [FRAMES_WORD, PAGES_WORD].map(|word| words.word(0, HEADER_LEN_WORDS + word));
    if again == [frames, pages] { frames.map(FrameNo).zip(pages) } else { None }
}

/// The last page that the checkpoint which just began will write, if it copies the whole log.
/// `None` if it does not, if a commit came between, or without a wal-index in shared memory.
///
/// SQLite writes, in the order of pages, each page of the frames that are not in the database
/// yet, except those beyond the end of the database (`walCheckpoint`).
pub(super) fn checkpoint_end(words: &impl Words) -> Option<PageNo> {
    let (frames, pages) = last_commit(words)?;
    if words.word(0, ATTEMPTED_WORD)? != frames.0 {
        return None;
    }
    let first = frames_in_file(words)?.next();
    let copied = first.to(frames).filter_map(|frame| page_of(words, frame));
    copied.filter(|page| page.0 <= pages).max()
}

/// The page whose content `frame` holds.
pub(super) fn page_of(words: &impl Words, frame: FrameNo) -> Option<PageNo> {
    let index = frame.since(FrameNo::FIRST)?;
    let page = match index.checked_sub(FIRST) {
        None => words.word(0, index + HEADER_WORDS),
        Some(rest) => words.word(1 + rest / PAGE_NUMBERS, rest % PAGE_NUMBERS),
    };
    page.map(PageNo)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regions of a wal-index as words.
    struct Memory(Vec<Vec<u32>>);

    const REGION: usize = 8192;

    impl Words for Memory {
        fn is_index_mapped(&self) -> bool {
            !self.0.is_empty()
        }

        fn word(&self, region: usize, word: usize) -> Option<u32> {
            self.0.get(region)?[..PAGE_NUMBERS].get(word).copied()
        }
    }

    #[test]
    fn frames_are_found_where_sqlite_keeps_them() {
        let mut memory: Vec<Vec<u32>> = (0..3).map(|_| vec![0; REGION]).collect();
        // Frame, region, word: the ends of what SQLite's sources call walFramePage's ranges.
        let places = [(1, 0, 34), (4062, 0, 4095), (4063, 1, 0), (8158, 1, 4095), (8159, 2, 0)];
        for (frame, region, word) in places {
            memory[region][word] = 1000 + frame;
        }
        memory[0][INIT_WORD] = u32::from_ne_bytes([1, 0, 0, 0]);
        memory[0][SALT_WORD] = u32::from_ne_bytes(*b"salt");
        memory[0][SALT_WORD + 1] = u32::from_ne_bytes(*b"pair");
        let memory = Memory(memory);
        for (frame, ..) in places {
            assert_eq!(page_of(&memory, FrameNo(frame)), Some(PageNo(1000 + frame)));
        }
        assert_eq!(salts(&memory), Some(*b"saltpair"));
        assert_eq!(page_of(&memory, FrameNo::NONE), None);
        assert_eq!(page_of(&memory, FrameNo(8159 + 4096)), None);
        let unmapped = Memory(Vec::new());
        assert_eq!((salts(&unmapped), page_of(&unmapped, FrameNo::FIRST)), (None, None));
    }

    /// Contents of a wal-index, and the last page of the checkpoint that begins.
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
            let mut memory = vec![0_u32; REGION];
            for header in [0, HEADER_LEN_WORDS] {
                memory[header + FRAMES_WORD] = 5;
                memory[header + PAGES_WORD] = 20;
            }
            memory[BACKFILL_WORD] = 2;
            memory[ATTEMPTED_WORD] = 5;
            memory[HEADER_WORDS..][..5].copy_from_slice(&pages);
            change(&mut memory);
            let end = checkpoint_end(&Memory(vec![memory])).map(|page| page.0);
            assert_eq!(end, expected, "{what}");
        }
    }
}
