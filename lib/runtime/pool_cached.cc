// SPDX-License-Identifier: MIT
//
// What a pool does with its front caches beyond the inline ways of pool_fast.h: areas go in and out, become ready, and go back to
// the maps. front_cache.h tells what they are.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "os/clock.h"
#include "runtime/pool.h"

namespace percpu {
namespace {

// The inline part of an allocation has just popped an area that is not aligned: take_any(), which comes next, is not to pop another
// one. A hint: a signal handler that allocates in between takes it, and this thread then does without it.
__thread bool popped_misaligned __attribute__((tls_model("initial-exec"))) = false;

// Front caches that nobody used for so long are emptied.
constexpr uint32_t kIdleMs = 200;
// So often what was freed in a wide pool is made ready.
constexpr uint32_t kWideMs = 10;
// In a wide pool so many copies of areas are made ready at a time, each some 60 ns where its line is another CPU's.
constexpr uint64_t kReadyCopies = 32768;
// The coarse clock may show so much less than has passed in kWideMs.
constexpr uint32_t kClockStepMs = 4;

}  // namespace

// ---- allocation ----------------------------------------------------------------------------------------------------

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
  if (!in_vain && take_cached(size_class, request, area, zeroed)) return 0;
  if (!request.atomic) (void)front_.attach_thread();
  const int result = take(request, area, zeroed);
  // Before it fails, what was left out is tried after all.
  return result != 0 && in_vain && take_cached(size_class, request, area, zeroed) ? 0 : result;
}

// An area from this CPU's front cache. What is popped and not aligned goes back to the maps.
bool Pool::take_cached(uint32_t size_class, const Request& request, Area* area, bool* zeroed) {
  uintptr_t handle = 0;
  if (!front_.pop(FrontCache::kReady, size_class, &handle)) {
    const bool found = front_.wide() ? make_batch_ready(size_class, request.atomic, &handle)
                                     : take_from_shelf(size_class, request.atomic, &handle);
    if (!found) return false;
    front_.correct_allocs(1);
  }
  if (handle % request.align_bytes != 0) [[unlikely]] {
    unpop(handle);
    return false;
  }
  const Spot spot = memory_.spot_of(handle);
  marks_.begin_life(spot.chunk, spot.offset);
  *area = {spot.chunk, spot.offset, request.size_bytes};
  *zeroed = front_.wide();
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

// Puts areas that are not live on this CPU's stack; what finds no room there goes back to the maps.
void Pool::push_batch(FrontCache::Kind kind, uint32_t size_class, const uintptr_t* areas, uint32_t count) {
  uint32_t pushed = 0;
  while (pushed < count && front_.push(kind, size_class, areas[pushed])) pushed++;
  Spot surplus[FrontCache::kLimit];
  for (uint32_t i = pushed; i < count; i++) surplus[i - pushed] = memory_.spot_of(areas[i]);
  if (pushed != count) put_back(surplus, count - pushed);
  if (pushed != 0 && !front_caches_may_hold()) flush_freed_here();
}

// Makes a batch of areas ready for this CPU; one of them is the caller's. What is freed here is taken first. Where that is
// little, the maps fill the batch up, since zeroing many costs little more than zeroing one: but only from populated pages,
// and only while somebody would empty the front caches in time. False where nothing is to be had.
bool Pool::make_batch_ready(uint32_t size_class, bool atomic, uintptr_t* area) {
  uintptr_t areas[FrontCache::kLimit];
  uint32_t count = pop_freed(size_class, areas, FrontCache::kLimit);
  const uint32_t most = std::min(front_.limit_of(size_class), FrontCache::kBatch);
  if (count < most && !atomic && percpu_thread_.offset != nullptr && cached() && !front_.stopped_here()) {
    count += take_spare(size_class, areas + count, most - count);
  }
  if (count == 0) return false;
  make_ready(size_class, areas, count);
  *area = areas[0];
  push_batch(FrontCache::kReady, size_class, areas + 1, count - 1);
  return true;
}

// Takes a batch off the shelf for this CPU; one of them is the caller's. False where nothing is to be had.
bool Pool::take_from_shelf(uint32_t size_class, bool atomic, uintptr_t* area) {
  if (shelves_.count(size_class) == 0 || percpu_thread_.offset == nullptr || front_.stopped()) return false;
  if (!atomic) {
    lock_map();
  } else if (!try_lock_map_bounded()) {
    return false;
  }
  uintptr_t areas[FrontCache::kBatch];
  const uint32_t count = shelves_.take(size_class, areas, FrontCache::kBatch);
  unlock_map();
  if (count == 0) return false;
  *area = areas[count - 1];
  push_batch(FrontCache::kFreed, size_class, areas, count - 1);
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

// ---- free ----------------------------------------------------------------------------------------------------------

// Puts an area into this CPU's front cache. A stack that is full gives half of it to the shelf first, or back to the maps, at the price
// of one lock for all.
bool Pool::cache(uint32_t size_class, Spot spot) {
  // A thread that cannot push must not wake the balance thread for nothing.
  if (!front_.is_open() || front_.limit_of(size_class) == 0 || in_reserved_part(spot)) return false;
  if (!front_.attach_thread() || !front_caches_may_hold()) return false;
  const uintptr_t handle = memory_.handle(spot.chunk, spot.offset);
  bool pushed = front_.push(FrontCache::kFreed, size_class, handle);
  bool flushed = false;
  if (!pushed && flush_freed(size_class, front_.limit_of(size_class) / 2, Shelving::kYes) != 0) {
    flushed = true;
    pushed = front_.push(FrontCache::kFreed, size_class, handle);
  }
  if ((pushed || flushed) && !front_caches_may_hold()) flush_freed_here();
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

// Takes freed areas off this CPU's stack: to the shelf, if that is wanted and has room, else back to the maps. Returns: how many; 0 also
// where stacks are stopped, or the thread has no rseq.
uint32_t Pool::flush_freed(uint32_t size_class, uint32_t most, Shelving shelving) {
  uintptr_t areas[FrontCache::kLimit];
  Spot spots[FrontCache::kLimit];
  const uint32_t count = pop_freed(size_class, areas, most);
  // What was popped last was pushed first: it lies deepest on the shelf, as it did on the stack.
  std::reverse(areas, areas + count);
  for (uint32_t i = 0; i < count; i++) {
    spots[i] = memory_.spot_of(areas[i]);
    if (front_.wide()) uncharge(spots[i], FrontCache::size_of(size_class));
  }
  if (count == 0) return 0;
  if (!try_lock_map_bounded()) {
    defer(spots, count);
    return count;
  }
  const uint32_t shelved = shelving == Shelving::kYes ? shelves_.put(size_class, areas, count) : 0;
  for (uint32_t i = shelved; i < count; i++) release(spots[i]);
  unlock_map();
  return count;
}

// All that a thread may take without waiting for others: where nobody would look after it.
void Pool::flush_freed_here() {
  uintptr_t areas[FrontCache::kLimit];
  for (uint32_t c = 0; c < FrontCache::kNrClasses; c++) {
    (void)flush_freed(c, FrontCache::kLimit, Shelving::kNo);
    while (shelves_.count(c) != 0 && try_lock_map_bounded()) {
      release_areas(areas, shelves_.take(c, areas, FrontCache::kLimit));
      unlock_map();
    }
  }
}

// ---- giving back, making ready -------------------------------------------------------------------------------------

void Pool::drain_front_caches() {
  if (!front_.is_open()) return;
  SleepMutexGuard guard(grow_lock_);
  drain_fenced();
}

// Without a fence nothing can be taken from other CPUs' stacks: what lies there stays.
void Pool::drain_fenced() {
  if (!front_.is_open()) return;
  front_.stop();
  if (environment_.fence->all(*environment_.system, environment_.topology->possible) == 0) {
    drain_stopped();
    state_.fetch_or(kNoneCached, std::memory_order_seq_cst);
  }
  empty_shelves();  // behind it: who shelves something meanwhile sees that the balancer has to be told
  // Whatever is found there next time is new, even if it is as much as there was.
  front_activity_ = UINT64_MAX;
  front_.start();
}

// Areas that came off a shelf go back to the maps. Returns how many.
uint32_t Pool::release_areas(const uintptr_t* areas, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) release(memory_.spot_of(areas[i]));
  return count;
}

// Gives all that is shelved back to the maps, the lock being held for a batch at a time. It is taken for each shelf, not only where
// something seems to lie there: who puts an area there later has seen, by the lock, what was done before this (kNoneCached). And the
// memory of the handles to the system.
void Pool::empty_shelves() {
  if (!shelves_.is_open()) return;
  uintptr_t areas[FrontCache::kLimit];
  for (uint32_t c = 0; c < FrontCache::kNrClasses; c++) {
    for (uint32_t count = FrontCache::kLimit; count == FrontCache::kLimit;) {
      lock_map();
      count = release_areas(areas, shelves_.take(c, areas, FrontCache::kLimit));
      unlock_map();
    }
  }
  lock_map();
  const bool shut = shelves_.shut();
  unlock_map();
  if (!shut) return;
  shelves_.depopulate(*environment_.system);
  lock_map();
  shelves_.reopen();
  unlock_map();
}

// The same with what nobody needed since the last time. Returns how many areas that were.
uint64_t Pool::tidy_shelves(uint64_t now_ms) {
  if (now_ms - shelves_tidied_ms_ < kIdleMs) return 0;
  shelves_tidied_ms_ = now_ms;
  uint64_t sum = 0;
  uintptr_t areas[FrontCache::kLimit];
  for (uint32_t c = 0; c < FrontCache::kNrClasses; c++) {
    for (uint32_t count = FrontCache::kLimit; count == FrontCache::kLimit;) {
      lock_map();
      count = release_areas(areas, shelves_.take_idle(c, areas, FrontCache::kLimit));
      if (count != FrontCache::kLimit) shelves_.begin_account(c);
      unlock_map();
      sum += count;
    }
  }
  return sum;
}

// Takes all out of the front caches that are stopped. Nobody is inside a sequence that began before the fence, and those that begin
// after it find their stacks stopped.
// Areas leave their stack and the maps take them back under one lock, so a reader of the statistics never finds them in neither place.
// Returns: how many.
uint64_t Pool::drain_stopped() {
  uint64_t sum = 0;
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
    front_.set_empty(filled);
    unlock_map();
    sum += count;
  }
  return sum;
}

// The same for the CPUs alone that do nothing with what they hold, while others allocate and free: our threads do not run there any
// more, or it is offline. Returns: how many areas that were.
uint64_t Pool::drain_idle_cpus(uint64_t now_ms) {
  if (now_ms - front_cpus_ms_ < kIdleMs) return 0;
  front_cpus_ms_ = now_ms;
  if (front_.stop_idle(now_ms, kIdleMs) == 0) return 0;
  const bool fenced = environment_.fence->all(*environment_.system, environment_.topology->possible) == 0;
  const uint64_t sum = fenced ? drain_stopped() : 0;
  front_.start();
  return sum;
}

uint32_t Pool::look_after_front_caches() {
  if (!cached()) return 0;
  SleepMutexGuard guard(grow_lock_);
  return look_by_clock(coarse_ms());  // now: who had the lock may have had it for long
}

uint32_t Pool::look_after_front_caches(uint64_t now_ms) {
  if (!cached()) return 0;
  SleepMutexGuard guard(grow_lock_);
  return look_by_clock(now_ms);
}

uint32_t Pool::look_by_clock(uint64_t now_ms) {
  const FrontCache::Sums sums = front_.sums();
  const uint64_t activity = sums.nr_allocs * 64 + sums.nr_cached + shelves_.nr_areas();
  if (activity != front_activity_) {
    front_activity_ = activity;
    front_active_ms_ = now_ms;
  }
  const uint64_t idle_ms = now_ms - front_active_ms_;
  if (idle_ms >= kIdleMs) {
    drain_fenced();
    return !cached() ? 0 : front_.wide() ? kWideMs : kIdleMs;
  }
  front_activity_ -= drain_idle_cpus(now_ms);  // that was us
  if (!front_.wide()) {
    front_activity_ -= tidy_shelves(now_ms);
    return static_cast<uint32_t>(kIdleMs - idle_ms);
  }
  const uint64_t ready_ms = now_ms - front_ready_ms_;
  if (ready_ms + kClockStepMs < kWideMs) return static_cast<uint32_t>(kWideMs - ready_ms);
  front_ready_ms_ = now_ms;
  if (sums.nr_freed != 0 && front_.stop_some(&front_cpu_, kReadyCopies) != 0) {
    if (environment_.fence->all(*environment_.system, environment_.topology->possible) == 0) make_ready_stopped();
    front_.start();
  }
  return kWideMs;
}

// Makes freed areas ready, on all CPUs that are stopped, as far as there is room for them. Meanwhile these CPUs allocate from the maps; with
// many CPUs it is some of them at a time, so that it takes some milliseconds at most. An area is on one of the two stacks for
// read_counts(), which reads under the map lock.
void Pool::make_ready_stopped() {
  for (uint32_t cpu = 0; cpu < front_.nr_cpus(); cpu++) {
    if (!front_.is_stopped(cpu)) continue;
    uint32_t counts[FrontCache::kNrClasses];
    uint32_t sum = 0;
    for (uint32_t c = 0; c < FrontCache::kNrClasses; c++) {
      percpu_stack* freed = front_.stack_of(cpu, FrontCache::kFreed, c);
      percpu_stack* ready = front_.stack_of(cpu, FrontCache::kReady, c);
      uintptr_t areas[FrontCache::kLimit];
      const uint32_t nr_freed = percpu_stack_count(freed);
      const uint32_t nr_ready = percpu_stack_count(ready);
      const uint32_t count = std::min(nr_freed, front_.limit_of(c) - nr_ready);
      for (uint32_t i = 0; i < count; i++) areas[i] = percpu_stack_slots(freed)[nr_freed - 1 - i];
      make_ready(c, areas, count);
      for (uint32_t i = 0; i < count; i++) percpu_stack_slots(ready)[nr_ready + i] = areas[count - 1 - i];
      counts[c] = count;
      sum += count;
    }
    if (sum == 0) continue;
    lock_map();
    for (uint32_t c = 0; c < FrontCache::kNrClasses; c++) {
      percpu_stack* freed = front_.stack_of(cpu, FrontCache::kFreed, c);
      percpu_stack* ready = front_.stack_of(cpu, FrontCache::kReady, c);
      percpu_stack_set_count(freed, percpu_stack_count(freed) - counts[c]);
      percpu_stack_set_count(ready, percpu_stack_count(ready) + counts[c]);
    }
    unlock_map();
  }
}

}  // namespace percpu
