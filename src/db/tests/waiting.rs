//! Pages of a checkpoint that wait to be written with their neighbours, and pages that are read
//! ahead.

use std::cell::Cell;

use proptest::prelude::*;

use super::faulty::{Call, Fault, Faults, Faulty};
use super::*;

const PAGE: usize = 1024;

/// Fails the call that `left` counts down to, and where `for_good` all after it.
#[derive(Default)]
struct Counted {
    left: Cell<u32>,
    for_good: bool,
    writes: Cell<u32>,
    reads: Cell<u32>,
}

type Failing = Faulty<Counted>;

impl Faults for Counted {
    fn before(&self, _: &Memory, call: Call<'_>) -> Option<Fault> {
        match call {
            Call::Read => self.reads.set(self.reads.get() + 1),
            Call::Write(..) => self.writes.set(self.writes.get() + 1),
            _ => {}
        }
        let left = self.left.get();
        let rest = if left == 1 { u32::from(self.for_good) } else { left.saturating_sub(1) };
        self.left.set(rest);
        (left == 1).then(|| Fault::half(call))
    }
}

fn page(number: u64, fill: u8) -> Vec<u8> {
    if number == 1 {
        return page_1(PAGE, 48);
    }
    let mut page = vec![fill; PAGE];
    page[PAGE - RESERVE..].fill(0);
    page
}

fn put(db: &mut Main, base: &Failing, number: u64, fill: u8, may_wait: bool) -> Result<()> {
    let at = (number - 1) * PAGE as u64;
    db.write(base, &page(number, fill), at, may_wait, &mut || Ok(None))
}

fn get(db: &mut Main, base: &Failing, number: u64) -> Result<Vec<u8>> {
    let mut got = vec![1; PAGE];
    db.read(base, &mut got, (number - 1) * PAGE as u64).map(|_| got)
}

/// A database of `pages` pages, each full of its number.
fn database(pages: u64) -> (Failing, Main) {
    let base = Failing::default();
    let mut db = Main::open(&base, setup()).unwrap();
    (1..=pages).for_each(|number| put(&mut db, &base, number, number as u8, false).unwrap());
    (base, db)
}

#[test]
fn neighbours_are_written_at_once() {
    let (base, mut db) = database(1);
    base.writes.set(0);
    for number in 2..=300 {
        put(&mut db, &base, number, number as u8, true).unwrap();
    }
    db.flush(&base).unwrap();
    assert_eq!(base.writes.get(), 299_u32.div_ceil(64), "64 KiB at a time");
    // Pages that do not follow each other: 7, then 9, then 8, and 9 again.
    base.writes.set(0);
    for number in [7, 9, 8, 9] {
        put(&mut db, &base, number, 5, true).unwrap();
    }
    db.flush(&base).unwrap();
    assert_eq!(base.writes.get(), 3);
}

#[test]
fn reads_in_sequence_are_few_and_right() {
    for (read_ahead, reads) in [(true, 1..=12), (false, 300..=302)] {
        let (base, db) = database(300);
        drop(db);
        let mut setup = setup();
        setup.protectors.settings_mut().tuning.read_ahead = read_ahead;
        let mut db = Main::open(&base, setup).unwrap();
        base.reads.set(0);
        for number in 1..=300 {
            assert_eq!(get(&mut db, &base, number).unwrap(), page(number, number as u8));
        }
        assert!(reads.contains(&base.reads.get()), "{}, {read_ahead}", base.reads.get());
    }
}

/// Another connection's writes are seen after each event that allows them.
#[test]
fn a_new_transaction_reads_anew() {
    type Event = fn(&mut Main, &Failing);
    let events: [(&str, Event); 4] = [
        ("a lock", |db, _| db.lock_changed(true)),
        ("a look at the change counter", |db, base| {
            db.read(base, &mut [0; 16], 24).unwrap();
        }),
        ("a write", |db, base| put(db, base, 2, 2, false).unwrap()),
        ("a change of size", |db, base| db.truncate(base, 40 * 1024, &mut || Ok(None)).unwrap()),
    ];
    for (what, event) in events {
        let (base, mut db) = database(40);
        let mut other = Main::open(&base, setup()).unwrap();
        for number in 1..=20 {
            get(&mut db, &base, number).unwrap();
        }
        put(&mut other, &base, 21, 99, false).unwrap();
        event(&mut db, &base);
        assert_eq!(get(&mut db, &base, 21).unwrap(), page(21, 99), "after {what}");
    }
}

/// A page that was torn while it was read ahead is read again; one that is bad stays bad.
#[test]
fn a_bad_page_in_the_window_is_read_again() {
    for mended in [true, false] {
        let (base, mut db) = database(40);
        let place = physical(21 * PAGE as u64) as usize + 5;
        base.base.0.borrow_mut()[place] ^= 1;
        for number in 1..=20 {
            get(&mut db, &base, number).unwrap();
        }
        if mended {
            base.base.0.borrow_mut()[place] ^= 1;
        }
        get(&mut db, &base, 21).unwrap();
        match get(&mut db, &base, 22) {
            Ok(got) => assert!(mended && got == page(22, 22)),
            Err(error) => {
                assert!(!mended && matches!(error, Error::PageAuthentication { page: 22 }));
            }
        }
    }
}

/// Each call of the base fails, once or for good: every write reported as done is done, or the
/// error is reported before the transaction is over.
#[test]
fn an_error_is_told_before_anybody_counts_on_the_page() {
    for for_good in [false, true] {
        for call in 1..40 {
            let (mut base, mut db) = database(30);
            base.for_good = for_good;
            base.left.set(call);
            let order: Vec<u64> = (2..=9).chain([20, 22, 21, 4]).chain(10..=33).collect();
            let mut told = false;
            let mut wrote = std::collections::BTreeMap::new();
            for &number in &order {
                match put(&mut db, &base, number, 200, true) {
                    Ok(()) => {
                        wrote.insert(number, 200);
                    }
                    Err(_) => told = true,
                }
                // Reads meanwhile return the written bytes, or an error.
                if let Ok(got) = get(&mut db, &base, 4)
                    && !told
                {
                    let fill = wrote.get(&4).copied().unwrap_or(4);
                    assert_eq!(got, page(4, fill), "call {call}");
                }
            }
            told |= db.flush(&base).is_err();
            base.left.set(0);
            if !told {
                let mut db = Main::open(&base, setup()).unwrap();
                for (&number, &fill) in &wrote {
                    assert_eq!(get(&mut db, &base, number).unwrap(), page(number, fill), "{call}");
                }
            } else {
                // Nothing waits any longer. The log has it all, and the next checkpoint writes it.
                assert!(!db.has_outgoing(), "call {call}");
                for &number in &order {
                    put(&mut db, &base, number, 200, true).unwrap();
                }
                db.flush(&base).unwrap();
                for &number in &order {
                    assert_eq!(get(&mut db, &base, number).unwrap(), page(number, 200), "{call}");
                }
            }
        }
    }
}

/// The size counts what waits, and a truncation drops what lies behind.
#[test]
fn a_size_and_a_truncation_need_no_flush() {
    let (base, mut db) = database(10);
    (11..=14).for_each(|number| put(&mut db, &base, number, 99, true).unwrap());
    base.left.set(100);
    assert_eq!(db.size(&base).unwrap(), 14 * PAGE as u64);
    db.truncate(&base, 12 * PAGE as u64, &mut || Ok(None)).unwrap();
    assert_eq!(base.writes.get(), 10 + 1, "the pages before, and one copy of the envelope");
    assert_eq!(db.size(&base).unwrap(), 12 * PAGE as u64);
    db.flush(&base).unwrap();
    for number in 11..=12 {
        assert_eq!(get(&mut db, &base, number).unwrap(), page(number, 99));
    }
    assert_eq!(base.base.size().unwrap(), physical_size(12 * PAGE as u64));
}

/// Each call of a write that grows the file fails, once or for good: the size and the truncation of
/// the rollback that follows fail only where the base does, and nothing of the write is left.
#[test]
fn a_rollback_finds_nothing_to_flush() {
    for for_good in [false, true] {
        for call in 1..12 {
            let (mut base, mut db) = database(10);
            base.for_good = for_good;
            let size = db.size(&base).unwrap();
            base.left.set(call);
            // The gap is filled up.
            let written = put(&mut db, &base, 16, 99, false);
            assert!(written.is_err() || call > 7, "call {call}");
            base.left.set(0);
            assert!(db.size(&base).unwrap() >= size, "call {call}");
            db.truncate(&base, size, &mut || Ok(None)).unwrap();
            assert_eq!(db.size(&base).unwrap(), size, "call {call}");
            assert_eq!(base.base.size().unwrap(), physical_size(size), "call {call}");
            let found = db.verify_all(&base).unwrap();
            assert_eq!((found.pages, found.bad_count), (10, 0), "call {call}");
        }
    }
}

/// A part cut off the file under locks that exclude others never becomes zeros.
#[test]
fn a_page_cut_off_under_a_lock_is_an_error() {
    type Event = fn(&mut Main, &Failing) -> Result<()>;
    let events: [(&str, Event); 6] = [
        ("nothing", |_, _| Ok(())),
        ("a stronger lock", |db, _| {
            db.lock_changed(false);
            Ok(())
        }),
        ("a look at the size", |db, base| db.size(base).map(|_| ())),
        ("a write past the end", |db, base| put(db, base, 25, 1, false)),
        ("a page", |db, base| put(db, base, 18, 1, false)),
        ("another size", |db, base| db.truncate(base, 22 * PAGE as u64, &mut || Ok(None))),
    ];
    for (what, event) in events {
        for (how, left, grown) in [
            ("cut", 10, 0),
            ("cut within a page", 10, 100),
            ("cut, and zeros", 10, 10 * PAGE as u64),
        ] {
            let (base, mut db) = database(20);
            db.lock_changed(true);
            db.size(&base).unwrap();
            base.base.truncate(physical_size(left * PAGE as u64)).unwrap();
            base.base.truncate(physical_size(left * PAGE as u64 + grown)).unwrap();
            event(&mut db, &base).unwrap();
            for number in 1..=20 {
                let got = get(&mut db, &base, number);
                let there = number <= left || what == "a page" && number == 18;
                match got {
                    Ok(_) if there => {}
                    Err(Error::PageAuthentication { page }) if !there => {
                        assert_eq!(u64::from(page), number, "{what}, {how}");
                    }
                    other => panic!("{what}, {how}, page {number}: {other:?}"),
                }
            }
            // And whoever opens it next finds no page that was made up.
            let mut db = Main::open(&base, setup()).unwrap();
            for number in (11..=20).filter(|&number| what != "a page" || number != 18) {
                match get(&mut db, &base, number) {
                    Err(Error::PageAuthentication { .. }) => {}
                    Ok(_) if base.base.size().unwrap() <= physical((number - 1) * PAGE as u64) => {}
                    other => panic!("{what}, {how}, page {number} anew: {other:?}"),
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u8, bool),
    Read(u64, u64),
    Flush,
    Lock,
    Truncate(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..60_u64, any::<u8>(), any::<bool>()).prop_map(|(n, f, w)| Step::Write(n, f, w)),
        3 => (1..60_u64, 1..20_u64).prop_map(|(n, count)| Step::Read(n, count)),
        1 => Just(Step::Flush),
        1 => Just(Step::Lock),
        1 => (1..60_u64).prop_map(Step::Truncate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 300 }))]
    #[test]
    fn reads_as_the_pages_that_were_written(steps in proptest::collection::vec(step(), 1..60)) {
        let (base, mut db) = database(1);
        let mut model = vec![page(1, 0)];
        for step in steps {
            match step {
                Step::Write(number, fill, may_wait) => {
                    let run = if may_wait { 1 + u64::from(fill % 8) } else { 1 };
                    for number in number..number + run {
                        put(&mut db, &base, number, fill, may_wait).unwrap();
                        while model.len() < number as usize {
                            model.push(vec![0; PAGE]);
                        }
                        model[number as usize - 1] = page(number, fill);
                    }
                }
                Step::Read(from, count) => for number in from..from + count {
                    let want = model.get(number as usize - 1).cloned();
                    let got = get(&mut db, &base, number).unwrap();
                    prop_assert_eq!(got, want.unwrap_or_else(|| vec![0; PAGE]));
                },
                Step::Flush => db.flush(&base).unwrap(),
                Step::Lock => db.lock_changed(true),
                Step::Truncate(pages) => {
                    db.truncate(&base, pages * PAGE as u64, &mut || Ok(None)).unwrap();
                    model.resize(pages as usize, vec![0; PAGE]);
                }
            }
        }
        db.flush(&base).unwrap();
        let mut db = Main::open(&base, setup()).unwrap();
        for (page, number) in model.iter().zip(1..) {
            prop_assert_eq!(&get(&mut db, &base, number).unwrap(), page);
        }
    }
}
