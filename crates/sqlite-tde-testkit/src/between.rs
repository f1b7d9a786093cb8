//! A VFS that shows each call before it reaches the base, and again after it. One of these lies
//! below `tde` and one above it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::ffi;

/// How the names of the files end.
pub const DATABASE: &str = "h.db";
pub const JOURNAL: &str = "-journal";
pub const LOG: &str = "-tdewal";

/// The kind of file that a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum File {
    Database,
    Journal,
    Log,
    /// The wal-index, reached through the database file.
    Index,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Open,
    Close,
    Read,
    Write,
    Truncate,
    Sync,
    FileSize,
    Lock,
    Unlock,
    CheckReservedLock,
    Delete,
    Access,
    ShmMap,
    ShmLock,
    ShmUnmap,
}

/// A call, without what it answers.
pub struct Call<'a> {
    pub file: File,
    pub method: Method,
    /// The file's name; empty for temporary files.
    pub name: &'a str,
    /// Where it reads or writes, or the size that it truncates to.
    pub at: u64,
    /// How much it reads or writes.
    pub len: usize,
    /// What it writes.
    pub bytes: &'a [u8],
}

/// Sees the calls.
pub trait Watch: Sync {
    fn before(&self, call: &Call<'_>);
    /// The base answered `SQLITE_OK`.
    fn done(&self, call: &Call<'_>);
}

struct State {
    base: *mut ffi::sqlite3_vfs,
    watch: &'static dyn Watch,
}

/// Registers one over the VFS called `base`.
pub fn register(base: &str, watch: &'static dyn Watch) -> &'static str {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("watch-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let base_name = CString::new(base).unwrap();
    // SAFETY: a VFS may be registered at any time; what it points to is leaked.
    unsafe {
        let below = ffi::sqlite3_vfs_find(base_name.as_ptr());
        assert!(!below.is_null(), "{base}");
        let state = Box::leak(Box::new(State { base: below, watch }));
        let vfs = ffi::sqlite3_vfs {
            iVersion: (*below).iVersion.min(2),
            szOsFile: (*below).szOsFile + size_of::<Open>() as c_int,
            mxPathname: (*below).mxPathname,
            pNext: ptr::null_mut(),
            zName: CString::new(name.as_str()).unwrap().into_raw(),
            pAppData: ptr::from_mut(state).cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(get_last_error),
            xCurrentTimeInt64: Some(current_time_int64),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        };
        let code = ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0);
        assert_eq!(code, ffi::SQLITE_OK);
    }
    Box::leak(name.into_boxed_str())
}

/// An open file; the base's lies right behind it.
#[repr(C)]
struct Open {
    head: ffi::sqlite3_file,
    state: *const State,
    file: File,
    /// SQLite's, which stays until the file is closed; null for temporary files.
    name: *const c_char,
}

unsafe fn below(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: szOsFile makes room for both.
    unsafe { file.cast::<Open>().add(1).cast() }
}

unsafe fn state_of<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a State {
    // SAFETY: `register` set it, and it is leaked.
    unsafe { &*(*vfs).pAppData.cast::<State>() }
}

unsafe fn text<'a>(name: *const c_char) -> &'a str {
    if name.is_null() {
        return "";
    }
    // SAFETY: SQLite's names are NUL-terminated and UTF-8.
    unsafe { CStr::from_ptr(name) }.to_str().unwrap_or_default()
}

fn kind(flags: c_int) -> File {
    match flags & 0xfff00 {
        ffi::SQLITE_OPEN_MAIN_DB => File::Database,
        ffi::SQLITE_OPEN_MAIN_JOURNAL => File::Journal,
        ffi::SQLITE_OPEN_WAL => File::Log,
        _ => File::Other,
    }
}

/// Shows `call`, runs it, and shows it again where it worked.
fn shown(state: &State, call: &Call<'_>, run: impl FnOnce() -> c_int) -> c_int {
    state.watch.before(call);
    let code = run();
    if code == ffi::SQLITE_OK {
        state.watch.done(call);
    }
    code
}

/// A call that reads and writes nothing.
fn plain<'a>(file: File, method: Method, name: &'a str) -> Call<'a> {
    Call { file, method, name, at: 0, len: 0, bytes: &[] }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are those of xOpen.
    unsafe {
        (*file).pMethods = ptr::null();
        let state = state_of(vfs);
        let base = below(file);
        (*base).pMethods = ptr::null();
        let call = plain(kind(flags), Method::Open, text(name));
        shown(state, &call, || {
            let code = (*state.base).xOpen.unwrap()(state.base, name, base, flags, out);
            if !(*base).pMethods.is_null() {
                let own = &mut *file.cast::<Open>();
                own.state = state;
                own.file = kind(flags);
                own.name = name;
                let version = (*(*base).pMethods).iVersion;
                own.head.pMethods = if version >= 2 { &METHODS_2 } else { &METHODS_1 };
            }
            code
        })
    }
}

/// The kind of a file that is reached by its name.
fn kind_of(name: &str) -> File {
    match name {
        name if name.ends_with(JOURNAL) => File::Journal,
        name if name.ends_with(LOG) => File::Log,
        name if name.ends_with(DATABASE) => File::Database,
        _ => File::Other,
    }
}

unsafe extern "C" fn delete(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    _sync_dir: c_int,
) -> c_int {
    // SAFETY: the arguments are those of xDelete.
    unsafe {
        let state = state_of(vfs);
        let call = plain(kind_of(text(name)), Method::Delete, text(name));
        // Power is not lost here: syncing a directory would only take time.
        shown(state, &call, || (*state.base).xDelete.unwrap()(state.base, name, 0))
    }
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are those of xAccess.
    unsafe {
        let state = state_of(vfs);
        let call = plain(kind_of(text(name)), Method::Access, text(name));
        shown(state, &call, || (*state.base).xAccess.unwrap()(state.base, name, flags, out))
    }
}

/// Nothing is waited for in a single thread.
unsafe extern "C" fn sleep(_: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

/// A method of the VFS that is the base's.
macro_rules! of_base {
    ($name:ident => $method:ident $(, $arg:ident: $type:ty)*) => {
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs $(, $arg: $type)*) -> c_int {
            // SAFETY: the arguments are those of the method.
            unsafe {
                let base = state_of(vfs).base;
                (*base).$method.unwrap()(base $(, $arg)*)
            }
        }
    };
}

of_base!(full_pathname => xFullPathname, name: *const c_char, len: c_int, out: *mut c_char);
of_base!(randomness => xRandomness, len: c_int, out: *mut c_char);
of_base!(current_time => xCurrentTime, out: *mut f64);
of_base!(get_last_error => xGetLastError, len: c_int, out: *mut c_char);
of_base!(current_time_int64 => xCurrentTimeInt64, out: *mut ffi::sqlite3_int64);

/// A method of a file that is shown, and else is the base's.
macro_rules! watched {
    ($name:ident => $method:ident, $shown:expr, $kind:expr $(, $arg:ident: $type:ty)*) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> c_int {
            // SAFETY: the arguments are those of the method, and the file is open.
            unsafe {
                let own = &*file.cast::<Open>();
                let call = plain($kind(own.file), $shown, text(own.name));
                let base = below(file);
                let run = || (*(*base).pMethods).$method.unwrap()(base $(, $arg)*);
                shown(&*own.state, &call, run)
            }
        }
    };
}

fn same(file: File) -> File {
    file
}

fn index(_: File) -> File {
    File::Index
}

watched!(close => xClose, Method::Close, same);
watched!(file_size => xFileSize, Method::FileSize, same, out: *mut i64);
watched!(lock => xLock, Method::Lock, same, level: c_int);
watched!(unlock => xUnlock, Method::Unlock, same, level: c_int);
watched!(check_reserved => xCheckReservedLock, Method::CheckReservedLock, same, out: *mut c_int);
watched!(shm_map => xShmMap, Method::ShmMap, index, page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void);
watched!(shm_lock => xShmLock, Method::ShmLock, index, offset: c_int, n: c_int, flags: c_int);
watched!(shm_unmap => xShmUnmap, Method::ShmUnmap, index, delete: c_int);

/// A method of a file that is the base's.
macro_rules! through {
    ($name:ident => $method:ident $(, $arg:ident: $type:ty)*) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> c_int {
            // SAFETY: the arguments are those of the method, and the file is open.
            unsafe {
                let base = below(file);
                (*(*base).pMethods).$method.unwrap()(base $(, $arg)*)
            }
        }
    };
}

through!(file_control => xFileControl, op: c_int, arg: *mut c_void);
through!(sector_size => xSectorSize);
through!(characteristics => xDeviceCharacteristics);

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        (*(*base).pMethods).xShmBarrier.unwrap()(base);
    }
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buf: *mut c_void,
    len: c_int,
    at: i64,
) -> c_int {
    // SAFETY: the arguments are those of xRead, and the file is open.
    unsafe {
        let own = &*file.cast::<Open>();
        let (at, count) = (at as u64, len as usize);
        let call = Call { at, len: count, ..plain(own.file, Method::Read, text(own.name)) };
        let base = below(file);
        let run = || (*(*base).pMethods).xRead.unwrap()(base, buf, len, at as i64);
        shown(&*own.state, &call, run)
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buf: *const c_void,
    len: c_int,
    at: i64,
) -> c_int {
    // SAFETY: the arguments are those of xWrite, and the file is open.
    unsafe {
        let own = &*file.cast::<Open>();
        let bytes = std::slice::from_raw_parts(buf.cast::<u8>(), len as usize);
        let name = text(own.name);
        let call =
            Call { at: at as u64, len: bytes.len(), bytes, ..plain(own.file, Method::Write, name) };
        let base = below(file);
        shown(&*own.state, &call, || (*(*base).pMethods).xWrite.unwrap()(base, buf, len, at))
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: the arguments are those of xTruncate, and the file is open.
    unsafe {
        let own = &*file.cast::<Open>();
        let call = Call { at: size as u64, ..plain(own.file, Method::Truncate, text(own.name)) };
        let base = below(file);
        shown(&*own.state, &call, || (*(*base).pMethods).xTruncate.unwrap()(base, size))
    }
}

/// Power is not lost here: what `tde` passes on as a sync is only shown.
unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let own = &*file.cast::<Open>();
        let call = plain(own.file, Method::Sync, text(own.name));
        let base = below(file);
        shown(&*own.state, &call, || match (*own.state).is_lowest() {
            true => ffi::SQLITE_OK,
            false => (*(*base).pMethods).xSync.unwrap()(base, flags),
        })
    }
}

impl State {
    /// Whether the platform's VFS is the base.
    fn is_lowest(&self) -> bool {
        // SAFETY: the base stays registered, and its name is NUL-terminated.
        let name = unsafe { CStr::from_ptr((*self.base).zName) };
        name == c"unix"
    }
}

const fn methods(version: c_int) -> ffi::sqlite3_io_methods {
    ffi::sqlite3_io_methods {
        iVersion: version,
        xClose: Some(close),
        xRead: Some(read),
        xWrite: Some(write),
        xTruncate: Some(truncate),
        xSync: Some(sync),
        xFileSize: Some(file_size),
        xLock: Some(lock),
        xUnlock: Some(unlock),
        xCheckReservedLock: Some(check_reserved),
        xFileControl: Some(file_control),
        xSectorSize: Some(sector_size),
        xDeviceCharacteristics: Some(characteristics),
        xShmMap: Some(shm_map),
        xShmLock: Some(shm_lock),
        xShmBarrier: Some(shm_barrier),
        xShmUnmap: Some(shm_unmap),
        xFetch: None,
        xUnfetch: None,
    }
}

static METHODS_1: ffi::sqlite3_io_methods = methods(1);
static METHODS_2: ffi::sqlite3_io_methods = methods(2);
