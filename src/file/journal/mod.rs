//! The rollback journal of an encrypted database.
//!
//! ```text
//! 0        sector     + stride
//! | header | record 0 | record 1 | ... | end mark | name |   record = a sector + 48
//!
//! header:  0      16        20            24     40        56      60      80
//!          | magic | format | key version | salt | file id | grain | begun | zeros to 512 |
//! ```
//! SQLite's journal, cut into sectors, each sealed as a block of its own: SQLite starts every
//! synced part of a journal on a sector, so writing one part never rewrites bytes that an earlier
//! sync made durable. A sector is 512 bytes if the base has powersafe overwrite, else the base's
//! own, the unit that a torn write may spoil: then no two records share one either. `grain` is 1 or
//! that sector, and `stride` is the length of a record, a multiple of `grain`. The salt is new for
//! each journal, also where PERSIST reuses the file, and so is the key: old records cannot pass as
//! new ones. `begun` is the state of the database that the journal restores ([`begun`]). The key
//! depends on it, too.
//!
//! The first byte is always zero: SQLite without the library leaves such a journal alone. It takes
//! any other for hot, finds nothing to play back, and deletes it. For a transaction over several
//! databases, the journal ends with the name of the super-journal as it is ([`name`]).
//!
//! Records are always whole, for SQLite may go on at the next sector and never come back to the one
//! it left half filled. After the last record come as many zeros, 1 to 512, as that record holds of
//! SQLite's journal: its size stays exact, and the file only ever grows while a journal does.
//!
//! A record that does not authenticate is, after a crash, one that never reached the disk. SQLite
//! must then see the end of the journal, and must not take zeros for a page: its own checksum
//! samples one byte in 200. So a read of a page over such a record is a *short read*, which ends
//! the playback. A shorter read (magic, page number, checksum, name of a super-journal) answers
//! zeros, which no header, no page record and no name starts with: SQLite takes a short read of a
//! name for an error of the disk.
//! To the handle that wrote the record it is an error, and so is an older version of it
//! ([`newest`]): no crash explains either, and SQLite would roll back half of the transaction.
//!
//! # The write buffer
//!
//! SQLite writes a page in three pieces. They are gathered in plaintext ([`tail`]), and each record
//! is sealed once. They are in the base
//! 1. when a sync of the journal returns;
//! 2. before anything of the database file is written or cut ([`Journal::flush`]), whether SQLite
//!    syncs or not. A killed process therefore loses only records of pages that are unchanged in
//!    the database: the journal then ends with a record before them, and one that was never flushed
//!    is a file as it was before, empty or with the zeros of PERSIST at its start, which SQLite
//!    does not play back;
//! 3. when SQLite returns from writing a field of the first header, zeros there that commit among
//!    them, or the end of a super-journal's name: other files count on those;
//! 4. when they exceed [`tail::GATHERED`].
//!
//! An emptied file is empty at once. Reads through this handle return all its writes, in the base
//! or not. Bytes that could not be flushed stay in the buffer, are tried again whenever the base
//! needs them, and are read in the rollback; the database was not touched after them. A closed
//! journal is either no longer needed, or the next connection plays it back: the records of all
//! pages that were written are in the base.

mod begun;
mod changed;
pub(super) mod layout;
mod name;
mod newest;
mod read;
mod tail;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::os::raw::c_int;
use std::sync::Arc;

use crate::ffi;

pub(crate) use self::begun::{Begun, Counters};
use self::changed::Changed;
use self::layout::{Extent, HEADER_LEN, Header, Image, Layout, SECTOR};
use self::newest::Newest;
use self::tail::Tail;
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::key::cipher::{Cipher, Subkey};
use crate::key::keyring::{FileId, Keyring};
use crate::secret::fill_random;
use crate::settings::Tuning;

/// The smallest page; any shorter read is of a field.
const SMALLEST_PAGE: usize = 1024;
/// Bytes that a playback reads ahead.
const READ_AHEAD: usize = 32 << 10;
/// SQLite's magic, at the start of a header and at the end of a super-journal's name.
pub(super) const SQLITE_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

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
    /// The header in the file must be read before anything else of it.
    unread: bool,
    tuning: Tuning,
    /// The header of the journal that this handle started, until it is in the base.
    header: Option<[u8; HEADER_LEN]>,
    tail: Tail,
    /// Bytes of this journal known to be ours: in the base, by this handle, under the present salt.
    written: u64,
    /// Size of the file, while a journal that this handle started is the only thing that changes
    /// it.
    extent: Option<Extent>,
    /// The state of the database at the begin of a journal that this handle found.
    found: Option<Begun>,
    /// SQLite was told that the journal does not reach the disk, and is rolling back.
    given_up: bool,
    /// A failed write may have spoilt records that SQLite still counts on, and could not be undone.
    spoilt: Option<Spoilt>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    /// The record that `plain` holds, as the base has it.
    held: Option<u64>,
    ahead: Image,
    /// The records of one write, and those it changes in part as they were before.
    image: Image,
    changed: Changed,
    newest: Newest,
}

impl Journal {
    /// A journal of the database that `keyring` opens, on storage of which a torn write spoils
    /// `grain` bytes. Without a keyring it can only be read, and is empty: no database was ever
    /// created beside it.
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
            unread: true,
            tuning,
            header: None,
            tail: Tail::default(),
            written: 0,
            extent: None,
            found: None,
            given_up: false,
            spoilt: None,
            plain: Vec::new(),
            sealed: Vec::new(),
            held: None,
            ahead: Image::default(),
            image: Image::default(),
            changed: Changed::default(),
            newest: Newest::default(),
        };
        journal.set_layout(grain);
        journal.load_header(base)?;
        Ok(journal)
    }

    /// Reads the header in the file, once.
    fn load_header(&mut self, base: &impl Storage) -> Result<()> {
        if !self.unread {
            return Ok(());
        }
        let mut header = [0; HEADER_LEN];
        if base.read_whole(&mut header, 0)? {
            self.read_header(&header)?;
        }
        self.unread = false;
        Ok(())
    }

    /// Other connections may have written the file: this handle's knowledge of it is outdated.
    pub(crate) fn take_anew(&mut self) {
        self.forget();
        self.set_layout(self.grain);
        self.unread = true;
    }

    fn set_layout(&mut self, grain: usize) {
        self.layout = Layout { grain };
        self.plain.resize(self.layout.sector(), 0);
        self.sealed.resize(self.layout.record(), 0);
        self.held = None;
    }

    /// Finds the key; `None` for a torn or foreign header, whose journal holds nothing for this
    /// database.
    fn read_header(&mut self, header: &[u8; HEADER_LEN]) -> Result<()> {
        let Some(keyring) = &self.keyring else { return Ok(()) };
        let Some(header) = Header::decode(header) else {
            return Ok(());
        };
        let Header { version, grain, begun, .. } = header;
        if keyring.has(version)? {
            let salt = header.key_salt();
            self.cipher = Some(keyring.cipher(Subkey::Journal { version, salt }));
            self.set_layout(grain);
            self.found = Some(begun);
        }
        Ok(())
    }

    /// Whether a write of `bytes` at `at` starts a new journal.
    fn begins(&self, bytes: &[u8], at: u64) -> bool {
        // A whole sector at the start is the header of a new journal; fields of it are rewritten in
        // shorter pieces.
        at == 0 && bytes.len() >= SECTOR || self.cipher.is_none() && !invalidates(bytes, at)
    }

    /// Whether SQLite begins to play a journal back by a read of `len` bytes at `at`. Then
    /// [`Journal::check_begun`] is to be asked first.
    pub(crate) fn starts_playback(
        &mut self,
        base: &impl Storage,
        len: usize,
        at: u64,
    ) -> Result<bool> {
        self.load_header(base)?;
        Ok(at == 0 && len == SQLITE_MAGIC.len() && self.found.is_some())
    }

    /// Refuses a playback over a database in the state `now`, if the journal was begun on an older
    /// one. `None` where page 1 does not tell.
    ///
    /// # Errors
    /// [`Error::JournalOutdated`].
    pub(crate) fn check_begun(&self, now: Option<Begun>) -> Result<()> {
        self.found.map_or(Ok(()), |begun| begun.check(now))
    }

    /// Starts a new journal in this file, on that state of the database: new salt, new key.
    fn begin(&mut self, begun: Begun) -> Result<()> {
        let keyring = self.keyring.as_ref().ok_or_else(|| {
            Error::Usage("a journal was written before its database was locked".into())
        })?;
        let mut salt = FileId::default();
        fill_random(&mut salt)?;
        let version = keyring.version()?;
        let (file_id, grain) = (*keyring.file_id(), self.grain);
        let header = Header { version, salt, file_id, grain, begun };
        self.cipher = Some(keyring.cipher(Subkey::Journal { version, salt: header.key_salt() }));
        self.header = Some(header.encode());
        self.found = None;
        self.unread = false;
        self.set_layout(self.grain);
        self.tail.start();
        self.newest.forget();
        self.written = 0;
        self.extent = None;
        self.spoilt = None;
        Ok(())
    }

    /// The journal is empty, in the base and in memory.
    fn forget(&mut self) {
        self.cipher = None;
        self.header = None;
        self.found = None;
        self.newest.forget();
        self.written = 0;
        self.spoilt = None;
        self.end_transaction();
    }

    pub(crate) fn size(&mut self, base: &impl Storage) -> Result<u64> {
        self.load_header(base)?;
        let extent = self.extent.map_or_else(|| self.measure(base), Ok)?;
        Ok(self.layout.logical_size(extent).max(self.tail.end()))
    }

    /// `begun_on` returns the state of the database if this write starts a new journal.
    pub(crate) fn write(
        &mut self,
        base: &impl Storage,
        bytes: &[u8],
        at: u64,
        begun_on: impl FnOnce() -> Result<Begun>,
    ) -> Result<()> {
        self.load_header(base)?;
        if self.begins(bytes, at) {
            self.begin(begun_on()?)?;
        }
        // A handle that writes to a journal does not play it back as a hot one. With
        // journal_mode=OFF, SQLite before 3.40 writes to an invalidated journal, and reads its
        // header.
        self.found = None;
        self.put(base, bytes, at)?;
        if ends_name(bytes, at) { self.show_name(base, at + bytes.len() as u64) } else { Ok(()) }
    }

    fn put(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        self.given_up = false;
        if invalidates(bytes, at) {
            return self.invalidate(base, bytes);
        }
        if self.tail.is_full(bytes.len()) {
            self.flush_records(base)?;
        }
        if !self.tail.takes(at, self.layout.sector()) {
            return self.rewrite(base, bytes, at);
        }
        let end = self.tail.end();
        self.tail.put(bytes, at);
        if self.tuning.gather_writes && !goes_through(bytes, at) {
            return Ok(());
        }
        self.flush(base).inspect_err(|_| self.tail.cut(end))
    }

    /// SQLite ends the transaction with zeros over the first header. The buffered bytes are no
    /// longer needed; a rollback on a full disk comes here as well.
    fn invalidate(&mut self, base: &impl Storage, zeros: &[u8]) -> Result<()> {
        if self.header.is_some() || self.cipher.is_none() {
            // The base has nothing of this journal that could be played back.
            self.forget();
            return Ok(());
        }
        self.tail.cut(self.tail.clean_end());
        self.rewrite(base, zeros, 0)?;
        self.hide_name(base)?;
        self.end_transaction();
        Ok(())
    }

    /// The transaction is over, and its journal invalid.
    fn end_transaction(&mut self) {
        self.given_up = false;
        self.held = None;
        self.extent = None;
        self.tail.forget();
        self.image.forget();
        self.ahead.forget();
    }

    /// Flushes the buffer to the base.
    ///
    /// # Errors
    /// Those of the base. The buffer is then kept and readable, and the base is unchanged.
    pub(crate) fn flush(&mut self, base: &impl Storage) -> Result<()> {
        self.flush_until(base, self.tail.end())
    }

    /// Before a sync of the journal or a write to the database file: flushes the buffer, as
    /// [`Journal::flush`].
    ///
    /// After an error of these calls that SQLite takes for one of the disk, it writes to the
    /// database only to roll the whole transaction back (`pager_error`, `sqlite3VdbeHalt`). The
    /// buffered records are of pages that are unchanged in the database, and if it syncs, SQLite
    /// leaves alone those whose records it could not (`isSynced` in `pager_playback_one_page`). So
    /// an interrupted rollback does not need them, and on a full disk it must not.
    pub(crate) fn require(&mut self, base: &impl Storage) -> Result<()> {
        if self.given_up {
            return Ok(());
        }
        let flushed = self.flush(base);
        let of_disk = |code: c_int| matches!(code & 0xff, ffi::SQLITE_FULL | ffi::SQLITE_IOERR);
        self.given_up = matches!(flushed, Err(Error::Base(code)) if of_disk(code));
        flushed
    }

    /// Whether SQLite was told that the journal does not reach the disk, and is rolling back.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether the buffer holds bytes that the base must have before the database file changes.
    pub(crate) fn owes(&self) -> bool {
        let waits = self.tail.clean_end() < self.tail.end() || self.header.is_some();
        waits && !self.given_up
    }

    /// Makes room: writes all records to the base, except one that SQLite may continue.
    fn flush_records(&mut self, base: &impl Storage) -> Result<()> {
        let end = self.tail.end();
        let whole = end - self.layout.locate(end).1 as u64;
        self.flush_until(base, whole)?;
        self.tail.let_go(whole);
        Ok(())
    }

    fn flush_until(&mut self, base: &impl Storage, end: u64) -> Result<()> {
        self.retry_undo(base)?;
        let clean = self.tail.clean_end();
        if clean >= end && self.header.is_none() {
            return Ok(());
        }
        let mut had = self.know_extent(base)?;
        if self.header.is_some() || end > self.layout.logical_size(had) {
            had = self.hide_name(base)?;
        }
        let (first, within) = self.layout.locate(clean);
        self.held = None;
        self.changed.clear();
        if within > 0 && self.tail.read_clean(&mut self.plain, clean - within as u64) {
            self.changed.remember(first, &self.plain);
        }
        match &self.header {
            Some(header) => {
                self.image.start(0);
                self.image.bytes.extend_from_slice(header);
            }
            None => self.image.start(self.layout.position(first)),
        }
        let records = first..end.div_ceil(self.layout.sector() as u64);
        for record in records.clone() {
            self.tail.read(&mut self.plain, record * self.layout.sector() as u64);
            self.push(record)?;
        }
        self.put_image(base, records, end, had)?;
        self.header = None;
        self.tail.flushed(end);
        Ok(())
    }

    /// Changes bytes that are in the base already, or that another handle wrote.
    fn rewrite(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        self.flush(base)?;
        self.retry_undo(base)?;
        let mut had = self.know_extent(base)?;
        if at + bytes.len() as u64 > self.layout.logical_size(had) {
            had = self.hide_name(base)?;
        }
        let first = self.layout.locate(at).0;
        self.image.start(self.layout.position(first));
        self.changed.clear();
        let mut records = first..first;
        let mut done = 0;
        while done < bytes.len() {
            let (record, within) = self.layout.locate(at + done as u64);
            let len = (self.layout.sector() - within).min(bytes.len() - done);
            if len < self.layout.sector() && self.load_for_change(base, record)? {
                self.changed.remember(record, &self.plain);
            }
            self.held = None;
            self.plain[within..within + len].copy_from_slice(&bytes[done..done + len]);
            self.push(record)?;
            records.end = record + 1;
            done += len;
        }
        self.put_image(base, records, at + bytes.len() as u64, had)?;
        self.tail.patch(bytes, at);
        Ok(())
    }

    /// Adds `plain`, sealed as `record`, to the image.
    fn push(&mut self, record: u64) -> Result<()> {
        let Some(cipher) = &self.cipher else {
            return Err(Error::JournalAuthentication { record });
        };
        let plain = &self.plain;
        self.image.push(self.layout, record, |sealed| cipher.seal(record, plain, sealed))
    }

    /// Writes the image, which holds `records` and extends SQLite's journal to `end`, to a file
    /// that `had` this extent.
    fn put_image(
        &mut self,
        base: &impl Storage,
        records: Range<u64>,
        end: u64,
        had: Extent,
    ) -> Result<()> {
        if end > self.layout.logical_size(had) {
            self.image.end(self.layout, end);
        }
        self.ahead.bytes.clear();
        let Image { position, bytes } = &self.image;
        for record in records {
            let at = (self.layout.position(record) - position) as usize;
            self.newest.note(record, &bytes[at..at + self.layout.record()]);
        }
        let size = had.size.max(position + bytes.len() as u64);
        let written = base.write(bytes, *position);
        if let Err(Error::Base(code)) = written {
            self.undo_or_mend_later(base, code, had.size);
        }
        written?;
        self.extent = Some(Extent { size, ..had });
        self.written = self.written.max(end);
        Ok(())
    }

    /// Undoes a write that failed with `code` and made the file longer than `size`.
    fn undo_or_mend_later(&mut self, base: &impl Storage, code: c_int, size: u64) {
        if self.undo(base, size).is_err() {
            self.spoilt = Some(Spoilt { code, size });
        }
    }

    /// Size of the file, which only this handle changes from now on.
    fn know_extent(&mut self, base: &impl Storage) -> Result<Extent> {
        let extent = self.extent.map_or_else(|| self.measure(base), Ok)?;
        self.extent = Some(extent);
        Ok(extent)
    }

    /// Restores the bytes that a failed write may have torn: SQLite goes on reading the journal of
    /// the transaction that it now rolls back, and bytes before the write must be as they were.
    fn undo(&mut self, base: &impl Storage, size: u64) -> Result<()> {
        let Some(cipher) = &self.cipher else { return Ok(()) };
        let plain = self.changed.plain.chunks_exact(self.layout.sector());
        for (&record, plain) in self.changed.records.iter().zip(plain) {
            cipher.seal(record, plain, &mut self.sealed)?;
            self.newest.note(record, &self.sealed);
            base.write(&self.sealed, self.layout.position(record))?;
        }
        base.truncate(size)
    }

    /// Undoes a failed write that could not be undone at once; the disk may work again.
    fn retry_undo(&mut self, base: &impl Storage) -> Result<()> {
        let Some(Spoilt { code, size }) = self.spoilt else { return Ok(()) };
        self.undo(base, size).map_err(|_| Error::Base(code))?;
        self.spoilt = None;
        Ok(())
    }

    pub(crate) fn truncate(&mut self, base: &impl Storage, size: u64) -> Result<()> {
        self.load_header(base)?;
        if size == 0 {
            // If that fails, SQLite rolls back from the buffer.
            base.truncate(0)?;
            self.forget();
            return Ok(());
        }
        self.flush(base)?;
        let extent = self.know_extent(base)?;
        if extent.name > 0 && size == self.layout.logical_size(extent) {
            return Ok(());
        }
        self.end_transaction();
        self.written = self.written.min(size);
        base.truncate(self.layout.physical_size(size))
    }
}

/// Whether this write ends a transaction under PERSIST: zeros in place of the first header's magic.
fn invalidates(bytes: &[u8], at: u64) -> bool {
    at == 0 && bytes.len() < SECTOR && bytes.first() == Some(&0)
}

/// Whether other files may count on this write as soon as it returns. The end of a super-journal's
/// name is the last thing that SQLite writes of a journal before the commit of another database may
/// count on it, and it may be that of a database with nothing left to write.
fn goes_through(bytes: &[u8], at: u64) -> bool {
    at == 0 && bytes.len() < SECTOR || ends_name(bytes, at)
}

/// Whether this is the last part of a super-journal's name. The magic of a header is written
/// together with what follows it.
fn ends_name(bytes: &[u8], at: u64) -> bool {
    at > 0 && bytes == SQLITE_MAGIC
}
