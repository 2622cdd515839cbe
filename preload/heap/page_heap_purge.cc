// SPDX-License-Identifier: MIT
//
// The page heap, giving back: which dirty runs go to the system, how many at a tick, and which are closed.
#include <errno.h>

#include <algorithm>

#include "preload/heap/decay.h"
#include "preload/heap/mappings.h"
#include "preload/heap/page_heap.h"

namespace percpu::heap {

// The dirty run that has lain in its bin for longest, of those that the walk has not seen; 0, and it has ended, where there is none.
uint32_t PageHeap::next_to_look_at(PurgeWalk* walk) {
  const Bins& dirty = bins_[static_cast<size_t>(Pages::kDirty)];
  for (;;) {
    while (walk->nr_unseen == 0) {
      walk->ended = walk->bin == 0;
      if (walk->ended) return 0;
      walk->nr_unseen = dirty.nr_runs[--walk->bin];
    }
    walk->nr_unseen--;
    if (dirty.tail[walk->bin] != 0) return dirty.tail[walk->bin];
    walk->nr_unseen = 0;  // others took them meanwhile
  }
}

// Takes a dirty run that may go back off its list, the longest of those that the walk has not seen, or its last most_pages; without
// break_huge, only what leaves no huge region with some of its pages. 0: there is none, or the walk is to go on, with the lock had anew.
uint32_t PageHeap::take_to_purge(PurgeWalk* walk, uint64_t most_pages, bool fresh_too, bool break_huge) {
  Bins& dirty = bins_[static_cast<size_t>(Pages::kDirty)];
  for (int looks = 0; looks < kPurgeLooks; looks++) {
    const uint32_t number = next_to_look_at(walk);
    if (number == 0) return 0;
    purge_looks_++;
    const Span& span = window_->span(number);
    uint64_t start = span.first_page;
    uint64_t end = start + span.nr_pages;
    if (!break_huge && window_->is_huge(start / kRegionPages)) start = round_up(start, kRegionPages);
    if (!break_huge && window_->is_huge((end - 1) / kRegionPages)) end = round_down(end, kRegionPages);
    start = up_to_system(start);
    end = down_to_system(end);
    const bool fresh = !fresh_too && span.freed_tick == tick_;
    walk->spared = walk->spared || (!fresh && end - start != span.nr_pages);
    if (start >= end || fresh) {
      take_off(dirty, walk->bin, number);
      push_front(dirty, walk->bin, number);
      continue;
    }
    if (end - start > most_pages) {
      const uint64_t last = end - most_pages;
      const uint64_t whole = window_->is_huge(last / kRegionPages) ? round_down(last, kRegionPages) : down_to_system(last);
      if (whole > start) start = whole;
    }
    unlink(number);
    const uint32_t part = cut_front(number, start);
    if (part == 0 || !cut(part, end - start)) {
      join_and_insert(part == 0 ? number : part);
      walk->ended = true;
      return 0;
    }
    (void)set_huge(start, end - start, false);
    note_least();
    return part;
  }
  return 0;
}

void PageHeap::begin_closing() {
  HeapGuard guard(lock_);
  store_relaxed(&closes_, true);
}

// Beside a closed run it makes no mapping more.
bool PageHeap::to_be_closed(const Span& span) {
  if (!closes_) return false;
  for (const uint32_t neighbour : {free_before(span), free_behind(span)}) {
    if (neighbour != 0 && window_->span(neighbour).pages == Pages::kClosed) return true;
  }
  return span.nr_pages >= kClosedFromPages && may_make_mappings();
}

bool PageHeap::give_back(uint32_t number, bool empty) {
  Span& span = window_->span(number);
  const PageRange own = window_->range(span.first_page, span.nr_pages);
  const uint64_t own_pages = span.nr_pages;
  bool close = false;
  {
    HeapGuard guard(lock_);
    if (closes_) {
      span.pages = Pages::kClean;
      join(number);
      close = to_be_closed(span);
    }
  }
  // In nobody's list now: no other thread looks at it, nor at what was joined to it.
  const System& system = window_->system();
  int result = kOnlyDepopulated;
  if (close) result = window_->close(span.first_page, span.nr_pages, node_);
  if (!close && !empty) result = depopulate(system, own) == 0 ? kOnlyDepopulated : -EINVAL;
  HeapGuard guard(lock_);
  if (close && result == -ENOMEM) return false;  // the addresses are the kernel's, and never to be used again
  const bool given = result >= 0;
  span.pages = !given ? Pages::kDirty : close && result != kOnlyDepopulated ? Pages::kClosed : Pages::kClean;
  join_and_insert(number);
  if (given) purged_pages_ += own_pages;
  return given;
}

// At least nr_pages, if there are so many; but for huge pages, not more than most_pages. Returns how many.
uint64_t PageHeap::purge(uint64_t nr_pages, uint64_t most_pages, bool fresh_too) {
  uint64_t purged = 0;
  if (load_relaxed(&closes_)) look_at_mappings(window_->system(), true);
  bool spared = true;
  for (const bool break_huge : {false, true}) {
    if (!spared) break;
    PurgeWalk walk;
    while (purged < nr_pages && !walk.ended) {
      uint32_t number = 0;
      uint64_t pages = 0;
      {
        HeapGuard guard(lock_);
        number = take_to_purge(&walk, most_pages - purged, fresh_too, break_huge);
        if (number != 0) pages = window_->span(number).nr_pages;
      }
      if (number == 0) continue;
      if (!give_back(number, false)) return purged;
      purged += pages;
    }
    spared = walk.spared;
  }
  return purged;
}

uint64_t PageHeap::take_due(uint64_t idle, uint64_t kept) {
  if (kept == kWhole) return 0;
  // The last few go together: half of little is little for ever.
  if (idle < kFewPages) return idle;
  owed_ += idle * (kWhole - kept);
  uint64_t due = owed_ / kWhole;
  owed_ %= kWhole;
  const uint64_t gone = due < ahead_pages_ ? due : ahead_pages_;
  ahead_pages_ -= gone;
  return due - gone;
}

bool PageHeap::decay(uint64_t kept) {
  uint64_t due = 0;
  {
    HeapGuard guard(lock_);
    const uint64_t idle = least_purgeable_;
    least_purgeable_ = purgeable_pages();
    tick_++;
    const uint64_t needed = needed_pages();
    due = take_due(idle - std::min(idle, needed), kept);
    if (due == 0) return purgeable_pages() > needed;
  }
  const uint64_t purged = purge(due, 2 * due, false);
  HeapGuard guard(lock_);
  if (purged > 2 * due) ahead_pages_ += purged - 2 * due;
  return purgeable_pages() > needed_pages();
}

void PageHeap::purge_excess() {
  uint64_t excess = 0;
  {
    HeapGuard guard(lock_);
    excess = purgeable_pages() - std::min(purgeable_pages(), keep_pages_);
    store_relaxed(&keep_pages_, UINT64_MAX);
    excess_tick_ = tick_;
  }
  if (excess != 0) (void)purge(excess, excess, false);
}

uint64_t PageHeap::purge_to(uint64_t keep_pages) {
  const uint64_t purgeable = purgeable_pages();
  return purgeable > keep_pages ? purge(purgeable - keep_pages, UINT64_MAX, true) : 0;
}

}  // namespace percpu::heap
