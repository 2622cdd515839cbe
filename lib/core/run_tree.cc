// SPDX-License-Identifier: MIT
//
// Keeping and walking the tree of runs. See run_tree.h.
#include "core/run_tree.h"

#include <algorithm>

namespace percpu {

RunNode join_runs(const RunNode& left, uint32_t left_span, const RunNode& right, uint32_t right_span, uint32_t border) {
  RunNode both;
  both.prefix = left.prefix == left_span ? left_span + right.prefix : left.prefix;
  both.suffix = right.suffix == right_span ? right_span + left.suffix : right.suffix;
  both.largest = left.largest;
  both.largest_start = left.largest_start;
  const auto offer = [&both](uint32_t len, uint32_t start) {
    if (len < both.largest || len == 0) return;
    if (len == both.largest && !better_aligned(start, both.largest_start)) return;
    both.largest = len;
    both.largest_start = start;
  };
  if (left.suffix != 0 && right.prefix != 0) offer(left.suffix + right.prefix, border - left.suffix);
  offer(right.largest, right.largest_start);
  return both;
}

uint32_t RunTree::top_level() const { return static_cast<uint32_t>(std::bit_width(nr_blocks_ - 1)); }

RunNode RunTree::leaf(uint32_t block) const {
  const Block& from = blocks_[block];
  return {from.left_free, from.right_free, from.contig_hint, (block << block_shift_) + from.contig_hint_start};
}

RunNode RunTree::node(Spot spot) const {
  while (spot.level != 0 && spot.border() >= nr_blocks_) spot = spot.left();
  return spot.level == 0 ? leaf(spot.index) : nodes_[spot.border() - 1];
}

RunNode RunTree::joined(Spot spot) const {
  const uint32_t border = spot.border();
  const uint32_t left_blocks = border - spot.first_block();
  const uint32_t right_blocks = std::min(left_blocks, nr_blocks_ - border);
  return join_runs(node(spot.left()), left_blocks << block_shift_, node(spot.right()), right_blocks << block_shift_,
                   border << block_shift_);
}

void RunTree::refresh(uint32_t begin, uint32_t end, bool all) {
  const uint32_t top = top_level();
  bool changed = true;
  for (uint32_t level = 1; level <= top && changed; ++level) {
    changed = all;
    for (uint32_t i = begin >> level; i <= (end - 1) >> level; ++i) {
      const Spot spot = {level, i};
      if (spot.border() >= nr_blocks_) {
        changed = true;  // it is its left child, which changed
        continue;
      }
      const RunNode now = joined(spot);
      RunNode& kept = nodes_[spot.border() - 1];
      if (kept == now) continue;
      kept = now;
      changed = true;
    }
  }
}

void RunTree::refresh_all_stale() {
  const StaleRange in = *stale_;
  *stale_ = {0, 0};
  for (uint32_t begin = find_next_one(stale_bits_, in.begin, in.end); begin < in.end;) {
    const uint32_t end = find_next_zero(stale_bits_, begin, in.end);
    clear_range(stale_bits_, begin, end);
    refresh(begin, end, false);
    begin = find_next_one(stale_bits_, end, in.end);
  }
}

RunNode RunTree::root() {
  refresh_stale();
  return node({top_level(), 0});
}

Run RunTree::largest_before(uint32_t position, Run before_in_block) {
  refresh_stale();
  const uint32_t block = position >> block_shift_;
  RunNode sum{0, 0, 0, 0};
  uint32_t span = 0;
  for (Spot spot = {top_level(), 0}; spot.level != 0;) {
    if (spot.border() > block) {
      spot = spot.left();
      continue;
    }
    const uint32_t left_span = (spot.border() - spot.first_block()) << block_shift_;
    sum = join_runs(sum, span, node(spot.left()), left_span, span);
    span += left_span;
    spot = spot.right();
  }
  const uint32_t rest = position - span;
  if (rest != 0) {
    const RunNode in_block{std::min<uint32_t>(blocks_[block].left_free, rest), 0, before_in_block.len,
                           before_in_block.start};
    sum = join_runs(sum, span, in_block, rest, span);
  }
  return {sum.largest_start, sum.largest};
}

std::optional<uint32_t> RunTree::wrong_border() const {
  for (uint32_t level = 1; level <= (nr_blocks_ == 0 ? 0 : top_level()); ++level) {
    for (uint32_t i = 0; i <= (nr_blocks_ - 1) >> level; ++i) {
      const Spot spot = {level, i};
      if (spot.border() >= nr_blocks_) continue;
      const uint32_t end = std::min((i + 1) << level, nr_blocks_);
      const bool stale = find_next_one(stale_bits_, spot.first_block(), end) != end;
      if (!stale && !(nodes_[spot.border() - 1] == joined(spot))) return spot.border();
    }
  }
  return std::nullopt;
}

}  // namespace percpu
