//! The trailers of a scratch file's blocks.
//!
//! ```text
//! 0           84 blocks        85 blocks    169 blocks
//! | blocks .. | trailers       | blocks ..  | trailers       | ...
//!             | 48 * 84, zeros, trailer of their own |  = one block
//! ```
//! A trailer of zeros is that of a block never written. The trailers of recently used groups are
//! cached; those of others are sealed and written when their place is needed, under a number of
//! their own that is used once in the life of the file. Memory keeps that number for each group, so
//! an attacker who can write the file cannot put an older block back with its older trailer: a
//! sorter or a savepoint that is fed old rows would write them into the database as new ones.
//!
//! Invariants
//! 1. Cached trailers are current. Those of other groups have the number in `sealed_as`, or are all
//!    zeros.
//! 2. No trailers leave memory before they are written; after an error they stay.

use super::BLOCK;
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::page::{PageCipher, RESERVE};

/// Blocks of a group: their trailers, and one for them, fit in a block.
pub(super) const PER_GROUP: u64 = 84;
const TRAILERS: usize = PER_GROUP as usize * RESERVE;
/// Bytes that are sealed as the trailers of a group.
const PLAIN: usize = BLOCK - RESERVE;
/// Cached groups: 22 MB of the file, at 4 KiB each. A merge of the sorter reads 16 places in turns.
const AT_HAND: usize = 64;
/// Numbers of trailers are no numbers of blocks.
const OF_TRAILERS: u64 = 1 << 63;

const _: () = assert!(TRAILERS <= PLAIN);

/// Offset of `block` in the file, and the end of a file of as many blocks.
pub(super) fn position(block: u64) -> u64 {
    (block + block / PER_GROUP) * BLOCK as u64
}

/// Offset of the trailers of `group`.
fn position_of_trailers(group: u64) -> u64 {
    position((group + 1) * PER_GROUP) - BLOCK as u64
}

/// The trailers of one group.
pub(super) struct Group {
    number: u64,
    /// When it was used last.
    used: u64,
    /// Whether it differs from the file.
    changed: bool,
    trailers: Box<[u8]>,
}

impl Group {
    /// Sets the trailers of the blocks from `first` on.
    pub(super) fn set(&mut self, first: u64, trailers: &[[u8; RESERVE]]) {
        let from = (first % PER_GROUP) as usize * RESERVE;
        self.trailers[from..from + trailers.len() * RESERVE]
            .copy_from_slice(trailers.as_flattened());
        self.changed = true;
    }

    fn trailer(&self, block: u64) -> Option<&[u8]> {
        let from = (block % PER_GROUP) as usize * RESERVE;
        let trailer = &self.trailers[from..from + RESERVE];
        trailer.iter().any(|&byte| byte != 0).then_some(trailer)
    }
}

pub(super) struct Groups {
    at_hand: Vec<Group>,
    most: usize,
    /// The number that the trailers of each group were last sealed under; 0 for never.
    sealed_as: Vec<u64>,
    /// The number used last.
    last: u64,
    /// Counts uses.
    clock: u64,
    /// Trailers in sealed form.
    sealed: Box<[u8]>,
}

impl Default for Groups {
    fn default() -> Self {
        Self::with(AT_HAND)
    }
}

impl Groups {
    /// A cache of at most `most` groups.
    pub(super) fn with(most: usize) -> Self {
        let sealed = vec![0; BLOCK].into();
        Self { at_hand: Vec::new(), most, sealed_as: Vec::new(), last: 0, clock: 0, sealed }
    }

    /// The trailer of `block`, if it was ever written.
    pub(super) fn trailer(
        &mut self,
        base: &impl Storage,
        cipher: &mut PageCipher,
        block: u64,
    ) -> Result<Option<&[u8]>> {
        Ok(self.load(base, cipher, block)?.trailer(block))
    }

    /// Brings the group of `block` into the cache.
    pub(super) fn load(
        &mut self,
        base: &impl Storage,
        cipher: &mut PageCipher,
        block: u64,
    ) -> Result<&mut Group> {
        let number = block / PER_GROUP;
        self.clock += 1;
        let found = self.at_hand.iter().position(|group| group.number == number);
        let place = match found {
            Some(place) => place,
            None => {
                self.make_room(base, cipher)?;
                self.fetch(base, cipher, number)?
            }
        };
        let group = &mut self.at_hand[place];
        group.used = self.clock;
        Ok(group)
    }

    /// Makes room for one more group: writes the trailers used longest ago.
    fn make_room(&mut self, base: &impl Storage, cipher: &mut PageCipher) -> Result<()> {
        while self.at_hand.len() >= self.most {
            let groups = self.at_hand.iter().enumerate();
            let Some((oldest, _)) = groups.min_by_key(|(_, group)| group.used) else { break };
            self.write(base, cipher, oldest)?;
            self.at_hand.swap_remove(oldest);
        }
        Ok(())
    }

    /// Reads the trailers of group `number`; returns their place in the cache.
    fn fetch(
        &mut self,
        base: &impl Storage,
        cipher: &mut PageCipher,
        number: u64,
    ) -> Result<usize> {
        let mut group = Group { number, used: 0, changed: false, trailers: vec![0; PLAIN].into() };
        let sealed_as = self.sealed_as.get(number as usize).copied().unwrap_or(0);
        if sealed_as > 0 {
            base.read(&mut self.sealed, position_of_trailers(number))?;
            cipher
                .open(OF_TRAILERS | sealed_as, &self.sealed, &mut group.trailers)
                .map_err(|_| Error::ScratchAuthentication { block: number * PER_GROUP })?;
        }
        self.at_hand.push(group);
        Ok(self.at_hand.len() - 1)
    }

    /// Writes the trailers at `place`, if they have changed.
    fn write(&mut self, base: &impl Storage, cipher: &mut PageCipher, place: usize) -> Result<()> {
        let group = &mut self.at_hand[place];
        if !group.changed {
            return Ok(());
        }
        self.last += 1;
        cipher.seal(OF_TRAILERS | self.last, &group.trailers, &mut self.sealed)?;
        base.write(&self.sealed, position_of_trailers(group.number))?;
        group.changed = false;
        let number = group.number as usize;
        if self.sealed_as.len() <= number {
            self.sealed_as.resize(number + 1, 0);
        }
        self.sealed_as[number] = self.last;
        Ok(())
    }

    /// The file is about to be cut to `blocks`: the group that this cuts in two is cached first,
    /// because its trailers in the file are lost. Nothing is written for it: a rollback on a full
    /// disk comes here.
    pub(super) fn before_cut(
        &mut self,
        base: &impl Storage,
        cipher: &mut PageCipher,
        blocks: u64,
    ) -> Result<()> {
        let number = blocks / PER_GROUP;
        let at_hand = self.at_hand.iter().any(|group| group.number == number);
        if at_hand || blocks.is_multiple_of(PER_GROUP) {
            return Ok(());
        }
        self.fetch(base, cipher, number).map(|_| ())
    }

    /// The file was cut to `blocks`.
    pub(super) fn cut(&mut self, blocks: u64) {
        self.at_hand.retain(|group| group.number * PER_GROUP < blocks);
        let cut = self.at_hand.iter_mut().find(|group| group.number == blocks / PER_GROUP);
        if let Some(group) = cut {
            group.trailers[(blocks % PER_GROUP) as usize * RESERVE..].fill(0);
            group.changed = true;
        }
        self.sealed_as.truncate(blocks.div_ceil(PER_GROUP) as usize);
        if blocks == 0 {
            (self.at_hand, self.sealed_as) = (Vec::new(), Vec::new());
        }
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let at_hand = self.at_hand.capacity() * size_of::<Group>() + self.at_hand.len() * PLAIN;
        at_hand + self.sealed_as.capacity() * size_of::<u64>() + self.sealed.len()
    }
}
