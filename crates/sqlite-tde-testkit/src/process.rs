//! Tests that need processes: this test binary, started again with a task, and what it reports.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Longer than anything here takes; a test that gets there hangs.
pub const TOO_LONG: Duration = Duration::from_secs(120);

/// Whether all is tried, not a sample.
pub fn full() -> bool {
    std::env::var_os("SQLITE_TDE_FULL").is_some_and(|value| value == "1")
}

/// What every reported line starts with: libtest writes to the same pipe.
const REPORT: &str = "@ ";

/// Tells the parent; the line is in the pipe when this returns.
pub fn report(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{REPORT}{line}").and_then(|()| out.flush()).expect("the parent reads");
}

/// This test binary, to run the test called `test` alone.
pub fn this_test(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(only(test));
    command
}

/// The arguments with which a test binary runs the test called `test` alone.
pub fn only(test: &str) -> [&str; 5] {
    [test, "--exact", "--quiet", "--nocapture", "--test-threads=1"]
}

/// Tries until there is an answer, for a minute.
pub fn in_time<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = attempt() {
            return answer;
        }
        assert!(Instant::now() < until, "{what}: never");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process that runs one test of this binary.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    waiting: VecDeque<String>,
}

impl Process {
    /// Runs the test called `test` with the environment variable `variable` set to `task`.
    pub fn start(test: &str, variable: &str, task: &str) -> Self {
        let mut child = this_test(test)
            .env(variable, task)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix(REPORT) {
                    let _ = send.send(line.to_owned());
                }
            }
        });
        Self { child, lines, waiting: VecDeque::new() }
    }

    /// Waits for `count` lines that start with `start`, or for the end of the process or of
    /// `limit`. Keeps every line. Answers whether they came.
    pub fn wait_for(&mut self, start: &str, count: u64, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut seen = 0;
        while seen < count {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    seen += u64::from(line.starts_with(start));
                    self.waiting.push_back(line);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// SIGKILL, and every line up to then.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.waiting.extend(self.lines.iter());
        self.waiting.into()
    }

    /// Waits for the end. Answers every line, or that it failed or took too long.
    pub fn finish(mut self, limit: Duration) -> Result<Vec<String>, String> {
        let until = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > until {
                let lines = self.kill();
                return Err(format!("it hangs; the last it said was {:?}", lines.last()));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.waiting.extend(self.lines.iter());
        if status.success() {
            return Ok(self.waiting.into());
        }
        Err(format!("{status}; the last it said was {:?}", self.waiting.back()))
    }
}

#[cfg(target_os = "linux")]
const NOBODY: u32 = 65534;

/// The process runs as a user without privileges, from a directory that user can read.
#[cfg(target_os = "linux")]
pub fn as_nobody(program: &Path, dir: &Path) -> Command {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;

    let copy = dir.join("program");
    fs::copy(program, &copy).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -l 0; exec \"$0\" \"$@\""]).arg(&copy);
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        for name in ["", "program", "keys", "keys/keystore.json", "a.db"] {
            let path = dir.join(name);
            if path.exists() {
                std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}
