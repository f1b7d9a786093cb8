//! No bytes of a database, and nothing that happens to it, may bring the code for it down or pass for
//! what was written.
#![no_main]

use sqlite_tde::internals::Kind;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sqlite_tde_fuzz::run(Kind::Database, bytes));
