//! The write-ahead log of an encrypted database.
//!
//! ```text
//! 0        sector     2 * sector          + stride
//! | header | record 0 | record of frame 1 | record of frame 2 | ...
//!
//! header:   0      16       20          24      28        44
//!           | magic | format | page size | grain | file id | zeros to 512 |
//! record 0: SQLite's WAL header 32, pages of the database 4, trailer 48
//! frame:    SQLite's frame header 24, page, trailer 48
//! ```
//! Each record is sealed as a block of its own, numbered as its frame, record 0 as
//! grain * 2^32 + page size, which no frame is; SQLite's bytes are kept as they
//! are, because its checksums cover them. `grain` is what a torn write spoils: 1 byte where the base
//! overwrites powersafely, else the base's sector, and then no two records share one. `sector` is
//! `grain`, at least 512; `stride` is the length of a frame's record, a multiple of `grain`.
//!
//! SQLite writes a frame as header and page, sometimes cut in two at a sync. Both are gathered here
//! and sealed with the write that completes them: until then no reader can take the frame for a valid
//! one. Later it may overwrite the page, or the header after it read the frame.
//!
//! Records of frames that follow each other are gathered in `outgoing`, and reach the base in one write:
//! with the frame that commits, whose xWrite reports an error; before a sync; when there are many. Before
//! the commit nobody but this handle can ask for those frames, and it gets them from memory. Taken back
//! as a whole, they are forgotten: another handle may have written frames in their places since, and
//! the lock for which [`Parent::locks`] counts comes before whatever this handle does next.
//!
//! Reads are served from a window where they follow each other ([`super::ahead`]). SQLite asks for a
//! frame only if it was committed when the transaction at hand took its lock, or if this handle wrote
//! it since. The first kind stays as it is for as long as that lock is held: frames are only added behind,
//! and a log starts over only where nobody reads it. So what was read since then is the frame, whether or
//! not it was asked for yet; and the window is forgotten with each lock taken, each own write over it, and
//! each new layout. A record that fails is read again by itself, before it counts.
//!
//! Invariants
//! 1. A record is sealed and written whole, under a nonce of its own.
//! 2. A read that starts with a frame or with the WAL header comes from recovery, and answers zeros
//!    where the record does not authenticate: the end of the log, as a bad checksum would be. Any
//!    other read is of a frame that SQLite believes in, and fails; so does one of a frame that this
//!    handle wrote in the transaction at hand.
//! 3. A page is handed out only if its frame header has the page number that the wal-index has for
//!    the frame, and the salts of the WAL header: records of an earlier log, or of a transaction that
//!    was rolled back, authenticate at the same place.
//! 4. The layout is a property of the file, authenticated with record 0: without that no frame is
//!    written. It changes only with a new WAL header, hence new salts, so a handle that sees the same
//!    salts in the wal-index has the right one.
//! 5. After a commit nothing is outgoing. A frame that could not be written is an error to read, and
//!    no frame follows it, until SQLite has taken it back.

mod layout;
mod outgoing;
mod read;
mod survey;
mod transaction;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;

use self::layout::{HEADER_LEN, Layout, is_foreign, is_size, is_zero};
use self::outgoing::Outgoing;
use self::transaction::Transaction;
use super::Storage;
use super::ahead::Ahead;
use super::tuning::Tuning;
use crate::error::{Error, Result};
use crate::key::cipher::{Cipher, Subkey};
use crate::key::keyring::Keyring;
use crate::page::RESERVE;

/// SQLite's WAL header, and in it the page size and the salts.
const WAL_HEADER: usize = 32;
const WAL_PAGE_SIZE_AT: usize = 8;
const WAL_SALTS_AT: usize = 16;
/// Record 0 without its trailer.
const RECORD_0: usize = WAL_HEADER + size_of::<u32>();
/// SQLite's frame header: page number, pages of the database after a commit or 0, salts, checksum.
const FRAME_HEADER: usize = 24;
const COMMIT_AT: usize = 4;
const SALTS_AT: usize = 8;

const _: () = assert!(RECORD_0 + RESERVE <= HEADER_LEN, "record 0 fits in a sector");

/// SQLite's salts of one log, as bytes: every frame repeats them.
pub(crate) type Salts = [u8; 8];

/// What a log asks of the database that it belongs to.
pub(crate) trait Parent {
    /// Counts the locks that were taken on the wal-index: others may have written in between.
    fn locks(&self) -> u64;
    /// The salts in the wal-index; `None` where there is none in shared memory.
    fn salts(&self) -> Option<Salts>;
    /// The page that the wal-index has for `frame`; `None` where there is none in shared memory.
    fn page_of(&self, frame: u32) -> Option<u32>;
    /// Pages in the database file.
    fn pages(&self) -> Result<u32>;
}

/// What a recovery read of the sizes that the database had, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The smallest that the file may have been cut to.
    pub(crate) least: u32,
    /// That of the last commit; 0 where there is none.
    pub(crate) last: u32,
}

/// What the log holds of the database.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// Pages that are in it. What the database file has of them need not be whole.
    pub(crate) pages: BTreeSet<u32>,
    /// Frames that failed authentication.
    pub(crate) bad: Vec<u32>,
}

/// The first bytes of a frame that SQLite has not written to its end.
#[derive(Clone, Copy)]
struct Pending {
    frame: u32,
    filled: usize,
    /// It was begun under another lock. Only its very rest can still come, from a VFS above that held it
    /// back; else it was taken back.
    left_over: bool,
}

pub(crate) struct Wal {
    keyring: Option<Arc<Keyring>>,
    cipher: Option<Cipher>,
    /// Grain of a log that this handle starts.
    grain: usize,
    tuning: Tuning,
    layout: Option<Layout>,
    /// Record 0 authenticates, and with it the layout.
    authentic: bool,
    salts: Salts,
    /// Pages that the database file had when the log was begun.
    pages: u32,
    /// What a recovery has read, until somebody has taken note of it.
    pub(crate) recovered: Option<Recovered>,
    /// [`Parent::locks`] when layout and salts were last compared with the wal-index.
    locks: u64,
    pending: Option<Pending>,
    transaction: Transaction,
    outgoing: Outgoing,
    ahead: Ahead,
    /// What there is of the pending frame.
    gathered: Vec<u8>,
    /// The frame whose plaintext is in `plain`, as it is in the file or outgoing.
    held: Option<u32>,
    /// A frame, with room for its trailer while it is sealed.
    plain: Vec<u8>,
    /// A record that is written by itself.
    sealed: Vec<u8>,
}

impl Wal {
    /// The log of the database that `keyring` opens, on storage of which a torn write spoils `grain`
    /// bytes. Without a keyring there is no database yet, and no log.
    pub(crate) fn new(keyring: Option<Arc<Keyring>>, grain: usize, tuning: Tuning) -> Self {
        Self {
            cipher: keyring.as_ref().map(|keyring| keyring.cipher(Subkey::Wal)),
            keyring,
            grain,
            tuning,
            layout: None,
            authentic: false,
            salts: Salts::default(),
            pages: 0,
            recovered: None,
            locks: 0,
            pending: None,
            transaction: Transaction::default(),
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
        parent: &impl Parent,
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
        let authentic = self.authentic;
        let fits = |layout: &Layout| layout.page_size == page_size && layout.grain >= self.grain;
        let kept = self.layout.filter(|layout| authentic && fits(layout));
        let layout = kept.unwrap_or(Layout { page_size, grain: self.grain });
        let mut record = [0; RECORD_0];
        record[..WAL_HEADER].copy_from_slice(header);
        record[WAL_HEADER..].copy_from_slice(&parent.pages()?.to_be_bytes());
        let mut image = vec![0; layout.sector() + HEADER_LEN];
        image[..HEADER_LEN].copy_from_slice(&layout.encode(&file_id));
        let cipher = self.cipher.as_ref().ok_or(Error::FrameAuthentication { frame: 0 })?;
        cipher.begin();
        let record_0 = layout.sector()..layout.sector() + RECORD_0 + RESERVE;
        cipher.seal(layout.record_0(), &record, &mut image[record_0])?;
        let from = if kept.is_some() { layout.sector() } else { 0 };
        // What is outgoing was taken back, or SQLite would not begin anew.
        self.forget_transaction();
        (self.layout, self.authentic) = (None, false);
        base.write(&image[from..], from as u64)?;
        self.set_layout(layout);
        self.authentic = true;
        self.take_header(&record);
        Ok(())
    }

    fn take_header(&mut self, record: &[u8; RECORD_0]) {
        let salts = &record[WAL_SALTS_AT..WAL_SALTS_AT + size_of::<Salts>()];
        if self.salts != *salts {
            self.ahead.clear();
        }
        self.salts.copy_from_slice(salts);
        self.pages = number(&record[WAL_HEADER..]);
    }

    /// Record 0, whose salts and pages are taken over; `None` where it does not authenticate.
    fn load_header(
        &mut self,
        base: &impl Storage,
        layout: Layout,
    ) -> Result<Option<[u8; RECORD_0]>> {
        let (mut sector, at) = ([0; HEADER_LEN], layout.sector() as u64);
        // What the file does not reach reads as zeros, and so does what fills the sector up.
        let whole = base.read(&mut sector, at)?
            || base.read_whole(&mut sector[..RECORD_0 + RESERVE], at)?;
        if whole { self.open_header(layout, &sector) } else { Ok(None) }
    }

    /// As [`Wal::load_header`], from the bytes that start with record 0.
    fn open_header(&mut self, layout: Layout, sector: &[u8]) -> Result<Option<[u8; RECORD_0]>> {
        let Some(cipher) = &self.cipher else { return Ok(None) };
        let mut record = [0; RECORD_0];
        let (sealed, rest) = sector.split_at(RECORD_0 + RESERVE);
        if !is_zero(rest) || !cipher.open(layout.record_0(), sealed, &mut record)? {
            return Ok(None);
        }
        self.take_header(&record);
        Ok(Some(record))
    }

    /// Looks at the file again if another handle may have started a log in it; whether it did.
    fn refresh(&mut self, base: &impl Storage, parent: &impl Parent) -> Result<bool> {
        let locks = parent.locks();
        let unchanged = self.locks == locks || parent.salts().is_none_or(|now| now == self.salts);
        self.notice_locks(parent);
        let known = self.layout.is_some() && unchanged;
        if !known {
            self.load_layout(base)?;
        }
        Ok(!known)
    }

    /// With another lock there is another transaction: what was not committed was taken back, and
    /// others may have written.
    fn notice_locks(&mut self, parent: &impl Parent) {
        let locks = parent.locks();
        if self.locks != locks {
            self.locks = locks;
            self.forget_transaction();
        }
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
        match layout {
            Some(layout) => {
                if self.layout != Some(layout) {
                    self.set_layout(layout);
                }
                let record = if both && layout.sector() == HEADER_LEN {
                    self.open_header(layout, sector)?
                } else {
                    self.load_header(base, layout)?
                };
                self.authentic = record.is_some();
                if !self.authentic {
                    self.pages = 0;
                }
            }
            None => {
                self.lose_outgoing();
                (self.layout, self.authentic) = (None, false);
            }
        }
        Ok(())
    }

    fn set_layout(&mut self, layout: Layout) {
        self.lose_outgoing();
        self.outgoing.reset();
        self.ahead.clear();
        self.layout = Some(layout);
        self.pending = None;
        self.held = None;
        self.plain.resize(layout.record(), 0);
        self.gathered.resize(layout.record(), 0);
        self.sealed = Vec::new();
    }
}

/// The big-endian number that `bytes` start with.
fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
