//! From a protector's name to the provider and key behind it, and from records to the DEK.
//!
//! What the envelope names is looked up among the providers that the application registered; it is
//! never executed, connected to or read as a path.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::access::AccessPolicy;
use super::auditor::Auditor;
use super::envelope::ProtectorRecord;
use super::identity::Pins;
use super::policy::Policy;
use crate::audit::EventKind;
use crate::error::{Error, Result};
use crate::provider::{Context, Cost, DEFAULT_KEY, KeyProvider, ProviderError, WaitsFor, Wrapped};
use crate::secret::{Secret, fill_random};

/// Name of the embedded provider, the local keystore.
pub(crate) const KEYSTORE: &str = "keystore";

/// The providers known to one registration of the VFS, and how they are asked.
#[derive(Default, Clone)]
pub(crate) struct Protectors {
    providers: Arc<BTreeMap<String, Arc<dyn KeyProvider>>>,
    default: Option<Arc<str>>,
    pub(crate) access: AccessPolicy,
    pub(crate) rotation: Rotation,
    pub(crate) auditor: Auditor,
    pub(crate) policy: Arc<Policy>,
    pub(crate) pins: Arc<Pins>,
}

/// How often a newer version of a protector's key is looked for; `None` for never.
#[derive(Clone, Copy)]
pub(crate) struct Rotation(pub(crate) Option<Duration>);

impl Default for Rotation {
    fn default() -> Self {
        Self(Some(Duration::from_secs(24 * 3600)))
    }
}

impl Protectors {
    pub(crate) fn add(&mut self, name: &str, provider: Arc<dyn KeyProvider>) {
        Arc::make_mut(&mut self.providers).insert(name.to_owned(), provider);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.providers.contains_key(name)
    }

    pub(crate) fn set_default(&mut self, name: &str) {
        self.default = Some(name.into());
    }

    /// Makes every provider drop what it keeps of keys and passphrases.
    pub(crate) fn forget(&self) {
        self.providers.values().for_each(|provider| provider.forget());
    }

    /// The provider of `record`, if one of that name is set up here.
    pub(crate) fn provider_of(&self, record: &ProtectorRecord) -> Option<&Arc<dyn KeyProvider>> {
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
        let name = name.or(self.default.as_deref()).unwrap_or(DEFAULT_KEY);
        let (provider, key_id) = split(name);
        self.policy.check_provider(provider)?;
        let mut record = ProtectorRecord {
            name: name.to_owned(),
            provider: provider.to_owned(),
            key_id: key_id.to_owned(),
            wrapped: Wrapped {
                key_version: String::new(),
                mechanism: String::new(),
                blob: Vec::new(),
            },
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
            Error::NoKey(format!(
                "no key provider called {0} is set up: say what it is under [providers.{0}] in \
                 config.toml, or with Options::provider",
                record.provider
            ))
        })?;
        let (key_id, file_id, context) = (record.key_id.clone(), context.file_id, context.clone());
        let (dek, started) = (Arc::new(dek.duplicate()), Instant::now());
        let answer = self.insist(provider, move |provider| provider.wrap(&key_id, &dek, &context));
        let (kind, took) = (EventKind::Wrap, started.elapsed());
        self.auditor.provider_call(kind, record, &file_id, took, &answer)?;
        Ok(answer?)
    }

    /// `record` with `dek` under the newest version of its key; `None` where it is already. It has
    /// given the DEK back once.
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

    /// Refuses `record` where its provider does not give `dek` back.
    ///
    /// # Errors
    /// The provider's, or [`ProviderError::WrongKey`] where it gives another key.
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
    pub(crate) fn newest_version(&self, record: &ProtectorRecord) -> Result<String, ProviderError> {
        let provider = self.provider_of(record).ok_or_else(|| not_set_up(record))?;
        let key_id = record.key_id.clone();
        self.insist(provider, move |provider| provider.newest_version(&key_id))
    }

    /// The DEK from the first of `records` that can be had, and which that is. Those that do not
    /// answer are tried again when all others have refused.
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
                .unwrap_or_else(|| ProviderError::NotHere("no protector can be tried".into()))),
        }
    }

    /// [`Protectors::unwrap`] while `waited`, the time spent on services, is below the limit of one
    /// opening. Puts the errors into `errors`, one for each record, and answers which records were
    /// never tried.
    pub(super) fn unwrap_within<'r>(
        &self,
        records: &[&'r ProtectorRecord],
        context: &Context,
        waited: &mut Duration,
        errors: &mut [Option<ProviderError>],
    ) -> (Option<(Secret, &'r ProtectorRecord)>, Vec<&'r ProtectorRecord>) {
        let mut late = Vec::new();
        for attempt in 0..self.access.attempts.max(1) {
            let mut again = false;
            for (record, error) in records.iter().copied().zip(&mut *errors) {
                if attempt > 0 && !self.may_try_again(record, error.as_ref()) {
                    continue;
                }
                let is_service = self.waits_for(record) == Some(WaitsFor::Service);
                if is_service && *waited >= self.access.open_time_out {
                    if attempt == 0 {
                        late.push(record);
                    }
                    continue;
                }
                let started = Instant::now();
                let answer = self.unwrap_once(record, context);
                if is_service {
                    *waited += started.elapsed();
                }
                match answer {
                    Ok(dek) => return (Some((dek, record)), late),
                    Err(refused) => {
                        again |= self.may_try_again(record, Some(&refused));
                        *error = Some(refused);
                    }
                }
            }
            if !again || *waited >= self.access.open_time_out {
                break;
            }
            self.pause(attempt);
        }
        (None, late)
    }

    /// What the provider of `record`, if it may be asked, waits for.
    pub(crate) fn waits_for(&self, record: &ProtectorRecord) -> Option<WaitsFor> {
        self.provider_of(record).map(|provider| provider.waits_for())
    }

    /// What deriving a key for `record` would cost, where that is what unwrapping it takes.
    pub(crate) fn derivation(&self, record: &ProtectorRecord) -> Option<Cost> {
        let provider = self.provider_of(record).filter(|_| self.policy.allows(&record.provider))?;
        provider.derivation(&record.key_id, &record.wrapped)
    }

    /// One attempt at one record.
    pub(crate) fn unwrap_once(
        &self,
        record: &ProtectorRecord,
        context: &Context,
    ) -> Result<Secret, ProviderError> {
        // Whoever can write the file chose the provider.
        self.policy.check_opening(&record.provider)?;
        let provider = self.provider_of(record).ok_or_else(|| not_set_up(record))?;
        let (key_id, wrapped) = (record.key_id.clone(), record.wrapped.clone());
        let (file_id, context, started) = (context.file_id, context.clone(), Instant::now());
        let answer =
            self.call(provider, move |provider| provider.unwrap(&key_id, &wrapped, &context));
        let (kind, took) = (EventKind::Unwrap, started.elapsed());
        self.auditor
            .provider_call(kind, record, &file_id, took, &answer)
            .map_err(|error| ProviderError::Unreachable(error.to_string()))?;
        answer
    }

    fn may_try_again(&self, record: &ProtectorRecord, refused: Option<&ProviderError>) -> bool {
        matches!(refused, Some(ProviderError::Unreachable(_)))
            && self.waits_for(record) == Some(WaitsFor::Service)
    }

    /// A call that is made again while the provider does not answer.
    fn insist<T: Send + 'static>(
        &self,
        provider: &Arc<dyn KeyProvider>,
        work: impl Fn(&dyn KeyProvider) -> Result<T, ProviderError> + Clone + Send + 'static,
    ) -> Result<T, ProviderError> {
        let mut attempt = 0;
        loop {
            let answer = self.call(provider, work.clone());
            attempt += 1;
            let again = provider.waits_for() == WaitsFor::Service
                && attempt < self.access.attempts
                && matches!(answer, Err(ProviderError::Unreachable(_)));
            if !again {
                return answer;
            }
            self.pause(attempt - 1);
        }
    }

    /// One call, for as long as the policy allows. What comes later is dropped, and with it wiped.
    fn call<T: Send + 'static>(
        &self,
        provider: &Arc<dyn KeyProvider>,
        work: impl FnOnce(&dyn KeyProvider) -> Result<T, ProviderError> + Send + 'static,
    ) -> Result<T, ProviderError> {
        if provider.waits_for() != WaitsFor::Service {
            return work(provider.as_ref());
        }
        let (answer, answered) = mpsc::sync_channel(1);
        let provider = Arc::clone(provider);
        std::thread::Builder::new()
            .name("sqlite-tde provider".into())
            .spawn(move || _ = answer.send(work(provider.as_ref())))
            .map_err(|error| ProviderError::Unreachable(format!("no thread to ask it: {error}")))?;
        match answered.recv_timeout(self.access.time_out) {
            Ok(answer) => answer,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(ProviderError::Unreachable(format!(
                "the provider did not answer within {:?}",
                self.access.time_out
            ))),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(ProviderError::Unreachable("the provider panicked".into()))
            }
        }
    }

    /// Waits before the next attempt: twice as long each time, give or take a half, so that many
    /// clients of one provider do not come back at once.
    fn pause(&self, attempt: u32) {
        let mut random = [0];
        let share = fill_random(&mut random).map_or(1.0, |()| 0.5 + f64::from(random[0]) / 255.0);
        let longest = Duration::from_secs(10);
        let delay = self.access.retry_delay.saturating_mul(1 << attempt.min(16)).min(longest);
        std::thread::sleep(delay.mul_f64(share));
    }
}

/// Whether `record` is the protector that the caller named, or any will do.
pub(crate) fn matches(record: &ProtectorRecord, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|name| {
        record.name == name || (record.provider.as_str(), record.key_id.as_str()) == split(name)
    })
}

/// The names of `records` for a message. Whoever can write the file chose them: a terminal must
/// not obey them.
pub(crate) fn names_of(records: &[ProtectorRecord]) -> String {
    let names: Vec<String> =
        records.iter().map(|record| record.name.escape_debug().to_string()).collect();
    names.join(", ")
}

/// That none of `records` is called `wanted`.
pub(crate) fn not_wrapped_for(records: &[ProtectorRecord], wanted: Option<&str>) -> Error {
    Error::WrongKey(format!(
        "protector {} does not protect this database; {} does",
        wanted.unwrap_or_default().escape_debug(),
        names_of(records)
    ))
}

/// Whether a database could be written through `record` now.
pub(crate) fn may_write(record: &ProtectorRecord) -> bool {
    !record.read_only && check_time(record).is_ok()
}

/// Refuses a protector whose time is over. It says something only of a record that was
/// authenticated.
pub(crate) fn check_time(record: &ProtectorRecord) -> Result<(), ProviderError> {
    if record.not_after == 0 || record.not_after > now() {
        return Ok(());
    }
    Err(ProviderError::Denied(format!(
        "protector {} ended: whoever owns the database can remove it and add it again",
        record.name.escape_debug()
    )))
}

/// That a wrapped key is worth nothing.
fn does_not_come_back(record: &ProtectorRecord) -> ProviderError {
    ProviderError::WrongKey(format!(
        "provider {} does not give back the key that it wrapped: nothing was changed",
        record.provider
    ))
}

fn not_set_up(record: &ProtectorRecord) -> ProviderError {
    // Whoever can write the file chose the name: a terminal must not obey it.
    let name = record.provider.escape_debug();
    ProviderError::NotHere(format!(
        "the database is protected by provider {name}, which is not set up here: say what it is under \
         [providers.{name}] in config.toml, or with Options::provider"
    ))
}

/// Provider and key of the protector called `name`.
pub(crate) fn split(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or((KEYSTORE, name))
}

/// The time in Unix seconds; 0 for a clock that is set before.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
