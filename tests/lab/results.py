# SPDX-License-Identifier: MIT
"""RESULTS.md: a table of what was tried, how often, and what was found. A run changes the rows that are its own.

The table lies between two marks; what stands around it is written by hand.
"""
import pathlib

BEGIN = "<!-- table: written by scripts/lab -->"
END = "<!-- end of the table -->"
HEAD = "| machine | kernel | what | times | the last time |\n| --- | --- | --- | --- | --- |\n"
FILE = pathlib.Path(__file__).resolve().parent / "RESULTS.md"

# Parts whose steps share a row.
TOGETHER = {"unit": "unit suite", "refused": "system calls refused", "no rseq": "no rseq"}


def read(text):
    """The rows, as key -> [times, found]."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 5 and cells[3].isdigit():
            rows[tuple(cells[:3])] = [int(cells[3]), cells[4]]
    return rows


def told(step):
    """What a step said of itself: its line that begins with "lab:", else its last one."""
    lines = [line for line in step.output.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith("lab: "):
            return line[len("lab: "):]
    return lines[-1] if lines else "passed"


def rows_of(steps):
    """Yields (what, found) for the steps of a run."""
    shared = {}
    for step in steps:
        part = step.name.split("/")[0].removesuffix(", all online")
        if part in TOGETHER:
            shared.setdefault(step.name.split("/")[0], []).append(step)
        elif step.status == 77:
            yield step.name, "skipped: " + told(step)
        else:
            yield step.name, told(step) if step.status == 0 else f"FAILED (status {step.status}): {told(step)}"
    for part, own in shared.items():
        bad = [step.name.split("/", 1)[1] for step in own if step.status not in (0, 77)]
        good = sum(step.status == 0 for step in own)
        found = f"{good} of {len(own)} programs pass" + (f"; FAILED: {', '.join(bad)}" if bad else "")
        yield TOGETHER[part.removesuffix(", all online")] + (", all online" if part.endswith("online") else ""), found


def add(machine, kernel, steps):
    """Writes what a run found into the file."""
    text = FILE.read_text()
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = read(table)
    for what, found in rows_of(steps):
        key = (machine, kernel, what)
        rows[key] = [rows.get(key, [0])[0] + 1, found.replace("|", "/")]
    lines = "".join(f"| {' | '.join(key)} | {times} | {found} |\n" for key, (times, found) in rows.items())
    FILE.write_text(before + BEGIN + "\n" + HEAD + lines + END + after)
