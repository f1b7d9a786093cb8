//! Sealed pages of a checkpoint that follow each other, on their way to the file in one write.
//!
//! The log has each of them until the checkpoint is over, so none is kept after an error.

use crate::error::Result;
use crate::io::Storage;

/// The most that waits: beyond it a system call costs little against copying.
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

    /// Where the file ends at least, once all is written; 0 where nothing waits.
    pub(crate) fn end(&self) -> u64 {
        if self.is_empty() { 0 } else { self.at + self.bytes.len() as u64 }
    }

    /// The `len` bytes at `at` of the file, if they wait.
    pub(crate) fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.at)?).ok()?;
        self.bytes.get(from..)?.get(..len)
    }

    /// Room for `len` bytes at `at` of the file. What waits and does not end there is written
    /// first.
    pub(crate) fn room(&mut self, base: &impl Storage, at: u64, len: usize) -> Result<&mut [u8]> {
        if self.end() != at || self.bytes.len() + len > MOST {
            self.flush(base)?;
            self.at = at;
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(MOST.max(len));
        }
        let from = self.bytes.len();
        self.bytes.resize(from + len, 0);
        Ok(&mut self.bytes[from..])
    }

    /// Takes back the last `len` bytes of room.
    pub(crate) fn take_back(&mut self, len: usize) {
        self.bytes.truncate(self.bytes.len() - len);
    }

    /// Forgets what lies at `end` of the file or behind it.
    pub(crate) fn cut(&mut self, end: u64) {
        self.bytes.truncate(end.saturating_sub(self.at).try_into().unwrap_or(usize::MAX));
    }

    /// Writes what waits. Nothing waits afterwards, also after an error.
    pub(crate) fn flush(&mut self, base: &impl Storage) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let written = base.write(&self.bytes, self.at);
        self.bytes.clear();
        written
    }
}
