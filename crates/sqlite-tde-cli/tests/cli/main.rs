//! The command `sqlite-tde`, as a shell sees it, and beside connections of another process.

mod audit;
mod config;
mod copy;
#[cfg(unix)]
mod keys;
mod older_envelope;
mod place;
mod privacy;
mod protectors;
mod verbs;
