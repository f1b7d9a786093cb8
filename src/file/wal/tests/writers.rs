//! Writers that use a log as SQLite does, against what SQLite then has in it: `walFrames`,
//! `walRewriteChecksums`, rollback by giving the lock back, `sqlite3WalSavepointUndo`, recovery.

use std::cell::Cell;

use super::*;

/// How a call fails: before it did anything, half way, or after all of it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    Half,
    All,
}

/// Storage of which one call fails.
#[derive(Default)]
struct Disk {
    base: Memory,
    reads: Cell<u32>,
    writes: Cell<u32>,
    /// Calls until one fails, and how.
    fails: Cell<Option<(u32, Fault)>>,
}

impl Disk {
    /// How the call at hand fails, if it does.
    fn fault(&self) -> Option<Fault> {
        let (left, fault) = self.fails.get()?;
        self.fails.set(left.checked_sub(1).map(|left| (left, fault)));
        (left == 0).then_some(fault)
    }
}

impl Storage for Disk {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<bool> {
        self.reads.set(self.reads.get() + 1);
        if self.fault().is_some() { Err(Error::Base(10)) } else { self.base.read(buf, at) }
    }
    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.writes.set(self.writes.get() + 1);
        match self.fault() {
            None => return self.base.write(bytes, at),
            Some(Fault::Nothing) => {}
            Some(Fault::Half) => self.base.write(&bytes[..bytes.len() / 2], at)?,
            Some(Fault::All) => self.base.write(bytes, at)?,
        }
        Err(Error::Base(10))
    }
    fn truncate(&self, size: u64) -> Result<()> {
        self.base.truncate(size)
    }
    fn size(&self) -> Result<u64> {
        if self.fault().is_some() { Err(Error::Base(10)) } else { self.base.size() }
    }
    fn sync(&self) -> Result<()> {
        Ok(())
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
    /// The first frame, from 1, whose page was overwritten.
    overwritten: Option<u64>,
    writing: bool,
}

struct World {
    disk: Disk,
    keyring: Arc<Keyring>,
    grain: usize,
    tuning: Tuning,
    /// `locking_mode=EXCLUSIVE`: one writer, which takes no lock, and no wal-index.
    exclusive: bool,
    salt: u8,
    /// The frames that are committed.
    committed: Vec<Vec<u8>>,
    /// What a commit that failed would have made of them.
    attempted: Option<Vec<Vec<u8>>>,
    writers: Vec<Writer>,
}

impl World {
    fn new(keyring: Arc<Keyring>, grain: usize, tuning: Tuning, exclusive: bool) -> Self {
        let writer = |_| Writer {
            wal: Wal::new(Some(Arc::clone(&keyring)), grain, tuning),
            db: Db::default(),
            own: Vec::new(),
            overwritten: None,
            writing: false,
        };
        let writers = (0..if exclusive { 1 } else { 2 }).map(writer).collect();
        let (committed, attempted) = (Vec::new(), None);
        let disk = Disk::default();
        Self { disk, keyring, grain, tuning, exclusive, salt: 5, committed, attempted, writers }
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

    /// Whoever else is writing gives its lock back.
    fn begin(&mut self, who: usize) {
        if !self.writers[who].writing {
            (0..self.writers.len()).for_each(|other| self.roll_back(other));
            self.lock(who);
            self.lock(who);
            self.writers[who].writing = true;
        }
    }

    /// No call on the log tells of it.
    fn roll_back(&mut self, who: usize) {
        let writer = &mut self.writers[who];
        (writer.own, writer.overwritten, writer.writing) = (Vec::new(), None, false);
    }

    fn last(&self, who: usize) -> u64 {
        (self.committed.len() + self.writers[who].own.len()) as u64
    }

    /// What `frame`, from 1, is to writer `who`.
    fn frame(&mut self, who: usize, frame: u64) -> &mut Vec<u8> {
        let index = frame as usize - 1;
        match index.checked_sub(self.committed.len()) {
            Some(own) => &mut self.writers[who].own[own],
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
        let Writer { wal, db, own, .. } = &mut self.writers[who];
        // Where a write fails, all of it is taken back.
        own.push(bytes.clone());
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
        writer.own.truncate(kept);
        writer.overwritten = writer.overwritten.filter(|&first| first <= all);
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
            Ok(()) if fill % 2 == 0 => wal.before_sync(&self.disk, db),
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
        self.expect(who, from, &before.to_vec())?;
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

    /// What a process that opens the log after a crash finds committed.
    fn check_recovery(&self, what: &dyn std::fmt::Debug) {
        let fails = self.disk.fails.take();
        let (salt, frames) = self.recover();
        self.disk.fails.set(fails);
        let attempted = self.attempted.as_ref() == Some(&frames);
        let good = if salt == self.salt { frames == self.committed } else { frames.is_empty() };
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
        let (mut frames, mut last) = (Vec::<Vec<u8>>::new(), 0);
        for number in 1..=(size - WAL_HEADER as u64) / FRAME as u64 {
            let mut frame = vec![1; FRAME];
            assert_eq!(wal.read(&self.disk, &db, &mut frame, at(number)).unwrap(), Filled::Full);
            let before = frames.last().map_or(&header[24..], |frame| &frame[16..24]);
            if frame[8..16] != [salt; 8] || frame[16..24] != checksum(before, &frame) {
                break;
            }
            frames.push(frame);
            if frames[frames.len() - 1][4..8] != [0; 4] {
                last = frames.len();
            }
        }
        frames.truncate(last);
        (salt, frames)
    }
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
    ) {
        let (gcm, ctr) = keyring_and_next();
        let keyring = if newer { ctr } else { gcm };
        let mut world = World::new(keyring, grain, tuning, exclusive);
        for step in steps {
            world.take(step).unwrap();
            world.check_recovery(&step);
        }
        for who in 0..world.writers.len() {
            world.read_pages(who, 1).unwrap();
        }
    }
}

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

/// Guarantee 9: each call of the base fails once. SQLite is told of it before its commit is over, or
/// it does not matter; what it then does works.
#[test]
fn each_call_fails_once() {
    for tuning in TUNINGS {
        for fault in [Fault::Nothing, Fault::Half, Fault::All] {
            for (grain, exclusive) in [(1, false), (4096, true)] {
                let met = (0..)
                    .take_while(|&call| one_call_fails(grain, tuning, exclusive, (call, fault)));
                assert!(met.count() > 60, "{tuning:?} {fault:?} {grain}");
            }
        }
    }
}

/// Whether there were so many calls.
fn one_call_fails(grain: usize, tuning: Tuning, exclusive: bool, fault: (u32, Fault)) -> bool {
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

/// T6: what it takes to overwrite pages of a transaction, and to chain its checksums anew.
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
        // What lies there looks right: the frames of a transaction that was rolled back.
        world.commit(0, 1).unwrap();
        (0..10).for_each(|page| world.append(0, page, 0, 2).unwrap());
        let Writer { wal, db, .. } = &mut world.writers[0];
        wal.before_sync(&world.disk, db).unwrap();
        world.roll_back(0);

        (0..4).for_each(|page| world.append(0, page, 0, 3).unwrap());
        world.disk.fails.set(Some((0, Fault::Nothing)));
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
        // What was overwritten above is not of a transaction: mend it.
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
        for then in ["read", "size", "sync", "truncate", "write", "close"] {
            let mut world = World::new(keyring(), grain, tuning, false);
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
