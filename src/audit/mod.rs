//! The audit log: one line of JSON for each event of keys and databases, in a chain that only the
//! holder of the audit key can extend. Changes by anyone else are detected.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! use sqlite_tde::audit::{AuditLog, AuditOptions, Event, EventKind, entries, verify};
//!
//! let options = AuditOptions::at(dir.path().join("audit"));
//! let log = AuditLog::open(options.clone())?; // for `Options::audit`, or to record in
//! log.record(&Event::new(EventKind::Export))?;
//! assert_eq!(verify(&options)?.problem, None);
//! assert_eq!(entries(&options)?.count(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```text
//! audit.2.jsonl   audit.1.jsonl   audit.jsonl           audit.head
//! +-----------+   +-----------+   +-----------------+   +----------------------------+
//! | 1 prev=0  |   | 4 prev=m3 |   | 7 prev=m6    m7 |   | last entry: 9, m9; 3 files |
//! | 2         |-->| 5         |-->| 8            m8 |   +----------------------------+
//! | 3      m3 |   | 6      m6 |   | 9            m9 |<--- synced first; then the head
//! +-----------+   +-----------+   +-----------------+
//!
//! a line:  {"seq":9,"time":"..","kind":"open",..   ,"mac":"   m9 in hex   "}   LF
//!          |<------------- body -------------->|
//! m9 = HMAC-SHA-256(line key, m8 || body)                      m0 = 32 zero bytes
//! ```
//!
//! `chain.rs` has the bytes. Invariants:
//!
//! 1. A writer holds `audit.lock`, from before reading the head to after the last sync.
//! 2. A line is synced before the head that names it, and the head before [`AuditLog::record`]
//!    answers. So the head is the last line, or after a crash the line before the last.
//! 3. Lines up to the head are never cut off, and a line that follows a head with lines missing
//!    behind it takes the number and the mac after the *head's*: the gap stays visible.
//! 4. A file begins with a line, which was written whole beside it and renamed. So only the end of
//!    `audit.jsonl` can be torn, by one append.
//!
//! The next append after a crash or a forgery:
//!
//! | found | done | `verify` |
//! |---|---|---|
//! | whole lines behind the head's that fit the chain | goes on behind them | clean |
//! | behind them the torn rest of one append | cut off; the new line says `recovered` | a note |
//! | more than one whole line behind it | as above; the new line says `suspect` | a problem |
//! | lines cut off, changed, moved, added by others | goes on after the head | a problem there |
//! | no line in the newest file | goes on after the head; the new line says `suspect` | a problem |
//! | head missing or changed | goes on behind the lines; the new line says `suspect` | a problem |
//! | no head and no line that fits the key | [`crate::Error::Audit`] | a problem |
//!
//! A replay of the log *with* its head, or the deletion of both, is not detected: keep a copy of
//! the head, or its number, elsewhere. The holder of the key can write anything: keep that
//! elsewhere, too. One key serves one log.

mod chain;
mod event;
mod files;
mod show;
mod verify;

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use zeroize::Zeroizing;

pub use event::{Entry, Event, EventKind};
pub use show::{Entries, Filter, entries};
pub use verify::{Finding, Verdict, verify};

use self::chain::{Head, Keys, Link, Mac};
use self::files::End;
use self::verify::{HeadState, Torn, Walk};
use crate::error::{Error, FileError, Result};
use crate::process;
use crate::process::files::Lock;
use crate::provider::SecretSource;
use crate::secret::{BASE64_LEN, KEY_LEN, Secret};

/// The directory of a log, its key, and its maximum size.
#[derive(Debug, Clone)]
pub struct AuditOptions {
    /// The directory of its files.
    pub dir: PathBuf,
    /// Source of its key: base64 of 32 bytes. Without one it is `audit.key` in `dir`, which the
    /// first use creates.
    pub key: Option<SecretSource>,
    /// A file that would grow beyond this is rotated.
    pub max_bytes: u64,
    /// How many rotated files are kept.
    pub keep: u32,
    /// How long a writer or reader waits where another process has the log locked.
    pub time_out: Duration,
}

impl AuditOptions {
    /// A log in `dir`, with its key there, of 11 files of up to 10 MiB. A lock is waited for ten
    /// seconds.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let time_out = Duration::from_secs(10);
        Self { dir: dir.into(), key: None, max_bytes: 10 << 20, keep: 10, time_out }
    }
}

/// An audit log to record in. Threads and processes may share one value or have their own.
pub struct AuditLog {
    options: AuditOptions,
    keys: Keys,
    program: String,
    /// When its lock was last waited for in vain.
    stuck: Mutex<Option<Instant>>,
}

/// Two are the same that record in the same directory, with a key from the same source, and keep
/// and wait alike.
impl PartialEq for AuditLog {
    fn eq(&self, other: &Self) -> bool {
        let parts = |log: &Self| {
            let AuditOptions { dir, key, max_bytes, keep, time_out } = log.options.clone();
            (dir, key.map(|key| key.origin()), max_bytes, keep, time_out)
        };
        parts(self) == parts(other)
    }
}

impl Eq for AuditLog {}

impl std::fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AuditOptions { dir, key, max_bytes, keep, time_out } = &self.options;
        write!(f, "AuditLog({}", dir.display())?;
        if let Some(key) = key {
            write!(f, ", key from {}", key.origin())?;
        }
        write!(f, ", {max_bytes} bytes, {keep} kept, {time_out:?})")
    }
}

/// The starting point of an append.
struct Place {
    /// The line to follow.
    link: Link,
    /// Minimum number of files.
    files: u64,
    /// The end of the log file; `None` without a file.
    end: Option<End>,
    /// The torn part, cut off first.
    torn: Option<Torn>,
    recovered: Option<String>,
    suspect: Option<String>,
    /// The head names an earlier line.
    behind: bool,
}

impl AuditLog {
    /// Opens the log, which the first use creates: the directory, for its owner alone, the key if
    /// none was named, and an empty head.
    ///
    /// # Errors
    /// [`Error::Audit`] if one of them cannot be created or read, if another user can write the
    /// directory or read the key file, or owns one of them, if another process has the log locked,
    /// or if the key is missing or not the one of this log.
    pub fn open(options: AuditOptions) -> Result<Self> {
        let mut options = options;
        options.dir = process::absolute(&options.dir);
        files::make_dir(&options.dir)?;
        // A named key may be asked for: nobody waits for the log meanwhile.
        let named = options.key.as_ref().map(read_key).transpose()?;
        let _lock = files::lock(&options.dir, options.time_out)?;
        let head = files::read_head(&options.dir)?;
        let fresh = head.is_none() && files::log_numbers(&options.dir)?.is_empty();
        // Also a symbolic link that leads nowhere is there.
        let has_key = options.dir.join(files::KEY).symlink_metadata().is_ok();
        if fresh && options.key.is_none() && !has_key {
            create_key(&options)?;
        }
        let keys = named.map_or_else(|| read_keys(&options), Ok)?;
        if fresh {
            let head = Head { link: Link::START, files: 0 };
            files::write_whole(&options.dir, files::HEAD, &keys.encode_head(&head))?;
        }
        let (program, stuck) = (event::program(), Mutex::default());
        let log = Self { options, keys, program, stuck };
        log.place()?;
        Ok(log)
    }

    /// Appends an entry; when this returns, it survives a power loss.
    ///
    /// # Errors
    /// [`Error::Audit`]. If the last sync failed, the entry may still be in the log.
    pub fn record(&self, event: &Event<'_>) -> Result<()> {
        let _lock = self.lock()?;
        // The time is taken under the lock, so that it grows with the number.
        let entry = Entry::new(event, &self.program);
        let place = self.place()?;
        self.append(place, entry)
    }

    /// The lock to write. After a time-out the next entries wait only briefly: one opening makes
    /// several, and a process that is stopped with the lock would hold up each of them.
    fn lock(&self) -> Result<Lock> {
        const ANEW: Duration = Duration::from_millis(100);
        let max = self.options.time_out;
        let was_stuck = process::lock(&self.stuck).is_some_and(|since| since.elapsed() < max);
        let lock = files::lock(&self.options.dir, if was_stuck { max.min(ANEW) } else { max });
        let stuck = if lock.is_ok() { None } else { Some(Instant::now()) };
        *process::lock(&self.stuck) = stuck;
        lock
    }

    /// The place of the next line. The caller holds the lock.
    fn place(&self) -> Result<Place> {
        let dir = &self.options.dir;
        let head = HeadState::of(&self.keys, files::read_head(dir)?.as_deref());
        let end = files::log_end(dir)?;
        match head {
            HeadState::Good(head) if end.and_then(|end| end.mac) == Some(head.link.mac) => {
                Ok(Place::after(head, end))
            }
            head => self.search_place(head, end),
        }
    }

    /// [`AuditLog::place`] for a log that does not end with the line that the head names.
    fn search_place(&self, head: HeadState, end: Option<End>) -> Result<Place> {
        let mut walk = Walk::new(&self.keys, head);
        walk.files(&self.options, files::snapshot(&self.options.dir)?.files)?;
        let found = Head {
            link: walk.link.unwrap_or(Link::START),
            files: (walk.files as u64).min(u64::from(self.options.keep) + 1),
        };
        let mut place = Place::after(found, end);
        match head {
            HeadState::Good(head) if walk.goes_on_from(&head) => {
                place.files = head.files.max(found.files);
                place.torn = walk.torn;
                place.recovered = walk.torn.map(recovered);
                place.behind = walk.last() > head.link.seq;
                let behind = walk.last() - head.link.seq;
                if behind > 1 {
                    place.suspect = Some(format!(
                        "before this entry, audit.head was {behind} entries behind: an older one \
                         was put back"
                    ));
                }
            }
            HeadState::Good(head) => {
                place = Place::after(head, end);
                // Behind other lines the gap shows by itself.
                place.suspect = end.is_none_or(|end| end.size == 0).then(|| {
                    format!("the entries up to {} were missing before this entry", head.link.seq)
                });
            }
            HeadState::Missing if walk.files == 0 => {
                place.suspect = Some("the whole log was missing before this entry".to_owned());
            }
            _ if walk.lines == 0 => return Err(self.foreign()),
            HeadState::Missing => {
                place.suspect = Some("audit.head was missing before this entry".to_owned());
            }
            HeadState::Damaged => {
                place.suspect = Some("audit.head was changed before this entry".to_owned());
            }
        }
        Ok(place)
    }

    fn foreign(&self) -> Error {
        let words = format!(
            "neither the lines nor the head in {} fit the key: put back the key of this log, or \
             use another directory",
            self.options.dir.display()
        );
        Error::Audit(words.into())
    }

    /// Writes `entry` at its place, then the head.
    fn append(&self, place: Place, mut entry: Entry) -> Result<()> {
        let AuditOptions { dir, max_bytes, keep, .. } = &self.options;
        let Place { link, files, end, torn, recovered, suspect, behind } = place;
        entry.seq = link.seq.saturating_add(1);
        (entry.recovered, entry.suspect) = (recovered, suspect);
        let end = match torn {
            Some(Torn { at, .. }) => Some(files::cut(dir, at)?),
            None => end,
        };
        // So an interrupted append never leaves it more than one entry behind.
        if behind {
            files::write_head(dir, &self.keys.encode_head(&Head { link, files }))?;
        }
        let len = self.seal(&link, &entry)?.0.len() as u64;
        let old = end.filter(|end| end.size == 0 || end.size + len <= *max_bytes);
        // A log file is never empty unless it was tampered with.
        if old.is_none_or(|end| end.size == 0) {
            entry.prev = Some(chain::hex(&link.mac));
        }
        let (line, mac) = self.seal(&link, &entry)?;
        match old {
            Some(old) => files::append(dir, old, &line)?,
            None => files::begin(dir, end.is_some(), &line)?,
        }
        let files = (files + u64::from(old.is_none())).min(u64::from(*keep) + 1);
        let head = Head { link: Link { seq: entry.seq, mac }, files };
        files::write_head(dir, &self.keys.encode_head(&head))?;
        // Only when the head counts on the new file may the oldest fall away.
        if old.is_none() { files::remove_beyond(dir, *keep) } else { Ok(()) }
    }

    fn seal(&self, previous: &Link, entry: &Entry) -> Result<(Vec<u8>, Mac)> {
        let object = serde_json::to_string(entry);
        let object = object.map_err(|error| Error::Audit(format!("an entry: {error}").into()))?;
        Ok(self.keys.seal(&previous.mac, &object))
    }
}

impl Place {
    fn after(head: Head, end: Option<End>) -> Self {
        let Head { link, files } = head;
        let (torn, recovered, suspect) = (None, None, None);
        Self { link, files, end, torn, recovered, suspect, behind: false }
    }
}

/// The repair after an interrupted append, or in a copy made during one.
fn recovered(Torn { len, .. }: Torn) -> String {
    format!("{len} bytes of an interrupted append were cut off before this entry")
}

/// The keys of a log that is there.
fn read_keys(options: &AuditOptions) -> Result<Keys> {
    let own = || SecretSource::File(options.dir.join(files::KEY));
    read_key(&options.key.clone().unwrap_or_else(own))
}

fn read_key(source: &SecretSource) -> Result<Keys> {
    let failed = |what: String| FileError::from(what).setting("audit key");
    let text = source
        .read("audit key")
        .map_err(|error| Error::Audit(failed(error.to_string()).caused_by(error)))?;
    let not = || Error::Audit(failed(format!("{source} is not base64 of {KEY_LEN} bytes")));
    Secret::from_base64(&text).map(|key| Keys::new(&key)).ok_or_else(not)
}

fn create_key(options: &AuditOptions) -> Result<()> {
    let key = Secret::random()?;
    let mut text = Zeroizing::new([b'\n'; BASE64_LEN + 1]);
    let encoded = Base64::encode(key.expose(), &mut text[..BASE64_LEN]);
    encoded.map_err(|error| Error::Audit(format!("audit key: {error}").into()))?;
    files::write_whole(&options.dir, files::KEY, &*text)
}
