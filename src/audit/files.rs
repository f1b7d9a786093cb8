//! The files of a log: their names, the lock, and their durable writes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::chain::{ENDING_LEN, HEAD_LEN, Mac, split};
use crate::error::{Error, FileError, Result};
use crate::process::Deadline;
use crate::process::files::{self, Lock, if_found, open_own};

pub(super) const LOG: &str = "audit.jsonl";
pub(super) const HEAD: &str = "audit.head";
pub(super) const KEY: &str = "audit.key";
const LOCK: &str = "audit.lock";

/// The name of the file that was rotated `number` times; 0 is the one that is written to.
pub(super) fn log_name(number: u32) -> String {
    match number {
        0 => LOG.to_owned(),
        number => format!("audit.{number}.jsonl"),
    }
}

/// The number in a name that [`log_name`] makes.
fn log_number(name: &str) -> Option<u32> {
    if name == LOG {
        return Some(0);
    }
    let number = name.strip_prefix("audit.")?.strip_suffix(".jsonl")?.parse().ok()?;
    (number > 0 && log_name(number) == name).then_some(number)
}

/// The numbers of the files in `dir`, oldest first; none without a directory.
pub(super) fn log_numbers(dir: &Path) -> Result<Vec<u32>> {
    let Some(entries) = if_found(fs::read_dir(dir)).map_err(failed(dir))? else {
        return Ok(Vec::new());
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed(dir))?.file_name();
        numbers.extend(name.to_str().and_then(log_number));
    }
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    Ok(numbers)
}

/// Waits for the lock of `dir`, which is there, to write.
pub(super) fn lock(dir: &Path, time_out: Duration) -> Result<Lock> {
    let path = dir.join(LOCK);
    open_own(&path, OpenOptions::new().write(true).create(true).truncate(false))
        .and_then(|file| files::lock(file, File::try_lock, Deadline::after(time_out)))
        .map_err(failed(&path))
}

/// Waits for the lock of `dir` to read. Before the first write there is none.
pub(super) fn lock_shared(dir: &Path, time_out: Duration) -> Result<Option<Lock>> {
    let path = dir.join(LOCK);
    let file = if_found(open_to_read(&path)).map_err(failed(&path))?;
    let lock = file.map(|file| files::lock(file, File::try_lock_shared, Deadline::after(time_out)));
    lock.transpose().map_err(failed(&path))
}

fn open_to_read(path: &Path) -> io::Result<File> {
    open_own(path, OpenOptions::new().read(true))
}

/// Creates `dir` for its owner alone, if it is not there. It must be one that no other user can
/// write.
pub(super) fn make_dir(dir: &Path) -> Result<()> {
    files::make_dir(dir)
        .and_then(|()| files::check_writers(&fs::metadata(dir)?))
        .map_err(failed(dir))
}

/// Creates or replaces the file `name`, whole and synced, or not at all.
pub(super) fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    files::replace(dir, name, bytes).map_err(failed(&dir.join(name)))?;
    files::sync_dir(dir).map_err(failed(dir))
}

/// Adds one line to the existing log file, whose end is `end`, and syncs it. An incomplete last
/// line gets its line end first.
///
/// # Errors
/// [`Error::Audit`]; a partial line is cut off again if the system allows it.
pub(super) fn append(dir: &Path, end: End, line: &[u8]) -> Result<()> {
    let path = dir.join(LOG);
    let mut file = open_own(&path, OpenOptions::new().append(true)).map_err(failed(&path))?;
    let line_end: &[u8] = if end.whole { b"" } else { b"\n" };
    let written = file.write_all(&[line_end, line].concat()).and_then(|()| file.sync_data());
    written.map_err(|error| {
        // If this fails, too, the next append deals with the rest.
        let _ = file.set_len(end.size);
        failed(&path)(error)
    })
}

/// Begins a new log file with `line`; the one that was there, if any, is rotated away.
pub(super) fn begin(dir: &Path, rotate: bool, line: &[u8]) -> Result<()> {
    if rotate {
        shift(dir)?;
    }
    write_whole(dir, LOG, line)
}

/// Cuts the log file back to `size` bytes, where a line ends, durably.
pub(super) fn cut(dir: &Path, size: u64) -> Result<End> {
    let path = dir.join(LOG);
    let file = open_own(&path, OpenOptions::new().write(true)).map_err(failed(&path))?;
    file.set_len(size).and_then(|()| file.sync_all()).map_err(failed(&path))?;
    Ok(End { size, whole: true, mac: None })
}

/// The text of the head; `None` if it is missing.
pub(super) fn read_head(dir: &Path) -> Result<Option<Vec<u8>>> {
    let path = dir.join(HEAD);
    let Some(file) = if_found(open_to_read(&path)).map_err(failed(&path))? else { return Ok(None) };
    let mut text = Vec::new();
    // One byte more than it may have, to notice that it has more.
    file.take(HEAD_LEN as u64 + 1).read_to_end(&mut text).map_err(failed(&path))?;
    Ok(Some(text))
}

/// Writes the head: in place over one of the right length, at the cost of one sync.
pub(super) fn write_head(dir: &Path, text: &[u8]) -> Result<()> {
    let path = dir.join(HEAD);
    let in_place = |mut file: File| file.write_all(text).and_then(|()| file.sync_data());
    match if_found(open_own(&path, OpenOptions::new().write(true))).map_err(failed(&path))? {
        Some(file) if file.metadata().is_ok_and(|meta| meta.len() == text.len() as u64) => {
            in_place(file).map_err(failed(&path))
        }
        _ => write_whole(dir, HEAD, text),
    }
}

/// The end of the log file.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub size: u64,
    /// Whether the last line has its line end.
    pub whole: bool,
    /// The mac that the last line claims.
    pub mac: Option<Mac>,
}

/// The end of the log file; `None` without a file.
pub(super) fn log_end(dir: &Path) -> Result<Option<End>> {
    let path = dir.join(LOG);
    let Some(mut file) = if_found(open_to_read(&path)).map_err(failed(&path))? else {
        return Ok(None);
    };
    let mut read = || -> io::Result<End> {
        let size = file.metadata()?.len();
        let mut ending = Vec::with_capacity(ENDING_LEN);
        file.seek(SeekFrom::Start(size.saturating_sub(ENDING_LEN as u64)))?;
        Read::by_ref(&mut file).take(ENDING_LEN as u64).read_to_end(&mut ending)?;
        let whole = ending.last().is_none_or(|last| *last == b'\n');
        Ok(End { size, whole, mac: split(&ending).map(|(_, mac)| mac) })
    };
    read().map(Some).map_err(failed(&path))
}

/// Frees the name of the log file: it becomes number 1, number 1 becomes 2, up to the first free
/// number.
fn shift(dir: &Path) -> Result<()> {
    let taken = log_numbers(dir)?;
    let free = (1..).find(|number| !taken.contains(number)).unwrap_or(u32::MAX);
    for number in (0..free).rev() {
        let path = dir.join(log_name(number));
        fs::rename(&path, dir.join(log_name(number + 1))).map_err(failed(&path))?;
    }
    Ok(())
}

/// Removes the files that were rotated more than `keep` times.
pub(super) fn remove_beyond(dir: &Path, keep: u32) -> Result<()> {
    for number in log_numbers(dir)?.into_iter().filter(|number| *number > keep) {
        let path = dir.join(log_name(number));
        fs::remove_file(&path).map_err(failed(&path))?;
    }
    Ok(())
}

/// A log file opened to read, and how long it was then.
#[derive(Debug)]
pub(super) struct LogFile {
    pub name: String,
    pub file: io::Take<File>,
}

/// The files and the head of a log at one moment.
pub(super) struct Snapshot {
    /// Oldest first.
    pub files: Vec<LogFile>,
    pub head: Option<Vec<u8>>,
}

/// Opens everything to read. The caller holds a lock; later appends are not seen.
pub(super) fn snapshot(dir: &Path) -> Result<Snapshot> {
    let open = |number| -> Result<LogFile> {
        let name = log_name(number);
        let path = dir.join(&name);
        let file = open_to_read(&path).map_err(failed(&path))?;
        let size = file.metadata().map_err(failed(&path))?.len();
        Ok(LogFile { name, file: file.take(size) })
    };
    let files = log_numbers(dir)?.into_iter().map(open).collect::<Result<_>>()?;
    Ok(Snapshot { files, head: read_head(dir)? })
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path: PathBuf = path.to_owned();
    move |error| Error::Audit(FileError::of(&path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_names_are_log_files() {
        for (name, number) in [
            ("audit.jsonl", Some(0)),
            ("audit.1.jsonl", Some(1)),
            ("audit.10.jsonl", Some(10)),
            ("audit.0.jsonl", None),
            ("audit.01.jsonl", None),
            ("audit.+1.jsonl", None),
            ("audit.-1.jsonl", None),
            ("audit.1.jsonl.new", None),
            ("audit.jsonl.new", None),
            ("audit.head", None),
        ] {
            assert_eq!(log_number(name), number, "{name}");
        }
    }

    #[test]
    fn shifting_fills_a_gap_and_keeps_the_order() {
        let dir = tempfile::tempdir().unwrap();
        let content = |number| fs::read_to_string(dir.path().join(log_name(number))).unwrap();
        for number in [0, 1, 3] {
            fs::write(dir.path().join(log_name(number)), number.to_string()).unwrap();
        }
        shift(dir.path()).unwrap();
        assert_eq!(log_numbers(dir.path()).unwrap(), [3, 2, 1]);
        assert_eq!([1, 2, 3].map(content), ["0", "1", "3"]);
        remove_beyond(dir.path(), 2).unwrap();
        assert_eq!(log_numbers(dir.path()).unwrap(), [2, 1]);
    }
}
