#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Real programs under glibc's malloc, jemalloc and ours in turn, as one table. scripts/demo runs it.

  demo.py BUILD [--rounds N] [--quick]

BUILD is a build tree. All programs are run once a round under each allocator; the table has the medians. Its status is 0 when each
program did its work under all three; a program that is not installed is a row that says so.
"""
import argparse
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench" / "programs")]
from harness import Case, Context, Suite, find_allocators, measure_suite, median  # noqa: E402
import serving  # noqa: E402

SHOWN = ["glibc", "jemalloc", "libpercpu"]
PROGRAMS = ["redis", "memcached", "RocksDB", "many threads"]


def cells(cell, base):
    """Requests a second, their ratio to jemalloc's, p99 in ms, peak in MB, its ratio."""
    middle = {quantity: median(samples) for quantity, samples in cell.items()}
    rate, peak = 1e6 / middle["time"], middle["peak"] / 2**20
    if base:
        ratios = [f"{median(base['time']) / middle['time']:.2f}", f"{middle['peak'] / median(base['peak']):.2f}"]
    else:
        ratios = ["", ""]
    return [f"{rate:,.0f}", ratios[0], f"{middle['p99'] / 1000:.2f}", f"{peak:.1f}", ratios[1]]


def table(results, allocators):
    lines = [("", "", "requests/s", "/jemalloc", "p99 ms", "peak MB", "/jemalloc")]
    whats = []
    for row in results["rows"]:
        base = row["cells"].get("jemalloc")
        for number, allocator in enumerate(allocators):
            name = row["name"] if number == 0 else ""
            if allocator.name in row["cells"]:
                lines.append((name, allocator.name, *cells(row["cells"][allocator.name], base)))
            else:
                lines.append((name, allocator.name, row["absent"].get(allocator.name) or allocator.absent))
        whats.append(f"  {row['name']}: {row['what']}")
    widths = [max(len(line[column]) for line in lines if len(line) == 7) for column in range(7)]
    for line in lines:
        if line[0]:
            print()
        if len(line) < 7:
            print(f"{line[0]:{widths[0]}}  {line[1]:{widths[1]}}  {line[2]}")
            continue
        print("  ".join(f"{word:{width}}" if column < 2 else f"{word:>{width}}" for column, (word, width) in enumerate(zip(line, widths))))
    print("\n" + "\n".join(whats))


def main():
    parser = argparse.ArgumentParser(description="Real programs under glibc's malloc, jemalloc and libpercpu's preload.")
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    options = parser.parse_args()
    preload = options.build.resolve() / "preload" / "libpercpu_preload.so"
    if not preload.exists():
        sys.exit(f"demo.py: expected the preload library at {preload}, found nothing")
    allocators = [allocator for allocator in find_allocators(preload) if allocator.name in SHOWN]
    with tempfile.TemporaryDirectory(prefix="percpu-demo-") as work:
        context = Context(ROOT, options.build.resolve(), pathlib.Path(work), allocators, options.quick)
        cases = [Case(name, what, "us", run) for name, what, run in serving.programs(context) if name in PROGRAMS]
        results = measure_suite(Suite("programs", "", "", allocators, cases), options.rounds,
                                tell=sys.stderr if sys.stderr.isatty() else None)
    print(f"Programs as Debian ships them, {results['rounds']} rounds under each malloc in turn, medians. "
          "More requests, less p99 and less memory are better.\n")
    table(results, allocators)
    wrong = [f"{row['name']} under {name}: {reason}" for row in results["rows"] for name, reason in row["absent"].items()]
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
