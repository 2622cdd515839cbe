// SPDX-License-Identifier: MIT
//
// The free blocks of one class: none is given twice, none is lost, all go back. At the end a random run beside a set.
#include "preload/heap/central_list.h"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "../../unit/child.h"
#include "../../unit/seed.h"
#include "small_system.h"

namespace percpu::heap {
namespace {

struct Fixture {
  Window window;
  PageHeap pages;
  CentralList list;
  std::vector<uint64_t> shelf = std::vector<uint64_t>(CentralList::kShelf);
  const ClassInfo& info;

  explicit Fixture(uint32_t size_class, uint32_t node = 0) : info(kClasses.info[size_class]) {
    REQUIRE(window.reserve_all(SmallSystem::system(), node + 1) == 0);
    pages.init(window, node);
    list.init(window, pages, lane_of(node, size_class), shelf.data());
  }
  ~Fixture() { munmap(reinterpret_cast<void*>(window.base()), window.size_bytes()); }

  std::vector<uint64_t> take(uint32_t count) {
    std::vector<uint64_t> blocks;
    while (blocks.size() < count) {
      uint64_t some[kMaxBatch];
      const uint64_t left = count - blocks.size();
      const uint32_t got = list.take(some, left < info.batch ? static_cast<uint32_t>(left) : info.batch);
      REQUIRE(got > 0);
      blocks.insert(blocks.end(), some, some + got);
    }
    return blocks;
  }
  void give(const std::vector<uint64_t>& blocks) {
    for (size_t i = 0; i < blocks.size(); i += info.batch)
      list.give(&blocks[i], static_cast<uint32_t>(blocks.size() - i < info.batch ? blocks.size() - i : info.batch));
  }
  uint64_t used_pages() {
    const PageStats stats = pages.stats();
    return stats.open_pages - stats.dirty_pages - stats.clean_pages;
  }
};

TEST_CASE("blocks of every class lie apart, inside their spans, and the page map knows them") {
  for (uint32_t size_class = 0; size_class < kNrClasses; ++size_class) {
    Fixture at(size_class);
    const uint32_t size = at.info.size_bytes;
    const std::vector<uint64_t> blocks = at.take(3 * at.info.span_blocks);
    std::set<uint64_t> sorted(blocks.begin(), blocks.end());
    REQUIRE(sorted.size() == blocks.size());
    uint64_t end = 0;
    for (const uint64_t block : sorted) {
      REQUIRE(block >= end);
      end = block + size;
      uint64_t page = 0;
      REQUIRE(at.window.page_of(reinterpret_cast<void*>(block), &page));
      const PageEntry entry = at.window.entry(page);
      REQUIRE(entry.kind() == kKindLane + size_class);
      const uint32_t offset = at.window.offset_of(reinterpret_cast<void*>(block)) - entry.first_block;
      REQUIRE(begins_block(static_cast<int32_t>(offset), at.info.inverse));
      REQUIRE(at.window.page_of(reinterpret_cast<void*>(end - 1), &page));
      REQUIRE(at.window.entry(page).kind() == kKindLane + size_class);
    }
    CHECK(at.list.counts().nr_spans == 3);
    CHECK(at.list.counts().free_blocks == 0);
    at.give(blocks);
    at.list.age(true);
    CHECK(at.list.counts().nr_spans == 0);
    CHECK(at.list.counts().free_blocks == 0);
    CHECK(at.used_pages() == 0);
  }
}

TEST_CASE("what was given lies on the shelf, and comes first") {
  Fixture at(class_of(64));
  const std::vector<uint64_t> blocks = at.take(2 * at.info.batch);
  std::vector<uint64_t> given(blocks.begin(), blocks.begin() + at.info.batch);
  at.give(given);
  CHECK(at.take(at.info.batch) == given);
}

TEST_CASE("two who take small blocks share no line of the processor's caches") {
  std::mt19937_64 random(test_seed());
  for (const size_t size : {8, 16, 32, 48}) {
    Fixture at(class_of(size));
    std::map<uint64_t, int> owner_of_line;
    for (int owner = 0; owner < 300; ++owner) {
      uint64_t some[kMaxBatch];
      const uint32_t wanted = 9 + static_cast<uint32_t>(random() % (at.info.batch - 8));
      const uint32_t got = at.list.take(some, wanted);
      REQUIRE(got > 0);
      for (uint32_t i = 0; i < got; ++i) {
        for (uint64_t line = some[i] / kLineBytes; line <= (some[i] + size - 1) / kLineBytes; ++line)
          REQUIRE(owner_of_line.emplace(line, owner).first->second == owner);
      }
    }
  }
}

TEST_CASE("blocks whose lines others use in part come when no whole line is left, and before a new span") {
  for (const size_t size : {8, 16, 32, 48}) {
    CAPTURE(size);
    Fixture at(class_of(size));
    const uint32_t used = at.info.span_blocks / 2;
    const std::vector<uint64_t> blocks = at.take(used);
    // Every second one is put away, so that it lies alone.
    std::set<uint64_t> alone, lines_in_use;
    const auto add_lines = [&](uint64_t block) {
      for (uint64_t line = block / kLineBytes; line <= (block + size - 1) / kLineBytes; ++line) lines_in_use.insert(line);
    };
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (i % 2 == 0) {
        add_lines(blocks[i]);
        continue;
      }
      alone.insert(blocks[i]);
      at.list.put_away(blocks[i]);
    }
    // Where blocks lie across lines, a few at the borders of the words are no whole lines either.
    const uint32_t whole = (at.info.span_blocks - used) / 64 * 48;
    for (uint32_t got = 0; got < whole;) {
      uint64_t some[kMaxBatch];
      const uint32_t count = at.list.take(some, whole - got < 16 ? whole - got : 16);
      REQUIRE(count > 0);
      for (uint32_t i = 0; i < count; ++i) {
        REQUIRE_FALSE(alone.contains(some[i]));
        if (size != 48) REQUIRE_FALSE(lines_in_use.contains(some[i] / kLineBytes));
      }
      got += count;
    }
    CHECK(at.list.counts().nr_spans == 1);
    const std::vector<uint64_t> rest = at.take(static_cast<uint32_t>(at.list.counts().free_blocks));
    CHECK(at.list.counts().nr_spans == 1);
    for (const uint64_t block : rest) alone.erase(block);
    CHECK(alone.empty());
  }
}

TEST_CASE("the shelf ages: what nobody took since the last time goes back to the spans") {
  Fixture at(class_of(64));
  const std::vector<uint64_t> blocks = at.take(at.info.span_blocks);
  CHECK(at.used_pages() == at.info.span_pages);
  std::vector<uint64_t> given(blocks.rbegin(), blocks.rbegin() + 40);  // not in the order in which a span gives them
  at.give(given);
  CHECK(at.list.age(false));
  CHECK(at.take(40) == given);  // it was there still
  at.give(given);
  CHECK(at.list.age(false));
  CHECK_FALSE(at.list.age(false));
  CHECK(at.take(40) != given);  // in the order of the span now
}

TEST_CASE("keeping little: the shelf holds a quarter of a batch") {
  Fixture at(class_of(64));
  const std::vector<uint64_t> blocks = at.take(at.info.span_blocks);
  at.list.keep_little(true);
  at.give(blocks);
  CHECK(at.list.counts().free_blocks == at.info.span_blocks);
  CHECK(at.list.counts().nr_spans == 1);  // for the sake of those on the shelf
  uint64_t some[kMaxBatch];
  CHECK(at.list.take(some, at.info.batch) == at.info.batch / 4);
  at.list.keep_little(false);
}

TEST_CASE("who gives nothing is not asked what it is") {
  Fixture at(class_of(64));
  const std::vector<uint64_t> blocks = at.take(2);
  at.list.give(&blocks[0], 1);
  at.list.give(&blocks[0], 0);  // the same block, were it one
  CHECK(at.list.counts().free_blocks == at.info.span_blocks - 1);
}

TEST_CASE("a block that is free already stops the program") {
  const ChildEnd end = run_in_child([] {
    Fixture at(class_of(64));
    const std::vector<uint64_t> blocks = at.take(2);
    at.list.give(&blocks[0], 1);
    at.list.give(&blocks[0], 1);
    at.list.age(true);
    return 0;
  });
  CHECK(end.signal == SIGABRT);
}

TEST_CASE("blocks of another node's list come from that node's pages") {
  Fixture at(class_of(1000), 1);
  for (const uint64_t block : at.take(100)) {
    uint64_t page = 0;
    REQUIRE(at.window.page_of(reinterpret_cast<void*>(block), &page));
    CHECK(at.window.node_of_page(page) == 1);
    CHECK(node_of_lane(at.window.entry(page).kind() - kKindLane) == 1);
  }
}

TEST_CASE("random calls do what a set does") {
  std::mt19937_64 random(test_seed());
  for (const size_t size : {8, 48, 1024, 20000, 32768}) {
    Fixture at(class_of(size));
    std::vector<uint64_t> mine;
    std::set<uint64_t> model;
    const uint64_t most = 200 + 4 * at.info.span_blocks;
    for (int step = 0; step < 5000; ++step) {
      const uint64_t what = random() % 100;
      if (what < 50 && mine.size() < most) {
        uint64_t some[kMaxBatch];
        const uint32_t got = at.list.take(some, 1 + static_cast<uint32_t>(random() % at.info.batch));
        REQUIRE(got > 0);
        for (uint32_t i = 0; i < got; ++i) {
          REQUIRE(model.insert(some[i]).second);
          mine.push_back(some[i]);
          memcpy(reinterpret_cast<void*>(some[i]), &some[i], sizeof some[i]);
        }
      } else if (what < 98) {
        uint64_t some[kMaxBatch];
        uint32_t count = 0;
        const uint64_t wanted = 1 + random() % at.info.batch;
        while (count < wanted && !mine.empty()) {
          std::swap(mine[random() % mine.size()], mine.back());
          some[count] = mine.back();
          mine.pop_back();
          uint64_t content = 0;
          memcpy(&content, reinterpret_cast<void*>(some[count]), sizeof content);
          REQUIRE(content == some[count]);
          model.erase(some[count++]);
        }
        at.list.give(some, count);
      } else if (what == 98) {
        at.list.age(random() % 4 == 0);
      } else {
        at.list.keep_little(random() % 2 == 0);
      }
      const CentralList::Counts counts = at.list.counts();
      REQUIRE(counts.nr_spans * at.info.span_blocks == counts.free_blocks + mine.size());
      REQUIRE(at.used_pages() == counts.nr_spans * at.info.span_pages);
    }
    at.give(mine);
    at.list.age(true);
    CHECK(at.used_pages() == 0);
  }
}

TEST_CASE("no block is two threads' at once, however they take and give, while the shelves age and others take pages") {
  Fixture at(class_of(20000));  // spans of few blocks come and go
  CentralList small;
  std::vector<uint64_t> shelf(CentralList::kShelf);
  small.init(at.window, at.pages, lane_of(0, class_of(64)), shelf.data());
  std::vector<std::thread> threads;
  for (uint64_t t = 1; t <= 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(test_seed() + t);
      for (int step = 0; step < 3000; ++step) {
        CentralList& list = step % 2 == 0 ? at.list : small;
        uint64_t some[kMaxBatch];
        const uint32_t got = list.take(some, 1 + static_cast<uint32_t>(random() % (step % 2 == 0 ? at.info.batch : kMaxBatch)));
        const uint32_t run = at.pages.allocate(1 + random() % 8, 1, Purpose::kLarge);
        if (got == 0 || run == 0) abort();
        for (uint32_t i = 0; i < got; ++i) *reinterpret_cast<uint64_t*>(some[i]) = t;
        if (step % 50 == 0) (void)list.age(t == 1);
        for (uint32_t i = 0; i < got; ++i) {
          if (*reinterpret_cast<uint64_t*>(some[i]) != t) abort();
        }
        at.pages.release(run);
        list.give(some, got);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (CentralList* list : {&at.list, &small}) {
    list->age(true);
    CHECK(list->counts().nr_spans == 0);
  }
  CHECK(at.used_pages() == 0);
}

}  // namespace
}  // namespace percpu::heap
