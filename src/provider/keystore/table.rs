//! `type = "keystore"` in the configuration.

use std::path::PathBuf;

use super::Keystore;
use crate::error::Result;
use crate::provider::registry::Kind;
use crate::provider::{Ask, Source};
use crate::table::{self, Table, Value};

/// A keystore as the configuration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeystoreTable {
    /// The directory of the file. Default: the directory of `config.toml`, or without that file
    /// the embedded keystore's.
    pub dir: Option<PathBuf>,
    /// The source of the file's passphrase, if it has one.
    pub passphrase: Option<Source>,
}

impl KeystoreTable {
    /// The keystore, with the passphrase that the environment names for the embedded one.
    fn place(&self) -> Result<Keystore> {
        Ok(match (&self.dir, Keystore::open_default()) {
            (None, embedded) => embedded?,
            (Some(dir), Ok(embedded)) if embedded.path().parent() == Some(dir) => embedded,
            (Some(dir), _) => Keystore::at(dir),
        })
    }
}

impl Kind for KeystoreTable {
    type Provider = Keystore;

    const NAME: &'static str = "keystore";

    fn read(table: &mut Table<'_>) -> table::Result<Self> {
        let dir = table.dir().to_owned();
        Ok(Self {
            dir: Some(table.or("dir", dir, Value::path)?),
            passphrase: table.maybe("passphrase", Source::read)?,
        })
    }

    fn summary(&self) -> String {
        let place = self.dir.as_ref().map(|dir| format!(" in {}", dir.display()));
        format!("keystore{}", place.unwrap_or_default())
    }

    fn origin(&self) -> Result<String> {
        Ok(self.build(None)?.origin())
    }

    fn build(&self, ask: Option<&Ask>) -> Result<Keystore> {
        let keystore = self.place()?;
        Ok(match &self.passphrase {
            Some(source) => keystore.passphrase(source.secret(ask)),
            None => keystore,
        })
    }
}
