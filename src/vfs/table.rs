//! Table-valued functions: `SELECT * FROM tde_database_encryption_keys`. [`crate::command`] makes
//! the rows; this file has the methods by which SQLite asks for them.
//!
//! A table is eponymous, cannot be created, and makes its rows anew for each scan.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use crate::ffi;

use super::connection::attached;
use super::{api, guard};
use crate::command::{Cell, VIEWS, View};

#[repr(C)]
struct Table {
    head: ffi::sqlite3_vtab,
    db: *mut ffi::sqlite3,
    view: &'static View,
}

#[repr(C)]
struct Cursor {
    head: ffi::sqlite3_vtab_cursor,
    rows: Vec<Vec<Cell>>,
    at: usize,
}

static MODULE: ffi::sqlite3_module = ffi::sqlite3_module {
    iVersion: 0,
    xCreate: None,
    xConnect: Some(connect),
    xBestIndex: Some(best_index),
    xDisconnect: Some(disconnect),
    xDestroy: None,
    xOpen: Some(open),
    xClose: Some(close),
    xFilter: Some(filter),
    xNext: Some(next),
    xEof: Some(eof),
    xColumn: Some(column),
    xRowid: Some(rowid),
    xUpdate: None,
    xBegin: None,
    xSync: None,
    xCommit: None,
    xRollback: None,
    xFindFunction: None,
    xRename: None,
    xSavepoint: None,
    xRelease: None,
    xRollbackTo: None,
    xShadowName: None,
    xIntegrity: None,
};

/// Adds the tables to `db`.
///
/// # Safety
/// `db` is open.
pub(super) unsafe fn add_tables(db: *mut ffi::sqlite3) -> c_int {
    for view in &VIEWS {
        // SAFETY: as above; module and view live as long as the process.
        let code = unsafe {
            api::create_module(db, view.name, &MODULE, ptr::from_ref(view).cast_mut().cast())
        };
        if code != ffi::SQLITE_OK {
            return code;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn connect(
    db: *mut ffi::sqlite3,
    view: *mut c_void,
    _argc: c_int,
    _argv: *const *const c_char,
    out: *mut *mut ffi::sqlite3_vtab,
    _message: *mut *mut c_char,
) -> c_int {
    // SAFETY: `view` is what `add_tables` passed; the box is freed in `disconnect`.
    guard(|| unsafe {
        let view: &'static View = &*view.cast::<View>().cast_const();
        let code = api::declare_table(db, view.declaration);
        if code == ffi::SQLITE_OK {
            let head =
                ffi::sqlite3_vtab { pModule: ptr::null(), nRef: 0, zErrMsg: ptr::null_mut() };
            *out = Box::into_raw(Box::new(Table { head, db, view })).cast();
        }
        Ok(code)
    })
}

unsafe extern "C" fn disconnect(table: *mut ffi::sqlite3_vtab) -> c_int {
    // SAFETY: `connect` made it, and this is the last call on it.
    guard(|| unsafe {
        drop(Box::from_raw(table.cast::<Table>()));
        Ok(ffi::SQLITE_OK)
    })
}

/// There is one plan: all rows.
unsafe extern "C" fn best_index(
    _table: *mut ffi::sqlite3_vtab,
    _info: *mut ffi::sqlite3_index_info,
) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn open(
    _table: *mut ffi::sqlite3_vtab,
    out: *mut *mut ffi::sqlite3_vtab_cursor,
) -> c_int {
    // SAFETY: `out` points to a pointer; the box is freed in `close`.
    guard(|| unsafe {
        let head = ffi::sqlite3_vtab_cursor { pVtab: ptr::null_mut() };
        *out = Box::into_raw(Box::new(Cursor { head, rows: Vec::new(), at: 0 })).cast();
        Ok(ffi::SQLITE_OK)
    })
}

unsafe extern "C" fn close(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: `open` made it, and this is the last call on it.
    guard(|| unsafe {
        drop(Box::from_raw(cursor.cast::<Cursor>()));
        Ok(ffi::SQLITE_OK)
    })
}

/// The cursor behind SQLite's pointer.
///
/// # Safety
/// SQLite called one of our methods on `cursor`. It calls one at a time on a cursor.
unsafe fn opened<'a>(cursor: *mut ffi::sqlite3_vtab_cursor) -> &'a mut Cursor {
    // SAFETY: only `open` makes SQLite call our methods, and `close` ends that.
    unsafe { &mut *cursor.cast::<Cursor>() }
}

unsafe extern "C" fn filter(
    cursor: *mut ffi::sqlite3_vtab_cursor,
    _index: c_int,
    _text: *const c_char,
    _argc: c_int,
    _argv: *mut *mut ffi::sqlite3_value,
) -> c_int {
    // SAFETY: see `opened`; SQLite sets pVtab, and the table is connected while a cursor is open.
    guard(|| unsafe {
        let cursor = opened(cursor);
        let table = &*cursor.head.pVtab.cast::<Table>().cast_const();
        cursor.at = 0;
        cursor.rows = attached(table.db)?.iter().flat_map(table.view.rows).collect();
        Ok(ffi::SQLITE_OK)
    })
}

unsafe extern "C" fn next(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: see `opened`.
    guard(|| unsafe {
        opened(cursor).at += 1;
        Ok(ffi::SQLITE_OK)
    })
}

unsafe extern "C" fn eof(cursor: *mut ffi::sqlite3_vtab_cursor) -> c_int {
    // SAFETY: see `opened`.
    let cursor = unsafe { opened(cursor) };
    c_int::from(cursor.at >= cursor.rows.len())
}

unsafe extern "C" fn column(
    cursor: *mut ffi::sqlite3_vtab_cursor,
    context: *mut ffi::sqlite3_context,
    number: c_int,
) -> c_int {
    // SAFETY: see `opened`; the context is that of this call.
    guard(|| unsafe {
        let cursor = opened(cursor);
        let row = cursor.rows.get(cursor.at);
        match usize::try_from(number).ok().and_then(|number| row?.get(number)) {
            Some(Cell::Integer(value)) => api::result_integer(context, *value),
            Some(Cell::Text(text)) => api::result_text(context, Some(text)),
            Some(Cell::Null) | None => api::result_text(context, None),
        }
        Ok(ffi::SQLITE_OK)
    })
}

unsafe extern "C" fn rowid(
    cursor: *mut ffi::sqlite3_vtab_cursor,
    out: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: see `opened`; `out` points to an integer.
    guard(|| unsafe {
        *out = opened(cursor).at as i64;
        Ok(ffi::SQLITE_OK)
    })
}
