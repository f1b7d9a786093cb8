//! What an operator forbids, whoever asks for it.

use super::envelope::ProtectorRecord;
use super::protector::check_time;
use crate::error::{Error, Result};
use crate::provider::ProviderError;
use crate::settings::{BelowMin, Policy};
use crate::suite::SuiteId;

impl Policy {
    /// Whether keys of the provider called `name` may be protectors.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        let listed = |allowed: &Vec<String>| allowed.iter().any(|listed| listed == name);
        self.allowed_providers.as_ref().is_none_or(listed)
    }

    /// Refuses a new protector of the provider called `name` where that is not allowed.
    pub(crate) fn check_provider(&self, name: &str) -> Result<()> {
        if self.allows(name) { Ok(()) } else { Err(Error::Usage(self.not_allowed(name))) }
    }

    /// Refuses to open a database through a protector of the provider called `name` where that is
    /// not allowed.
    pub(crate) fn check_opening(&self, name: &str) -> Result<(), ProviderError> {
        if self.allows(name) { Ok(()) } else { Err(ProviderError::denied(self.not_allowed(name))) }
    }

    /// Refuses a database under a cipher suite that is not allowed.
    pub(crate) fn check_cipher(&self, suite: SuiteId) -> Result<()> {
        match &self.allowed_ciphers {
            Some(allowed) if !allowed.contains(&suite) => Err(Error::Usage(format!(
                "the policy allows no cipher {}, only {}",
                suite.name(),
                allowed.iter().map(|suite| suite.name()).collect::<Vec<_>>().join(", ")
            ))),
            _ => Ok(()),
        }
    }

    fn not_allowed(&self, name: &str) -> String {
        format!(
            "the policy allows no protectors of provider {}, only of {}",
            name.escape_debug(),
            self.allowed_providers.as_deref().unwrap_or_default().join(", ")
        )
    }

    /// Refuses to make the protectors `after` of those `before` where too few would be left, or
    /// gives a warning. Those that ended do not count, and where too few are there already, a
    /// change that takes none is no matter of this.
    pub(crate) fn check_change(
        &self,
        before: &[ProtectorRecord],
        after: &[ProtectorRecord],
    ) -> Result<Option<String>> {
        let serving =
            |all: &[ProtectorRecord]| all.iter().filter(|one| check_time(one).is_ok()).count();
        let (had, left) = (serving(before), serving(after));
        if left >= self.min_protectors as usize || left >= had {
            return Ok(None);
        }
        let words = format!(
            "the policy asks for {} protectors, and {left} would be left",
            self.min_protectors
        );
        match self.below_min {
            BelowMin::Refuse => Err(Error::Usage(format!("{words}: add another one first"))),
            BelowMin::Warn => Ok(Some(words)),
        }
    }
}
