//! The result of the last derivation, and the derivations under way.
//!
//! A derivation takes seconds and up to 1 GiB, and may wait for a person to type a passphrase. No
//! lock is held over it: threads that want the same key wait for the one that derives it, all
//! others go on. A forked child has no such thread, so it does not wait for derivations of its
//! parent.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::process::lock;

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
    /// The derivations under way, and the process of each.
    running: Vec<(u32, K)>,
}

impl<K, V> Default for Derived<K, V> {
    fn default() -> Self {
        Self { state: Mutex::new(State { kept: None, running: Vec::new() }), ended: Condvar::new() }
    }
}

impl<K: PartialEq + Clone, V> Derived<K, V> {
    /// The cached value for `key`, else the result of `derive`, which is then cached. An error is
    /// not cached: waiting threads derive for themselves, one after the other.
    pub(super) fn get<E>(
        &self,
        key: &K,
        derive: impl FnOnce() -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        let process = crate::process::id();
        let mut state = self.lock();
        loop {
            if let Some(kept) = state.find(key) {
                return Ok(kept);
            }
            if !state.running.iter().any(|running| *running == (process, key.clone())) {
                break;
            }
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.running.push((process, key.clone()));
        drop(state);
        // Ends the derivation even if `derive` panics.
        let running = Running { derived: self, key, process };
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

/// A derivation under way.
struct Running<'a, K: PartialEq + Clone, V> {
    derived: &'a Derived<K, V>,
    key: &'a K,
    process: u32,
}

impl<K: PartialEq + Clone, V> Drop for Running<'_, K, V> {
    fn drop(&mut self) {
        let own = |running: &(u32, K)| running.0 == self.process && running.1 == *self.key;
        self.derived.lock().running.retain(|running| !own(running));
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
                    released.recv_timeout(Duration::from_secs(20)).map_err(|_| ())?;
                    Ok::<_, ()>(10)
                })
            });
            begun.recv().unwrap();
            assert_eq!(derived.get(&2, || Ok::<_, ()>(20)).map(|v| *v), Ok(20));
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
                            if fails { Err(()) } else { Ok(7) }
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
            scope.spawn(|| derived.get(&1, || -> Result<u32, ()> { panic!("in derive") })).join()
        });
        assert!(panicked.is_err());
        // A derivation of the parent, as a forked child finds it.
        derived.lock().running.push((crate::process::id().wrapping_add(1), 1));
        assert_eq!(derived.get(&1, || Ok::<_, ()>(3)).map(|value| *value), Ok(3));
    }
}
