// SPDX-License-Identifier: MIT
#include "runtime/shelf.h"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "../seed.h"
#include "waiting.h"

namespace percpu {
namespace {

std::vector<void*> allocate(TestPool& pool, size_t count, size_t size_bytes) {
  std::vector<void*> handles;
  for (size_t i = 0; i < count; i++) handles.push_back(pool.alloc(size_bytes));
  return handles;
}

TEST_CASE("random calls do what a queue with two ends does") {
  const uint64_t seed = test_seed();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  Shelves shelves;
  shelves.open(real_system());
  constexpr uint32_t kFirst = Shelves::kNrClasses - 3;  // the largest areas: their shelves fill up
  std::deque<uintptr_t> model[3];
  size_t least[3] = {};
  uintptr_t next = 8;
  bool filled[3] = {};
  for (int step = 0; step < 60000; step++) {
    const auto m = random() % 3;
    const auto c = static_cast<uint32_t>(kFirst + m);
    const auto count = static_cast<uint32_t>(random() % 90);
    const size_t limit = Shelves::limit_of(c);
    std::deque<uintptr_t>& queue = model[m];
    std::vector<uintptr_t> areas(count);
    switch (random() % 9) {
      case 0: case 1: case 2: case 3: case 4:
        for (uintptr_t& area : areas) area = next += 8;
        REQUIRE(shelves.put(c, areas.data(), count) == std::min<size_t>(count, limit - queue.size()));
        for (uint32_t i = 0; i < count && queue.size() < limit; i++) queue.push_back(areas[i]);
        filled[m] |= queue.size() == limit;
        break;
      case 5: case 6: case 7: {
        const uint32_t taken = shelves.take(c, areas.data(), count);
        REQUIRE(taken == std::min<size_t>(count, queue.size()));
        REQUIRE(std::equal(areas.begin(), areas.begin() + taken, queue.end() - taken));
        queue.erase(queue.end() - taken, queue.end());
        least[m] = std::min(least[m], queue.size());
        break;
      }
      default: {
        const uint32_t taken = shelves.take_idle(c, areas.data(), count);
        REQUIRE(taken == std::min<size_t>(count, least[m]));
        REQUIRE(std::equal(areas.begin(), areas.begin() + taken, queue.begin()));
        queue.erase(queue.begin(), queue.begin() + taken);
        least[m] -= taken;
        if (least[m] == 0) {
          shelves.begin_account(c);
          least[m] = queue.size();
        }
      }
    }
    REQUIRE(shelves.count(c) == queue.size());
  }
  CHECK((filled[0] && filled[1] && filled[2]));
  const uint64_t sum = model[0].size() + model[1].size() + model[2].size();
  CHECK(shelves.nr_areas() == sum);
  CHECK(shelves.nr_bytes() == model[0].size() * 96 + model[1].size() * 128 + model[2].size() * 256);
  CHECK(shelves.resident_bytes(real_system()) >= sum * sizeof(uintptr_t));
  shelves.close(real_system());
}

TEST_CASE("a shelf takes areas of 512 KiB of each copy, and its memory goes back once all shelves are empty") {
  for (uint32_t c = 0; c < Shelves::kNrClasses; c++) {
    CHECK(Shelves::limit_of(c) * FrontCache::size_of(c) <= 512 << 10);
    CHECK((Shelves::limit_of(c) + 1) * FrontCache::size_of(c) > 512 << 10);
  }
  Shelves shelves;
  shelves.open(real_system());
  CHECK(shelves.resident_bytes(real_system()) == 0);
  CHECK(!shelves.shut());  // nothing to give back
  std::vector<uintptr_t> areas(Shelves::limit_of(0) + 1, 8);
  REQUIRE(shelves.put(0, areas.data(), static_cast<uint32_t>(areas.size())) == areas.size() - 1);
  uintptr_t other = 16;
  REQUIRE(shelves.put(1, &other, 1) == 1);
  REQUIRE(shelves.take(0, areas.data(), static_cast<uint32_t>(areas.size())) == areas.size() - 1);
  CHECK(!shelves.shut());  // one lies there
  REQUIRE(shelves.take(1, &other, 1) == 1);
  CHECK(shelves.resident_bytes(real_system()) >= (areas.size() - 1) * sizeof(uintptr_t));
  REQUIRE(shelves.shut());
  CHECK(shelves.put(1, &other, 1) == 0);
  shelves.depopulate(real_system());
  CHECK(shelves.resident_bytes(real_system()) == 0);
  shelves.reopen();
  CHECK(shelves.put(1, &other, 1) == 1);
  CHECK(shelves.take(1, &other, 1) == 1);
  CHECK(other == 16);
  shelves.close(real_system());
}

TEST_CASE("mlockall(MCL_FUTURE) does not back what is not used of a shelf") {
  if (mlockall(MCL_FUTURE) != 0) return;  // not allowed here
  Shelves shelves;
  shelves.open(real_system());
  const bool opened = shelves.is_open();
  const size_t resident = shelves.resident_bytes(real_system());
  shelves.close(real_system());
  munlockall();
  CHECK(opened);
  CHECK(resident == 0);
}

TEST_CASE("without memory for it nothing is shelved") {
  FaultySystem& faulty = FaultySystem::reset();
  faulty.fail_nth(Call::kMmap, 1, ENOMEM);
  Shelves shelves;
  shelves.open(faulty.system());
  uintptr_t area = 8;
  CHECK(shelves.put(0, &area, 1) == 0);
  CHECK(shelves.take(0, &area, 1) == 0);
  CHECK(shelves.take_idle(0, &area, 1) == 0);
  CHECK(shelves.nr_areas() == 0);
  CHECK(shelves.resident_bytes(faulty.system()) == 0);
  shelves.close(faulty.system());
  faulty.reset();
}

TEST_CASE("a thousand areas that are freed wait to be allocated again, and are the same ones") {
  if (!front_caches_work()) return;
  World world("balance:thread");
  HeldThread held(world);
  const OnOneCpu here;
  TestPool pool(world, kNarrow);
  warm_up(pool, 8);
  std::vector<void*> handles = allocate(pool, 1000, 8);
  std::set<void*> before(handles.begin(), handles.end());
  for (void* handle : handles) pool.fill_copies(handle, 8, 0x5a);
  free_all(pool, handles);
  CHECK(pool.stats().nr_cached >= 1000);
  CHECK(pool.stats().nr_live == 0);
  CHECK(pool.stats().live_bytes == 0);
  const uint64_t nr_allocs = pool.stats().nr_allocs;
  handles = allocate(pool, 1000, 8);
  CHECK(pool.stats().nr_allocs == nr_allocs + 1000);
  CHECK(pool.stats().nr_live == 1000);
  for (void* handle : handles) CHECK(pool.nr_dirty_copies(handle, 8) == 0);
  before.insert(handles.begin(), handles.end());
  CHECK(before.size() <= 1001);  // the one of the beginning among them
  free_all(pool, handles);
}

TEST_CASE("what a burst left goes back to the maps, also while the pool is used; all of it at once when that is asked for") {
  if (!front_caches_work()) return;
  World world("balance:thread");
  HeldThread held(world);
  const OnOneCpu here;
  TestPool pool(world, kNarrow);
  warm_up(pool, 8);
  std::vector<void*> handles = allocate(pool, 1000, 8);
  free_all(pool, handles);
  uint64_t now = 1000;
  (void)pool->look_after_front_caches(now);  // takes account of what lies there
  REQUIRE(pool.stats().nr_cached >= 1000);
  // Another size is in use, and of this one a hundred are.
  for (int i = 0; i < 3; i++) {
    free_all(pool, handles = allocate(pool, 100, 8));
    pool.free(pool.alloc(64));
    now += 200;
    CHECK(pool->look_after_front_caches(now) != 0);
  }
  CHECK(pool.stats().nr_cached >= 60);
  CHECK(pool.stats().nr_cached <= 200);
  free_all(pool, handles = allocate(pool, 1000, 8));
  REQUIRE(pool.stats().nr_cached >= 1000);
  pool->balance();
  CHECK(pool.stats().nr_cached <= FrontCache::kLimit + 2);
  // And nobody uses it any more.
  free_all(pool, handles = allocate(pool, 1000, 8));
  (void)pool->look_after_front_caches(now);
  CHECK(pool->look_after_front_caches(now + 199) != 0);
  CHECK(pool.stats().nr_cached >= 1000);
  CHECK(pool->look_after_front_caches(now + 200) == 0);
  CHECK(pool.stats().nr_cached == 0);
}

TEST_CASE("bursts on several CPUs: no area is anybody else's, and each is zero when it is handed out") {
  const uint64_t seed = test_seed();
  CAPTURE(seed);
  World world("balance:thread");
  TestPool pool(world, kNarrow);
  std::atomic<uint64_t> nr_wrong{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      for (int round = 0; round < 60; round++) {
        move(world, random);
        const size_t size = random() % 2 == 0 ? 8 : 24;
        std::vector<void*> handles;
        for (uint64_t i = 0, count = random() % 400; i < count; i++) {
          int error = 0;
          handles.push_back(pool->allocate(size, 4, 0, kNoDomain, &error));
          nr_wrong += pool.nr_dirty_copies(handles.back(), size);
          pool.fill_copies(handles.back(), size, static_cast<unsigned char>(t + 1));
        }
        for (void* handle : handles) {
          pool.each_copy(handle, [&](uint32_t, const unsigned char* at) { nr_wrong += at[0] != t + 1; });
          pool.free(handle);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(nr_wrong == 0);
  pool->check();
}

TEST_CASE("a child of a fork has what is shelved, once") {
  if (!front_caches_work()) return;
  World world("balance:thread");
  HeldThread held(world);
  TestPool pool(world, kNarrow);
  warm_up(pool, 8);
  std::vector<void*> handles = allocate(pool, 500, 8);
  free_all(pool, handles);
  REQUIRE(pool.stats().nr_cached >= 500);
  const auto uses = [&] {
    std::vector<void*> own = allocate(pool, 700, 8);
    const std::set<void*> different(own.begin(), own.end());
    free_all(pool, own);
    pool->check();
    return different.size() == 700 && pool.stats().nr_live == 0 ? 0 : 1;
  };
  const ChildEnd end = run_forked(pool, uses);
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
  CHECK(uses() == 0);
}

}  // namespace
}  // namespace percpu
