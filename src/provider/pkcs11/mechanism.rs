//! How a token wraps a DEK.
//!
//! All by C_Encrypt and C_Decrypt, never by C_WrapKey and C_UnwrapKey. With those the DEK would be
//! an object in the token; reading it back takes templates on which tokens do not agree, and leaves
//! copies in memory that are never wiped.

use cryptoki::error::Result;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism as Call, MechanismType};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use zeroize::Zeroizing;

use super::keys::Algorithm;
use crate::secret::Secret;

const NONCE_LEN: usize = 12;
const TAG_BITS: usize = 128;

/// How a token wraps a DEK; a protector record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mechanism {
    /// CKM_AES_GCM with the context as associated data: `aes-gcm`.
    AesGcm,
    /// CKM_AES_KEY_WRAP, the key wrap of RFC 3394: `aes-key-wrap`.
    AesKeyWrap,
    /// CKM_RSA_PKCS_OAEP with SHA-256: `rsa-oaep-sha256`.
    RsaOaepSha256,
    /// CKM_RSA_PKCS_OAEP with SHA-1: `rsa-oaep-sha1`. For tokens without the other.
    RsaOaepSha1,
}

impl Mechanism {
    pub(super) const ALL: [Self; 4] =
        [Self::AesGcm, Self::AesKeyWrap, Self::RsaOaepSha256, Self::RsaOaepSha1];

    /// Its name in a protector record.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aes-gcm",
            Self::AesKeyWrap => "aes-key-wrap",
            Self::RsaOaepSha256 => "rsa-oaep-sha256",
            Self::RsaOaepSha1 => "rsa-oaep-sha1",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mechanism| mechanism.name() == name)
    }

    pub(super) fn algorithm(self) -> Algorithm {
        match self {
            Self::AesGcm | Self::AesKeyWrap => Algorithm::Aes,
            Self::RsaOaepSha256 | Self::RsaOaepSha1 => Algorithm::Rsa,
        }
    }

    pub(super) fn kind(self) -> MechanismType {
        match self {
            Self::AesGcm => MechanismType::AES_GCM,
            Self::AesKeyWrap => MechanismType::AES_KEY_WRAP,
            Self::RsaOaepSha256 | Self::RsaOaepSha1 => MechanismType::RSA_PKCS_OAEP,
        }
    }

    /// `dek` as the token seals it. `nonce` is fresh; only AES-GCM uses it.
    pub(super) fn encrypt(
        self,
        session: &Session,
        key: ObjectHandle,
        dek: &Secret,
        aad: &[u8],
        mut nonce: [u8; NONCE_LEN],
    ) -> Result<Vec<u8>> {
        if self != Self::AesGcm {
            return session.encrypt(&self.plain_call(), key, dek.expose());
        }
        let call = Call::AesGcm(GcmParams::new(&mut nonce, aad, TAG_BITS.try_into()?)?);
        let sealed = session.encrypt(&call, key, dek.expose())?;
        // Read after the call: some tokens put a nonce of their own in its place.
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// The DEK in `sealed`; `None` if the plaintext has another length.
    pub(super) fn decrypt(
        self,
        session: &Session,
        key: ObjectHandle,
        sealed: &[u8],
        aad: &[u8],
    ) -> Result<Option<Secret>> {
        let plain = if self == Self::AesGcm {
            let Some((nonce, sealed)) = sealed.split_first_chunk::<NONCE_LEN>() else {
                return Ok(None);
            };
            let mut nonce = *nonce;
            let call = Call::AesGcm(GcmParams::new(&mut nonce, aad, TAG_BITS.try_into()?)?);
            session.decrypt(&call, key, sealed)?
        } else {
            session.decrypt(&self.plain_call(), key, sealed)?
        };
        Ok(Secret::from_slice(&Zeroizing::new(plain)))
    }

    /// The mechanisms without a nonce.
    fn plain_call(self) -> Call<'static> {
        let oaep = |hash, mask| {
            Call::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()))
        };
        match self {
            Self::RsaOaepSha256 => oaep(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
            Self::RsaOaepSha1 => oaep(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
            Self::AesGcm | Self::AesKeyWrap => Call::AesKeyWrap,
        }
    }
}
