# Sourced by python-suite.sh and slt-suite.sh: builds the library and the preload that makes `tde` the
# default VFS of any program which uses the system's libsqlite3.
#
# Sets $work, a directory that goes away, and $tde, the environment to run a program in.
exec </dev/null
tools="$(realpath "${SQLITE_TDE_SUITE:-../shared/suite}")"
[ -f "$tools/suite_preload.c" ] || { echo "$tools: no tools for the suites" >&2; exit 2; }
if ! { command -v gcc && [ -e /usr/include/sqlite3.h ]; } >/dev/null; then
  { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libsqlite3-dev; } \
    >/dev/null
fi
library="$(scripts/build-extension.sh | tail -1)"
work="$(mktemp -d /var/tmp/sqlite-tde-suite.XXXXXX)"
trap 'rm -rf "$work"' EXIT
gcc -shared -fPIC "$tools/suite_preload.c" -lsqlite3 -ldl -o "$work/suite_preload.so"
mkdir -m 700 "$work/keys" "$work/memory"
tde=(env "LD_PRELOAD=$work/suite_preload.so" "SUITE_VFS_LIB=$library" SUITE_VFS_NAME=tde
  SUITE_VFS_ENTRY=sqlite3_tdedefault_init "SQLITE_TDE_HOME=$work/keys")
