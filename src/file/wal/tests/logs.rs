//! One log after another in the same file, and frames that SQLite commits without salts.

use super::*;
use crate::file::wal::layout::LOG_ID_AT;

const RECORD: usize = FRAME + RESERVE;
const FIRST: usize = 2 * HEADER_LEN;

fn log_id(base: &Memory) -> Vec<u8> {
    base.0.borrow()[LOG_ID_AT..LOG_ID_AT + 16].to_vec()
}

fn on(bytes: &[u8]) -> Memory {
    let base = Memory::default();
    base.0.replace(bytes.to_vec());
    base
}

fn handle(keyring: &Arc<Keyring>) -> Wal {
    Wal::new(Some(Arc::clone(keyring)), 1, Tuning::default())
}

/// A wal-index with these salts and pages.
fn index(locks: u64, salt: u8, pages: &[u32]) -> Db {
    Db { locks, salts: Some([salt; 8]), pages: pages.to_vec(), ..Db::default() }
}

#[test]
fn each_log_has_an_id_and_a_header_written_again_begins_none() {
    let (base, keyring, mut wal) = two_frames(1);
    let (first, before) = (log_id(&base), base.0.borrow().clone());
    assert_ne!(first, [0; 16]);
    let mut other = handle(&keyring);
    let cut = Db { origin: Origin { pages: 2, ..Origin::default() }, ..Db::default() };
    for wal in [&mut wal, &mut other] {
        wal.write(&base, &Db::default(), &wal_header(5), 0).unwrap();
        assert!(*base.0.borrow() == before, "the header that is there already");
        wal.write(&base, &cut, &wal_header(5), 0).unwrap();
        assert!(*base.0.borrow() == before, "of a file that was cut");
        assert_eq!(wal.demand(&base, View::default()).unwrap().pages, 7);
    }
    let mut ids = vec![first];
    for salt in 6..30 {
        wal.write(&base, &Db::default(), &wal_header(salt), 0).unwrap();
        let id = log_id(&base);
        assert!(!ids.contains(&id), "log {salt}");
        ids.push(id);
    }
}

/// A record of the log before, at the place where it was.
#[test]
fn no_record_of_an_earlier_log_authenticates() {
    let (base, keyring, mut wal) = two_frames(1);
    let before = base.0.borrow().clone();
    wal.write(&base, &Db::default(), &wal_header(6), 0).unwrap();
    for number in [1, 2] {
        write_frame(&mut wal, &base, &Db::default(), number, &frame(8, 9, 6, 0xee));
    }
    let now = base.0.borrow().clone();
    for number in [1, 2] {
        let place = FIRST + (number - 1) * RECORD..FIRST + number * RECORD;
        let mut bytes = now.clone();
        bytes[place.clone()].copy_from_slice(&before[place]);
        let base = on(&bytes);
        let from = at(number as u64);
        let (mut wal, mut db) = (handle(&keyring), index(1, 6, &[3, 4]));
        let (filled, got) = read(&mut wal, &base, &mut db, from + 24, PAGE);
        let error = matches!(filled, Err(Error::FrameAuthentication { .. }));
        assert!(error && got == [0; PAGE], "frame {number}: {filled:?}");
        let (filled, got) = read(&mut handle(&keyring), &base, &mut db, from, FRAME);
        assert_eq!((filled.unwrap(), got), (Filled::Full, vec![0; FRAME]), "frame {number}");
        let found = handle(&keyring).frames(&base, &db, FrameNo(2)).unwrap();
        assert!(found.bad.contains(&FrameNo(number as u32)), "frame {number}: {found:?}");
    }
}

/// Header and record 0 are written in one piece, of which a crash leaves any part.
#[test]
fn a_log_that_begins_is_the_new_one_the_earlier_one_or_empty_after_a_crash() {
    for grain in [1, 512, 4096] {
        let (base, keyring, mut wal) = two_frames(grain);
        let before = base.0.borrow().clone();
        let sector = grain.max(HEADER_LEN);
        wal.write(&base, &Db::default(), &wal_header(6), 0).unwrap();
        let now = base.0.borrow().clone();
        assert!(before[2 * sector..] == now[2 * sector..], "{grain}: frames of the earlier log");
        let cuts = [0, 1, 20, 44, 50, 60, 511, 512, sector, sector + 40, sector + 84, 2 * sector];
        let mut seen = [0; 3];
        for cut in cuts {
            for (first, rest) in [(&before, &now), (&now, &before)] {
                let base = on(&[&first[..cut], &rest[cut..]].concat());
                let (mut wal, mut db) = (handle(&keyring), Db::default());
                let (filled, header) = read(&mut wal, &base, &mut db, 0, WAL_HEADER);
                let what = format!("grain {grain}, cut at {cut}: {filled:?}");
                assert!(filled.is_ok(), "{what}");
                let (_, frame_1) = read(&mut wal, &base, &mut db, at(1), FRAME);
                let (log, want) = match header[WAL_SALTS_AT] {
                    0 => (0, vec![0; FRAME]),
                    5 => (1, frame(3, 0, 5, 0xaa)),
                    _ => (2, vec![0; FRAME]),
                };
                assert!(frame_1 == want, "{what}: log {log}");
                seen[log] += 1;
            }
        }
        assert!(seen.iter().all(|&times| times > 1), "grain {grain}: {seen:?}");
    }
}

/// Another handle has begun a log. The first call under the next lock may be any.
#[test]
fn a_handle_follows_a_new_log_whatever_it_is_asked_first() {
    for first in ["size", "sync", "truncate", "read", "write"] {
        let (base, keyring, mut wal) = two_frames(1);
        let mut other = handle(&keyring);
        let db = index(1, 5, &[3, 4]);
        assert_eq!(other.size(&base, &db).unwrap(), at(3));
        wal.write(&base, &db, &wal_header(6), 0).unwrap();
        write_frame(&mut wal, &base, &db, 1, &frame(8, 9, 6, 0xee));
        let mut db = index(2, 6, &[8, 9]);
        match first {
            "size" => _ = other.size(&base, &db).unwrap(),
            "sync" => other.before_sync(&base, &db).unwrap(),
            "truncate" => other.truncate(&base, &db, at(2)).unwrap(),
            "read" => _ = read(&mut other, &base, &mut db, at(1) + 16, 8).0.unwrap(),
            _ => write_frame(&mut other, &base, &db, 2, &frame(9, 9, 6, 0xef)),
        }
        let (filled, got) = read(&mut other, &base, &mut db, at(1) + 24, PAGE);
        assert_eq!((filled.unwrap(), got), (Filled::Full, vec![0xee; PAGE]), "{first}");
        write_frame(&mut other, &base, &db, 2, &frame(9, 9, 6, 0xef));
        let (filled, got) = read(&mut handle(&keyring), &base, &mut db, at(2) + 24, PAGE);
        assert_eq!((filled.unwrap(), got), (Filled::Full, vec![0xef; PAGE]), "{first}");
    }
}

/// A log was begun since this handle looked, and the wal-index is lost: it recovers.
#[test]
fn a_recovery_finds_the_log_that_is_there() {
    for salts in [None, Some([5; 8])] {
        let (base, keyring, mut wal) = two_frames(1);
        let mut other = handle(&keyring);
        assert_eq!(other.size(&base, &index(1, 5, &[])).unwrap(), at(3));
        wal.write(&base, &Db::default(), &wal_header(6), 0).unwrap();
        write_frame(&mut wal, &base, &Db::default(), 1, &frame(8, 9, 6, 0xee));
        let mut db = Db { locks: 2, salts, ..Db::default() };
        let (filled, header) = read(&mut other, &base, &mut db, 0, WAL_HEADER);
        assert_eq!((filled.unwrap(), header), (Filled::Full, wal_header(6).to_vec()), "{salts:?}");
        let (filled, got) = read(&mut other, &base, &mut db, at(1), FRAME);
        assert_eq!((filled.unwrap(), got), (Filled::Full, frame(8, 9, 6, 0xee)), "{salts:?}");
    }
}

/// Where a VFS above keeps locks and wal-index, a handle does not learn that SQLite has rolled its
/// transaction back, and that another one wrote over it. It recovers what is there.
#[test]
fn a_recovery_is_not_measured_by_a_transaction_of_before() {
    let (base, keyring, mut wal) = two_frames(1);
    write_frame(&mut wal, &base, &Db::default(), 3, &frame(6, 0, 5, 0xcc));
    wal.before_sync(&base, &Db::default()).unwrap();
    let mut other = handle(&keyring);
    let theirs = frame(7, 9, 5, 0xdd);
    write_frame(&mut other, &base, &Db::default(), 3, &theirs);
    let mut db = Db::default();
    // Within the transaction it is a record that was exchanged.
    assert!(read(&mut wal, &base, &mut db, at(3), FRAME).0.is_err());
    read(&mut wal, &base, &mut db, 0, WAL_HEADER).0.unwrap();
    let (filled, got) = read(&mut wal, &base, &mut db, at(3), FRAME);
    assert_eq!((filled.unwrap(), got), (Filled::Full, theirs));
}

/// A log of SQLite before 3.50: frame 3 has neither salts nor checksum, and is committed or
/// followed by a commit.
fn without_salts(commit: u32) -> (Memory, Arc<Keyring>, Wal) {
    let (base, keyring, mut wal) = two_frames(1);
    let mut third = frame(8, commit, 0, 0xcc);
    third[16..24].fill(0);
    write_frame(&mut wal, &base, &Db::default(), 3, &third);
    write_frame(&mut wal, &base, &Db::default(), 4, &frame(9, 6, 5, 0xdd));
    (base, keyring, wal)
}

#[test]
fn a_committed_frame_without_salts_is_read_by_everyone_and_ends_a_recovery() {
    for commit in [0, 5] {
        let (base, keyring, mut wal) = without_salts(commit);
        let mut other = handle(&keyring);
        for (what, db) in [("a wal-index", index(1, 5, &[3, 4, 8, 9])), ("none", Db::default())] {
            let mut db = db;
            for wal in [&mut wal, &mut other, &mut handle(&keyring)] {
                let (filled, got) = read(wal, &base, &mut db, at(3) + 24, PAGE);
                assert_eq!((filled.unwrap(), got), (Filled::Full, vec![0xcc; PAGE]), "{what}");
                let found = wal.frames(&base, &db, FrameNo(4)).unwrap();
                assert!(found.bad.is_empty(), "{what}: {found:?}");
                assert_eq!(found.pages, [3, 4, 8, 9].map(PageNo).into(), "{what}");
                let least = if commit == 0 { 6 } else { 5 };
                assert_eq!(wal.demand(&base, View::default()).unwrap().pages, least, "{what}");
            }
        }
        // The bytes that SQLite put there, for it to end the log at.
        let (mut recovery, mut db) = (handle(&keyring), Db::default());
        for (number, salt) in [(0, 5), (1, 5), (2, 5), (3, 0)] {
            let (from, len) = if number == 0 { (0, WAL_HEADER) } else { (at(number), FRAME) };
            let (filled, got) = read(&mut recovery, &base, &mut db, from, len);
            assert_eq!(filled.unwrap(), Filled::Full);
            let salts = if number == 0 { &got[WAL_SALTS_AT..24] } else { &got[8..16] };
            assert_eq!(salts, [salt; 8], "frame {number}");
        }
        assert_eq!(recovery.recovered, Some(Recovered { least: 7, last: 9 }));
        assert_eq!(recovery.last_commit(&base).unwrap().0, 2, "where SQLite ended the log");
        assert_eq!(wal.last_commit(&base).unwrap().0, 4, "who wrote it knows");
    }
}

/// The wal-index alone vouches for such a frame, and for its page.
#[test]
fn a_frame_of_another_page_than_the_wal_index_has_is_an_error_with_salts_or_without() {
    let (base, keyring, _) = without_salts(5);
    for number in 1..=4_u32 {
        let mut pages = vec![3, 4, 8, 9];
        pages[number as usize - 1] = 77;
        let mut db = index(1, 5, &pages);
        for (from, len) in [(24, PAGE), (16, 8), (500, 100)] {
            let from = at(u64::from(number)) + from;
            let (filled, got) = read(&mut handle(&keyring), &base, &mut db, from, len);
            let error = matches!(filled, Err(Error::FrameAuthentication { .. }));
            assert!(error && got.iter().all(|&byte| byte == 1), "frame {number}: {filled:?}");
        }
        let found = handle(&keyring).frames(&base, &db, FrameNo(4)).unwrap();
        assert_eq!(found.bad, [FrameNo(number)]);
    }
}

/// Before it commits, SQLite before 3.50 may ask for the checksum of a frame that it took back. The
/// wal-index has it no more.
#[test]
fn the_checksum_of_a_frame_that_was_taken_back_is_read_by_its_writer_alone() {
    for tuning in TUNINGS {
        let (base, keyring, mut wal) = two_frames_with(1, tuning);
        let mut db = index(1, 5, &[3, 4]);
        for number in 3..=6 {
            write_frame(&mut wal, &base, &db, number, &frame(number as u32, 0, 5, 0xcc));
        }
        write_frame(&mut wal, &base, &db, 3, &frame(9, 6, 0, 0xdd));
        let (filled, got) = read(&mut wal, &base, &mut db, at(6) + 16, 8);
        assert_eq!((filled.unwrap(), got), (Filled::Full, vec![0xcc; 8]), "{tuning:?}");
        db.pages = vec![3, 4, 9, 0, 0, 0];
        let (filled, _) = read(&mut wal, &base, &mut db, at(6) + 16, 8);
        assert!(filled.is_ok(), "{tuning:?}: {filled:?}");
        let (filled, _) = read(&mut wal, &base, &mut db, at(6) + 24, PAGE);
        assert!(filled.is_err(), "{tuning:?}: its page");
        let (filled, _) = read(&mut handle(&keyring), &base, &mut db, at(6) + 16, 8);
        assert!(filled.is_err(), "{tuning:?}: another handle");
    }
}

/// The wal-index denies commits: the log's own checksums tell of them, and of none that was rolled
/// back and written over in part.
#[test]
fn commits_that_the_wal_index_denies_are_still_demanded() {
    let keyring = keyring();
    let written = |frames: &[Vec<u8>], header: &[u8; WAL_HEADER], base: &Memory| {
        let (mut wal, db) = (handle(&keyring), Db::default());
        wal.write(base, &db, header, 0).unwrap();
        for (number, frame) in (1..).zip(frames) {
            wal.write(base, &db, frame, at(number)).unwrap();
        }
    };
    let rows = [(8, 9, 1), (9, 9, 2), (10, 0, 3), (11, 12, 4)];
    let (header, frames) = log_of(5, &rows);
    let base = Memory::default();
    written(&frames, &header, &base);
    let logged = |base: &Memory, view: View| -> Vec<u32> {
        handle(&keyring).demand(base, view).unwrap().logged.into_iter().map(|page| page.0).collect()
    };
    for (last, size, mark) in [(4, 12, 4), (2, 9, 2), (1, 9, 1), (0, 0, 0)] {
        let end = (last > 0).then_some((FrameNo(last), Some(size)));
        let view = View { end, mark: FrameNo(mark), salts: Some([5; 8]), ..View::default() };
        assert_eq!(logged(&base, view), [8, 9, 10, 11], "denied after frame {last}");
        let visible = handle(&keyring).demand(&base, view).unwrap().visible;
        assert!(visible.iter().all(|page| page.0 <= 7 + mark), "{mark}: {visible:?}");
    }
    // A frame that fails ends the log.
    base.0.borrow_mut()[1024 + 3 * (FRAME + RESERVE) + 40] ^= 1;
    assert_eq!(logged(&base, View::default()), [8, 9], "frame 4 fails");
    // Frames 2 to 4 are taken back, and one commit is written over the first of them.
    let (header, frames) = log_of(5, &[rows[0], (12, 13, 9)]);
    let (_, old) = log_of(5, &rows);
    let base = Memory::default();
    let all = [&frames[..], &old[2..]].concat();
    written(&all, &header, &base);
    assert_eq!(logged(&base, View::default()), [8, 12], "of a transaction that was rolled back");
    // SQLite before 3.50 may commit frames without salts and checksum.
    let mut all = old.clone();
    all[1][8..24].fill(0);
    let base = Memory::default();
    let (header, _) = log_of(5, &rows);
    written(&all, &header, &base);
    assert_eq!(logged(&base, View::default()), [8, 9, 10, 11], "beside frames without checksums");
    // The wal-index is about a log that is only about to be begun: all of this one is in the file.
    let view =
        View { salts: Some([6; 8]), end: Some((FrameNo::NONE, Some(12))), ..View::default() };
    assert_eq!(handle(&keyring).demand(&base, view).unwrap().pages, 11);
}

/// A handle that recovered a log lets no transaction write over its commits, whatever the wal-index
/// says; over what a recovery leaves out, it does.
#[test]
fn a_commit_that_is_known_is_not_written_over() {
    let keyring = keyring();
    let (header, frames) = log_of(5, &[(8, 9, 1), (9, 9, 2), (10, 0, 3)]);
    let (base, db) = (Memory::default(), Db { locks: 1, ..Db::default() });
    let mut wal = handle(&keyring);
    wal.write(&base, &db, &header, 0).unwrap();
    for (number, frame) in (1..).zip(&frames) {
        wal.write(&base, &db, frame, at(number)).unwrap();
    }
    for (number, good) in [(1, false), (2, false), (3, true)] {
        let base = Memory(base.0.borrow().clone().into());
        let mut wal = handle(&keyring);
        wal.read(&base, &db, &mut [0; WAL_HEADER], 0).unwrap();
        for frame in 1..=3 {
            wal.read(&base, &db, &mut [0; FRAME], at(frame)).unwrap();
        }
        let db = Db { locks: 2, ..Db::default() };
        let written = wal.write(&base, &db, &frame(8, 9, 5, 7), at(number));
        assert_eq!(written.is_ok(), good, "frame {number}: {written:?}");
    }
}

/// A transaction that began the log goes back to its beginning and begins it again, with other
/// salts: no frame of the first one is left, and SQLite before 3.50 reads the checksum of one.
#[test]
fn the_checksum_of_a_frame_of_the_log_before_is_read_and_of_no_other_spoilt_frame() {
    for tuning in TUNINGS {
        for old in [false, true] {
            let (base, keyring, mut wal) = two_frames_with(1, tuning);
            if !old {
                wal.truncate(&base, &Db::default(), 0).unwrap();
            }
            let mut db = index(1, 6, &[]);
            wal.write(&base, &db, &wal_header(6), 0).unwrap();
            for number in 1..=4 {
                write_frame(&mut wal, &base, &db, number, &frame(number as u32, 0, 6, 0xcc));
            }
            wal.write(&base, &db, &wal_header(7), 0).unwrap();
            db.salts = None;
            write_frame(&mut wal, &base, &db, 1, &frame(1, 4, 7, 0xdd));
            for number in 2..=4 {
                let (filled, got) = read(&mut wal, &base, &mut db, at(number) + 16, 8);
                assert_eq!(filled.unwrap(), Filled::Full, "{tuning:?} {old}: frame {number}");
                assert_eq!(got, [0; 8], "{tuning:?} {old}: frame {number}");
                let (filled, _) = read(&mut handle(&keyring), &base, &mut db, at(number) + 16, 8);
                assert!(!matches!(filled, Ok(Filled::Full)), "{tuning:?} {old}: another handle");
            }
            base.0.borrow_mut()[1024 + 99] ^= 1;
            wal.held = None;
            let (filled, _) = read(&mut wal, &base, &mut db, at(1) + 16, 8);
            assert!(filled.is_err(), "{tuning:?} {old}: a frame of the log");
        }
    }
}
