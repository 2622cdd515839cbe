// SPDX-License-Identifier: MIT
//
// Areas that wait in the front caches: what they count as, who zeroes them, and when they are given back.
#include <doctest/doctest.h>

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../child.h"
#include "../seed.h"
#include "os/clock.h"
#include "waiting.h"

namespace percpu {
namespace {

// How often all CPUs were fenced, or some, by membarrier or by going there.
int nr_fences(const World& world) { return world.faulty.count(Call::kMembarrier) + world.faulty.count(Call::kSchedSetaffinity); }

TEST_CASE("the stacks of many CPUs are stopped some at a time, round and round, and at least one") {
  if (!FrontCache::kServes) return;
  constexpr uint32_t kCpus = 4;
  constexpr uint32_t kCopies = 5;
  const size_t size = round_up(FrontCache::size_bytes(true), FrontCache::kAlignBytes);
  const std::unique_ptr<std::byte, void (*)(void*)> memory(static_cast<std::byte*>(std::aligned_alloc(FrontCache::kAlignBytes, kCpus * size)),
                                                           [](void* at) { std::free(at); });
  std::fill_n(memory.get(), kCpus * size, std::byte{0});
  uintptr_t offsets[kCpus];
  for (uint32_t cpu = 0; cpu < kCpus; cpu++) offsets[cpu] = cpu * size;
  percpu_view view{};
  FrontCache front;
  front.open(view, reinterpret_cast<uintptr_t>(memory.get()), offsets, kCpus, kCopies, true);
  const auto put = [&front](uint32_t cpu, uint32_t size_class, uint32_t count) {
    percpu_stack_set_count(front.stack_of(cpu, FrontCache::kFreed, size_class), count);
  };
  const auto stopped = [&front] {
    uint32_t mask = 0;
    for (uint32_t cpu = 0; cpu < kCpus; cpu++) mask |= uint32_t{front.is_stopped(cpu)} << cpu;
    front.start();
    return mask;
  };
  uint32_t cpu = 0;
  CHECK(front.stop_some(&cpu, 1000) == 0);
  CHECK(stopped() == 0);
  put(1, 0, 10);
  put(1, 3, 10);
  put(3, 1, 20);
  CHECK(front.stop_some(&cpu, 1) == 1);  // more than that is there, but one it is
  CHECK(cpu == 2);
  CHECK(stopped() == 0b0010);
  CHECK(front.stop_some(&cpu, 1) == 1);
  CHECK(stopped() == 0b1000);
  CHECK(front.stop_some(&cpu, 199) == 1);
  CHECK(stopped() == 0b0010);
  CHECK(front.stop_some(&cpu, 200) == 2);
  CHECK(stopped() == 0b1010);
  CHECK(stopped() == 0);
}

TEST_CASE("how many areas may wait goes down with the square of the CPUs, but not to nothing with very many") {
  for (uint32_t c = 0; c < FrontCache::kNrClasses; c++) {
    CAPTURE(FrontCache::size_of(c));
    CHECK(FrontCache::limit_for(c, 2, 3, 1) == FrontCache::kLimit);
    const auto with = [c](uint32_t cpus) { return FrontCache::limit_for(c, cpus, cpus + 1, 2); };
    CHECK(with(64) >= with(256));
    CHECK(with(512) == with(256));
    CHECK(with(4096) == with(256));
    if (FrontCache::size_of(c) <= 64) CHECK(with(4096) != 0);
  }
  CHECK(FrontCache::limit_for(1, 256, 257, 2) == 16);  // 8 bytes
}

TEST_CASE("an area that waits is free: a second free is told, whether it is ready or not") {
  for (const TestSetup& setup : {kNarrow, kWide}) {
    CAPTURE(setup.nr_cpus);
    World world("balance:thread");
    TestPool pool(world, setup);
    warm_up(pool, 24);
    void* handle = pool.alloc(24);
    const ChildEnd live = run_forked(pool, [&] {
      pool.free(handle);
      return 0;
    });
    CHECK(live.exit_code == 0);
    pool.free(handle);
    const ChildEnd at_once = run_forked(pool, [&] {
      pool.free(handle);
      return 0;
    });
    CHECK(at_once.signal == SIGABRT);
    CHECK(contains(at_once.standard_error, "found an area that is freed already"));
    CHECK(pool->area_size(handle) == 0);
    // By now the thread may have made it ready, or given it back.
    const timespec pause = {0, 50 * 1000 * 1000};
    nanosleep(&pause, nullptr);
    const ChildEnd later = run_forked(pool, [&] {
      pool.free(handle);
      return 0;
    });
    CHECK(later.signal == SIGABRT);
    CHECK(contains(later.standard_error, "freed"));
  }
}

TEST_CASE("of threads that free the same area, one wins, and the process stops") {
  for (const TestSetup& setup : {kNarrow, kWide}) {
    World world("balance:thread");
    TestPool pool(world, setup);
    warm_up(pool, 8);
    const ChildEnd end = run_forked(pool, [&] {
      for (int round = 0; round < 100000; round++) {
        void* handle = pool.alloc(8);
        std::atomic<int> ready{0};
        const auto free_it = [&] {
          ready.fetch_add(1);
          while (ready.load() < 2) std::this_thread::yield();
          pool.free(handle);
        };
        std::thread other(free_it);
        free_it();
        other.join();
      }
      return 0;
    });
    CHECK(end.signal == SIGABRT);
    CHECK(contains(end.standard_error, "expected the start of a live area"));
  }
}

TEST_CASE("every copy is zero when an area is handed out, after churn by threads that move between CPUs") {
  const uint64_t seed = test_seed();
  CAPTURE(seed);
  for (const TestSetup& setup : {kNarrow, kWide}) {
    World world("balance:thread");
    TestPool pool(world, setup);
    std::atomic<uint64_t> nr_dirty{0};
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 3; t++) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(seed + t);
        constexpr size_t kSizes[] = {4, 8, 12, 24, 64, 96, 256, 1000};
        std::vector<std::pair<void*, size_t>> live;
        for (int i = 0; i < 4000; i++) {
          if (i % 100 == 0) move(world, random);
          if (live.size() < 40 || random() % 2 == 0) {
            const size_t size = kSizes[random() % std::size(kSizes)];
            int error = 0;
            void* handle = pool->allocate(size, 4, 0, kNoDomain, &error);
            if (handle == nullptr) {
              nr_dirty += 1000000;
              break;
            }
            nr_dirty += pool.nr_dirty_copies(handle, size);
            pool.fill_copies(handle, size, 0x5a);
            live.push_back({handle, size});
          } else {
            const size_t victim = random() % live.size();
            pool.free(live[victim].first);
            live[victim] = live.back();
            live.pop_back();
          }
        }
        for (const auto& area : live) pool.free(area.first);
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(nr_dirty == 0);
    pool->check();
  }
}

TEST_CASE("in a wide pool an area stays charged until it is ready, and a charge that would fail has it given back first") {
  World world("balance:thread");
  TestPool pool(world, kWide);
  int error = 0;
  // The first chunk charges nobody: fill it.
  std::vector<void*> first;
  do first.push_back(pool.alloc(256));
  while (pool.chunk_of(first.back()) == 0);
  warm_up(pool, 64);
  void* probe = pool.alloc(64);
  REQUIRE(pool.chunk_of(probe) != 0);
  pool.free(probe);
  const DomainId domain = world.accounting.create(world.faulty.system(), "one", PERCPU_NO_LIMIT, kNoDomain, &error);
  const auto charged = [&] { return world.accounting.entry(domain).charged_bytes.load(); };
  for (int round = 0; round < 20; round++) {
    void* handle = pool.alloc(64, 4, PERCPU_ACCOUNT, domain);
    REQUIRE(handle != nullptr);
    const size_t one = charged();
    CHECK(one >= 64 * 64);
    // Room for one: the next is allocated although the thread may not have made the first one ready.
    world.accounting.entry(domain).limit_bytes.store(one);
    pool.free(handle);
    handle = pool.alloc(64, 4, PERCPU_ACCOUNT, domain);
    CHECK(handle != nullptr);
    CHECK(charged() == one);
    CHECK(pool.alloc(64, 4, PERCPU_ACCOUNT | PERCPU_NOWARN, domain) == nullptr);
    pool.free(handle);
    CHECK(eventually([&] { return charged() == 0; }));
    world.accounting.entry(domain).limit_bytes.store(PERCPU_NO_LIMIT);
  }
  world.accounting.put(domain);
  free_all(pool, first);
}

TEST_CASE("areas that wait are given back before an allocation fails") {
  for (const uint32_t nr_cpus : {0u, 64u}) {
    CAPTURE(nr_cpus);
    World world("balance:thread");
    TestPool pool(world, {.unit_size_bytes = 32 << 10, .max_bytes = 64 << 10, .nr_cpus = nr_cpus});
    warm_up(pool, 64);
    std::vector<void*> handles;
    for (void* handle; (handle = pool.alloc(64, 4, PERCPU_NOWARN)) != nullptr;) {
      pool.fill_copies(handle, 64, 0xff);
      handles.push_back(handle);
    }
    REQUIRE(handles.size() > 200);
    // Two neighbours: together they are what a larger area needs, once the maps have them.
    for (int round = 0; round < 50; round++) {
      const auto at = static_cast<size_t>(round);
      const auto neighbour = reinterpret_cast<uintptr_t>(handles[at]) + 64;
      const auto second = std::find(handles.begin(), handles.end(), reinterpret_cast<void*>(neighbour));
      if (second == handles.end()) continue;
      pool.free(handles[at]);
      pool.free(*second);
      void* large = pool.alloc(128, 4, PERCPU_NOWARN);
      REQUIRE(large != nullptr);
      CHECK(pool.nr_dirty_copies(large, 128) == 0);
      pool.free(large);
      handles[at] = pool.alloc(64);
      *second = pool.alloc(64);
      REQUIRE(handles[at] != nullptr);
      REQUIRE(*second != nullptr);
    }
    free_all(pool, handles);
  }
}

TEST_CASE("an allocation that a full pool or a domain's limit refuses stops no CPU where nothing waits that could help") {
  if (!front_caches_work()) return;
  for (const uint32_t nr_cpus : {0u, 64u}) {
    CAPTURE(nr_cpus);
    World world("balance:thread");
    HeldThread held(world);
    TestPool pool(world, {.unit_size_bytes = 32 << 10, .max_bytes = 128 << 10, .nr_cpus = nr_cpus});
    warm_up(pool, 64);
    std::vector<void*> handles;
    for (void* handle; (handle = pool.alloc(64, 4, PERCPU_NOWARN)) != nullptr;) handles.push_back(handle);
    REQUIRE(pool.stats().nr_cached == 0);
    int fences = nr_fences(world);
    CHECK(pool.alloc(64, 4, PERCPU_NOWARN) == nullptr);
    CHECK(pool.error == ENOMEM);
    CHECK(nr_fences(world) == fences);

    int error = 0;
    const DomainId domain = world.accounting.create(world.faulty.system(), "one", PERCPU_NO_LIMIT, kNoDomain, &error);
    // The first chunk charges nobody.
    std::sort(handles.begin(), handles.end());
    REQUIRE(pool.chunk_of(handles.back()) != 0);
    pool.free(handles.back());
    handles.back() = pool.alloc(64, 4, PERCPU_ACCOUNT, domain);
    REQUIRE(handles.back() != nullptr);
    world.accounting.entry(domain).limit_bytes.store(world.accounting.entry(domain).charged_bytes);
    REQUIRE(pool.stats().nr_cached == 0);
    fences = nr_fences(world);
    CHECK(pool.alloc(64, 4, PERCPU_ACCOUNT | PERCPU_NOWARN, domain) == nullptr);
    CHECK(pool.error == ENOMEM);
    CHECK(nr_fences(world) == fences);
    CHECK(world.accounting.entry(domain).nr_refused == 1);
    world.accounting.put(domain);
    free_all(pool, handles);
  }
}

TEST_CASE("an allocation takes one area off its CPU's stack at most to find that it is not aligned") {
  if (!front_caches_work()) return;
  for (const TestSetup& setup : {kNarrow, kWide}) {
    CAPTURE(setup.nr_cpus);
    World world("balance:thread");
    HeldThread held(world);
    TestPool pool(world, setup);
    warm_up(pool, 8);
    std::vector<void*> handles;
    for (int i = 0; i < 60; i++) handles.push_back(pool.alloc(8));
    std::vector<void*> misaligned;
    for (void*& handle : handles) {
      if (reinterpret_cast<uintptr_t>(handle) % 512 == 0) continue;
      misaligned.push_back(handle);
      handle = nullptr;
    }
    free_all(pool, misaligned);
    std::erase(handles, nullptr);
    (void)pool->look_after_front_caches(1000);  // in a wide pool they are ready now
    const uint64_t before = pool.stats().nr_cached;
    REQUIRE(before >= 2);
    handles.push_back(pool.alloc(8, 512));
    CHECK(reinterpret_cast<uintptr_t>(handles.back()) % 512 == 0);
    CHECK(pool.stats().nr_cached >= before - 1);
    CHECK(pool.stats().nr_live == handles.size());
    free_all(pool, handles);
  }
}

TEST_CASE("static variables in the reserved part are told from areas, and no other free has to look for them") {
  if (!front_caches_work()) return;
  World world("balance:thread");
  HeldThread held(world);
  TestPool pool(world, {.unit_size_bytes = 64 << 10, .reserved_bytes = 4096, .nr_cpus = 64});
  warm_up(pool, 8);
  void* variables = pool->allocate_statics(64, 8);
  REQUIRE(variables != nullptr);
  const ChildEnd end = run_forked(pool, [&] {
    pool.free(variables);
    return 0;
  });
  CHECK(end.signal == SIGABRT);
  CHECK(contains(end.standard_error, "found a static per-CPU variable"));
  // No record is in use, so nothing that waits is charged: a charge that fails drains nothing.
  pool.free(pool.alloc(8));
  int error = 0;
  const DomainId domain = world.accounting.create(world.faulty.system(), "full", 0, kNoDomain, &error);
  const int fences = nr_fences(world);
  CHECK(pool.alloc(8, 4, PERCPU_ACCOUNT | PERCPU_NOWARN, domain) == nullptr);
  CHECK(nr_fences(world) == fences);
  world.accounting.put(domain);
  pool->free_statics(variables);
}

TEST_CASE("a burst that was freed is ready after a while: the next one finds it zero without the maps") {
  if (!front_caches_work()) return;
  World world("balance:thread");
  TestPool pool(world, kWide);
  warm_up(pool, 8);
  std::vector<void*> handles;
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 30; i++) {
      handles.push_back(pool.alloc(8));
      CHECK(pool.nr_dirty_copies(handles.back(), 8) == 0);
      pool.fill_copies(handles.back(), 8, 0xff);
    }
    free_all(pool, handles);
    const timespec pause = {0, 30 * 1000 * 1000};
    nanosleep(&pause, nullptr);
  }
}

TEST_CASE("a thread that only frees uses the front caches too") {
  if (!front_caches_work()) return;
  World world("balance:thread");
  TestPool pool(world, kNarrow);
  CHECK(eventually([&] {  // the front caches may be emptied before they are looked at
    warm_up(pool, 24);
    std::vector<void*> handles;
    for (int i = 0; i < 20; i++) handles.push_back(pool.alloc(24));
    const uint64_t before = pool.stats().nr_cached;
    std::thread([&] { free_all(pool, handles); }).join();
    return pool.stats().nr_cached >= before + 20;
  }));
}

TEST_CASE("front caches that were emptied for want of use serve again as soon as they are used") {
  if (!front_caches_work()) return;
  for (const TestSetup& setup : {kNarrow, kWide}) {
    World world("balance:thread");
    TestPool pool(world, setup);
    warm_up(pool, 8);
    int kept = 0;
    for (int round = 0; round < 6; round++) {
      std::vector<void*> handles;
      for (int i = 0; i < 30; i++) handles.push_back(pool.alloc(8));
      free_all(pool, handles);
      (void)pool->look_after_front_caches(coarse_ms());  // the first time after they were empty
      kept += pool.stats().nr_cached != 0;
      CHECK(eventually([&] { return pool.stats().nr_cached == 0; }));
    }
    CHECK(kept >= 3);  // this thread may have slept for so long that they were emptied for want of use again
  }
}

TEST_CASE("front caches are emptied 0.2 s after they were found in use, however often the thread wakes meanwhile") {
  if (!front_caches_work()) return;
  for (const TestSetup& setup : {kNarrow, kWide}) {
    CAPTURE(setup.nr_cpus);
    World world("balance:thread");
    HeldThread held(world);
    TestPool pool(world, setup);
    for (uint64_t now : {1000, 5000}) {
      warm_up(pool, 8);
      for (const uint64_t later : {0, 1, 2, 100, 199}) {
        CHECK(pool->look_after_front_caches(now + later) != 0);
        CHECK(pool.stats().nr_cached != 0);
      }
      // Used again: the time counts from here on.
      now += 200;
      pool.free(pool.alloc(8));
      CHECK(pool->look_after_front_caches(now) != 0);
      CHECK(pool->look_after_front_caches(now + 199) != 0);
      CHECK(pool.stats().nr_cached != 0);
      CHECK(pool->look_after_front_caches(now + 200) == 0);
      CHECK(pool.stats().nr_cached == 0);
    }
  }
}

TEST_CASE("what a CPU holds that does nothing with it is given back while another allocates and frees") {
  if (!front_caches_work()) return;
  for (const TestSetup& setup : {kNarrow, kWide}) {
    CAPTURE(setup.nr_cpus);
    World world("balance:thread");
    if (world.topology.allowed.count() < 2) return;
    HeldThread held(world);
    TestPool pool(world, setup);
    std::thread([&] {
      go_to(world.topology.allowed.last());
      warm_up(pool, 24);
      std::vector<void*> handles;
      for (int i = 0; i < 30; i++) handles.push_back(pool.alloc(24));
      free_all(pool, handles);
    }).join();
    std::thread([&] {
      go_to(world.topology.allowed.first());
      warm_up(pool, 24);
      const auto churn_until = [&](uint64_t begin, uint64_t end) {
        for (uint64_t now = begin; now <= end; now += 10) {
          for (int i = 0; i < 10; i++) pool.free(pool.alloc(24));
          CHECK(pool->look_after_front_caches(now) != 0);
        }
      };
      churn_until(1000, 1190);
      const uint64_t before = pool.stats().nr_cached;
      CHECK(before > 30);
      int fences = nr_fences(world);
      churn_until(1200, 1400);
      const uint64_t after = pool.stats().nr_cached;
      CHECK(after + 30 <= before);
      CHECK(after != 0);  // this CPU keeps its own
      if (setup.nr_cpus > FrontCache::kWideCopies) return;
      CHECK(nr_fences(world) > fences);
      fences = nr_fences(world);
      churn_until(1410, 3000);
      CHECK(nr_fences(world) == fences);  // nobody is stopped for what he has not
    }).join();
  }
}

TEST_CASE("in a narrow pool the next look is due when the front caches may be idle, whenever the last one came") {
  if (!front_caches_work()) return;
  World world("balance:thread");
  if (world.topology.possible.count() > FrontCache::kWideCopies) return;  // no pool is narrow here
  HeldThread held(world);
  TestPool pool(world, kNarrow);
  warm_up(pool, 8);
  CHECK(pool->look_after_front_caches(1000) == 200);
  CHECK(pool->look_after_front_caches(1050) == 150);
  CHECK(pool->look_after_front_caches(1199) == 1);
  CHECK(pool->look_after_front_caches(1200) == 0);
}

TEST_CASE("in a wide pool all CPUs are stopped every 10 ms at most to make freed areas ready, however often the thread wakes") {
  if (!front_caches_work()) return;
  World world("balance:thread");
  HeldThread held(world);
  TestPool pool(world, kWide);
  warm_up(pool, 8);
  std::vector<void*> handles;
  for (int i = 0; i < 8; i++) handles.push_back(pool.alloc(8));
  uint64_t now = 1000;
  for (void* handle : handles) {
    pool.free(handle);
    int fences = nr_fences(world);
    CHECK(pool->look_after_front_caches(now) == 10);
    CHECK(nr_fences(world) > fences);
    void* other = pool.alloc(64);
    fences = nr_fences(world);
    pool.free(other);
    CHECK(pool->look_after_front_caches(now + 1) == 9);
    CHECK(pool->look_after_front_caches(now + 5) == 5);
    CHECK(nr_fences(world) == fences);
    now += 10;
  }
}

TEST_CASE("what was populated and written on 64 units goes back to the system once all is freed") {
  World world("balance:thread");
  TestPool pool(world, kWide);
  std::vector<void*> handles;
  for (int i = 0; i < 20000; i++) {
    handles.push_back(pool.alloc(64));
    *pool.copy(handles.back(), 63) = 1;
  }
  std::mt19937_64 random(test_seed());
  std::shuffle(handles.begin(), handles.end(), random);
  const uint64_t populated = pool.stats().populated_pages;
  free_all(pool, handles);
  // One wholly free chunk, and the reserve, may stay.
  CHECK(eventually([&] { return pool.stats().populated_pages * 8 < populated; }));
  CHECK(eventually([&] { return pool.stats().nr_chunks <= 2; }));
}

TEST_CASE("statistics count areas that wait as freed, and no area twice") {
  for (const TestSetup& setup : {kNarrow, kWide}) {
    World world("balance:thread");
    TestPool pool(world, setup);
    warm_up(pool, 16);
    const percpu_stats before = pool.stats();
    CHECK(before.nr_live == 0);
    std::vector<void*> handles;
    for (int i = 0; i < 100; i++) handles.push_back(pool.alloc(16));
    CHECK(pool.stats().nr_live == 100);
    CHECK(pool.stats().nr_allocs == before.nr_allocs + 100);
    CHECK(pool.stats().live_bytes == 1600);
    free_all(pool, handles);
    CHECK(pool.stats().nr_live == 0);
    CHECK(pool.stats().nr_frees == before.nr_frees + 100);
    CHECK(pool.stats().live_bytes == 0);
  }
}

TEST_CASE("the smallest and the largest request are told, also where the front caches served each of their sizes") {
  for (const TestSetup& setup : {kNarrow, kWide}) {
    CAPTURE(setup.nr_cpus);
    World world("balance:thread");
    TestPool pool(world, setup);
    warm_up(pool, 8);
    CHECK(pool.stats().min_request == 8);
    CHECK(pool.stats().max_request == 8);
    for (const size_t size : {256, 4}) {
      warm_up(pool, 8);  // front caches may have been emptied meanwhile
      pool.free(pool.alloc(size));
    }
    CHECK(pool.stats().min_request == 4);
    CHECK(pool.stats().max_request == 256);
  }
}

TEST_CASE("statistics are exact while the balance thread moves areas") {
  for (const TestSetup& setup : {kNarrow, kWide}) {
    World world("balance:thread");
    TestPool pool(world, setup);
    warm_up(pool, 16);
    std::vector<void*> handles;
    uint64_t live = 0;
    uint64_t most_live = 0;
    // Each time the areas are made ready (wide pools), and at last all are given back to the maps.
    for (int round = 0; round < 10; round++) {
      for (int i = 0; i < 200; i++) handles.push_back(pool.alloc(16));
      free_all(pool, handles);
      for (int i = 0; i < 5000; i++) {
        const percpu_stats stats = pool.stats();
        live += stats.nr_live + stats.live_bytes;
        most_live = std::max(most_live, stats.nr_live);
      }
    }
    CHECK(eventually([&] {
      const percpu_stats stats = pool.stats();
      live += stats.nr_live + stats.live_bytes;
      most_live = std::max(most_live, stats.nr_live);
      return stats.nr_cached == 0;
    }));
    CAPTURE(most_live);
    CHECK(live == 0);
  }
}

TEST_CASE("the inline free tells what is no handle, wherever it points") {
  if (!front_caches_work()) return;
  for (const uint32_t nr_cpus : {0u, 64u}) {
    CAPTURE(nr_cpus);
    World world("balance:thread");
    // Parts that begin and end inside pages, and units of a number of pages that is no power of two.
    TestPool pool(world, {.unit_size_bytes = 68 << 10, .static_bytes = 100, .reserved_bytes = 5004, .nr_cpus = nr_cpus});
    TestPool other(world, kNarrow);
    void* reserved = pool.alloc(8, 4, PERCPU_RESERVED);
    void* area = pool.alloc(64);
    void* theirs = other.alloc(8);
    std::vector<void*> handles;
    do handles.push_back(pool.alloc(4096));
    while (pool.chunk_of(handles.back()) == 0);
    void* last = handles.back();
    const UnitMemory& memory = pool->memory();
    const auto at = [](const void* base, intptr_t distance) { return reinterpret_cast<void*>(reinterpret_cast<intptr_t>(base) + distance); };
    const auto in = [&](uint32_t chunk, intptr_t offset) { return at(reinterpret_cast<void*>(memory.handle(ChunkId{chunk}, AreaOffset{0})), offset); };
    const auto unit = static_cast<intptr_t>(memory.unit_size());
    const intptr_t stride = static_cast<char*>(in(1, 0)) - static_cast<char*>(in(0, 0));
    const void* const bad[] = {
        reinterpret_cast<void*>(4),
        reinterpret_cast<void*>(UINTPTR_MAX - 3),
        in(0, -4), in(0, 0), in(0, 100),                       // in front of all, static variables
        at(reserved, 4), at(reserved, 8), at(reserved, 5000),  // in and behind an area of the reserved part, at its end
        at(area, 4), at(area, 60), at(area, 1), at(area, 2), at(area, -1),
        in(0, unit - 4), in(0, unit), in(0, unit + 4), in(0, stride - 4),  // the end of a unit, between units
        at(last, 4), at(last, 4096), at(last, stride), at(last, 3 * stride), at(last, -stride / 2),
        in(1, unit - 4), in(1, unit), in(2, 0), in(20, 4),     // chunks that do not exist
        at(area, 64 * stride), at(area, 1 << 30),
        theirs, pool.copy(area, 0), pool.copy(area, pool.nr_copies() - 1), pool.copy(in(0, 0), 0),
    };
    for (const void* handle : bad) {
      CAPTURE(handle);
      const ChildEnd end = run_forked(pool, [&] {
        while (pool.stats().nr_cached == 0) pool.free(pool.alloc(8));
        pool.free(const_cast<void*>(handle));
        return 0;
      });
      CHECK(end.signal == SIGABRT);
      CHECK(count_lines(end.standard_error) == 1);
      CHECK(contains(end.standard_error, "expected"));
    }
    for (void* twice : {reserved, area, last}) {
      const ChildEnd end = run_forked(pool, [&] {
        while (pool.stats().nr_cached == 0) pool.free(pool.alloc(8));
        pool.free(twice);
        if (pool->area_size(twice) != 0) return 1;
        pool.free(twice);
        return 0;
      });
      CHECK(end.signal == SIGABRT);
      CHECK(contains(end.standard_error, "freed"));
    }
    other.free(theirs);
    pool.free(area);
    pool.free(reserved);
    free_all(pool, handles);
  }
}

TEST_CASE("sizes near the end of the numbers are refused by the inline allocation, too") {
  World world("balance:thread");
  TestPool pool(world, kNarrow);
  warm_up(pool, 4);
  warm_up(pool, 8);
  for (size_t below = 0; below < 600; below++) {
    CHECK(pool.alloc(SIZE_MAX - below, 4, PERCPU_NOWARN) == nullptr);
    CHECK(pool.error == EINVAL);
    CHECK(pool.alloc((size_t{1} << 32) + below, 4, PERCPU_NOWARN) == nullptr);
  }
  CHECK(pool.alloc(0, 4, PERCPU_NOWARN) == nullptr);
  for (const size_t align : {size_t{0}, size_t{3}, SIZE_MAX, size_t{1} << 63, size_t{1} << 32}) {
    CHECK(pool.alloc(8, align, PERCPU_NOWARN) == nullptr);
    CHECK(pool.error == EINVAL);
  }
}

// What the pops of the stacks do not show, or show too much of: batches, overflows, areas that are not aligned, stacks that are
// emptied from outside, threads that move between the pop and the correction.
TEST_CASE("allocations are counted exactly, whatever becomes of the areas that wait") {
  const uint64_t seed = test_seed();
  CAPTURE(seed);
  for (const TestSetup& setup : {kNarrow, kWide}) {
    CAPTURE(setup.nr_cpus);
    World world("balance:thread");
    TestPool pool(world, setup);
    warm_up(pool, 24);
    const percpu_stats before = pool.stats();
    CHECK(before.nr_live == 0);
    std::atomic<uint64_t> nr_allocs{0};
    std::atomic<uint32_t> nr_running{3};
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 3; t++) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(seed + t);
        constexpr size_t kSizes[] = {4, 8, 8, 12, 24, 64, 96, 256, 1000};
        std::vector<void*> live;
        uint64_t counted = 0;
        for (int i = 0; i < 20000; i++) {
          if (i % 64 == 0) move(world, random);
          // Now many are taken, now many are freed, so that stacks run empty and over.
          if (live.empty() || random() % 8 < (i / 500 % 2 == 0 ? 6u : 2u)) {
            int error = 0;
            const unsigned flags = PERCPU_NOWARN | (random() % 4 == 0 ? unsigned{PERCPU_ATOMIC} : 0);
            void* handle = pool->allocate(kSizes[random() % std::size(kSizes)], size_t{4} << random() % 5, flags, kNoDomain, &error);
            if (handle == nullptr) continue;
            counted++;
            live.push_back(handle);
          } else {
            std::swap(live[random() % live.size()], live.back());
            pool.free(live.back());
            live.pop_back();
          }
        }
        for (void* handle : live) pool.free(handle);
        nr_allocs += counted;
        nr_running--;
      });
    }
    while (nr_running != 0) {
      pool->drain_front_caches();
      (void)pool->look_after_front_caches(coarse_ms());
      hold(pool);
      resume_parent(pool);
      (void)pool.stats();
      std::this_thread::yield();
    }
    for (std::thread& thread : threads) thread.join();
    const percpu_stats after = pool.stats();
    CHECK(after.nr_allocs == before.nr_allocs + nr_allocs);
    CHECK(after.nr_frees == after.nr_allocs);
    CHECK(after.nr_live == 0);
    CHECK(after.live_bytes == 0);
    pool->check();
  }
}

}  // namespace
}  // namespace percpu
