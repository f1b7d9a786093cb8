#!/usr/bin/env bash
# SQLite's own test suite with `tde`, loaded as a library, as the default VFS of every connection.
#
#   scripts/sqlite-suite.sh short       a few files of each kind, as CI does
#   scripts/sqlite-suite.sh files       files.txt: those of "veryquick" that a VFS with reserve bytes can pass
#   scripts/sqlite-suite.sh heavy       files-heavy.txt: the same of "full"
#   scripts/sqlite-suite.sh full        both (the default)
#   scripts/sqlite-suite.sh crash       the simulated crashes, with the crash below `tde`: on ciphertext
#   scripts/sqlite-suite.sh LIST        a file with names of test files, one a line
#   scripts/sqlite-suite.sh MODE stock  the same files on the stock VFS, as a control
#
# Needs cargo, and on Debian the right to install packages. SQLITE_TDE_SUITE says where the tools for
# the suite are (default ../shared/suite), SUITE_VERSION which SQLite, SUITE_JOBS how many at once.
# SQLITE_TDE_SHORTCUTS=off does without reading ahead and without joining writes.
# The fixture, SQLite's test program, is built once, in some minutes, in the user's cache.
#
# tests/suites/sqlite.tsv, and sqlite-crash.tsv for "crash", have the cases that fail, each with its
# reason; any other one is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

mode="${1:-full}" stock="${2:-}"
version="${SUITE_VERSION:-3.53.4}" jobs="${SUITE_JOBS:-2}"
tools="$(realpath "${SQLITE_TDE_SUITE:-../shared/suite}")"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/sqlite-tde/suite"
out="$PWD/target/suite/$(basename "$mode" .txt)${stock:+-$stock}"
[ -x "$tools/build_fixture.sh" ] || { echo "$tools: no tools for the suite" >&2; exit 2; }

if [ ! -x "$cache/b-$version/testfixture" ]; then
  mkdir -p "$cache"
  packages=(tcl8.6-dev zlib1g-dev xz-utils curl make gcc)
  if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    apt-get update >"$cache/apt.log" 2>&1
    apt-get install -y --no-install-recommends "${packages[@]}" >>"$cache/apt.log" 2>&1 \
      || { cat "$cache/apt.log" >&2; exit 2; }
  fi
  "$tools/build_fixture.sh" "$version" "$cache"
fi
rm -rf "$out"
library="$(scripts/build-extension.sh | tail -1)"

# The tests run as nobody, since root may write read-only files. All that nobody needs is copied to
# where nobody may read; in memory, where there is room for it.
room="$(df --output=avail -m /dev/shm 2>/dev/null | tail -1 || echo 0)"
stage="$(mktemp -d "$([ "$room" -gt 4000 ] && echo /dev/shm || echo /var/tmp)/sqlite-tde-suite.XXXXXX")"
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
mkdir "$stage/src" "$stage/tools" "$stage/keys"
cp -r "$cache/src-$version/test" "$cache/src-$version/ext" "$stage/src/"
cp "$tools"/* tests/suites/*.tcl "$stage/tools/"
cp "$cache/b-$version/testfixture" "$library" "$stage/"
chmod -R a+rX "$stage/src" "$stage/tools"
chmod 755 "$stage/testfixture" "$stage/$(basename "$library")"
chown nobody "$stage/keys"
chmod 700 "$stage/keys"
if [ "${SQLITE_TDE_SHORTCUTS:-on}" = off ]; then
  printf '[io]\nread_ahead = false\ngather_writes = false\n' >"$stage/keys/config.toml"
  chown nobody "$stage/keys/config.toml"
  chmod 600 "$stage/keys/config.toml"
fi

# run NAME PERMUTATION LIST [PRELUDE]: leaves its results in $out/NAME.
run() {
  local name="$1" permutation="$2" list="$3" prelude="${4:-}"
  local vfs=()
  if [ -z "$stock" ]; then
    {
      echo "source $stage/tools/file_size.tcl"
      [ -z "$prelude" ] || echo "source $stage/tools/$prelude"
    } >"$stage/tools/prelude.tcl"
    vfs=(--vfs "$stage/$(basename "$library")" --prelude "$stage/tools/prelude.tcl"
      --env SUITE_VFS_NAME=tde --env SUITE_VFS_ENTRY=sqlite3_tdedefault_init
      --env "SQLITE_TDE_HOME=$stage/keys")
  fi
  python3 "$stage/tools/run_suite.py" --fixture "$stage/testfixture" --src "$stage/src" \
    --work "$stage/work" --out "$out/$name" --user nobody -j "$jobs" --perm "$permutation" \
    --files "$list" ${vfs[@]+"${vfs[@]}"} --expect "$list" || true
  # Each file that was asked for must have a row.
  join -v 1 <(grep -v '^#' "$list" | awk 'NF { print $1 }' | sort) \
    <(cut -f 1 "$out/$name/results.tsv" | sort) | sed 's/$/\tABSENT\t-1\t-1\t0\t/' \
    >>"$out/$name/results.tsv"
}

case "$mode" in
  short)
    grep -v '^#' tests/suites/sqlite-short.txt >"$stage/list"
    run short veryquick "$stage/list" ;;
  files) run files veryquick "$tools/files.txt" ;;
  heavy) run heavy full "$tools/files-heavy.txt" ;;
  full)
    run files veryquick "$tools/files.txt"
    run heavy full "$tools/files-heavy.txt" ;;
  crash)
    (cd "$stage/src/test" && ls crash*.test walcrash*.test savepoint6.test) >"$stage/list"
    run crash full "$stage/list" crash_under.tcl ;;
  *) run list full "$mode" ;;
esac

cat "$out"/*/results.tsv >"$out/results.tsv"
mkdir -p "$out/log"
cp "$out"/*/log/*.txt "$out/log/"
explained=tests/suites/sqlite.tsv
[ "$mode" != crash ] || explained=tests/suites/sqlite-crash.tsv
[ -z "$stock" ] || explained=/dev/null
printf '\n== SQLite %s, %s, %s\n' "$version" "$mode" "${stock:-tde}"
python3 tests/suites/summary.py "$out/results.tsv" "$explained" "$out/log"
