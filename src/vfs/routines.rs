//! SQLite's routines: from the table of the host that loaded the library (feature `extension`),
//! else the symbols that the program is linked with. Both can be built in; a process uses one copy
//! of SQLite, the first that is asked.

use std::ffi::{c_char, c_int, c_uchar, c_void};
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::ffi;

/// The callback that SQLite runs for each new connection.
pub(super) type AutoExtension = unsafe extern "C" fn(
    *mut ffi::sqlite3,
    *mut *mut c_char,
    *const ffi::sqlite3_api_routines,
) -> c_int;

type DbName = unsafe extern "C" fn(*mut ffi::sqlite3, c_int) -> *const c_char;

/// An SQL function.
pub(super) type Function =
    unsafe extern "C" fn(*mut ffi::sqlite3_context, c_int, *mut *mut ffi::sqlite3_value);

type Aggregate = unsafe extern "C" fn(*mut ffi::sqlite3_context);
/// The callback that gets the rows of a statement one by one.
pub(super) type Callback =
    unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;
type Destructor = unsafe extern "C" fn(*mut c_void);

macro_rules! routines {
    ($(
        $at:literal $name:ident =
            $linked:ident ($($arg:ty),* $(; $variadic:tt)?) -> $answer:ty;
    )*) => {
        /// SQLite's routines, under the names that they have in sqlite3ext.h.
        pub(super) struct Routines {
            $(pub(super) $name: unsafe extern "C" fn($($arg),* $(, $variadic)?) -> $answer,)*
            /// From SQLite 3.39 on.
            pub(super) db_name: Option<DbName>,
        }

        /// The SQLite that the program is linked with.
        #[cfg(any(feature = "rusqlite", not(feature = "extension")))]
        fn linked() -> Routines {
            unsafe extern "C" {
                $(fn $linked($(_: $arg),* $(, $variadic)?) -> $answer;)*
                fn sqlite3_db_name(_: *mut ffi::sqlite3, _: c_int) -> *const c_char;
            }
            Routines { $($name: $linked,)* db_name: Some(sqlite3_db_name) }
        }

        #[cfg(any(feature = "extension", test))]
        impl Routines {
            /// # Safety
            /// `table` is that of a host of this `version`.
            unsafe fn read(table: *const ffi::sqlite3_api_routines, version: c_int) -> Option<Self> {
                // SAFETY: a table is one function pointer after the other; its entries keep their
                // places and types in all versions. Every entry but the last is in the table of
                // OLDEST, which `version` is not under.
                unsafe {
                    $(let $name = std::mem::transmute::<
                        unsafe extern "C" fn(),
                        unsafe extern "C" fn($($arg),* $(, $variadic)?) -> $answer,
                    >(entry(table, $at)?);)*
                    let db_name = if version >= 3_039_000 { entry(table, DB_NAME) } else { None };
                    let db_name = db_name.map(|at| {
                        std::mem::transmute::<unsafe extern "C" fn(), DbName>(at)
                    });
                    Some(Self { $($name,)* db_name })
                }
            }

            /// The names of the routines that are not those of `other`.
            #[cfg(test)]
            fn differences(&self, other: &Self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $(if !std::ptr::fn_addr_eq(self.$name, other.$name) {
                    names.push(stringify!($name));
                })*
                match (self.db_name, other.db_name) {
                    (Some(one), Some(other)) if std::ptr::fn_addr_eq(one, other) => {}
                    _ => names.push("db_name"),
                }
                names
            }
        }
    };
}

/// The place of `db_name` in a host's table.
#[cfg(any(feature = "extension", test))]
const DB_NAME: usize = 264;

/// The entry at place `at` of a host's table.
///
/// # Safety
/// `table` has that entry.
#[cfg(any(feature = "extension", test))]
unsafe fn entry(
    table: *const ffi::sqlite3_api_routines,
    at: usize,
) -> Option<unsafe extern "C" fn()> {
    // SAFETY: as above.
    unsafe { table.cast::<Option<unsafe extern "C" fn()>>().add(at).read() }
}

// The numbers are the places in a host's table.
routines! {
    192 auto_extension = sqlite3_auto_extension(Option<AutoExtension>) -> c_int;
    141 vfs_find = sqlite3_vfs_find(*const c_char) -> *mut ffi::sqlite3_vfs;
    142 vfs_register = sqlite3_vfs_register(*mut ffi::sqlite3_vfs, c_int) -> c_int;
    167 log = sqlite3_log(c_int, *const c_char; ...) -> ();
    69 mprintf = sqlite3_mprintf(*const c_char; ...) -> *mut c_char;
    58 free = sqlite3_free(*mut c_void) -> ();
    189 uri_parameter = sqlite3_uri_parameter(*const c_char, *const c_char) -> *const c_char;
    245 uri_key = sqlite3_uri_key(*const c_char, c_int) -> *const c_char;
    247 filename_journal = sqlite3_filename_journal(*const c_char) -> *const c_char;
    248 filename_wal = sqlite3_filename_wal(*const c_char) -> *const c_char;
    180 db_filename = sqlite3_db_filename(*mut ffi::sqlite3, *const c_char) -> *const c_char;
    60 get_autocommit = sqlite3_get_autocommit(*mut ffi::sqlite3) -> c_int;
    127 file_control = sqlite3_file_control(
        *mut ffi::sqlite3, *const c_char, c_int, *mut c_void
    ) -> c_int;
    152 next_stmt = sqlite3_next_stmt(*mut ffi::sqlite3, *mut ffi::sqlite3_stmt) -> *mut ffi::sqlite3_stmt;
    184 stmt_busy = sqlite3_stmt_busy(*mut ffi::sqlite3_stmt) -> c_int;
    185 stmt_readonly = sqlite3_stmt_readonly(*mut ffi::sqlite3_stmt) -> c_int;
    162 create_function_v2 = sqlite3_create_function_v2(
        *mut ffi::sqlite3, *const c_char, c_int, c_int, *mut c_void,
        Option<Function>, Option<Function>, Option<Aggregate>, Option<Destructor>
    ) -> c_int;
    85 result_text = sqlite3_result_text(
        *mut ffi::sqlite3_context, *const c_char, c_int, Option<Destructor>
    ) -> ();
    84 result_null = sqlite3_result_null(*mut ffi::sqlite3_context) -> ();
    83 result_int64 = sqlite3_result_int64(*mut ffi::sqlite3_context, ffi::sqlite3_int64) -> ();
    80 result_error = sqlite3_result_error(*mut ffi::sqlite3_context, *const c_char, c_int) -> ();
    146 result_error_code = sqlite3_result_error_code(*mut ffi::sqlite3_context, c_int) -> ();
    101 user_data = sqlite3_user_data(*mut ffi::sqlite3_context) -> *mut c_void;
    149 context_db_handle = sqlite3_context_db_handle(*mut ffi::sqlite3_context) -> *mut ffi::sqlite3;
    109 value_text = sqlite3_value_text(*mut ffi::sqlite3_value) -> *const c_uchar;
    55 exec = sqlite3_exec(
        *mut ffi::sqlite3, *const c_char, Option<Callback>, *mut c_void, *mut *mut c_char
    ) -> c_int;
    119 create_module_v2 = sqlite3_create_module_v2(
        *mut ffi::sqlite3, *const c_char, *const ffi::sqlite3_module, *mut c_void,
        Option<Destructor>
    ) -> c_int;
    177 vtab_config = sqlite3_vtab_config(*mut ffi::sqlite3, c_int; ...) -> c_int;
    50 declare_vtab = sqlite3_declare_vtab(*mut ffi::sqlite3, *const c_char) -> c_int;
}

/// The routines of the one SQLite that this process is served on.
static SERVED: OnceLock<Routines> = OnceLock::new();

pub(super) fn sqlite() -> &'static Routines {
    SERVED.get_or_init(linked)
}

/// # Errors
/// If no SQLite is linked and no host has loaded the library.
pub(super) fn check_reachable() -> Result<()> {
    let linked = cfg!(any(feature = "rusqlite", not(feature = "extension")));
    if linked || SERVED.get().is_some() {
        return Ok(());
    }
    Err(Error::Usage("this build has no SQLite of its own: a host has to load it first".into()))
}

#[cfg(all(feature = "extension", not(feature = "rusqlite")))]
fn linked() -> Routines {
    unreachable!("nothing is registered before check_reachable()")
}

/// Tells SQLite to copy the text that it gets.
pub(super) fn transient() -> Option<Destructor> {
    // SAFETY: SQLite compares this value, and never calls it.
    Some(unsafe { std::mem::transmute::<isize, Destructor>(-1) })
}

#[cfg(feature = "extension")]
pub(crate) use host::{answer, keep_library, take_host};

#[cfg(feature = "extension")]
mod host {
    use std::ffi::CString;
    use std::ptr;

    use super::*;

    /// The oldest host. Its table has every entry that is used unasked.
    const OLDEST: c_int = 3_037_000;

    /// Places in the table, the same since SQLite 3.3.
    const LIBVERSION_NUMBER: usize = 67;
    const MPRINTF: usize = 69;

    type Version = unsafe extern "C" fn() -> c_int;
    type Printf = unsafe extern "C" fn(*const c_char, ...) -> *mut c_char;

    /// Takes the host's table, or returns the reason why this host cannot be served.
    ///
    /// # Safety
    /// `table` is what a host passed to an entry point.
    pub(crate) unsafe fn take_host(table: *const ffi::sqlite3_api_routines) -> Result<(), String> {
        // SAFETY: every host since 3.3 has this entry, at the same place; it takes no arguments.
        let version = unsafe {
            entry(table, LIBVERSION_NUMBER)
                .map_or(0, |at| std::mem::transmute::<unsafe extern "C" fn(), Version>(at)())
        };
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
        let served = SERVED.get_or_init(|| routines);
        // A process can hold two copies of SQLite; the VFS of one is nothing to the other.
        ptr::fn_addr_eq(served.vfs_find, find).then_some(()).ok_or_else(|| {
            "sqlite-tde already serves another copy of SQLite in this process".to_owned()
        })
    }

    /// Keeps this library in the process, whoever unloads it: threads, forks and VFSs of SQLite's
    /// lead into it. Whether that could be done; not where it is part of the program.
    #[cfg(any(
        target_os = "linux",
        target_os = "android",
        target_os = "freebsd",
        target_vendor = "apple"
    ))]
    pub(crate) fn keep_library() -> bool {
        static KEPT: OnceLock<bool> = OnceLock::new();
        *KEPT.get_or_init(|| {
            let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
            let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
            // SAFETY: the address is one of this library's; dladdr fills the struct if it answers
            // other than 0, with a NUL-terminated name. The library is loaded already, so nothing
            // of it runs; the handle is never closed.
            unsafe {
                libc::dladdr(keep_library as *const c_void, found.as_mut_ptr()) != 0
                    && !libc::dlopen((*found.as_ptr()).dli_fname, flags).is_null()
            }
        })
    }

    #[cfg(not(any(
        target_os = "linux",
        target_os = "android",
        target_os = "freebsd",
        target_vendor = "apple"
    )))]
    pub(crate) fn keep_library() -> bool {
        false
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
            if let (Some(mprintf), false) = (entry(table, MPRINTF), message.is_null()) {
                let mprintf = std::mem::transmute::<unsafe extern "C" fn(), Printf>(mprintf);
                *message = mprintf(c"%s".as_ptr(), text.as_ptr());
            }
        }
    }
}

#[cfg(all(test, feature = "rusqlite"))]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// SQLite passes its table to the callback for each new connection.
    #[test]
    fn a_host_s_table_has_the_routines_at_these_places() {
        static FOUND: Mutex<Vec<Vec<&str>>> = Mutex::new(Vec::new());
        unsafe extern "C" fn compare(
            _: *mut ffi::sqlite3,
            _: *mut *mut c_char,
            table: *const ffi::sqlite3_api_routines,
        ) -> c_int {
            // SAFETY: SQLite passes its own table, of a version that rusqlite's minimum is under.
            let read = unsafe { Routines::read(table, 3_039_000) }.unwrap();
            FOUND.lock().unwrap().push(read.differences(&linked()));
            ffi::SQLITE_OK
        }
        // SAFETY: the function has the type that SQLite calls it by.
        assert_eq!(unsafe { (sqlite().auto_extension)(Some(compare)) }, ffi::SQLITE_OK);
        rusqlite::Connection::open_in_memory().unwrap();
        assert_eq!(FOUND.lock().unwrap()[0], Vec::<&str>::new());
    }
}
