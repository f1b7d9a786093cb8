#!/usr/bin/env bash
# Runs tests of this project over another SQLite than the bundled one.
#
#     scripts/on-sqlite.sh VERSION TEST..
#
# VERSION is `system` (3.40 on Debian 12) or one that scripts/hosts.sh knows, from 3.39 on: rusqlite
# calls functions that older ones lack. The tests are
# linked with the system's shared library once; another version takes its place when they run.
# Needs libsqlite3-dev, or else the right to install them.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null
. scripts/hosts.sh
version="$1"
shift
need_system_sqlite
SQLITE3_LIB_DIR="$(linked_sqlite)"
LD_LIBRARY_PATH="$SQLITE3_LIB_DIR${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [ "$version" != system ]; then
  LD_LIBRARY_PATH="$(sqlite_library "$version"):$LD_LIBRARY_PATH"
fi
export SQLITE3_LIB_DIR LD_LIBRARY_PATH
found="$(/usr/bin/python3 -c 'import ctypes
library = ctypes.CDLL("libsqlite3.so.0")
library.sqlite3_libversion.restype = ctypes.c_char_p
print(library.sqlite3_libversion().decode())')"
echo "on SQLite $found"
[ "$version" = system ] || [[ "$found" == "$version"* ]] || exit 1
# libsqlite3-sys links the system's library when this is set, whatever its features say.
export LIBSQLITE3_SYS_USE_PKG_CONFIG=1 CARGO_TARGET_DIR=target/system-sqlite
tests=()
for name in "$@"; do tests+=(--test "$name"); done
cargo test --package sqlite-tde --no-fail-fast --no-default-features --features rusqlite "${tests[@]}"
