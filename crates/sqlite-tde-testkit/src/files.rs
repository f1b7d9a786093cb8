//! Files beside a database, and directories of them.

use std::fs;
use std::path::{Path, PathBuf};

/// The file whose name is that of `path` and `suffix`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The files in `dir` by name, with what they hold.
pub fn read_dir(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

/// Copies the files in `from` to the new directory `to`.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Sets the permissions of a file, where there are any.
pub fn set_mode(path: &Path, mode: u32) {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    #[cfg(not(unix))]
    let _ = (path, mode);
}

/// Whether any file under `dir` holds `marker`.
pub fn found_in_files(dir: &Path, marker: &[u8]) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if let Some(found) = found_in_files(&path, marker) {
                return Some(found);
            }
        } else if let Ok(bytes) = fs::read(&path)
            && bytes.windows(marker.len()).any(|window| window == marker)
        {
            return Some(path);
        }
    }
    None
}
