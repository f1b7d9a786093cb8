#!/usr/bin/env python3
"""Comments that a reader of this repository cannot use: lines of more than 100 columns, and references
to lists that are not in it, such as a number of a trap, a fault or a guarantee."""
import pathlib
import re
import subprocess
import sys

COLUMNS = 100
COMMENTS = {".rs": r"//.*", ".c": r"//.*|/?\*.*", ".h": r"//.*|/?\*.*", ".sh": r"#.*", ".py": r"#.*"}
TREES = ("src", "crates", "tests", "benches", "examples")
REFERENCE = re.compile(r"\b(?:T[0-9]{1,2}\b(?! *[,=(])|[A-F][0-9]{1,2}\b(?!-)|[Gg]uarantees? [0-9])")
# Words that look like one: a hexadecimal byte, a name of Unicode's.
MEANT = re.compile(r"0x|U\+|\bC[01] control|\bC2SP|\bF[1-9][0-9]?\b(?= key)")

found = []
for name in subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", *TREES], text=True).split():
    path = pathlib.Path(name)
    comment = COMMENTS.get(path.suffix)
    if comment is None or not path.is_file():
        continue
    for number, line in enumerate(path.read_text().splitlines(), 1):
        whole = re.match(rf"\s*(?:{comment})", line)
        if whole and len(line) > COLUMNS:
            found.append(f"{path}:{number}: {len(line)} columns")
        part = re.search(rf"(?:^|\s)({comment})", line)
        if part and REFERENCE.search(part[1]) and not MEANT.search(part[1]):
            found.append(f"{path}:{number}: refers to a list that is not here: {part[1].strip()}")
print("\n".join(found) or "comments: ok")
sys.exit(bool(found))
