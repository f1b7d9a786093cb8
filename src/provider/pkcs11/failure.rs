//! From a token's answers to the kinds of [`ProviderError`].

use std::fmt::Display;

use cryptoki::error::{Error, RvError};

use crate::provider::ProviderError;

/// An error of a call, before the key and token are named.
pub(super) enum Failure {
    /// An error of the token.
    Token(Error),
    /// There is no such token.
    Absent(String),
    /// An error that needs no more context.
    Known(ProviderError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Token(error)
    }
}

impl From<ProviderError> for Failure {
    fn from(error: ProviderError) -> Self {
        Self::Known(error)
    }
}

/// The meaning of a token's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The blob was not made by this key and mechanism.
    Blob,
    /// The token will not use the key so.
    Refused,
    /// It does not do this mechanism with these parameters.
    NotOffered,
    /// Session, login or handle are gone; with new ones it may work.
    Lost,
    /// The blob, the token or the connection to it may be the cause.
    Unclear,
}

pub(super) fn cause(error: &Error) -> Cause {
    let Error::Pkcs11(code, _) = error else { return Cause::Unclear };
    match code {
        RvError::EncryptedDataInvalid
        | RvError::EncryptedDataLenRange
        | RvError::DataInvalid
        | RvError::DataLenRange
        | RvError::WrappedKeyInvalid
        | RvError::WrappedKeyLenRange => Cause::Blob,
        RvError::KeyFunctionNotPermitted
        | RvError::KeyTypeInconsistent
        | RvError::KeySizeRange
        | RvError::ActionProhibited
        | RvError::FunctionRejected
        | RvError::TokenWriteProtected
        | RvError::SessionReadOnly
        | RvError::AttributeReadOnly
        | RvError::AttributeValueInvalid
        | RvError::TemplateInconsistent => Cause::Refused,
        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::ArgumentsBad
        | RvError::FunctionNotSupported => Cause::NotOffered,
        RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::ObjectHandleInvalid
        | RvError::KeyHandleInvalid
        | RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::CryptokiNotInitialized
        | RvError::UserNotLoggedIn => Cause::Lost,
        _ => Cause::Unclear,
    }
}

impl Failure {
    /// Whether new sessions may help.
    pub(super) fn is_worth_a_new_session(&self) -> bool {
        match self {
            Self::Token(error) => matches!(cause(error), Cause::Lost | Cause::Unclear),
            Self::Absent(_) => true,
            Self::Known(_) => false,
        }
    }

    /// Whether sessions are gone.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, Self::Token(error) if cause(error) == Cause::Lost)
    }

    /// `place` is the token, in words.
    pub(super) fn at(self, place: &dyn Display) -> ProviderError {
        let error = match self {
            Self::Known(error) => return error,
            Self::Absent(text) => return ProviderError::unreachable(text),
            Self::Token(error) => error,
        };
        let words = words(&error);
        match cause(&error) {
            Cause::Refused => ProviderError::denied(format!(
                "{place}: {words}: look at the key's attributes and the token's policy"
            )),
            Cause::NotOffered => {
                ProviderError::denied(format!("{place}: {words}: it does not do this with the key"))
            }
            Cause::Blob | Cause::Lost | Cause::Unclear => {
                ProviderError::unreachable(format!("{place}: {words}"))
            }
        }
    }
}

/// The call and the code, in the standard's words.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("C_{function:?} answered {code:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    /// Codes that no token in software gives, or not when asked to.
    #[test]
    fn codes_end_as_kinds() {
        let (denied, unreachable) = ("denied", "unreachable");
        for (code, reopens, want) in [
            (RvError::DeviceRemoved, true, unreachable),
            (RvError::TokenNotPresent, true, unreachable),
            (RvError::SessionHandleInvalid, true, unreachable),
            (RvError::SessionClosed, true, unreachable),
            (RvError::UserNotLoggedIn, true, unreachable),
            (RvError::CryptokiNotInitialized, true, unreachable),
            (RvError::DeviceError, true, unreachable),
            (RvError::DeviceMemory, true, unreachable),
            (RvError::GeneralError, true, unreachable),
            (RvError::FunctionFailed, true, unreachable),
            (RvError::UnknownErrorCode(0x35), true, unreachable),
            (RvError::VendorDefined(0x8000_0001), true, unreachable),
            (RvError::KeyFunctionNotPermitted, false, denied),
            (RvError::ActionProhibited, false, denied),
            (RvError::MechanismInvalid, false, denied),
            (RvError::ArgumentsBad, false, denied),
            (RvError::SessionReadOnly, false, denied),
        ] {
            let failure = Failure::Token(Error::Pkcs11(code, Function::Decrypt));
            assert_eq!(failure.is_worth_a_new_session(), reopens, "{code:?}");
            let error = failure.at(&"token");
            let kind = match &error {
                ProviderError::Denied(_) => denied,
                ProviderError::Unreachable(_) => unreachable,
                _ => "something else",
            };
            assert_eq!(kind, want, "{code:?}");
            let text = error.to_string();
            assert!(text.starts_with("token: C_Decrypt answered"), "{text}");
        }
    }
}
