//! Programs that do not know the library: SQLite's shell and Python, held open by pipes.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::process::this_test;
use crate::random::Random;

/// Longer than any answer takes.
const TOO_LONG: Duration = Duration::from_secs(60);

/// The last line of each answer.
pub const END: &str = "@end";

/// Answers each line of its input by what SQLite said, then [`END`].
const PYTHON: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
for line in sys.stdin:
    try:
        for row in db.execute(line):
            print(row)
    except Exception as error:
        print('error:', error)
    print('@end', flush=True)
";

/// A process that answers lines.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<String>,
    prompt: &'static str,
}

impl Peer {
    /// SQLite's shell, with `path` as its database.
    pub fn shell(path: &Path) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "exec stdbuf -o0 sqlite3 -batch \"$1\" 2>&1", "sh"]).arg(path);
        // The shell takes no other SQLite than its own.
        command.env_remove("LD_LIBRARY_PATH");
        Self::start(command, "\n.print @end")
    }

    /// Python's `sqlite3`, connected to `path`.
    pub fn python(path: &Path) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", PYTHON]).arg(path);
        Self::start(command, "")
    }

    /// This test binary, which runs the test called `test` with `variable` set to `task`.
    pub fn again(test: &str, variable: &str, task: &str) -> Self {
        let mut command = this_test(test);
        command.env(variable, task);
        Self::start(command, "")
    }

    fn start(mut command: Command, prompt: &'static str) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it is installed");
        let input = child.stdin.take();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (send, output) = channel();
        std::thread::spawn(move || {
            loop {
                let mut bytes = Vec::new();
                let len = out.read_until(b'\n', &mut bytes).unwrap_or(0);
                let line = String::from_utf8_lossy(&bytes).into_owned();
                if len == 0 || send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, input, output, prompt }
    }

    /// Has it do `line`. Answers what it said.
    pub fn ask(&mut self, line: &str) -> String {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}{}", self.prompt).and_then(|()| input.flush()).unwrap();
        let mut said = String::new();
        loop {
            let text = self
                .output
                .recv_timeout(TOO_LONG)
                .unwrap_or_else(|error| panic!("{line}: {error} after {said}"));
            if let Some(last) = text.trim_end().strip_suffix(END) {
                return said + last;
            }
            said.push_str(&text);
        }
    }

    /// It ends as it does at the end of its input.
    pub fn close(mut self) {
        self.input = None;
        self.child.wait().unwrap();
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What is done to the database in a program that cannot read it. `DB` stands for its path, `OUT`
/// for a file elsewhere. A line that starts with a dot is the shell's.
pub const ACTIONS: [(&str, &[&str]); 10] = [
    ("look", &["SELECT count(*) FROM sqlite_schema;"]),
    ("attach", &["ATTACH 'DB' AS again;", "SELECT * FROM again.sqlite_schema;"]),
    ("dump", &[".dump"]),
    ("recover", &[".recover"]),
    ("checkpoint", &["PRAGMA wal_checkpoint(TRUNCATE);", "CHECKPOINT"]),
    ("to a log", &["PRAGMA journal_mode=WAL;", "PRAGMA journal_mode;"]),
    ("away from a journal", &["PRAGMA journal_mode=PERSIST;", "PRAGMA journal_mode=DELETE;"]),
    ("without a journal", &["PRAGMA journal_mode=OFF;", "SELECT * FROM sqlite_schema;"]),
    ("vacuum", &["VACUUM INTO 'OUT';", "VACUUM;", "PRAGMA integrity_check;"]),
    ("write", &["BEGIN IMMEDIATE;", "CREATE TABLE z(a);", "COMMIT;"]),
];

/// Programs without the library that look at databases, one after the other: they stay for a while,
/// and end or are killed.
pub struct Stranger {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Stranger {
    pub fn start<const N: usize>(files: [PathBuf; N], seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut random, mut looked) = (Random::new(seed), 0);
            while !stopped.load(Ordering::SeqCst) {
                // One that has no byte yet could be made a plain database.
                let path = &files[random.below(N as u64) as usize];
                if !path.metadata().is_ok_and(|file| file.len() > 0) {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                let mut peer =
                    if random.one_in(2) { Peer::shell(path) } else { Peer::python(path) };
                for _ in 0..1 + random.below(4) {
                    let (_, lines) = ACTIONS[random.below(ACTIONS.len() as u64) as usize];
                    for line in lines.iter().filter(|line| !line.starts_with('.')) {
                        let line = line
                            .replace("DB", path.to_str().unwrap())
                            .replace("OUT", "/nowhere/out.db")
                            .replace("CHECKPOINT", "PRAGMA wal_checkpoint(RESTART);");
                        let said = peer.ask(&line);
                        if line.contains("sqlite_schema") && !is_refusal(&said) {
                            return Err(format!("a stranger is told {said} to {line}"));
                        }
                        looked += 1;
                    }
                    std::thread::sleep(Duration::from_micros(random.below(5_000)));
                }
                if random.one_in(2) { peer.kill() } else { peer.close() }
            }
            Ok(looked)
        });
        Self { stop, thread }
    }

    /// Answers how often it looked.
    pub fn end(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap_or_else(|_| Err("a stranger failed".into()))
    }
}

fn is_refusal(said: &str) -> bool {
    said.contains("not a database") || said.contains("locked")
}
