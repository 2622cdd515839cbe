#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Counts the instructions of malloc and free when a CPU's cache serves them, and compares them with
tests/preload_instructions.txt.

usage: instructions.py TABLE ROOT [--write]

The preload's sources with the fast paths are compiled with each compiler that the table knows and the machine has, as the
preload is built. Everything of a call is counted: the look-up of the class, all checks, the ret. Rules and exit status are
those of tests/unit/ops/instructions.py.
"""
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'unit', 'ops'))
import instructions  # noqa: E402

FLAGS = ['-std=c++20', '-O2', '-fPIC', '-fno-exceptions', '-fno-rtti', '-fvisibility=hidden', '-ftls-model=initial-exec',
         '-fcf-protection=none', '-fno-builtin-malloc', '-fno-builtin-calloc', '-fno-builtin-realloc', '-fno-builtin-free',
         '-DPERCPU_OPS_UNLOADABLE=0', '-D_GNU_SOURCE']
# Of each path: source and function; and for a path beside the first, what is between its two ends: where the thread's word
# is compared that only check:off sets (ThreadCaches::unchecked_limit).
PATHS = {
    'malloc': ('malloc.cc', 'malloc', None),
    'free': ('malloc.cc', 'free', None),
    'free_check_off': ('malloc.cc', 'free', '%fs:0x10('),
    'operator_new': ('new_delete.cc', '_Znwm', None),
    'operator_delete': ('new_delete.cc', '_ZdlPv', None),
}


def length_through(body, landmark):
    """Instructions from the entry over the landmark to a ret: conditional jumps are taken or not as it lies, until one
    instruction behind it, and then not taken."""
    index = {address: i for i, (address, _, _) in enumerate(body)}

    def lengths(i, length, seen, behind):
        while i is not None and length < 200:
            _, mnemonic, operands = body[i]
            length += 1
            seen = seen or landmark in operands
            if mnemonic.startswith('ret'):
                return [length] if seen else []
            target = index.get(int(operands.split()[0], 16)) if mnemonic.startswith('j') else None
            if mnemonic == 'jmp':
                i = target
            elif mnemonic.startswith('j') and not behind:
                # The jump that decides on the landmark's comparison is the last that may be taken.
                return lengths(i + 1, length, seen, seen) + ([] if target is None else lengths(target, length, seen, seen))
            else:
                i += 1
        return []

    return min(lengths(0, 0, False, False))


def count(root):
    rows = {}
    for compiler, command in (('gcc', 'g++'), ('clang', 'clang++')):
        version = instructions.version_of(compiler)
        if version is None or instructions.machine_of(compiler) != 'x86_64':
            continue
        with tempfile.TemporaryDirectory() as work:
            functions = {}
            for source in sorted({source for source, _, _ in PATHS.values()}):
                obj = os.path.join(work, source + '.o')
                subprocess.run([command, *FLAGS, '-I' + root, '-I' + os.path.join(root, 'include'), '-I' + os.path.join(root, 'lib'),
                                '-c', os.path.join(root, 'preload', 'abi', source), '-o', obj], check=True)
                # objdump shows one name of each address, and may choose an alias.
                symbols = subprocess.run(['nm', obj], capture_output=True, text=True, check=True).stdout.split('\n')
                at = {line.split()[2]: int(line.split()[0], 16) for line in symbols if ' T ' in line}
                shown = instructions.functions_of(obj)
                functions.update({name: body for body in shown.values() for name, address in at.items()
                                  if body and body[0][0] == address})
            for path, (_, function, landmark) in PATHS.items():
                body = functions[function]
                rows[version, 'library', path] = (length_through(body, landmark) if landmark else
                                                  instructions.fast_path_length(body))
    return rows


sys.exit(instructions.compare(sys.argv[1], count(sys.argv[2])))
