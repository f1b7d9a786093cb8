//! A key service in this process that can be switched: keys with versions, which it denies, forgets
//! or does not get at, as a test asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use sqlite_tde::provider::{
    Answer, KeyProvider, ProviderError, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
};
use sqlite_tde::secret::Secret;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    Works,
    Denies,
    IsDown,
    /// It does not answer until it is switched again.
    Hangs,
    /// It gives another key than it was given.
    Lies,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// Newest version of each key; 1 unless said.
    versions: BTreeMap<String, u64>,
    /// What was wrapped: key, version, context and DEK, in the order of the handles.
    wrapped: Vec<(String, u64, Vec<u8>, Vec<u8>)>,
}

/// Handles stand for wrapped keys, so the service has to be asked for each.
#[derive(Clone, Default)]
pub struct Service(Arc<(Mutex<Inner>, Condvar, AtomicUsize)>);

impl Service {
    pub fn switch(&self, state: State) {
        self.0.0.lock().unwrap().state = state;
        self.0.1.notify_all();
    }

    /// Makes a newer version of `key`.
    pub fn rotate(&self, key: &str) {
        *self.0.0.lock().unwrap().versions.entry(key.into()).or_insert(1) += 1;
    }

    /// The newest version of the key called `key`.
    pub fn newest(&self) -> u64 {
        self.0.0.lock().unwrap().newest("key")
    }

    /// How often it was asked.
    pub fn calls(&self) -> usize {
        self.0.2.load(Ordering::SeqCst)
    }

    /// Every DEK that it was given.
    pub fn deks(&self) -> Vec<Vec<u8>> {
        self.0.0.lock().unwrap().wrapped.iter().map(|wrapped| wrapped.3.clone()).collect()
    }

    fn ask<T>(
        &self,
        answer: impl FnOnce(&mut Inner) -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        self.0.2.fetch_add(1, Ordering::SeqCst);
        let mut inner = self.0.0.lock().unwrap();
        while inner.state == State::Hangs {
            inner = self.0.1.wait(inner).unwrap();
        }
        match inner.state {
            State::Denies => Err(ProviderError::Denied("access was revoked".into())),
            State::IsDown => Err(ProviderError::Unreachable("connection refused".into())),
            State::Works | State::Lies | State::Hangs => answer(&mut inner),
        }
    }
}

impl Inner {
    fn newest(&self, key: &str) -> u64 {
        self.versions.get(key).copied().unwrap_or(1)
    }
}

impl KeyProvider for Service {
    fn kind(&self) -> &str {
        "service"
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { key_id: key, dek, context, .. } = *request;
        self.ask(|inner| {
            let version = inner.newest(key);
            let handle = inner.wrapped.len() as u64;
            let dek = dek.expose().to_vec();
            inner.wrapped.push((key.into(), version, context.encode(), dek));
            let blob = [&b"handle "[..], &handle.to_be_bytes()].concat();
            Ok(Wrapped::new(version.to_string(), "handle", blob).into())
        })
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { key_id: key, wrapped, context, .. } = *request;
        self.ask(|inner| {
            let handle = wrapped.blob.last_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            let found = inner.wrapped.get(handle.unwrap() as usize);
            match found {
                Some((of, _, bound, dek)) if of == key && *bound == context.encode() => {
                    let mut dek = dek.clone();
                    dek[0] ^= u8::from(inner.state == State::Lies);
                    Ok(Secret::from_slice(&dek).unwrap().into())
                }
                _ => Err(ProviderError::WrongKey("no such handle for this database".into())),
            }
        })
    }

    fn newest_version(
        &self,
        request: &VersionRequest<'_>,
    ) -> Result<Answer<String>, ProviderError> {
        let key = request.key_id;
        self.ask(|inner| Ok(inner.newest(key).to_string().into()))
    }
}
