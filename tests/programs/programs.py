#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Programs that know nothing of libpercpu, under the preload: their answers are checked.

  programs.py libpercpu_preload.so NAME
"""
import os
import pathlib
import random
import socket
import subprocess
import sys
import threading

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "bench" / "programs"))

from harness import Failed, Server, check, equal, main, need, run, same
import harness
import servers

KEYS = 4000


def some_size(seed):
    """From one byte to some hundred KiB, most of them small: every size class, and large blocks."""
    return seed.choice([seed.randint(1, 64), seed.randint(1, 1024), seed.randint(1, 1024), seed.randint(1024, 40000),
                        seed.randint(1, 300000) if seed.random() < 0.1 else 100])


def text_of(seed, size):
    return (f"{seed.getrandbits(256):064x}" * (size // 64 + 1))[:size]


# ---- programs that compute ---------------------------------------------------------------------------------------------------


def sqlite3():
    need("sqlite3")
    n = 60000
    script = f"""
      CREATE TABLE a(id INTEGER PRIMARY KEY, k INTEGER, name TEXT);
      CREATE TABLE b(id INTEGER PRIMARY KEY, k INTEGER, size INTEGER);
      WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < {n})
        INSERT INTO a SELECT x, x * 7919 % 1009, 'name ' || (x % 97) FROM i;
      WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < {n // 20})
        INSERT INTO b SELECT x, x * 104729 % 1009, x % 1000 FROM i;
      CREATE INDEX b_k ON b(k);
      SELECT count(*), sum(a.id % 13), sum(b.size) FROM a JOIN b ON a.k = b.k;
      SELECT name, count(*) AS n, sum(size) FROM a JOIN b USING (k) GROUP BY name ORDER BY n DESC, name;
      SELECT length(group_concat(name, ';')) FROM a;
      DELETE FROM a WHERE id % 3 = 0;
      VACUUM;
      PRAGMA integrity_check;
    """
    found = same(["sqlite3", ":memory:"], stdin=script).splitlines()
    by_key = {}
    for x in range(1, n // 20 + 1):
        count, size = by_key.get(x * 104729 % 1009, (0, 0))
        by_key[x * 104729 % 1009] = (count + 1, size + x % 1000)
    rows = [(x, *by_key.get(x * 7919 % 1009, (0, 0))) for x in range(1, n + 1)]
    sums = (sum(c for _, c, _ in rows), sum(x % 13 * c for x, c, _ in rows), sum(s for _, _, s in rows))
    equal(found[0], "|".join(map(str, sums)), "the join")
    by_name = {}
    for x, count, size in rows:
        total = by_name.setdefault(f"name {x % 97}", [0, 0])
        total[0] += count
        total[1] += size
    groups = sorted(by_name.items(), key=lambda item: (-item[1][0], item[0]))
    equal(found[1:98], [f"{name}|{count}|{size}" for name, (count, size) in groups], "the join's groups")
    equal(found[98], str(sum(len(f"name {x % 97}") for x in range(1, n + 1)) + n - 1), "the length of all names")
    equal(found[99:], ["ok"], "integrity")


PYTHON_THREADS = """
import queue, sys, threading
todo, done = queue.Queue(50), queue.Queue()
def worker():
    while (n := todo.get()) is not None:
        rows = [{"key": str(i), "text": "x" * (i % 300), "list": list(range(i % 40))} for i in range(n)]
        done.put(sum(len(r["text"]) + sum(r["list"]) + int(r["key"]) for r in rows))
threads = [threading.Thread(target=worker) for _ in range(8)]
for t in threads: t.start()
for n in range(400): todo.put(n)
for t in threads: todo.put(None)
for t in threads: t.join()
print(sum(done.get() for _ in range(400)))
# Threads that come and go, each with what the one before left.
left = []
for n in range(300):
    t = threading.Thread(target=lambda: (left.clear(), left.extend(bytes(i) for i in range(n))))
    t.start()
    t.join()
print(sum(map(len, left)))
"""

PYTHON_PROCESSES = """
import multiprocessing, sys
def work(n):
    words = {i: "w" * (i % 100) for i in range(n)}
    return sum(len(w) for w in words.values()), bytes(n)
if __name__ == "__main__":
    for method in ("fork", "forkserver", "spawn"):
        context = multiprocessing.get_context(method)
        with context.Pool(4) as pool:
            answers = pool.map(work, range(0, 3000, 10), chunksize=3)
            pool.close()
            pool.join()
        print(method, sum(a for a, _ in answers), sum(len(b) for _, b in answers))
"""


def python3():
    for allocator in ("malloc", "pymalloc"):
        how = {"extra": {"PYTHONMALLOC": allocator}}
        found = same(["python3", "-c", PYTHON_THREADS], **how).split()
        rows = [i % 300 + sum(range(i % 40)) + i for i in range(400)]
        equal(found, [str(sum(sum(rows[:n]) for n in range(400))), str(sum(range(299)))], "sums by threads")
        path = work_file("processes.py", PYTHON_PROCESSES)
        found = same(["python3", path], **how).splitlines()
        sizes = range(0, 3000, 10)
        sums = f"{sum(sum(i % 100 for i in range(n)) for n in sizes)} {sum(sizes)}"
        equal(found, [f"{method} {sums}" for method in ("fork", "forkserver", "spawn")], "sums by processes")


PERL = r"""
my (%count, @lines);
for my $i (1 .. 60000) {
  my $word = join '', map { chr(97 + ($i * $_ * 31) % 26) } 1 .. ($i % 23 + 1);
  $count{$word}++;
  push @lines, sprintf("%06d %s", ($i * 7919) % 100003, $word x ($i % 5));
}
my $all = join "\n", sort @lines;
(my $changed = $all) =~ s/(\w)a(\w)/$2A$1/g;
my $sum = 0;
$sum = ($sum * 31 + ord) % 1000000007 for split //, substr($changed, 0, 300000);
my $total = 0;
$total += $_ for values %count;
print "$total ", scalar(keys %count), " ", length($changed), " $sum\n";
my $child = 0;
for my $n (1 .. 20) {
  my $answer = `echo $n`;
  $child += $answer;
  my $pid = fork;
  if (!$pid) { my @x = map { "y" x $_ } 1 .. 500; exit(length(join '', @x) == 125250 ? $n : 0) }
  waitpid $pid, 0;
  $child += $? >> 8;
}
print "$child\n";
"""


def perl():
    need("perl")
    total, child = same(["perl", "-e", PERL]).splitlines()
    equal(total.split()[0], "60000", "words")
    equal(child, "420", "sums by children")


GXX_PROGRAM = r"""
#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <regex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>
int main() {
  std::vector<std::thread> threads;
  std::vector<unsigned long> sums(8);
  for (unsigned t = 0; t < sums.size(); t++)
    threads.emplace_back([t, &sums] {
      std::map<std::string, std::vector<unsigned>> m;
      for (unsigned i = 0; i < 20000; i++) m["key " + std::to_string(i % 777)].push_back(i * (t + 1));
      for (const auto &[key, values] : m)
        for (unsigned v : values) sums[t] += v + key.size();
    });
  for (auto &t : threads) t.join();
  unsigned long sum = 0;
  for (unsigned long s : sums) sum += s;
  std::string text;
  for (int i = 0; i < 500; i++) text += "item" + std::to_string(i) + ";";
  const std::regex number("[0-9]+");
  long found = std::distance(std::sregex_iterator(text.begin(), text.end(), number), std::sregex_iterator());
  try {
    std::vector<char> v(~0UL >> 1);
    found = -1;
  } catch (const std::bad_alloc &) {
    found++;
  } catch (const std::length_error &) {
    found++;
  }
  std::printf("%lu %ld\n", sum, found);
}
"""


def gxx():
    need("g++")
    source = work_file("program.cc", GXX_PROGRAM)
    assembly = same(["g++", "-std=c++17", "-O1", "-S", "-o", "-", source])
    check("main:" in assembly, "no assembly")
    program = str(harness.work / "program")
    run(["g++", "-std=c++17", "-O1", "-pipe", "-pthread", "-o", program, source])
    keys = sum(len(f"key {i % 777}") for i in range(20000))
    expected = sum(sum(i * (t + 1) for i in range(20000)) + keys for t in range(8))
    equal(same([program]), f"{expected} 501\n", "what the program found")


def java():
    need("java", "keytool")
    heap = ["-J-Xmx256m"]
    run(["java", "-Xmx256m", "-version"])
    store = str(harness.work / "keys.p12")
    common = ["-keystore", store, "-storetype", "PKCS12", "-storepass", "secret", "-alias", "percpu"]
    run(["keytool", *heap, "-genkeypair", "-keyalg", "RSA", "-keysize", "2048", "-dname", "CN=percpu", *common])
    found = same(["keytool", *heap, "-exportcert", "-rfc", *common])
    check("BEGIN CERTIFICATE" in found, f"no certificate: {found}")
    printed = same(["keytool", *heap, "-list", "-v", *common])
    check("Owner: CN=percpu" in printed and "2048-bit RSA key" in printed, f"keytool -list wrote {printed}")


STRESSORS = ["malloc", "mmap", "fork", "vfork", "clone", "pthread", "rseq", "numa", "affinity", "membarrier", "bigheap",
             "mremap", "madvise"]  # (of those left out tests/others/README.md tells)
# Few enough of each to take a second or so, so that --verify decides and no clock does.
STRESS_OPS = {"malloc": 200000, "mmap": 4, "fork": 500, "vfork": 500, "clone": 300, "pthread": 1000, "rseq": 100,
              "numa": 20, "affinity": 500, "membarrier": 100, "bigheap": 100, "mremap": 4, "madvise": 20}


def stress_ng():
    need("stress-ng")
    for stressor in STRESSORS:
        # Its rseq stressor registers for itself, which takes that glibc has not; then everything runs without rseq.
        extra = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"} if stressor == "rseq" else {}
        args = ["stress-ng", "--verify", "--temp-path", str(harness.work), f"--{stressor}", "2", f"--{stressor}-ops",
                str(STRESS_OPS[stressor])]
        if stressor == "mmap":
            args += ["--mmap-bytes", "32m"]
        if stressor == "malloc":
            args += ["--malloc-pthreads", "2", "--malloc-bytes", "64m"]
        if stressor == "bigheap":
            args += ["--bigheap-growth", "1m"]
        if stressor == "mremap":
            args += ["--mremap-bytes", "16m"]
        run(args, extra=extra)
        print(stressor, flush=True)


# ---- servers -------------------------------------------------------------------------------------------------------------------


def redis():
    need("redis-server", "redis-cli")
    place = harness.work
    path = str(place / "redis")

    def start(preloaded):
        server = Server(servers.redis(path, place, "--io-threads", "2", "--io-threads-do-reads", "yes", "--activedefrag", "no"),
                        preloaded)
        server.wait_until(lambda: servers.listens(path), "it listens")
        return server

    def ask(commands, preloaded=True):
        return run(["redis-cli", "-s", path], preloaded, stdin="\n".join(commands) + "\n").splitlines()

    def info(name):
        return dict(line.split(":", 1) for line in ask([f"INFO {name}"]) if ":" in line)

    seed = random.Random(3)
    server = start(True)
    content = {f"key:{i}": text_of(seed, some_size(seed)) for i in range(KEYS)}
    answers = ask(f"SET {key} {value}" for key, value in content.items())
    equal([a for a in answers if a], ["OK"] * KEYS, "answers to SET")
    # Structures that grow by realloc, one field at a time.
    members = [f"RPUSH list:{i % 50} {text_of(seed, seed.randint(1, 200))}" for i in range(KEYS)]
    members += [f"HSET hash:{i % 20} field{i} {text_of(seed, seed.randint(1, 90))}" for i in range(KEYS)]
    members += [f"ZADD sorted {i * 7919 % 10007} member{i}" for i in range(KEYS)]
    members += [f"APPEND grows {'x' * (i % 50 + 1)}" for i in range(KEYS)]
    equal([a for a in ask(members) if a and not a.isdigit()], [], "answers that are no numbers")

    # A child writes everything down while the parent goes on changing it.
    equal(ask(["BGSAVE"])[0], "Background saving started", "BGSAVE")
    for key in list(content)[::3]:
        content[key] = text_of(seed, some_size(seed))
    answers = ask(f"SET {key} {content[key]}" for key in list(content)[::3])
    equal({a for a in answers if a}, {"OK"}, "answers to SET beside BGSAVE")
    server.wait_until(lambda: info("persistence")["rdb_bgsave_in_progress"].strip() == "0", "BGSAVE is done")
    equal(info("persistence")["rdb_last_bgsave_status"].strip(), "ok", "BGSAVE")

    gone = list(content)[::5]
    equal([a for a in ask(f"DEL {key}" for key in gone) if a], ["1"] * len(gone), "answers to DEL")
    for key in gone:
        del content[key]
    read_back = lambda: [a for a in ask(f"GET {key}" for key in content) if a]
    equal(read_back(), list(content.values()), "all values")
    equal(ask(["ZCARD sorted", "STRLEN grows", "LLEN list:7", "EXISTS " + gone[0]]),
          [str(KEYS), str(sum(i % 50 + 1 for i in range(KEYS))), str(KEYS // 50), "0"], "sizes")
    # What it says of its memory is true of this heap, and it can give memory back.
    memory = {name: value.strip() for name, value in info("memory").items()}
    check(memory["mem_allocator"].startswith("jemalloc"), f"redis-server asks another allocator: {memory}")
    known = sum(map(len, content.values()))
    allocated, active, resident = (int(memory[f"allocator_{what}"]) for what in ("allocated", "active", "resident"))
    check(known < allocated <= active <= resident < 8 * known + (64 << 20), f"{known} bytes of content, but INFO memory says {memory}")
    equal(ask(["MEMORY PURGE"]), ["OK"], "MEMORY PURGE")
    digest = ask(["DEBUG DIGEST"])[0]
    equal(ask(["DEBUG RELOAD", "DEBUG DIGEST"]), ["OK", digest], "the reload")
    equal(read_back(), list(content.values()), "all values after the reload")

    # What it saved, a server without the preload reads the same way, and one with it that starts anew.
    equal(ask(["BGSAVE"])[0], "Background saving started", "BGSAVE")
    server.wait_until(lambda: info("persistence")["rdb_bgsave_in_progress"].strip() == "0", "BGSAVE is done")
    ask(["SHUTDOWN NOSAVE"])
    server.stop(None)
    for preloaded in (False, True):
        server = start(preloaded)
        equal(ask(["DEBUG DIGEST"], preloaded), [digest], "the digest of what was saved")
        server.stop()


def memcached():
    need("memcached")
    path = str(harness.work / "memcached")
    server = Server(servers.memcached(path, 4, 256))
    server.wait_until(lambda: servers.listens(path), "it listens")
    failures = []

    def client(number):
        try:
            seed = random.Random(number)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(harness.HANG_SECONDS)
                connection.connect(path)
                stream = connection.makefile("rwb")
                memcached_client(stream, seed, f"c{number}")
        except (Failed, OSError) as failure:
            failures.append(f"client {number}: {failure!r}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(failures, [], "failures of clients")
    server.stop()


def memcached_client(stream, seed, prefix):
    content = {}

    def line(text):
        stream.write(text.encode() + b"\r\n")

    def answer(expected, what):
        stream.flush()
        equal(stream.readline().rstrip(b"\r\n").decode(), expected, what)

    for _ in range(4000):
        key = f"{prefix}:{seed.randint(0, 600)}"
        action = seed.random()
        if action < 0.45:
            value = text_of(seed, some_size(seed))
            line(f"set {key} {len(value) % 1000} 0 {len(value)}")
            line(value)
            answer("STORED", "set")
            content[key] = value
        elif action < 0.55:
            line(f"delete {key}")
            answer("DELETED" if key in content else "NOT_FOUND", "delete")
            content.pop(key, None)
        elif action < 0.6:
            line(f"append {key} 0 0 5")
            line("ABCDE")
            answer("STORED" if key in content else "NOT_STORED", "append")
            if key in content:
                content[key] += "ABCDE"
        else:
            memcached_get(stream, key, content.get(key))
    for key, value in content.items():
        memcached_get(stream, key, value)


def memcached_get(stream, key, expected):
    stream.write(f"get {key}\r\n".encode())
    stream.flush()
    head = stream.readline().decode().split()
    if head == ["END"]:
        equal(None, expected, f"value of {key}")
        return
    equal(head[:2], ["VALUE", key], "answer to get")
    equal(stream.read(int(head[3]) + 2)[:-2].decode(), expected, f"value of {key}")
    equal(stream.readline(), b"END\r\n", "end of get")


def postgresql():
    """A cluster made, loaded and run under the preload; its books must balance after pgbench's transactions."""
    if not servers.PostgreSQL.home():
        print("skipped: PostgreSQL is not installed (scripts/setup full)")
        raise SystemExit(harness.SKIP)
    pg = servers.PostgreSQL(harness.work / "cluster")
    pg.make_place()
    how = {"extra": servers.readable_copy(harness.preload(), harness.work / "preload"), "cwd": pg.place, **pg.user()}
    run(pg.initdb(), **how)
    server = Server(pg.server(max_parallel_workers_per_gather=2, min_parallel_table_scan_size=0, parallel_setup_cost=0), **how)
    server.wait_until(lambda: servers.listens(pg.socket), "it listens")
    server.wait_until(lambda: subprocess.run(pg.ready(), capture_output=True).returncode == 0, "it is ready")

    def ask(question):
        return run(pg.ask(question), **how).strip()

    run([pg.program("pgbench"), "-i", "-q", "-s", "2", *pg.client], **how)
    run([pg.program("pgbench"), "-n", "-c", "6", "-j", "3", "-t", "200", *pg.client], **how)
    equal(ask("SELECT count(*) FROM pgbench_history"), "1200", "transactions")
    sums = ask(pg.BOOKS).split()
    check(len(sums) == 1, f"the books do not balance: {sums}")
    equal(ask("SELECT count(*), sum(aid), count(DISTINCT bid) FROM pgbench_accounts"), "200000|20000100000|2", "the accounts")
    server.stop()


def work_file(name, content):
    path = harness.work / name
    path.write_text(content)
    return str(path)


if __name__ == "__main__":
    main({"sqlite3": sqlite3, "python3": python3, "perl": perl, "gxx": gxx, "java": java, "stress_ng": stress_ng,
          "redis": redis, "memcached": memcached, "postgresql": postgresql})
