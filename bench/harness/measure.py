# SPDX-License-Identifier: MIT
"""Running a program and measuring it, and what is made of the numbers.

A program is started by bench_launch (launch.c), which tells its wall time, the CPU time of it and its descendants, and its peak
resident memory. The preload is set for the program only, not for what starts it.
"""
import json
import math
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import tempfile

# Bounds a hang, not a duration: beyond what the slowest machine needs for one run of any suite.
HANG_SECONDS = 300


class Missing(Exception):
    """Something that a run needs is not on this machine. Its text is what the row says."""


class Failed(Exception):
    """A program did not do its work. Its text is what the row says."""


class Run:
    """What one run told. Times in seconds, memory in bytes."""

    def __init__(self, status, used, stdout, stderr):
        self.status, self.stdout, self.stderr = status, stdout, stderr
        self.wall, self.cpu = used["wall"], used["cpu"]
        # The largest process's peak; the whole tree's where it was asked for (tree_ms).
        self.peak = used["tree_peak"] or used["peak"]


class Running:
    """A program in the background, in a session of its own. Use as `with start(...) as server:`, or end it by finish() or stop()."""

    def __init__(self, launcher, argv, environment, stdin, tree_ms, cwd):
        if shutil.which(argv[0], path=environment.get("PATH")) is None:
            raise Missing(f"{os.path.basename(str(argv[0]))} is not installed")
        self.argv = [str(argument) for argument in argv]
        self._files = tempfile.TemporaryDirectory(prefix="percpu-bench-")
        place = pathlib.Path(self._files.name)
        self._result = place / "result"
        # Files, not pipes: nobody has to read along while the program runs.
        self._out, self._err = open(place / "out", "w+b"), open(place / "err", "w+b")
        environment = dict(environment)
        if "LD_PRELOAD" in environment:
            environment["BENCH_PRELOAD"] = environment.pop("LD_PRELOAD")
        self.process = subprocess.Popen([str(launcher), str(self._result), str(tree_ms), *self.argv], env=environment, cwd=cwd,
                                        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, stdout=self._out,
                                        stderr=self._err, start_new_session=True)
        if stdin is not None:
            try:
                self.process.stdin.write(stdin if isinstance(stdin, bytes) else stdin.encode())
                self.process.stdin.close()
            except BrokenPipeError:
                pass

    def _text(self, file):
        file.seek(0)
        return file.read().decode(errors="replace")

    def output(self):
        """What it has written to stdout so far."""
        return self._text(self._out)

    def errors(self):
        return self._text(self._err)

    def finish(self, timeout=HANG_SECONDS, expect=0):
        """Waits for the end. Returns: a Run. Raises Failed if it hangs, or ends otherwise than expected (None: in any way)."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"hangs for more than {timeout} s") from None
        try:
            stdout, stderr = self.output(), self.errors()
            used = json.loads(self._result.read_text()) if self._result.exists() else None
        finally:
            self._close()
        if used is None or (expect is not None and status != expect):
            told = (stderr.strip() or stdout.strip()).splitlines()
            how = f"signal {signal.Signals(status - 128).name}" if 128 < status < 160 else f"status {status}"
            raise Failed(f"ends with {how}{': ' + told[-1][:200] if told else ''}")
        return Run(status, used, stdout, stderr)

    def stop(self, number=signal.SIGTERM, timeout=HANG_SECONDS, expect=0):
        """Asks it to end, and waits. Returns: a Run."""
        self.process.send_signal(number)
        return self.finish(timeout, expect)

    def kill(self):
        """Ends its whole session. Does nothing when it has ended."""
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
        self._close()

    def _close(self):
        self._out.close()
        self._err.close()
        self._files.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def start(launcher, argv, environment, stdin=None, tree_ms=0, cwd=None):
    """Starts a program. tree_ms: how often to add up the memory of all its processes, 0 for programs of one process."""
    return Running(launcher, argv, environment, stdin, tree_ms, cwd)


def run(launcher, argv, environment, stdin=None, tree_ms=0, cwd=None, timeout=HANG_SECONDS, expect=0):
    """Runs a program to its end. Returns: a Run. Raises Missing, Failed."""
    with start(launcher, argv, environment, stdin, tree_ms, cwd) as running:
        return running.finish(timeout, expect)


def median(samples):
    return statistics.median(samples)


def geometric_mean(values):
    values = list(values)
    return math.exp(sum(math.log(value) for value in values) / len(values))
