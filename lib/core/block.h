// SPDX-License-Identifier: MIT
//
// The search metadata of one block: one page's worth of fragments of an area map. A Block tells where the block's free
// runs are without a look at its bits; it is kept up to date by the changes themselves, and looks at the bits only
// where a change makes it forget something it needs.
//
// Invariants: those of run_hints.h, and
//   - left_free and right_free are the lengths of the free runs that touch the block's start and end.
//   - a block is wholly free if and only if contig_hint is its length.
//
// All positions are fragments from the block's start. `words` are the block's words of the alloc bitmap (bit set:
// taken); a block's length is a multiple of 64, so they are its own. A block takes 14 bytes.
#ifndef PERCPU_CORE_BLOCK_H
#define PERCPU_CORE_BLOCK_H

#include <cstdint>

#include "core/run_hints.h"

namespace percpu {

struct Block {
  uint16_t contig_hint;
  uint16_t contig_hint_start;
  uint16_t scan_hint;
  uint16_t scan_hint_start;
  uint16_t left_free;
  uint16_t right_free;
  uint16_t first_free;
  constexpr bool operator==(const Block&) const = default;
};
static_assert(sizeof(Block) == 14, "a block's record is part of what each page of memory costs");

// The record of a block that is wholly free, and of one that is wholly taken.
[[nodiscard]] constexpr Block free_block(uint32_t len) {
  const uint16_t all = static_cast<uint16_t>(len);
  return {all, 0, 0, 0, all, all, 0};
}
[[nodiscard]] constexpr Block taken_block(uint32_t len) { return {0, 0, 0, 0, 0, 0, static_cast<uint16_t>(len)}; }

[[nodiscard]] constexpr bool wholly_free(const Block& block, uint32_t len) { return block.contig_hint == len; }

// Recomputes a record from the bits.
[[nodiscard]] Block scan_block(const uint64_t* words, uint32_t len);

// Finds the first place in the block for `want` fragments aligned to `align`. Requires: it fits the contig run.
// Searches no further than the contig run; feeds the largest run that it passed over back into the record where the
// record had forgotten it. Returns: the place.
[[nodiscard]] uint32_t find_in_block(Block& block, const uint64_t* words, uint32_t len, uint32_t want, uint32_t align);

// Updates the record of a block of which [begin, end), free until now, was taken. Requires: the bits are set.
void block_took(Block& block, const uint64_t* words, uint32_t len, uint32_t begin, uint32_t end);

// The usual case of it, made short: the front was taken of a contig run that reaches the block's end, and the rest is
// still the largest run. Returns: whether that was the case.
[[nodiscard]] inline bool block_took_front(Block& block, uint32_t len, uint32_t begin, uint32_t end) {
  const uint32_t contig_end = uint32_t{block.contig_hint_start} + block.contig_hint;
  if (begin != block.contig_hint_start || contig_end != len || len - end <= block.scan_hint) return false;
  // No run but the scan run is known to lie before the contig run; there may be others unless that is the largest of
  // them.
  if (block.first_free != begin && block.scan_hint == 0) return false;
  if (block.first_free == begin) block.first_free = static_cast<uint16_t>(end);
  if (begin == 0) block.left_free = 0;
  block.contig_hint_start = static_cast<uint16_t>(end);
  block.contig_hint = block.right_free = static_cast<uint16_t>(len - end);
  return true;
}

// Updates the record of a block of which [begin, end), taken until now, became free. Requires: the bits are cleared.
// Returns: the run that it joined, inside the block.
Run block_freed(Block& block, const uint64_t* words, uint32_t len, uint32_t begin, uint32_t end);

}  // namespace percpu

#endif  // PERCPU_CORE_BLOCK_H
