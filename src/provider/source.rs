//! Sources of a secret: a file, a descriptor, the environment, or a question at the terminal. Never
//! from SQL, a URI or an argument, which others can see.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek};
#[cfg(unix)]
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use zeroize::Zeroizing;

use super::runs::Runs;
use super::{ProviderError, WaitsFor};
use crate::process::{files, lock};
use crate::table::{self, Value};

/// No passphrase, PIN or key text is longer.
const MAX_LEN: usize = 4096;

/// Asks a person; the argument names the secret.
pub type Ask = Arc<dyn Fn(&str) -> io::Result<Zeroizing<String>> + Send + Sync>;

/// The prompt of a program that has none.
static CANNOT_ASK: LazyLock<Ask> = LazyLock::new(|| {
    Arc::new(|what| {
        let text = format!("{what} is to be asked for, and this program cannot ask");
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    })
});

/// What tells a prompt from another one.
pub(crate) fn origin_of(ask: &Ask) -> String {
    // Of the object alone: the address of its code differs from crate to crate.
    format!("the prompt at {:p}", Arc::as_ptr(ask).cast::<()>())
}

/// A source as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A file that only its owner may read or write.
    File(PathBuf),
    /// An open descriptor of the process.
    Descriptor(i32),
    /// A variable of the environment.
    Environment(String),
    /// A question to the user; [`crate::config::Config::prompt`] asks it.
    Prompt,
}

impl Source {
    /// The source in a table of the configuration. Any other value may be the secret itself.
    pub(crate) fn read(value: Value<'_>) -> table::Result<Self> {
        let expected = value.wrong(
            "expected where the secret is: { file = \"..\" }, { fd = 3 }, { env = \"..\" } or \
             { prompt = true }; the secret itself must not be here",
        );
        let Ok(table) = value.table() else { return Err(expected) };
        let sources = table.read(|table| {
            Ok([
                table.maybe("file", |value| value.path().map(Self::File))?,
                table.maybe("fd", |fd| fd.number(0..=i32::MAX as u64).map(Self::Descriptor))?,
                table.maybe("env", |value| match value.text()? {
                    name if name.contains('=') => Err(value.wrong("no variable has = in its name")),
                    name => Ok(Self::Environment(name.to_owned())),
                })?,
                table.maybe("prompt", Value::flag)?.filter(|asked| *asked).map(|_| Self::Prompt),
            ])
        })?;
        let mut found = sources.into_iter().flatten();
        match (found.next(), found.next()) {
            (Some(source), None) => Ok(source),
            _ => Err(expected),
        }
    }

    /// The source itself; without `ask` a prompt is an error when it is read.
    pub(crate) fn secret(&self, ask: Option<&Ask>) -> SecretSource {
        match self {
            Self::File(path) => SecretSource::File(path.clone()),
            Self::Descriptor(number) => SecretSource::descriptor_of_process(*number),
            Self::Environment(name) => SecretSource::Environment(name.clone()),
            Self::Prompt => SecretSource::Prompt(ask.unwrap_or(&CANNOT_ASK).clone()),
        }
    }
}

/// The source of a passphrase, a PIN or a key, read each time it is needed.
#[derive(Clone)]
#[non_exhaustive]
pub enum SecretSource {
    /// A file that only its owner may read or write, such as one in `$CREDENTIALS_DIRECTORY`.
    File(PathBuf),
    /// An open descriptor of this process; [`SecretSource::descriptor`] makes it.
    Descriptor(Descriptor),
    /// A variable of the environment. Other processes of the same user can see it.
    Environment(String),
    /// A question to the user of the application; [`SecretSource::prompt`] makes it.
    Prompt(Ask),
}

/// A descriptor's number and content: a pipe gives its content once, and a provider is asked more
/// than once. The secret stays in memory until the last clone of the source is gone.
#[derive(Clone)]
pub struct Descriptor {
    number: i32,
    kept: Arc<Mutex<Option<Zeroizing<Vec<u8>>>>>,
}

impl SecretSource {
    /// An open descriptor of this process. It is read to its end when the secret is first needed;
    /// this source and its clones then give the same secret again.
    #[must_use]
    pub fn descriptor(number: i32) -> Self {
        Self::Descriptor(Descriptor { number, kept: Arc::default() })
    }

    /// A question to the user of the application. `ask` gets the name of the secret, such as
    /// "passphrase for recovery"; a "new passphrase .." is worth asking for twice.
    pub fn prompt(
        ask: impl Fn(&str) -> io::Result<Zeroizing<String>> + Send + Sync + 'static,
    ) -> Self {
        Self::Prompt(Arc::new(ask))
    }

    /// The descriptor that the environment or a configuration names: the same for each that names
    /// it in this process, now or later. If it can be read at once, it is, so that processes forked
    /// from now on have what it gives once.
    pub(super) fn descriptor_of_process(number: i32) -> Self {
        static NAMED: Mutex<BTreeMap<i32, Descriptor>> = Mutex::new(BTreeMap::new());
        let new = || Descriptor { number, kept: Arc::default() };
        let descriptor = lock(&NAMED).entry(number).or_insert_with(new).clone();
        let source = Self::Descriptor(descriptor.clone());
        if descriptor.is_ready() {
            // An error is told when the secret is needed.
            let _ = source.read_once(&descriptor);
        }
        source
    }

    /// What tells this source from another: those of one origin give the same secret.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Prompt(ask) => origin_of(ask),
            _ => self.to_string(),
        }
    }

    /// The kind of wait for a read: for the person at a prompt, or the writer of a pipe.
    pub(super) fn waits_for(&self) -> WaitsFor {
        match self {
            Self::File(_) | Self::Environment(_) => WaitsFor::Nothing,
            Self::Descriptor(_) => WaitsFor::Service,
            Self::Prompt(_) => WaitsFor::Person,
        }
    }

    /// The threads on which a provider that reads this may run.
    pub(super) fn runs(&self) -> Runs {
        match self.waits_for() {
            WaitsFor::Nothing => Runs::Here,
            WaitsFor::Service | WaitsFor::Person => Runs::CallsApart,
        }
    }

    /// The secret; one line end behind it does not count.
    ///
    /// # Errors
    /// [`ProviderError::NotHere`] if it is missing, [`ProviderError::LoosePermissions`] for a file
    /// that others may read, [`ProviderError::OtherOwner`] for one of a user who is neither that of
    /// the process nor root, [`ProviderError::Unreachable`] for other errors of the system, and
    /// [`ProviderError::Damaged`] for one that is empty or over 4096 bytes.
    pub fn read(&self, what: &str) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let mut secret = self.fetch(what)?;
        let len = without_line_end(&secret).len();
        secret.truncate(len);
        self.bounded(secret, what)
    }

    /// The secret as it is, to the last byte: for keys, which may end with any.
    ///
    /// # Errors
    /// As [`SecretSource::read`].
    pub fn read_whole(&self, what: &str) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        self.bounded(self.fetch(what)?, what)
    }

    fn fetch(&self, what: &str) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        match self {
            Self::File(path) => self.read_from(&open_private(path)?),
            Self::Descriptor(descriptor) => self.read_once(descriptor),
            Self::Environment(name) => crate::process::variable(name)
                .map(|value| Zeroizing::new(value.into_encoded_bytes()))
                .ok_or_else(|| ProviderError::not_here(format!("{what}: {self} is not set"))),
            Self::Prompt(ask) => {
                let mut text = ask(what).map_err(|error| self.failed(&error))?;
                Ok(Zeroizing::new(std::mem::take(&mut *text).into_bytes()))
            }
        }
    }

    fn read_once(&self, descriptor: &Descriptor) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let mut kept = lock(&descriptor.kept);
        if let Some(secret) = kept.as_ref() {
            return Ok(secret.clone());
        }
        // What the system says of a number that is not open differs.
        let missing = |error: &io::Error| {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::EBADF)
        };
        let file = descriptor.duplicate().map_err(|error| match missing(&error) {
            true => ProviderError::not_here(format!("{self} is not open")),
            false => self.failed(&error),
        })?;
        // A file is read from its position, which stays: another source may name it, too. A pipe
        // has none: reading consumes it.
        let secret = match (&file).stream_position() {
            #[cfg(unix)]
            Ok(place) => self.read_from(FromPlace { file, place })?,
            _ => self.read_from(file)?,
        };
        Ok(kept.insert(secret).clone())
    }

    fn read_from(&self, input: impl Read) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        // Allocated at once: a buffer that grows leaves copies.
        let mut secret = Zeroizing::new(Vec::with_capacity(MAX_LEN + 4));
        input
            .take(MAX_LEN as u64 + 3)
            .read_to_end(&mut secret)
            .map_err(|error| self.failed(&error))?;
        Ok(secret)
    }

    fn bounded(
        &self,
        secret: Zeroizing<Vec<u8>>,
        what: &str,
    ) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        match secret.len() {
            1..=MAX_LEN => Ok(secret),
            0 => Err(ProviderError::damaged(format!("{what}: {self} is empty"))),
            _ => Err(ProviderError::damaged(format!("{what}: {self} has over {MAX_LEN} bytes"))),
        }
    }

    fn failed(&self, error: &io::Error) -> ProviderError {
        ProviderError::unreachable(format!("{self}: {error}"))
    }
}

impl Descriptor {
    /// The open file itself, wherever it is read, whoever may open it anew.
    fn duplicate(&self) -> io::Result<File> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            use rustix::io::Errno;
            use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
            let process = pidfd_open(getpid(), PidfdFlags::empty());
            match process.and_then(|it| pidfd_getfd(it, self.number, PidfdGetfdFlags::empty())) {
                Ok(file) => return Ok(file.into()),
                Err(Errno::BADF) => return Err(Errno::BADF.into()),
                // Since Linux 5.6, and not in every sandbox.
                Err(_) => {}
            }
        }
        File::open(format!("/dev/fd/{}", self.number))
    }

    /// Whether a read to the end would wait for nobody.
    fn is_ready(&self) -> bool {
        #[cfg(unix)]
        {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let Ok(file) = self.duplicate() else { return false };
            let mut polled = [PollFd::new(&file, PollFlags::IN)];
            let asked = poll(&mut polled, Some(&Timespec::default()));
            // Of what has no place, all must be there: nobody writes any more.
            let is_whole = asked.is_ok() && polled[0].revents().contains(PollFlags::HUP);
            is_whole || (&file).stream_position().is_ok()
        }
        #[cfg(not(unix))]
        false
    }
}

/// A file from a place on, without moving where others read it.
#[cfg(unix)]
struct FromPlace {
    file: File,
    place: u64,
}

#[cfg(unix)]
impl Read for FromPlace {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = std::os::unix::fs::FileExt::read_at(&self.file, bytes, self.place)?;
        self.place += len as u64;
        Ok(len)
    }
}

/// `secret` less one line end: a line feed, or a carriage return and a line feed.
pub(super) fn without_line_end(secret: &[u8]) -> &[u8] {
    let line = secret.strip_suffix(b"\n");
    line.map_or(secret, |line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Opens a file that only its owner may use.
fn open_private(path: &Path) -> Result<File, ProviderError> {
    let unreachable =
        |error: io::Error| ProviderError::unreachable(format!("{}: {error}", path.display()));
    let file = files::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            ProviderError::not_here(format!("there is no file {}", path.display()))
        }
        _ => unreachable(error),
    })?;
    let metadata = file.metadata().map_err(unreachable)?;
    check_mode(path, &metadata, others(&metadata), 0o600)?;
    Ok(file)
}

/// The permissions that others must not have for a file.
///
/// systemd lets a service read its credentials through an access list, on a file of root's and of
/// root's group, and a list's mask appears in place of the group's permissions. The list itself is
/// under root's control.
fn others(metadata: &Metadata) -> u32 {
    #[cfg(unix)]
    if (metadata.uid(), metadata.gid()) == (0, 0) {
        return 0o037;
    }
    let _ = metadata;
    0o077
}

/// Refuses a file or directory of another user, and one with any permission of `refused`. Without
/// modes, its access list is the platform's business.
pub(super) fn check_mode(
    path: &Path,
    metadata: &Metadata,
    refused: u32,
    expected: u32,
) -> Result<(), ProviderError> {
    if let Some((owner, user)) = files::other_owner(metadata) {
        return Err(ProviderError::OtherOwner { path: path.to_owned(), owner, user });
    }
    #[cfg(unix)]
    if metadata.mode() & refused != 0 {
        let (path, mode) = (path.to_owned(), metadata.mode() & 0o777);
        return Err(ProviderError::LoosePermissions { path, mode, expected });
    }
    let _ = (refused, expected);
    Ok(())
}

/// Shows the place, never the secret.
impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Descriptor(descriptor) => write!(f, "descriptor {}", descriptor.number),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Prompt(_) => f.write_str("the prompt"),
        }
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretSource({self})")
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptor({})", self.number)
    }
}

#[cfg(test)]
mod tests;
