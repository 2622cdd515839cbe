// SPDX-License-Identifier: MIT
//
// How a block's record follows its bits. See block.h.
#include "core/block.h"

#include <algorithm>

namespace percpu {
namespace {

// Offers the free runs from `from` on to the record, in order, as long as one of them could be larger than the contig
// run.
void offer_from(Block& block, const uint64_t* words, uint32_t len, uint32_t from) {
  if (len - from <= block.contig_hint) return;
  uint32_t start = find_next_zero(words, from, len);
  while (start < len && len - start > block.contig_hint) {
    const uint32_t end = find_next_one(words, start, len);
    take_in(block, {start, end - start});
    start = find_next_zero(words, end, len);
  }
}

}  // namespace

Block scan_block(const uint64_t* words, uint32_t len) {
  Block block = taken_block(len);
  block.first_free = static_cast<uint16_t>(find_next_zero(words, 0, len));
  offer_from(block, words, len, block.first_free);
  block.left_free = static_cast<uint16_t>(find_next_one(words, 0, len));
  const uint32_t last_taken = find_last_one(words, 0, len);
  block.right_free = static_cast<uint16_t>(last_taken == len ? len : len - 1 - last_taken);
  return block;
}

uint32_t find_in_block(Block& block, const uint64_t* words, uint32_t len, uint32_t want, uint32_t align) {
  const std::optional<uint32_t> largest = largest_before_contig(block);
  uint32_t start = block.first_free;
  if (largest && want > *largest) start = block.contig_hint_start;
  Run passed{0, 0};
  for (;;) {
    const uint32_t place = round_up(start, align);
    const uint32_t end = find_next_one(words, start, std::min(len, place + want));
    if (end >= place + want) {
      // All runs before the contig run were passed by: now their largest is known.
      if (start >= block.contig_hint_start && block.scan_hint == 0 && passed.len != 0) set_scan(block, passed);
      return place;
    }
    if (end - start >= passed.len) passed = {start, end - start};
    start = find_next_zero(words, end, len);
  }
}

void block_took(Block& block, const uint64_t* words, uint32_t len, uint32_t begin, uint32_t end) {
  if (begin == block.first_free) block.first_free = static_cast<uint16_t>(find_next_zero(words, end, len));
  if (begin < block.left_free) block.left_free = static_cast<uint16_t>(begin);
  if (end > len - block.right_free) block.right_free = static_cast<uint16_t>(len - end);
  if (overlap(scan_run(block), begin, end)) drop_scan(block);

  const Run old = contig_run(block);
  if (!overlap(old, begin, end)) return;
  switch (break_contig(block, begin, end)) {
    case Broken::exact:
      break;
    case Broken::offer_behind:
      offer_from(block, words, len, old.end());
      break;
    case Broken::rescan:
      set_contig(block, {0, 0});
      offer_from(block, words, len, block.first_free);
      break;
  }
}

Run block_freed(Block& block, const uint64_t* words, uint32_t len, uint32_t begin, uint32_t end) {
  const Run contig = contig_run(block);
  if (contig.len != 0 && contig.end() == begin) {
    begin = contig.start;
  } else {
    const uint32_t taken = find_last_one(words, 0, begin);
    begin = taken == begin ? 0 : taken + 1;
  }
  if (contig.len != 0 && contig.start == end)
    end = contig.end();
  else
    end = find_next_one(words, end, len);

  if (begin == 0) block.left_free = static_cast<uint16_t>(end);
  if (end == len) block.right_free = static_cast<uint16_t>(len - begin);
  const Run run{begin, end - begin};
  take_in(block, run);
  return run;
}

}  // namespace percpu
