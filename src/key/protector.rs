//! From a protector's name to the provider and key behind it, and from records to the DEK.
//!
//! A provider named in an envelope is only looked up among those that the application registered;
//! the name is never executed, connected to or read as a path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::auditor::Auditor;
use super::envelope::ProtectorRecord;
use crate::audit::EventKind;
use crate::error::{Error, Result};
use crate::process::time::now;
use crate::provider::{
    Call, Context, Cost, Deadline, KeyProvider, ProviderError, Registered, WaitsFor, Wrapped,
};
use crate::secret::{Secret, fill_random};
use crate::settings::{Settings, split};

/// The providers known to one registration of the VFS, and how they are asked.
#[derive(Default, Clone)]
pub(crate) struct Protectors {
    providers: Arc<BTreeMap<String, Arc<Registered>>>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) auditor: Auditor,
}

impl Protectors {
    /// Adds a provider of the application's, which is the same as another if it is that object.
    pub(crate) fn add(&mut self, name: &str, provider: Arc<dyn KeyProvider>) {
        // Of the object alone: the address of its methods differs from crate to crate.
        let object = Arc::as_ptr(&provider).cast::<()>();
        let origin = format!("the application's object at {object:p}");
        self.add_of(name, origin, provider);
    }

    /// Adds a provider that was made of `origin`.
    pub(crate) fn add_of(&mut self, name: &str, origin: String, provider: Arc<dyn KeyProvider>) {
        let registered = Arc::new(Registered::new(name, origin, provider));
        Arc::make_mut(&mut self.providers).insert(name.to_owned(), registered);
    }

    /// The settings and providers in which `other` differs.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut out = self.settings.differences(&other.settings);
        let names: BTreeSet<&String> =
            self.providers.keys().chain(other.providers.keys()).collect();
        let origin = |all: &Self, name| all.providers.get(name).map(|one| one.origin().to_owned());
        out.extend(
            names.into_iter().filter(|name| origin(self, *name) != origin(other, *name)).map(
                |name| {
                    let of = |all| origin(all, name).unwrap_or_else(|| "none".to_owned());
                    format!("provider {name} ({}, not {})", of(self), of(other))
                },
            ),
        );
        out
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.providers.contains_key(name)
    }

    /// Asks them from now on as `settings` say.
    pub(crate) fn set(&mut self, settings: Settings) {
        self.auditor.log = settings.audit_log.clone().map(|log| (log, settings.audit));
        self.settings = Arc::new(settings);
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn settings_mut(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    /// Makes every provider drop its cached keys and passphrases.
    ///
    /// # Errors
    /// The first error of a provider; the others have dropped theirs.
    pub(crate) fn forget(&self) -> Result<(), ProviderError> {
        let deadline = Deadline::after(self.settings.access.time_out);
        // All of them, also behind one that did not.
        let forgotten = self.providers.values().map(|provider| provider.forget(deadline));
        let failed: Vec<_> = forgotten.filter_map(Result::err).collect();
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    /// The provider of `record`, if one of that name is set up here.
    pub(crate) fn provider_of(&self, record: &ProtectorRecord) -> Option<&Arc<Registered>> {
        self.providers.get(&record.provider)
    }

    /// Wraps `dek` under the protector called `name`, else the default one.
    ///
    /// A name is `provider:key`, or `key` for a key of the local keystore.
    pub(crate) fn wrap(
        &self,
        name: Option<&str>,
        dek: &Secret,
        context: &Context,
    ) -> Result<ProtectorRecord> {
        let name = name.unwrap_or(&self.settings.default_protector);
        let (provider, key_id) = split(name);
        self.settings.policy.check_provider(provider)?;
        let mut record = ProtectorRecord {
            name: name.to_owned(),
            provider: provider.to_owned(),
            key_id: key_id.to_owned(),
            wrapped: Wrapped::new("", "", Vec::new()),
            not_after: 0,
            read_only: false,
        };
        record.wrapped = self.wrap_for(&record, dek, context)?;
        Ok(record)
    }

    /// `dek` under the newest version of the key of `record`.
    pub(crate) fn wrap_for(
        &self,
        record: &ProtectorRecord,
        dek: &Secret,
        context: &Context,
    ) -> Result<Wrapped> {
        let provider = self.provider_of(record).ok_or_else(|| {
            ProviderError::not_here(format!(
                "key provider {0} is not set up: define [providers.{0}] in config.toml or use \
                 Options::provider",
                record.provider
            ))
        })?;
        self.insist(provider, |call| {
            let started = Instant::now();
            let answer = provider.wrap(call, &record.key_id, dek, context);
            let about = (EventKind::Wrap, record, &context.file_id);
            self.auditor.provider_call(about, call.request_id, started.elapsed(), &answer)?;
            Ok(answer?.value)
        })
    }

    /// `record` with `dek` under the newest version of its key; `None` if it is already. The new
    /// record has unwrapped the DEK once.
    pub(crate) fn rewrap(
        &self,
        record: &ProtectorRecord,
        dek: &Secret,
        context: &Context,
    ) -> Result<Option<ProtectorRecord>> {
        check_time(record)?;
        if self.newest_version(record)? == record.wrapped.key_version {
            return Ok(None);
        }
        let wrapped = self.wrap_for(record, dek, context)?;
        let new = ProtectorRecord { wrapped, ..record.clone() };
        self.prove(&new, dek, context)?;
        Ok(Some(new))
    }

    /// Refuses `record` if its provider does not unwrap it to `dek`.
    ///
    /// # Errors
    /// The provider's, or [`ProviderError::WrongKey`] if it gives another key.
    pub(crate) fn prove(
        &self,
        record: &ProtectorRecord,
        dek: &Secret,
        context: &Context,
    ) -> Result<(), ProviderError> {
        let (given, _) = self.unwrap(&[record], context)?;
        if given.is(dek) { Ok(()) } else { Err(does_not_come_back(record)) }
    }

    /// The newest version of the key of `record`.
    pub(crate) fn newest_version(&self, record: &ProtectorRecord) -> Result<String> {
        let provider = self.provider_of(record).ok_or_else(|| not_set_up(record))?;
        self.insist(provider, |call| Ok(provider.newest_version(call, &record.key_id)?.value))
    }

    /// The DEK from the first of `records` that unwraps, and that record. Providers that do not
    /// answer are tried again after all others have refused.
    ///
    /// # Errors
    /// The first record's.
    pub(crate) fn unwrap<'r>(
        &self,
        records: &[&'r ProtectorRecord],
        context: &Context,
    ) -> Result<(Secret, &'r ProtectorRecord), ProviderError> {
        let mut errors = vec![None; records.len()];
        let mut waited = Duration::ZERO;
        match self.unwrap_within(records, context, &mut waited, &mut errors).0 {
            Some(answer) => Ok(answer),
            None => Err(errors
                .into_iter()
                .flatten()
                .next()
                .unwrap_or_else(|| ProviderError::not_here("no protector can be tried"))),
        }
    }

    /// [`Protectors::unwrap`] while `waited`, the time spent on services with the pauses between
    /// their calls, is below the limit of one opening. Puts the errors into `errors`, one for each
    /// record, and returns the records that were never tried.
    pub(super) fn unwrap_within<'r>(
        &self,
        records: &[&'r ProtectorRecord],
        context: &Context,
        waited: &mut Duration,
        errors: &mut [Option<ProviderError>],
    ) -> (Option<(Secret, &'r ProtectorRecord)>, Vec<&'r ProtectorRecord>) {
        let mut late = Vec::new();
        let max = self.settings.access.open_time_out;
        for attempt in 0..self.settings.access.attempts.max(1) {
            let mut again = None;
            for (record, error) in records.iter().copied().zip(&mut *errors) {
                if attempt > 0 && !self.may_try_again(record, error.as_ref()) {
                    continue;
                }
                let is_service = self.waits_for(record) == Some(WaitsFor::Service);
                let left = max.saturating_sub(*waited);
                if is_service && left.is_zero() {
                    if attempt == 0 {
                        late.push(record);
                    }
                    continue;
                }
                let started = Instant::now();
                let answer = self.unwrap_once(record, context, left);
                if is_service {
                    *waited += started.elapsed();
                }
                match answer {
                    Ok(dek) => return (Some((dek, record)), late),
                    Err(refused) => {
                        if self.may_try_again(record, Some(&refused)) {
                            again = again.max(Some(refused.retry_after().unwrap_or_default()));
                        }
                        *error = Some(refused);
                    }
                }
            }
            let pause = again.map(|least| self.pause(attempt, least));
            match pause {
                Some(pause) if waited.saturating_add(pause) < max => {
                    std::thread::sleep(pause);
                    *waited += pause;
                }
                _ => break,
            }
        }
        (None, late)
    }

    /// The wait of the provider of `record`, if it may be asked.
    pub(crate) fn waits_for(&self, record: &ProtectorRecord) -> Option<WaitsFor> {
        self.provider_of(record).map(|provider| provider.waits_for())
    }

    /// The cost of the key derivation that unwrapping `record` takes, if any.
    ///
    /// # Errors
    /// The provider's, if it cannot tell.
    pub(crate) fn derivation(
        &self,
        record: &ProtectorRecord,
    ) -> Result<Option<Cost>, ProviderError> {
        let provider =
            self.provider_of(record).filter(|_| self.settings.policy.allows(&record.provider));
        let deadline = Deadline::after(self.settings.access.time_out);
        provider.map_or(Ok(None), |provider| {
            provider.derivation(deadline, &record.key_id, &record.wrapped)
        })
    }

    /// One attempt at one record; a service gets no more than the time `left`.
    fn unwrap_once(
        &self,
        record: &ProtectorRecord,
        context: &Context,
        left: Duration,
    ) -> Result<Secret, ProviderError> {
        // Whoever can write the file chose the provider.
        self.settings.policy.check_opening(&record.provider)?;
        let provider = self.provider_of(record).ok_or_else(|| not_set_up(record))?;
        let (call, started) = (self.call(provider, left), Instant::now());
        let answer = provider.unwrap(call, &record.key_id, &record.wrapped, context);
        let about = (EventKind::Unwrap, record, &context.file_id);
        self.auditor
            .provider_call(about, call.request_id, started.elapsed(), &answer)
            .map_err(|error| ProviderError::unreachable(error.to_string()))?;
        answer.map(|answer| answer.value)
    }

    fn may_try_again(&self, record: &ProtectorRecord, refused: Option<&ProviderError>) -> bool {
        refused.is_some_and(may_pass) && self.waits_for(record) == Some(WaitsFor::Service)
    }

    /// Repeats a call while the provider does not answer, for no longer than an opening may take.
    fn insist<T>(&self, provider: &Registered, call: impl Fn(Call) -> Result<T>) -> Result<T> {
        let (started, max) = (Instant::now(), self.settings.access.open_time_out);
        let left = || max.saturating_sub(started.elapsed());
        let mut attempt = 0;
        loop {
            let answer = call(self.call(provider, left()));
            let Err(Error::ProviderUnreachable(error)) = &answer else { return answer };
            let pause = self.pause(attempt, error.retry_after().unwrap_or_default());
            attempt += 1;
            let may_try_again = provider.waits_for() == WaitsFor::Service
                && attempt < self.settings.access.attempts
                && may_pass(error);
            if !may_try_again || pause >= left() {
                return answer;
            }
            std::thread::sleep(pause);
        }
    }

    /// A call that begins now; a service gets no more than the time `left`.
    fn call(&self, provider: &Registered, left: Duration) -> Call {
        let time_out = self.settings.access.time_out;
        Call::new(match provider.waits_for() {
            WaitsFor::Person => Deadline::NEVER,
            WaitsFor::Service => Deadline::after(time_out.min(left)),
            WaitsFor::Nothing => Deadline::after(time_out),
        })
    }

    /// The wait before the next attempt: twice as long each time, give or take a half, so that many
    /// clients of one provider do not come back at once, and at least as long as the provider asks.
    fn pause(&self, attempt: u32, least: Duration) -> Duration {
        let mut random = [0];
        let share = fill_random(&mut random).map_or(1.0, |()| 0.5 + f64::from(random[0]) / 255.0);
        let delay =
            self.settings.access.retry_delay.saturating_mul(1 << attempt.min(16)).min(PAUSE_MAX);
        delay.mul_f64(share).max(least)
    }
}

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether a provider may answer soon that said `error`.
fn may_pass(error: &ProviderError) -> bool {
    matches!(error, ProviderError::Unreachable(_))
        && error.retry_after().is_none_or(|time| time <= PAUSE_MAX)
}

/// Whether `record` is the protector that the caller named, or any will do.
pub(crate) fn matches(record: &ProtectorRecord, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|name| {
        record.name == name || (record.provider.as_str(), record.key_id.as_str()) == split(name)
    })
}

/// The names of `records` for a message, escaped: an attacker may have chosen them to steer a
/// terminal.
pub(crate) fn names_of(records: &[ProtectorRecord]) -> String {
    let names: Vec<String> =
        records.iter().map(|record| record.name.escape_debug().to_string()).collect();
    names.join(", ")
}

/// The error: none of `records` is called `wanted`.
pub(crate) fn not_wrapped_for(records: &[ProtectorRecord], wanted: Option<&str>) -> Error {
    Error::from(ProviderError::wrong_key(format!(
        "protector {} does not protect this database; {} does",
        wanted.unwrap_or_default().escape_debug(),
        names_of(records)
    )))
}

/// Whether a database could be written through `record` now.
pub(crate) fn may_write(record: &ProtectorRecord) -> bool {
    !record.read_only && check_time(record).is_ok()
}

/// Refuses a protector that has ended. Meaningful only for an authenticated record.
pub(crate) fn check_time(record: &ProtectorRecord) -> Result<(), ProviderError> {
    if record.not_after == 0 || record.not_after > now() {
        return Ok(());
    }
    Err(ProviderError::denied(format!(
        "protector {} has ended; the owner can remove it and add it again",
        record.name.escape_debug()
    )))
}

/// The error: a wrapped key does not unwrap.
fn does_not_come_back(record: &ProtectorRecord) -> ProviderError {
    ProviderError::wrong_key(format!(
        "provider {} does not give back the key that it wrapped: nothing was changed",
        record.provider
    ))
}

fn not_set_up(record: &ProtectorRecord) -> ProviderError {
    // Escaped: an attacker may have chosen the name to steer a terminal.
    let name = record.provider.escape_debug();
    ProviderError::not_here(format!(
        "the database needs key provider {name}, which is not set up here: define \
         [providers.{name}] in config.toml or use Options::provider"
    ))
}
