// SPDX-License-Identifier: MIT
//
// What the library does with liburcu (its bp flavour, which needs no registration by the program): read sections for the
// lists that it walks without a lock, and grace periods for percpu_free_rcu() and for pools that go.
//
// liburcu has locks of its own. A program that uses it brackets fork() by urcu_bp_before_fork() and its twins; a second
// caller of these would deadlock, and a child whose parent forked inside liburcu without them may find these locks taken
// for ever. So: no thread of the library is inside liburcu while the process forks. Where such a thread cannot leave, since
// what it waits for is the very thread that forks, the child does without liburcu. Not so where the program called
// urcu_bp_before_fork() before we hear of the fork (its handlers run first if they were registered later), which is told by
// the signal mask: then the thread that forks holds liburcu's locks, ours wait for them, and the program makes the child's
// liburcu good.
//
// Invariants:
//   readers_ is shut, or waiters_ is, only while a fork is in progress; waiters_ is shut first, for a grace period may wait
//   for a thread that wants to enter readers_
//   a thread is inside liburcu on the library's behalf only between enter() and leave() of one of the gates
// Locking: a Gate is a lock with a shared and an exclusive side; both come before the locks 3 to 5 of lib/README.md.
#ifndef PERCPU_RUNTIME_GRACE_H
#define PERCPU_RUNTIME_GRACE_H

#include <atomic>
#include <cstdint>

namespace percpu {

// Many may be inside at once. shut() lets nobody in until open(), and says whether somebody is inside still;
// wait_empty() waits until all have left. Several may have it shut at once (threads fork at the same time): it lets people in
// again when the last of them has opened it.
class Gate {
 public:
  constexpr Gate() = default;
  void enter();
  void leave();
  bool shut();
  // Requires: shut by the caller. Returns: whether it is empty; false once `patience_ms` went by (0: never).
  bool wait_empty(uint32_t patience_ms = 0);
  void open();
  // In the child of a fork: whoever was inside, or had it shut, does not exist.
  void reset() { word_.store(0, std::memory_order_relaxed); }

 private:
  static constexpr uint32_t kShut = 1u << 20;  // counts who has it shut
  static constexpr uint32_t kInside = kShut - 1;
  std::atomic<uint32_t> word_{0};  // how many are inside, and how many have it shut
};

class Grace {
 public:
  constexpr Grace() = default;

  bool lost() const { return lost_.load(std::memory_order_relaxed); }

  // Whether the calling thread is inside a read section: waiting for a grace period would be for ever. Context: as wait().
  bool inside_section();

  // Waits for a grace period. False when the process's liburcu may be locked for ever (see fork_child()): then nothing
  // may be freed on the strength of it. Context: not inside a read section.
  [[nodiscard]] bool wait();

  // A read section of the library. Short, does not block, nests in the program's own.
  class Reader {
   public:
    explicit Reader(Grace& grace);
    ~Reader();
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

   private:
    Grace& grace_;
    bool in_section_;
  };

  // Around fork, in the thread that forks; several threads may fork at once. A fork inside the program's own read section
  // does not wait for a grace period in progress, which waits for that section: the child then counts its liburcu as lost.
  // Nor does one for long where the program called urcu_bp_before_fork() first, which holds up everybody in liburcu.
  void fork_prepare();
  void fork_parent();
  void fork_child();

 private:
  bool in_programs_section();
  bool waiters_left();

  Gate readers_;
  Gate waiters_;
  std::atomic<bool> lost_{false};
};

}  // namespace percpu

#endif  // PERCPU_RUNTIME_GRACE_H
