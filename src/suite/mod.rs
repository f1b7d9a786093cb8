//! The cipher suites, behind one trait. The envelope records the suite of each key version; nothing
//! is negotiated.

pub(crate) mod aegis;
pub(crate) mod ctr_hmac;
pub(crate) mod hkdf;
pub(crate) mod xaes;

use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::Error;
use crate::secret::Secret;

/// Why something is not sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It did not authenticate, or a length was not the suite's.
    Unauthentic,
    /// There is no memory for the key's schedule, which says nothing of what is to be opened.
    NoMemory,
}

pub(crate) use Fault::Unauthentic;

/// Which algorithms encrypt and authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SuiteId {
    /// XAES-256-GCM, as C2SP specifies it: `aes-256-gcm`, the default.
    #[default]
    Aes256Gcm = 1,
    /// AES-256-CTR, then HMAC-SHA-256 truncated to 28 bytes: `aes-256-ctr-hmac-sha256`.
    Aes256CtrHmacSha256 = 2,
    /// AEGIS-256X4, as draft-irtf-cfrg-aegis-aead specifies it, with tags of 16 bytes:
    /// `aegis-256x4`.
    Aegis256X4 = 3,
}

impl SuiteId {
    /// Every suite.
    pub const ALL: [Self; 3] = [Self::Aes256Gcm, Self::Aes256CtrHmacSha256, Self::Aegis256X4];

    /// Its number in an envelope.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The suite with number `code`.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.code() == code)
    }

    /// Its name in URIs, on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Aes256CtrHmacSha256 => "aes-256-ctr-hmac-sha256",
            Self::Aegis256X4 => "aegis-256x4",
        }
    }

    /// Length of the drawn part of its nonce, in bytes.
    #[must_use]
    pub const fn nonce_len(self) -> usize {
        match self {
            Self::Aes256Gcm => xaes::NONCE_LEN,
            Self::Aes256CtrHmacSha256 => ctr_hmac::NONCE_LEN,
            Self::Aegis256X4 => aegis::NONCE_LEN,
        }
    }

    /// Length of its tag, in bytes.
    #[must_use]
    pub const fn tag_len(self) -> usize {
        match self {
            Self::Aes256Gcm => xaes::TAG_LEN,
            Self::Aes256CtrHmacSha256 => ctr_hmac::TAG_LEN,
            Self::Aegis256X4 => aegis::TAG_LEN,
        }
    }
}

impl FromStr for SuiteId {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|suite| suite.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(" or ");
            Error::Usage(format!("there is no cipher {name}: expected {names}"))
        })
    }
}

/// Authenticated encryption with everything that depends on the nonce's key already derived.
pub(crate) trait Suite {
    /// Encrypts `plain` into `cipher`, of the same length, and authenticates both it and `aad`.
    fn seal(
        &self,
        nonce: &[u8],
        aad: &[u8],
        plain: &[u8],
        cipher: &mut [u8],
        tag: &mut [u8],
    ) -> Result<(), Fault>;

    /// Verifies, and decrypts `cipher` into `plain`, of the same length. After a failure `plain`
    /// holds what it held, or zeros: never unverified plaintext.
    fn open(
        &self,
        nonce: &[u8],
        aad: &[u8],
        cipher: &[u8],
        tag: &[u8],
        plain: &mut [u8],
    ) -> Result<(), Fault>;

    /// As [`Suite::open`], in place: the first `len` bytes of `block`, which goes on for at least
    /// as long as a tag. After a failure those `len` bytes are ciphertext or zeros.
    fn open_in_place(
        &self,
        nonce: &[u8],
        aad: &[u8],
        tag: &[u8],
        block: &mut [u8],
        len: usize,
    ) -> Result<(), Fault>;
}

/// A subkey made ready for its suite. Read-only, so that connections share it.
pub(crate) enum SuiteKey {
    Gcm(xaes::Key),
    CtrHmac(Arc<ctr_hmac::Key>),
    Aegis(Arc<aegis::Key>),
}

/// The part of a nonce that chooses the schedule; zeros for a suite with a single schedule.
pub(crate) type Choice = [u8; xaes::PREFIX_LEN];

/// A schedule that seals and opens under one nonce, or one run of them. Clones share it.
#[derive(Clone)]
pub(crate) enum Schedule {
    Gcm(Arc<xaes::Schedule>),
    CtrHmac(Arc<ctr_hmac::Key>),
    Aegis(Arc<aegis::Key>),
}

impl SuiteKey {
    /// The subkey of key version `version` for `suite`.
    pub(crate) fn new(suite: SuiteId, version: u32, subkey: &Secret) -> Self {
        match suite {
            SuiteId::Aes256Gcm => Self::Gcm(xaes::Key::new(subkey)),
            SuiteId::Aes256CtrHmacSha256 => Self::CtrHmac(ctr_hmac::Key::new(subkey)),
            SuiteId::Aegis256X4 => Self::Aegis(aegis::Key::new(subkey, version)),
        }
    }

    pub(crate) fn id(&self) -> SuiteId {
        match self {
            Self::Gcm(_) => SuiteId::Aes256Gcm,
            Self::CtrHmac(_) => SuiteId::Aes256CtrHmacSha256,
            Self::Aegis(_) => SuiteId::Aegis256X4,
        }
    }

    /// The bytes of `nonce` that choose the schedule. Different bytes give different schedules:
    /// GCM's tag does not cover the half of the nonce that chose its key.
    #[inline]
    pub(crate) fn choice(&self, nonce: &[u8]) -> Choice {
        match self {
            // Too short a nonce is refused where it is used, so it need not be refused here.
            Self::Gcm(_) => nonce.first_chunk().copied().unwrap_or_default(),
            _ => Choice::default(),
        }
    }

    /// The schedule of `choice`.
    ///
    /// # Errors
    /// [`Fault::NoMemory`].
    pub(crate) fn schedule(&self, choice: &Choice) -> Result<Schedule, Fault> {
        Ok(match self {
            Self::Gcm(key) => Schedule::Gcm(key.schedule(choice)?),
            Self::CtrHmac(key) => Schedule::CtrHmac(Arc::clone(key)),
            Self::Aegis(key) => Schedule::Aegis(Arc::clone(key)),
        })
    }
}

impl Deref for Schedule {
    type Target = dyn Suite;

    #[inline]
    fn deref(&self) -> &Self::Target {
        match self {
            Self::Gcm(schedule) => &**schedule,
            Self::CtrHmac(key) => &**key,
            Self::Aegis(key) => &**key,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bytes from hexadecimal digits, for published vectors.
    pub(crate) fn hex(digits: &str) -> Vec<u8> {
        let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn names_and_codes_lead_back() {
        for suite in SuiteId::ALL {
            assert_eq!(SuiteId::from_code(suite.code()), Some(suite));
            assert_eq!(suite.name().parse::<SuiteId>().unwrap(), suite);
        }
        assert!(SuiteId::from_code(0).is_none());
        let error = "rc4".parse::<SuiteId>().unwrap_err().to_string();
        assert!(error.contains("rc4") && error.contains("aes-256-gcm"), "{error}");
    }

    #[test]
    fn keys_are_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<SuiteKey>();
        shared::<Schedule>();
    }

    /// Every single-bit change to the authenticated input, and the expected result.
    #[test]
    fn a_flipped_bit_is_found_and_nothing_is_released() {
        for suite in SuiteId::ALL {
            let key = SuiteKey::new(suite, 1, &Secret::from_slice(&[3; 32]).unwrap());
            let plain = *b"forty bytes of plaintext, no more of it.";
            let good_nonce = vec![9; suite.nonce_len()];
            let (mut cipher, mut tag) = ([0; 40], vec![0; suite.tag_len()]);
            let schedule = key.schedule(&key.choice(&good_nonce)).unwrap();
            schedule.seal(&good_nonce, b"aad", &plain, &mut cipher, &mut tag).unwrap();
            // Content that each suite leaves in a buffer that held 0xee.
            let left = match suite {
                SuiteId::Aes256Gcm | SuiteId::Aegis256X4 => [0; 40],
                SuiteId::Aes256CtrHmacSha256 => [0xee; 40],
            };
            let parts = [cipher.to_vec(), good_nonce, tag, b"aad".to_vec()];
            for part in 0..parts.len() {
                for bit in 0..parts[part].len() * 8 {
                    let mut now = parts.clone();
                    now[part][bit / 8] ^= 1 << (bit % 8);
                    let [cipher, nonce, tag, aad] = &now;
                    let mut out = [0xee; 40];
                    let schedule = key.schedule(&key.choice(nonce)).unwrap();
                    let result = schedule.open(nonce, aad, cipher, tag, &mut out);
                    assert_eq!(result, Err(Unauthentic), "{suite:?} part {part} bit {bit}");
                    assert_eq!(out, left, "{suite:?} part {part} bit {bit}");
                }
            }
        }
    }

    /// One argument at a time a byte short, a byte long or empty: an error, and nothing is written.
    #[test]
    fn wrong_lengths_are_errors() {
        for suite in SuiteId::ALL {
            let key = SuiteKey::new(suite, 1, &Secret::from_slice(&[3; 32]).unwrap());
            let right = [suite.nonce_len(), 9, 9, suite.tag_len()];
            for (part, wrong) in (0..4)
                .flat_map(|part| [0, right[part] - 1, right[part] + 1].map(|wrong| (part, wrong)))
            {
                let mut lens = right;
                lens[part] = wrong;
                let [nonce, from, to, mut tag] = lens.map(|len| vec![9; len]);
                let mut to = to;
                let schedule = key.schedule(&key.choice(&nonce)).unwrap();
                let name = format!("{suite:?} nonce, from, to, tag: {lens:?}");
                let sealed = schedule.seal(&nonce, b"", &from, &mut to, &mut tag);
                assert_eq!(sealed, Err(Unauthentic), "{name}");
                assert!(to.iter().chain(&tag).all(|byte| *byte == 9), "{name}");
                assert_eq!(schedule.open(&nonce, b"", &from, &tag, &mut to), Err(Unauthentic));
                assert!(to.iter().all(|byte| *byte == 9), "{name}");
            }
        }
    }

    #[test]
    fn blocks_of_any_length_come_back() {
        for suite in SuiteId::ALL {
            let key = SuiteKey::new(suite, 1, &Secret::from_slice(&[3; 32]).unwrap());
            assert_eq!(key.id(), suite);
            for len in [0, 1, 15, 16, 17, 4048, 65488] {
                let (nonce, plain) = (vec![9; suite.nonce_len()], vec![0x5a; len]);
                let (mut cipher, mut tag) = (vec![0; len], vec![0; suite.tag_len()]);
                let schedule = key.schedule(&key.choice(&nonce)).unwrap();
                schedule.seal(&nonce, b"aad", &plain, &mut cipher, &mut tag).unwrap();
                let mut back = vec![0; len];
                schedule.open(&nonce, b"aad", &cipher, &tag, &mut back).unwrap();
                assert_eq!(back, plain, "{suite:?} {len}");
            }
        }
    }
}
