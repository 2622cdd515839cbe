#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Whether the measurements of programs measure: every number is there, what is missing is told, and wrong work is found.

  check.py BUILD
"""
import dataclasses
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench" / "programs")]
from harness import Case, Context, Failed, Missing, Suite, find_allocators, measure_suite  # noqa: E402
import computing  # noqa: E402
import demo  # noqa: E402
import servers  # noqa: E402
import serving  # noqa: E402
import suite as programs_suite  # noqa: E402


def check(good, what):
    if not good:
        sys.exit(f"FAILED: {what}")


def measured(context):
    """Two programs under two allocators, all the way to the table's cells."""
    cases = [case for case in programs_suite.suite(context).cases if case.name in ("many threads", "sqlite3")]
    check(len(cases) == 2, f"expected two cases, found {cases}")
    results = measure_suite(Suite("programs", "", "", context.allocators, cases), 2, tell=None)
    for row in results["rows"]:
        check(not row["absent"], f"{row['name']}: {row['absent']}")
        for allocator in context.allocators:
            cell = row["cells"].get(allocator.name, {})
            for quantity in ("time", "peak", "cpu"):
                values = cell.get(quantity, [])
                check(len(values) == 2 and min(values) > 0, f"{row['name']} under {allocator.name}: two {quantity}s, found {values}")
            words = demo.cells({"p99": [1.0, 1.0], **cell}, cell)
            check(words[1] == "1.00" and words[4] == "1.00", f"expected the ratio of a cell to itself, found {words}")
    told = [len(row["cells"]["glibc"].get("p99", [])) for row in results["rows"]]
    check(sorted(told) == [0, 2], f"expected latencies of many threads, none of sqlite3, found {told}")


def absent(context):
    """A program that is not there is told, and stops nothing else."""

    def nothing(allocator):
        return {"time": context.run(["no-such-program-anywhere"], allocator).wall}

    results = measure_suite(Suite("programs", "", "", context.allocators, [Case("none", "", "s", nothing)]), 2, tell=None)
    reasons = results["rows"][0]["absent"]
    check(set(reasons.values()) == {"no-such-program-anywhere is not installed"} and len(reasons) == 2, f"reasons: {reasons}")
    try:
        serving.many_threads(dataclasses.replace(context, build=context.work), context.allocators[0])
        check(False, "a program that was not built: expected Missing, found a result")
    except Missing:
        pass


def different(context):
    """An output that differs between allocators is a failure."""
    computing.same("check", "a")
    computing.same("check", "a")
    try:
        computing.same("check", "b")
        check(False, "another output: expected Failed, found nothing")
    except Failed:
        pass


def copies(context):
    """Programs of other users run under each allocator, whatever its name."""
    for name in ("libpercpu", "libpercpu pin:none", "tcmalloc (google)"):
        extra = servers.readable_copy(context.allocators[1].library, servers.folder_of(context.work, name))
        maps = context.run(["cat", "/proc/self/maps"], context.allocators[1], extra).stdout
        check(extra["LD_PRELOAD"] in maps, f"expected {extra['LD_PRELOAD']} in a program, found {maps}")


def same_state(context):
    """Each run of PostgreSQL finds the tables as they were made, whatever the runs before have done to them."""
    cluster = serving.Cluster(context)
    try:
        found = []
        for _ in range(2):
            with cluster.start(context.allocators[0]) as server:
                found.append(cluster.ask("SELECT (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_history)"))
                cluster.ask("DELETE FROM pgbench_accounts")
                server.stop(signal.SIGINT)
    except Missing as missing:
        print(f"not tried: {missing}")
        return
    check(found == ["200000|0"] * 2, f"expected the same rows twice, found {found}")


def corrupt(context):
    """memcached_load finds a value with one wrong byte."""
    path = context.work / "corrupt"
    load = [str(context.build / "bench" / "memcached_load"), str(path), "--threads", "1", "--connections", "1", "--requests", "400",
            "--keys", "8", "--sets", "10"]

    def serve(listener, wrong_after):
        kept = {}
        gets = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                while line := stream.readline():
                    words = line.decode().split()
                    if words[0] == "set":
                        kept[words[1]] = stream.read(int(words[4]) + 2)[:-2]
                        stream.write(b"STORED\r\n")
                    else:
                        gets += 1
                        value = bytearray(kept[words[1]])
                        if gets == wrong_after:
                            value[-1] ^= 1
                        stream.write(f"VALUE {words[1]} 0 {len(value)}\r\n".encode() + value + b"\r\nEND\r\n")
                    try:
                        stream.flush()
                    except BrokenPipeError:
                        break

    for wrong_after, expected in ((0, 0), (200, 1)):
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            threading.Thread(target=serve, args=(listener, wrong_after), daemon=True).start()
            done = subprocess.run(load, capture_output=True, text=True, check=False)
            listener.shutdown(socket.SHUT_RDWR)
        check(done.returncode == expected, f"memcached_load: expected status {expected}, found {done}")
        check(("other bytes" in done.stderr) == (expected == 1), f"memcached_load wrote {done.stderr!r}")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: check.py BUILD")
    build = pathlib.Path(sys.argv[1]).resolve()
    allocators = [allocator for allocator in find_allocators(build / "preload" / "libpercpu_preload.so")
                  if allocator.name in ("glibc", "libpercpu")]
    check([allocator.absent for allocator in allocators] == ["", ""], f"allocators: {allocators}")
    for test in (measured, absent, different, copies, same_state, corrupt):
        with tempfile.TemporaryDirectory(prefix="percpu-check-") as work:
            test(Context(ROOT, build, pathlib.Path(work), allocators, quick=True))
    print("good")


if __name__ == "__main__":
    main()
