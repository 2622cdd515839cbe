# SPDX-License-Identifier: MIT
"""RESULTS.md: a table of what was tried, how often, and what was found. A run changes the rows that are its own.

The table lies between two marks; what stands around it is written by hand. A row belongs to a machine, a kernel, a form and what
ran there; it tells of the last time, at which commit that was, and how many of all times it passed. So rows may be of different
commits: what a later one changed is not known of the others.
"""
import datetime
import fcntl
import pathlib
import re
import subprocess

BEGIN = "<!-- table: written by scripts/lab -->"
END = "<!-- end of the table -->"
HEAD = ("| machine | kernel | form | what | passed | date | commit | the last time |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n")
FILE = pathlib.Path(__file__).resolve().parent / "RESULTS.md"

# Parts whose steps share a row, but for steps that were asked for by their own names: some programs of a suite are not the suite.
TOGETHER = {"unit": "unit suite", "preload": "preload suite", "pin": "placement of threads", "refused": "system calls refused", "no rseq": "no rseq"}


def commit():
    """The last commit that changed more than the lab, with a "+" where the work tree has changes beyond that: what was tested."""
    def git(*arguments):
        return subprocess.run(["git", "-C", str(FILE.parents[2]), *arguments], capture_output=True, text=True).stdout.strip()

    but_the_lab = ["--", ".", ":!tests/lab"]
    changed = git("status", "--porcelain", "--untracked-files=no", *but_the_lab)
    return (git("log", "-1", "--format=%h", *but_the_lab) or "unknown") + ("+" if changed else "")


def read(text):
    """The rows, as key -> [times passed, times, what the last time was]."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 8 and " of " in cells[4]:
            passed, _, times = cells[4].partition(" of ")
            rows[tuple(cells[:4])] = [int(passed), int(times), cells[5:]]
    return rows


def told(step):
    """What a step said of itself: its line that begins with "lab:", else its last one."""
    lines = [line for line in re.sub("\x1b\\[[0-9;]*m", "", step.output).splitlines() if line.strip()]  # without colours
    for line in reversed(lines):
        if line.startswith("lab: "):
            return line[len("lab: "):]
    return lines[-1].strip() if lines else "passed" if step.status == 0 else "it said nothing"


def rows_of(steps, only=()):
    """Yields (what, whether it passed, found) for the steps of a run. What was skipped did not pass. `only`: what was asked for."""
    shared = {}
    for step in steps:
        part = step.name.split("/")[0].removesuffix(", all online")
        if part in TOGETHER and step.name not in only:
            shared.setdefault(step.name.split("/")[0], []).append(step)
        elif step.status == 77:
            yield step.name, False, "skipped: " + told(step)
        else:
            good = step.status == 0
            yield step.name, good, told(step) if good else f"FAILED (status {step.status}): {told(step)}"
    for part, own in shared.items():
        bad = [step.name.split("/", 1)[1] for step in own if step.status not in (0, 77)]
        skipped = [step.name.split("/", 1)[1] for step in own if step.status == 77]
        found = f"{len(own) - len(bad) - len(skipped)} of {len(own)} programs pass"
        found += f"; skipped: {', '.join(skipped)}" if skipped else ""
        found += f"; FAILED: {', '.join(bad)}" if bad else ""
        yield TOGETHER[part.removesuffix(", all online")] + (", all online" if part.endswith("online") else ""), not bad and len(skipped) < len(own), found


def add(machine, kernel, form, at_commit, steps, order=(), only=()):
    """Writes what a run found into the file. `order`: the machines' names, for the order of the rows. `only`: what was asked for."""
    with open(FILE, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another run may end at the same time
        text = file.read()
        before, _, rest = text.partition(BEGIN)
        table, _, after = rest.partition(END)
        rows = read(table)
        today = datetime.date.today().isoformat()
        for what, good, found in rows_of(steps, only):
            passed, times, _ = rows.get((machine, kernel, form, what), [0, 0, None])
            rows[machine, kernel, form, what] = [passed + good, times + 1, [today, at_commit, found.replace("|", "/")]]
        places = {name: place for place, name in enumerate(order)}
        # The rows of a run stay in the order of its steps.
        keys = sorted(rows, key=lambda key: (places.get(key[0], len(places)), key[0], key[1:3]))
        lines = "".join(f"| {' | '.join(key)} | {rows[key][0]} of {rows[key][1]} | {' | '.join(rows[key][2])} |\n" for key in keys)
        file.seek(0)
        file.truncate()
        file.write(before + BEGIN + "\n" + HEAD + lines + END + after)
