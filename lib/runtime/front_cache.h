// SPDX-License-Identifier: MIT
//
// Freed areas of a pool that wait on each CPU to be allocated again: what makes an allocation cost tens of nanoseconds,
// and lets CPUs allocate without meeting each other. The area maps stay the truth: to them, an area in a front cache is
// taken; it is not live, so a second free of it is told.
//
// A front cache is a static per-CPU variable of the library: a page in the static part of each pool's first chunk.
//
//   one CPU's page:  | nr_allocs, nr_frees | stack of size 4 | stack of size 8 | ... |     256 bytes each
//
// A stack holds places (chunk << 32 | offset in the unit) of areas of exactly one size; percpu/stack.h tells how it is
// changed, and how another CPU's is emptied. Threads without rseq, and sizes without a stack, go to the maps.
//
// Invariants: a place is on one stack at most, and its area is taken, not live, and on no other list of the pool.
// Locking: push() and pop() take none. stop(), start() and take() are called with the pool's grow lock held, stop() and
// start() around take(), with a fence on all CPUs between stop() and take().
#ifndef PERCPU_RUNTIME_FRONT_CACHE_H
#define PERCPU_RUNTIME_FRONT_CACHE_H

#include <cstddef>
#include <cstdint>

#include <percpu/stack.h>

#include "base/ids.h"

namespace percpu {

// An area as it lies on a stack.
struct CachedPlace {
  ChunkId chunk;
  AreaOffset offset;
  static CachedPlace unpack(uint64_t value) {
    return {{static_cast<uint32_t>(value >> 32)}, {static_cast<uint32_t>(value)}};
  }
  uint64_t pack() const { return uint64_t{chunk.value} << 32 | offset.bytes; }
};

class FrontCache {
 public:
  static constexpr uint32_t kNrClasses = 15;
  static constexpr uint32_t kStackBytes = 256;
  static constexpr uint32_t kLimit = (kStackBytes - sizeof(percpu_stack)) / sizeof(uint64_t);
  static constexpr size_t kPageBytes = (kNrClasses + 1) * kStackBytes;
  static_assert(PERCPU_STACK_BYTES(kLimit) == kStackBytes);

  // The class of a size in bytes (a multiple of 4); kNrClasses where it has none.
  static uint32_t class_of(size_t size_bytes) {
    const size_t fragments = size_bytes / 4;
    if (fragments <= 8) return static_cast<uint32_t>(fragments - 1);
    return fragments > kLargest / 4 ? kNrClasses : kClassOf[fragments];
  }
  static size_t size_of(uint32_t size_class) { return kSizes[size_class]; }

  // `handle` names the page in all copies, which are zero; `offsets` those of CPUs that may run us, whose stacks open.
  void open(const percpu_view& view, uintptr_t handle, const uintptr_t* offsets, uint32_t nr_offsets);
  bool is_open() const { return handle_ != 0; }

  // Puts an area on this CPU's stack, or takes one. False: full or empty, stopped, or a thread without rseq.
  bool push(uint32_t size_class, CachedPlace place) const {
    return percpu_stack_push_(view_, stack(size_class), place.pack()) != 0;
  }
  bool pop(uint32_t size_class, CachedPlace* place) const {
    uint64_t value = 0;
    if (percpu_stack_pop_(view_, stack(size_class), &value) == 0) return false;
    *place = CachedPlace::unpack(value);
    return true;
  }
  // Finds out whether the calling thread can use its CPU's stacks from now on. Context: may make a system call.
  void attach_thread() const {
    if (percpu_thread_.offset == nullptr) (void)percpu_thread_attach_();
  }
  // Counts an allocation, or a free, that the cache served.
  void count_alloc() const { percpu_add_8_(view_, reinterpret_cast<uint64_t*>(handle_), 1); }
  void count_free() const { percpu_add_8_(view_, reinterpret_cast<uint64_t*>(handle_) + 1, 1); }

  // All CPUs' stacks: closed to their CPUs, open again.
  void stop() const { set_limits(false); }
  void start() const { set_limits(true); }
  // Takes an area off any stack of any CPU; false when all are empty. Requires: stopped, and fenced since.
  bool take(CachedPlace* place);

  struct Sums {
    uint64_t nr_allocs = 0;
    uint64_t nr_frees = 0;
    uint64_t nr_cached = 0;
    uint64_t cached_bytes = 0;
  };
  // Over all CPUs; a snapshot of each word only.
  Sums sums() const;

 private:
  static constexpr size_t kLargest = 256;
  // The memory that the waiting areas of one class may hold, over all copies on all CPUs. An area that waits on one of N
  // CPUs holds its bytes N times, and each CPU has a stack, so full stacks grow with the square of the number of CPUs.
  static constexpr size_t kClassBudgetBytes = size_t{16} << 20;
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

  const percpu_stack* stack(uint32_t size_class) const {
    return reinterpret_cast<const percpu_stack*>(handle_ + (size_class + 1) * kStackBytes);
  }
  percpu_stack* stack_of(uint32_t cpu, uint32_t size_class) const {
    return reinterpret_cast<percpu_stack*>(handle_ + offsets_[cpu] + (size_class + 1) * kStackBytes);
  }
  void set_limits(bool open) const;

  const percpu_view* view_ = nullptr;
  uintptr_t handle_ = 0;
  const uintptr_t* offsets_ = nullptr;
  uint32_t nr_offsets_ = 0;
  uint32_t limit_[kNrClasses] = {};  // of each class's stacks; 0: areas too costly to let them wait
  uint32_t cursor_ = 0;  // where take() goes on
};

inline constexpr FrontCache::ClassTable FrontCache::kClassOf{};

}  // namespace percpu

#endif  // PERCPU_RUNTIME_FRONT_CACHE_H
