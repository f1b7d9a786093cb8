//! The open database files by name: the database of a journal or log, and the base's name of the
//! log.
//!
//! `sqlite3_database_file_object` works only if SQLite itself made the name and no other VFS is
//! between it and us. A VFS above may answer with a file of its own, or pass a copy of the name,
//! without the bytes before it that SQLite's routine reads.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::ffi;

use super::api;
use super::owner::Owner;
use crate::file::beside;

/// An open database.
struct Named {
    /// The address of its `sqlite3_file`, which lives until the file is closed.
    file: usize,
    owner: Arc<Owner>,
    /// The addresses of SQLite's names for its journal and log.
    parts: [usize; 2],
    /// The base VFS's name for the log of an encrypted one.
    log: Arc<LogName>,
}

/// The connections to the database at one path, by the address of their `sqlite3_file`.
#[derive(Default)]
struct Files {
    open: BTreeMap<usize, Named>,
    /// The same files, by the addresses of SQLite's names for their parts.
    by_part: BTreeMap<usize, usize>,
}

static OPEN: LazyLock<Mutex<BTreeMap<Vec<u8>, Files>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The database file that this thread locked last.
    static LOCKED: Cell<usize> = const { Cell::new(0) };
}

/// Remembers that this thread takes a lock on the database file `file`.
pub(super) fn locks(file: *mut ffi::sqlite3_file) {
    LOCKED.set(file.addr());
}

fn open() -> MutexGuard<'static, BTreeMap<Vec<u8>, Files>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers the database of `owner`, whose main file is `file`.
///
/// # Safety
/// `file` is open, and [`forget`] is called before it is closed.
pub(super) unsafe fn remember(file: *mut ffi::sqlite3_file, owner: Arc<Owner>) {
    // SAFETY: as above; the owner's name is the one that xOpen got.
    let (path, log, parts) = unsafe {
        let path = CStr::from_ptr(owner.name).to_bytes();
        let log = LogName::new(file, owner.name, &[path, b"-wal"].concat());
        (path.to_vec(), log, api::journal_or_log_names(owner.name).map(|name| name.addr()))
    };
    let Some(log) = log.map(Arc::new) else { return };
    let named = Named { file: file.expose_provenance(), owner, parts, log };
    let mut open = open();
    let files = open.entry(path).or_default();
    files.by_part.extend(parts.map(|part| (part, named.file)));
    files.open.insert(named.file, named);
}

/// Forgets the database of `owner`, whose main file `file` is about to be closed.
///
/// # Safety
/// As for [`remember`].
pub(super) unsafe fn forget(file: *mut ffi::sqlite3_file, owner: &Owner) {
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(owner.name) }.to_bytes();
    let mut open = open();
    let Some(files) = open.get_mut(path) else { return };
    for part in files.open.remove(&file.addr()).map_or([0; 2], |named| named.parts) {
        // Copied names may lie where those of another file lay.
        if files.by_part.get(&part) == Some(&file.addr()) {
            files.by_part.remove(&part);
        }
    }
    if files.open.is_empty() {
        open.remove(path);
    }
}

/// The database that the journal or log `name` belongs to; `None` if unknown. `written` is a
/// journal that SQLite opens to write it.
///
/// # Safety
/// `name` is NUL-terminated.
pub(super) unsafe fn database_of(name: *const c_char, written: bool) -> Option<Arc<Owner>> {
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(name) }.to_bytes();
    let dash = path.iter().rposition(|&byte| byte == b'-')?;
    let open = open();
    owner(&open, &path[..dash], name, written).map(|named| Arc::clone(&named.owner))
}

/// The base's name of the file that SQLite calls `name`: different only for the log of an encrypted
/// database. A database that is not created yet will be encrypted.
///
/// # Safety
/// `name` is NUL-terminated.
pub(super) unsafe fn log_of(name: *const c_char) -> Option<Arc<LogName>> {
    // SAFETY: as above.
    let whole = unsafe { CStr::from_ptr(name) }.to_bytes();
    let (path, number) = beside::split_log(whole)?;
    let open = open();
    let named = owner(&open, path, name, false)?;
    if named.owner.outside.plain.load(Ordering::Acquire) {
        return None;
    }
    if number.is_empty() {
        return Some(Arc::clone(&named.log));
    }
    let file = ptr::with_exposed_provenance_mut(named.file);
    // SAFETY: the database is open, hence its name alive.
    unsafe { LogName::new(file, named.owner.name, whole) }.map(Arc::new)
}

/// Of several connections to the database at `path`, the one that owns the journal or log `name`.
/// If the pointer `name` is part of a connection's own name, it is that one. If a VFS above copies
/// names, only the path is left, which decides if it has one connection. Of several, one at a time
/// holds the lock under which a journal is `written`, possibly since long before it opens the
/// journal. Else it is the one that this thread locked last: SQLite looks for a journal or log
/// right after it locked the database.
fn owner<'a>(
    open: &'a BTreeMap<Vec<u8>, Files>,
    path: &[u8],
    name: *const c_char,
    written: bool,
) -> Option<&'a Named> {
    let Files { open: files, by_part } = open.get(path)?;
    let is_writing = |named: &&Named| named.owner.outside.writing.load(Ordering::Acquire);
    by_part
        .get(&name.addr())
        .and_then(|file| files.get(file))
        .or_else(|| files.values().next().filter(|_| files.len() == 1))
        .or_else(|| if written { files.values().find(is_writing) } else { None })
        .or_else(|| files.get(&LOCKED.get()))
}

/// The base's name of a log, with the bytes that SQLite has around such a name in memory.
///
/// ```text
/// | pointer | 0 0 0 0 | database 0 (key 0 value 0)* 0 | journal 0 | log 0 | 0 0 0
/// ```
/// That serves `sqlite3_uri_parameter`, `sqlite3_filename_database` and their neighbours, which
/// walk through it, and `sqlite3_database_file_object`: the pointer leads it to a structure of
/// SQLite's, in which it reads where the database's file is. Here each word of that structure is
/// this address.
pub(super) struct LogName {
    words: Box<[usize]>,
    /// Offset of the log's name.
    at: usize,
    /// Target of the pointer.
    _pager: Box<[usize; Self::PAGER]>,
}

impl LogName {
    /// Words of SQLite's structure of which one is read, with room for more than it had in any
    /// version.
    const PAGER: usize = 128;
    /// Zeros that tell SQLite where the database's name begins, and those behind the last name.
    const BEFORE: usize = 4;
    const BEHIND: usize = 3;

    /// The base's name of the log that SQLite calls `log`, of the database `file`; `None` if `log`
    /// is no log's name.
    ///
    /// # Safety
    /// `name` is what was passed to xOpen for the main database `file`, which is open.
    unsafe fn new(file: *mut ffi::sqlite3_file, name: *const c_char, log: &[u8]) -> Option<Self> {
        let log = beside::log_name(log)?;
        // SAFETY: as above: between the name and that of its journal lie its parameters.
        let (database, journal) = unsafe {
            let [journal, _] = api::journal_or_log_names(name);
            let len = usize::try_from(journal.offset_from(name)).ok()?;
            (std::slice::from_raw_parts(name.cast::<u8>(), len), CStr::from_ptr(journal))
        };
        let pager = Box::new([file.expose_provenance(); Self::PAGER]);
        let pointer = pager.as_ptr().expose_provenance().to_ne_bytes();
        let before = [&pointer[..], &[0; Self::BEFORE], database, journal.to_bytes_with_nul()];
        let at = before.iter().map(|part| part.len()).sum();
        let bytes = [&before.concat()[..], &log, &[0; 1 + Self::BEHIND]].concat();
        let word = |bytes: &[u8]| {
            let mut word = [0; size_of::<usize>()];
            word[..bytes.len()].copy_from_slice(bytes);
            usize::from_ne_bytes(word)
        };
        let words = bytes.chunks(size_of::<usize>()).map(word).collect();
        Some(Self { words, at, _pager: pager })
    }

    pub(super) fn as_ptr(&self) -> *const c_char {
        self.words.as_ptr().cast::<c_char>().wrapping_add(self.at)
    }
}
