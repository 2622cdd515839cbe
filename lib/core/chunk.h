// SPDX-License-Identifier: MIT
//
// The head of a chunk: all that a search through the slots looks at before it looks into a chunk's map, in one cache
// line. The heads of all chunks lie side by side; the maps lie elsewhere (area_map.h). The reserved part of the first
// chunk has a head of its own, which is in no slot.
//
// Invariants: zeroed memory is the head of a chunk that does not exist.
#ifndef PERCPU_CORE_CHUNK_H
#define PERCPU_CORE_CHUNK_H

#include <cstdint>

#include "base/index_list.h"
#include "core/run_hints.h"
#include "core/run_tree.h"

namespace percpu {

struct ChunkHead {
  IndexLink link;       // in the list of its slot
  ChunkHints hints;     // of the whole map, fragments from its start
  uint32_t free_fragments;
  uint32_t populated_pages;
  int32_t empty_populated_pages;  // see pool_core.h
  StaleRange stale;     // where the map's tree is not up to date
  uint32_t first_page;  // the page of the unit at which the map starts
  uint32_t nr_blocks;   // one a page
  uint16_t lead;        // fragments of the first block that belong to the part before
  uint16_t tail;        // fragments of the last block that belong to the part behind
  uint8_t list;         // the slot in whose list it is; kNoSlot: in none
  uint8_t due;          // the slot that its largest run deserves
  uint8_t flags;
  uint8_t unused;

  static constexpr uint8_t kImmutable = 1;  // never destroyed nor depopulated
  static constexpr uint8_t kIsolated = 2;   // its empty populated pages are not in the pool's count
  static constexpr uint8_t kLost = 4;       // its addresses are somebody else's; only its id is left
  static constexpr uint8_t kNoSlot = 0xff;

  [[nodiscard]] bool immutable() const { return flags & kImmutable; }
  [[nodiscard]] bool isolated() const { return flags & kIsolated; }
  [[nodiscard]] bool lost() const { return flags & kLost; }
};
static_assert(sizeof(ChunkHead) == 64, "one cache line a chunk");

}  // namespace percpu

#endif  // PERCPU_CORE_CHUNK_H
