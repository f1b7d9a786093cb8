//! Offsets of a log's records, and the header that determines them; the picture is in the parent
//! module.

use super::{FRAME_HEADER, RECORD_0, WAL_HEADER};
use crate::error::{Error, Result};
use crate::key::keyring::{FileId, ID_LEN};
use crate::page::{FrameNo, LogId, Place, RESERVE};

pub(super) const MAGIC: &[u8; 16] = b"sqlite-tde wal\0\0";
const FORMAT: u32 = 1;
pub(super) const FORMAT_AT: usize = MAGIC.len();
pub(super) const PAGE_SIZE_AT: usize = FORMAT_AT + size_of::<u32>();
pub(super) const GRAIN_AT: usize = PAGE_SIZE_AT + size_of::<u32>();
pub(super) const FILE_ID_AT: usize = GRAIN_AT + size_of::<u32>();
pub(super) const HEADER_LEN: usize = 512;

pub(super) const LOG_ID_AT: usize = FILE_ID_AT + ID_LEN;
const USED: usize = LOG_ID_AT + size_of::<LogId>();

const _: () = assert!(USED <= HEADER_LEN);

/// The header of a log: the layout of its records, and the id of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) page_size: usize,
    pub(super) grain: usize,
    pub(super) log: LogId,
}

impl Layout {
    pub(super) fn frame(self) -> usize {
        FRAME_HEADER + self.page_size
    }

    pub(super) fn record(self) -> usize {
        self.frame() + RESERVE
    }

    pub(super) fn sector(self) -> usize {
        self.grain.max(HEADER_LEN)
    }

    pub(super) fn stride(self) -> usize {
        self.record().next_multiple_of(self.grain)
    }

    pub(super) fn position(self, frame: FrameNo) -> u64 {
        2 * self.sector() as u64 + u64::from(frame.0.saturating_sub(1)) * self.stride() as u64
    }

    /// The place of record 0 as a block. Its number encodes the layout and is no frame's: the grain
    /// is at least 1, and a frame's number below 2^32.
    pub(super) fn record_0(self) -> Place {
        Place { number: (self.grain as u64) << 32 | self.page_size as u64, log: Some(self.log) }
    }

    /// The place of the record of `frame` as a block.
    pub(super) fn block(self, frame: FrameNo) -> Place {
        Place { number: u64::from(frame.0), log: Some(self.log) }
    }

    /// The frame at SQLite's offset `at`, which is at least [`WAL_HEADER`], and the place in it.
    pub(super) fn locate(self, at: u64) -> Result<(FrameNo, usize)> {
        let at = at - WAL_HEADER as u64;
        let frame = at / self.frame() as u64 + 1;
        let frame = u32::try_from(frame).map_err(|_| Error::NotAPage { offset: at, len: 0 })?;
        Ok((FrameNo(frame), (at % self.frame() as u64) as usize))
    }

    /// The file size for SQLite's size `size`.
    pub(super) fn physical_size(self, size: u64) -> u64 {
        match size.checked_sub(WAL_HEADER as u64) {
            None => 0,
            Some(0) => (self.sector() + RECORD_0 + RESERVE) as u64,
            Some(rest) => {
                let frames = rest / self.frame() as u64;
                2 * self.sector() as u64
                    + frames * self.stride() as u64
                    + rest % self.frame() as u64
            }
        }
    }

    /// SQLite's size of a file of `physical` bytes: a record that is not whole is no whole frame.
    pub(super) fn logical_size(self, physical: u64) -> u64 {
        let header =
            if physical < (self.sector() + RECORD_0 + RESERVE) as u64 { 0 } else { WAL_HEADER };
        let Some(rest) = physical.checked_sub(2 * self.sector() as u64) else {
            return header as u64;
        };
        let (mut frames, rest) =
            (rest / self.stride() as u64, (rest % self.stride() as u64) as usize);
        // The last record need not be filled up to the stride.
        let whole = rest >= self.record();
        frames += u64::from(whole);
        let part = if whole { 0 } else { rest.min(self.frame() - 1) };
        header as u64 + frames * self.frame() as u64 + part as u64
    }

    /// The last whole frame in a file of `physical` bytes.
    pub(super) fn last_in(self, physical: u64) -> FrameNo {
        let frames = self.logical_size(physical).saturating_sub(WAL_HEADER as u64);
        FrameNo(u32::try_from(frames / self.frame() as u64).unwrap_or(u32::MAX))
    }

    pub(super) fn decode(header: &[u8], file_id: &FileId) -> Option<Self> {
        let number = |at: usize| -> Option<u32> {
            Some(u32::from_be_bytes(*header.get(at..)?.first_chunk()?))
        };
        let (page_size, grain) = (number(PAGE_SIZE_AT)? as usize, number(GRAIN_AT)? as usize);
        let known = header.starts_with(MAGIC)
            && number(FORMAT_AT)? == FORMAT
            && header[FILE_ID_AT..].starts_with(file_id)
            && is_size(page_size)
            && (grain == 1 || is_size(grain))
            && is_zero(&header[USED..]);
        let log = *header.get(LOG_ID_AT..)?.first_chunk()?;
        known.then_some(Self { page_size, grain, log })
    }

    pub(super) fn encode(self, file_id: &FileId) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..FORMAT_AT].copy_from_slice(MAGIC);
        header[FORMAT_AT..PAGE_SIZE_AT].copy_from_slice(&FORMAT.to_be_bytes());
        header[PAGE_SIZE_AT..GRAIN_AT].copy_from_slice(&(self.page_size as u32).to_be_bytes());
        header[GRAIN_AT..FILE_ID_AT].copy_from_slice(&(self.grain as u32).to_be_bytes());
        header[FILE_ID_AT..LOG_ID_AT].copy_from_slice(file_id);
        header[LOG_ID_AT..USED].copy_from_slice(&self.log);
        header
    }
}

/// Whether these are the zeros after the header and record 0, of which every byte is checked.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Whether `size` can be that of a page or a sector.
pub(super) fn is_size(size: usize) -> bool {
    size.is_power_of_two() && (512..=65536).contains(&size)
}

/// Whether `header` is of the log of another database than that of `file_id`.
pub(super) fn is_foreign(header: &[u8; HEADER_LEN], file_id: &FileId) -> bool {
    header.starts_with(MAGIC) && !header[FILE_ID_AT..].starts_with(file_id)
}
