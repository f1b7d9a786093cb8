//! Which log belongs to the main file, and the slots that its checkpoints write; see
//! [`crate::key::envelope::slots`].

use super::main::{Main, State};
use crate::error::{Error, Result};
use crate::file::journal::Counters;
use crate::file::main::{Found, counters_in};
use crate::file::wal::Origin;
use crate::io::Storage;
use crate::key::envelope::slot::{Fit, LastFrame, Slot, StateId};
use crate::key::envelope::slots::Slots;
use crate::page::{FrameNo, LogId, PageNo};

impl Main {
    /// The state of the file, for a log that begins. `in_index` are its pages by the wal-index.
    ///
    /// # Errors
    /// [`Error::PageAuthentication`] if page 1 is bad, or a page is missing.
    pub(crate) fn log_origin(&self, base: &impl Storage, in_index: Option<u32>) -> Result<Origin> {
        let pages = self.pages(base, in_index)?;
        let counters = self.counters_on_disk(base)?.ok_or(Error::PageAuthentication { page: 1 })?;
        let keyring = self.session()?.keyring();
        let slots = Slots::read(base, keyring)?;
        let sequence = slots.next_sequence();
        let state = match slots.newest() {
            Some(slot) if !slot.partly && !slots.any_is_bad() => {
                if !slots.both_name(&slot.state) {
                    let slot = Slot { sequence, ..*slot };
                    slots.write(base, keyring, &slot, &slot.state)?;
                }
                slot.state
            }
            _ => {
                let slot = Slot::anew(sequence)?;
                slots.write(base, keyring, &slot, &StateId::default())?;
                base.sync()?;
                slot.state
            }
        };
        Ok(Origin { pages, counters, state })
    }

    /// The relation of the log `log`, which was begun on `state`, to the file, by its slots.
    pub(crate) fn fit(&self, base: &impl Storage, log: &LogId, state: &StateId) -> Result<Fit> {
        let Ok(session) = self.session() else { return Ok(Fit::Begun) };
        let slots = Slots::read(base, session.keyring())?;
        Ok(slots.newest().map_or(Fit::No, |slot| slot.fit(log, state)))
    }

    /// SQLite's counters in page 1; `None` if that is bad or missing.
    pub(crate) fn counters_on_disk(&self, base: &impl Storage) -> Result<Option<Counters>> {
        let State::Encrypted(open) = &self.state else { return Ok(None) };
        let mut page = vec![0; open.pages.page_size()];
        let good = open.pages.load_into(base, PageNo::FIRST, &mut page)? == Found::Good;
        Ok(good.then(|| counters_in(&page)))
    }

    /// Whether the slots already hold the state of [`Main::checkpoint_writes`] for the current
    /// checkpoint.
    pub(crate) fn is_checkpoint_noted(&self) -> bool {
        self.phase.in_checkpoint().noted
    }

    fn note_checkpoint(&mut self, noted: bool) {
        if let Some(checkpoint) = self.phase.checkpoint() {
            checkpoint.noted = noted;
        }
    }

    /// A checkpoint is about to bring a page of `log` to the file, which was begun on `state`, and
    /// may bring its frames up to `brought`.
    ///
    /// # Errors
    /// [`Error::LogOutdated`] if the file is not in a state that fits: it was replaced.
    /// [`Error::LogCut`] if more frames were checkpointed already.
    pub(crate) fn checkpoint_writes(
        &mut self,
        base: &impl Storage,
        (log, state): (LogId, StateId),
        brought: FrameNo,
    ) -> Result<()> {
        if self.phase.in_checkpoint().noted {
            return Ok(());
        }
        self.check_envelope(base)?;
        let Ok(session) = self.session() else { return Ok(()) };
        let keyring = session.keyring();
        let slots = Slots::read(base, keyring)?;
        let current = match slots.newest() {
            None => Some(state),
            Some(slot) => match slot.fit(&log, &state) {
                Fit::No => return Err(Error::LogOutdated),
                // SQLite never brings less than before: after a recovery `log_ends` lowers this.
                Fit::Brought { frames, .. } if FrameNo::NONE < brought && brought < frames => {
                    return Err(Error::LogCut { frame: brought.next().0 });
                }
                Fit::Brought { frames, partly: true } if frames == brought => None,
                Fit::Brought { .. } | Fit::Begun => Some(slot.state),
            },
        };
        if let Some(current) = current {
            let sequence = slots.next_sequence();
            let slot = Slot { sequence, state: current, log, partly: true, brought };
            slots.write(base, keyring, &slot, &state)?;
        }
        self.note_checkpoint(true);
        Ok(())
    }

    /// A recovery has ended `log` after frame `end`. From now on the frames behind it are not
    /// required, even if checkpoints have copied them: SQLite before 3.50 commits frames without
    /// checksums, and its recovery drops them.
    pub(crate) fn log_ends(
        &mut self,
        base: &impl Storage,
        (log, state): (LogId, StateId),
        end: FrameNo,
    ) -> Result<()> {
        let Ok(session) = self.session() else { return Ok(()) };
        let keyring = session.keyring();
        let slots = Slots::read(base, keyring)?;
        let Some(slot) = slots.newest().filter(|slot| slot.log == log && slot.brought > end) else {
            return Ok(());
        };
        let slot = Slot { sequence: slots.next_sequence(), brought: end, ..*slot };
        slots.write(base, keyring, &slot, &state)?;
        base.sync()
    }

    /// A checkpoint has brought all of `log` to the file, which was begun on `state` and ends with
    /// `last`, if known. SQLite cuts the file next and syncs it.
    ///
    /// # Errors
    /// As [`Main::checkpoint_writes`].
    pub(crate) fn checkpoint_ends(
        &mut self,
        base: &impl Storage,
        (log, state): (LogId, StateId),
        last: Option<LastFrame>,
    ) -> Result<()> {
        self.check_envelope(base)?;
        let Ok(session) = self.session() else { return Ok(()) };
        let keyring = session.keyring();
        let slots = Slots::read(base, keyring)?;
        match (slots.newest().map(|slot| slot.fit(&log, &state)), last) {
            (Some(Fit::No), _) => return Err(Error::LogOutdated),
            (Some(Fit::Brought { frames, .. }), Some((last, _))) if last < frames => {
                return Err(Error::LogCut { frame: last.next().0 });
            }
            _ => {}
        }
        let mut slot = Slot { log, ..Slot::anew(slots.next_sequence())? };
        if let Some(last) = &last {
            slot.state = keyring.state_after(&state, &log, last)?;
            slot.brought = last.0;
        }
        slots.write(base, keyring, &slot, &state)?;
        self.note_checkpoint(false);
        Ok(())
    }
}
