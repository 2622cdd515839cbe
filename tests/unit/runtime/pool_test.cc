// SPDX-License-Identifier: MIT
#include "runtime/pool.h"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <set>
#include <thread>
#include <vector>

#include "../child.h"
#include "../os/zero_page.h"
#include "../seed.h"
#include "world.h"

namespace percpu {
namespace {

// ---- what is refused -------------------------------------------------------------------------------------------------

struct Illegal {
  size_t size_bytes;
  size_t align_bytes;
  unsigned flags;
  const char* reason;
};

TEST_CASE("an illegal request is EINVAL, is logged each time with its reason, and nothing else happens") {
  World world("balance:sync");
  TestPool pool(world);
  const size_t page = page_size_bytes();
  const size_t largest = pool->max_alloc_bytes();
  const Illegal requests[] = {
      {0, 8, 0, "size is 0"},
      {largest + 1, 8, 0, "size is above the largest allocation"},
      {SIZE_MAX, 8, 0, "size is above the largest allocation"},
      {SIZE_MAX - 2, 8, 0, "size is above the largest allocation"},
      {8, 0, 0, "alignment is not a power of two"},
      {8, 3, 0, "alignment is not a power of two"},
      {8, 24, 0, "alignment is not a power of two"},
      {8, SIZE_MAX, 0, "alignment is not a power of two"},
      {8, 2 * page, 0, "alignment is above the page size"},
      {8, size_t{1} << 63, 0, "alignment is above the page size"},
      {8, 8, 1u << 4, "unknown flags"},
      {8, 8, 1u << 31, "unknown flags"},
  };
  const percpu_stats before = pool.stats();
  world.faulty.reset();
  for (const Illegal& request : requests) {
    for (unsigned more : {0u, unsigned{PERCPU_RESERVED}, unsigned{PERCPU_ACCOUNT}}) {
      CAPTURE(request.reason);
      CapturedStderr captured;
      CHECK(pool.alloc(request.size_bytes, request.align_bytes, request.flags | more) == nullptr);
      CHECK(pool.error == EINVAL);
      CHECK(count_lines(captured.text()) == 1);
      CHECK(contains(captured.text(), request.reason));
      CHECK(contains(captured.text(), "expected at most") == contains(request.reason, "above"));
    }
    CapturedStderr silent;
    CHECK(pool.alloc(request.size_bytes, request.align_bytes, request.flags | PERCPU_NOWARN) == nullptr);
    CHECK(pool.error == EINVAL);
    CHECK(silent.text().empty());
    CapturedStderr deferred;
    CHECK(pool.alloc(request.size_bytes, request.align_bytes, request.flags | PERCPU_ATOMIC) == nullptr);
    CHECK(pool.error == EINVAL);
    CHECK(lseek(STDERR_FILENO, 0, SEEK_CUR) == 0);
    world.warnings.write_deferred();
    CHECK(contains(deferred.text(), request.reason));
  }
  CHECK(world.faulty.total() == 0);
  CHECK_FALSE(pool->due());
  const percpu_stats after = pool.stats();
  CHECK(after.nr_failed == before.nr_failed);
  CHECK(after.nr_allocs == before.nr_allocs);
  CHECK(after.nr_balance_rounds == before.nr_balance_rounds);
}

TEST_CASE("sizes are rounded up to four bytes, alignments below four count as four, and all up to the page hold") {
  World world;
  TestPool pool(world);
  std::vector<void*> handles;
  for (size_t size : {1, 2, 3, 4, 5, 7, 8, 9, 100, 4095, 4096, 5000}) {
    for (size_t align = 1; align <= page_size_bytes(); align *= 2) {
      void* handle = pool.alloc(size, align);
      REQUIRE(handle != nullptr);
      CHECK(reinterpret_cast<uintptr_t>(handle) % std::max<size_t>(align, 4) == 0);
      CHECK(pool->area_size(handle) == (size + 3) / 4 * 4);
      pool.each_copy(handle, [&](uint32_t, unsigned char* at) {
        CHECK(reinterpret_cast<uintptr_t>(at) % std::max<size_t>(align, 4) == 0);
      });
      handles.push_back(handle);
    }
  }
  free_all(pool, handles);
}

TEST_CASE("the largest allocation is the unit size by default, at least 32 KiB, or what the pool was made with") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10});
  CHECK(pool->max_alloc_bytes() == 32 << 10);
  void* largest = pool.alloc(32 << 10);
  REQUIRE(largest != nullptr);
  pool.fill_copies(largest, 32 << 10, 1);
  pool.free(largest);
  TestPool limited(world, {.unit_size_bytes = 128 << 10, .max_alloc_bytes = 1000});
  CHECK(limited.alloc(1001, 4, PERCPU_NOWARN) == nullptr);
  CHECK(limited.error == EINVAL);
  void* handle = limited.alloc(1000);
  CHECK(handle != nullptr);
  limited.free(handle);
}

TEST_CASE("failures are logged with size, alignment, context and reason, ten times, then once that the limit is reached") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10, .max_bytes = 32 << 10});
  std::vector<void*> handles;
  while (void* handle = pool.alloc(1024, 4, PERCPU_NOWARN)) handles.push_back(handle);
  CHECK(pool.error == ENOMEM);
  CapturedStderr captured;
  for (int i = 0; i < 20; i++) CHECK(pool.alloc(1024, 64, PERCPU_NOWARN) == nullptr);  // uses nothing of the limit
  for (int i = 0; i < 20; i++) {
    CHECK(pool.alloc(0, 4) == nullptr);  // neither does this
    CHECK(pool.alloc(1024, 64) == nullptr);
    CHECK(pool.error == ENOMEM);
  }
  const std::string& text = captured.text();
  CHECK(count_lines(text, "illegal") == 20);
  CHECK(count_lines(text, "allocation failed: size 1024, align 64, normal: no memory") == 10);
  CHECK(count_lines(text, "limit of warnings") == 1);
  CHECK(count_lines(text) == 31);
  free_all(pool, handles);
}

// ---- zero ------------------------------------------------------------------------------------------------------------

TEST_CASE("an area is zero in every copy, fresh or used before, cold and extra copies too") {
  for (FirstChunk first_chunk : {FirstChunk::kPage, FirstChunk::kEmbed}) {
    World world;
    TestPool pool(world, {.unit_size_bytes = 32 << 10, .nr_cpus = 64, .first_chunk = first_chunk});
    REQUIRE(pool.nr_copies() >= 65);
    std::mt19937_64 random(test_seed());
    std::vector<std::pair<void*, size_t>> live;
    for (int i = 0; i < 400; i++) {
      const size_t size = random() % 4 == 0 ? 4 + random() % 9000 : 4 + random() % 60;
      const size_t align = size_t{4} << random() % 5;
      void* handle = pool.alloc(size, align);
      REQUIRE(handle != nullptr);
      REQUIRE(pool.nr_dirty_copies(handle, (size + 3) / 4 * 4) == 0);
      // Whoever walks over the copies may write to any of them.
      pool.fill_copies(handle, (size + 3) / 4 * 4, static_cast<unsigned char>(1 + i % 255));
      live.push_back({handle, size});
      if (random() % 3 != 0) {
        const size_t victim = random() % live.size();
        pool.free(live[victim].first);
        live[victim] = live.back();
        live.pop_back();
      }
      if (i % 50 == 0) pool->balance();
    }
    for (const auto& [handle, size] : live) pool.free(handle);
  }
}

TEST_CASE("of a small area each word that is not zero is zeroed in every copy, and nothing beside it") {
  World world;
  TestPool pool(world);
  void* area = pool.alloc(512, 64);
  constexpr size_t kBefore = 60;  // bytes, not at a line
  const uintptr_t handle = reinterpret_cast<uintptr_t>(area) + kBefore;
  const auto word = [&](unsigned char* copy, ptrdiff_t index) { return reinterpret_cast<uint32_t*>(copy + kBefore) + index; };
  for (size_t size = 4; size <= UnitMemory::kSmallBytes; size += 4) {
    const auto words = static_cast<ptrdiff_t>(size / 4);
    for (ptrdiff_t dirty = 0; dirty < words; dirty++) {
      pool.each_copy(area, [&](uint32_t, unsigned char* at) { *word(at, dirty) = *word(at, -1) = *word(at, words) = 7; });
      pool->memory().zero_small(handle, size);
      pool.each_copy(area, [&](uint32_t, unsigned char* at) {
        for (ptrdiff_t i = 0; i < words; i++) REQUIRE(*word(at, i) == 0);
        REQUIRE(*word(at, -1) == 7);
        REQUIRE(*word(at, words) == 7);
        *word(at, words) = 0;
      });
    }
  }
  pool.free(area);
}

TEST_CASE("copies of CPUs that may not run us, and the extra copy, stay unbacked until they are written") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10, .nr_cpus = 64});
  std::vector<void*> handles;
  for (int i = 0; i < 200; i++) handles.push_back(pool.alloc(64));
  for (int i = 0; i < 100; i++) pool.free(handles[static_cast<size_t>(i)]);
  handles.erase(handles.begin(), handles.begin() + 100);
  for (int i = 0; i < 100; i++) handles.push_back(pool.alloc(128));  // used again
  for (void* handle : handles) {
    pool.each_copy(handle, [&](uint32_t id, unsigned char* at) {
      // What is used again is read first, everywhere: that costs nothing where there is a zero page.
      if (has_zero_page() || pool.hot(id)) CHECK((pool.backed_pages(at, 1) == 1) == pool.hot(id));
    });
  }
  unsigned char* cold = pool.copy(handles[0], 63);
  *cold = 1;
  CHECK(pool.backed_pages(cold, 1) == 1);
  free_all(pool, handles);
}

TEST_CASE("areas do not overlap, whatever is allocated and freed in what order") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10, .reserved_bytes = 4096});
  std::mt19937_64 random(test_seed());
  std::map<uintptr_t, size_t> live;
  const auto drop = [&](size_t index) {
    auto victim = live.begin();
    std::advance(victim, index);
    CHECK(*pool.copy(reinterpret_cast<void*>(victim->first), 0) == static_cast<unsigned char>(victim->second));
    pool.free(reinterpret_cast<void*>(victim->first));
    live.erase(victim);
  };
  for (int i = 0; i < 4000; i++) {
    const size_t size = 4 * (1 + random() % 200);
    const unsigned flags = random() % 8 == 0 ? PERCPU_RESERVED | PERCPU_NOWARN : 0;
    void* handle = pool.alloc(size, size_t{4} << random() % 8, flags);
    if (handle == nullptr) {
      REQUIRE(flags != 0);
      continue;
    }
    const auto at = reinterpret_cast<uintptr_t>(handle);
    const auto next = live.lower_bound(at);
    REQUIRE((next == live.end() || at + size <= next->first));
    if (next != live.begin()) REQUIRE(std::prev(next)->first + std::prev(next)->second <= at);
    live[at] = size;
    memset(pool.copy(handle, 0), static_cast<int>(static_cast<unsigned char>(size)), size);
    if (random() % 2 == 0) drop(random() % live.size());
  }
  pool->check();
  while (!live.empty()) drop(0);
}

// ---- the kinds of allocation -----------------------------------------------------------------------------------------

TEST_CASE("reserved allocations come from the reserved part, without falling back when that is full") {
  World world;
  TestPool pool(world, {.reserved_bytes = 4096});
  std::vector<void*> handles;
  CapturedStderr captured;
  while (void* handle = pool.alloc(256, 4, PERCPU_RESERVED)) {
    percpu_address info{};
    REQUIRE(pool->address_info(reinterpret_cast<uintptr_t>(pool.copy(handle, 0)), &info));
    CHECK((info.flags & PERCPU_INFO_RESERVED) != 0);
    CHECK(pool.chunk_of(handle) == 0);
    handles.push_back(handle);
  }
  CHECK(pool.error == ENOMEM);
  CHECK(handles.size() == 16);
  CHECK(contains(captured.text(), "size 256, align 4, reserved: the reserved part is full"));
  void* ordinary = pool.alloc(256);
  CHECK(ordinary != nullptr);
  pool.free(ordinary);
  pool.free(handles.back());
  handles.back() = pool.alloc(256, 4, PERCPU_RESERVED);
  CHECK(handles.back() != nullptr);
  free_all(pool, handles);
}

TEST_CASE("where there is no reserved part, reserved allocations are ordinary ones") {
  World world;
  TestPool pool(world);
  std::vector<void*> handles;
  for (int i = 0; i < 100; i++) {
    handles.push_back(pool.alloc(1024, 4, PERCPU_RESERVED));
    REQUIRE(handles.back() != nullptr);
  }
  CHECK(pool.chunk_of(handles.back()) != 0);
  free_all(pool, handles);
}

TEST_CASE("an atomic allocation makes no system call and takes populated pages only") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10});
  std::vector<void*> handles;
  handles.push_back(pool.alloc(24 << 10));  // makes a second chunk
  REQUIRE(handles.back() != nullptr);
  REQUIRE(pool.chunk_of(handles.back()) == 1);
  world.faulty.reset();
  while (void* handle = pool.alloc(64, 4, PERCPU_ATOMIC | PERCPU_NOWARN)) {
    pool.each_copy(handle, [&](uint32_t id, unsigned char* at) {
      if (pool.hot(id)) CHECK(pool.backed_pages(at, 64) == 1);
    });
    CHECK(pool.nr_dirty_copies(handle, 64) == 0);
    handles.push_back(handle);
  }
  CHECK(pool.error == ENOMEM);
  CHECK(world.faulty.total() == 0);
  void* normal = pool.alloc(64);  // this one may
  CHECK(normal != nullptr);
  pool.free(normal);
  free_all(pool, handles);
}

TEST_CASE("the log of a failed atomic allocation is written by the next ordinary one") {
  World world;
  TestPool pool(world);
  std::vector<void*> handles;
  CapturedStderr captured;
  while (void* handle = pool.alloc(1024, 4, PERCPU_ATOMIC)) handles.push_back(handle);
  CHECK(lseek(STDERR_FILENO, 0, SEEK_CUR) == 0);
  handles.push_back(pool.alloc(8));
  CHECK(contains(captured.text(), "allocation failed: size 1024, align 4, atomic: no populated memory fits"));
  free_all(pool, handles);
}

TEST_CASE("after a failed atomic allocation, a round populates pages that the next one takes") {
  World world;
  TestPool pool(world);
  std::vector<void*> handles;
  while (void* handle = pool.alloc(1024, 4, PERCPU_ATOMIC | PERCPU_NOWARN)) handles.push_back(handle);
  pool->balance();
  for (int i = 0; i < 12; i++) {
    handles.push_back(pool.alloc(1024, 4, PERCPU_ATOMIC | PERCPU_NOWARN));
    REQUIRE(handles.back() != nullptr);
  }
  free_all(pool, handles);
}

TEST_CASE("while this thread holds the pool's locks, an atomic allocation is EAGAIN and a free waits its turn") {
  World world;
  TestPool pool(world);
  void* handle = pool.alloc(64);
  void* other = pool.alloc(64);
  const uint64_t live = pool.stats().nr_live;
  pool->fork_prepare();  // takes both locks, as a handler may find them taken by what it interrupted
  CHECK(pool.alloc(8, 4, PERCPU_ATOMIC | PERCPU_NOWARN) == nullptr);
  CHECK(pool.error == EAGAIN);
  pool.free(handle);
  pool.free(other);
  CHECK(pool->area_size(handle) == 0);  // freed as far as anybody can see
  pool->fork_parent();
  CHECK(pool.stats().nr_live == live - 2);
  pool->check();
}

TEST_CASE("while another thread holds the lock for long, an atomic allocation is EAGAIN soon, and a free does not wait") {
  World world;
  TestPool pool(world);
  void* handle = pool.alloc(64);
  pool->fork_prepare();
  std::thread([&] {
    CHECK(pool.alloc(8, 4, PERCPU_ATOMIC | PERCPU_NOWARN) == nullptr);
    CHECK(pool.error == EAGAIN);
    pool.free(handle);
  }).join();
  pool->fork_parent();
  CHECK(pool.stats().nr_live == 0);
}

TEST_CASE("a handle that waits to be freed is freed already: a second free stops the program") {
  World world;
  TestPool pool(world);
  void* handle = pool.alloc(64);
  const ChildEnd end = run_in_child([&] {
    pool->fork_prepare();
    pool.free(handle);
    pool.free(handle);
    return 0;
  });
  CHECK(end.signal == SIGABRT);
  CHECK(contains(end.standard_error, "freed already"));
  pool.free(handle);
}

// ---- bad handles -----------------------------------------------------------------------------------------------------

struct BadHandles {
  World world;
  TestPool pool{world, {.static_bytes = 128, .reserved_bytes = 4096}};
  TestPool other{world, {.unit_size_bytes = 32 << 10}};
  void* area = pool.alloc(256);
  ~BadHandles() { pool.free(area); }

  // Frees it in a child: exactly one line that names the handle, and abort. Returns the line.
  std::string line_of(void* handle) {
    std::string last;
    for (bool grace : {false, true}) {
      const ChildEnd end = run_in_child([&] {
        if (grace) {
          pool->free_after_grace(handle);
        } else {
          pool.free(handle);
        }
        return 0;
      });
      CHECK(end.signal == SIGABRT);
      CHECK(count_lines(end.standard_error) == 1);
      char name[32];
      snprintf(name, sizeof name, "(%p)", handle);
      CHECK(contains(end.standard_error, std::string(grace ? "percpu_free_rcu" : "percpu_free") + name));
      CHECK(contains(end.standard_error, "pool 'test'"));
      last = end.standard_error;
    }
    return last;
  }
  void* at(uintptr_t distance) { return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(area) + distance); }
};

TEST_CASE("a handle that is none stops the program with one line that names it") {
  BadHandles bad;
  int variable = 0;
  CHECK(contains(bad.line_of(&variable), "no handle of that pool"));
  CHECK(contains(bad.line_of(reinterpret_cast<void*>(8)), "no handle of that pool"));
  CHECK(contains(bad.line_of(reinterpret_cast<void*>(UINTPTR_MAX)), "no handle of that pool"));
}

TEST_CASE("a handle inside an area stops the program and names the area") {
  BadHandles bad;
  char start[32];
  snprintf(start, sizeof start, "%p", bad.area);
  for (uintptr_t distance : {4, 8, 128, 252}) CHECK(contains(bad.line_of(bad.at(distance)), start));
}

TEST_CASE("a misaligned handle stops the program") {
  BadHandles bad;
  for (uintptr_t distance : {1, 2, 3, 5}) CHECK(contains(bad.line_of(bad.at(distance)), "the inside of the area"));
  for (uintptr_t distance : {257, 1026}) CHECK(contains(bad.line_of(bad.at(distance)), "not a multiple of 4"));
}

TEST_CASE("a handle that was freed, or never allocated, stops the program") {
  BadHandles bad;
  void* freed = bad.pool.alloc(64);
  bad.pool.free(freed);
  CHECK(contains(bad.line_of(freed), "freed"));
  const uintptr_t unit_end = bad.pool->memory().handle(ChunkId{0}, AreaOffset{0}) + bad.pool->memory().unit_size();
  CHECK(contains(bad.line_of(reinterpret_cast<void*>(unit_end - 4)), "expected the start of a live area"));
  CHECK(contains(bad.line_of(reinterpret_cast<void*>(bad.pool->memory().handle(ChunkId{1}, AreaOffset{0}))),
                 "a chunk that does not exist"));
}

TEST_CASE("a handle in a chunk that is gone stops the program") {
  BadHandles bad;
  std::vector<void*> handles;
  do {
    handles.push_back(bad.pool.alloc(16 << 10));
  } while (bad.pool.chunk_of(handles.back()) < 3);
  const std::vector<void*> freed = handles;
  free_all(bad.pool, handles);
  bad.pool->balance();
  std::set<uint64_t> left;
  for (const percpu_chunk_stats& row : bad.pool.chunks()) left.insert(row.chunk);
  REQUIRE(left.size() <= 2);
  size_t gone = 0;
  for (void* handle : freed) {
    if (left.contains(bad.pool.chunk_of(handle))) continue;
    CHECK(contains(bad.line_of(handle), "a chunk that does not exist"));
    gone++;
  }
  CHECK(gone >= 2);
}

TEST_CASE("another pool's handle, a copy's address and a static variable's handle stop the program") {
  BadHandles bad;
  void* theirs = bad.other.alloc(64);
  CHECK(contains(bad.line_of(theirs), "no handle of that pool"));
  bad.other.free(theirs);
  CHECK(contains(bad.line_of(bad.pool.copy(bad.area, 0)), "the address of a copy"));
  CHECK(contains(bad.line_of(bad.pool.copy(bad.area, bad.pool.nr_copies() - 1)), "the address of a copy"));
  CHECK(contains(bad.line_of(reinterpret_cast<void*>(bad.pool->first_handle() + 4)), "a static per-CPU variable"));
}

TEST_CASE("of several threads that free the same handle, all but one are told so") {
  World world;
  TestPool pool(world);
  for (int i = 0; i < 20; i++) {
    void* handle = pool.alloc(64);
    const ChildEnd end = run_in_child([&] {
      std::atomic<int> ready{0};
      const auto run = [&] {
        ready++;
        while (ready < 2) {
        }
        pool.free(handle);
      };
      std::thread first(run), second(run);
      first.join();
      second.join();
      return 0;
    });
    CHECK(end.signal == SIGABRT);
    CHECK(contains(end.standard_error, "percpu_free"));
    pool.free(handle);
  }
}

TEST_CASE("the size of what is no live area is 0") {
  BadHandles bad;
  CHECK(bad.pool->area_size(bad.area) == 256);
  CHECK(bad.pool->area_size(bad.at(4)) == 0);
  CHECK(bad.pool->area_size(bad.at(1)) == 0);
  CHECK(bad.pool->area_size(nullptr) == 0);
  CHECK(bad.pool->area_size(&bad) == 0);
  CHECK(bad.pool->area_size(bad.pool.copy(bad.area, 0)) == 0);
  void* freed = bad.pool.alloc(8);
  bad.pool.free(freed);
  CHECK(bad.pool->area_size(freed) == 0);
}

// ---- running short ---------------------------------------------------------------------------------------------------

TEST_CASE("a pool at its limit of bytes refuses, and works again once something is freed") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10, .max_bytes = 3 * (32 << 10)});
  std::vector<void*> handles;
  for (int round = 0; round < 3; round++) {
    while (void* handle = pool.alloc(4096, 4, PERCPU_NOWARN)) handles.push_back(handle);
    CHECK(pool.error == ENOMEM);
    CHECK(handles.size() == 5 + 2 * 8);  // the first chunk's dynamic part, and two chunks
    pool->check();
    pool.free(handles.back());
    handles.back() = pool.alloc(4096);
    CHECK(handles.back() != nullptr);
    free_all(pool, handles);
    pool->balance();
    pool->check();
  }
}

TEST_CASE("where no page can be backed, an allocation still gets the pages kept in reserve") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10});
  std::vector<void*> handles;
  handles.push_back(pool.alloc(4096));
  while (pool.chunk_of(handles.back()) == 0) handles.push_back(pool.alloc(4096));
  pool->balance();
  const uint64_t kept = pool.stats().empty_populated_pages;
  REQUIRE(kept >= 4);
  world.faulty.fail_always(Call::kMadvise, ENOMEM).fail_always(Call::kMprotect, ENOMEM);
  for (uint64_t i = 0; i < kept; i++) {
    handles.push_back(pool.alloc(4096, 4, PERCPU_NOWARN));
    REQUIRE(handles.back() != nullptr);
    CHECK(pool.nr_dirty_copies(handles.back(), 4096) == 0);
  }
  CHECK(pool.alloc(4096, 4, PERCPU_NOWARN) == nullptr);
  CHECK(pool.error == ENOMEM);
  pool->check();
  world.faulty.reset();
  free_all(pool, handles);
}

TEST_CASE("once the reserve could be filled again it is filled again and again, also where nothing is freed") {
  World world("balance:sync");
  TestPool pool(world, {.unit_size_bytes = 512 << 10});
  std::vector<void*> handles;
  handles.push_back(pool.alloc(4096));
  while (pool.chunk_of(handles.back()) == 0) handles.push_back(pool.alloc(4096));
  pool->balance();
  const auto take_reserve = [&] {
    while (void* handle = pool.alloc(4096, 4, PERCPU_ATOMIC | PERCPU_NOWARN)) handles.push_back(handle);
  };
  world.faulty.fail_always(Call::kMadvise, ENOMEM).fail_always(Call::kMprotect, ENOMEM);
  take_reserve();
  CHECK(pool.alloc(4096, 4, PERCPU_NOWARN) == nullptr);
  CHECK(pool.stats().empty_populated_pages == 0);
  world.faulty.reset();
  pool->balance();
  REQUIRE(pool.stats().empty_populated_pages >= 2);
  for (int i = 0; i < 20; i++) {
    handles.push_back(pool.alloc(4096));
    REQUIRE(handles.back() != nullptr);
    CHECK(pool.stats().empty_populated_pages >= 2);
  }
  free_all(pool, handles);
}

TEST_CASE("of a chunk that could not be made nothing is left, its metadata included") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 256 << 10});
  std::vector<void*> handles;
  handles.push_back(pool.alloc(256 << 10));
  while (void* handle = pool.alloc(256, 4, PERCPU_ATOMIC | PERCPU_NOWARN)) handles.push_back(handle);
  const uint64_t before = pool.stats().metadata_bytes;
  world.faulty.fail_always(Call::kMprotect, ENOMEM);
  CHECK(pool.alloc(256, 4, PERCPU_NOWARN) == nullptr);
  CHECK(pool.error == ENOMEM);
  CHECK(pool.stats().metadata_bytes == before);
  const int refused = world.faulty.count(Call::kMprotect);
  pool->balance();  // wants a chunk for the reserve
  CHECK(world.faulty.count(Call::kMprotect) > refused);
  CHECK(pool.stats().metadata_bytes == before);
  world.faulty.reset();
  free_all(pool, handles);
}

TEST_CASE("an atomic allocation's failure is remembered for the next round, also where memory was short in between") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10});
  std::vector<void*> handles;
  while (handles.empty() || pool.chunk_of(handles.back()) == 0) handles.push_back(pool.alloc(4096));
  pool->balance();
  REQUIRE(pool.stats().empty_populated_pages >= 4);  // without a failure there is nothing to populate
  CHECK(pool.alloc(32 << 10, 4, PERCPU_ATOMIC | PERCPU_NOWARN) == nullptr);
  world.faulty.fail_nth(Call::kMprotect, 1, ENOMEM);
  handles.push_back(pool.alloc(32 << 10));  // tried again once what is not needed was given back
  REQUIRE(handles.back() != nullptr);
  REQUIRE(world.faulty.failed_any());
  REQUIRE(pool.stats().empty_populated_pages >= 4);
  const uint64_t populated = pool.stats().populated_pages;
  pool->balance();
  CHECK(pool.stats().populated_pages == populated + world.config.empty_high_pages);
  free_all(pool, handles);
}

TEST_CASE("pages that the system would not take back are zero all the same when they are used again") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10, .nr_cpus = 8});
  std::vector<void*> handles;
  for (int i = 0; i < 60; i++) {
    handles.push_back(pool.alloc(4096));
    pool.fill_copies(handles.back(), 4096, 0xee);
  }
  CapturedStderr captured;
  // Neither given back nor replaced.
  world.faulty.fail_always(Call::kMadvise, ENOMEM).fail_always(Call::kMmap, ENOMEM);
  free_all(pool, handles);
  pool->balance();
  pool->balance();
  REQUIRE(world.faulty.failed_any());
  world.faulty.reset();
  for (int i = 0; i < 60; i++) {
    handles.push_back(pool.alloc(4096));
    REQUIRE(handles.back() != nullptr);
    CHECK(pool.nr_dirty_copies(handles.back(), 4096) == 0);
  }
  free_all(pool, handles);
}

// ---- asking ----------------------------------------------------------------------------------------------------------

TEST_CASE("statistics count allocations, frees, live, peak, requests, chunks") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10});
  percpu_stats stats = pool.stats();
  CHECK(stats.nr_allocs == 0);
  CHECK(stats.min_request == 0);
  CHECK(stats.nr_chunks == 1);
  CHECK(stats.unit_bytes == 32 << 10);
  CHECK(stats.nr_cpus == world.topology.possible.count());
  std::vector<void*> handles;
  for (size_t size : {10, 500, 30000}) handles.push_back(pool.alloc(size));
  stats = pool.stats();
  CHECK(stats.nr_allocs == 3);
  CHECK(stats.nr_live == 3);
  CHECK(stats.live_bytes == 12 + 500 + 30000);
  CHECK(stats.min_request == 12);
  CHECK(stats.max_request == 30000);
  CHECK(stats.nr_chunks == 2);
  CHECK(stats.nr_chunks_created == 1);
  pool.free(handles[2]);
  handles.pop_back();
  stats = pool.stats();
  CHECK(stats.nr_frees == 1);
  CHECK(stats.nr_live == 2);
  CHECK(stats.nr_peak_live == 3);
  CHECK(stats.live_bytes == 512);
  CHECK(stats.nr_peak_chunks == 2);
  CHECK(pool.alloc(0, 4, PERCPU_NOWARN) == nullptr);
  CHECK(pool.stats().nr_failed == 0);
  free_all(pool, handles);
}

TEST_CASE("each chunk's row tells what is in it, the reserved part its own") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10, .reserved_bytes = 4096});
  std::vector<void*> handles;
  for (size_t size : {8, 100, 2000}) handles.push_back(pool.alloc(size));
  handles.push_back(pool.alloc(64, 4, PERCPU_RESERVED));
  handles.push_back(pool.alloc(30000));
  const std::vector<percpu_chunk_stats> rows = pool.chunks();
  REQUIRE(rows.size() == 3);
  CHECK(rows[0].chunk == 0);
  CHECK(rows[0].flags == (PERCPU_CHUNK_FIRST | PERCPU_CHUNK_RESERVED));
  CHECK(rows[0].nr_live == 1);
  CHECK(rows[0].live_bytes == 64);
  CHECK(rows[0].free_bytes == 4096 - 64);
  CHECK(rows[1].flags == PERCPU_CHUNK_FIRST);
  CHECK(rows[1].nr_live == 3);
  CHECK(rows[1].smallest_live == 8);
  CHECK(rows[1].median_live == 100);
  CHECK(rows[1].largest_live == 2000);
  CHECK(rows[2].chunk == 1);
  CHECK(rows[2].nr_live == 1);
  CHECK(rows[2].free_bytes == (32 << 10) - 30000);
  free_all(pool, handles);
}

// Resident bytes of what lies behind the copies: the core state, and the records.
size_t resident_behind_copies(const UnitMemory& memory) {
  const auto begin = reinterpret_cast<uintptr_t>(memory.core_state());
  uintptr_t end = begin;
  for (size_t step = size_t{1} << 40; step >= page_size_bytes(); step /= 2) {
    while (memory.contains(end + step - 1)) end += step;
  }
  size_t pages = 0;
  REQUIRE(resident_pages(real_system(), {begin, end - begin}, &pages) == 0);
  return pages * page_size_bytes();
}

TEST_CASE("resident metadata is told exactly, without a look at what no chunk ever used") {
  World world("balance:off,window:512G");
  TestPool pool(world, {.unit_size_bytes = 32 << 10});
  // What is counted besides is the pool object's own mapping.
  const size_t home = pool.stats().metadata_bytes - resident_behind_copies(pool->memory());
  CHECK(home < 64 << 10);
  std::vector<void*> handles;
  for (uint32_t nr_chunks : {1, 2, 100, 300}) {
    while (pool.stats().nr_chunks < nr_chunks) handles.push_back(pool.alloc(4096));
    CHECK(pool.stats().metadata_bytes == home + resident_behind_copies(pool->memory()));
  }
  const int before = world.faulty.count(Call::kMincore);
  (void)pool.stats();
  // Once a chunk for its records, and for 512 pages of the core state.
  CHECK(world.faulty.count(Call::kMincore) - before < 300 + 20);
  free_all(pool, handles);
  pool->balance();
  REQUIRE(pool.stats().nr_chunks <= 2);
  CHECK(pool.stats().metadata_bytes == home + resident_behind_copies(pool->memory()));
}

TEST_CASE("a chunk's statistics hold together while areas die and are born") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 64 << 10});
  void* const kept = pool.alloc(8);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    std::vector<void*> handles(60);
    while (!stop) {
      for (void*& handle : handles) handle = pool.alloc(8);
      for (void* handle : handles) pool.free(handle);
    }
  });
  for (int i = 0; i < 20000; i++) {
    for (const percpu_chunk_stats& row : pool.chunks()) {
      if (row.median_live == 8 || (row.median_live == 0 && row.nr_live == 0)) continue;
      FAIL_CHECK("median of areas of 8 bytes: " << row.median_live);
    }
  }
  stop = true;
  other.join();
  pool.free(kept);
}

TEST_CASE("an address is told by pool, handle, CPU, chunk and offset") {
  World world;
  TestPool pool(world, {.unit_size_bytes = 32 << 10, .static_bytes = 64, .nr_cpus = 4});
  // A machine may have more CPUs than were asked for; the copies after theirs are extra ones.
  const uint32_t nr_cpus = std::max(4u, world.topology.nr_cpu_ids);
  void* small = pool.alloc(100);
  void* large = pool.alloc(30000);
  for (void* handle : {small, large}) {
    for (size_t inside : {0, 1, 50, 99}) {
      pool.each_copy(handle, [&](uint32_t id, const unsigned char* at) {
        percpu_address info{};
        REQUIRE(pool->address_info(reinterpret_cast<uintptr_t>(at) + inside, &info));
        CHECK(info.pool == to_public(&*pool));
        CHECK(info.handle == handle);
        CHECK(info.area_offset == inside);
        CHECK(info.area_bytes == pool->area_size(handle));
        CHECK(info.copy == id);
        CHECK(info.cpu == (id < nr_cpus ? static_cast<int>(id) : -1));
        CHECK(info.chunk == pool.chunk_of(handle));
        CHECK(info.flags == (PERCPU_INFO_LIVE | (id < nr_cpus ? 0u : unsigned{PERCPU_INFO_EXTRA})));
      });
    }
    percpu_address info{};
    REQUIRE(pool->address_info(reinterpret_cast<uintptr_t>(handle) + 8, &info));
    CHECK(info.flags == (PERCPU_INFO_LIVE | PERCPU_INFO_HANDLE));
    CHECK(info.handle == handle);
    CHECK(info.cpu == -1);
  }
  percpu_address info{};
  REQUIRE(pool->address_info(reinterpret_cast<uintptr_t>(pool.copy(small, 2)) + 104, &info));
  CHECK(info.handle == nullptr);
  CHECK(info.flags == 0);
  CHECK(info.cpu == 2);
  CHECK_FALSE(pool->address_info(reinterpret_cast<uintptr_t>(&info), &info));
  pool.free(small);
  REQUIRE(pool->address_info(reinterpret_cast<uintptr_t>(pool.copy(small, 2)), &info));
  CHECK(info.handle == nullptr);
  pool.free(large);
}

// A kernel that unmaps what a fixed mapping is to replace, and then has no memory for it.
PageRange lost_range;
int losses_left;

TEST_CASE("a chunk whose addresses were lost is never used again, and others' mappings there are left alone") {
  for (const bool opening : {false, true}) {
    CAPTURE(opening);
    World world("balance:off");
    lost_range = {};
    losses_left = 0;
    world.system.mmap = [](uintptr_t address, size_t size_bytes, int protection, int flags) -> intptr_t {
      if (losses_left == 0 || (flags & MAP_FIXED) == 0) return real_system().mmap(address, size_bytes, protection, flags);
      losses_left--;
      lost_range = {address, size_bytes};
      (void)real_system().munmap(address, size_bytes);
      return -ENOMEM;
    };
    static bool refuses;
    refuses = false;
    world.system.mprotect = [](uintptr_t address, size_t size_bytes, int protection) {
      return refuses ? -ENOMEM : real_system().mprotect(address, size_bytes, protection);
    };
    CapturedStderr told;
    std::vector<void*> handles;
    unsigned char* others = nullptr;
    {
      TestPool pool(world, {.unit_size_bytes = 32 << 10});
      losses_left = 1;
      if (opening) {
        refuses = true;
        CHECK(pool.alloc(30000, 4, PERCPU_NOWARN) == nullptr);
        CHECK(pool.error == ENOMEM);
        refuses = false;
      } else {
        for (int i = 0; i < 4; i++) handles.push_back(pool.alloc(30000));
        free_all(pool, handles);
        pool->balance();
      }
      CHECK(losses_left == 0);
      CHECK(count_lines(told.text(), "could not be given back (error 12)") == 1);
      others = static_cast<unsigned char*>(mmap(reinterpret_cast<void*>(lost_range.start), lost_range.size_bytes, PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
      REQUIRE(reinterpret_cast<uintptr_t>(others) == lost_range.start);
      memset(others, 0x5a, lost_range.size_bytes);
      for (int i = 0; i < 10; i++) {
        handles.push_back(pool.alloc(30000));
        pool.fill_copies(handles.back(), 30000, 1);
      }
      CHECK(pool.stats().nr_chunks == pool.chunks().size());
      CHECK(pool.stats().nr_chunks == 1 + pool.stats().nr_chunks_created - pool.stats().nr_chunks_destroyed);
      percpu_address info;
      CHECK_FALSE(pool->address_info(lost_range.start, &info));
      pool->check();
      free_all(pool, handles);
      pool->balance();
    }
    bool whole = true;
    for (size_t i = 0; i < lost_range.size_bytes; i++) whole = whole && others[i] == 0x5a;
    CHECK(whole);
    CHECK(munmap(others, lost_range.size_bytes) == 0);
  }
}

// The pool whose lock each system call of the next test looks at, and how often it was found held by the caller.
Pool* watched = nullptr;
bool looking = false;
int calls_seen = 0;
int calls_with_lock = 0;

void look_at_lock() {
  if (watched == nullptr || looking) return;
  looking = true;
  calls_seen++;
  int error = 0;
  void* handle = watched->allocate(4, 4, PERCPU_ATOMIC | PERCPU_NOWARN, kNoDomain, &error);
  if (handle != nullptr) watched->free(handle);
  if (handle == nullptr && error == EAGAIN) calls_with_lock++;
  looking = false;
}

TEST_CASE("no system call is made while the map lock is held") {
  World world("balance:off");
  world.system.mmap = [](uintptr_t address, size_t size_bytes, int protection, int flags) {
    look_at_lock();
    return real_system().mmap(address, size_bytes, protection, flags);
  };
  world.system.mprotect = [](uintptr_t address, size_t size_bytes, int protection) {
    look_at_lock();
    return real_system().mprotect(address, size_bytes, protection);
  };
  world.system.madvise = [](uintptr_t address, size_t size_bytes, int advice) {
    look_at_lock();
    return real_system().madvise(address, size_bytes, advice);
  };
  world.system.mincore = [](uintptr_t address, size_t size_bytes, unsigned char* pages) {
    look_at_lock();
    return real_system().mincore(address, size_bytes, pages);
  };
  TestPool pool(world, {.unit_size_bytes = 32 << 10});
  int error = 0;
  const DomainId domain = world.accounting.create(world.system, "d", PERCPU_NO_LIMIT, kNoDomain, &error);
  watched = &*pool;
  calls_seen = 0;
  calls_with_lock = 0;
  std::vector<void*> handles;
  for (int i = 0; i < 30; i++) handles.push_back(pool.alloc(16000, 4, PERCPU_ACCOUNT, domain));
  (void)pool.stats();
  (void)pool.chunks();
  pool->balance();
  pool->check();
  free_all(pool, handles);
  pool->balance();
  watched = nullptr;
  CHECK(calls_seen > 50);
  CHECK(calls_with_lock == 0);
}

// ---- many threads ----------------------------------------------------------------------------------------------------

TEST_CASE("threads that allocate and free at once neither lose nor share an area") {
  for (const char* conf : {"balance:thread", "balance:sync", "balance:off"}) {
    CAPTURE(conf);
    World world(conf);
    TestPool pool(world, {.unit_size_bytes = 32 << 10});
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; t++) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(test_seed() + static_cast<uint64_t>(t));
        struct Own {
          void* handle;
          size_t size_bytes;
        };
        std::vector<Own> own;
        for (int i = 0; i < 6000; i++) {
          if (own.size() < 60 && random() % 2 == 0) {
            const size_t size = 4 * (1 + random() % 300);
            const bool atomic = random() % 4 == 0;
            int error = 0;
            void* handle =
                pool->allocate(size, 4, PERCPU_NOWARN | (atomic ? unsigned{PERCPU_ATOMIC} : 0), kNoDomain, &error);
            if (handle == nullptr) {
              if (!atomic) wrong++;
              continue;
            }
            unsigned char* at = pool.copy(handle, 0);
            for (size_t byte = 0; byte < size; byte++) wrong += at[byte] != 0;
            memset(at, t + 1, size);
            own.push_back({handle, size});
          } else if (!own.empty()) {
            const size_t index = random() % own.size();
            const unsigned char* at = pool.copy(own[index].handle, 0);
            for (size_t byte = 0; byte < own[index].size_bytes; byte++) wrong += at[byte] != t + 1;
            pool.free(own[index].handle);
            own[index] = own.back();
            own.pop_back();
          }
        }
        for (const Own& each : own) pool.free(each.handle);
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(pool.stats().nr_live == 0);
    pool->check();
  }
}

}  // namespace
}  // namespace percpu
