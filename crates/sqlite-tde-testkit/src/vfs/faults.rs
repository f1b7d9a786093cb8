//! Properties that count calls, fail one of them or all from one on, and keep what was written and
//! synced.

use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use rusqlite::ffi;

use super::{Below, Call, File, Method, Properties, TestVfs};

impl Method {
    /// The error of a call that fails; `None` for calls that are neither counted nor fail.
    pub(crate) fn failure(self) -> Option<c_int> {
        Some(match self {
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
            Self::Close | Self::FileControl | Self::ShmBarrier | Self::Fetch | Self::Unfetch => {
                return None;
            }
        })
    }

    /// The faults of this call.
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

/// Faults and records of one VFS.
pub struct Faults {
    inner: Mutex<Inner>,
    /// Bytes of the longest read or write that is done; a longer one fails.
    longest: AtomicI32,
    /// Sector size of a disk that does not overwrite powersafely; 0 for that of the VFS below.
    sector: AtomicI32,
}

enum Verdict {
    Pass,
    Fail(c_int),
    Short,
    /// Only what the file has room for.
    Inside,
}

impl Faults {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call that fails with `failure` where it fails.
    fn count(&self, method: Method, failure: c_int, flags: c_int) -> Verdict {
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
            Kind::Once if number == at => Verdict::Fail(failure),
            Kind::From if number >= at => Verdict::Fail(failure),
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

pub type FaultyVfs = TestVfs<Faults>;

impl Default for FaultyVfs {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultyVfs {
    /// Registers a new one over `unix`.
    pub fn new() -> Self {
        Self::over("unix")
    }

    /// Registers a new one over the VFS `base`.
    pub fn over(base: &str) -> Self {
        static CONFIGURE: Once = Once::new();
        CONFIGURE.call_once(crate::spill_at_once);
        let faults = Faults {
            inner: Mutex::default(),
            longest: AtomicI32::new(c_int::MAX),
            sector: AtomicI32::new(0),
        };
        Self::register(Some(base), faults)
    }
}

impl Faults {
    /// Forgets the calls so far, and fails call number `at` from now as `kind` says.
    pub fn fail(&self, at: usize, kind: Kind) {
        *self.inner() = Inner { fault: Some((at, kind)), ..Inner::default() };
    }

    /// As [`Faults::fail`], where writes, truncations and syncs of files of the kind `only` count
    /// and fail.
    pub fn fail_on(&self, only: &'static str, at: usize, kind: Kind) {
        let fault = Some((at, kind));
        *self.inner() = Inner { fault, only: Some(only), ..Inner::default() };
    }

    /// Does `work` before the next call of `method` on a file of the kind `only`.
    pub fn before(&self, only: &'static str, method: Method, work: impl FnOnce() + Send + 'static) {
        self.inner().work = Some((only, method, Box::new(work)));
    }

    /// Forgets calls and faults. Answers how many calls failed.
    pub fn clear(&self) -> usize {
        std::mem::take(&mut *self.inner()).hits
    }

    /// The calls, and the flags of the files they were for, since the last [`Faults::fail`] or
    /// [`Faults::clear`].
    pub fn calls(&self) -> Vec<(Method, c_int)> {
        self.inner().calls.clone()
    }

    /// Fails each read and write of more than `bytes` bytes.
    pub fn refuse_longer_than(&self, bytes: c_int) {
        self.longest.store(bytes, Ordering::Relaxed);
    }

    /// Answers `sector` as the size of a sector, and no powersafe overwrite.
    pub fn set_sector(&self, sector: c_int) {
        self.sector.store(sector, Ordering::Relaxed);
    }

    /// Keeps what is written from now on.
    pub fn record(&self) {
        self.inner().recording = true;
    }

    /// The syncs of files, and the deletions with or without a sync of the directory, since the
    /// last call of this, in words.
    pub fn take_synced(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().synced)
    }

    /// What was written since the last call of this.
    pub fn take_written(&self) -> Vec<Written> {
        std::mem::take(&mut self.inner().written)
    }
}

/// The last part of a file's name, without the random end of a super-journal's.
fn short_name(file: &File) -> &str {
    let Some(name) = &file.name else { return "a temporary file" };
    let name = name.rsplit('/').next().unwrap_or_default();
    name.find("-mj").map_or(name, |end| &name[..end + 3])
}

impl Properties for Faults {
    fn call(&self, file: &File, call: &mut Call<'_>, below: &Below) -> c_int {
        let method = call.method();
        let Some(failure) = method.failure() else { return below.call(call) };
        let verdict = self.count(method, failure, file.flags);
        if let Verdict::Fail(code) = verdict {
            // A lock or mapping that is given back is gone all the same; otherwise nothing could
            // go on.
            let gives_back = match call {
                Call::Unlock(_) | Call::ShmUnmap { .. } => true,
                Call::ShmLock { flags, .. } => *flags & ffi::SQLITE_SHM_LOCK == 0,
                _ => false,
            };
            if gives_back {
                below.call(call);
            }
            return code;
        }
        let is_too_long = |len: usize| len > self.longest.load(Ordering::Relaxed) as usize;
        match call {
            Call::Read { buf, .. } if is_too_long(buf.len()) => ffi::SQLITE_IOERR_READ,
            Call::Read { .. } => {
                let done = below.call(call);
                match call {
                    Call::Read { buf, .. }
                        if matches!(verdict, Verdict::Short) && done == ffi::SQLITE_OK =>
                    {
                        let half = buf.len() / 2;
                        buf[half..].fill(0);
                        ffi::SQLITE_IOERR_SHORT_READ
                    }
                    _ => done,
                }
            }
            Call::Write { bytes, at } => {
                if is_too_long(bytes.len()) {
                    return ffi::SQLITE_FULL;
                }
                self.write(file, bytes, *at, &verdict, below)
            }
            // Power is not lost in these tests: a sync is only counted.
            Call::Sync(flags) => {
                let line = format!("sync {}, flags {flags:#x}", short_name(file));
                self.inner().synced.push(line);
                ffi::SQLITE_OK
            }
            Call::Delete { sync_dir } => {
                let line = format!("delete {}, sync_dir {sync_dir}", short_name(file));
                self.inner().synced.push(line);
                below.call(&mut Call::Delete { sync_dir: 0 })
            }
            call => below.call(call),
        }
    }

    fn sector_size(&self, below: c_int) -> c_int {
        match self.sector.load(Ordering::Relaxed) {
            0 => below,
            sector => sector,
        }
    }

    fn characteristics(&self, below: c_int) -> c_int {
        match self.sector.load(Ordering::Relaxed) {
            0 => below,
            _ => below & !ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE,
        }
    }

    /// Nothing is mapped: each read is a call.
    fn alter_methods(&self, methods: &mut ffi::sqlite3_io_methods, _: &ffi::sqlite3_io_methods) {
        methods.iVersion = methods.iVersion.min(2);
    }
}

impl Faults {
    fn write(&self, file: &File, bytes: &[u8], at: i64, verdict: &Verdict, below: &Below) -> c_int {
        let (bytes, code) = match verdict {
            Verdict::Short => (&bytes[..bytes.len() / 2], ffi::SQLITE_FULL),
            Verdict::Inside if grows(below, at + bytes.len() as i64) => {
                self.inner().hits += 1;
                return ffi::SQLITE_FULL;
            }
            _ => (bytes, ffi::SQLITE_OK),
        };
        {
            let mut inner = self.inner();
            if inner.recording {
                let (flags, data) = (file.flags, bytes.to_vec());
                inner.written.push(Written { flags, offset: at, data });
            }
        }
        let done = below.call(&mut Call::Write { bytes, at });
        if done == ffi::SQLITE_OK { code } else { done }
    }
}

/// Whether a write up to `end` makes the file longer.
fn grows(below: &Below, end: i64) -> bool {
    let mut size = 0;
    below.call(&mut Call::FileSize(&mut size)) == ffi::SQLITE_OK && end > size
}
