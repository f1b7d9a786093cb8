//! What somebody without the key can do to a write-ahead log that a killed process left behind, and
//! what must follow.
//!
//! The measure is plain SQLite: where a record fails, the log ends, and the database must show,
//! page for page, what the plain one shows whose log was cut there. Pages that were tampered with
//! in the database file must not be handed out, and verification must name them. Each row is looked
//! at as it was left, after one more transaction, and after that was checkpointed.
//!
//! `SQLITE_TDE_FULL=1` flips every byte; otherwise a sample.

use rusqlite::ErrorCode;
use sqlite_tde::{Cipher, Error};
use sqlite_tde_testkit::beside;
use sqlite_tde_testkit::process::full;
use sqlite_tde_testkit::twin::{
    Files, Judge, Moment, Outcome, PAGE, PAGES_AT, Scan, TRAILER, Tally, Twin,
};

const CIPHERS: [Cipher; 3] = Cipher::ALL;

/// Of the log: our header, record 0, and where the frames begin.
const HEADER: usize = 512;
const LOG_ID: std::ops::Range<usize> = 44..60;
const HEADER_USED: usize = LOG_ID.end;
const RECORD_0: usize = 68 + TRAILER;
const FRAMES_AT: usize = 2 * HEADER;
const RECORD: usize = 24 + PAGE + TRAILER;

/// Of SQLite's log.
const PLAIN_HEADER: usize = 32;
const PLAIN_FRAME: usize = 24 + PAGE;

/// The place of `frame`'s record, from 1.
fn record(frame: usize) -> std::ops::Range<usize> {
    let at = FRAMES_AT + (frame - 1) * RECORD;
    at..at + RECORD
}

/// A database at several moments of its life, the last one when its process was killed.
struct Subject {
    twin: Twin,
    /// The log before the present one, with its database.
    older: Moment,
    /// The present log with frames of a transaction that was rolled back afterwards.
    rolled_back: Moment,
    /// The present log after its first commit.
    early: Moment,
    now: Moment,
    /// What SQL shows after each commit of the present log, from none on.
    commits: Vec<Scan>,
    frames: usize,
    /// Part of the present log is in the database file, too.
    checkpointed: bool,
}

const SHORT: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); CREATE INDEX i ON t(b);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12)
    INSERT INTO t SELECT i, 'first ' || i FROM n;
    INSERT INTO t VALUES(100, printf('%.1900c', 'x'));";
const UPDATE: &str = "UPDATE t SET b = b || printf('%.300c', 'y') WHERE a < 100;";

impl Subject {
    /// Where `checkpointed`, a part of the log is in the database too.
    fn new(cipher: Cipher, checkpointed: bool) -> Self {
        let twin = Twin::new(cipher, "WAL");
        twin.run(SHORT);
        let older = twin.moment();
        twin.run("PRAGMA wal_checkpoint(RESTART)");
        let mut seen = Vec::new();
        let mut commit = |sql: &str| {
            if !sql.is_empty() {
                twin.run(sql);
            }
            seen.push(twin.moment());
        };
        commit("");
        commit("INSERT INTO t VALUES(101, printf('%.900c', 'z')); ");
        let early = twin.moment();
        commit("UPDATE t SET b = 'second' WHERE a < 5");
        if checkpointed {
            twin.run_in_second("BEGIN; SELECT * FROM t;");
            twin.run("PRAGMA wal_checkpoint(PASSIVE)");
        }
        // The second update overwrites frames: what follows them has no salts until a commit.
        twin.run(&format!("BEGIN; DELETE FROM t WHERE a = 100; {UPDATE} {UPDATE}"));
        let rolled_back = twin.moment();
        twin.run("ROLLBACK");
        commit(&format!("BEGIN; {UPDATE} {UPDATE} COMMIT"));
        commit("DELETE FROM t WHERE a BETWEEN 7 AND 9");
        commit("CREATE TABLE u(x); INSERT INTO u VALUES(printf('%.2500c', 'u'))");
        twin.run(&format!("BEGIN; {UPDATE} {UPDATE}"));
        let now = twin.moment();
        let frames = (now.plain.wal().len() - PLAIN_HEADER) / PLAIN_FRAME;
        let mut judge = Judge::new(&twin);
        let commits = seen.iter().map(|moment| judge.plain(&moment.plain).scan).collect();
        drop(judge);
        Self { twin, older, rolled_back, early, now, commits, frames, checkpointed }
    }

    /// The present files with another log.
    fn with_log(&self, change: impl FnOnce(&mut Vec<u8>)) -> Files {
        let mut files = self.now.sealed.clone();
        change(files.wal.as_mut().unwrap());
        files
    }

    /// The plain database whose log ends after `frames` frames.
    fn ends_after(&self, frames: usize) -> Files {
        let mut files = self.now.plain.clone();
        files.wal.as_mut().unwrap().truncate(PLAIN_HEADER + frames * PLAIN_FRAME);
        files
    }

    /// What the outcome `Same` over `plain` means for the data.
    fn name(&self, judge: &mut Judge, plain: &Files) -> &'static str {
        let scan = judge.plain(plain).scan;
        let all = judge.plain(&self.now.plain).scan;
        match self.commits.iter().position(|commit| *commit == scan) {
            _ if scan == all => "unharmed",
            Some(_) => "end of the log at an earlier commit",
            None => "end of the log within its checkpointed part, as in plain SQLite",
        }
    }
}

/// The log is cut, as SQLite sees it, before the record that was changed.
fn assert_ends(
    subject: &Subject,
    judge: &mut Judge,
    row: &str,
    files: &Files,
    frames: usize,
) -> &'static str {
    let plain = subject.ends_after(frames);
    match judge.judge(row, files, &plain) {
        Outcome::Same => subject.name(judge, &plain),
        // The database has a page 1 of a frame that is no longer in the log.
        Outcome::Refused(Error::LogOutdated | Error::LogCut { .. }) if subject.checkpointed => {
            "log refused"
        }
        other => panic!("{row}: {other:?}"),
    }
}

/// How many frames count after byte `at` of the log was changed.
fn frames_before(at: usize) -> usize {
    match at {
        0..FRAMES_AT => 0,
        _ => (at - FRAMES_AT) / RECORD,
    }
}

#[test]
fn the_twins_are_alike() {
    for (cipher, checkpointed) in [(CIPHERS[0], false), (CIPHERS[1], true)] {
        let subject = Subject::new(cipher, checkpointed);
        let now = &subject.now;
        assert_eq!((now.sealed.wal().len() - FRAMES_AT) / RECORD, subject.frames);
        assert!(subject.frames > 40, "{} frames", subject.frames);
        assert!(subject.rolled_back.sealed.wal() != now.sealed.wal());
        let frames = subject.rolled_back.plain.wal()[PLAIN_HEADER..].chunks_exact(PLAIN_FRAME);
        assert!(frames.filter(|frame| frame[8..24] == [0; 16]).count() > 3, "without salts");
        let mut judge = Judge::new(&subject.twin);
        for (name, moment) in [
            ("older", &subject.older),
            ("early", &subject.early),
            ("now", now),
            ("rolled back", &subject.rolled_back),
        ] {
            let outcome = judge.judge(name, &moment.sealed, &moment.plain);
            assert!(matches!(outcome, Outcome::Same), "{name}: {outcome:?}");
        }
        let last = judge.plain(&now.plain).scan;
        assert_eq!(subject.commits.last(), Some(&last));
        assert!((1..subject.commits.len()).all(|n| subject.commits[n] != subject.commits[n - 1]));
    }
}

#[test]
fn every_flipped_byte_of_the_log_ends_it_there() {
    for (cipher, checkpointed) in [(CIPHERS[0], false), (CIPHERS[0], true), (CIPHERS[1], true)] {
        let subject = Subject::new(cipher, checkpointed);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        let len = subject.now.sealed.wal().len();
        for at in sample(len, if checkpointed { 23 } else { 11 }) {
            let bad = subject.with_log(|log| log[at] ^= 1 << (at % 8));
            let row = format!("byte {at} of the log");
            let frames = frames_before(at);
            tally.add(assert_ends(&subject, &mut judge, &row, &bad, frames));
        }
        let name = format!("log bytes, {}, checkpointed {checkpointed}", cipher.name());
        if !checkpointed {
            tally.assert_none("end of the log within its checkpointed part, as in plain SQLite");
        }
        tally.print(&name);
    }
}

/// Every bit of the header, of record 0, and of the parts of a frame that are not page content.
#[test]
fn every_flipped_bit_of_some_records_ends_the_log_there() {
    for cipher in CIPHERS {
        let subject = Subject::new(cipher, false);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        let last = record(subject.frames);
        let places = (0..HEADER_USED)
            .chain(HEADER..HEADER + RECORD_0)
            .chain(record(3).start..record(3).start + 24)
            .chain(record(3).end - TRAILER..record(3).end)
            .chain(last.end - TRAILER..last.end);
        for bit in places.flat_map(|at| at * 8..at * 8 + 8).step_by(if full() { 1 } else { 5 }) {
            let bad = subject.with_log(|log| log[bit / 8] ^= 1 << (bit % 8));
            let row = format!("bit {bit} of the log");
            let frames = frames_before(bit / 8);
            tally.add(assert_ends(&subject, &mut judge, &row, &bad, frames));
        }
        tally.print(&format!("log bits, {}", cipher.name()));
    }
}

/// Byte numbers: all near the boundaries of records, and of the rest every `step`th, or all.
fn sample(len: usize, step: usize) -> impl Iterator<Item = usize> {
    (0..len).filter(move |&at| {
        let within = at.saturating_sub(FRAMES_AT) % RECORD;
        let boundary = at < HEADER_USED || at >= FRAMES_AT && (within == 0 || within == RECORD - 1);
        full() || boundary || at % (step * 17) == 0
    })
}

#[test]
fn a_log_cut_anywhere_ends_there() {
    for checkpointed in [false, true] {
        let subject = Subject::new(CIPHERS[0], checkpointed);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        let mut cut = |len: usize, frames: usize| {
            let bad = subject.with_log(|log| log.truncate(len));
            tally.add(assert_ends(&subject, &mut judge, &format!("cut to {len}"), &bad, frames));
        };
        for len in [0, 1, 16, 43, HEADER, HEADER + 67, HEADER + RECORD_0, FRAMES_AT - 1, FRAMES_AT]
        {
            cut(len, 0);
        }
        for frame in (1..=subject.frames).step_by(if full() { 1 } else { 4 }) {
            let place = record(frame);
            for within in [1, 23, 24, RECORD / 2, RECORD - TRAILER, RECORD - 1] {
                cut(place.start + within, frame - 1);
            }
            cut(place.end, frame);
        }
        tally.print(&format!("log cut, checkpointed {checkpointed}"));
    }
}

/// What a tampered log must show.
enum Expect {
    /// What the plain log shows that is cut after so many frames.
    Ends(usize),
    /// What these plain files show. A documented limit: all of it is of another time.
    Replay(Files),
    /// Nothing: the log was written for another state of the database.
    Refused,
}
use Expect::{Ends, Refused, Replay};

fn named_attacks_on(subject: &Subject, other: &Subject) -> Vec<(String, Files, Expect)> {
    let log = subject.now.sealed.wal();
    let (older, rolled) = (subject.older.sealed.wal(), subject.rolled_back.sealed.wal());
    let early = subject.early.sealed.wal();
    let foreign = other.now.sealed.wal();
    let all = subject.frames;
    let with = |change: &dyn Fn(&mut Vec<u8>)| subject.with_log(|log| change(log));
    let put = |to: usize, bytes: &[u8]| with(&|log| log[record(to)].copy_from_slice(bytes));
    let page = |number: usize| {
        let at = PAGES_AT + (number - 1) * PAGE;
        subject.now.sealed.db[at..at + PAGE].to_vec()
    };
    let mut rows: Vec<(String, Files, Expect)> = Vec::new();
    for frame in (1..all).step_by(if full() { 1 } else { 3 }) {
        let next = record(frame + 1);
        let mut add = |attack: &str, files: Files, expect: Expect| {
            rows.push((format!("frame {frame}: {attack}"), files, expect));
        };
        add(
            "exchanged with the next",
            with(&|log| {
                let held = log[record(frame)].to_vec();
                log.copy_within(next.clone(), record(frame).start);
                log[next.clone()].copy_from_slice(&held);
            }),
            Ends(frame - 1),
        );
        add("repeated as the next", put(frame + 1, &log[record(frame)]), Ends(frame));
        add(
            "taken out, the rest moved up",
            with(&|log| drop(log.drain(record(frame)))),
            Ends(frame - 1),
        );
        add(
            "put in once more, the rest moved down",
            with(&|log| {
                let held = log[record(frame)].to_vec();
                log.splice(next.start..next.start, held);
            }),
            Ends(frame),
        );
        add("zeroed", put(frame, &[0; RECORD]), Ends(frame - 1));
        add(
            "zeroed with all that follows",
            with(&|log| log[record(frame).start..].fill(0)),
            Ends(frame - 1),
        );
        add("of another database", put(frame, &foreign[record(frame)]), Ends(frame - 1));
        add(
            "a page in its place",
            with(&|log| {
                log[record(frame).start + 24..][..PAGE].copy_from_slice(&page(2));
            }),
            Ends(frame - 1),
        );
        add(
            "marked with key version 2",
            with(&|log| log[record(frame).end - TRAILER + 3] = 2),
            Ends(frame - 1),
        );
        for (when, source) in [
            ("the log before", older),
            ("a transaction that was rolled back", rolled),
            ("the log when it was young", early),
        ] {
            // Where the present log did not reach, or had the same record then, nothing changes.
            match source.get(record(frame)) {
                Some(bytes) if *bytes != log[record(frame)] => {
                    add(&format!("of {when}"), put(frame, bytes), Ends(frame - 1));
                }
                _ => {}
            }
        }
    }
    let field =
        |at: usize, value: u32| with(&|log| log[at..at + 4].copy_from_slice(&value.to_be_bytes()));
    let mut add =
        |attack: &str, files: Files, expect: Expect| rows.push((attack.into(), files, expect));
    add("untouched", with(&|_| ()), Ends(all));
    for page_size in [0, 1, 512, 1000, 2048, 4096, 65536, 131_072, u32::MAX] {
        add(&format!("header: page size {page_size}"), field(20, page_size), Ends(0));
    }
    // Where records keep to sectors of 512, record 0 and the first frame lie where they are.
    for (grain, frames) in [(1, all), (512, 0), (1024, 0), (4096, 0), (65536, 0)] {
        add(&format!("header: grain {grain}"), field(24, grain), Ends(frames));
    }
    for grain in [0, 2, 256, 511, 131_072, 1 << 31, u32::MAX] {
        add(&format!("header: grain {grain}"), field(24, grain), Ends(0));
    }
    for format in [0, 2, u32::MAX] {
        add(&format!("header: format {format}"), field(16, format), Ends(0));
    }
    add(
        "header: file id of another",
        with(&|log| log[28..44].copy_from_slice(&foreign[28..44])),
        Ends(0),
    );
    for (what, id) in [("the log before", &older[LOG_ID]), ("another database", &foreign[LOG_ID])] {
        let put = |log: &mut Vec<u8>| log[LOG_ID].copy_from_slice(id);
        add(&format!("header: log id of {what}"), with(&put), Ends(0));
    }
    add("header: log id of zeros", with(&|log| log[LOG_ID].fill(0)), Ends(0));
    add(
        "header of the log before",
        with(&|log| log[..HEADER].copy_from_slice(&older[..HEADER])),
        Ends(0),
    );
    add(
        "record 0 of the log before",
        with(&|log| log[HEADER..FRAMES_AT].copy_from_slice(&older[HEADER..FRAMES_AT])),
        Ends(0),
    );
    add("header: its zeros set", with(&|log| log[HEADER_USED..HEADER].fill(0xff)), Ends(0));
    add(
        "padding behind record 0 set",
        with(&|log| log[HEADER + RECORD_0..FRAMES_AT].fill(0xff)),
        Ends(0),
    );
    add(
        "header and record 0 of another database",
        with(&|log| log[..FRAMES_AT].copy_from_slice(&foreign[..FRAMES_AT])),
        Ends(0),
    );
    add(
        "record 0 of another database",
        with(&|log| log[HEADER..FRAMES_AT].copy_from_slice(&foreign[HEADER..FRAMES_AT])),
        Ends(0),
    );
    add(
        "frame 1 as record 0",
        with(&|log| log.copy_within(record(1).start..record(1).start + RECORD_0, HEADER)),
        Ends(0),
    );
    add("a log of another database", with(&|log| *log = foreign.to_vec()), Ends(0));
    add("rubbish", with(&|log| log.fill(0xa5)), Ends(0));
    add("zeros", with(&|log| log.fill(0)), Ends(0));
    add("rubbish behind the end", with(&|log| log.extend([0xa5; 5000])), Ends(all));
    add(
        "its own first frames again behind the end",
        with(&|log| log.extend_from_within(FRAMES_AT..record(3).end)),
        Ends(all),
    );
    add(
        "frames of another database behind the end",
        with(&|log| log.extend(&foreign[FRAMES_AT..])),
        Ends(all),
    );
    add(
        "frames of the log before behind the end",
        with(&|log| log.extend(&older[FRAMES_AT..])),
        Ends(all),
    );
    add(
        "the database file as its log",
        with(&|log| log.clone_from(&subject.now.sealed.db)),
        Ends(0),
    );
    add("its plain twin's log", with(&|log| *log = subject.now.plain.wal().to_vec()), Ends(0));
    // Replay: all of a log of another time, or its first commits.
    let replay = |log: &[u8], plain: &[u8]| {
        let (mut ours, mut theirs) = (subject.now.sealed.clone(), subject.now.plain.clone());
        (ours.wal, theirs.wal) = (Some(log.to_vec()), Some(plain.to_vec()));
        (ours, Replay(theirs))
    };
    // Its pages are all in the database, but beside pages of the present log it belongs to no
    // state.
    let refuses = |replayed: Expect| if subject.checkpointed { Refused } else { replayed };
    let plain_older = subject.older.plain.wal();
    let (files, expect) = replay(older, plain_older);
    let expect = refuses(expect);
    add("the log before over the present database", files, expect);
    // Pages of its later frames are in the database.
    let (files, expect) = replay(early, subject.early.plain.wal());
    let expect = refuses(expect);
    add("the log when it was young", files, expect);
    // The page 1 that it brought to the database is not in it any more.
    let (files, _) = replay(&older[..record(2).end], plain_older);
    add("the log before, cut", files, Refused);
    let mixed = [&older[..FRAMES_AT], &log[FRAMES_AT..]].concat();
    let (files, expect) = replay(&mixed, &plain_older[..PLAIN_HEADER]);
    add("the present frames under the header of the log before", files, expect);
    let mixed = [&log[..FRAMES_AT], &older[FRAMES_AT..]].concat();
    add(
        "frames of the log before under the present header",
        with(&|log| log.clone_from(&mixed)),
        Ends(0),
    );
    let mut files = subject.older.sealed.clone();
    files.wal = subject.now.sealed.wal.clone();
    add("the database of yesterday under the present log", files, Refused);
    add("all of yesterday", subject.older.sealed.clone(), Replay(subject.older.plain.clone()));
    let mut gone = subject.now.sealed.clone();
    gone.wal = None;
    add("deleted", gone.clone(), Ends(0));
    gone.journal = subject.now.sealed.wal.clone();
    add("renamed to a journal", gone, Ends(0));
    let mut twice = subject.now.sealed.clone();
    twice.journal = twice.wal.clone();
    add("there again as a journal", twice, Ends(all));
    rows
}

#[test]
fn named_attacks() {
    for (cipher, checkpointed) in [(CIPHERS[0], false), (CIPHERS[0], true), (CIPHERS[1], true)] {
        let subject = Subject::new(cipher, checkpointed);
        let other = Subject::new(cipher, checkpointed);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        for (attack, files, expect) in named_attacks_on(&subject, &other) {
            let outcome = match expect {
                Ends(frames) => assert_ends(&subject, &mut judge, &attack, &files, frames),
                Replay(plain) => match judge.judge(&attack, &files, &plain) {
                    Outcome::Same => "accepted replay",
                    outcome => panic!("{attack}: {outcome:?}"),
                },
                Refused => match judge.judge(&attack, &files, &subject.now.plain) {
                    Outcome::Refused(Error::LogOutdated | Error::LogCut { .. }) => "log refused",
                    outcome => panic!("{attack}: {outcome:?}"),
                },
            };
            tally.add(outcome);
        }
        tally.print(&format!("named attacks, {}, checkpointed {checkpointed}", cipher.name()));
    }
}

/// The database file beside a log: what the log holds hides the damage, anything else is found.
#[test]
fn every_flipped_byte_of_the_database_is_hidden_by_the_log_or_found() {
    for (cipher, checkpointed) in [(CIPHERS[0], true), (CIPHERS[1], false)] {
        let subject = Subject::new(cipher, checkpointed);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        let len = subject.now.sealed.db.len();
        for at in (PAGES_AT..len).filter(|at| full() || at % 97 == 0 || at % PAGE == PAGE - TRAILER)
        {
            let mut files = subject.now.sealed.clone();
            files.db[at] ^= 1 << (at % 8);
            let row = format!("byte {at} of the database");
            tally.add(found_or_hidden(&mut judge, &row, &files, &subject.now.plain, at));
            // Without its log nothing hides the damage.
            files.wal = None;
            let row = format!("{row}, without its log");
            tally.add(found_or_hidden(&mut judge, &row, &files, &subject.ends_after(0), at));
        }
        tally.print(&format!("database bytes beside a log, {}", cipher.name()));
    }
}

/// The logs that an attacker puts beside a damaged database, with what the plain twin has then:
/// they are authentic, and say of many pages that the database never had them.
fn logs_that_hide(subject: &Subject) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let (log, plain) = (subject.now.sealed.wal(), subject.now.plain.wal());
    let (older, plain_older) = (subject.older.sealed.wal(), subject.older.plain.wal());
    let cut = |log: &[u8], plain: &[u8], frames: usize| {
        // One byte more than the header, or SQLite would not look at it.
        let mut ours = log[..FRAMES_AT + frames * RECORD].to_vec();
        ours.push(1);
        (ours, plain[..PLAIN_HEADER + frames * PLAIN_FRAME].to_vec())
    };
    let mut logs = vec![("all of the log before", older.to_vec(), plain_older.to_vec())];
    for (what, (ours, theirs)) in [
        ("the log cut to its header", cut(log, plain, 0)),
        ("the log cut after 5 frames", cut(log, plain, 5)),
        ("the header of the log before", cut(older, plain_older, 0)),
    ] {
        logs.push((what, ours, theirs));
    }
    logs
}

#[test]
fn no_log_makes_a_damaged_page_one_of_zeros() {
    let subject = Subject::new(CIPHERS[0], true);
    let mut judge = Judge::new(&subject.twin);
    let mut tally = Tally::default();
    for (what, log, plain_log) in logs_that_hide(&subject) {
        let mut plain = subject.now.plain.clone();
        plain.wal = Some(plain_log);
        for number in 1..=(subject.now.sealed.db.len() - PAGES_AT) / PAGE {
            let at = PAGES_AT + (number - 1) * PAGE + 7;
            let mut files = subject.now.sealed.clone();
            files.wal = Some(log.clone());
            files.db[at] ^= 1;
            let row = format!("{what}, page {number} damaged");
            tally.add(found_or_hidden(&mut judge, &row, &files, &plain, at));
        }
    }
    tally.print("damaged pages beside logs that hide them");
}

/// The database is cut short beside a log that says nothing of the missing pages. Plain SQLite
/// reads zeros there.
#[test]
fn no_log_makes_a_missing_page_one_of_zeros() {
    let subject = Subject::new(CIPHERS[0], true);
    let mut judge = Judge::new(&subject.twin);
    let mut tally = Tally::default();
    let mut logs = logs_that_hide(&subject);
    logs.push(("the log", subject.now.sealed.wal().to_vec(), subject.now.plain.wal().to_vec()));
    for (what, log, plain_log) in logs {
        let mut plain = subject.now.plain.clone();
        plain.wal = Some(plain_log);
        for pages in 1..(subject.now.sealed.db.len() - PAGES_AT) / PAGE {
            for rest in [0, 1, PAGE - 1] {
                let mut files = subject.now.sealed.clone();
                files.wal = Some(log.clone());
                files.db.truncate(PAGES_AT + pages * PAGE + rest);
                let row = format!("{what}, the database cut to {pages} pages and {rest} bytes");
                tally.add(match judge.judge(&row, &files, &plain) {
                    Outcome::Same => "hidden by the log",
                    Outcome::Bad(_) => "authentication error",
                    Outcome::Refused(Error::PageAuthentication { .. }) => "authentication error",
                    Outcome::Refused(Error::LogOutdated | Error::LogCut { .. }) => "log refused",
                    Outcome::Refused(Error::Sqlite(error)) => match error.sqlite_error_code() {
                        Some(ErrorCode::DatabaseCorrupt) => "corrupt, says SQLite",
                        code => panic!("{row}: {code:?}"),
                    },
                    other => panic!("{row}: {other:?}"),
                });
            }
        }
    }
    tally.print("databases cut short beside a log");
}

/// Lengths that nobody could hold in memory.
#[test]
fn absurd_lengths_cost_neither_memory_nor_disk() {
    const HUGE: u64 = 1 << 40;
    let subject = Subject::new(CIPHERS[0], true);
    let before = resident_kib();
    for (what, suffix, expect) in [
        ("log", "-tdewal", subject.now.plain.clone()),
        ("database", "", subject.now.plain.clone()),
        ("journal", "-journal", subject.now.plain.clone()),
    ] {
        let mut judge = Judge::new(&subject.twin);
        let outcome = judge.judge_after(what, &subject.now.sealed, &expect, |path| {
            let name = beside(path, suffix);
            let file = std::fs::OpenOptions::new().append(true).create(true).open(name).unwrap();
            file.set_len(HUGE).unwrap();
        });
        assert!(matches!(outcome, Outcome::Same), "{what}: {outcome:?}");
        let grown = resident_kib().saturating_sub(before);
        assert!(grown < 64 << 10, "{what}: {grown} KiB");
        println!("absurd {what}: 1 TiB, unharmed");
    }
}

/// The most memory that this process ever had, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse().unwrap())
}

fn found_or_hidden(
    judge: &mut Judge,
    row: &str,
    files: &Files,
    plain: &Files,
    at: usize,
) -> &'static str {
    let number = ((at - PAGES_AT) / PAGE + 1) as u32;
    match judge.judge(row, files, plain) {
        Outcome::Same => "hidden by the log",
        Outcome::Bad(pages) if pages == [number] => "authentication error",
        Outcome::Refused(Error::PageAuthentication { page }) if page == number => {
            "authentication error"
        }
        Outcome::Refused(Error::LogOutdated | Error::LogCut { .. }) => "log refused",
        other => panic!("{row}: {other:?}"),
    }
}
