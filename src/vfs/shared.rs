//! An open file as SQLite's handle of it and the files that belong to it share it.
//!
//! A database, its log and its journal reach each other: the log asks the wal-index, a write to the
//! database flushes the journal. SQLite holds one mutex over all three, so one thread at a time is
//! in a call on any of them. Two things could still meet an open file that is in use: a key
//! provider or a hook that uses the connection which waits for it, and a host that uses a
//! connection in two threads against SQLite's rules. Both get an error here.
//!
//! Invariants
//! 1. At most one [`Entered`] of an open file exists.
//! 2. Nothing enters a closed file.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::os::raw::c_char;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use super::file::TdeFile;
use super::open::OpenFile;
use crate::error::{Error, Result};

const FREE: u8 = 0;
const ENTERED: u8 = 1;
const CLOSED: u8 = 2;

/// An open file, entered by one call at a time.
pub(super) struct Shared {
    state: AtomicU8,
    open: UnsafeCell<OpenFile>,
    /// The name that a database file was opened with; NULL for other files.
    name: *const c_char,
    /// Where the open file keeps which connection uses it.
    connection: Arc<AtomicPtr<*mut crate::ffi::sqlite3>>,
    /// The base VFS's file, which is open as long as the open file is.
    base: *mut crate::ffi::sqlite3_file,
}

// SAFETY: `enter` gives the open file to one caller at a time, whatever thread that is in, and what
// the open file points to belongs to SQLite, which serialises calls on it by a mutex.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(open: OpenFile) -> Arc<Self> {
        let name = if open.is_database() { open.place.name() } else { ptr::null() };
        let (connection, base) = (Arc::clone(&open.connection), open.base.raw());
        let (state, open) = (AtomicU8::new(FREE), UnsafeCell::new(open));
        Arc::new(Self { state, open, name, connection, base })
    }

    /// The base VFS's file, for a call that SQLite makes without the mutex of the file.
    pub(super) fn base(&self) -> *mut crate::ffi::sqlite3_file {
        self.base
    }

    /// Notes where SQLite keeps the connection that uses the file. It says so for a connection that
    /// it just added to a shared cache, without the mutex under which another thread may be in the
    /// file.
    pub(super) fn used_by(&self, connection: *mut *mut crate::ffi::sqlite3) {
        self.connection.store(connection, Ordering::Release);
    }

    /// The name that a database file was opened with, which lives until xClose; NULL for other
    /// files.
    pub(super) fn name(&self) -> *const c_char {
        self.name
    }

    /// The open file behind `file`, if it is one of ours: not NULL, and with our methods.
    ///
    /// # Safety
    /// `file` is NULL or an open sqlite3_file.
    pub(super) unsafe fn of(file: *mut crate::ffi::sqlite3_file) -> Option<Arc<Self>> {
        // SAFETY: as above; what `install` stored has a reference of its own until xClose.
        unsafe {
            let shared = TdeFile::shared(file)?;
            Arc::increment_strong_count(shared);
            Some(Arc::from_raw(shared))
        }
    }

    /// # Errors
    /// [`Error::Usage`] where a call is in it already, or it is closed.
    pub(super) fn enter(&self) -> Result<Entered<'_>> {
        let taken =
            self.state.compare_exchange(FREE, ENTERED, Ordering::Acquire, Ordering::Relaxed);
        match taken {
            Ok(_) => Ok(Entered(self)),
            Err(CLOSED) => Err(Error::Usage("the database file is closed already".into())),
            Err(_) => Err(Error::Usage(
                "the connection was used by another thread, or by a key provider or callback that \
                 it waits for: give those a connection of their own"
                    .into(),
            )),
        }
    }

    /// Runs `work` on the open file, then lets nothing enter it any more.
    ///
    /// # Errors
    /// As [`Shared::enter`]; the file is then in use further up in this thread, and stays open.
    pub(super) fn close<T>(&self, work: impl FnOnce(&mut OpenFile) -> T) -> Result<T> {
        let mut open = self.enter()?;
        let answer = work(&mut open);
        std::mem::forget(open);
        self.state.store(CLOSED, Ordering::Release);
        Ok(answer)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}

/// The right to use an open file, until it is dropped.
pub(super) struct Entered<'a>(&'a Shared);

impl Deref for Entered<'_> {
    type Target = OpenFile;

    fn deref(&self) -> &OpenFile {
        // SAFETY: `enter` made the only one.
        unsafe { &*self.0.open.get() }
    }
}

impl DerefMut for Entered<'_> {
    fn deref_mut(&mut self) -> &mut OpenFile {
        // SAFETY: `enter` made the only one.
        unsafe { &mut *self.0.open.get() }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.state.store(FREE, Ordering::Release);
    }
}
