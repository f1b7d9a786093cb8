#!/usr/bin/env bash
# Other engines beside this one, in one run: with the databases in memory, and on a disk.
#
#   scripts/bench-peers.sh PEERS.PY ENGINES [MEMORY_DIR [DISK_DIR]]
#
# PEERS.PY is the comparison, which lies outside this repository (../shared/bench/peers.py); ENGINES is the
# directory that its command `setup` built, and is built where it does not exist. Writes
# docs/plots/data/peers-memory.json and peers-disk.json; scripts/bench-tables.py makes tables of them.
# ROUNDS (5) says how many rounds.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

peers="${1:?where is peers.py?}" engines="${2:?where are the engines?}"
memory="${3:-/dev/shm}" disk="${4:-/var/tmp}" rounds="${ROUNDS:-5}"
[ -d "$engines" ] || python3 "$peers" setup "$engines"
library="$(scripts/build-extension.sh | tail -1)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# compare NAME DIR
compare() {
  printf '\n== %s\n' "$1"
  python3 "$peers" run "$engines" --ext "$library" --rounds "$rounds" --mmap 1073741824 \
    --dir-db "$2" --json "$work/$1.json"
  python3 - "$work/$1.json" "$(df --output=fstype "$2" | tail -1)" "$rounds" <<'PYTHON' >"docs/plots/data/peers-$1.json"
import json, sys
workloads = json.load(open(sys.argv[1]))
for engines in workloads.values():
    for engine in engines.values():
        engine.update(ns=round(engine["ns"], 1), ratio=round(engine["ratio"], 3))
json.dump({"file_system": sys.argv[2], "rounds": int(sys.argv[3]), "workloads": workloads}, sys.stdout, indent=1)
print()
PYTHON
}
mkdir -p docs/plots/data
compare memory "$memory"
compare disk "$disk"
