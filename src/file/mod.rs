//! What the bytes of each kind of file mean. Safe Rust over [`Storage`], so that it runs in memory.
//!
//! | kind | file | key |
//! |---|---|---|
//! | [`FileKind::MainDb`] | [`main_db`] | pages subkey of the DEK |
//! | [`FileKind::MainJournal`] | [`journal`] | journal subkey of the DEK and the journal's salt |
//! | [`FileKind::Scratch`] | [`scratch`] | random, in memory only |
//! | [`FileKind::Wal`] | [`wal`] | WAL subkey of the DEK |
//! | [`FileKind::SuperJournal`] | passed through: it holds file names only | |
//!
//! [`beside`] has the names of the files beside a database.

pub(crate) mod ahead;
pub(crate) mod beside;
pub(crate) mod journal;
pub(crate) mod main_db;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod memory;
pub(crate) mod scratch;
pub(crate) mod tuning;
pub(crate) mod wal;

use std::os::raw::c_int;

use crate::ffi;

use self::beside::Remains;
use crate::error::{Error, Result};

/// The calls that our files make on the file below them.
pub(crate) trait Storage {
    /// Fills `buf` from byte `at`. `false` where the file ends before `buf` is full; the rest is
    /// zeros then.
    fn read(&self, buf: &mut [u8], at: u64) -> Result<bool>;
    /// [`Storage::read`] of what tells a crash from a fault: `false` only where the file ends
    /// before `buf` is full. A file that is long enough and does not give its bytes is an error;
    /// another process may just have made it so long.
    fn read_whole(&self, buf: &mut [u8], at: u64) -> Result<bool> {
        for _ in 0..2 {
            if self.read(buf, at)? {
                return Ok(true);
            }
            if self.size()? < at + buf.len() as u64 {
                return Ok(false);
            }
        }
        Err(Error::Base(ffi::SQLITE_IOERR_READ))
    }
    /// Writes all of `bytes` at byte `at`.
    fn write(&self, bytes: &[u8], at: u64) -> Result<()>;
    /// Cuts or extends the file to `size` bytes.
    fn truncate(&self, size: u64) -> Result<()>;
    /// The file's size in bytes.
    fn size(&self) -> Result<u64>;
    /// Whether a read at `at` may come from a mapping of the file into memory. Reading in larger
    /// pieces saves nothing there, and must not be done: the file may have become shorter than its
    /// mapping, and memory past its end stops the process. SQLite asks for no page there.
    fn is_mapped(&self, _at: u64) -> bool {
        false
    }
    /// What lies beside the file, where it is a database, that a plaintext one may be restored
    /// from.
    fn remains(&self) -> Result<Remains> {
        Ok(Remains::Nothing)
    }
    /// Returns when what was written survives power loss.
    fn sync(&self) -> Result<()>;
}

/// What SQLite opens a file for.
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

/// How much of a read the file could fill; SQLite wants the rest zeroed and to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    Full,
    Short,
}
