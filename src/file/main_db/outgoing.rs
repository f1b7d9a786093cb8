//! Sealed pages that follow each other, on their way to the file in one write.

use super::super::Storage;
use crate::error::Result;

/// The most that waits: beyond it a system call costs little against copying.
const MOST: usize = 64 * 1024;

#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    /// Where `bytes` belong in the file.
    at: u64,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether bytes wait that belong between `at` and `at + len`.
    pub(super) fn covers(&self, at: u64, len: usize) -> bool {
        !self.is_empty() && at < self.at + self.bytes.len() as u64 && self.at < at + len as u64
    }

    /// Room for `len` bytes at `at` of the file. What waits and does not end there is written first;
    /// after an error it goes on waiting.
    pub(super) fn room(&mut self, base: &impl Storage, at: u64, len: usize) -> Result<&mut [u8]> {
        if self.at + self.bytes.len() as u64 != at || self.bytes.len() + len > MOST {
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
    pub(super) fn take_back(&mut self, len: usize) {
        self.bytes.truncate(self.bytes.len() - len);
    }

    /// Writes what waits. After an error it goes on waiting.
    pub(super) fn flush(&mut self, base: &impl Storage) -> Result<()> {
        if !self.is_empty() {
            base.write(&self.bytes, self.at)?;
            self.bytes.clear();
        }
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }
}
