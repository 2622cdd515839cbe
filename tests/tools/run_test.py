#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""percpu-run as its user sees it.

run_test.py PERCPU_RUN LIBRARY
"""
import json, os, shutil, subprocess, sys, tempfile

tool, library = sys.argv[1:]
clean = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "PERCPU_CONF", "PERCPU_PRELOAD")}


def run(*args, **environment):
    return subprocess.run([tool, *args], env=dict(clean, **environment), capture_output=True, text=True)


def expect(done, status, out=None, err=None):
    assert done.returncode == status, done
    if out is not None:
        assert done.stdout == out, done
    if err is not None:
        assert err in done.stderr and done.stderr.count("\n") == 1, done


SHOW = "import os; print(os.environ['LD_PRELOAD'], os.environ.get('PERCPU_CONF'))"
python = sys.executable

# It finds the library beside it, and the program runs under it.
done = run(python, "-c", "print(open('/proc/self/maps').read())")
assert done.returncode == 0 and os.path.realpath(library) in done.stdout, done
expect(run(python, "-c", "import sys; sys.exit(7)"), 7, "")

# Options become items of PERCPU_CONF, behind what is there.
expect(run("--library", library, "--pin", "list:0", "--conf", "decay:5,cache:1M", "--check", "usual", python, "-c", SHOW),
       0, f"{library} pin:list:0,decay:5,cache:1M,check:usual\n")
expect(run("--library", library, "--pin", "none", python, "-c", SHOW, PERCPU_CONF="decay:9"), 0, f"{library} decay:9,pin:none\n")
expect(run(python, "-c", SHOW, PERCPU_PRELOAD=library), 0, f"{library} None\n")
# An empty variable is none, as the dynamic linker has it; an empty option is a mistake.
done = run(python, "-c", SHOW, PERCPU_PRELOAD="")
assert done.returncode == 0 and done.stdout == f"{os.path.realpath(library)} None\n", done
expect(run("--library", "", "true"), 2, "", "--library: expected a path or a name, found an empty text")
# A relative path becomes an absolute one; a bare name stays what it is.
expect(run("--library", os.path.relpath(library), python, "-c", SHOW), 0, f"{os.path.realpath(library)} None\n")
expect(run("--library", os.path.basename(library), python, "-c", SHOW, LD_LIBRARY_PATH=os.path.dirname(library)), 0,
       f"{os.path.basename(library)} None\n")
# Other preloads stay, behind ours.
done = run("--library", library, python, "-c", SHOW, LD_PRELOAD="libm.so.6")
assert done.returncode == 0 and done.stdout == f"{library}:libm.so.6 None\n", done
# The program's own options are not ours.
expect(run("echo", "--pin", "x"), 0, "--pin x\n")
expect(run("--", "echo", "a"), 0, "a\n")

told = run("--stats", "json", python, "-c", "x = [bytes(100) for _ in range(1000)]")
assert told.returncode == 0 and json.loads(told.stderr)["used_bytes"] > 0, told

done = run("--help")
assert done.returncode == 0 and done.stdout.startswith("usage: percpu-run") and done.stderr == "", done
assert run("--version").stdout.startswith("percpu-run 0."), run("--version")

# Bad usage, and programs that cannot be run: one line, and the statuses of env.
expect(run(), 2, "", "expected a program to run, found none")
expect(run("--pin"), 2, "", "--pin: expected a value behind it, found none")
expect(run("--nonsense", "true"), 2, "", "--nonsense: expected an option")
expect(run("-x", "true"), 2, "", "-x: expected an option")
expect(run("no-such-program-anywhere"), 127, "", "no-such-program-anywhere: No such file or directory")
expect(run("/"), 126, "", "/: Permission denied")
expect(run("--library", "/nowhere/lib.so", "true"), 125, "", "the preload library /nowhere/lib.so: No such file")
for no_library in "/", "/etc/passwd", "/dev/null":
    expect(run("--library", no_library, "true"), 125, "", "expected a shared library, found something else")
with tempfile.TemporaryDirectory(prefix="a b") as directory:
    spaced = os.path.join(directory, "lib.so")
    shutil.copy(library, spaced)
    expect(run("--library", spaced, "true"), 125, "", "expected a path without colons and spaces")

# A static program is told apart.
with tempfile.TemporaryDirectory() as directory:
    source = os.path.join(directory, "static.c")
    with open(source, "w") as file:
        file.write("int main(void) { return 3; }\n")
    program = os.path.join(directory, "static")
    if subprocess.run(["cc", "-static", "-o", program, source], capture_output=True).returncode == 0:
        expect(run(program), 3, "", "is linked statically: it ignores the preload")
# The dynamic linker as a program is told from one: what it loads is preloaded.
linker = subprocess.run(["readelf", "-lW", python], capture_output=True, text=True).stdout.partition("program interpreter: ")[2].partition("]")[0]
if linker and os.access(linker, os.X_OK):
    done = run(linker, python, "-c", "print(open('/proc/self/maps').read())")
    assert done.returncode == 0 and os.path.realpath(library) in done.stdout and done.stderr == "", done
print("percpu-run: all as promised")
