//! `encrypt`, `decrypt` and `copy`: a copy by `VACUUM INTO`, which appears complete or not at all.
//!
//! 1. The copy is made in a new directory beside the destination, which only its owner may enter.
//! 2. It is checked, and synced. Its mode is that of the source, less the umask.
//! 3. It gets its name in one step, which fails if the name is taken, unless `--force` was given.
//! 4. The directory is synced, and the one of step 1 removed, as it is when any step fails.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::{
    Cipher, Error, FILES_BESIDE, NewProtector, OpenOptions, ProtectorStatus, RESERVE, Status,
    TdeConnection,
};
use tempfile::{TempDir, TempPath};

use crate::failure::{Failure, KEY, OTHER, UNEXPECTED, USAGE, say};
use crate::interrupt;
use crate::progress;

/// SQLite's own VFS on this platform.
const PLAIN_VFS: &str = if cfg!(windows) { "win32" } else { "unix" };

/// The smallest page that has room for what an encrypted one reserves.
const SMALLEST_PAGE: u32 = 1024;

const IN_USE: &str = "another process has DST open, or crashed: open the old DST once to recover, \
    or remove this file";

/// Source and destination of a copy.
#[derive(Args)]
pub struct Ends {
    /// The database to copy; it is only read
    src: PathBuf,
    /// The database to make
    dst: PathBuf,
    /// Replace DST if it exists
    #[arg(long)]
    force: bool,
}

/// Makes the encrypted copy that `target` describes.
pub fn encrypt(ends: &Ends, target: OpenOptions, page_size: Option<u32>) -> Result<(), Failure> {
    ends.check()?;
    refuse_encrypted(&ends.src)?;
    let source = open_source(&ends.src, &OpenOptions::new().vfs(PLAIN_VFS))?;
    set_page_size(&source, page_size).map_err(|failure| failure.about(&ends.src))?;
    copy(ends, &source, target.parameter("reserve", RESERVE.to_string()), "encrypted", |_| Ok(()))
}

/// Makes a copy of the encrypted database that `options` open, with an encryption key and a file id
/// of its own: nothing of one is accepted in the other. It keeps cipher, journal mode, the page
/// size unless one is given, and the protectors except those in `without`.
pub fn duplicate(
    ends: &Ends,
    options: OpenOptions,
    without: &[String],
    page_size: Option<u32>,
) -> Result<(), Failure> {
    ends.check()?;
    let source = open_source(&ends.src, &options)?;
    refuse_empty(&source).map_err(|failure| failure.about(&ends.src))?;
    let status = source.tde_status("main")?;
    let protectors = protectors(&status, without).map_err(|failure| failure.about(&ends.src))?;
    if protectors.is_empty() {
        return Err(Failure::new(USAGE, "no protector is left for the copy"));
    }
    let writes = |kept: &ProtectorStatus| {
        let is_kept = protectors.iter().any(|protector| protector.name() == kept.name);
        is_kept && !kept.read_only && kept.not_after.is_none_or(|end| end > SystemTime::now())
    };
    let Some(writer) = status.protectors.iter().find(|kept| writes(kept)) else {
        let text = "no protector is left for the copy that may write and has not ended";
        return Err(Failure::new(USAGE, text).about(&ends.src));
    };
    // The copy is made and opened through the one that opened the source, if it keeps that one.
    let through = &status.opened_through;
    let is_kept = protectors.iter().any(|protector| protector.name() == through);
    let maker = if is_kept { through } else { &writer.name };
    let warning = source
        .tde_check_copy("main", without)
        .map_err(|error| Failure::from(error).about(&ends.src))?;
    if let Some(warning) = warning {
        say(format!("warning: {warning}\n"));
    }
    for protector in &protectors {
        source.tde_check_secret("main", protector.name()).map_err(|error| {
            let hint = format!("--without '{}' leaves it out", protector.name());
            Failure::from(error).about(&ends.src).hint(hint)
        })?;
    }
    let target = OpenOptions::new()
        .cipher(status.cipher.parse::<Cipher>()?)
        .protector(maker)
        .parameter("reserve", RESERVE.to_string());
    set_page_size(&source, page_size).map_err(|failure| failure.about(&ends.src))?;
    let is_wal = journal_mode(&source)? == "wal";
    copy(ends, &source, target, "copied", |copy| {
        let connection = sqlite_tde::open(copy)?;
        if !status.auto_rotate {
            connection.tde_set_auto_rotate("main", false)?;
        }
        if is_wal {
            connection.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
        }
        // Last, because the protector that the copy was made through may be read-only or have
        // ended.
        let change = connection.tde_set_protectors("main", protectors.clone())?;
        for warning in change.warnings {
            say(format!("warning: {warning}\n"));
        }
        // The log goes with the last connection, so that the file is all there is.
        connection.close().map_err(|(_, error)| Failure::from(error))
    })
}

/// The protectors of a copy: those of the source, each of which has to wrap the new key now.
fn protectors(status: &Status, without: &[String]) -> Result<Vec<NewProtector>, Failure> {
    let named = |name: &String| status.protectors.iter().any(|protector| protector.name == *name);
    if let Some(name) = without.iter().find(|name| !named(name)) {
        return Err(Failure::new(USAGE, format!("there is no protector {name} to leave out")));
    }
    let mut protectors = Vec::new();
    for protector in &status.protectors {
        let ProtectorStatus { name, provider, not_after, read_only, .. } = protector;
        if without.contains(name) {
            continue;
        }
        let refused = match protector.asks_person {
            Some(false) => None,
            Some(true) => Some("asks a person".to_owned()),
            None => Some(format!("is of provider {provider}, which is not set up here")),
        };
        if let Some(why) = refused {
            let text = format!("protector {name} cannot wrap the key of the copy: it {why}");
            let hint = format!("--without '{name}' leaves it out; add it to the copy afterwards");
            return Err(Failure::new(KEY, text).hint(hint));
        }
        protectors.push(NewProtector::new(name).not_after(*not_after).read_only(*read_only));
    }
    Ok(protectors)
}

fn journal_mode(connection: &Connection) -> Result<String, Failure> {
    Ok(connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?)
}

/// Makes an unencrypted copy of the encrypted database that `options` open.
pub fn decrypt(ends: &Ends, options: OpenOptions) -> Result<(), Failure> {
    ends.check()?;
    let source = open_source(&ends.src, &options)?;
    refuse_empty(&source).map_err(|failure| failure.about(&ends.src))?;
    let target = OpenOptions::new().vfs(PLAIN_VFS).parameter("reserve", "0");
    copy(ends, &source, target, "decrypted", |_| Ok(()))
}

impl Ends {
    /// The database to copy.
    pub fn src(&self) -> &Path {
        &self.src
    }

    /// Refuses impossible copies before any work.
    fn check(&self) -> Result<(), Failure> {
        OpenOptions::new().uri(&self.src)?;
        OpenOptions::new().uri(&self.dst)?;
        file_len(&self.src)?;
        let parent = self.parent();
        fs::metadata(parent).map_err(|error| Failure::at(parent, &error))?;
        if same(&self.src, &self.dst) {
            return Err(Failure::new(USAGE, "SRC and DST are the same file").about(&self.dst));
        }
        if !self.force && self.dst.symlink_metadata().is_ok() {
            return Err(self.taken());
        }
        for suffix in FILES_BESIDE.iter().filter(|suffix| **suffix != "-shm") {
            let beside = with_suffix(&self.dst, suffix);
            if beside.symlink_metadata().is_ok() {
                let failure = Failure::new(OTHER, "would be taken for a part of DST");
                return Err(failure.about(&beside).hint(IN_USE));
            }
        }
        Ok(())
    }

    fn taken(&self) -> Failure {
        Failure::new(OTHER, "the destination exists").about(&self.dst).hint("--force replaces it")
    }

    /// The directory that DST is in.
    fn parent(&self) -> &Path {
        match self.dst.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }

    /// A directory for the copy while it is not complete.
    fn workplace(&self) -> Result<TempDir, Failure> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".sqlite-tde-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let made = builder.tempdir_in(self.parent());
        let made = made.map_err(|error| Failure::at(self.parent(), &error))?;
        interrupt::remove(made.path())?;
        Ok(made)
    }

    /// Gives the complete copy its name.
    fn publish(&self, copy: &Path) -> Result<(), Failure> {
        sync(&self.src, copy).map_err(|error| Failure::at(copy, &error))?;
        let path = TempPath::try_from_path(copy).map_err(|error| Failure::at(copy, &error))?;
        let renamed = match self.force {
            true => path.persist(&self.dst),
            false => path.persist_noclobber(&self.dst),
        };
        renamed.map_err(|refused| match refused.error.kind() {
            std::io::ErrorKind::AlreadyExists => self.taken(),
            _ => Failure::at(&self.dst, &refused.error),
        })?;
        sync_directory(self.parent()).map_err(|error| Failure::at(self.parent(), &error))
    }
}

/// Copies `source` to `target`, checks the copy, and does `finish` with it before it gets its name.
fn copy(
    ends: &Ends,
    source: &Connection,
    target: OpenOptions,
    what: &str,
    finish: impl FnOnce(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let workplace = ends.workplace()?;
    let file = workplace.path().join("copy.db");
    let uri = target.uri(&file)?;
    progress::while_growing(what, &file, || {
        source.execute("VACUUM INTO ?1", [uri]).map_err(Failure::from)
    })
    .map_err(|failure| match failure.code {
        UNEXPECTED => failure.about(&ends.src),
        _ => failure,
    })?;
    check(source, &file, target)?;
    finish(&file)?;
    ends.publish(&file)
}

/// Verifies the copy. Damage that is in the source as well is only a warning.
fn check(source: &Connection, file: &Path, target: OpenOptions) -> Result<(), Failure> {
    let copy = sqlite_tde::open_with(file, &target.flags(read_only()))?;
    let found = quick_check(&copy)?;
    if found == ["ok"] {
        return Ok(());
    }
    let text = found.join("; ");
    if found == quick_check(source)? {
        say(format!("warning: damage in source and copy: {text}\n"));
        return Ok(());
    }
    Err(Failure::new(OTHER, format!("verification of the copy failed; copy removed: {text}")))
}

fn quick_check(connection: &Connection) -> Result<Vec<String>, Failure> {
    let mut statement = connection.prepare("PRAGMA quick_check")?;
    let lines = statement.query_map([], |row| row.get(0))?;
    Ok(lines.collect::<Result<_, _>>()?)
}

/// A database that can be opened here, or only with a key that is not here, is encrypted.
fn refuse_encrypted(src: &Path) -> Result<(), Failure> {
    if file_len(src)? == 0 {
        return Ok(());
    }
    let plain = OpenOptions::new().flags(read_only());
    match sqlite_tde::open_with(src, &plain) {
        Err(Error::PlaintextRefused) => Ok(()),
        Err(error @ (Error::NotADatabase(_) | Error::Sqlite(_) | Error::Base(_))) => {
            Err(Failure::from(error).about(src))
        }
        _ => Err(Failure::new(UNEXPECTED, "the database is already encrypted").about(src)),
    }
}

/// An encrypted file without pages was cut, or never filled: it is not copied.
fn refuse_empty(source: &Connection) -> Result<(), Failure> {
    match source.tde_status("main")?.pages {
        0 => Err(Failure::new(UNEXPECTED, "the file has no pages: it was cut, or never filled")),
        _ => Ok(()),
    }
}

/// Opens the database to copy and reads its first page, which finds most faults.
fn open_source(src: &Path, options: &OpenOptions) -> Result<Connection, Failure> {
    let options = options.clone().flags(read_only());
    let source = sqlite_tde::open_with(src, &options).map_err(|error| {
        let failure = match error {
            Error::PlaintextRefused => Failure::new(UNEXPECTED, "the database is not encrypted"),
            error => error.into(),
        };
        failure.about(src)
    })?;
    source
        .query_row("PRAGMA schema_version", [], |_| Ok(()))
        .map_err(|error| Failure::from(error).about(src))?;
    Ok(source)
}

/// `VACUUM INTO` takes the page size set on the source's connection.
fn set_page_size(source: &Connection, wanted: Option<u32>) -> Result<(), Failure> {
    let present: u32 = source.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    let size = wanted.unwrap_or(present.max(SMALLEST_PAGE));
    if size != present {
        source.execute_batch(&format!("PRAGMA page_size={size}"))?;
    }
    Ok(())
}

/// Neither writes nor creates.
pub fn read_only() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// The length of a regular file.
pub fn file_len(path: &Path) -> Result<u64, Failure> {
    let metadata = fs::metadata(path).map_err(|error| Failure::at(path, &error))?;
    if !metadata.is_file() {
        return Err(Failure::new(OTHER, "not a file").about(path));
    }
    Ok(metadata.len())
}

/// `path` with `suffix` behind its name, as SQLite names the files of a database.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn same(src: &Path, dst: &Path) -> bool {
    matches!((fs::canonicalize(src), fs::canonicalize(dst)), (Ok(src), Ok(dst)) if src == dst)
}

/// Lets the same people read the copy as the source, as far as the umask lets them read a new file,
/// and puts it on the disk.
fn sync(src: &Path, copy: &Path) -> std::io::Result<()> {
    let file = File::options().read(true).write(true).open(copy)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(src)?.permissions().mode() & 0o777 & !umask();
        file.set_permissions(PermissionsExt::from_mode(mode))?;
    }
    #[cfg(not(unix))]
    let _ = src;
    file.sync_all()
}

/// The process's umask. It can only be read by setting it: no other thread makes files here.
#[cfg(unix)]
fn umask() -> u32 {
    use rustix::process::umask;
    let mask = umask(rustix::fs::Mode::from_raw_mode(0o077));
    umask(mask);
    mask.as_raw_mode()
}

#[cfg(unix)]
fn sync_directory(dir: &Path) -> std::io::Result<()> {
    match File::open(dir) {
        // One that only leads to others: SQLite takes it so, too.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        dir => dir?.sync_all(),
    }
}

/// Windows has no such call.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> std::io::Result<()> {
    Ok(())
}
