//! Where a secret comes from: a file, a descriptor, the environment, or a question at the terminal.
//! Never from SQL, a URI or an argument, which others can see.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::ProviderError;

/// No passphrase, PIN or key text is longer.
const MAX_LEN: usize = 4096;

/// Asks a person; gets what to ask for.
type Ask = Arc<dyn Fn(&str) -> io::Result<Zeroizing<String>> + Send + Sync>;

/// Where a passphrase, a PIN or a key is read from, each time it is needed.
#[derive(Clone)]
#[non_exhaustive]
pub enum SecretSource {
    /// A file that nobody but its owner may read or write, such as one in `$CREDENTIALS_DIRECTORY`.
    File(PathBuf),
    /// An open descriptor of this process. It is read to its end once, and not again.
    Descriptor(i32),
    /// A variable of the environment. Other processes of the same user can see it.
    Environment(String),
    /// A question to whoever uses the application.
    Prompt(Ask),
}

impl SecretSource {
    /// The secret; one line end behind it does not count.
    ///
    /// # Errors
    /// [`ProviderError::NotHere`] where there is none, [`ProviderError::LoosePermissions`] for a file
    /// that others may read, [`ProviderError::Unreachable`] for what else the system said, and
    /// [`ProviderError::Damaged`] for one that is empty or over 4096 bytes.
    pub fn read(&self, what: &str) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let secret = match self {
            Self::File(path) => self.read_from(&open_private(path)?)?,
            Self::Descriptor(number) => {
                let path = format!("/dev/fd/{number}");
                self.read_from(&File::open(path).map_err(|error| self.failed(&error))?)?
            }
            Self::Environment(name) => match std::env::var_os(name) {
                Some(value) => Zeroizing::new(value.into_encoded_bytes()),
                None => return Err(ProviderError::NotHere(format!("{what}: {self} is not set"))),
            },
            Self::Prompt(ask) => {
                let mut text = ask(what).map_err(|error| self.failed(&error))?;
                Zeroizing::new(std::mem::take(&mut *text).into_bytes())
            }
        };
        let mut secret = secret;
        for end in [b'\n', b'\r'] {
            if secret.last() == Some(&end) {
                secret.pop();
            }
        }
        match secret.len() {
            1..=MAX_LEN => Ok(secret),
            0 => Err(ProviderError::Damaged(format!("{what}: {self} is empty"))),
            _ => Err(ProviderError::Damaged(format!("{what}: {self} has over {MAX_LEN} bytes"))),
        }
    }

    fn read_from(&self, file: &File) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        // Allocated at once: a buffer that grows leaves copies.
        let mut secret = Zeroizing::new(Vec::with_capacity(MAX_LEN + 3));
        file.take(MAX_LEN as u64 + 2)
            .read_to_end(&mut secret)
            .map_err(|error| self.failed(&error))?;
        Ok(secret)
    }

    fn failed(&self, error: &io::Error) -> ProviderError {
        ProviderError::Unreachable(format!("{self}: {error}"))
    }
}

/// Opens a file that only its owner may use.
fn open_private(path: &PathBuf) -> Result<File, ProviderError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            ProviderError::NotHere(format!("there is no file {}", path.display()))
        }
        _ => ProviderError::Unreachable(format!("{}: {error}", path.display())),
    })?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let unreachable =
            |error| ProviderError::Unreachable(format!("{}: {error}", path.display()));
        let mode = file.metadata().map_err(unreachable)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(ProviderError::LoosePermissions {
                path: path.clone(),
                mode,
                expected: 0o600,
            });
        }
    }
    Ok(file)
}

/// Says where, never what.
impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Descriptor(number) => write!(f, "descriptor {number}"),
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
