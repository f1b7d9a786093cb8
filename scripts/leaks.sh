#!/usr/bin/env bash
# Traces every write of a process that makes SQLite write every kind of file it has, and searches
# what was written for plaintext and for SQLite's checksums over plaintext. Runs on plain SQLite
# first, which must show all of that, then encrypted. LEAK_ROUNDS says how much work is done
# (default 1). Needs strace, which it installs with apt-get where it can, and python3.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v strace >/dev/null; then
  { apt-get update && apt-get install -y strace; } >/dev/null 2>&1 || { echo "strace is missing" >&2; exit 1; }
fi
# In memory where there is a place for it: syncs would take most of the time.
home=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$home"' EXIT
binary=$(cargo test --no-run --message-format=json --test leaks 2>/dev/null |
  sed -n 's/.*"executable":"\([^"]*deps\/leaks[^"]*\)".*/\1/p' | tail -1)
calls=write,pwrite64,writev,pwritev,pwritev2,ftruncate,mmap,open,openat,sendfile,copy_file_range

# run NAME ENCRYPTED: the trace is in $home/NAME/trace, the files in $home/NAME/files.
run() {
  mkdir -p "$home/$1/files" "$home/$1/temp"
  SQLITE_TMPDIR="$home/$1/temp" TMPDIR="$home/$1/temp" \
    SQLITE_TDE_TEST_TRACED="$home/$1/files|$2|${LEAK_ROUNDS:-1}" \
    strace -f -y -xx -s 1000000 -e "trace=$calls" -o "$home/$1/trace" \
    "$binary" --exact writes_every_kind_of_file >/dev/null
}

run reference false
run control false
run encrypted true
python3 scripts/leaks.py "$home/reference" "$home/control" "$home/encrypted"
