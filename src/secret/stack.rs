//! Wipes the stack that a calculation used.
//!
//! Libraries wipe the values that they hand out, but not the copies of keys that their functions
//! spill, and an idle thread keeps those: AES on a processor with wide registers leaves each round
//! key four times, the first two of which are the key. Nothing in Rust promises where a frame lies,
//! so this is an effort, which tests/memory.rs checks.

use std::hint::black_box;

/// Twice what the deepest frames of SHA-256, HMAC and HKDF need.
pub(crate) const HASHES: usize = 4096;
/// Twice what those of AES on single blocks need, and of an AES-GCM key that is made.
pub(crate) const BLOCKS: usize = 8192;
/// The need of those of AES on many blocks: it works on 64 at a time, in several copies.
pub(crate) const STREAMS: usize = 16384;

/// Does `work` and wipes the stack that it used, `DEPTH` bytes deep. Its result must not hold a key
/// itself.
pub(crate) fn without_trace<const DEPTH: usize, T>(work: impl FnOnce() -> T) -> T {
    let answer = apart(work);
    wipe::<DEPTH>();
    answer
}

/// In a frame below the caller's, where [`wipe`] gets at it.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe<const DEPTH: usize>() {
    black_box(&mut [0_u8; DEPTH]);
}

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const PAINTED: usize = 1 << 16;
    const PAINT: u8 = 0xa5;
    /// Below the paint, so that nothing here lies in it.
    const MARGIN: usize = 4096;

    #[inline(never)]
    fn paint() {
        black_box(&mut [PAINT; PAINTED]);
    }

    /// Depth below the caller's frame to which `work` writes the stack.
    #[inline(never)]
    pub(crate) fn depth_of(mut work: impl FnMut()) -> usize {
        // Libraries find out at the first time what the processor can do.
        work();
        let here = 0_u8;
        let top = std::ptr::from_ref(black_box(&here)).addr();
        let memory = File::open("/proc/self/mem").unwrap();
        let mut seen = vec![0; PAINTED - MARGIN];
        paint();
        apart(&mut work);
        let bottom = top - seen.len();
        memory.read_exact_at(&mut seen, bottom as u64).unwrap();
        seen.len() - seen.iter().take_while(|byte| **byte == PAINT).count()
    }

    #[test]
    fn the_depth_is_what_was_used() {
        for (deep, least) in [(depth_of(wipe::<BLOCKS>), BLOCKS), (depth_of(|| {}), 0)] {
            assert!((least..least + 1024).contains(&deep), "{deep}, not {least}");
        }
    }
}
