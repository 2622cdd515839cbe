// SPDX-License-Identifier: MIT
//
// Statistics of one map, by a walk over its bits. See pool_report.h for what the numbers mean.
#include <algorithm>
#include <array>
#include <numeric>

#include "core/pool_core.h"
#include "core/pool_state.h"

namespace percpu {
namespace {

// Calls on_free(run) and on_area(run) for all free runs and areas of a map, in order.
template <class OnFree, class OnArea>
void walk(const AreaMap& map, OnFree on_free, OnArea on_area) {
  const uint32_t end = map.own_end();
  for (uint32_t at = map.own_begin(); at < end;) {
    const bool taken = map.is_taken(at);
    const uint32_t next = taken ? std::min(map.area_end(at), end) : find_next_one(map.alloc(), at, end);
    if (taken)
      on_area(Run{at, next - at});
    else
      on_free(Run{at, next - at});
    at = next;
  }
}

// The length of the live area of this rank (0: the smallest). Narrows the lengths down by seven bits a walk, since
// there is no memory to sort in. Areas are born and die meanwhile, without a lock: where fewer are left the largest is meant; 0
// where none is.
uint32_t area_len_of_rank(const AreaMap& map, uint32_t rank) {
  constexpr uint32_t kDigitBits = 7;
  uint32_t prefix = 0;
  for (uint32_t shift = 28; shift > 0;) {
    shift -= kDigitBits;
    std::array<uint32_t, 1u << kDigitBits> counts{};
    walk(map, [](Run) {}, [&](Run area) {
      if (map.is_live(area.start) && (area.len >> (shift + kDigitBits)) == prefix)
        ++counts[(area.len >> shift) % counts.size()];
    });
    const uint32_t found = std::accumulate(counts.begin(), counts.end(), 0u);
    if (found == 0) return 0;
    rank = std::min(rank, found - 1);
    uint32_t digit = 0;
    while (rank >= counts[digit]) rank -= counts[digit++];
    prefix = prefix << kDigitBits | digit;
  }
  return prefix;
}
static_assert(kMaxUnitBytes / kFragmentBytes <= 1u << 28, "four digits of seven bits hold an area's length");

ChunkStats stats_of(const AreaMap& map, const PoolShape& shape) {
  const ChunkHead& head = map.head();
  ChunkStats stats{};
  uint32_t free_before_area = 0;
  walk(
      map,
      [&](Run run) {
        ++stats.free_runs;
        free_before_area = run.len * kFragmentBytes;
      },
      [&](Run area) {
        stats.fragmentation_sum_bytes += free_before_area;
        stats.fragmentation_max_bytes = std::max(stats.fragmentation_max_bytes, free_before_area);
        free_before_area = 0;
        if (!map.is_live(area.start)) return;
        const uint32_t bytes = area.len * kFragmentBytes;
        stats.smallest_area_bytes = stats.live_areas == 0 ? bytes : std::min(stats.smallest_area_bytes, bytes);
        stats.largest_area_bytes = std::max(stats.largest_area_bytes, bytes);
        stats.live_bytes += bytes;
        ++stats.live_areas;
      });
  if (stats.live_areas != 0)
    stats.median_area_bytes = std::clamp(area_len_of_rank(map, (stats.live_areas - 1) / 2) * kFragmentBytes, stats.smallest_area_bytes,
                                         stats.largest_area_bytes);
  stats.free_bytes = head.free_fragments * kFragmentBytes;
  stats.first_free_bytes =
      std::min(head.hints.first_free, map.own_end()) * kFragmentBytes + head.first_page * shape.page_size_bytes;
  stats.largest_run_bytes = head.hints.contig_hint * kFragmentBytes;
  stats.pages = head.nr_blocks;
  stats.populated_pages = head.populated_pages;
  stats.empty_populated_pages = head.empty_populated_pages;
  stats.slot = head.list;
  stats.isolated = head.isolated();
  stats.immutable = head.immutable();
  return stats;
}

}  // namespace

ChunkStats PoolCore::chunk_stats(ChunkId chunk) const { return stats_of(state_->map(chunk), state_->shape); }

std::optional<ChunkStats> PoolCore::reserved_stats() const {
  if (state_->shape.reserved_bytes == 0) return std::nullopt;
  return stats_of(state_->reserved_map(), state_->shape);
}

}  // namespace percpu
