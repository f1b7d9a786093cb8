#!/usr/bin/env python3
"""Where the time of a workload goes: cryptography, kernel, copies, our own code, SQLite's.

    scripts/bench-profile.py PEERS LIBRARY OUT.json [--dir DIR] [--runs 7] [--workloads a,b]

PEERS is the directory that `peers.py setup` built, LIBRARY what `scripts/build-extension.sh` printed.
Each workload runs on plain SQLite and on `tde` in turns under `perf record -e cpu-clock`, which needs no
hardware counters. Samples count processor time of the process alone, so that others on the machine
disturb little. Only those within the measured part of a workload count: perf and the driver read the
same clock. No call graphs: the innermost function alone decides the class, and walking stacks costs
time of its own. OUT.json has nanoseconds of processor time per unit: medians over the runs.
"""
import argparse, collections, json, os, pathlib, re, shutil, statistics, subprocess, tempfile, time

# How often a workload is repeated in a process, so that there is enough to sample.
WORKLOADS = {"load": 1, "load_delete": 2, "index": 2, "point": 2, "point_mmap": 2, "point_auto": 1,
             "scan": 5, "scan2": 5, "commit_normal": 1, "commit_full": 5, "update": 1, "open": 30,
             "open_warm": 60, "vacuum": 2}
CLASSES = ["crypto", "kernel", "copies", "ours", "sqlite", "other"]
KERNEL_COPIES = re.compile(
    r"_copy_(to|from)_iter|copy_(folio|page)|copy_(to|from)_user|rep_movs|memmove|memcpy|clear_(user|page)")
LIBC_COPIES = re.compile(r"mem(move|cpy|set|pcpy)")
LIBC_CALLS = re.compile(r"p?(read|write)(64|v)?$|__libc_|sync$|fcntl|ftruncate|fstat|clock_gettime|syscall")
CIPHERS = re.compile(r"^<?(aes|ctr|hmac|sha2|hkdf|cipher|digest|aws_lc_rs|polyval|ghash|block_buffer)\b")
SAMPLE = re.compile(r"\s*([\d.]+):\s+(\d+)\s+\S+\s+[0-9a-f]+\s+(.*?)\s+\(([^()]*|\[[^()]*\])\)\s*$")


def class_of(symbol, binary):
    """The class of a sample, by its innermost function and the file that this is in."""
    name = os.path.basename(binary)
    if "kernel" in binary or binary == "[vdso]":
        return "copies" if KERNEL_COPIES.search(symbol) else "kernel"
    if name.startswith("libsqlite3"):
        return "sqlite"
    if name.startswith("libc"):
        if LIBC_COPIES.search(symbol):
            return "copies"
        return "kernel" if LIBC_CALLS.search(symbol) else "other"
    if name.endswith(".so"):
        if CIPHERS.match(symbol):
            return "crypto"
        # What Rust compiled has paths; aws-lc is C and assembler.
        rust = "::" in symbol or symbol.startswith(("_", "<")) or symbol == "[unknown]"
        return "ours" if rust else "crypto"
    return "other"


def measured(command, env, out):
    """Runs the driver under perf. Answers, per report, from when to when it measured, and units."""
    parts = []
    perf = ["perf", "record", "-q", "-k", "CLOCK_MONOTONIC", "-F", "10000", "-e", "cpu-clock",
            "-o", str(out), "--"]
    with subprocess.Popen(perf + command, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            end = time.clock_gettime(time.CLOCK_MONOTONIC)
            _, _, ns, units = line.split()
            parts.append((end - float(ns) * int(units) / 1e9, end, int(units)))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: failed")
    return parts


def classes(recording, parts):
    """Nanoseconds per unit of each class, and of each function of the shim."""
    text = subprocess.run(
        ["perf", "script", "--ns", "-i", str(recording), "-F", "time,period,event,ip,sym,dso"],
        check=True, capture_output=True, text=True).stdout
    units = sum(part[2] for part in parts)
    spent = collections.Counter()
    for line in text.splitlines():
        found = SAMPLE.match(line)
        if not found:
            continue
        at, period, symbol, binary = found.groups()
        if any(start <= float(at) <= end for start, end, _ in parts):
            spent[class_of(symbol, binary)] += int(period)
    return {name: spent[name] / units for name in CLASSES}


def run(a, kind, workload, dir):
    """One run of a workload on a new database."""
    mmap = workload.endswith("_mmap")
    name = workload.removesuffix("_mmap")
    uri = f"file:{dir}/t.db" + ("?vfs=tde" if kind == "tde" else "")
    extension = str(a.library) if kind == "tde" else "-"
    setup = f"PRAGMA mmap_size={1 << 30}" if mmap and kind == "tde" else ""
    env = dict(os.environ, LD_LIBRARY_PATH=str(a.peers / "plain"))
    env.setdefault("SQLITE_TDE_HOME", str(a.peers / "tde-home"))
    driver = [str(a.peers / "peers"), kind, uri, setup, extension]
    if name != "load":
        subprocess.run(driver + ["load", str(a.rows)], env=env, check=True, capture_output=True)
    recording = dir / "perf.data"
    work = ",".join([name] * WORKLOADS[workload])
    return classes(recording, measured(driver + [work, str(a.rows)], env, recording))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("peers", type=pathlib.Path)
    p.add_argument("library", type=pathlib.Path)
    p.add_argument("out", type=pathlib.Path)
    p.add_argument("--dir", default="/dev/shm")
    p.add_argument("--runs", type=int, default=7)
    p.add_argument("--rows", type=int, default=100000)
    p.add_argument("--workloads", default=",".join(WORKLOADS))
    a = p.parse_args()
    a.peers, a.library = a.peers.resolve(), a.library.resolve()
    got = collections.defaultdict(list)
    for _ in range(a.runs):
        for workload in a.workloads.split(","):
            for kind in ("plain", "tde"):
                dir = pathlib.Path(tempfile.mkdtemp(prefix="profile-", dir=a.dir))
                got[workload, kind].append(run(a, kind, workload, dir))
                shutil.rmtree(dir)
    out = json.loads(a.out.read_text()) if a.out.exists() else {}
    for (workload, kind), runs in got.items():
        row = {name: round(statistics.median(run[name] for run in runs), 1) for name in CLASSES}
        out.setdefault(workload, {})[kind] = row
        print(f"{workload:14}{kind:6}" + "".join(f"{name} {row[name]:9.1f}  " for name in CLASSES)
              + f"all {sum(row.values()):9.1f}")
    a.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
