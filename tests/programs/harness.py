# SPDX-License-Identifier: MIT
"""What the tests of whole programs share: running one with or without the preload, and seeing that it was really there.

A program that ends by exit() tells so itself: PERCPU_CONF=stats:exit makes the preload print what the heap holds. A server is also
asked while it runs, by /proc/PID/maps. Everything that was started is ended when the test ends, whichever way that is.
"""
import atexit
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SKIP = 77
STATS = "percpu malloc:"
# Bounds a hang, not a duration: far beyond what the slowest machine needs.
HANG_SECONDS = 900

work = pathlib.Path()
_preload = ""
_children = []


class Failed(Exception):
    pass


def check(good, what):
    if not good:
        raise Failed(what)


def equal(found, expected, what):
    if found != expected:
        raise Failed(f"{what}: found {str(found)[:2000]!r}, expected {str(expected)[:2000]!r}")


def need(*programs):
    """Skips the test where one of these programs is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            print(f"skipped: {program} is not installed (scripts/setup full)")
            sys.exit(SKIP)


def environment(preloaded, extra=None):
    env = {name: value for name, value in os.environ.items()
           if name not in ("LD_PRELOAD", "PERCPU_CONF", "LC_ALL", "MALLOC_PERTURB_", "MALLOC_PERTURB")}
    env["LC_ALL"] = "C.UTF-8"
    if preloaded:
        env["LD_PRELOAD"] = _preload
        env["PERCPU_CONF"] = "stats:exit"
    env.update(extra or {})
    return env


def _told(stderr):
    """What the program itself said: the preload's table is one line that begins with STATS, and indented ones."""
    lines = []
    inside = False
    for line in stderr.splitlines():
        if STATS in line:
            inside = True
        elif not (inside and line.startswith("  ")):
            inside = False
            lines.append(line)
    return "\n".join(lines)


def run(args, preloaded=True, stdin="", extra=None, **popen):
    """Runs a program to its end, which must be a good one. Returns: what it wrote to stdout."""
    child = subprocess.Popen(args, env=environment(preloaded, extra), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, start_new_session=True, **popen)
    _children.append(child)
    try:
        stdout, stderr = child.communicate(stdin, timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed(f"{args[0]} hangs")
    equal(child.returncode, 0, f"status of {' '.join(map(str, args))[:300]}, which wrote {stdout[-1000:]!r} and {stderr[-3000:]!r}")
    told = _told(stderr)
    check("libpercpu" not in told and "ld.so" not in told, f"{args[0]} wrote {told!r}")
    equal(STATS in stderr, preloaded, f"was {args[0]} under the preload")
    return stdout


def same(args, **how):
    """Runs a program with and without the preload. Returns: its stdout, the same in both."""
    expected = run(args, preloaded=False, **how)
    found = run(args, preloaded=True, **how)
    equal(found, expected, f"output of {args[0]} under the preload")
    return found


class Server:
    """A program that runs in the background, in a session of its own, until stop() or the end of the test."""

    def __init__(self, args, preloaded=True, extra=None, **popen):
        self.args = args
        self.preloaded = preloaded
        self.log = work / f"server-{len(_children)}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(args, env=environment(preloaded, extra), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, start_new_session=True, **popen)
        _children.append(self.process)

    def wait_until(self, ready, what):
        """Waits until ready() holds; fails when the server ends before."""
        deadline = time.monotonic() + HANG_SECONDS
        while not ready():
            check(self.process.poll() is None, f"{self.args[0]} ended before {what}: {self.log.read_text()[-3000:]}")
            check(time.monotonic() < deadline, f"{self.args[0]} hangs before {what}: {self.log.read_text()[-3000:]}")
            time.sleep(0.02)
        with open(f"/proc/{self.process.pid}/maps") as maps:
            equal("libpercpu_preload" in maps.read(), self.preloaded, f"is {self.args[0]} under the preload")

    def stop(self, number=signal.SIGTERM):
        """Ends the server in its own way. It must end well, and not have complained."""
        if number is not None:
            self.process.send_signal(number)
        try:
            self.process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.args[0]} does not end")
        log = self.log.read_text()
        equal(self.process.returncode, 0, f"status of {self.args[0]}, which wrote {log[-3000:]!r}")
        check("libpercpu" not in _told(log), f"{self.args[0]} wrote {_told(log)[-3000:]!r}")
        equal(STATS in log, self.preloaded, f"was {self.args[0]} under the preload")
        return log


def _end_all():
    for child in _children:
        # Its whole session: servers fork. A process id is ours as long as we have not waited for it.
        if child.poll() is None:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
    if work != pathlib.Path():
        shutil.rmtree(work, ignore_errors=True)


def preload():
    return _preload


def main(tests):
    """ARGV: the preload, and which test."""
    global work, _preload
    if len(sys.argv) != 3 or sys.argv[2] not in tests:
        print(f"usage: {sys.argv[0]} libpercpu_preload.so {'|'.join(tests)}", file=sys.stderr)
        sys.exit(2)
    _preload = os.path.abspath(sys.argv[1])
    # Sockets have short names, so not below the build directory.
    work = pathlib.Path(tempfile.mkdtemp(prefix="percpu-"))
    atexit.register(_end_all)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        tests[sys.argv[2]]()
    except Failed as failure:
        print(f"FAILED: {failure}")
        sys.exit(1)
    print("good")
