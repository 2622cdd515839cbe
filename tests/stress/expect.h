// SPDX-License-Identifier: MIT
//
// What the storms share: a check that ends the program with one line, the deadline of a run, small questions.
#ifndef PERCPU_TESTS_STRESS_EXPECT_H
#define PERCPU_TESTS_STRESS_EXPECT_H

#include <percpu.h>

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include "../patience.h"

#define EXPECT(condition)                                                                                        \
  do {                                                                                                           \
    if (!(condition)) {                                                                                          \
      fprintf(stderr, "%s:%d: expected %s (errno %d, process %d)\n", __FILE__, __LINE__, #condition, errno,      \
              static_cast<int>(getpid()));                                                                       \
      _exit(99);                                                                                                 \
    }                                                                                                            \
  } while (0)

namespace storm {

using patience::eventually;
using patience::kHangSeconds;

class Deadline {
 public:
  explicit Deadline(double seconds)
      : end_(std::chrono::steady_clock::now() + std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6))) {}
  bool passed() const { return std::chrono::steady_clock::now() >= end_; }

 private:
  std::chrono::steady_clock::time_point end_;
};

inline percpu_stats stats_of(percpu_pool_t *pool) {
  percpu_stats stats;
  EXPECT(percpu_pool_stats_read(pool, &stats, sizeof stats) == 0);
  return stats;
}

}  // namespace storm

#endif  // PERCPU_TESTS_STRESS_EXPECT_H
