// SPDX-License-Identifier: MIT
#include "preload/heap/page_heap.h"

#include <errno.h>

#include <bit>

#include "preload/heap/mappings.h"

namespace percpu::heap {

void PageHeap::init(Window& window, uint32_t node) {
  window_ = &window;
  begin_ = window.node_pages() * node;
  end_ = begin_ + window.node_pages();
  frontier_ = begin_;
  closes_ = window.by_pieces();
}

void PageHeap::bind_to(NodeId node) {
  HeapGuard guard(lock_);
  node_ = node;
  // What was opened, and perhaps used, before the machine was known lies on the node of whoever touched it.
  if (!window_->by_pieces()) {
    if (frontier_ > begin_) (void)bind_and_move(window_->system(), window_->range(begin_, frontier_ - begin_), node);
    return;
  }
  for (uint64_t page = begin_; page < frontier_;) {
    if (window_->entry(page).kind() == kKindNone) {
      page++;
      continue;
    }
    const Span& span = window_->span(window_->span_of(page));
    const bool is_there = span.state != SpanState::kFree || span.pages != Pages::kClosed;
    if (is_there) (void)bind_and_move(window_->system(), window_->range(span.first_page, span.nr_pages), node);
    page = span.first_page + span.nr_pages;
  }
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
  uint64_t& pages = pages_of(span);
  store_relaxed(&pages, add ? pages + span.nr_pages : pages - span.nr_pages);
  if constexpr (kSystemPagesVary) {
    const uint64_t whole = span.pages == Pages::kDirty ? whole_pages(span) : 0;
    store_relaxed(&purgeable_pages_, add ? purgeable_pages_ + whole : purgeable_pages_ - whole);
  }
}

void PageHeap::push_front(Bins& bins, uint32_t bin, uint32_t number) {
  Span& span = window_->span(number);
  span.prev = 0;
  span.next = bins.head[bin];
  (span.next != 0 ? window_->span(span.next).prev : bins.tail[bin]) = number;
  bins.head[bin] = number;
}

void PageHeap::take_off(Bins& bins, uint32_t bin, uint32_t number) {
  const Span& span = window_->span(number);
  (span.prev != 0 ? window_->span(span.prev).next : bins.head[bin]) = span.next;
  (span.next != 0 ? window_->span(span.next).prev : bins.tail[bin]) = span.prev;
}

void PageHeap::insert(uint32_t number) {
  Span& span = window_->span(number);
  Bins& bins = bins_of(span);
  const uint32_t bin = bin_of(span.nr_pages);
  span.state = SpanState::kFree;
  push_front(bins, bin, number);
  bins.nonempty[bin / 64] |= uint64_t{1} << bin % 64;
  bins.nr_runs[bin]++;
  window_->set_entry(span.first_page, number, kKindFree);
  window_->set_entry(span.first_page + span.nr_pages - 1, number, kKindFree);
  count(span, true);
}

void PageHeap::unlink(uint32_t number) {
  Span& span = window_->span(number);
  Bins& bins = bins_of(span);
  const uint32_t bin = bin_of(span.nr_pages);
  take_off(bins, bin, number);
  if (--bins.nr_runs[bin] == 0) bins.nonempty[bin / 64] &= ~(uint64_t{1} << bin % 64);
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

uint32_t PageHeap::find(Pages pages, uint64_t nr_pages, uint64_t align_pages) {
  if (kSystemPagesVary && pages == Pages::kDirty) {
    if (const uint32_t number = find_in(bins_[kStuck], nr_pages, align_pages); number != 0) return number;
  }
  return find_in(bins_[static_cast<size_t>(pages)], nr_pages, align_pages);
}

uint32_t PageHeap::find_in(const Bins& bins, uint64_t nr_pages, uint64_t align_pages) {
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

uint32_t PageHeap::free_before(const Span& span) {
  if (span.first_page == begin_ || window_->entry(span.first_page - 1).kind() != kKindFree) return 0;
  return window_->span_of(span.first_page - 1);
}

uint32_t PageHeap::free_behind(const Span& span) {
  const uint64_t next_page = span.first_page + span.nr_pages;
  if (next_page >= frontier_ || window_->entry(next_page).kind() != kKindFree) return 0;
  return window_->span_of(next_page);
}

// Joins the free neighbours of the same kind to the run. Requires: in no list.
void PageHeap::join(uint32_t number) {
  Span& span = window_->span(number);
  if (const uint32_t before = free_before(span); before != 0 && window_->span(before).pages == span.pages) {
    unlink(before);
    span.first_page = window_->span(before).first_page;
    span.nr_pages += window_->span(before).nr_pages;
    window_->give_span(before);
  }
  if (const uint32_t behind = free_behind(span); behind != 0 && window_->span(behind).pages == span.pages) {
    unlink(behind);
    span.nr_pages += window_->span(behind).nr_pages;
    window_->give_span(behind);
  }
}

bool PageHeap::cut(uint32_t number, uint64_t nr_pages) {
  Span& span = window_->span(number);
  if (span.nr_pages == nr_pages) return true;
  const uint32_t rest = window_->take_span();
  if (rest == 0) return false;
  Span& other = window_->span(rest);
  other.first_page = span.first_page + nr_pages;
  other.nr_pages = span.nr_pages - nr_pages;
  other.pages = span.pages;
  other.freed_tick = span.freed_tick;
  span.nr_pages = nr_pages;
  join_and_insert(rest);
  return true;
}

uint32_t PageHeap::cut_front(uint32_t number, uint64_t start) {
  Span& front = window_->span(number);
  if (start == front.first_page) return number;
  const uint32_t rest = window_->take_span();
  if (rest == 0) return 0;
  Span& span = window_->span(rest);
  span.first_page = start;
  span.nr_pages = front.first_page + front.nr_pages - start;
  span.pages = front.pages;
  span.freed_tick = front.freed_tick;
  span.state = SpanState::kInHand;
  front.nr_pages = start - front.first_page;
  join_and_insert(number);
  return rest;
}

int PageHeap::take_of_window(uint64_t nr_pages) {
  return closes_ ? window_->open_tables(frontier_, nr_pages) : window_->open_pages(frontier_, nr_pages);
}

// Takes at least nr_pages more of the window. Opens ahead by an eighth of what is open, so that a growing heap makes few system
// calls; where free runs are closed, nothing.
bool PageHeap::grow(uint64_t nr_pages) {
  const uint64_t left = end_ - frontier_;
  if (nr_pages > left) return false;
  const uint64_t ahead = round_up((frontier_ - begin_) / 8, kStepPages);
  uint64_t step = ahead < kMostAheadPages ? ahead : kMostAheadPages;
  if (step < nr_pages) step = round_up(nr_pages, kStepPages);
  if (step > left) step = left;
  const uint32_t number = window_->take_span();
  if (number == 0) return false;
  if (take_of_window(step) != 0) {
    step = up_to_system(nr_pages);
    if (take_of_window(step) != 0) {
      window_->give_span(number);
      return false;
    }
  }
  if (!window_->by_pieces()) (void)bind(window_->system(), window_->range(frontier_, step), node_);
  Span& span = window_->span(number);
  span.first_page = frontier_;
  span.nr_pages = step;
  span.pages = closes_ ? Pages::kClosed : Pages::kClean;
  frontier_ += step;
  join_and_insert(number);
  return true;
}

uint32_t PageHeap::open_closed(uint32_t number, uint64_t start, uint64_t nr_pages, uint64_t wanted) {
  const uint64_t run_first = window_->span(number).first_page;
  const uint64_t run_end = run_first + window_->span(number).nr_pages;
  // What stays closed in front is between two mappings then: not for the sake of little, nor without limit.
  const uint64_t front = start - run_first;
  const bool from_begin = front < kClosedFromPages || (front <= kRegionPages && !may_make_mappings());
  for (const bool only_needed : {false, true}) {
    const uint64_t first = only_needed || !from_begin ? start : run_first;
    uint64_t end = start + nr_pages;
    if (!only_needed) {
      end = start + wanted > first + kOpenedPages ? start + wanted : first + kOpenedPages;
      if (end > run_end || run_end - end < kClosedFromPages) end = run_end;
    }
    const uint32_t part = cut_front(number, first);
    if (part == 0 || !cut(part, end - first)) {
      join_and_insert(part == 0 ? number : part);
      return 0;
    }
    number = part;
    const Window::Opened opened = window_->open_closed(first, end - first, node_);
    if (opened == Window::Opened::kLost) return 0;
    if (opened == Window::Opened::kYes) {
      window_->span(number).pages = Pages::kClean;
      return number;
    }
  }
  join_and_insert(number);
  return 0;
}

void PageHeap::count_backed(uint64_t nr_pages) {
  store_relaxed(&backed_pages_, backed_pages_ + nr_pages);
  const uint64_t held = backed_pages_ > purged_pages_ ? backed_pages_ - purged_pages_ : 0;
  if (held <= peak_pages_) return;
  peak_pages_ = held;
  if (excess_tick_ == tick_) return;
  const uint64_t part = held / kKeptPart;
  const uint64_t keep = (part > kLeastKept ? part : kLeastKept) + needed_pages();
  if (purgeable_pages() > keep) store_relaxed(&keep_pages_, keep);
}

// What is behind nr_pages of the run, clean and in hand, becomes a dirty one.
void PageHeap::leave_dirty(uint32_t number, uint64_t nr_pages) {
  Span& span = window_->span(number);
  if (span.nr_pages == nr_pages) return;
  span.pages = Pages::kDirty;
  span.freed_tick = tick_;
  count_backed(span.nr_pages - nr_pages);
  (void)cut(number, nr_pages);  // without a record for the rest all of it stays in hand, and goes back
  if (span.nr_pages == nr_pages) span.pages = Pages::kClean;
}

// The run, in hand, is about to be cut after nr_pages. Where it is clean, and would be cut within a page of the system, the rest of that
// page becomes a dirty run. False where there is no record for what is behind it.
bool PageHeap::fill_system_page(uint32_t number, uint64_t nr_pages) {
  if constexpr (!kSystemPagesVary) return true;
  Span& span = window_->span(number);
  const uint64_t whole = up_to_system(nr_pages);
  if (whole == nr_pages || span.pages != Pages::kClean) return true;
  if (!cut(number, whole)) return false;
  leave_dirty(number, nr_pages);
  return true;
}

// ---- allocation ------------------------------------------------------------------------------------------------------

uint32_t PageHeap::allocate(uint64_t nr_pages, uint64_t align_pages, Purpose purpose) {
  HeapGuard guard(lock_);
  const uint32_t number = take_run(nr_pages, align_pages, purpose);
  if (number != 0) used_runs_++;
  note_least();
  return number;
}

uint32_t PageHeap::take_run(uint64_t nr_pages, uint64_t align_pages, Purpose purpose) {
  const bool large = is_large();
  uint32_t number = find(Pages::kDirty, nr_pages, align_pages);
  if (number == 0) number = find(Pages::kClean, nr_pages, align_pages);
  if (number == 0) number = find(Pages::kClosed, nr_pages, align_pages);
  if (number == 0) {
    if (nr_pages + align_pages - 1 < nr_pages || !grow(nr_pages + align_pages - 1)) return 0;
    number = find(closes_ ? Pages::kClosed : Pages::kClean, nr_pages, align_pages);
    if (number == 0) return 0;
  }
  unlink(number);
  const uint64_t base_page = window_->base() >> kPageShift;
  uint64_t start = round_up(window_->span(number).first_page + base_page, align_pages) - base_page;
  const bool dense = purpose == Purpose::kBlocks || nr_pages <= kDensePages;
  const bool huge = window_->span(number).pages != Pages::kDirty && large &&
                    (dense ? huge_use_ != HugeUse::kNone && align_pages == 1 : huge_use_ == HugeUse::kAll);
  if (huge && dense) start = huge_start(window_->span(number), start, nr_pages);
  if (window_->span(number).pages == Pages::kClosed) {
    // A region that blocks fill is opened as a whole, where that can be.
    const uint64_t needed = up_to_system(nr_pages);
    number = open_closed(number, start, needed, huge && dense ? round_up(start + nr_pages, kRegionPages) - start : needed);
    if (number == 0) return 0;
  }
  const uint32_t rest = cut_front(number, start);
  if (rest == 0) {
    join_and_insert(number);
    return 0;
  }
  number = rest;
  if (huge && dense) fill_huge(number, nr_pages);
  if (huge && !dense) cover_huge(number, nr_pages);
  if (!fill_system_page(number, nr_pages) || !cut(number, nr_pages)) {
    join_and_insert(number);
    return 0;
  }
  if (window_->span(number).pages == Pages::kClean) count_backed(nr_pages);
  return number;
}

void PageHeap::release(uint32_t number, bool clean) {
  {
    HeapGuard guard(lock_);
    used_runs_--;
    Span& span = window_->span(number);
    // Blocks have an entry at each page, a large one at its first.
    window_->clear_entries(span.first_page, span.state == SpanState::kSmall ? span.nr_pages : 1);
    span.pages = Pages::kDirty;
    span.freed_tick = tick_;
    if (!clean) return join_and_insert(number);
    (void)set_huge(span.first_page, span.nr_pages, false);
    if (!closes_) {
      span.pages = Pages::kClean;
      purged_pages_ += span.nr_pages;
      return join_and_insert(number);
    }
    span.state = SpanState::kInHand;
  }
  (void)give_back(number, true);
}

bool PageHeap::resize(uint32_t number, uint64_t nr_pages) {
  HeapGuard guard(lock_);
  Span& span = window_->span(number);
  if (nr_pages <= span.nr_pages) {
    const Pages were = span.pages;
    span.pages = Pages::kDirty;
    span.freed_tick = tick_;
    const bool done = cut(number, nr_pages);
    span.pages = were;
    return done;
  }
  const uint64_t wanted = nr_pages - span.nr_pages;
  uint32_t behind = free_behind(span);
  if (behind == 0 || window_->span(behind).nr_pages < wanted) return false;
  unlink(behind);
  if (window_->span(behind).pages == Pages::kClosed) {
    behind = open_closed(behind, window_->span(behind).first_page, wanted, wanted);
    if (behind == 0) return false;
  }
  if (!cut(behind, wanted)) {
    join_and_insert(behind);
    return false;
  }
  if (window_->span(behind).pages == Pages::kClean) count_backed(wanted);
  span.nr_pages = nr_pages;
  window_->give_span(behind);
  note_least();
  return true;
}

uint64_t PageHeap::begin_anew() {
  HeapGuard guard(lock_);
  for (Bins& bins : bins_) bins = {};
  dirty_pages_ = purgeable_pages_ = clean_pages_ = closed_pages_ = least_purgeable_ = used_runs_ = 0;
  // Neighbours are not joined across this line: a free run before it is nobody's from now on. (What a block lies on there stays.)
  if (frontier_ > begin_ && window_->entry(frontier_ - 1).kind() == kKindFree) window_->set_entry(frontier_ - 1, 0, kKindNone);
  return frontier_;
}

PageStats PageHeap::stats() {
  HeapGuard guard(lock_);
  return {frontier_ - begin_ - closed_pages_, dirty_pages_, clean_pages_, closed_pages_, purged_pages_, huge_regions_, purge_looks_,
          used_runs_, node_};
}

}  // namespace percpu::heap
