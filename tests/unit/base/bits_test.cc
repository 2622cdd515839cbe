// SPDX-License-Identifier: MIT
//
// Bitmaps: literal words before and after, and all ranges of a small bitmap against a loop over its bits.
#include "base/bits.h"

#include <doctest/doctest.h>

#include <array>
#include <cstddef>

using namespace percpu;

namespace {

constexpr uint64_t kAll = ~uint64_t{0};

// Four words, and the same as bits, one by one.
using Words = std::array<uint64_t, 4>;
constexpr uint32_t kLen = 256;

Words striped(uint32_t period) {
  Words words{};
  for (uint32_t bit = 0; bit < kLen; ++bit)
    if (bit / period % 2 == 1) words[bit / 64] |= uint64_t{1} << (bit % 64);
  return words;
}

bool bit_of(const Words& words, uint32_t bit) { return words[bit / 64] >> (bit % 64) & 1; }

}  // namespace

TEST_CASE("a range is set and cleared and nothing else") {
  struct {
    uint32_t begin, end;
    Words set;  // in a bitmap of zeros
  } const rows[] = {
      {0, 0, {0, 0, 0, 0}},
      {64, 64, {0, 0, 0, 0}},
      {5, 5, {0, 0, 0, 0}},
      {0, 1, {1, 0, 0, 0}},
      {63, 64, {uint64_t{1} << 63, 0, 0, 0}},
      {0, 64, {kAll, 0, 0, 0}},
      {63, 65, {uint64_t{1} << 63, 1, 0, 0}},
      {4, 8, {0xf0, 0, 0, 0}},
      {60, 196, {uint64_t{0xf} << 60, kAll, kAll, 0xf}},
      {64, 256, {0, kAll, kAll, kAll}},
      {255, 256, {0, 0, 0, uint64_t{1} << 63}},
  };
  for (const auto& row : rows) {
    CAPTURE(row.begin);
    CAPTURE(row.end);
    Words words{};
    set_range(words.data(), row.begin, row.end);
    CHECK(words == row.set);
    words.fill(kAll);
    clear_range(words.data(), row.begin, row.end);
    for (std::size_t i = 0; i < words.size(); ++i) CHECK(words[i] == ~row.set[i]);
  }
}

TEST_CASE("searches find what a loop over the bits finds, from every begin to every end") {
  for (const uint32_t period : {1u, 3u, 64u, 100u, 300u}) {
    const Words words = striped(period);
    for (uint32_t begin = 0; begin <= kLen; ++begin) {
      uint32_t one = begin;
      uint32_t zero = begin;
      uint32_t ones = 0;
      uint32_t last = kLen + 1;
      for (uint32_t end = begin; end <= kLen; ++end) {
        if (end > begin) {
          ones += bit_of(words, end - 1);
          if (bit_of(words, end - 1)) last = end - 1;
        }
        while (one < end && !bit_of(words, one)) ++one;
        while (zero < end && bit_of(words, zero)) ++zero;
        REQUIRE(find_next_one(words.data(), begin, end) == one);
        REQUIRE(find_next_zero(words.data(), begin, end) == zero);
        REQUIRE(find_last_one(words.data(), begin, end) == (last > kLen ? end : last));
        REQUIRE(count_ones(words.data(), begin, end) == ones);
      }
    }
  }
}

TEST_CASE("a search does not look at words behind its end") {
  const std::array<uint64_t, 1> words = {0};
  CHECK(find_next_one(words.data(), 0, 64) == 64);
  CHECK(find_next_one(words.data(), 64, 64) == 64);
  CHECK(find_last_one(words.data(), 0, 64) == 64);
  CHECK(find_next_zero(words.data(), 3, 64) == 3);
}

TEST_CASE("an atomic change tells what the bit was") {
  Words words{};
  CHECK_FALSE(atomic_set_bit(words.data(), 70));
  CHECK(atomic_set_bit(words.data(), 70));
  CHECK(words == Words{0, 64, 0, 0});
  CHECK(atomic_clear_bit(words.data(), 70));
  CHECK_FALSE(atomic_clear_bit(words.data(), 70));
  CHECK(words == Words{});
}

TEST_CASE("sizes are rounded up") {
  CHECK(words_for_bits(0) == 0);
  CHECK(words_for_bits(1) == 1);
  CHECK(words_for_bits(64) == 1);
  CHECK(words_for_bits(65) == 2);
  CHECK(round_up(0u, 8u) == 0);
  CHECK(round_up(1u, 8u) == 8);
  CHECK(round_up(8u, 8u) == 8);
  CHECK(round_up<uint64_t>(uint64_t{1} << 40 | 1, 4096) == (uint64_t{1} << 40) + 4096);
  CHECK(round_up_to_multiple(0, 12) == 0);
  CHECK(round_up_to_multiple(13, 12) == 24);
  CHECK(round_up_to_multiple(24, 12) == 24);
  CHECK(is_power_of_two(4096));
  CHECK(is_power_of_two(uint64_t{1} << 40));
  CHECK_FALSE(is_power_of_two(0));
  CHECK_FALSE(is_power_of_two(6));
}
