"""Searches what traced processes wrote; scripts/leaks.sh runs it.

    leaks.py REFERENCE CONTROL ENCRYPTED

are directories with `trace`, of strace, and `checksums`, which the traced work wrote beside it. The
work draws its random numbers from the same seed in each. REFERENCE, on plain SQLite, says which
checksums SQLite computes over plaintext; CONTROL, the same again, must show them and the rest;
ENCRYPTED must show nothing. `-shm` files are left out: that they hold one rolling checksum is
documented. Their names are the only ones that may be mapped for writing.
"""

import collections
import re
import sys

MARKER = b"zqxjkvwmarker7395canaryhpbfgy"  # tests/leaks.rs has the same
WINDOW = 8
SIGNS = {
    "marker": [MARKER[at : at + WINDOW] for at in range(len(MARKER) - WINDOW + 1)],
    "database header": [b"SQLite format 3"],
    "journal header": [bytes.fromhex("d9d505f920a163d7")],
    # magic, for either byte order of the checksums, and format version
    "log header": [bytes.fromhex("377f0682002de218"), bytes.fromhex("377f0683002de218")],
}
WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
CALL = re.compile(r"^\d+ +(\w+)\((.*)$")
FILE = re.compile(r"(-?\w+)<([^>]*)>")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
# The name of a super-journal at the end of a journal, which is documented: it ends with SQLite's magic.
NAMED = re.compile(rb"^[^\0]*-mj[0-9A-F]{9}.{8}" + re.escape(bytes.fromhex("d9d505f920a163d7")) + rb"$", re.S)
# Longest sign: enough of what was written just before, in another call, to see it across the two.
TAIL = 32


def unhex(text):
    return bytes.fromhex(text.replace("\\x", ""))


def kind_of(path):
    name = path.rsplit("/", 1)[-1].removesuffix(" (deleted)")
    if "-mj" in name:
        return "super-journal"
    if name.startswith(("etilqs_", "#")):  # SQLite deletes them at once; the system calls them so
        return "temporary"
    for end, kind in {"-shm": "shm", "-wal": "log", "-tdewal": "log", "-journal": "journal", ".db": "database"}.items():
        if name.endswith(end):
            return kind
    return "other"


def calls(directory):
    """Yields the name, path and arguments of each call on a regular file."""
    with open(f"{directory}/trace", encoding="ascii", errors="replace") as trace:
        for line in trace:
            call = CALL.match(line)
            if not call:
                continue
            name, rest = call.groups()
            file = FILE.search(rest)
            path = file.group(2) if file else ""
            if "\\x" in path:
                path = unhex(path).decode()
            yield name, path, rest


def writes(directory):
    """Yields kind and bytes of each write, with what came right before it in the file."""
    ends = {}
    for name, path, rest in calls(directory):
        if name not in WRITES or not path.startswith("/") or path.startswith(("/dev/pts", "/dev/null")):
            continue
        strings = STRING.findall(rest)
        if any(cut for _, cut in strings):
            sys.exit(f"a write to {path} was cut short in the trace")
        data = b"".join(unhex(text) for text, _ in strings)
        after = STRING.sub("", rest)
        offset = re.search(r", \d+, (\d+)\)? ", after + " ") if name.startswith("pwrite") else None
        at = int(offset.group(1)) if offset else None
        end, tail = ends.get(path, (None, b""))
        before = tail if at is not None and at == end else b""
        ends[path] = (at + len(data) if at is not None else None, (before + data)[-TAIL:])
        yield kind_of(path), before, data


def reference(directory):
    """The checksums that SQLite wrote: of a log's header and frames; of a journal's records, each
    with the next page's number, for four bytes alone would be found by chance."""
    logs, records, last = set(), set(), b""
    for kind, before, data in writes(directory):
        if kind == "log" and len(data) in (24, 32):
            logs.add(data[-8:])
        if kind == "journal":
            if len(data) == len(last) == 4 and before.endswith(last):
                records.add(last + data)
            last = data
    # A log's header is zeroed when it is cut down: that is no checksum.
    return logs - {bytes(8)}, records - {bytes(8)}


def search(directory, signs):
    """What was found, by kind of file; and calls and bytes searched."""
    found, searched = collections.Counter(), collections.defaultdict(lambda: [0, 0])
    eights = {sign for values in signs.values() for sign in values if len(sign) == 8}
    for kind, before, data in writes(directory):
        searched[kind][0] += 1
        searched[kind][1] += len(data)
        if kind == "shm":
            continue
        if kind == "journal" and NAMED.match(data):
            data = data[:-8]
        text = before + data
        pieces = {text[at : at + 8] for at in range(len(text) - 7)} & eights
        for name, values in signs.items():
            if any(value in pieces if len(value) == 8 else value in text for value in values):
                found[name, kind] += 1
    return found, searched


def mapped(directory):
    """Files other than shared memory that were mapped for writing."""
    return {
        path
        for name, path, rest in calls(directory)
        if name == "mmap" and "MAP_SHARED" in rest and "PROT_WRITE" in rest
        and kind_of(path) != "shm"
    }


def main(reference_dir, control_dir, encrypted_dir):
    logs, records = reference(reference_dir)
    signs = SIGNS | {"log checksum": logs, "journal checksum": records}
    failures = []
    with open(f"{encrypted_dir}/checksums", encoding="ascii") as lines:
        own = {bytes.fromhex(line) for line in lines.read().split()}
    if not own or not own <= logs:
        failures.append("the encrypted run's checksums are not those of the reference")
    for title, directory in (("plain", control_dir), ("encrypted", encrypted_dir)):
        found, searched = search(directory, signs)
        print(f"{title}: {len(logs)} log and {len(records)} journal checksums searched for")
        for kind, (number, length) in sorted(searched.items()):
            print(f"  {kind:14} {number:8} writes {length:12} bytes")
        for (name, kind), number in sorted(found.items()):
            print(f"  {name} in {number} writes to a {kind}")
        if title == "plain":
            wanted = {
                ("marker", kind) for kind in ("database", "journal", "log", "temporary")
            } | {
                ("database header", "database"), ("journal header", "journal"),
                ("log header", "log"), ("log checksum", "log"), ("journal checksum", "journal"),
            }
            failures += [f"plain SQLite must show: {name} in {kind}" for name, kind in wanted - set(found)]
        else:
            failures += [f"{name} in a {kind}" for name, kind in found
                         if (name, kind) != ("journal header", "super-journal")]
            missing = {"database", "journal", "log", "temporary", "super-journal", "shm"} - set(searched)
            failures += [f"nothing was written to a {kind}" for kind in missing]
        failures += [f"{title}: {path} is mapped for writing" for path in mapped(directory)]
    for failure in failures:
        print(f"FAILED: {failure}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
