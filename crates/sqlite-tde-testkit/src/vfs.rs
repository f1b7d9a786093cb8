//! A VFS over the platform's that counts calls, fails one of them or all from one on, and keeps
//! what was written and synced. Each has a name and a state of its own, so that tests run beside
//! each other.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use rusqlite::ffi;

/// The calls that are counted and can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Open,
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

impl Method {
    fn failure(self) -> c_int {
        match self {
            Self::Open => ffi::SQLITE_CANTOPEN,
            Self::Read => ffi::SQLITE_IOERR_READ,
            Self::Write => ffi::SQLITE_IOERR_WRITE,
            Self::Truncate => ffi::SQLITE_IOERR_TRUNCATE,
            Self::Sync => ffi::SQLITE_IOERR_FSYNC,
            Self::FileSize => ffi::SQLITE_IOERR_FSTAT,
            Self::Lock => ffi::SQLITE_IOERR_LOCK,
            Self::Unlock => ffi::SQLITE_IOERR_UNLOCK,
            Self::CheckReservedLock => ffi::SQLITE_IOERR_CHECKRESERVEDLOCK,
            Self::Delete => ffi::SQLITE_IOERR_DELETE,
            Self::Access => ffi::SQLITE_IOERR_ACCESS,
            Self::ShmMap | Self::ShmUnmap => ffi::SQLITE_IOERR_SHMMAP,
            Self::ShmLock => ffi::SQLITE_IOERR_SHMLOCK,
        }
    }

    /// What can go wrong with this call.
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Write => {
                &[Kind::Once, Kind::From, Kind::FullOnce, Kind::FullFrom, Kind::ShortWrite]
            }
            Self::Read => &[Kind::Once, Kind::From, Kind::ShortRead],
            _ => &[Kind::Once, Kind::From],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The call fails with the error of its method.
    Once,
    /// It fails, and every later one, whatever its method.
    From,
    /// A write fails with `SQLITE_FULL`.
    FullOnce,
    /// It fails, and every later write.
    FullFrom,
    /// From here on the disk is full: what makes a file longer fails, and what overwrites does not.
    NoRoom,
    /// Half is written, then `SQLITE_FULL`.
    ShortWrite,
    /// The same of four writes in a row.
    ShortWrites,
    /// Half is read, as where the file was cut off.
    ShortRead,
}

/// What was written by one call.
pub struct Written {
    /// The flags that the file was opened with.
    pub flags: c_int,
    pub offset: i64,
    pub data: Vec<u8>,
}

#[derive(Default)]
struct Inner {
    calls: Vec<(Method, c_int)>,
    fault: Option<(usize, Kind)>,
    /// The kind of file, or kinds with `or` between them, of which writes, truncations and syncs
    /// alone are numbered and fail; none for every call on all of them.
    only: Option<&'static str>,
    /// Calls on files of that kind so far.
    numbered: usize,
    hits: usize,
    recording: bool,
    written: Vec<Written>,
    synced: Vec<String>,
    work: Option<Work>,
}

/// What is done before which call on which kind of file.
type Work = (&'static str, Method, Box<dyn FnOnce() + Send>);

struct State {
    base: *mut ffi::sqlite3_vfs,
    inner: Mutex<Inner>,
    /// Bytes of the longest read or write that is done; a longer one fails.
    longest: AtomicI32,
    /// Sector size of a disk that does not overwrite powersafely; 0 for what the base answers.
    sector: AtomicI32,
}

enum Verdict {
    Pass,
    Fail(c_int),
    Short,
    /// Only what the file has room for.
    Inside,
}

impl State {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, method: Method, flags: c_int) -> Verdict {
        let mut inner = self.inner();
        if let Some((.., work)) = inner
            .work
            .take_if(|(only, before, _)| *before == method && *only == kind_of_file(flags))
        {
            drop(inner);
            work();
            inner = self.inner();
        }
        inner.calls.push((method, flags));
        let changes = matches!(method, Method::Write | Method::Truncate | Method::Sync);
        if inner.only.is_some_and(|only| {
            !changes || !only.split(" or ").any(|kind| kind == kind_of_file(flags))
        }) {
            return Verdict::Pass;
        }
        let number = inner.numbered;
        inner.numbered += 1;
        let Some((at, kind)) = inner.fault else { return Verdict::Pass };
        let write = method == Method::Write;
        let verdict = match kind {
            Kind::Once if number == at => Verdict::Fail(method.failure()),
            Kind::From if number >= at => Verdict::Fail(method.failure()),
            Kind::FullOnce if number == at && write => Verdict::Fail(ffi::SQLITE_FULL),
            Kind::FullFrom if number >= at && write => Verdict::Fail(ffi::SQLITE_FULL),
            Kind::NoRoom if number >= at && write => return Verdict::Inside,
            Kind::ShortWrite if number == at && write => Verdict::Short,
            Kind::ShortWrites if (at..at + 4).contains(&number) && write => Verdict::Short,
            Kind::ShortRead if number == at && method == Method::Read => Verdict::Short,
            _ => Verdict::Pass,
        };
        if !matches!(verdict, Verdict::Pass) {
            inner.hits += 1;
        }
        verdict
    }
}

/// The kind of file that was opened with `flags`.
pub fn kind_of_file(flags: c_int) -> &'static str {
    match flags & 0xfff00 {
        ffi::SQLITE_OPEN_MAIN_DB => "database",
        ffi::SQLITE_OPEN_TEMP_DB => "temporary database",
        ffi::SQLITE_OPEN_TRANSIENT_DB => "transient database",
        ffi::SQLITE_OPEN_MAIN_JOURNAL => "journal",
        ffi::SQLITE_OPEN_TEMP_JOURNAL => "temporary journal or sorter",
        ffi::SQLITE_OPEN_SUBJOURNAL => "statement journal",
        ffi::SQLITE_OPEN_WAL => "log",
        ffi::SQLITE_OPEN_SUPER_JOURNAL => "super-journal",
        _ => "no open file",
    }
}

/// A registered VFS of this kind.
#[derive(Clone, Copy)]
pub struct TestVfs {
    pub name: &'static str,
    state: &'static State,
}

// SAFETY: the base VFS is never freed and may be used by every thread.
unsafe impl Sync for State {}
// SAFETY: as above.
unsafe impl Send for State {}

impl Default for TestVfs {
    fn default() -> Self {
        Self::new()
    }
}

impl TestVfs {
    /// Registers a new one over `unix`.
    pub fn new() -> Self {
        Self::over("unix")
    }

    /// Registers a new one over the VFS `base`.
    pub fn over(base: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static CONFIGURE: Once = Once::new();
        CONFIGURE.call_once(|| {
            // Statement journals go to a file at once, and a sorter after one page, not 250.
            // SAFETY: where SQLite is already in use, these answer SQLITE_MISUSE and do nothing.
            unsafe {
                ffi::sqlite3_config(ffi::SQLITE_CONFIG_STMTJRNL_SPILL, 0 as c_int);
                ffi::sqlite3_config(ffi::SQLITE_CONFIG_PMASZ, 1 as c_int);
            }
        });
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let name: &'static str = Box::leak(name.into_boxed_str());
        // SAFETY: a VFS may be registered at any time; what it points to is leaked.
        unsafe {
            let base = ffi::sqlite3_vfs_find(CString::new(base).unwrap().as_ptr());
            assert!(!base.is_null(), "no VFS of that name");
            let state: &'static State = Box::leak(Box::new(State {
                base,
                inner: Mutex::default(),
                longest: AtomicI32::new(c_int::MAX),
                sector: AtomicI32::new(0),
            }));
            // The calls that are not ours are the platform's, which do not look at the VFS.
            let mut vfs = *ffi::sqlite3_vfs_find(c"unix".as_ptr());
            vfs.pNext = ptr::null_mut();
            vfs.szOsFile = (*base).szOsFile + size_of::<File>() as c_int;
            vfs.zName = CString::new(name).unwrap().into_raw();
            vfs.pAppData = ptr::from_ref(state).cast_mut().cast();
            vfs.xOpen = Some(open);
            vfs.xDelete = Some(delete);
            vfs.xAccess = Some(access);
            vfs.xFullPathname = Some(full_pathname);
            let code = ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0);
            assert_eq!(code, ffi::SQLITE_OK);
            Self { name, state }
        }
    }

    /// Forgets the calls so far, and fails call number `at` from now as `kind` says.
    pub fn fail(&self, at: usize, kind: Kind) {
        *self.state.inner() = Inner { fault: Some((at, kind)), ..Inner::default() };
    }

    /// As [`TestVfs::fail`], where writes, truncations and syncs of files of the kind `only` count
    /// and fail.
    pub fn fail_on(&self, only: &'static str, at: usize, kind: Kind) {
        let fault = Some((at, kind));
        *self.state.inner() = Inner { fault, only: Some(only), ..Inner::default() };
    }

    /// Does `work` before the next call of `method` on a file of the kind `only`.
    pub fn before(&self, only: &'static str, method: Method, work: impl FnOnce() + Send + 'static) {
        self.state.inner().work = Some((only, method, Box::new(work)));
    }

    /// Forgets calls and faults. Answers how many calls failed.
    pub fn clear(&self) -> usize {
        std::mem::take(&mut *self.state.inner()).hits
    }

    /// The calls, and the flags of the files they were for, since the last [`TestVfs::fail`] or
    /// [`TestVfs::clear`].
    pub fn calls(&self) -> Vec<(Method, c_int)> {
        self.state.inner().calls.clone()
    }

    /// Fails each read and write of more than `bytes` bytes.
    pub fn refuse_longer_than(&self, bytes: c_int) {
        self.state.longest.store(bytes, Ordering::Relaxed);
    }

    /// Answers `sector` as the size of a sector, and no powersafe overwrite.
    pub fn set_sector(&self, sector: c_int) {
        self.state.sector.store(sector, Ordering::Relaxed);
    }

    /// Keeps what is written from now on.
    pub fn record(&self) {
        self.state.inner().recording = true;
    }

    /// The syncs of files, and the deletions with or without a sync of the directory, since the
    /// last call of this, in words.
    pub fn take_synced(&self) -> Vec<String> {
        std::mem::take(&mut self.state.inner().synced)
    }

    /// What was written since the last call of this.
    pub fn take_written(&self) -> Vec<Written> {
        std::mem::take(&mut self.state.inner().written)
    }
}

/// An open file; the base VFS's file lies right behind it.
#[repr(C)]
struct File {
    head: ffi::sqlite3_file,
    state: *const State,
    flags: c_int,
    /// SQLite's, which stays until the file is closed; null for temporary files.
    name: *const c_char,
}

unsafe fn below(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: szOsFile makes room for both.
    unsafe { file.cast::<File>().add(1).cast() }
}

unsafe fn state_of<'a>(file: *mut ffi::sqlite3_file) -> &'a State {
    // SAFETY: `open` set it, and it is leaked.
    unsafe { &*(*file.cast::<File>()).state }
}

unsafe fn flags_of(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: `open` set it.
    unsafe { (*file.cast::<File>()).flags }
}

/// The last part of a file's name, without the random end of a super-journal's.
unsafe fn short_name(name: *const c_char) -> String {
    if name.is_null() {
        return "a temporary file".into();
    }
    // SAFETY: SQLite's names are NUL-terminated.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let name = name.rsplit('/').next().unwrap_or_default();
    match name.find("-mj") {
        Some(end) => name[..end + 3].into(),
        None => name.into(),
    }
}

unsafe fn state_of_vfs<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a State {
    // SAFETY: `TestVfs::new` set it, and it is leaked.
    unsafe { &*(*vfs).pAppData.cast::<State>() }
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
        let state = state_of_vfs(vfs);
        if let Verdict::Fail(code) = state.call(Method::Open, flags) {
            return code;
        }
        let base = below(file);
        (*base).pMethods = ptr::null();
        let code = (*state.base).xOpen.unwrap()(state.base, name, base, flags, out);
        if !(*base).pMethods.is_null() {
            let own = &mut *file.cast::<File>();
            own.state = state;
            own.flags = flags;
            own.name = name;
            let version = (*(*base).pMethods).iVersion;
            own.head.pMethods = if version >= 2 { &METHODS_2 } else { &METHODS_1 };
        }
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
        match state.call(Method::Delete, 0) {
            Verdict::Fail(code) => code,
            // Power is not lost in these tests: syncing a directory would only take time.
            _ => {
                let line = format!("delete {}, sync_dir {sync_dir}", short_name(name));
                state.inner().synced.push(line);
                (*state.base).xDelete.unwrap()(state.base, name, 0)
            }
        }
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
        let state = state_of_vfs(vfs);
        match state.call(Method::Access, 0) {
            Verdict::Fail(code) => code,
            _ => (*state.base).xAccess.unwrap()(state.base, name, flags, out),
        }
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

/// A method that is counted, may fail, and else is the base's.
macro_rules! counted {
    ($name:ident => $method:ident, $counted:expr $(, $arg:ident: $type:ty)*) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> c_int {
            // SAFETY: the arguments are those of the method, and the file is open.
            unsafe {
                if let Verdict::Fail(code) = state_of(file).call($counted, flags_of(file)) {
                    return code;
                }
                let base = below(file);
                (*(*base).pMethods).$method.unwrap()(base $(, $arg)*)
            }
        }
    };
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

counted!(truncate => xTruncate, Method::Truncate, size: i64);
counted!(file_size => xFileSize, Method::FileSize, out: *mut i64);
counted!(lock => xLock, Method::Lock, level: c_int);
counted!(check_reserved => xCheckReservedLock, Method::CheckReservedLock, out: *mut c_int);
through!(close => xClose);
through!(file_control => xFileControl, op: c_int, arg: *mut c_void);

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        match state_of(file).sector.load(Ordering::Relaxed) {
            0 => (*(*base).pMethods).xSectorSize.unwrap()(base),
            sector => sector,
        }
    }
}

unsafe extern "C" fn characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        let all = (*(*base).pMethods).xDeviceCharacteristics.unwrap()(base);
        match state_of(file).sector.load(Ordering::Relaxed) {
            0 => all,
            _ => all & !ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE,
        }
    }
}

counted!(shm_map => xShmMap, Method::ShmMap, page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void);

/// As with [`unlock`], where giving back fails, the lock is gone all the same.
unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    n: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let verdict = state_of(file).call(Method::ShmLock, flags_of(file));
        let base = below(file);
        let lock = (*(*base).pMethods).xShmLock.unwrap();
        match verdict {
            Verdict::Fail(code) if flags & ffi::SQLITE_SHM_LOCK != 0 => code,
            Verdict::Fail(code) => {
                lock(base, offset, n, flags);
                code
            }
            _ => lock(base, offset, n, flags),
        }
    }
}

/// Where this fails, nothing is mapped all the same.
unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let verdict = state_of(file).call(Method::ShmUnmap, flags_of(file));
        let base = below(file);
        let done = (*(*base).pMethods).xShmUnmap.unwrap()(base, delete);
        if let Verdict::Fail(code) = verdict { code } else { done }
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
        let verdict = state_of(file).call(Method::Read, flags_of(file));
        if let Verdict::Fail(code) = verdict {
            return code;
        }
        if len > state_of(file).longest.load(Ordering::Relaxed) {
            return ffi::SQLITE_IOERR_READ;
        }
        let base = below(file);
        let done = (*(*base).pMethods).xRead.unwrap()(base, buf, len, at);
        if !matches!(verdict, Verdict::Short) || done != ffi::SQLITE_OK {
            return done;
        }
        let half = (len / 2) as usize;
        ptr::write_bytes(buf.cast::<u8>().add(half), 0, len as usize - half);
        ffi::SQLITE_IOERR_SHORT_READ
    }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: the file is open.
    unsafe {
        let base = below(file);
        (*(*base).pMethods).xShmBarrier.unwrap()(base);
    }
}

/// Whether a write up to `end` makes the file longer.
unsafe fn grows(file: *mut ffi::sqlite3_file, end: i64) -> bool {
    let mut size = 0;
    // SAFETY: the file is open.
    let code = unsafe { (*(*below(file)).pMethods).xFileSize.unwrap()(below(file), &mut size) };
    code == ffi::SQLITE_OK && end > size
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buf: *const c_void,
    len: c_int,
    at: i64,
) -> c_int {
    // SAFETY: the arguments are those of xWrite, and the file is open.
    unsafe {
        let state = state_of(file);
        let verdict = state.call(Method::Write, flags_of(file));
        if len > state.longest.load(Ordering::Relaxed) {
            return ffi::SQLITE_FULL;
        }
        let (len, code) = match verdict {
            Verdict::Fail(code) => return code,
            Verdict::Short => (len / 2, ffi::SQLITE_FULL),
            Verdict::Inside if grows(file, at + i64::from(len)) => {
                state.inner().hits += 1;
                return ffi::SQLITE_FULL;
            }
            Verdict::Inside | Verdict::Pass => (len, ffi::SQLITE_OK),
        };
        {
            let mut inner = state.inner();
            if inner.recording {
                let data = std::slice::from_raw_parts(buf.cast::<u8>(), len as usize).to_vec();
                let flags = flags_of(file);
                inner.written.push(Written { flags, offset: at, data });
            }
        }
        let base = below(file);
        let done = (*(*base).pMethods).xWrite.unwrap()(base, buf, len, at);
        if done == ffi::SQLITE_OK { code } else { done }
    }
}

/// Power is not lost in these tests: a sync is only counted.
unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let state = state_of(file);
        if let Verdict::Fail(code) = state.call(Method::Sync, flags_of(file)) {
            return code;
        }
        let line = format!("sync {}, flags {flags:#x}", short_name((*file.cast::<File>()).name));
        state.inner().synced.push(line);
        ffi::SQLITE_OK
    }
}

/// Where this fails, the lock is gone all the same; otherwise nothing could go on.
unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: the file is open.
    unsafe {
        let verdict = state_of(file).call(Method::Unlock, flags_of(file));
        let base = below(file);
        let done = (*(*base).pMethods).xUnlock.unwrap()(base, level);
        if let Verdict::Fail(code) = verdict { code } else { done }
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
