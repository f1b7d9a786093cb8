//! Reading a journal: for SQLite's playback, and the records that a write changes in part.

use super::layout::{MAGIC_LEN, is_ours};
use super::{Image, Journal, READ_AHEAD, SMALLEST_PAGE, SQLITE_MAGIC};
use crate::error::{Error, Result};
use crate::io::{Filled, Storage};

impl Journal {
    pub(crate) fn read(&mut self, base: &impl Storage, buf: &mut [u8], at: u64) -> Result<Filled> {
        self.load_header(base)?;
        if at == 0 && buf.len() == 1 && self.is_foreign(base)? {
            return Ok(if base.read(buf, 0)? { Filled::Full } else { Filled::Short });
        }
        let size = self.size(base)?;
        let ends = at + buf.len() as u64 == size && buf.len() == SQLITE_MAGIC.len();
        if ends && !self.shows_name(base, size)? {
            buf.fill(0);
            return Ok(Filled::Full);
        }
        self.read_inside(base, buf, at)
    }

    /// [`Journal::read`] without the check of a super-journal's name.
    pub(super) fn read_inside(
        &mut self,
        base: &impl Storage,
        buf: &mut [u8],
        at: u64,
    ) -> Result<Filled> {
        let field = buf.len() < SMALLEST_PAGE;
        let inside = self.size(base)?.saturating_sub(at).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < inside {
            let (record, within) = self.layout.locate(at + done as u64);
            let len = (self.layout.sector() - within).min(inside - done);
            let part = &mut buf[done..done + len];
            if self.tail.read(part, at + done as u64) {
                done += len;
                continue;
            }
            if !self.load(base, record, !field)? {
                // This handle wrote it: no crash explains that, and SQLite would roll back half.
                if record * (self.layout.sector() as u64) < self.written {
                    return Err(Error::JournalAuthentication { record });
                }
                buf[done..].fill(0);
                return Ok(if field { Filled::Full } else { Filled::Short });
            }
            part.copy_from_slice(&self.plain[within..within + len]);
            done += len;
        }
        buf[inside..].fill(0);
        Ok(if inside == buf.len() { Filled::Full } else { Filled::Short })
    }

    /// Whether the file does not begin as a journal of ours. By its first byte SQLite recognises a
    /// hot journal: in a foreign one it finds nothing to play back, and deletes it.
    fn is_foreign(&self, base: &impl Storage) -> Result<bool> {
        let mut magic = [0; MAGIC_LEN];
        Ok(self.cipher.is_none() && base.read(&mut magic, 0)? && !is_ours(&magic))
    }

    /// Puts `record` into `plain`, as the base has it; `false` if it does not authenticate, or
    /// is not as this handle wrote it last. `on`: the records after it will be read next.
    fn load(&mut self, base: &impl Storage, record: u64, on: bool) -> Result<bool> {
        if self.held == Some(record) {
            return Ok(true);
        }
        self.retry_undo(base)?;
        self.held = None;
        if self.cipher.is_none() || !self.fetch(base, record, on)? {
            return Ok(false);
        }
        let Some(cipher) = &self.cipher else { return Ok(false) };
        let at = (self.layout.position(record) - self.ahead.position) as usize;
        let sealed = &self.ahead.bytes[at..at + self.layout.record()];
        let opened =
            cipher.open(record, sealed, &mut self.plain)? && self.newest.admits(record, sealed);
        self.held = opened.then_some(record);
        Ok(opened)
    }

    /// Reads `record` from the base, if it is whole there.
    fn fetch(&mut self, base: &impl Storage, record: u64, on: bool) -> Result<bool> {
        let (at, len) = (self.layout.position(record), self.layout.record());
        let Image { position, bytes } = &mut self.ahead;
        if *position <= at && at + len as u64 <= *position + bytes.len() as u64 {
            return Ok(true);
        }
        bytes.clear();
        let mut more = len;
        if on && self.tuning.read_ahead {
            let size = self.extent.map_or_else(|| base.size(), |extent| Ok(extent.size))?;
            more = READ_AHEAD.min(size.saturating_sub(at) as usize).max(len);
        }
        self.ahead.position = at;
        let whole = self.read_ahead(base, more, len);
        if !matches!(whole, Ok(true)) {
            self.ahead.bytes.clear();
        }
        whole
    }

    /// Reads `more` bytes, or else only `len`.
    fn read_ahead(&mut self, base: &impl Storage, more: usize, len: usize) -> Result<bool> {
        let Image { position, bytes } = &mut self.ahead;
        bytes.resize(more, 0);
        if more > len && base.read(bytes, *position)? {
            return Ok(true);
        }
        bytes.resize(len, 0);
        base.read_whole(bytes, *position)
    }

    /// Loads the content of `record` into `plain`: zeros, and `false`, if this journal has not
    /// reached it yet.
    pub(super) fn load_for_change(&mut self, base: &impl Storage, record: u64) -> Result<bool> {
        let at = record * self.layout.sector() as u64;
        self.held = None;
        if self.tail.read(&mut self.plain, at) || self.load(base, record, false)? {
            return Ok(true);
        }
        if at < self.written {
            return Err(Error::JournalAuthentication { record });
        }
        self.plain.fill(0);
        Ok(false)
    }
}
