//! The entry points of the loadable library: `SELECT load_extension('libsqlite_tde')` and the like.
//!
//! * `sqlite3_extension_init` registers the VFS `tde`, for connections that name it. It refuses
//!   plaintext databases.
//! * `sqlite3_tdedefault_init` makes `tde` the default VFS, over the one that was. Existing
//!   plaintext databases pass through; temporary files are encrypted.
//!
//! Both read `config.toml` in `$SQLITE_TDE_HOME`, or in the platform's data directory, if it
//! exists; a mistake in it is the reason why the library does not load.
//!
//! Both can be called again, also after `sqlite3_shutdown`, which drops what was registered. Once a
//! process has asked for the default, the first one gives it the default too: an application must
//! not lose its encrypted temporary files to a library that loads this one again.

use std::ffi::{c_char, c_int, c_void};

/// Where the host has no memory left, it is told so: this library does not end its process.
#[global_allocator]
static ALLOCATOR: tde::extension::Allocator = tde::extension::Allocator;

/// Registers the VFS `tde`.
///
/// # Safety
/// A host calls this, with the arguments that it passes to an extension.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_extension_init(
    db: *mut c_void,
    message: *mut *mut c_char,
    table: *const c_void,
) -> c_int {
    // SAFETY: as above.
    unsafe { tde::extension::load(db, message, table, false) }
}

/// Registers the VFS `tde` as the default.
///
/// # Safety
/// As [`sqlite3_extension_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_tdedefault_init(
    db: *mut c_void,
    message: *mut *mut c_char,
    table: *const c_void,
) -> c_int {
    // SAFETY: as above.
    unsafe { tde::extension::load(db, message, table, true) }
}
