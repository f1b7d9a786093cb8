//! No bytes at the start of a file may bring the envelope's decoder down.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sqlite_tde::internals::decode_envelope(bytes));
