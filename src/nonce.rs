//! Nonces that no two writers ever share.
//!
//! ```text
//! aes-256-gcm               | prefix 12 | epoch 6 | counter 6              |   1 per block
//! aes-256-ctr-hmac-sha256               | epoch 6 | counter 10             |   8192 per block
//! ```
//! A run of nonces starts at a random point: all of these bytes are drawn, but for the low 13 bits of
//! the second suite's counter, which are the AES blocks of one block of ours. From there the counter
//! goes on, and comes to no value twice. A run ends with the file's handle, after 2^24 blocks, and at
//! once in a process that was forked: a child that inherits an open database must not repeat what
//! its parent counts.
//!
//! So within a process the counter alone keeps nonces apart, and between processes the random start.
//! What neither can tell is a clone of a whole running machine. For that there is the epoch: each
//! write transaction has another one. It is drawn anew where the last draw is 10 ms old, and in
//! between it is that draw plus the nanoseconds since. In a clone, the first transaction after that
//! time has an epoch of its own; until then two transactions have the same one only where both began
//! in the same nanosecond of their clocks. A transaction that was under way when the machine was
//! cloned is not told apart, nor can it be: what it seals next, both clones seal.
//!
//! The prefix chooses the AES-GCM key. It stays for long, since each reader has to make a key for each
//! prefix that it meets. 2^24 blocks of at most 64 KiB under one GCM key are far below the 2^32 calls
//! that NIST SP 800-38D (8.3) allows a key whose nonces are not purely counted, and at 2^36 AES
//! blocks what tells its output from random bits is an advantage of 2^-57.
//!
//! Two runs under one subkey meet only where prefix, epoch and counter do: see docs/threat-model.md.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::secret::fill_random;
use crate::suite::SuiteId;

/// Counts the forks that led to this process; the VFS adds one in every child.
pub(crate) static FORKS: AtomicU64 = AtomicU64::new(0);

/// Longest nonce of any suite.
pub(crate) const MAX_NONCE: usize = 24;

/// AES blocks that one step of the counter-mode suite sets aside: a 64 KiB page and a frame header
/// need 4,098.
const CTR_STEP: u128 = 1 << 13;
/// Blocks of one run.
const RUN: u32 = 1 << 24;
const EPOCH_LEN: usize = 6;
/// For how long a drawn epoch serves. Random bytes cost as much as a fortieth of a small commit.
const EPOCH: Duration = Duration::from_millis(10);

/// The nonces of one open file.
pub(crate) struct NonceSequence {
    suite: SuiteId,
    run: Option<Run>,
    /// A transaction has begun since the last nonce.
    begun: bool,
    forks: u64,
}

impl NonceSequence {
    pub(crate) fn new(suite: SuiteId) -> Self {
        Self { suite, run: None, begun: false, forks: 0 }
    }

    /// A transaction begins: the next nonce has an epoch of its own.
    pub(crate) fn begin(&mut self) {
        self.begun = true;
    }

    /// The next nonce; its first `suite.nonce_len()` bytes count.
    pub(crate) fn next(&mut self) -> Result<[u8; MAX_NONCE]> {
        let forks = FORKS.load(Ordering::Relaxed);
        let run = match &mut self.run {
            Some(run) if self.forks == forks && run.left > 0 => run,
            slot => slot.insert(Run::start(self.suite)?),
        };
        self.forks = forks;
        if self.begun {
            run.change_epoch(Instant::now())?;
            self.begun = false;
        }
        Ok(run.next())
    }
}

struct Run {
    layout: Layout,
    nonce: [u8; MAX_NONCE],
    counter: u128,
    left: u32,
    /// The epoch as it was drawn, and when.
    epoch: u64,
    drawn: Instant,
}

impl Run {
    fn start(suite: SuiteId) -> Result<Self> {
        let layout = Layout::of(suite);
        let mut nonce = [0; MAX_NONCE];
        fill_random(&mut nonce[..layout.end])?;
        let counter = layout.counter_in(&nonce) & !(layout.step - 1);
        let epoch = layout.epoch_in(&nonce);
        Ok(Self { layout, nonce, counter, left: RUN, epoch, drawn: Instant::now() })
    }

    fn change_epoch(&mut self, now: Instant) -> Result<()> {
        let place = &mut self.nonce[self.layout.epoch..][..EPOCH_LEN];
        let age = now.saturating_duration_since(self.drawn);
        if age < EPOCH {
            let epoch = self.epoch.wrapping_add(age.as_nanos() as u64);
            place.copy_from_slice(&epoch.to_be_bytes()[2..]);
            return Ok(());
        }
        fill_random(place)?;
        self.epoch = self.layout.epoch_in(&self.nonce);
        self.drawn = now;
        Ok(())
    }

    fn next(&mut self) -> [u8; MAX_NONCE] {
        self.left -= 1;
        let place = &mut self.nonce[self.layout.counter()];
        let len = place.len();
        place.copy_from_slice(&self.counter.to_be_bytes()[16 - len..]);
        // What overflows the counter's bytes is cut off there.
        self.counter = self.counter.wrapping_add(self.layout.step);
        self.nonce
    }
}

/// Where epoch and counter are in a nonce.
#[derive(Clone, Copy)]
struct Layout {
    epoch: usize,
    end: usize,
    step: u128,
}

impl Layout {
    const fn of(suite: SuiteId) -> Self {
        let end = suite.nonce_len();
        match suite {
            SuiteId::Aes256Gcm => Self { epoch: 12, end, step: 1 },
            SuiteId::Aes256CtrHmacSha256 => Self { epoch: 0, end, step: CTR_STEP },
        }
    }

    fn counter(self) -> std::ops::Range<usize> {
        self.epoch + EPOCH_LEN..self.end
    }

    fn counter_in(self, nonce: &[u8; MAX_NONCE]) -> u128 {
        number(&nonce[self.counter()])
    }

    fn epoch_in(self, nonce: &[u8; MAX_NONCE]) -> u64 {
        number(&nonce[self.epoch..][..EPOCH_LEN]) as u64
    }
}

fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    const SUITES: [SuiteId; 2] = [SuiteId::Aes256Gcm, SuiteId::Aes256CtrHmacSha256];

    /// Everything but the epoch, which is not to be needed.
    fn without_epoch(suite: SuiteId, nonce: &[u8; MAX_NONCE]) -> [u8; MAX_NONCE] {
        let mut nonce = *nonce;
        nonce[Layout::of(suite).epoch..][..EPOCH_LEN].fill(0);
        nonce
    }

    #[test]
    fn no_nonce_comes_twice() {
        for suite in SUITES {
            let mut seen = HashSet::new();
            for handle in 0..8 {
                let mut sequence = NonceSequence::new(suite);
                for step in 0..20_000 {
                    match step {
                        _ if step % 5_000 == 4_999 => {
                            sequence.forks = sequence.forks.wrapping_sub(1);
                        }
                        _ if step % 7 == 0 => sequence.begin(),
                        _ => {}
                    }
                    let nonce = sequence.next().unwrap();
                    let new = seen.insert(without_epoch(suite, &nonce));
                    assert!(new, "{suite:?} handle {handle} step {step}");
                }
            }
        }
    }

    /// Readers make a key for each prefix that they meet.
    #[test]
    fn transactions_share_a_prefix_and_have_epochs_of_their_own() {
        for suite in SUITES {
            let layout = Layout::of(suite);
            let mut sequence = NonceSequence::new(suite);
            let prefix = sequence.next().unwrap()[..layout.epoch].to_vec();
            let mut epochs = HashMap::new();
            for transaction in 0..1000 {
                sequence.begin();
                // So that its clock moves on, as it does while SQLite works.
                std::thread::sleep(Duration::from_nanos(1));
                let first = sequence.next().unwrap();
                assert_eq!(first[..layout.epoch], prefix, "{suite:?} {transaction}");
                let second = sequence.next().unwrap();
                let epoch = layout.epoch_in(&first);
                assert_eq!(layout.epoch_in(&second), epoch, "{suite:?} {transaction}");
                let before = epochs.insert(epoch, transaction);
                assert_eq!(before, None, "{suite:?} {transaction}");
            }
        }
    }

    /// (nanoseconds after the draw, whether the epoch is that draw plus them)
    #[test]
    fn an_old_epoch_is_drawn_anew() {
        for suite in SUITES {
            for (age, same) in [(0, true), (1, true), (9_999_999, true), (10_000_000, false)] {
                let mut run = Run::start(suite).unwrap();
                let first = run.next();
                let drawn = run.layout.epoch_in(&first);
                run.change_epoch(run.drawn + Duration::from_nanos(age)).unwrap();
                let now = run.layout.epoch_in(&run.next());
                let sum = drawn.wrapping_add(age) & ((1 << 48) - 1);
                assert_eq!(now == sum, same, "{suite:?} {age}");
                let (before, after) = (first, run.nonce);
                let before = run.layout.counter_in(&before) + run.layout.step;
                assert_eq!(run.layout.counter_in(&after), before, "{suite:?} {age}");
            }
        }
    }

    #[test]
    fn a_run_ends() {
        for suite in SUITES {
            let mut sequence = NonceSequence::new(suite);
            let first = sequence.next().unwrap();
            sequence.run.as_mut().unwrap().left = 1;
            let last = sequence.next().unwrap();
            let other = sequence.next().unwrap();
            let layout = Layout::of(suite);
            let distance = layout.counter_in(&last) - layout.counter_in(&first);
            assert_eq!(distance, layout.step, "{suite:?}");
            assert_ne!(last[..12], other[..12], "{suite:?}");
        }
    }

    #[test]
    fn the_counter_wraps_within_its_bytes() {
        for suite in SUITES {
            let mut run = Run::start(suite).unwrap();
            run.counter = run.layout.step.wrapping_neg();
            let (last, first) = (run.next(), run.next());
            assert_eq!(run.layout.counter_in(&first), 0, "{suite:?}");
            let fixed = ..run.layout.counter().start;
            assert_eq!(last[fixed], first[fixed], "{suite:?}");
        }
    }

    #[test]
    fn counter_blocks_of_neighbours_do_not_meet() {
        let mut sequence = NonceSequence::new(SuiteId::Aes256CtrHmacSha256);
        let (a, b) = (sequence.next().unwrap(), sequence.next().unwrap());
        let longest_record = (65536 + 24_u128).div_ceil(16);
        let layout = Layout::of(SuiteId::Aes256CtrHmacSha256);
        let distance = layout.counter_in(&b).wrapping_sub(layout.counter_in(&a)) % (1 << 80);
        assert!(distance >= longest_record);
        // Nor does the cipher's own counting carry into the epoch.
        assert_eq!(layout.counter_in(&a) % CTR_STEP, 0);
    }

    #[test]
    fn a_forked_child_starts_anew() {
        for suite in SUITES {
            let mut sequence = NonceSequence::new(suite);
            let parent = sequence.next().unwrap();
            sequence.forks = sequence.forks.wrapping_sub(1);
            assert_ne!(parent[..12], sequence.next().unwrap()[..12], "{suite:?}");
        }
    }
}
