//! Adding, rotating and removing protectors.
//!
//! Each change takes these steps:
//! 1. The envelope is read, and the providers are asked, while no lock is held.
//! 2. Under a lock that excludes all other envelope writers, the envelope is read again. If a
//!    record that the change started from has changed, everything begins again.
//! 3. Both copies are written and synced.
//!
//! Every wrapped key is unwrapped once before it counts: a provider whose wrapped key does not
//! unwrap would make the database unreadable. A key of another party does not unwrap here. It is
//! added with a warning, and never left as the only one that may write.

use std::time::SystemTime;

use serde::Serialize;

use super::PATIENCE;
use super::status::{self, ProtectorStatus};
use crate::db::Database;
use crate::db::host::Host;
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::key::envelope::{Envelope, PROTECTORS_MAX, ProtectorRecord};
use crate::key::protector::{check_time, matches, may_write, names_of};
use crate::key::session::Session;
use crate::key::session::change::{Step, after};
use crate::process::time::{now, seconds, unless_never};
use crate::provider::{Context, ProviderError};
use crate::secret::Secret;
use crate::settings::identity::{FileId, wrong_file};

/// Attempts at a change while other connections make their own.
const ROUNDS: usize = 10;

/// Outcome of a change to the protectors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// Whether the envelope was written; `false` if it already was as requested.
    pub changed: bool,
    /// The protectors as they are now.
    pub protectors: Vec<ProtectorStatus>,
    /// Protectors that could not be changed.
    pub skipped: Vec<Skipped>,
    /// Warnings of the policy about this change.
    pub warnings: Vec<String>,
}

/// A protector that a change could not change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// The error of its provider.
    pub reason: String,
}

/// A protector to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct NewProtector {
    name: String,
    /// In Unix seconds; 0 for never.
    not_after: u64,
    read_only: bool,
}

impl NewProtector {
    /// The key called `name`: `provider:key`, or `key` for one of the local keystore.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), not_after: 0, read_only: false }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends it at this time, in whole seconds; `None` for never, which is the default.
    pub fn not_after(mut self, time: impl Into<Option<SystemTime>>) -> Self {
        // A time before 1970 is over, too.
        self.not_after = time.into().map_or(0, |time| seconds(time).max(1));
        self
    }

    /// An opening through it allows only reads. This software enforces that; other software need
    /// not.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    fn has_ended(&self) -> bool {
        self.not_after != 0 && self.not_after <= now()
    }
}

/// Which protectors are to be wrapped anew, and under which key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct RotateProtector {
    pub(crate) to: Option<String>,
    pub(crate) replace: Option<String>,
}

impl RotateProtector {
    /// Every protector whose provider has a newer version of its key, under that.
    pub fn all() -> Self {
        Self { to: None, replace: None }
    }

    /// The protector called `name`, under the newest version of its key. If there is none, that key
    /// takes the place of the first protector.
    pub fn to(name: impl Into<String>) -> Self {
        Self { to: Some(name.into()), replace: None }
    }

    /// The key takes the place of the protector called `name`.
    pub fn in_place_of(mut self, name: impl Into<String>) -> Self {
        self.replace = Some(name.into());
        self
    }
}

/// Re-wraps every protector whose provider has a newer version of its key.
pub(super) fn rotate_all(db: &mut Database<impl Host>) -> Result<Change> {
    edit(db, |session, envelope| {
        let mut first = None;
        let mut plan = Plan::default();
        let mut done = 0;
        for record in &envelope.protectors {
            match rewrapped(session, record) {
                Ok(new) => {
                    done += 1;
                    plan.steps.extend(new.map(|new| Step::Replace(record.clone(), new)));
                }
                Err(error) => {
                    let reason = error.to_string();
                    plan.skipped.push(Skipped { name: record.name.clone(), reason });
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            Some(error) if done == 0 => Err(error),
            _ => Ok(plan),
        }
    })
}

/// Re-wraps the protector called `to` if it exists, else replaces `replace`, or the first
/// protector, with a new one of that name. The new one keeps the limits of the replaced one.
pub(super) fn rotate_to(
    db: &mut Database<impl Host>,
    to: &str,
    replace: Option<&str>,
) -> Result<Change> {
    edit(db, |session, envelope| {
        let find =
            |name: &str| envelope.protectors.iter().find(|record| matches(record, Some(name)));
        if let Some(record) = find(to) {
            match replace.map(|name| (name, find(name))) {
                Some((name, None)) if !session.has_finished(name) => {
                    return Err(no_such(envelope, name));
                }
                Some((name, Some(old))) if old != record => {
                    return Err(Error::Usage(format!(
                        "protector {to} already exists and cannot replace {name}; remove {name} \
                         first"
                    )));
                }
                _ => {}
            }
            let step = rewrapped(session, record)?.map(|new| Step::Replace(record.clone(), new));
            return Ok(Plan::of(step));
        }
        let old = match replace {
            Some(name) => find(name).ok_or_else(|| no_such(envelope, name))?,
            None => envelope.protectors.first().ok_or_else(|| no_such(envelope, to))?,
        };
        // Whose time is over is not to get more of it, nor are its limits to be lost.
        check_time(old)?;
        let new =
            NewProtector::new(to).read_only(old.read_only).not_after(unless_never(old.not_after));
        Ok(Plan::of(Some(Step::Replace(old.clone(), wrapped(session, &new)?))))
    })
}

pub(super) fn add(db: &mut Database<impl Host>, new: &NewProtector) -> Result<Change> {
    edit(db, |session, envelope| {
        let there = envelope.protectors.iter().find(|record| matches(record, Some(&new.name)));
        match there {
            Some(record)
                if (record.not_after, record.read_only) == (new.not_after, new.read_only) =>
            {
                Ok(Plan::default())
            }
            Some(_) => Err(Error::Usage(format!(
                "protector {} exists with other rights; remove it first",
                new.name
            ))),
            None if envelope.protectors.len() >= PROTECTORS_MAX => Err(Error::Usage(format!(
                "the database has {PROTECTORS_MAX} protectors, and cannot have more: remove one first"
            ))),
            None if new.has_ended() => Err(Error::Usage(format!(
                "protector {} could open nothing: its end is in the past",
                new.name
            ))),
            None => {
                let (record, warning) = wrapped_for_party(session, new)?;
                let warnings = warning.into_iter().collect();
                Ok(Plan { warnings, ..Plan::of(Some(Step::Add(record))) })
            }
        }
    })
}

pub(super) fn remove(db: &mut Database<impl Host>, name: &str) -> Result<Change> {
    edit(db, |session, envelope| {
        let Some(record) = envelope.protectors.iter().find(|record| matches(record, Some(name)))
        else {
            if session.has_finished(name) {
                let words = "finished an interrupted removal";
                return Ok(Plan { warnings: vec![format!("{name}: {words}")], ..Plan::default() });
            }
            // SQLite may prepare a PRAGMA again after it was run.
            return if session.has_removed(name) {
                Ok(Plan::default())
            } else {
                Err(no_such(envelope, name))
            };
        };
        if envelope.protectors.len() == 1 {
            return Err(Error::Usage(format!("{name} is the last protector; add another first")));
        }
        let rest = envelope.protectors.iter().filter(|other| *other != record && may_write(other));
        let rest: Vec<&ProtectorRecord> = rest.collect();
        if rest.is_empty() {
            return Err(Error::Usage(format!(
                "{name} is the last protector that may write and has not ended; add another first"
            )));
        }
        check_opens(session, &rest)?;
        Ok(Plan::of(Some(Step::Remove(record.clone()))))
    })
}

/// Refuses to leave only `writers` that do not open the database here. One that has given the keys
/// to this process does.
fn check_opens(session: &Session, writers: &[&ProtectorRecord]) -> Result<()> {
    let keyring = session.keyring();
    if writers.iter().any(|record| keyring.was_given_by(record)) {
        return Ok(());
    }
    let (dek, context) = keyring.dek()?;
    let mut refusals = Vec::new();
    for record in writers {
        match session.protectors().prove(record, &dek, &context) {
            Ok(()) => {
                keyring.gave(record);
                return Ok(());
            }
            Err(error) => refusals.push(format!("{}: {error}", record.name.escape_debug())),
        }
    }
    Err(Error::Usage(format!(
        "no protector would be left that opens the database here and may write; {}; add another \
         one first",
        refusals.join("; ")
    )))
}

pub(super) fn auto_rotate(db: &mut Database<impl Host>, on: bool) -> Result<Change> {
    edit(db, |_, envelope| {
        let is_on = !envelope.manual_rotation;
        Ok(Plan::of((is_on != on).then_some(Step::AutoRotate(on))))
    })
}

/// Makes `wanted` the protectors of the database, each wrapped anew, in this order and no others.
pub(super) fn set(db: &mut Database<impl Host>, wanted: &[NewProtector]) -> Result<Change> {
    edit(db, |session, envelope| {
        if wanted.is_empty() || wanted.len() > PROTECTORS_MAX {
            return Err(Error::Usage(format!("a database has 1 to {PROTECTORS_MAX} protectors")));
        }
        if !wanted.iter().any(|new| !new.read_only && !new.has_ended()) {
            return Err(Error::Usage(
                "none of these protectors may write, or the ones that may have ended".into(),
            ));
        }
        let (mut steps, mut warnings) = (Vec::new(), Vec::new());
        for old in &envelope.protectors {
            if wanted.iter().all(|new| new.name != old.name) {
                steps.push(Step::Remove(old.clone()));
            }
        }
        for new in wanted {
            let old = envelope.protectors.iter().find(|old| old.name == new.name);
            old.map_or(Ok(()), |old| refuse_other_secret(session, old))?;
            let (record, warning) = wrapped_for_party(session, new)?;
            warnings.extend(warning);
            steps.push(match old {
                Some(old) => Step::Replace(old.clone(), record),
                None => Step::Add(record),
            });
        }
        steps.push(Step::Order(wanted.iter().map(|new| new.name.clone()).collect()));
        let after = after(&envelope.protectors, &steps);
        let writers: Vec<&ProtectorRecord> = after.iter().filter(|new| may_write(new)).collect();
        check_opens(session, &writers)?;
        Ok(Plan { steps, warnings, ..Plan::default() })
    })
}

#[derive(Default)]
struct Plan {
    steps: Vec<Step>,
    skipped: Vec<Skipped>,
    warnings: Vec<String>,
}

impl Plan {
    fn of(step: Option<Step>) -> Self {
        Self { steps: step.into_iter().collect(), ..Self::default() }
    }
}

/// Plans a change without a lock and commits it under one; plans again if the plan no longer fits.
fn edit(
    db: &mut Database<impl Host>,
    plan: impl Fn(&Session, &Envelope) -> Result<Plan>,
) -> Result<Change> {
    for _ in 0..ROUNDS {
        let (session, host) = db.keys()?;
        session.settle_protector(host)?;
        db.mend(PATIENCE)?;
        let (session, host) = db.keys()?;
        let envelope = session.refresh_envelope(host)?.clone();
        let planned = session.check_writable().and_then(|()| plan(session, &envelope));
        let planned = planned.and_then(|plan| allowed(session, &envelope, plan));
        let planned = planned.inspect_err(|error| session.refused(error));
        let Plan { steps, skipped, warnings } = planned?;
        if steps.is_empty() {
            let protectors = status::protectors(session, &envelope);
            return Ok(Change { changed: false, protectors, skipped, warnings });
        }
        // Recorded first, so that a change that cannot be recorded is not made.
        session.record(&steps, "begins", &Ok(true))?;
        let done = db.exclusively(PATIENCE, |main, host| main.session_mut()?.commit(host, &steps));
        let (session, _) = db.keys()?;
        let done = done.and_then(|done| session.finished(&steps, done));
        let _ = session.record(&steps, "ends", &done);
        if done? {
            // From memory: a read of the disk could fail although the change is made.
            let protectors = status::protectors(session, session.envelope());
            return Ok(Change { changed: true, protectors, skipped, warnings });
        }
    }
    Err(Error::Busy("protectors keep changing concurrently; retry".into()))
}

/// `plan`, if the policy allows it, and perhaps with a warning.
fn allowed(session: &Session, envelope: &Envelope, mut plan: Plan) -> Result<Plan> {
    let before = &envelope.protectors;
    let warning =
        session.protectors().settings.policy.check_change(before, &after(before, &plan.steps))?;
    plan.warnings.extend(warning);
    Ok(plan)
}

/// The current DEK wrapped by the protector `new`, unwrapped once as a test.
fn wrapped(session: &Session, new: &NewProtector) -> Result<ProtectorRecord> {
    match wrap(session, new)? {
        (record, None) => Ok(record),
        (_, Some(refusal)) => Err(refusal.into()),
    }
}

/// As [`wrapped`]. A key that another party holds wraps but does not unwrap here: that is a
/// warning.
fn wrapped_for_party(
    session: &Session,
    new: &NewProtector,
) -> Result<(ProtectorRecord, Option<String>)> {
    let (record, refusal) = wrap(session, new)?;
    let warning = match refusal {
        None => None,
        Some(refusal @ (ProviderError::NotHere(_) | ProviderError::Denied(_))) => Some(format!(
            "protector {} added untested: its key does not unwrap here ({refusal}); open the \
             database through it where it does",
            record.name.escape_debug()
        )),
        Some(refusal) => return Err(refusal.into()),
    };
    Ok((record, warning))
}

/// The current DEK wrapped by the protector `new`, and the provider's error if it did not unwrap.
fn wrap(session: &Session, new: &NewProtector) -> Result<(ProtectorRecord, Option<ProviderError>)> {
    let keyring = session.keyring();
    let (dek, context) = keyring.dek()?;
    let mut record = session.protectors().wrap(Some(&new.name), &dek, &context)?;
    let id = FileId(context.file_id);
    if let Some(others) =
        session.protectors().settings.pins.others(&record.provider, &record.key_id, id)
    {
        return Err(wrong_file(&id.to_string(), others));
    }
    record.not_after = new.not_after;
    record.read_only = new.read_only;
    let refusal = session.protectors().prove(&record, &dek, &context).err();
    if refusal.is_none() {
        keyring.gave(&record);
    }
    Ok((record, refusal))
}

/// `record` under the newest version of its key; `None` if it is already.
fn rewrapped(session: &Session, record: &ProtectorRecord) -> Result<Option<ProtectorRecord>> {
    let keyring = session.keyring();
    let (dek, context) = keyring.dek()?;
    let new = session.protectors().rewrap(record, &dek, &context)?;
    new.iter().for_each(|new| keyring.gave(new));
    Ok(new)
}

/// Refuses to re-wrap `record` if its provider now has another secret than the one that the record
/// was created with: the old secret would no longer open the database. A record that does not
/// unwrap here, such as one of another party's key, passes.
fn refuse_other_secret(session: &Session, record: &ProtectorRecord) -> Result<()> {
    let (dek, context) = keys(session)?;
    match session.protectors().unwrap(&[record], &context) {
        Err(ProviderError::WrongKey(words)) => Err(ProviderError::wrong_key(format!(
            "protector {} was created with a different secret: {words}",
            record.name.escape_debug()
        ))
        .into()),
        Ok((given, _)) if !given.is(&dek) => Err(ProviderError::wrong_key(format!(
            "protector {} gives another key than the one in use",
            record.name.escape_debug()
        ))
        .into()),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// [`refuse_other_secret`] for the protector called `name`.
pub(super) fn check_secret(session: &mut Session, base: &impl Storage, name: &str) -> Result<()> {
    let envelope = session.refresh_envelope(base)?.clone();
    let record = envelope.protectors.iter().find(|record| record.name == name);
    refuse_other_secret(session, record.ok_or_else(|| no_such(&envelope, name))?)
}

/// Refuses a copy without the protectors called `without`, or warns, if the policy requires more
/// than are left.
pub(super) fn check_copy(
    session: &mut Session,
    base: &impl Storage,
    without: &[String],
) -> Result<Option<String>> {
    let before = session.refresh_envelope(base)?.protectors.clone();
    let mut after = before.clone();
    after.retain(|record| !without.contains(&record.name));
    session.protectors().settings.policy.check_change(&before, &after)
}

pub(super) fn keys(session: &Session) -> Result<(Secret, Context)> {
    session.keyring().dek()
}

fn no_such(envelope: &Envelope, name: &str) -> Error {
    Error::Usage(format!(
        "there is no protector {}; there is {}",
        name.escape_debug(),
        names_of(&envelope.protectors)
    ))
}
