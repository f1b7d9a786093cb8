//! The result of the last derivation, and the derivations under way.
//!
//! A derivation takes seconds and up to 1 GiB, and may wait for a person to type a passphrase. No
//! lock is held over it: threads that want the same key wait for the one that derives it, all
//! others go on. A forked child has no such thread, so it does not wait for derivations of its
//! parent. A prompt that needs the very key that it is asked for would wait for itself: it is
//! refused.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::ProviderError;
use crate::process::{lock, pool};

/// Keeps the last `V`, derived for a `K`.
#[derive(Debug)]
pub(super) struct Derived<K, V> {
    state: Mutex<State<K, V>>,
    /// A derivation ended.
    ended: Condvar,
}

#[derive(Debug)]
struct State<K, V> {
    kept: Option<(K, Arc<V>)>,
    running: Vec<Underway<K>>,
}

/// A derivation under way.
#[derive(Debug, Clone, PartialEq)]
struct Underway<K> {
    process: u32,
    /// See [`pool::caller`].
    caller: u64,
    key: K,
}

impl<K, V> Default for Derived<K, V> {
    fn default() -> Self {
        Self { state: Mutex::new(State { kept: None, running: Vec::new() }), ended: Condvar::new() }
    }
}

impl<K: PartialEq + Clone, V> Derived<K, V> {
    /// The cached value for `key`, else the result of `derive`, which is then cached. An error is
    /// not cached: waiting threads derive for themselves, one after the other.
    ///
    /// # Errors
    /// That of `derive`; [`ProviderError::Denied`] within a `derive` for the same key.
    pub(super) fn get(
        &self,
        key: &K,
        derive: impl FnOnce() -> Result<V, ProviderError>,
    ) -> Result<Arc<V>, ProviderError> {
        let (process, caller) = (crate::process::id(), pool::caller());
        let mut state = self.lock();
        loop {
            if let Some(kept) = state.find(key) {
                return Ok(kept);
            }
            let same = |running: &&Underway<K>| running.process == process && running.key == *key;
            match state.running.iter().find(same) {
                None => break,
                Some(running) if running.caller == caller => return Err(asks_itself()),
                Some(_) => {}
            }
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let underway = Underway { process, caller, key: key.clone() };
        state.running.push(underway.clone());
        drop(state);
        // Ends the derivation even if `derive` panics.
        let running = Running { derived: self, underway };
        let value = Arc::new(derive()?);
        self.lock().kept = Some((key.clone(), Arc::clone(&value)));
        drop(running);
        Ok(value)
    }

    /// The cached value for `key`.
    pub(super) fn find(&self, key: &K) -> Option<Arc<V>> {
        self.lock().find(key)
    }

    pub(super) fn keep(&self, key: K, value: Arc<V>) {
        self.lock().kept = Some((key, value));
    }

    pub(super) fn forget(&self) {
        self.lock().kept = None;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().kept.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        lock(&self.state)
    }
}

impl<K: PartialEq, V> State<K, V> {
    fn find(&self, key: &K) -> Option<Arc<V>> {
        self.kept.as_ref().filter(|kept| kept.0 == *key).map(|kept| Arc::clone(&kept.1))
    }
}

fn asks_itself() -> ProviderError {
    ProviderError::denied(
        "the passphrase or PIN is being asked for by this very thread: code that asks for one must \
         not need it itself, as by opening a database that it protects",
    )
}

/// Ends a derivation when it is dropped.
struct Running<'a, K: PartialEq + Clone, V> {
    derived: &'a Derived<K, V>,
    underway: Underway<K>,
}

impl<K: PartialEq + Clone, V> Drop for Running<'_, K, V> {
    fn drop(&mut self) {
        self.derived.lock().running.retain(|running| *running != self.underway);
        self.derived.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn other_keys_do_not_wait() {
        let derived = Derived::<u32, u32>::default();
        let (release, released) = mpsc::channel::<()>();
        let (began, begun) = mpsc::channel();
        let derived = &derived;
        std::thread::scope(|scope| {
            let slow = scope.spawn(move || {
                derived.get(&1, || {
                    began.send(()).unwrap();
                    released.recv_timeout(Duration::from_secs(20)).map_err(|_| failed())?;
                    Ok(10)
                })
            });
            begun.recv().unwrap();
            assert_eq!(derived.get(&2, || Ok(20)).map(|v| *v), Ok(20));
            derived.forget();
            assert!(derived.is_empty() && derived.find(&1).is_none());
            release.send(()).unwrap();
            assert_eq!(slow.join().unwrap().map(|value| *value), Ok(10));
        });
        assert_eq!(derived.find(&1).map(|value| *value), Some(10));
    }

    #[test]
    fn the_same_key_is_derived_once_and_an_error_by_each() {
        for fails in [false, true] {
            let (derived, times) = (Derived::<u32, u32>::default(), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let answer = derived.get(&1, || {
                            times.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(5));
                            if fails { Err(failed()) } else { Ok(7) }
                        });
                        assert_eq!(answer.is_err(), fails);
                    });
                }
            });
            assert_eq!(times.load(Ordering::SeqCst), if fails { 8 } else { 1 });
        }
    }

    #[test]
    fn a_panic_and_a_fork_leave_nobody_waiting() {
        let derived = Derived::<u32, u32>::default();
        let panicked = std::thread::scope(|scope| {
            scope.spawn(|| derived.get(&1, || -> Result<u32, _> { panic!("in derive") })).join()
        });
        assert!(panicked.is_err());
        // A derivation of the parent, as a forked child finds it.
        let process = crate::process::id().wrapping_add(1);
        derived.lock().running.push(Underway { process, caller: pool::caller(), key: 1 });
        assert_eq!(derived.get(&1, || Ok(3)).map(|value| *value), Ok(3));
    }

    #[test]
    fn a_derivation_that_needs_itself_is_refused() {
        let derived = Derived::<u32, u32>::default();
        let nested = || match derived.get(&1, || Ok(1)) {
            Err(error) => Err(error),
            Ok(_) => panic!("it was derived within itself"),
        };
        let error = derived.get(&1, nested).unwrap_err();
        assert!(error.to_string().contains("this very thread"), "{error}");
        // Another key is no matter, and afterwards nothing is left of it.
        assert_eq!(derived.get(&1, || derived.get(&2, || Ok(2)).map(|v| *v)).map(|v| *v), Ok(2));
    }

    fn failed() -> ProviderError {
        ProviderError::unreachable("failed")
    }
}
