// SPDX-License-Identifier: MIT
//
// The naive twin of a pool: a byte a fragment, a list of areas, no hints. It follows what the pool says it did, refuses
// what cannot be (an area over another one, a page given back under an area), and recomputes from its bytes every
// number that the pool keeps, for comparison. It shares no code with the pool but the definitions of its structs.
#ifndef PERCPU_TESTS_MODEL_REFERENCE_H
#define PERCPU_TESTS_MODEL_REFERENCE_H

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/pool_core.h"
#include "core/pool_state.h"

namespace percpu::model {

// One area map as plain bytes. Fragments and pages are counted from the start of the unit.
struct NaiveMap {
  uint32_t begin = 0;  // the fragments that the map owns: [begin, end)
  uint32_t end = 0;
  uint32_t page_begin = 0;  // the pages that it covers
  uint32_t page_end = 0;
  bool immutable = false;
  bool isolated = false;
  bool listed = true;                 // in some slot: not begun or retired
  std::vector<uint8_t> taken;         // by fragment of the unit; what the map does not own is taken
  std::vector<uint8_t> populated;     // by page of the unit
  std::map<uint32_t, uint32_t> areas;  // first fragment -> fragments; areas whose release is queued included
  std::set<uint32_t> queued;           // first fragments of those: not live any more

  // Of the map's own fragments.
  uint32_t free_fragments = 0;
  uint32_t largest_run = 0;
};

class Reference {
 public:
  // Follows a pool from its creation on. `storage` is the pool's.
  Reference(const PoolShape& shape, void* storage);

  // ---- what the pool did; each returns an empty string, or what is wrong with it -----------------------------------

  std::string took(const Area& area, Context context, Region region);
  void queued(const Area& area);
  std::string gave(const Area& area, const Released& released);
  std::string populated(ChunkId chunk, PageRun run);
  std::string depopulated(ChunkId chunk, PageRun run);
  std::string begun(ChunkId chunk);
  void published(ChunkId chunk);
  std::string retired(ChunkId chunk);
  void removed(ChunkId chunk);

  // ---- questions ----------------------------------------------------------------------------------------------------

  [[nodiscard]] bool exists(ChunkId chunk) const { return chunks_.count(chunk.value) != 0; }
  [[nodiscard]] uint32_t nr_chunks() const { return static_cast<uint32_t>(chunks_.size()); }
  [[nodiscard]] const NaiveMap& map_of(const Area& area) const;
  // Whether the area lies in the reserved part.
  [[nodiscard]] bool in_reserved(const Area& area) const;
  [[nodiscard]] uint32_t page_fragments() const { return page_fragments_; }
  [[nodiscard]] int64_t empty_populated() const;  // of the pool

  // Takes over which chunks the pool reintegrated in a step of balancing. Requires: a reason, which is checked.
  std::string follow_reintegration(bool reserve_was_low);

  // Before an allocation in the dynamic part with the smallest alignment: whether it has to succeed, and the lowest
  // slot of those whose chunk it may come from.
  struct Forecast {
    bool must_fit = false;
    uint32_t lowest_slot = UINT32_MAX;
  };
  [[nodiscard]] Forecast forecast(uint32_t want, Context context) const;

  // ---- comparisons: an empty string, or the first number that differs
  // ------------------------------------------------

  // The blocks of pages [page_begin, page_end) of a map, and the map's own record and counts.
  std::string compare_touched(ChunkId chunk, bool reserved, uint32_t page_begin, uint32_t page_end);
  std::string compare_chunk(ChunkId chunk);
  std::string compare_all();

 private:
  NaiveMap& naive(ChunkId chunk, bool reserved) { return reserved ? reserved_ : chunks_.at(chunk.value); }
  std::string compare_map(const NaiveMap& map, const AreaMap& real, uint32_t page_begin, uint32_t page_end) const;
  std::string compare_stats(const NaiveMap& map, const ChunkStats& stats) const;
  std::string compare_slot(const NaiveMap& map, const ChunkHead& head) const;
  [[nodiscard]] uint32_t due_slot(const NaiveMap& map) const;

  PoolShape shape_;
  PoolState* state_;
  uint32_t page_fragments_;
  NaiveMap reserved_;
  std::map<uint32_t, NaiveMap> chunks_;
};

}  // namespace percpu::model

#endif  // PERCPU_TESTS_MODEL_REFERENCE_H
