//! The small files of the library: opening, locking and replacing them.
//!
//! An open waits for nothing and gives a regular file. Anything else in its place is an error that
//! says what it is.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
#[cfg(unix)]
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use super::Deadline;

/// The longest pause between two attempts at a lock.
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// Opens a file to read, also through a symbolic link.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let opened = options.read(true).open(path);
    if opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) && is_dangling(path)
    {
        return Err(io::Error::other("a symbolic link on the way leads nowhere"));
    }
    regular(opened, || fs::metadata(path))
}

/// Opens a file in a directory of the library, as `options` say. A new one is for its owner alone.
/// A symbolic link is refused: it leads out of the directory, and is lost where a file is replaced.
pub(crate) fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    options.mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW);
    regular(options.open(path), || fs::symlink_metadata(path))
}

/// What was `opened`, if it is a regular file. Some others cannot even be opened, so that `at_path`
/// says what is there.
fn regular(
    opened: io::Result<File>,
    at_path: impl FnOnce() -> io::Result<Metadata>,
) -> io::Result<File> {
    let found = opened.as_ref().map_or_else(|_| at_path(), File::metadata);
    let kind = match found {
        Ok(found) if !found.is_file() => found.file_type(),
        _ => return opened,
    };
    let mut words = "not a regular file";
    if kind.is_dir() {
        words = "a directory, not a regular file";
    } else if kind.is_symlink() {
        words = "a symbolic link, not a regular file";
    }
    #[cfg(unix)]
    if kind.is_fifo() {
        words = "a FIFO, not a regular file";
    } else if kind.is_socket() {
        words = "a socket, not a regular file";
    } else if kind.is_block_device() || kind.is_char_device() {
        words = "a device, not a regular file";
    }
    Err(io::Error::other(format!("this is {words}")))
}

/// Whether a symbolic link on the way to `path` leads nowhere, as to a file system that is not
/// mounted: then nothing says that there is no such file.
fn is_dangling(path: &Path) -> bool {
    let leads_nowhere = |part: &Path| {
        let is_link = fs::symlink_metadata(part).is_ok_and(|found| found.is_symlink());
        is_link && fs::metadata(part).is_err()
    };
    path.ancestors().any(leads_nowhere)
}

/// `None` where there is no such file.
pub(crate) fn if_found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// The owner of a file, and the user of the process, unless they are the same or root is the owner.
#[cfg(unix)]
pub(crate) fn other_owner(found: &Metadata) -> Option<(u32, u32)> {
    let (owner, user) = (found.uid(), super::effective_user());
    (owner != 0 && owner != user).then_some((owner, user))
}

/// Elsewhere the owner is the platform's business.
#[cfg(not(unix))]
pub(crate) fn other_owner(_: &Metadata) -> Option<(u32, u32)> {
    None
}

/// Refuses a file or directory that anybody but the user and root can write.
pub(crate) fn check_writers(found: &Metadata) -> io::Result<()> {
    let refused = |words| Err(io::Error::new(ErrorKind::PermissionDenied, words));
    #[cfg(unix)]
    if found.mode() & 0o022 != 0 {
        return refused(format!(
            "it has mode {:03o}, which lets others write it: `chmod go-w` it, and see what it says",
            found.mode() & 0o777
        ));
    }
    match other_owner(found) {
        Some((owner, user)) => refused(format!(
            "it belongs to user {owner}, neither to root nor to user {user} of this process"
        )),
        None => Ok(()),
    }
}

/// A lock among threads and processes.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave it locked while a forked child has the descriptor too.
        let _ = self.0.unlock();
    }
}

/// Locks `file` with `try_lock`, in which others may be ahead until `deadline`.
pub(crate) fn lock(
    file: File,
    try_lock: impl Fn(&File) -> Result<(), TryLockError>,
    deadline: Deadline,
) -> io::Result<Lock> {
    let mut pause = Duration::from_micros(50);
    loop {
        match try_lock(&file) {
            Ok(()) => return Ok(Lock(file)),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if deadline.is_over() => {
                let words = "it stays locked by another process, or another thread of this one";
                return Err(io::Error::new(ErrorKind::TimedOut, words));
            }
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(deadline.time_left().map_or(pause, |left| left.min(pause)));
                pause = PAUSE_MAX.min(pause * 2);
            }
        }
    }
}

/// Creates `dir` for its owner alone, if it is not there, durably.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    builder.mode(0o700);
    builder.recursive(true).create(dir)?;
    missing.into_iter().filter_map(Path::parent).try_for_each(sync_dir)
}

/// Makes the names in `dir` survive a power loss.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    // Windows has no such call.
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(dir).and_then(|dir| dir.sync_all()) {
        // File systems that do not sync directories, or that have nothing to sync, and directories
        // that only lead to others: SQLite takes them so, too.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::InvalidInput
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Creates or replaces the file `name` in `dir`, whole and synced, or not at all. The name itself
/// is not synced. The caller holds a lock of `dir`.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    // One name for all writers, so that the next one replaces the file of a killed one.
    let new = dir.join(format!("{name}.new"));
    if_found(fs::remove_file(&new))?;
    let written = open_own(&new, OpenOptions::new().write(true).create_new(true))
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, dir.join(name)));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}
