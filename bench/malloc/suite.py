# SPDX-License-Identifier: MIT
"""The patterns of bench/malloc under each allocator."""
import json

from harness import Case, Failed, Suite

ABOUT = ("Own programs for the patterns that the literature uses (each file in `malloc/` begins with what it does). Every block is written "
         "when it is taken and compared when it is given back. A repetition takes 100 ms or more, under the fastest allocator too.")

# Pattern, threads (0: its own), unit, label, what it does. Only the first word of --threads rows is the pattern.
PATTERNS = [
    ("pair", 0, "ns", "pair 64 B", "malloc(64) and free, the same block again and again; ns a pair"),
    ("batch", 0, "ns", "batch of 1,000", "1,000 mallocs of 64 bytes, then 1,000 frees; ns a pair"),
    ("small_churn", 0, "ns", "small churn", "1,000 blocks of 16 to 512 bytes, a random one replaced; ns a replacement"),
    ("random_sizes", 0, "ns", "random to 16 KiB", "2,000 blocks of 16 bytes to 16 KiB, a random one replaced; ns a replacement"),
    ("calloc", 0, "ns", "calloc", "500 zeroed blocks of 16 bytes to 4 KiB, some to 256 KiB, all read and written; ns a replacement"),
    ("realloc_growth", 0, "us", "realloc growth", "64 buffers that grow together to 64 KiB, then one to 16 MiB; us for all"),
    ("large", 0, "us", "large 5 to 25 MiB", "10 blocks of 5 to 25 MiB, a random one freed and taken again, each page touched; us a replacement"),
    ("producer_consumer", 0, "ns", "producer-consumer", "one thread takes blocks, another frees them; ns a block"),
    ("larson", 2, "ns", "Larson, 2 threads", "a server whose threads replace random blocks, end after 5 ms or more, and leave them to new threads; ns a replacement"),
    ("larson", 64, "ns", "Larson, 64 threads", "the same by 64 threads"),
    ("false_sharing_active", 0, "ms", "false sharing, active", "a thread per CPU takes a small block, writes it 1,000 times, frees it; ms"),
    ("false_sharing_passive", 0, "ms", "false sharing, passive", "the same after freeing a block that one thread took for all; ms"),
    ("thread_storm", 0, "us", "thread storm", "threads that live for 100 blocks, each begun by the one before it, a chain per CPU; us a thread"),
]
SCALING = [1, 2, 4, 8, 16, 32, 64]
IDLE = [1, 10, 50, 100, 200, 400]


def suite(context):
    program = context.build / "bench" / "bench_malloc"
    scale = 0.1 if context.quick else 1

    def pattern(name, threads=0, scale=scale):
        argv = [program, name, "--scale", str(scale), *(["--threads", str(threads)] if threads else [])]

        def run(allocator):
            run = context.run(argv, allocator)
            told = json.loads(run.stdout)
            if told["pattern"] != name or not told["figure"] > 0:
                raise Failed(f"wrote {run.stdout[:100]!r}")
            return {"time": told["figure"], "peak": run.peak, "cpu": run.cpu}
        return run

    cases = [Case(f"{name}_{threads}" if threads else name, what, unit, pattern(name, threads), label=label, goal=True)
             for name, threads, unit, label, what in PATTERNS]
    cases.append(Case("pair_floor", "the loop, the calls, and the block's number, with two functions that do nothing in place of malloc and free.",
                      "ns", pattern("pair_floor"), label="pair 64 B", kind="floor", columns=("glibc",), goal=True))
    idle = 20 if context.quick else 200
    cases.append(Case("idle_threads", f"{idle} threads that worked a while in turn, and wait; MiB held half a second later", "MiB",
                      pattern("idle_threads", idle), label=f"{idle} idle threads", kind="memory", rounds=3, goal=True))
    if not context.quick:
        cases += [Case(f"given_back_{threads}", "256 MiB in small and large blocks are freed; MiB held after three seconds of sleep", "MiB",
                       pattern("given_back", threads), label=label, kind="memory", rounds=3, goal=True)
                  for threads, label in ((1, "left 3 s after free"), (2, "left 3 s after free, 2 threads"))]
        cases += [Case(f"small_churn_{threads}", "", "ns", pattern("small_churn", threads), series="threads", x=threads, rounds=2)
                  for threads in SCALING]
        cases += [Case(f"idle_threads_{threads}", "", "MiB", pattern("idle_threads", threads), series="idle", x=threads, rounds=1,
                       kind="memory") for threads in IDLE]
    return Suite("malloc", "malloc, patterns", ABOUT, context.allocators, cases)
