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
//! 4. After a recovery of the write-ahead log, every page is sealed again. A checkpoint that power
//!    loss interrupted leaves holes where the file grew: pages that the log has too, and pages that
//!    SQLite never wrote (invariant 1), which are sealed anew.

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
    /// Where a log is being recovered: the smallest size in pages that the file had under it.
    recovering: Option<u32>,
}

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
        let mut db = Self { wishes, state: State::Empty(None), known_size: None, recovering: None };
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

    /// Recovery starts to read a log that was begun when this file had `pages` pages.
    pub(crate) fn recovery_starts(&mut self, pages: u32) {
        self.recovering = Some(pages);
    }

    /// Recovery read a commit that left the database `pages` pages, to which it may have been cut.
    pub(crate) fn recovery_passes(&mut self, pages: u32) {
        self.recovering = self.recovering.map(|least| least.min(pages));
    }

    /// Ends a recovery, if one has started: seals the holes that an interrupted checkpoint left.
    ///
    /// A bad page past the smallest size is either in the log, which SQLite reads and checkpoints
    /// before this one counts, or one that SQLite never wrote. Pages before it were synced before
    /// the log was begun; if one of them is bad, somebody changed it, and it stays as it is.
    pub(crate) fn end_recovery(&mut self, base: &impl Storage) -> Result<()> {
        let Some(least) = self.recovering else { return Ok(()) };
        if let State::Encrypted(pages) = &mut self.state {
            pages.seal_holes(base, least)?;
        }
        self.recovering = None;
        Ok(())
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
        Ok((logical_size(base.size()?) / pages.page_size as u64) as u32)
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

    pub(crate) fn write(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
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
        self.end_recovery(base)?;
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
                pages.write(base, bytes, at, size)?;
                pages.blank = false;
                self.known_size = Some(size.max(at + bytes.len() as u64));
                Ok(())
            }
            State::Plain | State::Empty(_) => base.write(bytes, at),
        }
    }

    pub(crate) fn truncate(&mut self, base: &impl Storage, size: u64) -> Result<()> {
        self.known_size = None;
        match &mut self.state {
            State::Encrypted(pages) => {
                pages.blank = size == 0;
                // A checkpoint sets the size of a database whose last pages were never written.
                pages.fill(base, logical_size(base.size()?), size)?;
                base.truncate(physical_size(size))
            }
            State::Plain => base.truncate(size),
            State::Empty(_) => Ok(()),
        }
    }

    /// Authenticates every page and both envelope copies as they are on disk, calling `progress`
    /// with the pages done and the pages there are.
    pub(crate) fn verify(
        &mut self,
        base: &impl Storage,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Findings> {
        let State::Encrypted(pages) = &mut self.state else { return Err(Error::NotEncrypted) };
        let mut findings = Findings::default();
        let size = logical_size(base.size()?);
        findings.pages = size.div_ceil(pages.page_size as u64);
        findings.bad_copies = pages.bad_copies(base)?;
        let patience = pages.patience(base)?;
        for page in 1..=findings.pages {
            if !is_lock_page(page, pages.page_size) && !pages.is_good(base, page, patience)? {
                findings.bad_pages.push(page as u32);
            }
            progress(page, findings.pages);
        }
        Ok(findings)
    }
}

/// What [`MainDb::verify`] found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) pages: u64,
    pub(crate) bad_pages: Vec<u32>,
    pub(crate) bad_copies: Vec<char>,
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

    fn write(&mut self, base: &impl Storage, bytes: &[u8], at: u64, size: u64) -> Result<()> {
        if bytes.len() != self.page_size || !at.is_multiple_of(self.page_size as u64) {
            return Err(Error::NotAPage { offset: at, len: bytes.len() });
        }
        check_page_1(bytes, at, self.envelope.page_size)?;
        self.fill(base, size, at)?;
        self.store(base, bytes, at)
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

    /// Seals zeros over each bad page past page `least`.
    fn seal_holes(&mut self, base: &impl Storage, least: u32) -> Result<()> {
        let page_size = self.page_size as u64;
        let last = logical_size(base.size()?).div_ceil(page_size);
        for page in u64::from(least) + 1..=last {
            if !is_lock_page(page, self.page_size) && self.load(base, page)? != Found::Good {
                self.store_zeros(base, (page - 1) * page_size)?;
            }
        }
        Ok(())
    }

    /// How long to wait, in ms, before looking at a bad page again. A shared lock keeps no
    /// checkpoint away: a page that is just being written is whole a moment later.
    fn patience(&mut self, base: &impl Storage) -> Result<&'static [u64]> {
        let has_log = self.load(base, 1)? == Found::Good && self.plain[FORMAT_AT] == FORMAT_WAL;
        Ok(if has_log { &[1, 10] } else { &[] })
    }

    /// Whether `page` authenticates, now or after one of the waits.
    fn is_good(&mut self, base: &impl Storage, page: u64, patience: &[u64]) -> Result<bool> {
        for &ms in [0].iter().chain(patience) {
            std::thread::sleep(std::time::Duration::from_millis(ms));
            if self.load(base, page)? == Found::Good {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn store(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        let page = at / self.page_size as u64 + 1;
        self.cipher.seal(page, &bytes[..self.page_size - RESERVE], &mut self.sealed)?;
        base.write(&self.sealed, physical(at))
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
