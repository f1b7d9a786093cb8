//! The keys of one database while it is open, and the process-wide cache that makes one unwrap
//! serve every connection to it.
//!
//! ```text
//! DEK --HKDF-SHA256(salt = file id, info = label)--> one subkey per purpose
//! ```
//! A journal adds its own 16-byte salt to the label, so each journal has its own key.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use super::envelope::{DekRecord, Envelope, ScanState, Unverified};
use super::protector::{Protectors, matches};
use crate::error::{Error, Result};
use crate::page::{BlockKeys, KeyVersion, Purpose};
use crate::provider::Context;
use crate::secret::{Secret, fill_random};
use crate::suite::{SuiteId, SuiteKey, hkdf};

const PAGE: &[u8] = b"sqlite-tde v1 page";
const WAL: &[u8] = b"sqlite-tde v1 wal";
const JOURNAL: &[u8] = b"sqlite-tde v1 journal";
const ENVELOPE: &[u8] = b"sqlite-tde v1 envelope";

/// Length of a database's file id and of a log's or journal's salt, in bytes.
pub(crate) const ID_LEN: usize = 16;
pub(crate) type FileId = [u8; ID_LEN];

/// Every subkey of one database. Read-only, so connections share it without a lock.
pub(crate) struct Keyring {
    file_id: FileId,
    version: KeyVersion,
    suite: SuiteId,
    dek: Secret,
    page: Arc<BlockKeys>,
    wal: Arc<BlockKeys>,
    mac: Secret,
}

impl Keyring {
    pub(crate) fn new(
        file_id: FileId,
        version: KeyVersion,
        suite: SuiteId,
        dek: Secret,
    ) -> Arc<Self> {
        let blocks = |purpose, label| {
            let subkey = hkdf::derive(&dek, &file_id, &[label]);
            Arc::new(BlockKeys {
                file_id,
                purpose,
                current: (version, SuiteKey::new(suite, &subkey)),
                retired: Vec::new(),
            })
        };
        Arc::new(Self {
            file_id,
            version,
            suite,
            page: blocks(Purpose::Page, PAGE),
            wal: blocks(Purpose::Wal, WAL),
            mac: hkdf::derive(&dek, &file_id, &[ENVELOPE]),
            dek,
        })
    }

    /// A new database: its keyring, and its first envelope, which says nothing of the page size yet.
    pub(crate) fn create(
        protectors: &Protectors,
        protector: Option<&str>,
        suite: SuiteId,
        now: u64,
    ) -> Result<(Arc<Self>, Envelope)> {
        const FIRST: KeyVersion = 1;
        let mut file_id = FileId::default();
        fill_random(&mut file_id)?;
        let dek = Secret::random()?;
        let context = Context { file_id, dek_version: FIRST };
        let record = protectors.wrap(protector, &dek, &context)?;
        let envelope = Envelope {
            generation: 1,
            file_id,
            page_size: 0,
            created: now,
            rotated: 0,
            regenerated: 0,
            scan_state: ScanState::None,
            scan_cursor: 0,
            current: DekRecord { version: FIRST, suite, wrapped: Vec::new() },
            retired: Vec::new(),
            protectors: vec![record],
        };
        Ok((Self::new(file_id, FIRST, suite, dek), envelope))
    }

    /// The keyring of an existing database, from the cache or from a provider, and its envelope.
    ///
    /// `copies` are tried in order; the first error stands where none is good.
    pub(crate) fn open(
        copies: Vec<Unverified>,
        protectors: &Protectors,
        wanted: Option<&str>,
    ) -> Result<(Arc<Self>, Envelope)> {
        let mut first = None;
        for copy in copies {
            match Self::open_copy(copy, protectors, wanted) {
                Ok(found) => return Ok(found),
                Err(error) => _ = first.get_or_insert(error),
            }
        }
        Err(first.unwrap_or_else(|| Error::EnvelopeDamaged("no copy is left".into())))
    }

    fn open_copy(
        copy: Unverified,
        protectors: &Protectors,
        wanted: Option<&str>,
    ) -> Result<(Arc<Self>, Envelope)> {
        let file_id = copy.file_id();
        let allowed = copy.protectors().iter().any(|record| matches(record, wanted));
        if let (true, Some(keyring)) = (allowed, cached(&file_id)) {
            let envelope = copy.verify(&keyring.mac)?;
            return Ok((keyring, envelope));
        }
        let (version, suite) = copy.current();
        let context = Context { file_id, dek_version: version };
        let dek = protectors.unwrap(copy.protectors(), wanted, &context)?;
        let keyring = Self::new(file_id, version, suite, dek);
        let envelope = copy.verify(&keyring.mac)?;
        if !envelope.retired.is_empty() {
            return Err(Error::Unsupported(
                "a key regeneration is under way, which this version cannot continue".into(),
            ));
        }
        remember(&keyring);
        Ok((keyring, envelope))
    }

    /// Makes later opens of the same file find this keyring, for as long as someone holds it.
    pub(crate) fn share(self: &Arc<Self>) {
        remember(self);
    }

    pub(crate) fn page_keys(&self) -> Arc<BlockKeys> {
        Arc::clone(&self.page)
    }

    pub(crate) fn wal_keys(&self) -> Arc<BlockKeys> {
        Arc::clone(&self.wal)
    }

    pub(crate) fn file_id(&self) -> &FileId {
        &self.file_id
    }

    pub(crate) fn mac_key(&self) -> &Secret {
        &self.mac
    }

    pub(crate) fn version(&self) -> KeyVersion {
        self.version
    }

    /// Keys of the journal that carries `salt`; `None` where `version` is not on this ring.
    pub(crate) fn journal_keys(
        &self,
        version: KeyVersion,
        salt: &FileId,
    ) -> Option<Arc<BlockKeys>> {
        if version != self.version {
            return None;
        }
        let subkey = hkdf::derive(&self.dek, &self.file_id, &[JOURNAL, salt]);
        Some(Arc::new(BlockKeys {
            file_id: self.file_id,
            purpose: Purpose::Journal,
            current: (version, SuiteKey::new(self.suite, &subkey)),
            retired: Vec::new(),
        }))
    }
}

/// Keys for a file that only this process reads, and only until it closes it.
pub(crate) fn scratch_keys() -> Result<Arc<BlockKeys>> {
    Ok(Arc::new(BlockKeys {
        file_id: FileId::default(),
        purpose: Purpose::Scratch,
        current: (0, SuiteKey::new(SuiteId::Aes256Gcm, &Secret::random()?)),
        retired: Vec::new(),
    }))
}

static CACHE: LazyLock<Mutex<HashMap<FileId, Weak<Keyring>>>> = LazyLock::new(Mutex::default);

/// The keyring of a database that is open in this process.
pub(crate) fn cached(file_id: &FileId) -> Option<Arc<Keyring>> {
    let cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    cache.get(file_id).and_then(Weak::upgrade)
}

fn remember(keyring: &Arc<Keyring>) {
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    cache.retain(|_, entry| entry.strong_count() > 0);
    cache.insert(keyring.file_id, Arc::downgrade(keyring));
}
