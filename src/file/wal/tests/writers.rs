//! Writers that use a log as SQLite does, against what SQLite then has in it: `walFrames`,
//! `walRewriteChecksums`, rollback by giving the lock back, `sqlite3WalSavepointUndo`, recovery.

mod cases;

use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;
use crate::db::tests::faulty::{Call, Fault, Faults, Faulty};

/// How a write fails: before it did anything, half way, or after all of it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Nothing,
    Half,
    All,
}

/// Fails one read, write or look at the size.
#[derive(Default)]
struct OneFails {
    reads: Cell<u32>,
    writes: Cell<u32>,
    /// Calls until one fails, and how.
    fails: Cell<Option<(u32, Extent)>>,
}

type Disk = Faulty<OneFails>;

impl Faults for OneFails {
    fn before(&self, _: &Memory, call: Call<'_>) -> Option<Fault> {
        match call {
            Call::Read => self.reads.set(self.reads.get() + 1),
            Call::Write(..) => self.writes.set(self.writes.get() + 1),
            Call::Size => {}
            Call::Truncate | Call::Sync => return None,
        }
        let (left, extent) = self.fails.get()?;
        self.fails.set(left.checked_sub(1).map(|left| (left, extent)));
        (left == 0).then(|| match extent {
            Extent::Nothing => Fault::IO,
            Extent::Half => Fault::half(call),
            Extent::All => Fault { written: usize::MAX, ..Fault::IO },
        })
    }
}

/// A checksum over what came before, a frame header's first bytes and its page. FNV-1a.
fn checksum(before: &[u8], frame: &[u8]) -> [u8; 8] {
    let bytes = before.iter().chain(&frame[..8]).chain(&frame[FRAME_HEADER..]);
    let fnv = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.fold(0xcbf2_9ce4_8422_2325_u64, fnv).to_be_bytes()
}

struct Writer {
    wal: Wal,
    db: Db,
    /// The frames of its transaction, as SQLite wants them in the log.
    own: Vec<Vec<u8>>,
    /// Frames that a savepoint took back, by number: they lie in the log until others do.
    taken_back: BTreeMap<u64, Vec<u8>>,
    /// The first frame, from 1, whose page was overwritten.
    overwritten: Option<u64>,
    writing: bool,
}

struct World {
    disk: Disk,
    keyring: Arc<Keyring>,
    grain: usize,
    tuning: Tuning,
    /// SQLite before 3.50, which does not forget `overwritten` where a savepoint takes back that
    /// frame.
    old: bool,
    /// Whether logs are told when the lock is given back under which they are written.
    tells: bool,
    /// `locking_mode=EXCLUSIVE`: one writer, which takes no lock, and no wal-index.
    exclusive: bool,
    salt: u8,
    /// The frames that are committed.
    committed: Vec<Vec<u8>>,
    /// The pages as a failed commit would have left them.
    attempted: Option<Vec<Vec<u8>>>,
    writers: Vec<Writer>,
}

impl World {
    fn new(keyring: Arc<Keyring>, grain: usize, tuning: Tuning, exclusive: bool) -> Self {
        let writer = |_| Writer {
            wal: Wal::new(Some(Arc::clone(&keyring)), grain, tuning),
            db: Db::default(),
            own: Vec::new(),
            taken_back: BTreeMap::new(),
            overwritten: None,
            writing: false,
        };
        let writers = (0..if exclusive { 1 } else { 2 }).map(writer).collect();
        let (committed, attempted) = (Vec::new(), None);
        let disk = Disk::default();
        let (salt, old, tells) = (5, false, true);
        Self {
            disk,
            keyring,
            grain,
            tuning,
            old,
            tells,
            exclusive,
            salt,
            committed,
            attempted,
            writers,
        }
    }

    /// Writer `who` takes a lock, and sees the wal-index.
    fn lock(&mut self, who: usize) {
        let writer = &mut self.writers[who];
        if !self.exclusive {
            writer.db.locks += 1;
            writer.db.salts = Some([self.salt; 8]);
            writer.db.pages = self.committed.iter().map(|frame| number(frame)).collect();
        }
    }

    /// Any other writer releases its lock.
    fn begin(&mut self, who: usize) {
        if !self.writers[who].writing {
            (0..self.writers.len()).for_each(|other| self.roll_back(other));
            self.lock(who);
            self.lock(who);
            self.writers[who].writing = true;
        }
    }

    /// No call on the log tells of it, and a VFS above may keep the lock's end to itself.
    fn roll_back(&mut self, who: usize) {
        let writer = &mut self.writers[who];
        (writer.own, writer.overwritten, writer.writing) = (Vec::new(), None, false);
        writer.taken_back.clear();
        if self.tells && !self.exclusive {
            writer.wal.lock_given_back(&writer.db);
        }
    }

    fn last(&self, who: usize) -> u64 {
        (self.committed.len() + self.writers[who].own.len()) as u64
    }

    /// The content of `frame`, from 1, for writer `who`.
    fn frame(&mut self, who: usize, frame: u64) -> &mut Vec<u8> {
        let index = frame as usize - 1;
        match index.checked_sub(self.committed.len()) {
            Some(own) if own < self.writers[who].own.len() => &mut self.writers[who].own[own],
            Some(_) => self.writers[who].taken_back.get_mut(&frame).unwrap(),
            None => &mut self.committed[index],
        }
    }

    fn checksum_of(&mut self, who: usize, frame: u64) -> [u8; 8] {
        let bytes = if frame == 0 {
            wal_header(self.salt)[24..].to_vec()
        } else {
            self.frame(who, frame)[16..24].to_vec()
        };
        bytes.try_into().unwrap()
    }

    /// `walFrames` for one page.
    fn append(&mut self, who: usize, page: u32, commit: u32, fill: u8) -> Result<()> {
        self.begin(who);
        let last = self.last(who);
        if last == 0 {
            let Writer { wal, db, .. } = &mut self.writers[who];
            wal.write(&self.disk, db, &wal_header(self.salt), 0)?;
        }
        let mut bytes = frame(page, commit, self.salt, fill);
        let sum = checksum(&self.checksum_of(who, last), &bytes);
        bytes[16..24].copy_from_slice(&sum);
        if self.writers[who].overwritten.is_some() {
            bytes[8..24].fill(0);
        }
        let Writer { wal, db, own, taken_back, .. } = &mut self.writers[who];
        // Where a write fails, all of it is taken back.
        own.push(bytes.clone());
        taken_back.remove(&(last + 1));
        wal.write(&self.disk, db, &bytes[..FRAME_HEADER], at(last + 1))?;
        wal.write(&self.disk, db, &bytes[FRAME_HEADER..], at(last + 1) + 24)?;
        self.index(who);
        Ok(())
    }

    /// `walIndexAppend`.
    fn index(&mut self, who: usize) {
        let writer = &mut self.writers[who];
        if !self.exclusive {
            let frames = self.committed.iter().chain(&writer.own);
            writer.db.pages = frames.map(|frame| number(frame)).collect();
        }
    }

    fn overwrite(&mut self, who: usize, pick: u64, fill: u8) -> Result<()> {
        let (all, last) = (self.committed.len() as u64, self.last(who));
        if all == last {
            return Ok(());
        }
        let number = all + 1 + pick % (last - all);
        let Writer { wal, db, overwritten, .. } = &mut self.writers[who];
        *overwritten = Some(overwritten.map_or(number, |first| first.min(number)));
        wal.write(&self.disk, db, &[fill; PAGE], at(number) + 24)?;
        self.frame(who, number)[FRAME_HEADER..].fill(fill);
        Ok(())
    }

    /// `sqlite3WalSavepointUndo`.
    fn undo(&mut self, who: usize, pick: u64) {
        let kept = pick as usize % (self.writers[who].own.len() + 1);
        let all = (self.committed.len() + kept) as u64;
        let writer = &mut self.writers[who];
        let taken_back = (all + 1..).zip(writer.own.split_off(kept));
        writer.taken_back.extend(taken_back);
        if !self.old {
            writer.overwritten = writer.overwritten.filter(|&first| first <= all);
        }
        self.index(who);
    }

    /// The last frame of a transaction, and what follows it.
    fn commit(&mut self, who: usize, fill: u8) -> Result<()> {
        self.begin(who);
        let done = self.append(who, u32::from(fill), 9, fill);
        let done = done.and_then(|()| self.rewrite_checksums(who));
        let Writer { wal, db, own, .. } = &mut self.writers[who];
        let all = self.committed.iter().chain(&*own).cloned().collect();
        let done = match done {
            Ok(()) if fill.is_multiple_of(2) => wal.before_sync(&self.disk, db),
            done => done,
        };
        if done.is_ok() {
            (self.committed, self.attempted) = (all, None);
            self.roll_back(who);
        } else if own.last().is_some_and(|frame| frame[4..8] != [0; 4]) {
            self.attempted = Some(all);
        }
        done
    }

    fn rewrite_checksums(&mut self, who: usize) -> Result<()> {
        let Some(first) = self.writers[who].overwritten else { return Ok(()) };
        let from = if first == 1 { 24 } else { at(first - 1) + 16 };
        let mut before = self.checksum_of(who, first - 1);
        self.expect(who, from, before.as_ref())?;
        for number in first..=self.last(who) {
            let mut frame = self.frame(who, number).clone();
            self.expect(who, at(number), &frame)?;
            frame[8..16].fill(self.salt);
            before = checksum(&before, &frame);
            frame[16..24].copy_from_slice(&before);
            *self.frame(who, number) = frame.clone();
            let Writer { wal, db, .. } = &mut self.writers[who];
            wal.write(&self.disk, db, &frame[..FRAME_HEADER], at(number))?;
        }
        Ok(())
    }

    /// Reads what must be `want`.
    fn expect(&mut self, who: usize, from: u64, want: &[u8]) -> Result<()> {
        let mut got = vec![1; want.len()];
        let Writer { wal, db, .. } = &mut self.writers[who];
        assert_eq!(wal.read(&self.disk, db, &mut got, from)?, Filled::Full, "at {from}");
        assert!(got == want, "at {from}: {:?}...", &got[..got.len().min(32)]);
        Ok(())
    }

    /// Pages of frames, each `step`th, as a reader or checkpoint asks for them.
    fn read_pages(&mut self, who: usize, step: usize) -> Result<()> {
        if !self.writers[who].writing {
            self.lock(who);
        }
        for number in (1..=self.last(who)).step_by(step) {
            let page = self.frame(who, number)[FRAME_HEADER..].to_vec();
            self.expect(who, at(number) + 24, &page)?;
        }
        Ok(())
    }

    /// A checkpoint: the log is synced, and starts over with the next frame.
    fn restart(&mut self, who: usize) -> Result<()> {
        if self.writers.iter().any(|writer| writer.writing) {
            return Ok(());
        }
        self.read_pages(who, 1)?;
        let Writer { wal, db, .. } = &mut self.writers[who];
        wal.before_sync(&self.disk, db)?;
        self.salt = self.salt.wrapping_add(1);
        (self.committed, self.attempted) = (Vec::new(), None);
        Ok(())
    }

    fn step(&mut self, (kind, pick, fill): Step) -> Result<()> {
        let who = pick as usize % self.writers.len();
        let writing = self.writers.iter().position(|writer| writer.writing);
        let at_work = writing.unwrap_or(who);
        match kind {
            0 | 1 => self.append(at_work, u32::from(fill), 0, fill),
            2 => (0..20).try_for_each(|_| self.append(at_work, u32::from(fill), 0, fill)),
            3 | 4 => self.overwrite(at_work, pick, fill),
            5 | 6 => self.commit(at_work, fill),
            7 => {
                self.undo(at_work, pick);
                Ok(())
            }
            8 => {
                self.roll_back(at_work);
                Ok(())
            }
            9 => self.begin_other(at_work),
            10 => self.restart(who),
            _ => self.read_pages(who, 1 + pick as usize % 3),
        }
    }

    /// Another writer than `who`, whose transaction is rolled back.
    fn begin_other(&mut self, who: usize) -> Result<()> {
        self.roll_back(who);
        self.append((who + 1) % self.writers.len(), 77, 0, 77)
    }

    /// A step as SQLite takes it: after an error it rolls back.
    fn take(&mut self, step: Step) -> Result<()> {
        let done = self.step(step);
        if done.is_err() {
            (0..self.writers.len()).for_each(|who| self.roll_back(who));
        }
        done
    }

    /// The committed state for a process that opens the log after a crash.
    fn check_recovery(&self, what: &dyn std::fmt::Debug) {
        let fails = self.disk.fails.take();
        let (salt, frames) = self.recover();
        self.disk.fails.set(fails);
        let attempted = self.attempted.as_ref().map(|all| valid(salt, all)) == Some(frames.clone());
        let committed = valid(self.salt, &self.committed);
        let good = if salt == self.salt { frames == committed } else { frames.is_empty() };
        let started_over = self.committed.is_empty() && salt != self.salt;
        assert!(good || attempted || started_over, "{what:?}: {} frames", frames.len());
    }

    /// `walIndexRecover`: the salt of the log, and its frames up to the last commit.
    fn recover(&self) -> (u8, Vec<Vec<u8>>) {
        let mut wal = Wal::new(Some(Arc::clone(&self.keyring)), self.grain, self.tuning);
        let db = Db::default();
        let size = wal.size(&self.disk, &db).unwrap();
        let mut header = vec![1; WAL_HEADER];
        let filled = wal.read(&self.disk, &db, &mut header, 0).unwrap();
        let salt = header[WAL_SALTS_AT];
        if filled == Filled::Short || header != wal_header(salt) {
            return (0, Vec::new());
        }
        let mut frames = Vec::new();
        for number in 1..=(size - WAL_HEADER as u64) / FRAME as u64 {
            let mut frame = vec![1; FRAME];
            assert_eq!(wal.read(&self.disk, &db, &mut frame, at(number)).unwrap(), Filled::Full);
            frames.push(frame);
            if valid_before_commit(salt, &frames) < frames.len() {
                break;
            }
        }
        (salt, valid(salt, &frames))
    }
}

/// Of a log's first frames, how many have the salts and checksums that recovery wants.
fn valid_before_commit(salt: u8, frames: &[Vec<u8>]) -> usize {
    let header = wal_header(salt);
    let mut before = &header[24..];
    for (index, frame) in frames.iter().enumerate() {
        if frame[8..16] != [salt; 8] || frame[16..24] != checksum(before, frame) {
            return index;
        }
        before = &frame[16..24];
    }
    frames.len()
}

/// The result of recovering a log with these frames.
fn valid(salt: u8, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut frames = frames[..valid_before_commit(salt, frames)].to_vec();
    let last = frames.iter().rposition(|frame| frame[4..8] != [0; 4]);
    frames.truncate(last.map_or(0, |last| last + 1));
    frames
}

/// Kind, pick and fill.
type Step = (u8, u64, u8);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 400 }))]
    /// Whatever writers do, each reads what it wrote and what was committed, and so does recovery.
    #[test]
    fn a_log_is_what_sqlite_has_in_it(
        steps in proptest::collection::vec((0..14_u8, 0..1000_u64, 1..=255_u8), 1..60),
        grain in prop_oneof![Just(1_usize), Just(512), Just(4096)],
        tuning in proptest::sample::select(&TUNINGS[..]),
        (exclusive, newer) in (any::<bool>(), any::<bool>()),
        (old, tells) in (any::<bool>(), any::<bool>()),
    ) {
        let (gcm, ctr) = keyring_and_next();
        let keyring = if newer { ctr } else { gcm };
        let mut world = World::new(keyring, grain, tuning, exclusive);
        (world.old, world.tells) = (old, tells);
        for step in steps {
            world.take(step).unwrap();
            world.check_recovery(&step);
        }
        for who in 0..world.writers.len() {
            world.read_pages(who, 1).unwrap();
        }
    }
}
