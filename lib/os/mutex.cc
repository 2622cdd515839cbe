// SPDX-License-Identifier: MIT
#include "os/mutex.h"

#include <bit>
#include <climits>

#include "base/check.h"

namespace percpu {

namespace {

// Spinning longer than this was never seen to pay: by then the holder has been scheduled out.
constexpr uint32_t kMaxSpins = 200;

// The half of a word that changes when a mark in its lowest bit does.
const uint32_t* low_half(const std::atomic<uintptr_t>& word) {
  const uint32_t* halves = reinterpret_cast<const uint32_t*>(&word);
  return std::endian::native == std::endian::little ? halves : halves + sizeof(word) / sizeof(uint32_t) - 1;
}

}  // namespace

void OwnerWord::sleep_while(uintptr_t value) const {
  real_system().futex_wait(low_half(whole), static_cast<uint32_t>(value), nullptr);
}

void OwnerWord::wake(int how_many) const { real_system().futex_wake(low_half(whole), how_many); }

// Spins up to twice the mean of the spins that led to the lock lately: a lock whose holders are quick is waited for, and
// one whose holders are slow is slept for soon. (The declaration tells the analysis what it does; it loses track here.)
bool MapLock::spin() PERCPU_NO_THREAD_SAFETY_ANALYSIS {
  uint32_t mean = spins_.load(std::memory_order_relaxed);
  uint32_t limit = mean * 2 + 10 < kMaxSpins ? mean * 2 + 10 : kMaxSpins;
  for (uint32_t spins = 0; spins < limit; ++spins) {
    cpu_relax();
    if (word_.whole.load(std::memory_order_relaxed) == kFree && try_lock()) {
      spins_.store((mean * 7 + spins) / 8, std::memory_order_relaxed);
      return true;
    }
  }
  spins_.store(mean * 7 / 8, std::memory_order_relaxed);
  return false;
}

// Called by lock(), whose declaration tells the analysis what this does.
void MapLock::lock_slow() PERCPU_NO_THREAD_SAFETY_ANALYSIS {
  PERCPU_CHECK(!held_by_this_thread(),
               "a lock must not be taken twice by one thread, 0x%zx (did a signal handler call in, or was a call left by longjmp?)",
               static_cast<size_t>(this_thread()));
  if (spin()) return;
  uintptr_t seen = word_.whole.load(std::memory_order_relaxed);
  for (;;) {
    if (seen == kFree) {
      if (word_.whole.compare_exchange_weak(seen, this_thread() | kAwaited, std::memory_order_acquire,
                                            std::memory_order_relaxed))
        return;
      continue;
    }
    if ((seen & kAwaited) == 0 && !word_.whole.compare_exchange_weak(seen, seen | kAwaited, std::memory_order_relaxed,
                                                                     std::memory_order_relaxed))
      continue;
    word_.sleep_while(seen | kAwaited);
    seen = word_.whole.load(std::memory_order_relaxed);
  }
}

bool MapLock::lock_bounded(uint32_t max_spins) {
  if (try_lock()) return true;
  if (held_by_this_thread()) return false;
  for (uint32_t spins = 0; spins < max_spins; ++spins) {
    cpu_relax();
    if (word_.whole.load(std::memory_order_relaxed) == kFree && try_lock()) return true;
  }
  return false;
}

void MapLock::reset_after_fork_in_child() {
  spins_.store(0, std::memory_order_relaxed);
  word_.whole.store(kFree, std::memory_order_release);
}

void SleepMutex::lock_slow() {
  while (word_.exchange(kContended, std::memory_order_acquire) != kFree) futex_wait(word_, kContended);
}

void SleepMutex::wake_one() { futex_wake(word_, 1); }

void SleepMutex::reset_after_fork_in_child() { word_.store(kFree, std::memory_order_release); }

OnceFlag::Begin OnceFlag::begin_slow() {
  const uintptr_t self = this_thread();
  uintptr_t seen = kNotDone;
  for (;;) {
    if (seen == kNotDone) {
      if (word_.whole.compare_exchange_weak(seen, self, std::memory_order_acquire, std::memory_order_acquire))
        return Begin::kYours;
      continue;
    }
    if (seen == kDoneValue) return Begin::kDone;
    if ((seen & ~kAwaited) == self) return Begin::kReentered;
    if ((seen & kAwaited) == 0 && !word_.whole.compare_exchange_weak(seen, seen | kAwaited, std::memory_order_acquire,
                                                                     std::memory_order_acquire))
      continue;
    word_.sleep_while(seen | kAwaited);
    seen = word_.whole.load(std::memory_order_acquire);
  }
}

void OnceFlag::end(bool success) {
  uintptr_t before = word_.whole.exchange(success ? kDoneValue : kNotDone, std::memory_order_release);
  PERCPU_CHECK((before & ~kAwaited) == this_thread(),
               "a one-time initialisation must be ended by the thread that began it: expected 0x%zx, found 0x%zx",
               static_cast<size_t>(this_thread()), static_cast<size_t>(before & ~kAwaited));
  if ((before & kAwaited) != 0) word_.wake(INT_MAX);
}

void OnceFlag::reset_after_fork_in_child() {
  uintptr_t word = word_.whole.load(std::memory_order_relaxed);
  if (word == kDoneValue) return;
  bool ours = (word & ~kAwaited) == this_thread();
  word_.whole.store(ours ? this_thread() : kNotDone, std::memory_order_release);
}

}  // namespace percpu
