#!/usr/bin/env bash
# The key providers beside the programs that they work with: installs what is missing of Debian's
# packages, and then every row of tests/providers.rs has to run.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
for tool in age:age systemd-creds:systemd setfacl:acl; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
if [ "${#missing[@]}" -gt 0 ]; then
  { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 ||
    { echo "missing, and not to be had with apt-get: ${missing[*]}" >&2; exit 1; }
fi
age --version
systemd-creds --version | head -n 1
SQLITE_TDE_TEST_PROVIDERS=1 cargo test --test providers
cargo run --example own_provider
