// SPDX-License-Identifier: MIT
//
// The background thread of the process, and the list of its pools. The thread gives wholly free chunks and empty pages
// back, keeps pages ready for atomic allocations, and frees what percpu_free_rcu() left, pool after pool; it sleeps
// unless a pool has asked.
//
// Invariants:
//   a pool is in the list from the end of its making to the beginning of its destruction
//   the thread runs at most once a process; it has all signals blocked; it ends when the process exits
//   state_ moves  none -> starting -> running -> ended,  back to none where it cannot be started, and in a fork's child
// Locking: rounds_lock_ (lock 2 of lib/README.md) is held while the list changes and while a round is in progress, so that a
// pool that has left the list is not worked on. Who only asks walks it as a Reader; who takes a pool off it waits for those.
#ifndef PERCPU_RUNTIME_BALANCER_H
#define PERCPU_RUNTIME_BALANCER_H

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "base/annotations.h"
#include "os/futex.h"
#include "os/gate.h"
#include "os/mutex.h"
#include "os/system.h"
#include "runtime/grace.h"

namespace percpu {

class Pool;
class PoolList;

class Balancer {
 public:
  constexpr Balancer() = default;

  // Before anything else; `system` and `grace` outlive the balancer.
  void init(const System& system, Grace& grace) {
    system_ = &system;
    grace_ = &grace;
    note_process();
  }

  void add(Pool& pool) PERCPU_EXCLUDES(rounds_lock_);
  // Whether the pool is in the list; does not look into it.
  [[nodiscard]] bool has(const Pool* pool) PERCPU_EXCLUDES(rounds_lock_);
  // Takes the pool off the list and waits until neither the thread nor a Reader can be using it, nor a reader of the program's that
  // had it from a pointer under RCU. False where that cannot be told (Grace::lost()): then the pool must be kept.
  [[nodiscard]] bool remove(Pool& pool) PERCPU_EXCLUDES(rounds_lock_);

  // While one lives no pool that is in the list is destroyed. Short: remove() waits for it. Context: not a signal handler.
  class Reader {
   public:
    explicit Reader(Balancer& balancer) : gate_(balancer.readers_) { gate_.enter(); }
    ~Reader() { gate_.leave(); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

   private:
    Gate& gate_;
  };
  // All pools, to be walked (runtime/pool.h). Requires: a Reader, or rounds_lock_, or a fork in progress.
  PoolList pools() const;

  // A pool has work. Context: any; where the thread does not run yet this leaves a note for start_if_wanted().
  void wake();
  // Starts the thread if someone wanted it. Context: may block, holds no lock of ours.
  void start_if_wanted() {
    if (start_wanted_.load(std::memory_order_relaxed)) start();
  }
  bool running() const { return state_.load(std::memory_order_acquire) == kRunning; }

  // Work that is no pool's: the thread calls it whenever it wakes, with no lock of ours held, and again after a fifth of a
  // second while it returns nonzero. Set once.
  using Job = int (*)(void* context);
  void set_job(Job job, void* context) {
    job_context_ = context;
    job_.store(job, std::memory_order_release);
  }
  // Starts the thread, wanted or not; and wakes it. Context: may block, holds no lock of ours.
  void start_now() {
    start();
    bell_.ring(*system_);
  }
  // Whether there is a thread that hears of what is due, or nobody needs one any more. False: who finds work due does it.
  bool serves() const {
    return state_.load(std::memory_order_seq_cst) != kNone || stopping_.load(std::memory_order_relaxed);
  }

  // Waits for a grace period and frees what waited for it, in all pools. Context: may block; not inside a read section;
  // holds no lock of ours.
  void free_after_grace() PERCPU_EXCLUDES(grace_lock_, rounds_lock_);

  // The main thread has called pthread_exit(): the process is to end with the last of its threads. libc counts ours among them, so
  // it looks from now on, ten times a second, whether it is the only one left, and has exit(0) called then, as libc does in the
  // last: in a thread that is as the program's are, since handlers and destructors of the program run there. Where it cannot
  // look (no descriptor is left, or there is no /proc) it ends instead, and what it would do is done by the threads that allocate;
  // but they cannot wait for grace periods, so what percpu_free_rcu() is given then stays.
  // Context: in the main thread.
  void main_thread_ends();

  // Whether the calling process only shares the memory of the one that the thread is of: a child of vfork.
  [[nodiscard]] bool is_of_another_process() const;
  // The calling process has the thread, from now on.
  void note_process() { process_.store(getpid(), std::memory_order_relaxed); }

  // The main thread is about to end by the system call, past libc, which will not call exit() then: nor is it called here, and the thread
  // just ends when it is the only one left. Returns whether it is that already but for the caller, who then ends the process itself: else
  // it would end with the thread's status, not the main thread's. Context: in the main thread; in a child that shares the process's memory it
  // does nothing.
  [[nodiscard]] bool main_thread_leaves();

  // Ends the thread, without waiting longer than it takes to notice. Called when the process exits; only the first call does it.
  void stop();

  void fork_prepare() PERCPU_ACQUIRE(rounds_lock_) { rounds_lock_.lock(); }
  void fork_parent() PERCPU_RELEASE(rounds_lock_) { rounds_lock_.unlock(); }
  // exits: the thread that forked is in exit(), and so the child's is.
  void fork_child(bool exits) PERCPU_RELEASE(rounds_lock_);

 private:
  enum State : uint32_t { kNone = 0, kStarting = 1, kRunning = 2, kEnded = 3 };
  enum class MainThread : uint8_t { kRuns, kEnds, kLeaves };  // it called pthread_exit(), or goes past libc

  static void* thread_main(void* self);
  static void* end_process(void* self);
  void start();
  void run();
  void run_rounds() PERCPU_EXCLUDES(rounds_lock_);
  enum class Last : uint8_t { kNo, kYes, kUnknown };
  Last is_last_thread() const;
  struct Threads {
    unsigned long count;  // 0: unknown
    bool main_ended;
  };
  Threads threads() const;
  void retire() PERCPU_EXCLUDES(rounds_lock_);
  void serve_no_more() PERCPU_EXCLUDES(rounds_lock_);
  static void* outlive(void* self);
  void note_main_thread(MainThread how);
  uint32_t look_after_front_caches() PERCPU_EXCLUDES(rounds_lock_);
  bool do_job();
  bool any_grace_waiting() PERCPU_EXCLUDES(rounds_lock_);

  const System* system_ = nullptr;
  Grace* grace_ = nullptr;
  SleepMutex grace_lock_ PERCPU_ACQUIRED_BEFORE(rounds_lock_);  // who waits for a grace period: one at a time
  SleepMutex rounds_lock_;
  std::atomic<Pool*> pools_{nullptr};  // written under rounds_lock_
  Gate readers_;
  WakeWord bell_;
  FutexWord state_{kNone};
  std::atomic<Job> job_{nullptr};
  void* job_context_ = nullptr;
  std::atomic<bool> start_wanted_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<MainThread> main_thread_{MainThread::kRuns};
  std::atomic<bool> retired_{false};
  sigset_t mask_of_main_{};  // written before main_thread_ says that it ends
  std::atomic<bool> in_grace_{false};  // the thread may be held up by the program's readers
  bool said_unstartable_ = false;      // written by who moved state_ to kStarting
  std::atomic<pid_t> process_{0};      // whose thread it is: a child that shares the memory is none of it
  pthread_t thread_{};
  pthread_t self_{};  // the same, written by the thread itself before it retires
};

}  // namespace percpu

#endif  // PERCPU_RUNTIME_BALANCER_H
