#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""stats:exit, stats:json and stats:signal of the preload, as a program's user sees them; and mallctl, as redis-server does.

statistics.py LIBRARY
"""
import ctypes, json, os, subprocess, sys

# A thread that allocates and ends, then signals to itself until the statistics have come, or for ever.
WORK = """
import os, signal, sys, threading
def work():
    kept = [bytes(100 + i % 3000) for i in range(20000)]
for _ in range(4):
    thread = threading.Thread(target=work); thread.start(); thread.join()
"""
MALLCTL = """
import ctypes
here = ctypes.CDLL(None)
def ask(name, kind):
    value = kind(); size = ctypes.c_size_t(ctypes.sizeof(value))
    result = here.mallctl(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return result, value.value
here.mallocx.restype = ctypes.c_void_p
block = here.mallocx(ctypes.c_size_t(10000000), 64)
allocated = ask(b"stats.allocated", ctypes.c_size_t)
assert allocated[0] == 0 and allocated[1] > 10000000, allocated
assert ask(b"stats.resident", ctypes.c_size_t)[1] >= ask(b"stats.active", ctypes.c_size_t)[1]
assert b"percpu" in ask(b"version", ctypes.c_char_p)[1]
assert ask(b"thread.allocatedp", ctypes.c_void_p)[0] == 2
assert ctypes.string_at(block, 10000000) == bytes(10000000)
here.dallocx(ctypes.c_void_p(block), 0)
assert ask(b"arena.0.purge", ctypes.c_size_t)[0] == 0
print("right")
"""


def run(conf, program, **more):
    environment = dict(os.environ, LD_PRELOAD=sys.argv[1], PERCPU_CONF=conf)
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, **more)


done = run("stats:exit", WORK)
assert done.returncode == 0 and done.stderr.startswith("percpu malloc: "), done
for part in ("KiB in use", "balancer: ", "node 0: ", "class ", " KiB metadata"):
    assert part in done.stderr, (part, done.stderr)

done = run("stats:json", WORK)
assert done.returncode == 0, done
told = json.loads(done.stderr)
assert told["used_bytes"] > 0 and told["nodes"][0]["open_bytes"] > 0 and told["classes"], told
assert told["balancer"]["ticks"] >= 0 and sum(c["blocks"] for c in told["classes"]) > 0

# The balance thread prints when it is asked, while the program waits.
reader, writer = os.pipe()
environment = dict(os.environ, LD_PRELOAD=sys.argv[1], PERCPU_CONF="stats:signal")
child = subprocess.Popen([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"], env=environment,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer)
os.close(writer)
assert child.stdout.readline() == b"up\n"
child.send_signal(12)
text = b""
while b"class " not in text:
    piece = os.read(reader, 4096)
    assert piece, text
    text += piece
assert text.startswith(b"percpu malloc: "), text
child.stdin.close()
assert child.wait() == 0

done = run("", MALLCTL)
assert done.returncode == 0 and done.stdout == "right\n", done
print("statistics: all there")
