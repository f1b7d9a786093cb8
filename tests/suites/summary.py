#!/usr/bin/env python3
"""What a run of somebody's test suite says: summary.py RESULTS EXPLAINED [LOGS]

RESULTS    name, status, errors, cases, seconds, failing cases apart by blanks; TAB between them
EXPLAINED  name, failing cases that have a reason (or patterns of them), the reason; TAB between them
LOGS       a directory with NAME.txt, to quote what went wrong

Lists each file that did not pass whole, and ends with status 1 if one of them has a failing case
without a reason, or a reason without a failing case.
"""
import os
import re
import sys
from fnmatch import fnmatchcase


def rows(path):
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                yield line.rstrip("\n").split("\t")


def quotes(logs, name):
    """Of the first failing cases the lines that say what was expected and what came, or the error."""
    path = os.path.join(logs, name + ".txt")
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    shown = 0
    for number, line in enumerate(lines):
        if re.match(r"! \S+ (expected|got)|Error: |suite_init:|.*: (unable|error|no such|invalid) ", line):
            before = lines[number - 1].strip() if number else ""
            where = before + " " if line.startswith("Error: ") else ""
            print("      " + (where + line)[:220])
            shown += 1
        if shown == 6:
            break
    if not shown:
        for line in lines[-3:]:
            print("      " + line[:220])


def main(results, explained, logs=None):
    reasons = {}
    for name, listed, reason in rows(explained):
        before = reasons.get(name, (set(), ""))
        reasons[name] = before[0] | set(listed.split()), "; ".join(filter(None, (before[1], reason)))
    ran, cases, passed, with_reason, without = 0, 0, 0, [], []
    for name, status, errors, tests, _seconds, failing in rows(results):
        ran += 1
        cases += max(int(tests), 0)
        allowed, reason = reasons.get(name, (set(), ""))
        failing = failing.split()
        if status == "pass":
            passed += 1
            if reason:
                without.append(name)
                print(f"{name}: passes, but {explained} has a reason why it does not")
            continue
        left = [case for case in failing if not any(fnmatchcase(case, one) for one in allowed)]
        fits = "*" in allowed or (failing and not left)
        (with_reason if fits else without).append(name)
        kind = "explained" if fits else "UNEXPLAINED"
        print(f"{name}: {status}, {errors} of {tests}, {kind}{': ' + reason if fits else ''}")
        if not fits:
            print("      " + " ".join(left)[:300])
            if logs:
                quotes(logs, name)
    print(f"{ran} files, {cases} cases: {passed} files pass, {len(with_reason)} explained, "
          f"{len(without)} unexplained")
    return 1 if without or not ran else 0


sys.exit(main(*sys.argv[1:]))
