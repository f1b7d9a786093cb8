//! Writes of frames, whole and in part, and the records they become.

use crate::ffi;

use super::layout::Layout;
use super::{COMMIT_AT, FRAME_HEADER, Owner, Pending, WAL_HEADER, Wal, number};
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::page::FrameNo;

impl Wal {
    pub(crate) fn write(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        bytes: &[u8],
        at: u64,
    ) -> Result<()> {
        let written = self.write_bytes(base, owner, bytes, at);
        self.check();
        written
    }

    fn write_bytes(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        bytes: &[u8],
        at: u64,
    ) -> Result<()> {
        let looked = self.refresh(base, owner)?;
        if at == 0
            && let Ok(header) = <&[u8; WAL_HEADER]>::try_from(bytes)
        {
            if !looked {
                self.load_layout(base)?;
            }
            return self.begin(base, owner, header);
        }
        let Some(layout) = self.layout.filter(|_| at >= WAL_HEADER as u64) else {
            return Err(Error::NotAPage { offset: at, len: bytes.len() });
        };
        if self.start.is_none() {
            return Err(Error::FrameAuthentication { frame: 0 });
        }
        self.check_new(base, owner)?;
        let mut done = 0;
        while done < bytes.len() {
            let (frame, within) = layout.locate(at + done as u64)?;
            let len = (layout.frame() - within).min(bytes.len() - done);
            self.write_part(base, owner, layout, (frame, within), &bytes[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    pub(crate) fn truncate(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        size: u64,
    ) -> Result<()> {
        self.before_sync(base, owner)?;
        if size > 0 {
            self.refresh(base, owner)?;
        }
        self.ahead.clear();
        self.pending = None;
        self.held = None;
        match self.layout {
            Some(layout) if size > 0 => base.truncate(layout.physical_size(size)),
            _ => {
                (self.layout, self.start, self.end) = (None, None, None);
                base.truncate(0)
            }
        }
    }

    /// Flushes everything, so that a sync of the base makes all writes survive power loss.
    pub(crate) fn before_sync(&mut self, base: &impl Storage, owner: &impl Owner) -> Result<()> {
        self.notice_locks(owner);
        self.resolve_partial_frame(base)?;
        if let Some(layout) = self.layout {
            self.flush(base, layout)?;
        }
        self.check_nothing_outgoing("a sync");
        Ok(())
    }

    fn write_part(
        &mut self,
        base: &impl Storage,
        owner: &impl Owner,
        layout: Layout,
        (frame, within): (FrameNo, usize),
        bytes: &[u8],
    ) -> Result<()> {
        let end = within + bytes.len();
        let continues =
            self.pending.is_some_and(|have| have.frame == frame && have.filled == within);
        if !continues {
            self.resolve_partial_frame(base)?;
        }
        let appends = continues || within == 0 && self.held != Some(frame);
        if appends {
            if frame <= self.published {
                self.refuse_denial(base, frame)?;
            }
            self.gathered[within..end].copy_from_slice(bytes);
            self.pending = Some(Pending { frame, filled: end, left_over: false });
            if end < layout.frame() {
                return Ok(());
            }
            self.pending = None;
            self.held = None;
            std::mem::swap(&mut self.gathered, &mut self.plain);
            let begins = self.transaction.append(frame);
            if begins || !self.outgoing.takes(frame) {
                self.flush(base, layout)?;
            }
        } else {
            self.pending = None;
            self.load_around(base, layout, frame, within..end)?;
            self.plain[within..end].copy_from_slice(bytes);
        }
        if self.commit().is_some()
            && let Err(error) = owner.check_envelope()
        {
            self.held = None;
            self.transaction.lose(frame);
            self.lose_outgoing();
            return Err(error);
        }
        self.store(base, layout, frame)?;
        self.learn(owner, frame);
        Ok(())
    }

    /// SQLite overwrites `frame`, which was committed once. It does so if the wal-index, which is
    /// not authenticated, hides the commit; the page would be lost without a trace. That is
    /// legitimate only after a recovery that ended the log earlier.
    fn refuse_denial(&mut self, base: &impl Storage, frame: FrameNo) -> Result<()> {
        if self.last_in_chain(base)? >= frame {
            return Err(Error::FrameAuthentication { frame: frame.0 });
        }
        self.published = FrameNo(frame.0.saturating_sub(1));
        Ok(())
    }

    /// Loads into `plain` the bytes of a frame outside of `written`.
    fn load_around(
        &mut self,
        base: &impl Storage,
        layout: Layout,
        frame: FrameNo,
        written: std::ops::Range<usize>,
    ) -> Result<()> {
        if self.held == Some(frame) {
            return Ok(());
        }
        if written == (FRAME_HEADER..layout.frame())
            && let Some(header) = self.transaction.header(frame)
        {
            self.held = None;
            self.plain[..FRAME_HEADER].copy_from_slice(header);
            return Ok(());
        }
        if self.load(base, frame)? {
            Ok(())
        } else {
            Err(Error::FrameAuthentication { frame: frame.0 })
        }
    }

    /// Seals `plain` as `frame` and passes it on. A commit ends the run of nonces.
    fn store(&mut self, base: &impl Storage, layout: Layout, frame: FrameNo) -> Result<()> {
        self.held = None;
        let commits = number(&self.plain[COMMIT_AT..]) > 0;
        if let Err(error) = self.pass_on(base, layout, frame, commits) {
            self.transaction.lose(frame);
            self.lose_outgoing();
            return Err(error);
        }
        if let Some(header) = self.plain.first_chunk() {
            self.transaction.store(frame, header);
        }
        if commits {
            self.transaction.commit();
            (self.end, self.seen) = (Some(frame), frame);
            self.check_nothing_outgoing("a frame that commits");
        } else {
            self.held = Some(frame);
        }
        Ok(())
    }

    /// Seals `plain` as `frame`. It is written with its neighbours, or at once if it commits, if
    /// the buffer is full, or if the frame is an earlier one.
    fn pass_on(
        &mut self,
        base: &impl Storage,
        layout: Layout,
        frame: FrameNo,
        commits: bool,
    ) -> Result<()> {
        if self.transaction.has_lost(frame) {
            return Err(Error::Base(ffi::SQLITE_IOERR_WRITE));
        }
        if commits && !self.outgoing.takes(frame) {
            self.flush(base, layout)?;
        }
        let cipher = self.cipher.as_ref().ok_or(Error::FrameAuthentication { frame: frame.0 })?;
        let plain = &self.plain[..layout.frame()];
        if self.outgoing.takes(frame) {
            cipher.seal(layout.block(frame), plain, self.outgoing.place(layout, frame)?)?;
            self.outgoing.took(frame);
            if commits || !self.tuning.gather_writes || self.outgoing.is_full(layout) {
                self.flush(base, layout)?;
            }
        } else {
            self.sealed.resize(layout.record(), 0);
            cipher.seal(layout.block(frame), plain, &mut self.sealed)?;
            let at = layout.position(frame);
            self.ahead.forget(at..at + self.sealed.len() as u64);
            base.write(&self.sealed, at)?;
        }
        Ok(())
    }

    /// Flushes the outgoing frames.
    pub(super) fn flush(&mut self, base: &impl Storage, layout: Layout) -> Result<()> {
        let Some(first) = self.outgoing.first() else { return Ok(()) };
        let (records, at) = (self.outgoing.records(layout), layout.position(first));
        self.ahead.forget(at..at + records.len() as u64);
        let written = base.write(records, at);
        match written {
            Ok(()) => self.outgoing.clear(),
            Err(_) => self.lose_outgoing(),
        }
        written
    }

    /// The outgoing frames will not be written. In most cases SQLite is being told of an error.
    pub(super) fn lose_outgoing(&mut self) {
        if let Some(first) = self.outgoing.first() {
            self.transaction.lose(first);
            self.pending = None;
        }
        self.outgoing.clear();
    }

    /// Another write follows the first bytes of a frame, so these overwrite part of the frame in
    /// the file. If no frame is there, they wait for their rest.
    pub(super) fn resolve_partial_frame(&mut self, base: &impl Storage) -> Result<()> {
        let (Some(pending), Some(layout)) = (self.pending, self.layout) else { return Ok(()) };
        if pending.left_over {
            self.pending = None;
            return Ok(());
        }
        if !self.load(base, pending.frame)? {
            return Ok(());
        }
        self.pending = None;
        self.plain[..pending.filled].copy_from_slice(&self.gathered[..pending.filled]);
        self.store(base, layout, pending.frame)
    }
}
