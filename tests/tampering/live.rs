//! Tampering with the log, and with the wal-index, while connections are open.
//!
//! A page that is read afterwards is right or an error, and a checkpoint copies no wrong page into
//! the database. Documented limit: an older record of the same page at the same frame of the same
//! log, which only a transaction that was rolled back leaves, is replay.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rusqlite::Connection;
use sqlite_tde::{Cipher, Error, TdeConnection};
use sqlite_tde_testkit::process::full;
use sqlite_tde_testkit::twin::{PAGE, TRAILER, Tally};
use sqlite_tde_testkit::{Home, beside};

const CIPHERS: [Cipher; 3] = Cipher::ALL;
const FRAMES_AT: u64 = 1024;
const RECORD: usize = 24 + PAGE + TRAILER;
/// Of the wal-index: the page numbers of frames, and the hash table over them.
const PAGES_AT: u64 = 136;
const HASH_AT: u64 = 16384;
const HASH_SLOTS: u32 = 8192;
const ROWS: i64 = 12;

/// A database with a row on each of some pages, all of them in the log, and a reader with a
/// snapshot.
struct Live {
    _home: Home,
    writer: Connection,
    path: PathBuf,
    log: File,
    index: File,
    /// The log before the present one.
    older: Vec<u8>,
    /// The present log with frames of transactions that were rolled back: one that wrote other
    /// pages first, one that wrote the pages that the last commits wrote, and one that overwrote
    /// its frames and left others without salts.
    rolled_back: [Vec<u8>; 3],
    /// The present log.
    now: Vec<u8>,
    frames: usize,
    options: sqlite_tde::OpenOptions,
}

fn value(a: i64, generation: u8) -> String {
    format!("{a:03} of {generation} ").repeat(80)
}

impl Live {
    fn new(cipher: Cipher) -> Self {
        let home = Home::ungathered();
        let path = home.path("live.db");
        let options = home.options().cipher(cipher);
        let writer = sqlite_tde::open_with(&path, &options).unwrap();
        writer
            .execute_batch(&format!(
                "PRAGMA page_size={PAGE}; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
                 PRAGMA synchronous=OFF; PRAGMA cache_size=5;
                 CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); CREATE TABLE other(b TEXT);"
            ))
            .unwrap();
        let set = |generation: u8, backwards: bool| {
            let mut all: Vec<i64> = (1..=ROWS).collect();
            if backwards {
                all.reverse();
            }
            for a in all {
                let sql = "INSERT OR REPLACE INTO t VALUES(?1, ?2)";
                writer.execute(sql, (a, value(a, generation))).unwrap();
            }
        };
        set(1, false);
        let log = beside(&path, "-tdewal");
        let older = std::fs::read(&log).unwrap();
        writer.execute_batch("PRAGMA wal_checkpoint(RESTART)").unwrap();
        set(2, true);
        let update = "UPDATE t SET b = upper(b);";
        let twice = format!("{update} INSERT INTO other VALUES(printf('%.9000c', 'x'));");
        let firsts = ["INSERT INTO other VALUES(printf('%.9000c', 'x'));", "", &twice];
        let rolled_back = firsts.map(|first| {
            writer.execute_batch(&format!("BEGIN; {first} {update}")).unwrap();
            let bytes = std::fs::read(&log).unwrap();
            writer.execute_batch("ROLLBACK").unwrap();
            bytes
        });
        set(3, false);
        let open = |suffix| OpenOptions::new().read(true).write(true).open(beside(&path, suffix));
        let (log, index) = (open("-tdewal").unwrap(), open("-shm").unwrap());
        let now = std::fs::read(beside(&path, "-tdewal")).unwrap();
        let mut live = Self {
            _home: home,
            writer,
            log,
            index,
            older,
            rolled_back,
            frames: 0,
            now,
            path,
            options,
        };
        live.frames = live.word(16) as usize;
        assert!(live.frames > 20, "{} frames", live.frames);
        live
    }

    /// A word of the wal-index.
    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.index.read_exact_at(&mut bytes, at).unwrap();
        u32::from_ne_bytes(bytes)
    }

    fn set_word(&self, at: u64, word: u32) {
        self.index.write_all_at(&word.to_ne_bytes(), at).unwrap();
    }

    fn page_of(&self, frame: usize) -> u32 {
        self.word(PAGES_AT + 4 * (frame as u64 - 1))
    }

    /// A connection that has nothing in its cache.
    fn reader(&self) -> Connection {
        sqlite_tde::open_with(&self.path, &self.options).unwrap()
    }

    fn record(&self, frame: usize) -> &[u8] {
        record(&self.now, frame)
    }

    fn put(&self, frame: usize, bytes: &[u8]) {
        self.log.write_all_at(bytes, FRAMES_AT + ((frame - 1) * RECORD) as u64).unwrap();
    }

    /// What all rows are now, or the errors.
    fn read(&self, db: &Connection) -> Vec<Result<String, Error>> {
        let sql = "SELECT b FROM t WHERE a = ?1";
        (1..=ROWS).map(|a| db.query_row(sql, [a], |row| row.get(0)).map_err(Error::from)).collect()
    }

    /// Each row is right, or reading it failed as one of the log's frames or a page of the
    /// database. How many failed.
    fn assert_right_or_error(&self, db: &Connection, row: &str) -> usize {
        let mut failed = 0;
        for (a, found) in (1..).zip(self.read(db)) {
            match found {
                Ok(found) => assert_eq!(found, value(a, 3), "{row}: row {a}"),
                Err(Error::FrameAuthentication { .. }) => failed += 1,
                Err(error) => panic!("{row}: row {a}: {error:?}"),
            }
        }
        failed
    }
}

fn record(log: &[u8], frame: usize) -> &[u8] {
    let at = FRAMES_AT as usize + (frame - 1) * RECORD;
    &log[at..at + RECORD]
}

/// Every frame in turn is replaced under a connection that has a snapshot of it.
#[test]
fn a_record_replaced_under_a_reader_is_never_a_page() {
    for cipher in CIPHERS {
        let live = Live::new(cipher);
        let mut tally = Tally::default();
        let standing = live.reader();
        standing.execute_batch("PRAGMA cache_size=0; BEGIN").unwrap();
        assert_eq!(live.assert_right_or_error(&standing, "untouched"), 0);
        for frame in 1..=live.frames {
            let good = live.record(frame);
            let another = live.record(frame % live.frames + 1).to_vec();
            let flips: &[usize] = if full() {
                &[0, 5, 8, 20, 24, 500, 1047, 1048, 1060, 1090]
            } else {
                &[8, 500, 1060]
            };
            let mut rows: Vec<(String, Vec<u8>)> = flips
                .iter()
                .map(|&at| {
                    let mut bytes = good.to_vec();
                    bytes[at] ^= 0x10;
                    (format!("byte {at} flipped"), bytes)
                })
                .collect();
            rows.push(("of another frame".into(), another));
            rows.push(("zeros".into(), vec![0; RECORD]));
            let at = FRAMES_AT as usize + frame * RECORD;
            if live.older.len() >= at {
                rows.push(("of the log before".into(), record(&live.older, frame).to_vec()));
            }
            for (attack, bytes) in rows {
                live.put(frame, &bytes);
                let row = format!("{}: frame {frame}: {attack}", cipher.name());
                for db in [&standing, &live.reader()] {
                    let failed = live.assert_right_or_error(db, &row);
                    tally.add(if failed > 0 { "authentication error" } else { "not needed" });
                }
                live.put(frame, good);
            }
        }
        assert_eq!(live.assert_right_or_error(&standing, "put back"), 0);
        tally.print(&format!("records replaced under readers, {}", cipher.name()));
    }
}

/// A record of a transaction that was rolled back has the salts of the present log. It is told by
/// its page, and where the page is the same, it is replay: the documented limit.
#[test]
fn a_record_of_a_rolled_back_transaction_is_no_other_page() {
    for cipher in CIPHERS {
        let live = Live::new(cipher);
        let mut tally = Tally::default();
        let both = (1..=live.frames).flat_map(|frame| [(frame, 0), (frame, 1), (frame, 2)]);
        for (frame, which) in both {
            let at = FRAMES_AT as usize + frame * RECORD;
            let Some(bytes) = live.rolled_back[which].get(at - RECORD..at) else { continue };
            if bytes == live.record(frame) {
                continue;
            }
            live.put(frame, bytes);
            let row = format!("{}: frame {frame} of a rolled back transaction", cipher.name());
            // Of a transaction that never was, hence in no generation, unless it fails.
            let db = live.reader();
            for (a, found) in (1..).zip(live.read(&db)) {
                match found {
                    Ok(found) if found == value(a, 3) => tally.add("not needed"),
                    Ok(found) => {
                        assert_eq!(found, value(a, 2).to_uppercase(), "{row}: row {a}");
                        tally.add("accepted replay of the same page");
                    }
                    Err(Error::FrameAuthentication { frame: met }) if met as usize == frame => {
                        tally.add("authentication error");
                    }
                    Err(error) => panic!("{row}: {error:?}"),
                }
            }
            live.put(frame, live.record(frame));
        }
        tally.assert_some("accepted replay of the same page");
        tally.assert_some("authentication error");
        tally.print(&format!("records of a rolled back transaction, {}", cipher.name()));
    }
}

/// A checkpoint that meets a wrong record fails, and the database has only right pages.
#[test]
fn a_checkpoint_copies_no_wrong_page() {
    for cipher in CIPHERS {
        let mut tally = Tally::default();
        let count = Live::new(cipher).frames;
        for frame in (1..=count).step_by(if full() { 1 } else { 5 }) {
            for attack in ["flipped", "of another frame", "of the log before"] {
                let live = Live::new(cipher);
                let mut bytes = live.record(frame).to_vec();
                match attack {
                    "flipped" => bytes[700] ^= 1,
                    "of another frame" => {
                        bytes.copy_from_slice(live.record(frame % live.frames + 1))
                    }
                    _ if live.older.len() < FRAMES_AT as usize + frame * RECORD => continue,
                    _ => bytes.copy_from_slice(record(&live.older, frame)),
                }
                live.put(frame, &bytes);
                let row = format!("{}: frame {frame}: {attack}", cipher.name());
                let done: Result<i64, _> =
                    live.reader().query_row("PRAGMA wal_checkpoint(FULL)", [], |row| row.get(0));
                let last =
                    (frame + 1..=live.frames).all(|f| live.page_of(f) != live.page_of(frame));
                match done.map_err(Error::from) {
                    Err(Error::FrameAuthentication { frame: met }) => {
                        assert!(last && met as usize == frame, "{row}: {met}");
                        tally.add("checkpoint failed");
                    }
                    Ok(0) => {
                        assert!(!last, "{row}: copied");
                        tally.add("a later frame has the page");
                    }
                    other => panic!("{row}: {other:?}"),
                }
                live.put(frame, live.record(frame));
                assert_eq!(live.assert_right_or_error(&live.reader(), &row), 0, "{row}");
                live.writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
                assert_eq!(live.assert_right_or_error(&live.reader(), &row), 0, "{row}");
                let found = live.writer.tde_verify("main", |_, _| ()).unwrap();
                assert!(found.is_clean(), "{row}: {found:?}");
            }
        }
        tally.print(&format!("checkpoints of wrong records, {}", cipher.name()));
    }
}

/// The wal-index says that a frame holds another page, in its list and in its hash table.
#[test]
fn a_frame_that_the_index_takes_for_another_page_is_noticed() {
    for cipher in CIPHERS {
        let live = Live::new(cipher);
        let mut tally = Tally::default();
        let pages: Vec<u32> = (1..=live.frames).map(|frame| live.page_of(frame)).collect();
        let most = *pages.iter().max().unwrap();
        for frame in 1..=live.frames {
            for wrong in (1..=most).filter(|&page| page != pages[frame - 1]) {
                let place = PAGES_AT + 4 * (frame as u64 - 1);
                live.set_word(place, wrong);
                let mut hash = vec![0; 2 * HASH_SLOTS as usize];
                live.index.read_exact_at(&mut hash, HASH_AT).unwrap();
                // SQLite looks from here on for the frames of `wrong`, and takes the last of them.
                let mut slot = wrong.wrapping_mul(383) % HASH_SLOTS;
                while hash[2 * slot as usize..][..2] != [0, 0] {
                    slot = (slot + 1) % HASH_SLOTS;
                }
                let at = HASH_AT + 2 * u64::from(slot);
                live.index.write_all_at(&(frame as u16).to_ne_bytes(), at).unwrap();
                let row = format!("{}: frame {frame} as page {wrong}", cipher.name());
                let later = pages[frame..].contains(&wrong);
                let mut failed = false;
                for (a, found) in (1..).zip(live.read(&live.reader())) {
                    match found {
                        Ok(found) => {
                            // The frame is no more the newest of its own page: an older one is.
                            let old = (1..=3).any(|generation| found == value(a, generation));
                            assert!(old, "{row}: row {a}: {found}");
                        }
                        Err(Error::FrameAuthentication { frame: met }) => {
                            assert_eq!(met as usize, frame, "{row}");
                            failed = true;
                        }
                        Err(Error::Sqlite(error)) => panic!("{row}: {error}"),
                        Err(error) => panic!("{row}: {error:?}"),
                    }
                }
                if wrong == pages[0] {
                    let found = live.reader().tde_verify("main", |_, _| ()).unwrap();
                    assert!(found.bad_frames.contains(&(frame as u32)), "{row}: {found:?}");
                }
                tally.add(match (failed, later) {
                    (true, _) => "authentication error",
                    (false, true) => "a later frame has the page",
                    (false, false) => "not needed, or replay of an older frame",
                });
                live.set_word(place, pages[frame - 1]);
                live.index.write_all_at(&[0, 0], at).unwrap();
            }
        }
        assert_eq!(live.assert_right_or_error(&live.reader(), "put back"), 0);
        tally.print(&format!("frames taken for other pages, {}", cipher.name()));
    }
}
