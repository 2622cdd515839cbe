// SPDX-License-Identifier: MIT
//
// Sleeping on a word of memory, and being woken. futex_wait and futex_wake are what the locks are made of; WakeWord is a
// bell for one sleeper, such as a background thread.
//
// All are for memory that one process uses (FUTEX_PRIVATE_FLAG), preserve errno, and are async-signal-safe.
#ifndef PERCPU_OS_FUTEX_H
#define PERCPU_OS_FUTEX_H

#include <atomic>
#include <cstdint>
#include <ctime>

#include "os/system.h"

namespace percpu {

using FutexWord = std::atomic<uint32_t>;
static_assert(sizeof(FutexWord) == 4 && FutexWord::is_always_lock_free);

// Sleeps while the word holds `expected`, at most `timeout` (relative; null: endlessly). May return early for no reason:
// call it in a loop that looks at the word. Returns 0, -EAGAIN, -EINTR or -ETIMEDOUT.
int futex_wait(const FutexWord& word, uint32_t expected, const timespec* timeout = nullptr);

// Wakes at most `how_many` sleepers. Returns how many it woke.
int futex_wake(const FutexWord& word, int how_many);

// A bell: ring() is remembered until the one sleeper has heard it, so a ring before wait() is not lost. Several rings
// before it is heard are one.
//
// Whatever the ringing thread wrote before ring() is visible to the sleeper after the wait() that heard it.
class WakeWord {
 public:
  constexpr WakeWord() = default;
  WakeWord(const WakeWord&) = delete;
  WakeWord& operator=(const WakeWord&) = delete;

  // One atomic instruction, and one futex wake if the sleeper sleeps. Context: any, signal handlers included.
  void ring(const System& system);

  // Sleeps until the bell has rung, at most `timeout` (relative; null: endlessly).
  // Requires: one thread at a time. Returns: true if it rang, and forgets it; false on timeout or when a signal came.
  bool wait(const System& system, const timespec* timeout = nullptr);

  // Whether it rang and nobody heard it yet.
  bool rung() const { return word_.load(std::memory_order_acquire) == kRung; }

  // The child of a fork has no sleeper; a ring that is not heard yet stays.
  void reset_after_fork_in_child();

 private:
  static constexpr uint32_t kQuiet = 0;
  static constexpr uint32_t kRung = 1;
  static constexpr uint32_t kAsleep = 2;

  FutexWord word_{kQuiet};
};

}  // namespace percpu

#endif  // PERCPU_OS_FUTEX_H
