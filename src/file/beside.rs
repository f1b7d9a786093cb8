//! The names of the files beside a database: the only module that defines them.
//!
//! | file | of an encrypted database `X` | of a plaintext database `X` |
//! |---|---|---|
//! | rollback journal | `X-journal` | `X-journal` |
//! | write-ahead log | `X-tdewal`; `X-tde` if that name is too long | `X-wal` |
//! | wal-index | `X-shm` | `X-shm` |
//!
//! SQLite without the library checks for `X-wal` before it reads a byte of `X`: it joins a log that
//! it finds, and the last connection to close copies its frames over the database. So an encrypted
//! log has a name that SQLite does not look for. The journal keeps its name, which a super-journal
//! lists and which every program of the same transaction has to find; SQLite leaves it alone
//! because its first byte is zero.
//!
//! The unix VFS takes the owner and the mode of a new journal or log from the database, whose name
//! it finds by cutting at the last `-`, which must come after the last `.`: nothing after `X-` may
//! have either.

use super::journal;
use crate::io::Remains;

/// Every suffix that a file beside a database may have, for tools that copy or remove databases.
/// Only a database whose name leaves no room for `-tdewal` in 255 bytes has a log at `-tde`.
pub const FILES_BESIDE: [&str; 5] = ["-journal", "-wal", "-tdewal", "-tde", "-shm"];

const PLAIN_LOG: &[u8] = b"wal";
const LOG: &[u8] = b"tdewal";
/// As long as SQLite's suffix, so that it fits wherever that fits.
const SHORT_LOG: &[u8] = b"tde";
const _: () = assert!(SHORT_LOG.len() == PLAIN_LOG.len());
/// The longest name of a file, without its directory, on the file systems in use.
const LONGEST: usize = 255;

/// Splits SQLite's name for a log into the database's path and the part after `-wal`: empty, or the
/// number that the multiplex VFS adds.
pub(crate) fn split_log(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let dash = name.iter().rposition(|&byte| byte == b'-')?;
    let number = name[dash + 1..].strip_prefix(PLAIN_LOG)?;
    number.iter().all(u8::is_ascii_digit).then_some((&name[..dash], number))
}

/// Path of an encrypted database's log that SQLite calls `name`.
pub(crate) fn log_name(name: &[u8]) -> Option<Vec<u8>> {
    let (database, number) = split_log(name)?;
    let directory = database.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
    let room = LONGEST.saturating_sub(database.len() - directory + 1 + number.len());
    let log = if room >= LOG.len() { LOG } else { SHORT_LOG };
    Some([database, b"-", log, number].concat())
}

/// Bytes at the start of a journal or log that identify its writer.
pub(crate) const START: usize = 16;

/// The magic of SQLite's log without its last bit, the byte order of the checksums.
const LOG_MAGIC: u32 = 0x377f_0682;

/// By the first bytes of journal and log, zero-filled if shorter; `None` if both are missing or
/// empty.
pub(crate) fn remains(journal: Option<&[u8; START]>, log: Option<&[u8; START]>) -> Remains {
    let journal = journal.map(|start| match start {
        start if journal::layout::is_ours(start) => Remains::Nothing,
        start if start.starts_with(&journal::SQLITE_MAGIC) => Remains::Plain,
        _ => Remains::Unclear,
    });
    let log = log.map(|start| match start.first_chunk().map(|word| u32::from_be_bytes(*word)) {
        Some(word) if word & !1 == LOG_MAGIC => Remains::Plain,
        _ => Remains::Unclear,
    });
    match (journal, log) {
        // Only an encrypted database has such a journal.
        (Some(Remains::Nothing), _) | (None, None) => Remains::Nothing,
        (Some(Remains::Plain), _) | (_, Some(Remains::Plain)) => Remains::Plain,
        _ => Remains::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_logs_lie_elsewhere() {
        for (name, wanted) in [
            (&b"/a/x.db-wal"[..], Some(&b"/a/x.db-tdewal"[..])),
            (b"/a-wal/x-wal", Some(b"/a-wal/x-tdewal")),
            (b"x-wal-wal007", Some(b"x-wal-tdewal007")),
            (b"-wal", Some(b"-tdewal")),
            (b"/a/x.db-journal", None),
            (b"/a/x.db-wal-journal", None),
            (b"/a/x.db-shm", None),
            (b"/a/x.wal", None),
            (b"/a/x-walrus", None),
            (b"/a-wal/x", None),
            (b"", None),
        ] {
            assert_eq!(log_name(name).as_deref(), wanted, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn a_log_has_room_wherever_sqlites_has() {
        for (len, number, short) in [(248, "", false), (249, "", true), (251, "", true)]
            .into_iter()
            .chain([(245, "007", false), (246, "007", true), (248, "007", true)])
        {
            for directory in ["", "/a/", &"/d/".repeat(200)] {
                let database = format!("{directory}{}", "n".repeat(len));
                let name = log_name(format!("{database}-wal{number}").as_bytes()).unwrap();
                let suffix = if short { "tde" } else { "tdewal" };
                assert_eq!(name, format!("{database}-{suffix}{number}").into_bytes());
            }
        }
    }

    #[test]
    fn the_unix_vfs_finds_the_database() {
        for suffix in FILES_BESIDE {
            assert_eq!(suffix.rfind(['-', '.']), Some(0), "{suffix}");
        }
    }
}
