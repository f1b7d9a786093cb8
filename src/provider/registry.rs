//! The kinds of providers that a configuration can set up, in one list. A kind's own module has its
//! table: the fields and their defaults, and the provider that is made of them.

use std::sync::Arc;

use super::{Ask, KeyProvider};
use crate::error::Result;
use crate::table::{self, Table};

/// A kind of provider, as a table of the configuration describes it.
pub(crate) trait Kind: Sized + std::fmt::Debug {
    /// The provider that is made of the table.
    type Provider: KeyProvider + 'static;

    /// The value of the table's field `type`.
    const NAME: &'static str;

    /// The other fields of `table`.
    fn read(table: &mut Table<'_>) -> table::Result<Self>;

    /// The kind and the place of its keys, in a few words.
    fn summary(&self) -> String {
        Self::NAME.to_owned()
    }

    /// What the provider is made of: two of the same origin answer alike.
    fn origin(&self) -> Result<String> {
        Ok(format!("{self:?}"))
    }

    /// The provider. Nothing is read, run or loaded for it yet; `ask` is for its prompts.
    fn build(&self, ask: Option<&Ask>) -> Result<Self::Provider>;
}

type Read = fn(&mut Table<'_>) -> table::Result<Provider>;

/// Defines [`Provider`] and [`KINDS`]. A kind under a condition has the name of its table and the
/// error of builds that lack it.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident($table:ty)
        $(, if $condition:meta, else $name:literal: $missing:literal)?;)*) => {
        /// A key provider as the configuration describes it.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Provider {
            $($(#[$doc])* $(#[cfg($condition)])? $kind($table),)*
        }

        /// The value of `type` for each kind, and the reader of its table; for a kind that this
        /// build lacks, the error.
        pub(crate) const KINDS: &[(&str, Result<Read, &str>)] = &[$(
            $(#[cfg($condition)])?
            (<$table>::NAME, Ok(|table| <$table>::read(table).map(Provider::$kind))),
            $(#[cfg(not($condition))] ($name, Err($missing)),)?
        )*];

        impl Provider {
            /// The kind and the place of its keys, in a few words.
            #[must_use]
            pub fn summary(&self) -> String {
                match self { $($(#[cfg($condition)])? Self::$kind(table) => table.summary(),)* }
            }

            pub(crate) fn origin(&self) -> Result<String> {
                match self { $($(#[cfg($condition)])? Self::$kind(table) => table.origin(),)* }
            }

            pub(crate) fn build(&self, ask: Option<&Ask>) -> Result<Arc<dyn KeyProvider>> {
                Ok(match self {
                    $($(#[cfg($condition)])? Self::$kind(table) => Arc::new(table.build(ask)?),)*
                })
            }
        }

        $($(#[cfg($condition)])? impl From<$table> for Provider {
            fn from(table: $table) -> Self {
                Self::$kind(table)
            }
        })*
    };
}

kinds! {
    /// Keys in a local file.
    Keystore(super::KeystoreTable);
    /// Keys derived from passphrases.
    Passphrase(super::PassphraseTable);
    /// A 256-bit key.
    RawKey(super::RawKeyTable);
    /// Commands that wrap and unwrap.
    Command(super::Command), if unix, else "command": "commands are run on Unix alone";
    /// Keys on a token.
    Pkcs11(super::Pkcs11Table), if feature = "pkcs11",
        else "pkcs11": "this build knows no tokens: build it with the feature pkcs11";
}

/// The provider that `table` describes.
pub(crate) fn read(table: &mut Table<'_>) -> table::Result<Provider> {
    let kind = table.need("type")?;
    let read = kind.choice(KINDS)?;
    read.map_err(|missing| kind.wrong(missing))?(table)
}
