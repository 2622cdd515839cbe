// SPDX-License-Identifier: MIT
//
// The map of one chunk (the first chunk has two: its reserved and its dynamic part): which fragments are taken, where
// areas begin and end, which pages are populated, and the metadata that finds a place without reading all that.
//
//   metadata of one map:  | tree nodes | blocks | alloc bits | bound bits | live bits | bits by page |
//
//   alloc      bit a fragment: taken
//   bound      bit a fragment: an area begins here, or ended here. The bits of free fragments mean nothing: a free
//              leaves them as they are. The end of the map bounds its last area.
//   live       bit a fragment, in the order of live_marks.h: a live area starts there. Cleared by whoever frees the area,
//              ahead of the alloc bits. Starts at a cache line.
//   populated  bit a page
//   open       bit a page: its block has a free fragment
//   stale      bit a page: the tree has not seen the last change of its block
//
// The bitmaps have a bit for each fragment of a unit, and lie the same way in every chunk: a map that begins at a later page (of
// the first chunk, which has two) leaves the bits before it unused.
//
// A map that shares its first or last page with a neighbour covers the whole page; the neighbour's fragments
// (head.lead, head.tail) are taken and bounded, never live, and counted nowhere.
//
// Invariants: the hints of the blocks are exact, and so are those of the chunk, at the end of every function. (The
// specification lets the chunk's lag; thanks to the tree it costs little not to.)
//
// Locking: the map lock, but for the lock-free functions, which read bits only. The words that they read are written
// with relaxed atomic stores (alloc, bound), or atomic read-modify-writes (live).
#ifndef PERCPU_CORE_AREA_MAP_H
#define PERCPU_CORE_AREA_MAP_H

#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/bits.h"
#include "base/ids.h"
#include "core/block.h"
#include "core/chunk.h"
#include "core/live_marks.h"
#include "core/pool_shape.h"
#include "core/run_tree.h"

namespace percpu {

// Where the parts of a map's metadata lie; the same for all maps of a pool, sized for a whole unit. The nodes come
// first; the bitmaps follow each other.
struct MapLayout {
  uint32_t blocks_offset;  // bytes
  uint32_t alloc_offset;   // bytes
  uint32_t bitmap_words;   // of each of alloc, bound and live
  uint32_t page_words;     // of each of populated, open and stale
  uint32_t block_shift;    // log2 of the fragments of a block
  MarkOrder marks;
  uint64_t size_bytes;     // of one map's metadata, a multiple of a cache line

  [[nodiscard]] static MapLayout of(uint32_t unit_size_bytes, uint32_t page_size_bytes);
};

class AreaMap {
 public:
  AreaMap(const MapLayout& layout, ChunkHead& head, std::byte* metadata)
      : head_(&head),
        metadata_(metadata),
        unit_bits_(reinterpret_cast<uint64_t*>(metadata + layout.alloc_offset)),
        bitmap_words_(layout.bitmap_words),
        page_words_(layout.page_words),
        blocks_offset_(layout.blocks_offset),
        block_shift_(layout.block_shift),
        first_fragment_(head.first_page << layout.block_shift),
        marks_(layout.marks) {}

  // Sets a map up: wholly free, nothing populated. Requires: head.nr_blocks, lead and tail are set, and head.first_page was
  // when this was made; the alloc, live and populated bits are zero.
  void reset();

  // ---- sizes ------------------------------------------------------------------------------------------------------

  [[nodiscard]] uint32_t block_len() const { return 1u << block_shift_; }
  [[nodiscard]] uint32_t len() const { return head_->nr_blocks << block_shift_; }
  // The fragments that are the map's own: [begin, end).
  [[nodiscard]] uint32_t own_begin() const { return head_->lead; }
  [[nodiscard]] uint32_t own_end() const { return len() - head_->tail; }
  [[nodiscard]] bool wholly_free() const { return head_->free_fragments == own_end() - own_begin(); }

  // ---- taking and giving back --------------------------------------------------------------------------------------

  // Finds the first place guaranteed to fit `want` fragments, aligned to `align` fragments. `populated_only`: on
  // populated pages. Returns: its first fragment; nothing where none is known to fit.
  [[nodiscard]] std::optional<uint32_t> find(uint32_t want, uint32_t align, bool populated_only);

  // Takes [begin, begin + want), which is free, as one live area. Returns: how many blocks are wholly free no more.
  uint32_t take(uint32_t begin, uint32_t want);

  // Clears the live mark of the area that starts at `begin`. Returns: whether it was set. Context: lock-free.
  bool clear_live(uint32_t begin) { return atomic_clear_bit(live(), mark_of(begin)); }

  // Frees the area that starts at `begin`. Requires: it is taken, and live no more.
  struct Given {
    uint32_t len;
    uint32_t blocks_now_free;  // how many blocks became wholly free
  };
  Given give(uint32_t begin);

  // ---- looking -----------------------------------------------------------------------------------------------------

  // Context: lock-free, best effort unless the area concerned cannot change meanwhile.
  [[nodiscard]] bool is_live(uint32_t fragment) const { return test_bit(live(), mark_of(fragment)); }
  [[nodiscard]] bool is_taken(uint32_t fragment) const { return test_bit(alloc(), fragment); }
  [[nodiscard]] bool is_bound(uint32_t fragment) const { return test_bit(bound(), fragment); }
  // The end of the area that starts at `begin`.
  [[nodiscard]] uint32_t area_end(uint32_t begin) const { return find_next_one(bound(), begin + 1, len()); }
  // The start of the area that holds the taken `fragment`.
  [[nodiscard]] uint32_t area_begin(uint32_t fragment) const;

  // ---- pages: counted from the map's first one ---------------------------------------------------------------------

  [[nodiscard]] bool is_populated(uint32_t page) const { return test_bit(populated(), page); }
  [[nodiscard]] bool is_empty(uint32_t page) const { return percpu::wholly_free(blocks()[page], block_len()); }
  // The first run of unpopulated pages in [begin, end). Returns: pages [run.start, run.end()), or nothing.
  [[nodiscard]] std::optional<Run> next_unpopulated(uint32_t begin, uint32_t end) const;
  // Records that pages are populated, or no more. Requires: none of them was, or all were and are empty.
  void mark_populated(Run pages);
  void mark_depopulated(Run pages);

  // ---- the parts ---------------------------------------------------------------------------------------------------

  [[nodiscard]] ChunkHead& head() const { return *head_; }
  [[nodiscard]] RunNode* nodes() const { return reinterpret_cast<RunNode*>(metadata_); }
  [[nodiscard]] Block* blocks() const { return reinterpret_cast<Block*>(metadata_ + blocks_offset_); }
  [[nodiscard]] uint64_t* alloc() const { return unit_bits_ + first_fragment_ / kWordBits; }
  [[nodiscard]] uint64_t* bound() const { return alloc() + bitmap_words_; }
  // In the order of marks(), by the fragment's place in the unit.
  [[nodiscard]] uint64_t* live() const { return unit_bits_ + size_t{2} * bitmap_words_; }
  [[nodiscard]] MarkOrder marks() const { return marks_; }
  // Where in the unit the map begins, in fragments.
  [[nodiscard]] uint32_t first_fragment() const { return first_fragment_; }
  [[nodiscard]] uint64_t* populated() const { return unit_bits_ + size_t{3} * bitmap_words_; }
  [[nodiscard]] uint64_t* open() const { return populated() + page_words_; }
  [[nodiscard]] uint64_t* stale() const { return open() + page_words_; }
  [[nodiscard]] RunTree tree() const {
    return RunTree(blocks(), head_->nr_blocks, block_shift_, nodes(), &head_->stale, stale());
  }
  // The alloc words of one block.
  [[nodiscard]] const uint64_t* block_words(uint32_t block) const {
    return alloc() + (static_cast<size_t>(block) << block_shift_) / kWordBits;
  }

 private:
  [[nodiscard]] uint32_t mark_of(uint32_t fragment) const { return marks_.mark(first_fragment_ + fragment); }
  [[nodiscard]] std::optional<uint32_t> place_in_run(Run run, uint32_t want, uint32_t align, bool populated_only) const;
  [[nodiscard]] std::optional<uint32_t> place_in_block(uint32_t block, uint32_t want, uint32_t align,
                                                       bool populated_only);
  [[nodiscard]] bool update_block_took(uint32_t block, uint32_t begin, uint32_t end);
  [[nodiscard]] bool update_block_freed(uint32_t block, uint32_t begin, uint32_t end, Run* run);
  void update_hints_took(uint32_t begin, uint32_t end);
  void note_change(uint32_t block, bool was_open);
  [[nodiscard]] uint32_t first_free_from(uint32_t block) const;
  void rescan_hints();
  [[nodiscard]] Run largest_before_in_block(uint32_t fragment) const;
  [[nodiscard]] uint32_t extend_left(uint32_t begin) const;
  [[nodiscard]] uint32_t extend_right(uint32_t end) const;

  ChunkHead* head_;
  std::byte* metadata_;
  uint64_t* unit_bits_;
  uint32_t bitmap_words_;
  uint32_t page_words_;
  uint32_t blocks_offset_;
  uint32_t block_shift_;
  uint32_t first_fragment_;
  MarkOrder marks_;
};

}  // namespace percpu

#endif  // PERCPU_CORE_AREA_MAP_H
