//! Questions to the person at the terminal, whose answers are not shown.

use std::io;

use sqlite_tde::provider::SecretSource;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A secret that is there already.
pub fn old() -> SecretSource {
    SecretSource::prompt(ask)
}

/// A new secret, which is asked for twice.
pub fn new() -> SecretSource {
    SecretSource::prompt(|what| {
        let first = ask(&format!("new {what}"))?;
        let second = ask(&format!("new {what}, again"))?;
        match first.as_bytes().ct_eq(second.as_bytes()).into() {
            true => Ok(first),
            false => Err(io::Error::other("the two answers are not the same")),
        }
    })
}

/// The answer to the question for `what`.
pub fn ask(what: &str) -> io::Result<Zeroizing<String>> {
    rpassword::prompt_password(format!("{what}: ")).map(Zeroizing::new)
}
