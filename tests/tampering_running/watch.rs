//! What is known of a history from the calls below and above `tde`: where to tamper, what SQLite
//! wrote, and which pages were on the disk.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{FRAME_HEADER, LOG_HEADER, PAGE, PAGES_AT, TRAILER};
use sqlite_tde_testkit::between::{Call, File, Method, Watch};

/// A call below `tde`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub file: File,
    pub method: Method,
    pub at: u64,
    pub len: usize,
    /// The step in which it was made.
    pub step: usize,
}

impl Seen {
    /// Whether the call reads or writes a part of `file`.
    pub fn touches(&self, file: File) -> bool {
        self.file == file && matches!(self.method, Method::Read | Method::Write)
    }
}

type Tampering = Box<dyn FnOnce(&Path) + Send>;

#[derive(Default)]
struct Below {
    root: PathBuf,
    calls: Vec<Seen>,
    step: Arc<AtomicUsize>,
    tampering: Option<(usize, Tampering)>,
    /// Pages that `tde` has put into the file.
    pages: HashSet<u32>,
}

/// Watches below `tde`, and tampers.
#[derive(Default)]
pub struct Bottom(Mutex<Below>);

impl Bottom {
    fn lock(&self) -> MutexGuard<'_, Below> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts from here on the calls for files in `root`, which has `pages` pages, and runs
    /// `tampering` before call number `at`. `step` is the step at hand.
    pub fn start(
        &self,
        root: &Path,
        pages: u32,
        step: &Arc<AtomicUsize>,
        tampering: Option<(usize, Tampering)>,
    ) {
        *self.lock() = Below {
            root: root.into(),
            calls: Vec::new(),
            step: Arc::clone(step),
            tampering,
            pages: (1..=pages).collect(),
        };
    }

    pub fn moved(&self, root: &Path) {
        self.lock().root = root.into();
    }

    pub fn calls(&self) -> Vec<Seen> {
        self.lock().calls.clone()
    }

    pub fn pages(&self) -> HashSet<u32> {
        self.lock().pages.clone()
    }
}

fn is_in(name: &str, root: &Path) -> bool {
    Path::new(name).parent() == Some(root)
}

/// The pages between two offsets of the file.
fn pages(from: u64, to: u64) -> std::ops::Range<u32> {
    let page = |at: u64| (at.saturating_sub(PAGES_AT) / PAGE as u64) as u32 + 1;
    page(from)..page(to)
}

impl Watch for Bottom {
    fn before(&self, call: &Call<'_>) {
        let mut below = self.lock();
        if !is_in(call.name, &below.root) {
            return;
        }
        let number = below.calls.len();
        let Call { file, method, at, len, .. } = *call;
        let step = below.step.load(Ordering::SeqCst);
        below.calls.push(Seen { file, method, at, len, step });
        if below.tampering.as_ref().is_some_and(|(at, _)| *at == number)
            && let Some((_, tampering)) = below.tampering.take()
        {
            let root = below.root.clone();
            drop(below);
            tampering(&root);
        }
    }

    fn done(&self, call: &Call<'_>) {
        let mut below = self.lock();
        if call.file != File::Database || !is_in(call.name, &below.root) {
            return;
        }
        match call.method {
            Method::Write => {
                below.pages.extend(pages(call.at, call.at + call.len as u64));
            }
            Method::Truncate => {
                let end = pages(0, call.at).end;
                below.pages.retain(|&page| page < end);
            }
            _ => {}
        }
    }
}

/// A page without its reserve bytes.
pub type Content = Vec<u8>;

pub fn content(page: &[u8]) -> Content {
    page[..PAGE - TRAILER].to_vec()
}

#[derive(Default, Clone)]
pub struct Book {
    root: PathBuf,
    /// What SQLite wrote of each page, to the database or to its log.
    pub written: HashMap<u32, HashSet<Content>>,
    /// Pages that SQLite has put into the database file, and not cut off since.
    pub pages: HashSet<u32>,
    /// Pages of the committed database that are in the log since it was begun, or before.
    pub logged: HashSet<u32>,
    /// SQLite's log, and its last frame that commits.
    log: Vec<u8>,
    committed: usize,
}

/// Watches above `tde`.
#[derive(Default)]
pub struct Top(Mutex<Book>);

impl Top {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on from `book`, for files in `root`.
    pub fn start(&self, root: &Path, book: Book) {
        *self.lock() = Book { root: root.into(), ..book };
    }

    pub fn moved(&self, root: &Path) {
        self.lock().root = root.into();
    }

    pub fn book(&self) -> Book {
        self.lock().clone()
    }
}

impl Watch for Top {
    /// Written is also what failed to be written.
    fn before(&self, call: &Call<'_>) {
        let mut book = self.lock();
        if !is_in(call.name, &book.root) || call.method != Method::Write {
            return;
        }
        match call.file {
            File::Database => {
                for (page, bytes) in (call.at / PAGE as u64 + 1..).zip(call.bytes.chunks(PAGE)) {
                    book.add(page as u32, bytes);
                }
            }
            File::Log => book.add_frames(call.at as usize, call.bytes),
            _ => {}
        }
    }

    fn done(&self, call: &Call<'_>) {
        let mut book = self.lock();
        if call.file != File::Database || !is_in(call.name, &book.root) {
            return;
        }
        let page = |at: u64| (at / PAGE as u64) as u32 + 1;
        match call.method {
            Method::Write => {
                book.pages.extend(page(call.at)..page(call.at + call.len as u64));
            }
            Method::Truncate => book.pages.retain(|&have| have < page(call.at)),
            _ => {}
        }
    }
}

impl Book {
    fn add(&mut self, page: u32, bytes: &[u8]) {
        if bytes.len() == PAGE {
            self.written.entry(page).or_default().insert(content(bytes));
        }
    }

    fn add_frames(&mut self, at: usize, bytes: &[u8]) {
        if at == 0 {
            // The log is begun anew.
            self.committed = 0;
        }
        if self.log.len() < at + bytes.len() {
            self.log.resize(at + bytes.len(), 0);
        }
        self.log[at..at + bytes.len()].copy_from_slice(bytes);
        let frame = |at: usize| at.saturating_sub(LOG_HEADER) / (FRAME_HEADER + PAGE);
        for number in frame(at)..=frame(at + bytes.len() - 1) {
            let start = LOG_HEADER + number * (FRAME_HEADER + PAGE);
            let Some(whole) = self.log.get(start..start + FRAME_HEADER + PAGE) else { continue };
            let page = u32::from_be_bytes([whole[0], whole[1], whole[2], whole[3]]);
            let size = u32::from_be_bytes([whole[4], whole[5], whole[6], whole[7]]);
            let bytes = content(&whole[FRAME_HEADER..]);
            self.written.entry(page).or_default().insert(bytes);
            if size > 0 && number >= self.committed {
                let of_tx = self.committed..=number;
                self.committed = number + 1;
                let pages: Vec<u32> = of_tx.filter_map(|frame| self.page_of(frame)).collect();
                self.logged.extend(pages);
                self.logged.retain(|&page| page <= size);
            }
        }
    }

    fn page_of(&self, frame: usize) -> Option<u32> {
        let start = LOG_HEADER + frame * (FRAME_HEADER + PAGE);
        self.log.get(start..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }
}
