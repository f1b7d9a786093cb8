#!/usr/bin/env bash
# CPython's own tests of its module sqlite3 with `tde`, loaded as a library, as the default VFS, and
# with its databases in memory turned into files; beside that the same on the stock VFS.
#
# The interpreter is Debian's, which uses the shared libsqlite3. Debian's packages of Python leave
# these tests out, so they come out of its source package, fetched with apt-get and kept in the
# user's cache. Needs cargo, gcc, and on Debian the right to install packages.
#
# tests/suites/python.tsv has the tests that fail, each with its reason; any other one is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/suite-preload.sh
. scripts/suite-preload.sh

python=/usr/bin/python3
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/sqlite-tde/suite/python$version"
if [ ! -d "$cache/test/test_sqlite3" ]; then
  apt="$work/apt"
  mkdir -p "$apt/lists/partial" "$apt/source"
  sed -s 's/^Types: deb$/Types: deb-src/; s/^deb /deb-src /' /etc/apt/sources.list.d/debian.sources \
    >"$apt/debian.sources" 2>/dev/null || sed 's/^deb /deb-src /' /etc/apt/sources.list >"$apt/debian.list"
  at=(-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$apt"
    -o "Dir::State::Lists=$apt/lists")
  # The packaging may have gone from the archive already; what is wanted is the original source.
  (cd "$apt/source" && { apt-get "${at[@]}" update && apt-get "${at[@]}" source --download-only \
    "python$version"; } >"$apt/log" 2>&1) || ls "$apt/source"/*.orig.tar.* >/dev/null || {
    cat "$apt/log" >&2; exit 2; }
  mkdir -p "$cache"
  tar -xf "$apt/source"/*.orig.tar.* -C "$cache" --strip-components=2 --wildcards \
    '*/Lib/test/__init__.py' '*/Lib/test/support' '*/Lib/test/test_sqlite3'
fi

# run NAME COMMAND...: the tests in that environment; a row for each file in $work/NAME.tsv.
run() {
  local name="$1" status=0
  shift
  (cd "$work" && PYTHONPATH="$cache" "$@" "$python" -W ignore "$OLDPWD/tests/suites/python_tests.py" \
    "$work/$name.tsv" >"$work/$name.txt" 2>&1) || status=$?
  [ -s "$work/$name.tsv" ] || { tail -20 "$work/$name.txt" >&2; echo "$name: ended with $status" >&2; exit 1; }
}
run stock env "LD_PRELOAD=$work/suite_preload.so" "SUITE_MEM2FILE=$work/memory"
rm -rf "$work/memory"
mkdir -m 700 "$work/memory"
run tde "${tde[@]}" "SUITE_MEM2FILE=$work/memory"
made="$(find "$work/memory" -name '*.db' | wc -l)"

printf '== CPython %s, SQLite %s, stock\n' "$version" \
  "$("$python" -c 'import sqlite3; print(sqlite3.sqlite_version)')"
python3 tests/suites/summary.py "$work/stock.tsv" /dev/null "$work" || true
printf '== the same, tde\n'
if [ "$made" -lt 100 ]; then
  echo "only $made databases in memory became files" >&2
  exit 1
fi
echo "$made databases in memory became files"
# Only what passes on the stock VFS has to pass here.
awk -F '\t' '$2 != "pass" { print $1 "\t" $6 "\tfails on the stock VFS too" }' "$work/stock.tsv" \
  | cat - tests/suites/python.tsv >"$work/explained.tsv"
mkdir -p target/suite
cp "$work"/{stock,tde}.{tsv,txt} target/suite/
python3 tests/suites/summary.py "$work/tde.tsv" "$work/explained.tsv" "$work"
