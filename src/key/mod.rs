//! The key hierarchy: envelope (the bytes), protectors (who may open), keyring (the keys in use).

pub(crate) mod envelope;
pub(crate) mod keyring;
pub(crate) mod protector;
