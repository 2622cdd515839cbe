// SPDX-License-Identifier: MIT
//
// The caches of free blocks that each CPU has: a stack for each lane, all in one area of a pool of libpercpu. malloc() pops
// off the stacks of the CPU's own node, free() pushes onto the stack of the block's lane, each by one restartable sequence
// and without a lock (cache_table.h).
//
//   one CPU's copy:  | heads: of node 0's classes, of node 1's ... | slots, in the same order |
//
// So blocks of other nodes wait on stacks of their own, and go back by batches: nobody pops them.
//
// How much a lane may hold follows demand: its limit is 0 until its stack is first found empty or full, then first_limit(), and
// doubles each time, up to longest_stack() (longest_foreign_stack() for other nodes' blocks; cache_limits.h). The bytes of all limits
// of a CPU stay below its budget: where that is used up, the lane with the largest limit of those that asked for nothing lately
// is emptied and begins again.
//
// Who changes what (the protocol rests on the fence, percpu_fence(): membarrier with rseq; explored to the end, with mutants, by
// tests/model/protocols_test.cc):
//   top, slots     sequences on that CPU; who holds the CPU's lock, has closed the CPU and fenced it
//   end            who holds the CPU's lock. Raised at any time; lowered only while the CPU is closed and fenced
//   table entries  who holds the CPU's lock
//   limits         who holds the CPU's lock; read without it, as a hint
//   demand_clock, asked     who asks for room, whether it holds the lock or not: they are not exact
//   refused_clock, _bytes   who holds the CPU's lock; read without it, as a hint
//
// Invariants: a block is on one stack at most; a stack's end is as far from its first slot as Cpu::limit says. A CPU's copy
// is written for the first time when a thread on it first asks for room: until then it is closed, and backed by nothing.
// Locking: one lock a CPU. Order: the CPUs' locks by number, then the central lists'.
#ifndef PERCPU_PRELOAD_HEAP_CPU_CACHE_H
#define PERCPU_PRELOAD_HEAP_CPU_CACHE_H

#include <percpu.h>

#include "api/for_preload.h"
#include "preload/heap/cache_table.h"
#include "preload/heap/heap_lock.h"
#include "preload/heap/window.h"

namespace percpu::heap {

// Takes blocks of one lane that a cache does not keep.
using BlockSink = void (*)(void* context, uint32_t lane, const uint64_t* blocks, uint32_t count);

class CpuCache {
 public:
  constexpr CpuCache() = default;

  // Makes the pool and the caches; budget_bytes a CPU, 0: chosen. unchecked: free() does not look at what it is given.
  // 0 or -errno: then there are no caches.
  // Context: allocates.
  [[nodiscard]] int open(const Window& window, size_t budget_bytes, bool unchecked);
  bool is_open() const { return __atomic_load_n(&base_, __ATOMIC_ACQUIRE) != 0; }

  // Which node's blocks this CPU's malloc takes. Requires: before the CPU's stacks hold anything.
  void set_home(uint32_t cpu, uint32_t node);
  uint32_t home_of(uint32_t cpu) const { return cpus_[cpu].home; }

  // Lets the calling thread use the caches, by its thread_caches. False where the thread has no rseq, or there are no caches.
  bool attach();
  // The CPU that the thread runs on, to choose a node by. Requires: attached.
  uint32_t this_cpu() const;
  // The same of a thread that is not: the kernel is asked.
  uint32_t asked_cpu() const;
  // Whether this CPU's stack has no room for one block more, and how many it may hold: snapshots, and of a CPU that the thread may
  // have left.
  bool is_full(uint32_t lane) const {
    const uint32_t cpu = this_cpu();
    return count(cpu, lane) >= load_relaxed(&lanes_[cpu].limit[lane]);
  }
  uint32_t limit(uint32_t lane) const { return load_relaxed(&lanes_[this_cpu()].limit[lane]); }

  // The stack was found empty, or full: lets it hold more. Returns how many blocks it may hold now; 0: no cache just now.
  uint32_t demand(uint32_t lane, BlockSink sink, void* context);

  // Empties the caches of CPUs that nobody used since the last call, or of all; those that may hold little only after several
  // calls: what a quiet program uses now and then is not worth a fence each time. Returns whether others may hold something, which
  // a later call may find unused.
  bool age(bool all, BlockSink sink, void* context);

  // What was done to the stacks so far.
  struct Work {
    uint64_t emptied_cpus = 0;
    uint64_t evicted_lanes = 0;
    uint64_t taken_blocks = 0;
  };
  const Work& work() const { return work_; }

  // Whether any block ever lay there: its copy's heads are set. Context: without the CPU's lock, too.
  bool is_used(uint32_t cpu) const { return is_open() && __atomic_load_n(&cpus_[cpu].in_use, __ATOMIC_ACQUIRE); }
  // How many blocks lie on a CPU's stack: a snapshot.
  uint32_t count(uint32_t cpu, uint32_t lane) const {
    if (!is_used(cpu)) return 0;
    return static_cast<uint32_t>(__atomic_load_n(&head_of(cpu, lane)->top, __ATOMIC_RELAXED) - slots_of(cpu, lane));
  }
  uint32_t nr_cpus() const { return is_open() ? nr_cpus_ : 0; }
  // How many of them share what all caches may hold: those that the process might run on when it began.
  uint32_t nr_sharing() const { return is_open() ? nr_sharing_ : 0; }
  uint32_t nr_lanes() const { return nr_lanes_; }
  size_t budget_bytes() const { return load_relaxed(&budget_bytes_); }
  // Lets each CPU's caches hold so much from now on, but never more than was chosen when they were made. (What they hold
  // already stays: age() takes it.)
  void set_budget(size_t bytes) { store_relaxed(&budget_bytes_, bytes < chosen_bytes_ ? bytes : chosen_bytes_); }
  // The node whose memory backs this CPU's caches, also those of a CPU that is offline; negative: no such CPU.
  int node_of(uint32_t cpu) const { return exists(cpu) ? percpu_memory_node_(cpu) : -1; }
  // How much of a CPU's copy may be backed: the heads, and the slots that its stacks may use. A snapshot.
  size_t backed_bytes(uint32_t cpu) const;

  void fork_prepare() PERCPU_NO_THREAD_SAFETY_ANALYSIS;
  void fork_parent() PERCPU_NO_THREAD_SAFETY_ANALYSIS;
  void fork_child() PERCPU_NO_THREAD_SAFETY_ANALYSIS;

 private:
  // What is kept of a CPU that may never run us is short, since all have it as soon as the nodes are known: its lanes' numbers lie
  // elsewhere, and are backed once they are used.
  struct alignas(kLineBytes) Cpu {
    HeapLock lock;
    bool in_use = false;                // its copy's heads are set, before it is (is_used())
    uint32_t home = 0;                  // node
    size_t used_bytes = 0;              // of the limits
    uint32_t demand_clock = 0;          // counts demands, roughly
    uint32_t refused_clock = 0;         // the same when there was no room for one; 0: there may be
    size_t refused_bytes = 0;           // how much more that one would have had
    uint32_t unused_looks = 0;          // in a row
  };
  struct Lanes {
    uint32_t limit[kMaxLanes] = {};
    uint32_t asked[kMaxLanes] = {};  // demand_clock at the lane's last demand
    uint32_t seen[kMaxLanes] = {};   // its count when age() looked last
  };

  size_t lay_out(uint32_t nr_nodes, uint32_t nr_cpus);
  void fill_table(CacheTable* table);
  // All heads of a copy.
  size_t heads_bytes() const { return round_up((kKindLane + nr_lanes_) * sizeof(StackHead), kLineBytes); }
  uintptr_t copy_of(uint32_t cpu) const { return base_ + view_.offset[cpu]; }
  StackHead* head_of(uint32_t cpu, uint32_t lane) const {
    return reinterpret_cast<StackHead*>(copy_of(cpu)) + kKindLane + lane;
  }
  // The first slot for a block; kZeroSlots below it are 0.
  uint64_t* slots_of(uint32_t cpu, uint32_t lane) const {
    return reinterpret_cast<uint64_t*>(copy_of(cpu) + slots_[class_of_lane(lane)] + node_of_lane(lane) * group_bytes_);
  }
  bool exists(uint32_t cpu) const { return view_.offset[cpu] != 0; }
  void set_limit(uint32_t cpu, uint32_t lane, uint32_t limit);
  void begin_use(uint32_t cpu);
  void close(uint32_t cpu);
  bool is_closed(uint32_t cpu) const {
    return __atomic_load_n(&table_->copies[CacheTable::kNoCpu + cpu], __ATOMIC_RELAXED) == closed_copy_;
  }
  void reopen(uint32_t cpu);
  // Requires: the CPU's lock; closed and fenced.
  void empty(uint32_t cpu, uint32_t lane, BlockSink sink, void* context);
  uint32_t find_idle(uint32_t number, uint32_t for_lane) const;
  bool evict(uint32_t cpu, uint32_t for_lane, BlockSink sink, void* context);
  uint32_t next_limit(const Cpu& cpu, uint32_t lane, uint32_t limit) const;
  static bool refused_lately(const Cpu& cpu, size_t bytes);
  uint32_t cap_of(const Cpu& cpu, uint32_t lane) const;

  uintptr_t base_ = 0;  // the area's handle; 0: no caches. Published last
  bool unchecked_ = false;
  bool told_of_fork_ = false;
  bool closed_for_fork_ = false;  // by the fork in progress, which opens them again
  const System* system_ = nullptr;
  size_t kept_bytes_ = 0;  // of a copy: the pages with all heads, which stay backed when its stacks have been emptied
  uintptr_t window_bytes_ = 0;
  CacheTable* table_ = nullptr;
  percpu_view view_{};
  uint32_t limit_cap_[kNrClasses] = {};
  uint32_t nr_cpus_ = 0;
  uint32_t nr_sharing_ = 0;
  uint32_t nr_lanes_ = 0;
  uint32_t slots_[kNrClasses] = {};  // where node 0's slots begin in a copy
  uint32_t group_bytes_ = 0;         // of one node's slots
  uintptr_t closed_copy_ = 0;
  size_t chosen_bytes_ = 0;
  size_t budget_bytes_ = 0;  // of a CPU; not above chosen_bytes_
  size_t area_bytes_ = 0;
  Cpu* cpus_ = nullptr;
  Lanes* lanes_ = nullptr;  // of each CPU
  Work work_;  // relaxed counts
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_CPU_CACHE_H
