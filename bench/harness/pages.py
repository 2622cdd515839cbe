# SPDX-License-Identifier: MIT
"""From results.json to RESULTS.md and the plots."""
import json
import re

from . import goals, plot, report
from .allocators import BASE, OURS

PLOT_FOLDER = "plots"


def as_json(results):
    """Small, and a row a line, so that two runs can be compared line by line."""
    def rounded(value):
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {key: rounded(one) for key, one in value.items()}
        return [rounded(one) for one in value] if isinstance(value, list) else value

    results = rounded(results)
    suites = []
    for name, suite in results["suites"].items():
        rows = ",\n   ".join(json.dumps(row) for row in suite["rows"])
        head = json.dumps({key: value for key, value in suite.items() if key != "rows"})
        suites.append(f" {json.dumps(name)}: {head[:-1]}, \"rows\": [\n   {rows}]}}")
    head = json.dumps({key: value for key, value in results.items() if key != "suites"})
    return f"{head[:-1]}, \"suites\": {{\n" + ",\n".join(suites) + "\n}}\n"


def _ratios(suite, rows, quantity="time", mean_label="geometric mean"):
    """Rows of ratios to jemalloc's figure for plot.dots(); the last is their mean, our own programs left out."""
    names = report.names_of(suite)
    found = []
    for row in rows:
        ratios = {name: report.ratio(row, name, BASE, quantity) for name in names}
        if ratios[BASE]:
            found.append((report.label_of(row), {name: one.value for name, one in ratios.items() if one}))
    for_mean = {name: report.mean_ratio(report.others_programs(rows), name, BASE, quantity) for name in names}
    most = max((count for _, count in for_mean.values()), default=0)
    if len(found) > 1:
        found.append((mean_label, {name: mean for name, (mean, count) in for_mean.items() if mean and count == most}))
    return found


def _of_allocators(name, suite):
    names = report.names_of(suite)
    if BASE not in names:
        return
    rows = _ratios(suite, report.time_rows(suite))
    if rows:
        yield (f"{name}_time", f"Time of each row of {suite['title']}, relative to jemalloc",
               plot.dots(f"{suite['title']}: time", f"relative to {BASE}; further left is faster", rows, names,
                         f"time, {BASE} = 1 (logarithmic)", BASE))
    held = report.held_rows(suite)
    rows = _ratios(suite, report.with_peaks(suite), "peak", "mean of peaks" if held else "geometric mean")
    of_held = [report.label_of(row) for row in held]
    rows = [(f"{label}, peak" if label in of_held else label, cells) for label, cells in rows]
    rows += _ratios(suite, held, mean_label="mean of what is held")
    if rows:
        yield (f"{name}_memory", f"Resident memory of each row of {suite['title']}, relative to jemalloc",
               plot.dots(f"{suite['title']}: resident memory", f"relative to {BASE}; further left is less", rows, names,
                         f"resident memory, {BASE} = 1 (logarithmic)", BASE))
    series = report.series_of(suite, "threads")
    if series:
        yield (f"{name}_threads", "Time of one replacement of a small block over the number of threads",
               plot.lines("Small churn over the number of threads", "the same work in all; lower is faster", series, "threads",
                          "ns a replacement", names))
    series = report.series_of(suite, "idle")
    if series:
        yield (f"{name}_idle", "Memory that is held over the number of threads that worked a while and wait",
               plot.lines("What idle threads hold", "resident memory of threads that worked a while and wait; lower is less", series,
                          "threads", "MiB", names))


# Ways of counting, as plots call them.
WAYS = {"percpu_add": OURS, "thread_local": "thread_local", "one_instruction": "one instruction", "atomic": "atomic, own", report.CONTENDED:
        "atomic, contended", "sched_getcpu": "array, sched_getcpu", "librseq_add": "librseq", "liburcu_counter": "liburcu",
        "rocksdb_record_tick": "RocksDB recordTick"}


def _of_ops(suite, cpus):
    rows = {row["name"]: report.value(row, OURS) for row in suite["rows"]}
    contended = rows.get(f"thread_per_cpu/{report.CONTENDED}")
    panels = []
    for place, heading in (("program/loop", "in a loop"), ("program/call", "each in a function that is called")):
        bars = [(WAYS[way], rows[f"{place}/{way}"]) for way in WAYS if way != report.CONTENDED and rows.get(f"{place}/{way}")]
        panels += [(heading, bars)] if bars else []
    if panels and contended:
        panels[0][1].append((f"{WAYS[report.CONTENDED]}, {cpus} threads", contended))
    if panels:
        yield ("ops", "What counting costs, by way of counting",
               plot.bars("What one count costs", "eight counters in turn; shorter is faster", panels, "ns of CPU time a step", {OURS}))
    places = (("one_thread", 1), ("thread_per_cpu", cpus), ("four_per_cpu", 4 * cpus))
    series = {label: [(x, rows[f"{place}/{way}"]) for place, x in places if rows.get(f"{place}/{way}") and (x > 1 or way != report.CONTENDED)]
              for way, label in WAYS.items() if way != "one_instruction"}
    series = {label: points for label, points in series.items() if len(points) > 1}
    if OURS in series:
        yield ("ops_threads", "What counting costs over the number of threads",
               plot.lines("What one count costs over the number of threads", "eight counters in turn, in a loop; a level line is perfect",
                          series, "threads", "ns of a thread's CPU time a step"))
    series = {label: sorted((int(name.split("/")[1]), ns) for name, ns in rows.items() if name.startswith(f"{what}/") and name.endswith("/1000") and ns)
              for what, label in (("memcpy", "memcpy"), ("memcpy_one", "memcpy into one"), ("sum", OURS))}
    series = {label: points for label, points in series.items() if len(points) > 1}
    if OURS in series:
        yield ("ops_sums", "Time of reading the sums of 1,000 counters over the number of CPUs",
               plot.lines("Reading the sums of 1,000 counters", "over the copies of that many CPUs; lower is faster", series, "CPUs (units)", "ns"))


def _family(suite, prefix):
    """{column: [(x, ns)]} from rows named PREFIX/x."""
    series = {}
    for row in suite["rows"]:
        start, _, x = row["name"].rpartition("/")
        if start == prefix and x.isdigit() and row["unit"] == "ns":
            for column in row["cells"]:
                series.setdefault(column, []).append((int(x), report.value(row, column)))
    return {column: sorted(points) for column, points in series.items() if len(points) > 1}


def _area_memory(suite, what, of):
    """(label, {column: bytes a live byte}) of the rows NxBxU [written] WHAT (bench_memory). of: what a figure is in live bytes."""
    found = []
    for row in suite["rows"]:
        match = re.fullmatch(rf"(\d+) x (\d+) x (\d+)( written)? {what}", row["name"])
        if match:
            count, size, units = (int(word) for word in match.groups()[:3])
            cells = {column: of(report.value(row, column), count * size * units) for column in row["cells"]}
            found.append((f"{count:,} x {size} x {units}{match[4] or ''}", {name: one for name, one in cells.items() if one > 0}))
    return [(label, cells) for label, cells in found if cells]


def _of_alloc(suite):
    drawn = [
        ("live", "Time of an allocation and its free over the number of live areas",
         "Allocation over the number of live areas", "8 bytes on 2 CPUs, taken and given back; lower is faster", "live areas", "ns a pair"),
        ("live_random", "Time of an allocation and its free over the number of live areas, many at once",
         "Allocation of many over the number of live areas", "200,000 areas of 8 bytes taken, then freed in random order; lower is faster",
         "live areas", "ns a pair"),
        ("units", "Time of an allocation and its free over the number of CPUs that it is laid out for",
         "Allocation over the number of CPUs", "8 bytes, zeroed, laid out for that many; lower is faster", "CPUs (units)", "ns a pair"),
        ("warm_burst", "Time of an allocation and its free in a warm burst over the number of CPUs that it is laid out for",
         "Allocation in bursts over the number of CPUs", "32 areas of 8 bytes, zeroed, taken and freed after a pause; lower is faster",
         "CPUs (units)", "ns a pair"),
        ("sustained", "Time of an allocation and its free that goes on over the number of CPUs that it is laid out for",
         "Sustained allocation over the number of CPUs", "8 bytes that all CPUs wrote to, CPU time of all threads; lower is faster",
         "CPUs (units)", "ns a pair"),
        ("threads", "Time of an allocation and its free over the number of threads",
         "Allocation over the number of threads", "8 bytes; each thread's own time, so a level line is perfect up to one thread per CPU",
         "threads", "ns a pair of one thread"),
    ]
    for prefix, what, title, subtitle, x_axis, y_axis in drawn:
        series = _family(suite, prefix)
        if series:
            yield (f"alloc_{prefix}", what, plot.lines(title, subtitle, series, x_axis, y_axis))
    names = report.columns_of(suite["rows"])
    for name, what, of, title, subtitle in (
            ("resident", "resident", lambda percent, _: percent / 100, "Memory of areas that live", "areas x bytes x copies; resident bytes for each byte of a copy"),
            ("left", "left", lambda kib, live: kib * 1024 / live, "Memory one second after all areas were freed",
             "areas x bytes x copies; resident bytes for each byte that lived")):
        rows = _area_memory(suite, what, of)
        if rows:
            yield (f"alloc_{name}", f"{title}, by scenario", plot.dots(title, f"{subtitle}; further left is less", rows, names,
                                                                       "resident / live bytes (logarithmic)"))


def plots_of(results):
    """{suite: [(file without .svg, what it shows, the SVG)]}"""
    found = {}
    for name, suite in results["suites"].items():
        if name == "ops":
            drawn = _of_ops(suite, suite.get("machine", results["machine"])["cpus"])
        else:
            drawn = _of_alloc(suite) if name == "alloc" else _of_allocators(name, suite)
        found[name] = list(drawn)
    return found


def render(results, out):
    """Writes out/RESULTS.md and out/plots/, and removes plots that are no more."""
    plots = plots_of(results)
    folder = out / PLOT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for drawn in plots.values():
        for name, _, svg in drawn:
            (folder / f"{name}.svg").write_text(svg)
    listed = {name: [(file, what) for file, what, _ in drawn] for name, drawn in plots.items()}
    (out / "RESULTS.md").write_text(report.page(results, goals.goals(results), listed))
