// SPDX-License-Identifier: MIT
//
// The heap: what malloc and its kin do, without their names and without errno. A small block comes from this CPU's cache,
// else from the central list of its class on this CPU's node; a larger one is a run of pages. preload/README.md tells the way
// of one block through the floors.
//
// Invariants: constant-initialised; the first call reserves the window, before any constructor; caches open in the
// constructor, until then (and for threads without rseq, or in a vfork child) every call goes to the central lists.
// Locking: see preload/README.md for the order.
#ifndef PERCPU_PRELOAD_HEAP_HEAP_H
#define PERCPU_PRELOAD_HEAP_HEAP_H

#include <cstddef>
#include <cstdint>

#include "base/cpu_mask.h"
#include "core/config.h"
#include "os/system.h"
#include "preload/heap/central_list.h"
#include "preload/heap/check.h"
#include "preload/heap/cpu_cache.h"
#include "preload/heap/memory_limit.h"
#include "preload/heap/page_heap.h"
#include "preload/heap/pieces.h"
#include "preload/heap/window.h"

namespace percpu::heap {

// What a vfork child sees: it shares the thread's memory, but not its rseq. See preload/abi/vfork.S.
extern "C" __thread uint32_t in_vfork_word __attribute__((tls_model("initial-exec")));

struct HeapTotals {
  uint64_t open_bytes = 0;      // of the window: used, or free
  uint64_t used_bytes = 0;      // by spans, whatever is free in them
  uint64_t free_small_bytes = 0;  // free blocks in spans, shelves and caches
  uint64_t cached_bytes = 0;    // of these, in caches
  uint64_t dirty_bytes = 0;     // free pages that are still backed
  uint64_t clean_bytes = 0;
  uint64_t purged_bytes = 0;    // given back so far
  uint64_t metadata_bytes = 0;

  // In the program's hands. The figures are each of a moment of their own.
  uint64_t live_bytes() const { return used_bytes > free_small_bytes ? used_bytes - free_small_bytes : 0; }
};

// Of the blocks of one class. Each figure is of a moment of its own.
struct ClassTotals {
  uint64_t spans = 0;
  uint64_t span_bytes = 0;
  uint64_t blocks = 0;         // in them, used or free
  uint64_t free_blocks = 0;    // in spans and on shelves
  uint64_t cached_blocks = 0;  // free in the CPUs' caches
};

struct LargeTotals {
  uint64_t blocks = 0;
  uint64_t bytes = 0;
};

class Heap {
 public:
  constexpr Heap() = default;

  // ---- blocks. Null: no memory, or a size beyond PTRDIFF_MAX.
  void* allocate(size_t size_bytes);
  // What most calls need, to be inlined: null means only that allocate() must be asked.
  PRELOAD_HOT void* try_allocate(size_t size_bytes);
  void* allocate_aligned(size_t align_bytes, size_t size_bytes);
  void* allocate_zeroed(size_t size_bytes);
  // As realloc(): null leaves the old block as it is. Requires: block is not null.
  void* reallocate(void* block, size_t size_bytes);
  // Null is fine. A pointer that is no live block of this heap stops the program.
  void release(void* block);
  // What most calls need, to be inlined: how many bytes a small block has; 0 means only that others must be asked.
  PRELOAD_HOT size_t try_size(const void* block) const;
  // What most calls need, to be inlined: false means only that release() must be asked.
  PRELOAD_HOT bool try_release(void* block);
  // The same with where the window begins; an address that no block is behind refuses every block.
  PRELOAD_HOT bool try_release(void* block, uintptr_t window);
  // As release(), told the size that was asked for: a size of another class, or of another number of pages, stops the program.
  // aligned: an alignment was asked for, so that the block may be larger.
  void release_sized(void* block, size_t size_bytes, bool aligned);
  // `what` names the function that asks, for a block that is none.
  size_t usable_bytes(const void* block, const char* what);
  // How many bytes a block for so many has; 0: none is so large.
  static size_t size_for(size_t size_bytes);
  // What usable_bytes() will say of a block for so many with that alignment (a power of two); 0: none is so large.
  size_t usable_for(size_t align_bytes, size_t size_bytes) const;

  // ---- the whole
  // Reads the configuration and opens the caches: once, from the constructor.
  void start();
  // Gives everything that is free back to the system. Returns whether there was any.
  bool trim();
  // What the balance thread does every fifth of a second. True: look again.
  bool tick();
  // The program makes its first thread: from now on the balance thread ticks.
  void begin_threads();
  HeapTotals totals();
  MemoryLimit::Room room() const { return {load_relaxed(&room_.limit_bytes), load_relaxed(&room_.left_bytes)}; }
  void print_stats(Pieces& text);  // stats.cc
  void print_json(Pieces& text);
  void print_xml(Pieces& text);    // in the shape of glibc's malloc_info()
  const Config& config() const { return config_; }

  void fork_prepare() PERCPU_NO_THREAD_SAFETY_ANALYSIS;
  void fork_parent() PERCPU_NO_THREAD_SAFETY_ANALYSIS;
  void fork_child() PERCPU_NO_THREAD_SAFETY_ANALYSIS;

 private:
  ClassTotals class_totals(uint32_t size_class);  // on all nodes
  ClassTotals class_totals(uint32_t size_class, uint32_t node);
  LargeTotals large_totals();

  static constexpr size_t kMaxBytes = PTRDIFF_MAX;
  // Zeroed blocks of so much get fresh pages rather than a memset, which is faster if all of it is used: from where glibc's may, too.
  static constexpr size_t kFreshBytes = size_t{32} << 20;
  // Of the class whose blocks serve so many with that alignment.
  static size_t small_aligned(size_t align_bytes, size_t size_bytes);
  // Of a large block: whole pages of the system.
  static uint64_t pages_of(size_t size_bytes) { return up_to_system((size_bytes + kPageBytes - 1) >> kPageShift); }
  // Of a block that the dynamic linker allocated before any library was there (it may call free() on it later): how many bytes
  // its image has from there on. 0: it is none.
  static size_t linkers_bytes(const void* block);
  static bool is_linkers(const void* block) { return linkers_bytes(block) != 0; }

  // The same without check:full, whatever is set.
  void* take_block(size_t size_bytes);
  void* take_aligned(size_t align_bytes, size_t size_bytes);
  void drop_block(void* block);
  size_t block_bytes(const void* block, const char* what);
  // With it (heap_checked.cc).
  void* allocate_checked(size_t align_bytes, size_t size_bytes, bool* clean = nullptr);
  void release_checked(void* block, const char* what);
  void* reallocate_checked(void* block, size_t size_bytes);
  bool is_checked(const void* block, const char* what);
  void empty_quarantine();

  void* allocate_small(uint32_t size_class);
  void release_small(uint32_t lane, uint64_t block);
  void put_all(uint32_t lane, const uint64_t* blocks, uint32_t count);
  void put_freed(uint32_t lane, uint64_t block);
  void put_beneath(uint32_t lane, uint64_t block);
  void make_room(uint32_t lane, uint64_t block);
  void expect_other(uint64_t block, const uint64_t* blocks, uint32_t count);

  // ---- large blocks (heap_large.cc)
  // *clean: whether it is zero.
  void* allocate_large(size_t size_bytes, size_t align_bytes, bool* clean);
  // emptied: its pages were given back to the system already.
  void release_large(void* block, bool emptied = false);
  // The large block that begins here; stops the program where there is none. `what` names the function.
  uint32_t large_span(const void* block, const char* what);
  // Gives the block so many pages where it is. False: it must move.
  bool resize_in_place(uint32_t number, uint64_t nr_pages);
  // The block moves to where there is room for `size_bytes`, and its pages with it. Null: no memory, nothing happened.
  void* grow_elsewhere(uint32_t number, size_t old_bytes, size_t size_bytes);

  // Whether this thread can use the CPUs' caches.
  bool caches();
  void place_nodes(const CpuMask& nodes);
  // The index of the page heap of this CPU's node.
  uint32_t this_node(bool cached) const {
    if (window_.nr_nodes() == 1 || !cache_.is_open()) return 0;
    return cache_.home_of(cached ? cache_.this_cpu() : cache_.asked_cpu());
  }
  [[noreturn]] void refuse(const void* block, const char* what);
  // kind: kKindNone for a null pointer or one of the dynamic linker's; else the lane's kind, or kKindLarge.
  struct Found {
    uint32_t kind = kKindNone;
    uint32_t span = 0;  // a large block's
  };
  Found look_up(const void* block, const char* what);
  size_t bytes_of(Found found) const;

  int prepare();
  int prepare_now();
  void decay_if_due();
  void tick_if_due();
  // If the balance thread rests: there is something to do again.
  void wake_ticker() {
    if (__builtin_expect(load_relaxed(&rests_), 0)) wake_resting();
  }
  void wake_resting();
  void ring();
  template <class Each>
  void for_each_node_lock(Each each) PERCPU_NO_THREAD_SAFETY_ANALYSIS;

  // ---- the memory limit (heap_limit.cc)
  // Where clean pages were taken, pages became dirty, or a stack may hold more: wakes the balance thread if it rests, and looks
  // at the limit when enough of that has happened.
  void heed_limit() {
    wake_ticker();
    if (__builtin_expect(backed_pages() >= load_relaxed(&look_at_pages_), 0)) return look_now();
    if (__builtin_expect(purgeable_pages() > load_relaxed(&most_purgeable_pages_) || keeps_too_much(), 0)) give_excess();
  }
  void look_now();
  void give_excess();
  uint64_t give_all();
  // Requires: decay_lock_.
  void bound_dirty();
  void purge_excess();
  void look_at_limit();
  MemoryLimit::Room read_room();
  void keep_within(MemoryLimit::Room room);
  void choose_huge_use();
  void ask_for_books();  // the kernel's: see page_heap.h
  uint64_t backed_pages() const;
  uint64_t held_pages();
  uint64_t purgeable_pages() const;
  bool keeps_too_much() const;
  static void sink_to_lists(void* heap, uint32_t lane, const uint64_t* blocks, uint32_t count);
  CentralList& list_of(uint32_t lane) { return lists_[node_of_lane(lane)][class_of_lane(lane)]; }

  CpuCache cache_;
  Window window_;
  Checker checker_;
  uint64_t checked_from_[kMaxHeapNodes] = {};  // pages before these hold blocks from before checker_ was on
  OnceFlag prepared_;
  HeapLock decay_lock_;  // who ticks or trims; first in the order
  // What the memory limit allows, as last seen. Written by who holds decay_lock_.
  static constexpr uint64_t kFirstLookPages = (uint64_t{4} << 20) >> kPageShift;
  MemoryLimit limit_;
  MemoryLimit::Room room_;
  uint64_t limit_found_ms_ = 0;  // when the groups were looked for; 0: never, or in vain so far
  bool room_seen_ = false;         // what follows is known: what was left when it was last read, and what the heap held then
  MemoryLimit::Room seen_room_;
  uint64_t seen_held_pages_ = 0;
  uint64_t look_at_pages_ = kFirstLookPages;  // look again when so many pages have been backed
  uint64_t most_purgeable_pages_ = UINT64_MAX;
  bool near_limit_ = false;
  HugeUse huge_use_ = HugeUse::kNone;  // unless the limit is near

  uint64_t last_tick_ms_ = 0;
  uint32_t nr_ticks_ = 0;
  bool kept_longer_ = false;    // realloc could not shrink a block, for want of memory or of a record: some are larger than was asked for
  bool threads_begun_ = false;  // the balance thread was asked to tick, in this process, and will
  bool thread_ticks_ = false;   // and does
  bool rests_ = false;          // it found nothing to do, and sleeps until it is woken
  uint64_t decay_ms_ = 1000;  // until start() reads what the user wants; kDecayOff
  Config config_{};
  PageHeap pages_[kMaxHeapNodes];
  CentralList lists_[kMaxHeapNodes][kNrClasses];
};

extern Heap heap;

PRELOAD_HOT void* Heap::try_allocate(size_t size_bytes) {
  uintptr_t head = 0;
  if (__builtin_expect(size_bytes < thread_caches.malloc_limit, 1)) {
    head = cache_places.table->home_head[size_bytes];
    __asm__("" : "+r"(head));  // else clang joins the two loads, at the price of an address
  } else {
    // The limit is loaded once more, so that the comparison above needs no register. A signal handler may have attached the thread in
    // between: then a size that the other table is for comes here.
    const size_t index = ClassTable::coarse_index(size_bytes);
    if (index - 1 >= ClassTable::kCoarseEntries - 1 || load_relaxed(&thread_caches.malloc_limit) == 0) return nullptr;
    // Not the table as it was before: the handler may have been the first to see one.
    std::atomic_signal_fence(std::memory_order_acquire);
    head = cache_places.table->coarse_head[index];
  }
  return pop_home(cache_places.table, head);
}

PRELOAD_HOT size_t Heap::try_size(const void* block) const {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(block) - cache_places.window;
  uintptr_t head = 0;
  if (offset >= thread_caches.free_limit || !find_block(cache_places.table, offset, &head)) return 0;
  const CacheTable::Kind* kinds = cache_places.table->kinds;
  return reinterpret_cast<const CacheTable::Kind*>(reinterpret_cast<uintptr_t>(kinds) + head)->size_bytes;
}

// check:off has its way here, not functions of its own: what a program's calls are bound to is decided before anything can
// be read, and a jump through a pointer would cost everybody. So a thread's limits decide; the other way costs nothing but to
// those who asked for it.
PRELOAD_HOT bool Heap::try_release(void* block) { return try_release(block, cache_places.window); }

PRELOAD_HOT bool Heap::try_release(void* block, uintptr_t window) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(block) - window;
  if (__builtin_expect(offset < thread_caches.free_limit, 1)) {
    const CacheTable* const table = cache_places.table;
    uintptr_t head = 0;
    if (__builtin_expect(!find_block(table, offset, &head), 0)) return false;
    return __builtin_expect(push(table, head, block) == Pushed::kYes, 1);
  }
  if (offset >= thread_caches.unchecked_limit) return false;
  const CacheTable* const table = cache_places.table;
  return push_unchecked(table, find_head(table, offset), block);
}

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_HEAP_H
