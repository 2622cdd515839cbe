# SPDX-License-Identifier: MIT
"""Runs tests of other allocators, built on the standard library's malloc, under that malloc and others, and prints a table.

mimalloc.py, rpmalloc.py and snmalloc.py say what is built, and how. A program passes if it ends with status 0; one that writes
lines "passed: NAME", "FAILED: NAME" and "left out: NAME" has them counted, and those that failed named.
"""
import argparse
import dataclasses
import os
import pathlib
import shlex
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
HANG_SECONDS = 600


@dataclasses.dataclass
class Program:
    """sources: files, relative to the tree, or absolute. runs: the arguments of each run."""
    name: str
    sources: list
    flags: list = dataclasses.field(default_factory=list)
    runs: list = dataclasses.field(default_factory=lambda: [""])
    env: dict = dataclasses.field(default_factory=dict)


def build(program, source, flags, work):
    """The first source is theirs, whose warnings do not matter. Returns: what the compilers complained of, or nothing."""
    objects = []
    linker = []
    for number, given in enumerate(program.sources):
        file = given if isinstance(given, pathlib.Path) else source / given
        out = work / f"{program.name}-{number}.o"
        theirs = [*program.flags, "-w"] if number == 0 else []
        plus = file.suffix != ".c" or "-xc++" in theirs
        compiler = shlex.split(os.environ.get("CXX", "g++") if plus else os.environ.get("CC", "gcc"))
        if plus or not linker:
            linker = compiler
        done = subprocess.run([*compiler, *flags, *theirs, "-c", file, "-o", out], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return done.stderr
        objects.append(out)
    done = subprocess.run([*linker, *objects, "-Wl,--gc-sections", "-pthread", "-o", work / program.name],
                          stderr=subprocess.PIPE, text=True)
    return done.stderr if done.returncode else ""


def run(command, env, library, log):
    """Returns: how it ended, in a word or a few."""
    environment = os.environ | env
    for name in ("LD_PRELOAD", "PERCPU_CONF", "MALLOC_CONF"):
        environment.pop(name, None)
    if library:
        environment["LD_PRELOAD"] = library
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, errors="replace", cwd=log.parent, start_new_session=True)
    try:
        wrote, _ = child.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        log.write_text(child.communicate()[0])
        return "HANG"
    log.write_text(f"status {child.returncode}\n{wrote}")
    passed, failed, left_out = ([line[len(mark):] for line in wrote.splitlines() if line.startswith(mark)]
                                for mark in ("passed: ", "FAILED: ", "left out: "))
    said = [f"{len(passed)} checks pass"] if passed else []
    said += [f"{len(left_out)} left out"] if left_out else []
    said += [f"not {name}" for name in failed]
    if child.returncode and not failed:
        said.append(f"status {child.returncode}")
    return ", ".join(["FAIL" if child.returncode else "pass", *said])


def main(about, programs, flags):
    """programs(source) and flags(source) say what is built of a tree, and with what."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("source", type=pathlib.Path, help="the tree of sources")
    parser.add_argument("--under", action="append", default=[], metavar="NAME=LIBRARY",
                        help="preloaded; glibc's malloc is tried too")
    parser.add_argument("--program", action="append", default=[], metavar="NAME", help="only this one")
    parser.add_argument("--runs", type=int, default=1, help="of each program")
    parser.add_argument("--work", type=pathlib.Path, help="a directory for what is built and written")
    args = parser.parse_args()
    source = args.source.resolve()
    work = (args.work or pathlib.Path(tempfile.mkdtemp(prefix="others-tests-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    mallocs = {"glibc": ""}
    for under in args.under:
        name, library = under.split("=", 1)
        mallocs[name] = os.path.abspath(library)
    not_built = []
    print("| test |", " | ".join(mallocs), "|")
    print("|" + " --- |" * (1 + len(mallocs)))
    for program in programs(source):
        if args.program and program.name not in args.program:
            continue
        why = build(program, source, flags(source), work)
        if why:
            not_built.append(f"{program.name}: {why}")
            continue
        for number, arguments in enumerate(program.runs):
            row = []
            for name, library in mallocs.items():
                how = {}
                for time in range(args.runs):
                    log = work / f"{program.name}-{number}-{time}.{name}.log"
                    ended = run([work / program.name, *arguments.split()], program.env, library, log)
                    how[ended] = how.get(ended, 0) + 1
                row.append("; ".join(f"{ended} ({times} of {args.runs} runs)" for ended, times in how.items()))
            print("|", program.name, arguments, "|", " | ".join(row), "|", flush=True)
    if not_built:
        print("\nNot built:", *not_built, sep="\n")
    print(f"\nWhat they wrote: {work}/*.log")
