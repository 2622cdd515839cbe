# SPDX-License-Identifier: MIT
"""What libpercpu must reach, each figure computed from results, and whether it was held, by the rule of verdict.py.

A goal whose rows are not there (a suite that was not run, a peer that is not installed) says so. A losing row is printed like a
winning one.
"""
from .allocators import BASE, OURS
from .plot import number
from .report import best_peer, best_row, held_rows, label_of, least_of, others_programs, ratio, time_rows, with_peaks
from .verdict import HELD, MISSED, UNKNOWN, beyond, figure_of, mean_of, ratio_of, spread, verdict, verdict_of_each

NOT_MEASURED = ("not measured", "-", UNKNOWN)
THREE_PEERS = [BASE, "tcmalloc (gperftools)", "mimalloc"]


class _Rows:
    """Rows of a suite by name."""

    def __init__(self, results, suite):
        self.suite = results["suites"].get(suite)
        self.rows = {row["name"]: row for row in self.suite["rows"]} if self.suite else {}

    def cell(self, name, column=OURS):
        return self.rows[name]["cells"].get(column) if name in self.rows else None

    def of(self, name, column=OURS):
        """The figure of one cell, or None."""
        return figure_of(self.cell(name, column))

    def ratio(self, over, under):
        """Of two rows of ours."""
        return ratio_of(self.cell(over), self.cell(under))

    def over(self, name, column):
        """Ours over another allocator's, in one row."""
        return ratio_of(self.cell(name), self.cell(name, column))

    def over_best(self, name, columns):
        """Ours over the best of several allocators, in one row; and which that was."""
        best = least_of(self.rows[name], columns) if name in self.rows else []
        return (self.over(name, best[0]), best[0]) if best else (None, "")

    def ratios(self, rows, column, quantity="time"):
        """(label, ours over another allocator's) of each of some rows that both have."""
        found = [(label_of(row), ratio(row, OURS, column, quantity)) for row in rows]
        return [(label, figure) for label, figure in found if figure]


def _goal(figure, limit, unit="", note="", at_least=False):
    """measured, spread, verdict"""
    if figure is None:
        return NOT_MEASURED
    return f"{number(figure.value)}{unit}{note}", spread(figure, unit), verdict(figure, limit, at_least)


def _mean(rows, timed, column, limit, quantity="time", note=""):
    """The mean of ours over a column's, beside what it is without our best row."""
    figure = mean_of([one for _, one in rows.ratios(timed, column, quantity)])
    best = best_row(timed, quantity, column)
    if best:
        rest = mean_of([one for _, one in rows.ratios([row for row in timed if row is not best], column, quantity)])
        note = f"{note}; {number(rest.value)} without {label_of(best)}"
    return _goal(figure, limit, note=note)


def _beside(figure, words):
    """A figure that is told beside one that is judged. Nothing where it was not measured."""
    return f"; {number(figure.value)} {words}" if figure else ""


def _each(ratios, limit):
    if not ratios:
        return NOT_MEASURED
    label, figure, said = verdict_of_each(ratios, limit)
    # Beside the row that decides, all others whose medians do not hold, with their own verdicts.
    others = sorted(((one.value, name, verdict(one, limit)) for name, one in ratios if one.value > limit and name != label), reverse=True)
    beside = "".join(f"; {number(ratio)} {name}, {word.strip('*')}" for ratio, name, word in others)
    return f"{number(figure.value)} ({label}){beside}", spread(figure), said


def _instructions(results):
    counts = results.get("instructions", {})
    for path, most, figure in (("malloc", 22, "malloc, served by a CPU's cache"), ("free", 32, "free, default checks"),
                               ("free_check_off", 22, "free, `check:off`")):
        count = counts.get(path)
        yield figure, f"at most {most} instructions", *(NOT_MEASURED if count is None else (str(count), "exact", HELD if count <= most else MISSED))


def _malloc(results):
    rows = _Rows(results, "malloc")
    figure, best = rows.over_best("pair", THREE_PEERS)
    floor = rows.of("pair_floor", "glibc")
    note = f" (of {best}'s)" + (f"; {number(floor.value)} ns of each are the loop and two calls" if floor else "")
    yield "malloc and free of 64 B", "at most 0.75 times the best of jemalloc, tcmalloc, mimalloc", *_goal(figure, .75, note=note)
    yield "the same", "at most 0.75 times jemalloc", *_goal(rows.over("pair", BASE), .75)
    figure, best = rows.over_best("batch", THREE_PEERS)
    yield "batch of 1,000, a pair", "at most 1.0 times the best of them", *_goal(figure, 1.0, note=f" (of {best}'s)")
    yield "the same", "at most 0.5 times jemalloc", *_goal(rows.over("batch", BASE), .5)
    timed = time_rows(rows.suite) if rows.suite else []
    ratios = rows.ratios(timed, BASE)
    yield "malloc patterns, geometric mean of time", "at most 0.65 times jemalloc", *_mean(rows, timed, BASE, .65)
    best = best_peer(timed, rows.suite) if timed else None
    yield "the same", "at most 0.95 times the best single peer", *_mean(rows, timed, best, .95, note=f" (of {best}'s)")
    yield "malloc patterns, each row", "at most 1.1 times jemalloc", *_each(ratios, 1.1)
    # The peaks of all patterns, as the table of peaks has them: of those about memory too.
    patterns = with_peaks(rows.suite) if rows.suite else []
    beside = _beside(mean_of([one for _, one in rows.ratios(timed, BASE, "peak")]), "of the rows with a time")
    yield "malloc patterns, geometric mean of peak memory", "at most 0.8 times jemalloc", *_mean(rows, patterns, BASE, .8, "peak", beside)
    held = held_rows(rows.suite) if rows.suite else []
    yield "malloc patterns, geometric mean of memory held", "at most 0.8 times jemalloc", *_mean(rows, held, BASE, .8)
    yield "200 idle threads that worked, memory held", "at most 0.3 times jemalloc's", *_goal(rows.over("idle_threads", BASE), .3)
    yield "producer-consumer", "at most 0.25 times jemalloc's time", *_goal(rows.over("producer_consumer", BASE), .25)
    yield "Larson-like with 64 threads", "at most 0.65 times jemalloc's time", *_goal(rows.over("larson_64", BASE), .65)
    yield "large blocks of 5 to 25 MiB", "at most 0.25 times jemalloc's time", *_goal(rows.over("large", BASE), .25)
    for threads, words in ((2, "2 threads"), (1, "the only thread")):
        theirs = rows.of(f"given_back_{threads}", BASE)
        yield (f"256 MiB freed, held three seconds later, {words}", "given back by the decay: at most a tenth",
               *_goal(rows.of(f"given_back_{threads}"), 25.6, " MiB", f" (jemalloc {number(theirs.value)} MiB)" if theirs else ""))


def _programs(results):
    rows = _Rows(results, "programs")
    timed = time_rows(rows.suite) if rows.suite else []
    theirs = others_programs(timed)

    def own(quantity):
        """With our own program."""
        return _beside(mean_of([one for _, one in rows.ratios(timed, BASE, quantity)]) if len(theirs) < len(timed) else None, "with our own")
    cpu = _beside(mean_of([one for _, one in rows.ratios(theirs, BASE, "cpu")]), "of CPU time")
    yield "Debian's programs, geometric mean of time", "at most 0.97 times jemalloc", *_mean(rows, theirs, BASE, .97, note=cpu + own("time"))
    yield "Debian's programs, geometric mean of memory", "less than jemalloc", *_mean(rows, theirs, BASE, .9999, "peak", own("peak"))
    yield "Debian's programs, each row", "not slower than with glibc's malloc", *_each(rows.ratios(theirs, "glibc"), 1)
    more = beyond(rows.cell("true"), rows.cell("true", "glibc"))
    yield "`true`", "within 1 ms of its time with glibc's malloc", *_goal(more, 1, " ms")
    yield "Debian's programs, each row's memory", "at most 1.1 times jemalloc's", *_each(rows.ratios(theirs, BASE, "peak"), 1.1)


def _ops(results):
    rows = _Rows(results, "ops")
    yield ("`percpu_add`, eight counters in turn", "at most 1.05 times `thread_local` increment",
           *_goal(rows.ratio("program/loop/percpu_add", "program/loop/thread_local"), 1.05))
    yield ("the same", "at most 0.75 times librseq's", *_goal(rows.ratio("program/loop/percpu_add", "program/loop/librseq_add"), .75))
    reach, harder = (rows.ratio(f"{memcpy}/256/1000", "sum/256/1000") for memcpy in ("memcpy", "memcpy_one"))
    yield ("sum of 1,000 counters over 256 units", "at least 60 % of the rate of memcpy of the same bytes",
           *_goal(reach.scaled(100) if reach else None, 60, " %", at_least=True,
                  note=_beside(harder.scaled(100) if harder else None, "% of memcpy into one buffer of the sums' size")))


def _alloc(results):
    rows = _Rows(results, "alloc")
    theirs = rows.of("units/2", "librseq")
    yield ("`percpu_alloc(8)` and free, zeroed, 2 units, warm", "at most 15 ns",
           *_goal(rows.of("units/2"), 15, " ns", f" (librseq {number(theirs.value)} ns)" if theirs else ""))
    yield ("the same at 256 units, in warm bursts within the reserve", "at most 2 times the time at 2 units, of a warm pair",
           *_goal(rows.ratio("warm_burst/256", "units/2"), 2,
                  note=_beside(rows.ratio("warm_burst/256", "warm_burst/2"), "of a warm burst's at 2 units")
                  + _beside(rows.ratio("burst/256", "burst/2"), "cold, of a cold burst's at 2 units")
                  + _beside(rows.ratio("burst/256", "units/2"), "cold, of a warm pair's")))
    yield ("the same at 256 units, sustained for half a second",
           "at most 1.3 times memset of those bytes where they lie, area by area; all threads' CPU time counted",
           *_goal(rows.ratio("sustained/256", "memset/256"), 1.3,
                  note=_beside(rows.ratio("sustained/256", "memset_copies/256"), "of memset copy by copy")
                  + _beside(rows.ratio("sustained/256", "memset_contiguous/256"), "of memset of as many bytes in one piece")))
    yield ("the same, one thread per CPU", "at least 0.9 times linear", *_goal(rows.ratio("threads/1", "threads/2"), .9, at_least=True))
    yield ("allocation, 1e7 live areas against 1e3; 200,000 taken, and freed in random order", "at most 1.2 times",
           *_goal(rows.ratio("live_random/10000000", "live_random/1000"), 1.2,
                  note=_beside(rows.ratio("live/10000000", "live/1000"), "of one, again and again")))
    left = [figure for figure in (rows.of(f"100000 x 64 x 64{written} left") for written in ("", " written")) if figure]
    left = max(left, key=lambda figure: figure.value).scaled(1 / 1024) if left else None
    theirs = rows.of("100000 x 64 x 64 written left", "librseq")
    yield ("held one second after freeing 100,000 areas of 64 B on 64 units", "at most 4 MiB",
           *_goal(left, 4, " MiB", f" (librseq {number(theirs.value / 1024)} MiB)" if theirs else ""))
    for units, written, most in ((2, "", 5.5), (64, " written", .2)):
        yield (f"metadata, {units} units{', all written' if written else ''}", f"at most {most} % of the populated bytes",
               *_goal(rows.of(f"100000 x 64 x {units}{written} of populated"), most, " %"))


def goals(results):
    """Rows for the table: figure, goal, measured, its spread, verdict."""
    return [list(goal) for part in (_ops, _alloc, _instructions, _malloc, _programs) for goal in part(results)]
