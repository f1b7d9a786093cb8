//! Who may open a database, through which protectors, for how long, and what is recorded of it.

mod access;
mod audited;
mod config;
mod creation;
mod cut_off;
mod database;
mod identity;
mod lock_transactions;
mod protectors;
#[cfg(unix)]
mod second;
