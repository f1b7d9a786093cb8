//! What the bytes of a main database mean, on storage in memory.

use super::*;
use crate::file::memory::Memory;
use crate::provider::{Context, KeyProvider, ProviderError, Wrapped};
use crate::secret::Secret;

/// A provider that keeps wrapped keys in the blob, for tests of everything but wrapping.
pub(crate) struct Open;

impl KeyProvider for Open {
    fn wrap(&self, _: &str, dek: &Secret, _: &Context) -> Result<Wrapped, ProviderError> {
        let (key_version, mechanism) = ("1".into(), "none".into());
        Ok(Wrapped { key_version, mechanism, blob: dek.expose().to_vec() })
    }

    fn unwrap(&self, _: &str, wrapped: &Wrapped, _: &Context) -> Result<Secret, ProviderError> {
        Secret::from_slice(&wrapped.blob).ok_or_else(|| ProviderError::WrongKey("length".into()))
    }

    fn newest_version(&self, _: &str) -> Result<String, ProviderError> {
        Ok("1".into())
    }
}

fn wishes() -> Wishes {
    let mut wishes = Wishes::default();
    wishes.protectors.add("open", Arc::new(Open));
    wishes.protectors.set_default("open:key");
    wishes
}

pub(crate) fn keyring() -> Arc<Keyring> {
    wishes().create().unwrap().0
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

fn created(page_size: usize) -> (Memory, MainDb) {
    let base = Memory::default();
    let mut db = MainDb::open(&base, wishes()).unwrap();
    db.write(&base, &page_1(page_size, 48), 0).unwrap();
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
        db.write(&base, &page, page_size as u64).unwrap();
        page[page_size - RESERVE..].fill(0);
        let mut db = MainDb::open(&base, wishes()).unwrap();
        let mut got = vec![1; page_size];
        assert_eq!(db.read(&base, &mut got, page_size as u64).unwrap(), Filled::Full);
        assert_eq!(got, page, "page size {page_size}");
        assert_eq!(db.size(&base).unwrap(), 2 * page_size as u64);
    }
}

/// T2 and T3: parts of pages, and the usable bytes alone.
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

/// A process that dies between the copies of the first envelope leaves one; the next writes both.
#[test]
fn a_creation_cut_off_between_the_copies_is_completed() {
    for (what, len) in [("copy A", COPY_LEN), ("half of copy B", COPY_LEN + 100)] {
        let (base, _) = created(4096);
        base.0.borrow_mut().truncate(len);
        let mut db = MainDb::open(&base, wishes()).unwrap();
        db.write(&base, &page_1(4096, 48), 0).unwrap();
        let found = db.verify(&base, |_, _| ()).unwrap();
        assert_eq!((found.pages, found.bad_copies, found.bad_pages), (1, vec![], vec![]), "{what}");
    }
}

/// A creation that is rolled back leaves the envelope, with the size that its pages had.
#[test]
fn another_connection_creates_with_another_page_size() {
    let (base, mut first) = created(4096);
    first.truncate(&base, 0).unwrap();
    let mut second = MainDb::open(&base, wishes()).unwrap();
    second.write(&base, &page_1(1024, 48), 0).unwrap();
    first.look(&base).unwrap();
    assert_eq!(first.read(&base, &mut [0; 1024], 0).unwrap(), Filled::Full);
    assert!(!first.has_no_page());
}

/// T1: a torn page 1 must not keep a database from opening, and must not be read.
#[test]
fn a_torn_first_page_opens_and_does_not_read() {
    let (base, _) = created(8192);
    base.0.borrow_mut()[PAGES_AT as usize..PAGES_AT as usize + 512].fill(0);
    let mut db = MainDb::open(&base, wishes()).unwrap();
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

/// T5: what a write skips must read as authentic zeros.
#[test]
fn holes_are_sealed() {
    let (base, mut db) = created(1024);
    db.write(&base, &[5; 1024], 9 * 1024).unwrap();
    for page in 1..9 {
        let mut got = [1; 1024];
        db.read(&base, &mut got, page * 1024).unwrap();
        assert_eq!(got, [0; 1024], "page {}", page + 1);
    }
    assert_eq!(db.verify(&base, |_, _| ()).unwrap().bad_pages, [0_u32; 0]);
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
        let mut db = MainDb::open(&base, wishes()).unwrap();
        let error = db.write(&base, &page, 0).unwrap_err();
        assert!(error.to_string().contains(want), "{what}: {error}");
        assert_eq!(base.0.borrow().len(), 0, "{what}");
    }
}

/// A crash in the first write of an envelope leaves an empty database, whatever reached the disk.
#[test]
fn an_unfinished_creation_is_an_empty_database() {
    let (base, _) = created(1024);
    let copy = base.0.borrow()[..COPY_LEN].to_vec();
    for mask in 0..16_u32 {
        let mut torn = vec![0; COPY_LEN];
        for sector in (0..16).filter(|sector| sector % 4 != 3 && mask & (1 << (sector % 4)) != 0) {
            let part = sector * 512..(sector + 1) * 512;
            torn[part.clone()].copy_from_slice(&copy[part]);
        }
        let base = Memory(torn.into());
        match MainDb::open(&base, wishes()) {
            Ok(db) => assert_eq!(db.size(&base).unwrap(), 0, "mask {mask}"),
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
        bytes[COPY_LEN + 19] = 2;
        bytes
    };
    let damaged = {
        let mut bytes = good.0.borrow().clone();
        bytes[60] ^= 1;
        bytes[COPY_LEN + 60] ^= 1;
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
        let error = MainDb::open(&base, wishes()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(want), "{what}: {error}");
        assert_eq!(*base.0.borrow(), bytes, "{what}: the file changed");
    }
}
