//! Nonces that no two writers ever share.
//!
//! A sequence starts at a random point of the whole nonce space and counts from there. It starts
//! anew with every write transaction, and at once in a process that was forked: a child that
//! inherits an open database must not repeat what its parent counts.
//!
//! | suite | random start | step per block |
//! |---|---|---|
//! | `aes-256-gcm` | 24 bytes; the first 12 choose the derived key | 1 in the last 12 bytes |
//! | `aes-256-ctr-hmac-sha256` | 16 bytes, the low 13 bits cleared | 8192 counter blocks |
//!
//! Two sequences collide only where both their starts fall together: 2^192 places for the first
//! suite, 2^115 for the second, whose step covers the 4,098 AES blocks of the longest record.

use std::sync::atomic::{AtomicU64, Ordering};

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

pub(crate) struct NonceSequence {
    suite: SuiteId,
    next: Option<[u8; MAX_NONCE]>,
    forks: u64,
}

impl NonceSequence {
    pub(crate) fn new(suite: SuiteId) -> Self {
        Self { suite, next: None, forks: 0 }
    }

    /// Makes the next nonce start from a new random point.
    pub(crate) fn renew(&mut self) {
        self.next = None;
    }

    /// The next nonce; its first `suite.nonce_len()` bytes count.
    pub(crate) fn next(&mut self) -> Result<[u8; MAX_NONCE]> {
        let forks = FORKS.load(Ordering::Relaxed);
        let nonce = match self.next {
            Some(nonce) if self.forks == forks => nonce,
            _ => self.start()?,
        };
        self.forks = forks;
        self.next = Some(self.after(nonce));
        Ok(nonce)
    }

    fn start(&self) -> Result<[u8; MAX_NONCE]> {
        let mut nonce = [0; MAX_NONCE];
        fill_random(&mut nonce[..self.suite.nonce_len()])?;
        if self.suite == SuiteId::Aes256CtrHmacSha256 {
            let start = ctr_value(&nonce) & !(CTR_STEP - 1);
            nonce[..16].copy_from_slice(&start.to_be_bytes());
        }
        Ok(nonce)
    }

    fn after(&self, mut nonce: [u8; MAX_NONCE]) -> [u8; MAX_NONCE] {
        match self.suite {
            SuiteId::Aes256Gcm => {
                for byte in nonce[12..].iter_mut().rev() {
                    *byte = byte.wrapping_add(1);
                    if *byte != 0 {
                        break;
                    }
                }
            }
            SuiteId::Aes256CtrHmacSha256 => {
                let next = ctr_value(&nonce).wrapping_add(CTR_STEP);
                nonce[..16].copy_from_slice(&next.to_be_bytes());
            }
        }
        nonce
    }
}

fn ctr_value(nonce: &[u8; MAX_NONCE]) -> u128 {
    let mut counter = [0; 16];
    counter.copy_from_slice(&nonce[..16]);
    u128::from_be_bytes(counter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const SUITES: [SuiteId; 2] = [SuiteId::Aes256Gcm, SuiteId::Aes256CtrHmacSha256];

    #[test]
    fn no_nonce_comes_twice() {
        for suite in SUITES {
            let mut sequence = NonceSequence::new(suite);
            let mut seen = HashSet::new();
            for step in 0..10_000 {
                if step % 1000 == 0 {
                    sequence.renew();
                }
                assert!(seen.insert(sequence.next().unwrap()), "{suite:?} step {step}");
            }
        }
    }

    #[test]
    fn a_transaction_keeps_its_prefix() {
        let mut sequence = NonceSequence::new(SuiteId::Aes256Gcm);
        let first = sequence.next().unwrap();
        assert_eq!(first[..12], sequence.next().unwrap()[..12]);
        sequence.renew();
        assert_ne!(first[..12], sequence.next().unwrap()[..12]);
    }

    #[test]
    fn the_counter_carries() {
        let sequence = NonceSequence::new(SuiteId::Aes256Gcm);
        let mut nonce = [0xff; MAX_NONCE];
        nonce[..12].fill(7);
        let next = sequence.after(nonce);
        assert_eq!(next[..12], [7; 12]);
        assert_eq!(next[12..], [0; 12]);
    }

    #[test]
    fn counter_blocks_of_neighbours_do_not_meet() {
        let mut sequence = NonceSequence::new(SuiteId::Aes256CtrHmacSha256);
        let (a, b) = (sequence.next().unwrap(), sequence.next().unwrap());
        let longest_record = (65536 + 24_u128).div_ceil(16);
        assert!(ctr_value(&b).wrapping_sub(ctr_value(&a)) >= longest_record);
    }

    #[test]
    fn a_forked_child_starts_anew() {
        let mut sequence = NonceSequence::new(SuiteId::Aes256Gcm);
        let parent = sequence.next().unwrap();
        sequence.forks = sequence.forks.wrapping_sub(1);
        assert_ne!(parent[..12], sequence.next().unwrap()[..12]);
    }
}
