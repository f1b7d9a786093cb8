//! Connections to compare, dumps, and checks of a database.

use std::ffi::{CStr, c_int};
use std::path::Path;

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, ffi};
use sqlite_tde::TdeConnection;

/// A connection to a plain database, with URIs allowed.
pub fn plain(path: &Path) -> Connection {
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(path, flags).unwrap()
}

/// The first column of the first row.
pub fn one(db: &Connection, sql: &str) -> Value {
    db.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Schema and rows of every table of `schema`, in an order that both sides share.
pub fn dump(db: &Connection, schema: &str) -> Vec<String> {
    let mut out = rows(
        db,
        &format!(
            "SELECT type, name, tbl_name, sql FROM {schema}.sqlite_schema ORDER BY name, type"
        ),
    );
    let tables: Vec<String> = db
        .prepare(&format!("SELECT name FROM {schema}.sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"))
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for table in tables {
        out.push(table.clone());
        out.extend(rows(db, &format!("SELECT * FROM {schema}.\"{table}\"")));
    }
    out
}

pub fn rows(db: &Connection, sql: &str) -> Vec<String> {
    try_rows(db, sql).unwrap()
}

pub fn try_rows(db: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare(sql)?;
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values: Result<Vec<Value>, _> = (0..columns).map(|i| row.get(i)).collect();
        values.map(|values| format!("{values:?}"))
    })?;
    rows.collect()
}

/// Runs the statements of `sql` up to the first error, and reads their rows to the end.
pub fn run(db: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut batch = rusqlite::Batch::new(db, sql);
    while let Some(mut statement) = batch.next()? {
        let mut rows = statement.raw_query();
        while rows.next()?.is_some() {}
    }
    Ok(())
}

/// SQLite's extended code of an error; 0 for an error of rusqlite's own.
pub fn code(error: &rusqlite::Error) -> i32 {
    error.sqlite_error().map_or(0, |error| error.extended_code)
}

/// SQLite and `tde` find the database sound.
pub fn assert_sound(db: &Connection, what: &str) {
    assert_eq!(one(db, "PRAGMA integrity_check"), Value::Text("ok".into()), "{what}");
    assert!(rows(db, "PRAGMA foreign_key_check").is_empty(), "{what}");
    let found = db.tde_verify("main", |_, _| ()).unwrap();
    assert!(found.is_clean(), "{what}: {found:?}");
}

/// Makes the pages of the plain database `schema` end like those of an encrypted one, so that both
/// hold the same cells.
pub fn reserve(db: &Connection, schema: &CStr) {
    let mut bytes = sqlite_tde::RESERVE as c_int;
    // SAFETY: the connection is open, and this control takes a pointer to an int.
    let code = unsafe {
        let op = ffi::SQLITE_FCNTL_RESERVE_BYTES;
        ffi::sqlite3_file_control(db.handle(), schema.as_ptr(), op, (&raw mut bytes).cast())
    };
    assert_eq!(code, ffi::SQLITE_OK);
}

/// Statement journals go to files at once, and sorters after one page, not 250. Has no effect once
/// SQLite is in use.
pub fn spill_at_once() {
    // SAFETY: these set integers; where SQLite is in use already, they answer SQLITE_MISUSE.
    unsafe {
        ffi::sqlite3_config(ffi::SQLITE_CONFIG_STMTJRNL_SPILL, 0 as c_int);
        ffi::sqlite3_config(ffi::SQLITE_CONFIG_PMASZ, 1 as c_int);
    }
}
