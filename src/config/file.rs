//! From the text of `config.toml` to a [`Config`].

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::{Audit, BelowMin, Config, FILE_NAME, KEYSTORE, Source};
use crate::error::{Error, FileError};
use crate::process::{self, files};
use crate::provider::{KeystoreTable, is_name, registry};
use crate::settings::identity::{FULL_PATH, FileId, PROTECTOR, Pins};
use crate::settings::{
    AccessLayer, AuditLayer, Derivation, Layer, PolicyLayer, Settings, TuningLayer, split,
};
use crate::suite::SuiteId;
use crate::table::{Result, Table, Value, parse};

/// Name of the audit log's directory.
pub(super) const AUDIT_DIR: &str = "audit";

const MAX_LEN: u64 = 1 << 20;

/// The configuration in `dir`.
pub(super) fn load(dir: &Path) -> Result<Config, Error> {
    let dir = process::absolute(dir);
    let path = dir.join(FILE_NAME);
    parse_in(&read(&dir, &path)?, &dir)
}

/// The configuration that `text`, of the file in `dir`, describes.
pub(super) fn parse_in(text: &str, dir: &Path) -> Result<Config, Error> {
    let config = parse(text).and_then(|parsed| Table::root(&parsed, dir).read(config));
    config.map_err(|wrong| Error::Config(wrong.in_words(&dir.join(FILE_NAME), text)))
}

/// The text of the file; none where there is no file.
fn read(dir: &Path, path: &Path) -> Result<String, Error> {
    let failed = |error| Error::Config(FileError::of(path, error));
    let Some(file) = files::if_found(files::open(path)).map_err(failed)? else {
        return Ok(String::new());
    };
    // It may name commands to run.
    file.metadata().and_then(|file| files::check_writers(&file)).map_err(failed)?;
    let checked = std::fs::metadata(dir).and_then(|dir| files::check_writers(&dir));
    checked.map_err(|error| Error::Config(FileError::of(dir, error)))?;
    let mut text = Vec::new();
    file.take(MAX_LEN + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_LEN {
        return Err(Error::Config(FileError::at(path, format!("it has over {MAX_LEN} bytes"))));
    }
    String::from_utf8(text).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count() as u64;
        Error::Config(FileError::at(path, "this is not UTF-8").line(line))
    })
}

fn config(file: &mut Table<'_>) -> Result<Config> {
    let mut config = Config::default();
    let default_protector = file.get("default_protector");
    let cipher = file.maybe("cipher", |value| suite(&value))?;
    config.settings = Layer {
        default_protector: default_protector.as_ref().map(protector).transpose()?,
        cipher,
        allow_plaintext: file.maybe("allow_plaintext", Value::flag)?,
        tuning: file.group("io", tuning)?,
        access: file.group("access", access)?,
        rotation: file.group("rotation", rotation)?,
        policy: file.group("policy", |table| policy(table, cipher.unwrap_or_default()))?,
        pins: file.maybe("pins", |value| value.fields(pins))?,
        ..Layer::default()
    };
    if let Some(providers) = file.get("providers") {
        for (name, value) in providers.table()?.all() {
            check_name(name, &value)?;
            config.providers.insert(name.to_owned(), value.fields(registry::read)?);
        }
    }
    (config.audit, config.settings.audit) = file.group("audit", audit)?;
    // What the file leaves open is beside it.
    let dir = || Some(file.dir().to_owned());
    let keystore = || KeystoreTable { dir: dir(), passphrase: None }.into();
    config.providers.entry(KEYSTORE.to_owned()).or_insert_with(keystore);
    config.audit.dir.get_or_insert_with(|| file.dir().join(AUDIT_DIR));
    let allowed = config.settings.policy.values();
    match (&config.settings.default_protector, default_protector) {
        (Some(name), Some(value)) if !allowed.allows(split(name).0) => {
            Err(value.wrong("policy.allowed_providers does not allow this provider"))
        }
        _ => Ok(config),
    }
}

fn suite(value: &Value<'_>) -> Result<SuiteId> {
    value.choice(&SuiteId::ALL.map(|suite| (suite.name(), suite)))
}

fn protector(value: &Value<'_>) -> Result<String> {
    let text = value.text()?;
    let (provider, key) = split(text);
    if is_name(provider) && !key.is_empty() && !key.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(value.wrong("expected PROVIDER:KEY, or KEY of the keystore"))
}

/// Refuses a `name` that no provider can have; `value` is where it stands.
fn check_name(name: &str, value: &Value<'_>) -> Result<()> {
    match is_name(name) {
        true => Ok(()),
        false => Err(value.wrong("a provider's name is 1 to 64 of A-Z a-z 0-9 . _ -")),
    }
}

fn tuning(table: &mut Table<'_>) -> Result<TuningLayer> {
    Ok(TuningLayer {
        read_ahead: table.maybe("read_ahead", Value::flag)?,
        gather_writes: table.maybe("gather_writes", Value::flag)?,
    })
}

fn access(table: &mut Table<'_>) -> Result<AccessLayer> {
    Ok(AccessLayer {
        revalidate: table.maybe("revalidate", |value| match value.text() {
            Ok("never") => Ok(None),
            _ => value.duration(false).map(Some),
        })?,
        grace: table.maybe("grace", |value| value.duration(true))?,
        attempts: table.maybe("attempts", |value| value.number(1..=100))?,
        retry_delay: table.maybe("retry_delay", |value| value.duration(true))?,
        time_out: table.maybe("time_out", |value| value.duration(false))?,
        open_time_out: table.maybe("open_time_out", |value| value.duration(false))?,
        derivation: table.maybe("derivation", |value| value.fields(derivation))?,
    })
}

fn derivation(table: &mut Table<'_>) -> Result<Derivation> {
    let default = Derivation::default();
    Ok(Derivation {
        memory_kib: table.or("memory_kib", default.memory_kib, |v| v.number(8..=1 << 20))?,
        work_kib: table.or("work_kib", default.work_kib, |v| v.number(8..=1 << 30))?,
    })
}

/// Which databases are expected where.
fn pins(table: &mut Table<'_>) -> Result<Pins> {
    let mut pins = Pins::default();
    if let Some(paths) = table.get("paths") {
        for (path, value) in paths.table()?.all() {
            if !Path::new(path).is_absolute() {
                return Err(value.wrong(FULL_PATH));
            }
            pins.paths.insert(path.into(), file_id(&value)?);
        }
    }
    if let Some(protectors) = table.get("protectors") {
        for (name, value) in protectors.table()?.all() {
            if !name.split_once(':').is_some_and(|(name, key)| is_name(name) && !key.is_empty()) {
                return Err(value.wrong(PROTECTOR));
            }
            let ids = value.list()?.iter().map(file_id).collect::<Result<_>>()?;
            pins.protectors.insert(name.to_owned(), ids);
        }
    }
    Ok(pins)
}

fn file_id(value: &Value<'_>) -> Result<FileId> {
    let expected = || value.wrong("expected a file id: 32 hexadecimal digits in quotes");
    value.text()?.parse().map_err(|_| expected())
}

fn rotation(table: &mut Table<'_>) -> Result<Option<Option<Duration>>> {
    let automatic = table.maybe("automatic", Value::flag)?;
    let interval = table.maybe("interval", |value| value.duration(false))?;
    Ok(match automatic {
        Some(false) => Some(None),
        _ => interval.map(Some).or(automatic.map(|_| Settings::default().rotation)),
    })
}

fn audit(table: &mut Table<'_>) -> Result<(Audit, AuditLayer)> {
    let default = Audit::default();
    let audit = Audit {
        enabled: table.or("enabled", default.enabled, Value::flag)?,
        dir: table.maybe("dir", Value::path)?,
        key: table.maybe("key", Source::read)?,
        max_bytes: table.or("max_bytes", default.max_bytes, |v| v.number(4096..=1 << 40))?,
        keep: table.or("keep", default.keep, |value| value.number(0..=1000))?,
    };
    Ok((audit, table.group("on_failure", on_failure)?))
}

fn on_failure(table: &mut Table<'_>) -> Result<AuditLayer> {
    let fails = |value: Value<'_>| value.choice(&[("fail", true), ("continue", false)]);
    Ok(AuditLayer {
        fail_key_changes: table.maybe("key_changes", fails)?,
        fail_opens: table.maybe("opens", fails)?,
    })
}

/// `cipher` is that of new databases, which must be allowed.
fn policy(table: &mut Table<'_>, cipher: SuiteId) -> Result<PolicyLayer> {
    let below = [("refuse", BelowMin::Refuse), ("warn", BelowMin::Warn)];
    let allowed = |value: &Value<'_>| {
        let name = value.text()?;
        check_name(name, value).map(|()| name.to_owned())
    };
    Ok(PolicyLayer {
        min_protectors: table.maybe("min_protectors", |value| value.number(1..=8))?,
        below_min: table.maybe("below_min", |value| value.choice(&below))?,
        allowed_providers: table.maybe("allowed_providers", |value| {
            value.list()?.iter().map(allowed).collect::<Result<_>>().map(Some)
        })?,
        allowed_ciphers: table.maybe("allowed_ciphers", |value| {
            let allowed: Vec<_> = value.list()?.iter().map(suite).collect::<Result<_>>()?;
            let words =
                || format!("this leaves out {}, the cipher of new databases", cipher.name());
            if allowed.contains(&cipher) { Ok(Some(allowed)) } else { Err(value.wrong(words())) }
        })?,
    })
}
