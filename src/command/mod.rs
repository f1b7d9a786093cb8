//! Commands on an open database: PRAGMAs, SQL functions and the Rust API all become a [`Command`],
//! and [`run`] executes it.
//!
//! | file | what |
//! |---|---|
//! | this one | from words to a command, and from a command to its answer |
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
use crate::process::time::unless_never;

/// How long a key operation waits for other connections that write.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A query or a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Status,
    Protectors,
    Cipher,
    /// Whether each protector gives the key that is in use.
    CheckProtectors,
    /// Whether the configured secret of this protector is the one that it was created with.
    CheckSecret(String),
    /// Whether policy allows a copy without these protectors.
    CheckCopy(Vec<String>),
    Rotate {
        to: Option<String>,
        replace: Option<String>,
    },
    Add(NewProtector),
    /// Makes these the protectors, in one step.
    Set(Vec<NewProtector>),
    Remove(String),
    AutoRotate(Option<bool>),
    Lock,
}

/// An answer, as text for a PRAGMA or an SQL function.
pub(crate) enum Answer {
    Text(String),
    Status(Box<Status>),
    Protectors(Vec<ProtectorStatus>),
    Checks(Vec<ProtectorCheck>),
    Change(Change),
}

impl Answer {
    pub(crate) fn into_text(self) -> Result<String> {
        fn json(value: &impl Serialize) -> Result<String> {
            serde_json::to_string(value).map_err(|error| Error::Usage(error.to_string()))
        }
        match self {
            Self::Text(text) => Ok(text),
            Self::Status(status) => json(&status),
            Self::Protectors(protectors) => json(&protectors),
            Self::Checks(checks) => json(&checks),
            Self::Change(change) => json(&change),
        }
    }
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
            ("tde_auto_rotate", None) => Self::AutoRotate(None),
            ("tde_auto_rotate", Some(value)) => Self::AutoRotate(Some(is_on(value)?)),
            ("tde_rotate_protector", to) => {
                Self::Rotate { to: to.map(str::to_owned), replace: None }
            }
            ("tde_add_protector", Some(name)) => Self::Add(NewProtector::new(name)),
            ("tde_remove_protector", Some(name)) => Self::Remove(name.to_owned()),
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
            Self::Rotate { to, .. } => {
                Self::Rotate { to, replace: rest.next().flatten().map(str::to_owned) }
            }
            Self::Add(new) => {
                let read_only = rest.next().flatten().is_some_and(|flag| flag != "0");
                let seconds = rest.next().flatten().map_or(Ok(0), |text| {
                    text.parse().map_err(|_| {
                        Error::Usage(format!("{name}: {text} is no time in Unix seconds"))
                    })
                })?;
                Self::Add(new.read_only(read_only).not_after(unless_never(seconds)))
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
        match self {
            Self::Rotate { .. } | Self::Add(_) | Self::Set(_) | Self::Remove(_) => true,
            Self::AutoRotate(on) => on.is_some(),
            Self::Status | Self::Protectors | Self::Cipher | Self::Lock => false,
            Self::CheckProtectors | Self::CheckSecret(_) | Self::CheckCopy(_) => false,
        }
    }

    /// Whether it may ask a provider or write the envelope, which a transaction of the same
    /// connection would make others wait for.
    fn needs_no_transaction(&self) -> bool {
        !matches!(self, Self::Status | Self::Protectors | Self::Cipher | Self::AutoRotate(None))
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
    run(db, &command)?.into_text().map(Some)
}

/// Refuses a change on a connection with `PRAGMA query_only=ON`.
///
/// # Errors
/// [`Error::ReadOnly`], always.
pub(crate) fn refuse_on_query_only<T>(db: &mut Database<impl Host>) -> Result<T> {
    let words = "PRAGMA query_only is on for this connection, and protectors are a change of the \
                 database: turn it off first, or use another connection";
    let error = Error::ReadOnly(words.into());
    db.keys()?.0.refused(&error);
    Err(error)
}

/// Executes `command` and returns its answer.
pub(crate) fn run(db: &mut Database<impl Host>, command: &Command) -> Result<Answer> {
    if command.needs_no_transaction() && (db.is_in_transaction() || db.host.is_writing()) {
        return Err(Error::Usage(
            "keys are not changed or checked within a transaction, or by a statement that writes: \
             others may wait for its locks"
                .into(),
        ));
    }
    let (session, host) = db.keys()?;
    if *command == Command::Lock {
        session.lock_keys()?;
        return Ok(Answer::Text("locked".into()));
    }
    if *command != Command::CheckProtectors {
        session.begin(host)?;
        if db.is_idle() {
            db.main.transaction_begins();
        }
    }
    let (session, host) = db.keys()?;
    Ok(match command {
        Command::Status => Answer::Status(Box::new(status::status(db)?)),
        Command::Protectors => {
            let envelope = session.refresh_envelope(host)?.clone();
            Answer::Protectors(status::protectors(session, &envelope))
        }
        Command::Cipher => {
            Answer::Text(session.refresh_envelope(host)?.current.suite.name().to_owned())
        }
        Command::CheckProtectors => Answer::Checks(check::check(db)?),
        Command::CheckCopy(without) => {
            let warning = protectors::check_copy(session, host, without)?;
            Answer::Text(warning.unwrap_or_default())
        }
        Command::CheckSecret(name) => {
            protectors::check_secret(session, host, name)?;
            Answer::Text(String::new())
        }
        Command::Rotate { to: None, .. } => Answer::Change(protectors::rotate_all(db)?),
        Command::Rotate { to: Some(to), replace } => {
            Answer::Change(protectors::rotate_to(db, to, replace.as_deref())?)
        }
        Command::Set(wanted) => Answer::Change(protectors::set(db, wanted)?),
        Command::Add(new) => Answer::Change(protectors::add(db, new)?),
        Command::Remove(name) => Answer::Change(protectors::remove(db, name)?),
        Command::AutoRotate(None) => {
            let on = !session.refresh_envelope(host)?.manual_rotation;
            Answer::Text(if on { "on" } else { "off" }.into())
        }
        Command::AutoRotate(Some(on)) => Answer::Change(protectors::auto_rotate(db, *on)?),
        Command::Lock => Answer::Text(String::new()),
    })
}
