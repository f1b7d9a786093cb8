//! Files that die with the process: temporary databases, sorter runs, statement journals.
//!
//! Ciphertext keeps the offsets of the plaintext, in blocks of [`BLOCK`] bytes. Key, nonces and
//! tags are in memory only, 48 bytes a block, and so is the size: nobody reopens such a file.
//! A block never written reads as zeros, as a hole of a plain file does.
//!
//! Nobody else looks into such a file, and it need not survive anything. So up to [`GATHERED`] bytes of
//! neighbouring blocks are gathered in plaintext, sealed and written at once. What could not be written
//! stays here, is read from here, and the call that tried gets the error; so does each that tries again.

use super::tuning::Tuning;
use super::{Filled, Storage};
use crate::error::{Error, Result};
use crate::key::keyring::scratch_keys;
use crate::page::{PageCipher, RESERVE};

const BLOCK: usize = 4096;
/// Bytes that are gathered before they are written.
const GATHERED: usize = 16 * BLOCK;

pub(crate) struct Scratch {
    tuning: Tuning,
    cipher: PageCipher,
    /// Those of what is in the base.
    trailers: Vec<Option<[u8; RESERVE]>>,
    size: u64,
    /// Blocks from `first` on that are newer than the base.
    gathered: Vec<u8>,
    first: u64,
    /// They as they are written, and one trailer.
    image: Vec<u8>,
    /// The plaintext of one block that is in the base, and its number: what small reads in a row ask for.
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
            size: 0,
            gathered: Vec::new(),
            first: 0,
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
        let whole = size / BLOCK as u64;
        let rest = (size % BLOCK as u64) as usize;
        if size < self.size && rest > 0 {
            let place = self.gather(base, whole, false)?;
            self.gathered[place + rest..place + BLOCK].fill(0);
            self.settle(base)?;
        }
        base.truncate(size.next_multiple_of(BLOCK as u64))?;
        let blocks = size.div_ceil(BLOCK as u64);
        self.held = self.held.filter(|&held| held < blocks);
        self.trailers.truncate(blocks as usize);
        self.gathered.truncate(blocks.saturating_sub(self.first) as usize * BLOCK);
        if size == 0 {
            self.gathered = Vec::new();
            self.image = Vec::new();
        }
        self.size = size;
        Ok(())
    }

    /// Where nothing is gathered, each call writes what it changed.
    fn settle(&mut self, base: &impl Storage) -> Result<()> {
        if self.tuning.gather_writes { Ok(()) } else { self.flush(base) }
    }

    /// Where `block` is among what is gathered.
    fn place(&self, block: u64) -> Option<usize> {
        let place = usize::try_from(block.checked_sub(self.first)?).ok()?.checked_mul(BLOCK)?;
        (place < self.gathered.len()).then_some(place)
    }

    /// Has `block` gathered, to be changed there: all of it if `whole`, else as it was.
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
        // If `whole`, whatever is in it is overwritten at once.
        self.gathered.extend_from_slice(&self.plain);
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

    /// Puts what the base has of `block` into `plain`.
    fn open(&mut self, base: &impl Storage, block: u64, plain: &mut [u8]) -> Result<()> {
        let Some(Some(trailer)) = self.trailers.get(block as usize) else {
            plain.fill(0);
            return Ok(());
        };
        self.sealed[BLOCK..].copy_from_slice(trailer);
        base.read(&mut self.sealed[..BLOCK], block * BLOCK as u64)?;
        self.cipher
            .open(block, &self.sealed, plain)
            .map_err(|_| Error::ScratchAuthentication { block })
    }

    /// Seals and writes what is gathered.
    fn flush(&mut self, base: &impl Storage) -> Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let blocks = self.gathered.len() / BLOCK;
        let mut trailers = [None; GATHERED / BLOCK];
        self.image.resize(self.gathered.len() + RESERVE, 0);
        for (index, plain) in self.gathered.chunks_exact(BLOCK).enumerate() {
            // The trailer lies where the next block begins.
            let sealed = &mut self.image[index * BLOCK..(index + 1) * BLOCK + RESERVE];
            self.cipher.seal(self.first + index as u64, plain, sealed)?;
            trailers[index] = sealed.last_chunk().copied();
        }
        base.write(&self.image[..self.gathered.len()], self.first * BLOCK as u64)?;
        let (first, end) = (self.first as usize, self.first as usize + blocks);
        if self.trailers.len() < end {
            self.trailers.resize(end, None);
        }
        self.trailers[first..end].copy_from_slice(&trailers[..blocks]);
        self.gathered.clear();
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

    /// Fails where `fail` is set, after half of what was to be written.
    struct Failing {
        base: Memory,
        fail: std::cell::Cell<bool>,
    }

    impl Storage for Failing {
        fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
            self.base.read(buf, at)
        }
        fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
            let fail = self.fail.get();
            self.base.write(&bytes[..if fail { bytes.len() / 2 } else { bytes.len() }], at)?;
            if fail { Err(Error::Base(1)) } else { Ok(()) }
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
        let mut scratch = Scratch::new(Tuning::OFF).unwrap();
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
        assert!(scratch.gathered.is_empty(), "what was written is not kept in memory");
        scratch.truncate(&base, 10).unwrap();
        assert!(scratch.gathered.is_empty());
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
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 300 }))]

        /// Also on a disk that fails for a while: a call that fails leaves all as it was but for the
        /// bytes that it was to change.
        #[test]
        fn reads_as_a_plain_file_does(
            steps in proptest::collection::vec(step(), 1..60),
            fails in prop_oneof![Just(0..0), (0..50_usize, 1..20_usize).prop_map(|(at, n)| at..at + n)],
            tuning in prop_oneof![Just(Tuning::default()), Just(Tuning::OFF)],
        ) {
            let base = Failing { base: Memory::default(), fail: false.into() };
            let model = Memory::default();
            let mut scratch = Scratch::new(tuning).unwrap();
            for (number, step) in steps.iter().enumerate() {
                base.fail.set(fails.contains(&number));
                match *step {
                    Step::Write(at, len, byte) => {
                        while scratch.write(&base, &vec![byte; len], at).is_err() {
                            prop_assert!(base.fail.get());
                            check(&mut scratch, &base, &model, at..at + len as u64);
                            base.fail.set(false);
                        }
                        model.write(&vec![byte; len], at).unwrap();
                    }
                    Step::Truncate(size) => {
                        let size = size.min(scratch.size());
                        while scratch.truncate(&base, size).is_err() {
                            prop_assert!(base.fail.get());
                            check(&mut scratch, &base, &model, size..u64::MAX);
                            base.fail.set(false);
                        }
                        model.truncate(size).unwrap();
                    }
                    Step::Read(at, len) => {
                        base.fail.set(false);
                        let (mut got, mut want) = (vec![1; len], vec![2; len]);
                        let filled = scratch.read(&base, &mut got, at).unwrap();
                        let full = model.read(&mut want, at).unwrap();
                        prop_assert_eq!(&got, &want);
                        prop_assert_eq!(filled == Filled::Full, full);
                    }
                }
                prop_assert_eq!(scratch.size(), model.size().unwrap());
                prop_assert!(scratch.gathered.len() <= GATHERED);
            }
            base.fail.set(false);
            check(&mut scratch, &base, &model, 0..0);
        }
    }

    /// All but `except` is as in `model`. The disk is well while it is looked at.
    fn check(scratch: &mut Scratch, base: &Failing, model: &Memory, except: std::ops::Range<u64>) {
        let failing = base.fail.replace(false);
        let mut got = vec![1; model.size().unwrap() as usize];
        scratch.read(base, &mut got, 0).unwrap();
        for (at, (got, want)) in got.iter().zip(model.0.borrow().iter()).enumerate() {
            assert!(got == want || except.contains(&(at as u64)), "byte {at}");
        }
        base.fail.set(failing);
    }

    /// How SQLite writes a run of the sorter: a page at a time, of any size.
    #[test]
    fn neighbours_are_written_at_once_and_failures_are_told() {
        for page in [1024, 4096, 65536] {
            let base = Failing { base: Memory::default(), fail: true.into() };
            let mut scratch = Scratch::new(Tuning::default()).unwrap();
            let mut failed = 0;
            for at in (0..256 * 1024).step_by(page) {
                failed += usize::from(scratch.write(&base, &vec![5; page], at).is_err());
            }
            assert!(failed > 0, "{page}: more is gathered than may be");
            base.fail.set(false);
            let mut writes = 0;
            for at in (0..256 * 1024).step_by(page) {
                let before = base.base.size().unwrap();
                scratch.write(&base, &vec![6; page], at).unwrap();
                writes += usize::from(base.base.size().unwrap() != before);
            }
            assert!(writes <= 4, "{page}: {writes}");
            let mut got = vec![0; 256 * 1024];
            scratch.read(&base, &mut got, 0).unwrap();
            assert!(got.iter().all(|&byte| byte == 6), "{page}");
        }
    }

    #[test]
    fn the_file_holds_no_plaintext_and_no_change_passes() {
        let base = Memory::default();
        let mut scratch = Scratch::new(Tuning::default()).unwrap();
        scratch.write(&base, &[b'M'; 3 * BLOCK], 0).unwrap();
        scratch.flush(&base).unwrap();
        assert!(!base.0.borrow().windows(8).any(|bytes| bytes == b"MMMMMMMM"));
        base.0.borrow_mut()[BLOCK + 5] ^= 1;
        let result = scratch.read(&base, &mut [0; BLOCK], BLOCK as u64);
        assert!(matches!(result, Err(Error::ScratchAuthentication { block: 1 })), "{result:?}");
    }
}
