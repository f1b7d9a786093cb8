//! The short cuts that files take. Each can be switched off, which changes speed alone.

use crate::error::{Error, Result};

/// Which short cuts the files of a database take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Whether what is read in sequence is read from the disk in large pieces, ahead of being asked
    /// for.
    pub read_ahead: bool,
    /// Whether neighbouring writes reach the disk as one, where SQLite can still be told of an
    /// error.
    pub gather_writes: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { read_ahead: true, gather_writes: true }
    }
}

impl Tuning {
    /// No short cut at all: one call on the base VFS for each of SQLite's.
    pub const OFF: Self = Self { read_ahead: false, gather_writes: false };
}

/// The value of the URI parameter `name`.
///
/// # Errors
/// [`Error::Usage`] where it is neither `on` nor `off`.
pub(crate) fn switch(name: &str, value: &str) -> Result<bool> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(Error::Usage(format!("{name}={other}: expected on or off"))),
    }
}
