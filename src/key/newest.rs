//! The newest envelope that this process has seen in a file: an older one in its place was put back,
//! and with it protectors that were removed since.
//!
//! The connections of the process to one file share it, for as long as one of them is open. A copy
//! of the file, and a file that was moved to its name, are files of their own: each may be older. So
//! is a file that was restored while nothing had it open.

use std::sync::{Arc, Mutex};

use super::cipher::lock;
use super::envelope::Envelope;
use crate::error::{Error, Result};

/// A file of the operating system, whatever its names are: device and inode.
pub(crate) type FileKey = (u64, u64);

/// What the handles of one file have seen.
#[derive(Default)]
pub(crate) struct Newest(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    envelope: Option<Envelope>,
    /// A transaction was committed to the file. Before that a creation that is rolled back empties
    /// it, and the next one begins at the first generation.
    committed: bool,
}

impl Newest {
    /// Takes note of the envelope `found`, which is in force. `whole` says that both copies have it:
    /// where one does not, the change was not finished, and may still be undone.
    ///
    /// # Errors
    /// [`Error::EnvelopeOutdated`] where a newer one, or another one of that number, was seen.
    pub(crate) fn admit(&self, found: &Envelope, whole: bool) -> Result<()> {
        let mut seen = lock(&self.0);
        if let (Some(known), true) = (&seen.envelope, seen.committed) {
            let another = found.generation == known.generation && found != known;
            if found.generation < known.generation || another {
                return Err(Error::EnvelopeOutdated {
                    known: known.generation,
                    found: found.generation,
                });
            }
        }
        if whole {
            seen.envelope = Some(found.clone());
        }
        Ok(())
    }

    /// Takes note of the envelope that this process has written.
    pub(crate) fn wrote(&self, envelope: &Envelope) {
        lock(&self.0).envelope = Some(envelope.clone());
    }

    /// A transaction was committed to the file.
    pub(crate) fn committed(&self) {
        lock(&self.0).committed = true;
    }

    /// The file was emptied: its creation is given up.
    pub(crate) fn start_over(&self) {
        *lock(&self.0) = Seen::default();
    }

    /// The generation below which an envelope is an older one; 0 where none is known.
    pub(crate) fn generation(&self) -> u64 {
        let seen = lock(&self.0);
        if seen.committed { seen.envelope.as_ref().map_or(0, |known| known.generation) } else { 0 }
    }
}

/// [`Newest`] by file, for as long as a handle of the file has it.
#[derive(Default)]
pub(super) struct NewestByFile(Mutex<Vec<(FileKey, std::sync::Weak<Newest>)>>);

impl NewestByFile {
    /// What the handles of `file` share; that of one handle where the file cannot be told from
    /// others.
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
