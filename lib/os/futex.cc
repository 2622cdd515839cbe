// SPDX-License-Identifier: MIT
#include "os/futex.h"

#include <errno.h>

namespace percpu {

namespace {

const uint32_t* address_of(const FutexWord& word) { return reinterpret_cast<const uint32_t*>(&word); }

}  // namespace

int futex_wait(const FutexWord& word, uint32_t expected, const timespec* timeout) {
  return real_system().futex_wait(address_of(word), expected, timeout);
}

int futex_wake(const FutexWord& word, int how_many) { return real_system().futex_wake(address_of(word), how_many); }

void WakeWord::ring(const System& system) {
  // An exchange even if it rang already: the sleeper that hears the earlier ring must see what we wrote, too.
  if (word_.exchange(kRung, std::memory_order_acq_rel) == kAsleep) system.futex_wake(address_of(word_), 1);
}

bool WakeWord::wait(const System& system, const timespec* timeout) {
  uint32_t seen = kQuiet;
  if (word_.compare_exchange_strong(seen, kAsleep, std::memory_order_relaxed, std::memory_order_relaxed)) {
    int result = 0;
    while (word_.load(std::memory_order_relaxed) == kAsleep) {
      result = system.futex_wait(address_of(word_), kAsleep, timeout);
      if (result != 0 && result != -EAGAIN) break;
    }
    seen = kAsleep;
    if (word_.compare_exchange_strong(seen, kQuiet, std::memory_order_relaxed, std::memory_order_relaxed)) return false;
  }
  return word_.exchange(kQuiet, std::memory_order_acquire) == kRung;
}

void WakeWord::reset_after_fork_in_child() {
  uint32_t asleep = kAsleep;
  word_.compare_exchange_strong(asleep, kQuiet, std::memory_order_relaxed);
}

}  // namespace percpu
