// SPDX-License-Identifier: MIT
//
// What the heap keeps in reserve, near the memory limit of the process's control groups. The rule is in three numbers, all
// from the room that is left under the limit:
//
//   a sixteenth of it       may be free pages that the system still backs: what is more goes back as soon as it is freed
//   a sixteenth of it       all CPUs' caches together may hold
//   a quarter of it         may be taken before the room is looked at again
//
// When less than an eighth of the limit is left, it is *near*, until there is a quarter again: then whatever is free goes
// back at every look, the shelves hold little, and nothing becomes huge. A heap that never had 4 MiB never looks.
//
// Nobody tells a process that its room shrinks for other reasons (its own mappings, its neighbours in the group): this is
// seen at the next tick, or at the next quarter. Nor can a process look that has no file descriptor left: then it reckons, and
// where it never could look, the limit counts as near.
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/errno_kept.h"
#include "base/raw_syscall.h"
#include "os/clock.h"
#include "preload/heap/heap.h"

namespace percpu::heap {
namespace {

constexpr uint64_t kFindMs = 5000;         // how long what was found is believed
constexpr uint64_t kLookStepPages = 16384;  // without a limit
constexpr uint64_t kLeastStepPages = 64;
constexpr uint64_t kQuietDirtyPages = (uint64_t{256} << 20) >> kPageShift;  // of a program without threads
constexpr size_t kLeastBudgetNearLimit = 32 * 1024;  // of a CPU's caches

// Then every writable mapping counts, whether it is used or not.
bool data_is_limited() {
  rlimit limit{};
  return raw_syscall(SYS_prlimit64, 0, RLIMIT_DATA, 0, reinterpret_cast<long>(&limit)) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

}  // namespace

uint64_t Heap::backed_pages() const {
  uint64_t sum = 0;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) sum += pages_[node].backed_pages();
  return sum;
}

// Of those, what was not given back since.
uint64_t Heap::held_pages() {
  uint64_t purged = 0;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) purged += pages_[node].stats().purged_pages;
  const uint64_t backed = backed_pages();
  return backed > purged ? backed - purged : 0;
}

uint64_t Heap::purgeable_pages() const {
  uint64_t sum = 0;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) sum += pages_[node].purgeable_pages();
  return sum;
}

bool Heap::keeps_too_much() const {
  if (decay_ms_ == kDecayOff) return false;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    if (pages_[node].keeps_too_much()) return true;
  }
  return false;
}

void Heap::choose_huge_use() {
  const System& system = window_.system();
  if (config_.thp == HeapThp::kOff || system_pages() != 1 || raw_syscall(SYS_prctl, PR_GET_THP_DISABLE) == 1) return;
  const HugePages given = huge_pages(system);
  if (given == HugePages::kNever) return;
  huge_use_ = given == HugePages::kAlways || config_.thp == HeapThp::kOn ? HugeUse::kAll : HugeUse::kDense;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) pages_[node].set_huge_use(huge_use_);
}

// Where pages count that are writable, used or not.
void Heap::ask_for_books() {
  if (config_.limit != HeapLimit::kAuto || !(strict_overcommit(window_.system()) || data_is_limited())) return;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) pages_[node].begin_closing();
}

void Heap::look_now() {
  if (this_thread_forks() || !decay_lock_.try_lock()) return;  // whoever has it looks, or gives everything back
  look_at_limit();
  decay_lock_.unlock();
}

void Heap::look_at_limit() {
  const ErrnoKept errno_kept;
  const uint64_t now = coarse_ms();
  const bool first = limit_found_ms_ == 0;
  if (first) {
    choose_huge_use();
    ask_for_books();
  }
  const bool due = first || now - limit_found_ms_ >= kFindMs;
  if (due && (config_.limit != HeapLimit::kAuto || limit_.find(window_.system()))) limit_found_ms_ = now | 1;
  keep_within(read_room());
}

// What is left now. Without a file descriptor to look by: what was left when it could be seen, less what the heap took since;
// where it never could, nothing.
MemoryLimit::Room Heap::read_room() {
  MemoryLimit::Room room;
  if (limit_found_ms_ != 0 && !limit_.any()) return room;
  const uint64_t held = held_pages();
  if (limit_found_ms_ != 0 && limit_.look(window_.system(), &room)) {
    room_seen_ = true;
    seen_room_ = room;
    seen_held_pages_ = held;
    return room;
  }
  if (!room_seen_) return {kFirstLookPages << kPageShift, 0};
  if (seen_room_.limit_bytes == kNoLimit) return room;
  const uint64_t taken = held > seen_held_pages_ ? (held - seen_held_pages_) << kPageShift : 0;
  return {seen_room_.limit_bytes, seen_room_.left_bytes > taken ? seen_room_.left_bytes - taken : 0};
}

void Heap::keep_within(MemoryLimit::Room room) {
  store_relaxed(&room_.limit_bytes, room.limit_bytes);
  store_relaxed(&room_.left_bytes, room.left_bytes);
  const bool was_near = near_limit_;
  const bool limited = room.limit_bytes != kNoLimit;
  near_limit_ = limited && room.left_bytes < room.limit_bytes / (was_near ? 4 : 8);
  const uint64_t left_pages = room.left_bytes >> kPageShift;
  const uint64_t step = !limited ? kLookStepPages : left_pages / 4 < kLeastStepPages ? kLeastStepPages : left_pages / 4;
  store_relaxed(&look_at_pages_, backed_pages() + step);
  bound_dirty();
  if (cache_.nr_sharing() != 0) {
    const uint64_t budget = limited ? room.left_bytes / 16 / cache_.nr_sharing() : kNoLimit;
    cache_.set_budget(budget < kLeastBudgetNearLimit ? kLeastBudgetNearLimit : budget);
  }
  if (near_limit_ != was_near) {
    for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
      pages_[node].set_huge_use(near_limit_ ? HugeUse::kNone : huge_use_);
      for (CentralList& list : lists_[node]) list.keep_little(near_limit_);
    }
  }
  if (near_limit_) (void)give_all();
}

// How many pages may be dirty, by the room as last seen and by what is used now.
void Heap::bound_dirty() {
  uint64_t most = room_.limit_bytes != kNoLimit ? (room_.left_bytes >> kPageShift) / 16 : UINT64_MAX;
  // Where no balance thread ticks, a program that freed much and then only sleeps would keep all of it.
  if (!load_relaxed(&thread_ticks_) && decay_ms_ != kDecayOff) {
    const uint64_t held = held_pages();
    const uint64_t purgeable = purgeable_pages();
    const uint64_t used = held > purgeable ? held - purgeable : 0;
    most = std::min(most, std::max(kQuietDirtyPages, used / 4));
  }
  store_relaxed(&most_purgeable_pages_, most);
}

void Heap::give_excess() {
  if (this_thread_forks() || !decay_lock_.try_lock()) return;
  purge_excess();
  decay_lock_.unlock();
}

// Where more pages are dirty than may be: down to half of that. What was freed since the bound was found is used no more.
void Heap::purge_excess() {
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    if (pages_[node].keeps_too_much()) pages_[node].purge_excess();
  }
  if (purgeable_pages() <= load_relaxed(&most_purgeable_pages_)) return;
  bound_dirty();
  const uint64_t most = load_relaxed(&most_purgeable_pages_);
  if (purgeable_pages() <= most) return;
  const uint64_t keep = most / 2 / window_.nr_nodes();
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) (void)pages_[node].purge_to(keep);
}

}  // namespace percpu::heap
