//! The sealed block: how one page, or one record of a log or journal, becomes ciphertext.
//!
//! ```text
//! 0                 len - 48      len - 44      + nonce      + tag          len
//! +-----------------+-------------+-------------+------------+--------------+
//! | ciphertext      | key version | nonce       | tag        | zeros        |
//! +-----------------+-------------+-------------+------------+--------------+
//! ```
//! The key version has 4 bytes, big-endian.
//!
//! | suite | nonce | tag | zeros |
//! |---|---|---|---|
//! | `aes-256-gcm` | 24 | 16 | 4 |
//! | `aes-256-ctr-hmac-sha256` | 16 | 28 | 0 |
//! | `aegis-256x4` | 28 | 16 | 0 |
//!
//! The associated data binds a block to its place, so that it authenticates nowhere else: file id
//! (16), purpose (1), number (8), length of the whole block (4), key version (4), and of a log's
//! records the id of their log (16). No two places have the same associated data: the purpose, at a
//! fixed offset, determines its length.

mod number;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

pub(crate) use self::number::{FrameNo, PageNo};
use crate::error::{Error, Result};
use crate::nonce::NonceSequence;
use crate::suite::{Choice, Fault, Schedule, SuiteId, SuiteKey, Unauthentic};

/// Bytes that a sealed block adds to its plaintext, and SQLite's reserve bytes on each page.
pub const RESERVE: usize = 48;
const VERSION_LEN: usize = size_of::<u32>();
const AAD_LEN: usize = 16 + 1 + 8 + 4 + VERSION_LEN;
const LOG_ID_LEN: usize = size_of::<LogId>();
/// Size of the cache of key schedules, each under 1 KiB: one for each run of nonces among the pages
/// read.
const SCHEDULES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

const _: () = assert!(RESERVE <= u8::MAX as usize, "SQLite keeps it in one byte");
const _: () = {
    let mut at = 0;
    while at < SuiteId::ALL.len() {
        let (nonce_len, tag_len) = lengths(SuiteId::ALL[at]);
        assert!(VERSION_LEN + nonce_len + tag_len <= RESERVE, "every suite fits");
        at += 1;
    }
};

/// Which DEK of a database, counted from 1.
pub type KeyVersion = u32;

/// The kind of block that a key seals; part of the associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Page = 1,
    Wal = 2,
    Journal = 3,
    Scratch = 4,
}

/// The random id of one write-ahead log.
pub(crate) type LogId = [u8; 16];

/// The place of a block within its database: its number, and the log id for a log's record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) number: u64,
    pub(crate) log: Option<LogId>,
}

impl From<u64> for Place {
    fn from(number: u64) -> Self {
        Self { number, log: None }
    }
}

/// The associated data of one block.
struct Aad {
    bytes: [u8; AAD_LEN + LOG_ID_LEN],
    len: usize,
}

impl Aad {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The subkeys for one purpose of one file, the current version first. Its handles share them.
pub(crate) struct BlockKeys {
    pub(crate) file_id: [u8; 16],
    pub(crate) purpose: Purpose,
    pub(crate) current: (KeyVersion, SuiteKey),
    pub(crate) retired: Vec<(KeyVersion, SuiteKey)>,
    pub(crate) found: Mutex<Found>,
}

/// Results of one handle that spare the others the same work. They end with the keys.
#[derive(Default)]
pub(crate) struct Found {
    schedule: Option<Chosen>,
    block: Option<Arc<OpenedBlock>>,
}

/// A block that was authentic as page `page` under these keys, sealed and open.
struct OpenedBlock {
    page: PageNo,
    sealed: Vec<u8>,
    open: Vec<u8>,
}

impl BlockKeys {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schedule of `key` for `chooser`, from another handle if one has just made it.
    fn schedule(
        &self,
        key: &SuiteKey,
        chooser: (KeyVersion, Choice),
    ) -> std::result::Result<Schedule, Fault> {
        let mut found = self.found();
        match &found.schedule {
            Some((have, schedule)) if *have == chooser => Ok(schedule.clone()),
            _ => {
                let schedule = key.schedule(&chooser.1)?;
                found.schedule = Some((chooser, schedule.clone()));
                Ok(schedule)
            }
        }
    }

    fn find(&self, version: KeyVersion) -> Option<&SuiteKey> {
        std::iter::once(&self.current)
            .chain(&self.retired)
            .find(|(have, _)| *have == version)
            .map(|(_, key)| key)
    }

    fn aad(&self, place: Place, len: usize, version: KeyVersion) -> Aad {
        let is_log = matches!(self.purpose, Purpose::Wal);
        assert_eq!(
            place.log.is_some(),
            is_log,
            "a record of a log, and nothing else, names its log"
        );
        let mut bytes = [0; AAD_LEN + LOG_ID_LEN];
        bytes[..16].copy_from_slice(&self.file_id);
        bytes[16] = self.purpose as u8;
        bytes[17..25].copy_from_slice(&place.number.to_be_bytes());
        bytes[25..29].copy_from_slice(&(len as u32).to_be_bytes());
        bytes[29..AAD_LEN].copy_from_slice(&version.to_be_bytes());
        let mut len = AAD_LEN;
        if let Some(log) = place.log {
            bytes[len..].copy_from_slice(&log);
            len += LOG_ID_LEN;
        }
        Aad { bytes, len }
    }
}

/// Seals and opens the blocks of one open file. Each file handle has its own, so nothing is locked.
pub(crate) struct PageCipher {
    keys: Arc<BlockKeys>,
    nonces: NonceSequence,
    schedules: Schedules,
    /// Recently used key schedules.
    sealing: Option<Chosen>,
    opening: Option<Chosen>,
}

/// A schedule, with the key version and nonce prefix that chose it.
type Chosen = ((KeyVersion, Choice), Schedule);

/// Recently used key schedules, by key version and nonce prefix.
struct Schedules(LruCache<(KeyVersion, Choice), Schedule>);

impl Schedules {
    /// At most [`SCHEDULES`], allocated as needed: most files use one.
    fn new() -> Self {
        let mut schedules = LruCache::unbounded();
        schedules.resize(SCHEDULES);
        Self(schedules)
    }

    /// The schedule for `nonce`, at `last` if it is the same as before.
    #[inline]
    fn choose<'s>(
        &mut self,
        last: &'s mut Option<Chosen>,
        keys: &BlockKeys,
        (version, key): (KeyVersion, &SuiteKey),
        nonce: &[u8],
    ) -> std::result::Result<&'s Schedule, Fault> {
        let chooser = (version, key.choice(nonce));
        if last.as_ref().is_none_or(|(have, _)| *have != chooser) {
            let schedule = self.0.try_get_or_insert(chooser, || keys.schedule(key, chooser))?;
            let schedule = schedule.clone();
            *last = Some((chooser, schedule));
        }
        match last {
            Some((_, schedule)) => Ok(schedule),
            None => unreachable!("it was just put there"),
        }
    }
}

impl PageCipher {
    pub(crate) fn new(keys: Arc<BlockKeys>) -> Self {
        Self {
            nonces: NonceSequence::new(keys.current.1.id()),
            keys,
            schedules: Schedules::new(),
            sealing: None,
            opening: None,
        }
    }

    /// Seals `plain` as the block of `place` into `block`, which is [`RESERVE`] bytes longer.
    pub(crate) fn seal(
        &mut self,
        place: impl Into<Place>,
        plain: &[u8],
        block: &mut [u8],
    ) -> Result<()> {
        assert_eq!(block.len(), plain.len() + RESERVE, "a block is its plaintext and a trailer");
        let (version, key) = (self.keys.current.0, &self.keys.current.1);
        let (nonce_len, tag_len) = lengths(key.id());
        let nonce = self.nonces.next()?;
        let aad = self.keys.aad(place.into(), block.len(), version);

        let (cipher, trailer) = block.split_at_mut(plain.len());
        let (head, zeros) = trailer.split_at_mut(VERSION_LEN + nonce_len + tag_len);
        let (head, tag) = head.split_at_mut(VERSION_LEN + nonce_len);
        head[..VERSION_LEN].copy_from_slice(&version.to_be_bytes());
        head[VERSION_LEN..].copy_from_slice(&nonce[..nonce_len]);
        zeros.fill(0);

        self.schedules
            .choose(&mut self.sealing, &self.keys, (version, key), &nonce)
            .and_then(|key| key.seal(&nonce[..nonce_len], aad.as_slice(), plain, cipher, tag))
            .map_err(|fault| match fault {
                Fault::NoMemory => Error::NO_MEMORY,
                Unauthentic => Error::Unsupported("the cipher refused to seal".into()),
            })
    }

    /// Opens `block` as that of `place` into `plain`, which is [`RESERVE`] bytes shorter. After a
    /// failure `plain` holds no unverified bytes.
    pub(crate) fn open(
        &mut self,
        place: impl Into<Place>,
        block: &[u8],
        plain: &mut [u8],
    ) -> std::result::Result<(), Fault> {
        assert_eq!(block.len(), plain.len() + RESERVE, "a block is its plaintext and a trailer");
        let (cipher, trailer) = block.split_at(plain.len());
        let mut version = [0; VERSION_LEN];
        version.copy_from_slice(&trailer[..VERSION_LEN]);
        let version = KeyVersion::from_be_bytes(version);
        let key = self.keys.find(version).ok_or(Unauthentic)?;

        let (nonce_len, tag_len) = lengths(key.id());
        let nonce = &trailer[VERSION_LEN..VERSION_LEN + nonce_len];
        let (tag, zeros) = trailer[VERSION_LEN + nonce_len..].split_at(tag_len);
        if zeros.iter().any(|&byte| byte != 0) {
            return Err(Unauthentic);
        }
        let aad = self.keys.aad(place.into(), block.len(), version);
        self.schedules.choose(&mut self.opening, &self.keys, (version, key), nonce)?.open(
            nonce,
            aad.as_slice(),
            cipher,
            tag,
            plain,
        )
    }

    /// Opens `block` as that of `place` in place: plaintext, then zeros instead of the trailer.
    /// After a failure all of it is zeros.
    pub(crate) fn open_in_place(
        &mut self,
        place: impl Into<Place>,
        block: &mut [u8],
    ) -> std::result::Result<(), Fault> {
        let len = block.len().checked_sub(RESERVE).ok_or(Unauthentic)?;
        let opened = self.open_where_it_lies(place, block, len);
        match opened {
            Ok(()) => block[len..].fill(0),
            Err(_) => block.fill(0),
        }
        opened
    }

    /// As [`PageCipher::open_in_place`] of `page`, which many handles read and few change.
    /// The bytes that were last found authentic there, under these keys, are so again.
    pub(crate) fn open_known(
        &mut self,
        page: PageNo,
        block: &mut [u8],
    ) -> std::result::Result<(), Fault> {
        let known = self.keys.found().block.clone();
        if let Some(known) = known.filter(|known| known.page == page && known.sealed == block) {
            block.copy_from_slice(&known.open);
            return Ok(());
        }
        let sealed = block.to_vec();
        self.open_in_place(page, block)?;
        let opened = OpenedBlock { page, sealed, open: block.to_vec() };
        self.keys.found().block = Some(Arc::new(opened));
        Ok(())
    }

    fn open_where_it_lies(
        &mut self,
        place: impl Into<Place>,
        block: &mut [u8],
        len: usize,
    ) -> std::result::Result<(), Fault> {
        let mut trailer = [0; RESERVE];
        trailer.copy_from_slice(&block[len..]);
        let (version, rest) = trailer.split_first_chunk().ok_or(Unauthentic)?;
        let version = KeyVersion::from_be_bytes(*version);
        let key = self.keys.find(version).ok_or(Unauthentic)?;
        let (nonce_len, tag_len) = lengths(key.id());
        let (nonce, rest) = rest.split_at(nonce_len);
        let (tag, zeros) = rest.split_at(tag_len);
        if zeros.iter().any(|&byte| byte != 0) {
            return Err(Unauthentic);
        }
        let aad = self.keys.aad(place.into(), block.len(), version);
        self.schedules.choose(&mut self.opening, &self.keys, (version, key), nonce)?.open_in_place(
            nonce,
            aad.as_slice(),
            tag,
            block,
            len,
        )
    }
}

const fn lengths(suite: SuiteId) -> (usize, usize) {
    (suite.nonce_len(), suite.tag_len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const SUITES: [SuiteId; 3] = SuiteId::ALL;

    fn keys(suite: SuiteId, file: u8, purpose: Purpose, version: KeyVersion) -> Arc<BlockKeys> {
        let key = Secret::from_slice(&[9; 32]).unwrap();
        Arc::new(BlockKeys {
            file_id: [file; 16],
            purpose,
            current: (version, SuiteKey::new(suite, version, &key)),
            retired: Vec::new(),
            found: Mutex::default(),
        })
    }

    fn sealed(suite: SuiteId, plain: &[u8]) -> Vec<u8> {
        let mut block = vec![0; plain.len() + RESERVE];
        PageCipher::new(keys(suite, 1, Purpose::Page, 1)).seal(7, plain, &mut block).unwrap();
        block
    }

    #[test]
    fn opens_what_it_sealed() {
        for suite in SUITES {
            for len in [464, 976, 4048, 65488] {
                let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let block = sealed(suite, &plain);
                let mut got = vec![0; len];
                let mut cipher = PageCipher::new(keys(suite, 1, Purpose::Page, 1));
                cipher.open(7, &block, &mut got).unwrap();
                assert_eq!(got, plain, "{suite:?} {len}");
                let mut block = block;
                cipher.open_in_place(7, &mut block).unwrap();
                assert_eq!((&block[..len], &block[len..]), (&plain[..], &[0; RESERVE][..]));
            }
        }
    }

    #[test]
    fn a_known_block_is_known_by_its_place_and_every_byte() {
        for suite in SUITES {
            let keys = keys(suite, 1, Purpose::Page, 1);
            let open = |number, block: &[u8]| {
                let mut block = block.to_vec();
                let opened =
                    PageCipher::new(Arc::clone(&keys)).open_known(PageNo(number), &mut block);
                (opened, block)
            };
            let block = sealed(suite, &[5; 976]);
            let plain = [&[5; 976][..], &[0; RESERVE]].concat();
            let bad = (Err(Unauthentic), vec![0; 1024]);
            for round in 0..3 {
                assert_eq!(open(7, &block), (Ok(()), plain.clone()), "{suite:?} {round}");
                assert_eq!(open(8, &block), bad, "{suite:?} {round}");
                for at in 0..block.len() {
                    let mut changed = block.clone();
                    changed[at] ^= 1;
                    assert_eq!(open(7, &changed), bad, "{suite:?} {round}: byte {at}");
                }
            }
        }
    }

    #[test]
    fn a_block_belongs_to_one_place() {
        for suite in SUITES {
            let block = sealed(suite, &[5; 976]);
            let rows = [
                ("another number", keys(suite, 1, Purpose::Page, 1), 8),
                ("another file", keys(suite, 2, Purpose::Page, 1), 7),
                ("another purpose", keys(suite, 1, Purpose::Journal, 1), 7),
                ("another key version", keys(suite, 1, Purpose::Page, 2), 7),
            ];
            for (attack, keys, number) in rows {
                let mut plain = [0; 976];
                let again = Arc::clone(&keys);
                let result = PageCipher::new(keys).open(number, &block, &mut plain);
                assert_eq!(result, Err(Unauthentic), "{suite:?} {attack}");
                assert_eq!(plain, [0; 976], "{suite:?} {attack}");
                let result = PageCipher::new(again).open_in_place(number, &mut block.clone());
                assert_eq!(result, Err(Unauthentic), "{suite:?} {attack}");
            }
        }
    }

    #[test]
    fn a_record_belongs_to_one_log() {
        let place = |log: u8| Place { number: 7, log: Some([log; 16]) };
        for suite in SUITES {
            let mut cipher = PageCipher::new(keys(suite, 1, Purpose::Wal, 1));
            let (mut block, mut plain) = (vec![0; 1024], [0; 976]);
            cipher.seal(place(1), &[5; 976], &mut block).unwrap();
            assert_eq!(cipher.open(place(2), &block, &mut plain), Err(Unauthentic), "{suite:?}");
            assert_eq!(plain, [0; 976], "{suite:?}");
            cipher.open(place(1), &block, &mut plain).unwrap();
            assert_eq!(plain, [5; 976], "{suite:?}");
            let in_place = cipher.open_in_place(place(2), &mut block);
            assert_eq!(in_place, Err(Unauthentic), "{suite:?}");
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for suite in SUITES {
            let good = sealed(suite, &[5; 464]);
            let mut cipher = PageCipher::new(keys(suite, 1, Purpose::Page, 1));
            for bit in 0..good.len() * 8 {
                let mut block = good.clone();
                block[bit / 8] ^= 1 << (bit % 8);
                let mut plain = [0; 464];
                assert_eq!(cipher.open(7, &block, &mut plain), Err(Unauthentic), "{suite:?} {bit}");
                assert_eq!(plain, [0; 464], "{suite:?} bit {bit}");
                assert_eq!(
                    cipher.open_in_place(7, &mut block),
                    Err(Unauthentic),
                    "{suite:?} {bit}"
                );
                assert_eq!(block, [0; 512], "{suite:?} bit {bit}");
            }
        }
    }

    #[test]
    fn zeros_are_not_a_page() {
        for suite in SUITES {
            let mut cipher = PageCipher::new(keys(suite, 1, Purpose::Page, 1));
            assert_eq!(cipher.open(7, &[0; 1024], &mut [0; 976]), Err(Unauthentic));
        }
    }
}
