// SPDX-License-Identifier: MIT
//
// The ways of an allocation and of a free that end in this CPU's front cache: inline, since they are most of them, and since
// where the flags are a constant little of them is left. Whatever is out of the ordinary goes to the functions in pool.cc,
// which do all of it.
//
// What an allocation does here: a sequence that pops, one that counts, an atomic "or" that makes the area live, and where
// the pool is not wide, a look at each copy. A free: an atomic "and" by which one of several that free the same area wins,
// and one sequence that pushes. Nothing here waits, and no line is written that other CPUs write, but by accident.
//
// Included by pool.h.
#ifndef PERCPU_RUNTIME_POOL_FAST_H
#define PERCPU_RUNTIME_POOL_FAST_H

#include "runtime/pool.h"
#include "runtime/trace.h"

namespace percpu {

// Null: nothing has happened, but that a misaligned area may have gone back to the maps.
__attribute__((always_inline)) inline void* Pool::allocate_fast(size_t size_bytes, size_t align_bytes, unsigned flags) {
  // kMinPageBytes: a larger alignment is legal where pages are larger, and rare.
  if ((flags & ~unsigned{PERCPU_ATOMIC | PERCPU_NOWARN}) != 0 || align_bytes - 1 >= kMinPageBytes ||
      (align_bytes & (align_bytes - 1)) != 0) [[unlikely]]
    return nullptr;
  const uint32_t size_class = FrontCache::class_of(size_bytes);
  const size_t rounded_bytes = (size_bytes + kFragmentBytes - 1) & ~size_t{kFragmentBytes - 1};
  if (size_class == FrontCache::kNrClasses || (!front_.wide() && rounded_bytes > UnitMemory::kSmallBytes)) [[unlikely]]
    return nullptr;
  CachedPlace place{};
  if (!front_.pop_to_allocate(size_class, &place)) [[unlikely]] return nullptr;
  if ((place.offset.bytes & (align_bytes - 1)) != 0) [[unlikely]] return misaligned({place.chunk, place.offset, 0});
  // Live before its memory is zeroed, which only its owner could tell.
  marks_.begin_life(place.chunk, place.offset);
  const uintptr_t handle = memory_.handle(place.chunk, place.offset);
  if (!front_.wide()) memory_.zero_small(handle, rounded_bytes);
  PERCPU_TRACE7(alloc, name_, handle, size_bytes, align_bytes, place.offset.bytes,
                rounded_bytes * memory_.nr_real_copies(), flags);
  void* const result = reinterpret_cast<void*>(handle);
  if (due_.load(std::memory_order_relaxed) != 0) [[unlikely]] return allocated(result, flags);
  return result;
}

inline void* Pool::allocate(size_t size_bytes, size_t align_bytes, unsigned flags, DomainId domain, int* error) {
  if (void* handle = allocate_fast(size_bytes, align_bytes, flags); handle != nullptr) [[likely]] return handle;
  return allocate_slow(size_bytes, align_bytes, flags, domain, error);
}

__attribute__((always_inline)) inline void Pool::free(void* handle, const char* call) {
  // The balancer knows that it has to look after the front caches, and no area has a record to look into.
  Spot spot{};
  if (!cached_.load(std::memory_order_relaxed) || records_used_.load(std::memory_order_relaxed) ||
      !memory_.locate_handle(reinterpret_cast<uintptr_t>(handle), &spot) || spot.offset.bytes % kFragmentBytes != 0 ||
      (spot.chunk.value == 0 && spot.offset.bytes < dynamic_begin_)) [[unlikely]]
    return free_slow(handle, call);
  const uint32_t len = marks_.end_life(spot.chunk, spot.offset);
  if (len == 0) [[unlikely]] bad_handle(handle, call);
  const uint32_t size_class = len == AreaMarks::kLong ? FrontCache::kNrClasses
                                                      : FrontCache::class_of(size_t{len} * kFragmentBytes);
  if (size_class == FrontCache::kNrClasses) [[unlikely]] return free_rest(spot);
  PERCPU_TRACE4(free, name_, handle, size_t{len} * kFragmentBytes, spot.offset.bytes);
  if (!front_.push(FrontCache::kFreed, size_class, {spot.chunk, spot.offset})) [[unlikely]]
    return free_small(spot, size_class);
  // The front caches may have been emptied since the first look, and left to themselves.
  if (!cached_.load(std::memory_order_relaxed)) [[unlikely]] (void)front_caches_may_hold();
  if (due_.load(std::memory_order_relaxed) != 0) [[unlikely]] after_call(Caller::kFreeing);
}

}  // namespace percpu

#endif  // PERCPU_RUNTIME_POOL_FAST_H
