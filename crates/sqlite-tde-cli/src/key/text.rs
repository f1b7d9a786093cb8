//! Key text on its way in and out.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use sqlite_tde::Error;
use sqlite_tde::provider::{ProviderError, SecretSource};
use zeroize::Zeroizing;

use super::arguments::Place;
use crate::failure::{Failure, OTHER, USAGE};

/// No key is written in more bytes.
const MAX_LEN: usize = 4096;

/// Every byte, since a key may end like a line does.
pub fn read(place: &Place) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let given = match (&place.file, place.fd) {
        (Some(path), _) => Some(SecretSource::File(path.clone())),
        (None, Some(number)) => Some(SecretSource::descriptor(number)),
        (None, None) => None,
    };
    if let Some(source) = given {
        return source.read_whole("key").map_err(not_read);
    }
    if let Some(source) = place.source() {
        return source.read("key").map_err(|error| Error::from(error).into());
    }
    if io::stdin().is_terminal() {
        return Err(Failure::new(USAGE, "no key given")
            .hint("name --file, --fd or --env, or pipe the key in"));
    }
    let name = Path::new("standard input");
    read_all(name, unbuffered(io::stdin()).map_err(|error| Failure::at(name, &error))?)
}

/// The file is the user's, and no keystore: nothing is to be put back.
fn not_read(error: ProviderError) -> Failure {
    match error {
        ProviderError::Damaged(reason) => Failure::new(USAGE, reason.to_string()),
        ProviderError::NotHere(reason) | ProviderError::Unreachable(reason) => {
            Failure::new(OTHER, reason.to_string())
        }
        error => Error::from(error).into(),
    }
}

/// Writes to standard output.
pub fn print(text: &[u8]) -> Result<(), Failure> {
    Ok(unbuffered(io::stdout()).and_then(|mut out| out.write_all(text))?)
}

/// The stream without the buffer of the standard library, which is never wiped.
#[cfg(unix)]
fn unbuffered(stream: impl std::os::fd::AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

#[cfg(windows)]
fn unbuffered(stream: impl std::os::windows::io::AsHandle) -> io::Result<File> {
    Ok(stream.as_handle().try_clone_to_owned()?.into())
}

fn read_all(path: &Path, input: impl Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Allocated at once: a buffer that grows leaves copies.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_LEN + 2));
    let read = input.take(MAX_LEN as u64 + 1).read_to_end(&mut text);
    read.map_err(|error| Failure::at(path, &error))?;
    if text.len() <= MAX_LEN {
        return Ok(text);
    }
    Err(Failure::new(USAGE, format!("{}: no key has over {MAX_LEN} bytes", path.display())))
}

/// Writes a new file; an existing one is kept.
pub fn write_new(path: &Path, text: &[u8]) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|error| Failure::at(path, &error))?;
    file.write_all(text).and_then(|()| file.sync_all()).map_err(|error| {
        let _ = std::fs::remove_file(path);
        Failure::at(path, &error)
    })
}
