// SPDX-License-Identifier: MIT
//
// What the tests of areas that wait share: front caches and shelves.
#ifndef PERCPU_TESTS_RUNTIME_WAITING_H
#define PERCPU_TESTS_RUNTIME_WAITING_H

#include <doctest/doctest.h>

#include <sched.h>

#include <random>

#include "../child.h"
#include "world.h"

namespace percpu {

inline constexpr TestSetup kNarrow = {.unit_size_bytes = 64 << 10};
inline constexpr TestSetup kWide = {.unit_size_bytes = 64 << 10, .nr_cpus = 64};

inline bool front_caches_work() { return process_has_rseq() && PERCPU_HAVE_SEQUENCES; }

// Brings the balance thread up, after which front caches take areas.
inline void warm_up(TestPool& pool, size_t size_bytes) {
  CHECK(eventually([&] {
    pool.free(pool.alloc(size_bytes));
    return !front_caches_work() || pool.stats().nr_cached != 0;
  }));
}

// Keeps the calling thread on that CPU from now on.
inline void go_to(CpuId cpu) {
  cpu_set_t where;
  CPU_ZERO(&where);
  CPU_SET(cpu.index(), &where);
  CHECK(sched_setaffinity(0, sizeof where, &where) == 0);
}

// Moves the calling thread to the first or the last CPU that it may run on.
inline void move(const World& world, std::mt19937_64& random) {
  go_to(random() % 2 == 0 ? world.topology.allowed.last() : world.topology.allowed.first());
}

// Keeps the calling thread on the CPU that it is on: what it frees it finds again, however busy the machine is.
class OnOneCpu {
 public:
  OnOneCpu() {
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(static_cast<size_t>(sched_getcpu()), &here);
    REQUIRE(sched_getaffinity(0, sizeof before_, &before_) == 0);
    REQUIRE(sched_setaffinity(0, sizeof here, &here) == 0);
  }
  ~OnOneCpu() { (void)sched_setaffinity(0, sizeof before_, &before_); }
  OnOneCpu(const OnOneCpu&) = delete;
  OnOneCpu& operator=(const OnOneCpu&) = delete;

 private:
  cpu_set_t before_;
};

inline void hold(TestPool& pool) PERCPU_NO_THREAD_SAFETY_ANALYSIS {
  pool->fork_stop();
  pool->fork_prepare();
}
inline void resume_parent(TestPool& pool) PERCPU_NO_THREAD_SAFETY_ANALYSIS { pool->fork_parent(); }
inline void resume_child(TestPool& pool) PERCPU_NO_THREAD_SAFETY_ANALYSIS { pool->fork_child(); }

// In a child of a proper fork of this pool.
template <class Body>
ChildEnd run_forked(TestPool& pool, Body body) {
  hold(pool);
  const ChildEnd end = run_in_child([&] {
    resume_child(pool);
    return body();
  });
  resume_parent(pool);
  return end;
}

}  // namespace percpu

#endif  // PERCPU_TESTS_RUNTIME_WAITING_H
