//! From the text of `config.toml` to a [`Config`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

use super::read::{Result, Table, Value, parse};
use super::{Audit, BelowMin, Config, FILE_NAME, KEYSTORE, MECHANISMS, Provider, Source, Token};
use crate::error::{Error, FileError};
use crate::process;
use crate::provider::Cost;
use crate::settings::identity::{FULL_PATH, FileId, PROTECTOR, Pins};
use crate::settings::{
    AccessLayer, AuditLayer, Derivation, Layer, PolicyLayer, Settings, TuningLayer, split,
};
use crate::suite::SuiteId;

/// Name of the audit log's directory.
pub(super) const AUDIT_DIR: &str = "audit";

const MAX_LEN: u64 = 1 << 20;

/// The configuration in `dir`.
pub(super) fn load(dir: &Path) -> Result<Config, Error> {
    let dir = process::absolute(dir);
    let path = dir.join(FILE_NAME);
    let text = read(&dir, &path)?;
    let config = parse(&text).and_then(|parsed| config(Table::root(&parsed), &dir));
    config.map_err(|wrong| Error::Config(wrong.in_words(&path, &text)))
}

/// The text of the file; none where there is no file.
fn read(dir: &Path, path: &Path) -> Result<String, Error> {
    let failed = |error| Error::Config(FileError::of(path, error));
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        opened => opened.map_err(failed)?,
    };
    check_writers(path, &file.metadata().map_err(failed)?)?;
    check_writers(dir, &std::fs::metadata(dir).map_err(failed)?)?;
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

/// Refuses what anybody but its owner could have written, and an owner who is neither the user nor
/// the superuser: it may name commands to run.
#[cfg(unix)]
fn check_writers(path: &Path, meta: &std::fs::Metadata) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let (mode, owner) = (meta.mode() & 0o777, meta.uid());
    let path = path.display();
    if mode & 0o022 != 0 {
        let words = format!(
            "{path} has mode {mode:03o}, which lets others write it: `chmod go-w` it, and see what \
             it says"
        );
        return Err(Error::Config(words.into()));
    }
    if owner != 0 && owner != process::effective_user() {
        let words = format!("{path} belongs to another user, number {owner}");
        return Err(Error::Config(words.into()));
    }
    Ok(())
}

/// Elsewhere the directory's access list is the platform's business.
#[cfg(not(unix))]
fn check_writers(_: &Path, _: &std::fs::Metadata) -> Result<(), Error> {
    Ok(())
}

fn config(mut file: Table<'_>, dir: &Path) -> Result<Config> {
    let mut config = Config::default();
    let default_protector = file.get("default_protector");
    config.settings = Layer {
        default_protector: default_protector.as_ref().map(protector).transpose()?,
        cipher: file.maybe("cipher", |value| {
            value.choice(&SuiteId::ALL.map(|suite| (suite.name(), suite)))
        })?,
        allow_plaintext: file.maybe("allow_plaintext", Value::flag)?,
        tuning: file.or("io", TuningLayer::default(), tuning)?,
        access: file.or("access", AccessLayer::default(), access)?,
        rotation: file.or("rotation", None, rotation)?,
        policy: file.or("policy", PolicyLayer::default(), policy)?,
        pins: file.maybe("pins", pins)?,
        ..Layer::default()
    };
    config.providers = file.or("providers", config.providers, |value| providers(value, dir))?;
    if let Some(value) = file.get("audit") {
        (config.audit, config.settings.audit) = audit(value, dir)?;
    }
    file.end()?;
    let allowed = config.settings.policy.values();
    match (&config.settings.default_protector, default_protector) {
        (Some(name), Some(value)) if !allowed.allows(split(name).0) => {
            Err(value.wrong("policy.allowed_providers does not allow this provider"))
        }
        _ => Ok(at_home(config, dir)),
    }
}

/// `config` with what it leaves open in `dir`.
fn at_home(mut config: Config, dir: &Path) -> Config {
    let embedded = || Provider::Keystore { dir: None, passphrase: None };
    let keystore = config.providers.entry(KEYSTORE.to_owned()).or_insert_with(embedded);
    if let Provider::Keystore { dir: open @ None, .. } = keystore {
        *open = Some(dir.to_owned());
    }
    config.audit.dir.get_or_insert_with(|| dir.join(AUDIT_DIR));
    config
}

fn tuning(value: Value<'_>) -> Result<TuningLayer> {
    let mut table = value.table()?;
    let tuning = TuningLayer {
        read_ahead: table.maybe("read_ahead", Value::flag)?,
        gather_writes: table.maybe("gather_writes", Value::flag)?,
    };
    table.end()?;
    Ok(tuning)
}

fn protector(value: &Value<'_>) -> Result<String> {
    let text = value.text()?;
    let (provider, key) = split(text);
    if is_name(provider) && !key.is_empty() && !key.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(value.wrong("expected PROVIDER:KEY, or KEY of the keystore"))
}

fn is_name(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

fn providers(value: Value<'_>, dir: &Path) -> Result<BTreeMap<String, Provider>> {
    let read = |(name, value): (&str, Value<'_>)| {
        if !is_name(name) {
            return Err(value.wrong("a provider's name is 1 to 64 of A-Z a-z 0-9 . _ -"));
        }
        Ok((name.to_owned(), provider(value.table()?, dir)?))
    };
    value.table()?.all().map(read).collect()
}

fn provider(mut table: Table<'_>, dir: &Path) -> Result<Provider> {
    type Kind = fn(&mut Table<'_>, &Path) -> Result<Provider>;
    let kinds: [(&str, Kind); 5] = [
        ("keystore", keystore),
        ("passphrase", passphrase),
        ("raw", |table, dir| Ok(Provider::Raw { key: source(table.need("key")?, dir)? })),
        ("command", command),
        ("pkcs11", pkcs11),
    ];
    let read = table.need("type")?.choice(&kinds)?;
    let provider = read(&mut table, dir)?;
    table.end()?;
    Ok(provider)
}

fn keystore(table: &mut Table<'_>, dir: &Path) -> Result<Provider> {
    Ok(Provider::Keystore {
        dir: table.maybe("dir", |value| value.path(dir))?,
        passphrase: table.maybe("passphrase", |value| source(value, dir))?,
    })
}

fn passphrase(table: &mut Table<'_>, dir: &Path) -> Result<Provider> {
    let passphrase = source(table.need("passphrase")?, dir)?;
    Ok(Provider::Passphrase { passphrase, cost: table.or("cost", Cost::default(), cost)? })
}

/// Each in the bounds of [`Cost`]; memory times iterations are looked at when it is used.
fn cost(value: Value<'_>) -> Result<Cost> {
    let mut table = value.table()?;
    let Cost { memory_kib, iterations, parallelism } = Cost::default();
    let cost = Cost {
        memory_kib: table.or("memory_kib", memory_kib, |value| value.number(8..=1 << 20))?,
        iterations: table.or("iterations", iterations, |value| value.number(1..=64))?,
        parallelism: table.or("parallelism", parallelism, |value| value.number(1..=16))?,
    };
    table.end()?;
    Ok(cost)
}

fn command(table: &mut Table<'_>, _: &Path) -> Result<Provider> {
    if cfg!(not(unix)) {
        return Err(table.wrong("commands are run on Unix alone"));
    }
    Ok(Provider::Command {
        wrap: argv(table.need("wrap")?)?,
        unwrap: argv(table.need("unwrap")?)?,
        newest: table.maybe("newest", argv)?,
        time_out: table.maybe("time_out", |value| value.duration(false))?,
    })
}

fn argv(value: Value<'_>) -> Result<Vec<String>> {
    let empty = value.wrong("expected a program and its arguments, each in quotes");
    let words = value.texts()?;
    if words.is_empty() { Err(empty) } else { Ok(words) }
}

fn pkcs11(table: &mut Table<'_>, dir: &Path) -> Result<Provider> {
    #[cfg(not(feature = "pkcs11"))]
    if let Some(value) = table.get("type") {
        return Err(value.wrong(super::NO_PKCS11));
    }
    let module = table.need("module")?.path(dir)?;
    let token = match (table.get("token"), table.get("slot")) {
        (Some(label), None) => Token::Label(label.text()?.to_owned()),
        (None, Some(slot)) => Token::Slot(slot.number(0..=u64::from(u32::MAX))?),
        (None, None) => {
            return Err(table.wrong("either `token`, a label, or `slot`, a number, is missing"));
        }
        (Some(_), Some(slot)) => return Err(slot.wrong("`token` names the token already")),
    };
    Ok(Provider::Pkcs11 {
        module,
        token,
        pin: source(table.need("pin")?, dir)?,
        mechanisms: table.or("mechanisms", Vec::new(), mechanisms)?,
        only_user: table.or("only_user", false, Value::flag)?,
    })
}

fn mechanisms(value: Value<'_>) -> Result<Vec<String>> {
    let choices = MECHANISMS.map(|name| (name, name));
    value.list()?.into_iter().map(|value| value.choice(&choices).map(str::to_owned)).collect()
}

/// Where a secret is. Anything else may be the secret itself.
fn source(value: Value<'_>, dir: &Path) -> Result<Source> {
    let expected = value.wrong(
        "expected where the secret is: { file = \"..\" }, { fd = 3 }, { env = \"..\" } or \
         { prompt = true }; the secret itself must not be here",
    );
    let Ok(mut table) = value.table() else { return Err(expected) };
    let number = |value: Value<'_>| value.number::<i32>(0..=i32::MAX as u64);
    let sources = [
        table.maybe("file", |value| value.path(dir).map(Source::File))?,
        table.maybe("fd", |value| number(value).map(Source::Descriptor))?,
        table.maybe("env", variable)?,
        table.maybe("prompt", Value::flag)?.filter(|asked| *asked).map(|_| Source::Prompt),
    ];
    table.end()?;
    let mut found = sources.into_iter().flatten();
    match (found.next(), found.next()) {
        (Some(source), None) => Ok(source),
        _ => Err(expected),
    }
}

fn variable(value: Value<'_>) -> Result<Source> {
    match value.text()? {
        name if name.contains('=') => Err(value.wrong("no variable has = in its name")),
        name => Ok(Source::Environment(name.to_owned())),
    }
}

fn access(value: Value<'_>) -> Result<AccessLayer> {
    let mut table = value.table()?;
    let access = AccessLayer {
        revalidate: table.maybe("revalidate", |value| match value.text() {
            Ok("never") => Ok(None),
            _ => value.duration(false).map(Some),
        })?,
        grace: table.maybe("grace", |value| value.duration(true))?,
        attempts: table.maybe("attempts", |value| value.number(1..=100))?,
        retry_delay: table.maybe("retry_delay", |value| value.duration(true))?,
        time_out: table.maybe("time_out", |value| value.duration(false))?,
        open_time_out: table.maybe("open_time_out", |value| value.duration(false))?,
        derivation: table.maybe("derivation", derivation)?,
    };
    table.end()?;
    Ok(access)
}

fn derivation(value: Value<'_>) -> Result<Derivation> {
    let mut table = value.table()?;
    let default = Derivation::default();
    let derivation = Derivation {
        memory_kib: table.or("memory_kib", default.memory_kib, |v| v.number(8..=1 << 20))?,
        work_kib: table.or("work_kib", default.work_kib, |v| v.number(8..=1 << 30))?,
    };
    table.end()?;
    Ok(derivation)
}

/// Which databases are expected where.
fn pins(value: Value<'_>) -> Result<Pins> {
    let mut table = value.table()?;
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
    table.end()?;
    Ok(pins)
}

fn file_id(value: &Value<'_>) -> Result<FileId> {
    let expected = || value.wrong("expected a file id: 32 hexadecimal digits in quotes");
    value.text()?.parse().map_err(|_| expected())
}

fn rotation(value: Value<'_>) -> Result<Option<Option<Duration>>> {
    let mut table = value.table()?;
    let automatic = table.maybe("automatic", Value::flag)?;
    let interval = table.maybe("interval", |value| value.duration(false))?;
    table.end()?;
    Ok(match automatic {
        Some(false) => Some(None),
        _ => interval.map(Some).or(automatic.map(|_| Settings::default().rotation)),
    })
}

fn audit(value: Value<'_>, dir: &Path) -> Result<(Audit, AuditLayer)> {
    let mut table = value.table()?;
    let default = Audit::default();
    let audit = Audit {
        enabled: table.or("enabled", default.enabled, Value::flag)?,
        dir: table.maybe("dir", |value| value.path(dir))?,
        key: table.maybe("key", |value| source(value, dir))?,
        max_bytes: table.or("max_bytes", default.max_bytes, |v| v.number(4096..=1 << 40))?,
        keep: table.or("keep", default.keep, |value| value.number(0..=1000))?,
    };
    let on_failure = table.or("on_failure", AuditLayer::default(), on_failure)?;
    table.end()?;
    Ok((audit, on_failure))
}

fn on_failure(value: Value<'_>) -> Result<AuditLayer> {
    let mut table = value.table()?;
    let fails = |value: Value<'_>| value.choice(&[("fail", true), ("continue", false)]);
    let layer = AuditLayer {
        fail_key_changes: table.maybe("key_changes", fails)?,
        fail_opens: table.maybe("opens", fails)?,
    };
    table.end()?;
    Ok(layer)
}

fn policy(value: Value<'_>) -> Result<PolicyLayer> {
    let mut table = value.table()?;
    let below = [("refuse", BelowMin::Refuse), ("warn", BelowMin::Warn)];
    let policy = PolicyLayer {
        min_protectors: table.maybe("min_protectors", |value| value.number(1..=8))?,
        below_min: table.maybe("below_min", |value| value.choice(&below))?,
        allowed_providers: table.maybe("allowed_providers", |value| {
            let name = |value: &Value<'_>| match value.text()? {
                name if is_name(name) => Ok(name.to_owned()),
                _ => Err(value.wrong("a provider's name is 1 to 64 of A-Z a-z 0-9 . _ -")),
            };
            value.list()?.iter().map(name).collect::<Result<_>>().map(Some)
        })?,
    };
    table.end()?;
    Ok(policy)
}
