# SPDX-License-Identifier: MIT
"""Suites and their cases, and the loop that runs them in turn.

Results are plain data, as they stand in results.json: a suite has rows, a row has a cell for each column (an allocator, or the
one column of a suite without), a cell has samples by quantity, one a round.
"""
import dataclasses
import itertools
import json
import pathlib
import sys
import tempfile
import time
from typing import Callable

from . import measure
from .allocators import Allocator
from .measure import Failed, Missing

PROGRAM_SECONDS = 1200  # a program of many rows hangs if it takes longer: some machines need five minutes for all of one
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
        return (allocator or Allocator("glibc")).environment(extra)


@dataclasses.dataclass
class Case:
    """One row: a function that takes an allocator and returns one number for each quantity."""
    name: str
    what: str
    unit: str
    run: Callable
    label: str = ""          # how tables and plots call it; its name, unless it says otherwise
    kind: str = "time"       # "memory": the figure is MiB, and no time; "start": a time that is in no mean with others; "floor": what
                             # no allocator can save of a row of that label
    series: str = ""         # the rows of a series make one line of a plot, and are no part of geometric means
    x: float = 0             # its place in the series
    rounds: int = 0          # at most so many; 0: as many as the others
    goal: bool = False       # a goal is about it: it has goal rounds
    columns: tuple = ()      # names of the allocators under which it is run; empty: all

    def describe(self):
        told = {"name": self.name, "what": self.what, "unit": self.unit}
        told.update({key: getattr(self, key) for key in ("label", "series", "x") if getattr(self, key)})
        if self.kind != "time":
            told["kind"] = self.kind
        return told

    def measure(self, column, of_goals=False):
        yield self.describe(), {key: [value] for key, value in self.run(column).items()}


@dataclasses.dataclass
class Program:
    """A program that prints rows of its own by --json FILE: {"rows": [{"name", "unit", "samples": [...]}]} (json_rows.h).

    The last word of a name of several is the column, as in "units/64 librseq"; "percpu" there is us.
    """
    name: str
    argv: list
    context: Context
    rounds: int = 0
    goals: tuple = ()        # the arguments of runs that make the rows which goals are about, for goal rounds
    columns = ()

    @property
    def goal(self):
        return bool(self.goals)

    def describe(self):
        return {"name": self.name, "what": "", "unit": "", "program": self.name}

    def measure(self, column, of_goals=False):
        if not pathlib.Path(self.argv[0]).exists():
            raise Missing(f"{pathlib.Path(self.argv[0]).name} was not built (package libbenchmark-dev)")
        for arguments in self.goals if of_goals else [()]:
            yield from self._rows(arguments)

    def _rows(self, arguments):
        quick = ["--quick"] if self.context.quick else []
        with tempfile.TemporaryDirectory(dir=self.context.work) as place:
            told = pathlib.Path(place) / "rows.json"
            self.context.run([*self.argv, *arguments, *quick, "--json", told], timeout=PROGRAM_SECONDS)
            if not told.exists():
                raise Failed("wrote no rows")
            rows = json.loads(told.read_text())["rows"]
        for row in rows:
            name, _, of = row["name"].rpartition(" ")
            # A round's median, with the extremes beside it.
            yield ({"name": name or of, "what": "", "unit": row["unit"], "program": self.name,
                    "column": of if name and of != "percpu" else ONLY},
                   {"time": [measure.median(row["samples"])], "extremes": [min(row["samples"]), max(row["samples"])]})


@dataclasses.dataclass
class Suite:
    name: str
    title: str
    about: str
    allocators: list         # empty: the cases take none
    cases: list
    goal_columns: tuple = () # names of the allocators that goals compare; empty: all


def measure_suite(suite, rounds, seconds=None, goal_rounds=0, tell=sys.stderr, clock=time.monotonic):
    """Runs all cases of a suite in turn, `rounds` times, and no longer than `seconds` after the first round. What goals are about (cases,
    under the allocators that goals compare) goes on until it has had `goal_rounds`, however long that takes and whatever was found so far.

    Returns: its results. Allocators that are absent, and runs that raise Missing or Failed, have a reason instead of a cell. One failure
    is enough for that: numbers of a program that now and then does not work are no numbers. Ctrl-C or SIGTERM ends it with what there is
    so far, and "ended" says so.
    """
    columns = suite.allocators or [None]
    rows = {}
    begin = clock()
    done = whole = runs = 0
    ended = False
    try:
        for number in range(max(rounds, goal_rounds)):
            todo = list(_runs(suite, columns, rows, number))
            if whole == number:
                taken = clock() - begin
                of_all = number < rounds and (number == 0 or seconds is None or taken + taken / max(runs, 1) * len(todo) <= seconds)
            if not of_all:
                todo = [run for run in todo if run[0].goal and run[2] in (suite.goal_columns or (run[2],))]
            if not todo or (not of_all and number >= goal_rounds):
                break
            for case, column, name in todo:
                if tell:
                    print(f"\r\033[K{suite.name}: round {number + 1} of {max(rounds, goal_rounds)}, {case.name}, {name}", end="", file=tell,
                          flush=True)
                _measure_once(case, column, name, rows, not of_all)
                runs += 1
            done += 1
            whole += of_all
    except (KeyboardInterrupt, SystemExit):
        ended = True
    if tell:
        print(f"\r\033[K{suite.name}: {whole} rounds{f' and {done - whole} of goal rows' if done > whole else ''} in {clock() - begin:.0f} s", file=tell, flush=True)
    return {
        "name": suite.name, "title": suite.title, "about": suite.about, "rounds": whole,
        **({"goal_columns": list(suite.goal_columns), "goal_rounds": done} if done > whole else {}), **({"ended": True} if ended else {}),
        "columns": [{"name": column.name, "version": column.version, "absent": column.absent} for column in suite.allocators]
        or [{"name": ONLY, "version": "this tree", "absent": ""}],
        "rows": list(rows.values()),
    }


def _runs(suite, columns, rows, number):
    """The runs of a round in their order, every second time the other way round: case, column, the column's name."""
    for case, column in itertools.product(suite.cases, columns[::-1] if number % 2 else columns):
        name = column.name if column else ONLY
        unusable = (column and column.absent) or (case.columns and name not in case.columns) or name in rows.get(case.name, {}).get("absent", ())
        if not unusable and not (case.rounds and number >= case.rounds):
            yield case, column, name


def _measure_once(case, column, name, rows, of_goals):
    """One run, its samples added to the rows that it is about; or the reason why there are none."""
    try:
        for row, samples in case.measure(column, of_goals):
            cell = _row(rows, row)["cells"].setdefault(row.get("column", name), {})
            for quantity, values in samples.items():
                cell.setdefault(quantity, []).extend(values)
    except Exception as problem:  # noqa: BLE001  whatever one program did, the others' numbers are worth having
        row = _row(rows, case.describe())
        row["cells"].pop(name, None)
        row["absent"][name] = str(problem) if isinstance(problem, (Missing, Failed)) else repr(problem)


def _row(rows, described):
    """The row of that name, made if it is new; rows stand in the order in which they came."""
    if described["name"] not in rows:
        rows[described["name"]] = {**{key: told for key, told in described.items() if key != "column"}, "cells": {}, "absent": {}}
    return rows[described["name"]]
