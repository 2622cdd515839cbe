// SPDX-License-Identifier: MIT
//
// The heap, what goes back and when: the tick by which everything ages, who makes it, and who wakes whom. preload/README.md, "Who may
// hold how much", has the rules.
#include "os/clock.h"
#include "preload/heap/decay.h"
#include "preload/heap/heap.h"

namespace percpu::heap {

namespace {

constexpr uint64_t kTickMs = 200;

}  // namespace

// One tick of everything that ages. The balance thread calls it; without one, whoever frees at the right time.
bool Heap::tick() {
  if (this_thread_forks()) return true;  // all CPUs are closed: age() would open them
  if (!decay_lock_.try_lock()) return true;
  const uint64_t last_ms = load_relaxed(&last_tick_ms_);  // first: wake_ticker() changes it without the lock
  const uint64_t now_ms = coarse_ms();
  const uint64_t since_ms = now_ms - last_ms;
  // The balance thread comes by whenever it is woken, by anybody. What ages goes by the clock.
  if (since_ms < kTickMs / 2) {
    decay_lock_.unlock();
    return true;
  }
  store_relaxed(&last_tick_ms_, now_ms);
  // Before it looks: whoever leaves work behind the look, under a lock that it took, finds this set.
  store_relaxed(&rests_, true);
  const uint64_t kept = kept_share(since_ms, decay_ms_);
  bool again = cache_.age(false, sink_to_lists, this);
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    for (CentralList& list : lists_[node]) again = list.age(false) || again;
    const bool more = pages_[node].decay(kept);
    again = again || (more && decay_ms_ != kDecayOff);
  }
  if (backed_pages() >= kFirstLookPages) look_at_limit();
  purge_excess();
  store_relaxed(&nr_ticks_, nr_ticks_ + 1);
  again = again || near_limit_;
  if (again) store_relaxed(&rests_, false);
  decay_lock_.unlock();
  return again;
}

void Heap::wake_resting() {
  if (!load_relaxed(&thread_ticks_) || !__atomic_exchange_n(&rests_, false, __ATOMIC_RELAXED)) return;
  store_relaxed(&last_tick_ms_, coarse_ms());  // what there is now has not been there meanwhile
  // What is left under the memory limit may be another than it was: whoever comes by here looks.
  if (load_relaxed(&room_.limit_bytes) != kNoLimit) store_relaxed(&look_at_pages_, uint64_t{0});
  ring();
}

// Where the balance thread runs no more, as when the main thread has ended, whoever frees ticks from now on.
void Heap::ring() {
  if (percpu_balance_wake_() != 0) return;
  store_relaxed(&thread_ticks_, false);
  store_relaxed(&threads_begun_, false);  // nor did it when somebody else's attempt to start it came to nothing
  store_relaxed(&most_purgeable_pages_, uint64_t{0});  // to be found anew
}

void Heap::begin_threads() {
  if (load_relaxed(&threads_begun_)) return;
  store_relaxed(&threads_begun_, true);  // before: starting it makes a thread
  const bool ticks = percpu_balance_start_() != 0;
  store_relaxed(&thread_ticks_, ticks);
  if (!ticks) store_relaxed(&threads_begun_, false);  // the next thread's creation tries again
  wake_ticker();  // it may have ticked already, and others found that no thread ticks
}

void Heap::decay_if_due() {
  // Under the lock that a fork takes: a run that is just going back would be lost to the child.
  if (decay_ms_ == 0 && purgeable_pages() != 0 && !this_thread_forks() && decay_lock_.try_lock()) {
    for (uint32_t node = 0; node < window_.nr_nodes(); ++node) (void)pages_[node].purge_all();
    decay_lock_.unlock();
  }
  wake_ticker();
  // What a tick finds out decides what may stay.
  tick_if_due();
  heed_limit();
}

void Heap::tick_if_due() {
  const uint64_t last_ms = load_relaxed(&last_tick_ms_);
  const uint64_t since_ms = coarse_ms() - last_ms;
  if (since_ms < kTickMs) return;
  // Where the balance thread does not hear, or has no time, who frees ticks; if more is to come, it has to know.
  if (load_relaxed(&thread_ticks_)) ring();
  if (load_relaxed(&thread_ticks_) && since_ms <= 4 * kTickMs) return;
  if (tick() && load_relaxed(&thread_ticks_)) ring();
}

bool Heap::trim() {
  if (this_thread_forks()) return false;
  if (checker_.on()) empty_quarantine();
  HeapGuard guard(decay_lock_);
  return give_all() > 0;
}

// Requires: decay_lock_. Returns how many pages.
uint64_t Heap::give_all() {
  uint64_t given = 0;
  (void)cache_.age(true, sink_to_lists, this);
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    for (CentralList& list : lists_[node]) (void)list.age(true);
    given += pages_[node].purge_all();
  }
  return given;
}

}  // namespace percpu::heap
