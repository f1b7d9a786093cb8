//! The configuration as this program uses it: who is asked, which keystore is meant, and what the
//! audit log is told of what is done here.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;

use sqlite_tde::audit::{Event, EventKind};
use sqlite_tde::config::Config;
use sqlite_tde::provider::Keystore;

use crate::failure::{Failure, say};
use crate::prompt;

/// `config.toml`; questions go to the terminal.
pub fn load() -> Result<Config, Failure> {
    let mut config = Config::load_default()?;
    if io::stdin().is_terminal() {
        config.prompt = Some(Arc::new(prompt::ask));
    }
    Ok(config)
}

/// The keystore that `KEY` means. One that stands under a passphrase is asked for at the terminal,
/// where nothing else says where to find it.
pub fn keystore(config: &Config) -> Result<Keystore, Failure> {
    let keystore = config.keystore()?;
    // What is wrong with the file is said by whoever reads it next.
    if io::stdin().is_terminal() && keystore.needs_passphrase().unwrap_or(false) {
        return Ok(keystore.passphrase(prompt::old()));
    }
    Ok(keystore)
}

/// Does `work` and tells the audit log of it, before and after. Where the log cannot be told
/// before, nothing is done, unless the configuration lets it go on.
pub fn audited<T>(
    config: &Config,
    kind: EventKind,
    what: &str,
    key: Option<&str>,
    path: Option<&Path>,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let Some((log, policy)) = config.open_audit()? else { return work() };
    let tell = |outcome: Result<(), &str>, phase: &str| {
        let detail = format!("{what}: {phase}");
        log.record(&Event { key, path, outcome, detail: Some(&detail), ..Event::new(kind) })
    };
    match tell(Ok(()), "begins") {
        Err(error) if policy.fail_key_changes => return Err(error.into()),
        Err(error) => say(format!("warning: {error}\n")),
        Ok(()) => {}
    }
    let done = work();
    let words = done.as_ref().err().map(ToString::to_string);
    if let Err(error) = tell(words.as_deref().map_or(Ok(()), Err), "ends") {
        say(format!("warning: {error}\n"));
    }
    done
}
