// SPDX-License-Identifier: MIT
//
// Locks made of one word and a futex: MapLock for short critical sections, which a signal handler may ask for too;
// SleepMutex for long ones; OnceFlag for what happens once, may fail, and may be asked for by its own doing.
//
// All are constant-initialised, usable before any constructor has run, allocate nothing, need no destruction, and are for
// memory that one process uses. errno is preserved.
//
// How the locks work. The word of a MapLock is 0 when it is free, else the holder's identity, with kAwaited added when
// somebody may sleep; that of a SleepMutex is 0, 1, or 2 when somebody may sleep. lock() is one compare-and-swap if the lock
// is free, unlock() one swap to 0. Who finds it locked spins for a while (MapLock only, for as long as it paid off lately),
// then marks it as awaited and sleeps while it is. unlock() calls the kernel, once, only if it took out such a mark. A thread
// that slept takes the lock marked, for it does not know whether others sleep; so the last of several sleepers makes one
// needless wake, never one too few.
//
// Fork: the forking thread holds the locks that the child needs, or nobody does; the child then calls
// reset_after_fork_in_child(), since the other threads, and the sleepers, do not exist in it.
#ifndef PERCPU_OS_MUTEX_H
#define PERCPU_OS_MUTEX_H

#include <errno.h>

#include <atomic>
#include <cstdint>

#include "base/annotations.h"
#include "os/futex.h"

namespace percpu {

// What tells the calling thread from all others that run: the address of its thread control block. Never 0.
inline uintptr_t this_thread() { return reinterpret_cast<uintptr_t>(__builtin_thread_pointer()); }

// Tells the CPU that this is a loop that waits.
inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#else
  __asm__ volatile("" ::: "memory");
#endif
}

// A word that names a thread, and the half of it that a futex sleeps on. Two threads may agree in that half; then a sleeper
// sleeps on, and is woken by the later of them, since the mark is part of that half.
class OwnerWord {
 public:
  constexpr OwnerWord() = default;

  std::atomic<uintptr_t> whole{0};

  void sleep_while(uintptr_t value) const;
  void wake(int how_many) const;
};

// For critical sections of a few hundred instructions without a system call in them.
//
// It knows its holder, so that a signal handler can tell that it interrupted it: taking the lock and naming the holder are
// one instruction, and so are releasing and forgetting it; there is no moment when a handler could be wrong about it.
class PERCPU_CAPABILITY("map lock") MapLock {
 public:
  constexpr MapLock() = default;
  MapLock(const MapLock&) = delete;
  MapLock& operator=(const MapLock&) = delete;

  // Requires: not held by this thread. Context: may sleep; not in a signal handler.
  void lock() PERCPU_ACQUIRE() {
    if (!try_lock()) lock_slow();
  }

  // Context: any, signal handlers included. Returns: whether it was taken; false if held, also by this thread.
  [[nodiscard]] bool try_lock() PERCPU_TRY_ACQUIRE(true) {
    uintptr_t expected = kFree;
    return word_.whole.compare_exchange_strong(expected, this_thread(), std::memory_order_acquire,
                                               std::memory_order_relaxed);
  }

  // For atomic context: spins at most `max_spins` pauses, never sleeps.
  // Context: any, signal handlers included. Returns: false at the bound, and at once if this thread holds the lock.
  [[nodiscard]] bool lock_bounded(uint32_t max_spins = kBoundedSpins) PERCPU_TRY_ACQUIRE(true);

  // At most one futex wake. Sequentially consistent: see Pool::unlock_map(). Context: any.
  void unlock() PERCPU_RELEASE() {
    if ((word_.whole.exchange(kFree, std::memory_order_seq_cst) & kAwaited) != 0) word_.wake(1);
  }

  bool held_by_this_thread() const {
    return (word_.whole.load(std::memory_order_relaxed) & ~kAwaited) == this_thread();
  }

  // Makes the lock free. Requires: the process has this thread only.
  void reset_after_fork_in_child();

  // Some 50 to 150 microseconds: longer than any critical section, shorter than a time slice.
  static constexpr uint32_t kBoundedSpins = 4000;

 private:
  static constexpr uintptr_t kFree = 0;
  static constexpr uintptr_t kAwaited = 1;  // the address of a thread control block is even

  bool spin() PERCPU_TRY_ACQUIRE(true);
  void lock_slow();

  OwnerWord word_;
  std::atomic<uint32_t> spins_{0};  // a running mean of the spins that led to the lock; a hint, races do not matter
};

// For long sections: system calls, population, the creation of a chunk. Does not spin.
class PERCPU_CAPABILITY("sleep mutex") SleepMutex {
 public:
  constexpr SleepMutex() = default;
  SleepMutex(const SleepMutex&) = delete;
  SleepMutex& operator=(const SleepMutex&) = delete;

  // Requires: not held by this thread. Context: may sleep; not in a signal handler.
  void lock() PERCPU_ACQUIRE() {
    uint32_t expected = kFree;
    if (!word_.compare_exchange_strong(expected, kLocked, std::memory_order_acquire, std::memory_order_relaxed))
      lock_slow();
  }

  [[nodiscard]] bool try_lock() PERCPU_TRY_ACQUIRE(true) {
    uint32_t expected = kFree;
    return word_.compare_exchange_strong(expected, kLocked, std::memory_order_acquire, std::memory_order_relaxed);
  }

  // Sequentially consistent: see Pool::after_call().
  void unlock() PERCPU_RELEASE() {
    if (word_.exchange(kFree, std::memory_order_seq_cst) == kContended) wake_one();
  }

  // Makes the mutex free. Requires: the process has this thread only.
  void reset_after_fork_in_child();

 private:
  static constexpr uint32_t kFree = 0;
  static constexpr uint32_t kLocked = 1;
  static constexpr uint32_t kContended = 2;

  void lock_slow();
  void wake_one();

  FutexWord word_{kFree};
};

// Holds a lock for the length of a scope.
template <class Lock>
class PERCPU_SCOPED_CAPABILITY LockGuard {
 public:
  explicit LockGuard(Lock& lock) PERCPU_ACQUIRE(lock) : lock_(lock) { lock_.lock(); }
  ~LockGuard() PERCPU_RELEASE() { lock_.unlock(); }
  LockGuard(const LockGuard&) = delete;
  LockGuard& operator=(const LockGuard&) = delete;

 private:
  Lock& lock_;
};

using MapLockGuard = LockGuard<MapLock>;
using SleepMutexGuard = LockGuard<SleepMutex>;

// One-time work that may fail, and then be tried again by the next one who asks.
//
//   switch (flag.begin()) {
//     case kDone: break;                             // somebody did it; all that it wrote is visible
//     case kYours: flag.end(make_it()); break;       // do it now, then say whether it worked
//     case kReentered: return -EDEADLK;              // this very thread is in the middle of it, further out
//   }
class OnceFlag {
 public:
  enum class Begin : uint8_t { kDone, kYours, kReentered };

  constexpr OnceFlag() = default;
  OnceFlag(const OnceFlag&) = delete;
  OnceFlag& operator=(const OnceFlag&) = delete;

  bool done() const { return word_.whole.load(std::memory_order_acquire) == kDoneValue; }

  // Context: may sleep while another thread does the work. A signal handler that interrupted the one that does it gets kReentered.
  [[nodiscard]] Begin begin() { return done() ? Begin::kDone : begin_slow(); }

  // Requires: begin() said kYours to this thread. With false, the next begin() says kYours again.
  void end(bool success);

  // Does the work if nobody did: `work()` returns 0 or -errno.
  // Returns: 0 when it is done; what `work` returned if it failed; -EDEADLK when called from inside `work`.
  template <class Work>
  [[nodiscard]] int run(Work&& work) {
    switch (begin()) {
      case Begin::kDone: return 0;
      case Begin::kReentered: return -EDEADLK;
      case Begin::kYours: break;
    }
    int result = work();
    end(result == 0);
    return result;
  }

  // If another thread was in the middle of the work, it isn't in the child: the work begins anew. If this thread is (it
  // forked in the middle of it), it goes on. Requires: the process has this thread only.
  void reset_after_fork_in_child();

 private:
  // The word is one of the first two, or the identity of the thread that does it, with kAwaited when somebody may sleep.
  static constexpr uintptr_t kNotDone = 0;
  static constexpr uintptr_t kDoneValue = 2;
  static constexpr uintptr_t kAwaited = 1;

  Begin begin_slow();

  OwnerWord word_;
};

}  // namespace percpu

#endif  // PERCPU_OS_MUTEX_H
