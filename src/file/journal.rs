//! The rollback journal of an encrypted database.
//!
//! ```text
//! 0        sector     + stride
//! | header | record 0 | record 1 | ... | end mark   record = a sector of SQLite's journal + 48
//!
//! header:  0      16        20            24     40        56      60
//!          | magic | format | key version | salt | file id | grain | zeros to 512 |
//! ```
//! SQLite's journal, cut into sectors, each sealed as a block of its own: SQLite starts every synced
//! part of a journal on a sector, so writing one part never rewrites bytes that an earlier sync made
//! durable. A sector is 512 bytes where the base overwrites powersafely, and else what a torn write
//! spoils, the base's own: then no two records share one either. `grain` is 1 or that sector, and
//! `stride` is the length of a record, a multiple of `grain`. The salt is new for each journal, also where
//! PERSIST reuses the file, and so is the key: old records cannot pass as new ones.
//!
//! Records are always whole, for SQLite may go on at the next sector and never come back to the one
//! it left half filled. After the last record come as many zeros, 1 to 512, as that record holds of
//! SQLite's journal: its size stays exact, and the file only ever grows while a journal does.
//!
//! A record that does not authenticate is, after a crash, one that never reached the disk. SQLite
//! must then see the end of the journal, and must not take zeros for a page: its own checksum
//! samples one byte in 200. So a read of a page over such a record is a *short read*, which ends the
//! playback. A shorter read (magic, page number, checksum, name of a super-journal) answers zeros,
//! which no header, no page record and no name starts with: SQLite takes a short read of a name for
//! an error of the disk.

use std::os::raw::c_int;
use std::sync::Arc;

use super::tuning::Tuning;
use super::{Filled, Storage};
use crate::error::{Error, Result};
use crate::key::cipher::{Cipher, Subkey};
use crate::key::keyring::{FileId, ID_LEN, Keyring, cached};
use crate::page::{KeyVersion, RESERVE};
use crate::secret::fill_random;

const MAGIC: &[u8; 16] = b"sqlite-tde jrnl\0";
const FORMAT: u32 = 1;
const FORMAT_AT: usize = MAGIC.len();
const VERSION_AT: usize = FORMAT_AT + size_of::<u32>();
const SALT_AT: usize = VERSION_AT + size_of::<KeyVersion>();
const FILE_ID_AT: usize = SALT_AT + ID_LEN;
const GRAIN_AT: usize = FILE_ID_AT + ID_LEN;
const HEADER_LEN: usize = SECTOR;
/// SQLite's smallest sector, which it takes where the VFS reports powersafe overwrite.
const SECTOR: usize = 512;
const LARGEST_SECTOR: usize = 65536;
/// The smallest page; whatever is shorter is a field.
const SMALLEST_PAGE: usize = 1024;

const _: () = assert!(GRAIN_AT + size_of::<u32>() <= HEADER_LEN);

/// Where records lie.
#[derive(Debug, Clone, Copy)]
struct Layout {
    grain: usize,
}

impl Layout {
    /// Bytes of SQLite's journal in a record.
    fn sector(self) -> usize {
        self.grain.max(SECTOR)
    }

    fn record(self) -> usize {
        self.sector() + RESERVE
    }

    fn stride(self) -> u64 {
        self.record().next_multiple_of(self.grain) as u64
    }

    /// Where `record` starts in the file.
    fn position(self, record: u64) -> u64 {
        self.sector() as u64 + record * self.stride()
    }

    /// Record number and offset within it of byte `at` of SQLite's journal.
    fn locate(self, at: u64) -> (u64, usize) {
        (at / self.sector() as u64, (at % self.sector() as u64) as usize)
    }

    /// How many bytes follow the last record of a journal of `size` bytes: as many as SQLite's
    /// journal has in that record. They only say where it ends.
    fn end_mark(self, size: u64) -> usize {
        ((size - 1) % self.sector() as u64) as usize + 1
    }

    /// Where a journal of `size` bytes ends, more than none.
    fn physical_size(self, size: u64) -> u64 {
        self.position(size.div_ceil(self.sector() as u64)) + self.end_mark(size) as u64
    }

    /// SQLite's size of a journal that is `physical` bytes long.
    fn logical_size(self, physical: u64) -> u64 {
        let sector = self.sector() as u64;
        let body = physical.saturating_sub(sector);
        let (records, end) = (body / self.stride(), body % self.stride());
        match (records, end) {
            (0, _) => 0,
            (_, 0) => records * sector,
            _ => (records - 1) * sector + end.min(sector),
        }
    }
}

/// What SQLite's look at the journal of another database finds.
pub(crate) enum Another {
    /// No journal of ours.
    NotOurs,
    Readable(Box<Journal>),
    /// A journal whose database is not open in this process.
    NoKey,
}

/// A failed write that has to be undone.
#[derive(Clone, Copy)]
struct Spoilt {
    /// SQLite's code for the failure.
    code: c_int,
    /// The size that the file had.
    size: u64,
}

pub(crate) struct Journal {
    keyring: Option<Arc<Keyring>>,
    cipher: Option<Cipher>,
    layout: Layout,
    /// Grain of a journal that this handle starts.
    grain: usize,
    #[expect(dead_code)]
    tuning: Tuning,
    /// Bytes of this journal known to be ours: written by this handle under the present salt.
    written: u64,
    /// A failed write may have spoilt records that SQLite still counts on, and could not be undone.
    spoilt: Option<Spoilt>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    /// The records of one write, and those it changes in part as they were before.
    image: Vec<u8>,
    changed: Changed,
}

impl Journal {
    /// A journal of the database that `keyring` opens, on storage of which a torn write spoils
    /// `grain` bytes. Without a keyring it can only be looked at, and holds nothing: no database was
    /// ever created beside it.
    pub(crate) fn open(
        base: &impl Storage,
        keyring: Option<Arc<Keyring>>,
        grain: usize,
        tuning: Tuning,
    ) -> Result<Self> {
        let mut journal = Self {
            keyring,
            cipher: None,
            layout: Layout { grain },
            grain,
            tuning,
            written: 0,
            spoilt: None,
            plain: Vec::new(),
            sealed: Vec::new(),
            image: Vec::new(),
            changed: Changed::default(),
        };
        journal.set_layout(grain);
        let mut header = [0; HEADER_LEN];
        if base.read_whole(&mut header, 0)? {
            journal.read_header(&header)?;
        }
        Ok(journal)
    }

    fn set_layout(&mut self, grain: usize) {
        self.layout = Layout { grain };
        self.plain.resize(self.layout.sector(), 0);
        self.sealed.resize(self.layout.record(), 0);
    }

    /// The journal of another database than the one whose transaction is rolled back: SQLite looks
    /// whether it still names the super-journal, and opens it as if it were one.
    pub(crate) fn open_of_another(base: &impl Storage, grain: usize) -> Result<Another> {
        let mut header = [0; HEADER_LEN];
        if !base.read_whole(&mut header, 0)? || &header[..FORMAT_AT] != MAGIC {
            return Ok(Another::NotOurs);
        }
        let mut file_id = FileId::default();
        file_id.copy_from_slice(&header[FILE_ID_AT..FILE_ID_AT + ID_LEN]);
        match cached(&file_id) {
            Some(keyring) => Ok(Another::Readable(Box::new(Self::open(
                base,
                Some(keyring),
                grain,
                Tuning::OFF,
            )?))),
            None => Ok(Another::NoKey),
        }
    }

    /// Finds the key. The torn or foreign header of a journal that holds nothing for this database
    /// leads to none.
    fn read_header(&mut self, header: &[u8; HEADER_LEN]) -> Result<()> {
        let number = |at: usize| {
            let mut bytes = [0; size_of::<u32>()];
            bytes.copy_from_slice(&header[at..at + size_of::<u32>()]);
            u32::from_be_bytes(bytes)
        };
        let grain = number(GRAIN_AT) as usize;
        let known = header.starts_with(MAGIC)
            && number(FORMAT_AT) == FORMAT
            && grain.is_power_of_two()
            && (grain == 1 || (SECTOR..=LARGEST_SECTOR).contains(&grain));
        let mut salt = FileId::default();
        salt.copy_from_slice(&header[SALT_AT..FILE_ID_AT]);
        let version = number(VERSION_AT);
        let Some(keyring) = self.keyring.as_ref().filter(|_| known) else { return Ok(()) };
        if keyring.has(version)? {
            self.cipher = Some(keyring.cipher(Subkey::Journal { version, salt }));
            self.set_layout(grain);
        }
        Ok(())
    }

    /// Starts a new journal in this file: new salt, new key.
    fn begin(&mut self, base: &impl Storage) -> Result<()> {
        let keyring = self.keyring.as_ref().ok_or_else(|| {
            Error::Usage("a journal was written before its database was locked".into())
        })?;
        let mut salt = FileId::default();
        fill_random(&mut salt)?;
        let version = keyring.version()?;
        let cipher = keyring.cipher(Subkey::Journal { version, salt });
        let mut header = [0; HEADER_LEN];
        header[..FORMAT_AT].copy_from_slice(MAGIC);
        header[FORMAT_AT..VERSION_AT].copy_from_slice(&FORMAT.to_be_bytes());
        header[VERSION_AT..SALT_AT].copy_from_slice(&version.to_be_bytes());
        header[SALT_AT..FILE_ID_AT].copy_from_slice(&salt);
        header[FILE_ID_AT..GRAIN_AT].copy_from_slice(keyring.file_id());
        header[GRAIN_AT..GRAIN_AT + size_of::<u32>()]
            .copy_from_slice(&(self.grain as u32).to_be_bytes());
        self.set_layout(self.grain);
        self.cipher = None;
        base.write(&header, 0)?;
        self.cipher = Some(cipher);
        self.written = 0;
        self.spoilt = None;
        Ok(())
    }

    pub(crate) fn size(&self, base: &impl Storage) -> Result<u64> {
        Ok(self.layout.logical_size(base.size()?))
    }

    pub(crate) fn read(&mut self, base: &impl Storage, buf: &mut [u8], at: u64) -> Result<Filled> {
        if at == 0 && buf.len() == 1 && self.is_foreign(base)? {
            return Ok(if base.read(buf, 0)? { Filled::Full } else { Filled::Short });
        }
        let inside = self.size(base)?.saturating_sub(at).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < inside {
            let (record, within) = self.layout.locate(at + done as u64);
            let len = (self.layout.sector() - within).min(inside - done);
            if !self.load(base, record)? {
                // This handle wrote it: no crash explains that, and SQLite would roll back half.
                if record * (self.layout.sector() as u64) < self.written {
                    return Err(Error::JournalAuthentication { record });
                }
                let field = buf.len() < SMALLEST_PAGE;
                buf[done..].fill(0);
                return Ok(if field { Filled::Full } else { Filled::Short });
            }
            buf[done..done + len].copy_from_slice(&self.plain[within..within + len]);
            done += len;
        }
        buf[inside..].fill(0);
        Ok(if inside == buf.len() { Filled::Full } else { Filled::Short })
    }

    /// Whether the file does not begin as a journal of ours. Its first byte is what SQLite looks at
    /// to tell a hot journal: it finds nothing to play back in a foreign one, and deletes it.
    fn is_foreign(&self, base: &impl Storage) -> Result<bool> {
        let mut magic = [0; MAGIC.len()];
        Ok(self.cipher.is_none() && base.read(&mut magic, 0)? && &magic != MAGIC)
    }

    pub(crate) fn write(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        // A whole sector at the start is the header of a new journal; fields of it are rewritten in
        // shorter pieces.
        if at == 0 && bytes.len() >= SECTOR || self.cipher.is_none() {
            self.begin(base)?;
        }
        self.mend(base)?;
        let end = at + bytes.len() as u64;
        let had = base.size()?;
        let layout = self.layout;
        let mut image = std::mem::take(&mut self.image);
        let mut changed = std::mem::take(&mut self.changed);
        image.clear();
        changed.clear();
        let sealed = self.seal_all(base, bytes, at, &mut image, &mut changed);
        if end > layout.logical_size(had) {
            // No later write touches the sectors of the last record: the next one starts after it.
            let stride = layout.stride() as usize;
            image.resize(image.len().next_multiple_of(stride) + layout.end_mark(end), 0);
        }
        let written = sealed.and_then(|()| {
            let written = base.write(&image, layout.position(layout.locate(at).0));
            if let Err(Error::Base(code)) = written
                && self.undo(base, &changed, had).is_err()
            {
                self.spoilt = Some(Spoilt { code, size: had });
            }
            written
        });
        self.image = image;
        self.changed = changed;
        written?;
        self.written = self.written.max(end);
        Ok(())
    }

    /// Puts back what a failed write may have torn: SQLite goes on reading the journal of the
    /// transaction that it now rolls back, and bytes before the write must be as they were.
    fn undo(&mut self, base: &impl Storage, changed: &Changed, size: u64) -> Result<()> {
        let Some(cipher) = &self.cipher else { return Ok(()) };
        let plain = changed.plain.chunks_exact(self.layout.sector());
        for (&record, plain) in changed.records.iter().zip(plain) {
            cipher.seal(record, plain, &mut self.sealed)?;
            base.write(&self.sealed, self.layout.position(record))?;
        }
        base.truncate(size)
    }

    /// Undoes a failed write that could not be undone at once; the disk may work again.
    fn mend(&mut self, base: &impl Storage) -> Result<()> {
        let Some(Spoilt { code, size }) = self.spoilt else { return Ok(()) };
        let changed = std::mem::take(&mut self.changed);
        let undone = self.undo(base, &changed, size);
        self.changed = changed;
        undone.map_err(|_| Error::Base(code))?;
        self.spoilt = None;
        Ok(())
    }

    pub(crate) fn truncate(&mut self, base: &impl Storage, size: u64) -> Result<()> {
        if size == 0 {
            self.cipher = None;
            self.written = 0;
            self.spoilt = None;
            return base.truncate(0);
        }
        self.written = self.written.min(size);
        base.truncate(self.layout.physical_size(size))
    }

    /// Appends to `image` the records that hold `bytes` at `at`.
    fn seal_all(
        &mut self,
        base: &impl Storage,
        bytes: &[u8],
        at: u64,
        image: &mut Vec<u8>,
        changed: &mut Changed,
    ) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let (record, within) = self.layout.locate(at + done as u64);
            let len = (self.layout.sector() - within).min(bytes.len() - done);
            if len < self.layout.sector() && self.load_for_change(base, record)? {
                changed.remember(record, &self.plain);
            }
            self.plain[within..within + len].copy_from_slice(&bytes[done..done + len]);
            let sealed = image.len().next_multiple_of(self.layout.stride() as usize);
            image.resize(sealed + self.layout.record(), 0);
            match &self.cipher {
                Some(cipher) => cipher.seal(record, &self.plain, &mut image[sealed..])?,
                None => return Err(Error::JournalAuthentication { record }),
            }
            done += len;
        }
        Ok(())
    }

    /// Puts `record` into `plain`; `false` where it does not authenticate.
    fn load(&mut self, base: &impl Storage, record: u64) -> Result<bool> {
        self.mend(base)?;
        let Some(cipher) = &self.cipher else { return Ok(false) };
        let whole = base.read_whole(&mut self.sealed, self.layout.position(record))?;
        Ok(whole && cipher.open(record, &self.sealed, &mut self.plain)?)
    }

    /// Puts what `record` holds into `plain`: zeros, and `false`, where this journal has not reached
    /// it yet.
    fn load_for_change(&mut self, base: &impl Storage, record: u64) -> Result<bool> {
        if self.load(base, record)? {
            return Ok(true);
        }
        if record * (self.layout.sector() as u64) < self.written {
            return Err(Error::JournalAuthentication { record });
        }
        self.plain.fill(0);
        Ok(false)
    }
}

/// Records as they were before a write that changes part of them: at most its first and its last.
#[derive(Default)]
struct Changed {
    records: Vec<u64>,
    plain: Vec<u8>,
}

impl Changed {
    fn remember(&mut self, record: u64, plain: &[u8]) {
        self.records.push(record);
        self.plain.extend_from_slice(plain);
    }

    fn clear(&mut self) {
        self.records.clear();
        self.plain.clear();
    }
}

/// The end of a journal that names the super-journal `name`, as SQLite writes it: name, length,
/// checksum, magic. It stands in for a journal that cannot be read: SQLite then keeps the
/// super-journal, which the other database may need to roll back.
pub(crate) fn naming(name: &[u8]) -> Vec<u8> {
    const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    // SQLite adds up C's `char`s, which have a sign on some platforms.
    let add = |sum: u32, &byte: &u8| sum.wrapping_add(byte as std::ffi::c_char as u32);
    let mut end = name.to_vec();
    end.extend_from_slice(&(name.len() as u32).to_be_bytes());
    end.extend_from_slice(&name.iter().fold(0, add).to_be_bytes());
    end.extend_from_slice(&MAGIC);
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::main_db::tests::{keyring, keyring_and_next};
    use crate::file::memory::Memory;
    use proptest::prelude::*;

    const SEALED: usize = SECTOR + RESERVE;

    fn open(base: &Memory, keyring: &Arc<Keyring>) -> Journal {
        open_on(base, keyring, 1)
    }

    fn open_on(base: &Memory, keyring: &Arc<Keyring>, grain: usize) -> Journal {
        Journal::open(base, Some(Arc::clone(keyring)), grain, Tuning::default()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 200 }))]
        #[test]
        fn reads_as_a_plain_file_does(
            writes in proptest::collection::vec((0..5000_u64, 1..1500_usize, 1..=255_u8), 1..20),
            cut in 1..6000_u64,
            grain in prop_oneof![Just(1_usize), Just(512), Just(4096)],
        ) {
            let (base, model, keyring) = (Memory::default(), Memory::default(), keyring());
            let mut journal = open_on(&base, &keyring, grain);
            // SQLite begins every journal with a whole sector, and may skip to the next one.
            let sector = grain.max(512);
            let mut end = sector as u64;
            journal.write(&base, &vec![7; sector], 0).unwrap();
            model.write(&vec![7; sector], 0).unwrap();
            for (at, len, byte) in writes {
                let at = if at % 3 == 0 { end.next_multiple_of(sector as u64) } else { at.clamp(1, end) };
                journal.write(&base, &vec![byte; len], at).unwrap();
                model.write(&vec![byte; len], at).unwrap();
                end = end.max(at + len as u64);
            }
            let cut = cut.min(end);
            journal.truncate(&base, cut).unwrap();
            model.truncate(cut).unwrap();
            prop_assert_eq!(journal.size(&base).unwrap(), cut);
            let (mut got, mut want) = (vec![0; cut as usize + 9], vec![0; cut as usize + 9]);
            let filled = open(&base, &keyring).read(&base, &mut got, 0).unwrap();
            model.read(&mut want, 0).unwrap();
            prop_assert_eq!(filled, Filled::Short);
            prop_assert_eq!(got, want);
        }
    }

    /// What a crash or an attacker left in record 1, and what the reads of SQLite's playback get.
    #[test]
    fn a_bad_record_ends_the_journal() {
        let keyring = keyring();
        for (attack, change) in [
            (
                "bit flipped",
                (|f: &mut Vec<u8>| f[HEADER_LEN + SEALED + 3] ^= 1) as fn(&mut Vec<u8>),
            ),
            ("zeroed", |f| f[HEADER_LEN + SEALED..HEADER_LEN + 2 * SEALED].fill(0)),
            ("copied from record 2", |f| {
                f.copy_within(
                    HEADER_LEN + 2 * SEALED..HEADER_LEN + 3 * SEALED,
                    HEADER_LEN + SEALED,
                );
            }),
        ] {
            let base = Memory::default();
            let mut journal = open(&base, &keyring);
            journal.write(&base, &[0xd9; 2000], 0).unwrap();
            change(&mut base.0.borrow_mut());
            let mut journal = open(&base, &keyring);
            let mut page = [1; 1024];
            let filled = journal.read(&base, &mut page, 516).unwrap();
            assert_eq!((filled, page), (Filled::Short, [0; 1024]), "{attack}");
            let mut field = [1; 4];
            let filled = journal.read(&base, &mut field, 512).unwrap();
            assert_eq!((filled, field), (Filled::Full, [0; 4]), "{attack}");
            let mut name = [1; 24];
            let filled = journal.read(&base, &mut name, 500).unwrap();
            assert_eq!((filled, &name[12..]), (Filled::Full, &[0; 12][..]), "{attack}");
        }
    }

    /// A hot journal that was left behind before the DEK was regenerated.
    #[test]
    fn a_journal_of_a_retired_key_is_read() {
        let (old, new) = keyring_and_next();
        let base = Memory::default();
        open(&base, &old).write(&base, &[0xd9; 2000], 0).unwrap();
        let mut back = [0; 2000];
        open(&base, &new).read(&base, &mut back, 0).unwrap();
        assert_eq!(back, [0xd9; 2000]);
        open(&base, &new).write(&base, &[0xda; 2000], 0).unwrap();
        open(&base, &old).read(&base, &mut back, 0).unwrap();
        assert_eq!(back[..512], [0; 512], "of a key it does not have");
    }

    /// On media without powersafe overwrite, whatever a torn write spoils is its own.
    #[test]
    fn no_two_records_share_what_a_torn_write_spoils() {
        for grain in [512, 4096, 65536] {
            let layout = Layout { grain };
            for record in 0..5 {
                let end = layout.position(record) + layout.record() as u64;
                let last = (end - 1) / grain as u64;
                assert!(last < layout.position(record + 1) / grain as u64, "{grain} {record}");
            }
            assert!(layout.position(0) >= grain as u64, "{grain}: nor with the header");
        }
    }

    #[test]
    fn a_reused_file_keeps_nothing_of_the_former_journal() {
        let (base, keyring) = (Memory::default(), keyring());
        let mut journal = open(&base, &keyring);
        journal.write(&base, &[0xaa; 4096], 0).unwrap();
        journal.write(&base, &[0; 28], 0).unwrap();
        journal.write(&base, &[0xbb; 512], 0).unwrap();
        let mut field = [1; 8];
        journal.read(&base, &mut field, 1024).unwrap();
        assert_eq!(field, [0; 8], "a record of the former journal");
    }

    #[test]
    fn a_change_to_a_record_of_the_running_transaction_is_an_error() {
        let (base, keyring) = (Memory::default(), keyring());
        let mut journal = open(&base, &keyring);
        journal.write(&base, &[0xaa; 512], 0).unwrap();
        base.0.borrow_mut()[HEADER_LEN + 9] ^= 1;
        let result = journal.write(&base, &[1; 12], 0);
        assert!(matches!(result, Err(Error::JournalAuthentication { record: 0 })), "{result:?}");
    }
}
