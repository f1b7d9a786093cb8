//! What is done to a database, statement by statement, and in which modes.

use sqlite_tde::Cipher;

pub struct Mode {
    pub journal: &'static str,
    pub locking: &'static str,
    /// Opened with `nolock=1`: SQLite never takes a lock.
    pub nolock: bool,
    pub cipher: Cipher,
}

impl Mode {
    pub fn name(&self) -> String {
        let Self { journal, locking, nolock, cipher } = self;
        format!("{journal}|{locking}|{nolock}|{}", cipher.name())
    }

    /// Every journal mode with every locking mode and cipher, and those that do without locks.
    pub fn all() -> Vec<Self> {
        let mut modes = Vec::new();
        for cipher in Cipher::ALL {
            for journal in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"] {
                for locking in ["NORMAL", "EXCLUSIVE"] {
                    modes.push(Self { journal, locking, nolock: false, cipher });
                }
            }
            for (journal, locking) in
                [("DELETE", "NORMAL"), ("PERSIST", "EXCLUSIVE"), ("WAL", "EXCLUSIVE")]
            {
                modes.push(Self { journal, locking, nolock: true, cipher });
            }
        }
        modes
    }

    /// Said to each connection.
    pub fn settings(&self) -> String {
        format!(
            "PRAGMA page_size={}; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA cache_size=5;
             PRAGMA temp_store=FILE; PRAGMA temp.cache_size=5;
             PRAGMA locking_mode={}; PRAGMA journal_mode={}",
            super::seals::PAGE,
            self.locking,
            self.journal
        )
    }

    /// `sql` with the number of whoever does it. Without a journal nothing can be rolled back.
    pub fn statement(&self, sql: &str, number: usize) -> String {
        let sql = sql.replace("{n}", &number.to_string());
        match sql.as_str() {
            "ROLLBACK" if self.journal == "OFF" => "COMMIT".into(),
            "ROLLBACK TO s" if self.journal == "OFF" => "RELEASE s".into(),
            _ => sql,
        }
    }
}

/// Most of each page is the same character, so that a nonce that came twice would show.
pub const TABLES: &str = "
    CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
    CREATE INDEX ta ON t(b);
    WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 40)
    INSERT INTO t SELECT i, printf('%0900d', i) FROM i";

/// Every road by which a byte is written. `{n}` is another number for everybody.
pub const STATEMENTS: &[&str] = &[
    "UPDATE t SET b = printf('%0900d', a + {n}) WHERE a < 30",
    "BEGIN",
    "UPDATE t SET b = printf('%0900d', a * {n})",
    "SAVEPOINT s",
    "DELETE FROM t WHERE a % 3 = 0",
    "UPDATE t SET b = printf('%0800d', a - {n})",
    "ROLLBACK TO s",
    "INSERT INTO t(b) SELECT b || {n} FROM t WHERE a % 7 = 0",
    "COMMIT",
    "PRAGMA wal_checkpoint(PASSIVE)",
    "UPDATE t SET b = printf('%0900d', {n}) WHERE a % 5 = 0",
    "PRAGMA wal_checkpoint(FULL)",
    "UPDATE t SET b = printf('%0900d', {n} + 1) WHERE a % 5 = 1",
    "PRAGMA wal_checkpoint(RESTART)",
    "UPDATE t SET b = printf('%0900d', {n} + 2) WHERE a % 5 = 2",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "BEGIN IMMEDIATE",
    "UPDATE t SET b = printf('%0900d', {n} + a)",
    "ROLLBACK",
    "CREATE TEMP TABLE x AS SELECT a, printf('%0900d', 0) b FROM t",
    "UPDATE temp.x SET b = printf('%0950d', 0)",
    "INSERT INTO temp.x SELECT a + 1000, b FROM temp.x ORDER BY b DESC",
    "DELETE FROM temp.x WHERE a > 1000",
    "DROP TABLE temp.x",
    "PRAGMA user_version={n}",
    "DELETE FROM t WHERE a % 4 = 0",
    "PRAGMA incremental_vacuum",
    "PRAGMA tde_rotate_protector",
    "INSERT INTO t(b) SELECT printf('%0900d', {n}) FROM t WHERE a < 20",
    "VACUUM",
    "UPDATE t SET b = printf('%0900d', {n}) WHERE a < 4",
    "VACUUM INTO 'file:/into-{n}.db'",
    "UPDATE t SET b = printf('%0900d', {n} + 3) WHERE a < 4",
];
