//! `type = "pkcs11"` in the configuration.

use std::path::PathBuf;

use super::{Mechanism, Pkcs11, Token};
use crate::error::Result;
use crate::provider::registry::Kind;
use crate::provider::{Ask, Source};
use crate::table::{self, Table, Value};

/// A token as the configuration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Table {
    /// The token's library.
    pub module: PathBuf,
    /// Which token of it.
    pub token: Token,
    /// The source of the user's PIN.
    pub pin: Source,
    /// The mechanisms to wrap with, the preferred one first; those of [`Pkcs11`] if empty.
    pub mechanisms: Vec<Mechanism>,
    /// Whether nothing else in the process uses the library.
    pub only_user: bool,
}

impl Kind for Pkcs11Table {
    type Provider = Pkcs11;

    const NAME: &'static str = "pkcs11";

    fn read(table: &mut Table<'_>) -> table::Result<Self> {
        let module = table.need("module")?.path()?;
        let token = match (table.get("token"), table.get("slot")) {
            (Some(label), None) => Token::Label(label.text()?.to_owned()),
            (None, Some(slot)) => Token::Slot(slot.number(0..=u64::from(u32::MAX))?),
            (None, None) => {
                return Err(table.wrong("either `token`, a label, or `slot`, a number, is missing"));
            }
            (Some(_), Some(slot)) => return Err(slot.wrong("`token` names the token already")),
        };
        Ok(Self {
            module,
            token,
            pin: Source::read(table.need("pin")?)?,
            mechanisms: table.or("mechanisms", Vec::new(), mechanisms)?,
            only_user: table.or("only_user", false, Value::flag)?,
        })
    }

    fn summary(&self) -> String {
        format!("PKCS#11 token of {}", self.module.display())
    }

    fn build(&self, ask: Option<&Ask>) -> Result<Pkcs11> {
        let pkcs11 = Pkcs11::new(&self.module, self.token.clone(), self.pin.secret(ask));
        let pkcs11 = pkcs11.only_user(self.only_user);
        Ok(match self.mechanisms.is_empty() {
            true => pkcs11,
            false => pkcs11.mechanisms(&self.mechanisms),
        })
    }
}

fn mechanisms(value: Value<'_>) -> table::Result<Vec<Mechanism>> {
    let choices = Mechanism::ALL.map(|mechanism| (mechanism.name(), mechanism));
    value.list()?.iter().map(|value| value.choice(&choices)).collect()
}
