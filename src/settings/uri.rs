//! The parameters of a URI that are settings: one table to read and to write them.

use std::borrow::Cow;

use super::{Layer, SuiteId};
use crate::error::{Error, Result};

/// A parameter: its name, how it is read, and how it is written.
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    read: fn(&mut Layer, &str) -> Result<()>,
    write: fn(&Layer) -> Option<String>,
}

pub(crate) const PARAMETERS: [Parameter; 6] = [
    Parameter {
        name: "tde_protector",
        read: |layer, value| said(&mut layer.protector, Ok(Some(value.to_owned()))),
        write: |layer| layer.protector.clone().flatten(),
    },
    Parameter {
        name: "tde_cipher",
        read: |layer, value| said(&mut layer.cipher, value.parse::<SuiteId>()),
        write: |layer| layer.cipher.map(|cipher| cipher.name().to_owned()),
    },
    Parameter {
        name: "tde_plaintext",
        read: |layer, value| said(&mut layer.allow_plaintext, choice(value, ["allow", "refuse"])),
        write: |layer| layer.allow_plaintext.map(|allow| word(allow, ["allow", "refuse"])),
    },
    Parameter {
        name: "tde_file_id",
        read: |layer, value| said(&mut layer.file_id, value.parse().map(Some)),
        write: |layer| layer.file_id.flatten().map(|id| id.to_string()),
    },
    Parameter {
        name: "tde_read_ahead",
        read: |layer, value| said(&mut layer.tuning.read_ahead, choice(value, ["on", "off"])),
        write: |layer| layer.tuning.read_ahead.map(|on| word(on, ["on", "off"])),
    },
    Parameter {
        name: "tde_gather_writes",
        read: |layer, value| said(&mut layer.tuning.gather_writes, choice(value, ["on", "off"])),
        write: |layer| layer.tuning.gather_writes.map(|on| word(on, ["on", "off"])),
    },
];

/// Whether `name` is one that this library reads, in whatever case it was written.
pub(crate) fn is_ours(name: &str) -> bool {
    name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("tde_"))
}

/// Whether any of the parameters called `names` is a setting.
///
/// # Errors
/// [`Error::Usage`] for a name that only looks like one: a misspelt demand would demand nothing.
pub(crate) fn check_names<'a>(names: impl Iterator<Item = Cow<'a, str>>) -> Result<bool> {
    let mut any = false;
    for name in names.filter(|name| is_ours(name)) {
        if !PARAMETERS.iter().any(|parameter| parameter.name == name) {
            let known = PARAMETERS.map(|parameter| parameter.name).join(", ");
            let name = name.escape_debug();
            return Err(Error::Usage(format!("there is no URI parameter {name}: use {known}")));
        }
        any = true;
    }
    Ok(any)
}

/// What a URI says whose parameters are answered by `value_of`.
///
/// # Errors
/// [`Error::Usage`] where a value is none that the parameter takes.
pub(crate) fn read(value_of: impl Fn(&str) -> Option<String>) -> Result<Layer> {
    let mut layer = Layer::default();
    for Parameter { name, read, .. } in &PARAMETERS {
        if let Some(value) = value_of(name) {
            read(&mut layer, &value).map_err(|error| match error {
                Error::Usage(words) if words.starts_with("expected") => {
                    Error::Usage(format!("{name}={value}: {words}"))
                }
                other => other,
            })?;
        }
    }
    Ok(layer)
}

/// The parameters that say what `layer` says.
pub(crate) fn write(layer: &Layer) -> impl Iterator<Item = (&str, String)> {
    PARAMETERS.iter().filter_map(|parameter| Some((parameter.name, (parameter.write)(layer)?)))
}

fn said<T>(setting: &mut Option<T>, value: Result<T>) -> Result<()> {
    *setting = Some(value?);
    Ok(())
}

fn choice(value: &str, words: [&str; 2]) -> Result<bool> {
    match words.iter().position(|word| *word == value) {
        Some(number) => Ok(number == 0),
        None => Err(Error::Usage(format!("expected {} or {}", words[0], words[1]))),
    }
}

fn word(value: bool, words: [&str; 2]) -> String {
    words[usize::from(!value)].to_owned()
}
