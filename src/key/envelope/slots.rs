//! The slots of the file as it is on disk: the log that belongs to it, and the changes of that.
//!
//! ```text
//!   log begins        checkpoint's first page   its last, then SQLite's truncation and sync
//!   state S, twice    S, the log, partly        the state after the log, the log
//! ```
//! A log notes the state on which it is begun. So it fits over that state, for as long as
//! checkpoints bring only its own pages there, and over the state after its last checkpoint, when
//! the file has all of it. A restored file has an older state, which no later log names.
//! Transactions with a rollback journal leave the slots alone: they change the counters in page 1,
//! which the log notes, too.
//!
//! Invariants
//! 1. Nothing here needs a sync of its own: SQLite syncs the file after the truncation that ends a
//!    checkpoint, and begins a log only after that. While pages of a log come to the file, the
//!    other slot is written, once or more, never the one with the state on which that log was
//!    begun: if a power loss tears the former, the latter still admits the log.
//! 2. If a log was lost after some of its pages reached the file, the next log would not fit; if a
//!    slot is damaged, the other one may be older. Before a log begins there, a slot is written and
//!    synced.
//! 3. When a log begins, both slots are made to name the state on which it does: if one of them is
//!    damaged later, the log still fits the file.

use super::slot::{SLOT_LEN, Slot, StateId};
use super::{COPY_LEN, ENVELOPE_LEN, REGION_LEN};
use crate::error::Result;
use crate::io::Storage;
use crate::key::keyring::Keyring;

/// Sequence of the slot of a new database.
pub(crate) const FIRST_SEQUENCE: u64 = 1;
/// Offsets of the slots.
const PLACES: [usize; 2] = [COPY_LEN, REGION_LEN + COPY_LEN];

/// Both slots, as they were read.
pub(crate) struct Slots {
    valid: [Option<Slot>; 2],
    /// Not written by the holder of the key, or torn.
    bad: [bool; 2],
}

impl Slots {
    pub(crate) fn read(base: &impl Storage, keyring: &Keyring) -> Result<Self> {
        let mut header = [0; ENVELOPE_LEN];
        // An unread slot must not count as missing: the next write would hit the valid one.
        base.read_whole(&mut header[COPY_LEN..], COPY_LEN as u64)?;
        Self::decode(keyring, &header)
    }

    /// The bytes of both in the first [`ENVELOPE_LEN`] bytes of a file, as far as they are there.
    pub(crate) fn bytes(header: &[u8]) -> Vec<u8> {
        PLACES.map(|at| header.get(at..at + SLOT_LEN).unwrap_or_default()).concat()
    }

    /// The slots in the first [`ENVELOPE_LEN`] bytes of a file.
    pub(crate) fn decode(keyring: &Keyring, header: &[u8]) -> Result<Self> {
        let (mut valid, mut bad) = ([None; 2], [false; 2]);
        for (number, at) in PLACES.into_iter().enumerate() {
            let Some(bytes) = header.get(at..at + SLOT_LEN) else { continue };
            valid[number] = keyring.decode_slot(bytes, number as u32)?;
            bad[number] = valid[number].is_none() && bytes.iter().any(|&byte| byte != 0);
        }
        Ok(Self { valid, bad })
    }

    /// Whether the slot behind the copy of the envelope at `copy` is damaged.
    pub(crate) fn is_bad(&self, copy: usize) -> bool {
        self.bad[usize::from(copy > 0)]
    }

    pub(crate) fn any_is_bad(&self) -> bool {
        self.bad.contains(&true)
    }

    /// Whether none is valid.
    pub(crate) fn all_are_bad(&self) -> bool {
        self.newest().is_none()
    }

    /// Empties a damaged slot; if none is valid, the other one is set to the state of the file.
    pub(crate) fn mend(&self, base: &impl Storage, keyring: &Keyring) -> Result<()> {
        if !self.any_is_bad() {
            return Ok(());
        }
        let kept = usize::from(self.valid[0].is_none() && self.valid[1].is_some());
        if self.all_are_bad() {
            let slot = keyring.encode_slot(&Slot::anew(FIRST_SEQUENCE)?, kept as u32)?;
            base.write(&slot, PLACES[kept] as u64)?;
        }
        if self.bad[1 - kept] {
            base.write(&[0; SLOT_LEN], PLACES[1 - kept] as u64)?;
        }
        Ok(())
    }

    /// The slot in force.
    pub(crate) fn newest(&self) -> Option<&Slot> {
        self.valid.iter().flatten().max_by_key(|slot| slot.sequence)
    }

    /// Whether they name a log, which is begun only after a transaction was committed with a
    /// rollback journal.
    pub(crate) fn a_log_was_begun(&self) -> bool {
        self.newest().is_some_and(|slot| slot.sequence > FIRST_SEQUENCE)
    }

    pub(crate) fn both_name(&self, state: &StateId) -> bool {
        self.valid.iter().all(|slot| slot.is_some_and(|slot| slot.state == *state))
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.newest().map_or(FIRST_SEQUENCE, |slot| slot.sequence.saturating_add(1))
    }

    /// The slot to write during a checkpoint of a log that was begun on `state`.
    fn free_for(&self, state: &StateId) -> usize {
        let [Some(a), Some(b)] = &self.valid else { return usize::from(self.valid[0].is_some()) };
        let newer = usize::from(b.sequence > a.sequence);
        match (a.state == *state, b.state == *state) {
            (true, false) => 1,
            (false, true) => 0,
            (true, true) => newer,
            (false, false) => 1 - newer,
        }
    }

    pub(crate) fn write(
        &self,
        base: &impl Storage,
        keyring: &Keyring,
        slot: &Slot,
        state: &StateId,
    ) -> Result<()> {
        let number = self.free_for(state);
        base.write(&keyring.encode_slot(slot, number as u32)?, PLACES[number] as u64)
    }
}
