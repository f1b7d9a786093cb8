//! The keys of one open database: its envelope as it is on disk, its protectors, and whether their
//! providers still consent. It knows nothing of pages.
//!
//! | file | what |
//! |---|---|
//! | this one | whether the keys may be used, and through which protector they came |
//! | `copies.rs` | reading and writing the two copies of the envelope |
//! | `change.rs` | changing the protectors in it |

pub(crate) mod change;
mod copies;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub(crate) use self::copies::{ATTEMPTS, PAUSE, steadily, unverified};
use crate::audit::{Event, EventKind};
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::key::access::{LeaseState, Refusal, RevokeReason};
use crate::key::auditor::Auditor;
use crate::key::envelope::{self, ENVELOPE_LEN, Envelope, ProtectorRecord, REGION_LEN};
use crate::key::keyring::{Keyring, candidates};
use crate::key::newest::{FileKey, Newest};
use crate::key::opening::{Opened, Opening};
use crate::key::protector::{Protectors, check_time, matches};
use crate::process::threads;
use crate::settings::Settings;

/// What one file is opened with.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    pub(crate) protectors: Protectors,
    /// The file is never written: it was opened for reading, or is declared immutable.
    pub(crate) read_only: bool,
    /// Device and inode of the file, if the base VFS vouches for its name.
    pub(crate) file: Option<FileKey>,
}

impl Setup {
    pub(crate) fn settings(&self) -> &Settings {
        &self.protectors.settings
    }

    /// The only protector to try.
    pub(crate) fn wanted(&self) -> Option<&str> {
        self.settings().protector.as_deref()
    }

    pub(crate) fn opening(&self) -> Opening<'_> {
        Opening::new(&self.protectors, self.wanted(), self.settings().file_id)
    }
}

/// The keys of one open handle of an encrypted database.
pub(crate) struct Session {
    setup: Arc<Setup>,
    keyring: Arc<Keyring>,
    envelope: Arc<Envelope>,
    /// The newest envelope that this process has seen.
    newest: Arc<Newest>,
    /// The protector that gave the keys.
    protector_name: String,
    /// The keyring's count of lockings when that protector was last known to have given its keys.
    lockings: Cell<u64>,
    /// The same count when the current transaction began.
    began: u64,
    /// The count of confirmations at this session's last check that the protector is still in the
    /// envelope.
    settled: u64,
    /// The transaction that created the database was committed: a file without pages was cut.
    committed: bool,
    /// The copies of the envelope, or the slots, differed when last read.
    copies_differ: bool,
    /// Protectors that this session has removed.
    removed: Vec<ProtectorRecord>,
    /// Protectors whose removal had been cut off, and which this session removed for good.
    finished: Vec<ProtectorRecord>,
}

/// The caller of the providers.
#[derive(Clone, Copy)]
enum Asker {
    MayWait,
    /// A transaction: other connections may wait for its locks.
    HoldsLocks,
}

impl Session {
    pub(crate) fn new(
        setup: Arc<Setup>,
        opened: Opened,
        newest: Arc<Newest>,
        copies_differ: bool,
    ) -> Self {
        let Opened { keyring, envelope, protector_name } = opened;
        keyring.hold_to(&setup.protectors);
        Self {
            setup,
            lockings: Cell::new(keyring.lockings()),
            began: keyring.lockings(),
            settled: keyring.confirmations(),
            keyring,
            envelope,
            committed: newest.is_committed(),
            newest,
            protector_name,
            copies_differ,
            removed: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// The session of a database that this process has just created.
    pub(crate) fn created(setup: Arc<Setup>, keyring: Arc<Keyring>, envelope: Envelope) -> Self {
        keyring.share();
        let newest = keyring.newest(setup.file);
        newest.start_over();
        let protector_name =
            envelope.protectors.first().map_or_else(String::new, |p| p.name.clone());
        let envelope = Arc::new(envelope);
        Self::new(setup, Opened { keyring, envelope, protector_name }, newest, false)
    }

    /// Goes on with other providers.
    #[cfg(test)]
    pub(crate) fn set_providers(&mut self, protectors: Protectors) {
        self.keyring.hold_to(&protectors);
        let setup = Setup { protectors, ..Setup::clone(&self.setup) };
        self.setup = Arc::new(setup);
    }

    /// The creation of the database is given up: its keys, and an envelope for the next attempt.
    pub(crate) fn give_up_creation(&self) -> (Arc<Keyring>, Envelope) {
        self.newest.start_over();
        let envelope =
            Envelope { has_pages: false, generation: 1, ..Envelope::clone(&self.envelope) };
        (Arc::clone(&self.keyring), envelope)
    }

    pub(crate) fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    pub(crate) fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The protector through which this file was opened.
    pub(crate) fn protector_name(&self) -> &str {
        &self.protector_name
    }

    /// The providers known here, and how they are asked.
    pub(crate) fn protectors(&self) -> &Protectors {
        &self.setup.protectors
    }

    pub(crate) fn auditor(&self) -> &Auditor {
        &self.setup.protectors.auditor
    }

    /// Checks, before a transaction begins, whether its keys are present. If they were locked, the
    /// provider is asked for them now; a periodic check of its consent, if due, runs beside the
    /// transaction.
    ///
    /// # Errors
    /// [`Error::Inaccessible`] while the provider's refusal stands, or the provider's new error.
    pub(crate) fn begin(&mut self, base: &impl Storage) -> Result<()> {
        let setup = Arc::clone(&self.setup);
        match self.keyring.lease_state(&setup.protectors, setup.wanted())? {
            state @ (LeaseState::Good | LeaseState::Due) => {
                if state == LeaseState::Due {
                    self.ask(base, Asker::MayWait);
                }
                // After they were locked, another connection's protector may have given the keys.
                if self.is_open() { self.settle(base) } else { self.unlock(base, setup.wanted()) }
            }
            LeaseState::Locked => {
                self.unlock(base, setup.wanted())?;
                self.auditor().note(&Event {
                    file_id: Some(self.keyring.file_id()),
                    protector: Some(&self.protector_name),
                    ..Event::new(EventKind::AccessRestored)
                });
                Ok(())
            }
        }
    }

    /// A transaction begins, with the keys that are here.
    pub(crate) fn transaction_begins(&mut self) {
        self.began = self.lockings.get();
    }

    /// Within a transaction, at each read and write: starts asking the provider when that is due,
    /// and does not wait for it.
    ///
    /// # Errors
    /// As [`Session::check_transaction`].
    #[inline]
    pub(crate) fn watch(&self, base: &impl Storage) -> Result<()> {
        if self.began == self.keyring.lockings() && !self.keyring.access.is_due() {
            return Ok(());
        }
        self.look_closer(base)
    }

    #[cold]
    fn look_closer(&self, base: &impl Storage) -> Result<()> {
        // Once the keys are locked, this transaction does not ask for them again.
        self.check_transaction()?;
        let setup = &self.setup;
        if self.keyring.lease_state(&setup.protectors, setup.wanted())? == LeaseState::Due {
            self.ask(base, Asker::HoldsLocks);
            return self.check_transaction();
        }
        Ok(())
    }

    /// Refuses to continue a transaction that began before the keys were locked, even if they are
    /// back.
    ///
    /// # Errors
    /// [`Error::Inaccessible`].
    pub(crate) fn check_transaction(&self) -> Result<()> {
        if self.began == self.keyring.lockings() {
            return Ok(());
        }
        let words = "keys were locked during this transaction; roll back and retry";
        Err(self.keyring.access.loss().unwrap_or_else(|| Refusal::from(words)).into())
    }

    /// Runs once after each confirmation of the keys, and applies the protectors now in force: the
    /// one that this file was opened through may have been removed or limited since.
    fn settle(&mut self, base: &impl Storage) -> Result<()> {
        let confirmations = self.keyring.confirmations();
        if self.settled == confirmations {
            return Ok(());
        }
        // A damaged or older envelope proves nothing about protectors. Reads go on.
        if self.refresh_envelope(base).is_err() {
            return Ok(());
        }
        self.settle_protector(base)?;
        self.settled = confirmations;
        Ok(())
    }

    /// Finds out through which protector this file is open now, if its own was removed, has ended,
    /// or was wrapped anew by another connection. It takes any that gives the keys, as they are in
    /// use already.
    pub(crate) fn settle_protector(&mut self, base: &impl Storage) -> Result<()> {
        self.refresh_envelope(base)?;
        if self.serves() { Ok(()) } else { self.unlock(base, None) }
    }

    /// Whether the protector through which this file is open has given the keys that are here: they
    /// may have been locked, and given back through another one.
    fn is_open(&self) -> bool {
        let lockings = self.keyring.lockings();
        let given = || self.protector().is_some_and(|record| self.keyring.was_given_by(record));
        let open = self.lockings.get() == lockings || given();
        if open {
            self.lockings.set(lockings);
        }
        open
    }

    /// Whether the protector through which this file is open is in the envelope as it gave the
    /// keys, and has not ended.
    fn serves(&self) -> bool {
        self.protector()
            .is_some_and(|record| self.keyring.was_given_by(record) && check_time(record).is_ok())
    }

    fn protector(&self) -> Option<&ProtectorRecord> {
        self.envelope.protectors.iter().find(|record| record.name == self.protector_name)
    }

    /// Asks the providers on a thread of its own, so that no transaction waits. If no thread can be
    /// started, it asks them here if `asker` may wait.
    fn ask(&self, base: &impl Storage, asker: Asker) {
        let (keyring, protectors) = (&self.keyring, &self.setup.protectors);
        let envelope = match self.in_force(base) {
            Ok(found) => found.envelope,
            // No protector of a damaged or older envelope counts: that is no answer.
            Err(error) => return keyring.unanswered(protectors, (&error).into()),
        };
        let look = |keyring: &Arc<Keyring>, protectors: &Protectors, envelope: &Envelope| {
            let asked = catch_unwind(AssertUnwindSafe(|| keyring.revalidate(protectors, envelope)));
            if asked.is_err() {
                keyring.unanswered(protectors, "the check of the key providers panicked".into());
            }
        };
        let copies = (Arc::clone(keyring), protectors.clone(), envelope.clone());
        let check = move || look(&copies.0, &copies.1, &copies.2);
        match (threads::spawn("sqlite-tde access", check), asker) {
            (Ok(()), _) => {}
            (Err(_), Asker::MayWait) => look(keyring, protectors, &envelope),
            (Err(error), Asker::HoldsLocks) => {
                let words = format!("no thread to ask the provider: {error}");
                keyring.unanswered(protectors, words.into());
            }
        }
    }

    /// Asks a provider for the locked keys: that of the protector `wanted`, or any.
    fn unlock(&mut self, base: &impl Storage, wanted: Option<&str>) -> Result<()> {
        let lockings = self.keyring.lockings();
        let setup = Arc::clone(&self.setup);
        let mut opening = Opening::new(&setup.protectors, wanted, setup.settings().file_id);
        let known = self.newest.known();
        let open = |header: &[u8]| {
            let opened = opening.open(&candidates(header)?)?;
            if !Arc::ptr_eq(&opened.keyring, &self.keyring) {
                return Err(Error::EnvelopeDamaged("the file is another database now".into()));
            }
            let whole = envelope::copies_are_equal(header);
            self.newest.admit(known.as_deref(), &opened.envelope, whole)?;
            Ok(opened)
        };
        let opened =
            steadily(base, open).map_err(|error| self.keyring.access.refused(error, wanted))?;
        self.envelope = opened.envelope;
        self.protector_name = opened.protector_name;
        self.lockings.set(lockings);
        Ok(())
    }

    /// Checks for newer versions of the protectors' keys.
    pub(crate) fn look_for_newer(&self) {
        self.keyring.look_for_newer(&self.setup.protectors, &self.envelope);
    }

    /// Forgets the keys in this process: the next transaction asks the provider for them.
    pub(crate) fn lock_keys(&self) -> Result<()> {
        self.keyring.lock(RevokeReason::Request);
        let forgotten = self.setup.protectors.forget();
        let file_id = Some(self.keyring.file_id());
        self.auditor().note(&Event { file_id, ..Event::new(EventKind::Lock) });
        Ok(forgotten?)
    }

    /// The protector `old` has become `new`.
    pub(crate) fn protector_became(&mut self, old: &ProtectorRecord, new: &ProtectorRecord) {
        self.keyring.took_back(old);
        if self.protector_name == old.name {
            self.protector_name.clone_from(&new.name);
        }
    }

    /// This session has removed a protector.
    pub(crate) fn removed(&mut self, record: &ProtectorRecord) {
        self.keyring.took_back(record);
        self.removed.push(record.clone());
    }

    /// Whether this session has removed the protector called `name`.
    pub(crate) fn has_removed(&self, name: &str) -> bool {
        self.removed.iter().any(|record| matches(record, Some(name)))
    }

    /// Whether this session has finished the removal of the protector called `name`, which had been
    /// cut off.
    pub(crate) fn has_finished(&self, name: &str) -> bool {
        self.finished.iter().any(|record| matches(record, Some(name)))
    }

    /// Whether the protector through which this file was opened allows no more than reading.
    pub(crate) fn is_read_only(&self) -> bool {
        self.protector().is_some_and(|record| record.read_only)
    }

    /// Refuses to change a database that is never written through this handle.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.setup.read_only {
            let reason = "the database was opened for reading alone".into();
            return Err(Error::ReadOnly { reason, protector: None });
        }
        self.check_rights()
    }

    /// Refuses to change a database that may only be read. SQLite knows that of a file opened so;
    /// but after a lock of the keys, another protector may have given them back.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub(crate) fn check_rights(&self) -> Result<()> {
        if self.is_read_only() {
            let name = &self.protector_name;
            let reason = format!("opened through read-only protector {}", name.escape_debug());
            return Err(Error::ReadOnly { reason, protector: Some(name.clone()) });
        }
        Ok(())
    }

    /// Whether the creation of the database is known to be committed.
    pub(crate) fn is_committed(&self) -> bool {
        self.committed
    }

    /// A page of the database was read or written under a lock that no creation survives.
    pub(crate) fn note_page(&mut self) {
        if !self.committed {
            self.committed = true;
            self.newest.committed();
        }
    }

    /// The lock under which this session marked the creation was released: another connection may
    /// roll it back.
    pub(crate) fn doubt_creation(&mut self) {
        self.committed = false;
    }

    /// Whether an envelope of this database lies in the file. It is not authenticated.
    pub(crate) fn has_envelope(&self, base: &impl Storage) -> Result<bool> {
        let mut start = [0; envelope::ID_END];
        for at in [0, REGION_LEN] {
            if base.read(&mut start, at as u64)? && self.envelope.begins(&start) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Refuses to write to a file without an envelope of this database: it could never be read.
    ///
    /// # Errors
    /// [`Error::DamagedInUse`].
    pub(crate) fn require_envelope(&self, base: &impl Storage) -> Result<()> {
        let is_cut = self.committed && base.size()? <= ENVELOPE_LEN as u64;
        if is_cut || !self.has_envelope(base)? { Err(emptied(base)?) } else { Ok(()) }
    }
}

/// The error of a file that was committed, and has no page or no envelope any more. It is of the
/// family after which SQLite's pager rolls back.
pub(crate) fn emptied(base: &impl Storage) -> Result<Error> {
    let size = base.size()?;
    Ok(Error::DamagedInUse(if size <= ENVELOPE_LEN as u64 {
        format!("it was cut to {size} bytes; put back a backup")
    } else {
        "its envelope was overwritten; put back a backup".into()
    }))
}
