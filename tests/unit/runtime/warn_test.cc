// SPDX-License-Identifier: MIT
#include "runtime/warn.h"

#include <doctest/doctest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "percpu.h"
#include "world.h"

namespace percpu {
namespace {

constexpr FailedAllocation kFailed{24, 8, 0, "no memory"};
constexpr FailedAllocation kFailedAtomic{24, 8, PERCPU_ATOMIC, "no populated memory fits"};
constexpr FailedAllocation kIllegal{0, 8, 0, "size is 0"};

TEST_CASE("that memory cannot be bound is told once") {
  CapturedStderr captured;
  Warnings warnings(10);
  warnings.unbound("mbind", -1);
  warnings.unbound("get_mempolicy", -22);
  CHECK(count_lines(captured.text(), "memory cannot be bound to NUMA nodes (mbind: error 1)") == 1);
  CHECK(count_lines(captured.text()) == 1);
}

TEST_CASE("a failure is told with size, alignment, context and reason") {
  Warnings warnings(10);
  CapturedStderr captured;
  warnings.failure(kFailed, true);
  warnings.failure({100, 16, PERCPU_RESERVED, "the reserved part is full"}, true);
  CHECK(captured.text() ==
        "libpercpu: allocation failed: size 24, align 8, normal: no memory\n"
        "libpercpu: allocation failed: size 100, align 16, reserved: the reserved part is full\n");
}

TEST_CASE("failures are told ten times, then once that the limit is reached") {
  Warnings warnings(10);
  CapturedStderr captured;
  for (int i = 0; i < 30; i++) warnings.failure(kFailed, true);
  CHECK(count_lines(captured.text(), "allocation failed") == 10);
  CHECK(count_lines(captured.text(), "limit of warnings reached") == 1);
  CHECK(count_lines(captured.text()) == 11);
}

TEST_CASE("the limit holds over threads") {
  Warnings warnings(10);
  CapturedStderr captured;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; i++) warnings.failure(kFailed, true);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(count_lines(captured.text(), "allocation failed") == 10);
  CHECK(count_lines(captured.text(), "limit of warnings reached") == 1);
}

TEST_CASE("illegal requests are told each time and use nothing of the limit") {
  Warnings warnings(2);
  CapturedStderr captured;
  for (int i = 0; i < 20; i++) warnings.illegal(kIllegal, true);
  for (int i = 0; i < 5; i++) warnings.failure(kFailed, true);
  CHECK(count_lines(captured.text(), "illegal allocation: size is 0 (size 0, align 8, flags 0x0)") == 20);
  CHECK(count_lines(captured.text(), "allocation failed") == 2);
}

TEST_CASE("what an atomic context left is written by the next caller that may, and only then") {
  Warnings warnings(10);
  CapturedStderr captured;
  warnings.failure(kFailedAtomic, false);
  lseek(STDERR_FILENO, 0, SEEK_CUR);
  CHECK(lseek(STDERR_FILENO, 0, SEEK_CUR) == 0);  // nothing yet
  warnings.write_deferred();
  warnings.write_deferred();
  CHECK(captured.text() ==
        "libpercpu: allocation failed: size 24, align 8, atomic: no populated memory fits\n");
}

TEST_CASE("illegal atomic requests are told each time; of those that found no room, the number is") {
  Warnings warnings(10);
  {
    CapturedStderr captured;
    for (size_t i = 0; i < 3; i++) warnings.illegal({i, 3, PERCPU_ATOMIC, "alignment is not a power of two"}, false);
    warnings.failure(kFailedAtomic, false);
    warnings.write_deferred();
    CHECK(count_lines(captured.text(), "illegal allocation") == 3);
    CHECK(count_lines(captured.text(), "allocation failed") == 1);
  }
  CapturedStderr captured;
  for (size_t i = 0; i < 100; i++) warnings.illegal({i, 3, PERCPU_ATOMIC, "alignment is not a power of two"}, false);
  warnings.write_deferred();
  const size_t told = count_lines(captured.text(), "alignment is not a power of two");
  CHECK(told >= 10);
  CHECK(contains(captured.text(), std::to_string(100 - told) + " more in atomic context"));
}

TEST_CASE("lines left by many threads while others write them are told or counted, each once") {
  Warnings warnings(0);
  CapturedStderr captured;
  std::atomic<int> running{3};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; t++) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < 300; i++) warnings.illegal({i, 3, PERCPU_ATOMIC, "one of nine hundred"}, false);
      running--;
    });
  }
  while (running != 0) warnings.write_deferred();
  for (std::thread& thread : threads) thread.join();
  warnings.write_deferred();
  size_t told = count_lines(captured.text(), "one of nine hundred");
  const std::string& text = captured.text();
  for (size_t at = 0; (at = text.find("illegal allocation: ", at)) != std::string::npos; at++) {
    const size_t number = at + sizeof "illegal allocation: " - 1;
    if (text[number] >= '0' && text[number] <= '9') told += std::stoul(text.substr(number));
  }
  CHECK(told == 900);
}

TEST_CASE("deferred failures use the limit as others do") {
  Warnings warnings(10);
  CapturedStderr captured;
  for (int i = 0; i < 30; i++) {
    warnings.failure(kFailedAtomic, false);
    warnings.write_deferred();
  }
  CHECK(count_lines(captured.text(), "allocation failed") == 10);
  CHECK(count_lines(captured.text(), "limit of warnings reached") == 1);
}

TEST_CASE("a limit of none logs no failure, and does not speak of a limit") {
  Warnings warnings(0);
  CapturedStderr captured;
  for (int i = 0; i < 3; i++) warnings.failure(kFailed, true);
  warnings.illegal(kIllegal, true);
  CHECK(count_lines(captured.text()) == 1);
}

}  // namespace
}  // namespace percpu
