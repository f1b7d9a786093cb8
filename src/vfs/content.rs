//! What stands in an open file, and how that is found out.

use std::ffi::c_int;

use crate::ffi;

use super::api;
use super::base::BaseFile;
use super::open::OpenFile;
use crate::error::{Error, Result};
use crate::file::FileKind;
use crate::file::journal::Journal;
use crate::file::main_db::{MainDb, Wishes};
use crate::file::scratch::Scratch;
use crate::file::wal::Wal;

/// What stands in the file.
pub(super) enum Content {
    Db(Box<MainDb>),
    Journal(Box<Journal>),
    Wal(Box<Wal>),
    Scratch(Box<Scratch>),
    /// Passed through: what belongs to a plaintext database, a super-journal, or the journal of
    /// another database of the same transaction, of which SQLite reads the name at its end.
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
        let mut parent = parent;
        if let Some(parent) = parent.as_deref_mut() {
            parent.before_journal(kind, flags)?;
        }
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
            (FileKind::SuperJournal | FileKind::MainJournal | FileKind::Wal, ..) => {
                Ok(Self::Through)
            }
        }
    }
}
