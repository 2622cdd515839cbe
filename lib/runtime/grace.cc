// SPDX-License-Identifier: MIT
#include "runtime/grace.h"

#include <cerrno>
#include <climits>
#include <csignal>
#include <urcu-bp.h>

#include "os/futex.h"

namespace percpu {
namespace {

// How long a fork waits for those who are inside liburcu: readers and grace periods end by themselves, unless they wait, by
// way of the program's own locks, for the thread that forks.
constexpr uint32_t kForkPatienceMs = 5000;
// The same where they are likely to be held up by urcu_bp_before_fork(). Who is inside after that time waits for its locks,
// and does no harm to the child: the program makes the child's liburcu good.
constexpr uint32_t kBracketedPatienceMs = 20;

constexpr uint32_t kSliceMs = 10;

// Set where the fork that this thread prepares has let threads stay inside liburcu: to whose they are, since a test has a Grace
// of its own, and the handlers of the library's run in the same fork.
__thread const Grace* left_inside_of __attribute__((tls_model("initial-exec"))) = nullptr;

// What urcu_bp_before_fork() leaves behind, besides its locks: all signals are blocked.
bool all_signals_blocked() {
  sigset_t blocked;
  if (pthread_sigmask(SIG_SETMASK, nullptr, &blocked) != 0) return false;
  for (int number = 1; number <= SIGRTMAX; number++) {
    const bool blockable = number != SIGKILL && number != SIGSTOP && (number < 32 || number >= SIGRTMIN);
    if (blockable && sigismember(&blocked, number) == 0) return false;
  }
  return true;
}

}  // namespace

void Gate::enter() {
  uint32_t now = word_.load(std::memory_order_relaxed);
  for (;;) {
    if (now >= kShut) {
      (void)futex_wait(word_, now);
      now = word_.load(std::memory_order_relaxed);
    } else if (word_.compare_exchange_weak(now, now + 1, std::memory_order_seq_cst)) {
      return;
    }
  }
}

void Gate::leave() {
  const uint32_t before = word_.fetch_sub(1, std::memory_order_seq_cst);
  if (before >= kShut && (before & kInside) == 1) futex_wake(word_, INT_MAX);
}

bool Gate::shut() { return (word_.fetch_add(kShut, std::memory_order_seq_cst) & kInside) != 0; }

bool Gate::wait_empty(uint32_t patience_ms) {
  constexpr timespec kSlice = {0, kSliceMs * 1000 * 1000};
  uint32_t waited_ms = 0;
  for (;;) {
    const uint32_t now = word_.load(std::memory_order_seq_cst);
    if ((now & kInside) == 0) return true;
    if (patience_ms != 0 && waited_ms >= patience_ms) return false;
    if (futex_wait(word_, now, patience_ms != 0 ? &kSlice : nullptr) == -ETIMEDOUT) waited_ms += kSliceMs;
  }
}

void Gate::open() {
  const uint32_t before = word_.fetch_sub(kShut, std::memory_order_seq_cst);
  if (before < 2 * kShut) futex_wake(word_, INT_MAX);
}

// Asking makes this thread known to liburcu, under a lock of liburcu's: inside a gate, for another thread may fork meanwhile. Not
// inside the waiters': who has that shut may wait for a grace period that waits for our section.
bool Grace::in_programs_section() {
  readers_.enter();
  const bool inside = urcu_bp_read_ongoing() != 0;
  readers_.leave();
  return inside;
}

bool Grace::inside_section() { return !lost() && in_programs_section(); }

bool Grace::wait() {
  if (lost_.load(std::memory_order_relaxed)) return false;
  waiters_.enter();
  urcu_bp_synchronize_rcu();
  waiters_.leave();
  return true;
}

// Where liburcu is lost nothing is freed on the strength of a grace period, so that readers need no section; and a thread
// that is new to liburcu would hang in it.
Grace::Reader::Reader(Grace& grace) : grace_(grace) {
  grace_.readers_.enter();
  in_section_ = !grace_.lost();
  if (in_section_) urcu_bp_read_lock();
}

Grace::Reader::~Reader() {
  if (in_section_) urcu_bp_read_unlock();
  grace_.readers_.leave();
}

// After urcu_bp_before_fork() we must not ask whether we are inside a read section: it has taken the lock for that.
bool Grace::waiters_left() {
  if (all_signals_blocked()) {
    (void)waiters_.wait_empty(kBracketedPatienceMs);
    return true;
  }
  if (in_programs_section()) return false;
  return waiters_.wait_empty(kForkPatienceMs);
}

void Grace::fork_prepare() {
  if (waiters_.shut() && !waiters_left()) left_inside_of = this;
  if (!readers_.shut()) return;
  if (all_signals_blocked()) {
    (void)readers_.wait_empty(kBracketedPatienceMs);
  } else if (!readers_.wait_empty(kForkPatienceMs)) {
    left_inside_of = this;
  }
}

void Grace::fork_parent() {
  if (left_inside_of == this) left_inside_of = nullptr;
  readers_.open();
  waiters_.open();
}

void Grace::fork_child() {
  if (left_inside_of == this) {
    lost_.store(true, std::memory_order_relaxed);
    left_inside_of = nullptr;
  }
  readers_.reset();
  waiters_.reset();
}

}  // namespace percpu
