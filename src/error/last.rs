//! The newest error of each thread, with its words: SQLite has a number for most.
//!
//! A thread-local value that is dropped with its thread would need memory when it is first used,
//! and the C library ends the process where there is none. So the errors lie here, those of the
//! newest [`KEPT`] threads in each of some parts. No lock is waited for: a thread that held one may
//! not be in a forked child.

use std::collections::VecDeque;
use std::os::raw::c_int;
use std::sync::{Mutex, TryLockError};

use super::Error;
use crate::process::threads;

const PARTS: usize = 64;
const KEPT: usize = 32;

/// The newest error of a thread: its message stays after the error was returned to the caller.
struct Last {
    thread: u64,
    text: String,
    error: Option<Error>,
}

static LAST: [Mutex<VecDeque<Last>>; PARTS] = [const { Mutex::new(VecDeque::new()) }; PARTS];

/// Runs `work` on the errors among which those of this thread are, and with its number.
fn with<T>(work: impl FnOnce(&mut VecDeque<Last>, u64) -> T) -> Option<T> {
    let thread = threads::number();
    let part = &LAST[(thread % PARTS as u64) as usize];
    for _ in 0..1000 {
        match part.try_lock() {
            Ok(mut part) => return Some(work(&mut part, thread)),
            Err(TryLockError::Poisoned(part)) => return Some(work(&mut part.into_inner(), thread)),
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    }
    None
}

fn of(part: &mut VecDeque<Last>, thread: u64) -> Option<&mut Last> {
    part.iter_mut().find(|last| last.thread == thread)
}

/// The message of the newest error that this crate raised inside SQLite on this thread.
#[must_use]
pub fn last_error() -> Option<String> {
    with(|part, thread| of(part, thread).map(|last| last.text.clone())).flatten()
}

/// Remembers `error` for [`last_error`] and [`take_last`].
pub(crate) fn set_last(error: Error) {
    let text = error.to_string();
    // What it replaces is dropped behind the lock.
    let _former = with(|part, thread| {
        let last = Last { thread, text, error: Some(error) };
        if let Some(former) = of(part, thread) {
            return Some(std::mem::replace(former, last));
        }
        let oldest = if part.len() < KEPT { None } else { part.pop_front() };
        part.push_back(last);
        oldest
    });
}

/// Forgets the newest error of this thread as the one behind `code`, which the base VFS answered
/// with. Its words stay.
pub(crate) fn forget_last(code: c_int) {
    take_last(|error, _| error.sqlite_code() == code);
}

/// Forgets the newest error of this thread, before a call whose own error is wanted.
#[cfg(feature = "rusqlite")]
pub(crate) fn clear_last() {
    let _former = with(|part, thread| {
        let place = part.iter().position(|last| last.thread == thread)?;
        part.remove(place)
    });
}

/// The newest error of this thread if `wanted` says that it, with its words, is the one behind what
/// the caller met.
pub(crate) fn take_last(wanted: impl FnOnce(&Error, &str) -> bool) -> Option<Error> {
    let taken = with(|part, thread| {
        let Last { text, error, .. } = of(part, thread)?;
        error.take_if(|error| wanted(error, text))
    });
    taken.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_its_own_and_memory_is_bounded() {
        let error = |number: usize| Error::Usage(format!("number {number}"));
        set_last(error(0));
        std::thread::scope(|scope| {
            for number in 1..4 {
                scope.spawn(move || {
                    assert_eq!(last_error(), None);
                    set_last(error(number));
                    assert_eq!(last_error(), Some(error(number).to_string()));
                    assert!(take_last(|_, _| false).is_none());
                    assert!(take_last(|_, text| text.contains("number")).is_some());
                    assert!(take_last(|_, _| true).is_none(), "it is taken once");
                    assert!(last_error().is_some(), "its words stay");
                });
            }
        });
        assert_eq!(last_error(), Some(error(0).to_string()));
        for _ in 0..2 * KEPT * PARTS {
            std::thread::spawn(move || set_last(error(9))).join().unwrap();
        }
        let kept: usize = LAST.iter().map(|part| part.lock().unwrap().len()).sum();
        assert!(kept <= KEPT * PARTS, "{kept}");
    }
}
