//! The name of a super-journal at the end of a journal, where every program can read it.
//!
//! ```text
//! ... | end mark | name | length 4 | checksum 4 | SQLite's magic 8 |
//! ```
//! SQLite deletes a super-journal as soon as none of the journals that it lists ends with its name.
//! Any connection reads the journals of the other databases for that through its own VFS, with or
//! without the library and the key. So the end of SQLite's journal, which is sealed like the rest
//! of it, is also there as it is. Its name stands in the super-journal anyway.
//!
//! The bytes are written when SQLite's write of the name's last part comes, before it syncs the
//! journal and long before it deletes the super-journal. A playback takes the sealed name only
//! where these bytes are the same. After a crash they may differ, and then the sync did not return:
//! the transaction was not committed, another program may have deleted the super-journal, and the
//! journal is played back as one that names none.

use super::layout::{Extent, HEADER_LEN};
use super::{Journal, SQLITE_MAGIC};
use crate::error::{Error, Result};
use crate::io::Storage;

/// Length, checksum and magic.
const FIXED: usize = 16;
/// More than any VFS's longest path.
const LONGEST: u32 = 1 << 17;

/// Length of the name at the end of a journal with the fields after it, where `fixed` are the last
/// bytes of `all`; 0 without a name.
fn name_len(fixed: &[u8; FIXED], all: u64) -> u64 {
    let len = fixed.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let whole = u64::from(len) + FIXED as u64;
    let fits = (1..=LONGEST).contains(&len) && whole <= all && fixed[8..] == SQLITE_MAGIC;
    if fits { whole } else { 0 }
}

impl Journal {
    /// Finds the length of the file, and of the name at its end.
    pub(super) fn measure(&self, base: &impl Storage) -> Result<Extent> {
        let size = base.size()?;
        let mut fixed = [0; FIXED];
        let body = size.saturating_sub(HEADER_LEN as u64);
        if body < FIXED as u64 || !base.read(&mut fixed, size - FIXED as u64)? {
            return Ok(Extent { size, name: 0 });
        }
        Ok(Extent { size, name: name_len(&fixed, body) })
    }

    /// SQLite has written the last part of a super-journal's name, which ends its journal at `end`:
    /// puts it at the end of the file.
    ///
    /// # Errors
    /// Those of the base. The file then ends as one that names no super-journal.
    pub(super) fn show_name(&mut self, base: &impl Storage, end: u64) -> Result<()> {
        let mut fixed = [0; FIXED];
        if end < FIXED as u64 {
            return Ok(());
        }
        self.read_inside(base, &mut fixed, end - FIXED as u64)?;
        let len = name_len(&fixed, end);
        if len == 0 {
            return Ok(());
        }
        let mut name = vec![0; len as usize];
        self.read_inside(base, &mut name, end - len)?;
        let at = self.layout.physical_size(end);
        if self.know_extent(base)?.size != at {
            self.cut(base, at)?;
        }
        self.changed.clear();
        let written = base.write(&name, at);
        if let Err(Error::Base(code)) = written {
            self.undo_or_mend_later(base, code, at);
        }
        written?;
        self.extent = Some(Extent { size: at + len, name: len });
        Ok(())
    }

    /// Removes the name of a super-journal from the file: the next transaction has none.
    pub(super) fn hide_name(&mut self, base: &impl Storage) -> Result<Extent> {
        let Extent { size, name } = self.know_extent(base)?;
        if name > 0 {
            self.cut(base, size - name)?;
        }
        self.know_extent(base)
    }

    fn cut(&mut self, base: &impl Storage, size: u64) -> Result<()> {
        self.extent = None;
        base.truncate(size)?;
        self.extent = Some(Extent { size, name: 0 });
        Ok(())
    }

    /// Whether the file ends with the very bytes that SQLite's journal of `size` bytes ends with,
    /// the name of a super-journal.
    pub(super) fn shows_name(&mut self, base: &impl Storage, size: u64) -> Result<bool> {
        let extent = self.extent.map_or_else(|| self.measure(base), Ok)?;
        if extent.name == 0 || extent.name > size {
            return Ok(false);
        }
        let mut shown = vec![0; extent.name as usize];
        let mut sealed = shown.clone();
        let whole = base.read_whole(&mut shown, extent.size - extent.name)?;
        self.read_inside(base, &mut sealed, size - extent.name)?;
        Ok(whole && shown == sealed)
    }
}
