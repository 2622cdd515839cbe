// SPDX-License-Identifier: MIT
//
// The sizes, and the arithmetic that free() trusts, against the plain definitions.
#include <doctest/doctest.h>

#include "preload/heap/size_class.h"

using namespace percpu::heap;

// The rule, by itself: 8 bytes; then steps of 16 to 128; then eight steps a doubling.
static size_t block_bytes(size_t size) {
  if (size <= 8) return 8;
  size_t grain = 16;
  for (size_t base = 128; base < size; base *= 2) grain = base / 8;
  return (size + grain - 1) / grain * grain;
}

TEST_CASE("every size has the smallest class that holds it: by 16 to 128 bytes, from there at most an eighth larger") {
  for (size_t size = 0; size <= kMaxSmallBytes; ++size) {
    CAPTURE(size);
    const uint32_t found = class_of(size);
    REQUIRE(found < kNrClasses);
    const uint32_t bytes = kClasses.info[found].size_bytes;
    REQUIRE(bytes == block_bytes(size));
    // What of it is not asked for.
    if (size > 8 && size <= 128) REQUIRE(bytes - size < 16);
    if (size > 128) REQUIRE((bytes - size) * 8 < size);
    if (found > 0) REQUIRE(kClasses.info[found - 1].size_bytes < size);
    if (size >= 16) REQUIRE(bytes % 16 == 0);
    if (size <= ClassTable::kFine) REQUIRE(ClassTable::index(size) == ClassTable::fine_index(size));
  }
}

TEST_CASE("a span wastes at most a sixteenth, and its blocks are aligned as their size says") {
  for (const ClassInfo& info : kClasses.info) {
    CAPTURE(info.size_bytes);
    const size_t bytes = info.span_pages * kPageBytes;
    CHECK(info.span_lead + size_t{info.span_blocks} * info.size_bytes == bytes);
    CHECK(info.span_lead * 16 <= bytes);
    CHECK(info.span_blocks >= 8);
    CHECK(info.span_blocks <= kMaxSpanBlocks);
    const size_t grain = info.size_bytes & -info.size_bytes;  // its largest power of two
    if (grain <= kPageBytes) CHECK(info.span_lead % grain == 0);
    CHECK(info.batch >= 2);
    CHECK(info.batch <= kMaxBatch);
    CHECK(info.cache_limit >= info.batch);
  }
}

TEST_CASE("a block begins exactly at the multiples of the size, and nowhere in the lead") {
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    const ClassInfo& info = kClasses.info[i];
    CAPTURE(info.size_bytes);
    const int32_t end = static_cast<int32_t>(info.span_blocks * info.size_bytes);
    bool right = true;
    for (int32_t offset = -static_cast<int32_t>(info.span_lead); offset < end; ++offset) {
      const bool expected = offset >= 0 && static_cast<uint32_t>(offset) % info.size_bytes == 0;
      right = right && begins_block(offset, info.inverse) == expected;
      if (expected)
        right = right && block_index(i, static_cast<uint32_t>(offset)) == static_cast<uint32_t>(offset) / info.size_bytes;
    }
    CHECK(right);
    CHECK_FALSE(begins_block(0, 0));
  }
}

TEST_CASE("lanes and kinds") {
  for (uint32_t node = 0; node < kMaxHeapNodes; ++node) {
    for (uint32_t i = 0; i < kNrClasses; ++i) {
      CHECK(class_of_lane(lane_of(node, i)) == i);
      CHECK(node_of_lane(lane_of(node, i)) == node);
      CHECK(lane_of(node, i) < kMaxLanes);
    }
  }
  PageEntry entry{7, (kKindLane + kMaxLanes - 1) << kKindShift};
  CHECK(entry.kind() == kKindLane + kMaxLanes - 1);
}
