// SPDX-License-Identifier: MIT
//
// Free, and what is said of a handle that is none. The lists of areas that are freed later are made here.
#include "base/check.h"
#include "runtime/pool.h"
#include "runtime/trace.h"

namespace percpu {

// A list entry names the fragment where an area starts, counted over all chunks, plus 1; 0 ends a list.
void Pool::push(std::atomic<uint32_t>& list, Spot spot) {
  const size_t fragments_per_unit = memory_.unit_size() / kFragmentBytes;
  const auto entry =
      static_cast<uint32_t>(spot.chunk.value * fragments_per_unit + spot.offset.bytes / kFragmentBytes + 1);
  Record& record = memory_.record(spot.chunk, spot.offset);
  uint32_t head = list.load(std::memory_order_relaxed);
  do {
    record.next = head;
  } while (!list.compare_exchange_weak(head, entry, std::memory_order_seq_cst, std::memory_order_relaxed));
}

Spot Pool::spot_of_entry(uint32_t entry) const {
  const auto fragments_per_unit = static_cast<uint32_t>(memory_.unit_size() / kFragmentBytes);
  return {{(entry - 1) / fragments_per_unit}, {(entry - 1) % fragments_per_unit * kFragmentBytes}, 0};
}

void Pool::bad_handle(const void* handle, const char* call) {
  Spot spot{};
  if (!memory_.locate_handle(reinterpret_cast<uintptr_t>(handle), &spot)) {
    const bool copy = memory_.locate(reinterpret_cast<uintptr_t>(handle), &spot);
    fatal("%s(%p): expected a handle of pool '%s', found %s", call, handle, name_,
          copy ? "the address of a copy (free the handle, not what percpu_ptr() returned)"
               : "a value that is no handle of that pool");
  }
  const Finding finding = core_->classify(spot.chunk, spot.offset);
  const void* start = reinterpret_cast<void*>(memory_.handle(spot.chunk, finding.start));
  const char* found = "memory that is in no area";
  switch (finding.kind) {
    case Finding::Kind::live_start:
      found = "an area that another thread freed or allocated meanwhile";
      break;
    case Finding::Kind::inside_live:
      fatal("%s(%p): expected the start of a live area of pool '%s', found the inside of the area %p", call, handle,
            name_, start);
    case Finding::Kind::already_freed:
    case Finding::Kind::inside_freed:
      found = "an area that is freed already";
      break;
    case Finding::Kind::free_memory:
      found = "free memory (freed before, or never allocated)";
      break;
    case Finding::Kind::misaligned:
      found = "a value that is not a multiple of 4";
      break;
    case Finding::Kind::in_static:
      found = "a static per-CPU variable";
      break;
    case Finding::Kind::beyond_parts:
    case Finding::Kind::beyond_unit:
      found = "a value behind the end of a unit";
      break;
    case Finding::Kind::no_chunk:
      found = "a chunk that does not exist (freed before, or never allocated)";
      break;
  }
  fatal("%s(%p): expected the start of a live area of pool '%s', found %s", call, handle, name_, found);
}

// Ends the life of the area: of several threads that free the same handle, one comes back from here. Returns its size.
size_t Pool::begin_free(void* handle, Spot* spot, const char* call) {
  size_t size_bytes = 0;
  if (memory_.locate_handle(reinterpret_cast<uintptr_t>(handle), spot)) {
    size_bytes = core_->end_life(spot->chunk, spot->offset);
  }
  if (size_bytes == 0) [[unlikely]] bad_handle(handle, call);
  if ((records_used() || in_reserved_part(*spot)) &&
      memory_.record(spot->chunk, spot->offset).domain.load(std::memory_order_relaxed) == kStaticVariables.value) [[unlikely]] {
    fatal("%s(%p): expected a handle that pool '%s' allocated, found a static per-CPU variable", call, handle, name_);
  }
  return size_bytes;
}

void Pool::free_slow(void* handle, const char* call) {
  Spot spot;
  const size_t size_bytes = begin_free(handle, &spot, call);
  finish_free(spot, size_bytes);
  after_call(Caller::kFreeing);
}

// An area whose life the inline part of a free ended, and which is too large for a front cache.
void Pool::free_large(ChunkId chunk, AreaOffset offset) {
  finish_free({chunk, offset, 0}, core_->area_size(chunk, offset));
  after_call(Caller::kFreeing);
}

// The same for one that was traced, and that the front cache did not take at once.
void Pool::free_rest(ChunkId chunk, AreaOffset offset) {
  put_away({chunk, offset, 0}, core_->area_size(chunk, offset));
  after_call(Caller::kFreeing);
}

// What the inline part of a free comes to when it is not all there is to do.
void Pool::freed() {
  if (!cached() && !front_caches_may_hold()) flush_freed_here();
  after_call(Caller::kFreeing);
}

// From the reserved part while that has room.
void* Pool::allocate_statics(size_t size_bytes, size_t align_bytes) {
  int error = 0;
  void* handle = allocate_for(Caller::kFreeing, size_bytes, align_bytes, PERCPU_RESERVED | PERCPU_NOWARN, kNoDomain, &error);
  if (handle == nullptr) handle = allocate_for(Caller::kFreeing, size_bytes, align_bytes, PERCPU_NOWARN, kNoDomain, &error);
  Spot spot{};
  if (handle == nullptr || !memory_.locate_handle(reinterpret_cast<uintptr_t>(handle), &spot)) return nullptr;
  memory_.record(spot.chunk, spot.offset).domain.store(kStaticVariables.value, std::memory_order_relaxed);
  if (!in_reserved_part(spot)) use_records();
  return handle;
}

void Pool::free_statics(void* handle) {
  Spot spot{};
  if (memory_.locate_handle(reinterpret_cast<uintptr_t>(handle), &spot)) {
    memory_.record(spot.chunk, spot.offset).domain.store(kNoDomain.value, std::memory_order_relaxed);
  }
  free_slow(handle, "percpu_free");
}

void Pool::uncharge(Spot spot, size_t size_bytes) {
  if (!records_used() || spot.chunk.value == 0) return;
  std::atomic<uint32_t>& record = memory_.record(spot.chunk, spot.offset).domain;
  if (record.load(std::memory_order_relaxed) == 0) return;  // most areas: their record is not to be backed for this
  const uint32_t domain = record.exchange(0, std::memory_order_relaxed);
  if (domain != 0) environment_.accounting->uncharge({domain}, charge_bytes(size_bytes));
}

void Pool::finish_free(Spot spot, size_t size_bytes) {
  PERCPU_TRACE4(free, name_, memory_.handle(spot.chunk, spot.offset), size_bytes, spot.offset.bytes);
  put_away(spot, size_bytes);
}

// In a wide pool the charge goes with the area into the front cache; whoever takes the area from there uncharges it.
void Pool::put_away(Spot spot, size_t size_bytes) {
  const uint32_t size_class = FrontCache::class_of(size_bytes);
  if (!front_.wide()) uncharge(spot, size_bytes);
  if (size_class != FrontCache::kNrClasses && cache(size_class, spot)) return;
  if (front_.wide()) uncharge(spot, size_bytes);
  put_back(&spot, 1);
}

void Pool::put_back(const Spot* spots, uint32_t count) {
  if (!try_lock_map_bounded()) return defer(spots, count);
  for (uint32_t i = 0; i < count; i++) release(spots[i]);
  unlock_map();
}

// The same where the lock could not be had: whoever has it does it.
void Pool::defer(const Spot* spots, uint32_t count) {
  nr_deferred_.fetch_add(count, std::memory_order_relaxed);
  for (uint32_t i = 0; i < count; i++) push(pending_, spots[i]);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // the push before the try in drain_pending(): see unlock_map()
  drain_pending();
}

void Pool::release(Spot spot) {
  const Released released = core_->release(spot.chunk, spot.offset);
  counters_.nr_taken--;
  counters_.taken_bytes -= released.size_bytes;
  if (starved_.load(std::memory_order_relaxed)) starved_.store(false, std::memory_order_relaxed);
  if (released.wake_balancer) request(kBalance);
}

void Pool::free_after_grace(void* handle, const char* call) {
  Spot spot;
  const size_t size_bytes = begin_free(handle, &spot, call);
  // Now, not after the grace period: this is what ends the area's life, and who called is known.
  PERCPU_TRACE4(free, name_, handle, size_bytes, spot.offset.bytes);
  nr_deferred_.fetch_add(1, std::memory_order_relaxed);
  push(grace_pending_, spot);
  request(kGrace);
  after_call(Caller::kMayBlock);  // starts the thread: nobody may come after this call who would
}

size_t Pool::area_size(const void* handle) const {
  Spot spot{};
  if (!memory_.locate_handle(reinterpret_cast<uintptr_t>(handle), &spot)) return 0;
  if (core_->classify(spot.chunk, spot.offset).kind != Finding::Kind::live_start) return 0;
  return core_->area_size(spot.chunk, spot.offset);
}

}  // namespace percpu
