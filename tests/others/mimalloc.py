#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""mimalloc's tests, of the standard library's malloc.

    tests/others/mimalloc.py SOURCE [--under NAME=LIBRARY]... [--program NAME]... [--runs N] [--work DIRECTORY]

SOURCE is a tree of mimalloc's sources, of which nothing is changed and nothing comes into this one. Its test/ is built on
mimalloc_standard.c, which has mimalloc's functions by their twins. README.md has what came out.
"""
import standard

SHIM = standard.HERE / "mimalloc_standard.c"
CHECKS = ["-include", str(standard.HERE / "mimalloc_standard.h")]


def flags(source):
    return ["-O1", "-g", "-fno-builtin", "-DMI_DEBUG=0", f"-I{source}/include", "-D_GNU_SOURCE"]


def programs(source):
    main = f'-DMAIN_OVERRIDE="{source}/test/main-override.cpp"'
    stress = ["", "8 150 10", "1 50 20", "200 20 5"]  # threads, load, iterations; beyond a load of 100 with objects of megabytes
    return [
        standard.Program("test-api", ["test/test-api.c", SHIM], CHECKS),
        standard.Program("test-api-cxx", ["test/test-api.c", SHIM], [*CHECKS, "-xc++"]),
        standard.Program("test-api-fill", ["test/test-api-fill.c", SHIM], CHECKS),
        standard.Program("main-override", ["test/main-override.c", SHIM]),
        standard.Program("main-override-cxx", [standard.HERE / "mimalloc_override.cc", SHIM], [main]),
        standard.Program("test-stress", ["test/test-stress.c"], ["-DUSE_STD_MALLOC"], stress),
    ]


if __name__ == "__main__":
    standard.main(__doc__, programs, flags)
