#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""rpmalloc's tests, of the standard library's malloc.

    tests/others/rpmalloc.py SOURCE [--under NAME=LIBRARY]... [--program NAME]... [--runs N] [--work DIRECTORY]

SOURCE is a tree of rpmalloc's sources, of which nothing is changed and nothing comes into this one. Those of its test/ that ask
for nothing but memory are built on rpmalloc_standard.c, which has rpmalloc's functions by their twins. README.md has what came
out.
"""
import standard

SHIM = standard.HERE / "rpmalloc_standard.c"


def flags(source):
    return ["-O1", "-g", "-fno-builtin", "-ffunction-sections", "-D_GNU_SOURCE", "-DENABLE_OVERRIDE=0",
            "-DRPMALLOC_FIRST_CLASS_HEAPS=1", f"-I{source}/rpmalloc", f"-I{source}/test"]


def programs(source):
    return [
        standard.Program("main", [standard.HERE / "rpmalloc_main.c", SHIM, "test/thread.c"], [f'-DMAIN="{source}/test/main.c"'],
                         env={"RPMALLOC_TEST_SCALE": "20"}),  # percent of its loops
        standard.Program("stress", ["test/stress.c", SHIM, "test/thread.c"],
                         env={"RPMALLOC_STRESS_SECONDS": "10", "RPMALLOC_STRESS_THREADS": "8"}),
    ]


if __name__ == "__main__":
    standard.main(__doc__, programs, flags)
