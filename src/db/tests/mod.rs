//! The format of a main database, on storage in memory.

mod copies;
mod emptied;
pub(crate) mod faulty;
mod slots;
mod waiting;

use super::main::*;
use crate::error::{Error, Result};
use crate::file::main::layout::*;
use crate::file::main::*;
use crate::file::wal::Demand;
use crate::io::memory::Memory;
use crate::io::{Filled, Storage};
use crate::key::envelope::COPY_LEN;
use crate::key::envelope::{self, ENVELOPE_LEN, Envelope, ProtectorRecord, REGION_LEN};
use crate::key::keyring::Dek;
use crate::key::keyring::Keyring;
use crate::key::session::Setup;
use crate::page::{PageNo, RESERVE};
use crate::provider::{
    Answer, KeyProvider, ProviderError, UnwrapRequest, VersionRequest, WrapRequest, Wrapped,
};
use crate::secret::Secret;
use crate::suite::SuiteId;
use std::sync::Arc;

/// A provider that keeps wrapped keys in the blob, for tests of everything but wrapping.
pub(crate) struct Open;

impl KeyProvider for Open {
    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { dek, .. } = *request;
        let (key_version, mechanism) = ("1".into(), "none".into());
        Ok(Wrapped { key_version, mechanism, blob: dek.expose().to_vec() }.into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { wrapped, .. } = *request;
        Secret::from_slice(&wrapped.blob)
            .map(Answer::from)
            .ok_or_else(|| ProviderError::WrongKey("length".into()))
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        Ok("1".into())
    }
}

fn setup() -> Setup {
    let mut setup = Setup::default();
    setup.protectors.add("open", Arc::new(Open));
    setup.protectors.settings_mut().default_protector = "open:key".to_owned();
    setup
}

/// A keyring, and the one that it becomes when its DEK is retired for one of another suite.
pub(crate) fn keyring_and_next() -> (Arc<Keyring>, Arc<Keyring>) {
    let dek = |version, suite| Dek { version, suite, key: Secret::from_slice(&[7; 32]).unwrap() };
    let first = || dek(1, SuiteId::Aes256Gcm);
    let second = dek(2, SuiteId::Aes256CtrHmacSha256);
    (Keyring::new([3; 16], first(), Vec::new()), Keyring::new([3; 16], second, vec![first()]))
}

pub(crate) fn keyring() -> Arc<Keyring> {
    create(&setup()).unwrap().0
}

/// A first page, as SQLite writes it.
fn page_1(page_size: usize, reserve: u8) -> Vec<u8> {
    let mut page = vec![0; page_size];
    page[..16].copy_from_slice(SQLITE_MAGIC);
    page[16..18].copy_from_slice(&page_size_field(page_size));
    page[18..24].copy_from_slice(&[1, 1, reserve, 64, 32, 32]);
    page[24..28].copy_from_slice(&7_u32.to_be_bytes());
    page
}

/// As without a log.
fn write(db: &mut Main, base: &Memory, bytes: &[u8], at: u64) -> Result<()> {
    db.write(base, bytes, at, false, &mut || Ok(None))
}

fn created(page_size: usize) -> (Memory, Main) {
    let base = Memory::default();
    let mut db = Main::open(&base, setup()).unwrap();
    write(&mut db, &base, &page_1(page_size, 48), 0).unwrap();
    (base, db)
}

#[test]
fn sizes_and_places_map_there_and_back() {
    for page_size in [1024_u64, 4096, 65536] {
        for around in [0, GAP_AT, PENDING_BYTE, 1 << 33] {
            for step in 0..6 {
                let at = around.saturating_sub(3 * page_size) + step * page_size;
                let place = physical(at);
                assert!(place + page_size <= PENDING_BYTE || place >= LOCKS_END, "byte {at}");
                assert_eq!(logical_size(physical_size(at)), at, "size {at}");
                assert!(physical_size(at) <= place, "a file of {at} bytes ends before byte {at}");
            }
        }
    }
}

#[test]
fn every_page_size_reads_back() {
    for page_size in [1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let (base, mut db) = created(page_size);
        let mut page: Vec<u8> = (0..page_size).map(|byte| byte as u8).collect();
        write(&mut db, &base, &page, page_size as u64).unwrap();
        page[page_size - RESERVE..].fill(0);
        let mut db = Main::open(&base, setup()).unwrap();
        let mut got = vec![1; page_size];
        assert_eq!(db.read(&base, &mut got, page_size as u64).unwrap(), Filled::Full);
        assert_eq!(got, page, "page size {page_size}");
        assert_eq!(db.size(&base).unwrap(), 2 * page_size as u64);
    }
}

/// Parts of pages, and the usable bytes alone.
#[test]
fn parts_of_pages_read_as_the_whole() {
    let (base, mut db) = created(4096);
    let whole = page_1(4096, 48);
    for (at, len) in [(24, 16), (0, 100), (0, 4048), (0, 4096), (4000, 96), (1, 1)] {
        let mut got = vec![1; len];
        assert_eq!(db.read(&base, &mut got, at).unwrap(), Filled::Full);
        assert_eq!(got, whole[at as usize..at as usize + len], "{len} bytes at {at}");
    }
}

/// Page 1 is kept as it was read. Whatever others make of it, a handle that kept it answers as one
/// that never read it.
#[test]
fn a_kept_page_1_is_what_lies_in_the_file() {
    for page_size in [1024, 4096, 65536] {
        let (base, mut writer) = created(page_size);
        let at = physical(0) as usize;
        let state = || base.0.borrow()[at..at + page_size].to_vec();
        let mut states = vec![state(), state(), vec![0; page_size]];
        for changes in [8_u32, 9] {
            let mut page = page_1(page_size, 48);
            page[24..28].copy_from_slice(&changes.to_be_bytes());
            write(&mut writer, &base, &page, 0).unwrap();
            states.push(state());
        }
        for byte in [0, 24, page_size / 2, page_size - RESERVE, page_size - 1] {
            let mut bad = states[0].clone();
            bad[byte] ^= 1;
            states.push(bad);
        }
        let mut keeper = Main::open(&base, setup()).unwrap();
        let answer = |db: &mut Main, len: usize| {
            let mut got = vec![1; len];
            let filled = db.read(&base, &mut got, 0).map_err(|error| error.to_string());
            (filled, got)
        };
        for before in &states {
            for after in &states {
                for len in [100, page_size] {
                    for now in [before, after] {
                        base.0.borrow_mut()[at..at + page_size].copy_from_slice(now);
                        let mut fresh = Main::open(&base, setup()).unwrap();
                        let (kept, anew) = (answer(&mut keeper, len), answer(&mut fresh, len));
                        assert_eq!(kept.0, anew.0);
                        assert!(kept.0.is_err() || kept.1 == anew.1, "{len} bytes");
                    }
                }
            }
        }
    }
}

/// Cached plaintext is not handed out after the keys were locked.
#[test]
fn page_1_is_kept_for_those_who_have_keys() {
    let (base, mut db) = created(4096);
    for len in [100, 4096] {
        let mut got = vec![1; len];
        for _ in 0..2 {
            assert_eq!(db.read(&base, &mut got, 0).unwrap(), Filled::Full);
        }
        db.session().unwrap().lock_keys().unwrap();
        let read = db.read(&base, &mut got, 0);
        assert!(matches!(read, Err(Error::Inaccessible { .. })), "{len} bytes: {read:?}");
        db.begin(&base).unwrap();
        assert_eq!(db.read(&base, &mut got, 0).unwrap(), Filled::Full);
    }
}

/// After each step of a creation the file is an empty database until the first page, and from then
/// on a database that another handle completes.
#[test]
fn a_creation_cut_off_is_begun_anew_or_completed() {
    let (base, mut db) = created(4096);
    write(&mut db, &base, &[1; 4096], 4096).unwrap();
    let first = base.0.borrow().clone();
    assert_eq!(first[REGION_LEN..ENVELOPE_LEN], [0; REGION_LEN], "copy B comes with the commit");
    db.before_commit(&base).unwrap();
    let last = base.0.borrow().clone();
    assert_eq!(last[..COPY_LEN], last[REGION_LEN..][..COPY_LEN]);
    for (what, bytes, pages) in [
        ("nothing", vec![], 0),
        ("half of copy A", first[..512].to_vec(), 0),
        ("copy A", first[..REGION_LEN].to_vec(), 0),
        ("copy A, and room up to page 1", first[..ENVELOPE_LEN].to_vec(), 0),
        (
            "copies A and B, no page",
            [&first[..REGION_LEN], &last[REGION_LEN..ENVELOPE_LEN]].concat(),
            0,
        ),
        ("copy A and pages", first.clone(), 2),
        (
            "B torn",
            [&first[..REGION_LEN], &last[REGION_LEN..9000], &[0; 7384], &first[ENVELOPE_LEN..]]
                .concat(),
            2,
        ),
        ("B whole", [&first[..REGION_LEN], &last[REGION_LEN..]].concat(), 2),
        ("A torn", [&last[..40], &[0; COPY_LEN - 40], &last[COPY_LEN..]].concat(), 2),
        ("all", last.clone(), 2),
    ] {
        let base = Memory(bytes.into());
        let mut db = Main::open(&base, setup()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(db.size(&base).unwrap(), pages * 4096, "{what}");
        assert_eq!(db.is_unmade(), pages == 0, "{what}");
        if pages == 0 {
            write(&mut db, &base, &page_1(4096, 48), 0).unwrap();
        }
        db.before_commit(&base).unwrap();
        let found = db.verify_all(&base).unwrap();
        assert_eq!(found.bad_pages, [], "{what}");
        if what != "A torn" {
            assert_eq!(found.bad_copies, [], "{what}");
        }
        assert!(Main::open(&base, setup()).unwrap().envelope().unwrap().has_pages, "{what}");
    }
}

/// A database that was committed has a first page: where it is cut to its envelope or within, it is
/// damaged, and not an empty one.
#[test]
fn a_database_cut_to_its_envelope_is_damaged() {
    let (base, mut db) = created(1024);
    db.before_commit(&base).unwrap();
    let whole = base.0.borrow().clone();
    for len in (1..=ENVELOPE_LEN).filter(|len| len % 512 < 2 || *len == ENVELOPE_LEN) {
        let base = Memory(whole[..len].to_vec().into());
        let error = Main::open(&base, setup()).map(|_| ()).unwrap_err().to_string();
        let damaged = error.starts_with("envelope damaged") || error.starts_with("not a database");
        assert!(damaged, "{len} bytes: {error}");
        assert_eq!(*base.0.borrow(), whole[..len], "{len} bytes");
    }
}

/// A creation that is rolled back leaves nothing, and another connection may choose other pages.
#[test]
fn another_connection_creates_with_another_page_size() {
    for committed in [false, true] {
        let (base, mut first) = created(4096);
        let mut seen = Main::open(&base, setup()).unwrap();
        if committed {
            // The commit failed after SQLite had asked for it.
            first.before_commit(&base).unwrap();
        }
        first.truncate(&base, 0, &mut || Ok(None)).unwrap();
        assert_eq!((base.size().unwrap(), first.size(&base).unwrap()), (0, 0));
        let mut second = Main::open(&base, setup()).unwrap();
        write(&mut second, &base, &page_1(1024, 48), 0).unwrap();
        for other in [&mut first, &mut seen] {
            other.lock_changed(true);
            other.probe(&base).unwrap();
            assert_eq!(other.read(&base, &mut [0; 1024], 0).unwrap(), Filled::Full);
            assert!(!other.is_unmade());
        }
    }
}

/// The content of the file during a first transaction is not taken for committed.
#[test]
fn a_creation_that_was_seen_and_given_up_is_forgotten() {
    let (base, mut first) = created(4096);
    let mut seen = Main::open(&base, setup()).unwrap();
    first.truncate(&base, 0, &mut || Ok(None)).unwrap();
    seen.lock_changed(true);
    seen.probe(&base).unwrap();
    assert!(seen.is_unmade());
    write(&mut seen, &base, &page_1(1024, 48), 0).unwrap();
    seen.before_commit(&base).unwrap();
    assert_eq!(Main::open(&base, setup()).unwrap().size(&base).unwrap(), 1024);
}

/// A torn page 1 must not keep a database from opening, and must not be read.
#[test]
fn a_torn_first_page_opens_and_does_not_read() {
    let (base, _) = created(8192);
    base.0.borrow_mut()[PAGES_AT as usize..PAGES_AT as usize + 512].fill(0);
    let mut db = Main::open(&base, setup()).unwrap();
    let mut header = [0; 100];
    assert_eq!(db.read(&base, &mut header, 0).unwrap(), Filled::Full);
    assert_eq!((&header[16..18], header[20]), (&page_size_field(8192)[..], 48));
    let mut counter = [1; 16];
    assert_eq!(db.read(&base, &mut counter, 24).unwrap(), Filled::Full, "T2, before a log is read");
    assert_eq!(counter, [0; 16]);
    for len in [101, 1024, 8192] {
        let result = db.read(&base, &mut vec![0; len], 0);
        assert!(matches!(result, Err(Error::PageAuthentication { page: 1 })), "{len}: {result:?}");
    }
}

/// The gap before a write must read as authentic zeros.
#[test]
fn holes_are_sealed() {
    let (base, mut db) = created(1024);
    write(&mut db, &base, &[5; 1024], 9 * 1024).unwrap();
    for page in 1..9 {
        let mut got = [1; 1024];
        db.read(&base, &mut got, page * 1024).unwrap();
        assert_eq!(got, [0; 1024], "page {}", page + 1);
    }
    assert_eq!(db.verify_all(&base).unwrap().bad_pages, []);
}

#[test]
fn layouts_that_cannot_be_are_refused_and_nothing_is_written() {
    for (what, page, want) in [
        ("no reserve bytes", page_1(4096, 0), "reserves 0 bytes"),
        ("47 reserve bytes", page_1(4096, 47), "reserves 47 bytes"),
        ("page size 512", page_1(512, 48), "page size 512"),
        ("another page size inside", page_1(8192, 48)[..4096].to_vec(), "page size"),
        ("an odd length", vec![0; 1000], "page size 1000"),
    ] {
        let base = Memory::default();
        let mut db = Main::open(&base, setup()).unwrap();
        let error = write(&mut db, &base, &page, 0).unwrap_err();
        assert!(error.to_string().contains(want), "{what}: {error}");
        assert_eq!(base.0.borrow().len(), 0, "{what}");
    }
}

/// A crash in the first write of an envelope leaves an empty database, whatever reached the disk.
#[test]
fn an_unfinished_creation_is_an_empty_database() {
    let (base, _) = created(1024);
    let copy = base.0.borrow()[..REGION_LEN].to_vec();
    for mask in 0..16_u32 {
        let mut torn = vec![0; REGION_LEN];
        for sector in (0..16).filter(|sector| mask & (1 << (sector % 4)) != 0) {
            let part = sector * 512..(sector + 1) * 512;
            torn[part.clone()].copy_from_slice(&copy[part]);
        }
        let base = Memory(torn.into());
        match Main::open(&base, setup()) {
            Ok(mut db) => assert_eq!(db.size(&base).unwrap(), 0, "mask {mask}"),
            Err(error) => panic!("mask {mask}: {error}"),
        }
    }
}

#[test]
fn files_that_are_no_database_are_told_apart() {
    let (good, _) = created(1024);
    let newer = {
        let mut bytes = good.0.borrow().clone();
        bytes[19] = 2;
        bytes[REGION_LEN + 19] = 2;
        bytes
    };
    let damaged = {
        let mut bytes = good.0.borrow().clone();
        bytes[60] ^= 1;
        bytes[REGION_LEN + 60] ^= 1;
        bytes
    };
    for (what, bytes, want) in [
        ("random bytes", (0..40_000_u32).map(|i| ((i * i) >> 3) as u8).collect(), "not a database"),
        ("one byte", vec![7], "not a database"),
        ("plaintext", page_1(4096, 0), "plaintext refused"),
        ("newer format", newer, "too new"),
        ("damaged envelope", damaged, "envelope damaged"),
    ] {
        let base = Memory(bytes.clone().into());
        let error = Main::open(&base, setup()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(want), "{what}: {error}");
        assert_eq!(*base.0.borrow(), bytes, "{what}: the file changed");
    }
}

/// A database of `count` pages of 1024 bytes, whose freelist is trunk page 3 with leaves 4, 6 and
/// 9.
fn with_free_pages(count: u64) -> (Memory, Main) {
    let (base, mut db) = created(1024);
    let mut first = page_1(1024, 48);
    first[32..36].copy_from_slice(&3_u32.to_be_bytes());
    write(&mut db, &base, &first, 0).unwrap();
    for page in 1..count {
        let mut bytes = vec![page as u8; 1024];
        if page == 2 {
            bytes[..20].fill(0);
            for (place, word) in [3_u8, 4, 6, 9].into_iter().enumerate() {
                bytes[4 * place + 7] = word;
            }
        }
        write(&mut db, &base, &bytes, page * 1024).unwrap();
    }
    (base, db)
}

fn spoil(base: &Memory, page: u64) {
    base.0.borrow_mut()[physical((page - 1) * 1024) as usize + 7] ^= 1;
}

fn bad_pages(db: &mut Main, base: &Memory) -> Vec<u32> {
    db.verify_all(base).unwrap().bad_pages.into_iter().map(|page| page.0).collect()
}

/// A torn page that was free before the transaction has no copy in the journal.
#[test]
fn a_rollback_seals_bad_pages_that_are_free_and_no_others() {
    let (base, mut db) = with_free_pages(10);
    for page in [4, 5, 6] {
        spoil(&base, page);
    }
    db.before_sync(&base).unwrap();
    assert_eq!(bad_pages(&mut db, &base), [4, 5, 6], "no journal is being played back");
    db.phase.hot_journal();
    write(&mut db, &base, &[7; 1024], 7 * 1024).unwrap();
    db.before_sync(&base).unwrap();
    assert_eq!(bad_pages(&mut db, &base), [5]);
    let mut page = [1; 1024];
    db.read(&base, &mut page, 3 * 1024).unwrap();
    assert_eq!(page, [0; 1024]);
    db.phase.journal_changed();
    spoil(&base, 6);
    db.before_sync(&base).unwrap();
    assert_eq!(bad_pages(&mut db, &base), [5, 6]);
}

/// A shorter database was committed, the file was not cut, and the next transaction was torn.
#[test]
fn a_rollback_seals_bad_pages_past_the_end_of_the_database() {
    for (valid_for, left) in [(7_u32, &[2_u32][..]), (6, &[2, 8, 10])] {
        let (base, mut db) = with_free_pages(10);
        let mut first = page_1(1024, 48);
        first[28..32].copy_from_slice(&7_u32.to_be_bytes());
        first[92..96].copy_from_slice(&valid_for.to_be_bytes());
        for page in [2, 8, 10] {
            spoil(&base, page);
        }
        db.phase.hot_journal();
        db.before_sync(&base).unwrap();
        assert_eq!(bad_pages(&mut db, &base), [2, 8, 10], "nothing was played back");
        write(&mut db, &base, &first, 0).unwrap();
        db.before_sync(&base).unwrap();
        assert_eq!(bad_pages(&mut db, &base), left, "change 7, valid for {valid_for}");
    }
}

/// A freelist that runs in a circle, or beyond the file, ends.
#[test]
fn a_mad_freelist_ends() {
    for next in [3_u32, 1, 999, u32::MAX] {
        let (base, mut db) = with_free_pages(10);
        let mut trunk = vec![0xff; 1024];
        trunk[..4].copy_from_slice(&next.to_be_bytes());
        db.phase.hot_journal();
        write(&mut db, &base, &trunk, 2 * 1024).unwrap();
        db.before_sync(&base).unwrap();
        assert_eq!(bad_pages(&mut db, &base), [0_u32; 0], "{next}");
    }
}

/// Invariant 6: pages cut off the file beside a hot journal do not come back as zeros.
#[test]
fn a_rollback_does_not_make_up_pages_that_were_cut_off() {
    let (base, mut db) = with_free_pages(10);
    base.truncate(physical(2 * 1024)).unwrap();
    db.lock_changed(true);
    db.phase.hot_journal();
    write(&mut db, &base, &[0; 1024], 9 * 1024).unwrap();
    let mut trunk = vec![0; 1024];
    trunk[7] = 2;
    trunk[11] = 4;
    trunk[15] = 9;
    write(&mut db, &base, &trunk, 2 * 1024).unwrap();
    db.before_sync(&base).unwrap();
    db.phase.journal_changed();
    assert_eq!(bad_pages(&mut db, &base), [5, 6, 7, 8, 10]);
}

#[test]
fn recovery_seals_holes_where_the_log_has_grown_the_file() {
    let (base, mut db) = with_free_pages(10);
    for page in [3, 6, 7, 10] {
        spoil(&base, page);
    }
    let rows = [
        (9, 8, None, &[3, 6, 7, 10][..]),
        (6, 9, Some(7), &[3, 7, 10]),
        (6, 9, None, &[3, 10]),
        (10, u32::MAX, None, &[3]),
    ];
    for (from, to, logged, left) in rows {
        let (grown, in_log) = (PageNo(from)..=PageNo(to), logged.map(PageNo));
        db.seal_holes(&base, grown, &in_log.into_iter().collect()).unwrap();
        assert_eq!(bad_pages(&mut db, &base), left, "{from} to {to}, {logged:?} in the log");
    }
}

/// Invariant 6: a file that was cut below what its log allows is neither read nor filled up.
#[test]
fn a_file_shorter_than_its_log_allows_is_refused() {
    let (base, mut db) = with_free_pages(10);
    base.truncate(physical(8 * 1024)).unwrap();
    db.lock_changed(true);
    for (least, good) in [(8, true), (9, false), (10, false)] {
        let mut least = || Ok(Some(Demand { pages: least, ..Demand::default() }));
        assert_eq!(db.check_missing(&base, 8 * 1024, &mut least).is_ok(), good);
        let written = db.write(&base, &[1; 1024], 11 * 1024, false, &mut least);
        assert_eq!(written.is_ok(), good, "{written:?}");
        let cut = db.truncate(&base, 14 * 1024, &mut least);
        assert_eq!(cut.is_ok(), good, "{cut:?}");
        assert_eq!(bad_pages(&mut db, &base), [0_u32; 0]);
        base.truncate(physical(8 * 1024)).unwrap();
        db.lock_changed(true);
    }
}

#[test]
fn a_file_full_of_bad_pages_is_counted_and_not_listed() {
    let (base, mut db) = created(1024);
    let count = LISTED as u64 + 10;
    base.truncate(physical(count * 1024)).unwrap();
    let found = db.verify_all(&base).unwrap();
    assert_eq!((found.bad_count, found.bad_pages.len()), (count - 1, LISTED));
}
