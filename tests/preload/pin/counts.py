#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How many CPUs there are: nproc, Python and OpenMP find in a placed thread what they find without the preload.

counts.py LIBRARY [OPENMP_PROGRAM]

Skipped (77) where the process may use one CPU only: then no thread is placed.
"""
import json, os, subprocess, sys

PROGRAM = """
import json, multiprocessing, os, subprocess, threading
def held_to_one():  # by what the kernel says
    with open("/proc/thread-self/status") as file:
        mask = next(line.split()[1] for line in file if line.startswith("Cpus_allowed:"))
    return sum(int(word, 16).bit_count() for word in mask.split(",")) == 1
bare = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
def count(**how):
    return int(subprocess.check_output(["nproc"], **how))
def answers():
    return {"os.sched_getaffinity": sorted(os.sched_getaffinity(0)), "os.cpu_count": os.cpu_count(),
            "multiprocessing.cpu_count": multiprocessing.cpu_count(), "SC_NPROCESSORS_ONLN": os.sysconf("SC_NPROCESSORS_ONLN"),
            "nproc": count(), "nproc, without the preload": count(env=bare),
            "nproc, by posix_spawn": count(close_fds=False), "nproc, by the shell": int(os.popen("nproc").read())}
told = []
def work():
    before = held_to_one()
    found = answers()
    told.append({"held": before and held_to_one(), "answers": found})
main = answers()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(json.dumps({"main": main, "thread": told[0]}))
"""
TRIES = 1000  # on a busy machine any thread may be set free

# OMP_NUM_THREADS and its like are answers of the user's, which nproc heeds too.
plain = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_")) and key != "LD_PRELOAD"}
plain.pop("PERCPU_CONF", None)
preloaded = dict(plain, LD_PRELOAD=sys.argv[1])
if len(os.sched_getaffinity(0)) < 2:
    print("counts: skipped, the process may use one CPU only")
    sys.exit(77)


def run(argv, environment):
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done
    return done.stdout


def until_placed(what, attempt, expected):
    """What is found must be right wherever the thread is; it must have been placed once."""
    for _ in range(TRIES):
        placed, found = attempt()
        assert found == expected, (what, found, expected)
        if placed:
            return
    sys.exit(f"{what}: expected a thread that is held to one CPU, found none of {TRIES}")


def python(environment):
    told = json.loads(run([sys.executable, "-c", PROGRAM], environment))
    return told["thread"]["held"], (told["main"], told["thread"]["answers"])


placed, expected = python(plain)
assert not placed
assert expected[0] == expected[1] and expected[0]["nproc"] == len(os.sched_getaffinity(0)), expected
until_placed("python3", lambda: python(preloaded), expected)
assert run(["nproc"], preloaded) == run(["nproc"], plain)

for program in sys.argv[2:]:
    def openmp(environment):
        before, *counts = map(int, run([program], environment).split())
        return before, counts
    placed, expected = openmp(plain)
    assert not placed and expected == [len(os.sched_getaffinity(0))] * 3, expected
    until_placed("OpenMP", lambda: openmp(preloaded), expected)
print("counts: as without the preload")
