//! Reads of frames and of SQLite's WAL header.

use libsqlite3_sys as ffi;

use super::layout::Layout;
use super::{COMMIT_AT, Parent, Recovered, SALTS_AT, Salts, WAL_HEADER, Wal, number};
use crate::error::{Error, Result};
use crate::file::{Filled, Storage};

impl Wal {
    pub(crate) fn size(&mut self, base: &impl Storage, parent: &impl Parent) -> Result<u64> {
        self.refresh(base, parent)?;
        let Some(layout) = self.layout else { return Ok(0) };
        let outgoing = self.outgoing.end(layout).unwrap_or(0);
        Ok(layout.logical_size(base.size()?.max(outgoing)))
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
                return if starts && !self.transaction.has(frame) {
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

    /// Pages of the database after the commit that the frame in `plain` is, in this log.
    pub(super) fn commit(&self) -> Option<u32> {
        let pages = number(&self.plain[COMMIT_AT..]);
        (pages > 0 && self.plain[SALTS_AT..].starts_with(&self.salts)).then_some(pages)
    }

    fn note_commit(&mut self) {
        if let (Some(recovered), Some(pages)) = (self.recovered, self.commit()) {
            let least = recovered.least.min(pages);
            self.recovered = Some(Recovered { least, last: pages });
        }
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
        let mine = self.transaction.has(frame);
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

    /// Puts `frame` into `plain`, from memory or from its record; `false` where that does not
    /// authenticate.
    pub(super) fn load(&mut self, base: &impl Storage, layout: Layout, frame: u32) -> Result<bool> {
        self.held = None;
        if self.transaction.has_lost(frame) {
            return Err(Error::Base(ffi::SQLITE_IOERR_READ));
        }
        let (Some(cipher), Some(record)) = (&self.cipher, self.outgoing.record(layout, frame))
        else {
            return self.load_written(base, layout, frame);
        };
        let good = cipher.open(u64::from(frame), record, &mut self.plain[..layout.frame()])?;
        self.held = good.then_some(frame);
        Ok(good)
    }

    /// As [`Wal::load`], of the record that is in the file.
    pub(super) fn load_written(
        &mut self,
        base: &impl Storage,
        layout: Layout,
        frame: u32,
    ) -> Result<bool> {
        self.held = None;
        let Some(cipher) = &self.cipher else { return Ok(false) };
        let (number, at) = (u64::from(frame), layout.position(frame));
        let ahead = if self.tuning.read_ahead {
            self.ahead.read(base, at, layout.record(), layout.stride())
        } else {
            None
        };
        let good = match ahead {
            Some(record) => cipher.open(number, record, &mut self.plain[..layout.frame()])?,
            None => false,
        };
        let good = good
            || base.read_whole(&mut self.plain, at)?
                && cipher.open_in_place(number, &mut self.plain)?;
        self.held = good.then_some(frame);
        Ok(good)
    }
}
