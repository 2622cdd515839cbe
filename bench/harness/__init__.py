# SPDX-License-Identifier: MIT
"""What all suites of bench/ share: finding allocators, running programs and measuring them, interleaving, tables, plots.

A suite is a folder bench/NAME with a file suite.py that has one function:

    from harness import Case, Missing, Suite

    def suite(context):
        def redis(allocator):
            run = context.run(["redis-benchmark", ...], allocator)       # measure.run() under that allocator
            return {"time": run.wall, "cpu": run.cpu, "peak": run.peak}  # seconds and bytes; of these, or more
        return Suite("programs", "Real programs", "What it measures, a paragraph.", context.allocators,
                     [Case("redis", "redis-benchmark: SET, LPUSH", "s", redis)])

scripts/bench finds it by its folder. Each case is run once a round under each allocator, A B C, then C B A, so that what else the machine
does falls on all alike, and so does what a run leaves to the next; tables show medians over the rounds. A run may raise Missing("redis-server is not installed"): the row says so,
and everything else goes on. It raises Failed(...) when a program did not do its work; the row shows that too. `time` is what the row
is about, in the case's unit (ns, us, ms, s: less is better); `peak` is in bytes, `cpu` in seconds.

A suite of programs that take no allocator but print rows of their own (bench/compare.h: --json FILE) has Program cases instead, and
no allocators: see native.py.

Files, bottom-up: measure (processes, statistics), allocators, suites (these classes, interleaving), native, report (markdown),
plot (SVG), verdict (whether a figure holds), goals (what the project is to reach), pages; machine (what stands beside results).
"""
from .allocators import Allocator, find_allocators, given
from .measure import Failed, Missing, geometric_mean, median, run, start
from .suites import Case, Context, Program, Suite, measure_suite

__all__ = ["Allocator", "Case", "Context", "Failed", "Missing", "Program", "Suite", "find_allocators", "geometric_mean", "given",
           "measure_suite", "median", "run", "start"]
