#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""glibc's tests of malloc, run under other mallocs.

    tests/others/glibc.py SOURCE [--under NAME=LIBRARY]... [--test NAME]... [--work DIRECTORY]

SOURCE is a tree of glibc's sources, of which nothing is changed and nothing comes into this one. Its malloc/tst-*.c are built
against the system's glibc and SOURCE's own support library, and run as they are ("glibc") and with each LIBRARY preloaded. Prints a
table, and what did not build. README.md has what came out.
"""
import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent

# Headers of glibc's own that its tests include and that work outside of it. Its include/ as a whole would hide the system's.
HEADERS = ["alloc_buffer.h", "array_length.h", "dynarray.h", "intprops.h", "libc-diag.h", "libc-pointer-arith.h", "scratch_buffer.h"]

# Others have nothing in them: prelude.h has what matters.
EMPTY = ["abi-versions.h", "config.h", "libc-config.h", "libc-symbols.h", "libc-symver.h", "malloc-size.h", "shlib-compat.h", "stackinfo.h"]

# The parts of glibc that some tests reach into, and that are not in libc.so.
INSIDE = ["alloc_buffer", "dynarray", "scratch_buffer"]

# Those that are no programs by themselves.
PARTS = ["tst-interpose-aux", "tst-interpose-skeleton", "tst-malloc-aux", "tst-aligned_alloc-lib"]

# What glibc's Makefile sets for single tests. Libraries of theirs come after the one that is tried, but for tst-aligned_alloc-lib,
# which is made to stand between a program and malloc.
DEBUG = "libc_malloc_debug.so.0"
BETWEEN = "tst-aligned_alloc-lib"
ENVIRONMENT = {
    "tst-aligned-alloc-random": {"LD_PRELOAD": BETWEEN},
    "tst-aligned-alloc-random-thread": {"LD_PRELOAD": BETWEEN},
    "tst-aligned-alloc-random-thread-cross": {"LD_PRELOAD": BETWEEN},
    "tst-compathooks-on": {"LD_PRELOAD": DEBUG},
    "tst-malloc-check": {"MALLOC_CHECK_": "3", "LD_PRELOAD": DEBUG},
    "tst-malloc-random": {"LD_PRELOAD": BETWEEN},
    "tst-malloc-usable": {"MALLOC_CHECK_": "3", "LD_PRELOAD": DEBUG},
    "tst-malloc-usable-tunables": {"GLIBC_TUNABLES": "glibc.malloc.check=3", "LD_PRELOAD": DEBUG},
    "tst-mallocstate": {"LD_PRELOAD": DEBUG},
    "tst-mxfast": {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"},
}
# The main program of these gets the file too.
LINKED = {"tst-interpose-nothread": "tst-interpose-aux-nothread", "tst-interpose-thread": "tst-interpose-aux-thread",
          "tst-interpose-static-nothread": "tst-interpose-aux-nothread", "tst-interpose-static-thread": "tst-interpose-aux-thread"}

# glibc's driver ends a test after 20 s times this. Beyond ours, it hangs.
TIMEOUT_FACTOR = 5
HANG_SECONDS = 600
PASS, FAIL, SKIP, HANG = "pass", "FAIL", "skip", "HANG"


class Builder:
    def __init__(self, source, work):
        self.source = source
        self.work = work
        self.shim = work / "include"
        self.shim.mkdir(parents=True, exist_ok=True)
        for name in ["support", "malloc"]:
            self._link(self.shim / name, source / name)
        for name in HEADERS:
            for directory in ["include", "malloc"]:
                if (source / directory / name).exists():
                    self._link(self.shim / name, source / directory / name)
                    break
        for name in EMPTY:
            (self.shim / name).write_text("")

    @staticmethod
    def _link(link, target):
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    def gcc(self, *args):
        """Returns: what the compiler complained of first, or nothing."""
        done = subprocess.run([*os.environ.get("CC", "gcc").split(), "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-w", *args],
                              stderr=subprocess.PIPE, text=True)
        errors = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
        return (errors or [done.stderr[:300]])[0] if done.returncode else ""

    def object(self, file):
        """Returns: the object file, or why there is none."""
        out = self.work / (file.parent.name + "-" + file.stem + ".o")
        why = self.gcc("-include", HERE / "prelude.h", f"-DTIMEOUTFACTOR={TIMEOUT_FACTOR}", "-I", self.shim, "-idirafter", self.source / "support", "-c", file, "-o", out)
        return out, why

    def support(self):
        """Those files of glibc's support library that build here, which are nearly all, and the parts that tests reach into."""
        files = [file for file in (self.source / "support").glob("*.c") if not file.stem.startswith(("tst-", "test-"))]
        for part in INSIDE:
            files += (self.source / "malloc").glob(part + "_*.c")
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            built = list(pool.map(self.object, sorted(files)))
        archive = self.work / "libsupport.a"
        archive.unlink(missing_ok=True)
        subprocess.run(["ar", "rc", archive, *[out for out, why in built if not why]], check=True)
        self.left_out = [why for _, why in built if why]

    def program(self, name):
        """Returns: why the test does not build, or nothing."""
        out, why = self.object(self.source / "malloc" / (name + ".c"))
        if why:
            return why
        objects = [out]
        if name in LINKED:
            out, why = self.object(self.source / "malloc" / (LINKED[name] + ".c"))
            if why:
                return why
            objects.append(out)
        if ENVIRONMENT.get(name, {}).get("LD_PRELOAD") == BETWEEN:
            why = self.gcc("-include", HERE / "prelude.h", "-fPIC", "-shared", "-I", self.shim, "-o", self.work / (BETWEEN + ".so"),
                           self.source / "malloc" / (BETWEEN + ".c"))
            if why:
                return why
        static = ["-static"] if "-static" in name else []
        return self.gcc(*static, "-o", self.work / name, *objects, self.work / "libsupport.a", "-pthread", "-Wl,--unresolved-symbols=ignore-in-object-files")


def outcome(program, library):
    """Returns: how the test ended, and what it wrote."""
    env = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "PERCPU_CONF", "MALLOC_CONF")}
    env["TIMEOUTFACTOR"] = str(TIMEOUT_FACTOR)
    own = ENVIRONMENT.get(program.name, {})
    env.update(own)
    libraries = [library, own.get("LD_PRELOAD", "")]
    if BETWEEN in libraries:
        libraries = [str(program.parent / (BETWEEN + ".so")), library]
    env["LD_PRELOAD"] = " ".join(libraries).strip()
    child = subprocess.Popen([program], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, errors="replace", cwd=program.parent, start_new_session=True)
    try:
        wrote, _ = child.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        return HANG, child.communicate()[0]
    if "timed out" in wrote.lower():
        return HANG, wrote
    return {0: PASS, 77: SKIP}.get(child.returncode, FAIL), f"status {child.returncode}\n{wrote}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("--under", action="append", default=[], metavar="NAME=LIBRARY")
    parser.add_argument("--test", action="append", default=[], metavar="NAME")
    parser.add_argument("--work", type=pathlib.Path)
    args = parser.parse_args()
    source = args.source.resolve()
    work = (args.work or pathlib.Path(tempfile.mkdtemp(prefix="glibc-tests-"))).resolve()
    mallocs = {"glibc": ""}
    for under in args.under:
        name, library = under.split("=", 1)
        mallocs[name] = os.path.abspath(library)
    builder = Builder(source, work)
    builder.support()
    tests = args.test or sorted(file.stem for file in [*(source / "malloc").glob("tst-*.c"), source / "malloc" / "mallocbug.c"]
                                if not file.stem.startswith(tuple(PARTS)))
    passed = dict.fromkeys(mallocs, 0)
    not_built = []
    print("| test |", " | ".join(mallocs), "|")
    print("|" + " --- |" * (1 + len(mallocs)))
    built = 0
    for test in tests:
        why = builder.program(test)
        if why:
            not_built.append(f"{test}: {why}")
            continue
        built += 1
        row = []
        for name, library in mallocs.items():
            how, wrote = outcome(work / test, library)
            row.append(how)
            passed[name] += how == PASS
            (work / f"{test}.{name}.log").write_text(wrote)
        print("|", test, "|", " | ".join(row), "|", flush=True)
    print(f"| passed of {built} |", " | ".join(map(str, passed.values())), "|\n")
    print("Not built:", *not_built, sep="\n")
    print("\nNot in the support library:", *builder.left_out, sep="\n")
    print(f"\nWhat they wrote: {work}/*.log")


if __name__ == "__main__":
    main()
