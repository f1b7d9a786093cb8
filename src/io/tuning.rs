//! The optimisations of file access. Switching one off changes the speed and nothing else.

use crate::error::{Error, Result};

/// The optimisations that the files of a database use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Whether sequential reads are served from larger reads ahead.
    pub read_ahead: bool,
    /// Whether neighbouring writes are merged, if SQLite can still be told of an error.
    pub gather_writes: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { read_ahead: true, gather_writes: true }
    }
}

impl Tuning {
    /// No optimisation: one call on the base VFS for each of SQLite's.
    pub const OFF: Self = Self { read_ahead: false, gather_writes: false };
}

/// The value of the URI parameter `name`.
///
/// # Errors
/// [`Error::Usage`] if it is neither `on` nor `off`.
pub(crate) fn switch(name: &str, value: &str) -> Result<bool> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(Error::Usage(format!("{name}={other}: expected on or off"))),
    }
}
