# Versions of SQLite to test with; sourced by other scripts, with the repository as working directory.
#
# Old and new amalgamations come from the crate libsqlite3-sys, which ships one in each version. What is
# compiled from them is kept in target/hosts. Needs cargo, gcc, python3.
hosts_dir="${CARGO_TARGET_DIR:-$PWD/target}/hosts"
mkdir -p "$hosts_dir"

# What Debian compiles SQLite with.
debian_options="-DSQLITE_SECURE_DELETE -DSQLITE_ENABLE_COLUMN_METADATA -DSQLITE_ENABLE_FTS3
  -DSQLITE_ENABLE_FTS3_PARENTHESIS -DSQLITE_ENABLE_FTS5 -DSQLITE_ENABLE_RTREE -DSQLITE_SOUNDEX
  -DSQLITE_ENABLE_UNLOCK_NOTIFY -DSQLITE_ENABLE_DBSTAT_VTAB -DSQLITE_USE_URI
  -DSQLITE_MAX_SCHEMA_RETRY=25 -DSQLITE_ENABLE_PREUPDATE_HOOK -DSQLITE_ENABLE_SESSION
  -DSQLITE_ENABLE_STMTVTAB -DSQLITE_LIKE_DOESNT_MATCH_BLOBS -DSQLITE_MAX_VARIABLE_NUMBER=250000
  -DSQLITE_ENABLE_LOAD_EXTENSION -DSQLITE_ENABLE_MATH_FUNCTIONS -DHAVE_ISNAN=1"

# crate_of SQLITE: the version of libsqlite3-sys that ships it.
crate_of() {
  case "$1" in
    3.35*) echo 0.22.2 ;;
    3.37*) echo 0.23.2 ;;
    3.39*) echo 0.25.2 ;;
    3.41*) echo 0.26.0 ;;
    3.46*) echo 0.30.1 ;;
    3.49*) echo 0.32.0 ;;
    3.50*) echo 0.35.0 ;;
    3.51*) echo 0.36.0 ;;
    3.54*) echo 0.40.0 ;;
    *) echo "no version of libsqlite3-sys with SQLite $1 is known" >&2; return 1 ;;
  esac
}

# amalgamation SQLITE: the directory of its sqlite3.c.
amalgamation() {
  local crate dir
  crate="$(crate_of "$1")"
  dir="$hosts_dir/crate-$crate"
  mkdir -p "$dir/src"
  touch "$dir/src/lib.rs"
  # A workspace of its own: this directory lies in that of the project.
  printf '[workspace]\n[package]\nname = "host"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nlibsqlite3-sys = "=%s"\n' \
    "$crate" >"$dir/Cargo.toml"
  [ -e "$dir/Cargo.lock" ] || cargo fetch --quiet --manifest-path "$dir/Cargo.toml"
  cargo metadata --format-version 1 --offline --manifest-path "$dir/Cargo.toml" | python3 -c '
import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "libsqlite3-sys":
        print(os.path.join(os.path.dirname(package["manifest_path"]), "sqlite3"))'
}

# sqlite_object SQLITE [debian]: sqlite3.o of that version, compiled once.
sqlite_object() {
  local object="$hosts_dir/sqlite-$1${2:+-$2}.o" options=""
  if [ ! -e "$object" ]; then
    [ "${2:-}" != debian ] || options="$debian_options"
    # shellcheck disable=SC2086
    nice gcc -O1 -w -fPIC -DSQLITE_THREADSAFE=1 $options \
      -c "$(amalgamation "$1")/sqlite3.c" -o "$object.new"
    mv "$object.new" "$object"
  fi
  echo "$object"
}

# link_host PROGRAM SQLITE[:debian] FILE.C..: a program with that SQLite in it, or with the system's.
link_host() {
  local program="$1" version="${2%%:*}" options="" sqlite
  [[ "$2" != *:* ]] || options="${2#*:}"
  shift 2
  if [ "$version" = system ]; then
    gcc -O1 -g -Wall -Wextra -Werror "$@" -lsqlite3 -lpthread -ldl -lm -o "$program"
  else
    sqlite="$(sqlite_object "$version" ${options:+"$options"})"
    gcc -O1 -g -w -I"$(amalgamation "$version")" "$@" "$sqlite" -lpthread -ldl -lm -o "$program"
  fi
}

# sqlite_library SQLITE: a directory with libsqlite3.so.0 of that version, for LD_LIBRARY_PATH.
sqlite_library() {
  local dir="$hosts_dir/lib-$1" object
  if [ ! -e "$dir/libsqlite3.so.0" ]; then
    object="$(sqlite_object "$1" debian)"
    mkdir -p "$dir"
    gcc -shared -Wl,-soname,libsqlite3.so.0 "$object" -lpthread -ldl -lm -o "$dir/libsqlite3.so.new"
    mv "$dir/libsqlite3.so.new" "$dir/libsqlite3.so.0"
  fi
  echo "$dir"
}

# linked_sqlite: a directory for SQLITE3_LIB_DIR whose libsqlite3.so stands for the system's SQLite and what
# rusqlite calls and an old SQLite lacks. Programs need it in LD_LIBRARY_PATH.
linked_sqlite() {
  local dir="$hosts_dir/linked"
  mkdir -p "$dir"
  if [ tests/hosts/missing.c -nt "$dir/libsqlite3.so" ]; then
    gcc -O1 -Wall -Wextra -Werror -shared -fPIC tests/hosts/missing.c -lpthread \
      -o "$dir/libsqlite3missing.so"
    printf 'INPUT(%s %s)\n' "$(gcc -print-file-name=libsqlite3.so)" "$dir/libsqlite3missing.so" \
      >"$dir/libsqlite3.so"
  fi
  echo "$dir"
}

# Installs what is missing of the system's SQLite, its headers and its shell.
need_system_sqlite() {
  if ! { command -v gcc && command -v sqlite3 && command -v pkg-config \
    && [ -e /usr/include/sqlite3.h ]; } >/dev/null; then
    { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libsqlite3-dev \
      pkg-config sqlite3; } >/dev/null
  fi
}
