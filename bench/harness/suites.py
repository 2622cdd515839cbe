# SPDX-License-Identifier: MIT
"""Suites and their cases, and the loop that runs them in turn.

Results are plain data, as they stand in results.json: a suite has rows, a row has a cell for each column (an allocator, or the
one column of a suite without), a cell has samples by quantity, one a round.
"""
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import Callable

from . import measure
from .measure import Failed, Missing

ONLY = "libpercpu"  # the column of suites that take no allocator


@dataclasses.dataclass
class Context:
    """What a suite is handed: where things are, and which allocators there are."""
    source: pathlib.Path
    build: pathlib.Path
    work: pathlib.Path       # a folder for its files, empty at first, removed at the end
    allocators: list
    quick: bool = False      # a run of all suites takes two minutes: work that is a tenth is enough

    @property
    def launcher(self):
        return self.build / "bench" / "bench_launch"

    def run(self, argv, allocator=None, extra=None, **how):
        """measure.run() under an allocator (None: under glibc's own). extra: more environment."""
        return measure.run(self.launcher, argv, self._environment(allocator, extra), **how)

    def start(self, argv, allocator=None, extra=None, **how):
        """measure.start() under an allocator."""
        return measure.start(self.launcher, argv, self._environment(allocator, extra), **how)

    def _environment(self, allocator, extra):
        return (allocator or self.allocators[0]).environment(extra)


@dataclasses.dataclass
class Case:
    """One row: a function that takes an allocator and returns one number for each quantity."""
    name: str
    what: str
    unit: str
    run: Callable

    def measure(self, column):
        yield {"name": self.name, "what": self.what, "unit": self.unit}, {key: [value] for key, value in self.run(column).items()}


@dataclasses.dataclass
class Program:
    """A program that prints rows of its own by --json FILE: {"rows": [{"name", "unit", "samples": [...]}]} (compare.h)."""
    name: str
    argv: list
    context: Context

    def measure(self, column):
        if not pathlib.Path(self.argv[0]).exists():
            raise Missing(f"{pathlib.Path(self.argv[0]).name} was not built")
        with tempfile.TemporaryDirectory(dir=self.context.work) as place:
            told = pathlib.Path(place) / "rows.json"
            self.context.run([*self.argv, "--json", told])
            rows = json.loads(told.read_text())["rows"]
        for row in rows:
            # A round's median, with the extremes beside it.
            yield ({"name": row["name"], "what": row.get("what", ""), "unit": row["unit"], "program": self.name},
                   {"time": [measure.median(row["samples"])], "extremes": [min(row["samples"]), max(row["samples"])]})


@dataclasses.dataclass
class Suite:
    name: str
    title: str
    about: str
    allocators: list         # empty: the cases take none
    cases: list


def measure_suite(suite, rounds, seconds=None, tell=sys.stderr):
    """Runs all cases of a suite in turn, `rounds` times, and no longer than `seconds` after the first round.

    Returns: its results. Allocators that are absent, and rows that raise Missing or Failed, have a reason instead of a cell; such a
    row is not tried again in later rounds.
    """
    columns = suite.allocators or [None]
    rows = {}
    absent = {}
    begin = time.monotonic()
    done = 0
    for number in range(rounds):
        if number > 0 and seconds is not None and (time.monotonic() - begin) * (number + 1) / number > seconds:
            break
        for case in suite.cases:
            for column in columns:
                name = column.name if column else ONLY
                if (case.name, name) in absent or (column and column.absent):
                    continue
                if tell:
                    print(f"\r\033[K{suite.name}: round {number + 1} of {rounds}, {case.name}, {name}", end="", file=tell, flush=True)
                try:
                    for row, samples in case.measure(column):
                        cell = rows.setdefault(row["name"], {**row, "cells": {}, "absent": {}})["cells"].setdefault(name, {})
                        for quantity, values in samples.items():
                            cell.setdefault(quantity, []).extend(values)
                except (Missing, Failed) as problem:
                    absent[case.name, name] = str(problem)
        done += 1
    if tell:
        print(f"\r\033[K{suite.name}: {done} rounds in {time.monotonic() - begin:.0f} s", file=tell, flush=True)
    order = list(rows)
    for case in suite.cases:
        for (case_name, name), reason in absent.items():
            if case_name == case.name:
                row = rows.setdefault(case.name, {"name": case.name, "what": getattr(case, "what", ""),
                                                  "unit": getattr(case, "unit", ""), "cells": {}, "absent": {}})
                row["cells"].pop(name, None)
                row["absent"][name] = reason
    # In the order of the cases, also those that never gave a number.
    names = [case.name for case in suite.cases if isinstance(case, Case)]
    ordered = [rows[name] for name in names if name in rows] + [rows[name] for name in rows if name not in names]
    del order
    return {
        "title": suite.title, "about": suite.about, "rounds": done,
        "columns": [{"name": column.name, "version": column.version, "absent": column.absent} for column in suite.allocators]
        or [{"name": ONLY, "version": "this tree", "absent": ""}],
        "rows": ordered,
    }
