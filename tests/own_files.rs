//! The library's own small files with something else in their place, or in other hands: an error
//! within a bounded time that names the file, never a hang, and nothing written elsewhere.
#![cfg(unix)]

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use sqlite_tde::audit::{AuditLog, AuditOptions, Event, EventKind, entries, verify};
use sqlite_tde::config::Config;
use sqlite_tde::provider::{Context, Deadline, KeyProvider, Keystore, SecretSource, WrapRequest};
use sqlite_tde::secret::Secret;
use sqlite_tde_testkit::process::{Process, TOO_LONG, report};
use sqlite_tde_testkit::set_mode;

const TASK: &str = "SQLITE_TDE_TEST_OWN_FILES";
const NOBODY: u32 = 65534;
const SHORT: Duration = Duration::from_millis(300);

/// What a use of the file may take: on the old code some never ended.
const LIMIT: Duration = Duration::from_secs(8);

type Answer = Result<(), String>;

/// The trouble of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    Fifo,
    Socket,
    Directory,
    /// To the file itself, moved elsewhere.
    Link,
    /// To a file elsewhere that is not there.
    DanglingLink,
    OtherOwner,
    GroupWritable,
    Locked,
    /// Those of the directory that the file is in.
    DirectoryOfOther,
    DirectoryGroupWritable,
}
use Trouble::*;

/// All that cannot be read as a file.
const NO_FILE: [Trouble; 3] = [Fifo, Socket, Directory];

/// A file that others must not have in hand, and what to do that uses it.
struct Row {
    file: &'static str,
    refused: &'static [Trouble],
    /// What is accepted in spite of it.
    accepted: &'static [Trouble],
    uses: &'static [(&'static str, fn(&Path) -> Answer)],
}

fn words<T>(answer: Result<T, impl ToString>) -> Answer {
    answer.map(drop).map_err(|error| error.to_string())
}

fn read_config(dir: &Path) -> Answer {
    words(Config::load(dir))
}

fn list_keys(dir: &Path) -> Answer {
    words(Keystore::at(dir).list())
}

fn wrap_default(dir: &Path) -> Answer {
    let (dek, context) = (Secret::random().unwrap(), Context { file_id: [7; 16], dek_version: 1 });
    let mut request = WrapRequest::new("default", &dek, &context);
    request.deadline = Deadline::after(SHORT);
    words(Keystore::at(dir).wrap(&request))
}

fn read_secret(dir: &Path) -> Answer {
    words(SecretSource::File(dir.join("secret")).read("a pin"))
}

fn audit(dir: &Path) -> AuditOptions {
    AuditOptions { max_bytes: 4096, time_out: SHORT, ..AuditOptions::at(dir) }
}

fn record(dir: &Path) -> Answer {
    let recorded = AuditLog::open(audit(dir)).and_then(|log| log.record(&event()));
    words(recorded)
}

fn event() -> Event<'static> {
    Event::new(EventKind::Open)
}

fn check_log(dir: &Path) -> Answer {
    match verify(&audit(dir)).map(|verdict| verdict.problem) {
        Ok(Some(problem)) => Err(format!("{problem}")),
        verified => words(verified),
    }
}

fn read_log(dir: &Path) -> Answer {
    words(entries(&audit(dir)).and_then(Iterator::collect::<Result<Vec<_>, _>>))
}

const ROWS: [Row; 9] = [
    Row {
        file: "config.toml",
        refused: &[
            DanglingLink,
            OtherOwner,
            GroupWritable,
            DirectoryOfOther,
            DirectoryGroupWritable,
        ],
        accepted: &[Link],
        uses: &[("load", read_config)],
    },
    Row {
        file: "keystore.json",
        refused: &[
            OtherOwner,
            GroupWritable,
            Link,
            DanglingLink,
            DirectoryOfOther,
            DirectoryGroupWritable,
        ],
        accepted: &[],
        uses: &[("list", list_keys), ("wrap", wrap_default)],
    },
    Row {
        file: "keystore.lock",
        refused: &[Link, DanglingLink, Locked, DirectoryOfOther, DirectoryGroupWritable],
        accepted: &[],
        uses: &[("wrap", wrap_default)],
    },
    Row {
        file: "secret",
        refused: &[OtherOwner, GroupWritable, DanglingLink],
        accepted: &[Link],
        uses: &[("read", read_secret)],
    },
    Row {
        file: "audit.jsonl",
        refused: &[Link, DanglingLink, DirectoryOfOther, DirectoryGroupWritable],
        accepted: &[],
        uses: &[("record", record)],
    },
    Row {
        file: "audit.jsonl",
        refused: &[Link, DanglingLink],
        accepted: &[],
        uses: &[("verify", check_log), ("entries", read_log)],
    },
    Row {
        file: "audit.head",
        refused: &[Link, DanglingLink],
        accepted: &[],
        uses: &[("record", record), ("verify", check_log)],
    },
    Row {
        file: "audit.key",
        refused: &[OtherOwner, GroupWritable],
        accepted: &[Link],
        uses: &[("record", record), ("verify", check_log)],
    },
    Row {
        file: "audit.lock",
        refused: &[Link, DanglingLink, Locked],
        accepted: &[],
        uses: &[("record", record), ("verify", check_log), ("entries", read_log)],
    },
];

/// A directory in which all is well.
fn make(dir: &Path) {
    set_mode(dir, 0o700);
    fs::write(dir.join("config.toml"), "allow_plaintext = true").unwrap();
    fs::write(dir.join("secret"), "hush").unwrap();
    for name in ["config.toml", "secret"] {
        set_mode(&dir.join(name), 0o600);
    }
    // No key `default`, so that wrapping with it writes the file under its lock.
    Keystore::at(dir).create("other").unwrap();
    AuditLog::open(audit(dir)).and_then(|log| log.record(&event())).unwrap();
}

/// Makes the trouble, with `elsewhere` as the place that must not be written to. Answers with
/// whoever has to live on for it; `None` where only the superuser can make it.
fn trouble(trouble: Trouble, path: &Path, elsewhere: &Path) -> Option<Box<dyn std::any::Any>> {
    let dir = path.parent().unwrap();
    let kept: Box<dyn std::any::Any> = Box::new(());
    match trouble {
        Fifo | Socket | Directory | Link | DanglingLink => {
            match trouble {
                Link => drop(fs::rename(path, elsewhere)),
                _ => drop(fs::remove_file(path)),
            }
            match trouble {
                Fifo => fifo(path),
                Socket => return Some(Box::new(UnixListener::bind(path).unwrap())),
                Directory => {
                    fs::create_dir(path).unwrap();
                    set_mode(path, 0o700);
                }
                _ => symlink(elsewhere, path).unwrap(),
            }
        }
        OtherOwner => return chown(path, Some(NOBODY), None).ok().map(|()| kept),
        DirectoryOfOther => return chown(dir, Some(NOBODY), None).ok().map(|()| kept),
        GroupWritable => set_mode(path, 0o620),
        DirectoryGroupWritable => set_mode(dir, 0o770),
        Locked => {
            let mut process = Process::start("locker", TASK, path.to_str().unwrap());
            assert!(process.wait_for("locked", 1, TOO_LONG), "the other process");
            return Some(Box::new(process));
        }
    }
    Some(kept)
}

#[allow(unsafe_code)]
fn fifo(path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the name ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

/// Locks a file for as long as the parent lets it.
#[test]
fn locker() {
    let Ok(path) = std::env::var(TASK) else { return };
    let file = File::open(path).unwrap();
    file.lock().unwrap();
    report("locked");
    std::thread::sleep(TOO_LONG);
}

/// What comes of one use with one trouble; `None` where it cannot be made here.
fn outcome(row: &Row, what: Trouble, task: fn(&Path) -> Answer) -> Option<Answer> {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("home");
    fs::create_dir(&dir).unwrap();
    make(&dir);
    let (path, elsewhere) = (dir.join(row.file), place.path().join("elsewhere"));
    let kept = trouble(what, &path, &elsewhere)?;
    let before = fs::read(&elsewhere).ok();
    let (send, answers) = channel();
    let began = Instant::now();
    let used = dir.clone();
    std::thread::spawn(move || send.send(task(&used)));
    let answer = answers.recv_timeout(LIMIT);
    if let Ok(process) = kept.downcast::<Process>() {
        process.kill();
    }
    let Ok(answer) = answer else { return Some(Err(format!("HANGS for {:?}", began.elapsed()))) };
    if fs::read(&elsewhere).ok() != before {
        return Some(Err("WROTE ELSEWHERE".to_owned()));
    }
    Some(answer)
}

#[test]
fn no_file_in_other_hands_is_used_or_waited_for() {
    let mut wrong = Vec::new();
    for row in &ROWS {
        let all = NO_FILE.iter().chain(row.refused).chain(row.accepted);
        for (what, (verb, task)) in all.flat_map(|what| row.uses.iter().map(move |u| (*what, u))) {
            let name = format!("{} {} {what:?}", row.file, verb);
            let Some(answer) = outcome(row, what, *task) else {
                eprintln!("{name}: NOT RUN, only the superuser can give a file away");
                continue;
            };
            let named = match what {
                DirectoryOfOther | DirectoryGroupWritable => "/home",
                _ => row.file,
            };
            let said = match what {
                Fifo => "a FIFO, not a regular file",
                Socket => "a socket, not a regular file",
                Directory => "a directory, not a regular file",
                Link => "a symbolic link, not a regular file",
                DanglingLink => "a symbolic link",
                OtherOwner | DirectoryOfOther => {
                    "belongs to user 65534, neither to root nor to user "
                }
                GroupWritable => "mode 620",
                DirectoryGroupWritable => "mode 770",
                Locked => "locked by another process",
            };
            let right = match &answer {
                Ok(()) => row.accepted.contains(&what),
                Err(text) => {
                    !row.accepted.contains(&what) && text.contains(named) && text.contains(said)
                }
            };
            if !right {
                wrong.push(format!("{name}: {answer:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A lock that becomes free in time is taken.
#[test]
fn a_lock_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    for (file, task) in
        [("keystore.lock", wrap_default as fn(&Path) -> Answer), ("audit.lock", record)]
    {
        let held = File::open(dir.path().join(file)).unwrap();
        held.lock().unwrap();
        let path = dir.path().to_owned();
        let waiting = std::thread::spawn(move || task(&path));
        std::thread::sleep(SHORT / 3);
        drop(held);
        assert_eq!(waiting.join().unwrap(), Ok(()), "{file}");
    }
}
