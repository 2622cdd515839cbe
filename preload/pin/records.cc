// SPDX-License-Identifier: MIT
#include "preload/pin/records.h"

#include <sys/mman.h>

namespace percpu::heap {

void RecordList::add_to_free(Slab* slab) {
  for (ThreadRecord& record : slab->records) {
    record = {};
    record.next = free_;
    free_ = &record;
  }
}

bool RecordList::new_slab(const System& system) {
  const intptr_t at = system.mmap(0, Slab::kBytes, PROT_READ | PROT_WRITE, 0);
  if (at < 0) return false;
  Slab* slab = reinterpret_cast<Slab*>(at);
  slab->next = slabs_.load(std::memory_order_relaxed);
  slabs_.store(slab, std::memory_order_release);
  add_to_free(slab);
  return true;
}

ThreadRecord* RecordList::add(const System& system) {
  if (free_ == nullptr && !new_slab(system)) return nullptr;
  ThreadRecord* record = free_;
  free_ = record->next;
  *record = {};
  record->next = live_;
  if (live_ != nullptr) live_->before = record;
  live_ = record;
  return record;
}

void RecordList::remove(ThreadRecord* record) {
  (record->before != nullptr ? record->before->next : live_) = record->next;
  if (record->next != nullptr) record->next->before = record->before;
  *record = {};
  record->next = free_;
  free_ = record;
}

void RecordList::reset_after_fork_in_child() {
  live_ = nullptr;
  free_ = nullptr;
  for (Slab* slab = slabs_.load(std::memory_order_relaxed); slab != nullptr; slab = slab->next) add_to_free(slab);
}

}  // namespace percpu::heap
