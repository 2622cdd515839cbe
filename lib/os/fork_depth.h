// SPDX-License-Identifier: MIT
//
// Which fork handlers of a thread take locks and give them back: those of the outermost fork alone, since handlers may be
// installed twice, and a signal handler, or a fork handler of somebody else's, may fork while its thread forks. And none in a
// process of one thread: it has nobody to keep out, and the child goes on where the parent was, also when it was in the middle of
// a function of ours and a signal handler forks.
//
// From before the first lock is taken until after the last one is given back all signals are blocked: a handler that forked in between
// would find some of the locks taken by its own thread, and some not.
//
// A thread made by a raw clone() is not known to libc: with no other, it does not count.
//
// Context: one of each thread (`__thread`), in pthread_atfork()'s handlers only.
#ifndef PERCPU_OS_FORK_DEPTH_H
#define PERCPU_OS_FORK_DEPTH_H

#include <unistd.h>

#include <cstdint>

#include "os/signals.h"

#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#endif

namespace percpu {

class ForkDepth {
 public:
  // In the handler that prepares. True: take the locks.
  bool prepare() {
    if (depth_ == 0 && process_has_one_thread()) return false;
    if (depth_ != 0) return depth_++, false;
    blocked_before_ = set_blocked_signals(kAllSignals);
    depth_ = 1;
    process_ = getpid();
    return true;
  }
  // In those that resume. True: prepare() said so at the beginning of this fork, so give them back, and call done().
  bool resume() {
    if (depth_ > 1) depth_--;
    else if (depth_ == 1) return true;
    return false;
  }
  void done() {
    depth_ = 0;
    (void)set_blocked_signals(blocked_before_);
  }
  // Where prepare() or resume() said so: whether the program had blocked all signals when the fork began.
  bool all_were_blocked() const { return all_are_blocked(blocked_before_); }
  // Where resume() said so: whether this is the process in which prepare() did. Else it is the child of a fork, even if it is told
  // that it is the parent: somebody's handler forked after ours had prepared, and the child goes on with the fork that it is in.
  bool in_its_process() const { return getpid() == process_; }

 private:
  static bool process_has_one_thread() {
#if __has_include(<sys/single_threaded.h>)
    return __libc_single_threaded != 0;
#else
    return false;
#endif
  }

  uint32_t depth_ = 0;
  pid_t process_ = 0;
  uint64_t blocked_before_ = 0;
};

}  // namespace percpu

#endif  // PERCPU_OS_FORK_DEPTH_H
