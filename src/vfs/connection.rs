//! What is reached through a connection: the SQL functions it gets, and the file behind a schema.

use std::ffi::{c_char, c_int};

use libsqlite3_sys as ffi;

use super::{api, guard, is_ours};
use crate::error::last_error;

/// Adds our SQL functions to a connection that was just opened, and makes room for trailers in a
/// database in memory, which may be copied into an encrypted file.
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
        if is_ours(api::vfs_of(db)) {
            api::reserve_bytes_in_memory(db);
        }
        Ok(api::add_function(db, c"tde_last_error", tde_last_error))
    })
}

/// `tde_last_error()`: what went wrong last in this thread, or NULL.
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

#[cfg(feature = "rusqlite")]
mod with_rusqlite {
    use std::ffi::CString;

    use super::*;
    use crate::error::{Error, Result};
    use crate::file::main_db::MainDb;
    use crate::file::wal::Frames;
    use crate::vfs::base::BaseFile;
    use crate::vfs::file::TdeFile;
    use crate::vfs::open::OpenFile;

    /// Runs `work` on the encrypted database `schema` of `connection`, under a shared lock.
    pub(crate) fn with_database<T>(
        connection: &rusqlite::Connection,
        schema: &str,
        work: impl FnOnce(&mut MainDb, &BaseFile) -> Result<T>,
    ) -> Result<T> {
        with_file(connection, schema, |open| open.with_shared_lock(work))
    }

    /// Runs `work` as [`with_database`] does, with what the write-ahead log holds.
    pub(crate) fn with_database_and_log<T>(
        connection: &rusqlite::Connection,
        schema: &str,
        work: impl FnOnce(&mut MainDb, &BaseFile, Frames) -> Result<T>,
    ) -> Result<T> {
        with_file(connection, schema, |open| {
            let log = open.log_frames()?;
            open.with_shared_lock(|db, base| work(db, base, log))
        })
    }

    fn with_file<T>(
        connection: &rusqlite::Connection,
        schema: &str,
        work: impl FnOnce(&mut OpenFile) -> Result<T>,
    ) -> Result<T> {
        let no_such = || Error::Usage(format!("no database is attached as {schema}"));
        let name = CString::new(schema).map_err(|_| no_such())?;
        // SAFETY: the connection is open, and used by nobody else: it is not `Sync`.
        let file = unsafe { api::file_of(connection.handle(), name.as_ptr()) };
        if file.is_null() {
            return Err(no_such());
        }
        // SAFETY: as above, so no method of the file runs meanwhile.
        work(unsafe { TdeFile::of(file) }.ok_or(Error::NotEncrypted)?)
    }
}
#[cfg(feature = "rusqlite")]
pub(crate) use with_rusqlite::{with_database, with_database_and_log};
