# SPDX-License-Identifier: MIT
"""From results.json to RESULTS.md and the plots."""
import json

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
    rows += [(f"{label}, held" if held and label[:4] != "mean" else label, cells)
             for label, cells in _ratios(suite, held, mean_label="mean of what is held")]
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


def _of_ops(suite):
    rows = {row["name"]: report.value(row, OURS) for row in suite["rows"]}
    wanted = [(name[len("program/loop/"):], value) for name, value in rows.items() if name.startswith("program/loop/") and value]
    keep = ["percpu_add", "thread_local", "one_instruction", "atomic", "sched_getcpu", "librseq_add", "liburcu_counter", "rocksdb_record_tick",
            "contended"]
    bars = [(name, dict(wanted)[name]) for name in keep if name in dict(wanted)]
    for name, value in rows.items():
        if name.endswith("/contended") and value and "contended" not in dict(bars):
            bars.append((f"contended ({name.split('/')[0].replace('_', ' ')})", value))
            break
    if len(bars) > 1:
        yield ("ops", "What counting costs, by way of counting",
               plot.bars("What one count costs", "eight counters in turn, in a loop; shorter is faster", bars, "ns of CPU time a step",
                         {"percpu_add"}))


def _family(suite, prefix):
    """{column: [(x, ns)]} from rows named PREFIX/x."""
    series = {}
    for row in suite["rows"]:
        start, _, x = row["name"].rpartition("/")
        if start == prefix and x.isdigit() and row["unit"] == "ns":
            for column in row["cells"]:
                series.setdefault(column, []).append((int(x), report.value(row, column)))
    return {column: sorted(points) for column, points in series.items() if len(points) > 1}


def _of_alloc(suite):
    drawn = [
        ("live", "Time of an allocation and its free over the number of live areas",
         "Allocation over the number of live areas", "8 bytes on 2 CPUs, taken and given back; lower is faster", "live areas", "ns a pair"),
        ("units", "Time of an allocation and its free over the number of CPUs that it is laid out for",
         "Allocation over the number of CPUs", "8 bytes, zeroed, laid out for that many; lower is faster", "CPUs (units)", "ns a pair"),
        ("threads", "Time of an allocation and its free over the number of threads",
         "Allocation over the number of threads", "8 bytes; each thread's own time, so a level line is perfect up to one thread per CPU",
         "threads", "ns a pair of one thread"),
    ]
    for prefix, what, title, subtitle, x_axis, y_axis in drawn:
        series = _family(suite, prefix)
        if series:
            yield (f"alloc_{prefix}", what, plot.lines(title, subtitle, series, x_axis, y_axis))


def plots_of(results):
    """{suite: [(file without .svg, what it shows, the SVG)]}"""
    found = {}
    for name, suite in results["suites"].items():
        own = {"ops": _of_ops, "alloc": _of_alloc}.get(name)
        found[name] = list(own(suite) if own else _of_allocators(name, suite))
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
