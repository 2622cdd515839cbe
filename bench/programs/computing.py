# SPDX-License-Identifier: MIT
"""Programs that compute: each gets the same input under every allocator, and must give the same output. Their time is the wall's."""
import hashlib
import random

from harness import Failed

_digests = {}


def same(name, output):
    """The output of a program must be that of its first run, whichever allocator that had."""
    digest = hashlib.sha256(output if isinstance(output, bytes) else output.encode()).hexdigest()
    if _digests.setdefault(name, digest) != digest:
        raise Failed("the output differs from that of the first run")


def _measured(run):
    return {"time": run.wall, "cpu": run.cpu, "peak": run.peak}


SQL = """
CREATE TABLE a(id INTEGER PRIMARY KEY, k INTEGER, name TEXT);
CREATE TABLE b(id INTEGER PRIMARY KEY, k INTEGER, size INTEGER);
WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < {n})
  INSERT INTO a SELECT x, x * 7919 % 1009, 'name ' || (x % 97) FROM i;
WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < {n})
  INSERT INTO b SELECT x, x * 104729 % 1009, x % 1000 FROM i;
CREATE INDEX by_k ON b(k);
SELECT name, count(*), sum(size) FROM a JOIN b ON a.k = b.k WHERE a.id % 40 = 0 GROUP BY name ORDER BY 2 DESC, 1;
SELECT count(*), group_concat(name, '') FROM (SELECT DISTINCT name FROM a ORDER BY upper(name) || k LIMIT 5000);
UPDATE a SET name = replace(printf('%s of %d', name, id), 'name', 'title') WHERE id % 3 = 0;
SELECT max(length(name)), sum(length(name)), count(*) FROM a;
"""


def sqlite3(context, allocator):
    run = context.run(["sqlite3", ":memory:"], allocator, stdin=SQL.format(n=20000 if context.quick else 200000))
    same("sqlite3", run.stdout)
    return _measured(run)


# Four threads share the interpreter's lock; every object is one of malloc's.
PYTHON = """
import threading, queue, json, sys
todo, done = queue.Queue(), queue.Queue()
def work():
    while (n := todo.get()) is not None:
        rows = [{"id": i, "words": ["w%d" % (i * j % 97) for j in range(i % 40)], "text": "x" * (i % 300)} for i in range(300)]
        text = json.dumps(rows)
        back = json.loads(text)
        index = {}
        for row in back:
            for word in row["words"]:
                index.setdefault(word, []).append(row["id"] + n)
        done.put(sum(sum(ids) for ids in index.values()) + len(text))
threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()
count = int(sys.argv[1])
for n in range(count): todo.put(n)
for t in threads: todo.put(None)
for t in threads: t.join()
print(sum(done.get() for _ in range(count)))
"""


def python3(context, allocator):
    run = context.run(["python3", "-c", PYTHON, "20" if context.quick else "200"], allocator, {"PYTHONMALLOC": "malloc"})
    same("python3", run.stdout)
    return _measured(run)


GXX = """
#include <algorithm>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>
template <int N> struct Row { std::map<std::string, std::vector<std::variant<int, double, std::string>>> cells; int next(int x) const {
  std::vector<int> v(static_cast<unsigned>(x + N)); std::sort(v.begin(), v.end(), [](int a, int b) { return a % (N + 1) < b; });
  return v.empty() ? static_cast<int>(cells.size()) : v.front() + Row<N - 1>().next(x); } };
template <> struct Row<0> { int next(int x) const { return x; } };
int main(int argc, char **argv) {
  std::unordered_map<std::string, std::function<int(int)>> calls;
  calls["row"] = [](int x) { return Row<ROWS>().next(x); };
  std::stringstream out;
  out << std::string(argv[0]) << calls["row"](argc);
  return static_cast<int>(out.str().size());
}
"""


def gxx(context, allocator):
    source = context.work / "program.cc"
    source.write_text(GXX.replace("ROWS", "2" if context.quick else "12"))
    # -S: no assembler beside the compiler. The compiler proper is the largest of the processes.
    run = context.run(["g++", "-std=c++17", "-O1", "-S", "-o", "-", source], allocator)
    if "main:" not in run.stdout:
        raise Failed("no assembly was written")
    same("g++", run.stdout)
    return _measured(run)


# Two products of 16-bit factors: of one the factors must be found, of the other (a prime) it must be proved that there are none.
Z3 = """
(set-logic QF_BV)
{parts}
"""
Z3_PART = """
(push)
(declare-const x (_ BitVec 32)) (declare-const y (_ BitVec 32))
(assert (= (bvmul x y) (_ bv{product} 32)))
(assert (bvult x (_ bv65536 32))) (assert (bvult y (_ bv65536 32))) (assert (bvult (_ bv1 32) x)) (assert (bvule x y))
(check-sat)
(pop)
"""


def z3(context, allocator):
    products = [41 * 59, 10007] if context.quick else [9973 * 10007, 100000007]
    script = Z3.format(parts="".join(Z3_PART.format(product=product) for product in products))
    run = context.run(["z3", "-in"], allocator, stdin=script)
    if run.stdout.split() != ["sat", "unsat"]:
        raise Failed(f"expected sat and unsat, found {run.stdout.split()}")
    return _measured(run)


POSTSCRIPT = """%!PS
/word {{ rand 1000 mod 20 string cvs }} def
7 srand
1 1 {pages} {{
  pop
  0 1 60 {{ /y exch 12 mul 40 add def
    /Times-Roman findfont 6 rand 8 mod add scalefont setfont
    30 y moveto 12 {{ word show ( ) show }} repeat }} for
  400 {{ rand 255 mod 255 div rand 255 mod 255 div rand 255 mod 255 div setrgbcolor
    newpath rand 600 mod rand 800 mod moveto 6 {{ rand 600 mod rand 800 mod rand 600 mod rand 800 mod rand 600 mod rand 800 mod curveto }}
    repeat closepath rand 2 mod 0 eq {{ eofill }} {{ stroke }} ifelse }} repeat
  /d 200 dict def 0 1 199 {{ d exch dup 40 mul string put }} for
  showpage
}} for
quit
"""


def ghostscript(context, allocator):
    page = context.work / "pages.ppm"
    run = context.run(["gs", "-q", "-dSAFER", "-dBATCH", "-dNOPAUSE", "-sDEVICE=ppmraw", "-r100", f"-o{page}", "-dNumRenderingThreads=2",
                       "-dMaxBitmap=0", "-"], allocator, stdin=POSTSCRIPT.format(pages=1 if context.quick else 10))
    content = page.read_bytes()
    page.unlink()
    if content[:2] != b"P6":
        raise Failed(f"no picture was written: {run.stdout[-200:]}")
    same("ghostscript", content)
    return _measured(run)


def xz(context, allocator):
    original = context.work / "text"
    if not original.exists():
        seed = random.Random(7)
        words = [f"{seed.getrandbits(4 * seed.randint(1, 12)):x}" for _ in range(5000)]
        original.write_text(" ".join(seed.choice(words) for _ in range(70_000 if context.quick else 700_000)))
    run = context.run(["xz", "-T2", "-4", "--block-size=2MiB", "--keep", "--force", original], allocator)
    packed = context.work / "text.xz"
    content = packed.read_bytes()
    if "xz" not in _digests:
        back = context.run(["xz", "--decompress", "--stdout", packed])
        if back.stdout != original.read_text():
            raise Failed("what was compressed is not what comes back")
    same("xz", content)
    return _measured(run)


STARTS = 200


def true(context, allocator):
    """Milliseconds that a program takes which does nothing."""
    count = STARTS // 10 if context.quick else STARTS
    run = context.run(["sh", "-c", f"i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i + 1)); done"], allocator)
    return {"time": run.wall / count * 1000}


PROGRAMS = [("sqlite3", "a join, an index, updates; in memory", sqlite3),
            ("python3", "4 threads, JSON, PYTHONMALLOC=malloc", python3),
            ("g++", "-O1 of one file of templates", gxx),
            ("z3", "factors of two numbers, as bit vectors", z3),
            ("ghostscript", "pages rendered by 2 threads", ghostscript),
            ("xz", "-4 by 2 threads", xz)]
