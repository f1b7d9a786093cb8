#!/usr/bin/env python3
"""Reads what callgrind counted of benches/instructions.rs, and compares it with scripts/bench-instructions.tsv.

    bench-instructions.py COUNTS LOG [--json FILE] [--update]

COUNTS is the start of callgrind's file names, LOG what the bench printed. See bench-instructions.sh.
"""
import argparse, collections, json, os, pathlib, re, sys

BOUNDS = pathlib.Path(__file__).with_suffix(".tsv")
SLACK = 1.25
CLASSES = ["crypto", "copies", "ours", "sqlite", "other"]
CRYPTO = re.compile(r"aws_lc|aead_|gcm|aesni|aes_hw|ghash|^skip_|vpaes|sha256|CRYPTO_|EVP_|OPENSSL"
                    r"|^<?(aes|ctr|hmac|sha2|hkdf|cipher|digest|aws_lc_rs|block_buffer)::")
COPIES = re.compile(r"^_*(__)?mem(move|cpy|set|pcpy)")


def class_of(function, binary):
    if COPIES.search(function):
        return "copies"
    if "libc" in os.path.basename(binary) or "ld-linux" in binary:
        return "other"
    if CRYPTO.search(function):
        return "crypto"
    if "sqlite_tde::" in function:
        return "ours"
    if "instructions::" in function:
        return "bench"
    # SQLite is the only other C; what is left of Rust is rusqlite and the standard library.
    return "other" if "::" in function or function.startswith(("_R", "_ZN", "__rust")) else "sqlite"


def classes(path):
    """The instructions of each class in one of callgrind's files: those of functions themselves."""
    spent, names = collections.Counter(), {"ob": {}, "fn": {}}
    at = {"ob": "", "fn": ""}
    called = False
    for line in path.read_text().splitlines():
        named = re.match(r"(c?)(ob|fn)=\((\d+)\)(?: (.*))?$", line)
        if named:
            of_callee, what, number, name = named.groups()
            if name:
                names[what][number] = name
            if not of_callee:
                at[what] = names[what][number]
        elif line.startswith("calls="):
            called = True  # the next line is what the callee cost
        elif re.match(r"[+*\d-]", line):
            if not called:
                spent[class_of(at["fn"], at["ob"])] += int(line.split()[1])
            called = False
    return spent


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("counts")
    p.add_argument("log", type=pathlib.Path)
    p.add_argument("--json", type=pathlib.Path)
    p.add_argument("--update", action="store_true")
    a = p.parse_args()
    counted = collections.defaultdict(dict)
    for number, line in enumerate(a.log.read_text().splitlines(), start=1):
        phase, workload, kind, units = line.split()
        if phase == "count":
            spent = classes(pathlib.Path(f"{a.counts}.{number}"))
            key = {"Plain": "plain", "Encrypted": "tde"}[kind]
            counted[workload][key] = {name: round(spent[name] / int(units)) for name in CLASSES}
    if not counted:
        sys.exit("nothing was counted")
    bounds = dict(line.split("\t") for line in BOUNDS.read_text().splitlines() if line[0] != "#")
    print(f"{'instructions a unit':20}{'plain':>9}{'tde':>9}{'crypto':>9}{'ours':>9}   without crypto, to plain")
    over = []
    for workload, sides in counted.items():
        plain, tde = sides["plain"], sides["tde"]
        total = sum(plain.values())
        if total == 0 or tde["ours"] == 0 or tde["crypto"] == 0:
            sys.exit(f"{workload}: a class has no instructions: were functions renamed? {sides}")
        ratio = (sum(tde.values()) - tde["crypto"]) / total
        bound = float(bounds.get(workload, "nan"))
        print(f"{workload:20}{total:9}{sum(tde.values()):9}{tde['crypto']:9}{tde['ours']:9}"
              f"   {ratio:.3f}, was {bound:.3f}")
        if not ratio <= bound * SLACK:
            over.append(workload)
        bounds[workload] = f"{ratio:.3f}"
    if a.json:
        a.json.write_text(json.dumps(counted, indent=1) + "\n")
    if a.update:
        BOUNDS.write_text("# workload, instructions of encrypted to plain without the cryptography\n"
                          + "".join(f"{w}\t{r}\n" for w, r in bounds.items()))
    elif over:
        sys.exit(f"more than {SLACK} times what it was: {', '.join(over)}")


if __name__ == "__main__":
    main()
