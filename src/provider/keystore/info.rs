//! The public properties of a key: everything but its bytes.

use std::collections::BTreeSet;
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::process::time::{self, LAST_SECOND, seconds};

/// Public properties of a key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct KeyInfo {
    /// 1 to 64 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// When it was created.
    #[serde(serialize_with = "time::or_zero")]
    pub created: SystemTime,
    /// Whether any of its versions wraps or unwraps.
    pub enabled: bool,
    /// Its allowed operations, at least one.
    pub operations: BTreeSet<Operation>,
    /// Time of its deletion, if it is scheduled for deletion.
    #[serde(serialize_with = "time::or_null")]
    pub purged_at: Option<SystemTime>,
    /// Oldest first, at least one.
    pub versions: Vec<KeyVersionInfo>,
}

/// Public properties of one version of a key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct KeyVersionInfo {
    /// Counted from 1.
    pub version: u32,
    /// When it was created.
    #[serde(serialize_with = "time::or_zero")]
    pub created: SystemTime,
    /// Whether it wraps and unwraps.
    pub enabled: bool,
    /// The first second in which it may be used, if limited.
    #[serde(serialize_with = "time::or_null")]
    pub not_before: Option<SystemTime>,
    /// The first second in which it may no longer be used, if limited.
    #[serde(serialize_with = "time::or_null")]
    pub not_after: Option<SystemTime>,
}

/// An operation of a key.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// To protect: new databases, and rotations to this key.
    Wrap,
    /// To open what it protects.
    Unwrap,
}

impl Operation {
    /// Both, the default of a key.
    #[must_use]
    pub fn all() -> BTreeSet<Self> {
        BTreeSet::from([Self::Wrap, Self::Unwrap])
    }

    /// `wrap` or `unwrap`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
        }
    }
}

/// Rules to give a key; those that are not named stay as they are.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct KeyRules {
    pub(super) not_before: Option<Option<u64>>,
    pub(super) not_after: Option<Option<u64>>,
    pub(super) operations: Option<BTreeSet<Operation>>,
}

impl KeyRules {
    /// No rule named.
    pub fn new() -> Self {
        Self::default()
    }

    /// The first second in which a version may be used; `None` lifts the rule.
    pub fn not_before(mut self, time: impl Into<Option<SystemTime>>) -> Self {
        self.not_before = Some(time.into().map(seconds));
        self
    }

    /// The first second in which a version may no longer be used; `None` lifts the rule.
    pub fn not_after(mut self, time: impl Into<Option<SystemTime>>) -> Self {
        self.not_after = Some(time.into().map(seconds));
        self
    }

    /// The allowed operations of the whole key.
    pub fn operations(mut self, operations: impl IntoIterator<Item = Operation>) -> Self {
        self.operations = Some(operations.into_iter().collect());
        self
    }

    /// Refuses rules that no key can follow.
    pub(super) fn check(&self) -> Result<()> {
        if self.operations.as_ref().is_some_and(BTreeSet::is_empty) {
            let text = "a key must be allowed to wrap, to unwrap, or both: to stop all use of it, \
                        disable it";
            return Err(Error::Usage(text.into()));
        }
        let times = [self.not_before, self.not_after];
        if times.into_iter().flatten().flatten().any(|time| time > LAST_SECOND) {
            return Err(Error::Usage("a time is later than the year 9999".into()));
        }
        Ok(())
    }
}

/// A time as a date in UTC.
pub(super) fn utc(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    time.map_or_else(|| format!("second {seconds}"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (LAST_SECOND, "9999-12-30T22:00:00Z"),
            (LAST_SECOND + 1, "second 253402207201"),
            (u64::MAX, "second 18446744073709551615"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }
}
