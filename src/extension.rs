//! The entry points of the loadable library: `SELECT load_extension('libsqlite_tde')` and the like.
//!
//! | entry point | registers |
//! |---|---|
//! | `sqlite3_extension_init` | the VFS `tde`, for who asks for it by name; it refuses plaintext databases |
//! | `sqlite3_tdedefault_init` | `tde` as the default VFS over the one that was; existing plaintext databases pass through, temporary files are encrypted |
//!
//! Both read `config.toml` in `$SQLITE_TDE_HOME`, or in the platform's data directory, where there
//! is one; a mistake in it is the reason why the library does not load.
//!
//! Both can be called again, also after `sqlite3_shutdown`, which drops what was registered. Where
//! a process once asked for the default, the first one gives it the default too: an application
//! must not lose its encrypted temporary files to a library that loads this one again.

use std::ffi::{c_char, c_int};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};

use libsqlite3_sys as ffi;

use crate::config::Config;
use crate::options::{Options, register};
use crate::vfs::connection::add_functions;
use crate::vfs::routines::{answer, take_host};

/// Whether the default was asked for.
static DEFAULT: AtomicBool = AtomicBool::new(false);

/// Registers the VFS `tde`.
///
/// # Safety
/// A host calls this, with the arguments that it passes to an extension.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_extension_init(
    db: *mut ffi::sqlite3,
    message: *mut *mut c_char,
    table: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: as above.
    unsafe { load(db, message, table, DEFAULT.load(Ordering::Relaxed)) }
}

/// Registers the VFS `tde` as the default.
///
/// # Safety
/// As [`sqlite3_extension_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_tdedefault_init(
    db: *mut ffi::sqlite3,
    message: *mut *mut c_char,
    table: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: as above.
    unsafe { load(db, message, table, true) }
}

unsafe fn load(
    db: *mut ffi::sqlite3,
    message: *mut *mut c_char,
    table: *const ffi::sqlite3_api_routines,
    default: bool,
) -> c_int {
    if table.is_null() {
        return ffi::SQLITE_ERROR; // called by something that is no host
    }
    // SAFETY: the host passed `table`.
    let loaded = catch_unwind(|| unsafe { take_host(table) }.and_then(|()| start(default)));
    let refusal = match loaded {
        Ok(Ok(())) => {
            DEFAULT.fetch_or(default, Ordering::Relaxed);
            // SAFETY: `db` is the connection that loads us: it was opened before we could add to
            // it.
            unsafe { add_functions(db, message, table) };
            return ffi::SQLITE_OK_LOAD_PERMANENTLY;
        }
        Ok(Err(refusal)) => refusal,
        Err(_) => "sqlite-tde: a panic was stopped while it was loaded".to_owned(),
    };
    // SAFETY: the host passed both.
    unsafe { answer(table, message, &refusal) };
    ffi::SQLITE_ERROR
}

fn start(default: bool) -> Result<(), String> {
    let options = Options::new().as_default(default).allow_plaintext(default);
    Config::load_default()
        .and_then(|config| options.config(&config))
        .and_then(register)
        .map_err(|error| format!("sqlite-tde: {error}"))
}
