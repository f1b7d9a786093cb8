//! A keystore and a VFS of a test's own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::Connection;
use sqlite_tde::provider::Keystore;
use sqlite_tde::{AccessPolicy, OpenOptions, Options, Tuning};

/// A registration under `name`. `SQLITE_TDE_SHORTCUTS=off` makes a test do without the short cuts
/// to the disk.
pub fn options(name: &str) -> Options {
    let off = std::env::var_os("SQLITE_TDE_SHORTCUTS").is_some_and(|value| value == "off");
    Options::new().name(name).tuning(if off { Tuning::OFF } else { Tuning::default() })
}

/// The default policy, except that a provider is asked once.
pub fn one_attempt() -> AccessPolicy {
    let mut policy = AccessPolicy::default();
    policy.attempts = 1;
    policy
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

    /// A new database with a table `t(a)` and one row, the number 1.
    pub fn create(&self, name: &str) -> Connection {
        let db = self.open(&self.path(name));
        db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)").unwrap();
        db
    }

    pub fn uri(&self, path: &Path) -> String {
        self.options().uri(path).unwrap()
    }
}
