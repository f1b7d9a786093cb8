//! The disk as an `sqlite3_vfs`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::ffi;

use super::disk::Disk;

/// A registered VFS of this kind.
#[derive(Clone, Copy)]
pub struct PowerVfs {
    pub name: &'static str,
    state: &'static State,
}

/// A disk that connections share.
type Shared = Arc<Mutex<Disk>>;

struct State {
    disk: Mutex<Shared>,
    characteristics: c_int,
}

const SECTOR_SIZE: c_int = 4096;

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PowerVfs {
    /// Registers a new one. `powersafe`: a write harms no byte beside it when the power fails.
    pub fn new(powersafe: bool) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("power-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let name: &'static str = Box::leak(name.into_boxed_str());
        let characteristics = if powersafe { ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE } else { 0 };
        let state: &'static State =
            Box::leak(Box::new(State { disk: Mutex::default(), characteristics }));
        let vfs = ffi::sqlite3_vfs {
            iVersion: 2,
            szOsFile: size_of::<File>() as c_int,
            mxPathname: 512,
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
            xGetLastError: Some(get_last_error),
            xCurrentTimeInt64: Some(current_time_int64),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        };
        // SAFETY: a VFS may be registered at any time; what it points to is leaked.
        let code = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0) };
        assert_eq!(code, ffi::SQLITE_OK);
        Self { name, state }
    }

    /// Puts `disk` in, for the files that are opened from now on.
    pub fn insert(&self, disk: Disk) {
        *guard(&self.state.disk) = Arc::new(Mutex::new(disk));
    }

    /// Runs `look` on the disk.
    pub fn with<T>(&self, look: impl FnOnce(&mut Disk) -> T) -> T {
        let disk = Arc::clone(&guard(&self.state.disk));
        look(&mut guard(&disk))
    }
}

/// An open file.
#[repr(C)]
struct File {
    head: ffi::sqlite3_file,
    open: *mut Open,
}

struct Open {
    disk: Shared,
    inode: usize,
    handle: usize,
    characteristics: c_int,
}

unsafe fn opened<'a>(file: *mut ffi::sqlite3_file) -> &'a Open {
    // SAFETY: `open` set it, and `close` is the last call on a file.
    unsafe { &*(*file.cast::<File>()).open }
}

unsafe fn state_of<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a State {
    // SAFETY: `PowerVfs::new` set it, and it is leaked.
    unsafe { &*(*vfs).pAppData.cast::<State>() }
}

unsafe fn text<'a>(name: *const c_char) -> Option<&'a str> {
    // SAFETY: SQLite's names are NUL-terminated and live through the call.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_str().unwrap())
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are those of xOpen; `file` has szOsFile bytes.
    unsafe {
        (*file).pMethods = ptr::null();
        let state = state_of(vfs);
        let disk = Arc::clone(&guard(&state.disk));
        let (inode, handle) = {
            let mut disk = guard(&disk);
            let Some(inode) = disk.open(text(name), flags) else { return ffi::SQLITE_CANTOPEN };
            (inode, disk.handle())
        };
        let open = Open { disk, inode, handle, characteristics: state.characteristics };
        (*file.cast::<File>()).open = Box::into_raw(Box::new(open));
        (*file).pMethods = &METHODS;
        if !out.is_null() {
            *out = flags;
        }
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the last call on `file`; `open` made the box.
    let open = unsafe { Box::from_raw((*file.cast::<File>()).open) };
    let mut disk = guard(&open.disk);
    disk.unlock(open.inode, open.handle, ffi::SQLITE_LOCK_NONE);
    disk.shm(open.inode).unmap(open.handle);
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    sync_dir: c_int,
) -> c_int {
    // SAFETY: the arguments are those of xDelete.
    let (state, name) = unsafe { (state_of(vfs), text(name).unwrap_or_default()) };
    let disk = guard(&state.disk);
    let found = guard(&disk).delete(name, sync_dir != 0);
    if found { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_DELETE_NOENT }
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    _flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are those of xAccess.
    unsafe {
        let disk = guard(&state_of(vfs).disk);
        let mut disk = guard(&disk);
        if !disk.call() {
            return ffi::SQLITE_IOERR_ACCESS;
        }
        *out = c_int::from(disk.exists(text(name).unwrap_or_default()));
        ffi::SQLITE_OK
    }
}

/// Names are whole already.
unsafe extern "C" fn full_pathname(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: `out` has room for `len` bytes; `name` ends with a NUL.
    unsafe {
        let name = CStr::from_ptr(name).to_bytes_with_nul();
        if name.len() > len as usize {
            return ffi::SQLITE_CANTOPEN;
        }
        ptr::copy_nonoverlapping(name.as_ptr().cast(), out, name.len());
        ffi::SQLITE_OK
    }
}

/// SQLite seeds its generator from its default VFS, which this never is.
unsafe extern "C" fn randomness(_: *mut ffi::sqlite3_vfs, _: c_int, _: *mut c_char) -> c_int {
    0
}

/// Nobody else runs, so there is nothing to wait for.
unsafe extern "C" fn sleep(_: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

/// A day in 2026, as a Julian day number in milliseconds.
const NOW: i64 = 2_461_041 * 86_400_000;

unsafe extern "C" fn current_time(_: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: `out` points to a number.
    unsafe { *out = NOW as f64 / 86_400_000.0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(_: *mut ffi::sqlite3_vfs, out: *mut i64) -> c_int {
    // SAFETY: `out` points to a number.
    unsafe { *out = NOW };
    ffi::SQLITE_OK
}

unsafe extern "C" fn get_last_error(_: *mut ffi::sqlite3_vfs, _: c_int, _: *mut c_char) -> c_int {
    0
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
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
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// Runs `work` on the disk of `file`, or fails with `code` once the disk has served too much.
unsafe fn on(
    file: *mut ffi::sqlite3_file,
    code: c_int,
    work: impl FnOnce(&Open, &mut Disk) -> c_int,
) -> c_int {
    // SAFETY: SQLite called a method of `file`, so it is open.
    let open = unsafe { opened(file) };
    let mut disk = guard(&open.disk);
    if disk.call() { work(open, &mut disk) } else { code }
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buf: *mut c_void,
    len: c_int,
    at: i64,
) -> c_int {
    // SAFETY: the arguments are those of xRead: `buf` has room for `len` bytes.
    unsafe {
        let buf = std::slice::from_raw_parts_mut(buf.cast::<u8>(), len as usize);
        on(file, ffi::SQLITE_IOERR_READ, |open, disk| {
            let full = disk.read(open.inode, buf, at as usize) == buf.len();
            if full { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_SHORT_READ }
        })
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buf: *const c_void,
    len: c_int,
    at: i64,
) -> c_int {
    // SAFETY: the arguments are those of xWrite: `buf` has `len` bytes.
    unsafe {
        let bytes = std::slice::from_raw_parts(buf.cast::<u8>(), len as usize);
        on(file, ffi::SQLITE_IOERR_WRITE, |open, disk| {
            disk.write(open.inode, bytes, at as usize);
            ffi::SQLITE_OK
        })
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        on(file, ffi::SQLITE_IOERR_TRUNCATE, |open, disk| {
            disk.truncate(open.inode, size as usize);
            ffi::SQLITE_OK
        })
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        on(file, ffi::SQLITE_IOERR_FSYNC, |open, disk| {
            disk.sync(open.inode);
            ffi::SQLITE_OK
        })
    }
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, out: *mut i64) -> c_int {
    // SAFETY: the file is open, and `out` points to a number.
    unsafe {
        on(file, ffi::SQLITE_IOERR_FSTAT, |open, disk| {
            *out = disk.size(open.inode) as i64;
            ffi::SQLITE_OK
        })
    }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        on(file, ffi::SQLITE_IOERR_LOCK, |open, disk| disk.lock(open.inode, open.handle, level))
    }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: the file is open.
    let open = unsafe { opened(file) };
    guard(&open.disk).unlock(open.inode, open.handle, level);
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: the file is open, and `out` points to an int.
    unsafe {
        on(file, ffi::SQLITE_IOERR_CHECKRESERVEDLOCK, |open, disk| {
            *out = c_int::from(disk.is_reserved(open.inode));
            ffi::SQLITE_OK
        })
    }
}

unsafe extern "C" fn file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    SECTOR_SIZE
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the file is open.
    unsafe { opened(file) }.characteristics
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: the file is open, and `out` points to a pointer. What it gets lives until xShmUnmap.
    unsafe {
        on(file, ffi::SQLITE_IOERR_SHMMAP, |open, disk| {
            let shm = disk.shm(open.inode);
            let found = shm.map(open.handle, region as usize, size as usize, extend != 0);
            *out = found.map_or(ptr::null_mut(), <*mut u64>::cast);
            ffi::SQLITE_OK
        })
    }
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        on(file, ffi::SQLITE_IOERR_SHMLOCK, |open, disk| {
            disk.shm(open.inode).lock(open.handle, first as u32, count as u32, flags)
        })
    }
}

unsafe extern "C" fn shm_barrier(_: *mut ffi::sqlite3_file) {
    std::sync::atomic::fence(Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, _delete: c_int) -> c_int {
    // SAFETY: the file is open.
    let open = unsafe { opened(file) };
    guard(&open.disk).shm(open.inode).unmap(open.handle);
    ffi::SQLITE_OK
}
