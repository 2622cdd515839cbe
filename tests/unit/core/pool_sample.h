// SPDX-License-Identifier: MIT
//
// A pool in zeroed pages of its own, for tests: allocation as the runtime does it, rounds of balancing as lines of
// text.
#ifndef PERCPU_TESTS_POOL_SAMPLE_H
#define PERCPU_TESTS_POOL_SAMPLE_H

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <functional>
#include <string>
#include <vector>

#include "core/balance_plan.h"
#include "core/pool_core.h"
#include "core/pool_state.h"

namespace percpu {

// Units of 16 pages of 4 KiB; the first chunk has 4 of them for its dynamic part, which is all it has.
inline PoolShape sample_shape() {
  PoolShape shape;
  shape.unit_size_bytes = 65536;
  shape.max_chunks = 100;
  shape.dynamic_bytes = 16384;
  return shape;
}

inline void check_sound(PoolCore core) {
  if (const auto defect = core.check()) {
    CAPTURE(defect->what);
    CAPTURE(defect->expected);
    CAPTURE(defect->found);
    CAPTURE(defect->chunk.value);
    CAPTURE(defect->page.value);
    FAIL("the pool's own check found a discrepancy");
  }
}

// A chunk whose memory is there at once.
[[nodiscard]] inline std::optional<ChunkId> add_chunk(PoolCore core) {
  const std::optional<ChunkId> chunk = core.begin_chunk();
  if (chunk) core.publish_chunk(*chunk);
  return chunk;
}

class PoolSample {
 public:
  explicit PoolSample(const PoolShape& shape = sample_shape())
      : storage_bytes_(PoolCore::storage_bytes(shape)),
        storage_(map(storage_bytes_)),
        core(PoolCore::create(storage_, shape)) {}
  ~PoolSample() {
    check_sound(core);
    munmap(storage_, storage_bytes_);
  }
  PoolSample(const PoolSample&) = delete;
  PoolSample& operator=(const PoolSample&) = delete;

  // An area with its pages.
  Area take(uint32_t size_bytes, uint32_t align_bytes = 4) {
    auto area = core.allocate(size_bytes, align_bytes, Context::normal, Region::dynamic);
    if (!area) {
      REQUIRE(add_chunk(core).has_value());
      area = core.allocate(size_bytes, align_bytes, Context::normal, Region::dynamic);
    }
    REQUIRE(area.has_value());
    while (const auto run = core.next_unpopulated_run(*area)) core.mark_populated(area->chunk, *run);
    return *area;
  }
  Released give(const Area& area) {
    REQUIRE(core.clear_live(area.chunk, area.offset));
    return core.release(area.chunk, area.offset);
  }
  void give(const std::vector<Area>& areas) {
    for (const Area& area : areas) give(area);
  }
  // Fills a chunk of its own with areas of one page.
  std::vector<Area> take_chunk() {
    const auto chunk = add_chunk(core);
    REQUIRE(chunk.has_value());
    std::vector<Area> areas = {take(state().shape.unit_size_bytes)};
    REQUIRE(areas[0].chunk == *chunk);
    give(areas[0]);
    areas.clear();
    for (uint32_t page = 0; page < 16; ++page) areas.push_back(take(4096, 4096));
    for (const Area& area : areas) REQUIRE(area.chunk == *chunk);
    return areas;
  }

  PoolState& state() { return *static_cast<PoolState*>(storage_); }
  [[nodiscard]] void* storage() const { return storage_; }
  [[nodiscard]] uint64_t storage_bytes() const { return storage_bytes_; }
  uint32_t slot_of(ChunkId chunk) { return core.chunk_stats(chunk).slot; }

  // Runs a round of balancing; `meanwhile` is called while a step is in flight and says whether it succeeds.
  // Returns: the steps, a line each.
  std::vector<std::string> balance(
      const std::function<bool(const BalanceStep&)>& meanwhile = [](const BalanceStep&) { return true; },
      BalancePlan::Goal goal = BalancePlan::Goal::balance) {
    std::vector<std::string> lines;
    BalancePlan plan(core, goal);
    for (BalanceStep step = plan.next(); step.kind != BalanceStep::Kind::done; step = plan.next()) {
      lines.push_back(line(step));
      const bool succeeds = meanwhile(step);
      plan.completed(succeeds);
      check_sound(core);
    }
    CHECK(plan.next().kind == BalanceStep::Kind::done);
    return lines;
  }

 private:
  static std::string line(const BalanceStep& step) {
    using Kind = BalanceStep::Kind;
    const char* names[] = {"done", "destroy", "depopulate", "populate", "create"};
    static_assert(static_cast<int>(Kind::create_chunk) == 4);
    std::string text = names[static_cast<int>(step.kind)];
    text += " " + std::to_string(step.chunk.value);
    for (uint32_t i = 0; i < step.nr_runs; ++i) {
      text += i == 0 ? ": " : ", ";
      text += std::to_string(step.runs[i].first.value) + "+" + std::to_string(step.runs[i].count);
    }
    return text;
  }

  // As a reservation of the library, of small pages: where the system makes all pages huge, a touched byte would be 2 MiB.
  static void* map(uint64_t bytes) {
    void* storage = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(storage, bytes, MADV_NOHUGEPAGE);
    return storage;
  }

  uint64_t storage_bytes_;
  void* storage_;

 public:
  PoolCore core;
};

}  // namespace percpu

#endif  // PERCPU_TESTS_POOL_SAMPLE_H
