// SPDX-License-Identifier: MIT
#include "os/gate.h"

#include <cerrno>
#include <climits>

namespace percpu {
namespace {

constexpr uint32_t kSliceMs = 10;

}  // namespace

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

bool Gate::wait_empty(uint32_t patience_ms) {
  constexpr timespec kSlice = {0, kSliceMs * 1000 * 1000};
  uint32_t waited_ms = 0;
  for (;;) {
    const uint32_t now = word_.load(std::memory_order_seq_cst);
    if ((now & kInside) == 0) return true;
    if (patience_ms != 0 && waited_ms >= patience_ms) return false;
    if (futex_wait(word_, now, patience_ms != 0 ? &kSlice : nullptr) == -ETIMEDOUT) waited_ms += kSliceMs;
  }
}

void Gate::open() {
  const uint32_t before = word_.fetch_sub(kShut, std::memory_order_seq_cst);
  if (before < 2 * kShut) futex_wake(word_, INT_MAX);
}

}  // namespace percpu
