//! The key hierarchy: envelope (the bytes), protectors (who may open), keyring (the keys in use),
//! access (for how long they may be), cipher (how they reach a file), auditor (what is recorded of
//! it), policy (what is forbidden), newest (which envelope of
//! a file this process has seen last), opening (from an envelope to its keys), session (the keys of
//! one open database).

pub(crate) mod access;
pub(crate) mod auditor;
pub(crate) mod cipher;
pub(crate) mod envelope;
pub(crate) mod keyring;
pub(crate) mod newest;
pub(crate) mod opening;
pub(crate) mod policy;
pub(crate) mod protector;
mod renewal;
pub(crate) mod session;
