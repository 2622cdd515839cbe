// SPDX-License-Identifier: MIT
//
// A tree over the blocks of one map that joins their runs across block borders. It answers in a number of steps that
// grows with the logarithm of the number of blocks: which is the largest free run of the map, which is the first one
// that fits a request, which is the largest before a place. Without it each of these would walk all blocks.
//
//   level 0    block 0   block 1   block 2   block 3   block 4      (the blocks' own records)
//   level 1    [   join 0:1    ]   [   join 2:3    ]   [ block 4 ]
//   level 2    [            join 1:2               ]   [ block 4 ]
//   level 3    [                       join 3:4                 ]    (the root)
//
// Node i of level k stands for the blocks from i << k to before (i + 1) << k, as far as they exist. A node without a
// right child is its left child and not stored. A stored node is found by its border, the first block of its right
// child: it lies at border - 1, so n blocks have n - 1 nodes.
//
// Invariants: every node is what joining its children gives, except above stale blocks: those that changed since the
// tree was last asked. A change only marks its block stale; the nodes above are recomputed when the next question is
// asked. Most allocations and frees ask nothing.
#ifndef PERCPU_CORE_RUN_TREE_H
#define PERCPU_CORE_RUN_TREE_H

#include <cstdint>
#include <optional>

#include "core/block.h"
#include "core/run_hints.h"

namespace percpu {

// What a stretch of blocks offers to its neighbours and as a whole. Lengths and positions in fragments; positions from
// the map's start.
struct RunNode {
  uint32_t prefix;         // free run that touches its start
  uint32_t suffix;         // free run that touches its end
  uint32_t largest;        // largest free run inside it
  uint32_t largest_start;  // where that starts: of several, a best aligned one
  constexpr bool operator==(const RunNode&) const = default;
};
static_assert(sizeof(RunNode) == 16);

// Joins two neighbouring stretches of the given lengths, the right one of which starts at `border`.
[[nodiscard]] RunNode join_runs(const RunNode& left, uint32_t left_span, const RunNode& right, uint32_t right_span,
                                uint32_t border);

// Where the stale blocks are: all lie in [begin, end), empty where there is none.
struct StaleRange {
  uint32_t begin;
  uint32_t end;
};

// A view of a tree: where its parts are. Cheap to make, holds no state of its own.
class RunTree {
 public:
  // `stale_bits` has a bit a block.
  RunTree(const Block* blocks, uint32_t nr_blocks, uint32_t block_shift, RunNode* nodes, StaleRange* stale,
          uint64_t* stale_bits)
      : blocks_(blocks),
        nodes_(nodes),
        stale_(stale),
        stale_bits_(stale_bits),
        nr_blocks_(nr_blocks),
        block_shift_(block_shift) {}

  // How many nodes are stored above this many blocks.
  [[nodiscard]] static constexpr uint32_t node_count(uint32_t nr_blocks) { return nr_blocks == 0 ? 0 : nr_blocks - 1; }

  // Computes every node. Requires: at least one block. The nodes may hold anything before.
  void build() { refresh(0, nr_blocks_, true); }

  // Notes that a block changed.
  void touch(uint32_t block) {
    if (test_bit(stale_bits_, block)) return;
    set_bit(stale_bits_, block);
    if (stale_->begin == stale_->end) *stale_ = {block, block + 1};
    if (block < stale_->begin) stale_->begin = block;
    if (block >= stale_->end) stale_->end = block + 1;
  }

  // The root, up to date. Requires: at least one block.
  [[nodiscard]] RunNode root();

  // Where a request can go: inside one block, or at a place in a run that crosses blocks.
  struct Place {
    bool inside_block;
    uint32_t position;  // the block's index; the request's first fragment
  };

  // Finds the first place for a request of `want` fragments, in the order of addresses, among the blocks' contig runs
  // and the runs that cross blocks. `fits(run)` is asked about runs of at least `want` fragments: it returns the
  // request's first fragment, or nothing.
  template <class Fits>
  [[nodiscard]] std::optional<Place> find_first(uint32_t want, const Fits& fits) {
    if (nr_blocks_ == 0) return std::nullopt;
    refresh_stale();
    const Spot root = {top_level(), 0};
    if (node(root).largest < want) return std::nullopt;
    return find_under(root, want, fits);
  }

  // The largest run before `position`. Requires: `position` is 0 or behind a taken fragment; `before_in_block` is the
  // largest run before it in its own block. Returns: a run, of length 0 where there is none.
  [[nodiscard]] Run largest_before(uint32_t position, Run before_in_block);

  // Looks for a node that is not what joining its children gives, though no stale block lies under it. Returns: its
  // border; nothing where all is well.
  [[nodiscard]] std::optional<uint32_t> wrong_border() const;

 private:
  // A node by its level and its number there.
  struct Spot {
    uint32_t level;
    uint32_t index;
    [[nodiscard]] Spot left() const { return {level - 1, 2 * index}; }
    [[nodiscard]] Spot right() const { return {level - 1, 2 * index + 1}; }
    [[nodiscard]] uint32_t first_block() const { return index << level; }
    [[nodiscard]] uint32_t border() const { return first_block() + (1u << (level - 1)); }
  };

  [[nodiscard]] uint32_t top_level() const;
  [[nodiscard]] RunNode leaf(uint32_t block) const;
  [[nodiscard]] RunNode node(Spot spot) const;
  [[nodiscard]] RunNode joined(Spot spot) const;
  // Recomputes the nodes above [begin, end); stops at a level where nothing changed, unless `all`.
  void refresh(uint32_t begin, uint32_t end, bool all);
  void refresh_stale() {
    if (stale_->begin != stale_->end) refresh_all_stale();
  }
  void refresh_all_stale();

  template <class Fits>
  [[nodiscard]] std::optional<Place> find_under(Spot spot, uint32_t want, const Fits& fits) const;

  const Block* blocks_;
  RunNode* nodes_;
  StaleRange* stale_;
  uint64_t* stale_bits_;
  uint32_t nr_blocks_;
  uint32_t block_shift_;
};

template <class Fits>
std::optional<RunTree::Place> RunTree::find_under(Spot spot, uint32_t want, const Fits& fits) const {
  while (spot.level != 0 && spot.border() >= nr_blocks_) spot = spot.left();
  if (spot.level == 0) {
    const Block& block = blocks_[spot.index];
    const Run run{(spot.index << block_shift_) + block.contig_hint_start, block.contig_hint};
    if (!fits(run)) return std::nullopt;
    return Place{true, spot.index};
  }
  const RunNode left = node(spot.left());
  if (left.largest >= want) {
    if (const auto place = find_under(spot.left(), want, fits)) return place;
  }
  const RunNode right = node(spot.right());
  if (left.suffix != 0 && right.prefix != 0 && left.suffix + right.prefix >= want) {
    const Run run{(spot.border() << block_shift_) - left.suffix, left.suffix + right.prefix};
    if (const std::optional<uint32_t> start = fits(run)) return Place{false, *start};
  }
  if (right.largest >= want) return find_under(spot.right(), want, fits);
  return std::nullopt;
}

}  // namespace percpu

#endif  // PERCPU_CORE_RUN_TREE_H
