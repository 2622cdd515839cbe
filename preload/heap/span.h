// SPDX-License-Identifier: MIT
//
// A span is a run of pages of the window: of blocks of one class, of one large block, or free. Spans are known by number;
// their records lie in the metadata, never in the pages themselves, so that a program that writes to freed memory harms
// nobody but itself.
//
// Locking: a free span belongs to its page heap's lock; a span of blocks to its central list's; a large one to its owner.
#ifndef PERCPU_PRELOAD_HEAP_SPAN_H
#define PERCPU_PRELOAD_HEAP_SPAN_H

#include <cstddef>
#include <cstdint>

#include "preload/heap/size_class.h"

namespace percpu::heap {

enum class SpanState : uint8_t {
  kUnused,  // the record is free
  kFree,    // the pages are free: on a list of the page heap
  kInHand,  // between lists: being given back to the system
  kSmall,   // blocks of one class
  kLarge,   // one block
};

// What a free run's pages are to the system.
enum class Pages : uint8_t {
  kDirty,   // backed, and as they were left
  kClean,   // backed by nothing: they read as zero
  kClosed,  // in no books of the kernel's (page_heap.h), without access or not even mapped: to be opened before they are used, then clean
};

struct Span {
  uint64_t first_page = 0;  // in the window
  uint64_t nr_pages = 0;
  uint32_t next = 0;  // span numbers; 0: none. While kUnused: the next unused record
  uint32_t prev = 0;
  SpanState state = SpanState::kUnused;
  uint8_t size_class = 0;
  Pages pages = Pages::kDirty;  // kFree; and of a run that was just handed out, how it was
  bool listed = false;      // kSmall: on its central list, as it has free blocks
  uint32_t nr_free = 0;     // kSmall: bits set in free_blocks
  uint32_t hint = 0;        // kSmall: no word before this one has a bit set
  uint32_t freed_tick = 0;  // kFree, dirty: when
  uint64_t free_blocks[kMaxSpanBlocks / 64] = {};
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_SPAN_H
