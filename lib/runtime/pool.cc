// SPDX-License-Identifier: MIT
//
// Allocation and free. The making of a pool is in pool_setup.cc, balance in pool_balance.cc, questions in pool_stats.cc.
#include "runtime/pool.h"

#include <algorithm>
#include <cerrno>
#include <utility>

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

// The inline part of an allocation has just popped an area that is not aligned: take_any(), which comes next, is not to pop another
// one. A hint: a signal handler that allocates in between takes it, and this thread then does without.
__thread bool popped_misaligned __attribute__((tls_model("initial-exec"))) = false;

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
  // Who frees the areas here need not be who looks for due work afterwards: it may be the balance thread itself, about to sleep,
  // or somebody who only asks.
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
void* Pool::refused(size_t size_bytes, size_t align_bytes, unsigned flags, int result, const char* reason, uint32_t due, int* error) {
  nr_failed_.fetch_add(1, std::memory_order_relaxed);
  PERCPU_TRACE5(alloc_failed, name_, size_bytes, align_bytes, flags, -result);
  const bool may_block = (flags & PERCPU_ATOMIC) == 0;
  if ((flags & PERCPU_NOWARN) == 0) {
    environment_.warnings->failure({size_bytes, align_bytes, flags, reason}, may_block);
    due |= kSay;
  }
  if (!may_block && due != 0) request(due);
  after_call(may_block ? Caller::kMayBlock : Caller::kAtomic);
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
  const Refusal refusal = Pool::refusal(size_bytes, align_bytes, flags, max_alloc_bytes_, page_bytes());
  if (refusal.reason != nullptr) [[unlikely]] return illegal(size_bytes, align_bytes, flags, refusal, error);
  const bool atomic = (flags & PERCPU_ATOMIC) != 0;
  const Request request{static_cast<uint32_t>(round_up<size_t>(size_bytes, kFragmentBytes)),
                        std::max(static_cast<uint32_t>(align_bytes), kFragmentBytes),
                        (flags & PERCPU_RESERVED) != 0 && has_reserved_ ? Region::reserved : Region::dynamic, atomic};
  const size_t charged = domain == kNoDomain ? 0 : charge_bytes(request.size_bytes);
  if (charged != 0 && !charge(domain, charged, atomic)) {
    // Nothing is due: more memory would not help.
    return refused(size_bytes, align_bytes, flags, -ENOMEM, "the accounting domain's limit", 0, error);
  }
  Area area{};
  bool zeroed = false;
  const int result = take_any(request, &area, &zeroed);
  if (result != 0) [[unlikely]] {
    if (charged != 0) environment_.accounting->uncharge(domain, charged);
    const char* reason = result == -EAGAIN ? "a lock is held" : atomic ? "no populated memory fits"
                         : request.region == Region::reserved ? "the reserved part is full" : "no memory";
    return refused(size_bytes, align_bytes, flags, result, reason, kBalance, error);
  }
  const uintptr_t handle = memory_.handle(area.chunk, area.offset);
  if (!zeroed) memory_.zero(handle, request.size_bytes);
  if (charged != 0) record_charge(area, domain, charged);
  PERCPU_TRACE7(alloc, name_, handle, size_bytes, align_bytes, area.offset.bytes,
                uint64_t{request.size_bytes} * memory_.nr_real_copies(), flags);
  if (core_->wants_populate() && !starved_.load(std::memory_order_relaxed)) this->request(kBalance);
  after_call(atomic ? Caller::kAtomic : Caller::kMayBlock);
  return reinterpret_cast<void*>(handle);
}

// What the inline part of an allocation comes to when it is not all there is to do.
void* Pool::allocated(void* handle, unsigned flags) {
  after_call((flags & PERCPU_ATOMIC) != 0 ? Caller::kAtomic : Caller::kMayBlock);
  return handle;
}

void* Pool::misaligned(uintptr_t area) {
  unpop(area);
  popped_misaligned = true;
  return nullptr;
}

// Gives an area that was popped, and is not to be allocated, back to the maps.
void Pool::unpop(uintptr_t area) {
  const Spot spot = memory_.spot_of(area);
  front_.correct_allocs(-1);
  put_back(&spot, 1);
}

// From this CPU's front cache, or from the maps. `zeroed`: as take() says.
int Pool::take_any(const Request& request, Area* area, bool* zeroed) {
  const bool in_vain = std::exchange(popped_misaligned, false);
  const uint32_t size_class = FrontCache::class_of(request.size_bytes);
  if (request.region == Region::reserved || size_class == FrontCache::kNrClasses) return take(request, area, zeroed);
  if (!in_vain && take_cached(size_class, request, area)) {
    *zeroed = front_.wide();
    return 0;
  }
  if (!request.atomic) (void)front_.attach_thread();
  return take(request, area, zeroed);
}

// An area from this CPU's front cache. What is popped and not aligned goes back to the maps.
bool Pool::take_cached(uint32_t size_class, const Request& request, Area* area) {
  uintptr_t handle = 0;
  if (!front_.pop(FrontCache::kReady, size_class, &handle)) {
    if (!front_.wide() || !make_batch_ready(size_class, request.atomic, &handle)) return false;
    front_.correct_allocs(1);
  }
  if (handle % request.align_bytes != 0) [[unlikely]] {
    unpop(handle);
    return false;
  }
  const Spot spot = memory_.spot_of(handle);
  marks_.begin_life(spot.chunk, spot.offset);
  *area = {spot.chunk, spot.offset, request.size_bytes};
  return true;
}

// Takes freed areas off this CPU's stack; they are the caller's then.
uint32_t Pool::pop_freed(uint32_t size_class, uintptr_t* areas, uint32_t most) {
  uint32_t count = 0;
  while (count < most && front_.pop(FrontCache::kFreed, size_class, &areas[count])) {
    // One by one: who reads the statistics meanwhile finds one allocation too many at most.
    if (!front_.wide()) front_.correct_allocs(-1);
    count++;
  }
  return count;
}

// Zeroes areas that the caller took off freed stacks, neighbours together, and ends their charges.
void Pool::make_ready(uint32_t size_class, uintptr_t* areas, uint32_t count) {
  PERCPU_CHECK(count <= FrontCache::kLimit, "expected at most a stack of areas, found %u", count);
  const uint32_t size_bytes = FrontCache::size_of(size_class);
  std::sort(areas, areas + count);
  UnitMemory::Stretch stretches[FrontCache::kLimit];
  uint32_t nr_stretches = 0;
  for (uint32_t i = 0; i < count; i++) {
    const Spot spot = memory_.spot_of(areas[i]);
    uncharge(spot, size_bytes);
    if (nr_stretches != 0) {
      UnitMemory::Stretch& last = stretches[nr_stretches - 1];
      if (last.handle + last.size_bytes == areas[i] && spot.offset.bytes != 0) {
        last.size_bytes += size_bytes;
        continue;
      }
    }
    stretches[nr_stretches++] = {areas[i], size_bytes};
  }
  memory_.zero(stretches, nr_stretches);
}

// Puts areas on this CPU's ready stack; what finds no room there goes back to the maps.
void Pool::push_ready(uint32_t size_class, const uintptr_t* areas, uint32_t count) {
  uint32_t pushed = 0;
  while (pushed < count && front_.push(FrontCache::kReady, size_class, areas[pushed])) pushed++;
  Spot surplus[FrontCache::kLimit];
  for (uint32_t i = pushed; i < count; i++) surplus[i - pushed] = memory_.spot_of(areas[i]);
  if (pushed != 0) (void)front_caches_may_hold();
  if (pushed != count) put_back(surplus, count - pushed);
}

// Makes a batch of areas ready for this CPU; one of them is the caller's. What is freed here is taken first. Where that is
// little, the maps fill the batch up, since zeroing many costs little more than zeroing one: but only from populated pages,
// and only while somebody would empty the front caches in time. False where nothing is to be had.
bool Pool::make_batch_ready(uint32_t size_class, bool atomic, uintptr_t* area) {
  uintptr_t areas[FrontCache::kLimit];
  uint32_t count = pop_freed(size_class, areas, FrontCache::kLimit);
  const uint32_t most = std::min(front_.limit_of(size_class), FrontCache::kBatch);
  if (count < most && !atomic && percpu_thread_.offset != nullptr && cached() &&
      !front_.stopped()) {
    count += take_spare(size_class, areas + count, most - count);
  }
  if (count == 0) return false;
  make_ready(size_class, areas, count);
  *area = areas[0];
  push_ready(size_class, areas + 1, count - 1);
  return true;
}

// Takes areas from populated pages of the maps, as freed ones: not live. It is done for a request of that size, which
// count_allocation() may never see.
uint32_t Pool::take_spare(uint32_t size_class, uintptr_t* areas, uint32_t most) {
  uint32_t count = 0;
  lock_map();
  while (count < most) {
    const std::optional<Area> found =
        core_->allocate(FrontCache::size_of(size_class), kFragmentBytes, Context::normal, Region::dynamic);
    if (!found) break;
    const bool populated = !core_->next_unpopulated_run(*found);
    (void)core_->clear_live(found->chunk, found->offset);
    if (!populated) {
      if (core_->release(found->chunk, found->offset).wake_balancer) request(kBalance);
      break;
    }
    counters_.nr_taken++;
    counters_.taken_bytes += found->size_bytes;
    areas[count++] = memory_.handle(found->chunk, found->offset);
  }
  counters_.nr_peak_taken = std::max(counters_.nr_peak_taken, counters_.nr_taken);
  if (count != 0) count_request(FrontCache::size_of(size_class));
  unlock_map();
  return count;
}

void Pool::count_request(uint32_t size_bytes) {
  counters_.max_request = std::max<uint64_t>(counters_.max_request, size_bytes);
  if (counters_.min_request == 0 || size_bytes < counters_.min_request) counters_.min_request = size_bytes;
}

void Pool::count_allocation(const Area& area) {
  counters_.nr_allocs++;
  counters_.nr_taken++;
  counters_.taken_bytes += area.size_bytes;
  counters_.nr_peak_taken = std::max(counters_.nr_peak_taken, counters_.nr_taken);
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
  const int result = memory_.open_chunk(*chunk);
  StorageRange storage{};
  lock_map();
  if (result == 0) {
    core_->publish_chunk(*chunk);
    counters_.nr_chunks_created++;
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

// ---- free ----------------------------------------------------------------------------------------------------------

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
  void* handle = allocate_slow(size_bytes, align_bytes, PERCPU_RESERVED | PERCPU_NOWARN, kNoDomain, &error);
  if (handle == nullptr) handle = allocate_slow(size_bytes, align_bytes, PERCPU_NOWARN, kNoDomain, &error);
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

// In a wide pool the charge goes with the area to the front cache: who takes it from there ends it.
void Pool::put_away(Spot spot, size_t size_bytes) {
  const uint32_t size_class = FrontCache::class_of(size_bytes);
  if (!front_.wide()) uncharge(spot, size_bytes);
  if (size_class != FrontCache::kNrClasses && cache(size_class, spot)) return;
  if (front_.wide()) uncharge(spot, size_bytes);
  put_back(&spot, 1);
}

// Puts an area into this CPU's front cache. A stack that is full gives half of it back to the maps first, at the price of one
// lock for all.
bool Pool::cache(uint32_t size_class, Spot spot) {
  // Who cannot push need not wake the thread that would look after it.
  if (!front_.is_open() || in_reserved_part(spot) || !front_.attach_thread() || !front_caches_may_hold()) return false;
  const uintptr_t handle = memory_.handle(spot.chunk, spot.offset);
  bool pushed = front_.push(FrontCache::kFreed, size_class, handle);
  if (!pushed && flush_freed(size_class, front_.limit_of(size_class) / 2) != 0) {
    pushed = front_.push(FrontCache::kFreed, size_class, handle);
  }
  if (pushed && !front_caches_may_hold()) flush_freed_here();
  return pushed;
}

// Front caches hold areas only while there is a thread that empties them in time, and it hears that there are some. Asked
// before an area is pushed, and after it: they may have been emptied in between.
bool Pool::front_caches_may_hold() {
  if (cached()) return true;
  if (!environment_.balancer->serves()) {
    request(kThread);
    return false;
  }
  state_.fetch_and(~uint32_t{kNoneCached}, std::memory_order_seq_cst);
  // Where it could not be started meanwhile, and found none cached: the next try to start it will find them.
  if (!environment_.balancer->serves()) request(kThread);
  environment_.balancer->wake();
  return true;
}

// Gives freed areas of this CPU back to the maps. Returns: how many; 0 also where stacks are stopped, or the thread has no rseq.
uint32_t Pool::flush_freed(uint32_t size_class, uint32_t most) {
  uintptr_t areas[FrontCache::kLimit];
  Spot spots[FrontCache::kLimit];
  const uint32_t count = pop_freed(size_class, areas, most);
  for (uint32_t i = 0; i < count; i++) {
    spots[i] = memory_.spot_of(areas[i]);
    if (front_.wide()) uncharge(spots[i], FrontCache::size_of(size_class));
  }
  if (count != 0) put_back(spots, count);
  return count;
}

void Pool::flush_freed_here() {
  for (uint32_t c = 0; c < FrontCache::kNrClasses; c++) (void)flush_freed(c, FrontCache::kLimit);
}

void Pool::put_back(const Spot* spots, uint32_t count) {
  if (!try_lock_map_bounded()) {
    nr_deferred_.fetch_add(count, std::memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++) push(pending_, spots[i]);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // the push before the try in drain_pending(): see unlock_map()
    drain_pending();
    return;
  }
  for (uint32_t i = 0; i < count; i++) release(spots[i]);
  unlock_map();
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

// Takes all out of the front caches. Nobody is inside a sequence that began before the fence, and those that begin after
// it find their stacks stopped.
// Areas leave their stack and the maps take them back under one lock: to who reads the statistics they are never in between.
void Pool::drain_stopped() {
  FrontCache::Filled filled{};
  while (front_.find_filled(&filled)) {
    const bool charged = front_.wide() && filled.kind == FrontCache::kFreed;
    lock_map();
    const uint32_t count = percpu_stack_count(filled.stack);
    for (uint32_t i = 0; i < count; i++) {
      const Spot spot = memory_.spot_of(percpu_stack_slots(filled.stack)[i]);
      if (charged) uncharge(spot, FrontCache::size_of(filled.size_class));
      release(spot);
    }
    percpu_stack_set_count(filled.stack, 0);
    unlock_map();
  }
}

size_t Pool::area_size(const void* handle) const {
  Spot spot{};
  if (!memory_.locate_handle(reinterpret_cast<uintptr_t>(handle), &spot)) return 0;
  if (core_->classify(spot.chunk, spot.offset).kind != Finding::Kind::live_start) return 0;
  return core_->area_size(spot.chunk, spot.offset);
}

}  // namespace percpu
