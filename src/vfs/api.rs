//! Every call that goes from here into SQLite, each behind a safe or narrowly unsafe function.
//! A loadable build has to reach them through the host's table: this is the one file to change.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use libsqlite3_sys as ffi;

use crate::page::RESERVE;

/// The VFS called `name`, or the default one; null where there is none.
pub(super) fn find_vfs(name: Option<&CStr>) -> *mut ffi::sqlite3_vfs {
    // SAFETY: sqlite3_vfs_find takes a NUL-terminated name or NULL, and initialises SQLite first.
    unsafe { ffi::sqlite3_vfs_find(name.map_or(ptr::null(), CStr::as_ptr)) }
}

/// Registers `vfs`, which must live as long as the process.
pub(super) fn register_vfs(vfs: &'static mut ffi::sqlite3_vfs, default: bool) -> c_int {
    // SAFETY: the reference is 'static, as sqlite3_vfs_register demands of what it links in.
    unsafe { ffi::sqlite3_vfs_register(vfs, c_int::from(default)) }
}

/// Runs `init` for every connection that is opened from now on.
pub(super) fn on_every_connection(
    init: unsafe extern "C" fn(
        *mut ffi::sqlite3,
        *mut *mut c_char,
        *const ffi::sqlite3_api_routines,
    ) -> c_int,
) -> c_int {
    // SAFETY: the pointer has the signature that sqlite3_auto_extension documents.
    unsafe { ffi::sqlite3_auto_extension(Some(init)) }
}

/// Puts `text` into SQLite's error log.
pub(super) fn log(code: c_int, text: &str) {
    let Ok(text) = CString::new(text) else { return };
    // SAFETY: "%s" takes the one NUL-terminated string that follows it.
    unsafe { ffi::sqlite3_log(code, c"%s".as_ptr(), text.as_ptr()) }
}

/// The URI parameter `key` of a database file's name.
///
/// # Safety
/// `name` is the pointer that SQLite passed to xOpen for a main database.
pub(super) unsafe fn uri_parameter(name: *const c_char, key: &CStr) -> Option<String> {
    // SAFETY: as above; such names carry their parameters behind them in memory.
    let value = unsafe { ffi::sqlite3_uri_parameter(name, key.as_ptr()) };
    // SAFETY: a non-null answer is NUL-terminated and lives as long as `name`.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}

/// The database file that a journal or log belongs to.
///
/// # Safety
/// `name` is the pointer that SQLite passed to xOpen for a main journal or a WAL.
pub(super) unsafe fn database_file(name: *const c_char) -> *mut ffi::sqlite3_file {
    // SAFETY: as above, which is what sqlite3_database_file_object asks for.
    unsafe { ffi::sqlite3_database_file_object(name) }
}

/// `text` in memory that SQLite will free; null where there is none or `text` holds a NUL.
pub(super) fn sqlite_string(text: &str) -> *mut c_char {
    let Ok(text) = CString::new(text) else { return ptr::null_mut() };
    // SAFETY: "%s" takes the one NUL-terminated string that follows it.
    unsafe { ffi::sqlite3_mprintf(c"%s".as_ptr(), text.as_ptr()) }
}

/// Asks for the reserve bytes of an encrypted page in the database of `db` whose file is `file`.
///
/// # Safety
/// `db` is a connection whose mutex this thread holds: it is inside a call of `file`'s methods.
pub(super) unsafe fn reserve_bytes(db: *mut ffi::sqlite3, file: *mut ffi::sqlite3_file) {
    for index in 0.. {
        // SAFETY: `db` is open; past its last database the answer is NULL.
        let name = unsafe { ffi::sqlite3_db_name(db, index) };
        if name.is_null() {
            return;
        }
        // SAFETY: `name` is one of the connection's databases.
        if unsafe { file_of(db, name) } == file {
            let mut reserve = RESERVE as c_int;
            let reserve: *mut c_int = &mut reserve;
            let op = ffi::SQLITE_FCNTL_RESERVE_BYTES;
            // SAFETY: this op takes a pointer to an int, which it reads and writes.
            unsafe { ffi::sqlite3_file_control(db, name, op, reserve.cast()) };
            return;
        }
    }
}

/// The file behind the database `name` of `db`; null where there is none.
///
/// # Safety
/// `db` is open and `name` is NUL-terminated.
pub(super) unsafe fn file_of(db: *mut ffi::sqlite3, name: *const c_char) -> *mut ffi::sqlite3_file {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    let out: *mut *mut ffi::sqlite3_file = &mut file;
    // SAFETY: this op writes a file pointer through its argument.
    unsafe { ffi::sqlite3_file_control(db, name, ffi::SQLITE_FCNTL_FILE_POINTER, out.cast()) };
    file
}

/// Adds the SQL function `name` without arguments to `db`.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn add_function(
    db: *mut ffi::sqlite3,
    name: &CStr,
    function: unsafe extern "C" fn(*mut ffi::sqlite3_context, c_int, *mut *mut ffi::sqlite3_value),
) -> c_int {
    // SAFETY: `db` is open, `name` is NUL-terminated, and there is no user data to free.
    unsafe {
        ffi::sqlite3_create_function_v2(
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
            Some(text) => ffi::sqlite3_result_text(
                context,
                text.as_ptr().cast(),
                text.len() as c_int,
                ffi::SQLITE_TRANSIENT(),
            ),
            None => ffi::sqlite3_result_null(context),
        }
    }
}
