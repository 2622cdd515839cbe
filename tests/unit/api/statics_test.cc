// SPDX-License-Identifier: MIT
//
// The variables of this program. Those of libraries that are linked or opened are tested over the shipped library, in
// tests/abi.
#include "api/statics.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include <percpu.h>

#include "../runtime/world.h"
#include "api/library.h"
#include "fresh.h"
#include "runtime/front_cache.h"

struct Shape {
  char letter;
  double number;
  int table[3];
};

PERCPU_DEFINE(long, five) = 5;
PERCPU_DEFINE(int, zero);
PERCPU_DEFINE(char, letter) = 'x';
PERCPU_DEFINE(Shape, shape) = {'s', 2.5, {1, 2, 3}};
PERCPU_DEFINE(int[8], table) = {0, 1, 2, 3, 4, 5, 6, 7};
PERCPU_DEFINE_STATIC(unsigned long, hidden) = 77;
struct alignas(256) Wide {
  char bytes[256];
};
PERCPU_DEFINE(Wide, wide) = {"wide"};
PERCPU_DECLARE(long, five);  // as a header would

// Before main, and before any constructor of the library could have run.
long* handle_in_constructor = nullptr;
long value_in_constructor = 0;
__attribute__((constructor(101))) static void use_early() {
  if (getenv("PERCPU_TEST_EARLY") == nullptr) return;
  handle_in_constructor = percpu_static(five);
  percpu_add(handle_in_constructor, 1);
  value_in_constructor = percpu_sum(handle_in_constructor);
}

namespace percpu {
namespace {

TEST_CASE("a static variable has its initial value on every CPU, and its sum counts each CPU once") {
  CHECK_FINE(fresh(nullptr, [] {
    const unsigned nr_cpus = percpu_nr_cpu_ids();
    unsigned possible = 0;
    for (unsigned cpu = 0; cpu < nr_cpus; cpu++) {
      if (!percpu_cpu_possible(cpu)) continue;
      possible++;
      EXPECT_EQ(*percpu_ptr(percpu_static(five), static_cast<int>(cpu)), 5);
      EXPECT_EQ(*percpu_ptr(percpu_static(zero), static_cast<int>(cpu)), 0);
      EXPECT_EQ(*percpu_ptr(percpu_static(letter), static_cast<int>(cpu)), 'x');
      EXPECT_EQ(*percpu_ptr(percpu_static(hidden), static_cast<int>(cpu)), 77);
      const Shape* copy = percpu_ptr(percpu_static(shape), static_cast<int>(cpu));
      EXPECT(copy->letter == 's' && copy->number == 2.5 && copy->table[2] == 3);
      for (int i = 0; i < 8; i++) EXPECT_EQ((*percpu_ptr(percpu_static(table), static_cast<int>(cpu)))[i], i);
    }
    EXPECT_EQ(percpu_sum(percpu_static(five)), 5 * possible);
    percpu_inc(percpu_static(five));
    percpu_add(percpu_static(five), 10);
    EXPECT_EQ(percpu_sum(percpu_static(five)), 5 * possible + 11);
    EXPECT_EQ(percpu_sum(percpu_static(hidden)), 77 * possible);
  }));
}

TEST_CASE("the image keeps the initial value, and is not the handle") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_add(percpu_static(five), 100);
    EXPECT_EQ(five, 5);
    EXPECT(static_cast<void*>(&five) != static_cast<void*>(percpu_static(five)));
  }));
}

TEST_CASE("a variable is aligned as its type asks, in every copy") {
  CHECK_FINE(fresh(nullptr, [] {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(percpu_static(wide)) % alignof(Wide), 0);
    Wide* copy;
    percpu_for_each_copy(copy, percpu_static(wide)) EXPECT_EQ(reinterpret_cast<uintptr_t>(copy) % alignof(Wide), 0);
    EXPECT(strcmp(percpu_ptr(percpu_static(wide), 0)->bytes, "wide") == 0);
  }));
}

TEST_CASE("the handle is the same for all who ask, at the same time too") {
  CHECK_FINE(fresh(nullptr, [] {
    std::vector<std::thread> threads;
    std::vector<long*> handles(4);
    std::atomic<int> ready{0};
    for (size_t t = 0; t < handles.size(); t++) {
      threads.emplace_back([&, t] {
        ready++;
        while (ready < 4) {
        }
        handles[t] = percpu_static(five);
        for (int i = 0; i < 10000; i++) percpu_inc(percpu_static(zero));
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (long* handle : handles) EXPECT(handle == handles[0]);
    EXPECT_EQ(percpu_sum(percpu_static(zero)), 40000);
  }));
}

TEST_CASE("a constructor that runs before all others can use static variables") {
  CHECK_FINE(run_again("the values that an early constructor found", {"PERCPU_TEST_EARLY=1"}));
}

TEST_CASE("the values that an early constructor found" * doctest::skip()) {
  REQUIRE(handle_in_constructor != nullptr);
  CHECK(handle_in_constructor == percpu_static(five));
  unsigned possible = 0;
  for (unsigned cpu = 0; cpu < percpu_nr_cpu_ids(); cpu++) possible += percpu_cpu_possible(cpu) != 0 ? 1 : 0;
  CHECK(value_in_constructor == 5L * possible + 1);
}

TEST_CASE("an address in a static variable's copy is told as static, with the handle of its module's variables") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_address info;
    const auto* copy = reinterpret_cast<const char*>(percpu_ptr(percpu_static(shape), 0));
    EXPECT_EQ(percpu_address_info(copy + 3, &info), 1);
    EXPECT(info.pool == percpu_pool_default());
    EXPECT_EQ(info.cpu, 0);
    EXPECT((info.flags & PERCPU_INFO_STATIC) != 0);
    EXPECT(info.handle != nullptr);
    // The handle and the offset lead back to the address.
    EXPECT(static_cast<const char*>(info.handle) + info.area_offset ==
           reinterpret_cast<const char*>(percpu_static(shape)) + 3);
    EXPECT(info.area_bytes >= sizeof(Shape) + sizeof(Wide));
    EXPECT_EQ(percpu_address_info(&five, &info), 0);  // the image is ordinary memory
  }));
}

// A table of its own, laid out for these modules, and a pool to place them in.
struct Placed {
  explicit Placed(std::span<const ImageRange> ranges) {
    EXPECT_EQ(statics.lay_out(real_system(), ranges, page_size_bytes(), &bytes), 0);
  }
  void place() { statics.place(pool); }
  long* resolve(long* image) {
    void* cell[2] = {nullptr, image};
    void* handle = statics.resolve(pool, cell);
    EXPECT(handle == cell[0]);
    return static_cast<long*>(handle);
  }
  void close(long* image) {
    void* cell[2] = {nullptr, image};
    statics.close(nullptr, cell);
  }
  bool owned(const void* handle) {
    uintptr_t piece = 0;
    size_t piece_bytes = 0;
    return statics.owns(reinterpret_cast<uintptr_t>(handle), &piece, &piece_bytes);
  }
  long value(long* handle, int cpu) { return *percpu_pool_ptr(to_public(&pool), handle, cpu); }
  void* first() { return reinterpret_cast<void*>(pool.first_handle()); }

  Statics statics;
  size_t bytes = 0;
  Pool& pool = *to_pool(percpu_pool_create(nullptr));
};

TEST_CASE("a module's images are read when it is first used, not when the pool is made: then it may not be relocated yet") {
  CHECK_FINE(fresh(nullptr, [] {
    const ImageRange own = ModuleImages::around(reinterpret_cast<uintptr_t>(&five));
    EXPECT(own.size_bytes() >= sizeof(Shape) + sizeof(Wide));
    ModuleImages modules(real_system());
    EXPECT_EQ(modules.read(), 0);
    EXPECT(std::find(modules.ranges().begin(), modules.ranges().end(), own) != modules.ranges().end());
    Placed placed(modules.ranges());
    EXPECT(placed.bytes >= own.size_bytes());
    placed.place();
    EXPECT(!placed.owned(placed.first()));
    five = 6;
    long* handle = placed.resolve(&five);
    for (int cpu = 0; cpu < static_cast<int>(percpu_nr_cpu_ids()); cpu++) {
      if (percpu_cpu_possible(static_cast<unsigned>(cpu))) EXPECT_EQ(placed.value(handle, cpu), 6);
    }
    EXPECT(placed.owned(handle));
    // Never again: they count.
    five = 7;
    EXPECT(placed.resolve(&five) == handle);
    EXPECT_EQ(placed.value(handle, 0), 6);
    // But when it is closed and comes again.
    placed.close(&five);
    EXPECT(!placed.owned(handle));
    EXPECT(placed.resolve(&five) == handle);
    EXPECT_EQ(placed.value(handle, 0), 7);
  }));
}

TEST_CASE("a module that was listed and is gone when the pool is made is not read") {
  CHECK_FINE(fresh(nullptr, [] {
    const size_t page = page_size_bytes();
    void* gone = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(gone != MAP_FAILED);
    const auto begin = reinterpret_cast<uintptr_t>(gone);
    const ImageRange ranges[] = {{begin, begin + page}};
    Placed placed(ranges);
    EXPECT_EQ(placed.bytes, page);
    munmap(gone, page);
    placed.place();
    EXPECT(!placed.owned(placed.first()));
  }));
}

TEST_CASE("a module that came where a listed one was has room and initial values of its own") {
  CHECK_FINE(fresh(nullptr, [] {
    const ImageRange own = ModuleImages::around(reinterpret_cast<uintptr_t>(&five));
    for (const ImageRange was : {ImageRange{own.begin - 64, own.end}, ImageRange{own.begin, own.end + 64},
                                 ImageRange{own.end - 64, own.end + 4096}, ImageRange{own.begin + 64, own.end - 64}}) {
      Placed placed({&was, 1});
      placed.place();
      long* handle = placed.resolve(&five);
      EXPECT_EQ(placed.value(handle, 0), 5);
      EXPECT(placed.owned(handle));
      // (Without front caches this pool has no static part: the piece may begin where that would.)
      EXPECT(!placed.owned(placed.first()) || handle == placed.first());
    }
  }));
}

TEST_CASE("making room for a module starts no thread, since what makes threads may use static variables; the next call does") {
  CHECK_FINE(fresh(nullptr, [] {
    static Placed* placed = nullptr;
    static int nr_started = 0;
    static System system = real_system();
    system.start_thread = [](pthread_t* thread, void* (*run)(void*), void* argument) {
      nr_started++;
      EXPECT_EQ(placed->value(placed->resolve(&five), 0), 5);
      return real_system().start_thread(thread, run, argument);
    };
    library.use_system(system);
    placed = new Placed({});  // every module comes late
    placed->place();
    // So that the first one finds work due, and nobody who does it.
    EXPECT(percpu_pool_alloc(to_public(&placed->pool), 64, 8, PERCPU_ATOMIC) != nullptr);
    const size_t most = placed->pool.max_alloc_bytes();
    EXPECT(percpu_pool_alloc(to_public(&placed->pool), most, 8, PERCPU_ATOMIC | PERCPU_NOWARN) == nullptr);
    EXPECT_EQ(nr_started, 0);
    EXPECT_EQ(placed->value(placed->resolve(&five), 0), 5);
    EXPECT_EQ(nr_started, 0);
    percpu_pool_free(to_public(&placed->pool), percpu_pool_alloc(to_public(&placed->pool), 8, 8, 0));
    percpu_pool_free(to_public(&placed->pool), percpu_pool_alloc(to_public(&placed->pool), 8, 8, 0));
    // (Where nobody runs sequences there are no front caches, and no work for a thread.)
    EXPECT_EQ(nr_started, FrontCache::kServes && process_has_rseq() ? 1 : 0);
    placed = nullptr;
  }));
}

TEST_CASE("a module that is closed while the first pool is being made is closed, and its piece waits for when it comes again") {
  CHECK_FINE(fresh(nullptr, [] {
    const ImageRange own = ModuleImages::around(reinterpret_cast<uintptr_t>(&five));
    Placed placed({&own, 1});
    placed.close(&five);
    placed.place();
    EXPECT(!placed.owned(placed.first()));
    long* handle = placed.resolve(&five);
    EXPECT_EQ(placed.value(handle, 0), 5);
    EXPECT(placed.owned(placed.first()));
  }));
}

TEST_CASE("a static variable's handle cannot be freed, nor has it a size: one line and the end") {
  for (bool grace : {false, true}) {
    const ChildEnd end = fresh(nullptr, [grace] {
      EXPECT_EQ(percpu_alloc_size(percpu_static(five)), 0);
      EXPECT_EQ(errno, EINVAL);
      (grace ? percpu_free_rcu : percpu_free)(percpu_static(five));
    });
    CHECK(end.signal == SIGABRT);
    CHECK(count_lines(end.standard_error) == 1);
    CHECK(contains(end.standard_error, "a static per-CPU variable"));
  }
}

TEST_CASE("a cell that no module's note covers stops the program with one line") {
  const ChildEnd end = fresh(nullptr, [] {
    static int no_image;
    void* cell[2] = {nullptr, &no_image};
    (void)percpu_static_resolve_(cell);
  });
  CHECK(end.signal == SIGABRT);
  CHECK(count_lines(end.standard_error) == 1);
  CHECK(contains(end.standard_error, "PERCPU_DEFINE"));
}

TEST_CASE("static variables where there is no memory for the first pool stop the program with one line") {
  const ChildEnd end = fresh(nullptr, [] {
    library.use_system(FaultySystem::reset().fail_always(Call::kMprotect, ENOMEM).system());
    percpu_inc(percpu_static(five));
  });
  CHECK(end.signal == SIGABRT);
  CHECK(count_lines(end.standard_error) == 1);
  CHECK(contains(end.standard_error, "static per-CPU variables"));
}

TEST_CASE("counts in a static variable are exact over a fork, in both processes") {
  CHECK_FINE(fresh(nullptr, [] {
    for (int i = 0; i < 1000; i++) percpu_inc(percpu_static(zero));
    const ChildEnd end = run_in_child([] {
      for (int i = 0; i < 500; i++) percpu_inc(percpu_static(zero));
      return percpu_sum(percpu_static(zero)) == 1500 ? 0 : 1;
    });
    EXPECT_EQ(end.exit_code, 0);
    percpu_inc(percpu_static(zero));
    EXPECT_EQ(percpu_sum(percpu_static(zero)), 1001);
  }));
}

}  // namespace
}  // namespace percpu
