//! Creation of a database, and the rollback of a creation, which leaves nothing behind.
//!
//! ```text
//!   copy A, slot 0, sync | pages ... | first commit: copy B, sync; copy A | SQLite's own sync
//!   no pages                                        has pages  has pages
//! ```
//! A rollback of the first transaction empties the file. A crash leaves a copy A that says that
//! there are no pages, alone or beside pages that are rolled back. Once both copies say that there
//! are, they are on disk: a file that ends before its first page was cut.

use std::sync::Arc;

use super::main::{Encrypted, Main, State, create};
use crate::error::{Error, Result};
use crate::file::main::layout::logical_size;
use crate::file::main::{check_page_1, first_page_size};
use crate::io::Storage;
use crate::key::envelope::Envelope;
use crate::key::envelope::slot::Slot;
use crate::key::envelope::slots::FIRST_SEQUENCE;
use crate::key::keyring::Keyring;
use crate::key::session::Session;

impl Main {
    /// Writes the envelope of a new database before its first page; that page sets the page size.
    pub(super) fn create(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        if matches!(self.state, State::Empty(_)) && !self.is_still_empty(base)? {
            // Without locks this is the first notice of a creation by another connection.
            return Err(created_by_another());
        }
        let State::Empty(prepared) = &mut self.state else { return Ok(()) };
        let page_size = first_page_size(bytes, at)?;
        check_page_1(bytes, at, bytes.len())?;
        let (keyring, mut envelope) = match prepared.take() {
            Some(keys) => keys,
            None => create(&self.setup)?,
        };
        envelope.page_size = page_size;
        if let Err(error) = write_copy_a(base, &keyring, &envelope) {
            *prepared = Some((keyring, envelope));
            return Err(error);
        }
        let session = Session::created(Arc::clone(&self.setup), keyring, envelope);
        self.state = State::Encrypted(Box::new(Encrypted::new(session)));
        (self.known_size, self.envelope_checked) = (Some(0), true);
        Ok(())
    }

    /// Before a commit, of the first transaction perhaps: the envelope then says that there are
    /// pages. SQLite asks for this whatever `synchronous` says, and syncs the file next if it syncs
    /// at all. It does so at the end of a rollback, too, which may have left no page.
    pub(crate) fn before_commit(&mut self, base: &impl Storage) -> Result<()> {
        self.envelope_checked = false;
        let hot = self.phase.is_hot_rollback();
        let Some(Encrypted { session, .. }) = self.opened() else { return Ok(()) };
        if session.envelope().has_pages {
            return session.require_envelope(base);
        }
        if hot || logical_size(base.size()?) == 0 {
            return Ok(());
        }
        session.commit_creation(base)?;
        self.told_creation = true;
        Ok(())
    }

    /// The first transaction is rolled back: no page is left, and no envelope, which takes no
    /// writing. Its keys serve the next attempt of this handle.
    ///
    /// # Errors
    /// [`Error::Busy`] if the file holds a database of another connection, which took no lock
    /// either (`nolock=1`).
    pub(super) fn undo_creation(&mut self, base: &impl Storage) -> Result<()> {
        let is_own = match &self.state {
            State::Encrypted(open) => base.size()? == 0 || open.session.has_envelope(base)?,
            State::Empty(_) | State::Plain => true,
        };
        if is_own {
            base.truncate(0)?;
        }
        self.start_over();
        if is_own { Ok(()) } else { Err(created_by_another()) }
    }

    /// Whether the transaction that created the database may yet be rolled back, as far as this
    /// handle knows.
    pub(crate) fn may_be_undone(&self) -> bool {
        self.session().is_ok_and(|session| !session.is_committed())
    }

    /// No writer is active and no hot journal is left: the pages that the envelope announces were
    /// committed.
    pub(crate) fn nobody_is_creating(&mut self, base: &impl Storage) -> Result<()> {
        if let Ok(session) = self.session_mut()
            && session.envelope().has_pages
            && logical_size(base.size()?) > 0
        {
            session.note_page();
        }
        Ok(())
    }

    /// A lock was released; `last`: this handle holds none any more. After a transaction, SQLite
    /// keeps SHARED for a moment. After a rollback that failed it does not, and another connection
    /// plays the journal back.
    pub(crate) fn unlocked(&mut self, last: bool) {
        let created = std::mem::take(&mut self.told_creation);
        if let (true, true, Ok(session)) = (created, last, self.session_mut()) {
            session.doubt_creation();
        }
    }

    /// The file has no page and no valid envelope.
    pub(super) fn start_over(&mut self) {
        if let State::Encrypted(open) = &self.state {
            self.state = State::Empty(Some(open.session.give_up_creation()));
        }
        self.known_size = None;
    }
}

fn created_by_another() -> Error {
    Error::Busy("another connection has just created the database".into())
}

/// Writes copy A and the first slot; overwrites any remains of an earlier creation.
fn write_copy_a(base: &impl Storage, keyring: &Keyring, envelope: &Envelope) -> Result<()> {
    let mut copy = keyring.encode(envelope)?;
    copy.extend(keyring.encode_slot(&Slot::anew(FIRST_SEQUENCE)?, 0)?);
    if base.size()? > 0 {
        base.truncate(0)?;
    }
    let written = base.write(&copy, 0).and_then(|()| base.sync());
    if written.is_err() {
        // The error is returned; a partial copy is the same state as after a crash.
        let _ = base.truncate(0);
    }
    written
}
