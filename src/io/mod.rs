//! The base file: the calls that our files make on it, and how they make fewer.
//!
//! | file | what |
//! |---|---|
//! | this one | [`Storage`], the calls on the file below |
//! | `read_ahead.rs` | large reads in place of many small ones |
//! | `memory.rs` | a file in memory, for tests and fuzzing |

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod memory;
pub(crate) mod read_ahead;

use crate::ffi;

use crate::error::{Error, Result};

/// The calls that our files make on the file below them.
pub(crate) trait Storage {
    /// Fills `buf` from byte `at`. `false` if the file ends before `buf` is full; the rest is
    /// zeros then.
    fn read(&self, buf: &mut [u8], at: u64) -> Result<bool>;
    /// [`Storage::read`] for callers that tell a crash from a fault: `false` only if the file ends
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
    /// Whether a read at `at` may come from a mapping of the file into memory. Reading ahead saves
    /// nothing there and is forbidden: the file may have become shorter than its mapping, and an
    /// access past its end kills the process. SQLite never reads a page there.
    fn is_mapped(&self, _at: u64) -> bool {
        false
    }
    /// The journal or log beside a database from which a plaintext one may be restored.
    fn remains(&self) -> Result<Remains> {
        Ok(Remains::Nothing)
    }
    /// Returns when all writes survive power loss.
    fn sync(&self) -> Result<()>;
}

/// Completeness of a read; SQLite wants a short one zero-filled and reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    Full,
    Short,
}

/// The journal or log beside a file that is no database as it is and that it may restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remains {
    /// No journal and no log, or a journal of ours.
    Nothing,
    /// A journal or log of unknown origin: SQLite's, too, may begin with zeros.
    Unclear,
    /// A journal or log of a plaintext database.
    Plain,
}
