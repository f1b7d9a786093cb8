//! For rusqlite applications: opening connections.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::error::{Error, Result, clear_last, take_last};
use crate::settings::identity::FileId;
use crate::settings::{Layer, uri};
use crate::suite::SuiteId;
use crate::vfs::connection::with_database;

/// How to open a database.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct OpenOptions {
    vfs: Option<String>,
    flags: OpenFlags,
    said: Layer,
    parameters: Vec<(String, String)>,
}

impl OpenOptions {
    /// Read and write, creating the file where there is none.
    pub fn new() -> Self {
        Self::default()
    }

    /// The name under which the VFS was registered; `tde` unless said.
    pub fn vfs(mut self, name: impl Into<String>) -> Self {
        self.vfs = Some(name.into());
        self
    }

    /// rusqlite's flags; `SQLITE_OPEN_URI` is added.
    pub fn flags(mut self, flags: OpenFlags) -> Self {
        self.flags = flags;
        self
    }

    /// The protector of a new database, or the only one to try on an existing one.
    pub fn protector(mut self, name: impl Into<String>) -> Self {
        self.said.protector = Some(Some(name.into()));
        self
    }

    /// The cipher suite of a new database; an existing one has its own.
    pub fn cipher(mut self, cipher: SuiteId) -> Self {
        self.said.cipher = Some(cipher);
        self
    }

    /// Whether an unencrypted database is opened as it is, instead of refused.
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.said.allow_plaintext = Some(allow);
        self
    }

    /// The database that the file must be: any other is refused, and so is a file that is not there
    /// yet.
    pub fn file_id(mut self, id: FileId) -> Self {
        self.said.file_id = Some(Some(id));
        self
    }

    /// Another parameter of SQLite's URI, such as `immutable=1`.
    pub fn parameter(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.parameters.push((key.into(), value.into()));
        self
    }

    fn vfs_name(&self) -> &str {
        self.vfs.as_deref().unwrap_or("tde")
    }

    /// The URI that says the same to any host: `file:PATH?vfs=tde&...`.
    ///
    /// # Errors
    /// [`Error::Usage`] where `path` is not UTF-8, the only encoding of names that SQLite has,
    /// where anything holds a NUL byte, and for a parameter without a name or one that is given
    /// twice, such as `vfs`: SQLite takes the first of two, whatever the other says.
    pub fn uri(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        let text = path.to_str().ok_or_else(|| {
            Error::Usage(format!("{}: the path is not UTF-8, as SQLite needs it", path.display()))
        })?;
        let vfs = std::iter::once(("vfs", self.vfs_name().to_owned()));
        let own = uri::write(&self.said);
        let others = self.parameters.iter().map(|(key, value)| (key.as_str(), value.clone()));
        // Two slashes would begin the name of a host, which is empty here.
        let host = if text.starts_with("//") { "//" } else { "" };
        let mut uri = format!("file:{host}{}", escape(text));
        let mut known = BTreeSet::new();
        for (key, value) in vfs.chain(own).chain(others) {
            if key.is_empty() || !known.insert(key) {
                let wrong = if key.is_empty() { "has no name" } else { "is given twice" };
                return Err(Error::Usage(format!("the URI parameter {key:?} {wrong}")));
            }
            let start = if known.len() == 1 { '?' } else { '&' };
            uri.push_str(&format!("{start}{}={}", escape(key), escape(&value)));
        }
        // SQLite would take what stands before it for the whole.
        if uri.contains("%00") {
            return Err(Error::Usage(format!("{text:?}: a NUL byte in the path or a parameter")));
        }
        Ok(uri)
    }
}

/// Keeps a path's bytes out of the syntax of a URI.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~:".contains(&byte);
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            byte if plain(byte) => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Opens the database at `path`, creating it where there is none.
///
/// # Errors
/// As [`open_with`].
pub fn open(path: impl AsRef<Path>) -> Result<Connection> {
    open_with(path, &OpenOptions::default())
}

/// Opens the database at `path` as `options` say.
///
/// # Errors
/// Typed, so that wrong key, damage, plaintext and a key provider that is down can be told apart;
/// [`Error::Usage`] where the options say something that the VFS, which is none of this library's,
/// would pass over; [`Error::Sqlite`] for SQLite's own.
pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Connection> {
    let uri = options.uri(path)?;
    clear_last();
    let connection = Connection::open_with_flags(uri, options.flags | OpenFlags::SQLITE_OPEN_URI)
        .map_err(|error| take_last(|_, _| true).unwrap_or(Error::Sqlite(error)))?;
    let says_nothing = options.said == Layer::default()
        && !options.parameters.iter().any(|(name, _)| uri::is_ours(name));
    let is_heard = says_nothing
        || !matches!(
            with_database(&connection, "main", false, |_| Ok(())),
            Err(Error::NotEncrypted)
        );
    if is_heard {
        return Ok(connection);
    }
    let vfs = options.vfs_name();
    Err(Error::Usage(format!(
        "the VFS {vfs:?} does not encrypt this file: protector, cipher and the like would be \
         passed over"
    )))
}
