//! The threads on which a provider's methods may run. Code outside of this library cannot name
//! [`Ours`], so its providers keep the trait's default.

/// Result of [`super::KeyProvider::runs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// Foreign code: each method runs on a thread of ours.
    Apart,
    /// Code of this library which may wait, or which asks foreign code: calls run on such a thread.
    CallsApart,
    /// Code of this library that waits for nothing but the processor and files.
    Here,
}

/// Only this library has one.
#[derive(Debug)]
pub struct Ours(());

impl Ours {
    pub(super) fn new() -> Self {
        Self(())
    }
}
