//! The open database files by name: which one a journal or log belongs to.
//!
//! `sqlite3_database_file_object` would tell, but only where SQLite itself made the name and nobody
//! stands between it and us. A VFS above may answer with a file of its own, or hand down a copy of
//! the name, before which nothing lies in memory that SQLite's routine could read.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use libsqlite3_sys as ffi;

use super::api;

/// A database file's `sqlite3_file` and the name it was opened with, as addresses. Both live until
/// the file is closed.
#[derive(Clone, Copy)]
struct Named {
    file: usize,
    name: usize,
}

impl Named {
    fn name(self) -> *const c_char {
        ptr::with_exposed_provenance(self.name)
    }
}

static OPEN: LazyLock<Mutex<HashMap<Vec<u8>, Vec<Named>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The database file that this thread locked last.
    static LOCKED: Cell<usize> = const { Cell::new(0) };
}

/// Remembers that this thread takes a lock on the database file `file`.
pub(super) fn locks(file: *mut ffi::sqlite3_file) {
    LOCKED.set(file.addr());
}

fn open() -> MutexGuard<'static, HashMap<Vec<u8>, Vec<Named>>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers that the database file `file` was opened as `name`.
///
/// # Safety
/// `name` is what was passed to xOpen for the main database `file`, which is told to [`forget`]
/// before it is closed.
pub(super) unsafe fn remember(file: *mut ffi::sqlite3_file, name: *const c_char) {
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(name) }.to_bytes().to_vec();
    let named = Named { file: file.expose_provenance(), name: name.expose_provenance() };
    open().entry(path).or_default().push(named);
}

/// Forgets the database file `file`, opened as `name`, which is about to be closed.
///
/// # Safety
/// As for [`remember`].
pub(super) unsafe fn forget(file: *mut ffi::sqlite3_file, name: *const c_char) {
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(name) }.to_bytes();
    let mut open = open();
    let Some(files) = open.get_mut(path) else { return };
    files.retain(|named| named.file != file.addr());
    if files.is_empty() {
        open.remove(path);
    }
}

/// The name that the database file `file` was opened with; null where it is none.
pub(super) fn name_of(file: *mut ffi::sqlite3_file) -> *const c_char {
    let open = open();
    let found = open.values().flatten().find(|named| named.file == file.addr());
    found.map_or(ptr::null(), |named| named.name())
}

/// The database file that the journal or log `name` belongs to; null where none can be told.
///
/// Of several connections to one database it is the one whose name has this very pointer for its
/// journal or log. A VFS above that copies names leaves the path alone to go by. That decides where
/// there is one such connection, and else it is the one that this thread locked last: SQLite opens a
/// journal or log under a lock on the database that it just took.
///
/// # Safety
/// `name` is NUL-terminated.
pub(super) unsafe fn database_of(name: *const c_char) -> *mut ffi::sqlite3_file {
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(name) }.to_bytes();
    let Some(dash) = path.iter().rposition(|&byte| byte == b'-') else { return ptr::null_mut() };
    let open = open();
    let files = open.get(&path[..dash]).map_or(&[][..], Vec::as_slice);
    let owner = files
        .iter()
        // SAFETY: the database is open, hence its name alive.
        .find(|named| unsafe { api::journal_or_log_names(named.name()) }.contains(&name))
        .or(if let [only] = files { Some(only) } else { None })
        .or_else(|| files.iter().find(|named| named.file == LOCKED.get()));
    owner.map_or(ptr::null_mut(), |named| ptr::with_exposed_provenance_mut(named.file))
}
