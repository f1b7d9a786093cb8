//! The existing records that a write to the journal changes, kept so that it can be undone.

/// Records as they were before a write that changes part of them: at most its first and its last.
#[derive(Default)]
pub(super) struct Changed {
    pub(super) records: Vec<u64>,
    pub(super) plain: Vec<u8>,
}

impl Changed {
    pub(super) fn remember(&mut self, record: u64, plain: &[u8]) {
        self.records.push(record);
        self.plain.extend_from_slice(plain);
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.plain.clear();
    }
}
