//! What a calculation leaves on the stack, wiped.
//!
//! Libraries wipe the values that they hand out, but not the copies of keys that their functions
//! spill, and an idle thread keeps those: AES on a processor with wide registers leaves each round
//! key four times, the first two of which are the key. Nothing in Rust promises where a frame lies,
//! so this is an effort, which tests/memory.rs checks.

use std::hint::black_box;

/// More than the deepest frames here need: wide AES works on 64 blocks at a time, in several copies.
const DEPTH: usize = 16384;

/// Does `work` and wipes the stack that it used. What it answers must not hold a key itself.
pub(crate) fn without_trace<T>(work: impl FnOnce() -> T) -> T {
    let answer = apart(work);
    wipe();
    answer
}

/// In a frame below the caller's, where [`wipe`] gets at it.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe() {
    black_box(&mut [0_u8; DEPTH]);
}
