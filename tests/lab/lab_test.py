#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What scripts/lab promises before any machine runs: --only names what there is, and a guest has to be what its line says."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lab  # noqa: E402
import machine  # noqa: E402
from plan import Step  # noqa: E402

PLANS = {
    "host": [Step("no rseq/pool, tunable", []), Step("refused/count: rseq ENOSYS", [])],
    "possible8": [Step("unit/pool", []), Step("unit/fork", []), Step("count/rseq", []), Step("all online", []),
                  Step("hotplug, all online/count", [])],
}


def equal(found, expected, what):
    if found != expected:
        sys.exit(f"{what}: expected {expected!r}, found {found!r}")


def refusal(only, named):
    """What is said of it; "" where it is right."""
    try:
        lab.check_only(only, PLANS, named)
        return ""
    except lab.NothingToRun as refused:
        return str(refused)


equal(refusal(["unit", "count"], ["possible8"]), "", "parts")
equal(refusal(["hotplug"], ["possible8"]), "", "a part of the second half")
equal(refusal(["unit/pool", "no rseq"], ["possible8", "host"]), "", "a step, and a part with a blank")
equal(refusal(["unit"], []), "", "a part that one of all places has")
parts = "\n  host: no rseq, refused\n  possible8: unit, count, hotplug"
equal(refusal(["unti"], []), "--only: found nothing that is called 'unti'; there is" + parts, "a misspelled part")
equal(refusal(["unit", "cuont"], ["possible8"]), "--only: found nothing that is called 'cuont'; there is" + parts, "the second word")
equal(refusal(["unit/pol"], ["possible8"]), "--only: found nothing that is called 'unit/pol'; there is"
      "\n  host: no rseq, refused\n  possible8: unit/pool, unit/fork", "a misspelled step")
equal(refusal(["unit"], ["possible8", "host"]), "--only: found nothing of 'unit' on host; there is" + parts, "a place with nothing of it")

smt = machine.parse("smt threads=2 0-3:384 4-7:384 offline=3")
siblings = {name.split("/")[1]: text for name, text in smt.sysfs() if "siblings" in name}
equal(siblings, {"cpu0": "0-1", "cpu1": "0-1", "cpu2": "2", "cpu4": "4-5", "cpu5": "4-5", "cpu6": "6-7", "cpu7": "6-7"}, "siblings")
equal(any("siblings" in name for name, _ in machine.parse("plain 0-3:384").sysfs()), False, "siblings where the line tells of none")

in_turn = machine.parse("in-turn 0,2-3:256 1,4-5:256")
equal([node.cpus for node in in_turn.nodes], [[0, 2, 3], [1, 4, 5]], "CPUs in turn")
equal(machine.numa_arguments(in_turn)[3], "node,nodeid=0,cpus=0,cpus=2-3,memdev=m0", "how qemu is told of them")
print("lab: as promised")
