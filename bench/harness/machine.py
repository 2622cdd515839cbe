# SPDX-License-Identifier: MIT
"""What stands beside results: the machine, the tree, and the versions of what was measured."""
import datetime
import glob
import mmap
import os
import pathlib
import platform
import re
import shutil
import subprocess
import time


def told_by(*argv, cwd=None):
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd).stdout.strip()
    except FileNotFoundError:
        return ""


def _read(path):
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return ""


def cpus_of(listed):
    """{0, 2, 3} of "0,2-3"."""
    ranges = [one.partition("-") for one in listed.split(",") if one]
    return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def share_a_core(cpus, listed):
    """Whether some of these CPUs are siblings. listed: a CPU's siblings as the system tells them. None where it does not tell of all."""
    siblings = [listed(cpu) for cpu in cpus]
    return any(len(cpus_of(one) & set(cpus)) > 1 for one in siblings) if all(siblings) else None


def costs_of_the_system():
    """{what: ns}, about: of a first touch of a page, and of a system call. In virtual machines these differ tenfold, and with them all that
    allocators ask of the system."""
    pages, calls = (64 << 20) // mmap.PAGESIZE, 20_000
    def spent(work):
        before = time.perf_counter_ns()
        work()
        return time.perf_counter_ns() - before
    faults = []
    for _ in range(3):
        with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                memory.madvise(mmap.MADV_NOHUGEPAGE)
            def touch():
                memory[::mmap.PAGESIZE] = b"1" * pages
            faults.append((spent(touch) - spent(touch)) / pages)
    asked = (spent(lambda: [os.getppid() for _ in range(calls)]) - spent(lambda: [abs(1) for _ in range(calls)])) / calls
    return {"fault_ns": round(sorted(faults)[1]), "call_ns": round(asked)}


def describe_machine(root):
    """The machine, and the commit of the tree at root."""
    processor = {key.strip(): words.strip() for key, _, words in (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())}
    kib = int(next(line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal")))
    name = processor.get("model name", platform.machine())
    if "cpu family" in processor:
        name += f" (family {processor['cpu family']}, model {processor.get('model', '?')})"
    changed = told_by("git", "status", "--porcelain", "--untracked-files=no", "--", "include", "lib", "preload", cwd=root)
    compiler = told_by("g++", "--version").splitlines()
    cpus = os.sched_getaffinity(0)
    pages = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    siblings = share_a_core(cpus, lambda cpu: _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
    return {"processor": name, "cpus": len(cpus), "siblings": siblings, "memory_gib": round(kib / (1 << 20)),
            "kernel": platform.release().split("-")[0], "huge_pages": pages[1] if pages else "", "libc": os.confstr("CS_GNU_LIBC_VERSION"),
            "compiler": compiler[0] if compiler else "", "date": datetime.date.today().isoformat(),
            "commit": told_by("git", "rev-parse", "--short", "HEAD", cwd=root) + (" and changes" if changed else ""),
            "virtual": " hypervisor" in processor.get("flags", ""), **costs_of_the_system()}


# Of each suite: name, and what tells its version. Allocators tell their own (allocators.py).
TELLERS = {
    "ops": [("librseq", ["pkg-config", "--modversion", "librseq"]), ("liburcu", ["pkg-config", "--modversion", "liburcu"]),
            ("RocksDB", ["pkg-config", "--modversion", "rocksdb"])],
    "alloc": [("librseq", ["pkg-config", "--modversion", "librseq"]), ("libjemalloc2", ["dpkg-query", "-W", "-f=${Version}", "libjemalloc2"])],
    "programs": [(name, [name, "--version"]) for name in ("redis-server", "memcached", "db_bench", "postgres", "sysbench", "sqlite3", "python3",
                                                          "g++", "z3", "gs", "xz")],
}


def versions_of(suite):
    """{name: version} of the programs and libraries of a suite that are on this machine, from whatever each says."""
    found = {}
    for name, argv in TELLERS.get(suite, ()):
        if name == "postgres":
            argv = [*sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: int(path.split("/")[4]))[-1:], "--version"]
        told = re.search(r"\d+(\.\d+)+(-[\w.+~-]+)?", told_by(*argv)) if shutil.which(argv[0]) else None
        if told:
            found[name] = told[0]
    return found
