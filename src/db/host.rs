//! The surroundings of an open database: the base file with its locks and wal-index, the files
//! beside it, and the connection that uses it.

use std::os::raw::c_int;

use crate::ffi;

use super::wal_index::Words;
use crate::error::{Error, Result};
use crate::io::Storage;

/// SQLite's locks on a database file, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum LockLevel {
    #[default]
    None,
    Shared,
    Reserved,
    Pending,
    Exclusive,
}

impl LockLevel {
    /// The lock that SQLite calls `code`; the strongest for a code that it does not have.
    pub(crate) fn from_code(code: c_int) -> Self {
        match code {
            ffi::SQLITE_LOCK_NONE => Self::None,
            ffi::SQLITE_LOCK_SHARED => Self::Shared,
            ffi::SQLITE_LOCK_RESERVED => Self::Reserved,
            ffi::SQLITE_LOCK_PENDING => Self::Pending,
            _ => Self::Exclusive,
        }
    }

    /// SQLite's code for it.
    pub(crate) fn code(self) -> c_int {
        match self {
            Self::None => ffi::SQLITE_LOCK_NONE,
            Self::Shared => ffi::SQLITE_LOCK_SHARED,
            Self::Reserved => ffi::SQLITE_LOCK_RESERVED,
            Self::Pending => ffi::SQLITE_LOCK_PENDING,
            Self::Exclusive => ffi::SQLITE_LOCK_EXCLUSIVE,
        }
    }
}

/// The surroundings of a database. Of a journal or log, `sync_as` and `sector` are used alone.
pub(crate) trait Host: Storage + Words + Sized {
    /// Syncs the file as SQLite's `flags` say.
    fn sync_as(&self, flags: c_int) -> Result<()>;
    /// The sector, as SQLite bounds it: a power of two from 512 to 65536.
    fn sector(&self) -> usize;
    /// Whether a power loss during a write leaves the bytes beside it intact (powersafe overwrite).
    fn is_powersafe(&self) -> bool;

    /// Takes a lock on the file.
    ///
    /// # Errors
    /// [`Error::Base`] with `SQLITE_BUSY` while another connection holds a conflicting lock.
    fn lock(&self, level: LockLevel) -> Result<()>;
    /// Gives locks back down to `level`.
    fn unlock(&self, level: LockLevel) -> Result<()>;
    /// Whether some connection holds RESERVED or more.
    fn is_reserved(&self) -> Result<bool>;

    /// Whether there can be a wal-index in shared memory.
    fn has_shared_memory(&self) -> bool;
    /// Maps the wal-index; creates it if missing.
    fn map_wal_index(&self) -> Result<()>;
    /// Undoes [`Host::map_wal_index`].
    fn unmap_wal_index(&self);
    /// Takes one of the wal-index's locks, for this connection alone.
    fn lock_wal_index(&self, number: u32) -> Result<()>;
    fn unlock_wal_index(&self, number: u32);

    /// Runs `work` on the journal beside the database, opened for reading; `None` if there is none.
    fn with_journal<T>(&self, work: impl FnOnce(&Self) -> Result<T>) -> Result<Option<T>>;
    /// Deletes a log of a plaintext database beside a database that is being created, as SQLite
    /// does beside one without pages.
    fn delete_plain_log(&self) -> Result<()>;

    /// Whether the connection runs a statement that may write.
    fn is_writing(&self) -> bool;
    /// Whether the connection is in a transaction; `None` if it is not known.
    fn is_in_transaction(&self) -> Option<bool>;
    /// Whether the connection is known and runs no statement.
    fn is_idle(&self) -> bool;
}

/// Whether a lock was taken; `false` if another connection holds a conflicting one.
pub(super) fn is_taken(locked: Result<()>) -> Result<bool> {
    match locked {
        Ok(()) => Ok(true),
        Err(Error::Base(code)) if code & 0xff == ffi::SQLITE_BUSY => Ok(false),
        Err(error) => Err(error),
    }
}
