//! The key hierarchy: envelope (the bytes), protectors (the ways to the DEK), keyring (the keys in
//! use), access (how long they may be used), cipher (their use on a file), auditor (audit events),
//! policy (forbidden changes), identity (which database a file is), newest (the last envelope of a
//! file that this process has seen), opening (from an envelope to its keys), session (the keys of
//! one open database).

pub(crate) mod access;
pub(crate) mod auditor;
pub(crate) mod cipher;
pub(crate) mod envelope;
pub(crate) mod identity;
pub(crate) mod keyring;
pub(crate) mod newest;
pub(crate) mod opening;
pub(crate) mod policy;
pub(crate) mod protector;
mod renewal;
pub(crate) mod session;
