//! The main database file: its pages under its keys, as SQLite's calls change them.
//!
//! Invariants
//! 1. Every page of the file is sealed; a write past the end fills what it skips with sealed zeros.
//! 2. The envelope is on disk, synced, before the first page is written.
//! 3. The page size never changes once page 1 was written.
//! 4. After the recovery of a log or hot journal every page is sealed. A power loss leaves holes
//!    and torn pages that SQLite neither restores nor reads, because it never wrote or had freed
//!    them.
//! 5. The read-ahead window belongs to the current read transaction: it is dropped whenever a lock
//!    is taken or released, at each write, and where SQLite checks whether its own cache is valid.
//!    In between no page that SQLite reads from this file changes. Others write here under a lock
//!    that shuts readers out, or as a checkpoint: pages that this reader finds in the log, or
//!    frames that were all in the file before it began.
//! 6. A part cut off the file by an attacker never becomes zeros: not by filling up to the end that
//!    a checkpoint or a rollback needs, and not under locks that keep others from changing the
//!    size. `known_size` is the size that SQLite was told or has made since it took them. A page
//!    within it that is not there is an error to read, and nothing within it is filled up.
//! 7. Nothing is written to a file without an envelope of this database; checked before the first
//!    write of each transaction or checkpoint. Where its creation was committed, a file that ends
//!    before page 1 is damaged, and never an empty database.
//! 8. A page that SQLite wrote is in the base when the write returns, sealed. The one exception is
//!    a checkpoint before its last page: the log has every buffered page. A rollback therefore
//!    finds nothing to flush: the size that it asks for and the truncation that follows, whose
//!    errors it ignores, fail only if the base fails.

use crate::page::PageNo;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::phase::{Checkpoint, Phase};
use crate::audit::{Event, EventKind};
use crate::error::{Error, Result};
use crate::file::journal::Begun;
use crate::file::main::layout::{is_lock_page, logical_size, physical, physical_size};
use crate::file::main::{DemandOfLog, Found, Pages, SQLITE_HEADER, SQLITE_MAGIC, is_header};
use crate::io::{Filled, Remains, Storage};
use crate::key::auditor::{Auditor, is_tampering};
use crate::key::cipher::Subkey;
use crate::key::envelope::slots::Slots;
use crate::key::envelope::{self, ENVELOPE_LEN, Envelope, REGION_LEN};
use crate::key::keyring::{Keyring, candidates};
use crate::key::opening::Opening;
use crate::key::session::{ATTEMPTS, PAUSE, Session, Setup, emptied, steadily};
use crate::process::time::now;
use crate::settings::Tuning;
use crate::settings::identity::wrong_file;

/// The main file of one open database.
pub(crate) struct Main {
    pub(super) setup: Arc<Setup>,
    pub(super) state: State,
    pub(crate) phase: Phase,
    /// Size in SQLite's bytes, as SQLite was told or has made it, while no other connection can
    /// have changed it.
    pub(super) known_size: Option<u64>,
    /// An envelope of the database was seen in the file since the current transaction or checkpoint
    /// began.
    pub(super) envelope_checked: bool,
    /// This handle has marked the envelope as having pages, under the lock that it holds.
    pub(super) told_creation: bool,
    /// When the file was opened.
    opened: SystemTime,
    /// Tampering with this file was recorded in the audit log.
    tampering_noted: bool,
    /// A record of this handle's own journal that failed in a rollback.
    failed_record: Option<u64>,
    /// SQLite's change counter in page 1 as this handle read or wrote it last. The next write of
    /// page 1 raises it by one.
    change_counter: u32,
}

/// The bytes by which SQLite checks its cache: the change counter and those after it.
const CHANGE_COUNTER: (u64, usize) = (24, 16);

pub(super) enum State {
    /// Nothing was written to the file; keys are made when a write transaction begins.
    Empty(Option<(Arc<Keyring>, Envelope)>),
    Encrypted(Box<Encrypted>),
    Plain,
}

/// An encrypted file: its keys, and its pages under them.
pub(super) struct Encrypted {
    pub(super) session: Session,
    pub(super) pages: Pages,
}

impl Encrypted {
    pub(super) fn new(session: Session) -> Self {
        let page_size = session.envelope().page_size as usize;
        Self { pages: Pages::new(session.keyring().cipher(Subkey::Page), page_size), session }
    }
}

impl Main {
    /// Looks at the file and finds its keys.
    pub(crate) fn open(base: &impl Storage, setup: Setup) -> Result<Self> {
        let mut db = Self {
            setup: Arc::new(setup),
            state: State::Empty(None),
            phase: Phase::Ordinary,
            known_size: None,
            envelope_checked: false,
            told_creation: false,
            opened: SystemTime::now(),
            tampering_noted: false,
            failed_record: None,
            change_counter: 0,
        };
        let looked = db.probe(base);
        if looked.is_err() || db.envelope().is_some() {
            let file_id = db.envelope().map(|envelope| envelope.file_id);
            let protector = db.session().ok().map(Session::protector_name);
            db.auditor().outcome(EventKind::Open, file_id.as_ref(), protector, &looked)?;
        }
        looked?;
        if let Ok(session) = db.session() {
            session.look_for_newer();
        }
        Ok(db)
    }

    /// Finds out what the file is, if no transaction had been committed to it when last seen.
    /// Another connection may have created the database since, with pages of another size, or
    /// rolled that back; earlier prepared keys and earlier readings are then invalid.
    pub(crate) fn probe(&mut self, base: &impl Storage) -> Result<()> {
        let was_seen = match &self.state {
            State::Empty(_) => false,
            State::Encrypted(open) if !open.session.envelope().has_pages => true,
            // The first commit of another connection may have failed, and its rollback emptied the
            // file. A third one may have created it since.
            State::Encrypted(open) if !open.session.is_committed() => {
                if logical_size(base.size()?) > 0 && open.session.has_envelope(base)? {
                    return Ok(());
                }
                true
            }
            State::Plain if is_plain_no_more(base)? => true,
            State::Encrypted(_) | State::Plain => return Ok(()),
        };
        let setup = &self.setup;
        let mut opening = setup.opening();
        match steadily(base, |start| look(setup, base, start, &mut opening))? {
            Some(state) => self.state = state,
            None if was_seen => self.state = State::Empty(None),
            None => {}
        }
        Ok(())
    }

    /// Whether the file was empty when last read.
    pub(crate) fn is_unmade(&self) -> bool {
        matches!(self.state, State::Empty(_))
    }

    /// Whether no connection has created the database since this one last read the file.
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

    /// The short cuts that this file takes, and its journal and log with it.
    pub(crate) fn tuning(&self) -> Tuning {
        self.setup.settings().tuning
    }

    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.state, State::Plain)
    }

    /// The keys in use, or those prepared for a database that is about to be created.
    pub(crate) fn keyring(&self) -> Option<&Arc<Keyring>> {
        match &self.state {
            State::Empty(prepared) => prepared.as_ref().map(|(keyring, _)| keyring),
            State::Encrypted(open) => Some(open.session.keyring()),
            State::Plain => None,
        }
    }

    /// The keys of the database, once it has an envelope on disk.
    ///
    /// # Errors
    /// [`Error::NotEncrypted`].
    pub(crate) fn session(&self) -> Result<&Session> {
        match &self.state {
            State::Encrypted(open) => Ok(&open.session),
            State::Empty(_) | State::Plain => Err(Error::NotEncrypted),
        }
    }

    /// As [`Main::session`], to change them.
    pub(crate) fn session_mut(&mut self) -> Result<&mut Session> {
        match &mut self.state {
            State::Encrypted(open) => Ok(&mut open.session),
            State::Empty(_) | State::Plain => Err(Error::NotEncrypted),
        }
    }

    pub(super) fn opened(&mut self) -> Option<&mut Encrypted> {
        if let State::Encrypted(open) = &mut self.state { Some(open) } else { None }
    }

    /// The envelope, once there is one on disk.
    pub(crate) fn envelope(&self) -> Option<&Envelope> {
        self.session().ok().map(Session::envelope)
    }

    /// When this file was opened.
    pub(crate) fn opened_at(&self) -> SystemTime {
        self.opened
    }

    /// Whether nothing is ever written to the file through this handle.
    pub(crate) fn is_never_written(&self) -> bool {
        self.setup.read_only
    }

    pub(crate) fn auditor(&self) -> &Auditor {
        &self.setup.protectors.auditor
    }

    /// Makes the keys of a database that is about to be created, for its journal comes first.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        if let State::Empty(prepared @ None) = &mut self.state {
            *prepared = Some(create(&self.setup)?);
        }
        Ok(())
    }

    /// A transaction begins: asks for keys that were locked. See [`Session::begin`].
    pub(crate) fn begin(&mut self, base: &impl Storage) -> Result<()> {
        self.session_mut().map_or(Ok(()), |session| session.begin(base))
    }

    /// A transaction begins, with the keys that are here.
    pub(crate) fn transaction_begins(&mut self) {
        self.phase.transaction_begins();
        if let Some(open) = self.opened() {
            open.session.transaction_begins();
        }
    }

    /// As [`Session::watch`].
    #[inline]
    pub(crate) fn watch(&self, base: &impl Storage) -> Result<()> {
        match &self.state {
            State::Encrypted(open) => open.session.watch(base),
            State::Empty(_) | State::Plain => Ok(()),
        }
    }

    /// As [`Main::watch`], before a commit. SQLite rolls back what is refused here, and asks once
    /// more at the end of that. It does not read a journal in memory from a file, so the second
    /// question tells of the rollback.
    pub(crate) fn check_commit(&mut self, base: &impl Storage) -> Result<()> {
        if self.phase.is_undoing() {
            return Ok(());
        }
        self.watch(base).inspect_err(|_| self.phase = Phase::CommitRefused)
    }

    /// Whether a read of `len` bytes at `at`, while SQLite holds no lock, begins a transaction.
    /// SQLite takes none with `nolock=1` and `immutable=1`. It then begins with page 1, or with a
    /// look whether its cache still holds; of a file that never changes, it reads what it has not
    /// read before.
    pub(crate) fn begins_without_lock(&self, at: u64, len: usize) -> bool {
        self.setup.read_only || at == 0 || (at, len) == CHANGE_COUNTER
    }

    /// Records, once for this handle, that something in the file is not what was written there.
    pub(crate) fn note_tampering(&mut self, error: &Error) {
        if let Error::JournalAuthentication { record } = error {
            self.failed_record = Some(*record);
        }
        if !is_tampering(error) || std::mem::replace(&mut self.tampering_noted, true) {
            return;
        }
        let file_id = self.keyring().map(|keyring| *keyring.file_id());
        self.auditor().note(&Event {
            file_id: file_id.as_ref(),
            outcome: Err(&error.to_string()),
            ..Event::new(EventKind::Tamper)
        });
    }

    /// Whether page 1 says that the database is in WAL mode. The caller holds a SHARED lock, beside
    /// which a checkpoint may write the page.
    pub(crate) fn is_in_wal_mode(&mut self, base: &impl Storage) -> Result<bool> {
        let Some(Encrypted { pages, .. }) = self.opened() else { return Ok(false) };
        for _ in 0..ATTEMPTS {
            match pages.load(base, PageNo::FIRST)? {
                Found::Good => return Ok(pages.says_wal()),
                Found::Missing => return Ok(false),
                Found::Bad => std::thread::sleep(PAUSE),
            }
        }
        Err(Error::PageAuthentication { page: 1 })
    }

    /// Repairs the envelope and the slots after a crash; see [`Session::mend`].
    pub(crate) fn mend(&mut self, base: &impl Storage) -> Result<()> {
        let Some(Encrypted { session, pages }) = self.opened() else { return Ok(()) };
        session.mend(base, || pages.has_log(base))
    }

    /// A lock was taken or given back. If it is the `first` or last, others may have changed the
    /// file's size in between.
    pub(crate) fn lock_changed(&mut self, first: bool) {
        if first {
            self.known_size = None;
            if let Some(checkpoint) = self.phase.checkpoint() {
                checkpoint.noted = false;
            }
        }
        self.envelope_checked = false;
        if let Some(open) = self.opened() {
            open.pages.ahead.clear();
        }
    }

    /// Flushes the write buffer, which is empty afterwards, even after an error.
    pub(crate) fn flush(&mut self, base: &impl Storage) -> Result<()> {
        let Some(open) = self.opened() else { return Ok(()) };
        open.pages.outgoing.flush(base).inspect_err(|_| self.known_size = None)
    }

    /// Whether the write buffer holds pages.
    pub(crate) fn has_outgoing(&self) -> bool {
        matches!(&self.state, State::Encrypted(open) if !open.pages.outgoing.is_empty())
    }

    /// A log was recovered: seals the holes that an interrupted checkpoint left in the grown part
    /// of the file.
    ///
    /// A bad page in `grown`, from the size that the file had before up to that of the last commit,
    /// is in `logged`, or SQLite never wrote it. The next checkpoint brings the former. Pages
    /// before were synced before the log was begun: a bad one among them was tampered with, and is
    /// kept as it is.
    pub(crate) fn seal_holes(
        &mut self,
        base: &impl Storage,
        grown: std::ops::RangeInclusive<PageNo>,
        logged: &BTreeSet<PageNo>,
    ) -> Result<()> {
        self.known_size = None;
        let Some(Encrypted { session, pages }) = self.opened() else { return Ok(()) };
        session.require_envelope(base)?;
        let last = PageNo(pages.count(base)?).min(*grown.end());
        for page in grown.start().to(last) {
            if !logged.contains(&page) {
                pages.seal_if_bad(base, page)?;
            }
        }
        Ok(())
    }

    /// Before a sync. At the end of a playback it seals the free pages that are bad: the
    /// transaction may have written to one, and SQLite does not restore a page without content.
    pub(crate) fn before_sync(&mut self, base: &impl Storage) -> Result<()> {
        self.flush(base)?;
        let known = self.known_size;
        match self.phase.has_restored().then(|| self.opened()).flatten() {
            Some(Encrypted { pages, .. }) => {
                // Bytes that another process appends meanwhile are no page of this database.
                let known = known.map(|size| pages.count_in(size));
                pages.seal_free(base, known)
            }
            None => Ok(()),
        }
    }

    /// Whether the file has `bytes` as the page at `at`.
    pub(crate) fn has_page(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<bool> {
        match &mut self.state {
            State::Encrypted(open) if bytes.len() == open.pages.page_size() => {
                open.pages.has_page(base, bytes, at)
            }
            _ => Ok(false),
        }
    }

    /// SQLite has asked for the page at `at`, which is not in the file: refuses a file shorter than
    /// its minimum. SQLite asks the file only for pages that it does not find in the log.
    pub(crate) fn check_missing(
        &self,
        base: &impl Storage,
        at: u64,
        demand: DemandOfLog<'_>,
    ) -> Result<()> {
        let State::Encrypted(open) = &self.state else { return Ok(()) };
        let pages = &open.pages;
        let visible = pages.check_size(base, demand)?.unwrap_or_default().visible;
        let page = PageNo::at(at, pages.page_size());
        let missing = Error::PageAuthentication { page: page.0 };
        if visible.contains(&page) { Err(missing) } else { Ok(()) }
    }

    /// The size reported to SQLite. If the file was cut under its locks, that is the known size:
    /// SQLite then meets each missing page as an error, and a rollback restores the pages in the
    /// journal.
    pub(crate) fn size(&mut self, base: &impl Storage) -> Result<u64> {
        let size = base.size()?;
        // A connection without locks learns here of a database that was created or removed.
        let looks_other = match &self.state {
            State::Empty(_) => size > 0,
            State::Encrypted(open) => !open.session.is_committed() && logical_size(size) == 0,
            State::Plain => true,
        };
        if looks_other && self.known_size.is_none_or(|known| known == 0) {
            self.probe(base)?;
        }
        let State::Encrypted(open) = &self.state else {
            return Ok(if self.is_plain() { size } else { 0 });
        };
        let size = logical_size(size.max(open.pages.outgoing.end()));
        let size = self.known_size.map_or(size, |known| known.max(size));
        if size == 0 && open.session.is_committed() {
            return Err(emptied(base)?);
        }
        self.known_size = Some(size);
        Ok(size)
    }

    /// A checkpoint begins.
    pub(crate) fn checkpoint_begins(&mut self, last_page: Option<PageNo>, void: bool) {
        self.envelope_checked = false;
        self.phase = Phase::Checkpoint(Checkpoint { last_page, noted: false, void });
    }

    /// Refuses to commit to the log of a file that has no envelope of this database.
    ///
    /// # Errors
    /// [`Error::DamagedInUse`].
    pub(crate) fn check_envelope(&self, base: &impl Storage) -> Result<()> {
        match &self.state {
            State::Encrypted(open) => open.session.require_envelope(base),
            State::Empty(_) | State::Plain => Ok(()),
        }
    }

    /// [`Self::check_envelope`], before the first write to the file of each transaction and
    /// checkpoint.
    fn check_envelope_once(&mut self, base: &impl Storage) -> Result<()> {
        if !self.envelope_checked {
            self.check_envelope(base)?;
            self.envelope_checked = true;
        }
        Ok(())
    }

    /// Refuses to play back a journal of which a record failed in this handle's own rollback.
    /// SQLite ignores that error and reads the journal anew; the record would count as its end, and
    /// half of the transaction would stay.
    ///
    /// # Errors
    /// [`Error::JournalAuthentication`].
    pub(crate) fn check_journal(&self) -> Result<()> {
        self.failed_record.map_or(Ok(()), |record| Err(Error::JournalAuthentication { record }))
    }

    /// The state of the file, for a journal that is about to be played back; `None` where page 1 is
    /// damaged.
    pub(crate) fn state_for_journal(&mut self, base: &impl Storage) -> Result<Option<Begun>> {
        let counter = self.change_counter;
        let Some(Encrypted { pages, .. }) = self.opened() else {
            return Ok(Some(Begun::NoPage(counter)));
        };
        Ok(match pages.load(base, PageNo::FIRST)? {
            // A transaction that creates a database may write its first page last, over zeros.
            Found::Good if pages.has_header() => Some(Begun::Page1(pages.counters())),
            Found::Good | Found::Missing => Some(Begun::NoPage(counter)),
            Found::Bad => None,
        })
    }

    /// This handle begins a journal. The state of the file that it restores.
    ///
    /// SQLite has read an intact page 1 in this transaction, or holds it in its cache from before
    /// the file was damaged. A journal that is begun then would pass for one of any state.
    ///
    /// # Errors
    /// [`Error::PageAuthentication`] if page 1 is damaged.
    pub(crate) fn journal_begins(&mut self, base: &impl Storage) -> Result<Begun> {
        let begun = self.state_for_journal(base)?;
        let begun = begun.ok_or(Error::PageAuthentication { page: 1 })?;
        self.failed_record = None;
        self.envelope_checked = false;
        Ok(begun)
    }

    /// Notes the change counter when SQLite does: with each page 1 that it reads or writes.
    fn note_change_counter(&mut self, page: &[u8], at: u64) {
        const AT: usize = CHANGE_COUNTER.0 as usize;
        if at == 0 && page.len() > SQLITE_HEADER {
            self.change_counter = page[AT..].first_chunk().map_or(0, |n| u32::from_be_bytes(*n));
        }
    }

    /// Pages that the file of an encrypted database has, and must have: as this handle knows, or as
    /// the wal-index says.
    ///
    /// # Errors
    /// [`Error::PageAuthentication`] if it is shorter.
    pub(crate) fn pages(&self, base: &impl Storage, in_index: Option<u32>) -> Result<u32> {
        let State::Encrypted(open) = &self.state else { return Ok(0) };
        let pages = &open.pages;
        // As SQLite counts: a page that is cut short belongs to the database, and is missing.
        let count = |size: u64| pages.begun_in(size);
        let there = logical_size(base.size()?);
        let whole = pages.count_in(there);
        let known = self.known_size.map(count).or(in_index).unwrap_or(count(there));
        if known > whole { Err(Error::PageAuthentication { page: whole + 1 }) } else { Ok(known) }
    }

    pub(crate) fn read(&mut self, base: &impl Storage, buf: &mut [u8], at: u64) -> Result<Filled> {
        let filled = self.read_state(base, buf, at);
        match filled {
            Ok(_) => self.note_change_counter(buf, at),
            Err(_) if at == 0 && buf.len() > SQLITE_HEADER => self.change_counter = u32::MAX,
            Err(_) => {}
        }
        filled
    }

    fn read_state(&mut self, base: &impl Storage, buf: &mut [u8], at: u64) -> Result<Filled> {
        match &mut self.state {
            State::Encrypted(open) => {
                let Encrypted { session, pages } = &mut **open;
                if (at, buf.len()) == CHANGE_COUNTER {
                    // Without locks this is the only sign that a read transaction begins.
                    pages.ahead.clear();
                    self.known_size = None;
                }
                let read_ahead =
                    self.setup.settings().tuning.read_ahead && !base.is_mapped(physical(at));
                let known = self.known_size.unwrap_or(0);
                let filled = pages.read(base, buf, at, read_ahead, known)?;
                match filled {
                    // SQLite reads a page only when no creation is left to be rolled back; the
                    // header it reads earlier.
                    Some(Filled::Full) if session.envelope().has_pages && !is_header(at, buf) => {
                        session.note_page();
                    }
                    Some(_) => {}
                    None if session.is_committed() => return Err(emptied(base)?),
                    None if known > 0 => return Err(Error::PageAuthentication { page: 1 }),
                    None => {}
                }
                Ok(filled.unwrap_or(Filled::Short))
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
        demand: DemandOfLog<'_>,
    ) -> Result<()> {
        let written = self.write_state(base, bytes, at, may_wait, demand);
        // SQLite notes it even if the write failed.
        self.note_change_counter(bytes, at);
        written
    }

    fn write_state(
        &mut self,
        base: &impl Storage,
        bytes: &[u8],
        at: u64,
        may_wait: bool,
        demand: DemandOfLog<'_>,
    ) -> Result<()> {
        if let State::Encrypted(open) = &self.state
            && !open.session.envelope().has_pages
            && self.known_size.is_none_or(|size| size == 0)
            && logical_size(base.size()?) == 0
        {
            // The creation that this handle saw or began was given up.
            self.start_over();
        }
        self.create(base, bytes, at)?;
        self.check_envelope_once(base)?;
        let State::Encrypted(open) = &mut self.state else { return base.write(bytes, at) };
        let pages = &mut open.pages;
        let size = self.known_size.map_or_else(|| pages.size(base), Ok)?;
        self.known_size = Some(size);
        let page = pages.check_write(bytes, at)?;
        self.phase.page_written();
        let waits = !pages.outgoing.is_empty();
        let written = if self.phase.is_hot_rollback() && at + bytes.len() as u64 > size {
            pages.regrow(base, bytes, page)
        } else {
            pages.put(base, bytes, page, size, may_wait, demand)
        };
        if written.is_err() && waits {
            // The buffered pages are lost, and the size reported to SQLite is no longer known.
            self.known_size = None;
        }
        written?;
        self.known_size = Some(size.max(at + bytes.len() as u64));
        Ok(())
    }

    pub(crate) fn truncate(
        &mut self,
        base: &impl Storage,
        size: u64,
        demand: DemandOfLog<'_>,
    ) -> Result<()> {
        // It writes no page, and SQLite's rollback does not hear of its errors: one that is not
        // about the envelope is not in its way.
        if size > 0
            && let Err(error @ Error::DamagedInUse(_)) = self.check_envelope_once(base)
        {
            return Err(error);
        }
        match &mut self.state {
            State::Encrypted(_) if size == 0 => self.undo_creation(base),
            State::Encrypted(open) => {
                let pages = &mut open.pages;
                // A backup of an empty database with smaller pages would leave part of page 1. What
                // SQLite cuts off there, it wrote just before: free space.
                let size = size.next_multiple_of(pages.page_size() as u64);
                pages.ahead.clear();
                pages.outgoing.cut(physical_size(size));
                let had = self.known_size.map_or_else(|| pages.size(base), Ok)?;
                self.known_size = Some(had.min(size));
                if had < size {
                    // A checkpoint sets the size of a database whose last pages were never written.
                    pages.fill(base, had, size, demand)?;
                }
                base.truncate(physical_size(size))?;
                self.known_size = Some(size);
                Ok(())
            }
            State::Plain => base.truncate(size),
            State::Empty(_) => Ok(()),
        }
    }

    /// Authenticates the next `count` pages as they are on disk, and adds to `findings` what is
    /// wrong; both envelope copies come first. Pages in `log` are passed over: a checkpoint may
    /// have been interrupted while it wrote them. Answers whether these were the last.
    pub(crate) fn verify(
        &mut self,
        base: &impl Storage,
        log: &BTreeSet<PageNo>,
        findings: &mut Findings,
        count: u64,
    ) -> Result<bool> {
        let State::Encrypted(open) = &mut self.state else { return Err(Error::NotEncrypted) };
        let Encrypted { session, pages } = &mut **open;
        let size = logical_size(base.size()?);
        let size = self.known_size.map_or(size, |known| known.max(size));
        findings.pages = size.div_ceil(pages.page_size() as u64);
        if findings.done == 0 {
            (findings.bad_copies, findings.stale_copies) = session.faulty_copies(base)?;
        }
        let end = findings.pages.min(findings.done.saturating_add(count));
        while findings.done < end {
            let page = PageNo::after(findings.done);
            let counts = !is_lock_page(page, pages.page_size()) && !log.contains(&page);
            if counts && pages.load(base, page)? != Found::Good {
                findings.add(page);
            }
            findings.done += 1;
        }
        if end < findings.pages {
            return Ok(false);
        }
        if !findings.bad_pages.is_empty() && pages.has_log(base)? {
            // A shared lock keeps no checkpoint away: a page that was being written is whole by the
            // second read.
            let suspects = std::mem::take(&mut findings.bad_pages);
            findings.bad_count -= suspects.len() as u64;
            std::thread::sleep(std::time::Duration::from_millis(10));
            for page in suspects {
                if pages.load(base, page)? != Found::Good {
                    findings.add(page);
                }
            }
        }
        Ok(true)
    }

    /// All pages at once.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn verify_all(&mut self, base: &impl Storage) -> Result<Findings> {
        let mut findings = Findings::default();
        self.verify(base, &BTreeSet::new(), &mut findings, u64::MAX).map(|_| findings)
    }
}

/// Whether a file that was plaintext is none now: a creation by another program was rolled back,
/// and the database may have been created anew.
fn is_plain_no_more(base: &impl Storage) -> Result<bool> {
    let mut start = [0; envelope::MAGIC.len()];
    let whole = base.read(&mut start, 0)?;
    Ok(start == *envelope::MAGIC || !whole && base.size()? == 0)
}

/// The findings of [`Main::verify`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) pages: u64,
    /// Pages that were looked at.
    pub(crate) done: u64,
    /// The first of the bad pages, at most [`LISTED`]: whoever writes the file decides how many.
    pub(crate) bad_pages: Vec<PageNo>,
    pub(crate) bad_count: u64,
    pub(crate) bad_copies: Vec<char>,
    /// Authentic copies of the envelope that are older than the other one, or than one that this
    /// process has seen.
    pub(crate) stale_copies: Vec<char>,
}

pub(super) const LISTED: usize = 1 << 16;

impl Findings {
    fn add(&mut self, page: PageNo) {
        self.bad_count += 1;
        if self.bad_pages.len() < LISTED {
            self.bad_pages.push(page);
        }
    }
}

/// What a file is that begins with `header`: more than the envelope, or all of it. `None` while it
/// is no database.
fn look(
    setup: &Arc<Setup>,
    base: &impl Storage,
    header: &[u8],
    opening: &mut Opening<'_>,
) -> Result<Option<State>> {
    let len = header.len() as u64;
    if len == 0 {
        return expect_none(setup, "none, for the file is empty").map(|()| None);
    }
    if let Some(plain) = look_for_plaintext(setup, base, header, len)? {
        expect_none(setup, "none, for the database is not encrypted")?;
        return Ok(Some(plain));
    }
    if envelope::is_unfinished(header, len) {
        return expect_none(setup, "none, for the database was never finished").map(|()| None);
    }
    let opened = opening.open(&candidates(header)?)?;
    if logical_size(len) == 0 {
        return Err(Error::EnvelopeDamaged("the file ends before its first page".into()));
    }
    let newest = opened.keyring.newest(setup.file);
    let copies_differ = !envelope::copies_are_equal(header);
    // The caller reads the file anew if another thread has changed it since.
    newest.admit(newest.known().as_deref(), &opened.envelope, !copies_differ)?;
    let mut needs_mending = copies_differ;
    // Another handle of the file may have found the same bytes to be good.
    let bytes = Slots::bytes(header);
    if !newest.has_slots(&bytes) {
        let slots = Slots::decode(&opened.keyring, header)?;
        if opened.envelope.has_pages && slots.a_log_was_begun() {
            newest.committed();
        }
        match slots.any_is_bad() {
            true => needs_mending = true,
            false => newest.note_slots(bytes),
        }
    }
    let session = Session::new(Arc::clone(setup), opened, newest, needs_mending);
    Ok(Some(State::Encrypted(Box::new(Encrypted::new(session)))))
}

fn look_for_plaintext(
    setup: &Setup,
    base: &impl Storage,
    header: &[u8],
    len: u64,
) -> Result<Option<State>> {
    let encrypted = header.starts_with(envelope::MAGIC)
        || header.get(REGION_LEN..).is_some_and(|copy| copy.starts_with(envelope::MAGIC));
    if encrypted {
        return Ok(None);
    }
    match (header.starts_with(SQLITE_MAGIC), setup.settings().allow_plaintext) {
        (true, true) => return Ok(Some(State::Plain)),
        (true, false) => return Err(Error::PlaintextRefused),
        (false, _) => {}
    }
    // A creation that was cut off leaves zeros, and so may a power loss that tore the first
    // pages of a plaintext database, which its journal or log restores.
    let zeros = envelope::is_unfinished(header, len);
    let remains = base.remains()?;
    match remains {
        Remains::Nothing if zeros => Ok(None),
        Remains::Plain if setup.settings().allow_plaintext => Ok(Some(State::Plain)),
        Remains::Unclear if setup.settings().allow_plaintext && zeros => Ok(Some(State::Plain)),
        // What is neither must not pass as plaintext, nor as empty: SQLite would look for a hot
        // journal and a log beside the file, and delete them, before it reads a page.
        Remains::Nothing => Err(Error::NotADatabase(
            "the file is neither an encrypted nor an SQLite database".into(),
        )),
        Remains::Plain | Remains::Unclear => Err(Error::NotADatabase(
            "the journal or log beside the file may restore an unencrypted one: open it with plain \
             SQLite, or with tde_plaintext=allow; if nothing of it is needed, remove NAME, \
             NAME-journal and NAME-wal"
                .into(),
        )),
    }
}

/// Refuses a file that has no file id where one is expected.
fn expect_none(setup: &Setup, found: &str) -> Result<()> {
    setup.settings().file_id.map_or(Ok(()), |expected| Err(wrong_file(found, &[expected])))
}

pub(super) fn create(setup: &Setup) -> Result<(Arc<Keyring>, Envelope)> {
    if let Some(expected) = setup.settings().file_id {
        return Err(wrong_file("none, for the file is empty", &[expected]));
    }
    let cipher = setup.settings().cipher;
    setup.settings().policy.check_cipher(cipher)?;
    Keyring::create(&setup.protectors, setup.wanted(), cipher, now())
}
