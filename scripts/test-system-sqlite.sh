#!/usr/bin/env bash
# Tests over the system's SQLite (3.40 on Debian 12) instead of the bundled one: the roads by which
# databases are created, recovery, and transactions that SQLite before 3.50 leaves without checksums
# in the log. Needs libsqlite3-dev; says so where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! pkg-config --exists sqlite3; then
  apt-get install -y --no-install-recommends libsqlite3-dev pkg-config >/dev/null
fi
printf 'system SQLite %s\n' "$(pkg-config --modversion sqlite3)"
# libsqlite3-sys links the system's library when this is set, whatever its features say.
export LIBSQLITE3_SYS_USE_PKG_CONFIG=1 CARGO_TARGET_DIR=target/system-sqlite
cargo test --no-default-features --features rusqlite --test round_trip --test recovery \
  --test wal_savepoints
