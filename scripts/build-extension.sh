#!/usr/bin/env bash
# Builds the library that a host loads, without an SQLite of its own. The last line is its path.
# SQLITE_TDE_FEATURES=pkcs11 builds it with that feature, too.
set -euo pipefail
cd "$(dirname "$0")/.."
dir="${CARGO_TARGET_DIR:-$PWD/target}"
cargo build --release --package sqlite-tde-extension \
  ${SQLITE_TDE_FEATURES:+--features "$SQLITE_TDE_FEATURES"} </dev/null >&2
for library in libsqlite_tde.so libsqlite_tde.dylib sqlite_tde.dll; do
  if [ -e "$dir/release/$library" ]; then
    echo "$(cd "$dir/release" && pwd)/$library"
  fi
done
