//! Write buffer: adjacent sealed pages of a checkpoint, written in one call.
//!
//! The log has each of them until the checkpoint is over, so none is kept after an error.

use crate::error::{Error, Result};
use crate::io::Storage;

/// Capacity in bytes; beyond it a system call costs little against copying.
const MOST: usize = 64 * 1024;

#[derive(Default)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    /// Where `bytes` belong in the file.
    at: u64,
}

impl Outgoing {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Minimum end of the file after the flush; 0 if the buffer is empty.
    pub(crate) fn end(&self) -> u64 {
        if self.is_empty() { 0 } else { self.at + self.bytes.len() as u64 }
    }

    /// The `len` bytes at `at` of the file, if they are buffered.
    pub(crate) fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.at)?).ok()?;
        self.bytes.get(from..)?.get(..len)
    }

    /// Room for `len` bytes at `at` of the file. A buffer that does not end there is flushed first.
    pub(crate) fn room(&mut self, base: &impl Storage, at: u64, len: usize) -> Result<&mut [u8]> {
        if self.end() != at || self.bytes.len() + len > MOST {
            self.flush(base)?;
            self.at = at;
        }
        if self.bytes.capacity() == 0 {
            let room = self.bytes.try_reserve_exact(MOST.max(len));
            room.map_err(|_| Error::NO_MEMORY)?;
        }
        let from = self.bytes.len();
        self.bytes.resize(from + len, 0);
        Ok(&mut self.bytes[from..])
    }

    /// Takes back the last `len` bytes of room.
    pub(crate) fn take_back(&mut self, len: usize) {
        self.bytes.truncate(self.bytes.len() - len);
    }

    /// Drops the buffered bytes from `end` of the file on.
    pub(crate) fn cut(&mut self, end: u64) {
        self.bytes.truncate(end.saturating_sub(self.at).try_into().unwrap_or(usize::MAX));
    }

    /// Flushes the buffer, which is empty afterwards, even after an error.
    pub(crate) fn flush(&mut self, base: &impl Storage) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let written = base.write(&self.bytes, self.at);
        self.bytes.clear();
        written
    }
}
