// SPDX-License-Identifier: MIT
//
// What makes no system call: after a thread's first operation, none of them does, whether it finds what it looks for or not. A filter
// of the kernel's (seccomp) ends the process at the first one. (Not under sanitizers, whose runtimes make some at any time.)
#include <doctest/doctest.h>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <iterator>
#include <thread>

#include <percpu.h>
#include <percpu/list.h>

#include "../../stress/leave_rseq.h"
#include "fresh.h"

namespace percpu {
namespace {

// Without rseq the CPU is asked for by getcpu(), which is no system call where the vDSO has it.
#if defined(__x86_64__)
constexpr unsigned kWithoutRseq = SYS_exit_group;
#else
constexpr unsigned kWithoutRseq = SYS_getcpu;
#endif

// From now on this thread stays on its CPU, and may write what it has to say, and end, and make one more kind of call; anything else ends
// the process (SIGSYS). (Where a node is pushed, it is popped then.) Ends the process well where the kernel has no such filter.
void allow_no_system_calls(unsigned but = SYS_exit_group) {
  cpu_set_t here;
  CPU_ZERO(&here);
  CPU_SET(sched_getcpu(), &here);
  EXPECT_EQ(sched_setaffinity(0, sizeof here, &here), 0);
  const auto allow = [](unsigned number) -> sock_filter { return BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1); };
  const sock_filter let_through = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      allow(SYS_write),      let_through, allow(SYS_exit_group), let_through,
      allow(but),            let_through,
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  const sock_fprog program = {static_cast<unsigned short>(std::size(filter)), filter};
  EXPECT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0) _exit(0);
}

struct Areas {
  uint64_t* word;
  uint32_t* half;
  uint16_t* quarter;
  uint8_t* byte;
  double* real;
  percpu_pair* pair;
  percpu_list* list;
  percpu_pool_t* pool;
  uint64_t* of_pool;
  percpu_list* list_of_pool;
  percpu_list_node nodes[2];
};

PERCPU_DEFINE(long, variable) = 3;

Areas make_areas() {
  Areas areas{};
  const auto area = [](size_t bytes) { return percpu_alloc(bytes, 16); };
  areas.word = static_cast<uint64_t*>(area(8));
  areas.half = static_cast<uint32_t*>(area(4));
  areas.quarter = static_cast<uint16_t*>(area(2));
  areas.byte = static_cast<uint8_t*>(area(1));
  areas.real = static_cast<double*>(area(8));
  areas.pair = static_cast<percpu_pair*>(area(16));
  areas.list = static_cast<percpu_list*>(area(sizeof(percpu_list)));
  areas.pool = percpu_pool_create(nullptr);
  areas.of_pool = static_cast<uint64_t*>(percpu_pool_alloc(areas.pool, 8, 8, 0));
  areas.list_of_pool = static_cast<percpu_list*>(percpu_pool_alloc(areas.pool, sizeof(percpu_list), 8, 0));
  (void)percpu_static(variable);  // places it
  return areas;
}

template <class T>
void change(T* area) {
  percpu_write(area, T{5});
  percpu_add(area, 2);
  percpu_sub(area, 1);
  percpu_inc(area);
  percpu_dec(area);
  percpu_and(area, 7);
  percpu_or(area, 8);
  (void)percpu_add_return(area, 1);
  (void)percpu_xchg(area, T{9});
  (void)percpu_cmpxchg(area, T{9}, T{10});
  (void)percpu_cmpxchg(area, T{9}, T{10});  // not what is there
  (void)percpu_read(area);
  (void)percpu_sum(area);
}

// Lists that are empty, that have nodes, and that are empty again.
void change_lists(Areas& areas) {
  for (int round = 0; round < 3; round++) {
    EXPECT(percpu_list_pop(areas.list) == nullptr);
    EXPECT(percpu_pool_list_pop(areas.pool, areas.list_of_pool) == nullptr);
    percpu_list_push(areas.list, &areas.nodes[0]);
    percpu_pool_list_push(areas.pool, areas.list_of_pool, &areas.nodes[1]);
    EXPECT(percpu_list_pop(areas.list) == &areas.nodes[0]);
    EXPECT(percpu_pool_list_pop(areas.pool, areas.list_of_pool) == &areas.nodes[1]);
  }
}

void use(Areas& areas) {
  change(areas.word);
  change(areas.half);
  change(areas.quarter);
  change(areas.byte);
  percpu_add(areas.real, 1.5);
  percpu_pair expected = {0, 0};
  (void)percpu_cmpxchg16(areas.pair, &expected, percpu_pair{1, 2});
  percpu_pool_inc(areas.pool, areas.of_pool);
  (void)percpu_pool_sum(areas.pool, areas.of_pool);
  percpu_inc(percpu_static(variable));
  change_lists(areas);
  (void)*percpu_ptr(areas.word, 0);
  (void)percpu_alloc_size(areas.word);
  (void)percpu_thread_has_rseq();
  unsigned cpu = 0;
  unsigned cpus = 0;
  percpu_for_each_possible_cpu(cpu) cpus++;
  EXPECT(cpus > 0);
  EXPECT(percpu_cpu_possible(percpu_nr_cpu_ids() - 1) == 1);
}

TEST_CASE("no operation of a thread makes a system call but its first") {
  if (kSanitized) return;
  CHECK_FINE(fresh(nullptr, [] {
    Areas areas = make_areas();
    percpu_inc(areas.word);
    allow_no_system_calls(percpu_thread_has_rseq() != 0 ? SYS_exit_group : kWithoutRseq);
    for (int i = 0; i < 100; i++) use(areas);
  }));
}

TEST_CASE("nor does one of a thread that has no rseq") {
  if (kSanitized) return;
  CHECK_FINE(fresh(nullptr, [] {
    Areas areas = make_areas();
    std::thread without([&] {
      EXPECT_EQ(leave_rseq(), 0);
      percpu_inc(areas.word);
      EXPECT_EQ(percpu_thread_has_rseq(), 0);
      allow_no_system_calls(kWithoutRseq);
      for (int i = 0; i < 100; i++) use(areas);
      _exit(0);  // the end of a thread is system calls
    });
    without.join();
    EXPECT(false);
  }));
}

TEST_CASE("an atomic allocation, and a free, make none but to wake who sleeps") {
  if (kSanitized) return;
  CHECK_FINE(fresh(nullptr, [] {
    void* handles[8];
    for (void*& handle : handles) handle = percpu_alloc(8, 8);
    for (void* handle : handles) percpu_free(handle);
    allow_no_system_calls(SYS_futex);
    for (int round = 0; round < 100; round++) {
      for (void*& handle : handles) handle = percpu_alloc_flags(8, 8, PERCPU_ATOMIC);
      for (void* handle : handles) percpu_free(handle);
    }
  }));
}

TEST_CASE("the filter ends who makes one") {
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, nullptr, 0, 0) != 0 && errno == EINVAL) return;  // this kernel has none
  const ChildEnd end = fresh(nullptr, [] {
    allow_no_system_calls();
    (void)syscall(SYS_getppid);
  });
  CHECK(end.signal == SIGSYS);
}

}  // namespace
}  // namespace percpu
