//! For rusqlite applications: who may open the database behind a connection, and with which key.
//!
//! Nothing here touches a page, so the time it takes does not depend on the size of the database.
//! Other connections and processes go on. An error other than [`Error::Unfinished`] means that
//! nothing has changed.

use rusqlite::Connection;

use crate::command::{
    Answer, Change, Command, NewProtector, ProtectorCheck, ProtectorStatus, Status,
};
use crate::error::{Error, Result};
use crate::vfs::connection::run_command;

/// What is known about the keys of the database attached to `connection` as `schema` (`"main"` for
/// the one it was opened with).
///
/// # Errors
/// [`Error::NotEncrypted`]; [`Error::Inaccessible`]; [`Error::Usage`] where there is no such
/// schema.
pub fn status(connection: &Connection, schema: &str) -> Result<Status> {
    match run_command(connection, schema, &Command::Status)? {
        Answer::Status(status) => Ok(*status),
        _ => Err(Error::NotEncrypted),
    }
}

/// The protectors of a database, in the order in which they are tried.
///
/// # Errors
/// As [`status`].
pub fn protectors(connection: &Connection, schema: &str) -> Result<Vec<ProtectorStatus>> {
    match run_command(connection, schema, &Command::Protectors)? {
        Answer::Protectors(protectors) => Ok(protectors),
        _ => Err(Error::NotEncrypted),
    }
}

/// Wraps the database encryption key anew. Without a name, every protector whose provider has a
/// newer version of its key is re-wrapped under that. With the name of a protector, that one is.
/// With another name, that key takes the place of `replace`, or of the first protector.
///
/// # Errors
/// Those of the providers; [`Error::Busy`] where another connection writes for longer than 5
/// seconds; [`Error::ReadOnly`]; [`Error::Usage`] within a transaction. Nothing has changed then.
/// [`Error::Unfinished`] where the disk failed in the middle.
pub fn rotate_protector(
    connection: &Connection,
    schema: &str,
    to: Option<&str>,
    replace: Option<&str>,
) -> Result<Change> {
    let own = |name: Option<&str>| name.map(str::to_owned);
    change(connection, schema, &Command::Rotate { to: own(to), replace: own(replace) })
}

/// Adds a protector: another key that opens the database by itself. There can be 8. It has to give
/// the key back once, unless its provider says that the key is not here or denied, as with the
/// public key of another party. A warning then says so.
///
/// # Errors
/// As [`rotate_protector`].
pub fn add_protector(connection: &Connection, schema: &str, new: NewProtector) -> Result<Change> {
    change(connection, schema, &Command::Add(new))
}

/// Makes these the protectors of a database, in this order where all are new, and none else. Each
/// wraps the database encryption key anew, and all of them are written in one step: it is how a
/// copy of a database gets the protectors of another one.
///
/// # Errors
/// As [`rotate_protector`]; [`Error::Usage`] where none of them may write and gives the key back,
/// or where the policy asks for more.
pub fn set_protectors(
    connection: &Connection,
    schema: &str,
    protectors: Vec<NewProtector>,
) -> Result<Change> {
    change(connection, schema, &Command::Set(protectors))
}

/// Removes a protector, and what it wrapped from the file. The last one stays, and so does the last
/// one that may write and gives the keys here: where no other one has done so in this process, they
/// are asked. Whoever opened the database through it may go on until its keys are re-validated;
/// copies of the file from before are opened by it as before. Where a crash cut off an earlier
/// removal of the same protector, this finishes it, and a warning says so.
///
/// # Errors
/// As [`rotate_protector`].
pub fn remove_protector(connection: &Connection, schema: &str, name: &str) -> Result<Change> {
    change(connection, schema, &Command::Remove(name.to_owned()))
}

/// Says whether protectors of this database are re-wrapped by themselves when their provider has a
/// newer version of their key.
///
/// # Errors
/// As [`rotate_protector`].
pub fn set_auto_rotate(connection: &Connection, schema: &str, on: bool) -> Result<Change> {
    change(connection, schema, &Command::AutoRotate(Some(on)))
}

/// Asks each protector's provider for the key: is it configured, reachable, does it have the key,
/// does that unwrap, and is what it gives the key in use?
///
/// # Errors
/// As [`status`]; what is wrong with a protector is no error but an answer.
pub fn check_protectors(connection: &Connection, schema: &str) -> Result<Vec<ProtectorCheck>> {
    match run_command(connection, schema, &Command::CheckProtectors)? {
        Answer::Checks(checks) => Ok(checks),
        _ => Err(Error::NotEncrypted),
    }
}

/// Refuses a protector whose provider has another secret by now, such as another passphrase, than
/// the one that the protector was made with. What its provider does not unwrap for us otherwise,
/// such as a key of another party, is no error here: [`check_protectors`] says more.
///
/// # Errors
/// [`Error::WrongKey`] where it is another one; otherwise as [`status`].
pub fn check_secret(connection: &Connection, schema: &str, protector: &str) -> Result<()> {
    run_command(connection, schema, &Command::CheckSecret(protector.to_owned())).map(|_| ())
}

/// Refuses a copy without the protectors called `without` where the policy asks for more than are
/// left, or gives a warning where it asks for that.
///
/// # Errors
/// [`Error::Usage`] where it is refused; otherwise as [`status`].
pub fn check_copy(
    connection: &Connection,
    schema: &str,
    without: &[String],
) -> Result<Option<String>> {
    match run_command(connection, schema, &Command::CheckCopy(without.to_vec()))? {
        Answer::Text(warning) => Ok(Some(warning).filter(|warning| !warning.is_empty())),
        _ => Err(Error::NotEncrypted),
    }
}

/// Wipes the keys of the database in this process, for all its connections. The next transaction
/// asks the provider for them.
///
/// # Errors
/// As [`status`].
pub fn lock(connection: &Connection, schema: &str) -> Result<()> {
    run_command(connection, schema, &Command::Lock).map(|_| ())
}

fn change(connection: &Connection, schema: &str, command: &Command) -> Result<Change> {
    // A transaction that a crash cut off is rolled back by reading. Where others are in the way of
    // that, or it fails, the command itself waits, and tells what is wrong.
    let name = schema.replace('"', "\"\"");
    let read = format!("SELECT count(*) FROM \"{name}\".sqlite_schema");
    let _ = connection.query_row(&read, [], |_| Ok(()));
    match run_command(connection, schema, command)? {
        Answer::Change(change) => Ok(change),
        _ => Err(Error::NotEncrypted),
    }
}
