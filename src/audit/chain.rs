//! The chain from one line of the log to the next, and the text of the head.
//!
//! ```text
//! | body: {"seq":7,"time":"..",..   | ,"mac":" | 64 hex digits | "} LF |
//! mac = HMAC-SHA-256(line key, mac of the line before (32 bytes) || body)
//!
//! | {"seq":7,"files":2,"last":"64 hex digits" | ,"mac":" | 64 hex digits | "} | spaces LF |
//! mac = HMAC-SHA-256(head key, what stands before ,"mac"); 256 bytes in all
//!
//! line key = HKDF-SHA-256(audit key, no salt, "sqlite-tde v1 audit line"); head key likewise
//! ```
//!
//! Before the first line of all stand 32 zero bytes. Hex digits are small.

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::secret::{KEY_LEN, Secret};
use crate::suite::hkdf;

const LINE_LABEL: &[u8] = b"sqlite-tde v1 audit line";
const HEAD_LABEL: &[u8] = b"sqlite-tde v1 audit head";

/// No line is longer, its line end included.
pub(super) const MAX_LINE: usize = 64 << 10;

const BEFORE: &[u8] = b",\"mac\":\"";
const AFTER: &[u8] = b"\"}\n";
const HEX_LEN: usize = 2 * KEY_LEN;

/// End of every line: the mac with its field name and brackets.
pub(super) const ENDING_LEN: usize = BEFORE.len() + HEX_LEN + AFTER.len();

/// One sector at most, so that a power loss leaves the old head or the new one.
pub(super) const HEAD_LEN: usize = 256;
const _: () = assert!(HEAD_LEN <= 512, "a sector is written whole or not at all");

pub(super) type Mac = [u8; KEY_LEN];

/// The number and the mac of a line, which the next one follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub seq: u64,
    pub mac: Mac,
}

impl Link {
    /// Before the first line.
    pub const START: Self = Self { seq: 0, mac: [0; KEY_LEN] };
}

/// Content of `audit.head`: the last line, and the minimum number of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub link: Link,
    pub files: u64,
}

/// The keys of lines and head.
pub(super) struct Keys {
    line: Secret,
    head: Secret,
}

impl Keys {
    pub fn new(key: &Secret) -> Self {
        let derive = |label| hkdf::derive(key, b"", &[label]);
        Self { line: derive(LINE_LABEL), head: derive(HEAD_LABEL) }
    }

    /// The whole line for a JSON object that follows `previous`, and its mac.
    pub fn seal(&self, previous: &Mac, object: &str) -> (Vec<u8>, Mac) {
        let body = object.strip_suffix('}').unwrap_or(object).as_bytes();
        let mac = mac(&self.line, &[previous, body]);
        ([body, BEFORE, hex(&mac).as_bytes(), AFTER].concat(), mac)
    }

    /// Whether `line` is whole and follows `previous`; its mac then.
    pub fn check(&self, previous: &Mac, line: &[u8]) -> Option<Mac> {
        let (body, found) = split(line)?;
        let expected = mac(&self.line, &[previous, body]);
        bool::from(expected.ct_eq(&found)).then_some(found)
    }

    pub fn encode_head(&self, head: &Head) -> Vec<u8> {
        let Head { link: Link { seq, mac: last }, files } = head;
        let body = format!("{{\"seq\":{seq},\"files\":{files},\"last\":\"{}\"", hex(last));
        let mac = hex(&mac(&self.head, &[body.as_bytes()]));
        let text = format!("{body},\"mac\":\"{mac}\"}}");
        format!("{text:<width$}\n", width = HEAD_LEN - 1).into_bytes()
    }

    /// The head in `text`, if the holder of the key wrote exactly that.
    pub fn decode_head(&self, text: &[u8]) -> Option<Head> {
        #[derive(serde::Deserialize)]
        struct Fields {
            seq: u64,
            files: u64,
            last: String,
        }
        let Fields { seq, files, last } = serde_json::from_slice(text).ok()?;
        let head = Head { link: Link { seq, mac: unhex(last.as_bytes())? }, files };
        bool::from(self.encode_head(&head).ct_eq(text)).then_some(head)
    }
}

fn mac(key: &Secret, parts: &[&[u8]]) -> Mac {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.expose()) else {
        unreachable!("HMAC takes keys of any length")
    };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// The body of a whole line, and the mac that it claims.
pub(super) fn split(line: &[u8]) -> Option<(&[u8], Mac)> {
    let (body, ending) = line.split_at_checked(line.len().checked_sub(ENDING_LEN)?)?;
    let digits = ending.strip_prefix(BEFORE)?.strip_suffix(AFTER)?;
    Some((body, unhex(digits)?))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}

/// Small digits alone: each mac is spelled in one way.
pub(super) fn unhex(digits: &[u8]) -> Option<Mac> {
    let mut mac = [0; KEY_LEN];
    (base16ct::lower::decode(digits, &mut mac).ok()?.len() == KEY_LEN).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(&Secret::from_slice(&[7; KEY_LEN]).unwrap())
    }

    /// Computed apart, with Python's hmac and hashlib: today's lines must verify with later
    /// versions.
    #[test]
    fn lines_and_heads_are_spelled_as_documented() {
        let (line, mac) = keys().seal(&Link::START.mac, r#"{"seq":1,"kind":"open"}"#);
        let expected = "fb9c38012b564c3026cc0acf6f9fdc4a0f59e82c38d5db931ec8613155b2dc12";
        assert_eq!(
            String::from_utf8(line).unwrap(),
            format!("{{\"seq\":1,\"kind\":\"open\",\"mac\":\"{expected}\"}}\n")
        );
        let head = keys().encode_head(&Head { link: Link { seq: 1, mac }, files: 2 });
        let text = format!(
            "{{\"seq\":1,\"files\":2,\"last\":\"{expected}\",\"mac\":\"e8764d404338b4963233d406e32407f0526adc229c84a1adbffe40b2c781caef\"}}"
        );
        assert_eq!(String::from_utf8(head).unwrap(), format!("{text:<255}\n"));
    }

    #[test]
    fn every_bit_of_a_line_and_of_a_head_counts() {
        let (line, mac) = keys().seal(&[1; KEY_LEN], r#"{"seq":2,"kind":"wrap"}"#);
        assert_eq!(keys().check(&[1; KEY_LEN], &line), Some(mac));
        assert_eq!(keys().check(&[2; KEY_LEN], &line), None);
        let longest = Head { link: Link { seq: u64::MAX, mac }, files: u64::MAX };
        let head = keys().encode_head(&longest);
        assert_eq!((head.len(), keys().decode_head(&head)), (HEAD_LEN, Some(longest)));
        let other = Keys::new(&Secret::from_slice(&[8; KEY_LEN]).unwrap());
        assert_eq!((other.check(&[1; KEY_LEN], &line), other.decode_head(&head)), (None, None));
        for bit in 0..line.len() * 8 {
            let mut line = line.clone();
            line[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys().check(&[1; KEY_LEN], &line), None, "bit {bit} of the line");
        }
        for bit in 0..head.len() * 8 {
            let mut head = head.clone();
            head[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys().decode_head(&head), None, "bit {bit} of the head");
        }
    }
}
