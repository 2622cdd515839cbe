// SPDX-License-Identifier: MIT
#include "preload/heap/window.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/raw_syscall.h"
#include "os/file.h"

namespace percpu::heap {
namespace {

constexpr size_t kLargestWindow = size_t{16} << 40;
constexpr size_t kSmallestWindow = size_t{4} << 20;
// How far from others' mappings a window by pieces is, as a power of two, best first: a TiB, where there is so much.
constexpr int kDistanceBits[] = {40, 42, 44, 45, 46, 38, 36, 34, 32};
// Pieces in which the tables are opened.
constexpr size_t kMapPiece = 64 * 1024;
constexpr size_t kSpanPiece = 64 * 1024;  // of the records

// How much address space the process has taken already; 0 where that cannot be told.
size_t taken_bytes(const System& system) {
  char text[32];
  (void)read_beginning(system, "/proc/self/statm", text, sizeof text);
  return leading_number(text).value_or(0) * system_pages() << kPageShift;
}

// What is left under a limit of the address space (ulimit -v); SIZE_MAX: there is none.
size_t limited_bytes(const System& system) {
  rlimit limit{};
  const bool told = raw_syscall(SYS_prlimit64, 0, RLIMIT_AS, 0, reinterpret_cast<long>(&limit)) == 0;
  if (!told || limit.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
  const size_t taken = taken_bytes(system);
  return limit.rlim_cur > taken ? limit.rlim_cur - taken : 0;
}

// Where a window may be of which nothing is reserved: the kernel's own choices come down from the top, so well below them. `top`: one
// of these. 0: nowhere.
uintptr_t find_place(const System& system, size_t size_bytes, uintptr_t top) {
  for (const int bits : kDistanceBits) {
    const uintptr_t distance = uintptr_t{1} << bits;
    if (top <= distance || top - distance <= size_bytes + kHugeBytes) continue;
    const uintptr_t base = round_down(top - distance - size_bytes, uintptr_t{kHugeBytes});
    if (reserve_at(system, {base, kHugeBytes}) != 0) continue;
    (void)unreserve(system, {base, kHugeBytes});
    return base;
  }
  return 0;
}

}  // namespace

uint64_t Window::most_spans(uint64_t nr_pages, bool by_pieces) {
  if (by_pieces) return std::min(nr_pages, std::max(kSpansAtLeastByPieces, nr_pages / kPagesOfSpanByPieces));
  return std::min(nr_pages, std::max(kSpansAtLeast, nr_pages / kPagesOfSpan));
}

// All of them, or nothing; the window by pieces later, where that is so.
bool Window::reserve_tables(const System& system, size_t window_bytes, Tables* tables) {
  const size_t nr_pages = window_bytes >> kPageShift;
  struct Wanted {
    size_t size_bytes;
    size_t align_bytes;
  };
  const Wanted wanted[] = {{window_bytes, kHugeBytes},
                           {kBeforeMapBytes + round_up(nr_pages * sizeof *map_, kMapPiece), kMapPiece},
                           {round_up(nr_pages * sizeof *page_spans_, kMapPiece), kMapPiece},
                           {round_up(most_spans(nr_pages, by_pieces_) * sizeof *spans_, kSpanPiece), kSpanPiece},
                           {round_up(nr_pages / kRegionPages, kMapPiece), kMapPiece}};
  const size_t first = by_pieces_ ? 1 : 0;
  size_t got = first;
  for (; got < std::size(wanted); got++) {
    if (reserve(system, wanted[got].size_bytes, wanted[got].align_bytes, &tables->ranges[got]) != 0) break;
  }
  if (got == std::size(wanted)) {
    if (!by_pieces_) return true;
    PageRange& window = tables->ranges[0];
    window = {find_place(system, window_bytes, tables->ranges[1].start), window_bytes};
    if (window.start != 0) return true;
  }
  while (got-- > first) (void)unreserve(system, tables->ranges[got]);
  return false;
}

void Window::unreserve_tables(const System& system, const Tables& tables) const {
  for (size_t i = by_pieces_ ? 1 : 0; i < std::size(tables.ranges); i++) (void)unreserve(system, tables.ranges[i]);
}

int Window::reserve_all(const System& system, uint32_t nr_nodes) {
  learn_system_pages();
  system_ = &system;
  const size_t limited = limited_bytes(system);
  by_pieces_ = limited != SIZE_MAX;
  // Parts of what is limited would be the largest block that there can be.
  nr_nodes_ = by_pieces_ ? 1 : nr_nodes;
  const size_t unit = kHugeBytes * nr_nodes_;
  size_t size = std::min(limited, kLargestWindow) / unit * unit;
  Tables tables;
  while (size >= kSmallestWindow && !reserve_tables(system, size, &tables)) size = size / 2 / unit * unit;
  if (size < kSmallestWindow) return -ENOMEM;
  auto& [window, map, page_spans, spans, huge] = tables.ranges;
  // The map must be readable for every address that free() is called with.
  if (const int result = system.mprotect(map.start, map.size_bytes, PROT_READ); result != 0) {
    unreserve_tables(system, tables);
    return result;
  }
  max_spans_ = static_cast<uint32_t>(most_spans(size >> kPageShift, by_pieces_));
  base_ = window.start;
  map_ = reinterpret_cast<PageEntry*>(map.start + kBeforeMapBytes);
  page_spans_ = reinterpret_cast<uint32_t*>(page_spans.start);
  spans_ = reinterpret_cast<Span*>(spans.start);
  huge_ = reinterpret_cast<uint8_t*>(huge.start);
  node_pages_ = (size >> kPageShift) / nr_nodes_;
  size_bytes_ = size;
  return 0;
}

void Window::clear_entries(uint64_t page, uint64_t nr_pages) {
  memset(static_cast<void*>(&map_[page]), 0, nr_pages * sizeof *map_);
}

// Opens the part of a table that has these entries.
int Window::open_table(const void* table, size_t entry_bytes, uint64_t first, uint64_t count) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(table);
  const uintptr_t begin = round_down(start + first * entry_bytes, uintptr_t{kMapPiece});
  const uintptr_t end = round_up(start + (first + count) * entry_bytes, kMapPiece);
  return open_range(*system_, {begin, end - begin});
}

int Window::open_tables(uint64_t page, uint64_t nr_pages) {
  if (const int result = open_table(map_, sizeof *map_, page, nr_pages); result != 0) return result;
  if (const int result = open_table(page_spans_, sizeof *page_spans_, page, nr_pages); result != 0) return result;
  const uint64_t region = page / kRegionPages;
  const uint64_t nr_regions = (page + nr_pages - 1) / kRegionPages - region + 1;
  if (const int result = open_table(huge_, sizeof *huge_, region, nr_regions); result != 0) return result;
  __atomic_fetch_add(&metadata_bytes_, nr_pages * (sizeof *map_ + sizeof *page_spans_), __ATOMIC_RELAXED);
  return 0;
}

int Window::open_pages(uint64_t page, uint64_t nr_pages) {
  const int result = open_tables(page, nr_pages);
  return result != 0 ? result : open_dumped(*system_, range(page, nr_pages));
}

Window::Opened Window::open_closed(uint64_t page, uint64_t nr_pages, NodeId node) {
  const PageRange pages = range(page, nr_pages);
  if (!by_pieces_) {
    if (open_dumped(*system_, pages) == 0) return Opened::kYes;
    // Where it was several mappings some may be open now.
    return retire(*system_, pages, node) == -ENOMEM ? Opened::kLost : Opened::kNo;
  }
  const int result = reserve_at(*system_, pages);
  if (result != 0) return result == -EEXIST ? Opened::kLost : Opened::kNo;
  (void)bind(*system_, pages, node);
  if (open_dumped(*system_, pages) == 0) return Opened::kYes;
  return unreserve(*system_, pages) != 0 ? Opened::kLost : Opened::kNo;
}

int Window::close(uint64_t page, uint64_t nr_pages, NodeId node) {
  const PageRange pages = range(page, nr_pages);
  if (!by_pieces_) return retire(*system_, pages, node);
  if (unreserve(*system_, pages) == 0) return kRetired;
  const int result = depopulate(*system_, pages);  // one mapping more would be too many
  return result == 0 ? kOnlyDepopulated : result;
}

uint32_t Window::take_span() {
  HeapGuard guard(spans_lock_);
  if (const uint32_t number = unused_spans_; number != 0) {
    unused_spans_ = spans_[number].next;
    return number;
  }
  if (nr_spans_ >= max_spans_) return 0;
  if ((nr_spans_ + 1) * sizeof *spans_ > open_span_bytes_) {
    if (open_range(*system_, {reinterpret_cast<uintptr_t>(spans_) + open_span_bytes_, kSpanPiece}) != 0) return 0;
    open_span_bytes_ += kSpanPiece;
    __atomic_fetch_add(&metadata_bytes_, kSpanPiece, __ATOMIC_RELAXED);
  }
  return nr_spans_++;
}

void Window::give_span(uint32_t number) {
  HeapGuard guard(spans_lock_);
  spans_[number].state = SpanState::kUnused;
  spans_[number].next = unused_spans_;
  unused_spans_ = number;
}

}  // namespace percpu::heap
