#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks that bad_inputs_test.cc calls every function that the library exports, but for those below: bad_inputs.py SYMBOLS TEST"""
import re
import sys

NO_ARGUMENT = "has no argument"
NO_FUNCTION = "is no function"
NOT_BY_PROGRAMS = "is given what the headers expand to, never what a program says"
EXEMPT = {
    "percpu_version": NO_ARGUMENT,
    "percpu_balance": NO_ARGUMENT,
    "percpu_domain_current": NO_ARGUMENT,
    "percpu_thread_has_rseq": NO_ARGUMENT,
    "percpu_thread_attach_": NO_ARGUMENT,
    "percpu_default_view_": NO_FUNCTION,
    "percpu_thread_": NO_FUNCTION,
    "percpu_static_resolve_": NOT_BY_PROGRAMS,
    "percpu_static_close_": NOT_BY_PROGRAMS,
    "percpu_shared_copy_": NOT_BY_PROGRAMS,
}

symbols, test = (open(path).read() for path in sys.argv[1:])
# Comments and strings call nothing.
code = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', " ", test, flags=re.DOTALL)
called = {name for name in symbols.split() if re.search(rf"\b{name}\(", code)}
missing = [name for name in symbols.split() if name not in called and name not in EXEMPT]
if not symbols.split() or missing:
    sys.exit(f"bad_inputs_test.cc: expected a call of every exported function, found none of: {' '.join(missing)}")
idle = [name for name in EXEMPT if name in called or name not in symbols.split()]
if idle:
    sys.exit(f"bad_inputs.py: expected exemptions of what is exported and not called, found: {' '.join(idle)}")
