//! The fence: every raw pointer between SQLite and the rest of the crate.
//!
//! | file | what |
//! |---|---|
//! | this one | the VFS: registration, opening files, and what is passed on as it is |
//! | `file.rs` | the methods of an open file |
//! | `owner.rs` | a database as the handles of its files reach it: entered by one call at a time |
//! | `forks.rs` | which process this is |
//! | `signals.rs` | keeping the host's signals from our threads |
//! | `kin.rs` | telling VFSs of this library from others |
//! | `names.rs` | open database files by name, for their journals and logs |
//! | `connection.rs` | what is reached through a connection: SQL functions, commands, verify |
//! | `table.rs` | the table-valued functions |
//! | `base.rs` | a file of the base VFS |
//! | `api.rs` | every call into SQLite |
//! | `routines.rs` | how SQLite's routines are reached: linked in, or through a host's table |
//!
//! Each callback is `guard(|| one call)`: a panic becomes `SQLITE_IOERR`, an [`enum@Error`] becomes
//! its code from the one table, a line in SQLite's log, and what `tde_last_error()` says.

mod api;
mod base;
mod cancel;
mod closing;
pub(crate) mod connection;
mod file;
pub(crate) mod forks;
mod kin;
mod names;
mod owner;
#[cfg(feature = "extension")]
pub(crate) mod reserve;
pub(crate) mod routines;
mod signals;
mod table;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, RwLockReadGuard};

use crate::ffi;

use crate::db::Database;
use crate::error::{Error, Result, forget_last, set_last, set_log};
use crate::file::FileKind;
use crate::file::scratch::Scratch;
use crate::key::newest::FileKey;
use crate::key::protector::Protectors;
use crate::key::session::Setup;
use crate::process::threads;
use crate::settings::{Layer, uri};
use base::{BaseFile, Place};
pub(crate) use cancel::Uncancelled;
use file::{Handle, Offers, TdeFile};
use owner::{Guarded, Owner};

/// A registered VFS. Never freed, because connections point to it.
struct Vfs {
    base: *mut ffi::sqlite3_vfs,
    registered: RwLock<Registered>,
}

/// What a registration said.
struct Registered {
    default: bool,
    /// What a URI must not weaken.
    said: Layer,
    /// What applies where a file's URI says nothing else.
    protectors: Protectors,
}

/// What to register; see [`crate::Options`].
pub(crate) struct Registration<'a> {
    pub(crate) name: &'a str,
    pub(crate) base: Option<&'a str>,
    pub(crate) default: bool,
    /// A registration of the same name gets these settings.
    pub(crate) replace: bool,
    pub(crate) said: Layer,
    pub(crate) protectors: Protectors,
}

/// Addresses of the VFSs registered so far, by name. SQLite keeps the pointers for good.
static REGISTERED: LazyLock<Mutex<BTreeMap<String, usize>>> = LazyLock::new(Mutex::default);

/// Registers the VFS, unless one of that name is registered with the same settings.
///
/// # Errors
/// [`Error::Usage`], with the differences, where they are others and nothing is to be replaced.
pub(crate) fn register(registration: Registration<'_>) -> Result<()> {
    routines::check_reachable()?;
    let Registration { name, base, default, replace, said, protectors } = registration;
    let linked = match holder(name)? {
        Holder::Nobody => false,
        Holder::ThisCopy => true,
        Holder::OtherCopy => {
            return Err(Error::Usage(format!(
                "another copy of the library has the VFS {name:?}, with settings of its own"
            )));
        }
        Holder::Stranger => {
            let words = if name.is_empty() { "it needs one" } else { "another VFS has it" };
            return Err(Error::Usage(format!("the VFS cannot be called {name:?}: {words}")));
        }
    };
    let mut new = Registered { default, said, protectors };
    // Providers of the application are dropped after the locks: they may register and open, too.
    let mut former = None;
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    let vfs = match registered.get(name) {
        Some(&address) => {
            let vfs = ptr::with_exposed_provenance_mut::<ffi::sqlite3_vfs>(address);
            // SAFETY: only `create` puts addresses into the map, and what it makes is never freed.
            let state = unsafe { state(vfs) };
            let mut place = state.registered.write().unwrap_or_else(PoisonError::into_inner);
            if replace {
                // A host that lost its default VFS would write plaintext.
                new.default |= place.default;
                former = Some(std::mem::replace(&mut *place, new));
            } else {
                refuse_other(name, state, &place, base, &new)?;
            }
            vfs
        }
        None => {
            let vfs = create(name, base, new)?;
            registered.insert(name.to_owned(), vfs.expose_provenance());
            vfs
        }
    };
    // A host may unload a library that failed. So nothing points into it before all that can fail
    // is done: after the first of these, SQLite is initialised, and then the second cannot fail.
    // Both last until sqlite3_shutdown, hence are said again in each registration. A VFS that the
    // host made the default above this one stays, unless the default is asked for.
    let mut code = api::on_every_connection(connection::add_functions);
    if code == ffi::SQLITE_OK && (!linked || default) {
        // SAFETY: `create` made it, and it is never freed.
        code = unsafe { api::register_vfs(vfs, registered_of(vfs).default) };
    }
    drop(registered);
    drop(former);
    if code != ffi::SQLITE_OK {
        return Err(Error::Base(code));
    }
    set_log(api::log);
    forks::watch();
    threads::block_signals_by(signals::blocked);
    Ok(())
}

/// Who has the name of a VFS.
pub(crate) enum Holder {
    Nobody,
    ThisCopy,
    /// A copy of the library that was loaded from another file.
    OtherCopy,
    /// A VFS of somebody else, or nobody if the name is empty.
    Stranger,
}

/// Who has the VFS called `name`.
///
/// # Errors
/// [`Error::Usage`] for a name with a NUL byte.
pub(crate) fn holder(name: &str) -> Result<Holder> {
    let there = api::find_vfs(Some(&no_nul(name)?));
    // SAFETY: sqlite3_vfs_find answers NULL or a registered VFS.
    Ok(match unsafe { (is_ours(there), kin::is_kin(there)) } {
        _ if name.is_empty() => Holder::Stranger,
        _ if there.is_null() => Holder::Nobody,
        (true, _) => Holder::ThisCopy,
        (_, true) => Holder::OtherCopy,
        _ => Holder::Stranger,
    })
}

/// Whether the VFS called `name` is SQLite's default.
#[cfg(feature = "extension")]
pub(crate) fn is_default(name: &CStr) -> bool {
    api::find_vfs(Some(name)) == api::find_vfs(None)
}

/// Refuses a second registration that says what the first does not.
fn refuse_other(
    name: &str,
    state: &Vfs,
    first: &Registered,
    base: Option<&str>,
    second: &Registered,
) -> Result<()> {
    let mut differences = first.protectors.differences(&second.protectors);
    // SAFETY: the base is registered, and its name lives as long.
    let own_base = unsafe { CStr::from_ptr((*state.base).zName) }.to_string_lossy();
    if let Some(base) = base.filter(|base| *base != own_base) {
        differences.push(format!("base ({own_base}, not {base})"));
    }
    if second.default && !first.default {
        differences.push("as_default (false, not true)".to_owned());
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "the VFS {name} is registered with other settings: {}. The first ones stay; \
         Options::replace changes them",
        differences.join(", ")
    )))
}

fn no_nul(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::Usage("a VFS name holds a NUL byte".into()))
}

fn create(name: &str, base: Option<&str>, registered: Registered) -> Result<*mut ffi::sqlite3_vfs> {
    let own_name = no_nul(name)?;
    let base_name = base.map(no_nul).transpose()?;
    let base_vfs = kin::base_for(base_name.as_deref())?;
    // SAFETY: `base_for` answers registered VFSs. Members of later versions are there where the
    // version says so.
    let (max_path, has_time) = unsafe {
        let time = (*base_vfs).iVersion >= 2 && (*base_vfs).xCurrentTimeInt64.is_some();
        ((*base_vfs).mxPathname, time)
    };
    let vfs = ffi::sqlite3_vfs {
        // SQLite asks of version 2 whether it has xCurrentTimeInt64, and nothing of version 3.
        iVersion: 3,
        szOsFile: size_of::<TdeFile>() as c_int,
        mxPathname: max_path,
        pNext: ptr::null_mut(),
        zName: own_name.into_raw(),
        pAppData: Box::into_raw(Box::new(Vfs {
            base: base_vfs,
            registered: RwLock::new(registered),
        }))
        .cast(),
        xOpen: Some(open_file),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: Some(dl_open),
        xDlError: Some(dl_error),
        xDlSym: Some(dl_sym),
        xDlClose: Some(dl_close),
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: Some(get_last_error),
        xCurrentTimeInt64: has_time.then_some(current_time_int64),
        xSetSystemCall: Some(set_system_call),
        xGetSystemCall: Some(get_system_call),
        xNextSystemCall: Some(next_system_call),
    };
    Ok(Box::into_raw(Box::new(vfs)))
}

/// As [`guard`], of a callback that changes the database file. SQLite gives its cache up after an
/// error of the disk alone: after any other, half of a statement, or of a rollback, would stay in
/// it.
fn guard_change(call: impl FnOnce() -> Result<c_int>) -> c_int {
    of_change(guard(call))
}

fn of_change(code: c_int) -> c_int {
    if code & 0xff == ffi::SQLITE_CORRUPT { ffi::SQLITE_IOERR_DATA } else { code }
}

/// Refuses new work while the reserve of memory is low. Only xOpen and xLock ask: a call that
/// releases something is never refused.
fn check_memory() -> Result<()> {
    #[cfg(feature = "extension")]
    if let Some(error) = reserve::refusal() {
        return Err(error);
    }
    Ok(())
}

/// Runs one callback. No panic leaves it, and its thread is not cancelled meanwhile.
fn guard(call: impl FnOnce() -> Result<c_int>) -> c_int {
    let _held = Uncancelled::new();
    let code = catch_unwind(AssertUnwindSafe(|| call().unwrap_or_else(raise)));
    code.unwrap_or_else(|_| {
        api::log(ffi::SQLITE_IOERR, "sqlite-tde: a panic was stopped at the VFS");
        ffi::SQLITE_IOERR
    })
}

/// The code of `error`, after its words were put where a host can find them.
fn raise(error: Error) -> c_int {
    let code = error.sqlite_code();
    if matches!(error, Error::Base(_)) {
        forget_last(code);
    } else {
        api::log(code, &format!("sqlite-tde: {error}"));
        set_last(error);
    }
    code
}

/// # Safety
/// `vfs` is one that `create` made.
unsafe fn state<'a>(vfs: *const ffi::sqlite3_vfs) -> &'a Vfs {
    // SAFETY: `create` stored it, and neither is ever freed.
    unsafe { &*(*vfs).pAppData.cast::<Vfs>() }
}

/// Whether `vfs` is one of ours.
///
/// # Safety
/// `vfs` is NULL or a registered VFS.
unsafe fn is_ours(vfs: *mut ffi::sqlite3_vfs) -> bool {
    // SAFETY: as above.
    let open = if vfs.is_null() { None } else { unsafe { (*vfs).xOpen } };
    open.is_some_and(|open| ptr::fn_addr_eq(open, open_file as OpenMethod))
}

/// The base VFS behind one of ours, which stays registered beside it.
///
/// # Safety
/// `vfs` is one that `create` made: SQLite passes the VFS that was registered.
unsafe fn base_of(vfs: *mut ffi::sqlite3_vfs) -> *mut ffi::sqlite3_vfs {
    // SAFETY: as above.
    unsafe { state(vfs).base }
}

type OpenMethod = unsafe extern "C" fn(
    *mut ffi::sqlite3_vfs,
    ffi::sqlite3_filename,
    *mut ffi::sqlite3_file,
    c_int,
    *mut c_int,
) -> c_int;

unsafe extern "C" fn open_file(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes szOsFile bytes; "xOpen must set pMethods", to NULL where it fails.
    unsafe { (*file).pMethods = ptr::null() };
    // SAFETY: the arguments are those of xOpen.
    guard(|| unsafe {
        check_memory()?;
        open_inside(vfs, name, file, flags, out_flags)
    })
}

unsafe fn open_inside(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> Result<c_int> {
    let kind = FileKind::from_flags(flags, !name.is_null());
    let mut got = flags;
    // SAFETY: the arguments are those of xOpen, and are passed on as they came, `name` above all.
    unsafe {
        let vfs_below = base_of(vfs);
        let mut open_base = |name: *const c_char| {
            let base = BaseFile::open(vfs_below, name, flags, &mut got)?;
            if let Some(out_flags) = out_flags.as_mut() {
                *out_flags = got;
            }
            kin::refuse_kin(&base).map(|()| base)
        };
        let (handle, offers) = match kind {
            FileKind::MainDb => {
                let setup = setup_for(vfs, name)?;
                let base = open_base(name)?;
                return open_database(vfs, name, file, (flags, got), out_flags, base, setup);
            }
            FileKind::MainJournal | FileKind::Wal => open_part(kind, name, flags, &mut open_base)?,
            FileKind::Scratch => {
                let tuning = registered_of(vfs).protectors.settings.tuning;
                let (base, scratch) = (open_base(name)?, Scratch::new(tuning)?);
                let offers = Offers::of(&base);
                (Handle::Scratch(Guarded::new((base, Box::new(scratch)))), offers)
            }
            FileKind::SuperJournal => {
                let base = open_base(name)?;
                let offers = Offers::of(&base);
                (Handle::Through(Guarded::new(base), None), offers)
            }
        };
        TdeFile::install(file, handle, offers);
    }
    Ok(ffi::SQLITE_OK)
}

/// Opens the main file of a database.
///
/// # Safety
/// The arguments are those of xOpen for a main database; `base` was opened with the first of
/// `flags`, and the second came back.
unsafe fn open_database(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: (c_int, c_int),
    out_flags: *mut c_int,
    mut base: BaseFile,
    mut setup: Setup,
) -> Result<c_int> {
    let (asked, got) = flags;
    // SAFETY: as above.
    unsafe {
        setup.read_only = is_never_written(&base, name, asked, got);
        setup.file = file_key(&base, name);
        base.set_place(Place::new(base_of(vfs), name), setup.file);
    }
    let (read_only, offers) = (setup.read_only, Offers::of(&base));
    let mut database = Database::open(base, got & ffi::SQLITE_OPEN_READWRITE != 0, setup)?;
    refuse_plain_log(&database, read_only)?;
    database.settle_creation();
    database.mend_envelope();
    database.rotate_by_itself();
    if database.main.session().is_ok_and(|session| session.is_read_only()) {
        // SAFETY: `out_flags` is NULL or points to an int.
        unsafe { say_read_only(out_flags) };
    }
    let owner = Owner::new(database, name);
    // SAFETY: `file` has room for a `TdeFile`, and xClose forgets it.
    unsafe {
        TdeFile::install(file, Handle::Main(Arc::clone(&owner)), offers);
        names::remember(file, owner);
    }
    Ok(ffi::SQLITE_OK)
}

/// Opens a journal or log of a database that is open.
///
/// # Safety
/// `name` is that of a journal or log, as SQLite passed it.
unsafe fn open_part(
    kind: FileKind,
    name: *const c_char,
    flags: c_int,
    open_base: &mut dyn FnMut(*const c_char) -> Result<BaseFile>,
) -> Result<(Handle, Offers)> {
    let written = kind == FileKind::MainJournal && flags & ffi::SQLITE_OPEN_READWRITE != 0;
    // SAFETY: as above.
    let owner = unsafe { names::database_of(name, written) };
    let owner = owner.ok_or_else(|| {
        Error::Unsupported(
            "another VFS stands between SQLite and tde: register tde on top of it instead".into(),
        )
    })?;
    owner.enter()?.before_part(kind, flags)?;
    if owner.enter()?.main.is_plain() {
        let base = open_base(name)?;
        let offers = Offers::of(&base);
        owner.enter()?.add_plain_part();
        return Ok((Handle::Through(Guarded::new(base), Some(owner)), offers));
    }
    if kind == FileKind::MainJournal {
        let base = open_base(name)?;
        let offers = Offers::of(&base);
        let id = owner.enter()?.add_journal(base)?;
        return Ok((Handle::Journal(owner, id), offers));
    }
    // SAFETY: `name` is that of a log.
    let called = unsafe { names::log_of(name) };
    let base = open_base(called.as_ref().map_or(name, |called| called.as_ptr()))?;
    let offers = Offers::of(&base);
    let id = owner.enter()?.add_log(base)?;
    Ok((Handle::Log(owner, id, called), offers))
}

/// Which file of the operating system `base` is, that was opened as `name`; `None` where the base
/// does not say that the name still leads to it.
///
/// # Safety
/// `name` was passed to the base's xOpen, and came back.
unsafe fn file_key(base: &BaseFile, name: *const c_char) -> Option<FileKey> {
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(name) };
    let key = key_at(path)?;
    base.is_at_its_name().then_some(key)
}

#[cfg(unix)]
fn key_at(path: &CStr) -> Option<FileKey> {
    // The types of these fields differ between platforms.
    #[allow(clippy::unnecessary_cast)]
    rustix::fs::stat(path).ok().map(|file| (file.st_dev as u64, file.st_ino as u64))
}

#[cfg(not(unix))]
fn key_at(_: &CStr) -> Option<FileKey> {
    None
}

/// Whether nothing is ever to be written to a main database: it could be opened for reading alone,
/// or its URI or the base says that it never changes, where SQLite takes no locks either.
///
/// # Safety
/// `name` and the flags `asked` were passed to xOpen, and the flags `got` came back.
unsafe fn is_never_written(base: &BaseFile, name: *const c_char, asked: c_int, got: c_int) -> bool {
    // SAFETY: as above.
    let immutable = unsafe { api::uri_parameter(name, c"immutable") };
    (asked | got) & ffi::SQLITE_OPEN_READONLY != 0
        || immutable.is_some_and(|value| is_true(&value))
        || base.device_characteristics() & ffi::SQLITE_IOCAP_IMMUTABLE != 0
}

/// Whether SQLite takes `value` for true: as its sqlite3GetBoolean does, a number counts by its low
/// byte.
fn is_true(value: &str) -> bool {
    let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse::<u64>() {
        Ok(number) => number != 0,
        Err(_) => ["on", "yes", "true", "full", "extra"].contains(&value.to_lowercase().as_str()),
    }
}

/// Refuses to write an encrypted database beside which a log lies that a program without the
/// library would take for its log. If the file is only read, it is said in SQLite's log. Such a log
/// is deleted when a database is created.
fn refuse_plain_log(database: &Database<BaseFile>, read_only: bool) -> Result<()> {
    if !database.has_pages() {
        return Ok(());
    }
    match database.host.plain_log() {
        Ok(Some(path)) if !read_only => Err(Error::PlainLog { path }),
        Ok(Some(path)) => {
            let warning = Error::PlainLog { path };
            api::log(ffi::SQLITE_WARNING, &format!("sqlite-tde: {warning}"));
            Ok(())
        }
        // What cannot be looked at tells nothing.
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Tells SQLite that the file is open for reading alone.
unsafe fn say_read_only(out_flags: *mut c_int) {
    // SAFETY: it is NULL or points to an int.
    if let Some(flags) = unsafe { out_flags.as_mut() } {
        *flags = *flags & !ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_READONLY;
    }
}

/// What the registration of `vfs`, one of ours, says.
unsafe fn registered_of<'a>(vfs: *mut ffi::sqlite3_vfs) -> RwLockReadGuard<'a, Registered> {
    // SAFETY: SQLite passes the VFS that was registered; its state is never freed.
    unsafe { state(vfs) }.registered.read().unwrap_or_else(PoisonError::into_inner)
}

/// What the file `name` is opened with: what its URI says, over what the registration says.
unsafe fn setup_for(vfs: *mut ffi::sqlite3_vfs, name: *const c_char) -> Result<Setup> {
    // SAFETY: SQLite passes the VFS that was registered.
    let registered = unsafe { registered_of(vfs) };
    let mut protectors = registered.protectors.clone();
    // SAFETY: `name` is NUL-terminated.
    let path = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let path = Path::new(&*path);
    // SAFETY: `name` is that of a main database, as SQLite passed it.
    let keys = unsafe { api::uri_keys(name) };
    let in_uri = match uri::check_names(keys.map(CStr::to_string_lossy))? {
        // SAFETY: as above.
        true => uri::read(|key| unsafe { api::uri_parameter(name, &CString::new(key).ok()?) })?,
        false => Layer::default(),
    };
    let pinned = protectors.settings.pins.at(path);
    if let (Some(asked), Some(pinned)) = (in_uri.file_id.flatten(), pinned)
        && asked != pinned
    {
        return Err(Error::Usage(format!(
            "tde_file_id={asked}: the configuration expects {pinned} at this path"
        )));
    }
    if pinned.is_some() || in_uri != Layer::default() {
        let said = registered.said.clone().then(in_uri, "the registration", "the URI")?;
        let mut settings = said.values();
        settings.file_id = settings.file_id.or(pinned);
        if said.allow_plaintext.is_none() {
            settings.allow_plaintext = protectors.settings.allow_plaintext;
        }
        protectors.set(settings);
    }
    if protectors.auditor.log.is_some() {
        protectors.auditor.path = Some(Arc::from(path));
    }
    Ok(Setup { protectors, read_only: false, file: None })
}

unsafe extern "C" fn delete(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    sync_dir: c_int,
) -> c_int {
    // SAFETY: the arguments are those of xDelete.
    guard(|| unsafe {
        let (base, called) = (base_of(vfs), names::log_of(name));
        let name = called.as_ref().map_or(name, |called| called.as_ptr());
        Ok((*base).xDelete.map_or(ffi::SQLITE_IOERR_DELETE, |delete| delete(base, name, sync_dir)))
    })
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: the arguments are those of xAccess.
    guard(|| unsafe {
        let (base, called) = (base_of(vfs), names::log_of(name));
        let name = called.as_ref().map_or(name, |called| called.as_ptr());
        Ok((*base)
            .xAccess
            .map_or(ffi::SQLITE_IOERR_ACCESS, |access| access(base, name, flags, out)))
    })
}

/// Passes a call on to the base VFS as it is.
macro_rules! pass {
    ($name:ident => $method:ident ($($arg:ident: $type:ty),*) -> $result:ty, $missing:expr) => {
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs, $($arg: $type),*) -> $result {
            // SAFETY: SQLite's arguments, to the method that SQLite would have called.
            unsafe {
                let base = base_of(vfs);
                match (*base).$method {
                    Some(method) => method(base, $($arg),*),
                    None => $missing,
                }
            }
        }
    };
}

pass!(full_pathname => xFullPathname(name: *const c_char, len: c_int, out: *mut c_char) -> c_int, ffi::SQLITE_CANTOPEN);
pass!(dl_open => xDlOpen(name: *const c_char) -> *mut c_void, ptr::null_mut());
pass!(dl_error => xDlError(len: c_int, out: *mut c_char) -> (), ());
pass!(dl_close => xDlClose(library: *mut c_void) -> (), ());
pass!(randomness => xRandomness(len: c_int, out: *mut c_char) -> c_int, 0);
pass!(sleep => xSleep(microseconds: c_int) -> c_int, 0);
pass!(current_time => xCurrentTime(out: *mut f64) -> c_int, ffi::SQLITE_ERROR);
pass!(get_last_error => xGetLastError(len: c_int, out: *mut c_char) -> c_int, 0);
pass!(current_time_int64 => xCurrentTimeInt64(out: *mut ffi::sqlite3_int64) -> c_int, ffi::SQLITE_ERROR);

/// The base VFS behind `vfs`, where it has methods of version 3.
///
/// # Safety
/// As [`base_of`].
unsafe fn base_with_system_calls(vfs: *mut ffi::sqlite3_vfs) -> Option<*mut ffi::sqlite3_vfs> {
    // SAFETY: as above.
    let base = unsafe { base_of(vfs) };
    // SAFETY: the base is registered.
    (unsafe { (*base).iVersion } >= 3).then_some(base)
}

unsafe extern "C" fn set_system_call(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    call: ffi::sqlite3_syscall_ptr,
) -> c_int {
    // SAFETY: SQLite's arguments, to the method that SQLite would have called.
    unsafe {
        let method =
            base_with_system_calls(vfs).and_then(|base| Some((base, (*base).xSetSystemCall?)));
        method.map_or(ffi::SQLITE_NOTFOUND, |(base, method)| method(base, name, call))
    }
}

unsafe extern "C" fn get_system_call(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
) -> ffi::sqlite3_syscall_ptr {
    // SAFETY: as above.
    unsafe {
        let base = base_with_system_calls(vfs)?;
        (*base).xGetSystemCall?(base, name)
    }
}

unsafe extern "C" fn next_system_call(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
) -> *const c_char {
    // SAFETY: as above; names of VFSs are NUL-terminated.
    unsafe {
        let answer = kin::answer(name, (*vfs).zName, (*base_of(vfs)).zName);
        if !answer.is_null() {
            return answer;
        }
        let method =
            base_with_system_calls(vfs).and_then(|base| Some((base, (*base).xNextSystemCall?)));
        method.map_or(ptr::null(), |(base, method)| method(base, name))
    }
}

type Symbol = Option<unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *mut c_void, *const c_char)>;

unsafe extern "C" fn dl_sym(
    vfs: *mut ffi::sqlite3_vfs,
    library: *mut c_void,
    name: *const c_char,
) -> Symbol {
    // SAFETY: SQLite's arguments, to the method that SQLite would have called.
    unsafe {
        let base = base_of(vfs);
        (*base).xDlSym.and_then(|method| method(base, library, name))
    }
}
