// SPDX-License-Identifier: MIT
//
// What the library says on stderr while it runs. Failed allocations are logged at most `warnings` times (ten by default),
// then once that the limit is reached; illegal requests each time; what the system refuses once a kind.
//
// An allocation that must not make a system call leaves its line here, and the next caller that may writes it. A few lines
// can wait; of those that find no room only the number is told.
//
// Invariants: a waiting line is owned by who moved its state to kFilling or kWriting; some line waits, or lines were lost,
// while deferred_ is true.
// Locking: none. Any thread, any context.
#ifndef PERCPU_RUNTIME_WARN_H
#define PERCPU_RUNTIME_WARN_H

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace percpu {

// A failed allocation, as far as its line needs it.
struct FailedAllocation {
  size_t size_bytes;
  size_t align_bytes;
  unsigned flags;
  const char* reason;  // a literal
  size_t most = 0;     // what would have been allowed, where the reason is that it was more
};

class Warnings {
 public:
  explicit constexpr Warnings(uint32_t limit) : left_(limit) {}
  void set_limit(uint32_t limit) { left_.store(limit, std::memory_order_relaxed); }

  // An illegal request: logged each time. In atomic context it waits like the others.
  void illegal(const FailedAllocation& failed, bool may_write);
  // A request that could not be met: counts against the limit. `may_write` is false in atomic context.
  void failure(const FailedAllocation& failed, bool may_write);
  // Memory cannot be bound to NUMA nodes, since this system call (a literal) is refused: told once. Not for atomic context.
  void unbound(const char* call, int error);
  // Writes what atomic contexts left, if anything. Cheap when there is nothing.
  void write_deferred() {
    if (deferred_.load(std::memory_order_relaxed)) write_deferred_now();
  }

 private:
  enum State : uint32_t { kEmpty, kFilling, kIllegal, kFailure, kWriting };
  struct Line {
    std::atomic<uint32_t> state{kEmpty};
    FailedAllocation failed{};
  };
  static constexpr uint32_t kLines = 16;

  void defer(const FailedAllocation& failed, State kind);
  void write_deferred_now();
  void write_failure(const FailedAllocation& failed);

  std::atomic<uint32_t> left_;
  std::atomic<bool> unbound_said_{false};
  std::atomic<bool> deferred_{false};
  std::atomic<uint32_t> lost_{0};  // illegal requests whose line found no room
  Line lines_[kLines];
};

}  // namespace percpu

#endif  // PERCPU_RUNTIME_WARN_H
