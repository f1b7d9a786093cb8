//! For rusqlite applications: who may open the database behind a connection, with which key, and
//! whether all of it authenticates.
//!
//! Nothing but a verification touches a page, so the time it takes does not depend on the size of
//! the database. Other connections and processes go on.

use rusqlite::{Connection, ErrorCode};

use crate::command::{
    self, Change, Edit, NewProtector, ProtectorCheck, ProtectorStatus, RotateProtector, Status,
    Verification, Verifier,
};
use crate::error::{Error, Result};
use crate::vfs::connection::with_database;

mod sealed {
    pub trait Sealed {}
    impl Sealed for rusqlite::Connection {}
}

/// What a connection of rusqlite to an encrypted database can be asked, beside SQL.
///
/// An error of a change, other than [`Error::Unfinished`], means that nothing has changed.
///
/// ```
/// # let home = tempfile::tempdir()?;
/// # let keystore = sqlite_tde::provider::Keystore::at(home.path().join("keys"));
/// # keystore.create("recovery")?;
/// # sqlite_tde::register(sqlite_tde::Options::new().name("changes").keystore(keystore))?;
/// # let options = sqlite_tde::OpenOptions::new().vfs("changes");
/// # let db = sqlite_tde::open_with(home.path().join("a.db"), &options)?;
/// # db.execute_batch("CREATE TABLE t(x)")?;
/// use sqlite_tde::{NewProtector, RotateProtector, TdeConnection};
///
/// db.tde_add_protector("main", NewProtector::new("recovery"))?; // a second key that opens it
/// db.tde_rotate_protector("main", RotateProtector::all())?; // under the newest key versions
/// assert_eq!(db.tde_protectors("main")?.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait TdeConnection: sealed::Sealed {
    /// What is known about the keys of the database attached as `schema` (`"main"` for the one that
    /// the connection was opened with).
    ///
    /// # Errors
    /// [`Error::NotEncrypted`]; [`Error::Inaccessible`]; [`Error::Usage`] where there is no such
    /// schema.
    fn tde_status(&self, schema: &str) -> Result<Status>;

    /// The protectors of a database, in the order in which they are tried.
    ///
    /// # Errors
    /// As [`TdeConnection::tde_status`].
    fn tde_protectors(&self, schema: &str) -> Result<Vec<ProtectorStatus>>;

    /// Wraps the database encryption key anew, as `request` says.
    ///
    /// # Errors
    /// Those of the providers; [`Error::Busy`] where another connection writes for longer than 5
    /// seconds; [`Error::ReadOnly`]; [`Error::Usage`] within a transaction. Nothing has changed
    /// then. [`Error::Unfinished`] where the disk failed in the middle.
    fn tde_rotate_protector(&self, schema: &str, request: RotateProtector) -> Result<Change>;

    /// Adds a protector: another key that opens the database by itself. There can be 8. It has to
    /// give the key back once, unless its provider says that the key is not here or denied, as with
    /// the public key of another party. A warning then says so.
    ///
    /// # Errors
    /// As [`TdeConnection::tde_rotate_protector`].
    fn tde_add_protector(&self, schema: &str, new: NewProtector) -> Result<Change>;

    /// Makes these the protectors of a database, in this order where all are new, and none else.
    /// Each wraps the database encryption key anew, and all of them are written in one step: it is
    /// how a copy of a database gets the protectors of another one.
    ///
    /// # Errors
    /// As [`TdeConnection::tde_rotate_protector`]; [`Error::Usage`] where none of them may write
    /// and gives the key back, or where the policy asks for more.
    fn tde_set_protectors(&self, schema: &str, protectors: Vec<NewProtector>) -> Result<Change>;

    /// Removes a protector, and what it wrapped from the file. The last one stays, and so does the
    /// last one that may write and gives the keys here: where no other one has done so in this
    /// process, they are asked. Whoever opened the database through it may go on until its keys are
    /// re-validated; copies of the file from before are opened by it as before. Where a crash cut
    /// off an earlier removal of the same protector, this finishes it, and a warning says so.
    ///
    /// # Errors
    /// As [`TdeConnection::tde_rotate_protector`].
    fn tde_remove_protector(&self, schema: &str, name: &str) -> Result<Change>;

    /// Says whether protectors of this database are re-wrapped by themselves when their provider
    /// has a newer version of their key.
    ///
    /// # Errors
    /// As [`TdeConnection::tde_rotate_protector`].
    fn tde_set_auto_rotate(&self, schema: &str, on: bool) -> Result<Change>;

    /// Asks each protector's provider for the key: is it configured, reachable, does it have the
    /// key, does that unwrap, and is what it gives the key in use?
    ///
    /// # Errors
    /// As [`TdeConnection::tde_status`]; what is wrong with a protector is no error but an answer.
    fn tde_check_protectors(&self, schema: &str) -> Result<Vec<ProtectorCheck>>;

    /// Refuses a protector whose provider has another secret by now, such as another passphrase,
    /// than the one that the protector was made with. What its provider does not unwrap for us
    /// otherwise, such as a key of another party, is no error here:
    /// [`TdeConnection::tde_check_protectors`] says more.
    ///
    /// # Errors
    /// [`Error::WrongKey`] where it is another one; otherwise as [`TdeConnection::tde_status`].
    fn tde_check_secret(&self, schema: &str, protector: &str) -> Result<()>;

    /// Checks a copy that leaves out the protectors called `without` against the policy: a warning
    /// if the policy only warns about so few protectors.
    ///
    /// # Errors
    /// [`Error::Usage`] if the policy refuses so few; otherwise as [`TdeConnection::tde_status`].
    fn tde_check_copy(&self, schema: &str, without: &[String]) -> Result<Option<String>>;

    /// Wipes the keys of the database in this process, for all its connections. The next
    /// transaction asks the provider for them.
    ///
    /// # Errors
    /// As [`TdeConnection::tde_status`].
    fn tde_lock(&self, schema: &str) -> Result<()>;

    /// Authenticates every page, both copies of the envelope and the committed frames of the
    /// write-ahead log of the database attached as `schema`, within a read transaction.
    /// `progress` is called now and then with the number of pages done and of all pages. It may use
    /// the connection; nothing of the database is held but the read transaction.
    ///
    /// # Errors
    /// [`Error::NotEncrypted`]; [`Error::Usage`] if there is no such schema; [`Error::Base`] if
    /// reading failed; the error that kept a transaction from beginning, such as a lock.
    /// Bad pages and a refused journal or log are no errors: the [`Verification`] has them.
    fn tde_verify(&self, schema: &str, progress: impl FnMut(u64, u64)) -> Result<Verification>;
}

impl TdeConnection for Connection {
    fn tde_status(&self, schema: &str) -> Result<Status> {
        with_database(self, schema, false, command::status)
    }

    fn tde_protectors(&self, schema: &str) -> Result<Vec<ProtectorStatus>> {
        with_database(self, schema, false, command::protectors)
    }

    fn tde_rotate_protector(&self, schema: &str, request: RotateProtector) -> Result<Change> {
        change(self, schema, Edit::Rotate(request))
    }

    fn tde_add_protector(&self, schema: &str, new: NewProtector) -> Result<Change> {
        change(self, schema, Edit::Add(new))
    }

    fn tde_set_protectors(&self, schema: &str, protectors: Vec<NewProtector>) -> Result<Change> {
        change(self, schema, Edit::Set(protectors))
    }

    fn tde_remove_protector(&self, schema: &str, name: &str) -> Result<Change> {
        change(self, schema, Edit::Remove(name.to_owned()))
    }

    fn tde_set_auto_rotate(&self, schema: &str, on: bool) -> Result<Change> {
        change(self, schema, Edit::AutoRotate(on))
    }

    fn tde_check_protectors(&self, schema: &str) -> Result<Vec<ProtectorCheck>> {
        with_database(self, schema, false, command::check_protectors)
    }

    fn tde_check_secret(&self, schema: &str, protector: &str) -> Result<()> {
        with_database(self, schema, false, |db| command::check_secret(db, protector))
    }

    fn tde_check_copy(&self, schema: &str, without: &[String]) -> Result<Option<String>> {
        with_database(self, schema, false, |db| command::check_copy(db, without))
    }

    fn tde_lock(&self, schema: &str) -> Result<()> {
        with_database(self, schema, false, command::lock)
    }

    fn tde_verify(&self, schema: &str, mut progress: impl FnMut(u64, u64)) -> Result<Verification> {
        // A statement that is not done keeps its read transaction: SQLite rolls a journal back or
        // recovers a log first, and the log stays as it is. If damage makes it fail, checking the
        // pages shows where.
        let name = schema.replace('"', "\"\"");
        let hold = format!("SELECT count(*) FROM \"{name}\".sqlite_schema UNION ALL SELECT 0");
        let mut refused = None;
        let mut statement = unless_damaged(self.prepare(&hold), &mut refused)?;
        let mut rows = match &mut statement {
            Some(statement) => unless_damaged(statement.query([]), &mut refused)?,
            None => None,
        };
        if let Some(rows) = &mut rows {
            unless_damaged(rows.next().map(|_| ()), &mut refused)?;
        }
        let mut verifier = Verifier::default();
        loop {
            let is_done = with_database(self, schema, false, |db| verifier.step(db))?;
            let (done, all) = verifier.progress();
            if all > 0 {
                progress(done, all);
            }
            if is_done {
                return Ok(verifier.finish(refused));
            }
        }
    }
}

/// The value of `result`; `None` where the database is damaged, or the journal or log beside it is
/// refused, and then `refused` says why.
fn unless_damaged<T>(
    result: rusqlite::Result<T>,
    refused: &mut Option<String>,
) -> Result<Option<T>> {
    // A connection that may only read plays no journal back, and creates no wal-index.
    use ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase, ReadOnly};
    let damaged = |code| matches!(code, DatabaseCorrupt | NotADatabase | ReadOnly | CannotOpen);
    match result.map_err(Error::from) {
        Ok(value) => Ok(Some(value)),
        Err(Error::PageAuthentication { .. } | Error::FrameAuthentication { .. }) => Ok(None),
        Err(Error::Sqlite(error)) if error.sqlite_error_code().is_some_and(damaged) => Ok(None),
        Err(
            error @ (Error::JournalOutdated { .. } | Error::LogOutdated | Error::LogCut { .. }),
        ) => {
            *refused = Some(error.to_string());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn change(connection: &Connection, schema: &str, edit: Edit) -> Result<Change> {
    // A transaction that a crash cut off is rolled back by reading. Where others are in the way of
    // that, or it fails, the change itself waits, and tells what is wrong.
    let name = schema.replace('"', "\"\"");
    let read = format!("SELECT count(*) FROM \"{name}\".sqlite_schema");
    let _ = connection.query_row(&read, [], |_| Ok(()));
    with_database(connection, schema, true, |db| command::change(db, &edit))
}
