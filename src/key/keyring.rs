//! The keys of one database while it is open, and the process-wide cache that makes one unwrap
//! serve every connection to it.
//!
//! ```text
//! DEK --HKDF-SHA256(salt = file id, info = label)--> one subkey per purpose
//! ```
//! A journal adds its own 16-byte salt to the label, so each journal has its own key.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Instant;

use super::access::{Access, AccessPolicy, Loss, Standing};
use super::auditor::about;
use super::cipher::{Cipher, Slot, Subkey, lock};
use super::envelope::{DekRecord, Envelope, ProtectorRecord, ScanState, Unverified};
use super::protector::{Protectors, check_time, matches, not_wrapped_for};
use crate::audit::{Event, EventKind};
use crate::error::{Error, Result};
use crate::page::{BlockKeys, KeyVersion, Purpose};
use crate::provider::Context;
use crate::secret::{Secret, fill_random};
use crate::suite::hkdf::Extracted;
use crate::suite::{SuiteId, SuiteKey};

const PAGE: &[u8] = b"sqlite-tde v1 page";
const WAL: &[u8] = b"sqlite-tde v1 wal";
const JOURNAL: &[u8] = b"sqlite-tde v1 journal";
const ENVELOPE: &[u8] = b"sqlite-tde v1 envelope";

/// Length of a database's file id and of a log's or journal's salt, in bytes.
pub(crate) const ID_LEN: usize = 16;
pub(crate) type FileId = [u8; ID_LEN];

/// A database encryption key, as an unlocked keyring has it.
pub(crate) struct Dek {
    pub(crate) version: KeyVersion,
    pub(crate) suite: SuiteId,
    pub(crate) key: Secret,
}

/// The keys of one database, or none while it is locked. Connections share it.
///
/// Invariants:
/// 1. Keys come in only behind an envelope whose MAC they verify.
/// 2. While it is locked, no key is left in it, nor in any [`Cipher`] that it gave out.
pub(crate) struct Keyring {
    file_id: FileId,
    unlocked: Mutex<Option<Unlocked>>,
    /// Where keys were given out to.
    slots: Mutex<Vec<Weak<Slot>>>,
    pub(crate) access: Access,
    /// Records that newer ones are to replace, until a connection writes that into the envelope.
    pub(super) pending: Mutex<Vec<(ProtectorRecord, ProtectorRecord)>>,
    /// There may be some: looked at by each transaction, without the lock.
    pub(super) is_pending: AtomicBool,
    /// When newer versions of the protectors' keys were last looked for.
    pub(super) looked: Mutex<Option<Instant>>,
}

/// A DEK, and what its subkeys are expanded from.
struct Held {
    dek: Dek,
    extracted: Extracted,
}

impl Held {
    fn new(file_id: &FileId, dek: Dek) -> Self {
        Self { extracted: Extracted::new(&dek.key, file_id), dek }
    }

    fn subkey(&self, label: &[&[u8]]) -> (KeyVersion, SuiteKey) {
        let subkey = self.extracted.expand(label);
        (self.dek.version, SuiteKey::new(self.dek.suite, &subkey))
    }
}

/// The keys themselves. Nobody holds the lock around them while a provider is asked.
struct Unlocked {
    current: Held,
    /// DEKs that pages, journals and logs may still be under.
    retired: Vec<Held>,
    page: Arc<BlockKeys>,
    wal: Arc<BlockKeys>,
    mac: Secret,
    /// Names of the protectors that have given the keys in this process.
    through: BTreeSet<String>,
}

impl Unlocked {
    fn new(file_id: FileId, current: Dek, retired: Vec<Dek>) -> Self {
        let current = Held::new(&file_id, current);
        let retired: Vec<Held> = retired.into_iter().map(|dek| Held::new(&file_id, dek)).collect();
        let blocks = |purpose, label| {
            Arc::new(BlockKeys {
                file_id,
                purpose,
                current: current.subkey(&[label]),
                retired: retired.iter().map(|held| held.subkey(&[label])).collect(),
            })
        };
        Self {
            page: blocks(Purpose::Page, PAGE),
            wal: blocks(Purpose::Wal, WAL),
            mac: current.extracted.expand(&[ENVELOPE]),
            current,
            retired,
            through: BTreeSet::new(),
        }
    }

    fn find(&self, version: KeyVersion) -> Option<&Held> {
        let mut all = std::iter::once(&self.current).chain(&self.retired);
        all.find(|held| held.dek.version == version)
    }
}

/// An existing database whose keys were found.
pub(crate) struct Opened {
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) envelope: Envelope,
    /// Name of the protector that gave the keys.
    pub(crate) through: String,
}

impl Keyring {
    pub(crate) fn new(file_id: FileId, current: Dek, retired: Vec<Dek>) -> Arc<Self> {
        let keyring = Self::locked(file_id);
        *lock(&keyring.unlocked) = Some(Unlocked::new(file_id, current, retired));
        keyring
    }

    fn locked(file_id: FileId) -> Arc<Self> {
        Arc::new(Self {
            file_id,
            unlocked: Mutex::default(),
            slots: Mutex::default(),
            access: Access::new(),
            pending: Mutex::default(),
            is_pending: AtomicBool::new(false),
            looked: Mutex::default(),
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
        let created = Event { file_id: Some(&file_id), ..about(EventKind::Create, &record) };
        protectors.auditor.record(&created)?;
        let keyring = Self::new(file_id, Dek { version: FIRST, suite, key: dek }, Vec::new());
        keyring.gave(&record.name);
        let envelope = Envelope {
            generation: 1,
            file_id,
            page_size: 0,
            created: now,
            rotated: 0,
            regenerated: 0,
            scan_state: ScanState::None,
            scan_cursor: 0,
            manual_rotation: false,
            has_pages: false,
            current: DekRecord { version: FIRST, suite, wrapped: Vec::new() },
            retired: Vec::new(),
            protectors: vec![record],
        };
        Ok((keyring, envelope))
    }

    /// The keyring of an existing database, from the cache or from a provider, and its envelope.
    ///
    /// `copies` are tried in order; the first error stands where none is good.
    pub(crate) fn open(
        copies: Vec<Unverified>,
        protectors: &Protectors,
        wanted: Option<&str>,
    ) -> Result<Opened> {
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
    ) -> Result<Opened> {
        let file_id = copy.file_id();
        let keyring = cached(&file_id).unwrap_or_else(|| Self::locked(file_id));
        let mut records: Vec<&ProtectorRecord> =
            copy.protectors().iter().filter(|record| matches(record, wanted)).collect();
        if records.is_empty() {
            return Err(not_wrapped_for(copy.protectors(), wanted));
        }
        // What ended comes last. Whether it did is known for sure only behind the MAC.
        records.sort_by_key(|record| check_time(record).is_err());
        // A protector that never gave the keys here is asked, also where another one did: each
        // stands for rights of its own.
        let known = records.iter().find(|record| keyring.was_given_by(&record.name));
        if let Some(through) = known.map(|record| record.name.clone()) {
            let envelope = keyring.verify(copy)?;
            check_protector(&envelope, &through)?;
            return Ok(Opened { keyring, envelope, through });
        }
        let (version, suite) = copy.current();
        let context = Context { file_id, dek_version: version };
        let (key, record) = protectors.unwrap(&records, &context)?;
        let through = record.name.clone();
        let dek = Dek { version, suite, key };
        let (keyring, envelope) = keyring.unlock(copy, dek, &through)?;
        keyring.gave(&through);
        Ok(Opened { keyring, envelope, through })
    }

    /// Takes in the keys that the protector `through` gave, if they verify `copy`. Gives back the keyring that all
    /// connections of this process share.
    fn unlock(
        self: Arc<Self>,
        copy: Unverified,
        dek: Dek,
        through: &str,
    ) -> Result<(Arc<Self>, Envelope)> {
        let unlocked = Unlocked::new(self.file_id, dek, Vec::new());
        let envelope = copy.verify(&unlocked.mac)?;
        check_protector(&envelope, through)?;
        if !envelope.retired.is_empty() {
            return Err(Error::Unsupported(
                "a key regeneration is under way, which this version cannot continue".into(),
            ));
        }
        let keyring = remember(&self);
        let mut place = lock(&keyring.unlocked);
        if place.is_none() {
            *place = Some(unlocked);
            keyring.access.granted();
        }
        drop(place);
        Ok((keyring, envelope))
    }

    /// Wipes the keys here and wherever they were given out to.
    pub(crate) fn lock(&self, loss: Loss) {
        let mut place = lock(&self.unlocked);
        // Under its lock: whoever unlocks it meanwhile must not be taken for locked, nor the reverse.
        self.access.lost(loss);
        *place = None;
        drop(place);
        lock(&self.pending).clear();
        let slots = std::mem::take(&mut *lock(&self.slots));
        for slot in slots.iter().filter_map(Weak::upgrade) {
            *lock(&slot) = None;
        }
        lock(&self.slots).extend(slots.into_iter().filter(|slot| slot.strong_count() > 0));
    }

    /// The provider still gives these keys. If they are gone by now, that changes nothing.
    pub(super) fn confirm(&self) {
        if lock(&self.unlocked).is_some() {
            self.access.granted();
        }
    }

    /// Makes later opens of the same file find this keyring, for as long as someone holds it.
    pub(crate) fn share(self: &Arc<Self>) {
        remember(self);
    }

    /// What seals and opens the blocks of one open file.
    pub(crate) fn cipher(self: &Arc<Self>, subkey: Subkey) -> Cipher {
        let slot = Arc::new(Slot::default());
        let mut slots = lock(&self.slots);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        drop(slots);
        Cipher::new(Arc::clone(self), subkey, slot)
    }

    /// The keys of one kind of block.
    ///
    /// # Errors
    /// [`Error::Inaccessible`] while the keyring is locked.
    pub(super) fn block_keys(&self, subkey: Subkey) -> Result<Arc<BlockKeys>> {
        self.with_keys(|keys| match subkey {
            Subkey::Page => Ok(Arc::clone(&keys.page)),
            Subkey::Wal => Ok(Arc::clone(&keys.wal)),
            Subkey::Journal { version, salt } => {
                let held = keys.find(version).ok_or_else(|| {
                    Error::Unsupported(format!("key version {version} is on no keyring"))
                })?;
                Ok(Arc::new(BlockKeys {
                    file_id: self.file_id,
                    purpose: Purpose::Journal,
                    current: held.subkey(&[JOURNAL, &salt]),
                    retired: Vec::new(),
                }))
            }
        })?
    }

    fn with_keys<T>(&self, work: impl FnOnce(&mut Unlocked) -> T) -> Result<T> {
        match &mut *lock(&self.unlocked) {
            Some(unlocked) => Ok(work(unlocked)),
            None => Err(Error::Inaccessible(self.access.reason())),
        }
    }

    pub(crate) fn file_id(&self) -> &FileId {
        &self.file_id
    }

    /// The current DEK's version.
    pub(crate) fn version(&self) -> Result<KeyVersion> {
        self.with_keys(|keys| keys.current.dek.version)
    }

    /// Whether a journal or log of this version can be read.
    pub(crate) fn has(&self, version: KeyVersion) -> Result<bool> {
        self.with_keys(|keys| keys.find(version).is_some())
    }

    /// The current DEK, to be wrapped again, and what its wrapping is bound to.
    pub(crate) fn dek(&self) -> Result<(Secret, Context)> {
        let context = |version| Context { file_id: self.file_id, dek_version: version };
        self.with_keys(|keys| {
            let dek = &keys.current.dek;
            (dek.key.duplicate(), context(dek.version))
        })
    }

    /// The envelope, if the holder of these keys wrote it.
    pub(crate) fn verify(&self, copy: Unverified) -> Result<Envelope> {
        self.with_keys(|keys| copy.verify(&keys.mac))?
    }

    /// One copy of `envelope`.
    pub(crate) fn encode(&self, envelope: &Envelope) -> Result<Vec<u8>> {
        self.with_keys(|keys| envelope.encode(&keys.mac))?
    }

    /// Notes that the protector `name` gives these keys.
    pub(crate) fn gave(&self, name: &str) {
        if let Some(keys) = &mut *lock(&self.unlocked) {
            keys.through.insert(name.to_owned());
        }
    }

    /// Whether the protector `name` gave the keys that are here.
    pub(crate) fn was_given_by(&self, name: &str) -> bool {
        lock(&self.unlocked).as_ref().is_some_and(|keys| keys.through.contains(name))
    }

    /// What a transaction has to do before it begins; see [`Access::standing`].
    pub(crate) fn standing(&self, policy: &AccessPolicy) -> Result<Standing> {
        self.access.standing(policy)
    }
}

/// Refuses keys from a protector of `envelope` that ended.
fn check_protector(envelope: &Envelope, name: &str) -> Result<()> {
    let record = envelope.protectors.iter().find(|record| record.name == name);
    Ok(record.map_or(Ok(()), check_time)?)
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
    lock(&CACHE).get(file_id).and_then(Weak::upgrade)
}

/// The keyring that everybody finds from now on: this one, unless another was faster.
fn remember(keyring: &Arc<Keyring>) -> Arc<Keyring> {
    let mut cache = lock(&CACHE);
    cache.retain(|_, entry| entry.strong_count() > 0);
    if let Some(there) = cache.get(&keyring.file_id).and_then(Weak::upgrade) {
        return there;
    }
    cache.insert(keyring.file_id, Arc::downgrade(keyring));
    Arc::clone(keyring)
}
