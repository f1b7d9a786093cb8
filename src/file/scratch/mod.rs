//! Files that die with the process: temporary databases, sorter runs, statement journals.
//!
//! ```text
//! | 84 blocks | their trailers | 84 blocks | their trailers | ...
//! ```
//! Blocks have [`BLOCK`] bytes of ciphertext; their trailers lie behind each group of them, see
//! [`groups`]. The key is random and in memory only, and so is the size: such a file is never
//! reopened. A block never written reads as zeros, as a hole of a plain file does. Memory use is
//! bounded, except for 8 bytes a group: 2.4 MB for 100 GB.
//!
//! No other handle reads such a file, and it need not survive a crash. So up to [`GATHERED`] bytes
//! of neighbouring blocks are gathered in plaintext, sealed and written at once. After a failed
//! write the buffer is kept and read from, and the call that tried gets the error; so does each
//! that tries again.

mod groups;

use std::collections::BTreeMap;

use self::groups::{Groups, PER_GROUP, position};
use crate::error::{Error, Result};
use crate::io::{Filled, Storage};
use crate::key::keyring::scratch_keys;
use crate::page::{PageCipher, RESERVE};
use crate::settings::Tuning;

const BLOCK: usize = 4096;
/// Bytes that are gathered before they are written.
const GATHERED: usize = 16 * BLOCK;

pub(crate) struct Scratch {
    tuning: Tuning,
    cipher: PageCipher,
    /// The trailers of the blocks in the base.
    groups: Groups,
    size: u64,
    /// Blocks from `first` on that are newer than the base.
    gathered: Vec<u8>,
    first: u64,
    /// Blocks that a truncation cut within and that were not written since: the rest reads as
    /// zeros.
    cut: BTreeMap<u64, usize>,
    /// The gathered blocks in sealed form, and room for one trailer.
    image: Vec<u8>,
    /// The plaintext of one block in the base, and its number: serves small sequential reads.
    held: Option<u64>,
    plain: Box<[u8]>,
    sealed: Box<[u8]>,
}

impl Scratch {
    pub(crate) fn new(tuning: Tuning) -> Result<Self> {
        Ok(Self {
            tuning,
            cipher: PageCipher::new(scratch_keys()?),
            groups: Groups::default(),
            size: 0,
            gathered: Vec::new(),
            first: 0,
            cut: BTreeMap::new(),
            image: Vec::new(),
            held: None,
            plain: vec![0; BLOCK].into(),
            sealed: vec![0; BLOCK + RESERVE].into(),
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn read(&mut self, base: &impl Storage, buf: &mut [u8], at: u64) -> Result<Filled> {
        let inside = self.size.saturating_sub(at).min(buf.len() as u64) as usize;
        buf[inside..].fill(0);
        for part in parts(at, inside) {
            let buf = &mut buf[part.done..part.done + part.len];
            if let Some(place) = self.place(part.block) {
                let from = place + part.within;
                buf.copy_from_slice(&self.gathered[from..from + part.len]);
            } else if part.len == BLOCK {
                self.open(base, part.block, buf)?;
            } else {
                self.hold(base, part.block)?;
                buf.copy_from_slice(&self.plain[part.within..part.within + part.len]);
            }
        }
        Ok(if inside == buf.len() { Filled::Full } else { Filled::Short })
    }

    pub(crate) fn write(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        for part in parts(at, bytes.len()) {
            let place = self.gather(base, part.block, part.len == BLOCK)? + part.within;
            self.gathered[place..place + part.len]
                .copy_from_slice(&bytes[part.done..part.done + part.len]);
            self.size = self.size.max(at + (part.done + part.len) as u64);
        }
        self.settle(base)
    }

    pub(crate) fn truncate(&mut self, base: &impl Storage, size: u64) -> Result<()> {
        let blocks = size.div_ceil(BLOCK as u64);
        self.groups.before_cut(base, &mut self.cipher, blocks)?;
        base.truncate(position(blocks))?;
        self.groups.cut(blocks);
        let (last, within) = (size / BLOCK as u64, (size % BLOCK as u64) as usize);
        self.held = self.held.filter(|&held| held < last);
        self.gathered.truncate(blocks.saturating_sub(self.first) as usize * BLOCK);
        self.cut.split_off(&blocks);
        if size == 0 {
            self.gathered = Vec::new();
            self.image = Vec::new();
        } else if within > 0 && size < self.size {
            match self.place(last) {
                Some(place) => self.gathered[place + within..place + BLOCK].fill(0),
                None => {
                    let cut = self.cut.entry(last).or_insert(within);
                    *cut = within.min(*cut);
                }
            }
        }
        self.size = size;
        Ok(())
    }

    /// Without `gather_writes`, each call writes its changes at once.
    fn settle(&mut self, base: &impl Storage) -> Result<()> {
        if self.tuning.gather_writes { Ok(()) } else { self.flush(base) }
    }

    /// Position of `block` among the gathered blocks.
    fn place(&self, block: u64) -> Option<usize> {
        let place = usize::try_from(block.checked_sub(self.first)?).ok()?.checked_mul(BLOCK)?;
        (place < self.gathered.len()).then_some(place)
    }

    /// Gathers `block`, to be changed: empty if `whole`, else with its content.
    fn gather(&mut self, base: &impl Storage, block: u64, whole: bool) -> Result<usize> {
        if let Some(place) = self.place(block) {
            return Ok(place);
        }
        let next = self.first + (self.gathered.len() / BLOCK) as u64;
        if block != next || self.gathered.len() == GATHERED {
            self.flush(base)?;
        }
        if !whole {
            self.hold(base, block)?;
        }
        if self.gathered.is_empty() {
            self.first = block;
        }
        let place = self.gathered.len();
        // If `whole`, the caller overwrites all of it at once.
        self.gathered.extend_from_slice(&self.plain);
        self.cut.remove(&block);
        if self.held == Some(block) {
            self.held = None;
        }
        Ok(place)
    }

    /// Makes `plain` the content of `block`, which is not gathered.
    fn hold(&mut self, base: &impl Storage, block: u64) -> Result<()> {
        if self.held == Some(block) {
            return Ok(());
        }
        self.held = None;
        let mut plain = std::mem::take(&mut self.plain);
        let opened = self.open(base, block, &mut plain);
        self.plain = plain;
        opened?;
        self.held = Some(block);
        Ok(())
    }

    /// Loads `block` from the base into `plain`.
    fn open(&mut self, base: &impl Storage, block: u64, plain: &mut [u8]) -> Result<()> {
        let Some(trailer) = self.groups.trailer(base, &mut self.cipher, block)? else {
            plain.fill(0);
            return Ok(());
        };
        self.sealed[BLOCK..].copy_from_slice(trailer);
        base.read(&mut self.sealed[..BLOCK], position(block))?;
        self.cipher
            .open(block, &self.sealed, plain)
            .map_err(|_| Error::ScratchAuthentication { block })?;
        if let Some(&cut) = self.cut.get(&block) {
            plain[cut..].fill(0);
        }
        Ok(())
    }

    /// Seals and writes the gathered blocks, one write for each group.
    fn flush(&mut self, base: &impl Storage) -> Result<()> {
        let (mut first, end) = (self.first, self.first + (self.gathered.len() / BLOCK) as u64);
        while first < end {
            let next = end.min((first / PER_GROUP + 1) * PER_GROUP);
            self.write_run(base, first, next)?;
            first = next;
        }
        self.gathered.clear();
        Ok(())
    }

    /// Seals and writes the gathered blocks from `first` up to `end`, which are of one group.
    fn write_run(&mut self, base: &impl Storage, first: u64, end: u64) -> Result<()> {
        let mut trailers = [[0; RESERVE]; GATHERED / BLOCK];
        let from = (first - self.first) as usize * BLOCK;
        let plain = &self.gathered[from..from + (end - first) as usize * BLOCK];
        self.image.resize(plain.len() + RESERVE, 0);
        let blocks = plain.chunks_exact(BLOCK).zip(&mut trailers).zip(first..);
        for (index, ((plain, trailer), block)) in blocks.enumerate() {
            // The trailer lies where the next block begins.
            let sealed = &mut self.image[index * BLOCK..(index + 1) * BLOCK + RESERVE];
            self.cipher.seal(block, plain, sealed)?;
            trailer.copy_from_slice(&sealed[BLOCK..]);
        }
        let group = self.groups.load(base, &mut self.cipher, first)?;
        base.write(&self.image[..plain.len()], position(first))?;
        group.set(first, &trailers[..(end - first) as usize]);
        Ok(())
    }
}

/// The share of one block in a read or write.
struct Part {
    block: u64,
    within: usize,
    len: usize,
    done: usize,
}

fn parts(at: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let place = at + done as u64;
            let within = (place % BLOCK as u64) as usize;
            let part = Part {
                block: place / BLOCK as u64,
                within,
                len: (BLOCK - within).min(len - done),
                done,
            };
            done += part.len;
            part
        })
    })
}

#[cfg(test)]
mod tests;
