//! Transparent database encryption for **unmodified SQLite**.
//!
//! A VFS named `tde` sits between SQLite and the operating system: everything that reaches a disk
//! is ciphertext, everything SQLite sees is plaintext. A database encryption key (DEK) encrypts
//! pages; a *protector*, a key that a [`provider`] holds, wraps the DEK.
//!
//! ```
//! # let home = tempfile::tempdir()?;
//! # let file = home.path().join("app.db");
//! use sqlite_tde::{Options, provider::Keystore};
//!
//! sqlite_tde::register(Options::new().keystore(Keystore::at(home.path().join("keys"))))?;
//! let db = sqlite_tde::open(&file)?; // a rusqlite Connection
//! db.execute_batch("CREATE TABLE note(text); INSERT INTO note VALUES('nobody else reads this')")?;
//! let text: String = db.query_row("SELECT text FROM note", [], |row| row.get(0))?;
//! assert_eq!(text, "nobody else reads this");
//!
//! use sqlite_tde::TdeConnection;
//! assert_eq!(db.tde_status("main")?.opened_through, "default"); // its protector
//! assert!(db.tde_verify("main", |_done, _all| ())?.is_clean());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The map
//!
//! | to | use |
//! |---|---|
//! | make the VFS known, once a process | [`register`] with [`Options`]; [`config`] reads a file |
//! | open a database | [`open`], [`open_with`]; from other hosts [`OpenOptions::uri`] |
//! | ask about its keys, change its protectors, verify it | [`TdeConnection`] |
//! | hold protector keys | [`provider`]: [`Keystore`](provider::Keystore) and others, or your own |
//! | record what is done with keys and databases | [`audit`] |
//! | tell one failure from another | [`enum@Error`], a variant for each remedy |
//!
//! Attached databases have keys of their own: calls name the *schema*, `"main"` or the name that
//! ATTACH gave. Options, providers and logs may be shared between threads. A call that asks a
//! provider blocks until it answers, at most for the times in [`AccessPolicy`].
//!
//! # What is protected
//!
//! * Anyone who obtains only the files (database, log, journal, temporary files) learns nothing of
//!   their content, except sizes and which pages change.
//! * A page that was changed, moved, zeroed or taken from another database is an error.
//! * Not protected: an older version of a page or of the whole file, put back; a deleted log.
//! * Not protected: the memory of the process, and anyone who may use the protector key.
//! * Without its protectors a database is lost: add a second one for recovery.
//!
//! # Features
//!
//! They only add; every set of them compiles.
//!
//! * `rusqlite`, the default: [`open`] and its neighbours, on connections of rusqlite. Without it
//!   the program links SQLite itself, by whichever crate, and has [`register`].
//! * `bundled`: rusqlite compiles its own SQLite, instead of linking the system's.
//! * `extension`: `extension::load`, for a library that a host loads at run time. SQLite is then
//!   the host's, 3.37 or later; before a host has loaded it, that of the program.
//! * `pkcs11`: protector keys on a token.
//! * `fuzzing`: doors for benches and fuzz targets, not part of the API.
//!
//! # Inside
//!
//! Imports go one way, downwards: `vfs` > `command` > `db` > `file` > `key` > `page` >
//! [`provider`] > `suite` > [`secret`], [`error`]. ARCHITECTURE.md has the page on that,
//! docs/keys.md keys over time, docs/format.md the bytes, docs/threat-model.md what is protected
//! and what is not.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(missing_docs, missing_debug_implementations, unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks, clippy::unwrap_used, clippy::expect_used)]
#![deny(clippy::missing_errors_doc, clippy::missing_panics_doc)]
#![deny(clippy::must_use_candidate, clippy::return_self_not_must_use)]
// What only rusqlite's connections can ask for is not called in a build without them.
#![cfg_attr(not(feature = "rusqlite"), allow(dead_code))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod audit;
mod command;
pub mod config;
mod db;
pub mod error;
#[cfg(feature = "extension")]
#[allow(unsafe_code)] // what a host calls
pub mod extension;
mod ffi;
mod file;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
#[allow(missing_debug_implementations, clippy::must_use_candidate)]
pub mod internals;
mod io;
mod key;
mod nonce;
mod options;
mod page;
mod process;
pub mod provider;
pub mod secret;
mod settings;
mod suite;
mod table;
#[allow(unsafe_code)]
mod vfs;

#[cfg(feature = "rusqlite")]
mod connection;
#[cfg(feature = "rusqlite")]
mod keys;

pub use command::{
    Change, NewProtector, ProtectorCheck, ProtectorStatus, RotateProtector, Skipped, Status,
    Verification,
};
#[cfg(feature = "rusqlite")]
pub use connection::{OpenOptions, open, open_with};
pub use error::{Error, FileError, Result, last_error};
pub use file::beside::FILES_BESIDE;
#[cfg(feature = "rusqlite")]
pub use keys::TdeConnection;
pub use options::{Options, register};
pub use page::RESERVE;
#[cfg(feature = "rusqlite")]
pub use rusqlite;
pub use settings::identity::FileId;
pub use settings::{AccessPolicy, AuditPolicy, Derivation, Tuning};
pub use suite::SuiteId as Cipher;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_application_keeps_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Options>();
        shared::<config::Config>();
        shared::<audit::AuditLog>();
        shared::<audit::Entries>();
        shared::<std::sync::Arc<dyn provider::KeyProvider>>();
        shared::<provider::Keystore>();
        shared::<provider::ProviderError>();
        shared::<secret::Secret>();
        shared::<Error>();
        shared::<Status>();
        shared::<Verification>();
        shared::<Change>();
        #[cfg(feature = "rusqlite")]
        shared::<OpenOptions>();
    }
}
