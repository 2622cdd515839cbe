// SPDX-License-Identifier: MIT
//
// The answers of PoolCore to questions about a pool: plain structs of numbers, no behaviour.
#ifndef PERCPU_CORE_POOL_REPORT_H
#define PERCPU_CORE_POOL_REPORT_H

#include <cstdint>

#include "base/ids.h"

namespace percpu {

// What was found at an offset that somebody gave us for the start of a live area.
struct Finding {
  enum class Kind : uint8_t {
    live_start,     // the start of a live area: nothing is wrong
    inside_live,    // inside the live area that starts at `start`
    already_freed,  // an area was freed here: its memory is free, or its release is still queued
    inside_freed,   // inside an area that starts at `start`, whose release is still queued
    free_memory,    // free memory
    misaligned,     // not a multiple of kFragmentBytes
    in_static,      // in the static part of the first chunk
    beyond_parts,   // in the first chunk, behind its parts
    beyond_unit,    // at or behind the end of the unit
    no_chunk,       // the chunk does not exist
  };
  Kind kind;
  AreaOffset start;  // of the area, for live_start, inside_live and inside_freed
};

// An area as seen from an offset inside it.
struct AreaView {
  AreaOffset start;
  uint32_t size_bytes;
  bool live;      // false: freed, its release is still queued
  bool reserved;  // it lies in the reserved part
};

struct PoolTotals {
  uint32_t chunks;              // existing now, the first one included
  uint32_t peak_chunks;
  uint32_t free_chunks;         // wholly free chunks that could be destroyed: not the first, none isolated
  uint64_t populated_pages;     // of one unit; times the number of units for memory
  int64_t empty_populated_pages;  // of chunks that are not isolated; see pool_core.h for when it is below zero
};

struct ChunkStats {
  uint32_t live_areas;              // those that were freed and not released yet do not count
  uint32_t live_bytes;
  uint32_t free_bytes;
  uint32_t first_free_bytes;        // offset of the first free fragment; the end of the map where it is full
  uint32_t largest_run_bytes;       // as the hint says: what a search for a place compares with
  uint32_t free_runs;
  uint32_t fragmentation_sum_bytes; // all free runs before the end of the last area
  uint32_t fragmentation_max_bytes; // the largest of them
  uint32_t smallest_area_bytes;     // 0 where there is no area
  uint32_t median_area_bytes;
  uint32_t largest_area_bytes;
  uint32_t pages;                   // of the map
  uint32_t populated_pages;
  int32_t empty_populated_pages;
  uint8_t slot;
  bool isolated;
  bool immutable;
};

// A number that is not what it should be.
struct Defect {
  const char* what;   // a constant string: which number
  int64_t expected;   // as recomputed
  int64_t found;      // as kept
  ChunkId chunk;
  bool reserved;      // in the reserved map of chunk 0
  PageIndex page;     // for what is kept by page
};

}  // namespace percpu

#endif  // PERCPU_CORE_POOL_REPORT_H
