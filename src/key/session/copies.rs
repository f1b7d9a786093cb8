//! The two copies of the envelope on disk.
//!
//! ```text
//!   the copy not in use <- new, sync;   the copy in use <- new, sync
//! ```
//! At each moment one copy is whole: the one before or the one after. The second write removes the
//! last record of a removed protector. If a crash came between the two, the newer copy is in force,
//! and [`Session::mend`] writes it over the other one as soon as the database is opened for
//! writing.

use std::time::Duration;

use crate::ffi;

use super::Session;
use crate::audit::{Event, EventKind};
use crate::error::{Error, Result, log};
use crate::io::Storage;
use crate::key::auditor::about;
use crate::key::envelope::slots::Slots;
use crate::key::envelope::{
    self, COPY_LEN, ENVELOPE_LEN, Envelope, ProtectorRecord, REGION_LEN, Unverified,
};
use crate::key::keyring::Keyring;
use crate::provider::Context;

/// Attempts at reading. A read that meets a copy in the middle of its write finds the other one.
pub(crate) const ATTEMPTS: usize = 5;
/// Pause between two attempts.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

impl Session {
    /// The envelope as it is on disk now: another connection may have written it since.
    pub(crate) fn refresh_envelope(&mut self, base: &impl Storage) -> Result<&Envelope> {
        let found = self.in_force(base)?;
        self.copies_differ = found.copies_differ();
        self.envelope = found.envelope;
        Ok(&self.envelope)
    }

    /// The envelope in force, which is not older than the newest one seen.
    pub(super) fn in_force(&self, base: &impl Storage) -> Result<InForce> {
        let known = self.newest.known();
        let found = in_force(base, &self.keyring)?;
        self.newest.admit(known.as_deref(), &found.envelope, !found.copies_differ())?;
        Ok(found)
    }

    /// Whether the copies of the envelope were not equal when last read or written.
    pub(crate) fn copies_differ(&self) -> bool {
        self.copies_differ
    }

    /// Whether the copies were not equal when last read, and this session may repair them.
    pub(crate) fn wants_mending(&self) -> bool {
        // Before the first commit they are not equal, and that commit writes both.
        self.envelope.has_pages && self.copies_differ && self.check_writable().is_ok()
    }

    /// Writes the envelope in force over the other copy, if that differs: a change of protectors
    /// was interrupted, or the copy was damaged. The caller excludes all other envelope writers.
    /// `has_log`: the database may have a log.
    pub(crate) fn mend(
        &mut self,
        base: &impl Storage,
        has_log: impl FnOnce() -> Result<bool>,
    ) -> Result<()> {
        let found = self.in_force(base)?;
        let slots = Slots::decode(&self.keyring, &found.header)?;
        // If a log may be in use, only its begin or checkpoint may set its state.
        if !(slots.all_are_bad() && has_log()?) {
            slots.mend(base, &self.keyring)?;
        }
        self.copies_differ = false;
        if !found.copies_differ() {
            self.envelope = found.envelope;
            return Ok(());
        }
        let stale = found.other_copy();
        if let Err(Error::FormatTooNew { .. }) = stale {
            // Not for this session to judge.
            return Ok(());
        }
        self.copies_differ = true;
        put(base, &found.header[found.at..found.at + COPY_LEN], REGION_LEN - found.at)?;
        self.newest.wrote(&found.envelope);
        self.copies_differ = false;
        let in_force = &found.envelope.protectors;
        let gone = found.only_in(stale.and_then(|copy| self.keyring.verify(copy)));
        for record in &gone {
            self.keyring.took_back(record);
            self.auditor().note(&Event {
                file_id: Some(&found.envelope.file_id),
                detail: Some("ends; it had been cut off"),
                ..about(EventKind::RemoveProtector, record)
            });
        }
        let names = |record: &ProtectorRecord| in_force.iter().any(|new| new.name == record.name);
        self.finished.extend(gone.into_iter().filter(|record| !names(record)));
        self.envelope = found.envelope;
        log(ffi::SQLITE_NOTICE, "sqlite-tde: repaired: the envelope copies differed");
        Ok(())
    }

    /// Changes the envelope on disk. The caller excludes all other envelope writers.
    ///
    /// # Errors
    /// Those of `change` and of the base VFS; nothing has changed then. [`Error::Unfinished`] if
    /// that is unknown.
    pub(crate) fn change_envelope<T>(
        &mut self,
        base: &impl Storage,
        change: impl FnOnce(&mut Envelope) -> Result<T>,
    ) -> Result<T> {
        let InForce { envelope: before, at: in_use, .. } = self.in_force(base)?;
        let mut envelope = before.clone();
        let answer = change(&mut envelope)?;
        envelope.generation += 1;
        // After an error the copies may differ.
        self.copies_differ = true;
        let written = write(base, &self.keyring, (&before, in_use), &envelope)?;
        self.copies_differ = written == Written::One;
        self.newest.wrote(&envelope);
        if envelope.has_pages {
            self.newest.committed();
        }
        self.envelope = envelope;
        Ok(answer)
    }

    /// Marks, before the first commit, that the database has pages. The sync that follows is
    /// SQLite's own, if it syncs at all.
    pub(crate) fn commit_creation(&mut self, base: &impl Storage) -> Result<()> {
        // If a crash left it so, another connection may have changed the protectors since.
        let InForce { mut envelope, at: in_use, .. } = self.in_force(base)?;
        envelope.has_pages = true;
        envelope.generation += 1;
        let copy = self.keyring.encode(&envelope)?;
        base.write(&copy, (REGION_LEN - in_use) as u64)?;
        base.sync()?;
        base.write(&copy, in_use as u64)?;
        self.newest.wrote(&envelope);
        self.envelope = envelope;
        self.committed = true;
        Ok(())
    }

    /// The protectors that only an older copy of the envelope has: each of them still opens the
    /// database with other software.
    pub(crate) fn cut_off_protectors(&self, base: &impl Storage) -> Result<Vec<ProtectorRecord>> {
        let found = self.in_force(base)?;
        Ok(found.only_in(found.other_copy().and_then(|copy| self.keyring.verify(copy))))
    }

    /// The copies of the envelope that fail authentication, and those that are older than the other
    /// one, or than what this process has seen. While another process writes them, that passes.
    pub(crate) fn faulty_copies(&self, base: &impl Storage) -> Result<(Vec<char>, Vec<char>)> {
        const LOOKS: usize = 10;
        let keyring = &self.keyring;
        let known = self.newest.known().map_or(0, |known| known.generation);
        let (mut bad, mut stale, mut before) = (Vec::new(), Vec::new(), Vec::new());
        for look in 0..LOOKS {
            if look > 0 {
                // A read that meets a write is torn for microseconds; between the two writes is a
                // sync.
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
                    Err(error @ Error::Inaccessible { .. }) => return Err(error),
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
}

/// The protectors as the file names them, and their context. Nothing of it is authenticated.
pub(crate) fn unverified(base: &impl Storage) -> Result<(Vec<ProtectorRecord>, Context)> {
    let copies = envelope::candidates(&read_copies(base)?)?;
    let copy = copies.first().ok_or(Error::NotEncrypted)?;
    let context = Context { file_id: copy.file_id(), dek_version: copy.current().0 };
    Ok((copy.protectors().to_vec(), context))
}

fn read_copies(base: &impl Storage) -> Result<Vec<u8>> {
    let mut header = vec![0; ENVELOPE_LEN];
    base.read_whole(&mut header, 0)?;
    Ok(header)
}

/// Runs `look` on the first [`ENVELOPE_LEN`] bytes of the file, or all if it has fewer, and the
/// length of the file. Another process may be writing the envelope, so a failing `look` is repeated
/// for as long as the bytes change.
pub(crate) fn steadily<T>(
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
pub(super) struct InForce {
    pub(super) envelope: Envelope,
    /// Offset of its copy.
    at: usize,
    /// Both copies, as they were read.
    header: Vec<u8>,
}

impl InForce {
    fn copies_differ(&self) -> bool {
        !envelope::copies_are_equal(&self.header)
    }

    /// The copy that is not in force.
    fn other_copy(&self) -> Result<Unverified> {
        let other = REGION_LEN - self.at;
        Unverified::decode(&self.header[other..other + COPY_LEN])
    }

    /// The protectors of `copy` that are missing in the envelope in force.
    fn only_in(&self, copy: Result<Envelope>) -> Vec<ProtectorRecord> {
        let all = copy.into_iter().flat_map(|copy| copy.protectors);
        let here = |record: &ProtectorRecord| {
            self.envelope.protectors.iter().any(|new| new.is_same_wrap(record))
        };
        all.filter(|record| !here(record)).collect()
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
                Err(error @ Error::Inaccessible { .. }) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        if let Some((envelope, at)) = best {
            return Ok(InForce { envelope, at, header });
        }
        // No writer is active: the copy stays bad.
        if header == before {
            break;
        }
        before = header;
        std::thread::sleep(PAUSE);
    }
    Err(Error::EnvelopeDamaged("neither copy is this database's".into()))
}

/// The copies that a new envelope was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Both,
    /// The other copy still has the envelope from before.
    One,
}

fn put(base: &impl Storage, copy: &[u8], at: usize) -> Result<()> {
    base.write(copy, at as u64).and_then(|()| base.sync())
}

/// Writes both copies of `new`, the one not in use first. After an error it takes the change back,
/// so that nothing has changed. `before` is the envelope in force, and the offset of its copy.
///
/// # Errors
/// [`Error::Unfinished`] if the disk lets it neither complete the change nor take it back.
fn write(
    base: &impl Storage,
    keyring: &Keyring,
    before: (&Envelope, usize),
    new: &Envelope,
) -> Result<Written> {
    let (old, in_use) = before;
    let copy = keyring.encode(new)?;
    // Once both copies were written others may have seen the new envelope, and take one of a lower
    // generation for a replay.
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
        _ => Err(unfinished(error)),
    }
}

/// Writes the first copy of a change. After an error it restores the copy: no other copy ever had
/// the new generation.
fn write_first(base: &impl Storage, copy: &[u8], at: usize) -> Result<()> {
    let before = read_copies(base)?;
    let written = base.write(copy, at as u64);
    // The effect of a failed sync cannot be read back; that of a failed write can.
    let was_written = written.is_ok();
    let Err(error) = written.and_then(|()| base.sync()) else { return Ok(()) };
    if put(base, &before[at..at + COPY_LEN], at).is_ok() {
        return Err(error);
    }
    let is_as_before = read_copies(base).is_ok_and(|now| now == before);
    Err(if !was_written && is_as_before { error } else { unfinished(error) })
}

/// The error: a change failed, and its state on disk is unknown.
fn unfinished(error: Error) -> Error {
    let reason = format!(
        "unknown whether the change took effect ({error}): keep old and new keys; repeat the \
         command when the disk works"
    );
    Error::Unfinished { reason, source: Some(Box::new(error)) }
}
