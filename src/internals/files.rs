//! Files in memory under fixed keys, for fuzzing (feature `fuzzing`).

use std::sync::Arc;

use crate::db::main::Main;
use crate::error::Result;
use crate::file::journal::{Begun, Counters, Journal};
use crate::file::wal::{Origin, Owner, Salts, View, Wal};
use crate::io::memory::Memory;
use crate::key::cipher::Subkey;
use crate::key::envelope::slot::{Fit, StateId};
use crate::key::keyring::{Dek, Keyring};
use crate::key::session::Setup;
use crate::page::{FrameNo, LogId, PageNo, RESERVE};
use crate::provider::{
    Answer, KeyProvider, ProviderError, UnwrapRequest, VersionRequest, WaitsFor, WrapRequest,
    Wrapped,
};
use crate::secret::Secret;
use crate::settings::Tuning;
use crate::suite::SuiteId;

/// Opens `block` as page `number` under a fixed key, into a page that held ones.
pub fn open_block(number: u64, block: &[u8]) -> Option<Vec<u8>> {
    let mut plain = vec![1; block.len().checked_sub(RESERVE)?];
    let opened = keyring()?.cipher(Subkey::Page).open(number, block, &mut plain).ok()?;
    opened.then_some(plain)
}

/// Seals `plain` so that [`open_block`] opens it.
pub fn seal_block(number: u64, plain: &[u8]) -> Option<Vec<u8>> {
    let mut block = vec![0; plain.len() + RESERVE];
    keyring()?.cipher(Subkey::Page).seal(number, plain, &mut block).ok()?;
    Some(block)
}

/// The same keyring each time.
fn keyring() -> Option<Arc<Keyring>> {
    let key = Secret::from_slice(&[7; 32])?;
    let current = Dek { version: 1, suite: SuiteId::Aes256CtrHmacSha256, key };
    Some(Keyring::new([1; 16], current, Vec::new()))
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The log of a database under a fixed key.
    Wal,
    /// Its rollback journal.
    Journal,
    /// A database that brings its key along, in the clear.
    Database,
}

/// A file in memory. Its calls answer `None` where there is an error.
pub struct File {
    kind: Kind,
    base: Memory,
    open: Option<Open>,
    index: Index,
}

enum Open {
    Wal(Box<Wal>),
    Journal(Box<Journal>),
    Database(Box<Main>),
}

/// The wal-index beside a log, as far as a log asks for it.
#[derive(Default)]
pub struct Index {
    /// Changes with each lock.
    pub locks: u64,
    /// Salts of the present log.
    pub salts: Option<[u8; 8]>,
    /// The page of each frame.
    pub pages: Vec<u32>,
    /// The database is in another state than the log says.
    pub other_state: bool,
}

impl Owner for Index {
    fn locks(&self) -> u64 {
        self.locks
    }

    fn salts(&self) -> Option<Salts> {
        self.salts
    }

    fn last_frame(&self) -> Option<FrameNo> {
        None
    }

    fn is_alone(&self) -> bool {
        false
    }

    fn page_of(&self, frame: FrameNo) -> Option<PageNo> {
        self.pages.get(frame.since(FrameNo::FIRST)?).copied().map(PageNo)
    }

    fn origin(&self) -> Result<Origin> {
        Ok(Origin { pages: self.pages.len() as u32, ..Origin::default() })
    }

    fn fit(&self, _: &LogId, _: &StateId) -> Result<Fit> {
        Ok(Fit::Begun)
    }

    fn counters(&self) -> Result<Option<Counters>> {
        Ok(Some([u8::from(self.other_state); 16]))
    }

    fn check_envelope(&self) -> Result<()> {
        Ok(())
    }
}

impl File {
    /// A file that has these bytes already.
    pub fn new(kind: Kind, bytes: Vec<u8>) -> Self {
        let base = Memory::default();
        base.0.replace(bytes);
        let mut file = Self { kind, base, open: None, index: Index::default() };
        file.reopen();
        file
    }

    /// Closes the file and opens it again. After an error it stays closed.
    pub fn reopen(&mut self) {
        self.open = match self.kind {
            Kind::Wal => Some(Open::Wal(Box::new(Wal::new(keyring(), 1, Tuning::default())))),
            Kind::Journal => Journal::open(&self.base, keyring(), 1, Tuning::default())
                .ok()
                .map(|open| Open::Journal(open.into())),
            Kind::Database => {
                let mut setup = Setup::default();
                setup.protectors.add("clear", Arc::new(Clear));
                setup.protectors.settings_mut().default_protector = "clear:key".to_owned();
                Main::open(&self.base, setup).ok().map(|open| Open::Database(open.into()))
            }
        };
    }

    /// Changes what is on disk.
    pub fn raw<T>(&mut self, change: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        change(self.base.0.get_mut())
    }

    /// The wal-index.
    pub fn index(&mut self) -> &mut Index {
        &mut self.index
    }

    /// Reads `len` bytes at `at` of what SQLite has in the file.
    pub fn read(&mut self, len: usize, at: u64) -> Option<Vec<u8>> {
        let mut buf = vec![1; len];
        match self.open.as_mut()? {
            Open::Wal(wal) => wal.read(&self.base, &self.index, &mut buf, at),
            Open::Journal(journal) => journal.read(&self.base, &mut buf, at),
            Open::Database(db) => db.read(&self.base, &mut buf, at),
        }
        .ok()
        .map(|_| buf)
    }

    /// Writes `bytes` at `at`.
    pub fn write(&mut self, bytes: &[u8], at: u64) -> Option<()> {
        match self.open.as_mut()? {
            Open::Wal(wal) => wal.write(&self.base, &self.index, bytes, at),
            Open::Journal(journal) => journal.write(&self.base, bytes, at, || Ok(Begun::NoPage(0))),
            Open::Database(db) => db.write(&self.base, bytes, at, false, &mut || Ok(None)),
        }
        .ok()
    }

    /// Sets the size.
    pub fn truncate(&mut self, size: u64) -> Option<()> {
        match self.open.as_mut()? {
            Open::Wal(wal) => wal.truncate(&self.base, &self.index, size),
            Open::Journal(journal) => journal.truncate(&self.base, size),
            Open::Database(db) => db.truncate(&self.base, size, &mut || Ok(None)),
        }
        .ok()
    }

    /// The size.
    pub fn size(&mut self) -> Option<u64> {
        match self.open.as_mut()? {
            Open::Wal(wal) => wal.size(&self.base, &self.index),
            Open::Journal(journal) => journal.size(&self.base),
            Open::Database(db) => db.size(&self.base),
        }
        .ok()
    }

    /// What else looks at the whole file: a sync, the end of a recovery or rollback, verification.
    pub fn survey(&mut self) {
        match self.open.as_mut() {
            Some(Open::Wal(wal)) => {
                let _ = wal.before_sync(&self.base, &self.index);
                let view = View { in_file: FrameNo::MAX, ..View::default() };
                let _ = wal.demand(&self.base, view);
                let _ = wal.is_foreign(&self.base);
                let _ = wal.frames(&self.base, &self.index, FrameNo::MAX);
            }
            Some(Open::Database(db)) => {
                let grown = PageNo::FIRST..=PageNo(u32::MAX);
                let _ = db.seal_holes(&self.base, grown, &Default::default());
                db.phase.hot_journal();
                let _ = db.before_sync(&self.base);
                db.phase.journal_changed();
                let _ = db.verify_all(&self.base);
                if let Ok(origin) = db.log_origin(&self.base, None) {
                    let log = [1; 16];
                    let _ = db.fit(&self.base, &log, &origin.state);
                    let _ = db.checkpoint_writes(&self.base, (log, origin.state), FrameNo::FIRST);
                    let _ = db.checkpoint_ends(&self.base, (log, origin.state), None);
                }
            }
            Some(Open::Journal(_)) | None => {}
        }
    }
}

/// A provider that keeps keys in the blob.
struct Clear;

impl KeyProvider for Clear {
    fn waits_for(&self) -> WaitsFor {
        WaitsFor::Nothing
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { dek, .. } = *request;
        let (key_version, mechanism) = ("1".into(), "none".into());
        Ok(Wrapped { key_version, mechanism, blob: dek.expose().to_vec() }.into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { wrapped, .. } = *request;
        Secret::from_slice(&wrapped.blob)
            .map(Answer::from)
            .ok_or_else(|| ProviderError::WrongKey("length".into()))
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        Ok("1".into())
    }
}
