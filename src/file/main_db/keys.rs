//! The keys of an open database: its envelope as it is on disk, and whether its provider still
//! consents.
//!
//! ```text
//!   the copy not in use <- new, sync;   the copy in use <- new, sync
//! ```
//! At each moment one copy is whole: the one before or the one after. The second write is there so
//! that nothing of a protector that was removed stays in the file. Where a crash came between the
//! two, the newer copy is in force, and [`MainDb::mend`] writes it over the other one as soon as
//! the database is opened for writing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use libsqlite3_sys as ffi;

use super::super::Storage;
use super::pages::{Found, Pages};
use super::slots::Slots;
use super::{CHANGE_COUNTER, MainDb, State, Wishes};
use crate::audit::{Event, EventKind};
use crate::error::{Error, Result, log};
use crate::key::access::{Loss, Standing};
use crate::key::auditor::{Auditor, about, is_tampering};
use crate::key::envelope::{
    self, COPY_LEN, ENVELOPE_LEN, Envelope, ProtectorRecord, REGION_LEN, Unverified,
};
use crate::key::keyring::Keyring;
use crate::key::opening::Opening;
use crate::key::protector::{Protectors, check_time, matches};
use crate::provider::Context;
use crate::threads;

/// Reads that meet a copy while it is written find the other one; this many in a row never happen.
const ATTEMPTS: usize = 5;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(1);

impl MainDb {
    /// Looks, before a transaction begins, whether there are keys for it. Where they were locked,
    /// the provider is asked for them now; where it is time to ask whether it still consents, that
    /// is done beside the transaction.
    ///
    /// # Errors
    /// [`Error::Inaccessible`] while the provider's refusal stands, or what it says now.
    pub(crate) fn begin(&mut self, base: &impl Storage) -> Result<()> {
        let State::Encrypted(pages) = &mut self.state else { return Ok(()) };
        let protectors = &self.wishes.protectors;
        match pages.keyring.standing(&protectors.access, self.wishes.protector.as_deref())? {
            // Somebody else's protector gave the keys back after they were locked.
            Standing::Good if !pages.is_open() => pages.unlock(base, &self.wishes),
            Standing::Good => self.settle(base),
            Standing::Due => {
                pages.ask(base, protectors, Asker::MayWait);
                self.settle(base)
            }
            Standing::Locked => {
                pages.unlock(base, &self.wishes)?;
                protectors.auditor.note(&Event {
                    file_id: Some(pages.keyring.file_id()),
                    protector: Some(&pages.through),
                    ..Event::new(EventKind::AccessRestored)
                });
                Ok(())
            }
        }
    }

    /// Once after each time that the keys were confirmed: goes by the protectors in force from now
    /// on. Those that this file was opened under may have been removed or limited since.
    fn settle(&mut self, base: &impl Storage) -> Result<()> {
        let State::Encrypted(pages) = &self.state else { return Ok(()) };
        let confirmations = pages.keyring.confirmations();
        if pages.settled == confirmations {
            return Ok(());
        }
        // An envelope that is damaged or older says nothing of protectors. Rows are still read.
        if self.refresh_envelope(base).is_err() {
            return Ok(());
        }
        self.settle_protector(base)?;
        if let State::Encrypted(pages) = &mut self.state {
            pages.settled = confirmations;
        }
        Ok(())
    }

    /// What a background check left to be put into the envelope.
    pub(crate) fn take_pending(&self) -> Vec<(ProtectorRecord, ProtectorRecord)> {
        match &self.state {
            State::Encrypted(pages) => pages.keyring.take_pending(),
            State::Empty(_) | State::Plain => Vec::new(),
        }
    }

    /// The envelope as it is on disk now: another connection may have written it since.
    pub(crate) fn refresh_envelope(&mut self, base: &impl Storage) -> Result<&Envelope> {
        let State::Encrypted(pages) = &mut self.state else { return Err(Error::NotEncrypted) };
        let found = pages.in_force(base)?;
        self.copies_differ = found.copies_differ();
        pages.envelope = found.envelope;
        Ok(&pages.envelope)
    }

    /// Whether the copies of the envelope were not equal when last read, and this handle may mend
    /// that.
    pub(crate) fn wants_mending(&self) -> bool {
        // Before the first commit they are not equal, and that commit writes both.
        let has_pages = self.envelope().is_some_and(|envelope| envelope.has_pages);
        has_pages && self.copies_differ && !self.wishes.read_only && !self.is_read_only()
    }

    /// Writes the envelope in force over the other copy, if that is another one: a change of
    /// protectors was cut off, or the copy was damaged. The caller has shut out all others who
    /// write the envelope.
    pub(crate) fn mend(&mut self, base: &impl Storage) -> Result<()> {
        let State::Encrypted(pages) = &mut self.state else { return Ok(()) };
        let found = pages.in_force(base)?;
        let slots = Slots::decode(&pages.keyring, &found.header)?;
        // Where a log may be in use, only that one's begin or checkpoint may say what belongs to
        // it.
        let may_have_log = slots.all_are_bad() && pages.has_log(base)?;
        if !may_have_log {
            slots.mend(base, &pages.keyring)?;
        }
        if !found.copies_differ() {
            self.copies_differ = false;
            pages.envelope = found.envelope;
            return Ok(());
        }
        let other = REGION_LEN - found.at;
        let stale = Unverified::decode(&found.header[other..other + COPY_LEN]);
        if let Err(Error::FormatTooNew { .. }) = stale {
            // Not ours to judge.
            self.copies_differ = false;
            return Ok(());
        }
        put(base, &found.header[found.at..found.at + COPY_LEN], other)?;
        pages.newest.wrote(&found.envelope);
        self.copies_differ = false;
        let stale = stale.and_then(|copy| pages.keyring.verify(copy));
        let in_force = &found.envelope.protectors;
        let gone = |record: &ProtectorRecord| !in_force.iter().any(|new| new.is_same_wrap(record));
        let gone: Vec<_> =
            stale.into_iter().flat_map(|copy| copy.protectors).filter(gone).collect();
        for record in &gone {
            pages.keyring.took_back(record);
            self.wishes.protectors.auditor.note(&Event {
                file_id: Some(&found.envelope.file_id),
                detail: Some("ends; it had been cut off"),
                ..about(EventKind::RemoveProtector, record)
            });
        }
        let names = |record: &ProtectorRecord| in_force.iter().any(|new| new.name == record.name);
        self.finished.extend(gone.into_iter().filter(|record| !names(record)));
        pages.envelope = found.envelope;
        log(
            ffi::SQLITE_NOTICE,
            "sqlite-tde: the copies of the envelope differed, and are equal again",
        );
        Ok(())
    }

    /// Finds out through which protector this file is open now, if its own is there no more, has
    /// ended, or was wrapped anew by somebody else. It takes any that gives the keys, as they are
    /// in use already.
    pub(crate) fn settle_protector(&mut self, base: &impl Storage) -> Result<()> {
        self.refresh_envelope(base)?;
        let State::Encrypted(pages) = &mut self.state else { return Err(Error::NotEncrypted) };
        if pages.serves() {
            return Ok(());
        }
        let anyone = Wishes { protector: None, ..self.wishes.clone() };
        pages.unlock(base, &anyone)
    }

    /// Takes note that the protector `old` has become `new`.
    pub(crate) fn protector_became(&mut self, old: &ProtectorRecord, new: &ProtectorRecord) {
        if let State::Encrypted(pages) = &mut self.state {
            pages.keyring.took_back(old);
            if pages.through == old.name {
                pages.through.clone_from(&new.name);
            }
        }
    }

    /// Changes the envelope on disk. The caller has shut out all others who may.
    ///
    /// # Errors
    /// Those of `change` and of the base VFS; nothing has changed then. [`Error::Unfinished`] where
    /// that cannot be told.
    pub(crate) fn change_envelope<T>(
        &mut self,
        base: &impl Storage,
        change: impl FnOnce(&mut Envelope) -> Result<T>,
    ) -> Result<T> {
        let State::Encrypted(pages) = &mut self.state else { return Err(Error::NotEncrypted) };
        let (before, in_use) = pages.current(base)?;
        let mut envelope = before.clone();
        let answer = change(&mut envelope)?;
        envelope.generation += 1;
        // After an error they may.
        self.copies_differ = true;
        let written = write(base, &pages.keyring, (&before, in_use), &envelope)?;
        self.copies_differ = written == Written::One;
        pages.newest.wrote(&envelope);
        if envelope.has_pages {
            pages.newest.committed();
        }
        pages.envelope = envelope;
        Ok(answer)
    }

    /// Whether the copies of the envelope were not equal when last read or written.
    pub(crate) fn copies_differ(&self) -> bool {
        self.copies_differ
    }

    /// The copies of the envelope that fail authentication, and those that are older than the other
    /// one.
    pub(crate) fn faulty_copies(&self, base: &impl Storage) -> Result<(Vec<char>, Vec<char>)> {
        match &self.state {
            State::Encrypted(pages) => faulty_copies(base, pages),
            State::Empty(_) | State::Plain => Err(Error::NotEncrypted),
        }
    }

    /// The protectors that only an older copy of the envelope has: each of them still opens the
    /// database for who has other software.
    pub(crate) fn cut_off_protectors(&self, base: &impl Storage) -> Result<Vec<ProtectorRecord>> {
        let State::Encrypted(pages) = &self.state else { return Err(Error::NotEncrypted) };
        let found = pages.in_force(base)?;
        let other = REGION_LEN - found.at;
        let stale = Unverified::decode(&found.header[other..other + COPY_LEN]);
        let stale = stale.and_then(|copy| pages.keyring.verify(copy));
        let new = |record: &ProtectorRecord| {
            found.envelope.protectors.iter().any(|new| new.is_same_wrap(record))
        };
        let all = stale.into_iter().flat_map(|copy| copy.protectors);
        Ok(all.filter(|record| !new(record)).collect())
    }

    /// Forgets the keys in this process: the next transaction asks the provider for them.
    pub(crate) fn lock_keys(&self) -> Result<()> {
        let State::Encrypted(pages) = &self.state else { return Err(Error::NotEncrypted) };
        pages.keyring.lock(Loss::Request);
        let forgotten = self.wishes.protectors.forget();
        let file_id = Some(pages.keyring.file_id());
        self.auditor().note(&Event { file_id, ..Event::new(EventKind::Lock) });
        Ok(forgotten?)
    }

    /// What is told to the audit log about this file.
    pub(crate) fn auditor(&self) -> &Auditor {
        &self.wishes.protectors.auditor
    }

    /// Records, once for this handle, that something in the file is not what was written there.
    pub(crate) fn note_tampering(&mut self, error: &Error) {
        if let Error::JournalAuthentication { record } = error {
            self.failed_record = Some(*record);
        }
        if !is_tampering(error) || std::mem::replace(&mut self.tampering_noted, true) {
            return;
        }
        let (file_id, words) =
            (self.keyring().map(|keyring| *keyring.file_id()), error.to_string());
        self.auditor().note(&Event {
            file_id: file_id.as_ref(),
            outcome: Err(&words),
            ..Event::new(EventKind::Tamper)
        });
    }

    /// Within a transaction, at each read and write: starts asking the provider where it is time
    /// to, and does not wait for it.
    ///
    /// # Errors
    /// As [`MainDb::check_transaction`].
    #[inline]
    pub(crate) fn watch(&self, base: &impl Storage) -> Result<()> {
        let State::Encrypted(pages) = &self.state else { return Ok(()) };
        let keyring = &pages.keyring;
        if pages.began == keyring.lockings() && !keyring.access.is_due() {
            return Ok(());
        }
        self.look_closer(base)
    }

    #[cold]
    fn look_closer(&self, base: &impl Storage) -> Result<()> {
        // Once the keys are locked, this transaction has no part in who asks for them next.
        self.check_transaction()?;
        let State::Encrypted(pages) = &self.state else { return Ok(()) };
        let protectors = &self.wishes.protectors;
        let wanted = self.wishes.protector.as_deref();
        if pages.keyring.standing(&protectors.access, wanted)? == Standing::Due {
            pages.ask(base, protectors, Asker::HoldsLocks);
            return self.check_transaction();
        }
        Ok(())
    }

    /// A transaction begins, with the keys that are here.
    pub(crate) fn transaction_begins(&mut self) {
        self.undoing = false;
        self.commit_refused = false;
        if let State::Encrypted(pages) = &mut self.state {
            pages.began = pages.lockings.get();
        }
    }

    /// Refuses to go on with a transaction that began before the keys were locked, whoever got them
    /// back since.
    ///
    /// # Errors
    /// [`Error::Inaccessible`].
    pub(crate) fn check_transaction(&self) -> Result<()> {
        let State::Encrypted(pages) = &self.state else { return Ok(()) };
        if pages.began == pages.keyring.lockings() {
            return Ok(());
        }
        Err(Error::Inaccessible(pages.keyring.access.loss().unwrap_or_else(|| {
            "its keys were locked since this transaction began, and are back: roll it back, and \
             begin anew"
                .into()
        })))
    }

    /// As [`MainDb::watch`], before a commit. SQLite rolls back what is refused here, and asks once
    /// more at the end of that. It does not read a journal in memory from a file, so the second
    /// question tells of the rollback.
    pub(crate) fn check_commit(&mut self, base: &impl Storage) -> Result<()> {
        if self.rolling_back || self.undoing || self.commit_refused {
            return Ok(());
        }
        let checked = self.watch(base);
        self.commit_refused = checked.is_err();
        checked
    }

    /// Whether a read of `len` bytes at `at`, while SQLite holds no lock, begins a transaction.
    /// SQLite takes none with `nolock=1` and `immutable=1`. It then begins with page 1, or with a
    /// look whether its cache still holds; of a file that never changes, it reads what it has not
    /// read before.
    pub(crate) fn begins_without_lock(&self, at: u64, len: usize) -> bool {
        self.wishes.read_only || at == 0 || (at, len) == CHANGE_COUNTER
    }

    /// Looks for newer versions of the protectors' keys.
    pub(crate) fn look_for_newer(&self) {
        if let State::Encrypted(pages) = &self.state {
            pages.keyring.look_for_newer(&self.wishes.protectors, &pages.envelope);
        }
    }

    /// The protectors as the file names them, and what their wrapping is bound to. Nothing of it is
    /// authenticated.
    pub(crate) fn unverified_protectors(
        &self,
        base: &impl Storage,
    ) -> Result<(Vec<ProtectorRecord>, Context)> {
        let copies = envelope::candidates(&read_copies(base)?)?;
        let copy = copies.first().ok_or(Error::NotEncrypted)?;
        let context = Context { file_id: copy.file_id(), dek_version: copy.current().0 };
        Ok((copy.protectors().to_vec(), context))
    }

    /// Notes that this connection has removed a protector.
    pub(crate) fn removed(&mut self, record: &ProtectorRecord) {
        if let State::Encrypted(pages) = &self.state {
            pages.keyring.took_back(record);
        }
        self.removed.push(record.clone());
    }

    /// Whether this connection has finished the removal of the protector called `name`, which had
    /// been cut off.
    pub(crate) fn has_finished(&self, name: &str) -> bool {
        self.finished.iter().any(|record| matches(record, Some(name)))
    }

    /// Whether this connection has removed the protector called `name`.
    pub(crate) fn has_removed(&self, name: &str) -> bool {
        self.removed.iter().any(|record| matches(record, Some(name)))
    }

    /// Whether page 1 says that the database is in WAL mode. Who asks holds a SHARED lock, beside
    /// which a checkpoint may write the page.
    pub(crate) fn is_in_wal_mode(&mut self, base: &impl Storage) -> Result<bool> {
        let State::Encrypted(pages) = &mut self.state else { return Ok(false) };
        for _ in 0..ATTEMPTS {
            match pages.load(base, 1)? {
                Found::Good => return Ok(pages.says_wal()),
                Found::Missing => return Ok(false),
                Found::Bad => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        }
        Err(Error::PageAuthentication { page: 1 })
    }

    /// When this file was opened, in Unix seconds.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// The protector through which this file was opened.
    pub(crate) fn through(&self) -> Option<&str> {
        match &self.state {
            State::Encrypted(pages) => Some(&pages.through),
            State::Empty(_) | State::Plain => None,
        }
    }

    /// Whether the protector through which this file was opened allows no more than reading.
    pub(crate) fn is_read_only(&self) -> bool {
        let State::Encrypted(pages) = &self.state else { return false };
        let through = pages.envelope.protectors.iter().find(|record| record.name == pages.through);
        through.is_some_and(|record| record.read_only)
    }

    /// Whether nothing is ever written to the file through this handle.
    pub(crate) fn is_never_written(&self) -> bool {
        self.wishes.read_only
    }

    /// Refuses to change what is never written.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.wishes.read_only {
            return Err(Error::ReadOnly("the database was opened for reading alone".into()));
        }
        self.check_rights()
    }

    /// Refuses to change what may only be read. SQLite knows that of a file that was opened so; the
    /// protector that gives the keys after they were locked may be another one.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub(crate) fn check_rights(&self) -> Result<()> {
        if self.is_read_only() {
            return Err(Error::ReadOnly(format!(
                "the database is open through protector {}, which may only read",
                self.through().unwrap_or_default().escape_debug()
            )));
        }
        Ok(())
    }

    /// The providers known here, and how they are asked.
    pub(crate) fn protectors(&self) -> &Protectors {
        &self.wishes.protectors
    }
}

/// Who asks the providers.
#[derive(Clone, Copy)]
enum Asker {
    MayWait,
    /// Others may wait for locks that it holds.
    HoldsLocks,
}

impl Pages {
    /// Whether the protector through which this file is open has given the keys that are here: they
    /// may have been locked, and given back through another one.
    fn is_open(&self) -> bool {
        let lockings = self.keyring.lockings();
        let given = || {
            let mut records = self.envelope.protectors.iter();
            records.any(|record| record.name == self.through && self.keyring.was_given_by(record))
        };
        if self.lockings.get() == lockings || given() {
            self.lockings.set(lockings);
            return true;
        }
        false
    }

    /// Whether the protector through which this file is open is in the envelope as it gave the
    /// keys, and has not ended.
    fn serves(&self) -> bool {
        let gives = |record: &ProtectorRecord| {
            self.keyring.was_given_by(record) && check_time(record).is_ok()
        };
        let mut records = self.envelope.protectors.iter();
        records.any(|record| record.name == self.through && gives(record))
    }

    /// The envelope in force, which is not older than what was seen before.
    fn in_force(&self, base: &impl Storage) -> Result<InForce> {
        let known = self.newest.known();
        let found = in_force(base, &self.keyring)?;
        self.newest.admit(known.as_deref(), &found.envelope, !found.copies_differ())?;
        Ok(found)
    }

    /// The envelope in force, as [`Pages::in_force`], and where its copy begins.
    pub(super) fn current(&self, base: &impl Storage) -> Result<(Envelope, usize)> {
        self.in_force(base).map(|found| (found.envelope, found.at))
    }

    /// Asks the providers on a thread of its own, so that no transaction waits. Where there is no
    /// thread to be had, it asks them here if `asker` may wait.
    fn ask(&self, base: &impl Storage, protectors: &Protectors, asker: Asker) {
        let keyring = &self.keyring;
        let envelope = match self.current(base) {
            Ok((envelope, _)) => envelope,
            // No protector of a damaged or older envelope counts: that is no answer.
            Err(error) => return keyring.unanswered(protectors, error.to_string()),
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
                keyring.unanswered(protectors, format!("no thread to ask the provider: {error}"));
            }
        }
    }

    /// Asks the provider for the keys that were locked.
    fn unlock(&mut self, base: &impl Storage, wishes: &Wishes) -> Result<()> {
        let lockings = self.keyring.lockings();
        let mut opening =
            Opening::new(&wishes.protectors, wishes.protector.as_deref(), wishes.file_id);
        let known = self.newest.known();
        let open = |header: &[u8], _| {
            let opened = opening.open(&envelope::candidates(header)?)?;
            if !Arc::ptr_eq(&opened.keyring, &self.keyring) {
                return Err(Error::EnvelopeDamaged("the file is another database now".into()));
            }
            let whole = envelope::copies_are_equal(header);
            self.newest.admit(known.as_deref(), &opened.envelope, whole)?;
            Ok(opened)
        };
        let opened = steadily(base, open)
            .map_err(|error| self.keyring.access.refused(error, wishes.protector.as_deref()))?;
        self.envelope = opened.envelope;
        self.through = opened.through;
        self.lockings.set(lockings);
        Ok(())
    }
}

fn read_copies(base: &impl Storage) -> Result<Vec<u8>> {
    let mut header = vec![0; ENVELOPE_LEN];
    base.read_whole(&mut header, 0)?;
    Ok(header)
}

/// Answers what `look` finds in the first [`ENVELOPE_LEN`] bytes of the file, or all where it has
/// fewer, and the length of the file. Another process may be writing the envelope: where `look`
/// fails, it gets another try for as long as the bytes change.
pub(super) fn steadily<T>(
    base: &impl Storage,
    mut look: impl FnMut(&[u8], u64) -> Result<T>,
) -> Result<T> {
    let mut before: Option<Vec<u8>> = None;
    let mut attempt = 1;
    loop {
        let len = base.size()?;
        let mut header = [0; ENVELOPE_LEN];
        let header = &mut header[..ENVELOPE_LEN.min(usize::try_from(len).unwrap_or(ENVELOPE_LEN))];
        if len > 0 {
            base.read(header, 0)?;
        }
        match look(header, len) {
            Err(_) if attempt < ATTEMPTS && before.as_deref() != Some(header) => {
                before = Some(header.to_vec());
                attempt += 1;
                std::thread::sleep(PAUSE);
            }
            answer => return answer,
        }
    }
}

/// The envelope in force.
struct InForce {
    envelope: Envelope,
    /// Where its copy begins.
    at: usize,
    /// Both copies, as they were read.
    header: Vec<u8>,
}

impl InForce {
    fn copies_differ(&self) -> bool {
        !envelope::copies_are_equal(&self.header)
    }
}

fn in_force(base: &impl Storage, keyring: &Keyring) -> Result<InForce> {
    let mut before = Vec::new();
    for _ in 0..ATTEMPTS {
        let header = read_copies(base)?;
        let mut best: Option<(Envelope, usize)> = None;
        for at in [0, REGION_LEN] {
            let copy = Unverified::decode(&header[at..at + COPY_LEN]);
            match copy.and_then(|copy| keyring.verify(copy)) {
                Ok(envelope)
                    if best.as_ref().is_none_or(|(b, _)| b.generation < envelope.generation) =>
                {
                    best = Some((envelope, at));
                }
                Err(error @ Error::Inaccessible(_)) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        if let Some((envelope, at)) = best {
            return Ok(InForce { envelope, at, header });
        }
        // Nobody is writing: it stays as bad as it is.
        if header == before {
            break;
        }
        before = header;
        std::thread::sleep(PAUSE);
    }
    Err(Error::EnvelopeDamaged("neither copy is this database's".into()))
}

/// The copies of the envelope that fail authentication, and those that are older than the other
/// one, or than what this process has seen. While another process writes them, that passes.
pub(super) fn faulty_copies(base: &impl Storage, pages: &Pages) -> Result<(Vec<char>, Vec<char>)> {
    const LOOKS: usize = 10;
    let keyring = &pages.keyring;
    let known = pages.newest.known().map_or(0, |known| known.generation);
    let (mut bad, mut stale, mut before) = (Vec::new(), Vec::new(), Vec::new());
    for look in 0..LOOKS {
        if look > 0 {
            // A read that meets a write is torn for microseconds; between the two writes is a sync.
            std::thread::sleep(if bad.is_empty() { 10 * PAUSE } else { PAUSE / 10 });
        }
        (bad, stale) = (Vec::new(), Vec::new());
        let header = read_copies(base)?;
        let mut newest = None;
        for (at, name) in [(0, 'A'), (REGION_LEN, 'B')] {
            let copy = Unverified::decode(&header[at..at + COPY_LEN]);
            if Slots::decode(keyring, &header)?.is_bad(at) {
                bad.push(name);
                continue;
            }
            match copy.and_then(|copy| keyring.verify(copy)) {
                Ok(copy) if copy.generation < known => stale.push(name),
                Ok(copy) => match &newest {
                    None => newest = Some((copy.generation, name)),
                    Some((generation, first)) if copy.generation > *generation => {
                        stale.push(*first)
                    }
                    Some(_) => stale.push(name),
                },
                Err(error @ Error::Inaccessible(_)) => return Err(error),
                Err(_) => bad.push(name),
            }
        }
        if newest.is_some() && envelope::copies_are_equal(&header) {
            stale.clear();
        }
        let is_as_before = header == before;
        if bad.is_empty() && stale.is_empty() || !bad.is_empty() && is_as_before {
            break;
        }
        before = header;
    }
    Ok((bad, stale))
}

/// Where a new envelope went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Both,
    /// The other copy still has what was before.
    One,
}

fn put(base: &impl Storage, copy: &[u8], at: usize) -> Result<()> {
    base.write(copy, at as u64).and_then(|()| base.sync())
}

/// Writes both copies of `new`, the one not in use first. After an error it takes the change back,
/// so that nothing has changed. `before` is the envelope in force, and where its copy begins.
///
/// # Errors
/// [`Error::Unfinished`] where the disk lets it neither complete the change nor take it back.
fn write(
    base: &impl Storage,
    keyring: &Keyring,
    before: (&Envelope, usize),
    new: &Envelope,
) -> Result<Written> {
    let (old, in_use) = before;
    let copy = keyring.encode(new)?;
    // Once both copies were written others may have seen the new envelope, and take one with a
    // smaller number for an older one that was put back.
    let undo = Envelope { generation: new.generation + 1, ..old.clone() };
    let undo = keyring.encode(&undo)?;
    let (first, second) = (REGION_LEN - in_use, in_use);
    write_first(base, &copy, first)?;
    let Err(error) = put(base, &copy, second) else { return Ok(Written::Both) };
    // One after the other, so that one of them is whole meanwhile, too. One is enough: it is newer.
    let undone = [second, first].map(|at| put(base, &undo, at).is_ok());
    if undone.contains(&true) {
        return Err(error);
    }
    match in_force(base, keyring) {
        Ok(found) if found.envelope == *new => {
            log(error.sqlite_code(), "sqlite-tde: one copy of the envelope could not be written");
            Ok(Written::One)
        }
        _ => Err(unfinished(&error)),
    }
}

/// Writes the first copy of a change. After an error it puts back what was there: only this copy
/// ever had another number.
fn write_first(base: &impl Storage, copy: &[u8], at: usize) -> Result<()> {
    let before = read_copies(base)?;
    let written = base.write(copy, at as u64);
    // What a failed sync has left on the disk cannot be read; a failed write is seen.
    let was_written = written.is_ok();
    let Err(error) = written.and_then(|()| base.sync()) else { return Ok(()) };
    if put(base, &before[at..at + COPY_LEN], at).is_ok() {
        return Err(error);
    }
    let is_as_before = read_copies(base).is_ok_and(|now| now == before);
    Err(if !was_written && is_as_before { error } else { unfinished(&error) })
}

/// That a change failed, and nobody can tell whether it stands.
fn unfinished(error: &Error) -> Error {
    Error::Unfinished(format!(
        "the change may stand or not, for it could be neither completed nor taken back ({error}): \
         keep the old keys and the new ones, and say it again once the disk works"
    ))
}
