// SPDX-License-Identifier: MIT
//
// The order of the live marks: a bijection, and one that keeps neighbours apart.
#include "core/live_marks.h"

#include <doctest/doctest.h>

#include <vector>

namespace percpu {
namespace {

constexpr uint32_t kLineBits = 512;

TEST_CASE("each fragment has a mark of its own, and the mark knows it") {
  for (const uint32_t len : {1024u, 3u * 1024, 8192u, 5u * 8192, 16384u, 3u * 16384, 65536u}) {
    CAPTURE(len);
    const MarkOrder order = MarkOrder::of(len);
    std::vector<bool> seen(len);
    for (uint32_t fragment = 0; fragment < len; fragment++) {
      const uint32_t mark = order.mark(fragment);
      REQUIRE(mark < len);
      REQUIRE(mark >= order.first(fragment));
      REQUIRE(mark < order.last(fragment + 1));
      REQUIRE_FALSE(seen[mark]);
      seen[mark] = true;
      REQUIRE(order.fragment(mark) == fragment);
    }
  }
}

TEST_CASE("areas side by side have their marks on different lines, whatever their size") {
  for (const uint32_t len : {4096u, 8192u, 16384u, 3u * 16384}) {
    CAPTURE(len);
    const MarkOrder order = MarkOrder::of(len);
    for (const uint32_t size : {1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 10u, 12u, 14u, 16u, 24u, 32u, 64u}) {
      CAPTURE(size);
      uint32_t shared = 0;
      for (uint32_t at = 0; at + 2 * size <= len; at += size) {
        shared += order.mark(at) / kLineBits == order.mark(at + size) / kLineBits;
      }
      CHECK(shared <= (len == 4096 ? len / size / 7 : 0));
    }
  }
}

}  // namespace
}  // namespace percpu
