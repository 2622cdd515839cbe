// SPDX-License-Identifier: MIT
//
// The free pages of one node: runs in bins by length, those that the system still backs (dirty) apart from those that it
// does not (clean: they read as zero). Neighbours of one kind are joined. An allocation takes a dirty run if one fits, then
// a clean one, then opens more of the window.
//
// Pages that stay free go back to the system: every tick, of the dirty pages that no allocation needed since the last tick,
// a part that makes their number fall by half in a half-life, longest runs first.
//
// Invariants: a free run's first and last page have its entry in the page map, with kKindFree; its record is kFree.
// Locking: lock_; system calls that give pages back are made without it, on runs that are in no list (kInHand).
#ifndef PERCPU_PRELOAD_PAGE_HEAP_H
#define PERCPU_PRELOAD_PAGE_HEAP_H

#include "preload/window.h"

namespace percpu::heap {

struct PageStats {
  uint64_t open_pages = 0;   // of the window, used or free
  uint64_t dirty_pages = 0;  // free and backed
  uint64_t clean_pages = 0;  // free and not backed
  uint64_t purged_pages = 0;  // given back so far
};

class PageHeap {
 public:
  constexpr PageHeap() = default;

  // Before any other thread can know of it.
  void init(Window& window, uint32_t node) PERCPU_NO_THREAD_SAFETY_ANALYSIS;

  // Takes a run of pages whose first is a multiple of align_pages (a power of two). Its record is kInHand; the caller makes
  // it what it is to be. span.clean: it reads as zero.
  // Returns: the span's number, or 0 where there is no memory.
  [[nodiscard]] uint32_t allocate(uint64_t nr_pages, uint64_t align_pages) PERCPU_EXCLUDES(lock_);
  // Takes a run back, of any state; its pages count as dirty.
  void release(uint32_t number) PERCPU_EXCLUDES(lock_);
  // Lets a large span grow over free pages behind it, or gives its last pages back. False where the pages are not free.
  [[nodiscard]] bool resize(uint32_t number, uint64_t nr_pages) PERCPU_EXCLUDES(lock_);

  // One tick of the decay: `keep` of the idle dirty pages, in 1/256, stay.
  void decay(uint32_t keep) PERCPU_EXCLUDES(lock_);
  // Gives all dirty pages back now. Returns how many.
  uint64_t purge_all() PERCPU_EXCLUDES(lock_);

  PageStats stats() PERCPU_EXCLUDES(lock_);

  // Never gives out again what it gave out, or holds, until now. Returns the first page of what it may give out.
  uint64_t begin_anew() PERCPU_EXCLUDES(lock_);
  // What decides whether a tick is due, without the lock.
  uint64_t dirty_pages() const { return load_relaxed(&dirty_pages_); }

  HeapLock& lock() PERCPU_RETURNS_LOCK(lock_) { return lock_; }
  // On this node's memory from now on. Requires: nothing was opened yet, or bind what was.
  void bind_to(NodeId node) PERCPU_EXCLUDES(lock_);

 private:
  static constexpr uint32_t kExactBins = 128;
  static constexpr uint32_t kNrBins = kExactBins + 8 * 26;
  static constexpr uint64_t kStepPages = (uint64_t{2} << 20) >> kPageShift;
  static constexpr int kMaxLooks = 16;  // at runs of a bin whose runs may be too short

  struct Bins {
    uint32_t head[kNrBins] = {};
    uint64_t nonempty[(kNrBins + 63) / 64] = {};
  };

  static uint32_t bin_of(uint64_t nr_pages);
  Bins& bins_of(const Span& span) PERCPU_REQUIRES(lock_) { return span.clean ? clean_ : dirty_; }
  uint32_t find(const Bins& bins, uint64_t nr_pages, uint64_t align_pages) PERCPU_REQUIRES(lock_);
  bool fits(const Span& span, uint64_t nr_pages, uint64_t align_pages) const;
  void insert(uint32_t number) PERCPU_REQUIRES(lock_);
  void unlink(uint32_t number) PERCPU_REQUIRES(lock_);
  void join_and_insert(uint32_t number) PERCPU_REQUIRES(lock_);
  // Cuts the run after nr_pages; the rest becomes a free run. False where there is no record for it.
  bool cut(uint32_t number, uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  bool grow(uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  uint64_t purge(uint64_t nr_pages, bool fresh_too) PERCPU_EXCLUDES(lock_);
  void count(const Span& span, bool add) PERCPU_REQUIRES(lock_);

  Window* window_ = nullptr;
  uint64_t begin_ = 0;
  uint64_t end_ = 0;
  NodeId node_{};
  HeapLock lock_;
  uint64_t frontier_ PERCPU_GUARDED_BY(lock_) = 0;  // pages before it are open
  Bins dirty_ PERCPU_GUARDED_BY(lock_);
  Bins clean_ PERCPU_GUARDED_BY(lock_);
  uint64_t dirty_pages_ = 0;
  uint64_t clean_pages_ PERCPU_GUARDED_BY(lock_) = 0;
  uint64_t purged_pages_ PERCPU_GUARDED_BY(lock_) = 0;
  uint64_t least_dirty_ PERCPU_GUARDED_BY(lock_) = 0;  // since the last tick
  uint32_t tick_ PERCPU_GUARDED_BY(lock_) = 0;
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_PAGE_HEAP_H
