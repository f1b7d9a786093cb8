//! The envelope: the key records of a database file, in 16 KiB before the first page.
//!
//! ```text
//! 0                         7680       8192                      15872      16384
//! +-------------------------+----------+-------------------------+----------+---------
//! | copy A                  | slot 0   | copy B                  | slot 1   | page 1 ..
//! +-------------------------+----------+-------------------------+----------+---------
//! a copy, all integers big-endian, times in Unix seconds:
//! 0       16       20       24           32        48          52        60        68
//! +-------+--------+--------+------------+---------+-----------+---------+---------+--
//! | magic | format | length | generation | file id | page size | created | rotated |
//! +-------+--------+--------+------------+---------+-----------+---------+---------+--
//! 68            76           77      80            84          85           86      87  88
//! +-------------+------------+-------+-------------+-----------+------------+-------+---+
//! | regenerated | scan state | 0 0 0 | scan cursor | DEK count | protectors | flags | 0 |
//! +-------------+------------+-------+-------------+-----------+------------+-------+---+
//! 88                           length - 32   length           7680
//! +---------+------------------+-------------+----------------+
//! | DEK, .. | protector, ..    | MAC         | zeros          |
//! +---------+------------------+-------------+----------------+
//! flags     = bit 0: protectors are not rotated by themselves; bit 1: the database has pages
//! DEK       = key version 4 | suite 1 | 0 | wrapped length 2 | wrapped
//! protector = name 1+n | provider 1+n | key id 2+n | key version 2+n | mechanism 1+n
//!           | not after 8 | flags 1 (bit 0: read-only) | wrapped DEK 2+n
//! "1+n" is a length of 1 byte, then so many bytes of UTF-8; "2+n" has a length of 2 bytes
//! ```
//!
//! The current DEK comes first and has no wrapped bytes of its own: the protectors wrap it, each by
//! itself. A retired DEK is wrapped under the current one. The MAC is HMAC-SHA-256, under the
//! current DEK's envelope subkey, of everything before it. The slots identify the log that belongs
//! to the file ([`slot`]); checkpoints write them, and writers of a copy leave them unchanged.
//!
//! Invariants:
//! 1. One meaning, one encoding: a copy that decodes is, byte for byte, what encoding gives.
//! 2. Nothing that was not authenticated leaves this module as an [`Envelope`]: decoding gives an
//!    [`Unverified`], which exposes only the fields needed to find the key.

pub(crate) mod slot;
pub(crate) mod slots;

use std::collections::BTreeSet;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use self::slot::SLOT_LEN;
use crate::error::{Error, Result};
use crate::provider::Wrapped;
use crate::secret::Secret;
use crate::secret::stack::{HASHES, without_trace};
use crate::suite::SuiteId;

/// First bytes of every encrypted database.
pub const MAGIC: &[u8; 16] = b"sqlite-tde file\0";
/// The newest format version that this software reads, and the one that it writes.
pub const FORMAT: u32 = 1;
/// Bytes of one copy.
pub const COPY_LEN: usize = REGION_LEN - SLOT_LEN;
/// Bytes of a copy and the slot behind it: where copy B starts.
pub const REGION_LEN: usize = 8192;
/// Bytes of both copies and slots: where page 1 starts.
pub const ENVELOPE_LEN: usize = 2 * REGION_LEN;

const FORMAT_AT: usize = MAGIC.len();
const LENGTH_AT: usize = FORMAT_AT + size_of::<u32>();
const GENERATION_AT: usize = LENGTH_AT + size_of::<u32>();
const FILE_ID_AT: usize = GENERATION_AT + size_of::<u64>();
const PAGE_SIZE_AT: usize = FILE_ID_AT + FILE_ID_LEN;
const CREATED_AT: usize = PAGE_SIZE_AT + size_of::<u32>();
const ROTATED_AT: usize = CREATED_AT + size_of::<u64>();
const REGENERATED_AT: usize = ROTATED_AT + size_of::<u64>();
const SCAN_STATE_AT: usize = REGENERATED_AT + size_of::<u64>();
const SCAN_ZERO_AT: usize = SCAN_STATE_AT + 1;
const SCAN_CURSOR_AT: usize = SCAN_ZERO_AT + 3;
const DEK_COUNT_AT: usize = SCAN_CURSOR_AT + size_of::<u32>();
const PROTECTOR_COUNT_AT: usize = DEK_COUNT_AT + 1;
const FLAGS_AT: usize = PROTECTOR_COUNT_AT + 1;
const FLAGS_ZERO_AT: usize = FLAGS_AT + 1;
const RECORDS_AT: usize = FLAGS_ZERO_AT + 1;
const _: () = assert!(RECORDS_AT == 88, "databases have their records here");

const FILE_ID_LEN: usize = 16;
const MAC_LEN: usize = 32;
const SECTOR_LEN: usize = 512;
const DEKS_MAX: usize = 4;
/// Protectors that a database can have at once.
pub(crate) const PROTECTORS_MAX: usize = 8;
const WRAPPED_MAX_LEN: usize = 2048;
const READ_ONLY: u8 = 1;
const MANUAL_ROTATION: u8 = 1;
const HAS_PAGES: u8 = 2;
const PAGE_SIZE_MIN: u32 = 1024;
const PAGE_SIZE_MAX: u32 = 65536;

static ZEROS: [u8; COPY_LEN] = [0; COPY_LEN];

/// The content of a copy, authenticated or about to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Counts the writes of the envelope, from 1.
    pub generation: u64,
    /// Random, of this database alone.
    pub file_id: [u8; FILE_ID_LEN],
    /// Bytes of a page, a power of two from 1024 to 65536; 0 while it is not known.
    pub page_size: u32,
    /// When the database was created, in Unix seconds.
    pub created: u64,
    /// When a protector was last rotated, in Unix seconds; 0 for never.
    pub rotated: u64,
    /// When the DEK was last regenerated, in Unix seconds; 0 for never.
    pub regenerated: u64,
    /// Progress of the move of old pages to the current DEK.
    pub scan_state: ScanState,
    /// The last page that the scan has done; 0 for none.
    pub scan_cursor: u32,
    /// Whether a protector is re-wrapped under a newer version of its key on request only.
    pub manual_rotation: bool,
    /// Whether a transaction has been committed. A database then has a first page for good; without
    /// one the file was cut.
    pub has_pages: bool,
    /// The DEK of all new writes. Its `wrapped` is empty: the protectors have it.
    pub current: DekRecord,
    /// DEKs that pages may still be under, at most 3, wrapped under the current one.
    pub retired: Vec<DekRecord>,
    /// The records that unwrap the current DEK: 1 to 8, each by itself, in the order of trying.
    pub protectors: Vec<ProtectorRecord>,
}

/// A data encryption key, as the envelope keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DekRecord {
    /// Key version, from 1; no two DEKs of an envelope have the same.
    pub version: u32,
    /// The cipher suite of its pages.
    pub suite: SuiteId,
    /// 1 to 2048 bytes, wrapped under the current DEK; none for the current DEK itself.
    pub wrapped: Vec<u8>,
}

/// One way to the current DEK: a protector key, and the DEK wrapped with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtectorRecord {
    /// The protector's name in this database: 1 to 255 bytes, unique.
    pub name: String,
    /// The provider's name, at most 255 bytes; the configuration gives it a meaning.
    pub provider: String,
    /// The provider's name of the key.
    pub key_id: String,
    /// The DEK, wrapped: a blob of 1 to 2048 bytes.
    pub wrapped: Wrapped,
    /// When the protector key ends, in Unix seconds; 0 for never.
    pub not_after: u64,
    /// Whether an opening through this protector allows only reads.
    pub read_only: bool,
}

impl ProtectorRecord {
    /// Whether both have the same bytes under the same key: unwrapping one is unwrapping the other.
    pub(crate) fn is_same_wrap(&self, other: &Self) -> bool {
        (&self.provider, &self.key_id, &self.wrapped)
            == (&other.provider, &other.key_id, &other.wrapped)
    }
}

/// State of the scan that moves pages from retired DEKs to the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanState {
    /// There was none since the database was created.
    None,
    /// It is at work, or the process that did it died.
    Running,
    /// It stopped on request and can go on.
    Suspended,
    /// It was given up.
    Aborted,
    /// No page is left under a retired DEK.
    Complete,
}

impl ScanState {
    const ALL: [Self; 5] =
        [Self::None, Self::Running, Self::Suspended, Self::Aborted, Self::Complete];

    fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Running => 1,
            Self::Suspended => 2,
            Self::Aborted => 3,
            Self::Complete => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.code() == code)
    }
}

impl Envelope {
    /// One copy, [`COPY_LEN`] bytes, authenticated with the current DEK's envelope subkey.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the part that is out of bounds, or the excess length.
    pub fn encode(&self, mac_key: &Secret) -> Result<Vec<u8>> {
        let usage = |reason: String| Error::Usage(format!("envelope: {reason}"));
        self.check().map_err(usage)?;
        let records = self.encode_records().map_err(usage)?;
        let used = RECORDS_AT + records.len() + MAC_LEN;
        if used > COPY_LEN {
            return Err(usage(format!("it needs {used} bytes of {COPY_LEN}")));
        }
        let mut copy = Vec::with_capacity(COPY_LEN);
        copy.extend_from_slice(MAGIC);
        copy.extend_from_slice(&FORMAT.to_be_bytes());
        // At most COPY_LEN.
        copy.extend_from_slice(&(used as u32).to_be_bytes());
        copy.extend_from_slice(&self.generation.to_be_bytes());
        copy.extend_from_slice(&self.file_id);
        copy.extend_from_slice(&self.page_size.to_be_bytes());
        copy.extend_from_slice(&self.created.to_be_bytes());
        copy.extend_from_slice(&self.rotated.to_be_bytes());
        copy.extend_from_slice(&self.regenerated.to_be_bytes());
        copy.extend_from_slice(&[self.scan_state.code(), 0, 0, 0]);
        copy.extend_from_slice(&self.scan_cursor.to_be_bytes());
        // `check` has bounded both counts.
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(self.manual_rotation, MANUAL_ROTATION) | flag(self.has_pages, HAS_PAGES);
        let counts = [1 + self.retired.len() as u8, self.protectors.len() as u8];
        copy.extend_from_slice(&counts);
        copy.extend_from_slice(&[flags, 0]);
        copy.extend_from_slice(&records);
        let tag = mac(mac_key, &copy).ok_or_else(|| usage("no MAC key".to_owned()))?;
        copy.extend_from_slice(&tag);
        copy.resize(COPY_LEN, 0);
        Ok(copy)
    }

    fn encode_records(&self) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        for dek in self.deks() {
            out.extend_from_slice(&dek.version.to_be_bytes());
            out.extend_from_slice(&[dek.suite.code(), 0]);
            put_long(&mut out, &dek.wrapped, "wrapped DEK")?;
        }
        for protector in &self.protectors {
            put_short(&mut out, &protector.name, "protector name")?;
            put_short(&mut out, &protector.provider, "provider")?;
            put_long(&mut out, protector.key_id.as_bytes(), "key id")?;
            put_long(&mut out, protector.wrapped.key_version.as_bytes(), "key version")?;
            put_short(&mut out, &protector.wrapped.mechanism, "mechanism")?;
            out.extend_from_slice(&protector.not_after.to_be_bytes());
            out.push(if protector.read_only { READ_ONLY } else { 0 });
            put_long(&mut out, &protector.wrapped.blob, "wrapped DEK")?;
        }
        Ok(out)
    }

    fn deks(&self) -> impl Iterator<Item = &DekRecord> {
        std::iter::once(&self.current).chain(&self.retired)
    }

    /// The rules for encoding and decoding; `Err` names the broken one.
    fn check(&self) -> Result<(), String> {
        let rule = |holds: bool, reason: &str| holds.then_some(()).ok_or_else(|| reason.to_owned());
        let is_wrapped = |bytes: &[u8]| (1..=WRAPPED_MAX_LEN).contains(&bytes.len());
        rule(self.generation > 0, "generation is 0")?;
        rule(is_page_size(self.page_size), "page size is none that SQLite pages can have")?;
        rule(self.retired.len() < DEKS_MAX, "DEK count is not 1 to 4")?;
        rule(self.deks().all(|dek| dek.version > 0), "DEK key version is 0")?;
        let versions: BTreeSet<u32> = self.deks().map(|dek| dek.version).collect();
        rule(versions.len() == 1 + self.retired.len(), "DEK key version occurs twice")?;
        rule(self.current.wrapped.is_empty(), "current DEK has wrapped bytes of its own")?;
        let all_wrapped = self.retired.iter().all(|dek| is_wrapped(&dek.wrapped));
        rule(all_wrapped, "wrapped length of a retired DEK is not 1 to 2048")?;
        let count = self.protectors.len();
        rule((1..=PROTECTORS_MAX).contains(&count), "protector count is not 1 to 8")?;
        let names: BTreeSet<&str> = self.protectors.iter().map(|p| p.name.as_str()).collect();
        rule(!names.contains(""), "protector name is empty")?;
        rule(names.len() == count, "protector name occurs twice")?;
        let all_wrapped = self.protectors.iter().all(|p| is_wrapped(&p.wrapped.blob));
        rule(all_wrapped, "wrapped DEK length of a protector is not 1 to 2048")
    }
}

/// A copy of sound structure whose MAC is unchecked: an attacker may have written it. It exposes
/// only the fields needed to find the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified {
    envelope: Arc<Envelope>,
    authenticated: Arc<[u8]>,
    tag: [u8; MAC_LEN],
}

impl Unverified {
    /// Reads one copy.
    ///
    /// # Errors
    /// [`Error::NotADatabase`] without the magic, then [`Error::FormatTooNew`], then
    /// [`Error::EnvelopeDamaged`] naming the field.
    pub fn decode(copy: &[u8]) -> Result<Self> {
        if !copy.starts_with(MAGIC) {
            return Err(Error::NotADatabase("the magic bytes are missing".to_owned()));
        }
        let found = u32_at(copy, FORMAT_AT, "format").map_err(Error::EnvelopeDamaged)?;
        if found > FORMAT {
            return Err(Error::FormatTooNew { found, supported: FORMAT });
        }
        Self::parse(copy, found).map_err(Error::EnvelopeDamaged)
    }

    fn parse(copy: &[u8], format: u32) -> Result<Self, String> {
        if format == 0 {
            return Err("format is 0".to_owned());
        }
        if copy.len() != COPY_LEN {
            return Err(format!("a copy has {} bytes of {COPY_LEN}", copy.len()));
        }
        let used = u32_at(copy, LENGTH_AT, "length")? as usize;
        let out_of_bounds = || format!("length {used} is out of bounds");
        let (content, padding) = copy.split_at_checked(used).ok_or_else(out_of_bounds)?;
        let (authenticated, tag) = content.split_last_chunk().ok_or_else(out_of_bounds)?;
        let records = authenticated.get(RECORDS_AT..).ok_or_else(out_of_bounds)?;
        if !is_zero(padding) {
            return Err("padding is not zero".to_owned());
        }
        if is_zero(tag) {
            // A first write that was torn before its last sector; no key gives this MAC.
            return Err("MAC is missing".to_owned());
        }
        let envelope = parse_fields(authenticated, records)?;
        envelope.check()?;
        Ok(Self { envelope: Arc::new(envelope), authenticated: authenticated.into(), tag: *tag })
    }

    /// The generation, unverified.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.envelope.generation
    }

    /// The file id, unverified.
    #[must_use]
    pub fn file_id(&self) -> [u8; FILE_ID_LEN] {
        self.envelope.file_id
    }

    /// The protector records: 1 to 8.
    #[must_use]
    pub fn protectors(&self) -> &[ProtectorRecord] {
        &self.envelope.protectors
    }

    /// Key version and suite of the current DEK.
    #[must_use]
    pub fn current(&self) -> (u32, SuiteId) {
        (self.envelope.current.version, self.envelope.current.suite)
    }

    /// The envelope, if the holder of `mac_key` wrote it.
    ///
    /// # Errors
    /// [`Error::EnvelopeDamaged`] if the MAC does not match.
    pub fn verify(&self, mac_key: &Secret) -> Result<Arc<Envelope>> {
        mac(mac_key, &self.authenticated)
            .filter(|tag| bool::from(tag.ct_eq(&self.tag)))
            .map(|_| Arc::clone(&self.envelope))
            .ok_or_else(|| Error::EnvelopeDamaged("the MAC does not match".to_owned()))
    }

    /// Whether `copy` is, byte for byte, the copy that this was decoded from.
    pub(crate) fn is_copy(&self, copy: &[u8]) -> bool {
        let rest = copy.strip_prefix(&*self.authenticated);
        let padding = rest.and_then(|rest| rest.strip_prefix(&self.tag));
        copy.len() == COPY_LEN && padding.is_some_and(is_zero)
    }
}

/// The copies that parse, highest generation first, without duplicates; never empty.
///
/// `header` is the first [`ENVELOPE_LEN`] bytes of a file, or all where it has fewer. Copies with
/// different file ids are both returned: only the MAC can tell which belongs to this database.
///
/// # Errors
/// If no copy parses: [`Error::FormatTooNew`] if either does, [`Error::NotADatabase`] if neither
/// has the magic, else [`Error::EnvelopeDamaged`] naming the fault of each.
pub fn candidates(header: &[u8]) -> Result<Vec<Unverified>> {
    let (a, b) = copies(header);
    let first = Unverified::decode(a);
    if a == b
        && let Ok(only) = first
    {
        return Ok(vec![only]);
    }
    match (first, Unverified::decode(b)) {
        (Ok(a), Ok(b)) if b.generation() > a.generation() => Ok(vec![b, a]),
        (Ok(a), Ok(b)) => Ok(vec![a, b]),
        (Ok(only), Err(_)) | (Err(_), Ok(only)) => Ok(vec![only]),
        (Err(error @ Error::FormatTooNew { .. }), Err(_))
        | (Err(_), Err(error @ Error::FormatTooNew { .. }))
        | (Err(error @ Error::NotADatabase(_)), Err(Error::NotADatabase(_))) => Err(error),
        (Err(a), Err(b)) => {
            Err(Error::EnvelopeDamaged(format!("copy A: {}; copy B: {}", reason(a), reason(b))))
        }
    }
}

/// Whether a file of `file_len` bytes that starts with `header` can only be the rest of an
/// interrupted creation, so that nothing was ever stored in it.
///
/// Creation writes copy A, syncs it, writes pages, and at the first commit copy B, syncs that, and
/// copy A again. Both then mark that there are pages, and the pages are on disk. Conditions:
/// 1. the file has no page: it ends with the envelope or before, at a multiple of a sector;
/// 2. copy A, whole or torn, is of no later format and says that there are no pages, or is zeros
///    and so is all that follows;
/// 3. copy B is zeros, or begins as one.
///
/// Nothing here is authenticated: an attacker who can write the file can empty it, too. The check
/// tells a crash from a file that was cut.
#[must_use]
pub fn is_unfinished(header: &[u8], file_len: u64) -> bool {
    // A header shorter than the file leaves bytes unseen; a longer one was filled up by its reader.
    let header = match usize::try_from(file_len) {
        Ok(len) if len <= ENVELOPE_LEN => header.get(..len),
        _ => None,
    };
    let Some(header) = header.filter(|header| header.len().is_multiple_of(SECTOR_LEN)) else {
        return false;
    };
    let begins = |copy: &[u8]| {
        copy.starts_with(MAGIC)
            && u32_at(copy, FORMAT_AT, "format").is_ok_and(|format| format <= FORMAT)
    };
    let (a, b) = copies(header);
    let no_pages = a.get(FLAGS_AT).is_some_and(|flags| flags & HAS_PAGES == 0);
    if is_zero(a) {
        !a.is_empty() && is_zero(b)
    } else {
        no_pages && begins(a) && (is_zero(b) || begins(b))
    }
}

/// Bytes of a copy from which [`Envelope::begins`] identifies its database.
pub(crate) const ID_END: usize = CREATED_AT;

impl Envelope {
    /// Whether a copy of this database's envelope begins with `start`: magic, file id and page size
    /// stay as they are. Nothing here is authenticated: one short read shows whether an envelope is
    /// there at all.
    pub(crate) fn begins(&self, start: &[u8; ID_END]) -> bool {
        start.starts_with(MAGIC)
            && start[FILE_ID_AT..PAGE_SIZE_AT] == self.file_id
            && start[PAGE_SIZE_AT..] == self.page_size.to_be_bytes()
    }
}

/// The file id in `header` and its copy A, if copy B has the same bytes. Nothing is authenticated.
pub(crate) fn only_copy(header: &[u8]) -> Option<([u8; FILE_ID_LEN], &[u8])> {
    let (a, b) = copies(header);
    let file_id = a.get(FILE_ID_AT..)?.first_chunk()?;
    (a == b).then_some((*file_id, a))
}

/// Whether both copies in `header` are the same, byte for byte.
pub(crate) fn copies_are_equal(header: &[u8]) -> bool {
    let (a, b) = copies(header);
    a == b
}

/// Copies A and B, as far as `header` reaches.
fn copies(header: &[u8]) -> (&[u8], &[u8]) {
    let header = header.get(..ENVELOPE_LEN).unwrap_or(header);
    let (a, b) = header.split_at_checked(REGION_LEN).unwrap_or((header, &[]));
    (a.get(..COPY_LEN).unwrap_or(a), b.get(..COPY_LEN).unwrap_or(b))
}

/// An error's words without its class.
fn reason(error: Error) -> String {
    match error {
        Error::EnvelopeDamaged(reason) | Error::NotADatabase(reason) => reason,
        other => other.to_string(),
    }
}

/// HMAC takes keys of any length, so this is never `None`.
fn mac(key: &Secret, bytes: &[u8]) -> Option<[u8; 32]> {
    without_trace::<HASHES, _>(|| {
        let mac = Hmac::<Sha256>::new_from_slice(key.expose()).ok()?;
        Some(mac.chain_update(bytes).finalize().into_bytes().into())
    })
}

fn is_page_size(size: u32) -> bool {
    size == 0 || size.is_power_of_two() && (PAGE_SIZE_MIN..=PAGE_SIZE_MAX).contains(&size)
}

/// Whether `bytes`, at most a copy of them, are all zero.
fn is_zero(bytes: &[u8]) -> bool {
    ZEROS.starts_with(bytes)
}

fn put_short(out: &mut Vec<u8>, text: &str, field: &str) -> Result<(), String> {
    let len = u8::try_from(text.len()).map_err(|_| format!("{field} is over 255 bytes"))?;
    out.push(len);
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn put_long(out: &mut Vec<u8>, bytes: &[u8], field: &str) -> Result<(), String> {
    let len = u16::try_from(bytes.len()).map_err(|_| format!("{field} is over 65535 bytes"))?;
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// The fields, not yet checked by [`Envelope::check`].
fn parse_fields(head: &[u8], records: &[u8]) -> Result<Envelope, String> {
    for (at, len, field) in [(SCAN_ZERO_AT, 3, "scan state"), (FLAGS_ZERO_AT, 1, "flags")] {
        if !head.get(at..at + len).is_some_and(is_zero) {
            return Err(format!("bytes after the {field} are not zero"));
        }
    }
    let [scan_state] = array_at(head, SCAN_STATE_AT, "scan state")?;
    let [dek_count] = array_at(head, DEK_COUNT_AT, "DEK count")?;
    let [protector_count] = array_at(head, PROTECTOR_COUNT_AT, "protector count")?;
    let [flags] = array_at(head, FLAGS_AT, "flags")?;
    if dek_count == 0 {
        return Err("DEK count is 0".to_owned());
    }
    if flags & !(MANUAL_ROTATION | HAS_PAGES) != 0 {
        return Err(format!("flags are {flags:#04x}"));
    }
    let mut reader = Reader { rest: records };
    let envelope = Envelope {
        generation: u64_at(head, GENERATION_AT, "generation")?,
        file_id: array_at(head, FILE_ID_AT, "file id")?,
        page_size: u32_at(head, PAGE_SIZE_AT, "page size")?,
        created: u64_at(head, CREATED_AT, "created")?,
        rotated: u64_at(head, ROTATED_AT, "rotated")?,
        regenerated: u64_at(head, REGENERATED_AT, "regenerated")?,
        scan_state: ScanState::from_code(scan_state)
            .ok_or_else(|| format!("scan state is {scan_state}"))?,
        scan_cursor: u32_at(head, SCAN_CURSOR_AT, "scan cursor")?,
        manual_rotation: flags & MANUAL_ROTATION != 0,
        has_pages: flags & HAS_PAGES != 0,
        current: reader.dek()?,
        retired: (1..dek_count).map(|_| reader.dek()).collect::<Result<_, _>>()?,
        protectors: (0..protector_count).map(|_| reader.protector()).collect::<Result<_, _>>()?,
    };
    if !reader.rest.is_empty() {
        return Err(format!("length counts {} bytes after the last record", reader.rest.len()));
    }
    Ok(envelope)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize, field: &str) -> Result<[u8; N], String> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().ok_or_else(|| format!("{field} is cut off"))
}

fn u32_at(bytes: &[u8], at: usize, field: &str) -> Result<u32, String> {
    array_at(bytes, at, field).map(u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize, field: &str) -> Result<u64, String> {
    array_at(bytes, at, field).map(u64::from_be_bytes)
}

/// Takes records from the front.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn dek(&mut self) -> Result<DekRecord, String> {
        let version = u32::from_be_bytes(self.array("DEK key version")?);
        let [code, zero] = self.array("DEK suite")?;
        if zero != 0 {
            return Err("byte after the DEK suite is not zero".to_owned());
        }
        Ok(DekRecord {
            version,
            suite: SuiteId::from_code(code).ok_or_else(|| format!("DEK suite is {code}"))?,
            wrapped: self.long("wrapped DEK")?.to_vec(),
        })
    }

    fn protector(&mut self) -> Result<ProtectorRecord, String> {
        let name = self.short("protector name")?;
        let provider = self.short("provider")?;
        let key_id = utf8(self.long("key id")?, "key id")?;
        let key_version = utf8(self.long("key version")?, "key version")?;
        let mechanism = self.short("mechanism")?;
        let not_after = u64::from_be_bytes(self.array("not-after")?);
        let [flags] = self.array("flags")?;
        if flags & !READ_ONLY != 0 {
            return Err(format!("protector flags are {flags:#04x}"));
        }
        let blob = self.long("wrapped DEK")?.to_vec();
        Ok(ProtectorRecord {
            name,
            provider,
            key_id,
            wrapped: Wrapped { key_version, mechanism, blob },
            not_after,
            read_only: flags & READ_ONLY != 0,
        })
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], String> {
        let (found, rest) =
            self.rest.split_first_chunk().ok_or_else(|| format!("{field} is cut off"))?;
        self.rest = rest;
        Ok(*found)
    }

    fn take(&mut self, len: usize, field: &str) -> Result<&'a [u8], String> {
        let (found, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| format!("{field} is cut off"))?;
        self.rest = rest;
        Ok(found)
    }

    fn short(&mut self, field: &str) -> Result<String, String> {
        let [len] = self.array(field)?;
        utf8(self.take(usize::from(len), field)?, field)
    }

    fn long(&mut self, field: &str) -> Result<&'a [u8], String> {
        let len = u16::from_be_bytes(self.array(field)?);
        self.take(usize::from(len), field)
    }
}

fn utf8(bytes: &[u8], field: &str) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{field} is not UTF-8"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
