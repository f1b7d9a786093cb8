//! What somebody without the key can do to the files, between any two calls.

use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sqlite_tde_testkit::random::Random;

use super::history::Files;
use super::watch::Seen;
use super::{
    COPY, DATABASE, FRAMES_AT, INDEX, JOURNAL, LOG, PAGE, PAGES_AT, RECORD, RECORDS_AT, STRIDE,
};
use sqlite_tde_testkit::beside;
use sqlite_tde_testkit::between::File;

/// A part of a file. Units are pages, frame records and journal records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first and the last unit of what is read or written next.
    Next,
    NextLast,
    First,
    Last,
    /// One unit of all, by a number that wraps around.
    Nth(u32),
    /// What lies before the units: the envelope, or a header of ours and what it authenticates.
    Head,
    CopyA,
    CopyB,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    Start,
    Middle,
    Trailer,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    To(u64),
    Half,
    LastUnit,
    Byte,
    /// Before what is read or written next, and in the middle of it.
    BeforeNext,
    InsideNext,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    Byte,
    ZeroUnit,
    CopyOfUnits,
}

/// An older version of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Of before the last change before the history, in the middle of a transaction.
    Before,
    /// Of the start of the history.
    Start,
    /// Of the last mark in the history: in the middle of a transaction.
    Mark,
}

/// Something in the wal-index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// A frame, by a number that wraps around, has no page, or another one, which is found there.
    NoPage(u32),
    OtherPage(u32),
    /// The frame of the last commit, with checksums that fit.
    FewerFrames,
    MoreFrames,
    /// Pages of the database, with checksums that fit.
    FewerPages,
    MorePages,
    /// A bit of the header, in both copies.
    Header(u32),
    /// Frames that are in the database, it says: all or none.
    AllBackfilled,
    NoneBackfilled,
    /// The hash table is empty.
    NoHash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Cut(Cut),
    Grow(Growth),
    Zero(Part),
    /// From there to the end: cut and made as long as it was.
    ZeroFrom(Part),
    Flip(Part, Spot),
    /// The same byte of both copies of the envelope.
    FlipBoth(u64),
    Exchange(Part),
    PutBack(Part, When),
    PutBackAll(When),
    Delete,
    Index(Word),
}

/// One row: what is done to which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub file: File,
    pub change: Change,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {:?}", self.file, self.change)
    }
}

/// Units that files have at most; where there are fewer, a row is done twice.
const UNITS: u32 = 48;

/// All rows for `file`. `random` chooses a unit; or it is each in turn.
pub fn rows(file: File, random: &mut Random, each: bool) -> Vec<Row> {
    use Part::{CopyA, CopyB, First, Head, Last, Next, NextLast};
    let mut changes = Vec::new();
    if file == File::Index {
        let frame = random.below(60) as u32;
        for word in [
            Word::NoPage(frame),
            Word::NoPage(u32::MAX),
            Word::OtherPage(frame),
            Word::OtherPage(frame / 3),
            Word::OtherPage(u32::MAX),
            Word::FewerFrames,
            Word::MoreFrames,
            Word::FewerPages,
            Word::MorePages,
            Word::Header(random.below(384) as u32),
            Word::AllBackfilled,
            Word::NoneBackfilled,
            Word::NoHash,
        ] {
            changes.push(Change::Index(word));
        }
        return changes.into_iter().map(|change| Row { file, change }).collect();
    }
    let mut parts = vec![Next, NextLast, First, Last, Head];
    match each {
        true => parts.extend((0..UNITS).map(Part::Nth)),
        false => parts.push(Part::Nth(random.below(u64::from(UNITS)) as u32)),
    }
    if file == File::Database {
        parts.extend([CopyA, CopyB]);
        // Magic, generation, file id, page size, a protector.
        changes.extend([0, 25, 40, 50, 120].map(Change::FlipBoth));
    }
    for part in parts {
        changes.push(Change::Zero(part));
        changes.push(Change::ZeroFrom(part));
        let spots = [Spot::Start, Spot::Middle, Spot::Trailer, Spot::End];
        changes.extend(spots.map(|spot| Change::Flip(part, spot)));
        changes.push(Change::Exchange(part));
        let times = [When::Before, When::Start, When::Mark];
        changes.extend(times.map(|when| Change::PutBack(part, when)));
    }
    for cut in [
        Cut::To(0),
        Cut::To(COPY / 2),
        Cut::To(COPY),
        Cut::To(COPY + COPY / 2),
        Cut::To(PAGES_AT),
        Cut::To(512),
        Cut::Half,
        Cut::LastUnit,
        Cut::Byte,
        Cut::BeforeNext,
        Cut::InsideNext,
    ] {
        changes.push(Change::Cut(cut));
    }
    changes.extend([Growth::Byte, Growth::ZeroUnit, Growth::CopyOfUnits].map(Change::Grow));
    changes.extend([When::Before, When::Start, When::Mark].map(Change::PutBackAll));
    if file != File::Database {
        changes.push(Change::Delete);
    }
    changes.into_iter().map(|change| Row { file, change }).collect()
}

/// What a row knows of the history when it is done.
pub struct Moment {
    pub before: Files,
    pub start: Files,
    pub mark: Option<Files>,
    /// What is read or written next in the file, and not before the units.
    pub next: Option<Seen>,
}

fn suffix(file: File) -> &'static str {
    match file {
        File::Database | File::Other => "",
        File::Journal => JOURNAL,
        File::Log => LOG,
        File::Index => INDEX,
    }
}

fn of(files: &Files, file: File) -> Option<&Vec<u8>> {
    match file {
        File::Journal => files.journal.as_ref(),
        File::Log => files.log.as_ref(),
        _ => Some(&files.db),
    }
}

/// Where the units of `file` begin, and how long they are.
fn units(file: File) -> (u64, u64) {
    match file {
        File::Database | File::Other | File::Index => (PAGES_AT, PAGE as u64),
        File::Journal => (RECORDS_AT, RECORD),
        File::Log => (FRAMES_AT, STRIDE),
    }
}

impl Row {
    fn unit(&self, number: u64) -> Range<u64> {
        let (start, len) = units(self.file);
        start + number * len..start + (number + 1) * len
    }

    /// The number of the unit, where each has a row.
    pub fn unit_of_all(&self) -> Option<u32> {
        match self.change {
            Change::Zero(Part::Nth(unit))
            | Change::ZeroFrom(Part::Nth(unit))
            | Change::Flip(Part::Nth(unit), _)
            | Change::Exchange(Part::Nth(unit))
            | Change::PutBack(Part::Nth(unit), _) => Some(unit),
            _ => None,
        }
    }

    /// The place of `part` in a file of `size` bytes.
    fn place(&self, part: Part, size: u64, next: Option<Seen>) -> Option<Range<u64>> {
        let (start, len) = units(self.file);
        let count = size.saturating_sub(start) / len;
        let of = |at: u64| at.checked_sub(start).map(|at| self.unit(at / len));
        let place = match part {
            Part::Next => of(next?.at).unwrap_or(0..start),
            Part::NextLast => of(next?.at + next?.len.max(1) as u64 - 1).unwrap_or(0..start),
            Part::First => self.unit(0),
            Part::Last => self.unit(count.checked_sub(1)?),
            Part::Nth(number) => self.unit(u64::from(number).checked_rem(count)?),
            Part::Head => 0..start,
            Part::CopyA => 0..COPY,
            Part::CopyB => COPY..2 * COPY,
        };
        (place.start < size).then_some(place.start..place.end.min(size))
    }

    /// Changes the file in `dir`. Answers whether anything is different now.
    pub fn apply(&self, dir: &Path, moment: &Moment) -> bool {
        let path = beside(&dir.join(DATABASE), suffix(self.file));
        let Ok(handle) = OpenOptions::new().read(true).write(true).open(&path) else {
            return self.put_whole(&path, moment);
        };
        if let Change::Index(word) = self.change {
            return index::change(&handle, word);
        }
        let before = fs::read(&path).unwrap();
        let mut bytes = before.clone();
        if !self.change(&mut bytes, moment) || bytes == before {
            return self.change == Change::Delete && fs::remove_file(&path).is_ok();
        }
        // What stays is not written again: the file keeps its identity.
        handle.set_len(bytes.len() as u64).unwrap();
        let same = before.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
        handle.write_all_at(&bytes[same..], same as u64).unwrap();
        true
    }

    /// There is no such file: an older one may be put there.
    fn put_whole(&self, path: &PathBuf, moment: &Moment) -> bool {
        let Change::PutBackAll(when) = self.change else { return false };
        let Some(older) = moment.at(when).and_then(|files| of(files, self.file)) else {
            return false;
        };
        fs::write(path, older).is_ok()
    }

    fn change(&self, bytes: &mut Vec<u8>, moment: &Moment) -> bool {
        let size = bytes.len() as u64;
        let (start, len) = units(self.file);
        let place = |part| {
            let place = self.place(part, size, moment.next)?;
            Some(place.start as usize..place.end as usize)
        };
        match self.change {
            Change::Cut(cut) => {
                let next = moment.next.map(|next| (next.at, next.len as u64));
                let to = match cut {
                    Cut::To(to) => Some(to),
                    Cut::Half => Some(size / 2),
                    Cut::LastUnit => size.checked_sub(len).filter(|&to| to > start),
                    Cut::Byte => size.checked_sub(1),
                    Cut::BeforeNext => next.map(|(at, _)| at),
                    Cut::InsideNext => next.map(|(at, len)| at + len / 2),
                };
                let Some(to) = to.filter(|&to| to < size) else { return false };
                bytes.truncate(to as usize);
            }
            Change::Grow(Growth::Byte) => bytes.push(0),
            Change::Grow(Growth::ZeroUnit) => bytes.resize(bytes.len() + len as usize, 0),
            Change::Grow(Growth::CopyOfUnits) => {
                let from = bytes.len().saturating_sub(2 * len as usize).max(start as usize);
                if from >= bytes.len() {
                    return false;
                }
                bytes.extend_from_within(from..);
            }
            Change::Zero(part) => {
                let Some(place) = place(part) else { return false };
                bytes[place].fill(0);
            }
            Change::ZeroFrom(part) => {
                let Some(place) = place(part) else { return false };
                bytes[place.start..].fill(0);
            }
            Change::Flip(part, spot) => {
                let Some(place) = place(part) else { return false };
                let at = match spot {
                    Spot::Start => place.start,
                    Spot::Middle => place.start + place.len() / 2,
                    Spot::Trailer => place.end.saturating_sub(40).max(place.start),
                    Spot::End => place.end - 1,
                };
                bytes[at] ^= 0x10;
            }
            Change::FlipBoth(at) => {
                for at in [at as usize, (COPY + at) as usize] {
                    let Some(byte) = bytes.get_mut(at) else { return false };
                    *byte ^= 0x10;
                }
            }
            Change::Exchange(part) => {
                let Some(place) = place(part) else { return false };
                let (here, there) = (place.start, place.end);
                let held = bytes[place.clone()].to_vec();
                if there + held.len() <= bytes.len() {
                    bytes.copy_within(there..there + held.len(), here);
                    bytes[there..there + held.len()].copy_from_slice(&held);
                } else if here >= start as usize + held.len() {
                    bytes.copy_within(here - held.len()..here, here);
                    bytes[here - held.len()..here].copy_from_slice(&held);
                } else {
                    return false;
                }
            }
            Change::PutBack(part, when) => {
                let older = moment.at(when).and_then(|files| of(files, self.file));
                let (Some(place), Some(older)) = (place(part), older) else { return false };
                let Some(older) = older.get(place.clone()) else { return false };
                bytes[place].copy_from_slice(older);
            }
            Change::PutBackAll(when) => {
                let older = moment.at(when).and_then(|files| of(files, self.file));
                let Some(older) = older else { return false };
                bytes.clone_from(older);
            }
            Change::Delete | Change::Index(_) => return false,
        }
        true
    }
}

impl Moment {
    fn at(&self, when: When) -> Option<&Files> {
        match when {
            When::Before => Some(&self.before),
            When::Start => Some(&self.start),
            When::Mark => self.mark.as_ref(),
        }
    }
}

/// SQLite's wal-index, in native byte order (<https://www.sqlite.org/walformat.html>, section 2).
mod index {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::Word;

    const HEADER: usize = 48;
    const FRAMES_AT: usize = 16;
    const PAGES_AT: usize = 20;
    const SUMMED: usize = 40;
    const BACKFILL_AT: u64 = 96;
    const ATTEMPTED_AT: u64 = 128;
    const NUMBERS_AT: u64 = 136;
    const HASH_AT: u64 = 16384;
    const HASH: usize = 16384;

    fn word(file: &File, at: u64) -> u32 {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).unwrap();
        u32::from_ne_bytes(bytes)
    }

    fn set(file: &File, at: u64, value: u32) {
        file.write_all_at(&value.to_ne_bytes(), at).unwrap();
    }

    /// Where SQLite looks for `page`, it now finds `frame` last, hence takes it.
    fn hash(file: &File, page: u32, frame: u16) {
        const SLOTS: u32 = (HASH / 2) as u32;
        let mut table = [0; HASH];
        file.read_exact_at(&mut table, HASH_AT).unwrap();
        let mut slot = page.wrapping_mul(383) % SLOTS;
        while table[2 * slot as usize..][..2] != [0, 0] {
            slot = (slot + 1) % SLOTS;
        }
        file.write_all_at(&frame.to_ne_bytes(), HASH_AT + 2 * u64::from(slot)).unwrap();
    }

    pub(super) fn change(file: &File, what: Word) -> bool {
        if file.metadata().unwrap().len() < HASH_AT + HASH as u64 {
            return false;
        }
        let frames = word(file, FRAMES_AT as u64);
        let number = |nth: u32| {
            let frame =
                if nth == u32::MAX { frames.checked_sub(1) } else { nth.checked_rem(frames) };
            frame.map(|frame| NUMBERS_AT + 4 * u64::from(frame))
        };
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).unwrap();
        let field = |at: usize, by: i32| {
            let mut bytes = header;
            let value = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let value = value.checked_add_signed(by)?;
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            let sum = checksum(&bytes[..SUMMED]);
            bytes[SUMMED..].copy_from_slice(&sum);
            Some(bytes)
        };
        let changed = match what {
            Word::NoPage(nth) => return number(nth).map(|at| set(file, at, 0)).is_some(),
            Word::OtherPage(nth) => {
                let Some(at) = number(nth) else { return false };
                let page = word(file, at) % 20 + 1;
                set(file, at, page);
                hash(file, page, ((at - NUMBERS_AT) / 4 + 1) as u16);
                return true;
            }
            Word::FewerFrames => field(FRAMES_AT, -1),
            Word::MoreFrames => field(FRAMES_AT, 1),
            Word::FewerPages => field(PAGES_AT, -1),
            Word::MorePages => field(PAGES_AT, 1),
            Word::Header(bit) => {
                header[bit as usize / 8] ^= 1 << (bit % 8);
                Some(header)
            }
            Word::AllBackfilled => {
                set(file, BACKFILL_AT, frames);
                set(file, ATTEMPTED_AT, frames);
                return frames > 0;
            }
            Word::NoneBackfilled => {
                let had = word(file, BACKFILL_AT);
                set(file, BACKFILL_AT, 0);
                return had > 0;
            }
            Word::NoHash => {
                file.write_all_at(&[0; HASH], HASH_AT).unwrap();
                return frames > 0;
            }
        };
        let Some(bytes) = changed else { return false };
        file.write_all_at(&bytes, HEADER as u64).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        true
    }

    /// SQLite's checksum of its log and of this header, which any program can compute.
    fn checksum(bytes: &[u8]) -> [u8; 8] {
        let (mut first, mut second) = (0_u32, 0_u32);
        for pair in bytes.chunks_exact(8) {
            let word = |at: usize| u32::from_ne_bytes(pair[at..at + 4].try_into().unwrap());
            first = first.wrapping_add(word(0)).wrapping_add(second);
            second = second.wrapping_add(word(4)).wrapping_add(first);
        }
        let mut sum = [0; 8];
        sum[..4].copy_from_slice(&first.to_ne_bytes());
        sum[4..].copy_from_slice(&second.to_ne_bytes());
        sum
    }
}
