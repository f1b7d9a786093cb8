//! A provider that is a command: `age`, `gpg`, `systemd-creds`, the tool of a key service, a
//! script.
//!
//! The command comes from the application or the user's own configuration. From a database file it
//! gets only the key's id and version, in letters, digits and `._-@`, never as the program's name.
//! A key is never in an argument or a variable, which other processes can see.

mod process;
mod table;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use zeroize::Zeroizing;

use self::process::{Call, Failure, Outcome};
use super::runs::{Ours, Runs};
use super::{
    Answer, Context, Deadline, KeyProvider, ONLY_VERSION, ProviderError, UnwrapRequest,
    VersionRequest, WaitsFor, WrapRequest, Wrapped,
};
use crate::secret::{KEY_LEN, Secret};

const MECHANISM: &str = "command";
const BLOB_MAX_LEN: usize = 2048;
const NAME_MAX_LEN: usize = 128;
const TIME: Duration = Duration::from_secs(10);

/// Of `sysexits.h`: the input was no good, an input is missing, permission was refused.
const WRONG_KEY: i32 = 65;
const NOT_HERE: i32 = 66;
const DENIED: i32 = 77;

/// A provider that runs one command to wrap and one to unwrap, without a shell.
///
/// | | standard input | standard output |
/// |---|---|---|
/// | wrap | the key, 32 bytes | the wrapped key, 1 to 2048 bytes |
/// | unwrap | the wrapped key | the key, exactly 32 bytes |
/// | newest | nothing | the newest version of the key, in text |
///
/// Data of the key are in the environment and replace placeholders in arguments:
///
/// | variable | placeholder | |
/// |---|---|---|
/// | `SQLITE_TDE_KEY_ID` | `{key_id}` | the key's id |
/// | `SQLITE_TDE_KEY_VERSION` | `{key_version}` | its version, `1` without a `newest` command |
/// | `SQLITE_TDE_CONTEXT` | `{context}` | [`Context::encode`] in hexadecimal, as associated data |
///
/// Key ids and versions are 1 to 128 of `A-Z a-z 0-9 . _ - @`, begin with a letter or digit and
/// have no `..`, so that they are safe as a file's name and in a script. Others are refused and
/// nothing is run.
///
/// | exit code | meaning |
/// |---:|---|
/// | 0 | done |
/// | 65 | [`ProviderError::WrongKey`]: the key did not wrap this |
/// | 66 | [`ProviderError::NotHere`]: there is no such key |
/// | 77 | [`ProviderError::Denied`]: the key is there and may not be used |
/// | another, a signal, no end in time | [`ProviderError::Unreachable`] |
///
/// The codes are those of `sysexits.h`, which no tool gives by accident: shells and tools use 1 and
/// 2 for any failure. The first 400 bytes of standard error are shown in the error: the command
/// must not write keys there.
///
/// The command inherits the environment and the working directory. It runs in a process group of
/// its own, which is killed when the time is up and when the command has ended; so it cannot ask at
/// the terminal, and leaves no process behind unless that left the group.
///
/// Only the key is wrapped. The command need not bind the context: a blob put into another database
/// gives a key that does not match that database's envelope. A blob of context and key together
/// would be redundant, and no tool could return the key alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    wrap: Vec<OsString>,
    unwrap: Vec<OsString>,
    newest: Option<Vec<OsString>>,
    time: Duration,
}

impl Command {
    /// The commands to wrap and to unwrap: a program, found as the system finds it, and its
    /// arguments. Runs nothing yet.
    pub fn new(
        wrap: impl IntoIterator<Item = impl Into<OsString>>,
        unwrap: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        Self { wrap: argv(wrap), unwrap: argv(unwrap), newest: None, time: TIME }
    }

    /// The command that prints the newest version of a key. Without it the only version is `1`.
    #[must_use]
    pub fn newest(self, newest: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { newest: Some(argv(newest)), ..self }
    }

    /// Time limit of a command; 10 seconds by default. No call takes longer than
    /// [`crate::AccessPolicy::time_out`], either.
    #[must_use]
    pub fn timeout(self, time: Duration) -> Self {
        Self { time, ..self }
    }

    fn newest_in(&self, key_id: &str, deadline: Deadline) -> Result<String, ProviderError> {
        check_name("key id", key_id)?;
        let Some(newest) = &self.newest else {
            return Ok(ONLY_VERSION.to_owned());
        };
        let run = Run::new(self, "newest", newest, key_id, "", None);
        // A line end does not count.
        let output = run.output(deadline, &[], NAME_MAX_LEN + 2)?;
        let version = std::str::from_utf8(&output).map(str::trim_end).unwrap_or_default();
        check_name("key version", version)
            .map_err(|_| run.damaged("printed no version: 1 to 128 of A-Z a-z 0-9 . _ - @"))?;
        Ok(version.to_owned())
    }
}

fn argv(words: impl IntoIterator<Item = impl Into<OsString>>) -> Vec<OsString> {
    words.into_iter().map(Into::into).collect()
}

impl KeyProvider for Command {
    fn kind(&self) -> &str {
        "command"
    }

    fn waits_for(&self) -> WaitsFor {
        WaitsFor::Service
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { key_id, dek, context, deadline, .. } = *request;
        let key_version = self.newest_in(key_id, deadline)?;
        let run = Run::new(self, "wrap", &self.wrap, key_id, &key_version, Some(context));
        let output = run.output(deadline, dek.expose(), BLOB_MAX_LEN)?;
        if output.is_empty() {
            return Err(run.damaged("printed nothing, where a wrapped key was expected"));
        }
        Ok(Wrapped::new(key_version, MECHANISM, output.to_vec()).into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { key_id, wrapped, context, deadline, .. } = *request;
        let Wrapped { key_version, blob, .. } = wrapped;
        wrapped.expect(MECHANISM)?;
        check_name("key id", key_id)?;
        check_name("key version", key_version)?;
        if self.newest.is_none() && key_version != ONLY_VERSION {
            let text =
                format!("key {key_id} has no version {key_version}: no command tells versions");
            return Err(ProviderError::not_here(text));
        }
        let run = Run::new(self, "unwrap", &self.unwrap, key_id, key_version, Some(context));
        if !(1..=BLOB_MAX_LEN).contains(&blob.len()) {
            return Err(run.damaged(&format!("was not run for a blob of {} bytes", blob.len())));
        }
        let output = run.output(deadline, blob, KEY_LEN)?;
        Secret::from_slice(&output).map(Answer::from).ok_or_else(|| {
            let len = output.len();
            run.damaged(&format!("printed {len} bytes, where a key of {KEY_LEN} was expected"))
        })
    }

    fn newest_version(
        &self,
        request: &VersionRequest<'_>,
    ) -> Result<Answer<String>, ProviderError> {
        self.newest_in(request.key_id, request.deadline).map(Answer::from)
    }

    fn runs(&self, _: Ours) -> Runs {
        Runs::CallsApart
    }
}

/// Refuses names that could pass for an option, a path elsewhere, or shell syntax.
fn check_name(what: &str, name: &str) -> Result<(), ProviderError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    let sound = (1..=NAME_MAX_LEN).contains(&name.len())
        && name.bytes().all(allowed)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && !name.contains("..");
    if sound {
        return Ok(());
    }
    Err(ProviderError::not_here(format!(
        "{what} {name:?} is none that a command gets: use 1 to 128 of A-Z a-z 0-9 . _ - @, a letter \
         or digit first and no two dots together"
    )))
}

/// One command with its arguments and environment.
struct Run<'a> {
    what: &'a str,
    argv: Vec<OsString>,
    variables: [(&'a str, String); 3],
    time: Duration,
}

impl<'a> Run<'a> {
    fn new(
        command: &Command,
        what: &'a str,
        argv: &[OsString],
        key_id: &str,
        key_version: &str,
        context: Option<&Context>,
    ) -> Self {
        let context = context.map(Context::encode).unwrap_or_default();
        let context = base16ct::lower::encode_string(&context);
        let (key_id, key_version) = (key_id.to_owned(), key_version.to_owned());
        let places =
            [("{key_id}", &key_id), ("{key_version}", &key_version), ("{context}", &context)];
        // The program itself is the configuration's alone.
        let fill = |(at, word): (usize, &OsString)| match word.to_str() {
            Some(text) if at > 0 => places
                .iter()
                .fold(text.to_owned(), |text, (p, value)| text.replace(p, value))
                .into(),
            _ => word.clone(),
        };
        let argv = argv.iter().enumerate().map(fill).collect();
        let variables = [
            ("SQLITE_TDE_KEY_ID", key_id),
            ("SQLITE_TDE_KEY_VERSION", key_version),
            ("SQLITE_TDE_CONTEXT", context),
        ];
        Self { what, argv, variables, time: command.time }
    }

    /// Its output, if it succeeded.
    fn output(
        &self,
        deadline: Deadline,
        input: &[u8],
        output_max_len: usize,
    ) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let (argv, variables) = (&self.argv, &self.variables);
        // It ends before the caller's deadline.
        let time = deadline.patience().min(self.time);
        let call = Call { argv, variables, input, output_max_len, time };
        match call.run() {
            Ok(answer) if answer.status.is_some_and(|status| status.success()) => Ok(answer.output),
            // What it printed is examined as any answer.
            Ok(answer) if answer.status.is_none() && !answer.output.is_empty() => Ok(answer.output),
            Ok(answer) => Err(self.refused(&answer)),
            Err(Failure::OutputTooLong) => {
                Err(self.damaged(&format!("printed over {output_max_len} bytes")))
            }
            Err(Failure::TimedOut) => Err(ProviderError::unreachable(
                self.says(&format!("was killed after {time:?} without an end")),
            )),
            Err(Failure::System(error)) => Err(self.not_run(&error)),
        }
    }

    fn refused(&self, answer: &Outcome) -> ProviderError {
        let mut text = self.says(&ending(answer.status));
        if !answer.complaint.is_empty() {
            text = format!("{text}: {}", answer.complaint);
        }
        match answer.status.and_then(|status| status.code()) {
            Some(WRONG_KEY) => ProviderError::wrong_key(text),
            Some(NOT_HERE) => ProviderError::not_here(text),
            Some(DENIED) => ProviderError::denied(text),
            _ => ProviderError::unreachable(text),
        }
    }

    fn not_run(&self, error: &std::io::Error) -> ProviderError {
        use std::io::ErrorKind::{InvalidInput, NotFound};
        match error.kind() {
            NotFound => ProviderError::not_here(
                self.says("was not found: install it, or name it with its whole path"),
            ),
            InvalidInput => ProviderError::not_here(self.says(&format!("cannot run: {error}"))),
            _ => ProviderError::unreachable(self.says(&format!("was not run to its end: {error}"))),
        }
    }

    fn damaged(&self, text: &str) -> ProviderError {
        ProviderError::damaged(self.says(text))
    }

    /// Names the program, not its arguments.
    fn says(&self, text: &str) -> String {
        let program = self.argv.first().map(Path::new).unwrap_or(Path::new("(none)"));
        format!("{} command {} {text}", self.what, program.display())
    }
}

fn ending(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        let words = "printed nothing, and its exit code was taken by the program (SIGCHLD)";
        return words.to_owned();
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

#[cfg(test)]
mod tests;
