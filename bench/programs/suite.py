# SPDX-License-Identifier: MIT
"""Programs from Debian's packages, as they are, and one of our own, under each allocator (bench/harness). Each run's result is checked."""
import pathlib
import sys

from harness import Case, Suite

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import computing  # noqa: E402
import serving  # noqa: E402

ABOUT = """Programs as Debian ships them, and one of our own (many threads), which is in no mean that a goal is about. Servers
(microseconds a request) have a client that runs under glibc's malloc; programs that compute (seconds) get the same input.
Output, digests and books are checked in every run. Peak memory is the server's, or the largest process's; of PostgreSQL all
processes' together. Debian's redis-server is linked with jemalloc: under "glibc" libc is put before it."""


def suite(context):
    cases = [Case(name, what, "us", run, goal=True) for name, what, run in serving.programs(context)]
    cases += [Case(name, what, "s", lambda allocator, run=run: run(context, allocator), goal=True)
              for name, what, run in computing.PROGRAMS]
    cases.append(Case("true", f"{computing.STARTS} starts, one after another, by a shell under the same allocator; ms a start", "ms",
                      lambda allocator: computing.true(context, allocator), kind="start", goal=True))
    return Suite("programs", "Real programs", " ".join(ABOUT.split()), context.allocators, cases,
                 goal_columns=("glibc", "jemalloc", "libpercpu", "libpercpu pin:none"))
