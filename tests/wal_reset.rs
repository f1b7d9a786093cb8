//! A log is begun anew while another connection checkpoints it, and has read the wal-index before.
//! SQLite before 3.51.3 loses commits then (<https://sqlite.org/wal.html#walresetbug>).

use std::collections::BTreeSet;

use rusqlite::{Connection, OpenFlags, Result};
use sqlite_tde_testkit::platform::{self, PlatformVfs};
use sqlite_tde_testkit::{Home, one};

/// Rows of the first log; of the second one when the checkpoint reaches its pages, and later.
const FIRST: i64 = 40;
const SECOND: [i64; 4] = [1, 3, 39, 60];
const LATER: [i64; 3] = [0, 5, 80];

/// Whether this SQLite looks whether the log is still the one that it read of.
fn notices() -> bool {
    let version = rusqlite::version_number();
    version >= 3_051_003 || [3_044_006, 3_050_007].contains(&version)
}

/// Adds `count` rows of more than a page each, one in a commit, and says which in `sent`.
fn add(db: &Connection, count: i64, sent: &mut BTreeSet<i64>) -> Result<()> {
    for _ in 0..count {
        let id = sent.last().map_or(1, |last| last + 1);
        let row = (id, format!("{id} ").repeat(1200));
        db.execute("INSERT INTO t VALUES(?1, ?2)", row)?;
        sent.insert(id);
    }
    Ok(())
}

/// A log whose frames are all in the database is checkpointed once more, and another connection
/// begins it anew meanwhile. What is wrong with the database afterwards.
fn history(vfs: &str, second: i64, later: i64) -> Result<Option<String>> {
    let dir = tempfile::tempdir().unwrap();
    let platform = PlatformVfs::new(platform::platform("unix"), vfs);
    let path = dir.path().join("log.db");
    let connect = || -> Result<Connection> {
        let flags = OpenFlags::default();
        let db = Connection::open_with_flags_and_vfs(&path, flags, platform.name)?;
        db.execute_batch("PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=OFF")?;
        Ok(db)
    };
    let mut sent = BTreeSet::new();
    let (first, other) = (connect()?, connect()?);
    let create = "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    first.execute_batch(create)?;
    other.execute_batch("SELECT count(*) FROM t")?;
    add(&other, FIRST, &mut sent)?;
    other.query_row("PRAGMA wal_checkpoint", [], |_| Ok(()))?;
    let writer = connect()?;
    one(&writer, "SELECT count(*) FROM t");
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut before = sent.clone();
    platform.before_unfetch(move || {
        add(&writer, second, &mut before).unwrap();
        sender.send((writer, before)).unwrap();
    });
    // Any other mode has the lock of writers meanwhile.
    let _ = first.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    let (writer, mut sent) = receiver.try_recv().expect("the writer came between");
    add(&writer, later, &mut sent)?;
    for db in [&first, &other, &writer] {
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    drop((first, other, writer));
    let db = connect()?;
    let mut statement = db.prepare("SELECT id, v FROM t")?;
    let mut rows = statement.query([])?;
    let mut found = BTreeSet::new();
    while let Some(row) = rows.next()? {
        let (id, v): (i64, String) = (row.get(0)?, row.get(1)?);
        if v == format!("{id} ").repeat(1200) {
            found.insert(id);
        }
    }
    let checked: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    let lost = sent.difference(&found).count();
    Ok((lost > 0 || checked != "ok").then(|| format!("{lost} rows lost; {checked}")))
}

#[test]
fn a_checkpoint_of_a_log_that_was_begun_anew_does_nothing() {
    let home = Home::new();
    let mut plain_lost = 0;
    for second in SECOND {
        for later in LATER {
            let what = format!("{second} rows, then {later}");
            assert_eq!(history(&home.vfs, second, later), Ok(None), "{what}");
            plain_lost += u32::from(history("unix", second, later) != Ok(None));
        }
    }
    assert_eq!(plain_lost == 0, notices(), "plain SQLite lost {plain_lost} times");
}
