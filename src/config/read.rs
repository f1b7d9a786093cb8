//! Reads tables of TOML so that each mistake is named with its line and field.
//!
//! What stands in the file is never repeated in a message: where a passphrase was written instead
//! of the place to find it, the message must not carry it on.

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::FileError;

/// A mistake: where it is, in bytes from the start of the text, and what it is.
#[derive(Debug)]
pub(super) struct Wrong {
    at: usize,
    field: String,
    what: String,
}

pub(super) type Result<T, E = Wrong> = std::result::Result<T, E>;

impl Wrong {
    /// The mistake in words, for people with `text` in an editor.
    pub fn in_words(self, path: &Path, text: &str) -> FileError {
        let before = text.get(..self.at).unwrap_or(text);
        let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count() as u64;
        FileError::at(path, self.what).line(line).setting(self.field)
    }
}

/// A table, and which of its fields were asked for.
pub(super) struct Table<'t> {
    fields: &'t DeTable<'t>,
    path: String,
    at: usize,
    known: Vec<&'static str>,
}

/// A value and its name.
pub(super) struct Value<'t> {
    value: &'t DeValue<'t>,
    pub path: String,
    at: usize,
}

/// The whole file.
pub(super) fn parse(text: &str) -> Result<Spanned<DeTable<'_>>> {
    DeTable::parse(text).map_err(|error| Wrong {
        at: error.span().map_or(0, |span: Range<usize>| span.start),
        field: String::new(),
        // Without the line itself, which the error would show when it is printed.
        what: format!("this is not TOML: {}", error.message().replace('\n', ", ")),
    })
}

impl<'t> Table<'t> {
    pub fn root(parsed: &'t Spanned<DeTable<'t>>) -> Self {
        Self { fields: parsed.get_ref(), path: String::new(), at: 0, known: Vec::new() }
    }

    /// The field `name`, if it is there.
    pub fn get(&mut self, name: &'static str) -> Option<Value<'t>> {
        self.known.push(name);
        let value = self.fields.get(name)?;
        Some(self.value(name, value))
    }

    /// The field `name`, which has to be there.
    pub fn need(&mut self, name: &'static str) -> Result<Value<'t>> {
        self.get(name).ok_or_else(|| Wrong {
            at: self.at,
            field: join(&self.path, name),
            what: "this is missing".to_owned(),
        })
    }

    /// What `read` makes of the field `name`, or `default` where it is not there.
    pub fn or<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl FnOnce(Value<'t>) -> Result<T>,
    ) -> Result<T> {
        self.get(name).map_or(Ok(default), read)
    }

    /// What `read` makes of the field `name`, if it is there.
    pub fn maybe<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value<'t>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.get(name).map(read).transpose()
    }

    /// Every field, whatever its name.
    pub fn all(&self) -> impl Iterator<Item = (&'t str, Value<'t>)> {
        self.fields.iter().map(|(name, value)| {
            let name: &'t str = name.get_ref();
            (name, self.value(name, value))
        })
    }

    /// Refuses fields that were not asked for.
    pub fn end(self) -> Result<()> {
        let unknown = |name: &str| !self.known.contains(&name);
        match self.fields.keys().find(|name| unknown(name.get_ref())) {
            Some(name) => Err(Wrong {
                at: name.span().start,
                field: join(&self.path, name.get_ref()),
                what: format!("there is no such field here; known are {}", self.known.join(", ")),
            }),
            None => Ok(()),
        }
    }

    /// A mistake in the table as a whole.
    pub fn wrong(&self, what: impl Into<String>) -> Wrong {
        Wrong { at: self.at, field: self.path.clone(), what: what.into() }
    }

    fn value(&self, name: &str, value: &'t Spanned<DeValue<'t>>) -> Value<'t> {
        let path = join(&self.path, name);
        Value { value: value.get_ref(), path, at: value.span().start }
    }
}

impl<'t> Value<'t> {
    pub fn wrong(&self, what: impl Into<String>) -> Wrong {
        Wrong { at: self.at, field: self.path.clone(), what: what.into() }
    }

    pub fn table(self) -> Result<Table<'t>> {
        match self.value {
            DeValue::Table(fields) => {
                Ok(Table { fields, path: self.path, at: self.at, known: Vec::new() })
            }
            _ => Err(self.wrong("expected a table")),
        }
    }

    pub fn text(&self) -> Result<&'t str> {
        match self.value {
            DeValue::String(text) if text.is_empty() => Err(self.wrong("this is empty")),
            DeValue::String(text) if text.contains('\0') => {
                Err(self.wrong("this has a zero character in it"))
            }
            DeValue::String(text) => Ok(text),
            _ => Err(self.wrong("expected text in quotes")),
        }
    }

    pub fn flag(self) -> Result<bool> {
        match self.value {
            DeValue::Boolean(flag) => Ok(*flag),
            _ => Err(self.wrong("expected true or false")),
        }
    }

    pub fn number<T: TryFrom<u64>>(self, range: RangeInclusive<u64>) -> Result<T> {
        let expected =
            || format!("expected a whole number from {} to {}", range.start(), range.end());
        let number = match self.value {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        let number = number.filter(|number| range.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| self.wrong(expected()))
    }

    /// One of the names in `choices`.
    pub fn choice<T: Copy>(self, choices: &[(&str, T)]) -> Result<T> {
        let found =
            self.text().ok().and_then(|text| choices.iter().find(|(name, _)| *name == text));
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<String> =
                choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.wrong(format!("expected {}", names.join(" or ")))
        })
    }

    pub fn list(self) -> Result<Vec<Value<'t>>> {
        let DeValue::Array(values) = self.value else {
            return Err(self.wrong("expected a list in brackets"));
        };
        let value = |(n, value): (usize, &'t Spanned<DeValue<'t>>)| Value {
            value: value.get_ref(),
            path: format!("{}[{n}]", self.path),
            at: value.span().start,
        };
        Ok(values.iter().enumerate().map(value).collect())
    }

    /// A list of texts.
    pub fn texts(self) -> Result<Vec<String>> {
        self.list()?.iter().map(|value| value.text().map(str::to_owned)).collect()
    }

    /// A span of time; `zero` says whether none is one.
    pub fn duration(self, zero: bool) -> Result<Duration> {
        let found = self.text().ok().and_then(super::duration);
        found.filter(|span| zero || !span.is_zero()).ok_or_else(|| {
            let least = if zero { "" } else { " above zero" };
            self.wrong(format!("expected a span of time{least}, such as \"200ms\" or \"24h\""))
        })
    }

    /// A path; a relative one is taken from `dir`.
    pub fn path(self, dir: &Path) -> Result<PathBuf> {
        Ok(dir.join(self.text()?))
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
