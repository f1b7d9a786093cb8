//! Reads a log from its first line to its last and finds the first break of the chain.

use std::io::{BufRead, BufReader, Read};

use super::chain::{Head, Keys, Link, MAX_LINE, split, unhex};
use super::files::{self, HEAD, LOG, LogFile, Snapshot, failed};
use super::{AuditOptions, read_keys};
use crate::error::Result;

/// A finding of [`verify`] and its place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The file's name in the log's directory.
    pub file: String,
    /// Line number, from 1; 0 for the file as a whole.
    pub line: u64,
    /// The finding, in words.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self { file, line: 0, what } => write!(f, "{file}: {what}"),
            Self { file, line, what } => write!(f, "{file}, line {line}: {what}"),
        }
    }
}

/// Result of [`verify`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Verdict {
    /// Number of log files.
    pub files: usize,
    /// Number of authentic lines, from the first on.
    pub lines: u64,
    /// The sequence number of the last of these.
    pub last: u64,
    /// Remains of interrupted appends, which are harmless.
    pub notes: Vec<Finding>,
    /// The first finding that points to tampering.
    pub problem: Option<Finding>,
}

/// Checks every line, the order of lines and files, and that none is missing at either end.
///
/// Waits only for an append in progress, and blocks no append while it reads.
///
/// # Errors
/// [`crate::Error::Audit`] if the key or a file cannot be read. Faults *in* them are
/// [`Verdict::problem`].
pub fn verify(options: &AuditOptions) -> Result<Verdict> {
    let keys = read_keys(options)?;
    let Snapshot { files, head } = {
        let _lock = files::lock_shared(&options.dir, options.time_out)?;
        files::snapshot(&options.dir)?
    };
    let head = HeadState::of(&keys, head.as_deref());
    let mut walk = Walk::new(&keys, head);
    walk.files(options, files)?;
    let problem = walk.problem();
    let Walk { files, lines, link, notes, .. } = walk;
    Ok(Verdict { files, lines, last: link.map_or(0, |link| link.seq), notes, problem })
}

/// State of the head file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadState {
    Missing,
    Damaged,
    Good(Head),
}

impl HeadState {
    pub fn of(keys: &Keys, text: Option<&[u8]>) -> Self {
        match text.map(|text| keys.decode_head(text)) {
            None => Self::Missing,
            Some(None) => Self::Damaged,
            Some(Some(head)) => Self::Good(head),
        }
    }
}

/// Bytes at the end of the log file that an interrupted append left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Torn {
    /// Their offset.
    pub at: u64,
    pub len: usize,
}

/// One reading of all lines.
pub(super) struct Walk<'k> {
    keys: &'k Keys,
    head: HeadState,
    /// The last authentic line.
    pub link: Option<Link>,
    pub files: usize,
    pub lines: u64,
    pub notes: Vec<Finding>,
    /// The break of the chain; nothing behind it was read.
    pub broken: Option<Finding>,
    pub torn: Option<Torn>,
    /// The first line marked `suspect`.
    suspect: Option<Finding>,
    /// Whether the head's line was met, and with the head's mac.
    fits_head: bool,
    /// The oldest file's name.
    first: String,
    /// The last file's name, and how many lines of it were read.
    end: (String, u64),
}

/// The fields of a line that form the chain.
#[derive(serde::Deserialize)]
struct Fields {
    seq: u64,
    prev: Option<String>,
    recovered: Option<String>,
    suspect: Option<String>,
}

impl<'k> Walk<'k> {
    pub fn new(keys: &'k Keys, head: HeadState) -> Self {
        let fits_head = matches!(head, HeadState::Good(Head { link: Link::START, .. }));
        Self {
            keys,
            head,
            link: None,
            files: 0,
            lines: 0,
            notes: Vec::new(),
            broken: None,
            torn: None,
            suspect: None,
            fits_head,
            first: LOG.to_owned(),
            end: (LOG.to_owned(), 0),
        }
    }

    pub fn files(&mut self, options: &AuditOptions, files: Vec<LogFile>) -> Result<()> {
        self.files = files.len();
        if let Some(file) = files.first() {
            self.first.clone_from(&file.name);
        }
        for LogFile { name, file } in files {
            if self.broken.is_none() {
                self.end = (name.clone(), 0);
                let path = options.dir.join(&name);
                self.file(&name, BufReader::new(file)).map_err(failed(&path))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &str, mut reader: impl BufRead) -> std::io::Result<()> {
        let (mut line, mut at, mut number) = (Vec::new(), 0, 0);
        loop {
            line.clear();
            reader.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                // A file begins with a line, written whole.
                if number == 0 {
                    self.broken = Some(finding(name, 1, "its lines were removed".to_owned()));
                }
                return Ok(());
            }
            number += 1;
            if let Err(what) = self.line(name, number, &line) {
                if name == LOG && is_torn(&line) && reader.fill_buf()?.is_empty() {
                    self.torn = Some(Torn { at, len: line.len() });
                    let what = format!("{} bytes of an append that was interrupted", line.len());
                    self.notes.push(finding(name, number, what));
                } else {
                    self.broken = Some(finding(name, number, what));
                }
                return Ok(());
            }
            at += line.len() as u64;
            self.end.1 = number;
        }
    }

    /// Takes the next line, number `number` of its file, or returns its fault.
    fn line(&mut self, name: &str, number: u64, line: &[u8]) -> Result<(), String> {
        let fields = fields(line).ok_or("this is not a whole entry")?;
        let first = number == 1;
        if first != fields.prev.is_some() {
            return Err(match first {
                true => "the lines before this one are missing in this file".to_owned(),
                false => "this line was the first one of another file".to_owned(),
            });
        }
        let previous = match self.link {
            Some(link) => Some(link),
            // After a rotation removed older files, the chain begins with the line's own `prev`.
            None => claimed(&fields),
        };
        let previous = previous.ok_or("the mac of the line before is misspelled")?;
        let (expected, found) = (previous.seq + 1, fields.seq);
        let Some(mac) = self.keys.check(&previous.mac, line) else {
            return Err(self.misfit(expected, found));
        };
        self.accept(name, number, Link { seq: found, mac }, fields);
        Ok(())
    }

    fn misfit(&self, expected: u64, found: u64) -> String {
        if expected != found {
            return format!(
                "entry {found} where entry {expected} should be: entries were removed, moved, \
                 added or changed"
            );
        }
        match (self.head, self.lines) {
            (HeadState::Good(_), _) | (_, 1..) => {
                format!("entry {found} was changed, or the line before it was")
            }
            _ => "neither this line nor the head fits the key: they were changed, or the key is \
                  another one"
                .to_owned(),
        }
    }

    fn accept(&mut self, name: &str, number: u64, link: Link, fields: Fields) {
        self.link = Some(link);
        self.lines += 1;
        if let HeadState::Good(head) = self.head
            && head.link.seq == link.seq
        {
            self.fits_head = head.link == link;
        }
        if let Some(what) = fields.recovered {
            self.notes.push(finding(name, number, what));
        }
        if let Some(what) = fields.suspect {
            self.suspect.get_or_insert(finding(name, number, what));
        }
    }

    /// The first problem; that of the head comes last.
    pub fn problem(&self) -> Option<Finding> {
        self.suspect.clone().or_else(|| self.broken.clone()).or_else(|| self.head_problem())
    }

    fn head_problem(&self) -> Option<Finding> {
        let whole = |file: &str, what: &str| Some(finding(file, 0, what.to_owned()));
        let head = match self.head {
            HeadState::Missing if self.files == 0 => return whole(HEAD, "there is no audit log"),
            HeadState::Missing => {
                return whole(HEAD, "it is missing: the last entries may be missing, too");
            }
            HeadState::Damaged => {
                return whole(HEAD, "it was changed, or the key is another one");
            }
            HeadState::Good(head) => head,
        };
        let (last, expected) = (self.last(), head.link.seq);
        let (name, line) = &self.end;
        if last < expected {
            let what = format!("the log ends after entry {last}; the head says {expected}");
            return Some(finding(name, line + 1, what));
        }
        if last > expected + 1 {
            let what = format!("an older one: it says {expected}, and the log has entry {last}");
            return whole(HEAD, &what);
        }
        if !self.fits_head {
            let what = format!("the head has another entry {expected}");
            return Some(finding(name, *line, what));
        }
        if (self.files as u64) < head.files {
            let missing = head.files - self.files as u64;
            let what = format!("{missing} files before this one are missing");
            return Some(finding(&self.first, 1, what));
        }
        None
    }

    /// The sequence number of the last authentic line.
    pub fn last(&self) -> u64 {
        self.link.map_or(0, |link| link.seq)
    }

    /// Whether the lines go on, without a break, from the one that `head` names, and no file is
    /// missing.
    pub fn goes_on_from(&self, head: &Head) -> bool {
        let is_whole = self.files as u64 >= head.files && self.broken.is_none();
        is_whole && self.last() >= head.link.seq && self.fits_head
    }
}

/// The line that the first line of the oldest file claims to follow.
fn claimed(fields: &Fields) -> Option<Link> {
    let mac = unhex(fields.prev.as_ref()?.as_bytes())?;
    Some(Link { seq: fields.seq.checked_sub(1)?, mac })
}

fn fields(line: &[u8]) -> Option<Fields> {
    let (body, _) = split(line)?;
    let object = [body, b"}"].concat();
    serde_json::from_slice(&object).ok()
}

/// Whether these bytes can be an interrupted write: without a line end, or with blocks that were
/// never written, which read as zeros. A line has no zeros.
fn is_torn(bytes: &[u8]) -> bool {
    bytes.len() <= MAX_LINE && (!bytes.ends_with(b"\n") || bytes.contains(&0))
}

fn finding(file: &str, line: u64, what: String) -> Finding {
    Finding { file: file.to_owned(), line, what }
}
