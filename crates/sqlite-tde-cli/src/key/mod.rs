//! The verbs of `key`: the keys of the local keystore, and its passphrase.
//!
//! `arguments` parses, `text` reads and writes keys.

mod arguments;
mod text;

use std::io::{self, Write};
use std::time::SystemTime;

use comfy_table::{Table, presets};
use sqlite_tde::provider::{KeyFormat, KeyInfo, KeyVersionInfo, Keystore};
use sqlite_tde::secret::Secret;

use arguments::{Export, Format, Import, Passphrase, Place, Rules, Which};
pub use arguments::{Key, time};

use crate::failure::{Failure, USAGE};
use crate::prompt;
use crate::report::{date, print_json};
use crate::settings;

/// Runs a verb on the keys of the local keystore.
pub fn run(key: Key) -> Result<(), Failure> {
    let config = settings::load()?;
    let keystore = settings::keystore(&config)?;
    if let Key::List { json } = key {
        return list(&keystore, json);
    }
    let (kind, name, verb) = key.describe();
    let name = name.map(str::to_owned);
    settings::audited(&config, kind, verb, name.as_deref(), Some(&keystore.path()), || {
        change(&keystore, key)
    })
}

fn change(keystore: &Keystore, key: Key) -> Result<(), Failure> {
    match key {
        Key::Create { name, rules } => create(keystore, &name, &rules),
        Key::List { json } => list(keystore, json),
        Key::Rotate { name } => done(&describe(&keystore.rotate(&name)?, "rotated")),
        Key::Enable(which) => set_enabled(keystore, &which, true),
        Key::Disable(which) => set_enabled(keystore, &which, false),
        Key::Set { which, rules } => set(keystore, &which, &rules),
        Key::Import(import) => import_key(keystore, &import),
        Key::Export(export) => export_key(keystore, &export),
        Key::Delete { name, days } => {
            let end = date(keystore.delete(&name, days)?);
            done(&format!("key {name} is refused from now on, and gone for good at {end}"))
        }
        Key::Undelete { name } => {
            keystore.undelete(&name)?;
            done(&format!("key {name} is back"))
        }
        Key::Purge { name, force } => purge(keystore, &name, force),
        Key::Passphrase(passphrase) => change_passphrase(keystore, &passphrase),
    }
}

fn done(text: &str) -> Result<(), Failure> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

fn create(keystore: &Keystore, name: &str, rules: &Rules) -> Result<(), Failure> {
    keystore.create_with(name, &rules.rules())?;
    done(&format!("created key {name} in {}", keystore.path().display()))
}

/// The message after a change of a key's version.
fn describe(key: &KeyInfo, what: &str) -> String {
    let newest = key.versions.last().map_or(0, |version| version.version);
    format!("{what} key {}: its newest version is {newest}", key.name)
}

fn set_enabled(keystore: &Keystore, which: &Which, enabled: bool) -> Result<(), Failure> {
    let name = &which.name;
    let state = if enabled { "enabled" } else { "disabled" };
    match which.version {
        Some(version) => {
            keystore.set_enabled(name, version, enabled)?;
            done(&format!("{state} version {version} of key {name}"))
        }
        None => {
            keystore.set_key_enabled(name, enabled)?;
            done(&format!("{state} key {name}"))
        }
    }
}

fn set(keystore: &Keystore, which: &Which, rules: &Rules) -> Result<(), Failure> {
    if rules.is_empty() {
        return Err(
            Failure::new(USAGE, "nothing to set").hint("give --not-before, --not-after or --ops")
        );
    }
    let key = keystore.set_rules(&which.name, which.version, &rules.rules())?;
    print_keys(&[key])
}

fn list(keystore: &Keystore, json: bool) -> Result<(), Failure> {
    let keys = keystore.list()?;
    if json { print_json(&keys) } else { print_keys(&keys) }
}

fn print_keys(keys: &[KeyInfo]) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::ASCII_FULL_CONDENSED);
    table.set_header(["key", "version", "created", "not before", "not after", "may", "state"]);
    for key in keys {
        let may: Vec<&str> = key.operations.iter().map(|operation| operation.name()).collect();
        for version in &key.versions {
            let limit = |time: Option<SystemTime>| time.map_or_else(String::new, date);
            table.add_row([
                key.name.clone(),
                version.version.to_string(),
                date(version.created),
                limit(version.not_before),
                limit(version.not_after),
                may.join(", "),
                state(key, version),
            ]);
        }
    }
    done(&table.to_string())
}

fn state(key: &KeyInfo, version: &KeyVersionInfo) -> String {
    let now = SystemTime::now();
    match key.purged_at {
        Some(time) => format!("deleted, gone at {}", date(time)),
        None if !key.enabled => "key disabled".into(),
        None if !version.enabled => "disabled".into(),
        None if version.not_before.is_some_and(|begin| now < begin) => "not yet".into(),
        None if version.not_after.is_some_and(|end| end <= now) => "ended".into(),
        None => "enabled".into(),
    }
}

fn import_key(keystore: &Keystore, import: &Import) -> Result<(), Failure> {
    let key = read_key(import)?;
    let name = &import.name;
    let info = match import.new_version {
        true => keystore.import_version(name, key)?,
        false => keystore.import(name, key)?,
    };
    done(&describe(&info, "imported"))
}

fn read_key(import: &Import) -> Result<Secret, Failure> {
    let text = text::read(&import.place)?;
    let format = import.format.map(Format::key_format).or_else(|| KeyFormat::detect(&text));
    let format = format.ok_or_else(|| {
        let text = format!("{} bytes that are no 256-bit key", text.len());
        Failure::new(USAGE, text).hint("give 32 bytes, 64 hexadecimal digits or a PEM block")
    })?;
    Ok(format.decode(&text)?)
}

fn export_key(keystore: &Keystore, export: &Export) -> Result<(), Failure> {
    let Export { which, reveal, format, out } = export;
    let key = keystore.export(&which.name, which.version, *reveal).map_err(|error| {
        let failure = Failure::from(error);
        if *reveal { failure } else { failure.hint("--reveal, if that is what you want") }
    })?;
    let text = format.key_format().encode(&key)?;
    match out {
        Some(path) => text::write_new(path, &text),
        None => text::print(&text),
    }
}

fn purge(keystore: &Keystore, name: &str, force: bool) -> Result<(), Failure> {
    keystore.purge(name, force).map_err(|error| {
        let failure = Failure::from(error);
        if force {
            failure
        } else {
            failure.hint(format!("`sqlite-tde key delete {name}`, or --force"))
        }
    })?;
    done(&format!("key {name} is gone for good"))
}

fn change_passphrase(keystore: &Keystore, passphrase: &Passphrase) -> Result<(), Failure> {
    let new = |place: &Place| place.source().unwrap_or_else(prompt::new);
    let path = keystore.path();
    let path = path.display();
    match passphrase {
        Passphrase::Set(place) => {
            keystore.set_passphrase(&new(place))?;
            done(&format!("{path} has a passphrase now"))
        }
        Passphrase::Change(place) => {
            keystore.change_passphrase(&new(place))?;
            done(&format!("{path} has another passphrase now"))
        }
        Passphrase::Remove => {
            keystore.remove_passphrase()?;
            done(&format!("{path} has no passphrase any more: it holds its keys in the clear"))
        }
    }
}
