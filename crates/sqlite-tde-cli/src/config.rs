//! `config`: the path and the content of the configuration.

use std::io::{self, Write};

use clap::Subcommand;
use sqlite_tde::config::{self, BelowMin, Config, FILE_NAME, Layer};

use crate::failure::{DONE, Failure};

#[derive(Subcommand)]
pub enum Verb {
    /// Print the configuration, or its error and line
    Check,
    /// Print the path of the configuration
    Path,
}

/// Runs the verb; returns the exit code.
pub fn run(verb: Verb) -> Result<u8, Failure> {
    let path = config::home()?.join(FILE_NAME);
    match verb {
        Verb::Path => writeln!(io::stdout(), "{}", path.display())?,
        Verb::Check => {
            let config = Config::load_default()?;
            // Also reports providers that this build does not have.
            config.providers()?;
            let there = if path.exists() { "" } else { " (not there: these are the defaults)" };
            writeln!(io::stdout(), "{}{there}", path.display())?;
            print(&config)?;
        }
    }
    Ok(DONE)
}

fn print(config: &Config) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let values = config.settings.values();
    let (audit, access, policy) = (&config.audit, &values.access, &values.policy);
    let span = |span: Option<std::time::Duration>| {
        span.map_or_else(|| "never".to_owned(), |span| format!("{span:?}"))
    };
    let dir = config.audit_options()?.dir;
    let log = if audit.enabled { dir.display().to_string() } else { "not kept".to_owned() };
    let protector = config.settings.default_protector.as_deref().unwrap_or("keystore:default");
    let cipher = values.cipher;
    let plaintext = if values.allow_plaintext { "allowed" } else { "refused" };
    let below = match policy.below_min {
        BelowMin::Refuse => "refused",
        BelowMin::Warn => "warned of",
    };
    let allowed = policy.allowed_providers.as_ref().map_or_else(|| "any".into(), |a| a.join(", "));
    let ciphers = policy.allowed_ciphers.as_ref().map_or_else(
        || "any".into(),
        |allowed| allowed.iter().map(|cipher| cipher.name()).collect::<Vec<_>>().join(", "),
    );
    for (label, value) in [
        ("protector", protector.to_owned()),
        ("cipher", cipher.name().to_owned()),
        ("plaintext", plaintext.to_owned()),
        ("revalidate", span(access.revalidate)),
        ("grace", span(Some(access.grace))),
        ("attempts", format!("{}, after {}", access.attempts, span(Some(access.retry_delay)))),
        ("time-out", span(Some(access.time_out))),
        ("rotation", span(values.rotation)),
        ("audit log", log),
        ("protectors", format!("at least {}", policy.min_protectors)),
        ("below that", below.to_owned()),
        ("allowed", allowed),
        ("ciphers", ciphers),
    ] {
        writeln!(out, "{label:<12} {value}")?;
    }
    for (name, provider) in &config.providers {
        writeln!(out, "{:<12} {name}: {}", "provider", provider.summary())?;
    }
    for name in unknown(config) {
        writeln!(out, "note: {name:?} is no provider here; an application has to bring it")?;
    }
    Ok(())
}

/// Names that are used and not configured.
fn unknown(config: &Config) -> Vec<&str> {
    let Layer { default_protector, policy, .. } = &config.settings;
    let default = default_protector.as_deref().and_then(|name| name.split_once(':'));
    let allowed = policy.allowed_providers.iter().flatten().flatten().map(String::as_str);
    let used = default.map(|(provider, _)| provider).into_iter().chain(allowed);
    used.filter(|name| !config.providers.contains_key(*name)).collect()
}
