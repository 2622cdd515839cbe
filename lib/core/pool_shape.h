// SPDX-License-Identifier: MIT
//
// What is fixed about a pool from its birth: the measures of its units, the parts of its first chunk, and how many
// empty populated pages it keeps in reserve. Everything about where its storage lies follows from this.
//
//   unit of the first chunk:   | static | reserved | dynamic | (unused to the end of the unit) |
//   unit of any other chunk:   |                   dynamic                                     |
#ifndef PERCPU_CORE_POOL_SHAPE_H
#define PERCPU_CORE_POOL_SHAPE_H

#include <cstdint>

namespace percpu {

// The smallest size and alignment of an area. One bit of the maps stands for this much.
inline constexpr uint32_t kFragmentBytes = 4;

struct PoolShape {
  uint32_t unit_size_bytes = 0;        // a multiple of the page size, at most kMaxUnitBytes
  uint32_t page_size_bytes = 4096;     // 4, 16 or 64 KiB (any power of two between them)
  uint32_t max_chunks = 0;             // at least 1; the first chunk is one of them
  uint32_t static_bytes = 0;           // rounded up to a fragment here; the dynamic part shrinks by that
  uint32_t reserved_bytes = 0;         // a multiple of a fragment; 0: no reserved part
  uint32_t dynamic_bytes = 0;          // of the first chunk
  uint32_t empty_low_pages = 2;        // fewer empty populated pages than this after a success: wake the balancer
  uint32_t empty_high_pages = 4;       // the balancer tops them up to this
};

inline constexpr uint32_t kMinPageBytes = 4096;
inline constexpr uint32_t kMaxPageBytes = 65536;
inline constexpr uint32_t kMaxUnitBytes = 1u << 30;
inline constexpr uint32_t kMaxChunks = 1u << 24;

}  // namespace percpu

#endif  // PERCPU_CORE_POOL_SHAPE_H
