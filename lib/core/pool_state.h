// SPDX-License-Identifier: MIT
//
// The head of a pool's storage, and where everything else lies in it. PoolCore's functions are written in terms of
// this.
//
//   offset 0    PoolState
//               a bit a chunk id: set while the chunk exists
//               the heads: [reserved map] [chunk 0] [chunk 1] ...
//               (page)  the maps: [reserved map] [chunk 0] [chunk 1] ...
//
// Invariants: what stands above `End of the constants` never changes after create() after create(). Chunk ids from ids_end on have heads and maps
// that nobody ever touched. The totals are what check() recomputes.
//
// Locking: the map lock, but for the constants; `totals`, `atomic_failed`, `ids_end` and the id bits are written with atomic
// stores and may be read without it.
#ifndef PERCPU_CORE_POOL_STATE_H
#define PERCPU_CORE_POOL_STATE_H

#include <cstddef>
#include <cstdint>
#include <optional>

#include "core/area_map.h"
#include "core/chunk.h"
#include "core/pool_core.h"
#include "core/slots.h"

namespace percpu {

struct PoolState {
  // An offset as its map sees it. Map 0 is that of the reserved part, map i + 1 that of chunk i.
  struct Spot {
    static constexpr uint32_t kNowhere = UINT32_MAX;
    uint32_t map;
    uint32_t fragment;
    [[nodiscard]] explicit operator bool() const { return map != kNowhere; }
    [[nodiscard]] bool reserved() const { return map == 0; }
  };

  uint64_t magic;
  PoolShape shape;  // static_bytes and dynamic_bytes as rounded
  MapLayout map_layout;
  uint64_t heads_offset;
  uint64_t maps_offset;
  uint64_t storage_bytes;
  // End of the constants.

  PoolTotals totals;       // free_chunks is kept in `slots`
  uint32_t atomic_failed;  // an allocation in atomic context failed since the last population
  uint32_t lowest_open_word;  // no chunk id in a word of the id bits before this one is unused
  uint32_t ids_end;           // behind the highest chunk id ever used
  SlotTable slots;

  static constexpr uint64_t kMagic = 0x706572'637075'3031;  // "percpu01"

  // Works the offsets out. Requires: nothing but a shape that is not refused.
  void lay_out(const PoolShape& wanted);

  [[nodiscard]] std::byte* base() { return reinterpret_cast<std::byte*>(this); }
  [[nodiscard]] uint64_t* id_bits() { return reinterpret_cast<uint64_t*>(base() + id_bits_offset()); }
  [[nodiscard]] ChunkHead* heads() { return reserved_head() + 1; }
  [[nodiscard]] ChunkHead* reserved_head() { return reinterpret_cast<ChunkHead*>(base() + heads_offset); }
  [[nodiscard]] ChunkHead& head(ChunkId chunk) { return heads()[chunk.value]; }
  [[nodiscard]] AreaMap map(ChunkId chunk) { return map_at(chunk.value + 1); }
  [[nodiscard]] AreaMap reserved_map() { return map_at(0); }
  [[nodiscard]] Slots slot_lists() { return Slots(slots, heads()); }

  [[nodiscard]] bool exists(ChunkId chunk) {
    return chunk.value < shape.max_chunks && test_bit(id_bits(), chunk.value);
  }

  // The map and fragment behind an offset: nowhere for a chunk that does not exist, and for what no map manages.
  // Context: lock-free.
  [[nodiscard]] Spot locate(ChunkId chunk, AreaOffset offset) {
    if (!exists(chunk) || offset.bytes >= shape.unit_size_bytes) return {Spot::kNowhere, 0};
    if (chunk.value == 0) return locate_in_first(offset);
    return {chunk.value + 1, offset.bytes / kFragmentBytes};
  }
  [[nodiscard]] AreaMap map(Spot spot) { return map_at(spot.map); }

  // Adds to the pool's count of empty populated pages.
  void add_empty_populated(int64_t pages) {
    store_relaxed(&totals.empty_populated_pages, totals.empty_populated_pages + pages);
  }

  // Takes a chunk out of the search and its empty pages out of the pool's count, or undoes that.
  void isolate(ChunkId chunk);
  void reintegrate(ChunkId chunk);

  // How many empty populated pages of a wholly free chunk a round of balancing gives back: those above the pool's high
  // mark, if they are worth the trouble. 0: none.
  [[nodiscard]] uint32_t pages_to_trim(const ChunkHead& of) const;

  [[nodiscard]] uint32_t static_end() const { return shape.static_bytes; }
  [[nodiscard]] uint32_t reserved_end() const { return static_end() + shape.reserved_bytes; }
  [[nodiscard]] uint32_t dynamic_end() const { return reserved_end() + shape.dynamic_bytes; }

 private:
  [[nodiscard]] static constexpr uint64_t id_bits_offset();
  [[nodiscard]] Spot locate_in_first(AreaOffset offset);
  [[nodiscard]] AreaMap map_at(uint32_t index) {
    return AreaMap(map_layout, reserved_head()[index], base() + maps_offset + index * map_layout.size_bytes);
  }
};

constexpr uint64_t PoolState::id_bits_offset() { return round_up<uint64_t>(sizeof(PoolState), 64); }

}  // namespace percpu

#endif  // PERCPU_CORE_POOL_STATE_H
