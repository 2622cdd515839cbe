// SPDX-License-Identifier: MIT
//
// Areas of a pool that wait on each CPU to be allocated again: what makes an allocation cost nanoseconds, and lets CPUs
// allocate without meeting each other. The area maps stay the truth: to them, an area in a front cache is taken; it is not
// live, so a second free of it is told.
//
// A front cache is a static per-CPU variable of the library, in the static part of each pool's first chunk:
//
//   one CPU's copy:  | header | freed: stack of size 4 | of size 8 | ... | ready: stack of size 4 | of size 8 | ... |
//                                                                             (wide pools only)
//
// A stack holds handles of areas of exactly one size; percpu/stack.h tells how it is
// changed, and how another CPU's is emptied. Threads without rseq, and sizes without a stack, go to the maps.
//
// Where an area is, from one allocation to the next:
//
//   live ------> freed ------> live                in a pool of few copies: who allocates it zeroes it, which costs less than
//                                                  anything else that could be done
//   live ------> freed ------> ready ------> live  in a wide pool (kWideCopies): its copies lie a unit apart, so zeroing one
//                                                  costs a cache miss and a page walk a copy. Areas become ready in batches,
//                                                  sorted, copy by copy: neighbours share the misses
//                  |             |
//                  +-------------+---> free        given back to the maps: a stack overflows (in a pool that is not wide, and has
//                                                  room on its shelf, to that: shelf.h), nobody used the front caches, or those
//                                                  of this CPU, for a while (it may be offline), or memory is short
//
// Who makes areas ready: the balance thread, every 10 ms while a wide pool is in use; and who allocates and finds nothing
// ready, at once: those that are freed on its CPU, and some from the maps. An area that is freed and not ready yet is still
// charged to its domain; a charge or an allocation that would fail has them all given back first.
//
// Each stack knows how many pops it had (percpu/stack.h), so an allocation counts itself by being made. The header's correction is
// what pops of these stacks were not allocations, or allocations not such pops.
//
// Invariants:
//   a handle is on one stack at most, and its area is taken, not live, and on no other list of the pool
//   an area on a ready stack is zero in every copy, and charged to nobody
// The protocols by which another CPU's stack is emptied, and filled, are explored to the end by tests/model/protocols_test.cc.
// Locking: push and pop take none. stop(), stop_idle(), start(), find_filled(), and changes of stacks through stack_of() are made
// with the pool's grow lock held, between a stop and start(), with a fence on all CPUs behind the stop.
#ifndef PERCPU_RUNTIME_FRONT_CACHE_H
#define PERCPU_RUNTIME_FRONT_CACHE_H

#include <cstddef>
#include <cstdint>

#include <percpu/stack.h>

#include "base/ids.h"

namespace percpu {

class FrontCache {
 public:
  enum Kind : uint32_t { kFreed = 0, kReady = 1, kNrKinds = 2 };

  static constexpr uint32_t kNrClasses = 15;
  // Pools for more possible CPUs than this are wide.
  static constexpr uint32_t kWideCopies = 8;
  // Areas that a stack holds at most.
  static constexpr uint32_t kLimit = 62;
  // Areas that are made ready at once, if there are so many.
  static constexpr uint32_t kBatch = 32;

  static size_t size_bytes(bool wide) { return kHeaderBytes + kNrClasses * kStackBytes * (wide ? 2 : 1); }
  static constexpr size_t kAlignBytes = 256;

  // The class of a size in bytes (rounded up to a multiple of 4); kNrClasses where it has none.
  static uint32_t class_of(size_t size_bytes) {
    const size_t fragments = (size_bytes + 3) / 4;
    return fragments <= kLargest / 4 ? kClassOf[fragments] : kNrClasses;
  }
  static constexpr uint32_t size_of(uint32_t size_class) { return kSizes[size_class]; }
  // How many areas of a class wait on each of so many CPUs, in so many copies, on stacks of so many kinds. Pure.
  static uint32_t limit_for(uint32_t size_class, uint32_t nr_cpus, uint32_t nr_copies, uint32_t nr_kinds);

  // Where the library is built without sequences nothing opens, and every area goes to the maps.
  static constexpr bool kServes = PERCPU_HAVE_SEQUENCES != 0;

  // `handle` names the variable in all copies, which are zero; `offsets` those of CPUs that may run us, whose stacks open.
  // `nr_copies`: of the pool, which exist.
  void open(const percpu_view& view, uintptr_t handle, const uintptr_t* offsets, uint32_t nr_offsets, uint32_t nr_copies,
            bool wide);
  bool is_open() const { return handle_ != 0; }
  bool wide() const { return wide_; }

  // Puts an area on this CPU's stack, or takes one. False: full or empty, stopped, or a thread without rseq. What is taken off a
  // stack from which allocations are served (ready; in a pool that is not wide, freed) counts as one: see correct_allocs().
  bool push(Kind kind, uint32_t size_class, uintptr_t area) const {
    return is_open() && percpu_stack_push_(view_, stack(kind, size_class), area) != 0;
  }
  bool pop(Kind kind, uint32_t size_class, uintptr_t* area) const {
    uint64_t value = 0;
    if (!is_open() || percpu_stack_pop_(view_, stack(kind, size_class), &value) == 0) return false;
    *area = value;
    return true;
  }
  // The same by a size in fragments, of at most kLargest bytes, for the ways that are taken most: frees, and allocations. False
  // also for other sizes than those of the classes.
  bool push_fast(size_t fragments, uintptr_t area) const {
#if PERCPU_HAVE_SEQUENCES
    uintptr_t stack = freed_at_[fragments];  // 0 where this is not open
    if (fragments == kUsual) {
      // The same, but known before the size is: it comes from the area's bounds, some thirty cycles after the handle, and an
      // allocation that follows waits for this push.
      stack = freed_at_[kUsual];
      __asm__("" : "+r"(stack));
    }
    if (stack == 0 || percpu_thread_.offset == nullptr) return false;
    return percpu_seq_stack_push_(table_, reinterpret_cast<const void*>(handle_ + stack), area) != 0;
#else
    (void)fragments, (void)area;
    return false;
#endif
  }
  bool pop_fast(size_t fragments, uintptr_t* area) const {
#if PERCPU_HAVE_SEQUENCES
    const uintptr_t stack = ready_at_[fragments];
    if (stack == 0 || percpu_thread_.offset == nullptr) return false;
    uint64_t value = 0;
    if (percpu_seq_stack_pop_(table_, reinterpret_cast<const void*>(handle_ + stack), &value) == 0) return false;
    *area = value;
    return true;
#else
    (void)fragments, (void)area;
    return false;
#endif
  }
  // Whether the calling thread can use its CPU's stacks from now on. Context: any, but may make a system call.
  bool attach_thread() const { return percpu_thread_.offset != nullptr || percpu_thread_attach_() != 0; }
  // Counts allocations that the front caches served but no pop shows, or, below 0, pops that were none. Requires: the thread
  // popped or pushed just now, so that it is known.
  void correct_allocs(int64_t by) const;

  // All CPUs' stacks: closed to their CPUs.
  void stop();
  // Those of CPUs alone that hold areas of which none came or went for so long, as far as the times that this was called tell.
  // Returns: of how many CPUs.
  uint32_t stop_idle(uint64_t now_ms, uint64_t idle_ms);
  // Those of CPUs alone, from *cpu on and round, that have freed areas, until they have so many copies of areas; at least one, where any has.
  // *cpu becomes the next one. Returns: of how many.
  uint32_t stop_some(uint32_t* cpu, uint64_t most_copies);
  // Whatever is closed opens again.
  void start();
  // Whether this CPU's are closed. Context: only who closes them.
  bool is_stopped(uint32_t cpu) const { return stack_of(cpu, kFreed, 0)->limit != limit_[0]; }
  // Whether this CPU's are, or are not there. A hint. Requires: the thread is known.
  bool stopped_here() const {
#if PERCPU_HAVE_SEQUENCES
    const auto* first = reinterpret_cast<const percpu_stack*>(stacks_[kFreed] + table_[percpu_arch_cpu_()]);
    return __atomic_load_n(&first->limit, __ATOMIC_RELAXED) != limit_[0];
#else
    return true;
#endif
  }
  // The same of all. A hint.
  bool stopped() const { return __atomic_load_n(&stopped_, __ATOMIC_RELAXED); }

  uint32_t nr_cpus() const { return nr_offsets_; }
  uint32_t limit_of(uint32_t size_class) const { return limit_[size_class]; }
  percpu_stack* stack_of(uint32_t cpu, Kind kind, uint32_t size_class) const {
    return reinterpret_cast<percpu_stack*>(reinterpret_cast<uintptr_t>(stack(kind, size_class)) + offsets_[cpu]);
  }

  struct Filled {
    uint32_t cpu;
    percpu_stack* stack;
    Kind kind;
    uint32_t size_class;
  };
  // A stack that is stopped and holds areas; false when there is none. Requires: fenced since it was stopped.
  bool find_filled(Filled* filled);
  // Its areas have been taken.
  void set_empty(const Filled& filled);

  struct Sums {
    uint64_t nr_allocs = 0;
    uint64_t nr_cached = 0;  // freed or ready
    uint64_t nr_freed = 0;
    uint64_t cached_bytes = 0;
  };
  // Over all CPUs; a snapshot of each word only. Zeros where this is not open.
  Sums sums() const;

  static constexpr size_t kLargest = 256;  // bytes of an area that may wait here

 private:
  static constexpr size_t kUsual = 2;  // fragments: a counter
  // The beginning of a CPU's copy.
  struct Header {
    uint64_t correction;
    // Of stop_idle(), on a line that this CPU does not write: the sum of its stacks' words, and since when that is so.
    alignas(128) uint64_t words;
    uint64_t since_ms;
  };
  static constexpr size_t kHeaderBytes = 256;
  static_assert(sizeof(Header) == kHeaderBytes);
  static constexpr uint32_t kStackBytes = 512;
  static_assert(PERCPU_STACK_BYTES(kLimit) == kStackBytes);
  // The memory that the waiting areas of one class may hold, over all copies on all CPUs. An area that waits on one of N
  // CPUs holds its bytes N times, and each CPU has a stack, so full stacks grow with the square of the number of CPUs. So does the budget
  // from kManyCpus on, since machines that have so many have memory for them, and stacks would hold nothing.
  static constexpr size_t kClassBudgetBytes = size_t{16} << 20;
  static constexpr size_t kManyCpus = 256;
  static constexpr uint16_t kSizes[kNrClasses] = {4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 256};
  struct ClassTable {
    uint8_t of[kLargest / 4 + 1];
    constexpr ClassTable() : of() {
      for (uint8_t& entry : of) entry = kNrClasses;
      for (uint32_t i = 0; i < kNrClasses; i++) of[kSizes[i] / 4] = static_cast<uint8_t>(i);
    }
    constexpr uint8_t operator[](size_t fragments) const { return of[fragments]; }
  };
  static const ClassTable kClassOf;

  const percpu_stack* stack(Kind kind, uint32_t size_class) const {
    return reinterpret_cast<const percpu_stack*>(stacks_[kind] + uintptr_t{size_class} * kStackBytes);
  }
  Header* header_of(uint32_t cpu) const { return reinterpret_cast<Header*>(handle_ + offsets_[cpu]); }
  void set_limits(uint32_t cpu, bool open);
  struct CpuLook {
    uint64_t words;
    bool filled;
  };
  CpuLook look_at(uint32_t cpu) const;

  const percpu_view* view_ = nullptr;
  const uintptr_t* table_ = nullptr;  // the view's offsets
  uintptr_t handle_ = 0;
  // By fragments: where the stack is, from handle_ on; 0: there is none, or this is not open.
  uint16_t freed_at_[kLargest / 4 + 1] = {};
  uint16_t ready_at_[kLargest / 4 + 1] = {};
  uintptr_t stacks_[kNrKinds] = {};  // handles of the first stack of each kind; in a pool that is not wide, of the same ones
  bool wide_ = false;
  bool stopped_ = false;
  uint32_t nr_offsets_ = 0;
  uint32_t nr_copies_ = 0;
  const uintptr_t* offsets_ = nullptr;
  uint32_t limit_[kNrClasses] = {};  // of each class's stacks; 0: areas too costly to let them wait
  uint32_t cursor_ = 0;              // where find_filled() goes on
};

inline constexpr FrontCache::ClassTable FrontCache::kClassOf{};

}  // namespace percpu

#endif  // PERCPU_RUNTIME_FRONT_CACHE_H
