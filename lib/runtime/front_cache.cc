// SPDX-License-Identifier: MIT
#include "runtime/front_cache.h"

#include <algorithm>

namespace percpu {

void FrontCache::open(const percpu_view& view, uintptr_t handle, const uintptr_t* offsets, uint32_t nr_offsets,
                      uint32_t nr_copies, bool wide) {
  if (!kServes) return;
  view_ = &view;
  table_ = view.offset;
  offsets_ = offsets;
  nr_offsets_ = nr_offsets;
  nr_copies_ = nr_copies;
  wide_ = wide;
  const uint32_t nr_kinds = wide ? 2 : 1;
  stacks_[kFreed] = handle + kHeaderBytes;
  stacks_[kReady] = wide ? stacks_[kFreed] + kNrClasses * kStackBytes : stacks_[kFreed];
  for (uint32_t c = 0; c < kNrClasses; c++) {
    limit_[c] = limit_for(c, nr_offsets, nr_copies, nr_kinds);
    const auto at = [&](Kind kind) { return static_cast<uint16_t>(stacks_[kind] + c * kStackBytes - handle); };
    freed_at_[kSizes[c] / 4] = at(kFreed);
    ready_at_[kSizes[c] / 4] = at(kReady);
  }
  static_assert(kHeaderBytes + kNrKinds * kNrClasses * kStackBytes <= UINT16_MAX);
  handle_ = handle;
  start();
}

uint32_t FrontCache::limit_for(uint32_t size_class, uint32_t nr_cpus, uint32_t nr_copies, uint32_t nr_kinds) {
  const size_t bytes_of_one = size_t{size_of(size_class)} * std::min<size_t>(nr_cpus, kManyCpus) * std::min<size_t>(nr_copies, kManyCpus);
  return static_cast<uint32_t>(std::min<size_t>(kLimit, kClassBudgetBytes / (bytes_of_one * nr_kinds)));
}

void FrontCache::stop() {
  __atomic_store_n(&stopped_, true, __ATOMIC_RELAXED);
  for (uint32_t cpu = 0; cpu < nr_offsets_; cpu++) set_limits(cpu, false);
}

void FrontCache::start() {
  __atomic_store_n(&stopped_, false, __ATOMIC_RELAXED);
  for (uint32_t cpu = 0; cpu < nr_offsets_; cpu++) set_limits(cpu, true);
}

uint32_t FrontCache::stop_some(uint32_t* cpu, uint64_t most_copies) {
  uint32_t nr_stopped = 0;
  uint64_t sum = 0;
  for (uint32_t looked = 0; looked < nr_offsets_ && sum < most_copies; looked++) {
    uint64_t freed = 0;
    for (uint32_t c = 0; c < kNrClasses; c++) freed += percpu_stack_count(stack_of(*cpu, kFreed, c));
    if (freed != 0) {
      if (nr_stopped != 0 && sum + freed * nr_copies_ > most_copies) break;
      set_limits(*cpu, false);
      nr_stopped++;
      sum += freed * nr_copies_;
    }
    *cpu = (*cpu + 1) % nr_offsets_;
  }
  return nr_stopped;
}

uint32_t FrontCache::stop_idle(uint64_t now_ms, uint64_t idle_ms) {
  uint32_t nr_stopped = 0;
  for (uint32_t cpu = 0; cpu < nr_offsets_; cpu++) {
    Header* const header = header_of(cpu);
    const CpuLook look = look_at(cpu);
    if (look.words != header->words) {
      header->words = look.words;
      header->since_ms = now_ms;
    } else if (look.filled && now_ms - header->since_ms >= idle_ms) {
      set_limits(cpu, false);
      nr_stopped++;
    }
  }
  return nr_stopped;
}

// Every push and pop changes the sum; that areas become ready does not.
FrontCache::CpuLook FrontCache::look_at(uint32_t cpu) const {
  CpuLook look{};
  const auto add = [&look](const percpu_stack* stack) {
    const uint64_t word = __atomic_load_n(&stack->word, __ATOMIC_RELAXED);
    look.words += word;
    look.filled |= percpu_stack_count(stack) != 0;
  };
  for (uint32_t c = 0; c < kNrClasses; c++) {
    add(stack_of(cpu, kFreed, c));
    if (wide_) add(stack_of(cpu, kReady, c));
  }
  return look;
}

// Release: whoever sees the limit also sees what was done to the stacks while they were stopped. Limits that are as they should be are
// not written: they lie on a line with what their CPU is changing.
void FrontCache::set_limits(uint32_t cpu, bool open) {
  const auto set = [](percpu_stack* stack, uint32_t limit) {
    if (__atomic_load_n(&stack->limit, __ATOMIC_RELAXED) != limit) __atomic_store_n(&stack->limit, limit, __ATOMIC_RELEASE);
  };
  for (uint32_t c = 0; c < kNrClasses; c++) {
    const uint32_t limit = open ? limit_[c] : 0;
    set(stack_of(cpu, kFreed, c), limit);
    if (wide_) set(stack_of(cpu, kReady, c), limit);
  }
}

// Without the way of a thread that is not known yet, which nobody would take here.
void FrontCache::correct_allocs(int64_t by) const {
#if PERCPU_HAVE_SEQUENCES
  if (percpu_thread_.offset != nullptr) percpu_seq_add_8_(table_, reinterpret_cast<uint64_t*>(handle_), static_cast<uint64_t>(by));
#else
  (void)by;
#endif
}

bool FrontCache::find_filled(Filled* filled) {
  const uint32_t nr_kinds = wide_ ? 2 : 1;
  const uint32_t nr_stacks = nr_offsets_ * nr_kinds * kNrClasses;
  for (uint32_t tried = 0; tried < nr_stacks; tried++) {
    const uint32_t size_class = cursor_ % kNrClasses;
    const Kind kind = cursor_ / kNrClasses % nr_kinds == 0 ? kFreed : kReady;
    const uint32_t cpu = cursor_ / (kNrClasses * nr_kinds);
    percpu_stack* stack = stack_of(cpu, kind, size_class);
    if (stack->limit == 0 && percpu_stack_count(stack) != 0) {
      *filled = {cpu, stack, kind, size_class};
      return true;
    }
    cursor_ = (cursor_ + 1) % nr_stacks;
  }
  return false;
}

// No pop counts what is taken like this: as many areas that come next would look like those that were there.
void FrontCache::set_empty(const Filled& filled) {
  percpu_stack_set_count(filled.stack, 0);
  header_of(filled.cpu)->words = 0;
}

FrontCache::Sums FrontCache::sums() const {
  Sums sums;
  if (!is_open()) return sums;
  // A thread may be on a CPU that has no open stacks by the time it counts what it got from one.
  for (uint32_t copy = 0; copy < view_->nr_copies; copy++) {
    if (view_->offset[copy] == 0) continue;
    sums.nr_allocs += __atomic_load_n(reinterpret_cast<const uint64_t*>(handle_ + view_->offset[copy]), __ATOMIC_RELAXED);
  }
  for (uint32_t cpu = 0; cpu < nr_offsets_; cpu++) {
    for (uint32_t c = 0; c < kNrClasses; c++) {
      const uint64_t freed = percpu_stack_count(stack_of(cpu, kFreed, c));
      const uint64_t ready = wide_ ? percpu_stack_count(stack_of(cpu, kReady, c)) : 0;
      sums.nr_allocs += percpu_stack_nr_pops(stack_of(cpu, kReady, c));
      sums.nr_freed += freed;
      sums.nr_cached += freed + ready;
      sums.cached_bytes += (freed + ready) * kSizes[c];
    }
  }
  return sums;
}

}  // namespace percpu
