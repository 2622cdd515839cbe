// SPDX-License-Identifier: MIT
//
// The calling thread's blocked signals, by the system call: libc leaves those out that it keeps for itself (a thread that is cancelled, or
// that takes part in a setuid()), and the functions may be somebody else's.
#ifndef PERCPU_OS_SIGNALS_H
#define PERCPU_OS_SIGNALS_H

#include <signal.h>
#include <sys/syscall.h>

#include <cstdint>

#include "base/raw_syscall.h"

namespace percpu {

// A set of signals: bit n - 1 is signal n.
inline constexpr uint64_t kAllSignals = ~uint64_t{0};

// Returns: what was blocked before. Context: any.
inline uint64_t set_blocked_signals(uint64_t blocked) {
  uint64_t before = 0;
  (void)raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, reinterpret_cast<long>(&blocked), reinterpret_cast<long>(&before), sizeof before);
  return before;
}

inline uint64_t blocked_signals() {
  uint64_t now = 0;
  (void)raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, 0, reinterpret_cast<long>(&now), sizeof now);
  return now;
}

// Whether that is every signal that a program can block: what sigfillset() and pthread_sigmask() make.
inline bool all_are_blocked(uint64_t blocked) {
  constexpr auto bit = [](int number) { return uint64_t{1} << (number - 1); };
  return (blocked | bit(SIGKILL) | bit(SIGSTOP) | bit(32) | bit(33)) == kAllSignals;  // the last two are libc's own
}

}  // namespace percpu

#endif  // PERCPU_OS_SIGNALS_H
