//! An application's own key provider: versioned keys in memory, as if fetched from a key service.
//!
//! The example runs the provider through the conformance suite, then creates and opens a database
//! under one of its keys.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand::fill;
use sqlite_tde::provider::conformance::Conformance;
use sqlite_tde::provider::{
    Answer, Context, KeyProvider, ProviderError, UnwrapRequest, VersionRequest, WaitsFor,
    WrapRequest, Wrapped,
};
use sqlite_tde::secret::{KEY_LEN, Secret};
use sqlite_tde::{OpenOptions, Options, TdeConnection, open_with, register};
use zeroize::Zeroizing;

const MECHANISM: &str = "aes-256-gcm";

type Said<T> = Result<T, ProviderError>;

/// The versions of each key, oldest first, and whether the key may be used.
#[derive(Default)]
struct Vault {
    keys: Mutex<BTreeMap<String, (Vec<Secret>, bool)>>,
}

impl Vault {
    /// Adds a version to a key, and the key if it is new.
    fn rotate(&self, key_id: &str) -> sqlite_tde::Result<()> {
        let key = Secret::random()?;
        let mut keys = self.keys();
        keys.entry(key_id.to_owned()).or_insert((Vec::new(), true)).0.push(key);
        Ok(())
    }

    fn allow(&self, key_id: &str, allowed: bool) {
        if let Some(key) = self.keys().get_mut(key_id) {
            key.1 = allowed;
        }
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<String, (Vec<Secret>, bool)>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the versions of a key, if the key is there and may be used.
    fn with<T>(&self, key_id: &str, work: impl FnOnce(&[Secret]) -> Said<T>) -> Said<T> {
        match self.keys().get(key_id) {
            Some((versions, true)) => work(versions),
            Some((_, false)) => Err(ProviderError::denied(format!("key {key_id} is disabled"))),
            None => Err(ProviderError::not_here(format!("the vault has no key {key_id}"))),
        }
    }
}

impl KeyProvider for Vault {
    fn kind(&self) -> &str {
        "vault in memory"
    }

    /// Memory answers at once. A real service keeps the default, `Service`: its calls are timed and
    /// retried.
    fn waits_for(&self) -> WaitsFor {
        WaitsFor::Nothing
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { key_id, dek, context, .. } = *request;
        self.with(key_id, |versions| {
            let version = versions.len();
            let key = gcm_key(versions.last())?;
            let mut nonce = [0; NONCE_LEN];
            fill(&mut nonce).map_err(refused)?;
            // The blob: nonce, encrypted key, tag. On an error the plaintext key in it is wiped.
            let mut blob = Zeroizing::new([nonce.as_slice(), dek.expose(), &[0; 16]].concat());
            let (sealed, tag) = blob[NONCE_LEN..].split_at_mut(KEY_LEN);
            let aad = Aad::from(aad(context, key_id, version));
            let made = key
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, sealed)
                .map_err(refused)?;
            tag.copy_from_slice(made.as_ref());
            Ok(Wrapped::new(version.to_string(), MECHANISM, std::mem::take(&mut *blob)).into())
        })
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { key_id, wrapped, context, .. } = *request;
        if wrapped.mechanism != MECHANISM {
            return Err(ProviderError::damaged("the vault did not wrap this".to_owned()));
        }
        self.with(key_id, |versions| {
            let found = (1..).zip(versions).find(|(n, _)| n.to_string() == wrapped.key_version);
            let (version, key) = found.ok_or_else(|| {
                let version = &wrapped.key_version;
                ProviderError::not_here(format!("key {key_id} has no version {version:?}"))
            })?;
            let wrong = || ProviderError::wrong_key(format!("key {key_id} did not wrap this"));
            let (nonce, sealed) = wrapped.blob.split_first_chunk().ok_or_else(wrong)?;
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let aad = Aad::from(aad(context, key_id, version));
            if sealed.len() != KEY_LEN + 16 {
                return Err(wrong());
            }
            let (sealed, tag) = sealed.split_at(KEY_LEN);
            let key = gcm_key(Some(key))?;
            Secret::fill_with(|dek| key.open_separate_gather(nonce, aad, sealed, tag, dek))
                .map(Answer::from)
                .map_err(|_| wrong())
        })
    }

    fn newest_version(
        &self,
        request: &VersionRequest<'_>,
    ) -> Result<Answer<String>, ProviderError> {
        self.with(request.key_id, |versions| Ok(versions.len().to_string().into()))
    }
}

/// Associated data: context, key version and key id.
fn aad(context: &Context, key_id: &str, version: usize) -> Vec<u8> {
    [&context.encode(), &(version as u64).to_be_bytes()[..], key_id.as_bytes()].concat()
}

fn gcm_key(key: Option<&Secret>) -> Said<LessSafeKey> {
    let key = key.ok_or_else(|| ProviderError::not_here("the key has no version".to_owned()))?;
    UnboundKey::new(&AES_256_GCM, key.expose()).map(LessSafeKey::new).map_err(refused)
}

fn refused(_: aws_lc_rs::error::Unspecified) -> ProviderError {
    ProviderError::unreachable("the cipher refused to work".to_owned())
}

fn main() -> Result<(), Box<dyn Error>> {
    let vault = Arc::new(Vault::default());
    vault.rotate("app")?;
    vault.rotate("other")?;

    println!("1. Does it do what a provider must?");
    let failed = |error: sqlite_tde::Error| panic!("no random bytes: {error}");
    let report = Conformance::of(&*vault, "app")
        .missing_key("nobody")
        .other_key("other")
        .rotate(|| vault.rotate("app").unwrap_or_else(failed))
        .switch(|| vault.allow("app", false), || vault.allow("app", true))
        .run();
    print!("{report}");
    if !report.conforms() {
        return Err("the vault is no sound provider".into());
    }

    println!("2. A database under its key");
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("notes.db");
    // The database file stores only the names of provider and key.
    let provider = Arc::clone(&vault) as Arc<dyn KeyProvider>;
    register(Options::new().provider("vault", provider).default_protector("vault:app"))?;
    let open = || open_with(&path, &OpenOptions::new());
    let db = open()?;
    db.execute_batch("CREATE TABLE note(text); INSERT INTO note VALUES('hush')")?;
    let protector = &db.tde_status("main")?.protectors[0];
    println!("   {} version {} ({})", protector.name, protector.key_version, protector.mechanism);
    drop(db);

    println!("3. Its key disabled, and enabled again");
    vault.allow("app", false);
    match open() {
        Ok(_) => return Err("a disabled key opened the database".into()),
        Err(error) => println!("   {error}"),
    }
    vault.allow("app", true);
    let text: String = open()?.query_row("SELECT text FROM note", [], |row| row.get(0))?;
    println!("   read {text:?}");
    Ok(())
}
