#!/usr/bin/env bash
# Databases that others made, through `sqlite-tde` and back.
#
#   proj.db        coordinate systems: many small tables, triggers, foreign keys    (proj-data)
#   world_map.gpkg country outlines: a GeoPackage with R-Trees and large blobs      (qgis-common)
#   wubi.db        an input method's table: one wide table, Chinese text, indexes   (ibus-table-wubi)
#   search.db      made here of proj.db's rows: FTS5 over names, R-Tree over areas. A short search
#                  found no package with a ready FTS5 database: real rows, a schema of ours.
#   large.db       made here: proj.db's biggest tables copied until it has 100 MB
#
# The first three are files of Debian packages, fetched with apt-get and kept in the user's cache, or
# taken from where the package is installed. For each database:
#
#   1. encrypt; 2. `PRAGMA integrity_check` answers the same through the encrypted file; 3. so does
#   count(*) of every table; 4. none of 50 or more strings that stand in the plaintext file stands
#   anywhere in the encrypted one; 5. verify; 6. decrypt, and the dump is the original's.
#
# Needs cargo and python3; dpkg-deb and apt-get for what is neither cached nor installed.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/sqlite-tde"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$cache"
export SQLITE_TDE_HOME="$work/keys"

cargo build --release --quiet --bin sqlite-tde </dev/null
tde="${CARGO_TARGET_DIR:-target}/release/sqlite-tde"

download() { (cd "$1" && apt-get download "$2") >>"$work/apt.log" 2>&1; }

# fetch PACKAGE PATH NAME: puts the file PATH of PACKAGE into the cache as NAME.
fetch() {
  local package="$1" path="$2" name="$3" into="$work/$1"
  [ -s "$cache/$name" ] && return
  if [ -s "/$path" ]; then
    cp "/$path" "$work/$name"
  else
    mkdir -p "$into"
    download "$into" "$package" \
      || { apt-get update >>"$work/apt.log" 2>&1 && download "$into" "$package"; } \
      || { cat "$work/apt.log" >&2; echo "cannot get $path of $package" >&2; exit 1; }
    dpkg-deb -x "$into"/*.deb "$into/root"
    cp "$into/root/$path" "$work/$name"
  fi
  mv "$work/$name" "$cache/$name"
}

fetch proj-data usr/share/proj/proj.db proj.db
fetch qgis-common usr/share/qgis/resources/data/world_map.gpkg world_map.gpkg
fetch ibus-table-wubi usr/share/ibus-table/tables/wubi-jidian86.db wubi.db

cat >"$work/tool.py" <<'PY'
"""What the script needs of plain SQLite: make, grow, dump, count, and pick strings to search for."""
import hashlib, os, sqlite3, sys

def connect(path, mode="ro"):
    db = sqlite3.connect(f"file:{path}?mode={mode}", uri=True)
    db.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    return db

def quote(name):
    return '"' + name.replace('"', '""') + '"'

def tables(db):
    sql = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
    return [name for (name,) in db.execute(sql).fetchall()]

def search(proj, path):
    db = connect(path, "rwc")
    db.execute("ATTACH ? AS proj", (proj,))
    db.executescript("""
        CREATE VIRTUAL TABLE place USING fts5(name, description);
        INSERT INTO place SELECT name, description FROM proj.extent;
        INSERT INTO place SELECT alt_name, table_name FROM proj.alias_name;
        INSERT INTO place(place) VALUES('optimize');
        CREATE VIRTUAL TABLE area USING rtree(id, west, east, south, north);
        INSERT INTO area SELECT row_number() OVER (), min(west_lon, east_lon), max(west_lon, east_lon),
            south_lat, north_lat FROM proj.extent WHERE south_lat <= north_lat;
    """)
    db.commit()

def grow(path, size):
    db = connect(path, "rw")
    biggest = sorted(tables(db), key=lambda t: -db.execute(
        f"SELECT count(*) FROM {quote(t)}").fetchone()[0])[:4]
    copies = 0
    while os.path.getsize(path) < size:
        for table in biggest:
            copy = quote(f"{table}_copy_{copies % 8}")
            if copies < 8:
                db.execute(f"CREATE TABLE {copy} AS SELECT * FROM {quote(table)}")
            else:
                db.execute(f"INSERT INTO {copy} SELECT * FROM {quote(table)}")
        db.commit()
        copies += 1

def dump(path):
    digest = hashlib.sha256()
    for line in connect(path).iterdump():
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    print(digest.hexdigest())

def count_sql(path):
    for table in tables(connect(path)):
        text = "'" + table.replace("'", "''") + "'"
        print(f"SELECT {text} AS name, count(*) AS rows FROM {quote(table)};")

def counts(path):
    db = connect(path)
    for table in tables(db):
        print(table, db.execute(f"SELECT count(*) FROM {quote(table)}").fetchone()[0], sep=",")

def strings(db, plain, wanted):
    """Up to `wanted` different strings of 12 bytes or more that stand in `plain`, of all tables."""
    encoding = db.execute("PRAGMA encoding").fetchone()[0].lower().replace("utf-16", "utf-16-")
    rows = []
    for table in tables(db):
        try:
            cursor = db.execute(f"SELECT * FROM {quote(table)} LIMIT 400")
        except sqlite3.OperationalError:
            continue  # a virtual table of a module that this Python does not have
        rows.append([v for row in cursor for v in row if isinstance(v, (str, bytes))])
    rows.append([sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")])
    found = set()
    for index in range(max(map(len, rows))):
        for values in rows:
            value = values[index] if index < len(values) else b""
            if isinstance(value, str):
                value = value.encode(encoding, "surrogateescape")
            value = value[:32]
            if len(value) >= 12 and len(set(value)) >= 6 and value not in found and value in plain:
                found.add(value)
                if len(found) == wanted:
                    return found
    return found

def scan(original, encrypted):
    with open(original, "rb") as file:
        wanted = strings(connect(original), file.read(), 64)
    if len(wanted) < 50:
        sys.exit(f"only {len(wanted)} strings of {original} to search for")
    with open(encrypted, "rb") as file:
        ciphertext = file.read()
    for string in [b"SQLite format 3", b"CREATE TABLE", *wanted]:
        if string in ciphertext:
            sys.exit(f"plaintext in {encrypted}: {string!r}")
    print(len(wanted))

command, *arguments = sys.argv[1:]
if command == "grow":
    grow(arguments[0], int(arguments[1]))
else:
    globals()[command](*arguments)
PY
tool() { python3 "$work/tool.py" "$@"; }
fail() { echo "$1: $2" >&2; exit 1; }

cp "$cache/proj.db" "$cache/world_map.gpkg" "$cache/wubi.db" "$work/"
chmod u+w "$work"/*
tool search "$work/proj.db" "$work/search.db"
cp "$work/proj.db" "$work/large.db"
tool grow "$work/large.db" 100000000

for name in proj.db world_map.gpkg wubi.db search.db large.db; do
  plain="$work/$name" sealed="$work/$name.tde" back="$work/$name.back"
  "$tde" encrypt "$plain" "$sealed" 2>"$work/log" || fail "$name" "encrypt: $(cat "$work/log")"

  want="$(python3 -c 'import sqlite3, sys
for (line,) in sqlite3.connect(sys.argv[1]).execute("PRAGMA integrity_check"): print(line)' "$plain")"
  got="$("$tde" sql --read-only --format csv "$sealed" 'PRAGMA integrity_check' | tail -n +2)"
  [ "$want" = "$got" ] || fail "$name" "integrity_check: $got"

  # Each count comes with a header line and, from the second on, an empty line before that.
  tool count_sql "$plain" >"$work/counts.sql"
  tool counts "$plain" >"$work/want"
  "$tde" sql --read-only --format csv "$sealed" <"$work/counts.sql" \
    | grep -v -e '^name,rows$' -e '^$' >"$work/got"
  cmp -s "$work/want" "$work/got" || { diff "$work/want" "$work/got" >&2; fail "$name" "rows differ"; }

  strings="$(tool scan "$plain" "$sealed")"
  "$tde" verify "$sealed" >"$work/log" 2>&1 || fail "$name" "verify: $(cat "$work/log")"
  "$tde" decrypt "$sealed" "$back" 2>"$work/log" || fail "$name" "decrypt: $(cat "$work/log")"
  [ "$(tool dump "$plain")" = "$(tool dump "$back")" ] || fail "$name" "the dumps differ"

  printf '%-14s %11d bytes plain, %11d encrypted, %3d tables, %2d strings sought: ok\n' "$name" \
    "$(stat -c %s "$plain")" "$(stat -c %s "$sealed")" "$(wc -l <"$work/want")" "$strings"
  rm -f "$sealed" "$back"
done
