//! Properties that show each call before it reaches the VFS below, and again after it. One of these
//! lies below `tde` and one above it.

use std::ffi::c_int;

use rusqlite::ffi;

pub use crate::vfs::Method;
use crate::vfs::{self, Below, Properties, TestVfs};

/// How the names of the files end.
pub const DATABASE: &str = "h.db";
pub const JOURNAL: &str = "-journal";
pub const LOG: &str = "-tdewal";

/// The kind of file that a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum File {
    Database,
    Journal,
    Log,
    /// The wal-index, reached through the database file.
    Index,
    Other,
}

/// A call, without what it answers.
pub struct Call<'a> {
    pub file: File,
    pub method: Method,
    /// The file's name; empty for temporary files.
    pub name: &'a str,
    /// Where it reads or writes, or the size that it truncates to.
    pub at: u64,
    /// How much it reads or writes.
    pub len: usize,
    /// What it writes.
    pub bytes: &'a [u8],
}

/// Sees the calls.
pub trait Watch: Send + Sync {
    fn before(&self, call: &Call<'_>);
    /// The VFS below answered `SQLITE_OK`.
    fn done(&self, call: &Call<'_>) {
        let _ = call;
    }
}

struct Between {
    watch: &'static dyn Watch,
    /// The platform's VFS lies below.
    is_lowest: bool,
}

/// Registers one over the VFS called `base`.
pub fn register(base: &str, watch: &'static dyn Watch) -> &'static str {
    TestVfs::register(Some(base), Between { watch, is_lowest: base == "unix" }).name
}

/// The kind of file that `call` is for.
fn kind(file: &vfs::File, name: &str, call: &vfs::Call<'_>) -> File {
    match call.method() {
        Method::ShmMap | Method::ShmLock | Method::ShmUnmap => File::Index,
        Method::Delete | Method::Access => match name {
            name if name.ends_with(JOURNAL) => File::Journal,
            name if name.ends_with(LOG) => File::Log,
            name if name.ends_with(DATABASE) => File::Database,
            _ => File::Other,
        },
        _ => match file.flags & 0xfff00 {
            ffi::SQLITE_OPEN_MAIN_DB => File::Database,
            ffi::SQLITE_OPEN_MAIN_JOURNAL => File::Journal,
            ffi::SQLITE_OPEN_WAL => File::Log,
            _ => File::Other,
        },
    }
}

impl Properties for Between {
    fn call(&self, file: &vfs::File, call: &mut vfs::Call<'_>, below: &Below) -> c_int {
        let method = call.method();
        if matches!(method, Method::FileControl | Method::ShmBarrier) {
            return below.call(call);
        }
        let name = file.name.as_deref().unwrap_or_default();
        let (at, len, bytes) = match call {
            vfs::Call::Read { buf, at } => (*at, buf.len(), &[][..]),
            vfs::Call::Write { bytes, at } => (*at, bytes.len(), *bytes),
            vfs::Call::Truncate(size) => (*size, 0, &[][..]),
            _ => (0, 0, &[][..]),
        };
        let file = kind(file, name, call);
        let shown = Call { file, method, name, at: at as u64, len, bytes };
        self.watch.before(&shown);
        // Power is not lost here: a sync would only take time.
        let code = match call {
            vfs::Call::Sync(_) if self.is_lowest => ffi::SQLITE_OK,
            vfs::Call::Delete { .. } => below.call(&mut vfs::Call::Delete { sync_dir: 0 }),
            call => below.call(call),
        };
        if code == ffi::SQLITE_OK {
            self.watch.done(&shown);
        }
        code
    }

    /// All runs in a single thread.
    fn sleeps(&self) -> bool {
        false
    }

    /// Nothing is mapped: each read is a call.
    fn alter_methods(&self, methods: &mut ffi::sqlite3_io_methods, _: &ffi::sqlite3_io_methods) {
        methods.iVersion = methods.iVersion.min(2);
    }
}
