//! The write-ahead log of an encrypted database.
//!
//! ```text
//! 0        sector     2 * sector          + stride
//! | header | record 0 | record of frame 1 | record of frame 2 | ...
//!
//! header:   0       16       20          24      28        44       60
//!           | magic | format | page size | grain | file id | log id | zeros to 512 |
//! record 0: SQLite's WAL header 32, origin 36: pages of the database 4, counters 16, state 16;
//!           trailer 48
//! frame:    SQLite's frame header 24, page, trailer 48
//! ```
//! Each record is sealed as a block of its own, numbered as its frame, record 0 as grain * 2^32 +
//! page size, which no frame is, and bound to the log id; SQLite's bytes are kept as they are,
//! because its checksums cover them. `grain` is the unit that a torn write may spoil: 1 byte if the
//! base has powersafe overwrite, else the base's sector, which no two records share. `sector` is
//! `grain`, at least 512; `stride` is the length of a frame's record, a multiple of `grain`.
//!
//! The log id is drawn at random each time SQLite begins a log, and is in the associated data of
//! every record: records of an earlier log in the file, or of a copy of the file that was written
//! to since, authenticate nowhere. It is in the associated data and not the salt of a key, as a
//! journal's is, because a log's records may be under several DEKs, and because a key for each log
//! would cost each reader a key derivation for each log.
//!
//! The origin describes the database file at the begin of the log: its size, SQLite's bytes 24 to
//! 39 of page 1, and the state that its slots name. A log is played back only over a file that is
//! in that state, or in one that checkpoints of this very log have left (`origin`). Any other log
//! is refused if it holds a commit, and else counts as empty. If SQLite recovers nothing, because
//! it trusts the wal-index, each handle checks a log that is new to it before it touches a frame.
//!
//! Header and record 0 are written anew in one write whenever a log begins. A crash may leave
//! either of them old or spoilt. Record 0 then fails, and the log is empty, or both are old, and
//! the log is the earlier one, of which the write touches no frame. Neither loses anything, since
//! SQLite begins a log only after the database has all of the earlier one, synced, and syncs the
//! header before it writes a frame.
//!
//! SQLite writes a frame as header and page, sometimes cut in two at a sync. Both are gathered here
//! and sealed with the write that completes them: until then no reader can take the frame for a
//! valid one. SQLite may later overwrite the page, or the header after a read of the frame.
//!
//! Records of frames that follow each other are gathered in `outgoing`, and reach the base in one
//! write: with the frame that commits, whose xWrite reports an error; before a sync; when there are
//! many. Before the commit only this handle can ask for those frames, and it gets them from memory.
//! Taken back as a whole, they are forgotten: another handle may have written frames in their
//! places since, and the lock for which [`Owner::locks`] counts comes before the next call of this
//! handle.
//!
//! Sequential reads are served from a window ([`crate::io::read_ahead`]). SQLite asks for a frame
//! only if it was committed when the transaction at hand took its lock, or if this handle wrote it
//! since. The first kind stays as it is for as long as that lock is held: frames are only added
//! behind, and a log starts over only while it has no reader. So bytes read since then are valid,
//! whether or not they were asked for yet; and the window is dropped with each lock taken, each own
//! write over it, and each new layout. A record that fails is read again by itself, before it
//! counts.
//!
//! Invariants
//! 1. A record is sealed and written whole, under a nonce of its own.
//! 2. A read that starts with a frame or with the WAL header comes from recovery, and answers zeros
//!    if the record does not authenticate: the end of the log, as a bad checksum would be. Any
//!    other read is of a frame that SQLite takes for valid, and fails; so does one of a frame that
//!    this handle wrote in the transaction at hand.
//! 3. A page is handed out only if its frame header has the page number that the wal-index has for
//!    the frame: records of a transaction that was rolled back authenticate at the same place.
//!    SQLite's salts and checksums are not checked. Recovery checks them, and SQLite before 3.50
//!    commits frames without any, for which the wal-index alone vouches. A wal-index in the heap
//!    cannot be asked; then no other process has the log open.
//! 4. The header is a property of the file, authenticated with record 0: without that no frame is
//!    read or written. It changes only with SQLite's salts: if those are the same again, nothing
//!    was committed, and the file is left unchanged. So a handle that sees the salts of its record
//!    0 in the wal-index has the right header.
//! 5. The outgoing frames belong to the current transaction, and none of them is lost. Nothing is
//!    outgoing after a frame that commits, after a sync, after a lock was given back, or without
//!    record 0. A frame that could not be written is an error to read, and no frame follows it,
//!    until SQLite has taken it back.
//!
//! Builds with debug assertions check the last one at each return to SQLite.

mod chain;
mod layout;
mod origin;
mod outgoing;
mod read;
mod survey;
mod transaction;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;

use self::layout::{HEADER_LEN, Layout, is_foreign, is_size, is_zero};
use self::outgoing::Outgoing;
pub(crate) use self::survey::{Demand, View};
use self::transaction::Transaction;
use super::journal::Counters;
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::io::read_ahead::Ahead;
use crate::key::cipher::{Cipher, Subkey};
use crate::key::envelope::slot::{Fit, StateId};
use crate::key::keyring::Keyring;
use crate::page::{FrameNo, LogId, PageNo, RESERVE};
use crate::secret::fill_random;
use crate::settings::Tuning;

/// SQLite's WAL header, and in it the page size and the salts.
const WAL_HEADER: usize = 32;
const WAL_PAGE_SIZE_AT: usize = 8;
const WAL_SALTS_AT: usize = 16;
/// Record 0 without its trailer.
const RECORD_0: usize = STATE_AT + size_of::<StateId>();
const COUNTERS_AT: usize = WAL_HEADER + size_of::<u32>();
const STATE_AT: usize = COUNTERS_AT + size_of::<Counters>();
/// SQLite's frame header: page number, pages of the database after a commit or 0, salts, checksum.
const FRAME_HEADER: usize = 24;
const COMMIT_AT: usize = 4;
const SALTS_AT: usize = 8;

const _: () = assert!(RECORD_0 + RESERVE <= HEADER_LEN, "record 0 fits in a sector");

/// SQLite's salts of one log, as bytes: every frame repeats them.
pub(crate) type Salts = [u8; 8];

/// The services that a log needs from its database.
pub(crate) trait Owner {
    /// Counts the locks that were taken on the wal-index: others may have written in between.
    fn locks(&self) -> u64;
    /// The salts in the wal-index; `None` without shared memory.
    fn salts(&self) -> Option<Salts>;
    /// The frame of the last commit by the wal-index; `None` without shared memory.
    fn last_frame(&self) -> Option<FrameNo>;
    /// The page that the wal-index has for `frame`; `None` without shared memory, and beyond it.
    fn page_of(&self, frame: FrameNo) -> Option<PageNo>;
    /// Whether no other connection uses the database: then the wal-index may be in SQLite's own
    /// memory.
    fn is_alone(&self) -> bool;
    /// Refuses a commit to the log of a database file that can no longer be opened.
    fn check_envelope(&self) -> Result<()>;
    /// The state of the database file, for a log that begins.
    fn origin(&self) -> Result<Origin>;
    /// The relation of the log `log`, begun on `state`, to the current database file.
    fn fit(&self, log: &LogId, state: &StateId) -> Result<Fit>;
    /// SQLite's bytes 24 to 39 of page 1 in the database file; `None` if that is bad or missing.
    fn counters(&self) -> Result<Option<Counters>>;
}

/// The state of the database file at the begin of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Origin {
    /// Pages that it had.
    pub(crate) pages: u32,
    pub(crate) counters: Counters,
    pub(crate) state: StateId,
}

/// Sizes of the database in the recovered commits, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The smallest size that the file may have been cut to.
    pub(crate) least: u32,
    /// The size at the last commit; 0 without a commit.
    pub(crate) last: u32,
}

/// The log's share of the database.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// Pages in the log; their copies in the database file need not be whole.
    pub(crate) pages: BTreeSet<PageNo>,
    /// Frames that failed authentication.
    pub(crate) bad: Vec<FrameNo>,
}

/// The first bytes of a frame that SQLite has not written to its end.
#[derive(Clone, Copy)]
struct Pending {
    frame: FrameNo,
    filled: usize,
    /// It was begun under an earlier lock. Only its exact rest is accepted, which a VFS above may
    /// have delayed; otherwise SQLite has taken it back.
    left_over: bool,
}

/// The plaintext of record 0.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Start([u8; RECORD_0]);

impl Start {
    fn new(header: &[u8; WAL_HEADER], origin: &Origin) -> Self {
        let mut record = [0; RECORD_0];
        record[..WAL_HEADER].copy_from_slice(header);
        record[WAL_HEADER..COUNTERS_AT].copy_from_slice(&origin.pages.to_be_bytes());
        record[COUNTERS_AT..STATE_AT].copy_from_slice(&origin.counters);
        record[STATE_AT..].copy_from_slice(&origin.state);
        Self(record)
    }

    fn header(&self) -> &[u8] {
        &self.0[..WAL_HEADER]
    }

    fn salts(&self) -> Salts {
        let mut salts = Salts::default();
        salts.copy_from_slice(salts_in(&self.0));
        salts
    }

    fn origin(&self) -> Origin {
        let mut origin = Origin { pages: number(&self.0[WAL_HEADER..]), ..Origin::default() };
        origin.counters.copy_from_slice(&self.0[COUNTERS_AT..STATE_AT]);
        origin.state.copy_from_slice(&self.0[STATE_AT..]);
        origin
    }
}

pub(crate) struct Wal {
    keyring: Option<Arc<Keyring>>,
    cipher: Option<Cipher>,
    /// Grain of a log that this handle starts.
    grain: usize,
    tuning: Tuning,
    layout: Option<Layout>,
    /// Record 0; `None` if it does not authenticate, and then neither does the layout.
    start: Option<Start>,
    /// Results of a recovery, until the database has taken them.
    pub(crate) recovered: Option<Recovered>,
    /// A log that belongs to another state of the database and has no commit: it counts as empty.
    void: Option<LogId>,
    /// The log that this handle began, or that it found to belong to the database.
    fits: Option<LogId>,
    /// The frame of the last commit that this handle recovered or wrote.
    end: Option<FrameNo>,
    /// The last frame that was committed, by a recovery through this handle or as the wal-index
    /// once said of this log: no transaction may write over it.
    published: FrameNo,
    /// The last committed frame, as of this handle's last check or own commit.
    seen: FrameNo,
    /// [`Owner::locks`] at this handle's last check.
    locks: u64,
    /// Record 0 was compared with the wal-index, or read, since that check.
    current: bool,
    pending: Option<Pending>,
    transaction: Transaction,
    /// The pages of the frames that were recovered and written through this handle, in order, while
    /// its connection has the database for itself and SQLite's wal-index is nowhere to be seen.
    learned: Vec<PageNo>,
    outgoing: Outgoing,
    ahead: Ahead,
    /// The bytes of the pending frame so far.
    gathered: Vec<u8>,
    /// Number of the frame in `plain`, equal to its record in the file or outgoing.
    held: Option<FrameNo>,
    /// The plaintext of a frame, with room for its trailer while it is sealed.
    plain: Vec<u8>,
    /// Buffer for a record that is written by itself.
    sealed: Vec<u8>,
}

impl Wal {
    /// The log of the database that `keyring` opens, on storage of which a torn write spoils
    /// `grain` bytes. Without a keyring there is no database yet, and no log.
    pub(crate) fn new(keyring: Option<Arc<Keyring>>, grain: usize, tuning: Tuning) -> Self {
        Self {
            cipher: keyring.as_ref().map(|keyring| keyring.cipher(Subkey::Wal)),
            keyring,
            grain,
            tuning,
            layout: None,
            start: None,
            recovered: None,
            void: None,
            fits: None,
            end: None,
            published: FrameNo::NONE,
            seen: FrameNo::NONE,
            locks: 0,
            current: false,
            pending: None,
            transaction: Transaction::default(),
            learned: Vec::new(),
            outgoing: Outgoing::default(),
            ahead: Ahead::default(),
            gathered: Vec::new(),
            held: None,
            plain: Vec::new(),
            sealed: Vec::new(),
        }
    }

    /// Whether the file is the log of another database. It counts as empty.
    pub(crate) fn is_foreign(&self, base: &impl Storage) -> Result<bool> {
        let mut header = [0; HEADER_LEN];
        let Some(keyring) = &self.keyring else { return Ok(false) };
        Ok(base.read(&mut header, 0)? && is_foreign(&header, keyring.file_id()))
    }

    /// SQLite starts a log, in an empty file or over one whose frames are all in the database.
    fn begin(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        header: &[u8; WAL_HEADER],
    ) -> Result<()> {
        let keyring = self.keyring.as_ref().ok_or_else(|| {
            Error::Usage("a log was written before its database was created".into())
        })?;
        let page_size = number(&header[WAL_PAGE_SIZE_AT..]) as usize;
        if !is_size(page_size) {
            return Err(Error::PageSize(page_size as u32));
        }
        let file_id = *keyring.file_id();
        let cipher = self.cipher.as_ref().ok_or(Error::FrameAuthentication { frame: 0 })?;
        if self.start.is_some_and(|start| start.header() == header) {
            // The connection that began this log committed nothing in it. Record 0 still describes
            // the database, and other handles know the log by its salts. Frames that a savepoint of
            // this transaction took back go to the file, where SQLite has them: before 3.50 it
            // reads the checksum of one when it commits.
            if let Some(layout) = self.layout {
                self.flush(base, layout)?;
            }
            self.forget_transaction();
            (self.pending, self.end) = (None, Some(FrameNo::NONE));
            return Ok(());
        }
        let kept = self.layout.filter(|_| self.start.is_some());
        // The same log once more: the transaction that began it was rolled back, and another
        // connection writes its own count of checkpoints into the header. A handle that knows the
        // log by its salts has its layout.
        let again = self.start.filter(|_| kept.is_some_and(|kept| kept.page_size == page_size));
        let again = again.filter(|start| start.salts() == salts_in(header));
        let (start, layout) = match (again, kept) {
            (Some(begun), Some(kept)) => (Start::new(header, &begun.origin()), kept),
            _ => {
                let start = Start::new(header, &owner.origin()?);
                // Another grain would lay record 0 over frames of the earlier log, to which a crash
                // may lead back, unless the file is emptied first.
                let kept_grain = kept.map_or(self.grain, |layout| layout.grain);
                if kept_grain < self.grain {
                    base.truncate(0)?;
                }
                let mut log = LogId::default();
                fill_random(&mut log)?;
                (start, Layout { page_size, grain: kept_grain.max(self.grain), log })
            }
        };
        let mut image = vec![0; layout.sector() + HEADER_LEN];
        image[..HEADER_LEN].copy_from_slice(&layout.encode(&file_id));
        let record_0 = layout.sector()..layout.sector() + RECORD_0 + RESERVE;
        cipher.seal(layout.record_0(), &start.0, &mut image[record_0])?;
        // SQLite has taken the outgoing frames back, or it would not begin anew.
        self.forget_transaction();
        (self.layout, self.start, self.published) = (None, None, FrameNo::NONE);
        base.write(&image, 0)?;
        self.set_layout(layout);
        (self.start, self.end, self.fits) = (Some(start), Some(FrameNo::NONE), Some(layout.log));
        Ok(())
    }

    /// SQLite's salts of this log.
    fn salts(&self) -> Option<Salts> {
        self.start.as_ref().map(Start::salts)
    }

    /// Pages of the database file at the begin of the log; 0 without a log.
    fn pages(&self) -> u32 {
        self.start.as_ref().map_or(0, |start| start.origin().pages)
    }

    /// Record 0; `None` if it does not authenticate.
    fn load_start(&self, base: &impl Storage, layout: Layout) -> Result<Option<Start>> {
        let (mut sector, at) = ([0; HEADER_LEN], layout.sector() as u64);
        // Bytes past the end of the file read as zeros, as does the rest of the sector.
        let whole = base.read(&mut sector, at)?
            || base.read_whole(&mut sector[..RECORD_0 + RESERVE], at)?;
        if whole { self.open_start(layout, &sector) } else { Ok(None) }
    }

    /// As [`Wal::load_start`], from the bytes that start with record 0.
    fn open_start(&self, layout: Layout, sector: &[u8]) -> Result<Option<Start>> {
        let Some(cipher) = &self.cipher else { return Ok(None) };
        let mut record = [0; RECORD_0];
        let (sealed, rest) = sector.split_at(RECORD_0 + RESERVE);
        let good = is_zero(rest) && cipher.open(layout.record_0(), sealed, &mut record)?;
        Ok(good.then_some(Start(record)))
    }

    /// Reads the header again if another handle may have begun a log; returns whether one did.
    fn refresh(&mut self, base: &impl Storage, owner: &impl Owner) -> Result<bool> {
        self.notice_locks(owner);
        if self.current && self.layout.is_some() {
            return Ok(false);
        }
        // Without shared memory only the file can tell.
        let known = self.start.is_some() && self.salts() == owner.salts();
        if !known {
            self.load_layout(base)?;
        }
        if let Some(last) = self.last_in_index(owner) {
            if last < self.published {
                // This is legitimate only after a recovery that ended the log earlier: SQLite
                // before 3.50 commits frames without checksums, and takes none of them for valid
                // then.
                let in_chain = self.last_in_chain(base)?;
                if in_chain > last {
                    return Err(Error::FrameAuthentication { frame: last.next().0 });
                }
            }
            if last != self.seen {
                // Others committed, or an older log was put in place: check it again.
                self.fits = None;
            }
            (self.published, self.seen) = (last, last);
        }
        self.current = true;
        Ok(!known)
    }

    /// The frame of the last commit by the wal-index, if that describes this log.
    fn last_in_index(&self, owner: &impl Owner) -> Option<FrameNo> {
        let last = owner.last_frame()?;
        // Read after the frame, the salts also reveal a log that was begun meanwhile.
        (self.start.is_some() && self.salts() == owner.salts()).then_some(last)
    }

    /// A transaction begins. Others may have committed since the last one, or an older log was put
    /// in place: then it is checked again before a frame of it counts.
    pub(crate) fn transaction_begins(&mut self, owner: &impl Owner) {
        let last = self.last_in_index(owner);
        if last != Some(self.seen) {
            self.fits = None;
        }
        if let Some(last) = last {
            (self.published, self.seen) = (self.published.max(last), last);
        }
    }

    /// A new lock means a new transaction: uncommitted frames were taken back, and others may have
    /// written.
    fn notice_locks(&mut self, owner: &impl Owner) {
        let locks = owner.locks();
        if self.locks != locks {
            (self.locks, self.current) = (locks, false);
            self.forget_transaction();
        }
    }

    /// SQLite released its write lock on the log: uncommitted frames are taken back, and committed
    /// ones are in the wal-index.
    pub(crate) fn lock_given_back(&mut self, owner: &impl Owner) {
        if let Some(last) = self.last_in_index(owner) {
            self.published = self.published.max(last);
        }
        self.forget_transaction();
        self.check();
    }

    /// Invariant 5, at a return to SQLite. It depends on this handle's actions only, not on the
    /// disk.
    fn check(&self) {
        let (Some(first), Some(last)) = (self.outgoing.first(), self.outgoing.last()) else {
            return;
        };
        debug_assert!(self.start.is_some() && self.layout.is_some(), "frames without record 0");
        debug_assert!(self.transaction.has(first), "{first:?} is of no transaction");
        debug_assert!(!self.transaction.has_lost(last), "{last:?} is lost and outgoing");
    }

    /// Invariant 5, when nothing may be outgoing.
    fn check_nothing_outgoing(&self, after: &str) {
        let first = self.outgoing.first();
        debug_assert!(first.is_none(), "{first:?} and on are outgoing after {after}");
    }

    fn forget_transaction(&mut self) {
        self.transaction.end();
        self.outgoing.clear();
        self.ahead.clear();
        if let Some(pending) = &mut self.pending {
            pending.left_over = true;
        }
        self.held = None;
    }

    fn load_layout(&mut self, base: &impl Storage) -> Result<()> {
        let Some(keyring) = &self.keyring else { return Ok(()) };
        // Header and record 0 are neighbours where sectors are small.
        let mut start = [0; 2 * HEADER_LEN];
        let both = base.read(&mut start, 0)?;
        let (header, sector) = start.split_at_mut(HEADER_LEN);
        let whole = both || base.read_whole(header, 0)?;
        let layout = Layout::decode(header, keyring.file_id()).filter(|_| whole);
        let Some(layout) = layout else {
            self.lose_outgoing();
            (self.layout, self.start, self.end) = (None, None, None);
            return Ok(());
        };
        if self.layout != Some(layout) {
            self.set_layout(layout);
        }
        self.start = if both && layout.sector() == HEADER_LEN {
            self.open_start(layout, sector)?
        } else {
            self.load_start(base, layout)?
        };
        if self.void == Some(layout.log) {
            self.start = None;
        }
        if self.start.is_none() {
            self.lose_outgoing();
        }
        Ok(())
    }

    fn set_layout(&mut self, layout: Layout) {
        self.lose_outgoing();
        self.outgoing.reset();
        self.ahead.clear();
        (self.layout, self.start, self.end) = (Some(layout), None, None);
        self.published = FrameNo::NONE;
        self.pending = None;
        self.held = None;
        self.plain.resize(layout.record(), 0);
        self.gathered.resize(layout.record(), 0);
        self.sealed = Vec::new();
    }
}

/// The salts in SQLite's WAL header.
fn salts_in(header: &[u8]) -> &[u8] {
    &header[WAL_SALTS_AT..WAL_SALTS_AT + size_of::<Salts>()]
}

/// The big-endian number that `bytes` start with.
fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
