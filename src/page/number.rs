//! SQLite's numbers of pages and of frames: neither passes for the other, or for a count.
//!
//! Both begin at 1. A damaged file or wal-index may have 0 in place of one, which must be told from
//! an unknown number and fail like any wrong one: so 0 is a value here.

use super::Place;

/// The number of a page of a database; 0 is no page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct PageNo(pub(crate) u32);

impl PageNo {
    pub(crate) const FIRST: Self = Self(1);

    /// The page that follows the first `count`; the last number of all if there is none.
    pub(crate) fn after(count: impl Into<u64>) -> Self {
        Self(u32::try_from(count.into().saturating_add(1)).unwrap_or(u32::MAX))
    }

    /// The page in which SQLite's byte `offset` lies.
    pub(crate) fn at(offset: u64, page_size: usize) -> Self {
        Self::after(offset / page_size as u64)
    }

    /// SQLite's offset of the page.
    pub(crate) fn offset(self, page_size: usize) -> u64 {
        u64::from(self.0.saturating_sub(1)) * page_size as u64
    }

    pub(crate) fn to(self, last: Self) -> impl Iterator<Item = Self> {
        (self.0..=last.0).map(Self)
    }
}

impl From<PageNo> for Place {
    fn from(page: PageNo) -> Self {
        u64::from(page.0).into()
    }
}

/// The number of a frame of a log; `NONE` comes before the first, as SQLite counts an empty log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct FrameNo(pub(crate) u32);

impl FrameNo {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const FIRST: Self = Self(1);
    pub(crate) const MAX: Self = Self(u32::MAX);

    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number of frames from `first` up to the one before this; `None` if this is earlier than
    /// `first`.
    pub(crate) fn since(self, first: Self) -> Option<usize> {
        usize::try_from(self.0.checked_sub(first.0)?).ok()
    }

    pub(crate) fn to(self, last: Self) -> impl DoubleEndedIterator<Item = Self> {
        (self.0..=last.0).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_numbers_of_pages_agree() {
        for (offset, page) in [(0, 1), (1023, 1), (1024, 2), (5 << 30, (5 << 20) + 1)] {
            assert_eq!(PageNo::at(offset, 1024), PageNo(page));
            assert_eq!(PageNo(page).offset(1024), offset / 1024 * 1024);
        }
        assert_eq!(PageNo(0).offset(1024), 0);
        assert_eq!(PageNo(u32::MAX).offset(65536), (u64::from(u32::MAX) - 1) << 16);
    }

    /// What lies beyond SQLite's numbers is taken for no page or frame but the last.
    #[test]
    fn numbers_end_at_the_last() {
        for offset in [u64::from(u32::MAX) << 10, u64::MAX] {
            assert_eq!(PageNo::at(offset, 1024), PageNo(u32::MAX));
        }
        assert_eq!(FrameNo::MAX.next(), FrameNo::MAX);
        assert_eq!(FrameNo::NONE.since(FrameNo::FIRST), None);
        assert_eq!(FrameNo(7).since(FrameNo(5)), Some(2));
        assert!(FrameNo::FIRST.to(FrameNo::NONE).next().is_none());
    }
}
