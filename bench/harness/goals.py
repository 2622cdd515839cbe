# SPDX-License-Identifier: MIT
"""What libpercpu must reach, each figure computed from results, and whether it was held.

A goal whose rows are not there (a suite that was not run, a peer that is not installed) says so. A losing row is printed like a
winning one.
"""
from .allocators import BASE, OURS
from .measure import median
from .plot import number
from .report import best_peer, main_rows, mean_ratio, memory_of, time_rows, value

HELD, MISSED, UNKNOWN = "held", "**missed**", ("not measured", "-")
THREE_PEERS = [BASE, "tcmalloc (gperftools)", "mimalloc"]


class _Rows:
    """Rows of a suite by name."""

    def __init__(self, results, suite):
        self.suite = results["suites"].get(suite)
        self.rows = {row["name"]: row for row in self.suite["rows"]} if self.suite else {}

    def of(self, name, column=OURS):
        """The median, or None."""
        return value(self.rows[name], column) if name in self.rows else None

    def ratio(self, over, under):
        """Of two rows of ours."""
        a, b = self.of(over), self.of(under)
        return a / b if a and b else None


def _at_most(found, most, unit="", note=""):
    if found is None:
        return UNKNOWN
    return f"{number(found)}{unit}{note}", HELD if found <= most else MISSED


def _over(rows, name, column):
    """Ours over another allocator's, in one row."""
    ours, theirs = rows.of(name), rows.of(name, column)
    return ours / theirs if ours and theirs else None


def _over_best(rows, name, columns):
    """Ours over the best of several allocators, in one row; and which that was."""
    found = [(rows.of(name, column), column) for column in columns if rows.of(name, column)]
    ours = rows.of(name)
    if not found or not ours:
        return None, ""
    best, column = min(found)
    return ours / best, f" (of {column}'s)"


def _none_slower(rows, column):
    """The row in which we are slowest beside another allocator. What else the machine does can only make a round slower: a row whose median
    is slower, and whose fastest round is not, is undecided."""
    found = []
    for row in rows:
        ours, theirs = (row["cells"].get(name, {}).get("time") for name in (OURS, column))
        if ours and theirs:
            ratio, of_fastest = median(ours) / median(theirs), min(ours) / min(theirs)
            found.append((ratio > 1 and of_fastest > 1, ratio, of_fastest, row.get("label") or row["name"]))
    if not found:
        return UNKNOWN
    missed, ratio, of_fastest, name = max(found)
    if ratio <= 1:
        return f"{number(ratio)} ({name})", HELD
    return f"{number(ratio)} ({name}; of the fastest rounds {number(of_fastest)})", MISSED if missed else "undecided"


def _instructions(results):
    counts = results.get("instructions", {})
    for path, most, figure in (("malloc", 22, "malloc, served by a CPU's cache"), ("free", 32, "free, default checks"),
                               ("free_check_off", 22, "free, `check:off`")):
        count = counts.get(path)
        yield figure, f"at most {most} instructions", *(UNKNOWN if count is None else (str(count), HELD if count <= most else MISSED))


def _malloc(results):
    rows = _Rows(results, "malloc")
    ratio, note = _over_best(rows, "pair", THREE_PEERS)
    yield "malloc and free of 64 B", "at most 0.75 times the best of jemalloc, tcmalloc, mimalloc", *_at_most(ratio, .75, note=note)
    ratio, note = _over_best(rows, "batch", THREE_PEERS)
    yield "batch of 1,000, a pair", "at most 1.0 times the best of them", *_at_most(ratio, 1.0, note=note)
    timed = time_rows(rows.suite) if rows.suite else []
    mean, _ = mean_ratio(timed, OURS, BASE)
    yield "malloc patterns, geometric mean of time", "at most 0.65 times jemalloc", *_at_most(mean, .65)
    best = best_peer(timed, rows.suite) if timed else None
    mean, _ = mean_ratio(timed, OURS, best) if best else (None, 0)
    yield "the same", "at most 0.95 times the best single peer", *_at_most(mean, .95, note=f" (of {best}'s)")
    worst = max(((_over(rows, row["name"], BASE), row) for row in timed if _over(rows, row["name"], BASE)), key=lambda pair: pair[0],
                default=(None, None))
    yield ("malloc patterns, each row", "at most 1.1 times jemalloc",
           *_at_most(worst[0], 1.1, note=f" ({worst[1].get('label') or worst[1]['name']})" if worst[1] else ""))
    mean, _ = mean_ratio(main_rows(rows.suite) if rows.suite else [], OURS, BASE, memory_of)
    yield "malloc patterns, geometric mean of resident memory", "at most 0.8 times jemalloc", *_at_most(mean, .8)
    yield "producer-consumer", "at most 0.25 times jemalloc's time", *_at_most(_over(rows, "producer_consumer", BASE), .25)
    yield "Larson-like with 64 threads", "at most 0.65 times jemalloc's time", *_at_most(_over(rows, "larson_64", BASE), .65)
    yield "large blocks of 5 to 25 MiB", "at most 0.25 times jemalloc's time", *_at_most(_over(rows, "large", BASE), .25)
    yield ("256 MiB freed, held three seconds later, 2 threads", "given back by the decay: at most a tenth",
           *_at_most(rows.of("given_back_2"), 25.6, " MiB"))


def _programs(results):
    rows = _Rows(results, "programs")
    timed = time_rows(rows.suite) if rows.suite else []
    mean, _ = mean_ratio(timed, OURS, BASE)
    yield "real programs, geometric mean of time", "at most 0.97 times jemalloc", *_at_most(mean, .97)
    mean, _ = mean_ratio(timed, OURS, BASE, memory_of)
    yield "real programs, geometric mean of memory", "less than jemalloc", *_at_most(mean, .9999)
    yield "real programs, each row", "not slower than with glibc's malloc", *_none_slower(timed, "glibc")


def _ops(results):
    rows = _Rows(results, "ops")
    yield ("`percpu_add`, eight counters in turn", "at most 1.05 times `thread_local` increment",
           *_at_most(rows.ratio("program/loop/percpu_add", "program/loop/thread_local"), 1.05))
    yield ("the same", "at most 0.75 times librseq's", *_at_most(rows.ratio("program/loop/percpu_add", "program/loop/librseq_add"), .75))
    reach = rows.ratio("memcpy/256/1000", "sum/256/1000")
    yield ("sum of 1,000 counters over 256 units", "at least 60 % of memcpy's rate",
           *(UNKNOWN if reach is None else (f"{100 * reach:.0f} %", HELD if reach >= .6 else MISSED)))


def _alloc(results):
    rows = _Rows(results, "alloc")
    pair, theirs = rows.of("units/2"), rows.of("units/2", "librseq")
    yield ("`percpu_alloc(8)` and free, zeroed, 2 units, warm", "at most 15 ns",
           *_at_most(pair, 15, " ns", f" (librseq {number(theirs)} ns)" if theirs else ""))
    yield ("the same at 256 units, in bursts", "at most 2 times the time at 2 units", *_at_most(rows.ratio("burst/256", "burst/2"), 2))
    yield ("the same at 256 units, sustained", "at most 1.3 times memset of those bytes, all threads' CPU time counted",
           *_at_most(rows.ratio("written/256", "memset/256"), 1.3))
    linear = rows.ratio("threads/1", "threads/2")
    yield ("the same, one thread per CPU", "at least 0.9 times linear",
           *(UNKNOWN if linear is None else (number(linear), HELD if linear >= .9 else MISSED)))
    yield "allocation, 1e7 live areas against 1e3", "at most 1.2 times", *_at_most(rows.ratio("live/10000000", "live/1000"), 1.2)
    left = [rows.of(f"100000 x 64 x 64{written} left") for written in ("", " written")]
    left = max((kib for kib in left if kib is not None), default=None)
    theirs = rows.of("100000 x 64 x 64 written left", "librseq")
    yield ("held one second after freeing 100,000 areas of 64 B on 64 units", "at most 4 MiB",
           *_at_most(None if left is None else left / 1024, 4, " MiB", f" (librseq {number(theirs / 1024)} MiB)" if theirs else ""))
    for units, most in ((2, 5.5), (64, .2)):
        yield (f"metadata, {units} units", f"at most {most} % of the populated bytes",
               *_at_most(rows.of(f"100000 x 64 x {units} of populated"), most, " %"))


def goals(results):
    """Rows for the table: figure, goal, measured, verdict."""
    return [list(goal) for part in (_ops, _alloc, _instructions, _malloc, _programs) for goal in part(results)]
