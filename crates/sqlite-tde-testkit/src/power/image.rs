//! What a power loss leaves.
//!
//! What a file held at its last sync is there. Of each write and truncation since, independently of
//! the others, the disk may have kept all, nothing or, of a write, some of the sectors it touches.
//! Of what was done to a name since the directory was synced, a first part may have been kept.
//!
//! Two orders are taken for granted, because SQLite does so where it does not sync the end of a
//! rollback journal (all but EXTRA or, but for DELETE, FULL): what is written to a journal after it
//! was emptied is not kept without the emptying; nor is a file cut after a journal was deleted or
//! emptied (the end of a VACUUM, whose journal does not hold the pages that are cut off).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::sync::Arc;

use crate::random::Random;

use super::disk::{Entry, Files, Op, put};

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// A disk after the power came back.
#[derive(Debug, Clone)]
pub struct Image {
    pub files: Files,
    /// Place in the log of the first deletion or emptying of a rollback journal that was lost: what
    /// it committed may be rolled back.
    pub taken_back: Option<usize>,
    /// How many writes were torn.
    pub torn: usize,
}

impl Image {
    /// Tells images apart.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add =
            |word: u64| hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        for (name, bytes) in &self.files {
            name.bytes().for_each(|byte| add(u64::from(byte)));
            add(bytes.len() as u64);
            for chunk in bytes.chunks(8) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                add(u64::from_le_bytes(word));
            }
        }
        add(self.taken_back.map_or(0, |at| at as u64 + 1));
        hash
    }
}

#[derive(Default, Clone)]
struct File {
    durable: Vec<u8>,
    /// Places in the log of what was done since.
    pending: Vec<usize>,
    /// The directory must still be synced with the first sync of the file.
    syncs_directory: bool,
}

/// What is durable and what is pending after the first `at` operations of a log.
pub struct History<'a> {
    log: &'a [Entry],
    at: usize,
    files: BTreeMap<usize, File>,
    names: BTreeMap<Arc<str>, usize>,
    /// Places in the log of what was done to names since the directory was synced.
    directory: Vec<usize>,
}

/// How likely an operation is lost, kept and torn in a random image, in parts.
const MIXES: [(usize, usize, usize); 5] = [(1, 1, 1), (1, 8, 1), (8, 1, 1), (1, 1, 0), (0, 4, 1)];

/// How an image is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lost,
    Kept,
    /// All is kept, but the last write, which is torn.
    LastTorn,
    Mixed(usize, usize, usize),
}

#[derive(PartialEq, Eq)]
enum Fate {
    Lost,
    Kept,
    Torn,
}

impl<'a> History<'a> {
    /// Before the first operation: what is on the disk is durable.
    pub fn new(files: &Files, log: &'a [Entry]) -> Self {
        let file = |bytes: &Vec<u8>| File { durable: bytes.clone(), ..File::default() };
        Self {
            log,
            at: 0,
            files: files.values().map(file).enumerate().collect(),
            names: files.keys().enumerate().map(|(i, name)| (name.as_str().into(), i)).collect(),
            directory: Vec::new(),
        }
    }

    /// Goes on to the point after the first `to` operations.
    pub fn advance(&mut self, to: usize) {
        while self.at < to {
            let index = self.at;
            self.at += 1;
            let entry = &self.log[index];
            match entry.op {
                Op::Create { directory } => {
                    let file = File { syncs_directory: directory, ..File::default() };
                    self.files.insert(entry.inode, file);
                    self.directory.push(index);
                }
                Op::Delete { directory } => {
                    self.directory.push(index);
                    if directory {
                        self.sync_directory(|_| true);
                    }
                }
                Op::Write { .. } | Op::Truncate(_) => self.file(entry.inode).pending.push(index),
                Op::Sync => self.sync(entry.inode),
            }
        }
    }

    fn file(&mut self, inode: usize) -> &mut File {
        self.files.get_mut(&inode).expect("a file of this log")
    }

    fn sync(&mut self, inode: usize) {
        let log = self.log;
        let file = self.file(inode);
        for index in std::mem::take(&mut file.pending) {
            keep(&mut file.durable, &log[index].op);
        }
        if std::mem::take(&mut file.syncs_directory) {
            self.sync_directory(|_| true);
        } else if let Some(&last) = self.directory.iter().find(|&&index| log[index].inode == inode)
        {
            // A file that was synced is there.
            self.sync_directory(|index| index <= last && log[index].name == log[last].name);
        }
    }

    fn sync_directory(&mut self, wanted: impl Fn(usize) -> bool) {
        let (now, later) = self.directory.iter().partition(|&&index| wanted(index));
        self.directory = later;
        let now: Vec<usize> = now;
        for index in now {
            rename(&mut self.names, &self.log[index]);
        }
    }

    /// Whether the power can be lost in more than one way here.
    pub fn is_settled(&self) -> bool {
        self.directory.is_empty() && self.files.values().all(|file| file.pending.is_empty())
    }

    /// Image `number`: nothing kept, all kept, all kept but the last write torn, and from then on
    /// random mixes.
    pub fn image(&self, number: usize, random: &mut Random) -> Image {
        let kind = match number {
            0 => Kind::Lost,
            1 => Kind::Kept,
            2 => Kind::LastTorn,
            _ => {
                let (lost, kept, torn) = MIXES[random.index(MIXES.len())];
                Kind::Mixed(lost, kept, torn)
            }
        };
        let mut image = Image { files: Files::new(), taken_back: None, torn: 0 };
        let mut names: Vec<_> = self.names_after(kind, random, &mut image).into_iter().collect();
        // What became of the journals decides about the databases.
        names.sort_by_key(|(name, _)| !is_journal(name));
        for (name, inode) in names {
            let bytes = self.content(&self.files[&inode], kind, random, &mut image);
            image.files.insert(name.to_string(), bytes);
        }
        image
    }

    fn names_after(
        &self,
        kind: Kind,
        random: &mut Random,
        image: &mut Image,
    ) -> BTreeMap<Arc<str>, usize> {
        let mut names = self.names.clone();
        // Names of which an earlier operation was lost: a later one was not kept then.
        let mut behind = BTreeMap::new();
        for &index in &self.directory {
            let entry = &self.log[index];
            let stopped = match behind.entry(Arc::clone(&entry.name)) {
                Place::Occupied(_) => true,
                Place::Vacant(place) => {
                    let lost = fate(kind, false, random) == Fate::Lost;
                    if lost {
                        place.insert(());
                    }
                    lost
                }
            };
            if !stopped {
                rename(&mut names, entry);
            } else if matches!(entry.op, Op::Delete { .. }) && is_journal(&entry.name) {
                take_back(image, index);
            }
        }
        names
    }

    fn content(&self, file: &File, kind: Kind, random: &mut Random, image: &mut Image) -> Vec<u8> {
        let mut bytes = file.durable.clone();
        for &index in &file.pending {
            let entry = &self.log[index];
            let is_cut = matches!(entry.op, Op::Truncate(_));
            if is_cut && image.taken_back.is_some_and(|at| at < index) {
                continue;
            }
            let emptied = entry.op == Op::Truncate(0) && is_journal(&entry.name);
            match (fate(kind, index + 1 == self.at, random), &entry.op) {
                (Fate::Kept, op) => keep(&mut bytes, op),
                (Fate::Torn, Op::Write { at, bytes: new }) => {
                    image.torn += 1;
                    tear(&mut bytes, new, *at, random);
                }
                _ if emptied => {
                    take_back(image, index);
                    break;
                }
                _ => {}
            }
        }
        bytes
    }
}

fn take_back(image: &mut Image, index: usize) {
    image.taken_back = Some(image.taken_back.map_or(index, |first| first.min(index)));
}

fn is_journal(name: &str) -> bool {
    name.ends_with("-journal")
}

fn fate(kind: Kind, last: bool, random: &mut Random) -> Fate {
    match kind {
        Kind::Lost => Fate::Lost,
        Kind::LastTorn if last => Fate::Torn,
        Kind::Kept | Kind::LastTorn => Fate::Kept,
        Kind::Mixed(lost, kept, torn) => match random.index(lost + kept + torn) {
            n if n < lost => Fate::Lost,
            n if n < lost + kept => Fate::Kept,
            _ => Fate::Torn,
        },
    }
}

fn keep(bytes: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { at, bytes: new } => put(bytes, new, *at),
        Op::Truncate(size) => bytes.resize(*size, 0),
        _ => {}
    }
}

/// Keeps some of the sectors of a write.
fn tear(bytes: &mut Vec<u8>, new: &[u8], at: usize, random: &mut Random) {
    let mut done = 0;
    while done < new.len() {
        let len = (SECTOR - (at + done) % SECTOR).min(new.len() - done);
        if random.index(2) == 0 {
            put(bytes, &new[done..done + len], at + done);
        }
        done += len;
    }
}

fn rename(names: &mut BTreeMap<Arc<str>, usize>, entry: &Entry) {
    match entry.op {
        Op::Create { .. } => names.insert(Arc::clone(&entry.name), entry.inode),
        _ => names.remove(&entry.name),
    };
}
