"""Compares two runs of sqllogictest files: slt_summary.py STOCK TDE GENERATED EXPLAINED

STOCK and TDE hold `file TAB what slt.py said`; files under GENERATED must pass whole, all others must
come to the same in both. Ends with status 1 on a difference that EXPLAINED does not list.
"""
import os
import re
import sys


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return dict(line.rstrip("\n").split("\t", 1) for line in file)


def counted(said):
    found = re.search(r"1 files, (\d+) records, (\d+) failures", said)
    return (int(found[1]), int(found[2])) if found else None


stock, tde, generated, explained = sys.argv[1:]
stock, tde = read(stock), read(tde)
with open(explained, encoding="utf-8") as lines:
    reasons = dict(line.rstrip("\n").split("\t", 1) for line in lines if not line.startswith("#"))

groups, bad = {}, 0
for file, said in tde.items():
    ours = file.startswith(generated)
    group = "generated" if ours else re.search(r"/([a-z][a-z-]*?)-\d[^/]*/", file)[1]
    tally = groups.setdefault(group, dict(files=0, records=0, passed=0, whole=0, other=0))
    tally["files"] += 1
    counts = counted(said)
    if counts is None:
        tally["other"] += 1
    else:
        tally["records"] += counts[0]
        tally["passed"] += counts[0] - counts[1]
        tally["whole"] += counts[0] > 0 and counts[1] == 0
    same = stock.get(file, "").replace("stock.db", "tde.db") == said
    if same and not (ours and (counts is None or counts[1])):
        continue
    name = os.path.basename(file)
    if name in reasons:
        print(f"{name}: explained: {reasons[name]}")
    else:
        bad += 1
        print(f"{file}: UNEXPLAINED\n    stock: {stock.get(file)}\n    tde:   {said}")

for group, tally in groups.items():
    print(f"{group}: {tally['files']} files, {tally['records']} records: {tally['passed']} pass, "
          f"{tally['records'] - tally['passed']} are not SQLite's dialect; {tally['whole']} files pass "
          f"whole, {tally['other']} are not in SQLite's format")
print(f"{len(tde)} files, {bad} differ from the stock VFS without a reason")
sys.exit(1 if bad or len(tde) != len(stock) or not tde else 0)
