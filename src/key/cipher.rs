//! A revocable [`PageCipher`]: its keys are wiped as soon as the keyring is locked, even those of
//! an idle connection.
//!
//! Each connection has the lock of its own slot. Only a call that locks the keyring ever waits for
//! it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keyring::Keyring;
use crate::error::{Error, Result};
use crate::page::{KeyVersion, PageCipher, PageNo, Place};
use crate::suite::Fault;

/// Input to the derivation of a journal's subkey, besides the DEK.
pub(crate) type JournalSalt = [u8; 36];

/// One of a database's subkeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subkey {
    Page,
    Wal,
    Journal { version: KeyVersion, salt: JournalSalt },
}

/// The subkeys of one open file while the keyring is not locked.
pub(super) type Slot = Mutex<Option<PageCipher>>;

/// Seals and opens the blocks of one open file, with keys that the keyring can revoke.
pub(crate) struct Cipher {
    keyring: Arc<Keyring>,
    subkey: Subkey,
    slot: Arc<Slot>,
}

impl Cipher {
    pub(super) fn new(keyring: Arc<Keyring>, subkey: Subkey, slot: Arc<Slot>) -> Self {
        Self { keyring, subkey, slot }
    }

    /// As [`PageCipher::seal`].
    ///
    /// # Errors
    /// [`crate::Error::Inaccessible`] while the keyring is locked; else its own.
    pub(crate) fn seal(
        &self,
        place: impl Into<Place>,
        plain: &[u8],
        block: &mut [u8],
    ) -> Result<()> {
        self.with(|cipher| cipher.seal(place, plain, block))?
    }

    /// As [`PageCipher::open`]: whether `block` is authentic.
    ///
    /// # Errors
    /// [`crate::Error::Inaccessible`] while the keyring is locked, which says nothing of the block.
    pub(crate) fn open(
        &self,
        place: impl Into<Place>,
        block: &[u8],
        plain: &mut [u8],
    ) -> Result<bool> {
        self.with(|cipher| is_authentic(cipher.open(place, block, plain)))?
    }

    /// As [`PageCipher::open_in_place`]: whether `block` is authentic.
    ///
    /// # Errors
    /// [`crate::Error::Inaccessible`] while the keyring is locked, which says nothing of the block.
    pub(crate) fn open_in_place(&self, place: impl Into<Place>, block: &mut [u8]) -> Result<bool> {
        self.with(|cipher| is_authentic(cipher.open_in_place(place, block)))?
    }

    /// As [`PageCipher::open_known`]: whether `block` is authentic.
    ///
    /// # Errors
    /// [`crate::Error::Inaccessible`] while the keyring is locked, which says nothing of the block.
    pub(crate) fn open_known(&self, page: PageNo, block: &mut [u8]) -> Result<bool> {
        self.with(|cipher| is_authentic(cipher.open_known(page, block)))?
    }

    fn with<T>(&self, work: impl FnOnce(&mut PageCipher) -> T) -> Result<T> {
        let mut slot = lock(&self.slot);
        let cipher = match &mut *slot {
            Some(cipher) => cipher,
            // Under the slot's lock, so that a concurrent lock of the keyring finds the new keys.
            empty => empty.insert(PageCipher::new(self.keyring.block_keys(self.subkey)?)),
        };
        Ok(work(cipher))
    }
}

/// Where there is no memory, nothing is said of the block.
fn is_authentic(opened: std::result::Result<(), Fault>) -> Result<bool> {
    match opened {
        Ok(()) => Ok(true),
        Err(Fault::Unauthentic) => Ok(false),
        Err(Fault::NoMemory) => Err(Error::NO_MEMORY),
    }
}

/// Also after a panic elsewhere: a slot is consistent between any two calls.
pub(super) fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
