//! The format of each kind of file. Safe Rust over [`Storage`](crate::io::Storage), so that it runs
//! in memory.
//!
//! | kind | file | key |
//! |---|---|---|
//! | [`FileKind::MainDb`] | [`main`] | pages subkey of the DEK |
//! | [`FileKind::MainJournal`] | [`journal`] | journal subkey of the DEK and the journal's salt |
//! | [`FileKind::Scratch`] | [`scratch`] | random, in memory only |
//! | [`FileKind::Wal`] | [`wal`] | WAL subkey of the DEK |
//! | [`FileKind::SuperJournal`] | passed through: it holds file names only | |
//!
//! [`beside`] has the names of the files beside a database.

pub(crate) mod beside;
pub(crate) mod journal;
pub(crate) mod main;
pub(crate) mod scratch;
pub(crate) mod wal;

use std::os::raw::c_int;

use crate::ffi;

/// The use for which SQLite opens a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    MainDb,
    MainJournal,
    Wal,
    SuperJournal,
    /// Temporary database, sorter, statement journal: opened with a null name, or for them alone.
    Scratch,
}

impl FileKind {
    pub(crate) fn from_flags(flags: c_int, named: bool) -> Self {
        const SCRATCH: c_int = ffi::SQLITE_OPEN_TEMP_DB
            | ffi::SQLITE_OPEN_TRANSIENT_DB
            | ffi::SQLITE_OPEN_TEMP_JOURNAL
            | ffi::SQLITE_OPEN_SUBJOURNAL;
        if !named || flags & SCRATCH != 0 {
            Self::Scratch
        } else if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
            Self::MainDb
        } else if flags & ffi::SQLITE_OPEN_MAIN_JOURNAL != 0 {
            Self::MainJournal
        } else if flags & ffi::SQLITE_OPEN_WAL != 0 {
            Self::Wal
        } else {
            Self::SuperJournal
        }
    }
}
