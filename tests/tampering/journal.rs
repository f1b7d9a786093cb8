//! What somebody without the key can do to a hot rollback journal, and what must follow.
//!
//! To SQLite a journal that ends early is one whose rest never reached the disk, and then the
//! database was not written either. Where somebody damaged it afterwards that is not so: SQLite
//! rolls back what it finds and leaves the rest of the transaction, each page of it authentic. This
//! is the documented limit, and the measure is plain SQLite: the encrypted database must show, page
//! for page, what the plain one shows whose journal was cut there, and nothing else.
//!
//! `SQLITE_TDE_FULL=1` flips every byte; otherwise a sample.

use sqlite_tde::{Cipher, Error};
use sqlite_tde_testkit::process::full;
use sqlite_tde_testkit::twin::{
    Files, Judge, Moment, Outcome, PAGE, PAGES_AT, Scan, TRAILER, Tally, Twin,
};

const MODES: [&str; 3] = ["DELETE", "TRUNCATE", "PERSIST"];
const CIPHERS: [Cipher; 3] = Cipher::ALL;

/// Of the journal: our header, and SQLite's journal in records.
const HEADER: usize = 512;
const SECTOR: usize = 512;
const RECORD: usize = SECTOR + TRAILER;

/// The place of `number`'s record, from 0.
fn record(number: usize) -> std::ops::Range<usize> {
    let at = HEADER + number * RECORD;
    at..at + RECORD
}

/// SQLite's size of a journal of `physical` bytes.
fn logical(physical: usize) -> usize {
    let body = physical.saturating_sub(HEADER);
    match (body / RECORD, body % RECORD) {
        (0, _) => 0,
        (records, 0) => records * SECTOR,
        (records, end) => (records - 1) * SECTOR + end.min(SECTOR),
    }
}

/// A database in the middle of a transaction whose pages have spilled into the file.
struct Subject {
    twin: Twin,
    /// In the middle of the transaction before the last.
    oldest: Moment,
    /// In the middle of the transaction before.
    older: Moment,
    /// The same transaction, when less of it had spilled.
    early: Moment,
    now: Moment,
    records: usize,
    /// What SQL shows when it is rolled back.
    before: Scan,
    /// What it shows when nothing is rolled back.
    after: Scan,
}

const TABLE: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); CREATE INDEX i ON t(b);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20)
    INSERT INTO t SELECT i, 'first ' || i || printf('%.200c', 'x') FROM n;
    INSERT INTO t VALUES(100, printf('%.2900c', 'x'));
    CREATE TABLE untouched(x); INSERT INTO untouched VALUES(printf('%.2500c', 'u'));";
const UPDATE: &str = "UPDATE t SET b = b || printf('%.90c', 'y') WHERE a < 100;";

impl Subject {
    fn new(cipher: Cipher, mode: &str) -> Self {
        let twin = Twin::new(cipher, mode);
        twin.run(TABLE);
        twin.run(&format!("BEGIN; {UPDATE}"));
        let oldest = twin.moment();
        twin.run(&format!("COMMIT; BEGIN; {UPDATE}"));
        let older = twin.moment();
        twin.run("COMMIT");
        twin.run("BEGIN; DELETE FROM t WHERE a = 100; UPDATE t SET b = 'young' WHERE a < 9");
        let early = twin.moment();
        twin.run(&format!("{UPDATE} {UPDATE}"));
        let now = twin.moment();
        let records = now.plain.journal().len().div_ceil(SECTOR);
        let mut judge = Judge::new(&twin);
        let before = judge.plain(&now.plain).scan;
        let mut without = now.plain.clone();
        without.journal = None;
        let after = judge.plain(&without).scan;
        drop(judge);
        Self { twin, oldest, older, early, now, records, before, after }
    }

    fn with_journal(&self, change: impl FnOnce(&mut Vec<u8>)) -> Files {
        let mut files = self.now.sealed.clone();
        change(files.journal.as_mut().unwrap());
        files
    }

    /// The plain database whose journal ends after `len` bytes.
    fn ends_after(&self, len: usize) -> Files {
        let mut files = self.now.plain.clone();
        files.journal.as_mut().unwrap().truncate(len);
        files
    }

    /// What the outcome `Same` over `plain` means for the data.
    fn name(&self, judge: &mut Judge, plain: &Files) -> &'static str {
        let scan = judge.plain(plain).scan;
        if scan == self.before {
            "rolled back"
        } else if scan == self.after {
            "not rolled back, as in plain SQLite over a journal cut there"
        } else {
            "rolled back in part, as in plain SQLite over a journal cut there"
        }
    }
}

fn assert_ends(
    subject: &Subject,
    judge: &mut Judge,
    row: &str,
    files: &Files,
    len: usize,
) -> &'static str {
    let plain = subject.ends_after(len);
    match judge.judge(row, files, &plain) {
        Outcome::Same => subject.name(judge, &plain),
        other => panic!("{row}: {other:?}"),
    }
}

/// Where the journal ends for SQLite after byte `at` of it was changed.
fn end_before(at: usize, subject: &Subject) -> usize {
    let all = subject.now.plain.journal().len();
    match at {
        // Magic, format, key version and salt; then the file id, which nothing needs; then the
        // grain and the state that the journal was begun on.
        0..40 | 56..80 => 0,
        0..HEADER => all,
        _ => ((at - HEADER) / RECORD * SECTOR).min(all),
    }
}

#[test]
fn the_twins_are_alike() {
    for mode in MODES {
        for cipher in CIPHERS {
            let subject = Subject::new(cipher, mode);
            let now = &subject.now;
            assert_eq!(logical(now.sealed.journal().len()), now.plain.journal().len(), "{mode}");
            assert!(now.plain.journal().len() > 10 * PAGE, "{mode}");
            let mut judge = Judge::new(&subject.twin);
            for (name, moment) in
                [("older", &subject.older), ("early", &subject.early), ("now", now)]
            {
                let outcome = judge.judge(name, &moment.sealed, &moment.plain);
                assert!(matches!(outcome, Outcome::Same), "{mode} {name}: {outcome:?}");
            }
            assert!(subject.before != subject.after, "{mode}: nothing had spilled");
        }
    }
}

#[test]
fn every_flipped_byte_of_the_journal_ends_it_there() {
    for (cipher, mode) in CIPHERS.into_iter().zip(["DELETE", "PERSIST"]) {
        let subject = Subject::new(cipher, mode);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        let len = subject.now.sealed.journal().len();
        let boundary = |at: usize| matches!(at.saturating_sub(HEADER) % RECORD, 0 | 559);
        let end_mark = record(subject.records).start;
        for at in (0..len).filter(|&at| full() || at < 64 || at % 211 == 0 || boundary(at)) {
            let bad = subject.with_journal(|journal| journal[at] ^= 1 << (at % 8));
            let row = format!("{mode}: byte {at} of the journal");
            let end = if at < end_mark { end_before(at, &subject) } else { usize::MAX };
            tally.add(assert_ends(&subject, &mut judge, &row, &bad, end));
        }
        tally.print(&format!("journal bytes, {mode}, {}", cipher.name()));
    }
}

#[test]
fn every_flipped_bit_of_some_records_ends_the_journal_there() {
    for (cipher, mode) in CIPHERS.into_iter().zip(["TRUNCATE", "DELETE"]) {
        let subject = Subject::new(cipher, mode);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        let places = (0..64).chain(record(0)).chain(record(5));
        for bit in places.flat_map(|at| at * 8..at * 8 + 8).step_by(if full() { 1 } else { 53 }) {
            let bad = subject.with_journal(|journal| journal[bit / 8] ^= 1 << (bit % 8));
            let row = format!("{mode}: bit {bit} of the journal");
            let end = end_before(bit / 8, &subject);
            tally.add(assert_ends(&subject, &mut judge, &row, &bad, end));
        }
        tally.print(&format!("journal bits, {mode}, {}", cipher.name()));
    }
}

#[test]
fn a_journal_cut_anywhere_ends_there() {
    for mode in MODES {
        let subject = Subject::new(CIPHERS[0], mode);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        for number in (0..=subject.records).step_by(if full() { 1 } else { 3 }) {
            for within in [0, 1, 8, 28, 511, 512, 513, RECORD - 1] {
                let len = record(number).start + within;
                let bad = subject.with_journal(|journal| journal.truncate(len));
                let row = format!("{mode}: cut to {len}");
                let end = logical(len.min(subject.now.sealed.journal().len()));
                tally.add(assert_ends(&subject, &mut judge, &row, &bad, end));
            }
        }
        for len in [0, 1, 100, HEADER - 1] {
            let bad = subject.with_journal(|journal| journal.truncate(len));
            tally.add(assert_ends(&subject, &mut judge, &format!("cut to {len}"), &bad, 0));
        }
        tally.print(&format!("journal cut, {mode}"));
    }
}

/// What a tampered journal must show.
enum Expect {
    /// What the plain journal shows that is cut after so many bytes.
    Ends(usize),
    /// What these plain files show. A documented limit: all of it is of another time.
    Replay(Files),
    /// The journal is refused: it is of another state of the database.
    Outdated,
}
use Expect::{Ends, Outdated, Replay};

fn named_attacks_on(subject: &Subject, other: &Subject) -> Vec<(String, Files, Expect)> {
    let journal = subject.now.sealed.journal();
    let (older, early) = (subject.older.sealed.journal(), subject.early.sealed.journal());
    let foreign = other.now.sealed.journal();
    let all = subject.now.plain.journal().len();
    let with = |change: &dyn Fn(&mut Vec<u8>)| subject.with_journal(|journal| change(journal));
    let put = |to: usize, bytes: &[u8]| with(&|journal| journal[record(to)].copy_from_slice(bytes));
    let mut rows: Vec<(String, Files, Expect)> = Vec::new();
    for number in (0..subject.records - 1).step_by(if full() { 1 } else { 5 }) {
        let (this, next) = (record(number), record(number + 1));
        let here = number * SECTOR;
        let mut add = |attack: &str, files: Files, expect: Expect| {
            rows.push((format!("record {number}: {attack}"), files, expect));
        };
        add(
            "exchanged with the next",
            with(&|journal| {
                let held = journal[this.clone()].to_vec();
                journal.copy_within(next.clone(), this.start);
                journal[next.clone()].copy_from_slice(&held);
            }),
            Ends(here),
        );
        add("repeated as the next", put(number + 1, &journal[this.clone()]), Ends(here + SECTOR));
        add("zeroed", put(number, &[0; RECORD]), Ends(here));
        add(
            "zeroed with all that follows",
            with(&|journal| journal[this.start..].fill(0)),
            Ends(here),
        );
        add("of another database", put(number, &foreign[this.clone()]), Ends(here));
        add(
            "a piece of a page in its place",
            put(number, &subject.now.sealed.db[PAGES_AT..][..RECORD]),
            Ends(here),
        );
        add(
            "marked with key version 2",
            with(&|journal| journal[this.end - TRAILER + 3] = 2),
            Ends(here),
        );
        if let Some(bytes) = older.get(this.clone()) {
            add("of the journal before", put(number, bytes), Ends(here));
        }
    }
    let mut add =
        |attack: &str, files: Files, expect: Expect| rows.push((attack.into(), files, expect));
    let field = |at: usize, value: u32| {
        with(&|journal| journal[at..at + 4].copy_from_slice(&value.to_be_bytes()))
    };
    add("untouched", with(&|_| ()), Ends(all));
    for format in [0, 2, u32::MAX] {
        add(&format!("header: format {format}"), field(16, format), Ends(0));
    }
    for version in [0, 2, u32::MAX] {
        add(&format!("header: key version {version}"), field(20, version), Ends(0));
    }
    for grain in [0, 2, 256, 511, 1024, 4096, 65536, 131_072, 1 << 31, u32::MAX] {
        add(&format!("header: grain {grain}"), field(56, grain), Ends(0));
    }
    // Where records keep to sectors of 512, the first one lies where it is: a header without pages.
    add("header: grain 512", field(56, 512), Ends(SECTOR));
    add(
        "header: salt of the journal before",
        with(&|journal| journal[24..40].copy_from_slice(&older[24..40])),
        Ends(0),
    );
    add(
        "header: file id of another",
        with(&|journal| journal[40..56].copy_from_slice(&foreign[40..56])),
        Ends(all),
    );
    add("header: its zeros set", with(&|journal| journal[80..HEADER].fill(0xff)), Ends(all));
    add(
        "the header of another database",
        with(&|journal| journal[..HEADER].copy_from_slice(&foreign[..HEADER])),
        Ends(0),
    );
    add("the journal of another database", with(&|journal| *journal = foreign.to_vec()), Ends(0));
    add("rubbish", with(&|journal| journal.fill(0xa5)), Ends(0));
    add("zeros", with(&|journal| journal.fill(0)), Ends(0));
    add(
        "the database file as its journal",
        with(&|journal| journal.clone_from(&subject.now.sealed.db)),
        Ends(0),
    );
    add(
        "its plain twin's journal",
        with(&|journal| *journal = subject.now.plain.journal().to_vec()),
        Ends(0),
    );
    let mut gone = subject.now.sealed.clone();
    gone.journal = None;
    add("deleted", gone.clone(), Ends(0));
    gone.wal = subject.now.sealed.journal.clone();
    let mut plain = subject.ends_after(0);
    plain.wal = subject.now.plain.journal.clone();
    // As plain SQLite: a log without frames, and from then on a log.
    add("renamed to a log", gone, Replay(plain));
    // Replay: a journal of another time, or its beginning.
    let mut replay = |what: &str, db: &Moment, journal: (&[u8], &[u8])| {
        let (mut ours, mut theirs) = (db.sealed.clone(), db.plain.clone());
        (ours.journal, theirs.journal) = (Some(journal.0.to_vec()), Some(journal.1.to_vec()));
        rows.push((what.into(), ours, Replay(theirs)));
    };
    let plain_older = subject.older.plain.journal();
    replay("the journal before over the present database", &subject.now, (older, plain_older));
    // SQLite's change counter tells all that is older than the last transaction.
    replay("the journal when it was young", &subject.now, (early, subject.early.plain.journal()));
    replay("all of yesterday", &subject.older, (older, plain_older));
    let mut outdated = |what: &str, db: &Moment, journal: &Moment| {
        let journal = Some(journal.sealed.journal().to_vec());
        rows.push((what.into(), Files { journal, ..db.sealed.clone() }, Outdated));
    };
    outdated("the journal before the last", &subject.now, &subject.oldest);
    outdated("the present journal over the database before", &subject.older, &subject.now);
    outdated("the present journal over an older database", &subject.oldest, &subject.now);
    let mut at = 0;
    let states = [("version", 20..24), ("salt", 24..40), ("state", 60..80)];
    for (field, range) in states.into_iter().cycle().take(6) {
        at += 1;
        let bytes = if at > 3 { &subject.oldest } else { &subject.older }.sealed.journal();
        let files = with(&|journal| journal[range.clone()].copy_from_slice(&bytes[range.clone()]));
        let same = bytes[range.clone()] == journal[range.clone()];
        rows.push((
            format!("header: {field} of an earlier journal, {at}"),
            files,
            Ends(if same { all } else { 0 }),
        ));
    }
    rows
}

#[test]
fn named_attacks() {
    for (mode, cipher) in MODES.into_iter().zip([CIPHERS[0], CIPHERS[1], CIPHERS[0]]) {
        let (subject, other) = (Subject::new(cipher, mode), Subject::new(cipher, mode));
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        for (attack, files, expect) in named_attacks_on(&subject, &other) {
            let attack = format!("{mode}: {attack}");
            tally.add(match expect {
                Ends(len) => assert_ends(&subject, &mut judge, &attack, &files, len),
                Replay(plain) => match judge.judge(&attack, &files, &plain) {
                    Outcome::Same => "accepted replay",
                    outcome => panic!("{attack}: {outcome:?}"),
                },
                Outdated => match judge.judge(&attack, &files, &subject.now.plain) {
                    Outcome::Refused(Error::JournalOutdated { begun, found })
                        if found != begun && found != begun + 1 =>
                    {
                        "refused as outdated"
                    }
                    outcome => panic!("{attack}: {outcome:?}"),
                },
            });
        }
        tally.print(&format!("named attacks on a journal, {mode}, {}", cipher.name()));
    }
}

/// The database file beside a hot journal: what the journal restores is restored, the rest is
/// found.
#[test]
fn every_flipped_byte_of_the_database_is_restored_or_found() {
    for (cipher, mode) in CIPHERS.into_iter().zip(["PERSIST", "TRUNCATE"]) {
        let subject = Subject::new(cipher, mode);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        let len = subject.now.sealed.db.len();
        for at in
            (PAGES_AT..len).filter(|at| full() || at % 331 == 0 || at % PAGE == PAGE - TRAILER)
        {
            let mut files = subject.now.sealed.clone();
            files.db[at] ^= 1 << (at % 8);
            let row = format!("{mode}: byte {at} of the database");
            let number = ((at - PAGES_AT) / PAGE + 1) as u32;
            tally.add(match judge.judge(&row, &files, &subject.now.plain) {
                Outcome::Same => "restored or never needed",
                Outcome::Bad(pages) if pages == [number] => "authentication error",
                Outcome::Refused(Error::PageAuthentication { page }) if page == number => {
                    "authentication error"
                }
                other => panic!("{row}: {other:?}"),
            });
        }
        tally.print(&format!("database bytes beside a journal, {mode}, {}", cipher.name()));
    }
}

/// Plain SQLite makes zeros of what was cut off and is not in the journal.
#[test]
fn no_rollback_makes_a_missing_page_one_of_zeros() {
    for mode in MODES {
        let subject = Subject::new(CIPHERS[0], mode);
        let mut judge = Judge::new(&subject.twin);
        let mut tally = Tally::default();
        for (when, moment) in [("early", &subject.early), ("now", &subject.now)] {
            for pages in 1..(moment.sealed.db.len() - PAGES_AT) / PAGE {
                for rest in [0, 1, PAGE - 1] {
                    let mut files = moment.sealed.clone();
                    files.db.truncate(PAGES_AT + pages * PAGE + rest);
                    let row = format!("{mode}: {when}, cut to {pages} pages and {rest} bytes");
                    tally.add(match judge.judge(&row, &files, &moment.plain) {
                        Outcome::Same => "restored or never needed",
                        Outcome::Bad(_) | Outcome::Refused(Error::PageAuthentication { .. }) => {
                            "authentication error"
                        }
                        other => panic!("{row}: {other:?}"),
                    });
                }
            }
        }
        tally.print(&format!("databases cut short beside a journal, {mode}"));
    }
}
