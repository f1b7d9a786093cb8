//! Files in memory, the locks on them, and the log of what was done to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::ffi;

use super::shm::Shm;

/// Names and contents: what is on a disk while nobody uses it.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What was done to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// `directory`: the first sync of the file also syncs the directory, as SQLite's VFSs do for
    /// journals and logs.
    Create {
        directory: bool,
    },
    /// `directory`: the directory was synced afterwards.
    Delete {
        directory: bool,
    },
    Write {
        at: usize,
        bytes: Vec<u8>,
    },
    Truncate(usize),
    Sync,
}

/// One line of the log. Names come and go; `inode` says which file it was.
#[derive(Debug, Clone)]
pub struct Entry {
    pub inode: usize,
    pub name: Arc<str>,
    pub op: Op,
}

/// A disk that answers a sync with success and does nothing, for files whose name ends so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lie(pub &'static str);

struct Inode {
    name: Option<Arc<str>>,
    bytes: Vec<u8>,
    /// The lock of each handle that has one.
    locks: Vec<(usize, i32)>,
    shm: Shm,
}

/// Calls that one disk serves before it fails all: more than any workload needs, so that what never
/// ends is noticed without a clock.
const CALLS: usize = 3_000_000;

/// A disk in use.
#[derive(Default)]
pub struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    calls: usize,
    lie: Option<Lie>,
    pub log: Vec<Entry>,
    /// Whether `log` also has the files without a name, under an empty one.
    pub logs_unnamed: bool,
}

impl Disk {
    /// A disk with `files`, whose inodes are numbered in the order of their names.
    pub fn new(files: Files, lie: Option<Lie>) -> Self {
        let mut disk = Self { lie, ..Self::default() };
        for (name, bytes) in files {
            let inode = disk.add(Some(name.as_str().into()), bytes);
            disk.names.insert(name, inode);
        }
        disk
    }

    /// What is on it now.
    pub fn files(&self) -> Files {
        let copy =
            |(name, &inode): (&String, &usize)| (name.clone(), self.inodes[inode].bytes.clone());
        self.names.iter().map(copy).collect()
    }

    /// `false` once it has served too many.
    pub fn call(&mut self) -> bool {
        self.calls += 1;
        self.calls <= CALLS
    }

    /// Whether it was asked for more than any workload needs.
    pub fn is_exhausted(&self) -> bool {
        self.calls > CALLS
    }

    fn add(&mut self, name: Option<Arc<str>>, bytes: Vec<u8>) -> usize {
        self.inodes.push(Inode { name, bytes, locks: Vec::new(), shm: Shm::default() });
        self.inodes.len() - 1
    }

    fn record(&mut self, inode: usize, op: Op) {
        match &self.inodes[inode].name {
            Some(name) => self.log.push(Entry { inode, name: Arc::clone(name), op }),
            None if self.logs_unnamed => self.log.push(Entry { inode, name: "".into(), op }),
            None => {}
        }
    }

    /// A file without a name dies with its handle, and is logged only where `logs_unnamed` says so.
    pub fn open(&mut self, name: Option<&str>, flags: i32) -> Option<usize> {
        let Some(name) = name else { return Some(self.add(None, Vec::new())) };
        if let Some(&inode) = self.names.get(name) {
            return (flags & ffi::SQLITE_OPEN_EXCLUSIVE == 0).then_some(inode);
        }
        if flags & ffi::SQLITE_OPEN_CREATE == 0 {
            return None;
        }
        const JOURNALS: i32 =
            ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL | ffi::SQLITE_OPEN_WAL;
        let inode = self.add(Some(name.into()), Vec::new());
        self.names.insert(name.to_owned(), inode);
        self.record(inode, Op::Create { directory: flags & JOURNALS != 0 });
        Some(inode)
    }

    pub fn exists(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Open handles go on with the file, which has no name then.
    pub fn delete(&mut self, name: &str, directory: bool) -> bool {
        let Some(inode) = self.names.remove(name) else { return false };
        self.record(inode, Op::Delete { directory });
        true
    }

    /// Answers how many bytes there were; the rest of `buf` is zeros.
    pub fn read(&self, inode: usize, buf: &mut [u8], at: usize) -> usize {
        let bytes = &self.inodes[inode].bytes;
        let from = bytes.len().min(at);
        let len = buf.len().min(bytes.len() - from);
        buf[..len].copy_from_slice(&bytes[from..from + len]);
        buf[len..].fill(0);
        len
    }

    pub fn write(&mut self, inode: usize, new: &[u8], at: usize) {
        put(&mut self.inodes[inode].bytes, new, at);
        self.record(inode, Op::Write { at, bytes: new.to_vec() });
    }

    pub fn truncate(&mut self, inode: usize, size: usize) {
        self.inodes[inode].bytes.resize(size, 0);
        self.record(inode, Op::Truncate(size));
    }

    pub fn sync(&mut self, inode: usize) {
        let lied = |name: &Arc<str>, lie: Lie| name.ends_with(lie.0);
        match (&self.inodes[inode].name, self.lie) {
            (Some(name), Some(lie)) if lied(name, lie) => {}
            _ => self.record(inode, Op::Sync),
        }
    }

    pub fn size(&self, inode: usize) -> usize {
        self.inodes[inode].bytes.len()
    }

    pub fn shm(&mut self, inode: usize) -> &mut Shm {
        &mut self.inodes[inode].shm
    }

    /// The highest lock that another handle has.
    fn others(&self, inode: usize, handle: usize) -> i32 {
        let others = self.inodes[inode].locks.iter().filter(|(holder, _)| *holder != handle);
        others.map(|&(_, level)| level).max().unwrap_or(ffi::SQLITE_LOCK_NONE)
    }

    fn set_lock(&mut self, inode: usize, handle: usize, level: i32) {
        let locks = &mut self.inodes[inode].locks;
        locks.retain(|(holder, _)| *holder != handle);
        if level > ffi::SQLITE_LOCK_NONE {
            locks.push((handle, level));
        }
    }

    fn held(&self, inode: usize, handle: usize) -> i32 {
        let own = self.inodes[inode].locks.iter().find(|(holder, _)| *holder == handle);
        own.map_or(ffi::SQLITE_LOCK_NONE, |&(_, level)| level)
    }

    /// SQLite's rules: many SHARED, beside them one RESERVED or PENDING, EXCLUSIVE alone; nobody
    /// takes SHARED where another has PENDING.
    pub fn lock(&mut self, inode: usize, handle: usize, level: i32) -> i32 {
        if self.held(inode, handle) >= level {
            return ffi::SQLITE_OK;
        }
        let others = self.others(inode, handle);
        let busy = match level {
            ffi::SQLITE_LOCK_SHARED => others >= ffi::SQLITE_LOCK_PENDING,
            _ => others >= ffi::SQLITE_LOCK_RESERVED,
        };
        if busy {
            return ffi::SQLITE_BUSY;
        }
        if level == ffi::SQLITE_LOCK_EXCLUSIVE && others >= ffi::SQLITE_LOCK_SHARED {
            self.set_lock(inode, handle, ffi::SQLITE_LOCK_PENDING);
            return ffi::SQLITE_BUSY;
        }
        self.set_lock(inode, handle, level);
        ffi::SQLITE_OK
    }

    pub fn unlock(&mut self, inode: usize, handle: usize, level: i32) {
        if self.held(inode, handle) > level {
            self.set_lock(inode, handle, level);
        }
    }

    pub fn is_reserved(&self, inode: usize) -> bool {
        self.inodes[inode].locks.iter().any(|&(_, level)| level >= ffi::SQLITE_LOCK_RESERVED)
    }
}

/// Writes as a file system does: past the end, the gap becomes zeros.
pub fn put(bytes: &mut Vec<u8>, new: &[u8], at: usize) {
    let end = at + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(new);
}
