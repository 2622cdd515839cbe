// SPDX-License-Identifier: MIT
//
// A lock with a shared and an exclusive side, of which the exclusive one only keeps others out and need not wait for them.
//
// Constant-initialised, allocates nothing, for memory that one process uses. errno is preserved.
#ifndef PERCPU_OS_GATE_H
#define PERCPU_OS_GATE_H

#include <atomic>
#include <cstdint>

#include "os/futex.h"

namespace percpu {

// Many may be inside at once. shut() lets nobody in until open(), and says whether somebody is inside still;
// wait_empty() waits until all have left. Several may have it shut at once (threads fork at the same time): it lets people in
// again when the last of them has opened it.
class Gate {
 public:
  constexpr Gate() = default;
  void enter();
  void leave();
  bool shut();
  // Requires: shut by the caller. Returns: whether it is empty; false once `patience_ms` went by (0: never).
  bool wait_empty(uint32_t patience_ms = 0);
  void open();
  // In the child of a fork: whoever was inside, or had it shut, does not exist.
  void reset() { word_.store(0, std::memory_order_relaxed); }

 private:
  static constexpr uint32_t kShut = 1u << 16;  // counts who has it shut; both are threads of one process
  static constexpr uint32_t kInside = kShut - 1;
  FutexWord word_{0};  // how many are inside, and how many have it shut
};

}  // namespace percpu

#endif  // PERCPU_OS_GATE_H
