//! Memory for when the host has none left: Rust's collections end the process where an allocation
//! fails, and a guest must not.
//!
//! ```text
//! allocation --> malloc --fails--> reserve --full--> the process ends
//!                                     |
//!      a file is opened or locked while half of it is in use: SQLITE_NOMEM at once
//! ```
//! The reserve has two arenas: small blocks in 512 KiB, and up to 128 KiB each in 4 MiB. Each is
//! divided into grains, and 64 of these share a word of bits, which says what is in use. A block
//! lies within one word's grains, so that taking and giving back are one exchange of a word: there
//! is no lock that a thread may hold while another one forks. What is larger than a call needs, as
//! the memory of a key derivation, is asked for in ways that can fail.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::Error;

/// The allocator of a loadable library: the system's, and behind it a reserve.
#[derive(Debug)]
pub struct Allocator;

/// `LEN` bytes in grains, 64 for each of `WORDS` words.
#[repr(C, align(4096))]
struct Arena<const LEN: usize, const WORDS: usize> {
    bytes: UnsafeCell<[u8; LEN]>,
    taken: [AtomicU64; WORDS],
    /// Bytes in use.
    used: AtomicUsize,
}

// SAFETY: `take` gives each byte to one caller at a time.
unsafe impl<const LEN: usize, const WORDS: usize> Sync for Arena<LEN, WORDS> {}

static SMALL: Arena<{ 512 << 10 }, 64> = Arena::new();
static LARGE: Arena<{ 4 << 20 }, 32> = Arena::new();

impl<const LEN: usize, const WORDS: usize> Arena<LEN, WORDS> {
    const GRAIN: usize = LEN / WORDS / 64;

    const fn new() -> Self {
        Self {
            bytes: UnsafeCell::new([0; LEN]),
            taken: [const { AtomicU64::new(0) }; WORDS],
            used: AtomicUsize::new(0),
        }
    }

    /// The bits of as many grains as `len` bytes take; `None` for more than a word has.
    fn run(len: usize) -> Option<u64> {
        match len.div_ceil(Self::GRAIN) {
            64 => Some(u64::MAX),
            count @ 0..64 => Some((1 << count.max(1)) - 1),
            _ => None,
        }
    }

    fn take(&self, layout: Layout) -> Option<*mut u8> {
        let run = Self::run(layout.size()).filter(|_| layout.align() <= Self::GRAIN)?;
        let fits = |taken: u64| (0..=run.leading_zeros()).find(|at| taken & (run << at) == 0);
        let (word, at) = self.taken.iter().enumerate().find_map(|(number, word)| {
            let taken = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |taken| {
                fits(taken).map(|at| taken | run << at)
            });
            Some((number, fits(taken.ok()?)?))
        })?;
        self.used.fetch_add(run.count_ones() as usize * Self::GRAIN, Ordering::Relaxed);
        let place = (word * 64 + at as usize) * Self::GRAIN;
        Some(self.bytes.get().cast::<u8>().wrapping_add(place))
    }

    /// Takes `block` of `len` bytes back; `false` if it is not of this arena.
    #[inline]
    fn give_back(&self, block: *mut u8, len: usize) -> bool {
        let place = block.addr().wrapping_sub(self.bytes.get().addr());
        let Some(run) = Self::run(len).filter(|_| place < LEN) else { return place < LEN };
        let (word, at) = (place / Self::GRAIN / 64, place / Self::GRAIN % 64);
        if let Some(word) = self.taken.get(word) {
            word.fetch_and(!(run << at), Ordering::AcqRel);
            self.used.fetch_sub(run.count_ones() as usize * Self::GRAIN, Ordering::Relaxed);
        }
        true
    }

    #[inline]
    fn has(&self, block: *mut u8) -> bool {
        block.addr().wrapping_sub(self.bytes.get().addr()) < LEN
    }

    fn is_low(&self) -> bool {
        self.used.load(Ordering::Relaxed) > LEN / 2
    }
}

/// Why new work must not begin, if so much of the reserve is in use.
#[inline]
pub(super) fn refusal() -> Option<Error> {
    (SMALL.is_low() || LARGE.is_low()).then_some(Error::NO_MEMORY)
}

fn take(layout: Layout) -> *mut u8 {
    let block = SMALL.take(layout).or_else(|| LARGE.take(layout));
    block.unwrap_or(ptr::null_mut())
}

/// Whether `block` was one of the reserve's, which has it back then.
#[inline]
fn give_back(block: *mut u8, len: usize) -> bool {
    SMALL.give_back(block, len) || LARGE.give_back(block, len)
}

// SAFETY: blocks of the system go back to it, and those of the reserve, which are never given
// twice, to the reserve.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let block = unsafe { System.alloc(layout) };
        if block.is_null() { take(layout) } else { block }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            return block;
        }
        let block = take(layout);
        if !block.is_null() {
            // SAFETY: it has that length.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !give_back(block, layout.size()) {
            // SAFETY: the system gave it.
            unsafe { System.dealloc(block, layout) };
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !SMALL.has(block) && !LARGE.has(block) {
            // SAFETY: the system gave it.
            let grown = unsafe { System.realloc(block, layout, size) };
            if !grown.is_null() {
                return grown;
            }
        }
        // SAFETY: the caller promises that the new size is one of a layout; both blocks have the
        // length that is copied.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, size.min(layout.size()));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_given_once_and_all_of_them_come_back() {
        let layouts =
            [(1, 1), (100, 8), (640, 128), (4096, 64), (66_688, 16), (33, 32), (131_072, 1)];
        for round in 0..3 {
            let mut blocks: Vec<(usize, usize, *mut u8)> = Vec::new();
            for (size, align) in layouts.into_iter().cycle() {
                let layout = Layout::from_size_align(size, align).unwrap();
                let block = take(layout);
                if block.is_null() {
                    break;
                }
                let at = block.addr();
                assert_eq!(at % align, 0);
                let apart =
                    |(other, len, _): &(usize, usize, _)| at >= other + len || at + size <= *other;
                assert!(blocks.iter().all(apart));
                blocks.push((at, size, block));
            }
            assert!(refusal().is_some(), "round {round}");
            // In an order that is neither theirs nor its reverse; and some at once taken again.
            let count = blocks.len();
            let shares =
                |step: usize| (2..=step).any(|part| [step, count].map(|n| n % part) == [0; 2]);
            let step = (7..).find(|step| !shares(*step)).unwrap();
            for number in 0..count {
                let (_, size, block) = blocks[number * step % count];
                assert!(give_back(block, size));
            }
            assert_eq!(SMALL.used.load(Ordering::Relaxed) + LARGE.used.load(Ordering::Relaxed), 0);
            assert!(
                SMALL
                    .taken
                    .iter()
                    .chain(&LARGE.taken)
                    .all(|word| word.load(Ordering::Relaxed) == 0)
            );
            assert!(refusal().is_none());
        }
        assert!(take(Layout::from_size_align(131_073, 1).unwrap()).is_null());
        assert!(take(Layout::from_size_align(1, 4096).unwrap()).is_null());
    }

    /// What lives long keeps no more than itself.
    #[test]
    fn a_block_that_stays_does_not_keep_the_others() {
        let arena: Arena<{ 512 << 10 }, 64> = Arena::new();
        let layout = Layout::from_size_align(200, 8).unwrap();
        let mut stays = Vec::new();
        for number in 0..100_000 {
            let block = arena.take(layout).unwrap();
            match number % 1000 {
                0 => stays.push(block),
                _ => assert!(arena.give_back(block, 200)),
            }
        }
        assert!(!arena.is_low() && stays.len() == 100);
    }
}
