#!/usr/bin/env bash
# Checks, without linking, that every set of features compiles without warnings. With the toolchain of
# `rust-version` too, where rustup has it.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

library() {
  echo "sqlite-tde: ${*:-default features}"
  cargo clippy --quiet --package sqlite-tde --lib "$@" -- -D warnings
}

minimum="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)"
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
  cargo clippy --quiet --package "$package" --all-features -- -D warnings
done
if cargo "+$minimum" --version >/dev/null 2>&1; then
  echo "on Rust $minimum"
  cargo "+$minimum" check --quiet --package sqlite-tde --package sqlite-tde-cli --all-features
else
  echo "Rust $minimum is not here: rustup toolchain install $minimum"
fi
