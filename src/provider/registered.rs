//! A provider under its registered name, and the only path to its methods.
//!
//! Foreign code runs on a thread of the [`pool`], even to tell its kind or to be dropped: the
//! calling thread may be inside SQLite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::runs::{Ours, Runs};
use super::{
    Answer, Context, Cost, Deadline, KeyProvider, ProviderError, RequestId, UnwrapRequest,
    VersionRequest, WaitsFor, WrapRequest, Wrapped,
};
use crate::process::pool::{self, Failure};
use crate::secret::Secret;

/// A provider that was registered.
pub(crate) struct Registered {
    name: String,
    /// What it was made of: two of the same origin answer alike.
    origin: String,
    /// Tells its calls from those of others in the pool.
    owner: u64,
    kind: String,
    /// Its answers at registration.
    waits_for: WaitsFor,
    runs: Runs,
    /// Taken when this is dropped.
    provider: Option<Arc<dyn KeyProvider>>,
}

/// A call that is about to be made.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) deadline: Deadline,
    pub(crate) request_id: RequestId,
}

impl Call {
    pub(crate) fn new(deadline: Deadline) -> Self {
        Self { deadline, request_id: RequestId::new() }
    }
}

impl Registered {
    /// Asks `provider` what it is, on this thread: the application names its providers while it is
    /// in no call of SQLite's.
    pub(crate) fn new(name: &str, origin: String, provider: Arc<dyn KeyProvider>) -> Self {
        static OWNERS: AtomicU64 = AtomicU64::new(0);
        Self {
            name: name.to_owned(),
            origin,
            owner: OWNERS.fetch_add(1, Ordering::Relaxed),
            kind: provider.kind().to_owned(),
            waits_for: provider.waits_for(),
            runs: provider.runs(Ours::new()),
            provider: Some(provider),
        }
    }

    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// The kind of wait for an answer. It may change for a provider of this library once it has a
    /// passphrase.
    pub(crate) fn waits_for(&self) -> WaitsFor {
        match (&self.provider, self.runs) {
            (Some(provider), Runs::Here | Runs::CallsApart) => provider.waits_for(),
            _ => self.waits_for,
        }
    }

    pub(crate) fn wrap(
        &self,
        call: Call,
        key_id: &str,
        dek: &Secret,
        context: &Context,
    ) -> Result<Answer<Wrapped>, ProviderError> {
        let (key_id, dek, context) = (key_id.to_owned(), dek.duplicate(), context.clone());
        let Call { deadline, request_id } = call;
        self.call(deadline, move |provider| {
            let (key_id, dek, context) = (&key_id, &dek, &context);
            provider.wrap(&WrapRequest { key_id, dek, context, deadline, request_id })
        })
    }

    pub(crate) fn unwrap(
        &self,
        call: Call,
        key_id: &str,
        wrapped: &Wrapped,
        context: &Context,
    ) -> Result<Answer<Secret>, ProviderError> {
        let (key_id, wrapped, context) = (key_id.to_owned(), wrapped.clone(), context.clone());
        let Call { deadline, request_id } = call;
        self.call(deadline, move |provider| {
            let (key_id, wrapped, context) = (&key_id, &wrapped, &context);
            provider.unwrap(&UnwrapRequest { key_id, wrapped, context, deadline, request_id })
        })
    }

    pub(crate) fn newest_version(
        &self,
        call: Call,
        key_id: &str,
    ) -> Result<Answer<String>, ProviderError> {
        let (key_id, Call { deadline, request_id }) = (key_id.to_owned(), call);
        self.call(deadline, move |provider| {
            provider.newest_version(&VersionRequest { key_id: &key_id, deadline, request_id })
        })
    }

    /// See [`KeyProvider::derivation`].
    pub(crate) fn derivation(
        &self,
        deadline: Deadline,
        key_id: &str,
        wrapped: &Wrapped,
    ) -> Result<Option<Cost>, ProviderError> {
        let (key_id, wrapped) = (key_id.to_owned(), wrapped.clone());
        let derivation = move |provider: &dyn KeyProvider| provider.derivation(&key_id, &wrapped);
        match (&self.provider, self.runs) {
            (Some(provider), Runs::CallsApart) => Ok(derivation(provider.as_ref())),
            _ => self.call(deadline, move |provider| Ok(derivation(provider))),
        }
    }

    /// See [`KeyProvider::forget`].
    pub(crate) fn forget(&self, deadline: Deadline) -> Result<(), ProviderError> {
        self.call(deadline, |provider| {
            provider.forget();
            Ok(())
        })
    }

    fn call<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(&dyn KeyProvider) -> Result<T, ProviderError> + Send + 'static,
    ) -> Result<T, ProviderError> {
        let name = &self.name;
        let Some(provider) = self.provider.clone() else {
            return Err(ProviderError::not_here(format!("provider {name} is gone")));
        };
        if self.runs == Runs::Here {
            return work(provider.as_ref());
        }
        let patience = deadline.patience();
        let answer = pool::run(self.owner, deadline, move || work(provider.as_ref()));
        answer.unwrap_or_else(|failure| {
            Err(ProviderError::unreachable(match failure {
                Failure::Panicked => format!("provider {name} panicked"),
                Failure::TimedOut => {
                    format!("provider {name}: the provider did not answer within {patience:?}")
                }
                Failure::Busy(calls) => {
                    format!("provider {name} was busy with {calls} other calls for {patience:?}")
                }
                Failure::Stuck(calls) => {
                    format!("provider {name}: {calls} calls to this provider have not returned")
                }
                Failure::Nested(calls) => {
                    format!(
                        "provider {name}: calls to providers are nested {calls} deep; a provider must \
                         not open a database that needs it"
                    )
                }
                Failure::NoThread(error) => {
                    format!("provider {name}: no thread to ask it: {error}")
                }
            }))
        })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if self.runs != Runs::Here {
            pool::drop_apart(self.provider.take());
        }
    }
}
