//! A raw 256-bit key from the application or its environment.
//!
//! For deployments that keep and distribute keys by other means: an orchestrator's secret, a
//! credential of systemd's, a file on a stick. The key is read anew for each call and is in memory
//! for that long.

use super::registry::Kind;
use super::runs::{Ours, Runs};
use super::source::without_line_end;
use super::wrap::{self, MECHANISM};
use super::{
    Answer, Ask, KeyProvider, ProviderError, SecretSource, Source, UnwrapRequest, VersionRequest,
    WaitsFor, WrapRequest, Wrapped,
};
use crate::error;
use crate::secret::{BASE64_LEN, HEX_LEN, KEY_LEN, Secret};
use crate::suite::hkdf;
use crate::table::{self, Table};

/// Label of the check value, which reveals nothing of the key.
const CHECK_LABEL: &[u8] = b"sqlite-tde v1 raw key check";

/// One key from a [`SecretSource`]: 64 hexadecimal digits, 44 characters of base64, or 32 bytes as
/// they are.
///
/// The length tells which; a line end behind text does not count. 32 bytes that are all text are
/// refused: a key drawn at random never looks so, a passphrase or half a key in hexadecimal does.
///
/// The id of the key is a free label, bound to what it wraps. Its version is a check value, 8
/// hexadecimal digits of HKDF-SHA-256 over the key. It tells keys apart and a wrong one before it
/// is tried. To rotate, put another key in the source's place, or name another provider with
/// another source; earlier copies still open with the old key.
#[derive(Debug, Clone)]
pub struct RawKey {
    source: SecretSource,
}

impl RawKey {
    /// The key that `source` holds. Reads nothing yet.
    #[must_use]
    pub fn new(source: SecretSource) -> Self {
        Self { source }
    }

    fn key(&self, key_id: &str) -> Result<Key, ProviderError> {
        let bytes = self.source.read_whole(&format!("key {key_id}"))?;
        let secret = parse(&bytes).ok_or_else(|| {
            ProviderError::damaged(format!(
                "{} has {} bytes that are no key: put there 64 hexadecimal digits, 44 characters of \
                 base64, or 32 random bytes",
                self.source,
                bytes.len()
            ))
        })?;
        Ok(Key::new(secret))
    }
}

/// A raw key as the configuration describes it: `type = "raw"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawKeyTable {
    /// The source of the key.
    pub key: Source,
}

impl Kind for RawKeyTable {
    type Provider = RawKey;

    const NAME: &'static str = "raw";

    fn read(table: &mut Table<'_>) -> table::Result<Self> {
        Ok(Self { key: Source::read(table.need("key")?)? })
    }

    fn summary(&self) -> String {
        "raw key".to_owned()
    }

    fn build(&self, ask: Option<&Ask>) -> error::Result<RawKey> {
        Ok(RawKey::new(self.key.secret(ask)))
    }
}

impl KeyProvider for RawKey {
    fn kind(&self) -> &str {
        "raw key"
    }

    fn waits_for(&self) -> WaitsFor {
        self.source.waits_for()
    }

    fn wrap(&self, request: &WrapRequest<'_>) -> Result<Answer<Wrapped>, ProviderError> {
        let WrapRequest { key_id, dek, context, .. } = *request;
        let key = self.key(key_id)?;
        let blob = wrap::seal(&key.secret, &wrap::aad(context, key_id, key.check), dek)?;
        Ok(Wrapped::new(key.version(), MECHANISM, blob).into())
    }

    fn unwrap(&self, request: &UnwrapRequest<'_>) -> Result<Answer<Secret>, ProviderError> {
        let UnwrapRequest { key_id, wrapped, context, .. } = *request;
        wrapped.expect(MECHANISM)?;
        let key = self.key(key_id)?;
        let wrong = |what: &str| ProviderError::wrong_key(format!("{} holds {what}", self.source));
        if wrapped.key_version != key.version() {
            return Err(wrong(&format!(
                "key {}, and key {:?} wrapped this database's: put that one there",
                key.version(),
                wrapped.key_version
            )));
        }
        let aad = wrap::aad(context, key_id, key.check);
        wrap::open(&key.secret, &aad, &wrapped.blob)?.map(Answer::from).ok_or_else(|| {
            wrong(&format!("key {key_id:?}, which did not wrap this database's key"))
        })
    }

    fn newest_version(
        &self,
        request: &VersionRequest<'_>,
    ) -> Result<Answer<String>, ProviderError> {
        Ok(self.key(request.key_id)?.version().into())
    }

    fn runs(&self, _: Ours) -> Runs {
        self.source.runs()
    }
}

/// A key and what names it.
struct Key {
    secret: Secret,
    check: u32,
}

impl Key {
    fn new(secret: Secret) -> Self {
        let [a, b, c, d, ..] = *hkdf::derive(&secret, b"", &[CHECK_LABEL]).expose();
        Self { secret, check: u32::from_be_bytes([a, b, c, d]) }
    }

    fn version(&self) -> String {
        format!("{:08x}", self.check)
    }
}

/// The key in `bytes`, in the one form that their length allows.
fn parse(bytes: &[u8]) -> Option<Secret> {
    let text = without_line_end(bytes);
    match (bytes.len(), text.len()) {
        (KEY_LEN, _) if !is_text(bytes) => Secret::from_slice(bytes),
        (_, HEX_LEN) => Secret::from_hex(text),
        (_, BASE64_LEN) => Secret::from_base64(text),
        _ => None,
    }
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::provider::Context;
    use crate::provider::conformance::Direct;
    use crate::suite::tests::hex;

    const CONTEXT: Context = Context { file_id: [7; 16], dek_version: 1 };
    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHv8=";

    #[test]
    fn a_key_has_one_form_for_each_length() {
        let raw = hex(HEX);
        let text = |text: &str| text.as_bytes().to_vec();
        let ends_in_line_feed = [&raw[..31], b"\n"].concat();
        let rows: [(&str, Vec<u8>, Option<&[u8]>); 21] = [
            ("hexadecimal", text(HEX), Some(&raw)),
            ("upper case", text(&HEX.to_uppercase()), Some(&raw)),
            ("hexadecimal, line feed", text(&format!("{HEX}\n")), Some(&raw)),
            ("hexadecimal, both line ends", text(&format!("{HEX}\r\n")), Some(&raw)),
            ("base64", text(BASE64), Some(&raw)),
            ("base64, line feed", text(&format!("{BASE64}\n")), Some(&raw)),
            ("bytes", raw.clone(), Some(&raw)),
            ("bytes that end in a line feed", ends_in_line_feed.clone(), Some(&ends_in_line_feed)),
            ("bytes with a line feed behind", [&raw[..], b"\n"].concat(), None),
            ("31 bytes", raw[..31].to_vec(), None),
            ("33 bytes", [&raw[..], &[0]].concat(), None),
            ("63 digits", text(&HEX[1..]), None),
            ("65 digits", text(&format!("0{HEX}")), None),
            ("a digit that is none", text(&HEX.replace('f', "g")), None),
            ("two line ends", text(&format!("{HEX}\n\n")), None),
            ("a blank before", text(&format!(" {HEX}")), None),
            ("base64 without padding", text(&BASE64[..43]), None),
            ("base64 of 33 bytes", text(&"A".repeat(44)), None),
            ("base64 for URLs", text(&BASE64.replace('/', "_").replace("Hv8", "Hv_")), None),
            ("half a key in hexadecimal", text(&HEX[..32]), None),
            ("a passphrase of 31 and a line feed", text("correct horse battery staple!!!\n"), None),
        ];
        for (what, bytes, expected) in rows {
            let key = parse(&bytes);
            assert_eq!(key.as_ref().map(|key| &key.expose()[..]), expected, "{what}");
        }
    }

    /// Computed once with Python's `hmac`: HKDF-SHA-256 with an empty salt and the label as info.
    #[test]
    fn the_version_is_a_check_value() {
        let key = Key::new(Secret::from_slice(&hex(HEX)).unwrap());
        assert_eq!(key.version(), "4d83e5ba");
    }

    fn raw_key(dir: &tempfile::TempDir, name: &str, content: &[u8]) -> (PathBuf, RawKey) {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        (path.clone(), RawKey::new(SecretSource::File(path)))
    }

    #[test]
    fn another_key_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (path, provider) = raw_key(&dir, "key", HEX.as_bytes());
        let dek = Secret::random().unwrap();
        let wrapped = provider.wrap_key("app", &dek, &CONTEXT).unwrap();
        assert_eq!(wrapped.key_version, provider.newest_of("app").unwrap());
        assert!(provider.unwrap_key("app", &wrapped, &CONTEXT).unwrap().expose() == dek.expose());

        fs::write(&path, HEX.replace("ff", "fe")).unwrap();
        let new = provider.newest_of("app").unwrap();
        assert_ne!(new, wrapped.key_version);
        let expected = format!(
            "file {} holds key {new}, and key {:?} wrapped this database's: put that one there",
            path.display(),
            wrapped.key_version
        );
        let wrong = ProviderError::wrong_key(expected);
        assert_eq!(provider.unwrap_key("app", &wrapped, &CONTEXT).map(drop), Err(wrong));
        // The version on the record is not what decides.
        let relabelled = Wrapped { key_version: new, ..wrapped };
        let answer = provider.unwrap_key("app", &relabelled, &CONTEXT).map(drop);
        assert!(matches!(answer, Err(ProviderError::WrongKey(_))), "{answer:?}");
    }

    #[test]
    fn what_is_no_key_is_said_by_its_length_alone() {
        let dir = tempfile::tempdir().unwrap();
        let content = b"treasure";
        let (path, provider) = raw_key(&dir, "key", content);
        let dek = Secret::random().unwrap();
        let expected = ProviderError::damaged(format!(
            "file {} has 8 bytes that are no key: put there 64 hexadecimal digits, 44 characters of \
             base64, or 32 random bytes",
            path.display()
        ));
        let wrapped = Wrapped {
            key_version: "00000000".into(),
            mechanism: MECHANISM.into(),
            blob: vec![0; 72],
        };
        let failures = [
            provider.wrap_key("app", &dek, &CONTEXT).map(drop),
            provider.unwrap_key("app", &wrapped, &CONTEXT).map(drop),
            provider.newest_of("app").map(drop),
        ];
        for failure in failures {
            assert_eq!(failure, Err(expected.clone()));
        }
    }
}
