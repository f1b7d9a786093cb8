//! Tables of `config.toml`, read so that each mistake is named with its line and field.
//!
//! What stands in the file is never repeated in a message: where a passphrase was written instead
//! of the place to find it, the message must not carry it on.

mod span;

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::FileError;
pub use span::duration;

/// A mistake: where it is, in bytes from the start of the text, and what it is.
#[derive(Debug)]
pub(crate) struct Wrong {
    at: usize,
    field: String,
    what: String,
}

pub(crate) type Result<T, E = Wrong> = std::result::Result<T, E>;

impl Wrong {
    /// The mistake in words, for people with `text` in an editor.
    pub fn in_words(self, path: &Path, text: &str) -> FileError {
        let before = text.get(..self.at).unwrap_or(text);
        let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count() as u64;
        // A name in the file may hold what a terminal obeys.
        let field = self.field.escape_debug().to_string();
        FileError::at(path, self.what).line(line).setting(field)
    }
}

/// A place in the file.
struct Place<'t> {
    /// The directory that relative paths start at.
    dir: &'t Path,
    /// The names that lead there.
    path: String,
    at: usize,
}

/// A table, and which of its fields were asked for.
pub(crate) struct Table<'t> {
    fields: &'t DeTable<'t>,
    place: Place<'t>,
    known: Vec<&'static str>,
}

/// A value and its place.
pub(crate) struct Value<'t> {
    value: &'t DeValue<'t>,
    place: Place<'t>,
}

/// The whole file.
pub(crate) fn parse(text: &str) -> Result<Spanned<DeTable<'_>>> {
    DeTable::parse(text).map_err(|error| Wrong {
        at: error.span().map_or(0, |span: Range<usize>| span.start),
        field: String::new(),
        // Without the line itself, which the error would show when it is printed.
        what: format!("this is not TOML: {}", error.message().replace('\n', ", ")),
    })
}

impl<'t> Place<'t> {
    /// The place of the field `name` of the table here.
    fn field(&self, name: &str, at: usize) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Place { dir: self.dir, path: format!("{}{dot}{name}", self.path), at }
    }

    fn wrong(&self, what: impl Into<String>) -> Wrong {
        Wrong { at: self.at, field: self.path.clone(), what: what.into() }
    }
}

impl<'t> Table<'t> {
    /// The whole file, which is in `dir`.
    pub fn root(parsed: &'t Spanned<DeTable<'t>>, dir: &'t Path) -> Self {
        let place = Place { dir, path: String::new(), at: 0 };
        Self { fields: parsed.get_ref(), place, known: Vec::new() }
    }

    /// The directory that relative paths start at.
    pub fn dir(&self) -> &'t Path {
        self.place.dir
    }

    /// The result of `read`; a field that it did not ask for is refused.
    pub fn read<T>(mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let found = read(&mut self)?;
        let unknown = |name: &str| !self.known.contains(&name);
        match self.fields.keys().find(|name| unknown(name.get_ref())) {
            Some(name) => Err(self.place.field(name.get_ref(), name.span().start).wrong(format!(
                "there is no such field here; known are {}",
                self.known.join(", ")
            ))),
            None => Ok(found),
        }
    }

    /// The field `name`, if it is there.
    pub fn get(&mut self, name: &'static str) -> Option<Value<'t>> {
        self.known.push(name);
        let value = self.fields.get(name)?;
        Some(self.value(name, value))
    }

    /// The field `name`, which has to be there.
    pub fn need(&mut self, name: &'static str) -> Result<Value<'t>> {
        let missing = self.place.field(name, self.place.at);
        self.get(name).ok_or_else(|| missing.wrong("this is missing"))
    }

    /// The result of `read` for the field `name`, or `default` without that field.
    pub fn or<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl FnOnce(Value<'t>) -> Result<T>,
    ) -> Result<T> {
        self.get(name).map_or(Ok(default), read)
    }

    /// The result of `read` for the table `name`, or the default without that table.
    pub fn group<T: Default>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.or(name, T::default(), |value| value.fields(read))
    }

    /// The result of `read` for the field `name`, if it is there.
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

    /// A mistake in the table as a whole. Not every set of features has a table that can have one.
    #[cfg_attr(not(feature = "pkcs11"), allow(dead_code))]
    pub fn wrong(&self, what: impl Into<String>) -> Wrong {
        self.place.wrong(what)
    }

    fn value(&self, name: &str, value: &'t Spanned<DeValue<'t>>) -> Value<'t> {
        Value { value: value.get_ref(), place: self.place.field(name, value.span().start) }
    }
}

impl<'t> Value<'t> {
    pub fn wrong(&self, what: impl Into<String>) -> Wrong {
        self.place.wrong(what)
    }

    pub fn table(self) -> Result<Table<'t>> {
        match self.value {
            DeValue::Table(fields) => Ok(Table { fields, place: self.place, known: Vec::new() }),
            _ => Err(self.wrong("expected a table")),
        }
    }

    /// [`Table::read`] of this table.
    pub fn fields<T>(self, read: impl FnOnce(&mut Table<'t>) -> Result<T>) -> Result<T> {
        self.table()?.read(read)
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
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T> {
        let found =
            self.text().ok().and_then(|text| choices.iter().find(|(name, _)| *name == text));
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<String> =
                choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.wrong(format!("expected {}", names.join(" or ")))
        })
    }

    pub fn list(&self) -> Result<Vec<Value<'t>>> {
        let DeValue::Array(values) = self.value else {
            return Err(self.wrong("expected a list in brackets"));
        };
        let value = |(n, value): (usize, &'t Spanned<DeValue<'t>>)| Value {
            value: value.get_ref(),
            place: Place {
                path: format!("{}[{n}]", self.place.path),
                at: value.span().start,
                ..self.place
            },
        };
        Ok(values.iter().enumerate().map(value).collect())
    }

    /// A list of texts.
    pub fn texts(&self) -> Result<Vec<String>> {
        self.list()?.iter().map(|value| value.text().map(str::to_owned)).collect()
    }

    /// A span of time; `zero` says whether none is one.
    pub fn duration(self, zero: bool) -> Result<Duration> {
        let found = self.text().ok().and_then(duration);
        found.filter(|span| zero || !span.is_zero()).ok_or_else(|| {
            let least = if zero { "" } else { " above zero" };
            self.wrong(format!("expected a span of time{least}, such as \"200ms\" or \"24h\""))
        })
    }

    /// A path; a relative one starts at the directory of the file.
    pub fn path(self) -> Result<PathBuf> {
        Ok(self.place.dir.join(self.text()?))
    }
}
