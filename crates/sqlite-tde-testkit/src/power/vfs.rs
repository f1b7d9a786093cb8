//! The disk as the properties of a VFS without one below.

use std::collections::HashMap;
use std::ffi::c_int;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::ffi;

use super::disk::Disk;
use crate::vfs::{Below, Call, File, Properties, TestVfs};

pub type PowerVfs = TestVfs<Power>;

/// A disk that connections share.
type Shared = Arc<Mutex<Disk>>;

/// A VFS on a [`Disk`].
pub struct Power {
    disk: Mutex<Shared>,
    /// The disk and the inode of each open file, by its number.
    open: Mutex<HashMap<usize, (Shared, usize)>>,
    characteristics: c_int,
}

const SECTOR_SIZE: c_int = 4096;

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PowerVfs {
    /// Registers a new one. `powersafe`: a write harms no byte beside it when the power fails.
    pub fn new(powersafe: bool) -> Self {
        let characteristics = if powersafe { ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE } else { 0 };
        let (disk, open) = (Mutex::default(), Mutex::default());
        Self::register(None, Power { disk, open, characteristics })
    }
}

impl Power {
    /// Puts `disk` in, for the files that are opened from now on.
    pub fn insert(&self, disk: Disk) {
        *guard(&self.disk) = Arc::new(Mutex::new(disk));
    }

    /// Runs `look` on the disk.
    pub fn with<T>(&self, look: impl FnOnce(&mut Disk) -> T) -> T {
        let disk = Arc::clone(&guard(&self.disk));
        look(&mut guard(&disk))
    }

    /// Runs `call` on `disk`: one on a name, or one that opens a file.
    fn by_name(&self, file: &File, call: &mut Call<'_>, shared: &Shared) -> c_int {
        let mut disk = guard(shared);
        let name = file.name.as_deref();
        match call {
            Call::Open => {
                let Some(inode) = disk.open(name, file.flags) else { return ffi::SQLITE_CANTOPEN };
                guard(&self.open).insert(file.id, (Arc::clone(shared), inode));
                ffi::SQLITE_OK
            }
            Call::Delete { sync_dir } => {
                let found = disk.delete(name.unwrap_or_default(), *sync_dir != 0);
                if found { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_DELETE_NOENT }
            }
            Call::Access { .. } if !disk.call() => ffi::SQLITE_IOERR_ACCESS,
            Call::Access { out, .. } => {
                **out = c_int::from(disk.exists(name.unwrap_or_default()));
                ffi::SQLITE_OK
            }
            _ => unreachable!("a call on an open file"),
        }
    }
}

impl Properties for Power {
    fn call(&self, file: &File, call: &mut Call<'_>, _: &Below) -> c_int {
        if matches!(call, Call::Open | Call::Delete { .. } | Call::Access { .. }) {
            let disk = Arc::clone(&guard(&self.disk));
            return self.by_name(file, call, &disk);
        }
        let (disk, inode) = match call {
            Call::Close => guard(&self.open).remove(&file.id),
            _ => guard(&self.open).get(&file.id).cloned(),
        }
        .expect("the file is open");
        on_file(&mut guard(&disk), inode, file.id, call)
    }

    fn sector_size(&self, _: c_int) -> c_int {
        SECTOR_SIZE
    }

    fn characteristics(&self, _: c_int) -> c_int {
        self.characteristics
    }

    /// Nothing is mapped: each read is a call.
    fn alter_methods(&self, methods: &mut ffi::sqlite3_io_methods, _: &ffi::sqlite3_io_methods) {
        methods.iVersion = 2;
        (methods.xFetch, methods.xUnfetch) = (None, None);
    }
}

/// Runs `call` on an open file. Once the disk has served too many calls, all fail but those that
/// give back.
fn on_file(disk: &mut Disk, inode: usize, handle: usize, call: &mut Call<'_>) -> c_int {
    match call {
        Call::Close => {
            disk.unlock(inode, handle, ffi::SQLITE_LOCK_NONE);
            disk.shm(inode).unmap(handle);
        }
        Call::Unlock(level) => disk.unlock(inode, handle, *level),
        Call::ShmUnmap { .. } => disk.shm(inode).unmap(handle),
        Call::FileControl(..) => return ffi::SQLITE_NOTFOUND,
        Call::ShmBarrier => {}
        call if !disk.call() => return call.method().failure().unwrap_or(ffi::SQLITE_IOERR),
        Call::Read { buf, at } => {
            if disk.read(inode, buf, *at as usize) != buf.len() {
                return ffi::SQLITE_IOERR_SHORT_READ;
            }
        }
        Call::Write { bytes, at } => disk.write(inode, bytes, *at as usize),
        Call::Truncate(size) => disk.truncate(inode, *size as usize),
        Call::Sync(_) => disk.sync(inode),
        Call::FileSize(out) => **out = disk.size(inode) as i64,
        Call::Lock(level) => return disk.lock(inode, handle, *level),
        Call::CheckReservedLock(out) => **out = c_int::from(disk.is_reserved(inode)),
        Call::ShmMap { region, size, extend, out } => {
            let (region, size) = (*region as usize, *size as usize);
            let found = disk.shm(inode).map(handle, region, size, *extend != 0);
            **out = found.map_or(ptr::null_mut(), <*mut u64>::cast);
        }
        Call::ShmLock { first, count, flags } => {
            return disk.shm(inode).lock(handle, *first as u32, *count as u32, *flags);
        }
        _ => return ffi::SQLITE_IOERR,
    }
    ffi::SQLITE_OK
}
