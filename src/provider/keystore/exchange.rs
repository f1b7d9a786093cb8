//! Exchange formats of keys: 32 bytes, 64 hexadecimal digits, or PEM.

use base64ct::{Base64, Encoding};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::secret::{BASE64_LEN, HEX_LEN, KEY_LEN, Secret};

/// The PEM label that [`KeyFormat::encode`] writes.
const LABEL: &str = "SQLITE-TDE KEY";
const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// Words in the labels of blocks without a 256-bit key: asymmetric, encrypted, or no key at all.
const OTHER_LABELS: [&str; 10] = [
    "PRIVATE",
    "PUBLIC",
    "ENCRYPTED",
    "CERTIFICATE",
    "PARAMETERS",
    "PKCS",
    "CMS",
    "CRL",
    "OPENSSH",
    "PGP",
];

/// The format of a key outside the keystore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyFormat {
    /// The 32 bytes.
    Raw,
    /// 64 hexadecimal digits, and perhaps a line end.
    Hex,
    /// The 32 bytes in base64 between `-----BEGIN SQLITE-TDE KEY-----` and its end. Other labels
    /// are read, too, except those of asymmetric and encrypted keys.
    Pem,
}

impl KeyFormat {
    /// The format that `text` is in, if it is in one.
    #[must_use]
    pub fn detect(text: &[u8]) -> Option<Self> {
        let line = text.trim_ascii_end();
        if text.windows(BEGIN.len()).any(|part| part == BEGIN.as_bytes()) {
            Some(Self::Pem)
        } else if text.len() == KEY_LEN {
            Some(Self::Raw)
        } else if line.len() == HEX_LEN && line.iter().all(u8::is_ascii_hexdigit) {
            Some(Self::Hex)
        } else {
            None
        }
    }

    /// The key in `text`. Wiping that stays with the caller.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not one key of 256 bits in this format.
    pub fn decode(self, text: &[u8]) -> Result<Secret> {
        match self {
            Self::Raw => Secret::from_slice(text).ok_or_else(|| {
                Error::Usage(format!("a raw key has {KEY_LEN} bytes, and this has {}", text.len()))
            }),
            Self::Hex => from_hex(text.trim_ascii_end()),
            Self::Pem => from_pem(text),
        }
    }

    /// `key` as text, or its bytes.
    ///
    /// # Errors
    /// None is known for a key of 256 bits; a bug of the encoder would be [`Error::Usage`].
    pub fn encode(self, key: &Secret) -> Result<Zeroizing<Vec<u8>>> {
        match self {
            Self::Raw => Ok(Zeroizing::new(key.expose().to_vec())),
            Self::Hex => to_hex(key),
            Self::Pem => to_pem(key),
        }
    }
}

fn from_hex(digits: &[u8]) -> Result<Secret> {
    let not = || Error::Usage(format!("a key in hexadecimal has {HEX_LEN} digits"));
    Secret::from_hex(digits).ok_or_else(not)
}

fn to_hex(key: &Secret) -> Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(vec![b'\n'; HEX_LEN + 1]);
    let digits = &mut text[..HEX_LEN];
    base16ct::lower::encode(key.expose(), digits).map_err(|_| not_encoded())?;
    Ok(text)
}

fn from_pem(text: &[u8]) -> Result<Secret> {
    let (label, body) = std::str::from_utf8(text).ok().and_then(block).ok_or_else(|| {
        let text = format!("not one PEM block, from {BEGIN}{LABEL}{DASHES} to its end");
        Error::Usage(text)
    })?;
    let symmetric = !OTHER_LABELS.iter().any(|other| label.contains(other));
    // Headers mark an encrypted key in older formats, such as "DEK-Info: AES-256-CBC".
    if !symmetric || body.contains(':') {
        return Err(Error::Usage(format!(
            "the PEM block {label:?} holds no plain 256-bit key: give 32 bytes in base64, as \
             `openssl rand -base64 32` makes"
        )));
    }
    from_base64(body)
}

/// The label of the only block in `text`, and what is between its lines.
fn block(text: &str) -> Option<(&str, &str)> {
    let (_, rest) = text.split_once(BEGIN)?;
    let (label, rest) = rest.split_once(DASHES)?;
    let (body, rest) = rest.split_once(&format!("{DASHES}END {label}{DASHES}"))?;
    (!label.contains('\n') && !rest.contains(BEGIN)).then_some((label, body))
}

fn from_base64(body: &str) -> Result<Secret> {
    let not = || Error::Usage("the PEM block does not hold 32 bytes in base64".into());
    let mut digits = Zeroizing::new([0; BASE64_LEN]);
    let mut len = 0;
    for digit in body.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        *digits.get_mut(len).ok_or_else(not)? = digit;
        len += 1;
    }
    Secret::from_base64(&digits[..len]).ok_or_else(not)
}

fn to_pem(key: &Secret) -> Result<Zeroizing<Vec<u8>>> {
    let (begin, end) =
        (format!("{BEGIN}{LABEL}{DASHES}\n"), format!("\n{DASHES}END {LABEL}{DASHES}\n"));
    let mut text = Zeroizing::new(vec![0; begin.len() + BASE64_LEN + end.len()]);
    let (head, rest) = text.split_at_mut(begin.len());
    let (body, tail) = rest.split_at_mut(BASE64_LEN);
    head.copy_from_slice(begin.as_bytes());
    Base64::encode(key.expose(), body).map_err(|_| not_encoded())?;
    tail.copy_from_slice(end.as_bytes());
    Ok(text)
}

fn not_encoded() -> Error {
    Error::Usage("the key could not be written in this format".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Secret {
        Secret::from_slice(&std::array::from_fn::<u8, KEY_LEN, _>(|at| at as u8 * 7)).unwrap()
    }

    const KEY: &str = "AAcOFRwjKjE4P0ZNVFtiaXB3foWMk5qhqK+2vcTL0tk=";

    #[test]
    fn keys_come_back_as_they_went() {
        for (format, len) in [(KeyFormat::Raw, 32), (KeyFormat::Hex, 65), (KeyFormat::Pem, 105)] {
            let text = format.encode(&key()).unwrap();
            assert_eq!(text.len(), len, "{format:?}");
            assert_eq!(KeyFormat::detect(&text), Some(format));
            assert_eq!(format.decode(&text).unwrap().expose(), key().expose(), "{format:?}");
        }
        let pem = KeyFormat::Pem.encode(&key()).unwrap();
        let want = format!("-----BEGIN SQLITE-TDE KEY-----\n{KEY}\n-----END SQLITE-TDE KEY-----\n");
        assert_eq!(*pem, want.as_bytes());
    }

    #[test]
    fn what_counts_as_a_pem_block() {
        let block = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let own = |body: &str| block(LABEL, body);
        let (half, rest) = KEY.split_at(20);
        let plain = "holds no plain 256-bit key";
        let not_32 = "does not hold 32 bytes in base64";
        let not_one = "not one PEM block";
        for (what, text, refusal) in [
            ("our own", own(KEY), None),
            ("another label", block("AES KEY", KEY), None),
            ("words around it", format!("a key:\n{}thanks\n", own(KEY)), None),
            ("lines of another length", own(&format!("{half}\r\n{rest}\r\n")), None),
            ("31 bytes", own("AAcOFRwjKjE4P0ZNVFtiaXB3foWMk5qhqK+2vcTL0g=="), Some(not_32)),
            ("33 bytes", own("AAcOFRwjKjE4P0ZNVFtiaXB3foWMk5qhqK+2vcTL0tng"), Some(not_32)),
            ("nothing", own(""), Some(not_32)),
            ("a long text", own(&KEY.repeat(99)), Some(not_32)),
            ("no padding", own(&KEY[..43]), Some(not_32)),
            ("the other alphabet", own(&KEY.replace('+', "-")), Some(not_32)),
            ("a private key", block("PRIVATE KEY", KEY), Some(plain)),
            ("an older one", block("RSA PRIVATE KEY", KEY), Some(plain)),
            ("an encrypted one", block("ENCRYPTED PRIVATE KEY", KEY), Some(plain)),
            ("a public key", block("PUBLIC KEY", KEY), Some(plain)),
            ("a certificate", block("CERTIFICATE", KEY), Some(plain)),
            ("headers", own(&format!("Proc-Type: 4,ENCRYPTED\n\n{KEY}")), Some(plain)),
            ("no end", own(KEY).replace("-----END", "END"), Some(not_one)),
            ("another end", own(KEY).replace("END SQLITE", "END MYSQL"), Some(not_one)),
            ("two blocks", own(KEY).repeat(2), Some(not_one)),
            ("no block", KEY.into(), Some(not_one)),
        ] {
            match (KeyFormat::Pem.decode(text.as_bytes()), refusal) {
                (Ok(found), None) => assert_eq!(found.expose(), key().expose(), "{what}"),
                (Err(Error::Usage(words)), Some(refusal)) => {
                    assert!(words.contains(refusal), "{what}: {words}");
                    assert!(!words.contains("AAcO"), "{what}: {words}");
                }
                (answer, _) => panic!("{what}: {answer:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_key_is_told() {
        let digits = "0123456789abcdefABCDEF0123456789".repeat(2);
        for (what, text, format) in [
            ("nothing", &b""[..], None),
            ("31 bytes", &[7; 31], None),
            ("33 bytes", &[7; 33], None),
            ("64 bytes that are no digits", &[b'g'; 64], None),
            ("63 digits", &digits.as_bytes()[..63], None),
            ("digits in both cases", digits.as_bytes(), Some(KeyFormat::Hex)),
            ("32 bytes that look like digits", &digits.as_bytes()[..32], Some(KeyFormat::Raw)),
            ("base64 alone", KEY.as_bytes(), None),
        ] {
            assert_eq!(KeyFormat::detect(text), format, "{what}");
            for format in [KeyFormat::Raw, KeyFormat::Hex, KeyFormat::Pem] {
                let decoded = format.decode(text);
                assert_eq!(decoded.is_ok(), KeyFormat::detect(text) == Some(format), "{what}");
            }
        }
    }
}
