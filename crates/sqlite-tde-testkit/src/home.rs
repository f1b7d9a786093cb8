//! What the tests share: a keystore of their own, connections to compare, and dumps.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use sqlite_tde::provider::Keystore;
use sqlite_tde::{OpenOptions, Options, Tuning};

/// A registration under `name`. `SQLITE_TDE_SHORTCUTS=off` makes a test do without the short cuts
/// to the disk.
pub fn options(name: &str) -> Options {
    let off = std::env::var_os("SQLITE_TDE_SHORTCUTS").is_some_and(|value| value == "off");
    Options::new().name(name).tuning(if off { Tuning::OFF } else { Tuning::default() })
}

/// A directory with a keystore, and a VFS registered for it alone.
pub struct Home {
    pub dir: tempfile::TempDir,
    pub vfs: String,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    pub fn new() -> Self {
        Self::with(|options| options)
    }

    pub fn with(change: impl FnOnce(Options) -> Options) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let vfs = format!("tde-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let keystore = Keystore::at(dir.path().join("keys"));
        sqlite_tde::register(change(options(&vfs).keystore(keystore))).unwrap();
        Self { dir, vfs }
    }

    /// As [`Home::new`], and each write reaches the disk at once: also frames of a transaction that
    /// nobody commits are there to be tampered with.
    pub fn ungathered() -> Self {
        let mut tuning = Tuning::default();
        tuning.gather_writes = false;
        Self::with(|options| options.tuning(tuning))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn options(&self) -> OpenOptions {
        OpenOptions::new().vfs(&self.vfs)
    }

    pub fn open(&self, path: &Path) -> Connection {
        self.try_open(path).unwrap()
    }

    pub fn try_open(&self, path: &Path) -> sqlite_tde::Result<Connection> {
        sqlite_tde::open_with(path, &self.options())
    }

    pub fn uri(&self, path: &Path) -> String {
        self.options().uri(path).unwrap()
    }
}

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
    let mut statement = db.prepare(sql).unwrap();
    let columns = statement.column_count();
    statement
        .query_map([], |row| {
            let values: Result<Vec<Value>, _> = (0..columns).map(|i| row.get(i)).collect();
            values.map(|values| format!("{values:?}"))
        })
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

/// Whether any file under `dir` holds `marker`.
pub fn found_in_files(dir: &Path, marker: &[u8]) -> Option<PathBuf> {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if let Some(found) = found_in_files(&path, marker) {
                return Some(found);
            }
        } else if let Ok(bytes) = std::fs::read(&path)
            && bytes.windows(marker.len()).any(|window| window == marker)
        {
            return Some(path);
        }
    }
    None
}
