//! A scratch file compared with a plain one, on failing disks and under tampering, and its memory
//! use.

use super::*;
use crate::db::tests::faulty::{Call, Fault, Faults, Faulty};
use crate::io::memory::Memory;
use proptest::prelude::*;

/// Fails changes where `fail` is set, after half of what was to be written.
#[derive(Default)]
struct Fails {
    fail: std::cell::Cell<bool>,
}

type Failing = Faulty<Fails>;

impl Faults for Fails {
    fn before(&self, _: &Memory, call: Call<'_>) -> Option<Fault> {
        (self.fail.get() && call.changes()).then(|| Fault { code: 1, ..Fault::half(call) })
    }
}

#[test]
fn a_failed_write_spoils_nothing_around_it() {
    let base = Failing::default();
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
    // Within the first groups, and around where they end.
    let place = (0..4_u64, 0..20_000_u64, any::<bool>()).prop_map(|(group, within, before)| {
        let start = group * PER_GROUP * BLOCK as u64;
        if before { start.saturating_sub(within) } else { start + within }
    });
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
        at_hand in 1..4_usize,
    ) {
        let base = Failing::default();
        let model = Memory::default();
        let mut scratch = Scratch::new(tuning).unwrap();
        scratch.groups = Groups::with(at_hand);
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
        let base = Failing::default();
        base.fail.set(true);
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

/// A file of three groups, whose trailers are in the file but for one group's.
fn three_groups(base: &Memory, fill: u8) -> Scratch {
    let mut scratch = Scratch::new(Tuning::default()).unwrap();
    scratch.groups = Groups::with(1);
    write_three_groups(&mut scratch, base, fill);
    scratch
}

fn write_three_groups(scratch: &mut Scratch, base: &Memory, fill: u8) {
    for block in 0..3 * PER_GROUP {
        scratch.write(base, &[fill; BLOCK], block * BLOCK as u64).unwrap();
    }
    scratch.flush(base).unwrap();
}

/// A rollback of a temporary database on a full disk begins with a truncation.
#[test]
fn a_truncation_writes_nothing() {
    let base = Failing::default();
    let mut scratch = Scratch::new(Tuning::default()).unwrap();
    scratch.groups = Groups::with(1);
    for block in 0..3 * PER_GROUP {
        scratch.write(&base, &[1; BLOCK], block * BLOCK as u64).unwrap();
    }
    let whole = base.base.0.borrow().clone();
    for at in [5 * BLOCK + 1000, 4 * BLOCK + 500, 4 * BLOCK] {
        scratch.truncate(&base, at as u64).unwrap();
        let len = base.base.size().unwrap() as usize;
        assert!(base.base.0.borrow()[..] == whole[..len], "cut at {at}");
        assert_eq!(scratch.size(), at as u64);
    }
    // The part cut off within a block reads as zeros once the file is longer again.
    scratch.write(&base, &[2; BLOCK], 0).unwrap();
    scratch.truncate(&base, 2 * BLOCK as u64 + 7).unwrap();
    scratch.write(&base, &[3], 9 * BLOCK as u64).unwrap();
    let mut got = vec![9; 2 * BLOCK];
    scratch.read(&base, &mut got, 2 * BLOCK as u64).unwrap();
    assert!(got[..7] == [1; 7] && got[7..].iter().all(|&byte| byte == 0));
}

/// No change by an attacker who can write the file goes unnoticed, nor a replay of older blocks.
#[test]
fn neither_blocks_nor_trailers_can_be_put_back() {
    let block = |number: u64| position(number) as usize..position(number) as usize + BLOCK;
    let trailers = |group: u64| {
        block(PER_GROUP * (group + 1)).start - BLOCK..position((group + 1) * PER_GROUP) as usize
    };
    type Attack = fn(&mut [u8], &[u8], [std::ops::Range<usize>; 3]);
    let attacks: [(&str, Attack); 6] = [
        ("a bit of a trailer", |now, _, [_, trailers, _]| now[trailers.start + 30] ^= 1),
        ("a bit of the trailers' own trailer", |now, _, [_, trailers, _]| {
            now[trailers.end - 20] ^= 1
        }),
        ("an older block", |now, old, [block, ..]| now[block.clone()].copy_from_slice(&old[block])),
        ("older trailers", |now, old, [_, trailers, _]| {
            now[trailers.clone()].copy_from_slice(&old[trailers]);
        }),
        ("an older block and its trailers", |now, old, [block, trailers, _]| {
            now[block.clone()].copy_from_slice(&old[block]);
            now[trailers.clone()].copy_from_slice(&old[trailers]);
        }),
        ("the trailers of another group", |now, _, [_, trailers, other]| {
            now.copy_within(other, trailers.start);
        }),
    ];
    for (what, attack) in attacks {
        let base = Memory::default();
        let mut scratch = three_groups(&base, 1);
        let old = base.0.borrow().clone();
        write_three_groups(&mut scratch, &base, 2);
        attack(&mut base.0.borrow_mut(), &old, [block(5), trailers(0), trailers(1)]);
        let mut got = [0; BLOCK];
        let result = scratch.read(&base, &mut got, 5 * BLOCK as u64);
        assert!(matches!(result, Err(Error::ScratchAuthentication { .. })), "{what}: {result:?}");
        scratch.read(&base, &mut got, (PER_GROUP + 5) * BLOCK as u64).unwrap();
        assert_eq!(got, [2; BLOCK], "{what}: the group beside it");
    }
}

/// The trailers of 100 GB would take 1.2 GB.
#[test]
fn memory_is_bounded() {
    /// A disk without memory: nothing is read back here.
    struct Nowhere;
    impl Storage for Nowhere {
        fn read(&self, buf: &mut [u8], _: u64) -> Result<bool> {
            buf.fill(0);
            Ok(true)
        }
        fn write(&self, _: &[u8], _: u64) -> Result<()> {
            Ok(())
        }
        fn truncate(&self, _: u64) -> Result<()> {
            Ok(())
        }
        fn size(&self) -> Result<u64> {
            Ok(0)
        }
        fn sync(&self) -> Result<()> {
            Ok(())
        }
    }
    let mut scratch = Scratch::new(Tuning::default()).unwrap();
    let mut memory = Vec::new();
    for size in [32_u64, 64, 128].map(|mebibytes| mebibytes << 20) {
        let plain = vec![7; GATHERED];
        while scratch.size() < size {
            let at = scratch.size();
            scratch.write(&Nowhere, &plain, at).unwrap();
        }
        let gathered = scratch.gathered.capacity() + scratch.image.capacity();
        memory.push(scratch.groups.memory() + gathered);
    }
    assert!(memory[0] < 512 << 10, "{memory:?}");
    // 8 bytes for 84 blocks, and what a vector that grows has in reserve.
    let groups = (128 << 20) / (PER_GROUP as usize * BLOCK);
    assert!(memory[2] - memory[0] <= 2 * 8 * groups, "{memory:?}");
}
