// SPDX-License-Identifier: MIT
//
// How much the CPUs' caches may hold, by the number of CPUs: a default that suits 2 and one that suits 256. The number of threads
// plays no part. Pure.
#ifndef PERCPU_PRELOAD_HEAP_CACHE_LIMITS_H
#define PERCPU_PRELOAD_HEAP_CACHE_LIMITS_H

#include <cstddef>
#include <cstdint>

#include "preload/heap/size_class.h"

namespace percpu::heap {

// All CPUs' budgets together, and the bounds of one: a process that may run on 2 CPUs gets 4 MiB a CPU, one that may on
// 256 gets 256 KiB.
// (All stacks of a CPU at their largest hold 8.4 MiB, those of blocks to 8 KiB 3.7: with 4, few programs have to empty any.)
inline constexpr size_t kAllBudgets = size_t{64} << 20;
inline constexpr size_t kLeastBudget = 256 * 1024;
inline constexpr size_t kMostBudget = size_t{4} << 20;

// What the blocks on all stacks of a CPU may come to, bytes. chosen_bytes: what the user says, 0 for nothing.
constexpr size_t budget_of_cpu(size_t chosen_bytes, uint32_t nr_cpus) {
  if (chosen_bytes != 0) return chosen_bytes;
  const size_t share = kAllBudgets / nr_cpus;
  return share < kLeastBudget ? kLeastBudget : share > kMostBudget ? kMostBudget : share;
}

// Of another node's lane a CPU keeps a batch at most, and no more than this part of its budget, but one block: blocks of several sizes
// from seven nodes are not to take the room of those that its own malloc takes.
inline constexpr size_t kForeignPart = 64;
constexpr uint32_t longest_foreign_stack(const ClassInfo& info, size_t budget_bytes) {
  const size_t share = budget_bytes / kForeignPart / info.size_bytes;
  return share < 1 ? 1 : share < info.batch ? static_cast<uint32_t>(share) : info.batch;
}

// With more CPUs than this the stacks are shorter, since each takes its memory on each CPU; but none is made shorter than this.
inline constexpr uint32_t kManyCpus = 32;
inline constexpr uint32_t kShortStack = 32;

// How many blocks of a class the longest stack on a CPU holds.
constexpr uint32_t longest_stack(const ClassInfo& info, uint32_t nr_cpus) {
  const uint32_t most = info.cache_limit;
  if (nr_cpus <= kManyCpus || most <= kShortStack) return most;
  return most / 4 < kShortStack ? kShortStack : most / 4;
}

// A lane's first limit is small, so that a class that is asked for once costs little: an eighth of a batch; of blocks of 8 bytes
// two of the processor's lines, so that a whole line comes from the list (CentralList::take) even if another block is pushed.
constexpr uint32_t first_limit(const ClassInfo& info) {
  const uint32_t eighth = (info.batch + 7) / 8;
  const uint32_t lines = static_cast<uint32_t>(2 * kLineBytes / info.size_bytes);
  return eighth > lines ? eighth : lines;
}

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_CACHE_LIMITS_H
