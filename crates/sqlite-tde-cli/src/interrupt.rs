//! Ctrl-C, SIGTERM and SIGHUP: what is not complete, which may be plaintext, goes with the process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

use crate::failure::{Failure, OTHER};

static INCOMPLETE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The exit code of a process that is interrupted, as of shells.
const INTERRUPTED: i32 = 130;

/// Removes the directory `dir` if the process is interrupted.
pub fn remove(dir: &Path) -> Result<(), Failure> {
    static HANDLER: Once = Once::new();
    INCOMPLETE.lock().unwrap_or_else(PoisonError::into_inner).push(dir.to_owned());
    let mut set = Ok(());
    HANDLER.call_once(|| set = ctrlc::set_handler(interrupted));
    set.map_err(|error| Failure::new(OTHER, format!("signals cannot be handled: {error}")))
}

fn interrupted() {
    for dir in INCOMPLETE.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // SQLite may be adding a file meanwhile.
        let _ = (0..100).find(|_| std::fs::remove_dir_all(dir).is_ok() || !dir.exists());
    }
    std::process::exit(INTERRUPTED);
}
