// SPDX-License-Identifier: MIT
//
// What is kept a tick gives the half-life that the user chose, whatever that is.
#include "preload/heap/decay.h"

#include <doctest/doctest.h>

#include <cmath>

namespace percpu::heap {
namespace {

constexpr double kTickMs = 200;

TEST_CASE("shares of a tick have the half-life that they are for, to one in a hundred") {
  constexpr uint64_t kHalfLives[] = {22,   50,   99,   100,   199,   200,   201,    333,    500,
                                     1000, 5000, 7777, 51200, 51201, 60000, 600000, 3600000};
  for (const uint64_t half_life_ms : kHalfLives) {
    CAPTURE(half_life_ms);
    const double kept = static_cast<double>(kept_share(200, half_life_ms)) / static_cast<double>(kWhole);
    CHECK(-kTickMs / std::log2(kept) == doctest::Approx(half_life_ms).epsilon(0.01));
  }
}

TEST_CASE("a share is of the time that passed, however many ticks that would have been") {
  constexpr uint64_t kTimes[] = {0, 1, 10, 200, 1000, 2500, 10000};
  for (const uint64_t since_ms : kTimes) {
    CAPTURE(since_ms);
    const double expected = std::exp2(-static_cast<double>(since_ms) / 1000);
    CHECK(static_cast<double>(kept_share(since_ms, 1000)) / static_cast<double>(kWhole) == doctest::Approx(expected).epsilon(0.001));
  }
}

TEST_CASE("the ends: no time keeps all, no half-life nothing, and long times nothing") {
  CHECK(kept_share(0, 1) == kWhole);
  CHECK(kept_share(0, 3600000) == kWhole);
  CHECK(kept_share(200, 0) == 0);
  CHECK(kept_share(200, 1) == 0);
  CHECK(kept_share(UINT64_MAX, 1000) == 0);
  CHECK(kept_share(3600000, 3600000) == kWhole / 2);
}

}  // namespace
}  // namespace percpu::heap
