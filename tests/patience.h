// SPDX-License-Identifier: MIT
//
// How long tests wait: until what they wait for has come. Only a hang has a bound, one for all of them.
#ifndef PERCPU_TESTS_PATIENCE_H
#define PERCPU_TESTS_PATIENCE_H

#include <chrono>
#include <thread>

namespace patience {

// After how many seconds what runs counts as hanging. Long: on a busy machine a child may wait for a minute until it gets to run.
inline constexpr unsigned kHangSeconds = 600;

// Waits until `condition()` holds. Returns whether it does; false after kHangSeconds.
template <class Condition>
bool eventually(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(kHangSeconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace patience

#endif  // PERCPU_TESTS_PATIENCE_H
