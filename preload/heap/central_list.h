// SPDX-License-Identifier: MIT
//
// The free blocks of one class on one node that are in no CPU's cache: first a shelf of blocks as they came from a cache,
// ready to go to another in one copy; behind it spans, whose free blocks are bits in the spans' records.
//
// Invariants: a span is on the list exactly while it has a free block; a block is on the shelf, or its bit is set, or it is
// in a cache or the program's hands. A span whose blocks are all free goes back to the page heap.
// Locking: lock_. Order: a CPU's cache lock, then this, then the page heap's.
#ifndef PERCPU_PRELOAD_HEAP_CENTRAL_LIST_H
#define PERCPU_PRELOAD_HEAP_CENTRAL_LIST_H

#include "preload/heap/page_heap.h"

namespace percpu::heap {

// Each on lines of its own: the lists of one node are taken by all of its CPUs.
class alignas(kLineBytes) CentralList {
 public:
  constexpr CentralList() = default;

  // How many blocks a shelf has room for.
  static constexpr uint32_t kShelf = 4 * kMaxBatch;

  // `shelf`: kShelf words, touched only once blocks lie there. Not a part of the list, so that the lists of all classes lie
  // together: a fork takes all their locks, and what it writes the child copies.
  void init(Window& window, PageHeap& pages, uint32_t lane, uint64_t* shelf) PERCPU_NO_THREAD_SAFETY_ANALYSIS {
    window_ = &window;
    pages_ = &pages;
    shelf_ = shelf;
    lane_ = static_cast<uint16_t>(lane);
    size_class_ = static_cast<uint8_t>(class_of_lane(lane));
  }

  // Takes up to `want` blocks. Returns how many; 0 where there is no memory, or without new_span, where no block is free.
  [[nodiscard]] uint32_t take(uint64_t* blocks, uint32_t want, bool new_span = true) PERCPU_EXCLUDES(lock_);
  // Takes blocks back. Requires: blocks of this class and node. A block that is free already stops the program.
  void give(const uint64_t* blocks, uint32_t count) PERCPU_EXCLUDES(lock_);
  // The same of one, into its span: there it waits until the rest of its line is free too, if that can be helped.
  void put_away(uint64_t block) PERCPU_EXCLUDES(lock_) {
    HeapGuard guard(lock_);
    give_to_span(block);
  }

  // Puts back into spans what lay on the shelf since the last call; all of it if `now`. Returns whether the shelf has more.
  bool age(bool now) PERCPU_EXCLUDES(lock_);

  // How much lies on the shelf from now on: a quarter of a batch, or as much as suits the class.
  void keep_little(bool little) PERCPU_EXCLUDES(lock_);

  // Never gives out again what it holds now.
  void begin_anew() PERCPU_EXCLUDES(lock_);

  // Free blocks on the shelf and in spans, and spans.
  struct Counts {
    uint64_t free_blocks = 0;
    uint64_t nr_spans = 0;
  };
  Counts counts() PERCPU_EXCLUDES(lock_);

  HeapLock& lock() PERCPU_RETURNS_LOCK(lock_) { return lock_; }

 private:
  // Of large blocks fewer wait: 256 KiB a class.
  uint32_t shelf_limit() const PERCPU_REQUIRES(lock_) {
    if (little_) return kClasses.info[size_class_].batch / 4;
    const uint32_t by_bytes = 256 * 1024 / kClasses.info[size_class_].size_bytes;
    return by_bytes < kShelf ? by_bytes : kShelf;
  }

  void give_to_span(uint64_t block) PERCPU_REQUIRES(lock_);
  uint32_t take_from_span(uint64_t* blocks, uint32_t want, bool lines_only) PERCPU_REQUIRES(lock_);
  uint32_t whole_lines(Span& span, uint64_t start, const uint64_t* blocks, uint32_t got, bool lines_only)
      PERCPU_REQUIRES(lock_);
  void link(uint32_t number) PERCPU_REQUIRES(lock_);
  void unlink(uint32_t number) PERCPU_REQUIRES(lock_);
  bool add_span() PERCPU_REQUIRES(lock_);

  Window* window_ = nullptr;
  PageHeap* pages_ = nullptr;
  HeapLock lock_;
  uint64_t* shelf_ PERCPU_PT_GUARDED_BY(lock_) = nullptr;
  uint64_t free_in_spans_ PERCPU_GUARDED_BY(lock_) = 0;
  uint32_t spans_ PERCPU_GUARDED_BY(lock_) = 0;
  uint32_t nr_spans_ PERCPU_GUARDED_BY(lock_) = 0;
  uint16_t on_shelf_ PERCPU_GUARDED_BY(lock_) = 0;
  uint16_t least_on_shelf_ PERCPU_GUARDED_BY(lock_) = 0;
  uint16_t lane_ = 0;
  uint8_t size_class_ = 0;
  bool little_ PERCPU_GUARDED_BY(lock_) = false;
};
static_assert(sizeof(CentralList) == kLineBytes && CentralList::kShelf <= UINT16_MAX && kMaxLanes <= UINT16_MAX);

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_CENTRAL_LIST_H
