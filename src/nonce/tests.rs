use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use super::*;

/// A world whose clock and random source do as they are told.
#[derive(Clone)]
struct Told {
    process: u64,
    time: Cell<u64>,
    /// By how much the clock moves on when it is read.
    pace: u64,
    /// Nanoseconds from one tick of the coarse clock to the next.
    tick: u64,
    /// The state of the random source.
    random: Cell<u64>,
}

impl Told {
    fn new() -> Self {
        let (time, random) = (Cell::new(123_456_789), Cell::new(42));
        Self { process: 1, time, pace: 100, tick: 4_000_000, random }
    }
}

impl World for Told {
    fn process(&self) -> u64 {
        self.process
    }
    fn tick(&self) -> u64 {
        self.time.get() / self.tick
    }
    fn now(&self) -> u64 {
        self.time.set(self.time.get() + self.pace);
        self.time.get()
    }
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        for byte in bytes {
            // Knuth's MMIX generator.
            let next = self.random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.random.set(next);
            *byte = (next >> 56) as u8;
        }
        Ok(())
    }
}

fn sequence<W>(suite: SuiteId, world: W) -> NonceSequence<W> {
    NonceSequence { suite, run: None, world }
}

fn part(nonce: &[u8; MAX_NONCE], range: Range<usize>) -> u128 {
    number(&nonce[range])
}

/// `count` blocks, one each `pause` nanoseconds.
fn blocks(from: &mut NonceSequence<Told>, count: usize, pause: u64) -> Vec<[u8; MAX_NONCE]> {
    let mut next = || {
        from.world.time.set(from.world.time.get() + pause);
        from.next().unwrap()
    };
    (0..count).map(|_| next()).collect()
}

/// Blocks of the one that have the nonce of a block of the other.
fn shared(a: &[[u8; MAX_NONCE]], b: &[[u8; MAX_NONCE]]) -> usize {
    let a: HashSet<_> = a.iter().collect();
    b.iter().filter(|nonce| a.contains(nonce)).count()
}

#[test]
fn no_nonce_comes_twice() {
    for suite in SuiteId::ALL {
        let mut seen = HashSet::new();
        for handle in 0..8 {
            let mut sequence = NonceSequence::new(suite);
            for step in 0..20_000 {
                if step % 5_000 == 4_999 {
                    sequence.run.as_mut().unwrap().process += 1;
                }
                let nonce = sequence.next().unwrap();
                assert!(seen.insert(nonce), "{suite:?} handle {handle} step {step}");
            }
        }
    }
}

/// A clock that stands and a random source that says the same change nothing within a run.
#[test]
fn the_counter_alone_keeps_blocks_apart() {
    for suite in SuiteId::ALL {
        let world = Told { pace: 0, ..Told::new() };
        let mut sequence = sequence(suite, world);
        let mut seen = HashSet::new();
        for step in 0..100_000 {
            assert!(seen.insert(sequence.next().unwrap()), "{suite:?} step {step}");
        }
    }
}

/// Readers make a key for each prefix that they meet.
#[test]
fn the_prefix_stays_while_epochs_change() {
    for suite in SuiteId::ALL {
        let layout = Layout::of(suite);
        let mut sequence = sequence(suite, Told::new());
        let all = blocks(&mut sequence, 100_000, 700);
        let prefixes: HashSet<_> = all.iter().map(|n| &n[..layout.epoch.start]).collect();
        assert_eq!(prefixes.len(), 1, "{suite:?}");
        let mut epochs = HashMap::<_, u32>::new();
        for nonce in &all {
            *epochs.entry(part(nonce, layout.epoch.clone())).or_default() += 1;
        }
        assert!(epochs.values().all(|&blocks| blocks <= LOOK), "{suite:?}");
    }
}

/// (nanoseconds since the draw, whether the epoch is what was drawn then plus the clock)
#[test]
fn an_old_draw_is_replaced_in_the_middle_of_everything() {
    for suite in SuiteId::ALL {
        let layout = Layout::of(suite);
        for before in 1..=LOOK {
            for (age, same) in [
                (0, true),
                (1, true),
                (SERVES - 1, true),
                (SERVES, false),
                (SERVES + 1, false),
                (3_600_000_000_000, false),
            ] {
                let mut sequence = sequence(suite, Told { pace: 0, tick: 1, ..Told::new() });
                let first = sequence.next().unwrap();
                (1..before).for_each(|_| _ = sequence.next().unwrap());
                let time = sequence.world.time.get();
                sequence.world.time.set(time + age);
                let epoch = |nonce| part(nonce, layout.epoch.clone());
                let sum = epoch(&first).wrapping_add(age.into());
                let next = sequence.next().unwrap();
                let name = format!("{suite:?}, block {before}, {age} ns later");
                let unused = 128 - 8 * layout.epoch.len() as u32;
                assert_eq!(epoch(&next) == sum << unused >> unused, same, "{name}");
                let counter = |nonce| part(nonce, layout.counter.clone()) as u64;
                let steps = u64::from(before) * layout.step;
                let want = counter(&first).wrapping_add(steps) % (1 << (8 * layout.counter.len()));
                assert_eq!(counter(&next), want, "{name}");
            }
        }
    }
}

#[test]
fn a_clock_that_was_set_back_is_an_old_epoch() {
    for suite in SuiteId::ALL {
        let layout = Layout::of(suite);
        let mut sequence = sequence(suite, Told { pace: 0, ..Told::new() });
        let first = sequence.next().unwrap();
        sequence.world.time.set(5);
        let next = sequence.next().unwrap();
        let epoch = |nonce| part(nonce, layout.epoch.clone());
        assert!(epoch(&first).abs_diff(epoch(&next)) > u128::from(SERVES), "{suite:?}");
    }
}

/// Clones of a machine: the memory is the same, and so are all clocks and sources but those of the
/// row. (what differs, how, blocks that may repeat where they are sealed every so many nanoseconds)
#[test]
fn clones_of_a_machine_part() {
    type Change = fn(&mut Told);
    const PAUSE: u64 = 1000;
    /// Blocks until the draw is old, and up to the look that sees it.
    const DRAWN: usize = (SERVES / PAUSE) as usize + LOOK as usize;
    let rows: [(&str, Change, usize); 6] = [
        ("the process was forked", |world| world.process += 1, 0),
        ("the clock, by a nanosecond", |world| world.time.set(world.time.get() + 1), 7),
        (
            "the clock, by more than a draw serves",
            |world| world.time.set(world.time.get() + SERVES),
            7,
        ),
        ("the clock, by a tick", |world| world.time.set(world.time.get() + world.tick), 0),
        ("how fast the clock goes", |world| world.pace += 1, 7),
        ("the random source", |world| world.random.set(7), DRAWN),
    ];
    for suite in SuiteId::ALL {
        for (what, change, most) in rows {
            for before in 1..40 {
                let mut one = sequence(suite, Told::new());
                let mut earlier = blocks(&mut one, before, PAUSE);
                let mut other = one.clone();
                change(&mut other.world);
                let ones = blocks(&mut one, 20_000, PAUSE);
                let others = blocks(&mut other, 20_000, PAUSE);
                let name = format!("{suite:?}, {what} differs, cloned after {before} blocks");
                let repeated = shared(&ones, &others);
                assert!(repeated <= most, "{name}: {repeated} repeat");
                // And they are the first ones.
                assert_eq!(shared(&ones[most..], &others), 0, "{name}");
                earlier.extend(&ones);
                let distinct: HashSet<_> = earlier.iter().collect();
                assert_eq!(distinct.len(), earlier.len(), "{name}: the first one itself");
            }
        }
    }
}

/// The limit: where nothing differs, the clones are one and the same.
#[test]
fn clones_that_nothing_tells_apart_are_the_same() {
    for suite in SuiteId::ALL {
        let mut one = sequence(suite, Told::new());
        blocks(&mut one, 13, 1000);
        let mut other = one.clone();
        assert_eq!(blocks(&mut one, 20_000, 1000), blocks(&mut other, 20_000, 1000), "{suite:?}");
    }
}

/// The random sources of both say the same for a while, as those of machines that were not told.
#[test]
fn clones_part_as_soon_as_one_source_does() {
    for suite in SuiteId::ALL {
        let mut one = sequence(suite, Told::new());
        blocks(&mut one, 13, 1000);
        let mut other = one.clone();
        let same = [blocks(&mut one, 5000, 1000), blocks(&mut other, 5000, 1000)];
        assert_eq!(same[0], same[1], "{suite:?}: clocks and sources are the same");
        other.world.random.set(7);
        let [ones, others] = [&mut one, &mut other].map(|from| blocks(from, 5000, 1000));
        let repeated = shared(&ones, &others);
        assert!(repeated <= (SERVES / 1000) as usize + LOOK as usize, "{suite:?}: {repeated}");
    }
}

#[test]
fn a_run_ends() {
    for suite in SuiteId::ALL {
        let layout = Layout::of(suite);
        let mut sequence = NonceSequence::new(suite);
        sequence.next().unwrap();
        sequence.run.as_mut().unwrap().left = 1;
        let last = sequence.next().unwrap();
        let other = sequence.next().unwrap();
        assert_ne!(last[..layout.epoch.end - 3], other[..layout.epoch.end - 3], "{suite:?}");
        assert_eq!(sequence.run.as_ref().unwrap().left, RUN - 1);
    }
}

#[test]
fn the_counter_wraps_within_its_bytes() {
    for suite in SuiteId::ALL {
        let layout = Layout::of(suite);
        let mut run = Run::start(&layout, &Told::new(), 1).unwrap();
        run.counter = layout.step.wrapping_neg();
        let (last, first) = (run.next(&layout), run.next(&layout));
        assert_eq!(part(&first, layout.counter.clone()), 0, "{suite:?}");
        assert_eq!(last[..layout.counter.start], first[..layout.counter.start], "{suite:?}");
    }
}

#[test]
fn counter_blocks_of_neighbours_do_not_meet() {
    let suite = SuiteId::Aes256CtrHmacSha256;
    let layout = Layout::of(suite);
    let mut sequence = NonceSequence::new(suite);
    let (a, b) = (sequence.next().unwrap(), sequence.next().unwrap());
    let longest_record = (65536 + 24_u64).div_ceil(16);
    let counter = |nonce| part(nonce, layout.counter.clone()) as u64;
    let distance = counter(&b).wrapping_sub(counter(&a)) % (1 << (8 * layout.counter.len()));
    assert!(distance >= longest_record);
    // Nor does the cipher's own counting carry into the rest.
    assert_eq!(counter(&a) % CTR_STEP, 0);
}

#[test]
fn a_forked_child_starts_anew() {
    for suite in SuiteId::ALL {
        let mut sequence = NonceSequence::new(suite);
        let parent = sequence.next().unwrap();
        sequence.run.as_mut().unwrap().process += 1;
        assert_ne!(parent[..8], sequence.next().unwrap()[..8], "{suite:?}");
    }
}
