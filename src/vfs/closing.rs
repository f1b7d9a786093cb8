//! Keeps a lock of a file from being taken while that file is closed.
//!
//! Closing a descriptor drops all POSIX locks of the process on that file. SQLite's unix VFS keeps
//! it open while any connection of the process has a lock, but another thread can take one between
//! that check and the close: writers then no longer exclude each other.
//!
//! A lock may wait long, for another process or a file system that is away: others wait for it only
//! where they close the same file, as they do in SQLite's VFS itself.

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use crate::key::newest::FileKey;
use crate::process::{forks, lock};

/// The locks of one process, by file.
struct Closing {
    process: u64,
    files: Mutex<BTreeMap<FileKey, Weak<RwLock<()>>>>,
    /// That of a forked child: a thread of its parent may have held locks of this one.
    child: OnceLock<&'static Self>,
}

thread_local! {
    /// Whether this thread is in a close or a lock of a base already: one VFS may stand on another.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Closing {
    fn once<G, T>(hold: impl FnOnce() -> G, work: impl FnOnce() -> T) -> T {
        // While a thread ends, nothing can be said of it: its closes go on without.
        if INSIDE.try_with(|inside| inside.replace(true)).unwrap_or(true) {
            return work();
        }
        let _held = hold();
        let done = work();
        let _ = INSIDE.try_with(|inside| inside.set(false));
        done
    }

    /// The lock of one file, shared by those who have it open in this process.
    fn of(&self, file: FileKey) -> Arc<RwLock<()>> {
        let mut files = lock(&self.files);
        if let Some(known) = files.get(&file).and_then(Weak::upgrade) {
            return known;
        }
        if files.len().is_power_of_two() {
            files.retain(|_, known| known.strong_count() > 0);
        }
        let new = Arc::default();
        files.insert(file, Arc::downgrade(&new));
        new
    }

    fn here() -> &'static Self {
        static FIRST: OnceLock<&'static Closing> = OnceLock::new();
        let process = forks::process();
        let mut place = &FIRST;
        loop {
            match place.get() {
                Some(closing) if closing.process == process => return closing,
                Some(parents) => place = &parents.child,
                // Another thread may be faster.
                None => {
                    let (files, child) = (Mutex::default(), OnceLock::new());
                    _ = place.set(Box::leak(Box::new(Self { process, files, child })));
                }
            }
        }
    }
}

/// What keeps the locks and the close of an open database apart.
pub(super) struct Guard {
    file: FileKey,
    /// The lock of the file, and the process that it is of.
    held: RefCell<(u64, Arc<RwLock<()>>)>,
}

impl Guard {
    pub(super) fn new(file: FileKey) -> Self {
        let closing = Closing::here();
        Self { file, held: RefCell::new((closing.process, closing.of(file))) }
    }

    fn shared(&self) -> Ref<'_, RwLock<()>> {
        if self.held.borrow().0 != forks::process() {
            // The parent's may be held by a thread that is not here.
            *self.held.borrow_mut() = Self::new(self.file).held.into_inner();
        }
        Ref::map(self.held.borrow(), |(_, shared)| &**shared)
    }

    /// Runs `lock`, beside which the file is not closed.
    pub(super) fn locks<T>(&self, lock: impl FnOnce() -> T) -> T {
        let shared = self.shared();
        Closing::once(|| shared.read().unwrap_or_else(PoisonError::into_inner), lock)
    }

    /// Runs `close`, beside which no lock of the file is taken.
    pub(super) fn closes<T>(&self, close: impl FnOnce() -> T) -> T {
        let shared = self.shared();
        Closing::once(|| shared.write().unwrap_or_else(PoisonError::into_inner), close)
    }
}
