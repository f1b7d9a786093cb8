//! Other platforms: a VFS over any other that has the properties of one, and a table of them.
//!
//! It stands below `tde`, as its base, or above it. `SQLITE_TDE_PLATFORM=NAME` puts one of
//! [`PLATFORMS`] below `tde` in the campaigns that use [`over_base`].

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::size_of;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::ffi;

/// Which methods an open file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Methods {
    /// Version 1, without xSectorSize.
    One,
    Two,
    /// Version 2 without shared memory.
    TwoWithoutShm,
    Three,
    /// Version 3 without shared memory, as SQLite's `unix-none`.
    ThreeWithoutShm,
    /// Version 3 without a mapping.
    ThreeWithoutFetch,
}

impl Methods {
    pub fn has_shm(self) -> bool {
        matches!(self, Self::Two | Self::Three | Self::ThreeWithoutFetch)
    }
}

/// What sets a platform apart.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    pub name: &'static str,
    pub methods: Methods,
    /// Version of the VFS itself; what belongs to a later one must not be called.
    pub version: c_int,
    /// Deleting an open file fails, and the VFS says so (`SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN`).
    pub undeletable: bool,
    /// Whether overwriting is powersafe; `None` as the VFS below.
    pub powersafe: Option<bool>,
    pub sector: Option<c_int>,
    /// Bytes that another handle has locked can be neither read nor written.
    pub mandatory_locks: bool,
    /// A read or write of more bytes fails.
    pub longest_call: usize,
    /// The VFS below gets copies of names: nothing of SQLite's lies behind them in memory.
    pub copies_names: bool,
}

/// SQLite's own longest calls, in the recovery of a log: a frame with the largest page.
const LONGEST_CALL: usize = 24 + 65536;

const UNIX: Platform = Platform {
    name: "unix",
    methods: Methods::Three,
    version: 3,
    undeletable: false,
    powersafe: None,
    sector: None,
    mandatory_locks: false,
    longest_call: usize::MAX,
    copies_names: false,
};

const fn sectors(name: &'static str, sector: c_int) -> Platform {
    Platform {
        name,
        powersafe: Some(false),
        sector: Some(sector),
        longest_call: LONGEST_CALL,
        ..UNIX
    }
}

pub const PLATFORMS: &[Platform] = &[
    UNIX,
    Platform {
        name: "windows",
        undeletable: true,
        mandatory_locks: true,
        longest_call: LONGEST_CALL,
        ..UNIX
    },
    Platform { name: "undeletable", undeletable: true, ..UNIX },
    Platform { name: "mandatory locks", mandatory_locks: true, ..UNIX },
    Platform { name: "short calls", longest_call: LONGEST_CALL, ..UNIX },
    Platform { name: "not powersafe", powersafe: Some(false), ..UNIX },
    sectors("sector 512", 512),
    sectors("sector 1024", 1024),
    sectors("sector 2048", 2048),
    sectors("sector 4096", 4096),
    sectors("sector 8192", 8192),
    sectors("sector 16384", 16384),
    sectors("sector 32768", 32768),
    sectors("sector 65536", 65536),
    Platform { name: "undeletable, sector 8192", undeletable: true, ..sectors("", 8192) },
    Platform { name: "unix-none", methods: Methods::ThreeWithoutShm, ..UNIX },
    Platform { name: "version 1", methods: Methods::One, version: 1, ..UNIX },
    Platform { name: "version 2", methods: Methods::Two, version: 2, ..UNIX },
    Platform { name: "version 2 without shm", methods: Methods::TwoWithoutShm, ..UNIX },
    Platform { name: "version 3 without fetch", methods: Methods::ThreeWithoutFetch, ..UNIX },
    Platform { name: "copied names", copies_names: true, ..UNIX },
];

/// The platform of that name.
pub fn platform(name: &str) -> &'static Platform {
    let names = || PLATFORMS.iter().map(|platform| platform.name).collect::<Vec<_>>();
    let found = PLATFORMS.iter().find(|platform| platform.name == name);
    found.unwrap_or_else(|| panic!("no platform {name}: there are {:?}", names()))
}

/// The VFS `base`, or the platform that `SQLITE_TDE_PLATFORM` names over it.
pub fn over_base(base: &'static str) -> &'static str {
    match std::env::var("SQLITE_TDE_PLATFORM") {
        Ok(name) => PlatformVfs::new(platform(&name), base).name,
        Err(_) => base,
    }
}

/// A registered VFS with the properties of a platform.
#[derive(Clone, Copy)]
pub struct PlatformVfs {
    pub name: &'static str,
    state: &'static State,
}

/// An open file, and what it has locked.
struct Handle {
    id: usize,
    lock: c_int,
    shm: usize,
}

struct State {
    platform: Platform,
    base: *mut ffi::sqlite3_vfs,
    files: Mutex<HashMap<Vec<u8>, Vec<Handle>>>,
    before_lock: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    before_unfetch: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

// SAFETY: the base VFS is never freed and may be used by every thread.
unsafe impl Sync for State {}
// SAFETY: as above.
unsafe impl Send for State {}

/// Where SQLite's locks lie in a database file.
const PENDING: i64 = 0x4000_0000;
const RESERVED: i64 = PENDING + 1;
const SHARED: Range<i64> = PENDING + 2..PENDING + 512;

impl State {
    fn files(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Vec<Handle>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, file: &File, change: impl FnOnce(&mut Handle)) {
        // SAFETY: `open` set it.
        let path = unsafe { file.path() };
        let mut files = self.files();
        let handles = path.and_then(|path| files.get_mut(path));
        if let Some(handle) =
            handles.and_then(|handles| handles.iter_mut().find(|handle| handle.id == file.id))
        {
            change(handle);
        }
    }

    /// Whether a lock stands against reading or writing `bytes` through `file`.
    fn is_locked(&self, file: &File, bytes: Range<i64>, write: bool) -> bool {
        if !self.platform.mandatory_locks || bytes.end <= PENDING || bytes.start >= SHARED.end {
            return false;
        }
        let meets = |locked: Range<i64>| locked.start < bytes.end && bytes.start < locked.end;
        // SAFETY: `open` set it.
        let Some(path) = (unsafe { file.path() }) else { return false };
        self.files().get(path).into_iter().flatten().any(|handle| {
            let other = handle.id != file.id;
            // A shared lock is one that its holder, too, must not write under.
            let shared = handle.lock == ffi::SQLITE_LOCK_SHARED
                || handle.lock == ffi::SQLITE_LOCK_RESERVED
                || handle.lock == ffi::SQLITE_LOCK_PENDING;
            write && shared && meets(SHARED)
                || other && handle.lock == ffi::SQLITE_LOCK_EXCLUSIVE && meets(SHARED)
                || other
                    && handle.lock >= ffi::SQLITE_LOCK_RESERVED
                    && meets(RESERVED..RESERVED + 1)
                || other && handle.lock >= ffi::SQLITE_LOCK_PENDING && meets(PENDING..PENDING + 1)
        })
    }
}

impl PlatformVfs {
    /// Registers `platform` over the VFS called `base`.
    pub fn new(platform: &Platform, base: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("platform-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let name: &'static str = Box::leak(name.into_boxed_str());
        let base = CString::new(base).unwrap();
        // SAFETY: a VFS may be registered at any time; what it points to is leaked.
        unsafe {
            let base = ffi::sqlite3_vfs_find(base.as_ptr());
            assert!(!base.is_null(), "the VFS below");
            let state: &'static State = Box::leak(Box::new(State {
                platform: *platform,
                base,
                files: Mutex::default(),
                before_lock: Mutex::default(),
                before_unfetch: Mutex::default(),
            }));
            let later = platform.version >= 3;
            let vfs = ffi::sqlite3_vfs {
                iVersion: platform.version,
                szOsFile: size_of::<File>() as c_int + (*base).szOsFile,
                mxPathname: (*base).mxPathname,
                pNext: ptr::null_mut(),
                zName: CString::new(name).unwrap().into_raw(),
                pAppData: ptr::from_ref(state).cast_mut().cast(),
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
                xGetLastError: None,
                xCurrentTimeInt64: (platform.version < 2).then_some(not_of_this_version),
                xSetSystemCall: None,
                xGetSystemCall: None,
                xNextSystemCall: later.then_some(next_system_call),
            };
            let code = ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0);
            assert_eq!(code, ffi::SQLITE_OK);
            Self { name, state }
        }
    }

    /// Does `what` when the next first lock is asked for, before it is taken.
    pub fn before_lock(&self, what: impl FnOnce() + Send + 'static) {
        *self.state.before_lock.lock().unwrap() = Some(Box::new(what));
    }

    /// Does `what` when SQLite next gives up what it has mapped: it has just read a wal-index that
    /// is new to it.
    pub fn before_unfetch(&self, what: impl FnOnce() + Send + 'static) {
        *self.state.before_unfetch.lock().unwrap() = Some(Box::new(what));
    }

    /// The files on which a lock is held, in words.
    pub fn held(&self) -> Vec<String> {
        let files = self.state.files();
        let lines = files.iter().flat_map(|(path, handles)| {
            let path = String::from_utf8_lossy(path);
            let path = path.rsplit('/').next().unwrap_or_default().to_owned();
            handles.iter().filter(|handle| (handle.lock, handle.shm) != (0, 0)).map(
                move |Handle { lock, shm, .. }| {
                    format!("{path}: lock {lock}, wal-index locks {shm:b}")
                },
            )
        });
        lines.collect()
    }
}

/// An open file; the base VFS's file lies right behind it.
#[repr(C)]
struct File {
    head: ffi::sqlite3_file,
    state: *const State,
    id: usize,
    /// A copy of the name, with zeros around it, from `CString::into_raw`; null for temporary
    /// files.
    copy: *mut c_char,
}

/// Zeros before and behind a copied name.
const AROUND: usize = 16;

impl File {
    unsafe fn path(&self) -> Option<&[u8]> {
        // SAFETY: `copied` made it, and `close` frees it.
        (!self.copy.is_null()).then(|| unsafe { CStr::from_ptr(self.copy.add(AROUND)) }.to_bytes())
    }
}

/// `name` with zeros around it: what SQLite's routines for names look for is not there.
unsafe fn copied(name: *const c_char) -> *mut c_char {
    if name.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: names are NUL-terminated.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    let mut copy = vec![0; AROUND + name.len() + AROUND];
    copy[AROUND..AROUND + name.len()].copy_from_slice(name);
    Box::into_raw(copy.into_boxed_slice()).cast()
}

unsafe fn free_copied(copy: *mut c_char) {
    if !copy.is_null() {
        // SAFETY: `copied` made it, of this length.
        unsafe {
            let len = CStr::from_ptr(copy.add(AROUND)).to_bytes().len() + 2 * AROUND;
            drop(Box::from_raw(ptr::slice_from_raw_parts_mut(copy.cast::<u8>(), len)));
        }
    }
}

unsafe fn own<'a>(file: *mut ffi::sqlite3_file) -> &'a File {
    // SAFETY: SQLite called a method of ours on it.
    unsafe { &*file.cast::<File>() }
}

unsafe fn state<'a>(file: *mut ffi::sqlite3_file) -> &'a State {
    // SAFETY: `open` set it, and it is leaked.
    unsafe { &*own(file).state }
}

unsafe fn below(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: szOsFile makes room for both.
    unsafe { file.cast::<File>().add(1).cast() }
}

unsafe fn state_of_vfs<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a State {
    // SAFETY: `PlatformVfs::new` set it, and it is leaked.
    unsafe { &*(*vfs).pAppData.cast::<State>() }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    // SAFETY: the arguments are those of xOpen.
    unsafe {
        (*file).pMethods = ptr::null();
        let state = state_of_vfs(vfs);
        let (base, copy) = (below(file), copied(name));
        (*base).pMethods = ptr::null();
        let copies = state.platform.copies_names && !copy.is_null();
        let passed = if copies { copy.add(AROUND).cast_const() } else { name };
        let code = (*state.base).xOpen.unwrap()(state.base, passed, base, flags, out);
        if (*base).pMethods.is_null() {
            free_copied(copy);
            return code;
        }
        let own = &mut *file.cast::<File>();
        (own.state, own.id, own.copy) = (state, NEXT.fetch_add(1, Ordering::Relaxed), copy);
        if let Some(path) = own.path() {
            let handle = Handle { id: own.id, lock: 0, shm: 0 };
            state.files().entry(path.to_vec()).or_default().push(handle);
        }
        own.head.pMethods = match state.platform.methods {
            Methods::One => &METHODS[0],
            Methods::Two => &METHODS[1],
            Methods::TwoWithoutShm => &METHODS[2],
            Methods::Three => &METHODS[3],
            Methods::ThreeWithoutShm => &METHODS[4],
            Methods::ThreeWithoutFetch => &METHODS[5],
        };
        code
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the last call on `file`.
    unsafe {
        let base = below(file);
        let code = (*(*base).pMethods).xClose.unwrap()(base);
        let own = own(file);
        if let Some(path) = own.path() {
            let mut files = state(file).files();
            if let Some(handles) = files.get_mut(path) {
                handles.retain(|handle| handle.id != own.id);
                if handles.is_empty() {
                    files.remove(path);
                }
            }
        }
        free_copied(own.copy);
        code
    }
}

unsafe extern "C" fn delete(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    sync_dir: c_int,
) -> c_int {
    // SAFETY: the arguments are those of xDelete.
    unsafe {
        let state = state_of_vfs(vfs);
        let path = CStr::from_ptr(name).to_bytes();
        if state.platform.undeletable && state.files().contains_key(path) {
            return ffi::SQLITE_IOERR_DELETE;
        }
        (*state.base).xDelete.unwrap()(state.base, name, sync_dir)
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
        let base = state_of_vfs(vfs).base;
        (*base).xAccess.unwrap()(base, name, flags, out)
    }
}

unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: the arguments are those of xFullPathname.
    unsafe {
        let base = state_of_vfs(vfs).base;
        (*base).xFullPathname.unwrap()(base, name, len, out)
    }
}

unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, len: c_int, out: *mut c_char) -> c_int {
    // SAFETY: the arguments are those of xRandomness.
    unsafe {
        let base = state_of_vfs(vfs).base;
        (*base).xRandomness.unwrap()(base, len, out)
    }
}

unsafe extern "C" fn sleep(vfs: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    // SAFETY: the arguments are those of xSleep.
    unsafe {
        let base = state_of_vfs(vfs).base;
        (*base).xSleep.unwrap()(base, microseconds)
    }
}

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: the arguments are those of xCurrentTime.
    unsafe {
        let base = state_of_vfs(vfs).base;
        (*base).xCurrentTime.unwrap()(base, out)
    }
}

/// Stands where a VFS of an earlier version may have anything.
unsafe extern "C" fn not_of_this_version(_: *mut ffi::sqlite3_vfs, _: *mut i64) -> c_int {
    panic!("a method of a later version was called");
}

unsafe extern "C" fn next_system_call(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
) -> *const c_char {
    // SAFETY: the arguments are those of xNextSystemCall.
    unsafe {
        let base = state_of_vfs(vfs).base;
        let method = if (*base).iVersion >= 3 { (*base).xNextSystemCall } else { None };
        method.map_or(ptr::null(), |method| method(base, name))
    }
}

/// A method that is the base's.
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

through!(truncate => xTruncate, size: i64);
through!(sync => xSync, flags: c_int);
through!(file_size => xFileSize, out: *mut i64);
through!(check_reserved => xCheckReservedLock, out: *mut c_int);
through!(file_control => xFileControl, op: c_int, arg: *mut c_void);
through!(shm_map => xShmMap, page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void);

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buf: *mut c_void,
    len: c_int,
    at: i64,
) -> c_int {
    // SAFETY: the arguments are those of xRead, and the file is open.
    unsafe {
        let state = state(file);
        let bytes = at..at + i64::from(len);
        if len as usize > state.platform.longest_call || state.is_locked(own(file), bytes, false) {
            return ffi::SQLITE_IOERR_READ;
        }
        let base = below(file);
        (*(*base).pMethods).xRead.unwrap()(base, buf, len, at)
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
        let state = state(file);
        if len as usize > state.platform.longest_call {
            // What SQLite's unix VFS makes of a length that its mask cuts to nothing.
            return ffi::SQLITE_FULL;
        }
        if state.is_locked(own(file), at..at + i64::from(len), true) {
            return ffi::SQLITE_IOERR_WRITE;
        }
        let base = below(file);
        (*(*base).pMethods).xWrite.unwrap()(base, buf, len, at)
    }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        if level == ffi::SQLITE_LOCK_SHARED {
            let what = state(file).before_lock.lock().unwrap().take();
            if let Some(what) = what {
                what();
            }
        }
        let code = (*(*base).pMethods).xLock.unwrap()(base, level);
        if code == ffi::SQLITE_OK {
            state(file).change(own(file), |handle| handle.lock = handle.lock.max(level));
        }
        code
    }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        let code = (*(*base).pMethods).xUnlock.unwrap()(base, level);
        state(file).change(own(file), |handle| handle.lock = handle.lock.min(level));
        code
    }
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    n: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        let code = (*(*base).pMethods).xShmLock.unwrap()(base, offset, n, flags);
        if code == ffi::SQLITE_OK {
            let bits = ((1_usize << n) - 1) << offset;
            let unlock = flags & ffi::SQLITE_SHM_UNLOCK != 0;
            state(file).change(own(file), |handle| {
                handle.shm = if unlock { handle.shm & !bits } else { handle.shm | bits };
            });
        }
        code
    }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        (*(*base).pMethods).xShmBarrier.unwrap()(base);
    }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        state(file).change(own(file), |handle| handle.shm = 0);
        let base = below(file);
        (*(*base).pMethods).xShmUnmap.unwrap()(base, delete)
    }
}

unsafe extern "C" fn fetch(
    file: *mut ffi::sqlite3_file,
    at: i64,
    len: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        *out = ptr::null_mut();
        let methods = (*base).pMethods;
        let method = if (*methods).iVersion >= 3 { (*methods).xFetch } else { None };
        method.map_or(ffi::SQLITE_OK, |method| method(base, at, len, out))
    }
}

unsafe extern "C" fn unfetch(file: *mut ffi::sqlite3_file, at: i64, page: *mut c_void) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let before = state(file).before_unfetch.lock().unwrap().take();
        if let Some(before) = before {
            before();
        }
        let base = below(file);
        let methods = (*base).pMethods;
        let method = if (*methods).iVersion >= 3 { (*methods).xUnfetch } else { None };
        method.map_or(ffi::SQLITE_OK, |method| method(base, at, page))
    }
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        let method = (*(*base).pMethods).xSectorSize.unwrap();
        state(file).platform.sector.unwrap_or_else(|| method(base))
    }
}

unsafe extern "C" fn characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        let mut flags = (*(*base).pMethods).xDeviceCharacteristics.unwrap()(base);
        let platform = &state(file).platform;
        if platform.undeletable {
            flags |= ffi::SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN;
        }
        match platform.powersafe {
            Some(true) => flags | ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE,
            Some(false) => flags & !ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE,
            None => flags,
        }
    }
}

const fn methods(version: c_int, shm: bool, maps: bool) -> ffi::sqlite3_io_methods {
    let mut methods = ffi::sqlite3_io_methods {
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
        xSectorSize: if version > 1 { Some(sector_size) } else { None },
        xDeviceCharacteristics: Some(characteristics),
        xShmMap: None,
        xShmLock: None,
        xShmBarrier: None,
        xShmUnmap: None,
        xFetch: None,
        xUnfetch: None,
    };
    if shm {
        methods.xShmMap = Some(shm_map);
    }
    // SQLite's own VFS without shared memory has these all the same.
    if version > 1 {
        methods.xShmLock = Some(shm_lock);
        methods.xShmBarrier = Some(shm_barrier);
        methods.xShmUnmap = Some(shm_unmap);
    }
    if maps {
        methods.xFetch = Some(fetch);
        methods.xUnfetch = Some(unfetch);
    }
    methods
}

static METHODS: [ffi::sqlite3_io_methods; 6] = [
    methods(1, false, false),
    methods(2, true, false),
    methods(2, false, false),
    methods(3, true, true),
    methods(3, false, true),
    methods(3, true, false),
];
