//! From the copies of an envelope to the keys: which providers are asked, the bounds of their cost,
//! and which copy is in force. Until a provider has given the DEK nothing in a copy is
//! authenticated: an attacker may have written it.
//!
//! Rules:
//! 1. A provider is asked once for a record, however many copies have it.
//! 2. Of the records for which a key would be derived (Argon2id), one a provider is tried in a
//!    copy, unless the caller names a protector; all derivations together stay within
//!    [`AccessPolicy::derivation`]. Calls of services end when [`AccessPolicy::open_time_out`] is
//!    used up.
//! 3. The newest copy that the DEK authenticates is the envelope in force. A protector that only an
//!    older copy has was removed: a crash kept the older copy from being overwritten.
//! 4. Keys that are in this process already serve a record only if that very record gave them. They
//!    refuse a copy that their holder did not write, and no provider is asked then. An open
//!    database widens no rights: if an earlier record has other rights than the one that gave the
//!    keys, the earlier ones are asked first, as they would be without these keys.
//! 5. The file id is that of the DEK, and one that the caller expects. Before that is proven, no
//!    keyring is shared under it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::envelope::{Envelope, ProtectorRecord, Unverified};
use super::keyring::{Dek, FIRST_VERSION, Keyring, cached};
use super::protector::{Protectors, check_time, matches, names_of, not_wrapped_for};
use crate::error::{Error, Result};
use crate::provider::{Context, Cost, ProviderError};
use crate::secret::Secret;
use crate::settings::AccessPolicy;
use crate::settings::identity::{FileId, wrong_file};

/// An existing database whose keys were found.
pub(crate) struct Opened {
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) envelope: Arc<Envelope>,
    /// Name of the protector that gave the keys.
    pub(crate) protector_name: String,
}

/// The opening of one database. It may read the file several times.
pub(crate) struct Opening<'a> {
    protectors: &'a Protectors,
    /// The only protector to try.
    wanted: Option<&'a str>,
    expected: Option<FileId>,
    asked: Vec<Asked>,
    spent: Spent,
}

/// A provider's answer to a record.
struct Asked {
    record: ProtectorRecord,
    context: Context,
    /// A key was derived for it.
    derived: bool,
    answer: Result<Secret, ProviderError>,
}

/// The cost of an opening so far.
#[derive(Default)]
pub(crate) struct Spent {
    /// Kibibytes filled by derivations.
    work_kib: u64,
    /// Waiting for services.
    waited: Duration,
}

impl Spent {
    /// Whether `cost` fits into the remaining budget, from which it is then taken.
    pub(crate) fn take(&mut self, cost: Cost, policy: &AccessPolicy) -> bool {
        let work_kib = self.work_kib.saturating_add(cost.work_kib());
        let budget = policy.derivation;
        let fits = cost.memory_kib <= budget.memory_kib && work_kib <= budget.work_kib;
        if fits {
            self.work_kib = work_kib;
        }
        fits
    }
}

impl<'a> Opening<'a> {
    pub(crate) fn new(
        protectors: &'a Protectors,
        wanted: Option<&'a str>,
        expected: Option<FileId>,
    ) -> Self {
        Self { protectors, wanted, expected, asked: Vec::new(), spent: Spent::default() }
    }

    /// The keyring, from the cache or from a provider, and the envelope in force. `copies` are
    /// tried in order; if none opens, the first error is returned.
    pub(crate) fn open(&mut self, copies: &[Unverified]) -> Result<Opened> {
        let mut first = None;
        for (number, copy) in copies.iter().enumerate() {
            match self.open_copy(copy, &copies[..number]) {
                Ok(found) => return Ok(found),
                Err(error) => _ = first.get_or_insert(error),
            }
        }
        Err(first.unwrap_or_else(|| Error::EnvelopeDamaged("no copy is left".into())))
    }

    fn open_copy(&mut self, copy: &Unverified, newer: &[Unverified]) -> Result<Opened> {
        let file_id = copy.file_id();
        if let Some(expected) = self.expected.filter(|expected| expected.0 != file_id) {
            return Err(wrong_file(&FileId(file_id).to_string(), &[expected]));
        }
        let (version, suite) = copy.current();
        self.protectors.settings.policy.check_cipher(suite)?;
        let wanted = |record: &&ProtectorRecord| matches(record, self.wanted);
        let mut records: Vec<&ProtectorRecord> = copy.protectors().iter().filter(wanted).collect();
        if records.is_empty() {
            return Err(not_wrapped_for(copy.protectors(), self.wanted));
        }
        // Protectors that ended come last. Their end is certain only behind the MAC.
        records.sort_by_key(|record| check_time(record).is_err());
        let mut others = None;
        records.retain(|record| {
            let pinned = self.protectors.settings.pins.others(
                &record.provider,
                &record.key_id,
                FileId(file_id),
            );
            others = others.or(pinned);
            pinned.is_none()
        });
        if let (true, Some(others)) = (records.is_empty(), others) {
            return Err(wrong_file(&FileId(file_id).to_string(), others));
        }
        let keyring = cached(&file_id).unwrap_or_else(|| Keyring::locked(file_id));
        // Keys in this process verify the copy before any provider is asked for it.
        let verified = match keyring.verify(copy) {
            Ok(envelope) => Some(envelope),
            Err(Error::Inaccessible { .. }) => None,
            Err(error) => return Err(error),
        };
        let known = |record: &&&ProtectorRecord| {
            self.protectors.settings.policy.allows(&record.provider) && keyring.was_given_by(record)
        };
        let context = Context { file_id, dek_version: version };
        let mut given = None;
        if let (Some(envelope), Some(at)) = (verified, records.iter().position(|r| known(&r))) {
            let (record, earlier) = (records[at], &records[..at]);
            if earlier.iter().any(|other| other.read_only != record.read_only) {
                given = self.ask(earlier, &context).ok();
            }
            if given.is_none() {
                check_protector(&envelope, &record.name)?;
                for newer in newer {
                    match keyring.verify(newer) {
                        Ok(newer) => return Err(replaced(&newer, &record.name)),
                        Err(error @ Error::Inaccessible { .. }) => return Err(error),
                        Err(_) => {}
                    }
                }
                let protector_name = record.name.clone();
                return Ok(Opened { keyring, envelope, protector_name });
            }
        }
        let (key, record) = match given {
            Some(given) => given,
            None => self.ask(&records, &context)?,
        };
        let dek = Dek { version, suite, key };
        // Another version is refused behind the MAC: the id could not be proven from its key.
        if version == FIRST_VERSION && FileId::of(&dek.key).0 != file_id {
            return Err(Error::EnvelopeDamaged("the file id is not that of its key".into()));
        }
        let protector_name = record.name.clone();
        let (keyring, envelope) = keyring.unlock(copy, newer, dek, record)?;
        Ok(Opened { keyring, envelope, protector_name })
    }

    /// The DEK from the first of `records` that gives it, and that record.
    fn ask<'r>(
        &mut self,
        records: &[&'r ProtectorRecord],
        context: &Context,
    ) -> Result<(Secret, &'r ProtectorRecord), ProviderError> {
        let (mut first, mut plan, mut left) = (None, Vec::new(), Vec::new());
        let mut derives = BTreeSet::new();
        for &record in records {
            let same = |asked: &&Asked| asked.is(record, context);
            if let Some(asked) = self.asked.iter().find(same) {
                if asked.derived {
                    derives.insert(record.provider.as_str());
                }
                match &asked.answer {
                    // Another copy that has this record failed otherwise.
                    Ok(dek) => return Ok((dek.duplicate(), record)),
                    Err(error) => _ = first.get_or_insert_with(|| error.clone()),
                }
                continue;
            }
            let cost = match self.protectors.derivation(record) {
                Ok(Some(cost)) => cost,
                Ok(None) => {
                    plan.push((record, false));
                    continue;
                }
                Err(error) => {
                    first.get_or_insert(error);
                    continue;
                }
            };
            let is_first = derives.insert(record.provider.as_str());
            if self.wanted.is_none() && !is_first {
                left.push(format!("{} (one of a provider is)", record.name.escape_debug()));
            } else if self.spent.take(cost, &self.protectors.settings.access) {
                plan.push((record, true));
            } else {
                left.push(format!(
                    "{} (needs {cost}; raise [access] derivation in config.toml)",
                    record.name.escape_debug()
                ));
            }
        }
        let (plan, derived): (Vec<_>, Vec<_>) = plan.into_iter().unzip();
        let mut errors = vec![None; plan.len()];
        let (answer, late) =
            self.protectors.unwrap_within(&plan, context, &mut self.spent.waited, &mut errors);
        let late = late.iter().map(|record| {
            let spent = self.protectors.settings.access.open_time_out;
            format!("{} (no time was left of {spent:?})", record.name.escape_debug())
        });
        left.extend(late);
        for ((record, derived), error) in plan.iter().zip(derived).zip(errors) {
            let given = answer.as_ref().filter(|(_, from)| std::ptr::eq(*from, *record));
            let answer = match (given, error) {
                (Some((dek, _)), _) => Ok(dek.duplicate()),
                (None, Some(error)) => {
                    first.get_or_insert_with(|| error.clone());
                    Err(error)
                }
                (None, None) => continue,
            };
            let (record, context) = ((*record).clone(), context.clone());
            self.asked.push(Asked { record, context, derived, answer });
        }
        if let Some(answer) = answer {
            return Ok(answer);
        }
        let error = first.unwrap_or_else(|| {
            ProviderError::Denied("every protector exceeds the derivation budget".into())
        });
        Err(if left.is_empty() { error } else { error.and(&not_tried(&left)) })
    }
}

impl Asked {
    fn is(&self, record: &ProtectorRecord, context: &Context) -> bool {
        self.context == *context && self.record.is_same_wrap(record)
    }
}

fn not_tried(left: &[String]) -> String {
    format!(
        "not tried: {}; tde_protector=NAME in the URI, or --through NAME, names the one to try",
        left.join(", ")
    )
}

/// The error: the protector `protector_name` is only in a copy older than the envelope in force.
pub(super) fn replaced(envelope: &Envelope, protector_name: &str) -> Error {
    Error::from(ProviderError::wrong_key(format!(
        "protector {} was removed or replaced; current protectors: {}",
        protector_name.escape_debug(),
        names_of(&envelope.protectors)
    )))
}

/// Refuses keys from a protector of `envelope` that ended.
pub(super) fn check_protector(envelope: &Envelope, name: &str) -> Result<()> {
    let record = envelope.protectors.iter().find(|record| record.name == name);
    Ok(record.map_or(Ok(()), check_time)?)
}

#[cfg(test)]
mod tests;
