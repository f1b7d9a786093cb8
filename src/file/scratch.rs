//! Files that die with the process: temporary databases, sorter runs, statement journals.
//!
//! Ciphertext keeps the offsets of the plaintext, in blocks of [`BLOCK`] bytes. Key, nonces and
//! tags are in memory only, 48 bytes a block, and so is the size: nobody reopens such a file.
//! A block never written reads as zeros, as a hole of a plain file does.

use std::collections::HashMap;

use super::tuning::Tuning;
use super::{Filled, Storage};
use crate::error::{Error, Result};
use crate::key::keyring::scratch_keys;
use crate::page::{PageCipher, RESERVE};

const BLOCK: usize = 4096;

pub(crate) struct Scratch {
    #[expect(dead_code)]
    tuning: Tuning,
    cipher: PageCipher,
    trailers: Vec<Option<[u8; RESERVE]>>,
    /// Blocks whose last write failed, in plaintext: what is on disk may be neither old nor new, and
    /// SQLite goes on using the parts of a block that it did not write then.
    unwritten: HashMap<u64, Box<[u8]>>,
    size: u64,
    /// The plaintext of one block and its number: what small reads and writes in a row work on.
    /// It always equals what the file holds.
    held: Option<u64>,
    plain: Box<[u8]>,
    sealed: Box<[u8]>,
}

impl Scratch {
    pub(crate) fn new(tuning: Tuning) -> Result<Self> {
        Ok(Self {
            tuning,
            cipher: PageCipher::new(scratch_keys()?),
            trailers: Vec::new(),
            unwritten: HashMap::new(),
            size: 0,
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
            self.load(base, part.block)?;
            let from = part.within..part.within + part.len;
            buf[part.done..part.done + part.len].copy_from_slice(&self.plain[from]);
        }
        Ok(if inside == buf.len() { Filled::Full } else { Filled::Short })
    }

    pub(crate) fn write(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        for part in parts(at, bytes.len()) {
            if part.len < BLOCK {
                self.load(base, part.block)?;
            }
            let new = &bytes[part.done..part.done + part.len];
            self.plain[part.within..part.within + part.len].copy_from_slice(new);
            self.store(base, part.block)?;
            self.size = self.size.max(at + (part.done + part.len) as u64);
        }
        Ok(())
    }

    pub(crate) fn truncate(&mut self, base: &impl Storage, size: u64) -> Result<()> {
        let whole = size / BLOCK as u64;
        let rest = (size % BLOCK as u64) as usize;
        if size < self.size && rest > 0 {
            self.load(base, whole)?;
            self.plain[rest..].fill(0);
            self.store(base, whole)?;
        }
        if self.held.is_some_and(|held| held * BLOCK as u64 >= size) {
            self.held = None;
        }
        base.truncate(size.next_multiple_of(BLOCK as u64))?;
        let blocks = size.div_ceil(BLOCK as u64);
        self.trailers.truncate(blocks as usize);
        self.unwritten.retain(|&block, _| block < blocks);
        self.size = size;
        Ok(())
    }

    /// Makes `plain` the content of `block`.
    fn load(&mut self, base: &impl Storage, block: u64) -> Result<()> {
        if self.held == Some(block) {
            return Ok(());
        }
        self.held = None;
        if let Some(plain) = self.unwritten.get(&block) {
            self.plain.copy_from_slice(plain);
            self.held = Some(block);
            return Ok(());
        }
        match self.trailers.get(block as usize) {
            Some(Some(trailer)) => {
                self.sealed[BLOCK..].copy_from_slice(trailer);
                base.read(&mut self.sealed[..BLOCK], block * BLOCK as u64)?;
                self.cipher
                    .open(block, &self.sealed, &mut self.plain)
                    .map_err(|_| Error::ScratchAuthentication { block })?;
            }
            _ => self.plain.fill(0),
        }
        self.held = Some(block);
        Ok(())
    }

    /// Writes `plain` as the content of `block`.
    fn store(&mut self, base: &impl Storage, block: u64) -> Result<()> {
        self.held = None;
        self.cipher.seal(block, &self.plain, &mut self.sealed)?;
        if let Err(error) = base.write(&self.sealed[..BLOCK], block * BLOCK as u64) {
            self.unwritten.insert(block, self.plain.clone());
            return Err(error);
        }
        self.unwritten.remove(&block);
        let mut trailer = [0; RESERVE];
        trailer.copy_from_slice(&self.sealed[BLOCK..]);
        let index = block as usize;
        if self.trailers.len() <= index {
            self.trailers.resize(index + 1, None);
        }
        self.trailers[index] = Some(trailer);
        self.held = Some(block);
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
mod tests {
    use super::*;
    use crate::file::memory::Memory;
    use proptest::prelude::*;

    /// Writes, and then says that it did not, where `fail` is set.
    struct Failing {
        base: Memory,
        fail: std::cell::Cell<bool>,
    }

    impl Storage for Failing {
        fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
            self.base.read(buf, at)
        }
        fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
            self.base.write(bytes, at)?;
            if self.fail.get() { Err(Error::Base(1)) } else { Ok(()) }
        }
        fn truncate(&self, size: u64) -> Result<()> {
            if self.fail.get() { Err(Error::Base(1)) } else { self.base.truncate(size) }
        }
        fn size(&self) -> Result<u64> {
            self.base.size()
        }
        fn sync(&self) -> Result<()> {
            self.base.sync()
        }
    }

    #[test]
    fn a_failed_write_spoils_nothing_around_it() {
        let base = Failing { base: Memory::default(), fail: false.into() };
        let mut scratch = Scratch::new(Tuning::default()).unwrap();
        scratch.write(&base, &[1; 3 * BLOCK], 0).unwrap();
        base.fail.set(true);
        assert!(scratch.write(&base, &[2; 1024], 1024).is_err());
        assert!(scratch.write(&base, &[2; 1024], BLOCK as u64 + 1024).is_err());
        assert!(scratch.truncate(&base, BLOCK as u64).is_err());
        base.fail.set(false);
        let mut got = vec![0; 3 * BLOCK];
        assert_eq!(scratch.read(&base, &mut got, 0).unwrap(), Filled::Full);
        for (at, byte) in got.iter().enumerate() {
            let block = at / BLOCK;
            let asked = block < 2 && (1024..2048).contains(&(at % BLOCK));
            assert!(*byte == 1 || asked && *byte == 2, "byte {at} is {byte}");
        }
        scratch.write(&base, &[3; 10], 2000).unwrap();
        assert!(scratch.unwritten.len() == 1, "a write that went well is not kept in memory");
        scratch.truncate(&base, 10).unwrap();
        assert!(scratch.unwritten.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, usize, u8),
        Read(u64, usize),
        Truncate(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = 0..20_000_u64;
        prop_oneof![
            (place.clone(), 1..9000_usize, 1..=255_u8).prop_map(|(a, l, b)| Step::Write(a, l, b)),
            (place.clone(), 1..9000_usize).prop_map(|(a, l)| Step::Read(a, l)),
            place.prop_map(Step::Truncate),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 200 }))]
        #[test]
        fn reads_as_a_plain_file_does(steps in proptest::collection::vec(step(), 1..40)) {
            let (base, model) = (Memory::default(), Memory::default());
            let mut scratch = Scratch::new(Tuning::default()).unwrap();
            for step in steps {
                match step {
                    Step::Write(at, len, byte) => {
                        scratch.write(&base, &vec![byte; len], at).unwrap();
                        model.write(&vec![byte; len], at).unwrap();
                    }
                    Step::Truncate(size) => {
                        let size = size.min(scratch.size());
                        scratch.truncate(&base, size).unwrap();
                        model.truncate(size).unwrap();
                    }
                    Step::Read(at, len) => {
                        let (mut got, mut want) = (vec![1; len], vec![2; len]);
                        let filled = scratch.read(&base, &mut got, at).unwrap();
                        let full = model.read(&mut want, at).unwrap();
                        prop_assert_eq!(&got, &want);
                        prop_assert_eq!(filled == Filled::Full, full);
                    }
                }
                prop_assert_eq!(scratch.size(), model.size().unwrap());
            }
        }
    }

    #[test]
    fn the_file_holds_no_plaintext_and_no_change_passes() {
        let base = Memory::default();
        let mut scratch = Scratch::new(Tuning::default()).unwrap();
        scratch.write(&base, &[b'M'; 3 * BLOCK], 0).unwrap();
        assert!(!base.0.borrow().windows(8).any(|bytes| bytes == b"MMMMMMMM"));
        base.0.borrow_mut()[BLOCK + 5] ^= 1;
        let result = scratch.read(&base, &mut [0; BLOCK], BLOCK as u64);
        assert!(matches!(result, Err(Error::ScratchAuthentication { block: 1 })), "{result:?}");
    }
}
