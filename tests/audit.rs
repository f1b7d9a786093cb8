//! The audit log: what it holds, and that nobody without its key changes it unnoticed. A row says
//! what was done to the files and where `verify` must find it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sqlite_tde::audit::{
    AuditLog, AuditOptions, Entry, Event, EventKind, Filter, Verdict, entries, verify,
};
use sqlite_tde::provider::SecretSource;
use sqlite_tde::{Error, Result};
use sqlite_tde_testkit::process::{Process, TOO_LONG, report};
use sqlite_tde_testkit::set_mode;

const TASK: &str = "SQLITE_TDE_TEST_AUDIT";
/// Four entries with a path of 40 characters.
const SMALL: u64 = 1400;
const LOG: &str = "audit.jsonl";
const HEAD: &str = "audit.head";

/// The files of a log by name.
type Files = BTreeMap<String, Vec<u8>>;

struct Log {
    dir: tempfile::TempDir,
    options: AuditOptions,
}

impl Log {
    fn new(max_bytes: u64, keep: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = AuditOptions { max_bytes, keep, ..AuditOptions::at(dir.path()) };
        Self { dir, options }
    }

    /// With `count` entries.
    fn filled(max_bytes: u64, keep: u32, count: u32) -> Self {
        let log = Self::new(max_bytes, keep);
        log.add(count);
        log
    }

    fn add(&self, count: u32) {
        add(&self.options, count);
    }

    /// Adds an entry to the file that is there.
    fn add_without_rotation(&self) {
        add(&AuditOptions { max_bytes: 1 << 20, ..self.options.clone() }, 1);
    }

    /// Adds an entry of several blocks.
    fn add_long(&self) {
        let options = AuditOptions { max_bytes: 1 << 20, ..self.options.clone() };
        let (long, text) = ("x".repeat(1000), "y".repeat(1000));
        let event = Event { outcome: Err(&text), ..event(&long) };
        AuditLog::open(options).unwrap().record(&event).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn verify(&self) -> Verdict {
        verify(&self.options).unwrap()
    }

    /// File and line of the first problem.
    fn problem(&self) -> Option<(String, u64)> {
        self.verify().problem.map(|problem| (problem.file, problem.line))
    }

    fn entries(&self) -> Vec<Entry> {
        entries(&self.options).unwrap().collect::<Result<_>>().unwrap()
    }

    fn files(&self) -> Files {
        let entries = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .map(|name| (name.clone(), fs::read(self.path(&name)).unwrap()))
            .collect()
    }

    /// Puts back `files`, and nothing else.
    fn put(&self, files: &Files) {
        for name in self.files().keys().filter(|name| !files.contains_key(*name)) {
            fs::remove_file(self.path(name)).unwrap();
        }
        for (name, bytes) in files {
            fs::write(self.path(name), bytes).unwrap();
            #[cfg(unix)]
            set_mode(&self.path(name), 0o600);
        }
    }
}

fn add(options: &AuditOptions, count: u32) {
    let log = AuditLog::open(options.clone()).unwrap();
    (0..count).for_each(|n| log.record(&event(&format!("event {n}"))).unwrap());
}

fn event(detail: &str) -> Event<'_> {
    Event {
        path: Some(Path::new("/var/lib/app/a database with a name.db")),
        detail: Some(detail),
        ..Event::new(EventKind::Open)
    }
}

fn system_time(text: &str) -> SystemTime {
    text.parse::<jiff::Timestamp>().unwrap().try_into().unwrap()
}

fn is_log(name: &str) -> bool {
    name.ends_with(".jsonl")
}

fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// `files` with the lines of `name` changed.
fn with_lines(files: &Files, name: &str, change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Files {
    let mut files = files.clone();
    let mut found = lines(&files[name]);
    change(&mut found);
    files.insert(name.to_owned(), found.concat());
    files
}

#[test]
fn an_entry_has_every_field_and_no_control_character() {
    let log = Log::new(1 << 20, 2);
    let long = "é".repeat(5000);
    {
        let log = AuditLog::open(log.options.clone()).unwrap();
        log.record(&Event {
            kind: EventKind::RemoveProtector,
            file_id: Some(&[0xab; 16]),
            path: Some(Path::new("a\n\u{1b}[31m\u{9b}.db")),
            protector: Some("payroll"),
            provider: Some("hsm"),
            key: Some("k\"1"),
            key_version: Some("7"),
            outcome: Err(&long),
            duration: Some(Duration::from_micros(1234)),
            request_id: Some("ours"),
            service_request_id: Some("theirs\u{9b}"),
            detail: Some("one\\two"),
        })
        .unwrap();
        log.record(&Event::new(EventKind::Lock)).unwrap();
    }
    let text = fs::read_to_string(log.path(LOG)).unwrap();
    assert_eq!(text.chars().filter(|c| c.is_control()).collect::<String>(), "\n\n");
    let found = log.entries();
    let first = &found[0];
    let error = first.error.as_deref().unwrap();
    assert!(error.len() <= 1024 && error.starts_with("éé") && error.ends_with("é…"));
    let text = |field: &Option<String>| field.clone().unwrap();
    assert_eq!(
        [&first.kind, &first.outcome, &text(&first.db), &text(&first.path), &text(&first.provider)],
        ["remove_protector", "failed", &"ab".repeat(16), "a\n\u{1b}[31m\u{fffd}.db", "hsm"]
    );
    assert_eq!(
        [&first.protector, &first.key, &first.key_version, &first.detail].map(text),
        ["payroll", "k\"1", "7", "one\\two"]
    );
    assert_eq!(
        [&first.request_id, &first.service_request_id].map(text),
        ["ours", "theirs\u{fffd}"]
    );
    assert_eq!((first.seq, first.duration), (1, Some(Duration::from_micros(1234))));
    assert_eq!(first.pid, std::process::id());
    assert!(first.program.starts_with("audit-"), "{}", first.program);
    #[cfg(unix)]
    assert_eq!(
        first.uid,
        Some(std::os::unix::fs::MetadataExt::uid(&fs::metadata(log.path(LOG)).unwrap()))
    );
    let time = system_time(&first.time);
    assert!(first.time.len() == 24 && time.elapsed().unwrap() < Duration::from_secs(600));
    assert_eq!((&*found[1].kind, &*found[1].outcome, found[1].seq), ("lock", "ok", 2));
    assert_eq!((log.problem(), log.verify().lines), (None, 2));
}

#[test]
fn every_flipped_byte_is_found_in_its_line() {
    let log = Log::filled(SMALL, 5, 10);
    let files = log.files();
    assert_eq!(files.keys().filter(|name| is_log(name)).count(), 3, "{:?}", files.keys());
    assert_eq!(log.verify().problem, None);
    for (name, bytes) in files.iter().filter(|(name, _)| is_log(name) || *name == HEAD) {
        for at in 0..bytes.len() {
            for mask in [0x01, 0x40, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= mask;
                fs::write(log.path(name), changed).unwrap();
                let before = bytes[..at].iter().filter(|&&byte| byte == b'\n').count() as u64;
                let line = if name == HEAD { 0 } else { before + 1 };
                assert_eq!(log.problem(), Some((name.clone(), line)), "{name}, {at}, {mask:#x}");
            }
        }
        fs::write(log.path(name), bytes).unwrap();
    }
    let key = &files["audit.key"];
    for at in 0..key.len() - 1 {
        let mut changed = key.clone();
        changed[at] ^= 1;
        fs::write(log.path("audit.key"), changed).unwrap();
        match verify(&log.options) {
            Ok(verdict) => assert_eq!(verdict.problem.unwrap().line, 1, "byte {at} of the key"),
            Err(error) => assert!(error.to_string().contains("is not base64"), "{error}"),
        }
        assert!(AuditLog::open(log.options.clone()).is_err(), "byte {at} of the key");
    }
}

#[test]
fn every_truncation_is_found_and_stays_found() {
    let log = Log::filled(SMALL, 5, 10);
    let files = log.files();
    let bytes = &files[LOG];
    for len in 0..bytes.len() {
        log.put(&files);
        fs::write(log.path(LOG), &bytes[..len]).unwrap();
        let line = bytes[..len].iter().filter(|&&byte| byte == b'\n').count() as u64 + 1;
        assert_eq!(log.problem(), Some((LOG.to_owned(), line)), "{len} bytes");
        log.add_without_rotation();
        // A missing line end is put back with the next entry: that line is whole again.
        let whole = u64::from(bytes[len] == b'\n');
        let expected = (len + 1 < bytes.len()).then(|| (LOG.to_owned(), line + whole));
        assert_eq!(log.problem(), expected, "{len} bytes, then an entry");
    }
}

/// What a forger without the key did, where it is found, and where it still is after the next
/// entry.
#[test]
fn forgeries_are_found_and_later_entries_do_not_hide_them() {
    const OLD: &str = "audit.2.jsonl";
    const MIDDLE: &str = "audit.1.jsonl";
    let log = Log::filled(SMALL, 5, 10);
    let yesterday = log.files();
    log.add(1);
    let one_ago = log.files();
    log.add(1);
    let now = log.files();
    let count = lines(&now[LOG]).len() as u64;
    assert!(count > 3 && now.contains_key(OLD) && !now.contains_key("audit.3.jsonl"));
    let other = Log::filled(SMALL, 5, 12).files();

    let without = |name: &str| {
        let mut files = now.clone();
        files.remove(name);
        files
    };
    let with = |name: &str, from: &Files, from_name: &str| {
        let mut files = now.clone();
        files.insert(name.to_owned(), from[from_name].clone());
        files
    };
    let last = lines(&now[LOG]).pop().unwrap();
    let text = String::from_utf8(last.clone()).unwrap();
    let forged = text.replace("\"seq\":12", "\"seq\":13").into_bytes();
    assert_ne!(forged, last);
    let mut swapped = with(OLD, &now, MIDDLE);
    swapped.insert(MIDDLE.into(), now[OLD].clone());
    let mut joined = without(MIDDLE);
    joined.insert(OLD.into(), [&now[OLD][..], &now[MIDDLE]].concat());
    let old_len = lines(&now[OLD]).len() as u64;

    for (what, files, expected, later) in [
        ("nothing", now.clone(), None, None),
        (
            "first line removed",
            with_lines(&now, OLD, |l| drop(l.remove(0))),
            Some((OLD, 1)),
            Some((OLD, 1)),
        ),
        (
            "all lines of an old file removed",
            with_lines(&now, OLD, Vec::clear),
            Some((OLD, 1)),
            Some((OLD, 1)),
        ),
        (
            "a line removed",
            with_lines(&now, MIDDLE, |l| drop(l.remove(1))),
            Some((MIDDLE, 2)),
            Some((MIDDLE, 2)),
        ),
        (
            "last line of a file removed",
            with_lines(&now, OLD, |l| drop(l.pop())),
            Some((MIDDLE, 1)),
            Some((MIDDLE, 1)),
        ),
        (
            "last line removed",
            with_lines(&now, LOG, |l| drop(l.pop())),
            Some((LOG, count)),
            Some((LOG, count)),
        ),
        ("all lines removed", with_lines(&now, LOG, Vec::clear), Some((LOG, 1)), Some((LOG, 1))),
        (
            "lines exchanged",
            with_lines(&now, LOG, |l| l.swap(1, 2)),
            Some((LOG, 2)),
            Some((LOG, 2)),
        ),
        (
            "a line twice",
            with_lines(&now, MIDDLE, |l| l.insert(1, l[0].clone())),
            Some((MIDDLE, 2)),
            Some((MIDDLE, 2)),
        ),
        (
            "the last line twice",
            with_lines(&now, LOG, |l| l.push(last.clone())),
            Some((LOG, count + 1)),
            Some((LOG, count + 1)),
        ),
        (
            "a line appended",
            with_lines(&now, LOG, |l| l.push(forged.clone())),
            Some((LOG, count + 1)),
            Some((LOG, count + 1)),
        ),
        (
            "text appended",
            with_lines(&now, LOG, |l| l.push(b"hello\n".into())),
            Some((LOG, count + 1)),
            Some((LOG, count + 1)),
        ),
        (
            "a line without end appended to an old file",
            with_lines(&now, OLD, |l| l.push(b"{".into())),
            Some((OLD, old_len + 1)),
            Some((OLD, old_len + 1)),
        ),
        (
            "a line moved to another file",
            with_lines(&now, LOG, |l| l.push(lines(&now[OLD])[1].clone())),
            Some((LOG, count + 1)),
            Some((LOG, count + 1)),
        ),
        (
            "an endless line",
            with_lines(&now, LOG, |l| l.push(vec![b'x'; 100_000])),
            Some((LOG, count + 1)),
            Some((LOG, count + 1)),
        ),
        ("the oldest file removed", without(OLD), Some((MIDDLE, 1)), Some((MIDDLE, 1))),
        ("a file in the middle removed", without(MIDDLE), Some((LOG, 1)), Some((LOG, 1))),
        (
            "the newest file removed",
            without(LOG),
            Some((MIDDLE, lines(&now[MIDDLE]).len() as u64 + 1)),
            Some((LOG, 1)),
        ),
        ("two files exchanged", swapped, Some((OLD, lines(&now[MIDDLE]).len() as u64 + 1)), None),
        ("two files joined", joined, Some((OLD, old_len + 1)), Some((OLD, old_len + 1))),
        (
            "a file of another log",
            with(MIDDLE, &other, MIDDLE),
            Some((MIDDLE, 1)),
            Some((MIDDLE, 1)),
        ),
        ("the head removed", without(HEAD), Some((HEAD, 0)), Some((LOG, count + 1))),
        (
            "an empty head",
            with_lines(&now, HEAD, Vec::clear),
            Some((HEAD, 0)),
            Some((LOG, count + 1)),
        ),
        (
            "the head of another log",
            with(HEAD, &other, HEAD),
            Some((HEAD, 0)),
            Some((LOG, count + 1)),
        ),
        ("an older head", with(HEAD, &yesterday, HEAD), Some((HEAD, 0)), Some((LOG, count + 1))),
        (
            "an older head, and no file before the last",
            Files::from([LOG, HEAD, "audit.key"].map(|name| {
                let of = if name == HEAD { &yesterday } else { &now };
                (name.to_owned(), of[name].clone())
            })),
            Some((HEAD, 0)),
            Some((LOG, count + 1)),
        ),
        ("an older log file", with(LOG, &one_ago, LOG), Some((LOG, count)), Some((LOG, count))),
        // Documented limits: nothing on disk tells these from what was.
        ("the head before the last", with(HEAD, &one_ago, HEAD), None, None),
        ("yesterday's log and head", yesterday.clone(), None, None),
    ] {
        let problem = |at: Option<(&str, u64)>| at.map(|(name, line)| (name.to_owned(), line));
        log.put(&files);
        if what == "two files exchanged" {
            // The numbers of the files say in which order they are read.
            assert_eq!(log.verify().problem.unwrap().file, OLD.replace('2', "1"), "{what}");
            continue;
        }
        assert_eq!(log.problem(), problem(expected), "{what}");
        log.add_without_rotation();
        assert_eq!(log.problem(), problem(later), "{what}, then an entry");
        log.add(5);
        assert_eq!(log.problem().is_some(), later.is_some(), "{what}, then a rotation");
    }
    log.put(&with(HEAD, &yesterday, HEAD));
    log.add_without_rotation();
    let what = log.verify().problem.unwrap().what;
    assert!(what.contains("2 entries behind"), "{what}");
}

/// An opening makes several entries: a process that is stopped with the lock does not hold up each.
#[test]
fn a_lock_that_stays_is_waited_for_once() {
    let log = Log::filled(1 << 20, 1, 1);
    let time_out = std::time::Duration::from_secs(2);
    let open = AuditLog::open(AuditOptions { time_out, ..log.options.clone() }).unwrap();
    let held = fs::File::open(log.path("audit.lock")).unwrap();
    held.lock().unwrap();
    let started = std::time::Instant::now();
    for _ in 0..8 {
        let words = open.record(&event("x")).unwrap_err().to_string();
        assert!(words.contains("locked"), "{words}");
    }
    assert!(started.elapsed() < 4 * time_out, "{:?}", started.elapsed());
    drop(held);
    open.record(&event("x")).unwrap();
}

/// Without rotated files nothing but the head says what came before.
#[test]
fn a_log_that_was_removed_beside_its_head_leaves_a_word() {
    let log = Log::filled(600, 0, 5);
    assert_eq!(log.verify().problem, None);
    let mut files = log.files();
    files.remove(LOG);
    log.put(&files);
    log.add_without_rotation();
    let what = log.verify().problem.unwrap().what;
    assert!(what.contains("were missing before this entry"), "{what}");
}

/// What a power loss can leave of one append: any part of the line, any blocks of it unwritten, the
/// line without the head, and of a rotation any number of its steps.
#[test]
fn an_interrupted_append_is_no_problem_and_loses_no_entry() {
    let mut images: Vec<(String, Files, u64)> = Vec::new();
    for before_count in [0, 1, 4] {
        let log = Log::filled(1 << 20, 3, before_count);
        let before = log.files();
        log.add_long();
        let after = log.files();
        let line = lines(&after[LOG]).pop().unwrap();
        let old = before.get(LOG).cloned().unwrap_or_default();
        let count = u64::from(before_count);
        let mut image = |what: String, tail: &[u8], kept| {
            let mut files = before.clone();
            files.insert(LOG.into(), [&old, tail].concat());
            images.push((format!("{before_count} entries, {what}"), files, kept));
        };
        if before_count > 0 {
            (0..line.len()).for_each(|len| image(format!("{len} bytes"), &line[..len], count));
            for block in 0..line.len().div_ceil(512) {
                let mut holes = line.clone();
                let end = holes.len().min(block * 512 + 512);
                holes[block * 512..end].fill(0);
                image(format!("block {block} unwritten"), &holes, count);
            }
        }
        image("the line without the head".into(), &line, count + 1);
        images.push((format!("{before_count} entries, all"), after.clone(), count + 1));
    }
    images.extend(rotation_images());
    let log = Log::new(SMALL, 2);
    for (number, (what, files, kept)) in images.into_iter().enumerate() {
        log.put(&files);
        let verdict = log.verify();
        assert_eq!((verdict.problem, verdict.last), (None, kept), "{what}");
        // Every torn length verifies; each append takes two syncs, so every 29th is gone on from.
        if what.ends_with(" bytes") && number % 29 != 0 {
            continue;
        }
        log.add(1);
        let after = log.verify();
        assert_eq!((after.problem, after.last), (None, kept + 1), "{what}, then an entry");
        assert_eq!(
            after.notes.len(),
            verdict.notes.len(),
            "{what}: the entry says what it cut off"
        );
        log.add(9);
        let verdict = log.verify();
        assert_eq!((verdict.problem, verdict.last, verdict.files), (None, kept + 10, 3), "{what}");
    }
}

/// The steps of a rotation that drops the oldest file, each as it was reached, or not.
fn rotation_images() -> Vec<(String, Files, u64)> {
    let oldest = |files: &Files| files.get("audit.2.jsonl").cloned();
    let log = Log::filled(SMALL, 2, 1);
    while oldest(&log.files()).is_none() {
        log.add(1);
    }
    let (mut files, mut after) = (log.files(), log.files());
    while oldest(&files) == oldest(&after) {
        files = after;
        log.add(1);
        after = log.files();
    }
    let last = log.verify().last - 1;
    let mut images = Vec::new();
    let mut image = |what: &str, files: &Files, kept| {
        images.push((what.to_owned(), files.clone(), kept));
    };
    image("before a rotation", &files, last);
    let names = [LOG, "audit.1.jsonl", "audit.2.jsonl", "audit.3.jsonl"];
    for number in (0..3).rev() {
        let moved = files.remove(names[number]).unwrap();
        files.insert(names[number + 1].into(), moved);
        image(&format!("file {number} renamed"), &files, last);
    }
    files.insert("audit.jsonl.new".into(), after[LOG][..10].to_vec());
    image("half of the new file", &files, last);
    files.remove("audit.jsonl.new");
    files.insert(LOG.into(), after[LOG].clone());
    image("the new file without the head", &files, last + 1);
    files.insert(HEAD.into(), after[HEAD].clone());
    image("the oldest file not yet removed", &files, last + 1);
    files.remove("audit.3.jsonl");
    assert_eq!(files, after);
    image("after the rotation", &files, last + 1);
    images
}

/// Records in a directory and at a pace that the parent says.
#[test]
fn recorder() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (work, dir) = task.split_once(' ').unwrap();
    let options = AuditOptions { max_bytes: SMALL, keep: 400, ..AuditOptions::at(dir) };
    match work.split_once(':').unwrap_or((work, "")) {
        ("many", count) => {
            let log = AuditLog::open(options).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..2 {
                    let log = &log;
                    scope.spawn(move || {
                        for n in 0..count.parse::<u32>().unwrap() {
                            log.record(&event(&format!("{thread} {n}"))).unwrap();
                        }
                    });
                }
            });
        }
        // Also for scripts/audit-syncs.sh.
        ("reporting", count) => {
            let log = AuditLog::open(AuditOptions { keep: 2, ..options }).unwrap();
            for n in 0..count.parse().unwrap_or(u64::MAX) {
                log.record(&event(&format!("0 {n}"))).unwrap();
                report(&n.to_string());
            }
        }
        ("until-full", bytes) => {
            let log = AuditLog::open(AuditOptions { max_bytes: 1 << 20, ..options }).unwrap();
            limit_file_size(bytes.parse().unwrap());
            let error = (0..100).find_map(|n| log.record(&event(&n.to_string())).err());
            report(&format!("{}", error.unwrap()));
        }
        ("as-nobody", _) => {
            become_nobody();
            let error = AuditLog::open(options).map(drop).unwrap_err();
            report(&error.to_string());
        }
        (work, _) => panic!("{work}"),
    }
}

#[allow(unsafe_code)]
fn limit_file_size(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the limit is valid for reading; without the signal, the write itself fails.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
}

/// Where this is the superuser, for whom permissions mean nothing.
#[allow(unsafe_code)]
fn become_nobody() {
    // SAFETY: these take and give numbers.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setuid(65534), 0);
        }
    }
}

fn start(log: &Log, work: &str) -> Process {
    Process::start("recorder", TASK, &format!("{work} {}", log.dir.path().display()))
}

#[test]
fn four_processes_of_two_threads_lose_nothing_over_many_rotations() {
    const EACH: u32 = 40;
    let log = Log::new(SMALL, 400);
    let processes: Vec<Process> = (0..4).map(|_| start(&log, &format!("many:{EACH}"))).collect();
    // Readers keep nobody waiting, and see a whole log at any time.
    let mut last = 0;
    while last < u64::from(EACH) * 2 {
        if !log.path(HEAD).exists() {
            continue;
        }
        let verdict = log.verify();
        assert_eq!(verdict.problem, None);
        assert!(verdict.last >= last);
        last = verdict.last;
        assert!(log.entries().len() as u64 >= last);
    }
    processes.into_iter().for_each(|process| drop(process.finish(TOO_LONG).unwrap()));
    let verdict = log.verify();
    assert_eq!((verdict.problem, verdict.lines), (None, u64::from(EACH) * 8));
    assert!(verdict.files > 20, "{} files", verdict.files);
    let mut of_thread: BTreeMap<(u32, String), Vec<u32>> = BTreeMap::new();
    let mut times = Vec::new();
    for (seq, entry) in (1..).zip(log.entries()) {
        assert_eq!(entry.seq, seq);
        let detail = entry.detail.unwrap();
        let (thread, n) = detail.split_once(' ').unwrap();
        of_thread.entry((entry.pid, thread.into())).or_default().push(n.parse().unwrap());
        times.push(entry.time);
    }
    assert_eq!(of_thread.len(), 8);
    assert!(of_thread.values().all(|numbers| numbers.iter().copied().eq(0..EACH)));
    assert!(times.is_sorted());
}

#[test]
fn a_killed_process_leaves_a_clean_log_with_all_that_it_reported() {
    let log = Log::new(SMALL, 2);
    let mut reported = 0;
    for round in 0..12 {
        let mut process = start(&log, "reporting");
        assert!(process.wait_for("", 5 + 3 * round, TOO_LONG), "round {round}");
        reported += process.kill().len() as u64;
        let verdict = log.verify();
        assert_eq!(verdict.problem, None, "round {round}");
        // The last one may have been recorded, and not yet reported.
        assert!((reported..=reported + 1).contains(&verdict.last), "round {round}");
        reported = verdict.last;
    }
}

#[test]
fn rotation_keeps_to_its_bounds() {
    for (keep, expected) in [(0, 1), (1, 2), (3, 4)] {
        let log = Log::filled(SMALL, keep, 40);
        let files = log.files();
        let sizes: Vec<usize> =
            files.iter().filter(|(name, _)| is_log(name)).map(|(_, bytes)| bytes.len()).collect();
        assert_eq!(sizes.len(), expected, "{keep} kept");
        assert!(sizes.iter().all(|size| *size as u64 <= SMALL), "{sizes:?}");
        let verdict = log.verify();
        assert_eq!((verdict.problem, verdict.last), (None, 40), "{keep} kept");
        // With fewer to keep, the next rotation removes the rest.
        let fewer = AuditOptions { keep: 0, ..log.options.clone() };
        add(&fewer, 10);
        assert_eq!(verify(&fewer).unwrap().files, 1, "{keep} kept, then none");
        assert_eq!(log.problem(), None);
    }
    // A bound that no line keeps to gives each line its own file.
    let log = Log::filled(1, 3, 10);
    assert_eq!((log.verify().files, log.verify().lines, log.problem()), (4, 4, None));
}

/// The system refuses to write behind a limit, in the middle of a line, as on a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_leaves_a_clean_log() {
    for limit in [2000, 2100, 2300] {
        let log = Log::new(1 << 20, 2);
        let said = start(&log, &format!("until-full:{limit}")).finish(TOO_LONG).unwrap();
        assert!(said[0].starts_with("audit log: ") && said[0].contains(LOG), "{said:?}");
        let verdict = log.verify();
        assert_eq!((verdict.problem, verdict.notes), (None, vec![]), "{limit}");
        assert!(verdict.last > 3);
        log.add(1);
        assert_eq!((log.problem(), log.verify().last), (None, verdict.last + 1), "{limit}");
    }
}

#[cfg(unix)]
#[test]
fn what_the_system_refuses_is_an_error() {
    let log = Log::filled(SMALL, 2, 2);
    set_mode(log.dir.path(), 0o555);
    let said = start(&log, "as-nobody").finish(TOO_LONG).unwrap();
    set_mode(log.dir.path(), 0o700);
    assert!(said[0].contains("audit.lock: Permission denied"), "{said:?}");

    for name in [LOG, HEAD, "audit.lock", "audit.key"] {
        let log = Log::filled(SMALL, 2, 2);
        let open = AuditLog::open(log.options.clone()).unwrap();
        fs::remove_file(log.path(name)).unwrap();
        fs::create_dir(log.path(name)).unwrap();
        let error = AuditLog::open(log.options.clone()).map(drop).unwrap_err();
        assert!(matches!(error, Error::Audit(_)), "{name}: {error:?}");
        assert!(error.to_string().contains(name), "{error}");
        // The key was read when the log was opened.
        assert_eq!(open.record(&event("x")).is_err(), name != "audit.key", "{name}");
    }
    fs::write(log.path("file"), b"").unwrap();
    let error = AuditLog::open(AuditOptions::at(log.path("file/dir"))).map(drop).unwrap_err();
    assert_eq!(error.sqlite_code(), 0x770e, "{error}");
}

#[test]
fn only_the_key_of_the_log_opens_it() {
    let log = Log::filled(SMALL, 2, 3);
    let other = Log::filled(SMALL, 2, 1);
    let elsewhere = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = elsewhere.path().join(name);
        fs::write(&path, text).unwrap();
        #[cfg(unix)]
        set_mode(&path, 0o600);
        Some(SecretSource::File(path))
    };
    let key = fs::read(log.path("audit.key")).unwrap();
    assert_eq!((key.len(), key.last()), (45, Some(&b'\n')));
    for (what, source, words) in [
        ("the key elsewhere", file("key", &key), None),
        ("without its line end", file("key-1", &key[..44]), None),
        (
            "the key of another log",
            file("other", &fs::read(other.path("audit.key")).unwrap()),
            Some("neither the lines nor the head"),
        ),
        (
            "no such file",
            Some(SecretSource::File("/nonexistent/key".into())),
            Some("there is no file"),
        ),
        ("an empty file", file("empty", b""), Some("is empty")),
        ("half a key", file("half", &key[..22]), Some("is not base64 of 32 bytes")),
        ("raw bytes", file("raw", &[0x80; 32]), Some("is not base64 of 32 bytes")),
        (
            "no such variable",
            Some(SecretSource::Environment("TDE_NO_KEY".into())),
            Some("is not set"),
        ),
    ] {
        let options = AuditOptions { key: source, ..log.options.clone() };
        let opened = AuditLog::open(options.clone()).map(drop).map_err(|error| error.to_string());
        let verified = verify(&options).map(|verdict| verdict.problem);
        match words {
            None => assert_eq!((opened, verified.unwrap()), (Ok(()), None), "{what}"),
            Some(words) => {
                let opened = opened.unwrap_err();
                assert!(opened.contains(words), "{what}: {opened}");
                let verified = verified.map_or_else(|e| e.to_string(), |p| p.unwrap().to_string());
                let words = words.replace("neither the lines", "neither this line");
                assert!(verified.contains(&words), "{what}: {verified}");
            }
        }
    }
    // A log whose key is kept elsewhere has none in its directory.
    let apart = Log::new(SMALL, 2);
    let options = AuditOptions { key: file("apart", &key), ..apart.options.clone() };
    add(&options, 6);
    assert_eq!(verify(&options).unwrap().problem, None);
    assert!(!apart.path("audit.key").exists());
    // One that was lost is not replaced by another, which would fit nothing.
    fs::remove_file(log.path("audit.key")).unwrap();
    let error = AuditLog::open(log.options.clone()).map(drop).unwrap_err().to_string();
    assert!(error.contains("there is no file") && !log.path("audit.key").exists(), "{error}");
}

#[cfg(unix)]
#[test]
fn a_key_file_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let log = Log::filled(SMALL, 2, 3);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let made = ["audit.key", LOG, HEAD, "audit.lock"].map(|name| mode(&log.path(name)));
    assert_eq!(made, [0o600; 4]);
    // A file of root's may be read by its group, as systemd has it; so 640 is not among these.
    for (loose, refused) in
        [(0o600, false), (0o400, false), (0o604, true), (0o644, true), (0o620, true)]
    {
        set_mode(&log.path("audit.key"), loose);
        let opened = AuditLog::open(log.options.clone()).map(drop);
        assert_eq!(opened.is_err(), refused, "{loose:o}");
        assert_eq!(verify(&log.options).is_err(), refused, "{loose:o}");
        if let Err(error) = opened {
            assert!(error.to_string().contains("lets others read keys"), "{error}");
        }
    }
}

#[test]
fn nothing_there_is_a_problem_and_an_empty_log_is_none() {
    let log = Log::new(SMALL, 2);
    assert!(verify(&log.options).unwrap_err().to_string().contains("there is no file"));
    let open = AuditLog::open(log.options.clone()).unwrap();
    assert_eq!((log.problem(), log.verify().lines, log.entries().len()), (None, 0, 0));
    // All of it deleted under a process that has it open.
    open.record(&event("one")).unwrap();
    fs::remove_file(log.path(LOG)).unwrap();
    fs::remove_file(log.path(HEAD)).unwrap();
    assert_eq!(log.verify().problem.unwrap().what, "there is no audit log");
    open.record(&event("two")).unwrap();
    assert_eq!(log.problem(), Some((LOG.to_owned(), 1)));
    // A key that is there before the log is used.
    let key = fs::read(log.path("audit.key")).unwrap();
    log.put(&Files::from([("audit.key".to_owned(), key.clone())]));
    log.add(1);
    assert_eq!((log.problem(), fs::read(log.path("audit.key")).unwrap()), (None, key));
}

#[test]
fn entries_are_read_and_chosen_without_the_key() {
    let log = Log::new(SMALL, 5);
    let open = AuditLog::open(log.options.clone()).unwrap();
    let path = |path| Some(Path::new(path));
    for (kind, file_id, path, protector) in [
        (EventKind::Create, [1; 16], path("/a/one.db"), Some("first")),
        (EventKind::Open, [1; 16], path("/a/one.db"), None),
        (EventKind::Rotate, [1; 16], path("/a/one.db"), Some("second")),
        (EventKind::Create, [2; 16], path("/b/two.db"), Some("first")),
        (EventKind::Open, [2; 16], path("/b/two.db"), None),
    ] {
        let rest = Event::new(kind);
        open.record(&Event { file_id: Some(&file_id), path, protector, ..rest }).unwrap();
    }
    fs::remove_file(log.path("audit.key")).unwrap();
    let found = log.entries();
    let times: Vec<SystemTime> = found.iter().map(|entry| system_time(&entry.time)).collect();
    let all = Filter::default();
    let db = |db: &str| Filter { db: Some(db.to_owned()), ..all.clone() };
    let tick = Duration::from_millis(1);
    for (what, filter, expected) in [
        ("all", all.clone(), vec![1, 2, 3, 4, 5]),
        ("kind", Filter { kind: Some(EventKind::Create), ..all.clone() }, vec![1, 4]),
        ("file id", db(&"01".repeat(16)), vec![1, 2, 3]),
        ("path", db("/b/two.db"), vec![4, 5]),
        ("name", db("two.db"), vec![4, 5]),
        ("part of a name", db("wo.db"), vec![]),
        ("protector", Filter { protector: Some("first".into()), ..all.clone() }, vec![1, 4]),
        ("two at once", Filter { kind: Some(EventKind::Open), ..db("one.db") }, vec![2]),
        ("since the first", Filter { since: Some(times[0]), ..all.clone() }, vec![1, 2, 3, 4, 5]),
        ("since later", Filter { since: Some(times[4] + tick), ..all.clone() }, vec![]),
        ("until the last", Filter { until: Some(times[4]), ..all.clone() }, vec![1, 2, 3, 4, 5]),
        ("until before", Filter { until: Some(times[0] - tick), ..all.clone() }, vec![]),
    ] {
        let chosen: Vec<u64> =
            found.iter().filter(|entry| filter.fits(entry)).map(|entry| entry.seq).collect();
        assert_eq!(chosen, expected, "{what}");
    }
    // What is no entry is named, and does not hide the next one; a torn end is no entry.
    let files = with_lines(&log.files(), LOG, |lines| {
        lines.insert(1, b"hello\n".to_vec());
        lines.push(b"{\"seq\":".to_vec());
    });
    log.put(&files);
    let (good, bad): (Vec<_>, Vec<_>) = entries(&log.options).unwrap().partition(Result::is_ok);
    assert_eq!(good.len(), 5);
    let bad: Vec<String> = bad.into_iter().map(|error| error.unwrap_err().to_string()).collect();
    assert_eq!(bad, ["audit log: audit.jsonl, line 2: this is not an entry"]);
}
