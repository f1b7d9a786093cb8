//! Changing the protectors of an envelope, step by step, once the change is planned.

use super::Session;
use crate::audit::{Event, EventKind};
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::key::auditor::about;
use crate::key::envelope::{PROTECTORS_MAX, ProtectorRecord};
use crate::key::protector::may_write;
use crate::process::time::now;

/// One step of a change: from a record as read to its replacement.
pub(crate) enum Step {
    Replace(ProtectorRecord, ProtectorRecord),
    Add(ProtectorRecord),
    Remove(ProtectorRecord),
    AutoRotate(bool),
    /// Puts the protectors into the order of these names.
    Order(Vec<String>),
}

/// The protectors `before` after these `steps`.
pub(crate) fn after(before: &[ProtectorRecord], steps: &[Step]) -> Vec<ProtectorRecord> {
    let mut all = before.to_vec();
    for step in steps {
        match step {
            Step::Replace(old, new) => {
                all.iter_mut().filter(|record| *record == old).for_each(|r| r.clone_from(new));
            }
            Step::Add(new) => all.push(new.clone()),
            Step::Remove(old) => all.retain(|record| record != old),
            Step::AutoRotate(_) => {}
            Step::Order(names) => {
                all.sort_by_key(|record| names.iter().position(|name| *name == record.name));
            }
        }
    }
    all
}

/// Records that a background check wrapped under newer keys, to be put into the envelope.
pub(crate) struct Pending {
    records: Vec<(ProtectorRecord, ProtectorRecord)>,
    pub(crate) steps: Vec<Step>,
}

impl Session {
    /// Records left by a background check, if this session may write them. Records the begin in the
    /// audit log.
    pub(crate) fn take_pending(&mut self, base: &impl Storage) -> Result<Option<Pending>> {
        let records = self.keyring().take_pending();
        if records.is_empty() || self.check_writable().is_err() {
            return Ok(None);
        }
        let replace = |(old, new): &(ProtectorRecord, ProtectorRecord)| {
            Step::Replace(old.clone(), new.clone())
        };
        let steps: Vec<Step> = records.iter().map(replace).collect();
        self.refresh_envelope(base)?;
        self.record(&steps, "begins; by itself", &Ok(true))?;
        Ok(Some(Pending { records, steps }))
    }

    /// The outcome of writing them: if another connection held the locks, they are kept for later.
    pub(crate) fn pending_done(&self, pending: Pending, done: Result<bool>) -> Result<()> {
        let _ = self.record(&pending.steps, "ends; by itself", &done);
        if let Err(Error::Busy(_)) = done {
            self.keyring().set_pending(pending.records);
            return Ok(());
        }
        done.map(|_| ())
    }

    /// Returns an error for a change that is in one copy of the envelope only, while the other
    /// still has the protector to be removed. Additions and settings are complete with one copy.
    pub(crate) fn finished(&self, steps: &[Step], done: bool) -> Result<bool> {
        let removes = |step: &Step| matches!(step, Step::Replace(..) | Step::Remove(_));
        if done && self.copies_differ() && steps.iter().any(removes) {
            let reason = "changed, but one envelope copy is still old: repeat the command when the \
                          disk works, or open for writing";
            return Err(Error::Unfinished { reason: reason.into(), source: None });
        }
        Ok(done)
    }

    /// Records each step in the audit log.
    pub(crate) fn record(&self, steps: &[Step], detail: &str, done: &Result<bool>) -> Result<()> {
        let words = match done {
            Ok(true) => None,
            Ok(false) => Some("others changed the protectors: begins again".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        for step in steps {
            let event = match step {
                Step::Replace(_, new) => about(EventKind::Rotate, new),
                Step::Add(new) => about(EventKind::AddProtector, new),
                Step::Remove(old) => about(EventKind::RemoveProtector, old),
                Step::AutoRotate(_) => Event::new(EventKind::Rotate),
                // It comes with steps that are recorded.
                Step::Order(_) => continue,
            };
            let detail = match step {
                Step::Replace(old, new) if old.name != new.name => {
                    format!("{detail}; in the place of {}", old.name)
                }
                Step::AutoRotate(on) => {
                    format!("{detail}; by itself: {}", if *on { "on" } else { "off" })
                }
                _ => detail.to_owned(),
            };
            self.auditor().record(&Event {
                file_id: Some(self.keyring().file_id()),
                outcome: words.as_deref().map_or(Ok(()), Err),
                detail: Some(&detail),
                ..event
            })?;
        }
        Ok(())
    }

    /// Records a forbidden change in the audit log.
    pub(crate) fn refused(&self, error: &Error) {
        if matches!(error, Error::Usage(_) | Error::ReadOnly { .. }) {
            self.auditor().note(&Event {
                file_id: Some(self.keyring().file_id()),
                outcome: Err(&error.to_string()),
                ..Event::new(EventKind::Refusal)
            });
        }
    }

    /// Applies the steps if each still starts from the record in the envelope; otherwise returns
    /// `false`, and the change is planned anew.
    pub(crate) fn commit(&mut self, base: &impl Storage, steps: &[Step]) -> Result<bool> {
        let before = self.refresh_envelope(base)?.protectors.clone();
        let fits = |step: &Step| match step {
            Step::Replace(old, _) | Step::Remove(old) => before.contains(old),
            Step::Add(new) => {
                before.len() < PROTECTORS_MAX && before.iter().all(|record| record.name != new.name)
            }
            Step::AutoRotate(_) | Step::Order(_) => true,
        };
        let after = after(&before, steps);
        if !steps.iter().all(fits)
            || !self.leaves_a_writer(steps, &after)
            || self.protectors().settings.policy.check_change(&before, &after).is_err()
        {
            return Ok(false);
        }
        self.change_envelope(base, |envelope| {
            envelope.protectors = after;
            for step in steps {
                match step {
                    Step::AutoRotate(on) => envelope.manual_rotation = !on,
                    _ => envelope.rotated = now(),
                }
            }
            Ok(())
        })?;
        for step in steps {
            match step {
                Step::Replace(old, new) => self.protector_became(old, new),
                Step::Add(_) | Step::AutoRotate(_) | Step::Order(_) => {}
                Step::Remove(old) => self.removed(old),
            }
        }
        Ok(true)
    }

    /// Whether one of the protectors `after` the steps may write and opens the database here, if
    /// they may have taken the last such one.
    fn leaves_a_writer(&self, steps: &[Step], after: &[ProtectorRecord]) -> bool {
        let may_take_a_writer = |step: &Step| match step {
            // One that only gets another key has the rights that it had.
            Step::Replace(old, new) => {
                (old.read_only, old.not_after) != (new.read_only, new.not_after)
            }
            Step::Remove(_) => true,
            Step::Add(_) | Step::AutoRotate(_) | Step::Order(_) => false,
        };
        let opens =
            |record: &ProtectorRecord| may_write(record) && self.keyring().was_given_by(record);
        !steps.iter().any(may_take_a_writer) || after.iter().any(opens)
    }
}
