//! What the fuzz targets do with their bytes.
//!
//! `envelope` and `page` decode them. The others take them as a file and what happens to it:
//!
//! ```text
//! | n 2, big-endian | n bytes: the file | steps, each a byte for what, then its numbers |
//! ```
//! Steps write as SQLite does, read, truncate and reopen, and change the file behind its back. So a
//! mutation of a good seed still writes records that authenticate, and then spoils them.

use sqlite_tde::internals::{self, File, Kind};

/// Bytes of SQLite's headers of a log and of a frame.
const WAL_HEADER: u64 = 32;
const FRAME_HEADER: usize = 24;
/// No file becomes larger than this.
const LARGEST: u64 = 1 << 15;
const STEPS: usize = 64;

/// The numbers that steps are made of; zeros when they run out.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn short(&mut self) -> usize {
        usize::from(u16::from_be_bytes([self.byte(), self.byte()]))
    }

    fn long(&mut self) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|_| self.byte()))
    }
}

/// The start of a database, log or journal, as SQLite writes it.
fn header(kind: Kind, fill: u8, page_size: usize) -> Vec<u8> {
    match kind {
        Kind::Wal => {
            let mut header = vec![fill; WAL_HEADER as usize];
            header[8..12].copy_from_slice(&(page_size as u32).to_be_bytes());
            header
        }
        Kind::Journal => vec![fill; 512],
        Kind::Database => {
            let mut page = vec![0; page_size];
            page[..16].copy_from_slice(b"SQLite format 3\0");
            page[16..18].copy_from_slice(&(page_size as u16).to_be_bytes());
            page[18..24].copy_from_slice(&[1 + fill % 2, 1, 48, 64, 32, 32]);
            page
        }
    }
}

/// A frame, a piece of a journal or a page, whose content is `fill` all over.
fn unit(kind: Kind, fill: u8, page_size: usize, page: u8, commit: u8, salt: u8) -> Vec<u8> {
    match kind {
        Kind::Wal => {
            let mut frame = vec![fill; FRAME_HEADER + page_size];
            frame[..8].copy_from_slice(&[0, 0, 0, page, 0, 0, 0, commit]);
            frame[8..16].fill(salt);
            frame
        }
        Kind::Journal => vec![fill; 512],
        Kind::Database => vec![fill; page_size],
    }
}

fn is_even(bytes: &[u8]) -> bool {
    bytes.windows(2).all(|pair| pair[0] == pair[1])
}

/// Runs the steps in `input` on a file of `kind`.
///
/// # Panics
/// Where a page is handed out that nobody ever wrote.
pub fn run(kind: Kind, input: &[u8]) {
    let mut numbers = Numbers(input);
    let len = numbers.short().min(numbers.0.len());
    let (bytes, steps) = numbers.0.split_at(len);
    let mut numbers = Numbers(steps);
    let mut file = File::new(kind, bytes.to_vec());
    let (mut page_size, mut salt) = (1024, 5);
    // Whether only whole pages of one byte each were written.
    let mut even = kind != Kind::Journal;
    for _ in 0..STEPS {
        if numbers.0.is_empty() {
            break;
        }
        let start = if kind == Kind::Wal { WAL_HEADER } else { 0 };
        let unit_len = unit(kind, 0, page_size, 0, 0, 0).len();
        let at = |number: u8| start + u64::from(number % 32) * unit_len as u64;
        match numbers.byte() % 13 {
            0 => {
                salt = numbers.byte();
                page_size = 512 << (numbers.byte() % 3);
                let written = file.write(&header(kind, salt, page_size), 0);
                // Else pages of the size that was refused lie across those that are there.
                even &= written.is_some();
            }
            1 => {
                let (number, fill, page, commit) =
                    (numbers.byte(), numbers.byte(), numbers.byte(), numbers.byte());
                let bytes = unit(kind, fill, page_size, page, commit % 4, salt);
                let cut = if kind == Kind::Wal { usize::from(numbers.byte() % 25) } else { 0 };
                let (at, (head, tail)) = (at(number), bytes.split_at(cut));
                if cut > 0 {
                    file.write(head, at);
                }
                file.write(tail, at + cut as u64);
            }
            2 => {
                let (number, fill) = (numbers.byte(), numbers.byte());
                let skip = if kind == Kind::Wal { FRAME_HEADER } else { 0 };
                file.write(&vec![fill; unit_len - skip], at(number) + skip as u64);
            }
            3 => {
                let number = numbers.byte();
                file.read(unit_len, at(number));
                file.read(8, at(number) + 16);
                let skip = if kind == Kind::Wal { FRAME_HEADER } else { 0 };
                let content = file.read(unit_len - skip, at(number) + skip as u64);
                if let (Some(content), true) = (content, even) {
                    let end =
                        if kind == Kind::Database { content.len() - 48 } else { content.len() };
                    let first = kind == Kind::Database && at(number) == 0;
                    assert!(first || is_even(&content[..end]), "a page that nobody wrote");
                }
            }
            4 => drop(file.read(numbers.short(), numbers.long() >> 1)),
            5 => drop(file.truncate(numbers.short() as u64)),
            6 => {
                file.size();
                file.survey();
            }
            7 => file.reopen(),
            8 => {
                let (at, mask) = (numbers.short(), numbers.byte());
                file.raw(|bytes| {
                    let len = bytes.len().max(1);
                    bytes.get_mut(at % len).map(|byte| *byte ^= mask)
                });
            }
            9 => {
                let (from, to, len) = (numbers.short(), numbers.short(), numbers.short());
                file.raw(|bytes| {
                    let from = from.min(bytes.len());
                    let to = to.min(bytes.len());
                    let len = len.min(bytes.len() - from.max(to));
                    bytes.copy_within(from..from + len, to);
                });
            }
            10 => {
                let len = numbers.short();
                file.raw(|bytes| bytes.resize(len, 0));
            }
            11 => {
                let (salt, first) = (numbers.byte(), numbers.byte());
                let index = file.index();
                index.locks += 1;
                index.salts = (salt > 0).then_some([salt; 8]);
                index.pages = (0..32).map(|frame| u32::from(first) + frame).collect();
                index.other_state = first >= 240;
            }
            // Only a journal is written in pieces of any length.
            _ if kind == Kind::Journal => {
                let (at, len, fill) = (numbers.short(), numbers.short() % 3000, numbers.byte());
                file.write(&vec![fill; len], at as u64);
            }
            _ => {
                even = false;
                file.write(&vec![9; numbers.short() % 3000], numbers.long() % LARGEST);
            }
        }
    }
}

/// Opens the bytes as blocks of any number.
///
/// # Panics
/// Where a block opens that nobody sealed.
pub fn page(input: &[u8]) {
    let mut numbers = Numbers(input);
    let number = numbers.long();
    if let Some(plain) = internals::open_block(number, numbers.0) {
        assert!(is_even(&plain), "a block that nobody sealed");
    }
}
