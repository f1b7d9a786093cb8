//! What is done when the power fails: the workloads, and the modes they are done in.

use sqlite_tde::Cipher;

/// Tables `n`, with a counter that each transaction moves on, and `t`, whose content follows it.
const TABLES: &str = "
    CREATE TABLE n(a INTEGER PRIMARY KEY, b INTEGER); INSERT INTO n VALUES(1, 0);
    CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
    WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 50)
    INSERT INTO t SELECT i, printf('%0150d', i * 7919 % 1009) FROM i;
    CREATE INDEX tb ON t(b);";

/// In which journal modes a workload makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fits {
    All,
    Wal,
    /// Modes in which plain SQLite, too, survives all; see `plain_sqlite_survives_too`.
    Strict,
    /// Modes after which a crash is only safe between two transactions.
    Volatile,
}

/// The connection that does a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Writer,
    Reader,
}
use By::{Reader, Writer};

pub struct Workload {
    pub name: &'static str,
    pub fits: Fits,
    /// What the database holds before; nothing for one that is created.
    pub setup: &'static str,
    /// What must be said before the database has content.
    pub layout: &'static str,
    pub settings: &'static str,
    /// A second database, with the same content, takes part.
    pub attached: bool,
    /// The first database is plain, and opened by a VFS that knows of no encryption.
    pub mixed: bool,
    /// Protectors are changed, too. Such a change is never lost once it was answered.
    pub keys: bool,
    /// One transaction each.
    pub steps: &'static [(By, &'static str)],
}

const PLAIN: Workload = Workload {
    name: "",
    fits: Fits::All,
    setup: TABLES,
    layout: "",
    settings: "PRAGMA cache_size=5",
    attached: false,
    mixed: false,
    keys: false,
    steps: &[],
};

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "update, spill and roll back",
        steps: &[
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || (SELECT b FROM n); COMMIT"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a % 2; ROLLBACK"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; INSERT INTO t(b) SELECT b || 'x' FROM t; COMMIT"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a > 20; COMMIT"),
        ],
        ..PLAIN
    },
    Workload {
        name: "creation",
        setup: "",
        steps: &[
            (Writer, "CREATE TABLE n(a INTEGER PRIMARY KEY, b INTEGER)"),
            (Writer, "INSERT INTO n VALUES(1, 1)"),
            (
                Writer,
                "BEGIN; UPDATE n SET b = b + 1; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
                 WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 30)
                 INSERT INTO t SELECT i, printf('%0200d', i) FROM i; COMMIT",
            ),
        ],
        ..PLAIN
    },
    Workload {
        name: "creation of much at once",
        setup: "",
        steps: &[
            (
                Writer,
                "BEGIN; CREATE TABLE n(a INTEGER PRIMARY KEY, b INTEGER);
                 CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
                 WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 60)
                 INSERT INTO t SELECT i, printf('%0300d', i) FROM i; ROLLBACK",
            ),
            (
                Writer,
                "BEGIN; CREATE TABLE n(a INTEGER PRIMARY KEY, b INTEGER); INSERT INTO n VALUES(1, 1);
                 CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); CREATE INDEX tb ON t(b);
                 WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 60)
                 INSERT INTO t SELECT i, printf('%0300d', i) FROM i; COMMIT",
            ),
        ],
        ..PLAIN
    },
    Workload {
        name: "savepoints",
        settings: "PRAGMA cache_size=5; PRAGMA temp_store=FILE",
        steps: &[
            (
                Writer,
                "BEGIN; UPDATE n SET b = b + 1; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT",
            ),
            (
                Writer,
                "BEGIN; UPDATE n SET b = b + 1; SAVEPOINT s; UPDATE t SET b = a; SAVEPOINT u;
                 UPDATE t SET b = b || 'u'; ROLLBACK TO u; RELEASE s; COMMIT",
            ),
            (
                Writer,
                "BEGIN; UPDATE n SET b = b + 1; SAVEPOINT s;
                 INSERT OR REPLACE INTO t SELECT a + 25, printf('%0200d', a) FROM t ORDER BY b;
                 ROLLBACK TO s; UPDATE t SET b = b || 'v' WHERE a % 3 = 0; COMMIT",
            ),
        ],
        ..PLAIN
    },
    Workload {
        name: "schema on page 1",
        steps: &[
            (Writer, "BEGIN; UPDATE n SET b = b + 1; CREATE TABLE u(a INTEGER PRIMARY KEY, b); COMMIT"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; INSERT INTO u SELECT a, b FROM t; COMMIT"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; ALTER TABLE u RENAME TO v; COMMIT"),
            (Writer, "PRAGMA user_version=7"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DROP TABLE v; COMMIT"),
        ],
        ..PLAIN
    },
    Workload {
        name: "full autovacuum",
        layout: "PRAGMA auto_vacuum=FULL",
        steps: &[
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a % 3; COMMIT"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; INSERT INTO t(b) SELECT b || 'y' FROM t; COMMIT"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a < 30; COMMIT"),
        ],
        ..PLAIN
    },
    Workload {
        name: "incremental autovacuum",
        layout: "PRAGMA auto_vacuum=INCREMENTAL",
        steps: &[
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a % 3; COMMIT"),
            (Writer, "PRAGMA incremental_vacuum(3)"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; INSERT INTO t(b) SELECT b || 'y' FROM t; COMMIT"),
            (Writer, "BEGIN; DELETE FROM t WHERE a < 30; PRAGMA incremental_vacuum; COMMIT"),
        ],
        ..PLAIN
    },
    Workload {
        name: "vacuum",
        settings: "PRAGMA cache_size=5; PRAGMA temp_store=FILE",
        steps: &[
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a > 20; COMMIT"),
            (Writer, "VACUUM"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || 'z'; COMMIT"),
        ],
        ..PLAIN
    },
    Workload {
        name: "holes",
        steps: &[
            (
                Writer,
                "BEGIN; UPDATE n SET b = b + 1; CREATE TABLE x(a INTEGER PRIMARY KEY, b);
                 INSERT INTO x VALUES(1, zeroblob(20000)); CREATE TABLE y(a INTEGER PRIMARY KEY, b);
                 INSERT INTO y VALUES(1, zeroblob(9000)); DROP TABLE x; COMMIT",
            ),
            (
                Writer,
                "BEGIN; UPDATE n SET b = b + 1; INSERT INTO y VALUES(2, zeroblob(30000)), (3, 'end');
                 DELETE FROM y WHERE a < 3; COMMIT",
            ),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; INSERT INTO t(b) SELECT b || 'h' FROM t; COMMIT"),
        ],
        ..PLAIN
    },
    Workload {
        name: "exclusive locking",
        settings: "PRAGMA locking_mode=EXCLUSIVE; PRAGMA cache_size=5; PRAGMA wal_autocheckpoint=20",
        steps: &[
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || (SELECT b FROM n); COMMIT"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a > 9; COMMIT"),
        ],
        ..PLAIN
    },
    Workload {
        name: "two databases",
        attached: true,
        steps: &[
            (
                Writer,
                "BEGIN; UPDATE main.n SET b = b + 1; UPDATE aux.n SET b = b + 1;
                 UPDATE aux.t SET b = 'x' || b; DELETE FROM main.t WHERE a % 3 = 0; COMMIT",
            ),
            (Writer, "BEGIN; UPDATE main.n SET b = 9; UPDATE aux.n SET b = 9; ROLLBACK"),
            (Writer, "UPDATE aux.n SET b = b + 1"),
            (
                Writer,
                "BEGIN; UPDATE main.n SET b = b + 1; UPDATE aux.n SET b = b + 1;
                 INSERT INTO aux.t(b) SELECT b FROM main.t; COMMIT",
            ),
        ],
        ..PLAIN
    },
    Workload {
        name: "a plain and an encrypted database",
        fits: Fits::Strict,
        settings: "PRAGMA main.cache_size=5; PRAGMA aux.cache_size=5",
        attached: true,
        mixed: true,
        steps: &[
            (
                Writer,
                "BEGIN; UPDATE main.n SET b = b + 1; UPDATE aux.n SET b = b + 1;
                 UPDATE aux.t SET b = 'x' || b; DELETE FROM main.t WHERE a % 3 = 0; COMMIT",
            ),
            (Writer, "BEGIN; UPDATE main.n SET b = 9; UPDATE aux.n SET b = 9; ROLLBACK"),
            (Writer, "UPDATE aux.n SET b = b + 1"),
            (
                Writer,
                "BEGIN; UPDATE main.n SET b = b + 1; UPDATE aux.n SET b = b + 1;
                 INSERT INTO aux.t(b) SELECT b FROM main.t; COMMIT",
            ),
        ],
        ..PLAIN
    },
    Workload {
        name: "checkpoints",
        fits: Fits::Wal,
        settings: "PRAGMA cache_size=5; PRAGMA wal_autocheckpoint=0",
        steps: &[
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || (SELECT b FROM n); COMMIT"),
            (Writer, "PRAGMA wal_checkpoint(PASSIVE)"),
            (
                Writer,
                "BEGIN; UPDATE n SET b = b + 1; CREATE TABLE x(a INTEGER PRIMARY KEY, b);
                 INSERT INTO x VALUES(1, zeroblob(20000)); CREATE TABLE y(a INTEGER PRIMARY KEY, b);
                 INSERT INTO y VALUES(1, zeroblob(9000)); DROP TABLE x; COMMIT",
            ),
            (Writer, "PRAGMA wal_checkpoint(FULL)"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "PRAGMA wal_checkpoint(RESTART)"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a > 30; COMMIT"),
        ],
        ..PLAIN
    },
    Workload {
        name: "small commits, log restarted",
        fits: Fits::Wal,
        settings: "PRAGMA wal_autocheckpoint=7",
        steps: &[
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || 'a' WHERE a % 9 = 0; COMMIT"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || 'b' WHERE a % 7 = 0; COMMIT"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || 'c' WHERE a % 5 = 0; COMMIT"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "UPDATE n SET b = b + 1"),
        ],
        ..PLAIN
    },
    Workload {
        name: "checkpoints beside a reader",
        fits: Fits::Wal,
        settings: "PRAGMA cache_size=5; PRAGMA wal_autocheckpoint=0",
        steps: &[
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || 'a'; COMMIT"),
            (Reader, "BEGIN; SELECT sum(length(b)) FROM t"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || 'b' WHERE a % 2; COMMIT"),
            (Writer, "PRAGMA wal_checkpoint(PASSIVE)"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; INSERT INTO t(b) SELECT b FROM t; COMMIT"),
            (Writer, "PRAGMA wal_checkpoint(RESTART)"),
            (Reader, "SELECT sum(length(b)) FROM t; COMMIT"),
            (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a > 9; COMMIT"),
        ],
        ..PLAIN
    },
    Workload {
        name: "modes switched",
        fits: Fits::Wal,
        steps: &[
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "PRAGMA journal_mode=DELETE"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || 'a'; COMMIT"),
            (Writer, "PRAGMA journal_mode=WAL"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a > 30; COMMIT"),
            (Writer, "PRAGMA journal_mode=PERSIST"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "PRAGMA journal_mode=WAL"),
            (Writer, "UPDATE n SET b = b + 1"),
        ],
        ..PLAIN
    },
    Workload {
        name: "protectors",
        keys: true,
        steps: &[
            (Writer, "PRAGMA tde_add_protector='service:two'"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "PRAGMA tde_rotate_protector"),
            (Reader, "PRAGMA tde_rotate_protector='service:three'"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || 'k'; COMMIT"),
            (Writer, "PRAGMA tde_auto_rotate=OFF"),
            (Writer, "PRAGMA tde_remove_protector='service:two'"),
            (Reader, "PRAGMA tde_add_protector='service:four'"),
        ],
        ..PLAIN
    },
    Workload {
        name: "protectors beside a writer",
        fits: Fits::Wal,
        keys: true,
        settings: "PRAGMA cache_size=5; PRAGMA wal_autocheckpoint=0",
        steps: &[
            // The state after a step is what the first connection sees.
            (Reader, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || 'a'"),
            (Writer, "PRAGMA tde_add_protector='service:two'"),
            (Writer, "PRAGMA tde_rotate_protector='service:key'"),
            (Reader, "UPDATE t SET b = b || 'b'; COMMIT"),
            (Writer, "PRAGMA tde_remove_protector='service:key'"),
            (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
        ],
        ..PLAIN
    },
    Workload {
        name: "between transactions",
        fits: Fits::Volatile,
        steps: &[
            (Writer, "BEGIN; UPDATE n SET b = b + 1; UPDATE t SET b = b || (SELECT b FROM n); COMMIT"),
            (Writer, "UPDATE n SET b = b + 1"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; INSERT INTO t(b) SELECT b FROM t; COMMIT"),
            (Writer, "BEGIN; UPDATE n SET b = b + 1; DELETE FROM t WHERE a > 9; COMMIT"),
        ],
        ..PLAIN
    },
];

#[derive(Debug, Clone, Copy)]
pub struct Mode {
    pub journal: &'static str,
    pub sync: &'static str,
    pub page_size: u32,
    pub cipher: Cipher,
    /// Whether the disk leaves the bytes beside a write alone.
    pub powersafe: bool,
}

impl Mode {
    pub fn is_wal(&self) -> bool {
        self.journal == "WAL"
    }

    fn is_volatile(&self) -> bool {
        matches!(self.journal, "MEMORY" | "OFF")
    }
}

impl Fits {
    pub fn allows(self, mode: &Mode) -> bool {
        match self {
            Self::All => !mode.is_volatile(),
            Self::Wal => mode.is_wal(),
            Self::Strict => mode.is_wal() || !mode.is_volatile() && mode.sync != "NORMAL",
            Self::Volatile => mode.is_volatile(),
        }
    }
}

const fn mode(
    journal: &'static str,
    sync: &'static str,
    page_size: u32,
    cipher: Cipher,
    powersafe: bool,
) -> Mode {
    Mode { journal, sync, page_size, cipher, powersafe }
}

const GCM: Cipher = Cipher::Aes256Gcm;
const CTR: Cipher = Cipher::Aes256CtrHmacSha256;
const AEGIS: Cipher = Cipher::Aegis256X4;

pub const MODES: &[Mode] = &[
    mode("DELETE", "NORMAL", 1024, CTR, true),
    mode("DELETE", "FULL", 1024, GCM, true),
    mode("DELETE", "FULL", 4096, GCM, false),
    mode("DELETE", "EXTRA", 4096, GCM, true),
    mode("TRUNCATE", "NORMAL", 4096, GCM, true),
    mode("TRUNCATE", "FULL", 1024, CTR, true),
    mode("TRUNCATE", "EXTRA", 1024, GCM, true),
    mode("PERSIST", "NORMAL", 1024, GCM, true),
    mode("PERSIST", "FULL", 4096, CTR, true),
    mode("PERSIST", "FULL", 1024, GCM, false),
    mode("PERSIST", "EXTRA", 1024, GCM, true),
    mode("WAL", "NORMAL", 1024, GCM, true),
    mode("WAL", "NORMAL", 4096, CTR, true),
    mode("WAL", "FULL", 1024, CTR, true),
    mode("WAL", "FULL", 4096, GCM, true),
    mode("WAL", "FULL", 1024, GCM, false),
    mode("WAL", "EXTRA", 1024, GCM, true),
    mode("MEMORY", "FULL", 1024, GCM, true),
    mode("MEMORY", "NORMAL", 4096, CTR, true),
    mode("OFF", "FULL", 1024, CTR, true),
    mode("PERSIST", "FULL", 4096, AEGIS, true),
    mode("WAL", "NORMAL", 1024, AEGIS, true),
    mode("WAL", "FULL", 4096, AEGIS, true),
];
