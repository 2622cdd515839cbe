// SPDX-License-Identifier: MIT
//
// A block's record and its bits: literal words before and after. Blocks of one word, for a reader's sake; a set bit is
// a taken fragment, bit 0 the first. The rules of the record alone are in run_hints_test.cc.
#include "core/block.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <ostream>
#include <random>
#include <vector>

#include "../seed.h"

namespace percpu {

static std::ostream& operator<<(std::ostream& out, const Block& block) {
  return out << "contig " << block.contig_hint << "@" << block.contig_hint_start << " scan " << block.scan_hint << "@"
             << block.scan_hint_start << " left " << block.left_free << " right " << block.right_free << " first "
             << block.first_free;
}

namespace {

constexpr uint32_t kLen = 64;
constexpr uint64_t kAll = ~uint64_t{0};

// A word in which these runs of fragments are free.
constexpr uint64_t free_at(std::initializer_list<Run> runs) {
  uint64_t word = kAll;
  for (const Run& run : runs) word &= ~((kAll >> (64 - run.len)) << run.start);
  return word;
}

// {contig_hint, contig_hint_start, scan_hint, scan_hint_start, left_free, right_free, first_free}
TEST_CASE("taking fragments updates the record") {
  struct {
    const char* rule;
    uint64_t word_before;
    Block before;
    uint32_t begin, end;
    uint64_t word_after;
    Block after;
  } const rows[] = {
      {"the front of a free block", 0x0, {64, 0, 0, 0, 64, 64, 0}, 0, 4, 0xf, {60, 4, 0, 0, 0, 60, 4}},
      {"the end of a free block", 0x0, {64, 0, 0, 0, 64, 64, 0}, 60, 64, 0xf000000000000000, {60, 0, 0, 0, 60, 0, 0}},
      {"the middle of a free block: both parts are remembered", 0x0, {64, 0, 0, 0, 64, 64, 0}, 8, 16, 0xff00,
       {48, 16, 8, 0, 8, 48, 0}},
      {"all of a free block", 0x0, {64, 0, 0, 0, 64, 64, 0}, 0, 64, kAll, {0, 0, 0, 0, 0, 0, 64}},
      {"a part of the scan run: it is discarded", 0xf0, {56, 8, 4, 0, 4, 56, 0}, 0, 2, 0xf3, {56, 8, 0, 0, 0, 56, 2}},
      {"all of the scan run: the first free fragment is the contig run's", 0xf0, {56, 8, 4, 0, 4, 56, 0}, 0, 4, 0xff,
       {56, 8, 0, 0, 0, 56, 8}},
      {"the contig run's front: the rest is still the largest, the scan run stays", 0xf0, {56, 8, 4, 0, 4, 56, 0}, 8,
       12, 0xff0, {52, 12, 4, 0, 4, 52, 0}},
      {"the contig run breaks: the scan run is promoted, the scan goes on behind",
       free_at({{0, 8}, {16, 10}, {32, 9}}), {10, 16, 8, 0, 8, 0, 0}, 16, 26, free_at({{0, 8}, {32, 9}}),
       {9, 32, 8, 0, 8, 0, 0}},
      {"the contig run breaks: the promoted scan run is the largest", free_at({{0, 8}, {16, 10}, {32, 7}}),
       {10, 16, 8, 0, 8, 0, 0}, 16, 26, free_at({{0, 8}, {32, 7}}), {8, 0, 0, 0, 8, 0, 0}},
      {"the contig run breaks, nothing is known before: all is scanned", free_at({{0, 8}, {16, 10}, {32, 9}}),
       {10, 16, 0, 0, 8, 0, 0}, 16, 26, free_at({{0, 8}, {32, 9}}), {9, 32, 8, 0, 8, 0, 0}},
      {"the contig run breaks, a second one of its size takes over", free_at({{0, 3}, {16, 8}, {40, 8}}),
       {8, 16, 8, 40, 3, 0, 0}, 16, 24, free_at({{0, 3}, {40, 8}}), {8, 40, 0, 0, 3, 0, 0}},
      {"a change elsewhere leaves contig and scan run as they are, even where they could be known better",
       free_at({{0, 4}, {6, 2}, {16, 16}}), {16, 16, 0, 0, 4, 0, 0}, 6, 8, free_at({{0, 4}, {16, 16}}),
       {16, 16, 0, 0, 4, 0, 0}},
      {"behind the contig run", free_at({{0, 32}, {40, 24}}), {32, 0, 0, 0, 32, 24, 0}, 60, 64,
       free_at({{0, 32}, {40, 20}}), {32, 0, 0, 0, 32, 0, 0}},
      {"inside the run at the end: what touches the end is shorter", free_at({{0, 32}, {40, 24}}),
       {32, 0, 0, 0, 32, 24, 0}, 44, 48, free_at({{0, 32}, {40, 4}, {48, 16}}), {32, 0, 0, 0, 32, 16, 0}},
      {"inside the run at the start: what touches the start is shorter", free_at({{0, 16}, {32, 32}}),
       {32, 32, 16, 0, 16, 32, 0}, 4, 8, free_at({{0, 4}, {8, 8}, {32, 32}}), {32, 32, 0, 0, 4, 32, 0}},
  };
  for (const auto& row : rows) {
    CAPTURE(row.rule);
    uint64_t word = row.word_before;
    set_range(&word, row.begin, row.end);
    CHECK(word == row.word_after);
    Block block = row.before;
    block_took(block, &word, kLen, row.begin, row.end);
    CHECK(block == row.after);
    // Where the short way applies, it leads to the same record.
    Block shortened = row.before;
    if (block_took_front(shortened, kLen, row.begin, row.end)) CHECK(shortened == row.after);
  }
}

TEST_CASE("the short way is taken for the front of a run that reaches the end, and for nothing else") {
  Block fresh = free_block(kLen);
  CHECK(block_took_front(fresh, kLen, 0, 4));
  CHECK(fresh == Block{60, 4, 0, 0, 0, 60, 4});
  Block known{56, 8, 4, 0, 4, 56, 0};
  CHECK(block_took_front(known, kLen, 8, 12));
  CHECK(known == Block{52, 12, 4, 0, 4, 52, 0});
  const struct {
    Block block;
    uint32_t begin, end;
  } others[] = {
      {{56, 8, 4, 0, 4, 56, 0}, 12, 16},   // not the front
      {{56, 8, 4, 0, 4, 56, 0}, 8, 60},    // the rest is not larger than the scan run
      {{56, 8, 0, 0, 4, 56, 0}, 8, 12},    // what lies before is not known
      {{10, 16, 8, 0, 8, 0, 0}, 16, 18},   // does not reach the end
      {{64, 0, 0, 0, 64, 64, 0}, 0, 64},   // nothing left
  };
  for (const auto& other : others) {
    Block block = other.block;
    CHECK_FALSE(block_took_front(block, kLen, other.begin, other.end));
    CHECK(block == other.block);
  }
}

TEST_CASE("freeing fragments joins them with their neighbours and updates the record") {
  struct {
    const char* rule;
    uint64_t word_before;
    Block before;
    uint32_t begin, end;
    uint64_t word_after;
    Block after;
    Run joined;
  } const rows[] = {
      {"in a full block", kAll, {0, 0, 0, 0, 0, 0, 64}, 8, 16, 0xffffffffffff00ff, {8, 8, 0, 0, 0, 0, 8}, {8, 8}},
      {"all of a full block", kAll, {0, 0, 0, 0, 0, 0, 64}, 0, 64, 0x0, {64, 0, 0, 0, 64, 64, 0}, {0, 64}},
      {"at the start", kAll, {0, 0, 0, 0, 0, 0, 64}, 0, 8, 0xffffffffffffff00, {8, 0, 0, 0, 8, 0, 0}, {0, 8}},
      {"at the end", kAll, {0, 0, 0, 0, 0, 0, 64}, 56, 64, 0x00ffffffffffffff, {8, 56, 0, 0, 0, 8, 56}, {56, 8}},
      {"between two runs: the last area of a block", 0xff00, {48, 16, 8, 0, 8, 48, 0}, 8, 16, 0x0,
       {64, 0, 0, 0, 64, 64, 0}, {0, 64}},
      {"before the contig run", free_at({{20, 10}}), {10, 20, 0, 0, 0, 0, 20}, 16, 20, free_at({{16, 14}}),
       {14, 16, 0, 0, 0, 0, 16}, {16, 14}},
      {"behind the contig run", free_at({{20, 10}}), {10, 20, 0, 0, 0, 0, 20}, 30, 34, free_at({{20, 14}}),
       {14, 20, 0, 0, 0, 0, 20}, {20, 14}},
      {"between a run and the contig run: the scan run is swallowed", free_at({{4, 4}, {20, 10}}),
       {10, 20, 4, 4, 0, 0, 4}, 8, 20, free_at({{4, 26}}), {26, 4, 0, 0, 0, 0, 4}, {4, 26}},
      {"a smaller run before the contig run is remembered", free_at({{20, 10}}), {10, 20, 0, 0, 0, 0, 20}, 4, 8,
       free_at({{4, 4}, {20, 10}}), {10, 20, 4, 4, 0, 0, 4}, {4, 4}},
      {"a smaller run behind the contig run is not", free_at({{20, 10}}), {10, 20, 0, 0, 0, 0, 20}, 40, 44,
       free_at({{20, 10}, {40, 4}}), {10, 20, 0, 0, 0, 0, 20}, {40, 4}},
      {"a larger run behind: the old one becomes the scan run", free_at({{20, 10}}), {10, 20, 0, 0, 0, 0, 20}, 40, 52,
       free_at({{20, 10}, {40, 12}}), {12, 40, 10, 20, 0, 0, 20}, {40, 12}},
      {"joined on both sides with runs that no record knows", free_at({{0, 2}, {6, 2}, {20, 20}}),
       {20, 20, 2, 0, 2, 0, 0}, 2, 6, free_at({{0, 8}, {20, 20}}), {20, 20, 8, 0, 8, 0, 0}, {0, 8}},
  };
  for (const auto& row : rows) {
    CAPTURE(row.rule);
    uint64_t word = row.word_before;
    clear_range(&word, row.begin, row.end);
    CHECK(word == row.word_after);
    Block block = row.before;
    CHECK(block_freed(block, &word, kLen, row.begin, row.end) == row.joined);
    CHECK(block == row.after);
  }
}

TEST_CASE("a place is found in the first run that fits") {
  struct {
    const char* rule;
    uint64_t word;
    Block block;
    uint32_t want, align, place;
  } const rows[] = {
      {"the first free fragment", free_at({{4, 4}, {20, 10}}), {10, 20, 4, 4, 0, 0, 4}, 2, 1, 4},
      {"an exact fit before the contig run", free_at({{4, 4}, {20, 10}}), {10, 20, 4, 4, 0, 0, 4}, 4, 1, 4},
      {"too large for all before the contig run", free_at({{4, 4}, {20, 10}}), {10, 20, 4, 4, 0, 0, 4}, 5, 1, 20},
      {"aligned inside a run", free_at({{5, 6}, {20, 10}}), {10, 20, 6, 5, 0, 0, 5}, 2, 8, 8},
      {"fits by size, not by alignment", free_at({{5, 6}, {24, 10}}), {10, 24, 6, 5, 0, 0, 5}, 4, 8, 24},
      {"the last fragments of the block", free_at({{56, 8}}), {8, 56, 0, 0, 0, 8, 56}, 8, 8, 56},
      // The bits contradict the record here: a run of 16 that it says cannot be. The search believes the record.
      {"nothing before the contig run is looked at where the scan run is too small",
       free_at({{4, 16}, {40, 20}}), {20, 40, 4, 4, 0, 0, 4}, 5, 1, 40},
  };
  for (const auto& row : rows) {
    CAPTURE(row.rule);
    Block block = row.block;
    CHECK(find_in_block(block, &row.word, kLen, row.want, row.align) == row.place);
    CHECK(block == row.block);
  }
}

TEST_CASE("the largest run that a search passed over is fed back where it was forgotten") {
  const uint64_t word = free_at({{0, 4}, {6, 5}, {14, 5}, {24, 10}});
  Block block{10, 24, 0, 0, 4, 0, 0};
  CHECK(find_in_block(block, &word, kLen, 6, 1) == 24);
  CHECK(block == Block{10, 24, 5, 14, 4, 0, 0});

  // Not where the search ended before the contig run: what lies between is unknown still.
  Block early{10, 24, 0, 0, 4, 0, 0};
  CHECK(find_in_block(early, &word, kLen, 5, 1) == 6);
  CHECK(early == Block{10, 24, 0, 0, 4, 0, 0});
}

TEST_CASE("a record is recomputed from the bits") {
  const struct {
    uint64_t word;
    Block block;
  } rows[] = {
      {0, {64, 0, 0, 0, 64, 64, 0}},
      {kAll, {0, 0, 0, 0, 0, 0, 64}},
      {0xff00, {48, 16, 8, 0, 8, 48, 0}},
      {free_at({{8, 8}, {40, 8}}), {8, 8, 8, 40, 0, 0, 8}},
      {free_at({{4, 8}, {40, 8}}), {8, 40, 8, 4, 0, 0, 4}},
  };
  for (const auto& row : rows) {
    CAPTURE(row.word);
    CHECK(scan_block(&row.word, kLen) == row.block);
  }
}

// The invariants, recomputed bit by bit.
void require_true(const Block& block, const std::vector<uint64_t>& words, uint32_t len) {
  const auto taken = [&](uint32_t i) { return words[i / 64] >> (i % 64) & 1; };
  uint32_t largest = 0, before = 0, first = len, at_contig = 0, at_scan = 0;
  for (uint32_t i = 0; i < len;) {
    uint32_t run = 0;
    while (i + run < len && !taken(i + run)) ++run;
    if (run != 0) {
      first = std::min(first, i);
      largest = std::max(largest, run);
      if (i < block.contig_hint_start) before = std::max(before, run);
      if (i == block.contig_hint_start) at_contig = run;
      if (i == block.scan_hint_start) at_scan = run;
    }
    i += run + 1;
  }
  REQUIRE(block.contig_hint == largest);
  REQUIRE(at_contig == largest);
  REQUIRE(block.first_free == first);
  uint32_t left = 0, right = 0;
  while (left < len && !taken(left)) ++left;
  while (right < len && !taken(len - 1 - right)) ++right;
  REQUIRE(block.left_free == left);
  REQUIRE(block.right_free == right);
  if (block.scan_hint == 0) return;
  REQUIRE(at_scan == block.scan_hint);
  REQUIRE(block.scan_hint_start != block.contig_hint_start);
  if (block.scan_hint_start < block.contig_hint_start)
    REQUIRE(block.scan_hint == before);
  else
    REQUIRE(block.scan_hint == block.contig_hint);
}

TEST_CASE("records stay true through random takes and frees, for the blocks of 4, 16 and 64 KiB pages") {
  std::mt19937_64 random(test_seed());
  for (const uint32_t len : {1024u, 4096u, 16384u}) {
    std::vector<uint64_t> words(len / 64);
    Block block = free_block(len);
    std::vector<Run> areas;
    for (int i = 0; i < 4000; ++i) {
      const uint32_t want = 1 + static_cast<uint32_t>(random() % (random() % 8 == 0 ? len : 24));
      const uint32_t align = 1u << random() % 6;
      if (random() % 2 == 0 && place_in(contig_run(block), want, align)) {
        const uint32_t begin = find_in_block(block, words.data(), len, want, align);
        REQUIRE(begin % align == 0);
        REQUIRE(count_ones(words.data(), begin, begin + want) == 0);
        set_range(words.data(), begin, begin + want);
        if (!block_took_front(block, len, begin, begin + want))
          block_took(block, words.data(), len, begin, begin + want);
        areas.push_back({begin, want});
      } else if (!areas.empty()) {
        std::swap(areas[random() % areas.size()], areas.back());
        const Run area = areas.back();
        areas.pop_back();
        clear_range(words.data(), area.start, area.end());
        const Run joined = block_freed(block, words.data(), len, area.start, area.end());
        REQUIRE(joined.start <= area.start);
        REQUIRE(joined.end() >= area.end());
      }
      require_true(block, words, len);
    }
  }
}

}  // namespace
}  // namespace percpu
