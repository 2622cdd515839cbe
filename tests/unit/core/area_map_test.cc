// SPDX-License-Identifier: MIT
//
// One area map: its bits, literally, before and after; where it finds a place; how runs join across blocks; which pages
// count as empty and populated. Maps of 4 KiB pages: blocks of 1,024 fragments, 16 words.
#include "core/area_map.h"

#include <doctest/doctest.h>

#include <map>
#include <ostream>
#include <vector>

namespace percpu {

static std::ostream& operator<<(std::ostream& out, const ChunkHints& hints) {
  return out << "contig " << hints.contig_hint << "@" << hints.contig_hint_start << " scan " << hints.scan_hint << "@"
             << hints.scan_hint_start << " first " << hints.first_free;
}

namespace {

constexpr uint32_t kPage = 4096;
constexpr uint32_t kBlock = 1024;
constexpr uint64_t kAll = ~uint64_t{0};

// A map of some pages, all populated unless told otherwise, in memory of its own.
class Sample {
 public:
  explicit Sample(uint32_t pages, uint16_t lead = 0, uint16_t tail = 0, bool populated = true)
      : layout_(MapLayout::of(pages * kPage, kPage)), metadata_(layout_.size_bytes / 8) {
    head_.nr_blocks = pages;
    head_.lead = lead;
    head_.tail = tail;
    map().reset();
    if (populated) map().mark_populated({0, pages});
  }
  AreaMap map() { return AreaMap(layout_, head_, reinterpret_cast<std::byte*>(metadata_.data())); }
  ChunkHead& head() { return head_; }

  // Takes the place that find() gives.
  uint32_t take(uint32_t want, uint32_t align = 1) {
    const auto place = map().find(want, align, false);
    REQUIRE(place.has_value());
    map().take(*place, want);
    return *place;
  }
  AreaMap::Given give(uint32_t begin) {
    REQUIRE(map().clear_live(begin));
    return map().give(begin);
  }
  // The words of a bitmap that are not zero.
  std::map<uint32_t, uint64_t> words(const uint64_t* bitmap) {
    std::map<uint32_t, uint64_t> found;
    for (uint32_t i = 0; i < head_.nr_blocks * kBlock / 64; ++i)
      if (bitmap[i] != 0) found[i] = bitmap[i];
    return found;
  }

 private:
  MapLayout layout_;
  ChunkHead head_{};
  std::vector<uint64_t> metadata_;
};

using Words = std::map<uint32_t, uint64_t>;

// ---- bits -----------------------------------------------------------------------------------------------------------

TEST_CASE("an area is taken, bounded on both sides, and live") {
  Sample sample(2);
  CHECK(sample.take(2) == 0);
  CHECK(sample.take(3) == 2);
  CHECK(sample.words(sample.map().alloc()) == Words{{0, 0x1f}});
  CHECK(sample.words(sample.map().bound()) == Words{{0, 0x25}});
  CHECK(sample.words(sample.map().live()) == Words{{0, 0x1}, {20, uint64_t{1} << 46}});  // 2 * 1687 mod 2048 = 1326
  CHECK(sample.head().free_fragments == 2 * kBlock - 5);
}

TEST_CASE("an area over words and blocks is bounded at its ends only") {
  Sample sample(2);
  sample.take(1000);
  CHECK(sample.take(100) == 1000);
  CHECK(sample.words(sample.map().bound()) == Words{{0, 1}, {15, uint64_t{1} << 40}, {17, 0x1000}});
  Words taken = {{17, 0xfff}};
  for (uint32_t word = 0; word < 17; ++word) taken[word] = kAll;
  CHECK(sample.words(sample.map().alloc()) == taken);
}

TEST_CASE("a free leaves the bounds as they are, and a new area clears those inside it") {
  Sample sample(1);
  for (int i = 0; i < 4; ++i) sample.take(2);
  CHECK(sample.words(sample.map().bound()) == Words{{0, 0x155}});
  for (const uint32_t begin : {0u, 2u, 4u}) CHECK(sample.give(begin).len == 2);
  CHECK(sample.words(sample.map().alloc()) == Words{{0, 0xc0}});
  CHECK(sample.words(sample.map().bound()) == Words{{0, 0x155}});
  CHECK(sample.take(5) == 0);
  CHECK(sample.words(sample.map().bound()) == Words{{0, 0x161}});
  CHECK(sample.map().area_end(0) == 5);
}

TEST_CASE("the end of the map bounds its last area") {
  Sample sample(1);
  CHECK(sample.take(kBlock) == 0);
  CHECK(sample.map().area_end(0) == kBlock);
  CHECK(sample.give(0).len == kBlock);
}

TEST_CASE("the size of an area is found from its bounds, the start from within") {
  Sample sample(3);
  sample.take(10);
  const uint32_t begin = sample.take(1500);
  sample.take(7);
  CHECK(sample.map().area_end(begin) == begin + 1500);
  for (const uint32_t inside : {begin, begin + 1, begin + 700, begin + 1499})
    CHECK(sample.map().area_begin(inside) == begin);
}

TEST_CASE("the live mark is cleared once") {
  Sample sample(1);
  const uint32_t begin = sample.take(4);
  CHECK(sample.map().is_live(begin));
  CHECK_FALSE(sample.map().clear_live(begin + 1));
  CHECK(sample.map().clear_live(begin));
  CHECK_FALSE(sample.map().clear_live(begin));
  CHECK(sample.map().is_taken(begin));
}

TEST_CASE("the neighbours' fragments of a shared page are taken and bounded, never live, and not counted") {
  Sample sample(2, 100, 24);
  CHECK(sample.words(sample.map().alloc()) == Words{{0, kAll}, {1, 0xfffffffff}, {31, kAll << 40}});
  CHECK(sample.words(sample.map().bound()) == Words{{0, 1}, {1, uint64_t{1} << 36}, {31, uint64_t{1} << 40}});
  CHECK(sample.words(sample.map().live()).empty());
  CHECK(sample.head().free_fragments == 2 * kBlock - 124);
  CHECK(sample.head().hints == ChunkHints{2 * kBlock - 124, 100, 0, 0, 100});
  CHECK(sample.head().empty_populated_pages == 0);
  CHECK(sample.take(2 * kBlock - 124) == 100);
  CHECK(sample.map().area_end(100) == 2 * kBlock - 24);
  CHECK_FALSE(sample.map().find(1, 1, false).has_value());
  sample.give(100);
  CHECK(sample.map().wholly_free());
  CHECK(sample.head().empty_populated_pages == 0);
}

// ---- places ---------------------------------------------------------------------------------------------------------

TEST_CASE("a request that does not fit the largest run, aligned, is refused") {
  Sample sample(2);
  sample.take(3);  // 2,045 fragments are left, at 3
  CHECK(sample.map().find(2045, 1, false) == 3u);
  CHECK_FALSE(sample.map().find(2046, 1, false).has_value());
  CHECK(sample.map().find(2044, 4, false) == 4u);
  CHECK_FALSE(sample.map().find(2045, 4, false).has_value());
  CHECK(sample.map().find(1024, 1024, false) == 1024u);
  CHECK_FALSE(sample.map().find(1025, 1024, false).has_value());
}

TEST_CASE("free runs are joined over blocks: right end, whole blocks, left end") {
  Sample sample(5);
  const uint32_t low = sample.take(1000);
  const uint32_t middle = sample.take(24 + 2 * kBlock + 30);
  sample.take(kBlock);
  sample.give(middle);
  CHECK(sample.map().blocks()[0].right_free == 24);
  CHECK(sample.map().blocks()[3].left_free == 30);
  CHECK(sample.map().find(24 + 2 * kBlock + 30, 1, false) == low + 1000);
  CHECK(sample.head().hints == ChunkHints{24 + 2 * kBlock + 30, 1000, 0, 0, 1000});
}

TEST_CASE("the first place guaranteed to fit is taken") {
  Sample sample(4);
  std::vector<uint32_t> areas;
  for (int i = 0; i < 8; ++i) areas.push_back(sample.take(512));
  sample.give(areas[1]);                         // 512 in block 0
  sample.give(areas[3]), sample.give(areas[4]);  // 1,024 over the border of blocks 1 and 2
  sample.give(areas[6]);                         // 512 in block 3
  CHECK(sample.map().find(100, 1, false) == 512u);
  CHECK(sample.map().find(512, 1, false) == 512u);
  CHECK(sample.map().find(513, 1, false) == 1536u);
  CHECK(sample.map().find(512, 1024, false) == 2048u);
}

TEST_CASE("a request larger than all that lies before the largest run is not looked for there") {
  Sample sample(3);
  std::vector<uint32_t> areas;
  for (int i = 0; i < 12; ++i) areas.push_back(sample.take(256));
  sample.give(areas[1]);
  sample.give(areas[5]), sample.give(areas[6]);
  CHECK(sample.head().hints == ChunkHints{512, 1280, 256, 256, 256});
  // The records of block 0 are made to say what is not so; the search does not ask them.
  sample.map().blocks()[0].contig_hint = 600;
  CHECK(sample.map().find(257, 1, false) == 1280u);
}

TEST_CASE("the largest run is known again after it was broken, over blocks and not") {
  Sample sample(4);
  std::vector<uint32_t> areas;
  for (int i = 0; i < 16; ++i) areas.push_back(sample.take(256));
  sample.give(areas[2]);
  sample.give(areas[5]), sample.give(areas[6]);
  sample.give(areas[11]), sample.give(areas[12]), sample.give(areas[13]);  // over the border of blocks 2 and 3
  CHECK(sample.head().hints == ChunkHints{768, 2816, 512, 1280, 512});
  CHECK(sample.take(768) == 2816);
  CHECK(sample.head().hints == ChunkHints{512, 1280, 256, 512, 512});
  CHECK(sample.take(512) == 1280);
  CHECK(sample.head().hints == ChunkHints{256, 512, 0, 0, 512});
  CHECK(sample.take(256) == 512);
  CHECK(sample.head().hints == ChunkHints{0, 0, 0, 0, 4 * kBlock});
}

TEST_CASE("an area freed in one block offers its joined run to the chunk") {
  Sample sample(3);
  std::vector<uint32_t> areas;
  for (int i = 0; i < 12; ++i) areas.push_back(sample.take(256));
  sample.give(areas[5]);
  CHECK(sample.head().hints == ChunkHints{256, 1280, 0, 0, 1280});
  sample.give(areas[6]);
  CHECK(sample.head().hints == ChunkHints{512, 1280, 0, 0, 1280});
  sample.give(areas[7]);  // up to the block's end
  sample.give(areas[8]);  // and over it
  CHECK(sample.head().hints == ChunkHints{1024, 1280, 0, 0, 1280});
  sample.give(areas[4]);  // the block is free
  CHECK(sample.head().hints == ChunkHints{1280, 1024, 0, 0, 1024});
  sample.give(areas[1]);
  CHECK(sample.head().hints == ChunkHints{1280, 1024, 256, 256, 256});
}

TEST_CASE("the first free fragment is known") {
  Sample sample(3);
  const uint32_t first = sample.take(600);
  const uint32_t second = sample.take(600);
  const uint32_t third = sample.take(600);
  CHECK(sample.head().hints.first_free == 1800);
  sample.give(second);
  CHECK(sample.head().hints.first_free == 600);
  sample.give(first);
  CHECK(sample.head().hints.first_free == 0);
  CHECK(sample.take(1200) == 0);
  CHECK(sample.head().hints.first_free == 1800);
  sample.give(third);
  CHECK(sample.head().hints.first_free == 1200);
}

TEST_CASE("blocks of 16 and of 64 KiB pages work alike") {
  for (const uint32_t page : {16384u, 65536u}) {
    CAPTURE(page);
    const MapLayout layout = MapLayout::of(4 * page, page);
    std::vector<uint64_t> metadata(layout.size_bytes / 8);
    ChunkHead head{};
    head.nr_blocks = 4;
    AreaMap map(layout, head, reinterpret_cast<std::byte*>(metadata.data()));
    map.reset();
    map.mark_populated({0, 4});
    CHECK(map.block_len() == page / 4);
    map.take(*map.find(page / 4 + 1, 1, false), page / 4 + 1);
    CHECK(map.find(1, page / 4, false) == page / 2);
    CHECK(head.empty_populated_pages == 2);
    REQUIRE(map.clear_live(0));
    CHECK(map.give(0).blocks_now_free == 2);
    CHECK(head.hints == ChunkHints{page, 0, 0, 0, 0});
  }
}

// ---- pages ----------------------------------------------------------------------------------------------------------

TEST_CASE("only populated pages are taken where that is asked") {
  Sample sample(6, 0, 0, false);
  CHECK_FALSE(sample.map().find(1, 1, true).has_value());
  sample.map().mark_populated({2, 1});
  CHECK(sample.map().find(1, 1, true) == 2048u);
  CHECK(sample.map().find(kBlock, 1, true) == 2048u);
  CHECK_FALSE(sample.map().find(kBlock + 1, 1, true).has_value());
  sample.map().mark_populated({4, 2});
  CHECK(sample.map().find(kBlock + 1, 1, true) == 4096u);
  CHECK(sample.map().find(kBlock + 1, 1, false) == 0u);
  sample.map().take(2048, 1000);
  CHECK(sample.map().find(24, 1, true) == 3048u);
  CHECK(sample.map().find(25, 1, true) == 4096u);
  CHECK(sample.map().find(24, 32, true) == 4096u);
}

TEST_CASE("runs of unpopulated pages are found in a range") {
  Sample sample(6, 0, 0, false);
  CHECK(sample.map().next_unpopulated(0, 6) == Run{0, 6});
  sample.map().mark_populated({2, 1});
  CHECK(sample.map().next_unpopulated(0, 6) == Run{0, 2});
  CHECK(sample.map().next_unpopulated(1, 2) == Run{1, 1});
  CHECK(sample.map().next_unpopulated(2, 6) == Run{3, 3});
  CHECK_FALSE(sample.map().next_unpopulated(2, 3).has_value());
}

TEST_CASE("a block that stops being wholly free, or becomes it, changes the count of empty populated pages") {
  Sample sample(4);
  CHECK(sample.head().empty_populated_pages == 4);
  const uint32_t small = sample.take(1);
  CHECK(sample.head().empty_populated_pages == 3);
  const uint32_t second = sample.take(1);
  CHECK(sample.head().empty_populated_pages == 3);
  const uint32_t large = sample.take(2 * kBlock);  // from the middle of block 0 to that of block 2
  CHECK(sample.head().empty_populated_pages == 1);
  CHECK(sample.give(small).blocks_now_free == 0);
  CHECK(sample.give(large).blocks_now_free == 2);
  CHECK(sample.head().empty_populated_pages == 3);
  CHECK(sample.give(second).blocks_now_free == 1);
  CHECK(sample.head().empty_populated_pages == 4);
}

TEST_CASE("taking unpopulated blocks lowers the count, populating their pages makes it right") {
  Sample sample(4, 0, 0, false);
  CHECK(sample.head().empty_populated_pages == 0);
  CHECK(sample.map().take(0, kBlock + 1) == 2);
  CHECK(sample.head().empty_populated_pages == -2);
  sample.map().mark_populated({0, 1});
  CHECK(sample.head().empty_populated_pages == -1);
  sample.map().mark_populated({1, 1});
  CHECK(sample.head().empty_populated_pages == 0);
  sample.map().mark_populated({2, 2});  // ahead of need
  CHECK(sample.head().empty_populated_pages == 2);
  CHECK(sample.head().populated_pages == 4);
  sample.map().mark_depopulated({3, 1});
  CHECK(sample.head().empty_populated_pages == 1);
  CHECK(sample.head().populated_pages == 3);
}

TEST_CASE("an area given back before its pages came leaves the count right") {
  Sample sample(4, 0, 0, false);
  sample.map().take(0, 3 * kBlock);
  sample.map().mark_populated({0, 1});  // the second run fails
  sample.give(0);
  CHECK(sample.head().empty_populated_pages == 1);
  CHECK(sample.head().populated_pages == 1);
}

}  // namespace
}  // namespace percpu
