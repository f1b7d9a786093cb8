#!/usr/bin/env bash
# Shows with strace that an entry of the audit log is synced before its head, and both before it counts
# as recorded; then kills the recorder at each of its calls and checks the log that is left.
# Needs strace, and the right to use it.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --quiet
build=$(cargo test --quiet --test audit --no-run --message-format=json)
test=$(sed -n 's/.*"executable":"\([^"]*\/audit-[^"]*\)".*/\1/p' <<<"$build" | tail -1)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
calls=openat,write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,flock

# Records entries in $place/log, which is emptied first; strace's options are the arguments. What bash
# says of a killed process is not wanted.
record() {
  rm -rf "$place/log"
  SQLITE_TDE_TEST_AUDIT="reporting:12 $place/log" strace -f -qq -y -o "$place/trace" "$@" \
    "$test" recorder --exact --nocapture --test-threads=1 >"$place/out" 2>/dev/null
}

record -e trace="$calls"
awk '
  /write\(.*audit\.jsonl(\.new)?>/ && !/\.lock/ { line = NR; lines++ }
  /f(data)?sync\(.*audit\.jsonl(\.new)?>/ { if (line) synced = 1 }
  /write\(.*audit\.head>/ {
    if (!synced) { print "the head was written before its entry was synced: " $0; exit 1 }
    head = 1; heads++
  }
  /fdatasync\(.*audit\.head>/ { head_synced = 1 }
  /write\(1<.*@ / {
    reports++
    if (!line || !head || !head_synced) { print "reported before it was synced: " $0; exit 1 }
    line = synced = head = head_synced = 0
  }
  END { print lines " entries, " heads " heads, " reports " reports: each synced in this order"
        if (reports != 12) exit 1 }
' "$place/trace"

kills=0
for call in ${calls//,/ }; do
  for ((n = 1; ; n++)); do
    record -e trace="$call" -e inject="$call:signal=KILL:when=$n" 2>/dev/null && break
    reported=$(grep -c '^@ ' "$place/out" || true)
    kills=$((kills + 1))
    # Before the key is there, nothing can have been recorded.
    if [ ! -e "$place/log/audit.key" ]; then
      [ "$reported" = 0 ] && continue
    fi
    # A recorder that goes on puts right what was interrupted, and the log is clean again.
    SQLITE_TDE_TEST_AUDIT="reporting:1 $place/log" "$test" recorder --exact >/dev/null
    answer=$("${CARGO_TARGET_DIR:-target}/debug/sqlite-tde" audit verify --dir "$place/log" --json)
    last=$(sed -n 's/.*"last": \([0-9]*\).*/\1/p' <<<"$answer")
    if ((last <= reported)); then
      echo "killed at $call $n: $reported entries were reported, and $((last - 1)) are there"
      exit 1
    fi
  done
done
echo "killed at $kills calls: nothing that was reported is lost, every log is clean"
