//! The event that a caller records, and the entry that is a line of the log.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::chain::hex;
use crate::error::Error;
use crate::process;

/// The kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A database was created.
    Create,
    /// A database was opened.
    Open,
    /// A provider wrapped a DEK.
    Wrap,
    /// A provider unwrapped a DEK.
    Unwrap,
    /// A protector was rotated: the DEK is wrapped anew.
    Rotate,
    /// A protector was added to a database.
    AddProtector,
    /// A protector was removed from a database.
    RemoveProtector,
    /// A new DEK became current, or its scan went on or ended.
    Regenerate,
    /// A database was copied out, in plaintext or under other keys.
    Export,
    /// A key of a provider was created, rotated, enabled or disabled.
    KeyChange,
    /// Something was asked for that is not allowed.
    Refusal,
    /// Something on disk is not what the holder of the key wrote.
    Tamper,
    /// A provider failed, for another reason than a refusal.
    ProviderError,
    /// A database became inaccessible.
    AccessLost,
    /// A database became accessible again.
    AccessRestored,
    /// The keys of a database were dropped from memory.
    Lock,
}

impl EventKind {
    /// Every kind, in the order of the enumeration.
    pub const ALL: [Self; 16] = [
        Self::Create,
        Self::Open,
        Self::Wrap,
        Self::Unwrap,
        Self::Rotate,
        Self::AddProtector,
        Self::RemoveProtector,
        Self::Regenerate,
        Self::Export,
        Self::KeyChange,
        Self::Refusal,
        Self::Tamper,
        Self::ProviderError,
        Self::AccessLost,
        Self::AccessRestored,
        Self::Lock,
    ];

    /// The kind's name in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Rotate => "rotate",
            Self::AddProtector => "add_protector",
            Self::RemoveProtector => "remove_protector",
            Self::Regenerate => "regenerate",
            Self::Export => "export",
            Self::KeyChange => "key_change",
            Self::Refusal => "refusal",
            Self::Tamper => "tamper",
            Self::ProviderError => "provider_error",
            Self::AccessLost => "access_lost",
            Self::AccessRestored => "access_restored",
            Self::Lock => "lock",
        }
    }
}

impl FromStr for EventKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| Error::Usage(format!("there is no kind of event {name:?}")))
    }
}

/// An event to record. Text that is longer than the log takes is cut, and ends with `…` then.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// The kind of event.
    pub kind: EventKind,
    /// The database's file id.
    pub file_id: Option<&'a [u8; 16]>,
    /// The database's path; up to 4096 bytes are kept.
    pub path: Option<&'a Path>,
    /// The protector's name in the database; up to 256 bytes are kept, as of the next three.
    pub protector: Option<&'a str>,
    /// The provider's name.
    pub provider: Option<&'a str>,
    /// The key's name at the provider. Never the key.
    pub key: Option<&'a str>,
    /// The key's version.
    pub key_version: Option<&'a str>,
    /// Whether it was done, or the words of the error; up to 1024 bytes are kept.
    pub outcome: Result<(), &'a str>,
    /// How long it took.
    pub duration: Option<Duration>,
    /// Our name of a provider's call; up to 256 bytes are kept, as of the next one.
    pub request_id: Option<&'a str>,
    /// The service's name of it.
    pub service_request_id: Option<&'a str>,
    /// Further details; up to 1024 bytes are kept.
    pub detail: Option<&'a str>,
}

impl Event<'_> {
    /// An event of this kind that was done, and of which nothing else is known.
    #[must_use]
    pub const fn new(kind: EventKind) -> Self {
        Self {
            kind,
            file_id: None,
            path: None,
            protector: None,
            provider: None,
            key: None,
            key_version: None,
            outcome: Ok(()),
            duration: None,
            request_id: None,
            service_request_id: None,
            detail: None,
        }
    }
}

/// A line of the log, without its mac. Its fields stand in the line in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// Counted from 1, over all files.
    pub seq: u64,
    /// When it was recorded: RFC 3339, UTC, milliseconds.
    pub time: String,
    /// [`EventKind::name`], which a later version may know more of.
    pub kind: String,
    /// `ok` or `failed`.
    pub outcome: String,
    /// The error's message, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The database's file id: 32 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db: Option<String>,
    /// The database's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The protector's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protector: Option<String>,
    /// The provider's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The key's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_version: Option<String>,
    /// How long it took; whole microseconds in the line.
    #[serde(rename = "duration_us", serialize_with = "micros", deserialize_with = "from_micros")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// Our name of a provider's call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The service's name of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_request_id: Option<String>,
    /// Further details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The user that the process ran as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The process.
    pub pid: u32,
    /// The last part of the name that it was started by.
    pub program: String,
    /// In the first line of a file, the mac of the line before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<String>,
    /// The remains of an interrupted append, repaired before this line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<String>,
    /// A finding of this append that no interrupted append explains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspect: Option<String>,
}

impl Entry {
    /// The entry of `event`, now and by this process, not yet at its place in the log.
    pub(super) fn new(event: &Event<'_>, program: &str) -> Self {
        let name = |text: Option<&str>| text.map(|text| bounded(text, 256));
        Self {
            seq: 0,
            time: format!("{:.3}", Timestamp::now()),
            kind: event.kind.name().to_owned(),
            outcome: if event.outcome.is_ok() { "ok" } else { "failed" }.to_owned(),
            error: event.outcome.err().map(|text| bounded(text, 1024)),
            db: event.file_id.map(|id| hex(id)),
            path: event.path.map(|path| bounded(&path.to_string_lossy(), 4096)),
            protector: name(event.protector),
            provider: name(event.provider),
            key: name(event.key),
            key_version: name(event.key_version),
            duration: event.duration,
            request_id: name(event.request_id),
            service_request_id: name(event.service_request_id),
            detail: event.detail.map(|text| bounded(text, 1024)),
            uid: process::user(),
            pid: process::id(),
            program: program.to_owned(),
            prev: None,
            recovered: None,
            suspect: None,
        }
    }
}

fn micros<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    duration.map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX)).serialize(to)
}

fn from_micros<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::deserialize(from)?.map(Duration::from_micros))
}

/// The last part of the name that this process was started by, or of its file.
pub(super) fn program() -> String {
    bounded(&process::program().file_name().unwrap_or_default().to_string_lossy(), 256)
}

/// At most `max` bytes of `text`. JSON escapes only the first 32 control characters; the others,
/// which some terminals obey, too, are replaced.
fn bounded(text: &str, max: usize) -> String {
    const CUT: &str = "…";
    let visible =
        |c: char| if c.is_control() && !c.is_ascii() || c == '\x7f' { '\u{fffd}' } else { c };
    let mut out = String::new();
    for c in text.chars().map(visible) {
        if out.len() + c.len_utf8() > max {
            while out.len() + CUT.len() > max {
                out.pop();
            }
            return out + CUT;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::chain::{ENDING_LEN, MAX_LINE};
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        for kind in EventKind::ALL {
            assert_eq!(kind.name().parse::<EventKind>().unwrap(), kind);
            assert!(kind.name().bytes().all(|c| c == b'_' || c.is_ascii_lowercase()));
        }
        assert!(matches!("Open".parse::<EventKind>(), Err(Error::Usage(_))));
    }

    #[test]
    fn text_is_cut_at_a_character_and_never_over_the_bound() {
        for (text, max, expected) in [
            ("", 4, ""),
            ("abcd", 4, "abcd"),
            ("abcde", 4, "a…"),
            ("aéé", 5, "aéé"),
            ("aééé", 6, "aé…"),
            ("a\u{9b}\x7f\n", 20, "a\u{fffd}\u{fffd}\n"),
        ] {
            assert_eq!(bounded(text, max), expected, "{text:?} in {max}");
        }
    }

    #[test]
    fn the_longest_entry_fits_in_a_line() {
        // Six bytes each, once JSON has escaped them.
        let long = "\u{1}".repeat(10_000);
        let event = Event {
            file_id: Some(&[255; 16]),
            path: Some(Path::new(&long)),
            protector: Some(&long),
            provider: Some(&long),
            key: Some(&long),
            key_version: Some(&long),
            outcome: Err(&long),
            duration: Some(Duration::MAX),
            request_id: Some(&long),
            service_request_id: Some(&long),
            detail: Some(&long),
            ..Event::new(EventKind::RemoveProtector)
        };
        let mut entry = Entry::new(&event, &bounded(&long, 256));
        entry.seq = u64::MAX;
        entry.prev = Some("f".repeat(64));
        (entry.recovered, entry.suspect) = (Some("x".repeat(1024)), Some("x".repeat(1024)));
        let line = serde_json::to_string(&entry).unwrap().len() + ENDING_LEN;
        assert!(line > MAX_LINE / 2 && line < MAX_LINE, "{line} bytes");
    }
}
