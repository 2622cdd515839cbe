// SPDX-License-Identifier: MIT
#include "runtime/front_cache.h"

namespace percpu {

void FrontCache::open(const percpu_view& view, uintptr_t handle, const uintptr_t* offsets, uint32_t nr_offsets) {
  view_ = &view;
  offsets_ = offsets;
  nr_offsets_ = nr_offsets;
  for (uint32_t c = 0; c < kNrClasses; c++) {
    const size_t affordable = kClassBudgetBytes / (size_t{kSizes[c]} * nr_offsets * nr_offsets);
    limit_[c] = static_cast<uint32_t>(affordable < kLimit ? affordable : kLimit);
  }
  handle_ = handle;
  start();
}

// Release: what was done to the stacks while they were stopped is seen by who sees the limit.
void FrontCache::set_limits(bool open) const {
  for (uint32_t cpu = 0; cpu < nr_offsets_; cpu++) {
    for (uint32_t c = 0; c < kNrClasses; c++) {
      __atomic_store_n(&stack_of(cpu, c)->limit, open ? limit_[c] : 0, __ATOMIC_RELEASE);
    }
  }
}

bool FrontCache::take(CachedPlace* place) {
  for (uint32_t tried = 0; tried < nr_offsets_ * kNrClasses; tried++) {
    percpu_stack* from = stack_of(cursor_ / kNrClasses, cursor_ % kNrClasses);
    if (from->count != 0) {
      from->count--;
      *place = CachedPlace::unpack(percpu_stack_slots(from)[from->count]);
      return true;
    }
    cursor_ = (cursor_ + 1) % (nr_offsets_ * kNrClasses);
  }
  return false;
}

FrontCache::Sums FrontCache::sums() const {
  Sums sums;
  // A thread may be on a CPU that has no open stacks by the time it counts what it got from one. All frees are read before
  // all allocations, so that none is counted whose allocation is not.
  for (uint32_t which = 2; which-- > 0;) {
    for (uint32_t copy = 0; copy < view_->nr_copies; copy++) {
      if (view_->offset[copy] == 0) continue;
      const auto* counters = reinterpret_cast<const uint64_t*>(handle_ + view_->offset[copy]);
      (which == 0 ? sums.nr_allocs : sums.nr_frees) += __atomic_load_n(&counters[which], __ATOMIC_ACQUIRE);
    }
  }
  for (uint32_t cpu = 0; cpu < nr_offsets_; cpu++) {
    for (uint32_t c = 0; c < kNrClasses; c++) {
      const uint64_t count = __atomic_load_n(&stack_of(cpu, c)->count, __ATOMIC_RELAXED);
      sums.nr_cached += count;
      sums.cached_bytes += count * kSizes[c];
    }
  }
  return sums;
}

}  // namespace percpu
