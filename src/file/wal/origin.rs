//! Whether a log belongs to the database file that it lies beside.

use super::{COMMIT_AT, FRAME_HEADER, Parent, SALTS_AT, Wal, number};
use crate::error::{Error, Result};
use crate::file::Storage;
use crate::file::journal::Counters;
use crate::key::envelope::slot::StateId;
use crate::page::LogId;

/// Looks at a log that others begin anew meanwhile: SQLite recovers without locks where it may not
/// write the wal-index.
const ATTEMPTS: usize = 5;
/// Where SQLite's bytes 24 to 39 of a page are in its frame.
const COUNTERS: std::ops::Range<usize> =
    FRAME_HEADER + 24..FRAME_HEADER + 24 + size_of::<Counters>();

impl Wal {
    /// Before SQLite recovers the log: refuses one that was written for another state of the
    /// database. Without a commit there is nothing to recover in it, and it counts as empty.
    ///
    /// # Errors
    /// [`Error::LogOutdated`].
    pub(super) fn check_origin(&mut self, base: &impl Storage, parent: &impl Parent) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let (Some(layout), Some(start)) = (self.layout, self.start) else { return Ok(()) };
            let origin = start.origin();
            if parent
                .admits(&layout.log, &origin, &mut |counters| self.has_page_1(base, counters))?
            {
                return Ok(());
            }
            self.load_layout(base)?;
            if self.layout.is_none_or(|now| now.log != layout.log) {
                continue;
            }
            if self.has_commit(base)? {
                break;
            }
            (self.void, self.start) = (Some(layout.log), None);
            return Ok(());
        }
        Err(Error::LogOutdated)
    }

    /// The id of the log and the state of the database file on which it was begun.
    pub(crate) fn identity(
        &mut self,
        base: &impl Storage,
        parent: &impl Parent,
    ) -> Result<Option<(LogId, StateId)>> {
        self.refresh(base, parent)?;
        Ok(self.layout.zip(self.start).map(|(layout, start)| (layout.log, start.origin().state)))
    }

    /// Whether page 1 is in the log, with these counters or with any.
    fn has_page_1(&mut self, base: &impl Storage, counters: Option<Counters>) -> Result<bool> {
        self.any(base, |frame| {
            number(frame) == 1 && counters.is_none_or(|counters| frame[COUNTERS] == counters)
        })
    }

    /// Whether a transaction was committed to the log.
    fn has_commit(&mut self, base: &impl Storage) -> Result<bool> {
        let Some(salts) = self.salts() else { return Ok(false) };
        self.any(base, |frame| {
            number(&frame[COMMIT_AT..]) > 0 && frame[SALTS_AT..].starts_with(&salts)
        })
    }

    fn any(&mut self, base: &impl Storage, is: impl Fn(&[u8]) -> bool) -> Result<bool> {
        let mut any = false;
        self.survey(base, 0, u32::MAX, |wal, _, good| any |= good && is(&wal.plain))?;
        Ok(any)
    }
}
