//! A file of the base VFS: its methods behind safe calls.

use std::ffi::{c_char, c_int, c_void};

use libsqlite3_sys as ffi;

use super::api;
use crate::error::{Error, Result};
use crate::file::Storage;

/// An open file of the base VFS. Made only by [`BaseFile::new`], closed by [`BaseFile::close`].
pub(crate) struct BaseFile {
    file: *mut ffi::sqlite3_file,
    /// The base has the file, or what of it SQLite asked for last, mapped into memory.
    mapped: bool,
}

/// Bytes of the longest read or write of the base VFS: SQLite's largest page. SQLite never asks for
/// more, and its unix VFS masks a length with 0x1ffff, so that it would write nothing of 128 KiB.
const MOST_AT_ONCE: usize = 65536;

/// Bytes of a region of the wal-index, as SQLite maps it.
pub(super) const WAL_INDEX_REGION: c_int = 32768;

/// Where a database file was opened.
#[derive(Clone, Copy)]
pub(super) struct Place {
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
}

impl Place {
    /// # Safety
    /// `vfs` is a registered VFS, and `name` what was passed to its xOpen, for a main database with
    /// the names of its journal and log behind it; both live until the file is closed.
    pub(super) unsafe fn new(vfs: *mut ffi::sqlite3_vfs, name: *const c_char) -> Self {
        Self { vfs, name }
    }

    pub(super) fn name(&self) -> *const c_char {
        self.name
    }

    /// Runs `work` on the journal of this database, which is opened for reading; `false` where there
    /// is none.
    ///
    /// # Safety
    /// This is the place of a main database that is open.
    pub(super) unsafe fn with_journal(
        &self,
        work: impl FnOnce(&BaseFile) -> Result<bool>,
    ) -> Result<bool> {
        const FLAGS: c_int = ffi::SQLITE_OPEN_READONLY | ffi::SQLITE_OPEN_MAIN_JOURNAL;
        // SAFETY: as above; the file has room for what this VFS needs, aligned and zeroed.
        unsafe {
            let [journal, _] = api::journal_or_log_names(self.name);
            let (Some(access), Some(open)) = ((*self.vfs).xAccess, (*self.vfs).xOpen) else {
                return Ok(false);
            };
            let mut exists = 0;
            let code = access(self.vfs, journal, ffi::SQLITE_ACCESS_EXISTS, &mut exists);
            if code != ffi::SQLITE_OK || exists == 0 {
                return done(code).map(|()| false);
            }
            let mut room = vec![0_u64; ((*self.vfs).szOsFile as usize).div_ceil(8)];
            let file: *mut ffi::sqlite3_file = room.as_mut_ptr().cast();
            let code = open(self.vfs, journal, file, FLAGS, std::ptr::null_mut());
            let result = match code {
                ffi::SQLITE_OK => work(&BaseFile::new(file)),
                code => Err(Error::Base(code)),
            };
            if !(*file).pMethods.is_null() {
                BaseFile::new(file).close();
            }
            result
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
                None => libsqlite3_sys::SQLITE_NOTFOUND,
            }
        }
    }};
}
pub(super) use call;

impl BaseFile {
    /// # Safety
    /// `file` was opened by the base VFS and stays open until [`BaseFile::close`].
    pub(super) unsafe fn new(file: *mut ffi::sqlite3_file) -> Self {
        Self { file, mapped: false }
    }

    pub(super) fn raw(&self) -> *mut ffi::sqlite3_file {
        self.file
    }

    /// Has the base map the file, where it was told to; it then reads from there. The page itself is
    /// given back at once: others can change what lies in a mapping at any moment, so it is copied
    /// before it is verified.
    pub(super) fn map(&mut self, at: i64, len: c_int) -> Result<()> {
        let mut page = std::ptr::null_mut();
        done(call!(self, xFetch, at, len, &mut page))?;
        self.mapped = !page.is_null();
        if self.mapped { done(call!(self, xUnfetch, at, page)) } else { Ok(()) }
    }

    /// The base gives up its mapping, or may.
    pub(super) fn unmap(&mut self) {
        self.mapped = false;
    }

    pub(super) fn shm_barrier(&self) {
        // SAFETY: the file is open, so its methods are set and live as long as it does.
        unsafe {
            if let Some(barrier) = (*(*self.file).pMethods).xShmBarrier {
                barrier(self.file);
            }
        }
    }

    pub(super) fn close(&self) -> c_int {
        call!(self, xClose)
    }

    /// The version of the methods that this file has, hence that ours may claim.
    pub(super) fn version(&self) -> c_int {
        // SAFETY: the file is open, so its methods are set.
        unsafe { (*(*self.file).pMethods).iVersion }
    }

    pub(super) fn sync_with(&self, flags: c_int) -> c_int {
        call!(self, xSync, flags)
    }

    pub(super) fn lock(&self, level: c_int) -> c_int {
        call!(self, xLock, level)
    }

    pub(super) fn unlock(&self, level: c_int) -> c_int {
        call!(self, xUnlock, level)
    }

    /// Maps the wal-index, and makes it where there is none.
    pub(super) fn map_wal_index(&self) -> c_int {
        let mut region = std::ptr::null_mut();
        call!(self, xShmMap, 0, WAL_INDEX_REGION, 1, &mut region)
    }

    /// Undoes [`BaseFile::map_wal_index`] where nobody else uses what was mapped.
    pub(super) fn unmap_wal_index(&self) {
        call!(self, xShmUnmap, 0);
    }

    /// Takes or gives back one of the wal-index's locks, for this connection alone.
    pub(super) fn lock_wal_index(&self, number: c_int, what: c_int) -> c_int {
        call!(self, xShmLock, number, 1, what | ffi::SQLITE_SHM_EXCLUSIVE)
    }

    pub(super) fn sector_size(&self) -> c_int {
        call!(self, xSectorSize)
    }

    /// What power loss in a write spoils with it: whole sectors, or 1 byte where overwriting is
    /// powersafe.
    pub(super) fn grain(&self) -> usize {
        if self.device_characteristics() & ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE != 0 {
            return 1;
        }
        // As sqlite3SectorSize() bounds it.
        let sector = self.sector_size().clamp(512, 65536) as usize;
        sector.next_power_of_two()
    }

    pub(super) fn device_characteristics(&self) -> c_int {
        call!(self, xDeviceCharacteristics)
    }

    /// # Safety
    /// `out` points to an int.
    pub(super) unsafe fn check_reserved_lock(&self, out: *mut c_int) -> c_int {
        call!(self, xCheckReservedLock, out)
    }

    /// # Safety
    /// `arg` is what SQLite passed with `op`.
    pub(super) unsafe fn file_control(&self, op: c_int, arg: *mut c_void) -> c_int {
        call!(self, xFileControl, op, arg)
    }
}

fn done(code: c_int) -> Result<()> {
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(Error::Base(code)) }
}

impl Storage for BaseFile {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
        for done in (0..buf.len()).step_by(MOST_AT_ONCE) {
            let left = &mut buf[done..];
            let (part, rest) = left.split_at_mut(MOST_AT_ONCE.min(left.len()));
            let at = (at + done as u64) as i64;
            match call!(self, xRead, part.as_mut_ptr().cast(), part.len() as c_int, at) {
                ffi::SQLITE_OK => {}
                ffi::SQLITE_IOERR_SHORT_READ => {
                    rest.fill(0);
                    return Ok(false);
                }
                code => return Err(Error::Base(code)),
            }
        }
        Ok(true)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        for (part, at) in bytes.chunks(MOST_AT_ONCE).zip((at..).step_by(MOST_AT_ONCE)) {
            done(call!(self, xWrite, part.as_ptr().cast(), part.len() as c_int, at as i64))?;
        }
        Ok(())
    }

    fn truncate(&self, size: u64) -> Result<()> {
        done(call!(self, xTruncate, size as i64))
    }

    fn is_mapped(&self) -> bool {
        self.mapped
    }

    fn size(&self) -> Result<u64> {
        let mut size = 0;
        done(call!(self, xFileSize, &mut size))?;
        Ok(size.max(0) as u64)
    }

    /// Times need not survive, nor does whatever else is not needed to read the bytes.
    fn sync(&self) -> Result<()> {
        done(self.sync_with(ffi::SQLITE_SYNC_FULL | ffi::SQLITE_SYNC_DATAONLY))
    }
}
