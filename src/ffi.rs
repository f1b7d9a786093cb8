//! SQLite's binary interface, as sqlite3.h has it: the types that a VFS and a table-valued function
//! need, and the numbers used here. They are declared here, so that the library builds without an
//! SQLite at hand and beside any version of rusqlite; the tests compare them with rusqlite's.
#![allow(non_snake_case, non_camel_case_types)] // SQLite's own names

use std::ffi::{c_char, c_int, c_void};

macro_rules! opaque {
    ($($name:ident)*) => {$(
        #[repr(C)]
        pub struct $name {
            _private: [u8; 0],
        }
    )*};
}

macro_rules! structures {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            #[repr(C)]
            pub struct $name {
                $(pub $field: $type,)*
            }
        )*

        #[cfg(all(test, feature = "rusqlite"))]
        #[test]
        fn structures_are_rusqlite_s() {
            use std::mem::offset_of;
            $($(assert_eq!(
                offset_of!($name, $field),
                offset_of!(rusqlite::ffi::$name, $field),
                stringify!($name.$field)
            );)*)*
            $(assert_eq!(size_of::<$name>(), size_of::<rusqlite::ffi::$name>());)*
        }
    };
}

macro_rules! numbers {
    ($($name:ident = $value:literal)*) => {
        $(pub const $name: c_int = $value;)*

        #[cfg(all(test, feature = "rusqlite"))]
        #[test]
        fn numbers_are_rusqlite_s() {
            $(assert_eq!($name, rusqlite::ffi::$name, stringify!($name));)*
        }
    };
}

opaque! {
    sqlite3 sqlite3_api_routines sqlite3_context sqlite3_index_info sqlite3_stmt sqlite3_value
}

pub type sqlite3_filename = *const c_char;
pub type sqlite3_int64 = i64;
pub type sqlite3_syscall_ptr = Option<unsafe extern "C" fn()>;

structures! {
    sqlite3_vfs {
        iVersion: c_int,
        szOsFile: c_int,
        mxPathname: c_int,
        pNext: *mut sqlite3_vfs,
        zName: *const c_char,
        pAppData: *mut c_void,
        xOpen: Option<unsafe extern "C" fn(
            *mut sqlite3_vfs, *const c_char, *mut sqlite3_file, c_int, *mut c_int
        ) -> c_int>,
        xDelete: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int) -> c_int>,
        xAccess: Option<unsafe extern "C" fn(
            *mut sqlite3_vfs, *const c_char, c_int, *mut c_int
        ) -> c_int>,
        xFullPathname: Option<unsafe extern "C" fn(
            *mut sqlite3_vfs, *const c_char, c_int, *mut c_char
        ) -> c_int>,
        xDlOpen: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char) -> *mut c_void>,
        xDlError: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char)>,
        xDlSym: Option<
            unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void, *const c_char) -> Option<
                unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void, *const c_char),
            >,
        >,
        xDlClose: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void)>,
        xRandomness: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char) -> c_int>,
        xSleep: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int>,
        xCurrentTime: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut f64) -> c_int>,
        xGetLastError: Option<unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char) -> c_int>,
        xCurrentTimeInt64: Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut i64) -> c_int>,
        xSetSystemCall: Option<unsafe extern "C" fn(
            *mut sqlite3_vfs, *const c_char, sqlite3_syscall_ptr
        ) -> c_int>,
        xGetSystemCall: Option<unsafe extern "C" fn(
            *mut sqlite3_vfs, *const c_char
        ) -> sqlite3_syscall_ptr>,
        xNextSystemCall: Option<unsafe extern "C" fn(
            *mut sqlite3_vfs, *const c_char
        ) -> *const c_char>,
    }

    sqlite3_file {
        pMethods: *const sqlite3_io_methods,
    }

    sqlite3_io_methods {
        iVersion: c_int,
        xClose: Option<unsafe extern "C" fn(*mut sqlite3_file) -> c_int>,
        xRead: Option<unsafe extern "C" fn(*mut sqlite3_file, *mut c_void, c_int, i64) -> c_int>,
        xWrite: Option<unsafe extern "C" fn(*mut sqlite3_file, *const c_void, c_int, i64) -> c_int>,
        xTruncate: Option<unsafe extern "C" fn(*mut sqlite3_file, i64) -> c_int>,
        xSync: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int>,
        xFileSize: Option<unsafe extern "C" fn(*mut sqlite3_file, *mut i64) -> c_int>,
        xLock: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int>,
        xUnlock: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int>,
        xCheckReservedLock: Option<unsafe extern "C" fn(*mut sqlite3_file, *mut c_int) -> c_int>,
        xFileControl: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int, *mut c_void) -> c_int>,
        xSectorSize: Option<unsafe extern "C" fn(*mut sqlite3_file) -> c_int>,
        xDeviceCharacteristics: Option<unsafe extern "C" fn(*mut sqlite3_file) -> c_int>,
        xShmMap: Option<unsafe extern "C" fn(
            *mut sqlite3_file, c_int, c_int, c_int, *mut *mut c_void
        ) -> c_int>,
        xShmLock: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int, c_int, c_int) -> c_int>,
        xShmBarrier: Option<unsafe extern "C" fn(*mut sqlite3_file)>,
        xShmUnmap: Option<unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int>,
        xFetch: Option<unsafe extern "C" fn(
            *mut sqlite3_file, i64, c_int, *mut *mut c_void
        ) -> c_int>,
        xUnfetch: Option<unsafe extern "C" fn(*mut sqlite3_file, i64, *mut c_void) -> c_int>,
    }

    sqlite3_module {
        iVersion: c_int,
        xCreate: Option<unsafe extern "C" fn(
            *mut sqlite3, *mut c_void, c_int, *const *const c_char,
            *mut *mut sqlite3_vtab, *mut *mut c_char
        ) -> c_int>,
        xConnect: Option<unsafe extern "C" fn(
            *mut sqlite3, *mut c_void, c_int, *const *const c_char,
            *mut *mut sqlite3_vtab, *mut *mut c_char
        ) -> c_int>,
        xBestIndex: Option<unsafe extern "C" fn(
            *mut sqlite3_vtab, *mut sqlite3_index_info
        ) -> c_int>,
        xDisconnect: Option<unsafe extern "C" fn(*mut sqlite3_vtab) -> c_int>,
        xDestroy: Option<unsafe extern "C" fn(*mut sqlite3_vtab) -> c_int>,
        xOpen: Option<unsafe extern "C" fn(
            *mut sqlite3_vtab, *mut *mut sqlite3_vtab_cursor
        ) -> c_int>,
        xClose: Option<unsafe extern "C" fn(*mut sqlite3_vtab_cursor) -> c_int>,
        xFilter: Option<unsafe extern "C" fn(
            *mut sqlite3_vtab_cursor, c_int, *const c_char, c_int,
            *mut *mut sqlite3_value
        ) -> c_int>,
        xNext: Option<unsafe extern "C" fn(*mut sqlite3_vtab_cursor) -> c_int>,
        xEof: Option<unsafe extern "C" fn(*mut sqlite3_vtab_cursor) -> c_int>,
        xColumn: Option<unsafe extern "C" fn(
            *mut sqlite3_vtab_cursor, *mut sqlite3_context, c_int
        ) -> c_int>,
        xRowid: Option<unsafe extern "C" fn(*mut sqlite3_vtab_cursor, *mut i64) -> c_int>,
        xUpdate: Option<unsafe extern "C" fn(
            *mut sqlite3_vtab, c_int, *mut *mut sqlite3_value, *mut i64
        ) -> c_int>,
        xBegin: Option<unsafe extern "C" fn(*mut sqlite3_vtab) -> c_int>,
        xSync: Option<unsafe extern "C" fn(*mut sqlite3_vtab) -> c_int>,
        xCommit: Option<unsafe extern "C" fn(*mut sqlite3_vtab) -> c_int>,
        xRollback: Option<unsafe extern "C" fn(*mut sqlite3_vtab) -> c_int>,
        xFindFunction: Option<unsafe extern "C" fn()>, // not offered, so its arguments are left out
        xRename: Option<unsafe extern "C" fn(*mut sqlite3_vtab, *const c_char) -> c_int>,
        xSavepoint: Option<unsafe extern "C" fn(*mut sqlite3_vtab, c_int) -> c_int>,
        xRelease: Option<unsafe extern "C" fn(*mut sqlite3_vtab, c_int) -> c_int>,
        xRollbackTo: Option<unsafe extern "C" fn(*mut sqlite3_vtab, c_int) -> c_int>,
        xShadowName: Option<unsafe extern "C" fn(*const c_char) -> c_int>,
        xIntegrity: Option<unsafe extern "C" fn(
            *mut sqlite3_vtab, *const c_char, *const c_char, c_int, *mut *mut c_char
        ) -> c_int>,
    }

    sqlite3_vtab {
        pModule: *const sqlite3_module,
        nRef: c_int,
        zErrMsg: *mut c_char,
    }

    sqlite3_vtab_cursor {
        pVtab: *mut sqlite3_vtab,
    }
}

numbers! {
    SQLITE_ACCESS_EXISTS = 0
    SQLITE_AUTH = 23
    SQLITE_BUSY = 5
    SQLITE_CANTOPEN = 14
    SQLITE_CORRUPT = 11
    SQLITE_DIRECTONLY = 0x80000
    SQLITE_ERROR = 1
    SQLITE_FCNTL_BEGIN_ATOMIC_WRITE = 31
    SQLITE_FCNTL_CHUNK_SIZE = 6
    SQLITE_FCNTL_CKPT_DONE = 37
    SQLITE_FCNTL_CKPT_START = 39
    SQLITE_FCNTL_FILE_POINTER = 7
    SQLITE_FCNTL_HAS_MOVED = 20
    SQLITE_FCNTL_MMAP_SIZE = 18
    SQLITE_FCNTL_PDB = 30
    SQLITE_FCNTL_PRAGMA = 14
    SQLITE_FCNTL_RESERVE_BYTES = 38
    SQLITE_FCNTL_SIZE_HINT = 5
    SQLITE_FCNTL_SYNC = 21
    SQLITE_FCNTL_VFSNAME = 12
    SQLITE_FCNTL_VFS_POINTER = 27
    SQLITE_FULL = 13
    SQLITE_INNOCUOUS = 0x200000
    SQLITE_IOCAP_ATOMIC = 1
    SQLITE_IOCAP_ATOMIC16K = 64
    SQLITE_IOCAP_ATOMIC1K = 4
    SQLITE_IOCAP_ATOMIC2K = 8
    SQLITE_IOCAP_ATOMIC32K = 128
    SQLITE_IOCAP_ATOMIC4K = 16
    SQLITE_IOCAP_ATOMIC512 = 2
    SQLITE_IOCAP_ATOMIC64K = 0x100
    SQLITE_IOCAP_ATOMIC8K = 32
    SQLITE_IOCAP_BATCH_ATOMIC = 0x4000
    SQLITE_IOCAP_IMMUTABLE = 0x2000
    SQLITE_IOCAP_POWERSAFE_OVERWRITE = 0x1000
    SQLITE_IOCAP_SAFE_APPEND = 0x200
    SQLITE_IOERR = 10
    SQLITE_IOERR_ACCESS = 0xd0a
    SQLITE_IOERR_DATA = 0x200a
    SQLITE_IOERR_DELETE = 0xa0a
    SQLITE_IOERR_DELETE_NOENT = 0x170a
    SQLITE_IOERR_READ = 0x10a
    SQLITE_IOERR_SHORT_READ = 0x20a
    SQLITE_IOERR_WRITE = 0x30a
    SQLITE_LOCK_EXCLUSIVE = 4
    SQLITE_LOCK_NONE = 0
    SQLITE_LOCK_PENDING = 3
    SQLITE_LOCK_RESERVED = 2
    SQLITE_LOCK_SHARED = 1
    SQLITE_NOTADB = 26
    SQLITE_NOTFOUND = 12
    SQLITE_NOTICE = 27
    SQLITE_OK = 0
    SQLITE_OPEN_CREATE = 4
    SQLITE_OPEN_MAIN_DB = 0x100
    SQLITE_OPEN_MAIN_JOURNAL = 0x800
    SQLITE_OPEN_READONLY = 1
    SQLITE_OPEN_READWRITE = 2
    SQLITE_OPEN_SUBJOURNAL = 0x2000
    SQLITE_OPEN_TEMP_DB = 0x200
    SQLITE_OPEN_TEMP_JOURNAL = 0x1000
    SQLITE_OPEN_TRANSIENT_DB = 0x400
    SQLITE_OPEN_WAL = 0x80000
    SQLITE_READONLY = 8
    SQLITE_SHM_EXCLUSIVE = 8
    SQLITE_SHM_LOCK = 2
    SQLITE_SHM_UNLOCK = 1
    SQLITE_SYNC_DATAONLY = 16
    SQLITE_SYNC_FULL = 3
    SQLITE_UTF8 = 1
    SQLITE_VTAB_DIRECTONLY = 3
    SQLITE_WARNING = 28
}
