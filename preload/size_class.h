// SPDX-License-Identifier: MIT
//
// The sizes that small blocks come in: 8, then steps of 16 to 128, then eight steps a doubling to 32 KiB, so that a block
// is at most an eighth larger than what was asked for. Every class but the first is a multiple of 16.
//
// A span of a class is as many pages as give eight blocks, or as few as waste at most a sixteenth at its end.
#ifndef PERCPU_PRELOAD_SIZE_CLASS_H
#define PERCPU_PRELOAD_SIZE_CLASS_H

#include <cstddef>
#include <cstdint>

// On the way of every malloc and free: vanishes into its caller.
#define PRELOAD_HOT inline __attribute__((always_inline))

namespace percpu::heap {

// The grain of the heap: the page of the processor, or a multiple.
#if defined(__x86_64__)
inline constexpr uint32_t kPageShift = 12;
#else
inline constexpr uint32_t kPageShift = 16;
#endif
inline constexpr size_t kPageBytes = size_t{1} << kPageShift;

inline constexpr size_t kMaxSmallBytes = 32 * 1024;
inline constexpr uint32_t kNrClasses = 1 + 8 + 8 * 8;
inline constexpr uint32_t kMaxSpanBlocks = 1024;
inline constexpr uint32_t kMaxBatch = 64;

struct ClassInfo {
  uint32_t size_bytes = 0;
  uint32_t inverse = 0;      // ceil(2^32 / size): offset / size is offset * inverse >> 32, see block_index()
  uint32_t span_pages = 0;
  uint32_t span_blocks = 0;
  uint32_t batch = 0;        // how many blocks move between a CPU's cache and the central lists at once
  uint32_t cache_limit = 0;  // how many blocks a CPU's cache of this class holds at most
};

struct ClassTable {
  static constexpr uint32_t kFine = 1024;  // to here by 8, from here by 128
  ClassInfo info[kNrClasses];
  uint8_t of[kFine / 8 + 1 + (kMaxSmallBytes - kFine) / 128];

  static constexpr uint32_t index(size_t size_bytes) {
    return static_cast<uint32_t>(size_bytes <= kFine ? (size_bytes + 7) >> 3
                                                     : kFine / 8 + ((size_bytes - kFine + 127) >> 7));
  }

  constexpr ClassTable() : info(), of() {
    uint32_t n = 0;
    info[n++].size_bytes = 8;
    for (uint32_t size = 16; size <= 128; size += 16) info[n++].size_bytes = size;
    for (uint32_t base = 128; base < kMaxSmallBytes; base *= 2) {
      for (uint32_t step = 1; step <= 8; ++step) info[n++].size_bytes = base + base / 8 * step;
    }
    for (ClassInfo& entry : info) complete(entry);
    uint32_t at = 0;
    for (uint32_t i = 0; i < sizeof of; ++i) {
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
    entry.inverse = static_cast<uint32_t>(((uint64_t{1} << 32) + size - 1) / size);
    uint32_t pages = at_least(static_cast<uint32_t>(16 * 1024 / kPageBytes), 1);
    if (size * kMaxSpanBlocks < pages * kPageBytes) pages = at_least(static_cast<uint32_t>(size * kMaxSpanBlocks / kPageBytes), 1);
    while (pages * kPageBytes / size < 8 || pages * kPageBytes % size > pages * kPageBytes / 16) ++pages;
    entry.span_pages = pages;
    entry.span_blocks = at_most(static_cast<uint32_t>(pages * kPageBytes / size), kMaxSpanBlocks);
    entry.batch = at_most(at_least(16 * 1024 / size, 2), kMaxBatch);
    entry.cache_limit = at_most(at_least(64 * 1024 / size, 8), 1024);
  }
};

inline constexpr ClassTable kClasses{};

// Requires: size_bytes <= kMaxSmallBytes.
inline uint32_t class_of(size_t size_bytes) { return kClasses.of[ClassTable::index(size_bytes)]; }

// Which block of a span begins at or before this offset. Exact while offset * size < 2^32.
inline uint32_t block_index(uint32_t size_class, uint32_t offset_bytes) {
  return static_cast<uint32_t>(uint64_t{offset_bytes} * kClasses.info[size_class].inverse >> 32);
}

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_SIZE_CLASS_H
