//! Offsets of a journal's records in its file, and the header before them.

use super::begun::Begun;
use crate::error::Result;
use crate::key::cipher::JournalSalt;
use crate::key::keyring::{FileId, ID_LEN};
use crate::page::{KeyVersion, RESERVE};

/// SQLite takes a journal whose first byte is not zero for hot, and deletes one in which it finds
/// nothing.
const MAGIC: &[u8; 16] = b"\0sqlite-tde jrnl";
const FORMAT: u32 = 1;
const FORMAT_AT: usize = MAGIC.len();
const VERSION_AT: usize = FORMAT_AT + size_of::<u32>();
const SALT_AT: usize = VERSION_AT + size_of::<KeyVersion>();
const FILE_ID_AT: usize = SALT_AT + ID_LEN;
const GRAIN_AT: usize = FILE_ID_AT + ID_LEN;
const BEGUN_AT: usize = GRAIN_AT + size_of::<u32>();
pub(super) const HEADER_LEN: usize = SECTOR;
/// SQLite's smallest sector, which it uses if the VFS reports powersafe overwrite.
pub(super) const SECTOR: usize = 512;
const LARGEST_SECTOR: usize = 65536;

const _: () = assert!(BEGUN_AT + Begun::LEN <= HEADER_LEN);
const _: () = assert!(ID_LEN + Begun::LEN == size_of::<JournalSalt>());
const _: () = assert!(MAGIC[0] == 0 && MAGIC.len() == crate::file::beside::START);

/// The fields of a journal's header. Only the records authenticate it, whose key depends on
/// version, salt and `begun`.
pub(super) struct Header {
    pub(super) version: KeyVersion,
    pub(super) salt: FileId,
    pub(super) file_id: FileId,
    pub(super) grain: usize,
    pub(super) begun: Begun,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..FORMAT_AT].copy_from_slice(MAGIC);
        header[FORMAT_AT..VERSION_AT].copy_from_slice(&FORMAT.to_be_bytes());
        header[VERSION_AT..SALT_AT].copy_from_slice(&self.version.to_be_bytes());
        header[SALT_AT..FILE_ID_AT].copy_from_slice(&self.salt);
        header[FILE_ID_AT..GRAIN_AT].copy_from_slice(&self.file_id);
        header[GRAIN_AT..GRAIN_AT + size_of::<u32>()]
            .copy_from_slice(&(self.grain as u32).to_be_bytes());
        header[BEGUN_AT..BEGUN_AT + Begun::LEN].copy_from_slice(&self.begun.encode());
        header
    }

    /// Input to the derivation of the records' key.
    pub(super) fn key_salt(&self) -> JournalSalt {
        let mut salt = [0; size_of::<JournalSalt>()];
        salt[..ID_LEN].copy_from_slice(&self.salt);
        salt[ID_LEN..].copy_from_slice(&self.begun.encode());
        salt
    }

    /// The header of a journal of this format; it may be torn or forged.
    pub(super) fn decode(header: &[u8; HEADER_LEN]) -> Option<Self> {
        let number = |at: usize| {
            let mut bytes = [0; size_of::<u32>()];
            bytes.copy_from_slice(&header[at..at + size_of::<u32>()]);
            u32::from_be_bytes(bytes)
        };
        let id = |at: usize| {
            let mut id = FileId::default();
            id.copy_from_slice(&header[at..at + ID_LEN]);
            id
        };
        let grain = number(GRAIN_AT) as usize;
        let mut begun = [0; Begun::LEN];
        begun.copy_from_slice(&header[BEGUN_AT..BEGUN_AT + Begun::LEN]);
        let begun = Begun::decode(&begun)?;
        let known = header.starts_with(MAGIC)
            && number(FORMAT_AT) == FORMAT
            && grain.is_power_of_two()
            && (grain == 1 || (SECTOR..=LARGEST_SECTOR).contains(&grain));
        known.then(|| Self {
            version: number(VERSION_AT),
            salt: id(SALT_AT),
            file_id: id(FILE_ID_AT),
            grain,
            begun,
        })
    }
}

/// Whether a file that begins with `bytes` has the magic of our journals.
pub(in crate::file) fn is_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Bytes that tell whether a file is a journal of ours.
pub(super) const MAGIC_LEN: usize = MAGIC.len();

/// Bytes in a journal's file, and how many of them, at its end, are the name of a super-journal.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extent {
    pub(super) size: u64,
    pub(super) name: u64,
}

/// The layout of the records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) grain: usize,
}

impl Layout {
    /// Bytes of SQLite's journal in a record.
    pub(super) fn sector(self) -> usize {
        self.grain.max(SECTOR)
    }

    pub(super) fn record(self) -> usize {
        self.sector() + RESERVE
    }

    pub(super) fn stride(self) -> u64 {
        self.record().next_multiple_of(self.grain) as u64
    }

    /// Where `record` starts in the file.
    pub(super) fn position(self, record: u64) -> u64 {
        self.sector() as u64 + record * self.stride()
    }

    /// Record number and offset within it of byte `at` of SQLite's journal.
    pub(super) fn locate(self, at: u64) -> (u64, usize) {
        (at / self.sector() as u64, (at % self.sector() as u64) as usize)
    }

    /// How many bytes follow the last record of a journal of `size` bytes: as many as SQLite's
    /// journal has in that record. They only mark its end.
    fn end_mark(self, size: u64) -> usize {
        ((size - 1) % self.sector() as u64) as usize + 1
    }

    /// End of a journal of `size` bytes, which is not 0.
    pub(super) fn physical_size(self, size: u64) -> u64 {
        self.position(size.div_ceil(self.sector() as u64)) + self.end_mark(size) as u64
    }

    /// SQLite's size of a journal whose file has `extent`.
    pub(super) fn logical_size(self, extent: Extent) -> u64 {
        let sector = self.sector() as u64;
        let body = extent.size.saturating_sub(extent.name).saturating_sub(sector);
        let (records, end) = (body / self.stride(), body % self.stride());
        match (records, end) {
            (0, _) => 0,
            (_, 0) => records * sector,
            _ => (records - 1) * sector + end.min(sector),
        }
    }
}

/// Records with the bytes before and after them, as in the file from `position` on.
#[derive(Default)]
pub(super) struct Image {
    pub(super) position: u64,
    pub(super) bytes: Vec<u8>,
}

impl Image {
    pub(super) fn start(&mut self, position: u64) {
        self.position = position;
        self.bytes.clear();
    }

    /// Adds `record`, which is sealed by `seal`.
    pub(super) fn push(
        &mut self,
        layout: Layout,
        record: u64,
        seal: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let at = (layout.position(record) - self.position) as usize;
        self.bytes.resize(at + layout.record(), 0);
        seal(&mut self.bytes[at..])
    }

    /// Adds the end mark for a journal of `size` bytes. No later write touches the sectors of the
    /// last record: the next one starts after it.
    pub(super) fn end(&mut self, layout: Layout, size: u64) {
        self.bytes.resize((layout.physical_size(size) - self.position) as usize, 0);
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}
