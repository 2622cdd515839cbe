// SPDX-License-Identifier: MIT
#include "core/placement.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <climits>
#include <random>
#include <vector>

#include "../seed.h"

namespace percpu {
namespace {

constexpr size_t kHuge = size_t{2} << 20;

struct Built {
  CpuMask possible;
  std::vector<uint64_t> storage;
  const Layout* layout = nullptr;

  // A group for each size: CPUs 0, 1, ..., then 100, 101, ..., and so on.
  Built(const std::vector<int>& group_sizes, FirstChunk first_chunk, size_t unit_bytes) {
    int node = 0;
    for (int size : group_sizes) {
      for (int i = 0; i < size; ++i) possible.add({node * 100 + i});
      ++node;
    }
    LayoutInput input;
    input.possible = &possible;
    input.distance = [](const void*, CpuId from, CpuId to) { return from.value / 100 == to.value / 100 ? 10u : 20u; };
    input.dynamic_size_bytes = 20480;
    input.min_unit_size_bytes = unit_bytes;
    input.page_size_bytes = 4096;
    input.huge_page_size_bytes = kHuge;
    input.first_chunk = first_chunk;
    storage.resize(layout_storage_bytes(possible) / 8);
    REQUIRE_FALSE(build_layout(input, storage.data(), storage.size() * 8, &layout));
  }
  const Layout& operator*() const { return *layout; }
};

TEST_CASE("handles, group windows and areas lie where the diagram says") {
  // Two groups "0 1 ++" and "100 101 102 -- ++", by huge pages: padding of one unit in 5 CPUs, so 2 a huge page.
  Built built({2, 3}, FirstChunk::kEmbed, 128 << 10);
  REQUIRE((*built).unit_size_bytes() == 1 << 20);
  REQUIRE((*built).stride_bytes() == 5 << 20);
  std::optional<Placement> placed = place(*built, 10);
  REQUIRE(placed);
  Placement& p = *placed;
  CHECK(p.window_bytes == 50 << 20);
  CHECK(p.reservation_bytes() == 150 << 20);
  p.base = 0x10000000;
  CHECK(p.handle({0}, 0) == 0x10000000);
  CHECK(p.handle({3}, 100) == 0x10000000 + 3 * (5 << 20) + 100);
  CHECK(p.group_base({1}) == 0x10000000 + (100 << 20));
  CHECK(p.area({1}, {2}) == 0x10000000 + (100 << 20) + 2 * (5 << 20));
  CHECK((*built).unit_offset_bytes({0}, p.window_bytes) == 50 << 20);
  CHECK((*built).unit_offset_bytes({2}, p.window_bytes) == (50 << 20) + (2 << 20));   // group 0's extra unit
  CHECK((*built).unit_offset_bytes({3}, p.window_bytes) == 100 << 20);                // CPU 100
  CHECK((*built).unit_offset_bytes({7}, p.window_bytes) == (100 << 20) + (4 << 20));  // group 1's extra unit
}

TEST_CASE("a window is rounded up to the atom, so that every group's first chunk can be huge pages") {
  Built built({2}, FirstChunk::kEmbed, 128 << 10);  // stride 3 MiB
  std::optional<Placement> p = place(*built, 3);
  REQUIRE(p);
  CHECK(p->window_bytes == 10 << 20);
  CHECK(p->window_bytes % kHuge == 0);
  CHECK_FALSE(find_address(*built, *p, (10 << 20) + (9 << 20)));
}

TEST_CASE("nothing is placed where the sizes do not fit, or for no chunk") {
  Built built({64}, FirstChunk::kPage, 128 << 10);
  CHECK_FALSE(place(*built, 0));
  CHECK(place(*built, INT_MAX));
  Built large({64, 64, 64}, FirstChunk::kEmbed, size_t{1} << 40);
  CHECK(place(*large, 1000));
  CHECK_FALSE(place(*large, UINT32_MAX));
}

TEST_CASE("as many chunks as said fit into a reservation, and not one more") {
  std::mt19937_64 random(test_seed());
  for (int round = 0; round < 500; ++round) {
    Built built({static_cast<int>(1 + random() % 8), static_cast<int>(1 + random() % 8)},
                random() % 2 == 0 ? FirstChunk::kEmbed : FirstChunk::kPage, 128 << 10);
    uint64_t bytes = random() >> (18 + random() % 30);
    uint32_t chunks = max_chunks_in(*built, bytes);
    if (chunks > 0) {
      std::optional<Placement> fits = place(*built, chunks);
      REQUIRE(fits);
      CHECK(fits->reservation_bytes() <= bytes);
    }
    if (chunks == INT_MAX) continue;
    std::optional<Placement> beyond = place(*built, chunks + 1);
    REQUIRE(beyond);
    CHECK(beyond->reservation_bytes() > bytes);
  }
  Built built({2}, FirstChunk::kPage, 128 << 10);
  CHECK(max_chunks_in(*built, 0) == 0);
  CHECK(max_chunks_in(*built, uint64_t{1} << 62) == INT_MAX);
}

TEST_CASE("handles and addresses lead back to what they were made of, at every edge") {
  std::mt19937_64 random(test_seed());
  for (int round = 0; round < 200; ++round) {
    std::vector<int> groups;
    for (size_t i = 0, n = 1 + random() % 4; i < n; ++i) groups.push_back(static_cast<int>(1 + random() % 9));
    Built built(groups, random() % 2 == 0 ? FirstChunk::kEmbed : FirstChunk::kPage, (32 + 4 * (random() % 40)) << 10);
    const Layout& layout = *built;
    uint32_t max_chunks = static_cast<uint32_t>(1 + random() % 50);
    Placement p = *place(layout, max_chunks);
    p.base = (1 + random() % 1000) * kHuge;
    const uint64_t unit_size = layout.unit_size_bytes();
    const uint64_t offsets[] = {0, 1, random() % unit_size, unit_size - 1};
    for (uint32_t c : {uint32_t{0}, static_cast<uint32_t>(random() % max_chunks), max_chunks - 1}) {
      ChunkId chunk{c};
      for (uint64_t offset : offsets) {
        uint64_t handle = p.handle(chunk, offset);
        CHECK_FALSE(find_address(layout, p, handle));
        for (uint32_t u = 0; u < layout.nr_units(); ++u) {
          UnitId unit{static_cast<int>(u)};
          uint64_t address = handle + layout.unit_offset_bytes(unit, p.window_bytes);
          CHECK(find_address(layout, p, address) == AddressPlace{layout.group_of_unit(unit), chunk, unit, offset});
          CHECK(address >= p.area(layout.group_of_unit(unit), chunk));
          CHECK(address < p.area(layout.group_of_unit(unit), chunk) + p.stride_bytes);
        }
      }
    }
    // Units of a smaller group end before the stride does.
    for (uint32_t g = 0; g < layout.nr_groups(); ++g) {
      GroupId group{static_cast<int>(g)};
      uint64_t units_end = p.area(group, {0}) + layout.group(group).nr_units_with_extra() * unit_size;
      if (units_end < p.area(group, {0}) + p.stride_bytes) CHECK_FALSE(find_address(layout, p, units_end));
    }
    for (uint64_t outside : {uint64_t{0}, p.base - 1, p.end(), p.end() + 12345, UINT64_MAX}) {
      CHECK_FALSE(find_address(layout, p, outside));
    }
  }
}

TEST_CASE("no two copies of any two handles overlap") {
  Built built({3, 2}, FirstChunk::kEmbed, 128 << 10);
  const Layout& layout = *built;
  Placement p = *place(layout, 4);
  std::vector<uint64_t> starts;
  for (uint32_t c = 0; c < 4; ++c) {
    for (uint32_t u = 0; u < layout.nr_units(); ++u)
      starts.push_back(p.handle({c}, 0) + layout.unit_offset_bytes({static_cast<int>(u)}, p.window_bytes));
  }
  std::sort(starts.begin(), starts.end());
  for (size_t i = 1; i < starts.size(); ++i) CHECK(starts[i] - starts[i - 1] >= layout.unit_size_bytes());
  CHECK(starts.front() >= p.base + p.window_bytes);
  CHECK(starts.back() + layout.unit_size_bytes() <= p.end());
}

}  // namespace
}  // namespace percpu
