//! The format of a write-ahead log, on storage in memory.

mod logs;
mod origins;
mod writers;

use proptest::prelude::*;

use super::layout::{FILE_ID_AT, FORMAT_AT, GRAIN_AT, PAGE_SIZE_AT};
use super::*;
use crate::db::tests::{keyring, keyring_and_next};
use crate::io::Filled;
use crate::io::memory::Memory;

const PAGE: usize = 1024;
const FRAME: usize = FRAME_HEADER + PAGE;

/// A database with a wal-index, as far as a log asks for it.
struct Db {
    locks: u64,
    salts: Option<Salts>,
    pages: Vec<u32>,
    origin: Origin,
    fit: Fit,
    counters: Option<Counters>,
    last_frame: Option<u32>,
}

impl Default for Db {
    fn default() -> Self {
        Self {
            locks: 0,
            salts: None,
            pages: Vec::new(),
            origin: Origin { pages: 7, ..Origin::default() },
            fit: Fit::Begun,
            counters: Some(Counters::default()),
            last_frame: None,
        }
    }
}

impl Owner for Db {
    fn locks(&self) -> u64 {
        self.locks
    }
    fn salts(&self) -> Option<Salts> {
        self.salts
    }
    fn last_frame(&self) -> Option<FrameNo> {
        self.last_frame.map(FrameNo)
    }
    fn is_alone(&self) -> bool {
        false
    }

    fn page_of(&self, frame: FrameNo) -> Option<PageNo> {
        self.pages.get(frame.since(FrameNo::FIRST)?).copied().map(PageNo)
    }
    fn origin(&self) -> Result<Origin> {
        Ok(self.origin)
    }
    fn fit(&self, _: &LogId, _: &StateId) -> Result<Fit> {
        Ok(self.fit)
    }
    fn counters(&self) -> Result<Option<Counters>> {
        Ok(self.counters)
    }
    fn check_envelope(&self) -> Result<()> {
        Ok(())
    }
}

fn wal_header(salt: u8) -> [u8; WAL_HEADER] {
    let mut header = [salt; WAL_HEADER];
    header[..4].copy_from_slice(&0x377f_0682_u32.to_be_bytes());
    header[WAL_PAGE_SIZE_AT..12].copy_from_slice(&(PAGE as u32).to_be_bytes());
    header
}

fn frame(page: u32, commit: u32, salt: u8, fill: u8) -> Vec<u8> {
    let mut frame = vec![fill; FRAME];
    frame[..4].copy_from_slice(&page.to_be_bytes());
    frame[4..8].copy_from_slice(&commit.to_be_bytes());
    frame[8..16].fill(salt);
    frame
}

fn at(frame: u64) -> u64 {
    WAL_HEADER as u64 + (frame - 1) * FRAME as u64
}

/// A log as SQLite writes it: header, then each frame as header and page.
fn write_frame(wal: &mut Wal, base: &Memory, db: &Db, number: u64, bytes: &[u8]) {
    wal.write(base, db, &bytes[..FRAME_HEADER], at(number)).unwrap();
    wal.write(base, db, &bytes[FRAME_HEADER..], at(number) + FRAME_HEADER as u64).unwrap();
}

/// SQLite's checksum, as its documentation gives it, over bytes of which words are big-endian.
fn summed(bytes: &[u8], [mut one, mut two]: [u32; 2]) -> [u32; 2] {
    for pair in bytes.chunks_exact(8) {
        one = one.wrapping_add(number(pair)).wrapping_add(two);
        two = two.wrapping_add(number(&pair[4..])).wrapping_add(one);
    }
    [one, two]
}

/// A header and frames with SQLite's checksums, each frame of a page and a commit to so many.
fn log_of(salt: u8, frames: &[(u32, u32, u8)]) -> ([u8; WAL_HEADER], Vec<Vec<u8>>) {
    let put = |bytes: &mut [u8], sum: [u32; 2]| {
        bytes[..4].copy_from_slice(&sum[0].to_be_bytes());
        bytes[4..8].copy_from_slice(&sum[1].to_be_bytes());
    };
    let mut header = wal_header(salt);
    header[..4].copy_from_slice(&0x377f_0683_u32.to_be_bytes());
    let mut sum = summed(&header[..24], [0, 0]);
    put(&mut header[24..], sum);
    let all = frames.iter().map(|&(page, commit, fill)| {
        let mut frame = frame(page, commit, salt, fill);
        sum = summed(&frame[..8], sum);
        sum = summed(&frame[FRAME_HEADER..], sum);
        put(&mut frame[16..], sum);
        frame
    });
    (header, all.collect())
}

fn read(
    wal: &mut Wal,
    base: &Memory,
    db: &mut Db,
    at: u64,
    len: usize,
) -> (Result<Filled>, Vec<u8>) {
    let mut buf = vec![1; len];
    let result = wal.read(base, db, &mut buf, at);
    (result, buf)
}

const TUNINGS: [Tuning; 4] = [
    Tuning { read_ahead: true, gather_writes: true },
    Tuning { read_ahead: true, gather_writes: false },
    Tuning { read_ahead: false, gather_writes: true },
    Tuning::OFF,
];

fn two_frames(grain: usize) -> (Memory, Arc<Keyring>, Wal) {
    two_frames_with(grain, Tuning::default())
}

fn two_frames_with(grain: usize, tuning: Tuning) -> (Memory, Arc<Keyring>, Wal) {
    let (base, keyring) = (Memory::default(), keyring());
    let mut wal = Wal::new(Some(Arc::clone(&keyring)), grain, tuning);
    wal.write(&base, &Db::default(), &wal_header(5), 0).unwrap();
    write_frame(&mut wal, &base, &Db::default(), 1, &frame(3, 0, 5, 0xaa));
    write_frame(&mut wal, &base, &Db::default(), 2, &frame(4, 9, 5, 0xbb));
    (base, keyring, wal)
}

#[test]
fn another_handle_reads_what_was_written() {
    for grain in [1, 512, 4096] {
        let (base, keyring, _) = two_frames(grain);
        let (mut other, mut db) = (Wal::new(Some(keyring), 1, Tuning::default()), Db::default());
        let size = at(3);
        assert_eq!(other.size(&base, &db).unwrap(), size, "grain {grain}");
        let (filled, header) = read(&mut other, &base, &mut db, 0, WAL_HEADER);
        assert_eq!((filled.unwrap(), header), (Filled::Full, wal_header(5).to_vec()));
        for (number, bytes) in [(1, frame(3, 0, 5, 0xaa)), (2, frame(4, 9, 5, 0xbb))] {
            let (filled, got) = read(&mut other, &base, &mut db, at(number), FRAME);
            assert_eq!((filled.unwrap(), &got), (Filled::Full, &bytes), "frame {number}");
            let (filled, got) = read(&mut other, &base, &mut db, at(number) + 24, PAGE);
            assert_eq!((filled.unwrap(), &got[..]), (Filled::Full, &bytes[24..]));
            let (filled, got) = read(&mut other, &base, &mut db, at(number) + 16, 8);
            assert_eq!((filled.unwrap(), &got[..]), (Filled::Full, &bytes[16..24]));
        }
        let sizes = Recovered { least: 7, last: 9 };
        assert_eq!(other.recovered, Some(sizes), "at the log's start, and after the commit");
        assert_eq!(other.demand(&base, View::default()).unwrap().pages, 7);
        let (filled, _) = read(&mut other, &base, &mut db, at(3), FRAME);
        assert_eq!(filled.unwrap(), Filled::Short);
    }
}

/// A process that opens a log whose layout was changed would write at offsets that are never read.
#[test]
fn a_changed_layout_is_the_end_of_the_log_and_takes_no_frame() {
    for (what, at_byte, value) in [
        ("grain", layout::GRAIN_AT, 512_u32),
        ("grain", layout::GRAIN_AT, 4096),
        ("page size", layout::PAGE_SIZE_AT, 512),
        ("page size", layout::PAGE_SIZE_AT, 4096),
    ] {
        let what = format!("{what} {value}");
        let (base, keyring, mut wal) = two_frames(1);
        base.write(&value.to_be_bytes(), at_byte as u64).unwrap();
        let (mut other, mut db) =
            (Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default()), Db::default());
        let (filled, header) = read(&mut other, &base, &mut db, 0, WAL_HEADER);
        assert!(filled.is_ok() && header == [0; WAL_HEADER], "{what}: {filled:?}");
        let refused = other.write(&base, &db, &frame(5, 9, 5, 0xcc), at(3));
        assert!(matches!(refused, Err(Error::FrameAuthentication { frame: 0 })), "{what}");
        let (page, _) = read(&mut other, &base, &mut db, at(1) + 24, PAGE);
        // To SQLite the latter is an error, too.
        assert!(matches!(page, Err(_) | Ok(Filled::Short)), "{what}");
        // Who knows the layout goes on, and a new log mends it.
        let (filled, got) = read(&mut wal, &base, &mut db, at(1), FRAME);
        assert_eq!((filled.unwrap(), got), (Filled::Full, frame(3, 0, 5, 0xaa)), "{what}");
        other.write(&base, &db, &wal_header(6), 0).unwrap();
        write_frame(&mut other, &base, &db, 1, &frame(8, 9, 6, 0xdd));
        let mut third = Wal::new(Some(keyring), 1, Tuning::default());
        let (filled, got) = read(&mut third, &base, &mut db, at(1), FRAME);
        assert_eq!((filled.unwrap(), got), (Filled::Full, frame(8, 9, 6, 0xdd)), "{what}");
    }
}

/// A VFS above may hold back the rest of a frame that was cut in two at a sync, until the next
/// transaction syncs. Anything else after another lock is of another transaction.
#[test]
fn the_rest_of_a_frame_may_come_under_another_lock() {
    for tuning in TUNINGS {
        for (what, from) in [("its rest", 500), ("bytes of the frame before", 24)] {
            let (base, keyring, mut wal) = two_frames_with(1, tuning);
            let mut db = Db::default();
            let third = frame(9, 7, 6, 0xcc);
            wal.write(&base, &db, &third[..500], at(3)).unwrap();
            db.locks += 1;
            if from == 500 {
                wal.write(&base, &db, &third[500..], at(3) + 500).unwrap();
            } else {
                let page = [0xdd; PAGE];
                wal.write(&base, &db, &page, at(2) + FRAME_HEADER as u64).unwrap();
            }
            wal.before_sync(&base, &db).unwrap();
            let mut other = Wal::new(Some(keyring), 1, tuning);
            let (result, got) = read(&mut other, &base, &mut db, at(3), FRAME);
            if from == 500 {
                assert_eq!((result.unwrap(), got), (Filled::Full, third), "{what}, {tuning:?}");
            } else {
                assert_eq!(result.unwrap(), Filled::Short, "{what}, {tuning:?}");
            }
        }
    }
}

#[test]
fn a_complete_frame_is_in_the_base_and_a_begun_one_is_not() {
    for grain in [1, 512, 4096] {
        for cut in [1, 8, 24, 25, 500, FRAME - 1] {
            let (base, keyring, mut wal) = two_frames(grain);
            let (mut db, third) = (Db::default(), frame(5, 9, 5, 0xcc));
            wal.write(&base, &db, &third[..cut], at(3)).unwrap();
            wal.before_sync(&base, &db).unwrap();
            let size = wal.size(&base, &db).unwrap();
            assert_eq!(size, at(3), "grain {grain}, cut at {cut}");
            wal.write(&base, &db, &third[cut..], at(3) + cut as u64).unwrap();
            let mut other = Wal::new(Some(keyring), 1, Tuning::default());
            let (filled, got) = read(&mut other, &base, &mut db, at(3), FRAME);
            assert_eq!((filled.unwrap(), got), (Filled::Full, third), "cut at {cut}");
        }
    }
}

/// The page of a frame is overwritten in its transaction; then SQLite reads each frame and
/// rewrites its header, the last one with nothing after it.
#[test]
fn pages_and_headers_are_rewritten_in_place() {
    for tuning in TUNINGS {
        let (base, keyring, mut wal) = two_frames_with(1, tuning);
        let mut db = Db::default();
        wal.write(&base, &db, &[0xdd; PAGE], at(1) + 24).unwrap();
        let mut want = frame(3, 0, 5, 0xaa);
        want[24..].fill(0xdd);
        let (filled, got) = read(&mut wal, &base, &mut db, at(1), FRAME);
        assert_eq!((filled.unwrap(), &got), (Filled::Full, &want));
        want[16..24].fill(0x11);
        wal.write(&base, &db, &want[..24], at(1)).unwrap();
        if tuning.gather_writes {
            wal.before_sync(&base, &db).unwrap();
        }
        let mut other = Wal::new(Some(Arc::clone(&keyring)), 1, tuning);
        let (filled, got) = read(&mut other, &base, &mut db, at(1), FRAME);
        assert_eq!((filled.unwrap(), &got), (Filled::Full, &want), "{tuning:?}");

        // Without a read before it, a header waits for what follows: nothing that is written is
        // lost.
        let mut other = Wal::new(Some(Arc::clone(&keyring)), 1, tuning);
        want[16..24].fill(0x22);
        other.write(&base, &db, &want[..24], at(1)).unwrap();
        other.before_sync(&base, &db).unwrap();
        let mut third = Wal::new(Some(keyring), 1, tuning);
        let (filled, got) = read(&mut third, &base, &mut db, at(1), FRAME);
        assert_eq!((filled.unwrap(), &got), (Filled::Full, &want), "{tuning:?}");
    }
}

#[test]
fn no_nonce_comes_twice_however_often_a_frame_is_rewritten() {
    for tuning in TUNINGS {
        let (base, _, mut wal) = two_frames_with(1, tuning);
        let (mut seen, db) = (std::collections::HashSet::new(), Db::default());
        for fill in 0..50 {
            write_frame(&mut wal, &base, &db, 1, &frame(3, u32::from(fill % 2), 5, fill));
            wal.before_sync(&base, &db).unwrap();
            let end = 1024 + FRAME + RESERVE;
            let trailer = base.0.borrow()[end - RESERVE + 4..end - 20].to_vec();
            assert!(seen.insert(trailer), "write {fill}");
        }
    }
}

/// The frames of its own transaction that a handle reads back were not torn by any crash, also
/// after the last one is written: SQLite reads them to chain their checksums anew.
#[test]
fn a_spoilt_frame_of_the_own_transaction_is_an_error_and_not_the_end_of_the_log() {
    let (base, _, mut wal) = two_frames(1);
    let mut db = Db::default();
    base.0.borrow_mut()[1024 + 99] ^= 1;
    let (filled, _) = read(&mut wal, &base, &mut db, at(1), FRAME);
    assert!(matches!(filled, Err(Error::FrameAuthentication { frame: 1 })), "{filled:?}");
    db.locks += 1;
    let (filled, got) = read(&mut wal, &base, &mut db, at(1), FRAME);
    assert_eq!((filled.unwrap(), got), (Filled::Full, vec![0; FRAME]), "the next transaction");
}

/// Storage that gives less than it has.
struct Stingy<'a>(&'a Memory);

impl Storage for Stingy<'_> {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
        let half = buf.len() / 2;
        self.0.read(&mut buf[..half], at)?;
        buf[half..].fill(0);
        Ok(false)
    }
    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.0.write(bytes, at)
    }
    fn truncate(&self, size: u64) -> Result<()> {
        self.0.truncate(size)
    }
    fn size(&self) -> Result<u64> {
        self.0.size()
    }
    fn sync(&self) -> Result<()> {
        self.0.sync()
    }
}

/// A fault of the disk must not pass for the end of the log: committed transactions would be lost.
#[test]
fn a_short_read_of_a_long_file_is_an_error() {
    let log = [&wal_header(5)[..], &frame(3, 0, 5, 0xaa), &frame(4, 9, 5, 0xbb)].concat();
    for tuning in TUNINGS {
        let (base, keyring, mut wal) = two_frames_with(1, tuning);
        let mut other = Wal::new(Some(keyring), 1, tuning);
        for wal in [&mut wal, &mut other] {
            for (from, len) in [(0, WAL_HEADER), (at(1), FRAME), (at(2), FRAME), (at(1) + 24, PAGE)]
            {
                let mut got = vec![0; len];
                let result = wal.read(&Stingy(&base), &Db::default(), &mut got, from);
                // Half of a window holds whole records, which authenticate.
                let ahead = tuning.read_ahead && got == log[from as usize..][..len];
                let error = matches!(result, Err(Error::Base(_)));
                assert!(error || ahead && result.is_ok(), "{from}: {result:?}");
            }
        }
    }
}

type Change = Box<dyn Fn(&mut Vec<u8>)>;

/// A change of a closed log, and the results of recovery and of a read of frame 2.
#[test]
fn what_does_not_authenticate_is_the_end_of_the_log_or_an_error() {
    let (good, keyring, _) = two_frames(1);
    let good = good.0.borrow().clone();
    let record = FRAME + RESERVE;
    let second = 1024 + record;
    let (other, ..) = two_frames(1);
    let other = other.0.borrow().clone();
    let mut rows: Vec<(String, Change)> = vec![
        ("frame 1 again as frame 2".into(), Box::new(move |b| b.copy_within(1024..second, second))),
        ("zeroed".into(), Box::new(move |b| b[second..].fill(0))),
        (
            "of another database".into(),
            Box::new(move |b| b[second..].copy_from_slice(&other[second..])),
        ),
    ];
    for bit in (0..record * 8).step_by(37) {
        let at = second + bit / 8;
        rows.push((format!("bit {bit} flipped"), Box::new(move |b| b[at] ^= 1 << (bit % 8))));
    }
    for (attack, change) in rows {
        let mut bytes = good.clone();
        change(&mut bytes);
        let base = Memory::default();
        base.0.replace(bytes);
        let (mut wal, mut db) =
            (Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default()), Db::default());
        let (filled, got) = read(&mut wal, &base, &mut db, at(2), FRAME);
        assert_eq!((filled.unwrap(), got), (Filled::Full, vec![0; FRAME]), "{attack}");
        for (from, len) in [(24, PAGE), (16, 8)] {
            let (filled, got) = read(&mut wal, &base, &mut db, at(2) + from, len);
            let error = matches!(filled, Err(Error::FrameAuthentication { frame: 2 }));
            assert!(error, "{attack}: {filled:?}");
            assert_eq!(got, vec![0; len], "{attack}");
        }
        assert!(wal.write(&base, &db, &[9; PAGE], at(2) + 24).is_err(), "{attack}: overwritten");
    }
}

/// Invariant 3: authentic records that are not of this log, or not of the page that the wal-index
/// has for the frame.
#[test]
fn an_authentic_record_of_another_time_is_not_a_page() {
    let (base, keyring, mut wal) = two_frames(1);
    let before = base.0.borrow().clone();
    // The log starts again, and frame 1 holds another page.
    wal.write(&base, &Db::default(), &wal_header(6), 0).unwrap();
    write_frame(&mut wal, &base, &Db::default(), 1, &frame(8, 9, 6, 0xee));
    let now = base.0.borrow().clone();
    let record = FRAME + RESERVE;
    let mixed = [&now[..1024], &before[1024..1024 + record], &now[1024 + record..]].concat();
    for (attack, bytes, salts, page, good) in [
        ("none", &now, Some([6; 8]), 8, true),
        ("a frame of the log before", &mixed, Some([6; 8]), 8, false),
        ("the wal-index names another page", &now, Some([6; 8]), 3, false),
        ("all of the log before, the wal-index too: replay", &before, Some([5; 8]), 3, true),
    ] {
        let base = Memory::default();
        base.0.replace(bytes.clone());
        let mut wal = Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default());
        let mut db = Db { locks: 1, salts, pages: vec![page], ..Db::default() };
        let (filled, got) = read(&mut wal, &base, &mut db, at(1) + 24, PAGE);
        assert_eq!(filled.is_ok(), good, "{attack}: {filled:?}");
        assert!(good || got.iter().all(|&byte| byte <= 1), "{attack}: something was handed out");
    }
}

/// Invariant 4: another handle truncates the log and starts one with another sector.
#[test]
fn a_handle_follows_a_new_layout() {
    let (base, keyring, mut first) = two_frames(1);
    let mut second = Wal::new(Some(Arc::clone(&keyring)), 4096, Tuning::default());
    assert_eq!(second.size(&base, &Db::default()).unwrap(), at(3));
    second.truncate(&base, &Db::default(), 0).unwrap();
    second.write(&base, &Db::default(), &wal_header(6), 0).unwrap();
    write_frame(&mut second, &base, &Db::default(), 1, &frame(8, 9, 6, 0xee));
    let mut db = Db { locks: 1, salts: Some([6; 8]), pages: vec![8, 10], ..Db::default() };
    write_frame(&mut first, &base, &db, 2, &frame(10, 9, 6, 0xef));
    for wal in [&mut first, &mut second] {
        for (number, fill) in [(1, 0xee), (2, 0xef)] {
            let (filled, got) = read(wal, &base, &mut db, at(number) + 24, PAGE);
            assert_eq!((filled.unwrap(), got), (Filled::Full, vec![fill; PAGE]), "{number}");
        }
    }
}

/// A log that was left behind before the DEK was regenerated.
#[test]
fn a_log_of_a_retired_key_is_read_and_goes_on_under_the_current_one() {
    let (old, new) = keyring_and_next();
    let (base, mut db) = (Memory::default(), Db::default());
    let mut wal = Wal::new(Some(Arc::clone(&old)), 1, Tuning::default());
    wal.write(&base, &db, &wal_header(5), 0).unwrap();
    write_frame(&mut wal, &base, &db, 1, &frame(3, 9, 5, 0xaa));
    let mut wal = Wal::new(Some(Arc::clone(&new)), 1, Tuning::default());
    write_frame(&mut wal, &base, &db, 2, &frame(4, 9, 5, 0xbb));
    let mut wal = Wal::new(Some(new), 1, Tuning::default());
    for (number, bytes) in [(1, frame(3, 9, 5, 0xaa)), (2, frame(4, 9, 5, 0xbb))] {
        let (filled, got) = read(&mut wal, &base, &mut db, at(number), FRAME);
        assert_eq!((filled.unwrap(), got), (Filled::Full, bytes), "frame {number}");
    }
    let mut wal = Wal::new(Some(old), 1, Tuning::default());
    let (filled, got) = read(&mut wal, &base, &mut db, at(2), FRAME);
    assert_eq!((filled.unwrap(), got), (Filled::Full, vec![0; FRAME]), "of a key it does not have");
}

#[test]
fn a_log_of_another_database_counts_as_empty() {
    let (base, ..) = two_frames(1);
    let (mut wal, mut db) = (Wal::new(Some(keyring()), 1, Tuning::default()), Db::default());
    assert!(wal.is_foreign(&base).unwrap());
    assert_eq!(wal.size(&base, &db).unwrap(), 0);
    let (filled, got) = read(&mut wal, &base, &mut db, 0, WAL_HEADER);
    assert_eq!((filled.unwrap(), got), (Filled::Short, vec![0; WAL_HEADER]));
    assert_eq!(wal.recovered, None);
    assert_eq!(wal.demand(&base, View::default()).unwrap().pages, 0);
}

#[test]
fn sizes_map_there_and_back() {
    for grain in [1, 512, 4096, 65536] {
        for page_size in [1024, 4096, 65536] {
            let layout = Layout { page_size, grain, log: LogId::default() };
            let frame = layout.frame() as u64;
            for frames in 0..4 {
                for part in [0, 1, 24, 500, frame - 1] {
                    let size = WAL_HEADER as u64 + frames * frame + part;
                    let physical = layout.physical_size(size);
                    assert_eq!(layout.logical_size(physical), size, "{grain} {page_size}");
                }
                // As a write leaves it: the last record is not filled up.
                let written = layout.position(FrameNo(frames as u32 + 1)) + layout.record() as u64;
                let size = WAL_HEADER as u64 + (frames + 1) * frame;
                assert_eq!(layout.logical_size(written), size, "{grain} {page_size} {frames}");
            }
            assert_eq!(layout.logical_size(0), 0);
        }
    }
}

/// On media without powersafe overwrite, whatever a torn write spoils is its own.
#[test]
fn no_two_records_share_what_a_torn_write_spoils() {
    for grain in [512, 4096, 65536] {
        let layout = Layout { page_size: 1024, grain, log: LogId::default() };
        for frame in FrameNo::FIRST.to(FrameNo(4)) {
            let end = layout.position(frame) + layout.record() as u64;
            let last = (end - 1) / grain as u64;
            assert!(last < layout.position(frame.next()) / grain as u64, "{grain} {frame:?}");
        }
        assert!(
            layout.sector() >= grain && layout.position(FrameNo::FIRST) >= 2 * grain as u64,
            "{grain}"
        );
    }
}

#[test]
fn a_header_that_is_none_is_refused_or_ignored() {
    for (at, value) in [
        (0, 1),
        (FORMAT_AT + 3, 2),
        (PAGE_SIZE_AT + 3, 1),
        (PAGE_SIZE_AT + 2, 0),
        (PAGE_SIZE_AT, 1),
        (GRAIN_AT, 0xff),
        (GRAIN_AT + 2, 3),
        (FILE_ID_AT, 0),
    ] {
        let (base, keyring, _) = two_frames(1);
        let good = base.0.borrow()[at];
        base.0.borrow_mut()[at] = good ^ (value | 1);
        let (mut wal, mut db) = (Wal::new(Some(keyring), 1, Tuning::default()), Db::default());
        let (filled, got) = read(&mut wal, &base, &mut db, 0, WAL_HEADER);
        assert!(filled.is_ok(), "byte {at}");
        assert_eq!(got, vec![0; WAL_HEADER], "byte {at}");
    }
    let (base, keyring, mut wal) = two_frames(1);
    let db = Db::default();
    for page_size in [0_u32, 100, 3000, 131_072] {
        let mut header = wal_header(6);
        header[WAL_PAGE_SIZE_AT..12].copy_from_slice(&page_size.to_be_bytes());
        assert!(wal.write(&base, &db, &header, 0).is_err(), "page size {page_size}");
    }
    assert!(wal.write(&base, &db, &[1; 8], 8).is_err(), "part of a WAL header");
    assert!(Wal::new(None, 1, Tuning::default()).write(&base, &db, &wal_header(6), 0).is_err());
    assert!(
        Wal::new(Some(keyring), 1, Tuning::default())
            .write(&Memory::default(), &db, &[1; 24], 32)
            .is_err()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 200 }))]
    /// Whatever is written whole, rewritten in part, cut and begun again reads as in a plain file.
    #[test]
    fn reads_as_a_plain_file_does(
        steps in proptest::collection::vec((0..5_u8, 0..6_u64, 1..=255_u8), 1..40),
        grain in prop_oneof![Just(1_usize), Just(512), Just(4096)],
        tuning in proptest::sample::select(&TUNINGS[..]),
    ) {
        let (base, model, keyring) = (Memory::default(), Memory::default(), keyring());
        let mut wal = Wal::new(Some(Arc::clone(&keyring)), grain, tuning);
        let mut db = Db::default();
        wal.write(&base, &db, &wal_header(5), 0).unwrap();
        model.write(&wal_header(5), 0).unwrap();
        let mut frames = 0;
        for (kind, pick, fill) in steps {
            let known = 1 + pick % frames.max(1);
            match kind {
                0 | 1 => {
                    frames += 1;
                    let bytes = frame(u32::from(fill), u32::from(kind), 5, fill);
                    write_frame(&mut wal, &base, &db, frames, &bytes);
                    model.write(&bytes, at(frames)).unwrap();
                }
                2 if frames > 0 => {
                    wal.write(&base, &db, &[fill; PAGE], at(known) + 24).unwrap();
                    model.write(&[fill; PAGE], at(known) + 24).unwrap();
                }
                3 if frames > 0 => {
                    let bytes = frame(u32::from(fill), 0, 5, fill);
                    wal.write(&base, &db, &bytes[..24], at(known)).unwrap();
                    model.write(&bytes[..24], at(known)).unwrap();
                }
                4 => {
                    frames = pick.min(frames);
                    wal.truncate(&base, &db, at(frames + 1)).unwrap();
                    model.truncate(at(frames + 1)).unwrap();
                }
                _ => {}
            }
        }
        wal.before_sync(&base, &db).unwrap();
        let mut other = Wal::new(Some(keyring), 1, Tuning::default());
        for wal in [&mut wal, &mut other] {
            prop_assert_eq!(wal.size(&base, &db).unwrap(), model.size().unwrap());
            for number in 1..=frames {
                let (filled, got) = read(wal, &base, &mut db, at(number), FRAME);
                let mut want = vec![0; FRAME];
                model.read(&mut want, at(number)).unwrap();
                prop_assert_eq!(filled.unwrap(), Filled::Full);
                prop_assert_eq!(got, want);
            }
        }
    }
}

#[test]
fn no_byte_before_the_first_frame_can_be_changed() {
    let (good, keyring, _) = two_frames(1);
    let good = good.0.borrow().clone();
    for at in 0..1024 {
        let base = Memory::default();
        base.0.replace(good.clone());
        base.0.borrow_mut()[at] ^= 4;
        let (mut wal, mut db) =
            (Wal::new(Some(Arc::clone(&keyring)), 1, Tuning::default()), Db::default());
        let (filled, got) = read(&mut wal, &base, &mut db, 0, WAL_HEADER);
        assert!(filled.is_ok() && got == vec![0; WAL_HEADER], "byte {at}");
    }
}
