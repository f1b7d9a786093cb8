//! No bytes pass for a sealed block that nobody sealed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sqlite_tde_fuzz::page(bytes));
