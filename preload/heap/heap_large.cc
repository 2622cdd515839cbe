// SPDX-License-Identifier: MIT
//
// Blocks larger than the largest class, and those of large alignments: a run of pages each, with a span of its own.
#include "preload/heap/heap.h"
#include "preload/heap/move_pages.h"

namespace percpu::heap {

void* Heap::allocate_large(size_t size_bytes, size_t align_bytes, bool* clean) {
  if (size_bytes > kMaxBytes || prepare() != 0) return nullptr;
  uint64_t nr_pages = pages_of(size_bytes);
  if (nr_pages == 0) nr_pages = system_pages();
  if (nr_pages > window_.node_pages()) return nullptr;  // whatever is given back
  const uint64_t align_pages = align_bytes <= system_page_bytes() ? system_pages() : align_bytes >> kPageShift;
  const uint32_t first = window_.nr_nodes() == 1 ? 0 : this_node(caches());
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (uint32_t i = 0; i < window_.nr_nodes(); ++i) {
      const uint32_t number = pages_[(first + i) % window_.nr_nodes()].allocate(nr_pages, align_pages, Purpose::kLarge);
      if (number == 0) continue;
      Span& span = window_.span(number);
      span.state = SpanState::kLarge;
      if (clean != nullptr) *clean = span.pages == Pages::kClean;
      window_.set_entry(span.first_page, number, kKindLarge);
      heed_limit();
      return window_.address_of(span.first_page);
    }
    if (attempt == 0 && !trim()) break;
  }
  return nullptr;
}

uint32_t Heap::large_span(const void* block, const char* what) {
  uint64_t page = 0;
  if (window_.page_of(block, &page)) {
    if (window_.entry(page).kind() == kKindLarge && window_.address_of(page) == block) return window_.span_of(page);
  }
  refuse(block, what);
}

void Heap::release_large(void* block, bool emptied) {
  if (block == nullptr || is_linkers(block)) return;
  const uint32_t number = large_span(block, "free");
  Span& span = window_.span(number);
  // Of two threads that free it at once, one finds it no longer there.
  uint8_t expected = static_cast<uint8_t>(SpanState::kLarge);
  if (!__atomic_compare_exchange_n(reinterpret_cast<uint8_t*>(&span.state), &expected, static_cast<uint8_t>(SpanState::kInHand),
                                   false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
    refuse(block, "free");
  pages_[window_.node_of_page(span.first_page)].release(number, emptied);
  decay_if_due();
}

bool Heap::resize_in_place(uint32_t number, uint64_t nr_pages) {
  const Span& span = window_.span(number);
  if (nr_pages == span.nr_pages) return true;
  const bool grows = nr_pages > span.nr_pages;
  if (!pages_[window_.node_of_page(span.first_page)].resize(number, nr_pages)) {
    if (!grows) store_relaxed(&kept_longer_, true);
    return !grows;
  }
  // What is booked when a block is taken, or freed.
  if (grows) {
    heed_limit();
  } else {
    decay_if_due();
  }
  return true;
}

void* Heap::grow_elsewhere(uint32_t number, size_t old_bytes, size_t size_bytes) {
  void* other = allocate_large(size_bytes, 1, nullptr);
  if (other == nullptr) return nullptr;
  void* const block = window_.address_of(window_.span(number).first_page);
  const bool emptied =
      move_pages(window_.system(), reinterpret_cast<uintptr_t>(block), reinterpret_cast<uintptr_t>(other), old_bytes,
                 config_.limit == HeapLimit::kAuto);
  const uint32_t moved = large_span(other, "realloc");
  pages_[window_.node_of_page(window_.span(moved).first_page)].moved_to(moved);
  release_large(block, emptied);
  return other;
}

}  // namespace percpu::heap
