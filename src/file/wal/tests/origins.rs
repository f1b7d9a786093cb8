//! Which log belongs to the database file: when SQLite recovers it, and when it believes the
//! wal-index and recovers nothing.

use super::*;

/// How a look at a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Goes,
    /// It counts as empty.
    Void,
    Outdated,
    BadPage1,
}
use End::{BadPage1, Goes, Outdated, Void};

const PARTLY: Fit = Fit::Brought { frames: FrameNo::FIRST, partly: true };

fn end(answer: Result<Filled>) -> End {
    match answer {
        Ok(Filled::Full) => Goes,
        Ok(Filled::Short) => Void,
        Err(Error::LogOutdated) => Outdated,
        Err(Error::PageAuthentication { page: 1 }) => BadPage1,
        Err(error) => panic!("{error:?}"),
    }
}

/// A log of two frames, the first one of `page` with these counters.
fn log_with(page: u32, counters: u8, commit: u32) -> (Memory, Arc<Keyring>) {
    let (base, keyring) = (Memory::default(), keyring());
    let mut wal = Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
    let db = Db::default();
    let (header, log) = log_of(5, &[(page, 0, counters), (4, commit, 0xbb)]);
    wal.write(&base, &db, &header, 0).unwrap();
    for (number, bytes) in (1..).zip(&log) {
        write_frame(&mut wal, &base, &db, number, bytes);
    }
    wal.before_sync(&base, &db).unwrap();
    (base, keyring)
}

#[test]
fn slots_and_page_1_say_whether_a_log_belongs_to_the_file() {
    let file = |counters: u8| Some([counters; 16]);
    for (what, fit, counters, (page, in_log), recovered, in_use) in [
        ("another state", Fit::No, file(0), (1, 0), Outdated, Outdated),
        ("another state, a bad page 1", Fit::No, None, (1, 0), Outdated, Outdated),
        ("as it was", Fit::Begun, file(0), (3, 1), Goes, Goes),
        ("a page 1 of the log", Fit::Begun, file(1), (1, 1), Goes, Goes),
        ("another transaction", Fit::Begun, file(2), (1, 1), Outdated, Outdated),
        ("another one, no page 1 in the log", Fit::Begun, file(1), (3, 1), Outdated, Outdated),
        ("a torn page 1 that is in the log", Fit::Begun, None, (1, 1), Goes, Goes),
        ("a bad page 1 that is not", Fit::Begun, None, (3, 1), BadPage1, BadPage1),
        ("partly there, a page 1 of the log", PARTLY, file(1), (1, 1), Goes, Goes),
        // A recovery asks more.
        ("partly there, another transaction", PARTLY, file(2), (1, 1), Outdated, Goes),
        ("partly there, a bad page 1", PARTLY, None, (3, 1), BadPage1, Goes),
    ] {
        let (base, keyring) = log_with(page, in_log, 9);
        let before = base.0.borrow().clone();
        let handle = || Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
        let mut db = Db { locks: 1, fit, counters, ..Db::default() };
        let (got, _) = read(&mut handle(), &base, &mut db, 0, WAL_HEADER);
        assert_eq!(end(got), recovered, "{what}: recovered");
        db.salts = Some([5; 8]);
        db.pages = vec![page, 4];
        for number in [1, 2] {
            let place = at(number) + FRAME_HEADER as u64;
            let (got, _) = read(&mut handle(), &base, &mut db, place, PAGE);
            assert_eq!(end(got), in_use, "{what}: frame {number}");
        }
        assert!(*base.0.borrow() == before, "{what}: the log was changed");
        let mut writer = handle();
        let frame = frame(6, 9, 5, 0xcc);
        let begun = writer.write(&base, &db, &frame[..FRAME_HEADER], at(3));
        let wrote = begun.and_then(|()| {
            let place = at(3) + FRAME_HEADER as u64;
            writer.write(&base, &db, &frame[FRAME_HEADER..], place)
        });
        assert_eq!(end(wrote.map(|()| Filled::Full)), in_use, "{what}: a write");
        assert_eq!(*base.0.borrow() == before, in_use != Goes, "{what}: written");
    }
}

/// Frames that a checkpoint has brought to the file, by the slots, are in the log and in the
/// wal-index, or it is refused.
#[test]
fn a_log_has_what_was_brought_of_it() {
    #[derive(Debug, PartialEq)]
    enum Got {
        Fine,
        Lacks(u32),
    }
    use Got::{Fine, Lacks};
    let got = |answer: Result<Filled>| match answer {
        Ok(_) => Fine,
        Err(Error::LogCut { frame }) => Lacks(frame),
        Err(error) => panic!("{error:?}"),
    };
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1);
    type Change<'a> = Option<&'a dyn Fn(&mut Vec<u8>)>;
    let rows: [(&str, u32, Change, u32, Got, Got); 6] = [
        ("all is there", 2, None, 2, Fine, Fine),
        ("nothing was brought", 0, Some(&cut), 0, Fine, Fine),
        ("the end, of which nothing was brought, is gone", 1, Some(&cut), 1, Fine, Fine),
        ("the end is gone", 2, Some(&cut), 2, Lacks(2), Fine),
        ("the end is gone, and the index says so", 2, Some(&cut), 1, Lacks(2), Lacks(2)),
        ("an index that denies a commit", 2, None, 1, Fine, Lacks(2)),
    ];
    for (what, frames, change, last, recovered, in_use) in rows {
        for partly in [true, false] {
            let (base, keyring) = (Memory::default(), keyring());
            let mut wal = Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
            let mut db =
                Db { fit: Fit::Brought { frames: FrameNo(frames), partly }, ..Db::default() };
            let (header, log) = log_of(5, &[(3, 9, 1), (4, 9, 2)]);
            wal.write(&base, &db, &header, 0).unwrap();
            for (number, bytes) in (1..).zip(&log) {
                write_frame(&mut wal, &base, &db, number, bytes);
            }
            wal.before_sync(&base, &db).unwrap();
            if let Some(change) = change {
                change(&mut base.0.borrow_mut());
            }
            let handle = || Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
            let mut buf = [0; WAL_HEADER];
            assert_eq!(got(handle().read(&base, &db, &mut buf, 0)), recovered, "{what}");
            (db.locks, db.salts, db.last_frame) = (1, Some([5; 8]), Some(last));
            db.pages = vec![3, 4];
            let mut other = handle();
            other.refresh(&base, &db).unwrap();
            let looked = other.check_new(&base, &db).map(|()| Filled::Full);
            assert_eq!(got(looked), in_use, "{what}: in use");
        }
    }
}

/// A wal-index is put back that was there earlier, under the same log.
#[test]
fn a_wal_index_does_not_go_back_to_an_earlier_commit() {
    for (what, ends_there) in [("denied", false), ("SQLite ended the log there", true)] {
        let (header, mut log) = log_of(5, &[(3, 9, 1), (4, 9, 2)]);
        if ends_there {
            log[1][16] ^= 1;
        }
        let (base, keyring) = (Memory::default(), keyring());
        let mut writer = Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
        writer.write(&base, &Db::default(), &header, 0).unwrap();
        for (number, bytes) in (1..).zip(&log) {
            write_frame(&mut writer, &base, &Db::default(), number, bytes);
        }
        let mut wal = Wal::new(Some(keyring), 1, Tuning::default());
        let mut db = Db { locks: 1, salts: Some([5; 8]), pages: vec![3, 4], ..Db::default() };
        let place = at(1) + FRAME_HEADER as u64;
        for (last, fine) in [(1, true), (2, true), (1, ends_there), (2, true), (1, ends_there)] {
            (db.locks, db.last_frame) = (db.locks + 1, Some(last));
            match wal.read(&base, &db, &mut [0; PAGE], place) {
                Ok(Filled::Full) => assert!(fine, "{what}: up to frame {last}"),
                Err(Error::FrameAuthentication { frame: 2 }) => assert!(!fine, "{what}"),
                other => panic!("{what}: {other:?}"),
            }
        }
    }
}

/// The same for the connection that committed last and released its lock.
#[test]
fn a_wal_index_does_not_take_back_what_this_handle_committed() {
    let (header, log) = log_of(5, &[(3, 9, 1), (4, 9, 2)]);
    for told in [true, false] {
        let (base, mut wal) = (Memory::default(), Wal::new(Some(keyring()), 1, Tuning::default()));
        let mut db = Db { locks: 1, salts: Some([5; 8]), pages: vec![3, 4], ..Db::default() };
        db.last_frame = Some(0);
        wal.write(&base, &db, &header, 0).unwrap();
        for (number, bytes) in (1..).zip(&log) {
            write_frame(&mut wal, &base, &db, number, bytes);
        }
        // SQLite does not tell where it failed after the commit, say in a sync.
        db.last_frame = Some(if told { 2 } else { 0 });
        wal.lock_given_back(&db);
        (db.locks, db.last_frame) = (2, Some(1));
        let read = wal.read(&base, &db, &mut [0; PAGE], at(1) + FRAME_HEADER as u64);
        match read {
            Ok(Filled::Full) => assert!(!told),
            Err(Error::FrameAuthentication { frame: 2 }) => assert!(told),
            other => panic!("{other:?}"),
        }
    }
}

/// The file moved on while this handle's transactions read no frame. Then the log and the wal-index
/// come back that it saw when it last read one.
#[test]
fn a_handle_that_reads_no_frame_sees_the_log_go_on() {
    for told in [true, false] {
        let (header, log) = log_of(5, &[(3, 9, 1), (4, 9, 2)]);
        let (base, keyring) = (Memory::default(), keyring());
        let mut writer = Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
        writer.write(&base, &Db::default(), &header, 0).unwrap();
        write_frame(&mut writer, &base, &Db::default(), 1, &log[0]);
        let mut wal = Wal::new(Some(keyring), 1, Tuning::default());
        let mut db = Db { locks: 1, salts: Some([5; 8]), pages: vec![3], ..Db::default() };
        db.last_frame = Some(1);
        let place = at(1) + FRAME_HEADER as u64;
        wal.read(&base, &db, &mut [0; PAGE], place).unwrap();
        (db.locks, db.last_frame) = (2, Some(2));
        if told {
            wal.transaction_begins(&db);
        }
        (db.locks, db.last_frame) = (3, Some(1));
        db.fit = Fit::Brought { frames: FrameNo(2), partly: true };
        wal.transaction_begins(&db);
        match wal.read(&base, &db, &mut [0; PAGE], place) {
            Err(Error::LogCut { frame: 2 }) => assert!(told),
            // A limit: it cannot know.
            Ok(Filled::Full) => assert!(!told),
            other => panic!("{other:?}"),
        }
    }
}

/// A log of a copy that went its own way from the same state, under the wal-index of this one.
#[test]
fn a_log_and_a_wal_index_are_of_one_kind() {
    let (base, keyring) = log_with(3, 1, 9);
    let mut wal = Wal::new(Some(keyring), 1, Tuning::default());
    let db = Db { locks: 1, salts: Some([6; 8]), pages: vec![3, 4], ..Db::default() };
    let read = wal.read(&base, &db, &mut [0; PAGE], at(1) + FRAME_HEADER as u64);
    assert!(matches!(read, Err(Error::FrameAuthentication { frame: 0 })), "{read:?}");
    let written = wal.write(&base, &db, &frame(3, 9, 6, 7), at(3));
    assert!(matches!(written, Err(Error::FrameAuthentication { frame: 0 })), "{written:?}");
}

/// SQLite before 3.50 commits frames without checksums. They were brought to the file, a recovery
/// ended the log before them, and another commit is written over their beginning.
#[test]
fn frames_without_checksums_are_missed_by_nobody() {
    let (header, mut log) = log_of(5, &[(3, 9, 1), (4, 9, 2), (5, 9, 3), (6, 9, 4)]);
    for unsure in &mut log[2..] {
        unsure[8..24].fill(0);
    }
    let (base, keyring) = (Memory::default(), keyring());
    let mut writer = Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
    let fit = Fit::Brought { frames: FrameNo(4), partly: true };
    let mut db =
        Db { locks: 1, salts: Some([5; 8]), pages: vec![3, 4, 5, 6], fit, ..Db::default() };
    writer.write(&base, &db, &header, 0).unwrap();
    for (number, bytes) in (1..).zip(&log) {
        write_frame(&mut writer, &base, &db, number, bytes);
    }
    let (_, commit) = log_of(5, &[(3, 9, 1), (4, 9, 2), (7, 9, 5)]);
    for last in [4, 2, 3] {
        (db.locks, db.last_frame) = (db.locks + 1, Some(last));
        if last == 3 {
            write_frame(&mut writer, &base, &db, 3, &commit[2]);
            db.pages[2] = 7;
        }
        let mut other = Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
        let place = at(1) + FRAME_HEADER as u64;
        for wal in [&mut writer, &mut other] {
            let read = wal.read(&base, &db, &mut [0; PAGE], place);
            assert!(matches!(read, Ok(Filled::Full)), "up to frame {last}: {read:?}");
        }
    }
}

/// An older log of the same id has records of a transaction that was rolled back where the frames
/// were that checkpoints have brought.
#[test]
fn leftovers_are_no_frames_that_were_brought() {
    let (header, log) = log_of(5, &[(3, 9, 1), (4, 9, 2)]);
    let (_, other) = log_of(5, &[(6, 9, 7), (4, 9, 2)]);
    let (base, keyring) = (Memory::default(), keyring());
    let mut writer = Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
    let db = Db { fit: Fit::Brought { frames: FrameNo(2), partly: true }, ..Db::default() };
    writer.write(&base, &db, &header, 0).unwrap();
    write_frame(&mut writer, &base, &db, 1, &log[0]);
    write_frame(&mut writer, &base, &db, 2, &other[1]);
    let mut wal = Wal::new(Some(keyring), 1, Tuning::default());
    let read = wal.read(&base, &db, &mut [0; WAL_HEADER], 0);
    assert!(matches!(read, Err(Error::LogCut { frame: 2 })), "{read:?}");
}

/// The file has the whole log: without frames it plays nothing back.
#[test]
fn a_log_that_is_all_in_the_file_may_be_empty() {
    for (partly, fine) in [(false, true), (true, false)] {
        let (base, keyring) = log_with(3, 1, 9);
        base.0.borrow_mut()[2 * HEADER_LEN + 30] ^= 1;
        let mut wal = Wal::new(Some(keyring), 1, Tuning::default());
        let db = Db { fit: Fit::Brought { frames: FrameNo(2), partly }, ..Db::default() };
        let got = wal.read(&base, &db, &mut [0; WAL_HEADER], 0);
        match got {
            Ok(Filled::Full) => assert!(fine),
            Err(Error::LogCut { frame: 1 }) => assert!(!fine),
            other => panic!("{other:?}"),
        }
        let (filled, frame) = read(&mut wal, &base, &mut Db::default(), at(1), FRAME);
        assert_eq!((filled.unwrap(), frame), (Filled::Full, vec![0; FRAME]));
    }
}

#[test]
fn a_log_of_another_state_without_a_commit_counts_as_empty() {
    let (base, keyring) = log_with(1, 0, 0);
    let mut wal = Wal::new(Some(keyring), 1, Tuning::default());
    let mut db = Db { locks: 1, fit: Fit::No, ..Db::default() };
    let (got, header) = read(&mut wal, &base, &mut db, 0, WAL_HEADER);
    assert_eq!((got.unwrap(), header), (Filled::Full, vec![0; WAL_HEADER]));
}

/// An old log is put in the place of one that a handle knows, with its wal-index.
#[test]
fn a_handle_looks_again_where_another_log_is_in_place() {
    let (old, keyring) = log_with(3, 1, 9);
    let (base, db) = (Memory(old.0.borrow().clone().into()), Db::default());
    let mut wal = Wal::new(Some(keyring), 1, Tuning::default());
    wal.write(&base, &db, &wal_header(6), 0).unwrap();
    write_frame(&mut wal, &base, &db, 1, &frame(4, 9, 6, 0xdd));
    let db = Db { locks: 1, salts: Some([6; 8]), pages: vec![4], fit: Fit::No, ..Db::default() };
    let place = at(1) + FRAME_HEADER as u64;
    // Its own log it does not ask about again: a checkpoint may be changing the slots.
    assert_eq!(end(wal.read(&base, &db, &mut [0; PAGE], place)), Goes);
    base.0.replace(old.0.borrow().clone());
    let mut db = Db { locks: 2, salts: Some([5; 8]), pages: vec![3, 4], fit: Fit::No, ..db };
    assert_eq!(end(wal.read(&base, &db, &mut [0; PAGE], place)), Outdated);
    let error = wal.write(&base, &db, &[0; FRAME_HEADER], at(3)).unwrap_err();
    assert!(matches!(error, Error::LogOutdated), "{error:?}");
    (db.locks, db.fit) = (3, Fit::Begun);
    assert_eq!(end(wal.read(&base, &db, &mut [0; PAGE], place)), Goes);
}
