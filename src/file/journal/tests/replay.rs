//! An older version of a record, put back while the transaction that wrote it runs.

use std::collections::BTreeSet;

use super::*;

/// The versions of each record that the file had in `images`, without those that it has now.
fn older_versions(pair: &Pair<'_>, images: &[Vec<u8>]) -> Vec<(usize, Vec<u8>)> {
    let layout = pair.journal.layout;
    let now = pair.disk.base.0.borrow();
    let mut older = BTreeSet::new();
    for record in 0..pair.model.len().div_ceil(layout.sector()) as u64 {
        let at = layout.position(record) as usize;
        let place = at..at + layout.record();
        let Some(newest) = now.get(place.clone()) else { continue };
        let versions = images.iter().filter_map(|image| image.get(place.clone()));
        older.extend(versions.filter(|old| *old != newest).map(|old| (at, old.to_vec())));
    }
    older.into_iter().collect()
}

/// Puts each of `older` back, alone: reading the journal fails, or tells what was written. Answers
/// how many reads failed.
fn put_back(pair: &mut Pair<'_>, older: &[(usize, Vec<u8>)]) -> usize {
    let mut refused = 0;
    // As in a transaction whose journal is long: nothing of it is at hand in plaintext.
    pair.journal.tail.forget();
    for (at, old) in older {
        let place = *at..at + old.len();
        let newest = pair.disk.base.0.borrow()[place.clone()].to_vec();
        pair.disk.base.0.borrow_mut()[place.clone()].copy_from_slice(old);
        pair.journal.ahead.forget();
        pair.journal.held = None;
        let mut got = vec![1; pair.model.len()];
        match pair.journal.read(pair.disk, &mut got, 0) {
            Ok(_) => assert!(got == pair.model, "an older record at {at} passed"),
            Err(Error::JournalAuthentication { .. }) => refused += 1,
            Err(error) => panic!("an older record at {at}: {error:?}"),
        }
        pair.disk.base.0.borrow_mut()[place].copy_from_slice(&newest);
    }
    pair.journal.ahead.forget();
    pair.journal.held = None;
    pair.reads(0, pair.model.len() + 9).unwrap();
    refused
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 200 }))]

    /// Whatever was in the file at any time of this journal, torn writes of a failing disk among
    /// it.
    #[test]
    fn no_older_version_of_a_record_passes(
        steps in proptest::collection::vec(step(), 1..60),
        fails in prop_oneof![
            2 => Just(Fails::Never),
            1 => (0..60_usize).prop_map(Fails::Once),
        ],
        grain in prop_oneof![Just(1_usize), Just(512), Just(4096)],
        tuning in prop_oneof![Just(TUNINGS[0]), Just(TUNINGS[1])],
    ) {
        let (disk, keyring) = (Disk::default(), keyring());
        let mut pair = Pair::new(&disk, &keyring, grain, tuning);
        disk.fails.set(Some(fails));
        disk.calls.set(0);
        let mut images = vec![disk.base.0.borrow().clone()];
        for step in &steps {
            let _ = pair.take(step);
            images.append(&mut disk.after.borrow_mut());
            images.push(disk.base.0.borrow().clone());
        }
        disk.heal();
        pair.take(&Step::Flush).unwrap();
        let older = older_versions(&pair, &images);
        put_back(&mut pair, &older);
    }
}

/// Records of which there are two versions: the header of a part whose pages were counted, and one
/// in which a flush ended.
#[test]
fn headers_and_boundaries_are_refused_in_an_older_version() {
    for (grain, tuning) in [(1, 0), (4096, 0), (1, 1), (4096, 1)] {
        let (disk, keyring) = (Disk::default(), keyring());
        let mut pair = Pair::new(&disk, &keyring, grain, TUNINGS[tuning]);
        let steps = [
            Step::Append(1032, 2),
            Step::Flush,
            Step::Append(1032, 3),
            Step::Flush,
            Step::Field(4),
            Step::Header(5),
            Step::Append(1032, 6),
            Step::Flush,
            Step::Field(7),
            Step::Field(8),
        ];
        let mut images = Vec::new();
        for step in &steps {
            pair.take(step).unwrap();
            images.append(&mut disk.after.borrow_mut());
        }
        pair.take(&Step::Flush).unwrap();
        let older = older_versions(&pair, &images);
        // Zeros of before the record was there are no version of it.
        let count = older.iter().filter(|(_, old)| old.iter().any(|&byte| byte != 0)).count();
        assert!(count >= 3, "grain {grain}, tuning {tuning}: {count}");
        assert_eq!(put_back(&mut pair, &older), older.len(), "grain {grain}, tuning {tuning}");
    }
}

/// Few tags are kept, even in a transaction much larger than SQLite's cache.
#[test]
fn tags_are_kept_of_few_records() {
    for (tuning, synced, most) in [(0, true, 2), (0, false, 1), (1, true, 4), (1, false, 3)] {
        let (disk, keyring) = (Memory::default(), keyring());
        let mut journal = open_on(&disk, &keyring, 1, TUNINGS[tuning]);
        journal.put_in(&disk, &[9; 512], 0).unwrap();
        let (mut at, mut header) = (512, 0);
        for page in 0..200_u8 {
            for piece in [&[page | 1; 4][..], &[page | 1; 4096], &[page | 1; 4]] {
                journal.put_in(&disk, piece, at).unwrap();
                at += piece.len() as u64;
            }
            // A page is spilled: the journal is brought to the base, and synced or not.
            journal.flush(&disk).unwrap();
            if synced {
                journal.put_in(&disk, &[9; 12], header).unwrap();
                header = at.next_multiple_of(512);
                journal.put_in(&disk, &[9; 512], header).unwrap();
                at = header + 512;
            }
        }
        let kept = journal.newest.len();
        assert!(kept <= most * 200, "tuning {tuning}, synced {synced}: {kept} of 200 pages");
        journal.truncate(&disk, 0).unwrap();
        assert_eq!(journal.newest.len(), 0);
    }
}
