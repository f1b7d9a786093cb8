//! Nonces that no two blocks ever share.
//!
//! ```text
//! aes-256-gcm               | prefix 12 | epoch 9  | counter 3 |      1 per block
//! aes-256-ctr-hmac-sha256               | epoch 11 | counter 5 |   8192 per block
//! aegis-256x4               | prefix 8  | epoch 16 | counter 4 |      1 per block
//! ```
//! A run of nonces starts at a random point: all of these bytes are drawn, but for the low 13 bits
//! of the second suite's counter, which are the AES blocks of one block of ours. From there the
//! counter goes on, and comes to no value twice: a run ends with the file's handle, after 2^24
//! blocks, and in a forked child, however it was forked ([`crate::process::forks`]).
//!
//! So within a process the counter keeps nonces apart, and between processes the random start. A
//! clone of a whole running machine, or of a process whose memory is put back, has neither: it has
//! the same run, and no number of its own. The epoch covers that case; the sequence renews it by
//! itself, in the middle of a transaction, too:
//!
//! 1. At a *look* it reads the clock. An epoch is a drawn number plus the clock's nanoseconds at
//!    the last look. If the draw is a millisecond old, it is drawn anew first, from the sources of
//!    [`fill_random`].
//! 2. It looks at the first block, at each eighth, and at each block before which the coarse clock
//!    has moved, which the kernel advances every 1 to 10 ms.
//!
//! Clones of a machine can still repeat nonces, in each open file by itself:
//!
//! * up to 7 blocks that they seal before the next look, if the coarse clock does not move;
//! * for a millisecond of their own time, blocks after looks that read the same nanosecond at the
//!   same count of blocks;
//! * after that, blocks after draws that gave the same bytes.
//!
//! A draw has three sources: the processor's generator, which is not cloned; the operating system's
//! generator, which differs once the system knows of the cloning; and the clock. If the processor
//! has no generator, the system was not told and the clocks agree to the nanosecond, no program can
//! tell two clones apart.
//!
//! The prefix chooses the AES-GCM key. It stays for a whole run, since each reader has to make a
//! key for each prefix that it meets. 2^24 blocks of at most 64 KiB under one GCM key are far below
//! the 2^32 calls that NIST SP 800-38D (8.3) allows a key whose nonces are not purely counted, and
//! at 2^36 AES blocks the advantage in telling its output from random bits is 2^-57.
//!
//! Two runs under one subkey meet only where prefix, epoch and counter do: see
//! docs/threat-model.md.

use std::ops::Range;

use crate::error::Result;
use crate::process::forks;
use crate::secret::fill_random;
use crate::suite::SuiteId;

/// Longest nonce of any suite.
pub(crate) const MAX_NONCE: usize = 28;

/// AES blocks that one step of the counter-mode suite sets aside: a 64 KiB page and a frame header
/// need 4,098.
const CTR_STEP: u64 = 1 << 13;
/// Blocks of one run.
const RUN: u32 = 1 << 24;
/// Most blocks between two looks at the clock. Reading the clock costs as much as a twentieth of
/// sealing a page.
const LOOK: u32 = 8;
/// Lifetime of a draw in nanoseconds. A draw costs as much as sealing three pages.
const SERVES: u64 = 1_000_000;

/// Offsets of the parts of a suite's nonces. The prefix is all that precedes the epoch.
struct Layout {
    epoch: Range<usize>,
    counter: Range<usize>,
    /// Increment of the counter for each block.
    step: u64,
}

impl Layout {
    const fn of(suite: SuiteId) -> Self {
        match suite {
            SuiteId::Aes256Gcm => Self { epoch: 12..21, counter: 21..24, step: 1 },
            SuiteId::Aes256CtrHmacSha256 => Self { epoch: 0..11, counter: 11..16, step: CTR_STEP },
            SuiteId::Aegis256X4 => Self { epoch: 8..24, counter: 24..28, step: 1 },
        }
    }

    const fn is_sound(suite: SuiteId) -> bool {
        let Self { epoch, counter, step } = Self::of(suite);
        let values = (1_u128 << (8 * (counter.end - counter.start))) / step as u128;
        epoch.end == counter.start
            && counter.end == suite.nonce_len()
            && counter.end <= MAX_NONCE
            && epoch.end - epoch.start <= size_of::<u128>()
            && counter.end - counter.start <= size_of::<u64>()
            && step.is_power_of_two()
            && values >= RUN as u128
    }
}

const _: () = {
    let mut at = 0;
    while at < SuiteId::ALL.len() {
        assert!(Layout::is_sound(SuiteId::ALL[at]), "no value of the counter comes twice in a run");
        at += 1;
    }
};
const _: () = assert!(RUN.is_multiple_of(LOOK), "a run starts with a look");

/// Inputs from outside the process, which can differ between two processes with the same memory.
pub(crate) trait World {
    /// As [`forks::process`].
    fn process(&self) -> u64;
    /// A clock that is cheap to read and advances every few milliseconds.
    fn tick(&self) -> u64;
    /// Nanoseconds.
    fn now(&self) -> u64;
    /// As [`fill_random`].
    fn fill(&self, bytes: &mut [u8]) -> Result<()>;
}

/// The system's clocks, random bytes and processes.
#[derive(Clone, Copy, Default)]
pub(crate) struct RealWorld;

impl World for RealWorld {
    #[inline]
    fn process(&self) -> u64 {
        forks::process()
    }

    #[inline]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn tick(&self) -> u64 {
        nanoseconds(rustix::time::ClockId::MonotonicCoarse)
    }

    #[inline]
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn tick(&self) -> u64 {
        self.now() / 1_000_000
    }

    #[inline]
    #[cfg(unix)]
    fn now(&self) -> u64 {
        nanoseconds(rustix::time::ClockId::Monotonic)
    }

    #[inline]
    #[cfg(not(unix))]
    fn now(&self) -> u64 {
        use std::sync::LazyLock;
        use std::time::Instant;
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed().as_nanos() as u64
    }

    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        fill_random(bytes)
    }
}

#[inline]
#[cfg(unix)]
fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// The nonces of one open file.
#[derive(Clone)]
pub(crate) struct NonceSequence<W = RealWorld> {
    suite: SuiteId,
    run: Option<Run>,
    world: W,
}

impl NonceSequence {
    pub(crate) fn new(suite: SuiteId) -> Self {
        Self { suite, run: None, world: RealWorld }
    }
}

impl<W: World> NonceSequence<W> {
    /// The next nonce; its first `suite.nonce_len()` bytes count.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<[u8; MAX_NONCE]> {
        let layout = Layout::of(self.suite);
        let process = self.world.process();
        let tick = self.world.tick();
        let run = match &mut self.run {
            Some(run) if run.process == process && run.left > 0 => run,
            slot => slot.insert(Run::start(&layout, &self.world, process)?),
        };
        if run.tick != tick || run.left.is_multiple_of(LOOK) {
            run.look(&layout, &self.world)?;
            run.tick = tick;
        }
        Ok(run.next(&layout))
    }
}

#[derive(Clone)]
struct Run {
    process: u64,
    /// The nonce of the latest block.
    nonce: [u8; MAX_NONCE],
    counter: u64,
    left: u32,
    /// The random part of the epochs.
    draw: u128,
    /// The clock at that draw.
    drawn: u64,
    /// The coarse clock at the last look.
    tick: u64,
}

impl Run {
    #[cold]
    fn start(layout: &Layout, world: &impl World, process: u64) -> Result<Self> {
        let mut nonce = [0; MAX_NONCE];
        world.fill(&mut nonce[..layout.counter.end])?;
        let counter = number(&nonce[layout.counter.clone()]) as u64 & !(layout.step - 1);
        let draw = number(&nonce[layout.epoch.clone()]);
        Ok(Self { process, nonce, counter, left: RUN, draw, drawn: world.now(), tick: 0 })
    }

    fn look(&mut self, layout: &Layout, world: &impl World) -> Result<()> {
        let place = &mut self.nonce[layout.epoch.clone()];
        let now = world.now();
        // Also if the clock went back, as in a process that is restored on another machine.
        if now.checked_sub(self.drawn).is_none_or(|age| age >= SERVES) {
            world.fill(place)?;
            self.draw = number(place);
            self.drawn = now;
        }
        put(place, self.draw.wrapping_add(now.into()));
        Ok(())
    }

    #[inline]
    fn next(&mut self, layout: &Layout) -> [u8; MAX_NONCE] {
        self.left -= 1;
        put(&mut self.nonce[layout.counter.clone()], self.counter.into());
        self.counter = self.counter.wrapping_add(layout.step);
        self.nonce
    }
}

fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// The low bytes of `number`, as many as `place` has; higher bytes are cut off.
#[inline]
fn put(place: &mut [u8], number: u128) {
    let len = place.len();
    place.copy_from_slice(&number.to_be_bytes()[size_of::<u128>() - len..]);
}

#[cfg(test)]
mod tests;
