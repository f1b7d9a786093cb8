//! Reads of frames and of SQLite's WAL header.

use crate::ffi;

use super::layout::Layout;
use super::{COMMIT_AT, FRAME_HEADER, Owner, Recovered, SALTS_AT, WAL_HEADER, Wal, number};
use crate::error::{Error, Result};
use crate::io::{Filled, Storage};
use crate::page::{FrameNo, PageNo};

impl Wal {
    pub(crate) fn size(&mut self, base: &impl Storage, owner: &impl Owner) -> Result<u64> {
        self.refresh(base, owner)?;
        self.check();
        let Some(layout) = self.layout else { return Ok(0) };
        let outgoing = self.outgoing.end(layout).unwrap_or(0);
        Ok(layout.logical_size(base.size()?.max(outgoing)))
    }

    pub(crate) fn read(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        buf: &mut [u8],
        at: u64,
    ) -> Result<Filled> {
        let filled = self.read_bytes(base, owner, buf, at);
        self.check();
        filled
    }

    fn read_bytes(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        buf: &mut [u8],
        at: u64,
    ) -> Result<Filled> {
        self.refresh(base, owner)?;
        self.resolve_partial_frame(base)?;
        let Some(layout) = self.layout else {
            buf.fill(0);
            return Ok(Filled::Short);
        };
        if at < WAL_HEADER as u64 {
            return self.read_header(base, owner, buf, at as usize);
        }
        self.check_new(base, owner)?;
        let mut done = 0;
        while done < buf.len() {
            let (frame, within) = layout.locate(at + done as u64)?;
            let len = (layout.frame() - within).min(buf.len() - done);
            let starts = within == 0;
            if !self.load(base, frame)? {
                if !starts && within + len <= FRAME_HEADER && self.transaction.took_back(frame) {
                    // SQLite before 3.50 still computes checksums anew from behind a frame that it
                    // took back: it reads the one of that frame, and computes none from it. Where
                    // the log was begun again, with other salts, no frame of it is left.
                    buf[done..done + len].fill(0);
                    done += len;
                    continue;
                }
                let rest = &mut buf[done..];
                rest.fill(0);
                if layout.logical_size(base.size()?) < at + (done + len) as u64 {
                    return Ok(Filled::Short);
                }
                return if starts && !self.transaction.has(frame) {
                    Ok(Filled::Full)
                } else {
                    Err(Error::FrameAuthentication { frame: frame.0 })
                };
            }
            // SQLite computes the checksums of a transaction anew from its frames as they are in
            // the file: each must be what was put there.
            let header = self.plain.first_chunk();
            let is_other = |put| header.is_some_and(|found| found != put);
            if starts && self.transaction.header(frame).is_some_and(is_other) {
                self.refuse();
                return Err(Error::FrameAuthentication { frame: frame.0 });
            }
            if starts {
                self.note_commit(frame);
                self.learn(owner, frame);
            } else if !self.is_expected(owner, frame, within + len) {
                self.refuse();
                return Err(Error::FrameAuthentication { frame: frame.0 });
            }
            buf[done..done + len].copy_from_slice(&self.plain[within..within + len]);
            done += len;
        }
        Ok(Filled::Full)
    }

    /// Drops what was read, which is not what SQLite means: the next read goes to the file.
    fn refuse(&mut self) {
        self.held = None;
        self.ahead.clear();
    }

    /// Reads of SQLite's WAL header: the whole in recovery, its checksum when a transaction that
    /// started the log has overwritten frames. Recovery may come after another handle began a log,
    /// and before the wal-index shows it.
    fn read_header(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        buf: &mut [u8],
        at: usize,
    ) -> Result<Filled> {
        let end = at + buf.len();
        if end > WAL_HEADER {
            return Err(Error::NotAPage { offset: at as u64, len: buf.len() });
        }
        self.load_layout(base)?;
        if at == 0 {
            self.transaction.recovers();
            self.check_origin(base, owner)?;
        }
        match &self.start {
            Some(start) => {
                buf.copy_from_slice(&start.header()[at..end]);
                if at == 0 {
                    self.recovered = Some(Recovered { least: start.origin().pages, last: 0 });
                    self.end = Some(FrameNo::NONE);
                }
                Ok(Filled::Full)
            }
            None if at == 0 => {
                buf.fill(0);
                let physical = base.size()?;
                let size = self.layout.map_or(0, |layout| layout.logical_size(physical));
                Ok(if size < end as u64 { Filled::Short } else { Filled::Full })
            }
            None => Err(Error::FrameAuthentication { frame: 0 }),
        }
    }

    /// Pages of the database after the commit that the frame in `plain` is.
    pub(super) fn commit(&self) -> Option<u32> {
        let pages = number(&self.plain[COMMIT_AT..]);
        (pages > 0).then_some(pages)
    }

    /// Notes a commit that SQLite recovers. SQLite ends the log at a frame without its salts.
    fn note_commit(&mut self, frame: FrameNo) {
        let Some(pages) = self.commit() else { return };
        let recovers = self.salts().is_some_and(|salts| self.plain[SALTS_AT..].starts_with(&salts));
        if !recovers || self.transaction.has(frame) {
            return;
        }
        self.end = Some(frame);
        self.published = self.published.max(frame);
        if let Some(recovered) = self.recovered {
            let least = recovered.least.min(pages);
            self.recovered = Some(Recovered { least, last: pages });
        }
    }

    /// Whether the frame in `plain`, of which SQLite asks for bytes up to `end`, is the one that it
    /// means by `frame`.
    fn is_expected(&self, owner: &impl Owner, frame: FrameNo, end: usize) -> bool {
        // Before it commits, SQLite may ask for the checksum of a frame that the wal-index has not:
        // before 3.50, of one that it took back after others were overwritten.
        if end <= FRAME_HEADER && self.transaction.has(frame) {
            return true;
        }
        let page = PageNo(number(&self.plain));
        // Where a VFS above keeps the wal-index, nothing is known of it here.
        self.expected(owner, frame).is_none_or(|expected| expected == page)
    }

    /// The page that SQLite means by `frame`. A record says of itself which frame it is, and
    /// another one of this log may have been that frame in a transaction that was rolled back.
    pub(super) fn expected(&self, owner: &impl Owner, frame: FrameNo) -> Option<PageNo> {
        let learned = || {
            let page = self.learned.get(frame.since(FrameNo::FIRST)?).copied();
            page.filter(|page| page.0 > 0 && owner.is_alone())
        };
        owner.page_of(frame).or_else(learned)
    }

    /// Remembers the page of the frame in `plain`, if no wal-index does.
    pub(super) fn learn(&mut self, owner: &impl Owner, frame: FrameNo) {
        let Some(index) = frame.since(FrameNo::FIRST) else { return };
        if !owner.is_alone() || owner.page_of(FrameNo::FIRST).is_some() {
            self.learned.clear();
            return;
        }
        if self.learned.len() <= index {
            self.learned.resize(index + 1, PageNo(0));
        }
        self.learned[index] = PageNo(number(&self.plain));
    }

    /// Puts `frame` into `plain`, from memory or from its record; `false` if that does not
    /// authenticate.
    pub(super) fn load(&mut self, base: &impl Storage, frame: FrameNo) -> Result<bool> {
        self.held = None;
        if self.transaction.has_lost(frame) {
            return Err(Error::Base(ffi::SQLITE_IOERR_READ));
        }
        let Some(layout) = self.layout.filter(|_| self.start.is_some()) else { return Ok(false) };
        let (Some(cipher), Some(record)) = (&self.cipher, self.outgoing.record(layout, frame))
        else {
            return self.load_written(base, layout, frame);
        };
        let good = cipher.open(layout.block(frame), record, &mut self.plain[..layout.frame()])?;
        self.held = good.then_some(frame);
        Ok(good)
    }

    /// As [`Wal::load`], of the record that is in the file.
    pub(super) fn load_written(
        &mut self,
        base: &impl Storage,
        layout: Layout,
        frame: FrameNo,
    ) -> Result<bool> {
        self.held = None;
        let Some(cipher) = &self.cipher else { return Ok(false) };
        let (block, at) = (layout.block(frame), layout.position(frame));
        let ahead = if self.tuning.read_ahead {
            self.ahead.read(base, at, layout.record(), layout.stride())
        } else {
            None
        };
        let good = match ahead {
            Some(record) => cipher.open(block, record, &mut self.plain[..layout.frame()])?,
            None => false,
        };
        let good = good
            || base.read_whole(&mut self.plain, at)?
                && cipher.open_in_place(block, &mut self.plain)?;
        self.held = good.then_some(frame);
        Ok(good)
    }
}
