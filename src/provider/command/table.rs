//! `type = "command"` in the configuration.

use super::Command;
use crate::error::Result;
use crate::provider::Ask;
use crate::provider::registry::Kind;
use crate::table::{self, Table, Value};

impl Kind for Command {
    type Provider = Self;

    const NAME: &'static str = "command";

    fn read(table: &mut Table<'_>) -> table::Result<Self> {
        let mut command = Self::new(argv(table.need("wrap")?)?, argv(table.need("unwrap")?)?);
        if let Some(newest) = table.maybe("newest", argv)? {
            command = command.newest(newest);
        }
        let time = table.or("time_out", command.time, |value| value.duration(false))?;
        Ok(command.timeout(time))
    }

    fn summary(&self) -> String {
        let program = self.wrap.first().map(|program| program.display());
        format!("command {}", program.map_or_else(String::new, |program| program.to_string()))
    }

    fn build(&self, _: Option<&Ask>) -> Result<Self> {
        Ok(self.clone())
    }
}

fn argv(value: Value<'_>) -> table::Result<Vec<String>> {
    let words = value.texts()?;
    match words.is_empty() {
        true => Err(value.wrong("expected a program and its arguments, each in quotes")),
        false => Ok(words),
    }
}
