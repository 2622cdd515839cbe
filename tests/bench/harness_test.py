#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What bench/ promises, without measuring: patterns do their work and check their blocks, runs are interleaved, a missing program or peer
is a row that says so, and results.json gives the tables that it should.

ARGV: the build tree, the broken malloc (overlap.c), and which test.
"""
import concurrent.futures
import dataclasses
import importlib.machinery
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import harness  # noqa: E402
from harness import goals, machine, measure, native, pages, plot, report, verdict  # noqa: E402

BUILD, BROKEN = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
PROGRAM = BUILD / "bench" / "bench_malloc"
PRELOAD = BUILD / "preload" / "libpercpu_preload.so"


def equal(found, expected, what):
    if found != expected:
        sys.exit(f"{what}: found {found!r}, expected {expected!r}")


def check(good, what):
    if not good:
        sys.exit(what)


def raises(kind, work):
    try:
        work()
    except kind as problem:
        return str(problem)
    sys.exit(f"expected {kind.__name__}, found none")


def context():
    return harness.Context(ROOT, BUILD, pathlib.Path(tempfile.gettempdir()), [harness.Allocator("glibc")])


def patterns():
    """Each pattern, under glibc's malloc and under ours, gives a figure; and one that is handed overlapping blocks ends with a message."""
    names = subprocess.run([PROGRAM, "--list"], capture_output=True, text=True, check=True).stdout.split()
    equal(len(names), 15, "number of patterns")
    allocators = [harness.Allocator("glibc")] + ([harness.Allocator("libpercpu", str(PRELOAD))] if PRELOAD.exists() else [])
    here = context()
    jobs = [(name, allocator) for name in sorted(names, key=lambda name: name != "given_back") for allocator in allocators]

    def one(job):
        name, allocator = job
        told = json.loads(here.run([PROGRAM, name, "--scale", "0.002"], allocator).stdout)
        return told["pattern"] == name and told["figure"] > 0
    # given_back sleeps for three seconds: others run meanwhile.
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for job, good in zip(jobs, pool.map(one, jobs)):
            check(good, f"{job[0]} under {job[1].name} gives no figure")
    # Six repetitions, each as long as half of the work is to last, however little work there is.
    begin = time.monotonic()
    here.run([PROGRAM, "pair_floor", "--scale", "0.5"])
    check(time.monotonic() - begin > 6 * .05, f"six repetitions of 50 ms take {time.monotonic() - begin} s")
    # The cases of the suite are these patterns.
    sys.path.insert(0, str(ROOT / "bench" / "malloc"))
    import suite as malloc_suite
    used = {name for name, *_ in malloc_suite.PATTERNS} | {"pair_floor", "idle_threads", "given_back"}
    equal(used, set(names), "patterns of the suite")

    broken = harness.Allocator("broken", str(BROKEN))
    for name in ("batch", "small_churn"):
        told = raises(measure.Failed, lambda name=name: here.run([PROGRAM, name, "--scale", "0.002"], broken))
        check("does not hold what was written" in told, f"{name} with overlapping blocks says {told!r}")
    told = raises(measure.Failed, lambda: here.run([PROGRAM, "pair", "--scale", "no"]))
    check("expected a number" in told, f"--scale no says {told!r}")


def runs():
    """bench_launch tells wall and CPU time and peaks, passes status and signals on; what is missing or fails says so."""
    here = context()
    hungry = "b = bytearray(b'x') * (64 << 20)"
    run = here.run(["python3", "-c", hungry])
    check(64 << 20 < run.peak < 200 << 20, f"peak of 64 MiB: {run.peak}")
    check(0 < run.cpu and 0 < run.wall, f"times: {run.cpu} {run.wall}")
    small = here.run(["true"])
    check(small.peak < 8 << 20, f"peak of true: {small.peak}")
    # Two processes that have 64 MiB each at once.
    pair = f"import os, time\n{hungry}\nif os.fork() == 0:\n    for i in range(0, len(b), 4096): b[i] = 1\n    time.sleep(0.5)\nelse:\n    os.wait()"
    tree = here.run(["python3", "-c", pair], tree_ms=20)
    check(tree.peak > 128 << 20, f"peak of two processes of 64 MiB: {tree.peak}")
    check("is not installed" in raises(measure.Missing, lambda: here.run(["no-such-program"])), "a missing program")
    check("status 3: so it is" in raises(measure.Failed, lambda: here.run(["sh", "-c", "echo so it is; exit 3"])), "a status")
    check("SIGKILL" in raises(measure.Failed, lambda: here.run(["sh", "-c", "kill -KILL $$"])), "a signal")
    check("hangs" in raises(measure.Failed, lambda: here.run(["sleep", "100"], timeout=0.2)), "a hang")
    with here.start(["sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done"]) as server:
        while "up" not in server.output():
            pass
        equal(server.stop().stdout, "up\n", "output of a server that was asked to end")
    # The preload is for the program alone, also when it is a script's.
    equal(here.run(["sh", "-c", "echo $LD_PRELOAD"], harness.Allocator("x", str(BROKEN))).stdout.strip(), str(BROKEN), "LD_PRELOAD")
    found = harness.find_allocators(PRELOAD, [harness.given("none=/no/such.so")])
    equal([one.absent for one in found if one.name == "none"], ["/no/such.so does not exist"], "--with a file that is not there")
    ours = {one.name: one for one in found[-2:]}
    equal({name: one.settings for name, one in ours.items()}, {"libpercpu": {}, "libpercpu pin:none": {"PERCPU_CONF": "pin:none"}}, "ours")
    equal(here.run(["sh", "-c", "echo $PERCPU_CONF"], ours["libpercpu pin:none"]).stdout.strip(), "pin:none", "PERCPU_CONF")
    other = harness.given("a (b)=/x/lib.so.1,1.2, -O3,A_B=c=d,at 12ab")
    equal((other.name, other.library, other.settings), ("a (b)", "/x/lib.so.1", {"A_B": "c=d"}), "--with a version and a variable")
    equal(other.version, "1.2, -O3,at 12ab A_B=c=d", "what --with tells of it")
    check("not told" in harness.given("a=/x/lib.so").version, "--with no version")
    # What asks a server runs under glibc's malloc, also where that is not compared.
    here.allocators = [harness.Allocator("x", str(BROKEN))]
    equal(here.run(["sh", "-c", "echo $LD_PRELOAD"]).stdout.strip(), "", "LD_PRELOAD of a client")


def interleaving():
    """Cases run A B C C B A; a column that is absent or fails has a reason, once, and the others go on."""
    order = []

    def run(allocator):
        order.append(allocator.name)
        if allocator.name == "C" and len(order) > 3:
            raise measure.Failed("it broke")
        return {"time": float(len(order))}
    columns = [harness.Allocator(name) for name in "ABC"] + [harness.Allocator("D", absent="not installed")]
    suite = harness.Suite("s", "S", "about", columns, [harness.Case("row", "what", "ns", run), harness.Case("once", "", "ns", lambda _: {"time": 1}, rounds=1)])
    found = harness.measure_suite(suite, 3, tell=None)
    equal((found["rounds"], found.get("goal_rounds")), (3, None), "rounds without goals")
    equal("".join(order), "ABCCBAAB", "order of runs")
    row = found["rows"][0]
    equal(row["cells"], {"A": {"time": [1.0, 6.0, 7.0]}, "B": {"time": [2.0, 5.0, 8.0]}}, "samples")
    equal(row["absent"], {"C": "it broke"}, "reasons")
    equal(found["columns"][3]["absent"], "not installed", "reason of a column")
    equal(found["rows"][1]["cells"]["A"]["time"], [1], "samples of a case of one round")

    # Each run takes a second.
    order.clear()
    now = [0.0]

    def second(allocator):
        order.append(allocator.name)
        now[0] += 1
        return {"time": 1.0}
    cases = [harness.Case("row", "what", "ns", second, goal=True), harness.Case("other", "", "ns", second),
             harness.Case("twice", "", "ns", second, goal=True, rounds=2)]
    suite = harness.Suite("s", "S", "about", columns[:3], cases[:1], goal_columns=("B", "C"))
    found = harness.measure_suite(suite, 5, seconds=7, tell=None, clock=lambda: now[0])
    equal("".join(order), "ABCCBA", "order of runs where another round fits, and no third")
    equal((found["rounds"], found.get("goal_rounds")), (2, None), "rounds that fit")
    order.clear()
    now[0] = 0.0
    found = harness.measure_suite(dataclasses.replace(suite, cases=cases), 5, seconds=9, goal_rounds=4, tell=None, clock=lambda: now[0])
    equal("".join(order), "ABCABCABC" "CBCB" "BC" "CB", "order of runs: a round of all, and goal rounds")
    equal((found["rounds"], found["goal_columns"], found["goal_rounds"]), (1, ["B", "C"], 4), "rounds of what goals are about")
    equal([[len(row["cells"][name]["time"]) for name in "ABC"] for row in found["rows"]], [[1, 4, 4], [1, 1, 1], [1, 2, 2]], "samples of each")
    # A case of some columns is run under no others.
    order.clear()
    some = dataclasses.replace(suite, cases=[harness.Case("row", "what", "ns", second, columns=("B",), goal=True)], goal_columns=())
    rows = harness.measure_suite(some, 1, goal_rounds=2, tell=None, clock=lambda: now[0])["rows"]
    equal(("".join(order), list(rows[0]["cells"])), ("BB", ["B"]), "runs of a case of one column")
    # Rounds of all may be more than those of goals.
    order.clear()
    found = harness.measure_suite(suite, 3, goal_rounds=2, tell=None, clock=lambda: now[0])
    equal(("".join(order), found["rounds"], found.get("goal_rounds")), ("ABCCBAABC", 3, None), "three rounds of all")


def areas():
    """Rows of bench_alloc: those that goals are about are there, and a subject that cannot do what a row asks for is not in it."""
    program = BUILD / "bench" / "bench_alloc"
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    wanted = native.ALLOC_BESIDE_OTHERS + native.ALLOC_OF_OURS
    equal(set(wanted) - set(listed), set(), "rows of goals that there are not")
    with tempfile.TemporaryDirectory() as place:
        told = pathlib.Path(place) / "rows.json"

        def measured(*arguments):
            subprocess.run([program, "--quick", "--json", told, *arguments], capture_output=True, check=True)
            return {row["name"]: row["samples"] for row in json.loads(told.read_text())["rows"]}
        found = measured("--row", "align/8", "--row", "align/64", "--row", "warm_burst/64", "--subject", "percpu", "--subject", "calloc")
        equal(sorted(found), ["align/64 percpu", "align/8 calloc", "align/8 percpu", "warm_burst/64 calloc", "warm_burst/64 percpu"], "rows")
        check(all(len(samples) == 3 and min(samples) > 0 for samples in found.values()), f"samples: {found}")
        equal(list(measured("--only", "contiguous/2")), ["memset_contiguous/2 percpu", "memset_contiguous/256 percpu"], "rows of one subject")
    run = subprocess.run([program, "--row"], capture_output=True, text=True, check=False)
    check(run.returncode == 2 and "found '--row'" in run.stderr, f"bench_alloc --row says {run.stderr!r}")


def operations():
    """Rows of bench_ops: those that goals are about, in a goal round; and an atomic counter is contended where several threads are."""
    with tempfile.TemporaryDirectory() as place:
        told = pathlib.Path(place) / "rows.json"

        def measured(wanted):
            subprocess.run([BUILD / "bench" / "bench_ops", "--quick", f"--benchmark_filter={wanted}", "--json", told], capture_output=True, check=True)
            return {row["name"]: row["samples"] for row in json.loads(told.read_text())["rows"]}
        found = measured(native.OPS_OF_GOALS)
        wanted = {"program/loop/percpu_add", "program/loop/thread_local", *(f"{what}/256/1000" for what, _ in report.SUMS)}
        equal(set(found) - {"program/loop/librseq_add"}, wanted, "rows of a goal round")
        check(all(len(samples) == 3 and min(samples) > 0 for samples in found.values()), f"samples: {found}")
        alone = len(os.sched_getaffinity(0)) == 1
        found = measured("(contended|one_instruction)/|global_dynamic")
        found = {name: min(samples) for name, samples in found.items() if "one_instruction" not in name}
        wanted = {f"library/{how}/thread_local_global_dynamic" for how in ("loop", "call", "work")}
        equal(set(found), wanted | ({f"{place}/{report.CONTENDED}" for place in report.CONTENDED_PLACES} if not alone else set()), "contended rows")
        # What one step takes, however many threads and steps there are.
        check(all(.01 < least < 10_000 for least in found.values()), f"ns a step: {found}")


def programs():
    """A program that prints rows of its own: their columns, their medians; and what it says when it fails."""
    with tempfile.TemporaryDirectory() as place:
        here = context()
        here.work = pathlib.Path(place)
        script = here.work / "rows"
        script.write_text("""#!/bin/sh
[ "$1" = --json ] && cat > "$2" <<'END'
{"rows": [{"name": "live/10 percpu", "unit": "ns", "samples": [3, 1, 2]}, {"name": "live/10 librseq", "unit": "ns", "samples": [8]},
 {"name": "alone", "unit": "KiB", "samples": [5, 5]}]}
END
""")
        script.chmod(0o755)
        silent = here.work / "silent"
        silent.write_text("#!/bin/sh\nexit 0\n")
        silent.chmod(0o755)
        cases = [harness.Program("rows", [script], here), harness.Program("silent", [silent], here),
                 harness.Program("none", [here.work / "none"], here)]
        found = harness.measure_suite(harness.Suite("alloc", "A", "about", [], cases), 2, tell=None)
        told = here.work / "told"
        script.write_text(f'''#!/bin/sh
echo "$1 $2" >> {told}
[ "$1" = --only ] && shift 2
echo '{{"rows": [{{"name": "a percpu", "unit": "ns", "samples": [1]}}]}}' > "$2"
''')
        case = harness.Program("rows", [script], here, goals=(("--only", "a"), ("--only", "b")))
        rows = harness.measure_suite(harness.Suite("alloc", "A", "about", [], [case]), 1, goal_rounds=2, tell=None)["rows"]
        equal([line.split() for line in told.read_text().splitlines()][1:], [["--only", "a"], ["--only", "b"]], "runs of a goal round")
        equal(rows[0]["cells"]["libpercpu"]["time"], [1, 1, 1], "samples of rows and of goal rounds")
    once = [{"name": "live/10", "unit": "ns", "absent": {}, "cells": {"libpercpu": {"time": [4], "extremes": [3, 5]},
                                                                     "jemalloc": {"time": [2], "extremes": [2, 2]}, "calloc": {"time": [1]}}}]
    equal(report.row_table(once).splitlines()[::2], ["|  |  | libpercpu | jemalloc | calloc | libpercpu / jemalloc | libpercpu / best |",
          "| `live/10` | ns | 4.00 ±25% | 2.00 ±0% | **1.00** | 2.00 | 4.00 |"], "a row of one round")
    equal(report.row_table(found["rows"]), """\
|  |  | libpercpu | librseq | libpercpu / best |
| --- | --- | ---: | ---: | ---: |
| `live/10` | ns | **2.00 ±0%** | 8.00 ±0% | 0.250 |
| `alone` | KiB | **5.00 ±0%** | - | - |
| `silent` |  | wrote no rows |  |  |
| `none` |  | none was not built (package libbenchmark-dev) |  |  |""", "table of rows")


def drawn_of(rows, suite, unit):
    """{name: SVG} of the plots of a suite without allocators, from {row: figure}."""
    rows = [{"name": name, "unit": unit, "absent": {}, "cells": {"libpercpu": {"time": [figure]}}} for name, figure in rows.items()]
    results = {"machine": {"cpus": 2}, "suites": {suite: {"name": suite, "rows": rows}}}
    return {name: svg for name, _, svg in pages.plots_of(results)[suite]}


def tables():
    """From canned.json: medians, spread, ratios, means and verdicts, computed by hand; plots that are well-formed and the same each time."""
    results = json.loads((ROOT / "tests" / "bench" / "canned.json").read_text())
    equal(pages.as_json(results), pages.as_json(json.loads(pages.as_json(results))), "results.json read and written again")
    suite = results["suites"]["malloc"]
    expected = """\
|  |  | glibc | jemalloc | libpercpu | libpercpu pin:none | libpercpu / jemalloc | libpercpu / best peer | libpercpu / pin:none |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| pair 64 B | ns | 8.00 ±12% | 4.00 ±0% | **2.00 ±50%** | - | 0.500 | 0.500 | - |
| batch | ns | 10.0 | ends with signal SIGSEGV | **5.00** | - | - | 0.500 | - |
| large 5 to 25 MiB | us | **50.0 ±0%** | 200 ±0% | 100 ±0% | - | 0.500 | 2.00 | - |
| geometric mean, jemalloc = 1 |  | 0.707 (2 rows) | 1.00 (2 rows) | 0.500 (2 rows) | - | 0.500 | 0.606 (glibc) | - |"""
    # Fewer than three rows have both: no mean without the best.
    equal(report.compare_table(suite, report.time_rows(suite)), expected, "table of times")
    # Peaks of all rows that have one: of those about memory too, and a mean without them.
    equal(report.peak_table(suite).splitlines()[2:], [
        "| large 5 to 25 MiB | MiB | **100** | 200 | 150 | - | 0.750 | 1.50 | - |",
        "| 200 idle threads | MiB | 80.0 | 80.0 | **15.0** | - | 0.188 | 0.188 | - |",
        "| geometric mean, jemalloc = 1 |  | 0.707 | 1.00 | 0.375 | - | 0.375 | 0.530 (glibc) | - |",
        "| of the rows with a time |  | 0.500 | 1.00 | 0.750 | - | 0.750 | 1.50 (glibc) | - |"], "peaks")
    check("| 200 idle threads | MiB | 40.0 | 80.0 | **10.0** | - | 0.125 | 0.250 | - |" in report.compare_table(suite, report.held_rows(suite)), "held")
    equal([row["name"] for row in report.time_rows(suite) + report.held_rows(suite)], ["pair", "batch", "large", "idle_threads"], "rows")
    verdicts = {(figure, goal): (measured, said) for figure, goal, measured, _, said in goals.goals(results)}
    equal(verdicts["malloc and free of 64 B", "at most 0.75 times the best of jemalloc, tcmalloc, mimalloc"],
          ("0.500 (of jemalloc's); 1.00 ns of each are the loop and two calls", "held"), "a goal that was held")
    check("Of *pair 64 B*, 1.00 ±0% ns: no allocator's." in report.allocator_section(suite, []), "what no allocator can save is told")
    equal(verdicts["large blocks of 5 to 25 MiB", "at most 0.25 times jemalloc's time"], ("0.500", "**missed**"), "a goal that was missed")
    equal(verdicts["producer-consumer", "at most 0.25 times jemalloc's time"], ("not measured", "-"), "a goal without a row")
    equal(verdicts["malloc patterns, geometric mean of peak memory", "at most 0.8 times jemalloc"],
          ("0.375; 0.750 of the rows with a time", "undecided"), "the goal of peaks")

    def row(name, ours, theirs):
        return {"name": name, "unit": "s", "absent": {}, "cells": {
            column: {"time": [time] * 3, "peak": [time], "cpu": [time + 1]} for column, time in (("libpercpu", ours), ("jemalloc", theirs), ("glibc", 1))}}
    # By hand: of all the mean is 1/2, without our own 1, without the best row too 2.
    rows = [row("many threads", 1, 16), row("a", 1, 4), row("b", 2, 1), row("c", 2, 1)]
    programs = {**suite, "name": "programs", "columns": suite["columns"], "rows": rows}
    lines = report.compare_table(programs, rows).splitlines()
    equal([line.split(" | ")[-3] for line in lines if line.startswith(("| geo", "| with", "| and"))], ["0.500", "1.00", "2.00"], "means")
    check(lines[2].startswith("| many threads (our own) |"), f"our own program is told: {lines[2]}")
    check(lines[-1].startswith("| and without our best, a |"), f"the best row is told: {lines[-1]}")
    # Ours without placement is a column of its own, and never the best peer.
    rows[1]["cells"]["libpercpu pin:none"] = {"time": [.5] * 3}
    line = report.compare_table({**programs, "columns": [*suite["columns"], {"name": "libpercpu pin:none", "absent": ""}]}, rows).splitlines()[3]
    equal(line, "| a | s | 1.00 ±0% | 4.00 ±0% | 1.00 ±0% | **0.500 ±0%** | 0.250 | 1.00 | 2.00 |", "a row with placement and without")
    equal([line.split(" | ")[-1] for line in report.compare_table(programs, rows, cpu=True).splitlines()[2:5]], ["0.118 |", "0.400 |", "1.50 |"],
          "ratios of CPU time")
    told = {figure: (measured, said) for figure, _, measured, _, said in goals.goals({"suites": {"programs": programs}})}
    equal(told["Debian's programs, geometric mean of time"], ("1.00; 0.965 of CPU time; 0.500 with our own; 2.00 without a", "**missed**"),
          "the goal's mean")
    equal(told["Debian's programs, each row"], ("2.00 (b); 2.00 c, missed", "**missed**"), "the goal of each row")
    equal(told["Debian's programs, each row's memory"], ("2.00 (b); 2.00 c, undecided", "undecided"), "the goal of each row's memory")
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        written = []
        for place in (one, two):
            pages.render(results, pathlib.Path(place))
            written.append({str(file.relative_to(place)): file.read_text() for file in pathlib.Path(place).rglob("*.*") if file.is_file()})
        equal(written[0], written[1], "pages made twice")
        for name in ("RESULTS.md", "plots/malloc_time.svg", "plots/malloc_memory.svg", "plots/malloc_threads.svg"):
            check(name in written[0], f"{name} was not written")
        for name, words in written[0].items():
            if name.endswith(".svg"):
                xml.etree.ElementTree.fromstring(words)
    drawn = drawn_of({"program/loop/percpu_add": 1, "program/loop/atomic": 3, "program/call/percpu_add": 2, "thread_per_cpu/atomic_contended": 7,
                      "four_per_cpu/atomic_contended": 9, "one_thread/atomic_contended": 3, "one_thread/percpu_add": 1, "thread_per_cpu/percpu_add": 1, "four_per_cpu/percpu_add": 1,
                      "sum/2/1000": 5, "sum/64/1000": 6, "memcpy_one/2/1000": 4, "memcpy_one/64/1000": 8, "sum/2/1": 1}, "ops", "ns")
    equal(list(drawn), ["ops", "ops_threads", "ops_sums"], "plots of operations")
    words = [one.text for one in xml.etree.ElementTree.fromstring(drawn["ops"]).iter("{http://www.w3.org/2000/svg}text")]
    equal(words[2:12], ["in a loop", "libpercpu", "1.00", "atomic, own", "3.00", "atomic, contended, 2 threads", "7.00",
                        "each in a function that is called", "libpercpu", "2.00"], "words of the plot of operations")
    # One thread contends with nobody: of the contended line there are two points.
    equal([len(points.split()) for points in re.findall('<polyline points="([^"]*)"', drawn["ops_threads"])], [2, 3], "points of lines")
    drawn = drawn_of({"live_random/100": 1, "live_random/1000": 2, "warm_burst/2": 1, "warm_burst/256": 3}, "alloc", "ns")
    equal(list(drawn), ["alloc_live_random", "alloc_warm_burst"], "plots of times of areas")
    drawn = drawn_of({"1000 x 8 x 2 resident": 200, "1000 x 8 x 64 written resident": 50, "1000 x 8 x 2 left": 125}, "alloc", "%")
    equal(list(drawn), ["alloc_resident", "alloc_left"], "plots of the memory of areas")
    check("1,000 x 8 x 64 written" in drawn["alloc_resident"] and ">0.500<" in drawn["alloc_resident"] and ">8.00<" in drawn["alloc_left"],
          "figures of the memory of areas")
    equal([plot.number(value) for value in (0, .01234, .996, 9.996, 12.34, 123.4, 12345)],
          ["0", "0.0123", "0.996", "10.00", "12.3", "123", "12,345"], "three digits")


def verdicts():
    """A goal is held, missed or undecided by the same rule both ways: by the medians and by most of the rounds."""
    def cell(*times, **more):
        return {"time": list(times), **more}

    def said(ours, theirs, limit=1, **how):
        return verdict.verdict(verdict.ratio_of(ours, theirs), limit, **how)
    equal([verdict.needed(rounds) for rounds in (3, 4, 5, 8, 9, 17)], [3, 4, 5, 7, 8, 13], "rounds that have to agree")
    # 1, 1, 1 over these. In the last two a round disagrees with the medians.
    for theirs, expected in (((2, 4, 3), "held"), ((.5, .25, .9), "**missed**"), ((2, 4, .9), "undecided"), ((.5, .25, 2), "undecided")):
        equal(said(cell(1, 1, 1), cell(*theirs)), expected, f"verdict on 1, 1, 1 against {theirs}")
        turned = {"held": "**missed**", "**missed**": "held"}.get(expected, expected)
        equal(said(cell(*theirs), cell(1, 1, 1)), turned, f"verdict on {theirs} against 1, 1, 1")
        equal(said(cell(*theirs), cell(1, 1, 1), at_least=True), expected, f"verdict on at least, of {theirs}")
    # What slows a round slows both: the rounds agree, whatever the spread.
    equal(said(cell(1, 10, 3), cell(2, 20, 6), .6), "held", "rows that spread, ratios that do not")
    # Of nine rounds one may disagree, not two.
    equal(said(cell(*[1] * 9), cell(*[2] * 8, .5)), "held", "one of nine")
    equal(said(cell(*[1] * 9), cell(*[2] * 7, .5, .5)), "undecided", "two of nine")
    # One or two rounds: only where repetitions within them leave no doubt.
    equal(said(cell(1, 1), cell(2, 2)), "undecided", "two rounds")
    equal(said(cell(1, extremes=[.9, 1.2]), cell(2, extremes=[1.3, 2])), "held", "repetitions that all hold")
    equal(said(cell(2, extremes=[1.3, 2]), cell(1, extremes=[.9, 1.2])), "**missed**", "repetitions of which none holds")
    equal(said(cell(1, extremes=[.9, 1.2]), cell(2, extremes=[1.1, 2])), "undecided", "repetitions that overlap")
    # Allocators that had more rounds than others: the rounds that both had.
    equal(verdict.ratio_of(cell(1, 2, 3), cell(2, 2)).rounds, [.5, 1], "rounds of both")
    equal(verdict.ratio_of(cell(1), None), None, "no such cell")
    # The median of the rounds' ratios; that of medians would be 1, and 2 with a round that only one had.
    equal(verdict.ratio_of(cell(1, 2, 3), cell(2, 3, 1)).value, 2 / 3, "a ratio")
    equal(verdict.ratio_of(cell(1, 4, 3, 8, 9), cell(2, 2, 2)).value, 1.5, "a ratio of cells of unlike rounds")
    equal(verdict.beyond(cell(5, 1, 9), cell(1, 4)).value, .5, "a difference, in the rounds of both")
    # c has the least median in the rounds that all have, a in its own.
    rounds = {"cells": {"a": cell(3, 3, 1, 1, 1), "b": cell(4, 4), "c": cell(2, 2)}}
    equal((report.least_of(rounds, "abc"), report.least_of(rounds, "ab"), report.least_of(rounds, "d")), (["c"], ["a"], []), "the least of a row")
    mean = verdict.mean_of([verdict.ratio_of(cell(1, 1, 4), cell(4, 1, 1)), verdict.ratio_of(cell(4, 4), cell(1, 4))])
    equal((mean.value, mean.rounds), (math.sqrt(2.5), [1, 1]), "a mean, and of its rounds")

    def rows(**pairs):
        return [(name, verdict.ratio_of(cell(*ours), cell(2, 2, 2))) for name, ours in pairs.items()]
    fast, noisy, slow, barely = (1, 1, 1), (1, 4, 5), (2.2, 2.3, 2.4), (3, 3, 1)
    for pairs, expected in (({"fast": fast}, ("fast", "held")), ({"fast": fast, "noisy": noisy}, ("noisy", "undecided")),
                            ({"noisy": noisy, "slow": slow}, ("slow", "**missed**")), ({"barely": barely, "noisy": noisy}, ("noisy", "undecided"))):
        name, _, word = verdict.verdict_of_each(rows(**pairs), 1)
        equal((name, word), expected, f"the row that tells most of {list(pairs)}")
    equal([verdict.spread(figure) for figure in (verdict.ratio_of(cell(1, 1, 1), cell(1, 2, 4)), verdict.ratio_of(cell(1), cell(2)),
                                                 verdict.figure_of(cell(1, extremes=[1, 2])))],
          ["0.250 to 1.00, 3 rounds", "1 round", "1.00 to 2.00, by repetitions"], "spreads in words")


def command():
    """scripts/bench itself: tables made again from canned numbers, a run of no suite's rounds, and bad arguments."""
    bench = ROOT / "scripts" / "bench"
    with tempfile.TemporaryDirectory() as place:
        (pathlib.Path(place) / "results.json").write_text((ROOT / "tests" / "bench" / "canned.json").read_text())
        told = subprocess.run([bench, "--render", "--out", place], capture_output=True, text=True, check=True).stdout
        check("held  malloc and free of 64 B" in told, f"scripts/bench --render says {told!r}")
        check("| pair 64 B |" in (pathlib.Path(place) / "RESULTS.md").read_text(), "RESULTS.md has no table")
    run = subprocess.run([bench, "--build", BUILD, "--allocator", "none", "--out", "/nonexistent"], capture_output=True, text=True, check=False)
    check(run.returncode == 1 and "expected one of glibc, " in run.stderr, f"scripts/bench --allocator none says {run.stderr!r}")
    run = subprocess.run([bench, "--build", BUILD, "--row", "none", "--out", "/nonexistent"], capture_output=True, text=True, check=False)
    check(run.returncode == 1 and "--row: expected one of pair, " in run.stderr, f"scripts/bench --row none says {run.stderr!r}")
    # A quick run, and rows by themselves, leave bench/RESULTS.md alone.
    loader = importlib.machinery.SourceFileLoader("bench_command", str(bench))  # its name does not end as modules' do
    script = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(script)

    def out_of(*arguments):
        sys.argv = ["scripts/bench", *arguments]
        return script.parse().out
    equal([out_of(), out_of("--quick"), out_of("--quick", "--build", "/x"), out_of("--quick", "--out", "/y"), out_of("--quick", "--row", "pair")],
          [ROOT / "bench", ROOT / "build-bench" / "results", pathlib.Path("/x/results"), pathlib.Path("/y"), ROOT / "build-bench" / "results"],
          "where results go")
    # Suites of an earlier run stay, and tell where and when they were measured.
    before = json.loads((ROOT / "tests" / "bench" / "canned.json").read_text())
    equal(script.others_of(before, True), {}, "suites of a run that was not quick")
    kept = script.others_of(before, False)
    equal(kept["malloc"]["machine"], before["machine"], "the machine of a suite that stays")
    again = script.others_of({**before, "machine": {**before["machine"], "date": "2026-02-02"}, "suites": kept}, False)
    equal(again["malloc"]["machine"]["date"], "2026-01-01", "the date of a suite that stays again")
    here = machine.describe_machine(ROOT)
    page = report.page({**before, "machine": here, "suites": {"malloc": {**again["malloc"], "versions": {"a": "1.2"}}}}, [], {})
    check("Measured apart from the rest: canned, 2 CPUs, 8 GiB, Linux 6.1, glibc 2.36, g++, 2026-01-01; commit none." in page
          and "Versions: a 1.2." in page and f"{here['date']}; commit {here['commit']}" in page, f"a page of two machines: {page[:400]}")
    check("apart" not in report.page({**before, "suites": kept}, [], {}), "a page of one machine")
    equal([machine.cpus_of("0,2-4"), machine.share_a_core([0, 1], lambda cpu: f"{cpu},{cpu + 2}"), machine.share_a_core([0, 2], lambda cpu: "0-3"),
           machine.share_a_core([0], lambda cpu: "")], [{0, 2, 3, 4}, False, True, None], "siblings")
    check(machine.versions_of("programs").get("python3", "").count(".") >= 1, f"versions: {machine.versions_of('programs')}")
    for bad in (["--rounds", "0"], ["--with", "name"], ["--suite", "none"], ["--row", "pair"]):
        run = subprocess.run([bench, *bad], capture_output=True, text=True, check=False)
        equal(run.returncode, 2, f"status of scripts/bench {bad}")
        check("expected" in run.stderr or "invalid choice" in run.stderr, f"scripts/bench {bad} says {run.stderr!r}")


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)
    {"patterns": patterns, "runs": runs, "interleaving": interleaving, "areas": areas, "operations": operations,
     "programs": programs, "tables": tables, "verdicts": verdicts,
     "command": command}[sys.argv[3]]()
    print("good")
