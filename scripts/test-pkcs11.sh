#!/usr/bin/env bash
# The PKCS#11 provider on two tokens in software, written by different people: SoftHSM2 from Debian, and
# kryoptic, which is built once from its crate and kept in ~/.cache/sqlite-tde. ARGUMENTS go to cargo test.
# Needs cargo, gcc, python3, and else the right to install what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

kryoptic_version=1.5.4
cache="${XDG_CACHE_HOME:-$HOME/.cache}/sqlite-tde/pkcs11"
kryoptic="$cache/libkryoptic_pkcs11-$kryoptic_version.so"
mkdir -p "$cache"

softhsm() { find /usr/lib /usr/local/lib -name libsofthsm2.so 2>/dev/null | head -1; }

spy() { find /usr/lib /usr/local/lib -name pkcs11-spy.so 2>/dev/null | head -1; }

install_missing() {
  if [ -n "$(softhsm)" ] && [ -n "$(spy)" ] && command -v softhsm2-util pkcs11-tool openssl >/dev/null; then
    return
  fi
  { apt-get update && apt-get install -y --no-install-recommends softhsm2 opensc opensc-pkcs11 openssl; } >/dev/null
}

# In $1, the directory of the crate, with what it needs to be built.
fetch_kryoptic() {
  mkdir -p "$1/fetch/src"
  touch "$1/fetch/src/lib.rs"
  printf '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n[dependencies]\nkryoptic = { version = "=%s", default-features = false }\n' \
    "$kryoptic_version" >"$1/fetch/Cargo.toml"
  cargo fetch --quiet --manifest-path "$1/fetch/Cargo.toml"
  cargo metadata --format-version 1 --offline --manifest-path "$1/fetch/Cargo.toml" | python3 -c '
import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "kryoptic":
        print(os.path.dirname(package["manifest_path"]))'
}

# With OpenSSL 3.0, as Debian 12 has it; kryoptic wants 3.2 for more than its feature `minimal`.
build_kryoptic() {
  local work
  work="$(mktemp -d)"
  if ! pkg-config --exists openssl sqlite3; then
    apt-get update >/dev/null
    apt-get install -y --no-install-recommends libssl-dev libsqlite3-dev pkg-config gcc >/dev/null
  fi
  # bindgen, which it builds with, loads this library.
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --target "$work/clang" libclang==18.1.1
  cp -r "$(fetch_kryoptic "$work")" "$work/kryoptic"
  LIBCLANG_PATH="$work/clang/clang/native" \
    BINDGEN_EXTRA_CLANG_ARGS="-I$(gcc -print-file-name=include)" \
    cargo build --release --locked --quiet --manifest-path "$work/kryoptic/Cargo.toml" \
    --target-dir "$work/target" --no-default-features --features minimal,kryoptic-lib/dynamic
  cp "$work/target/release/libkryoptic_pkcs11.so" "$kryoptic.new"
  mv "$kryoptic.new" "$kryoptic"
  rm -rf "$work"
}

install_missing
if [ ! -e "$kryoptic" ]; then
  echo "building kryoptic $kryoptic_version, once"
  build_kryoptic
fi
export SQLITE_TDE_PKCS11_MODULES="softhsm=$(softhsm):kryoptic=$kryoptic"
export SQLITE_TDE_PKCS11_SPY="$(spy)"
cargo test --features pkcs11 --test pkcs11 --test pkcs11_access -- "$@"
