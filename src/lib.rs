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
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The map
//!
//! [`register`] makes the VFS known, with [`Options`] or a [`config`]. [`open`] opens a database
//! through it; [`TdeConnection`] asks about its keys, changes its protectors and verifies it.
//! [`provider`] has the key providers and the trait for your own; [`audit`] the log of what is done
//! with keys and databases.
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
//! Imports go one way, downwards: `vfs` > `command` > `file` > `key` > `page` > [`provider`] >
//! `suite` > [`secret`], [`error`]. ARCHITECTURE.md has the page on that, docs/keys.md keys over
//! time, docs/format.md the bytes, docs/threat-model.md what is protected and what is not.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(missing_docs, unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks, clippy::unwrap_used, clippy::expect_used)]
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
pub use error::{Error, Result, last_error};
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
