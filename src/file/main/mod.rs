//! The pages of a main database file: sealing, opening, filling up, and repair after a crash.
//!
//! ```text
//! 0               8 KiB           16 KiB                     0x3fff4000  0x40004000
//! | copy A | slot | copy B | slot | page 1 | page 2 | ...    | gap       | ... pages go on
//! ```
//! SQLite's offset `n` lies at `n + 16 KiB`; from `GAP_AT` on, 64 KiB later still. SQLite locks
//! bytes from 0x40000000 of the file, and on Windows such locks forbid reading and writing: no page
//! may lie there. The gap starts at a multiple of every page size, so it never splits a page.

pub(crate) mod layout;
mod outgoing;

use self::layout::{is_lock_page, logical_size, physical, physical_size};
use self::outgoing::Outgoing;
use super::journal::Counters;
use crate::error::{Error, Result};
use crate::file::wal::Demand;
use crate::io::read_ahead::Ahead;
use crate::io::{Filled, Storage};
use crate::key::cipher::Cipher;
use crate::page::{PageNo, RESERVE};

/// SQLite's database header, of which page 1 is checked before it is written.
pub(crate) const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";
pub(crate) const SQLITE_HEADER: usize = 100;
const PAGE_SIZE_AT: usize = 16;
const RESERVE_AT: usize = 20;
const FORMAT_AT: usize = 18;
/// Change counter, pages of the database, and the change counter at which that number is valid.
const CHANGES_AT: usize = 24;
const COUNT_AT: usize = 28;
const VALID_FOR_AT: usize = 92;
/// The first trunk page of the freelist: next trunk, number of leaves, leaves.
const FREELIST_AT: usize = 32;
/// SQLite's file format number of a database in WAL mode.
const FORMAT_WAL: u8 = 2;

/// Smallest and largest page: 512 would leave 464 of the 480 usable bytes that SQLite needs.
const PAGE_SIZES: std::ops::RangeInclusive<u32> = 1024..=65536;

/// The log's requirements on the file; `None` without a log. May scan the whole log.
pub(crate) type DemandOfLog<'a> = &'a mut dyn FnMut() -> Result<Option<Demand>>;

/// The pages of an encrypted file.
pub(crate) struct Pages {
    cipher: Cipher,
    page_size: usize,
    pub(crate) outgoing: Outgoing,
    pub(crate) ahead: Ahead,
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Good,
    Bad,
    Missing,
}

impl Pages {
    pub(crate) fn new(cipher: Cipher, page_size: usize) -> Self {
        Self {
            cipher,
            page_size,
            outgoing: Outgoing::default(),
            ahead: Ahead::default(),
            plain: vec![0; page_size],
            sealed: Vec::new(),
        }
    }

    pub(crate) fn page_size(&self) -> usize {
        self.page_size
    }

    /// Reads `buf` at SQLite's byte `at`; `None` if page 1 is asked for and missing. Pages that
    /// begin before SQLite's byte `known` were in the file when this transaction began, or it wrote
    /// them.
    pub(crate) fn read(
        &mut self,
        base: &impl Storage,
        buf: &mut [u8],
        at: u64,
        read_ahead: bool,
        known: u64,
    ) -> Result<Option<Filled>> {
        let mut done = 0;
        while done < buf.len() {
            let (page, within) = self.locate(at + done as u64);
            let len = (self.page_size - within).min(buf.len() - done);
            let part = &mut buf[done..done + len];
            let found = if read_ahead && within == 0 && self.load_ahead(base, page, part)? {
                Found::Good
            } else if len == self.page_size {
                self.load_into(base, page, part)?
            } else {
                let found = self.load(base, page)?;
                part.copy_from_slice(&self.plain[within..within + len]);
                found
            };
            match found {
                Found::Good => {}
                Found::Missing if page == PageNo::FIRST => {
                    buf.fill(0);
                    return Ok(None);
                }
                Found::Missing if page.offset(self.page_size) < known => {
                    return Err(Error::PageAuthentication { page: page.0 });
                }
                Found::Missing => {
                    buf[done..].fill(0);
                    return Ok(Some(Filled::Short));
                }
                Found::Bad if is_header(at, buf) => {
                    self.made_up_header(buf, at as usize);
                    return Ok(Some(Filled::Full));
                }
                Found::Bad => return Err(Error::PageAuthentication { page: page.0 }),
            }
            done += len;
        }
        Ok(Some(Filled::Full))
    }

    /// The page in which SQLite's byte `at` lies, and the offset in it. The page size is a power of
    /// two, and reads are frequent, so this is a shift.
    fn locate(&self, at: u64) -> (PageNo, usize) {
        let page = PageNo::after(at >> self.page_size.trailing_zeros());
        (page, at as usize & (self.page_size - 1))
    }

    /// Where `page` lies in the file.
    fn position(&self, page: PageNo) -> u64 {
        physical(page.offset(self.page_size))
    }

    /// Opens page `page` into `part`, a page with or without its reserve bytes, if it was read
    /// ahead or can be now.
    fn load_ahead(&mut self, base: &impl Storage, page: PageNo, part: &mut [u8]) -> Result<bool> {
        let usable = self.page_size - RESERVE;
        if part.len() < usable || !self.outgoing.is_empty() {
            return Ok(false);
        }
        let at = self.position(page);
        let Some(sealed) = self.ahead.read(base, at, self.page_size, self.page_size) else {
            return Ok(false);
        };
        let (body, reserve) = part.split_at_mut(usable);
        let opened = self.cipher.open(page, sealed, body)?;
        reserve.fill(0);
        if !opened {
            self.ahead.clear();
        }
        Ok(opened)
    }

    /// Reads page `page` into `self.plain`.
    pub(crate) fn load(&mut self, base: &impl Storage, page: PageNo) -> Result<Found> {
        let mut plain = std::mem::take(&mut self.plain);
        let found = self.load_into(base, page, &mut plain);
        self.plain = plain;
        found
    }

    /// Reads and opens page `page` into `plain`, whose reserve bytes become zeros.
    pub(crate) fn load_into(
        &self,
        base: &impl Storage,
        page: PageNo,
        plain: &mut [u8],
    ) -> Result<Found> {
        let at = self.position(page);
        if let Some(sealed) = self.outgoing.get(at, self.page_size) {
            let (body, reserve) = plain.split_at_mut(self.page_size - RESERVE);
            reserve.fill(0);
            let good = self.cipher.open(page, sealed, body)?;
            return Ok(if good { Found::Good } else { Found::Bad });
        }
        let whole = base.read(plain, at)?;
        let good = match page {
            _ if !whole => false,
            PageNo::FIRST => self.cipher.open_known(page, plain)?,
            _ => self.cipher.open_in_place(page, plain)?,
        };
        if good {
            return Ok(Found::Good);
        }
        plain.fill(0);
        Ok(if !whole && base.size()? <= at { Found::Missing } else { Found::Bad })
    }

    /// Whether `bytes` are the page at `at`, but for its reserve bytes.
    pub(crate) fn has_page(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<bool> {
        let usable = self.page_size - RESERVE;
        let page = PageNo::at(at, self.page_size);
        Ok(self.load(base, page)? == Found::Good && self.plain[..usable] == bytes[..usable])
    }

    /// Answers SQLite's reads of the header before a hot journal or log could restore a torn first
    /// page. SQLite takes the page size, the reserve bytes and the validity of its cache from it;
    /// everything else comes from page 1 once that reads well.
    fn made_up_header(&self, buf: &mut [u8], at: usize) {
        let mut header = [0; SQLITE_HEADER];
        header[..SQLITE_MAGIC.len()].copy_from_slice(SQLITE_MAGIC);
        header[PAGE_SIZE_AT..FORMAT_AT].copy_from_slice(&page_size_field(self.page_size));
        header[FORMAT_AT..RESERVE_AT].fill(1);
        header[RESERVE_AT..RESERVE_AT + 4].copy_from_slice(&[RESERVE as u8, 64, 32, 32]);
        buf.copy_from_slice(&header[at..at + buf.len()]);
    }

    /// SQLite's size of the file, with the buffered pages.
    pub(crate) fn size(&self, base: &impl Storage) -> Result<u64> {
        Ok(logical_size(base.size()?.max(self.outgoing.end())))
    }

    /// Whole pages in `size` of SQLite's bytes.
    pub(crate) fn count_in(&self, size: u64) -> u32 {
        u32::try_from(size / self.page_size as u64).unwrap_or(u32::MAX)
    }

    /// As [`Self::count_in`], including a partial last one.
    pub(crate) fn begun_in(&self, size: u64) -> u32 {
        u32::try_from(size.div_ceil(self.page_size as u64)).unwrap_or(u32::MAX)
    }

    /// Pages in the file, including a partial last one.
    pub(crate) fn count(&self, base: &impl Storage) -> Result<u32> {
        Ok(self.begun_in(logical_size(base.size()?)))
    }

    /// Refuses a file with fewer pages than its log requires; returns the log's requirements.
    pub(crate) fn check_size(
        &self,
        base: &impl Storage,
        demand: DemandOfLog<'_>,
    ) -> Result<Option<Demand>> {
        let whole = self.count_in(logical_size(base.size()?));
        match demand()? {
            Some(demand) if whole < demand.pages => {
                Err(Error::PageAuthentication { page: whole + 1 })
            }
            demand => Ok(demand),
        }
    }

    /// The page that a write of `bytes` at `at` is.
    pub(crate) fn check_write(&self, bytes: &[u8], at: u64) -> Result<PageNo> {
        let page = PageNo::at(at, self.page_size);
        if bytes.len() != self.page_size || page.offset(self.page_size) != at {
            return Err(Error::NotAPage { offset: at, len: bytes.len() });
        }
        check_page_1(bytes, at, self.page_size).map(|()| page)
    }

    /// A rollback gives the file the size that it had before. SQLite writes zeros as the last page,
    /// later the journal's pages over their places; it needs no others. These stay holes, so that a
    /// page that was cut off is never read as zeros; see [`Self::seal_free`].
    pub(crate) fn regrow(&mut self, base: &impl Storage, bytes: &[u8], page: PageNo) -> Result<()> {
        if bytes.iter().all(|&byte| byte == 0) {
            base.truncate(physical_size(page.offset(self.page_size) + bytes.len() as u64))
        } else {
            self.store(base, bytes, page, false)
        }
    }

    /// Writes a page to a file that ends at `size`; the gap before it is filled with sealed zeros.
    pub(crate) fn put(
        &mut self,
        base: &impl Storage,
        bytes: &[u8],
        page: PageNo,
        size: u64,
        may_wait: bool,
        demand: DemandOfLog<'_>,
    ) -> Result<()> {
        let at = page.offset(self.page_size);
        if at > size {
            self.fill(base, size, at, demand)?;
        }
        self.store(base, bytes, page, may_wait)
    }

    /// Seals zeros from `size`, the end of the file, up to `to`. A partial page is replaced if the
    /// log has it or it was never written: an interrupted checkpoint leaves one.
    pub(crate) fn fill(
        &mut self,
        base: &impl Storage,
        size: u64,
        to: u64,
        demand: DemandOfLog<'_>,
    ) -> Result<()> {
        self.outgoing.flush(base)?;
        let demand = self.check_size(base, demand)?;
        let has_log = demand.is_some();
        let logged = demand.unwrap_or_default().logged;
        let kept = if has_log { self.count_in(size) } else { self.begun_in(size) };
        for page in PageNo::after(kept).to(PageNo(self.begun_in(to))) {
            if !logged.contains(&page) {
                self.store_zeros(base, page)?;
            }
        }
        Ok(())
    }

    fn store_zeros(&mut self, base: &impl Storage, page: PageNo) -> Result<()> {
        self.plain.fill(0);
        let zeros = std::mem::take(&mut self.plain);
        let stored = self.store(base, &zeros, page, false);
        self.plain = zeros;
        stored
    }

    pub(crate) fn seal_if_bad(&mut self, base: &impl Storage, page: PageNo) -> Result<()> {
        if !is_lock_page(page, self.page_size) && self.load(base, page)? != Found::Good {
            self.store_zeros(base, page)?;
        }
        Ok(())
    }

    /// Seals zeros over each bad page that is free: past the end of the database, if a shorter one
    /// was committed and the file not yet cut, or a leaf of the freelist, whose content has no
    /// meaning. Only authentic pages are believed; SQLite meets a bad one by itself.
    pub(crate) fn seal_free(&mut self, base: &impl Storage, known: Option<u32>) -> Result<()> {
        let count = self.count(base)?;
        let count = known.map_or(count, |known| known.min(count));
        if self.load(base, PageNo::FIRST)? != Found::Good {
            return Ok(());
        }
        let mut trunk = PageNo(be_u32(&self.plain[FREELIST_AT..]));
        let (used, last) = (self.used().unwrap_or(count), PageNo(count));
        for page in PageNo::after(used).to(last) {
            self.seal_if_bad(base, page)?;
        }
        // A bound in case trunks form a loop: a file has no more free pages than pages.
        let mut left = count as usize;
        while trunk.0 != 0 && left > 0 && self.load(base, trunk)? == Found::Good {
            let mut words = self.plain.chunks_exact(4).map(be_u32);
            trunk = PageNo(words.next().unwrap_or(0));
            let free = words.next().unwrap_or(0) as usize;
            let leaves: Vec<PageNo> = words.take(free).map(PageNo).collect();
            left = left.saturating_sub(1 + leaves.len());
            for leaf in leaves.into_iter().filter(|leaf| PageNo::FIRST < *leaf && *leaf <= last) {
                self.seal_if_bad(base, leaf)?;
            }
        }
        Ok(())
    }

    /// Pages of the database as page 1, which is in `plain`, has them; `None` where an old version
    /// of SQLite wrote it last and did not count.
    fn used(&self) -> Option<u32> {
        let at = |at: usize| be_u32(&self.plain[at..]);
        let counts = at(VALID_FOR_AT) == at(CHANGES_AT) && at(COUNT_AT) > 0;
        counts.then(|| at(COUNT_AT))
    }

    /// Seals `bytes` as `page` and writes it, with the buffered pages before it. If it `may_wait`,
    /// it is only buffered, until a page comes that does not follow it.
    pub(crate) fn store(
        &mut self,
        base: &impl Storage,
        bytes: &[u8],
        page: PageNo,
        may_wait: bool,
    ) -> Result<()> {
        self.ahead.clear();
        let at = self.position(page);
        let body = &bytes[..self.page_size - RESERVE];
        if !may_wait && self.outgoing.is_empty() {
            self.sealed.resize(self.page_size, 0);
            self.cipher.seal(page, body, &mut self.sealed)?;
            return base.write(&self.sealed, at);
        }
        let room = self.outgoing.room(base, at, self.page_size)?;
        let sealed = self.cipher.seal(page, body, room);
        if sealed.is_err() {
            self.outgoing.take_back(self.page_size);
        }
        sealed?;
        if may_wait { Ok(()) } else { self.outgoing.flush(base) }
    }

    /// Whether page 1, which is in `plain`, is one that SQLite wrote.
    pub(crate) fn has_header(&self) -> bool {
        self.plain.starts_with(SQLITE_MAGIC)
    }

    /// The bytes of page 1, which is in `plain`, by which SQLite checks whether its cache is valid.
    pub(crate) fn counters(&self) -> Counters {
        counters_in(&self.plain)
    }

    /// Whether page 1, which is in `plain`, says that the database is in WAL mode.
    pub(crate) fn says_wal(&self) -> bool {
        self.plain[FORMAT_AT] == FORMAT_WAL
    }

    /// Whether the database is in WAL mode.
    pub(crate) fn has_log(&mut self, base: &impl Storage) -> Result<bool> {
        Ok(self.load(base, PageNo::FIRST)? == Found::Good && self.says_wal())
    }
}

/// The bytes of page 1 by which SQLite checks whether its cache is valid.
pub(crate) fn counters_in(page_1: &[u8]) -> Counters {
    let mut counters = Counters::default();
    let len = counters.len();
    counters.copy_from_slice(&page_1[CHANGES_AT..CHANGES_AT + len]);
    counters
}

/// Whether a read of `buf` at `at` is one of SQLite's reads of the header of page 1.
pub(crate) fn is_header(at: u64, buf: &[u8]) -> bool {
    at + buf.len() as u64 <= SQLITE_HEADER as u64
}

/// Refuses a page 1 whose pages the trailer would cut, or whose database has pages of another size.
pub(crate) fn check_page_1(bytes: &[u8], at: u64, page_size: usize) -> Result<()> {
    if at > 0 || !bytes.starts_with(SQLITE_MAGIC) {
        return Ok(());
    }
    if bytes[PAGE_SIZE_AT..FORMAT_AT] != page_size_field(page_size) {
        return Err(Error::PageSizeChange);
    }
    if usize::from(bytes[RESERVE_AT]) < RESERVE {
        return Err(Error::ReserveBytes(bytes[RESERVE_AT]));
    }
    Ok(())
}

/// The page size as SQLite's header has it: two bytes big-endian, 1 for 65536.
pub(crate) fn page_size_field(page_size: usize) -> [u8; 2] {
    if page_size == 65536 { [0, 1] } else { (page_size as u16).to_be_bytes() }
}

/// The page size of a new database, from its first write: one whole page.
pub(crate) fn first_page_size(bytes: &[u8], at: u64) -> Result<u32> {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    if !len.is_power_of_two() || !PAGE_SIZES.contains(&len) {
        return Err(Error::PageSize(len));
    }
    if !at.is_multiple_of(u64::from(len)) {
        return Err(Error::NotAPage { offset: at, len: bytes.len() });
    }
    Ok(len)
}

fn be_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}
