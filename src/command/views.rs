//! The table-valued functions: the state of each attached database, as rows.
//!
//! `tde_database_encryption_keys` has the columns and states of SQL Server's
//! `sys.dm_database_encryption_keys`, and three of our own at the end.

use std::ffi::CStr;
use std::time::SystemTime;

use super::status::{ProtectorStatus, Status};
use crate::error::{Error, Result};

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    Null,
    Integer(i64),
    Text(String),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A database of a connection.
pub(crate) struct Attached {
    /// As in `PRAGMA database_list`.
    pub(crate) number: i64,
    pub(crate) schema: String,
    pub(crate) status: Result<Status>,
}

/// A table-valued function.
pub(crate) struct View {
    pub(crate) name: &'static CStr,
    pub(crate) declaration: &'static CStr,
    pub(crate) rows: fn(&Attached) -> Vec<Vec<Cell>>,
}

pub(crate) static VIEWS: [View; 2] = [
    View {
        name: c"tde_database_encryption_keys",
        declaration: c"CREATE TABLE x(database_id INTEGER, encryption_state INTEGER, \
            create_date TEXT, regenerate_date TEXT, modify_date TEXT, set_date TEXT, \
            opened_date TEXT, key_algorithm TEXT, key_length INTEGER, encryptor_thumbprint TEXT, \
            encryptor_type TEXT, percent_complete REAL, encryption_state_desc TEXT, \
            encryption_scan_state INTEGER, encryption_scan_state_desc TEXT, \
            encryption_scan_modify_date TEXT, database_name TEXT, file_id TEXT, error TEXT)",
        rows: encryption_keys,
    },
    View {
        name: c"tde_key_protectors",
        declaration: c"CREATE TABLE x(database_id INTEGER, database_name TEXT, position INTEGER, \
            name TEXT, provider TEXT, key_id TEXT, key_version TEXT, mechanism TEXT, \
            encryptor_type TEXT, encryptor_thumbprint TEXT, not_after TEXT, read_only INTEGER, \
            opened_through INTEGER)",
        rows: key_protectors,
    },
];

/// States of `sys.dm_database_encryption_keys`.
const NO_KEY: (i64, &str) = (0, "NONE");
const ENCRYPTED: (i64, &str) = (3, "ENCRYPTED");

fn encryption_keys(attached: &Attached) -> Vec<Vec<Cell>> {
    let status = attached.status.as_ref().ok();
    let protector = status.and_then(|status| status.protectors.first());
    let error = match &attached.status {
        Ok(_) | Err(Error::NotEncrypted) => None,
        Err(error) => Some(error.to_string()),
    };
    let (state, description) = if status.is_some() { ENCRYPTED } else { NO_KEY };
    let date =
        |of: fn(&Status) -> Option<SystemTime>| Cell::from(status.and_then(of).and_then(date));
    let scan = NO_KEY;
    vec![vec![
        Cell::Integer(attached.number),
        Cell::Integer(state),
        date(|status| Some(status.created)),
        date(|status| status.regenerated),
        date(|status| status.rotated),
        date(|status| Some(status.created)),
        date(|status| Some(status.opened)),
        status.map(|_| "AES").into(),
        status.map_or(Cell::Null, |_| Cell::Integer(256)),
        protector.map(|protector| protector.thumbprint.as_str()).into(),
        protector.and_then(|protector| protector.kind.as_deref()).into(),
        status.map_or(Cell::Null, |_| Cell::Integer(0)),
        description.into(),
        status.map_or(Cell::Null, |_| Cell::Integer(scan.0)),
        status.map(|_| scan.1).into(),
        Cell::Null,
        attached.schema.as_str().into(),
        status.map(|status| status.file_id.as_str()).into(),
        error.as_deref().into(),
    ]]
}

fn key_protectors(attached: &Attached) -> Vec<Vec<Cell>> {
    let Ok(status) = &attached.status else { return Vec::new() };
    let row = |(position, protector): (i64, &ProtectorStatus)| {
        vec![
            Cell::Integer(attached.number),
            attached.schema.as_str().into(),
            Cell::Integer(position),
            protector.name.as_str().into(),
            protector.provider.as_str().into(),
            protector.key.as_str().into(),
            protector.key_version.as_str().into(),
            protector.mechanism.as_str().into(),
            protector.kind.as_deref().into(),
            protector.thumbprint.as_str().into(),
            protector.not_after.and_then(date).into(),
            Cell::Integer(i64::from(protector.read_only)),
            Cell::Integer(i64::from(protector.name == status.opened_through)),
        ]
    };
    (1..).zip(&status.protectors).map(row).collect()
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// A time in UTC as SQLite writes it.
fn date(time: SystemTime) -> Option<String> {
    let time = jiff::Timestamp::try_from(time).ok()?;
    Some(time.strftime("%Y-%m-%d %H:%M:%S").to_string())
}
