# SPDX-License-Identifier: MIT
"""The suites of Google Benchmark programs, bench/ops.cc and bench/alloc.cc: each prints its own rows (compare.h)."""
from .suites import Program, Suite


def ops(context):
    program = context.build / "bench" / "bench_ops"
    return Suite("ops", "Operations on this CPU's copy",
                 "One step of each way of counting, in a loop and called; and reading the sum over the copies of many CPUs.",
                 [], [Program("ops", [program], context)])


def alloc(context):
    programs = [("alloc", "bench_alloc"), ("memory", "bench_memory")]
    return Suite("alloc", "Allocating areas",
                 "`percpu_alloc` and `percpu_free` by size, live areas, units, threads and pattern; what areas hold in memory.",
                 [], [Program(name, [context.build / "bench" / file], context) for name, file in programs])
