//! Which process this is: a number that a forked child does not share with its parent.
//!
//! The number lies in a page that the operating system replaces by zeros in every child, however
//! that was made: by `fork`, by a `clone` that no handler of the C library sees, or by a child of
//! such a child. The first look that finds zeros there gives the process its next number. The last
//! number given is in ordinary memory, which a child inherits, so no process has the number of an
//! ancestor. State that an ancestor left behind (a run of nonces, a pending call to a provider)
//! carries its number, and is recognised by it.
//!
//! `src/vfs/forks.rs` makes the page and registers a handler of `fork` beside it. Linux wipes pages
//! since 4.14. Without such a page, the handler and a comparison of process ids decide; that
//! comparison is a system call for each block.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The number of this process, in memory that is wiped in a child.
static WIPED: OnceLock<&AtomicU64> = OnceLock::new();
/// The number of this process where memory cannot be wiped.
static KEPT: AtomicU64 = AtomicU64::new(0);
/// The process that `KEPT` is the number of.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// The last number that was given, here or in an ancestor.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A value that each process has its own of: a thread of the parent may hold locks of the parent's.
pub(crate) struct PerProcess<T: 'static> {
    first: OnceLock<&'static Generation<T>>,
    new: fn() -> T,
}

/// The value of one process, and that of a forked child in this place.
pub(crate) struct Generation<T: 'static> {
    pub(crate) process: u64,
    pub(crate) value: T,
    child: OnceLock<&'static Self>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new(new: fn() -> T) -> Self {
        Self { first: OnceLock::new(), new }
    }

    /// The one of this process, made when it is first asked for and never freed.
    pub(crate) fn here(&self) -> &'static Generation<T> {
        let process = process();
        let mut place = &self.first;
        loop {
            match place.get() {
                Some(found) if found.process == process => return found,
                Some(parents) => place = &parents.child,
                // Another thread may be faster.
                None => {
                    let (value, child) = ((self.new)(), OnceLock::new());
                    _ = place.set(Box::leak(Box::new(Generation { process, value, child })));
                }
            }
        }
    }
}

/// Takes `place`, which the operating system sets to zero in each child of this process.
pub(crate) fn watch(place: &'static AtomicU64) {
    let _ = WIPED.set(place);
}

/// A handler of `fork` saw that this process is a child.
pub(crate) fn forked() {
    number_place().store(0, Ordering::Relaxed);
}

/// The number of this process: never 0, and never an ancestor's.
#[inline]
pub(crate) fn process() -> u64 {
    let place = match WIPED.get() {
        Some(place) => *place,
        None => kept(),
    };
    match place.load(Ordering::Relaxed) {
        0 => name(place),
        number => number,
    }
}

fn number_place() -> &'static AtomicU64 {
    WIPED.get().copied().unwrap_or(&KEPT)
}

#[cold]
fn kept() -> &'static AtomicU64 {
    let id = std::process::id();
    if OWNER.load(Ordering::Acquire) != id {
        // In this order: no thread sees the parent's number beside this process's id.
        KEPT.store(0, Ordering::Relaxed);
        OWNER.store(id, Ordering::Release);
    }
    &KEPT
}

/// Gives the process a number; threads that race here agree on one.
#[cold]
fn name(place: &AtomicU64) -> u64 {
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    match place.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => number,
        Err(other) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wiped_place_gets_a_number_that_none_before_had() {
        static PLACE: AtomicU64 = AtomicU64::new(0);
        let mut last = name(&PLACE);
        assert_ne!(last, 0);
        for _ in 0..100 {
            assert_eq!(name(&PLACE), last, "it has one");
            PLACE.store(0, Ordering::Relaxed);
            let number = name(&PLACE);
            assert!(number > last, "{number} after {last}");
            last = number;
        }
    }

    #[test]
    fn threads_agree() {
        static PLACE: AtomicU64 = AtomicU64::new(0);
        for _ in 0..100 {
            PLACE.store(0, Ordering::Relaxed);
            let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(|| name(&PLACE))).collect();
            let numbers: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
            assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
        }
    }
}
