// SPDX-License-Identifier: MIT
//
// Allocating and freeing areas, and the pages and slots that follow from it. See pool_core.h.
#include <algorithm>

#include "base/check.h"
#include "core/pool_core.h"
#include "core/pool_state.h"

namespace percpu {
namespace {

// Whether a chunk that an area was just freed from should give its empty pages back.
bool worth_reclaiming(const PoolState& state, const ChunkHead& head, bool wholly_free) {
  if (head.immutable()) return false;
  // A sidelined chunk that is wholly free has nothing to give back if its last area never got its pages; but a round of
  // balancing reintegrates it, so that it can be destroyed.
  if (head.isolated()) return head.list == state.slots.sidelined() && (head.empty_populated_pages > 0 || wholly_free);
  if (wholly_free || head.empty_populated_pages <= 0) return false;
  const int64_t own = head.empty_populated_pages;
  return own * 4 >= head.nr_blocks && state.totals.empty_populated_pages > state.shape.empty_high_pages + own;
}

// Takes an area of a chunk that a search reached. Returns: nothing where no place in it is known to fit.
std::optional<Area> take_from(PoolState& state, ChunkId chunk, uint32_t size_bytes, uint32_t align_bytes,
                              Context context) {
  const uint32_t want = size_bytes / kFragmentBytes;
  const uint32_t align = align_bytes / kFragmentBytes;
  ChunkHead& head = state.head(chunk);
  AreaMap map = state.map(chunk);
  Slots slots = state.slot_lists();
  const std::optional<uint32_t> place = map.find(want, align, context == Context::atomic);
  if (!place) {
    // Not for want of populated pages: then there is a place, for those who may populate it.
    const bool low = head.list < kFirstKeptSlot;
    if (low && (context == Context::normal || !map.find(want, align, false))) slots.put_aside(chunk);
    return std::nullopt;
  }
  if (head.isolated()) {
    state.reintegrate(chunk);
    state.add_empty_populated(-int64_t{map.take(*place, want)});
    slots.unlink(chunk);
    slots.insert(chunk, Slots::End::front);
  } else {
    state.add_empty_populated(-int64_t{map.take(*place, want)});
    slots.relocate(chunk);
  }
  const uint32_t offset = *place * kFragmentBytes + head.first_page * state.shape.page_size_bytes;
  return Area{chunk, {offset}, size_bytes};
}

std::optional<Area> take_from_reserved(PoolState& state, uint32_t size_bytes, uint32_t align_bytes) {
  AreaMap map = state.reserved_map();
  const uint32_t want = size_bytes / kFragmentBytes;
  const std::optional<uint32_t> place = map.find(want, align_bytes / kFragmentBytes, false);
  if (!place) return std::nullopt;
  map.take(*place, want);
  const uint32_t offset = *place * kFragmentBytes + map.head().first_page * state.shape.page_size_bytes;
  return Area{ChunkId{0}, {offset}, size_bytes};
}

}  // namespace

// ---- allocating -----------------------------------------------------------------------------------------------------

std::optional<Area> PoolCore::allocate(uint32_t size_bytes, uint32_t align_bytes, Context context, Region region) {
  PoolState& state = *state_;
  PERCPU_CHECK(size_bytes != 0 && size_bytes % kFragmentBytes == 0 && size_bytes <= state.shape.unit_size_bytes,
               "expected a size of whole fragments up to a unit, found %u", size_bytes);
  PERCPU_CHECK(is_power_of_two(align_bytes) && align_bytes >= kFragmentBytes &&
                   align_bytes <= state.shape.page_size_bytes,
               "expected an alignment from a fragment to a page, found %u", align_bytes);
  if (region == Region::reserved) return take_from_reserved(state, size_bytes, align_bytes);

  Slots slots = state.slot_lists();
  for (uint32_t slot = slots.first_searched(size_bytes); slots.next_searched(slot); ++slot) {
    for (uint32_t chunk = slots.first(slot); chunk != IndexList::kNone;) {
      const uint32_t next = slots.next(chunk);  // the chunk may be put aside
      if (const auto area = take_from(state, ChunkId{chunk}, size_bytes, align_bytes, context)) return area;
      chunk = next;
    }
  }
  if (context == Context::atomic) note_atomic_failure();
  return std::nullopt;
}

std::optional<PageRun> PoolCore::next_unpopulated_run(const Area& area) const {
  const PoolState::Spot at = state_->locate(area.chunk, area.offset);
  PERCPU_CHECK(at && state_->map(at).is_live(at.fragment), "expected a live area, found none at %u in chunk %u",
               area.offset.bytes, area.chunk.value);
  const AreaMap map = state_->map(at);
  const uint32_t shift = state_->map_layout.block_shift;
  const uint32_t last = (at.fragment + area.size_bytes / kFragmentBytes - 1) >> shift;
  const std::optional<Run> pages = map.next_unpopulated(at.fragment >> shift, last + 1);
  if (!pages) return std::nullopt;
  return PageRun{{pages->start + map.head().first_page}, pages->len};
}

void PoolCore::mark_populated(ChunkId chunk, PageRun run) {
  ChunkHead& head = state_->head(chunk);
  state_->map(chunk).mark_populated({run.first.value - head.first_page, run.count});
  if (!head.isolated()) state_->add_empty_populated(run.count);
  store_relaxed(&state_->totals.populated_pages, state_->totals.populated_pages + run.count);
}

void PoolCore::note_atomic_failure() { store_relaxed<uint32_t>(&state_->atomic_failed, 1); }

bool PoolCore::wants_populate() const {
  return load_relaxed(&state_->totals.empty_populated_pages) < state_->shape.empty_low_pages ||
         load_relaxed(&state_->atomic_failed) != 0;
}

// ---- freeing --------------------------------------------------------------------------------------------------------

bool PoolCore::clear_live(ChunkId chunk, AreaOffset offset) {
  if (offset.bytes % kFragmentBytes != 0) return false;
  const PoolState::Spot at = state_->locate(chunk, offset);
  return at && state_->map(at).clear_live(at.fragment);
}

uint32_t PoolCore::end_life(ChunkId chunk, AreaOffset offset) {
  if (offset.bytes % kFragmentBytes != 0) return 0;
  const PoolState::Spot at = state_->locate(chunk, offset);
  if (!at) return 0;
  AreaMap map = state_->map(at);
  return map.clear_live(at.fragment) ? (map.area_end(at.fragment) - at.fragment) * kFragmentBytes : 0;
}

Released PoolCore::release(ChunkId chunk, AreaOffset offset) {
  PoolState& state = *state_;
  const PoolState::Spot at = state.locate(chunk, offset);
  AreaMap map = state.map(at ? at : PoolState::Spot{0, 0});
  PERCPU_CHECK(at && map.is_taken(at.fragment) && map.is_bound(at.fragment) && !map.is_live(at.fragment),
               "expected an area whose live mark was cleared, found none at %u in chunk %u", offset.bytes, chunk.value);
  const AreaMap::Given given = map.give(at.fragment);
  Released released;
  released.size_bytes = given.len * kFragmentBytes;
  released.chunk_now_wholly_free = map.wholly_free();
  if (at.reserved()) return released;

  const ChunkHead& head = map.head();
  if (!head.isolated()) {
    state.add_empty_populated(given.blocks_now_free);
    state.slot_lists().relocate(chunk);
    if (released.chunk_now_wholly_free && !head.immutable())
      released.wake_balancer = state.slots.free_chunks >= 2 || state.pages_to_trim(head) != 0;
  }
  if (worth_reclaiming(state, head, released.chunk_now_wholly_free)) {
    state.isolate(chunk);
    released.isolated = true;
    released.wake_balancer = true;
  }
  return released;
}

// ---- isolation ------------------------------------------------------------------------------------------------------

void PoolState::isolate(ChunkId chunk) {
  ChunkHead& of = head(chunk);
  if (!of.isolated()) add_empty_populated(-int64_t{of.empty_populated_pages});
  of.flags |= ChunkHead::kIsolated;
  slot_lists().unlink(chunk);
  slot_lists().insert_into(slots.to_depopulate(), chunk, Slots::End::back);
}

// Leaves it to the caller where the chunk goes.
void PoolState::reintegrate(ChunkId chunk) {
  ChunkHead& of = head(chunk);
  add_empty_populated(of.empty_populated_pages);
  of.flags &= static_cast<uint8_t>(~ChunkHead::kIsolated);
}

uint32_t PoolState::pages_to_trim(const ChunkHead& of) const {
  if (of.list != slots.free() || of.immutable()) return 0;
  const int64_t high = shape.empty_high_pages;
  const int64_t excess = std::min<int64_t>(of.empty_populated_pages, totals.empty_populated_pages - high);
  const int64_t worth_it = std::min<int64_t>(of.nr_blocks / 4, 4 * high);
  return excess > worth_it ? static_cast<uint32_t>(excess) : 0;
}

}  // namespace percpu
