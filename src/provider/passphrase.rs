//! A protector key derived from a passphrase, for people and for recovery without any server.
//!
//! The key is Argon2id (RFC 9106) of the passphrase and a random salt of each wrap. The blob:
//!
//! ```text
//! 0        1       2            4            8          24                96
//! +--------+-------+------------+------------+----------+-----------------+
//! | format | lanes | iterations | memory/KiB | salt     | as in `wrap`    |
//! +--------+-------+------------+------------+----------+-----------------+
//! AAD = that of `wrap` with key version 1 | the first 24 bytes; integers are big-endian
//! ```
//!
//! An attacker who can write the database can write these numbers. They are checked against
//! [`Cost`]'s bounds before the passphrase is asked for or memory is taken, so that a made-up blob
//! costs at most 1 GiB and some seconds. [`crate::AccessPolicy::derivation`] bounds the total of
//! all blobs of an envelope.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

use super::derived::Derived;
use super::registry::Kind;
use super::runs::{Ours, Runs};
use super::{
    Answer, Ask, Context, KeyProvider, ONLY_VERSION, ProviderError, SecretSource, Source,
    UnwrapRequest, VersionRequest, WaitsFor, WrapRequest, Wrapped, random, wrap,
};
use crate::error;
use crate::secret::{KEY_LEN, Secret};
use crate::table::{self, Table};

const MECHANISM: &str = "argon2id+xaes-256-gcm";
const FORMAT: u8 = 1;
const LANES_AT: usize = size_of::<u8>();
const ITERATIONS_AT: usize = LANES_AT + size_of::<u8>();
const MEMORY_AT: usize = ITERATIONS_AT + size_of::<u16>();
const SALT_AT: usize = MEMORY_AT + size_of::<u32>();
const SALT_LEN: usize = 16;
const HEADER_LEN: usize = SALT_AT + SALT_LEN;
const _: () = assert!(HEADER_LEN == 24, "databases have headers of this length");

pub(crate) const MEMORY_MAX_KIB: u32 = 1 << 20;
const ITERATIONS_MAX: u32 = 64;
const PARALLELISM_MAX: u32 = 16;
/// Kibibytes filled, over all iterations.
pub(crate) const WORK_MAX_KIB: u64 = 4 << 20;

/// The cost of deriving a key, and so of each guess of an attacker.
///
/// At most 1 GiB, 64 iterations and 16 lanes, at least 8 KiB a lane, and memory times iterations at
/// most 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub iterations: u32,
    /// Lanes, which could be filled at the same time.
    pub parallelism: u32,
}

impl Default for Cost {
    /// 64 MiB and 3 iterations, the second recommendation of RFC 9106, section 4, but in one lane
    /// instead of four: here one thread fills them all, so that more lanes would save us nothing,
    /// and someone who guesses on several cores some waiting.
    fn default() -> Self {
        Self { memory_kib: 64 << 10, iterations: 3, parallelism: 1 }
    }
}

impl Cost {
    /// Each in its bounds; memory times iterations are checked when it is used.
    fn read(table: &mut Table<'_>) -> table::Result<Self> {
        let Self { memory_kib, iterations, parallelism } = Self::default();
        let max = |max: u32| u64::from(max);
        Ok(Self {
            memory_kib: table
                .or("memory_kib", memory_kib, |value| value.number(8..=max(MEMORY_MAX_KIB)))?,
            iterations: table
                .or("iterations", iterations, |value| value.number(1..=max(ITERATIONS_MAX)))?,
            parallelism: table
                .or("parallelism", parallelism, |value| value.number(1..=max(PARALLELISM_MAX)))?,
        })
    }

    /// Kibibytes filled, over all iterations.
    pub(crate) fn work_kib(self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.iterations)
    }

    /// Argon2id of `passphrase` at this cost.
    pub(super) fn derive(self, passphrase: &[u8], salt: &[u8]) -> Result<Secret, ProviderError> {
        let Self { memory_kib, iterations, parallelism } = self;
        let params = Params::new(memory_kib, iterations, parallelism, Some(KEY_LEN))
            .map_err(|error| ProviderError::damaged(format!("passphrase: {error}")))?;
        hash(&Argon2::new(Algorithm::Argon2id, Version::V0x13, params), passphrase, salt)
    }

    pub(super) fn is_bounded(self) -> bool {
        let Self { memory_kib, iterations, parallelism } = self;
        (1..=PARALLELISM_MAX).contains(&parallelism)
            && (1..=ITERATIONS_MAX).contains(&iterations)
            && (8 * parallelism..=MEMORY_MAX_KIB).contains(&memory_kib)
            && self.work_kib() <= WORK_MAX_KIB
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_kib, iterations, parallelism } = self;
        write!(f, "{memory_kib} KiB, {iterations} iterations, {parallelism} lanes")
    }
}

/// Protector keys derived from passphrases of a [`SecretSource`].
///
/// The id of a key is a free label, bound into each blob, and shown when the passphrase is asked
/// for: "passphrase for recovery", or "new passphrase for recovery" before a DEK is wrapped with
/// it. A passphrase has no versions: its version is always `1`, and another one takes its place by
/// adding a protector and removing the old one.
///
/// Deriving takes some 0.15 seconds. The key that last wrapped or unwrapped stays in memory, so
/// that the same blob is unwrapped again without asking; [`KeyProvider::forget`] wipes it. A
/// passphrase that unwraps nothing is not kept, and never asked for again within a call.
pub struct Passphrase {
    source: SecretSource,
    cost: Cost,
    /// By key id and header.
    keys: Derived<(String, Header), Secret>,
}

impl Passphrase {
    /// Passphrases that `source` gives. Asks nothing yet.
    #[must_use]
    pub fn new(source: SecretSource) -> Self {
        Self { source, cost: Cost::default(), keys: Derived::default() }
    }

    /// The cost of derivations for wrapping. Outside of [`Cost`]'s bounds nothing is wrapped.
    #[must_use]
    pub fn cost(self, cost: Cost) -> Self {
        Self { cost, ..self }
    }

    fn ask_and_derive(&self, what: &str, header: &Header) -> Result<Secret, ProviderError> {
        header.cost.derive(&self.source.read(what)?, &header.salt)
    }
}

/// Passphrases as the configuration describes them: `type = "passphrase"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassphraseTable {
    /// The source of the passphrases.
    pub passphrase: Source,
    /// The cost of a derivation.
    pub cost: Cost,
}

impl Kind for PassphraseTable {
    type Provider = Passphrase;

    const NAME: &'static str = "passphrase";

    fn read(table: &mut Table<'_>) -> table::Result<Self> {
        Ok(Self {
            passphrase: Source::read(table.need("passphrase")?)?,
            cost: table.group("cost", Cost::read)?,
        })
    }

    fn build(&self, ask: Option<&Ask>) -> error::Result<Passphrase> {
        Ok(Passphrase::new(self.passphrase.secret(ask)).cost(self.cost))
    }
}

impl KeyProvider for Passphrase {
    fn kind(&self) -> &str {
        "passphrase"
    }

    fn waits_for(&self) -> WaitsFor {
        self.source.waits_for()
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { key_id, dek, context, .. } = *request;
        let header = Header::new(self.cost)?;
        let key = self.ask_and_derive(&format!("new passphrase for {key_id}"), &header)?;
        let sealed = wrap::seal(&key, &header.aad(context, key_id), dek)?;
        let blob = [header.encode().as_slice(), &sealed].concat();
        self.keys.keep((key_id.to_owned(), header), Arc::new(key));
        let (key_version, mechanism) = (ONLY_VERSION.to_owned(), MECHANISM.to_owned());
        Ok(Wrapped { key_version, mechanism, blob }.into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { key_id, wrapped, context, .. } = *request;
        wrapped.expect(MECHANISM)?;
        check_version(key_id, &wrapped.key_version)?;
        let (header, sealed) = Header::decode(&wrapped.blob)?;
        let open = |key: &Secret| wrap::open(key, &header.aad(context, key_id), sealed);
        let wrong = || {
            ProviderError::wrong_key(format!(
                "the passphrase for {key_id} from {} is not the one of this database",
                self.source
            ))
        };
        let key = self.keys.get(&(key_id.to_owned(), header), || {
            let key = self.ask_and_derive(&format!("passphrase for {key_id}"), &header)?;
            // A passphrase that unwraps nothing is not kept.
            open(&key)?.ok_or_else(wrong)?;
            Ok(key)
        })?;
        open(&key)?.map(Answer::from).ok_or_else(wrong)
    }

    fn newest_version(&self, _: &VersionRequest<'_>) -> Result<Answer<String>, ProviderError> {
        Ok(ONLY_VERSION.to_owned().into())
    }

    fn derivation(&self, key_id: &str, wrapped: &Wrapped) -> Option<Cost> {
        let (header, _) = Header::decode(&wrapped.blob).ok()?;
        let at_hand = self.keys.find(&(key_id.to_owned(), header)).is_some();
        (wrapped.mechanism == MECHANISM && !at_hand).then_some(header.cost)
    }

    fn forget(&self) {
        self.keys.forget();
    }

    fn runs(&self, _: Ours) -> Runs {
        self.source.runs()
    }
}

fn check_version(key_id: &str, version: &str) -> Result<(), ProviderError> {
    if version == ONLY_VERSION {
        return Ok(());
    }
    let text = format!("passphrase {key_id} has no version {version:?}: passphrases have only 1");
    Err(ProviderError::not_here(text))
}

/// The inputs of a derivation besides the passphrase.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Header {
    cost: Cost,
    salt: [u8; SALT_LEN],
}

impl Header {
    /// One with a salt of its own.
    fn new(cost: Cost) -> Result<Self, ProviderError> {
        if !cost.is_bounded() {
            let text = format!("passphrase: a cost of {cost} is out of bounds: set another");
            return Err(ProviderError::denied(text));
        }
        Ok(Self { cost, salt: random()? })
    }

    fn encode(&self) -> [u8; HEADER_LEN] {
        let Cost { memory_kib, iterations, parallelism } = self.cost;
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = FORMAT;
        // Bounded when it was made: they fit.
        bytes[LANES_AT] = parallelism as u8;
        bytes[ITERATIONS_AT..MEMORY_AT].copy_from_slice(&(iterations as u16).to_be_bytes());
        bytes[MEMORY_AT..SALT_AT].copy_from_slice(&memory_kib.to_be_bytes());
        bytes[SALT_AT..].copy_from_slice(&self.salt);
        bytes
    }

    /// The header of a blob and its rest.
    fn decode(blob: &[u8]) -> Result<(Self, &[u8]), ProviderError> {
        let damaged = |text: String| ProviderError::damaged(format!("wrapped key: {text}"));
        let Some((bytes, sealed)) = blob.split_first_chunk::<HEADER_LEN>() else {
            return Err(damaged(format!("it has {} bytes, too few", blob.len())));
        };
        let [format, lanes, i0, i1, m0, m1, m2, m3, salt @ ..] = *bytes;
        if format != FORMAT {
            let text = format!("format {format}, and this version reads {FORMAT}: use a newer one");
            return Err(damaged(text));
        }
        let cost = Cost {
            memory_kib: u32::from_be_bytes([m0, m1, m2, m3]),
            iterations: u16::from_be_bytes([i0, i1]).into(),
            parallelism: lanes.into(),
        };
        if !cost.is_bounded() {
            return Err(damaged(format!("it asks for {cost}, which is out of bounds")));
        }
        Ok((Self { cost, salt }, sealed))
    }

    fn aad(&self, context: &Context, key_id: &str) -> Vec<u8> {
        let mut aad = wrap::aad(context, key_id, 1);
        aad.extend_from_slice(&self.encode());
        aad
    }
}

/// The key that `argon2` derives, in memory that is wiped; running out of memory is an error.
pub(super) fn hash(
    argon2: &Argon2,
    passphrase: &[u8],
    salt: &[u8],
) -> Result<Secret, ProviderError> {
    let failed = |text: String| ProviderError::unreachable(format!("passphrase: {text}"));
    let count = argon2.params().block_count();
    let mut blocks = Zeroizing::new(Vec::new());
    blocks.try_reserve_exact(count).map_err(|error| failed(error.to_string()))?;
    blocks.resize(count, Block::new());
    Secret::fill_with(|key| {
        argon2.hash_password_into_with_memory(passphrase, salt, key, blocks.as_mut_slice())
    })
    .map_err(|error| failed(error.to_string()))
}

/// Shows no passphrase and no key.
impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Passphrase");
        shown.field("source", &self.source).field("cost", &self.cost).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
