//! What stands in an open file, and how that is found out.

use std::cell::RefCell;
use std::ffi::{CStr, c_int};

use libsqlite3_sys as ffi;

use super::api;
use super::base::BaseFile;
use super::open::OpenFile;
use crate::error::{Error, Result};
use crate::file::journal::{self, Another, Journal};
use crate::file::main_db::{MainDb, Wishes};
use crate::file::scratch::Scratch;
use crate::file::wal::Wal;
use crate::file::{FileKind, Filled};

thread_local! {
    /// The name of the super-journal that this thread opened last. In a rollback SQLite opens it, and
    /// then the journals that it lists.
    static SUPER_JOURNAL: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What stands in the file.
pub(super) enum Content {
    Db(Box<MainDb>),
    Journal(Box<Journal>),
    Wal(Box<Wal>),
    Scratch(Box<Scratch>),
    /// Bytes that stand in for what the file holds; only read.
    StandIn(Vec<u8>),
    /// Passed through: a super-journal, or what belongs to a plaintext database.
    Through,
}

impl Content {
    /// Refuses, before the file is there, what would be refused after it was created: a journal or
    /// log for which no key can be had.
    pub(super) fn before_open(
        kind: FileKind,
        parent: Option<&mut OpenFile>,
        flags: c_int,
    ) -> Result<()> {
        let db = match (kind, parent.map(|open| &mut open.content)) {
            (FileKind::MainJournal | FileKind::Wal, Some(Self::Db(db))) => db,
            (FileKind::MainJournal | FileKind::Wal, _) => {
                return Err(Error::Unsupported(
                    "another VFS stands between SQLite and tde: register tde on top of it instead"
                        .into(),
                ));
            }
            _ => return Ok(()),
        };
        const HOT: c_int = ffi::SQLITE_OPEN_READWRITE;
        if kind == FileKind::MainJournal && flags & (HOT | ffi::SQLITE_OPEN_CREATE) == HOT {
            db.rollback_starts();
        }
        if kind == FileKind::MainJournal && flags & ffi::SQLITE_OPEN_CREATE != 0 {
            db.prepare()?;
        }
        Ok(())
    }

    /// `parent` is the database of a journal or log.
    pub(super) fn new(
        base: &BaseFile,
        kind: FileKind,
        name: Option<&CStr>,
        wishes: Wishes,
        parent: Option<&OpenFile>,
    ) -> Result<Self> {
        let db = match parent {
            Some(OpenFile { content: Self::Db(db), .. }) if !db.is_plain() => Some(db),
            _ => None,
        };
        match (kind, db, parent) {
            (FileKind::MainDb, ..) => Ok(Self::Db(Box::new(MainDb::open(base, wishes)?))),
            (FileKind::Scratch, ..) => Ok(Self::Scratch(Box::new(Scratch::new(wishes.tuning)?))),
            (FileKind::MainJournal, Some(db), Some(open)) => Ok(Self::Journal(Box::new(
                Journal::open(base, db.keyring(), open.journal_grain(), db.tuning())?,
            ))),
            (FileKind::Wal, Some(db), Some(open)) => {
                let wal = Wal::new(db.keyring(), open.log_grain(base), db.tuning());
                if wal.is_foreign(base)? {
                    api::log(
                        ffi::SQLITE_WARNING,
                        "sqlite-tde: the write-ahead log beside the database is another one's and \
                         counts as empty",
                    );
                }
                Ok(Self::Wal(Box::new(wal)))
            }
            (FileKind::SuperJournal, ..) => {
                Ok(match Journal::open_of_another(base, base.sector())? {
                    Another::Readable(journal) => Self::Journal(journal),
                    Another::NoKey => {
                        Self::StandIn(journal::naming(&SUPER_JOURNAL.with_borrow(Vec::clone)))
                    }
                    Another::NotOurs => {
                        if let Some(name) = name.filter(|name| names_super_journal(name)) {
                            SUPER_JOURNAL.set(name.to_bytes().to_vec());
                        }
                        Self::Through
                    }
                })
            }
            (FileKind::MainJournal | FileKind::Wal, ..) => Ok(Self::Through),
        }
    }
}

/// Whether this is what SQLite calls a super-journal, `-mj` and nine digits at its end, and not the
/// journal of a plaintext database.
fn names_super_journal(name: &CStr) -> bool {
    let name = name.to_bytes();
    name.len().checked_sub(12).is_some_and(|at| name[at..].starts_with(b"-mj"))
}

pub(super) fn read_from(bytes: &[u8], buf: &mut [u8], at: u64) -> Filled {
    let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let len = rest.len().min(buf.len());
    buf[..len].copy_from_slice(&rest[..len]);
    buf[len..].fill(0);
    if len == buf.len() { Filled::Full } else { Filled::Short }
}
