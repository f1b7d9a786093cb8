//! The keystore's file on disk: finding, reading, replacing and locking it.
//!
//! Invariants:
//! 1. `keystore.json` is only ever replaced whole, by renaming a synced file over it. Readers take
//!    no lock and see the old keys or the new ones.
//! 2. Its writer holds `keystore.lock`, from before reading to after the last sync.
//! 3. Text that could not be read back is never written.
//! 4. A file or directory that others may read, or that is another user's, is not used; nor is a
//!    symbolic link.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::format::{damaged, decode, encode};
use super::store::Store;
use crate::process::files::{self, if_found};
use crate::provider::source::check_mode;
use crate::provider::{Deadline, ProviderError};

type Result<T> = std::result::Result<T, ProviderError>;

const NAME: &str = "keystore.json";
const LOCK_NAME: &str = "keystore.lock";
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How long a change waits for the lock where no caller has a deadline.
const LOCK_TIME: Duration = Duration::from_secs(10);

/// The file is read into memory whole; this is some 80,000 key versions.
const MAX_LEN: u64 = 16 << 20;

/// The path of the file in the keystore directory `dir`.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// The text of the file in the directory `dir`; `None` before its creation. Creates nothing.
///
/// # Errors
/// [`ProviderError::LoosePermissions`], [`ProviderError::Damaged`] if it is far too long, or
/// [`ProviderError::Unreachable`] for other errors of the file system.
pub(super) fn read(dir: &Path) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let path = path(dir);
    let Some(dir_meta) = if_found(fs::metadata(dir)).map_err(unreachable(dir))? else {
        return Ok(None);
    };
    check_mode(dir, &dir_meta, 0o077, DIR_MODE)?;
    let found = if_found(files::open_own(&path, OpenOptions::new().read(true)));
    let Some(mut file) = found.map_err(unreachable(&path))? else {
        return Ok(None);
    };
    let meta = file.metadata().map_err(unreachable(&path))?;
    check_mode(&path, &meta, 0o077, FILE_MODE)?;
    let mut text = buffer(&path, meta.len())?;
    file.read_exact(&mut text).map_err(unreachable(&path))?;
    Ok(Some(text))
}

fn buffer(path: &Path, len: u64) -> Result<Zeroizing<Vec<u8>>> {
    match usize::try_from(len) {
        Ok(size) if len <= MAX_LEN => Ok(Zeroizing::new(vec![0; size])),
        _ => Err(damaged(path)),
    }
}

/// Replaces the file in `dir`. The caller holds [`lock`].
///
/// # Errors
/// [`ProviderError::Unreachable`]. The old file is in place then, unless the very last sync failed:
/// then the new one is, and a power loss may undo it.
pub(super) fn write(dir: &Path, store: &Store) -> Result<()> {
    let path = path(dir);
    let text = encode(store).map_err(io::Error::from).map_err(unreachable(&path))?;
    if text.len() as u64 > MAX_LEN {
        return Err(unreachable(&path)(ErrorKind::FileTooLarge.into()));
    }
    decode(&path, &text)?.verify(&path, &text, store.unlocked.clone())?;
    files::replace(dir, NAME, &text).map_err(unreachable(&path))?;
    sync_dir(dir)
}

/// Makes the names in `dir` survive a power loss.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    files::sync_dir(dir).map_err(unreachable(dir))
}

/// Waits for the lock of `dir`, which it creates if missing, a little less long than the caller
/// waits: so the caller learns which file is locked.
///
/// # Errors
/// [`ProviderError::LoosePermissions`] or [`ProviderError::OtherOwner`] of the directory, or
/// [`ProviderError::Unreachable`].
pub(super) fn lock(dir: &Path, deadline: Deadline) -> Result<files::Lock> {
    make_dir(dir)?;
    let path = dir.join(LOCK_NAME);
    let deadline = Deadline::after(deadline.time_left().unwrap_or(LOCK_TIME).mul_f64(0.9));
    files::open_own(&path, OpenOptions::new().write(true).create(true).truncate(false))
        .and_then(|file| files::lock(file, File::try_lock, deadline))
        .map_err(unreachable(&path))
}

fn make_dir(dir: &Path) -> Result<()> {
    files::make_dir(dir).map_err(unreachable(dir))?;
    check_mode(dir, &fs::metadata(dir).map_err(unreachable(dir))?, 0o077, DIR_MODE)
}

fn unreachable(path: &Path) -> impl FnOnce(io::Error) -> ProviderError {
    move |error| ProviderError::unreachable(format!("keystore file {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::sample;
    use super::*;

    const NEW_NAME: &str = "keystore.json.new";

    fn home() -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("home");
        (parent, dir)
    }

    #[test]
    fn what_would_not_read_back_is_not_written() {
        let (_parent, dir) = home();
        let _lock = lock(&dir, Deadline::NEVER).unwrap();
        let mut store = sample();
        store.keys[1].name = "default".into();
        assert!(matches!(write(&dir, &store), Err(ProviderError::Damaged(_))));
        assert!(!path(&dir).exists());
    }

    #[test]
    fn a_failed_write_changes_nothing_and_a_killed_one_leaves_nothing() {
        let (_parent, dir) = home();
        let _lock = lock(&dir, Deadline::NEVER).unwrap();
        write(&dir, &sample()).unwrap();
        let before = fs::read(path(&dir)).unwrap();
        fs::create_dir(dir.join(NEW_NAME)).unwrap();
        assert!(matches!(write(&dir, &Store::default()), Err(ProviderError::Unreachable(_))));
        assert_eq!(fs::read(path(&dir)).unwrap(), before);

        fs::remove_dir(dir.join(NEW_NAME)).unwrap();
        fs::write(dir.join(NEW_NAME), b"half of a").unwrap();
        write(&dir, &Store::default()).unwrap();
        assert!(!dir.join(NEW_NAME).exists());
        let text = read(&dir).unwrap().unwrap();
        assert_eq!(text, encode(&Store::default()).unwrap());
    }

    #[test]
    fn what_the_file_system_says_is_unreachable() {
        let (parent, dir) = home();
        make_dir(&path(&dir)).unwrap();
        fs::write(parent.path().join("file"), b"").unwrap();
        for (what, dir) in [
            ("a directory for a file", dir.clone()),
            ("a file for a directory", parent.path().join("file/home")),
        ] {
            assert!(matches!(read(&dir), Err(ProviderError::Unreachable(_))), "{what}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn permissions_of_others_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (_parent, dir) = home();
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        drop(lock(&dir, Deadline::NEVER).unwrap());
        write(&dir, &sample()).unwrap();
        assert_eq!((mode(&dir), mode(&path(&dir))), (0o700, 0o600));
        for (dir_mode, file_mode, loose) in [
            (0o700, 0o600, None),
            (0o700, 0o400, None),
            (0o700, 0o700, None),
            (0o700, 0o640, Some((0o640, 0o600))),
            (0o700, 0o602, Some((0o602, 0o600))),
            (0o700, 0o601, Some((0o601, 0o600))),
            (0o710, 0o600, Some((0o710, 0o700))),
            (0o755, 0o600, Some((0o755, 0o700))),
            (0o701, 0o644, Some((0o701, 0o700))),
        ] {
            set(&dir, dir_mode);
            set(&path(&dir), file_mode);
            let found = match read(&dir) {
                Err(ProviderError::LoosePermissions { mode, expected, .. }) => {
                    Some((mode, expected))
                }
                other => other.map(|_| None).unwrap(),
            };
            assert_eq!(found, loose, "directory {dir_mode:o}, file {file_mode:o}");
            assert_eq!(
                lock(&dir, Deadline::NEVER).is_err(),
                dir_mode != 0o700,
                "lock in {dir_mode:o}"
            );
        }
    }
}
