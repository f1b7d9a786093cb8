//! The process that the library is a guest in: the values read from it, our threads in it, its
//! forks.
//!
//! | file | what |
//! |---|---|
//! | this one | all reads of process state; no other module reads it |
//! | `environment.rs` | the environment, and whether it may be believed |
//! | `threads.rs` | threads of ours |
//! | `pool.rs` | the threads that foreign code runs on |
//! | `deadline.rs` | the end of a wait for foreign code |
//! | `files.rs` | the library's own small files |
//! | `forks.rs` | telling a forked child from its parent |
//! | `time.rs` | the time, and its forms |
//!
//! The working directory and the program's name are read once, at the first use: both may change
//! under a library that was loaded long ago.

mod deadline;
mod environment;
pub(crate) mod files;
pub(crate) mod forks;
pub(crate) mod pool;
pub(crate) mod threads;
pub(crate) mod time;

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

pub use deadline::Deadline;
pub(crate) use environment::{data_dir, environment, read_environment, variable};

/// The value behind `mutex`, also after a thread panicked while it held the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of this process. A forked child has its own.
pub(crate) fn id() -> u32 {
    std::process::id()
}

/// `path` from the working directory that the process had at the first call.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    static DIRECTORY: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::current_dir().ok());
    match &*DIRECTORY {
        Some(directory) if path.is_relative() && !path.as_os_str().is_empty() => {
            let joined = directory.join(path);
            std::path::absolute(&joined).unwrap_or(joined)
        }
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// The name by which the process was started, or else that of its file.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let started = std::env::args_os().next().map(PathBuf::from);
        started.or_else(|| std::env::current_exe().ok()).unwrap_or_default()
    });
    &PROGRAM
}

/// The user who runs the process; `None` on platforms without such numbers.
pub(crate) fn user() -> Option<u32> {
    #[cfg(unix)]
    return Some(rustix::process::getuid().as_raw());
    #[cfg(not(unix))]
    None
}

/// The user whose rights the process has.
#[cfg(unix)]
pub(crate) fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_is_taken_from_the_first_working_directory() {
        let first = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("a/b")), first.join("a/b"));
        assert_eq!(absolute(Path::new("/a/b")), Path::new("/a/b"));
    }
}
