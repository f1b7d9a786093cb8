//! The sealed blocks in what was written: which subkey, which nonce, which ciphertext.
//!
//! The layouts are those of docs/format.md, for pages of [`PAGE`] bytes and a base that overwrites
//! powersafely. Trailers of scratch files are in memory only, so their ciphertext is compared.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Range;

use sqlite_tde::{Cipher, RESERVE};

use sqlite_tde_testkit::power::{Entry, Op};

pub const PAGE: usize = 1024;
const PAGES_AT: usize = 16384;
/// The file id in a copy of the envelope.
const FILE_ID: Range<usize> = 32..48;
const HEADER: usize = 512;
const RECORD_0: usize = 68 + RESERVE;
const FRAMES_AT: usize = 2 * HEADER;
const FRAME: usize = 24 + PAGE + RESERVE;
const JOURNAL_RECORD: usize = 512 + RESERVE;
/// Blocks of the counter-mode suite start at multiples of this many AES blocks.
const CTR_STEP: u128 = 8192;
/// Long enough that no two pieces of ciphertext are equal by chance.
const PIECE: usize = 32;

/// One use of a subkey and a nonce.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seal {
    /// Tells subkeys apart.
    pub subkey: u64,
    /// The nonce; of the counter-mode suite a range of counter blocks that it covers.
    pub nonce: Vec<u8>,
    /// Tells ciphertexts apart.
    pub block: u64,
    /// The file, the place in it and which write it was, for messages.
    pub place: String,
}

/// What one process wrote.
#[derive(Default, Clone)]
pub struct Written {
    pub seals: Vec<Seal>,
    /// Pieces of ciphertext of scratch files, which are not to come twice.
    pub pieces: Vec<(Vec<u8>, String)>,
}

/// Follows the log of a disk.
#[derive(Clone)]
pub struct Reader {
    cipher: Cipher,
    files: BTreeMap<usize, Vec<u8>>,
    ids: HashMap<String, Vec<u8>>,
    read: usize,
}

fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

impl Reader {
    /// A reader of a disk that began with `files`, which have the inodes from 0 on.
    pub fn new(cipher: Cipher, files: &BTreeMap<String, Vec<u8>>) -> Self {
        let ids = files.iter().filter(|(_, bytes)| bytes.len() > PAGES_AT);
        Self {
            cipher,
            ids: ids.map(|(name, bytes)| (name.clone(), bytes[FILE_ID].to_vec())).collect(),
            files: files.values().cloned().enumerate().collect(),
            read: 0,
        }
    }

    /// What was written since the last call.
    pub fn read(&mut self, log: &[Entry]) -> Written {
        let mut written = Written::default();
        for (number, entry) in log.iter().enumerate().skip(self.read) {
            let bytes = self.files.entry(entry.inode).or_default();
            match &entry.op {
                Op::Truncate(size) => bytes.resize(*size, 0),
                Op::Write { at, bytes: new } => {
                    let range = *at..at + new.len();
                    bytes.resize(bytes.len().max(range.end), 0);
                    bytes[range.clone()].copy_from_slice(new);
                    self.write(&mut written, number, entry, range);
                }
                Op::Create { .. } | Op::Delete { .. } | Op::Sync => {}
            }
        }
        self.read = log.len();
        written
    }

    fn write(&mut self, out: &mut Written, number: usize, entry: &Entry, range: Range<usize>) {
        let bytes = &self.files[&entry.inode];
        let place = |at| format!("{} byte {at} in write {number}", entry.name);
        if entry.name.is_empty() {
            let pieces = bytes[range.clone()].chunks_exact(PIECE);
            let pieces = pieces.zip((range.start..).step_by(PIECE));
            let pieces = pieces.filter(|(piece, _)| piece.iter().any(|&byte| byte != 0));
            out.pieces.extend(pieces.map(|(piece, at)| (piece.to_vec(), place(at))));
            return;
        }
        let (database, suffix) = match entry.name.split_once(".db-") {
            Some((name, suffix)) => (format!("{name}.db"), suffix),
            None => (entry.name.to_string(), ""),
        };
        if suffix.is_empty() && bytes.len() >= PAGES_AT {
            self.ids.insert(database.clone(), bytes[FILE_ID].to_vec());
        }
        let blocks: Vec<Range<usize>> = match suffix {
            "" => touched(PAGES_AT, PAGE, &range).collect(),
            "journal" => touched(HEADER, JOURNAL_RECORD, &range).collect(),
            "wal" | "tdewal" => {
                let record_0 = HEADER..HEADER + RECORD_0;
                let touches = range.start < record_0.end && record_0.start < range.end;
                touches
                    .then_some(record_0)
                    .into_iter()
                    .chain(touched(FRAMES_AT, FRAME, &range))
                    .collect()
            }
            _ => return,
        };
        for block in blocks {
            // What is sealed is written with its trailer; zeros that end a journal are not.
            if block.end - RESERVE < range.start || range.end < block.end {
                continue;
            }
            let sealed = &bytes[block.clone()];
            let trailer = &sealed[sealed.len() - RESERVE..];
            if trailer.iter().all(|&byte| byte == 0) {
                continue;
            }
            let place = place(block.start);
            assert_eq!(trailer[..4], [0, 0, 0, 1], "{place}: no key version: a new layout?");
            // A journal's subkey is made with the salt in its header, where the file id is, too.
            let identity = match suffix {
                "journal" => &bytes[16..HEADER],
                _ => match self.ids.get(&database) {
                    Some(file_id) => file_id,
                    None => panic!("{place}: no envelope before it"),
                },
            };
            let subkey = hash(&(suffix, identity));
            let nonces = match self.cipher {
                Cipher::Aes256Gcm => vec![trailer[4..28].to_vec()],
                Cipher::Aes256CtrHmacSha256 => ranges(&trailer[4..20], sealed.len() - RESERVE),
                Cipher::Aegis256X4 => vec![trailer[4..32].to_vec()],
                other => panic!("{place}: the nonces of {other:?}"),
            };
            let block = hash(&sealed);
            out.seals.extend(nonces.into_iter().map(|nonce| Seal {
                subkey,
                nonce,
                block,
                place: place.clone(),
            }));
        }
    }
}

/// The blocks of `len` bytes from `start` on of which `range` has a byte.
fn touched(start: usize, len: usize, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let first = range.start.saturating_sub(start) / len;
    let end = range.end.saturating_sub(start).div_ceil(len);
    (first..end).map(move |block| start + block * len..start + (block + 1) * len)
}

/// The ranges of [`CTR_STEP`] counter blocks that `len` bytes from `nonce` on need.
fn ranges(nonce: &[u8], len: usize) -> Vec<Vec<u8>> {
    let start = u128::from_be_bytes(nonce.try_into().unwrap());
    let last = start.wrapping_add(len.div_ceil(16) as u128 - 1);
    let mut ranges = vec![(start / CTR_STEP).to_be_bytes().to_vec()];
    if last / CTR_STEP != start / CTR_STEP {
        ranges.push((last / CTR_STEP).to_be_bytes().to_vec());
    }
    ranges
}

/// Everything that was seen, by however many processes.
#[derive(Default, Clone)]
pub struct Ledger {
    seals: HashMap<(u64, Vec<u8>), (u64, String)>,
    pieces: HashMap<Vec<u8>, String>,
    pub repeated: Vec<String>,
}

impl Ledger {
    /// Adds what `who` wrote.
    pub fn add(&mut self, who: &str, written: Written) {
        for seal in written.seals {
            let place = format!("{who}: {}", seal.place);
            match self.seals.get(&(seal.subkey, seal.nonce.clone())) {
                None => _ = self.seals.insert((seal.subkey, seal.nonce), (seal.block, place)),
                // Sealed once, and written once more.
                Some((block, _)) if *block == seal.block => {}
                Some((_, before)) => self.repeated.push(format!("[{before}] [{place}]")),
            }
        }
        for (piece, place) in written.pieces {
            let place = format!("{who}: scratch file, {place}");
            if let Some(before) = self.pieces.insert(piece, place.clone()) {
                self.repeated.push(format!("[{before}] [{place}]"));
            }
        }
    }

    /// Pairs and pieces seen.
    pub fn seen(&self) -> (usize, usize) {
        (self.seals.len(), self.pieces.len())
    }

    pub fn check(&self, what: &str) {
        let shown = self.repeated.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n");
        let count = self.repeated.len();
        assert!(count == 0, "{what}: {count} nonces or pieces of two blocks:\n{shown}");
    }
}

/// As text, for a pipe.
impl Written {
    pub fn encode(&self) -> String {
        use std::fmt::Write;
        let hex = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        let mut text = String::new();
        for seal in &self.seals {
            let _ = writeln!(
                text,
                "seal {:x} {} {:x} {}",
                seal.subkey,
                hex(&seal.nonce),
                seal.block,
                seal.place
            );
        }
        for (piece, place) in &self.pieces {
            let _ = writeln!(text, "piece {} {place}", hex(piece));
        }
        text
    }

    pub fn decode(text: &str) -> Self {
        let bytes = |hex: &str| -> Vec<u8> {
            let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            (0..hex.len()).step_by(2).map(digit).collect()
        };
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        let mut written = Self::default();
        for line in text.lines() {
            let (kind, rest) = line.split_once(' ').unwrap();
            if kind == "piece" {
                let (piece, place) = rest.split_once(' ').unwrap();
                written.pieces.push((bytes(piece), place.to_owned()));
                continue;
            }
            let [subkey, nonce, block, place] =
                rest.splitn(4, ' ').collect::<Vec<_>>().try_into().unwrap();
            let (subkey, nonce, block) = (number(subkey), bytes(nonce), number(block));
            written.seals.push(Seal { subkey, nonce, block, place: place.to_owned() });
        }
        written
    }
}
