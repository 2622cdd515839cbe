# SPDX-License-Identifier: MIT
#
# What the shared library shows to the dynamic linker: in one version node exactly the symbols of the checked-in list, which are exactly
# those that the headers declare; in another those that lib/api/for_preload.h declares; its name; no libstdc++; that it is never unloaded;
# and its trace points.
#
#   library_file.py <source dir> <libpercpu.so> <a C compiler that is gcc, or "none"> <"usdt" or "none">
import os
import re
import subprocess
import sys
import tempfile

source, library, gcc, usdt = sys.argv[1:5]
problems = []


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def expect(what, found, expected):
    if found != expected:
        problems.append(f"{what}: expected {sorted(expected)}, found {sorted(found)}: "
                        f"missing {sorted(set(expected) - set(found))}, too many {sorted(set(found) - set(expected))}")


exported = set()
for line in run("nm", "-D", "--defined-only", "--with-symbol-versions", library).splitlines():
    if line.split()[-2] != "A":  # the nodes themselves
        exported.add(line.split()[-1])
listed = {line.strip() for line in open(os.path.join(source, "tests/abi/symbols.txt")) if line.strip()}
private = set(re.findall(r"^\w.*\b(percpu_\w+_)\(", open(os.path.join(source, "lib/api/for_preload.h")).read(), re.MULTILINE))
expect("exported symbols", exported,
       {f"{name}@@PERCPU_0.1" for name in listed} | {f"{name}@@PERCPU_PRIVATE" for name in private})

# gcc tells what a file declares: every function that is not the header's own must be in the list, and nothing else.
if gcc != "none":
    with tempfile.TemporaryDirectory() as work:
        file = os.path.join(work, "all.c")
        with open(file, "w") as out:
            out.write("#include <percpu.h>\n")
        protos = os.path.join(work, "protos")
        run(gcc, "-std=c11", f"-I{source}/include", "-aux-info", protos, "-c", file, "-o", os.path.join(work, "all.o"))
        declared = set()
        for line in open(protos):
            match = re.match(r"/\* .*include/percpu.*\*/ extern .*?\b(percpu_\w+) \(", line)
            if match:
                declared.add(match.group(1))
    objects = {"percpu_default_view_", "percpu_thread_"}
    expect("functions that the headers declare", declared, listed - objects)

dynamic = run("readelf", "-dW", library)
needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
for name in needed:
    if "stdc++" in name or "libgcc" in name or "libc++" in name:
        problems.append(f"the library needs {name}")
if not {"libnuma.so.1", "liburcu-bp.so.8", "libc.so.6"} <= needed:
    problems.append(f"the library needs only {sorted(needed)}")
expect("SONAME", set(re.findall(r"\(SONAME\).*\[(.*)\]", dynamic)), {"libpercpu.so.0"})
if not re.search(r"\(FLAGS_1\).*NODELETE", dynamic):
    problems.append("the library can be unloaded: no NODELETE")
if re.search(r"\(TEXTREL\)", dynamic):
    problems.append("the library has text relocations")
undefined = run("nm", "-D", "--undefined-only", library)
if "sanitize" not in os.environ.get("PERCPU_TEST_BUILD", ""):
    for name in re.findall(r" U (_Z\w+|__cxa_\w+)", undefined):
        if name != "__cxa_atexit" and name != "__cxa_finalize":
            problems.append(f"the library refers to {name}")

# What tracers read: each trace point of lib/runtime/trace.h, with as many arguments as it says there.
if usdt == "usdt":
    told = {}
    for line in open(os.path.join(source, "lib/runtime/trace.h")):
        match = re.match(r"//   percpu:(\w+) +(.*)", line)
        if match:
            told[match.group(1)] = match.group(2).count(",") + 1
    notes = run("readelf", "-nW", library)
    found = {(name, len(arguments.split())) for name, arguments in
             re.findall(r"Provider: percpu\n\s*Name: (\w+)\n.*\n\s*Arguments: (.*)", notes)}
    expect("trace points and their numbers of arguments", found, set(told.items()))

for problem in problems:
    print("FAILED:", problem)
print(f"{len(exported)} symbols")
sys.exit(1 if problems else 0)
