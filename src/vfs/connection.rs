//! The SQL functions and tables of a connection, and the file behind a schema.

use std::ffi::{CString, c_char, c_int, c_void};

use crate::ffi;

use super::api::{self, NewFunction};
use super::base::BaseFile;
use super::kin::is_kin;
use super::owner::Entered;
use super::table::add_tables;
use super::{guard, is_ours};
use crate::command::{self, Attached, Command};
use crate::db::Database;
use crate::error::{Error, Result, last_error, set_last};

/// A function that changes keys or asks a provider must not be called from the schema of an
/// untrusted database.
const DIRECT: c_int = ffi::SQLITE_DIRECTONLY;

const fn command(name: &'static std::ffi::CStr) -> NewFunction {
    NewFunction { name, arguments: -1, flags: DIRECT, call: tde_command }
}

static FUNCTIONS: [NewFunction; 10] = [
    NewFunction {
        name: c"tde_last_error",
        arguments: 0,
        flags: ffi::SQLITE_INNOCUOUS,
        call: tde_last_error,
    },
    command(c"tde_status"),
    command(c"tde_protectors"),
    command(c"tde_cipher"),
    command(c"tde_check_protectors"),
    command(c"tde_lock"),
    command(c"tde_auto_rotate"),
    command(c"tde_rotate_protector"),
    command(c"tde_add_protector"),
    command(c"tde_remove_protector"),
];

/// Adds our SQL functions and tables to a connection that was just opened, and makes room for
/// trailers in a database in memory, which may be copied into an encrypted file.
///
/// # Safety
/// `db` is open.
pub(crate) unsafe extern "C" fn add_functions(
    db: *mut ffi::sqlite3,
    _message: *mut *mut c_char,
    _api: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite passes the new connection.
    guard(|| unsafe {
        let vfs = api::vfs_of(db);
        if is_ours(vfs) {
            api::reserve_bytes_in_memory(db);
        } else if is_kin(vfs) && with_open_file(db, "main", false, |_| Ok(())).is_err() {
            // Another copy of the library adds its own, which can reach the file.
            return Ok(ffi::SQLITE_OK);
        }
        for function in &FUNCTIONS {
            let code = api::add_function(db, function);
            if code != ffi::SQLITE_OK {
                return Ok(code);
            }
        }
        Ok(add_tables(db))
    })
}

/// `tde_last_error()`: the newest error of this thread, or NULL.
unsafe extern "C" fn tde_last_error(
    context: *mut ffi::sqlite3_context,
    _count: c_int,
    _values: *mut *mut ffi::sqlite3_value,
) {
    guard(|| {
        // SAFETY: SQLite passes the context of this call.
        unsafe { api::result_text(context, last_error().as_deref()) };
        Ok(ffi::SQLITE_OK)
    });
}

/// Every other function: the PRAGMA of its name, on the schema that it is given.
unsafe extern "C" fn tde_command(
    context: *mut ffi::sqlite3_context,
    count: c_int,
    values: *mut *mut ffi::sqlite3_value,
) {
    let code = guard(|| {
        // SAFETY: SQLite passes the context and the arguments of this call.
        unsafe {
            let (name, db) = api::function(context);
            let arguments = api::arguments(count, values);
            let answer =
                Command::call(&name.to_string_lossy(), &arguments).and_then(|(schema, command)| {
                    let changes = command.changes();
                    with_open_file(db, &schema, changes, |open| command::run(open, &command))
                });
            match answer {
                Ok(text) => api::result_text(context, Some(&text)),
                Err(error) => {
                    api::result_error(context, &error);
                    set_last(error);
                }
            }
        }
        Ok(ffi::SQLITE_OK)
    });
    if code != ffi::SQLITE_OK {
        // Without a result, SQLite would take it for a NULL.
        // SAFETY: SQLite passes the context of this call.
        unsafe { api::result_error(context, &Error::Base(code)) };
    }
}

/// The databases of `db`, and the state of their keys.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn attached(db: *mut ffi::sqlite3) -> Result<Vec<Attached>> {
    // SAFETY: as above.
    let databases = unsafe { api::databases(db)? };
    let attached = |(number, schema): (i64, String)| {
        // SAFETY: as above.
        let status = unsafe { with_open_file(db, &schema, false, command::status) };
        Attached { number, schema, status }
    };
    Ok(databases.into_iter().map(attached).collect())
}

/// The file-control of ours that carries an [`Errand`]. SQLite leaves those above 100 to others.
pub(super) const ERRAND: c_int = 0x7de0_0002;

/// Its address tells this copy of the library from another in the process.
static COPY: u8 = 0;

/// Work on an open file, sent to it as a file-control: SQLite then takes the mutexes under which it
/// calls the file's methods, that of a shared cache among them.
#[repr(C)]
pub(super) struct Errand<'a> {
    copy: *const u8,
    work: &'a mut dyn FnMut(Result<&mut Database<BaseFile>>),
}

impl Errand<'_> {
    /// The errand behind the argument of [`ERRAND`]; `None` if another copy of the library sent it.
    ///
    /// # Safety
    /// `arg` is the argument of [`ERRAND`], until that returns.
    pub(super) unsafe fn of<'a>(arg: *mut c_void) -> Option<&'a mut Self> {
        // SAFETY: every copy sends a struct that begins with the address of its own.
        let own = !arg.is_null() && unsafe { *arg.cast::<*const u8>() } == &raw const COPY;
        // SAFETY: this copy sent it.
        if own { Some(unsafe { &mut *arg.cast::<Self>() }) } else { None }
    }

    pub(super) fn run(&mut self, open: Result<Entered<'_, Database<BaseFile>>>) {
        match open {
            Ok(mut open) => (self.work)(Ok(&mut open)),
            Err(error) => (self.work)(Err(error)),
        }
    }
}

/// Runs `work` on the open file of the database `schema` of `db`. Work that `changes` protectors is
/// refused on a connection that only reads.
///
/// # Safety
/// `db` is open.
unsafe fn with_open_file<T>(
    db: *mut ffi::sqlite3,
    schema: &str,
    changes: bool,
    work: impl FnOnce(&mut Database<BaseFile>) -> Result<T>,
) -> Result<T> {
    let no_such = || Error::Usage(format!("no database is attached as {schema}"));
    let name = CString::new(schema).map_err(|_| no_such())?;
    // Asked before the file is entered: SQLite tells the file of each PRAGMA.
    // SAFETY: `db` is open.
    let refused = if changes { unsafe { api::refuses_changes(db) } } else { None };
    let work = |open: &mut Database<BaseFile>| match refused {
        Some(words) => command::refuse_change(open, words),
        None => work(open),
    };
    let (mut work, mut answer) = (Some(work), None);
    let mut errand = Errand {
        copy: &raw const COPY,
        work: &mut |open| {
            if let Some(work) = work.take() {
                answer = Some(open.and_then(work));
            }
        },
    };
    let arg: *mut Errand<'_> = &mut errand;
    // SAFETY: `db` is open, and `arg` what this file-control takes.
    let code = unsafe { api::file_control(db, &name, ERRAND, arg.cast()) };
    if let Some(answer) = answer {
        return answer;
    }
    if code == ffi::SQLITE_NOTFOUND {
        return Err(Error::NotEncrypted);
    }
    // SAFETY: `db` is open.
    let there = unsafe { api::has_database(db, &name) };
    Err(if there { Error::Base(code) } else { no_such() })
}

/// Runs `work` on the encrypted database `schema` of `connection`. Work that `changes` protectors
/// is refused on a connection that only reads.
#[cfg(feature = "rusqlite")]
pub(crate) fn with_database<T>(
    connection: &rusqlite::Connection,
    schema: &str,
    changes: bool,
    work: impl FnOnce(&mut Database<BaseFile>) -> Result<T>,
) -> Result<T> {
    // SAFETY: the connection is open, and used by this thread only: it is not `Sync`.
    unsafe { with_open_file(connection.handle().cast(), schema, changes, work) }
}
