// SPDX-License-Identifier: MIT
//
// The seed of random tests: PERCPU_SEED from the environment, else a new one; printed, so that a failure can be repeated.
#ifndef PERCPU_TESTS_SEED_H
#define PERCPU_TESTS_SEED_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace percpu {

inline uint64_t test_seed() {
  static const uint64_t seed = [] {
    const char* given = getenv("PERCPU_SEED");
    uint64_t chosen = given != nullptr ? strtoull(given, nullptr, 0) : std::random_device{}();
    fprintf(stderr, "PERCPU_SEED=%llu\n", static_cast<unsigned long long>(chosen));
    return chosen;
  }();
  return seed;
}

}  // namespace percpu

#endif  // PERCPU_TESTS_SEED_H
