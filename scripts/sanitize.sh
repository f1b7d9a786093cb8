#!/usr/bin/env bash
# Memory checks that cargo test does not make: valgrind over the VFS, AddressSanitizer over foreign
# code, Miri over safe code that calls no C, and a bounded run of each fuzz target. Needs valgrind;
# the others a nightly toolchain, the last two miri and cargo-fuzz. FUZZ_SECONDS bounds each target (default 60).
set -euo pipefail
cd "$(dirname "$0")/.."
for test in contract recovery; do
  binary=$(cargo test --no-run --message-format=json --test "$test" 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*deps\/'"$test"'[^"]*\)".*/\1/p' | tail -1)
  valgrind -q --error-exitcode=9 --trace-children=no --leak-check=full \
    --show-leak-kinds=definite --errors-for-leak-kinds=definite "$binary" --test-threads=1
done
# What foreign code does to connections: they are leaked there, so that it can try.
if rustup toolchain list 2>/dev/null | grep -q '^nightly'; then
  host=$(rustc -vV | sed -n 's/^host: //p')
  RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=detect_leaks=0 CARGO_TARGET_DIR=target/asan \
    cargo +nightly test --target "$host" --test foreign_code
fi
if cargo +nightly miri --version >/dev/null 2>&1; then
  MIRIFLAGS=-Zmiri-disable-isolation CARGO_TARGET_DIR=target/miri cargo +nightly miri test --package sqlite-tde \
    --no-default-features --features rusqlite --lib -- nonce hkdf ctr_hmac secret
fi
if cargo fuzz --version >/dev/null 2>&1; then
  cargo +nightly fuzz run envelope -- -max_total_time="${FUZZ_SECONDS:-60}" -max_len=20000
fi
