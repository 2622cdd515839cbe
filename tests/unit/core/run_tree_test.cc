// SPDX-License-Identifier: MIT
//
// The tree over a map's blocks: against runs counted fragment by fragment, for every number of blocks up to 20.
#include "core/run_tree.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "../seed.h"

namespace percpu {
namespace {

constexpr uint32_t kShift = 6;  // blocks of one word
constexpr uint32_t kLen = 1u << kShift;

struct Forest {
  explicit Forest(uint32_t nr_blocks)
      : words(nr_blocks), blocks(nr_blocks, free_block(kLen)), nodes(nr_blocks), stale_bits(1) {
    tree().build();
  }
  RunTree tree() {
    return RunTree(blocks.data(), static_cast<uint32_t>(blocks.size()), kShift, nodes.data(), &stale,
                   stale_bits.data());
  }
  void set(uint32_t block, uint64_t word) {
    words[block] = word;
    blocks[block] = scan_block(&word, kLen);
    tree().touch(block);
  }
  [[nodiscard]] std::vector<Run> runs() const {
    std::vector<Run> found;
    const uint32_t len = static_cast<uint32_t>(words.size()) * kLen;
    for (uint32_t start = find_next_zero(words.data(), 0, len); start < len;) {
      const uint32_t end = find_next_one(words.data(), start, len);
      found.push_back({start, end - start});
      start = find_next_zero(words.data(), end, len);
    }
    return found;
  }

  std::vector<uint64_t> words;
  std::vector<Block> blocks;
  std::vector<RunNode> nodes;
  std::vector<uint64_t> stale_bits;
  StaleRange stale{0, 0};
};

TEST_CASE("neighbours are joined at their border") {
  // spans of 8; the right one starts at 8
  const struct {
    RunNode left, right, both;
  } rows[] = {
      {{8, 8, 8, 0}, {8, 8, 8, 8}, {16, 16, 16, 0}},       // free, free
      {{8, 8, 8, 0}, {2, 3, 3, 13}, {10, 3, 10, 0}},       // free, mixed
      {{2, 3, 3, 5}, {8, 8, 8, 8}, {2, 11, 11, 5}},        // mixed, free
      {{2, 1, 2, 0}, {1, 4, 4, 12}, {2, 4, 4, 12}},        // the largest is inside the right one
      {{5, 1, 5, 0}, {1, 4, 4, 12}, {5, 4, 5, 0}},         // inside the left one
      {{0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}},          // full, full
      {{1, 0, 4, 2}, {0, 0, 4, 10}, {1, 0, 4, 2}},         // equal: neither better aligned, the first
      {{1, 0, 3, 2}, {0, 0, 3, 12}, {1, 0, 3, 12}},        // equal: the better aligned
      {{0, 2, 4, 1}, {2, 0, 2, 8}, {0, 0, 4, 6}},          // equal: one that crosses the border is better aligned
  };
  for (const auto& row : rows) CHECK(join_runs(row.left, 8, row.right, 8, 8) == row.both);
}

TEST_CASE("the root knows the largest run, whatever the number of blocks") {
  std::mt19937_64 random(test_seed());
  for (uint32_t nr_blocks = 1; nr_blocks <= 20; ++nr_blocks) {
    Forest forest(nr_blocks);
    REQUIRE(forest.tree().root() == RunNode{nr_blocks * kLen, nr_blocks * kLen, nr_blocks * kLen, 0});
    for (int i = 0; i < 300; ++i) {
      const uint64_t single = uint64_t{1} << random() % 64;
      const uint64_t words[] = {0, ~uint64_t{0}, random(), random() & random() & random(), single};
      for (uint64_t changes = random() % 3; changes < 3; ++changes)
        forest.set(static_cast<uint32_t>(random() % nr_blocks), words[random() % 5]);
      REQUIRE_FALSE(forest.tree().wrong_border().has_value());
      const std::vector<Run> runs = forest.runs();
      uint32_t largest = 0;
      for (const Run& run : runs) largest = std::max(largest, run.len);
      const RunNode root = forest.tree().root();
      REQUIRE(root.largest == largest);
      const Run at_root{root.largest_start, root.largest};
      REQUIRE((largest == 0 || std::find(runs.begin(), runs.end(), at_root) != runs.end()));
      REQUIRE_FALSE(forest.tree().wrong_border().has_value());
    }
  }
}

TEST_CASE("the largest run before a place is the largest before it") {
  std::mt19937_64 random(test_seed());
  for (uint32_t nr_blocks = 1; nr_blocks <= 20; ++nr_blocks) {
    Forest forest(nr_blocks);
    for (int i = 0; i < 50; ++i) {
      forest.set(static_cast<uint32_t>(random() % nr_blocks), random() % 3 == 0 ? 0 : random());
      const std::vector<Run> runs = forest.runs();
      Run largest{0, 0};
      for (const Run& run : runs) {
        Run in_block{0, 0};
        const uint32_t base = run.start / kLen * kLen;
        for (const Run& other : runs)
          if (other.start < run.start && other.end() > base) {
            const uint32_t start = std::max(base, other.start);
            if (other.end() - start > in_block.len) in_block = {start, other.end() - start};
          }
        REQUIRE(forest.tree().largest_before(run.start, in_block).len == largest.len);
        if (run.len > largest.len) largest = run;
      }
    }
  }
}

TEST_CASE("the first run that fits is found, across blocks or inside one") {
  Forest forest(5);
  forest.set(0, ~uint64_t{0} >> 4);                  // 4 at the end
  forest.set(1, ~uint64_t{0} << 8);                  // 8 at the start: 12 across the border
  forest.set(2, ~uint64_t{0} ^ 0xffff0000);          // 16 inside
  forest.set(3, ~uint64_t{0} >> 10);                 // 10 at the end
  forest.set(4, ~uint64_t{0} << 30);                 // 30 at the start: 40 across the border
  std::vector<Run> asked;
  const auto place = [&](uint32_t want, uint32_t align) {
    asked.clear();
    return forest.tree().find_first(want, [&](Run run) {
      asked.push_back(run);
      return place_in(run, want, align);
    });
  };
  auto found = place(9, 1);
  REQUIRE(found.has_value());
  CHECK_FALSE(found->inside_block);
  CHECK(found->position == 60);
  CHECK(asked == std::vector<Run>{{60, 12}});

  found = place(13, 1);
  REQUIRE(found.has_value());
  CHECK(found->inside_block);
  CHECK(found->position == 2);

  found = place(9, 64);  // 60..72 has no aligned place for 9, 144..160 none either
  REQUIRE(found.has_value());
  CHECK(found->position == 256);

  found = place(40, 1);
  REQUIRE(found.has_value());
  CHECK(found->position == 246);

  CHECK_FALSE(place(41, 1).has_value());
  CHECK(asked.empty());
}

TEST_CASE("a changed block costs nothing before the tree is asked") {
  Forest forest(16);
  const std::vector<RunNode> before = forest.nodes;
  for (uint32_t block = 3; block < 9; ++block) forest.set(block, ~uint64_t{0});
  CHECK(forest.nodes == before);
  CHECK(forest.stale.begin == 3);
  CHECK(forest.stale.end == 9);
  CHECK(forest.tree().root().largest == 7 * kLen);
  CHECK(forest.stale.begin == forest.stale.end);
  CHECK(forest.stale_bits[0] == 0);
}

}  // namespace
}  // namespace percpu
