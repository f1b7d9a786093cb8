//! Other platforms: their properties, and a table of them.
//!
//! Their VFS stands below `tde`, as its base, or above it. `SQLITE_TDE_PLATFORM=NAME` puts one of
//! [`PLATFORMS`] below `tde` in the campaigns that use [`over_base`].

use std::collections::HashMap;
use std::ffi::c_int;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::ffi;

use crate::vfs::{Below, Call, File, Properties, TestVfs};

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

pub type PlatformVfs = TestVfs<OnPlatform>;

/// An open file, and what it has locked.
struct Handle {
    id: usize,
    lock: c_int,
    shm: usize,
}

type Work = Mutex<Option<Box<dyn FnOnce() + Send>>>;

/// The files of a VFS with the properties of a platform.
pub struct OnPlatform {
    platform: Platform,
    /// Open files by name.
    files: Mutex<HashMap<String, Vec<Handle>>>,
    before_lock: Work,
    before_unfetch: Work,
}

/// Where SQLite's locks lie in a database file.
const PENDING: i64 = 0x4000_0000;
const RESERVED: i64 = PENDING + 1;
const SHARED: Range<i64> = PENDING + 2..PENDING + 512;

impl OnPlatform {
    fn files(&self) -> MutexGuard<'_, HashMap<String, Vec<Handle>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, file: &File, change: impl FnOnce(&mut Handle)) {
        let mut files = self.files();
        let handles = file.name.as_ref().and_then(|name| files.get_mut(name));
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
        let Some(name) = &file.name else { return false };
        self.files().get(name).into_iter().flatten().any(|handle| {
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
        let properties = OnPlatform {
            platform: *platform,
            files: Mutex::default(),
            before_lock: Mutex::default(),
            before_unfetch: Mutex::default(),
        };
        Self::register(Some(base), properties)
    }
}

impl OnPlatform {
    /// Does `what` when the next first lock is asked for, before it is taken.
    pub fn before_lock(&self, what: impl FnOnce() + Send + 'static) {
        *self.before_lock.lock().unwrap() = Some(Box::new(what));
    }

    /// Does `what` when SQLite next gives up what it has mapped: it has just read a wal-index that
    /// is new to it.
    pub fn before_unfetch(&self, what: impl FnOnce() + Send + 'static) {
        *self.before_unfetch.lock().unwrap() = Some(Box::new(what));
    }

    /// The files on which a lock is held, in words.
    pub fn held(&self) -> Vec<String> {
        let files = self.files();
        let lines = files.iter().flat_map(|(path, handles)| {
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

/// Runs the work that waits, if there is any.
fn run(work: &Work) {
    let work = work.lock().unwrap().take();
    if let Some(work) = work {
        work();
    }
}

impl Properties for OnPlatform {
    fn call(&self, file: &File, call: &mut Call<'_>, below: &Below) -> c_int {
        match call {
            Call::Read { buf, at } => {
                let bytes = *at..*at + buf.len() as i64;
                if buf.len() > self.platform.longest_call || self.is_locked(file, bytes, false) {
                    return ffi::SQLITE_IOERR_READ;
                }
            }
            Call::Write { bytes, .. } if bytes.len() > self.platform.longest_call => {
                // What SQLite's unix VFS makes of a length that its mask cuts to nothing.
                return ffi::SQLITE_FULL;
            }
            Call::Write { bytes, at }
                if self.is_locked(file, *at..*at + bytes.len() as i64, true) =>
            {
                return ffi::SQLITE_IOERR_WRITE;
            }
            Call::Delete { .. } => {
                let is_open = |name| self.files().contains_key(name);
                if self.platform.undeletable && file.name.as_ref().is_some_and(is_open) {
                    return ffi::SQLITE_IOERR_DELETE;
                }
            }
            Call::Lock(ffi::SQLITE_LOCK_SHARED) => run(&self.before_lock),
            Call::Unfetch { .. } => run(&self.before_unfetch),
            Call::ShmUnmap { .. } => self.change(file, |handle| handle.shm = 0),
            _ => {}
        }
        let code = below.call(call);
        match call {
            Call::Open if code == ffi::SQLITE_OK => {
                if let Some(name) = &file.name {
                    let handle = Handle { id: file.id, lock: 0, shm: 0 };
                    self.files().entry(name.clone()).or_default().push(handle);
                }
            }
            Call::Close => {
                let mut files = self.files();
                if let Some(name) = &file.name
                    && let Some(handles) = files.get_mut(name)
                {
                    handles.retain(|handle| handle.id != file.id);
                    if handles.is_empty() {
                        files.remove(name);
                    }
                }
            }
            Call::Lock(level) if code == ffi::SQLITE_OK => {
                self.change(file, |handle| handle.lock = handle.lock.max(*level));
            }
            Call::Unlock(level) => {
                self.change(file, |handle| handle.lock = handle.lock.min(*level));
            }
            Call::ShmLock { first, count, flags } if code == ffi::SQLITE_OK => {
                let bits = ((1_usize << *count) - 1) << *first;
                let unlock = *flags & ffi::SQLITE_SHM_UNLOCK != 0;
                self.change(file, |handle| {
                    handle.shm = if unlock { handle.shm & !bits } else { handle.shm | bits };
                });
            }
            _ => {}
        }
        code
    }

    fn sector_size(&self, below: c_int) -> c_int {
        self.platform.sector.unwrap_or(below)
    }

    fn characteristics(&self, mut below: c_int) -> c_int {
        if self.platform.undeletable {
            below |= ffi::SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN;
        }
        match self.platform.powersafe {
            Some(true) => below | ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE,
            Some(false) => below & !ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE,
            None => below,
        }
    }

    fn copies_names(&self) -> bool {
        self.platform.copies_names
    }

    fn alter_vfs(&self, vfs: &mut ffi::sqlite3_vfs) {
        vfs.iVersion = self.platform.version;
        (vfs.xDlOpen, vfs.xDlError, vfs.xDlSym, vfs.xDlClose) = (None, None, None, None);
        (vfs.xGetLastError, vfs.xSetSystemCall, vfs.xGetSystemCall) = (None, None, None);
        vfs.xCurrentTimeInt64 = (vfs.iVersion < 2).then_some(not_of_this_version);
        vfs.xNextSystemCall = vfs.xNextSystemCall.filter(|_| vfs.iVersion >= 3);
    }

    /// The methods of the platform, whatever those below are.
    fn alter_methods(&self, methods: &mut ffi::sqlite3_io_methods, all: &ffi::sqlite3_io_methods) {
        *methods = *all;
        let platform = self.platform.methods;
        methods.iVersion = match platform {
            Methods::One => 1,
            Methods::Two | Methods::TwoWithoutShm => 2,
            Methods::Three | Methods::ThreeWithoutShm | Methods::ThreeWithoutFetch => 3,
        };
        if !platform.has_shm() {
            methods.xShmMap = None;
        }
        // SQLite's own VFS without shared memory has the others all the same.
        if platform == Methods::One {
            methods.xSectorSize = None;
            (methods.xShmLock, methods.xShmBarrier, methods.xShmUnmap) = (None, None, None);
        }
        if !matches!(platform, Methods::Three | Methods::ThreeWithoutShm) {
            (methods.xFetch, methods.xUnfetch) = (None, None);
        }
    }
}

/// Stands where a VFS of an earlier version may have anything.
unsafe extern "C" fn not_of_this_version(_: *mut ffi::sqlite3_vfs, _: *mut i64) -> c_int {
    panic!("a method of a later version was called");
}
