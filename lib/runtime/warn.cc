// SPDX-License-Identifier: MIT
#include "runtime/warn.h"

#include "base/check.h"
#include "percpu.h"

namespace percpu {
namespace {

const char* context_name(unsigned flags) {
  if ((flags & PERCPU_ATOMIC) != 0) return (flags & PERCPU_RESERVED) != 0 ? "atomic, reserved" : "atomic";
  return (flags & PERCPU_RESERVED) != 0 ? "reserved" : "normal";
}

void write_illegal(const FailedAllocation& failed) {
  if (failed.most != 0) {
    report("illegal allocation: %s (size %zu, align %zu, flags 0x%x; expected at most %zu)", failed.reason, failed.size_bytes,
           failed.align_bytes, failed.flags, failed.most);
    return;
  }
  report("illegal allocation: %s (size %zu, align %zu, flags 0x%x)", failed.reason, failed.size_bytes,
         failed.align_bytes, failed.flags);
}

}  // namespace

void Warnings::illegal(const FailedAllocation& failed, bool may_write) {
  if (!may_write) return defer(failed, kIllegal);
  write_illegal(failed);
}

void Warnings::failure(const FailedAllocation& failed, bool may_write) {
  if (!may_write) return defer(failed, kFailure);
  write_failure(failed);
}

void Warnings::unbound(const char* call, int error) {
  if (unbound_said_.exchange(true, std::memory_order_relaxed)) return;
  report("memory cannot be bound to NUMA nodes (%s: error %d); going on without", call, -error);
}

void Warnings::write_failure(const FailedAllocation& failed) {
  uint32_t left = left_.load(std::memory_order_relaxed);
  while (left != 0) {
    if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_relaxed)) continue;
    report("allocation failed: size %zu, align %zu, %s: %s", failed.size_bytes, failed.align_bytes,
           context_name(failed.flags), failed.reason);
    if (left == 1) report("limit of warnings reached: further failed allocations are not logged (PERCPU_CONF=warnings:N)");
    return;
  }
}

void Warnings::defer(const FailedAllocation& failed, State kind) {
  // Failures that would not be told any more need no room.
  if (kind == kFailure && left_.load(std::memory_order_relaxed) == 0) return;
  for (Line& line : lines_) {
    uint32_t expected = kEmpty;
    if (!line.state.compare_exchange_strong(expected, kFilling, std::memory_order_acquire)) continue;
    line.failed = failed;
    line.state.store(kind, std::memory_order_release);
    deferred_.store(true, std::memory_order_release);
    return;
  }
  if (kind != kIllegal) return;
  lost_.fetch_add(1, std::memory_order_relaxed);
  deferred_.store(true, std::memory_order_release);
}

void Warnings::write_deferred_now() {
  // Before the lines are looked at: who leaves one later says so anew.
  deferred_.exchange(false, std::memory_order_acquire);
  for (Line& line : lines_) {
    uint32_t kind = line.state.load(std::memory_order_acquire);
    if ((kind != kIllegal && kind != kFailure) ||
        !line.state.compare_exchange_strong(kind, kWriting, std::memory_order_acquire)) {
      continue;
    }
    const FailedAllocation failed = line.failed;
    line.state.store(kEmpty, std::memory_order_release);
    if (kind == kIllegal) {
      write_illegal(failed);
    } else {
      write_failure(failed);
    }
  }
  if (const uint32_t lost = lost_.exchange(0, std::memory_order_relaxed); lost != 0) {
    report("illegal allocation: %u more in atomic context, whose lines found no room", lost);
  }
}

}  // namespace percpu
