//! Reads a log for people: selects entries, does not authenticate them.

use std::io::{BufRead, BufReader, Read};
use std::time::SystemTime;

use jiff::Timestamp;

use super::chain::MAX_LINE;
use super::files::{self, LOG, LogFile};
use super::{AuditOptions, Entry, EventKind};
use crate::error::{Error, FileError, Result};

/// A filter for entries; each condition that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Not before.
    pub since: Option<SystemTime>,
    /// Not after.
    pub until: Option<SystemTime>,
    /// The kind of event.
    pub kind: Option<EventKind>,
    /// The database: its file id in hex, its whole path, or the path's last part.
    pub db: Option<String>,
    /// The protector's name.
    pub protector: Option<String>,
}

impl Filter {
    /// Whether `entry` is wanted. An entry with an unreadable time is, at any time.
    #[must_use]
    pub fn fits(&self, entry: &Entry) -> bool {
        let time = entry.time.parse::<Timestamp>().and_then(SystemTime::try_from).ok();
        let within = |time| {
            self.since.is_none_or(|since| time >= since)
                && self.until.is_none_or(|until| time <= until)
        };
        time.is_none_or(within)
            && self.kind.is_none_or(|kind| entry.kind == kind.name())
            && self.db.as_ref().is_none_or(|db| is_of(entry, db))
            && (self.protector.is_none() || entry.protector == self.protector)
    }
}

fn is_of(entry: &Entry, db: &str) -> bool {
    let last_part = |path: &String| path.rsplit(['/', '\\']).next() == Some(db);
    entry.db.as_deref() == Some(db)
        || entry.path.as_ref().is_some_and(|path| path == db || last_part(path))
}

/// The entries of a log as they were when [`entries`] was called, oldest first.
#[derive(Debug)]
pub struct Entries {
    files: std::vec::IntoIter<LogFile>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    name: String,
    lines: BufReader<std::io::Take<std::fs::File>>,
    number: u64,
    /// An error of the disk would only be met again.
    ended: bool,
}

/// Reads the entries, without the key and so without checking them: that is [`super::verify()`].
///
/// A line that is none is an [`Error::Audit`] that names it, after which the next one follows; the
/// torn end of the last file is left out.
///
/// # Errors
/// [`Error::Audit`] if a file cannot be read.
pub fn entries(options: &AuditOptions) -> Result<Entries> {
    let _lock = files::lock_shared(&options.dir, options.time_out)?;
    let files = files::snapshot(&options.dir)?.files;
    Ok(Entries { files: files.into_iter(), current: None })
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.current.as_mut().and_then(Current::next) {
                return Some(entry);
            }
            let LogFile { name, file } = self.files.next()?;
            self.current =
                Some(Current { name, lines: BufReader::new(file), number: 0, ended: false });
        }
    }
}

impl Current {
    fn next(&mut self) -> Option<Result<Entry>> {
        if self.ended {
            return None;
        }
        let mut line = Vec::new();
        self.number += 1;
        let read = self.lines.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line);
        let torn = self.name == LOG && !line.ends_with(b"\n") && line.len() < MAX_LINE;
        let fault = match read {
            Ok(0) => return None,
            Ok(_) if torn => return None,
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(entry) => return Some(Ok(entry)),
                Err(_) => FileError::at(self.name.as_ref(), "this is not an entry"),
            },
            Err(error) => {
                self.ended = true;
                FileError::of(self.name.as_ref(), error)
            }
        };
        Some(Err(Error::Audit(fault.line(self.number))))
    }
}
