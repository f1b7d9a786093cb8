//! Storage in memory, for tests and fuzzing of the formats.

use std::cell::RefCell;

use super::Storage;
use crate::error::Result;

#[derive(Default)]
pub(crate) struct Memory(pub(crate) RefCell<Vec<u8>>);

impl Storage for Memory {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
        let bytes = self.0.borrow();
        let from = bytes.len().min(at as usize);
        let len = buf.len().min(bytes.len() - from);
        buf[..len].copy_from_slice(&bytes[from..from + len]);
        buf[len..].fill(0);
        Ok(len == buf.len())
    }

    fn write(&self, new: &[u8], at: u64) -> Result<()> {
        let mut bytes = self.0.borrow_mut();
        let end = at as usize + new.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at as usize..end].copy_from_slice(new);
        Ok(())
    }

    fn truncate(&self, size: u64) -> Result<()> {
        self.0.borrow_mut().resize(size as usize, 0);
        Ok(())
    }

    fn size(&self) -> Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
