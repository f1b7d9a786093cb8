#!/usr/bin/env python3
"""Compares the public API with docs/api.txt: every item of `cargo doc`, its signature, the traits
that it implements. `--update` writes the file; its diff is the change of the API that a commit
makes. Run it after `cargo doc --no-deps --package sqlite-tde --all-features`."""

import difflib
import html
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOC = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "doc/sqlite_tde"
KEPT = ROOT / "docs/api.txt"
# Traits that the compiler or a derive adds beside one that is listed.
IMPLIED = re.compile(r"!?(Freeze|UnwindSafe|RefUnwindSafe|Unpin|UnsafeUnpin|StructuralPartialEq)")
HEADER = re.compile(
    r'<section id="(impl|method|associatedconstant)[^"]*" class="([^"]*)">'
    r'(?:(?!</section>).)*?<h[34] class="code-header">(.*?)</h[34]>', re.S)


def text(markup):
    """The code in `markup`, without what rustdoc says about it."""
    markup = re.sub(r"<summary.*?</summary>", "", markup, flags=re.S)
    markup = markup.replace('<div class="where">', "\n").replace("</div>", "\n")
    plain = html.unescape(re.sub(r"<[^>]+>", "", markup)).replace("\xa0", " ").replace(" ⓘ", "")
    return "\n".join(line.rstrip() for line in plain.split("\n") if line.strip())


def trait_of(header):
    """The trait that `impl Trait for Type` names; `None` for an inherent impl."""
    found = re.match(r"(?:unsafe )?impl(?:<.*?>)? (.*) for ", header)
    return found and found[1]


def item(page):
    """The lines of one item, from its page."""
    page = page.split('<h2 id="blanket-implementations"')[0]
    declared = re.search(r'<pre class="rust item-decl"><code>(.*?)</code></pre>', page, re.S)
    lines, traits, inherent = text(declared[1]).split("\n"), set(), []
    is_trait = 'id="implementors"' in page
    for kind, classes, header in HEADER.findall(page):
        header = text(header)
        if kind == "impl":
            traits.add(trait_of(header.replace("\n", " ")) if not is_trait else "")
        elif "trait-impl" not in classes and not is_trait:
            inherent.append(re.sub(r"\s*\n\s*", " ", header))
    shown = sorted(trait for trait in traits if trait and not IMPLIED.fullmatch(trait))
    lines += [f"impl {', '.join(shown)}"] if shown else []
    return ["    " + line for line in lines + sorted(inherent)]


def listing():
    """All items, by path."""
    items = {}
    for link in re.findall(r'<li><a href="([^"#]+\.html)">', (DOC / "all.html").read_text()):
        *modules, name = link.removesuffix(".html").split("/")
        kind, name = name.split(".")
        path = "::".join(["sqlite_tde", *modules, name])
        items[f"{path} ({kind})"] = item((DOC / link).read_text())
    return "".join("\n".join([path, *items[path]]) + "\n\n" for path in sorted(items))


def main():
    """Prints the difference; exits with 1 where there is one."""
    if not (DOC / "all.html").exists():
        sys.exit("first: cargo doc --no-deps --package sqlite-tde --all-features")
    found = listing()
    if "--update" in sys.argv[1:]:
        KEPT.write_text(found)
        return
    kept = KEPT.read_text() if KEPT.exists() else ""
    lines = difflib.unified_diff(kept.splitlines(), found.splitlines(), "docs/api.txt", "cargo doc",
                                 lineterm="")
    difference = "\n".join(lines)
    if difference:
        sys.exit(f"{difference}\n\nthe public API has changed: if it should, "
                 "scripts/check-api.py --update and a line in CHANGELOG.md")
    print(f"the public API is that of docs/api.txt: {found.count(chr(10) * 2)} items")


if __name__ == "__main__":
    main()
