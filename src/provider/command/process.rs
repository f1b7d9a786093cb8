//! One run of a command: bounded in time and output, without leftover processes.
//!
//! 1. The input is in a file in memory, which ends where it ends, whoever else has it open: a
//!    process that the host forks meanwhile inherits all that is open here. Elsewhere than on
//!    Linux it is in a pipe, which it fits into, so that writing never waits.
//! 2. The process leads a group of its own, and we do not reap it before that group was killed:
//!    until then no other group can have its number.
//! 3. It is done when it ends. Its output is then in the pipes; other holders of them are not
//!    waited for.
//! 4. A host may reap any child, as a handler of SIGCHLD does. Its group is then left alone, and it
//!    has no exit status: the answer alone can tell.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use zeroize::Zeroizing;

use crate::process::environment;
use crate::provider::Deadline;

/// Capacity of a pipe on every system.
const INPUT_MAX_LEN: usize = 4096;
const COMPLAINT_MAX_LEN: usize = 400;
const PIECE_LEN: usize = 1024;
/// Polling intervals for the end of the process, while it writes and when it is idle.
const SLICE: Duration = Duration::from_millis(20);
const LAST_SLICE: Duration = Duration::from_millis(1);

/// The command to run.
pub(super) struct Call<'a> {
    pub(super) argv: &'a [OsString],
    pub(super) variables: &'a [(&'a str, String)],
    pub(super) input: &'a [u8],
    pub(super) output_max_len: usize,
    pub(super) time: Duration,
}

/// Its exit status.
pub(super) struct Outcome {
    /// `None` where the host has taken it.
    pub(super) status: Option<ExitStatus>,
    pub(super) output: Zeroizing<Vec<u8>>,
    /// Its standard error, as one line of printable text.
    pub(super) complaint: String,
}

/// The reason why it did not end by itself, or never began.
pub(super) enum Failure {
    TimedOut,
    OutputTooLong,
    System(io::Error),
}

impl<E: Into<io::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::System(error.into())
    }
}

impl Call<'_> {
    pub(super) fn run(&self) -> Result<Outcome, Failure> {
        let deadline = Deadline::after(self.time);
        let mut running = self.start()?;
        let mut output = Stream::new(running.child.stdout.take(), self.output_max_len);
        let mut errors = Stream::new(running.child.stderr.take(), COMPLAINT_MAX_LEN);
        loop {
            // Checked before reading: its output is then complete.
            let ended = running.has_ended();
            let read = read_ready([&mut output, &mut errors], ended)?;
            if output.is_too_long() {
                return Err(Failure::OutputTooLong);
            }
            if ended && !read {
                break;
            }
            if deadline.is_over() {
                return Err(Failure::TimedOut);
            }
        }
        let (status, complaint) = (running.end()?, printable(&errors.kept));
        Ok(Outcome { status, output: output.kept, complaint })
    }

    fn start(&self) -> Result<Running, Failure> {
        let no_command = || io::Error::new(io::ErrorKind::InvalidInput, "no command was set");
        let (program, arguments) = self.argv.split_first().ok_or_else(no_command)?;
        if self.input.len() > INPUT_MAX_LEN {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        let (stdin, input) = input_of(self.input)?;
        let environment = environment();
        // By its whole path it is started without a copy of this process, whose pipes a child of
        // the host might keep open.
        let child = Command::new(found(program, &environment))
            .args(arguments)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Running { child, group, is_reaped: false, input })
    }
}

/// A process that was started and not yet reaped; with it goes its group.
struct Running {
    child: Child,
    group: Option<Pid>,
    /// By the host.
    is_reaped: bool,
    /// Its input, if that can be emptied: a process that it left behind may have it open.
    input: Option<File>,
}

impl Running {
    /// Whether it ended, leaving it to be reaped.
    fn has_ended(&mut self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = self.group.map(|group| waitid(WaitId::Pid(group), look));
        self.is_reaped = matches!(status, Some(Err(Errno::CHILD)));
        !matches!(status, Some(Ok(None) | Err(Errno::INTR)))
    }

    fn end(&mut self) -> io::Result<Option<ExitStatus>> {
        if let Some(input) = self.input.take() {
            let _ = input.set_len(0);
        }
        if let Some(group) = self.group.take_if(|_| !self.is_reaped) {
            // Fails if the group is empty, which is fine.
            let _ = kill_process_group(group, Signal::KILL);
        }
        if self.is_reaped {
            return Ok(None);
        }
        match self.child.wait() {
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            status => status.map(Some),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The file of `program` in the directories of PATH; unchanged where it is none.
fn found(program: &OsStr, environment: &[(OsString, OsString)]) -> PathBuf {
    let path = environment.iter().find(|(name, _)| name == "PATH");
    let is_program = |file: &PathBuf| {
        let found = std::fs::metadata(file);
        found.is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
    };
    let found = path.filter(|_| !program.as_bytes().contains(&b'/')).and_then(|(_, path)| {
        std::env::split_paths(path).map(|dir| dir.join(program)).find(is_program)
    });
    found.unwrap_or_else(|| program.into())
}

/// A standard input that ends behind `input`, and what it can be emptied by.
fn input_of(input: &[u8]) -> io::Result<(Stdio, Option<File>)> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Ok(memory) = rustix::fs::memfd_create("sqlite-tde", rustix::fs::MemfdFlags::CLOEXEC) {
        let mut memory = File::from(memory);
        memory.write_all(input)?;
        memory.rewind()?;
        let ours = memory.try_clone()?;
        return Ok((memory.into(), Some(ours)));
    }
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(input)?;
    Ok((reader.into(), None))
}

/// The reading end of a pipe, and the first bytes from it.
struct Stream {
    pipe: Option<File>,
    kept: Zeroizing<Vec<u8>>,
    max_len: usize,
}

impl Stream {
    fn new(pipe: Option<impl Into<OwnedFd>>, max_len: usize) -> Self {
        let pipe = pipe.map(|pipe| File::from(pipe.into()));
        // One more than is allowed shows that there was more; the buffer never grows.
        Self { pipe, kept: Zeroizing::new(Vec::with_capacity(max_len + 1)), max_len }
    }

    fn is_too_long(&self) -> bool {
        self.kept.len() > self.max_len
    }

    /// Reads one piece, which is there.
    fn read(&mut self) -> io::Result<()> {
        let mut piece = Zeroizing::new([0; PIECE_LEN]);
        let len = match &mut self.pipe {
            // A handler of a signal may run on any thread of the host's.
            Some(pipe) => loop {
                match pipe.read(piece.as_mut_slice()) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => break read?,
                }
            },
            None => 0,
        };
        if len == 0 {
            self.pipe = None;
        }
        let room = self.max_len + 1 - self.kept.len();
        self.kept.extend_from_slice(&piece[..len.min(room)]);
        Ok(())
    }
}

/// Reads a piece from each stream that has one, after a while if none has. Answers whether any had.
fn read_ready(streams: [&mut Stream; 2], ended: bool) -> io::Result<bool> {
    let mut open: Vec<&mut Stream> = streams.into_iter().filter(|s| s.pipe.is_some()).collect();
    let wait = match (ended, open.is_empty()) {
        (true, _) => Duration::ZERO,
        (false, true) => LAST_SLICE,
        (false, false) => SLICE,
    };
    let ready = wait_for(&open, wait)?;
    let mut read = false;
    for (stream, _) in open.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
        stream.read()?;
        read = true;
    }
    Ok(read)
}

/// The streams that have data or have ended.
fn wait_for(streams: &[&mut Stream], wait: Duration) -> io::Result<Vec<bool>> {
    let pipes = streams.iter().filter_map(|stream| stream.pipe.as_ref());
    let mut polled: Vec<_> = pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
    let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
    match poll(&mut polled, Some(&wait)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(polled.iter().map(|polled| !polled.revents().is_empty()).collect())
}

/// Text without characters that move a terminal's cursor or change its colours.
fn printable(bytes: &[u8]) -> String {
    let shown = |c: char| c.is_alphanumeric() || c.is_ascii_graphic();
    let text = String::from_utf8_lossy(bytes);
    let text: String = text.chars().map(|c| if shown(c) { c } else { ' ' }).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
