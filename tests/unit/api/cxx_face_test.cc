// SPDX-License-Identifier: MIT
#include <percpu.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <thread>
#include <vector>

namespace {

struct Traffic {
  std::uint64_t packets;
  std::int32_t sizes[4];
};

TEST_CASE("a structure's members and an array's elements have handles of their own") {
  const auto traffic = percpu::make<Traffic>();
  traffic->member(&Traffic::packets).add(3);
  traffic->member(&Traffic::sizes)[2].sub(5);
  CHECK(traffic->member(&Traffic::packets).sum() == 3);
  CHECK(traffic->member(&Traffic::sizes)[2].sum() == -5);
  CHECK(traffic->member(&Traffic::sizes)[1].sum() == 0);
  const auto table = percpu::make<std::uint64_t[8]>();
  CHECK(percpu_alloc_size(table.get().handle()) == 64);
  table.get()[7].inc();
  CHECK(table.get()[7].sum() == 1);
  CHECK(table.get()[0].sum() == 0);
}

TEST_CASE("a handle of const or volatile elements reads what others wrote") {
  const auto cell = percpu::make<long>();
  const percpu::ptr<const long> reader = cell.get();
  const percpu::ptr<volatile long> device(cell.get().handle());
  device.add(4);
  CHECK(reader.sum() == 4);
  long seen = 0;
  reader.for_each_copy([&seen](const long& copy) { seen += copy; });
  CHECK(seen == 4);
}

TEST_CASE("members have handles by way of const and volatile structures, of bases, and of unions") {
  struct Base {
    std::int32_t before;
    std::uint64_t errors;
  };
  struct Seen : Traffic, Base {
    volatile long device;
    const int limit;
  };
  union Either {
    float real;
    std::uint32_t bits;
  };
  const auto seen = percpu::make<Seen>();
  seen->member(&Base::errors).add(7);
  seen->member(&Seen::packets).add(3);
  seen->member(&Seen::device).inc();
  const percpu::ptr<const Seen> reader = seen.get();
  const percpu::ptr<volatile Seen> device(seen.get().handle());
  device.member(&Base::errors).inc();
  device.member(&Seen::sizes)[1].sub(2);
  static_assert(std::is_same_v<decltype(reader.member(&Base::errors)), percpu::ptr<const std::uint64_t>>);
  static_assert(std::is_same_v<decltype(reader.member(&Seen::device)), percpu::ptr<const volatile long>>);
  static_assert(std::is_same_v<decltype(seen->member(&Seen::limit)), percpu::ptr<const int>>);
  static_assert(std::is_same_v<decltype(device.member(&Seen::sizes)), percpu::ptr<volatile std::int32_t[4]>>);
  CHECK(reader.member(&Base::errors).sum() == 8);
  CHECK(reader.member(&Base::before).sum() == 0);
  CHECK(reader.member(&Traffic::packets).sum() == 3);
  CHECK(reader.member(&Seen::sizes)[1].sum() == -2);
  CHECK(reader.member(&Seen::device).sum() == 1);
  CHECK(seen->member(&Seen::limit).sum() == 0);
  const auto either = percpu::make<Either>();
  either->member(&Either::real).add(1);
  CHECK(either->member(&Either::bits).sum() == 0x3f800000);
}

TEST_CASE("an owner may be of const or volatile elements") {
  auto cell = percpu::make<long>();
  cell->add(4);
  percpu::owner<const long> reader(cell.release());
  const void* const handle = reader.get().handle();
  CHECK(reader->sum() == 4);
  reader.reset();
  CHECK(percpu_alloc_size(handle) == 0);
  percpu::owner<volatile long[2]> device = percpu::make<volatile long[2]>();
  device.get()[1].inc();
  CHECK(device.get()[1].sum() == 1);
  device.reset_after_grace();
  CHECK(!device);
}

TEST_CASE("an owner frees its area once, wherever it was moved") {
  auto first = percpu::make<double>();
  const void* const handle = first.get().handle();
  percpu::owner<double> second(std::move(first));
  CHECK(second.get().handle() == handle);
  CHECK(percpu_alloc_size(handle) == sizeof(double));
  second = percpu::owner<double>();
  CHECK(percpu_alloc_size(handle) == 0);
  struct Huge {
    char bytes[(std::size_t{1} << 30) + 4096];
  };
  errno = 0;
  CHECK(!percpu::make<Huge>(std::nothrow, PERCPU_NOWARN));
  CHECK(errno == EINVAL);
  CHECK_THROWS_AS((void)percpu::make<Huge>(PERCPU_NOWARN), std::bad_alloc);
}

TEST_CASE("each event is in the result of one reset, though threads reset at once") {
  constexpr std::int64_t kEvents = 200000;
  constexpr int kThreads = 3;
  percpu::counter counter;
  std::atomic<bool> done{false};
  std::atomic<std::int64_t> ended{0};
  std::atomic<int> negative{0};
  std::vector<std::thread> resetters;
  std::vector<std::thread> counters;
  for (int i = 0; i < kThreads; i++) {
    resetters.emplace_back([&] {
      while (!done.load()) {
        const std::int64_t period = counter.reset();
        if (period < 0 || counter.value() < 0) negative++;
        ended += period;
      }
    });
    counters.emplace_back([&] {
      for (std::int64_t n = 0; n < kEvents; n++) ++counter;
    });
  }
  for (std::thread& thread : counters) thread.join();
  done = true;
  for (std::thread& thread : resetters) thread.join();
  CHECK(negative == 0);
  CHECK(ended + counter.reset() == kThreads * kEvents);
  CHECK(counter.value() == 0);
}

}  // namespace
