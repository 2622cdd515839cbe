#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""pin:list with all CPUs that the process began with, in a program whose main thread a library has bound before the preload begins.

bound_main.py LIBRARY PROGRAM
"""
import os, subprocess, sys

cpus = sorted(os.sched_getaffinity(0))
if len(cpus) < 2:
    sys.exit(77)
for how in {}, {"PIN_TEST_SYSTEM_CALL": "1"}:
    for pin in "list:" + ",".join(map(str, cpus)), "auto", "scatter":
        environment = dict(os.environ, LD_PRELOAD=sys.argv[1], PERCPU_CONF="pin:" + pin, **how)
        done = subprocess.run([sys.argv[2]], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "pin:" not in done.stderr, (pin, how, done)
