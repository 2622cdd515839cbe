// SPDX-License-Identifier: MIT
//
// The chunks of a pool, sorted into lists by their largest free run, so that a search begins at the fullest chunks that
// could fit. Slot numbers:
//
//   0                full chunks, and those put aside
//   1 .. n-1         by the largest run in bytes: 1..15 -> 1, 16..31 -> 2, 32..63 -> 3, and so on
//   sidelined   n    chunks that have been depopulated; searched after the size slots, before the free slot
//   free        n+1  chunks whose run is exactly a unit
//   to-depopulate    chunks whose empty pages are about to be given back; not searched
//
// A chunk is put aside, in slot 0, when a search in a low slot found no place in it: until its due slot changes, only
// small runs or badly aligned ones are there, and looking again and again would be a waste.
//
// Invariants:
//   - head.list is the slot whose list holds the chunk, kNoSlot where none does.
//   - head.due is the slot that the chunk's largest run deserves, as of the last relocate(); head.list equals it,
//     unless the chunk was put aside (list 0) or is isolated (list sidelined or to-depopulate, or none).
//   - bit s of `nonempty` is set if and only if list s has a chunk.
//   - free_chunks counts the chunks of the free slot that are not immutable.
//
// Locking: the map lock.
#ifndef PERCPU_CORE_SLOTS_H
#define PERCPU_CORE_SLOTS_H

#include <bit>
#include <cstdint>

#include "base/ids.h"
#include "base/index_list.h"
#include "core/chunk.h"
#include "core/pool_shape.h"

namespace percpu {

// Chunks of slots below this one are put aside when they fail a search.
inline constexpr uint32_t kFirstKeptSlot = 3;

// The slot for a largest run of this many bytes, for runs shorter than a unit.
[[nodiscard]] constexpr uint32_t slot_of_run(uint32_t run_bytes) {
  if (run_bytes == 0) return 0;
  const uint32_t width = static_cast<uint32_t>(std::bit_width(run_bytes));
  return width > 4 ? width - 3 : 1;
}

struct SlotTable {
  static constexpr uint32_t kMaxSlots = 32;

  IndexList lists[kMaxSlots];
  uint32_t nonempty;
  uint32_t free_chunks;
  uint32_t unit_bytes;

  [[nodiscard]] uint32_t sidelined() const { return slot_of_run(unit_bytes) + 1; }
  [[nodiscard]] uint32_t free() const { return sidelined() + 1; }
  [[nodiscard]] uint32_t to_depopulate() const { return sidelined() + 2; }
};
static_assert(slot_of_run(kMaxUnitBytes) + 4 <= SlotTable::kMaxSlots);

// A view of the table and of the chunks' heads.
class Slots {
 public:
  // Where in a list a chunk goes.
  enum class End : uint8_t { front, back };

  Slots(SlotTable& table, ChunkHead* heads) : table_(&table), heads_(heads) {}

  // The slot that the chunk's largest run deserves now.
  [[nodiscard]] uint32_t due(const ChunkHead& head) const {
    const uint32_t run_bytes = head.hints.contig_hint * kFragmentBytes;
    return run_bytes == table_->unit_bytes ? table_->free() : slot_of_run(run_bytes);
  }

  // The slot that a search for this many bytes starts at; a whole unit is looked for in the free slot only.
  [[nodiscard]] uint32_t first_searched(uint32_t size_bytes) const {
    return size_bytes == table_->unit_bytes ? table_->free() : slot_of_run(size_bytes);
  }

  // The lowest slot from `slot` to the free one that has a chunk. Returns: false where there is none.
  [[nodiscard]] bool next_searched(uint32_t& slot) const {
    const uint32_t searched = table_->nonempty & ((2u << table_->free()) - 1) & (~0u << slot);
    if (searched == 0) return false;
    slot = static_cast<uint32_t>(std::countr_zero(searched));
    return true;
  }

  // Puts a chunk that is in no list into the one it deserves, or into another.
  void insert(ChunkId chunk, End end);
  void insert_into(uint32_t slot, ChunkId chunk, End end);

  // Takes a chunk out of its list, if it is in one.
  void unlink(ChunkId chunk);

  // Moves a chunk whose largest run may have changed: to the front of its new slot when that is a higher one, to the
  // back otherwise. An isolated chunk stays where it is.
  void relocate(ChunkId chunk) {
    const ChunkHead& head = heads_[chunk.value];
    const uint32_t now = due(head);
    if (now != head.due && !head.isolated()) move(chunk, now, now > head.due ? End::front : End::back);
  }

  // Puts a chunk aside that failed a search.
  void put_aside(ChunkId chunk);

  // Moves a chunk to a list of the caller's choice.
  void move(ChunkId chunk, uint32_t slot, End end) {
    unlink(chunk);
    insert_into(slot, chunk, end);
  }

  // Iterates over a list; IndexList::kNone at the end.
  [[nodiscard]] uint32_t first(uint32_t slot) const { return table_->lists[slot].first(); }
  [[nodiscard]] uint32_t last(uint32_t slot) const { return table_->lists[slot].last(); }
  [[nodiscard]] uint32_t next(uint32_t chunk) const { return IndexList::next(heads_[chunk].link); }
  [[nodiscard]] uint32_t prev(uint32_t chunk) const { return IndexList::prev(heads_[chunk].link); }

 private:
  SlotTable* table_;
  ChunkHead* heads_;
};

}  // namespace percpu

#endif  // PERCPU_CORE_SLOTS_H
