// SPDX-License-Identifier: MIT
//
// What the library does with liburcu (its bp flavour, which needs no registration by the program): grace periods, for
// percpu_free_rcu().
//
// liburcu has locks of its own. A program that uses it brackets fork() by urcu_bp_before_fork() and its twins; a second
// caller of these would deadlock, and a child whose parent forked inside liburcu without them may find these locks taken
// for ever. So: no thread of the library is inside liburcu while the process forks. Where such a thread cannot leave, since
// what it waits for is the very thread that forks, the child does without liburcu. Not so where the program called
// urcu_bp_before_fork() before we hear of the fork (its handlers run first if they were registered later), which is told by
// the signal mask: then the thread that forks holds liburcu's locks, ours wait for them, and the program makes the child's
// liburcu good.
//
// Nor does the library make a thread known to liburcu, as read sections of its own would: liburcu forgets a thread that ends in a
// destructor of its own, under its lock, and a child forked by another thread in that moment would find it taken for ever.
//
// Invariants:
//   waiters_ is shut only while a fork is in progress
//   a thread is inside liburcu on the library's behalf only between enter() and leave() of it
// Locking: the gate comes before the locks 3 to 5 of lib/README.md.
#ifndef PERCPU_RUNTIME_GRACE_H
#define PERCPU_RUNTIME_GRACE_H

#include <atomic>

#include "os/gate.h"
#include "os/signals.h"

namespace percpu {

// A lock of whoever calls fork's handlers for us (api/for_preload.h), which comes between the gate here and our locks: readers may wait for it.
struct OuterLock {
  void (*lock)();
  void (*unlock)();
};

class Grace {
 public:
  constexpr Grace() = default;

  // Whether the process's liburcu may be locked for ever (see fork_child()).
  bool lost() const { return lost_.load(std::memory_order_relaxed); }

  // Whether the calling thread is inside a read section of the program's: waiting for a grace period would be for ever.
  // Takes no lock. Context: any thread; not a signal handler.
  static bool inside_section();

  // Waits for a grace period. False when liburcu is lost: then nothing may be freed on the strength of it. Context: not inside
  // a read section.
  [[nodiscard]] bool wait();

  // Around fork, in the thread that forks; several threads may fork at once. A fork inside the program's own read section
  // does not wait for a grace period in progress, which waits for that section: the child then counts its liburcu as lost.
  // Nor does one for long where the program called urcu_bp_before_fork() first, which holds up everybody in liburcu.
  // Takes `outer`, if it is not null, in the end; waits for a grace period without it, and nobody who holds it waits for the fork.
  // signals_blocked: what urcu_bp_before_fork() leaves behind, besides its locks.
  void fork_prepare(const OuterLock* outer = nullptr, bool signals_blocked = all_are_blocked(blocked_signals()));
  void fork_parent();
  void fork_child();

 private:
  bool waiters_left(bool bracketed);
  bool shut_with(const OuterLock& outer);

  Gate waiters_;
  std::atomic<bool> lost_{false};
};

}  // namespace percpu

#endif  // PERCPU_RUNTIME_GRACE_H
