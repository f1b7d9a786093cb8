//! How SQLite's routines are reached: linked in, or, in the build that a host loads (feature
//! `extension`), through the table that the host passes to the entry point.

use std::ffi::{c_char, c_int, c_uchar, c_void};

use libsqlite3_sys as ffi;

/// What SQLite runs for each new connection.
pub(super) type AutoExtension = unsafe extern "C" fn(
    *mut ffi::sqlite3,
    *mut *mut c_char,
    *const ffi::sqlite3_api_routines,
) -> c_int;

/// An SQL function.
pub(super) type Function =
    unsafe extern "C" fn(*mut ffi::sqlite3_context, c_int, *mut *mut ffi::sqlite3_value);

type Aggregate = unsafe extern "C" fn(*mut ffi::sqlite3_context);
/// What gets the rows of a statement one by one.
pub(super) type Callback =
    unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;
type Destructor = unsafe extern "C" fn(*mut c_void);

macro_rules! routines {
    ($($name:ident = $linked:ident ($($arg:ty),* $(; $variadic:tt)?) -> $answer:ty;)*) => {
        /// SQLite's routines, under the names that they have in sqlite3ext.h.
        pub(super) struct Routines {
            $(pub(super) $name: unsafe extern "C" fn($($arg),* $(, $variadic)?) -> $answer,)*
            pub(super) auto_extension: unsafe extern "C" fn(Option<AutoExtension>) -> c_int,
            /// From SQLite 3.39 on.
            pub(super) db_name:
                Option<unsafe extern "C" fn(*mut ffi::sqlite3, c_int) -> *const c_char>,
        }

        #[cfg(not(feature = "extension"))]
        static LINKED: Routines = Routines {
            $($name: ffi::$linked,)*
            auto_extension: ffi::sqlite3_auto_extension,
            db_name: Some(ffi::sqlite3_db_name),
        };

        #[cfg(feature = "extension")]
        impl Routines {
            /// # Safety
            /// `table` is that of a host of this `version`.
            unsafe fn read(table: *const ffi::sqlite3_api_routines, version: c_int) -> Option<Self> {
                // SAFETY: every entry but the last is in the table of OLDEST, which `version` is
                // not under. Entry points of extensions have the type that AutoExtension says;
                // sqlite3ext.h names it less exactly.
                unsafe {
                    let auto_extension = (*table).auto_extension?;
                    Some(Self {
                        $($name: (*table).$name?,)*
                        auto_extension: std::mem::transmute::<
                            unsafe extern "C" fn(Option<unsafe extern "C" fn()>) -> c_int,
                            unsafe extern "C" fn(Option<AutoExtension>) -> c_int,
                        >(auto_extension),
                        db_name: if version >= 3_039_000 { (*table).db_name } else { None },
                    })
                }
            }
        }
    };
}

routines! {
    vfs_find = sqlite3_vfs_find(*const c_char) -> *mut ffi::sqlite3_vfs;
    vfs_register = sqlite3_vfs_register(*mut ffi::sqlite3_vfs, c_int) -> c_int;
    log = sqlite3_log(c_int, *const c_char; ...) -> ();
    mprintf = sqlite3_mprintf(*const c_char; ...) -> *mut c_char;
    free = sqlite3_free(*mut c_void) -> ();
    uri_parameter = sqlite3_uri_parameter(*const c_char, *const c_char) -> *const c_char;
    filename_journal = sqlite3_filename_journal(*const c_char) -> *const c_char;
    filename_wal = sqlite3_filename_wal(*const c_char) -> *const c_char;
    db_filename = sqlite3_db_filename(*mut ffi::sqlite3, *const c_char) -> *const c_char;
    get_autocommit = sqlite3_get_autocommit(*mut ffi::sqlite3) -> c_int;
    file_control = sqlite3_file_control(*mut ffi::sqlite3, *const c_char, c_int, *mut c_void) -> c_int;
    next_stmt = sqlite3_next_stmt(*mut ffi::sqlite3, *mut ffi::sqlite3_stmt) -> *mut ffi::sqlite3_stmt;
    stmt_busy = sqlite3_stmt_busy(*mut ffi::sqlite3_stmt) -> c_int;
    stmt_readonly = sqlite3_stmt_readonly(*mut ffi::sqlite3_stmt) -> c_int;
    create_function_v2 = sqlite3_create_function_v2(
        *mut ffi::sqlite3, *const c_char, c_int, c_int, *mut c_void,
        Option<Function>, Option<Function>, Option<Aggregate>, Option<Destructor>
    ) -> c_int;
    result_text = sqlite3_result_text(
        *mut ffi::sqlite3_context, *const c_char, c_int, Option<Destructor>
    ) -> ();
    result_null = sqlite3_result_null(*mut ffi::sqlite3_context) -> ();
    result_int64 = sqlite3_result_int64(*mut ffi::sqlite3_context, ffi::sqlite3_int64) -> ();
    result_error = sqlite3_result_error(*mut ffi::sqlite3_context, *const c_char, c_int) -> ();
    result_error_code = sqlite3_result_error_code(*mut ffi::sqlite3_context, c_int) -> ();
    user_data = sqlite3_user_data(*mut ffi::sqlite3_context) -> *mut c_void;
    context_db_handle = sqlite3_context_db_handle(*mut ffi::sqlite3_context) -> *mut ffi::sqlite3;
    value_text = sqlite3_value_text(*mut ffi::sqlite3_value) -> *const c_uchar;
    exec = sqlite3_exec(
        *mut ffi::sqlite3, *const c_char, Option<Callback>, *mut c_void, *mut *mut c_char
    ) -> c_int;
    create_module_v2 = sqlite3_create_module_v2(
        *mut ffi::sqlite3, *const c_char, *const ffi::sqlite3_module, *mut c_void,
        Option<Destructor>
    ) -> c_int;
    declare_vtab = sqlite3_declare_vtab(*mut ffi::sqlite3, *const c_char) -> c_int;
}

#[cfg(not(feature = "extension"))]
pub(super) fn sqlite() -> &'static Routines {
    &LINKED
}

#[cfg(feature = "extension")]
pub(super) use host::sqlite;
#[cfg(feature = "extension")]
pub(crate) use host::{answer, take_host};

#[cfg(feature = "extension")]
mod host {
    use std::ffi::CString;
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use super::*;

    /// The oldest host. Its table has every entry that is used unasked.
    const OLDEST: c_int = 3_037_000;

    /// The routines of the one host that this library serves, set once by [`take_host`].
    static HOST: AtomicPtr<Routines> = AtomicPtr::new(ptr::null_mut());

    pub(crate) fn sqlite() -> &'static Routines {
        // SAFETY: what is stored is never freed. Nothing of ours runs before an entry point has
        // stored it: a registration, the only beginning, comes after `take_host`.
        unsafe { &*HOST.load(Ordering::Acquire) }
    }

    /// Takes the host's table, or says why this host cannot be served.
    ///
    /// # Safety
    /// `table` is what a host passed to an entry point.
    pub(crate) unsafe fn take_host(table: *const ffi::sqlite3_api_routines) -> Result<(), String> {
        // SAFETY: every host since 3.3 has this entry, at the same place; it takes no arguments.
        let version = unsafe { (*table).libversion_number.map_or(0, |version| version()) };
        if version < OLDEST {
            return Err(format!(
                "sqlite-tde needs SQLite 3.37 or later, and this host has {}.{}.{}",
                version / 1_000_000,
                version / 1000 % 1000,
                version % 1000
            ));
        }
        // SAFETY: `version` is the host's.
        let routines = unsafe { Routines::read(table, version) }
            .ok_or("sqlite-tde needs routines that this host's SQLite was built without")?;
        let find = routines.vfs_find;
        let ours = Box::into_raw(Box::new(routines));
        let order = Ordering::AcqRel;
        let Err(stored) = HOST.compare_exchange(ptr::null_mut(), ours, order, Ordering::Acquire)
        else {
            return Ok(());
        };
        // SAFETY: `ours` was not stored; `stored` was, and is never freed.
        let same = unsafe {
            drop(Box::from_raw(ours));
            ptr::fn_addr_eq((*stored).vfs_find, find)
        };
        // A process can hold two copies of SQLite; the VFS of one is nothing to the other.
        same.then_some(()).ok_or_else(|| {
            "sqlite-tde already serves another copy of SQLite in this process".to_owned()
        })
    }
    /// Gives a host `text` as the error message that it will free.
    ///
    /// # Safety
    /// `table` and `message` are what a host passed to an entry point; it may be a refused one.
    pub(crate) unsafe fn answer(
        table: *const ffi::sqlite3_api_routines,
        message: *mut *mut c_char,
        text: &str,
    ) {
        let Ok(text) = CString::new(text) else { return };
        // SAFETY: every host since 3.3 has mprintf; "%s" takes the one string that follows it.
        unsafe {
            if let (Some(mprintf), false) = ((*table).mprintf, message.is_null()) {
                *message = mprintf(c"%s".as_ptr(), text.as_ptr());
            }
        }
    }
}
