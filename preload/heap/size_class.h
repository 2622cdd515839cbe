// SPDX-License-Identifier: MIT
//
// The sizes that small blocks come in: 8, then steps of 16 to 128, then eight steps a doubling to 32 KiB, so that a block
// of more than 128 bytes is at most an eighth larger than what was asked for. Every class but the first is a multiple of 16.
//
// A span of a class is as many pages as give eight blocks, or as few as waste at most a sixteenth. What is left over lies at
// its beginning: so one multiplication tells whether a block begins at an offset, see begins_block().
//
// A *lane* is a class on a node: what blocks of one lane have in common is where they go back to. A *kind* is what the page map
// says of a page: none, large, free, or a lane.
#ifndef PERCPU_PRELOAD_HEAP_SIZE_CLASS_H
#define PERCPU_PRELOAD_HEAP_SIZE_CLASS_H

#include <cstddef>
#include <cstdint>

// On the way of every malloc and free: vanishes into its caller.
#define PRELOAD_HOT inline __attribute__((always_inline))

namespace percpu::heap {

// The grain of the heap: the smallest page that a processor has. (The system's may be larger: see window.h.)
inline constexpr uint32_t kPageShift = 12;
inline constexpr size_t kPageBytes = size_t{1} << kPageShift;

inline constexpr size_t kLineBytes = 64;  // of the processor's caches
inline constexpr size_t kMaxSmallBytes = 32 * 1024;
inline constexpr uint32_t kNrClasses = 1 + 8 + 8 * 8;
inline constexpr uint32_t kMaxSpanBlocks = 1024;
inline constexpr uint32_t kMaxBatch = 64;

inline constexpr uint32_t kMaxHeapNodes = 8;
inline constexpr uint32_t kMaxLanes = kMaxHeapNodes * kNrClasses;
constexpr uint32_t lane_of(uint32_t node, uint32_t size_class) { return node * kNrClasses + size_class; }
constexpr uint32_t class_of_lane(uint32_t lane) { return lane % kNrClasses; }
constexpr uint32_t node_of_lane(uint32_t lane) { return lane / kNrClasses; }

inline constexpr uint32_t kKindNone = 0;   // nothing begins here
inline constexpr uint32_t kKindLarge = 1;  // the first page of a large block
inline constexpr uint32_t kKindFree = 2;   // the first or last page of a free span
inline constexpr uint32_t kKindLane = 3;   // and the lane: a page of a span of blocks
inline constexpr uint32_t kMaxKinds = kKindLane + kMaxLanes;

// What the page map says of a page.
inline constexpr uint32_t kKindShift = 4;
struct PageEntry {
  uint32_t first_block = 0;   // of the page's span: its offset in the window, modulo 2^32. Pages of lanes only
  uint32_t shifted_kind = 0;  // kind << kKindShift: where what belongs to the kind lies in the tables of free()

  uint32_t kind() const { return shifted_kind >> kKindShift; }
};

struct ClassInfo {
  uint32_t size_bytes = 0;
  uint64_t inverse = 0;      // ceil(2^64 / size), see block_index() and begins_block()
  uint32_t span_pages = 0;
  uint32_t span_blocks = 0;
  uint32_t span_lead = 0;    // bytes before a span's first block
  uint32_t batch = 0;        // how many blocks move between a CPU's cache and the central lists at once
  uint32_t cache_limit = 0;  // how many blocks a CPU's cache of this class holds at most
};

struct ClassTable {
  static constexpr uint32_t kFine = 1024;  // to here by 8, from here by 128
  ClassInfo info[kNrClasses];
  static constexpr uint32_t kEntries = kFine / 8 + 1 + (kMaxSmallBytes - kFine) / 128;
  uint8_t of[kEntries];

  static constexpr size_t index(size_t size_bytes) {
    return size_bytes <= kFine ? fine_index(size_bytes) : kFine / 8 + coarse_index(size_bytes);
  }
  // The same, for sizes up to kFine.
  static constexpr size_t fine_index(size_t size_bytes) { return (size_bytes + 7) >> 3; }
  // For those above; from 1 on.
  static constexpr size_t coarse_index(size_t size_bytes) { return (size_bytes - kFine + 127) >> 7; }
  static constexpr size_t kCoarseEntries = (kMaxSmallBytes - kFine) / 128 + 1;

  constexpr ClassTable() : info(), of() {
    uint32_t n = 0;
    info[n++].size_bytes = 8;
    for (uint32_t size = 16; size <= 128; size += 16) info[n++].size_bytes = size;
    for (uint32_t base = 128; base < kMaxSmallBytes; base *= 2) {
      for (uint32_t step = 1; step <= 8; ++step) info[n++].size_bytes = base + base / 8 * step;
    }
    for (ClassInfo& entry : info) complete(entry);
    uint32_t at = 0;
    for (uint32_t i = 0; i < kEntries; ++i) {
      const size_t largest = i <= kFine / 8 ? i * 8 : kFine + (i - kFine / 8) * 128;
      while (info[at].size_bytes < largest) ++at;
      of[i] = static_cast<uint8_t>(at);
    }
  }

 private:
  static constexpr uint32_t at_least(uint32_t value, uint32_t low) { return value < low ? low : value; }
  static constexpr uint32_t at_most(uint32_t value, uint32_t high) { return value > high ? high : value; }

  static constexpr void complete(ClassInfo& entry) {
    const uint32_t size = entry.size_bytes;
    entry.inverse = ~uint64_t{0} / size + 1;
    uint32_t pages = at_least(static_cast<uint32_t>(16 * 1024 / kPageBytes), 1);
    if (size * kMaxSpanBlocks < pages * kPageBytes) pages = at_least(static_cast<uint32_t>(size * kMaxSpanBlocks / kPageBytes), 1);
    while (pages * kPageBytes / size < 8 || pages * kPageBytes % size > pages * kPageBytes / 16) ++pages;
    entry.span_pages = pages;
    entry.span_blocks = at_most(static_cast<uint32_t>(pages * kPageBytes / size), kMaxSpanBlocks);
    entry.span_lead = static_cast<uint32_t>(pages * kPageBytes) - entry.span_blocks * size;
    entry.batch = at_most(at_least(16 * 1024 / size, 4), kMaxBatch);
    entry.cache_limit = at_most(at_least(64 * 1024 / size, 16), 1024);
  }
};

inline constexpr ClassTable kClasses{};

// What begins_block() needs to refuse every address in the lead.
constexpr bool leads_are_short() {
  for (const ClassInfo& info : kClasses.info) {
    if (info.span_lead + 1 >= info.size_bytes) return false;
  }
  return true;
}
static_assert(leads_are_short());

// Requires: size_bytes <= kMaxSmallBytes.
inline uint32_t class_of(size_t size_bytes) { return kClasses.of[ClassTable::index(size_bytes)]; }

// Which block begins at this offset from a span's first block.
inline uint32_t block_index(uint32_t size_class, uint32_t offset_bytes) {
  return static_cast<uint32_t>(static_cast<unsigned __int128>(kClasses.info[size_class].inverse) * offset_bytes >> 64);
}

// Whether a block begins at this offset from a span's first block. (An address in the lead has a negative offset, and none
// begins there.) offset * ceil(2^64 / size), modulo 2^64, is smaller than ceil(2^64 / size) exactly for multiples of the
// size (Lemire, Kaser and Kurz, "Faster remainder by direct computation", 2019). An inverse of 0 says no to every offset.
PRELOAD_HOT bool begins_block(int32_t offset_bytes, uint64_t inverse) {
  return static_cast<uint64_t>(int64_t{offset_bytes}) * inverse < inverse;
}

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_SIZE_CLASS_H
