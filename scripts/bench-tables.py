#!/usr/bin/env python3
"""Makes the tables of the documents from what was measured.

    scripts/bench-tables.py            writes them into README.md and docs/performance.md
    scripts/bench-tables.py --check    fails where that would change something

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; NAME is one of TABLES below. Data
is in docs/plots/data. Where there is no data for a row, there is no row.
"""
import json, pathlib, re, statistics, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "docs/plots/data"
DOCUMENTS = ["README.md", "docs/performance.md"]
# At most this, as a ratio to plain SQLite, and the same with mmap_size set.
TARGETS = {
    "load": 1.00, "load_delete": 1.05, "index": 1.05, "point": 1.20, "point_auto": 1.10, "scan": 0.90,
    "scan2": 1.00, "commit_normal": 1.00, "commit_full": 1.00, "update": 1.10, "open": 1.30,
    "open_warm": 1.20, "vacuum": 1.10}
TARGETS_MMAP = {"point": 1.00}
MEAN = 1.00
ENGINES = {"sqlcipher": "SQLCipher", "mc-chacha": "SQLite3MC ChaCha20", "mc-aegis": "SQLite3MC AEGIS",
           "before": "ours, before", "tde": "ours", "tde-mmap": "ours, `mmap_size`"}
CLASSES = {"crypto": "crypto", "kernel": "kernel", "copies": "copies", "ours": "our code",
           "sqlite": "SQLite", "other": "other"}


def read(name):
    path = DATA / name
    return json.loads(path.read_text()) if path.exists() else None


def table(head, rows):
    names = sum(1 for cell in head if cell in ("workload", ""))
    align = ["---"] * names + ["---:"] * (len(head) - names)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, align, *rows])


def held(value, target):
    """A ratio; in bold where it is above its target."""
    return f"**{value:.2f}**" if target is not None and value > target + 0.005 else f"{value:.2f}"


def peers(name):
    data = read(f"peers-{name}.json")
    if data is None:
        return None
    workloads = data["workloads"]
    # The same on the commit before the work on speed, which was measured in memory alone.
    before = read("peers-before.json") if name == "memory" else None
    for workload, row in before["workloads"].items() if before else ():
        workloads[workload]["before"] = row["tde"]
    engines = [e for e in ENGINES if any(e in row for row in workloads.values())]
    rows = []
    for workload, target in TARGETS.items():
        row = workloads[workload]
        mmap = TARGETS_MMAP.get(workload)
        aims = {"tde": target, "tde-mmap": mmap}
        goal = f"{target:.2f}" + (f", {mmap:.2f}" if mmap else "")
        ratios = [held(row[e]["ratio"], aims.get(e)) if e in row else "" for e in engines]
        rows.append([workload, f"{row['plain']['ns']:,.0f}", *ratios, goal])
    mean = {e: statistics.geometric_mean([workloads[w][e]["ratio"] for w in TARGETS if e in workloads[w]])
            for e in engines}
    rows.append(["geometric mean", "", *(held(mean[e], MEAN if e == "tde" else None) for e in engines),
                 f"{MEAN:.2f}"])
    head = ["workload", "plain, ns", *(ENGINES[e] for e in engines), "at most"]
    return f"{table(head, rows)}\n\n{data['file_system']}, medians of {data['rounds']} rounds."


def stages(name):
    """What was measured before the work on speed and after it, where it was."""
    found = {stage: read(f"{name}-{stage}.json") for stage in ("before", "after")}
    return {stage: data for stage, data in found.items() if data is not None}


def budget():
    data = stages("budget")
    rows = []
    for workload in data["before"]:
        last = list(data.values())[-1]
        sides = [("plain", last[workload]["plain"])]
        sides += [(stage, of[workload]["tde"]) for stage, of in data.items()]
        for label, spent in sides:
            name = workload if label == "plain" else ""
            values = [spent[name] for name in CLASSES]
            rows.append([name, label, *(number(value) for value in [*values, sum(values)])])
    head = ["workload", "", *CLASSES.values(), "all"]
    return table(head, rows)


def number(value):
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


def instructions():
    data = stages("instructions")
    rows = []
    for workload in data["before"]:
        last = list(data.values())[-1]
        sides = [("plain", last[workload]["plain"])]
        sides += [(stage, of[workload]["tde"]) for stage, of in data.items()]
        for label, spent in sides:
            name = workload if label == "plain" else ""
            classes = ["crypto", "copies", "ours", "sqlite", "other"]
            rows.append([name, label, *(f"{spent[c]:,}" for c in classes)])
    return table(["workload", "", "crypto", "copies", "our code", "SQLite", "other"], rows)


def machine():
    lines = []
    for where in ("memory", "disk"):
        path = DATA / f"curves-{where}.jsonl"
        if path.exists():
            of = json.loads(path.read_text().splitlines()[0])
            lines.append(f"{of['cpu']}, {of['cores']} cores; {of['kernel']}; SQLite {of['sqlite']}; "
                         f"{where}: {of['file_system']}")
    return "\n".join(f"* {line}" for line in lines) or None


TABLES = {"memory": lambda: peers("memory"), "disk": lambda: peers("disk"), "budget": budget,
          "instructions": instructions, "machine": machine}


def main():
    changed = []
    for name in DOCUMENTS:
        path = ROOT / name
        old = text = path.read_text()
        for marker in re.findall(r"<!-- table:(\w+) -->", text):
            made = TABLES[marker]()
            if made is None:
                print(f"{name}: no data for the table {marker}", file=sys.stderr)
                continue
            pattern = rf"(<!-- table:{marker} -->\n).*?(<!-- /table:{marker} -->)"
            text = re.sub(pattern, lambda m: f"{m[1]}{made}\n{m[2]}", text, flags=re.S)
        if text != old:
            changed.append(name)
            if "--check" not in sys.argv:
                path.write_text(text)
    print("changed:", *changed or ["nothing"])
    if changed and "--check" in sys.argv:
        sys.exit(1)


if __name__ == "__main__":
    main()
