# SPDX-License-Identifier: MIT
"""The suites of Google Benchmark programs, bench/ops.cc and bench/alloc.cc: each prints its own rows (compare.h)."""
from .suites import Program, Suite


# What Google Benchmark adds to a name begins with a slash and a word.
OPS_OF_GOALS = "^(program/loop/(percpu_add|thread_local|librseq_add)|(sum|memcpy|memcpy_one)/256/1000)(/[a-z]|$)"
# Rows that goals compare with others' too, and those that they compare with ours alone.
ALLOC_BESIDE_OTHERS = ("units/2",)
ALLOC_OF_OURS = ("warm_burst/2", "warm_burst/256", "burst/2", "burst/256", "sustained/256", "memset/256", "memset_copies/256",
                 "memset_contiguous/256", "threads/1", "threads/2", "live/1000", "live/10000000", "live_random/1000", "live_random/10000000")


def _rows(names):
    return tuple(word for name in names for word in ("--row", name))


def ops(context):
    program = context.build / "bench" / "bench_ops"
    return Suite("ops", "Operations on this CPU's copy",
                 "One step of each way of counting, in a loop and called; and reading the sum over the copies of many CPUs.",
                 [], [Program("ops", [program], context, goals=((f"--benchmark_filter={OPS_OF_GOALS}",),))])


def alloc(context):
    here = context.build / "bench"
    programs = [Program("alloc", [here / "bench_alloc"], context,
                        goals=(_rows(ALLOC_BESIDE_OTHERS), ("--subject", "percpu", *_rows(ALLOC_OF_OURS)))),
                Program("memory", [here / "bench_memory"], context, rounds=3, goals=((),))]
    return Suite("alloc", "Allocating areas",
                 "`percpu_alloc` and `percpu_free` by size, live areas, units, threads and pattern; what areas hold in memory.",
                 [], programs)
