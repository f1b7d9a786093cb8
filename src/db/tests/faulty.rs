//! A file in memory whose calls a test counts, keeps and fails.

use std::ops::{Deref, DerefMut};

use crate::error::{Error, Result};
use crate::io::Storage;
use crate::io::memory::Memory;

/// A call on the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call<'a> {
    Read,
    Write(&'a [u8], u64),
    Truncate,
    Size,
    Sync,
}

impl Call<'_> {
    /// Whether the call changes the file.
    pub(crate) fn changes(self) -> bool {
        matches!(self, Self::Write(..) | Self::Truncate)
    }
}

/// The failure of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// SQLite's code.
    pub(crate) code: i32,
    /// Bytes of a write that reach the file all the same.
    pub(crate) written: usize,
}

impl Fault {
    /// The code `SQLITE_IOERR`, and nothing is done.
    pub(crate) const IO: Self = Self { code: 10, written: 0 };

    /// As [`Fault::IO`], after half of a write.
    pub(crate) fn half(call: Call<'_>) -> Self {
        let written = if let Call::Write(bytes, _) = call { bytes.len() / 2 } else { 0 };
        Self { written, ..Self::IO }
    }
}

/// What a test does around the calls.
pub(crate) trait Faults {
    /// Runs before `call`, and may fail it.
    fn before(&self, base: &Memory, call: Call<'_>) -> Option<Fault> {
        let _ = (base, call);
        None
    }

    /// Runs after `call` has worked.
    fn after(&self, base: &Memory, call: Call<'_>) {
        let _ = (base, call);
    }
}

#[derive(Default)]
pub(crate) struct Faulty<F> {
    pub(crate) base: Memory,
    pub(crate) faults: F,
}

impl<F: Default> Faulty<F> {
    /// A file that holds `bytes`.
    pub(crate) fn holding(bytes: Vec<u8>) -> Self {
        Self { base: Memory(bytes.into()), faults: F::default() }
    }
}

impl<F> Faulty<F> {
    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.base.0.borrow().clone()
    }
}

impl<F> Deref for Faulty<F> {
    type Target = F;

    fn deref(&self) -> &F {
        &self.faults
    }
}

impl<F> DerefMut for Faulty<F> {
    fn deref_mut(&mut self) -> &mut F {
        &mut self.faults
    }
}

impl<F: Faults> Faulty<F> {
    fn run<T>(&self, call: Call<'_>, work: impl FnOnce(&Memory) -> Result<T>) -> Result<T> {
        if let Some(Fault { code, written }) = self.faults.before(&self.base, call) {
            if let Call::Write(bytes, at) = call {
                self.base.write(&bytes[..written.min(bytes.len())], at)?;
            }
            return Err(Error::Base(code));
        }
        let done = work(&self.base)?;
        self.faults.after(&self.base, call);
        Ok(done)
    }
}

impl<F: Faults> Storage for Faulty<F> {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
        self.run(Call::Read, |base| base.read(buf, at))
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.run(Call::Write(bytes, at), |base| base.write(bytes, at))
    }

    fn truncate(&self, size: u64) -> Result<()> {
        self.run(Call::Truncate, |base| base.truncate(size))
    }

    fn size(&self) -> Result<u64> {
        self.run(Call::Size, Storage::size)
    }

    fn sync(&self) -> Result<()> {
        self.run(Call::Sync, Storage::sync)
    }
}
