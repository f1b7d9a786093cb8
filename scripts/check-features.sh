#!/usr/bin/env bash
# Checks, without linking, that every set of features compiles without warnings. With the toolchain of
# `rust-version` too, where rustup has it.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null
export RUSTFLAGS="${RUSTFLAGS:-} -D warnings" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/features"

library() {
  echo "sqlite-tde: ${*:-default features}"
  cargo ${toolchain:+"$toolchain"} check --quiet --package sqlite-tde --lib "$@"
}

minimum="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)"
toolchain=
library --no-default-features
library
library --features bundled
library --features pkcs11
library --no-default-features --features extension
library --no-default-features --features extension,pkcs11
library --features extension
library --all-features
for package in sqlite-tde-extension sqlite-tde-cli; do
  echo "$package"
  cargo check --quiet --package "$package" --all-features
done
if cargo "+$minimum" --version >/dev/null 2>&1; then
  toolchain="+$minimum"
  echo "on Rust $minimum"
  library --all-features
else
  echo "Rust $minimum is not here: rustup toolchain install $minimum"
fi
