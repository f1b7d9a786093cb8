//! From a protector's name to the provider and key behind it, and from records to the DEK.
//!
//! What the envelope names is looked up among the providers that the application registered; it is
//! never executed, connected to or read as a path.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::envelope::ProtectorRecord;
use crate::error::{Error, Result};
use crate::provider::{Context, DEFAULT_KEY, KeyProvider, ProviderError};
use crate::secret::Secret;

/// Name of the embedded provider, the local keystore.
pub(crate) const KEYSTORE: &str = "keystore";

/// The providers known to one registration of the VFS.
#[derive(Default, Clone)]
pub(crate) struct Protectors {
    providers: BTreeMap<String, Arc<dyn KeyProvider>>,
    default: Option<String>,
}

impl Protectors {
    pub(crate) fn add(&mut self, name: &str, provider: Arc<dyn KeyProvider>) {
        self.providers.insert(name.to_owned(), provider);
    }

    pub(crate) fn set_default(&mut self, name: &str) {
        self.default = Some(name.to_owned());
    }

    /// Wraps the DEK of a new database under the protector called `name`, else the default one.
    ///
    /// A name is `provider:key`, or `key` for a key of the local keystore.
    pub(crate) fn wrap(
        &self,
        name: Option<&str>,
        dek: &Secret,
        context: &Context,
    ) -> Result<ProtectorRecord> {
        let name = name.or(self.default.as_deref()).unwrap_or(DEFAULT_KEY);
        let (provider, key_id) = split(name);
        let wrapped = self
            .providers
            .get(provider)
            .ok_or_else(|| Error::NoKey(format!("no key provider called {provider} is set up")))?
            .wrap(key_id, dek, context)?;
        Ok(ProtectorRecord {
            name: name.to_owned(),
            provider: provider.to_owned(),
            key_id: key_id.to_owned(),
            wrapped,
            not_after: 0,
            read_only: false,
        })
    }

    /// Asks the providers of `records` in order, only that of `wanted` where one is named.
    pub(crate) fn unwrap(
        &self,
        records: &[ProtectorRecord],
        wanted: Option<&str>,
        context: &Context,
    ) -> Result<Secret> {
        let mut first: Option<Error> = None;
        for record in records.iter().filter(|record| matches(record, wanted)) {
            match self.unwrap_one(record, context) {
                Ok(dek) => return Ok(dek),
                Err(error) => _ = first.get_or_insert(error),
            }
        }
        Err(first.unwrap_or_else(|| not_wrapped_for(records, wanted)))
    }

    fn unwrap_one(&self, record: &ProtectorRecord, context: &Context) -> Result<Secret> {
        let provider = self.providers.get(&record.provider).ok_or_else(|| {
            ProviderError::NotHere(format!(
                "the database is protected by provider {}, which is not set up here",
                record.provider
            ))
        })?;
        Ok(provider.unwrap(&record.key_id, &record.wrapped, context)?)
    }
}

/// Whether `record` is the protector that the caller named, or any will do.
pub(crate) fn matches(record: &ProtectorRecord, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|name| {
        record.name == name || (record.provider.as_str(), record.key_id.as_str()) == split(name)
    })
}

fn not_wrapped_for(records: &[ProtectorRecord], wanted: Option<&str>) -> Error {
    let names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
    Error::WrongKey(format!(
        "protector {} does not protect this database; {} does",
        wanted.unwrap_or_default(),
        names.join(", ")
    ))
}

fn split(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or((KEYSTORE, name))
}
