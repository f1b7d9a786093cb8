//! The main database file.
//!
//! ```text
//! 0        8 KiB    16 KiB                     0x3fff4000  0x40004000
//! | copy A | copy B | page 1 | page 2 | ...    | gap       | ... pages go on
//! ```
//! SQLite's offset `n` lies at `n + 16 KiB`; from `GAP_AT` on, 64 KiB later still. SQLite locks
//! bytes from 0x40000000 of the file, and on Windows such locks forbid reading and writing: no page
//! may lie there. The gap starts at a multiple of every page size, so it never splits a page.
//!
//! Invariants
//! 1. Every page of the file is sealed; a write past the end fills what it skips with sealed zeros.
//! 2. The envelope is on disk, synced, before the first page is written.
//! 3. The page size never changes once page 1 was written.
//! 4. Where a log or a hot journal was recovered, every page is sealed again. Power loss leaves holes
//!    and torn pages that SQLite neither restores nor reads: it never wrote them, or had freed them.
//! 5. What was read ahead belongs to the read transaction at hand: it is dropped whenever a lock is
//!    taken or given back, at each write, and where SQLite looks whether its own cache still holds. In
//!    between no page that SQLite reads from this file changes. Others write here under a lock that
//!    shuts readers out, or as a checkpoint: pages that this reader finds in the log, or frames that were
//!    all in the file before it began.
//! 6. What somebody cut off the file never becomes zeros: not by filling up to where a checkpoint or
//!    a rollback needs it to end.

mod keys;
mod layout;
mod outgoing;
mod pages;

use std::collections::BTreeSet;
use std::sync::Arc;

use self::layout::{is_lock_page, logical_size, physical_size};
pub(crate) use self::pages::LeastPages;
use self::pages::{Found, Pages, SQLITE_MAGIC, check_page_1, first_page_size};
use super::tuning::Tuning;
use super::{Filled, Storage};
use crate::audit::EventKind;
use crate::error::{Error, Result};
use crate::key::envelope::{self, COPY_LEN, ENVELOPE_LEN, Envelope, ProtectorRecord};
use crate::key::keyring::{Keyring, Opened};
use crate::key::protector::{Protectors, now};
use crate::suite::SuiteId;

/// What the caller asked for when it opened the file.
#[derive(Clone, Default)]
pub(crate) struct Wishes {
    pub(crate) protectors: Protectors,
    pub(crate) protector: Option<String>,
    pub(crate) suite: SuiteId,
    pub(crate) plaintext: bool,
    pub(crate) tuning: Tuning,
}

/// One open handle of a main database file.
pub(crate) struct MainDb {
    wishes: Wishes,
    state: State,
    /// Size in SQLite's bytes as last seen, while nobody else can have changed it.
    known_size: Option<u64>,
    /// A hot journal is being played back into the file.
    rolling_back: bool,
    /// A page of it was.
    restored: bool,
    /// When the file was opened, in Unix seconds.
    opened: u64,
    /// Protectors that this handle has removed.
    removed: Vec<ProtectorRecord>,
    /// The audit log knows that this file was tampered with.
    tampering_noted: bool,
}

/// Where and how SQLite looks whether its cache still holds: at the change counter and what follows.
const CHANGE_COUNTER: (u64, usize) = (24, 16);

enum State {
    /// Nothing was written to the file; keys are made when a write transaction begins.
    Empty(Option<(Arc<Keyring>, Envelope)>),
    Encrypted(Box<Pages>),
    Plain,
}

impl MainDb {
    /// Looks at the file and finds its keys.
    pub(crate) fn open(base: &impl Storage, wishes: Wishes) -> Result<Self> {
        let mut db = Self {
            wishes,
            state: State::Empty(None),
            known_size: None,
            rolling_back: false,
            restored: false,
            opened: now(),
            removed: Vec::new(),
            tampering_noted: false,
        };
        let looked = db.look(base);
        if looked.is_err() || db.envelope().is_some() {
            let file_id = db.envelope().map(|envelope| envelope.file_id);
            db.auditor().outcome(EventKind::Open, file_id.as_ref(), db.through(), &looked)?;
        }
        looked?;
        db.look_for_newer();
        Ok(db)
    }

    /// Finds out what the file is, if it had no page when last seen. Another connection may have
    /// created the database since, with pages of another size; what we had prepared is then void.
    pub(crate) fn look(&mut self, base: &impl Storage) -> Result<()> {
        if !self.has_no_page() {
            return Ok(());
        }
        let len = base.size()?;
        if len == 0 {
            return Ok(());
        }
        let mut header = [0; ENVELOPE_LEN];
        let header = &mut header[..ENVELOPE_LEN.min(len as usize)];
        base.read(header, 0)?;
        if let Some(plain) = self.look_for_plaintext(header, len)? {
            self.state = plain;
            return Ok(());
        }
        if envelope::is_unfinished(header, len) {
            return Ok(());
        }
        let copies = envelope::candidates(header)?;
        let wanted = self.wishes.protector.as_deref();
        let Opened { keyring, envelope, through } =
            Keyring::open(copies, &self.wishes.protectors, wanted)?;
        let mut pages = Pages::new(keyring, envelope, through);
        pages.blank = logical_size(len) == 0;
        self.state = State::Encrypted(Box::new(pages));
        Ok(())
    }

    /// Whether nothing was in the file when it was last looked at.
    pub(crate) fn is_unmade(&self) -> bool {
        matches!(self.state, State::Empty(_))
    }

    /// Whether no connection has created the database since this one last looked at the file.
    pub(crate) fn is_still_empty(&self, base: &impl Storage) -> Result<bool> {
        let len = base.size()?;
        if len == 0 {
            return Ok(true);
        }
        let mut header = [0; ENVELOPE_LEN];
        let header = &mut header[..ENVELOPE_LEN.min(len as usize)];
        base.read(header, 0)?;
        Ok(envelope::is_unfinished(header, len))
    }

    fn look_for_plaintext(&self, header: &[u8], len: u64) -> Result<Option<State>> {
        let encrypted = header.starts_with(envelope::MAGIC)
            || header.get(COPY_LEN..).is_some_and(|copy| copy.starts_with(envelope::MAGIC))
            || envelope::is_unfinished(header, len);
        match (encrypted, self.wishes.plaintext) {
            (true, _) => Ok(None),
            (false, true) => Ok(Some(State::Plain)),
            (false, false) if header.starts_with(SQLITE_MAGIC) => Err(Error::PlaintextRefused),
            (false, false) => Err(Error::NotADatabase(
                "the file is neither an encrypted nor an SQLite database".into(),
            )),
        }
    }

    /// Whether SQLite may still choose the layout of the pages.
    pub(crate) fn has_no_page(&self) -> bool {
        match &self.state {
            State::Empty(_) => true,
            State::Encrypted(pages) => pages.blank,
            State::Plain => false,
        }
    }

    /// The short cuts that this file takes, and its journal and log with it.
    pub(crate) fn tuning(&self) -> Tuning {
        self.wishes.tuning
    }

    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.state, State::Plain)
    }

    /// The keys in use, or those prepared for a database that is about to be created.
    pub(crate) fn keyring(&self) -> Option<Arc<Keyring>> {
        match &self.state {
            State::Empty(prepared) => prepared.as_ref().map(|(keyring, _)| Arc::clone(keyring)),
            State::Encrypted(pages) => Some(Arc::clone(&pages.keyring)),
            State::Plain => None,
        }
    }

    /// The envelope, once there is one on disk.
    pub(crate) fn envelope(&self) -> Option<&Envelope> {
        match &self.state {
            State::Encrypted(pages) => Some(&pages.envelope),
            State::Empty(_) | State::Plain => None,
        }
    }

    /// Makes the keys of a database that is about to be created, for its journal comes first.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        if let State::Empty(prepared @ None) = &mut self.state {
            *prepared = Some(self.wishes.create()?);
        }
        Ok(())
    }

    /// A write transaction begins.
    pub(crate) fn new_nonces(&mut self) {
        if let State::Encrypted(pages) = &mut self.state {
            pages.cipher.begin();
        }
    }

    /// A lock was taken or given back: others may have changed the file's size in between.
    pub(crate) fn lock_changed(&mut self) {
        self.known_size = None;
        if let State::Encrypted(pages) = &mut self.state {
            pages.ahead.clear();
        }
    }

    /// Writes what waits to be written with what follows it. After an error it goes on waiting.
    pub(crate) fn flush(&mut self, base: &impl Storage) -> Result<()> {
        match &mut self.state {
            State::Encrypted(pages) => pages.outgoing.flush(base),
            State::Empty(_) | State::Plain => Ok(()),
        }
    }

    /// Forgets what waits: it must not be written any more, or need not be.
    pub(crate) fn drop_outgoing(&mut self) {
        if let State::Encrypted(pages) = &mut self.state {
            pages.outgoing.clear();
        }
    }

    /// A log was recovered: seals the holes that an interrupted checkpoint left where the file grew.
    ///
    /// A bad page in `grown`, from the size that the file had before up to that of the last commit,
    /// is in the log, or SQLite never wrote it. Pages before were synced before the log was begun: if
    /// one of them is bad, somebody changed it, and it stays as it is.
    pub(crate) fn seal_holes(
        &mut self,
        base: &impl Storage,
        grown: std::ops::RangeInclusive<u32>,
    ) -> Result<()> {
        let State::Encrypted(pages) = &mut self.state else { return Ok(()) };
        self.known_size = None;
        let last = pages.count(base)?.min(u64::from(*grown.end()));
        for page in u64::from(*grown.start())..=last {
            pages.seal_if_bad(base, page)?;
        }
        Ok(())
    }

    /// A hot journal is about to be played back.
    pub(crate) fn rollback_starts(&mut self) {
        self.rolling_back = true;
        self.restored = false;
    }

    /// The journal is written or closed, so its playback is over or was given up.
    pub(crate) fn rollback_ends(&mut self) {
        self.rolling_back = false;
    }

    /// Before a sync. At the end of a playback it seals the free pages that are bad: the transaction
    /// may have written to one, and SQLite does not restore what has no content.
    pub(crate) fn before_sync(&mut self, base: &impl Storage) -> Result<()> {
        self.flush(base)?;
        let over = self.rolling_back && self.restored;
        if let (true, State::Encrypted(pages)) = (over, &mut self.state) {
            pages.seal_free(base)?;
        }
        Ok(())
    }

    /// Refuses a file that ends before it may.
    pub(crate) fn check_size(&self, base: &impl Storage, least: LeastPages<'_>) -> Result<()> {
        match &self.state {
            State::Encrypted(pages) => pages.check_size(base, least),
            State::Empty(_) | State::Plain => Ok(()),
        }
    }

    pub(crate) fn size(&self, base: &impl Storage) -> Result<u64> {
        let size = base.size()?;
        Ok(match self.state {
            State::Plain => size,
            State::Empty(_) => 0,
            State::Encrypted(_) => logical_size(size),
        })
    }

    /// Pages in the file of an encrypted database.
    pub(crate) fn pages(&self, base: &impl Storage) -> Result<u32> {
        let State::Encrypted(pages) = &self.state else { return Ok(0) };
        pages.whole(base)
    }

    pub(crate) fn read(&mut self, base: &impl Storage, buf: &mut [u8], at: u64) -> Result<Filled> {
        match &mut self.state {
            State::Encrypted(pages) => {
                if (at, buf.len()) == CHANGE_COUNTER {
                    // Without locks it is all that tells where a read transaction begins.
                    pages.ahead.clear();
                }
                pages.read(base, buf, at, self.wishes.tuning.read_ahead && !base.is_mapped())
            }
            State::Empty(_) => {
                buf.fill(0);
                Ok(Filled::Short)
            }
            State::Plain => Ok(if base.read(buf, at)? { Filled::Full } else { Filled::Short }),
        }
    }

    pub(crate) fn write(
        &mut self,
        base: &impl Storage,
        bytes: &[u8],
        at: u64,
        may_wait: bool,
        least: LeastPages<'_>,
    ) -> Result<()> {
        if let State::Empty(prepared) = &mut self.state {
            let page_size = first_page_size(bytes, at)?;
            check_page_1(bytes, at, page_size)?;
            let (keyring, mut envelope) = match prepared.take() {
                Some(keys) => keys,
                None => self.wishes.create()?,
            };
            envelope.page_size = page_size;
            if let Err(error) = keys::write(base, &keyring, &envelope) {
                *prepared = Some((keyring, envelope));
                return Err(error);
            }
            keyring.share();
            let through = envelope.protectors.first().map_or_else(String::new, |p| p.name.clone());
            self.state = State::Encrypted(Box::new(Pages::new(keyring, envelope, through)));
            self.known_size = Some(0);
        }
        match &mut self.state {
            State::Encrypted(pages) => {
                let size = match self.known_size {
                    Some(size) => size,
                    None => {
                        pages.outgoing.flush(base)?;
                        logical_size(base.size()?)
                    }
                };
                self.known_size = None;
                if at > size || self.rolling_back {
                    pages.outgoing.flush(base)?;
                }
                if size == 0 {
                    pages.take_page_size(base, bytes, at)?;
                }
                pages.check_write(bytes, at)?;
                self.restored = true;
                if self.rolling_back && at + bytes.len() as u64 > size {
                    pages.regrow(base, bytes, at)?;
                } else {
                    if at > size {
                        pages.check_size(base, least)?;
                        pages.fill(base, size, at)?;
                    }
                    let stored = pages.store(base, bytes, at, may_wait);
                    if stored.is_err() && !may_wait {
                        pages.outgoing.clear();
                    }
                    stored?;
                }
                pages.blank = false;
                self.known_size = Some(size.max(at + bytes.len() as u64));
                Ok(())
            }
            State::Plain | State::Empty(_) => base.write(bytes, at),
        }
    }

    pub(crate) fn truncate(
        &mut self,
        base: &impl Storage,
        size: u64,
        least: LeastPages<'_>,
    ) -> Result<()> {
        self.known_size = None;
        match &mut self.state {
            State::Encrypted(pages) => {
                pages.outgoing.flush(base)?;
                pages.ahead.clear();
                pages.blank = size == 0;
                let had = logical_size(base.size()?);
                if had < size {
                    // A checkpoint sets the size of a database whose last pages were never written.
                    pages.check_size(base, least)?;
                    pages.fill(base, had, size)?;
                }
                base.truncate(physical_size(size))
            }
            State::Plain => base.truncate(size),
            State::Empty(_) => Ok(()),
        }
    }

    /// Authenticates every page and both envelope copies as they are on disk, calling `progress`
    /// with the pages done and the pages there are. What is in `log` counts there: a checkpoint may
    /// have been interrupted while it wrote the page.
    pub(crate) fn verify(
        &mut self,
        base: &impl Storage,
        log: &BTreeSet<u32>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Findings> {
        let State::Encrypted(pages) = &mut self.state else { return Err(Error::NotEncrypted) };
        pages.outgoing.flush(base)?;
        let mut findings = Findings::default();
        let size = logical_size(base.size()?);
        findings.pages = size.div_ceil(pages.page_size as u64);
        findings.bad_copies = pages.bad_copies(base)?;
        for page in 1..=findings.pages {
            let counts = !is_lock_page(page, pages.page_size) && !log.contains(&(page as u32));
            if counts && pages.load(base, page)? != Found::Good {
                findings.add(page);
            }
            progress(page, findings.pages);
        }
        if !findings.bad_pages.is_empty() && pages.has_log(base)? {
            // A shared lock keeps no checkpoint away: a page that was just being written is whole now.
            let suspects = std::mem::take(&mut findings.bad_pages);
            findings.bad_count -= suspects.len() as u64;
            std::thread::sleep(std::time::Duration::from_millis(10));
            for page in suspects.into_iter().map(u64::from) {
                if pages.load(base, page)? != Found::Good {
                    findings.add(page);
                }
            }
        }
        Ok(findings)
    }
}

/// What [`MainDb::verify`] found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) pages: u64,
    /// The first of the bad pages, at most [`LISTED`]: whoever writes the file decides how many.
    pub(crate) bad_pages: Vec<u32>,
    pub(crate) bad_count: u64,
    pub(crate) bad_copies: Vec<char>,
}

const LISTED: usize = 1 << 16;

impl Findings {
    fn add(&mut self, page: u64) {
        self.bad_count += 1;
        if self.bad_pages.len() < LISTED {
            self.bad_pages.push(page as u32);
        }
    }
}

impl Wishes {
    fn create(&self) -> Result<(Arc<Keyring>, Envelope)> {
        Keyring::create(&self.protectors, self.protector.as_deref(), self.suite, now())
    }
}

#[cfg(test)]
pub(crate) mod tests;
