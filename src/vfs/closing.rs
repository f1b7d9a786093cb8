//! Keeps a lock of a file from being taken while that file is closed.
//!
//! Closing a descriptor drops all POSIX locks of the process on that file. SQLite's unix VFS keeps
//! it open while any connection of the process has a lock, but another thread can take one between
//! that check and the close: writers then no longer exclude each other.
//!
//! A lock may wait long, for another process or a file system that is away. Only a close of the
//! same file waits for it, as in SQLite's own VFS.

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use crate::key::newest::FileKey;
use crate::process::forks::{self, PerProcess};
use crate::process::lock;

/// One for each file, shared by those who have it open in this process.
type Shared = Arc<RwLock<()>>;
type Files = Mutex<BTreeMap<FileKey, Weak<RwLock<()>>>>;

static FILES: PerProcess<Files> = PerProcess::new(Files::default);

thread_local! {
    /// Whether this thread is in a close or a lock of a base already: one VFS may stand on another.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// What keeps the locks and the close of an open database apart.
pub(super) struct Guard {
    file: FileKey,
    /// The lock of the file, and the process that it is of.
    held: RefCell<(u64, Shared)>,
}

impl Guard {
    pub(super) fn new(file: FileKey) -> Self {
        Self { file, held: RefCell::new(shared(file)) }
    }

    /// Runs `lock`, beside which the file is not closed.
    pub(super) fn locks<T>(&self, lock: impl FnOnce() -> T) -> T {
        let shared = self.shared();
        once(|| shared.read().unwrap_or_else(PoisonError::into_inner), lock)
    }

    /// Runs `close`, beside which no lock of the file is taken.
    pub(super) fn closes<T>(&self, close: impl FnOnce() -> T) -> T {
        let shared = self.shared();
        once(|| shared.write().unwrap_or_else(PoisonError::into_inner), close)
    }

    fn shared(&self) -> Ref<'_, RwLock<()>> {
        if self.held.borrow().0 != forks::process() {
            *self.held.borrow_mut() = shared(self.file);
        }
        Ref::map(self.held.borrow(), |(_, shared)| &**shared)
    }
}

/// The lock of `file` in this process, and the number of the process.
fn shared(file: FileKey) -> (u64, Shared) {
    let here = FILES.here();
    let mut files = lock(&here.value);
    if let Some(known) = files.get(&file).and_then(Weak::upgrade) {
        return (here.process, known);
    }
    if files.len().is_power_of_two() {
        files.retain(|_, known| known.strong_count() > 0);
    }
    let new = Arc::default();
    files.insert(file, Arc::downgrade(&new));
    (here.process, new)
}

fn once<G, T>(hold: impl FnOnce() -> G, work: impl FnOnce() -> T) -> T {
    // A thread that is ending has no local data any more: it goes on without the lock.
    if INSIDE.try_with(|inside| inside.replace(true)).unwrap_or(true) {
        return work();
    }
    let _held = hold();
    let done = work();
    let _ = INSIDE.try_with(|inside| inside.set(false));
    done
}
