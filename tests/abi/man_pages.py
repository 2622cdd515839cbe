# SPDX-License-Identifier: MIT
#
# The man pages name every function that the library exports and every operation that ops.h, copies.h, list.h and static.h
# tell of, each in one page; the links that are installed are those names; groff has nothing to say about the pages; and the
# program in percpu.7 compiles.
#
#   man_pages.py <source dir> <a C compiler> <groff or "none">
import os
import re
import subprocess
import sys
import tempfile

source, compiler, groff = sys.argv[1:4]
pages = os.path.join(source, "docs/man")
problems = []


def read(*path):
    with open(os.path.join(source, *path)) as file:
        return file.read()


named = {}
for page in sorted(os.listdir(pages)):
    if page == "meson.build":
        continue
    text = read("docs/man", page)
    names = re.search(r"^\.SH NAME\n(.*) \\- ", text, re.M).group(1).split(", ")
    if page.endswith(".3"):
        for name in names:
            if name in named:
                problems.append(f"{name} is in {named[name]} and in {page}")
            named[name] = page
        body = text.split(".SH DESCRIPTION")[0]
        for name in names:
            if name not in body.split(".SH SYNOPSIS")[1]:
                problems.append(f"{page}: {name} is not in the synopsis")
    for name, section in re.findall(r"^\.BR (\S+) \((\d)\)", text.split(".SH SEE ALSO")[1], re.M):
        if name.startswith("percpu") and name not in ("percpu", "percpu_ops") and \
                name not in read("docs/man/meson.build"):
            problems.append(f"{page}: no page {name}({section})")
    if groff != "none":
        said = subprocess.run([groff, "-man", "-Tutf8", "-ww", "-z", os.path.join(pages, page)], capture_output=True, text=True)
        if said.returncode != 0 or said.stderr:
            problems.append(f"{page}: {said.stderr}")

# What there is: functions by name, operations by the lines of the contracts. Those of a pool go without saying.
there = {name for name in read("tests/abi/symbols.txt").split() if not name.endswith("_")}
for header in ("ops.h", "copies.h", "list.h", "static.h"):
    text = read("include/percpu", header)
    there |= set(re.findall(r"^ \* {1,3}(?:[\w *]+ )?\*?(percpu_[a-z0-9_]+[a-z0-9])\([^)]*\)", text, re.M))
    there |= set(re.findall(r"^#define (PERCPU_[A-Z_]+[A-Z]|percpu_static)\(", text, re.M))
    there |= set(re.findall(r"^(?:PERCPU_INLINE_|static inline).* \*?(percpu_[a-z0-9_]+[a-z0-9])\(", text, re.M))
there = {name for name in there if not re.match(r"percpu_pool_(ptr|this|sum|for|list|read|cmpxchg|add)", name)}
if set(named) - {"percpu_ops"} != there:
    problems.append(f"without a page: {sorted(there - set(named))}; a page of what is not there: "
                    f"{sorted(set(named) - there)}")

# The links.
linked = {}
for page, others in re.findall(r"^  '(\w+)': \[(.*?)\]", read("docs/man/meson.build"), re.M | re.S):
    for name in [page] + re.findall(r"'(\w+)'", others):
        linked[name] = page + ".3"
linked.pop("percpu_ops")
if linked != named:
    problems.append(f"links: {sorted(set(linked.items()) ^ set(named.items()))}")

# The example.
program = re.search(r"^\.nf\n(#include <percpu.h>\n#include.*?)^\.fi", read("docs/man/percpu.7"), re.M | re.S).group(1)
with tempfile.TemporaryDirectory() as work:
    file = os.path.join(work, "example.c")
    with open(file, "w") as out:
        out.write(program.replace("\\en", "\\n"))
    said = subprocess.run([*compiler.split(), "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{source}/include", "-c", file,
                           "-o", os.path.join(work, "example.o")], capture_output=True, text=True)
    if said.returncode != 0:
        problems.append(f"percpu.7: {said.stderr}")

for problem in problems:
    print("FAILED:", problem)
print(f"{len(named)} names")
sys.exit(1 if problems else 0)
