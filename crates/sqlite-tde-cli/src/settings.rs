//! The configuration as this program uses it: prompts, the keystore, and audit events.

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

/// The keystore of `KEY`. Its passphrase, if any, is asked for at the terminal unless another
/// source is configured.
pub fn keystore(config: &Config) -> Result<Keystore, Failure> {
    let keystore = config.keystore()?;
    // The next reader of the file reports its error.
    if io::stdin().is_terminal() && keystore.needs_passphrase().unwrap_or(false) {
        return Ok(keystore.passphrase(prompt::old()));
    }
    Ok(keystore)
}

/// Runs `work` with audit events before and after. If the first cannot be recorded, `work` does not
/// run, unless the configuration allows it.
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
