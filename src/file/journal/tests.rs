//! Reads equal those of a plain file through any failure; records damaged by a crash or an attacker
//! are refused.

mod replay;

use super::*;
use crate::db::tests::faulty::{Call, Fault, Faults, Faulty};
use crate::db::tests::{keyring, keyring_and_next};
use crate::io::Filled;
use crate::io::memory::Memory;
use crate::page::RESERVE;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};

const SEALED: usize = SECTOR + RESERVE;
const TUNINGS: [Tuning; 2] =
    [Tuning { read_ahead: true, gather_writes: true }, Tuning { ..Tuning::OFF }];

fn open(base: &impl Storage, keyring: &Arc<Keyring>) -> Journal {
    open_on(base, keyring, 1, Tuning::default())
}

fn open_on(base: &impl Storage, keyring: &Arc<Keyring>, grain: usize, tuning: Tuning) -> Journal {
    Journal::open(base, Some(Arc::clone(keyring)), grain, tuning).unwrap()
}

impl Journal {
    /// Writes to the journal of a database that has no page yet.
    fn put_in(&mut self, base: &impl Storage, bytes: &[u8], at: u64) -> Result<()> {
        self.write(base, bytes, at, || Ok(Begun::NoPage(0)))
    }
}

/// Behaviour of a failing disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    Never,
    Once(usize),
    From(usize),
}

/// Fails the call of a number, a write after a part of it was done. Keeps what the file was after
/// each call that changed it.
#[derive(Default)]
struct Watched {
    fails: Cell<Option<Fails>>,
    calls: Cell<usize>,
    writes: Cell<usize>,
    /// Where the file has been written.
    lowest: Cell<u64>,
    after: RefCell<Vec<Vec<u8>>>,
}

type Disk = Faulty<Watched>;

impl Watched {
    fn heal(&self) {
        self.fails.set(None);
    }
}

impl Faults for Watched {
    fn before(&self, _: &Memory, call: Call<'_>) -> Option<Fault> {
        if call == Call::Sync {
            return None;
        }
        if let Call::Write(_, at) = call {
            self.writes.set(self.writes.get() + 1);
            self.lowest.set(self.lowest.get().min(at));
        }
        let number = self.calls.replace(self.calls.get() + 1);
        let fails = match self.fails.get() {
            Some(Fails::Once(at)) => number == at,
            Some(Fails::From(at)) => number >= at,
            _ => false,
        };
        let code = if matches!(call, Call::Write(..)) { 13 } else { 10 };
        fails.then(|| Fault { code, ..Fault::half(call) })
    }

    fn after(&self, base: &Memory, call: Call<'_>) {
        if call.changes() {
            self.after.borrow_mut().push(base.0.borrow().clone());
        }
    }
}

/// SQLite's operations on a journal.
#[derive(Debug, Clone)]
enum Step {
    Append(usize, u8),
    /// A header on the next sector.
    Header(u8),
    /// A field of the last header.
    Field(u8),
    Flush,
    Read(u64, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (prop_oneof![Just(4_usize), Just(1024), 1..9000_usize], 1..=255_u8)
            .prop_map(|(len, byte)| Step::Append(len, byte)),
        1 => (1..=255_u8).prop_map(Step::Header),
        1 => (1..=255_u8).prop_map(Step::Field),
        2 => Just(Step::Flush),
        2 => (0..200_000_u64, 1..9000_usize).prop_map(|(at, len)| Step::Read(at, len)),
    ]
}

/// A journal, and what SQLite takes it to hold.
struct Pair<'a> {
    disk: &'a Disk,
    journal: Journal,
    model: Vec<u8>,
    /// Where the last header is.
    header: usize,
    /// How much of it must be in the base.
    flushed: usize,
    sector: usize,
}

impl<'a> Pair<'a> {
    fn new(disk: &'a Disk, keyring: &Arc<Keyring>, grain: usize, tuning: Tuning) -> Self {
        let mut pair = Self {
            disk,
            journal: open_on(disk, keyring, grain, tuning),
            model: Vec::new(),
            header: 0,
            flushed: 0,
            sector: grain.max(SECTOR),
        };
        pair.put(&vec![7; pair.sector], 0).unwrap();
        pair
    }

    /// A write that fails has changed nothing that was there.
    fn put(&mut self, bytes: &[u8], at: usize) -> Result<()> {
        self.journal.put_in(self.disk, bytes, at as u64)?;
        self.model.resize(self.model.len().max(at + bytes.len()), 0);
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
        if !self.journal.tuning.gather_writes {
            self.flushed = self.model.len();
        }
        Ok(())
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        let end = self.model.len();
        match *step {
            Step::Append(len, byte) => self.put(&vec![byte; len], end),
            Step::Header(byte) => {
                let at = end.next_multiple_of(self.sector);
                self.put(&vec![byte; self.sector], at)?;
                self.header = at;
                Ok(())
            }
            Step::Field(byte) => {
                let at = self.header;
                let result = self.put(&[byte; 12], at);
                if result.is_err() {
                    // Old or new: SQLite has no use for it any more.
                    self.disk.heal();
                    self.put(&[byte; 12], at)?;
                }
                result
            }
            Step::Flush => {
                self.journal.flush(self.disk)?;
                self.flushed = self.model.len();
                Ok(())
            }
            Step::Read(at, len) => self.reads(at, len),
        }
    }

    fn reads(&mut self, at: u64, len: usize) -> Result<()> {
        let mut got = vec![1; len];
        let filled = self.journal.read(self.disk, &mut got, at)?;
        assert_eq!((got, filled), expected(&self.model, at, len), "{len} bytes at {at}");
        Ok(())
    }
}

/// The answer of a plain file that holds `model`.
fn expected(model: &[u8], at: u64, len: usize) -> (Vec<u8>, Filled) {
    let from = model.len().min(at as usize);
    let inside = len.min(model.len() - from);
    let mut want = model[from..from + inside].to_vec();
    want.resize(len, 0);
    (want, if inside == len { Filled::Full } else { Filled::Short })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 300 }))]

    /// As a plain file; another handle sees it as of the last flush, or later.
    #[test]
    fn reads_as_a_plain_file_does(
        steps in proptest::collection::vec(step(), 1..60),
        cut in 1..100_000_u64,
        grain in prop_oneof![Just(1_usize), Just(512), Just(4096)],
        tuning in prop_oneof![Just(TUNINGS[0]), Just(TUNINGS[1])],
    ) {
        let (disk, keyring) = (Disk::default(), keyring());
        let mut pair = Pair::new(&disk, &keyring, grain, tuning);
        for step in &steps {
            pair.take(step).unwrap();
            prop_assert_eq!(pair.journal.size(&disk).unwrap(), pair.model.len() as u64);
            let seen = open(&disk, &keyring).size(&disk).unwrap();
            prop_assert!((pair.flushed as u64..=pair.model.len() as u64).contains(&seen));
        }
        let cut = cut.min(pair.model.len() as u64);
        pair.journal.truncate(&disk, cut).unwrap();
        pair.model.truncate(cut as usize);
        for mut reader in [pair.journal, open(&disk, &keyring)] {
            prop_assert_eq!(reader.size(&disk).unwrap(), cut);
            let mut got = vec![0; cut as usize + 9];
            let filled = reader.read(&disk, &mut got, 0).unwrap();
            let want = expected(&pair.model, 0, got.len());
            prop_assert_eq!((got, filled), want);
        }
    }

    /// A call fails, once or with all later ones. Writes reported as done are readable until the
    /// transaction ends, and are flushed when the disk works again; earlier flushed bytes stay in
    /// the base throughout.
    #[test]
    fn a_failing_disk_spoils_nothing(
        steps in proptest::collection::vec(step(), 1..60),
        fails in prop_oneof![
            Just(Fails::Never),
            (0..60_usize).prop_map(Fails::Once),
            (0..60_usize).prop_map(Fails::From),
        ],
        grain in prop_oneof![Just(1_usize), Just(512), Just(4096)],
        tuning in prop_oneof![Just(TUNINGS[0]), Just(TUNINGS[1])],
    ) {
        let (disk, keyring) = (Disk::default(), keyring());
        let mut pair = Pair::new(&disk, &keyring, grain, tuning);
        disk.fails.set(Some(fails));
        disk.calls.set(0);
        for step in &steps {
            let written = pair.model.len();
            if let Err(error) = pair.take(step) {
                prop_assert!(matches!(error, Error::Base(_)), "{error:?}");
                prop_assert!(pair.model.len() == written || matches!(step, Step::Field(_)));
            }
            if pair.journal.spoilt.is_none() {
                check_prefix(&disk.base, &keyring, &pair);
            }
        }
        disk.heal();
        pair.reads(0, pair.model.len() + 9).unwrap();
        pair.journal.flush(&disk).unwrap();
        pair.flushed = pair.model.len();
        prop_assert_eq!(open(&disk, &keyring).size(&disk).unwrap(), pair.model.len() as u64);
        check_prefix(&disk.base, &keyring, &pair);
    }

    /// A process that is killed between any two calls leaves a journal with all that was flushed,
    /// and nothing in it that was not written.
    #[test]
    fn a_killed_process_leaves_what_it_flushed(
        steps in proptest::collection::vec(step(), 1..40),
        grain in prop_oneof![Just(1_usize), Just(512), Just(4096)],
        tuning in prop_oneof![Just(TUNINGS[0]), Just(TUNINGS[1])],
    ) {
        let (disk, keyring) = (Disk::default(), keyring());
        let mut pair = Pair::new(&disk, &keyring, grain, tuning);
        for step in &steps {
            let flushed = pair.flushed;
            disk.after.take();
            pair.take(step).unwrap();
            let new = std::mem::replace(&mut pair.flushed, flushed);
            // A field of a header is old or new; its final value is checked elsewhere.
            if !matches!(step, Step::Field(_)) {
                for image in disk.after.take() {
                    check_prefix(&Memory(RefCell::new(image)), &keyring, &pair);
                }
            }
            pair.flushed = new;
        }
    }
}

/// The next process's reads of the journal, a page at a time: at least the flushed bytes, all as
/// written.
fn check_prefix(base: &Memory, keyring: &Arc<Keyring>, pair: &Pair<'_>) {
    let mut journal = open(base, keyring);
    let size = journal.size(base).unwrap() as usize;
    assert!((pair.flushed..=pair.model.len()).contains(&size), "{} {size}", pair.flushed);
    let mut got = vec![0; size.max(SMALLEST_PAGE)];
    let filled = journal.read(base, &mut got, 0).unwrap();
    assert!(got[..size] == pair.model[..size], "of {} flushed", pair.flushed);
    assert_eq!(filled == Filled::Full, size >= SMALLEST_PAGE);
}

/// Synced bytes are not written again: a power loss would tear them.
#[test]
fn the_part_after_a_sync_leaves_what_was_synced_alone() {
    for (grain, tuning) in [(1, 0), (512, 0), (4096, 0), (1, 1), (4096, 1)] {
        let (disk, keyring) = (Disk::default(), keyring());
        let mut pair = Pair::new(&disk, &keyring, grain, TUNINGS[tuning]);
        for round in 0..9_u8 {
            pair.take(&Step::Append(1 + usize::from(round) * 700, 1)).unwrap();
            pair.take(&Step::Flush).unwrap();
            let synced = pair.model.len().div_ceil(pair.sector) as u64;
            disk.lowest.set(u64::MAX);
            pair.take(&Step::Header(2)).unwrap();
            pair.take(&Step::Append(4, 3)).unwrap();
            pair.take(&Step::Flush).unwrap();
            let least = pair.journal.layout.position(synced);
            assert_eq!(disk.lowest.get(), least, "grain {grain}, tuning {tuning}, round {round}");
        }
    }
}

/// SQLite's writes of the super-journal's `name`: a page number, name, length, checksum and magic.
fn naming(name: &[u8]) -> [Vec<u8>; 5] {
    // SQLite adds up C's `char`s, which have a sign on some platforms.
    let add = |sum: u32, &byte: &u8| sum.wrapping_add(byte as std::ffi::c_char as u32);
    [
        vec![0, 4, 0, 1],
        name.to_vec(),
        (name.len() as u32).to_be_bytes().to_vec(),
        name.iter().fold(0, add).to_be_bytes().to_vec(),
        SQLITE_MAGIC.to_vec(),
    ]
}

/// SQLite's writes for a transaction of forty pages, and how many reach the base at which point.
#[test]
fn pages_reach_the_base_in_few_writes() {
    for (tuning, least, most) in [(TUNINGS[0], 3, 4), (TUNINGS[1], 121, 122)] {
        let (disk, keyring) = (Disk::default(), keyring());
        let mut journal = open_on(&disk, &keyring, 1, tuning);
        let mut header = [0; 512];
        header[12] = 9;
        journal.put_in(&disk, &header, 0).unwrap();
        let mut at = 512;
        for page in 0..40_u8 {
            for piece in [&[page + 1; 4][..], &[page + 1; 4096], &[page + 1; 4]] {
                journal.put_in(&disk, piece, at).unwrap();
                at += piece.len() as u64;
            }
        }
        journal.flush(&disk).unwrap();
        let writes = disk.writes.get();
        assert!((least..=most).contains(&writes), "{tuning:?}: {writes}");
        for piece in &naming(b"/a/name-mj0123456789")[..4] {
            journal.put_in(&disk, piece, at).unwrap();
            at += piece.len() as u64;
        }
        journal.flush(&disk).unwrap();
        for (what, bytes, at, writes) in [
            ("the number of pages", [0xd9; 12].to_vec(), 0, 1),
            ("the end of a super-journal's name", SQLITE_MAGIC.to_vec(), at, 2),
            ("zeros that commit", [0; 28].to_vec(), 0, 1),
        ] {
            let before = disk.writes.get();
            journal.put_in(&disk, &bytes, at).unwrap();
            assert_eq!(disk.writes.get(), before + writes, "{tuning:?}: {what} goes through");
            let mut seen = vec![1; bytes.len()];
            open(&disk, &keyring).read(&disk, &mut seen, at).unwrap();
            assert_eq!(seen, bytes, "{tuning:?}: {what}");
        }
        let before = disk.writes.get();
        journal.flush(&disk).unwrap();
        assert_eq!(disk.writes.get(), before, "{tuning:?}: nothing was left");
        journal.truncate(&disk, 0).unwrap();
        assert_eq!(disk.base.size().unwrap(), 0, "{tuning:?}");
    }
}

/// The content of a file under PERSIST before the first flush of the next transaction: nothing to
/// play back.
#[test]
fn a_transaction_that_was_never_flushed_leaves_no_hot_journal() {
    let (base, keyring) = (Memory::default(), keyring());
    let mut journal = open(&base, &keyring);
    for round in 0..3 {
        let mut first = [1];
        open(&base, &keyring).read(&base, &mut first, 0).unwrap();
        assert_eq!(first, [0], "round {round}: before");
        journal.put_in(&base, &[0xd9; 512], 0).unwrap();
        journal.put_in(&base, &[5; 4000], 512).unwrap();
        open(&base, &keyring).read(&base, &mut first, 0).unwrap();
        assert_eq!(first, [0], "round {round}: gathered");
        journal.flush(&base).unwrap();
        open(&base, &keyring).read(&base, &mut first, 0).unwrap();
        assert_eq!(first, [0xd9], "round {round}: flushed");
        journal.put_in(&base, &[0; 28], 0).unwrap();
    }
}

/// Large buffers are given back when a transaction ends.
#[test]
fn an_idle_journal_holds_little_memory() {
    let (base, keyring) = (Memory::default(), keyring());
    let mut journal = open(&base, &keyring);
    for end in ["zeros", "truncation"] {
        let mut at = 0;
        while at < 300_000 {
            journal.put_in(&base, &[3; 4096], at).unwrap();
            at += 4096;
        }
        journal.read(&base, &mut [0; 4096], 512).unwrap();
        let held = |journal: &Journal| {
            let images = journal.image.bytes.capacity() + journal.ahead.bytes.capacity();
            images + journal.tail.capacity()
        };
        assert!(held(&journal) <= 192 << 10, "{end}: {} bytes", held(&journal));
        match end {
            "zeros" => journal.put_in(&base, &[0; 28], 0).unwrap(),
            _ => journal.truncate(&base, 0).unwrap(),
        }
        assert!(held(&journal) <= 16 << 10, "after {end}: {} bytes", held(&journal));
    }
}

/// Damage to record 1 by a crash or an attacker, and the results of SQLite's playback.
#[test]
fn a_bad_record_ends_the_journal() {
    let keyring = keyring();
    for (attack, change) in [
        ("bit flipped", (|f: &mut Vec<u8>| f[HEADER_LEN + SEALED + 3] ^= 1) as fn(&mut Vec<u8>)),
        ("zeroed", |f| f[HEADER_LEN + SEALED..HEADER_LEN + 2 * SEALED].fill(0)),
        ("copied from record 2", |f| {
            f.copy_within(HEADER_LEN + 2 * SEALED..HEADER_LEN + 3 * SEALED, HEADER_LEN + SEALED);
        }),
    ] {
        let base = Memory::default();
        let mut journal = open(&base, &keyring);
        journal.put_in(&base, &[0xd9; 2000], 0).unwrap();
        journal.flush(&base).unwrap();
        change(&mut base.0.borrow_mut());
        for tuning in TUNINGS {
            let mut journal = open_on(&base, &keyring, 1, tuning);
            let mut page = [1; 1024];
            let filled = journal.read(&base, &mut page, 516).unwrap();
            assert_eq!((filled, page), (Filled::Short, [0; 1024]), "{attack}");
            let mut field = [1; 4];
            let filled = journal.read(&base, &mut field, 512).unwrap();
            assert_eq!((filled, field), (Filled::Full, [0; 4]), "{attack}");
            let mut name = [1; 24];
            let filled = journal.read(&base, &mut name, 500).unwrap();
            assert_eq!((filled, &name[12..]), (Filled::Full, &[0; 12][..]), "{attack}");
        }
    }
}

/// A hot journal that was left behind before the DEK was regenerated.
#[test]
fn a_journal_of_a_retired_key_is_read() {
    let (old, new) = keyring_and_next();
    let base = Memory::default();
    let write = |keyring, byte| {
        let mut journal = open(&base, keyring);
        journal.put_in(&base, &[byte; 2000], 0).unwrap();
        journal.flush(&base).unwrap();
    };
    write(&old, 0xd9);
    let mut back = [0; 2000];
    open(&base, &new).read(&base, &mut back, 0).unwrap();
    assert_eq!(back, [0xd9; 2000]);
    write(&new, 0xda);
    open(&base, &old).read(&base, &mut back, 0).unwrap();
    assert_eq!(back[..512], [0; 512], "of a key it does not have");
}

/// On media without powersafe overwrite, whatever a torn write spoils is its own.
#[test]
fn no_two_records_share_what_a_torn_write_spoils() {
    for grain in [512, 4096, 65536] {
        let layout = Layout { grain };
        for record in 0..5 {
            let end = layout.position(record) + layout.record() as u64;
            let last = (end - 1) / grain as u64;
            assert!(last < layout.position(record + 1) / grain as u64, "{grain} {record}");
        }
        assert!(layout.position(0) >= grain as u64, "{grain}: nor with the header");
    }
}

#[test]
fn a_reused_file_keeps_nothing_of_the_former_journal() {
    for tuning in TUNINGS {
        let (base, keyring) = (Memory::default(), keyring());
        let mut journal = open_on(&base, &keyring, 1, tuning);
        journal.put_in(&base, &[0xaa; 4096], 0).unwrap();
        journal.put_in(&base, &[0; 28], 0).unwrap();
        journal.put_in(&base, &[0xbb; 512], 0).unwrap();
        for flushed in [false, true] {
            let mut field = [1; 8];
            journal.read(&base, &mut field, 1024).unwrap();
            assert_eq!(field, [0; 8], "a record of the former journal; flushed: {flushed}");
            journal.flush(&base).unwrap();
        }
    }
}

#[test]
fn a_change_to_a_record_of_the_running_transaction_is_an_error() {
    for tuning in TUNINGS {
        let (base, keyring) = (Memory::default(), keyring());
        let mut journal = open_on(&base, &keyring, 1, tuning);
        journal.put_in(&base, &[0xaa; 512], 0).unwrap();
        for page in 0..20 {
            journal.put_in(&base, &[0xbb; 4096], 512 + page * 4096).unwrap();
        }
        base.0.borrow_mut()[HEADER_LEN + 9] ^= 1;
        let result = journal.put_in(&base, &[1; 12], 0);
        assert!(matches!(result, Err(Error::JournalAuthentication { record: 0 })), "{result:?}");
        let result = journal.read(&base, &mut [0; 1024], 0);
        assert!(matches!(result, Err(Error::JournalAuthentication { record: 0 })), "{result:?}");
    }
}

/// SQLite commits under TRUNCATE by emptying the journal. Where that fails, it rolls back with what
/// the journal has.
#[test]
fn a_journal_that_could_not_be_emptied_is_still_there() {
    for (tuning, flushed) in [(0, true), (0, false), (1, true)] {
        let (disk, keyring) = (Disk::default(), keyring());
        let mut pair = Pair::new(&disk, &keyring, 1, TUNINGS[tuning]);
        pair.take(&Step::Append(90_000, 3)).unwrap();
        pair.take(&Step::Append(1032, 4)).unwrap();
        if flushed {
            pair.take(&Step::Flush).unwrap();
        }
        let size = pair.journal.size(&disk).unwrap();
        disk.fails.set(Some(Fails::From(disk.calls.get())));
        let emptied = pair.journal.truncate(&disk, 0);
        assert!(matches!(emptied, Err(Error::Base(10))), "{emptied:?}");
        disk.heal();
        assert_eq!(pair.journal.size(&disk).unwrap(), size);
        pair.reads(0, pair.model.len() + 9).unwrap();
        // Not by what is at hand in plaintext alone.
        pair.take(&Step::Flush).unwrap();
        pair.journal.tail.forget();
        pair.reads(0, pair.model.len() + 9).unwrap();
        check_prefix(&disk.base, &keyring, &pair);
        pair.journal.truncate(&disk, 0).unwrap();
        assert_eq!((pair.journal.size(&disk).unwrap(), disk.base.size().unwrap()), (0, 0));
    }
}
