//! What an entry point of a loadable library does. The crate `sqlite-tde-extension` is such a
//! library; an application can build one with providers of its own.
//!
//! SQLite is then reached through the table that the host passes. It has to be 3.37 or later.

use std::ffi::{c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::config::Config;
use crate::error::{Result, log};
use crate::ffi;
use crate::options::{Options, register};
use crate::process::threads;
use crate::vfs::connection::add_functions;
pub use crate::vfs::reserve::Allocator;
use crate::vfs::routines::{answer, keep_library, take_host};
use crate::vfs::{Holder, Uncancelled, holder, is_default};

/// Whether the default was asked for.
static DEFAULT: AtomicBool = AtomicBool::new(false);

/// SQLITE_OK_LOAD_PERMANENTLY: the host never unloads the library.
const OK_LOAD_PERMANENTLY: c_int = 256;

/// Takes the host's SQLite and registers the VFS `tde` with what `config.toml` says. The file is in
/// `$SQLITE_TDE_HOME`, or in the platform's data directory; it may be missing. A mistake in it is
/// the reason why the library does not load. A process may load it again: with another
/// configuration, the first one stays, and SQLite's log says so.
///
/// As the `default`, existing plaintext databases pass through and temporary files are encrypted;
/// otherwise plaintext databases are refused. Once a process has asked for the default it stays,
/// also after `sqlite3_shutdown` and another call without it.
///
/// The arguments are those of an entry point: `sqlite3 *db, char **message, const
/// sqlite3_api_routines *table`. The answer is an SQLite code, with a message where it is an error.
///
/// # Safety
/// A host passed the first three arguments to an entry point.
pub unsafe fn load(
    db: *mut c_void,
    message: *mut *mut c_char,
    table: *const c_void,
    default: bool,
) -> c_int {
    let (db, table) = (db.cast::<ffi::sqlite3>(), table.cast::<ffi::sqlite3_api_routines>());
    if table.is_null() {
        return ffi::SQLITE_ERROR; // called by something that is no host
    }
    let _held = Uncancelled::new();
    // The C library makes a thread's local memory at its first use, and ends the process where
    // there is none left.
    let _ = threads::number();
    // SAFETY: the host passed `table`.
    let loaded = catch_unwind(|| unsafe { take_host(table) }.and_then(|()| start(default)));
    let refusal = match loaded {
        Ok(Ok(())) => {
            DEFAULT.fetch_or(default, Ordering::Relaxed);
            // SAFETY: `db` is the connection that loads us: it was opened before we could add to
            // it.
            unsafe { add_functions(db, message, table) };
            // The one answer that a host takes for success which calls an entry point for each
            // connection (sqlite3_auto_extension) does not keep a library that it loads.
            return if keep_library() { ffi::SQLITE_OK } else { OK_LOAD_PERMANENTLY };
        }
        Ok(Err(refusal)) => refusal,
        Err(_) => "sqlite-tde: internal panic caught while loading".to_owned(),
    };
    // SAFETY: the host passed both.
    unsafe { answer(table, message, &refusal) };
    ffi::SQLITE_ERROR
}

/// The configuration of the first load. It stays: a later one must not weaken what open databases
/// count on.
static FIRST: Mutex<Option<Config>> = Mutex::new(None);

fn start(default: bool) -> Result<(), String> {
    register_configured(default).map_err(|error| format!("sqlite-tde: {error}"))
}

fn register_configured(asked: bool) -> Result<()> {
    let held = match holder("tde")? {
        Holder::OtherCopy if !asked || is_default(c"tde") => {
            log(
                ffi::SQLITE_WARNING,
                "sqlite-tde: another copy of the library has the VFS tde: it stays, with its \
                 configuration",
            );
            return Ok(());
        }
        Holder::ThisCopy => true,
        _ => false,
    };
    let read = Config::load_default();
    let (config, first) = {
        let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*first, &read) {
            (Some(config), _) => (config.clone(), false),
            (None, Ok(config)) => (first.insert(config.clone()).clone(), true),
            (None, Err(_)) => return read.map(drop),
        }
    };
    let had = DEFAULT.load(Ordering::Relaxed);
    // What was asked for stays: after sqlite3_shutdown, the default too.
    let options = Options::new().as_default(asked || had && !held);
    let options = options.plaintext_by_default(asked || had);
    // The default VFS passes plaintext, which the other entry point does not: it is asked for.
    let replace = !first && asked && !had;
    let registered = options.replace(replace).config(&config).and_then(register);
    if registered.is_err() && first {
        *FIRST.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
    registered?;
    let stays = "what it was first loaded with stays until the program starts anew";
    match read {
        Ok(now) if config.differs_from(&now) => log(
            ffi::SQLITE_WARNING,
            &format!("sqlite-tde: it was loaded with another configuration: {stays}"),
        ),
        Ok(_) => {}
        Err(error) => log(ffi::SQLITE_WARNING, &format!("sqlite-tde: {error}: {stays}")),
    }
    Ok(())
}
