// SPDX-License-Identifier: MIT
//
// The page heap, which regions may be huge pages: preload/README.md, "Huge pages", has the rules.
#include "preload/heap/page_heap.h"

namespace percpu::heap {

void PageHeap::set_huge_use(HugeUse use) {
  HeapGuard guard(lock_);
  huge_use_ = use;
}

// Where in the clean run to begin with pages that will be written everywhere: at a region that is free as a whole, rather
// than across the border to it, for then that region would never again be free as a whole.
uint64_t PageHeap::huge_start(const Span& span, uint64_t start, uint64_t nr_pages) {
  const uint64_t border = round_up(start, kRegionPages);
  const bool crosses = start < border && start + nr_pages > border;
  const uint64_t needed = nr_pages > kRegionPages ? nr_pages : kRegionPages;
  return crosses && border + needed <= span.first_page + span.nr_pages ? border : start;
}

// The run, clean and in hand, is about to be cut after nr_pages, which a block will cover: makes the regions inside huge.
void PageHeap::cover_huge(uint32_t number, uint64_t nr_pages) {
  const Span& span = window_->span(number);
  const uint64_t first = round_up(span.first_page, kRegionPages);
  const uint64_t last = round_down(span.first_page + nr_pages, kRegionPages);
  if (first < last) (void)set_huge(first, last - first, true);
}

// The run, clean and in hand, is about to be cut after nr_pages that will be written everywhere. Where it begins with a
// region, that becomes huge; what is left of it becomes a dirty run.
void PageHeap::fill_huge(uint32_t number, uint64_t nr_pages) {
  Span& span = window_->span(number);
  const uint64_t last = round_up(span.first_page + nr_pages, kRegionPages);
  if (span.first_page % kRegionPages != 0 || last > span.first_page + span.nr_pages) return;
  if (!cut(number, last - span.first_page) || !set_huge(span.first_page, span.nr_pages, true)) return;
  leave_dirty(number, nr_pages);
}

void PageHeap::moved_to(uint32_t number) {
  HeapGuard guard(lock_);
  const Span& span = window_->span(number);
  const PageRange range = window_->range(span.first_page, span.nr_pages);
  if (window_->nr_nodes() > 1) (void)bind(window_->system(), range, node_);
  (void)advise_huge(window_->system(), range, false);
  (void)set_huge(span.first_page, span.nr_pages, false);
  if (huge_use_ == HugeUse::kAll && is_large()) cover_huge(number, span.nr_pages);
}

// Tells the kernel of the regions that are not so yet. False where there are as many borders between mappings as we allow
// ourselves (a process has 65,530), or it refuses.
bool PageHeap::set_huge(uint64_t page, uint64_t nr_pages, bool huge) {
  const uint64_t begin = page / kRegionPages;
  const uint64_t end = (page + nr_pages + kRegionPages - 1) / kRegionPages;
  if (huge && huge_edges_ >= kMostHugeEdges) return false;
  for (uint64_t region = begin; region < end; ++region) {
    if (window_->is_huge(region) == huge) continue;
    uint64_t stop = region + 1;
    while (stop < end && window_->is_huge(stop) != huge) ++stop;
    const PageRange range = window_->range(region * kRegionPages, (stop - region) * kRegionPages);
    if (advise_huge(window_->system(), range, huge) != 0 && huge) return false;
    for (; region < stop; ++region) {
      window_->set_huge(region, huge);
      huge_regions_ += huge ? 1 : uint64_t{0} - 1;
      // What lies outside of what is open is not huge, and not in the table.
      const bool before = region > begin_ / kRegionPages && window_->is_huge(region - 1);
      const bool behind = (region + 1) * kRegionPages < frontier_ && window_->is_huge(region + 1);
      huge_edges_ += (before == huge ? uint64_t{0} - 1 : 1) + (behind == huge ? uint64_t{0} - 1 : 1);
    }
  }
  return true;
}

}  // namespace percpu::heap
