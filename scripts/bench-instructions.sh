#!/usr/bin/env bash
# Counts the instructions of small workloads, plain and encrypted, in one run of one program, and fails
# where encrypted ones take 25 % more beside plain ones than scripts/bench-instructions.tsv says.
#
#   scripts/bench-instructions.sh                compares
#   scripts/bench-instructions.sh --update       writes the table anew
#   scripts/bench-instructions.sh --json FILE    and what each class of functions takes
#
# Counts repeat within a thousandth, where times on a busy machine do not. What the cryptography takes is left
# out of the comparison: valgrind knows no AVX-512, so aws-lc takes other kernels under it than on the
# machine. What the kernel does is not counted either. Needs cargo, python3, and valgrind or the right to install it.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

command -v valgrind >/dev/null || { apt-get update && apt-get install -y --no-install-recommends valgrind; } >/dev/null
program="$(cargo bench --bench instructions --no-run --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "instructions":
        print(message["executable"])')"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
valgrind --tool=callgrind --collect-atstart=no --toggle-collect=measured --dump-after=measured \
  --callgrind-out-file="$work/counts" "$program" >"$work/log" 2>"$work/valgrind" \
  || { cat "$work/valgrind" >&2; exit 1; }
python3 scripts/bench-instructions.py "$work/counts" "$work/log" "$@"
