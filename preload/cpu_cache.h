// SPDX-License-Identifier: MIT
//
// The cache of free blocks that each CPU has: a stack of block addresses for each class (percpu/stack.h), all in one area
// of a pool of libpercpu. malloc() pops, free() pushes, in one restartable sequence and without a lock.
//
//   one CPU's copy:  | stack of class 0: count, limit, slots... | stack of class 1 | ...
//
// How much a class may hold follows demand: its limit begins at 0, and grows by a batch each time the stack was found empty
// or full, up to the class's cache_limit. The bytes of all limits of a CPU stay below its budget: where that is used up, the
// class with the largest limit of those that asked for nothing lately is emptied and begins again.
//
// Who changes what (the protocol rests on the fence, percpu_fence(): membarrier with rseq):
//   count, slots   sequences on that CPU, while limit is not 0; who closed the stack and fenced, afterwards
//   limit          who holds the CPU's lock. Raised in place. Lowered only to 0 (closing), since a sequence could not find
//                  what lies above a limit; then the fence: sequences that had read the old limit have ended or start anew.
//
// Invariants: a block is on one stack at most; nr_closed > 0 or limit[] agree with the stacks' own.
// Locking: one lock a CPU. Order: the CPUs' locks by number, then the central lists'.
#ifndef PERCPU_PRELOAD_CPU_CACHE_H
#define PERCPU_PRELOAD_CPU_CACHE_H

#include <percpu.h>
#include <percpu/stack.h>

#include "preload/heap_lock.h"
#include "preload/size_class.h"

namespace percpu::heap {

// Takes blocks of one class that a cache does not keep.
using BlockSink = void (*)(void* context, uint32_t size_class, const uint64_t* blocks, uint32_t count);

class CpuCache {
 public:
  constexpr CpuCache() = default;

  // Makes the pool and the caches; budget_bytes a CPU, 0: chosen. 0 or -errno: then there are no caches.
  // Context: allocates.
  [[nodiscard]] int open(const System& system, size_t budget_bytes);
  bool is_open() const { return __atomic_load_n(&base_, __ATOMIC_ACQUIRE) != 0; }

  // This CPU's stack. False: empty or full, closed, no caches, or the thread has no rseq.
  PRELOAD_HOT bool pop(uint32_t size_class, uint64_t* block) const;
  PRELOAD_HOT bool push(uint32_t size_class, uint64_t block) const;
  // Whether this block lies on top of the stack. While the caller owns the block it can't, unless it was freed twice.
  PRELOAD_HOT bool on_top(uint32_t size_class, uint64_t block) const;

  // The stack was found empty, or full: lets it hold more. Returns how many blocks it may hold now; 0: no cache just now.
  uint32_t demand(uint32_t size_class, BlockSink sink, void* context);

  // Empties the caches of CPUs that nobody used since the last call, or of all.
  void age(bool all, BlockSink sink, void* context);

  struct Sums {
    uint64_t blocks[kNrClasses];
  };
  // What lies in one CPU's caches: a snapshot of each count.
  void sums(uint32_t cpu, Sums* sums) const;
  uint32_t nr_cpus() const { return nr_cpus_; }
  size_t budget_bytes() const { return budget_bytes_; }
  // The node whose memory backs this CPU's caches; negative: unknown, or none does.
  int node_of(uint32_t cpu) const { return exists(cpu) ? percpu_page_node(stack_of(cpu, 0)) : -1; }
  size_t area_bytes() const { return area_bytes_; }

  void fork_prepare() PERCPU_NO_THREAD_SAFETY_ANALYSIS;
  void fork_parent() PERCPU_NO_THREAD_SAFETY_ANALYSIS;
  void fork_child() PERCPU_NO_THREAD_SAFETY_ANALYSIS;

 private:
  struct Cpu {
    HeapLock lock;
    size_t used_bytes = 0;              // of the limits
    uint32_t demand_clock = 0;          // counts demands
    uint32_t limit[kNrClasses] = {};
    uint32_t asked[kNrClasses] = {};    // demand_clock at the class's last demand
    uint32_t seen[kNrClasses] = {};     // its count when age() looked last
  };

  percpu_stack* handle_of(uint32_t size_class) const {
    return reinterpret_cast<percpu_stack*>(base_ + stack_offset_[size_class]);
  }
  percpu_stack* stack_of(uint32_t cpu, uint32_t size_class) const {
    return reinterpret_cast<percpu_stack*>(base_ + view_.offset[cpu] + stack_offset_[size_class]);
  }
  bool exists(uint32_t cpu) const { return view_.offset[cpu] != 0; }
  static void set_limit(percpu_stack* stack, uint32_t limit) { __atomic_store_n(&stack->limit, limit, __ATOMIC_SEQ_CST); }
  void set_limits(uint32_t cpu, bool open);
  // Requires: the CPU's lock; closed and fenced.
  void empty(uint32_t cpu, uint32_t size_class, BlockSink sink, void* context);
  bool evict(uint32_t cpu, uint32_t for_class, BlockSink sink, void* context);

  uintptr_t base_ = 0;  // the area's handle; 0: no caches. Published last
  percpu_view view_{};
  uint32_t stack_offset_[kNrClasses] = {};
  uint32_t limit_cap_[kNrClasses] = {};
  uint32_t nr_cpus_ = 0;
  size_t budget_bytes_ = 0;
  size_t area_bytes_ = 0;
  Cpu* cpus_ = nullptr;
};

PRELOAD_HOT bool CpuCache::pop(uint32_t size_class, uint64_t* block) const {
  if (__builtin_expect(!is_open(), 0)) return false;
  return percpu_stack_pop_(&view_, handle_of(size_class), block) != 0;
}

PRELOAD_HOT bool CpuCache::push(uint32_t size_class, uint64_t block) const {
  if (__builtin_expect(!is_open(), 0)) return false;
  return percpu_stack_push_(&view_, handle_of(size_class), block) != 0;
}

PRELOAD_HOT bool CpuCache::on_top(uint32_t size_class, uint64_t block) const {
#if PERCPU_HAVE_SEQUENCES
  if (!is_open() || percpu_thread_.offset == nullptr) return false;
  const percpu_stack* stack = stack_of(percpu_arch_cpu_(), size_class);
  const uint32_t count = __atomic_load_n(&stack->count, __ATOMIC_RELAXED);
  // Slot 0 is read where the stack is empty; then what it says is not asked for.
  const uint64_t* slots = reinterpret_cast<const uint64_t*>(stack + 1);
  return count != 0 && __atomic_load_n(&slots[count - 1], __ATOMIC_RELAXED) == block;
#else
  (void)size_class, (void)block;
  return false;
#endif
}

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_CPU_CACHE_H
