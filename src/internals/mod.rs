//! What benchmarks and fuzzers reach of the crate's inside. Not part of the API: it may change in
//! any release.

#[cfg(feature = "fuzzing")]
mod files;

use std::sync::Arc;

use crate::error::Result;
use crate::key::envelope::{self, Unverified};
use crate::page::{BlockKeys, PageCipher, Purpose, RESERVE};
use crate::secret::Secret;
use crate::suite::{SuiteId, SuiteKey};

#[cfg(feature = "fuzzing")]
pub use files::*;

/// Seals and opens pages under a random key.
pub struct Pages {
    cipher: PageCipher,
    block: Vec<u8>,
}

impl Pages {
    /// Ready for pages of `page_size` bytes.
    ///
    /// # Errors
    /// Where the operating system has no random bytes.
    pub fn new(suite: SuiteId, page_size: usize) -> Result<Self> {
        // As where a VFS is registered.
        crate::vfs::forks::watch();
        let keys = BlockKeys {
            file_id: [1; 16],
            purpose: Purpose::Page,
            current: (1, SuiteKey::new(suite, 1, &Secret::random()?)),
            retired: Vec::new(),
            found: std::sync::Mutex::default(),
        };
        Ok(Self { cipher: PageCipher::new(Arc::new(keys)), block: vec![0; page_size] })
    }

    /// Seals a page of SQLite's as page `number`.
    ///
    /// # Errors
    /// Where the operating system has no random bytes.
    pub fn seal(&mut self, number: u64, page: &[u8]) -> Result<()> {
        self.cipher.seal(number, &page[..page.len() - RESERVE], &mut self.block)
    }

    /// Opens what was sealed last into `page`; whether it authenticated.
    pub fn open(&mut self, number: u64, page: &mut [u8]) -> bool {
        let len = page.len() - RESERVE;
        self.cipher.open(number, &self.block, &mut page[..len]).is_ok()
    }
}

/// Decodes the first bytes of a database file in every way that opening one does, without a key.
pub fn decode_envelope(bytes: &[u8]) {
    let _ = envelope::is_unfinished(bytes, bytes.len() as u64);
    let _ = envelope::candidates(bytes);
    if let Ok(copy) = Unverified::decode(bytes)
        && let Some(key) = Secret::from_slice(&[0; 32])
    {
        let _ = copy.verify(&key);
    }
}
