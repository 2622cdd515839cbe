// SPDX-License-Identifier: MIT
//
// The heap's addresses: one window, reserved at the first call, in which each NUMA node has an equal part; and the tables
// about it, reserved beside it and opened piece by piece as the window is used. Under a limit of the address space (ulimit -v), which
// counts what is reserved, only the tables are, for a window as large as the limit; of the window itself just what is open is taken,
// far below where the kernel puts others' mappings.
//
//   window       | node 0: used ... |reserved          | node 1: used .. |reserved      | ...
//   page map     of each page its kind, and where its span's first block begins: all that free() needs, in one load
//   page spans   of each page the number of its span, for the slow paths
//   spans        one record a span
//   huge         of each region (page_heap.h) whether it is huge
//
// Invariants: an entry changes only while its page belongs to nobody, or to the one who changes it.
// Locking: entries are atomic words, and nothing is ordered by them: those of a page are stored before its first block is handed out, and
// come to whoever has the block by what brings it there: the lists' locks, the CPU that pushed it and pops it, the program's own means.
// Spans' records are handed out under spans_lock_.
#ifndef PERCPU_PRELOAD_HEAP_WINDOW_H
#define PERCPU_PRELOAD_HEAP_WINDOW_H

#include <cstddef>
#include <cstdint>

#include "base/annotations.h"
#include "base/bits.h"
#include "os/pages.h"
#include "preload/heap/heap_lock.h"
#include "preload/heap/span.h"

namespace percpu::heap {

// Kernels of arm64 are built for pages of 4, 16 or 64 KiB: how many of ours one of the system's is. The system does all that it does to
// whole ones of its own. So what is asked of it are whole ones (page_heap.h), and the heap needs no other grain for its sake. (The unit
// tests choose a number of their own.)
#if defined(PRELOAD_SYSTEM_PAGES)
inline constexpr bool kSystemPagesVary = true;
inline uint64_t system_pages() { return PRELOAD_SYSTEM_PAGES; }
inline void learn_system_pages() {}
#elif defined(__x86_64__)
inline constexpr bool kSystemPagesVary = false;
inline constexpr uint64_t system_pages() { return 1; }
inline void learn_system_pages() {}
#else
inline constexpr bool kSystemPagesVary = true;
inline uint64_t nr_system_pages = 1;
inline uint64_t system_pages() { return nr_system_pages; }  // right once the window is reserved
inline void learn_system_pages() { nr_system_pages = page_size_bytes() >> kPageShift; }
#endif
inline size_t system_page_bytes() { return system_pages() << kPageShift; }
// To whole pages of the system, up and down.
inline uint64_t up_to_system(uint64_t pages) {
  if constexpr (kSystemPagesVary) return round_up(pages, system_pages());
  return pages;
}
inline uint64_t down_to_system(uint64_t pages) {
  if constexpr (kSystemPagesVary) return round_down(pages, system_pages());
  return pages;
}

// A huge page, and how many pages it is. (Where the system's own pages are larger, so are its huge ones, and the heap does without.)
inline constexpr uint64_t kHugeBytes = uint64_t{2} << 20;
inline constexpr uint64_t kRegionPages = kHugeBytes >> kPageShift;

class Window {
 public:
  constexpr Window() = default;

  // Reserves the window and its tables, for at most so many nodes: for one where address space is limited.
  // Requires: called once, before anything else. 0 or -ENOMEM.
  [[nodiscard]] int reserve_all(const System& system, uint32_t nr_nodes);

  // Before the page map, in one reservation with it: room for the table of the fast paths (cache_table.h), so that one pointer
  // leads them to both. Not opened by the window.
  static constexpr size_t kBeforeMapBytes = size_t{192} * 1024;
  PageRange before_map() const { return {reinterpret_cast<uintptr_t>(map_) - kBeforeMapBytes, kBeforeMapBytes}; }

  // ---- addresses
  uintptr_t base() const { return base_; }
  size_t size_bytes() const { return size_bytes_; }
  // Whether the address is in the window, and which page of it.
  bool page_of(const void* address, uint64_t* page) const {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - base_;
    *page = offset >> kPageShift;
    return offset < size_bytes_;
  }
  // The low 32 bits of the address's offset in the window.
  uint32_t offset_of(const void* address) const {
    return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(address) - base_);
  }
  void* address_of(uint64_t page) const { return reinterpret_cast<void*>(base_ + (page << kPageShift)); }
  uint32_t node_of_page(uint64_t page) const { return nr_nodes_ == 1 ? 0 : static_cast<uint32_t>(page / node_pages_); }
  uint32_t nr_nodes() const { return nr_nodes_; }
  uint64_t node_pages() const { return node_pages_; }
  PageRange range(uint64_t page, uint64_t nr_pages) const {
    return {base_ + (page << kPageShift), nr_pages << kPageShift};
  }

  // ---- the page map
  PageEntry entry(uint64_t page) const { return {load_relaxed(&map_[page].first_block), load_relaxed(&map_[page].shifted_kind)}; }
  const PageEntry* map() const { return map_; }
  // The span that the page belongs to, begins or ends. Requires: the page's kind is not kKindNone.
  uint32_t span_of(uint64_t page) const { return load_relaxed(&page_spans_[page]); }
  void set_entry(uint64_t page, uint32_t span, uint32_t kind, uint32_t first_block = 0) {
    store_relaxed(&page_spans_[page], span);
    store_relaxed(&map_[page].first_block, first_block);
    store_relaxed(&map_[page].shifted_kind, kind << kKindShift);
  }
  void clear_entries(uint64_t page, uint64_t nr_pages);

  // ---- regions. Whoever holds the lock of the page heap that they belong to.
  bool is_huge(uint64_t region) const { return huge_[region] != 0; }
  void set_huge(uint64_t region, bool huge) { huge_[region] = huge ? 1 : 0; }

  // Opens the part of the tables that is about these pages of the window; and the pages too. 0 or -errno.
  [[nodiscard]] int open_tables(uint64_t page, uint64_t nr_pages);
  [[nodiscard]] int open_pages(uint64_t page, uint64_t nr_pages);

  // Opens pages that were never open, or closed, with their part of the tables there; closes them, so that they are in no books of the
  // kernel's. Of what is lost the addresses are somebody else's. close(): as retire().
  enum class Opened : uint8_t { kYes, kNo, kLost };
  [[nodiscard]] Opened open_closed(uint64_t page, uint64_t nr_pages, NodeId node);
  [[nodiscard]] int close(uint64_t page, uint64_t nr_pages, NodeId node);
  // Whether nothing of the window is there but what is open: so all of it has to be opened by open_closed().
  bool by_pieces() const { return by_pieces_; }

  // ---- spans
  Span& span(uint32_t number) { return spans_[number]; }
  const Span& span(uint32_t number) const { return spans_[number]; }
  // 0 where there is no memory for one.
  [[nodiscard]] uint32_t take_span() PERCPU_EXCLUDES(spans_lock_);
  void give_span(uint32_t number) PERCPU_EXCLUDES(spans_lock_);

  // How many there can be in a window of so many pages.
  static uint64_t most_spans(uint64_t nr_pages, bool by_pieces = false);

  const System& system() const { return *system_; }
  size_t metadata_bytes() const { return load_relaxed(&metadata_bytes_); }
  HeapLock& spans_lock() PERCPU_RETURNS_LOCK(spans_lock_) { return spans_lock_; }

 private:
  // Records of spans: one a page in a small window; in a large one one for eight pages, which is half of the window in spans of
  // four, the shortest of most classes. They cost address space only; where that is limited, one for four pages, a hundredth of it.
  static constexpr uint64_t kSpansAtLeast = 1u << 24;
  static constexpr uint64_t kPagesOfSpan = 8;
  static constexpr uint64_t kSpansAtLeastByPieces = 1u << 12;
  static constexpr uint64_t kPagesOfSpanByPieces = 4;

  struct Tables {
    PageRange ranges[5];  // the window, the page map with what is before it, the pages' spans, the spans, the regions
  };
  bool reserve_tables(const System& system, size_t window_bytes, Tables* tables);
  void unreserve_tables(const System& system, const Tables& tables) const;
  int open_table(const void* table, size_t entry_bytes, uint64_t first, uint64_t count);

  const System* system_ = nullptr;
  uintptr_t base_ = 0;
  size_t size_bytes_ = 0;
  uint64_t node_pages_ = 0;
  uint32_t nr_nodes_ = 1;
  bool by_pieces_ = false;
  PageEntry* map_ = nullptr;
  uint32_t* page_spans_ = nullptr;
  Span* spans_ = nullptr;
  uint8_t* huge_ = nullptr;
  uint32_t max_spans_ = 0;
  size_t metadata_bytes_ = 0;
  HeapLock spans_lock_;
  uint32_t unused_spans_ PERCPU_GUARDED_BY(spans_lock_) = 0;  // a list
  uint32_t nr_spans_ PERCPU_GUARDED_BY(spans_lock_) = 1;      // number 0 means none
  size_t open_span_bytes_ PERCPU_GUARDED_BY(spans_lock_) = 0;
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_WINDOW_H
