# SPDX-License-Identifier: MIT
"""The suites of Google Benchmark programs, bench/ops.cc and bench/alloc.cc: each prints its own rows (compare.h)."""
from .suites import Program, Suite


# What Google Benchmark adds to a name begins with a slash and a word.
OPS_OF_GOALS = "^(program/loop/(percpu_add|thread_local|librseq_add)|(sum|memcpy)/256/1000)(/[a-z]|$)"
# Parts of names: bench_alloc runs the rows that have one.
ALLOC_OF_GOALS = ("units/2", "burst/2", "written/256", "memset/256", "threads/", "live/1000")


def ops(context):
    program = context.build / "bench" / "bench_ops"
    return Suite("ops", "Operations on this CPU's copy",
                 "One step of each way of counting, in a loop and called; and reading the sum over the copies of many CPUs.",
                 [], [Program("ops", [program], context, goals=((f"--benchmark_filter={OPS_OF_GOALS}",),))])


def alloc(context):
    here = context.build / "bench"
    programs = [Program("alloc", [here / "bench_alloc"], context, goals=tuple(("--only", part) for part in ALLOC_OF_GOALS)),
                Program("memory", [here / "bench_memory"], context, rounds=3, goals=((),))]
    return Suite("alloc", "Allocating areas",
                 "`percpu_alloc` and `percpu_free` by size, live areas, units, threads and pattern; what areas hold in memory.",
                 [], programs)
