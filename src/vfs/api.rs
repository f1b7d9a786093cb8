//! Every call that goes from here into SQLite, each behind a safe or narrowly unsafe function.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use libsqlite3_sys as ffi;

use super::routines::{AutoExtension, Function, sqlite};
use crate::error::{Error, Result};
use crate::page::RESERVE;

/// The VFS called `name`, or the default one; null where there is none.
pub(super) fn find_vfs(name: Option<&CStr>) -> *mut ffi::sqlite3_vfs {
    // SAFETY: sqlite3_vfs_find takes a NUL-terminated name or NULL, and initialises SQLite first.
    unsafe { (sqlite().vfs_find)(name.map_or(ptr::null(), CStr::as_ptr)) }
}

/// Registers `vfs`, which must live as long as the process.
pub(super) fn register_vfs(vfs: &'static mut ffi::sqlite3_vfs, default: bool) -> c_int {
    // SAFETY: the reference is 'static, as sqlite3_vfs_register demands of what it links in.
    unsafe { (sqlite().vfs_register)(vfs, c_int::from(default)) }
}

/// Runs `init` for every connection that is opened from now on.
pub(super) fn on_every_connection(init: AutoExtension) -> c_int {
    // SAFETY: the pointer has the signature that sqlite3_auto_extension documents.
    unsafe { (sqlite().auto_extension)(Some(init)) }
}

/// Puts `text` into SQLite's error log.
pub(super) fn log(code: c_int, text: &str) {
    let Ok(text) = CString::new(text) else { return };
    // SAFETY: "%s" takes the one NUL-terminated string that follows it.
    unsafe { (sqlite().log)(code, c"%s".as_ptr(), text.as_ptr()) }
}

/// The URI parameter `key` of a database file's name.
///
/// # Safety
/// `name` is the pointer that SQLite passed to xOpen for a main database.
pub(super) unsafe fn uri_parameter(name: *const c_char, key: &CStr) -> Option<String> {
    // SAFETY: as above; such names carry their parameters behind them in memory.
    let value = unsafe { (sqlite().uri_parameter)(name, key.as_ptr()) };
    // SAFETY: a non-null answer is NUL-terminated and lives as long as `name`.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}

/// The names of the journal and the log of the database file `name`.
///
/// # Safety
/// `name` is the pointer that SQLite passed to xOpen for a main database that is still open.
pub(super) unsafe fn journal_or_log_names(name: *const c_char) -> [*const c_char; 2] {
    // SAFETY: as above, which is what both ask for.
    unsafe { [(sqlite().filename_journal)(name), (sqlite().filename_wal)(name)] }
}

/// `text` in memory that SQLite will free; null where there is none or `text` holds a NUL.
pub(super) fn sqlite_string(text: &str) -> *mut c_char {
    let Ok(text) = CString::new(text) else { return ptr::null_mut() };
    // SAFETY: "%s" takes the one NUL-terminated string that follows it.
    unsafe { (sqlite().mprintf)(c"%s".as_ptr(), text.as_ptr()) }
}

/// Frees memory that SQLite allocated.
///
/// # Safety
/// `text` is from SQLite's allocator, or NULL, and used by nobody any more.
pub(super) unsafe fn free(text: *mut c_char) {
    // SAFETY: as above.
    unsafe { (sqlite().free)(text.cast()) }
}

/// Asks for the reserve bytes of an encrypted page in the database of `db` whose file was opened as
/// `path`. Its file would not tell it for sure: a VFS above ours shows SQLite a file of its own.
///
/// # Errors
/// [`Error::Unsupported`] where SQLite is older than 3.39, whose databases cannot be listed, and
/// the file is none of those with a known name.
///
/// # Safety
/// `db` is a connection whose mutex this thread holds, because it is inside a call of the file's
/// methods; `path` is NUL-terminated.
pub(super) unsafe fn reserve_bytes_of(db: *mut ffi::sqlite3, path: *const c_char) -> Result<()> {
    /// The names that SQLite itself gives: of the first database, and of VACUUM INTO's.
    const KNOWN: [&CStr; 2] = [c"main", c"vacuum_db"];
    let name = |index: usize| match sqlite().db_name {
        // SAFETY: `db` is open; past its last database the answer is NULL.
        Some(db_name) => unsafe { db_name(db, index as c_int) },
        None => KNOWN.get(index).map_or(ptr::null(), |name| name.as_ptr()),
    };
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(path) };
    let mut found = sqlite().db_name.is_some();
    for name in (0..).map(name).take_while(|name| !name.is_null()) {
        // SAFETY: `db` is open, and a name that none of its databases has is answered by NULL.
        let other = unsafe { (sqlite().db_filename)(db, name) };
        // SAFETY: a name that is not NULL is NUL-terminated.
        if !other.is_null() && unsafe { CStr::from_ptr(other) } == path {
            // SAFETY: `name` is one of the connection's databases.
            unsafe { reserve_bytes(db, name) };
            found = true;
        }
    }
    found.then_some(()).ok_or_else(|| {
        Error::Unsupported(
            "SQLite before 3.39 cannot create an encrypted database by ATTACH: open the file as a \
             main database once, or use a later SQLite"
                .into(),
        )
    })
}

/// Asks for the reserve bytes of an encrypted page in the database `name` of `db`.
///
/// # Safety
/// `db` is open and `name` is NUL-terminated.
unsafe fn reserve_bytes(db: *mut ffi::sqlite3, name: *const c_char) {
    let mut reserve = RESERVE as c_int;
    let reserve: *mut c_int = &mut reserve;
    let op = ffi::SQLITE_FCNTL_RESERVE_BYTES;
    // SAFETY: this op takes a pointer to an int, which it reads and writes.
    unsafe { (sqlite().file_control)(db, name, op, reserve.cast()) };
}

/// Asks for the same in the main database of `db` where that has no file, so that the backup API can
/// copy it into an encrypted one.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn reserve_bytes_in_memory(db: *mut ffi::sqlite3) {
    // SAFETY: as above; the answer is NULL or NUL-terminated.
    unsafe {
        let path = (sqlite().db_filename)(db, c"main".as_ptr());
        if path.is_null() || *path == 0 {
            reserve_bytes(db, c"main".as_ptr());
        }
    }
}

/// The VFS that opens the files of `db`; null where there is none.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn vfs_of(db: *mut ffi::sqlite3) -> *mut ffi::sqlite3_vfs {
    let mut vfs: *mut ffi::sqlite3_vfs = ptr::null_mut();
    let out: *mut *mut ffi::sqlite3_vfs = &mut vfs;
    let op = ffi::SQLITE_FCNTL_VFS_POINTER;
    // SAFETY: this op writes a VFS pointer through its argument.
    unsafe { (sqlite().file_control)(db, c"main".as_ptr(), op, out.cast()) };
    vfs
}

/// The file behind the database `name` of `db`; null where there is none.
///
/// # Safety
/// `db` is open and `name` is NUL-terminated.
pub(super) unsafe fn file_of(db: *mut ffi::sqlite3, name: *const c_char) -> *mut ffi::sqlite3_file {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    let out: *mut *mut ffi::sqlite3_file = &mut file;
    // SAFETY: this op writes a file pointer through its argument.
    unsafe { (sqlite().file_control)(db, name, ffi::SQLITE_FCNTL_FILE_POINTER, out.cast()) };
    file
}

/// Adds the SQL function `name` without arguments to `db`.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn add_function(db: *mut ffi::sqlite3, name: &CStr, function: Function) -> c_int {
    // SAFETY: `db` is open, `name` is NUL-terminated, and there is no user data to free.
    unsafe {
        (sqlite().create_function_v2)(
            db,
            name.as_ptr(),
            0,
            ffi::SQLITE_UTF8 | ffi::SQLITE_INNOCUOUS,
            ptr::null_mut::<c_void>(),
            Some(function),
            None,
            None,
            None,
        )
    }
}

/// Makes `text`, or NULL, the result of the SQL function that runs in `context`.
///
/// # Safety
/// `context` is the one that SQLite passed to the function.
pub(super) unsafe fn result_text(context: *mut ffi::sqlite3_context, text: Option<&str>) {
    // SAFETY: SQLite copies the bytes during the call, as SQLITE_TRANSIENT asks it to.
    unsafe {
        match text {
            Some(text) => (sqlite().result_text)(
                context,
                text.as_ptr().cast(),
                text.len() as c_int,
                ffi::SQLITE_TRANSIENT(),
            ),
            None => (sqlite().result_null)(context),
        }
    }
}
