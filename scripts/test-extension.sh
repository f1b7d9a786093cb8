#!/usr/bin/env bash
# The loadable library in hosts that know nothing of it: a program in C over SQLite 3.35 (refused),
# 3.37 (the oldest), 3.39, the system's and the newest one; the shell sqlite3; Python's sqlite3.
#
# The older ones are the amalgamations that old versions of the crate libsqlite3-sys ship. Needs cargo,
# gcc, python3, the system's SQLite with its headers and its shell, and else the right to install them.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

. scripts/hosts.sh
need_system_sqlite
library="$(scripts/build-extension.sh | tail -1)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
fail() { echo "$1" >&2; exit 1; }

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

link_host "$work/system" system tests/extension/host.c
host "$work/system" 'SQLite 3.*: loaded'
link_host "$work/stranger" system tests/extension/stranger.c
host "$work/stranger" 'SQLite 3.*: 504 orders beside a stranger'
shared="$(ldd "$work/system" | awk '/libsqlite3/ { print $3 }')"
while read -r version expected; do
  link_host "$work/host" "$version" tests/extension/host.c
  host "$work/host" "$expected" "$shared"
  [[ "$expected" == *loaded ]] || continue
  link_host "$work/stranger" "$version" tests/extension/stranger.c
  host "$work/stranger" '*: 504 orders beside a stranger'
done <<'HOSTS'
3.35 SQLite 3.35.*: refused
3.37 SQLite 3.37.*: loaded
3.39 SQLite 3.39.*: loaded
3.41 SQLite 3.41.*: loaded
3.54 SQLite 3.54.*: loaded
HOSTS

# What a host does with its own process meanwhile.
guests=(environment cancel fork_beside_commands sigchld gone shut_down prefork fork_beside_derivation
  stack sandbox)
for version in system 3.37 3.54; do
  link_host "$work/guest" "$version" tests/extension/guest.c
  for case in "${guests[@]}"; do
    rm -rf "$work/files" "$work/keys"
    mkdir -m 700 "$work/files" "$work/keys"
    said="$(SQLITE_TDE_HOME="$work/keys" timeout 120 "$work/guest" "$case" "$library" "$work/files")" \
      || fail "guest, SQLite $version: $case failed"
    echo "guest, SQLite $version: $said"
  done
done
# The host's memory runs out: at a sample of allocations, or with SQLITE_TDE_FULL=1 at each.
link_host "$work/oom" system tests/extension/oom.c
rm -rf "$work/files" "$work/keys"
mkdir -m 700 "$work/files" "$work/keys"
step=23
[ "${SQLITE_TDE_FULL:-}" != 1 ] || step=1
SQLITE_TDE_HOME="$work/keys" "$work/oom" "$library" "$work/files" "$step" || fail "out of memory: failed"

# With the rights of a group that its caller is not in. Only root can make such a program.
if [ "$(id -u)" = 0 ]; then
  chmod 711 "$work"
  rm -rf "$work/files" "$work/keys" /tmp/sqlite-tde-guest-ran
  mkdir -m 700 "$work/files" "$work/keys"
  chown nobody "$work/files" "$work/keys"
  install -m 755 "$library" "$work/guest.so"
  chgrp daemon "$work/guest"
  chmod 2755 "$work/guest"
  SQLITE_TDE_HOME="$work/keys" timeout 60 setpriv --reuid=nobody --regid=nogroup --clear-groups \
    "$work/guest" privileged "$work/guest.so" "$work/files" || fail "guest: privileged failed"
fi

# Two copies of the library in one process: what they write, each reads alone.
gcc -O1 -Wall -Wextra -Werror tests/extension/copies.c -lsqlite3 -ldl -o "$work/copies"
cp "$library" "$work/one.so"
cp "$library" "$work/other.so"
mkdir -m 700 "$work/copies-keys"
copies() { SQLITE_TDE_HOME="$work/copies-keys" timeout 120 "$work/copies" "$@"; }
said="$(copies write "$work/copies.db" "$work/one.so" "$work/other.so" \
  && copies read "$work/copies.db" "$work/one.so" && copies read "$work/copies.db" "$work/other.so" \
  && copies write "$work/copies.db" "$work/other.so" "$work/one.so" \
  && copies read "$work/copies.db" "$work/one.so")" || fail "two copies of the library failed"
[ "$(echo $said)" = '1 2 2 2 2 2 3 4 4 4' ] || fail "two copies of the library said $said"
! grep -q 'a marker' "$work/copies.db" || fail "plaintext, written by two copies of the library"
echo "two copies: one layer"

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
