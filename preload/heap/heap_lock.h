// SPDX-License-Identifier: MIT
//
// A lock of the heap. It is a MapLock (known holder, spins, then sleeps) that lets the forking thread, which holds all of them, pass: fork
// handlers of the program that run after ours may allocate.
#ifndef PERCPU_PRELOAD_HEAP_HEAP_LOCK_H
#define PERCPU_PRELOAD_HEAP_HEAP_LOCK_H

#include <atomic>
#include <cstdint>

#include "os/mutex.h"

namespace percpu::heap {

// The thread that holds all locks of the heap because it forks; 0: none.
inline std::atomic<uintptr_t> forking_thread{0};
inline bool this_thread_forks() { return forking_thread.load(std::memory_order_relaxed) == this_thread(); }

class PERCPU_CAPABILITY("heap lock") HeapLock {
 public:
  constexpr HeapLock() = default;

  void lock() PERCPU_ACQUIRE() PERCPU_NO_THREAD_SAFETY_ANALYSIS {
    if (lock_.try_lock()) return;
    if (!this_thread_forks()) lock_.lock();
  }
  [[nodiscard]] bool try_lock() PERCPU_TRY_ACQUIRE(true) PERCPU_NO_THREAD_SAFETY_ANALYSIS {
    return lock_.try_lock() || this_thread_forks();
  }
  void unlock() PERCPU_RELEASE() PERCPU_NO_THREAD_SAFETY_ANALYSIS {
    if (!this_thread_forks()) lock_.unlock();
  }
  void reset_after_fork_in_child() { lock_.reset_after_fork_in_child(); }

 private:
  MapLock lock_;
};

using HeapGuard = LockGuard<HeapLock>;

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_HEAP_LOCK_H
