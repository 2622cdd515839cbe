// SPDX-License-Identifier: MIT
//
// Taking and giving back in one map, and keeping its records in step. See area_map.h.
#include "core/area_map.h"

#include <algorithm>
#include <initializer_list>

#include "base/check.h"

namespace percpu {

MapLayout MapLayout::of(uint32_t unit_size_bytes, uint32_t page_size_bytes) {
  const uint32_t pages = unit_size_bytes / page_size_bytes;
  MapLayout layout;
  layout.block_shift = static_cast<uint32_t>(std::countr_zero(page_size_bytes / kFragmentBytes));
  layout.blocks_offset = RunTree::node_count(pages) * static_cast<uint32_t>(sizeof(RunNode));
  layout.alloc_offset = round_up<uint32_t>(layout.blocks_offset + pages * static_cast<uint32_t>(sizeof(Block)), 64);
  layout.bitmap_words = unit_size_bytes / kFragmentBytes / kWordBits;
  layout.marks = MarkOrder::of(unit_size_bytes / kFragmentBytes);
  layout.page_words = words_for_bits(pages);
  const uint64_t words = uint64_t{3} * layout.bitmap_words + uint64_t{3} * layout.page_words;
  layout.size_bytes = round_up<uint64_t>(layout.alloc_offset + words * 8, 64);
  return layout;
}

void AreaMap::reset() {
  head_->hints = {0, 0, 0, 0, len()};
  head_->free_fragments = own_end() - own_begin();
  head_->populated_pages = 0;
  head_->empty_populated_pages = 0;
  head_->stale = {0, 0};
  if (head_->nr_blocks == 0) return;

  std::fill_n(blocks(), head_->nr_blocks, free_block(block_len()));
  set_range(alloc(), 0, own_begin());
  set_range(alloc(), own_end(), len());
  set_bit(bound(), 0);
  if (own_begin() < len()) set_bit(bound(), own_begin());
  if (own_end() < len()) set_bit(bound(), own_end());
  const uint32_t last = head_->nr_blocks - 1;
  for (const uint32_t block : {0u, last}) blocks()[block] = scan_block(block_words(block), block_len());
  // What a neighbour has taken counts like an area: its pages are not populated yet.
  const int32_t shared = int32_t{!is_empty(0)} + int32_t{last != 0 && !is_empty(last)};
  head_->empty_populated_pages = -shared;

  clear_range(stale(), 0, head_->nr_blocks);
  set_range(open(), 0, head_->nr_blocks);
  for (const uint32_t block : {0u, last})
    if (blocks()[block].contig_hint == 0) clear_range(open(), block, block + 1);
  tree().build();
  head_->hints.first_free = first_free_from(0);
  rescan_hints();
}

// ---- finding a place ------------------------------------------------------------------------------------------------

std::optional<uint32_t> AreaMap::find(uint32_t want, uint32_t align, bool populated_only) {
  const Run contig = contig_run(head_->hints);
  if (!place_in(contig, want, align)) return std::nullopt;

  const std::optional<uint32_t> largest = largest_before_contig(head_->hints);
  if (largest && want > *largest) {
    if (const auto place = place_in_run(contig, want, align, populated_only)) return place;
  }
  const uint32_t first_block = head_->hints.first_free >> block_shift_;
  if (const auto place = place_in_block(first_block, want, align, populated_only)) return place;

  const auto fits = [&](Run run) { return place_in_run(run, want, align, populated_only); };
  if (const auto place = tree().find_first(want, fits)) {
    if (!place->inside_block) return place->position;
    return place_in_block(place->position, want, align, populated_only);
  }
  // The chunk's contig run may be the second of its size in a block whose own record prefers the other one.
  return place_in_run(contig, want, align, populated_only);
}

std::optional<uint32_t> AreaMap::place_in_run(Run run, uint32_t want, uint32_t align, bool populated_only) const {
  std::optional<uint32_t> place = place_in(run, want, align);
  while (place && populated_only) {
    const uint32_t page = *place >> block_shift_;
    const uint32_t page_end = ((*place + want - 1) >> block_shift_) + 1;
    const uint32_t missing = find_next_zero(populated(), page, page_end);
    if (missing == page_end) break;
    const uint32_t next = find_next_one(populated(), missing + 1, head_->nr_blocks) << block_shift_;
    if (next >= run.end()) return std::nullopt;
    place = place_in({next, run.end() - next}, want, align);
  }
  return place;
}

std::optional<uint32_t> AreaMap::place_in_block(uint32_t block, uint32_t want, uint32_t align, bool populated_only) {
  Block& record = blocks()[block];
  if (!place_in(contig_run(record), want, align)) return std::nullopt;
  if (populated_only && !is_populated(block)) return std::nullopt;
  return (block << block_shift_) + find_in_block(record, block_words(block), block_len(), want, align);
}

// ---- taking ---------------------------------------------------------------------------------------------------------

uint32_t AreaMap::take(uint32_t begin, uint32_t want) {
  const uint32_t end = begin + want;
  set_range(alloc(), begin, end);
  clear_range(bound(), begin + 1, end);
  set_bit(bound(), begin);
  if (end < len()) set_bit(bound(), end);
  head_->free_fragments -= want;

  const uint32_t first = begin >> block_shift_;
  const uint32_t last = (end - 1) >> block_shift_;
  uint32_t lost = 0;
  for (uint32_t block = first; block <= last; ++block) lost += update_block_took(block, begin, end);
  head_->empty_populated_pages -= static_cast<int32_t>(lost);

  update_hints_took(begin, end);
  (void)atomic_set_bit(live(), mark_of(begin));
  return lost;
}

// Updates the record of one block, which [begin, end) overlaps. Returns: whether it was wholly free.
bool AreaMap::update_block_took(uint32_t block, uint32_t begin, uint32_t end) {
  const uint32_t base = block << block_shift_;
  const uint32_t from = std::max(begin, base) - base;
  const uint32_t to = std::min(end - base, block_len());
  Block& record = blocks()[block];
  const bool was_free = percpu::wholly_free(record, block_len());
  if (to - from == block_len())
    record = taken_block(block_len());
  else if (!block_took_front(record, block_len(), from, to))
    block_took(record, block_words(block), block_len(), from, to);
  note_change(block, true);
  return was_free;
}

// Keeps what is known of a block outside its record in step.
void AreaMap::note_change(uint32_t block, bool was_open) {
  tree().touch(block);
  const bool is_open = blocks()[block].contig_hint != 0;
  if (is_open == was_open) return;
  if (is_open)
    set_bit(open(), block);
  else
    clear_range(open(), block, block + 1);
}

void AreaMap::update_hints_took(uint32_t begin, uint32_t end) {
  ChunkHints& hints = head_->hints;
  const Run old = contig_run(hints);
  if (begin == hints.first_free)
    hints.first_free = begin == old.start && end < old.end() ? end : first_free_from(end >> block_shift_);
  if (overlap(scan_run(hints), begin, end)) drop_scan(hints);

  if (!overlap(old, begin, end)) return;
  switch (break_contig(hints, begin, end)) {
    case Broken::exact:
      break;
    case Broken::offer_behind:
      if (old.end() < own_end()) rescan_hints();
      break;
    case Broken::rescan:
      rescan_hints();
      break;
  }
}

// The first free fragment in or behind a block; the end of the map where there is none.
uint32_t AreaMap::first_free_from(uint32_t block) const {
  const uint32_t found = find_next_one(open(), block, head_->nr_blocks);
  return found == head_->nr_blocks ? len() : (found << block_shift_) + blocks()[found].first_free;
}

// Finds the contig run, and the largest one before it, anew.
void AreaMap::rescan_hints() {
  ChunkHints& hints = head_->hints;
  const RunNode root = tree().root();
  set_contig(hints, root.largest == 0 ? Run{0, 0} : Run{root.largest_start, root.largest});
  drop_scan(hints);
  if (root.largest == 0 || hints.first_free == root.largest_start) return;
  set_scan(hints, tree().largest_before(root.largest_start, largest_before_in_block(root.largest_start)));
}

// The largest run of a fragment's block that lies before the fragment, which is the start of a run.
Run AreaMap::largest_before_in_block(uint32_t fragment) const {
  const uint32_t base = fragment & ~(block_len() - 1);
  const uint32_t end = fragment - base;
  const Block& record = blocks()[fragment >> block_shift_];
  if (end == 0 || record.first_free >= end) return {0, 0};
  if (record.contig_hint_start < end) return {base + record.contig_hint_start, record.contig_hint};
  if (record.contig_hint_start == end && record.scan_hint != 0 && record.scan_hint_start < end)
    return {base + record.scan_hint_start, record.scan_hint};

  const uint64_t* words = block_words(fragment >> block_shift_);
  Run largest{0, 0};
  for (uint32_t start = record.first_free; start < end;) {
    const uint32_t run_end = find_next_one(words, start, end);
    if (run_end - start >= largest.len) largest = {base + start, run_end - start};
    start = find_next_zero(words, run_end, end);
  }
  return largest;
}

// ---- giving back ----------------------------------------------------------------------------------------------------

AreaMap::Given AreaMap::give(uint32_t begin) {
  const uint32_t end = area_end(begin);
  clear_range(alloc(), begin, end);
  head_->free_fragments += end - begin;
  // A short cut on both sides: where the chunk's contig run begins or ends is known.
  const Run contig = contig_run(head_->hints);
  const bool joins_left = contig.len != 0 && contig.end() == begin;
  const bool joins_right = contig.len != 0 && contig.start == end;

  const uint32_t first = begin >> block_shift_;
  const uint32_t last = (end - 1) >> block_shift_;
  Run run{begin, end - begin};
  Given given{end - begin, 0};
  for (uint32_t block = first; block <= last; ++block)
    given.blocks_now_free += update_block_freed(block, begin, end, &run);
  head_->empty_populated_pages += static_cast<int32_t>(given.blocks_now_free);

  const uint32_t run_begin = joins_left ? contig.start : extend_left(run.start);
  const uint32_t run_end = joins_right ? contig.end() : extend_right(run.end());
  take_in(head_->hints, {run_begin, run_end - run_begin});
  return given;
}

// Updates the record of one block, which [begin, end) overlaps; widens `run` by what it joins inside the block.
// Returns: whether the block is wholly free now.
bool AreaMap::update_block_freed(uint32_t block, uint32_t begin, uint32_t end, Run* run) {
  const uint32_t base = block << block_shift_;
  const uint32_t from = std::max(begin, base) - base;
  const uint32_t to = std::min(end - base, block_len());
  Block& record = blocks()[block];
  const bool was_open = record.contig_hint != 0;
  if (to - from == block_len()) {
    record = free_block(block_len());
    note_change(block, was_open);
    return true;
  }
  const Run joined = block_freed(record, block_words(block), block_len(), from, to);
  note_change(block, was_open);
  const uint32_t run_begin = std::min(run->start, base + joined.start);
  const uint32_t run_end = std::max(run->end(), base + joined.end());
  *run = {run_begin, run_end - run_begin};
  return joined.len == block_len();
}

// The start of the free run that holds the free fragments before `begin`, as far as it crosses block borders there.
uint32_t AreaMap::extend_left(uint32_t begin) const {
  if ((begin & (block_len() - 1)) != 0) return begin;
  for (uint32_t block = begin >> block_shift_; block > 0; --block) {
    begin -= blocks()[block - 1].right_free;
    if (!is_empty(block - 1)) break;
  }
  return begin;
}

uint32_t AreaMap::extend_right(uint32_t end) const {
  if ((end & (block_len() - 1)) != 0) return end;
  for (uint32_t block = end >> block_shift_; block < head_->nr_blocks; ++block) {
    end += blocks()[block].left_free;
    if (!is_empty(block)) break;
  }
  return end;
}

// ---- looking, and pages ---------------------------------------------------------------------------------------------

uint32_t AreaMap::area_begin(uint32_t fragment) const {
  const uint32_t begin = find_last_one(bound(), 0, fragment + 1);
  return begin <= fragment ? begin : 0;
}

std::optional<Run> AreaMap::next_unpopulated(uint32_t begin, uint32_t end) const {
  const uint32_t first = find_next_zero(populated(), begin, end);
  if (first == end) return std::nullopt;
  return Run{first, find_next_one(populated(), first, end) - first};
}

void AreaMap::mark_populated(Run pages) {
  PERCPU_CHECK(pages.end() <= head_->nr_blocks && count_ones(populated(), pages.start, pages.end()) == 0,
               "expected unpopulated pages, found some populated in %u..%u of %u", pages.start, pages.end(),
               head_->nr_blocks);
  set_range(populated(), pages.start, pages.end());
  head_->populated_pages += pages.len;
  head_->empty_populated_pages += static_cast<int32_t>(pages.len);
}

void AreaMap::mark_depopulated(Run pages) {
  PERCPU_CHECK(pages.end() <= head_->nr_blocks && count_ones(populated(), pages.start, pages.end()) == pages.len,
               "expected populated pages, found others in %u..%u of %u", pages.start, pages.end(), head_->nr_blocks);
  clear_range(populated(), pages.start, pages.end());
  head_->populated_pages -= pages.len;
  head_->empty_populated_pages -= static_cast<int32_t>(pages.len);
}

}  // namespace percpu
