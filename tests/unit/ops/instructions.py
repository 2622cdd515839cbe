#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Counts the instructions of each fast path and compares them with tests/ops_instructions.txt.

usage: instructions.py TABLE SOURCE INCLUDE_DIR [--write]

SOURCE is compiled with each compiler that the table knows and the machine has, as for a program and as for a shared
library. The path that is counted begins at a function's entry, takes no conditional jump (those lead to the slow path),
and ends with its ret, both included. A count that differs from the table fails, a smaller one too: then the table is to
be written anew, with --write, and the difference reviewed. Exits 77 (skipped) where no row could be compared.
"""
import os
import re
import subprocess
import sys
import tempfile

MODES = {'program': ['-fPIE'], 'library': ['-fPIC']}
COMPILERS = ['gcc', 'clang']


def version_of(compiler):
    """'gcc-12', or None where there is no such compiler."""
    try:
        out = subprocess.run([compiler, '-dumpversion'], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return compiler + '-' + out.strip().split('.')[0]


def machine_of(compiler):
    return subprocess.run([compiler, '-dumpmachine'], capture_output=True, text=True, check=True).stdout.split('-')[0]


def functions_of(object_file):
    """{name: [(address, mnemonic, operands)]}"""
    out = subprocess.run(['objdump', '-d', '--no-show-raw-insn', '-j', '.text', object_file],
                         capture_output=True, text=True, check=True).stdout
    functions, current = {}, None
    for line in out.splitlines():
        head = re.match(r'[0-9a-f]+ <([^>]+)>:', line)
        if head:
            current = functions.setdefault(head.group(1), [])
            continue
        insn = re.match(r'\s*([0-9a-f]+):\s+(\S+)\s*(.*)', line)
        if insn and current is not None:
            current.append((int(insn.group(1), 16), insn.group(2), insn.group(3)))
    return functions


def fast_path_length(body):
    """Instructions from the entry to the ret, conditional jumps not taken, unconditional ones followed."""
    index = {address: i for i, (address, _, _) in enumerate(body)}
    i = length = 0
    while True:
        _, mnemonic, operands = body[i]
        length += 1
        if mnemonic.startswith('ret'):
            return length
        if mnemonic == 'jmp':
            i = index[int(operands.split()[0], 16)]
        else:
            i += 1
        if length > 200:
            raise SystemExit('no ret after 200 instructions')


def count(source, include):
    rows = {}
    for compiler in COMPILERS:
        version = version_of(compiler)
        if version is None or machine_of(compiler) != 'x86_64':
            continue
        for mode, flags in MODES.items():
            with tempfile.TemporaryDirectory() as work:
                obj = os.path.join(work, 'object.o')
                subprocess.run([compiler, '-std=c11', '-O2', '-fcf-protection=none', *flags, '-I' + include,
                                '-c', source, '-o', obj], check=True)
                for name, body in functions_of(obj).items():
                    if not name.startswith('percpu_'):
                        rows[version, mode, name] = fast_path_length(body)
    return rows


def compare(table, found):
    """Compares {key: instructions} with the rows of a table, or writes them there. Returns main's exit status."""
    if '--write' in sys.argv:
        with open(table) as old:
            head = [line for line in old if line.startswith('#')]
        with open(table, 'w') as new:
            new.writelines(head)
            for key, n in sorted(found.items()):
                new.write(f'{key[0]:9} {key[1]:8} {key[2]:17} {n}\n')
        return 0
    expected = {}
    with open(table) as rows:
        for row in rows:
            if not row.startswith('#'):
                version, mode, name, n = row.split()
                expected[version, mode, name] = int(n)
    compared = [key for key in expected if key[0] in {version for version, _, _ in found}]
    if not compared:
        print('no compiler of the table is here')
        return 77
    wrong = [key for key in compared if found.get(key) != expected[key]]
    for key in wrong:
        print(*key, ': expected', expected[key], 'instructions, found', found.get(key))
    print(len(compared), 'compared,', len(wrong), 'differ')
    return 1 if wrong else 0


def main():
    table, source, include = sys.argv[1:4]
    return compare(table, count(source, include))


if __name__ == '__main__':
    sys.exit(main())
