//! Memory for when the host has none left: Rust's collections end the process where an allocation
//! fails, and a guest must not.
//!
//! ```text
//! allocation --> malloc --fails--> reserve, 1 MiB --full--> the process ends
//!                                     |
//!        a call of SQLite's that comes while more than half of it is in use: SQLITE_NOMEM at once
//! ```
//! The reserve is a stack of blocks: the top goes back to the start when all of them were freed,
//! and by one where the last one is freed first. What is larger than a call needs, as the memory of
//! a key derivation, is asked for in ways that can fail.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ffi;

const LEN: usize = 1 << 20;

/// SQLITE_IOERR_NOMEM, after which SQLite gives its cache up, and which it tells as SQLITE_NOMEM.
pub(super) const REFUSAL: c_int = ffi::SQLITE_IOERR | 12 << 8;

/// The allocator of a loadable library: the system's, and behind it a reserve.
#[derive(Debug)]
pub struct Allocator;

#[repr(align(64))]
struct Reserve(UnsafeCell<[u8; LEN]>);

// SAFETY: `take` gives each byte to one caller at a time.
unsafe impl Sync for Reserve {}

static RESERVE: Reserve = Reserve(UnsafeCell::new([0; LEN]));
/// The number of blocks in use, in the upper half, and the top.
static STATE: AtomicU64 = AtomicU64::new(0);

const ONE: u64 = 1 << 32;

/// Whether so much of the reserve is in use that a new call must not begin.
#[inline]
pub(super) fn is_low() -> bool {
    (STATE.load(Ordering::Relaxed) & (ONE - 1)) as usize > LEN / 2
}

fn take(layout: Layout) -> *mut u8 {
    let place = |state: u64| {
        // The reserve is aligned to 64.
        let at = ((state % ONE) as usize).checked_next_multiple_of(layout.align())?;
        let end = at.checked_add(layout.size()).filter(|end| *end <= LEN)?;
        (layout.align() <= 64).then_some((at, end))
    };
    let taken = STATE.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |state| {
        place(state).map(|(_, end)| (state / ONE + 1) * ONE + end as u64)
    });
    let at = taken.ok().and_then(place);
    at.map_or(ptr::null_mut(), |(at, _)| RESERVE.0.get().cast::<u8>().wrapping_add(at))
}

/// Takes the block of `len` bytes at `at` back.
fn give_back(at: usize, len: usize) {
    let _ = STATE.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |state| {
        let (blocks, top) = (state / ONE, (state % ONE) as usize);
        let top = if at + len == top { at } else { top };
        Some(if blocks <= 1 { 0 } else { (blocks - 1) * ONE + top as u64 })
    });
}

/// The place of `block` in the reserve; `None` if the system gave it.
#[inline]
fn place_of(block: *mut u8) -> Option<usize> {
    let at = block.addr().wrapping_sub(RESERVE.0.get().addr());
    (at < LEN).then_some(at)
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
        match place_of(block) {
            // SAFETY: the system gave it.
            None => unsafe { System.dealloc(block, layout) },
            Some(at) => give_back(at, layout.size()),
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if place_of(block).is_none() {
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
    fn the_reserve_gives_each_byte_once_and_is_whole_again() {
        let layouts = [(1, 1), (100, 8), (4096, 64), (65536, 16), (1, 1), (33, 32)];
        let mut blocks = Vec::new();
        for (size, align) in layouts.into_iter().cycle() {
            let layout = Layout::from_size_align(size, align).unwrap();
            let block = take(layout);
            if block.is_null() {
                break;
            }
            assert_eq!(block.addr() % align, 0);
            let at = place_of(block).unwrap();
            assert!(blocks.iter().all(|(other, len, _)| at >= other + len || at + size <= *other));
            blocks.push((at, size, block));
        }
        assert!(is_low() && blocks.iter().map(|(_, size, _)| size).sum::<usize>() > LEN / 2);
        let count = blocks.len();
        // In an order that is neither theirs nor its reverse.
        for number in 0..count {
            let (at, size, _) = blocks[number * 7 % count];
            give_back(at, size);
        }
        assert_eq!(STATE.load(Ordering::Relaxed), 0, "{count} blocks");
        assert!(take(Layout::from_size_align(LEN + 1, 1).unwrap()).is_null());
        let whole = take(Layout::from_size_align(LEN, 64).unwrap());
        assert_eq!(place_of(whole), Some(0));
        give_back(0, LEN);
    }
}
