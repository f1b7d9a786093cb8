//! An open file: what each of SQLite's calls means for each kind of file.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use crate::ffi;

use super::api;
use super::base::{BaseFile, Place};
use super::content::Content;
use super::names::LogName;
use super::shared::{Entered, Shared};
use super::shm::Shm;
use crate::command;
use crate::error::{Error, Result};
use crate::file::journal::Counters;
use crate::file::main_db::MainDb;
#[cfg(feature = "rusqlite")]
use crate::file::wal::Frames;
use crate::file::wal::{Demand, Origin, Parent, Recovered, Salts, View, Wal};
use crate::file::{FileKind, Filled, Storage};
use crate::key::envelope::slot::{Fit, StateId};
use crate::page::LogId;

/// Characteristics that hold for the base file and not for ours: a page of ours is more than one
/// write where the file grows, and a record is not appended by itself.
const NOT_OURS: c_int = ffi::SQLITE_IOCAP_ATOMIC
    | ffi::SQLITE_IOCAP_ATOMIC512
    | ffi::SQLITE_IOCAP_ATOMIC1K
    | ffi::SQLITE_IOCAP_ATOMIC2K
    | ffi::SQLITE_IOCAP_ATOMIC4K
    | ffi::SQLITE_IOCAP_ATOMIC8K
    | ffi::SQLITE_IOCAP_ATOMIC16K
    | ffi::SQLITE_IOCAP_ATOMIC32K
    | ffi::SQLITE_IOCAP_ATOMIC64K
    | ffi::SQLITE_IOCAP_SAFE_APPEND
    | ffi::SQLITE_IOCAP_BATCH_ATOMIC;

/// What every pager reads of a database file before anything else.
const SQLITE_HEADER: usize = 100;

/// What SQLite reads of a journal's header, to play the journal back.
const JOURNAL_HEADER: u64 = 28;

/// Another open file that belongs to this one; none where there is none.
pub(super) type Link = Option<Arc<Shared>>;

/// Enters the file of a link.
pub(super) fn enter(link: &Link) -> Result<Option<Entered<'_>>> {
    link.as_deref().map(Shared::enter).transpose()
}

/// The journal of the database file `parent` is not played back any more.
fn rollback_ends(parent: &Link) {
    if let Ok(Some(mut open)) = enter(parent)
        && let Content::Db(db) = &mut open.content
    {
        db.rollback_ends();
    }
}

/// Runs `work` on the database file `parent` of a journal.
fn with_database<T>(
    parent: &Link,
    work: impl FnOnce(&mut MainDb, &BaseFile) -> Result<T>,
) -> Result<T> {
    match &mut *parent_of(parent)? {
        OpenFile { content: Content::Db(db), base, .. } => work(db, base),
        _ => Err(Error::NotEncrypted),
    }
}

/// Whether a statement that may write runs on the connection at `place`.
///
/// # Safety
/// `place` is NULL or from `SQLITE_FCNTL_PDB`, and SQLite is in a call on the file that it is of.
unsafe fn is_writing(place: *mut *mut ffi::sqlite3) -> bool {
    // SAFETY: as above.
    unsafe { !place.is_null() && !(*place).is_null() && api::is_writing(*place) }
}

/// Before a read of `len` bytes at `at` of the database file while SQLite holds no lock.
fn before_read_without_lock(db: &mut MainDb, base: &BaseFile, at: u64, len: usize) -> Result<()> {
    // Every pager looks at the header when it is made.
    if (at, len) == (0, SQLITE_HEADER) {
        return Ok(());
    }
    if !db.begins_without_lock(at, len) {
        return db.watch(base);
    }
    db.begin(base)?;
    db.transaction_begins();
    Ok(())
}

/// What the wal-index says of `wal`. Where it is not in shared memory, no other connection has the
/// log open, and the one that has sees all of it.
fn view_of(wal: &Wal, shm: &Shm) -> View {
    View {
        in_file: shm.frames_in_file().unwrap_or(0),
        end: wal.end_or(shm.last_commit()),
        mark: if shm.is_mapped() { shm.mark().unwrap_or(0) } else { u32::MAX },
        salts: shm.salts(),
    }
}

/// What `log` demands of the file of its database, of which `shm` is the wal-index;
/// `None` where there is no log.
fn demand_of(log: &Link, shm: &Shm) -> Result<Option<Demand>> {
    match enter(log)?.as_deref_mut() {
        Some(OpenFile { base, content: Content::Wal(wal), .. }) => {
            let mut demand = wal.demand(base, view_of(wal, shm))?;
            demand.pages = demand.pages.max(shm.pages_if_all_in_file().unwrap_or(0));
            Ok(Some(demand))
        }
        _ => Ok(None),
    }
}

/// What a checkpoint is about to do to the database file.
#[derive(Clone, Copy)]
enum Step {
    Page,
    /// All of the log is there; SQLite cuts the file, and syncs it.
    End,
}

/// The wal-index's lock of checkpoints, and the first of its locks of readers.
const CHECKPOINT: c_int = 1;
const READ: c_int = 3;

/// The number of the reader's lock at `offset` of the wal-index's.
fn reader_of(offset: c_int) -> Option<u32> {
    u32::try_from(offset - READ).ok()
}

/// The database file of a journal or log.
fn parent_of(parent: &Link) -> Result<Entered<'_>> {
    enter(parent)?.ok_or_else(|| Error::Unsupported("a log has lost its database file".into()))
}

impl Parent for OpenFile {
    fn locks(&self) -> u64 {
        self.shm.locks
    }

    fn salts(&self) -> Option<Salts> {
        self.shm.salts()
    }

    fn last_frame(&self) -> Option<u32> {
        self.shm.last_frame()
    }

    fn page_of(&self, frame: u32) -> Option<u32> {
        self.shm.page_of(frame)
    }

    fn origin(&self) -> Result<Origin> {
        match &self.content {
            Content::Db(db) => {
                let in_index = self.shm.pages().filter(|&pages| pages > 0);
                db.log_origin(&self.base, in_index)
            }
            _ => Err(Error::NotEncrypted),
        }
    }

    fn check_envelope(&self) -> Result<()> {
        match &self.content {
            Content::Db(db) => db.check_envelope(&self.base),
            _ => Err(Error::NotEncrypted),
        }
    }

    fn fit(&self, log: &LogId, state: &StateId) -> Result<Fit> {
        match &self.content {
            Content::Db(db) => db.fit(&self.base, log, state),
            _ => Err(Error::NotEncrypted),
        }
    }

    fn counters(&self) -> Result<Option<Counters>> {
        match &self.content {
            Content::Db(db) => db.counters_on_disk(&self.base),
            _ => Err(Error::NotEncrypted),
        }
    }
}

pub(super) struct OpenFile {
    pub(super) base: BaseFile,
    pub(super) content: Content,
    pub(super) place: Place,
    /// What the base calls the file, where SQLite calls it otherwise. The base may keep the
    /// pointer.
    pub(super) called: Option<Arc<LogName>>,
    /// Whether this is a plaintext database, for calls that come without the file.
    pub(super) plain: Arc<AtomicBool>,
    /// Whether this connection holds the lock of the one that may write a journal.
    pub(super) writes: Arc<AtomicBool>,
    /// The lock that SQLite holds through this file.
    pub(super) lock: c_int,
    /// The file was opened for writing.
    writable: bool,
    /// Where SQLite keeps the connection that uses this file (`SQLITE_FCNTL_PDB`).
    /// In a shared cache SQLite says it while another thread is in the file.
    pub(super) connection: Arc<AtomicPtr<*mut ffi::sqlite3>>,
    /// The wal-index, of a database file in WAL mode.
    pub(super) shm: Shm,
    /// The database file of a journal or log.
    parent: Link,
    /// The open log of a database file.
    pub(super) log: Link,
    /// The last page that the checkpoint at hand will write; `None` where that cannot be told.
    pub(super) checkpoint_end: Option<u32>,
    /// The log may have been begun anew since SQLite read the wal-index for the checkpoint at hand,
    /// which must then do nothing.
    pub(super) checkpoint_is_void: bool,
    /// The open rollback journal of a database file.
    pub(super) journal: Link,
    /// Open journals and logs of a plaintext database file.
    plain_beside: u32,
    /// SQLite is being told to reserve bytes, and may ask for the file's size meanwhile.
    pub(super) reserves: bool,
    /// SQLite's code of a failure that no call has reported yet.
    pub(super) owed: Option<c_int>,
    /// What the base said when the file was opened, which is when SQLite asks a database file for
    /// it, to apply it to the journal, too.
    sector: usize,
    powersafe: bool,
}

impl OpenFile {
    pub(super) fn new(
        base: BaseFile,
        content: Content,
        place: Place,
        parent: Link,
        writable: bool,
    ) -> Self {
        Self {
            sector: base.sector(),
            powersafe: base.is_powersafe(),
            base,
            content,
            place,
            called: None,
            plain: Arc::default(),
            writes: Arc::default(),
            lock: ffi::SQLITE_LOCK_NONE,
            writable,
            connection: Arc::default(),
            shm: Shm::default(),
            parent,
            log: None,
            checkpoint_end: None,
            checkpoint_is_void: false,
            journal: None,
            plain_beside: 0,
            reserves: false,
            owed: None,
        }
    }

    pub(super) fn read(&mut self, buf: &mut [u8], at: u64) -> Result<c_int> {
        let answer = self.read_content(buf, at);
        if let Err(error) = &answer {
            self.note_tampering(error);
        }
        answer
    }

    /// Tells the audit log if `error` shows that somebody changed what is on disk.
    fn note_tampering(&mut self, error: &Error) {
        let mut parent = enter(&self.parent).ok().flatten();
        let content = match parent.as_deref_mut() {
            Some(parent) => &mut parent.content,
            None => &mut self.content,
        };
        if let Content::Db(db) = content {
            db.note_tampering(error);
        }
    }

    fn read_content(&mut self, buf: &mut [u8], at: u64) -> Result<c_int> {
        let filled = match &mut self.content {
            Content::Db(db) => {
                match self.lock {
                    ffi::SQLITE_LOCK_NONE => {
                        before_read_without_lock(db, &self.base, at, buf.len())?;
                    }
                    _ => db.watch(&self.base)?,
                }
                let filled = db.read(&self.base, buf, at)?;
                if filled == Filled::Short && self.log.is_some() {
                    self.check_missing(at)?;
                }
                filled
            }
            Content::Journal(journal) => {
                if at < JOURNAL_HEADER
                    && let Content::Db(db) = &mut parent_of(&self.parent)?.content
                {
                    db.undo_starts();
                }
                let starts = journal.starts_playback(&self.base, buf.len(), at)?;
                if starts {
                    with_database(&self.parent, |db, _| db.check_journal())?;
                }
                let filled = journal.read(&self.base, buf, at)?;
                // Of a journal that was made void, SQLite reads zeros here, and plays nothing back.
                if starts && buf.iter().any(|&byte| byte != 0) {
                    journal.check_begun(with_database(&self.parent, MainDb::state_for_journal)?)?;
                }
                filled
            }
            Content::Wal(wal) => {
                let parent = parent_of(&self.parent)?;
                if let Content::Db(db) = &parent.content {
                    db.watch(&parent.base)?;
                }
                wal.read(&self.base, &*parent, buf, at)?
            }
            Content::Scratch(scratch) => scratch.read(&self.base, buf, at)?,
            Content::Through if self.base.read(buf, at)? => Filled::Full,
            Content::Through => Filled::Short,
        };
        Ok(match filled {
            Filled::Full => ffi::SQLITE_OK,
            Filled::Short => ffi::SQLITE_IOERR_SHORT_READ,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8], at: u64) -> Result<c_int> {
        match &mut self.content {
            Content::Db(_) => self.write_page(bytes, at)?,
            Content::Journal(journal) => {
                rollback_ends(&self.parent);
                journal.write(&self.base, bytes, at, || {
                    with_database(&self.parent, |db, base| db.journal_begins(base))
                })?;
            }
            Content::Wal(wal) => {
                let parent = parent_of(&self.parent)?;
                if let Content::Db(db) = &parent.content {
                    db.check_rights()?;
                    db.watch(&parent.base)?;
                }
                wal.write(&self.base, &*parent, bytes, at)?;
            }
            Content::Scratch(scratch) => scratch.write(&self.base, bytes, at)?,
            Content::Through => self.base.write(bytes, at)?,
        }
        self.assert_nothing_is_lost();
        Ok(ffi::SQLITE_OK)
    }

    pub(super) fn truncate(&mut self, size: u64) -> Result<c_int> {
        match &mut self.content {
            Content::Db(_) => self.truncate_pages(size)?,
            Content::Journal(journal) => {
                rollback_ends(&self.parent);
                journal.truncate(&self.base, size)?;
            }
            Content::Wal(wal) => wal.truncate(&self.base, &*parent_of(&self.parent)?, size)?,
            Content::Scratch(scratch) => scratch.truncate(&self.base, size)?,
            Content::Through => self.base.truncate(size)?,
        }
        self.assert_nothing_is_lost();
        Ok(ffi::SQLITE_OK)
    }

    pub(super) fn sync(&mut self, flags: c_int) -> Result<c_int> {
        self.pay()?;
        match &mut self.content {
            Content::Db(db) => db.before_sync(&self.base)?,
            Content::Wal(wal) => wal.before_sync(&self.base, &*parent_of(&self.parent)?)?,
            Content::Journal(journal) => journal.require(&self.base)?,
            _ => {}
        }
        Ok(self.base.sync_with(flags))
    }

    pub(super) fn size(&mut self) -> Result<u64> {
        self.check_checkpoint()?;
        match &mut self.content {
            Content::Db(db) => {
                let size = db.size(&self.base)?;
                self.plain.store(db.is_plain(), Ordering::Release);
                Ok(size)
            }
            Content::Journal(journal) => journal.size(&self.base),
            Content::Wal(wal) => wal.size(&self.base, &*parent_of(&self.parent)?),
            Content::Scratch(scratch) => Ok(scratch.size()),
            Content::Through => self.base.size(),
        }
    }

    pub(super) fn lock(&mut self, level: c_int) -> Result<c_int> {
        self.before_lock(level)?;
        let held = self.lock;
        let closes = self.closes_log(level);
        let code = match held {
            ffi::SQLITE_LOCK_NONE => self.lock_first(level)?,
            _ => self.base.lock(level),
        };
        if code != ffi::SQLITE_OK {
            return Ok(code);
        }
        self.set_lock(level);
        if held < ffi::SQLITE_LOCK_RESERVED && level >= ffi::SQLITE_LOCK_RESERVED {
            if let Err(error) = self.take_journal_anew() {
                self.unlock(held);
                return Err(error);
            }
            // A rollback of what a crash left goes straight to EXCLUSIVE. Where SQLite kept the
            // journal open, nothing else tells of it.
            if level == ffi::SQLITE_LOCK_EXCLUSIVE
                && self.journal.is_some()
                && let Content::Db(db) = &mut self.content
            {
                db.rollback_starts();
            }
        }
        if let Content::Db(db) = &mut self.content {
            if closes {
                // Others may have begun a log since, and checkpointed it.
                self.shm.locks += 1;
            }
            db.lock_changed(held == ffi::SQLITE_LOCK_NONE || closes);
            if held == ffi::SQLITE_LOCK_NONE
                && let Err(error) = db.look(&self.base)
            {
                // SQLite gets an error and takes it that it has no lock.
                self.unlock(held);
                return Err(error);
            }
            let was_plain = self.plain.swap(db.is_plain(), Ordering::AcqRel);
            let beside = if was_plain { self.plain_beside } else { 0 };
            let keeps_other = beside > 0 && !db.is_plain()
                || !was_plain && db.is_plain() && (self.journal.is_some() || self.log.is_some());
            if keeps_other {
                self.plain.store(was_plain, Ordering::Release);
                self.unlock(held);
                return Err(Error::Unsupported(
                    "the database was created anew, and its journal or log is still open as that of \
                     the one before: close the connection and open it again"
                        .into(),
                ));
            }
            if held == ffi::SQLITE_LOCK_NONE {
                self.settle_creation();
            }
            if held < ffi::SQLITE_LOCK_RESERVED && level >= ffi::SQLITE_LOCK_RESERVED {
                self.mend_envelope();
            }
        }
        Ok(code)
    }

    /// Whether this lock is for the last checkpoint, when a connection to a log is closed or its
    /// journal mode changed. No lock on the wal-index tells of it.
    fn closes_log(&self, level: c_int) -> bool {
        self.lock == ffi::SQLITE_LOCK_SHARED
            && level == ffi::SQLITE_LOCK_EXCLUSIVE
            && self.log.is_some()
            && self.shm.held == 0
    }

    fn set_lock(&mut self, level: c_int) {
        self.lock = level;
        self.writes.store(level >= ffi::SQLITE_LOCK_RESERVED, Ordering::Release);
    }

    /// Finds out whether the creation of the database may still be rolled back. Where that cannot
    /// be told, it may; reading a page will tell.
    pub(super) fn settle_creation(&mut self) {
        let may_be_undone = match &self.content {
            Content::Db(db) => db.may_be_undone() && db.envelope().is_some(),
            _ => false,
        };
        if may_be_undone
            && matches!(self.is_at_rest(), Ok(true))
            && let Content::Db(db) = &mut self.content
        {
            let _ = db.nobody_is_creating(&self.base);
        }
    }

    /// Whatever may have to wait for a provider is done before others can wait for the lock.
    fn before_lock(&mut self, level: c_int) -> Result<()> {
        let held = self.lock;
        if held == ffi::SQLITE_LOCK_NONE {
            self.begin()?;
        }
        // It fails by itself where there are no keys.
        if self.closes_log(level) {
            let _ = self.begin();
        }
        let Content::Db(db) = &mut self.content else { return Ok(()) };
        if held == ffi::SQLITE_LOCK_NONE && db.has_no_page() {
            // What is wrong with it shows under the lock; while it is being created, nothing is.
            let _ = db.look(&self.base);
            // A statement that will write makes the keys now, beside no lock. Between SHARED and
            // EXCLUSIVE others would be kept from their own creation of the database, and two that
            // came so far together, as with `PRAGMA journal_mode=WAL`, could not wait for each
            // other: one gets SQLITE_BUSY at once.
            let place = self.connection.load(Ordering::Acquire);
            // SAFETY: SQLite is in a call on the file, so the connection that uses it is open.
            let writing = unsafe { is_writing(place) };
            if self.writable && db.is_unmade() && writing {
                db.prepare()?;
            }
        }
        // A transaction that has begun by reading has nothing but its SHARED.
        if held < ffi::SQLITE_LOCK_RESERVED && level >= ffi::SQLITE_LOCK_RESERVED {
            db.prepare()?;
        }
        // A rollback of what a crash left goes straight to EXCLUSIVE.
        if level == ffi::SQLITE_LOCK_RESERVED {
            db.check_transaction()?;
            return db.check_rights();
        }
        Ok(())
    }

    /// Takes the first lock, which SQLite has as SHARED. Where another connection has created the
    /// database since this one last looked, the provider is asked for its keys, and others must not
    /// wait for it meanwhile.
    fn lock_first(&mut self, level: c_int) -> Result<c_int> {
        let code = self.base.lock(level);
        let Content::Db(db) = &mut self.content else { return Ok(code) };
        if code != ffi::SQLITE_OK || !db.is_unmade() {
            return Ok(code);
        }
        if matches!(db.is_still_empty(&self.base), Ok(true)) {
            return Ok(code);
        }
        self.base.unlock(ffi::SQLITE_LOCK_NONE);
        // What is wrong with the file shows under the lock.
        let _ = db.look(&self.base);
        Ok(self.base.lock(level))
    }

    /// What the journal's handle knows of a journal holds under one lock: SQLite may keep it open
    /// between transactions (`SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN`), while others write the file.
    fn take_journal_anew(&self) -> Result<()> {
        if let Some(OpenFile { content: Content::Journal(journal), .. }) =
            enter(&self.journal)?.as_deref_mut()
        {
            journal.take_anew();
        }
        Ok(())
    }

    /// A transaction begins.
    fn begin(&mut self) -> Result<()> {
        let Content::Db(db) = &mut self.content else { return Ok(()) };
        db.begin(&self.base)?;
        db.transaction_begins();
        self.rotate_by_itself();
        Ok(())
    }

    /// A journal or log of this database file is about to be opened. Without locks (`nolock=1`) it
    /// is the look for one that a crash left with which a transaction begins.
    pub(super) fn before_journal(&mut self, kind: FileKind, flags: c_int) -> Result<()> {
        let looks = kind == FileKind::MainJournal && flags & ffi::SQLITE_OPEN_CREATE == 0;
        if looks && self.lock == ffi::SQLITE_LOCK_NONE { self.begin() } else { Ok(()) }
    }

    /// Writes what a background check has wrapped under newer keys. Nobody asked for it, so nobody
    /// is told of an error but the log.
    pub(super) fn rotate_by_itself(&mut self) {
        if let Err(error) = command::apply_pending(self) {
            api::log(error.sqlite_code(), &format!("sqlite-tde: automatic rotation: {error}"));
        }
    }

    /// Finishes a change of the protectors that was cut off, where this file may be written.
    /// Whoever opens it asked for something else, so an error goes to the log.
    pub(super) fn mend_envelope(&mut self) {
        if let Err(error) = command::mend(self, std::time::Duration::ZERO) {
            api::log(error.sqlite_code(), &format!("sqlite-tde: the envelope: {error}"));
        }
    }

    pub(super) fn unlock(&mut self, level: c_int) -> c_int {
        if level < ffi::SQLITE_LOCK_RESERVED
            && let Err(error) = self.take_journal_anew()
        {
            api::log(error.sqlite_code(), &format!("sqlite-tde: {error}"));
        }
        let code = self.base.unlock(level);
        // Also after an error: a lock that may be gone must not be counted on.
        self.set_lock(level);
        if let Content::Db(db) = &mut self.content {
            db.unlocked(level == ffi::SQLITE_LOCK_NONE);
            db.lock_changed(level == ffi::SQLITE_LOCK_NONE);
        }
        self.assert_nothing_is_lost();
        code
    }

    /// A lock on the wal-index is about to be taken. It is the first one that begins a transaction:
    /// beside another, somebody may wait already, and no provider is asked.
    pub(super) fn before_shm_lock(&mut self) -> Result<()> {
        match &mut self.content {
            Content::Db(db) if self.shm.held > 0 => db.watch(&self.base),
            _ => self.begin(),
        }
    }

    /// `count` locks on the wal-index were given back.
    pub(super) fn shm_unlocked(&mut self, offset: c_int, count: c_int) {
        if (offset..offset + count).contains(&CHECKPOINT) {
            self.shm.checkpoint_unlocked();
            self.checkpoint_is_void = false;
        }
        self.shm.held = self.shm.held.saturating_sub(count.unsigned_abs());
        if self.shm.reader.is_some() && self.shm.reader == reader_of(offset) {
            self.shm.reader = None;
        }
    }

    /// The wal-index's lock of writers was taken: a write transaction begins.
    pub(super) fn writing_starts(&mut self) {
        self.mend_envelope();
    }

    /// The lock under which the log is written was given back.
    pub(super) fn write_lock_given_back(&self) {
        if let Ok(Some(mut open)) = enter(&self.log)
            && let Content::Wal(wal) = &mut open.content
        {
            wal.lock_given_back(self);
        }
    }

    /// `count` locks on the wal-index were taken. No checkpoint of another connection makes the
    /// file shorter than this one knows it while it reads or checkpoints; when it begins a
    /// checkpoint, SQLite asks for the size once more.
    pub(super) fn shm_locked(&mut self, offset: c_int, count: c_int, exclusive: bool) {
        /// What a writer takes beside its read lock.
        const WRITE: c_int = 0;
        if !exclusive {
            self.shm.reader = reader_of(offset).or(self.shm.reader);
        }
        if exclusive && (offset..offset + count).contains(&CHECKPOINT) {
            self.shm.checkpoint_locked();
        }
        let first = self.shm.held == 0 || WRITE < offset && offset < READ;
        self.shm.locks += 1;
        if self.shm.held == 0
            && let Ok(Some(mut log)) = enter(&self.log)
            && let Content::Wal(wal) = &mut log.content
        {
            wal.transaction_begins(self);
        }
        self.shm.held += count.unsigned_abs();
        if let Content::Db(db) = &mut self.content {
            db.lock_changed(first);
        }
    }

    /// The lock under which a log is recovered is about to be given back.
    pub(super) fn end_recovery(&mut self) {
        self.shm.checkpoint_locked();
        if let Err(error) = self.seal_holes() {
            // SQLite asks for no result here. `verify` tells which pages are bad.
            api::log(error.sqlite_code(), &format!("sqlite-tde: {error}"));
        }
    }

    /// If a log was recovered, seals what an interrupted checkpoint left of pages that are not in
    /// it.
    fn seal_holes(&mut self) -> Result<()> {
        let mut log = enter(&self.log)?;
        let Some(OpenFile { base: log_base, content: Content::Wal(wal), .. }) = log.as_deref_mut()
        else {
            return Ok(());
        };
        let Some(Recovered { least, last }) = wal.recovered else { return Ok(()) };
        let view = View { end: wal.end_or(self.shm.last_commit()), ..View::default() };
        let logged = wal.demand(log_base, view)?.logged;
        let last = self.shm.pages().unwrap_or(last);
        if let Content::Db(db) = &mut self.content {
            db.seal_holes(&self.base, least.saturating_add(1)..=last, &logged)?;
            if let Some((log, end)) = wal.recovered_end(self.shm.last_frame()) {
                db.log_ends(&self.base, log, end)?;
            }
        }
        wal.recovered = None;
        Ok(())
    }

    /// Refuses a database file that is shorter than its log allows, and where the page at `at` is
    /// missing that has to be there.
    fn check_missing(&self, at: u64) -> Result<()> {
        let Content::Db(db) = &self.content else { return Ok(()) };
        db.check_missing(&self.base, at, &mut || demand_of(&self.log, &self.shm))
    }

    fn write_page(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        // A page that the transaction did not reach is written as it was, and its journal is not in
        // the base: sealed anew and torn, it would be lost.
        if !self.flush_journal()?
            && let Content::Db(db) = &mut self.content
            && db.has_page(&self.base, bytes, at)?
        {
            return Ok(());
        }
        // Without a wal-index in shared memory, nothing else tells when a recovery is over.
        if self.log.is_some() && self.shm.pages().is_none() {
            self.seal_holes()?;
        }
        self.note_checkpoint(Step::Page)?;
        let may_wait = self.may_wait(at, bytes.len());
        let Content::Db(db) = &mut self.content else { return Ok(()) };
        if db.is_unmade() {
            // SAFETY: this database is open there.
            unsafe { self.place.delete_plain_log()? };
        }
        let mut demand = || demand_of(&self.log, &self.shm);
        match db.write(&self.base, bytes, at, may_wait, &mut demand) {
            // With `journal_mode=MEMORY` what a rollback puts back is nowhere else. It needs the
            // keys, and so does a page that is written before the transaction is refused.
            Err(Error::Inaccessible(_)) if self.journal.is_none() && self.log.is_none() => {
                db.begin(&self.base)?;
                db.write(&self.base, bytes, at, may_wait, &mut demand)?;
            }
            written => written?,
        }
        self.assert_journal_is_there();
        Ok(())
    }

    /// Where the database has a log, a checkpoint of it comes to `step`.
    fn note_checkpoint(&mut self, step: Step) -> Result<()> {
        let is_noted = |db: &MainDb| matches!(step, Step::Page) && db.is_checkpoint_noted();
        if matches!(&self.content, Content::Db(db) if is_noted(db)) {
            return Ok(());
        }
        let mut log = enter(&self.log)?;
        let Some(OpenFile { base: log_base, content: Content::Wal(wal), .. }) = log.as_deref_mut()
        else {
            return Ok(());
        };
        let log = wal.identity(log_base, &*self)?.ok_or(Error::FrameAuthentication { frame: 0 })?;
        // What the checkpoint set out to bring: others may have committed more since.
        let brought = wal.brought(self.shm.frames_attempted());
        match step {
            Step::Page => {
                let Content::Db(db) = &mut self.content else { return Ok(()) };
                db.checkpoint_writes(&self.base, log, brought)
            }
            Step::End => {
                let last = wal.last_frame(log_base, brought)?;
                let Content::Db(db) = &mut self.content else { return Ok(()) };
                db.checkpoint_ends(&self.base, log, last)
            }
        }
    }

    /// A truncation needs nothing of the journal that waits: it is a rollback's, to the size that
    /// the journal's header has, or comes after the commit.
    fn truncate_pages(&mut self, size: u64) -> Result<()> {
        self.pay()?;
        // With a log, only a checkpoint that took all of it sets the size.
        self.note_checkpoint(Step::End)?;
        let Content::Db(db) = &mut self.content else { return Ok(()) };
        db.truncate(&self.base, size, &mut || demand_of(&self.log, &self.shm))
    }

    /// The file is open as `own`: a database learns of its log and of its journal.
    pub(super) fn link(&self, own: &Arc<Shared>) -> Result<()> {
        let Some(mut parent) = enter(&self.parent)? else { return Ok(()) };
        match &self.content {
            Content::Wal(_) => parent.log = Some(Arc::clone(own)),
            Content::Journal(_) => parent.journal = Some(Arc::clone(own)),
            Content::Through => parent.plain_beside += 1,
            _ => {}
        }
        Ok(())
    }

    /// Closes the file. `own` is what others know it by.
    pub(super) fn close(&mut self, own: &Shared) -> c_int {
        if matches!(self.content, Content::Journal(_)) {
            rollback_ends(&self.parent);
        }
        if let Ok(Some(mut parent)) = enter(&self.parent) {
            let OpenFile { log, journal, plain_beside, .. } = &mut *parent;
            if matches!(self.content, Content::Through) {
                *plain_beside = plain_beside.saturating_sub(1);
            }
            for link in [log, journal] {
                if link.as_deref().is_some_and(|link| link.is(own)) {
                    *link = None;
                }
            }
        }
        // What still links to a database that is closed before them holds no more than its memory.
        (self.parent, self.log, self.journal) = (None, None, None);
        self.base.close()
    }

    /// What a torn write spoils of the journal, as SQLite has it from the database file: it asks
    /// that one, when it is opened.
    pub(super) fn journal_grain(&self) -> usize {
        if self.powersafe { 1 } else { self.sector }
    }

    /// What a torn write spoils of the log `log`. SQLite asks the database file whether a sector is
    /// spoilt, when it opens the log, and the log how long one is.
    pub(super) fn log_grain(&self, log: &BaseFile) -> usize {
        if self.base.is_powersafe() { 1 } else { log.sector().max(self.sector) }
    }

    /// Whether SQLite must still be told to reserve bytes for the trailer: nothing was written yet,
    /// and on first writing SQLite takes the layout that it has in mind by then.
    pub(super) fn wants_reserve(&self) -> bool {
        matches!(&self.content, Content::Db(db) if db.has_no_page())
            && !self.connection.load(Ordering::Acquire).is_null()
            && !self.reserves
    }

    pub(super) fn device_characteristics(&self) -> c_int {
        let base = self.base.device_characteristics();
        if self.passes_through() { base } else { base & !NOT_OURS }
    }

    /// Whether this is an encrypted database that something was committed to.
    pub(super) fn has_pages(&self) -> bool {
        match &self.content {
            Content::Db(db) => db.envelope().is_some_and(|envelope| envelope.has_pages),
            _ => false,
        }
    }

    pub(super) fn is_database(&self) -> bool {
        matches!(self.content, Content::Db(_))
    }

    /// Whether the bytes in the file are those that SQLite sees.
    pub(super) fn passes_through(&self) -> bool {
        match &self.content {
            Content::Through => true,
            Content::Db(db) => db.is_plain(),
            Content::Journal(_) | Content::Wal(_) => false,
            Content::Scratch(_) => false,
        }
    }

    /// Answers `PRAGMA name = value` where it is ours to answer.
    pub(super) fn pragma(&mut self, name: &str, value: Option<&str>) -> Result<Option<String>> {
        if !matches!(self.content, Content::Db(_)) {
            return Ok(None);
        }
        command::pragma(self, name, value)
    }

    /// Whether the protector through which a database was opened allows no more than reading.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(&self.content, Content::Db(db) if db.is_read_only())
    }

    /// Authenticates the committed frames of the log, where there is one.
    #[cfg(feature = "rusqlite")]
    pub(super) fn log_frames(&self) -> Result<Frames> {
        let mut log = enter(&self.log)?;
        let Some(OpenFile { base, content: Content::Wal(wal), .. }) = log.as_deref_mut() else {
            return Ok(Frames::default());
        };
        let salts = self.shm.salts();
        let last = match self.shm.last_frame() {
            Some(last) => last,
            None => wal.last_commit(base)?,
        };
        let frames = wal.frames(base, self, last)?;
        // Where all was in the database already, another process may have begun a log meanwhile.
        Ok(if self.shm.salts() == salts { frames } else { Frames::default() })
    }

    /// Runs `work` on the database with at least a shared lock, so that nobody writes meanwhile.
    pub(super) fn with_shared_lock<T>(
        &mut self,
        work: impl FnOnce(&mut MainDb, &BaseFile) -> Result<T>,
    ) -> Result<T> {
        let locked = self.lock == ffi::SQLITE_LOCK_NONE;
        if locked {
            match self.lock(ffi::SQLITE_LOCK_SHARED)? {
                ffi::SQLITE_OK => {}
                code => return Err(Error::Base(code)),
            }
        }
        let result = match &mut self.content {
            Content::Db(db) => work(db, &self.base),
            _ => Err(Error::NotEncrypted),
        };
        if locked {
            self.unlock(ffi::SQLITE_LOCK_NONE);
        }
        result
    }
}
