#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks that bad_inputs_test.cc names every symbol that the library exports: bad_inputs.py SYMBOLS TEST"""
import re
import sys

symbols, test = (open(path).read() for path in sys.argv[1:])
missing = [name for name in symbols.split() if not re.search(rf"\b{name}\b", test)]
if not symbols.split() or missing:
    sys.exit(f"bad_inputs_test.cc: expected every exported name, found none of: {' '.join(missing)}")
