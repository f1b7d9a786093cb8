//! The test VFS: it passes each call to the VFS below, except where its properties differ.
//!
//! | file | properties |
//! |---|---|
//! | `faults.rs` | calls that are counted and fail |
//! | `../between.rs` | calls that are shown before and after |
//! | `../platform.rs` | methods and habits of other platforms |
//! | `../power/vfs.rs` | a disk in memory, without a VFS below |
//!
//! `shim.rs` has the methods of `sqlite3_vfs` and `sqlite3_io_methods`, once for all of them.

mod faults;
mod shim;

use std::ffi::{CString, c_int, c_void};
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::ffi;

pub use faults::{Faults, FaultyVfs, Kind, Written, kind_of_file};
pub use shim::Below;

/// A call of SQLite's, with its arguments and the place for its answer.
pub enum Call<'a> {
    Open,
    Close,
    Read { buf: &'a mut [u8], at: i64 },
    Write { bytes: &'a [u8], at: i64 },
    Truncate(i64),
    Sync(c_int),
    FileSize(&'a mut i64),
    Lock(c_int),
    Unlock(c_int),
    CheckReservedLock(&'a mut c_int),
    FileControl(c_int, *mut c_void),
    ShmMap { region: c_int, size: c_int, extend: c_int, out: &'a mut *mut c_void },
    ShmLock { first: c_int, count: c_int, flags: c_int },
    ShmBarrier,
    ShmUnmap { delete: c_int },
    Fetch { at: i64, len: c_int, out: &'a mut *mut c_void },
    Unfetch { at: i64, page: *mut c_void },
    Delete { sync_dir: c_int },
    Access { flags: c_int, out: &'a mut c_int },
}

/// A [`Call`] without its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Open,
    Close,
    Read,
    Write,
    Truncate,
    Sync,
    FileSize,
    Lock,
    Unlock,
    CheckReservedLock,
    FileControl,
    ShmMap,
    ShmLock,
    ShmBarrier,
    ShmUnmap,
    Fetch,
    Unfetch,
    Delete,
    Access,
}

impl Call<'_> {
    pub fn method(&self) -> Method {
        match self {
            Self::Open => Method::Open,
            Self::Close => Method::Close,
            Self::Read { .. } => Method::Read,
            Self::Write { .. } => Method::Write,
            Self::Truncate(_) => Method::Truncate,
            Self::Sync(_) => Method::Sync,
            Self::FileSize(_) => Method::FileSize,
            Self::Lock(_) => Method::Lock,
            Self::Unlock(_) => Method::Unlock,
            Self::CheckReservedLock(_) => Method::CheckReservedLock,
            Self::FileControl(..) => Method::FileControl,
            Self::ShmMap { .. } => Method::ShmMap,
            Self::ShmLock { .. } => Method::ShmLock,
            Self::ShmBarrier => Method::ShmBarrier,
            Self::ShmUnmap { .. } => Method::ShmUnmap,
            Self::Fetch { .. } => Method::Fetch,
            Self::Unfetch { .. } => Method::Unfetch,
            Self::Delete { .. } => Method::Delete,
            Self::Access { .. } => Method::Access,
        }
    }
}

/// The file that a call is for.
pub struct File {
    /// Differs between any two open files.
    pub id: usize,
    /// The flags of xOpen; 0 where the file is named and not opened.
    pub flags: c_int,
    /// `None` for a temporary file.
    pub name: Option<String>,
}

/// The differences between a test VFS and the VFS below it.
pub trait Properties: Send + Sync + 'static {
    fn call(&self, file: &File, call: &mut Call<'_>, below: &Below) -> c_int {
        let _ = file;
        below.call(call)
    }

    /// `below`: the sector size of the VFS below.
    fn sector_size(&self, below: c_int) -> c_int {
        below
    }

    /// `below`: the device characteristics of the VFS below.
    fn characteristics(&self, below: c_int) -> c_int {
        below
    }

    /// Whether xSleep waits; in a single thread there is nothing to wait for.
    fn sleeps(&self) -> bool {
        true
    }

    /// Whether the VFS below gets copies of names, without the parameters that SQLite keeps behind
    /// its own.
    fn copies_names(&self) -> bool {
        false
    }

    /// Changes the VFS before it is registered.
    fn alter_vfs(&self, vfs: &mut ffi::sqlite3_vfs) {
        let _ = vfs;
    }

    /// Changes the methods of a file; `all` has every method. The file gets those that the file
    /// below has, too, in `methods`.
    fn alter_methods(&self, methods: &mut ffi::sqlite3_io_methods, all: &ffi::sqlite3_io_methods) {
        let _ = (methods, all);
    }
}

/// A registered test VFS. It is never unregistered.
pub struct TestVfs<P: 'static> {
    pub name: &'static str,
    properties: &'static P,
}

impl<P> Clone for TestVfs<P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for TestVfs<P> {}

impl<P> Deref for TestVfs<P> {
    type Target = P;

    fn deref(&self) -> &P {
        self.properties
    }
}

impl<P: Properties> TestVfs<P> {
    /// Registers one over the VFS called `base`; without it, `properties` answers each call.
    pub fn register(base: Option<&str>, properties: P) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let base = base.map(|base| CString::new(base).unwrap());
        let properties: &'static P = Box::leak(Box::new(properties));
        shim::register(&name, base.as_deref(), properties);
        Self { name: Box::leak(name.into_boxed_str()), properties }
    }
}
