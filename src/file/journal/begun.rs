//! The state of the database on which a journal was begun. A journal is played back only over that
//! state and over the one that its own transaction leaves.
//!
//! ```text
//! 0      4
//! | kind | SQLite's bytes 24 to 39 of page 1: change counter 4, pages 4, free pages 8 |
//! ```
//! Kind 1: no page 1; the first four bytes are the change counter that the connection saw last, the
//! others zeros. Kind 2: as in page 1. No journal is begun beside a page 1 that is damaged.
//!
//! SQLite raises the change counter by one when a transaction commits, and page 1 stays in its
//! cache until then. Only a rollback to a savepoint, or of a statement, writes page 1 earlier: with
//! its counter as it was, and with numbers of pages from within the transaction. Under
//! `locking_mode=EXCLUSIVE` a commit need not write page 1 at all. So for as long as the journal
//! may be needed, the counter is as it was or one higher; the other bytes prove nothing. A new
//! database begins with the counter that the connection saw last, which counts creations that
//! failed; page 1 within its first transaction may have 0.

use crate::error::Error;

/// Bytes of page 1 by which SQLite checks whether its cache is valid.
pub(crate) type Counters = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    /// There is no page; the last counter that the connection read or wrote.
    NoPage(u32),
    Page1(Counters),
}

impl Begun {
    pub(super) const LEN: usize = size_of::<u32>() + size_of::<Counters>();

    pub(super) fn encode(self) -> [u8; Self::LEN] {
        let (kind, counters) = match self {
            Self::NoPage(counter) => {
                let mut counters = Counters::default();
                counters[..4].copy_from_slice(&counter.to_be_bytes());
                (1_u32, counters)
            }
            Self::Page1(counters) => (2, counters),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&kind.to_be_bytes());
        bytes[4..].copy_from_slice(&counters);
        bytes
    }

    /// `None` for bytes that no state is encoded by.
    pub(super) fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let mut counters = Counters::default();
        counters.copy_from_slice(&bytes[4..]);
        let begun = match bytes[3] {
            1 => Self::NoPage(counter(&counters)),
            _ => Self::Page1(counters),
        };
        (begun.encode() == *bytes).then_some(begun)
    }

    /// Refuses a playback over `now` of a journal that was begun on `self`. A page 1 that is
    /// missing, or that does not authenticate (`None`), proves nothing: the journal restores it.
    ///
    /// # Errors
    /// [`Error::JournalOutdated`].
    pub(super) fn check(self, now: Option<Self>) -> Result<(), Error> {
        let Some(Self::Page1(now)) = now else { return Ok(()) };
        let found = counter(&now);
        let begun = match self {
            Self::NoPage(_) if found == 0 => return Ok(()),
            Self::NoPage(begun) => begun,
            Self::Page1(was) => counter(&was),
        };
        if found == begun || found == begun.wrapping_add(1) {
            return Ok(());
        }
        Err(Error::JournalOutdated { begun, found })
    }
}

fn counter(counters: &Counters) -> u32 {
    counters.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(counter: u32, other: u8) -> Begun {
        let mut counters = [other; 16];
        counters[..4].copy_from_slice(&counter.to_be_bytes());
        Begun::Page1(counters)
    }

    #[test]
    fn one_encoding_each() {
        for begun in [Begun::NoPage(0), Begun::NoPage(7), page(0, 0), page(9, 3)] {
            assert_eq!(Begun::decode(&begun.encode()), Some(begun));
        }
        for (at, value) in [(0, 1), (3, 0), (3, 3), (3, 255), (8, 1), (19, 1)] {
            let mut bytes = Begun::NoPage(0).encode();
            bytes[at] = value;
            assert_eq!(Begun::decode(&bytes), None, "byte {at}");
        }
    }

    #[test]
    fn only_the_state_itself_and_the_next_one_fit() {
        let last = u32::MAX;
        for (begun, now, fits) in [
            (page(5, 1), page(5, 1), true),
            (page(5, 1), page(6, 2), true),
            (page(5, 1), page(5, 2), true),
            (page(5, 1), page(4, 1), false),
            (page(5, 1), page(7, 1), false),
            (page(last, 1), page(0, 1), true),
            (page(last, 1), page(1, 1), false),
            (Begun::NoPage(0), page(1, 1), true),
            (Begun::NoPage(0), page(0, 1), true),
            (Begun::NoPage(4), page(0, 1), true),
            (Begun::NoPage(4), page(4, 1), true),
            (Begun::NoPage(4), page(3, 1), false),
            (Begun::NoPage(0), page(2, 1), false),
            (Begun::NoPage(4), page(5, 1), true),
            (Begun::NoPage(last), page(0, 1), true),
            (Begun::NoPage(0), Begun::NoPage(0), true),
            (page(5, 1), Begun::NoPage(0), true),
        ] {
            assert_eq!(begun.check(Some(now)).is_ok(), fits, "{begun:?} over {now:?}");
            assert!(begun.check(None).is_ok(), "{begun:?} over a damaged page 1");
        }
    }
}
