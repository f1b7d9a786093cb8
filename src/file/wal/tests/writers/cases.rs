//! Failing calls, rollbacks, and what transactions cost in calls on the base.

use super::*;

/// Spills, overwritten pages, a rollback, a savepoint, two writers, a log that starts over.
const SCRIPT: [Step; 30] = [
    (5, 0, 8),
    (2, 0, 1),
    (2, 0, 2),
    (2, 0, 3),
    (2, 0, 4),
    (3, 7, 5),
    (3, 70, 6),
    (11, 0, 0),
    (5, 0, 8),
    (2, 1, 9),
    (7, 5, 0),
    (1, 1, 10),
    (6, 1, 7),
    (2, 0, 1),
    (2, 0, 2),
    (2, 0, 3),
    (2, 0, 4),
    (8, 0, 0),
    (1, 1, 11),
    (3, 0, 12),
    (5, 1, 14),
    (11, 1, 0),
    (2, 0, 1),
    (9, 0, 0),
    (1, 0, 15),
    (5, 0, 16),
    (10, 1, 0),
    (1, 0, 17),
    (5, 0, 18),
    (11, 1, 0),
];

/// Each call of the base fails once. SQLite is told of it before its commit is over, or the failure
/// has no effect; SQLite's next calls work.
#[test]
fn each_call_fails_once() {
    for tuning in TUNINGS {
        for fault in [Extent::Nothing, Extent::Half, Extent::All] {
            for (grain, exclusive) in [(1, false), (4096, true)] {
                let met = (0..)
                    .take_while(|&call| one_call_fails(grain, tuning, exclusive, (call, fault)));
                assert!(met.count() > 60, "{tuning:?} {fault:?} {grain}");
            }
        }
    }
}

/// Whether there were so many calls.
fn one_call_fails(grain: usize, tuning: Tuning, exclusive: bool, fault: (u32, Extent)) -> bool {
    let what = (grain, tuning, exclusive, fault);
    let mut world = World::new(keyring_and_next().0, grain, tuning, exclusive);
    world.disk.fails.set(Some(fault));
    let mut failed = 0;
    for step in SCRIPT {
        if world.take(step).is_err() {
            world.check_recovery(&what);
            failed += 1;
        }
    }
    assert!(failed <= 1, "{what:?}");
    let met = world.disk.fails.take().is_none();
    world.check_recovery(&what);
    let fresh = World::new(Arc::clone(&world.keyring), grain, tuning, false);
    (world.writers, world.exclusive) = (fresh.writers, false);
    world.read_pages(0, 1).unwrap();
    met
}

#[test]
fn a_transaction_is_one_write_or_one_for_each_64_kib() {
    let many = 65536 / (FRAME + RESERVE) as u32;
    for (frames, gathered) in [(1, 1), (2, 1), (20, 1), (many, 1), (many + 1, 2), (3 * many, 3)] {
        for tuning in TUNINGS {
            let mut world = World::new(keyring(), 1, tuning, false);
            world.commit(0, 1).unwrap();
            world.disk.writes.set(0);
            (1..frames).for_each(|page| world.append(0, page, 0, 3).unwrap());
            world.commit(0, 3).unwrap();
            let want = if tuning.gather_writes { gathered } else { frames };
            assert_eq!(world.disk.writes.get(), want, "{frames} frames, {tuning:?}");
        }
    }
}

/// The calls that overwrite pages of a transaction and chain its checksums anew.
#[test]
fn overwriting_a_page_reads_nothing_and_checksums_are_rewritten_in_long_pieces() {
    let mut world = World::new(keyring(), 1, Tuning::default(), false);
    (0..300).for_each(|page| world.append(0, page, 0, 1).unwrap());
    world.disk.reads.set(0);
    (0..300).for_each(|pick| world.overwrite(0, pick, 2).unwrap());
    assert_eq!(world.disk.reads.get(), 0);
    world.disk.writes.set(0);
    world.commit(0, 3).unwrap();
    let (reads, writes) = (world.disk.reads.get(), world.disk.writes.get());
    assert!(reads < 20 && writes < 10, "{reads} reads, {writes} writes");
}

/// A window has frames of the transaction that are overwritten afterwards, each by itself.
#[test]
fn what_is_overwritten_was_not_read_ahead() {
    for tuning in TUNINGS {
        let mut world = World::new(keyring(), 1, tuning, false);
        (0..130).for_each(|page| world.append(0, page, 0, 1).unwrap());
        for number in 1..130 {
            let page = world.frame(0, number)[FRAME_HEADER..].to_vec();
            world.expect(0, at(number) + 24, &page).unwrap();
            world.overwrite(0, number, number as u8).unwrap();
        }
        world.commit(0, 3).unwrap();
        world.check_recovery(&tuning);
    }
}

/// SQLite is told of an error, and may ask for such a frame all the same.
#[test]
fn a_frame_that_could_not_be_written_is_an_error_until_it_is_taken_back() {
    for tuning in TUNINGS {
        let mut world = World::new(keyring(), 1, tuning, false);
        // The old frames look valid: those of a transaction that was rolled back.
        world.commit(0, 1).unwrap();
        (0..10).for_each(|page| world.append(0, page, 0, 2).unwrap());
        let Writer { wal, db, .. } = &mut world.writers[0];
        wal.before_sync(&world.disk, db).unwrap();
        world.roll_back(0);

        (0..4).for_each(|page| world.append(0, page, 0, 3).unwrap());
        world.disk.fails.set(Some((0, Extent::Nothing)));
        let Writer { wal, db, .. } = &mut world.writers[0];
        let lost = if tuning.gather_writes {
            assert!(wal.before_sync(&world.disk, db).is_err());
            2
        } else {
            assert!(world.append(0, 4, 0, 3).is_err());
            6
        };
        assert!(world.disk.fails.get().is_none());
        for number in 1..=6 {
            let Writer { wal, db, .. } = &mut world.writers[0];
            db.pages = vec![1, 0, 1, 2, 3, 4];
            let read = wal.read(&world.disk, db, &mut [0; PAGE], at(number) + 24);
            assert_eq!(read.is_err(), number >= lost, "{tuning:?}: frame {number} read");
            let write = wal.write(&world.disk, db, &[3; PAGE], at(number) + 24);
            assert_eq!(write.is_err(), number >= lost, "{tuning:?}: frame {number} written");
        }
        // The frame overwritten above belongs to no transaction: restore it.
        let Writer { wal, db, .. } = &mut world.writers[0];
        let first = world.committed[0].clone();
        wal.write(&world.disk, db, &first[24..], at(1) + 24).unwrap();
        let next = frame(9, 9, 5, 3);
        let Writer { wal, db, .. } = &mut world.writers[0];
        let after = wal.write(&world.disk, db, &next, at(7));
        assert!(after.is_err(), "{tuning:?}: no frame follows a lost one, and none is committed");

        world.undo(0, lost - 2);
        world.commit(0, 6).unwrap();
        world.check_recovery(&tuning);
        world.read_pages(0, 1).unwrap();
    }
}

/// Another writer may have put its frames there.
#[test]
fn nothing_that_was_gathered_is_written_after_a_rollback() {
    for (grain, tuning) in [1, 512].into_iter().flat_map(|grain| TUNINGS.map(|t| (grain, t))) {
        let thens = ["read", "size", "sync", "truncate", "write", "close"];
        for (then, tells) in thens.into_iter().flat_map(|then| [(then, true), (then, false)]) {
            let mut world = World::new(keyring(), grain, tuning, false);
            world.tells = tells;
            world.commit(0, 1).unwrap();
            (1..5).for_each(|page| world.append(0, page, 0, 3).unwrap());
            world.roll_back(0);
            world.commit(1, 4).unwrap();
            let before = world.disk.base.0.borrow().clone();
            world.lock(0);
            let Writer { wal, db, .. } = &mut world.writers[0];
            match then {
                "read" => _ = wal.read(&world.disk, db, &mut [0; PAGE], at(2) + 24).unwrap(),
                "size" => _ = wal.size(&world.disk, db).unwrap(),
                "sync" => wal.before_sync(&world.disk, db).unwrap(),
                "truncate" => wal.truncate(&world.disk, db, at(6)).unwrap(),
                "write" => world.append(0, 9, 0, 9).unwrap(),
                _ => _ = world.writers.remove(0),
            }
            let after = world.disk.base.0.borrow();
            let end = before.len().min(after.len());
            let written = tuning.gather_writes && *after != before && then != "truncate";
            assert!(!written, "{then}, {tuning:?}");
            // Frames 1 and 2 are committed.
            let kept = 2 * grain.max(512) + 2 * (FRAME + RESERVE).next_multiple_of(grain);
            assert_eq!(after[..kept.min(end)], before[..kept.min(end)], "{then}, {tuning:?}");
        }
    }
}

/// A transaction that began the log is taken back to its beginning by a savepoint, and commits
/// then. SQLite before 3.50 reads the checksum before the frame that was overwritten first,
/// although that one is taken back.
#[test]
fn a_transaction_taken_back_to_the_beginning_of_the_log_commits() {
    let steps = [(9, 0, 1), (0, 0, 1), (2, 0, 1), (0, 0, 1), (3, 247, 1), (7, 408, 1), (5, 0, 1)];
    for (exclusive, tells) in [(false, false), (false, true), (true, true)] {
        for old in [true, false] {
            for tuning in TUNINGS {
                let mut world = World::new(keyring(), 1, tuning, exclusive);
                (world.old, world.tells) = (old, tells);
                for step in steps {
                    let what = (step, exclusive, tells, old, tuning);
                    world.take(step).unwrap_or_else(|error| panic!("{what:?}: {error}"));
                    world.check_recovery(&what);
                }
            }
        }
    }
}
