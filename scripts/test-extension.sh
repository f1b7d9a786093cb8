#!/usr/bin/env bash
# The loadable library in hosts that know nothing of it: a program in C over SQLite 3.35 (refused),
# 3.37 (the oldest), 3.39, the system's and the newest one; the shell sqlite3; Python's sqlite3.
#
# The older ones are the amalgamations that old versions of the crate libsqlite3-sys ship. Needs cargo,
# gcc, python3, the system's SQLite with its headers and its shell, and else the right to install them.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

if ! { command -v gcc && command -v sqlite3 && [ -e /usr/include/sqlite3.h ]; } >/dev/null; then
  { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libsqlite3-dev sqlite3; } \
    >/dev/null
fi
library="$(scripts/build-extension.sh | tail -1)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cache="${CARGO_TARGET_DIR:-$PWD/target}/hosts"
mkdir -p "$cache"
fail() { echo "$1" >&2; exit 1; }

# amalgamation VERSION: the directory of sqlite3.c in that version of libsqlite3-sys.
amalgamation() {
  mkdir -p "$work/crate/src"
  touch "$work/crate/src/lib.rs"
  printf '[package]\nname = "host"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nlibsqlite3-sys = "=%s"\n' \
    "$1" >"$work/crate/Cargo.toml"
  rm -f "$work/crate/Cargo.lock"
  cargo fetch --quiet --manifest-path "$work/crate/Cargo.toml"
  cargo metadata --format-version 1 --offline --manifest-path "$work/crate/Cargo.toml" | python3 -c '
import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "libsqlite3-sys":
        print(os.path.join(os.path.dirname(package["manifest_path"]), "sqlite3"))'
}

# host PROGRAM EXPECTED [OTHER_SQLITE]: runs it in a new directory.
host() {
  local program="$1" expected="$2" said
  shift 2
  rm -rf "$work/files" "$work/keys"
  mkdir -m 700 "$work/files" "$work/keys"
  said="$(SQLITE_TDE_HOME="$work/keys" timeout 300 "$program" "$library" "$work/files" "$@")" \
    || fail "$program failed"
  echo "host: $said"
  [[ "$said" == $expected ]] || fail "expected $expected"
}

gcc -O1 -Wall -Wextra -Werror tests/extension/host.c -lsqlite3 -ldl -o "$work/system"
host "$work/system" 'SQLite 3.*: loaded'
gcc -O1 -Wall -Wextra -Werror tests/extension/stranger.c -lsqlite3 -o "$work/stranger"
host "$work/stranger" 'SQLite 3.*: 504 orders beside a stranger'
shared="$(ldd "$work/system" | awk '/libsqlite3/ { print $3 }')"
while read -r version expected; do
  dir="$(amalgamation "$version")"
  [ -e "$cache/$version.o" ] \
    || nice gcc -O0 -w -c "$dir/sqlite3.c" -o "$cache/$version.o"
  gcc -O1 -w -I"$dir" tests/extension/host.c "$cache/$version.o" -lpthread -ldl -lm -o "$work/host"
  host "$work/host" "$expected" "$shared"
  [[ "$expected" == *loaded ]] || continue
  gcc -O1 -w -I"$dir" tests/extension/stranger.c "$cache/$version.o" -lpthread -ldl -lm -o "$work/stranger"
  host "$work/stranger" '*: 504 orders beside a stranger'
done <<'HOSTS'
0.22.2 SQLite 3.35.*: refused
0.23.2 SQLite 3.37.*: loaded
0.25.2 SQLite 3.39.*: loaded
0.26.0 SQLite 3.4*: loaded
0.40.0 SQLite 3.5*: loaded
HOSTS

export SQLITE_TDE_HOME="$work/shell-keys"
mkdir -m 700 "$SQLITE_TDE_HOME"
db="$work/shell.db"
sqlite3 -bail -cmd ".load $library sqlite3_tdedefault_init" -cmd ".open $db" :memory: \
  "CREATE TABLE t(x); INSERT INTO t VALUES('a marker that no file may hold')"
said="$(sqlite3 -bail -cmd ".load $library sqlite3_tdedefault_init" -cmd ".open $db" :memory: \
  "PRAGMA tde_cipher; SELECT x FROM t; PRAGMA integrity_check" | tr '\n' '|')"
[ "$said" = 'aes-256-gcm|a marker that no file may hold|ok|' ] || fail "the shell said $said"
! grep -q 'a marker' "$db" || fail "plaintext in the shell's database"
! sqlite3 -bail "$db" "SELECT x FROM t" 2>/dev/null || fail "the shell read it without the library"
! sqlite3 -bail -cmd ".load $library sqlite3_no_such_init" :memory: "SELECT 1" >/dev/null 2>&1 \
  || fail "the shell loaded it through a wrong entry point"
(umask 077 && echo 'nonsense = 1' >"$SQLITE_TDE_HOME/config.toml")
said="$(sqlite3 -bail -cmd ".load $library" :memory: "SELECT 1" 2>&1)" && fail "a mistake in config.toml was passed over"
[[ "$said" == *"config.toml, line 1, nonsense"* ]] || fail "of a mistake in config.toml the shell said $said"
rm "$SQLITE_TDE_HOME/config.toml"
echo "shell: loaded"

/usr/bin/python3 tests/extension/python.py "$library" "$work"
