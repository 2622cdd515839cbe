// SPDX-License-Identifier: MIT
//
// In which order threads are given CPUs: a pure function of what the machine looks like and of the policy. It makes no
// system call and knows no global, so that a test can be any machine.
//
// A *slot* is one place for a thread: a CPU, or with PinPolicy::kNode a node. Slots stand in the order in which they are
// given out:
//
//   auto     all physical cores, then their first siblings, then their second ones, ...; of each node in turn, and within a node
//            such as are far apart: CPUs whose numbers are neighbours share a cache as a rule
//   compact  node by node; within a node its cores, then their siblings
//   scatter  a CPU of each node in turn; each node's cores come before its siblings
//   node     the nodes, by number
//   list     as written
#ifndef PERCPU_PRELOAD_PIN_ORDER_H
#define PERCPU_PRELOAD_PIN_ORDER_H

#include <cstddef>
#include <cstdint>

#include "base/cpu_mask.h"
#include "core/config.h"

namespace percpu::heap {

// What is known of one CPU. `core` is the lowest CPU that shares its physical core with it, which may be one that the
// process must not use; package and node are the kernel's numbers, 0 where they are unknown.
struct CpuPlace {
  int16_t core = 0;
  int16_t package = 0;
  int16_t node = 0;
  uint16_t siblings = 0;  // the rest is order_slots()'s own, and begins as 0
  uint16_t rank = 0;
  uint16_t turn = 0;
};

// The CPUs or nodes to be given out, best first.
struct SlotOrder {
  uint16_t* ids = nullptr;  // [capacity], handed in
  size_t capacity = 0;
  size_t count = 0;
  size_t nr_cores = 0;  // with kAuto: how many of the first slots are physical cores of their own
};

// Fills `order->ids`. `places` is indexed by CPU number, as far as `allowed` goes; `list` counts with kList only, and is
// taken as it is. A sibling is a CPU whose core has an allowed CPU of a lower number: where a core's first CPU may not be
// used, its second one counts as the physical core.
// Requires: `order->capacity` is at least allowed.count(), and with kList at least the number of CPUs listed.
void order_slots(PinPolicy policy, const CpuMask& allowed, CpuPlace* places, const PinList& list, SlotOrder* order);

// The first CPU of the list that is not allowed; an invalid one if all are.
[[nodiscard]] CpuId first_not_allowed(const PinList& list, const CpuMask& allowed);

// Which of the cores a process begins with under pin:auto, so that the processes of a machine do not all begin with the same one.
// `random` is the process's own and its forked children's: the first process of every container has number 1. Children that are forked
// one after another, and so have numbers that follow one another, begin with cores that do.
[[nodiscard]] size_t first_core(const uint64_t (&random)[2], int32_t process, size_t nr_cores);

// Whether a thread that has a CPU of its own shares it with others, judged by what the scheduler counted in the meantime:
// how long it ran, and how long it was ready to run and waited.
[[nodiscard]] bool cpu_is_shared(uint64_t elapsed_ns, uint64_t ran_ns, uint64_t waited_ns);

// Whether `skip` ("name+3+other*") names a thread, or counts it (the first that the program creates is 1).
[[nodiscard]] bool skips_name(const char* skip, const char* name);
[[nodiscard]] bool skips_number(const char* skip, uint32_t number);

// Whether a look reads a thread's name again: a thread may name itself late, and where nobody is asked. Of few threads at each look; of
// many in turn, by their numbers, some 64 a look.
[[nodiscard]] bool name_is_due(uint32_t number, uint32_t nr_looks, uint32_t nr_threads);

// Whether the thread is the runtime's own, or one of jemalloc's, by its name.
[[nodiscard]] bool is_exempt_name(const char* name);

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_PIN_ORDER_H
