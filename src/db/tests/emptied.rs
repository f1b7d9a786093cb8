//! Files that are emptied, or created anew, under a handle that knows them.

use super::*;

/// Two pages, committed.
fn committed() -> Memory {
    let (base, mut db) = created(1024);
    write(&mut db, &base, &[7; 1024], 1024).unwrap();
    db.before_commit(&base).unwrap();
    base
}

fn open(base: &Memory) -> Main {
    Main::open(base, setup()).unwrap()
}

/// Events from which a handle knows that the creation was committed, and others.
#[test]
fn an_emptied_file_is_an_empty_database_only_where_its_creation_may_have_been_rolled_back() {
    type Step = fn(&mut Main, &Memory);
    let rows: [(&str, Step, bool); 6] = [
        ("opened", |_, _| (), false),
        ("the header was read", |db, base| drop(db.read(base, &mut [0; 100], 0)), false),
        ("the counter was read", |db, base| drop(db.read(base, &mut [0; 16], 24)), false),
        ("nobody was creating it", |db, base| db.nobody_is_creating(base).unwrap(), true),
        ("page 1 was read", |db, base| drop(db.read(base, &mut [0; 1024], 0)), true),
        ("page 2 was read", |db, base| drop(db.read(base, &mut [0; 976], 1024)), true),
    ];
    for (what, step, knows) in rows {
        for cut in [0, 100, COPY_LEN, ENVELOPE_LEN - 1, ENVELOPE_LEN] {
            let what = format!("{what}, cut to {cut}");
            let base = committed();
            let mut db = open(&base);
            step(&mut db, &base);
            db.lock_changed(true);
            base.truncate(cut as u64).unwrap();
            let looked = db.probe(&base);
            let size = looked.and_then(|()| db.size(&base));
            if knows || cut > 0 {
                let error = size.unwrap_err();
                let is_told = match error {
                    Error::DamagedInUse(_) => knows,
                    Error::EnvelopeDamaged(_) => !knows,
                    _ => false,
                };
                assert!(is_told, "{what}: {error}");
            } else {
                assert_eq!((size.unwrap(), db.is_unmade()), (0, true), "{what}");
            }
            if knows {
                let read = db.read(&base, &mut [0; 1024], 0);
                assert!(matches!(read, Err(Error::DamagedInUse(_))), "{what}: {read:?}");
                let written = write(&mut db, &base, &[1; 1024], 1024);
                assert!(matches!(written, Err(Error::DamagedInUse(_))), "{what}: {written:?}");
                assert_eq!(base.size().unwrap(), cut as u64, "{what}");
            }
        }
    }
}

/// A rollback of the first transaction that failed leaves it to others, after the lock is gone.
#[test]
fn a_handle_that_committed_the_creation_knows_unless_its_end_is_open() {
    for (what, levels, knows) in
        [("committed", &[false, true][..], true), ("an error ended it", &[true][..], false)]
    {
        let (base, mut db) = created(1024);
        db.before_commit(&base).unwrap();
        for last in levels {
            db.unlocked(*last);
            db.lock_changed(*last);
        }
        base.truncate(0).unwrap();
        let size = db.probe(&base).and_then(|()| db.size(&base));
        assert_eq!(size.is_err(), knows, "{what}: {size:?}");
    }
}

/// The envelope is looked for once in each transaction, and again at its commit.
#[test]
fn nothing_is_written_to_a_file_without_an_envelope() {
    type Change = fn(&Memory);
    let changes: [(&str, Change); 3] = [
        ("emptied", |base| base.truncate(0).unwrap()),
        ("zeros", |base| base.0.borrow_mut().fill(0)),
        ("emptied, and as long as before", |base| {
            let len = base.size().unwrap();
            base.truncate(0).unwrap();
            base.truncate(len).unwrap();
        }),
    ];
    for (what, change) in changes {
        let base = committed();
        let mut db = open(&base);
        db.read(&base, &mut [0; 1024], 0).unwrap();
        write(&mut db, &base, &[2; 1024], 1024).unwrap();
        change(&base);
        let before = base.0.borrow().clone();
        assert!(db.check_envelope(&base).is_err(), "{what}: a commit to the log");
        assert!(db.before_commit(&base).is_err(), "{what}: a commit");
        for attempt in ["the next transaction", "and again"] {
            let written = write(&mut db, &base, &[3; 1024], 1024);
            assert!(matches!(written, Err(Error::DamagedInUse(_))), "{what}, {attempt}");
            let cut = db.truncate(&base, 4096, &mut || Ok(None));
            assert!(cut.is_err(), "{what}, {attempt}: grown");
        }
        assert!(*base.0.borrow() == before, "{what}: the file was written to");
    }
}

/// Without locks (`nolock=1`) nothing else keeps two connections from creating one database.
#[test]
fn connections_without_locks_do_not_create_over_each_other() {
    let base = Memory::default();
    let (mut first, mut second) = (open(&base), open(&base));
    second.prepare().unwrap();
    write(&mut first, &base, &page_1(1024, 48), 0).unwrap();
    let before = base.0.borrow().clone();
    let written = write(&mut second, &base, &page_1(4096, 48), 0);
    assert!(matches!(written, Err(Error::Busy(_))), "{written:?}");
    assert!(*base.0.borrow() == before);
    // It learns of the database when it asks for the size.
    assert_eq!(second.size(&base).unwrap(), 1024);
    assert_eq!(second.read(&base, &mut [0; 1024], 0).unwrap(), Filled::Full);
    first.before_commit(&base).unwrap();
    // Both in the middle of a creation, which locks would never let happen.
    let (base, mut first) = created(1024);
    base.truncate(0).unwrap();
    let mut second = open(&base);
    write(&mut second, &base, &page_1(1024, 48), 0).unwrap();
    second.before_commit(&base).unwrap();
    let before = base.0.borrow().clone();
    assert!(first.before_commit(&base).is_err(), "a commit of the other's database");
    assert!(first.truncate(&base, 0, &mut || Ok(None)).is_err(), "the other's is rolled back");
    assert!(*base.0.borrow() == before);
    assert_eq!(first.size(&base).unwrap(), 1024);
    assert!(!first.is_unmade());
}

/// Bytes that others append during a playback are no page of the database.
#[test]
fn a_rollback_seals_nothing_beyond_the_end_that_it_knows() {
    let (base, mut db) = with_free_pages(10);
    let mut first = page_1(1024, 48);
    first[28..32].copy_from_slice(&7_u32.to_be_bytes());
    first[92..96].copy_from_slice(&7_u32.to_be_bytes());
    first[24..28].copy_from_slice(&7_u32.to_be_bytes());
    spoil(&base, 9);
    db.lock_changed(true);
    assert_eq!(db.size(&base).unwrap(), 10 * 1024);
    db.phase.hot_journal();
    write(&mut db, &base, &first, 0).unwrap();
    base.truncate(physical(14 * 1024)).unwrap();
    let before = base.0.borrow()[physical(10 * 1024) as usize..].to_vec();
    db.before_sync(&base).unwrap();
    assert!(base.0.borrow()[physical(10 * 1024) as usize..] == before, "pages 11 to 14 are sealed");
    db.lock_changed(true);
    assert_eq!(bad_pages(&mut db, &base), [11, 12, 13, 14], "and page 9 is sealed");
}

/// A page that is cut short counts as one of the database, as SQLite has it, and is missing.
#[test]
fn no_log_is_begun_beside_a_page_that_is_cut_short() {
    let base = committed();
    let mut db = open(&base);
    for asked in [false, true] {
        for (cut, pages) in [(0, Some(2)), (1, None), (1023, None), (1024, Some(1))] {
            let whole = base.0.borrow().clone();
            db.lock_changed(true);
            base.truncate(whole.len() as u64 - cut).unwrap();
            if asked {
                db.size(&base).unwrap();
            }
            assert_eq!(db.pages(&base, None).ok(), pages, "cut by {cut}, asked: {asked}");
            *base.0.borrow_mut() = whole;
        }
    }
}

/// Where plaintext is allowed, another program may have begun what another connection of ours ends,
/// and the other way round.
#[test]
fn a_file_that_was_created_anew_is_looked_at_anew() {
    let setup = || {
        let mut setup = setup();
        setup.protectors.settings_mut().allow_plaintext = true;
        setup
    };
    let plain = page_1(1024, 0);
    // Plaintext before, and encrypted now.
    for empty_when_seen in [false, true] {
        let base = Memory(plain.clone().into());
        let mut db = Main::open(&base, setup()).unwrap();
        assert!(db.is_plain());
        base.truncate(0).unwrap();
        if empty_when_seen {
            db.probe(&base).unwrap();
            assert!(db.is_unmade() && !db.is_plain());
            db.prepare().unwrap();
            write(&mut db, &base, &page_1(1024, 48), 0).unwrap();
            assert!(base.0.borrow().starts_with(envelope::MAGIC), "written in plaintext");
            continue;
        }
        let mut other = open(&base);
        write(&mut other, &base, &page_1(1024, 48), 0).unwrap();
        other.before_commit(&base).unwrap();
        db.probe(&base).unwrap();
        assert_eq!((db.is_plain(), db.size(&base).unwrap()), (false, 1024));
    }
    // A plaintext page 1 that a crash tore stays one, for its journal to mend.
    let base = Memory(plain.clone().into());
    let mut db = Main::open(&base, setup()).unwrap();
    base.0.borrow_mut()[..512].fill(0);
    db.probe(&base).unwrap();
    assert!(db.is_plain());
    // Encrypted before, and plaintext now.
    for has_pages in [false, true] {
        let (base, mut first) = created(1024);
        if has_pages {
            first.before_commit(&base).unwrap();
        }
        let mut db = Main::open(&base, setup()).unwrap();
        *base.0.borrow_mut() = plain.clone();
        db.probe(&base).unwrap();
        assert_eq!((db.is_plain(), db.size(&base).unwrap()), (true, 1024), "{has_pages}");
    }
}
