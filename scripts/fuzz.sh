#!/usr/bin/env bash
# Runs each fuzz target for SECONDS (default 20) from the corpus in fuzz/seeds. Installs cargo-fuzz where
# it is missing; without a nightly toolchain it makes the stable one take the flags that it needs. With
# SQLITE_TDE_FULL=1 under AddressSanitizer.
# Exits with an error after a crash; its input is in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20}
sanitizer=none
[ "${SQLITE_TDE_FULL:-0}" = 1 ] && sanitizer=address
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
fuzz() {
  if cargo +nightly --version >/dev/null 2>&1; then
    cargo +nightly fuzz "$@"
  else
    RUSTC_BOOTSTRAP=1 cargo fuzz "$@"
  fi
}
fuzz build --sanitizer "$sanitizer"
failed=0
for target in $(cargo fuzz list); do
  mkdir -p "fuzz/corpus/$target"
  log=$(mktemp)
  if fuzz run --sanitizer "$sanitizer" "$target" "fuzz/corpus/$target" \
    "fuzz/seeds/$target" -- -max_total_time="$seconds" -max_len=20000 -timeout=60 \
    -rss_limit_mb=1024 -print_final_stats=1 >"$log" 2>&1; then
    echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") executions"
  else
    failed=1
    echo "$target: crashed"
    tail -40 "$log"
  fi
  rm -f "$log"
done
exit $failed
