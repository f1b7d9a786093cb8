//! Queries and changes of the keys of an open database, a function each: the Rust API calls them;
//! PRAGMAs and SQL functions become a [`Command`], and [`run`] answers it in text.
//!
//! | file | what |
//! |---|---|
//! | this one | from words to a command, and the functions |
//! | `status.rs` | state of the keys, protectors and pages |
//! | `check.rs` | whether protectors give the key in use |
//! | `protectors.rs` | adding, rotating and removing protectors |
//! | `views.rs` | the table-valued functions |
//!
//! SQLite asks for a PRAGMA at each *prepare*. So each command may run twice: a change that is
//! already made returns its answer and is not repeated.

mod check;
mod protectors;
mod status;
mod views;

use std::time::Duration;

use serde::Serialize;

pub use check::ProtectorCheck;
pub use protectors::{Change, NewProtector, RotateProtector, Skipped};
#[cfg(feature = "rusqlite")]
pub(crate) use status::Verifier;
pub use status::{ProtectorStatus, Status, Verification};
pub(crate) use views::{Attached, Cell, VIEWS, View};

use crate::db::Database;
use crate::db::host::Host;
use crate::error::{Error, Result};
use crate::key::session::Session;
use crate::process::time::unless_never;

/// How long a key operation waits for other connections that write.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A query or a change, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Status,
    Protectors,
    Cipher,
    AutoRotate,
    CheckProtectors,
    Lock,
    Change(Edit),
}

/// A change of the protectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    Rotate(RotateProtector),
    Add(NewProtector),
    /// Makes these the protectors, in one step.
    Set(Vec<NewProtector>),
    Remove(String),
    AutoRotate(bool),
}

impl Command {
    /// The command called `name`, with the value that a PRAGMA sets or a function was given.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown command or value.
    pub(crate) fn parse(name: &str, value: Option<&str>) -> Result<Self> {
        let value = value.map(str::trim).filter(|value| !value.is_empty());
        if let Some(value) = value {
            refuse_key_material(name, value)?;
        }
        Ok(match (name, value) {
            ("tde_status", None) => Self::Status,
            ("tde_protectors", None) => Self::Protectors,
            ("tde_cipher", None) => Self::Cipher,
            ("tde_check_protectors", None) => Self::CheckProtectors,
            ("tde_lock", None) => Self::Lock,
            ("tde_auto_rotate", None) => Self::AutoRotate,
            ("tde_auto_rotate", Some(value)) => Self::Change(Edit::AutoRotate(is_on(value)?)),
            ("tde_rotate_protector", to) => {
                let to = to.map_or_else(RotateProtector::all, RotateProtector::to);
                Self::Change(Edit::Rotate(to))
            }
            ("tde_add_protector", Some(name)) => Self::Change(Edit::Add(NewProtector::new(name))),
            ("tde_remove_protector", Some(name)) => Self::Change(Edit::Remove(name.to_owned())),
            ("tde_add_protector" | "tde_remove_protector", None) => {
                return Err(Error::Usage(format!("{name} needs the name of a protector")));
            }
            (_, value) => {
                let with = if value.is_some() { " that takes a value" } else { "" };
                return Err(Error::Usage(format!("there is no PRAGMA {name}{with}")));
            }
        })
    }

    /// The schema and the command of a call of the SQL function `name`: first the PRAGMA's value,
    /// if it takes one, then the schema, then arguments that the PRAGMA does not have.
    ///
    /// # Errors
    /// As [`Command::parse`]; [`Error::Usage`] for too many arguments.
    pub(crate) fn call(name: &str, arguments: &[Option<String>]) -> Result<(String, Self)> {
        let takes_value = matches!(
            name,
            "tde_auto_rotate"
                | "tde_rotate_protector"
                | "tde_add_protector"
                | "tde_remove_protector"
        );
        let mut rest = arguments.iter().map(Option::as_deref);
        let value = if takes_value { rest.next().flatten() } else { None };
        let schema = rest.next().flatten().unwrap_or("main").to_owned();
        let command = match Self::parse(name, value)? {
            Self::Change(Edit::Rotate(RotateProtector { to, .. })) => {
                let replace = rest.next().flatten().map(str::to_owned);
                Self::Change(Edit::Rotate(RotateProtector { to, replace }))
            }
            Self::Change(Edit::Add(new)) => {
                let read_only = rest.next().flatten().is_some_and(|flag| flag != "0");
                let seconds = rest.next().flatten().map_or(Ok(0), |text| {
                    text.parse().map_err(|_| {
                        Error::Usage(format!("{name}: {text} is no time in Unix seconds"))
                    })
                })?;
                let new = new.read_only(read_only).not_after(unless_never(seconds));
                Self::Change(Edit::Add(new))
            }
            command => command,
        };
        match rest.next() {
            None => Ok((schema, command)),
            Some(_) => Err(Error::Usage(format!("{name}: too many arguments"))),
        }
    }

    /// Whether it changes the envelope.
    pub(crate) fn changes(&self) -> bool {
        matches!(self, Self::Change(_))
    }
}

fn is_on(value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Ok(true),
        "off" | "false" | "no" | "0" => Ok(false),
        _ => Err(Error::Usage(format!("tde_auto_rotate = {value}: expected ON or OFF"))),
    }
}

/// PRAGMAs with which other software takes a key out of SQL text.
const KEYS_IN_SQL: [&str; 8] =
    ["key", "rekey", "hexkey", "hexrekey", "textkey", "textrekey", "tde_key", "tde_passphrase"];

fn refuse_key_material(name: &str, value: &str) -> Result<()> {
    let digits = value.trim_matches(['x', 'X', '\'', '"']);
    let looks_like_a_key =
        digits.len() >= 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if looks_like_a_key { Err(key_in_sql(name)) } else { Ok(()) }
}

fn key_in_sql(name: &str) -> Error {
    Error::Usage(format!(
        "{name}: keys and passphrases are not taken from SQL, which traces, logs and histories show: \
         a key provider holds them, and SQL names it (PRAGMA tde_add_protector = 'provider:key')"
    ))
}

/// Answers `PRAGMA name = value`: `None` if it is SQLite's, an error if it must not run.
pub(crate) fn pragma(
    db: &mut Database<impl Host>,
    name: &str,
    value: Option<&str>,
) -> Result<Option<String>> {
    let name = name.to_ascii_lowercase();
    let plain = db.main.is_plain();
    if KEYS_IN_SQL.contains(&name.as_str()) && (!plain || name.starts_with("tde_")) {
        return Err(key_in_sql(&name));
    }
    match value {
        _ if name.starts_with("tde_") => {}
        Some(size) if name == "page_size" && !plain => {
            return status::page_size(&db.main, size).map(|()| None);
        }
        _ => return Ok(None),
    }
    let command = Command::parse(&name, value)?;
    run(db, &command).map(Some)
}

/// Refuses a change on a connection with `PRAGMA query_only=ON`.
///
/// # Errors
/// [`Error::ReadOnly`], always.
pub(crate) fn refuse_change<T>(db: &mut Database<impl Host>, words: &str) -> Result<T> {
    let error = Error::ReadOnly { reason: words.into(), protector: None };
    db.keys()?.0.refused(&error);
    Err(error)
}

/// Executes `command` and returns its answer as text.
pub(crate) fn run(db: &mut Database<impl Host>, command: &Command) -> Result<String> {
    match command {
        Command::Status => json(&status(db)?),
        Command::Protectors => json(&protectors(db)?),
        Command::CheckProtectors => json(&check_protectors(db)?),
        Command::Change(edit) => json(&change(db, edit)?),
        Command::Lock => lock(db).map(|()| "locked".into()),
        Command::Cipher => {
            let (session, host) = begin(db)?;
            Ok(session.refresh_envelope(host)?.current.suite.name().to_owned())
        }
        Command::AutoRotate => {
            let (session, host) = begin(db)?;
            let on = !session.refresh_envelope(host)?.manual_rotation;
            Ok(if on { "on" } else { "off" }.into())
        }
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Usage(error.to_string()))
}

/// State of the encryption.
pub(crate) fn status(db: &mut Database<impl Host>) -> Result<Status> {
    begin(db)?;
    status::status(db)
}

/// The protectors, in the order of trying.
pub(crate) fn protectors(db: &mut Database<impl Host>) -> Result<Vec<ProtectorStatus>> {
    let (session, host) = begin(db)?;
    let envelope = session.refresh_envelope(host)?.clone();
    Ok(status::protectors(session, &envelope))
}

/// Whether each protector gives the key that is in use.
pub(crate) fn check_protectors(db: &mut Database<impl Host>) -> Result<Vec<ProtectorCheck>> {
    refuse_in_transaction(db)?;
    check::check(db)
}

/// Whether the configured secret of the protector `name` is the one that it was created with.
pub(crate) fn check_secret(db: &mut Database<impl Host>, name: &str) -> Result<()> {
    refuse_in_transaction(db)?;
    let (session, host) = begin(db)?;
    protectors::check_secret(session, host, name)
}

/// Whether policy allows a copy without these protectors, and its warning.
pub(crate) fn check_copy(
    db: &mut Database<impl Host>,
    without: &[String],
) -> Result<Option<String>> {
    refuse_in_transaction(db)?;
    let (session, host) = begin(db)?;
    protectors::check_copy(session, host, without)
}

/// Wipes the keys in this process.
pub(crate) fn lock(db: &mut Database<impl Host>) -> Result<()> {
    refuse_in_transaction(db)?;
    db.keys()?.0.lock_keys()
}

/// Changes the protectors.
pub(crate) fn change(db: &mut Database<impl Host>, edit: &Edit) -> Result<Change> {
    refuse_in_transaction(db)?;
    begin(db)?;
    match edit {
        Edit::Rotate(RotateProtector { to: None, .. }) => protectors::rotate_all(db),
        Edit::Rotate(RotateProtector { to: Some(to), replace }) => {
            protectors::rotate_to(db, to, replace.as_deref())
        }
        Edit::Set(wanted) => protectors::set(db, wanted),
        Edit::Add(new) => protectors::add(db, new),
        Edit::Remove(name) => protectors::remove(db, name),
        Edit::AutoRotate(on) => protectors::auto_rotate(db, *on),
    }
}

/// Begins a use of the keys, as a transaction does.
fn begin<H: Host>(db: &mut Database<H>) -> Result<(&mut Session, &H)> {
    let (session, host) = db.keys()?;
    session.begin(host)?;
    if db.is_idle() {
        db.main.transaction_begins();
    }
    db.keys()
}

/// Refuses what may ask a provider or write the envelope where others may wait for locks of the
/// same connection.
fn refuse_in_transaction(db: &Database<impl Host>) -> Result<()> {
    if !db.is_in_transaction() && !db.host.is_writing() {
        return Ok(());
    }
    let words = "keys are not changed or checked within a transaction, or by a statement that \
                 writes: others may wait for its locks";
    Err(Error::Usage(words.into()))
}
