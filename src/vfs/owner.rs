//! An open file as SQLite's handles share it.
//!
//! A main file, its journals and its log are one [`Database`], which their handles reach through an
//! [`Owner`]. SQLite holds one mutex over all of them, so one thread at a time is in a call on any.
//! Two callers could still meet a database in use: a callback that uses the connection which waits
//! for it, and a host that uses a connection in two threads against SQLite's rules. Both get an
//! error here.
//!
//! Invariants
//! 1. At most one [`Entered`] of a [`Guarded`] value exists.
//! 2. Nothing enters a closed one.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::os::raw::c_char;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};

use crate::ffi;

use super::base::BaseFile;
use crate::db::{Database, Outside};
use crate::error::{Error, Result};

const FREE: u8 = 0;
const ENTERED: u8 = 1;
const CLOSED: u8 = 2;

/// A value that is entered by one call at a time.
pub(super) struct Guarded<T> {
    state: AtomicU8,
    value: UnsafeCell<T>,
}

// SAFETY: `enter` gives the value to one caller at a time, whatever thread that is in.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    pub(super) fn new(value: T) -> Self {
        Self { state: AtomicU8::new(FREE), value: UnsafeCell::new(value) }
    }

    /// # Errors
    /// [`Error::Usage`] while another call is in it, and once it is closed.
    pub(super) fn enter(&self) -> Result<Entered<'_, T>> {
        let taken =
            self.state.compare_exchange(FREE, ENTERED, Ordering::Acquire, Ordering::Relaxed);
        match taken {
            Ok(_) => Ok(Entered(self)),
            Err(CLOSED) => Err(Error::Usage("the database file is closed already".into())),
            Err(_) => Err(Error::Usage(
                "connection used by another thread, or by a provider or callback it waits for: \
                 give that its own connection"
                    .into(),
            )),
        }
    }

    /// Runs `work` on the value, then closes it to every later call.
    ///
    /// # Errors
    /// As [`Guarded::enter`]; the value is then in use, and stays open.
    pub(super) fn close<A>(&self, work: impl FnOnce(&mut T) -> A) -> Result<A> {
        let mut entered = self.enter()?;
        let answer = work(&mut entered);
        std::mem::forget(entered);
        self.state.store(CLOSED, Ordering::Release);
        Ok(answer)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }
}

/// The right to use a value, until it is dropped.
pub(super) struct Entered<'a, T>(&'a Guarded<T>);

impl<T> Deref for Entered<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `enter` made the only one.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Entered<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: `enter` made the only one.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Entered<'_, T> {
    fn drop(&mut self) {
        self.0.state.store(FREE, Ordering::Release);
    }
}

/// An open database, and the state that is readable without entering it.
pub(super) struct Owner {
    pub(super) database: Guarded<Database<BaseFile>>,
    pub(super) outside: Arc<Outside>,
    /// The name that the main file was opened with, which lives until xClose.
    pub(super) name: *const c_char,
    /// The place of SQLite's pointer to the connection that uses the database (`SQLITE_FCNTL_PDB`).
    /// In a shared cache SQLite passes it while another thread is in the file.
    connection: Arc<AtomicPtr<*mut ffi::sqlite3>>,
    /// The base VFS's file, which is open as long as the main file is, for calls that SQLite makes
    /// without the mutex of the file.
    pub(super) base: *mut ffi::sqlite3_file,
    /// SQLite is being told to reserve bytes, and may ask for the file's size meanwhile.
    pub(super) reserving: AtomicBool,
}

// SAFETY: `name` and `base` live as long as the main file is open, and only the base VFS, which is
// called as SQLite calls us, dereferences them.
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

impl Owner {
    pub(super) fn new(database: Database<BaseFile>, name: *const c_char) -> Arc<Self> {
        let (outside, connection) =
            (Arc::clone(database.outside()), Arc::clone(&database.host.connection));
        let base = database.host.raw();
        let (database, reserving) = (Guarded::new(database), AtomicBool::new(false));
        Arc::new(Self { database, outside, name, connection, base, reserving })
    }

    pub(super) fn enter(&self) -> Result<Entered<'_, Database<BaseFile>>> {
        self.database.enter()
    }

    /// Notes the place of SQLite's pointer to the connection.
    pub(super) fn used_by(&self, connection: *mut *mut ffi::sqlite3) {
        self.connection.store(connection, Ordering::Release);
    }

    /// The place of that pointer; NULL before SQLite has passed it.
    pub(super) fn connection(&self) -> *mut *mut ffi::sqlite3 {
        self.connection.load(Ordering::Acquire)
    }

    /// Whether SQLite must still be told to reserve bytes for the trailer of `database`, which is
    /// this one: nothing was written yet, and on first writing SQLite takes the layout that it has
    /// in mind by then.
    pub(super) fn wants_reserve(&self, database: &Database<BaseFile>) -> bool {
        database.main.is_unmade()
            && !self.connection().is_null()
            && !self.reserving.load(Ordering::Relaxed)
    }
}
