# SPDX-License-Identifier: MIT
"""Markdown from results: tables of medians with their spread, ratios, geometric means; the page RESULTS.md."""
from .allocators import BASE, OURS, UNPINNED
from .measure import geometric_mean, median
from .plot import number
from .verdict import ratio_of

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


def ratio(row, over, under, quantity="time"):
    """Of two columns of a row, round by round. None where one has no such samples."""
    return ratio_of(row["cells"].get(over), row["cells"].get(under), quantity)


def least_of(row, names, quantity="time"):
    """The names with the least median, over the rounds that all of these have which have any; none where none has."""
    found = {name: row["cells"].get(name, {}).get(quantity) for name in names}
    found = {name: samples for name, samples in found.items() if samples}
    rounds = min(map(len, found.values()), default=0)
    medians = {name: median(samples[:rounds]) for name, samples in found.items()}
    least = min(medians.values(), default=None)
    return [name for name, one in medians.items() if one == least]


def with_spread(samples, scale=1.0, extremes=()):
    """A median, and how far the extremes lie apart: half of that, in percent. Of one round: the extremes of what was repeated within it."""
    middle = median(samples)
    ends = samples if len(samples) > 1 else extremes
    spread = f" ±{50 * (max(ends) - min(ends)) / middle if middle else 0:.0f}%" if ends else ""
    return number(middle / scale) + spread


def names_of(suite):
    """The columns that can be shown. Ours without placement is always one: results of before have no figures of it."""
    names = [column["name"] for column in suite["columns"] if not column["absent"]]
    return names + [UNPINNED] if OURS in names and UNPINNED not in [column["name"] for column in suite["columns"]] else names


def peers_of(suite):
    return [name for name in names_of(suite) if name not in (OURS, UNPINNED)]


def label_of(row):
    return row.get("label") or row["name"].replace("_", " ") + (" (our own)" if row["name"] in OWN_PROGRAMS else "")


def main_rows(suite):
    """The rows that geometric means are made of: all but those of series, which tell one thing many times, and what no allocator can save."""
    return [row for row in suite["rows"] if not row.get("series") and row.get("kind") != "floor"]


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


def mean_ratio(rows, over, under, quantity="time"):
    """The geometric mean of the ratios of two columns, and how many rows have both. None where there is none."""
    ratios = [one.value for one in (ratio(row, over, under, quantity) for row in rows) if one]
    return (geometric_mean(ratios), len(ratios)) if ratios else (None, 0)


def best_row(rows, quantity="time", under=BASE):
    """The row that does most for the mean of ours over another's: a mean without it is never better. None where fewer than two are left."""
    found = [(one.value, index) for index, one in enumerate(ratio(row, OURS, under, quantity) for row in rows) if one]
    return rows[min(found)[1]] if len(found) >= 3 else None


def means_of(rows, quantity="time"):
    """(label, rows) of the means that stand below a table: of all; of those with a time; without our own programs; without the best row."""
    yield f"geometric mean, {BASE} = 1", rows
    with_time = [row for row in rows if row.get("kind", "time") == "time"]
    if 0 < len(with_time) < len(rows):
        yield "of the rows with a time", with_time
    theirs = others_programs(rows)
    if len(theirs) < len(rows):
        yield "without our own", theirs
    best = best_row(theirs, quantity)
    if best:
        yield f"{'and ' if len(theirs) < len(rows) else ''}without our best, {label_of(best)}", [row for row in theirs if row is not best]


def best_peer(rows, suite, quantity="time"):
    """The peer whose geometric mean is the least, among those that have most rows. Returns: name, or None."""
    means = {name: mean_ratio(rows, name, BASE, quantity) for name in peers_of(suite)}
    most = max((count for _, count in means.values()), default=0)
    return min((mean, name) for name, (mean, count) in means.items() if count == most and mean is not None)[1] if most else None


# The ratios beside each row: what over what, and of which quantity (none: of the table's).
def _compared(cpu):
    return [(f"{OURS} / {BASE}", BASE, None), (f"{OURS} / best peer", "", None), (f"{OURS} / pin:none", UNPINNED, None),
            *([(f"CPU time, {OURS} / {BASE}", BASE, "cpu")] if cpu else [])]


def compare_table(suite, rows, quantity="time", unit=None, scale=1.0, means=True, cpu=False):
    """Rows by allocators, the least of each row bold, with the ratios of ours to jemalloc's, the best peer's, and ours without placement;
    cpu: of the CPU time too. Below, where that is wanted, geometric means."""
    names, peers = names_of(suite), peers_of(suite)
    compared = _compared(cpu)
    lines = []
    for row in rows:
        least = least_of(row, names, quantity)
        cells = []
        for name in names:
            samples = row["cells"].get(name, {}).get(quantity)
            shown = with_spread(samples, scale) if samples else row["absent"].get(name, "-")
            cells.append(f"**{shown}**" if name in least else shown)
        best = least_of(row, peers, quantity)
        ratios = [ratio(row, OURS, under or (best[0] if best else ""), of or quantity) for _, under, of in compared]
        lines.append([label_of(row), unit or row["unit"], *cells, *(number(one.value) if one else "-" for one in ratios)])
    if means:
        lines += [_mean_line(suite, label, part, quantity, compared) for label, part in means_of(rows, quantity)]
    return table(["", "", *names, *(head for head, *_ in compared)], lines, 2)


def _mean_line(suite, label, rows, quantity, compared):
    means = {name: mean_ratio(rows, name, BASE, quantity) for name in names_of(suite)}
    shown = [("-" if mean is None else number(mean) + ("" if count == len(rows) else f" ({count} rows)")) for mean, count in means.values()]
    best = best_peer(rows, suite, quantity)
    for _, under, of in compared:
        mean, _ = mean_ratio(rows, OURS, under or best, of or quantity)
        shown.append("-" if mean is None else number(mean) + ("" if under else f" ({best})"))
    return [label, "", *shown]


def with_peaks(suite):
    """The rows whose peaks are known: those with a time, and those about what is held."""
    return [row for row in main_rows(suite) if any(value(row, name, "peak") for name in names_of(suite))]


def peak_table(suite):
    return compare_table(suite, with_peaks(suite), "peak", "MiB", MIB)


def columns_of(rows):
    """All columns that have cells, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row["cells"]))


def row_table(rows):
    """Of a suite without allocators. One column: median and extremes. More: medians with their spread, the least bold, and ours over
    jemalloc's and the best other."""
    columns = columns_of(rows) or [OURS]
    alone = len(columns) == 1
    compared = [(f"{OURS} / {BASE}", BASE)] * (BASE in columns) + [(f"{OURS} / best", "")]
    width = 3 if alone else len(columns) + len(compared)
    lines = []
    for row in rows:
        if not row["cells"]:
            lines.append([f"`{row['name']}`", "", next(iter(row["absent"].values()), "-"), *[""] * (width - 1)])
        elif alone:
            cell = next(iter(row["cells"].values()))
            extremes = cell.get("extremes", cell["time"])
            lines.append([f"`{row['name']}`", row["unit"], number(median(cell["time"])), number(min(extremes)), number(max(extremes))])
        else:
            least = least_of(row, columns)
            shown = {name: with_spread(cell["time"], 1, cell.get("extremes", ())) for name, cell in row["cells"].items()}
            cells = [f"**{shown[name]}**" if name in least else shown.get(name, "-") for name in columns]
            best = least_of(row, [name for name in columns if name != OURS])
            ratios = [ratio(row, OURS, under or (best[0] if best else "")) for _, under in compared]
            lines.append([f"`{row['name']}`", row["unit"], *cells, *(number(one.value) if one else "-" for one in ratios)])
    return table(["", "", *(["median", "least", "most"] if alone else [*columns, *(head for head, _ in compared)])], lines, 2)


OPS_PLACES = ["program/loop", "program/call", "program/work", "library/loop", "library/call", "one_thread", "thread_per_cpu", "four_per_cpu"]
CONTENDED, CONTENDED_PLACES = "atomic_contended", ("thread_per_cpu", "four_per_cpu")  # elsewhere there is nobody to contend with
SUMS = [("sum", "sum, ns"), ("memcpy", "memcpy of the same bytes, ns"), ("memcpy_one", "memcpy into one buffer, ns")]


def ops_tables(rows):
    """The operations as ways of counting by where they are, with their ratios to thread_local's and librseq's; and sums beside copying the
    same bytes."""
    cells = {row["name"]: row["cells"].get(OURS) for row in rows}
    ways = dict.fromkeys(row["name"].rpartition("/")[2] for row in rows if row["name"].rpartition("/")[0] in OPS_PLACES)
    found = {way: {place: value(row, OURS) for row in rows for place in OPS_PLACES if row["name"] == f"{place}/{way}" and value(row, OURS)}
             for way in ways}
    found.get(CONTENDED, {}).update({place: None for place in OPS_PLACES if place not in CONTENDED_PLACES})
    places = [place for place in OPS_PLACES if any(place in times for times in found.values())]
    compared = [(place, other) for place in places for other in ("thread_local", "librseq_add")
                if place in ("program/loop", "program/call", "library/call") and cells.get(f"{place}/{other}")]

    def over(way, place, other):
        one = ratio_of(cells.get(f"{place}/{way}"), cells[f"{place}/{other}"]) if found[way].get(place) else None
        return number(one.value) if one else "-"
    if ways:
        yield table(["ns a step", *places],
                    [[f"`{way}`", *(number(times[place]) if times.get(place) else "-" for place in places)] for way, times in found.items()])
        yield table(["over another's", *(f"{place}, / {other}" for place, other in compared)],
                    [[f"`{way}`", *(over(way, *one) for one in compared)] for way in found])
    reading = sorted({tuple(map(int, name.split("/")[1:])) for name in cells if name.startswith("sum/")})
    if reading:
        lines = []
        for units, count in reading:
            of = {what: cells.get(f"{what}/{units}/{count}") for what, _ in SUMS}
            ratios = [ratio_of(of[what], of["sum"]) for what, _ in SUMS[1:]]
            lines.append([str(units), f"{count:,}", *(number(median(cell["time"])) if cell else "-" for cell in of.values()),
                          *(number(one.value) if one else "-" for one in ratios)])
        yield table(["CPUs (units)", "counters", *(head for _, head in SUMS), "memcpy / sum", "memcpy into one / sum"], lines)


def figure(name, what):
    return f"![{what}](plots/{name}.svg)"


def series_of(suite, name):
    """{column: [(x, y), ...]} of the rows of a series."""
    found = {}
    for row in suite["rows"]:
        if row.get("series") == name:
            for column in names_of(suite):
                y = value(row, column)
                if y:
                    found.setdefault(column, []).append((row["x"], y))
    return {column: sorted(points) for column, points in found.items()}


def allocator_section(suite, plots):
    timed = time_rows(suite)
    parts = [f"## {suite['title']}", suite["about"]]
    parts += [figure(name, what) for name, what in plots]
    if timed:
        parts += ["### Time", "Medians, ± half the distance between least and most; the least of a row is bold. Ratios are medians of the rounds' "
                  "ratios.", compare_table(suite, timed, cpu=suite["name"] == "programs")]
    for row in suite["rows"]:
        if row.get("kind") == "floor":
            parts += [f"Of *{label_of(row)}*, {with_spread(cell['time'])} {row['unit']}: {row['what']}" for cell in row["cells"].values()]
    if start_rows(suite):
        parts += ["### Start", "In no mean with the times above.", compare_table(suite, start_rows(suite), means=False)]
    if with_peaks(suite):
        parts += ["### Peak memory", "Peak resident memory in MiB of each row's process, of the rows about memory too.", peak_table(suite)]
    if held_rows(suite):
        parts += ["### Memory held", "Resident memory in MiB of a process that waits.", compare_table(suite, held_rows(suite))]
    waits = [row for row in timed if any(value(row, name, "p99") for name in names_of(suite))]
    if waits:
        parts += ["### Slow requests", "The time in which 99 % of the requests were answered, as the client saw it.",
                  compare_table(suite, waits, "p99", "us")]
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
        if len(rows) > 80:
            parts += [f"<details><summary>All {len(rows)} rows</summary>", row_table(rows), "</details>"]
        else:
            parts.append(row_table(rows))
    return parts


def machine_line(machine):
    """Where something was measured, and of which commit."""
    pages = machine.get("huge_pages")
    return (f"{machine['processor']}, {machine['cpus']} CPUs"
            + {True: " (some share a core)", False: " (none share a core)"}.get(machine.get("siblings"), "")
            + f", {machine['memory_gib']} GiB, Linux {machine['kernel']}"
            + (f" (transparent huge pages: {pages})" if pages else "")
            + (f", a first touch of a page {machine['fault_ns'] / 1000:.2g} us, a system call {machine['call_ns'] / 1000:.2g} us"
               if "fault_ns" in machine else "")
            + f", {machine['libc']}, {machine['compiler']}, {machine['date']}; commit {machine['commit']}."
            + (" A virtual machine that shares its processor with others: ratios hold where times do not." if machine.get("virtual") else ""))


def page(results, goals, plots):
    """RESULTS.md. goals: (figure, goal, measured, spread, verdict); plots: {suite: [(file, what it shows)]}."""
    parts = ["# Results",
             "Written by `scripts/bench` from `results.json`; do not edit. [README.md](README.md) tells what is measured and how to read it.",
             machine_line(results["machine"])
             + (" A quick run: every figure is from about a tenth of the work." if results["quick"] else "")]
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
        if suite.get("machine", results["machine"]) != results["machine"]:
            parts.append(f"Measured apart from the rest: {machine_line(suite['machine'])}")
        if suite.get("versions"):
            parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in suite["versions"].items()) + ".")
        more = suite.get("goal_rounds", suite["rounds"]) - suite["rounds"]
        under = f" under {', '.join(suite['goal_columns'])}" if suite.get("goal_columns") else ""
        parts.append(f"{suite['rounds']} round{'s' if suite['rounds'] != 1 else ''}, in turn"
                     + (f", and {more} more of the rows that goals are about{under}." if more else ".")
                     + (" Ended before its time, so rows have fewer samples, or are missing." if "ended" in suite else ""))
    if len(columns) > 1:
        parts += ["## Allocators", table(["", "version"], [[name, column["absent"] or column["version"]] for name, column in columns.items()], 2)]
    return "\n\n".join(parts) + "\n"
