//! The methods of an open file, as SQLite calls them.
//!
//! ```text
//! | TdeFile: methods | Shared* |
//! ```
//! SQLite allocates it, zeroed and aligned to 8 bytes. The base VFS's file is in memory of ours.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ffi;

use super::base::{BaseFile, call};
use super::connection::{ERRAND, Errand};
use super::kin::{WHO, answer_who};
use super::open::OpenFile;
use super::shared::{Entered, Shared};
use super::{api, guard, guard_change, names, of_change, raise};
use crate::command::{self, Command};
use crate::error::{Error, Result, last_error};

/// Our part of an sqlite3_file.
#[repr(C, align(8))]
pub(super) struct TdeFile {
    head: ffi::sqlite3_file,
    /// From `Arc::into_raw`, until xClose.
    shared: *const Shared,
}

impl TdeFile {
    /// Makes `file` ours.
    ///
    /// # Safety
    /// `file` has room for a `TdeFile`.
    pub(super) unsafe fn install(file: *mut ffi::sqlite3_file, shared: Arc<Shared>, base: Offers) {
        // SAFETY: as above; SQLite reads `pMethods` only after xOpen returned.
        unsafe {
            (*file.cast::<Self>()).shared = Arc::into_raw(shared);
            (*file).pMethods = base.methods();
        }
    }

    /// What is behind `file`, if it is one of ours: not NULL, and with our methods.
    ///
    /// # Safety
    /// `file` is NULL or an open sqlite3_file.
    pub(super) unsafe fn shared(file: *mut ffi::sqlite3_file) -> Option<*const Shared> {
        // SAFETY: as above; only `install` sets one of our methods, together with `shared`.
        unsafe {
            let ours = !file.is_null() && METHODS.iter().any(|own| ptr::eq((*file).pMethods, own));
            ours.then(|| (*file.cast::<Self>()).shared)
        }
    }
}

/// Enters the open file behind `file`.
///
/// # Errors
/// As [`Shared::enter`].
///
/// # Safety
/// SQLite called one of our methods on `file`, and that has not returned.
unsafe fn opened<'a>(file: *mut ffi::sqlite3_file) -> Result<Entered<'a>> {
    // SAFETY: only `install` makes SQLite call our methods, and `close` ends that.
    unsafe { (*(*file.cast::<TdeFile>()).shared).enter() }
}

/// Which methods of later versions the base file has, so that ours may have them.
#[derive(Clone, Copy)]
pub(super) struct Offers {
    version: c_int,
    shared_memory: bool,
}

impl Offers {
    pub(super) fn of(base: &BaseFile) -> Self {
        Self { version: base.version_to_claim(), shared_memory: base.has_shared_memory() }
    }

    fn methods(self) -> &'static ffi::sqlite3_io_methods {
        match (self.version, self.shared_memory) {
            (..=1, _) => &METHODS[0],
            (2, false) => &METHODS[1],
            (2, true) => &METHODS[2],
            (_, false) => &METHODS[3],
            (_, true) => &METHODS[4],
        }
    }
}

/// The methods for each kind of base file. SQLite asks for the version, and for xShmMap.
static METHODS: [ffi::sqlite3_io_methods; 5] =
    [methods(1, false), methods(2, false), methods(2, true), methods(3, false), methods(3, true)];

const fn methods(version: c_int, shared_memory: bool) -> ffi::sqlite3_io_methods {
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
        xCheckReservedLock: Some(check_reserved_lock),
        xFileControl: Some(file_control),
        xSectorSize: Some(sector_size),
        xDeviceCharacteristics: Some(device_characteristics),
        xShmMap: None,
        xShmLock: None,
        xShmBarrier: None,
        xShmUnmap: None,
        xFetch: None,
        xUnfetch: None,
    };
    if shared_memory {
        methods.xShmMap = Some(shm_map);
        methods.xShmLock = Some(shm_lock);
        methods.xShmBarrier = Some(shm_barrier);
        methods.xShmUnmap = Some(shm_unmap);
    }
    if version >= 3 {
        methods.xFetch = Some(fetch);
        methods.xUnfetch = Some(unfetch);
    }
    methods
}

type File = *mut ffi::sqlite3_file;

unsafe extern "C" fn close(file: File) -> c_int {
    guard(|| {
        // SAFETY: xClose is the last call on `file`; `install` stored the pointer.
        let shared = unsafe {
            (*file).pMethods = ptr::null();
            Arc::from_raw((*file.cast::<TdeFile>()).shared)
        };
        if !shared.name().is_null() {
            // SAFETY: a database was remembered under its name when it was opened.
            unsafe { names::forget(file, shared.name()) };
        }
        let closed = shared.close(|open| open.close(&shared));
        if closed.is_err() {
            // Further up in this thread a call is in it, which goes on with what it has.
            std::mem::forget(shared);
        }
        closed
    })
}

unsafe extern "C" fn read(file: File, buf: *mut c_void, len: c_int, at: i64) -> c_int {
    // SAFETY: "xRead reads iAmt bytes into the buffer", which SQLite owns and we alone use now.
    guard(|| unsafe {
        let buf = std::slice::from_raw_parts_mut(buf.cast::<u8>(), length(len)?);
        opened(file)?.read(buf, offset(at)?)
    })
}

unsafe extern "C" fn write(file: File, buf: *const c_void, len: c_int, at: i64) -> c_int {
    // SAFETY: "xWrite writes iAmt bytes from the buffer", which stays SQLite's and is not changed.
    guard_change(|| unsafe {
        let bytes = std::slice::from_raw_parts(buf.cast::<u8>(), length(len)?);
        opened(file)?.write(bytes, offset(at)?)
    })
}

unsafe extern "C" fn truncate(file: File, size: i64) -> c_int {
    // SAFETY: see `opened`.
    guard_change(|| unsafe { opened(file)?.truncate(offset(size)?) })
}

unsafe extern "C" fn sync(file: File, flags: c_int) -> c_int {
    // SAFETY: see `opened`.
    guard_change(|| unsafe { opened(file)?.sync(flags) })
}

unsafe extern "C" fn file_size(file: File, out: *mut ffi::sqlite3_int64) -> c_int {
    guard(|| {
        // SAFETY: see `opened`.
        let mut open = unsafe { opened(file)? };
        if open.wants_reserve() {
            drop(open);
            // A database that does not lock (`nolock=1`) is asked for its size before anything is
            // written. SAFETY: SQLite called xFileSize on `file`.
            unsafe { ask_for_reserve(file)? };
            // SAFETY: see `opened`.
            open = unsafe { opened(file)? };
        }
        // SAFETY: `out` points to one integer.
        unsafe { *out = open.size()? as i64 };
        Ok(ffi::SQLITE_OK)
    })
}

unsafe extern "C" fn lock(file: File, level: c_int) -> c_int {
    guard(|| {
        names::locks(file);
        // SAFETY: see `opened`.
        let code = unsafe { opened(file)?.lock(level)? };
        if code == ffi::SQLITE_OK && level == ffi::SQLITE_LOCK_SHARED {
            // SAFETY: SQLite called xLock on `file`.
            unsafe { ask_for_reserve(file) }.inspect_err(|_| {
                // SQLite gets an error and takes it that it has no lock.
                // SAFETY: see `opened`.
                if let Ok(mut open) = unsafe { opened(file) } {
                    open.unlock(ffi::SQLITE_LOCK_NONE);
                }
            })?;
        }
        Ok(code)
    })
}

/// Tells SQLite to leave room for the trailer in a database that has no page yet. It serves every
/// road by which one is created: open, ATTACH, VACUUM INTO, backup.
///
/// # Safety
/// SQLite is inside a method of `file`, hence holds the mutex of the connection that uses it.
unsafe fn ask_for_reserve(file: File) -> Result<()> {
    // SAFETY: see `opened`; the borrow ends before SQLite is called back.
    let connection = unsafe {
        let open = opened(file)?;
        open.wants_reserve().then(|| open.connection.load(Ordering::Acquire))
    };
    let name = connection.map_or(ptr::null(), |_| names::name_of(file));
    let Some(connection) = connection.filter(|_| !name.is_null()) else { return Ok(()) };
    // A pager that has a lock and changes its page size calls xFileSize before it is done.
    // SAFETY: see `opened`; the borrow ends before SQLite is called back.
    unsafe { opened(file)?.reserves = true };
    // SAFETY: SQLITE_FCNTL_PDB gave the place, which lives as long as the open file, and so does
    // its name.
    let told = unsafe { api::reserve_bytes_of(*connection, name) };
    // SAFETY: see `opened`.
    unsafe { opened(file)?.reserves = false };
    told
}

unsafe extern "C" fn unlock(file: File, level: c_int) -> c_int {
    // SAFETY: see `opened`.
    guard(|| unsafe { Ok(opened(file)?.unlock(level)) })
}

unsafe extern "C" fn check_reserved_lock(file: File, out: *mut c_int) -> c_int {
    // SAFETY: see `opened`; `out` points to an int.
    guard(|| unsafe { Ok(opened(file)?.base.check_reserved_lock(out)) })
}

unsafe extern "C" fn sector_size(file: File) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    open.map_or(0, |open| open.base.sector_size())
}

unsafe extern "C" fn device_characteristics(file: File) -> c_int {
    // SAFETY: see `opened`.
    let open = unsafe { opened(file) };
    open.map_or(0, |open| open.device_characteristics())
}

unsafe extern "C" fn file_control(file: File, op: c_int, arg: *mut c_void) -> c_int {
    // SAFETY: see `opened`; `arg` is what SQLite's documentation says of `op`.
    guard(|| unsafe {
        if op == ERRAND
            && let Some(errand) = Errand::of(arg)
        {
            errand.run(opened(file));
            return Ok(ffi::SQLITE_OK);
        }
        if op == ffi::SQLITE_FCNTL_PRAGMA {
            // `PRAGMA page_size=512`: told in time of the trailer, SQLite makes it 1024 by itself.
            // A host that cannot be told gets its error where the database is locked.
            let _ = ask_for_reserve(file);
            if let Some(code) = pragma_without_file(file, arg.cast()) {
                return Ok(code);
            }
        }
        if op == ffi::SQLITE_FCNTL_PDB {
            let shared = &*(*file.cast::<TdeFile>()).shared;
            shared.used_by(arg.cast());
            // The base gets it as it would from SQLite: perhaps beside another thread's call.
            let base = shared.base();
            let control = (*(*base).pMethods).xFileControl;
            return Ok(control.map_or(ffi::SQLITE_NOTFOUND, |control| control(base, op, arg)));
        }
        let mut open = opened(file)?;
        match op {
            ffi::SQLITE_FCNTL_PRAGMA => {
                if let Some(code) = pragma(&mut open, arg.cast()) {
                    return Ok(code);
                }
            }
            ffi::SQLITE_FCNTL_SYNC => {
                if let Err(error) = open.before_commit() {
                    return Ok(of_change(raise(error)));
                }
            }
            ffi::SQLITE_FCNTL_CKPT_START => open.checkpoint_starts(),
            ffi::SQLITE_FCNTL_CKPT_DONE => open.checkpoint_ends(),
            ffi::SQLITE_FCNTL_MMAP_SIZE => open.base.limit_mapping(*arg.cast::<i64>()),
            // Growing the file ahead of its pages would leave pages that nobody sealed.
            ffi::SQLITE_FCNTL_SIZE_HINT | ffi::SQLITE_FCNTL_CHUNK_SIZE
                if !open.passes_through() =>
            {
                return Ok(ffi::SQLITE_OK);
            }
            ffi::SQLITE_FCNTL_BEGIN_ATOMIC_WRITE if !open.passes_through() => {
                return Ok(ffi::SQLITE_NOTFOUND);
            }
            WHO => return Ok(answer_who(arg.cast())),
            _ => {}
        }
        let code = open.base.file_control(op, arg);
        if op == ffi::SQLITE_FCNTL_VFSNAME && code == ffi::SQLITE_OK {
            name_vfs(arg.cast());
        }
        Ok(code)
    })
}

/// Puts our name before that of the base VFS.
///
/// # Safety
/// `arg` is that of a successful `SQLITE_FCNTL_VFSNAME`: a string from SQLite's allocator, or NULL.
unsafe fn name_vfs(arg: *mut *mut c_char) {
    // SAFETY: as above; the string is replaced by one from the same allocator.
    unsafe {
        if !(*arg).is_null() {
            let below = CStr::from_ptr(*arg).to_string_lossy().into_owned();
            api::free(*arg);
            *arg = api::sqlite_string(&format!("tde/{below}"));
        }
    }
}

/// Name and value of a PRAGMA.
///
/// # Safety
/// `arg` is that of `SQLITE_FCNTL_PRAGMA`: result, name, value or NULL.
unsafe fn name_and_value<'a>(arg: *mut *mut c_char) -> (Cow<'a, str>, Option<Cow<'a, str>>) {
    // SAFETY: as above.
    unsafe {
        let name = CStr::from_ptr(*arg.add(1)).to_string_lossy();
        let value = *arg.add(2);
        (name, (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy()))
    }
}

/// Answers a PRAGMA of ours for which SQLite is asked in turn, or which needs no open file; `None`
/// for another one.
///
/// # Safety
/// SQLite called xFileControl on `file` with this `arg` of `SQLITE_FCNTL_PRAGMA`.
unsafe fn pragma_without_file(file: File, arg: *mut *mut c_char) -> Option<c_int> {
    // SAFETY: as above.
    let (name, value) = unsafe { name_and_value(arg) };
    let name = name.to_ascii_lowercase();
    if !name.starts_with("tde_") {
        return None;
    }
    // Where the schema cannot be read, SQLite from 3.49 on prepares no call of the function.
    if (name.as_str(), &value) == ("tde_last_error", &None) {
        // The text is the column's name, too, and hosts cannot do without one: where there is none,
        // there is no column.
        let Some(text) = last_error() else { return Some(ffi::SQLITE_NOTFOUND) };
        // SAFETY: SQLite frees the string in the first place.
        unsafe { *arg = api::sqlite_string(&text) };
        return Some(ffi::SQLITE_OK);
    }
    if !Command::parse(&name, value.as_deref()).is_ok_and(|command| command.changes()) {
        return None;
    }
    // SAFETY: see `opened`; the borrow ends before SQLite is called back. SQLITE_FCNTL_PDB gave the
    // place, which lives as long as the open file, and so does the connection.
    let refused: Result<()> = unsafe {
        let place = opened(file).ok()?.connection.load(Ordering::Acquire);
        if place.is_null() || (*place).is_null() || !api::is_query_only(*place) {
            return None;
        }
        command::refuse_on_query_only(&mut *opened(file).ok()?)
    };
    let text = refused.err()?.to_string();
    // SAFETY: as above.
    unsafe { *arg = api::sqlite_string(&text) };
    Some(ffi::SQLITE_ERROR)
}

/// Answers a PRAGMA of ours; `None` for one that is SQLite's.
///
/// # Safety
/// `arg` is that of `SQLITE_FCNTL_PRAGMA`: result, name, value or NULL.
unsafe fn pragma(open: &mut OpenFile, arg: *mut *mut c_char) -> Option<c_int> {
    // SAFETY: as above.
    let (name, value) = unsafe { name_and_value(arg) };
    let (text, code) = match open.pragma(&name, value.as_deref()) {
        Ok(None) => return None,
        Ok(Some(answer)) => (answer, ffi::SQLITE_OK),
        Err(error) => (error.to_string(), ffi::SQLITE_ERROR),
    };
    // SAFETY: SQLite frees the string in the first place.
    unsafe { *arg = api::sqlite_string(&text) };
    Some(code)
}

unsafe extern "C" fn shm_map(
    file: File,
    region: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: see `opened`; shared memory is the base VFS's, and `out` points to a pointer.
    guard(|| unsafe {
        let mut open = opened(file)?;
        let code = call!(open.base, xShmMap, region, size, extend, out);
        let mapped = matches!(code, ffi::SQLITE_OK | ffi::SQLITE_READONLY);
        open.shm.mapped(region, size, if mapped { *out } else { ptr::null_mut() });
        Ok(code)
    })
}

unsafe extern "C" fn shm_lock(file: File, offset: c_int, n: c_int, flags: c_int) -> c_int {
    /// SQLite writes a log under this one of its locks.
    const WRITE: c_int = 0;
    /// It holds this one while it recovers a log, and else never exclusively.
    const RECOVER: c_int = 2;
    // SAFETY: see `opened`.
    guard(|| unsafe {
        let mut open = opened(file)?;
        let exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
        let unlock = flags & ffi::SQLITE_SHM_UNLOCK != 0;
        if unlock && exclusive && (offset..offset + n).contains(&RECOVER) {
            open.end_recovery();
        }
        if !unlock {
            open.before_shm_lock()?;
        }
        let writes = exclusive && (offset..offset + n).contains(&WRITE);
        let code = call!(open.base, xShmLock, offset, n, flags);
        match code {
            ffi::SQLITE_OK if unlock => {
                open.shm_unlocked(offset, n);
                if writes {
                    open.write_lock_given_back();
                }
            }
            ffi::SQLITE_OK => {
                open.shm_locked(offset, n, exclusive);
                if writes {
                    open.writing_starts();
                }
            }
            _ => {}
        }
        Ok(code)
    })
}

/// The open file is not entered: a barrier changes nothing of it, and each transaction has several.
unsafe extern "C" fn shm_barrier(file: File) {
    // SAFETY: SQLite called a method of ours on `file`, so it is open, and so is its base.
    unsafe {
        let base = (*(*file.cast::<TdeFile>()).shared).base();
        if let Some(barrier) = (*(*base).pMethods).xShmBarrier {
            barrier(base);
        }
    }
}

unsafe extern "C" fn shm_unmap(file: File, delete: c_int) -> c_int {
    // SAFETY: see `opened`.
    guard(|| unsafe {
        let mut open = opened(file)?;
        open.shm.unmapped();
        Ok(call!(open.base, xShmUnmap, delete))
    })
}

/// A page of ours is never in the file as SQLite sees it, so there is nothing to point to; but
/// SQLite wants a mapping, and what it reads next comes from there.
unsafe extern "C" fn fetch(file: File, at: i64, len: c_int, out: *mut *mut c_void) -> c_int {
    // SAFETY: see `opened`; `out` points to a pointer.
    guard(|| unsafe {
        *out = ptr::null_mut();
        let mut open = opened(file)?;
        if open.passes_through() {
            return Ok(call!(open.base, xFetch, at, len, out));
        }
        // It asks for one of every file that it sorts in, too, of any size.
        if open.is_database() {
            open.base.map(at, len)?;
        }
        Ok(ffi::SQLITE_OK)
    })
}

/// Without a page it tells that the file may have changed, so that the mapping is made anew.
unsafe extern "C" fn unfetch(file: File, at: i64, page: *mut c_void) -> c_int {
    // SAFETY: see `opened`.
    guard(|| unsafe {
        let mut open = opened(file)?;
        if page.is_null() {
            open.base.unmap();
        }
        Ok(call!(open.base, xUnfetch, at, page))
    })
}

fn length(len: c_int) -> Result<usize> {
    usize::try_from(len).map_err(|_| Error::Base(ffi::SQLITE_IOERR))
}

fn offset(at: i64) -> Result<u64> {
    u64::try_from(at).map_err(|_| Error::Base(ffi::SQLITE_IOERR))
}
