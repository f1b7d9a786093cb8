#!/usr/bin/env python3
"""Imports between the top-level modules of src/ go down this table, never up or sideways, so that there
is no circle either. Tests are not looked at. `--all` prints every import between modules."""
import pathlib
import re
import sys

LAYERS = """
    internals extension
    connection keys
    options
    vfs
    command
    db
    file
    config
    key
    page
    nonce
    io
    settings
    audit
    provider
    table
    suite
    secret
    error
    process
    ffi
"""
SRC = pathlib.Path(__file__).resolve().parent.parent / "src"
rank = {}
for number, line in enumerate(LAYERS.strip().splitlines()):
    rank.update((name, number) for name in line.split())


def code(path):
    """The lines outside comments, strings and unit tests, joined, with the number of the first."""
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', path.read_text())
    text = re.sub(r"//[^\n]*", "", text)
    # A unit test module at the end of a file.
    return re.split(r"#\[cfg\((?:all\()?test\b[^\]]*\]\s*mod \w+ \{", text)[0]


def leaves(tree):
    """The first names in the braces of `use crate::{..}`."""
    depth, name = 0, ""
    for character in tree:
        if character in "{}":
            depth += 1 if character == "{" else -1
        if character == "," and depth == 0:
            yield name.strip()
            name = ""
        else:
            name += character
    yield name.strip()


# What the root exports: name to module.
exported = {}
for module, names in re.findall(r"pub use (\w+)(::[^;]+);", code(SRC / "lib.rs")):
    for name in re.findall(r"(\w+)(?=\s*[,;}]|$)", names):
        exported[name] = module

found = {}
unknown = set()
for path in sorted(SRC.rglob("*.rs")):
    parts = path.relative_to(SRC).with_suffix("").parts
    if parts == ("lib",) or any(part == "tests" for part in parts):
        continue
    source = parts[0]
    if source not in rank:
        unknown.add(source)
        continue
    # `super` of a file leads out of its folder; `mod.rs` is its folder.
    depth = len(parts) - (parts[-1] == "mod")
    text = code(path)
    roots = r"crate|" + "::".join(["super"] * depth)
    targets = re.findall(rf"(?<![\w:])(?:{roots})::(\w+)", text)
    for tree in re.findall(rf"(?<![\w:])(?:{roots})::\{{(.*?)\}};", text, re.S):
        targets += [re.match(r"\w+", leaf)[0] for leaf in leaves(tree) if leaf]
    for target in targets:
        target = exported.get(target, target)
        if target in rank and target != source:
            found.setdefault((source, target), set()).add(str(path.relative_to(SRC.parent)))

if "--all" in sys.argv:
    for pair in sorted(found, key=lambda pair: (rank[pair[0]], rank[pair[1]])):
        print(*pair, *sorted(found[pair]))
wrong = [f"src/{name}: no layer in the table of {pathlib.Path(__file__).name}" for name in sorted(unknown)]
for (source, target), files in sorted(found.items()):
    if rank[source] >= rank[target]:
        wrong.append(f"{source} imports {target}, which is not beneath it: {', '.join(sorted(files))}")
print("\n".join(wrong) or "imports: ok")
sys.exit(bool(wrong))
