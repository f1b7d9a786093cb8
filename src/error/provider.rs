//! Errors of a provider.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::process::pool;

/// Error of a provider. Each kind has another remedy: configure the key, restore access, wait,
/// restore a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProviderError {
    /// The provider works but has no such key.
    NotHere(Reason),
    /// The key exists but its use is refused: disabled, revoked, forbidden.
    Denied(Reason),
    /// The provider did not answer; it may later: [`Reason::retry_after`].
    Unreachable(Reason),
    /// The provider's own data is damaged or of a format this version does not read.
    Damaged(Reason),
    /// The provider's files can be read by others than their owner.
    LoosePermissions {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The loosest that is accepted.
        expected: u32,
    },
    /// A file or directory of the provider belongs to another user, who could have written it.
    OtherOwner {
        /// The file or directory.
        path: PathBuf,
        /// The number of the user to whom it belongs.
        owner: u32,
        /// The number of the user that the process runs as.
        user: u32,
    },
    /// The key exists but does not unwrap this blob.
    WrongKey(Reason),
}

/// The message of a [`ProviderError`], with the details from the service. Two are equal if their
/// messages and numbers are, regardless of the source.
#[derive(Clone)]
pub struct Reason {
    text: String,
    retry_after: Option<Duration>,
    request_id: Option<String>,
    source: Option<Arc<Foreign>>,
}

/// An error of foreign code, dropped on a thread of ours: its destructor is foreign code, too.
struct Foreign(Option<Box<dyn Error + Send + Sync>>);

impl Reason {
    /// Words for people: lower case, without a full stop, and never a key.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), retry_after: None, request_id: None, source: None }
    }

    /// The words.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The error behind it, which [`Error::source`] gives.
    #[must_use]
    pub fn caused_by(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(Arc::new(Foreign(Some(source.into())))), ..self }
    }

    /// The pause that the service asks for before the next call. If it is longer than ten seconds,
    /// the operation makes no further call.
    #[must_use]
    pub fn retry_after(self, time: Duration) -> Self {
        Self { retry_after: Some(time), ..self }
    }

    /// The service's own name of the call, for the audit log.
    #[must_use]
    pub fn request_id(self, id: impl Into<String>) -> Self {
        Self { request_id: Some(id.into()), ..self }
    }
}

impl<T: Into<String>> From<T> for Reason {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

impl ProviderError {
    /// [`ProviderError::NotHere`] in these words.
    pub fn not_here(reason: impl Into<Reason>) -> Self {
        Self::NotHere(reason.into())
    }

    /// [`ProviderError::Denied`] in these words.
    pub fn denied(reason: impl Into<Reason>) -> Self {
        Self::Denied(reason.into())
    }

    /// [`ProviderError::Unreachable`] in these words.
    pub fn unreachable(reason: impl Into<Reason>) -> Self {
        Self::Unreachable(reason.into())
    }

    /// [`ProviderError::Damaged`] in these words.
    pub fn damaged(reason: impl Into<Reason>) -> Self {
        Self::Damaged(reason.into())
    }

    /// [`ProviderError::WrongKey`] in these words.
    pub fn wrong_key(reason: impl Into<Reason>) -> Self {
        Self::WrongKey(reason.into())
    }

    /// The pause that the service asks for.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.reason()?.retry_after
    }

    /// The service's own name of the call that failed.
    #[must_use]
    pub fn service_request_id(&self) -> Option<&str> {
        self.reason()?.request_id.as_deref()
    }

    /// The same error with more text.
    pub(crate) fn and(mut self, more: &str) -> Self {
        if let Self::NotHere(reason)
        | Self::Denied(reason)
        | Self::Unreachable(reason)
        | Self::Damaged(reason)
        | Self::WrongKey(reason) = &mut self
        {
            reason.text = format!("{}; {more}", reason.text);
        }
        self
    }

    fn reason(&self) -> Option<&Reason> {
        match self {
            Self::NotHere(reason)
            | Self::Denied(reason)
            | Self::Unreachable(reason)
            | Self::Damaged(reason)
            | Self::WrongKey(reason) => Some(reason),
            Self::LoosePermissions { .. } | Self::OtherOwner { .. } => None,
        }
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.reason()) {
            (Self::LoosePermissions { path, mode, expected }, _) => write!(
                f,
                "{} has mode {mode:03o}, which lets others read keys; expected {expected:03o}",
                path.display()
            ),
            (Self::OtherOwner { path, owner, user }, _) => write!(
                f,
                "{} belongs to user {owner}, neither to root nor to user {user} of this process",
                path.display()
            ),
            (_, reason) => f.write_str(reason.map_or("", |reason| &reason.text)),
        }
    }
}

impl Error for ProviderError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reason()?.source.as_ref()?.0.as_ref().map(|error| &**error as _)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_tuple("Reason");
        shown.field(&self.text);
        if let Some(time) = self.retry_after {
            shown.field(&time);
        }
        if let Some(id) = &self.request_id {
            shown.field(id);
        }
        if let Some(error) = self.source.as_ref().and_then(|source| source.0.as_ref()) {
            shown.field(error);
        }
        shown.finish()
    }
}

impl PartialEq for Reason {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, self.retry_after, &self.request_id)
            == (&other.text, other.retry_after, &other.request_id)
    }
}

impl Eq for Reason {}

impl Drop for Foreign {
    fn drop(&mut self) {
        pool::drop_apart(self.0.take());
    }
}
