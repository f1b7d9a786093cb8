//! The methods of the test VFS. Each turns its arguments into a [`Call`], which the properties
//! answer or pass on to [`Below`].

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use rusqlite::ffi;

use super::{Call, File, Properties};

struct State {
    /// Null where the properties answer each call.
    base: *mut ffi::sqlite3_vfs,
    properties: &'static dyn Properties,
}

/// A file as SQLite sees it; the base VFS's file lies right behind it.
#[repr(C)]
struct Handle {
    head: ffi::sqlite3_file,
    open: *mut Open,
}

struct Open {
    state: &'static State,
    file: File,
    methods: ffi::sqlite3_io_methods,
    /// The name that the VFS below has, where it gets a copy: zeros lie on both sides, as far as
    /// SQLite's routines for names look.
    _copy: Vec<u8>,
}

/// Zeros before and behind a copied name.
const AROUND: usize = 16;

/// The VFS below, as one call reaches it.
pub struct Below {
    vfs: *mut ffi::sqlite3_vfs,
    /// Null for calls on a name.
    file: *mut ffi::sqlite3_file,
    /// The name and flags of xOpen, xDelete and xAccess.
    name: *const c_char,
    flags: c_int,
    out_flags: *mut c_int,
}

impl Below {
    /// Runs `call` on the VFS below. The properties of a VFS without one must not call this.
    pub fn call(&self, call: &mut Call<'_>) -> c_int {
        assert!(!self.vfs.is_null(), "no VFS lies below");
        let (vfs, file) = (self.vfs, self.file);
        // SAFETY: the pointers are those of the call that SQLite makes right now. For all calls on
        // a file, the file below is open.
        unsafe {
            match call {
                Call::Open => {
                    let open = (*vfs).xOpen.unwrap();
                    return open(vfs, self.name, file, self.flags, self.out_flags);
                }
                Call::Delete { sync_dir } => {
                    return (*vfs).xDelete.unwrap()(vfs, self.name, *sync_dir);
                }
                Call::Access { flags, out } => {
                    return (*vfs).xAccess.unwrap()(vfs, self.name, *flags, *out);
                }
                _ => {}
            }
            let methods = &*(*file).pMethods;
            match call {
                Call::Open | Call::Delete { .. } | Call::Access { .. } => unreachable!(),
                Call::Close => methods.xClose.unwrap()(file),
                Call::Read { buf, at } => {
                    let len = buf.len() as c_int;
                    methods.xRead.unwrap()(file, buf.as_mut_ptr().cast(), len, *at)
                }
                Call::Write { bytes, at } => {
                    let len = bytes.len() as c_int;
                    methods.xWrite.unwrap()(file, bytes.as_ptr().cast(), len, *at)
                }
                Call::Truncate(size) => methods.xTruncate.unwrap()(file, *size),
                Call::Sync(flags) => methods.xSync.unwrap()(file, *flags),
                Call::FileSize(out) => methods.xFileSize.unwrap()(file, *out),
                Call::Lock(level) => methods.xLock.unwrap()(file, *level),
                Call::Unlock(level) => methods.xUnlock.unwrap()(file, *level),
                Call::CheckReservedLock(out) => methods.xCheckReservedLock.unwrap()(file, *out),
                Call::FileControl(op, arg) => methods.xFileControl.unwrap()(file, *op, *arg),
                Call::ShmMap { region, size, extend, out } => {
                    methods.xShmMap.unwrap()(file, *region, *size, *extend, *out)
                }
                Call::ShmLock { first, count, flags } => {
                    methods.xShmLock.unwrap()(file, *first, *count, *flags)
                }
                Call::ShmBarrier => {
                    methods.xShmBarrier.unwrap()(file);
                    ffi::SQLITE_OK
                }
                Call::ShmUnmap { delete } => methods.xShmUnmap.unwrap()(file, *delete),
                // A platform with a mapping may stand on one without: nothing is mapped then.
                Call::Fetch { at, len, out } => {
                    let fetch = methods.xFetch.filter(|_| methods.iVersion >= 3);
                    fetch.map_or(ffi::SQLITE_OK, |fetch| fetch(file, *at, *len, *out))
                }
                Call::Unfetch { at, page } => {
                    let unfetch = methods.xUnfetch.filter(|_| methods.iVersion >= 3);
                    unfetch.map_or(ffi::SQLITE_OK, |unfetch| unfetch(file, *at, *page))
                }
            }
        }
    }
}

/// Registers a VFS called `name`.
pub(super) fn register(name: &str, base: Option<&CStr>, properties: &'static dyn Properties) {
    // SAFETY: a VFS may be registered at any time; everything that it points to is leaked.
    unsafe {
        let base =
            base.map_or(ptr::null_mut(), |name| ffi::sqlite3_vfs_find(name.as_ptr().cast_mut()));
        let state: &'static State = Box::leak(Box::new(State { base, properties }));
        let base = base.as_ref();
        let of = |has: fn(&ffi::sqlite3_vfs) -> bool| base.is_some_and(has);
        let version = base.map_or(2, |base| base.iVersion);
        let mut vfs = ffi::sqlite3_vfs {
            iVersion: version,
            szOsFile: size_of::<Handle>() as c_int + base.map_or(0, |base| base.szOsFile),
            mxPathname: base.map_or(512, |base| base.mxPathname),
            pNext: ptr::null_mut(),
            zName: CString::new(name).unwrap().into_raw(),
            pAppData: ptr::from_ref(state).cast_mut().cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: of(|base| base.xDlOpen.is_some()).then_some(dl_open),
            xDlError: of(|base| base.xDlError.is_some()).then_some(dl_error),
            xDlSym: of(|base| base.xDlSym.is_some()).then_some(dl_sym),
            xDlClose: of(|base| base.xDlClose.is_some()).then_some(dl_close),
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(get_last_error),
            xCurrentTimeInt64: None,
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        };
        if version >= 2 && base.is_none_or(|base| base.xCurrentTimeInt64.is_some()) {
            vfs.xCurrentTimeInt64 = Some(current_time_int64);
        }
        if version >= 3 {
            vfs.xSetSystemCall = of(|base| base.xSetSystemCall.is_some()).then_some(set_call);
            vfs.xGetSystemCall = of(|base| base.xGetSystemCall.is_some()).then_some(get_call);
            vfs.xNextSystemCall = of(|base| base.xNextSystemCall.is_some()).then_some(next_call);
        }
        properties.alter_vfs(&mut vfs);
        let code = ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0);
        assert_eq!(code, ffi::SQLITE_OK);
    }
}

unsafe fn state_of(vfs: *mut ffi::sqlite3_vfs) -> &'static State {
    // SAFETY: `register` set it, and it is leaked.
    unsafe { &*(*vfs).pAppData.cast::<State>() }
}

/// `None` for the null that a temporary file has.
unsafe fn text(name: *const c_char) -> Option<String> {
    // SAFETY: SQLite's names are NUL-terminated and live through the call.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

unsafe fn file_below(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: szOsFile makes room for both.
    unsafe { file.cast::<Handle>().add(1).cast() }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    // SAFETY: the arguments are those of xOpen; `file` has szOsFile bytes.
    unsafe {
        (*file).pMethods = ptr::null();
        let state = state_of(vfs);
        let base = if state.base.is_null() { ptr::null_mut() } else { file_below(file) };
        if !base.is_null() {
            (*base).pMethods = ptr::null();
        }
        let copy = match name.is_null() || !state.properties.copies_names() {
            true => Vec::new(),
            false => [&[0; AROUND], CStr::from_ptr(name).to_bytes(), &[0; AROUND]].concat(),
        };
        let passed = if copy.is_empty() { name } else { copy[AROUND..].as_ptr().cast() };
        let own = File { id: NEXT.fetch_add(1, Ordering::Relaxed), flags, name: text(name) };
        let below = Below { vfs: state.base, file: base, name: passed, flags, out_flags };
        let code = state.properties.call(&own, &mut Call::Open, &below);
        let mut methods = match base.as_ref() {
            Some(base) if base.pMethods.is_null() => return code,
            Some(base) => those_of(&*base.pMethods),
            None if code != ffi::SQLITE_OK => return code,
            None => {
                if !out_flags.is_null() {
                    *out_flags = flags;
                }
                ALL
            }
        };
        state.properties.alter_methods(&mut methods, &ALL);
        let open = Box::new(Open { state, file: own, methods, _copy: copy });
        (*file).pMethods = &raw const open.methods;
        (*file.cast::<Handle>()).open = Box::into_raw(open);
        code
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the last call on `file`; `open` made the box.
    unsafe {
        let code = on(file, Call::Close);
        drop(Box::from_raw((*file.cast::<Handle>()).open));
        code
    }
}

/// Runs `call` on the open `file`.
unsafe fn on(file: *mut ffi::sqlite3_file, mut call: Call<'_>) -> c_int {
    // SAFETY: SQLite called a method of ours on `file`, so `open` has set up both files.
    unsafe {
        let open = &*(*file.cast::<Handle>()).open;
        let below = Below {
            vfs: open.state.base,
            file: file_below(file),
            name: ptr::null(),
            flags: 0,
            out_flags: ptr::null_mut(),
        };
        open.state.properties.call(&open.file, &mut call, &below)
    }
}

/// Runs `call` on the file called `name`, which is not opened.
unsafe fn on_name(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, mut call: Call<'_>) -> c_int {
    // SAFETY: the arguments are those of xDelete or xAccess.
    unsafe {
        let state = state_of(vfs);
        let file = File { id: 0, flags: 0, name: text(name) };
        let (out_flags, below_file) = (ptr::null_mut(), ptr::null_mut());
        let below = Below { vfs: state.base, file: below_file, name, flags: 0, out_flags };
        state.properties.call(&file, &mut call, &below)
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, dir: c_int) -> c_int {
    // SAFETY: the arguments are those of xDelete.
    unsafe { on_name(vfs, name, Call::Delete { sync_dir: dir }) }
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are those of xAccess.
    unsafe { on_name(vfs, name, Call::Access { flags, out: &mut *out }) }
}

/// Without a VFS below, names are whole already.
unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: `out` has room for `len` bytes; `name` ends with a NUL.
    unsafe {
        let base = state_of(vfs).base;
        if !base.is_null() {
            return (*base).xFullPathname.unwrap()(base, name, len, out);
        }
        let name = CStr::from_ptr(name).to_bytes_with_nul();
        if name.len() > len as usize {
            return ffi::SQLITE_CANTOPEN;
        }
        ptr::copy_nonoverlapping(name.as_ptr().cast(), out, name.len());
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn sleep(vfs: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    // SAFETY: the arguments are those of xSleep.
    unsafe {
        let state = state_of(vfs);
        if state.base.is_null() || !state.properties.sleeps() {
            return microseconds;
        }
        (*state.base).xSleep.unwrap()(state.base, microseconds)
    }
}

/// The time on a VFS without one below: a day in 2026, as a Julian day number in milliseconds.
const NOW: i64 = 2_461_041 * 86_400_000;

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: the arguments are those of xCurrentTime.
    unsafe {
        let base = state_of(vfs).base;
        if !base.is_null() {
            return (*base).xCurrentTime.unwrap()(base, out);
        }
        *out = NOW as f64 / 86_400_000.0;
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn current_time_int64(vfs: *mut ffi::sqlite3_vfs, out: *mut i64) -> c_int {
    // SAFETY: the arguments are those of xCurrentTimeInt64.
    unsafe {
        let base = state_of(vfs).base;
        if !base.is_null() {
            return (*base).xCurrentTimeInt64.unwrap()(base, out);
        }
        *out = NOW;
        ffi::SQLITE_OK
    }
}

/// SQLite seeds its generator from its default VFS, which always has one below.
unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, len: c_int, out: *mut c_char) -> c_int {
    // SAFETY: the arguments are those of xRandomness.
    unsafe {
        let base = state_of(vfs).base;
        if base.is_null() { 0 } else { (*base).xRandomness.unwrap()(base, len, out) }
    }
}

unsafe extern "C" fn get_last_error(
    vfs: *mut ffi::sqlite3_vfs,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: the arguments are those of xGetLastError.
    unsafe {
        let base = state_of(vfs).base;
        let method = base.as_ref().and_then(|base| base.xGetLastError);
        method.map_or(0, |method| method(base, len, out))
    }
}

/// The result of xDlSym.
type Symbol = Option<unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *mut c_void, *const c_char)>;

/// A method that is there only where the base has it, and is the base's.
macro_rules! of_base {
    ($name:ident => $method:ident($($arg:ident: $type:ty),*) -> $result:ty) => {
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs, $($arg: $type),*) -> $result {
            // SAFETY: the arguments are those of the method.
            unsafe {
                let base = state_of(vfs).base;
                (*base).$method.unwrap()(base, $($arg),*)
            }
        }
    };
}

of_base!(dl_open => xDlOpen(name: *const c_char) -> *mut c_void);
of_base!(dl_error => xDlError(len: c_int, out: *mut c_char) -> ());
of_base!(dl_sym => xDlSym(library: *mut c_void, name: *const c_char) -> Symbol);
of_base!(dl_close => xDlClose(library: *mut c_void) -> ());
of_base!(set_call => xSetSystemCall(name: *const c_char, call: ffi::sqlite3_syscall_ptr) -> c_int);
of_base!(get_call => xGetSystemCall(name: *const c_char) -> ffi::sqlite3_syscall_ptr);
of_base!(next_call => xNextSystemCall(name: *const c_char) -> *const c_char);

/// A method of an open file. The arguments are turned into a call, in which pointers for answers
/// are references.
macro_rules! of_file {
    ($name:ident($($arg:ident: $type:ty),*) => $call:expr) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> c_int {
            // SAFETY: the file is open, pointers point to what the method says.
            unsafe { on(file, $call) }
        }
    };
}

of_file!(read(buf: *mut c_void, len: c_int, at: i64) => {
    Call::Read { buf: std::slice::from_raw_parts_mut(buf.cast(), len as usize), at }
});
of_file!(write(buf: *const c_void, len: c_int, at: i64) => {
    Call::Write { bytes: std::slice::from_raw_parts(buf.cast(), len as usize), at }
});
of_file!(truncate(size: i64) => Call::Truncate(size));
of_file!(sync(flags: c_int) => Call::Sync(flags));
of_file!(file_size(out: *mut i64) => Call::FileSize(&mut *out));
of_file!(lock(level: c_int) => Call::Lock(level));
of_file!(unlock(level: c_int) => Call::Unlock(level));
of_file!(check_reserved(out: *mut c_int) => Call::CheckReservedLock(&mut *out));
of_file!(file_control(op: c_int, arg: *mut c_void) => Call::FileControl(op, arg));
of_file!(shm_map(region: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) => {
    Call::ShmMap { region, size, extend, out: &mut *out }
});
of_file!(shm_lock(first: c_int, count: c_int, flags: c_int) => {
    Call::ShmLock { first, count, flags }
});
of_file!(shm_unmap(delete: c_int) => Call::ShmUnmap { delete });
of_file!(fetch(at: i64, len: c_int, out: *mut *mut c_void) => {
    *out = ptr::null_mut();
    Call::Fetch { at, len, out: &mut *out }
});
of_file!(unfetch(at: i64, page: *mut c_void) => Call::Unfetch { at, page });

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    fence(Ordering::SeqCst);
    // SAFETY: the file is open.
    unsafe { on(file, Call::ShmBarrier) };
}

/// The answer of the file below; `default` where there is none, or no such method.
unsafe fn answer(
    file: *mut ffi::sqlite3_file,
    default: c_int,
    method: fn(
        &ffi::sqlite3_io_methods,
    ) -> Option<unsafe extern "C" fn(*mut ffi::sqlite3_file) -> c_int>,
) -> (&'static dyn Properties, c_int) {
    // SAFETY: the file is open.
    unsafe {
        let state = (*(*file.cast::<Handle>()).open).state;
        let base = file_below(file);
        let method = if state.base.is_null() { None } else { method(&*(*base).pMethods) };
        (state.properties, method.map_or(default, |method| method(base)))
    }
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the file is open. SQLite's default is 4096.
    let (properties, below) = unsafe { answer(file, 4096, |methods| methods.xSectorSize) };
    properties.sector_size(below)
}

unsafe extern "C" fn characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the file is open.
    let (properties, below) = unsafe { answer(file, 0, |methods| methods.xDeviceCharacteristics) };
    properties.characteristics(below)
}

/// Every method of a file.
const ALL: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 3,
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
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};

/// The methods that the file `below` has, too. Those of later versions are not looked at.
fn those_of(below: &ffi::sqlite3_io_methods) -> ffi::sqlite3_io_methods {
    let mut methods = ALL;
    methods.iVersion = below.iVersion.min(3);
    methods.xSectorSize = below.xSectorSize.and(ALL.xSectorSize);
    methods.xDeviceCharacteristics = below.xDeviceCharacteristics.and(ALL.xDeviceCharacteristics);
    let shm = methods.iVersion >= 2;
    methods.xShmMap = ALL.xShmMap.filter(|_| shm && below.xShmMap.is_some());
    methods.xShmLock = ALL.xShmLock.filter(|_| shm && below.xShmLock.is_some());
    methods.xShmBarrier = ALL.xShmBarrier.filter(|_| shm && below.xShmBarrier.is_some());
    methods.xShmUnmap = ALL.xShmUnmap.filter(|_| shm && below.xShmUnmap.is_some());
    let maps = methods.iVersion >= 3;
    methods.xFetch = ALL.xFetch.filter(|_| maps && below.xFetch.is_some());
    methods.xUnfetch = ALL.xUnfetch.filter(|_| maps && below.xUnfetch.is_some());
    methods
}
