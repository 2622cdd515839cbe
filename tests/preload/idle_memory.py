#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a program that hardly allocates pays: every process that a preload reaches has it, `true` too, and on a machine of many CPUs
it must not grow with their number.

idle_memory.py LIBRARY
"""
import os, re, subprocess, sys

# 324 KiB more than with glibc's malloc, where it was written; the 216 KiB of two CPUs' empty stacks, or the first chunk of a pool
# that nobody asked for, would be above.
MOST_KIB = 400


def anonymous_kib(**environment):
    rollup = subprocess.run(["cat", "/proc/self/smaps_rollup"], env=dict(os.environ, **environment), capture_output=True,
                            text=True, check=True).stdout
    return int(re.search(r"^Anonymous:\s+(\d+) kB", rollup, re.M).group(1))


plain = anonymous_kib()
ours = anonymous_kib(LD_PRELOAD=sys.argv[1])
print(f"anonymous memory of cat: {plain} KiB, {ours} KiB under the preload")
if ours == plain:
    sys.exit("expected more memory under the preload, found the same: was it loaded?")
if ours - plain > MOST_KIB:
    sys.exit(f"expected at most {MOST_KIB} KiB more, found {ours - plain}")
