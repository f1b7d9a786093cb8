//! The end of the journal that is being written, in plaintext.
//!
//! ```text
//! SQLite's journal  | ...          | clean          | gathered        |
//!                                  ^ from           ^ not in the base  ^ end
//! ```
//! Invariants: `from` is where a record begins; `clean` bytes, and no others, are in the base,
//! sealed in records that hold zeros behind them. Clean bytes are never sealed again, except in the
//! record that the gathered bytes continue.

/// Bytes that are gathered before they are written: records of 64 KiB with their overhead.
pub(super) const GATHERED: usize = 56 << 10;
/// Allocations that an idle journal keeps.
const KEPT: usize = 16 << 10;

#[derive(Default)]
pub(super) struct Tail {
    /// Empty if this handle did not write the end of the journal.
    from: Option<u64>,
    plain: Vec<u8>,
    clean: usize,
}

impl Tail {
    /// A journal begins.
    pub(super) fn start(&mut self) {
        self.forget();
        self.from = Some(0);
    }

    pub(super) fn forget(&mut self) {
        self.from = None;
        self.plain.clear();
        self.clean = 0;
        if self.plain.capacity() > KEPT {
            self.plain = Vec::new();
        }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.plain.capacity()
    }

    /// End of SQLite's journal, as written by this handle.
    pub(super) fn end(&self) -> u64 {
        self.from.unwrap_or_default() + self.plain.len() as u64
    }

    /// End of the part that the base has.
    pub(super) fn clean_end(&self) -> u64 {
        self.from.unwrap_or_default() + self.clean as u64
    }

    /// Whether a write at `at` touches, of the records in the base, only the one that it continues.
    pub(super) fn takes(&self, at: u64, sector: usize) -> bool {
        self.from.is_some()
            && (self.clean_end()..=self.end().next_multiple_of(sector as u64)).contains(&at)
    }

    /// Whether `more` bytes exceed the capacity of the buffer.
    pub(super) fn is_full(&self, more: usize) -> bool {
        !self.plain.is_empty() && self.plain.len() + more > GATHERED
    }

    /// Gathers `bytes` at `at`, which [`Tail::takes`]. SQLite goes on at the next sector after a
    /// sync: the record before it has been synced, and is not written again.
    pub(super) fn put(&mut self, bytes: &[u8], at: u64) {
        let at = (at - self.from.unwrap_or_default()) as usize;
        if self.clean == self.plain.len() {
            self.clean = self.clean.max(at);
        }
        self.plain.resize(self.plain.len().max(at), 0);
        let old = (self.plain.len() - at).min(bytes.len());
        self.plain[at..at + old].copy_from_slice(&bytes[..old]);
        self.plain.extend_from_slice(&bytes[old..]);
    }

    /// Drops the bytes behind `end` that are not in the base.
    pub(super) fn cut(&mut self, end: u64) {
        let end = (end - self.from.unwrap_or_default()) as usize;
        self.plain.truncate(end);
        self.clean = self.clean.min(end);
    }

    /// Bytes at `at` of SQLite's journal, which are in the base, were changed there.
    pub(super) fn patch(&mut self, bytes: &[u8], at: u64) {
        if at + bytes.len() as u64 > self.end() {
            return self.forget();
        }
        let from = self.from.unwrap_or_default();
        let skip = from.saturating_sub(at).min(bytes.len() as u64) as usize;
        let at = (at.max(from) - from) as usize;
        let bytes = &bytes[skip..];
        if !bytes.is_empty() {
            self.plain[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// The base has everything before `end`.
    pub(super) fn flushed(&mut self, end: u64) {
        self.clean = (end - self.from.unwrap_or_default()) as usize;
    }

    /// Forgets the records before `end` that the base has.
    pub(super) fn let_go(&mut self, end: u64) {
        let from = self.from.unwrap_or_default();
        let gone = (end - from) as usize;
        self.plain.drain(..gone);
        self.clean = self.clean.saturating_sub(gone);
        self.from = Some(from + gone as u64);
    }

    /// Fills `buf` with the bytes at `at`, zeros behind the end; `false` if they are not in memory.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> bool {
        match self.from {
            Some(from) if from <= at && at < self.end() => {
                copy(&self.plain[(at - from) as usize..], buf);
                true
            }
            _ => false,
        }
    }

    /// As [`Tail::read`], of the part that the base has.
    pub(super) fn read_clean(&self, buf: &mut [u8], at: u64) -> bool {
        match self.from {
            Some(from) if from <= at && at < self.clean_end() => {
                copy(&self.plain[(at - from) as usize..self.clean], buf);
                true
            }
            _ => false,
        }
    }
}

fn copy(from: &[u8], to: &mut [u8]) {
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
    to[len..].fill(0);
}
