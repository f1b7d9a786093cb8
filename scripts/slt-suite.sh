#!/usr/bin/env bash
# sqllogictest files on Python's sqlite3 with `tde`, loaded as a library, as the default VFS; beside
# that the same files on the stock VFS. Both must come to the same in each file.
#
# No package of the registries that this project uses has the files that SQLite's own developers
# wrote for sqllogictest. So there are two kinds:
#
#   * generated here, in SQLite's dialect: the questions are ours (tests/suites/make_slt.py), the
#     answers are those of the stock SQLite. Each record must pass.
#   * written by others for other databases, out of three crates: RisingLight, LLKV, DataFusion. Of
#     those many records are in a dialect that SQLite does not have: they must fail as on the stock VFS.
#
#     scripts/slt-suite.sh [SEEDS]    generates files for that many seeds (default 40)
#
# Needs cargo, gcc and python3, and on Debian the right to install packages.
# tests/suites/slt.tsv has the files that may differ, each with its reason.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/suite-preload.sh
. scripts/suite-preload.sh

python=/usr/bin/python3
seeds="${1:-40}"
list="$work/files"

mkdir -p "$work/generated" "$work/crates/src"
"$python" tests/suites/make_slt.py "$work/generated" "$seeds"
find "$work/generated" -name '*.test' | sort >"$list"

# The crates are only fetched, to read the files in them; nothing of them is built.
cat >"$work/crates/Cargo.toml" <<'TOML'
[package]
name = "slt-files"
version = "0.0.0"
edition = "2021"

[dependencies]
risinglight = "=0.2.0"
llkv-slt-tester = "=0.8.5-alpha"
datafusion-sqllogictest = "=55.2.0"
TOML
touch "$work/crates/src/lib.rs"
cargo fetch --quiet --manifest-path "$work/crates/Cargo.toml"
cargo metadata --format-version 1 --offline --manifest-path "$work/crates/Cargo.toml" |
  "$python" -c '
import glob, json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] in ("risinglight", "llkv-slt-tester", "datafusion-sqllogictest"):
        folder = os.path.dirname(package["manifest_path"])
        for file in sorted(glob.glob(folder + "/**/*.slt", recursive=True)):
            # Answers that are random would differ by themselves.
            if b"random()" not in open(file, "rb").read().lower():
                print(file)
' >>"$list"

# run NAME COMMAND...: what slt.py says of each file, one a line, in $work/NAME.
run() {
  local name="$1" file
  shift
  while read -r file; do
    # A file in another format ends slt.py with an exception, of which the last line tells.
    said="$(timeout 120 "$@" "$python" "$tools/slt.py" "$work/$name.db" "$file" 2>&1 | tail -3 | tr '\n' ' ')" || true
    printf '%s\t%s\n' "$file" "$said"
  done <"$list" >"$work/$name"
}
run stock env
run tde "${tde[@]}"

[ "$(head -c 15 "$work/tde.db")" = "sqlite-tde file" ] || { echo "the files are not encrypted" >&2; exit 1; }
mkdir -p target/suite
cp "$work/stock" target/suite/slt-stock.txt
cp "$work/tde" target/suite/slt-tde.txt
"$python" tests/suites/slt_summary.py "$work/stock" "$work/tde" "$work/generated" tests/suites/slt.tsv
