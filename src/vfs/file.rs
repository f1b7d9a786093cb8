//! The methods of an open file, as SQLite calls them.
//!
//! ```text
//! | TdeFile: methods | Handle* |
//! ```
//! SQLite allocates it, zeroed and aligned to 8 bytes. The base VFS's file is in memory of ours.
//! A handle is thin: it knows which file of which database it is, and passes SQLite's calls on.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ffi;

use super::base::{BaseFile, call};
use super::connection::{ERRAND, Errand};
use super::kin::{WHO, answer_who};
use super::names::{self, LogName};
use super::owner::{Guarded, Owner};
use super::{api, check_memory, guard, guard_change, of_change, raise};
use crate::command::{self, Command};
use crate::db::PartId;
use crate::db::host::{Host, LockLevel};
use crate::error::{Error, Result, last_error};
use crate::file::scratch::Scratch;
use crate::io::{Filled, Storage};

/// Characteristics that hold for the base file and not for ours: a page of ours takes more than one
/// write if the file grows, and a record is not appended by itself.
const NOT_OURS: c_int = ffi::SQLITE_IOCAP_ATOMIC
    | ffi::SQLITE_IOCAP_ATOMIC512
    | ffi::SQLITE_IOCAP_ATOMIC1K
    | ffi::SQLITE_IOCAP_ATOMIC2K
    | ffi::SQLITE_IOCAP_ATOMIC4K
    | ffi::SQLITE_IOCAP_ATOMIC8K
    | ffi::SQLITE_IOCAP_ATOMIC16K
    | ffi::SQLITE_IOCAP_ATOMIC32K
    | ffi::SQLITE_IOCAP_ATOMIC64K
    | ffi::SQLITE_IOCAP_SAFE_APPEND
    | ffi::SQLITE_IOCAP_BATCH_ATOMIC;

/// Our part of an sqlite3_file.
#[repr(C, align(8))]
pub(super) struct TdeFile {
    head: ffi::sqlite3_file,
    /// From `Box::into_raw`, until xClose.
    handle: *mut Handle,
}

/// The kinds of our sqlite3_file.
pub(super) enum Handle {
    Main(Arc<Owner>),
    Journal(Arc<Owner>, PartId),
    /// The base may keep the pointer to the name that it was given.
    Log(
        Arc<Owner>,
        PartId,
        #[expect(dead_code, reason = "it lives as long as the handle")] Option<Arc<LogName>>,
    ),
    Scratch(Guarded<(BaseFile, Box<Scratch>)>),
    /// Passed through: a file of the plaintext database held here, a super-journal, or the journal
    /// of another database of the same transaction, of which SQLite reads the name at its end.
    Through(Guarded<BaseFile>, Option<Arc<Owner>>),
}

impl Handle {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<Filled> {
        match self {
            Self::Main(owner) => owner.enter()?.read(buf, at),
            Self::Journal(owner, id) => owner.enter()?.read_journal(*id, buf, at),
            Self::Log(owner, id, _) => owner.enter()?.read_log(*id, buf, at),
            Self::Scratch(scratch) => {
                let (base, scratch) = &mut *scratch.enter()?;
                scratch.read(base, buf, at)
            }
            Self::Through(base, _) => {
                Ok(if base.enter()?.read(buf, at)? { Filled::Full } else { Filled::Short })
            }
        }
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        match self {
            Self::Main(owner) => owner.enter()?.write(bytes, at),
            Self::Journal(owner, id) => owner.enter()?.write_journal(*id, bytes, at),
            Self::Log(owner, id, _) => owner.enter()?.write_log(*id, bytes, at),
            Self::Scratch(scratch) => {
                let (base, scratch) = &mut *scratch.enter()?;
                scratch.write(base, bytes, at)
            }
            Self::Through(base, _) => base.enter()?.write(bytes, at),
        }
    }

    fn truncate(&self, size: u64) -> Result<()> {
        match self {
            Self::Main(owner) => owner.enter()?.truncate(size),
            Self::Journal(owner, id) => owner.enter()?.truncate_journal(*id, size),
            Self::Log(owner, id, _) => owner.enter()?.truncate_log(*id, size),
            Self::Scratch(scratch) => {
                let (base, scratch) = &mut *scratch.enter()?;
                scratch.truncate(base, size)
            }
            Self::Through(base, _) => base.enter()?.truncate(size),
        }
    }

    fn sync(&self, flags: c_int) -> Result<()> {
        match self {
            Self::Main(owner) => owner.enter()?.sync(flags),
            Self::Journal(owner, id) => owner.enter()?.sync_journal(*id, flags),
            Self::Log(owner, id, _) => owner.enter()?.sync_log(*id, flags),
            Self::Scratch(_) | Self::Through(..) => {
                self.with_base(|base, _| base.sync_as(flags))?
            }
        }
    }

    fn size(&self) -> Result<u64> {
        match self {
            Self::Main(owner) => owner.enter()?.size(),
            Self::Journal(owner, id) => owner.enter()?.journal_size(*id),
            Self::Log(owner, id, _) => owner.enter()?.log_size(*id),
            Self::Scratch(scratch) => Ok(scratch.enter()?.1.size()),
            Self::Through(base, _) => base.enter()?.size(),
        }
    }

    /// Runs `work` on the base VFS's file, and tells it whether the bytes there are those that
    /// SQLite sees.
    fn with_base<T>(&self, work: impl FnOnce(&mut BaseFile, bool) -> T) -> Result<T> {
        Ok(match self {
            Self::Main(owner) => {
                let database = &mut *owner.enter()?;
                work(&mut database.host, database.main.is_plain())
            }
            Self::Journal(owner, id) => work(owner.enter()?.journal_host(*id)?, false),
            Self::Log(owner, id, _) => work(owner.enter()?.log_host(*id)?, false),
            Self::Scratch(scratch) => work(&mut scratch.enter()?.0, false),
            Self::Through(base, _) => work(&mut *base.enter()?, true),
        })
    }

    /// Closes the file.
    ///
    /// # Errors
    /// As [`Guarded::enter`]: a call further up in this thread still uses the file.
    fn close(&self) -> Result<c_int> {
        match self {
            Self::Main(owner) => owner.database.close(|db| db.host.close()),
            // After their main file was closed, they only keep its memory alive.
            Self::Journal(owner, _) | Self::Log(owner, ..) if owner.database.is_closed() => {
                Ok(ffi::SQLITE_OK)
            }
            Self::Journal(owner, id) => {
                Ok(owner.enter()?.close_journal(*id).map_or(ffi::SQLITE_OK, |base| base.close()))
            }
            Self::Log(owner, id, _) => {
                Ok(owner.enter()?.close_log(*id).map_or(ffi::SQLITE_OK, |base| base.close()))
            }
            Self::Scratch(scratch) => scratch.close(|(base, _)| base.close()),
            Self::Through(base, database) => {
                if let Some(Ok(mut database)) = database.as_deref().map(Owner::enter) {
                    database.close_plain_part();
                }
                base.close(|base| base.close())
            }
        }
    }
}

impl TdeFile {
    /// Makes `file` ours.
    ///
    /// # Safety
    /// `file` has room for a `TdeFile`.
    pub(super) unsafe fn install(file: *mut ffi::sqlite3_file, handle: Handle, base: Offers) {
        // SAFETY: as above; SQLite reads `pMethods` only after xOpen returned.
        unsafe {
            (*file.cast::<Self>()).handle = Box::into_raw(Box::new(handle));
            (*file).pMethods = base.methods();
        }
    }
}

/// The handle behind `file`.
///
/// # Safety
/// SQLite called one of our methods on `file`, and that has not returned.
unsafe fn opened<'a>(file: *mut ffi::sqlite3_file) -> &'a Handle {
    // SAFETY: only `install` makes SQLite call our methods, and `close` ends that.
    unsafe { &*(*file.cast::<TdeFile>()).handle }
}

/// The database whose main file `file` is.
///
/// # Errors
/// [`Error::NotEncrypted`] for another file, for which SQLite never makes such a call.
///
/// # Safety
/// As [`opened`].
unsafe fn owner<'a>(file: *mut ffi::sqlite3_file) -> Result<&'a Arc<Owner>> {
    // SAFETY: as above.
    match unsafe { opened(file) } {
        Handle::Main(owner) => Ok(owner),
        _ => Err(Error::NotEncrypted),
    }
}

/// The versions of methods that the base file has, so that ours may have them.
#[derive(Clone, Copy)]
pub(super) struct Offers {
    version: c_int,
    shared_memory: bool,
}

impl Offers {
    pub(super) fn of(base: &BaseFile) -> Self {
        Self { version: base.version_to_claim(), shared_memory: base.has_shm_methods() }
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
        let handle = unsafe {
            (*file).pMethods = ptr::null();
            Box::from_raw((*file.cast::<TdeFile>()).handle)
        };
        if let Handle::Main(owner) = &*handle {
            // SAFETY: a database was remembered under its name when it was opened.
            unsafe { names::forget(file, owner) };
        }
        let closed = handle.close();
        if closed.is_err() {
            // A call further up in this thread is in it, and keeps its state.
            std::mem::forget(handle);
        }
        closed
    })
}

unsafe extern "C" fn read(file: File, buf: *mut c_void, len: c_int, at: i64) -> c_int {
    // SAFETY: "xRead reads iAmt bytes into the buffer", which SQLite owns and we alone use now.
    guard(|| unsafe {
        let buf = std::slice::from_raw_parts_mut(buf.cast::<u8>(), length(len)?);
        Ok(match opened(file).read(buf, offset(at)?)? {
            Filled::Full => ffi::SQLITE_OK,
            Filled::Short => ffi::SQLITE_IOERR_SHORT_READ,
        })
    })
}

unsafe extern "C" fn write(file: File, buf: *const c_void, len: c_int, at: i64) -> c_int {
    // SAFETY: "xWrite writes iAmt bytes from the buffer", which stays SQLite's and is not changed.
    guard_change(|| unsafe {
        let bytes = std::slice::from_raw_parts(buf.cast::<u8>(), length(len)?);
        done(opened(file).write(bytes, offset(at)?))
    })
}

unsafe extern "C" fn truncate(file: File, size: i64) -> c_int {
    // SAFETY: see `opened`.
    guard_change(|| unsafe { done(opened(file).truncate(offset(size)?)) })
}

unsafe extern "C" fn sync(file: File, flags: c_int) -> c_int {
    // SAFETY: see `opened`.
    guard_change(|| unsafe { done(opened(file).sync(flags)) })
}

unsafe extern "C" fn file_size(file: File, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: see `opened`; `out` points to one integer.
    guard(|| unsafe {
        *out = match opened(file) {
            Handle::Main(owner) => {
                let mut database = owner.enter()?;
                // A database that does not lock (`nolock=1`) is asked for its size before anything
                // is written.
                if owner.wants_reserve(&database) {
                    drop(database);
                    tell_reserve(owner)?;
                    database = owner.enter()?;
                }
                database.size()?
            }
            other => other.size()?,
        } as i64;
        Ok(ffi::SQLITE_OK)
    })
}

unsafe extern "C" fn lock(file: File, level: c_int) -> c_int {
    // SAFETY: see `opened`.
    guard(|| unsafe {
        check_memory()?;
        let level = LockLevel::from_code(level);
        let Handle::Main(owner) = opened(file) else {
            return done(opened(file).with_base(|base, _| base.lock(level))?);
        };
        names::locks(file);
        let mut database = owner.enter()?;
        database.lock(level)?;
        if level == LockLevel::Shared && owner.wants_reserve(&database) {
            drop(database);
            tell_reserve(owner).inspect_err(|_| {
                // After an error SQLite assumes that it does not hold the lock, so it is released.
                if let Ok(mut database) = owner.enter() {
                    let _ = database.unlock(LockLevel::None);
                }
            })?;
        }
        Ok(ffi::SQLITE_OK)
    })
}

/// Tells SQLite to leave room for the trailer in a database that has no page yet. It serves every
/// road by which one is created: open, ATTACH, VACUUM INTO, backup.
///
/// # Safety
/// SQLite is inside a method of the main file of `owner`, hence holds the mutex of the connection
/// that uses it, and has told us which that is.
unsafe fn tell_reserve(owner: &Owner) -> Result<()> {
    // A pager that has a lock and changes its page size calls xFileSize before it is done.
    owner.reserving.store(true, Ordering::Relaxed);
    // SAFETY: SQLITE_FCNTL_PDB gave the place of the connection, which lives as long as the open
    // file, and so does the name. The database is not entered.
    let told = unsafe { api::reserve_bytes_of(*owner.connection(), owner.name) };
    owner.reserving.store(false, Ordering::Relaxed);
    told
}

unsafe extern "C" fn unlock(file: File, level: c_int) -> c_int {
    // SAFETY: see `opened`.
    guard(|| unsafe {
        let level = LockLevel::from_code(level);
        done(match opened(file) {
            Handle::Main(owner) => owner.enter()?.unlock(level),
            other => other.with_base(|base, _| base.unlock(level))?,
        })
    })
}

unsafe extern "C" fn check_reserved_lock(file: File, out: *mut c_int) -> c_int {
    // SAFETY: see `opened`; `out` points to an int.
    guard(|| unsafe { opened(file).with_base(|base, _| call!(base, xCheckReservedLock, out)) })
}

unsafe extern "C" fn sector_size(file: File) -> c_int {
    // SAFETY: see `opened`.
    unsafe { opened(file) }.with_base(|base, _| base.sector_size()).unwrap_or(0)
}

unsafe extern "C" fn device_characteristics(file: File) -> c_int {
    // SAFETY: see `opened`.
    let handle = unsafe { opened(file) };
    let characteristics = handle.with_base(|base, through| {
        let all = base.device_characteristics();
        if through { all } else { all & !NOT_OURS }
    });
    characteristics.unwrap_or(0)
}

unsafe extern "C" fn file_control(file: File, op: c_int, arg: *mut c_void) -> c_int {
    // SAFETY: see `opened`; `arg` is what SQLite's documentation says of `op`.
    guard(|| unsafe {
        let handle = opened(file);
        if let Handle::Main(owner) = handle
            && let Some(code) = main_file_control(owner, op, arg)?
        {
            return Ok(code);
        }
        if op == WHO {
            return Ok(answer_who(arg.cast()));
        }
        let code = handle.with_base(|base, through| match op {
            // Growing the file ahead of its pages would leave pages that nobody sealed.
            ffi::SQLITE_FCNTL_SIZE_HINT | ffi::SQLITE_FCNTL_CHUNK_SIZE if !through => {
                ffi::SQLITE_OK
            }
            ffi::SQLITE_FCNTL_BEGIN_ATOMIC_WRITE if !through => ffi::SQLITE_NOTFOUND,
            ffi::SQLITE_FCNTL_MMAP_SIZE => {
                base.limit_mapping(*arg.cast::<i64>());
                base.file_control(op, arg)
            }
            _ => base.file_control(op, arg),
        })?;
        if op == ffi::SQLITE_FCNTL_VFSNAME && code == ffi::SQLITE_OK {
            name_vfs(arg.cast());
        }
        Ok(code)
    })
}

/// The answer to a file-control that concerns the main file only; `None` for one that goes on to
/// the base.
///
/// # Safety
/// SQLite called xFileControl with these arguments on the main file of `owner`.
unsafe fn main_file_control(owner: &Owner, op: c_int, arg: *mut c_void) -> Result<Option<c_int>> {
    // SAFETY: as above.
    unsafe {
        match op {
            ERRAND => {
                let Some(errand) = Errand::of(arg) else { return Ok(None) };
                errand.run(owner.enter());
                return Ok(Some(ffi::SQLITE_OK));
            }
            ffi::SQLITE_FCNTL_PDB => {
                owner.used_by(arg.cast());
                // The base gets it as it would from SQLite: perhaps beside another thread's call.
                let control = (*(*owner.base).pMethods).xFileControl;
                let code = control.map(|control| control(owner.base, op, arg));
                return Ok(Some(code.unwrap_or(ffi::SQLITE_NOTFOUND)));
            }
            ffi::SQLITE_FCNTL_PRAGMA => {
                // `PRAGMA page_size=512`: told in time of the trailer, SQLite makes it 1024 by
                // itself. A host that cannot be told gets its error where the database is locked.
                if matches!(owner.enter(), Ok(database) if owner.wants_reserve(&database)) {
                    let _ = tell_reserve(owner);
                }
                if let Some(code) = pragma_without_file(owner, arg.cast()) {
                    return Ok(Some(code));
                }
                return pragma(owner, arg.cast());
            }
            ffi::SQLITE_FCNTL_SYNC => {
                if let Err(error) = owner.enter()?.before_commit() {
                    return Ok(Some(of_change(raise(error))));
                }
            }
            ffi::SQLITE_FCNTL_CKPT_START => owner.enter()?.checkpoint_starts(),
            ffi::SQLITE_FCNTL_CKPT_DONE => owner.enter()?.checkpoint_ends(),
            _ => {}
        }
    }
    Ok(None)
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

/// Answers a PRAGMA of ours that calls SQLite in turn or needs no open file; `None` for another
/// one.
///
/// # Safety
/// SQLite called xFileControl on the main file of `owner` with this `arg` of `SQLITE_FCNTL_PRAGMA`.
unsafe fn pragma_without_file(owner: &Owner, arg: *mut *mut c_char) -> Option<c_int> {
    // SAFETY: as above.
    let (name, value) = unsafe { name_and_value(arg) };
    let name = name.to_ascii_lowercase();
    if !name.starts_with("tde_") {
        return None;
    }
    // If the schema cannot be read, SQLite from 3.49 on prepares no call of the function.
    if (name.as_str(), &value) == ("tde_last_error", &None) {
        // The text is the column's name, too, and hosts cannot do without one: without a text there
        // is no column.
        let Some(text) = last_error() else { return Some(ffi::SQLITE_NOTFOUND) };
        // SAFETY: SQLite frees the string in the first place.
        unsafe { *arg = api::sqlite_string(&text) };
        return Some(ffi::SQLITE_OK);
    }
    if !Command::parse(&name, value.as_deref()).is_ok_and(|command| command.changes()) {
        return None;
    }
    // SAFETY: SQLITE_FCNTL_PDB gave the place, which lives as long as the open file, and so does
    // the connection. SQLite is called back while the database is not entered.
    let refused: Result<()> = unsafe {
        let place = owner.connection();
        if place.is_null() || (*place).is_null() {
            return None;
        }
        let words = api::refuses_changes(*place)?;
        command::refuse_change(&mut *owner.enter().ok()?, words)
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
unsafe fn pragma(owner: &Owner, arg: *mut *mut c_char) -> Result<Option<c_int>> {
    // SAFETY: as above.
    let (name, value) = unsafe { name_and_value(arg) };
    let answer = command::pragma(&mut *owner.enter()?, &name, value.as_deref());
    let (text, code) = match answer {
        Ok(None) => return Ok(None),
        Ok(Some(answer)) => (answer, ffi::SQLITE_OK),
        Err(error) => (error.to_string(), ffi::SQLITE_ERROR),
    };
    // SAFETY: SQLite frees the string in the first place.
    unsafe { *arg = api::sqlite_string(&text) };
    Ok(Some(code))
}

unsafe extern "C" fn shm_map(
    file: File,
    region: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: see `opened`; the arguments are those of xShmMap.
    guard(|| unsafe {
        opened(file).with_base(|base, _| base.map_region(region, size, extend, out))
    })
}

unsafe extern "C" fn shm_lock(file: File, offset: c_int, n: c_int, flags: c_int) -> c_int {
    // SAFETY: see `opened`.
    guard(|| unsafe {
        let mut database = owner(file)?.enter()?;
        let exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
        let first = u32::try_from(offset).unwrap_or_default();
        let numbers = first..first + n.unsigned_abs();
        let unlock = flags & ffi::SQLITE_SHM_UNLOCK != 0;
        if unlock {
            database.before_index_unlock(numbers.clone(), exclusive);
        } else {
            database.before_index_lock()?;
        }
        let code = call!(database.host, xShmLock, offset, n, flags);
        match code {
            // SQLite has given it back even if the base fails.
            _ if unlock => database.index_unlocked(numbers, exclusive),
            ffi::SQLITE_OK => database.index_locked(numbers, exclusive),
            _ => {}
        }
        Ok(code)
    })
}

/// The database is not entered: a barrier changes nothing of it, and each transaction has several.
unsafe extern "C" fn shm_barrier(file: File) {
    // SAFETY: SQLite called a method of ours on `file`, so it is open, and so is its base.
    unsafe {
        if let Handle::Main(owner) = opened(file)
            && let Some(barrier) = (*(*owner.base).pMethods).xShmBarrier
        {
            barrier(owner.base);
        }
    }
}

unsafe extern "C" fn shm_unmap(file: File, delete: c_int) -> c_int {
    // SAFETY: see `opened`.
    guard(|| unsafe {
        let mut database = owner(file)?.enter()?;
        database.index_unmapped();
        database.host.unmap_regions();
        Ok(call!(database.host, xShmUnmap, delete))
    })
}

/// A page of ours is never in the file as SQLite sees it, so there is nothing to point to; but
/// SQLite wants a mapping, from which the next read is served.
unsafe extern "C" fn fetch(file: File, at: i64, len: c_int, out: *mut *mut c_void) -> c_int {
    // SAFETY: see `opened`; `out` points to a pointer.
    guard(|| unsafe {
        *out = ptr::null_mut();
        let handle = opened(file);
        handle.with_base(|base, through| match handle {
            _ if through => Ok(call!(base, xFetch, at, len, out)),
            Handle::Main(_) => done(base.map(at, len)),
            // It asks for one of every file that it sorts in, too, of any size.
            _ => Ok(ffi::SQLITE_OK),
        })?
    })
}

/// Without a page it signals that the file may have changed, so the mapping is made anew.
unsafe extern "C" fn unfetch(file: File, at: i64, page: *mut c_void) -> c_int {
    // SAFETY: see `opened`.
    guard(|| unsafe {
        opened(file).with_base(|base, _| {
            if page.is_null() {
                base.unmap();
            }
            call!(base, xUnfetch, at, page)
        })
    })
}

fn done(result: Result<()>) -> Result<c_int> {
    result.map(|()| ffi::SQLITE_OK)
}

fn length(len: c_int) -> Result<usize> {
    usize::try_from(len).map_err(|_| Error::Base(ffi::SQLITE_IOERR))
}

fn offset(at: i64) -> Result<u64> {
    u64::try_from(at).map_err(|_| Error::Base(ffi::SQLITE_IOERR))
}
