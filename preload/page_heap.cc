// SPDX-License-Identifier: MIT
#include "preload/page_heap.h"

#include <bit>

#include "base/check.h"

namespace percpu::heap {

void PageHeap::init(Window& window, uint32_t node) {
  window_ = &window;
  begin_ = window.node_pages() * node;
  end_ = begin_ + window.node_pages();
  frontier_ = begin_;
}

void PageHeap::bind_to(NodeId node) {
  HeapGuard guard(lock_);
  node_ = node;
  // What was opened, and perhaps used, before the machine was known lies on the node of whoever touched it.
  if (frontier_ > begin_) (void)bind_and_move(window_->system(), window_->range(begin_, frontier_ - begin_), node);
}

// ---- bins ------------------------------------------------------------------------------------------------------------

// Runs of up to kExactBins pages have a bin each; longer ones share eight bins a doubling.
uint32_t PageHeap::bin_of(uint64_t nr_pages) {
  if (nr_pages <= kExactBins) return static_cast<uint32_t>(nr_pages - 1);
  const uint32_t log = static_cast<uint32_t>(std::bit_width(nr_pages)) - 1;
  const uint32_t bin = kExactBins + 8 * (log - 7) + (static_cast<uint32_t>(nr_pages >> (log - 3)) & 7);
  return bin < kNrBins ? bin : kNrBins - 1;
}

void PageHeap::count(const Span& span, bool add) {
  uint64_t& pages = span.clean ? clean_pages_ : dirty_pages_;
  store_relaxed(&pages, add ? pages + span.nr_pages : pages - span.nr_pages);
  if (dirty_pages_ < least_dirty_) least_dirty_ = dirty_pages_;
}

void PageHeap::insert(uint32_t number) {
  Span& span = window_->span(number);
  Bins& bins = bins_of(span);
  const uint32_t bin = bin_of(span.nr_pages);
  span.state = SpanState::kFree;
  span.prev = 0;
  span.next = bins.head[bin];
  if (span.next != 0) window_->span(span.next).prev = number;
  bins.head[bin] = number;
  bins.nonempty[bin / 64] |= uint64_t{1} << bin % 64;
  window_->set_entry(span.first_page, number, kKindFree);
  window_->set_entry(span.first_page + span.nr_pages - 1, number, kKindFree);
  count(span, true);
}

void PageHeap::unlink(uint32_t number) {
  Span& span = window_->span(number);
  Bins& bins = bins_of(span);
  const uint32_t bin = bin_of(span.nr_pages);
  if (span.prev != 0) {
    window_->span(span.prev).next = span.next;
  } else {
    bins.head[bin] = span.next;
    if (span.next == 0) bins.nonempty[bin / 64] &= ~(uint64_t{1} << bin % 64);
  }
  if (span.next != 0) window_->span(span.next).prev = span.prev;
  span.state = SpanState::kInHand;
  window_->set_entry(span.first_page, 0, kKindNone);
  window_->set_entry(span.first_page + span.nr_pages - 1, 0, kKindNone);
  count(span, false);
}

bool PageHeap::fits(const Span& span, uint64_t nr_pages, uint64_t align_pages) const {
  const uint64_t start = round_up(span.first_page + (window_->base() >> kPageShift), align_pages) -
                         (window_->base() >> kPageShift);
  return start + nr_pages <= span.first_page + span.nr_pages;
}

uint32_t PageHeap::find(const Bins& bins, uint64_t nr_pages, uint64_t align_pages) {
  const uint32_t first = bin_of(nr_pages);
  for (uint32_t word = first / 64; word < sizeof bins.nonempty / sizeof bins.nonempty[0]; ++word) {
    uint64_t bits = bins.nonempty[word];
    if (word == first / 64) bits &= ~uint64_t{0} << first % 64;
    for (; bits != 0; bits &= bits - 1) {
      uint32_t number = bins.head[word * 64 + static_cast<uint32_t>(std::countr_zero(bits))];
      for (int looks = 0; number != 0 && looks < kMaxLooks; ++looks) {
        if (fits(window_->span(number), nr_pages, align_pages)) return number;
        number = window_->span(number).next;
      }
    }
  }
  return 0;
}

// Joins the free neighbours of the same kind to the run, and puts it on its list. Requires: in no list.
void PageHeap::join_and_insert(uint32_t number) {
  Span& span = window_->span(number);
  if (span.first_page > begin_) {
    const uint32_t before = window_->span_of(span.first_page - 1);
    if (window_->entry(span.first_page - 1).kind() == kKindFree && window_->span(before).clean == span.clean) {
      unlink(before);
      span.first_page = window_->span(before).first_page;
      span.nr_pages += window_->span(before).nr_pages;
      window_->give_span(before);
    }
  }
  if (const uint64_t next_page = span.first_page + span.nr_pages; next_page < frontier_) {
    const uint32_t behind = window_->span_of(next_page);
    if (window_->entry(next_page).kind() == kKindFree && window_->span(behind).clean == span.clean) {
      unlink(behind);
      span.nr_pages += window_->span(behind).nr_pages;
      window_->give_span(behind);
    }
  }
  insert(number);
}

bool PageHeap::cut(uint32_t number, uint64_t nr_pages) {
  Span& span = window_->span(number);
  if (span.nr_pages == nr_pages) return true;
  const uint32_t rest = window_->take_span();
  if (rest == 0) return false;
  Span& other = window_->span(rest);
  other.first_page = span.first_page + nr_pages;
  other.nr_pages = span.nr_pages - nr_pages;
  other.clean = span.clean;
  other.freed_tick = span.freed_tick;
  span.nr_pages = nr_pages;
  join_and_insert(rest);
  return true;
}

// Opens at least nr_pages more. Opens ahead by an eighth of what is open, so that a growing heap makes few system calls.
bool PageHeap::grow(uint64_t nr_pages) {
  const uint64_t left = end_ - frontier_;
  if (nr_pages > left) return false;
  uint64_t step = round_up(nr_pages, kStepPages);
  const uint64_t ahead = round_up((frontier_ - begin_) / 8, kStepPages);
  if (step < ahead) step = ahead < 32 * kStepPages ? ahead : 32 * kStepPages;
  if (step > left) step = left;
  const uint32_t number = window_->take_span();
  if (number == 0) return false;
  if (window_->open_pages(frontier_, step) != 0) {
    step = nr_pages;
    if (window_->open_pages(frontier_, step) != 0) {
      window_->give_span(number);
      return false;
    }
  }
  (void)bind(window_->system(), window_->range(frontier_, step), node_);
  Span& span = window_->span(number);
  span.first_page = frontier_;
  span.nr_pages = step;
  span.clean = true;
  frontier_ += step;
  join_and_insert(number);
  return true;
}

// ---- allocation ------------------------------------------------------------------------------------------------------

uint32_t PageHeap::allocate(uint64_t nr_pages, uint64_t align_pages) {
  HeapGuard guard(lock_);
  uint32_t number = find(dirty_, nr_pages, align_pages);
  if (number == 0) number = find(clean_, nr_pages, align_pages);
  if (number == 0) {
    if (nr_pages + align_pages - 1 < nr_pages || !grow(nr_pages + align_pages - 1)) return 0;
    number = find(clean_, nr_pages, align_pages);
    if (number == 0) return 0;
  }
  unlink(number);
  const uint64_t base_page = window_->base() >> kPageShift;
  const uint64_t start = round_up(window_->span(number).first_page + base_page, align_pages) - base_page;
  if (const uint64_t lead = start - window_->span(number).first_page; lead != 0) {
    // The part before the aligned start is a run of its own.
    const uint32_t head = number;
    number = window_->take_span();
    if (number == 0) {
      insert(head);
      return 0;
    }
    Span& first = window_->span(head);
    Span& span = window_->span(number);
    span.first_page = start;
    span.nr_pages = first.nr_pages - lead;
    span.clean = first.clean;
    span.freed_tick = first.freed_tick;
    span.state = SpanState::kInHand;
    first.nr_pages = lead;
    insert(head);
  }
  if (!cut(number, nr_pages)) {
    join_and_insert(number);
    return 0;
  }
  return number;
}

void PageHeap::release(uint32_t number) {
  HeapGuard guard(lock_);
  Span& span = window_->span(number);
  window_->clear_entries(span.first_page, span.nr_pages);
  span.clean = false;
  span.freed_tick = tick_;
  join_and_insert(number);
}

bool PageHeap::resize(uint32_t number, uint64_t nr_pages) {
  HeapGuard guard(lock_);
  Span& span = window_->span(number);
  if (nr_pages <= span.nr_pages) {
    const bool was_clean = span.clean;
    span.clean = false;
    span.freed_tick = tick_;
    const bool done = cut(number, nr_pages);
    span.clean = was_clean;
    return done;
  }
  const uint64_t wanted = nr_pages - span.nr_pages;
  const uint64_t next_page = span.first_page + span.nr_pages;
  if (next_page >= frontier_) return false;
  if (window_->entry(next_page).kind() != kKindFree) return false;
  const uint32_t behind = window_->span_of(next_page);
  if (window_->span(behind).nr_pages < wanted) return false;
  unlink(behind);
  if (!cut(behind, wanted)) {
    insert(behind);
    return false;
  }
  span.nr_pages = nr_pages;
  window_->give_span(behind);
  return true;
}

// ---- giving back -----------------------------------------------------------------------------------------------------

uint64_t PageHeap::purge(uint64_t nr_pages, bool fresh_too) {
  uint64_t purged = 0;
  while (purged < nr_pages) {
    uint32_t number = 0;
    {
      HeapGuard guard(lock_);
      for (uint32_t bin = kNrBins; bin-- > 0 && number == 0;) {
        if ((dirty_.nonempty[bin / 64] >> bin % 64 & 1) == 0) continue;
        for (uint32_t at = dirty_.head[bin]; at != 0 && number == 0; at = window_->span(at).next) {
          if (fresh_too || window_->span(at).freed_tick != tick_) number = at;
        }
      }
      if (number == 0) return purged;
      unlink(number);
    }
    // In nobody's list now: no other thread looks at it.
    Span& span = window_->span(number);
    const bool given = depopulate(window_->system(), window_->range(span.first_page, span.nr_pages)) == 0;
    HeapGuard guard(lock_);
    const uint64_t pages = span.nr_pages;
    span.clean = given;
    join_and_insert(number);
    if (!given) return purged;
    purged += pages;
    purged_pages_ += pages;
  }
  return purged;
}

void PageHeap::decay(uint32_t keep) {
  uint64_t idle = 0;
  {
    HeapGuard guard(lock_);
    idle = least_dirty_;
    least_dirty_ = dirty_pages_;
    tick_++;
  }
  // The last few go together: half of little is little for ever.
  const uint64_t due = idle < 64 ? idle : idle - idle * keep / 256;
  if (due > 0) (void)purge(due, false);
}

uint64_t PageHeap::purge_all() { return purge(~uint64_t{0}, true); }

uint64_t PageHeap::begin_anew() {
  HeapGuard guard(lock_);
  dirty_ = {};
  clean_ = {};
  dirty_pages_ = clean_pages_ = least_dirty_ = 0;
  // Neighbours are not joined across this line: the last page before it is nobody's.
  if (frontier_ > begin_) window_->set_entry(frontier_ - 1, 0, kKindNone);
  return frontier_;
}

PageStats PageHeap::stats() {
  HeapGuard guard(lock_);
  return {frontier_ - begin_, dirty_pages_, clean_pages_, purged_pages_};
}

}  // namespace percpu::heap
