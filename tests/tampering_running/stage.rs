//! One configuration: its files at the start, its calls, and what a tampered run of it showed.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use sqlite_tde::provider::Keystore;
use sqlite_tde::{OpenOptions, Tuning};

use super::changes::{Moment, Row};
use super::history::{
    Answer, CHANGE, Config, Files, Model, Plan, ROTATING, SETUP, Step, World, run, settings, steps,
};
use super::watch::{Book, Bottom, Seen, Top};
use super::{DATABASE, PAGE, PAGES_AT};
use sqlite_tde_testkit::Home;
use sqlite_tde_testkit::between::register;

pub struct Stage {
    pub config: Config,
    pub steps: Vec<Step>,
    pub model: Model,
    home: Home,
    bottom: &'static Bottom,
    top: &'static Top,
    options: OpenOptions,
    start: Files,
    before: Files,
    book: Book,
    /// The calls of an untouched run.
    pub trace: Vec<Seen>,
    dir: tempfile::TempDir,
    /// Spares the others the key provider.
    _holder: Connection,
}

/// What came of one run.
pub struct Ran {
    pub answers: Vec<Answer>,
    /// The call before which it was tampered with, and the step of that call.
    pub at: usize,
    pub step: usize,
    /// Pages in the database file right after.
    pub left: u32,
    pub book: Book,
    /// Pages that were put into the file and not cut off since, by SQLite and by `tde`.
    pub existed: std::collections::HashSet<u32>,
    pub dir: PathBuf,
}

impl Stage {
    pub fn new(config: Config) -> Self {
        let bottom: &'static Bottom = Box::leak(Box::default());
        let top: &'static Top = Box::leak(Box::default());
        let tuning = if config.shortcuts { Tuning::default() } else { Tuning::OFF };
        let base = register("unix", bottom);
        let home = Home::with(|options| options.base(base).tuning(tuning).auto_rotate(None));
        let above = register(&home.vfs, top);
        let options = home.options().cipher(config.cipher).vfs(above);
        let dir = super::in_memory();
        let at = dir.path().join("setup");
        std::fs::create_dir(&at).unwrap();
        top.start(&at, Book::default());
        let path = at.join(DATABASE);
        let db = sqlite_tde::open_with(&path, &options).unwrap();
        db.execute_batch(&format!("PRAGMA page_size={PAGE}; PRAGMA auto_vacuum=INCREMENTAL"))
            .unwrap();
        settings(&db, config, "NORMAL").unwrap();
        for sql in SETUP {
            db.execute_batch(sql).unwrap();
        }
        let before = if config.has_log() {
            let before = Files::of(&at);
            db.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
            db.execute_batch(CHANGE).unwrap();
            before
        } else {
            db.execute_batch(&format!("BEGIN; {CHANGE}")).unwrap();
            let before = Files::of(&at);
            db.execute_batch("COMMIT").unwrap();
            before
        };
        // The envelope is older there than at the start, and newer at the end of the history.
        let keystore = Keystore::at(home.path("keys"));
        keystore.rotate("default").unwrap();
        let _: String = db.query_row(ROTATING, [], |row| row.get(0)).unwrap();
        keystore.rotate("default").unwrap();
        let book = top.book();
        let start = if config.has_log() {
            Files::of(&at)
        } else {
            drop(db);
            Files::of(&at)
        };
        let holder = home.open(&path);
        let steps = steps(config);
        let model = Model::new(config, &steps);
        let mut stage = Self {
            config,
            steps,
            model,
            home,
            bottom,
            top,
            options,
            start,
            before,
            book,
            trace: Vec::new(),
            dir,
            _holder: holder,
        };
        let ran = stage.run(None).unwrap();
        stage.trace = stage.bottom.calls();
        if std::env::var_os("SQLITE_TDE_TRACE").is_some() {
            println!("{config}");
            for (number, seen) in stage.trace.iter().enumerate() {
                println!("{number}: {seen:?} {:?}", stage.steps[seen.step].what);
            }
        }
        let want = stage.model.answers(&Plan::new());
        for (number, (ours, want)) in ran.answers.iter().zip(want.iter()).enumerate() {
            if matches!(stage.steps[number].what, super::history::Do::Sql(_)) {
                assert_eq!(ours, want, "{config}: untouched: {:?}", stage.steps[number]);
            }
        }
        stage
    }

    /// Runs the history, with the row before the call of that number. Nothing where the row changes
    /// nothing.
    pub fn run(&self, tampering: Option<(usize, Row)>) -> Option<Ran> {
        let dir = self.dir.path().join("run");
        let _ = std::fs::remove_dir_all(&dir);
        self.start.put(&dir);
        let pages = pages_in(self.start.db.len() as u64);
        let step = Arc::new(AtomicUsize::new(0));
        let (left, nothing) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let marked: Arc<Mutex<Option<Files>>> = Arc::default();
        let done: Option<(usize, Box<dyn FnOnce(&Path) + Send>)> = tampering.map(|(at, row)| {
            let next = self.trace[at..].iter().find(|seen| seen.touches(row.file)).copied();
            let (before, start) = (self.before.clone(), self.start.clone());
            let (left, nothing) = (left.clone(), nothing.clone());
            let marked = marked.clone();
            let tamper = move |dir: &Path| {
                let mark = marked.lock().unwrap().clone();
                let moment = Moment { before, start, mark, next };
                nothing.store(!row.apply(dir, &moment), Ordering::SeqCst);
                let size = std::fs::metadata(dir.join(DATABASE)).map_or(0, |file| file.len());
                left.store(pages_in(size) as usize, Ordering::SeqCst);
            };
            (at, Box::new(tamper) as Box<dyn FnOnce(&Path) + Send>)
        });
        let at = tampering.map_or(0, |(at, _)| at);
        self.bottom.start(&dir, pages, &step, done);
        let mut book = self.book.clone();
        book.pages = (1..=pages).collect();
        self.top.start(&dir, book);
        let last = RefCell::new(dir.clone());
        let moved = |dir: &Path| {
            self.bottom.moved(dir);
            self.top.moved(dir);
            if dir.starts_with(self.dir.path()) {
                *last.borrow_mut() = dir.into();
            }
        };
        let mut world = World {
            open: &|path| {
                sqlite_tde::open_with(path, &self.options)
                    .map_err(|error| (error.sqlite_code(), error.to_string()))
            },
            dir,
            moved: &moved,
            step: &step,
            synchronous: "NORMAL",
            stop: &nothing,
            marked: &marked,
        };
        let answers = run(&mut world, self.config, &self.steps, &Plan::new());
        if nothing.load(Ordering::SeqCst) {
            return None;
        }
        if tampering.is_some() {
            let calls = self.bottom.calls();
            assert_eq!(calls.get(..=at), self.trace.get(..=at), "the history is not the same");
        }
        let (book, below) = (self.top.book(), self.bottom.pages());
        let existed = book.pages.intersection(&below).copied().collect();
        let step = self.trace.get(at).map_or(0, |seen| seen.step);
        let left = left.load(Ordering::SeqCst) as u32;
        Some(Ran { answers, at, step, left, book, existed, dir: last.into_inner() })
    }

    /// The database as it was left, without the VFS that writes down what SQLite writes.
    pub fn reopen(&self, dir: &Path) -> sqlite_tde::Result<Connection> {
        let db = self.home.try_open(&dir.join(DATABASE))?;
        db.busy_timeout(std::time::Duration::ZERO)?;
        Ok(db)
    }
}

fn pages_in(size: u64) -> u32 {
    (size.saturating_sub(PAGES_AT) / PAGE as u64) as u32
}
