//! The newest envelope that this process has seen in a file. An older one in its place is a replay,
//! which brings back protectors that were removed since.
//!
//! All connections of the process to one file share a [`Newest`], which ends with the last of them.
//! A file that is restored while no connection has it open is therefore accepted. A copy of the
//! file is another file and may be older, and so may one that was renamed to the name of an open
//! file.

use std::sync::{Arc, Mutex};

use super::cipher::lock;
use super::envelope::Envelope;
use crate::error::{Error, Result};

/// Identity of a file in the operating system: device and inode.
pub(crate) type FileKey = (u64, u64);

/// The state that the handles of one file share.
#[derive(Default)]
pub(crate) struct Newest(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    envelope: Option<Arc<Envelope>>,
    /// A transaction was committed to the file. Before that a creation that is rolled back empties
    /// it, and the next one begins at the first generation.
    committed: bool,
    /// The slots as last read without damage.
    slots: Option<Vec<u8>>,
}

impl Newest {
    /// The newest envelope seen so far, to be taken before the file is read: another thread may
    /// write the next one meanwhile. `None` while the file may still be a creation that is given
    /// up.
    pub(crate) fn known(&self) -> Option<Arc<Envelope>> {
        let seen = lock(&self.0);
        seen.envelope.clone().filter(|_| seen.committed)
    }

    /// Notes `found`, the envelope in force. If only one copy of the file has it (`whole` is
    /// false), its writer has not finished and may still undo the change, so it is not noted. Where
    /// both had it, the undo has a higher number than the change.
    ///
    /// # Errors
    /// [`Error::EnvelopeOutdated`] if `found` is older than `known`, or another envelope of the
    /// same generation.
    pub(crate) fn admit(
        &self,
        known: Option<&Envelope>,
        found: &Arc<Envelope>,
        whole: bool,
    ) -> Result<()> {
        if let Some(known) = known
            && (found.generation < known.generation
                || found.generation == known.generation && **found != *known)
        {
            let (known, found) = (known.generation, found.generation);
            return Err(Error::EnvelopeOutdated { known, found });
        }
        let mut seen = lock(&self.0);
        let newer = |seen: &Arc<Envelope>| seen.generation < found.generation;
        if whole && (!seen.committed || seen.envelope.as_ref().is_none_or(newer)) {
            seen.envelope = Some(Arc::clone(found));
        }
        Ok(())
    }

    /// Notes the envelope that this process has just written.
    pub(crate) fn wrote(&self, envelope: &Arc<Envelope>) {
        lock(&self.0).envelope = Some(Arc::clone(envelope));
    }

    /// A transaction was committed to the file.
    pub(crate) fn committed(&self) {
        lock(&self.0).committed = true;
    }

    /// Whether a commit is known to the handles of the file.
    pub(crate) fn is_committed(&self) -> bool {
        lock(&self.0).committed
    }

    /// Whether `bytes` are those of the slots when none was damaged.
    pub(crate) fn has_slots(&self, bytes: &[u8]) -> bool {
        lock(&self.0).slots.as_deref() == Some(bytes)
    }

    pub(crate) fn note_slots(&self, bytes: Vec<u8>) {
        lock(&self.0).slots = Some(bytes);
    }

    /// The file was emptied: its creation is given up.
    pub(crate) fn start_over(&self) {
        *lock(&self.0) = Seen::default();
    }
}

/// [`Newest`] by file, for as long as a handle of the file has it.
#[derive(Default)]
pub(super) struct NewestByFile(Mutex<Vec<(FileKey, std::sync::Weak<Newest>)>>);

impl NewestByFile {
    /// The shared state of `file`; a private one if the file cannot be identified.
    pub(super) fn of(&self, file: Option<FileKey>) -> Arc<Newest> {
        let Some(file) = file else { return Arc::default() };
        let mut all = lock(&self.0);
        all.retain(|(_, newest)| newest.strong_count() > 0);
        let there = all.iter().find(|(key, _)| *key == file).and_then(|(_, it)| it.upgrade());
        there.unwrap_or_else(|| {
            let newest = Arc::default();
            all.push((file, Arc::downgrade(&newest)));
            newest
        })
    }
}
