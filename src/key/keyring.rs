//! The keys of one database while it is open, and the process-wide cache that makes one unwrap
//! serve every connection to it.
//!
//! ```text
//! DEK --HKDF-SHA256(salt = file id, info = label)--> one subkey per purpose
//! ```
//! A journal adds its own 16-byte salt to the label, so each journal has its own key.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Instant;

use super::access::{KeyLease, LeaseState, RevokeReason};
use super::auditor::about;
use super::cipher::{Cipher, Slot, Subkey, lock};
use super::envelope::slot::{self, LastFrame, SLOT_LEN, StateId};
use super::envelope::{self, DekRecord, Envelope, ProtectorRecord, ScanState, Unverified};
use super::newest::{FileKey, Newest, NewestByFile};
use super::opening::{check_protector, replaced};
use super::protector::Protectors;
use crate::audit::{Event, EventKind};
use crate::error::{Error, Result};
use crate::page::{BlockKeys, KeyVersion, LogId, Purpose};
use crate::provider::Context;
use crate::secret::Secret;
use crate::settings::identity::{self, wrong_file};
use crate::suite::hkdf::Extracted;
use crate::suite::{SuiteId, SuiteKey};

const PAGE: &[u8] = b"sqlite-tde v1 page";
const WAL: &[u8] = b"sqlite-tde v1 wal";
const JOURNAL: &[u8] = b"sqlite-tde v1 journal";
const ENVELOPE: &[u8] = b"sqlite-tde v1 envelope";
const CHECK: &[u8] = b"sqlite-tde v1 keyring";

/// Length of a database's file id and of a log's or journal's salt, in bytes.
pub(crate) const ID_LEN: usize = 16;
pub(crate) type FileId = [u8; ID_LEN];

/// The version of a database's first DEK, and the only one that this version writes.
pub(crate) const FIRST_VERSION: KeyVersion = 1;

/// A database encryption key, as held by an unlocked keyring.
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
/// 3. It never takes another DEK than the first one, also after it was locked: connections may have
///    pages under that.
///
/// Locks are taken in the order of the fields, and those of `access` last.
pub(crate) struct Keyring {
    file_id: FileId,
    unlocked: Mutex<Option<Unlocked>>,
    /// Fingerprint of the first DEK. It is no key, and stays while locked.
    seen: Mutex<Option<Secret>>,
    /// How many times it was locked.
    lockings: AtomicU64,
    /// How many times the providers confirmed the keys.
    confirmations: AtomicU64,
    /// The slots of all ciphers given out.
    slots: Mutex<Vec<Weak<Slot>>>,
    newest: NewestByFile,
    pub(crate) access: KeyLease,
    /// Records to be replaced by newer ones, until a connection writes them into the envelope.
    pub(super) pending: Mutex<Vec<(ProtectorRecord, ProtectorRecord)>>,
    /// Flag that such records may exist; read by each transaction without the lock.
    pub(super) is_pending: AtomicBool,
    /// Time of the last check for newer versions of the protectors' keys.
    pub(super) looked: Mutex<Option<Instant>>,
}

/// A DEK, and the pseudorandom key from which its subkeys are expanded.
struct Held {
    dek: Dek,
    extracted: Extracted,
}

impl Held {
    fn new(file_id: &FileId, dek: Dek) -> Self {
        Self { extracted: Extracted::new(&dek.key, file_id), dek }
    }

    /// Fingerprint of this DEK, which reveals nothing of it.
    fn check(&self) -> Secret {
        self.extracted.expand(&[CHECK])
    }

    fn subkey(&self, label: &[&[u8]]) -> (KeyVersion, SuiteKey) {
        let subkey = self.extracted.expand(label);
        (self.dek.version, SuiteKey::new(self.dek.suite, self.dek.version, &subkey))
    }
}

/// The keys. Their lock is never held over a call to a provider.
struct Unlocked {
    current: Held,
    /// DEKs that pages, journals and logs may still be under.
    retired: Vec<Held>,
    page: Arc<BlockKeys>,
    wal: Arc<BlockKeys>,
    mac: Secret,
    /// The copy of the envelope that was verified last, for a comparison in place of a MAC.
    verified: Option<(Unverified, Arc<Envelope>)>,
    /// The records that have given the keys in this process.
    given_by: Vec<ProtectorRecord>,
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
                found: Mutex::default(),
            })
        };
        Self {
            page: blocks(Purpose::Page, PAGE),
            wal: blocks(Purpose::Wal, WAL),
            mac: current.extracted.expand(&[ENVELOPE]),
            current,
            retired,
            verified: None,
            given_by: Vec::new(),
        }
    }

    fn verify(&mut self, copy: &Unverified) -> Result<Arc<Envelope>> {
        match &self.verified {
            Some((verified, envelope)) if verified == copy => Ok(Arc::clone(envelope)),
            _ => {
                let envelope = copy.verify(&self.mac)?;
                self.verified = Some((copy.clone(), Arc::clone(&envelope)));
                Ok(envelope)
            }
        }
    }

    fn gave(&mut self, record: &ProtectorRecord) {
        if !self.given_by.iter().any(|given| given.is_same_wrap(record)) {
            self.given_by.push(record.clone());
        }
    }

    fn find(&self, version: KeyVersion) -> Option<&Held> {
        let mut all = std::iter::once(&self.current).chain(&self.retired);
        all.find(|held| held.dek.version == version)
    }
}

impl Keyring {
    pub(crate) fn new(file_id: FileId, current: Dek, retired: Vec<Dek>) -> Arc<Self> {
        let keyring = Self::locked(file_id);
        let unlocked = Unlocked::new(file_id, current, retired);
        *lock(&keyring.seen) = Some(unlocked.current.check());
        *lock(&keyring.unlocked) = Some(unlocked);
        keyring
    }

    pub(super) fn locked(file_id: FileId) -> Arc<Self> {
        Arc::new(Self {
            file_id,
            unlocked: Mutex::default(),
            seen: Mutex::default(),
            lockings: AtomicU64::new(0),
            confirmations: AtomicU64::new(0),
            slots: Mutex::default(),
            newest: NewestByFile::default(),
            access: KeyLease::new(),
            pending: Mutex::default(),
            is_pending: AtomicBool::new(false),
            looked: Mutex::default(),
        })
    }

    /// A new database: its keyring, and its first envelope, without a page size yet. Its protector
    /// has unwrapped the key once: otherwise the database could never be opened.
    pub(crate) fn create(
        protectors: &Protectors,
        protector: Option<&str>,
        suite: SuiteId,
        now: u64,
    ) -> Result<(Arc<Self>, Envelope)> {
        let dek = Secret::random()?;
        let file_id = identity::FileId::of(&dek).0;
        let context = Context { file_id, dek_version: FIRST_VERSION };
        let record = protectors.wrap(protector, &dek, &context)?;
        if let Some(others) = protectors.settings.pins.others(
            &record.provider,
            &record.key_id,
            identity::FileId(file_id),
        ) {
            return Err(wrong_file("that of a new one", others));
        }
        protectors.prove(&record, &dek, &context)?;
        let created = Event { file_id: Some(&file_id), ..about(EventKind::Create, &record) };
        protectors.auditor.record(&created)?;
        let keyring =
            Self::new(file_id, Dek { version: FIRST_VERSION, suite, key: dek }, Vec::new());
        keyring.gave(&record);
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
            current: DekRecord { version: FIRST_VERSION, suite, wrapped: Vec::new() },
            retired: Vec::new(),
            protectors: vec![record],
        };
        Ok((keyring, envelope))
    }

    /// Takes in the keys that `record` gave, if they verify `copy` and none of the `newer` ones,
    /// and are those that were seen of this database before. Returns the keyring that all
    /// connections of this process share.
    pub(super) fn unlock(
        self: Arc<Self>,
        copy: &Unverified,
        newer: &[Unverified],
        dek: Dek,
        record: &ProtectorRecord,
    ) -> Result<(Arc<Self>, Arc<Envelope>)> {
        let mut unlocked = Unlocked::new(self.file_id, dek, Vec::new());
        let envelope = unlocked.verify(copy)?;
        if let Some(newer) = newer.iter().find_map(|copy| copy.verify(&unlocked.mac).ok()) {
            return Err(replaced(&newer, &record.name));
        }
        check_protector(&envelope, &record.name)?;
        // The file id follows from the first DEK alone: no other one proves it.
        let version = envelope.current.version;
        if version != FIRST_VERSION || !envelope.retired.is_empty() {
            return Err(Error::Unsupported(format!(
                "a key regeneration was begun, which this version cannot continue: the current key \
                 has version {version}"
            )));
        }
        let check = unlocked.current.check();
        let keyring = remember(&self);
        let mut place = lock(&keyring.unlocked);
        let mut seen = lock(&keyring.seen);
        match &*seen {
            Some(seen) if !seen.is(&check) => {
                return Err(Error::EnvelopeDamaged(format!(
                    "protector {} gives another key than that of the database with this file id \
                     which is open in this process",
                    record.name.escape_debug()
                )));
            }
            Some(_) => {}
            None => *seen = Some(check),
        }
        drop(seen);
        if place.is_none() {
            *place = Some(unlocked);
            keyring.access.granted();
        }
        if let Some(keys) = &mut *place {
            keys.gave(record);
        }
        drop(place);
        Ok((keyring, envelope))
    }

    /// Wipes the keys here and in every cipher given out.
    pub(crate) fn lock(&self, loss: RevokeReason) {
        let mut place = lock(&self.unlocked);
        // Under its lock: a concurrent unlock must not be recorded as locked, nor the reverse.
        self.access.lost(loss);
        self.lockings.fetch_add(1, Ordering::Release);
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
        // Under its lock, as in `lock`: a concurrent lock must not be lost.
        let place = lock(&self.unlocked);
        if place.is_some() {
            self.access.granted();
            self.confirmations.fetch_add(1, Ordering::Release);
        }
    }

    /// A connection uses the keys by the policy of `protectors` from now on.
    pub(crate) fn hold_to(&self, protectors: &Protectors) {
        self.access.hold_to(&protectors.settings.access);
    }

    /// How many times the providers confirmed the keys so far.
    pub(crate) fn confirmations(&self) -> u64 {
        self.confirmations.load(Ordering::Acquire)
    }

    /// How many times it was locked so far.
    pub(crate) fn lockings(&self) -> u64 {
        self.lockings.load(Ordering::Acquire)
    }

    /// Makes later opens of the same file find this keyring, for as long as someone holds it.
    pub(crate) fn share(self: &Arc<Self>) {
        remember(self);
    }

    /// The cipher of one open file.
    pub(crate) fn cipher(self: &Arc<Self>, subkey: Subkey) -> Cipher {
        let slot = Arc::new(Slot::default());
        let mut slots = lock(&self.slots);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        drop(slots);
        Cipher::new(Arc::clone(self), subkey, slot)
    }

    /// The newest envelope seen by the handles of `file`.
    pub(crate) fn newest(&self, file: Option<FileKey>) -> Arc<Newest> {
        self.newest.of(file)
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
                    found: Mutex::default(),
                }))
            }
        })?
    }

    fn with_keys<T>(&self, work: impl FnOnce(&mut Unlocked) -> T) -> Result<T> {
        match &mut *lock(&self.unlocked) {
            Some(unlocked) => Ok(work(unlocked)),
            None => Err(self.access.reason().into()),
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

    /// The current DEK, to be wrapped again, and its context.
    pub(crate) fn dek(&self) -> Result<(Secret, Context)> {
        let context = |version| Context { file_id: self.file_id, dek_version: version };
        self.with_keys(|keys| {
            let dek = &keys.current.dek;
            (dek.key.duplicate(), context(dek.version))
        })
    }

    /// The envelope, if the holder of these keys wrote it.
    pub(crate) fn verify(&self, copy: impl Borrow<Unverified>) -> Result<Arc<Envelope>> {
        self.with_keys(|keys| keys.verify(copy.borrow()))?
    }

    /// One copy of `envelope`.
    pub(crate) fn encode(&self, envelope: &Envelope) -> Result<Vec<u8>> {
        self.with_keys(|keys| envelope.encode(&keys.mac))?
    }

    /// The bytes of `slot` as slot `number`.
    pub(crate) fn encode_slot(&self, slot: &slot::Slot, number: u32) -> Result<[u8; SLOT_LEN]> {
        let encoded = self.with_keys(|keys| slot.encode(number, &keys.mac))?;
        encoded.ok_or_else(|| Error::Usage("a slot: no MAC key".into()))
    }

    /// `bytes` decoded as slot `number`; `None` if the holder of these keys did not write them.
    pub(crate) fn decode_slot(&self, bytes: &[u8], number: u32) -> Result<Option<slot::Slot>> {
        self.with_keys(|keys| slot::Slot::decode(bytes, number, &keys.mac))
    }

    /// The state of a file to which all of `log` was brought, begun on `state` and ended by `last`.
    pub(crate) fn state_after(
        &self,
        state: &StateId,
        log: &LogId,
        last: &LastFrame,
    ) -> Result<StateId> {
        let next = self.with_keys(|keys| slot::Slot::state_after(state, log, last, &keys.mac))?;
        next.ok_or_else(|| Error::Usage("a state: no MAC key".into()))
    }

    /// Notes that `record` gives these keys.
    pub(crate) fn gave(&self, record: &ProtectorRecord) {
        if let Some(keys) = &mut *lock(&self.unlocked) {
            keys.gave(record);
        }
    }

    /// Forgets that `record` gave these keys: it was removed.
    pub(crate) fn took_back(&self, record: &ProtectorRecord) {
        if let Some(keys) = &mut *lock(&self.unlocked) {
            keys.given_by.retain(|given| !given.is_same_wrap(record));
        }
    }

    /// Whether this very record gave the keys that are here.
    pub(crate) fn was_given_by(&self, record: &ProtectorRecord) -> bool {
        let given = |keys: &Unlocked| keys.given_by.iter().any(|given| given.is_same_wrap(record));
        lock(&self.unlocked).as_ref().is_some_and(given)
    }

    /// The action that is due before a transaction begins; see [`KeyLease::lease_state`].
    pub(crate) fn lease_state(
        &self,
        protectors: &Protectors,
        wanted: Option<&str>,
    ) -> Result<LeaseState> {
        if !self.access.is_due() {
            return Ok(LeaseState::Good);
        }
        if self.access.is_overdue(&protectors.settings.access) {
            self.lose(protectors, "the key provider has not answered the last check".into());
        }
        self.access.lease_state(wanted)
    }
}

/// Keys for a file that only this process reads, and only until it closes it.
pub(crate) fn scratch_keys() -> Result<Arc<BlockKeys>> {
    Ok(Arc::new(BlockKeys {
        file_id: FileId::default(),
        purpose: Purpose::Scratch,
        current: (0, SuiteKey::new(SuiteId::Aes256Gcm, 0, &Secret::random()?)),
        retired: Vec::new(),
        found: Mutex::default(),
    }))
}

static CACHE: LazyLock<Mutex<BTreeMap<FileId, Weak<Keyring>>>> = LazyLock::new(Mutex::default);

/// The keyring of a database that is open in this process.
pub(crate) fn cached(file_id: &FileId) -> Option<Arc<Keyring>> {
    lock(&CACHE).get(file_id).and_then(Weak::upgrade)
}

/// As [`envelope::candidates`]; a copy that the keys in this process verified last is recognised by
/// its bytes and not decoded again.
pub(crate) fn candidates(header: &[u8]) -> Result<Vec<Unverified>> {
    let known = envelope::only_copy(header).and_then(|(file_id, copy)| {
        let keyring = cached(&file_id)?;
        let keys = lock(&keyring.unlocked);
        let (verified, _) = keys.as_ref()?.verified.as_ref()?;
        verified.is_copy(copy).then(|| verified.clone())
    });
    known.map_or_else(|| envelope::candidates(header), |copy| Ok(vec![copy]))
}

/// The keyring that later opens find: this one, unless another thread was faster.
fn remember(keyring: &Arc<Keyring>) -> Arc<Keyring> {
    let mut cache = lock(&CACHE);
    cache.retain(|_, entry| entry.strong_count() > 0);
    if let Some(there) = cache.get(&keyring.file_id).and_then(Weak::upgrade) {
        return there;
    }
    cache.insert(keyring.file_id, Arc::downgrade(keyring));
    Arc::clone(keyring)
}
