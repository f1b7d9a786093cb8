//! Mapping of SQLite's offsets to the file; the picture is in the parent module.

use crate::key::envelope::ENVELOPE_LEN;
use crate::page::PageNo;

pub(crate) const PAGES_AT: u64 = ENVELOPE_LEN as u64;
/// Length of the gap; also SQLite's largest page.
const GAP: u64 = 65536;
/// SQLite's first lock byte (`PENDING_BYTE`).
pub(crate) const PENDING_BYTE: u64 = 0x4000_0000;
/// SQLite's offset of the first byte that lies behind the gap.
pub(crate) const GAP_AT: u64 = PENDING_BYTE - GAP;
/// `SHARED_FIRST + SHARED_SIZE` in SQLite: the end of the bytes it locks.
pub(crate) const LOCKS_END: u64 = PENDING_BYTE + 2 + 510;

const _: () = assert!(GAP_AT.is_multiple_of(GAP), "the gap splits no page");
const _: () = assert!(GAP_AT + PAGES_AT <= PENDING_BYTE);
const _: () = assert!(GAP_AT + PAGES_AT + GAP >= LOCKS_END);

/// Where SQLite's byte `at` lies in the file.
pub(crate) fn physical(at: u64) -> u64 {
    at + PAGES_AT + if at >= GAP_AT { GAP } else { 0 }
}

/// The file size for SQLite's size `size`; a database that ends at the gap does not include it.
pub(crate) fn physical_size(size: u64) -> u64 {
    size + PAGES_AT + if size > GAP_AT { GAP } else { 0 }
}

/// SQLite's size of a file of `physical` bytes.
pub(crate) fn logical_size(physical: u64) -> u64 {
    let size = physical.saturating_sub(PAGES_AT);
    if size <= GAP_AT { size } else { size.saturating_sub(GAP).max(GAP_AT) }
}

/// SQLite never reads or writes the page that holds its lock bytes.
pub(crate) fn is_lock_page(page: PageNo, page_size: usize) -> bool {
    page == PageNo::at(PENDING_BYTE, page_size)
}
