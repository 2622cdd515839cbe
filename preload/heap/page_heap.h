// SPDX-License-Identifier: MIT
//
// The free pages of one node: runs in bins by length, those that the system still backs (dirty) apart from those that it
// does not (clean: they read as zero). Neighbours of one kind are joined. An allocation takes a dirty run if one fits, then
// a clean one, then opens more of the window.
//
// Pages that stay free go back to the system: every tick, of the dirty pages that no allocation needed since the last tick,
// a part that makes their number fall by half in a half-life; longest runs first, and what would leave a huge page in pieces last.
// A run goes as a whole where that is not more than twice as much.
//
// At a new peak of what the system backs, of what is only kept more than a sixteenth of it is too much: what a program needs is told by
// its peak. Once a tick, what is free since the last one goes back down to that. Below the peak nothing goes back for its sake.
//
// Huge pages. A *region* is as much of the window as a huge page covers, 2 MiB at a multiple of that. All are without huge
// pages at first. Once the heap is large, and where the user wants it, a region that is clean and free as a whole may be
// backed by a huge page ("huge") when it is handed out to be written everywhere: for spans of blocks and not too large
// blocks, or (kAll) to a block that covers it. As the first touch backs all of it, what stays free of it counts as dirty; and
// as dirty pages are taken first, it fills up before another is begun. When any of its pages go back, it is sparse, or empty:
// it ceases to be huge, so that the kernel does not fill it up again.
//
// Strict books. Where the kernel counts every page that can be written to, backed or not (vm.overcommit_memory=2), what goes back is
// *closed* where it makes a long run with the clean pages beside it, or lies beside a closed one: a fresh mapping without access takes
// its place, which is not counted. So is what is new of the window. An allocation takes of it what neither dirty nor clean runs
// have, and some more, which is clean then. The same under a limit of the address space, where what is closed is no mapping at all.
//
// The system's pages. Where they are larger than ours (window.h), clean and closed runs, and what is new of the window, are whole ones of
// the system's. Dirty runs need not be: of these go the whole ones. What has no whole one is *stuck*: such runs have bins of their own,
// where no purge looks and allocations look first, and no decision about what is to go counts them. Of a clean run that is cut within a
// page of the system the rest of that page counts as dirty, since the first touch backs all of it.
//
// Invariants: a free run's first and last page have its entry in the page map, with kKindFree; its record is kFree. A huge
// region has no clean page, and no closed one.
// Locking: lock_; system calls that give pages back are made without it, on runs that are in no list (kInHand); but not where what
// was opened is closed again, since not all could be.
#ifndef PERCPU_PRELOAD_HEAP_PAGE_HEAP_H
#define PERCPU_PRELOAD_HEAP_PAGE_HEAP_H

#include "preload/heap/window.h"

namespace percpu::heap {

struct PageStats {
  uint64_t open_pages = 0;   // of the window, used or free
  uint64_t dirty_pages = 0;  // free and backed
  uint64_t clean_pages = 0;  // free and not backed
  uint64_t closed_pages = 0;  // free and without access
  uint64_t purged_pages = 0;  // given back so far
  uint64_t huge_regions = 0;
  uint64_t purge_looks = 0;   // at runs, by what gives pages back, so far
  uint64_t used_runs = 0;     // that were handed out, and not taken back
  NodeId node{};              // that it is bound to, if it is to one
};

// What may be backed by huge pages.
enum class HugeUse : uint8_t {
  kNone,
  kDense,  // regions that blocks fill
  kAll,    // and those inside large blocks, which programs need not touch everywhere
};

// What an allocation is for: whether all of it will be written to soon.
enum class Purpose : uint8_t { kBlocks, kLarge };

class PageHeap {
 public:
  constexpr PageHeap() = default;

  // Before any other thread can know of it.
  void init(Window& window, uint32_t node) PERCPU_NO_THREAD_SAFETY_ANALYSIS;

  // Takes a run of pages whose first is a multiple of align_pages (a power of two). Its record is kInHand; the caller makes
  // it what it is to be. span.pages: kClean where it reads as zero, else kDirty.
  // Returns: the span's number, or 0 where there is no memory.
  [[nodiscard]] uint32_t allocate(uint64_t nr_pages, uint64_t align_pages, Purpose purpose) PERCPU_EXCLUDES(lock_);
  // Takes a run back, of any state; its pages count as dirty, or as clean if they are.
  void release(uint32_t number, bool clean = false) PERCPU_EXCLUDES(lock_);
  // Lets a large span grow over free pages behind it, or gives its last pages back. False where the pages are not free.
  [[nodiscard]] bool resize(uint32_t number, uint64_t nr_pages) PERCPU_EXCLUDES(lock_);

  // Pages of other mappings were moved to the block's, with whatever those were advised. Requires: a large block's span.
  void moved_to(uint32_t number) PERCPU_EXCLUDES(lock_);

  // One tick of the decay: so much of the idle dirty pages stays (decay.h). Returns whether a later one may find some.
  bool decay(uint64_t kept) PERCPU_EXCLUDES(lock_);
  // Gives dirty pages back now, until no more than so many are left, or fewer. Returns how many.
  uint64_t purge_to(uint64_t keep_pages) PERCPU_EXCLUDES(lock_);
  uint64_t purge_all() { return purge_to(0); }

  // From now on; what is huge stays so. Nothing is before this is called.
  void set_huge_use(HugeUse use) PERCPU_EXCLUDES(lock_);

  // From now on long runs that go back are closed, since the kernel's books are strict. (By pieces they are anyway.)
  void begin_closing() PERCPU_EXCLUDES(lock_);

  PageStats stats() PERCPU_EXCLUDES(lock_);

  // Never gives out again what it gave out, or holds, until now. Returns the first page of what it may give out.
  uint64_t begin_anew() PERCPU_EXCLUDES(lock_);
  // How many of the dirty pages can go back. What decides whether a tick is due, without the lock.
  uint64_t purgeable_pages() const { return load_relaxed(kSystemPagesVary ? &purgeable_pages_ : &dirty_pages_); }
  // Whether more is kept than should be at the last new peak. Without the lock.
  bool keeps_too_much() const { return purgeable_pages() > load_relaxed(&keep_pages_); }
  // Gives that back.
  void purge_excess() PERCPU_EXCLUDES(lock_);
  // How many pages the system has had to back, or will have to: clean ones that were handed out so far.
  uint64_t backed_pages() const { return load_relaxed(&backed_pages_); }

  HeapLock& lock() PERCPU_RETURNS_LOCK(lock_) { return lock_; }
  // On this node's memory from now on. Requires: nothing was opened yet, or bind what was.
  void bind_to(NodeId node) PERCPU_EXCLUDES(lock_);

 private:
  static constexpr uint32_t kExactBins = 128;
  static constexpr uint32_t kNrBins = kExactBins + 8 * 26;
  static constexpr uint64_t kStepPages = (uint64_t{2} << 20) >> kPageShift;
  static constexpr uint64_t kMostAheadPages = 32 * kStepPages;
  // Shorter runs stay open: glibc's malloc leaves no shorter blocks to the kernel either, and each may cost two mappings.
  static constexpr uint64_t kClosedFromPages = (uint64_t{128} << 10) >> kPageShift;
  // Opened at once, so that small allocations need no system call each.
  static constexpr uint64_t kOpenedPages = (uint64_t{512} << 10) >> kPageShift;
  static constexpr int kMaxLooks = 16;  // at runs of a bin whose runs may be too short
  // A heap with less in use has no huge pages: of one that has, they add a sixteenth at most.
  static constexpr uint64_t kHugeFromPages = (uint64_t{32} << 20) >> kPageShift;
  static constexpr uint64_t kMostHugeEdges = 16 * 1024;
  static constexpr uint64_t kFewPages = 64;
  // At a peak so much is kept: a part, but not less than 1 MiB.
  static constexpr uint64_t kKeptPart = 16;
  static constexpr uint64_t kLeastKept = (uint64_t{1} << 20) >> kPageShift;
  // A block up to this size counts as written everywhere.
  static constexpr uint64_t kDensePages = (uint64_t{128} << 10) >> kPageShift;

  // Of each bin, the run that was put there last, and first. An allocation looks at the head, a purge at the tail.
  struct Bins {
    uint32_t head[kNrBins] = {};
    uint32_t tail[kNrBins] = {};
    uint32_t nr_runs[kNrBins] = {};
    uint64_t nonempty[(kNrBins + 63) / 64] = {};
  };
  // Where a purge is: in which bin, and how many of its runs it has not seen. What it has seen, and left, it moves to the head: so it
  // sees each run once, and others may have the lock in between.
  struct PurgeWalk {
    uint32_t bin = kNrBins;
    uint32_t nr_unseen = 0;
    bool ended = false;
    bool spared = false;  // something was left for a huge page's sake
  };
  static constexpr int kPurgeLooks = 256;  // with the lock held

  static constexpr size_t kNrLists = kSystemPagesVary ? 4 : 3;  // of bins: by Pages, and of what is stuck
  static constexpr size_t kStuck = kNrLists - 1;

  static uint32_t bin_of(uint64_t nr_pages);
  // How many of a run's pages can go back to the system.
  static uint64_t whole_pages(const Span& span) {
    const uint64_t start = up_to_system(span.first_page);
    const uint64_t end = down_to_system(span.first_page + span.nr_pages);
    return start < end ? end - start : 0;
  }
  Bins& bins_of(const Span& span) PERCPU_REQUIRES(lock_) {
    if (kSystemPagesVary && span.pages == Pages::kDirty && whole_pages(span) == 0) return bins_[kStuck];
    return bins_[static_cast<size_t>(span.pages)];
  }
  uint64_t& pages_of(const Span& span) PERCPU_REQUIRES(lock_) {
    return span.pages == Pages::kDirty ? dirty_pages_ : span.pages == Pages::kClean ? clean_pages_ : closed_pages_;
  }
  uint32_t take_run(uint64_t nr_pages, uint64_t align_pages, Purpose purpose) PERCPU_REQUIRES(lock_);
  uint32_t find(Pages pages, uint64_t nr_pages, uint64_t align_pages) PERCPU_REQUIRES(lock_);
  uint32_t find_in(const Bins& bins, uint64_t nr_pages, uint64_t align_pages) PERCPU_REQUIRES(lock_);
  bool fits(const Span& span, uint64_t nr_pages, uint64_t align_pages) const;
  void push_front(Bins& bins, uint32_t bin, uint32_t number) PERCPU_REQUIRES(lock_);
  void take_off(Bins& bins, uint32_t bin, uint32_t number) PERCPU_REQUIRES(lock_);
  void insert(uint32_t number) PERCPU_REQUIRES(lock_);
  void unlink(uint32_t number) PERCPU_REQUIRES(lock_);
  void join(uint32_t number) PERCPU_REQUIRES(lock_);
  void join_and_insert(uint32_t number) PERCPU_REQUIRES(lock_) {
    join(number);
    insert(number);
  }
  // The run that is free just before this one, or just behind it; 0: none is.
  uint32_t free_before(const Span& span) PERCPU_REQUIRES(lock_);
  uint32_t free_behind(const Span& span) PERCPU_REQUIRES(lock_);
  // Cuts the run after nr_pages; the rest becomes a free run. False where there is no record for it.
  bool cut(uint32_t number, uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  // Cuts the run before `start`; what is in front becomes a free run. Returns the number of the rest, 0 where there is no
  // record for it: then nothing has changed.
  uint32_t cut_front(uint32_t number, uint64_t start) PERCPU_REQUIRES(lock_);
  int take_of_window(uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  bool grow(uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  // Opens [start, start + nr_pages) of a closed run in hand, and if it can be `wanted` pages and some more around them; the rest is
  // free again. Returns the number of what is open, clean and in hand; 0 where the system refuses: then all is free again.
  uint32_t open_closed(uint32_t number, uint64_t start, uint64_t nr_pages, uint64_t wanted) PERCPU_REQUIRES(lock_);
  // Gives a run back to the system that is in no list, and makes it free. False where the system takes nothing.
  bool give_back(uint32_t number, bool empty) PERCPU_EXCLUDES(lock_);
  bool to_be_closed(const Span& span) PERCPU_REQUIRES(lock_);
  // How many pages are to go of so many idle ones.
  uint64_t take_due(uint64_t idle, uint64_t kept) PERCPU_REQUIRES(lock_);
  uint64_t purge(uint64_t nr_pages, uint64_t most_pages, bool fresh_too) PERCPU_EXCLUDES(lock_);
  uint32_t next_to_look_at(PurgeWalk* walk) PERCPU_REQUIRES(lock_);
  uint32_t take_to_purge(PurgeWalk* walk, uint64_t most_pages, bool fresh_too, bool break_huge) PERCPU_REQUIRES(lock_);
  void count(const Span& span, bool add) PERCPU_REQUIRES(lock_);
  // So many clean pages are handed out.
  void count_backed(uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  // Where pages left the dirty runs for good: in between, a run of which a page is taken is in no list as a whole.
  void note_least() PERCPU_REQUIRES(lock_) {
    if (purgeable_pages() < least_purgeable_) least_purgeable_ = purgeable_pages();
  }

  bool is_large() const PERCPU_REQUIRES(lock_) {
    return frontier_ - begin_ - dirty_pages_ - clean_pages_ - closed_pages_ >= kHugeFromPages;
  }
  // What is free of the huge page that is being filled is not idle.
  uint64_t needed_pages() const PERCPU_REQUIRES(lock_) { return huge_regions_ != 0 && is_large() ? kRegionPages : 0; }
  bool fill_system_page(uint32_t number, uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  void leave_dirty(uint32_t number, uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  uint64_t huge_start(const Span& span, uint64_t start, uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  void cover_huge(uint32_t number, uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  void fill_huge(uint32_t number, uint64_t nr_pages) PERCPU_REQUIRES(lock_);
  bool set_huge(uint64_t page, uint64_t nr_pages, bool huge) PERCPU_REQUIRES(lock_);

  Window* window_ = nullptr;
  uint64_t begin_ = 0;
  uint64_t end_ = 0;
  NodeId node_{};
  HeapLock lock_;
  uint64_t frontier_ PERCPU_GUARDED_BY(lock_) = 0;  // pages before it were taken of the window: open, or closed
  Bins bins_[kNrLists] PERCPU_GUARDED_BY(lock_);
  uint64_t dirty_pages_ = 0;
  uint64_t purgeable_pages_ = 0;  // of these; kept where it is another number
  uint64_t clean_pages_ PERCPU_GUARDED_BY(lock_) = 0;
  uint64_t closed_pages_ PERCPU_GUARDED_BY(lock_) = 0;
  uint64_t purged_pages_ PERCPU_GUARDED_BY(lock_) = 0;
  uint64_t purge_looks_ PERCPU_GUARDED_BY(lock_) = 0;
  uint64_t used_runs_ PERCPU_GUARDED_BY(lock_) = 0;
  uint64_t least_purgeable_ PERCPU_GUARDED_BY(lock_) = 0;  // since the last tick
  uint64_t owed_ PERCPU_GUARDED_BY(lock_) = 0;   // of a page that is to go, in 2^-32
  uint64_t ahead_pages_ PERCPU_GUARDED_BY(lock_) = 0;  // went before they were due, as huge pages go whole
  uint64_t backed_pages_ = 0;
  uint64_t peak_pages_ PERCPU_GUARDED_BY(lock_) = 0;  // most that was backed and not given back, at once
  uint64_t keep_pages_ = UINT64_MAX;  // of purgeable ones, since the last new peak; no bound once that was seen to
  uint32_t excess_tick_ PERCPU_GUARDED_BY(lock_) = 0;  // when it was
  HugeUse huge_use_ PERCPU_GUARDED_BY(lock_) = HugeUse::kNone;
  bool closes_ = false;  // changed under lock_, once
  uint64_t huge_regions_ PERCPU_GUARDED_BY(lock_) = 0;
  uint64_t huge_edges_ PERCPU_GUARDED_BY(lock_) = 0;  // between regions that are huge and those that are not
  uint32_t tick_ PERCPU_GUARDED_BY(lock_) = 0;
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_PAGE_HEAP_H
