// SPDX-License-Identifier: MIT
//
// The ways of an allocation and of a free that end in this CPU's front cache: inline, since they are most of them, and since
// where the flags are a constant little of them is left. Whatever is out of the ordinary goes to functions out of line,
// which do all of it.
//
// What an allocation does here: a sequence that pops, where the pool is not wide a look at each copy, and an atomic "or" that makes
// the area live. A free: a compare-and-exchange by which one of several that free the same area wins, and one sequence that
// pushes. Nothing here waits, and no line is written that other CPUs write, but by accident.
//
// Included by pool.h alone, at its end: the bodies of its inline members.
#ifndef PERCPU_RUNTIME_POOL_FAST_H
#define PERCPU_RUNTIME_POOL_FAST_H

#include "runtime/trace.h"

namespace percpu {

// Null: nothing has happened, but that a misaligned area may have gone back to the maps.
__attribute__((always_inline)) inline void* Pool::allocate_fast(size_t size_bytes, size_t align_bytes, unsigned flags) {
  // kMinPageBytes: a larger alignment is legal where pages are larger, and rare.
  if ((flags & ~unsigned{PERCPU_ATOMIC | PERCPU_NOWARN}) != 0 || align_bytes - 1 >= kMinPageBytes ||
      (align_bytes & (align_bytes - 1)) != 0) [[unlikely]]
    return nullptr;
  const size_t fragments = (size_bytes + kFragmentBytes - 1) / kFragmentBytes;  // 0: of size 0, or the sum overflowed
  uintptr_t handle = 0;
  if (fragments > FrontCache::kLargest / kFragmentBytes || !front_.pop_fast(fragments, &handle)) [[unlikely]] return nullptr;
  if ((handle & (align_bytes - 1)) != 0) [[unlikely]] return misaligned(handle);
  const Spot spot = memory_.spot_of(handle);
  // Zeroed before it is live: what is read in this would wait for the atomic instruction (14 ns a pair of allocation and free on an
  // AMD EPYC of family 25, model 17; the other way round 19 in three of five tries, for no reason that a program could see).
  static_assert(FrontCache::kLargest <= UnitMemory::kSmallBytes);
  if (!front_.wide()) memory_.zero_small(handle, fragments * kFragmentBytes);
  marks_.begin_life(spot.chunk, spot.offset);
  PERCPU_TRACE7(alloc, name_, handle, size_bytes, align_bytes, spot.offset.bytes,
                fragments * kFragmentBytes * memory_.nr_real_copies(), flags);
  void* const result = reinterpret_cast<void*>(handle);
  if (result == nullptr) __builtin_unreachable();
  if ((state_.load(std::memory_order_relaxed) & kAllDue) != 0) [[unlikely]] return allocated(result, flags);
  return result;
}

inline void* Pool::allocate(size_t size_bytes, size_t align_bytes, unsigned flags, DomainId domain, int* error) {
  if (void* handle = allocate_fast(size_bytes, align_bytes, flags); handle != nullptr) [[likely]] return handle;
  return allocate_slow(size_bytes, align_bytes, flags, domain, error);
}

__attribute__((always_inline)) inline void Pool::free(void* handle, const char* call) {
  // The balancer knows that it has to look after the front caches, and no area has a record to look into.
  Spot spot{};
  const auto address = reinterpret_cast<uintptr_t>(handle);
  if ((state_.load(std::memory_order_relaxed) & (kNoneCached | kRecordsUsed)) != 0 || address < first_dynamic_ ||
      address % kFragmentBytes != 0 || !memory_.locate_handle(address, &spot)) [[unlikely]]
    return free_slow(handle, call);
  const uint32_t len = marks_.end_life(spot.chunk, spot.offset);
  if (len == 0) [[unlikely]] bad_handle(handle, call);
  if (len > FrontCache::kLargest / kFragmentBytes) [[unlikely]] return free_large(spot.chunk, spot.offset);
  // Before the push: from then on the area may be allocated again, and that is traced.
  PERCPU_TRACE4(free, name_, handle, size_t{len} * kFragmentBytes, spot.offset.bytes);
  if (!front_.push_fast(len, address)) [[unlikely]] return free_rest(spot.chunk, spot.offset);
  // The front caches may have been emptied since the first look, and left to themselves.
  if ((state_.load(std::memory_order_relaxed) & (kNoneCached | kAllDue)) != 0) [[unlikely]] freed();
}

}  // namespace percpu

#endif  // PERCPU_RUNTIME_POOL_FAST_H
