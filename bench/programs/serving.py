# SPDX-License-Identifier: MIT
"""Servers and databases with a load, and programs that generate their own. Only what is being measured runs under the allocator: a
client that only asks runs under glibc's malloc. `time` is microseconds a request, `p99` the latency, in microseconds, that all but one
of 100 requests stay below, `peak` the server's peak resident memory: of all its processes together where it forks. A run takes some
seconds, a tenth of that when it is to be quick."""
import json
import math
import re
import shutil
import signal
import time

from harness import Failed, Missing
import servers


def _wait_until(ready, server, what):
    """Waits until ready() holds. Raises Failed when the server ends before."""
    deadline = time.monotonic() + 60
    while not ready():
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"it does not {what}: {(server.errors() or server.output())[-200:].strip()}")
        time.sleep(0.01)


def _measured(run, per_second, p99_us):
    return {"time": 1e6 / per_second, "p99": p99_us, "cpu": run.cpu, "peak": run.peak}


# ---- redis -----------------------------------------------------------------------------------------------------------------------

REDIS = ["SET", "INCR", "LPUSH", "HSET", "ZADD", "MSET"]


def redis(context, allocator):
    """redis-benchmark's commands; then a fixed content, whose digest must be the same under every allocator."""
    socket = context.work / "redis"
    # Debian's server is linked with jemalloc. For glibc's malloc, libc itself is put in front of that.
    extra = {} if allocator.library else {"LD_PRELOAD": "libc.so.6"}
    with context.start(servers.redis(socket, context.work), allocator, extra) as server:
        _wait_until(lambda: servers.listens(socket), server, "listen")
        told = context.run(["redis-benchmark", "-s", socket, "-t", ",".join(REDIS).lower(), "-n", "18000" if context.quick else "180000",
                            "-r", "50000", "-d", "200", "-c", "20", "-P", "8", "--threads", "1", "--csv"])
        # "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
        rows = [[word.strip('"') for word in line.split('","')] for line in told.stdout.splitlines()[1:]]
        if len(rows) != len(REDIS):
            raise Failed(f"redis-benchmark: expected {len(REDIS)} rows, found {told.stdout[-300:]!r}")
        commands = ["FLUSHALL"]
        for i in range(2000):
            commands += [f"SET key:{i} {'v' * (i * 7919 % 3000 + 1)}", f"RPUSH list:{i % 20} item{i}", f"HSET hash:{i % 20} f{i} {i}"]
        content = context.run(["redis-cli", "-s", socket], stdin="\n".join([*commands, "DEBUG DIGEST", "DBSIZE"]) + "\n").stdout.split()
        if content[-1] != "2040" or DIGESTS.setdefault("redis", content[-2]) != content[-2]:
            raise Failed(f"expected 2040 keys and the digest of the first run, found {content[-2:]}")
        run = server.stop()
    # One request of each kind, on average.
    per_second = len(rows) / sum(1 / float(row[1]) for row in rows)
    p99_us = math.exp(sum(math.log(float(row[6]) * 1000) for row in rows) / len(rows))
    return _measured(run, per_second, p99_us)


DIGESTS = {}


# ---- memcached -------------------------------------------------------------------------------------------------------------------


def memcached(context, allocator):
    socket = context.work / "memcached"
    load = context.build / "bench" / "memcached_load"
    with context.start(servers.memcached(socket, 4, 256), allocator) as server:
        _wait_until(lambda: servers.listens(socket), server, "listen")
        told = json.loads(context.run([load, socket, "--requests", "40000" if context.quick else "400000"]).stdout)
        run = server.stop()
    socket.unlink(missing_ok=True)
    return _measured(run, told["per_second"], told["p99_us"])


# ---- RocksDB ---------------------------------------------------------------------------------------------------------------------

ROCKSDB = ["fillseq", "readrandom", "seekrandom", "overwrite"]


def rocksdb(context, allocator):
    """db_bench with four threads. It reads what it wrote under sums of its own (ReadOptions::verify_checksums)."""
    number = 12000 if context.quick else 120000
    run = context.run(["db_bench", f"--benchmarks={','.join(ROCKSDB)}", f"--db={context.work / 'rocksdb'}", f"--num={number}",
                       f"--reads={number // 2}", "--threads=4", "--value_size=200", "--write_buffer_size=4194304",
                       "--cache_size=16777216", "--compression_type=none", "--verify_checksum=1", "--histogram=1", "--seed=7",
                       "--disable_wal=1", "--bloom_bits=10"], allocator)
    found = re.search(r"readrandom .*\((\d+) of (\d+) found\)", run.stdout)
    if found is None or found[1] != found[2]:
        raise Failed(f"readrandom: expected all keys to be found, found {found and found[0]}")
    rates, tails = [], []
    for name in ROCKSDB:
        rate = re.search(rf"^{name} +: .* (\d+) ops/sec", run.stdout, re.MULTILINE)
        tail = re.search(rf"^{name} +:.*?P99: ([\d.]+)", run.stdout, re.MULTILINE | re.DOTALL)
        if rate is None or tail is None:
            raise Failed(f"{name}: no result in {run.stdout[-300:]!r}")
        rates.append(float(rate[1]))
        tails.append(float(tail[1]))
    return _measured(run, len(rates) / sum(1 / rate for rate in rates), math.exp(sum(map(math.log, tails)) / len(tails)))


# ---- many threads ----------------------------------------------------------------------------------------------------------------


def many_threads(context, allocator):
    run = context.run([context.build / "bench" / "many_threads", "--requests", "30000" if context.quick else "300000"], allocator)
    told = json.loads(run.stdout)
    return _measured(run, told["per_second"], told["p99_us"])


# ---- PostgreSQL ------------------------------------------------------------------------------------------------------------------


class Cluster:
    """One cluster with the tables of all loads: made under glibc's malloc when it is first needed. Each run starts from a copy of it, so
    that no run finds what others left."""

    def __init__(self, context):
        self.context = context
        self.pg = None

    def start(self, allocator):
        """The server, under an allocator."""
        context = self.context
        if not servers.PostgreSQL.home():
            raise Missing("PostgreSQL is not installed")
        if self.pg is None:
            pg = servers.PostgreSQL(context.work / "postgresql")
            pg.make_place()
            try:
                self._make(pg)
            except BaseException:
                shutil.rmtree(pg.place, ignore_errors=True)  # the next try says the same, not that something is there
                raise
            self.pg = pg
        pg = self.pg
        shutil.rmtree(pg.data, ignore_errors=True)
        context.run([*pg.as_user(), "cp", "-a", pg.place / "made", pg.data], cwd=pg.place)
        extra = servers.readable_copy(allocator.library, servers.folder_of(context.work, allocator.name)) if allocator.library else {}
        return self._server(pg, allocator, extra)

    def _make(self, pg):
        context = self.context
        context.run([*pg.as_user(), *pg.initdb()], cwd=pg.place)
        with self._server(pg, None, {}) as server:
            context.run([pg.program("pgbench"), "-i", "-q", "-s", "2", *pg.client])
            if shutil.which("sysbench"):
                context.run([*sysbench_of(pg), "prepare"])
            for statement in ("VACUUM ANALYZE", "CHECKPOINT"):
                context.run(pg.ask(statement))
            server.stop(signal.SIGINT)
        pg.data.rename(pg.place / "made")

    def _server(self, pg, allocator, extra):
        context = self.context
        # Its memory is that of many processes, which share some: proportional, added up five times a second.
        server = context.start([*pg.as_user(), *pg.server(shared_buffers="32MB")], allocator, extra, cwd=pg.place, tree_ms=200)
        try:
            _wait_until(lambda: servers.listens(pg.socket), server, "listen")
            _wait_until(lambda: context.run(pg.ready(), expect=None).status == 0, server, "become ready")
        except BaseException:
            server.kill()
            raise
        return server

    def ask(self, question):
        return self.context.run(self.pg.ask(question)).stdout.strip()


def pgbench(cluster, allocator):
    context = cluster.context
    transactions = 160 if context.quick else 1600
    with cluster.start(allocator) as server:
        pg = cluster.pg
        logs = context.work / "pgbench_log"
        told = context.run([pg.program("pgbench"), "-n", "-c", "8", "-j", "2", "-t", str(transactions), "-l", f"--log-prefix={logs}",
                            *pg.client]).stdout
        done = cluster.ask("SELECT count(*) FROM pgbench_history")
        books = cluster.ask(servers.PostgreSQL.BOOKS).split()
        run = server.stop(signal.SIGINT)
    if done != str(8 * transactions) or len(books) != 1:
        raise Failed(f"expected {8 * transactions} transactions and books that balance, found {done} and {books}")
    latencies = []
    for log in context.work.glob("pgbench_log.*"):
        latencies += [int(line.split()[2]) for line in log.read_text().splitlines()]
        log.unlink()
    rate = re.search(r"tps = ([\d.]+)", told)
    return _measured(run, float(rate[1]), sorted(latencies)[len(latencies) * 99 // 100])


def sysbench_of(pg):
    return ["sysbench", "oltp_read_write", "--db-driver=pgsql", f"--pgsql-host={pg.place}", "--pgsql-user=percpu", "--pgsql-db=postgres",
            "--tables=2", "--table-size=10000", "--rand-type=uniform", "--percentile=99", "--rand-seed=7"]


def sysbench(cluster, allocator):
    """sysbench's read-write transactions; it runs under the allocator too."""
    context = cluster.context
    if not shutil.which("sysbench"):
        raise Missing("sysbench is not installed")
    with cluster.start(allocator) as server:
        events = 600 if context.quick else 6000
        client = context.run([*sysbench_of(cluster.pg), "--threads=8", f"--events={events}", "--time=120", "run"], allocator)
        rows = cluster.ask("SELECT (SELECT count(*) FROM sbtest1) + (SELECT count(*) FROM sbtest2)")
        run = server.stop(signal.SIGINT)
    rate = re.search(r"transactions: +(\d+) +\(([\d.]+) per sec", client.stdout)
    tail = re.search(r"99th percentile: +([\d.]+)", client.stdout)
    if rate is None or tail is None or int(rate[1]) < events or rows != "20000":
        raise Failed(f"expected {events} transactions and 20000 rows, found {rate and rate[1]} and {rows}")
    result = _measured(run, float(rate[2]), float(tail[1]) * 1000)
    result["peak"] += client.peak
    result["cpu"] += client.cpu
    return result


def programs(context):
    """Names, what they do, and the functions that take an allocator."""
    cluster = Cluster(context)
    return [("redis", "redis-benchmark: " + ", ".join(REDIS), lambda allocator: redis(context, allocator)),
            ("memcached", "4 threads, 32 connections, a fifth of the requests set", lambda allocator: memcached(context, allocator)),
            ("RocksDB", "db_bench, 4 threads: " + ", ".join(ROCKSDB), lambda allocator: rocksdb(context, allocator)),
            ("many threads", "200 threads that pass requests on", lambda allocator: many_threads(context, allocator)),
            ("PostgreSQL", "pgbench, 8 clients", lambda allocator: pgbench(cluster, allocator)),
            ("sysbench", "oltp_read_write against PostgreSQL, 8 threads", lambda allocator: sysbench(cluster, allocator))]
