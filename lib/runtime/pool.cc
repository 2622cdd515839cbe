// SPDX-License-Identifier: MIT
//
// The map lock, and allocation. What has to do with the front caches is in pool_cached.cc, free in pool_free.cc, the making of a
// pool in pool_setup.cc, balance in pool_balance.cc, questions in pool_stats.cc.
#include "runtime/pool.h"

#include <algorithm>
#include <cerrno>

#include "base/bits.h"
#include "base/check.h"
#include "runtime/trace.h"

namespace percpu {
namespace {

// How many map locks the calling thread holds, or is taking, or is giving back: what tells a signal handler whether it
// interrupted code that holds one. Counted before the lock is taken and after it is released, so there is no gap.
__thread uint32_t map_depth __attribute__((tls_model("initial-exec"))) = 0;

void change_depth(uint32_t by) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  __atomic_store_n(&map_depth, map_depth + by, __ATOMIC_RELAXED);
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

constexpr unsigned kAllFlags = PERCPU_ATOMIC | PERCPU_RESERVED | PERCPU_ACCOUNT | PERCPU_NOWARN;

// Bits of the maps a fragment: allocated, bound, live.
constexpr size_t kMapBitsPerFragment = 3;

}  // namespace

// ---- the map lock ------------------------------------------------------------------------------------------------

bool Pool::inside_map_lock() { return map_depth != 0; }

void Pool::lock_map() {
  change_depth(1);
  map_lock_.lock();
}

// Never waits long; at once where this thread holds a map lock, which a plain try cannot get wrong.
bool Pool::try_lock_map_bounded() {
  const bool in_handler_of_holder = inside_map_lock();
  change_depth(1);
  if (in_handler_of_holder ? map_lock_.try_lock() : map_lock_.lock_bounded()) return true;
  change_depth(static_cast<uint32_t>(-1));
  return false;
}

void Pool::unlock_map() {
  map_lock_.unlock();
  change_depth(static_cast<uint32_t>(-1));
  // Pairs with put_back(): the unlock comes before this load, the push there before its try at the lock, in an order that all
  // agree on, so one of the two sides sees the other.
  if (pending_.load(std::memory_order_seq_cst) != 0) drain_pending();
}

void Pool::drain_pending() {
  while (pending_.load(std::memory_order_seq_cst) != 0) {
    change_depth(1);
    if (!map_lock_.try_lock()) {
      change_depth(static_cast<uint32_t>(-1));
      return;  // its holder will look here
    }
    for (uint32_t entry = pending_.exchange(0, std::memory_order_acq_rel); entry != 0;) {
      const Spot spot = spot_of_entry(entry);
      entry = memory_.record(spot.chunk, spot.offset).next;
      release(spot);
      nr_deferred_.fetch_sub(1, std::memory_order_relaxed);
    }
    map_lock_.unlock();
    change_depth(static_cast<uint32_t>(-1));
  }
  // The thread that frees areas here may not be one that looks for due work afterwards: it may be the balance thread itself, about to
  // sleep, or a mere reader.
  if (balance_mode_ == BalanceMode::kThread && (state_.load(std::memory_order_relaxed) & kBalance) != 0) {
    environment_.balancer->wake();
  }
}

// ---- allocation ----------------------------------------------------------------------------------------------------

Pool::Refusal Pool::refusal(size_t size_bytes, size_t align_bytes, unsigned flags, size_t max_alloc_bytes, size_t page_bytes) {
  if (size_bytes == 0) return {"size is 0", 0};
  if (size_bytes > max_alloc_bytes) return {"size is above the largest allocation", max_alloc_bytes};
  if ((align_bytes & (align_bytes - 1)) != 0 || align_bytes == 0) return {"alignment is not a power of two", 0};
  if (align_bytes > page_bytes) return {"alignment is above the page size", page_bytes};
  if ((flags & ~kAllFlags) != 0) return {"unknown flags", 0};
  return {nullptr, 0};
}

// The units' bytes, and the area's share of the bitmaps and records.
size_t Pool::charge_bytes(size_t size_bytes) const {
  const size_t fragments = size_bytes / kFragmentBytes;
  return size_bytes * memory_.nr_real_copies() + fragments * sizeof(Record) +
         (fragments * kMapBitsPerFragment + 7) / 8;
}

// A request that no allocation can grant.
void* Pool::illegal(size_t size_bytes, size_t align_bytes, unsigned flags, const Refusal& refusal, int* error) {
  const bool may_block = (flags & PERCPU_ATOMIC) == 0;
  if ((flags & PERCPU_NOWARN) == 0) {
    environment_.warnings->illegal({size_bytes, align_bytes, flags, refusal.reason, refusal.most}, may_block);
    if (!may_block) request(kSay);
  }
  *error = EINVAL;
  return nullptr;
}

// One that might have been granted. `due`: what is due because of it, besides a line in the log, where the caller may not block.
void* Pool::refused(size_t size_bytes, size_t align_bytes, unsigned flags, Caller caller, int result, const char* reason,
                    uint32_t due, int* error) {
  nr_failed_.fetch_add(1, std::memory_order_relaxed);
  PERCPU_TRACE5(alloc_failed, name_, size_bytes, align_bytes, flags, -result);
  const bool may_block = caller != Caller::kAtomic;
  if ((flags & PERCPU_NOWARN) == 0) {
    environment_.warnings->failure({size_bytes, align_bytes, flags, reason}, may_block);
    due |= kSay;
  }
  if (!may_block && due != 0) request(due);
  after_call(caller);
  *error = -result;
  return nullptr;
}

// Charges a domain. Areas that wait to be ready are still charged: before a charge fails, all of them go back to the maps; in
// atomic context those of this CPU. Where none waits, those that did may have been made ready since the first try.
bool Pool::charge(DomainId domain, size_t bytes, bool atomic) {
  if (!front_.wide() || !records_used()) {
    return environment_.accounting->charge(domain, bytes);
  }
  if (environment_.accounting->charge(domain, bytes, Accounting::Refusal::kHasAnotherTry)) return true;
  if (atomic) {
    flush_freed_here();
  } else if (front_.sums().nr_freed != 0) {
    drain_front_caches();
  }
  return environment_.accounting->charge(domain, bytes);
}

// Notes who pays for an area that was charged already.
void Pool::record_charge(const Area& area, DomainId domain, size_t charged) {
  if (area.chunk.value == 0) {
    environment_.accounting->uncharge(domain, charged);  // the first chunk is there anyway
    return;
  }
  use_records();
  memory_.record(area.chunk, area.offset).domain.store(domain.value, std::memory_order_relaxed);
}

void* Pool::allocate_slow(size_t size_bytes, size_t align_bytes, unsigned flags, DomainId domain, int* error) {
  const Caller caller = (flags & PERCPU_ATOMIC) != 0 ? Caller::kAtomic : Caller::kMayBlock;
  return allocate_for(caller, size_bytes, align_bytes, flags, domain, error);
}

void* Pool::allocate_for(Caller caller, size_t size_bytes, size_t align_bytes, unsigned flags, DomainId domain, int* error) {
  const Refusal refusal = Pool::refusal(size_bytes, align_bytes, flags, max_alloc_bytes_, page_bytes());
  if (refusal.reason != nullptr) [[unlikely]] return illegal(size_bytes, align_bytes, flags, refusal, error);
  const bool atomic = caller == Caller::kAtomic;
  const Request request{static_cast<uint32_t>(round_up<size_t>(size_bytes, kFragmentBytes)),
                        std::max(static_cast<uint32_t>(align_bytes), kFragmentBytes),
                        (flags & PERCPU_RESERVED) != 0 && has_reserved_ ? Region::reserved : Region::dynamic, atomic};
  const size_t charged = domain == kNoDomain ? 0 : charge_bytes(request.size_bytes);
  if (charged != 0 && !charge(domain, charged, atomic)) {
    // Nothing is due: more memory would not help.
    return refused(size_bytes, align_bytes, flags, caller, -ENOMEM, "the accounting domain's limit", 0, error);
  }
  Area area{};
  bool zeroed = false;
  const int result = take_any(request, &area, &zeroed);
  if (result != 0) [[unlikely]] {
    if (charged != 0) environment_.accounting->uncharge(domain, charged);
    const char* reason = result == -EAGAIN ? "a lock is held" : atomic ? "no populated memory fits"
                         : request.region == Region::reserved ? "the reserved part is full" : "no memory";
    return refused(size_bytes, align_bytes, flags, caller, result, reason, kBalance, error);
  }
  const uintptr_t handle = memory_.handle(area.chunk, area.offset);
  if (!zeroed) memory_.zero(handle, request.size_bytes);
  if (charged != 0) record_charge(area, domain, charged);
  PERCPU_TRACE7(alloc, name_, handle, size_bytes, align_bytes, area.offset.bytes,
                uint64_t{request.size_bytes} * memory_.nr_real_copies(), flags);
  if (core_->wants_populate() && !starved_.load(std::memory_order_relaxed)) this->request(kBalance);
  after_call(caller);
  return reinterpret_cast<void*>(handle);
}

// What the inline part of an allocation comes to when it is not all there is to do.
void* Pool::allocated(void* handle, unsigned flags) {
  after_call((flags & PERCPU_ATOMIC) != 0 ? Caller::kAtomic : Caller::kMayBlock);
  return handle;
}

void Pool::count_request(uint32_t size_bytes) {
  counters_.max_request = std::max<uint64_t>(counters_.max_request, size_bytes);
  if (counters_.min_request == 0 || size_bytes < counters_.min_request) counters_.min_request = size_bytes;
}

void Pool::count_allocation(const Area& area) {
  counters_.nr_allocs++;
  counters_.nr_taken++;
  counters_.taken_bytes += area.size_bytes;
  if (counters_.nr_taken > counters_.nr_peak_taken) {
    counters_.nr_peak_taken = std::max(counters_.nr_peak_taken, counters_.nr_taken - shelves_.nr_areas());
  }
  count_request(area.size_bytes);
}

// Takes an area with all its pages populated. `zeroed`: it is zero in every copy.
int Pool::take(const Request& request, Area* area, bool* zeroed) {
  if (request.atomic) return take_atomic(request, area);
  lock_map();
  const std::optional<Area> found =
      core_->allocate(request.size_bytes, request.align_bytes, Context::normal, request.region);
  if (found && !core_->next_unpopulated_run(*found)) {
    count_allocation(*found);
    unlock_map();
    *area = *found;
    return 0;
  }
  unlock_map();
  if (!found && request.region == Region::reserved) return -ENOMEM;
  if (found) {
    *area = *found;
  } else {
    area->size_bytes = 0;
  }
  return take_growing(request, area, zeroed);
}

int Pool::take_atomic(const Request& request, Area* area) {
  if (!try_lock_map_bounded()) {
    core_->note_atomic_failure();
    return -EAGAIN;
  }
  const std::optional<Area> found =
      core_->allocate(request.size_bytes, request.align_bytes, Context::atomic, request.region);
  if (found) count_allocation(*found);
  unlock_map();
  if (!found) return -ENOMEM;
  *area = *found;
  return 0;
}

// What take() does when the system is needed. `area` is what was found already; its size is 0 where nothing was.
//
// Memory that is short is relieved once: what the pool holds and does not need goes back to the system, and the step that
// failed is tried again. If it fails again, the pages that the pool keeps ready for atomic context have to do: an
// allocation is not refused for want of memory that the reserve holds.
int Pool::take_growing(const Request& request, Area* area, bool* zeroed) {
  SleepMutexGuard guard(grow_lock_);
  bool relieved = false;
  std::optional<Area> found = area->size_bytes != 0 ? std::optional<Area>(*area) : std::nullopt;
  for (;;) {
    int result = 0;
    while (!found) {
      lock_map();
      found = core_->allocate(request.size_bytes, request.align_bytes, Context::normal, request.region);
      unlock_map();
      if (found) break;
      result = create_chunk();
      if (result != 0) break;
    }
    if (found) {
      lock_map();
      const std::optional<PageRun> missing = core_->next_unpopulated_run(*found);
      unlock_map();
      *zeroed = missing && zero_once_populated(*found, *missing);
      result = populate_area(*found);
      if (result == 0) break;
      give_back(*found);
      found.reset();
    }
    if (relieved) {
      lock_map();
      found = core_->allocate(request.size_bytes, request.align_bytes, Context::atomic, request.region);
      unlock_map();
      *zeroed = false;
      if (found) break;
      return -ENOMEM;
    }
    relieved = true;
    relieve();
  }
  *area = *found;
  lock_map();
  count_allocation(*area);
  unlock_map();
  return 0;
}

// Whether none of the area's pages is populated: they are then zero in every copy once they are, since giving pages back
// covers all copies, and nobody but the area's owner writes to its bytes. Not so where giving back once failed.
bool Pool::zero_once_populated(const Area& area, const PageRun& missing) const {
  if (kept_unclean_) return false;
  const size_t page = page_bytes();
  const size_t first = area.offset.bytes / page;
  const size_t end = (area.offset.bytes + area.size_bytes + page - 1) / page;
  return missing.first.value == first && missing.count == end - first;
}

int Pool::populate_area(const Area& area) {
  for (;;) {
    lock_map();
    const std::optional<PageRun> run = core_->next_unpopulated_run(area);
    unlock_map();
    if (!run) return 0;
    const int result = memory_.populate(area.chunk, *run);
    if (result != 0) return result;
    lock_map();
    core_->mark_populated(area.chunk, *run);
    counters_.nr_pages_populated += run->count;
    unlock_map();
  }
}

void Pool::give_back(const Area& area) {
  lock_map();
  const bool mine = core_->clear_live(area.chunk, area.offset);
  PERCPU_CHECK(mine, "expected an area that nobody knows of, found it freed");
  if (core_->release(area.chunk, area.offset).wake_balancer) request(kBalance);
  unlock_map();
}

int Pool::create_chunk() {
  lock_map();
  const std::optional<ChunkId> chunk = core_->begin_chunk();
  unlock_map();
  if (!chunk) return -ENOMEM;
  int result = memory_.open_chunk(*chunk);
  StorageRange storage{};
  lock_map();
  if (result == 0) {
    core_->publish_chunk(*chunk);
    counters_.nr_chunks_created++;
  } else if (result == UnitMemory::kLostChunk) {
    core_->lose_chunk(*chunk);
    result = -ENOMEM;
  } else {
    core_->abandon_chunk(*chunk);
    storage = core_->chunk_storage(*chunk);
  }
  unlock_map();
  memory_.drop_core_pages(storage.offset_bytes, storage.size_bytes);
  if (result == 0) {
    starved_.store(false, std::memory_order_relaxed);
    PERCPU_TRACE4(chunk_create, name_, chunk->value, memory_.handle(*chunk, {0}), memory_.chunk_bytes());
  }
  return result;
}

}  // namespace percpu
