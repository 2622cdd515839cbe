#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Single-steps through operations in gdb, then lets the program go on: its sum must be right.

usage: stepped.py PROGRAM

Each step is a preemption, so a thread that is stepped inside a sequence is sent back to its beginning again and again: the
steps never reach the end, which is why the program is then continued. Exits 77 (skipped) where there is no gdb, or gdb may
not trace.
"""
import shutil
import subprocess
import sys

STEPS = 40  # in a call of hit(): some times around
CALLS = 6


def main():
    if shutil.which("gdb") is None:
        print("no gdb")
        return 77
    commands = ["set pagination off", "set confirm off", "set debuginfod enabled off", "break hit", "run"]
    for _ in range(CALLS):
        commands += [f"stepi {STEPS}", "continue"]
    commands += ["delete", "continue"]
    argv = ["gdb", "-nx", "-batch"]
    for command in commands:
        argv += ["-ex", command]
    out = subprocess.run([*argv, sys.argv[1]], capture_output=True, text=True, timeout=300)
    if "ptrace" in out.stderr and "Operation not permitted" in out.stderr:
        print("gdb may not trace")
        return 77
    stops = out.stdout.count("Breakpoint 1, ")
    print(stops, "calls stepped through;", "sum 1000" in out.stdout and "the sum is right" or "the sum is wrong")
    if stops < CALLS or "sum 1000" not in out.stdout or "exited normally" not in out.stdout:
        print(out.stdout[-4000:], out.stderr[-2000:])
        return 1
    return 0


sys.exit(main())
