# SPDX-License-Identifier: MIT
"""Markdown from results: tables of medians with their spread, ratios, geometric means; the page RESULTS.md."""
from .allocators import BASE, OURS, UNPINNED
from .measure import geometric_mean, median
from .plot import number

MIB = 1 << 20

# Rows among the real programs that are of our own making: in no mean that a goal is about.
OWN_PROGRAMS = ("many threads",)


def table(header, rows, left=1):
    """A markdown table; the first `left` columns are words, the others numbers."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * left + ["---:"] * (len(header) - left)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def value(row, column, quantity="time"):
    """The median of a cell; None where there is none."""
    samples = row["cells"].get(column, {}).get(quantity)
    return median(samples) if samples else None


def with_spread(samples, scale=1.0):
    """A median, and how far the extremes lie apart: half of that, in percent."""
    middle = median(samples)
    spread = 50 * (max(samples) - min(samples)) / middle if middle else 0
    return f"{number(middle / scale)} ±{spread:.0f}%" if len(samples) > 1 else number(middle / scale)


def names_of(suite):
    """The columns that can be shown. Ours without placement is always one: results of before have no figures of it."""
    names = [column["name"] for column in suite["columns"] if not column["absent"]]
    return names + [UNPINNED] if OURS in names and UNPINNED not in [column["name"] for column in suite["columns"]] else names


def peers_of(suite):
    return [name for name in names_of(suite) if name not in (OURS, UNPINNED)]


def label_of(row):
    return row.get("label") or row["name"].replace("_", " ") + (" (our own)" if row["name"] in OWN_PROGRAMS else "")


def main_rows(suite):
    """The rows that geometric means are made of: all but those of series, which tell one thing many times."""
    return [row for row in suite["rows"] if not row.get("series")]


def time_rows(suite):
    return [row for row in main_rows(suite) if row.get("kind", "time") == "time"]


def start_rows(suite):
    """Those about what a program pays that does nothing."""
    return [row for row in main_rows(suite) if row.get("kind") == "start"]


def held_rows(suite):
    """Those about what is held at a moment, and no time: an unlike thing to peaks, and in no mean with them."""
    return [row for row in main_rows(suite) if row.get("kind") == "memory"]


def others_programs(rows):
    return [row for row in rows if row["name"] not in OWN_PROGRAMS]


def peak_of(row, column):
    """Bytes at most, of any row."""
    return value(row, column, "peak")


def memory_of(row, column):
    """Bytes: the figure of a row about memory, else the peak beside the time."""
    if row.get("kind") == "memory":
        figure = value(row, column)
        return None if figure is None else figure * MIB
    return value(row, column, "peak")


def mean_ratio(rows, over, under, of=value):
    """The geometric mean of the ratios of two columns, and how many rows have both. None where there is none."""
    ratios = [of(row, over) / of(row, under) for row in rows if of(row, over) and of(row, under)]
    return (geometric_mean(ratios), len(ratios)) if ratios else (None, 0)


def best_row(rows, of=value, under=BASE):
    """The row that does most for the mean of ours over another's: a mean without it is never better. None where fewer than two are left."""
    ratios = {row["name"]: of(row, OURS) / of(row, under) for row in rows if of(row, OURS) and of(row, under)}
    if len(ratios) < 3:
        return None
    return min((row for row in rows if row["name"] in ratios), key=lambda row: ratios[row["name"]])


def means_of(rows, of=value):
    """(label, rows) of the means that stand below a table: of all; without our own programs; without the best row."""
    yield f"geometric mean, {BASE} = 1", rows
    theirs = others_programs(rows)
    if len(theirs) < len(rows):
        yield "without our own", theirs
    best = best_row(theirs, of)
    if best:
        yield f"{'and ' if len(theirs) < len(rows) else ''}without our best, {label_of(best)}", [row for row in theirs if row is not best]


def best_peer(rows, suite, of=value):
    """The peer whose geometric mean is the least, among those that have most rows. Returns: name, or None."""
    means = {name: mean_ratio(rows, name, BASE, of) for name in peers_of(suite)}
    most = max((count for _, count in means.values()), default=0)
    return min((mean, name) for name, (mean, count) in means.items() if count == most and mean is not None)[1] if most else None


def compare_table(suite, rows, of=value, show=None, unit=None, means=True):
    """Rows by allocators, the least of each row bold, with ours over jemalloc's, the best peer's, and ours without placement; below, where
    that is wanted, geometric means."""
    names = names_of(suite)
    show = show or (lambda row, name: with_spread(row["cells"][name]["time"]))
    lines = []
    for row in rows:
        found = {name: of(row, name) for name in names if of(row, name) is not None}
        least = min(found.values(), default=None)
        cells = []
        for name in names:
            if name in found:
                shown = show(row, name)
                cells.append(f"**{shown}**" if found[name] == least else shown)
            else:
                cells.append(row["absent"].get(name, "-"))
        peers = [found[name] for name in peers_of(suite) if name in found]
        ratios = [number(found[OURS] / found[BASE]) if OURS in found and BASE in found else "-",
                  number(found[OURS] / min(peers)) if OURS in found and peers else "-",
                  number(found[OURS] / found[UNPINNED]) if OURS in found and found.get(UNPINNED) else "-"]
        lines.append([label_of(row), unit or row["unit"], *cells, *ratios])
    if means:
        lines += [_mean_line(suite, label, part, of) for label, part in means_of(rows, of)]
    return table(["", "", *names, f"{OURS} / {BASE}", f"{OURS} / best peer", f"{OURS} / pin:none"], lines, 2)


def _mean_line(suite, label, rows, of):
    means = {name: mean_ratio(rows, name, BASE, of) for name in names_of(suite)}
    shown = [("-" if mean is None else number(mean) + ("" if count == len(rows) else f" ({count} rows)")) for mean, count in means.values()]
    best = best_peer(rows, suite, of)
    ours, _ = mean_ratio(rows, OURS, BASE, of)
    over_best, _ = mean_ratio(rows, OURS, best, of) if best else (None, 0)
    over_unpinned, _ = mean_ratio(rows, OURS, UNPINNED, of)
    return [label, "", *shown, number(ours) if ours else "-", f"{number(over_best)} ({best})" if over_best else "-",
            number(over_unpinned) if over_unpinned else "-"]


def memory_table(suite, rows):
    return compare_table(suite, rows, memory_of, lambda row, name: number(memory_of(row, name) / MIB), "MiB")


def p99_of(row, column):
    return value(row, column, "p99")


def columns_of(rows):
    """All columns that have cells, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row["cells"]))


def row_table(rows):
    """Of a suite without allocators. One column: median and extremes. More: their medians, the least bold, and ours over the best other."""
    columns = columns_of(rows) or [OURS]
    lines = []
    for row in rows:
        if not row["cells"]:
            lines.append([f"`{row['name']}`", "", next(iter(row["absent"].values()), "-"), *[""] * max(len(columns), 2)])
        elif len(columns) == 1:
            cell = next(iter(row["cells"].values()))
            extremes = cell.get("extremes", cell["time"])
            lines.append([f"`{row['name']}`", row["unit"], number(median(cell["time"])), number(min(extremes)), number(max(extremes))])
        else:
            found = {name: value(row, name) for name in row["cells"]}
            least = min(found.values())
            cells = [(f"**{number(found[name])}**" if found[name] == least else number(found[name])) if name in found else "-"
                     for name in columns]
            others = [found[name] for name in found if name != OURS]
            ratio = number(found[OURS] / min(others)) if OURS in found and others and min(others) > 0 else "-"
            lines.append([f"`{row['name']}`", row["unit"], *cells, ratio])
    return table(["", "", *(["median", "least", "most"] if len(columns) == 1 else [*columns, f"{OURS} / best"])], lines, 2)


def ops_tables(rows):
    """The operations as ways of counting by where they are, and sums beside copying the same bytes."""
    places = ["program/loop", "program/call", "program/work", "library/loop", "library/call", "one_thread", "thread_per_cpu", "four_per_cpu"]
    found = {}
    reading = {}
    for row in rows:
        place, _, way = row["name"].rpartition("/")
        if place in places and value(row, OURS):
            found.setdefault(way, {})[place] = value(row, OURS)
        elif row["name"].startswith(("sum/", "memcpy/")) and value(row, OURS):
            what, units, count = row["name"].split("/")
            reading.setdefault((int(units), int(count)), {})[what] = value(row, OURS)
    places = [place for place in places if any(place in cells for cells in found.values())]
    if found:
        yield table(["ns a step", *places], [[f"`{way}`", *(number(cells[place]) if place in cells else "-" for place in places)]
                                             for way, cells in found.items()])
    if reading:
        yield table(["CPUs (units)", "counters", "sum, ns", "memcpy of the same bytes, ns", "memcpy / sum"],
                    [[f"{units}", f"{count:,}", number(cells.get("sum", 0)), number(cells.get("memcpy", 0)),
                      number(cells["memcpy"] / cells["sum"]) if len(cells) == 2 else "-"] for (units, count), cells in sorted(reading.items())])


def figure(name, what):
    return f"![{what}](plots/{name}.svg)"


def series_of(suite, name, of=value):
    """{column: [(x, y), ...]} of the rows of a series."""
    found = {}
    for row in suite["rows"]:
        if row.get("series") == name:
            for column in names_of(suite):
                y = of(row, column)
                if y:
                    found.setdefault(column, []).append((row["x"], y))
    return {column: sorted(points) for column, points in found.items()}


def allocator_section(suite, plots):
    timed = time_rows(suite)
    parts = [f"## {suite['title']}", suite["about"]]
    parts += [figure(name, what) for name, what in plots]
    if timed:
        parts += ["### Time", "Medians, ± half the distance between least and most; the least of a row is bold.", compare_table(suite, timed)]
    if start_rows(suite):
        parts += ["### Start", "In no mean with the times above.", compare_table(suite, start_rows(suite), means=False)]
    if any(memory_of(row, name) for row in timed for name in names_of(suite)):
        parts += ["### Peak memory", "Peak resident memory in MiB beside the times above.", memory_table(suite, timed)]
    if held_rows(suite):
        parts += ["### Memory held", "Resident memory in MiB of a process that waits.", memory_table(suite, held_rows(suite))]
    waits = [row for row in timed if any(p99_of(row, name) for name in names_of(suite))]
    if waits:
        parts += ["### Slow requests", "The time in which 99 % of the requests were answered, as the client saw it.",
                  compare_table(suite, waits, p99_of, lambda row, name: with_spread(row["cells"][name]["p99"]), "us")]
    described = [f"- *{label_of(row)}*: {row['what']}" for row in suite["rows"] if row.get("what") and not row.get("series")]
    if described:
        parts += ["<details><summary>What each row does</summary>", "\n".join(described), "</details>"]
    return parts


def row_section(suite, plots):
    parts = [f"## {suite['title']}", suite["about"], *(figure(name, what) for name, what in plots)]
    if suite["name"] == "ops":
        parts += ops_tables(suite["rows"])
    programs = {}
    for row in suite["rows"]:
        programs.setdefault(row.get("program", ""), []).append(row)
    for rows in programs.values():
        if len(rows) > 40:
            parts += [f"<details><summary>All {len(rows)} rows</summary>", row_table(rows), "</details>"]
        else:
            parts.append(row_table(rows))
    return parts


def page(results, goals, plots):
    """RESULTS.md. goals: (figure, goal, measured, spread, verdict); plots: {suite: [(file, what it shows)]}."""
    machine = results["machine"]
    parts = ["# Results",
             "Written by `scripts/bench` from `results.json`; do not edit. [README.md](README.md) tells what is measured and how to read it.",
             f"{machine['processor']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, Linux {machine['kernel']}, {machine['libc']}, "
             f"{machine['compiler']}, {machine['date']}; commit {machine['commit']}."
             + (" A quick run: every figure is from a tenth of the work." if results["quick"] else "")]
    if machine.get("virtual"):
        parts[-1] += " A virtual machine that shares its processor with others: ratios hold where times do not."
    if goals:
        said = [verdict.strip("*") for *_, verdict in goals]
        counts = [f"{said.count(word)} {word}" for word in ("held", "missed", "undecided") if word != "undecided" or word in said]
        counts += [f"{said.count('-')} not measured in this run"] if "-" in said else []
        parts += ["## Goals", ", ".join(counts) + ". [README.md](README.md#how-it-is-measured) has the rule.",
                  table(["figure", "goal", "measured", "round by round", ""], goals, 5)]
    columns = {}
    for suite in results["suites"].values():
        for column in suite["columns"]:
            columns[column["name"]] = column
    for suite in results["suites"].values():
        with_allocators = len(suite["columns"]) > 1
        parts += (allocator_section if with_allocators else row_section)(suite, plots.get(suite["name"], []))
        more = suite.get("goal_rounds", suite["rounds"]) - suite["rounds"]
        under = f" under {', '.join(suite['goal_columns'])}" if suite.get("goal_columns") else ""
        parts.append(f"{suite['rounds']} round{'s' if suite['rounds'] != 1 else ''}, in turn"
                     + (f", and {more} more of the rows that goals are about{under}." if more else ".")
                     + (" Ended before its time, so rows have fewer samples, or are missing." if "ended" in suite else ""))
    if len(columns) > 1:
        parts += ["## Allocators", table(["", "version"], [[name, column["absent"] or column["version"]] for name, column in columns.items()], 2)]
    return "\n\n".join(parts) + "\n"
