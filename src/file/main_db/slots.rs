//! The slots of the file as it is on disk: which log belongs to it, and how that changes.
//!
//! ```text
//!   log begins        checkpoint's first page   its last, then SQLite's truncation and sync
//!   state S, twice    S, the log, partly        the state after the log, the log
//! ```
//! A log notes the state on which it is begun. So it fits over that state, for as long as
//! checkpoints bring nothing but its own pages there, and over what its last checkpoint left, where
//! all of it is in the file already. A file that was restored has an older state, of which a later
//! log knows nothing. Transactions with a rollback journal leave the slots alone: they change the
//! counters in page 1, which the log notes, too.
//!
//! Invariants
//! 1. Nothing here needs a sync of its own: SQLite syncs the file after the truncation that ends a
//!    checkpoint, and begins a log only after that. While pages of a log come to the file, the
//!    other slot is written, once or more, never the one with the state on which that log was
//!    begun: whatever power loss leaves of the former, the latter admits the log.
//! 2. Where a log of which pages are in the file was lost, the next log would not fit; where a slot
//!    is damaged, the other one may be an older one. Before a log begins there, a slot is written
//!    and synced.
//! 3. When a log begins, both slots are made to name the state on which it does: if one of them is
//!    damaged later, the log still belongs to the file.

use super::super::Storage;
use super::super::journal::Counters;
use super::pages::Found;
use super::{MainDb, State};
use crate::error::{Error, Result};
use crate::file::wal::Origin;
use crate::key::envelope::slot::{Fit, LastFrame, SLOT_LEN, Slot, StateId};
use crate::key::envelope::{COPY_LEN, ENVELOPE_LEN, REGION_LEN};
use crate::key::keyring::Keyring;
use crate::page::LogId;

/// That of the slot of a database that is created.
pub(super) const FIRST_SEQUENCE: u64 = 1;
/// Where the slots are.
const PLACES: [usize; 2] = [COPY_LEN, REGION_LEN + COPY_LEN];

/// Both slots, as they were read.
pub(super) struct Slots {
    valid: [Option<Slot>; 2],
    /// It was written, and not by the holder of the key, or not to its end.
    bad: [bool; 2],
}

impl Slots {
    fn read(base: &impl Storage, keyring: &Keyring) -> Result<Self> {
        let mut header = [0; ENVELOPE_LEN];
        // A slot that is there and was not read must not count as none: the next would be written
        // over the one that counts.
        base.read_whole(&mut header[COPY_LEN..], COPY_LEN as u64)?;
        Self::decode(keyring, &header)
    }

    /// The bytes of both in the first [`ENVELOPE_LEN`] bytes of a file, as far as they are there.
    pub(super) fn bytes(header: &[u8]) -> Vec<u8> {
        PLACES.iter().filter_map(|&at| header.get(at..at + SLOT_LEN)).flatten().copied().collect()
    }

    /// The slots in the first [`ENVELOPE_LEN`] bytes of a file.
    pub(super) fn decode(keyring: &Keyring, header: &[u8]) -> Result<Self> {
        let (mut valid, mut bad) = ([None; 2], [false; 2]);
        for (number, at) in PLACES.into_iter().enumerate() {
            let Some(bytes) = header.get(at..at + SLOT_LEN) else { continue };
            valid[number] = keyring.decode_slot(bytes, number as u32)?;
            bad[number] = valid[number].is_none() && bytes.iter().any(|&byte| byte != 0);
        }
        Ok(Self { valid, bad })
    }

    /// Whether the slot behind the copy of the envelope at `copy` is damaged.
    pub(super) fn is_bad(&self, copy: usize) -> bool {
        self.bad[usize::from(copy > 0)]
    }

    pub(super) fn any_is_bad(&self) -> bool {
        self.bad.contains(&true)
    }

    /// Whether none is valid.
    pub(super) fn all_are_bad(&self) -> bool {
        self.newest().is_none()
    }

    /// Empties a damaged slot; where none is valid, the other one names the state of the file.
    pub(super) fn mend(&self, base: &impl Storage, keyring: &Keyring) -> Result<()> {
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

    /// The slot that counts.
    fn newest(&self) -> Option<&Slot> {
        self.valid.iter().flatten().max_by_key(|slot| slot.sequence)
    }

    /// Whether they tell of a log, which is begun only after a transaction was committed with a
    /// rollback journal.
    pub(super) fn a_log_was_begun(&self) -> bool {
        self.newest().is_some_and(|slot| slot.sequence > FIRST_SEQUENCE)
    }

    fn both_name(&self, state: &StateId) -> bool {
        self.valid.iter().all(|slot| slot.is_some_and(|slot| slot.state == *state))
    }

    fn next_sequence(&self) -> u64 {
        self.newest().map_or(FIRST_SEQUENCE, |slot| slot.sequence.saturating_add(1))
    }

    /// Which slot to write while a log is brought to the file that was begun on `state`.
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

    fn write(
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

impl MainDb {
    /// The state of the file, for a log that begins. `in_index` are its pages by the wal-index.
    ///
    /// # Errors
    /// [`Error::PageAuthentication`] where page 1 is bad, or a page is missing.
    pub(crate) fn log_origin(&self, base: &impl Storage, in_index: Option<u32>) -> Result<Origin> {
        let pages = self.pages(base, in_index)?;
        let counters = self.counters_on_disk(base)?.ok_or(Error::PageAuthentication { page: 1 })?;
        let State::Encrypted(file) = &self.state else { return Err(Error::NotEncrypted) };
        let slots = Slots::read(base, &file.keyring)?;
        let sequence = slots.next_sequence();
        let state = match slots.newest() {
            Some(slot) if !slot.partly && !slots.any_is_bad() => {
                if !slots.both_name(&slot.state) {
                    let slot = Slot { sequence, ..*slot };
                    slots.write(base, &file.keyring, &slot, &slot.state)?;
                }
                slot.state
            }
            _ => {
                let slot = Slot::anew(sequence)?;
                slots.write(base, &file.keyring, &slot, &StateId::default())?;
                base.sync()?;
                slot.state
            }
        };
        Ok(Origin { pages, counters, state })
    }

    /// How the log `log`, which was begun on `state`, fits the file by its slots.
    pub(crate) fn fit(&self, base: &impl Storage, log: &LogId, state: &StateId) -> Result<Fit> {
        let State::Encrypted(file) = &self.state else { return Ok(Fit::Begun) };
        let slots = Slots::read(base, &file.keyring)?;
        Ok(slots.newest().map_or(Fit::No, |slot| slot.fit(log, state)))
    }

    /// SQLite's counters in page 1; `None` where that is bad or missing.
    pub(crate) fn counters_on_disk(&self, base: &impl Storage) -> Result<Option<Counters>> {
        let State::Encrypted(file) = &self.state else { return Ok(None) };
        let mut page = vec![0; file.page_size];
        let good = file.load_into(base, 1, &mut page)? == Found::Good;
        Ok(good.then(|| super::pages::counters_in(&page)))
    }

    /// Whether the slots have what [`MainDb::checkpoint_writes`] says of the checkpoint at hand.
    pub(crate) fn is_checkpoint_noted(&self) -> bool {
        self.is_checkpoint_noted
    }

    /// A checkpoint is about to bring a page of `log` to the file, which was begun on `state`, and
    /// may bring its frames up to `brought`.
    ///
    /// # Errors
    /// [`Error::LogOutdated`] where the file is in no state for it: another one was put in its
    /// place. [`Error::LogCut`] where more of it was brought already.
    pub(crate) fn checkpoint_writes(
        &mut self,
        base: &impl Storage,
        (log, state): (LogId, StateId),
        brought: u32,
    ) -> Result<()> {
        if self.is_checkpoint_noted {
            return Ok(());
        }
        self.check_envelope(base)?;
        let State::Encrypted(file) = &self.state else { return Ok(()) };
        let slots = Slots::read(base, &file.keyring)?;
        let current = match slots.newest() {
            None => Some(state),
            Some(slot) => match slot.fit(&log, &state) {
                Fit::No => return Err(Error::LogOutdated),
                // SQLite never brings less than before: after a recovery `log_ends` lowers this.
                Fit::Brought { frames, .. } if 0 < brought && brought < frames => {
                    return Err(Error::LogCut { frame: brought + 1 });
                }
                Fit::Brought { frames, partly: true } if frames == brought => None,
                Fit::Brought { .. } | Fit::Begun => Some(slot.state),
            },
        };
        if let Some(current) = current {
            let sequence = slots.next_sequence();
            let slot = Slot { sequence, state: current, log, partly: true, brought };
            slots.write(base, &file.keyring, &slot, &state)?;
        }
        self.is_checkpoint_noted = true;
        Ok(())
    }

    /// A recovery has ended `log` after frame `end`. From now on nobody is to miss the frames
    /// behind it, though checkpoints may have brought them: SQLite before 3.50 commits frames
    /// without checksums, and its recovery drops them.
    pub(crate) fn log_ends(
        &mut self,
        base: &impl Storage,
        (log, state): (LogId, StateId),
        end: u32,
    ) -> Result<()> {
        let State::Encrypted(file) = &self.state else { return Ok(()) };
        let slots = Slots::read(base, &file.keyring)?;
        let Some(slot) = slots.newest().filter(|slot| slot.log == log && slot.brought > end) else {
            return Ok(());
        };
        let slot = Slot { sequence: slots.next_sequence(), brought: end, ..*slot };
        slots.write(base, &file.keyring, &slot, &state)?;
        base.sync()
    }

    /// A checkpoint has brought all of `log` to the file, which was begun on `state` and ends with
    /// `last`, where that is known. SQLite cuts the file next and syncs it.
    ///
    /// # Errors
    /// As [`MainDb::checkpoint_writes`].
    pub(crate) fn checkpoint_ends(
        &mut self,
        base: &impl Storage,
        (log, state): (LogId, StateId),
        last: Option<LastFrame>,
    ) -> Result<()> {
        self.check_envelope(base)?;
        let State::Encrypted(file) = &self.state else { return Ok(()) };
        let slots = Slots::read(base, &file.keyring)?;
        match (slots.newest().map(|slot| slot.fit(&log, &state)), last) {
            (Some(Fit::No), _) => return Err(Error::LogOutdated),
            (Some(Fit::Brought { frames, .. }), Some((last, _))) if last < frames => {
                return Err(Error::LogCut { frame: last + 1 });
            }
            _ => {}
        }
        let mut slot = Slot { log, ..Slot::anew(slots.next_sequence())? };
        if let Some(last) = &last {
            slot.state = file.keyring.state_after(&state, &log, last)?;
            slot.brought = last.0;
        }
        slots.write(base, &file.keyring, &slot, &state)?;
        self.is_checkpoint_noted = false;
        Ok(())
    }
}
