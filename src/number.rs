//! SQLite's numbers of pages and of frames: neither passes for the other, or for a count.
//!
//! Both begin at 1. A damaged file or wal-index may have 0 where a number should be, which must stay
//! distinct from "unknown" and fails to authenticate; so 0 is a value here, and not an absent one.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
        pub(crate) struct $name(u32);

        impl $name {
            pub(crate) const NONE: Self = Self(0);
            pub(crate) const FIRST: Self = Self(1);
            pub(crate) const MAX: Self = Self(u32::MAX);

            pub(crate) const fn new(number: u32) -> Self {
                Self(number)
            }

            /// The one that follows the first `count`; `MAX` if no number does.
            pub(crate) fn after(count: impl Into<u64>) -> Self {
                Self(u32::try_from(count.into().saturating_add(1)).unwrap_or(u32::MAX))
            }

            pub(crate) const fn get(self) -> u32 {
                self.0
            }

            /// How many come before it.
            pub(crate) fn index(self) -> u64 {
                u64::from(self.0.saturating_sub(1))
            }

            /// From this one to `last`, including both.
            pub(crate) fn to(self, last: Self) -> impl DoubleEndedIterator<Item = Self> {
                (self.0..=last.0).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The number of a page of a database; `NONE` is no page.
    PageNo
}

number! {
    /// The number of a frame of a log; `NONE` comes before the first, as SQLite counts an empty log.
    FrameNo
}

impl PageNo {
    /// The page in which SQLite's byte `offset` lies.
    pub(crate) fn at(offset: u64, page_size: usize) -> Self {
        Self::after(offset / page_size as u64)
    }

    /// SQLite's offset of the page.
    pub(crate) fn offset(self, page_size: usize) -> u64 {
        self.index() * page_size as u64
    }
}

impl FrameNo {
    pub(crate) fn next(self) -> Self {
        Self::after(self.0)
    }

    pub(crate) const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How many frames lie between the begin of `first` and that of this one; `None` if it is an
    /// earlier one.
    pub(crate) fn since(self, first: Self) -> Option<usize> {
        usize::try_from(self.0.checked_sub(first.0)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_numbers_of_pages_agree() {
        for (offset, page) in [(0, 1), (1023, 1), (1024, 2), (5 << 30, (5 << 20) + 1)] {
            assert_eq!(PageNo::at(offset, 1024), PageNo::new(page));
            assert_eq!(PageNo::new(page).offset(1024), offset / 1024 * 1024);
        }
        assert_eq!(PageNo::NONE.offset(1024), 0);
        assert_eq!(PageNo::MAX.offset(65536), (u64::from(u32::MAX) - 1) << 16);
    }

    /// Beyond SQLite's numbers there is no other page or frame to be taken for.
    #[test]
    fn numbers_end_at_the_last() {
        for offset in [u64::from(u32::MAX) << 10, u64::MAX] {
            assert_eq!(PageNo::at(offset, 1024), PageNo::MAX);
        }
        assert_eq!(FrameNo::after(u64::MAX), FrameNo::MAX);
        assert_eq!(FrameNo::MAX.next(), FrameNo::MAX);
        assert_eq!(FrameNo::NONE.since(FrameNo::FIRST), None);
        assert_eq!(FrameNo::new(7).since(FrameNo::new(5)), Some(2));
        assert!(FrameNo::FIRST.to(FrameNo::NONE).next().is_none());
        assert_eq!(FrameNo::new(7).to_string(), "7");
    }
}
