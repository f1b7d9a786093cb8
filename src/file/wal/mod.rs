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
//! and reach the base with the write that completes them: until then no reader can take the frame
//! for a valid one. Later it may overwrite the page, or the header after it read the frame.
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

mod layout;

use std::collections::BTreeSet;
use std::sync::Arc;

use self::layout::{HEADER_LEN, Layout, is_foreign, is_size, is_zero};
use super::tuning::Tuning;
use super::{Filled, Storage};
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
}

pub(crate) struct Wal {
    keyring: Option<Arc<Keyring>>,
    cipher: Option<Cipher>,
    /// Grain of a log that this handle starts.
    grain: usize,
    #[expect(dead_code)]
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
    /// The first frame of the transaction that this handle writes.
    unfinished: Option<u32>,
    /// Its last frame is written. SQLite may go on to rewrite the headers of the others.
    committed: bool,
    /// What there is of the pending frame.
    gathered: Vec<u8>,
    /// The frame whose plaintext is in `plain`, as it is in the file.
    held: Option<u32>,
    plain: Vec<u8>,
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
            unfinished: None,
            committed: false,
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

    pub(crate) fn size(&mut self, base: &impl Storage, parent: &impl Parent) -> Result<u64> {
        self.refresh(base, parent)?;
        let Some(layout) = self.layout else { return Ok(0) };
        Ok(layout.logical_size(base.size()?))
    }

    pub(crate) fn read(
        &mut self,
        base: &impl Storage,
        parent: &impl Parent,
        buf: &mut [u8],
        at: u64,
    ) -> Result<Filled> {
        self.refresh(base, parent)?;
        self.settle(base)?;
        let Some(layout) = self.layout else {
            buf.fill(0);
            return Ok(Filled::Short);
        };
        if at < WAL_HEADER as u64 {
            return self.read_header(base, layout, buf, at as usize);
        }
        let mut done = 0;
        while done < buf.len() {
            let (frame, within) = layout.locate(at + done as u64)?;
            let len = (layout.frame() - within).min(buf.len() - done);
            let starts = within == 0;
            if !self.load(base, layout, frame)? {
                let rest = &mut buf[done..];
                rest.fill(0);
                if layout.logical_size(base.size()?) < at + (done + len) as u64 {
                    return Ok(Filled::Short);
                }
                return if starts && !self.is_mine(frame) {
                    Ok(Filled::Full)
                } else {
                    Err(Error::FrameAuthentication { frame })
                };
            }
            if starts {
                self.note_commit();
            } else if !self.is_expected(base, parent, frame)? {
                self.held = None;
                return Err(Error::FrameAuthentication { frame });
            }
            buf[done..done + len].copy_from_slice(&self.plain[within..within + len]);
            done += len;
        }
        Ok(Filled::Full)
    }

    /// Reads of SQLite's WAL header: the whole in recovery, its checksum when a transaction that
    /// started the log has overwritten frames.
    fn read_header(
        &mut self,
        base: &impl Storage,
        layout: Layout,
        buf: &mut [u8],
        at: usize,
    ) -> Result<Filled> {
        let end = at + buf.len();
        if end > WAL_HEADER {
            return Err(Error::NotAPage { offset: at as u64, len: buf.len() });
        }
        match self.load_header(base, layout)? {
            Some(record) => {
                buf.copy_from_slice(&record[at..end]);
                if at == 0 {
                    self.recovered = Some(Recovered { least: self.pages, last: 0 });
                }
                Ok(Filled::Full)
            }
            None if at == 0 => {
                buf.fill(0);
                let size = layout.logical_size(base.size()?);
                Ok(if size < end as u64 { Filled::Short } else { Filled::Full })
            }
            None => Err(Error::FrameAuthentication { frame: 0 }),
        }
    }

    /// The smallest size in pages that the database file may have: what it had when the log was
    /// begun, or what a checkpoint cut it to since.
    pub(crate) fn least_pages(&mut self, base: &impl Storage) -> Result<u32> {
        self.load_layout(base)?;
        let Some(layout) = self.layout else { return Ok(0) };
        let mut least = self.pages;
        for frame in 1..=layout.frames_in(base.size()?) {
            if self.load(base, layout, frame)? {
                least = self.commit().map_or(least, |pages| least.min(pages));
            }
        }
        Ok(least)
    }

    /// Authenticates the frames up to `last`, that of the last commit.
    pub(crate) fn frames(&mut self, base: &impl Storage, last: u32) -> Result<Frames> {
        let mut frames = Frames::default();
        self.load_layout(base)?;
        let Some(layout) = self.layout else { return Ok(frames) };
        let there = layout.frames_in(base.size()?);
        // The wal-index may say anything: a log that is shorter lacks one frame, whatever it says.
        for frame in 1..=last.min(there.saturating_add(1)) {
            if self.load(base, layout, frame)? && self.plain[SALTS_AT..].starts_with(&self.salts) {
                frames.pages.insert(number(&self.plain));
            } else {
                frames.bad.push(frame);
            }
        }
        Ok(frames)
    }

    /// The frame of the last commit in the file, for who has no wal-index.
    pub(crate) fn last_commit(&mut self, base: &impl Storage) -> Result<u32> {
        self.load_layout(base)?;
        let Some(layout) = self.layout else { return Ok(0) };
        let mut last = 0;
        for frame in 1..=layout.frames_in(base.size()?) {
            if self.load(base, layout, frame)? && self.commit().is_some() {
                last = frame;
            }
        }
        Ok(last)
    }

    /// Pages of the database after the commit that the frame in `plain` is, in this log.
    fn commit(&self) -> Option<u32> {
        let pages = number(&self.plain[COMMIT_AT..]);
        (pages > 0 && self.plain[SALTS_AT..].starts_with(&self.salts)).then_some(pages)
    }

    fn note_commit(&mut self) {
        if let (Some(recovered), Some(pages)) = (self.recovered, self.commit()) {
            let least = recovered.least.min(pages);
            self.recovered = Some(Recovered { least, last: pages });
        }
    }

    /// Whether `frame` is of the transaction that this handle writes.
    fn is_mine(&self, frame: u32) -> bool {
        self.unfinished.is_some_and(|first| frame >= first)
    }

    /// Whether the frame in `plain` is the one that SQLite means by `frame`. It never is after the
    /// file turned out to be of another layout.
    fn is_expected(
        &mut self,
        base: &impl Storage,
        parent: &impl Parent,
        frame: u32,
    ) -> Result<bool> {
        let mut salts = Salts::default();
        salts.copy_from_slice(&self.plain[SALTS_AT..SALTS_AT + size_of::<Salts>()]);
        let mine = self.is_mine(frame);
        if salts != self.salts && !mine {
            let layout = self.layout;
            self.load_layout(base)?;
            if self.layout != layout {
                return Ok(false);
            }
        }
        // Once a frame was overwritten, SQLite leaves out the salts of later ones until it commits.
        let of_this_log = salts == self.salts || mine && salts == Salts::default();
        let page = number(&self.plain);
        Ok(of_this_log && parent.page_of(frame).is_none_or(|expected| expected == page))
    }

    pub(crate) fn write(
        &mut self,
        base: &impl Storage,
        parent: &impl Parent,
        bytes: &[u8],
        at: u64,
    ) -> Result<()> {
        self.refresh(base, parent)?;
        if at == 0
            && let Ok(header) = <&[u8; WAL_HEADER]>::try_from(bytes)
        {
            return self.begin(base, parent, header);
        }
        let Some(layout) = self.layout.filter(|_| at >= WAL_HEADER as u64) else {
            return Err(Error::NotAPage { offset: at, len: bytes.len() });
        };
        if !self.authentic {
            return Err(Error::FrameAuthentication { frame: 0 });
        }
        let mut done = 0;
        while done < bytes.len() {
            let (frame, within) = layout.locate(at + done as u64)?;
            let len = (layout.frame() - within).min(bytes.len() - done);
            self.write_part(base, layout, frame, within, &bytes[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    pub(crate) fn truncate(&mut self, base: &impl Storage, size: u64) -> Result<()> {
        self.settle(base)?;
        self.pending = None;
        self.held = None;
        match self.layout {
            Some(layout) if size > 0 => base.truncate(layout.physical_size(size)),
            _ => {
                (self.layout, self.authentic) = (None, false);
                base.truncate(0)
            }
        }
    }

    /// What was written survives power loss once the base syncs: nothing of it is only here.
    pub(crate) fn before_sync(&mut self, base: &impl Storage) -> Result<()> {
        self.settle(base)
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
        self.load_layout(base)?;
        let authentic = self.authentic;
        let kept = self.layout.filter(|layout| authentic && layout.page_size == page_size);
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
        (self.layout, self.authentic) = (None, false);
        base.write(&image[from..], from as u64)?;
        self.set_layout(layout);
        self.authentic = true;
        self.take_header(&record);
        Ok(())
    }

    fn take_header(&mut self, record: &[u8; RECORD_0]) {
        self.salts.copy_from_slice(&record[WAL_SALTS_AT..WAL_SALTS_AT + size_of::<Salts>()]);
        self.pages = number(&record[WAL_HEADER..]);
    }

    fn write_part(
        &mut self,
        base: &impl Storage,
        layout: Layout,
        frame: u32,
        within: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let end = within + bytes.len();
        let continues =
            self.pending.is_some_and(|have| have.frame == frame && have.filled == within);
        if !continues {
            self.settle(base)?;
        }
        if continues || within == 0 && self.held != Some(frame) {
            self.gathered[within..end].copy_from_slice(bytes);
            self.pending = Some(Pending { frame, filled: end });
            if end < layout.frame() {
                return Ok(());
            }
            std::mem::swap(&mut self.gathered, &mut self.plain);
            if std::mem::take(&mut self.committed) {
                self.unfinished = None;
            }
        } else {
            if self.held != Some(frame) && !self.load(base, layout, frame)? {
                return Err(Error::FrameAuthentication { frame });
            }
            self.plain[within..end].copy_from_slice(bytes);
        }
        self.pending = None;
        self.store(base, layout, frame)
    }

    /// Seals what is in `plain` as `frame` and writes it. A commit ends the run of nonces.
    fn store(&mut self, base: &impl Storage, layout: Layout, frame: u32) -> Result<()> {
        self.held = None;
        let cipher = self.cipher.as_ref().ok_or(Error::FrameAuthentication { frame })?;
        cipher.seal(u64::from(frame), &self.plain, &mut self.sealed)?;
        base.write(&self.sealed, layout.position(frame))?;
        self.unfinished = self.unfinished.map(|first| first.min(frame)).or(Some(frame));
        if number(&self.plain[COMMIT_AT..]) > 0 {
            cipher.begin();
            self.committed = true;
        } else {
            self.held = Some(frame);
        }
        Ok(())
    }

    /// Something else follows the beginning of a frame, so it was meant for the one that is there.
    /// Where there is none, no frame was finished, and it waits for its rest.
    fn settle(&mut self, base: &impl Storage) -> Result<()> {
        let (Some(pending), Some(layout)) = (self.pending, self.layout) else { return Ok(()) };
        if !self.load(base, layout, pending.frame)? {
            return Ok(());
        }
        self.pending = None;
        self.plain[..pending.filled].copy_from_slice(&self.gathered[..pending.filled]);
        self.store(base, layout, pending.frame)
    }

    /// Puts the record of `frame` into `plain`; `false` where it does not authenticate.
    fn load(&mut self, base: &impl Storage, layout: Layout, frame: u32) -> Result<bool> {
        self.held = None;
        let Some(cipher) = &self.cipher else { return Ok(false) };
        let whole = base.read_whole(&mut self.sealed, layout.position(frame))?;
        let good = whole && cipher.open(u64::from(frame), &self.sealed, &mut self.plain)?;
        self.held = good.then_some(frame);
        Ok(good)
    }

    /// Record 0, whose salts and pages are taken over; `None` where it does not authenticate.
    fn load_header(
        &mut self,
        base: &impl Storage,
        layout: Layout,
    ) -> Result<Option<[u8; RECORD_0]>> {
        let Some(cipher) = &self.cipher else { return Ok(None) };
        let (mut sector, mut record) = ([0; HEADER_LEN], [0; RECORD_0]);
        // What the file does not reach reads as zeros, and so does what fills the sector up.
        let at = layout.sector() as u64;
        let (sealed, rest) = sector.split_at_mut(RECORD_0 + RESERVE);
        let whole = base.read_whole(sealed, at)?;
        base.read(rest, at + (RECORD_0 + RESERVE) as u64)?;
        if !whole || !is_zero(rest) || !cipher.open(layout.record_0(), sealed, &mut record)? {
            return Ok(None);
        }
        self.take_header(&record);
        Ok(Some(record))
    }

    /// Looks at the file again if another handle may have started a log in it.
    fn refresh(&mut self, base: &impl Storage, parent: &impl Parent) -> Result<()> {
        let locks = parent.locks();
        let unchanged = self.locks == locks || parent.salts().is_none_or(|now| now == self.salts);
        if self.locks != locks {
            self.unfinished = None;
            self.committed = false;
        }
        self.locks = locks;
        if self.layout.is_some() && unchanged { Ok(()) } else { self.load_layout(base) }
    }

    fn load_layout(&mut self, base: &impl Storage) -> Result<()> {
        let Some(keyring) = &self.keyring else { return Ok(()) };
        let mut header = [0; HEADER_LEN];
        let whole = base.read_whole(&mut header, 0)?;
        let layout = Layout::decode(&header, keyring.file_id()).filter(|_| whole);
        match layout {
            Some(layout) => {
                if self.layout != Some(layout) {
                    self.set_layout(layout);
                }
                self.authentic = self.load_header(base, layout)?.is_some();
                if !self.authentic {
                    self.pages = 0;
                }
            }
            None => (self.layout, self.authentic) = (None, false),
        }
        Ok(())
    }

    fn set_layout(&mut self, layout: Layout) {
        self.layout = Some(layout);
        self.pending = None;
        self.held = None;
        self.plain.resize(layout.frame(), 0);
        self.gathered.resize(layout.frame(), 0);
        self.sealed.resize(layout.record(), 0);
    }
}

/// The big-endian number that `bytes` start with.
fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
