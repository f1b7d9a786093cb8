#!/usr/bin/env bash
# Random histories on plain SQLite and on the loadable library, in hosts with old and new versions of
# SQLite; first the cases in tests/differential/cases, which once failed.
#
#     scripts/differential.sh                     a short run with fixed seeds, about two minutes
#     SQLITE_TDE_FULL=1 scripts/differential.sh   20,000 histories a host
#     SQLITE_TDE_HISTORIES=N, SQLITE_TDE_FIRST=SEED, SQLITE_TDE_HOSTS="3.37 system"
#     scripts/differential.sh HOST ARGUMENTS      the program itself, say: 3.37 --seed 47 --shrink
#
# tests/differential/differential.c says what the program takes. Needs cargo, gcc, python3, and the
# system's SQLite with its headers or else the right to install it.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null
. scripts/hosts.sh

hosts="${SQLITE_TDE_HOSTS:-3.37 system 3.46:debian 3.49 3.50 3.54}"
if [ $# -gt 0 ]; then
  hosts="$1"
  shift
fi
need_system_sqlite
library="$(scripts/build-extension.sh | tail -1)"
SQLITE_TDE_HOME="$(mktemp -d)"
export SQLITE_TDE_HOME
trap 'rm -rf "$SQLITE_TDE_HOME"' EXIT

histories="${SQLITE_TDE_HISTORIES:-500}"
[ "${SQLITE_TDE_FULL:-0}" = 0 ] || histories="${SQLITE_TDE_HISTORIES:-20000}"
failed=0
for host in $hosts; do
  program="$hosts_dir/differential-${host//:/-}"
  link_host "$program" "$host" tests/differential/*.c
  if [ $# -gt 0 ]; then
    "$program" "$library" "$@" || failed=1
    continue
  fi
  "$program" "$library" --replay tests/differential/cases/*.txt || failed=1
  "$program" "$library" --first "${SQLITE_TDE_FIRST:-1}" --histories "$histories" || failed=1
done
exit $failed
