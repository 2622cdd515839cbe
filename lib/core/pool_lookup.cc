// SPDX-License-Identifier: MIT
//
// What lies behind an offset: the lock-free questions. See pool_core.h.
#include "core/pool_core.h"
#include "core/pool_state.h"

namespace percpu {

// The first chunk's two maps may share a page, so exact bytes decide.
PoolState::Spot PoolState::locate_in_first(AreaOffset offset) {
  if (offset.bytes < static_end() || offset.bytes >= dynamic_end()) return {Spot::kNowhere, 0};
  const uint32_t map = offset.bytes < reserved_end() ? 0 : 1;
  const uint32_t first_byte = reserved_head()[map].first_page * shape.page_size_bytes;
  return {map, (offset.bytes - first_byte) / kFragmentBytes};
}

AreaMarks PoolCore::marks() const {
  const AreaMap first = state_->map(ChunkId{0});
  const uint32_t unit_words = state_->map_layout.bitmap_words;
  return {first.live(), first.live() - unit_words, state_->map_layout.size_bytes / sizeof(uint64_t), unit_words, first.marks()};
}

uint32_t PoolCore::area_size(ChunkId chunk, AreaOffset offset) const {
  const PoolState::Spot at = state_->locate(chunk, offset);
  return at ? (state_->map(at).area_end(at.fragment) - at.fragment) * kFragmentBytes : 0;
}

Finding PoolCore::classify(ChunkId chunk, AreaOffset offset) const {
  using Kind = Finding::Kind;
  if (!chunk_exists(chunk)) return {Kind::no_chunk, offset};
  if (offset.bytes >= state_->shape.unit_size_bytes) return {Kind::beyond_unit, offset};
  if (chunk.value == 0 && offset.bytes < state_->static_end()) return {Kind::in_static, offset};
  if (chunk.value == 0 && offset.bytes >= state_->dynamic_end()) return {Kind::beyond_parts, offset};

  const PoolState::Spot at = state_->locate(chunk, offset);
  if (!at) return {Kind::no_chunk, offset};  // it went meanwhile
  const AreaMap map = state_->map(at);
  const uint32_t fragment = at.fragment;
  const bool aligned = offset.bytes % kFragmentBytes == 0;
  if (!map.is_taken(fragment)) {
    if (!aligned) return {Kind::misaligned, offset};
    return {map.is_bound(fragment) ? Kind::already_freed : Kind::free_memory, offset};
  }
  const uint32_t begin = map.area_begin(fragment);
  const AreaOffset start{offset.bytes / kFragmentBytes * kFragmentBytes - (fragment - begin) * kFragmentBytes};
  if (map.is_live(begin)) return {begin == fragment && aligned ? Kind::live_start : Kind::inside_live, start};
  return {begin == fragment && aligned ? Kind::already_freed : Kind::inside_freed, start};
}

std::optional<AreaView> PoolCore::area_containing(ChunkId chunk, AreaOffset offset) const {
  const PoolState::Spot at = state_->locate(chunk, offset);
  if (!at) return std::nullopt;
  const AreaMap map = state_->map(at);
  if (!map.is_taken(at.fragment)) return std::nullopt;
  const uint32_t begin = map.area_begin(at.fragment);
  const uint32_t first_byte = map.head().first_page * state_->shape.page_size_bytes;
  return AreaView{{first_byte + begin * kFragmentBytes},
                  (map.area_end(begin) - begin) * kFragmentBytes,
                  map.is_live(begin),
                  at.reserved()};
}

PoolTotals PoolCore::totals() const {
  const PoolTotals& kept = state_->totals;
  return {load_relaxed(&kept.chunks), load_relaxed(&kept.peak_chunks), load_relaxed(&state_->slots.free_chunks),
          load_relaxed(&kept.populated_pages), load_relaxed(&kept.empty_populated_pages)};
}

}  // namespace percpu
