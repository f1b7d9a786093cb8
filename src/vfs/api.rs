//! Every call into SQLite, each behind a safe or narrowly unsafe function.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use crate::ffi;

use super::routines::{AutoExtension, Function, sqlite};
use crate::error::{Error, Result};
use crate::page::RESERVE;

/// The VFS called `name`, or the default one; null if missing.
pub(super) fn find_vfs(name: Option<&CStr>) -> *mut ffi::sqlite3_vfs {
    // SAFETY: sqlite3_vfs_find takes a NUL-terminated name or NULL, and initialises SQLite first.
    unsafe { (sqlite().vfs_find)(name.map_or(ptr::null(), CStr::as_ptr)) }
}

/// Registers `vfs`.
///
/// # Safety
/// `vfs` lives as long as the process.
pub(super) unsafe fn register_vfs(vfs: *mut ffi::sqlite3_vfs, default: bool) -> c_int {
    // SAFETY: as above, which is what sqlite3_vfs_register demands of what it links in.
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

/// The names of the URI parameters of a database file's name.
///
/// # Safety
/// As for [`uri_parameter`]; `name` outlives the names.
pub(super) unsafe fn uri_keys<'a>(name: *const c_char) -> impl Iterator<Item = &'a CStr> {
    // SAFETY: as above; past the last parameter the answer is NULL.
    let key = move |number| unsafe { (sqlite().uri_key)(name, number) };
    let keys = (0..).map(key).take_while(|key| !key.is_null());
    // SAFETY: a key is NUL-terminated and lives as long as `name`.
    keys.map(|key| unsafe { CStr::from_ptr(key) })
}

/// The names of the journal and the log of the database file `name`.
///
/// # Safety
/// `name` is the pointer that SQLite passed to xOpen for a main database that is still open.
pub(super) unsafe fn journal_or_log_names(name: *const c_char) -> [*const c_char; 2] {
    // SAFETY: as above, which is what both ask for.
    unsafe { [(sqlite().filename_journal)(name), (sqlite().filename_wal)(name)] }
}

/// `text` in memory that SQLite will free; null if out of memory or if `text` holds a NUL.
pub(super) fn sqlite_string(text: &str) -> *mut c_char {
    let Ok(text) = CString::new(text) else { return ptr::null_mut() };
    // SAFETY: "%s" takes the one NUL-terminated string that follows it.
    unsafe { (sqlite().mprintf)(c"%s".as_ptr(), text.as_ptr()) }
}

/// Frees memory that SQLite allocated.
///
/// # Safety
/// `text` is from SQLite's allocator, or NULL, and no longer used.
pub(super) unsafe fn free(text: *mut c_char) {
    // SAFETY: as above.
    unsafe { (sqlite().free)(text.cast()) }
}

/// Asks for the reserve bytes of an encrypted page in the database of `db` whose file was opened as
/// `path`. The file is no safe way: a VFS above ours shows SQLite a file of its own.
///
/// # Errors
/// [`Error::Unsupported`] for SQLite before 3.39, whose databases cannot be listed, if the file has
/// none of the known names.
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

/// Asks for the same in a main database of `db` that has no file, so that the backup API can copy
/// it into an encrypted one.
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

/// Whether `db` is in an explicit transaction.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn is_in_transaction(db: *mut ffi::sqlite3) -> bool {
    // SAFETY: as above.
    unsafe { (sqlite().get_autocommit)(db) == 0 }
}

/// Whether no statement of `db` runs.
///
/// # Safety
/// `db` is open, and this thread holds its mutex.
pub(super) unsafe fn is_idle(db: *mut ffi::sqlite3) -> bool {
    // SAFETY: as above; past the last statement the answer is NULL.
    unsafe {
        let mut statement = (sqlite().next_stmt)(db, ptr::null_mut());
        while !statement.is_null() {
            if (sqlite().stmt_busy)(statement) != 0 {
                return false;
            }
            statement = (sqlite().next_stmt)(db, statement);
        }
    }
    true
}

/// Whether a statement of `db` runs that may write to a database.
///
/// # Safety
/// `db` is open, and this thread holds its mutex.
pub(super) unsafe fn is_writing(db: *mut ffi::sqlite3) -> bool {
    // SAFETY: as above; past the last statement the answer is NULL.
    unsafe {
        let mut statement = (sqlite().next_stmt)(db, ptr::null_mut());
        while !statement.is_null() {
            if (sqlite().stmt_busy)(statement) != 0 && (sqlite().stmt_readonly)(statement) == 0 {
                return true;
            }
            statement = (sqlite().next_stmt)(db, statement);
        }
    }
    false
}

/// The VFS that opens the files of `db`; null if unknown.
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

/// Sends the file-control `op` to the file behind the database `name` of `db`, under the mutexes
/// under which SQLite calls the methods of the file.
///
/// # Safety
/// `db` is open, `name` NUL-terminated, and `arg` of the type that `op` takes.
pub(super) unsafe fn file_control(
    db: *mut ffi::sqlite3,
    name: &CStr,
    op: c_int,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: as above.
    unsafe { (sqlite().file_control)(db, name.as_ptr(), op, arg) }
}

/// Whether `db` has a database `name`.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn has_database(db: *mut ffi::sqlite3, name: &CStr) -> bool {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    let out: *mut *mut ffi::sqlite3_file = &mut file;
    let op = ffi::SQLITE_FCNTL_FILE_POINTER;
    // SAFETY: this op writes a file pointer through its argument.
    unsafe { file_control(db, name, op, out.cast()) == ffi::SQLITE_OK }
}

/// An SQL function to be added.
pub(super) struct NewFunction {
    pub(super) name: &'static CStr,
    /// How many arguments it takes; -1 for any number.
    pub(super) arguments: c_int,
    pub(super) flags: c_int,
    pub(super) call: Function,
}

/// Adds an SQL function to `db`. Its user data is its name.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn add_function(db: *mut ffi::sqlite3, new: &NewFunction) -> c_int {
    // SAFETY: `db` is open, and the name NUL-terminated and never freed.
    unsafe {
        (sqlite().create_function_v2)(
            db,
            new.name.as_ptr(),
            new.arguments,
            ffi::SQLITE_UTF8 | new.flags,
            new.name.as_ptr().cast_mut().cast::<c_void>(),
            Some(new.call),
            None,
            None,
            None,
        )
    }
}

/// The name of the function that runs in `context`, and the connection that it runs for.
///
/// # Safety
/// `context` is that of a function that [`add_function`] added.
pub(super) unsafe fn function(
    context: *mut ffi::sqlite3_context,
) -> (&'static CStr, *mut ffi::sqlite3) {
    // SAFETY: as above; the user data is a name that is never freed.
    unsafe {
        let name = (sqlite().user_data)(context).cast::<c_char>();
        (CStr::from_ptr(name), (sqlite().context_db_handle)(context))
    }
}

/// The arguments of an SQL function as text; `None` for NULL.
///
/// # Safety
/// `values` points to `count` arguments that SQLite passed to a function.
pub(super) unsafe fn arguments(
    count: c_int,
    values: *mut *mut ffi::sqlite3_value,
) -> Vec<Option<String>> {
    let text = |index: usize| {
        // SAFETY: as above; the text is NUL-terminated and lives as long as its value.
        unsafe {
            let text = (sqlite().value_text)(*values.add(index));
            let text = (!text.is_null()).then(|| CStr::from_ptr(text.cast()));
            text.map(|text| text.to_string_lossy().into_owned())
        }
    };
    (0..usize::try_from(count).unwrap_or_default()).map(text).collect()
}

/// Makes `error` the result of the SQL function that runs in `context`.
///
/// # Safety
/// `context` is the one that SQLite passed to the function.
pub(super) unsafe fn result_error(context: *mut ffi::sqlite3_context, error: &Error) {
    let text = error.to_string();
    // SAFETY: SQLite copies the text during the call.
    unsafe {
        (sqlite().result_error)(context, text.as_ptr().cast(), text.len() as c_int);
        (sqlite().result_error_code)(context, error.sqlite_code());
    }
}

/// Makes `value` the result of the SQL function or column that runs in `context`.
///
/// # Safety
/// `context` is the one that SQLite passed.
pub(super) unsafe fn result_integer(context: *mut ffi::sqlite3_context, value: i64) {
    // SAFETY: as above.
    unsafe { (sqlite().result_int64)(context, value) }
}

/// Numbers and names of the databases of `db`.
///
/// # Errors
/// [`Error::Base`] with SQLite's code.
///
/// # Safety
/// `db` is open, and used by this thread.
pub(super) unsafe fn databases(db: *mut ffi::sqlite3) -> Result<Vec<(i64, String)>> {
    // SAFETY: as above.
    let rows = unsafe { query(db, c"PRAGMA database_list") }?;
    let numbered = |row: Vec<String>| {
        let mut columns = row.into_iter();
        Some((columns.next()?.parse().unwrap_or_default(), columns.next()?))
    };
    Ok(rows.into_iter().filter_map(numbered).collect())
}

/// Why `db` must change no protectors: `PRAGMA query_only` is on, or an authorizer or a progress
/// handler keeps it from being asked.
///
/// # Safety
/// `db` is open, and used by this thread.
pub(super) unsafe fn refuses_changes(db: *mut ffi::sqlite3) -> Option<&'static str> {
    // SAFETY: as above.
    let Ok(rows) = (unsafe { query(db, c"PRAGMA query_only") }) else {
        return Some(
            "whether PRAGMA query_only is on for this connection could not be asked, and \
             protectors are a change of the database: let its authorizer allow that PRAGMA",
        );
    };
    rows.iter().flatten().any(|on| !matches!(on.as_str(), "" | "0")).then_some(
        "PRAGMA query_only is on for this connection, and protectors are a change of the \
         database: turn it off first, or use another connection",
    )
}

/// The rows that `sql` answers with, as text; a NULL is empty.
unsafe fn query(db: *mut ffi::sqlite3, sql: &CStr) -> Result<Vec<Vec<String>>> {
    unsafe extern "C" fn row(
        rows: *mut c_void,
        count: c_int,
        values: *mut *mut c_char,
        _names: *mut *mut c_char,
    ) -> c_int {
        // SAFETY: `rows` is the list below; a row has `count` values, NUL-terminated text or NULL.
        unsafe {
            let values = (0..count as usize).map(|column| *values.add(column));
            let text = |value: *mut c_char| match value.is_null() {
                true => String::new(),
                false => CStr::from_ptr(value).to_string_lossy().into_owned(),
            };
            (*rows.cast::<Vec<Vec<String>>>()).push(values.map(text).collect());
        }
        0
    }
    let mut rows = Vec::<Vec<String>>::new();
    let out = ptr::from_mut(&mut rows).cast();
    // SAFETY: `db` is open; no message is requested, so none is to be freed.
    let code = unsafe { (sqlite().exec)(db, sql.as_ptr(), Some(row), out, ptr::null_mut()) };
    if code == ffi::SQLITE_OK { Ok(rows) } else { Err(Error::Base(code)) }
}

/// Adds an eponymous table of `module`.
///
/// # Safety
/// `db` is open; the target of `data` lives as long as the process.
pub(super) unsafe fn create_module(
    db: *mut ffi::sqlite3,
    name: &CStr,
    module: &'static ffi::sqlite3_module,
    data: *mut c_void,
) -> c_int {
    // SAFETY: as above.
    unsafe { (sqlite().create_module_v2)(db, name.as_ptr(), module, data, None) }
}

/// Declares the columns of a table.
///
/// # Safety
/// SQLite is in xConnect on `db`.
pub(super) unsafe fn declare_table(db: *mut ffi::sqlite3, declaration: &CStr) -> c_int {
    // SAFETY: as above.
    unsafe {
        // As our functions: a view or trigger in a file that somebody else made must not read it.
        let code = (sqlite().vtab_config)(db, ffi::SQLITE_VTAB_DIRECTONLY);
        match code {
            ffi::SQLITE_OK => (sqlite().declare_vtab)(db, declaration.as_ptr()),
            code => code,
        }
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
                super::routines::transient(),
            ),
            None => (sqlite().result_null)(context),
        }
    }
}
