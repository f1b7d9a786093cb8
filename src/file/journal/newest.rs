//! The newest version of each record, known to the handle that wrote it.
//!
//! Most records are sealed once: under their key no other version of them exists. Sealed again are
//! the header of each part of a journal, when SQLite writes how many pages follow it, and the
//! record in which one flush ends and the next goes on. Their older versions authenticate, too.
//! SQLite would take such a record for the end of the journal, and half of the transaction would
//! stay. So of these records, and of no others, a part of the newest tag is kept: 16 bytes for a
//! page or more.
//!
//! Only the handle that wrote a journal knows its tags. The next process plays back the file as it
//! finds it.

use crate::page::{KeyVersion, RESERVE};
use crate::suite::SuiteId;

/// Bytes of a tag. Each of the few versions of a record has others.
type TagPart = [u8; 8];

/// Their distance from the end of a sealed block, in every suite.
const TAG_BEFORE_END: usize = 16;

const fn is_in_tag(suite: SuiteId) -> bool {
    let before_tag = size_of::<KeyVersion>() + suite.nonce_len();
    let at = RESERVE - TAG_BEFORE_END;
    before_tag <= at && at + size_of::<TagPart>() <= before_tag + suite.tag_len()
}

const _: () = {
    let mut at = 0;
    while at < SuiteId::ALL.len() {
        assert!(is_in_tag(SuiteId::ALL[at]));
        at += 1;
    }
};

/// Entries for which room is made at once, and which an idle journal keeps: 16 KiB. A transaction
/// that needs more doubles it.
const KEPT: usize = 1024;

#[derive(Default)]
pub(super) struct Newest {
    /// Records before this one have been sealed under the present key.
    sealed: u64,
    /// By record, those that were sealed more than once.
    tags: Vec<(u64, TagPart)>,
}

impl Newest {
    /// A journal begins, or this handle's knowledge is outdated.
    pub(super) fn forget(&mut self) {
        self.sealed = 0;
        self.tags.clear();
        if self.tags.capacity() > KEPT {
            self.tags = Vec::new();
        }
    }

    /// `record` is about to be written as `sealed`.
    pub(super) fn note(&mut self, record: u64, sealed: &[u8]) {
        if record >= self.sealed {
            self.sealed = record + 1;
            return;
        }
        let tag = tag_part(sealed);
        match self.tags.binary_search_by_key(&record, |(record, _)| *record) {
            Ok(at) => self.tags[at].1 = tag,
            Err(at) => {
                if self.tags.capacity() == 0 {
                    // Without memory for all, it grows.
                    let _ = self.tags.try_reserve_exact(KEPT);
                }
                self.tags.insert(at, (record, tag));
            }
        }
    }

    /// Whether `sealed`, which is authentic, can be the newest version of `record`.
    pub(super) fn admits(&self, record: u64, sealed: &[u8]) -> bool {
        match self.tags.binary_search_by_key(&record, |(record, _)| *record) {
            Ok(at) => self.tags[at].1 == tag_part(sealed),
            Err(_) => true,
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.tags.len()
    }
}

fn tag_part(sealed: &[u8]) -> TagPart {
    sealed[sealed.len() - TAG_BEFORE_END..].first_chunk().copied().unwrap_or_default()
}
