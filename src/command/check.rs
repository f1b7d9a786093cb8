//! Whether the protectors of a database give the key in use.

use serde::Serialize;

use crate::db::Database;
use crate::db::host::Host;
use crate::error::{Error, Result};
use crate::key::envelope::ProtectorRecord;
use crate::key::opening::Spent;
use crate::key::protector::check_time;
use crate::key::session::{Session, unverified};
use crate::provider::{Context, ProviderError};
use crate::secret::Secret;

/// The result of checking one protector, up to the first failed step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProtectorCheck {
    /// The protector's name.
    pub name: String,
    /// A provider of that name is set up here.
    pub configured: bool,
    /// It answered.
    pub reachable: bool,
    /// It has the key.
    pub present: bool,
    /// It unwrapped the database encryption key.
    pub unwraps: bool,
    /// The unwrapped key is the key in use.
    pub matches: bool,
    /// The newest version of the key, if the provider tells it.
    pub newest_version: Option<String>,
    /// The error of the first failed step.
    pub error: Option<String>,
}

/// Checks every protector: provider configured, reachable, key present, unwraps, equal to the one
/// in use. After them come protectors whose removal was interrupted and that the file still has.
///
/// Without keys it uses the records in the file unauthenticated.
pub(super) fn check(db: &mut Database<impl Host>) -> Result<Vec<ProtectorCheck>> {
    let (session, host) = db.keys()?;
    let (records, context, dek) = match session.begin(host) {
        Ok(()) => {
            let records = session.refresh_envelope(host)?.protectors.clone();
            let (dek, context) = session.keyring().dek()?;
            (records, context, Some(dek))
        }
        Err(Error::Inaccessible { .. }) => {
            let (records, context) = unverified(host)?;
            (records, context, None)
        }
        Err(error) => return Err(error),
    };
    // Unauthenticated costs are bounded as in an opening.
    let mut spent = Spent::default();
    let mut check = |record| {
        let refused = match session.protectors().derivation(record) {
            _ if dek.is_some() => None,
            Ok(Some(cost)) if !spent.take(cost, &session.protectors().settings.access) => {
                Some(ProviderError::denied(format!(
                    "not tried: needs {cost}; raise [access] derivation in config.toml"
                )))
            }
            Ok(_) => None,
            // The cost is unknown, so it may be any.
            Err(error) => Some(error),
        };
        check_one(session, record, dek.as_ref(), &context, refused)
    };
    let mut checks: Vec<ProtectorCheck> = records.iter().map(&mut check).collect();
    if dek.is_some() {
        // One that was removed is named once, whether or not its provider still gives the key.
        checks.extend(
            session
                .cut_off_protectors(host)?
                .iter()
                .map(|record| ProtectorCheck { error: Some(CUT_OFF.into()), ..check(record) }),
        );
    }
    Ok(checks)
}

const CUT_OFF: &str = "removed or replaced, interrupted: one envelope copy still has it; opening \
                       the database for writing finishes the change";

fn check_one(
    session: &Session,
    record: &ProtectorRecord,
    dek: Option<&Secret>,
    context: &Context,
    refused: Option<ProviderError>,
) -> ProtectorCheck {
    let protectors = session.protectors();
    let newest = protectors.newest_version(record);
    let unwrapped = match refused {
        None => protectors.unwrap(&[record], context).map(|(dek, _)| dek),
        Some(refused) => Err(refused),
    };
    let error = unwrapped.as_ref().err();
    let configured = protectors.provider_of(record).is_some();
    let reachable = configured && !matches!(error, Some(ProviderError::Unreachable(_)));
    let found = |error: &ProviderError| {
        matches!(error, ProviderError::Denied(_) | ProviderError::WrongKey(_))
    };
    let matches = unwrapped.as_ref().is_ok_and(|found| dek.is_some_and(|dek| found.is(dek)));
    let other = (unwrapped.is_ok() && !matches).then(|| match dek {
        Some(_) => "returned a different key".to_owned(),
        None => "cannot compare: no key in use".to_owned(),
    });
    let ended = check_time(record).err().map(|error| error.to_string());
    ProtectorCheck {
        name: record.name.clone(),
        configured,
        reachable,
        present: newest.is_ok() || error.is_none_or(found),
        unwraps: error.is_none(),
        matches,
        error: error.map(ToString::to_string).or(other).or(ended),
        newest_version: newest.ok(),
    }
}
