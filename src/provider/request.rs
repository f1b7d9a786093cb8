//! The requests to a provider, and its answers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Deadline, ProviderError};
use crate::secret::Secret;

/// The data that a wrapped key is bound to. Providers with associated data pass
/// [`Context::encode`]; for the others the envelope's own MAC binds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The database's 16-byte file id.
    pub file_id: [u8; 16],
    /// The key version of the DEK, counted from 1.
    pub dek_version: u32,
}

impl Context {
    /// Purpose label, then file id (16 bytes), then DEK version (4 bytes, big-endian).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        const PURPOSE: &[u8] = b"sqlite-tde v1 dek wrap";
        let mut bytes = PURPOSE.to_vec();
        bytes.extend_from_slice(&self.file_id);
        bytes.extend_from_slice(&self.dek_version.to_be_bytes());
        bytes
    }
}

/// Names one call of a provider, here and in the service's own log: a UUID of version 4. A provider
/// passes it on if its service takes one; the audit log has it in the entry of the call.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId([u8; 16]);

impl RequestId {
    pub(super) fn new() -> Self {
        let mut id = [0; 16];
        // It is no secret, only different from the others.
        if getrandom::fill(&mut id).is_err() {
            static COUNT: AtomicU64 = AtomicU64::new(0);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let count =
                COUNT.fetch_add(1, Ordering::Relaxed) << 32 | u64::from(crate::process::id());
            id[..8].copy_from_slice(&(now.as_nanos() as u64).to_be_bytes());
            id[8..].copy_from_slice(&count.rotate_left(24).to_be_bytes());
        }
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        Self(id)
    }

    /// The 16 bytes of the UUID.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

/// A request to wrap a DEK.
#[derive(Debug)]
#[non_exhaustive]
pub struct WrapRequest<'a> {
    /// The key's name at the provider.
    pub key_id: &'a str,
    /// The key to wrap.
    pub dek: &'a Secret,
    /// The context to bind the wrapped key to.
    pub context: &'a Context,
    /// The deadline of the caller.
    pub deadline: Deadline,
    /// The name of this call.
    pub request_id: RequestId,
}

/// A request to unwrap a DEK.
#[derive(Debug)]
#[non_exhaustive]
pub struct UnwrapRequest<'a> {
    /// The key's name at the provider.
    pub key_id: &'a str,
    /// The key to unwrap.
    pub wrapped: &'a Wrapped,
    /// The context that it was bound to.
    pub context: &'a Context,
    /// The deadline of the caller.
    pub deadline: Deadline,
    /// The name of this call.
    pub request_id: RequestId,
}

/// A question for the newest version of a key.
#[derive(Debug)]
#[non_exhaustive]
pub struct VersionRequest<'a> {
    /// The key's name at the provider.
    pub key_id: &'a str,
    /// The deadline of the caller.
    pub deadline: Deadline,
    /// The name of this call.
    pub request_id: RequestId,
}

impl<'a> WrapRequest<'a> {
    /// A call with a name of its own and no deadline.
    #[must_use]
    pub fn new(key_id: &'a str, dek: &'a Secret, context: &'a Context) -> Self {
        let (deadline, request_id) = (Deadline::NEVER, RequestId::new());
        Self { key_id, dek, context, deadline, request_id }
    }
}

impl<'a> UnwrapRequest<'a> {
    /// A call with a name of its own and no deadline.
    #[must_use]
    pub fn new(key_id: &'a str, wrapped: &'a Wrapped, context: &'a Context) -> Self {
        let (deadline, request_id) = (Deadline::NEVER, RequestId::new());
        Self { key_id, wrapped, context, deadline, request_id }
    }
}

impl<'a> VersionRequest<'a> {
    /// A call with a name of its own and no deadline.
    #[must_use]
    pub fn new(key_id: &'a str) -> Self {
        Self { key_id, deadline: Deadline::NEVER, request_id: RequestId::new() }
    }
}

/// A provider's answer: a [`Wrapped`] key, a [`Secret`] or a version, as was asked.
#[derive(Debug)]
#[non_exhaustive]
pub struct Answer<T> {
    /// The requested value.
    pub value: T,
    /// The service's own name of the call, if it has one; the audit log has it beside ours.
    pub service_request_id: Option<String>,
}

impl<T> Answer<T> {
    /// An answer of a service that gives its calls names.
    pub fn with_id(value: T, service_request_id: impl Into<String>) -> Self {
        Self { value, service_request_id: Some(service_request_id.into()) }
    }
}

impl<T> From<T> for Answer<T> {
    fn from(value: T) -> Self {
        Self { value, service_request_id: None }
    }
}

impl From<&str> for Answer<String> {
    fn from(version: &str) -> Self {
        version.to_owned().into()
    }
}

/// A wrapped DEK, as it is kept in a protector record of the envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wrapped {
    /// The version of the protector key that wrapped it, in the provider's own words.
    pub key_version: String,
    /// The mechanism that wrapped it, in the provider's own words.
    pub mechanism: String,
    /// The wrapped key, at most 2 KiB.
    pub blob: Vec<u8>,
}

impl Wrapped {
    /// A key wrapped by this version of a protector key, in this way.
    pub fn new(
        key_version: impl Into<String>,
        mechanism: impl Into<String>,
        blob: Vec<u8>,
    ) -> Self {
        Self { key_version: key_version.into(), mechanism: mechanism.into(), blob }
    }

    /// # Errors
    /// [`ProviderError::Damaged`] unless it was wrapped by `mechanism`.
    pub(super) fn expect(&self, mechanism: &str) -> Result<(), ProviderError> {
        if self.mechanism == mechanism {
            return Ok(());
        }
        Err(ProviderError::damaged(format!(
            "wrapped key of mechanism {:?}, where this provider reads {mechanism}: it is another \
             provider's, or from a newer version of sqlite-tde",
            self.mechanism
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_name_of_its_own() {
        let ids: std::collections::HashSet<_> =
            (0..1000).map(|_| VersionRequest::new("key").request_id.to_string()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            let parts: Vec<usize> = id.split('-').map(str::len).collect();
            assert_eq!(parts, [8, 4, 4, 4, 12], "{id}");
            assert_eq!(&id[14..15], "4", "{id}");
        }
    }
}
