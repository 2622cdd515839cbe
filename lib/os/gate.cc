// SPDX-License-Identifier: MIT
#include "os/gate.h"

#include <climits>
#include <ctime>

#include "os/clock.h"

namespace percpu {

void Gate::enter() {
  uint32_t now = word_.load(std::memory_order_relaxed);
  for (;;) {
    if (now >= kShut) {
      (void)futex_wait(word_, now);
      now = word_.load(std::memory_order_relaxed);
    } else if (word_.compare_exchange_weak(now, now + 1, std::memory_order_seq_cst)) {
      return;
    }
  }
}

void Gate::leave() {
  const uint32_t before = word_.fetch_sub(1, std::memory_order_seq_cst);
  if (before >= kShut && (before & kInside) == 1) futex_wake(word_, INT_MAX);
}

bool Gate::shut() { return (word_.fetch_add(kShut, std::memory_order_seq_cst) & kInside) != 0; }

// By the clock, not by how often it slept: a program's signals may come more often than any sleep ends by itself.
bool Gate::wait_empty(uint32_t patience_ms) {
  constexpr timespec kSlice = {0, 10 * 1000 * 1000};
  const uint64_t until_ms = patience_ms != 0 ? coarse_ms() + patience_ms : UINT64_MAX;
  for (;;) {
    const uint32_t now = word_.load(std::memory_order_seq_cst);
    if ((now & kInside) == 0) return true;
    if (patience_ms != 0 && coarse_ms() >= until_ms) return false;
    (void)futex_wait(word_, now, patience_ms != 0 ? &kSlice : nullptr);
  }
}

void Gate::open() {
  const uint32_t before = word_.fetch_sub(kShut, std::memory_order_seq_cst);
  if (before < 2 * kShut) futex_wake(word_, INT_MAX);
}

}  // namespace percpu
