//! The file below: what our files ask of it, and how they ask for less.
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
    /// What lies beside the file, if it is a database, that a plaintext one may be restored from.
    fn remains(&self) -> Result<Remains> {
        Ok(Remains::Nothing)
    }
    /// Returns when what was written survives power loss.
    fn sync(&self) -> Result<()>;
}

/// How much of a read the file could fill; SQLite wants the rest zeroed and to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    Full,
    Short,
}

/// What lies beside a file that is no database as it is, and may be needed to restore one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remains {
    /// No journal and no log, or a journal of ours.
    Nothing,
    /// A journal or log that does not tell whose it is. SQLite's may begin with zeros.
    Unclear,
    /// A journal or log of a plaintext database.
    Plain,
}
