#!/usr/bin/env python3
"""Draws docs/plots/*.svg from docs/plots/data/curves-*.jsonl, which benches/curves.rs writes.

One picture per curve and place: above, the time of a unit of work on plain and on encrypted databases; below,
the ratio of encrypted to plain within a round. Points are medians over the rounds, bars go from the lower to
the upper quartile. The same data always gives the same bytes.

    scripts/bench-plots.py            draws
    scripts/bench-plots.py --check    fails where that would change something
"""
import json, math, pathlib, sys
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLOTS = ROOT / "docs/plots"
PLAIN, ENCRYPTED, INK, FAINT = "#2f6f9f", "#c2410c", "#24292f", "#d0d7de"
TITLES = {
    "size": ("Size of the database", "size of the database, MB", "log"),
    "pages": ("Size of pages", "page size, bytes", "log"),
    "threads": ("Readers at once, each with a connection of its own", "readers", "linear"),
    "transactions": ("Rows in a transaction", "rows in a transaction", "log"),
    "suites": ("Cipher suites", "", "names"),
}
# One panel: its plot area, and the room around it.
WIDE, TALL, RATIO_TALL, LEFT, GAP = 190, 150, 90, 52, 34
TOP, BOTTOM = 80, 58


def quartiles(values):
    ordered = sorted(values)
    def at(part):
        place = part * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        return low + (high - low) * (place - math.floor(place))
    return at(0.25), at(0.5), at(0.75)


def short(value):
    """A number in few characters."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def x_label(curve, x):
    if curve == "pages":
        return f"{x // 1024}k"
    return short(x) if isinstance(x, (int, float)) else x.replace("aes-256-", "")


def time_unit(largest):
    for size, unit in ((1e6, "ms"), (1e3, "µs")):
        if largest >= 2 * size:
            return size, unit
    return 1.0, "ns"


class Axis:
    """From values to places, and the values to mark."""

    def __init__(self, values, start, end, log=False, zero=False):
        self.log = log
        low, high = min(values), max(values)
        if log:
            self.marks = [10.0 ** n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
            if len(self.marks) <= 3:
                self.marks = sorted({m * f for m in self.marks for f in (1, 2, 5)})
                self.marks = [m for m in self.marks if low / 2 <= m <= high * 2]
        else:
            low = 0 if zero else low
            rough = (high - low) / 4 or 1
            step = 10 ** math.floor(math.log10(rough))
            step *= next(f for f in (1, 2, 2.5, 5, 10) if f * step >= rough * 0.999)
            first, last = math.floor(low / step), math.ceil(high / step)
            self.marks = [n * step for n in range(first, last + 1)]
        self.low, self.high = self.of(min(low, self.marks[0])), self.of(max(high, self.marks[-1]))
        self.start, self.end = start, end

    def of(self, value):
        return math.log10(value) if self.log else value

    def place(self, value):
        part = (self.of(value) - self.low) / ((self.high - self.low) or 1)
        return round(self.start + part * (self.end - self.start), 1)


class Picture:
    def __init__(self):
        self.out = []

    def text(self, x, y, words, anchor="middle", size=11, color=INK, weight=""):
        weight = f' font-weight="{weight}"' if weight else ""
        self.out.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{color}"{weight}>'
                        f"{escape(words)}</text>")

    def line(self, points, color, width=1.0, dash=""):
        dash = f' stroke-dasharray="{dash}"' if dash else ""
        where = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.out.append(f'<polyline points="{where}" fill="none" stroke="{color}" stroke-width="{width:g}"{dash}/>')

    def dot(self, x, y, color):
        self.out.append(f'<circle cx="{x:g}" cy="{y:g}" r="3" fill="{color}"/>')

    def grid(self, axis, left, label):
        for mark in axis.marks:
            y = axis.place(mark)
            self.line([(left, y), (left + WIDE, y)], FAINT, 0.7)
            self.text(left - 5, y + 3.5, label(mark), "end", 10)

    def series(self, xs, spread, axis, color, joined):
        """Medians, joined where values lie between them, and a bar from quartile to quartile at each."""
        places = [(x, axis.place(median)) for x, (_, median, _) in zip(xs, spread)]
        if joined:
            self.line(places, color, 1.6)
        for (x, y), (low, _, high) in zip(places, spread):
            self.line([(x, axis.place(low)), (x, axis.place(high))], color, 3.5)
            self.dot(x, y, color)


def panel(picture, curve, kind, left, workload, points, ratios):
    """One workload: times above, ratios below. `ratios` is the axis that all panels share."""
    unit_of_work = points[0]["unit"]
    plain = [quartiles(p["plain"]) for p in points]
    encrypted = [quartiles(p["encrypted"]) for p in points]
    size, unit = time_unit(max(q[1] for q in plain + encrypted))
    plain, encrypted = ([tuple(v / size for v in q) for q in side] for side in (plain, encrypted))
    values = [v for q in plain + encrypted for v in q]
    times = Axis(values, TOP + TALL, TOP, log=max(values) > 15 * min(values), zero=True)
    if kind == "names":
        xs = [left + WIDE * (n + 0.5) / len(points) for n in range(len(points))]
    elif len(points) == 1:
        xs = [left + WIDE / 2]
    else:
        axis = [math.log(p["x"]) if kind == "log" else p["x"] for p in points]
        xs = [round(left + 10 + (WIDE - 20) * (x - axis[0]) / (axis[-1] - axis[0]), 1) for x in axis]
    picture.text(left + WIDE / 2, TOP - 14, f"{workload}: {unit} a {unit_of_work}", weight="bold")
    picture.grid(times, left, short)
    joined = kind != "names"
    picture.series(xs, plain, times, PLAIN, joined)
    picture.series(xs, encrypted, times, ENCRYPTED, joined)
    picture.grid(ratios, left, lambda mark: f"{mark:.3g}")
    picture.text(left + WIDE / 2, TOP + TALL + GAP - 8, "encrypted / plain", size=10)
    one = ratios.place(1)
    picture.line([(left, one), (left + WIDE, one)], PLAIN, 1.4, "5 3")
    spread = [quartiles([e / p for p, e in zip(q["plain"], q["encrypted"])]) for q in points]
    picture.series(xs, spread, ratios, ENCRYPTED, joined)
    base = TOP + TALL + GAP + RATIO_TALL
    for x, point in zip(xs, points):
        picture.text(x, base + 16, x_label(curve, point["x"]), size=9.5)


def picture_of(curve, where, machine, points):
    title, x_title, kind = TITLES[curve]
    workloads = list(dict.fromkeys(p["workload"] for p in points))
    columns = len(workloads)
    width = columns * (WIDE + LEFT) + 24
    height = TOP + TALL + GAP + RATIO_TALL + BOTTOM
    picture = Picture()
    ratio = [v for p in points for v in quartiles([e / q for q, e in zip(p["plain"], p["encrypted"])])]
    bottom = TOP + TALL + GAP
    ratios = Axis([*ratio, 0.95, 1.05], bottom + RATIO_TALL, bottom)
    picture.text(12, 22, f"{title} ({where}: {machine['file_system']})", "start", 14, weight="bold")
    picture.dot(14, 37, PLAIN)
    picture.text(22, 41, "plain SQLite", "start")
    picture.dot(104, 37, ENCRYPTED)
    picture.text(112, 41, "encrypted. Points: medians; bars: lower to upper quartile.", "start")
    for n, workload in enumerate(workloads):
        chosen = [p for p in points if p["workload"] == workload]
        panel(picture, curve, kind, LEFT + n * (WIDE + LEFT), workload, chosen, ratios)
    for n in range(columns if x_title else 0):
        picture.text(LEFT + n * (WIDE + LEFT) + WIDE / 2, height - 24, x_title)
    note = f"{machine['cpu']}, {machine['cores']} cores; {machine['kernel']}; SQLite {machine['sqlite']}"
    picture.text(12, height - 8, note, "start", 9, "#57606a")
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">'
            f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff" stroke="{FAINT}"/>')
    return "\n".join([head, *picture.out, "</svg>"]) + "\n"


def main():
    changed = []
    for path in sorted((PLOTS / "data").glob("curves-*.jsonl")):
        where = path.stem.removeprefix("curves-")
        machine, *points = [json.loads(line) for line in path.read_text().splitlines()]
        for curve in TITLES:
            chosen = [p for p in points if p["curve"] == curve]
            if chosen:
                out = PLOTS / f"{curve}-{where}.svg"
                drawn = picture_of(curve, where, machine, chosen)
                if not out.exists() or out.read_text() != drawn:
                    changed.append(str(out.relative_to(ROOT)))
                    if "--check" not in sys.argv:
                        out.write_text(drawn)
    print("changed:", *changed or ["nothing"])
    if changed and "--check" in sys.argv:
        sys.exit(1)


if __name__ == "__main__":
    main()
