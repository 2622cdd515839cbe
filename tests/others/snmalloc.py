#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""snmalloc's tests, of the standard library's malloc.

    tests/others/snmalloc.py SOURCE [--under NAME=LIBRARY]... [--program NAME]... [--runs N] [--work DIRECTORY]

SOURCE is a tree of snmalloc's sources, of which nothing is changed and nothing comes into this one. Those of its tests and
benchmarks that ask for nothing but memory are built on snmalloc_standard.cc, in place of its test library. README.md has what
came out.
"""
import standard

SHIM = standard.HERE / "snmalloc_standard.cc"
TESTS = ["func/first_operation/first_operation", "func/teardown/teardown", "perf/contention/contention",
         "perf/large_alloc/large_alloc", "perf/lotsofthreads/lotsofthread", "perf/post_teardown/post-teardown",
         "perf/singlethread/singlethread", "perf/startup/startup"]


def flags(source):
    return ["-std=c++20", "-O1", "-g", "-mcx16", "-fno-builtin", "-ffunction-sections", f"-I{source}/src"]


def programs(source):
    memory = f'-DMEMORY="{source}/src/test/func/memory/memory.cc"'
    return [standard.Program("memory", [standard.HERE / "snmalloc_memory.cc", SHIM], [memory]),
            *[standard.Program(test.split("/")[-1], [f"src/test/{test}.cc", SHIM]) for test in TESTS]]


if __name__ == "__main__":
    standard.main(__doc__, programs, flags)
