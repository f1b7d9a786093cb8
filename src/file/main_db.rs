//! The main database file.
//!
//! ```text
//! 0        8 KiB    16 KiB                     0x3fff4000  0x40004000
//! | copy A | copy B | page 1 | page 2 | ...    | gap       | ... pages go on
//! ```
//! SQLite's offset `n` lies at `n + 16 KiB`; from [`GAP_AT`] on, 64 KiB later still. SQLite locks
//! bytes from 0x40000000 of the file, and on Windows such locks forbid reading and writing: no page
//! may lie there. The gap starts at a multiple of every page size, so it never splits a page.
//!
//! Invariants
//! 1. Every page of the file is sealed; a write past the end fills what it skips with sealed zeros.
//! 2. The envelope is on disk, synced, before the first page is written.
//! 3. The page size never changes once page 1 was written.
//! 4. Where a log or a hot journal was recovered, every page is sealed again. Power loss leaves holes
//!    and torn pages that SQLite neither restores nor reads: it never wrote them, or had freed them.
//! 5. What somebody cut off the file never becomes zeros: not by filling up to where a checkpoint or
//!    a rollback needs it to end.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Filled, Storage};
use crate::error::{Error, Result};
use crate::key::envelope::{self, COPY_LEN, ENVELOPE_LEN, Envelope};
use crate::key::keyring::Keyring;
use crate::key::protector::Protectors;
use crate::page::{PageCipher, RESERVE};
use crate::suite::SuiteId;

const PAGES_AT: u64 = ENVELOPE_LEN as u64;
/// Length of the gap; also SQLite's largest page.
const GAP: u64 = 65536;
/// SQLite's first lock byte (`PENDING_BYTE`).
const PENDING_BYTE: u64 = 0x4000_0000;
/// SQLite's offset of the first byte that lies behind the gap.
const GAP_AT: u64 = PENDING_BYTE - GAP;
/// `SHARED_FIRST + SHARED_SIZE` in SQLite: the end of the bytes it locks.
const LOCKS_END: u64 = PENDING_BYTE + 2 + 510;

const _: () = assert!(GAP_AT.is_multiple_of(GAP), "the gap splits no page");
const _: () = assert!(GAP_AT + PAGES_AT <= PENDING_BYTE);
const _: () = assert!(GAP_AT + PAGES_AT + GAP >= LOCKS_END);

/// SQLite's database header, of which page 1 is checked before it is written.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";
const SQLITE_HEADER: usize = 100;
const PAGE_SIZE_AT: usize = 16;
const RESERVE_AT: usize = 20;
const FORMAT_AT: usize = 18;
/// The first trunk page of the freelist: next trunk, number of leaves, leaves.
const FREELIST_AT: usize = 32;
/// SQLite's file format number of a database in WAL mode.
const FORMAT_WAL: u8 = 2;

/// Smallest and largest page: 512 would leave 464 of the 480 usable bytes that SQLite needs.
const PAGE_SIZES: std::ops::RangeInclusive<u32> = 1024..=65536;

/// What the caller asked for when it opened the file.
#[derive(Clone, Default)]
pub(crate) struct Wishes {
    pub(crate) protectors: Protectors,
    pub(crate) protector: Option<String>,
    pub(crate) suite: SuiteId,
    pub(crate) plaintext: bool,
}

/// One open handle of a main database file.
pub(crate) struct MainDb {
    wishes: Wishes,
    state: State,
    /// Size in SQLite's bytes as last seen, while nobody else can have changed it.
    known_size: Option<u64>,
    /// A hot journal is being played back into the file.
    rolling_back: bool,
}

/// Tells the smallest size in pages that the file may have. It may take a look at the whole log.
pub(crate) type LeastPages<'a> = &'a mut dyn FnMut() -> Result<u32>;

enum State {
    /// Nothing was written to the file; keys are made when a write transaction begins.
    Empty(Option<(Arc<Keyring>, Envelope)>),
    Encrypted(Box<Pages>),
    Plain,
}

/// The pages of an encrypted file.
struct Pages {
    keyring: Arc<Keyring>,
    envelope: Envelope,
    cipher: PageCipher,
    page_size: usize,
    sealed: Vec<u8>,
    plain: Vec<u8>,
    /// No page was written when last seen: the first transaction was rolled back.
    blank: bool,
}

/// Where SQLite's byte `at` lies in the file.
fn physical(at: u64) -> u64 {
    at + PAGES_AT + if at >= GAP_AT { GAP } else { 0 }
}

/// The file size for SQLite's size `size`; a database that ends at the gap does not include it.
fn physical_size(size: u64) -> u64 {
    size + PAGES_AT + if size > GAP_AT { GAP } else { 0 }
}

/// SQLite's size of a file of `physical` bytes.
fn logical_size(physical: u64) -> u64 {
    let size = physical.saturating_sub(PAGES_AT);
    if size <= GAP_AT { size } else { size.saturating_sub(GAP).max(GAP_AT) }
}

impl MainDb {
    /// Looks at the file and finds its keys.
    pub(crate) fn open(base: &impl Storage, wishes: Wishes) -> Result<Self> {
        let mut db =
            Self { wishes, state: State::Empty(None), known_size: None, rolling_back: false };
        db.look(base)?;
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
        let mut header = vec![0; ENVELOPE_LEN.min(len as usize)];
        base.read(&mut header, 0)?;
        if let Some(plain) = self.look_for_plaintext(&header, len)? {
            self.state = plain;
            return Ok(());
        }
        if envelope::is_unfinished(&header, len) {
            return Ok(());
        }
        let copies = envelope::candidates(&header)?;
        let wanted = self.wishes.protector.as_deref();
        let (keyring, envelope) = Keyring::open(copies, &self.wishes.protectors, wanted)?;
        let mut pages = Pages::new(keyring, envelope);
        pages.blank = logical_size(len) == 0;
        self.state = State::Encrypted(Box::new(pages));
        Ok(())
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
    }

    /// The journal is written or closed, so its playback is over or was given up.
    pub(crate) fn rollback_ends(&mut self) {
        self.rolling_back = false;
    }

    /// Before a sync. At the end of a playback it seals the free pages that are bad: the transaction
    /// may have written to one, and SQLite does not restore what has no content.
    pub(crate) fn before_sync(&mut self, base: &impl Storage) -> Result<()> {
        if let (true, State::Encrypted(pages)) = (self.rolling_back, &mut self.state) {
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
            State::Encrypted(pages) => pages.read(base, buf, at),
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
            if let Err(error) = write_envelope(base, &keyring, &envelope) {
                *prepared = Some((keyring, envelope));
                return Err(error);
            }
            keyring.share();
            self.state = State::Encrypted(Box::new(Pages::new(keyring, envelope)));
            self.known_size = Some(0);
        }
        match &mut self.state {
            State::Encrypted(pages) => {
                let size = match self.known_size {
                    Some(size) => size,
                    None => logical_size(base.size()?),
                };
                self.known_size = None;
                if size == 0 {
                    pages.take_page_size(base, bytes, at)?;
                }
                pages.check_write(bytes, at)?;
                if self.rolling_back && at + bytes.len() as u64 > size {
                    pages.regrow(base, bytes, at)?;
                } else if at <= size {
                    pages.store(base, bytes, at)?;
                } else {
                    pages.check_size(base, least)?;
                    pages.fill(base, size, at)?;
                    pages.store(base, bytes, at)?;
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
        if pages.has_log(base)? {
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
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Keyring::create(&self.protectors, self.protector.as_deref(), self.suite, now)
    }
}

/// Writes copy A and syncs it, then copy B: a tear leaves either nothing that counts or one copy.
fn write_envelope(base: &impl Storage, keyring: &Keyring, envelope: &Envelope) -> Result<()> {
    let copy = envelope.encode(keyring.mac_key())?;
    base.write(&copy, 0)?;
    base.sync()?;
    base.write(&copy, COPY_LEN as u64)?;
    base.sync()
}

/// The page size of a new database, from its first write: one whole page.
fn first_page_size(bytes: &[u8], at: u64) -> Result<u32> {
    let len = bytes.len() as u32;
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

/// SQLite never reads or writes the page that holds its lock bytes.
fn is_lock_page(page: u64, page_size: usize) -> bool {
    page == PENDING_BYTE / page_size as u64 + 1
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Good,
    Bad,
    Missing,
}

impl Pages {
    fn new(keyring: Arc<Keyring>, envelope: Envelope) -> Self {
        let page_size = envelope.page_size as usize;
        Self {
            cipher: PageCipher::new(keyring.page_keys()),
            keyring,
            envelope,
            page_size,
            sealed: vec![0; page_size],
            plain: vec![0; page_size],
            blank: false,
        }
    }

    fn read(&mut self, base: &impl Storage, buf: &mut [u8], at: u64) -> Result<Filled> {
        let mut done = 0;
        while done < buf.len() {
            let place = at + done as u64;
            let page = place / self.page_size as u64 + 1;
            let within = (place % self.page_size as u64) as usize;
            let len = (self.page_size - within).min(buf.len() - done);
            let part = &mut buf[done..done + len];
            let found = if len == self.page_size {
                self.load_into(base, page, part)?
            } else {
                let found = self.load(base, page)?;
                part.copy_from_slice(&self.plain[within..within + len]);
                found
            };
            match found {
                Found::Good => {}
                Found::Missing => {
                    buf[done..].fill(0);
                    return Ok(Filled::Short);
                }
                Found::Bad if at as usize + buf.len() <= SQLITE_HEADER => {
                    self.made_up_header(buf, at as usize);
                    return Ok(Filled::Full);
                }
                Found::Bad => return Err(Error::PageAuthentication { page: page as u32 }),
            }
            done += len;
        }
        Ok(Filled::Full)
    }

    /// Reads page `page` into `self.plain`.
    fn load(&mut self, base: &impl Storage, page: u64) -> Result<Found> {
        let mut plain = std::mem::take(&mut self.plain);
        let found = self.load_into(base, page, &mut plain);
        self.plain = plain;
        found
    }

    /// Reads and opens page `page` into `plain`, whose reserve bytes become zeros.
    fn load_into(&mut self, base: &impl Storage, page: u64, plain: &mut [u8]) -> Result<Found> {
        let at = physical((page - 1) * self.page_size as u64);
        let (body, reserve) = plain.split_at_mut(self.page_size - RESERVE);
        reserve.fill(0);
        let whole = base.read(&mut self.sealed, at)?;
        if !whole && base.size()? <= at {
            body.fill(0);
            return Ok(Found::Missing);
        }
        let opened = whole && self.cipher.open(page, &self.sealed, body).is_ok();
        Ok(if opened { Found::Good } else { Found::Bad })
    }

    /// Answers SQLite's looks at the header before a hot journal or a log could restore a torn first
    /// page. It takes the page size and the reserve bytes from it, and whether its cache is of another
    /// time; everything else it takes from page 1 once that reads well.
    fn made_up_header(&self, buf: &mut [u8], at: usize) {
        let mut header = [0; SQLITE_HEADER];
        header[..SQLITE_MAGIC.len()].copy_from_slice(SQLITE_MAGIC);
        header[PAGE_SIZE_AT..FORMAT_AT].copy_from_slice(&page_size_field(self.page_size));
        header[FORMAT_AT..RESERVE_AT].fill(1);
        header[RESERVE_AT..RESERVE_AT + 4].copy_from_slice(&[RESERVE as u8, 64, 32, 32]);
        buf.copy_from_slice(&header[at..at + buf.len()]);
    }

    /// The copies of the envelope that are not good on disk.
    fn bad_copies(&self, base: &impl Storage) -> Result<Vec<char>> {
        let mut bad = Vec::new();
        for (index, name) in [(0, 'A'), (1, 'B')] {
            let mut copy = vec![0; COPY_LEN];
            base.read(&mut copy, index * COPY_LEN as u64)?;
            let good = envelope::Unverified::decode(&copy)
                .and_then(|copy| copy.verify(self.keyring.mac_key()));
            if good.is_err() {
                bad.push(name);
            }
        }
        Ok(bad)
    }

    /// The first write decides on the page size, also where an earlier creation was rolled back, and
    /// writes the copy of the envelope that a creation cut off did not come to.
    fn take_page_size(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        let page_size = first_page_size(bytes, at)?;
        check_page_1(bytes, at, page_size)?;
        let mut envelope = self.envelope.clone();
        if page_size != envelope.page_size {
            envelope.page_size = page_size;
            envelope.generation += 1;
        } else if self.bad_copies(base)?.is_empty() {
            return Ok(());
        }
        write_envelope(base, &self.keyring, &envelope)?;
        *self = Self::new(Arc::clone(&self.keyring), envelope);
        Ok(())
    }

    /// Whole pages in the file.
    fn whole(&self, base: &impl Storage) -> Result<u32> {
        let pages = logical_size(base.size()?) / self.page_size as u64;
        Ok(u32::try_from(pages).unwrap_or(u32::MAX))
    }

    /// Pages in the file, also where the last one is not whole.
    fn count(&self, base: &impl Storage) -> Result<u64> {
        Ok(logical_size(base.size()?).div_ceil(self.page_size as u64))
    }

    fn check_size(&self, base: &impl Storage, least: LeastPages<'_>) -> Result<()> {
        let whole = self.whole(base)?;
        if whole < least()? { Err(Error::PageAuthentication { page: whole + 1 }) } else { Ok(()) }
    }

    fn check_write(&self, bytes: &[u8], at: u64) -> Result<()> {
        if bytes.len() != self.page_size || !at.is_multiple_of(self.page_size as u64) {
            return Err(Error::NotAPage { offset: at, len: bytes.len() });
        }
        check_page_1(bytes, at, self.envelope.page_size)
    }

    /// A rollback gives the file the size that it had before. SQLite writes zeros as the last page,
    /// and what the journal has over all of them later; of the others it needs none. They stay holes,
    /// so that nobody takes a page that was cut off for one of zeros; see [`Self::seal_free`].
    fn regrow(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        if bytes.iter().all(|&byte| byte == 0) {
            base.truncate(physical_size(at + bytes.len() as u64))
        } else {
            self.store(base, bytes, at)
        }
    }

    /// Seals zeros from `size`, the end of the file, up to `to`. A torn page at the end is replaced.
    fn fill(&mut self, base: &impl Storage, size: u64, to: u64) -> Result<()> {
        let mut hole = size - size % self.page_size as u64;
        while hole < to {
            self.store_zeros(base, hole)?;
            hole += self.page_size as u64;
        }
        Ok(())
    }

    fn store_zeros(&mut self, base: &impl Storage, at: u64) -> Result<()> {
        self.plain.fill(0);
        let zeros = std::mem::take(&mut self.plain);
        let stored = self.store(base, &zeros, at);
        self.plain = zeros;
        stored
    }

    fn seal_if_bad(&mut self, base: &impl Storage, page: u64) -> Result<()> {
        if !is_lock_page(page, self.page_size) && self.load(base, page)? != Found::Good {
            self.store_zeros(base, (page - 1) * self.page_size as u64)?;
        }
        Ok(())
    }

    /// Seals zeros over each bad page that is free: a leaf of the freelist, whose content means
    /// nothing. Whatever says so is authentic; where it is not, SQLite meets that by itself.
    fn seal_free(&mut self, base: &impl Storage) -> Result<()> {
        let count = self.count(base)?;
        if self.load(base, 1)? != Found::Good {
            return Ok(());
        }
        let mut trunk = u64::from(be_u32(&self.plain[FREELIST_AT..]));
        // However trunks point to each other: a file has no more free pages than pages.
        let mut left = count;
        while trunk != 0 && left > 0 && self.load(base, trunk)? == Found::Good {
            let mut words = self.plain.chunks_exact(4).map(be_u32);
            trunk = words.next().map_or(0, u64::from);
            let free = words.next().unwrap_or(0) as usize;
            let leaves: Vec<u64> = words.take(free).map(u64::from).collect();
            left = left.saturating_sub(1 + leaves.len() as u64);
            for leaf in leaves.into_iter().filter(|leaf| (2..=count).contains(leaf)) {
                self.seal_if_bad(base, leaf)?;
            }
        }
        Ok(())
    }

    fn store(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        let page = at / self.page_size as u64 + 1;
        self.cipher.seal(page, &bytes[..self.page_size - RESERVE], &mut self.sealed)?;
        base.write(&self.sealed, physical(at))
    }

    /// Whether the database is in WAL mode.
    fn has_log(&mut self, base: &impl Storage) -> Result<bool> {
        Ok(self.load(base, 1)? == Found::Good && self.plain[FORMAT_AT] == FORMAT_WAL)
    }
}

/// Refuses a page 1 whose pages the trailer would cut, or whose database has pages of another size.
fn check_page_1(bytes: &[u8], at: u64, page_size: u32) -> Result<()> {
    if at > 0 || !bytes.starts_with(SQLITE_MAGIC) {
        return Ok(());
    }
    if bytes[PAGE_SIZE_AT..FORMAT_AT] != page_size_field(page_size as usize) {
        return Err(Error::PageSizeChange);
    }
    if usize::from(bytes[RESERVE_AT]) < RESERVE {
        return Err(Error::ReserveBytes(bytes[RESERVE_AT]));
    }
    Ok(())
}

/// The page size as SQLite's header has it: two bytes big-endian, 1 for 65536.
fn page_size_field(page_size: usize) -> [u8; 2] {
    if page_size == 65536 { [0, 1] } else { (page_size as u16).to_be_bytes() }
}

#[cfg(test)]
#[path = "main_db_tests.rs"]
pub(crate) mod tests;
