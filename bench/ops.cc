// SPDX-License-Identifier: MIT
//
// What an operation on this CPU's copy costs, beside other ways of counting. Time is the thread's own CPU time, so that
// other programs on the machine disturb less.
//
//   program/loop/NAME   a loop over eight counters in turn, one step each; compiled for a program (bench/ops_loops.c)
//   program/call/NAME   the same, each step in a function of its own that is called
//   program/work/NAME   the loop, in which each step follows a little work: a hash of what was hashed before
//   library/...         the same in a shared library, whose operations clear rseq_cs besides
//   THREADS/NAME        the loop in one_thread, in thread_per_cpu, in four_per_cpu at once, each for 20 ms or more on a CPU that it
//                       does not leave: CPU time of one of them
//
// NAME: an operation of ours (by_handle: the eight counters are eight areas, found through an array of handles);
// thread_local: by the initial-exec model, and in a library by the global-dynamic model too, which is a compiler's default there;
// one_instruction: an addition to memory and no more; atomic: of the thread's own, contended: of all threads, and only where
// there are several on several CPUs; sched_getcpu: an array of padded elements, indexed by it; the ways of liburcu, librseq and RocksDB
// (ops_liburcu.c, ops_librseq.c, ops_rocksdb.cc), the last two where they are installed.
//
// A loop of two or three instructions is bound by how processors fetch loops: it may run twice as fast or slow by where
// it lies in a cache line. Here all loops begin on one, the best case for each. The steps that are called, or beside work,
// are the better measure of what counting costs in code that also does something else.
//
//   sum/U/N             the sums of N counters over the copies of U CPUs
//   memcpy/U/N          copying the bytes that were summed
//   memcpy_one/U/N      copying them into one buffer of the size of the sums, which stays in the cache: each copy over the last
#include <benchmark/benchmark.h>
#include <pthread.h>
#include <sched.h>

#include <percpu.h>

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "compare.h"
#include "ops_loops.h"

namespace {

// Long beside reading the thread's clock, which is a system call.
constexpr size_t kSteps = 1 << 18;
// Of each thread, uncontended: long beside what it takes until all of them run, and of several time slices where they share a CPU.
constexpr double kThreadSeconds = 25e-3, kQuickThreadSeconds = 2.5e-3;

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class T>
T *checked(T *pointer, const char *what) {
  if (pointer != nullptr) return pointer;
  std::perror(what);
  std::exit(1);
}

template <class T>
T *area_of(size_t count, size_t align = 64) {
  return static_cast<T *>(checked(percpu_alloc(count * sizeof(T), align), "percpu_alloc"));
}

percpu_pool_t *pool_for(unsigned nr_cpus) {
  percpu_pool_attr attr{};
  attr.struct_bytes = sizeof attr;
  attr.nr_cpus = nr_cpus;
  attr.unit_size = 1 << 20;
  return checked(percpu_pool_create(&attr), "percpu_pool_create");
}

ops_areas make_areas() {
  ops_areas areas{};
  areas.counters = area_of<uint64_t>(kOpsCounters);
  for (uint64_t *&handle : areas.handle) handle = area_of<uint64_t>(1, alignof(uint64_t));
  areas.reals = area_of<double>(kOpsCounters);
  areas.pool = pool_for(0);
  areas.in_pool =
      static_cast<uint64_t *>(checked(percpu_pool_alloc(areas.pool, kOpsCounters * 8, 64, 0), "percpu_pool_alloc"));
  areas.pairs = area_of<percpu_pair>(kOpsCounters);
  areas.list = area_of<percpu_list>(1);
  areas.own = new ops_shard();
  areas.shared = new ops_shard();
  areas.shards = new ops_shard[kOpsMaxCpus]();
  // So many nodes that no CPU finds its list empty, however many threads are moved there with a node in hand.
  percpu_list *copy;
  percpu_for_each_copy(copy, areas.list) {
    for (int i = 0; i < 1024; ++i) copy->head = new percpu_list_node{copy->head};
  }
  return areas;
}

using Loop = void (*)(const ops_areas *, size_t);

bool is_contended(const ops_loop *loop) { return std::strcmp(loop->name, "atomic_contended") == 0; }

void add_steps(Comparison *comparison, const ops_areas &areas, const std::string &name, Loop run) {
  comparison
      ->add(name,
            [&areas, run](benchmark::State &state) {
              while (state.KeepRunningBatch(kSteps)) {
                const double before = thread_seconds();
                run(&areas, kSteps);
                state.SetIterationTime(thread_seconds() - before);
              }
            })
      ->UseManualTime();
}

void add_loops(Comparison *comparison, const ops_areas &areas, const ops_loop *loops, const std::string &where) {
  const std::pair<const char *, Loop ops_loop::*> hows[] = {
      {"loop/", &ops_loop::in_loop}, {"call/", &ops_loop::called}, {"work/", &ops_loop::beside_work}};
  for (const auto &[how, run] : hows)
    for (const ops_loop *loop = loops; loop->name != nullptr; ++loop)
      if (!is_contended(loop)) add_steps(comparison, areas, where + how + loop->name, loop->*run);
  for (const char *how : {"loop/", "call/", "work/"})
    for (const char *other :
         {"thread_local", "atomic", "sched_getcpu", "liburcu_counter", "librseq_add", "rocksdb_record_tick"})
      for (const ops_loop *loop = loops; loop->name != nullptr; ++loop)
        if (loop->name == std::string(other)) comparison->ratio(where + how + "percpu_add", where + how + other);
}

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {0};
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

void stay_on(int cpu) {
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(static_cast<size_t>(cpu), &own);
  (void)pthread_setaffinity_np(pthread_self(), sizeof own, &own);  // where it is not allowed, the scheduler places it
}

// How many steps take so long in one thread.
size_t steps_of(const ops_areas &areas, Loop run, double seconds) {
  run(&areas, kSteps);
  const double before = thread_seconds();
  run(&areas, kSteps);
  const double taken = thread_seconds() - before;
  return taken < seconds ? static_cast<size_t>(static_cast<double>(kSteps) * seconds / std::max(taken, 1e-6)) : kSteps;
}

// CPU seconds of nr_threads threads together, each doing so many steps of the loop, all at the same time, spread over the CPUs.
double threads_seconds(const ops_areas &areas, unsigned nr_threads, Loop run, size_t steps) {
  static const std::vector<int> cpus = allowed_cpus();
  std::barrier<> start(nr_threads);
  std::vector<double> seconds(nr_threads);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < nr_threads; ++i) {
    threads.emplace_back([&, i] {
      stay_on(cpus[i % cpus.size()]);
      ops_areas local = areas;
      ops_shard own{};
      local.own = &own;
      run(&local, kOpsCounters);
      start.arrive_and_wait();
      const double before = thread_seconds();
      run(&local, steps);
      seconds[i] = thread_seconds() - before;
    });
  }
  double sum = 0;
  for (unsigned i = 0; i < nr_threads; ++i) {
    threads[i].join();
    sum += seconds[i];
  }
  return sum;
}

void add_threads(Comparison *comparison, const ops_areas &areas, const std::vector<const ops_loop *> &tables, double seconds) {
  const auto nr_cpus = static_cast<unsigned>(allowed_cpus().size());
  const std::pair<const char *, unsigned> counts[] = {
      {"one_thread/", 1}, {"thread_per_cpu/", nr_cpus}, {"four_per_cpu/", 4 * nr_cpus}};
  for (const auto &[name, count] : counts) {
    for (const ops_loop *table : tables) {
      for (const ops_loop *loop = table; loop->name != nullptr; ++loop) {
        // Threads that take turns on one CPU find the line in its cache.
        if (is_contended(loop) && (count == 1 || nr_cpus == 1)) continue;
        std::string row = name;
        row += loop->name;
        comparison
            ->add_once(row,
                       [&areas, run = loop->in_loop, nr_threads = count, seconds](benchmark::State &state) {
                         const size_t steps = steps_of(areas, run, seconds);
                         for (auto _ : state)
                           state.SetIterationTime(threads_seconds(areas, nr_threads, run, steps) / nr_threads / static_cast<double>(steps));
                       })
            ->UseManualTime();
        std::string ours = name;
        ours += "percpu_add";
        if (row != ours) comparison->ratio(ours, row);
      }
    }
  }
}

// Counters in the copies of many CPUs.
struct Reading {
  percpu_pool_t *pool;
  uint64_t *counters;
  size_t count;
  std::vector<uint64_t> sums, bytes;

  Reading(unsigned nr_cpus, size_t n)
      : pool(pool_for(nr_cpus)),
        counters(static_cast<uint64_t *>(checked(percpu_pool_alloc(pool, n * 8, 64, 0), "percpu_pool_alloc"))),
        count(n),
        sums(n) {
    uint64_t *copy;
    size_t nr_copies = 0;
    percpu_pool_for_each_copy(pool, copy, counters) {
      std::memset(copy, 1, n * 8);
      ++nr_copies;
    }
    bytes.resize(nr_copies * n);
  }
  void sum() {
    if (count == 1) benchmark::DoNotOptimize(percpu_pool_sum(pool, counters));
    else percpu_pool_sum_n(pool, counters, count, sums.data());
  }
  void copy_bytes() {
    const uint64_t *copy;
    uint64_t *to = bytes.data();
    percpu_pool_for_each_copy(pool, copy, counters) {
      std::memcpy(to, copy, count * 8);
      to += count;
    }
    benchmark::ClobberMemory();
  }
  void copy_bytes_over() {
    const uint64_t *copy;
    percpu_pool_for_each_copy(pool, copy, counters) {
      std::memcpy(sums.data(), copy, count * 8);
      benchmark::ClobberMemory();
    }
  }
};

void add_reading(Comparison *comparison, unsigned nr_cpus, size_t n) {
  auto *reading = new Reading(nr_cpus, n);
  std::string suffix = "/";  // not by +: g++ 12 warns of what it makes of that at -O3
  suffix.append(std::to_string(nr_cpus)).append("/").append(std::to_string(n));
  const auto timed = [comparison](const std::string &name, auto body) {
    comparison
        ->add(name,
              [body](benchmark::State &state) {
                while (state.KeepRunningBatch(16)) {
                  const double before = thread_seconds();
                  for (int i = 0; i < 16; ++i) body();
                  state.SetIterationTime(thread_seconds() - before);
                }
              })
        ->UseManualTime();
  };
  timed("sum" + suffix, [reading] { reading->sum(); });
  timed("memcpy" + suffix, [reading] { reading->copy_bytes(); });
  timed("memcpy_one" + suffix, [reading] { reading->copy_bytes_over(); });
  comparison->ratio("memcpy" + suffix, "sum" + suffix);
}

}  // namespace

int main(int argc, char **argv) {
  static const ops_areas areas = make_areas();
  Comparison comparison;
  add_loops(&comparison, areas, ops_loops_of_program, "program/");
  add_loops(&comparison, areas, ops_loops_of_library, "library/");
  std::vector<const ops_loop *> peers = {ops_loops_of_liburcu};
#ifdef HAVE_LIBRSEQ
  peers.push_back(ops_loops_of_librseq);
#endif
#ifdef HAVE_ROCKSDB
  peers.push_back(ops_loops_of_rocksdb);
#endif
  for (const ops_loop *table : peers) add_loops(&comparison, areas, table, "program/");
  peers.insert(peers.begin(), ops_loops_of_program);
  const bool quick = std::any_of(argv + 1, argv + argc, [](const char *argument) { return std::strcmp(argument, "--quick") == 0; });
  add_threads(&comparison, areas, peers, quick ? kQuickThreadSeconds : kThreadSeconds);
  for (unsigned nr_cpus : {2u, 64u, 256u})
    for (size_t n : {size_t{1}, size_t{1000}, size_t{100'000}}) add_reading(&comparison, nr_cpus, n);
  return comparison.run(argc, argv);
}
