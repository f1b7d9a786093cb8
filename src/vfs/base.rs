//! A file of the base VFS: its methods behind safe calls.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::ffi;

use super::api;
use super::closing::Guard;
use crate::db::host::{Host, LockLevel};
use crate::db::wal_index::{PAGE_NUMBERS, Words};
use crate::error::{Error, Result};
use crate::file::beside;
use crate::io::{Remains, Storage};
use crate::key::newest::FileKey;

/// An open file of the base VFS, in memory of ours. Dropping it closes it.
pub(crate) struct BaseFile {
    file: *mut ffi::sqlite3_file,
    /// Length of the allocation behind `file`.
    words: usize,
    /// Length of the base's mapping of the file: bytes before this offset may be read from memory.
    mapped_until: u64,
    /// Its place, if it is a database.
    place: Option<Place>,
    /// Keeps its locks and closes apart, if it is a database.
    guard: Option<Guard>,
    /// The regions of the wal-index that were mapped through this file, by number; others are NULL.
    regions: RefCell<Vec<*mut c_void>>,
    /// The place of SQLite's pointer to the connection that uses the file, if it is a database.
    pub(super) connection: Arc<AtomicPtr<*mut ffi::sqlite3>>,
}

// SAFETY: what the pointers lead to belongs to this file and the base VFS, which knows no threads:
// SQLite serialises calls on a file by a mutex.
unsafe impl Send for BaseFile {}

/// The longest read or write that the base is asked for. SQLite's own are hardly longer, so no VFS
/// has met such, and its unix VFS cuts a length to 17 bits.
const LONGEST_CALL: usize = 65536;

/// SQLite's sector size for a VFS without xSectorSize.
const DEFAULT_SECTOR: c_int = 4096;

/// Bytes of a region of the wal-index, as SQLite maps it.
pub(super) const WAL_INDEX_REGION: c_int = 32768;
/// Regions for all the numbers that frames can have.
const REGIONS_MAX: usize = 1 << 20;

/// A file beside a database, as SQLite names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neighbour {
    Journal,
    /// The log of a plaintext database.
    PlainLog,
}

/// The VFS and name of a database file.
#[derive(Clone, Copy)]
pub(super) struct Place {
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
}

/// Whether `path` leads to anything but a regular file, as far as the system says.
#[cfg(unix)]
fn is_special(path: &CStr) -> bool {
    let kind = |file: rustix::fs::Stat| rustix::fs::FileType::from_raw_mode(file.st_mode as _);
    rustix::fs::stat(path).is_ok_and(|file| !kind(file).is_file())
}

#[cfg(not(unix))]
fn is_special(_: &CStr) -> bool {
    false
}

impl Place {
    /// # Safety
    /// `vfs` is a registered VFS, and `name` what was passed to its xOpen, for a main database with
    /// the names of its journal and log behind it; both live until the file is closed.
    pub(super) unsafe fn new(vfs: *mut ffi::sqlite3_vfs, name: *const c_char) -> Self {
        Self { vfs, name }
    }

    fn name_of(&self, which: Neighbour) -> *const c_char {
        // SAFETY: as for `new`.
        let [journal, log] = unsafe { api::journal_or_log_names(self.name) };
        match which {
            Neighbour::Journal => journal,
            Neighbour::PlainLog => log,
        }
    }

    /// Whether the base has a file called `name`. SQLite's VFSs say no of an empty one.
    ///
    /// # Safety
    /// This is the place of a main database that is open, and `name` is NUL-terminated.
    unsafe fn has(&self, name: *const c_char) -> Result<bool> {
        let mut exists = 0;
        // SAFETY: as above.
        let code = unsafe {
            let Some(access) = (*self.vfs).xAccess else { return Ok(false) };
            access(self.vfs, name, ffi::SQLITE_ACCESS_EXISTS, &mut exists)
        };
        done(code).map(|()| exists != 0)
    }

    /// Runs `work` on a file beside this database, which is opened for reading; `None` if it does
    /// not exist or is no regular file: opening a FIFO would wait for its writer.
    ///
    /// # Safety
    /// This is the place of a main database that is open.
    pub(super) unsafe fn with_neighbour<T>(
        &self,
        which: Neighbour,
        work: impl FnOnce(&BaseFile) -> Result<T>,
    ) -> Result<Option<T>> {
        let flags = ffi::SQLITE_OPEN_READONLY
            | match which {
                Neighbour::Journal => ffi::SQLITE_OPEN_MAIN_JOURNAL,
                Neighbour::PlainLog => ffi::SQLITE_OPEN_WAL,
            };
        let name = self.name_of(which);
        // SAFETY: as above.
        unsafe {
            if !self.has(name)? || is_special(CStr::from_ptr(name)) {
                return Ok(None);
            }
            let file = BaseFile::open(self.vfs, name, flags, std::ptr::null_mut())?;
            work(&file).map(Some)
        }
    }

    /// The log that a program without the library would take for this database's, if it is not
    /// empty.
    ///
    /// # Safety
    /// This is the place of a main database that is open.
    pub(super) unsafe fn plain_log(&self) -> Result<Option<PathBuf>> {
        // SAFETY: as above.
        unsafe {
            let size = self.with_neighbour(Neighbour::PlainLog, Storage::size)?;
            let name = || CStr::from_ptr(self.name_of(Neighbour::PlainLog)).to_string_lossy();
            Ok(size.is_some_and(|size| size > 0).then(|| name().into_owned().into()))
        }
    }

    /// Deletes such a log, as SQLite does if the database has no page.
    ///
    /// # Safety
    /// This is the place of a main database that is open.
    pub(super) unsafe fn delete_plain_log(&self) -> Result<()> {
        let name = self.name_of(Neighbour::PlainLog);
        // SAFETY: as above.
        unsafe {
            match (*self.vfs).xDelete {
                Some(delete) if self.has(name)? => match delete(self.vfs, name, 0) {
                    ffi::SQLITE_IOERR_DELETE_NOENT => Ok(()),
                    code => done(code),
                },
                _ => Ok(()),
            }
        }
    }

    /// The journal or log beside this database from which a plaintext one may be restored.
    ///
    /// # Safety
    /// This is the place of a main database that is open.
    unsafe fn remains(&self) -> Result<Remains> {
        let start = |base: &BaseFile| {
            let mut start = [0; beside::START];
            let _ = base.read(&mut start, 0)?;
            Ok((base.size()? > 0).then_some(start))
        };
        // SAFETY: as above.
        unsafe {
            let journal = self.with_neighbour(Neighbour::Journal, start)?.flatten();
            let log = self.with_neighbour(Neighbour::PlainLog, start)?.flatten();
            Ok(beside::remains(journal.as_ref(), log.as_ref()))
        }
    }
}

/// Calls a method that every sqlite3_io_methods has.
macro_rules! call {
    ($base:expr, $method:ident $(, $arg:expr)*) => {{
        let file = $base.raw();
        #[allow(unused_unsafe)]
        // SAFETY: the file is open, so its methods are set and live as long as it does; the
        // arguments are as SQLite's documentation of this method asks.
        unsafe {
            match (*(*file).pMethods).$method {
                Some(method) => method(file $(, $arg)*),
                None => crate::ffi::SQLITE_NOTFOUND,
            }
        }
    }};
}
pub(super) use call;

impl BaseFile {
    /// # Errors
    /// Those of the VFS.
    ///
    /// # Safety
    /// `vfs` is registered; the other arguments are such as SQLite passes to xOpen, and `name`
    /// lives until the file is closed.
    pub(super) unsafe fn open(
        vfs: *mut ffi::sqlite3_vfs,
        name: *const c_char,
        flags: c_int,
        out_flags: *mut c_int,
    ) -> Result<Self> {
        // SAFETY: `vfs` is registered.
        let (len, open) = unsafe { ((*vfs).szOsFile, (*vfs).xOpen) };
        let len = usize::try_from(len).unwrap_or_default().max(size_of::<ffi::sqlite3_file>());
        // Zeroed, and aligned to 8 bytes, as SQLite allocates it.
        let room = vec![0_u64; len.div_ceil(size_of::<u64>())].into_boxed_slice();
        let words = room.len();
        let base = Self {
            file: Box::into_raw(room).cast(),
            words,
            mapped_until: 0,
            place: None,
            guard: None,
            regions: RefCell::default(),
            connection: Arc::default(),
        };
        let open = open.ok_or(Error::Base(ffi::SQLITE_CANTOPEN))?;
        // SAFETY: the file has room for what this VFS needs; the arguments are those of xOpen. A
        // file whose methods are set is closed even if opening it failed: by `drop`.
        done(unsafe { open(vfs, name, base.file, flags, out_flags) })?;
        Ok(base)
    }

    /// Sets the place of the file, which is the main database `file`.
    ///
    /// # Safety
    /// It was opened there.
    pub(super) unsafe fn set_place(&mut self, place: Place, file: Option<FileKey>) {
        self.place = Some(place);
        // Those that the system cannot tell apart share a lock.
        self.guard = Some(Guard::new(file.unwrap_or_default()));
    }

    /// As [`Place::plain_log`], of a main database that was told its place.
    pub(super) fn plain_log(&self) -> Result<Option<PathBuf>> {
        // SAFETY: `set_place` was told so, and the file is open.
        self.place.map_or(Ok(None), |place| unsafe { place.plain_log() })
    }

    pub(super) fn raw(&self) -> *mut ffi::sqlite3_file {
        self.file
    }

    /// Makes the base map the file, if SQLite asked for a mapping; reads then come from there. The
    /// page itself is released at once: others can change a mapping at any moment, so its bytes are
    /// copied before they are verified.
    pub(super) fn map(&mut self, at: i64, len: c_int) -> Result<()> {
        let mut page = std::ptr::null_mut();
        done(call!(self, xFetch, at, len, &mut page))?;
        if !page.is_null() {
            self.mapped_until = u64::MAX;
            return done(call!(self, xUnfetch, at, page));
        }
        // The mapping ends before the end of that page, or a little behind it: SQLite's VFSs keep
        // 256 bytes clear.
        let beyond = u64::try_from(at + 2 * i64::from(len)).unwrap_or(u64::MAX);
        self.mapped_until =
            if self.mapped_until == 0 { beyond } else { self.mapped_until.min(beyond) };
        Ok(())
    }

    /// The base gives up its mapping.
    pub(super) fn unmap(&mut self) {
        self.mapped_until = 0;
    }

    /// SQLite sets the largest mapping of the base; a negative value only asks. The file is mapped
    /// again.
    pub(super) fn limit_mapping(&mut self, limit: i64) {
        match limit {
            0 => self.mapped_until = 0,
            1.. if self.mapped_until > 0 => self.mapped_until = u64::MAX,
            _ => {}
        }
    }

    /// Closes the file. No other method but the destructor may be called afterwards.
    pub(super) fn close(&self) -> c_int {
        let close = || call!(self, xClose);
        // Only a database has locks.
        let code = self.guard.as_ref().map_or_else(close, |guard| guard.closes(close));
        // SAFETY: `open` allocated the file; SQLite, too, clears this after xClose.
        unsafe { (*self.file).pMethods = std::ptr::null() };
        code
    }

    /// The version of the methods that the file has.
    fn version(&self) -> c_int {
        // SAFETY: the file is open, so its methods are set.
        unsafe { (*(*self.file).pMethods).iVersion }
    }

    /// The version of methods that a file over this one may claim: 3 means a mapping to SQLite.
    pub(super) fn version_to_claim(&self) -> c_int {
        let version = self.version();
        // SAFETY: the file is open, and its table of version 3 has these two.
        let maps = version >= 3
            && unsafe {
                let methods = (*self.file).pMethods;
                (*methods).xFetch.is_some() && (*methods).xUnfetch.is_some()
            };
        if maps { 3 } else { version.min(2) }
    }

    /// Whether the base has the methods of shared memory.
    pub(super) fn has_shm_methods(&self) -> bool {
        // SAFETY: the file is open, and its table of version 2 has these four.
        self.version() >= 2
            && unsafe {
                let methods = (*self.file).pMethods;
                (*methods).xShmMap.is_some()
                    && (*methods).xShmLock.is_some()
                    && (*methods).xShmBarrier.is_some()
                    && (*methods).xShmUnmap.is_some()
            }
    }

    /// Has the base map region `number` of the wal-index, and notes its address.
    ///
    /// # Safety
    /// The arguments are those of xShmMap.
    pub(super) unsafe fn map_region(
        &mut self,
        number: c_int,
        size: c_int,
        extend: c_int,
        out: *mut *mut c_void,
    ) -> c_int {
        let code = call!(self, xShmMap, number, size, extend, out);
        let mapped = matches!(code, ffi::SQLITE_OK | ffi::SQLITE_READONLY);
        let known = mapped && size == WAL_INDEX_REGION;
        // SAFETY: `out` points to a pointer.
        let region = if known { unsafe { *out } } else { std::ptr::null_mut() };
        if let Ok(number @ 0..REGIONS_MAX) = usize::try_from(number) {
            self.note_region(number, region);
        }
        code
    }

    /// SQLite maps the last region first.
    fn note_region(&self, number: usize, region: *mut c_void) {
        let mut regions = self.regions.borrow_mut();
        if regions.len() <= number {
            regions.resize(number + 1, std::ptr::null_mut());
        }
        regions[number] = region;
    }

    /// The address of a region; NULL if it is not mapped. One that SQLite has not asked for yet is
    /// asked for, if there is a wal-index.
    fn region(&self, number: usize) -> *mut c_void {
        let known = self.regions.borrow().get(number).copied();
        let mut region = known.unwrap_or(std::ptr::null_mut());
        if region.is_null() && number < REGIONS_MAX && self.is_index_mapped() {
            let (size, extend) = (WAL_INDEX_REGION, 0);
            let out = &raw mut region;
            let code = call!(self, xShmMap, number as c_int, size, extend, out.cast());
            if !matches!(code, ffi::SQLITE_OK | ffi::SQLITE_READONLY) {
                return std::ptr::null_mut();
            }
            self.note_region(number, region);
        }
        region
    }

    /// The base gives up the regions of the wal-index.
    pub(super) fn unmap_regions(&mut self) {
        self.regions.borrow_mut().clear();
    }

    /// The connection that uses the file; NULL before SQLite has passed it.
    fn connection(&self) -> *mut ffi::sqlite3 {
        let place = self.connection.load(Ordering::Acquire);
        // SAFETY: SQLITE_FCNTL_PDB gave the place, which lives as long as the open file.
        if place.is_null() { std::ptr::null_mut() } else { unsafe { *place } }
    }

    pub(super) fn sector_size(&self) -> c_int {
        // SAFETY: the file is open, so its methods are set.
        match unsafe { (*(*self.file).pMethods).xSectorSize } {
            // SAFETY: as above.
            Some(sector_size) => unsafe { sector_size(self.file) },
            None => DEFAULT_SECTOR,
        }
    }

    pub(super) fn device_characteristics(&self) -> c_int {
        // SAFETY: the file is open, so its methods are set.
        match unsafe { (*(*self.file).pMethods).xDeviceCharacteristics } {
            // SAFETY: as above.
            Some(characteristics) => unsafe { characteristics(self.file) },
            None => 0,
        }
    }

    /// Whether, by the base, the name with which the file was opened still leads to it.
    pub(super) fn is_at_its_name(&self) -> bool {
        let mut moved: c_int = 1;
        let out: *mut c_int = &mut moved;
        // SAFETY: this op writes an int through its argument.
        let code = unsafe { self.file_control(ffi::SQLITE_FCNTL_HAS_MOVED, out.cast()) };
        code == ffi::SQLITE_OK && moved == 0
    }

    /// # Safety
    /// `arg` is what SQLite passed with `op`.
    pub(super) unsafe fn file_control(&self, op: c_int, arg: *mut c_void) -> c_int {
        call!(self, xFileControl, op, arg)
    }
}

impl Drop for BaseFile {
    fn drop(&mut self) {
        // SAFETY: `open` allocated the file with this length; where its methods are set, it is
        // open.
        unsafe {
            if !(*self.file).pMethods.is_null() {
                self.close();
            }
            drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(
                self.file.cast::<u64>(),
                self.words,
            )));
        }
    }
}

fn done(code: c_int) -> Result<()> {
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(Error::Base(code)) }
}

impl Storage for BaseFile {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
        let mut done = 0;
        while done < buf.len() {
            let piece = &mut buf[done..];
            let len = piece.len().min(LONGEST_CALL);
            let from = (at + done as u64) as i64;
            match call!(self, xRead, piece.as_mut_ptr().cast(), len as c_int, from) {
                ffi::SQLITE_OK => done += len,
                ffi::SQLITE_IOERR_SHORT_READ => {
                    piece[len..].fill(0);
                    return Ok(false);
                }
                code => return Err(Error::Base(code)),
            }
        }
        Ok(true)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        for (number, piece) in bytes.chunks(LONGEST_CALL).enumerate() {
            let at = at + (number * LONGEST_CALL) as u64;
            done(call!(self, xWrite, piece.as_ptr().cast(), piece.len() as c_int, at as i64))?;
        }
        Ok(())
    }

    fn truncate(&self, size: u64) -> Result<()> {
        done(call!(self, xTruncate, size as i64))
    }

    fn is_mapped(&self, at: u64) -> bool {
        at < self.mapped_until
    }

    fn remains(&self) -> Result<Remains> {
        // SAFETY: `set_place` was told so, and the file is open.
        self.place.map_or(Ok(Remains::Nothing), |place| unsafe { place.remains() })
    }

    fn size(&self) -> Result<u64> {
        let mut size = 0;
        done(call!(self, xFileSize, &mut size))?;
        Ok(size.max(0) as u64)
    }

    /// File times and other metadata need not survive.
    fn sync(&self) -> Result<()> {
        self.sync_as(ffi::SQLITE_SYNC_FULL | ffi::SQLITE_SYNC_DATAONLY)
    }
}

impl Words for BaseFile {
    fn is_index_mapped(&self) -> bool {
        self.regions.borrow().iter().any(|region| !region.is_null())
    }

    fn word(&self, region: usize, word: usize) -> Option<u32> {
        let region = self.region(region);
        if region.is_null() || word >= PAGE_NUMBERS {
            return None;
        }
        // SAFETY: the base mapped a region of 32768 bytes, aligned for words, of which this is
        // among the first 16384. It stays mapped until xShmUnmap, and others write to it meanwhile.
        Some(unsafe { AtomicU32::from_ptr(region.cast::<u32>().add(word)) }.load(Ordering::Relaxed))
    }
}

impl Host for BaseFile {
    fn sync_as(&self, flags: c_int) -> Result<()> {
        done(call!(self, xSync, flags))
    }

    fn sector(&self) -> usize {
        let sector = self.sector_size().clamp(512, 65536) as usize;
        sector.next_power_of_two()
    }

    fn is_powersafe(&self) -> bool {
        self.device_characteristics() & ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE != 0
    }

    fn lock(&self, level: LockLevel) -> Result<()> {
        let lock = || call!(self, xLock, level.code());
        done(self.guard.as_ref().map_or_else(lock, |guard| guard.locks(lock)))
    }

    fn unlock(&self, level: LockLevel) -> Result<()> {
        done(call!(self, xUnlock, level.code()))
    }

    fn is_reserved(&self) -> Result<bool> {
        let mut reserved = 0;
        done(call!(self, xCheckReservedLock, &mut reserved))?;
        Ok(reserved != 0)
    }

    /// SQLite's `unix-none` has no shared memory.
    fn has_shared_memory(&self) -> bool {
        self.has_shm_methods()
    }

    fn map_wal_index(&self) -> Result<()> {
        let mut region = std::ptr::null_mut();
        done(call!(self, xShmMap, 0, WAL_INDEX_REGION, 1, &mut region))
    }

    fn unmap_wal_index(&self) {
        call!(self, xShmUnmap, 0);
    }

    fn lock_wal_index(&self, number: u32) -> Result<()> {
        let how = ffi::SQLITE_SHM_LOCK | ffi::SQLITE_SHM_EXCLUSIVE;
        done(call!(self, xShmLock, number as c_int, 1, how))
    }

    fn unlock_wal_index(&self, number: u32) {
        let how = ffi::SQLITE_SHM_UNLOCK | ffi::SQLITE_SHM_EXCLUSIVE;
        call!(self, xShmLock, number as c_int, 1, how);
    }

    fn with_journal<T>(&self, work: impl FnOnce(&Self) -> Result<T>) -> Result<Option<T>> {
        // SAFETY: `set_place` was told so, and the file is open.
        self.place
            .map_or(Ok(None), |place| unsafe { place.with_neighbour(Neighbour::Journal, work) })
    }

    fn delete_plain_log(&self) -> Result<()> {
        // SAFETY: as above.
        self.place.map_or(Ok(()), |place| unsafe { place.delete_plain_log() })
    }

    fn is_writing(&self) -> bool {
        let db = self.connection();
        // SAFETY: SQLite is in a call on the file, so the connection that uses it is open.
        !db.is_null() && unsafe { api::is_writing(db) }
    }

    fn is_in_transaction(&self) -> Option<bool> {
        let db = self.connection();
        // SAFETY: as above.
        if db.is_null() { None } else { Some(unsafe { api::is_in_transaction(db) }) }
    }

    fn is_idle(&self) -> bool {
        let db = self.connection();
        // SAFETY: as above.
        !db.is_null() && unsafe { api::is_idle(db) }
    }
}
