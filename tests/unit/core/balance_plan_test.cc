// SPDX-License-Identifier: MIT
//
// Rounds of balancing, as lines of steps, and what may happen between a step's beginning and its end.
#include "core/balance_plan.h"

#include <doctest/doctest.h>

#include "pool_sample.h"

namespace percpu {
namespace {

using Lines = std::vector<std::string>;
using Step = BalanceStep;
using StepKind = BalanceStep::Kind;

bool fail(const Step&) { return false; }

// A first chunk of 16 immutable pages, all taken, page by page: how many are empty is the test's choice.
struct Stage {
  Stage() : pool(shape()) {
    for (int i = 0; i < 16; ++i) first.push_back(pool.take(4096, 4096));
  }
  static PoolShape shape() {
    PoolShape shape = sample_shape();
    shape.dynamic_bytes = shape.unit_size_bytes;
    return shape;
  }
  void empty_first(size_t pages) {
    for (; pages > 0; --pages) {
      pool.give(first.back());
      first.pop_back();
    }
  }
  [[nodiscard]] int64_t empty_pages() const { return pool.core.totals().empty_populated_pages; }

  PoolSample pool;
  std::vector<Area> first;
};

// ---- destroying -----------------------------------------------------------------------------------------------------

TEST_CASE("all wholly free chunks but one are destroyed, the one freed last is spared") {
  Stage stage;
  stage.empty_first(5);
  const auto two = add_chunk(stage.pool.core);
  const auto three = add_chunk(stage.pool.core);
  const auto four = add_chunk(stage.pool.core);
  REQUIRE(four == ChunkId{3});
  CHECK(stage.pool.balance() == Lines{"destroy 1", "destroy 2"});
  CHECK_FALSE(stage.pool.core.chunk_exists(*two));
  CHECK_FALSE(stage.pool.core.chunk_exists(*three));
  CHECK(stage.pool.core.chunk_exists(*four));
}

TEST_CASE("a chunk that is being destroyed is in no list, and its id is in use until it is gone") {
  Stage stage;
  stage.empty_first(5);
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{1});
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{2});
  const Lines lines = stage.pool.balance([&](const Step& step) {
    CHECK(step.kind == StepKind::destroy_chunk);
    CHECK(stage.pool.core.chunk_exists(step.chunk));
    CHECK_FALSE(stage.pool.core.clear_live(step.chunk, {0}));
    const auto area = stage.pool.core.allocate(65536, 4, Context::normal, Region::dynamic);
    REQUIRE(area.has_value());
    CHECK(area->chunk == ChunkId{2});
    CHECK_FALSE(stage.pool.core.allocate(65536, 4, Context::normal, Region::dynamic).has_value());
    stage.pool.give(*area);
    check_sound(stage.pool.core);
    return true;
  });
  CHECK(lines == Lines{"destroy 1"});
  CHECK(add_chunk(stage.pool.core) == ChunkId{1});
}

TEST_CASE("a chunk made in vain is destroyed again if there is another wholly free one") {
  PoolShape shape = sample_shape();
  shape.unit_size_bytes = 4096;
  shape.dynamic_bytes = 0;
  PoolSample pool(shape);  // units of one page: the reserve of four needs four chunks
  int populated = 0;
  const auto twice = [&](const Step& step) { return step.kind != StepKind::populate || ++populated < 3; };
  CHECK(pool.balance(twice) == Lines{"create 1", "populate 1: 0+1", "create 2", "populate 2: 0+1", "create 3",
                                     "populate 3: 0+1", "destroy 3"});
}

// ---- giving pages back ----------------------------------------------------------------------------------------------

TEST_CASE("an isolated chunk gives its empty pages back, the last first, and is sidelined") {
  Stage stage;
  std::vector<Area> areas = stage.pool.take_chunk();
  const ChunkId chunk = areas[0].chunk;
  stage.empty_first(8);
  for (const int page : {1, 2, 5, 15}) stage.pool.give(areas[page]);
  REQUIRE(stage.pool.core.chunk_stats(chunk).isolated);
  CHECK(stage.pool.balance() == Lines{"depopulate 1: 15+1, 5+1, 1+2"});
  CHECK(stage.pool.slot_of(chunk) == stage.pool.state().slots.sidelined());
  CHECK(stage.pool.core.chunk_stats(chunk).populated_pages == 12);
  CHECK(stage.pool.core.chunk_stats(chunk).empty_populated_pages == 0);
  CHECK(stage.pool.core.chunk_stats(chunk).isolated);
  CHECK(stage.empty_pages() == 8);
}

TEST_CASE("a chunk is reintegrated, its pages kept, when the others have fewer than the high mark") {
  Stage stage;
  std::vector<Area> areas = stage.pool.take_chunk();
  const ChunkId chunk = areas[0].chunk;
  stage.empty_first(5);
  for (int page = 0; page < 4; ++page) stage.pool.give(areas[page]);
  REQUIRE(stage.pool.core.chunk_stats(chunk).isolated);
  stage.pool.take(2 * 4096);  // the others have three now
  CHECK(stage.pool.balance().empty());
  CHECK_FALSE(stage.pool.core.chunk_stats(chunk).isolated);
  CHECK(stage.pool.core.chunk_stats(chunk).empty_populated_pages == 4);
  CHECK(stage.pool.slot_of(chunk) == slot_of_run(4 * 4096));
  CHECK(stage.empty_pages() == 7);
}

TEST_CASE("pages are marked before they are given back, and nobody gets them meanwhile") {
  Stage stage;
  std::vector<Area> areas = stage.pool.take_chunk();
  const ChunkId chunk = areas[0].chunk;
  stage.empty_first(8);
  for (int page = 4; page < 10; ++page) stage.pool.give(areas[page]);
  const Lines lines = stage.pool.balance([&](const Step& step) {
    if (step.kind != StepKind::depopulate) return true;
    CHECK(stage.pool.core.chunk_stats(chunk).populated_pages == 10);
    for (const Context context : {Context::normal, Context::atomic}) {
      CHECK_FALSE(stage.pool.core.allocate(12 * 4096, 4, context, Region::dynamic).has_value());
      const auto area = stage.pool.core.allocate(4096, 4096, context, Region::dynamic);
      REQUIRE(area.has_value());
      CHECK(area->chunk == ChunkId{0});
    }
    return true;
  });
  CHECK(lines[0] == "depopulate 1: 4+6");
}

TEST_CASE("pages emptied behind the cursor meanwhile are given back in another pass") {
  Stage stage;
  std::vector<Area> areas = stage.pool.take_chunk();
  const ChunkId chunk = areas[0].chunk;
  stage.empty_first(8);
  for (int page = 0; page < 4; ++page) stage.pool.give(areas[page]);
  bool first = true;
  const Lines lines = stage.pool.balance([&](const Step&) {
    if (first) stage.pool.give(areas[12]), stage.pool.give(areas[13]);
    first = false;
    return true;
  });
  CHECK(lines == Lines{"depopulate 1: 0+4", "depopulate 1: 12+2"});
  CHECK(stage.pool.slot_of(chunk) == stage.pool.state().slots.sidelined());
}

TEST_CASE("a chunk that becomes wholly free on the way is given back whole and reintegrated") {
  Stage stage;
  std::vector<Area> areas = stage.pool.take_chunk();
  const ChunkId chunk = areas[0].chunk;
  stage.empty_first(8);
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{2});
  for (int page = 0; page < 4; ++page) stage.pool.give(areas[page]);
  bool first = true;
  const Lines lines = stage.pool.balance([&](const Step&) {
    if (first)
      for (int page = 4; page < 16; ++page) {
        const Released released = stage.pool.give(areas[page]);
        CHECK(released.chunk_now_wholly_free == (page == 15));
        CHECK_FALSE(released.wake_balancer);  // it is isolated, and waits already
      }
    first = false;
    return true;
  });
  CHECK(lines == Lines{"depopulate 1: 0+4", "depopulate 1: 4+12", "destroy 2"});
  CHECK(stage.pool.slot_of(chunk) == stage.pool.state().slots.free());
  CHECK_FALSE(stage.pool.core.chunk_stats(chunk).isolated);
}

TEST_CASE("a sidelined chunk is searched before a wholly free one and after all others, and an area reintegrates it") {
  Stage stage;
  std::vector<Area> areas = stage.pool.take_chunk();
  const ChunkId chunk = areas[0].chunk;
  stage.empty_first(8);
  for (int page = 0; page < 6; ++page) stage.pool.give(areas[page]);
  stage.pool.balance();
  REQUIRE(stage.pool.slot_of(chunk) == stage.pool.state().slots.sidelined());
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{2});
  CHECK(stage.pool.core.allocate(4096, 4, Context::normal, Region::dynamic)->chunk == ChunkId{0});
  // Nothing in it is populated, so atomic context finds nothing in it.
  CHECK_FALSE(stage.pool.core.allocate(8 * 4096, 4, Context::atomic, Region::dynamic).has_value());

  stage.pool.take(7 * 4096);  // the first chunk is full
  const Area area = stage.pool.take(2 * 4096);
  CHECK(area.chunk == chunk);
  CHECK_FALSE(stage.pool.core.chunk_stats(chunk).isolated);
  CHECK(stage.pool.slot_of(chunk) == slot_of_run(4 * 4096));
}

TEST_CASE("a sidelined chunk that has empty populated pages again goes back on the list") {
  Stage stage;
  std::vector<Area> areas = stage.pool.take_chunk();
  const ChunkId chunk = areas[0].chunk;
  stage.empty_first(8);
  for (int page = 0; page < 4; ++page) stage.pool.give(areas[page]);
  stage.pool.balance();
  const Released released = stage.pool.give(areas[9]);  // one page is enough
  CHECK(released.isolated);
  CHECK(released.wake_balancer);
  CHECK(stage.pool.balance() == Lines{"depopulate 1: 9+1"});
  CHECK(stage.pool.slot_of(chunk) == stage.pool.state().slots.sidelined());
}

TEST_CASE("runs beyond a step's room come in the next one") {
  PoolShape shape = sample_shape();
  shape.unit_size_bytes = 128 * 4096;
  shape.dynamic_bytes = 16 * 4096;
  PoolSample pool(shape);
  REQUIRE(add_chunk(pool.core).has_value());
  pool.give(pool.take(shape.unit_size_bytes));
  std::vector<Area> areas;
  while (areas.size() < 128) {
    const Area area = pool.take(4096, 4096);
    if (area.chunk == ChunkId{1}) areas.push_back(area);
  }
  pool.give(pool.take_chunk());  // pages for the others
  for (size_t page = 0; page < 128; page += 2) pool.give(areas[page]);
  std::vector<uint32_t> runs;
  pool.balance([&](const Step& step) {
    if (step.kind == StepKind::depopulate && step.chunk == ChunkId{1}) runs.push_back(step.nr_runs);
    return true;
  });
  CHECK(runs == std::vector<uint32_t>{32, 32});
}

TEST_CASE("a wholly free chunk keeps no more than the high mark asks for") {
  Stage stage;
  const Area area = stage.pool.take(65536);
  stage.empty_first(1);
  REQUIRE(stage.pool.give(area).wake_balancer);
  CHECK(stage.empty_pages() == 17);
  CHECK(stage.pool.balance() == Lines{"depopulate 1: 3+13"});
  CHECK(stage.empty_pages() == 4);
  CHECK(stage.pool.slot_of(area.chunk) == stage.pool.state().slots.free());
  CHECK(stage.pool.core.totals().free_chunks == 1);
}

TEST_CASE("a chunk that is trimmed serves meanwhile, with what it has left") {
  Stage stage;
  const Area area = stage.pool.take(65536);
  stage.pool.give(area);
  const Lines lines = stage.pool.balance([&](const Step& step) {
    if (step.kind != StepKind::depopulate) return true;
    const auto atomic = stage.pool.core.allocate(4 * 4096, 4, Context::atomic, Region::dynamic);
    REQUIRE(atomic == Area{{1}, {0}, 4 * 4096});
    CHECK_FALSE(stage.pool.core.allocate(4, 4, Context::atomic, Region::dynamic).has_value());
    // In normal context the pages are missing; populating them waits for the end of the step.
    const auto normal = stage.pool.core.allocate(4096, 4, Context::normal, Region::dynamic);
    REQUIRE(normal.has_value());
    CHECK(stage.pool.core.next_unpopulated_run(*normal) == PageRun{{4}, 1});
    return true;
  });
  CHECK(lines[0] == "depopulate 1: 4+12");
}

// ---- populating -----------------------------------------------------------------------------------------------------

TEST_CASE("empty populated pages are topped up to the high mark, lowest pages first") {
  Stage stage;
  stage.empty_first(1);
  const Area area = stage.pool.take(2 * 4096 + 4);
  REQUIRE(area.chunk == ChunkId{1});
  CHECK(stage.pool.balance() == Lines{"populate 1: 3+3"});
  CHECK(stage.empty_pages() == 4);
  CHECK(stage.pool.balance().empty());
}

TEST_CASE("after a failed atomic allocation the high mark is added to whatever there is") {
  Stage stage;
  stage.empty_first(5);
  stage.pool.take(8192 * 4);
  REQUIRE_FALSE(stage.pool.core.allocate(8 * 4096, 4, Context::atomic, Region::dynamic).has_value());
  CHECK(stage.pool.balance() == Lines{"populate 1: 8+4"});
  CHECK(stage.empty_pages() == 9);
  CHECK_FALSE(stage.pool.core.wants_populate());
}

TEST_CASE("pages come from the fullest chunk that has them, then from the next, then from a new chunk") {
  Stage stage;
  const Area one = stage.pool.take(14 * 4096 + 4);  // chunk 1: one page is unpopulated
  const Area two = stage.pool.take(13 * 4096 + 4);  // chunk 2: two pages
  REQUIRE(one.chunk == ChunkId{1});
  REQUIRE(two.chunk == ChunkId{2});
  CHECK(stage.pool.balance() == Lines{"populate 1: 15+1", "populate 2: 14+2", "create 3", "populate 3: 0+1"});
  CHECK(stage.empty_pages() == 4);
}

TEST_CASE("pages of a sidelined chunk are used before a wholly free chunk's, and it is back in service") {
  Stage stage;
  std::vector<Area> areas = stage.pool.take_chunk();
  const ChunkId chunk = areas[0].chunk;
  stage.empty_first(8);
  for (int page = 0; page < 6; ++page) stage.pool.give(areas[page]);
  stage.pool.balance();
  REQUIRE(stage.pool.slot_of(chunk) == stage.pool.state().slots.sidelined());
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{2});
  stage.pool.take(8 * 4096 - 4);
  CHECK(stage.pool.balance() == Lines{"populate 1: 0+4"});
  CHECK(stage.empty_pages() == 4);
  CHECK_FALSE(stage.pool.core.chunk_stats(chunk).isolated);
}

TEST_CASE("pages are not anybody's before they are populated") {
  Stage stage;
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{1});
  const Lines lines = stage.pool.balance([&](const Step& step) {
    CHECK(step.kind == StepKind::populate);
    CHECK(stage.empty_pages() == 0);
    CHECK_FALSE(stage.pool.core.allocate(4, 4, Context::atomic, Region::dynamic).has_value());
    // An area in normal context may come to lie on them; it finds them populated once it may look.
    const auto area = stage.pool.core.allocate(4096, 4, Context::normal, Region::dynamic);
    REQUIRE(area == Area{{1}, {0}, 4096});
    CHECK(stage.empty_pages() == -1);
    return true;
  });
  CHECK(lines == Lines{"populate 1: 0+4"});
  CHECK(stage.empty_pages() == 3);
  CHECK(stage.pool.core.wants_populate());  // an atomic allocation failed on the way
}

TEST_CASE("the first failure ends the populating, creation included") {
  Stage stage;
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{1});
  CHECK(stage.pool.balance(fail) == Lines{"populate 1: 0+4"});
  CHECK(stage.empty_pages() == 0);
  CHECK(stage.pool.core.chunk_stats({1}).populated_pages == 0);

  Stage without;
  CHECK(without.pool.balance(fail) == Lines{"create 1"});
  CHECK_FALSE(without.pool.core.chunk_exists({1}));
}

TEST_CASE("no chunk is created beyond the maximum") {
  PoolShape shape = sample_shape();
  shape.max_chunks = 1;
  PoolSample pool(shape);
  pool.take(16384);
  CHECK(pool.balance().empty());
}

TEST_CASE("a chunk that is created is out of reach until it is there") {
  Stage stage;
  stage.pool.balance([&](const Step& step) {
    if (step.kind == StepKind::create_chunk) {
      CHECK(stage.pool.core.chunk_exists(step.chunk));
      CHECK_FALSE(stage.pool.core.allocate(4, 4, Context::normal, Region::dynamic).has_value());
    }
    return true;
  });
}

TEST_CASE("a chunk that is lost while it is made or destroyed exists no more, and its id is never used again") {
  Stage stage;
  BalancePlan making(stage.pool.core);
  REQUIRE(making.next().kind == StepKind::create_chunk);
  making.lost();
  check_sound(stage.pool.core);
  CHECK(making.next().kind == StepKind::done);  // as after a failure
  CHECK_FALSE(stage.pool.core.chunk_exists({1}));
  CHECK(stage.pool.core.chunk_lost({1}));
  CHECK(stage.pool.core.totals().chunks == 1);
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{2});
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{3});
  stage.empty_first(5);
  BalancePlan destroying(stage.pool.core);
  REQUIRE(destroying.next().kind == StepKind::destroy_chunk);
  destroying.lost();
  check_sound(stage.pool.core);
  CHECK(destroying.next().kind == StepKind::done);
  CHECK(stage.pool.core.chunk_lost({2}));
  CHECK(stage.pool.core.totals().chunks == 2);
  CHECK(stage.pool.core.next_chunk({1}) == ChunkId{3});
  CHECK(add_chunk(stage.pool.core) == ChunkId{4});
}

TEST_CASE("a round that is to give memory back takes none") {
  Stage stage;
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{1});
  REQUIRE(add_chunk(stage.pool.core) == ChunkId{2});
  stage.pool.core.note_atomic_failure();
  const auto succeed = [](const Step&) { return true; };
  CHECK(stage.pool.balance(succeed, BalancePlan::Goal::give_back) == Lines{"destroy 1"});
  CHECK(stage.pool.core.wants_populate());  // the failure is not forgotten by it
}

TEST_CASE("an idle pool needs no steps") {
  PoolSample pool;
  CHECK(pool.balance().empty());
}

TEST_CASE("after everything was freed one wholly free chunk is left, with the high mark's pages") {
  PoolSample pool;
  std::vector<Area> areas;
  for (int i = 0; i < 2000; ++i) areas.push_back(pool.take(4 + 4 * (i * 7 % 300)));
  CHECK(pool.core.totals().chunks > 10);
  for (size_t i = 0; i < areas.size(); ++i) {
    const Released released = pool.give(areas[(i * 1237) % areas.size()]);
    if (released.wake_balancer && i % 5 == 0) pool.balance();
  }
  pool.balance();
  CHECK(pool.core.totals().chunks <= 2);
  CHECK(pool.core.totals().populated_pages <= 4 + 4);
  CHECK(pool.balance().empty());
}

}  // namespace
}  // namespace percpu
