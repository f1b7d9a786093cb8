//! The same work in an encrypted database and, page for page alike, in a plain one. What SQLite
//! makes of a damaged log or journal is then not a matter of opinion: an encrypted database whose
//! log was tampered with must show what the plain one shows whose log ends at that place.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rusqlite::backup::Backup;
use rusqlite::{Connection, ffi};
use sqlite_tde::{Cipher, Error, TdeConnection};

use crate::{Home, beside, plain, reserve, try_rows};

pub const PAGE: usize = 1024;
/// Directories of the two databases, whose paths have the same length.
const SEALED: &str = "tde";
const PLAIN: &str = "sql";
/// Bytes of the envelope before the first page, and of the trailer after each block.
pub const PAGES_AT: usize = 16384;
pub const TRAILER: usize = 48;

/// The files of a database as they are at one moment.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Files {
    pub db: Vec<u8>,
    pub wal: Option<Vec<u8>>,
    pub journal: Option<Vec<u8>>,
}

impl Files {
    pub fn of(path: &Path) -> Self {
        Self {
            db: fs::read(path).unwrap(),
            wal: fs::read(beside(path, log_of(path))).ok(),
            journal: fs::read(beside(path, "-journal")).ok(),
        }
    }

    pub fn put(&self, path: &Path) {
        remove(path);
        fs::write(path, &self.db).unwrap();
        for (suffix, bytes) in [(log_of(path), &self.wal), ("-journal", &self.journal)] {
            if let Some(bytes) = bytes {
                fs::write(beside(path, suffix), bytes).unwrap();
            }
        }
    }

    pub fn wal(&self) -> &[u8] {
        self.wal.as_deref().unwrap()
    }

    pub fn journal(&self) -> &[u8] {
        self.journal.as_deref().unwrap()
    }
}

/// What the log of one of the databases of [`Twin`] or [`Judge`] is called: they tell by their
/// directory.
fn log_of(path: &Path) -> &'static str {
    if path.parent().is_some_and(|dir| dir.ends_with(SEALED)) { "-tdewal" } else { "-wal" }
}

fn remove(path: &Path) {
    for suffix in [""].iter().chain(&sqlite_tde::FILES_BESIDE) {
        let _ = fs::remove_file(beside(path, suffix));
    }
}

/// One moment in both databases.
#[derive(Clone)]
pub struct Moment {
    pub sealed: Files,
    pub plain: Files,
}

/// Two connections to each of the two databases.
pub struct Twin {
    pub home: Home,
    pub sealed: [Connection; 2],
    plain: [Connection; 2],
    paths: [PathBuf; 2],
}

impl Twin {
    /// `suffix` tells the databases of one `home` apart. Paths have the same length in both.
    pub fn new(cipher: Cipher, mode: &str) -> Self {
        let home = Home::ungathered();
        let paths = [SEALED, PLAIN].map(|dir| {
            fs::create_dir(home.path(dir)).unwrap();
            home.path(dir).join("twin.db")
        });
        let sealed = [0, 1]
            .map(|_| sqlite_tde::open_with(&paths[0], &home.options().cipher(cipher)).unwrap());
        let plain = [0, 1].map(|_| plain(&paths[1]));
        reserve(&plain[0], c"main");
        let twin = Self { home, sealed, plain, paths };
        twin.run(&format!(
            "PRAGMA page_size={PAGE}; PRAGMA journal_mode={mode}; PRAGMA synchronous=NORMAL;
             PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=5;"
        ));
        twin
    }

    /// Runs `sql` in the first connection to each database.
    pub fn run(&self, sql: &str) {
        for db in [&self.sealed[0], &self.plain[0]] {
            db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }

    /// Runs `sql` in the second connections.
    pub fn run_in_second(&self, sql: &str) {
        for db in [&self.sealed[1], &self.plain[1]] {
            db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }

    pub fn moment(&self) -> Moment {
        Moment { sealed: Files::of(&self.paths[0]), plain: Files::of(&self.paths[1]) }
    }
}

/// What a database shows: after opening, after one more transaction, and when opened again.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown {
    images: [Vec<u8>; 3],
    pub scan: Scan,
    /// What one more transaction answered.
    one_more: Result<(), String>,
}

/// What came of a tampered database.
#[derive(Debug)]
pub enum Outcome {
    /// Every page is as in the plain database.
    Same,
    /// These pages could not be read; all others are as in the plain database.
    Bad(Vec<u32>),
    /// Nothing could be read at all.
    Refused(Error),
}

/// Any change of a table will do.
const ONE_MORE: &str =
    "INSERT INTO t(b) VALUES('one more'); UPDATE t SET b = 'changed' WHERE a = 2";

/// Pages as the pager gives them; those that cannot be read are zeros.
fn image(db: &mut Connection) -> rusqlite::Result<Vec<u8>> {
    // Opens, locks and recovers, with an error where that fails.
    db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
        .or_else(|error| if is_page_error(&error) { Ok(0) } else { Err(error) })?;
    let mut image = db.serialize("main").map(|data| data.to_vec())?;
    for page in image.chunks_mut(PAGE) {
        let end = page.len().min(PAGE - TRAILER);
        page[end..].fill(0);
    }
    Ok(image)
}

fn is_page_error(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_DATA)
}

/// The pages in which two images differ.
fn differing(ours: &[u8], want: &[u8]) -> Vec<u32> {
    let pages = ours.len().max(want.len()).div_ceil(PAGE);
    let page = |image: &[u8], n: usize| image.get(n * PAGE..(n + 1) * PAGE).map(<[u8]>::to_vec);
    (0..pages).filter(|&n| page(ours, n) != page(want, n)).map(|n| n as u32 + 1).collect()
}

/// Puts files in place, looks, and compares.
pub struct Judge<'a> {
    home: &'a Home,
    sealed: PathBuf,
    plain: PathBuf,
    known: HashMap<Files, Shown>,
    watch: Watch,
}

impl<'a> Judge<'a> {
    /// The twin stays open meanwhile, so that no row has to ask a key provider.
    pub fn new(twin: &'a Twin) -> Self {
        let path = |dir: &str| twin.home.path(dir).join("seen.db");
        Self {
            home: &twin.home,
            sealed: path(SEALED),
            plain: path(PLAIN),
            known: HashMap::new(),
            watch: Watch::start(),
        }
    }

    /// What the plain database `files` shows.
    pub fn plain(&mut self, files: &Files) -> Shown {
        if let Some(shown) = self.known.get(files) {
            return shown.clone();
        }
        files.put(&self.plain);
        let open = || {
            let db = plain(&self.plain);
            db.execute_batch("PRAGMA synchronous=OFF").unwrap();
            db
        };
        let mut db = open();
        let first = image(&mut db).unwrap();
        let scan = scan(&db);
        let one_more = db.execute_batch(ONE_MORE).map_err(|error| error.to_string());
        let second = image(&mut db).unwrap();
        drop(db);
        let third = image(&mut open()).unwrap();
        let shown = Shown { images: [first, second, third], scan, one_more };
        self.known.insert(files.clone(), shown.clone());
        shown
    }

    /// Puts `files` in place and compares what the encrypted database shows with what the plain one
    /// does, before and after one more transaction. `row` names the attack.
    pub fn judge(&mut self, row: &str, files: &Files, plain: &Files) -> Outcome {
        self.judge_after(row, files, plain, |_| ())
    }

    /// As [`Judge::judge`], after `change` was done to the database at the path that it gets.
    pub fn judge_after(
        &mut self,
        row: &str,
        files: &Files,
        plain: &Files,
        change: impl FnOnce(&Path),
    ) -> Outcome {
        self.watch.begins(row);
        let want = self.plain(plain);
        files.put(&self.sealed);
        change(&self.sealed);
        let outcome = self.compare(row, &want);
        self.watch.ends();
        outcome
    }

    fn open(&self) -> sqlite_tde::Result<Connection> {
        let db = self.home.try_open(&self.sealed)?;
        db.execute_batch("PRAGMA synchronous=OFF")?;
        Ok(db)
    }

    fn compare(&self, row: &str, want: &Shown) -> Outcome {
        let mut db = match self.open() {
            Ok(db) => db,
            Err(error) => return Outcome::Refused(error),
        };
        let first = match image(&mut db) {
            Ok(image) => image,
            Err(error) => return Outcome::Refused(error.into()),
        };
        let bad = differing(&first, &want.images[0]);
        self.assert_found(row, &db, &bad, &first);
        assert_rows(row, &scan(&db), &want.scan, !bad.is_empty());
        match db.execute_batch(ONE_MORE) {
            Err(error) if is_page_error(&error) && !bad.is_empty() => return Outcome::Bad(bad),
            done => assert_eq!(done.map_err(|error| error.to_string()), want.one_more, "{row}"),
        }
        for (step, wanted) in
            ["after one more transaction", "opened again"].iter().zip(&want.images[1..])
        {
            let row = format!("{row}, {step}");
            let image = image(&mut db).unwrap_or_else(|error| panic!("{row}: {error}"));
            let now = differing(&image, wanted);
            assert!(now.iter().all(|page| bad.contains(page)), "{row}: {now:?}, before {bad:?}");
            self.assert_found(&row, &db, &now, &image);
            drop(db);
            db = self.open().unwrap_or_else(|error| panic!("{row}: {error}"));
        }
        if bad.is_empty() { Outcome::Same } else { Outcome::Bad(bad) }
    }

    /// Pages that are not as they should be were not handed out, and verification names them, or
    /// the file is too short to have them.
    fn assert_found(&self, row: &str, db: &Connection, bad: &[u32], image: &[u8]) {
        if bad.is_empty() {
            return;
        }
        let found = db.tde_verify("main", |_, _| ()).unwrap();
        for page in bad {
            let at = (*page as usize - 1) * PAGE;
            let content = image.get(at..at + PAGE).is_some_and(|page| page.iter().any(|&b| b != 0));
            assert!(!content, "{row}: page {page} is wrong and was handed out");
            let there = fs::metadata(&self.sealed).unwrap().len() >= (PAGES_AT + at + PAGE) as u64;
            let named = found.bad_pages.contains(page);
            assert!(!there || named, "{row}: page {page} is wrong and not found: {found:?}");
        }
        let mut copy = Connection::open_in_memory().unwrap();
        let copied = Backup::new(db, &mut copy).unwrap().step(-1);
        assert!(copied.is_err_and(|error| is_page_error(&error)), "{row}: {bad:?} were copied");
    }
}

/// Rows are those of the plain database, or there is an error where pages are bad.
fn assert_rows(row: &str, ours: &Scan, want: &Scan, any_bad: bool) {
    for ((sql, ours), want) in SCANS.iter().zip(ours).zip(want) {
        // A check may well say which page it could not read.
        let excused = any_bad && (ours.is_err() || sql.starts_with("PRAGMA"));
        assert!(ours == want || excused, "{row}: {sql}: {ours:?}, not {want:?}");
    }
}

const SCANS: [&str; 4] = [
    "PRAGMA integrity_check",
    "SELECT a, b FROM t NOT INDEXED ORDER BY a",
    "SELECT b FROM t INDEXED BY i ORDER BY b",
    "SELECT name, sql FROM sqlite_schema",
];

/// What SQL shows, or why it does not.
pub type Scan = Vec<Result<Vec<String>, String>>;

fn scan(db: &Connection) -> Scan {
    SCANS.iter().map(|sql| try_rows(db, sql).map_err(|error| error.to_string())).collect()
}

/// Ends the process when one row takes longer than any machine could need.
struct Watch(Sender<Option<String>>);

impl Watch {
    const PATIENCE: Duration = Duration::from_secs(300);

    fn start() -> Self {
        let (sender, receiver) = channel::<Option<String>>();
        std::thread::spawn(move || {
            let mut row = None;
            loop {
                match receiver.recv_timeout(Self::PATIENCE) {
                    Ok(next) => row = next,
                    Err(RecvTimeoutError::Timeout) => {
                        if let Some(row) = row {
                            eprintln!("{row}: hangs");
                            std::process::abort();
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        Self(sender)
    }

    fn begins(&self, row: &str) {
        let _ = self.0.send(Some(row.to_owned()));
    }

    fn ends(&self) {
        let _ = self.0.send(None);
    }
}

/// How often each outcome was met.
#[derive(Default)]
pub struct Tally {
    counts: std::collections::BTreeMap<&'static str, usize>,
}

impl Tally {
    pub fn add(&mut self, outcome: &'static str) {
        *self.counts.entry(outcome).or_default() += 1;
    }

    pub fn assert_none(&self, outcome: &str) {
        assert!(!self.counts.contains_key(outcome), "{outcome}");
    }

    pub fn assert_some(&self, outcome: &str) {
        assert!(self.counts.contains_key(outcome), "{outcome}");
    }

    pub fn print(&self, test: &str) {
        let counts: Vec<String> =
            self.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        println!("{test}: {} rows: {}", self.counts.values().sum::<usize>(), counts.join(", "));
    }
}
