#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""stats:exit, stats:json and stats:signal of the preload, as a program's user sees them; and mallctl, as redis-server does.

statistics.py LIBRARY HOLDER
"""
import json, os, re, resource, signal, subprocess, sys, tempfile
import xml.etree.ElementTree

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
# The figures are those of the last epoch.
assert ask(b"stats.allocated", ctypes.c_size_t) == allocated
epoch = ctypes.c_uint64(1)
assert here.mallctl(b"epoch", None, None, ctypes.byref(epoch), ctypes.c_size_t(8)) == 0
assert ask(b"stats.allocated", ctypes.c_size_t)[1] < allocated[1] - 9000000
assert here.mallctl(b"arena.0.purge", None, None, None, ctypes.c_size_t(0)) == 0
assert ask(b"arena.0.purge", ctypes.c_size_t)[0] == 1
# All arenas, by how many there are: redis-server's MEMORY PURGE and FLUSHALL.
arenas = ask(b"arenas.narenas", ctypes.c_uint)
assert arenas == (0, 1), arenas
assert here.mallctl(b"arena.%d.purge" % arenas[1], None, None, None, ctypes.c_size_t(0)) == 0
assert here.mallctl(b"arena.4096.decay", None, None, None, ctypes.c_size_t(0)) == 0
assert ask(b"arena.99.purge", ctypes.c_size_t)[0] == 2
# Every name that abi/jemalloc.cc lists, by name and by number.
NAMES = {b"version": ctypes.c_char_p, b"epoch": ctypes.c_uint64, b"thread.tcache.enabled": ctypes.c_bool,
         b"background_thread": ctypes.c_bool, b"opt.background_thread": ctypes.c_bool, b"opt.narenas": ctypes.c_uint,
         b"arenas.narenas": ctypes.c_uint, b"arenas.page": ctypes.c_size_t, b"arenas.quantum": ctypes.c_size_t}
NAMES |= {b"stats." + name: ctypes.c_size_t for name in (b"allocated", b"active", b"resident", b"mapped", b"retained", b"metadata")}
for name, kind in NAMES.items():
    result, value = ask(name, kind)
    assert result == 0, name
    mib = (ctypes.c_size_t * 4)(); words = ctypes.c_size_t(4)
    assert here.mallctlnametomib(name, mib, ctypes.byref(words)) == 0 and words.value == 1, name
    again = kind(); size = ctypes.c_size_t(ctypes.sizeof(again))
    assert here.mallctlbymib(mib, words, ctypes.byref(again), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0, name
    assert name.startswith(b"stats.") or again.value == value, (name, value, again.value)
    wrong = (ctypes.c_char * 3)(); size = ctypes.c_size_t(3)
    assert here.mallctl(name, wrong, ctypes.byref(size), None, ctypes.c_size_t(0)) == 22, name
for name in b"thread.tcache.flush", b"arena.0.purge":
    mib = (ctypes.c_size_t * 4)(); words = ctypes.c_size_t(4)
    assert here.mallctlnametomib(name, mib, ctypes.byref(words)) == 0, name
    assert here.mallctlbymib(mib, words, None, None, None, ctypes.c_size_t(0)) == 0, name
words = ctypes.c_size_t(0)
assert here.mallctlnametomib(b"epoch", (ctypes.c_size_t * 1)(), ctypes.byref(words)) == 22
assert here.mallctlnametomib(b"no.such.name", (ctypes.c_size_t * 1)(), ctypes.byref(ctypes.c_size_t(1))) == 2
assert here.mallctlbymib((ctypes.c_size_t * 1)(999), ctypes.c_size_t(1), None, None, None, ctypes.c_size_t(0)) == 2
assert ask(b"arenas.page", ctypes.c_size_t)[1] == 4096 and ask(b"arenas.quantum", ctypes.c_size_t)[1] == 16
assert ask(b"stats.mapped", ctypes.c_size_t)[1] >= ask(b"stats.active", ctypes.c_size_t)[1] > 0
def tell(name, value):
    old = type(value)(); size = ctypes.c_size_t(ctypes.sizeof(old))
    result = here.mallctl(name, ctypes.byref(old), ctypes.byref(size), ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))
    return result, old.value
for name in b"background_thread", b"thread.tcache.enabled":
    assert tell(name, ctypes.c_bool(True)) == (0, True), name
    assert tell(name, ctypes.c_bool(False))[0] == 1 and ask(name, ctypes.c_bool) == (0, True), name
for name in b"stats.allocated", b"opt.background_thread":
    assert tell(name, ctypes.c_size_t(1))[0] == 1, name
# As jemalloc 5.3: what can only be asked for takes no size of a value, what only does something none either; a value without a size is
# not asked for.
for name, kind in ((b"stats.allocated", ctypes.c_size_t), (b"version", ctypes.c_char_p)):
    old = kind(); size = ctypes.c_size_t(8)
    assert here.mallctl(name, ctypes.byref(old), ctypes.byref(size), None, ctypes.c_size_t(8)) == 1, name
for name in b"thread.tcache.flush", b"arena.0.purge", b"arena.0.destroy":
    assert here.mallctl(name, None, None, None, ctypes.c_size_t(8)) == 1, name
    assert here.mallctl(name, None, ctypes.byref(ctypes.c_size_t(8)), None, ctypes.c_size_t(0)) == 1, name
old = ctypes.c_size_t(7)
assert here.mallctl(b"stats.allocated", ctypes.byref(old), None, None, ctypes.c_size_t(0)) == 0 and old.value == 7
# An arena of one's own, as named makes: it is the only one.
assert ask(b"arenas.create", ctypes.c_uint) == (0, 0)
for name in b"arena.0.dirty_decay_ms", b"arena.0.muzzy_decay_ms", b"arenas.dirty_decay_ms", b"arenas.muzzy_decay_ms":
    expected = 0 if b"muzzy" in name else 1000
    assert ask(name, ctypes.c_ssize_t) == (0, expected), name
    assert tell(name, ctypes.c_ssize_t(5000)) == (0, expected) and tell(name, ctypes.c_ssize_t(-1))[0] == 0, name
    assert tell(name, ctypes.c_ssize_t(-2))[0] == 14 and tell(name, ctypes.c_uint(1))[0] == 22, name
    mib = (ctypes.c_size_t * 4)(); words = ctypes.c_size_t(4)
    assert here.mallctlnametomib(name, mib, ctypes.byref(words)) == 0, name
    again = ctypes.c_ssize_t(); size = ctypes.c_size_t(8)
    assert here.mallctlbymib(mib, words, ctypes.byref(again), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0, name
    assert again.value == expected, (name, again)
assert here.mallctl(b"arena.0.destroy", None, None, None, ctypes.c_size_t(0)) == 0
assert tell(b"epoch", ctypes.c_uint64(1))[0] == 0 and tell(b"epoch", ctypes.c_uint32(1))[0] == 22
print("right")
"""


def run(conf, program, **more):
    environment = dict(os.environ, LD_PRELOAD=sys.argv[1], PERCPU_CONF=conf)
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, **more)


# What is wrong in the configuration is told when the program starts, and the table printed, whichever way the heap goes.
for check in "usual", "off", "full":
    done = run(f"check:{check},pin:none,stats:exti", "pass")
    assert done.returncode == 0 and done.stderr.count("exti") == 1, done
    done = run(f"check:{check},help:yes", "pass")
    assert done.returncode == 0 and done.stderr.count("unit_size") >= 1, done

done = run("stats:exit", WORK)
assert done.returncode == 0 and done.stderr.startswith("percpu malloc: "), done
for part in ("KiB in use", "balancer: ", "node 0: ", "CPU ", "class ", " KiB metadata"):
    assert part in done.stderr, (part, done.stderr)

done = run("stats:json", WORK)
assert done.returncode == 0, done
told = json.loads(done.stderr)
assert told["used_bytes"] > 0 and told["nodes"][0]["open_bytes"] > 0 and told["classes"], told
assert told["cpus"] and all(row["blocks"] > 0 and row["cached_bytes"] > 0 for row in told["cpus"]), told
assert sum(c["blocks"] for c in told["classes"]) > 0


# What each row says is what a program holds, and together they are the whole.
def hold(conf, how):
    environment = dict(os.environ, LD_PRELOAD=sys.argv[1], PERCPU_CONF="pin:none,limit:off,stats:" + conf)
    done = subprocess.run([sys.argv[2], how], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stderr


told = json.loads(hold("json", "held"))
of_640 = [row for row in told["classes"] if row["size_bytes"] == 640]
assert sum(row["blocks"] - row["free_blocks"] - row["cached_blocks"] for row in of_640) == 1000, of_640
large_kib = (5000000 + 4095) // 4096 * 4
assert told["large"] == {"blocks": 1, "bytes": large_kib * 1024}, told["large"]
live = sum(row["span_bytes"] - (row["free_blocks"] + row["cached_blocks"]) * row["size_bytes"] for row in told["classes"])
assert live + told["large"]["bytes"] == told["used_bytes"], (live, told)
cached_bytes = sum(row["cached_blocks"] * row["size_bytes"] for row in told["classes"])
cached = sum(row["cached_blocks"] for row in told["classes"]), cached_bytes
cpus = sum(row["blocks"] for row in told["cpus"]), sum(row["cached_bytes"] for row in told["cpus"])
assert cached == cpus and cached[1] == told["cached_bytes"] and cached[0] > 0, told
free = sum((row["free_blocks"] + row["cached_blocks"]) * row["size_bytes"] for row in told["classes"])
assert free == told["free_small_bytes"], (free, told)
used = sum(row["open_bytes"] - row["dirty_bytes"] - row["clean_bytes"] for row in told["nodes"])
assert used == told["used_bytes"] + told["free_small_bytes"], (used, told)

text = hold("exit", "held")
row = re.search(r"class   640: (\d+) spans, (\d+) blocks of (\d+) free in them, (\d+) in caches", text)
spans, free, blocks, cached = map(int, row.groups())
assert spans > 0 and blocks - free - cached == 1000, text
assert f"  large: 1 blocks, {large_kib} KiB\n" in text, text

# The balancer takes back what nobody uses any more, and says how much.
told = json.loads(hold("json", "emptied"))
assert told["cached_bytes"] == 0 and not told["cpus"], told
work = told["balancer"]
assert work["ticks"] > 0 and work["emptied_cpus"] > 0 and work["taken_blocks"] >= 10, work

# What is printed to a pipe, as far as the classes.
def read_report(reader):
    text = b""
    while b"class " not in text:
        piece = os.read(reader, 4096)
        assert piece, text
        text += piece
    assert text.startswith(b"percpu malloc: "), text


# The balance thread prints when it is asked, while the program waits.
reader, writer = os.pipe()
environment = dict(os.environ, LD_PRELOAD=sys.argv[1], PERCPU_CONF="stats:signal")
child = subprocess.Popen([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"], env=environment,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer)
os.close(writer)
assert child.stdout.readline() == b"up\n"
child.send_signal(12)
read_report(reader)
child.stdin.close()
assert child.wait() == 0

# A forked child prints too, also one of a child, while its parent says nothing; and one that became another program.
FORKS = """
import os, sys
for _ in range(2):
    child = os.fork()
    if child:
        os.waitpid(child, 0); os._exit(0)
if sys.argv[1] == "exec":
    os.execv(sys.executable, [sys.executable, "-c", "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"])
print(os.getpid(), flush=True); sys.stdin.read(); os._exit(0)
"""
for then in "stay", "exec":
    reader, writer = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", FORKS, then], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=writer)
    os.close(writer)
    os.kill(int(child.stdout.readline()), 12)
    read_report(reader)
    child.stdin.close()
    assert child.wait() == 0
    os.close(reader)

# The program's own handler is called, also in its forked child, and nothing is printed; a signal that whoever started it has it ignore
# stays ignored.
OWN = """
import os, signal, sys
if sys.argv[1] == "handler":
    signal.signal(signal.SIGUSR2, lambda *_: print("own", flush=True))
print("up", flush=True)
for fork in False, True:
    if fork and os.fork():
        os.wait(); sys.exit(0)
    os.kill(os.getpid(), signal.SIGUSR2)
    print("on", flush=True)
"""
for how, before in ("handler", signal.SIG_DFL), ("ignored", signal.SIG_IGN):
    done = subprocess.run([sys.executable, "-c", OWN, how], env=environment, capture_output=True, text=True, restore_signals=False,
                          preexec_fn=lambda: signal.signal(signal.SIGUSR2, before))
    said = ["own", "on"] if how == "handler" else ["on"]
    assert done.returncode == 0 and done.stdout.split() == ["up"] + 2 * said and done.stderr == "", (how, done)

# Programs that close stderr before they end; and the user's own file at its number.
environment["PERCPU_CONF"] = "stats:exit"
for argv in ["ls", "/"], ["cat", "/dev/null"], ["sort", "/dev/null"], ["grep", "x", "/dev/null"]:
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.stderr.startswith("percpu malloc: "), (argv, done)
FILES = """
import os, resource, sys
how, path = sys.argv[1:]
high = [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 9]
if how == "few":  # half of 16 is below 9
    assert high == [], high
else:
    assert len(high) == 1 and high[0] >= 500, high
if how in ("own", "few"):
    os.close(2)
if how == "gone":
    os.closerange(2, 1024)
if how == "above":
    os.closerange(3, 1024)
if how in ("own", "few", "gone"):
    assert os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) == 2
    os.write(2, b"DATA")
"""
with tempfile.TemporaryDirectory() as directory:
    path = directory + "/own"
    for how, printed in ("own", True), ("few", True), ("above", True), ("gone", False):
        few = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))) if how == "few" else None
        done = subprocess.run([sys.executable, "-c", FILES, how, path], env=environment, capture_output=True, text=True,
                              preexec_fn=few)
        assert done.returncode == 0, (how, done)
        assert done.stderr.startswith("percpu malloc: ") if printed else done.stderr == "", (how, done)
        assert how == "above" or open(path).read() == "DATA", how
# Without statistics there is no such file, and stderr that is closed from the start stays so.
NONE = "import os; assert all(int(name) < 9 for name in os.listdir('/proc/self/fd'))"
done = run("", NONE)
assert done.returncode == 0 and done.stderr == "", done
done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, NONE], env=environment, capture_output=True,
                      text=True)
assert done.returncode == 0 and done.stderr == done.stdout == "", done

# malloc_info() writes XML, malloc_stats() what stats:exit does.
INFO = """
import ctypes, sys
here = ctypes.CDLL(None)
here.fopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(here.fopen(b"/dev/stdout", b"w"))
assert here.malloc_info(0, out) == 0 and here.malloc_info(1, out) == 22
# All parameters are accepted, as by glibc's, but for sizes of fast bins that it does not have.
assert [here.mallopt(number, 0) for number in (-100, -8, -1, 0, 1, 2, 99)] == [1] * 7
assert [here.mallopt(1, bytes) for bytes in (80, 160, 161, -1)] == [1, 1, 0, 0]
here.fclose(out)
here.malloc_stats()
"""
done = run("", INFO)
assert done.returncode == 0 and done.stderr.startswith("percpu malloc: ") and "class " in done.stderr, done
# As who reads glibc's finds it: one heap, its free blocks by size, and the sums, which say what is used.
malloc = xml.etree.ElementTree.fromstring(done.stdout)
assert malloc.tag == "malloc" and malloc.get("version") == "1" and [row.get("nr") for row in malloc.iter("heap")] == ["0"], done.stdout
of_heap = malloc.find("heap")
for rows in of_heap, malloc:
    sums = {(row.tag, row.get("type")): row for row in rows if row.tag in ("total", "system", "aspace")}
    sizes = {key: int(row.get("size")) for key, row in sums.items()}
    kinds = {"fast", "rest"} | ({"mmap"} if rows is malloc else set())
    others = {("system", "current"), ("system", "max"), ("aspace", "total"), ("aspace", "mprotect")}
    assert set(sizes) == {("total", kind) for kind in kinds} | others, sizes
    assert sizes["aspace", "total"] >= sizes["system", "current"] > sizes["total", "fast"] + sizes["total", "rest"] > 0, sizes
free = of_heap.find("sizes").findall("size") + of_heap.find("sizes").findall("unsorted")
assert sum(int(row.get("total")) for row in free) == sizes["total", "rest"], done.stdout
assert sum(int(row.get("count")) for row in free) == int(sums["total", "rest"].get("count")), done.stdout
assert all(int(row.get("total")) == int(row.get("count")) * int(row.get("to")) for row in free), done.stdout

done = run("", MALLCTL)
assert done.returncode == 0 and done.stdout == "right\n", done
# A container of a few CPUs, on a machine of 512: what each may cache goes by those that there are for us. (Where no namespace of one's own
# is to be had this is left out.)
with tempfile.NamedTemporaryFile("w") as possible:
    possible.write("0-511\n")
    possible.flush()
    inside = 'mount --bind "$0" /sys/devices/system/cpu/possible && exec "$@"'
    enter = ["unshare", "-rm", "sh", "-c", inside, possible.name]
    if subprocess.run(enter + ["true"], capture_output=True).returncode == 0:
        setting = ["env", "LD_PRELOAD=" + sys.argv[1], "PERCPU_CONF=stats:exit,pin:none,limit:off"]
        done = subprocess.run(enter + setting + [sys.executable, "-c", WORK], capture_output=True, text=True)
        share = min(4096, max(256, 65536 // len(os.sched_getaffinity(0))))
        assert done.returncode == 0 and f"KiB cached of {share}\n" in done.stderr, done
print("statistics: all there")
