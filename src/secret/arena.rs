//! Memory for keys: blocks shared by all keys of the process, locked into memory and left out of
//! core dumps if the platform supports it.
//!
//! ```text
//! block, 4 KiB of its own from the operating system:  | slot | slot | ... | 128 slots of 32 bytes
//! ```
//! The operating system locks whole pages, does not count how often, and limits how many. So blocks
//! are shared, and never given back: a page stays locked for the key beside the one that goes.
//!
//! Invariants:
//! 1. A slot has one owner: a [`Slot`] or the list of free ones.
//! 2. A free slot holds zeros.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;
use zeroize::Zeroize;

use super::KEY_LEN;

const BLOCK_LEN: usize = 4096;
const _: () = assert!(BLOCK_LEN.is_multiple_of(KEY_LEN));

type Bytes = [u8; KEY_LEN];

static ARENA: Mutex<Arena> =
    Mutex::new(Arena { free: Vec::new(), memory: Memory { bytes: 0, swappable: 0, dumpable: 0 } });

struct Arena {
    free: Vec<&'static mut Bytes>,
    memory: Memory,
}

/// The key memory of this process and its protection. Its size never shrinks: keys that are wiped
/// leave room for later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// Its size in bytes.
    pub bytes: usize,
    /// Bytes of it that are not locked, and may be written to swap. More than 0 if the operating
    /// system refused, mostly for its limit on locked memory (`ulimit -l`).
    pub swappable: usize,
    /// Bytes of it that a core dump would hold: all of it on anything but Linux.
    pub dumpable: usize,
}

/// The current protection of this process's keys.
///
/// A child of `fork` inherits these numbers, but not the locks.
#[must_use]
pub fn memory() -> Memory {
    arena().memory
}

/// Room for one key: zeros at first, wiped and free for the next one when dropped.
pub(super) struct Slot(Option<&'static mut Bytes>);

impl Slot {
    pub(super) fn new() -> Self {
        let mut arena = arena();
        if arena.free.is_empty() {
            arena.grow();
        }
        Self(arena.free.pop())
    }

    pub(super) fn get(&self) -> &Bytes {
        match &self.0 {
            Some(bytes) => bytes,
            None => unreachable!("a slot has its bytes until it is dropped"),
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut Bytes {
        match &mut self.0 {
            Some(bytes) => bytes,
            None => unreachable!("a slot has its bytes until it is dropped"),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(bytes) = mem::take(&mut self.0) {
            bytes.zeroize();
            arena().free.push(bytes);
        }
    }
}

impl Arena {
    /// One more block; from the heap if the operating system refuses.
    fn grow(&mut self) {
        let (block, guards) = match MmapMut::map_anon(BLOCK_LEN) {
            Ok(map) => {
                let guards = Guards::of(&map);
                (&mut Box::leak(Box::new(map))[..], guards)
            }
            Err(_) => (&mut Box::leak(Box::new([0; BLOCK_LEN]))[..], Guards::default()),
        };
        let count = |guarded: bool| if guarded { 0 } else { block.len() };
        self.memory.bytes += block.len();
        self.memory.swappable += count(guards.locked);
        self.memory.dumpable += count(guards.left_out);
        self.free.extend(block.as_chunks_mut().0);
    }
}

/// The protection of a block. Keys work without it, too.
#[derive(Default)]
struct Guards {
    locked: bool,
    left_out: bool,
}

impl Guards {
    #[cfg(unix)]
    fn of(map: &MmapMut) -> Self {
        #[cfg(target_os = "linux")]
        let left_out = map.advise(memmap2::Advice::DontDump).is_ok();
        #[cfg(not(target_os = "linux"))]
        let left_out = false;
        Self { locked: map.lock().is_ok(), left_out }
    }

    #[cfg(not(unix))]
    fn of(_: &MmapMut) -> Self {
        Self::default()
    }
}

/// Also after a panic elsewhere: the list is whole between any two calls.
fn arena() -> MutexGuard<'static, Arena> {
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_apart_and_come_back_as_zeros() {
        let mut slots: Vec<Slot> = (0..300).map(|_| Slot::new()).collect();
        for round in 0..3_usize {
            for (i, slot) in slots.iter_mut().enumerate() {
                assert_eq!(slot.get(), &[0; KEY_LEN], "round {round}, slot {i}");
                slot.get_mut()[..8].copy_from_slice(&i.to_be_bytes());
            }
            for (i, slot) in slots.iter().enumerate() {
                assert_eq!(slot.get()[..8], i.to_be_bytes(), "round {round}, slot {i}");
            }
            slots.clear();
            slots.extend((0..300).map(|_| Slot::new()));
        }
    }

    /// However often keys come and go, they find room where others were.
    #[test]
    fn blocks_are_used_again() {
        for _ in 0..100 * BLOCK_LEN / KEY_LEN {
            drop(Slot::new());
        }
        assert!(memory().bytes < 50 * BLOCK_LEN, "{:?}", memory());
    }
}
