// SPDX-License-Identifier: MIT
//
// The pool's state machine: what each call of the facade promises.
#include "core/pool_core.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "../seed.h"
#include "pool_sample.h"

namespace percpu {
namespace {

using Kind = Finding::Kind;

uint64_t resident_pages(const PoolSample& pool) {
  std::vector<unsigned char> in(pool.storage_bytes() / 4096);
  REQUIRE(mincore(pool.storage(), pool.storage_bytes(), in.data()) == 0);
  uint64_t pages = 0;
  for (const unsigned char page : in) pages += page & 1;
  return pages;
}

// ---- storage --------------------------------------------------------------------------------------------------------

TEST_CASE("a shape that cannot be is refused") {
  CHECK(PoolCore::refusal(sample_shape()) == nullptr);
  const auto refused = [](auto change) {
    PoolShape shape = sample_shape();
    change(shape);
    return PoolCore::refusal(shape) != nullptr;
  };
  CHECK(refused([](PoolShape& s) { s.page_size_bytes = 2048; }));
  CHECK(refused([](PoolShape& s) { s.page_size_bytes = 12288; }));
  CHECK(refused([](PoolShape& s) { s.page_size_bytes = 131072; }));
  CHECK(refused([](PoolShape& s) { s.unit_size_bytes = 0; }));
  CHECK(refused([](PoolShape& s) { s.unit_size_bytes = 65536 + 4; }));
  CHECK(refused([](PoolShape& s) { s.unit_size_bytes = 2u << 30; }));
  CHECK(refused([](PoolShape& s) { s.max_chunks = 0; }));
  CHECK(refused([](PoolShape& s) { s.dynamic_bytes = 65536, s.reserved_bytes = 4; }));
  CHECK(refused([](PoolShape& s) { s.reserved_bytes = 6; }));
  CHECK(refused([](PoolShape& s) { s.empty_low_pages = 5; }));
  CHECK_FALSE(refused([](PoolShape& s) { s.static_bytes = 65531, s.reserved_bytes = 4, s.dynamic_bytes = 0; }));
  CHECK(refused([](PoolShape& s) { s.static_bytes = 65531, s.reserved_bytes = 4, s.dynamic_bytes = 4; }));
}

TEST_CASE("making a pool touches little of its storage, however many chunks it may have") {
  PoolShape shape = sample_shape();
  shape.max_chunks = 100'000;
  PoolSample pool(shape);
  CHECK(pool.storage_bytes() > 600'000'000);
  CHECK(resident_pages(pool) <= 8);
  const uint64_t before = resident_pages(pool);
  REQUIRE(add_chunk(pool.core).has_value());
  CHECK(resident_pages(pool) <= before + 2);
}

TEST_CASE("metadata is at most 5.5 % of the populated bytes at two units") {
  for (const uint32_t unit : {65536u, 131072u, 3u * 65536, 1u << 20, 5u << 20, 64u << 20}) {
    CAPTURE(unit);
    PoolShape shape = sample_shape();
    shape.unit_size_bytes = unit;
    const uint64_t small = PoolCore::storage_bytes(shape);
    shape.max_chunks += 10'000;
    const uint64_t per_chunk = (PoolCore::storage_bytes(shape) - small) / 10'000;
    CHECK(per_chunk * 1000 <= 55 * uint64_t{2} * unit);
  }
}

TEST_CASE("the state holds no pointers: two views at different addresses are one pool") {
  const PoolShape shape = sample_shape();
  const uint64_t size = PoolCore::storage_bytes(shape);
  const int file = memfd_create("pool", 0);
  REQUIRE(file >= 0);
  REQUIRE(ftruncate(file, static_cast<off_t>(size)) == 0);
  void* one = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  void* two = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  REQUIRE(one != two);
  PoolCore first = PoolCore::create(one, shape);
  PoolCore second = PoolCore::attach(two);
  std::vector<Area> areas;
  for (int i = 0; i < 400; ++i) {
    PoolCore core = i % 2 == 0 ? first : second;
    auto area = core.allocate(512, 4, Context::normal, Region::dynamic);
    if (!area) {
      REQUIRE(add_chunk(core).has_value());
      area = core.allocate(512, 4, Context::normal, Region::dynamic);
    }
    REQUIRE(area.has_value());
    areas.push_back(*area);
    if (i % 3 != 0) continue;
    REQUIRE((i % 2 == 0 ? second : first).clear_live(areas[areas.size() / 2].chunk, areas[areas.size() / 2].offset));
    (i % 2 == 0 ? second : first).release(areas[areas.size() / 2].chunk, areas[areas.size() / 2].offset);
    areas.erase(areas.begin() + static_cast<ptrdiff_t>(areas.size() / 2));
    check_sound(first);
    check_sound(second);
  }
  CHECK(first.totals().chunks == second.totals().chunks);
  munmap(one, size);
  munmap(two, size);
  close(file);
}

// ---- the first chunk ------------------------------------------------------------------------------------------------

PoolShape parts_shape() {
  PoolShape shape = sample_shape();
  shape.static_bytes = 5001;    // rounded up to 5,004
  shape.reserved_bytes = 3000;  // to 8,004: in pages 1 and 0
  shape.dynamic_bytes = 16384 - 5001 - 3000;
  return shape;
}

TEST_CASE("the first chunk's parts are allocated from apart, though they share pages") {
  PoolSample pool(parts_shape());
  const auto reserved = pool.core.allocate(3000, 4, Context::normal, Region::reserved);
  REQUIRE(reserved.has_value());
  CHECK(*reserved == Area{{0}, {5004}, 3000});
  CHECK_FALSE(pool.core.allocate(4, 4, Context::normal, Region::reserved).has_value());
  const auto dynamic = pool.core.allocate(16384 - 8004, 4, Context::normal, Region::dynamic);
  REQUIRE(dynamic.has_value());
  CHECK(*dynamic == Area{{0}, {8004}, 16384 - 8004});
  CHECK_FALSE(pool.core.allocate(4, 4, Context::normal, Region::dynamic).has_value());
  CHECK(pool.give(*reserved).size_bytes == 3000);
  CHECK(pool.core.allocate(4, 4096, Context::normal, Region::reserved) == std::nullopt);  // page 0 ends at 4,096
  CHECK(pool.core.allocate(4, 2048, Context::normal, Region::reserved)->offset.bytes == 6144);
  CHECK_FALSE(pool.core.allocate(4, 4, Context::normal, Region::dynamic).has_value());
  pool.give(*dynamic);
}

TEST_CASE("the first chunk is populated; its counts are its parts'") {
  PoolSample pool(parts_shape());
  CHECK(pool.core.totals().populated_pages == 4);
  CHECK(pool.core.totals().empty_populated_pages == 2);  // pages 2 and 3; page 1 is shared
  CHECK(pool.core.chunk_stats({0}).free_bytes == 16384 - 8004);
  CHECK(pool.core.chunk_stats({0}).first_free_bytes == 8004);
  CHECK(pool.core.chunk_stats({0}).immutable);
  REQUIRE(pool.core.reserved_stats().has_value());
  CHECK(pool.core.reserved_stats()->free_bytes == 3000);
  CHECK(pool.core.reserved_stats()->first_free_bytes == 5004);
}

TEST_CASE("a pool without reserved part has none") {
  PoolSample pool;
  CHECK_FALSE(pool.core.allocate(4, 4, Context::normal, Region::reserved).has_value());
  CHECK_FALSE(pool.core.reserved_stats().has_value());
}

TEST_CASE("a first chunk without dynamic part is full") {
  PoolShape shape = sample_shape();
  shape.static_bytes = 4096;
  shape.dynamic_bytes = 0;
  PoolSample pool(shape);
  CHECK_FALSE(pool.core.allocate(4, 4, Context::normal, Region::dynamic).has_value());
  CHECK(pool.take(4).chunk == ChunkId{1});
  CHECK(pool.core.classify({0}, {100}).kind == Kind::in_static);
  CHECK(pool.core.classify({0}, {4096}).kind == Kind::beyond_parts);
}

TEST_CASE("a first chunk whose dynamic part is a whole unit serves a request for one, and is never destroyed") {
  PoolShape shape = sample_shape();
  shape.dynamic_bytes = shape.unit_size_bytes;
  PoolSample pool(shape);
  const Area area = pool.take(65536);
  CHECK(area == Area{{0}, {0}, 65536});
  const Released released = pool.give(area);
  CHECK(released.chunk_now_wholly_free);
  CHECK_FALSE(released.wake_balancer);
  CHECK(pool.core.totals().free_chunks == 0);
  CHECK(pool.balance().empty());
}

// ---- allocating -----------------------------------------------------------------------------------------------------

TEST_CASE("the fullest chunk that fits is used first") {
  PoolSample pool;
  pool.take(16384);  // the first chunk is full
  const Area large = pool.take(60000);
  CHECK(large.chunk == ChunkId{1});
  REQUIRE(add_chunk(pool.core) == ChunkId{2});
  CHECK(pool.take(4096).chunk == ChunkId{1});
  CHECK(pool.take(4096).chunk == ChunkId{2});  // 1,440 bytes are left in chunk 1
  CHECK(pool.take(100).chunk == ChunkId{1});
}

TEST_CASE("a request for a whole unit is served by a wholly free chunk alone") {
  PoolSample pool;
  CHECK_FALSE(pool.core.allocate(65536, 4, Context::normal, Region::dynamic).has_value());
  REQUIRE(add_chunk(pool.core) == ChunkId{1});
  CHECK(pool.core.allocate(65536, 4096, Context::normal, Region::dynamic) == Area{{1}, {0}, 65536});
  CHECK(pool.slot_of({1}) == 0);
}

TEST_CASE("a chunk in a low slot that fails a search is put aside until its slot changes") {
  PoolSample pool;
  pool.take(16384 - 24);  // 24 bytes are left: slot 2
  CHECK(pool.slot_of({0}) == 2);
  CHECK_FALSE(pool.core.allocate(28, 4, Context::normal, Region::dynamic).has_value());
  CHECK(pool.slot_of({0}) == 0);
  CHECK_FALSE(pool.core.allocate(20, 4, Context::normal, Region::dynamic).has_value());  // aside
  // A higher slot is not left for failing.
  PoolSample other;
  other.take(16384 - 40);
  CHECK_FALSE(other.core.allocate(60, 4, Context::normal, Region::dynamic).has_value());
  CHECK(other.slot_of({0}) == 3);
  CHECK(other.core.allocate(40, 4, Context::normal, Region::dynamic).has_value());
}

TEST_CASE("a chunk is not put aside for want of populated pages") {
  PoolShape shape = sample_shape();
  shape.dynamic_bytes = 0;
  PoolSample pool(shape);
  REQUIRE(add_chunk(pool.core) == ChunkId{1});
  const auto area = pool.core.allocate(65536 - 24, 4, Context::normal, Region::dynamic);
  REQUIRE(area.has_value());
  CHECK(pool.slot_of({1}) == 2);
  CHECK_FALSE(pool.core.allocate(20, 4, Context::atomic, Region::dynamic).has_value());
  CHECK(pool.slot_of({1}) == 2);
  CHECK_FALSE(pool.core.allocate(28, 4, Context::atomic, Region::dynamic).has_value());
  CHECK(pool.slot_of({1}) == 0);
}

TEST_CASE("atomic context takes populated pages only, and its failure is remembered") {
  PoolShape shape = sample_shape();
  shape.empty_low_pages = 0;
  PoolSample pool(shape);
  pool.take(16384);
  CHECK_FALSE(pool.core.wants_populate());
  REQUIRE(add_chunk(pool.core) == ChunkId{1});
  CHECK_FALSE(pool.core.allocate(4, 4, Context::atomic, Region::dynamic).has_value());
  CHECK(pool.core.wants_populate());
  pool.core.mark_populated({1}, {{5}, 2});
  CHECK(pool.core.allocate(8192, 4, Context::atomic, Region::dynamic) == Area{{1}, {5 * 4096}, 8192});
  CHECK_FALSE(pool.core.allocate(4, 4, Context::atomic, Region::dynamic).has_value());
}

TEST_CASE("a failure that never came here can be noted") {
  PoolShape shape = sample_shape();
  shape.empty_low_pages = 0;
  PoolSample pool(shape);
  CHECK_FALSE(pool.core.wants_populate());
  pool.core.note_atomic_failure();
  CHECK(pool.core.wants_populate());
}

TEST_CASE("fewer empty populated pages than the low mark call for more") {
  PoolSample pool;  // marks 2 and 4; four pages
  CHECK_FALSE(pool.core.wants_populate());
  pool.take(8192);
  CHECK_FALSE(pool.core.wants_populate());
  pool.take(4);
  CHECK(pool.core.wants_populate());
}

TEST_CASE("missing pages are told run by run, from the lowest, and counted as they come") {
  PoolSample pool;
  REQUIRE(add_chunk(pool.core) == ChunkId{1});
  pool.core.mark_populated({1}, {{2}, 1});
  CHECK(pool.core.totals().empty_populated_pages == 5);
  const auto area = pool.core.allocate(5 * 4096, 4, Context::normal, Region::dynamic);
  REQUIRE(area == Area{{1}, {0}, 5 * 4096});
  CHECK(pool.core.totals().empty_populated_pages == 0);  // 5 - 1 - 4 that are not populated yet
  CHECK(pool.core.next_unpopulated_run(*area) == PageRun{{0}, 2});
  pool.core.mark_populated({1}, {{0}, 2});
  CHECK(pool.core.next_unpopulated_run(*area) == PageRun{{3}, 2});
  pool.core.mark_populated({1}, {{3}, 2});
  CHECK_FALSE(pool.core.next_unpopulated_run(*area).has_value());
  CHECK(pool.core.totals().empty_populated_pages == 4);
  CHECK(pool.core.totals().populated_pages == 4 + 5);
}

// ---- freeing --------------------------------------------------------------------------------------------------------

TEST_CASE("of several threads that free the same areas, one wins each") {
  PoolSample pool;
  std::vector<Area> areas;
  for (int i = 0; i < 2000; ++i) areas.push_back(pool.take(4));
  std::atomic<uint32_t> wins{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (const Area& area : areas) wins += pool.core.clear_live(area.chunk, area.offset);
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wins == areas.size());
  for (const Area& area : areas) pool.core.release(area.chunk, area.offset);
}

TEST_CASE("sizes are read, and marks cleared, while others allocate and free under the lock") {
  PoolSample pool;
  std::vector<Area> areas;
  for (int i = 0; i < 500; ++i) areas.push_back(pool.take(4 + 4 * (i % 7)));
  std::atomic<bool> stop{false};
  std::thread asker([&] {
    while (!stop)
      for (const Area& area : areas) {
        if (pool.core.area_size(area.chunk, area.offset) != area.size_bytes) FAIL_CHECK("a live area's size changed");
        (void)pool.core.classify(area.chunk, {area.offset.bytes + area.size_bytes});
        (void)pool.core.clear_live(area.chunk, {area.offset.bytes + 2});
      }
  });
  for (int i = 0; i < 20000; ++i) pool.give(pool.take(4 + 4 * (i % 11)));
  stop = true;
  asker.join();
}

TEST_CASE("the marks by arithmetic say of every fragment what the maps say, whatever the shape") {
  std::mt19937_64 random(test_seed());
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
  for (int round = 0; round < 60; ++round) {
    PoolShape shape;
    shape.page_size_bytes = 4096u << (2 * below(3));
    shape.unit_size_bytes = shape.page_size_bytes * (1 + below(12));
    shape.max_chunks = 4;
    shape.static_bytes = below(shape.unit_size_bytes / 3);
    shape.reserved_bytes = below(2) * 4 * below(shape.unit_size_bytes / 12);
    // Up to the unit's end, to a page's, or to anywhere.
    const uint32_t rest = (shape.unit_size_bytes - shape.static_bytes - shape.reserved_bytes) / 4 * 4;
    shape.dynamic_bytes = below(2) == 0 ? rest : 4 * below(rest / 4);
    CAPTURE(shape.page_size_bytes);
    CAPTURE(shape.unit_size_bytes);
    CAPTURE(shape.static_bytes);
    CAPTURE(shape.reserved_bytes);
    CAPTURE(shape.dynamic_bytes);
    if (PoolCore::refusal(shape) != nullptr) continue;
    PoolSample pool(shape);
    const AreaMarks marks = pool.core.marks();
    (void)add_chunk(pool.core);
    (void)add_chunk(pool.core);
    std::vector<Area> areas;
    const auto take = [&](uint32_t most, Region region) {
      const auto area = pool.core.allocate(4 + 4 * below(most), 4u << below(4), Context::normal, region);
      if (!area) return false;
      while (const auto run = pool.core.next_unpopulated_run(*area)) pool.core.mark_populated(area->chunk, *run);
      areas.push_back(*area);
      return true;
    };
    const uint32_t most = 1 + below(100);
    while (take(most, below(4) == 0 && shape.reserved_bytes != 0 ? Region::reserved : Region::dynamic)) {
    }
    for (size_t i = areas.size() / 2; i-- > 0;) {
      std::swap(areas[below(static_cast<uint32_t>(areas.size()))], areas.back());
      pool.give(areas.back());
      areas.pop_back();
    }
    while (take(20, Region::dynamic)) {
    }
    const uint32_t dynamic_begin = (shape.static_bytes + 3) / 4 * 4 + shape.reserved_bytes;
    uint64_t wrong = 0;
    for (const ChunkId chunk : {ChunkId{0}, ChunkId{1}, ChunkId{2}, ChunkId{3}}) {
      for (uint32_t at = chunk.value == 0 ? dynamic_begin : 0; at < shape.unit_size_bytes; at += 4) {
        const bool live = pool.core.classify(chunk, {at}).kind == Kind::live_start;
        const uint32_t size_bytes = live ? pool.core.area_size(chunk, {at}) : 0;
        const uint32_t len = marks.end_life(chunk, {at});
        if (len == AreaMarks::kLong) {
          const bool to_end = at + size_bytes == (chunk.value == 0 ? dynamic_begin + shape.dynamic_bytes : shape.unit_size_bytes);
          wrong += size_bytes <= 256 && !to_end;
        } else {
          wrong += len * 4 != size_bytes;
        }
        if (len == 0) continue;
        wrong += pool.core.classify(chunk, {at}).kind != Kind::already_freed;
        wrong += marks.end_life(chunk, {at}) != 0;
        marks.begin_life(chunk, {at});
        wrong += pool.core.classify(chunk, {at}).kind != Kind::live_start;
      }
    }
    CHECK(wrong == 0);
    pool.give(areas);
  }
}

TEST_CASE("what is no live area's start is told apart") {
  PoolSample pool(parts_shape());
  const Area area = pool.take(40);
  const Area next = pool.take(40);
  CHECK(pool.core.classify({0}, area.offset).kind == Kind::live_start);

  const auto inside = pool.core.classify({0}, {area.offset.bytes + 12});
  CHECK(inside.kind == Kind::inside_live);
  CHECK(inside.start == area.offset);
  const auto odd = pool.core.classify({0}, {area.offset.bytes + 1});
  CHECK(odd.kind == Kind::inside_live);
  CHECK(odd.start == area.offset);
  CHECK(pool.core.classify({0}, {12001}).kind == Kind::misaligned);
  CHECK(pool.core.classify({0}, {12000}).kind == Kind::free_memory);
  CHECK(pool.core.classify({0}, {4}).kind == Kind::in_static);
  CHECK(pool.core.classify({0}, {5008}).kind == Kind::free_memory);  // in the reserved part
  CHECK(pool.core.classify({0}, {16384}).kind == Kind::beyond_parts);
  CHECK(pool.core.classify({0}, {65536}).kind == Kind::beyond_unit);
  CHECK(pool.core.classify({1}, {0}).kind == Kind::no_chunk);
  CHECK(pool.core.classify({99999}, {0}).kind == Kind::no_chunk);

  REQUIRE(pool.core.clear_live({0}, area.offset));  // its release is queued
  CHECK(pool.core.classify({0}, area.offset).kind == Kind::already_freed);
  const auto queued = pool.core.classify({0}, {area.offset.bytes + 8});
  CHECK(queued.kind == Kind::inside_freed);
  CHECK(queued.start == area.offset);
  pool.core.release({0}, area.offset);
  CHECK(pool.core.classify({0}, area.offset).kind == Kind::already_freed);
  CHECK(pool.core.classify({0}, {area.offset.bytes + 8}).kind == Kind::free_memory);
  for (const AreaOffset wild : {AreaOffset{area.offset}, AreaOffset{4}, AreaOffset{12001}, AreaOffset{16384},
                                AreaOffset{65536}, AreaOffset{next.offset.bytes + 4}, AreaOffset{UINT32_MAX}})
    CHECK_FALSE(pool.core.clear_live({0}, wild));
  CHECK_FALSE(pool.core.clear_live({50}, {0}));
  CHECK_FALSE(pool.core.clear_live({UINT32_MAX}, {0}));
}

TEST_CASE("the area around an offset is found, in either part") {
  PoolSample pool(parts_shape());
  const auto reserved = pool.core.allocate(100, 4, Context::normal, Region::reserved);
  const Area dynamic = pool.take(100);
  const auto in_reserved = pool.core.area_containing({0}, {reserved->offset.bytes + 99});
  REQUIRE(in_reserved.has_value());
  CHECK(in_reserved->start == reserved->offset);
  CHECK(in_reserved->size_bytes == 100);
  CHECK(in_reserved->live);
  CHECK(in_reserved->reserved);
  const auto in_dynamic = pool.core.area_containing({0}, {dynamic.offset.bytes});
  REQUIRE(in_dynamic.has_value());
  CHECK_FALSE(in_dynamic->reserved);
  CHECK_FALSE(pool.core.area_containing({0}, {0}).has_value());
  CHECK_FALSE(pool.core.area_containing({0}, {dynamic.offset.bytes + 100}).has_value());
  CHECK_FALSE(pool.core.area_containing({7}, {0}).has_value());
}

TEST_CASE("the second wholly free chunk wakes the balancer, isolated and immutable ones not counted") {
  PoolSample pool;
  pool.take(16384);
  const Area one = pool.take(40000);
  const Area two = pool.take(40000);
  REQUIRE(one.chunk != two.chunk);
  const Released first = pool.give(one);
  CHECK(first.chunk_now_wholly_free);
  CHECK(pool.core.totals().free_chunks == 1);
  const Released second = pool.give(two);
  CHECK(second.wake_balancer);
  CHECK(pool.core.totals().free_chunks == 2);
}

TEST_CASE("a chunk is isolated when a quarter of its pages is empty and others have more than the high mark") {
  PoolShape shape = sample_shape();
  shape.unit_size_bytes = 16 * 4096;
  shape.dynamic_bytes = 16 * 4096 - 8192;  // an immutable chunk whose empty pages come and go
  PoolSample pool(shape);
  std::vector<Area> first;
  for (int i = 0; i < 14; ++i) first.push_back(pool.take(4096, 4096));
  std::vector<Area> areas = pool.take_chunk();
  const ChunkId chunk = areas[0].chunk;
  CHECK(pool.core.totals().empty_populated_pages == 0);
  for (int i = 0; i < 4; ++i) CHECK_FALSE(pool.give(first[i]).isolated);  // immutable: never itself
  for (int i = 0; i < 5; ++i) CHECK_FALSE(pool.give(areas[i]).isolated);  // others have 4, not more
  CHECK(pool.core.totals().empty_populated_pages == 9);
  pool.give(first[4]);  // others have 5 now, but nothing was freed here
  CHECK_FALSE(pool.core.chunk_stats(chunk).isolated);
  const Released released = pool.give(areas[5]);
  CHECK(released.isolated);
  CHECK(released.wake_balancer);
  CHECK(pool.slot_of(chunk) == pool.state().slots.to_depopulate());
  CHECK(pool.core.totals().empty_populated_pages == 5);  // its six are not counted any more
  CHECK_FALSE(pool.give(areas[6]).isolated);             // it waits already
  CHECK(pool.core.totals().empty_populated_pages == 5);
  // No allocation looks at it while it waits, in either context.
  CHECK(pool.take(4096, 4096).chunk == ChunkId{0});
  CHECK_FALSE(pool.core.allocate(6 * 4096, 4, Context::normal, Region::dynamic).has_value());
}

TEST_CASE("less than a quarter of its pages does not isolate a chunk") {
  PoolShape shape = sample_shape();
  shape.dynamic_bytes = 16 * 4096;
  PoolSample pool(shape);
  std::vector<Area> first;
  for (int i = 0; i < 16; ++i) first.push_back(pool.take(4096, 4096));
  std::vector<Area> areas = pool.take_chunk();
  for (int i = 0; i < 10; ++i) pool.give(first[i]);
  for (int i = 0; i < 3; ++i) CHECK_FALSE(pool.give(areas[i]).isolated);
  CHECK(pool.give(areas[3]).isolated);
}

TEST_CASE("a wholly free chunk is not isolated, but one with far more pages than the high mark wakes the balancer") {
  PoolSample pool;
  pool.take(16384);
  const Area small = pool.take(4);
  CHECK_FALSE(pool.give(small).wake_balancer);
  const Area large = pool.take(40000);
  REQUIRE(large.chunk == small.chunk);
  const Released released = pool.give(large);
  CHECK_FALSE(released.isolated);
  CHECK(released.wake_balancer);
}

// ---- chunks ---------------------------------------------------------------------------------------------------------

TEST_CASE("the ids of chunks are used again, the lowest first") {
  PoolShape shape = sample_shape();
  shape.max_chunks = 70;
  PoolSample pool(shape);
  for (uint32_t id = 1; id < 70; ++id) REQUIRE(add_chunk(pool.core) == ChunkId{id});
  CHECK_FALSE(add_chunk(pool.core).has_value());
  CHECK(pool.core.totals().chunks == 70);
  for (const uint32_t id : {69u, 3u, 40u}) {
    pool.core.retire_chunk({id});
    CHECK(pool.core.chunk_exists({id}));
    pool.core.remove_chunk({id});
    CHECK_FALSE(pool.core.chunk_exists({id}));
  }
  CHECK(pool.core.next_chunk({3}) == ChunkId{4});
  CHECK_FALSE(pool.core.next_chunk({69}).has_value());
  CHECK(add_chunk(pool.core) == ChunkId{3});
  CHECK(add_chunk(pool.core) == ChunkId{40});
  CHECK(add_chunk(pool.core) == ChunkId{69});
  CHECK_FALSE(add_chunk(pool.core).has_value());
  CHECK(pool.core.totals().peak_chunks == 70);
}

TEST_CASE("a chunk is out of reach until it is published, and after it was retired") {
  PoolSample pool;
  const auto chunk = pool.core.begin_chunk();
  REQUIRE(chunk == ChunkId{1});
  CHECK_FALSE(pool.core.allocate(65536, 4, Context::normal, Region::dynamic).has_value());
  CHECK(pool.core.totals().chunks == 1);
  pool.core.publish_chunk(*chunk);
  CHECK(pool.core.totals().chunks == 2);
  const Area area = pool.take(65536);
  CHECK(area.chunk == *chunk);
  CHECK(pool.core.totals().populated_pages == 4 + 16);
  pool.give(area);
  pool.core.retire_chunk(*chunk);
  CHECK_FALSE(pool.core.allocate(65536, 4, Context::normal, Region::dynamic).has_value());
  CHECK(pool.core.totals().empty_populated_pages == 4);
  check_sound(pool.core);
  pool.core.remove_chunk(*chunk);
  CHECK(pool.core.totals().populated_pages == 4);
}

TEST_CASE("an abandoned chunk leaves nothing") {
  PoolSample pool;
  REQUIRE(pool.core.begin_chunk() == ChunkId{1});
  pool.core.abandon_chunk({1});
  CHECK_FALSE(pool.core.chunk_exists({1}));
  CHECK(add_chunk(pool.core) == ChunkId{1});
}

TEST_CASE("the storage of chunks that are gone can be given back, that of their neighbours is left alone") {
  for (const uint32_t unit : {65536u, 1u << 20}) {
    PoolShape shape = sample_shape();
    shape.unit_size_bytes = unit;
    shape.max_chunks = 20;
    PoolSample pool(shape);
    check_sound(pool.core);  // it reads words that nobody has written
    const uint64_t before = resident_pages(pool);
    std::vector<Area> areas;
    for (int i = 0; i < 19; ++i) areas.push_back(pool.take(unit, 4096));
    const uint64_t full = resident_pages(pool);
    const auto drop = [&](const Area& area) {
      pool.give(area);
      pool.core.retire_chunk(area.chunk);
      pool.core.remove_chunk(area.chunk);
      const StorageRange range = pool.core.chunk_storage(area.chunk);
      REQUIRE(range.offset_bytes % 4096 == 0);
      REQUIRE(range.size_bytes % 4096 == 0);
      REQUIRE(range.offset_bytes + range.size_bytes <= pool.storage_bytes());
      if (range.size_bytes != 0)
        REQUIRE(madvise(static_cast<char*>(pool.storage()) + range.offset_bytes, range.size_bytes, MADV_DONTNEED) == 0);
      check_sound(pool.core);
    };
    for (size_t i = 0; i < areas.size(); i += 2) drop(areas[i]);
    for (size_t i = 1; i < areas.size(); i += 2) CHECK(pool.core.area_size(areas[i].chunk, {0}) == unit);
    CHECK(resident_pages(pool) < full);
    for (size_t i = 1; i < areas.size(); i += 2) drop(areas[i]);
    CHECK(resident_pages(pool) <= before + 1);
    for (int i = 0; i < 19; ++i) CHECK(pool.take(unit).size_bytes == unit);
  }
}

// ---- asking ---------------------------------------------------------------------------------------------------------

TEST_CASE("statistics of a chunk count its live areas and free runs") {
  PoolSample pool;
  const ChunkStats empty = pool.core.chunk_stats({0});
  CHECK(empty.live_areas == 0);
  CHECK(empty.smallest_area_bytes == 0);
  CHECK(empty.fragmentation_sum_bytes == 0);
  std::vector<Area> areas;
  for (const uint32_t size : {100u, 8u, 2000u, 4u, 400u, 8000u, 12u}) areas.push_back(pool.take(size));
  pool.give(areas[2]);
  pool.give(areas[4]);
  const ChunkStats stats = pool.core.chunk_stats({0});
  CHECK(stats.live_areas == 5);
  CHECK(stats.live_bytes == 8124);
  CHECK(stats.free_bytes == 16384 - 8124);
  CHECK(stats.smallest_area_bytes == 4);
  CHECK(stats.median_area_bytes == 12);
  CHECK(stats.largest_area_bytes == 8000);
  CHECK(stats.first_free_bytes == 108);
  CHECK(stats.largest_run_bytes == 16384 - 10524);
  CHECK(stats.free_runs == 3);
  CHECK(stats.fragmentation_sum_bytes == 2400);
  CHECK(stats.fragmentation_max_bytes == 2000);
  CHECK(stats.populated_pages == 4);
  CHECK(stats.empty_populated_pages == 1);
}

TEST_CASE("the check finds what is wrong, and where") {
  PoolSample pool;
  pool.take(100);
  REQUIRE_FALSE(pool.core.check().has_value());
  Block& block = pool.state().map(ChunkId{0}).blocks()[1];
  const Block right = block;
  block.left_free -= 1;
  const auto defect = pool.core.check_block({0}, {1});
  REQUIRE(defect.has_value());
  CHECK(std::string(defect->what) == "block left_free");
  CHECK(defect->expected == 1024);
  CHECK(defect->found == 1023);
  CHECK(defect->page == PageIndex{1});
  CHECK(pool.core.check_chunk({0}).has_value());
  block = right;

  const auto found = [&](auto change, auto undo) {
    change();
    const auto result = pool.core.check();
    undo();
    return result.has_value();
  };
  PoolState& state = pool.state();
  ChunkHead& head = state.head({0});
  CHECK(found([&] { ++head.free_fragments; }, [&] { --head.free_fragments; }));
  CHECK(found([&] { ++head.empty_populated_pages; }, [&] { --head.empty_populated_pages; }));
  CHECK(found([&] { ++head.populated_pages; }, [&] { --head.populated_pages; }));
  CHECK(found([&] { ++head.hints.contig_hint; }, [&] { --head.hints.contig_hint; }));
  CHECK(found([&] { ++head.hints.contig_hint_start; }, [&] { --head.hints.contig_hint_start; }));
  CHECK(found([&] { ++head.hints.first_free; }, [&] { --head.hints.first_free; }));
  CHECK(found([&] { ++head.due; }, [&] { --head.due; }));
  CHECK(found([&] { ++state.totals.empty_populated_pages; }, [&] { --state.totals.empty_populated_pages; }));
  CHECK(found([&] { ++state.totals.populated_pages; }, [&] { --state.totals.populated_pages; }));
  CHECK(found([&] { state.slots.nonempty ^= 2; }, [&] { state.slots.nonempty ^= 2; }));

  // A live mark of what lies before the map in the unit, and behind it.
  PoolShape parts = sample_shape();
  parts.static_bytes = 8192;
  PoolSample second(parts);
  const AreaMarks marks = second.core.marks();
  for (const uint32_t at : {0u, 4096u, 8192u, 12288u, 32768u, 65532u}) {
    CAPTURE(at);
    marks.begin_life({0}, {at});
    CHECK(second.core.check().has_value());
    CHECK(marks.end_life({0}, {at}) != 0);
    CHECK_FALSE(second.core.check().has_value());
  }
  CHECK(found([&] { ++state.slots.free_chunks; }, [&] { --state.slots.free_chunks; }));
  AreaMap map = state.map(ChunkId{0});
  CHECK(found([&] { map.live()[3] |= 4; }, [&] { map.live()[3] &= ~uint64_t{4}; }));
  CHECK(found([&] { map.bound()[0] &= ~uint64_t{1}; }, [&] { map.bound()[0] |= 1; }));
  CHECK(found([&] { map.populated()[0] ^= 4; }, [&] { map.populated()[0] ^= 4; }));
}

}  // namespace
}  // namespace percpu
