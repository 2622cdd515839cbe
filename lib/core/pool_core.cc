// SPDX-License-Identifier: MIT
//
// A pool's storage and its chunks: laying out, making, destroying. See pool_core.h.
#include "core/pool_core.h"

#include "base/check.h"
#include "core/pool_state.h"

namespace percpu {
namespace {

// A chunk whose id was set aside: whole, wholly free, in no list.
void set_up_chunk(PoolState& state, ChunkId chunk) {
  ChunkHead& head = state.head(chunk);
  head = {};
  head.nr_blocks = state.shape.unit_size_bytes / state.shape.page_size_bytes;
  head.list = ChunkHead::kNoSlot;
  state.map(chunk).reset();
}

// One of the two maps of the first chunk, by its number, for the bytes [begin, end) of the unit: all of its pages are populated.
void set_up_part(PoolState& state, uint32_t index, uint32_t begin, uint32_t end) {
  const uint32_t page = state.shape.page_size_bytes;
  ChunkHead& head = state.reserved_head()[index];
  head = {};
  head.list = ChunkHead::kNoSlot;
  head.flags = ChunkHead::kImmutable;
  head.first_page = begin / page;
  if (begin < end) {
    head.nr_blocks = round_up(end, page) / page - head.first_page;
    head.lead = static_cast<uint16_t>(begin % page / kFragmentBytes);
    head.tail = static_cast<uint16_t>((round_up(end, page) - end) / kFragmentBytes);
  }
  AreaMap map = state.map(PoolState::Spot{index, 0});
  map.reset();
  if (begin < end) map.mark_populated({0, head.nr_blocks});
}

}  // namespace

// ---- storage --------------------------------------------------------------------------------------------------------

const char* PoolCore::refusal(const PoolShape& shape) {
  const uint32_t page = shape.page_size_bytes;
  if (page < kMinPageBytes || page > kMaxPageBytes || !is_power_of_two(page))
    return "the page size is not a power of two from 4 to 64 KiB";
  if (shape.unit_size_bytes == 0 || shape.unit_size_bytes > kMaxUnitBytes || shape.unit_size_bytes % page != 0)
    return "the unit size is not a multiple of the page size from 1 page to 1 GiB";
  if (shape.max_chunks == 0 || shape.max_chunks > kMaxChunks) return "the number of chunks is not from 1 to 2^24";
  if (shape.reserved_bytes % kFragmentBytes != 0) return "the reserved part is not a multiple of 4 bytes";
  const uint64_t parts = uint64_t{shape.static_bytes} + shape.reserved_bytes + shape.dynamic_bytes;
  if (parts > shape.unit_size_bytes) return "the unit is smaller than its parts";
  if (shape.empty_low_pages > shape.empty_high_pages) return "the low mark of empty pages is above the high mark";
  return nullptr;
}

void PoolState::lay_out(const PoolShape& wanted) {
  shape = wanted;
  shape.static_bytes = round_up(wanted.static_bytes, kFragmentBytes);
  const uint32_t rounding = shape.static_bytes - wanted.static_bytes;
  shape.dynamic_bytes = wanted.dynamic_bytes < rounding ? 0 : round_down(wanted.dynamic_bytes - rounding, kFragmentBytes);
  map_layout = MapLayout::of(shape.unit_size_bytes, shape.page_size_bytes);
  heads_offset = round_up<uint64_t>(id_bits_offset() + words_for_bits(shape.max_chunks) * uint64_t{8}, 64);
  const uint64_t nr_maps = uint64_t{shape.max_chunks} + 1;
  maps_offset = round_up<uint64_t>(heads_offset + nr_maps * sizeof(ChunkHead), shape.page_size_bytes);
  storage_bytes = round_up<uint64_t>(maps_offset + nr_maps * map_layout.size_bytes, shape.page_size_bytes);
}

uint64_t PoolCore::storage_bytes(const PoolShape& shape) {
  PoolState state{};
  state.lay_out(shape);
  return state.storage_bytes;
}

PoolCore PoolCore::create(void* zeroed_storage, const PoolShape& shape) {
  const char* wrong = refusal(shape);
  PERCPU_CHECK(wrong == nullptr, "expected the shape of a pool, found that %s", wrong);
  PoolState& state = *static_cast<PoolState*>(zeroed_storage);
  state.lay_out(shape);
  state.slots.unit_bytes = state.shape.unit_size_bytes;

  const ChunkId first{0};
  set_bit(state.id_bits(), first.value);
  set_up_part(state, 0, state.static_end(), state.reserved_end());
  set_up_part(state, 1, state.reserved_end(), state.dynamic_end());
  state.ids_end = 1;
  state.totals.chunks = 1;
  state.totals.peak_chunks = 1;
  state.totals.populated_pages = round_up(state.dynamic_end(), shape.page_size_bytes) / shape.page_size_bytes;
  state.totals.empty_populated_pages = state.head(first).empty_populated_pages;
  state.slot_lists().insert(first, Slots::End::front);
  state.magic = PoolState::kMagic;
  return PoolCore(&state);
}

PoolCore PoolCore::attach(void* storage) {
  PoolState* state = static_cast<PoolState*>(storage);
  PERCPU_CHECK(state->magic == PoolState::kMagic, "expected a pool's storage, found 0x%llx at its start",
               static_cast<unsigned long long>(state->magic));
  return PoolCore(state);
}

const PoolShape& PoolCore::shape() const { return state_->shape; }

// ---- chunks ---------------------------------------------------------------------------------------------------------

std::optional<ChunkId> PoolCore::begin_chunk() {
  PoolState& state = *state_;
  const uint32_t from = state.lowest_open_word * kWordBits;
  const uint32_t id = find_next_zero(state.id_bits(), from, state.shape.max_chunks);
  state.lowest_open_word = id / kWordBits;
  if (id == state.shape.max_chunks) return std::nullopt;
  set_bit(state.id_bits(), id);
  if (id >= state.ids_end) store_relaxed(&state.ids_end, id + 1);
  set_up_chunk(state, ChunkId{id});
  return ChunkId{id};
}

void PoolCore::publish_chunk(ChunkId chunk) {
  PoolTotals& totals = state_->totals;
  PERCPU_CHECK(state_->exists(chunk) && state_->head(chunk).list == ChunkHead::kNoSlot,
               "expected a chunk that was begun, found chunk %u in slot %u", chunk.value, state_->head(chunk).list);
  state_->slot_lists().insert(chunk, Slots::End::front);
  store_relaxed(&totals.chunks, totals.chunks + 1);
  if (totals.chunks > totals.peak_chunks) store_relaxed(&totals.peak_chunks, totals.chunks);
}

void PoolCore::abandon_chunk(ChunkId chunk) {
  PERCPU_CHECK(state_->exists(chunk) && state_->head(chunk).list == ChunkHead::kNoSlot,
               "expected a chunk that was begun, found chunk %u in slot %u", chunk.value, state_->head(chunk).list);
  const uint32_t word = chunk.value / kWordBits;
  state_->head(chunk) = {};
  clear_range(state_->id_bits(), chunk.value, chunk.value + 1);
  if (word < state_->lowest_open_word) state_->lowest_open_word = word;
}

void PoolCore::retire_chunk(ChunkId chunk) {
  ChunkHead& head = state_->head(chunk);
  PERCPU_CHECK(state_->exists(chunk) && !head.immutable() && state_->map(chunk).wholly_free(),
               "expected a wholly free chunk to destroy, found chunk %u with %u free fragments", chunk.value,
               head.free_fragments);
  state_->slot_lists().unlink(chunk);
  if (!head.isolated()) state_->add_empty_populated(-int64_t{head.empty_populated_pages});
  head.flags |= ChunkHead::kIsolated;
}

void PoolCore::uncount_chunk(ChunkId chunk) {
  ChunkHead& head = state_->head(chunk);
  PERCPU_CHECK(state_->exists(chunk) && head.list == ChunkHead::kNoSlot && !head.immutable(),
               "expected a retired chunk, found chunk %u in slot %u", chunk.value, head.list);
  PoolTotals& totals = state_->totals;
  store_relaxed(&totals.populated_pages, totals.populated_pages - head.populated_pages);
  store_relaxed(&totals.chunks, totals.chunks - 1);
  clear_range(state_->map(chunk).populated(), 0, head.nr_blocks);
  head.populated_pages = head.empty_populated_pages = 0;
}

void PoolCore::remove_chunk(ChunkId chunk) {
  uncount_chunk(chunk);
  abandon_chunk(chunk);
}

void PoolCore::lose_chunk(ChunkId chunk) {
  if (state_->head(chunk).isolated()) uncount_chunk(chunk);
  state_->head(chunk).flags |= ChunkHead::kLost;
}

StorageRange PoolCore::chunk_storage(ChunkId chunk) const {
  PoolState& state = *state_;
  const uint64_t page = state.shape.page_size_bytes;
  const uint64_t size = state.map_layout.size_bytes;
  // Map 0 is the reserved part's, map i + 1 that of chunk i. The first chunk always exists.
  const auto gone = [&](uint64_t map) { return map >= 2 && !state.exists(ChunkId{static_cast<uint32_t>(map - 1)}); };
  const uint64_t own = uint64_t{chunk.value} + 1;
  const auto page_is_free = [&](uint64_t begin) {  // counted from the start of the maps
    for (uint64_t map = begin / size; map <= state.shape.max_chunks && map * size < begin + page; ++map)
      if (!gone(map)) return false;
    return true;
  };
  uint64_t begin = own * size / page * page;
  uint64_t end = round_up<uint64_t>((own + 1) * size, page);
  if (!page_is_free(begin)) begin += page;
  if (end > begin && !page_is_free(end - page)) end -= page;
  if (end <= begin) return {};
  return {state.maps_offset + begin, end - begin};
}

std::array<StorageRange, 2> PoolCore::used_storage() const {
  const uint64_t page = state_->shape.page_size_bytes;
  const uint64_t nr_maps = uint64_t{load_relaxed(&state_->ids_end)} + 1;
  const uint64_t heads_end = round_up<uint64_t>(state_->heads_offset + nr_maps * sizeof(ChunkHead), page);
  return {StorageRange{0, heads_end},
          StorageRange{state_->maps_offset, round_up<uint64_t>(nr_maps * state_->map_layout.size_bytes, page)}};
}

bool PoolCore::chunk_exists(ChunkId chunk) const { return state_->exists(chunk) && !state_->head(chunk).lost(); }

bool PoolCore::chunk_lost(ChunkId chunk) const { return state_->exists(chunk) && state_->head(chunk).lost(); }

std::optional<ChunkId> PoolCore::next_chunk(ChunkId from) const {
  const uint32_t end = load_relaxed(&state_->ids_end);
  uint32_t id = find_next_one(state_->id_bits(), from.value, end);
  while (id < end && state_->head(ChunkId{id}).lost()) id = find_next_one(state_->id_bits(), id + 1, end);
  if (id >= end) return std::nullopt;
  return ChunkId{id};
}

}  // namespace percpu
