// SPDX-License-Identifier: MIT
#include "runtime/grace.h"

#include <csignal>
#include <urcu-bp.h>

#include "os/cancel.h"

// What liburcu knows of the calling thread: nothing, until it enters its first read section, or asks whether it is inside one. Part
// of liburcu-bp's interface: its read sections are inlined into programs that want that.
struct urcu_bp_reader;
extern "C" __thread urcu_bp_reader* urcu_bp_reader;

namespace percpu {
namespace {

// How long a fork waits for those who are inside liburcu: grace periods end by themselves, unless they wait, by way of the
// program's own locks, for the thread that forks.
constexpr uint32_t kForkPatienceMs = 5000;
// The same where they are likely to be held up by urcu_bp_before_fork(). Who is inside after that time waits for its locks,
// and does no harm to the child: the program makes the child's liburcu good.
constexpr uint32_t kBracketedPatienceMs = 20;

// Set where the fork that this thread prepares has let threads stay inside liburcu: to whose they are, since a test has a Grace
// of its own, and the handlers of the library's run in the same fork.
__thread const Grace* left_inside_of __attribute__((tls_model("initial-exec"))) = nullptr;

// Between two looks at an empty gate a grace period may begin; every time is not likely.
constexpr int kOuterTries = 100;

}  // namespace

// Asks liburcu only about a thread that it knows: it would make another one known first, under its lock.
bool Grace::inside_section() { return urcu_bp_reader != nullptr && urcu_bp_read_ongoing() != 0; }

bool Grace::wait() {
  if (lost()) return false;
  const NotCancelled not_cancelled;  // it sleeps in poll()
  waiters_.enter();
  urcu_bp_synchronize_rcu();
  waiters_.leave();
  return true;
}

bool Grace::waiters_left(bool bracketed) {
  if (bracketed) {
    (void)waiters_.wait_empty(kBracketedPatienceMs);
    return true;
  }
  if (inside_section()) return false;
  return waiters_.wait_empty(kForkPatienceMs);
}

// Shuts the gate and takes the lock once nobody is inside: a thread inside waits for readers, and a reader may wait for the lock. The gate
// is open while we wait for the lock, whose holder may want to enter. False: that came to nothing, and neither is taken.
bool Grace::shut_with(const OuterLock& outer) {
  for (int i = 0; i < kOuterTries; i++) {
    const bool left = !waiters_.shut() || waiters_.wait_empty(kForkPatienceMs);
    waiters_.open();
    if (!left) return false;
    outer.lock();
    if (!waiters_.shut()) return true;
    waiters_.open();
    outer.unlock();
  }
  return false;
}

void Grace::fork_prepare(const OuterLock* outer, bool signals_blocked) {
  bool waited_in_vain = false;
  if (outer != nullptr) {
    const bool may_wait = !inside_section() && !signals_blocked;
    if (may_wait && shut_with(*outer)) return;
    waited_in_vain = may_wait;
    outer->lock();
  }
  if (waiters_.shut() && (waited_in_vain || !waiters_left(signals_blocked))) left_inside_of = this;
}

void Grace::fork_parent() {
  if (left_inside_of == this) left_inside_of = nullptr;
  waiters_.open();
}

void Grace::fork_child() {
  if (left_inside_of == this) {
    lost_.store(true, std::memory_order_relaxed);
    left_inside_of = nullptr;
  }
  waiters_.reset();
}

}  // namespace percpu
